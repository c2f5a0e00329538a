"""Hooks of the trainer: evaluation, checkpoints, progress."""

from __future__ import annotations

import logging
import sys

from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from tqdm import tqdm

__all__ = ["CheckpointHook", "EvaluationHook", "ProgressHook"]

logger = logging.getLogger(__name__)


class EvaluationHook(hooks.EvalHook):
    """Evaluates every `period` epochs and after the last one, before the writers run.

    FastReID's hook evaluates an off-period last epoch after the writers have closed, so metrics.json misses the result.
    """

    def after_epoch(self) -> None:
        done = self.trainer.epoch + 1
        if done % self._period == 0 or done == self.trainer.max_epoch:
            # the writers drop what comes under an iteration that they have written already
            self.trainer.storage.iter = self.trainer.iter
            self._do_eval()

    def after_train(self) -> None:
        pass


class CheckpointHook(HookBase):
    """`last.pth` after every epoch for resuming, `model_<epoch>.pth` every `period` epochs, `model_final.pth` at the end.

    With `select_best`, also `model_best.pth` by the test metric; the run's output says that a test metric chose it.
    """

    LAST, FINAL, BEST = "last", "model_final", "model_best"

    def __init__(self, period: int, select_best: bool):
        self.period, self.select_best = period, select_best
        self.best = float("-inf")

    def after_epoch(self) -> None:
        trainer, done = self.trainer, self.trainer.epoch + 1
        latest = trainer.storage.latest()
        name = trainer.result_metric
        metric = latest[name][0] if name in latest else None
        if self.select_best and metric is not None and latest[name][1] >= trainer.iter - 1 and metric > self.best:
            self.best = metric
            logger.warning(
                "model_best.pth is the best by a TEST metric (%s %.2f): it is selected on test data", name, metric
            )
            trainer.checkpointer.save(self.BEST, epoch=trainer.epoch, best=self.best)
        state = {"epoch": trainer.epoch, "best": self.best}
        if done == trainer.max_epoch:
            trainer.checkpointer.save(self.FINAL, **state)
            trainer.checkpointer.remove(self.LAST)
            return
        if done % self.period == 0:
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
