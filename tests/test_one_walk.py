"""What a run reads and builds, it reads and builds once: its configuration, its data sets, its loaders."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from sagareid.commands.train_net import main
from sagareid.data import loaders
from sagareid.engine import plans

SMALL = ["SOLVER.MAX_EPOCH", "3", "SOLVER.IMS_PER_BATCH", "16", "DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "1"]


@pytest.fixture
def walked(monkeypatch, tiny_root, repo):
    """How often each folder of the data set is listed, each configuration file read and each kind of loader built."""
    counts: Counter[str] = Counter()

    def counting(original, name_of):
        def counted(*args, **kwargs):
            if name := name_of(*args):
                counts[name] += 1
            return original(*args, **kwargs)

        return counted

    def inside(path=".", *rest) -> str:
        path = Path(path).absolute() if isinstance(path, (str, os.PathLike)) else Path("/")
        return path.name if path.is_relative_to(tiny_root) else ""

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, counting(getattr(os, name), inside))
    kinds = loaders.DeviceLoader.__init__
    monkeypatch.setattr(loaders.DeviceLoader, "__init__", counting(kinds, lambda self, data, *rest: _kind(self, data)))
    monkeypatch.setattr(plans, "plan", counting(plans.plan, lambda *args: "plan"))
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    monkeypatch.chdir(repo)
    return counts


def _kind(loader, data) -> str:
    return "training loader" if isinstance(loader, loaders.TrainLoader) else f"loader of {type(data).__name__}"


@pytest.mark.slow
def test_one_stage(walked, tmp_path):
    """Trained from images, evaluated after each of three epochs."""
    config = ["--config-file", "configs/SAGA/quickstart.yml", "--stage", "prompts"]
    main([*config, *SMALL, "CACHE.ENABLED", "False", "OUTPUT_DIR", str(tmp_path)])
    assert dict(walked) == {
        "plan": 1,
        "bounding_box_train": 1,
        "query": 1,
        "bounding_box_test": 1,
        "training loader": 1,
        "loader of ReIDDataset": 1,
    }


@pytest.mark.slow
def test_all_stages(walked, tmp_path):
    """Four stages read the data sets once for all; each has its loaders, and one to fill its cache."""
    small = [*SMALL, "SOLVER.MAX_EPOCH", "1", "CACHE.NUM_VIEWS", "1", "INPUT.SIZE_TRAIN", "[48,24]"]
    main(
        [
            "--config-file",
            "configs/SAGA/quickstart.yml",
            *small,
            "INPUT.SIZE_TEST",
            "[48,24]",
            "OUTPUT_DIR",
            str(tmp_path),
        ]
    )
    folders = {name: n for name, n in walked.items() if "loader" not in name}
    assert folders == {"plan": 1, "bounding_box_train": 1, "query": 1, "bounding_box_test": 1}
    assert walked["training loader"] == walked["loader of ReIDDataset"] == 4


def test_another_process_gets_the_plan(tmp_path, repo):
    """The runs travel to the processes of a job as they are."""
    import pickle

    runs = plans.plan(repo / "configs/SAGA/quickstart.yml", ["OUTPUT_DIR", str(tmp_path)])
    again = pickle.loads(pickle.dumps(runs))
    assert [(r.name, r.cfg, r.asked_weights) for r in again] == [(r.name, r.cfg, r.asked_weights) for r in runs]
    assert all(r.cfg.is_frozen() for r in again)
