"""Files that are whole or absent, and outputs that are seen to be writable before the work begins."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import disk_is_full, first_line, out_of_memory, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DamagedFile",
    "check_output",
    "damaged",
    "file_hash",
    "json_output",
    "parse_json",
    "read_json",
    "read_npz",
    "read_record",
    "read_utf8",
    "read_yaml",
    "save_torch",
    "sync_folder",
    "write_atomically",
    "write_json",
    "write_text",
]

Record = TypeVar("Record")


def json_output(path: str | Path | None) -> Callable[[Any], None]:
    """What keeps measurements in a JSON file as they come, seen to be writable now; without a path it keeps nothing.

    Raises:
        OSError: the file cannot be written, see `check_output`.
    """
    if not path:
        return lambda measured: None
    check_output(path)
    return lambda measured: write_json(path, measured)


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


def sync_folder(folder: str | Path) -> None:
    """See that the names of a folder's files are on the disk, too: a renamed file is then there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


# ---- files beside weights, features and data: read whole, or refused with what is wrong and what to do ---------------


class DamagedFile(ValueError):
    """A file is not what was written; the message names it, what is wrong with it, and what to do."""


# What a value of JSON is called.
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def damaged(path: str | os.PathLike, wrong: str, remedy: str) -> DamagedFile:
    """The error to raise about a file. wrong: a sentence without its stop; remedy: one or more with theirs, or none."""
    return DamagedFile(f"{printable(path)} is damaged: {wrong}. {remedy}")


def read_utf8(path: str | Path, *, remedy: str, may_be_empty: bool = False) -> str:
    """The text of a file, which must be UTF-8 and, unless it may be empty, hold something.

    Raises:
        DamagedFile: it is not, or it is empty. OSError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start} is no UTF-8", remedy) from error
    if not (may_be_empty or text.strip()):
        raise damaged(path, "it is empty", remedy)
    return text


def parse_json(
    text: str, origin: str | os.PathLike, *, remedy: str, kind: type = dict, required: Mapping[str, Any] | None = None
) -> Any:
    """The value of a JSON text.

    Args:
        origin: the file that holds it, for the message.
        kind: `dict`, `list` or `float`, what the value must be.
        required: fields of the object, or of every object of the list, and their types.

    Raises:
        DamagedFile: it is no JSON, of another kind, or lacks a field.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        cut = getattr(error, "pos", 0) >= len(text.rstrip()) or "Unterminated" in str(error)
        wrong = "it ends in the middle" if cut else f"it is no JSON ({error})"
        raise damaged(origin, wrong, remedy) from error
    if not _fits(value, kind):
        raise damaged(origin, f"it holds {_kind(value)}, expected {_KINDS[kind]}", remedy)
    for number, entry in enumerate(value if kind is list and required else [value] if required else []):
        place = f"entry {number}" if kind is list else "it"
        if not isinstance(entry, dict):
            raise damaged(origin, f"{place} is {_kind(entry)}, expected an object", remedy)
        for name, wanted in (required or {}).items():
            _check_field(entry, name, wanted, place, origin, remedy)
    return value


def _check_field(entry: dict, name: str, wanted: Any, place: str, origin: str | os.PathLike, remedy: str) -> None:
    if name not in entry:
        raise damaged(origin, f"{place} has no field {name!r}", remedy)
    if not _fits(entry[name], wanted):
        wrong = f"the field {name!r} of {place} is {_kind(entry[name])}, expected {_KINDS[_plain(wanted)]}"
        raise damaged(origin, wrong, remedy)


def _plain(wanted: Any) -> Any:
    """dict of dict[str, int]; other types as they are."""
    return typing.get_origin(wanted) or wanted


def _fits(value: Any, wanted: Any) -> bool:
    wanted = _plain(wanted)
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def _kind(value: Any) -> str:
    return next(name for kind, name in _KINDS.items() if isinstance(value, kind))


def read_json(path: str | Path, *, remedy: str, kind: type = dict, required: Mapping[str, Any] | None = None) -> Any:
    """The value of a JSON file. Arguments and errors as of `parse_json` and `read_utf8`."""
    return parse_json(read_utf8(path, remedy=remedy), path, remedy=remedy, kind=kind, required=required)


def read_record(cls: type[Record], path: str | Path, *, remedy: str) -> Record:
    """A dataclass that `write_json` wrote as its fields.

    Raises:
        DamagedFile: as `read_json`, or a field that the class does not have. OSError: it cannot be read.
    """
    types = typing.get_type_hints(cls)
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore
    found = read_json(path, remedy=remedy, required={name: types[name] for name in needed})
    if unknown := sorted(found.keys() - types.keys()):
        raise damaged(path, f"its field {unknown[0]!r} is not known to this version", remedy)
    for name, value in found.items():
        _check_field({name: value}, name, types[name], "it", path, remedy)
    return cls(**found)


def read_yaml(path: str | Path, *, remedy: str) -> dict[str, Any]:
    """The mapping of a YAML file. Errors as of `read_json`."""
    import yaml

    try:
        value = yaml.safe_load(read_utf8(path, remedy=remedy))
    except yaml.YAMLError as error:
        raise damaged(path, f"it is no YAML ({' '.join(str(error).split())})", remedy) from error
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {_KINDS.get(type(value), 'a text')}, expected KEY: VALUE pairs", remedy)
    return value


def read_npz(path: str | Path, *, remedy: str, only: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; those of `only` that it has, or all.

    Raises:
        DamagedFile: it is none, or an array cannot be read. OSError: it cannot be read.
    """
    import numpy as np

    if not Path(path).stat().st_size:
        raise damaged(path, "it is empty", remedy)
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files if only is None or name in only}
    except Exception as error:  # of any class: what other bytes happen to mean to zipfile, zlib and NumPy
        if out_of_memory(error) or isinstance(error, PermissionError):
            raise
        wrong = f"it is no whole .npz file ({first_line(error) or type(error).__name__})"
        raise damaged(path, wrong, remedy) from error
