"""What FastReID's own data sets do not say or check: published statistics, and names that their classes misread."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from .layout import Statistics, list_images, parse_names

__all__ = ["STATISTICS", "check_names"]

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


class Layout(NamedTuple):
    """Where a class looks for images, and the names that it can read. `folders`: the first that is there counts."""

    folders: tuple[str, ...]
    splits: tuple[str, ...]
    pattern: re.Pattern
    example: str
    cameras: range


_SPLITS = ("bounding_box_train", "query", "bounding_box_test")
# The classes that search the whole path of each *.jpg for its person and camera, and skip every other file.
_READ_PATHS = {
    "Market1501": Layout(
        ("Market-1501-v15.09.15", "."),
        _SPLITS,
        re.compile(r"(-?\d+)_c(\d).*\.jpg"),
        "0002_c1s1_000451_03.jpg",
        range(1, 7),
    ),
    "DukeMTMC": Layout(
        ("DukeMTMC-reID",), _SPLITS, re.compile(r"(\d+)_c(\d).*\.jpg"), "0005_c2_f0046985.jpg", range(1, 9)
    ),
    "VeRi": Layout(
        ("veri",),
        ("image_train", "image_query", "image_test"),
        re.compile(r"(\d+)_c(\d\d\d).*\.jpg"),
        "0001_c001_00016450_0.jpg",
        range(1, 21),
    ),
}


def check_names(dataset: str, root: str | os.PathLike) -> None:
    """Refuse what FastReID's class of this name would misread or skip; nothing to do for other names.

    Raises:
        ValueError: the root's own name would be taken for a person and a camera.
        WrongNames: an image's name holds no person and camera, or does not end in .jpg.
    """
    layout = _READ_PATHS.get(dataset)
    if layout is None:
        return
    whole = os.path.abspath(root)
    if re.search(r"[-\d]_c\d", whole):
        raise ValueError(
            f"{dataset}: FastReID would read people and cameras from the folder's own name, {whole}. "
            "Expected no digit, _c and digit in it; move or link the data to another folder"
        )
    folders = (Path(root, folder) for folder in layout.folders)
    base = next((folder for folder in folders if folder.is_dir()), None)
    for split in layout.splits:
        if base is not None and (base / split).is_dir():  # the class itself names a folder that is missing
            images = list_images(dataset, base / split)
            parse_names(dataset, images, layout.pattern, layout.example, layout.cameras)
