"""Weights from files, without running code that a file brings: of torch.save, safetensors, or a TorchScript archive.

A checkpoint of a run is {"model": state dict, "config": YAML text, ...}. Files of other code hold the state dict alone,
or under another level ("state_dict"), or with a prefix before every name ("module."): both are taken off here. Of the
two networks of self-distillation (DINO's "student" and "teacher") the teacher is taken, as the papers' own code does.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from .errors import first_few, first_line, out_of_memory

__all__ = ["PUBLISHED", "is_torchscript", "levels_in", "load_state", "read_file", "read_state_dict", "state_dict_in"]

# The weights of a model that is handed on, with its configuration as YAML in `PUBLISHED_CONFIG` beside them.
PUBLISHED, PUBLISHED_CONFIG = "model.safetensors", "config.yaml"

logger = logging.getLogger(__name__)

# Under which other code keeps its state dict, the one to take first, and what its wrappers put before every name.
LEVELS = ("model", "state_dict", "model_state_dict", "model_state", "module", "teacher", "target_encoder", "student")
PREFIXES = ("module.", "_orig_mod.")

_MULTIARRAY = import_module("numpy._core.multiarray")  # NumPy 1's pickles name it by its old place
# What trainers put beside the weights and cannot run anything: metrics as NumPy scalars, arrays, parsed arguments.
_ALLOWED = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(
        (getattr(_MULTIARRAY, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ),
]


# Itself: `compat.pretraining.checked_pretraining` lends FastReID's loaders the reading of this module in its place.
_torch_load = torch.load


def read_file(path: str | Path) -> Any:
    """What a weights file holds, on the CPU. Of a TorchScript archive the state dict, without calling the module.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, damaged, of another kind, or a pickle that needs code other than `_ALLOWED`.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file of weights in it")
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); copy or download it again")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        if is_torchscript(path):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        with torch.serialization.safe_globals(_ALLOWED):
            return _torch_load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|function) ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} was refused: it needs Python code to load ({code[1] or code[2]}). Expected plain tensors: "
                "save the state dict alone, or convert the file to .safetensors where you trust it."
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # of any class: what other bytes happen to mean to a reader
        if out_of_memory(error) or isinstance(error, PermissionError):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = re.sub(r"(?s)^.*WeightsUnpickler error: |^Weights only load failed\. *", "", str(error)).split(". ")[0]
    return ValueError(
        f"{path} is damaged or no weights file: {first_line(reason) or type(error).__name__}. Expected a file of "
        "torch.save, safetensors or TorchScript; copy or download it again"
    )


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is an archive of torch.jit.save, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def levels_in(found: Any) -> list[list[str]]:
    """Under which levels of a file its state dict is, from the outermost in; beside each, others that may hold one."""
    levels = []
    while isinstance(found, Mapping):
        there = [level for level in LEVELS if isinstance(found.get(level), Mapping)]
        if not there:
            break
        levels.append(there)
        found = found[there[0]]
    return levels


def state_dict_in(found: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in what a file holds: its levels and prefixes taken off, NumPy arrays made tensors.

    Where a file has more than one state dict, a line in the log says which was taken.

    Raises:
        ValueError: there are none.
    """
    for taken, *others in levels_in(found):
        if others:
            logger.info("%s: %r is taken, and not %s", path, taken, first_few(map(repr, others), 4))
        found = found[taken]
    if isinstance(found, Mapping):
        tensors = {str(k): torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in found.items()}
        state = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    else:
        state = {}
    if not state:
        keys = first_few(list(found), 6) if isinstance(found, Mapping) else ""
        held = f"the keys {keys}" if keys else "nothing" if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{path} holds no tensors by name, but {held}; expected a state dict")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a file. Errors as `read_file` and `state_dict_in`."""
    return state_dict_in(read_file(path), path)


def load_state(path: str | Path) -> dict[str, Any]:
    """A checkpoint: {"model": state dict, and what else its file says}; of a file of other code the "model" alone.

    Of a model that is handed on (`PUBLISHED`), the weights and the "config" beside them.

    Raises:
        FileNotFoundError: no such file. ValueError: as `read_file` and `state_dict_in`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; expected a .pth file of a run")
    found = read_file(path)
    own = isinstance(found, Mapping) and isinstance(found.get("model"), Mapping)
    config = path.with_name(PUBLISHED_CONFIG)
    if path.name == PUBLISHED and config.is_file():
        # what is no UTF-8 is no YAML either, and whoever reads it says so
        found, own = {"model": found, "config": config.read_text(encoding="utf-8", errors="surrogateescape")}, True
    return (dict(found) if own else {}) | {"model": state_dict_in(found, path)}
