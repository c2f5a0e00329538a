"""A model from its configuration, and its weights from a checkpoint: no trainer, nothing of training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.modeling import meta_arch

__all__ = ["build_model", "fingerprint", "hand_over", "model_layout"]

logger = logging.getLogger(__name__)


def build_model(cfg: Any) -> nn.Module:
    """The model of a config, on MODEL.DEVICE, with every parameter as its modules make it.

    What training freezes or keeps in evaluation mode (MODEL.TRAINABLE, MODEL.EVAL_MODE) is the trainer's to apply.
    """
    return meta_arch.build_model(cfg)


def hand_over(model: nn.Module, source: Mapping[str, Tensor], new_weights: Sequence[str], origin: str) -> set[str]:
    """Load every weight that `model` expects from `source`, except those declared new.

    Args:
        new_weights: glob patterns of weights that keep their fresh start even where the source has them.
        origin: what the source is, for messages.

    Returns:
        The names that kept their fresh start.

    Raises:
        ValueError: an expected weight is missing or has another shape; the message names them and the remedy.
    """
    expected = model.state_dict()
    fresh = {n for n in expected if any(fnmatchcase(n, p) for p in new_weights)}
    wanted = [n for n in expected if n not in fresh]
    missing = [n for n in wanted if n not in source]
    misshapen = [
        f"{n} {tuple(source[n].shape)}, expected {tuple(expected[n].shape)}"
        for n in wanted
        if n in source and source[n].shape != expected[n].shape
    ]
    if missing or misshapen:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing: {_some(missing)}")
        if misshapen:
            parts.append(f"{len(misshapen)} of another shape: {_some(misshapen)}")
        raise ValueError(
            f"{origin} does not fit the model; {'; '.join(parts)}. If these are meant to start afresh, add their glob "
            "patterns to MODEL.NEW_WEIGHTS; otherwise the checkpoint or the configuration is the wrong one"
        )
    model.load_state_dict({n: source[n] for n in wanted}, strict=False)
    unused = sorted({".".join(n.split(".")[:2]) for n in source if n not in expected or n in fresh})
    logger.info(
        "%s: %d weights loaded, %d start afresh, not used: %s", origin, len(wanted), len(fresh), _some(unused) or "-"
    )
    return fresh


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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
