"""examples/track_street.py and deepocsort_costs.py: real trackers on a small drawn street, by SAGA's features."""

from __future__ import annotations

import inspect
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("boxmot", reason="BoxMOT is not installed")
pytest.importorskip("ultralytics", reason="Ultralytics is not installed")
pytest.importorskip("trackeval", reason="TrackEval is not installed")

from boxmot import BotSort, DeepOcSort

from sagareid.deploy.adapters import BoxMOTReID
from sagareid.synthetic.options import StreetSpec
from sagareid.synthetic.street import draw_street

FRAMES = 24


@pytest.fixture(scope="module")
def examples(repo):
    """The modules of the example."""
    sys.path.insert(0, str(repo / "examples"))
    import deepocsort_costs
    import street_metrics
    import street_trackers
    import track_street

    sys.path.remove(str(repo / "examples"))
    return SimpleNamespace(run=track_street, trackers=street_trackers, metrics=street_metrics, costs=deepocsort_costs)


@pytest.fixture(scope="module")
def streets(session_tmp):
    spec = {"frames": FRAMES, "people": 5, "shared": 3, "height": 192, "width": 384}
    return [draw_street(session_tmp / f"streets/{seed}", StreetSpec(seed=seed, **spec)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def reid(examples, streets, extractor):
    """What SAGA says of the first camera, and the true visible shares."""
    return examples.trackers.look(extractor, examples.trackers.read_sequence(streets[0] / "c1"), ["true"])["true"]


def test_the_comparison_runs_every_tracker_by_sagas_features(examples, streets, tiny_run, tmp_path, capsys):
    arguments = ["--tune", streets[1], "--reid", f"SAGA={tiny_run}", "--gate", "true", "-o", tmp_path / "tracks.json"]
    examples.run.main([str(a) for a in (streets[0], *arguments)])
    report = json.loads((tmp_path / "tracks.json").read_text())
    rows = {
        f"{name} | {row}"
        for name in examples.trackers.TRACKERS
        for row in ("none", "none, 120 frames", "SAGA", "SAGA, true gate")
    }
    rows |= {f"{name} BoT-SORT | SAGA, {row}" for name in ("BoxMOT", "Ultralytics") for row in ("tuned", "anywhere")}
    assert set(report["tracking"]) == set(report["asked"]) == rows
    for key, row in report["tracking"].items():
        [street] = row["streets"]
        assert all(0 < street[metric] <= 100 for metric in ("IDF1", "HOTA", "AssA")) and street["IDSW"] >= 0
        assert (report["asked"][key] > 0) == ("SAGA" in key)
    joined = {key: row["streets"][0] for key, row in report["joined"].items()}
    assert set(joined) == {"none", "SAGA", "SAGA, true gate"}
    assert joined["none"]["IDF1 over both"] <= joined["none"]["IDF1 within"]
    assert "| BoxMOT DeepOCSORT: SAGA |" in capsys.readouterr().out


@pytest.mark.parametrize("kind, still", [(BotSort, {"use_cmc": False}), (DeepOcSort, {"cmc_off": True})])
def test_a_track_remembers_what_saga_says_and_nothing_of_the_hidden(kind, still, examples, reid):
    model = BoxMOTReID(reid, min_visibility=0.5)
    tracker, seen = kind(reid_model=model, **still), reid.seen
    examples.trackers.gate(tracker, model)

    def memories(frames: range) -> dict[int, np.ndarray]:
        for number in frames:
            reid.frame, boxes = number, reid.sequence.boxes[number]
            rows = np.hstack([boxes, np.zeros((len(boxes), 1), np.float32)])
            tracker.update(rows, reid.sequence.frames[number])
        found = {track.id: track.smooth_feat if kind is BotSort else track.emb for track in tracker.active_tracks}
        return {track: memory for track, memory in found.items() if memory.any()}

    before = memories(range(12))
    features = np.concatenate([some.numpy() for some in reid.features[:12]])
    assert before and all((features @ memory).max() > 0.98 for memory in before.values())
    try:
        reid.seen = [share * 0 for share in seen]
        after = memories(range(12, FRAMES))
    finally:
        reid.seen = seen
    same = before.keys() & after.keys()
    assert same and all(np.allclose(before[track], after[track], atol=1e-5) for track in same)


def test_watching_deepocsort_changes_no_track_and_what_it_counts_is_said(examples, streets, reid, tiny_run, tmp_path):
    film = reid.sequence
    plain = examples.trackers.deep_oc_sort(reid, examples.trackers.Row())
    watched = examples.costs.Watched(reid, film)
    tracks = [examples.trackers.track(step, film, reid) for step in (plain, watched.step)]
    assert len(tracks[0]) > FRAMES and np.array_equal(*tracks)
    file = tmp_path / "costs.json"
    arguments = ["--reid", f"SAGA={tiny_run}", "--similarity", "0.9", "-o", file]
    examples.costs.main([str(a) for a in (streets[0], *arguments)])
    report = json.loads(file.read_text())
    counts = report["associations"]["SAGA"]
    assert counts["matches"] > counts["changed"] >= max(counts["mended"], counts["spoilt"])
    assert 0 <= counts["weight, median of right pairs"] <= 0.5 < counts["overlap, median of right pairs"] <= 1
    rows = ("", ", full weight", ", as overlap", ", 120 frames", ", all")
    assert set(report["tracking"]) == {"none", "none, 120 frames", *(f"SAGA{row}" for row in rows)}


def test_tracks_are_joined_by_likeness_but_never_at_one_time(examples, tmp_path):
    found = [("c1", 1, 1, 10), ("c1", 2, 5, 15), ("c1", 3, 20, 30), ("c2", 1, 40, 50), ("c2", 2, 1, 9)]
    east, north = np.eye(2, dtype=np.float32)
    features = np.stack([east, east, north, (east + north / 4) / np.linalg.norm(east + north / 4), north])
    people = examples.metrics.join(found, features, tmp_path)
    assert len(set(people(1.1))) == 5
    strict, loose = people(0.99), people(0.9)
    assert strict[2] == strict[4] and strict[0] != strict[1] and len(set(strict)) == 4
    assert loose[3] in (loose[0], loose[1]) and loose[0] != loose[1] and len(set(loose)) == 3


def test_the_pages_lines_run_as_they_stand(examples, repo, streets, tiny_run, tmp_path, monkeypatch, capsys):
    """docs/tracking.md: the lines that a user copies, on a shorter street, and those of the gate."""
    page = (repo / "docs/tracking.md").read_text()
    lines, gate = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for name, target in (("logs/SAGA/quickstart/anchors", tiny_run), ("streets/0", streets[0])):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("range(1, 241)", f"range(1, {FRAMES + 1})"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"\d+ \d+ ", line)]
    assert len(rows) > FRAMES and {len(row) for row in rows} == {6} and len({row[1] for row in rows}) > 1
    assert inspect.getsource(examples.trackers.gate) in gate
