"""A trained model from its checkpoint alone: no CLIP weights, no text tower, no training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import yaml
from fastreid.config import CfgNode
from torch import nn

from ..config import get_cfg
from .checkpoint import hand_over, load_state
from .hooks import CheckpointHook
from .trainer import SAGATrainer

__all__ = ["load_model"]


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
