"""tools/calibrate.py, what it writes, and who uses it: search, adapters, the page of a run."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from sagareid import Extractor
from sagareid.deploy import gallery
from sagareid.deploy.adapters import appearance_threshold
from sagareid.deploy.calibrate import faces_of, measure
from sagareid.deploy.matches import table, write_matches
from sagareid.deploy.threshold import Threshold
from sagareid.evaluation.verification import Faces
from sagareid.files import file_hash


def two_sided(people=40, cameras=2, seed=0) -> tuple[Faces, Faces]:
    """Everybody a direction of their own, and images of them near it."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 8))

    def faces(strangers=0):
        who, where = np.repeat(np.arange(people), cameras), np.tile(np.arange(cameras), people)
        x = np.concatenate([centres[who] + 0.5 * rng.normal(size=(len(who), 8)), rng.normal(size=(strangers, 8))])
        who = np.concatenate([who, people + np.arange(strangers)])
        where = np.concatenate([where, np.zeros(strangers, int)])
        return Faces((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), who, where)

    return faces(), faces(5)


def test_the_threshold_keeps_the_wanted_rate_and_no_lower_one_does():
    query, gallery_faces = two_sided()
    found = measure(query, gallery_faces, fmr=0.02, resamples=50)
    similarity = query.features @ gallery_faces.features.T
    across = query.cameras[:, None] != gallery_faces.cameras
    same = query.people[:, None] == gallery_faces.people
    other, own = similarity[across & ~same], similarity[across & same]
    assert found["at_threshold"]["fmr"] == pytest.approx((other >= found["threshold"]).mean())
    assert found["at_threshold"]["fmr"] <= 0.02
    assert (other >= found["threshold"] - 0.01).mean() > 0.02 * 0.9
    assert found["at_threshold"]["tpr"] == pytest.approx((own >= found["threshold"]).mean())
    assert found["interval"][0] < found["threshold"] < found["interval"][1]
    assert found["pairs"]["same"] == len(own) and found["pairs"]["other"] == len(other)
    assert found["wanted"] == {"fmr": 0.02} and len(found["histograms"]["edges"]) <= 66
    for name in ("same", "other", "other_within_a_camera"):
        assert sum(found["histograms"][name]) == pytest.approx(1)


def test_a_wanted_rate_of_searches():
    found = measure(*two_sided(), far=0.4, resamples=20)
    assert found["wanted"] == {"far": 0.4} and 0.3 < found["at_threshold"]["far"] <= 0.4
    assert found["dir_at_far"]["0.3"] is None  # 80 searches: 24 false ones expected
    assert found["tpr_at_fpr"]["0.1"]["right"] > found["tpr_at_fpr"]["0.01"]["right"] > 0.3
    assert found["tpr_at_fpr"]["0.0001"] is None


@pytest.mark.parametrize(
    "rates, message",
    [
        ({"fmr": 1e-4}, "a rate of 0.0001 of 3320 pairs is 0.33 false matches, too few .* Ask for 0.0095 or more"),
        ({"far": 0.1}, "a rate of 0.1 of 80 queries is 8 false matches"),
        ({"fmr": 0.0}, "fmr is 0; expected a rate above 0 and below 1"),
        ({"far": 2.0}, "far is 2; expected a rate"),
        ({}, "give one of fmr"),
        ({"fmr": 0.1, "far": 0.1}, "give one of fmr"),
    ],
)
def test_rates_that_cannot_be_told(rates, message):
    with pytest.raises(ValueError, match=message):
        measure(*two_sided(), **rates)


def test_nobody_in_particular_is_nobodys_match():
    items = [("q", 1, 0), ("q", 2, 1), ("g", 1, 1), ("g", 0, 0), ("g", 0, 1), ("g", -1, 1)]
    query, rest = faces_of(np.eye(6, dtype=np.float32), items, 2)
    assert query.people.tolist() == [0, 1] and rest.people.tolist() == [0, 2, 3, 4]


# ---- the threshold and what uses it ----------------------------------------------------------------------------------


@pytest.fixture
def calibration(tmp_path):
    def write(**changed):
        content = {
            "threshold": 0.5,
            "dataset": {"name": "Yard", "people": 9, "cameras": 2, "folder": "/yard"},
            "checkpoint_sha256": "abc",
            "feature": "fusion",
            "wanted": {"fmr": 0.1},
            "at_threshold": {},
        } | changed
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return path

    return write


def test_a_threshold_is_a_number_or_a_file(calibration, tmp_path):
    assert Threshold.read("0.25") == Threshold(0.25) and str(Threshold(0.25)) == "0.2500"
    found = Threshold.read(calibration())
    assert found.value == 0.5 and str(found) == "0.5000, found on Yard (9 people, 2 cameras)"
    for given, error, message in (
        ("1.5", ValueError, "the threshold is 1.5; expected a similarity from -1 to 1"),
        ("nan", ValueError, "the threshold is nan"),
        (tmp_path / "no.json", FileNotFoundError, "no file at .*no.json, and it is no number"),
        (
            calibration(threshold=None),
            ValueError,
            "calibration.json is damaged: it has no field 'threshold'. Make it again: tools/calibrate.py",
        ),
    ):
        with pytest.raises(error, match=message):
            Threshold.read(given)
    (tmp_path / "torn.json").write_text('{"threshold"')
    with pytest.raises(ValueError, match="torn.json"):
        Threshold.read(tmp_path / "torn.json")


def stored_gallery(tmp_path, folder="/yard/crops", kind="flat"):
    """Two images at 0 and 90 degrees, and queries at 10 and 45."""
    about = {"width": 2, "checkpoint_sha256": "abc", "feature": "fusion", "folder": folder}
    arrays = {"features": np.eye(2, dtype=np.float32), "paths": np.array(["right.jpg", "up.jpg"])}
    np.savez(tmp_path / "g.npz", **arrays, about=np.array(json.dumps(about)))
    index = gallery.build(gallery.FeatureSet(tmp_path / "g.npz"), tmp_path / "index", kind=kind)
    angles = np.deg2rad([10, 45])
    queries = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return index, gallery.matches(index, ["near", "between"], queries, 2)


def test_below_the_threshold_is_nobody(tmp_path, calibration, caplog):
    index, matches = stored_gallery(tmp_path)
    with caplog.at_level(logging.WARNING):
        near, between = gallery.answers(index, matches, Threshold(0.8))
    assert [m.path for m in near] == ["right.jpg"] and near[0].rank == 1
    assert between[0].nobody and between[0].similarity == pytest.approx(np.sqrt(0.5)) and len(between) == 1
    assert "nobody" in table([near, between]).splitlines()[-1]
    write_matches([near, between], tmp_path / "m.json")
    first, second = json.loads((tmp_path / "m.json").read_text())
    assert set(first) == {"query", "matches"} and first["matches"][0]["path"] == "right.jpg"
    assert second == {"query": "between", "nobody": True, "best_similarity": between[0].similarity, "matches": []}
    write_matches([near, between], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().splitlines()[-1] == "between,0,0.707107,nobody"
    assert gallery.answers(index, matches, Threshold(0.70))[1][1].path in ("right.jpg", "up.jpg")
    assert not caplog.records


def test_a_threshold_of_another_model_or_from_elsewhere(tmp_path, calibration, caplog):
    index, matches = stored_gallery(tmp_path)
    gallery.answers(index, matches, Threshold.read(calibration()))
    assert not caplog.records  # /yard/crops is in /yard
    for changed, message in (({"checkpoint_sha256": "xyz"}, "of checkpoint xyz"), ({"feature": "cls"}, "feature cls")):
        with pytest.raises(ValueError, match=f"{message}, the gallery of .* means nothing for another model"):
            gallery.answers(index, matches, Threshold.read(calibration(**changed)))
    elsewhere, matches = stored_gallery(tmp_path, folder="/shop")
    gallery.answers(elsewhere, matches, Threshold.read(calibration()))
    assert "was found on Yard (9 people, 2 cameras) in /yard, and these images are from /shop" in caplog.text


# ---- from the command to the answer ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tiny_run, tmp_path_factory, call_tool):
    """A copy of the run that tools/calibrate.py has worked on."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = folder / "run"
    shutil.copytree(tiny_run, run)
    assert call_tool("calibrate.py", run, "--fmr", 0.1, "--device", "cpu", "--resamples", 20) == 0
    return run


def test_tool_calibrate(calibrated, tiny_root):
    found = json.loads((calibrated / "calibration.json").read_text())
    assert found["checkpoint_sha256"] == file_hash(calibrated / "model_final.pth") and found["feature"] == "fusion"
    assert found["dataset"]["name"] == "SyntheticPedestrians" and found["dataset"]["people"] == 8
    assert found["dataset"]["folder"] == str(tiny_root / "synthetic_pedestrians")
    assert found["command"].startswith("python tools/calibrate.py") and -1 < found["threshold"] < 1
    assert found["tpr_at_fpr"]["0.1"]["right"] == pytest.approx(found["at_threshold"]["tpr"])
    with Image.open(calibrated / "calibration.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors()) > 20


@pytest.mark.slow
def test_calibrate_and_its_users_end_with_one_message(calibrated, run_tool, tmp_path):
    code, _, err = run_tool("calibrate.py", calibrated, "--fmr", "1e-6", "--device", "cpu", "-o", tmp_path / "c.json")
    assert code == 1 and "too few to tell" in err and not list(tmp_path.iterdir())
    code, _, err = run_tool("calibrate.py", calibrated, "-o", tmp_path / "c.txt")
    assert code == 2 and "name a .json file" in err
    code, _, err = run_tool("calibrate.py", tmp_path)
    assert code == 1 and "no model_final.pth in" in err
    code, _, err = run_tool("calibrate.py", calibrated, "--dataset", "Nowhere", "--device", "cpu")
    assert code == 1 and "Nowhere is neither a registered data set" in err


@pytest.mark.slow
def test_search_answers_by_the_file(calibrated, tiny_root, run_tool, tmp_path):
    queries = sorted((tiny_root / "synthetic_pedestrians/query").iterdir())
    args = ["--checkpoint", calibrated, "--device", "cpu", "-k", 3, "--threshold"]
    crops = tiny_root / "synthetic_pedestrians/bounding_box_test"
    features = ["--checkpoint", calibrated, "-o", tmp_path / "f.npz", "--workers", 0, "--device", "cpu"]
    assert run_tool("extract.py", crops, *features)[0] == 0
    assert run_tool("search.py", "build", tmp_path / "f.npz", "-o", tmp_path / "index")[0] == 0
    file = calibrated / "calibration.json"
    threshold = json.loads(file.read_text())["threshold"]
    code, out, err = run_tool(
        "search.py", "query", tmp_path / "index", *queries[:4], *args, file, "-o", tmp_path / "m.json"
    )
    assert code == 0 and "was found on" not in err
    lists = json.loads((tmp_path / "m.json").read_text())
    assert all(m["similarity"] >= threshold for one in lists for m in one["matches"])
    code, out, _ = run_tool(
        "search.py", "query", tmp_path / "index", queries[0], *args, 1, "--picture", tmp_path / "m.png"
    )
    assert code == 0 and "nobody" in out and (tmp_path / "m.png").is_file()
    code, _, err = run_tool("search.py", "query", tmp_path / "index", queries[0], *args, "often")
    assert code == 1 and "no file at often, and it is no number" in err


def test_adapters_speak_each_trackers_scale(calibrated, calibration):
    extractor = Extractor.from_checkpoint(calibrated, device="cpu")
    assert appearance_threshold(extractor, 0.6, "boxmot") == pytest.approx(0.4)
    assert appearance_threshold(extractor, 0.6, "ultralytics") == pytest.approx(0.8)
    found = appearance_threshold(extractor, calibrated / "calibration.json", "boxmot")
    assert found == pytest.approx(1 - json.loads((calibrated / "calibration.json").read_text())["threshold"])
    with pytest.raises(ValueError, match="the extractor of .*: a threshold means nothing for another model"):
        appearance_threshold(extractor, calibration(), "boxmot")
    with pytest.raises(ValueError, match="tracker is 'sort'; expected boxmot, ultralytics"):
        appearance_threshold(extractor, 0.6, "sort")


@pytest.mark.slow
def test_the_page_of_a_run_shows_it(calibrated, run_tool, tmp_path):
    options = ["--lists", "none", "-o", tmp_path / "report.html"]
    assert run_tool("report.py", calibrated, *options)[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "for a FMR of at most 10 %" in page and "TPR at FPR 0.1" in page and "too few to tell" in page
    other = shutil.copytree(calibrated, tmp_path / "other")
    (other / "model_final.pth").write_bytes((calibrated / "model_final.pth").read_bytes() + b"\0")
    assert run_tool("report.py", other, *options)[0] == 0
    assert "calibration.json is of another checkpoint" in (tmp_path / "report.html").read_text()
