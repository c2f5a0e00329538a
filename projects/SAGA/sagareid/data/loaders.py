"""Loaders whose every sample is a function of the seed and its place in the run, for any number of processes.

A FastReID loader draws augmentations from whatever state the random generators are in, so a resumed run, or one with
another number of workers or processes, sees other images. Here each sample of batch b carries its own seed, and every
process draws the same batch of SOLVER.IMS_PER_BATCH images and keeps its share of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from fastreid.data.build import fast_batch_collator
from fastreid.data.common import CommDataset
from fastreid.utils import comm

from .. import compat
from .datasets.build import DataSets
from .images import UnreadableImage, read_image
from .seeding import SeededBatches, SeededSamples, seeded
from .transforms import build_transforms

__all__ = [
    "DeviceLoader",
    "ReIDDataset",
    "TrainLoader",
    "build_test_loader",
    "build_train_loader",
    "make_test_loader",
    "training_cameras",
    "training_set",
]


class ReIDDataset(CommDataset):
    """FastReID's data set with its images read by `read_image` and one more field, `cameras`: the index of the camera
    among the training cameras.

    `camids` keep FastReID's meaning, which differs between training (rank of the name) and testing (the number in the
    file name); a model that embeds cameras needs one that does not.
    """

    def __init__(
        self, items: Sequence[tuple], transform, *, relabel: bool, cameras: Sequence[str], dataset_name: str = ""
    ):
        """
        Args:
            items: (path, pid, camid).
            cameras: names of the training cameras; empty: this set's own.
            dataset_name: of a test set, to name its cameras as the training set does.
        """
        super().__init__(list(items), transform, relabel=relabel)
        self.cameras = list(cameras) or natural_order(self.cams)
        self._camera_index = {name: i for i, name in enumerate(self.cameras)}
        self._dataset_name = dataset_name

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, pid, camid = self.img_items[index][:3]
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise UnreadableImage(
                f"{error}. Replace or remove the file; `python tools/check_dataset.py NAME` lists every such file of a "
                "data set"
            ) from error
        return {
            "images": image if self.transform is None else self.transform(image),
            "targets": self.pid_dict[pid] if self.relabel else pid,
            "camids": self.cam_dict[camid] if self.relabel else camid,
            "img_paths": path,
            "cameras": self.camera_index(camid),
        }

    def camera_index(self, camid: str | int) -> int:
        """Index among the training cameras of an item's camid, a name in training and a number in testing; or -1."""
        name = camid if isinstance(camid, str) else f"{self._dataset_name}_{camid}"
        return self._camera_index.get(name, -1)


def natural_order(names: Iterable[Any]) -> list[str]:
    """Camera names by data set, then by number: market1501_2 before market1501_10."""

    def key(name: str) -> tuple[str, int, str]:
        head, _, tail = name.rpartition("_")
        return (head, int(tail), "") if tail.isdigit() else (name, -1, tail)

    return sorted((str(n) for n in names), key=key)


# ---- seeds ---------------------------------------------------------------------------------------------------------


class DeviceLoader(DataLoader):
    """A DataLoader whose batches arrive on the model's device, as FastReID's own meta-architectures expect."""

    def __init__(self, *args, device: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.device = torch.device(device)

    def __iter__(self):
        # a generator: workers start at the first batch, so that `start_at` and a feature cache can be set before
        batches, unreadable = super().__iter__(), None
        try:
            for batch in batches:
                yield {
                    k: v.to(self.device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                    for k, v in batch.items()
                }
        except UnreadableImage as error:
            unreadable = error.without_traceback()
        finally:
            compat.end_workers(batches)
        if unreadable is not None:
            raise unreadable


class TrainLoader(DeviceLoader):
    """Infinite batches of the training set, from any batch on."""

    def start_at(self, batch: int) -> None:
        """Skip the batches before `batch`: those that an interrupted run has seen."""
        self.batch_sampler.start = batch


# ---- builders ------------------------------------------------------------------------------------------------------


def training_set(cfg, transform=None, datasets: DataSets | None = None) -> ReIDDataset:
    """All training images of DATASETS.NAMES.

    Args:
        transform: None for the training transform.
        datasets: those that have been read; None to read them here.
    """
    items, datasets = [], datasets or DataSets()
    for name in cfg.DATASETS.NAMES:
        data = datasets.training(cfg, name)
        if comm.is_main_process():
            data.show_train()
        items.extend(data.train)
    transform = transform or build_transforms(cfg, is_train=True)
    return ReIDDataset(items, transform, relabel=True, cameras=cfg.MODEL.CLIP.CAMERAS)


def training_cameras(cfg, datasets: DataSets) -> list[str]:
    """Names of the cameras of DATASETS.NAMES, in the order of their embeddings."""
    return natural_order({camid for name in cfg.DATASETS.NAMES for _, _, camid in datasets.training(cfg, name).train})


def build_train_loader(cfg, dataset: Dataset | None = None) -> TrainLoader:
    """Infinite loader of the training set with FastReID's sampler, collator and keys.

    Args:
        dataset: anything with the `img_items` of a training set that is read by SampleKey; None for the images of
            DATASETS.NAMES.
    """
    dataset = dataset or SeededSamples(training_set(cfg))
    _check_batch(cfg, dataset)
    # FastReID's samplers draw their seed when they are made, and give one process what all share
    with seeded(cfg.SEED), compat.as_one_process():
        sampler = compat.train_sampler(cfg, dataset)
    batched = hasattr(type(dataset), "__getitems__")
    return TrainLoader(
        dataset,
        batch_sampler=SeededBatches(BatchSampler(sampler, cfg.SOLVER.IMS_PER_BATCH, drop_last=True), cfg.SEED),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_it_is if batched else fast_batch_collator,
        pin_memory=_pin_memory(cfg),
        device=cfg.MODEL.DEVICE,
        generator=torch.Generator(),  # starting workers draws nothing from the run's random state, so resuming may too
    )


def _check_batch(cfg, dataset) -> None:
    """FastReID's identity samplers search for ever where a batch needs more identities than there are."""
    sampler, instances = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.NUM_INSTANCE
    needed = cfg.SOLVER.IMS_PER_BATCH // instances
    if sampler in ("NaiveIdentitySampler", "BalancedIdentitySampler") and dataset.num_classes < needed:
        raise ValueError(
            f"{sampler}: a batch of SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} with DATALOADER.NUM_INSTANCE "
            f"{instances} needs {needed} identities, the training set has {dataset.num_classes}; lower IMS_PER_BATCH "
            f"to {dataset.num_classes * instances} or less"
        )


def _pin_memory(cfg) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def _as_it_is(batch):
    return batch


def _share_of_batches(images: int, size: int) -> list[range]:
    """This process's share of consecutive whole batches. Gathered in the order of the ranks they are the data set.

    FastReID splits the images first and shrinks the batch by the number of processes. Batches that do not depend on it
    give the same features to the last bit, since a matrix product may round by its number of rows.
    """
    batches = [range(start, min(start + size, images)) for start in range(0, images, size)]
    rank, processes = comm.get_rank(), comm.get_world_size()
    return batches[len(batches) * rank // processes : len(batches) * (rank + 1) // processes]


def make_test_loader(cfg, test_set: Dataset, num_workers: int | None = None) -> DeviceLoader:
    """FastReID's collator over a test set, on the model's device. num_workers: None for the config's."""
    if num_workers is None:
        num_workers = cfg.DATALOADER.NUM_WORKERS_TEST
        if num_workers < 0:
            num_workers = cfg.DATALOADER.NUM_WORKERS
    return DeviceLoader(
        test_set,
        batch_sampler=_share_of_batches(len(test_set), cfg.TEST.IMS_PER_BATCH),
        num_workers=num_workers,
        collate_fn=fast_batch_collator,
        pin_memory=_pin_memory(cfg),
        device=cfg.MODEL.DEVICE,
    )


def build_test_loader(cfg, dataset_name: str, datasets: DataSets | None = None) -> tuple[DataLoader, int]:
    """Loader of a test set, queries first, and the number of queries.

    TEST.IMS_PER_BATCH images are a batch of one process, however many there are.

    Args:
        datasets: those that have been read; None to read it here.
    """
    data = (datasets or DataSets()).test(cfg, dataset_name)
    if comm.is_main_process():
        data.show_test()
    test_set = ReIDDataset(
        data.query + data.gallery,
        build_transforms(cfg, is_train=False),
        relabel=False,
        cameras=cfg.MODEL.CLIP.CAMERAS or ["none"],
        dataset_name=getattr(data, "dataset_name", dataset_name),
    )
    return make_test_loader(cfg, test_set), len(data.query)
