"""Files for FastReID's own loaders of backbones, each of which looks under one level and behind one prefix."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import first_few
from ...weights import levels_in, state_dict_in
from . import recognise_tower, tower_weights
from .tower import ForeignError

__all__ = ["for_loader"]

logger = logging.getLogger(__name__)

# module of fastreid.modeling.backbones -> the level that its loader looks under, and what it takes off each name
_LOOKS_FOR = {
    "resnext": ("model", "module.encoder."),
    "shufflenet": ("state_dict", "module."),
    "effnet": ("model_state", ""),
}
_BUILDERS = {
    "resnet": "build_resnet_backbone",
    "osnet": "build_osnet_backbone",
    "vision_transformer": "build_vit_backbone",
}
_BACKBONE = "backbone."


def for_loader(loader: str, model: nn.Module | None, content: Any, origin: str) -> Any:
    """What a file holds, as one of FastReID's loaders looks for it.

    Levels and prefixes of wrappers come off, the backbone is taken out of a whole model, and a tower of another project
    is given FastReID's names.

    Args:
        loader: last part of the name of the loader's module.
        model: the backbone that it fills; None for a download.

    Raises:
        ForeignError: a tower that this backbone does not compute.
    """
    level, prefix = _LOOKS_FOR.get(loader, ("", ""))
    if model is None or not isinstance(content, Mapping) or (level and level in content):
        return content
    try:
        state = state_dict_in(content, origin)
    except ValueError:
        return content  # the loader's own error tells more
    if (tower := recognise_tower(state, origin)) is not None:
        if _BUILDERS.get(loader) not in tower.builders:
            raise ForeignError(
                f"{origin} is {tower.title}, which {type(model).__name__} does not compute: set {tower.wants()}"
            )
        return tower_weights(model, tower, origin)
    if any(name.startswith(_BACKBONE) for name in state):
        others = [name for name in state if not name.startswith(_BACKBONE)]
        state = {name[len(_BACKBONE) :]: value for name, value in state.items() if name.startswith(_BACKBONE)}
        if others:
            logger.info("%s: the backbone of a whole model; left out %s", origin, first_few(others, 4))
    if level:
        return {level: {prefix + name: value for name, value in state.items()}}
    return state if levels_in(content) or not set(state) <= set(map(str, content)) else content
