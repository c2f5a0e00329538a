"""FastReID's own loading of weights: without code, and never in part without a word; and its settings of backbones."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import fastreid

from ..errors import first_few
from ..weights import read_file, state_dict_in

__all__ = ["backbone_settings", "checked_pretraining"]


@contextmanager
def backbone_settings() -> Iterator[None]:
    """Let FastReID's RegNets and EfficientNets find their settings from any current folder.

    Why: modeling/backbones/regnet/regnet.py:551 and effnet.py:244 open ``fastreid/modeling/...yaml``, which is there in
    FastReID's own checkout alone.
    Goes when: FastReID names these files by its own place.
    """
    merge = CfgNode.merge_from_file

    def merge_from_file(self, name: str) -> None:
        if not os.path.isfile(name) and Path(name).parts[0] == "fastreid":
            name = str(Path(fastreid.__file__).parents[1] / name)
        merge(self, name)

    CfgNode.merge_from_file = merge_from_file
    try:
        yield
    finally:
        CfgNode.merge_from_file = merge


_BACKBONES = "fastreid.modeling.backbones."


@contextmanager
def checked_pretraining(adapt: Callable[[str, nn.Module | None, Any, str], Any] | None = None) -> Iterator[None]:
    """Let FastReID's loaders inside the scope read weights without running code, and fill a model or stop.

    Args:
        adapt: gives what a file holds in the form that a loader of backbones looks for, from the last part of the name
            of the loader's module, the backbone (None while a download is read), the content and the path.

    Why: modeling/backbones/*.py and utils/checkpoint.py:216 call ``torch.load``, torch's hub with weights_only off; and
    every ``load_state_dict`` there is ``strict=False``: a file of another model leaves random weights, and a run trains
    from them with a line in its log.
    Goes when: FastReID refuses a file that does not fill the model.
    """
    load, load_state_dict = torch.load, nn.Module.load_state_dict
    path, content = "", {}

    def load_safely(file, *args, **kwargs):
        nonlocal path, content
        if not isinstance(file, (str, os.PathLike)):
            return load(file, *args, **(kwargs | {"weights_only": True}))
        if not str(file):
            raise FileNotFoundError(
                "MODEL.BACKBONE.PRETRAIN is True, but PRETRAIN_PATH is empty and FastReID has nothing to download for "
                "this backbone: name a file, or set MODEL.BACKBONE.PRETRAIN False for random weights"
            )
        path, content = str(file), read_file(file)
        caller = sys._getframe(1)
        module = caller.f_globals.get("__name__", "")
        if adapt is not None and module.startswith(_BACKBONES):
            content = adapt(module.rpartition(".")[2], caller.f_locals.get("model"), content, path)
        return content

    def load_strictly(self, state_dict, strict=True, *args, **kwargs):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not strict and caller.startswith("fastreid."):
            _must_fill(self, state_dict, path, content)
        return load_state_dict(self, state_dict, strict, *args, **kwargs)

    torch.load, nn.Module.load_state_dict = load_safely, load_strictly
    try:
        yield
    except KeyError as error:  # the loaders of ResNeXt, ShuffleNet and the RegNets look for one level
        level = error.args[0] if error.args else None
        if path and level in ("model", "state_dict", "model_state"):
            raise ValueError(
                f"{path} has no level {level!r}, where FastReID's loader of this backbone looks for the weights: save "
                f"the state dict as {{{level!r}: state_dict}}"
            ) from error
        raise
    finally:
        torch.load, nn.Module.load_state_dict = load, load_state_dict


def _must_fill(model: nn.Module, state: Mapping[str, Tensor], path: str, content: Any) -> None:
    """See that a pretrained file has every weight of a model, in its shape.

    Not asked for: non-local blocks, which start as the identity and are in no ImageNet file, and counts of batches.

    Raises:
        ValueError: names what is missing or of another shape, and what to do.
    """
    own = model.state_dict()
    wanted = [k for k in own if not re.match(r"NL_\d+\.", k) and not k.endswith("num_batches_tracked")]
    # OSNet's loader puts a download's weights among the model's own, so what the file lacks comes back as the model's
    missing = [k for k in wanted if k not in state or state[k].data_ptr() == own[k].data_ptr()]
    shapes = [(k, tuple(state[k].shape), tuple(own[k].shape)) for k in wanted if k in state]
    misshapen = [f"{k} {found}, expected {expected}" for k, found, expected in shapes if found != expected]
    if not missing and not misshapen:
        return
    names = list(state_dict_in(content, path) if path else state)
    hint = "Expected weights of this very backbone: see MODEL.BACKBONE.NAME, DEPTH, WITH_IBN and WITH_SE"
    if set(missing) & set(names):
        hint = "The file has them under another level, or behind a prefix: save the state dict alone"
    elif prefix := next((k.removesuffix(m) for m in missing[:1] for k in names if k.endswith(f".{m}")), ""):
        hint = f"They fit with {prefix!r} taken off: save the state dict without it"
    problems = [f"{len(missing)} of {len(wanted)} weights are missing, such as {missing[0]}"] if missing else []
    problems += [f"{len(misshapen)} have another shape, such as {misshapen[0]}"] if misshapen else []
    raise ValueError(
        f"{path} does not fill {type(model).__name__}: {'; '.join(problems)}; the file's names begin with "
        f"{first_few(names, 2)}. {hint}; or set MODEL.BACKBONE.PRETRAIN False for random weights"
    )
