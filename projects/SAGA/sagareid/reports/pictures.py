"""Pictures for people: tiles in rows and blocks, maps over images, curves.

The same blocks become a file by matplotlib (`draw`) or a part of a web page (`html.blocks`). (h, w) map, (H, W) image.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ..data.images import read_image
from ..files import printable, write_atomically

__all__ = [
    "INK",
    "LINES",
    "MARKS",
    "Block",
    "Mark",
    "Row",
    "Tile",
    "clean",
    "curves",
    "draw",
    "names_as_they_are",
    "open_small",
    "overlay",
]

LARGEST = 256  # pixels, of the longer side of a tile


class Mark(NamedTuple):
    """How a tile is marked, never by colour alone. Okabe and Ito's (2008) colours are safe for the colour-blind."""

    symbol: str
    colour: str
    line: str  # style of its frame, for matplotlib and CSS alike
    meaning: str


MARKS = {
    "query": Mark("", "#0072b2", "solid", "the query"),
    "right": Mark("✓", "#009e73", "solid", "the query's person"),
    "wrong": Mark("✗", "#d55e00", "dashed", "another person"),
}

# Colours and dashes of lines, legible on white and on black; and what `html.svg` turns into the colour of the text.
LINES: tuple[tuple[str, Any], ...] = (
    ("#2a7fc4", "-"),
    ("#d55e00", "--"),
    ("#009e73", "-."),
    ("#b5589a", ":"),
    ("#8c7a00", (0, (5, 1, 1, 1, 1, 1))),
)
INK = "#010203"


@dataclass(frozen=True)
class Tile:
    """A picture with a title.

    Attributes:
        mark: one of MARKS; empty for none.
        alt: what is to be seen, for those who do not see it; empty: the title says it.
    """

    picture: Image.Image
    title: str = ""
    mark: str = ""
    alt: str = ""

    @property
    def caption(self) -> str:
        """Title and symbol."""
        return f"{self.title} {MARKS[self.mark].symbol}".strip() if self.mark else self.title


@dataclass
class Row:
    """Tiles side by side; None leaves a place empty."""

    tiles: list[Tile | None]
    label: str = ""


@dataclass
class Block:
    """Rows that belong together, such as several models' lists of one query."""

    title: str
    rows: list[Row] = field(default_factory=list)


def open_small(path: str | Path) -> Image.Image:
    """An image file as the models see it (`read_image`), no side longer than LARGEST.

    Raises:
        UnreadableImage: it cannot be read; the message names it.
    """
    return small(read_image(path))


def small(image: Image.Image) -> Image.Image:
    """A copy of an image, no side longer than LARGEST."""
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    return image


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image with a (h, w) map over it, from the map's least value (dark) to its largest (bright)."""
    width, height = image.size
    heat = F.interpolate(heat[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)
    colour = np.asarray(matplotlib.colormaps["inferno"](heat.numpy()))[..., :3]
    mixed = 0.45 * np.asarray(image.convert("RGB")) / 255 + 0.55 * colour
    return Image.fromarray((255 * mixed.clip(0, 1)).round().astype(np.uint8))


@contextmanager
def names_as_they_are(settings: Mapping[str, object] | None = None) -> Iterator[None]:
    """Draw figures inside it: a name with dollar signs is no formula, and letters that the font lacks are boxes.

    Args:
        settings: further settings of matplotlib.
    """
    merged: dict[Any, Any] = {"text.parse_math": False, **(settings or {})}
    with matplotlib.rc_context(merged), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def clean(text: str) -> str:
    """Lines of text that any figure and page can hold; see `files.printable`."""
    return "\n".join(map(printable, text.split("\n")))


def draw(blocks: Sequence[Block], path: str | Path, *, title: str = "", columns: int = 14) -> None:
    """Blocks as one picture file, one below the other.

    Args:
        path: .png, .svg or .pdf.
        columns: tiles in a line; a longer row goes on in the next.
    """
    with names_as_they_are():
        figure = _figure(blocks, title, columns)
        suffix = Path(path).suffix.lstrip(".")
        if suffix not in figure.canvas.get_supported_filetypes():
            raise ValueError(f"{path}: pictures are written as .png, .svg or .pdf")
        write_atomically(path, lambda temporary: figure.savefig(temporary, format=suffix))


def _figure(blocks: Sequence[Block], title: str, columns: int) -> Figure:
    lines: list[tuple[str, Row]] = []  # (title of the block that starts here, row of at most `columns`)
    for block in blocks:
        for i, row in enumerate(block.rows):
            for start in range(0, max(len(row.tiles), 1), columns):
                first = i == 0 and start == 0
                part = Row(row.tiles[start : start + columns], row.label if start == 0 else "")
                lines.append((block.title if first else "", part))
    if not lines:
        raise ValueError("there is nothing to draw")
    across = max(len(row.tiles) for _, row in lines)
    labels = 1 if any(row.label for _, row in lines) else 0  # a column for them, as wide as a tile
    shape = max(t.picture.height / t.picture.width for _, row in lines for t in row.tiles if t)
    # inches: a tile is 0.95 wide, on a grid of 1.05
    heights = []
    for heading, row in lines:
        captions = max((_wrap(t.caption).count("\n") + 1 for t in row.tiles if t), default=1)
        heights.append(0.95 * shape + 0.13 * captions + 0.1 + (0.22 if heading else 0.0))
    width = 1.05 * (across + labels) + 0.1
    title = "\n".join(_wrap(line, int(13 * width)) for line in title.split("\n"))  # 13 letters an inch at this size
    above = 0.2 + 0.15 * (title.count("\n") + 1)
    height = sum(heights) + above + 0.1
    figure = Figure(figsize=(width, height), dpi=110)
    figure.suptitle(title, fontsize=9, y=1 - 0.1 / height, va="top")
    bottom = height - above
    for (heading, row), line_height in zip(lines, heights):
        if heading:
            figure.text(0.08 / width, (bottom - 0.09) / height, clean(heading), fontsize=8.5, weight="bold", va="top")
        bottom -= line_height
        if row.label:
            middle = (bottom + 0.475 * shape) / height
            figure.text(0.08 / width, middle, _wrap(row.label, 16), fontsize=8, va="center")
        for place, tile in enumerate(row.tiles):
            if tile is None:
                continue
            box = ((1.05 * (place + labels) + 0.1) / width, bottom / height, 0.95 / width, 0.95 * shape / height)
            axis = figure.add_axes(box, anchor="S")
            axis.imshow(tile.picture)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(_wrap(tile.caption), fontsize=7, pad=3)
            for spine in axis.spines.values():
                spine.set_visible(bool(tile.mark))
                if tile.mark:
                    mark = MARKS[tile.mark]
                    spine.set(color=mark.colour, linewidth=2.5, linestyle=mark.line)
    return figure


def _wrap(text: str, width: int = 18) -> str:
    return "\n".join(textwrap.wrap(clean(text), width))


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x: str,
    names: Sequence[str] | None = None,
) -> Figure:
    """Small panels side by side, for `html.svg`.

    Args:
        panels: title -> name of a line -> (x values, y values). The legend stands below; a name keeps its colour.
        x: what the horizontal axis counts.
        names: of all lines of figures that stand side by side, so that a name has one colour in them; None: these.
    """
    own = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    style = {name: LINES[i % len(LINES)] for i, name in enumerate(names or own)}
    across = min(5, len(panels))
    per_line = min(6, 3 * across)
    down = -(-len(panels) // across)
    legend = 0.15 + 0.15 * -(-len(own) // per_line) if len(own) > 1 else 0.0
    height = 1.9 * down + legend
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with names_as_they_are(dict.fromkeys(inked, INK) | {"font.size": 8}):
        figure = Figure(figsize=(2.3 * across, height))
        axes = figure.subplots(down, across, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, lines) in zip(axes.flat, panels.items()):
            axis.set_title(clean(title), fontsize=8.5)
            axis.set_xlabel(x, fontsize=7)
            axis.tick_params(labelsize=7)
            axis.grid(color=INK, alpha=0.15, linewidth=0.5)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(5))
            axis.spines[["top", "right"]].set_visible(False)
            for name, (at, values) in lines.items():
                colour, dashes = style[name]
                marker = "o" if len(at) < 12 else ""
                axis.plot(at, values, color=colour, linestyle=dashes, marker=marker, markersize=2.5, linewidth=1.3)
        if legend:
            handles = [matplotlib.lines.Line2D([], [], color=style[n][0], linestyle=style[n][1]) for n in own]
            labels = [clean(name) for name in own]
            figure.legend(
                handles, labels, loc="lower center", ncols=min(len(own), per_line), fontsize=7.5, frameon=False
            )
        figure.tight_layout(rect=(0, legend / height, 1, 1))
    return figure
