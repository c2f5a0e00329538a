"""What a training command says of itself: its surroundings once, a heading for each stage, lines of progress."""

from __future__ import annotations

import datetime
import logging
import math
import platform
import time
from importlib import metadata
from typing import Any

import torch

from fastreid.utils.events import EventWriter, get_event_storage

from ..version import __version__

__all__ = ["ProgressLines", "few_steps", "heading", "surroundings"]

logger = logging.getLogger(__name__)

# Steps of a stage below which a run says that they are few. The stages of the quick start have 150 to 825.
FEW, ENOUGH = 100, 300


def surroundings(device: str) -> str:
    """Versions and the device, in a line. FastReID's is that of its package: its own `__version__` is an older one."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else ""
    threads = f"{torch.get_num_threads()} threads"
    return (
        f"sagareid {__version__}, FastReID {metadata.version('fastreid')}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; device {device}"
        f"{f' ({where})' if where else f', {threads}'}"
    )


def heading(cfg: Any, name: str, siblings: tuple[str, ...], *, eval_only: bool) -> str:
    """The first line of a stage, or of a run without stages."""
    title = f"stage {name} ({siblings.index(name) + 1} of {len(siblings)})" if name else "run"
    data = ", ".join(cfg.DATASETS.TESTS if eval_only else cfg.DATASETS.NAMES)
    what = "evaluation" if eval_only else f"{cfg.SOLVER.MAX_EPOCH} epochs, batches of {cfg.SOLVER.IMS_PER_BATCH}"
    return (
        f"==== {title}: {cfg.MODEL.HEADS.NAME} on {data}, {what}, seed {cfg.SEED}; everything in "
        f"{cfg.OUTPUT_DIR}, the whole configuration in its config.yaml"
    )


def few_steps(cfg: Any, images: int, steps: int) -> str:
    """What to say of a stage that is too short to learn much; empty for others.

    Args:
        images: of training.
        steps: of an epoch.
    """
    epochs, batch = cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.IMS_PER_BATCH
    if steps * epochs >= FEW:
        return ""
    group, smaller = cfg.DATALOADER.NUM_INSTANCE, batch
    while images // smaller < 4 and smaller // 2 >= 4 * group:  # several identities a batch
        smaller = smaller // 2 // group * group
    remedy = f"set SOLVER.MAX_EPOCH {math.ceil(ENOUGH / steps)}"
    if smaller < batch:
        remedy += f", or SOLVER.IMS_PER_BATCH {smaller} and SOLVER.MAX_EPOCH {math.ceil(ENOUGH / (images // smaller))}"
    return (
        f"{images} images are {steps} step(s) of {batch} an epoch, so {epochs} epochs are {steps * epochs} steps, too "
        f"few to learn much: {remedy}, for about {ENOUGH} steps (docs/own_data.md)"
    )


class ProgressLines(EventWriter):
    """Losses, rate and time left: a line every `EVERY` seconds at most, and one at the end.

    Writes the scalar "eta_seconds", too, as FastReID's printer does, whose place it takes.
    """

    EVERY = 10.0

    def __init__(self, max_iter: int, max_epoch: int):
        self._max_iter, self._max_epoch = max_iter, max_epoch
        self._written, self._told = -math.inf, -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest()
        if storage.iter == self._max_iter or "total_loss" not in latest:  # after the last step
            return
        done = latest["total_loss"][1] + 1
        speed = ""
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000)
            left = seconds * (self._max_iter - done)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            speed = f"; {1 / max(seconds, 1e-9):.3g} steps a second, {datetime.timedelta(seconds=int(left))} left"
        now = time.monotonic()
        if done == self._told or (done < self._max_iter and now - self._written < self.EVERY):
            return
        self._written, self._told = now, done
        losses = {k: v.median(200) for k, v in storage.histories().items() if "loss" in k}
        total = losses.pop("total_loss", math.nan)
        terms = ", ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in losses.items())
        rate = f", learning rate {storage.history('lr').latest():.2e}" if "lr" in storage.histories() else ""
        logger.info(
            "epoch %d of %d, step %d of %d: loss %.4g (%s)%s%s",
            storage.epoch + 1,
            self._max_epoch,
            done,
            self._max_iter,
            total,
            terms,
            rate,
            speed,
        )
