"""Every sample's own seed, and batches that are the same for any number of processes and from any batch on."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fastreid.utils import comm

__all__ = ["SampleKey", "SeededBatches", "SeededSamples", "sample_seed", "seeded"]


class SampleKey(NamedTuple):
    """Which image, and the seed of everything random that happens to it."""

    index: int
    seed: int


def sample_seed(*parts: int) -> int:
    """A 32-bit seed from integers, well mixed: neighbouring batches share nothing."""
    return zlib.crc32(np.asarray(parts, dtype=np.int64).tobytes())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (CPU), numpy and Python inside the scope; put their states back after it."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # not torch.manual_seed: it also asks for every GPU, and where CUDA has not begun keeps a stack trace of each call
    torch.default_generator.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])


class SeededSamples(Dataset):
    """A data set read by `SampleKey`; everything else is the data set's own."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "_dataset":  # copies and pickles ask before it exists
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, key: SampleKey):
        with seeded(key.seed):
            return self._dataset[key.index]


class SeededBatches:
    """FastReID's infinite batches from batch `start` on, each index with its seed.

    FastReID's samplers draw from numpy's global state; here they have one of their own, so what else draws from it does
    not change the order of the images.

    The batches are those of the whole job. A process keeps its share: consecutive images, so whole identities.
    """

    def __init__(self, batches, seed: int):
        self._batches, self._seed = batches, seed
        self.start = 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        own = np.random.RandomState(self._seed % 2**32).get_state()
        batches, number = iter(self._batches), 0
        rank, processes = comm.get_rank(), comm.get_world_size()
        while True:
            outside = np.random.get_state()
            np.random.set_state(own)
            try:
                indices = next(batches)
            except StopIteration:
                return
            finally:
                own = np.random.get_state()
                np.random.set_state(outside)
            if number >= self.start:
                # the 0 keeps these seeds apart from those of cached views
                keys = [SampleKey(i, sample_seed(self._seed, number, 0, slot)) for slot, i in enumerate(indices)]
                share = len(keys) // processes
                yield keys[rank * share : (rank + 1) * share]
            number += 1
