"""Shared set-up: few threads, and no state of the machine (data root, caches) leaking into a test."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported. Tiny models gain nothing from threads, and on a busy machine a barrier can stall for ms.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

import sagareid  # noqa: F401  (before any test imports fastreid, whatever order its imports are sorted in)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of this repository."""
    return REPO


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """tests/data: numbers and key lists that the published code gave."""
    return REPO / "tests" / "data"


@pytest.fixture(scope="session")
def session_tmp(tmp_path_factory) -> Path:
    """One folder for a whole test run, for what is dear to make (drawn data sets, trained towers)."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture(autouse=True)
def no_dataset_root(monkeypatch):
    """A developer's own FASTREID_DATASETS never decides what a test sees."""
    monkeypatch.delenv("FASTREID_DATASETS", raising=False)
