"""The steps of `gpu_check`: what each of them checks and measures. Each runs in a process of its own.

    python -m sagareid.benchmarks.gpu_steps STEP --device cuda --size full --repo . --work FOLDER --output step.json

B images, C identities, D token width, E joint width, Q queries, G gallery images.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

from .. import compat, get_cfg
from ..config import check_config
from ..data import loaders
from ..deploy import export
from ..deploy.feature_model import FeatureModel
from ..engine import stages
from ..engine.feature_cache import CachedFeatures, build_feature_cache
from ..engine.launch import Place, process_group
from ..engine.trainer import SAGATrainer, StepTrainer, train_loader
from ..errors import message_of
from ..evaluation.evaluator import rank_in_blocks
from ..files import write_json
from ..hardware import machine
from ..modeling import meta_arch
from ..synthetic import drawn as synthetic
from ..synthetic.options import Spec
from . import cases, measure
from .options import SCALES, Scale, Size

__all__ = ["STEPS", "Job", "Step", "main"]

# Largest difference of a value or gradient in float32 between GPU and CPU, over the largest entry of that tensor.
TOLERANCE = 2e-3
# Least share of the arithmetic of products (forward and backward) that mixed precision must do in the low type.
LOW_SHARE = 0.9
# Metrics of the quick start's last stage on CPUs (README.md), with what two runs of other rounding differ by: about a
# point of Rank-1 (six of 600 queries) and of mAP; twice that is let pass.
QUICK_START = {"Rank-1": (76.6, 2.5), "mAP": (70.9, 2.0)}
# Metrics of one checkpoint evaluated on two devices: what rounding moves.
ONE_CHECKPOINT = 0.35


@dataclass
class Job:
    """Where and how large a step runs, and what it found; the file is written anew with every finding.

    Attributes:
        values: what was measured. lines: what the table says. problems: what is not as it must be.
    """

    device: str
    scale: Scale
    repo: Path
    work: Path
    output: Path
    values: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def size(self) -> str:
        return next(name for name, scale in SCALES.items() if scale is self.scale)

    def note(self, **values: Any) -> None:
        self.values |= values
        self.write()

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)
        self.write()

    def problem(self, text: str) -> None:
        self.problems.append(text)
        print("PROBLEM:", text, flush=True)
        self.write()

    def skip(self, text: str) -> None:
        """Something that this machine cannot do."""
        self.skipped.append(text)
        self.write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose error is a problem and not the end of the step."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.problem(f"{name}: {type(error).__name__}: {message_of(error)}"[:600])
        finally:
            if self.cuda:
                torch.cuda.empty_cache()

    def write(self) -> None:
        found = {"values": self.values, "lines": self.lines, "problems": self.problems, "skipped": self.skipped}
        write_json(self.output, found)


@dataclass(frozen=True)
class Step:
    """One of `STEPS`.

    Attributes:
        what: it checks or measures.
        seconds: limit of its process.
        alone: it measures times, so nothing else may run.
    """

    run: Callable[[Job], None]
    what: str
    seconds: float
    alone: bool = False


# ---- the device ------------------------------------------------------------------------------------------------------


def matrix_peak(job: Job, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of a square matrix product, now."""
    return measure.matmul_peak(dtype, (job.scale.peak,), job.device)["best"] * 1e9


def device_step(job: Job) -> None:
    """What the device is, and what its matrix products and copies reach."""
    about = machine(job.device)
    if job.cuda:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gib": properties.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    job.note(machine=about)
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rates[str(dtype).removeprefix("torch.")] = matrix_peak(job, dtype) / 1e12
    if job.cuda:
        with _tf32(True):
            rates["tf32"] = matrix_peak(job, torch.float32) / 1e12
    size = (2**32 if job.cuda else 2**20) // 4
    x = torch.empty(size, device=job.device)
    y = torch.empty_like(x)
    y.copy_(x)
    seconds = min(measure.seconds(lambda: y.copy_(x), job.device, 3) for _ in range(3))
    copied = 2 * 4 * size / seconds / 1e12
    job.note(matrix_tflops=rates, copy_tb_per_second=copied)
    what = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    job.say(
        f"{about.get('gpu') or about['cpu']}; products of {job.scale.peak}^2 in TFLOP/s: {what}; copy {copied:.3g} TB/s"
    )


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# ---- (a) every head and backbone -------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attention by the type that they compute in.

    Attributes:
        by_type: dtype -> operations. by_kind: (operation, dtype) -> operations.
    """

    def __init__(self):
        super().__init__()
        self.by_type: Counter[torch.dtype] = Counter()
        self.by_kind: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            operations = count(*args, **(kwargs or {}), out_val=out)
            dtype = next(a for a in args if isinstance(a, Tensor)).dtype
            self.by_type[dtype] += operations
            self.by_kind[func._overloadpacket.__name__, dtype] += operations
        return out

    @property
    def total(self) -> int:
        return sum(self.by_type.values())


IMAGE_SIZE, CLASSES = (48, 24), 4


def _host_backbone(name: str, width: int, *opts: Any) -> tuple:
    slim = ("MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.SAGA.NUM_DOMAIN_ANCHORS", 0)
    return (
        "MODEL.BACKBONE.NAME",
        name,
        "MODEL.BACKBONE.FEAT_DIM",
        width,
        "MODEL.BACKBONE.PRETRAIN",
        False,
        *slim,
        *opts,
    )


BACKBONES = {
    "CLIP": (),
    "CLIP, map": ("MODEL.BACKBONE.OUTPUT", "map"),
    "ResNet-18": _host_backbone("build_resnet_backbone", 512, "MODEL.BACKBONE.DEPTH", "18x"),
    "ViT": _host_backbone(
        "build_vit_backbone",
        768,
        "MODEL.BACKBONE.DEPTH",
        "small",
        "MODEL.BACKBONE.STRIDE_SIZE",
        (16, 16),
        "MODEL.BACKBONE.DROP_PATH_RATIO",
        0.0,
        "MODEL.BACKBONE.DROP_RATIO",
        0.0,
        "MODEL.BACKBONE.ATT_DROP_RATE",
        0.0,
    ),
}


def own_heads() -> list[str]:
    """Names of the registered heads of this package."""
    return sorted(n for n, h in compat.registered(REID_HEADS_REGISTRY).items() if h.__module__.startswith("sagareid."))


def model_config(head: str, *opts: Any) -> Any:
    """A small model of a head; the tower is the embedded CLIP's architecture.

    Raises:
        ValueError: head and backbone do not fit.
    """
    cfg = get_cfg()
    losses = ("SupConLoss",) if head == "PromptHead" else ("CrossEntropyLoss", "TripletLoss")
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "SAGABaseline", "MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_clip_vit_backbone", "MODEL.CLIP.NAME", "ViT-XS-8-pedestrians"),
            *("MODEL.BACKBONE.FEAT_DIM", 128, "MODEL.BACKBONE.STRIDE_SIZE", (8, 8), "MODEL.CLIP.TOKEN_LAYERS", [4]),
            *("INPUT.SIZE_TRAIN", list(IMAGE_SIZE), "INPUT.SIZE_TEST", list(IMAGE_SIZE), "MODEL.HEADS.NAME", head),
            *("MODEL.HEADS.NUM_CLASSES", CLASSES, "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"),
            *("MODEL.LOSSES.NAME", losses, "SOLVER.OPT", "Adam", *opts),
        ]
    )
    check_config(cfg)
    return cfg


def model_batch(device: str) -> dict[str, Tensor]:
    """Two images each of CLASSES identities."""
    images = torch.rand(2 * CLASSES, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) * 255
    targets = torch.arange(CLASSES).repeat_interleave(2)
    batch = {"images": images, "targets": targets, "camids": torch.arange(2 * CLASSES) % 2}
    return {name: value.to(device) for name, value in batch.items()}


def float32_difference(model: nn.Module, device: str) -> float:
    """Largest relative difference of losses, gradients and evaluation features of a model and its copy on the device.

    Raises:
        RuntimeError: more than `cases.TOLERANCE`; the message names the tensors.
    """
    moved = copy.deepcopy(model).to(device)
    found = []
    with _tf32(False), EventStorage():
        for m, place in ((moved, device), (model, "cpu")):
            batch = model_batch(place)
            values = cases.loss_and_gradients(m.train(), lambda m=m, batch=batch: m(batch))
            with torch.no_grad():
                features = m.eval()(batch)
            parts = cases.by_part(m, features) if getattr(m, "feature_layout", None) else {"feature": features}
            found.append({name: value.detach().cpu() for name, value in (values | parts).items()})
    return cases.largest_difference(*found)


def trains_in(model: nn.Module, cfg: Any, device: str, dtype: torch.dtype, count: int = 6) -> dict[str, Any]:
    """Training steps under autocast on the device, with the scaler where the type is float16.

    Returns:
        low_share of the products' operations that the low type does; the largest kind of float32 product; the losses.

    Raises:
        RuntimeError: no weight moved, or products are computed in float32.
    """
    model = copy.deepcopy(model).to(device)
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    batch, losses = model_batch(device), []
    trainer = StepTrainer(model, itertools.repeat(batch), optimizer, None, dtype)
    with EventStorage() as storage, Products() as products:
        for trainer.iter in range(count):
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
    moved = sum(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    if not moved or not all(np.isfinite(losses)):
        raise RuntimeError(f"{dtype}: {moved} weights moved in {count} steps, losses {losses}")
    share = products.by_type[dtype] / products.total
    high = [(kind, n / products.total) for (kind, t), n in products.by_kind.most_common() if t is torch.float32]
    found = {"low_share": share, "float32": dict(high[:3]), "losses": [losses[0], losses[-1]], "weights_moved": moved}
    if trainer.grad_scaler is not None:
        found["scale"] = trainer.grad_scaler.get_scale()
    if share < LOW_SHARE:
        raise RuntimeError(
            f"{dtype}: only {share:.0%} of the products' operations are in it; in float32: {found['float32']}"
        )
    return found


def models_step(job: Job) -> None:
    """Every head of ours on every backbone, and FastReID's head on ours."""
    rows, refused = [], []
    types = [torch.bfloat16, torch.float16] if job.cuda else [torch.bfloat16]
    if not job.cuda:
        job.skip("float16 with the scaler needs a GPU")
    for backbone, head in itertools.product(job.scale.backbones, [*own_heads(), "EmbeddingHead"]):
        if head == "EmbeddingHead" and backbone == "CLIP":
            continue  # FastReID's head reads a map
        name = f"{head} on {backbone}"
        try:
            cfg = model_config(head, *BACKBONES[backbone])
            torch.manual_seed(0)
            model = build_model(cfg)
            with EventStorage(), torch.no_grad():
                model.train()(model_batch("cpu"))
        except (ValueError, TypeError) as error:
            refused.append(f"{name}: {message_of(error)}"[:160])
            continue
        row: dict[str, Any] = {"model": name}
        rows.append(row)
        with job.part(name):
            torch.manual_seed(0)
            model = build_model(cfg)
            row["float32_difference"] = float32_difference(model, job.device)
            for dtype in types:
                row[str(dtype).removeprefix("torch.")] = trains_in(
                    model, cfg, job.device, dtype, count=6 if job.cuda else 2
                )
        job.note(models=rows, refused=refused)
    if rows:
        worst = max((r["float32_difference"], r["model"]) for r in rows if "float32_difference" in r)
        shares = [r[t]["low_share"] for r in rows for t in ("bfloat16", "float16") if t in r]
        job.say(
            f"{len(rows)} pairs ({len(refused)} refused by their config); float32 within {worst[0]:.1e} of the CPU "
            f"({worst[1]}); at least {min(shares, default=0):.1%} of the products in the low type"
        )


# ---- the tests that need CUDA ----------------------------------------------------------------------------------------


def tests_step(job: Job) -> None:
    """The tests marked `cuda`."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=job.repo, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    job.say(last)
    if done.returncode:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
        job.problem(f"pytest ended with {done.returncode}: {'; '.join(failed[:8])}")


# ---- (b) the quick start ---------------------------------------------------------------------------------------------


def _train_net(job: Job, *argv: Any, launcher: tuple = ()) -> list[str]:
    config = job.repo / "configs" / "SAGA" / "quickstart.yml"
    return [sys.executable, *launcher, "tools/train_net.py", "--config-file", str(config), *map(str, argv)]


def _data_root(job: Job, folder: str, spec: Spec | None) -> dict[str, str]:
    """Environment with a root of data sets of its own; where `spec` is None, the first run draws what is in it."""
    root = job.work / folder
    if spec is not None:
        synthetic.draw_dataset(root, spec, workers=1)
    return {**os.environ, "FASTREID_DATASETS": str(root)}


def _metrics(folder: Path, name: str) -> dict[str, Any]:
    return {entry["stage"]: entry for entry in json.loads((folder / name).read_text())}


def quick_start_step(job: Job) -> None:
    """All stages on the device, killed in the last one and resumed; then that checkpoint on the CPU."""
    environment, folder = _data_root(job, "datasets", job.scale.quick_start), job.work / "quickstart"
    options = [*job.scale.options, "OUTPUT_DIR", folder, "MODEL.DEVICE", job.device]
    begun = time.monotonic()
    process = subprocess.Popen(_train_net(job, *options), cwd=job.repo, env=environment)
    while not (folder / "anchors" / "last.pth").exists():
        if process.poll() is not None:
            raise RuntimeError(f"tools/train_net.py ended with {process.returncode} before it could be killed")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    job.note(killed_after_seconds=time.monotonic() - begun)
    subprocess.run(_train_net(job, "--resume", *options), cwd=job.repo, env=environment, check=True)
    seconds = time.monotonic() - begun
    results = _metrics(folder, "results.json")
    rows = {s: {k: r["metrics"][k] for k in ("Rank-1", "mAP", "mINP")} for s, r in results.items()}
    job.note(seconds=seconds, stage_seconds={s: r["seconds"] for s, r in results.items()}, metrics=rows)
    last = rows["anchors"]
    job.say(
        f"Rank-1 {last['Rank-1']:.1f}, mAP {last['mAP']:.1f} in {seconds:.0f} s, killed and resumed in the last stage"
    )
    if job.scale.quick_start is None:
        for name, (expected, tolerance) in QUICK_START.items():
            if abs(last[name] - expected) > tolerance:
                job.problem(f"quick start: {name} {last[name]:.1f}; on CPUs {expected} +- {tolerance}")
    arguments = ["--eval-only", *job.scale.options, "OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"]
    subprocess.run(_train_net(job, *arguments), cwd=job.repo, env=environment, check=True)
    again = _metrics(folder, "evaluation.json")["anchors"]["metrics"]
    job.note(metrics_on_cpu={k: again[k] for k in last})
    difference = max(abs(again[k] - last[k]) for k in last)
    job.say(f"the checkpoint evaluated on the CPU: largest difference of a metric {difference:.2f} points")
    if difference > ONE_CHECKPOINT:
        job.problem(f"GPU {last}, CPU {job.values['metrics_on_cpu']}: one checkpoint, other metrics")


# ---- (c) several processes -------------------------------------------------------------------------------------------


def _torchrun(processes: int) -> tuple:
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")


def processes_step(job: Job) -> None:
    """Training under torchrun, and the exchange, with one process and with all devices."""
    environment = _data_root(job, "datasets-processes", SCALES["tiny"].quick_start)
    environment.setdefault("OMP_NUM_THREADS", "1")
    devices = torch.cuda.device_count() if job.cuda else 1
    options = ["STAGES", "[]", *SCALES["tiny"].options, "MODEL.DEVICE", job.device.split(":")[0]]
    losses, exchanged = {}, []
    for count in sorted({1, devices}):
        with job.part(f"training with {count} process(es)"):
            folder = job.work / f"processes{count}"
            command = _train_net(job, *options, "OUTPUT_DIR", folder, launcher=_torchrun(count))
            subprocess.run(command, cwd=job.repo, env=environment, check=True)
            lines = (folder / "metrics.json").read_text().splitlines()
            losses[str(count)] = [v["total_loss"] for v in map(json.loads, lines) if "total_loss" in v][-1]
    for count in sorted({1, devices}) if job.cuda else [2]:
        with job.part(f"exchange of {count} process(es)"):
            command = [sys.executable, *_torchrun(count), "-m", __spec__.name, "--probe", job.device]
            done = subprocess.run(command, cwd=job.repo, env=environment, capture_output=True, text=True)
            print(done.stdout, done.stderr, flush=True)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
            exchanged += [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    job.note(last_loss=losses, exchange=exchanged)
    job.say(f"torchrun: last loss by number of processes {losses}; {'; '.join(exchanged)}")


def probe(device: str) -> None:
    """One process under torchrun: an exchange, and gradients under DistributedDataParallel equal to those without."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = Place(rank, world, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), url="env://")
    kind = device.split(":")[0]
    with process_group(place, kind, 60):
        where = f"cuda:{place.local_rank}" if kind == "cuda" else "cpu"
        x = torch.full((1024,), float(rank + 1), device=where)
        torch.distributed.all_reduce(x)
        if not bool((x == world * (world + 1) / 2).all()):
            raise RuntimeError(f"all_reduce gave {x[0].item()}")
        torch.manual_seed(0)
        alone = build_model(model_config("SAGAHead", "MODEL.SAGA.DROPOUT", 0.0)).to(where)
        gradients = []
        for model in (alone, _wrapped(copy.deepcopy(alone), kind, place.local_rank)):
            with EventStorage():
                sum(model.train()(model_batch(where)).values()).backward()
            named = [(n.removeprefix("module."), p.grad) for n, p in model.named_parameters()]
            gradients.append({f"grad {n}": gradient for n, gradient in named if gradient is not None})
        difference = cases.largest_difference(*gradients[::-1])
        print(f"rank {rank} of {world}: {torch.distributed.get_backend()}, gradients within {difference:.1e}")


def _wrapped(model: nn.Module, kind: str, index: int) -> nn.Module:
    ids = [index] if kind == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


# ---- (g) export ------------------------------------------------------------------------------------------------------


def export_step(job: Job) -> None:
    """The exported model on the CPU against the model on the device."""
    import onnxruntime

    cfg = model_config("SAGAHead")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    path = job.work / "model.onnx"
    done = export.export(cfg, model, path)
    moved = FeatureModel(cfg, copy.deepcopy(model).to(job.device))
    images = torch.rand(7, 3, *IMAGE_SIZE) * 255
    with torch.inference_mode(), _tf32(False):
        expected = moved(images.to(job.device)).cpu()
    difference = float((export.load_exported(path)[0](images)[0] - expected).abs().max())
    providers = onnxruntime.get_available_providers()
    job.note(difference=difference, difference_on_cpu=max(done.difference.values()), providers=providers)
    job.say(f"ONNX on the CPU differs from the model on {job.device} by {difference:.1e} in an entry")
    if not difference <= 10 * export.TOLERANCE["float32"]:
        job.problem(f"ONNX on the CPU and the model on {job.device} differ by {difference:.1e}")
    if "CUDAExecutionProvider" not in providers:
        job.skip("onnxruntime has no CUDA execution provider here")
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    difference = float((found - expected).abs().max())
    job.note(cuda_provider_difference=difference)
    job.say(f"the CUDA execution provider differs by {difference:.1e}")
    if not difference <= 1e-3:
        job.problem(f"CUDA execution provider: {difference:.1e}")


# ---- (d) steps and extraction ----------------------------------------------------------------------------------------

CASES = ("extraction", "backbone", "anchors_cached", "prompts")


def _operations(run: Callable[[], Any]) -> int:
    with Products() as products:
        run()
    return products.total


def _autocast(job: Job, dtype: torch.dtype | None):
    return torch.autocast(job.device.split(":")[0], dtype=dtype) if dtype is not None else nullcontext()


def _in(job: Job, dtype: torch.dtype | None, run: Callable[[], Any]) -> Callable[[], Any]:
    def wrapped() -> Any:
        with _autocast(job, dtype):
            return run()

    return wrapped


@dataclass
class _Opened:
    case: cases.Case
    model: nn.Module


def _open(job: Job, size: Size, key: str) -> _Opened:
    """A case, and the model of our way."""
    setting = cases.Setting(size, job.repo / "configs" / "SAGA", job.device)
    models: list[nn.Module] = []
    build = setting.model

    def kept(stage: str) -> nn.Module:
        with torch.device(job.device):  # random weights are drawn there, which is much faster for ViT-L
            models.append(build(stage))
        return models[-1]

    setting.model = kept
    torch.manual_seed(1)
    return _Opened(cases.COMPARISONS[key](setting), models[0])


def _timed(job: Job, key: str, opened: _Opened, dtype: torch.dtype | None) -> dict[str, Any]:
    case = opened.case
    plain, ours = (_in(job, dtype, run) for run in (case.call_plain, case.call_ours))
    peak = matrix_peak(job)
    times = measure.in_turn(plain, ours, job.scale.rounds, job.device, name=key)
    operations = {"ours": _operations(ours), "plain": _operations(plain)}
    memory = {"ours": measure.peak_memory(ours, job.device), "plain": measure.peak_memory(plain, job.device)}
    return {
        **times,
        "images": case.images,
        "images_per_second": case.images / times["ours_seconds"],
        "gflop": {name: n / 1e9 for name, n in operations.items()},
        "bf16_peak_tflops": peak / 1e12,
        "share_of_peak": {
            "ours": operations["ours"] / times["ours_seconds"] / peak,
            "plain": operations["plain"] / times["plain_seconds"] / peak,
        },
        "peak_memory_mib": memory,
    }


def _say_times(job: Job, name: str, row: dict[str, Any]) -> None:
    memory = "/".join(
        "?" if m is None else f"{m / 1024:.1f}" for m in (row["peak_memory_mib"][w] for w in ("plain", "ours"))
    )
    job.say(
        f"{name}: {row['images_per_second']:.0f} images/s, plain/ours {row['ratio']['median']:.2f} "
        f"({row['plain_seconds'] * 1e3:.1f}/{row['ours_seconds'] * 1e3:.1f} ms), "
        f"{row['share_of_peak']['ours']:.0%} of bf16 peak, {memory} GiB"
    )


def _training_step(name: str) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        rows: dict[str, Any] = {}
        job.note(machine=machine(job.device))
        size = job.scale.models.get(name)
        if size is None:
            job.skip(f"no {name} model at this size")
            return
        with EventStorage(0):
            for key in CASES:
                with job.part(f"{name} {key}"):
                    opened = _open(job, size, key)
                    rows[key] = row = {"plain": opened.case.plain}
                    with _tf32(False):
                        ours, plain = opened.case.values_ours(), opened.case.values_plain()
                        row["largest_difference"] = cases.largest_difference(ours, plain)
                        del ours, plain
                    if job.cuda:
                        torch.cuda.empty_cache()
                    row["bfloat16"] = _timed(job, key, opened, torch.bfloat16)
                    job.note(cases=rows)
                    _say_times(job, f"{name} {key} bf16", row["bfloat16"])
                    if key == "anchors_cached":  # published in float32
                        row["float32"] = _timed(job, key, opened, None)
                        _say_times(job, f"{name} {key} float32", row["float32"])
                    row["profile"] = _profile(job, _in(job, torch.bfloat16, opened.case.call_ours))
                    job.note(cases=rows)
                    _say_profile(job, f"{name} {key}", row["profile"])
                    del opened

    run.__doc__ = f"Training steps and extraction of {name}, bfloat16, against the plain way; the three largest costs."
    return run


def _profile(job: Job, run: Callable[[], Any], repeats: int = 3) -> dict[str, Any]:
    """The largest kernels by time, and the share of the time in which the device had nothing to do."""
    activity = torch.profiler.ProfilerActivity
    run()
    with torch.profiler.profile(activities=[activity.CUDA if job.cuda else activity.CPU]) as profile:
        measure.synchronize(job.device)
        begun = time.perf_counter()
        for _ in range(repeats):
            run()
        measure.synchronize(job.device)
        wall = (time.perf_counter() - begun) * 1e6
    spans, names = [], Counter()
    for event in profile.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device != job.cuda:
            continue
        duration = event.time_range.elapsed_us() if job.cuda else event.self_cpu_time_total
        names[event.name] += duration
        if job.cuda:
            spans.append((event.time_range.start, event.time_range.end))
    busy, end = 0.0, 0.0
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = sum(names.values()) or 1.0
    top = [{"name": n[:120], "share": t / total, "ms": t / 1e3 / repeats} for n, t in names.most_common(8)]
    idle = max(0.0, 1 - busy / wall) if job.cuda else None
    return {"milliseconds": wall / 1e3 / repeats, "idle_share": idle, "largest": top}


def _say_profile(job: Job, name: str, profile: dict[str, Any]) -> None:
    top = "; ".join(f"{t['share']:.0%} {t['name'][:60]}" for t in profile["largest"][:3])
    idle = "" if profile["idle_share"] is None else f", idle {profile['idle_share']:.0%} under the profiler"
    job.say(f"{name}: {top}{idle}")


# Seconds that processes wait for the slowest to compile, before they measure without it.
COMPILING = 120.0


def compile_step(job: Job) -> None:
    """Our steps and extraction of ViT-B/16 under torch.compile against the plain way and eager, in the same run.

    Each case has a process of its own. They compile beside each other, and measure one after the other.
    """
    context = multiprocessing.get_context("spawn")
    keys = job.scale.compiled
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // len(keys))))
    ready, turn = context.Barrier(len(keys)), context.Lock()
    folders = {key: job.work / key for key in keys}
    processes = []
    for key, folder in folders.items():
        folder.mkdir()
        argv = (key, job.device, job.size, job.repo, folder, ready, turn)
        processes.append(context.Process(target=_compiled_process, args=argv))
        processes[-1].start()
    job.note(machine=machine(job.device), cases={})
    while any(process.is_alive() for process in processes):
        time.sleep(0.2)
        _collect(job, folders)
    for key, process in zip(keys, processes):
        process.join()
        if process.exitcode:
            job.problem(f"compile {key}: its process ended with {process.exitcode}")
    _collect(job, folders)


def _collect(job: Job, folders: dict[str, Path]) -> None:
    """Take over what the processes have found by now."""
    found = [json.loads(f.read_text()) for folder in folders.values() if (f := folder / "found.json").is_file()]
    if any(set(x["lines"] + x["problems"]) - set(job.lines + job.problems) for x in found):
        for x in found:
            job.values["cases"] |= x["values"]
            job.lines += [line for line in x["lines"] if line not in job.lines]
            job.problems += [problem for problem in x["problems"] if problem not in job.problems]
        job.write()


def _compiled_process(key: str, device: str, size: str, repo: Path, work: Path, ready: Barrier, turn: Lock) -> None:
    """One case: compile every form, wait for the others, measure alone."""
    job = Job(device, SCALES[size], repo, work, work / "found.json")
    if not job.cuda:  # building kernels for a CPU takes longer than the rest of a dry run
        meta_arch._compiled_step = lambda mode: torch.compile(meta_arch._step, backend="aot_eager", dynamic=False)
    with job.part(f"compile {key}"), EventStorage(0):
        forms = _Forms(job, key)
        try:
            forms.prepare()
        finally:
            with suppress(threading.BrokenBarrierError):
                ready.wait(COMPILING)
        with turn:
            forms.measure()


class _Forms:
    """A case eagerly and under torch.compile in each mode, against the plain way."""

    def __init__(self, job: Job, key: str):
        self.job, self.key = job, key
        self.opened = _open(job, job.scale.models["base"], key)
        self.modes = ("reduce-overhead", "default") if job.cuda else ("default",)
        self.ours = _in(job, torch.bfloat16, self.opened.case.call_ours)
        self.plain = _in(job, torch.bfloat16, self.opened.case.call_plain)
        self.compiled: dict[str, Any] = {}
        self.compile_seconds: dict[str, float] = {}
        self.turned: dict[str, float] = {}  # 1 - cosine of what a form gives to what the eager one gives

    def form(self, form: str) -> None:
        """Let the model run in a form from now on."""
        model, mode = self.opened.model, "" if form == "eager" else form
        if model.training:
            model.compile_mode = mode
        else:  # the evaluation forward
            model._compiled_call_impl = self.compiled.get(mode)

    def run(self, form: str) -> None:
        """One step, or one batch."""
        self.form(form)
        self.ours()

    def prepare(self) -> None:
        """Compile every form, and hold what each gives to what the eager form gives."""
        model, values = self.opened.model, {}
        compared = not model.training or not any(
            getattr(m, "p", 0.0) or getattr(m, "dropout", 0.0) for m in model.modules()
        )  # a compiled step draws other dropout masks
        for form in ("eager", *self.modes):
            if form != "eager" and not model.training:
                options = {"mode": form} if self.job.cuda else {"backend": "aot_eager"}
                self.compiled[form] = torch.compile(model._call_impl, dynamic=False, **options)
            begun = time.perf_counter()
            if compared:
                values[form] = self.values(form)
            else:
                self.run(form)
            measure.synchronize(self.job.device)
            self.compile_seconds[form] = time.perf_counter() - begun
        for form in ("eager", *self.modes):
            for _ in range(3):  # a CUDA graph is recorded by the second run, and replayed from the third
                self.run(form)
        for form, found in values.items():
            self.turned[form] = float(1 - F.cosine_similarity(found.double(), values["eager"].double(), dim=0))
            if not self.turned[form] < 1e-3:
                self.job.problem(f"compile {self.key}, {form}: 1 - cosine to eager {self.turned[form]:.1e}")

    def values(self, form: str) -> Tensor:
        """Losses and gradients, or features, as one vector; all forms see the same weights."""
        self.form(form)
        values = _in(self.job, torch.bfloat16, self.opened.case.values_ours)()
        return torch.cat([values[name].detach().float().flatten() for name in sorted(values)])

    def measure(self) -> None:
        job, case, peak = self.job, self.opened.case, matrix_peak(self.job)
        operations = _operations(lambda: self.run("eager"))
        row: dict[str, Any] = {"images": case.images, "plain": case.plain, "bf16_peak_tflops": peak / 1e12}
        for form in ("eager", *self.modes):
            times = measure.in_turn(
                self.plain, lambda form=form: self.run(form), job.scale.rounds, job.device, at_least=0.1
            )
            seconds = times["ours_seconds"]
            row[form] = {
                **times,
                "images_per_second": case.images / seconds,
                "share_of_peak": operations / seconds / peak,
                "first_call_seconds": self.compile_seconds[form],
                "turned": self.turned.get(form),
                "peak_memory_mib": measure.peak_memory(lambda form=form: self.run(form), job.device),
            }
            job.note(**{self.key: row})
            job.say(
                f"{self.key}, {form}: {row[form]['images_per_second']:.0f} images/s, plain/ours "
                f"{times['ratio']['median']:.2f} ({times['plain_seconds'] * 1e3:.1f}/{seconds * 1e3:.1f} ms), "
                f"{row[form]['share_of_peak']:.0%} of bf16 peak; first call {self.compile_seconds[form]:.0f} s"
            )
        row["profile"] = _profile(job, lambda: self.run(self.modes[0]))
        job.note(**{self.key: row})
        _say_profile(job, f"{self.key}, {self.modes[0]}", row["profile"])


# ---- (e) loader, cache, stage 2 as it runs ---------------------------------------------------------------------------


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
        r.name: r.cfg for r in stages.plan(job.repo / "configs" / "SAGA" / model_opts.config, list(map(str, options)))
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
    profile = _profile(job, trainer.run_step)
    trainer = StepTrainer(model, stream, optimizer, None, torch.bfloat16)
    loaded = _profile(job, trainer.run_step, repeats=10 if job.cuda else 1)
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
    _say_profile(job, "stage 2 with the loader", loaded)
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


# ---- (f) ranking -----------------------------------------------------------------------------------------------------


def ranking_step(job: Job) -> None:
    """Distances and ranking on the device; a part of the queries on the CPU, too, through FastReID's ranking."""
    num_query, num_gallery, width = job.scale.ranking
    generator = torch.Generator(job.device).manual_seed(0)
    people = max(2, num_gallery // 20)

    def draw(high: int, n: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=job.device)

    pids, camids = draw(people, num_query + num_gallery), draw(6, num_query + num_gallery)
    points = torch.randn(people, width, generator=generator, device=job.device)
    x = torch.randn(num_query + num_gallery, width, generator=generator, device=job.device).mul_(7.0)
    for rows in torch.arange(len(x), device=job.device).split(4096):
        x[rows] += points[pids[rows]]
    x = F.normalize(x, dim=1)
    query, gallery = x[:num_query], x[num_query:]
    ids = [i.cpu().numpy() for i in (pids[:num_query], pids[num_query:], camids[:num_query], camids[num_query:])]

    def distances(start: int, stop: int) -> Tensor:
        return (query[start:stop] @ gallery.t()).neg_().add_(1)

    measure.synchronize(job.device)
    rank_in_blocks(distances, ids[0][:256], ids[1], ids[2][:256], ids[3])
    begun = time.perf_counter()
    ranking = rank_in_blocks(distances, *ids)
    seconds = time.perf_counter() - begun
    job.note(queries=num_query, gallery=num_gallery, width=width, seconds=seconds, mAP=float(np.mean(ranking.ap)) * 100)
    job.say(
        f"{num_query} x {num_gallery}, width {width}, on {job.device}: {seconds:.2f} s, mAP {job.values['mAP']:.2f}"
    )

    some = job.scale.ranking_checked
    part = (ids[0][:some], ids[1], ids[2][:some], ids[3])
    on_device = rank_in_blocks(distances, *part)
    begun = time.perf_counter()
    on_cpu = rank_in_blocks(lambda a, b: distances(a, b).cpu(), *part)
    job.note(cpu_seconds_per_query=(time.perf_counter() - begun) / some, compiled=compat.cython_ranking_active())
    apart = {
        "cmc": float(np.abs(on_device.cmc - on_cpu.cmc).max()),
        "ap": float(np.abs(on_device.ap - on_cpu.ap).max()),
        "inp": float(np.abs(on_device.inp - on_cpu.inp).max()),
        "nearest": float((on_device.nearest != on_cpu.nearest).mean()),
    }
    job.note(differences=apart)
    job.say(
        f"{some} queries on the CPU ({job.values['cpu_seconds_per_query'] * num_query:.0f} s for all at that rate): "
        + ", ".join(f"{k} {v:.1e}" for k, v in apart.items())
    )
    # equal distances may change places: a few queries of many
    if apart["cmc"] > 2 / some or np.abs(on_device.ap - on_cpu.ap).mean() > 1e-4:
        job.problem(f"ranking on {job.device} and on the CPU differ: {apart}")


STEPS = {
    "device": Step(device_step, "what the device reaches", 60, alone=True),
    "models": Step(models_step, "every head and backbone: float32 = CPU, bfloat16, float16", 150),
    "tests": Step(tests_step, "pytest -m cuda", 120),
    "quickstart": Step(quick_start_step, "all stages, SIGKILL and resume, the checkpoint on the CPU", 240),
    "processes": Step(processes_step, "torchrun, NCCL", 150),
    "export": Step(export_step, "ONNX equals the model on the device", 90),
    "base": Step(_training_step("base"), "ViT-B/16: steps and extraction against the plain way", 100, alone=True),
    "large": Step(_training_step("large"), "ViT-L/14: the same", 120, alone=True),
    "loading": Step(loading_step, "loader, stage 2 with it, feature cache", 90, alone=True),
    "ranking": Step(ranking_step, "ranking at MSMT17's size", 60, alone=True),
    "compile": Step(compile_step, "ViT-B/16: plain, eager and torch.compile", 200, alone=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="?", choices=tuple(STEPS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=tuple(SCALES), default="full")
    for name in ("repo", "work", "output"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--probe", metavar="DEVICE", help="one process of the exchange, under torchrun")
    args = parser.parse_args()
    if args.probe:
        probe(args.probe)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    job = Job(args.device, SCALES[args.size], args.repo, args.work, args.output)
    job.write()
    try:
        STEPS[args.step].run(job)
    except Exception as error:
        traceback.print_exc()
        job.problem(f"{type(error).__name__}: {message_of(error)}"[:600])


if __name__ == "__main__":
    main()
