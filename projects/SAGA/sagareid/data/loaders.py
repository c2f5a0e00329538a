"""Loaders whose every sample is a function of the seed and its place in the run, for any number of processes.

A FastReID loader draws augmentations from whatever state the random generators are in, so a resumed run, or one with
another number of workers or processes, sees other images. Here each sample of batch b carries its own seed, and every
process draws the same batch of SOLVER.IMS_PER_BATCH images and keeps its share of it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset

from fastreid.data.build import fast_batch_collator
from fastreid.data.common import CommDataset
from fastreid.utils import comm

from .. import compat
from ..config import reads_cameras
from ..errors import first_few
from ..processes import loader_start
from ..structures import HIDDEN, WHOLE
from .datasets.build import DataSets
from .datasets.layout import natural_key, say_counts
from .datasets.names import SetNames
from .images import UnreadableImage, read_image
from .occlude import TrainingOccluder, training_occluder
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


logger = logging.getLogger(__name__)


class ReIDDataset(CommDataset):
    """FastReID's data set with its images read by `read_image` and one more field, `cameras`: the index of the camera
    among the training cameras.

    `camids` keep FastReID's meaning, which differs between training (rank of the name) and testing (the number in the
    file name); a model that embeds cameras needs one that does not.

    Attributes:
        identities: names of the people in the order of their classes.
        known_cameras: names of the cameras of its images, as far as they are known.
        cameras: names of the training cameras in the order of their embeddings.
    """

    def __init__(
        self,
        items: Sequence[tuple],
        transform,
        *,
        relabel: bool,
        cameras: Sequence[str] | None = None,
        names: SetNames | None = None,
        training_occluder: TrainingOccluder | None = None,
    ):
        """
        Args:
            items: (path, pid, camid).
            cameras: names of the training cameras; empty: nothing looks at them; None: this set's own.
            names: what people and cameras are called; None: as their labels.
            training_occluder: hides a part of the images; a sample then holds `hidden`, and `whole_images` where they
                are kept.
        """
        super().__init__(list(items), transform, relabel=relabel)
        self.training_occluder = training_occluder
        names = names or SetNames()
        self._names = names.identities
        self.identities = [self._names.get(pid, str(pid)) for pid in self.pids]
        called = {camid: names.cameras.get(camid, str(camid)) for camid in self.cams}
        self.known_cameras = natural_order(set(called.values()) - {""})
        self.cameras = self.known_cameras if cameras is None else list(cameras)
        place = {name: i for i, name in enumerate(self.cameras)}
        self._camera_index = {camid: place.get(name, -1) for camid, name in called.items()}
        if self.cameras and not relabel:
            self._log_unknown(called)

    def _log_unknown(self, called: Mapping[Any, str]) -> None:
        unknown = sorted({name or "not known" for camid, name in called.items() if self._camera_index[camid] < 0})
        count = sum(self._camera_index[item[2]] < 0 for item in self.img_items)
        if count:
            _warn_once(
                f"{count} of {len(self)} images are of cameras that the model was not trained with "
                f"({first_few(unknown, 5)}); the mean of its camera embeddings stands for them. It knows "
                f"{', '.join(self.cameras)}"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, pid, camid = self.img_items[index][:3]
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise UnreadableImage(
                f"{error}. Replace or remove the file; `python tools/check_dataset.py NAME` lists every such file of a "
                "data set"
            ) from error
        return self._images(image, path, pid) | {
            "targets": self.pid_dict[pid] if self.relabel else pid,
            "camids": self.cam_dict[camid] if self.relabel else camid,
            "img_paths": path,
            "cameras": self.camera_index(camid),
        }

    def _images(self, image: Image.Image, path: str, pid: int | str) -> dict[str, Any]:
        """What of a sample is made of its picture."""
        if self.training_occluder is None:
            return {"images": image if self.transform is None else self.transform(image)}
        sample = self.training_occluder.sample(image, path, self._names.get(pid, str(pid)), self.transform)
        whole = {} if sample.whole is None else {f"{WHOLE}images": sample.whole}
        return {"images": sample.image, HIDDEN: sample.hidden} | whole

    def camera_index(self, camid: str | int) -> int:
        """Index among the training cameras of an item's camid; -1 for one that training did not see."""
        return self._camera_index.get(camid, -1)


@functools.cache
def _warn_once(message: str) -> None:
    """Once in a process: a study makes many sets of the same images."""
    logger.warning(message)


def natural_order(names: Iterable[str]) -> list[str]:
    """Camera names by data set, then by number: market1501_2 before market1501_10, shop/c2 before shop/c10."""

    def key(name: str) -> tuple[str, int, tuple]:
        head, slash, own = name.partition("/")
        if slash:
            return head, -1, natural_key(own)
        head, _, tail = name.rpartition("_")
        return (head, int(tail), ()) if tail.isdigit() else (name, -1, ())

    return sorted((str(n) for n in names), key=key)


# ---- seeds ---------------------------------------------------------------------------------------------------------


class DeviceLoader(DataLoader):
    """A DataLoader whose batches arrive on the model's device, as FastReID's own meta-architectures expect."""

    def __init__(self, *args, device: str, num_workers: int = 0, **kwargs):
        start = loader_start(num_workers)
        super().__init__(*args, num_workers=num_workers, multiprocessing_context=start, **kwargs)
        self.device = torch.device(device)

    def __iter__(self):
        # a generator: workers start at the first batch, so that `start_at` and a feature cache can be set before
        unreadable = None
        try:
            for batch in compat.from_workers(super().__iter__):
                yield {
                    k: v.to(self.device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                    for k, v in batch.items()
                }
        except UnreadableImage as error:
            unreadable = error.without_traceback()
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
    items, names, read, datasets = [], SetNames(), [], datasets or DataSets()
    for name in cfg.DATASETS.NAMES:
        data = datasets.training(cfg, name)
        read.append(data)
        if comm.is_main_process():
            say_counts(data, name, ("train",))
        items.extend(data.train)
        names.add(data, data.train)
    transform = transform or build_transforms(cfg, is_train=True)
    dataset = ReIDDataset(
        items,
        transform,
        relabel=True,
        cameras=cfg.MODEL.CLIP.CAMERAS or None,
        names=names,
        training_occluder=training_occluder(cfg, read) if cfg.INPUT.OCCLUDE.ENABLED else None,
    )
    lacking = sorted(set(names.cameras.values()) - set(dataset.cameras))
    if lacking and reads_cameras(cfg):
        raise ValueError(
            f"the training set has cameras that MODEL.CLIP.CAMERAS does not name: {', '.join(lacking)}. Add them, or "
            "leave it empty to collect them"
        )
    return dataset


def training_cameras(cfg, datasets: DataSets) -> list[str]:
    """Names of the cameras of DATASETS.NAMES, in the order of their embeddings."""
    names = SetNames()
    for name in cfg.DATASETS.NAMES:
        data = datasets.training(cfg, name)
        names.add(data, data.train)
    return natural_order(set(names.cameras.values()))


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
    # A batch of cached features is one copy in memory. On a CPU, which trains meanwhile, handing it over from a worker
    # takes longer than the copy; on a GPU workers keep the device from waiting for it.
    copied = batched and cfg.MODEL.DEVICE == "cpu"
    return TrainLoader(
        dataset,
        batch_sampler=SeededBatches(BatchSampler(sampler, cfg.SOLVER.IMS_PER_BATCH, drop_last=True), cfg.SEED),
        num_workers=0 if copied else cfg.DATALOADER.NUM_WORKERS,
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
        say_counts(data, dataset_name, ("query", "gallery"))
    items = data.query + data.gallery
    names = SetNames().add(data, items)
    transform = build_transforms(cfg, is_train=False)
    test_set = ReIDDataset(items, transform, relabel=False, cameras=cfg.MODEL.CLIP.CAMERAS, names=names)
    return make_test_loader(cfg, test_set), len(data.query)
