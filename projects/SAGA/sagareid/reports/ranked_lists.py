"""The ranked lists of a search as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.images import UnreadableImage
from ..deploy.matches import Match
from . import pictures
from .pictures import Block, Row, Tile

NOBODY = (225, 225, 225)  # a grey tile where no image reaches the threshold
UNREADABLE = (209, 64, 63)  # a red tile in the place of an image that cannot be read


def draw(matches: Sequence[Sequence[Match]], path: str | Path, *, folder: str = "", query_folder: str = "") -> None:
    """Draw ranked lists: a line for each query, its matches with file name and similarity.

    Args:
        path: .png, .svg or .pdf.
        folder, query_folder: the folders that relative paths of gallery and queries start from.
    """
    blocks = []
    for one in matches:
        if one:
            query = _tile(Path(query_folder, one[0].query), "query", "query")
            if one[0].nobody:
                found = [Tile(Image.new("RGB", (64, 128), NOBODY), _nobody(one[0]))]
            else:
                found = [_tile(Path(folder, m.path), f"{m.similarity:.3f} {Path(m.path).name}") for m in one]
            blocks.append(Block(one[0].query, [Row([query, *found])]))
    pictures.draw(blocks, path, columns=1 + max(len(one) for one in matches))


def _nobody(match: Match) -> str:
    return "nobody" if math.isnan(match.similarity) else f"nobody; best {match.similarity:.3f}"


def _tile(path: Path, title: str, mark: str = "") -> Tile:
    try:
        return Tile(pictures.open_small(path), title, mark)
    except UnreadableImage:
        return Tile(Image.new("RGB", (64, 128), UNREADABLE), f"{title}: cannot be read", mark)
