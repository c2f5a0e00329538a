"""Files that are whole or absent, and outputs that are seen to be writable before the work begins."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import disk_is_full

__all__ = ["check_output", "file_hash", "printable", "save_torch", "write_atomically", "write_json", "write_text"]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str | os.PathLike) -> str:
    """A path or name that any log, table and page can hold: control characters, and bytes that are no UTF-8,
    escaped."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], os.fspath(text))


def check_output(path: str | Path, *, folder: bool = False) -> Path:
    """See that a file, or a `folder`, can be written, before the work whose result goes there. Leaves nothing behind.

    Returns:
        `path`, for chaining.

    Raises:
        OSError: it cannot; the message says why.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(*((errno.ENOTDIR, "it is a file") if folder else (errno.EISDIR, "it is a folder")))
        there = path if path.is_dir() else path.parent
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            return path
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = disk_is_full(error) or error.strerror
    return type(error)(f"cannot write {path} ({reason}). Name another output, or make room or rights for this one")


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Call `write(temporary_path)` in the folder of `path`, then rename: the file is old, new, or absent, never
    partial.

    Missing folders are made.

    Raises:
        OSError: it cannot be written, or the disk is full; what was there before is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(descriptor)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if disk_is_full(error):
            raise _unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


def save_torch(path: str | Path, value: Any) -> None:
    """`write_atomically` by `torch.save`."""
    import torch

    write_atomically(path, lambda temporary: torch.save(value, temporary))


def write_text(path: str | Path, text: str) -> None:
    """`write_atomically` of a text, in UTF-8."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """`write_atomically` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
