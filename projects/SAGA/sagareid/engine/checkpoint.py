"""Checkpoints that are whole or absent, and hand-over that loads every weight or says which it did not.

A file holds FastReID's keys ("model", "optimizer", schedulers, "epoch") and ours: "config" (YAML text of the run) and
"rng" (random states). It is read with weights_only.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastreid.utils.checkpoint import Checkpointer

from ..files import save_torch, write_text
from ..modeling.agreement import check_agreement, check_hand_over, trained_config
from ..modeling.build import check_left_over, fresh_weights, hand_over
from ..weights import load_state

__all__ = [
    "RunCheckpointer",
    "random_state",
    "restore_random_state",
]

logger = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """States of torch, numpy and Python, in types that weights_only loading accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class RunCheckpointer(Checkpointer):
    """FastReID's checkpointer with atomic files, random states, and no weight skipped in silence."""

    def __init__(self, model: nn.Module, save_dir: str, *, cfg: Any, save_to_disk: bool = True, **checkpointables):
        """cfg: of the run, stored in every file as YAML text; what is loaded must agree with it."""
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._cfg = cfg

    def save(self, name: str, tag: bool = True, **kwargs) -> None:
        """Write `<name>.pth` and, with `tag`, point `last_checkpoint` at it: resuming goes on from there."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), "config": self._cfg.dump(), "rng": random_state(), **kwargs}
        for key, obj in self.checkpointables.items():
            data[key] = obj.state_dict()
        path = Path(self.save_dir, f"{name}.pth")
        self._write(path, data)
        if tag:
            self.tag_last_checkpoint(path.name)

    def promote(self, name: str, target: str, **kwargs) -> None:
        """Write what `<name>.pth` holds as `<target>.pth`, with these keys in it, and point `last_checkpoint` there."""
        path = Path(self.save_dir, f"{target}.pth")
        self._write(path, load_state(Path(self.save_dir, f"{name}.pth")) | kwargs)
        self.tag_last_checkpoint(path.name)
        self.remove(name)

    def _write(self, path: Path, data: dict[str, Any]) -> None:
        save_torch(path, data)
        logger.info("Saved checkpoint %s", path)

    def remove(self, name: str) -> None:
        """Delete `<name>.pth` where there is one."""
        Path(self.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def resume_from(self, path: str) -> dict[str, Any]:
        """Load model, optimizer and schedules of an interrupted run, all of them strictly. Returns the whole file.

        Raises:
            ValueError: it does not fit, was trained as another function, or holds weights alone.
        """
        checkpoint = load_state(path)
        if (trained := trained_config(checkpoint, str(path))) is not None:
            check_agreement(trained, self._cfg, str(path))
        hand_over(self.model, checkpoint["model"], (), str(path), starts=False)
        for key, obj in self.checkpointables.items():
            if key not in checkpoint:
                raise ValueError(
                    f"{path} holds no {key}, so training cannot go on from it; start anew with MODEL.WEIGHTS"
                )
            obj.load_state_dict(checkpoint[key])
        return checkpoint

    def start_from(self, path: str, new_weights: Sequence[str]) -> set[str] | None:
        """Load the weights a run starts from. Returns the names that start afresh; None where `path` is empty.

        Raises:
            ValueError: they do not fit, or what is taken over was trained as another function.
        """
        if not path:
            return None
        checkpoint = load_state(path)
        source, fresh = checkpoint["model"], fresh_weights(self.model, new_weights)
        trained = trained_config(checkpoint, str(path))
        if trained is not None:
            taken = [n for n, _ in self.model.named_parameters() if n in source and n not in fresh]
            check_hand_over(trained, self._cfg, taken, str(path))
        hand_over(self.model, source, new_weights, str(path))
        if trained is None and any(n.startswith("backbone.") and n not in fresh for n in source):
            check_left_over(self.model, source, str(path), below="backbone.")
        if fresh and hasattr(self.model, "initialize_heads"):
            self._initialize_fresh(source, fresh)
        return fresh

    def _initialize_fresh(self, source: Mapping[str, Tensor], fresh: set[str]) -> None:
        """Let the head start afresh from the backbone just loaded, then put back what was handed over."""
        kept = {n: v.clone() for n, v in self.model.state_dict().items() if n not in fresh}
        self.model.initialize_heads(dict(source))
        self.model.load_state_dict(kept, strict=False)
