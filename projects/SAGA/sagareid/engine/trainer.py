"""FastReID's trainer with the bridges, the seeds and the strictness that the stages need."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastreid.engine import hooks
from fastreid.evaluation import inference_on_dataset
from fastreid.utils import comm
from fastreid.utils.events import CommonMetricPrinter, get_event_storage

from .. import compat
from ..compat.trainer import OpenStepTrainer, OpenTrainer
from ..config import reads_cameras
from ..config_checks import check_config
from ..data import loaders
from ..data.datasets.build import DataSets
from ..data.record import TrainingRecord
from ..data.seeding import SeededSamples
from ..data.transforms import build_transforms
from ..evaluation.evaluator import SAGAEvaluator
from ..evaluation.flip import FlipAveraged
from ..files import write_text
from ..modeling import build
from ..weights import load_state
from . import solver
from .checkpoint import RunCheckpointer, restore_random_state
from .feature_cache import CachedFeatures, build_feature_cache, cached_test_loader
from .hooks import (
    BuffersOfRankZero,
    CheckpointHook,
    EvaluationHook,
    OwnRandomness,
    ProgressHook,
    Selection,
    ValidationHook,
)
from .logs import ProgressLines, few_steps
from .precision import autocast_dtype
from .writers import StartedWriters, TrackedRun, build_writers

__all__ = ["HostScalars", "SAGATrainer", "StepTrainer", "train_loader"]

logger = logging.getLogger(__name__)


class StepTrainer(OpenStepTrainer):
    """One step, in float32 or under autocast: bfloat16 on CPU or GPU; float16 on a GPU with a gradient scaler."""

    def __init__(self, model, data_loader, optimizer, param_wrapper, autocast: torch.dtype | None):
        """autocast: None for float32."""
        super().__init__(model, data_loader, optimizer, param_wrapper)
        self.device_type = next(model.parameters()).device.type
        self.autocast = autocast
        self.grad_scaler = torch.amp.GradScaler(self.device_type) if autocast is torch.float16 else None

    def run_step(self) -> None:
        start = time.perf_counter()
        data = self.next_batch()
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        with torch.autocast(self.device_type, dtype=self.autocast, enabled=self.autocast is not None):
            loss_dict = self.model(data)
        loss, numbers = (
            sum(loss_dict.values()),
            HostScalars(loss_dict | getattr(_unwrapped(self.model), "measured", {})),
        )
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        self._write(loss_dict, numbers.read(), data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
            return
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _write(self, loss_dict: Mapping[str, Tensor], values: Mapping[str, Tensor], data_time: float) -> None:
        """Losses, and what the model measured beside them, to the event storage. A loss that is not finite stops the
        run before it reaches the weights."""
        self.write_metrics({name: values[name] for name in loss_dict}, data_time)
        for name in values.keys() - loss_dict.keys():
            get_event_storage().put_scalar(name, values[name])


class HostScalars:
    """Scalars on their way to the host in one copy, which is waited for when they are read: on a GPU the backward pass
    is asked for in the meantime."""

    def __init__(self, scalars: Mapping[str, Tensor]):
        self._names = list(scalars)
        values = torch.stack([value.detach().float() for value in scalars.values()])
        self._values = values.to("cpu", non_blocking=True)
        self._copied = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> dict[str, Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._values))


class _Stop(BaseException):
    """Ends FastReID's loop before its last epoch; no Exception, which the loop would log as a failure."""


class SAGATrainer(OpenTrainer):
    """FastReID's `DefaultTrainer` by its documented overrides: it trains any FastReID config, ours and FastReID's
    own."""

    def __init__(self, cfg, datasets: DataSets | None = None, *, stage: str = "", first: bool = False):
        """
        Args:
            datasets: those that have been read; None to read them here.
            stage, first: its name, and whether its configuration begins with it, for the tools of WRITERS.
        """
        check_config(cfg)
        self.resumed, self._stage = False, (stage, first)
        self.datasets = datasets or DataSets()
        self._evaluated: dict[str, tuple] = {}
        self.selection = Selection(cfg.SOLVER.PATIENCE) if cfg.DATASETS.VALIDATION else None
        autocast = cfg.SOLVER.AMP.ENABLED
        plain = cfg.clone()
        plain.defrost()
        if reads_cameras(cfg) and not cfg.MODEL.CLIP.CAMERAS:
            plain.MODEL.CLIP.CAMERAS = loaders.training_cameras(cfg, self.datasets)
        plain.SOLVER.AMP.ENABLED = False  # FastReID's own mixed precision is CUDA and float16 only
        with compat.quiet_host():
            super().__init__(plain)
        self.cfg.defrost()
        self.cfg.SOLVER.AMP.ENABLED = autocast
        self.cfg.freeze()
        if comm.is_main_process():  # again, with what was counted: identities and cameras
            write_text(Path(self.cfg.OUTPUT_DIR, "config.yaml"), self.cfg.dump())
        # a feature that this model does not give is an error now, not after the training
        SAGAEvaluator(self.cfg, 0, layout=getattr(self.model, "feature_layout", None))
        dtype = autocast_dtype(cfg)
        logger.info(
            "steps compute in %s",
            "float32" if dtype is None else f"{dtype} where autocast has it".removeprefix("torch."),
        )
        param_wrapper = self.step_trainer.param_wrapper
        self.step_trainer = StepTrainer(self.model, self.data_loader, self.optimizer, param_wrapper, dtype)
        extra = {"grad_scaler": self.grad_scaler} if self.grad_scaler else {}
        data = self.data_loader.dataset
        if comm.is_main_process() and (remark := few_steps(cfg, len(data), self.iters_per_epoch)):
            logger.warning(remark)
        self.checkpointer = RunCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            cfg=self.cfg,
            record=TrainingRecord.of(data.images if isinstance(data, CachedFeatures) else data),
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            **self.scheduler,
            **extra,
        )
        if cfg.MODEL.COMPILE:
            self.model.compile_mode = cfg.MODEL.COMPILE
        self._random_state: dict | None = None
        self._evaluation_due = False

    # ---- build overrides -------------------------------------------------------------------------------------------

    def build_train_loader(self, cfg):
        return train_loader(cfg, self.datasets)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name, datasets: DataSets | None = None):
        return loaders.build_test_loader(cfg, dataset_name, datasets)

    @classmethod
    def build_model(cls, cfg):
        model = build.build_model(cfg)
        if cfg.MODEL.HEADS.NECK_BIAS:
            solver.train_neck_bias(model.heads)
        solver.freeze_except(model, cfg.MODEL.TRAINABLE)
        if cfg.MODEL.EVAL_MODE:
            modules = dict(model.named_modules())
            names = solver.match_names([n for n in modules if n], cfg.MODEL.EVAL_MODE, "MODEL.EVAL_MODE")
            model.modules_in_eval = [modules[n] for n in sorted(names)]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info("%s: %.2f M parameters, %.2f M train", type(model).__name__, _millions(model), trained / 1e6)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, iters_per_epoch):
        if iters_per_epoch < 1:
            raise ValueError(
                f"the training set has fewer images than one batch of SOLVER.IMS_PER_BATCH "
                f"{cfg.SOLVER.IMS_PER_BATCH}; lower it"
            )
        return solver.build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_dir=None, *, model=None, datasets: DataSets | None = None):
        """(test loader, evaluator). model: whose features are evaluated; None: of one part."""
        loader, num_query = cls.build_test_loader(cfg, dataset_name, datasets)
        layout = getattr(_unwrapped(model), "feature_layout", None) if model is not None else None
        return loader, SAGAEvaluator(cfg, num_query, layout=layout)

    @classmethod
    def test(cls, cfg, model, datasets: DataSets | None = None) -> OrderedDict:
        """Evaluate on every set of DATASETS.TESTS.

        Returns:
            Metrics by name, in percent; by data set and name where there are several sets.
        """
        names = cfg.DATASETS.TESTS
        return _evaluate(cfg, model, {n: cls.build_evaluator(cfg, n, model=model, datasets=datasets) for n in names})

    def evaluate(self) -> OrderedDict:
        """As `test`, of this run's model, whose loaders are kept for the next time; with CACHE.TESTS from cached
        features."""
        self.last_metrics = self._evaluate_on(self.cfg.DATASETS.TESTS, self.cfg.CACHE.TESTS)
        return self.last_metrics

    def validate(self) -> OrderedDict:
        """As `evaluate`, on DATASETS.VALIDATION, from cached features where training reads them."""
        return self._evaluate_on(self.cfg.DATASETS.VALIDATION, self.cfg.CACHE.ENABLED)

    def _evaluate_on(self, names: Sequence[str], cached: bool) -> OrderedDict:
        """cached: from cached features, unless TEST.FLIP needs images."""
        cached = cached and not self.cfg.TEST.FLIP.ENABLED
        for name in names:
            if name not in self._evaluated:
                loader, evaluator = self.build_evaluator(self.cfg, name, model=self.model, datasets=self.datasets)
                if cached:
                    loader = cached_test_loader(self.cfg, _unwrapped(self.model), loader)
                self._evaluated[name] = loader, evaluator
        return _evaluate(self.cfg, self.model, {name: self._evaluated[name] for name in names})

    def build_writers(self):
        """FastReID's, with our lines of progress in the place of its own."""
        files = [w for w in super().build_writers() if not isinstance(w, CommonMetricPrinter)]
        folder, (stage, first) = Path(self.cfg.OUTPUT_DIR), self._stage
        job = folder.parent if stage else folder
        run = TrackedRun(folder, job, stage, first, self.cfg.WRITER_PROJECT)
        return [ProgressLines(self.max_iter, self.max_epoch), *files, *build_writers(self.cfg.WRITERS, run)]

    def build_hooks(self):
        cfg = self.cfg
        ret = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        if not comm.is_main_process():
            ret.append(OwnRandomness(cfg.SEED))
        if cfg.TEST.PRECISE_BN.ENABLED and hooks.get_bn_modules(self.model):
            ret.append(hooks.PreciseBN(self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER))
        if len(cfg.MODEL.FREEZE_LAYERS) and cfg.SOLVER.FREEZE_ITERS > 0:
            ret.append(hooks.LayerFreeze(self.model, cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS))
        ret.append(BuffersOfRankZero(self.model))
        checkpoints = CheckpointHook(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.SELECT_BEST)
        keep = checkpoints.keep if comm.is_main_process() else None
        if self.selection:
            ret.append(ValidationHook(cfg.TEST.EVAL_PERIOD, self.validate, self.evaluate, keep))
        else:
            ret.append(EvaluationHook(cfg.TEST.EVAL_PERIOD, self.evaluate, keep))
        if comm.is_main_process():
            ret += [checkpoints, StartedWriters(self.build_writers(), 200), ProgressHook()]
        return ret

    # ---- running ---------------------------------------------------------------------------------------------------

    def _distribute(self) -> None:
        """Wrap the model for several processes. Every process takes over rank 0's weights and buffers here.

        Statistics of FastReID's own batch norms are those of each process's images, as in FastReID, unless its NORM
        keys say syncBN (GPUs alone); `BuffersOfRankZero` makes them agree before they are used.
        """
        if comm.get_world_size() == 1:
            return
        gpu = self.step_trainer.device_type == "cuda"
        self.step_trainer.model = DistributedDataParallel(
            self.model,
            device_ids=[comm.get_local_rank()] if gpu else None,
            broadcast_buffers=False,
            find_unused_parameters=not getattr(self.model, "every_parameter_learns", False),
        )

    @property
    def result_metric(self) -> str:
        """Name in the event storage of the metric that stands for the result: (mAP + Rank-1) / 2."""
        return "metric" if len(self.cfg.DATASETS.TESTS) == 1 else f"{self.cfg.DATASETS.TESTS[0]}/metric"

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from `last_checkpoint` of OUTPUT_DIR with every state, or start from MODEL.WEIGHTS, strictly.

        A run with a frozen teacher reads MODEL.WEIGHTS when it goes on, too: they are the teacher.
        """
        going_on, teacher = resume and self.checkpointer.has_checkpoint(), getattr(self.model, "wants_teacher", False)
        if teacher or not going_on:
            self.checkpointer.start_from(self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.NEW_WEIGHTS)
        if teacher:
            self.model.keep_teacher()
        if not going_on:
            return
        checkpoint = self.checkpointer.resume_from(self.checkpointer.get_checkpoint_file())
        self.resumed = True
        self.start_epoch = checkpoint["epoch"] + 1
        self.data_loader.start_at(self.start_epoch * self.iters_per_epoch)
        self._random_state = checkpoint["rng"]
        for hook in self.hooks:
            if isinstance(hook, CheckpointHook):
                hook.best = checkpoint["best"]
        if self.selection:
            self.selection = Selection(**checkpoint["selection"])
        self._evaluation_due = not checkpoint.get("evaluated", True)
        logger.info(
            "going on %s epoch %d of %d",
            "with the evaluation after" if self._evaluation_due else "at",
            self.start_epoch,
            self.max_epoch,
        )

    def load_weights(self, name: str) -> None:
        """Weights of `<name>.pth` of this run into the model."""
        state = load_state(Path(self.cfg.OUTPUT_DIR, f"{name}.pth"))["model"]
        _unwrapped(self.model).load_state_dict(state)

    @property
    def over(self) -> bool:
        """Whether no epoch comes after this one."""
        return self.epoch + 1 >= self.max_epoch or (self.selection is not None and self.selection.exhausted)

    def before_train(self) -> None:
        super().before_train()
        if self._evaluation_due:  # the rest of the epoch that the checkpoint was written in
            self.storage.epoch = self.epoch
            [evaluation] = [i for i, hook in enumerate(self.hooks) if isinstance(hook, EvaluationHook)]
            for hook in self.hooks[evaluation:]:
                hook.after_epoch()
            self._stop_if_exhausted()

    def after_epoch(self) -> None:
        super().after_epoch()
        self._stop_if_exhausted()

    def _stop_if_exhausted(self) -> None:
        if self.over and self.epoch + 1 < self.max_epoch:
            logger.info("no better state in %d evaluations on validation: training ends", self.selection.stale)
            raise _Stop

    def record(self) -> dict[str, Any]:
        """What a result says beside its metrics: steps taken and, with validation sets, which state they chose."""
        record: dict[str, Any] = {"steps": (self.epoch + 1) * self.iters_per_epoch}
        if self.selection:
            chosen = self.selection.epoch + 1
            record["validation"] = {
                "metric": self.selection.metric,
                "epoch": chosen,
                "steps": chosen * self.iters_per_epoch,
                "metrics": self.selection.metrics,
            }
        return record

    def train(self) -> dict[str, Any]:
        """Train to the end; returns the last evaluation's metrics (on the main process)."""
        self.epoch = self.start_epoch - 1
        self._distribute()
        if self.cfg.CACHE.ENABLED:
            dataset = self.data_loader.dataset
            dataset.attach(build_feature_cache(self.cfg, _unwrapped(self.model), dataset.images))
        if self._random_state is not None:  # last, so that nothing built since draws from it
            restore_random_state(self._random_state)
        if self.over and not self._evaluation_due:
            return self.evaluate()
        try:
            return super().train()
        except _Stop:
            return self.last_metrics
        finally:
            self.step_trainer.close_loader()


def train_loader(cfg, datasets: DataSets | None = None) -> loaders.TrainLoader:
    """The loader of a stage's training set: of images, or of cached features, whose cache is attached before
    training."""
    if not cfg.CACHE.ENABLED:
        return loaders.build_train_loader(cfg, SeededSamples(loaders.training_set(cfg, datasets=datasets)))
    transform = build_transforms(cfg, is_train=cfg.CACHE.AUGMENT)
    return loaders.build_train_loader(cfg, CachedFeatures(loaders.training_set(cfg, transform, datasets)))


def _evaluate(cfg, model: nn.Module, sets: Mapping[str, tuple]) -> OrderedDict:
    """Metrics by name, in percent; by data set and name where there are several of `sets`, {name: (loader,
    evaluator)}."""
    results = OrderedDict()
    model = _unwrapped(model)  # processes evaluate shares of different length, which the wrapper might wait for
    if cfg.TEST.FLIP.ENABLED:
        model = FlipAveraged(model)
    for name, (loader, evaluator) in sets.items():
        logger.info("evaluating on %s", name)
        with compat.quiet_host():
            results[name] = inference_on_dataset(model, loader, evaluator)
    return next(iter(results.values())) if len(results) == 1 else results


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6
