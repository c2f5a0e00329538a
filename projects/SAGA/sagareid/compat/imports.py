"""Importing FastReID, and the warnings that its own calls raise."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.abc
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from . import ranking

__all__ = ["FastReIDFinder", "hide_storage_warning", "legacy_names", "quiet_host"]

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


class FastReIDFinder(importlib.abc.MetaPathFinder):
    """Looks after the import of a few modules of FastReID; where they lie, the other finders say.

    Why: (1) three of its packages do not import on current Python and PyTorch (`legacy_names`); (2) a script that has
    imported sagareid finds our heads and data sets in FastReID's registries, yet must not pay for FastReID, torchvision
    and scikit-learn (5 s) where it only reads features or prints a help text; (3) the modules of `ranking` are not
    there. Goes when: (1) `legacy_names` goes; (2) FastReID discovers plug-ins; (3) FastReID ships its ranking compiled.

    Args:
        registers: package of FastReID -> modules of ours that register with it; they are imported right after it.
    """

    LEGACY = ("fastreid.data", "fastreid.evaluation", "fastreid.engine")

    def __init__(self, registers: Mapping[str, Sequence[str]]):
        self.registers = registers

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in (*self.LEGACY, *ranking.MODULES, *self.registers):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if fullname in ranking.MODULES:  # one that the user compiled FastReID's way counts
            return spec or ranking.make_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._executing(spec.loader.exec_module)
        return spec

    def _executing(self, execute: Callable[[types.ModuleType], None]) -> Callable[[types.ModuleType], None]:
        """`execute`, a loader's own, with the names that the module lacks before and our modules after."""

        def exec_module(module: types.ModuleType) -> None:
            with legacy_names(), quiet_host():
                execute(module)
            for ours in self.registers.get(module.__name__, ()):
                importlib.import_module(ours)

        return exec_module


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
