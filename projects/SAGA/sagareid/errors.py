"""What a user reads of an error: what was found and what to do, in place of a library's own words."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterable

__all__ = [
    "did_you_mean",
    "disk_is_full",
    "first_few",
    "first_line",
    "lost_worker",
    "message_of",
    "out_of_memory",
    "printable",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# Errors whose text is meant for a reader; of any other class, the class is half of what there is to say.
_SPEAKING = (ValueError, OSError, RuntimeError, ImportError)
# Control characters (a terminal obeys them), bytes that were no UTF-8, and what turns the direction of the text
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str | os.PathLike) -> str:
    """A path or name that any log, table and page can hold: what would act on a terminal is escaped."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], os.fspath(text))


def first_line(text: object) -> str:
    """The first line of an error or a text that says something, without a terminal's colour codes; may be empty."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
    return printable(next((line.strip() for line in plain.splitlines() if line.strip()), ""))


def first_few(names: Iterable[object], limit: int, separator: str = ", ") -> str:
    """The first `limit` names in a line, printable, and how many more there are."""
    shown = [printable(str(name)) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return separator.join(shown[:limit]) + more


def did_you_mean(name: object, names: Iterable[object], limit: int = 1, cutoff: float = 0.6) -> str:
    """ " Did you mean X?", to end a message about a name that is none of `names`; empty where none is near."""
    close = difflib.get_close_matches(str(name), [str(known) for known in names], n=limit, cutoff=cutoff)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def message_of(error: BaseException) -> str:
    """What a user reads of an error, with nothing in it that a terminal obeys: names may come from files."""
    return "\n".join(map(printable, _message(error).split("\n")))


def _message(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if lost := lost_worker(error):
        return lost
    if out_of_memory(error):
        return (
            f"out of memory ({first_line(text)}). Take smaller batches: SOLVER.IMS_PER_BATCH in training, "
            "TEST.IMS_PER_BATCH in evaluation, --batch-size of a tool; or a smaller model or less data at once"
        )
    if isinstance(error, ModuleNotFoundError) and error.name == "fastreid":
        return "FastReID is not installed. pip install --no-deps fastreid==1.4.0 (its own metadata asks for torch 1.13)"
    if isinstance(error, KeyError):
        return f"missing {error}"
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        if full := disk_is_full(error):
            return f"{where}{full}. Make room, or name an output on another disk; whole files of before are untouched"
        if error.errno in _FORBIDDEN:
            return f"{where}{error.strerror}. Give yourself the rights to it, or name another place"
        return f"{where}{error.strerror or text}"
    return text if isinstance(error, _SPEAKING) else f"{type(error).__name__}: {text}"


def disk_is_full(error: BaseException) -> str:
    """The reason in words where an error is about a full disk, a quota or a file's largest size; empty otherwise."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    # safetensors and faiss wrap the system's error in one of their own, and PyTorch's writer of zip files drops it
    text = str(error)
    lost = "PytorchStreamWriter failed writing" in text or ("inline_container" in text and "unexpected pos" in text)
    return os.strerror(errno.ENOSPC) if lost or os.strerror(errno.ENOSPC) in text else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    torch = sys.modules.get("torch")  # where it was not imported, it raised nothing
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    # plain ones: a RuntimeError of ours that tells of another process's end has been put into words already
    return type(error) is RuntimeError and any(
        words in str(error) for words in ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def lost_worker(error: BaseException) -> str:
    """What to tell of PyTorch's error about a worker process that is gone; empty for any other error.

    PyTorch raises it from a signal handler, wherever the program is at that moment, so no loader can catch it.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return ""
    free = shutil.disk_usage("/dev/shm").free / 2**30 if os.path.isdir("/dev/shm") else None
    shared = "" if free is None else f" or shared memory (/dev/shm has {free:.1f} GiB free now)"
    return (
        f"{text.rstrip('.')}. A process that loads images is gone; the kernel ends one where memory{shared} runs out. "
        "Lower DATALOADER.NUM_WORKERS (0 loads in the training process itself) or the batch, then go on with --resume"
    )
