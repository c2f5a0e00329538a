"""A trained model from its checkpoint alone: no CLIP weights, no text tower, no training data; and what it says of images.

n images, F feature width, N patches in a (h, w) grid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch.baseline import Baseline
from torch import Tensor, nn
from tqdm import tqdm

from .. import compat
from ..config import get_cfg
from ..modeling.meta_arch import SAGABaseline
from ..structures import as_features
from .checkpoint import hand_over, load_state
from .hooks import CheckpointHook
from .trainer import SAGATrainer

__all__ = ["Extraction", "Labels", "extract", "fingerprint", "load_model", "model_layout"]


def load_model(path: str | Path, cfg: Optional[Any] = None, device: Optional[str] = None) -> tuple[Any, nn.Module]:
    """Build the model of a checkpoint and load every weight of it.

    Args:
        path: a .pth file, or the folder of a run (its final checkpoint).
        cfg: the config to build it by; None for the one that the checkpoint was trained with.
        device: None for the config's.

    Returns:
        (config, model in evaluation mode). What only the checkpoint knows, the number of identities and the cameras, is
        filled into the config; the text tower is left out, since anchors are stored.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it does not fit the config, or is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / f"{CheckpointHook.FINAL}.pth"
    checkpoint = load_state(path)
    trained = get_cfg()
    if "config" in checkpoint:
        trained.merge_from_other_cfg(CfgNode(yaml.safe_load(checkpoint["config"])))
    elif cfg is None:
        raise ValueError(f"{path} does not hold its configuration; name one with --config-file")
    cfg = (cfg or trained).clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.CLIP.TEXT_TOWER = False
    if "config" in checkpoint:
        cfg.MODEL.CLIP.CAMERAS = trained.MODEL.CLIP.CAMERAS
        cfg.MODEL.HEADS.NUM_CLASSES = trained.MODEL.HEADS.NUM_CLASSES
    if device:
        cfg.MODEL.DEVICE = device
    cfg.freeze()
    model = SAGATrainer.build_model(cfg)
    hand_over(model, checkpoint["model"], (), str(path))
    return cfg, model.eval()


def model_layout(model: nn.Module, width: int) -> dict[str, int]:
    """Parts of a model's evaluation feature of a width; one part, "feature", for a FastReID head."""
    return getattr(model, "feature_layout", None) or {"feature": width}


def fingerprint(state: Mapping[str, Tensor], *settings: Any) -> str:
    """32 hex digits of weights and settings: equal names, values and texts give equal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    for setting in settings:
        digest.update(repr(setting).encode())
    return digest.hexdigest()


# ---- features of many models in one pass -------------------------------------------------------------------------------

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
    weights: Optional[Tensor] = None
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
    share: Optional[np.ndarray] = None
    area: dict[str, np.ndarray] = field(default_factory=dict)


def extract(
    models: Sequence[tuple[Any, nn.Module]],
    loader: Iterable[dict[str, Any]],
    *,
    views: Optional[Sequence[int]] = None,
    weights: bool = False,
    description: str = "images",
) -> tuple[list[Extraction], Labels]:
    """Features of every image from every model, in one pass; TEST.FLIP as the model's config says.

    Models whose towers are equal, weights and settings, and see the same view share the tower's pass.

    Args:
        models: (config, model in evaluation mode).
        views: of each model, which view of an `OccludedSet`; None: a loader of `build_test_loader`.
        weights: also the heads' patch weights.
    """
    keys = [f"/{view}" for view in views] if views is not None else [""] * len(models)
    groups: dict[Any, list[int]] = {}
    for i, (cfg, model) in enumerate(models):
        groups.setdefault((keys[i], _tower_key(cfg, model) or i, cfg.TEST.FLIP.ENABLED), []).append(i)
    features: list[list[Tensor]] = [[] for _ in models]
    maps: list[list[Tensor]] = [[] for _ in models]
    on: list[dict[str, list[Tensor]]] = [{k: [] for k in MAPS} for _ in models]
    labels: dict[str, list] = {k: [] for k in ("targets", "camids", "img_paths", "share", *MAPS)}
    with torch.inference_mode(), compat.quiet_host(), tqdm(desc=description, unit="image", disable=None) as bar:
        for batch in loader:
            for (key, _, flip), members in groups.items():
                images = batch[f"images{key}"]
                inputs = {"cameras": batch[f"cameras{key}"]}
                tower, outs = _outputs([models[i][1] for i in members], {**inputs, "images": images})
                if flip:
                    _, flipped = _outputs([models[i][1] for i in members], {**inputs, "images": images.flip(3)})
                    outs = [(a + b) / 2 for a, b in zip(outs, flipped)]
                for i, out in zip(members, outs):
                    features[i].append(out.float().cpu())
                    head = models[i][1].heads if hasattr(models[i][1], "heads") else None
                    if not weights or tower is None or not hasattr(head, "token_weights"):
                        continue
                    grid = as_features(tower).grid
                    of_patch = head.token_weights(tower).float().cpu()
                    maps[i].append(of_patch.unflatten(1, grid))
                    for kind in MAPS:
                        if f"{kind}{key}" in batch:
                            patches = F.adaptive_avg_pool2d(batch[f"{kind}{key}"].cpu()[:, None], grid).flatten(1)
                            on[i][kind].append((of_patch * patches).sum(1))
            for name in ("targets", "camids", "share"):
                if name in batch:
                    labels[name].append(batch[name].cpu())
            labels["img_paths"].extend(batch["img_paths"])
            for kind in MAPS:
                if f"{kind}{keys[0]}" in batch:
                    labels[kind].append(batch[f"{kind}{keys[0]}"].cpu().mean((1, 2)))
            bar.update(len(batch["img_paths"]))

    def arrays(parts: Mapping[str, list[Tensor]], names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: torch.cat(parts[name]).numpy() for name in names if parts[name]}

    of_images = arrays(labels, ("targets", "camids", "share"))
    return (
        [Extraction(torch.cat(f), torch.cat(m) if m else None, arrays(o, MAPS)) for f, m, o in zip(features, maps, on)],
        Labels(
            of_images["targets"],
            of_images["camids"],
            labels["img_paths"],
            of_images.get("share"),
            arrays(labels, MAPS),
        ),
    )


def _tower_key(cfg, model: nn.Module) -> Optional[str]:
    """Equal for models whose heads may read one pass of the backbone; None for a meta-architecture with its own ways."""
    if type(model).forward not in (Baseline.forward, SAGABaseline.forward):
        return None
    settings = {k: v for k, v in cfg.MODEL.BACKBONE.items() if not k.startswith("PRETRAIN")}
    pixels = {"mean": model.pixel_mean, "std": model.pixel_std}
    return fingerprint({**model.backbone.state_dict(), **pixels}, type(model), settings, dict(cfg.MODEL.CLIP))


def _outputs(models: Sequence[nn.Module], batch: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """The tower's output, None where a model stands alone, and each model's features."""
    first = models[0]
    if isinstance(first, SAGABaseline):
        tower = first.extract(batch)
    elif type(first).forward is Baseline.forward:
        # FastReID normalises in place
        tower = first.backbone(first.preprocess_image(batch["images"].to(first.device, copy=True)))
    else:
        copies = {k: v.to(first.device, copy=True) for k, v in batch.items()}
        return None, [first(copies)]
    return tower, [model.heads(tower) for model in models]
