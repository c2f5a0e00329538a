"""Work shared among processes that Ctrl-C does not reach: their parent alone hears it, and ends them."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

__all__ = ["deaf_to_interrupts", "in_processes", "interrupts_wait", "loader_start"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, collect: Callable[[Result], None]
) -> None:
    """`collect(function(job))` for all jobs in their order; in this process where `workers` is 1.

    Args:
        function: importable by name.

    Raises:
        BrokenProcessPool: a process was killed. Whatever `function` raises. What has not begun by then is dropped.
    """
    if workers == 1:
        for job in jobs:
            collect(function(job))
        return
    # spawn: forking a process that runs torch's threads may deadlock
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with deaf_to_interrupts():
            futures = [pool.submit(function, job) for job in jobs]
        for future in futures:
            collect(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def loader_start(workers: int) -> str | None:
    """How a PyTorch loader starts its worker processes: DataLoader's `multiprocessing_context`.

    Forked on Linux, whatever Python's default is in this process. One of several processes, which a fork server has
    started, would hand the data set to its workers through such a server, too, and so would any process from Python
    3.14 on. The maps of a feature cache cannot pass there ("Bad file descriptor"); a forked worker simply has them.
    """
    return "fork" if workers and sys.platform == "linux" else None


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that start in here ignore Ctrl-C from their first moment: a signal that is ignored is inherited so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C in here takes effect at the end; processes that are forked in here do not hear it.

    Python ignores an interrupt that comes while its own callbacks of a fork run, and the program goes on.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
