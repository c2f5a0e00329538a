"""Draws a street that two cameras film, with true tracks and what a detector would find, in MOT-Challenge's layout.

The folder holds::

    <folder>/
        c1/ c2/                one sequence a camera; people keep their number from one to the other
            seqinfo.ini
            img1/000001.jpg    or video.mp4
            gt/gt.txt          frame, person, left, top, width, height, counts, class, visibility
            det/det.txt        frame, -1, left, top, width, height, confidence
        street.json            written last: the spec, and who the people are

Frames, people and pixels count from 1 in the text files, as in MOT-Challenge. Nobody of the street is in training: its
people are a population of their own (see `person`), in families of four look-alikes. Cameras are drawn anew as well.

A true box is twice as high as wide around the whole person, hidden parts too: what a picture of SyntheticPedestrians
shows, so that crops are what models have been trained on. `visibility` is the share of the person's pixels that shows,
neither hidden nor outside of the frame. `counts` is 0 for those of whom less than `COUNTS_FROM` is seen.

H, W size of a frame; h, w size of a person's or an object's own picture.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..files import check_output, read_json
from .canvas import Canvas, darker
from .figure import draw_person
from .options import StreetSpec
from .person import GENERATOR_VERSION, Person, generator, get_person, rgb
from .scene import SUPERSAMPLE, draw_occluder, photograph, surroundings
from .shot import Camera, Obstacle, Shot, get_camera, random_camera
from .street_walks import CAMERAS, Pose, Thing, Visit, count_of_people, things, visits

__all__ = ["COUNTS_FROM", "Box", "Frame", "detections", "draw_street", "film", "read_boxes"]

POPULATION = "street"
COUNTS_FROM = 0.1
# A detector finds nobody of whom less is seen.
DETECTED_FROM = 0.25
JPEG_QUALITY = 92
# Around a box, in pixels of a 96x48 picture: a bag or a foot that reaches over it is not cut off.
_MARGIN = 8
_FEET = 91.5
_STEPS = 16  # pictures of a gait


class Box(NamedTuple):
    """A person in a frame: number from 0, box in pixels from 0, visible share in 0..1."""

    person: int
    left: float
    top: float
    width: float
    height: float
    visibility: float


class Frame(NamedTuple):
    """image (H, W, 3) uint8 RGB, and the people in it, from far to near."""

    image: np.ndarray
    boxes: list[Box]


class _Sprite(NamedTuple):
    """A person's or an object's own picture.

    ink (h, w, 3) uint8, black where nothing is; cover (h, w) uint8, how much of what is behind it hides, shadow
    included; solid (h, w) bool, without the shadow.
    """

    ink: np.ndarray
    cover: np.ndarray
    solid: np.ndarray


# ---------------------------------------------------------------------------------------------------- one frame
def street_camera(spec: StreetSpec, camera: int) -> Camera:
    """How a camera (from 0) of the street sees: it is none of the data set's."""
    return random_camera(generator(spec.seed, "street", "camera", camera))


def film(spec: StreetSpec, camera: int) -> Iterator[Frame]:
    """The frames of a camera (from 0), in their order."""
    seen_by = street_camera(spec, camera)
    empty = np.asarray(surroundings(seen_by, spec.width // 4, spec.height))
    objects = [(thing.z, None, _thing(thing, _height(spec, thing.z)), thing.x) for thing in things(spec, camera)]
    people = [get_person(spec.seed, POPULATION, number) for number in range(count_of_people(spec))]
    ways = [visit for visit in visits(spec) if visit.camera == camera]
    light = float(generator(spec.seed, "street", "light", camera).uniform(-1, 1))
    for number in range(spec.frames):
        poses = _poses(ways, number)
        standing: list[tuple[float, int | None, _Sprite, float]] = list(objects)
        for person, pose in poses.items():
            height = _height(spec, pose.z)
            step = round(pose.walked * spec.width / (0.5 * height) * _STEPS) % _STEPS
            standing.append((pose.z, person, _person(people[person], pose.view, pose.facing, step, height), pose.x))
        standing.sort(key=lambda one: one[0])
        image, owner = empty.copy(), np.full(empty.shape[:2], -1, np.int16)
        boxes = []
        for z, person, sprite, x in standing:
            left, top = _corner(spec, x, z)
            _paste(image, owner, sprite, left, top, -1 if person is None else person)
            if person is not None:
                height, unit = _height(spec, z), _height(spec, z) / 96
                solid = int(sprite.solid.sum())
                boxes.append((person, left + _MARGIN * unit, top + _MARGIN * unit, height / 2, height, solid))
        seen = np.bincount(owner[owner >= 0], minlength=len(people))
        rng = generator(spec.seed, "street", "frame", camera, number)
        picture = photograph(
            Image.fromarray(image), seen_by, rng, unit=_height(spec, 0.5) / 96, light=light, exposure=1.0
        )
        yield Frame(picture, [Box(*box[:5], float(seen[box[0]] / box[5])) for box in boxes if _inside(spec, box)])


def _poses(ways: list[Visit], frame: int) -> dict[int, Pose]:
    found = ((visit.person, visit.pose(frame)) for visit in ways)
    return {person: pose for person, pose in found if pose is not None}


def _height(spec: StreetSpec, z: float) -> int:
    """Height in pixels of a person's box at a depth."""
    return round(spec.height * (0.36 + 0.16 * z))


def _corner(spec: StreetSpec, x: float, z: float) -> tuple[int, int]:
    """Left and top of the picture of whoever stands at (x, z)."""
    unit = _height(spec, z) / 96
    feet = spec.height * (0.84 + 0.145 * z)
    return round(x * spec.width - (24 + _MARGIN) * unit), round(feet - (_FEET + _MARGIN) * unit)


def _inside(spec: StreetSpec, box: tuple) -> bool:
    """Whether a person is in the frame: the middle of their box."""
    _, left, _, width, *_ = box
    return 0 <= left + width / 2 <= spec.width


def _paste(image: np.ndarray, owner: np.ndarray, sprite: _Sprite, left: int, top: int, number: int) -> None:
    """Put a picture before what is in the frame, and its number where it is solid."""
    height, width = sprite.solid.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, image.shape[0]), min(left + width, image.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    own = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    there = slice(y0, y1), slice(x0, x1)
    through = 255 - sprite.cover[own].astype(np.uint16)[..., None]
    image[there] = sprite.ink[own] + (image[there] * through // 255).astype(np.uint8)
    owner[there][sprite.solid[own]] = number


def _empty_picture(height: int) -> tuple[Canvas, float]:
    """A black canvas around a box of this height, and the pixels of its unit."""
    unit = height / 96
    size = math.ceil((48 + 2 * _MARGIN) * unit), math.ceil((96 + 2 * _MARGIN) * unit)
    big = Image.new("RGB", (SUPERSAMPLE * size[0], SUPERSAMPLE * size[1]))
    return Canvas(big, (SUPERSAMPLE * unit, SUPERSAMPLE * unit)), unit


def _sprite(canvas: Canvas, shadow: tuple[float, float, float, float] | None) -> _Sprite:
    """What has been drawn onto a black canvas; `shadow`: middle and radii of an ellipse, in the canvas's units."""
    # Black beside what is drawn: averaged down, a colour is already multiplied by its cover.
    ink = np.asarray(canvas.image.reduce(SUPERSAMPLE))
    cover = np.asarray(canvas.numbers.point([0] + [255] * 255).reduce(SUPERSAMPLE))
    solid = cover >= 128
    if shadow is not None:
        dark = Image.new("L", canvas.image.size)
        (x, y, rx, ry), (kx, ky) = shadow, canvas.scale
        ImageDraw.Draw(dark).ellipse([(x - rx) * kx, (y - ry) * ky, (x + rx) * kx, (y + ry) * ky], fill=76)
        cover = np.maximum(cover, np.asarray(dark.reduce(SUPERSAMPLE)))
    return _Sprite(ink, cover, solid)


@functools.lru_cache(maxsize=2048)
def _person(person: Person, view: str, facing: int, step: int, height: int) -> _Sprite:
    """A person at one of the `_STEPS` pictures of their gait; 0 stands."""
    canvas, _ = _empty_picture(height)
    swing = math.sin(2 * math.pi * step / _STEPS)
    shot = Shot(
        view=view,
        swing=swing,
        arm=-0.8 * swing,
        facing=facing,
        scale=1.0,
        dx=_MARGIN,
        dy=_MARGIN,
        camera=get_camera(0),  # a photograph is taken of the whole frame
        occluder=None,
        seed=0,
    )
    draw_person(canvas, person, shot)
    return _sprite(canvas, (24 + _MARGIN, _FEET + _MARGIN, 13, 2.5))


def _thing(thing: Thing, height: int) -> _Sprite:
    canvas, _ = _empty_picture(height)
    if thing.occluder.kind == "kiosk":
        _draw_kiosk(canvas, thing.occluder)
    else:
        draw_occluder(canvas, thing.occluder, 24 + _MARGIN)
    return _sprite(canvas, None)


def _draw_kiosk(canvas: Canvas, occluder: Obstacle) -> None:
    """Higher and wider than a person, with a roof and a counter."""
    rng = generator(occluder.seed, "occluder")
    x, colour = 24 + _MARGIN, rgb(rng.integers(60, 200, 3))
    canvas.trapezium(x, 8, 25, 102, 25, colour, 1)
    canvas.trapezium(x, 4, 30, 13, 27, darker(colour, 0.6), 1)
    canvas.trapezium(x, 22, 20, 52, 20, darker(colour, 0.45), 1)
    canvas.trapezium(x, 52, 22, 56, 22, darker(colour, 0.8), 1)


# ---------------------------------------------------------------------------------------------------- a detector
def detections(spec: StreetSpec, camera: int, frames: list[list[Box]]) -> list[list[tuple[float, ...]]]:
    """What a detector would find of true boxes: (left, top, width, height, confidence) in each frame, best first.

    Whoever is seen less is found less often, with less confidence and less exactly; below `DETECTED_FROM` nobody is
    found. Every tenth frame has a box too many.
    """
    rng = generator(spec.seed, "street", "detector", camera)
    found = []
    for boxes in frames:
        rows = []
        for box in boxes:
            chance, jitter, score = rng.random(), rng.standard_normal(4), rng.standard_normal()
            seen = box.visibility
            if seen < DETECTED_FROM or chance > min(0.55 + 0.65 * (seen - DETECTED_FROM), 0.97):
                continue
            spread = 0.015 + 0.04 * (1 - seen)
            width, height = box.width * (1 + spread * jitter[0]), box.height * (1 + spread * jitter[1])
            x = box.left + box.width / 2 + spread * box.width * jitter[2]
            y = box.top + box.height / 2 + spread * box.height * jitter[3]
            confidence = float(np.clip(0.4 + 0.5 * seen + 0.05 * score, 0.05, 0.99))
            rows.append((x - width / 2, y - height / 2, width, height, confidence))
        ghost = rng.random(5)
        if ghost[0] < 0.1:
            height = _height(spec, float(ghost[1]))
            left, top = _corner(spec, float(ghost[2]), float(ghost[1]))
            rows.append((float(left), float(top), height / 2, float(height), 0.2 + 0.4 * float(ghost[3])))
        found.append(sorted(rows, key=lambda row: -row[4]))
    return found


# ---------------------------------------------------------------------------------------------------- files
def draw_street(folder: str | Path, spec: StreetSpec | None = None, *, video: bool = False) -> Path:
    """Draw a street into a folder, unless it is there.

    Args:
        video: one video.mp4 a camera, by OpenCV, in the place of its frames.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something else, or another street.
        OSError: it cannot be written, or OpenCV has no encoder for mp4.
    """
    spec, folder = spec or StreetSpec(), Path(folder).expanduser().absolute()
    about = {"generator_version": GENERATOR_VERSION, "spec": dataclasses.asdict(spec), "video": video}
    if (folder / "street.json").is_file():
        remedy = "Remove the folder, or name another: the street is drawn again"
        found = read_json(folder / "street.json", remedy=remedy, required={"spec": dict})
        if any(found.get(key) != value for key, value in about.items()):
            raise FileExistsError(f"{folder}: found another street, {found['spec']}; name another folder, or remove it")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: found files that are no street; expected an empty folder or none")
    check_output(folder, folder=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
    try:
        for camera in range(CAMERAS):
            _write_sequence(partial / f"c{camera + 1}", spec, camera, video)
        people = [get_person(spec.seed, POPULATION, number).attributes() for number in range(count_of_people(spec))]
        about["people"] = {number + 1: attributes for number, attributes in enumerate(people)}
        (partial / "street.json").write_text(json.dumps(about, indent=1) + "\n")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write_sequence(folder: Path, spec: StreetSpec, camera: int, video: bool) -> None:
    for name in ("gt", "det") if video else ("gt", "det", "img1"):
        (folder / name).mkdir(parents=True)
    writer = None
    if video:
        code, size = cv2.VideoWriter.fourcc(*"mp4v"), (spec.width, spec.height)
        writer = cv2.VideoWriter(str(folder / "video.mp4"), code, spec.fps, size)
        if not writer.isOpened():
            raise OSError("OpenCV cannot write mp4 here; draw frames instead")
    truth = []
    frames = tqdm(film(spec, camera), f"filming {folder.name}", spec.frames, unit="frame", disable=None)
    for number, frame in enumerate(frames, 1):
        truth.append(frame.boxes)
        if writer is not None:
            writer.write(np.ascontiguousarray(frame.image[..., ::-1]))
        else:
            Image.fromarray(frame.image).save(folder / f"img1/{number:06d}.jpg", quality=JPEG_QUALITY)
    if writer is not None:
        writer.release()
    lines = [
        f"{number},{box.person + 1},{_from_one(box[1:5])},{int(box.visibility >= COUNTS_FROM)},1,{box.visibility:.4f}\n"
        for number, boxes in enumerate(truth, 1)
        for box in sorted(boxes)
    ]
    (folder / "gt/gt.txt").write_text("".join(lines))
    lines = [
        f"{number},-1,{_from_one(row[:4])},{row[4]:.4f}\n"
        for number, rows in enumerate(detections(spec, camera, truth), 1)
        for row in rows
    ]
    (folder / "det/det.txt").write_text("".join(lines))
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate={spec.fps}\nseqLength={spec.frames}\n"
        f"imWidth={spec.width}\nimHeight={spec.height}\nimExt=.jpg\n"
    )


def _from_one(box: tuple[float, ...]) -> str:
    """left, top, width, height as MOT-Challenge writes them: its pixels count from 1."""
    left, top, width, height = box
    return f"{left + 1:.2f},{top + 1:.2f},{width:.2f},{height:.2f}"


def read_boxes(path: str | Path) -> np.ndarray:
    """(n, 7 or 9) numbers of a gt.txt or det.txt, left and top counted from 0, in the order of the file."""
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    rows[:, 2:4] -= 1
    return rows
