"""Does a configuration ask for the function that a checkpoint was trained as?

The shapes of the weights do not tell: under another number of attention heads, camera factor, pool or pixel mean the
same weights compute another feature, and with one refinement layer less the second is dropped without a word. So every
key below MODEL and INPUT is compared with the configuration that the checkpoint holds, except those of
`TRAINING_ONLY`: a new key counts until it is named there. What a user means to change is named in
MODEL.ACCEPT_DIFFERENCES.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import yaml

from fastreid.config import CfgNode

from ..config import flatten, get_cfg
from ..errors import first_few
from ..retired import take_out
from .clip.activation import HF_CONFIG, check_activation, names_of_both
from .clip.towers import clip_dims

__all__ = [
    "COUNTED",
    "TRAINING_ONLY",
    "accepted",
    "check_agreement",
    "check_converted",
    "check_hand_over",
    "differing_keys",
    "trained_config",
]

logger = logging.getLogger(__name__)

# Keys, as glob patterns, that cannot change an evaluated feature of given weights.
TRAINING_ONLY = (
    # where it runs, what it starts from and what of it trains
    "MODEL.DEVICE",
    "MODEL.COMPILE",
    "MODEL.WEIGHTS",
    "MODEL.NEW_WEIGHTS",
    "MODEL.ACCEPT_DIFFERENCES",
    "MODEL.TRAINABLE",
    "MODEL.EVAL_MODE",
    "MODEL.FREEZE_LAYERS",
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "MODEL.BACKBONE.GRAD_CHECKPOINT",
    "MODEL.CLIP.PRETRAIN_PATH",
    "MODEL.SAGA.INIT_BLOCK",
    # losses, and what only they read: classifiers, prompts, the text tower behind stored anchors
    "MODEL.LOSSES.*",
    "MODEL.QUEUE_SIZE",
    "MODEL.HEADS.CLS_LAYER",
    "MODEL.HEADS.MARGIN",
    "MODEL.HEADS.NECK_BIAS",
    "MODEL.HEADS.SCALE",
    "MODEL.HEADS.TRAIN_PROJ",
    "MODEL.SAGA.NUM_CLASSIFIERS",
    "MODEL.SAGA.PHRASE_CONTEXT",
    "MODEL.PROMPT.*",
    # dropout
    "MODEL.BACKBONE.DROP_PATH_RATIO",
    "MODEL.BACKBONE.DROP_RATIO",
    "MODEL.BACKBONE.ATT_DROP_RATE",
    "MODEL.SAGA.DROPOUT",
    "MODEL.SAGA.CLASSIFIER_DROPOUT",
    # augmentation
    "INPUT.FLIP.*",
    "INPUT.PADDING.*",
    "INPUT.CJ.*",
    "INPUT.AFFINE.*",
    "INPUT.AUTOAUG.*",
    "INPUT.AUGMIX.*",
    "INPUT.REA.*",
    "INPUT.RPT.*",
    "INPUT.OCCLUDE.*",
    "INPUT.CROP.SCALE",
    "INPUT.CROP.RATIO",
)
# Filled in by a run, and taken over from the checkpoint.
COUNTED = ("MODEL.HEADS.NUM_CLASSES", "MODEL.CLIP.CAMERAS")
# What makes a head, and which outputs of the tower it reads: another head on the same tower is no other tower.
HEAD = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.HEADS.*",
    "MODEL.SAGA.*",
    "MODEL.CLIP.TOKEN_LAYERS",
    "MODEL.BACKBONE.OUTPUT",
    "MODEL.BACKBONE.FEAT_DIM",
)
# Batch norms that differ in how they take statistics, not in how they use them.
_SAME_NORM = {"syncBN": "BN", "GhostBN": "BN", "FrozenBN": "BN"}


def trained_config(checkpoint: Mapping[str, Any], origin: str) -> CfgNode | None:
    """The configuration that a checkpoint holds, over today's defaults; None where it holds none.

    Raises:
        ValueError: it cannot be read, or has keys of a model or its images that are not known here, or retired ones
            with a value that asks for what is gone.
    """
    if "config" not in checkpoint:
        return None
    cfg = get_cfg()
    try:
        stored = take_out(yaml.safe_load(checkpoint["config"]) or {}, origin, level=logging.INFO)
        known, given = flatten(cfg), flatten(stored)
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the configuration in {origin} cannot be read ({type(error).__name__}); save it again"
        ) from error
    unknown = [key for key in given if key not in known]
    if counted := [key for key in unknown if _compared(key)]:
        raise ValueError(
            f"{origin} was trained with {first_few(counted, 6)}, which are no keys here: import the module that adds "
            "them (--import), or use the version of this package that it was trained with"
        )
    for key in unknown:
        owner = stored
        *sections, name = key.split(".")
        for section in sections:
            owner = owner[section]
        del owner[name]
    cfg.merge_from_other_cfg(CfgNode(stored))
    return cfg


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _compared(key: str) -> bool:
    return key.startswith(("MODEL.", "INPUT.")) and key not in COUNTED and not _matches(key, TRAINING_ONLY)


def differing_keys(trained: CfgNode, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Keys in which two configurations describe other functions of the same weights: key -> (trained, given)."""
    before, now = flatten(trained), flatten(cfg)
    pairs = {key: (before.get(key), value) for key, value in now.items() if _compared(key)}
    return {key: (a, b) for key, (a, b) in pairs.items() if _value(key, a) != _value(key, b)}


def _value(key: str, value: Any) -> Any:
    return _SAME_NORM.get(value, value) if key.endswith(".NORM") else value


def accepted(name: str, cfg: CfgNode) -> bool:
    """Whether MODEL.ACCEPT_DIFFERENCES names a key (or "identities", "cameras", which are no keys)."""
    return _matches(name, cfg.MODEL.ACCEPT_DIFFERENCES)


def check_agreement(trained: CfgNode, cfg: CfgNode, origin: str) -> None:
    """See that a checkpoint, evaluated or resumed under `cfg`, is the function that it was trained as.

    Raises:
        ValueError: the keys that differ and are not accepted, with both values and the remedy.
    """
    _refuse(differing_keys(trained, cfg), cfg, origin)


def check_hand_over(trained: CfgNode, cfg: CfgNode, handed_over: Collection[str], origin: str) -> None:
    """The same for a run that starts from a checkpoint: of what it takes over. What starts afresh may differ.

    Args:
        handed_over: names of the parameters that it takes over.
    """
    tower = [name for name in handed_over if name.startswith("backbone.")]
    different = differing_keys(trained, cfg)
    if len(tower) == len(handed_over):  # another head on this tower
        different = {key: values for key, values in different.items() if not _matches(key, HEAD)}
    if not tower:
        different = {key: values for key, values in different.items() if _matches(key, HEAD)}
    # Images of a stage are its own, but a position embedding was made for a grid.
    size = {"INPUT.SIZE_TRAIN"} if any(re.search(r"pos(itional)?_embed", name) for name in tower) else set()
    _refuse({k: v for k, v in different.items() if not k.startswith("INPUT.") or k in size}, cfg, origin)


def check_converted(checkpoint: Mapping[str, Any], cfg: CfgNode, origin: str) -> None:
    """See that a converted checkpoint, which holds no configuration, is computed with its activation.

    The conversion writes it as "quick_gelu". Files of before have it not: the published code knows QuickGELU alone.

    Raises:
        ValueError: MODEL.CLIP.NAME computes the other one.
    """
    published = checkpoint.get("published")
    published_here = isinstance(published, Mapping) and published.get("layout") not in (None, "clip")
    if not ("quick_gelu" in checkpoint or published_here) or accepted("MODEL.CLIP.NAME", cfg):
        return
    name, quick_gelu = cfg.MODEL.CLIP.NAME, checkpoint.get("quick_gelu", True)
    if not any(key.startswith("backbone.visual.") for key in checkpoint["model"]):
        return
    if quick_gelu is not None:
        check_activation(origin, (bool(quick_gelu), "by its conversion"), name, clip_dims(name).quick_gelu)
    elif both := names_of_both(name):
        raise ValueError(
            f"{origin} was converted from a file that did not say whether it was trained with GELU or QuickGELU, and "
            f"both {both[0]} and {both[1]} have its shapes: put its {HF_CONFIG} beside that file and convert it again, "
            """or name "MODEL.CLIP.NAME" in MODEL.ACCEPT_DIFFERENCES where you know it"""
        )


def _refuse(different: Mapping[str, tuple[Any, Any]], cfg: CfgNode, origin: str) -> None:
    meant = {key: values for key, values in different.items() if accepted(key, cfg)}
    if meant:
        logger.warning("%s: accepted by MODEL.ACCEPT_DIFFERENCES: %s", origin, _pairs(meant))
    others = {key: values for key, values in different.items() if key not in meant}
    if others:
        raise ValueError(
            f"{origin} was trained with {_pairs(others)}: the same weights then compute something else. Set the keys "
            f"as it was trained, or name those that you mean in MODEL.ACCEPT_DIFFERENCES '{_quoted(others)}'"
        )


def _pairs(different: Mapping[str, tuple[Any, Any]]) -> str:
    return first_few([f"{key} {before!r}, not {now!r}" for key, (before, now) in different.items()], 6, "; ")


def _quoted(keys: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{key}"' for key in keys) + "]"
