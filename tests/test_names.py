"""Names as people give them, in files, folders and configurations: no figure, page, table or option breaks on one."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sagareid import Extractor
from sagareid.data.datasets import custom, names
from sagareid.data.datasets.duke import OccludedDuke
from sagareid.deploy.extract_folder import extract_folder
from sagareid.deploy.matches import Match, table, write_matches
from sagareid.files import file_hash
from sagareid.reports import html, pictures, ranked_lists, study_curves
from sagareid.reports.pictures import Block, Row, Tile
from sagareid.studies.models import named_path

RED = Image.new("RGB", (24, 48), "red")
# what ends matplotlib's formulas, closes attributes and tags, runs from right to left, needs other fonts, or is no text
ODD = [
    "$x",
    "$\\frac{1$",
    "lr=0.1",
    "a \"b\" 'c'",
    "<b>&amp;",
    "דוד",
    "\u202eevil",
    "😀 家",
    "_underscore",
    "%20#?",
    "caf\udce9",
    "a\x0bb",
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of letters that matplotlib's font lacks
        yield


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(suffix, tmp_path):
    blocks = [Block(name, [Row([Tile(RED, name, "right", name), Tile(RED, name, "query")], name)]) for name in ODD]
    pictures.draw(blocks, tmp_path / f"a.{suffix}", title="\n".join(ODD))
    assert (tmp_path / f"a.{suffix}").stat().st_size > 10_000


def test_pages_show_each_name_and_stay_whole(tmp_path):
    figure = pictures.curves({name: {other: ([1, 2], [1.0, 2.0]) for other in ODD} for name in ODD[:3]}, x=ODD[0])
    body = [html.svg(figure, name) for name in ODD] + [html.heading(2, name, name) for name in ODD]
    body += [html.link(name, name) for name in ODD] + [html.note(name) for name in ODD]
    body += [html.table(ODD, [ODD], ODD[4]), html.details(ODD[3], html.blocks([Block(ODD[3], [Row([], ODD[4])])]))]
    body += [html.blocks([Block("", [Row([Tile(RED, name, "wrong", name)], name)])]) for name in ODD]
    html.write(tmp_path / "a.html", "".join(ODD), html.join(body))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<b>" not in text and "&lt;b&gt;&amp;amp;" in text and "$x" in text and "דוד" in text and "😀 家" in text
    assert r"caf\udce9" in text and "\x0b" not in text and 'href="#%2520%23%3F"' in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawing.replace("xlink:href", "href"))


def record(model, level):
    numbers = {"mean": 50.0 - level, "low": 40.0, "high": 60.0, "difference": {"mean": 1.0, "low": 0.0, "high": 2.0}}
    return {
        "model": model,
        "feature": "fusion",
        "condition": "mask" if level else "clean",
        "level": level,
        "row": "fusion",
        "mAP": numbers,
        "Rank-1": numbers,
        "mINP": numbers,
    }


def test_curves_of_a_study(tmp_path):
    """A study ends with its curves: a name that breaks them would cost its work."""
    results = [record(model, level) for model in ODD for level in (0.0, 0.2)]
    paths = study_curves.curves(results, ODD[0], "fusion", tmp_path)
    assert all(path.stat().st_size > 10_000 for path in paths)
    drawn = paths[1].read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)
    for name in ("$x", "lr=0.1", "דוד", "_underscore", "&lt;b&gt;&amp;amp;"):
        assert name in drawn
    panel = study_curves.panels_of(results, ODD[0])[0]
    assert "mathdefault" not in study_curves.inline_curve(panel, results, "fusion", "mask")


def test_a_search_by_images_of_any_name(tiny_run, tmp_path, call_tool, capsys):
    """From extraction to the picture of the ranked lists, by the real commands."""
    crops = tmp_path / "crops=$1"
    for i, name in enumerate(["<i>", "$x$", "דוד 😀"]):
        (crops / name).mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (48, 24, 3), np.uint8)
        Image.fromarray(pixels).save(crops / name / f"{name} 'a' \"b\".png")
    extractor, sha256 = Extractor.from_checkpoint(tiny_run, device="cpu"), file_hash(tiny_run / "model_final.pth")
    assert extract_folder(extractor, crops, tmp_path / "f$", checkpoint_sha256=sha256).extracted == 3
    assert call_tool("search.py", "build", tmp_path / "f$", "-o", tmp_path / "index=1") == 0
    query = ["query", tmp_path / "index=1", crops, "--run", tiny_run, "-k", 2]
    assert call_tool("search.py", *query, "--picture", tmp_path / "found $.png") == 0
    assert "דוד 😀/דוד 😀 'a'" in capsys.readouterr().out
    with Image.open(tmp_path / "found $.png") as picture:
        assert picture.width > 100


def test_ranked_lists_survive_a_bad_image(tmp_path):
    RED.save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    matches = [[Match(str(tmp_path / "a.png"), rank, 0.5, name) for rank, name in enumerate(["torn.png", "a.png"], 1)]]
    ranked_lists.draw(matches, tmp_path / "found.png", folder=str(tmp_path))
    with Image.open(tmp_path / "found.png") as picture:
        colours = picture.convert("RGB").getcolors(100_000)
    assert ranked_lists.UNREADABLE in [colour for _, colour in colours]


def test_matches_of_names_that_are_no_text(tmp_path):
    matches = [[Match("q", 1, 0.5, "caf\udce9.png")]]
    for name in ("m.csv", "m.json"):
        write_matches(matches, tmp_path / name)
        assert r"caf\udce9.png" in (tmp_path / name).read_text(encoding="utf-8")
    assert "caf" in table(matches)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1" / "anchors").mkdir(parents=True)
    assert named_path("lr=0.1/anchors") == ("", named_path("x=lr=0.1/anchors")[1])
    assert named_path("x=lr=0.1/anchors")[0] == "x" and named_path("a=b=lr=0.1/anchors")[0] == "a=b"
    assert named_path("SAGA=nowhere")[0] == "SAGA" and named_path("nowhere")[0] == ""


def test_readers_see_the_names_of_the_user():
    photos = {
        "train": [custom.Photo("a", "ann", "door")],
        "query": [custom.Photo("b", "0002", "cam1")],
        "gallery": [custom.Photo("c", "0010", "cam10")],
    }
    said = names.Names(data := custom.OwnDataset("shop", photos))
    assert [said.both(*item[1:]) for item in data.train + data.query + data.gallery] == [
        "person ann, camera door",
        "person 0002, camera cam1",
        "person 0010, camera cam10",
    ]
    plain = {"query": [custom.Photo("b", "0002", None)]}
    assert names.Names(custom.OwnDataset("shop", plain)).both(0, 0) == "person 0002, camera not known"
    registered = names.Names(object.__new__(OccludedDuke))
    assert registered.both("occluded_duke_0005", "occluded_duke_1") == registered.both(5, 1) == "person 5, camera 2"
