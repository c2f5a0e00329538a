"""Drawn pedestrians: a person from a seed, a shot of that person, and where each attribute is in the picture.

Pure drawing (Pillow and numpy): the data set (`synthetic.py`) and the pretraining of the embedded CLIP
(`engine/pretrain.py`) both draw through this module, so that their people look alike and never coincide.

A *person* is a `Person`, a handful of named attributes. A *population* is a named space of people: `person(seed,
population, index)` seeds its generator with the population's name, so "train", "test" or "pretrain" cannot share
people. Four consecutive indices are a *family*: siblings that differ from its first member in `SIBLING_CHANGES` of
the attribute groups `GROUPS`, which makes a gallery confusable and forces a model to look at local things.
A *shot* is a `Shot`: view, limbs, framing, camera and, in some shots, an occluder.

Lengths are in pixels of a 96x48 picture (height, width), whatever the size drawn; the picture is drawn at twice its
size and averaged down. Every byte follows from the seeds: no state, no `hash()`, no dependence on the process.

Masks (uint8, H x W), `Drawing.mask`::

    0 background    1 occluder    2 person, visible    3 person, hidden behind the occluder

so that {2, 3} is the full silhouette and {1, 3} the occluder. `Drawing.parts` holds the `PARTS` number of what the
person shows at a pixel (0: no person), as if there were no occluder.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Raise when a seed no longer gives the bytes it gave before: data sets on disk carry the number.
GENERATOR_VERSION = 1
DEFAULT_SIZE = (96, 48)
SUPERSAMPLE = 2
FAMILY_SIZE = 4
SIBLING_CHANGES = 3

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (28, 28, 32),
    "white": (236, 236, 232),
    "grey": (130, 132, 136),
    "red": (192, 34, 40),
    "orange": (234, 124, 30),
    "yellow": (230, 204, 52),
    "green": (44, 132, 62),
    "blue": (44, 98, 204),
    "navy": (26, 36, 88),
    "purple": (116, 52, 150),
    "pink": (234, 134, 172),
    "brown": (112, 70, 40),
    "beige": (208, 188, 150),
}
HAIR_COLOURS = {
    "black": (24, 22, 22),
    "brown": (92, 58, 34),
    "blond": (216, 184, 104),
    "red": (160, 66, 28),
    "grey": (150, 150, 150),
    "white": (226, 224, 220),
}
SKINS = {"light": (238, 204, 180), "medium": (200, 150, 112), "dark": (110, 72, 50)}
HAIR_STYLES = ("short", "long", "curly", "ponytail", "bun", "bald")
HEADWEAR = ("none", "cap", "beanie", "hat", "helmet")
UPPERS = ("t-shirt", "shirt", "jacket", "hoodie", "coat", "vest")
PATTERNS = ("plain", "striped", "checked", "dotted", "two-tone")
LOWERS = ("trousers", "shorts", "skirt", "long skirt")
SHOES = ("shoes", "trainers", "boots")
BAGS = ("none", "backpack", "shoulder bag", "handbag", "suitcase")
BUILDS = {"slim": 0.84, "average": 1.0, "heavy": 1.24}
HEIGHTS = {"short": 0.9, "average": 1.0, "tall": 1.09}
VIEWS = ("front", "back", "side")
OCCLUDERS = ("pole", "box", "car", "bush", "fence", "person")

# What the person shows at a pixel; the number is the index + 1.
PARTS = ("face", "arms", "legs", "hair", "headwear", "scarf", "upper", "sleeves", "lower", "shoes", "bag")
_PART = {name: number for number, name in enumerate(PARTS, 1)}
# Attribute place -> the parts that show it.
PLACES: dict[str, tuple[str, ...]] = {
    "hair": ("hair",),
    "headwear": ("headwear",),
    "scarf": ("scarf",),
    "upper": ("upper", "sleeves"),
    "lower": ("lower",),
    "shoes": ("shoes",),
    "bag": ("bag",),
    "skin": ("face", "arms", "legs"),
}
# Fewer pixels than this of a 96x48 picture, and nobody could tell what they show.
MIN_VISIBLE_PIXELS = 8

# Attribute groups in which siblings differ; each is drawn as a whole.
GROUPS: dict[str, tuple[str, ...]] = {
    "hair": ("hair_colour", "hair_style"),
    "headwear": ("headwear", "headwear_colour"),
    "scarf": ("scarf_colour",),
    "upper kind": ("upper",),
    "upper colours": ("upper_colour", "upper_colour2", "upper_pattern"),
    "lower": ("lower", "lower_colour"),
    "shoes": ("shoes", "shoes_colour"),
    "bag": ("bag", "bag_colour"),
    "body": ("build", "height"),
    "skin": ("skin",),
}
# Garment colours vary within their name, by person: slots of `Person.shades`.
_SHADE_SLOTS = {"hair": 0, "headwear": 1, "scarf": 2, "upper": 3, "upper2": 4, "lower": 5, "shoes": 6, "bag": 7}
_SHADES_OF_GROUP = {
    "hair": (0,),
    "headwear": (1,),
    "scarf": (2,),
    "upper colours": (3, 4),
    "lower": (5,),
    "shoes": (6,),
    "bag": (7,),
}


@dataclasses.dataclass(frozen=True)
class Person:
    """Attributes of a person; what is absent ("none") has the colour "none" too.

    `upper_colour2` is the second colour of a pattern ("none" if plain); `shades` are RGB offsets of the garments'
    colours, which no caption tells.
    """

    hair_colour: str
    hair_style: str
    headwear: str
    headwear_colour: str
    scarf_colour: str
    upper: str
    upper_colour: str
    upper_colour2: str
    upper_pattern: str
    lower: str
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    build: str
    height: str
    skin: str
    shades: tuple[tuple[int, int, int], ...]

    def attributes(self) -> dict[str, str]:
        """The named attributes, without the shades."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "shades"}


@dataclasses.dataclass(frozen=True)
class Camera:
    """How a camera sees: colour `gain` (RGB), `exposure`, `contrast`, `blur` (px), `noise` (grey levels), scene."""

    gain: tuple[float, float, float]
    exposure: float
    contrast: float
    blur: float
    noise: float
    scene: str
    wall: tuple[int, int, int]
    floor: tuple[int, int, int]
    seed: int


@dataclasses.dataclass(frozen=True)
class Occluder:
    """Something in front of the person; `reach` in 0..1 is how far it comes into the picture."""

    kind: str
    seed: int
    reach: float


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture of a person. `swing`, `arm` in -1..1 move the limbs, `facing` is -1 or 1, offsets in px."""

    view: str
    swing: float
    arm: float
    facing: int
    scale: float
    dx: float
    dy: float
    camera: Camera
    occluder: Occluder | None
    seed: int


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


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A generator of random numbers named by a path; equal on every machine and in every process."""
    words = [seed] + [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path]
    return np.random.Generator(np.random.PCG64(words))


# ---------------------------------------------------------------------------------------------------- people
def _pick(rng: np.random.Generator, values, weights=None) -> str:
    values = tuple(values)
    if weights is None:
        return values[int(rng.integers(len(values)))]
    return values[int(np.searchsorted(np.cumsum(weights) / sum(weights), rng.random(), side="right"))]


def _draw_group(rng: np.random.Generator, group: str) -> dict[str, str]:
    """Values of one attribute group, drawn independently of the others."""
    if group == "hair":
        style = _pick(rng, HAIR_STYLES, (5, 5, 2, 3, 2, 1))
        return {"hair_style": style, "hair_colour": "none" if style == "bald" else _pick(rng, HAIR_COLOURS)}
    if group in ("headwear", "bag"):
        kind = _pick(rng, HEADWEAR, (5, 2, 2, 1, 1)) if group == "headwear" else _pick(rng, BAGS, (3, 3, 3, 2, 1))
        return {group: kind, f"{group}_colour": "none" if kind == "none" else _pick(rng, COLOURS)}
    if group == "scarf":
        return {"scarf_colour": "none" if rng.random() < 0.75 else _pick(rng, COLOURS)}
    if group == "upper kind":
        return {"upper": _pick(rng, UPPERS)}
    if group == "upper colours":
        first, pattern = _pick(rng, COLOURS), _pick(rng, PATTERNS, (5, 3, 2, 2, 3))
        second = "none" if pattern == "plain" else _pick(rng, [c for c in COLOURS if _far_apart(c, first)])
        return {"upper_colour": first, "upper_colour2": second, "upper_pattern": pattern}
    if group == "lower":
        return {"lower": _pick(rng, LOWERS, (5, 2, 2, 1)), "lower_colour": _pick(rng, COLOURS)}
    if group == "shoes":
        return {"shoes": _pick(rng, SHOES), "shoes_colour": _pick(rng, COLOURS)}
    if group == "body":
        return {"build": _pick(rng, BUILDS), "height": _pick(rng, HEIGHTS)}
    return {"skin": _pick(rng, SKINS)}


def _far_apart(a: str, b: str) -> bool:
    """Whether a pattern in these two colours can be seen."""
    return sum(abs(x - y) for x, y in zip(COLOURS[a], COLOURS[b])) > 150


def _new_person(rng: np.random.Generator) -> Person:
    values = {}
    for group in GROUPS:
        values.update(_draw_group(rng, group))
    shades = tuple(tuple(int(v) for v in rng.integers(-14, 15, 3)) for _ in _SHADE_SLOTS)
    return Person(**values, shades=shades)


def _sibling(first: Person, rng: np.random.Generator) -> Person:
    """`first` with `SIBLING_CHANGES` attribute groups drawn anew, each to a different value."""
    values, shades = first.attributes(), list(first.shades)
    for number in rng.choice(len(GROUPS), SIBLING_CHANGES, replace=False):
        group = tuple(GROUPS)[int(number)]
        drawn = _draw_group(rng, group)
        while all(values[k] == v for k, v in drawn.items()):
            drawn = _draw_group(rng, group)
        values.update(drawn)
        for slot in _SHADES_OF_GROUP.get(group, ()):
            shades[slot] = tuple(int(v) for v in rng.integers(-14, 15, 3))
    return Person(**values, shades=tuple(shades))


def differing_groups(a: Person, b: Person) -> tuple[str, ...]:
    """Names of the attribute groups in which two people differ."""
    return tuple(g for g, names in GROUPS.items() if any(getattr(a, n) != getattr(b, n) for n in names))


@functools.lru_cache(maxsize=512)
def family(seed: int, population: str, number: int) -> tuple[Person, ...]:
    """The `FAMILY_SIZE` siblings of a family; any two differ in at least two attribute groups."""
    members = [_new_person(generator(seed, population, "family", number))]
    rng = generator(seed, population, "siblings", number)
    while len(members) < FAMILY_SIZE:
        candidate = _sibling(members[0], rng)
        if all(len(differing_groups(candidate, m)) >= 2 for m in members):
            members.append(candidate)
    return tuple(members)


def person(seed: int, population: str, index: int) -> Person:
    """Person `index` (from 0) of a population; `index // FAMILY_SIZE` is the family."""
    return family(seed, population, index // FAMILY_SIZE)[index % FAMILY_SIZE]


# ---------------------------------------------------------------------------------------------------- cameras
SCENES = ("brick", "tiles", "grass", "shop", "road", "concrete", "station", "hall")
# The first cameras are chosen by hand, so that six of them surely look different; later ones are drawn.
_CAMERAS = (
    Camera((1.00, 1.00, 1.00), 1.00, 1.00, 0.25, 3, "concrete", (150, 150, 146), (118, 116, 112), 1),
    Camera((1.16, 1.00, 0.80), 0.92, 1.00, 0.50, 5, "brick", (150, 92, 74), (128, 116, 104), 2),
    Camera((0.84, 0.98, 1.18), 0.78, 0.90, 0.40, 7, "station", (110, 124, 140), (84, 90, 98), 3),
    Camera((0.94, 1.10, 0.90), 1.08, 1.08, 0.30, 4, "grass", (120, 150, 110), (92, 134, 70), 4),
    Camera((1.04, 0.98, 1.08), 0.62, 0.86, 0.70, 10, "road", (96, 98, 108), (70, 70, 76), 5),
    Camera((1.06, 1.04, 0.98), 1.20, 0.84, 0.60, 5, "hall", (206, 200, 188), (186, 176, 158), 6),
    Camera((1.00, 0.94, 0.86), 0.86, 1.16, 0.90, 4, "shop", (140, 120, 100), (120, 108, 98), 7),
    Camera((0.90, 1.02, 1.06), 1.16, 0.94, 0.35, 8, "tiles", (176, 190, 194), (150, 156, 160), 8),
)


@functools.lru_cache(maxsize=256)
def camera(number: int) -> Camera:
    """Camera `number` (from 0) of the data set."""
    return _CAMERAS[number] if number < len(_CAMERAS) else random_camera(generator(0, "camera", number))


def random_camera(rng: np.random.Generator) -> Camera:
    """A camera with cast, exposure, blur, noise and scene drawn from the range that the data set's cameras span."""
    wall = tuple(int(v) for v in rng.integers(60, 215, 1) + rng.integers(-30, 31, 3))
    floor = tuple(int(v) for v in rng.integers(60, 190, 1) + rng.integers(-25, 26, 3))
    gain = tuple(float(v) for v in rng.uniform(0.82, 1.18, 3))
    return Camera(
        gain,
        float(rng.uniform(0.62, 1.25)),
        float(rng.uniform(0.84, 1.16)),
        float(rng.uniform(0.2, 0.9)),
        float(rng.uniform(2, 10)),
        _pick(rng, SCENES),
        wall,
        floor,
        int(rng.integers(1 << 30)),
    )


def random_shot(rng: np.random.Generator, seen_by: Camera, occluded: float = 0.2, view: str | None = None) -> Shot:
    """A shot with everything but the camera drawn at random.

    Args:
        seen_by: the camera.
        occluded: probability in 0..1 of an occluder.
        view: one of `VIEWS`; None draws it.
    """
    occluder = None
    if rng.random() < occluded:
        occluder = Occluder(_pick(rng, OCCLUDERS), int(rng.integers(1 << 30)), float(rng.uniform(0, 1)))
    return Shot(
        view=view or _pick(rng, VIEWS, (4, 3, 3)),
        swing=float(rng.uniform(-1, 1)),
        arm=float(rng.uniform(-1, 1)),
        facing=1 if rng.random() < 0.5 else -1,
        scale=float(rng.uniform(0.93, 1.06)),
        dx=float(rng.uniform(-2.5, 2.5)),
        dy=float(rng.uniform(-2.5, 2.5)),
        camera=seen_by,
        occluder=occluder,
        seed=int(rng.integers(1 << 30)),
    )


# ---------------------------------------------------------------------------------------------------- canvas
class _Canvas:
    """A picture and its number map, drawn together; coordinates in px of a 96x48 picture."""

    def __init__(self, image: Image.Image, scale: tuple[float, float]):
        self.image, self.kx, self.ky = image, scale[0], scale[1]
        self.numbers = Image.new("L", image.size)
        self._ink, self._numbers_ink = ImageDraw.Draw(image), ImageDraw.Draw(self.numbers)

    def xy(self, points) -> list[tuple[float, float]]:
        return [(x * self.kx, y * self.ky) for x, y in points]

    def polygon(self, points, fill, number: int) -> None:
        """`fill`: an RGB colour, or a picture of the canvas's size to show through the polygon."""
        points = self.xy(points)
        self._numbers_ink.polygon(points, fill=number)
        if isinstance(fill, tuple):
            self._ink.polygon(points, fill=fill)
        else:
            stencil = Image.new("L", self.image.size)
            ImageDraw.Draw(stencil).polygon(points, fill=255)
            self.image.paste(fill, (0, 0), stencil)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: tuple, number: int) -> None:
        box = self.xy([(cx - rx, cy - ry), (cx + rx, cy + ry)])
        self._numbers_ink.ellipse(box, fill=number)
        self._ink.ellipse(box, fill=fill)

    def limb(self, points, widths, fill, number: int) -> None:
        """A chain of segments whose width runs through `widths`."""
        for (x0, y0), (x1, y1), w0, w1 in zip(points, points[1:], widths, widths[1:]):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = (y1 - y0) / length / 2, (x0 - x1) / length / 2
            self.polygon(
                [
                    (x0 + nx * w0, y0 + ny * w0),
                    (x1 + nx * w1, y1 + ny * w1),
                    (x1 - nx * w1, y1 - ny * w1),
                    (x0 - nx * w0, y0 - ny * w0),
                ],
                fill,
                number,
            )
        for (x, y), w in zip(points[1:-1], widths[1:-1]):
            if isinstance(fill, tuple):
                self.ellipse(x, y, w / 2, w / 2, fill, number)


def _darker(colour: tuple, by: float = 0.75) -> tuple:
    return tuple(int(v * by) for v in colour)


@functools.lru_cache(maxsize=128)
def _scene(seen: Camera, width: int, height: int) -> Image.Image:
    """The camera's surroundings, four pictures wide: a shot looks at a piece of it."""
    rng = generator(seen.seed, "scene")
    image = Image.new("RGB", (width * 4, height), seen.wall)
    ink, u = ImageDraw.Draw(image), height / 96
    horizon = int(height * rng.uniform(0.6, 0.8))

    def vary(colour, by=18):
        return tuple(int(np.clip(v + d, 0, 255)) for v, d in zip(colour, rng.integers(-by, by + 1, 3)))

    if seen.scene == "brick":
        for row, y in enumerate(np.arange(0, horizon, 5 * u)):
            for x in np.arange(-(row % 2) * 5 * u, width * 4, 10 * u):
                ink.rectangle([x, y, x + 9 * u, y + 4 * u], fill=vary(seen.wall))
    elif seen.scene == "shop":
        for x in np.arange(0, width * 4, 30 * u):
            ink.rectangle([x + 2 * u, 8 * u, x + 26 * u, horizon - 8 * u], fill=vary((90, 110, 130), 60))
            ink.rectangle([x, 0, x + 30 * u, 6 * u], fill=vary(_darker(seen.wall), 60))
    elif seen.scene in ("station", "hall"):
        for x in np.arange(0, width * 4, 22 * u):
            ink.rectangle([x, 0, x + 5 * u, horizon], fill=vary(_darker(seen.wall, 0.8)))
        ink.rectangle([0, 14 * u, width * 4, 20 * u], fill=vary(seen.wall, 50))
    elif seen.scene == "tiles":
        for y in np.arange(0, horizon, 12 * u):
            for x in np.arange(0, width * 4, 12 * u):
                ink.rectangle([x, y, x + 11 * u, y + 11 * u], fill=vary(seen.wall, 12))
    elif seen.scene == "grass":
        for _ in range(50):
            x, y, r = rng.uniform(0, width * 4), rng.uniform(0, horizon), rng.uniform(6, 18) * u
            ink.ellipse([x - r, y - r, x + r, y + r], fill=vary((70, 110, 60), 30))
    elif seen.scene == "road":
        for x in np.arange(0, width * 4, 40 * u):
            ink.rectangle([x, rng.uniform(0, 30) * u, x + rng.uniform(14, 36) * u, horizon], fill=vary(seen.wall, 40))
    else:
        for _ in range(8):
            x = rng.uniform(0, width * 4)
            ink.rectangle([x, 0, x + rng.uniform(4, 40) * u, horizon], fill=vary(seen.wall, 14))
    ink.rectangle([0, horizon, width * 4, height], fill=seen.floor)
    for _ in range(24):
        x, y = rng.uniform(0, width * 4), rng.uniform(horizon, height)
        ink.rectangle([x, y, x + rng.uniform(8, 50) * u, y + rng.uniform(1, 3) * u], fill=vary(seen.floor))
    return image


def _texture(p: Person, size: tuple[int, int], scale: tuple[float, float], split: float) -> tuple | Image.Image:
    """Fill of the upper garment: a colour, or a picture with the pattern; `split`: where two-tone changes."""
    first = _shaded(p, "upper", COLOURS[p.upper_colour])
    if p.upper_pattern == "plain":
        return first
    second, (width, height), (kx, ky) = _shaded(p, "upper2", COLOURS[p.upper_colour2]), size, scale
    image = Image.new("RGB", size, first)
    ink = ImageDraw.Draw(image)
    if p.upper_pattern == "striped":
        for y in np.arange(0.0, height, 6 * ky):
            ink.rectangle([0, y, width, y + 2.8 * ky], fill=second)
    elif p.upper_pattern == "two-tone":
        ink.rectangle([0, split * ky, width, height], fill=second)
    elif p.upper_pattern == "checked":
        for row, y in enumerate(np.arange(0.0, height, 4 * ky)):
            for x in np.arange((row % 2) * 4 * kx, width, 8 * kx):
                ink.rectangle([x, y, x + 4 * kx - 1, y + 4 * ky - 1], fill=second)
    else:
        for row, y in enumerate(np.arange(0.0, height, 4.5 * ky)):
            for x in np.arange((row % 2) * 2.75 * kx, width, 5.5 * kx):
                ink.ellipse([x - 1.4 * kx, y - 1.4 * ky, x + 1.4 * kx, y + 1.4 * ky], fill=second)
    return image


def _shaded(p: Person, slot: str, colour: tuple) -> tuple[int, int, int]:
    return tuple(min(255, max(0, v + d)) for v, d in zip(colour, p.shades[_SHADE_SLOTS[slot]]))


# ---------------------------------------------------------------------------------------------------- figure
def _draw_person(canvas: _Canvas, p: Person, shot: Shot) -> None:
    """Draw the person onto the canvas, back to front, numbering pixels by `PARTS`."""
    u = 0.985 * HEIGHTS[p.height] * shot.scale
    wide = BUILDS[p.build] * u
    cx, feet = 24 + shot.dx, 91.5 + shot.dy + 1.5 * (HEIGHTS[p.height] - 1) * 40
    side, back, d = shot.view == "side", shot.view == "back", shot.facing
    crotch, waist, shoulder, chin = feet - 38 * u, feet - 44 * u, feet - 66 * u, feet - 69.5 * u
    head_y, head_rx, head_ry = feet - 75.3 * u, (5.0 if not side else 5.3) * u, 6.4 * u
    half = {"shoulder": 9.2, "waist": 7.0, "hip": 7.8} if not side else {"shoulder": 5.4, "waist": 5.2, "hip": 5.6}
    sh, wa, hi = half["shoulder"] * wide, half["waist"] * wide, half["hip"] * wide

    skin = SKINS[p.skin]
    hair = None if p.hair_style == "bald" else _shaded(p, "hair", HAIR_COLOURS[p.hair_colour])
    lower = _shaded(p, "lower", COLOURS[p.lower_colour])
    shoes = _shaded(p, "shoes", COLOURS[p.shoes_colour])
    bag = _shaded(p, "bag", COLOURS[p.bag_colour]) if p.bag != "none" else None
    upper = _texture(p, canvas.image.size, (canvas.kx, canvas.ky), shoulder + 11 * u)
    upper_plain = _shaded(p, "upper", COLOURS[p.upper_colour])
    # A shade of its own keeps a plain sleeve apart from the body behind it.
    sleeves = _darker(upper_plain, 0.86) if p.upper_pattern == "plain" else upper
    # A person carries the bag on the same side of the body, so it changes sides with the view.
    hand = -d if back else d

    # legs and shoes
    if side:
        ankles = [(cx - 8 * u * shot.swing, feet - 3 * u), (cx + 8 * u * shot.swing, feet - 3 * u)]
        hips = [(cx, crotch)] * 2
        lift = (0.0, 0.0)
    else:
        ankles = [(cx - 4.2 * wide, feet - 3 * u), (cx + 4.2 * wide, feet - 3 * u)]
        hips = [(cx - 3.7 * wide, crotch), (cx + 3.7 * wide, crotch)]
        lift = (2.4 * u * max(shot.swing, 0), 2.4 * u * max(-shot.swing, 0))
    if p.bag == "suitcase":
        x = cx + hand * (13 if side else 14.5) * u
        canvas.limb(
            [(x - hand * 2 * u, crotch + 2 * u), (x, feet - 20 * u)], (1.2 * u, 1.2 * u), (60, 60, 64), _PART["bag"]
        )
        canvas.polygon(
            [(x - 4.5 * u, feet - 20 * u), (x + 4.5 * u, feet - 20 * u), (x + 4.5 * u, feet), (x - 4.5 * u, feet)],
            bag,
            _PART["bag"],
        )
        canvas.limb(
            [(x - 4.5 * u, feet - 10 * u), (x + 4.5 * u, feet - 10 * u)], (1.0 * u, 1.0 * u), _darker(bag), _PART["bag"]
        )
    for number, ((hx, hy), (ax, ay), up) in enumerate(zip(hips, ankles, lift)):
        ay -= up
        knee = ((hx + ax) / 2 + (1.5 * d * u if side else 0), (hy + ay) / 2)
        shade = 0.82 if side and number == 0 else 1.0
        bare = p.lower in ("shorts", "skirt")
        colour = _darker(skin if bare else lower, shade)
        canvas.limb(
            [(hx, hy), knee, (ax, ay)],
            (6.6 * wide, (4.4 if bare else 5.4) * wide, (3.2 if bare else 4.6) * wide),
            colour,
            _PART["legs" if bare else "lower"],
        )
        if p.lower == "shorts":
            canvas.limb(
                [(hx, hy - 3 * u), (knee[0], knee[1] - 1 * u)],
                (7.2 * wide, 7.0 * wide),
                _darker(lower, shade),
                _PART["lower"],
            )
        toe = 5.2 * d * u if side else 0
        sole = ay + 3.4 * u
        if p.shoes == "boots":
            canvas.limb([(ax, ay - 8 * u), (ax, ay + 1 * u)], (5.0 * wide, 5.2 * wide), shoes, _PART["shoes"])
        if side:
            canvas.polygon(
                [
                    (ax - 2.6 * d * u, ay - 0.5 * u),
                    (ax + 2.0 * d * u, ay - 0.5 * u),
                    (ax + toe, sole - 1.4 * u),
                    (ax + toe, sole),
                    (ax - 2.8 * d * u, sole),
                ],
                shoes,
                _PART["shoes"],
            )
        else:
            canvas.ellipse(ax + (ax - cx) * 0.12, ay + 1.4 * u, 3.3 * u, 2.4 * u, shoes, _PART["shoes"])
        if p.shoes == "trainers":
            start, end = (ax - 2.8 * d * u, ax + toe) if side else (ax - 3.0 * u, ax + 3.0 * u)
            canvas.limb(
                [(start, sole - 0.2 * u), (end, sole - 0.2 * u)], (1.5 * u, 1.5 * u), (240, 240, 240), _PART["shoes"]
            )
    canvas.polygon(
        [(cx - hi, waist), (cx + hi, waist), (cx + hi, crotch + 2 * u), (cx - hi, crotch + 2 * u)],
        lower,
        _PART["lower"],
    )
    if p.lower in ("skirt", "long skirt"):
        hem, flare = (feet - 21 * u, 1.35) if p.lower == "skirt" else (feet - 7 * u, 1.5)
        spread = hi * flare + (3.5 * u * abs(shot.swing) if side else 0)
        canvas.polygon(
            [(cx - hi, waist), (cx + hi, waist), (cx + spread, hem), (cx - spread, hem)], lower, _PART["lower"]
        )

    # what hangs behind the body
    if p.hair_style == "long" and not back:
        canvas.polygon(
            [
                (cx - head_rx - 0.8 * u, head_y),
                (cx + head_rx + 0.8 * u, head_y),
                (cx + (head_rx + 1.2 * u if not side or d < 0 else 0), shoulder + 6 * u),
                (cx - (head_rx + 1.2 * u if not side or d > 0 else 0), shoulder + 6 * u),
            ],
            hair,
            _PART["hair"],
        )
    if p.bag == "backpack" and side:
        x = cx - d * (sh + 3.2 * u)
        canvas.polygon(
            [
                (x - 4.4 * u, shoulder + 1 * u),
                (x + 4.4 * u, shoulder + 1 * u),
                (x + 4.4 * u, waist),
                (x - 4.4 * u, waist),
            ],
            bag,
            _PART["bag"],
        )

    # far arm, torso, near arm
    sleeve = {"t-shirt": 0.5, "vest": 0.0}.get(p.upper, 1.0)

    def arm(sx: float, swing: float, out: float) -> tuple[float, float]:
        elbow = (sx + out * 2.2 * u + swing * 3.5 * u, shoulder + 12 * u)
        wrist = (elbow[0] + out * 0.6 * u + swing * 4.5 * u, shoulder + 23 * u)
        top = (sx, shoulder + 2.2 * u)
        canvas.limb([top, elbow, wrist], (4.2 * u, 3.4 * u, 2.8 * u), skin, _PART["arms"])
        canvas.ellipse(wrist[0], wrist[1] + 1.2 * u, 1.8 * u, 1.9 * u, skin, _PART["arms"])
        if sleeve:
            points = [top, elbow] + ([wrist] if sleeve == 1.0 else [])
            canvas.limb(points, (4.9 * u, 4.6 * u, 3.9 * u)[: len(points)], sleeves, _PART["sleeves"])
        return wrist

    if side:
        arm(cx - 0.5 * u, -shot.arm, 0.0)
    hem = {"coat": feet - 25 * u, "vest": crotch + 0.5 * u, "jacket": crotch + 1 * u}.get(p.upper, crotch + 2.5 * u)
    skirts = hi * (1.22 if p.upper == "coat" else 1.06)
    neck = 2.6 * u
    canvas.polygon(
        [
            (cx - neck, chin - 1 * u),
            (cx + neck, chin - 1 * u),
            (cx + neck, shoulder + 1 * u),
            (cx - neck, shoulder + 1 * u),
        ],
        skin,
        _PART["face"],
    )
    canvas.polygon(
        [
            (cx - neck, shoulder - 0.8 * u),
            (cx + neck, shoulder - 0.8 * u),
            (cx + sh, shoulder + 1.6 * u),
            (cx + wa * 1.02, waist - 2 * u),
            (cx + skirts, hem),
            (cx - skirts, hem),
            (cx - wa * 1.02, waist - 2 * u),
            (cx - sh, shoulder + 1.6 * u),
        ],
        upper,
        _PART["upper"],
    )
    wrists = []
    if not side:
        for s in (-1, 1):
            wrists.append(arm(cx + s * (sh - 0.4 * u), s * 0.25 * shot.arm, s))
    dark, light = _darker(upper_plain, 0.55), tuple(min(255, int(v * 0.5 + 128)) for v in upper_plain)
    if not back and not side:
        if p.upper in ("jacket", "coat"):
            inner = light if sum(upper_plain) < 380 else dark
            canvas.polygon(
                [(cx - 2.6 * u, shoulder - 0.8 * u), (cx + 2.6 * u, shoulder - 0.8 * u), (cx, shoulder + 10 * u)],
                inner,
                _PART["upper"],
            )
            canvas.limb([(cx, shoulder + 8 * u), (cx, hem)], (1.0 * u, 1.0 * u), inner, _PART["upper"])
        elif p.upper == "shirt":
            for y in np.arange(shoulder + 4 * u, hem - 2 * u, 5 * u):
                canvas.ellipse(cx, y, 0.8 * u, 0.8 * u, light if sum(upper_plain) < 380 else dark, _PART["upper"])
        elif p.upper == "hoodie":
            canvas.polygon(
                [
                    (cx - 5 * u, waist - 1 * u),
                    (cx + 5 * u, waist - 1 * u),
                    (cx + 6.5 * u, crotch),
                    (cx - 6.5 * u, crotch),
                ],
                _darker(upper_plain, 0.7),
                _PART["upper"],
            )
        elif p.upper == "vest":
            canvas.polygon(
                [(cx - 3 * u, shoulder - 1 * u), (cx + 3 * u, shoulder - 1 * u), (cx, shoulder + 6 * u)],
                skin,
                _PART["face"],
            )
    if p.upper == "hoodie":
        x = cx - d * 3.5 * u if side else cx
        canvas.ellipse(
            x,
            shoulder + (2.0 if back else 0) * u,
            (4.5 if side else 7.0) * u,
            (4.6 if back else 2.6) * u,
            _darker(upper_plain, 0.8),
            _PART["upper"],
        )
    if side:
        wrists.append(arm(cx + 0.3 * u, shot.arm, 0.0))

    # bags in front of the body
    if p.bag == "backpack" and not side:
        if back:
            canvas.polygon(
                [
                    (cx - 7 * u, shoulder + 1.5 * u),
                    (cx + 7 * u, shoulder + 1.5 * u),
                    (cx + 7.6 * u, waist),
                    (cx - 7.6 * u, waist),
                ],
                bag,
                _PART["bag"],
            )
            canvas.limb(
                [(cx - 5 * u, shoulder + 13 * u), (cx + 5 * u, shoulder + 13 * u)],
                (1.2 * u, 1.2 * u),
                _darker(bag),
                _PART["bag"],
            )
        else:
            for s in (-1, 1):
                canvas.limb(
                    [(cx + s * 4.5 * u, shoulder - 0.5 * u), (cx + s * 6.2 * u, shoulder + 15 * u)],
                    (2.6 * u, 2.4 * u),
                    bag,
                    _PART["bag"],
                )
    elif p.bag == "backpack":
        canvas.limb(
            [(cx - d * 2 * u, shoulder), (cx + d * 1.5 * u, shoulder + 6 * u), (cx - d * 3 * u, shoulder + 14 * u)],
            (2.0 * u, 2.0 * u, 2.0 * u),
            bag,
            _PART["bag"],
        )
    elif p.bag == "shoulder bag":
        x = cx + hand * (hi + (0 if side else 2.5 * u))
        canvas.limb([(cx - hand * (sh * 0.6), shoulder), (x, waist + 1 * u)], (1.8 * u, 1.8 * u), bag, _PART["bag"])
        canvas.polygon(
            [(x - 5 * u, waist), (x + 5 * u, waist), (x + 5 * u, waist + 10 * u), (x - 5 * u, waist + 10 * u)],
            bag,
            _PART["bag"],
        )
        canvas.limb(
            [(x - 5 * u, waist + 4 * u), (x + 5 * u, waist + 4 * u)], (1.0 * u, 1.0 * u), _darker(bag), _PART["bag"]
        )
    elif p.bag == "handbag":
        x, y = wrists[0] if side or hand < 0 else wrists[1]
        x, y = x + (0 if side else hand * 1.0 * u), y + 5 * u
        canvas.limb([(x - 3 * u, y), (x, y - 4.5 * u), (x + 3 * u, y)], (1.1 * u,) * 3, bag, _PART["bag"])
        canvas.polygon(
            [(x - 4.2 * u, y), (x + 4.2 * u, y), (x + 5 * u, y + 9 * u), (x - 5 * u, y + 9 * u)], bag, _PART["bag"]
        )

    _draw_head(canvas, p, shot, u, cx, head_y, head_rx, head_ry, skin, hair)
    if p.scarf_colour != "none":
        scarf = _shaded(p, "scarf", COLOURS[p.scarf_colour])
        canvas.ellipse(cx, chin + 2.4 * u, (4.6 if side else 6.0) * u, 3.2 * u, scarf, _PART["scarf"])
        if not back:
            x = cx + d * 2.4 * u
            canvas.polygon(
                [
                    (x - 2 * u, chin + 2 * u),
                    (x + 2 * u, chin + 2 * u),
                    (x + 2.2 * u, shoulder + 12 * u),
                    (x - 2.2 * u, shoulder + 12 * u),
                ],
                scarf,
                _PART["scarf"],
            )
        if p.hair_style == "long" and back and hair:
            canvas.polygon(
                [(cx - 5 * u, head_y), (cx + 5 * u, head_y), (cx + 5.4 * u, shoulder), (cx - 5.4 * u, shoulder)],
                hair,
                _PART["hair"],
            )


def _draw_head(
    canvas: _Canvas,
    p: Person,
    shot: Shot,
    u: float,
    cx: float,
    y: float,
    rx: float,
    ry: float,
    skin: tuple,
    hair: tuple | None,
) -> None:
    """Head, hair and head-wear around the centre (cx, y) with radii rx, ry."""
    side, back, d = shot.view == "side", shot.view == "back", shot.facing
    if hair and p.hair_style == "curly":
        canvas.ellipse(cx - (1.2 * d * u if side else 0), y - 1.4 * u, rx + 2.6 * u, ry + 1.4 * u, hair, _PART["hair"])
    canvas.ellipse(cx, y, rx, ry, skin, _PART["face"])
    if hair:
        if back:
            canvas.ellipse(cx, y - 0.4 * u, rx + 0.5 * u, ry + 0.2 * u, hair, _PART["hair"])
            if p.hair_style == "long":
                canvas.polygon(
                    [(cx - rx, y), (cx + rx, y), (cx + rx + 1.0 * u, y + 15 * u), (cx - rx - 1.0 * u, y + 15 * u)],
                    hair,
                    _PART["hair"],
                )
        else:
            # The face stays free below the fringe, in a side view on the side the person looks to.
            arc = [
                (cx + (rx + 0.5 * u) * math.cos(a), y - 0.3 * u + (ry + 0.5 * u) * math.sin(a))
                for a in np.linspace(math.pi, 2 * math.pi, 9)
            ]
            canvas.polygon(
                arc + [(cx + rx, y - 1.2 * u), (cx, y - 2.6 * u), (cx - rx, y - 1.2 * u)], hair, _PART["hair"]
            )
            if side:
                canvas.polygon(
                    [
                        (cx - d * (rx + 0.4 * u), y - 2 * u),
                        (cx - d * 0.4 * u, y - 2 * u),
                        (cx - d * 1.6 * u, y + 4.8 * u),
                        (cx - d * (rx * 0.8), y + 4.8 * u),
                    ],
                    hair,
                    _PART["hair"],
                )
        if p.hair_style == "ponytail" and (side or back):
            x = cx - d * (rx + 0.6 * u) if side else cx
            canvas.limb(
                [(x, y - 1 * u), (x - (1.6 * d * u if side else 0), y + 6 * u), (x, y + 13 * u)],
                (2.6 * u, 4.0 * u, 2.0 * u),
                hair,
                _PART["hair"],
            )
            canvas.ellipse(x, y - 0.6 * u, 1.4 * u, 1.2 * u, _darker(hair, 0.5), _PART["hair"])
        if p.hair_style == "bun" and p.headwear == "none":
            canvas.ellipse(cx - (d * 3.4 * u if side else 0), y - ry - 0.8 * u, 3.2 * u, 2.8 * u, hair, _PART["hair"])
    if not back:
        eyes = [(cx + d * 2.8 * u, y - 0.2 * u)] if side else [(cx - 1.9 * u, y - 0.2 * u), (cx + 1.9 * u, y - 0.2 * u)]
        for x, ey in eyes:
            canvas.ellipse(x, ey, 0.75 * u, 0.75 * u, (30, 24, 22), _PART["face"])
        canvas.limb(
            [
                (cx + (d * 2.4 * u if side else -1.3 * u), y + 3.2 * u),
                (cx + (d * 4.4 * u if side else 1.3 * u), y + 3.2 * u),
            ],
            (0.8 * u, 0.8 * u),
            _darker(skin, 0.6),
            _PART["face"],
        )
    if p.headwear == "none":
        return
    colour, number = _shaded(p, "headwear", COLOURS[p.headwear_colour]), _PART["headwear"]
    low = {"cap": -1.8, "beanie": -1.4, "hat": -2.4, "helmet": 0.6}[p.headwear] * u
    big = {"cap": 0.7, "beanie": 0.9, "hat": 0.4, "helmet": 1.7}[p.headwear] * u
    dome = [
        (cx + (rx + big) * math.cos(a), y + low + (ry + low + big) * math.sin(a))
        for a in np.linspace(math.pi, 2 * math.pi, 11)
    ]
    canvas.polygon(dome, colour, number)
    if p.headwear == "cap":
        if side:
            canvas.limb(
                [(cx, y + low), (cx + d * (rx + 4.2 * u), y + low + 0.6 * u)],
                (1.8 * u, 1.6 * u),
                _darker(colour),
                number,
            )
        elif not back:
            canvas.ellipse(cx, y + low, rx + 0.6 * u, 1.5 * u, _darker(colour), number)
    elif p.headwear == "beanie":
        canvas.limb(
            [(cx - rx - 0.7 * u, y + low - 0.4 * u), (cx + rx + 0.7 * u, y + low - 0.4 * u)],
            (2.4 * u, 2.4 * u),
            _darker(colour, 0.8),
            number,
        )
        canvas.ellipse(cx, y - ry - 1.6 * u, 1.7 * u, 1.7 * u, _darker(colour, 0.8), number)
    elif p.headwear == "hat":
        canvas.ellipse(cx, y + low, rx + 4.6 * u, 1.7 * u, colour, number)
        canvas.limb(
            [(cx - rx, y + low - 1.6 * u), (cx + rx, y + low - 1.6 * u)],
            (1.3 * u, 1.3 * u),
            _darker(colour, 0.5),
            number,
        )
    else:
        canvas.limb([(cx, y - ry - 0.4 * u), (cx, y + low - 3 * u)], (2.0 * u, 2.0 * u), _darker(colour, 0.6), number)


# ---------------------------------------------------------------------------------------------------- occluders
def _draw_occluder(canvas: _Canvas, occluder: Occluder, cx: float) -> None:
    """Draw what stands in front; pixels it covers get number 1."""
    rng, reach = generator(occluder.seed, "occluder"), occluder.reach
    left = rng.random() < 0.5

    def tint(low=40, high=190):
        return tuple(int(v) for v in np.clip(rng.integers(low, high) + rng.integers(-35, 36, 3), 0, 255))

    colour = tint()
    if occluder.kind == "pole":
        x, w = cx + rng.uniform(-7, 7), 4 + 6 * reach
        canvas.polygon([(x - w / 2, -2), (x + w / 2, -2), (x + w / 2, 98), (x - w / 2, 98)], colour, 1)
        canvas.polygon([(x - w / 2, -2), (x - w / 4, -2), (x - w / 4, 98), (x - w / 2, 98)], _darker(colour), 1)
    elif occluder.kind == "box":
        top, w = 78 - 34 * reach, rng.uniform(22, 44)
        x = cx + rng.uniform(-10, 10)
        canvas.polygon([(x - w / 2, top), (x + w / 2, top), (x + w / 2, 98), (x - w / 2, 98)], colour, 1)
        for y in np.arange(top + 6, 98, 9):
            canvas.polygon(
                [(x - w / 2, y), (x + w / 2, y), (x + w / 2, y + 1.4), (x - w / 2, y + 1.4)], _darker(colour), 1
            )
    elif occluder.kind == "car":
        top, start = 74 - 26 * reach, -4 if left else 4
        roof = [(start + 6, top + 11), (start + 13, top), (start + 34, top), (start + 42, top + 11)]
        canvas.polygon(roof, colour, 1)
        canvas.polygon(
            [(start + 10, top + 10), (start + 15, top + 2), (start + 32, top + 2), (start + 37, top + 10)],
            (70, 84, 96),
            1,
        )
        canvas.polygon([(-6, top + 11), (54, top + 11), (54, 92), (-6, 92)], colour, 1)
        for x in (start + 6, start + 40):
            canvas.ellipse(x, 91, 7, 7, (26, 26, 28), 1)
    elif occluder.kind == "bush":
        top, base = 76 - 34 * reach, cx + rng.uniform(-9, 9)
        for _ in range(26):
            green = tuple(int(v) for v in np.array((46, 96, 44)) + rng.integers(-26, 27, 3))
            x, y, r = base + rng.uniform(-13, 13), rng.uniform(top, 100), rng.uniform(4, 8)
            canvas.ellipse(x, y, r, r, green, 1)
    elif occluder.kind == "fence":
        top = 74 - 40 * reach
        for y in (top, top + 18):
            canvas.polygon([(-2, y), (50, y), (50, y + 4), (-2, y + 4)], colour, 1)
        for x in np.arange(rng.uniform(-4, 2), 50, 8):
            canvas.polygon([(x, top - 3), (x + 3, top - 3), (x + 3, 98), (x, 98)], _darker(colour, 0.9), 1)
    else:
        other = _new_person(rng)
        shot = random_shot(rng, camera(0), occluded=0.0)
        away = (-1 if left else 1) * (17 - 8 * reach)
        shot = dataclasses.replace(shot, dx=cx - 24 + away, dy=3.0 + 6 * reach, scale=1.08 + 0.08 * reach)
        _draw_person(canvas, other, shot)


def draw(p: Person, shot: Shot, size: tuple[int, int] = DEFAULT_SIZE) -> Drawing:
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
    scale = (SUPERSAMPLE * width / 48, SUPERSAMPLE * height / 96)
    big = (SUPERSAMPLE * width, SUPERSAMPLE * height)
    rng = generator(shot.seed, "pixels")
    scene = _scene(shot.camera, *big)
    x = int(rng.integers(0, scene.width - big[0] + 1))
    canvas = _Canvas(scene.crop((x, 0, x + big[0], big[1])), scale)
    canvas.ellipse(24 + shot.dx, 91.5 + shot.dy, 13, 2.5, _darker(shot.camera.floor, 0.7), 0)
    _draw_person(canvas, p, shot)
    parts = np.asarray(canvas.numbers)[::SUPERSAMPLE, ::SUPERSAMPLE].copy()
    front = np.zeros_like(parts, dtype=bool)
    if shot.occluder is not None:
        before = _Canvas(canvas.image, scale)
        _draw_occluder(before, shot.occluder, 24 + shot.dx)
        front = np.asarray(before.numbers)[::SUPERSAMPLE, ::SUPERSAMPLE] > 0

    mask = np.where(front, np.where(parts > 0, 3, 1), np.where(parts > 0, 2, 0)).astype(np.uint8)
    return Drawing(_photograph(canvas.image, shot, rng, size), mask, parts, _places(parts, front, size))


def _photograph(image: Image.Image, shot: Shot, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """The camera's picture (H,W,3) uint8 of what stands before it."""
    seen = shot.camera
    image = image.reduce(SUPERSAMPLE)
    image = image.filter(ImageFilter.GaussianBlur(seen.blur * size[0] / 96 * rng.uniform(0.8, 1.2)))
    pixels = np.asarray(image, dtype=np.float32)
    # Light from one side: keeps flat polygons from giving a garment one exact value in all pictures.
    light = 1 + np.linspace(-0.12, 0.12, size[1], dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-1, 1))
    gain = np.asarray(seen.gain, dtype=np.float32) * np.float32(seen.exposure * rng.uniform(0.92, 1.08))
    pixels = (pixels * gain * light - 128) * np.float32(seen.contrast) + 128
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(seen.noise)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _places(parts: np.ndarray, front: np.ndarray, size: tuple[int, int]) -> dict[str, Place]:
    """Place of every attribute of which enough pixels are visible."""
    shown, least, places = np.where(front, 0, parts), MIN_VISIBLE_PIXELS * size[0] * size[1] / (96 * 48), {}
    for name, names in PLACES.items():
        numbers = [_PART[n] for n in names]
        seen = np.isin(shown, numbers)
        pixels = int(seen.sum())
        if pixels < least:
            continue
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        places[name] = Place(
            (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1),
            pixels,
            pixels / int(np.isin(parts, numbers).sum()),
        )
    return places


def cutout(p: Person, shot: Shot, size: tuple[int, int] = DEFAULT_SIZE) -> np.ndarray:
    """The person alone, in neutral light, for pasting: (H,W,4) uint8 RGBA, transparent where nobody stands."""
    height, width = size
    scale = (SUPERSAMPLE * width / 48, SUPERSAMPLE * height / 96)
    canvas = _Canvas(Image.new("RGB", (SUPERSAMPLE * width, SUPERSAMPLE * height), (128, 128, 128)), scale)
    _draw_person(canvas, p, shot)
    alpha = canvas.numbers.point(lambda v: 255 if v else 0).reduce(SUPERSAMPLE)
    return np.dstack([np.asarray(canvas.image.reduce(SUPERSAMPLE)), np.asarray(alpha)])
