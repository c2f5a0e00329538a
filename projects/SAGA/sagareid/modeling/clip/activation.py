"""Which activation CLIP's weights were trained with: the wrong one costs accuracy without an error, and no shape tells.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x); so did some of open_clip's own. What says so, the first that there
is: open_clip's record of a tag; an open_clip_config.json beside the file; OpenAI's layout, which counts as OpenAI's.
Weights in another layout (the image tower alone, a text tower below "text.") may be anybody's: where open_clip knows
the model with both activations, they are refused until the configuration beside them says which.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from ...files import read_json

__all__ = ["HF_CONFIG", "check_activation", "names_of_both", "trained_with_quick_gelu"]

logger = logging.getLogger(__name__)

HF_CONFIG = "open_clip_config.json"  # beside the weights in every repository of open_clip's
_SUFFIX = "-quickgelu"
_NAMES = {True: "QuickGELU", False: "GELU"}


def trained_with_quick_gelu(
    path: str | Path, state: Mapping[str, Tensor] | Collection[str], tag: Mapping[str, Any] | None = None
) -> tuple[bool, str] | None:
    """Whether weights were trained with QuickGELU and how that is known; None where nothing but a model's name says.

    Args:
        path: of the file.
        state: its tensors by name, as they are in the file; or the names alone.
        tag: open_clip's record of a pretrained tag, where the file is one's.

    Raises:
        ValueError: a damaged configuration beside the file.
    """
    if tag:
        return bool(tag.get("quick_gelu", False)), "by open_clip's record of the tag"
    beside = Path(path).with_name(HF_CONFIG)
    if beside.is_file():
        remedy = "Fetch this configuration of open_clip's again, or move the weights to another folder"
        found = read_json(beside, remedy=remedy, required={"model_cfg": dict})["model_cfg"]
        return bool(found.get("quick_gelu", False)), f"by {HF_CONFIG} beside it"
    of_timm = any(name.startswith("visual.trunk.") for name in state)  # OpenAI has no image tower of timm's
    if "token_embedding.weight" in state and not of_timm:
        if isinstance(state, Mapping) and not _half(state):
            logger.warning(
                "%s is in OpenAI's layout, so it counts as trained with QuickGELU, but it holds numbers of more than "
                "half precision, which no file of OpenAI's does. %s",
                path,
                _say_so(False),
            )
        return True, "as everything in OpenAI's layout"
    return None


def _half(state: Mapping[str, Tensor]) -> bool:
    """Whether the weights that OpenAI stores in half precision are such numbers, whatever type holds them."""
    names = [name for name in state if name.startswith("visual.") and name.endswith(("conv1.weight", "in_proj_weight"))]
    return all((state[name] == state[name].half().to(state[name].dtype)).all() for name in names[:2])


def _say_so(quick_gelu: bool) -> str:
    """How a user says what a file does not."""
    content = f'{{"model_cfg": {{"quick_gelu": {str(quick_gelu).lower()}}}}}'
    return (
        f"If they are {'OpenAI' if quick_gelu else 'open_clip'}'s own with {_NAMES[quick_gelu]}, put their {HF_CONFIG} "
        f"beside them, or one that says {content}"
    )


def names_of_both(name: str) -> tuple[str, str] | None:
    """The names under which open_clip knows a model with GELU and with QuickGELU; None where it knows but one."""
    plain = name.removesuffix(_SUFFIX)
    both = (plain, plain + _SUFFIX)
    return both if set(both) <= set(open_clip.list_models()) else None


def check_activation(path: str | Path, found: tuple[bool, str] | None, name: str, quick_gelu: bool) -> None:
    """See that a model of open_clip's `name` has the activation that weights were trained with.

    Args:
        found: of `trained_with_quick_gelu`.
        quick_gelu: what the model computes.

    Raises:
        ValueError: it has the other, and the message names the model that has it; or the file may be of either.
    """
    both = names_of_both(name)
    if found is None:
        if both:
            raise ValueError(
                f"{path} does not say whether it was trained with GELU or QuickGELU, and both {both[0]} and {both[1]} "
                f"have its shapes. {_say_so(quick_gelu)}"
            )
        return
    wanted, reason = found
    if wanted == quick_gelu:
        return
    remedy = (
        f"Set MODEL.CLIP.NAME {both[wanted]}" if both else f"open_clip has no {name} with {_NAMES[wanted]}: use others"
    )
    own = f". {_say_so(False)}" if "layout" in reason else ""
    raise ValueError(
        f"{path} holds weights that were trained with {_NAMES[wanted]} ({reason}), but {name} computes "
        f"{_NAMES[quick_gelu]}. {remedy}{own}"
    )
