"""Controlled occlusion of one picture: a region masked away, or another person in front. Pillow and numpy alone.

Everything random follows from a seed, the condition and a key (the picture's path inside the data root), never from the
level: a picture's occluder is the same object at every level and only covers more of the person, so curves over levels
are paired. The level is the share of the person's *visible* pixels that the occluder covers.

(H, W) picture. A silhouette comes from a label mask (2 visible, 3 hidden; see `synthetic.scene`) or, without one, is
the box.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = [
    "CONDITIONS",
    "FILLS",
    "MAX_LEVEL",
    "SHAPES",
    "VERSION",
    "Occluded",
    "Silhouette",
    "cut_out",
    "generator",
    "mask_region",
    "paste_person",
]

# Raise when the same seed, condition, key and level no longer give the same bytes: kept results carry the number.
VERSION = 1
CONDITIONS = ("mask", "distractor")
SHAPES = ("top", "middle", "bottom", "rectangle")
FILLS = ("grey", "mean", "noise", "black")
SIDES = ("left", "right", "below")
MAX_LEVEL = 0.8
# A pasted person is as tall as the one in the picture, times 1 to 1.15; larger by these steps where it would be too
# small to cover MAX_LEVEL.
TALLER, GROWTH, MAX_GROWTH = 0.15, 1.15, 4.0


@dataclass(frozen=True)
class Silhouette:
    """Where the person is.

    Attributes:
        visible: (H, W) bool, the pixels that show the person.
        whole: (H, W) bool, those and the pixels behind what stood in front already.
    """

    visible: np.ndarray
    whole: np.ndarray

    @classmethod
    def box(cls, size: tuple[int, int]) -> Silhouette:
        """The whole (height, width): a data set without masks."""
        everywhere = np.ones(size, bool)
        return cls(everywhere, everywhere)

    @classmethod
    def from_labels(cls, labels: np.ndarray) -> Silhouette:
        """The person in a label mask; the whole box where no pixel shows the person."""
        visible = labels == 2
        return cls(visible, visible | (labels == 3)) if visible.any() else cls.box(labels.shape)


@dataclass(frozen=True)
class Occluded:
    """A picture with its occluder.

    Attributes:
        image: RGB.
        occluder: (H, W) float32, how much of each pixel is the occluder's, 0..1.
        person: (H, W) float32, how much of each pixel still shows the person.
        share: of the person's visible pixels that the occluder really covers, 0..1.
    """

    image: Image.Image
    occluder: np.ndarray
    person: np.ndarray
    share: float

    @classmethod
    def of(cls, pixels: np.ndarray, occluder: np.ndarray, visible: np.ndarray) -> Occluded:
        """From (H, W, 3) uint8, the occluder and where the person was visible before it."""
        occluder = occluder.astype(np.float32)
        image = Image.fromarray(pixels)
        return cls(image, occluder, visible * (1 - occluder), float(occluder[visible].mean()))


def generator(seed: int, condition: str, key: str) -> np.random.Generator:
    """Random numbers for one picture under one condition; equal on every machine and in every process."""
    words = (zlib.crc32(text.encode(errors="surrogateescape")) for text in (condition, key))
    return np.random.Generator(np.random.PCG64([seed, *words]))


def _choose(rng: np.random.Generator, options: Sequence):
    return options[int(rng.random() * len(options))]


def _rows_and_columns(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


# ---- (a) identity signal absent ------------------------------------------------------------------------------------


def mask_region(
    image: Image.Image,
    person: Silhouette,
    level: float,
    rng: np.random.Generator,
    *,
    shapes: Sequence[str],
    fill: str | np.ndarray,
) -> Occluded:
    """Hide one contiguous region.

    Args:
        level: share of the visible person, 0 to 1; the region ends at the row, column or ring of pixels that comes
            nearest to it.
        shapes: one is drawn for the picture. top, middle, bottom: a band of rows across the whole width; rectangle:
            around a visible pixel of the person, one to three times as tall as wide, clipped at the borders.
        fill: grey (128), black, noise (uniform, every pixel and channel) or mean (the picture's mean colour, which
            leaves a trace of the person's); or (H, W, 3) uint8 of another picture.
    """
    height, width = person.visible.shape
    shape = _choose(rng, shapes)
    y, x = np.mgrid[:height, :width]
    start, tall, noise = rng.random(), 3 ** rng.random(), rng.random((height, width, 3))
    # `order`: the region of every level is {order <= some value}, so a larger level covers what a smaller one does
    if shape == "top":
        order = y
    elif shape == "bottom":
        order = height - 1 - y
    elif shape == "middle":
        rows = _rows_and_columns(person.whole)[0]
        # a centre that is off every row's and off halfway between two, so that rows join one at a time
        centre = int(rows.start + (0.3 + 0.4 * start) * (rows.stop - rows.start)) + 0.25
        order = np.abs(y - centre)
    elif shape == "rectangle":
        ys, xs = np.nonzero(person.visible)
        i = int(start * len(ys))
        order = np.maximum(np.abs(y - ys[i]) / tall, np.abs(x - xs[i]))
    else:
        raise ValueError(f"unknown shape {shape!r}; expected {', '.join(SHAPES)}")
    covered = _nearest_share(order, person.visible, level)
    pixels = np.array(image.convert("RGB"))
    pixels[covered] = _fill(fill, pixels, noise)[covered]
    return Occluded.of(pixels, covered, person.visible)


def _nearest_share(order: np.ndarray, visible: np.ndarray, level: float) -> np.ndarray:
    """{order <= value} for the value, or none at all, whose share of `visible` is nearest to the level."""
    values, counts = np.unique(order[visible], return_counts=True)
    shares = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    nearest = int(np.abs(shares - level).argmin())
    return order <= values[nearest - 1] if nearest else np.zeros(order.shape, bool)


def _fill(fill: str | np.ndarray, pixels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of what is put in the region's place."""
    if isinstance(fill, np.ndarray):
        return fill
    if fill == "noise":
        return (noise * 256).astype(np.uint8)
    colours = {"grey": 128, "black": 0, "mean": np.rint(pixels.mean((0, 1)))}
    if fill not in colours:
        raise ValueError(f"unknown fill {fill!r}; expected {', '.join(FILLS)}")
    return np.broadcast_to(np.asarray(colours[fill], np.uint8), pixels.shape)


# ---- (b) identity signal confused ----------------------------------------------------------------------------------


def cut_out(image: Image.Image, person: Silhouette) -> Image.Image:
    """RGBA of the visible person alone, cropped to it; of a box, the picture itself."""
    rows, columns = _rows_and_columns(person.visible)
    alpha = person.visible[rows, columns].astype(np.uint8) * 255
    return Image.fromarray(np.dstack([np.asarray(image.convert("RGB"))[rows, columns], alpha]))


def paste_person(
    image: Image.Image, person: Silhouette, level: float, rng: np.random.Generator, *, other: Image.Image
) -> Occluded:
    """Let another person step in front.

    The other is about as tall as the person, enters from the left, from the right or from below, and stops where the
    level is reached: at any higher level the same other stands further in. Between two whole pixels both pictures are
    blended, which makes the share exact.

    Args:
        level: share of the visible person, 0 to `MAX_LEVEL`.
        other: RGBA, as `cut_out` gives.
    """
    height, width = person.visible.shape
    rows, columns = _rows_and_columns(person.whole)
    side, taller, across, down = _choose(rng, SIDES), TALLER * rng.random(), rng.random() - 0.5, rng.random() - 0.5
    pixels = np.asarray(image.convert("RGB"), np.float32)
    scale = (rows.stop - rows.start) * (1 + taller) / other.height
    for _ in range(16):  # grows to more than MAX_GROWTH
        size = max(1, round(other.width * scale)), max(1, round(other.height * scale))
        layer = np.asarray(other.convert("RGBa").resize(size, Image.Resampling.BILINEAR), np.float32)
        # where it ends: its centre near the person's, so that growing covers more on all sides
        x = round((columns.start + columns.stop - size[0]) / 2 + 0.1 * across * (columns.stop - columns.start))
        y = round((rows.start + rows.stop - size[1]) / 2 + 0.1 * down * (rows.stop - rows.start))
        path = {
            "left": [(k, y) for k in range(-size[0], x + 1)],
            "right": [(k, y) for k in range(width, x - 1, -1)],
            "below": [(x, k) for k in range(height, y - 1, -1)],
        }[side]
        places = [_overlap((height, width), size, at) for at in path]
        alpha, visible = layer[..., 3] / 255, person.visible.astype(np.float32)
        shares = np.array([(visible[here] * alpha[there]).sum() for here, there in places]) / visible.sum()
        if shares.max() >= MAX_LEVEL or size[1] > MAX_GROWTH * height:
            break
        scale *= GROWTH
    stop = int((shares >= level).argmax()) if (shares >= level).any() else int(shares.argmax())
    before = max(stop - 1, 0)
    step = shares[stop] - shares[before]
    part = float(np.clip((level - shares[before]) / step, 0, 1)) if step > 0 else 1.0
    paint = np.zeros((height, width, 4), np.float32)
    for place, weight in ((before, 1 - part), (stop, part)):
        here, there = places[place]
        paint[here] += weight * layer[there]
    occluder = np.clip(paint[..., 3] / 255, 0, 1)
    result = np.rint(np.clip(pixels * (1 - occluder[..., None]) + paint[..., :3], 0, 255)).astype(np.uint8)
    return Occluded.of(result, occluder, person.visible)


def _overlap(size: tuple[int, int], other: tuple[int, int], at: tuple[int, int]):
    """Where a layer of (width, height) with its corner at (x, y) meets a picture of (height, width): slices of both."""
    (height, width), (w, h), (x, y) = size, other, at
    top, bottom, left, right = max(y, 0), min(y + h, height), max(x, 0), min(x + w, width)
    if bottom <= top or right <= left:
        return (slice(0, 0), slice(0, 0)), (slice(0, 0), slice(0, 0))
    return (slice(top, bottom), slice(left, right)), (slice(top - y, bottom - y), slice(left - x, right - x))
