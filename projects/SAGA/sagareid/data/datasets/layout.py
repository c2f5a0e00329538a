"""What the data sets share: folders, listing, people and cameras from names, and the form of FastReID's items.

An item is (path, pid, camid). In query and gallery pid and camid are ints, camid from 0; in training they are
"<name>_0005" and "<name>_1", FastReID's form with the person's digits padded, so that its string order of labels is
numeric order. A camera's name is the data set's and its camid, which is how `loaders` finds it again in testing.
A name is read from the file's base name alone: a folder such as ``run_1_c2/`` above it says nothing.
Every image file of a split is used; a file whose name cannot be read is an error, not a gap.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fastreid.data.datasets.bases import ImageDataset

from ...files import printable
from ..images import Listing, image_files, say_left_out

__all__ = [
    "EvaluationOnly",
    "PairedByName",
    "Statistics",
    "WrongNames",
    "as_training",
    "find_splits",
    "images_by_person",
    "list_images",
    "natural_key",
    "no_images",
    "number_of",
    "parse_names",
    "read_pair",
    "refuse_training",
    "say_counts",
]

logger = logging.getLogger(__name__)

REMEDY = "Set FASTREID_DATASETS, or run configs/SAGA/quickstart.yml, which needs no download."

# Published images, people and cameras of each split, as a class's attribute `statistics`; None where they are not stated.
# People and cameras are counted as the class gives them: distractors are one person more.
Statistics = dict[str, tuple[int, int | None, int | None]]

Item = tuple[str, int, int]
TrainItem = tuple[str, str, str]


# ---- folders and names ---------------------------------------------------------------------------------------------
def find_splits(
    dataset: str, root: str | os.PathLike, folders: Sequence[str], splits: Sequence[Sequence[str]]
) -> list[Path]:
    """The folder of each split, under the first of ``folders`` in ``root`` that is there (or ``root``, so named).

    Args:
        splits: per split the names its folder goes by, the usual one first.

    Raises:
        RuntimeError: says which split's folder is missing, where, and what to do.
    """
    root = Path(root).expanduser()
    candidates = [root / folder for folder in folders]
    candidates += [root] if root.resolve().name in {Path(folder).name for folder in folders} else []
    base = next((path for path in candidates if path.is_dir()), candidates[0])
    found = [next((base / name for name in names if (base / name).is_dir()), None) for names in splits]
    if None in found:
        missing = [names[0] for names, path in zip(splits, found) if path is None]
        named = "query" if "query" in missing else missing[0]  # what every data set has tells most
        expected = ", ".join(f"{names[0]}/" for names in splits)
        raise RuntimeError(f"{dataset}: no '{named}' folder under {base}. Expected {expected}. {REMEDY}")
    return found


def list_images(dataset: str, folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; what else lies there is logged.

    Raises:
        RuntimeError: there is none.
    """
    listing = image_files(folder, levels=1)
    say_left_out(dataset, listing)
    if not listing.names:
        raise RuntimeError(no_images(dataset, listing))
    return listing.images


def no_images(dataset: str, listing: Listing) -> str:
    """What is wrong where a folder holds no image."""
    found = f"found {listing}" if listing.left_out else "it is empty"
    return f"{dataset}: no images in {printable(listing.folder)}; {found}. Expected files such as *.jpg; was it fully unpacked?"


def images_by_person(dataset: str, folder: Path) -> dict[Path, list[Path]]:
    """Each sub-folder of ``folder``, by name, with the images directly in it; what else lies there is logged.

    Raises:
        WrongNames: images lie in ``folder`` itself.
    """
    listing = image_files(folder, levels=2)
    say_left_out(dataset, listing)
    people: dict[Path, list[Path]] = {
        path: [] for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    }
    loose = [path for path in listing.images if path.parent not in people]
    if loose:
        raise WrongNames(dataset, loose, "images in one sub-folder per person")
    for path in listing.images:
        people[path.parent].append(path)
    return people


def parse_names(
    dataset: str, paths: Iterable[Path], pattern: re.Pattern, example: str, cameras: range
) -> list[tuple[Path, int, int]]:
    """(path, pid, camera as named) of each file, by ``pattern`` with these two groups on its base name.

    Raises:
        RuntimeError: names the first files that do not fit, and how many there are.
    """
    items, wrong = [], []
    for path in paths:
        match = pattern.fullmatch(path.name)
        if match is None or int(match[2]) not in cameras:
            wrong.append(path)
        else:
            items.append((path, int(match[1]), int(match[2])))
    if wrong:
        raise WrongNames(dataset, wrong, f"names like {example} with cameras {cameras[0]} to {cameras[-1]}")
    return items


class WrongNames(RuntimeError):
    """Files whose names say neither person nor camera: `paths`, all of them, and in `args` what was expected."""

    def __init__(self, dataset: str, wrong: Sequence[Path], expected: str):
        super().__init__(dataset, wrong, expected)
        self.dataset, self.paths, self.expected = dataset, list(wrong), expected

    def __str__(self) -> str:
        shown = ", ".join(printable(path.name) for path in self.paths[:3]) + (", ..." if len(self.paths) > 3 else "")
        return (
            f"{self.dataset}: {len(self.paths)} file(s) in {printable(self.paths[0].parent)} are wrongly named: {shown}. "
            f"Expected {self.expected}. Remove or rename them"
        )


def as_training(name: str, items: Iterable[Item]) -> list[TrainItem]:
    """Items with FastReID's string labels; people padded, so that they sort as numbers do."""
    return [(path, f"{name}_{pid:04d}", f"{name}_{camid}") for path, pid, camid in items]


def number_of(label: int | str) -> int:
    """The number of a pid or camid, which in training stands behind its data set's name."""
    return int(label.rpartition("_")[2]) if isinstance(label, str) else int(label)


def refuse_training(dataset: str) -> NoReturn:
    raise RuntimeError(
        f"{dataset} has no training images. Expected it in DATASETS.TESTS; train on another set, "
        "e.g. DATASETS.NAMES ('Market1501',)"
    )


def say_counts(data: Any, name: str, splits: Sequence[str]) -> None:
    """Log images, people and cameras of splits under the data set's name, in a line.

    Of a test set without cameras the log says what that does to its metrics.
    """
    known = getattr(data, "cameras_known", True)
    parts = []
    for split in splits:
        rows = getattr(data, split)
        people, cameras = (len({row[i] for row in rows}) for i in (1, 2))
        parts.append(f"{split} {len(rows):,} images of {people:,} people" + (f", {cameras} cameras" if known else ""))
    logger.info("%s: %s", name, "; ".join(parts))
    if not known and "query" in splits:
        logger.warning(
            "%s: no cameras are known, so every image counts as a camera of its own and same-camera matches were "
            "not excluded: metrics are higher than those of a cross-camera evaluation",
            name,
        )


class EvaluationOnly(ImageDataset):
    """A data set without training images, for DATASETS.TESTS."""

    def __init__(self, query: list[Item], gallery: list[Item], **kwargs):
        super().__init__([], query, gallery, **kwargs)

    def show_train(self):
        """Called by FastReID when the set is named in DATASETS.NAMES."""
        if not self.train:  # with DATASETS.COMBINEALL there are some
            refuse_training(type(self).__name__)
        super().show_train()



# ---- people paired by name: a hidden view as query, a whole one as gallery -----------------------------------------
class Pair(NamedTuple):
    """What `read_pair` reads. `people`: their names by number."""

    query: list[Item]
    gallery: list[Item]
    people: list[str]


def read_pair(dataset: str, query: Path, gallery: Path) -> Pair:
    """Query (camera 0) and gallery (camera 1) of two folders whose people correspond by name.

    A person's name is that of the sub-folder with the images, or in a flat folder the number that opens a file name
    (``001_002.jpg``, ``001.jpg``). Both folders share one numbering: the sorted names of both together.

    Raises:
        RuntimeError: a folder is empty, mixes images and sub-folders, or holds a file without a number.
    """
    named = [_by_person(dataset, folder) for folder in (query, gallery)]
    people = sorted({name for items in named for _, name in items}, key=natural_key)
    number = {name: pid for pid, name in enumerate(people)}
    items = ([(str(path), number[name], camid) for path, name in items] for camid, items in enumerate(named))
    return Pair(*items, people)


def natural_key(name: str) -> tuple:
    """Sorts names by the numbers in them: 2 before 10, c2 before c10; 01 and 1 stay apart."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), name


def _by_person(dataset: str, folder: Path) -> list[tuple[Path, str]]:
    if any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        people = images_by_person(dataset, folder)
        if empty := next((person for person, images in people.items() if not images), None):
            raise RuntimeError(no_images(dataset, image_files(empty, levels=1)))
        return [(path, person.name) for person, images in people.items() for path in images]
    items, wrong = [], []
    for path in list_images(dataset, folder):
        match = re.fullmatch(r"(\d+)(?:_.*)?", path.stem)
        if match is None:
            wrong.append(path)
        else:
            items.append((path, str(int(match[1]))))
    if wrong:
        raise WrongNames(dataset, wrong, "names that begin with the person's number, like 001_002.jpg")
    return items


class PairedByName(EvaluationOnly):
    """A query folder and a gallery folder whose people correspond by name, as `read_pair` reads them.

    Attributes:
        folders: accepted names of the data set's folder.
        splits: accepted names of the query folder, then of the gallery folder.
    """

    folders: tuple[str, ...]
    splits: tuple[tuple[str, ...], tuple[str, ...]]

    def __init__(self, root: str = "datasets", **kwargs):
        name = type(self).__name__
        folders = find_splits(name, root, self.folders, self.splits)
        pair = read_pair(name, *folders)
        self.person_names, self.camera_names = pair.people, [folder.name for folder in folders]
        super().__init__(pair.query, pair.gallery, **kwargs)

    def person_name(self, pid: int | str) -> str:
        """The folder's, or the number that opens the file name."""
        return self.person_names[number_of(pid)]

    def camera_name(self, camid: int | str) -> str:
        """Query and gallery folder stand for the cameras."""
        return self.camera_names[number_of(camid)]
