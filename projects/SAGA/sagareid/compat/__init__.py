"""Bridges to FastReID 1.4.0 on current Python and PyTorch: one function or class each, FastReID's files untouched.

What FastReID, open_clip and PyTorch do not offer by a public name is touched here and nowhere else
(tests/test_host_privates.py holds that). Each bridge says why it exists, at which line of FastReID, and when it can go.

    imports      what FastReID needs in order to be imported, and the warnings of its own calls
    ranking      its compiled ranking
    data         its registries, its data root and its sampler
    pretraining  its loading of weights, and its settings of backbones
    timm_loading  timm's loading of weights
    solver       its optimizer
    trainer      its trainer's parts
    processes    its process groups and log files

Importing this package imports neither PyTorch nor FastReID; `pretraining` and `trainer` do, and are imported by name.

What a scope can hold is undone when the scope ends. Two things stay for the life of the process: one import finder that
looks after a few of FastReID's modules (`FastReIDFinder`), and, once an `Extractor` is imported, one filter of warnings
(`hide_storage_warning`).
"""

import importlib
import sys
from collections.abc import Mapping, Sequence

from .data import dataset_root, from_workers, registered, train_sampler
from .imports import FastReIDFinder, hide_storage_warning, legacy_names, quiet_host
from .processes import as_one_process, close_logs, forget_groups, gather_rows, quiet_logs, set_machine_group
from .ranking import cython_ranking_active
from .solver import build_optimizer

__all__ = [
    "FastReIDFinder",
    "as_one_process",
    "build_optimizer",
    "close_logs",
    "cython_ranking_active",
    "dataset_root",
    "forget_groups",
    "from_workers",
    "gather_rows",
    "hide_storage_warning",
    "install",
    "legacy_names",
    "quiet_host",
    "quiet_logs",
    "registered",
    "set_machine_group",
    "train_sampler",
]


def install(registers: Mapping[str, Sequence[str]]) -> None:
    """Make FastReID importable, its ranking fast, and our parts follow its registries. Imports nothing by itself.

    Called first by ``sagareid/__init__.py``; may be repeated.

    Args:
        registers: package of FastReID -> modules of ours that register with it. They are imported right after it, or
            now where it has been imported already.
    """
    if not any(isinstance(finder, FastReIDFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, FastReIDFinder(registers))
    for package, modules in registers.items():
        if package in sys.modules:
            for module in modules:
                importlib.import_module(module)
