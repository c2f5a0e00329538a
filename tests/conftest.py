"""Shared set-up: few threads, and no state of the machine (data root, caches) leaking into a test."""

from __future__ import annotations

import os
import runpy
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


@pytest.fixture(scope="session")
def tiny_root(session_tmp) -> Path:
    """A data root with a drawn SyntheticPedestrians of 12 training and 8 test identities."""
    from sagareid.synthetic import drawn as synthetic

    spec = synthetic.Spec(train_ids=12, test_ids=8, validation_ids=4, gallery_distractors=40, cutouts=4)
    root = session_tmp / "datasets"
    synthetic.draw_dataset(root, spec, workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_run(session_tmp, tiny_root, repo) -> Path:
    """The folder of a run of SAGAHead on the embedded CLIP: one tiny epoch at 48x24 on the tiny data root."""
    from sagareid.commands.train_net import main

    folder = session_tmp / "tiny_run"
    run = [
        "--config-file",
        repo / "configs/SAGA/quickstart.yml",
        "STAGES",
        "[]",
        "OUTPUT_DIR",
        folder,
        "SOLVER.MAX_EPOCH",
        1,
        "SOLVER.IMS_PER_BATCH",
        48,
        "DATALOADER.NUM_WORKERS",
        0,
        "INPUT.SIZE_TRAIN",
        "[48,24]",
        "INPUT.SIZE_TEST",
        "[48,24]",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(tiny_root))
        main([str(a) for a in run])
    return folder


@pytest.fixture
def train_net(tiny_root, monkeypatch):
    """Run tools/train_net.py's main in this process on the tiny data root; returns its exit code."""
    from sagareid.commands.train_net import main

    def run(*argv: object, root: Path = tiny_root) -> int:
        monkeypatch.setenv("FASTREID_DATASETS", str(root))
        try:
            main([str(a) for a in argv])
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture(scope="session")
def call_tool(repo, tiny_root):
    """Run a tool by its file's name in this process, on the tiny data root or another; returns its exit code."""

    def call(name: str, *argv: object, root: Path = tiny_root) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FASTREID_DATASETS", str(root))
            patch.setattr("sys.argv", [name, *map(str, argv)])
            try:
                runpy.run_path(str(repo / "tools" / name), run_name="__main__")
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    return call


@pytest.fixture
def run_tool(call_tool, capsys):
    """`call_tool`; returns exit code, standard output and standard error."""

    def run(name: str, *argv: object, **options) -> tuple[int, str, str]:
        capsys.readouterr()
        return call_tool(name, *argv, **options), *capsys.readouterr()

    return run
