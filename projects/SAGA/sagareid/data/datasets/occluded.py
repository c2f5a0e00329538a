"""Occluded and partial person data sets in the layouts of their authors, as FastReID data sets.

An item is (path, pid, camid). In query and gallery pid and camid are ints, camid from 0; in training they are
"<name>_0005" and "<name>_1", the host's form with the person's digits padded, so that its string order of labels is
numeric order. A camera's name is the data set's and its camid, which is how `loading` finds it again in testing.
A name is read from the file's base name alone: a folder such as ``run_1_c2/`` above it says nothing.
Every image file of a split is used; a file whose name cannot be read is an error, not a gap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

__all__ = [
    "OccludedDuke",
    "OccludedMarket",
    "OccludedMarketNoDistractors",
    "OccludedREID",
    "PDukeMTMC",
    "PartialREID",
    "PartialiLIDS",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
REMEDY = "Set FASTREID_DATASETS, or run configs/SAGA/quickstart.yml, which needs no download."

# Published images, people and cameras of each split, as a class's attribute `statistics`; None where they are not stated.
# People and cameras are counted as the class gives them: distractors are one person more.
Statistics = dict[str, tuple[int, int | None, int | None]]

Item = tuple[str, int, int]
TrainItem = tuple[str, str, str]


# ---- shared by the data sets ---------------------------------------------------------------------------------------
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
    """Image files directly in ``folder``, sorted by name.

    Raises:
        RuntimeError: there is none.
    """
    paths = sorted(Path(e.path) for e in os.scandir(folder) if e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file())
    if not paths:
        raise RuntimeError(f"{dataset}: no images in {folder}. Expected files such as *.jpg; was it fully unpacked?")
    return paths


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
        shown = ", ".join(path.name for path in self.paths[:3]) + (", ..." if len(self.paths) > 3 else "")
        return (
            f"{self.dataset}: {len(self.paths)} file(s) in {self.paths[0].parent} are wrongly named: {shown}. "
            f"Expected {self.expected}. Remove or rename them"
        )


def as_training(name: str, items: Iterable[Item]) -> list[TrainItem]:
    """Items with the host's string labels; people padded, so that they sort as numbers do."""
    return [(path, f"{name}_{pid:04d}", f"{name}_{camid}") for path, pid, camid in items]


def refuse_training(dataset: str) -> NoReturn:
    raise RuntimeError(
        f"{dataset} has no training images. Expected it in DATASETS.TESTS; train on another set, "
        "e.g. DATASETS.NAMES ('Market1501',)"
    )


class EvaluationOnly(ImageDataset):
    """A data set without training images, for DATASETS.TESTS."""

    def __init__(self, query: list[Item], gallery: list[Item], **kwargs):
        super().__init__([], query, gallery, **kwargs)

    def show_train(self):
        """Called by the host when the set is named in DATASETS.NAMES."""
        if not self.train:  # with DATASETS.COMBINEALL there are some
            refuse_training(type(self).__name__)
        super().show_train()


# ---- whole data sets -----------------------------------------------------------------------------------------------
@DATASET_REGISTRY.register()
class OccludedDuke(ImageDataset):
    """Occluded-DukeMTMC: every query is occluded, the gallery holds whole and occluded people.

    Source: Miao et al., Pose-Guided Feature Alignment for Occluded Person Re-Identification, ICCV 2019; made from
    DukeMTMC-reID by published lists of file names (github.com/lightas/Occluded-DukeMTMC-Dataset).
    Terms: those of DukeMTMC, which its authors withdrew in 2019; non-commercial research.
    Statistics: 15,618 training images of 702 people, 2,210 queries of 519, 17,661 gallery images of 1,110; 8 cameras.
    Folders: ``<root>/Occluded_Duke/{bounding_box_train,query,bounding_box_test}/0005_c2_f0046985.jpg``, as
    ``tools/build_occluded_duke.py`` makes them.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    statistics: Statistics = {"train": (15_618, 702, 8), "query": (2_210, 519, 8), "gallery": (17_661, 1_110, 8)}
    dataset_name = "occluded_duke"
    folders = (
        "Occluded_Duke",
        "Occluded-Duke",
        "Occluded-DukeMTMC",
        "Occluded-DukeMTMC-reID",
        "OccludedDuke",
        "occluded_duke",
        "dukemtmcreid/Occluded_Duke",
        "dukemtmcreid/Occluded-DukeMTMC",
    )
    pattern = re.compile(r"(\d+)_c(\d)(?!\d).*")

    def __init__(self, root: str = "datasets", **kwargs):
        splits = (("bounding_box_train",), ("query",), ("bounding_box_test",))
        train, query, gallery = find_splits("OccludedDuke", root, self.folders, splits)
        super().__init__(
            lambda: as_training(self.dataset_name, self._read(train)),
            lambda: self._read(query),
            lambda: self._read(gallery),
            **kwargs,
        )

    def _read(self, folder: Path) -> list[Item]:
        paths = list_images("OccludedDuke", folder)
        items = parse_names("OccludedDuke", paths, self.pattern, "0005_c2_f0046985.jpg", range(1, 9))
        return [(str(path), pid, camera - 1) for path, pid, camera in items]


@DATASET_REGISTRY.register()
class OccludedMarket(ImageDataset):
    """Occluded-Market: the occluded images of Market-1501 as training set and queries, its own gallery.

    Source: the folders that SAGA-ReID's published code reads (arXiv 2604.22190), made from Market-1501 (Zheng et al.,
    Scalable Person Re-identification: A Benchmark, ICCV 2015). Terms: those of Market-1501, research only.
    Statistics (as stated there, not verified): 9,287 training images, 2,343 queries, 15,913 gallery images; 6 cameras.
    Folders: ``<root>/Occluded_Market/{occluded_train,occluded_query,bounding_box_test}/0002_c1s1_000451_03.jpg``.

    As in Market-1501's protocol, pid -1 (junk) is left out everywhere and pid 0 (background and people whom no query
    looks for) stays in the gallery as distractors.

    Args:
        remove_distractors: leave pid 0 out of the gallery too, as the published code does. That makes the task easier;
            by configuration: the data set OccludedMarketNoDistractors.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    dataset_name = "occluded_market"
    _junk_pids = [0, -1]
    folders = ("Occluded_Market", "Occluded-Market", "Occluded-Market1501", "OccludedMarket", "occluded_market")
    pattern = re.compile(r"(-?\d+)_c(\d+)(?!\d).*")

    def __init__(self, root: str = "datasets", remove_distractors: bool = False, **kwargs):
        splits = (("occluded_train", "bounding_box_train"), ("occluded_query", "query"), ("bounding_box_test",))
        train, query, gallery = find_splits("OccludedMarket", root, self.folders, splits)
        super().__init__(
            lambda: as_training(self.dataset_name, self._read(train, skip=(-1, 0))),
            lambda: self._read(query, skip=(-1, 0)),
            lambda: self._read(gallery, skip=(-1, 0) if remove_distractors else (-1,)),
            **kwargs,
        )

    def _read(self, folder: Path, skip: tuple[int, ...]) -> list[Item]:
        paths = list_images("OccludedMarket", folder)
        items = parse_names("OccludedMarket", paths, self.pattern, "0002_c1s1_000451_03.jpg", range(1, 7))
        return [(str(path), pid, camera - 1) for path, pid, camera in items if pid not in skip]


@DATASET_REGISTRY.register()
class OccludedMarketNoDistractors(OccludedMarket):
    """OccludedMarket without the gallery's distractors: the published code's protocol, to compare with its figures."""

    def __init__(self, root: str = "datasets", **kwargs):
        super().__init__(root, remove_distractors=True, **kwargs)


# ---- people paired by name: a hidden view as query, a whole one as gallery -----------------------------------------
def read_pair(dataset: str, query: Path, gallery: Path) -> tuple[list[Item], list[Item]]:
    """Query (camera 0) and gallery (camera 1) of two folders whose people correspond by name.

    A person's name is that of the sub-folder with the images, or in a flat folder the number that opens a file name
    (``001_002.jpg``, ``001.jpg``). Both folders share one numbering: the sorted names of both together.

    Raises:
        RuntimeError: a folder is empty, mixes images and sub-folders, or holds a file without a number.
    """
    named = [_by_person(dataset, folder) for folder in (query, gallery)]
    people = sorted({name for items in named for _, name in items}, key=natural_key)
    number = {name: pid for pid, name in enumerate(people)}
    first, second = ([(str(path), number[name], camid) for path, name in items] for camid, items in enumerate(named))
    return first, second


def natural_key(name: str) -> tuple:
    """Sorts names by the numbers in them: 2 before 10, c2 before c10; 01 and 1 stay apart."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), name


def _by_person(dataset: str, folder: Path) -> list[tuple[Path, str]]:
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    if people:
        loose = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if loose:
            raise WrongNames(dataset, sorted(loose), "images in one sub-folder per person")
        return [(path, person.name) for person in people for path in list_images(dataset, person)]
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
        super().__init__(*read_pair(name, *find_splits(name, root, self.folders, self.splits)), **kwargs)


@DATASET_REGISTRY.register()
class OccludedREID(PairedByName):
    """Occluded-REID: 200 people, five occluded and five whole-body images of each.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018
    (github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets). Terms: research use.
    Statistics: 1,000 queries and 1,000 gallery images of 200 people; no training set (usual: Market1501).
    Folders: ``<root>/Occluded_REID/{occluded_body_images,whole_body_images}/<person>/*.tif``.

    Occluded images are camera 0, whole ones camera 1; a person has the same number in both, by the folder's name.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly placed.
    """

    statistics: Statistics = {"query": (1_000, 200, 1), "gallery": (1_000, 200, 1)}
    folders = ("Occluded_REID", "Occluded-REID", "OccludedREID", "occluded_reid")
    splits = (("occluded_body_images", "query"), ("whole_body_images", "gallery"))


@DATASET_REGISTRY.register()
class PartialREID(PairedByName):
    """Partial-REID: 60 people, five partial and five whole-body images of each.

    Source: Zheng et al., Partial Person Re-identification, ICCV 2015. Terms: research use.
    Statistics: 300 queries and 300 gallery images of 60 people; no training set (usual: Market1501).
    Folders: ``<root>/Partial_REID/{partial_body_images,whole_body_images}/001_001.jpg``.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    statistics: Statistics = {"query": (300, 60, 1), "gallery": (300, 60, 1)}
    folders = ("Partial_REID", "Partial-REID_Dataset", "Partial-REID", "PartialREID", "partial_reid")
    splits = (("partial_body_images", "query"), ("whole_body_images", "gallery"))


@DATASET_REGISTRY.register()
class PartialiLIDS(PairedByName):
    """Partial-iLIDS: 119 people in an airport, one partial and one whole image of each.

    Source: He et al., Deep Spatial Feature Reconstruction for Partial Person Re-identification, CVPR 2018, cropped from
    i-LIDS (Zheng, Gong and Xiang, CVPR 2011). Terms: research use; those of i-LIDS apply.
    Statistics: 119 queries and 119 gallery images of 119 people; no training set (usual: Market1501).
    Folders: ``<root>/PartialiLIDS/{Probe,Gallery}/001.jpg`` (also ``query``, ``gallery``).

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly named.
    """

    statistics: Statistics = {"query": (119, 119, 1), "gallery": (119, 119, 1)}
    folders = ("PartialiLIDS", "Partial_iLIDS", "Partial-iLIDS", "PartialILIDS", "partial_ilids")
    splits = (("Probe", "query"), ("Gallery", "gallery"))


@DATASET_REGISTRY.register()
class PDukeMTMC(ImageDataset):
    """P-DukeMTMC-reID: DukeMTMC-reID's people that are seen both occluded and whole.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018 (as OccludedREID). Terms: those of DukeMTMC, which
    its authors withdrew in 2019; non-commercial research.
    Statistics: 12,927 training images of 665 people, 2,163 queries and 9,053 gallery images of 634.
    Folders: ``<root>/P-DukeMTMC-reid/{train,test}/{occluded_body_images,whole_body_images}/<person>/*.jpg``.

    As in the published evaluations, occluded images are camera 0 and whole ones camera 1: queries are the occluded
    images of ``test``, and no gallery image is left out for its camera.

    Raises:
        RuntimeError: a folder is missing or empty, or a file is wrongly placed.
    """

    statistics: Statistics = {"train": (12_927, 665, 2), "query": (2_163, 634, 1), "gallery": (9_053, 634, 1)}
    dataset_name = "p_dukemtmc"
    folders = ("P-DukeMTMC-reid", "P-DukeMTMC-reID", "P-DukeMTMC", "PDukeMTMC", "p_dukemtmc")

    def __init__(self, root: str = "datasets", **kwargs):
        splits = [(f"{part}/{kind}_body_images",) for part in ("train", "test") for kind in ("occluded", "whole")]
        *train, query, gallery = find_splits("PDukeMTMC", root, self.folders, splits)
        test = read_pair("PDukeMTMC", query, gallery)
        super().__init__(lambda: self._training(*train), *test, **kwargs)

    def _training(self, occluded: Path, whole: Path) -> list[TrainItem]:
        occluded, whole = read_pair("PDukeMTMC", occluded, whole)
        return as_training(self.dataset_name, occluded + whole)
