"""Ranked lists and the anchors' attention, as pictures.

n images, K text anchors, (h, w) patch grid, (H, W) image.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from ..data import loading
from ..data.transforms import build_transforms
from ..engine.inference import extract, model_layout
from ..evaluation import postprocess
from ..evaluation.evaluator import SAGAEvaluator, result_row
from ..modeling.saga_head import SAGAHead
from ..structures import as_features

__all__ = ["Gallery", "attention", "draw_ranked_lists", "extract_test_set", "rank", "ranked_lists"]

RIGHT, WRONG, QUERY = "#2a9d4a", "#d1403f", "#3b6fb6"


@dataclass
class Gallery:
    """A test set's features and labels; the first `num_query` rows are the queries.

    Attributes:
        features: (n, F) unit length.
    """

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray
    paths: list[str]
    num_query: int


def extract_test_set(cfg, model: nn.Module, dataset: str) -> Gallery:
    """The result feature (TEST.FEATURE) of every image of a test set."""
    loader, num_query = loading.build_test_loader(cfg, dataset)
    [extraction], labels = extract([(cfg, model)], loader)
    raw = extraction.features
    layout = model_layout(model, raw.shape[1])
    evaluator = SAGAEvaluator(cfg, num_query, layout=layout)
    unit = postprocess.l2(evaluator.row_features(result_row(cfg, layout), raw, layout).cpu())
    return Gallery(unit, labels.pids, labels.camids, labels.paths, num_query)


def rank(gallery: Gallery, query: int) -> np.ndarray:
    """Gallery indices (into the whole set) by distance from a query, without the query's own identity in its camera."""
    q, g = query, slice(gallery.num_query, None)
    distance = 1 - gallery.features[q] @ gallery.features[g].t()
    order = torch.argsort(distance, stable=True).numpy() + gallery.num_query
    same = (gallery.pids[order] == gallery.pids[q]) & (gallery.camids[order] == gallery.camids[q])
    return order[~same]


def ranked_lists(gallery: Gallery, number: int) -> list[int]:
    """Queries worth looking at, spread over the set: half of them with a right first match, half without."""
    first = {q: rank(gallery, q)[0] for q in range(gallery.num_query)}
    right = [q for q, g in first.items() if gallery.pids[g] == gallery.pids[q]]
    wrong = [q for q, g in first.items() if gallery.pids[g] != gallery.pids[q]]

    def spread(queries: Sequence[int], count: int) -> list[int]:
        count = min(count, len(queries))
        return [queries[i] for i in np.linspace(0, len(queries) - 1, count).astype(int)] if count else []

    chosen = spread(right, number - min(len(wrong), number // 2))
    return chosen + spread(wrong, number - len(chosen))


def attention(cfg, model: nn.Module, images: Sequence[Image.Image]) -> Optional[tuple[Tensor, Tensor]]:
    """Pooling weight of each patch in the deepest token layer, and attention of each text anchor.

    Returns:
        (n, h, w), each image's weights summing to 1, and (n, K, h, w); None for a head without anchors.
    """
    if not isinstance(model.heads, SAGAHead):
        return None
    transform = build_transforms(cfg, is_train=False)
    with torch.inference_mode():
        features = as_features(model.extract(torch.stack([transform(i) for i in images]).to(model.device))).float()
        refined = model.heads.refine_and_pool(features)
    grid = features.grid
    weights = refined.weights[-1].unflatten(1, grid)
    return weights.cpu(), refined.anchor_maps(grid).cpu()


def overlay(image: Image.Image, heat: Tensor) -> np.ndarray:
    """(H, W, 3) image with a (h, w) map over it; the map's largest value is the strongest colour."""
    width, height = image.size
    heat = F.interpolate(heat[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    heat = ((heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)).numpy()
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    return np.clip(0.45 * np.asarray(image.convert("RGB")) / 255 + 0.55 * colour, 0, 1)


def draw_ranked_lists(
    cfg,
    model: nn.Module,
    gallery: Gallery,
    queries: Sequence[int],
    path: str | Path,
    *,
    length: int = 8,
    anchors: int = 2,
) -> None:
    """One row a query: the image, the pooling weights over it, its strongest anchors, its ranked list.

    A frame is green for the query's identity and red for another.

    Args:
        length: gallery images a row. anchors: anchors a row, those that attend most to the patches that count.
        path: .png, .svg or .pdf.
    """
    images = [Image.open(gallery.paths[q]).convert("RGB") for q in queries]
    attended = attention(cfg, model, images)
    extra = 1 + anchors if attended else 0
    columns = 1 + extra + length
    figure = Figure(figsize=(1.05 * columns, 2.25 * len(queries) + 0.5), dpi=110)
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([]), axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)

    def show(axis, picture: Any, colour: Optional[str], title: str = "") -> None:
        axis.imshow(picture)
        axis.set_title(title, fontsize=7)
        for spine in axis.spines.values():
            spine.set_visible(colour is not None)
            spine.set_color(colour), spine.set_linewidth(3)

    for row, (q, image) in enumerate(zip(queries, images)):
        show(axes[row][0], image, QUERY, f"query {gallery.pids[q]}\ncamera {gallery.camids[q] + 1}")
        if attended:
            weights, maps = attended[0][row], attended[1][row]
            show(axes[row][1], overlay(image, weights), None, "claimed by\nthe anchors")
            for i, k in enumerate((maps * weights).flatten(1).sum(1).topk(min(anchors, len(maps))).indices.tolist()):
                show(axes[row][2 + i], overlay(image, maps[k]), None, _wrap(model.heads.anchor_names[k]))
        for place, g in enumerate(rank(gallery, q)[:length]):
            right = gallery.pids[g] == gallery.pids[q]
            show(axes[row][1 + extra + place], Image.open(gallery.paths[g]), RIGHT if right else WRONG, f"{place + 1}")
    figure.suptitle("Ranked lists: green is the query's identity, red another", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(path)


def _wrap(text: str, width: int = 18) -> str:
    return "\n".join(textwrap.wrap(text, width))
