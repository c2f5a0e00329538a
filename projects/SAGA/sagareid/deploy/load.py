"""A trained model from its checkpoint alone: no CLIP weights, no text tower, no training data, no trainer.

A checkpoint is called by its file, its run's folder, or a name (`names`): whatever takes one goes through here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from ..compat import registered
from ..config import reads_cameras
from ..errors import did_you_mean
from ..hardware import pick_device
from ..modeling.agreement import check_agreement, check_converted, trained_config
from ..modeling.build import build_model, check_left_over, hand_over
from ..modeling.foreign import as_named_here
from ..registry import DOMAIN_ANCHOR_REGISTRY, POOL_REGISTRY, fastreid_registries, part_names
from ..weights import PUBLISHED, load_state
from .names import folder_of_name, is_name, unknown_name
from .published import without_places

__all__ = ["FINAL", "checkpoint_file", "load_model", "own_folder"]

FINAL = "model_final"  # name of a finished run's checkpoint, without .pth


def checkpoint_file(path: str | os.PathLike) -> Path:
    """The file of weights of a model: itself, the final checkpoint of a run, or what is kept under a name.

    Args:
        path: a .pth file; the folder of a run, or one that `save_pretrained` wrote; a name (`names.list_models`,
            ``hf-hub:ORG/MODEL[@REVISION]``), which a file or folder of that name goes before.

    Raises:
        FileNotFoundError: nothing there; the folder of several stages, whose message names them.
        ConnectionError, ValueError: as `names.folder_of_name`.
    """
    if not os.fspath(path):
        raise FileNotFoundError(unknown_name(path))
    path = folder_of_name(path) if is_name(path) else Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(unknown_name(path))
        return path
    final = path / f"{FINAL}.pth"
    if not final.is_file():
        if (path / PUBLISHED).is_file():
            return path / PUBLISHED
        stages = sorted(p.parent.name for p in path.glob(f"*/{final.name}"))
        hint = f"it holds several stages, name one: {', '.join(stages)}" if stages else "name a finished run"
        raise FileNotFoundError(f"no {final.name} in {path}; {hint}")
    return final


def own_folder(path: str | os.PathLike, remedy: str) -> Path:
    """The folder of a checkpoint, where what a tool finds out about it is written unless another place is named.

    Args:
        remedy: how a tool is told another place, for the message.

    Raises:
        ValueError: it is called by a name, and the folder is the package's or a cache. OSError: nothing there.
    """
    if is_name(path):
        raise ValueError(f"{path} is a model by name, whose folder is not yours to write to: {remedy}")
    return checkpoint_file(path).parent


def load_model(path: str | os.PathLike, cfg: Any | None = None, device: str | None = None) -> tuple[Any, nn.Module]:
    """Build the model of a checkpoint and load every weight of it.

    Args:
        path: a file, a folder or a name, as of `checkpoint_file`.
        cfg: the config to build it by; None for the one that the checkpoint was trained with.
        device: None for the config's; "auto" for the GPU where there is one.

    Returns:
        (config, model in evaluation mode). What only the checkpoint knows, the number of identities and the cameras, is
        filled into the config; the text tower is left out, since anchors are stored.

    Raises:
        FileNotFoundError: no checkpoint there.
        ConnectionError: that of a hub is not in the cache, and the hub cannot be reached.
        ValueError: it does not fit the config, was trained as another function (`modeling.agreement`), needs parts
            that are not registered, or is none; no such device here.
    """
    device = device and pick_device(device)
    path = checkpoint_file(path)
    checkpoint = load_state(path)
    trained = trained_config(checkpoint, str(path))
    if trained is not None and path.name == PUBLISHED:
        trained = without_places(trained, str(path))
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
    _check_parts(cfg, str(path))
    _check_cameras(trained or cfg, str(path))
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


def _check_cameras(cfg: Any, origin: str) -> None:
    """See that a model of cameras has some: a checkpoint that holds no configuration does not name them."""
    if reads_cameras(cfg) and not cfg.MODEL.CLIP.CAMERAS:
        raise ValueError(
            f"MODEL.CLIP.CAMERAS is empty, and a model with MODEL.CLIP.SIE_CAMERA {cfg.MODEL.CLIP.SIE_CAMERA} and "
            f"MODEL.SAGA.DOMAIN_ANCHORS {cfg.MODEL.SAGA.DOMAIN_ANCHORS} embeds cameras. Name those that {origin} was "
            "trained with, in the order of their embeddings; or, where it was trained without, set these two keys so"
        )


def _check_parts(cfg: Any, origin: str) -> None:
    """See that the parts that a model is made of are registered."""
    ours = fastreid_registries()
    for key, name, known in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, registered(ours.meta_arch)),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, registered(ours.backbones)),
        ("MODEL.HEADS.NAME", cfg.MODEL.HEADS.NAME, registered(ours.heads)),
        ("MODEL.SAGA.POOL", cfg.MODEL.SAGA.POOL, part_names(POOL_REGISTRY)),
        ("MODEL.SAGA.DOMAIN_ANCHORS", cfg.MODEL.SAGA.DOMAIN_ANCHORS, part_names(DOMAIN_ANCHOR_REGISTRY)),
    ):
        if name not in known:
            raise ValueError(
                f"{origin} needs {key} {name!r}, which is not known here. Import the module that brings it: --import "
                f"MODULE of a tool, `import MODULE` in Python.{did_you_mean(name, known)}"
            )
