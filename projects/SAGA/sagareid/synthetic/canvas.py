"""A picture and the number of what each of its pixels shows, drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .person import Colour, rgb

Point = tuple[float, float]


class Canvas:
    """Draws shapes into `image` and, with the same outline, their number into `numbers`.

    Coordinates and lengths are in pixels of a 96x48 picture (height, width); `scale` is the (x, y) factor from those
    to pixels of the image. A `fill` is a colour or, for polygons, a picture that shows through.
    """

    def __init__(self, image: Image.Image, scale: tuple[float, float]):
        self.image, self.scale = image, scale
        self.numbers = Image.new("L", image.size)
        self._ink, self._numbers_ink = ImageDraw.Draw(image), ImageDraw.Draw(self.numbers)

    def _in_pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.scale[0], y * self.scale[1]) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: Colour | Image.Image, number: int) -> None:
        corners = self._in_pixels(points)
        self._numbers_ink.polygon(corners, fill=number)
        if isinstance(fill, tuple):
            self._ink.polygon(corners, fill=fill)
        else:
            stencil = Image.new("L", self.image.size)
            ImageDraw.Draw(stencil).polygon(corners, fill=255)
            self.image.paste(fill, (0, 0), stencil)

    def trapezium(
        self, x: float, top: float, half_top: float, bottom: float, half_bottom: float, fill, number: int
    ) -> None:
        """A shape symmetric about `x`, whose half width goes from `half_top` at `top` to `half_bottom` at `bottom`."""
        self.polygon(
            [(x - half_top, top), (x + half_top, top), (x + half_bottom, bottom), (x - half_bottom, bottom)],
            fill,
            number,
        )

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, number: int) -> None:
        box = self._in_pixels([(x - rx, y - ry), (x + rx, y + ry)])
        self._numbers_ink.ellipse(box, fill=number)
        self._ink.ellipse(box, fill=fill)

    def limb(
        self, points: Sequence[Point], widths: float | Sequence[float], fill: Colour | Image.Image, number: int
    ) -> None:
        """A chain of segments with rounded joints; `widths` is the width at each point, or one width for all."""
        if not isinstance(widths, Sequence):
            widths = (widths,) * len(points)
        for (x0, y0), (x1, y1), w0, w1 in zip(points, points[1:], widths, widths[1:]):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = (y1 - y0) / length / 2, (x0 - x1) / length / 2  # half a unit across the segment
            corners = [
                (x0 + nx * w0, y0 + ny * w0),
                (x1 + nx * w1, y1 + ny * w1),
                (x1 - nx * w1, y1 - ny * w1),
                (x0 - nx * w0, y0 - ny * w0),
            ]
            self.polygon(corners, fill, number)
        if isinstance(fill, tuple):
            for (x, y), width in zip(points[1:-1], widths[1:-1]):
                self.ellipse(x, y, width / 2, width / 2, fill, number)


def darker(colour: Colour, by: float = 0.75) -> Colour:
    """`colour` with each channel multiplied by `by`."""
    return rgb(v * by for v in colour)
