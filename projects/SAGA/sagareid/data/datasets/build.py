"""Data sets by name, registered or of DATASETS.CUSTOM, checked for what they are to be used for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ... import compat
from ...config import custom_datasets, reads_cameras
from ...errors import did_you_mean
from ..images import check_modes
from . import builtin
from .layout import refuse_training


__all__ = ["DataSets", "build_dataset", "queries_without_match", "registered_dataset"]


def build_dataset(cfg, name: str, **options) -> ImageDataset:
    """The data set of a name in DATASETS.NAMES or TESTS, registered or of DATASETS.CUSTOM.

    Args:
        options: further arguments of its class.

    Raises:
        OSError, RuntimeError, ValueError: the name is not known, or the data is not there or not as the class expects it.
    """
    known = {n: (cls, {}) for n, cls in compat.registered(DATASET_REGISTRY).items()} | custom_datasets(cfg)
    if name not in known:
        raise ValueError(
            f"{name} is neither a registered data set nor in DATASETS.CUSTOM.{did_you_mean(name, known, 3)} Known: "
            f"{', '.join(sorted(known, key=str.lower))}. Another is registered by its module (--import)"
        )
    cls, own = known[name]
    return _build(name, cls, compat.dataset_root(), own | options)


def registered_dataset(name: str, root: str) -> ImageDataset:
    """The data set that is registered by a name; no entry of DATASETS.CUSTOM.

    Raises:
        ValueError: there is none. Others as `build_dataset`.
    """
    known = compat.registered(DATASET_REGISTRY)
    if name not in known:
        raise ValueError(f"{name} is no registered data set; known: {', '.join(sorted(known, key=str.lower))}")
    return _build(name, known[name], root, {})


def _build(name: str, cls: type, root: str, options: dict) -> ImageDataset:
    if not builtin.is_builtin(cls):
        return cls(root=root, **options)
    cls, root, folder = builtin.find_folder(name, cls, root)
    builtin.check_names(cls.__name__, folder)
    try:
        return cls(root=root, **options)
    except (AssertionError, RuntimeError, OSError) as error:
        what = str(error).rstrip(".") or "a file of another name than it expects"
        raise RuntimeError(f"{name}: {what}. Expected the whole data set in {folder}; was it fully unpacked?") from error


def queries_without_match(query: Sequence[tuple], gallery: Sequence[tuple]) -> list[tuple]:
    """Queries, as (path, pid, camid), whose person no gallery image shows in another camera: evaluation leaves them out."""
    cameras = defaultdict(set)
    for _, pid, camid in gallery:
        cameras[pid].add(camid)
    return [item for item in query if not cameras[item[1]] - {item[2]}]


class DataSets:
    """The data sets of a run, each read once: its folders are listed, or its table parsed, at the first use.

    Another process that gets the object reads for itself.
    """

    def __init__(self):
        self._read: dict[tuple, ImageDataset] = {}

    def __reduce__(self):
        return DataSets, ()

    def training(self, cfg, name: str) -> ImageDataset:
        """A data set of DATASETS.NAMES, with training images.

        Raises:
            RuntimeError: it has none.
            UnreadableImage: images of a mode that has no RGB.
            ValueError: the model embeds cameras, and they are not known. Others as `build_dataset`.
        """
        data = self._once(cfg, name, ("train",), combineall=cfg.DATASETS.COMBINEALL)
        if not data.train:
            refuse_training(name)
        if reads_cameras(cfg) and not getattr(data, "cameras_known", True):
            raise ValueError(
                f"{name}: the model embeds cameras, and no cameras are known here. Name them in the data set, or set "
                "MODEL.CLIP.SIE_CAMERA False and MODEL.SAGA.DOMAIN_ANCHORS content"
            )
        return data

    def test(self, cfg, name: str) -> ImageDataset:
        """A data set of DATASETS.TESTS or VALIDATION that can be evaluated.

        Raises:
            ValueError: no query, no gallery, or no query with a match in another camera.
            UnreadableImage: images of a mode that has no RGB. Others as `build_dataset`.
        """
        # FastReID reads the split of its mode at once, and the others when they are asked for
        data = self._once(cfg, name, ("query", "gallery"), mode="query")
        for split in ("query", "gallery"):
            if not getattr(data, split):
                raise ValueError(f"{name}: its {split} split is empty, so there is nothing to evaluate")
        if len(queries_without_match(data.query, data.gallery)) == len(data.query):
            raise ValueError(
                f"{name}: no query has an image of the same person in another camera of the gallery, so there is "
                "nothing to evaluate. With one camera only, leave the cameras out of a CSVDataset or FolderDataset"
            )
        return data

    def _once(self, cfg, name: str, splits: Sequence[str], **options) -> ImageDataset:
        """The data set, the images of whose `splits` can be read."""
        key = (name, repr(cfg.DATASETS.CUSTOM), compat.dataset_root(), *options.items())
        if key not in self._read:
            data = build_dataset(cfg, name, **options)
            check_modes(name, (item[0] for split in splits for item in getattr(data, split)))
            self._read[key] = data
        return self._read[key]
