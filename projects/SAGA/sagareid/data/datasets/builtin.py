"""What FastReID's own data sets do not say or check: published statistics, their folder's names, and names misread."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .layout import REMEDY, Statistics, list_images, parse_names

__all__ = ["COUNTS_CAMERAS_FROM_0", "STATISTICS", "Place", "check_names", "find_folder", "is_builtin"]

# As the classes read them with their defaults: MSMT17 without the 2,373 images of list_val (32,621 with them), CUHK03 with
# labelled boxes and the 767/700 protocol, distractors of Market-1501's gallery as one person.
STATISTICS: dict[str, Statistics] = {
    "Market1501": {"train": (12_936, 751, 6), "query": (3_368, 750, 6), "gallery": (15_913, 751, 6)},
    "DukeMTMC": {"train": (16_522, 702, 8), "query": (2_228, 702, 8), "gallery": (17_661, 1_110, 8)},
    "MSMT17": {"train": (30_248, 1_041, 15), "query": (11_659, 3_060, 15), "gallery": (82_161, 3_060, 15)},
    "CUHK03": {"train": (7_368, 767, 2), "query": (1_400, 700, 2), "gallery": (5_328, 700, 2)},
    "VeRi": {"train": (37_778, None, 20), "query": (1_678, 200, None), "gallery": (11_579, 200, None)},
}


# Of these, a camid is the camera's number in file names less 1; the others give what stands in the name.
COUNTS_CAMERAS_FROM_0 = tuple(STATISTICS)


# ---- folders -------------------------------------------------------------------------------------------------------

# Folders that a class looks for under the root; of the others it is `dataset_dir`.
_FOLDERS = {"Market1501": ("Market-1501-v15.09.15",), "MSMT17": ("MSMT17_V1", "MSMT17_V2")}
# Further names of a folder, such as torchreid's, beside the class's, `dataset_name` and `dataset_dir`; letters and digits.
_OTHER_NAMES = {
    "DukeMTMC": {"dukemtmcreid", "duke"},
    "Market1501": {"market"},
    "PRID": {"prid2011"},
    "iLIDS": {"ilidsperson"},
    "PeS3D": {"3dpes"},
    "SYSU_mm": {"sysumm"},
}


class Place(NamedTuple):
    """What `find_folder` found: the class and the root to build the data set with, and its folder."""

    cls: type
    root: str
    folder: Path


def is_builtin(cls: type) -> bool:
    """Whether a data set's class is FastReID's own."""
    return cls.__module__.startswith("fastreid.")


def find_folder(name: str, cls: type, root: str | os.PathLike) -> Place:
    """Find the folder of a data set of FastReID's own under the names that people give it.

    Those are the class's, and any spelling of the class, of `dataset_name` or of torchreid's name in upper or lower case
    (``market1501/``), with or without the class's folder in it (``market1501/Market-1501-v15.09.15/``).

    Raises:
        FileNotFoundError: none of them is there; with what was expected.
    """
    root = Path(root).expanduser()
    expected = _FOLDERS.get(cls.__name__) or (cls.dataset_dir,)
    known = {_plain(word) for word in (cls.__name__, cls.dataset_name, *(Path(folder).parts[0] for folder in expected))}
    known |= _OTHER_NAMES.get(cls.__name__, set())
    folder = _first(root / folder for folder in expected)
    if folder is None and cls.__name__ == "Market1501" and (root / "bounding_box_train").is_dir():
        return Place(cls, str(root), root)  # FastReID takes the root itself for the data set
    if folder is None:
        near = sorted(entry for entry in root.iterdir() if _plain(entry.name) in known) if root.is_dir() else []
        near += [root] if _plain(root.resolve().name) in known else []
        inside = (near_by / folder for near_by in near for folder in expected)
        deeper = (child for near_by in near if near_by.is_dir() for child in sorted(near_by.iterdir()))
        folder = _first(inside) or _first(child for child in deeper if _plain(child.name) in known) or _first(near)
    if folder is None or (cls.__name__ == "MSMT17" and folder.name not in expected):
        unset = "" if os.getenv("FASTREID_DATASETS") else ", which is not set,"
        raise FileNotFoundError(
            f"{name}: no folder {' or '.join(expected)} under {root} (FASTREID_DATASETS{unset} names the folder above it); "
            f"looked also for {', '.join(sorted(known))}. {REMEDY}"
        )
    if cls.__name__ == "MSMT17" or folder.name == "Market-1501-v15.09.15":
        return Place(cls, str(folder.parent), folder)
    if folder == root:
        root = root.resolve().parent
        folder = root / Path(folder).resolve().name
    if folder == root / cls.dataset_dir:
        return Place(cls, str(root), folder)
    fields = {"dataset_dir": str(folder.relative_to(root)), "__module__": cls.__module__, "__doc__": cls.__doc__}
    return Place(type(cls.__name__, (cls,), fields), str(root), folder)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _first(folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


# ---- names ---------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """The splits of a class, and the names that it can read."""

    splits: tuple[str, ...]
    pattern: re.Pattern
    example: str
    cameras: range


_SPLITS = ("bounding_box_train", "query", "bounding_box_test")
# The classes that search the whole path of each *.jpg for its person and camera, and skip every other file.
_READ_PATHS = {
    "Market1501": Layout(_SPLITS, re.compile(r"(-?\d+)_c(\d).*\.jpg"), "0002_c1s1_000451_03.jpg", range(1, 7)),
    "DukeMTMC": Layout(_SPLITS, re.compile(r"(\d+)_c(\d).*\.jpg"), "0005_c2_f0046985.jpg", range(1, 9)),
    "VeRi": Layout(
        ("image_train", "image_query", "image_test"),
        re.compile(r"(\d+)_c(\d\d\d).*\.jpg"),
        "0001_c001_00016450_0.jpg",
        range(1, 21),
    ),
}


def check_names(dataset: str, folder: Path) -> None:
    """Refuse what FastReID's class of this name would misread or skip; nothing to do for other names.

    Args:
        folder: of the data set.

    Raises:
        ValueError: the folder's own name would be taken for a person and a camera.
        WrongNames: an image's name holds no person and camera, or does not end in .jpg.
    """
    layout = _READ_PATHS.get(dataset)
    if layout is None:
        return
    whole = os.path.abspath(folder)
    if re.search(r"[-\d]_c\d", whole):
        raise ValueError(
            f"{dataset}: FastReID would read people and cameras from the folder's own name, {whole}. "
            "Expected no digit, _c and digit in it; move or link the data to another folder"
        )
    for split in layout.splits:
        if (folder / split).is_dir():  # the class itself names a folder that is missing
            images = list_images(dataset, folder / split)
            parse_names(dataset, images, layout.pattern, layout.example, layout.cameras)
