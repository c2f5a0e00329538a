"""CUHK01, and one pair of cameras of CUHK03 as images: people of a campus, each seen by two cameras."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from .layout import Item, Statistics, as_training, find_splits, list_images, number_of, parse_names

__all__ = ["CUHK01", "CUHK03Pair", "CUHK03PairDetected"]

SHOTS = ("multi", "single")
_CAMERA_NAMES = ("A", "B")


def _test(dataset: str, items: Iterable[Item], query_camera: str, shots: str, seed: str) -> tuple[list[Item], list[Item]]:
    """Query, all images of one camera, and gallery, those of the other, or one of them for each person.

    Raises:
        ValueError: another camera, or other shots.
    """
    if query_camera not in _CAMERA_NAMES:
        raise ValueError(f"{dataset}: QUERY_CAMERA is {query_camera!r}; expected A or B")
    if shots not in SHOTS:
        raise ValueError(f"{dataset}: SHOTS is {shots!r}; expected {' or '.join(SHOTS)}")
    items = sorted(items)
    query = [item for item in items if item[2] == _CAMERA_NAMES.index(query_camera)]
    gallery = [item for item in items if item[2] != _CAMERA_NAMES.index(query_camera)]
    if shots == "single":
        by_person: dict[int, list[Item]] = {}
        for item in gallery:
            by_person.setdefault(item[1], []).append(item)
        rng = random.Random(seed)
        gallery = [rng.choice(by_person[pid]) for pid in sorted(by_person)]
    return query, gallery


class _TwoCameras(ImageDataset):
    """What the sets of this file share: the names of two cameras."""

    def camera_name(self, camid: int | str) -> str:
        """A or B."""
        return _CAMERA_NAMES[number_of(camid)]


@DATASET_REGISTRY.register()
class CUHK01(_TwoCameras):
    """CUHK01: 971 people of a campus, two images each by camera A and by camera B.

    Source: Li, Zhao and Wang, Human Reidentification with Transferred Metric Learning, ACCV 2012. Terms: research use.
    Statistics (the registered name): 1,940 training images of 485 people; 972 queries and 972 gallery images of 486.
    Folders: ``<root>/CUHK01/campus/0001001.png``: four digits for the person, three for the image; images 1 and 2 are
    camera A's, 3 and 4 camera B's.

    There is no published split. The protocol is that of the field (torchreid, data/datasets/image/cuhk01.py): a random
    half of the people, 485, trains, the other 486 are tested, camera A's images against camera B's and the reverse,
    averaged over ten splits. Splits 0 to 9 are fixed here and equal on every machine, but are nobody else's: a metric
    of one split differs from a published mean by chance. CUHK01 and CUHK02 share people.

    By configuration: ``DATASETS.CUSTOM: [{NAME: cuhk01_3, TYPE: CUHK01, SPLIT: 3, SHOTS: single}]``.

    Args:
        split: 0 to 9.
        shots: "multi": both images of a person in the other camera are gallery; "single": one of them, at random but
            always the same one.
        query_camera: "A" or "B".

    Raises:
        RuntimeError: the folder is missing or empty, or a file is wrongly named.
        ValueError: no such split, shots or camera; too few people to split.
    """

    statistics: Statistics = {"train": (1_940, 485, 2), "query": (972, 486, 1), "gallery": (972, 486, 1)}
    dataset_name = "cuhk01"
    folders = ("CUHK01", "cuhk01", "CUHK-01", "CUHK/CUHK01")
    pattern = re.compile(r"(\d{4})(\d{3})\.png")
    splits = 10

    def __init__(
        self, root: str = "datasets", *, split: int = 0, shots: str = "multi", query_camera: str = "A", **kwargs
    ):
        if isinstance(split, (bool, str)) or split not in range(self.splits):
            raise ValueError(f"CUHK01: SPLIT is {split!r}; expected 0 to {self.splits - 1}")
        [campus] = find_splits("CUHK01", root, self.folders, [("campus",)])
        images = parse_names("CUHK01", list_images("CUHK01", campus), self.pattern, "0001001.png", range(1, 5))
        items = [(str(path), pid, (number - 1) // 2) for path, pid, number in images]
        people = sorted({pid for _, pid, _ in items})
        if len(people) < 2:
            raise ValueError(f"CUHK01: {campus} holds {len(people)} person; expected 971, or 2 or more to split")
        train = set(random.Random(f"cuhk01 {split}").sample(people, len(people) // 2))
        query, gallery = _test(
            "CUHK01", (item for item in items if item[1] not in train), query_camera, shots, f"cuhk01 {split}"
        )
        training = as_training(self.dataset_name, (item for item in items if item[1] in train))
        super().__init__(training, query, gallery, **kwargs)


@DATASET_REGISTRY.register()
class CUHK03Pair(_TwoCameras):
    """One pair of cameras of CUHK03 as images in folders: 843 people, up to five images each by camera A and camera B.

    Source: Li, Zhao, Xiao and Wang, DeepReID, CVPR 2014; the images of the first of its five pairs, as they are passed
    on beside the original ``cuhk-03.mat`` (github.com/manideep2510/CUHK03_dataset). Terms: research use.
    Statistics: 7,239 training images of 743 people; 451 queries and 487 gallery images of 100.
    Folders: ``<root>/CUHK03_pair/{labeled,detected}/{train,val}/0005_03.jpg`` (also in a folder ``CUHK``): the person,
    counted from 0 in each of train and val, and the image: 00 to 04 are camera A's, 05 to 09 camera B's.

    Neither published protocol of CUHK03 can be had from these folders: the 20 test sets of 100 people and the 767/700
    split are of all five pairs (FastReID's `CUHK03` reads the original file). People of ``train`` train and those of
    ``val`` are tested here; a metric of 100 people in two cameras is higher than, and no substitute for, either. In the
    copy that is passed on, all images in ``val`` of ``detected`` are byte for byte those of ``labeled``, so that
    `CUHK03PairDetected` differs in training alone.

    Args:
        boxes: "labeled", drawn by hand, or "detected".
        shots, query_camera: as of `CUHK01`.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
        ValueError: no such boxes, shots or camera.
    """

    statistics: Statistics = {"train": (7_239, 743, 2), "query": (451, 100, 1), "gallery": (487, 100, 1)}
    dataset_name = "cuhk03_pair"
    folders = ("CUHK03_pair", "CUHK03-pair", "cuhk03_pair", "CUHK03Pair", "CUHK")
    pattern = re.compile(r"(\d{4})_(\d\d)\.jpg")

    def __init__(
        self,
        root: str = "datasets",
        *,
        boxes: str = "labeled",
        shots: str = "multi",
        query_camera: str = "A",
        **kwargs,
    ):
        if boxes not in ("labeled", "detected"):
            raise ValueError(f"CUHK03Pair: BOXES is {boxes!r}; expected labeled or detected")
        folders = find_splits("CUHK03Pair", root, self.folders, [(f"{boxes}/train",), (f"{boxes}/val",)])
        train, val = (self._read(folder) for folder in folders)
        # both count from 0, and nobody is number 0 or below: test people follow the training people
        self._training_people = 1 + max(pid for _, pid, _ in train)
        test = [(path, pid + self._training_people, camera) for path, pid, camera in val]
        query, gallery = _test("CUHK03Pair", test, query_camera, shots, "cuhk03 pair")
        super().__init__(as_training(self.dataset_name, train), query, gallery, **kwargs)

    def _read(self, folder: Path) -> list[Item]:
        items = parse_names("CUHK03Pair", list_images("CUHK03Pair", folder), self.pattern, "0005_03.jpg", range(10))
        return [(str(path), pid, number // 5) for path, pid, number in items]

    def person_name(self, pid: int | str) -> str:
        """The folder and the number of the file name: train 5, val 5."""
        number = number_of(pid) - self._training_people
        return f"val {number}" if number >= 0 else f"train {number + self._training_people}"


@DATASET_REGISTRY.register()
class CUHK03PairDetected(CUHK03Pair):
    """`CUHK03Pair` with detected boxes."""

    dataset_name = "cuhk03_pair_detected"

    def __init__(self, root: str = "datasets", **kwargs):
        super().__init__(root, boxes="detected", **kwargs)
