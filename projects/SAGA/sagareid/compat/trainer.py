"""FastReID's trainer with public names for what a subclass has to reach. Not imported by the package itself: it needs
FastReID's engine, which `install` makes importable first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fastreid.engine import defaults
from fastreid.engine.train_loop import HookBase, SimpleTrainer
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage

__all__ = ["OpenStepTrainer", "OpenTrainer", "without_ddp"]


@contextmanager
def without_ddp() -> Iterator[None]:
    """Keep FastReID's trainer from wrapping the model in DistributedDataParallel while it is built.

    Why: engine/defaults.py:210 wraps with ``device_ids``, which a model on the CPU refuses; and before the weights are
    loaded, so that what each process then starts afresh differs between them. `SAGATrainer` wraps it later.
    Goes when: FastReID leaves ``device_ids`` out on the CPU and loads before it wraps.
    """
    before, defaults.DistributedDataParallel = defaults.DistributedDataParallel, lambda model, **options: model
    try:
        yield
    finally:
        defaults.DistributedDataParallel = before


class OpenTrainer(defaults.DefaultTrainer):
    """`DefaultTrainer` that is built without DistributedDataParallel and shows what it is made of.

    Why: engine/defaults.py:214 and :303 and engine/train_loop.py:109 keep the trainer of one step, the hooks and the
    last metrics under private names, and offer no way to bring a step of one's own.
    Goes when: FastReID's trainer takes the trainer of one step as an argument and has public names for the others.
    """

    def __init__(self, cfg: Any):
        with without_ddp():
            super().__init__(cfg)

    @property
    def step_trainer(self) -> SimpleTrainer:
        """What runs one step."""
        return self._trainer

    @step_trainer.setter
    def step_trainer(self, trainer: SimpleTrainer) -> None:
        self._trainer = trainer

    @property
    def hooks(self) -> list[HookBase]:
        """The hooks, in the order in which they are called."""
        return self._hooks

    @property
    def last_metrics(self) -> Mapping[str, Any]:
        """Metrics of the last evaluation; `train` returns them."""
        return self._last_eval_results

    @last_metrics.setter
    def last_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._last_eval_results = metrics


class OpenStepTrainer(SimpleTrainer):
    """`SimpleTrainer` whose loader and metrics a subclass's `run_step` can reach.

    Why: engine/train_loop.py:221 and :262 keep both under private names, which every subclass, FastReID's own too, must
    use.
    Goes when: they have public ones.
    """

    def next_batch(self) -> Any:
        """The next batch of the training loader, whose iterator the trainer makes when it is built."""
        return next(self._data_loader_iter)

    def close_loader(self) -> None:
        """End the loader's iterator, and with it the worker processes."""
        self._data_loader_iter.close()

    def write_metrics(self, loss_dict: Mapping[str, Any], data_time: float) -> None:
        """Write the losses to the event storage; the name of each of them, even of the only one.

        Why: engine/train_loop.py:300 writes the terms only where there are two or more; and :271 reads them on a CUDA
        stream of its own that does not wait for the one that computes them, so it may see what was in their memory
        before. It gets numbers here.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        values = torch.stack([value.detach().float() for value in loss_dict.values()]).cpu()  # waits; one copy for all
        loss_dict = dict(zip(loss_dict, values))
        self._write_metrics(loss_dict, data_time)
        if len(loss_dict) == 1 and comm.is_main_process():
            storage = get_event_storage()
            [(name, value)] = loss_dict.items()
            storage.put_scalar(name, value.item() if comm.get_world_size() == 1 else storage.latest()["total_loss"][0])
