"""Bridges to FastReID 1.4.0 on current Python and PyTorch: one function or class each, FastReID's files untouched.

What FastReID, open_clip and PyTorch do not offer by a public name is touched here and nowhere else
(tests/test_host_privates.py holds that). Each bridge says why it exists, at which line of FastReID, and when it can go.

    imports      what FastReID needs in order to be imported, and the warnings of its own calls
    ranking      its compiled ranking
    data         its registries, its data root and its sampler
    pretraining  its loading of weights
    solver       its optimizer
    trainer      its trainer's parts
    processes    its process groups and log files

What a scope can hold is undone when the scope ends. Two things stay for the life of the process: one import finder that
answers for two names (`provide_cython_ranking`), and, once an `Extractor` is imported, one filter of warnings
(`hide_storage_warning`).
"""

from .data import dataset_root, end_workers, registered, train_sampler
from .imports import hide_storage_warning, import_fastreid, legacy_names, quiet_host
from .pretraining import checked_pretraining
from .processes import as_one_process, close_logs, forget_groups, set_machine_group
from .ranking import cython_ranking_active, provide_cython_ranking
from .solver import build_optimizer

__all__ = [
    "as_one_process",
    "build_optimizer",
    "checked_pretraining",
    "close_logs",
    "cython_ranking_active",
    "dataset_root",
    "end_workers",
    "forget_groups",
    "hide_storage_warning",
    "import_fastreid",
    "install",
    "legacy_names",
    "provide_cython_ranking",
    "quiet_host",
    "registered",
    "set_machine_group",
    "train_sampler",
]


def install() -> None:
    """Make FastReID importable and its ranking fast. Called first by ``sagareid/__init__.py``; may be repeated."""
    provide_cython_ranking()
    import_fastreid()
