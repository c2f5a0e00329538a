"""A model from its configuration, and its weights from a checkpoint: no trainer, nothing of training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.modeling import meta_arch

from ..compat.pretraining import backbone_settings, checked_pretraining
from ..errors import first_few
from .clip.towers import weights_read_once
from .foreign.loaders import for_loader
from .heads import text_towers

__all__ = ["build_model", "check_left_over", "fingerprint", "fresh_weights", "hand_over", "model_layout"]

logger = logging.getLogger(__name__)


def build_model(cfg: Any, *, text_tower: bool = True) -> nn.Module:
    """The model of a config, on MODEL.DEVICE, with every parameter as its modules make it.

    What training freezes or keeps in evaluation mode (MODEL.TRAINABLE, MODEL.EVAL_MODE) is the trainer's to apply.

    Args:
        text_tower: build CLIP's text tower for a head that trains with it. Evaluation and export need none: what it
            gives (text anchors, texts of identities) is stored in the checkpoint.

    Raises:
        ValueError: a pretrained file that does not fill the backbone, or needs code.
    """
    with checked_pretraining(for_loader), backbone_settings(), weights_read_once(), text_towers(text_tower):
        return meta_arch.build_model(cfg)


# Which key decides whether weights are there at all, for messages.
_DECIDED_BY = {
    "backbone.camera_embedding": "MODEL.CLIP.SIE_CAMERA and MODEL.CLIP.CAMERAS",
    "heads.domain_anchors.camera.": "MODEL.CLIP.CAMERAS",
    "heads.domain_anchors.": "MODEL.SAGA.NUM_DOMAIN_ANCHORS and DOMAIN_ANCHORS",
    "heads.refine.": "MODEL.SAGA.REFINE_LAYERS and MODEL.CLIP.TOKEN_LAYERS",
    "heads.proj.": "MODEL.SAGA.EMBEDDING_DIM",
    "heads.embedding.": "MODEL.HEADS.EMBEDDING_DIM",
}
# Weights of a checkpoint that no evaluated feature depends on, as glob patterns.
_NOT_EVALUATED = (
    "heads.text_encoder.*",
    "heads.text_anchors.*",
    "heads.prompts.*",
    "heads.text_features",
    "heads.prompt_context",
    "heads.classifier*",
    "heads.bottleneck_proj.*",
    "pixel_mean",
    "pixel_std",
)


def fresh_weights(model: nn.Module, new_weights: Sequence[str]) -> set[str]:
    """Names of the weights that glob patterns (MODEL.NEW_WEIGHTS) let start afresh."""
    return {n for n in model.state_dict() if any(fnmatchcase(n, p) for p in new_weights)}


def hand_over(
    model: nn.Module, source: Mapping[str, Tensor], new_weights: Sequence[str], origin: str, *, starts: bool = True
) -> set[str]:
    """Load every weight that `model` expects from `source`, except those declared new.

    Args:
        new_weights: glob patterns of weights that keep their fresh start even where the source has them.
        origin: what the source is, for messages.
        starts: whether the model starts to train from here, so that weights may be declared new.

    Returns:
        The names that kept their fresh start.

    Raises:
        ValueError: an expected weight is missing or has another shape; the message names them and the remedy.
    """
    expected = model.state_dict()
    fresh = fresh_weights(model, new_weights)
    wanted = [n for n in expected if n not in fresh]
    missing = [n for n in wanted if n not in source]
    misshapen = {
        n: f"{n} {tuple(source[n].shape)}, expected {tuple(expected[n].shape)}"
        for n in wanted
        if n in source and source[n].shape != expected[n].shape
    }
    if wanted and len(missing) == len(wanted):
        raise ValueError(
            f"{origin} holds none of the model's {len(wanted)} weights, which are named like {first_few(wanted, 2)}; "
            f"its {len(source)} are named like {first_few(source, 2)}. {_what_it_is(wanted, source)}"
        )
    if missing or misshapen:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing: {first_few(missing, 8)}{_keys_of(missing)}")
        if misshapen:
            shapes = first_few(misshapen.values(), 8)
            parts.append(f"{len(misshapen)} of another shape: {shapes}{_keys_of(misshapen)}")
        remedy = "The checkpoint or the configuration is the wrong one"
        if starts:
            remedy = (
                "If these are meant to start afresh, add their glob patterns to MODEL.NEW_WEIGHTS; otherwise the "
                "checkpoint or the configuration is the wrong one"
            )
        raise ValueError(f"{origin} does not fit the model; {'; '.join(parts)}. {remedy}")
    model.load_state_dict({n: source[n] for n in wanted}, strict=False)
    unused = sorted({".".join(n.split(".")[:2]) for n in source if n not in expected or n in fresh})
    logger.info(
        "%s: %d weights loaded, %d start afresh, not used: %s",
        origin,
        len(wanted),
        len(fresh),
        first_few(unused, 8) or "-",
    )
    return fresh


def check_left_over(model: nn.Module, source: Mapping[str, Tensor], origin: str, *, below: str = "") -> None:
    """See that a model has a place for all that decides a feature in a checkpoint that holds no configuration.

    Args:
        below: look at weights whose names begin so.

    Raises:
        ValueError: weights, or pixel means, that would be dropped.
    """
    expected = model.state_dict()
    left = [n for n in source if n not in expected and n.startswith(below)]
    left = [n for n in left if not any(fnmatchcase(n, p) for p in _NOT_EVALUATED)]
    if left:
        raise ValueError(
            f"{origin} holds {len(left)} weights that the model has no place for: "
            f"{first_few(left, 8)}{_keys_of(left)}. It was trained with a part that this configuration leaves out: "
            "set its keys as it was trained"
        )
    for name in ("pixel_mean", "pixel_std"):
        if name in source and not torch.equal(source[name].flatten().cpu(), getattr(model, name).flatten().cpu()):
            values = [source[name].flatten().tolist(), getattr(model, name).flatten().tolist()]
            raise ValueError(f"{origin} was trained with MODEL.{name.upper()} {values[0]}, not {values[1]}: set it so")


def _keys_of(names: Collection[str]) -> str:
    """The keys that decide about weights, for messages."""
    keys = {key: None for prefix, key in _DECIDED_BY.items() if any(n.startswith(prefix) for n in names)}
    return f" (decided by {', '.join(keys)})" if keys else ""


def _what_it_is(wanted: Sequence[str], source: Mapping[str, Tensor]) -> str:
    """What a file without a single expected name probably is, and what to do with it."""
    first = wanted[0]
    if prefix := next((n.removesuffix(first) for n in source if n.endswith(f".{first}")), ""):
        return f"They fit with {prefix!r} taken off: save the state dict without it"
    own = {n.removeprefix("backbone.") for n in wanted if n.startswith("backbone.")}
    if own & set(source):
        return "These are a backbone's alone, which MODEL.BACKBONE.PRETRAIN_PATH reads"
    if any(n.startswith("visual.") for n in source):
        return "These are CLIP's own, which MODEL.BACKBONE.PRETRAIN_PATH reads"
    return (
        "Towers of other projects are read in the layouts that docs/foreign_weights.md lists; "
        "tools/convert_checkpoint.py knows SAGA-ReID's and CLIP-ReID's whole models"
    )


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
