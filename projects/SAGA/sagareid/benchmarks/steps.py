"""How long steps and extraction take, against the same computation done the plain way, in one process and in turn.

Before anything is timed, the values and gradients of the plain way (`plain`) must equal ours.

B images, N patches, D token width, W text width, E joint width, K text anchors, M domain anchors, C identities.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage

from .. import compat
from ..data import loaders
from ..hardware import machine
from ..synthetic import drawn as synthetic
from .cases import COMPARISONS, Setting, by_part, largest_difference
from .measure import count_flops, in_turn, matmul_peak, peak_memory, quartiles, seconds
from .memory import training_memory
from .options import FORMS, Size
from .plain import plainly
from .steps_table import Result

__all__ = [
    "run",
    "tower_flops",
]


def tower_flops(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations (2 per multiply-add) of the backbone on a batch, counted while it computes."""
    return count_flops(lambda: model.backbone(images)).get_total_flops()


def _extraction_share(setting: Setting, rounds: int) -> dict[str, Any]:
    """The share of the matmul peak that the tower alone and the whole evaluation forward reach.

    The peak is measured anew before each of them, since shared machines change their speed within seconds.
    """
    model, count = setting.model("anchors").eval(), setting.size.extraction_batch
    batch = {"images": setting.images(count)}
    images = model.preprocess_image(batch)
    flops = tower_flops(model, images) / 1e9
    calls = {"tower": lambda: model.backbone(images), "forward": lambda: model(batch)}
    gflops: dict[str, list[float]] = {name: [] for name in calls}
    share: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for call in calls.values():
            call()
        for _ in tqdm(range(rounds), desc="share of the peak", unit="round", leave=False, disable=None):
            for name, call in calls.items():
                peak = matmul_peak(torch.float32, setting.size.matmul_sizes, setting.device)["best"]
                gflops[name].append(flops / seconds(call, setting.device))
                share[name].append(gflops[name][-1] / peak)
    out: dict[str, Any] = {"rounds": rounds, "gflop_per_image": flops / count}
    for name in calls:
        out[f"{name}_gflops"] = statistics.median(gflops[name])
        out[f"{name}_share_of_peak"] = quartiles(share[name])
    return out


def _bfloat16(setting: Setting, rounds: int) -> dict[str, Any]:
    """Extraction under bfloat16 autocast against float32, and how far its features turn."""
    model = setting.model("anchors").eval()
    batch = {"images": setting.images(setting.size.extraction_batch)}

    @torch.no_grad()
    def float32() -> Tensor:
        return model(batch)

    @torch.no_grad()
    def bfloat16() -> Tensor:
        with torch.autocast(setting.device.split(":")[0], dtype=torch.bfloat16):
            return model(batch)

    parts = [by_part(model, f()) for f in (float32, bfloat16)]
    turned = {k: float((1 - F.cosine_similarity(parts[0][k].double(), parts[1][k].double())).max()) for k in parts[0]}
    times = in_turn(float32, bfloat16, rounds, setting.device, name="bfloat16")
    return {
        "rounds": rounds,
        "images": setting.size.extraction_batch,
        "float32_seconds": times["plain_seconds"],
        "bfloat16_seconds": times["ours_seconds"],
        "ratio": times["ratio"],
        "images_per_second": setting.size.extraction_batch / times["ours_seconds"],
        "largest_cosine_difference": turned,
    }


def _loading_config(setting: Setting) -> CfgNode:
    """The anchor stage's config over drawn people, with no more workers than cores."""
    cfg = setting.cfgs["anchors"].clone()
    cfg.defrost()
    cfg.DATASETS.NAMES = cfg.DATASETS.TESTS = ["SyntheticPedestrians"]
    cfg.TEST.IMS_PER_BATCH = setting.size.extraction_batch
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.NUM_WORKERS_TEST = workers, workers
    cfg.SOLVER.IMS_PER_BATCH = setting.size.batch
    return cfg


def _loading(setting: Setting) -> dict[str, Any]:
    """Images per second of the test loader alone, of the model alone and of both; and of the training transform."""
    cfg = _loading_config(setting)
    height, width = cfg.INPUT.SIZE_TEST
    spec = synthetic.Spec(
        train_ids=1
        + setting.size.batch // cfg.DATALOADER.NUM_INSTANCE,  # fewer never fill a batch of the identity sampler
        test_ids=setting.size.loading_images // 8,  # each 6 in the gallery and 2 queries
        validation_ids=1,
        gallery_distractors=0,
        cutouts=0,
        height=height,
        width=width,
    )
    model = setting.model("anchors").eval()
    with tempfile.TemporaryDirectory() as root, _dataset_root(root), compat.quiet_host():
        synthetic.draw_dataset(root, spec, workers=1)
        test, _ = loaders.build_test_loader(cfg, "SyntheticPedestrians")
        train = loaders.build_train_loader(cfg)
        batches = list(test)
        count = sum(len(b["images"]) for b in batches)

        def each(source, forward: bool) -> None:
            with torch.no_grad():
                for batch in source:
                    if forward:
                        model(batch)

        each(batches[:1], True)
        alone = count / seconds(lambda: each(test, False), setting.device)
        computing = count / seconds(lambda: each(batches, True), setting.device)
        both = count / seconds(lambda: each(test, True), setting.device)
        stream = iter(train)
        next(stream)  # the workers have started
        steps = max(2, count // cfg.SOLVER.IMS_PER_BATCH)
        training = (
            cfg.SOLVER.IMS_PER_BATCH * steps / seconds(lambda: list(itertools.islice(stream, steps)), setting.device)
        )
    return {
        "images": count,
        "workers": cfg.DATALOADER.NUM_WORKERS,
        "loading_images_per_second": alone,
        "model_images_per_second": computing,
        "both_images_per_second": both,
        "training_loading_images_per_second": training,
        "limit": "the model" if computing < alone else "loading",
    }


@contextmanager
def _dataset_root(root: str) -> Iterator[None]:
    before = os.environ.get("FASTREID_DATASETS")
    os.environ["FASTREID_DATASETS"] = root
    try:
        yield
    finally:
        os.environ.pop("FASTREID_DATASETS")
        if before is not None:
            os.environ["FASTREID_DATASETS"] = before


def _compare(setting: Setting, key: str, rounds: int) -> dict[str, Any]:
    """Check that both ways of a case compute the same, then time them in turn."""
    torch.manual_seed(1)
    case = COMPARISONS[key](setting)
    difference = largest_difference(case.values_ours(), case.values_plain())
    times = in_turn(case.call_plain, case.call_ours, rounds, setting.device, name=key)
    memory = {
        "ours": peak_memory(case.call_ours, setting.device),
        "plain": peak_memory(case.call_plain, setting.device),
    }
    return {
        "case": key,
        "plain": case.plain,
        "images": case.images,
        **times,
        "images_per_second": case.images / times["ours_seconds"],
        "largest_difference": difference,
        "peak_memory_mib": memory,
        "target": dict(setting.size.targets).get(key),
    }


def _compare_forms(setting: Setting, key: str, forms: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """What each form that acts in a case is worth there: all of our way without it and with it, in turn; on a CPU in
    seconds of CPU, of all threads."""
    clock = time.process_time if setting.device == "cpu" else time.perf_counter
    torch.manual_seed(1)
    case = COMPARISONS[key](setting)
    for form in forms:
        if key not in FORMS[form]:
            continue
        difference = largest_difference(case.values_ours(), plainly(case.values_ours, form)())
        name = f"{key} without {form}"
        times = in_turn(plainly(case.call_ours, form), case.call_ours, rounds, setting.device, name=name, clock=clock)
        yield {"form": form, "case": key, "images": case.images, "largest_difference": difference} | {
            name.replace("plain", "without").replace("ours", "with"): value for name, value in times.items()
        }


def run(
    *,
    size: Size,
    name: str,
    configs: Path,
    cases: Sequence[str],
    forms: Sequence[str] | None = None,
    rounds: int | None,
    batches: Sequence[int] | None = None,
    device: str,
    command: str,
    done: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Measure `cases` at a size with random weights.

    Args:
        name: the size's name in the report.
        configs: folder configs/SAGA.
        cases: of `CASES`.
        forms: of `FORMS`, each timed against the same computation without it; None: our way against the plain way.
        rounds: pairs of samples per case; None takes the size's.
        batches: of the case "memory"; None takes the size's.
        done: called after each case with what is measured by then.

    Raises:
        RuntimeError: a case whose two ways do not compute the same.
    """
    setting = Setting(size, Path(configs), device)
    rounds = rounds or size.rounds
    cfg = setting.cfgs["anchors"]
    about = {
        "name": cfg.MODEL.CLIP.NAME,
        "image": list(cfg.INPUT.SIZE_TEST),
        "stride": cfg.MODEL.BACKBONE.STRIDE_SIZE[0],
        "anchors": cfg.MODEL.SAGA.NUM_ANCHORS,
        "identities": size.identities,
        "config": size.config,
    }
    result = Result(command, date.today().isoformat(), name, machine(device), about)
    for dtype in (torch.float32, torch.bfloat16):
        result.peak_gflops[str(dtype).removeprefix("torch.")] = matmul_peak(dtype, size.matmul_sizes, device)
    with EventStorage(0):  # FastReID's losses log to one
        for key in cases:
            if forms is not None:
                for measured in _compare_forms(setting, key, forms, rounds) if key in COMPARISONS else ():
                    result.forms.append(measured)
                    done(result)
            elif key == "bfloat16":
                result.bfloat16 = _bfloat16(setting, rounds)
            elif key == "memory":
                result.memory = training_memory(setting, batches or size.memory_batches)
            elif key == "loading":
                result.loading = _loading(setting)
            else:
                result.cases.append(_compare(setting, key, rounds))
                if key == "extraction":
                    result.tower = _extraction_share(setting, rounds)
            result.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            done(result)
            gc.collect()
    return result
