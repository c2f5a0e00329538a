"""A trained model from its checkpoint alone: no CLIP weights, no text tower, no training data, no trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from ..hardware import pick_device
from ..modeling.agreement import check_agreement, check_converted, trained_config
from ..modeling.build import build_model, check_left_over, hand_over
from ..modeling.foreign import as_named_here
from ..weights import load_state

__all__ = ["FINAL", "checkpoint_file", "load_model"]

FINAL = "model_final"  # name of a finished run's checkpoint, without .pth


def checkpoint_file(path: str | os.PathLike) -> Path:
    """The .pth file of a path that may be the folder of a run: its final checkpoint.

    Raises:
        FileNotFoundError: nothing there; the folder of several stages, whose message names them.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}; name a .pth file, or the folder of a finished run")
        return path
    final = path / f"{FINAL}.pth"
    if not final.is_file():
        stages = sorted(p.parent.name for p in path.glob(f"*/{final.name}"))
        hint = f"it holds several stages, name one: {', '.join(stages)}" if stages else "name a finished run"
        raise FileNotFoundError(f"no {final.name} in {path}; {hint}")
    return final


def load_model(path: str | os.PathLike, cfg: Any | None = None, device: str | None = None) -> tuple[Any, nn.Module]:
    """Build the model of a checkpoint and load every weight of it.

    Args:
        path: a .pth file, or the folder of a run (its final checkpoint).
        cfg: the config to build it by; None for the one that the checkpoint was trained with.
        device: None for the config's; "auto" for the GPU where there is one.

    Returns:
        (config, model in evaluation mode). What only the checkpoint knows, the number of identities and the cameras, is
        filled into the config; the text tower is left out, since anchors are stored.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it does not fit the config, was trained as another function (`modeling.agreement`), or is none; no
            such device here.
    """
    device = device and pick_device(device)
    path = checkpoint_file(path)
    checkpoint = load_state(path)
    trained = trained_config(checkpoint, str(path))
    if cfg is None:
        if trained is None:
            raise ValueError(
                f"{path} does not hold its configuration, so only a command that is given one can use it: "
                "tools/train_net.py --eval-only and tools/occlusion_study.py, or load_model(path, cfg) from Python"
            )
        cfg = trained
    elif trained is not None:
        check_agreement(trained, cfg, str(path))
    else:
        check_converted(checkpoint, cfg, str(path))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if trained is not None:
        cfg.MODEL.CLIP.CAMERAS = trained.MODEL.CLIP.CAMERAS
        cfg.MODEL.HEADS.NUM_CLASSES = trained.MODEL.HEADS.NUM_CLASSES
    cfg.MODEL.DEVICE = device or pick_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    model = build_model(cfg, text_tower=False)
    weights = as_named_here(model, checkpoint["model"], str(path))
    hand_over(model, weights, (), str(path), starts=False)
    if trained is None:
        check_left_over(model, weights, str(path))
    return cfg, model.eval()
