"""The ranked lists of a search as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..deploy.gallery import Match
from ..files import write_atomically


def draw(matches: Sequence[Sequence[Match]], path: str | Path, *, folder: str = "", query_folder: str = "") -> None:
    """Ranked lists as a picture: one row a query, its matches with their similarity.

    Args:
        path: .png, .svg or .pdf. folder, query_folder: what relative paths of gallery and queries are relative to.
    """
    matches = [one for one in matches if one]
    columns = 1 + max(len(one) for one in matches)
    figure = Figure(figsize=(1.05 * columns, 2.25 * len(matches)), dpi=110)
    axes = figure.subplots(len(matches), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, one in zip(axes, matches):
        shown = [
            (Path(query_folder, one[0].query), "query"),
            *((Path(folder, m.path), f"{m.similarity:.3f}") for m in one),
        ]
        for axis, (file, title) in zip(row, shown):
            with Image.open(file) as image:
                axis.imshow(image.convert("RGB"))
            axis.set_title(title, fontsize=7)
    figure.tight_layout()
    suffix = Path(path).suffix.lstrip(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=suffix))
