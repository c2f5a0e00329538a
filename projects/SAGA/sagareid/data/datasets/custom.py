"""Data sets of one's own, set up by an entry of DATASETS.CUSTOM: a table of files, or one folder a person.

People and cameras have names; their numbers are the places of the names in natural order (2 before 10) over all splits
of a data set, so that a person or a camera has one number in training, query and gallery.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from .layout import IMAGE_SUFFIXES, as_training, natural_key, WrongNames

__all__ = ["CSVDataset", "FolderDataset", "Photo"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "query", "gallery")
SHOWN = 5  # problems that a message names


class Photo(NamedTuple):
    """An image of a person. `camera` is None where it is not known."""

    path: str
    person: str
    camera: str | None


class OwnDataset(ImageDataset):
    """The host's data set of named photos.

    Attributes:
        dataset_name: the entry's NAME; it opens the labels of training people and cameras.
        cameras_known: False where every image counts as a camera of its own.
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
        people = _numbers(photo.person for photo in photos)
        if self.cameras_known:
            cameras = _numbers(photo.camera for photo in photos)
            camids = iter([cameras[photo.camera] for photo in photos])
        else:
            camids = iter(range(len(photos)))
        items = {
            split: [(photo.path, people[photo.person], next(camids)) for photo in splits.get(split, ())]
            for split in SPLITS
        }
        super().__init__(as_training(name, items["train"]), items["query"], items["gallery"], **kwargs)

    def show_test(self):
        super().show_test()
        if not self.cameras_known:
            logger.warning(
                "%s: no cameras are known, so every image counts as a camera of its own and same-camera matches were "
                "not excluded: figures are higher than those of a cross-camera evaluation",
                self.dataset_name,
            )


def _numbers(names) -> dict[str, int]:
    return {name: i for i, name in enumerate(sorted(set(names), key=natural_key))}


@DATASET_REGISTRY.register()
class CSVDataset(OwnDataset):
    """A table of images: ``path,pid,split`` and perhaps ``camid``, with a first line of column names; others are ignored.

    By configuration: ``DATASETS.CUSTOM: [{NAME: shop, TYPE: CSVDataset, PATH: shop/crops.csv}]``, then ``shop`` in
    DATASETS.NAMES or TESTS. Fields are separated by commas; the file is UTF-8, as spreadsheets write it too.
    pid and camid are any text, split is train, query or gallery. Without the column camid every image is a camera of
    its own, and the log says that same-camera matches were not excluded. Each pid is one person: leave junk out;
    distractors are gallery people without a query.

    Args:
        name: the entry's NAME.
        path: the table, under `root` (FASTREID_DATASETS) or absolute.
        images: folder that paths are relative to, under `root` or absolute. None: the table's own.

    Raises:
        FileNotFoundError: no table there.
        ValueError: a column, field or file is missing, a split is unknown, an image is listed twice; with line numbers.
    """

    def __init__(self, root: str = "datasets", *, name: str, path: str, images: str | None = None, **kwargs):
        table = Path(root, path).expanduser()
        if not table.is_file():
            raise FileNotFoundError(
                f"{name}: no table {table}. Expected a CSV file with the columns path, pid, split and perhaps camid; "
                "PATH is relative to FASTREID_DATASETS, or absolute"
            )
        folder = Path(root, images).expanduser() if images else table.parent
        try:
            splits = _read_table(name, table, folder)
        except csv.Error as error:
            raise ValueError(f"{name}: {table} is no CSV file: {error}. Check its quotes") from error
        super().__init__(name, splits, **kwargs)


def _read_table(name: str, table: Path, folder: Path) -> dict[str, list[Photo]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {table} is not UTF-8 ({error}). Save it as CSV UTF-8") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    missing = [column for column in ("path", "pid", "split") if column not in columns]
    if missing:
        found = ", ".join(columns) or "an empty file"
        raise ValueError(
            f"{name}: {table} has no column {', '.join(missing)}; found {found}. Expected a first line such as "
            "path,pid,camid,split, separated by commas"
        )
    with_cameras = "camid" in columns
    needed = ("path", "pid", "split") + (("camid",) if with_cameras else ())
    splits: dict[str, list[Photo]] = {split: [] for split in SPLITS}
    seen: dict[str, int] = {}
    problems = []
    for row in reader:
        line = reader.line_num
        fields = {column: (row[column] or "").strip() for column in needed}
        empty = [column for column, value in fields.items() if not value]
        path = os.path.normpath(os.path.join(folder, fields["path"]))
        if None in row:
            problems.append(f"line {line}: {len(columns) + len(row[None])} fields, expected {len(columns)}")
        elif empty:
            problems.append(f"line {line}: no {', '.join(empty)}")
        elif fields["split"] not in splits:
            problems.append(f"line {line}: split {fields['split']!r}, expected train, query or gallery")
        elif path in seen:
            problems.append(f"line {line}: {fields['path']} is already in line {seen[path]}")
        elif not os.path.isfile(path):
            problems.append(f"line {line}: no file {path}")
        else:
            seen[path] = line
            splits[fields["split"]].append(Photo(path, fields["pid"], fields["camid"] if with_cameras else None))
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise ValueError(f"{name}: {table} has {len(problems)} problem(s): {shown}")
    if not seen:
        raise ValueError(f"{name}: {table} lists no image below its column names")
    return splits


@DATASET_REGISTRY.register()
class FolderDataset(OwnDataset):
    """One folder a person, either ``<path>/{train,query,gallery}/<person>/`` or ``<path>/<person>/``.

    By configuration: ``DATASETS.CUSTOM: [{NAME: shop, TYPE: FolderDataset, PATH: shop}]``, then ``shop`` in
    DATASETS.NAMES or TESTS. Images may lie in further folders below a person's; hidden files and folders are skipped.

    In the first form a split that is not there is empty, and a person has the same folder name in query and gallery.
    In the second, people are split at random but always alike: `train_share` of them train. Of each other person one
    image of every camera that has two or more is a query (of one camera, where each has but one image), if another
    camera has an image of the person; all other images are gallery.

    Args:
        name: the entry's NAME.
        path: the folder, under `root` (FASTREID_DATASETS) or absolute.
        camera: regular expression with one group, the camera, searched in an image's path below the person's folder:
            ``_c(\\d+)`` for ``0001_c2.jpg``, ``^([^/]+)/`` for one folder a camera. None: every image is a camera of its
            own, and the log says that same-camera matches were not excluded.
        train_share: of the second form, 0..1.
        seed: of the second form.

    Raises:
        FileNotFoundError: no folder there.
        ValueError: no images, or an argument that is none.
        WrongNames: a name without a camera, or an image in no person's folder.
    """

    def __init__(
        self,
        root: str = "datasets",
        *,
        name: str,
        path: str,
        camera: str | None = None,
        train_share: float = 0.5,
        seed: int = 0,
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
        try:
            pattern = re.compile(camera) if camera else None
        except re.error as error:
            raise ValueError(f"{name}: CAMERA {camera!r} is no regular expression: {error}") from error
        if pattern and pattern.groups != 1:
            raise ValueError(f"{name}: CAMERA {camera!r} has {pattern.groups} groups; expected one, such as _c(\\d+)")
        if any((folder / split).is_dir() for split in SPLITS):
            splits = {
                split: _read_people(name, folder / split, pattern) for split in SPLITS if (folder / split).is_dir()
            }
        else:
            splits = _divide(_read_people(name, folder, pattern), train_share, seed)
        super().__init__(name, splits, **kwargs)


def _read_people(name: str, folder: Path, camera: re.Pattern | None) -> list[Photo]:
    photos, wrong = [], []
    loose = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        images = sorted(file for file in files if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."))
        person, *below = Path(parent).relative_to(folder).parts or (None,)
        if person is None:
            loose = images
            continue
        for image in images:
            match = camera.search("/".join([*below, image])) if camera else None
            if camera and (match is None or not match[1]):
                wrong.append(Path(parent, image))
            photos.append(Photo(os.path.join(parent, image), person, match[1] if match else None))
    if loose:
        raise WrongNames(name, [folder / image for image in loose], "images in one sub-folder per person")
    if not photos:
        raise ValueError(f"{name}: no images in {folder}. Expected one folder a person with files such as *.jpg")
    if wrong:
        raise WrongNames(name, wrong, f"names in which CAMERA {camera.pattern!r} finds a camera")
    return photos


def _divide(photos: Sequence[Photo], train_share: float, seed: int) -> dict[str, list[Photo]]:
    """Splits of the flat form; a function of the names, the share and the seed alone."""
    people = sorted({photo.person for photo in photos}, key=natural_key)
    rng = random.Random(seed)
    train = set(rng.sample(people, round(train_share * len(people))))
    splits = {"train": [photo for photo in photos if photo.person in train], "query": [], "gallery": []}
    by_person = defaultdict(list)
    for photo in photos:
        if photo.person not in train:
            by_person[photo.person].append(photo)
    for person in sorted(by_person, key=natural_key):
        by_camera = defaultdict(list)
        for photo in by_person[person]:
            by_camera[photo.camera or photo.path].append(photo)
        several = [camera for camera in sorted(by_camera, key=natural_key) if len(by_camera[camera]) > 1]
        cameras = several or [rng.choice(sorted(by_camera, key=natural_key))]
        queries = {rng.choice(by_camera[camera]) for camera in cameras} if len(by_camera) > 1 else set()
        for photo in by_person[person]:
            splits["query" if photo in queries else "gallery"].append(photo)
    return splits
