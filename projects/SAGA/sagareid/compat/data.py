"""FastReID's registries, its folder of data sets and its sampler.

Its data loader is not used: DataLoaderX makes a CUDA stream whatever MODEL.DEVICE says (data/data_utils.py:151), an
exception in its prefetch thread blocks the run for ever (:126-137), and testing always starts 4 workers
(data/build.py:124).
"""

from __future__ import annotations

import multiprocessing.connection
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..processes import interrupts_wait

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Sampler

__all__ = ["dataset_root", "from_workers", "registered", "train_sampler"]


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


def from_workers(start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """The batches of a DataLoader's iterator, whose worker processes begin and end with this generator.

    Why: PyTorch ends workers when the garbage collector finds the iterator. Workers that are forked in the meantime
    inherit their pipes, and PyTorch then waits 5 seconds for each. And a worker that is killed while this process
    takes over a tensor's memory from it is no "DataLoader worker exited" there, but "Connection reset by peer".
    Goes when: PyTorch's iterator can be closed, and names a lost worker in every case.

    Args:
        start: makes the iterator, and with it the workers.

    Raises:
        RuntimeError: a worker is gone, in PyTorch's own words.
    """
    with interrupts_wait():
        batches = start()
    workers = getattr(batches, "_workers", ())  # none where this process loads by itself
    try:
        yield from batches
    except (OSError, EOFError) as error:
        # one that was just killed closes its files, its sentinel among them, a moment before it can be reaped
        ending = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1) if workers else []
        for worker in workers:
            if worker.sentinel in ending:
                worker.join()
        gone = [worker.pid for worker in workers if not worker.is_alive()]
        if not gone:
            raise
        raise RuntimeError(f"DataLoader worker (pid {gone[0]}) exited unexpectedly") from error
    finally:
        if workers:
            _end(batches)


def _end(batches: Any) -> None:
    try:
        batches._shutdown_workers()
    finally:  # PyTorch's signal handler raises in the midst of it where a worker was killed
        for worker in batches._workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()
