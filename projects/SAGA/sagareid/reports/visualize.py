"""Ranked lists and where heads look, of one model or several side by side, as blocks of tiles (`pictures`).

V queries with a match.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.datasets.names import SetNames
from ..studies.models import Model
from ..studies.options import Occlusion
from . import html, pictures
from .attention import (
    ALL,
    HOW_TO_READ,
    TOP,
    Attention,
    anchor_tiles,
    attention_of,
    place_of_maximum,
    pooled_tiles,
    without_maps,
)
from .options import LENGTH
from .pictures import Block, Row, Tile
from .rankings import Ranked, contrasting, rank_test_set, right_and_wrong
from .study_tables import WORDS

__all__ = [
    "attention_blocks",
    "picture_images",
    "picture_ranked_lists",
    "ranked_blocks",
    "save",
]


def _labels(models: Sequence[Model]) -> list[str]:
    """A name for each model: its path where several share a name, as the seeds of one config do."""
    names = [m.name for m in models]
    return [m.name if names.count(m.name) == 1 else m.path for m in models]


def ranked_blocks(
    ranked: Sequence[Ranked], queries: Sequence[int], *, anchors: str = f"{TOP}2", length: int = LENGTH
) -> list[Block]:
    """A block for each query; in it, a row for each model: its maps and its ranked list, framed by right and wrong.

    Args:
        queries: 0..V-1.
        anchors: see `choose_anchors`.
        length: gallery images of a list, at most 10.
    """
    if not 1 <= length <= ranked[0].nearest.shape[1]:
        raise ValueError(f"lists of {length} images; expected 1 to {ranked[0].nearest.shape[1]}")
    images = ranked[0].images
    items = [images.items[ranked[0].queries[v]] for v in queries]
    labels = _labels([r.model for r in ranked])
    maps = [_all_maps(r, items, queries, anchors) for r in ranked]
    most = max((len(tiles) for of_model in maps for tiles in of_model), default=0)
    blocks = []
    for i, v in enumerate(queries):
        _, pid, camid = items[i]
        who = images.names.both(pid, camid)
        block = Block(who[0].upper() + who[1:])
        for r, label, of_model in zip(ranked, labels, maps):
            query = Tile(pictures.small(r.query_image(v)), "query", "query", f"Query: {who}")
            padding = [None] * (most - len(of_model[i]))  # so that the ranked lists start in one column
            found = [_gallery_tile(r, v, place) for place in range(length)]
            precision = f"AP {100 * r.ap[v]:.1f}"
            block.rows.append(
                Row([query, *of_model[i], *padding, *found], f"{label}: {precision}" if len(ranked) > 1 else precision)
            )
        blocks.append(block)
    return blocks


def _all_maps(
    ranked: Ranked, items: Sequence[tuple[str, int, int]], queries: Sequence[int], anchors: str
) -> list[list[Tile]]:
    """The maps of a model over each query; no tiles for a head without maps."""
    found = attention_of(ranked.model, items, ranked.images.run_names, ranked.occluder)
    if found is None:
        return [[] for _ in items]
    return [_maps(found, i, pictures.small(ranked.query_image(v)), anchors) for i, v in enumerate(queries)]


def _maps(found: Attention, image: int, picture: Image.Image, anchors: str) -> list[Tile]:
    tiles = pooled_tiles(found, image, picture)
    return tiles + (anchor_tiles(found, image, picture, anchors) if found.names else [])


def _gallery_tile(ranked: Ranked, query: int, place: int) -> Tile:
    path, pid, camid = ranked.gallery(ranked.nearest[query, place])
    mark = "right" if pid == ranked.person(query) else "wrong"
    names = ranked.images.names
    called = ", ".join(filter(None, (names.person(pid), names.camera(camid))))
    alt = f"Rank {place + 1}: {names.both(pid, camid)}"
    return Tile(pictures.open_small(path), f"{place + 1}: {called}", mark, alt)


def attention_blocks(
    models: Sequence[Model],
    items: Sequence[tuple[str, int, int | str]],
    names: SetNames | None = None,
    *,
    anchors: str = ALL,
) -> list[Block]:
    """A block for each image; in it, a row for each model: patch weights, domain anchors and text anchors.

    Args:
        items, names: as for `attention_of`.
        anchors: see `choose_anchors`.

    Raises:
        ValueError: no model has maps to show.
    """
    found = [(name, attention_of(m, items, names)) for name, m in zip(_labels(models), models)]
    if not any(a for _, a in found):
        raise ValueError(
            f"there is nothing to show. {without_maps(models)} Ranked lists need no anchors: leave --images out"
        )
    blocks = []
    for i, (path, *_) in enumerate(items):
        picture = pictures.open_small(path)
        block = Block(Path(path).name)
        for name, a in found:
            if a is None:
                continue
            tiles: list[Tile | None] = [
                Tile(picture, "image", alt=f"Image {Path(path).name}"),
                *pooled_tiles(a, i, picture),
            ]
            if a.domain is not None:
                share = (a.domain[i] * a.weights[-1, i]).sum()
                title = f"domain anchors ({share:.1%})"
                alt = f"{title}: {place_of_maximum(a.domain[i])}"
                tiles.append(Tile(pictures.overlay(picture, a.domain[i]), title, alt=alt))
            if a.names:
                tiles += anchor_tiles(a, i, picture, anchors)
            block.rows.append(Row(tiles, name if len(models) > 1 else ""))
        blocks.append(block)
    return blocks


def picture_ranked_lists(
    models: Sequence[Model],
    path: str | Path,
    *,
    dataset: str = "",
    number: int = 8,
    anchors: str = f"{TOP}2",
    length: int = LENGTH,
    occlusion: Occlusion | None = None,
) -> None:
    """Write ranked lists of a test set: right and wrong ones of one model, or where several models differ most.

    Args:
        path: .png, .svg, .pdf or .html.
        occlusion: what hides a part of every query, see `rank_test_set`.
    """
    ranked = rank_test_set(models, dataset, occlusion)
    chosen = contrasting(ranked, number) if len(ranked) > 1 else right_and_wrong(ranked[0], number)
    if not chosen:
        raise ValueError(
            "the models rank every query alike, so there is nothing to set side by side; or --queries is 0"
        )
    blocks = ranked_blocks(ranked, chosen, anchors=anchors, length=length)
    title = f"Ranked lists, {ranked[0].images.name}"
    if occlusion is not None:
        title += f", {occlusion.level:.0%} of each query {WORDS[occlusion.condition]}"
    save(blocks, path, title, without_maps(models))


def picture_images(
    models: Sequence[Model], images: Sequence[str | Path], path: str | Path, *, anchors: str = ALL
) -> None:
    """Write where heads look in images of no data set. Their camera counts as unknown."""
    blocks = attention_blocks(models, [(str(p), 0, "unknown") for p in images], anchors=anchors)
    save(blocks, path, "Attention", without_maps(models))


def save(blocks: Sequence[Block], path: str | Path, title: str, remark: str = "") -> None:
    """Write blocks as .html or as a picture, with the meaning of frames and percentages."""
    if Path(path).suffix == ".html":
        body = [html.heading(1, title), html.legend(), html.paragraph(HOW_TO_READ, soft=True)]
        html.write(path, title, html.join([*body, html.note(remark) if remark else html.Html(), html.blocks(blocks)]))
        return
    used = {tile.mark for block in blocks for row in block.rows for tile in row.tiles if tile}
    marks = [
        f"{m.symbol} {m.meaning} ({m.line} frame)" for key, m in pictures.MARKS.items() if m.symbol and key in used
    ]
    lines = [". ".join([title, *marks]), HOW_TO_READ, remark]
    pictures.draw(blocks, path, title="\n".join(filter(None, lines)))
