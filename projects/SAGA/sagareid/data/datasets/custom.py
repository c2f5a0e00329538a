"""What data sets of one's own share, which an entry of DATASETS.CUSTOM sets up: `table` and `folder` read them.

People and cameras have names; their numbers are the places of the names in natural order (2 before 10) over all splits
of a data set, so that a person or a camera has one number in training, query and gallery.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastreid.data.datasets.bases import ImageDataset

from .layout import as_training, natural_key, number_of, say_counts

__all__ = ["SHOWN", "SPLITS", "OwnDataset", "Photo", "as_test"]

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

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Sequence[Photo]],
        *,
        validation_share: float = 0.0,
        validation: bool = False,
        **kwargs,
    ):
        """
        Args:
            splits: "train", "query" and "gallery", each of which may be empty or left out. Either all photos have a
                camera or none.
            validation_share: of the training people, 0 to below 1: they are kept out of training.
            validation: these people as query and gallery, in the place of the data set's own.

        Raises:
            ValueError: a share that is none, or of nobody.
        """
        self.dataset_name = name
        if validation_share or validation:
            splits = _hold_out(name, splits, validation_share, validation)
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

    def show_train(self):
        say_counts(self, self.dataset_name, ("train",))

    def show_test(self):
        say_counts(self, self.dataset_name, ("query", "gallery"))


def _hold_out(
    name: str, splits: Mapping[str, Sequence[Photo]], share: float, validation: bool
) -> dict[str, Sequence[Photo]]:
    """The splits without some of the training people, or of these people alone; always the same ones, by their names."""
    if isinstance(share, (str, bool)) or not 0 < share < 1:
        raise ValueError(f"{name}: VALIDATION_SHARE is {share!r}; expected a number between 0 and 1, such as 0.2")
    train = splits.get("train", ())
    people = _in_order(photo.person for photo in train)
    held = set(random.Random("validation").sample(people, round(share * len(people))))
    if not held or len(held) == len(people):
        raise ValueError(
            f"{name}: VALIDATION_SHARE {share} of {len(people)} training people is {len(held)}; expected some for each of "
            "training and validation"
        )
    if validation:
        query, gallery = as_test([photo for photo in train if photo.person in held], random.Random("validation"))
        return {"query": query, "gallery": gallery}
    return {**splits, "train": [photo for photo in train if photo.person not in held]}


def as_test(photos: Sequence[Photo], rng: random.Random) -> tuple[list[Photo], list[Photo]]:
    """Query and gallery of people: of each person one image of every camera that has two or more is a query.

    Of a person whom each camera has once, one image is. Nobody whom one camera alone has is looked for.
    """
    by_person = defaultdict(list)
    for photo in photos:
        by_person[photo.person].append(photo)
    query, gallery = [], []
    for person in sorted(by_person, key=natural_key):
        by_camera = defaultdict(list)
        for photo in by_person[person]:
            by_camera[photo.camera or photo.path].append(photo)
        several = [camera for camera in sorted(by_camera, key=natural_key) if len(by_camera[camera]) > 1]
        cameras = several or [rng.choice(sorted(by_camera, key=natural_key))]
        queries = {rng.choice(by_camera[camera]) for camera in cameras} if len(by_camera) > 1 else set()
        for photo in by_person[person]:
            (query if photo in queries else gallery).append(photo)
    return query, gallery


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=natural_key)
