"""Several processes on one machine or more: FastReID's options, or torchrun's environment; NCCL on GPUs, gloo on CPUs.

FastReID's own launcher knows GPUs alone, waits for ever where a process is gone, and ends in a stack of tracebacks.
Here the first process that fails ends the others, and its reason is the one that is reported.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from fastreid.utils import comm

from .. import compat
from ..errors import message_of
from .options import AUTO

__all__ = [
    "Place",
    "ProcessFailed",
    "is_first",
    "launch",
    "number_of_processes",
    "process_group",
]

# Seconds: for other ranks to tell their reason once one has lost touch with them, and for a process to end when asked
# to.
GRACE = 2.0
FAREWELL = 10.0
_ASSIGNED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # torchrun's environment


class ProcessFailed(RuntimeError):
    """A process of several failed; the message names its rank and the reason."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among all of them.

    Attributes:
        local_rank, local_size: among those of its machine; ranks of a machine are consecutive.
        url: of the rendezvous, as torch.distributed's `init_method`.
        port: of a store on this machine, in place of `url`; 0 for none.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


def number_of_processes(args, environment: Mapping[str, str] = os.environ) -> int:
    """Processes of the whole job.

    Raises:
        ValueError: options that contradict each other, or torchrun's environment.
    """
    if _started_by_torchrun(environment):
        if (args.num_gpus, args.num_machines, args.machine_rank) != (1, 1, 0):
            raise ValueError(
                "torchrun has started the processes: leave --num-gpus, --num-machines and --machine-rank to it "
                "(--nproc-per-node, --nnodes, --node-rank)"
            )
        return int(environment["WORLD_SIZE"])
    if args.num_gpus < 1 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "expected one process and one machine or more, and a machine rank from 0 to the number of machines less one"
        )
    if args.num_machines > 1 and args.dist_url == AUTO:
        raise ValueError(
            "several machines meet at machine 0: name it on each of them with --dist-url tcp://HOST:PORT, a free port"
        )
    return args.num_gpus * args.num_machines


def is_first(args, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process stands for the whole job: rank 0 of torchrun, or what starts the processes of machine 0."""
    return int(environment["RANK"]) == 0 if _started_by_torchrun(environment) else args.machine_rank == 0


def launch(work: Callable[..., None], arguments: tuple, args, *, device: str) -> None:
    """Run `work(*arguments)` in every process of the job; return when all have ended well.

    Under torchrun, and for a job of one process, `work` runs in this process.

    Args:
        work: importable by name, as its arguments must pass to another process.
        args: FastReID's options (num_gpus, num_machines, machine_rank, dist_url) and `dist_timeout` in seconds.
        device: MODEL.DEVICE; decides between NCCL and gloo.

    Raises:
        ProcessFailed: a process ended with an error, was killed, or lost touch with another.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes were stopped.
        ValueError: options that cannot work on this machine.
    """
    world_size = number_of_processes(args)
    if world_size == 1:
        work(*arguments)
        return
    torchrun = _started_by_torchrun(os.environ)
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else args.num_gpus
    _check_devices(device, local_size)
    if torchrun:
        _work_as(_torchrun_place(os.environ), device, args.dist_timeout, work, arguments)
        return
    store, place = None, {"url": args.dist_url}
    if args.dist_url == AUTO:  # held by this process, so that no port is chosen before it is taken
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        place = {"port": store.port}
    first = args.machine_rank * local_size
    places = [Place(first + i, world_size, i, local_size, **place) for i in range(local_size)]
    _supervise(places, device, args.dist_timeout, work, arguments)
    del store


def _started_by_torchrun(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in _ASSIGNED)


def _torchrun_place(environment: Mapping[str, str]) -> Place:
    place = Place(*(int(environment[name]) for name in _ASSIGNED), url="env://")
    if place.rank % place.local_size != place.local_rank:
        raise ValueError(
            f"RANK {place.rank} is not LOCAL_RANK {place.local_rank} of a machine with LOCAL_WORLD_SIZE "
            f"{place.local_size}: every machine must run the same number of processes"
        )
    return place


def _check_devices(device: str, local_size: int) -> None:
    if ":" in device:
        raise ValueError(
            f"MODEL.DEVICE is {device}, for several processes: each takes the GPU of its own rank; set MODEL.DEVICE "
            "cuda"
        )
    if device == "cuda" and local_size > torch.cuda.device_count():
        raise ValueError(
            f"{local_size} processes on a machine with {torch.cuda.device_count()} GPU(s): each needs its own. Lower "
            "--num-gpus, or run them on the CPU with MODEL.DEVICE cpu"
        )


# ---- in each process
# --------------------------------------------------------------------------------------------------


@contextmanager
def process_group(place: Place, device: str, timeout: float) -> Iterator[None]:
    """torch.distributed's group of all processes and FastReID's groups of each machine, inside the scope.

    Args:
        timeout: seconds that a process waits for another, in the rendezvous and in every exchange.

    Raises:
        ConnectionError: the processes did not meet.
    """
    limit, gpu = timedelta(seconds=timeout), device == "cuda"
    options: dict[str, Any] = {"init_method": place.url}
    if place.port:
        options = {"store": dist.TCPStore("127.0.0.1", place.port, is_master=False, timeout=limit)}
    if gpu:
        torch.cuda.set_device(place.local_rank)
    backend = "nccl" if gpu else "gloo"
    try:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=limit, **options)
    except RuntimeError as error:
        raise ConnectionError(
            f"the {place.world_size} processes did not meet at {place.url or 'this machine'} ({_first_line(error)}). "
            "Start every machine within --dist-timeout, with the same --dist-url, whose port is free on machine 0 and "
            "reachable from all"
        ) from error
    for first in range(0, place.world_size, place.local_size):
        ranks = range(first, first + place.local_size)
        group = dist.new_group(list(ranks), timeout=limit)
        if place.rank in ranks:
            compat.set_machine_group(group)
    comm.synchronize()
    yield
    # not after an error: the others may be gone
    dist.destroy_process_group()
    compat.forget_groups()


def _work_as(place: Place, device: str, timeout: float, work: Callable[..., None], arguments: tuple) -> None:
    """`work` as one of several processes; its errors say which."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))
    try:
        with process_group(place, device, timeout):
            work(*arguments)
    except Exception as error:
        if _lost_touch(error):
            raise ProcessFailed(f"{place} lost touch with another process ({_first_line(error)})") from error
        raise ProcessFailed(f"{place}: {message_of(error)}") from error


def _lost_touch(error: BaseException) -> bool:
    """Whether an exchange with other processes failed: the reason then lies with one of them."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo/", "NCCL", "Gloo ", "c10d"))
    )


def _first_line(error: BaseException) -> str:
    return message_of(error).strip().splitlines()[0]


class _Report(NamedTuple):
    """What a process reports about its end."""

    message: str
    lost_touch: bool
    traceback: str


def _process(
    place: Place,
    device: str,
    timeout: float,
    work: Callable[..., None],
    arguments: tuple,
    surroundings: tuple[dict[str, str], str],
    pipe: multiprocessing.connection.Connection,
) -> None:
    """Body of a started process. Ends with 0, with 130 when it was asked to stop, or with 1 and a report."""
    environment, folder = surroundings
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    logging.raiseExceptions = False  # as `errors_in_one_line`
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher too, which tells every process once
    signal.signal(signal.SIGTERM, _stop_once)
    threading.Thread(target=_end_with_launcher, args=(pipe,), daemon=True).start()
    code = 0
    try:
        _work_as(place, device, timeout, work, arguments)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = 1
        pipe.send(_Report(message_of(error), _lost_touch(error.__cause__ or error), traceback.format_exc()))
    sys.exit(code)


def _stop_once(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_launcher(pipe: multiprocessing.connection.Connection) -> None:
    """End this process when the launcher is gone, however it went."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)


# ---- in the launcher
# --------------------------------------------------------------------------------------------------


class _Member:
    """A started process and what is known about it."""

    def __init__(self, context, place: Place, *rest: Any):
        self.place = place
        self.pipe, other_end = context.Pipe()
        surroundings = (dict(os.environ), os.getcwd())
        self.process = context.Process(target=_process, args=(place, *rest, surroundings, other_end), daemon=False)
        self.process.start()
        other_end.close()
        self._report: _Report | None = None

    @property
    def report(self) -> _Report | None:
        try:
            if self._report is None and self.pipe.poll():
                self._report = self.pipe.recv()
        except (EOFError, OSError):
            pass
        return self._report

    @property
    def failed(self) -> bool:
        return self.process.exitcode not in (None, 0)

    def failure(self) -> ProcessFailed:
        """The error to raise where this process is the reason."""
        if self.report:
            failed = ProcessFailed(self.report.message)
            failed.__cause__ = RuntimeError(f"\n{self.report.traceback}")
            return failed
        code = self.process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} without a word"
        )
        memory = " (the kernel does that where memory runs out)" if code == -signal.SIGKILL else ""
        return ProcessFailed(
            f"{self.place}, process {self.process.pid}, {how}{memory}; the others were stopped. "
            "The same command with --resume goes on from the last whole epoch"
        )


def _supervise(places: list[Place], *rest: Any) -> None:
    """Start the processes of this machine and wait for them; the first that fails ends the others."""
    # a server that has imported the package once forks every process, whatever this one has done to its threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sagareid.engine.main"])
    with _terminate_as_interrupt():
        members: list[_Member] = []
        try:
            for place in places:
                members.append(_Member(context, place, *rest))
            while not any(m.failed for m in members):
                running = [m.process.sentinel for m in members if m.process.exitcode is None]
                if not running:
                    return
                multiprocessing.connection.wait(running)
            raise _reason(members)
        finally:
            _stop(members)


def _reason(members: list[_Member]) -> ProcessFailed:
    """The failure to tell: of a process that has a reason of its own, rather than of one that lost touch with it."""
    limit = time.monotonic() + GRACE
    while True:
        failed = [m for m in members if m.failed]
        own = [m for m in failed if not (m.report and m.report.lost_touch)]
        if own:
            return own[0].failure()
        running = [m.process.sentinel for m in members if m.process.exitcode is None]
        left = limit - time.monotonic()
        if left <= 0 or not running:
            break
        multiprocessing.connection.wait(running, left)
    failure = failed[0].failure()
    error = ProcessFailed(
        f"{failure}. No process of this machine has failed by itself: look at the output of the other machines; or a "
        "process hangs, or needs longer than --dist-timeout"
    )
    error.__cause__ = failure.__cause__
    return error


def _stop(members: list[_Member]) -> None:
    """End what still runs: ask, then kill."""
    running = [m.process for m in members if m.process.is_alive()]
    for process in running:
        process.terminate()
    limit = time.monotonic() + FAREWELL
    for process in running:
        process.join(max(0.0, limit - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a scheduler's kill ends every process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
