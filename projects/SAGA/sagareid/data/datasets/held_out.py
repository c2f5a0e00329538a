"""A registered data set of which some training people are kept for validation."""

from __future__ import annotations

from fastreid.data.datasets import DATASET_REGISTRY

from .build import registered_dataset
from .custom import OwnDataset, Photo
from .names import Names

__all__ = ["HeldOutDataset"]


@DATASET_REGISTRY.register()
class HeldOutDataset(OwnDataset):
    """The training people of a registered data set, some of them apart for validation; it has no test of its own.

    By configuration: ``DATASETS.CUSTOM: [{NAME: market, TYPE: HeldOutDataset, OF: Market1501, VALIDATION_SHARE: 0.15}]``,
    then ``market`` in DATASETS.NAMES, ``market_validation`` in DATASETS.VALIDATION, and in TESTS ``Market1501`` itself,
    whose protocol stays as it is. Which people are kept follows from their names: the same ones in every run.

    Args:
        name: the entry's NAME.
        of: name of a registered data set with training images.
        validation_share: of its training people, between 0 and 1.

    Raises:
        ValueError: no such data set, one without training images, or a share that leaves nobody on one side.
    """

    def __init__(self, root: str = "datasets", *, name: str, of: str, validation_share: float, **kwargs):
        data = registered_dataset(of, root)
        if not data.train:
            raise ValueError(f"{name}: {of} has no training images; name a data set that has some with OF")
        names = Names(data)
        photos = [Photo(path, names.person(pid), names.camera(camid) or None) for path, pid, camid in data.train]
        super().__init__(name, {"train": photos}, validation_share=validation_share, **kwargs)
