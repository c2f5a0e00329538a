"""The drawn street: who walks where, what is true of a frame, what a detector finds, and the files."""

from __future__ import annotations

import configparser
import hashlib
import itertools
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from sagareid.synthetic import street
from sagareid.synthetic.options import StreetSpec
from sagareid.synthetic.shot import Obstacle
from sagareid.synthetic.street_walks import KINDS, Thing, Visit, count_of_people, visits

SMALL = StreetSpec(frames=40, people=6, shared=2, height=96, width=256)


@pytest.fixture(scope="module")
def drawn(session_tmp):
    return street.draw_street(session_tmp / "street", SMALL)


def digests(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def standing(monkeypatch, *people: tuple[float, float], things: tuple[Thing, ...] = ()) -> dict[int, float]:
    """Visibility of people who stand at (x, z) before the first camera, by their number."""
    ways = [Visit(i, 0, "pass", ((0, x, z), (9, x, z))) for i, (x, z) in enumerate(people)]
    monkeypatch.setattr(street, "visits", lambda spec: ways)
    monkeypatch.setattr(street, "things", lambda spec, camera: list(things))
    return {box.person: box.visibility for box in next(street.film(SMALL, 0)).boxes}


# ---- who walks where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_people_cross_wait_return_and_pass_both_cameras(seed):
    spec = StreetSpec(seed=seed)
    ways = visits(spec)
    assert {visit.kind for visit in ways} == set(KINDS)
    assert {visit.person for visit in ways} == set(range(count_of_people(spec)))
    for person in range(count_of_people(spec)):
        own = [visit for visit in ways if visit.person == person]
        for first, second in itertools.pairwise(own):  # nobody is in two places
            assert first.points[-1][0] < second.points[0][0]
        assert person < spec.shared or len({visit.camera for visit in own}) == 1
    cameras = {person: {v.camera for v in ways if v.person == person} for person in range(spec.shared)}
    assert sum(len(seen) == 2 for seen in cameras.values()) >= spec.shared / 2
    returns = [(v.person, v.camera) for v in ways]
    assert len(returns) - len(set(returns)) >= 3


def test_view_and_gait_follow_the_way():
    visit = Visit(0, 0, "cross", ((0, 0.2, 0.5), (10, 0.4, 0.5), (20, 0.4, 1.0), (30, 0.4, 0.5), (40, 0.2, 0.5)))
    views = [(visit.pose(frame).view, visit.pose(frame).facing) for frame in (5, 15, 25, 35)]
    assert views == [("side", 1), ("front", 1), ("back", 1), ("side", -1)]
    walked = [visit.pose(frame).walked for frame in range(40)]
    assert walked == sorted(walked) and walked[10] == pytest.approx(0.2)
    assert visit.pose(-1) is None and visit.pose(40) is None


# ---- what is true of a frame -----------------------------------------------------------------------------------------


def test_visibility_is_the_share_of_pixels_that_shows(monkeypatch):
    kiosk = Thing(Obstacle("kiosk", 1, 1.0), 0.5, 0.5)
    assert standing(monkeypatch, (0.5, 0.3), (0.5, 0.7), things=(kiosk,)) == {0: 0.0, 1: 1.0}
    one, other = standing(monkeypatch, (0.5, 0.3), (0.515, 0.5)).values()  # far to near
    assert 0 < one < 0.8 and other == 1
    assert standing(monkeypatch, (0.2, 0.5), (0.8, 0.5)) == {0: 1.0, 1: 1.0}
    assert 0.3 < standing(monkeypatch, (0.0, 0.5))[0] < 0.7  # half of them is outside of the frame
    assert standing(monkeypatch, (-0.02, 0.5)) == {}


def test_a_box_is_around_its_person(monkeypatch):
    monkeypatch.setattr(street, "photograph", lambda image, *args, **options: np.asarray(image))
    standing(monkeypatch, (0.5, 0.6))
    frame = next(street.film(SMALL, 0))
    standing(monkeypatch)
    empty = next(street.film(SMALL, 0)).image
    [box] = frame.boxes
    ys, xs = np.nonzero((frame.image != empty).any(2))
    assert box.left <= xs.min() and xs.max() <= box.left + box.width
    assert box.top <= ys.min() <= box.top + 0.25 * box.height
    assert box.top + 0.9 * box.height <= ys.max() <= box.top + 1.05 * box.height
    assert box.height == 2 * box.width


def test_people_nearer_are_larger_and_before_others(monkeypatch):
    standing(monkeypatch, (0.3, 0.1), (0.7, 0.9))
    far, near = next(street.film(SMALL, 0)).boxes
    assert (far.person, near.person) == (0, 1)
    assert near.height > far.height and near.top + near.height > far.top + far.height


# ---- what a detector finds -------------------------------------------------------------------------------------------


def test_a_detector_misses_the_hidden_and_is_surer_of_the_seen():
    boxes = [
        street.Box(0, 10, 10, 24, 48, 1.0),
        street.Box(1, 60, 10, 24, 48, 0.4),
        street.Box(2, 110, 10, 24, 48, 0.2),
    ]
    rows = street.detections(SMALL, 0, [boxes] * 400)
    near = {box.person: [row for found in rows for row in found if abs(row[0] - box.left) < 8] for box in boxes}
    assert len(near[0]) > 370 and 200 < len(near[1]) < 300 and len(near[2]) < 10
    sure, unsure = (np.array(near[person]) for person in (0, 1))
    assert sure[:, 4].mean() > 0.85 > 0.7 > unsure[:, 4].mean()
    assert 0 < sure[:, 0].std() < unsure[:, 0].std() < 3
    ghosts = [row for found in street.detections(SMALL, 0, [[]] * 400) for row in found]
    assert 20 < len(ghosts) < 60 and max(row[4] for row in ghosts) <= 0.6
    assert all(found == sorted(found, key=lambda row: -row[4]) for found in rows)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_layout_is_mot_challenges(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == ["c1", "c2", "street.json"]
    people = set(json.loads((drawn / "street.json").read_text())["people"])
    both = set()
    for sequence in (drawn / "c1", drawn / "c2"):
        info = configparser.ConfigParser()
        info.read(sequence / "seqinfo.ini")
        assert dict(info["Sequence"]) == {
            "name": sequence.name,
            "imdir": "img1",
            "framerate": "10",
            "seqlength": "40",
            "imwidth": "256",
            "imheight": "96",
            "imext": ".jpg",
        }
        assert sorted(p.name for p in (sequence / "img1").iterdir()) == [f"{i:06d}.jpg" for i in range(1, 41)]
        assert Image.open(sequence / "img1/000001.jpg").size == (256, 96)
        truth, found = street.read_boxes(sequence / "gt/gt.txt"), street.read_boxes(sequence / "det/det.txt")
        assert truth.shape[1] == 9 and found.shape[1] == 7 and (found[:, 1] == -1).all()
        assert set(truth[:, 6]) <= {0, 1} and (truth[:, 7] == 1).all()
        assert np.array_equal(truth[:, 6] == 1, truth[:, 8] >= street.COUNTS_FROM)
        assert {str(int(number)) for number in truth[:, 1]} <= people
        assert len({(row[0], row[1]) for row in truth}) == len(truth)
        both |= {row[0] for row in truth[:, :1]}
    assert both <= set(range(1, 41))


def test_text_counts_pixels_from_one(drawn):
    row = (drawn / "c1/gt/gt.txt").read_text().splitlines()[0].split(",")
    frame = next(itertools.islice(street.film(SMALL, 0), int(row[0]) - 1, None))
    [box] = [box for box in frame.boxes if box.person + 1 == int(row[1])]
    assert float(row[2]) == pytest.approx(box.left + 1, abs=0.01)
    assert street.read_boxes(drawn / "c1/gt/gt.txt")[0, 2] == pytest.approx(box.left, abs=0.01)


def test_a_seed_gives_the_same_bytes_and_another_gives_others(drawn, tmp_path):
    short = StreetSpec(frames=3, people=3, shared=1, height=96, width=128)
    first, again = (digests(street.draw_street(tmp_path / name, short)) for name in "ab")
    other = digests(street.draw_street(tmp_path / "c", StreetSpec(**{**short.__dict__, "seed": 1})))
    assert first == again and len(first) == 13
    assert first["c1/img1/000001.jpg"] != other["c1/img1/000001.jpg"]


def test_a_street_is_drawn_once_and_nothing_else_is_replaced(drawn, tmp_path, monkeypatch):
    before = (drawn / "street.json").stat().st_mtime_ns
    assert street.draw_street(drawn, SMALL) == drawn and (drawn / "street.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="found another street"):
        street.draw_street(drawn, StreetSpec(seed=5))
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="no street"):
        street.draw_street(tmp_path, SMALL)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(street, "detections", interrupted)
    with pytest.raises(KeyboardInterrupt):
        street.draw_street(tmp_path / "new", StreetSpec(frames=1, people=1, shared=0, height=96, width=128))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_films_a_video(run_tool, tmp_path):
    options = ["--frames", 5, "--people", 2, "--shared", 1, "--height", 96, "--width", 128]
    code, out, _ = run_tool("draw_street.py", "-o", tmp_path / "s", "--video", *options)
    assert code == 0 and out.strip() == str(tmp_path / "s")
    video = cv2.VideoCapture(str(tmp_path / "s/c2/video.mp4"))
    frames = [video.read() for _ in range(6)]
    assert [ok for ok, _ in frames] == [True] * 5 + [False] and frames[0][1].shape == (96, 128, 3)
    assert not (tmp_path / "s/c2/img1").exists() and (tmp_path / "s/c2/gt/gt.txt").is_file()


@pytest.mark.parametrize(
    "option, message", [("--people=0", "at least 1"), ("--shared=99", "at most all"), ("--width=130", "multiple of 4")]
)
def test_a_street_that_cannot_be_is_an_error(option, message, run_tool, tmp_path):
    code, _, err = run_tool("draw_street.py", "-o", tmp_path / "s", option)
    assert code == 1 and message in err and not (tmp_path / "s").exists()
