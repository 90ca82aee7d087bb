"""What takes long and matters to no test here: files that reach the disk, and Flower's sweeps of the whole heap."""

from __future__ import annotations

import gc
import os
import random

import pytest


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    random.seed(0)  # Flower draws from it which nodes come in which order
    if "slow" not in request.keywords:
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(gc, "collect", lambda *_: 0)
