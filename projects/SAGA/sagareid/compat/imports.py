"""Importing FastReID, and the warnings that its own calls raise."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hide_storage_warning", "import_fastreid", "legacy_names", "quiet_host"]

_ABSENT = object()
_STORAGE = "TypedStorage is deprecated"


@contextmanager
def legacy_names() -> Iterator[None]:
    """Lend ``torch._six`` and ``collections.Mapping`` to the code inside, then put back what was there.

    Why: fastreid/data/build.py:11-12 and evaluation/testing.py:5 import names that torch 2.0 and Python 3.10 removed.
    Goes when: a FastReID release imports them from where they live now.
    """
    six = types.ModuleType("torch._six")
    six.string_classes = (str, bytes)
    old_six = sys.modules.get("torch._six", _ABSENT)
    old_mapping = vars(collections).get("Mapping", _ABSENT)
    sys.modules["torch._six"] = six
    collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        if old_six is _ABSENT:
            del sys.modules["torch._six"]
        else:
            sys.modules["torch._six"] = old_six
        if old_mapping is _ABSENT:
            del collections.Mapping
        else:
            collections.Mapping = old_mapping


def import_fastreid() -> None:
    """Import the three packages of FastReID that need `legacy_names`; later imports find them loaded.

    Goes when: `legacy_names` goes.
    """
    with legacy_names(), quiet_host():
        for name in ("fastreid.data", "fastreid.evaluation", "fastreid.engine"):
            importlib.import_module(name)


@contextmanager
def quiet_host() -> Iterator[None]:
    """Hide, inside the scope, the deprecation warnings that FastReID's own calls raise and a user cannot act on.

    Why: data/transforms/functional.py:46 (TypedStorage), engine/train_loop.py:327 (cuda.amp), utils/compute_dist.py:183
    (addmm_ argument order).
    Goes when: a FastReID release stops making those calls.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_STORAGE)
        warnings.filterwarnings("ignore", message=r"`torch\.cuda\.amp\.\w+\(args", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"This overload of addmm_ is deprecated")
        yield


def hide_storage_warning() -> None:
    """Hide the first of `quiet_host`'s warnings for the life of the process.

    Why: data/transforms/functional.py:46 raises it for every image, and several threads may share an `Extractor`, among
    whom a scope of `warnings` is not safe.
    Goes when: FastReID's ToTensor reads an image without ``torch.ByteStorage``.
    """
    warnings.filterwarnings("ignore", message=_STORAGE)
