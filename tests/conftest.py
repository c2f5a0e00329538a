"""Shared set-up: few threads, and no state of the machine (data root, caches) leaking into a test."""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

# Before torch is imported. Tiny models gain nothing from threads, and on a busy machine a barrier can stall for ms.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from filelock import FileLock
from small_runs import ONE_STAGE, QUICKSTART, SMALL, SMALL_IMAGES

import sagareid  # (before any test imports fastreid, whatever order its imports are sorted in)

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
    """One folder for the tests of a process, for what takes long to make."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once for a whole test run, whichever of pytest-xdist's workers asks first; the others wait for it.

    A folder whose making failed is made anew by the next that asks.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(autouse=True)
def no_dataset_root(monkeypatch):
    """A developer's own FASTREID_DATASETS never decides what a test sees."""
    monkeypatch.delenv("FASTREID_DATASETS", raising=False)


@pytest.fixture
def bare_environment(tmp_path) -> Callable[[Path], dict[str, str]]:
    """By data root, little of this process's environment for another, but the package that is tested here: another
    checkout may be installed."""
    package = Path(sagareid.__file__).parents[1]
    common = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(package)}
    return lambda root: common | {"FASTREID_DATASETS": str(root)}


@pytest.fixture(scope="session")
def tiny_root(shared) -> Path:
    """A data root with a drawn SyntheticPedestrians of 12 training and 8 test identities."""
    from sagareid.synthetic import drawn as synthetic

    spec = synthetic.Spec(train_ids=12, test_ids=8, validation_ids=4, gallery_distractors=40, cutouts=4)
    return shared("datasets", lambda root: synthetic.draw_dataset(root, spec, workers=1))


def _train(root: Path, *arguments: object) -> None:
    from sagareid.commands.train_net import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(root))
        main([str(a) for a in arguments])


@pytest.fixture(scope="session")
def tiny_run(shared, tiny_root) -> Path:
    """The folder of a run of SAGAHead on the embedded CLIP: one tiny epoch at 48x24 on the tiny data root."""
    run = [*ONE_STAGE, *SMALL, *SMALL_IMAGES, "SOLVER.IMS_PER_BATCH", 48]
    return shared("tiny_run", lambda folder: _train(tiny_root, *run, "OUTPUT_DIR", folder))


@pytest.fixture(scope="session")
def tiny_quickstart(shared, tiny_root) -> Path:
    """The folder of a run of all stages of the quick start, two tiny epochs each."""
    run = [*QUICKSTART, *SMALL, "SOLVER.MAX_EPOCH", 2, "CACHE.NUM_VIEWS", 2]
    return shared("tiny_quickstart", lambda folder: _train(tiny_root, *run, "OUTPUT_DIR", folder))


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
