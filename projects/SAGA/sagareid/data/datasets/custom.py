"""What data sets of one's own share, which an entry of DATASETS.CUSTOM sets up: `table` and `folder` read them.

People and cameras have names; their numbers are the places of the names in natural order (2 before 10) over all splits
of a data set, so that a person or a camera has one number in training, query and gallery.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastreid.data.datasets.bases import ImageDataset

from .layout import as_training, natural_key, number_of

__all__ = ["SHOWN", "SPLITS", "OwnDataset", "Photo"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "query", "gallery")
SHOWN = 5  # problems that a message names


class Photo(NamedTuple):
    """An image of a person. `camera` is None where it is not known."""

    path: str
    person: str
    camera: str | None


class OwnDataset(ImageDataset):
    """FastReID's data set of photos whose people and cameras have names.

    Attributes:
        dataset_name: the entry's NAME; it opens the labels of training people and cameras.
        cameras_known: False where every image counts as a camera of its own.
        person_names, camera_names: by number; no cameras where they are not known.
    """

    def __init__(self, name: str, splits: Mapping[str, Sequence[Photo]], **kwargs):
        """
        Args:
            splits: "train", "query" and "gallery", each of which may be empty or left out. Either all photos have a
                camera or none.
        """
        self.dataset_name = name
        photos = [photo for split in SPLITS for photo in splits.get(split, ())]
        self.cameras_known = bool(photos) and photos[0].camera is not None
        self.person_names = _in_order(photo.person for photo in photos)
        people = {person: number for number, person in enumerate(self.person_names)}
        self.camera_names: list[str] = []
        if self.cameras_known:
            self.camera_names = _in_order(photo.camera for photo in photos)
            cameras = {camera: number for number, camera in enumerate(self.camera_names)}
            camids = iter([cameras[photo.camera] for photo in photos])
        else:
            camids = iter(range(len(photos)))
        items = {
            split: [(photo.path, people[photo.person], next(camids)) for photo in splits.get(split, ())]
            for split in SPLITS
        }
        super().__init__(as_training(name, items["train"]), items["query"], items["gallery"], **kwargs)

    def person_name(self, pid: int | str) -> str:
        """The folder's, or the table's."""
        return self.person_names[number_of(pid)]

    def camera_name(self, camid: int | str) -> str:
        """Of the file name or the table; empty where cameras are not known."""
        return self.camera_names[number_of(camid)] if self.cameras_known else ""

    def show_test(self):
        super().show_test()
        if not self.cameras_known:
            logger.warning(
                "%s: no cameras are known, so every image counts as a camera of its own and same-camera matches were "
                "not excluded: metrics are higher than those of a cross-camera evaluation",
                self.dataset_name,
            )


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=natural_key)
