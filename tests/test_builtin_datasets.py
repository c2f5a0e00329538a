"""FastReID's own data sets: found under the names that people give their folders, and never misread."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

from sagareid import compat
from sagareid.config import get_cfg
from sagareid.data.datasets import builtin
from sagareid.data.datasets.build import build_dataset

from fastreid.data.datasets import DATASET_REGISTRY


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(path)


def ids(items):
    return [tuple(item[1:]) for item in items]


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    return get_cfg()


def test_fastreids_classes_are_not_let_to_read_the_folders_own_name(cfg, tmp_path, monkeypatch):
    """They would take person 1 and camera 2 from it for every image."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "run_1_c2"))
    for name in ("Market1501", "DukeMTMC", "VeRi"):
        (tmp_path / "run_1_c2" / name.lower()).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"{name}: FastReID would read people and cameras from .*run_1_c2"):
            build_dataset(cfg, name)


BUILTIN = sorted(name for name, cls in compat.registered(DATASET_REGISTRY).items() if builtin.is_builtin(cls))


@pytest.mark.parametrize("name", BUILTIN)
def test_a_missing_folder_of_fastreids_own_sets_names_the_root(cfg, tmp_path, monkeypatch, name):
    with pytest.raises(FileNotFoundError) as error:
        build_dataset(cfg, name)
    assert f"{name}: no folder " in str(error.value) and f" under {tmp_path} (FASTREID_DATASETS names" in str(
        error.value
    )
    monkeypatch.delenv("FASTREID_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"under datasets \(FASTREID_DATASETS, which is not set, names"):
        build_dataset(cfg, name)


@pytest.mark.parametrize("name", BUILTIN)
def test_fastreids_own_sets_are_found_under_names_that_people_give(tmp_path, name):
    cls = DATASET_REGISTRY.get(name)
    usual = {"Market1501": "Market-1501-v15.09.15", "MSMT17": "MSMT17_V1"}.get(name) or cls.dataset_dir
    places = [usual, f"{cls.__name__.upper()}/{usual}"]
    if cls.dataset_name != usual:
        places += [f"{cls.dataset_name}/{usual}"] + ([] if name == "MSMT17" else [cls.dataset_name])
    for i, place in enumerate(places):
        root = tmp_path / str(i)
        (root / place).mkdir(parents=True)
        found = builtin.find_folder(name, cls, root)
        assert found.folder == root / place and issubclass(found.cls, cls) and found.cls.__name__ == cls.__name__
        if found.cls is not cls and name != "Market1501":
            assert os.path.join(found.root, found.cls.dataset_dir) == str(root / place)


@pytest.mark.parametrize("place", ["market1501", "market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15", "."])
def test_market_is_read_wherever_it_lies(cfg, tmp_path, place):
    make(
        tmp_path / place,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0003_c1s1_000451_00.jpg",
        "bounding_box_test/0003_c6s3_000451_03.jpg",
    )
    data = build_dataset(cfg, "Market1501")
    assert ids(data.train) == [("market1501_2", "market1501_0")] and ids(data.query) == [(3, 0)]
    shutil.rmtree(tmp_path / place / "query")
    with pytest.raises(RuntimeError, match='Market1501: .*query" is not found. Expected the whole data set in'):
        build_dataset(cfg, "Market1501")


@pytest.mark.parametrize("place", ["dukemtmc-reid/DukeMTMC-reID", "dukemtmc-reid", "DukeMTMC"])
def test_duke_is_read_wherever_it_lies(cfg, tmp_path, place):
    make(
        tmp_path / place, *(f"{split}/0005_c2_f1.jpg" for split in ("bounding_box_train", "query", "bounding_box_test"))
    )
    data = build_dataset(cfg, "DukeMTMC")
    assert ids(data.query) == [(5, 1)] and type(data).__name__ == "DukeMTMC"


def test_an_unknown_data_set_lists_the_known_ones(cfg, tmp_path):
    make(tmp_path, "a.jpg")
    cfg.DATASETS.CUSTOM = [{"NAME": "shop", "TYPE": "CSVDataset", "PATH": "x.csv"}]
    with pytest.raises(ValueError, match="Did you mean Market1501.* Known: .*OccludedDuke.*shop.*--import"):
        build_dataset(cfg, "Market-1501")
