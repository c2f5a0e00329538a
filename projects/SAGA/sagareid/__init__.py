"""SAGA-ReID for FastReID: patch tokens rebuilt from anchors in CLIP's text space (arXiv 2604.22190).

Importing the package imports neither PyTorch nor FastReID. From then on, FastReID's registries have our backbone,
heads, meta-architecture and data sets: whoever imports fastreid.modeling or fastreid.data imports ours with it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

# Before torch loads OpenMP. Its threads spin at every barrier by default, and on a machine that is busy with anything
# else a step then waits for a thread that is not running: 30 times slower was measured. Threads that go to sleep at
# once cost a third of a small step; a short spin first is the faster on a quiet machine and, beside one busy process,
# on a busy one.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from . import compat
from .version import __version__

if TYPE_CHECKING:
    from .config import add_saga_config, get_cfg
    from .config_checks import check_config
    from .deploy.extractor import Extractor
    from .deploy.feature_model import create_model
    from .deploy.names import list_models
    from .reports.publish import save_pretrained

__all__ = [
    "Extractor",
    "__version__",
    "add_saga_config",
    "check_config",
    "create_model",
    "get_cfg",
    "list_models",
    "save_pretrained",
]

compat.install(
    {
        "fastreid.modeling": ("sagareid.modeling", "sagareid.evaluation.features"),
        "fastreid.data": ("sagareid.data.datasets", "sagareid.synthetic.drawn"),
    }
)

_HOMES = {
    "Extractor": ".deploy.extractor",
    "add_saga_config": ".config",
    "check_config": ".config_checks",
    "create_model": ".deploy.feature_model",
    "get_cfg": ".config",
    "list_models": ".deploy.names",
    "save_pretrained": ".reports.publish",
}


def __getattr__(name: str):
    """What the package exports is imported when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
