"""Ranked lists and where heads look, of one model or several side by side, as blocks of tiles (`pictures`).

n images, K text anchors, P token layers, (h, w) patch grid; V queries with a match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from .. import compat
from ..data.loaders import ReIDDataset, make_test_loader
from ..data.transforms import build_transforms
from ..engine.features import extract, tower_output
from ..evaluation.evaluator import SAGAEvaluator, rank_in_blocks, result_row
from ..modeling.build import model_layout
from ..modeling.saga_head import SAGAHead
from ..structures import as_features
from ..studies.occlusion import ImageSet, OccludedSet, View
from ..studies.occlusion_study import Model
from . import html, pictures
from .pictures import Block, Row, Tile

__all__ = [
    "LENGTH",
    "Attention",
    "Ranked",
    "attention",
    "attention_blocks",
    "best_median_worst",
    "choose_anchors",
    "contrasting",
    "picture_images",
    "picture_ranked_lists",
    "rank_test_set",
    "ranked_blocks",
    "right_and_wrong",
    "save",
    "without_maps",
]

LENGTH = 8  # gallery images of a ranked list
TOP, ALL = "top:", "all"


def _labels(models: Sequence[Model]) -> list[str]:
    """A name for each: its path where several have the same, as the seeds of one thing do."""
    names = [m.name for m in models]
    return [m.name if names.count(m.name) == 1 else m.path for m in models]


# ---- ranking ----------------------------------------------------------------------------------------------------------


@dataclass
class Ranked:
    """One model's ranking of a test set, by the evaluator's distances of its result row (TEST.FEATURE, METRIC, RERANK ...).

    Attributes:
        queries: (V,) which of the test set's queries have a match.
        ap: (V,) average precision, 0..1.
        nearest: (V, 10 or fewer) gallery images by rank, as indices into the gallery, without the query's own identity in
            its own camera.
    """

    model: Model
    images: ImageSet
    queries: np.ndarray
    ap: np.ndarray
    nearest: np.ndarray

    def person(self, query: int) -> int:
        return self.images.items[self.queries[query]][1]

    def gallery(self, index: int) -> tuple[str, int, int]:
        """(path, pid, camid) of a gallery image."""
        return self.images.items[self.images.num_query + index]

    def first_is_right(self) -> np.ndarray:
        """(V,) bool."""
        return np.array([self.gallery(g)[1] == self.person(v) for v, g in enumerate(self.nearest[:, 0])])


def rank_test_set(models: Sequence[Model], dataset: str = "") -> list[Ranked]:
    """Rankings of a test set by each model; each image is read once, and models with equal towers share their pass.

    Args:
        dataset: default: the first of the first model's DATASETS.TESTS.

    Raises:
        OSError, RuntimeError, ValueError: the data set is not there or has nothing to rank.
    """
    cfg = models[0].cfg
    images = ImageSet.read(cfg, dataset or cfg.DATASETS.TESTS[0])
    views = [_view(m) for m in models]
    distinct = {repr(view): view for view in views}
    loader = make_test_loader(cfg, OccludedSet(images.items, list(distinct.values()), None, images.stem))
    pairs = [(m.cfg, m.model) for m in models]
    extractions, labels = extract(pairs, loader, views=[list(distinct).index(repr(view)) for view in views])
    q = images.num_query
    ranked = []
    for m, features in zip(models, (e.features for e in extractions)):
        layout = model_layout(m.model, features.shape[1])
        distances = SAGAEvaluator(m.cfg, q, layout=layout).distances(result_row(m.cfg, layout), features, layout)
        ids = (labels.pids[:q], labels.pids[q:], labels.camids[:q], labels.camids[q:])
        ranking = rank_in_blocks(distances, *ids, description=m.name)
        ranked.append(Ranked(m, images, ranking.queries, ranking.ap, ranking.nearest))
    return ranked


def _view(model: Model) -> View:
    """How a model wants its pictures, test time."""
    return View(build_transforms(model.cfg, is_train=False), tuple(model.cfg.MODEL.CLIP.CAMERAS) or ("none",))


def spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spaced."""
    count = min(count, len(values))
    return [int(values[i]) for i in np.linspace(0, len(values) - 1, count).astype(int)] if count else []


def right_and_wrong(ranked: Ranked, number: int) -> list[int]:
    """Queries (0..V-1) spread over the set: half of them with a right first match, half without."""
    first = ranked.first_is_right()
    right, wrong = np.flatnonzero(first), np.flatnonzero(~first)
    chosen = spread(right, number - min(len(wrong), number // 2))
    return chosen + spread(wrong, number - len(chosen))


def best_median_worst(ranked: Ranked, number: int) -> dict[str, list[int]]:
    """`number` queries (0..V-1) each with the highest, middle and lowest average precision; none twice.

    Of the many that are ranked without a fault, an even spread over the set.
    """
    order = np.argsort(-ranked.ap, kind="stable")
    best = spread(order[: max(number, int((ranked.ap == ranked.ap.max()).sum()))], number)
    rest = [int(v) for v in order if v not in best]
    worst = rest[::-1][:number]
    rest = rest[: len(rest) - len(worst)]
    start = min(max(0, len(ranked.ap) // 2 - len(best) - number // 2), max(0, len(rest) - number))
    return {"Best queries": best, "Queries around the median": rest[start : start + number], "Worst queries": worst}


def contrasting(ranked: Sequence[Ranked], number: int) -> list[int]:
    """Queries (0..V-1) on which the last model's average precision differs most from the first's: half of them those that
    it does better, best first, then those that it does worse."""
    gain = ranked[-1].ap - ranked[0].ap
    order = np.argsort(-gain, kind="stable").tolist()
    better, worse = [v for v in order if gain[v] > 0], [v for v in reversed(order) if gain[v] < 0]
    count = max(number - len(worse), min(len(better), number - number // 2))
    return better[:count] + worse[: number - min(count, len(better))]


# ---- attention --------------------------------------------------------------------------------------------------------


@dataclass
class Attention:
    """Where a head looks in n images.

    Attributes:
        weights: (P, n, h, w) how much each patch counts in the feature; a token layer's sum to 1 over an image.
        layers: names of the P token layers; one empty name where there is one.
        anchors: (n, K, h, w) attention of each text anchor; K = 0 for a head without.
        share: (n, K) of what counts in an image that goes to each text anchor of its token layer; domain anchors have
            the rest.
        names: K, the phrase that each anchor started from.
        domain: (n, h, w) attention of all domain anchors together, None without.
    """

    weights: Tensor
    layers: list[str]
    anchors: Tensor
    share: Tensor
    names: list[str]
    domain: Tensor | None = None


def attention(model: Model, items: Sequence[tuple[str, int, int | str]], stem: str = "") -> Attention | None:
    """Where the head looks in images, unflipped; None for a head without anchors and without `token_weights`.

    Args:
        items: (path, pid, camid); of a camera that training did not see, any camid it did not see.
        stem: what the data set calls itself, to know its cameras by.
    """
    head = getattr(model.model, "heads", None)
    if not hasattr(head, "token_weights"):
        return None
    view = _view(model)
    dataset = ReIDDataset(items, view.transform, relabel=False, cameras=view.cameras, dataset_name=stem)
    with torch.inference_mode(), compat.quiet_host():
        samples = [{k: v for k, v in dataset[i].items() if k in ("images", "cameras")} for i in range(len(items))]
        batch = {k: v.to(model.model.device) for k, v in default_collate(samples).items()}
        tower = tower_output(model.model, batch)
        if tower is None:
            return None
        features = as_features(tower).float()
        grid, n = features.grid, len(items)
        if not isinstance(head, SAGAHead):
            weights = head.token_weights(tower).float().cpu().unflatten(1, grid)[None]
            return Attention(weights, [""], weights.new_zeros(n, 0, *grid), weights.new_zeros(n, 0), [])
        refined = head.refine_and_pool(features, keep_tokens=False)
    weights = torch.stack(refined.weights).unflatten(2, grid).cpu()  # (P, n, h, w)
    anchors = refined.anchor_maps(grid).cpu()
    own = weights.repeat_interleave(anchors.shape[1] // len(weights), dim=0).transpose(0, 1)  # (n, K, h, w)
    layers = [f"block {i}" for i in model.cfg.MODEL.CLIP.TOKEN_LAYERS] if len(weights) > 1 else [""]
    domain = None
    if refined.domain_anchors is not None:
        domain = refined.attention[-1][:, :, -refined.domain_anchors.shape[1] :].sum(2).unflatten(1, grid).cpu()
    return Attention(weights, layers, anchors, (anchors * own).sum((2, 3)), head.anchor_names, domain)


def choose_anchors(wanted: str, found: Attention, image: int) -> list[int]:
    """Which anchors (0..K-1) to show of an image.

    Args:
        wanted: "all"; "top:N", the N with the largest share; or names separated by commas: words of the phrases, or
            numbers from 1.

    Raises:
        ValueError: no anchor has such a name.
    """
    if wanted == ALL:
        return list(range(len(found.names)))
    if wanted.startswith(TOP):
        if not wanted[len(TOP) :].isdecimal():
            raise ValueError(f"--anchors {wanted}: expected {TOP}N, as in {TOP}6")
        return found.share[image].argsort(descending=True, stable=True)[: int(wanted[len(TOP) :])].tolist()
    chosen = []
    for name in filter(None, (part.strip() for part in wanted.split(","))):
        number = int(name) if name.isdecimal() else 0
        hits = [number - 1] if number else [k for k, its in enumerate(found.names) if name.lower() in its.lower()]
        if not hits or hits[0] >= len(found.names):
            raise ValueError(
                f"--anchors: no anchor is called {name!r}. Expected {ALL}, {TOP}N, a number from 1 to {len(found.names)}, or "
                f"words of: {'; '.join(dict.fromkeys(found.names))}"
            )
        chosen += [k for k in hits if k not in chosen]
    return chosen


def _pooled_tiles(found: Attention, image: int, picture: Image.Image) -> list[Tile]:
    """What counts in the feature, a tile a token layer."""
    claimed = "claimed by the anchors" if found.names else "counts in the feature"
    tiles = []
    for weights, layer in zip(found.weights, found.layers):
        title = f"{claimed}, {layer}" if layer else claimed
        alt = f"Patches that count: {_where(weights[image])}"
        tiles.append(Tile(pictures.overlay(picture, weights[image]), title, alt=alt))
    return tiles


def _anchor_tiles(found: Attention, image: int, picture: Image.Image, wanted: str) -> list[Tile]:
    """Maps of the wanted anchors, each with its phrase and its share of what counts."""
    return [
        Tile(
            pictures.overlay(picture, found.anchors[image, k]),
            f"{found.names[k]} ({found.share[image, k]:.1%})",
            alt=f"Attention of anchor {k + 1}, {found.names[k]}: {_where(found.anchors[image, k])}",
        )
        for k in choose_anchors(wanted, found, image)
    ]


def _where(heat: Tensor) -> str:
    """In words: where a map is largest."""
    h, w = heat.shape
    row, column = divmod(int(heat.argmax()), w)
    vertical = ("top", "upper part", "middle", "lower part", "bottom")[min(5 * row // h, 4)]
    return f"most at the {vertical}, {('left', 'centre', 'right')[min(3 * column // w, 2)]}"


def without_maps(models: Sequence[Model]) -> str:
    """A sentence on the models whose heads show no maps; empty where all do."""
    names = [f"{m.name} ({m.head})" for m in models if not hasattr(getattr(m.model, "heads", None), "token_weights")]
    if not names:
        return ""
    return f"No anchors and no patch weights, so no maps: {', '.join(names)}."


# ---- blocks -----------------------------------------------------------------------------------------------------------


def ranked_blocks(
    ranked: Sequence[Ranked], queries: Sequence[int], *, anchors: str = f"{TOP}2", length: int = LENGTH
) -> list[Block]:
    """A block a query; in it, a row a model: what counts, its anchors, its ranked list, framed by right and wrong.

    Args:
        queries: 0..V-1.
        anchors: see `choose_anchors`. length: gallery images of a list, at most 10.
    """
    if not 1 <= length <= ranked[0].nearest.shape[1]:
        raise ValueError(f"lists of {length} images; expected 1 to {ranked[0].nearest.shape[1]}")
    images = ranked[0].images
    items = [images.items[ranked[0].queries[v]] for v in queries]
    found = [attention(r.model, items, images.stem) for r in ranked]
    maps = [[_maps(a, i, items[i][0], anchors) for i in range(len(items))] for a in found]
    most = max((len(tiles) for of_model in maps for tiles in of_model), default=0)
    blocks = []
    names = _labels([r.model for r in ranked])
    for i, v in enumerate(queries):
        path, pid, camid = items[i]
        block = Block(f"Person {pid}, camera {camid + 1}")
        for r, name, of_model in zip(ranked, names, maps):
            tiles = [Tile(pictures.open_small(path), "query", "query", f"Query: person {pid} in camera {camid + 1}")]
            tiles += of_model[i] + [None] * (most - len(of_model[i]))
            tiles += [_gallery_tile(r, v, place) for place in range(length)]
            label = f"AP {100 * r.ap[v]:.1f}"
            block.rows.append(Row(tiles, f"{name}: {label}" if len(ranked) > 1 else label))
        blocks.append(block)
    return blocks


def _maps(found: Attention | None, image: int, path: str, anchors: str) -> list[Tile | None]:
    if found is None:
        return []
    picture = pictures.open_small(path)
    tiles = _pooled_tiles(found, image, picture)
    return tiles + (_anchor_tiles(found, image, picture, anchors) if found.names else [])


def _gallery_tile(ranked: Ranked, query: int, place: int) -> Tile:
    path, pid, camid = ranked.gallery(ranked.nearest[query, place])
    mark = "right" if pid == ranked.person(query) else "wrong"
    return Tile(
        pictures.open_small(path), f"{place + 1}", mark, f"Rank {place + 1}: person {pid} in camera {camid + 1}"
    )


def attention_blocks(
    models: Sequence[Model], items: Sequence[tuple[str, int, int | str]], stem: str = "", *, anchors: str = ALL
) -> list[Block]:
    """A block an image; in it, a row a model: what counts in its feature, what domain anchors take, and its anchors.

    Args:
        items, stem: as of `attention`. anchors: see `choose_anchors`.

    Raises:
        ValueError: no model has maps to show.
    """
    found = [(name, attention(m, items, stem)) for name, m in zip(_labels(models), models)]
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
            tiles = [Tile(picture, "image", alt=f"Image {Path(path).name}"), *_pooled_tiles(a, i, picture)]
            if a.domain is not None:
                share = (a.domain[i] * a.weights[-1, i]).sum()
                title = f"domain anchors ({share:.1%})"
                tiles.append(Tile(pictures.overlay(picture, a.domain[i]), title, alt=f"{title}: {_where(a.domain[i])}"))
            if a.names:
                tiles += _anchor_tiles(a, i, picture, anchors)
            block.rows.append(Row(tiles, name if len(models) > 1 else ""))
        blocks.append(block)
    return blocks


# ---- files ------------------------------------------------------------------------------------------------------------


def picture_ranked_lists(
    models: Sequence[Model],
    path: str | Path,
    *,
    dataset: str = "",
    number: int = 8,
    anchors: str = f"{TOP}2",
    length: int = LENGTH,
) -> None:
    """Ranked lists of a test set as a file: of one model, right and wrong ones; of several, where they differ most.

    Args:
        path: .png, .svg, .pdf or .html.
    """
    ranked = rank_test_set(models, dataset)
    chosen = contrasting(ranked, number) if len(ranked) > 1 else right_and_wrong(ranked[0], number)
    if not chosen:
        raise ValueError(
            "the models rank every query alike, so there is nothing to set side by side; or --queries is 0"
        )
    blocks = ranked_blocks(ranked, chosen, anchors=anchors, length=length)
    save(blocks, path, f"Ranked lists, {ranked[0].images.name}", without_maps(models))


def picture_images(
    models: Sequence[Model], images: Sequence[str | Path], path: str | Path, *, anchors: str = ALL
) -> None:
    """Where heads look in images of one's own, as a file; no data set is needed. The camera counts as unknown."""
    blocks = attention_blocks(models, [(str(p), 0, "unknown") for p in images], anchors=anchors)
    save(blocks, path, "Attention", without_maps(models))


def save(blocks: Sequence[Block], path: str | Path, title: str, remark: str = "") -> None:
    """Blocks as .html, or as a picture; with what frames and percentages mean."""
    meaning = "In brackets: the anchor's share of what counts in the image."
    if Path(path).suffix == ".html":
        body = [html.heading(1, title), html.legend(), html.paragraph(meaning, soft=True)]
        html.write(path, title, html.join([*body, html.note(remark) if remark else html.Html(), html.blocks(blocks)]))
        return
    used = {tile.mark for block in blocks for row in block.rows for tile in row.tiles if tile}
    marks = [
        f"{m.symbol} {m.meaning} ({m.line} frame)" for key, m in pictures.MARKS.items() if m.symbol and key in used
    ]
    pictures.draw(blocks, path, title="\n".join(filter(None, [". ".join([title, *marks, meaning]), remark])))
