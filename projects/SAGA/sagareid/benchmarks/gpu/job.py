"""What a step of the GPU check works with: its job, the operations it counts, its profile."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...errors import message_of
from ...files import write_json
from .. import measure
from ..options import SCALES, Scale

__all__ = [
    "Job",
    "Products",
    "Step",
    "in_type",
    "matrix_peak",
    "operations_of",
    "profile_of",
    "say_profile",
    "tf32",
]


@dataclass
class Job:
    """Where and how large a step runs, and its findings; the file is written anew with every finding.

    Attributes:
        work: a folder for the step's own files.
        output: the file of findings.
        values: measurements, by name.
        lines: sentences for the table.
        problems: what is not as it must be.
        skipped: what this machine cannot do.
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
        """Note something that this machine cannot do."""
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
        run: does the step.
        what: what it checks or measures, in words.
        seconds: the limit of its process.
        alone: it measures times, so that nothing else may run beside it.
    """

    run: Callable[[Job], None]
    what: str
    seconds: float
    alone: bool = False


def matrix_peak(job: Job, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of a square matrix product, now."""
    return measure.matmul_peak(dtype, (job.scale.peak,), job.device)["best"] * 1e9


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attention by the type that they compute in.

    Attributes:
        by_type: dtype -> operations.
        by_kind: (operation, dtype) -> operations.
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


def operations_of(call: Callable[[], Any]) -> int:
    """The operations of a call's products."""
    with Products() as products:
        call()
    return products.total


def _autocast(job: Job, dtype: torch.dtype | None):
    return torch.autocast(job.device.split(":")[0], dtype=dtype) if dtype is not None else nullcontext()


def in_type(job: Job, dtype: torch.dtype | None, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` under autocast to a type; None leaves it as it is."""

    def wrapped() -> Any:
        with _autocast(job, dtype):
            return call()

    return wrapped


def profile_of(job: Job, call: Callable[[], Any], repeats: int = 3) -> dict[str, Any]:
    """The largest kernels by time, and the share of the time in which the device had nothing to do."""
    activity = torch.profiler.ProfilerActivity
    call()
    with torch.profiler.profile(activities=[activity.CUDA if job.cuda else activity.CPU]) as profile:
        measure.synchronize(job.device)
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        measure.synchronize(job.device)
        wall = (time.perf_counter() - begun) * 1e6
    spans: list[tuple[float, float]] = []
    names: Counter[str] = Counter()
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


def say_profile(job: Job, name: str, profile: dict[str, Any]) -> None:
    top = "; ".join(f"{t['share']:.0%} {t['name'][:60]}" for t in profile["largest"][:3])
    idle = "" if profile["idle_share"] is None else f", idle {profile['idle_share']:.0%} under the profiler"
    job.say(f"{name}: {top}{idle}")
