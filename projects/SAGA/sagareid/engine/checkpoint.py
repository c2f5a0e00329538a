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

from ..data.record import TrainingRecord
from ..deploy.load import checkpoint_file
from ..files import damaged, printable, read_utf8, save_torch, write_text
from ..modeling.agreement import accepted, check_agreement, check_converted, check_hand_over, trained_config
from ..modeling.build import check_left_over, fresh_weights, hand_over
from ..modeling.foreign import as_named_here
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

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        *,
        cfg: Any,
        record: TrainingRecord | None = None,
        save_to_disk: bool = True,
        **checkpointables,
    ):
        """
        Args:
            cfg: of the run, stored in every file as YAML text; what is loaded must agree with it.
            record: of its training set, stored likewise; what is loaded must be of the same people and cameras.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._cfg, self._record = cfg, record

    def save(self, name: str, tag: bool = True, **kwargs) -> None:
        """Write `<name>.pth` and, with `tag`, point `last_checkpoint` at it: resuming goes on from there."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), "config": self._cfg.dump(), "rng": random_state(), **kwargs}
        if self._record is not None:
            data[TrainingRecord.KEY] = self._record.state()
        for key, obj in self.checkpointables.items():
            data[key] = obj.state_dict()
        path = Path(self.save_dir, f"{name}.pth")
        save_torch(path, data)
        if tag:
            self.tag_last_checkpoint(path.name)

    def promote(self, name: str, target: str, **kwargs) -> None:
        """Write what `<name>.pth` holds as `<target>.pth`, with these keys in it, and point `last_checkpoint` there."""
        path = Path(self.save_dir, f"{target}.pth")
        save_torch(path, load_state(Path(self.save_dir, f"{name}.pth")) | kwargs)
        self.tag_last_checkpoint(path.name)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete `<name>.pth` where there is one."""
        Path(self.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The checkpoint that `last_checkpoint` names.

        Raises:
            DamagedFile: it names none that is there.
        """
        folder = Path(self.save_dir)
        there = ", ".join(sorted(path.name for path in folder.glob("*.pth"))) or "none"
        remedy = f"Write the name of the checkpoint to go on from into it ({there}), or begin anew without --resume"
        tag = folder / "last_checkpoint"
        name = read_utf8(tag, remedy=remedy).strip()
        if name != Path(name).name or not (folder / name).is_file():
            raise damaged(tag, f"it names {printable(name[:60])}, which is not in the folder", remedy)
        return str(folder / name)

    def resume_from(self, path: str) -> dict[str, Any]:
        """Load model, optimizer and schedules of an interrupted run, all of them strictly. Returns the whole file.

        Raises:
            ValueError: it does not fit, was trained as another function, or holds weights alone.
        """
        checkpoint = load_state(path)
        if (trained := trained_config(checkpoint, str(path))) is not None:
            check_agreement(trained, self._cfg, str(path))
            self._check_cameras(trained, checkpoint["model"], set(), str(path))
        else:
            check_converted(checkpoint, self._cfg, str(path))
        self._check_training_set(checkpoint, str(path))
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

        path: as of `checkpoint_file`: the name of a model, too.

        Raises:
            ValueError: they do not fit, or what is taken over was trained as another function.
        """
        if not path:
            return None
        path = str(checkpoint_file(path))
        checkpoint = load_state(path)
        checkpoint["model"] = as_named_here(self.model, checkpoint["model"], str(path))
        source, fresh = checkpoint["model"], fresh_weights(self.model, new_weights)
        trained = trained_config(checkpoint, str(path))
        if trained is not None:
            taken = [n for n, _ in self.model.named_parameters() if n in source and n not in fresh]
            check_hand_over(trained, self._cfg, taken, str(path))
            self._check_cameras(trained, source, fresh, str(path))
        else:
            check_converted(checkpoint, self._cfg, str(path))
        self._check_people(checkpoint, fresh, str(path))
        hand_over(self.model, source, new_weights, str(path))
        if trained is None and (bound := self._of_cameras(source, fresh)):
            logger.warning(
                "%s does not say of which cameras its %s are: they are taken for those of %s, in this order. Where "
                "that is wrong, let them start afresh by MODEL.NEW_WEIGHTS",
                path,
                ", ".join(bound),
                ", ".join(self._cfg.MODEL.CLIP.CAMERAS),
            )
        if trained is None and any(n.startswith("backbone.") and n not in fresh for n in source):
            check_left_over(self.model, source, str(path), below="backbone.")
        if fresh and hasattr(self.model, "initialize_heads"):
            self._initialize_fresh(source, fresh)
        return fresh

    def _check_training_set(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """See that a run goes on with the people and cameras that it began with."""
        before = TrainingRecord.in_checkpoint(checkpoint)
        if before is None or self._record is None:
            return
        for what, change in (
            ("identities", self._record.other_people(before)),
            ("cameras", self._record.other_cameras(before)),
        ):
            if change and not accepted(what, self._cfg):
                raise ValueError(
                    f"the training set is not the one that {path} was trained on: {change}. Restore it, or leave "
                    f"--resume out to begin anew; {_meant(what)}"
                )
        if change := self._record.other_images(before):
            logger.warning("the training set has changed since %s was written: %s", path, change)

    def _check_people(self, checkpoint: Mapping[str, Any], fresh: set[str], path: str) -> None:
        """See that no identity's weights are handed to another.

        Those are the weights outside of the backbone with one entry for each identity: classifiers, prompts, texts.
        """
        before, own = TrainingRecord.in_checkpoint(checkpoint), self.model.state_dict()
        if before is None or self._record is None or accepted("identities", self._cfg):
            return
        bound = [
            name
            for name, value in checkpoint["model"].items()
            if name in own and name not in fresh and not name.startswith("backbone.")
            if len(before.identities) in value.shape[:1]
        ]
        if bound and (change := self._record.other_people(before)):
            raise ValueError(
                f"{path} was trained on other people: {change}. Its {', '.join(bound)} would be handed from one person "
                "to another: restore the training set, or let them start afresh by MODEL.NEW_WEIGHTS; "
                f"{_meant('identities')}"
            )

    def _check_cameras(self, trained: Any, source: Mapping[str, Tensor], fresh: set[str], path: str) -> None:
        """See that no camera's embedding is handed to another."""
        before, now = list(trained.MODEL.CLIP.CAMERAS), list(self._cfg.MODEL.CLIP.CAMERAS)
        bound = self._of_cameras(source, fresh)
        if not bound or before == now or accepted("cameras", self._cfg):
            return
        remedy = f"set MODEL.CLIP.CAMERAS '{before}', which has all of today's, or" if set(now) <= set(before) else "or"
        raise ValueError(
            f"{path} was trained with the cameras {', '.join(before)}, and these are {', '.join(now)}: its "
            f"{', '.join(bound)} would be handed from one camera to another. Restore the training set, {remedy} let "
            f"them start afresh by MODEL.NEW_WEIGHTS; {_meant('cameras')}"
        )

    def _of_cameras(self, source: Mapping[str, Tensor], fresh: set[str]) -> list[str]:
        """Names of the weights with an entry for each camera that would be taken over."""
        return [n for n in source if "camera" in n and n in self.model.state_dict() and n not in fresh]

    def _initialize_fresh(self, source: Mapping[str, Tensor], fresh: set[str]) -> None:
        """Let the head start afresh from the backbone just loaded, then put back what was handed over."""
        kept = {n: v.clone() for n, v in self.model.state_dict().items() if n not in fresh}
        self.model.initialize_heads(dict(source))
        self.model.load_state_dict(kept, strict=False)


def _meant(what: str) -> str:
    return f"""or, where it is meant, name "{what}" in MODEL.ACCEPT_DIFFERENCES"""
