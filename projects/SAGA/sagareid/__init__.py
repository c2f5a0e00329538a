"""SAGA-ReID for FastReID: patch tokens rebuilt from anchors in CLIP's text space (arXiv 2604.22190).

Importing the package registers its backbone, heads, meta-architecture and data sets with FastReID.
"""

import os

# Before torch loads OpenMP. Its threads spin at every barrier by default, and on a machine that is busy with anything else
# a step then waits for a thread that is not running: 30 times slower was measured. Threads that go to sleep at once cost
# a third of a small step; a short spin first is the faster on a quiet machine and, beside one busy process, on a busy one.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from . import compat

compat.install()  # before anything imports fastreid: the host does not import on current Python and PyTorch without it

from . import data, modeling  # noqa: E402,F401  (imported for what they register)
from .config import add_saga_config, check_config, get_cfg  # noqa: E402
from .synthetic import drawn  # noqa: E402,F401  (likewise)
from .version import __version__  # noqa: E402

__all__ = ["Extractor", "__version__", "add_saga_config", "check_config", "get_cfg"]


def __getattr__(name: str):
    """`Extractor` is imported when it is asked for: training needs none of it."""
    if name == "Extractor":
        from .deploy.extractor import Extractor

        return Extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
