"""What the people and cameras of a data set are called where somebody reads it: never an internal number."""

from __future__ import annotations

from ...files import printable
from .builtin import COUNTS_CAMERAS_FROM_0, is_builtin

__all__ = ["Names"]


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
        """Of an item's camid; empty where cameras are not known."""
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
