"""MMMP, people seen by street cameras and drones in visible and infrared light, as FastReID data sets.

Every retrieval setting is a data set of its own, so that a config names it: ``MMMP_cctv_rgb_uav_ir`` looks for street
RGB queries among drone infrared images.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ...files import read_utf8
from ..images import image_files
from .layout import REMEDY, Item, as_training, images_by_person, no_images

__all__ = ["MMMP", "SETTINGS"]

# (platform, light) -> cameras, as their folders are numbered
CAMERAS = {
    ("cctv", "rgb"): range(1, 7),
    ("cctv", "ir"): range(7, 13),
    ("uav", "rgb"): range(13, 14),
    ("uav", "ir"): range(14, 15),
}
_GROUPS = {
    name: [camera for key, cameras in CAMERAS.items() if name in key for camera in cameras]
    for name in ("cctv", "uav", "rgb", "ir")
}
SETTINGS = tuple(
    ["exp_" + "_".join(query + gallery) for query, gallery in itertools.permutations(CAMERAS, 2)]
    + [f"exp_{name}" for name in _GROUPS]
)


@DATASET_REGISTRY.register()
class MMMP(ImageDataset):
    """Multi-modality, multi-platform re-identification.

    Source: the layout that SAGA-ReID's published code reads (arXiv 2604.22190). Terms: ask the data set's authors.
    Cameras: street RGB 01-06, street infrared 07-12, drone RGB 13, drone infrared 14; camid = number - 1.
    Folders: ``<root>/MMMP/<camera, two digits>/<person, four digits>/*.jpg``, and per setting the people's numbers in
    ``<split_root>/<setting>/{train,val,test}_id.txt`` (first line, comma separated).

    Training: people of train and val in the cameras of both sides. Test people:
    ``exp_<platform>_<light>_<platform>_<light>``: queries from the first pair's cameras, gallery from the second's.
    ``exp_<cctv|uav|rgb|ir>``: of a person's images in one camera, half (at least one) are queries and the rest gallery,
    drawn with a fixed seed; a person's only image in a camera has no counterpart and is in neither.

    Args:
        setting: one of `SETTINGS`. By configuration: the data set ``MMMP_<setting without exp_>``.
        split_root: folder with the id lists. None: the data set's own.

    Raises:
        RuntimeError: a folder or list is missing, empty or not as above.
        ValueError: unknown setting.
    """

    dataset_name = "mmmp"
    folders = ("MMMP", "mmmp")

    def __init__(
        self, root: str = "datasets", setting: str = "exp_cctv_rgb_uav_rgb", split_root: str | None = None, **kwargs
    ):
        if setting not in SETTINGS:
            raise ValueError(f"MMMP: unknown setting {setting!r}; expected one of {', '.join(SETTINGS)}")
        root = Path(root).expanduser()
        candidates = [root / folder for folder in self.folders] + ([root] if root.name in self.folders else [])
        self.data_dir = next((path for path in candidates if path.is_dir()), candidates[0])
        self.list_dir = Path(split_root or self.data_dir) / setting
        sides = self._sides(setting)
        for camera in sorted({camera for side in sides for camera in side}):
            if not self._camera_dir(camera).is_dir():
                raise RuntimeError(
                    f"MMMP: no '{camera:02d}' folder under {self.data_dir}. Expected a folder per camera of {setting}, "
                    f"with one per person in it. {REMEDY}"
                )
        train = self._ids("train") | self._ids("val")
        test = self._ids("test")
        if len(sides) == 2:
            query, gallery = (lambda side=side: self._read(side, test) for side in sides)
        else:
            query, gallery = self._halves(self._read(sides[0], test))
        cameras = sorted({camera for side in sides for camera in side})
        super().__init__(lambda: as_training(self.dataset_name, self._read(cameras, train)), query, gallery, **kwargs)

    @staticmethod
    def _sides(setting: str) -> list[list[int]]:
        """Cameras of the query and of the gallery, or of both at once."""
        words = setting.split("_")[1:]
        if len(words) == 1:
            return [_GROUPS[words[0]]]
        return [list(CAMERAS[tuple(words[:2])]), list(CAMERAS[tuple(words[2:])])]

    def _camera_dir(self, camera: int) -> Path:
        return self.data_dir / f"{camera:02d}"

    def _ids(self, split: str) -> set[int]:
        path = self.list_dir / f"{split}_id.txt"
        if not path.is_file():
            raise RuntimeError(
                f"MMMP: no '{path.name}' under {self.list_dir}. Expected train, val and test lists. {REMEDY}"
            )
        text = read_utf8(path, remedy="Unpack the data set again", may_be_empty=True)  # a list of nobody
        line = text.removeprefix("\ufeff").partition("\n")[0]
        try:
            return {int(word) for word in line.split(",") if word.strip()}
        except ValueError as error:
            raise RuntimeError(f"MMMP: {path}: {error}. Expected comma separated numbers in the first line") from None

    def _read(self, cameras: list[int], ids: set[int]) -> list[Item]:
        items = []
        for camera in cameras:
            folder = self._camera_dir(camera)
            people = images_by_person("MMMP", folder)
            wrong = [path.name for path in people if not (path.name.isdecimal() and len(path.name) == 4)]
            if wrong:
                raise RuntimeError(f"MMMP: {folder} holds {wrong[:3]}; expected one folder a person, like 0001")
            for person, images in people.items():
                if int(person.name) in ids:
                    if not images:
                        raise RuntimeError(no_images("MMMP", image_files(person, levels=1)))
                    items += [(str(path), int(person.name), camera - 1) for path in images]
        if not items:
            raise RuntimeError(
                f"MMMP: none of the {len(ids)} people of a list in {self.list_dir} is in cameras {cameras}. "
                "Expected folders named by their four-digit numbers"
            )
        return items

    @staticmethod
    def _halves(items: list[Item]) -> tuple[list[Item], list[Item]]:
        groups = defaultdict(list)
        for item in items:
            groups[item[1:]].append(item)
        query, gallery = [], []
        for key in sorted(groups):
            group = groups[key]
            if len(group) < 2:
                continue
            chosen = set(random.Random(f"mmmp {key}").sample(range(len(group)), max(1, len(group) // 2)))
            query += [item for i, item in enumerate(group) if i in chosen]
            gallery += [item for i, item in enumerate(group) if i not in chosen]
        return query, gallery


def _register(setting: str) -> None:
    def __init__(self, root: str = "datasets", **kwargs):
        MMMP.__init__(self, root, setting=setting, **kwargs)

    name = "MMMP_" + setting.removeprefix("exp_")
    DATASET_REGISTRY.register(type(name, (MMMP,), {"__init__": __init__, "__doc__": f"MMMP, setting {setting}."}))


for _setting in SETTINGS:
    _register(_setting)
