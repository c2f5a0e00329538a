"""People and cameras are called by the user's own names wherever they are printed: here a folder 0002/cam1."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_visualize import build

from sagareid.data.datasets.build import build_dataset
from sagareid.data.record import TrainingRecord
from sagareid.reports import html, rankings, visualize
from sagareid.studies.occlusion_study import Study
from sagareid.studies.options import Options

# numbers that are neither places in a list nor in order, and of which one is a place of another: 2 people, 3 cameras
PEOPLE, CAMERAS = ("0002", "0007", "0010", "0031"), ("cam1", "cam4", "cam10")
ENTRY = {"NAME": "shop", "TYPE": "FolderDataset", "PATH": "shop", "CAMERA": "^([^/]+)/", "TRAIN_SHARE": 0.5}
CALLED = re.compile(r"(?<!\w)(person|camera) ([^\s,:;<\"(]*\d[^\s,:;<\"]*)", re.I)  # each of the names has a digit


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A data root with such a folder; each person twice in each camera."""
    for i, person in enumerate(PEOPLE):
        for j, camera in enumerate(CAMERAS):
            for shot in "ab":
                path = tmp_path / "shop" / person / camera / f"{shot}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([i, j, ord(shot)]).integers(0, 256, (48, 24, 3), np.uint8)
                Image.fromarray(pixels).save(path)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    return tmp_path


def are_the_users(text: str) -> set[str]:
    """Every person and camera that a text names is one of the user's; returns them."""
    said = CALLED.findall(text)
    wrong = [f"{kind} {name}" for kind, name in said if name not in (PEOPLE if kind.lower() == "person" else CAMERAS)]
    assert said and not wrong
    return {name for _, name in said}


def model():
    names = {"DATASETS__CUSTOM": [ENTRY], "DATASETS__TESTS": ["shop"], "DATASETS__NAMES": ["shop"]}
    return build(**names, DATALOADER__NUM_WORKERS=0)


def test_the_checker_its_problems_and_its_sheets(shop, run_tool, tmp_path, monkeypatch):
    written = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda s, at, text, **o: written.append(text) or draw(s, at, text, **o)
    )
    words = ("--sheets", tmp_path / "sheets")
    _, out, _ = run_tool("check_dataset.py", "shop", "DATASETS.CUSTOM", str([ENTRY]), *words, root=shop)
    assert len(are_the_users(out)) > 4
    assert written and set(written) <= {*PEOPLE, *CAMERAS}


def test_a_query_without_a_match(shop, run_tool):
    rows = ["path,pid,camid,split", "a.png,0007,cam10,query", "b.png,0007,cam10,gallery", "c.png,0002,cam1,gallery"]
    (shop / "table.csv").write_text("\n".join(rows))
    for name in "abc":
        Image.effect_noise((24, 48), ord(name)).convert("RGB").save(shop / f"{name}.png")
    entry = str([{"NAME": "table", "TYPE": "CSVDataset", "PATH": "table.csv"}])
    code, out, _ = run_tool("check_dataset.py", "table", "DATASETS.CUSTOM", entry, root=shop)
    assert code == 1 and "a.png: person 0007, camera cam10: only in the same camera" in out
    assert are_the_users(out) == {"0007", "0002", "cam10", "cam1"}


def test_cameras_that_are_not_known_are_not_counted(shop, run_tool):
    entry = str([{k: v for k, v in ENTRY.items() if k != "CAMERA"}])
    _, out, _ = run_tool("check_dataset.py", "shop", "DATASETS.CUSTOM", entry, root=shop)
    assert re.search(r"\| train +\| 12 +\| 2 +\| not known +\|", out) and "camera not known" in out


def test_ranked_lists(shop):
    [ranked] = rankings.rank_test_set([model()], "shop")
    blocks = visualize.ranked_blocks([ranked], list(range(len(ranked.queries))), length=3)
    titles = [block.title for block in blocks]
    assert len(are_the_users(" ".join(titles))) > 3
    are_the_users(str(html.blocks(blocks)))
    for tile in (tile for block in blocks for tile in block.rows[0].tiles if tile and tile.mark in ("right", "wrong")):
        person, camera = re.fullmatch(r"\d: (\w+), (\w+)", tile.title).groups()
        assert person in PEOPLE and camera in CAMERAS


def test_what_a_run_keeps_and_says_of_its_people(shop, caplog):
    """Checkpoints know people and cameras by name, so their messages do."""
    from sagareid.data.loaders import training_set

    data = training_set(model().cfg)
    record = TrainingRecord.of(data)
    trained = {name.partition("/")[2] for name in record.identities}
    assert trained < set(PEOPLE) and [c.partition("/")[2] for c in record.cameras] == list(CAMERAS)
    gone = TrainingRecord(record.identities[:1], record.cameras[:2], record.images[record.images[:, 0] == 0])
    assert record.identities[1] in record.other_people(gone) and "shop/cam10" in record.other_cameras(gone)


def test_the_sample_queries_of_a_study(shop, tmp_path):
    from sagareid.reports.study_samples import Samples

    one = model()
    study = Study(
        one.cfg, "shop", [one], Options(conditions=("mask",), levels=(0.3,), features=("refined",)), tmp_path, 0
    )
    study.run(False)
    samples = Samples(study, "refined")
    said = are_the_users(samples.table(0, "mask"))
    assert said & set(PEOPLE) and said & set(CAMERAS)


def test_the_log_of_a_data_set_names_it_as_the_user_does(shop, caplog):
    caplog.set_level(logging.INFO)
    data = build_dataset(model().cfg, "shop")
    data.show_train(), data.show_test()
    assert "shop" in caplog.text and "FolderDataset" not in caplog.text
