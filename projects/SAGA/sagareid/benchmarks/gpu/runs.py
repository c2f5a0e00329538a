"""Whole commands: the tests of CUDA, the quick start, several processes, the exported model."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

from ...deploy import export
from ...deploy.feature_model import FeatureModel
from ...engine.launch import Place, process_group
from ...synthetic import drawn as synthetic
from ...synthetic.options import Spec
from .. import cases
from ..options import SCALES
from .job import Job, tf32
from .models import IMAGE_SIZE, model_batch, model_config

# Metrics of the quick start's last stage on CPUs (README.md), with what two runs of other rounding differ by: about a
# point of Rank-1 (six of 600 queries) and of mAP; twice that is let pass.
QUICK_START = {"Rank-1": (76.6, 2.5), "mAP": (70.9, 2.0)}
# Metrics of one checkpoint evaluated on two devices: what rounding moves.
ONE_CHECKPOINT = 0.35


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
            command = [sys.executable, *_torchrun(count), "-m", "sagareid.benchmarks.gpu.steps", "--probe", job.device]
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
    with torch.inference_mode(), tf32(False):
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
