"""FastReID's view of the processes of a job, and its log files in each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = ["as_one_process", "close_logs", "forget_groups", "gather_rows", "quiet_logs", "set_machine_group"]


@contextmanager
def as_one_process() -> Iterator[None]:
    """Let FastReID's code inside the scope see one process, whatever the job has.

    Why: data/samplers/*.py draw other batches for each number of processes (a share of the identities at a time), so a
    run can neither be compared with one of another number of processes nor resumed by it.
    Goes when: FastReID's samplers draw the batch of all processes first.
    """
    from fastreid.utils import comm

    before = comm.get_world_size, comm.get_rank
    comm.get_world_size, comm.get_rank = lambda: 1, lambda: 0
    try:
        yield
    finally:
        comm.get_world_size, comm.get_rank = before


def set_machine_group(group: ProcessGroup) -> None:
    """Tell FastReID which processes share this machine; its get_local_rank and get_local_size read it.

    Why: utils/comm.py:13 holds it in a variable that FastReID's own launcher sets (engine/launch.py:101), and that
    launcher runs on GPUs alone.
    Goes when: FastReID's launcher runs on CPUs, or its groups can be set.
    """
    from fastreid.utils import comm

    comm._LOCAL_PROCESS_GROUP = group


def forget_groups() -> None:
    """Let FastReID forget the groups of a job that has ended, so that this process can be part of another.

    Why: utils/comm.py:13 and :81 keep them for the life of the process.
    Goes when: with `set_machine_group`.
    """
    from fastreid.utils import comm

    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def gather_rows(rows: Tensor | None) -> Tensor | None:
    """(n, ...) on the CPU of each process to (sum of n, ...) in every process, in the order of the ranks.

    One process after the other sends what it has into its place in the whole, so that nothing is held twice.

    Why: utils/comm.py:165 pickles what it gathers and holds every part three times; its group for CPU tensors (:81) is
    private.
    Goes when: FastReID gathers tensors.

    Args:
        rows: None: this process has none.

    Returns:
        None where no process has any.
    """
    import torch
    import torch.distributed as dist

    from fastreid.utils import comm

    if comm.get_world_size() == 1:
        return rows
    shapes = comm.all_gather(None if rows is None else (tuple(rows.shape), rows.dtype))
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return None
    counts = [0 if shape is None else shape[0][0] for shape in shapes]
    (_, *rest), dtype = known[0]
    whole = torch.empty(sum(counts), *rest, dtype=dtype)
    for rank, part in enumerate(whole.split(counts)):
        if len(part):
            if rank == comm.get_rank():
                part.copy_(rows)
            dist.broadcast(part, rank, group=comm._get_global_gloo_group())
    return whole


# Of these, what is worth a line is said by our own: data, progress, results. A long evaluation tells its progress.
_SAID_BY_US = (
    "fastreid.data.build",
    "fastreid.data.datasets.bases",
    "fastreid.engine.defaults",
    "fastreid.engine.train_loop",
    "fastreid.evaluation.evaluator",
    "fastreid.evaluation.testing",
    "fastreid.utils.env",
)
_TOTALS = ("Overall training speed", "Total training time")


def quiet_logs() -> None:
    """Leave lines out of FastReID's logs that repeat what our own say; `close_logs` undoes it with the handlers.

    Why: engine/train_loop.py, engine/hooks.py:104, evaluation/evaluator.py:84 and data/datasets/bases.py:170 write some
    30 lines a stage whose content is in the lines of ours, data sets under the names of their classes.
    Goes when: FastReID's loggers can be told what to leave out.
    """
    for handler in logging.getLogger("fastreid").handlers:
        handler.addFilter(_worth_a_line)


def _worth_a_line(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    said = record.name in _SAID_BY_US or (record.name == "fastreid.engine.hooks" and text.startswith(_TOTALS))
    return record.levelno > logging.INFO or not said or text.startswith("Inference done")


def close_logs() -> None:
    """Undo FastReID's logging set-up, for a process that runs one stage after another.

    Why: utils/logger.py:34-97 adds handlers for every folder, never takes one away or closes a file, and remembers by
    two caches what it has set up.
    Goes when: FastReID's `setup_logger` replaces the handlers that it has made before.
    """
    from fastreid.utils import logger as fastreid_logger

    for name in ("fastreid", "sagareid"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            stream = getattr(handler, "stream", None)
            if "log.txt" in str(getattr(stream, "name", "")):
                stream.close()
        log.propagate = True
    fastreid_logger.setup_logger.cache_clear()
    fastreid_logger._cached_log_stream.cache_clear()
