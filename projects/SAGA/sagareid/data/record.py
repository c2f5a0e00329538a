"""What a run keeps of its training set, so that it knows its people and cameras again: by name, never by place.

n images, C identities.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import first_few

__all__ = ["TrainingRecord"]


@dataclass(frozen=True)
class TrainingRecord:
    """The training set of a run.

    Attributes:
        identities: C names, in the order of their classes.
        cameras: names of all its cameras.
        images: (n, 2) int64, sorted: place of the identity in `identities`, and a checksum of the file's name,
            size and last bytes.
    """

    identities: list[str]
    cameras: list[str]
    images: Tensor

    KEY = "training_set"  # of a checkpoint

    @classmethod
    def of(cls, dataset: Any) -> TrainingRecord:
        """The record of a training set (`ReIDDataset`, or what hands on its attributes). It reads every file's end."""
        rows = [(dataset.pid_dict[pid], _checksum(path)) for path, pid, *_ in dataset.img_items]
        images = torch.tensor(sorted(rows), dtype=torch.int64).reshape(-1, 2)
        return cls(list(dataset.identities), list(dataset.known_cameras), images)

    @classmethod
    def in_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainingRecord | None:
        """The record that a checkpoint holds; None where it is older than records, or of other code."""
        return cls(**checkpoint[cls.KEY]) if cls.KEY in checkpoint else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps under `KEY`."""
        return {"identities": self.identities, "cameras": self.cameras, "images": self.images}

    def other_people(self, before: TrainingRecord) -> str:
        """How the people differ from those of a record; empty where each is as before.

        Someone none of whose images is as before counts as somebody else of the same name.
        """
        changes = _changes(before.identities, self.identities, "identities")
        if not changes and before.identities != self.identities:
            return "the same identities in another order"
        then, now = before._by_identity(), self._by_identity()
        replaced = [name for name in self.identities if name in then and not then[name] & now[name]]
        if replaced:
            changes.append(f"{len(replaced)} have none of the images that they had ({first_few(replaced, 4)})")
        return ", ".join(changes)

    def other_cameras(self, before: TrainingRecord) -> str:
        """How the cameras differ from those of a record; empty where they are the same."""
        return ", ".join(_changes(before.cameras, self.cameras, "cameras"))

    def other_images(self, before: TrainingRecord) -> str:
        """How many images differ from those of a record; empty for none."""
        then, now = (set(map(tuple, record.images.tolist())) for record in (before, self))
        return f"{len(then - now)} images are gone, {len(now - then)} are new" if then != now else ""

    def _by_identity(self) -> dict[str, set[int]]:
        found = defaultdict(set)
        for place, checksum in self.images.tolist():
            found[self.identities[place]].add(checksum)
        return found


def _checksum(path: str) -> int:
    """The checksum of a file's name, size and last bytes: the folder may move, and the time of a copy is its own."""
    size, end = -1, b""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # reading the image names what is wrong with it
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        end = file.read()
    return zlib.crc32(end, zlib.crc32(f"{os.path.basename(path)}|{size}".encode(errors="surrogateescape")))


def _changes(before: Sequence[str], now: Sequence[str], what: str) -> list[str]:
    then, today = set(before), set(now)
    gone, new = [name for name in before if name not in today], [name for name in now if name not in then]
    return [
        f"{len(names)} {what} are {how} ({first_few(names, 4)})"
        for names, how in ((gone, "gone"), (new, "new"))
        if names
    ]
