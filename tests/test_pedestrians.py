"""Drawn pedestrians: the same bytes everywhere, people apart, true masks, a data set for FastReID."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from sagareid.synthetic import captions, drawn
from sagareid.synthetic.figure import PARTS, PLACES
from sagareid.synthetic.person import (
    GENERATOR_VERSION,
    SIBLING_CHANGES,
    differing_groups,
    family,
    generator,
    get_person,
)
from sagareid.synthetic.scene import MIN_VISIBLE_PIXELS, cutout, draw
from sagareid.synthetic.shot import OCCLUDERS, Obstacle, Shot, get_camera, random_shot

from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY

TINY = drawn.Spec(train_ids=4, test_ids=3, validation_ids=2, cameras=3, gallery_distractors=5, cutouts=4)


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files of a data set."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def shot_of(index: int, **options) -> Shot:
    return random_shot(generator(1, "test shot", index), get_camera(index % 6), **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return drawn.draw_dataset(tmp_path_factory.mktemp("tiny"), TINY, workers=1)


def test_same_bytes_with_one_and_two_processes(tiny, tmp_path):
    again = drawn.draw_dataset(tmp_path, TINY, workers=2)
    assert digest(again) == digest(tiny)


def test_pixels_are_those_of_this_generator_version():
    """Fails when a change to the drawing gives other pictures: raise GENERATOR_VERSION with it, then this digest."""
    pixels, attributes = hashlib.sha256(), set()
    for index in range(120):
        person = get_person(index % 3, "golden", index)
        shot = shot_of(index, occluded=0.8)
        drawing = draw(person, shot, ((96, 48), (48, 24))[index % 2])
        attributes.update(person.attributes().items())
        # The photograph passes through float32, which may round otherwise on another machine; these do not.
        pixels.update(drawing.parts.tobytes() + drawing.mask.tobytes() + cutout(person, shot).tobytes())
        pixels.update(repr(person.attributes()).encode())
    assert len(attributes) == 145, "the people show every value of every attribute"
    assert (GENERATOR_VERSION, pixels.hexdigest()[:16]) == (1, "b120272f4009ec62")


def test_another_seed_gives_other_people(tiny, tmp_path):
    other = drawn.draw_dataset(tmp_path, dataclasses.replace(TINY, seed=1), workers=1)
    first = [drawn.load_attributes(folder)["people"] for folder in (tiny, other)]
    assert first[0].keys() == first[1].keys() and first[0] != first[1]


def test_populations_share_nobody():
    people = {}
    for population in (
        "train",
        "test",
        "validation",
        "distractor",
        "gallery distractor",
        "pretrain",
        "pretrain unseen",
    ):
        people[population] = {get_person(0, population, i) for i in range(400)}
        assert len(people[population]) == 400
    assert len(set.union(*people.values())) == 400 * len(people)


def test_siblings_differ_in_few_groups():
    for number in range(40):
        members = family(0, "train", number)
        for member in members[1:]:
            assert len(differing_groups(members[0], member)) == SIBLING_CHANGES
        for a in range(4):
            for b in range(a):
                assert 2 <= len(differing_groups(members[a], members[b])) <= 2 * SIBLING_CHANGES


def test_mask_separates_the_occluder_from_the_person():
    person, shot = get_person(0, "test", 5), shot_of(3, occluded=0.0)
    bare = draw(person, shot)
    assert set(np.unique(bare.mask)) == {0, 2} and bare.occluded == 0
    assert np.array_equal(bare.mask == 2, bare.parts > 0)
    for kind in OCCLUDERS:
        occluder = Obstacle(kind, seed=7, reach=0.8)
        drawing = draw(person, dataclasses.replace(shot, occluder=occluder))
        assert np.array_equal(drawing.parts, bare.parts), "the silhouette does not depend on what stands before it"
        assert np.array_equal(np.isin(drawing.mask, (2, 3)), bare.mask == 2)
        assert 0 < drawing.occluded < 1, kind
        changed = np.abs(drawing.image.astype(int) - bare.image).max(2) > 40
        covered = np.isin(drawing.mask, (1, 3))
        # Blur carries the occluder's colour a pixel or two beyond its edge.
        near = np.pad(covered, 2)
        near = np.any([np.roll(near, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], axis=0)[2:-2, 2:-2]
        assert not (changed & ~near).any(), kind


def test_places_hold_the_visible_parts():
    for index in range(30):
        drawing = draw(get_person(0, "test", index), shot_of(index, occluded=0.5))
        for name, place in drawing.places.items():
            numbers = [PARTS.index(p) + 1 for p in PLACES[name]]
            seen = np.isin(drawing.parts, numbers) & (drawing.mask == 2)
            x0, y0, x1, y1 = place.box
            assert seen.sum() == place.pixels == seen[y0:y1, x0:x1].sum() >= MIN_VISIBLE_PIXELS
            assert 0 < place.visible <= 1


def test_captions_are_short_and_name_what_is_visible():
    tokenizer = open_clip.SimpleTokenizer()
    for index in range(200):
        person = get_person(0, "captions", index)
        rng = generator(0, "caption", index)
        shot = shot_of(index, occluded=0.5)
        places = draw(person, shot).places
        text = captions.caption(person, shot.view, places, rng)
        assert len(tokenizer.encode(text)) < 70, text
        for place in ("upper", "lower", "shoes", "bag", "scarf", "headwear", "hair"):
            if place == "hair" and person.hair_style == "bald":
                continue
            attribute = {"scarf": "scarf_colour", "hair": "hair_style"}.get(place, place)
            if getattr(person, attribute) != "none":
                assert (captions.describe(person, place) in text) == (place in places), (place, text)
        for place in places:
            assert len(tokenizer.encode(captions.part_caption(person, place, rng))) < 24


def test_anchor_phrases_are_the_region_phrases():
    lines = (Path(captions.__file__).parent.parent / "assets" / "anchor_phrases.txt").read_text().splitlines()
    assert lines == [region.phrase for region in captions.REGION_PHRASES]
    assert len(lines) == len(set(lines)) == 24
    tokenizer = open_clip.SimpleTokenizer()
    assert all(5 <= len(tokenizer.encode(line)) <= 11 for line in lines)


@pytest.mark.parametrize("name, query", [("SyntheticPedestrians", 3 * 2), ("SyntheticPedestriansVal", 2 * 2)])
def test_fastreid_reads_the_data_set(tiny, name, query):
    data = DATASET_REGISTRY.get(name)(root=str(tiny.parent))
    assert len(data.train) == 4 * 3 * 2 and len(data.query) == query
    train = CommDataset(data.train, relabel=True)
    assert (train.num_classes, train.num_cameras) == (4, 3)
    assert data.train[0][1:] == ("synthetic_pedestrians_1", "synthetic_pedestrians_0")
    item = CommDataset(data.query + data.gallery, relabel=False)[0]
    assert item["images"].size == (48, 96) and isinstance(item["targets"], int) and isinstance(item["camids"], int)
    for _, pid, camid in data.query:
        assert any(p == pid and c != camid for _, p, c in data.gallery), "every query has a match from another camera"
    assert len(data.distractors) == 4 and Image.open(data.distractors[0]).mode == "RGBA"


def test_splits_share_nobody(tiny):
    test, val = (
        DATASET_REGISTRY.get(n)(root=str(tiny.parent)) for n in ("SyntheticPedestrians", "SyntheticPedestriansVal")
    )
    people = [{int(p.rsplit("_", 1)[1]) for _, p, _ in test.train}]
    people += [{p for _, p, _ in d.query + d.gallery} - {0} for d in (test, val)]
    assert sum(map(len, people)) == len(set.union(*people)) == 4 + 3 + 2
    assert sum(p == 0 for _, p, _ in test.gallery) == 5


def test_names_are_read_from_the_base_name(tmp_path):
    root = tmp_path / "0007_c9s1_run_1_c2"
    folder = drawn.draw_dataset(root, TINY, workers=1)
    data = drawn.SyntheticPedestrians(root=str(root))
    assert {c for _, _, c in data.query} <= {0, 1, 2}
    (folder / "query" / "holiday.jpg").touch()
    with pytest.raises(RuntimeError, match="found 'holiday.jpg', expected names like 0002_c1s1_000451_03.jpg"):
        _ = drawn.SyntheticPedestrians(root=str(root)).query


def test_attributes_and_masks_of_every_picture(tiny):
    attributes = drawn.load_attributes(tiny)
    files = {p.relative_to(tiny).as_posix() for split in drawn.SPLITS for p in (tiny / split).iterdir()}
    assert attributes["images"].keys() == files
    for path, record in attributes["images"].items():
        assert record["person"] in attributes["people"]
        mask = np.asarray(Image.open(drawn.mask_path(tiny / path)))
        assert mask.shape == (96, 48) and mask.max() <= 3
        assert record["occluded"] == pytest.approx((mask == 3).sum() / (mask >= 2).sum(), abs=1e-3)
    manifest = json.loads((tiny / "manifest.json").read_text())
    assert sum(manifest["images"].values()) == len(files)


def test_an_interrupted_drawing_is_not_trusted(tmp_path, tiny):
    script = (
        "from sagareid.synthetic import drawn as s;"
        f"s.draw_dataset({str(tmp_path)!r}, s.Spec(train_ids=400, cameras=6), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    partial = tmp_path / f".{drawn.FOLDER}.partial" / "bounding_box_train"
    deadline = time.time() + 60
    while not (partial.is_dir() and any(partial.iterdir())):
        assert time.time() < deadline and process.poll() is None, "the drawing did not start"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / drawn.FOLDER).exists()
    folder = drawn.draw_dataset(tmp_path, TINY, workers=1)
    assert digest(folder) == digest(tiny) and not partial.parent.exists()


def test_an_existing_data_set_is_used_as_it_is(tiny, tmp_path):
    before = digest(tiny)
    assert drawn.draw_dataset(tiny.parent) == tiny and digest(tiny) == before
    (tmp_path / drawn.FOLDER).mkdir()
    with pytest.raises(FileExistsError, match="found a folder without manifest.json"):
        drawn.draw_dataset(tmp_path, TINY)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_ids": 1}, "train_ids: found 1"),
        ({"queries": 7}, "found 7 per person"),
        ({"test_ids": 9900}, "at most 9999"),
    ],
)
def test_impossible_specs(options, message):
    with pytest.raises(ValueError, match=message):
        drawn.Spec(**options)


def test_command_line(tmp_path, repo):
    command = [sys.executable, str(repo / "tools" / "draw_pedestrians.py"), "--root", str(tmp_path), "--train-ids", "2"]
    command += ["--test-ids", "1", "--validation-ids", "1", "--gallery-distractors", "0", "--size", "48", "24"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().endswith(drawn.FOLDER)
    picture = next((tmp_path / drawn.FOLDER / "query").iterdir())
    assert Image.open(picture).size == (24, 48)
    wrong = subprocess.run([*command, "--queries", "9", "--force"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "found 9 per person" in wrong.stderr
