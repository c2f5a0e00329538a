"""Occluded-Market: the occluded images of Market-1501."""

from __future__ import annotations

import re
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from .layout import Item, as_training, find_splits, list_images, parse_names

__all__ = ["OccludedMarket", "OccludedMarketNoDistractors"]


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
    """OccludedMarket without the gallery's distractors: the published code's protocol, to compare with its metrics."""

    def __init__(self, root: str = "datasets", **kwargs):
        super().__init__(root, remove_distractors=True, **kwargs)
