"""What takes long and matters to no test here: files that reach the disk, and Flower's sweeps of the whole heap."""

from __future__ import annotations

import gc
import os

import pytest


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(gc, "collect", lambda *_: 0)
