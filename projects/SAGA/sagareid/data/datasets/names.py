"""What the people and cameras of a data set are called: for a reader, and for a run that must know them again.

Neither is an internal number. Those are places in a sorted list, so a person who is renamed, or a camera that joins a
table, shifts the numbers of others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...files import printable
from .builtin import COUNTS_CAMERAS_FROM_0, is_builtin

__all__ = ["Names", "SetNames", "camera_name", "identity_name"]


class Names:
    """Names of a data set's people and cameras.

    A data set that knows them has `person_name(pid)` and `camera_name(camid)`, which take an item's number or training
    label; the latter gives an empty text where cameras are not known. Of others, a person is the number of the file name,
    and a camera its number as file names count: from 1, since items count from 0.
    """

    def __init__(self, data: object = None):
        self._person = getattr(data, "person_name", None)
        self._camera = getattr(data, "camera_name", None)
        foreign = is_builtin(type(data))
        self._first = 0 if foreign and type(data).__name__ not in COUNTS_CAMERAS_FROM_0 else 1

    def person(self, pid: int | str) -> str:
        """Of an item's pid."""
        if self._person:
            return printable(self._person(pid))
        tail = _tail(pid)
        return str(int(tail)) if tail.isdecimal() else printable(tail)

    def camera(self, camid: int | str) -> str:
        """The name of an item's camera; empty where cameras are not known."""
        if self._camera:
            return printable(self._camera(camid))
        tail = _tail(camid)
        return str(int(tail) + self._first) if tail.isdecimal() else printable(tail)

    def both(self, pid: int | str, camid: int | str) -> str:
        """Person and camera in words."""
        camera = self.camera(camid)
        return f"person {self.person(pid)}, " + (f"camera {camera}" if camera else "camera not known")


def _tail(label: int | str) -> str:
    """What stands behind the data set's name in a training label; a number as it is."""
    return label.rpartition("_")[2] if isinstance(label, str) else str(label)


@dataclass
class SetNames:
    """What a run calls the people and cameras of items, by their pid and camid."""

    identities: dict[int | str, str] = field(default_factory=dict)
    cameras: dict[int | str, str] = field(default_factory=dict)

    def add(self, data: object, items: Iterable[tuple]) -> SetNames:
        """Add items, (path, pid, camid), of a data set; returns itself."""
        for _, pid, camid in items:
            if pid not in self.identities:
                self.identities[pid] = identity_name(data, pid)
            if camid not in self.cameras:
                self.cameras[camid] = camera_name(data, camid)
        return self


def identity_name(data: object, pid: int | str) -> str:
    """What a run calls a person, in whichever split an item's pid is of: "shop/anna", "market1501_5".

    Data sets that number people by their place have the name that they know behind a slash, so that no label of
    FastReID's form is one by accident.
    """
    stem = _stem(data)
    if known := getattr(data, "person_name", None):
        combined = "test/" if str(pid).startswith(f"{stem}_test_") else ""  # DATASETS.COMBINEALL
        return f"{stem}/{combined}{known(pid)}"
    head, _, tail = (pid if isinstance(pid, str) else f"{stem}_{pid}").rpartition("_")
    return f"{head}_{int(tail)}" if tail.isdecimal() else f"{head}_{tail}"


def camera_name(data: object, camid: int | str) -> str:
    """What a run calls a camera, from an item of any split; empty where cameras are not known."""
    if known := getattr(data, "camera_name", None):
        return f"{_stem(data)}/{name}" if (name := known(camid)) else ""
    return camid if isinstance(camid, str) else f"{_stem(data)}_{camid}"


def _stem(data: object) -> str:
    return getattr(data, "dataset_name", None) or type(data).__name__
