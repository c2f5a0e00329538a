"""Sample queries of an occlusion study: the picture, what each head looks at and what each model finds, by level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..data.images import read_image
from ..studies.cells import Cell
from ..studies.occlusion_study import Study
from ..studies.options import CLEAN
from . import html
from .html import Html
from .pictures import MARKS, overlay
from .study_tables import WORDS

__all__ = ["STYLE", "Samples"]

_THUMBNAIL_HEIGHT, _RANKED = 96, 5
STYLE = f"""
.pictures td {{ padding: .3rem .45rem; }}
.pictures img {{ display: block; height: {_THUMBNAIL_HEIGHT}px; width: auto; border-radius: 3px; }}
.pictures th[scope=row] {{ position: sticky; left: 0; background: var(--page); max-width: 9.5rem; z-index: 1; }}
.strip {{ display: flex; gap: 2px; }}
.t {{ width: 24px; height: 50px; background-size: cover; background-position: center; background-clip: padding-box; }}
.t {{ border-bottom: 4px dotted {MARKS["wrong"].colour}; border-radius: 2px; }}
.t.r {{ border-bottom: 4px solid {MARKS["right"].colour}; }}
"""


class Samples:
    """Tables of some queries, at every level.

    Gallery pictures recur, so that each is kept once, as the background of a CSS class; `style` gives these classes
    and must be asked for after the tables.
    """

    def __init__(self, study: Study, feature: str):
        self.study, self.feature = study, feature
        self.models = [study.seeds(name)[0] for name in study.names]
        self._gallery: dict[int, str] = {}  # number -> path of the pictures in the ranked lists

    def choose(self, number: int) -> list[int]:
        """Places in `Cell.queries`, spread evenly, whatever the models did with them."""
        valid = len(next(iter(self.study.cells.values())).queries)
        return sorted({int(i) for i in np.linspace(0, valid - 1, min(number, valid))})

    def table(self, place: int, condition: str) -> Html:
        """One query under one condition: a column for each level."""
        study = self.study
        columns = [(c, level) for c, level in study.options.cells() if c in (CLEAN, condition)]
        index = next(iter(study.cells.values())).queries[place]
        path, pid, camid = study.images.items[index]
        pictures = [self._picture(path, *column) for column in columns]
        shown = [_image(f"query, {_level_in_words(*c)}", picture) for c, picture in zip(columns, pictures)]
        lines = [("query", shown)]
        cells_of = {m.name: [study.cells[m.key, *c] for c in columns] for m in self.models}
        for name, cells in cells_of.items():
            if cells[0].weights is not None:
                shown = [
                    _image(f"patch weights of {name}, {_level_in_words(*c)}", _heat(picture, cell.weights[index]))
                    for c, picture, cell in zip(columns, pictures, cells)
                    if cell.weights is not None
                ]
                lines.append((f"{name} looks at", shown))
        for name, cells in cells_of.items():
            if self.feature in cells[0].nearest:
                lines.append((f"{name} finds", [self._ranked_list(cell, place) for cell in cells]))
        who = study.images.names.both(pid, camid)
        caption = f"{who[0].upper()}{who[1:]}, {WORDS.get(condition, condition)}"
        return _table(caption, [level for _, level in columns], lines)

    def style(self) -> str:
        """CSS of the gallery pictures that the tables show."""
        return "".join(
            f".g{number}{{background-image:url({html.data_uri(_thumbnail(read_image(path), 64))})}}"
            for number, path in sorted(self._gallery.items())
        )

    def _picture(self, path: str, condition: str, level: float) -> Image.Image:
        """The query as the models see it."""
        image = read_image(path)
        if condition == CLEAN or self.study.options.occlude == "gallery":
            return image
        return self.study.occluder(condition, level)(image, path).image

    def _ranked_list(self, cell: Cell, place: int) -> str:
        num_query, items = self.study.images.num_query, self.study.images.items
        person = items[cell.queries[place]][1]
        strip = []
        for rank, number in enumerate(map(int, cell.nearest[self.feature][place][:_RANKED]), 1):
            path, pid, camid = items[num_query + number]
            self._gallery[number] = path
            camera = self.study.images.names.camera(camid)
            where = f", camera {camera}" if camera else ""
            alt = html.escape(f"rank {rank}: {'the same person' if pid == person else 'another person'}{where}")
            css = f"t g{number}{' r' if pid == person else ''}"
            strip.append(f'<span class="{css}" role="img" title="{alt}" aria-label="{alt}"></span>')
        return f'<div class="strip">{"".join(strip)}</div>'


def _table(caption: str, levels: Sequence[float], lines: Sequence[tuple[str, Sequence[str]]]) -> Html:
    head = "".join(f'<th scope="col">{level:.0%}</th>' for level in levels)
    body = "".join(
        f'<tr><th scope="row">{html.escape(title)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for title, cells in lines
    )
    return Html(
        f'<div class="scroll" tabindex="0"><table class="pictures"><caption>{html.escape(caption)}</caption>'
        f'<thead><tr><th scope="row"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _image(alt: str, picture: Image.Image) -> str:
    return f'<img alt="{html.escape(alt)}" src="{html.data_uri(_thumbnail(picture, _THUMBNAIL_HEIGHT))}">'


def _thumbnail(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _level_in_words(condition: str, level: float) -> str:
    return "nothing hidden" if condition == CLEAN else f"{level:.0%} {WORDS[condition]}"


def _heat(image: Image.Image, weights: np.ndarray) -> Image.Image:
    return overlay(image, torch.from_numpy(weights.astype(np.float32)))
