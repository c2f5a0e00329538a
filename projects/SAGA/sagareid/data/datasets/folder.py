"""A data set of one's own as one folder a person, and how file names say the camera."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from ...files import printable
from ..images import DEEPER, Listing, image_files, say_left_out
from .custom import SHOWN, SPLITS, OwnDataset, Photo, as_test
from .layout import WrongNames, natural_key, no_images

__all__ = ["CameraRule", "FolderDataset"]

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class FolderDataset(OwnDataset):
    """One folder a person, either ``<path>/{train,query,gallery}/<person>/`` or ``<path>/<person>/``.

    By configuration: ``DATASETS.CUSTOM: [{NAME: shop, TYPE: FolderDataset, PATH: shop}]``, then ``shop`` in
    DATASETS.NAMES or TESTS. Images may lie in further folders below a person's; what is no image is logged.

    In the first form a split that is not there is empty, and a person has the same folder name in query and gallery.
    In the second, people are split at random but always alike: `train_share` of them train. Of each other person one
    image of every camera that has two or more is a query (of one camera, where each has but one image), if another
    camera has an image of the person; all other images are gallery.

    Args:
        name: the entry's NAME.
        path: the folder, under `root` (FASTREID_DATASETS) or absolute.
        camera: regular expression with one group, the camera, searched in an image's path below the person's folder:
            ``_c(\\d+)`` for ``0001_c2.jpg``, ``^([^/]+)/`` for one folder a camera. Where what it finds is not the camera
            itself, ``{pattern: ..., map: {1-2: door, 3-4: hall}}``: a map from texts, numbers or ranges of numbers to
            cameras. None: every image is a camera of its own, and the log says that same-camera matches were not
            excluded.
        train_share: of the second form, 0..1.
        seed: of the second form.
        validation_share: of the training people who are kept out of training; they are query and gallery of the data set
            ``<name>_validation``, for DATASETS.VALIDATION.

    Raises:
        FileNotFoundError: no folder there.
        ValueError: no images, images of nobody, splits of other names, or an argument that is none.
        WrongNames: a name without a camera.
    """

    def __init__(
        self,
        root: str = "datasets",
        *,
        name: str,
        path: str,
        camera: str | Mapping | None = None,
        train_share: float = 0.5,
        seed: int = 0,
        validation_share: float = 0.0,
        **kwargs,
    ):
        folder = Path(root, path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{name}: no folder {folder}. Expected train/, query/ and gallery/ with one folder a person in each, or "
                "one folder a person; PATH is relative to FASTREID_DATASETS, or absolute"
            )
        if isinstance(train_share, str) or not 0 <= train_share <= 1:
            raise ValueError(f"{name}: TRAIN_SHARE is {train_share!r}; expected a number from 0 to 1")
        rule = CameraRule.read(name, camera) if camera else None
        if present := _splits_of(name, folder, path):
            splits = {split: _read_people(name, folder / split, rule) for split in present}
        else:
            photos = _read_people(name, folder, rule)
            _check_people(name, folder, path, photos)
            splits = _divide(photos, train_share, seed)
        super().__init__(name, splits, validation_share=validation_share, **kwargs)


# What people call a part of a data set, beside SPLITS.
_SPLIT_WORDS = {
    "val", "valid", "validation", "dev", "test", "testing", "training", "trainval", "train_val", "train_all", "val_all",
    "test_all", "probe", "queries", "multi-query", "gt_bbox", "bounding_box_train", "bounding_box_test", *SPLITS,
}  # fmt: skip


def _splits_of(name: str, folder: Path, path: str) -> list[str]:
    """Which of SPLITS are there; none: `folder` holds people.

    Raises:
        ValueError: folders that are called like parts of a data set, but not like those that are read.
    """
    folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    present = [split for split in SPLITS if split in folders]
    others = [entry for entry in folders if entry not in SPLITS]
    parts = [entry for entry in others if entry.lower() in _SPLIT_WORDS]
    if parts and (present or len(parts) == len(others)):
        raise ValueError(_other_parts(name, folder, path, (*present, *parts)))
    if present:
        beside = image_files(folder, levels=1)
        left_out = {why: names for why, names in beside.left_out.items() if why != DEEPER}
        if others:
            left_out["folders that are no split"] = others
        if beside.names:
            left_out["images outside the splits"] = [image.name for image in beside.images]
        say_left_out(name, Listing(folder, [], left_out))
    return present


def _other_parts(name: str, folder: Path, path: str, found: Sequence[str]) -> str:
    """What to do with parts of other names: what is read, and the entries that read them as they are."""
    what = f"{name}: {printable(folder)} holds {', '.join(f'{part}/' for part in found)}, and only train/, query/ and gallery/ are read"
    if "bounding_box_train" in found:
        return f"{what}. These are the folders of a data set that is registered, such as Market1501 or OccludedDuke: name it"
    if any(image_files(folder / part, levels=1).names for part in found):
        return (
            f"{what}, with one sub-folder a person in each. There are images of nobody in particular in some: where file "
            "names say who it is, list the images in a table instead (TYPE: CSVDataset; docs/own_data.md)"
        )
    entries = ", ".join(
        f"{{NAME: {name}_{part}, TYPE: FolderDataset, PATH: {path}/{part}, "
        f"TRAIN_SHARE: {1 if 'train' in part.lower() else 0}}}"
        for part in found
    )
    return f"{what}. Rename them, or make each a data set of its own in DATASETS.CUSTOM: {entries}"


def _check_people(name: str, folder: Path, path: str, photos: Sequence[Photo]) -> None:
    """Refuse a folder that lies above the people's: its folders would be taken for people.

    Raises:
        ValueError: a person's folder holds parts of a data set, or there is one person alone.
    """
    people = {photo.person for photo in photos}
    for photo in photos:
        _, *below = Path(photo.path).relative_to(folder).parts
        if len(below) > 1 and below[0].lower() in _SPLIT_WORDS:
            raise ValueError(
                f"{name}: {printable(folder / photo.person)} would be one person, and holds {below[0]}/. Expected one "
                f"sub-folder a person; is PATH a level too high? Try PATH: {path}/{photo.person}"
            )
    if len(people) == 1:
        [person] = people
        raise ValueError(
            f"{name}: {printable(folder)} holds one folder, {printable(person)}/, which would be the only person. Expected "
            "one sub-folder a person; is PATH a level too high? Where file names say who it is, list the images in a "
            "table instead (TYPE: CSVDataset; docs/own_data.md)"
        )


class CameraRule(NamedTuple):
    """How an image's path says its camera.

    Attributes:
        pattern: with one group.
        cameras: (least number, largest number, camera) and (text, text, camera) of a map; None: the group is the camera.
    """

    pattern: re.Pattern
    cameras: tuple[tuple[int | str, int | str, str], ...] | None

    @classmethod
    def read(cls, name: str, camera: str | Mapping) -> CameraRule:
        """From an entry's CAMERA.

        Raises:
            ValueError: it is none.
        """
        table = None
        if isinstance(camera, Mapping):
            if set(camera) != {"pattern", "map"} or not isinstance(camera["map"], Mapping):
                raise ValueError(
                    f"{name}: CAMERA is {dict(camera)!r}; expected a regular expression, or {{pattern: a regular "
                    "expression, map: {1-2: door, 3-4: hall}}"
                )
            camera, table = camera["pattern"], camera["map"]
        if not isinstance(camera, str):
            raise ValueError(f"{name}: CAMERA is {camera!r}; expected a regular expression in quotes")
        try:
            pattern = re.compile(camera)
        except re.error as error:
            raise ValueError(f"{name}: CAMERA {camera!r} is no regular expression: {error}") from error
        if pattern.groups != 1:
            raise ValueError(f"{name}: CAMERA {camera!r} has {pattern.groups} groups; expected one, such as _c(\\d+)")
        return cls(pattern, None if table is None else _ranges(name, table))

    def find(self, path: str) -> str | None:
        """The camera that a path below a person's folder says; None where it says none."""
        match = self.pattern.search(path)
        found = match and match[1]
        if not found or self.cameras is None:
            return found or None
        number = int(found) if found.isdecimal() else None
        for least, largest, camera in self.cameras:
            if found == least or (number is not None and isinstance(least, int) and least <= number <= largest):
                return camera
        return None

    def ambiguous(self, path: str) -> tuple[str, ...]:
        """What the pattern finds in a path, where that is more than one text: it may match inside something else."""
        found = tuple(dict.fromkeys(match[1] for match in self.pattern.finditer(path)))
        return found if len(found) > 1 else ()

    def __str__(self) -> str:
        if self.cameras is None:
            return f"names in which CAMERA {self.pattern.pattern!r} finds a camera"
        keys = ", ".join(str(least) if least == largest else f"{least}-{largest}" for least, largest, _ in self.cameras)
        return f"names in which CAMERA {self.pattern.pattern!r} finds one of {keys}"


def _ranges(name: str, table: Mapping) -> tuple[tuple[int | str, int | str, str], ...]:
    found: list[tuple[int | str, int | str, str]] = []
    for key, camera in table.items():
        text = str(key).strip()
        numbers = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)
        least, largest = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (text, text)
        if numbers and least > largest:
            raise ValueError(f"{name}: CAMERA's map has {key!r}; expected the smaller number first")
        for low, high, _ in found:
            if isinstance(low, int) == isinstance(least, int) and low <= largest and least <= high:
                raise ValueError(f"{name}: CAMERA's map has {key!r} and {low}-{high}, which overlap")
        found.append((least, largest, str(camera)))
    return tuple(found)


def _read_people(name: str, folder: Path, camera: CameraRule | None) -> list[Photo]:
    listing = image_files(folder)
    say_left_out(name, listing)
    loose = [image for image in listing.images if image.parent == folder]
    if loose:
        shown = ", ".join(printable(image.name) for image in loose[:SHOWN]) + (", ..." if len(loose) > SHOWN else "")
        raise ValueError(
            f"{name}: {len(loose)} image(s) of nobody directly in {printable(folder)}: {shown}. Expected one sub-folder "
            "a person. Where file names say who it is, list the images in a table instead (TYPE: CSVDataset; "
            "docs/own_data.md)"
        )
    if not listing.names:
        raise ValueError(no_images(name, listing))
    photos, wrong = [], []
    for image in listing.images:
        person, *below = image.relative_to(folder).parts
        found = camera.find("/".join(below)) if camera else None
        if camera and found is None:
            wrong.append(image)
        photos.append(Photo(str(image), person, found))
    if wrong:
        raise WrongNames(name, wrong, str(camera))
    if camera:
        _say_ambiguous(name, camera, listing, folder)
    return photos


def _say_ambiguous(name: str, camera: CameraRule, listing: Listing, folder: Path) -> None:
    """Warn where the pattern matches at several places of a name with different results."""
    below = ["/".join(image.relative_to(folder).parts[1:]) for image in listing.images]
    several = [(path, found) for path in below if (found := camera.ambiguous(path))]
    if several:
        path, found = several[0]
        logger.warning(
            "%s: CAMERA %r finds several texts in %d of %d names, such as %s in %s, and the first counts. If that is not "
            "the camera, anchor the pattern: ^, or what stands in front of the camera",
            name,
            camera.pattern.pattern,
            len(several),
            len(below),
            " and ".join(found[:3]),
            printable(path),
        )


def _divide(photos: Sequence[Photo], train_share: float, seed: int) -> dict[str, list[Photo]]:
    """Splits of the flat form; a function of the names, the share and the seed alone."""
    people = sorted({photo.person for photo in photos}, key=natural_key)
    rng = random.Random(seed)
    train = set(rng.sample(people, round(train_share * len(people))))
    query, gallery = as_test([photo for photo in photos if photo.person not in train], rng)
    return {"train": [photo for photo in photos if photo.person in train], "query": query, "gallery": gallery}
