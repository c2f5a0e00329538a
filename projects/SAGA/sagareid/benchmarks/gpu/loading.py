"""The loader, stage 2 as it trains with it, and the feature cache."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import torch

from fastreid.utils.events import EventStorage

from ... import compat
from ...data import loaders
from ...engine import plans
from ...engine.feature_cache import CachedFeatures, build_feature_cache
from ...engine.trainer import SAGATrainer, StepTrainer, train_loader
from ...synthetic import drawn as synthetic
from ...synthetic.options import Spec
from .. import measure
from .job import Job, profile_of, say_profile


def loading_step(job: Job) -> None:
    """The loader's rate, stage 2 with it, and the feature cache."""
    height, width = job.scale.loader_size
    workers = min(16, os.cpu_count() or 1) if job.cuda else 0
    root = job.work / "datasets-loading"
    people = job.scale.people
    spec = Spec(
        train_ids=people,
        test_ids=max(2, people // 8),
        validation_ids=1,
        gallery_distractors=0,
        cutouts=0,
        height=height,
        width=width,
    )
    begun = time.perf_counter()
    synthetic.draw_dataset(root, spec, workers=max(1, workers))
    job.note(drawing_seconds=time.perf_counter() - begun, workers=workers)
    os.environ["FASTREID_DATASETS"] = str(root)
    model_opts = job.scale.models["base"]
    options = [
        *model_opts.opts,
        *("DATASETS.NAMES", "('SyntheticPedestrians',)", "DATASETS.TESTS", "('SyntheticPedestrians',)"),
        *("MODEL.BACKBONE.PRETRAIN", False, "MODEL.DEVICE", job.device, "DATALOADER.NUM_WORKERS", workers),
        *("MODEL.HEADS.NUM_CLASSES", people, "INPUT.SIZE_TRAIN", [height, width], "INPUT.SIZE_TEST", [height, width]),
        *("CACHE.DIR", str(job.work / "cache"), "CACHE.NUM_VIEWS", 1, "SOLVER.IMS_PER_BATCH", min(64, 4 * people)),
        *("OUTPUT_DIR", str(job.work / "loading"), "SOLVER.AMP.ENABLED", True),
    ]
    cfgs = {
        r.name: r.cfg for r in plans.plan(job.repo / "configs" / "SAGA" / model_opts.config, list(map(str, options)))
    }
    with compat.quiet_host(), EventStorage(0):
        with job.part("loader"):
            _loader_rate(job, cfgs["backbone"])
        with job.part("stage 2"):
            _stage_two(job, cfgs["backbone"])
        with job.part("feature cache"):
            _cache_rate(job, cfgs["anchors"])


def _loader_rate(job: Job, cfg: Any) -> None:
    stream = iter(loaders.build_train_loader(cfg))
    batch = cfg.SOLVER.IMS_PER_BATCH
    for _ in range(2):
        next(stream)  # the workers have started
    count = max(2, 40 * job.scale.steps // 40)
    seconds = measure.seconds(lambda: [next(stream) for _ in range(count)], job.device)
    stream.close()
    rate = batch * count / seconds
    job.note(loader_images_per_second=rate)
    job.say(f"training loader with {job.values['workers']} workers: {rate:.0f} images/s")


def _stage_two(job: Job, cfg: Any) -> None:
    """A training step of stage 2 with the real loader against one with a batch that is there already."""
    torch.manual_seed(0)
    with torch.device(job.device):
        model = SAGATrainer.build_model(cfg).train()
    with torch.no_grad():
        model.heads.text_features.normal_()
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
    stream = iter(loaders.build_train_loader(cfg))
    resident = next(stream)
    count = job.scale.steps
    seconds = {}
    for name, source in {"loaded": stream, "resident": itertools.repeat(resident)}.items():
        trainer = StepTrainer(model, source, optimizer, None, torch.bfloat16)

        def run(trainer=trainer) -> None:
            for trainer.iter in range(count):
                trainer.run_step()

        trainer.run_step(), trainer.run_step()
        seconds[name] = measure.seconds(run, job.device) / count
    profile = profile_of(job, trainer.run_step)
    trainer = StepTrainer(model, stream, optimizer, None, torch.bfloat16)
    loaded = profile_of(job, trainer.run_step, repeats=10 if job.cuda else 1)
    stream.close()
    stall = max(0.0, 1 - seconds["resident"] / seconds["loaded"])
    batch = cfg.SOLVER.IMS_PER_BATCH
    job.note(
        stage2={
            "seconds": seconds,
            "stall_share": stall,
            "images_per_second": batch / seconds["loaded"],
            "profile_resident": profile,
            "profile_loaded": loaded,
        }
    )
    say_profile(job, "stage 2 with the loader", loaded)
    job.say(
        f"stage 2, bf16, with the loader: {batch / seconds['loaded']:.0f} images/s; {stall:.1%} of a step is "
        f"waiting (a step is {seconds['resident'] * 1e3:.1f} ms with a batch at hand)"
    )


def _cache_rate(job: Job, cfg: Any) -> None:
    torch.manual_seed(0)
    with torch.device(job.device):
        model = SAGATrainer.build_model(cfg)
    loader = train_loader(cfg)
    dataset = loader.dataset
    if not isinstance(dataset, CachedFeatures):
        raise RuntimeError(f"{type(dataset).__name__} where cached features were expected")
    begun = time.perf_counter()
    cache = build_feature_cache(cfg, model, dataset.images)
    written = time.perf_counter() - begun
    dataset.attach(cache)
    stream = iter(loader)
    next(stream)
    count = max(2, job.scale.steps)
    seconds = measure.seconds(lambda: [next(stream) for _ in range(count)], job.device)
    stream.close()
    images = cfg.SOLVER.IMS_PER_BATCH * count
    nbytes = cache.nbytes(cache.shapes, cache.dtype, cache.views, cache.images) / (cache.images * cache.views)
    found = {
        "bytes_per_image": nbytes,
        "written_images_per_second": cache.images * cache.views / written,
        "read_images_per_second": images / seconds,
        "read_gb_per_second": images * nbytes / seconds / 1e9,
    }
    job.note(feature_cache=found)
    job.say(
        f"feature cache: built at {found['written_images_per_second']:.0f} images/s, read to the device at "
        f"{found['read_images_per_second']:.0f} images/s ({found['read_gb_per_second']:.2f} GB/s)"
    )
