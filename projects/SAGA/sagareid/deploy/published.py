"""What is written of a model that is handed on: weights without their training, a configuration without places.

A folder of it holds `model.safetensors`, `config.yaml`, a model card, and the calibration and read-out of visibility
that stand beside the checkpoint. Whoever loads it (`load_model`) runs nothing that it brings: tensors, YAML, JSON.
"""

from __future__ import annotations

import functools
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import flatten, get_cfg
from ..errors import first_few
from ..files import file_hash, write_atomically, write_json, write_text
from ..weights import PUBLISHED, PUBLISHED_CONFIG
from .options import CALIBRATION, VISIBILITY
from .threshold import Threshold, read_calibration
from .visibility import load_readout

__all__ = ["side_files", "stored_weights", "without_places", "write_side_files", "write_weights"]

logger = logging.getLogger(__name__)

# Keys that name files, folders or devices of the machine where a model was trained. None of them is needed to use it.
PLACES = (
    "OUTPUT_DIR",
    "STAGES",
    "CACHE.DIR",
    "DATASETS.CUSTOM",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "KD.MODEL_CONFIG",
    "KD.MODEL_WEIGHTS",
)
# Text that a part may take for a file, a folder or an address.
_PLACE = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|local-dir:|\w+://")


def without_places(cfg: Any, origin: str) -> Any:
    """A configuration that names no place of another machine, and leaves the device to this one.

    Args:
        origin: what holds it, for messages.

    Raises:
        ValueError: another key of the model names a file, a folder or an address; the message names it.
    """
    plain, defaults = cfg.clone(), flatten(get_cfg())
    plain.defrost()
    plain.MODEL.DEVICE = "auto"
    dropped = []
    for key in PLACES:
        *sections, name = key.split(".")
        section = plain
        for part in sections:
            section = section[part]
        if section[name] != defaults[key]:
            dropped.append(key)
            section[name] = defaults[key]
    if dropped:
        logger.info("%s: left out, since they name places where it was trained: %s", origin, first_few(dropped, 8))
    if found := [f"{key} {text!r}" for key, text in _texts(plain) if _PLACE.match(text)]:
        raise ValueError(
            f"{origin} names files of the machine where it was trained: {first_few(found, 4)}. A model that is handed "
            "on is whole without them: train and publish it with a name that this package or open_clip knows"
        )
    plain.freeze()
    return plain


def _texts(cfg: Any) -> Iterator[tuple[str, str]]:
    """Every text below MODEL and INPUT, with its key."""
    for key, value in flatten(cfg).items():
        if key.startswith(("MODEL.", "INPUT.")) and key != "MODEL.CLIP.CAMERAS":
            yield from (
                (key, text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
            )


def stored_weights(model: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """The tensors of a model as they are written.

    Args:
        half: parameters as float16. Buffers stay as they are: running statistics, stored anchors, pixel means.

    Raises:
        ValueError: a parameter that float16 cannot hold.
    """
    parameters = {name for name, _ in model.named_parameters()}
    stored = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    if half:
        for name in parameters & stored.keys():
            if stored[name].is_floating_point():
                stored[name] = stored[name].half()
                if not torch.isfinite(stored[name]).all():
                    raise ValueError(f"{name} has values beyond float16's 65,504: publish without --half")
    return stored


def side_files(checkpoint: Path, sha256: str) -> list[str]:
    """Names of the files beside a checkpoint that go along with it: the calibration, the read-out of visibility.

    Raises:
        ValueError: one of them is damaged, or of another checkpoint.
    """
    found = [name for name in (CALIBRATION, VISIBILITY) if checkpoint.with_name(name).is_file()]
    if CALIBRATION in found:
        Threshold.read(checkpoint.with_name(CALIBRATION)).check_model(sha256, "", str(checkpoint))
    if VISIBILITY in found:
        load_readout(checkpoint.with_name(VISIBILITY))
    return found


def write_side_files(folder: Path, checkpoint: Path, names: Sequence[str], sha256: str) -> None:
    """Copy those of `side_files` into a folder.

    The calibration was made with the very weights that are written, up to float16's rounding where those are stored so:
    it then names the written file, by its `sha256`, and the one that it was made with as "made_with". Where the images
    lie on this machine is left out.
    """
    for name in names:
        source = checkpoint.with_name(name)
        if name == CALIBRATION:
            found = read_calibration(source)
            found |= {"checkpoint_sha256": sha256, "made_with": found["checkpoint_sha256"]}
            found["dataset"] = found["dataset"] | {"folder": "its author's files"}
            write_json(folder / name, found)
        else:
            write_atomically(folder / name, functools.partial(shutil.copyfile, source))


def write_weights(folder: Path, state: dict[str, Tensor], cfg: Any) -> str:
    """Write `model.safetensors` and `config.yaml`, each whole or not at all; returns the SHA-256 of the former."""
    write_text(folder / PUBLISHED_CONFIG, cfg.dump())
    write_atomically(folder / PUBLISHED, lambda temporary: save_file(state, temporary, {"format": "pt"}))
    return file_hash(folder / PUBLISHED)
