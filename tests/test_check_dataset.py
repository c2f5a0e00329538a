"""tools/check_dataset.py and tools/build_occluded_duke.py, as commands."""

from __future__ import annotations

import functools
import json
import os
import re

import pytest
from PIL import Image, ImageDraw

from sagareid.config import get_cfg
from sagareid.data import check_dataset
from sagareid.data.contact_sheet import contact_sheet
from sagareid.data.datasets import builtin
from sagareid.data.datasets.custom import OwnDataset, Photo
from sagareid.data.datasets.duke import MODES, build_occluded_duke
from sagareid.data.datasets.names import Names

from fastreid.data.datasets import DATASET_REGISTRY


@pytest.fixture
def tool(run_tool, tmp_path):
    """Run a tool on the data root `tmp_path`; returns exit code, standard output and standard error."""
    return functools.partial(run_tool, root=tmp_path)


def make(root, *names):
    """Images that differ by their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.effect_noise((16, 32), 50).convert("RGB")
        image.putpixel((0, 0), tuple(hash(name) >> shift & 255 for shift in (0, 8, 16)))
        image.save(path)
    return root


DUKE = (
    "bounding_box_train/0009_c8_f1.jpg",
    "bounding_box_train/0009_c1_f1.jpg",
    "bounding_box_train/0010_c1_f1.jpg",
    "query/0005_c2_f1.jpg",
    "query/0006_c2_f1.jpg",
    "bounding_box_test/0005_c5_f1.jpg",
    "bounding_box_test/0006_c2_f2.jpg",
    "bounding_box_test/0006_c3_f2.jpg",
)


@pytest.fixture
def duke(tmp_path, monkeypatch):
    """A sound little Occluded-Duke whose size is the published one."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    size = {"train": (3, 2, 2), "query": (2, 2, 1), "gallery": (3, 2, 3)}
    monkeypatch.setattr(DATASET_REGISTRY.get("OccludedDuke"), "statistics", size)
    return make(tmp_path / "Occluded_Duke", *DUKE)


# ---- check_dataset -------------------------------------------------------------------------------------------------


def test_a_sound_data_set(tool, duke, tmp_path):
    code, out, err = tool("check_dataset.py", "OccludedDuke", "--sheets", tmp_path / "sheets")
    assert code == 0 and "no problem found" in out
    assert re.search(r"\| train +\| 3 of 3 +\| 2 of 2 +\| 2 of 2 +\|", out)
    assert "1 training people have one image" in out and "1 training people are seen by one camera" in out
    assert "test camera(s) have no training image" in out
    for split in ("train", "query", "gallery"):
        with Image.open(tmp_path / "sheets" / f"{split}.png") as sheet:
            assert sheet.width >= 2 * 64 and str(tmp_path / "sheets" / f"{split}.png") in err


def damage_nothing(folder):
    (folder / "query" / "Thumbs.db").touch()


def damage_empty(folder):
    (folder / "query/0005_c2_f1.jpg").write_bytes(b"")


def damage_truncated(folder):
    path = folder / "query/0005_c2_f1.jpg"
    path.write_bytes(path.read_bytes()[:-60])


def damage_unreadable(folder):
    (folder / "query/0005_c2_f1.jpg").write_bytes(b"<html>moved</html>" * 50)


def damage_wrong_name(folder):
    os.rename(folder / "query/0005_c2_f1.jpg", folder / "query/0005_f1.jpg")


def damage_count(folder):
    os.unlink(folder / "bounding_box_train/0009_c8_f1.jpg")


def damage_duplicate(folder):
    path = folder / "query/0005_c2_f1.jpg"
    path.write_bytes((folder / "bounding_box_train/0010_c1_f1.jpg").read_bytes())


def damage_no_match(folder):
    os.rename(folder / "bounding_box_test/0005_c5_f1.jpg", folder / "bounding_box_test/0005_c2_f9.jpg")


def damage_split(folder):
    for path in (folder / "query").iterdir():
        path.unlink()


def damage_train(folder):
    for path in (folder / "bounding_box_train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage, kind, where, found",
    [
        (damage_nothing, None, "", ""),
        (damage_empty, "empty", "query/0005_c2_f1.jpg", "zero bytes"),
        (damage_truncated, "truncated", "query/0005_c2_f1.jpg", "truncated"),
        (damage_unreadable, "unreadable", "query/0005_c2_f1.jpg", "no image format"),
        (damage_wrong_name, "wrong name", "query/0005_f1.jpg", "expected names like 0005_c2_f0046985.jpg"),
        (damage_count, "count", "train", "2 images, published 3; 1 cameras, published 2"),
        (damage_duplicate, "duplicate", "0010_c1_f1.jpg", "query/0005_c2_f1.jpg; in train and query"),
        (damage_no_match, "no match", "query/0005_c2_f1.jpg", "person 5, camera 2: only in the same camera"),
        (damage_split, "split", "query", "no images in"),
        (damage_train, "split", "train", "no images in"),
    ],
)
def test_what_is_wrong_is_listed_and_is_the_exit_code(tool, duke, damage, kind, where, found):
    damage(duke)
    code, out, _ = tool("check_dataset.py", "OccludedDuke", "--json", "--workers", 2)
    report = json.loads(out)
    assert code == (1 if kind else 0)
    kinds = {problem["kind"] for problem in report["problems"]}
    assert kinds - {"count"} == ({kind} if kind else set()) - {"count"}
    if kind:
        [problem] = [p for p in report["problems"] if p["kind"] == kind]
        assert problem["where"].endswith(where) and found in problem["found"]
        code, table, _ = tool("check_dataset.py", "OccludedDuke")
        assert check_dataset.KINDS[kind] in table and code == 1


def test_an_image_in_two_splits_and_one_that_is_gone(tool, tmp_path, monkeypatch):
    """A list may name files that are not there, and one file twice: MSMT17's layout."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    make(tmp_path / "MSMT17_V1", "train/0000/0000_000_01_x.jpg", "test/0000/0000_000_02_x.jpg")
    for file, line in (
        ("train", "0000/0000_000_01_x.jpg 0"),
        ("val", "0000/0000_000_01_x.jpg 0"),
        ("query", "0000/0000_000_02_x.jpg 0"),
        ("gallery", "0000/0000_000_02_x.jpg 0\n0000/0000_001_03_x.jpg 0"),
    ):
        (tmp_path / "MSMT17_V1" / f"list_{file}.txt").write_text(line)
    code, out, _ = tool("check_dataset.py", "MSMT17", "--json")
    problems = {p["kind"]: p for p in json.loads(out)["problems"]}
    assert code == 1 and problems["missing"]["where"].endswith("0000_001_03_x.jpg")
    assert problems["duplicate"]["found"] == "the same file; in query and gallery"


@pytest.mark.parametrize(
    "name, folder, splits, good, bad",
    [
        (
            "Market1501",
            "Market-1501-v15.09.15",
            "bounding_box_train query bounding_box_test",
            "0002_c1s1_1.jpg",
            "2c1.jpg",
        ),
        ("DukeMTMC", "DukeMTMC-reID", "bounding_box_train query bounding_box_test", "0002_c1_f1.jpg", "0002_c1_f1.JPG"),
        ("VeRi", "veri", "image_train image_query image_test", "0002_c001_1_0.jpg", "0002_c1.jpg"),
    ],
)
def test_names_that_the_hosts_classes_skip_or_choke_on(tool, tmp_path, monkeypatch, name, folder, splits, good, bad):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    make(tmp_path / folder, *(f"{split}/{good}" for split in splits.split()))
    assert "wrong name" not in tool("check_dataset.py", name, "--json")[1]
    make(tmp_path / folder, f"{splits.split()[1]}/{bad}")
    code, out, _ = tool("check_dataset.py", name, "--json")
    [problem] = [p for p in json.loads(out)["problems"] if p["kind"] == "wrong name"]
    assert code == 1 and problem["where"].endswith(bad)


def test_ones_own_data_by_config_keys(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    make(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "shop.csv").write_text("path,pid,split\na.png,1,train\nb.png,1,query\nc.png,2,gallery\n")
    custom = "[{'NAME': 'shop', 'TYPE': 'CSVDataset', 'PATH': 'shop.csv'}]"
    code, out, _ = tool("check_dataset.py", "shop", "DATASETS.CUSTOM", custom)
    assert code == 1 and "not in the gallery" in out and "no published statistics" in out
    assert "no cameras are known" in out and "1 people are in training and in test" in out
    assert tool("check_dataset.py", "shop", "DATASETS.CUSTOM", custom.replace("'", "")) == (code, out, "")
    code, _, err = tool("check_dataset.py", "shop", "DATASETS.CUSTOM", "{NAME: shop}")
    assert code == 2 and "DATASETS.CUSTOM is '{NAME: shop}'; expected a list in quotes, such as" in err
    code, _, err = tool("check_dataset.py", "shpo", "DATASETS.CUSTOM", custom)
    assert code == 2 and "Did you mean shop" in err
    (tmp_path / "shop.csv").write_text("path\n")
    code, _, err = tool("check_dataset.py", "shop", "DATASETS.CUSTOM", custom)
    assert code == 2 and "has no column pid, split" in err


def test_who_is_where_is_shown_by_the_users_names(tool, tmp_path):
    """A CAMERA that matches inside the person's number passes every other check."""
    make(tmp_path, *(f"crops/{p}/{p}_cam{c}_{i}.jpg" for p in ("0001", "0002") for c in (1, 2) for i in (1, 2)))
    entry = {"NAME": "shop", "TYPE": "FolderDataset", "PATH": "crops", "TRAIN_SHARE": 0}

    def run(camera, *words):
        return tool("check_dataset.py", "shop", *words, "DATASETS.CUSTOM", str([entry | camera]))

    _, out, _ = run({"CAMERA": r"(\d)"})
    assert "gallery: crops/0002/0002_cam2_2.jpg -> person 0002, camera 0" in out
    _, out, _ = run({"CAMERA": r"_cam(\d)"}, "--json")
    examples = json.loads(out)["examples"]
    assert set(examples) == {"query", "gallery"}
    for example in examples["query"] + examples["gallery"]:
        _, person, name = example["file"].split("/")
        assert example["person"] == person and f"_cam{example['camera']}_" in name


def test_a_sheet_shows_the_users_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **options: drawn.append(text))
    make(tmp_path, "a.jpg")
    photo = Photo(str(tmp_path / "a.jpg"), "0002", "cam1, at the long corridor")
    data = OwnDataset("shop", {"query": [photo]})
    contact_sheet(data.query, tmp_path / "s.png", Names(data))
    assert drawn[0] == "0002" and drawn[1].startswith("cam1, at") and drawn[1].endswith("…")


def test_one_flat_folder_is_one_message(tool, tmp_path):
    make(tmp_path, *(f"crops/{i}.jpg" for i in range(30)))
    custom = "[{NAME: shop, TYPE: FolderDataset, PATH: crops}]"
    code, out, err = tool("check_dataset.py", "shop", "DATASETS.CUSTOM", custom)
    assert code == 2 and not out and "shop: 30 image(s) of nobody directly in" in err and "CSVDataset" in err


def test_images_that_no_split_has_are_said(tool, tmp_path):
    make(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "shop.csv").write_text("path,pid,split\na.png,1,query\nb.png,1,gallery\n")
    _, out, _ = tool("check_dataset.py", "shop", "DATASETS.CUSTOM", "[{NAME: shop, TYPE: CSVDataset, PATH: shop.csv}]")
    assert f"note: 2 image(s) beside those of the splits are in none, such as {tmp_path}/c.png" in out


def test_a_data_set_that_is_not_there(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    code, _, err = tool("check_dataset.py", "OccludedDuke")
    assert code == 2 and "no 'query' folder" in err and "Traceback" not in err


def test_a_sheet_survives_a_bad_image(tmp_path):
    make(tmp_path, "0001_c1.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"")
    items = [(str(tmp_path / "0001_c1.jpg"), 1, 0), (str(tmp_path / "bad.jpg"), 2, 0)]
    contact_sheet(items, tmp_path / "s.png", Names(None))
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.getpixel((68 + 34, 80)) == (209, 64, 63)


# ---- published statistics ------------------------------------------------------------------------------------------


STATED = ["CUHK01", "CUHK03Pair", "OccludedDuke", "OccludedREID", "PDukeMTMC", "PartialREID", "PartialiLIDS"]


@pytest.mark.parametrize("name", STATED)
def test_docstrings_state_the_statistics(name):
    cls = DATASET_REGISTRY.get(name)
    assert set(check_dataset.published_statistics(get_cfg(), name)) == set(cls.statistics)
    for images, people, _ in cls.statistics.values():
        assert f"{images:,}" in cls.__doc__
        assert people is None or f"{people:,}" in cls.__doc__
    assert "Source:" in cls.__doc__ and "Terms:" in cls.__doc__ and "Folders:" in cls.__doc__


@pytest.mark.parametrize("name", builtin.STATISTICS)
def test_the_hosts_statistics_agree_with_its_docstrings(name):
    cls = DATASET_REGISTRY.get(name)
    stated = {int(number) for number in re.findall(r"\d{3,}", cls.__doc__)}
    images = {split: counts[0] for split, counts in builtin.STATISTICS[name].items()}
    if name == "MSMT17":
        images["train"] += 2_373  # list_val, which the class leaves out
    if name != "CUHK03":  # states one total, of another protocol
        assert set(images.values()) <= stated
    assert check_dataset.published_statistics(get_cfg(), name) == builtin.STATISTICS[name]


# ---- Occluded-Duke -------------------------------------------------------------------------------------------------

LISTS = {
    "train": ["0009_c8_f1.jpg", "0005_c5_f1.jpg"],  # also from the original gallery: the lists divide anew
    "query": ["0005_c2_f1.jpg"],
    "gallery": ["0006_c2_f2.jpg", "0006_c3_f2.jpg"],
}


@pytest.fixture
def original(tmp_path):
    """DukeMTMC-reID and the lists, small; returns the tool's first arguments."""
    make(tmp_path / "DukeMTMC-reID", *DUKE)
    (tmp_path / "lists").mkdir()
    for split, names in LISTS.items():
        (tmp_path / "lists" / f"{split}.list").write_text("\n".join(names) + "\n")
    return [tmp_path / "DukeMTMC-reID", tmp_path / "lists", "--root", tmp_path / "out"]


@pytest.mark.parametrize("mode", MODES)
def test_occluded_duke_is_built(tool, original, tmp_path, mode):
    code, out, _ = tool("build_occluded_duke.py", *original, "--any-size", f"--{mode}")
    built = tmp_path / "out" / "Occluded_Duke"
    assert code == 0 and out.strip() == str(built)
    data = DATASET_REGISTRY.get("OccludedDuke")(root=str(tmp_path / "out"))
    assert [os.path.basename(path) for path, *_ in data.train] == sorted(LISTS["train"])
    assert len(data.query) == 1 and len(data.gallery) == 2
    source, made = tmp_path / "DukeMTMC-reID/query/0005_c2_f1.jpg", built / "query/0005_c2_f1.jpg"
    assert made.read_bytes() == source.read_bytes()
    assert (made.is_symlink(), made.stat().st_ino == source.stat().st_ino) == (mode == "symlink", mode != "copy")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".partial")]
    code, _, err = tool("build_occluded_duke.py", *original, "--any-size")
    assert code == 1 and "is there already" in err


def test_counts_are_checked(tool, original, tmp_path):
    code, _, err = tool("build_occluded_duke.py", *original)
    assert code == 1 and "train.list: 2 images of 2 people in 2 cameras; expected 15,618 of 702 in 8" in err
    assert not (tmp_path / "out" / "Occluded_Duke").exists()


@pytest.mark.parametrize(
    "split, line, message",
    [
        ("query", "0005_c2_f7.jpg", "1 image(s) of the lists are not in"),
        ("query", "0009_c8_f1.jpg", "0009_c8_f1.jpg is in train.list and again in query.list"),
        ("gallery", "0006_x.jpg", "Expected names like"),
    ],
)
def test_wrong_lists(tool, original, tmp_path, split, line, message):
    with open(tmp_path / "lists" / f"{split}.list", "a") as file:
        file.write(line + "\n")
    code, _, err = tool("build_occluded_duke.py", *original, "--any-size")
    assert code == 1 and message in err and line in err and not (tmp_path / "out" / "Occluded_Duke").exists()


def test_no_lists_and_no_images(tool, original, tmp_path):
    os.unlink(tmp_path / "lists" / "query.list")
    code, _, err = tool("build_occluded_duke.py", *original, "--any-size")
    assert code == 1 and "no list" in err and "Occluded-DukeMTMC-Dataset" in err
    code, _, err = tool("build_occluded_duke.py", tmp_path, tmp_path / "lists", "--any-size")
    assert code == 1


def test_an_interrupted_build_leaves_nothing(original, tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setitem(MODES, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_occluded_duke(original[0], original[1], tmp_path / "out", expected=None)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".Occluded_Duke.lock"}
