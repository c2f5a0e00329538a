"""FastReID's registries, its folder of data sets and its sampler.

Its data loader is not used: DataLoaderX makes a CUDA stream whatever MODEL.DEVICE says (data/data_utils.py:151), an
exception in its prefetch thread blocks the run for ever (:126-137), and testing always starts 4 workers
(data/build.py:124).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Sampler

__all__ = ["dataset_root", "end_workers", "registered", "train_sampler"]


def registered(registry: Any) -> Mapping[str, Any]:
    """What a FastReID registry holds, by name, to read: a view that follows later registrations.

    Why: utils/registry.py:7 can `get` one name; it neither lists its names nor says whether it has one.
    Goes when: FastReID's Registry can be iterated over.
    """
    return MappingProxyType(registry._obj_map)


def dataset_root() -> str:
    """The folder of data sets: ``FASTREID_DATASETS`` as it is now, or FastReID's default.

    Why: data/build.py:27 reads it once, at import, so a later change is silently ignored.
    Goes when: FastReID reads it where it is used.
    """
    return os.getenv("FASTREID_DATASETS", "datasets")


def train_sampler(cfg: Any, dataset: Dataset) -> Sampler:
    """FastReID's sampler of DATALOADER.SAMPLER_TRAIN over a training set: infinite indices.

    Why: data/build.py:51-66 chooses it inside `_train_loader_from_config`; the public `build_reid_train_loader` makes a
    DataLoaderX of it.
    Goes when: DataLoaderX respects the device and hands exceptions on.
    """
    from fastreid.data import build

    return build._train_loader_from_config(cfg, train_set=dataset, transforms=())["sampler"]


def end_workers(batches: Iterator[Any]) -> None:
    """End the worker processes of a DataLoader's iterator now.

    Why: PyTorch ends them when the garbage collector finds the iterator. Workers that are forked in the meantime
    inherit their pipes, and PyTorch then waits 5 seconds for each.
    Goes when: PyTorch's iterator can be closed.
    """
    if not hasattr(batches, "_shutdown_workers"):  # an iterator without workers
        return
    try:
        batches._shutdown_workers()
    finally:  # PyTorch's signal handler raises in the midst of it where a worker was killed
        for worker in batches._workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()
