"""Hooks of the trainer: evaluation, checkpoints, progress."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng

from ..data.seeding import sample_seed
from ..deploy import load

__all__ = [
    "BuffersOfRankZero",
    "CheckpointHook",
    "EvaluationHook",
    "OwnRandomness",
    "ProgressHook",
    "Selection",
    "ValidationHook",
    "by_set",
]

logger = logging.getLogger(__name__)


class BuffersOfRankZero(HookBase):
    """After each epoch every process takes over the buffers of rank 0, which the checkpoint holds: running statistics
    of batch norms that each process takes of its own images. What evaluates then is one model, and the one that is
    saved."""

    def __init__(self, model: nn.Module):
        self._model = model

    def after_epoch(self) -> None:
        if comm.get_world_size() > 1:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, 0)


class OwnRandomness(HookBase):
    """What a process other than rank 0 draws by itself: seeded at each epoch by epoch and rank, for a resumed run.

    Rank 0 goes on with the state that checkpoints hold, as a run of one process does. The masks of refinement on a CPU
    are drawn together (`fast.dropout.SharedMasks`); what is left are other modules with dropout, and GPUs.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def before_epoch(self) -> None:
        seed_all_rng(sample_seed(self._seed, self.trainer.epoch, comm.get_rank()))


class EvaluationHook(HookBase):
    """Evaluates every `period` epochs and after the last one, before the writers run.

    FastReID's hook evaluates an off-period last epoch after the writers have closed, so metrics.json misses the result.
    """

    def __init__(self, period: int, test: Callable[[], Mapping], keep: Callable[[], None] | None = None):
        """
        Args:
            test: metrics on the main process, anything on the others.
            keep: writes the state that is going to be evaluated, so that nothing of the training is lost if that fails.
        """
        self.period, self.test, self.keep = period, test, keep

    def after_epoch(self) -> None:
        done = self.trainer.epoch + 1
        if done % self.period == 0 or done == self.trainer.max_epoch:
            if self.keep:
                self.keep()
            # the writers drop what comes under an iteration that they have written already
            self.trainer.storage.iter = self.trainer.iter
            self.evaluate()

    def evaluate(self) -> None:
        self.write(self.test())

    def write(self, metrics: Mapping) -> None:
        """Store the metrics as events, then wait for every process: their shares of an evaluation differ in length."""
        self.trainer.storage.put_scalars(**flatten_results_dict(metrics or {}), smoothing_hint=False)
        torch.cuda.empty_cache()
        comm.synchronize()


def by_set(metrics: Mapping) -> dict[str, Mapping]:
    """Metrics of one data set (under "") or of several as {data set: metrics}."""
    return dict(metrics) if any(isinstance(v, Mapping) for v in metrics.values()) else {"": metrics}


@dataclass
class Selection:
    """The best state so far by the validation sets.

    Attributes:
        patience: evaluations in a row without a better one after which training is over; 0 for never.
        metric: (Rank-1 + mAP) / 2 of that state, in percent, the mean over the sets.
        epoch: 0-based; that state is the one after it.
        stale: evaluations since.
        metrics: everything measured of it.
    """

    patience: int = 0
    metric: float = float("-inf")
    epoch: int = -1
    stale: int = 0
    metrics: dict = field(default_factory=dict)

    def update(self, epoch: int, metrics: Mapping) -> bool:
        """Take in an evaluation; returns whether it is the best so far."""
        metric = fmean(m["metric"] for m in by_set(metrics).values())
        if metric > self.metric:
            self.metric, self.epoch, self.stale, self.metrics = metric, epoch, 0, dict(metrics)
            return True
        self.stale += 1
        return False

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.stale


class ValidationHook(EvaluationHook):
    """Evaluates on the validation sets and keeps the best state; at the end tests that state, once.

    Stands in the place of `EvaluationHook`, before `CheckpointHook`.
    """

    BEST = "model_best_validation"

    def __init__(
        self,
        period: int,
        validate: Callable[[], Mapping],
        test: Callable[[], Mapping],
        keep: Callable[[], None] | None = None,
    ):
        """validate: as `test`."""
        super().__init__(period, test, keep)
        self.validate = validate

    def evaluate(self) -> None:
        trainer = self.trainer
        metrics = comm.all_gather(self.validate())[0]
        self.write({"validation": metrics} if comm.is_main_process() else {})
        if trainer.selection.update(trainer.epoch, metrics):
            state = {"epoch": trainer.epoch, "best": trainer.selection.metric, "selection": asdict(trainer.selection)}
            trainer.checkpointer.save(self.BEST, tag=False, **state)
        if trainer.over:
            comm.synchronize()
            trainer.load_weights(self.BEST)
            super().evaluate()


class CheckpointHook(HookBase):
    """`last.pth` after every epoch, and before its evaluation, for resuming, `model_<epoch>.pth` every `period` epochs,
    `model_final.pth` at the end.

    With `select_best`, also `model_best.pth` by the test metric; the run's output says that a test metric chose it.
    With validation sets, `model_final.pth` is the best state by them, and until the end `model_best_validation.pth`.
    """

    LAST, FINAL, BEST = "last", load.FINAL, "model_best"

    def __init__(self, period: int, select_best: bool):
        self.period, self.select_best = period, select_best
        self.best = float("-inf")

    def _state(self) -> dict:
        trainer = self.trainer
        state = {"epoch": trainer.epoch, "best": self.best}
        return state | ({"selection": asdict(trainer.selection)} if trainer.selection else {})

    def keep(self) -> None:
        """Write an epoch that is still to be evaluated; resuming begins with its evaluation."""
        self.trainer.checkpointer.save(self.LAST, evaluated=False, **self._state())

    def after_epoch(self) -> None:
        trainer = self.trainer
        latest = trainer.storage.latest()
        name = trainer.result_metric
        metric = latest[name][0] if name in latest else None
        if self.select_best and metric is not None and latest[name][1] >= trainer.iter - 1 and metric > self.best:
            self.best = metric
            logger.warning(
                "model_best.pth is the best by a TEST metric (%s %.2f): it is selected on test data", name, metric
            )
            trainer.checkpointer.save(self.BEST, epoch=trainer.epoch, best=self.best)
        state = self._state()
        if trainer.over:
            if trainer.selection:
                trainer.checkpointer.promote(ValidationHook.BEST, self.FINAL, **state)
            else:
                trainer.checkpointer.save(self.FINAL, **state)
            trainer.checkpointer.remove(self.LAST)
            logger.info("the result is %s", Path(trainer.cfg.OUTPUT_DIR, f"{self.FINAL}.pth"))
            return
        if (trainer.epoch + 1) % self.period == 0:
            trainer.checkpointer.save(f"model_{trainer.epoch:04d}", **state)
        trainer.checkpointer.save(self.LAST, **state)


class ProgressHook(HookBase):
    """A bar with rate and time left where a person watches; the log has its own lines."""

    def before_train(self) -> None:
        t = self.trainer
        self._bar = tqdm(
            total=t.max_iter,
            initial=t.start_iter,
            unit="it",
            disable=not sys.stderr.isatty(),
            desc="training",
            leave=False,
        )

    def after_step(self) -> None:
        self._bar.update(1)
        if self._bar.n % 10 == 0 and not self._bar.disable:
            self._bar.set_postfix_str(
                f"loss {self.trainer.storage.history('total_loss').median(20):.3f}", refresh=False
            )

    def after_train(self) -> None:
        self._bar.close()
