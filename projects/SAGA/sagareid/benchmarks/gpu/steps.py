"""The steps of the GPU check by name, and the process that runs one of them.

python -m sagareid.benchmarks.gpu.steps STEP --device cuda --size full --repo . --work FOLDER --output step.json
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

from ...errors import message_of
from ..options import SCALES
from .compiled import compile_step
from .device import device_step
from .job import Job, Step
from .loading import loading_step
from .models import models_step
from .ranking import ranking_step
from .runs import export_step, probe, processes_step, quick_start_step, tests_step
from .timing import training_step

__all__ = ["STEPS", "main"]


STEPS = {
    "device": Step(device_step, "what the device reaches", 60, alone=True),
    "models": Step(models_step, "every head and backbone: float32 = CPU, bfloat16, float16", 150),
    "tests": Step(tests_step, "pytest -m cuda", 120),
    "quickstart": Step(quick_start_step, "all stages, SIGKILL and resume, the checkpoint on the CPU", 240),
    "processes": Step(processes_step, "torchrun, NCCL", 150),
    "export": Step(export_step, "ONNX equals the model on the device", 90),
    "base": Step(training_step("base"), "ViT-B/16: steps and extraction against the plain way", 100, alone=True),
    "large": Step(training_step("large"), "ViT-L/14: the same", 120, alone=True),
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
