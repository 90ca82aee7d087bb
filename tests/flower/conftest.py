"""Files need not reach the disk here: what survives a crash of the machine is tested with the files themselves."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_fsync(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(os, "fsync", lambda _: None)
