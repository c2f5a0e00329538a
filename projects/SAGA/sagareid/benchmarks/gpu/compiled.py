"""Training steps and extraction under torch.compile, against the plain way and eager."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from contextlib import suppress
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid.utils.events import EventStorage

from ...hardware import machine
from ...modeling import meta_arch
from .. import measure
from ..options import SCALES
from .job import Job, in_type, matrix_peak, operations_of, profile_of, say_profile
from .timing import open_case

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
        self.opened = open_case(job, job.scale.models["base"], key)
        self.modes = ("reduce-overhead", "default") if job.cuda else ("default",)
        self.ours = in_type(job, torch.bfloat16, self.opened.case.call_ours)
        self.plain = in_type(job, torch.bfloat16, self.opened.case.call_plain)
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
        values = in_type(self.job, torch.bfloat16, self.opened.case.values_ours)()
        return torch.cat([values[name].detach().float().flatten() for name in sorted(values)])

    def measure(self) -> None:
        job, case, peak = self.job, self.opened.case, matrix_peak(self.job)
        operations = operations_of(lambda: self.run("eager"))
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
        row["profile"] = profile_of(job, lambda: self.run(self.modes[0]))
        job.note(**{self.key: row})
        say_profile(job, f"{self.key}, {self.modes[0]}", row["profile"])
