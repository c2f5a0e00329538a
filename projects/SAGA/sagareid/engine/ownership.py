"""A folder belongs to one job at a time: a lock that ends with the job's last process, whatever ends it, and a note of
who holds it.

The lock is the kernel's, on an open file (flock), so a process that is killed leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import shutil
import socket
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import reduction
from pathlib import Path

__all__ = ["FolderLock", "FolderTaken", "owned_folders"]

logger = logging.getLogger(__name__)

# Seconds in which the processes of a job whose owner was killed see it and end.
FAREWELL = 10.0
# What flock says where it is not possible: some network file systems.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class FolderTaken(RuntimeError):
    """Another job owns the folder; the message says which process, where, and since when."""


class FolderLock:
    """The right to write into a folder, for as long as a process that has this object lives.

    Handed to a process that this one starts, it is held by that process too. Processes that fork off either, such as
    the workers of a loader, do not hold it.
    """

    FILE = "run.lock"

    def __init__(self, folder: Path):
        """Make the folder where it is missing, and own it.

        Raises:
            FolderTaken: another job does.
        """
        self.folder = folder
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        limit = None
        while (descriptor := self._try()) is None:
            owner = _read_note(self.path)
            if limit is None:
                limit = time.monotonic() + (FAREWELL if _is_gone(owner) else 0)
            if time.monotonic() >= limit:
                raise FolderTaken(
                    f"{folder} belongs to a job that is running: {_in_words(owner)}. Wait for it, end it, or give "
                    "this run another OUTPUT_DIR"
                )
            time.sleep(0.1)
        self._descriptor = descriptor
        _held.add(self)

    @property
    def path(self) -> Path:
        return self.folder / self.FILE

    def _try(self) -> int | None:
        """The descriptor of the locked file; None where another process has locked it."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # its last owner has just removed the folder
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                logger.warning(
                    "%s cannot be locked (%s): see to it that one job at a time writes there",
                    self.folder,
                    error.strerror,
                )
            if _is_file(descriptor, self.path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_note(), indent=1).encode())
                return descriptor
            os.close(descriptor)  # its last owner has deleted it, or moved the folder, in the meantime

    def move(self, target: Path, names: Sequence[str] | None = None) -> FolderLock:
        """Move the folder, or files of it, to a folder that is not there yet; the lock of the folder in its place.

        Args:
            names: of the files; None for the folder as a whole.
        """
        if names is not None:
            target.mkdir()
            for name in names:
                shutil.move(self.folder / name, target / name)
            return self
        self.folder.rename(target)
        lock = FolderLock(self.folder)
        lock._made = self._made
        self.folder, self._made = target, []
        self.release()
        return lock

    def release(self) -> None:
        """Give the folder free, and leave nothing in it that was made by owning it."""
        if self._descriptor < 0:
            return
        if _is_file(self._descriptor, self.path):
            self.path.unlink()
        self._close()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # it holds something by now
                break

    def _close(self) -> None:
        _held.discard(self)
        os.close(self._descriptor)
        self._descriptor = -1

    def __reduce__(self):
        return _received, (self.folder, reduction.DupFd(self._descriptor))


def _received(folder: Path, descriptor) -> FolderLock:
    """A lock in a process that was handed it. It is the sender's to release."""
    lock = FolderLock.__new__(FolderLock)
    lock.folder, lock._made, lock._descriptor = folder, [], descriptor.detach()
    _held.add(lock)
    return lock


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _drop_in_fork() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_drop_in_fork)


@contextmanager
def owned_folders(folders: Sequence[Path], *, fresh: bool) -> Iterator[list[FolderLock]]:
    """Own folders inside the scope.

    Args:
        fresh: what was trained in them is moved out of the way, to `<name>.before-<time>`: nothing is overwritten.

    Raises:
        FolderTaken: another job owns one of them; all are as they were.
    """
    with ExitStack() as stack:
        locks = []
        for folder in dict.fromkeys(folders):
            locks.append(FolderLock(folder))
            stack.callback(locks[-1].release)
        if fresh:
            locks = [_set_aside(lock) for lock in locks]
            for lock in locks:
                stack.callback(lock.release)
        yield locks


def _free_name(path: Path) -> Path:
    """The path, or with `-2`, `-3` ... behind it where something is there: two runs may end within a second."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _set_aside(lock: FolderLock) -> FolderLock:
    folder = lock.folder
    if not any(folder.glob("*.pth")):
        return lock
    aside = _free_name(folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    # the folder of a run without stages may hold those of other runs, and they stay
    apart = (folder / "config.yaml").is_file() and any(path.is_dir() for path in folder.iterdir())
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name != FolderLock.FILE]
    lock = lock.move(aside, names if apart else None)
    print(f"{folder} held an earlier run; it is now {aside}. Use --resume to go on with a run instead.")
    return lock


# ---- who holds a lock
# --------------------------------------------------------------------------------------------------


def _note() -> dict[str, str | int]:
    return {"process": os.getpid(), "machine": socket.gethostname(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read_note(path: Path) -> dict[str, str | int]:
    """The owner's note; empty where it is not written yet, or gone by now."""
    try:
        note = json.loads(path.read_text())
        return note if isinstance(note, dict) else {}
    except (OSError, ValueError):
        return {}


def _in_words(note: dict[str, str | int]) -> str:
    if not note:
        return "it has begun this moment"
    return f"process {note.get('process')} on {note.get('machine')}, started {note.get('start')}"


def _is_gone(note: dict[str, str | int]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if note.get("machine") != socket.gethostname() or not isinstance(note.get("process"), int):
        return False
    try:
        os.kill(note["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
