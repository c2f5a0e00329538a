"""Bridges to FastReID 1.4.0 on current Python and PyTorch: one function each, the host's files untouched.

Each says why it exists, at which host line, and when it can go. What a scope can hold is undone when the scope ends;
what stays for the life of the process is one import finder that answers for two names (`provide_cython_ranking`).
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from fastreid.config import CfgNode

_ABSENT = object()


def install() -> None:
    """Make FastReID importable and its ranking fast. Called first by ``sagareid/__init__.py``; may be repeated."""
    provide_cython_ranking()
    import_host()


# ---- imports -------------------------------------------------------------------------------------------------------
@contextmanager
def legacy_names() -> Iterator[None]:
    """Lend ``torch._six`` and ``collections.Mapping`` to the code inside, then put back what was there.

    Why: fastreid/data/build.py:11-12 and evaluation/testing.py:5 import names that torch 2.0 and Python 3.10 removed.
    Goes when: a FastReID release imports them from where they live now.
    """
    six = types.ModuleType("torch._six")
    six.string_classes = (str, bytes)
    old_six = sys.modules.get("torch._six", _ABSENT)
    old_mapping = vars(collections).get("Mapping", _ABSENT)
    sys.modules["torch._six"] = six
    collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        if old_six is _ABSENT:
            del sys.modules["torch._six"]
        else:
            sys.modules["torch._six"] = old_six
        if old_mapping is _ABSENT:
            del collections.Mapping
        else:
            collections.Mapping = old_mapping


def import_host() -> None:
    """Import the three host packages that need `legacy_names`; later imports find them loaded.

    Goes when: `legacy_names` goes.
    """
    with legacy_names(), quiet_host():
        for name in ("fastreid.data", "fastreid.evaluation", "fastreid.engine"):
            importlib.import_module(name)


@contextmanager
def quiet_host() -> Iterator[None]:
    """Hide, inside the scope, the deprecation warnings that FastReID's own calls raise and a user cannot act on.

    Why: data/transforms/functional.py:46 (TypedStorage), engine/train_loop.py:327 (cuda.amp), utils/compute_dist.py:183
    (addmm_ argument order).
    Goes when: a FastReID release stops making those calls.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message=r"`torch\.cuda\.amp\.\w+\(args", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"This overload of addmm_ is deprecated")
        yield


# ---- ranking -------------------------------------------------------------------------------------------------------
def provide_cython_ranking() -> None:
    """Let ``fastreid.evaluation.rank_cylib.{rank_cy,roc_cy}`` import from a build of ours, made on first use.

    Why: evaluation/reid_evaluation.py:126 otherwise runs ``make`` inside site-packages with PATH's ``python3`` and ends
    the process when that fails (evaluation/rank_cylib/__init__.py:20), in the middle of a training run.
    The finder stands last: a module that the user compiled the host's way is found first. Nothing is compiled before
    the host asks for the module. Without a compiler the name resolves to the host's own Python ranking, so the host
    neither calls ``make`` nor exits; `cython_ranking_active` tells which one runs.
    Goes when: a FastReID release ships its ranking compiled.
    """
    if not any(isinstance(finder, _RankingFinder) for finder in sys.meta_path):
        sys.meta_path.append(_RankingFinder())


def cython_ranking_active() -> bool:
    """Whether the host ranks with compiled code. Imports, and so on first use compiles, the ranking."""
    module = importlib.import_module("fastreid.evaluation.rank_cylib.rank_cy")
    return not getattr(module, "PYTHON_FALLBACK", False)


class _RankingFinder(importlib.abc.MetaPathFinder):
    """Answers for the two ranking modules, for nothing else, and does no work until one is loaded."""

    PREFIX = "fastreid.evaluation.rank_cylib."
    NAMES = ("rank_cy", "roc_cy")

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(self.PREFIX) and fullname.removeprefix(self.PREFIX) in self.NAMES:
            return importlib.machinery.ModuleSpec(fullname, _RankingLoader(), origin="sagareid")
        return None


class _RankingLoader(importlib.abc.Loader):
    """Loads the compiled module under the host's name, or a stand-in that calls the host's Python ranking."""

    def create_module(self, spec):
        from .evaluation import cython_ranking

        name = spec.name.rpartition(".")[2]
        path = cython_ranking.find_or_build(name)
        if path is not None:
            try:
                self._loader = importlib.machinery.ExtensionFileLoader(spec.name, str(path))
                compiled = importlib.util.spec_from_file_location(spec.name, path, loader=self._loader)
                return self._loader.create_module(compiled)
            except ImportError as error:  # built for another numpy or C library
                cython_ranking.warn_once(error)
        self._loader = None
        return None

    def exec_module(self, module):
        if self._loader is not None:
            self._loader.exec_module(module)
            return
        module.PYTHON_FALLBACK = True

        def evaluate_cy(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03=False):
            from fastreid.evaluation import rank

            return rank.evaluate_py(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)

        def evaluate_roc_cy(distmat, q_pids, g_pids, q_camids, g_camids):
            from fastreid.evaluation import roc

            return roc.evaluate_roc_py(distmat, q_pids, g_pids, q_camids, g_camids)

        if module.__name__.endswith("rank_cy"):
            module.evaluate_cy = evaluate_cy
        else:
            module.evaluate_roc_cy = evaluate_roc_cy


# ---- training ------------------------------------------------------------------------------------------------------
def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
    """The host's optimizer over the model's own parameters: ``(optimizer, parameter groups)``, as its trainer wants.

    Why: the host's default packs the parameters into one buffer (solver/build.py:180, utils/params.py) whose ``.grad``
    torch 2's ``zero_grad`` sets to None; ``step`` then skips it and **no weight ever changes, without a word**.
    Goes when: a FastReID release keeps the buffer's gradient (``zero_grad(set_to_none=False)``).
    """
    from fastreid.solver import build_optimizer as host_build_optimizer

    optimizer, groups = host_build_optimizer(cfg, model, contiguous=False)
    return optimizer, groups


@contextmanager
def without_ddp() -> Iterator[None]:
    """Keep the host's trainer from wrapping the model in DistributedDataParallel while it is built.

    Why: engine/defaults.py:210 wraps with ``device_ids``, which a model on the CPU refuses; and before the weights are
    loaded, so that what each process then starts afresh differs between them. `SAGATrainer` wraps it later.
    Goes when: the host leaves ``device_ids`` out on the CPU and loads before it wraps.
    """
    from fastreid.engine import defaults

    before, defaults.DistributedDataParallel = defaults.DistributedDataParallel, lambda model, **options: model
    try:
        yield
    finally:
        defaults.DistributedDataParallel = before


@contextmanager
def as_one_process() -> Iterator[None]:
    """Let host code inside the scope see one process, whatever the job has.

    Why: data/samplers/*.py draw other batches for each number of processes (a share of the identities at a time), so a run
    can neither be compared with one of another number of processes nor resumed by it.
    Goes when: the host's samplers draw the batch of all processes first.
    """
    from fastreid.utils import comm

    before = comm.get_world_size, comm.get_rank
    comm.get_world_size, comm.get_rank = lambda: 1, lambda: 0
    try:
        yield
    finally:
        comm.get_world_size, comm.get_rank = before


# ---- loading -------------------------------------------------------------------------------------------------------
@contextmanager
def current_dataset_root() -> Iterator[str]:
    """Make the host's loaders read ``FASTREID_DATASETS`` as it is now; yields that folder.

    Why: fastreid/data/build.py:27 reads it once, at import, so a later change is silently ignored.
    Goes when: the host reads it where it is used.
    """
    from fastreid.data import build

    old, build._root = build._root, os.getenv("FASTREID_DATASETS", "datasets")
    try:
        yield build._root
    finally:
        build._root = old


def build_train_loader(cfg: CfgNode, *, loader_options: dict[str, Any] | None = None, **kwargs) -> DataLoader:
    """The host's training set, transforms, sampler and collator in a plain ``DataLoader``.

    Args:
        loader_options: further arguments of ``torch.utils.data.DataLoader`` (generator, worker_init_fn ...).
        kwargs: the host's own: train_set, transforms, sampler, and options of the data set's class.

    Why: the host's DataLoaderX makes a CUDA stream whatever MODEL.DEVICE says (data/data_utils.py:151), and an
    exception in its prefetch thread blocks the run for ever (:126-137).
    Goes when: DataLoaderX respects the device and hands exceptions on.
    """
    from torch.utils.data import BatchSampler, DataLoader

    from fastreid.data import build
    from fastreid.utils import comm

    with current_dataset_root():
        parts = build._train_loader_from_config(cfg, **kwargs)
    batches = BatchSampler(parts["sampler"], parts["total_batch_size"] // comm.get_world_size(), drop_last=True)
    options = {"pin_memory": _pin_memory(cfg), **(loader_options or {})}
    return DataLoader(
        parts["train_set"],
        batch_sampler=batches,
        num_workers=parts["num_workers"],
        collate_fn=build.fast_batch_collator,
        **options,
    )


def build_test_loader(
    cfg: CfgNode,
    dataset_name: str | None = None,
    *,
    num_workers: int | None = None,
    loader_options: dict[str, Any] | None = None,
    **kwargs,
) -> tuple[DataLoader, int]:
    """The host's test loader as a plain ``DataLoader``, and the number of queries (the first items of its data).

    Args:
        num_workers: worker processes; None: DATALOADER.NUM_WORKERS_TEST, or with -1 there DATALOADER.NUM_WORKERS.

    Why: as `build_train_loader`; besides, the host always starts 4 workers here (data/build.py:124).
    Goes when: with `build_train_loader`.
    """
    from torch.utils.data import BatchSampler, DataLoader

    from fastreid.data import build, samplers
    from fastreid.utils import comm

    with current_dataset_root():
        parts = build._test_loader_from_config(cfg, dataset_name=dataset_name, **kwargs)
    if num_workers is None:
        num_workers = cfg.DATALOADER.NUM_WORKERS_TEST
        if num_workers < 0:
            num_workers = cfg.DATALOADER.NUM_WORKERS
    per_process = max(1, parts["test_batch_size"] // comm.get_world_size())
    batches = BatchSampler(samplers.InferenceSampler(len(parts["test_set"])), per_process, drop_last=False)
    loader = DataLoader(
        parts["test_set"],
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=build.fast_batch_collator,
        **{"pin_memory": _pin_memory(cfg), **(loader_options or {})},
    )
    return loader, parts["num_query"]


def _pin_memory(cfg: CfgNode) -> bool:
    import torch

    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
