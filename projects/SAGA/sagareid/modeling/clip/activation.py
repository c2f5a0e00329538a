"""Which activation CLIP's weights were trained with: the wrong one costs accuracy without an error, and no shape tells.

OpenAI trained with QuickGELU, x * sigmoid(1.702 x); so did some of open_clip's own. A state dict in OpenAI's layout may
be either's, so it counts as OpenAI's unless open_clip's configuration lies beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import open_clip

from ...files import read_json

__all__ = ["HF_CONFIG", "check_activation", "trained_with_quick_gelu"]

HF_CONFIG = "open_clip_config.json"  # beside the weights in every repository of open_clip's
_SUFFIX = "-quickgelu"
_NAMES = {True: "QuickGELU", False: "GELU"}


def trained_with_quick_gelu(
    path: str | Path, names: Collection[str], tag: Mapping[str, Any] | None = None
) -> tuple[bool, str] | None:
    """Whether weights were trained with QuickGELU and how that is known; None where only the model's name says.

    Args:
        path: of the file.
        names: of its tensors, as they are in the file.
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
    if "token_embedding.weight" in names:
        return True, "as everything in OpenAI's layout"
    return None  # with a text tower of its own ("text."), or a model of this package


def check_activation(path: str | Path, found: tuple[bool, str], name: str, quick_gelu: bool) -> None:
    """See that a model of open_clip's `name` has the activation that weights were trained with.

    Raises:
        ValueError: it has the other; the message names the model that has it.
    """
    wanted, reason = found
    if wanted == quick_gelu:
        return
    other = f"{name}{_SUFFIX}" if wanted else name.removesuffix(_SUFFIX)
    known = other != name and other in open_clip.list_models()
    remedy = (
        f"Set MODEL.CLIP.NAME {other}" if known else f"open_clip has no {name} with {_NAMES[wanted]}: use other weights"
    )
    own = f"; if they are open_clip's own with GELU, put their {HF_CONFIG} beside them" if "layout" in reason else ""
    raise ValueError(
        f"{path} holds weights that were trained with {_NAMES[wanted]} ({reason}), but {name} computes "
        f"{_NAMES[quick_gelu]}. {remedy}{own}"
    )
