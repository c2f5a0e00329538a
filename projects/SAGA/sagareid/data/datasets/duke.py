"""Occluded-Duke and P-Duke, and how Occluded-Duke is made of DukeMTMC-reID: its authors publish lists of names, not images."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
from tqdm import tqdm

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ...files import read_utf8
from .layout import Item, Statistics, TrainItem, as_training, find_splits, list_images, number_of, parse_names, read_pair

__all__ = ["MODES", "OccludedDuke", "PDukeMTMC", "build_occluded_duke"]


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
        self._people, self._training_people = test.people, []
        super().__init__(lambda: self._training(*train), test.query, test.gallery, **kwargs)

    def _training(self, occluded: Path, whole: Path) -> list[TrainItem]:
        pair = read_pair("PDukeMTMC", occluded, whole)
        self._training_people = pair.people
        return as_training(self.dataset_name, pair.query + pair.gallery)

    def person_name(self, pid: int | str) -> str:
        """The folder's; training and test people are numbered apart."""
        training = isinstance(pid, str) and not pid.startswith(f"{self.dataset_name}_test_")
        return (self._training_people if training else self._people)[number_of(pid)]

    def camera_name(self, camid: int | str) -> str:
        """Occluded and whole images stand for the cameras."""
        return ("occluded", "whole")[number_of(camid)]


# ---- building Occluded-Duke ----------------------------------------------------------------------------------------

# split -> (list, folder)
_PARTS = {
    "train": ("train.list", "bounding_box_train"),
    "query": ("query.list", "query"),
    "gallery": ("gallery.list", "bounding_box_test"),
}
MODES: dict[str, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "link": os.link,
    "symlink": lambda source, target: os.symlink(source.resolve(), target),
}


def build_occluded_duke(
    source: str | os.PathLike,
    lists: str | os.PathLike,
    root: str | os.PathLike,
    mode: str = "copy",
    expected: Statistics | None = OccludedDuke.statistics,
) -> Path:
    """Make ``<root>/Occluded_Duke`` of the images that the lists name, all of it or none.

    Args:
        source: the folder DukeMTMC-reID (bounding_box_train, query, bounding_box_test), or the one that holds it. An image
            is looked for in all three: the lists divide them anew.
        lists: folder with train.list, query.list and gallery.list, one file name a line
            (github.com/lightas/Occluded-DukeMTMC-Dataset, folder Occluded_Duke).
        mode: a key of `MODES`; "link" needs source and root on one file system.
        expected: images, people and cameras of each list; None: any.

    Returns:
        the new folder; the lists are kept in it.

    Raises:
        FileExistsError: there is one.
        FileNotFoundError: a list is not there, or images of the lists are not in the source; the first are named.
        ValueError: a list has a name twice, in common with another, or other counts than expected.
        RuntimeError: the source has no such folders, or a list names what is no DukeMTMC-reID image.
    """
    lists, root = Path(lists).expanduser(), Path(root).expanduser().absolute()
    target, partial = root / "Occluded_Duke", root / ".Occluded_Duke.partial"
    names = {split: _read_list(lists / file) for split, (file, _) in _PARTS.items()}
    _check(names, expected)
    folders = find_splits("DukeMTMC-reID", source, ("DukeMTMC-reID", "."), [(folder,) for _, folder in _PARTS.values()])
    images = {path.name: path for folder in folders for path in list_images("DukeMTMC-reID", folder)}
    missing = [name for some in names.values() for name in some if name not in images]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} image(s) of the lists are not in {folders[0].parent}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}. Expected the whole DukeMTMC-reID; was it fully unpacked?"
        )
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / ".Occluded_Duke.lock"):
        if target.exists():
            raise FileExistsError(
                f"{target} is there already, and stays as it is. Move it away, or name another --root"
            )
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        try:
            _fill(partial, names, images, mode)
            for file, _ in _PARTS.values():
                shutil.copyfile(lists / file, partial / file)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return target


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no list {path}. Expected train.list, query.list and gallery.list of "
            "github.com/lightas/Occluded-DukeMTMC-Dataset, folder Occluded_Duke"
        )
    text = read_utf8(path, remedy="Download it again")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check(names: dict[str, list[str]], expected: Statistics | None) -> None:
    seen: dict[str, str] = {}
    for split, some in names.items():
        file = _PARTS[split][0]
        for name in some:
            if name in seen:
                raise ValueError(f"{name} is in {seen[name]} and again in {file}; expected each image once")
            seen[name] = file
        items = parse_names(
            file, [Path(file, name) for name in some], OccludedDuke.pattern, "0005_c2_f0046985.jpg", range(1, 9)
        )
        found = len(some), len({pid for _, pid, _ in items}), len({camera for _, _, camera in items})
        if expected is not None and found != expected[split]:
            raise ValueError(
                "{}: {:,} images of {:,} people in {} cameras; ".format(file, *found)
                + "expected {:,} of {:,} in {}. Take the list anew, or allow it with --any-size".format(
                    *expected[split]
                )
            )


def _fill(folder: Path, names: dict[str, list[str]], images: dict[str, Path], mode: str) -> None:
    total = sum(map(len, names.values()))
    with tqdm(total=total, desc=f"{mode} images", unit="image", disable=None) as bar:
        for split, (_, name) in _PARTS.items():
            (folder / name).mkdir(parents=True)
            for image in names[split]:
                try:
                    MODES[mode](images[image], folder / name / image)
                except OSError as error:
                    if error.errno == errno.EXDEV:
                        raise OSError(
                            f"{images[image]} and {folder} are on different file systems, so no hard link can be made; "
                            "use --copy or --symlink"
                        ) from error
                    raise
                bar.update()
