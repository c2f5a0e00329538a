"""Time, memory, operations and the peak of the machine, measured so that two ways can be compared."""

from __future__ import annotations

import functools
import gc
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

__all__ = ["count_flops", "in_turn", "matmul_peak", "peak_memory", "quartiles", "seconds", "synchronize"]


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(
    call: Callable[[], Any], device: str, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (clock() - start) / repeats


def peak_memory(call: Callable[[], Any], device: str) -> float | None:
    """MiB at the highest point of a call, of the GPU or resident in this process; None where the system cannot say."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**20
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return None
    pages, done = [0], threading.Event()

    def watch() -> None:  # every 2 ms; resetting the kernel's own high-water mark slows what comes after it
        while not done.is_set():
            pages.append(int(statm.read_text().split()[1]))
            done.wait(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(pages) * resource.getpagesize() / 2**20


def in_turn(
    plain: Callable,
    ours: Callable,
    rounds: int,
    device: str,
    at_least: float = 0.2,
    name: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time both A B A B, after a warm-up; a sample repeats a short one until it lasts `at_least` seconds.

    Args:
        name: what the progress bar says.
        clock: in seconds; `time.process_time`, of all threads, is steadier where others use the same cores.

    Returns:
        Medians in seconds, and the ratio of each neighbouring pair: median and quartiles.
    """
    for call in (plain, ours):
        call()
    repeats = max(1, round(at_least / max(seconds(ours, device, clock=clock), 1e-9)))
    gc.collect()
    bar = tqdm(range(rounds), desc=name, unit="pair", leave=False, disable=None)
    pairs = [tuple(seconds(call, device, repeats, clock) for call in (plain, ours)) for _ in bar]
    ratios = [a / b for a, b in pairs]
    return {
        "rounds": rounds,
        "repeats": repeats,
        "plain_seconds": statistics.median(a for a, _ in pairs),
        "ours_seconds": statistics.median(b for _, b in pairs),
        "ratio": quartiles(ratios),
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "low": low, "high": high}


def matmul_peak(dtype: torch.dtype, sizes: Sequence[int], device: str) -> dict[str, float]:
    """GFLOP/s of square matrix products, the best of several runs of each size; "best" of all."""
    out = {}
    for n in sizes:
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        product = functools.partial(torch.matmul, a, b.t())
        repeats = max(1, 2**31 // (2 * n**3))
        seconds(product, device, repeats)
        out[str(n)] = 2 * n**3 / min(seconds(product, device, repeats) for _ in range(8)) / 1e9
    return out | {"best": max(out.values())}


def count_flops(call: Callable[[], Any]) -> FlopCounterMode:
    """Count the operations of a call: matrix products, convolutions and attention, two operations per multiply-add."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels that the counter does not know
    try:
        # with gradients: the counter hooks parameters that are a module's input (free anchors), which takes a graph
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter
