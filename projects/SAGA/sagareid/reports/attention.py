"""Where heads look: maps of patch weights and anchors over images, and the tiles that show them.

n images, K text anchors, P token layers, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from .. import compat
from ..data.datasets.names import SetNames
from ..modeling.saga_head import SAGAHead
from ..modeling.tokens import tower_output
from ..structures import as_features
from ..studies.models import Model
from ..studies.occlusion import OccludedSet, Occluder
from . import pictures
from .pictures import Tile
from .rankings import view_of

__all__ = [
    "ALL",
    "HOW_TO_READ",
    "TOP",
    "Attention",
    "anchor_tiles",
    "attention_of",
    "choose_anchors",
    "pooled_tiles",
    "without_maps",
]

TOP, ALL = "top:", "all"
# What stands beside maps of anchors.
HOW_TO_READ = (
    "In brackets: the anchor's share of what counts in the image. A phrase is where an anchor started before training, "
    "not what it means: look at the map."
)


@dataclass
class Attention:
    """Where a head looks in n images.

    Attributes:
        weights: (P, n, h, w) weight of each patch in the feature; those of a token layer sum to 1 over an image.
        layers: names of the P token layers; one empty name where there is one.
        anchors: (n, K, h, w) attention of each text anchor; K is 0 for a head without anchors.
        share: (n, K) share of each text anchor in the weight of its token layer; domain anchors have the rest.
        names: the phrase that each of the K anchors started from.
        domain: (n, h, w) attention of all domain anchors together; None for a head without them.
    """

    weights: Tensor
    layers: list[str]
    anchors: Tensor
    share: Tensor
    names: list[str]
    domain: Tensor | None = None


def attention_of(
    model: Model,
    items: Sequence[tuple[str, int, int | str]],
    names: SetNames | None = None,
    occluder: Occluder | None = None,
) -> Attention | None:
    """Where the head looks in images, unflipped; None for a head without anchors and without `token_weights`.

    Args:
        items: (path, pid, camid); a camid that training did not see counts as an unknown camera.
        names: of the images' cameras; None where nothing is known of them.
        occluder: what hides a part of each image first.
    """
    head = getattr(model.model, "heads", None)
    if head is None or not hasattr(head, "token_weights"):
        return None
    dataset = OccludedSet(items, [view_of(model)], occluder, names)
    with torch.inference_mode(), compat.quiet_host():
        samples = [
            {k: sample[f"{k}/0"] for k in ("images", "cameras")}
            for sample in map(dataset.__getitem__, range(len(items)))
        ]
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
        hits = [number - 1] if number else [k for k, phrase in enumerate(found.names) if name.lower() in phrase.lower()]
        if not hits or hits[0] >= len(found.names):
            raise ValueError(
                f"--anchors: no anchor is called {name!r}. Expected {ALL}, {TOP}N, a number from 1 to "
                f"{len(found.names)}, or words of: {'; '.join(dict.fromkeys(found.names))}"
            )
        chosen += [k for k in hits if k not in chosen]
    return chosen


def pooled_tiles(found: Attention, image: int, picture: Image.Image) -> list[Tile]:
    """What counts in the feature, a tile a token layer."""
    claimed = "claimed by the anchors" if found.names else "counts in the feature"
    tiles = []
    for weights, layer in zip(found.weights, found.layers):
        title = f"{claimed}, {layer}" if layer else claimed
        alt = f"Patches that count: {place_of_maximum(weights[image])}"
        tiles.append(Tile(pictures.overlay(picture, weights[image]), title, alt=alt))
    return tiles


def anchor_tiles(found: Attention, image: int, picture: Image.Image, wanted: str) -> list[Tile]:
    """Maps of the wanted anchors, each with its phrase and its share of what counts."""
    return [
        Tile(
            pictures.overlay(picture, found.anchors[image, k]),
            f"{found.names[k]} ({found.share[image, k]:.1%})",
            alt=f"Attention of anchor {k + 1}, {found.names[k]}: {place_of_maximum(found.anchors[image, k])}",
        )
        for k in choose_anchors(wanted, found, image)
    ]


def place_of_maximum(heat: Tensor) -> str:
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
