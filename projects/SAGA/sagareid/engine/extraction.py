"""Features of many models in one pass over the images; `evaluation.features` makes of them what is ranked by.

n images, F feature width, N patches in a (h, w) grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import compat
from ..evaluation.flip import mean_over_views
from ..evaluation.flip import views as flip_views
from ..modeling.build import fingerprint
from ..modeling.tokens import backbone_then_head, tower_output
from ..structures import as_features, patch_shares

__all__ = ["MAPS", "Extraction", "Labels", "extract", "share_towers"]

MAPS = ("occluder", "person")  # what an `OccludedSet` says of each pixel


@dataclass
class Extraction:
    """What one model says of n images.

    Attributes:
        features: (n, F) float32, raw.
        weights: (n, h, w) how much each patch counts in the head's feature, an image's summing to 1; None for a head
            without `token_weights`.
        on: (n,) share of these weights on "occluder" and "person", by the loader's maps of them.
    """

    features: Tensor
    weights: Tensor | None = None
    on: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Labels:
    """What a loader says of n images.

    Attributes:
        share: (n,) of the visible person that is covered; None without an occluder.
        area: (n,) share of the picture that is "occluder" and "person", where the loader has maps of them.
    """

    pids: np.ndarray
    camids: np.ndarray
    paths: list[str]
    share: np.ndarray | None = None
    area: dict[str, np.ndarray] = field(default_factory=dict)


def share_towers(models: Sequence[tuple[Any, nn.Module]]) -> None:
    """Let models whose towers are equal, weights and settings, have one between them: `extract` runs it once a batch.

    Args:
        models: (config, model); only those of a meta-architecture with FastReID's way, backbone then head, can share.
    """
    kept: dict[str, nn.Module] = {}
    for cfg, model in models:
        if backbone_then_head(model):
            settings = {k: v for k, v in cfg.MODEL.BACKBONE.items() if not k.startswith("PRETRAIN")}
            key = fingerprint(model.backbone.state_dict(), settings, dict(cfg.MODEL.CLIP), model.device)
            model.backbone = kept.setdefault(key, model.backbone)


def extract(
    models: Sequence[tuple[Any, nn.Module]],
    loader: Iterable[dict[str, Any]],
    *,
    views: Sequence[int] | None = None,
    weights: bool = False,
    description: str = "images",
) -> tuple[list[Extraction], Labels]:
    """Features of every image from every model, in one pass; TEST.FLIP as the model's config says.

    Models that have one backbone between them, see the same view and normalise alike share its pass.

    Args:
        models: (config, model in evaluation mode).
        loader: of `build_test_loader`, or of an `OccludedSet`.
        views: of each model, which view of an `OccludedSet`; None: there are none.
        weights: also the heads' patch weights.
    """
    keys = [f"/{view}" for view in views] if views is not None else [""] * len(models)
    groups: dict[Any, list[int]] = {}
    for i, (cfg, model) in enumerate(models):
        groups.setdefault((keys[i], cfg.TEST.FLIP.ENABLED, _tower_of(model)), []).append(i)
    found = [_Collected() for _ in models]
    labels: dict[str, list] = {k: [] for k in ("targets", "camids", "share", *MAPS)}
    paths: list[str] = []
    total = len(loader.dataset) if hasattr(loader, "dataset") else None
    with (
        torch.inference_mode(),
        compat.quiet_host(),
        tqdm(desc=description, total=total, unit="image", disable=None, leave=False) as bar,
    ):
        for batch in loader:
            for (key, flip, _), members in groups.items():
                sharing = [models[i][1] for i in members]
                inputs = {"cameras": batch[f"cameras{key}"]}
                seen = [_outputs(sharing, inputs | {"images": v}) for v in flip_views(batch[f"images{key}"], flip)]
                tower = seen[0][0]  # of the images as they are
                outs = [mean_over_views(features) for features in zip(*(out for _, out in seen))]
                maps = {kind: batch[f"{kind}{key}"].cpu() for kind in MAPS if f"{kind}{key}" in batch}
                for i, model, out in zip(members, sharing, outs):
                    found[i].features.append(out.float().cpu())
                    if weights and tower is not None and hasattr(model.heads, "token_weights"):
                        found[i].look(model.heads, tower, maps)
            for name in ("targets", "camids", "share"):
                if name in batch:
                    labels[name].append(batch[name].cpu())
            for kind in MAPS:
                if f"{kind}{keys[0]}" in batch:
                    labels[kind].append(batch[f"{kind}{keys[0]}"].cpu().mean((1, 2)))
            paths.extend(batch["img_paths"])
            bar.update(len(batch["img_paths"]))
    joined = _joined(labels)
    area = {kind: joined[kind] for kind in MAPS if kind in joined}
    extractions = [c.extraction() for c in found]
    return extractions, Labels(joined["targets"], joined["camids"], paths, joined.get("share"), area)


class _Collected:
    """Batches of one model."""

    def __init__(self):
        self.features: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.on: dict[str, list[Tensor]] = {kind: [] for kind in MAPS}

    def look(self, head: nn.Module, tower: Any, maps: Mapping[str, Tensor]) -> None:
        """Ask the head for its patch weights; maps: (B, H, W) by kind."""
        grid = as_features(tower).grid
        weights = head.token_weights(tower).float().cpu()
        self.weights.append(weights.unflatten(1, grid))
        for kind, pixels in maps.items():
            self.on[kind].append((weights * patch_shares(pixels, grid)).sum(1))

    def extraction(self) -> Extraction:
        weights = torch.cat(self.weights) if self.weights else None
        return Extraction(torch.cat(self.features), weights, _joined(self.on))


def _joined(batches: Mapping[str, list[Tensor]]) -> dict[str, np.ndarray]:
    """One array for each name that has some."""
    return {name: torch.cat(some).numpy() for name, some in batches.items() if some}


def _tower_of(model: nn.Module) -> tuple:
    """A key that is equal for models whose heads may read one pass of the backbone."""
    if not backbone_then_head(model):
        return (id(model),)
    pixels = torch.cat([model.pixel_mean.flatten(), model.pixel_std.flatten()]).tolist()
    # a head that reads cameras is given a map otherwise (`SAGABaseline.head_input`)
    return (id(model.backbone), type(model), getattr(model.heads, "reads_cameras", False), *pixels)


def _outputs(models: Sequence[nn.Module], batch: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """The tower's output, None for a model with ways of its own, and each model's features."""
    first = models[0]
    tower = tower_output(first, batch)
    if tower is None:
        return None, [first({k: v.to(first.device, copy=True) for k, v in batch.items()})]
    return tower, [model.heads(tower) for model in models]
