"""Weights of timm's models: of a tag or of a file, every one of them or an error.

No FastReID and no config in here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_pretrained
from torch import Tensor, nn

from ...compat.timm_loading import postponed_loading
from ...errors import first_few, first_line
from ...weights import read_state_dict
from ..clip.download import hub_or_cache
from ..foreign import recognise_tower, tower_weights
from ..foreign.tower import Tower
from .models import TimmModel, create, fit

__all__ = ["build"]

logger = logging.getLogger(__name__)


def build(model: TimmModel, *, pretrained: str | None) -> nn.Module:
    """A model of its image size and stride.

    Args:
        pretrained: a tag of timm, a file, or "" for the tag in the name or timm's first one; None for random weights.

    Raises:
        FileNotFoundError: no such tag or file, or nothing reachable. ValueError: weights that do not fill the model.
    """
    if pretrained is None:
        built = create(model)
        fit(built, model)
        return built
    file = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    if model.variant and file is None:
        raise FileNotFoundError(
            f"MODEL.BACKBONE.TIMM.VARIANT {model.variant} has parts that no weights of timm fill: set "
            "MODEL.BACKBONE.PRETRAIN_PATH to a file in its published layout (docs/foreign_weights.md), or "
            "MODEL.BACKBONE.PRETRAIN False for random weights"
        )
    if file is not None:
        state = read_state_dict(file)
        tower = recognise_tower(state, str(file))
        if model.variant or (tower is not None and not tower.is_timms):
            return _foreign(model, tower, str(file))
    source = model if file else _tagged(model, pretrained)
    with postponed_loading() as calls:
        built = create(source, pretrained=True)
    call = calls[-1]
    if file is None:
        _load(built, call, origin=f"the weights {source.name} of timm")
        fit(built, model)
        return built
    call["pretrained_cfg"] = dict(call["pretrained_cfg"]) | {"state_dict": state, "source": ""}
    resized = _of_size(state, built, model)
    if resized:
        fit(built, model)
    _load(built, call, origin=str(file))
    if not resized:
        fit(built, model)
    return built


def _foreign(model: TimmModel, tower: Tower | None, origin: str) -> nn.Module:
    """The model with a tower of another project in it.

    Raises:
        ValueError: it does not fill the model, or the file holds none.
    """
    if tower is None:
        raise ValueError(
            f"{origin} is in no layout of another project, and MODEL.BACKBONE.TIMM.VARIANT {model.variant} is for "
            "those: see docs/foreign_weights.md, or set MODEL.BACKBONE.PRETRAIN False for random weights"
        )
    built = create(model)
    fit(built, model)
    built.load_state_dict(tower_weights(built, tower, origin))
    return built


def _tagged(model: TimmModel, tag: str) -> TimmModel:
    """The model with the tag of its weights behind its name.

    Raises:
        FileNotFoundError: there is no such tag.
    """
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{model.architecture}*") if _is(name, model)]
    own = model.name.partition(".")[2]
    how = (
        f"Set MODEL.BACKBONE.PRETRAIN_PATH to a file, or to a tag of timm ({', '.join(tags) or 'none for this one'}); "
        "or set MODEL.BACKBONE.PRETRAIN False for random weights"
    )
    if own and tag and own != tag:
        raise FileNotFoundError(
            f"MODEL.BACKBONE.TIMM.NAME {model.name} names the tag {own}, MODEL.BACKBONE.PRETRAIN_PATH is {tag!r}: one "
            f"of the two. {how}"
        )
    first = timm.models.get_pretrained_cfg(model.architecture)
    wanted = tag or own or (first.tag if first is not None else "")
    if wanted not in tags:
        found = f"{wanted!r} is no file and no tag of {model.architecture}" if wanted else "PRETRAIN_PATH is empty"
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN is True, but {found}. {how}")
    name = f"{model.architecture}.{wanted}" if wanted else model.architecture
    return TimmModel(name, model.args, model.image_size, model.stride)


def _is(name: str, model: TimmModel) -> bool:
    return name.partition(".")[0] == model.architecture


def _of_size(state: Mapping[str, Tensor], built: nn.Module, model: TimmModel) -> bool:
    """Whether a file's position embedding is of the size that the model is to have, not of the model's own.

    timm's filters take one of another size for a square.
    """
    rows = state["pos_embed"].shape[1] if "pos_embed" in state and state["pos_embed"].dim() == 3 else 0
    own = getattr(built, "pos_embed", None)
    if not rows or not isinstance(own, Tensor) or own.dim() != 3 or rows == own.shape[1]:
        return False
    with torch.device("meta"):
        target = create(model)
        fit(target, model)
    return rows == target.pos_embed.shape[1]


def _load(built: nn.Module, call: dict[str, Any], origin: str) -> None:
    """timm's own loading, that must fill the model.

    Raises:
        FileNotFoundError: the weights could not be fetched. ValueError: they do not fill the model.
    """
    found: list[Any] = []
    handle = built.register_load_state_dict_post_hook(lambda module, keys: found.append(keys))
    cfg = call["pretrained_cfg"]
    try:
        if cfg.get("state_dict"):
            _refuse_misfit(built, call, origin)
        else:
            with hub_or_cache(_address(cfg)):
                _refuse_misfit(built, call, origin)
    except (ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"{origin} could not be fetched ({first_line(error) or type(error).__name__}). Set "
            "MODEL.BACKBONE.PRETRAIN_PATH to a file of them, or MODEL.BACKBONE.PRETRAIN False for random weights"
        ) from error
    finally:
        handle.remove()
    for keys in found[-1:]:
        _check_whole(built, keys.missing_keys, keys.unexpected_keys, cfg, origin)
    logger.info("weights of the image tower from %s", origin)


def _refuse_misfit(built: nn.Module, call: dict[str, Any], origin: str) -> None:
    try:
        load_pretrained(built, **call)
    except (RuntimeError, KeyError, AssertionError) as error:  # of load_state_dict, of a filter of timm
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{origin} does not fit {type(built).__name__}: {first_few(lines[1:] or lines, 4, '; ')}. See "
            "MODEL.BACKBONE.TIMM.NAME and ARGS, or set MODEL.BACKBONE.PRETRAIN False for random weights"
        ) from error


def _address(cfg: Mapping[str, Any]) -> str:
    """Where weights would be fetched from; empty where the file is in torch's cache."""
    if cfg.get("hf_hub_id"):
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    url = cfg.get("url") or ""
    kept = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    return "" if not url or kept.is_file() else url


def _check_whole(
    built: nn.Module, missing: Sequence[str], unexpected: Sequence[str], cfg: Mapping[str, Any], origin: str
) -> None:
    """timm logs what a file lacks and goes on; here that is an error.

    Raises:
        ValueError: a weight of the model is missing, or the file has more layers than the model.
    """
    own = set(built.state_dict())
    classifiers = cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    parts = {name.partition(".")[0] for name in own}
    left = [name for name in unexpected if not name.startswith(classifiers or ("\0",))]
    more = [name for name in left if name.partition(".")[0] in parts]
    if missing or more:
        found = [f"{len(missing)} of {len(own)} weights are missing: {first_few(missing, 4)}"] if missing else []
        found += [f"it has {len(more)} that the model has not: {first_few(more, 4)}"] if more else []
        raise ValueError(
            f"{origin} does not fill {type(built).__name__}: {'; '.join(found)}. See MODEL.BACKBONE.TIMM.NAME and "
            "ARGS; or set MODEL.BACKBONE.PRETRAIN False for random weights"
        )
    if left:
        logger.info("%s: left out, the model has no such parts: %s", origin, first_few(left, 8))
