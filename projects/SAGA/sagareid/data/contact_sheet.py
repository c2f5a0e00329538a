"""Images of a data set at a glance: one sheet a split, under the names of their people and cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import printable, write_atomically
from .datasets.layout import natural_key
from .datasets.names import Names
from .images import UnreadableImage, read_image

__all__ = ["contact_sheet", "contact_sheets", "spread"]


def contact_sheets(items: Mapping[str, Sequence[tuple]], folder: str | Path, names: Names) -> list[Path]:
    """A `contact_sheet` of each split that has images, as <split>.png in the folder."""
    paths = []
    for split, rows in items.items():
        if rows:
            paths.append(Path(folder, f"{split}.png"))
            contact_sheet(rows, paths[-1], names)
    return paths


def contact_sheet(items: Sequence[tuple], path: str | Path, names: Names, columns: int = 12, rows: int = 5) -> None:
    """Draw images of people spread over a split, as a run reads them, under the names of person and camera.

    An image that cannot be read is red.

    Args:
        items: (path, pid, camid), not empty. path: .png or .jpg.
    """
    items = sorted(items, key=lambda item: (natural_key(str(item[1])), item[0]))
    chosen = spread(items, columns * rows)
    columns = min(columns, len(chosen))
    width, height, line, gap = 64, 128, 13, 4
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 10)
    across, down = width + gap, height + 2 * line + gap
    sheet = Image.new("RGB", (columns * across, -(-len(chosen) // columns) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (file, pid, camid) in enumerate(chosen):
        left, top = place % columns * across + gap // 2, place // columns * down + gap // 2
        for number, text in enumerate((names.person(pid), names.camera(camid))):
            draw.text((left, top + number * line), _fitting(text, font, width), fill="black", font=font)
        try:
            sheet.paste(read_image(file).resize((width, height)), (left, top + 2 * line))
        except UnreadableImage:
            draw.rectangle((left, top + 2 * line, left + width - 1, top + 2 * line + height - 1), "#d1403f")
    kind = Path(path).suffix.lstrip(".").upper().replace("JPG", "JPEG")
    write_atomically(path, lambda temporary: sheet.save(temporary, kind))


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened to a width."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def spread(values: Sequence, number: int) -> list:
    """At most so many of the values, evenly spaced."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(number, len(values))).astype(int))]
