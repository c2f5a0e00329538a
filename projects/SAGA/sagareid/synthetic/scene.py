"""Draws a shot: the scene, the person in it, the occluder in front, and the photograph that a camera takes of them.

`draw` needs Pillow and numpy alone. The picture is drawn at twice its size and averaged down.

Masks (uint8, H x W), `Drawing.mask`::

    0 background    1 occluder    2 person, visible    3 person, hidden behind the occluder

so that {2, 3} is the full silhouette and {1, 3} the occluder. `Drawing.parts` holds the `figure.Part` number of what
the person shows at a pixel (0: no person), as if there were no occluder.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import Canvas, darker
from .figure import PLACES, Part, draw_person
from .person import Colour, Person, generator, new_person, rgb
from .shot import Camera, Obstacle, Shot, get_camera, random_shot

DEFAULT_SIZE = (96, 48)
SUPERSAMPLE = 2
# Nobody could tell what fewer pixels than this of a 96x48 picture show.
MIN_VISIBLE_PIXELS = 8


class Place(NamedTuple):
    """Where an attribute shows: box x0, y0, x1, y1 (end exclusive) in picture pixels, visible pixels, their share."""

    box: tuple[int, int, int, int]
    pixels: int
    visible: float


class Drawing(NamedTuple):
    """`image` (H,W,3) uint8 RGB; `mask` and `parts` (H,W) uint8, see the module; `places`: attribute place -> Place."""

    image: np.ndarray
    mask: np.ndarray
    parts: np.ndarray
    places: dict[str, Place]

    @property
    def occluded(self) -> float:
        """Share of the person's silhouette that is hidden, in 0..1."""
        hidden, shown = int((self.mask == 3).sum()), int((self.mask == 2).sum())
        return hidden / max(hidden + shown, 1)


def draw(person: Person, shot: Shot, size: tuple[int, int] = DEFAULT_SIZE) -> Drawing:
    """Draw a shot of a person.

    Args:
        size: (height, width) of the picture in pixels.

    Raises:
        ValueError: the picture would be smaller than 24x12.
    """
    height, width = size
    if height < 24 or width < 12:
        raise ValueError(
            f"size {height}x{width}: found a picture in which nobody could be told apart; "
            f"expected at least 24x12 (height x width), the default is {DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]}"
        )
    big_width, big_height = SUPERSAMPLE * width, SUPERSAMPLE * height
    rng = generator(shot.seed, "pixels")
    scene = surroundings(shot.camera, big_width, big_height)
    x = int(rng.integers(0, scene.width - big_width + 1))
    canvas = Canvas(scene.crop((x, 0, x + big_width, big_height)), _scale(size))
    canvas.ellipse(24 + shot.dx, 91.5 + shot.dy, 13, 2.5, darker(shot.camera.floor, 0.7), 0)  # the shadow
    draw_person(canvas, person, shot)
    parts = np.asarray(canvas.numbers)[::SUPERSAMPLE, ::SUPERSAMPLE].copy()
    front = np.zeros_like(parts, dtype=bool)
    if shot.occluder is not None:
        before = Canvas(canvas.image, canvas.scale)
        draw_occluder(before, shot.occluder, 24 + shot.dx)
        front = np.asarray(before.numbers)[::SUPERSAMPLE, ::SUPERSAMPLE] > 0

    mask = np.where(front, np.where(parts > 0, 3, 1), np.where(parts > 0, 2, 0)).astype(np.uint8)
    return Drawing(_photograph(canvas.image, shot, rng, size), mask, parts, _places(parts, front, size))


def cutout(person: Person, shot: Shot, size: tuple[int, int] = DEFAULT_SIZE) -> np.ndarray:
    """The person alone, in neutral light, for pasting: (H,W,4) uint8 RGBA, transparent where nobody stands."""
    height, width = size
    canvas = Canvas(Image.new("RGB", (SUPERSAMPLE * width, SUPERSAMPLE * height), (128, 128, 128)), _scale(size))
    draw_person(canvas, person, shot)
    alpha = canvas.numbers.point([0] + [255] * 255).reduce(SUPERSAMPLE)
    return np.dstack([np.asarray(canvas.image.reduce(SUPERSAMPLE)), np.asarray(alpha)])


def _scale(size: tuple[int, int]) -> tuple[float, float]:
    """The canvas's (x, y) scale for a picture of (height, width)."""
    return SUPERSAMPLE * size[1] / 48, SUPERSAMPLE * size[0] / 96


def _photograph(image: Image.Image, shot: Shot, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """The camera's picture (H,W,3) uint8 of what stands before it, with this shot's focus and light."""
    blur, light, exposure = rng.uniform(0.8, 1.2), rng.uniform(-1, 1), rng.uniform(0.92, 1.08)
    image = image.reduce(SUPERSAMPLE)
    return photograph(image, shot.camera, rng, unit=size[0] / 96, blur=blur, light=light, exposure=exposure)


def photograph(
    image: Image.Image,
    seen_by: Camera,
    rng: np.random.Generator,
    *,
    unit: float,
    blur: float = 1.0,
    light: float = 0.0,
    exposure: float = 1.0,
) -> np.ndarray:
    """A scene as a camera sees it, with its blur, colours and noise: (H,W,3) uint8.

    Args:
        image: the scene, of the picture's size.
        rng: of the noise.
        unit: pixels of the image in a pixel of a 96x48 picture of a person, which the camera's blur is given in.
        blur, exposure: factors of the camera's own.
        light: how much of the light comes from one side, in -1..1.
    """
    image = image.filter(ImageFilter.GaussianBlur(seen_by.blur * unit * blur))
    pixels = np.asarray(image, dtype=np.float32)
    # Light from one side: keeps flat polygons from giving a garment one exact value in all pictures.
    shade = 1 + np.linspace(-0.12, 0.12, image.width, dtype=np.float32)[None, :, None] * np.float32(light)
    gain = np.asarray(seen_by.gain, dtype=np.float32) * np.float32(seen_by.exposure * exposure)
    pixels = (pixels * gain * shade - 128) * np.float32(seen_by.contrast) + 128
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(seen_by.noise)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _places(parts: np.ndarray, front: np.ndarray, size: tuple[int, int]) -> dict[str, Place]:
    """Place of every attribute of which enough pixels are visible."""
    visible_parts, fewest = np.where(front, 0, parts), MIN_VISIBLE_PIXELS * size[0] * size[1] / (96 * 48)
    places = {}
    for name, part_names in PLACES.items():
        numbers = [Part[part.upper()] for part in part_names]
        seen = np.isin(visible_parts, numbers)
        pixels = int(seen.sum())
        if pixels < fewest:
            continue
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
        places[name] = Place(box, pixels, pixels / int(np.isin(parts, numbers).sum()))
    return places


# ---------------------------------------------------------------------------------------------------- the scene
class _Backdrop:
    """A scene while it is drawn: `horizon` is where the wall meets the floor, `u` a 96th of the height."""

    def __init__(self, seen_by: Camera, width: int, height: int):
        self.rng = generator(seen_by.seed, "scene")
        self.wall, self.width, self.u = seen_by.wall, width, height / 96
        self.image = Image.new("RGB", (width, height), seen_by.wall)
        self.ink = ImageDraw.Draw(self.image)
        self.horizon = int(height * self.rng.uniform(0.6, 0.8))

    def vary(self, colour: Colour, by: int = 18) -> Colour:
        return rgb(np.clip(np.array(colour) + self.rng.integers(-by, by + 1, 3), 0, 255))


@functools.lru_cache(maxsize=128)
def surroundings(seen_by: Camera, width: int, height: int) -> Image.Image:
    """The camera's surroundings, four pictures wide: a shot looks at a piece of it."""
    backdrop = _Backdrop(seen_by, width * 4, height)
    _WALLS[seen_by.scene](backdrop)
    rng, ink, u, horizon = backdrop.rng, backdrop.ink, backdrop.u, backdrop.horizon
    ink.rectangle([0, horizon, width * 4, height], fill=seen_by.floor)
    for _ in range(24):
        x, y = rng.uniform(0, width * 4), rng.uniform(horizon, height)
        ink.rectangle([x, y, x + rng.uniform(8, 50) * u, y + rng.uniform(1, 3) * u], fill=backdrop.vary(seen_by.floor))
    return backdrop.image


def _brick_wall(b: _Backdrop) -> None:
    u = b.u
    for course, y in enumerate(np.arange(0, b.horizon, 5 * u)):
        for x in np.arange(-(course % 2) * 5 * u, b.width, 10 * u):
            b.ink.rectangle([x, y, x + 9 * u, y + 4 * u], fill=b.vary(b.wall))


def _shop_windows(b: _Backdrop) -> None:
    u = b.u
    for x in np.arange(0, b.width, 30 * u):
        b.ink.rectangle([x + 2 * u, 8 * u, x + 26 * u, b.horizon - 8 * u], fill=b.vary((90, 110, 130), 60))
        b.ink.rectangle([x, 0, x + 30 * u, 6 * u], fill=b.vary(darker(b.wall), 60))


def _columns(b: _Backdrop) -> None:
    u = b.u
    for x in np.arange(0, b.width, 22 * u):
        b.ink.rectangle([x, 0, x + 5 * u, b.horizon], fill=b.vary(darker(b.wall, 0.8)))
    b.ink.rectangle([0, 14 * u, b.width, 20 * u], fill=b.vary(b.wall, 50))


def _tiles(b: _Backdrop) -> None:
    u = b.u
    for y in np.arange(0, b.horizon, 12 * u):
        for x in np.arange(0, b.width, 12 * u):
            b.ink.rectangle([x, y, x + 11 * u, y + 11 * u], fill=b.vary(b.wall, 12))


def _bushes(b: _Backdrop) -> None:
    for _ in range(50):
        x, y, r = b.rng.uniform(0, b.width), b.rng.uniform(0, b.horizon), b.rng.uniform(6, 18) * b.u
        b.ink.ellipse([x - r, y - r, x + r, y + r], fill=b.vary((70, 110, 60), 30))


def _houses(b: _Backdrop) -> None:
    u = b.u
    for x in np.arange(0, b.width, 40 * u):
        top, width = b.rng.uniform(0, 30) * u, b.rng.uniform(14, 36) * u
        b.ink.rectangle([x, top, x + width, b.horizon], fill=b.vary(b.wall, 40))


def _concrete(b: _Backdrop) -> None:
    for _ in range(8):
        x = b.rng.uniform(0, b.width)
        b.ink.rectangle([x, 0, x + b.rng.uniform(4, 40) * b.u, b.horizon], fill=b.vary(b.wall, 14))


_WALLS = {  # by `shot.SCENES`
    "brick": _brick_wall,
    "tiles": _tiles,
    "grass": _bushes,
    "shop": _shop_windows,
    "road": _houses,
    "concrete": _concrete,
    "station": _columns,
    "hall": _columns,
}


# ---------------------------------------------------------------------------------------------------- occluders
class _Front:
    """An occluder while it is drawn: the person stands at `x`; pixels that it covers get number 1."""

    def __init__(self, canvas: Canvas, occluder: Obstacle, x: float):
        self.canvas, self.x, self.reach = canvas, x, occluder.reach
        self.rng = generator(occluder.seed, "occluder")
        self.left = self.rng.random() < 0.5
        self.colour = rgb(np.clip(self.rng.integers(40, 190) + self.rng.integers(-35, 36, 3), 0, 255))

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.canvas.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, 1)


def draw_occluder(canvas: Canvas, occluder: Obstacle, x: float) -> None:
    """Draw what stands in front of a person at `x`, and number its pixels 1."""
    _OCCLUDERS[occluder.kind](_Front(canvas, occluder, x))


def _pole(f: _Front) -> None:
    x, width = f.x + f.rng.uniform(-7, 7), 4 + 6 * f.reach
    f.rectangle(x - width / 2, -2, x + width / 2, 98, f.colour)
    f.rectangle(x - width / 2, -2, x - width / 4, 98, darker(f.colour))


def _box(f: _Front) -> None:
    top, width = 78 - 34 * f.reach, f.rng.uniform(22, 44)
    x = f.x + f.rng.uniform(-10, 10)
    f.rectangle(x - width / 2, top, x + width / 2, 98, f.colour)
    for y in np.arange(top + 6, 98, 9):
        f.rectangle(x - width / 2, y, x + width / 2, y + 1.4, darker(f.colour))


def _car(f: _Front) -> None:
    top, start = 74 - 26 * f.reach, -4 if f.left else 4
    roof = [(start + 6, top + 11), (start + 13, top), (start + 34, top), (start + 42, top + 11)]
    window = [(start + 10, top + 10), (start + 15, top + 2), (start + 32, top + 2), (start + 37, top + 10)]
    f.canvas.polygon(roof, f.colour, 1)
    f.canvas.polygon(window, (70, 84, 96), 1)
    f.rectangle(-6, top + 11, 54, 92, f.colour)
    for x in (start + 6, start + 40):
        f.canvas.ellipse(x, 91, 7, 7, (26, 26, 28), 1)


def _bush(f: _Front) -> None:
    top, base = 76 - 34 * f.reach, f.x + f.rng.uniform(-9, 9)
    for _ in range(26):
        green = rgb(np.array((46, 96, 44)) + f.rng.integers(-26, 27, 3))
        x, y, r = base + f.rng.uniform(-13, 13), f.rng.uniform(top, 100), f.rng.uniform(4, 8)
        f.canvas.ellipse(x, y, r, r, green, 1)


def _fence(f: _Front) -> None:
    top = 74 - 40 * f.reach
    for y in (top, top + 18):
        f.rectangle(-2, y, 50, y + 4, f.colour)
    for x in np.arange(f.rng.uniform(-4, 2), 50, 8):
        f.rectangle(x, top - 3, x + 3, 98, darker(f.colour, 0.9))


def _other_person(f: _Front) -> None:
    other = new_person(f.rng)
    shot = random_shot(f.rng, get_camera(0), occluded=0.0)
    away = (-1 if f.left else 1) * (17 - 8 * f.reach)
    shot = dataclasses.replace(shot, dx=f.x - 24 + away, dy=3.0 + 6 * f.reach, scale=1.08 + 0.08 * f.reach)
    draw_person(f.canvas, other, shot)


_OCCLUDERS = {  # by `shot.OCCLUDERS`
    "pole": _pole,
    "box": _box,
    "car": _car,
    "bush": _bush,
    "fence": _fence,
    "person": _other_person,
}
