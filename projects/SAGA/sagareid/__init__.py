"""SAGA-ReID for FastReID: patch tokens rebuilt from anchors in CLIP's text space (arXiv 2604.22190).

Importing the package registers its backbone, heads, meta-architecture and data sets with FastReID.
"""

from . import compat

compat.install()  # before anything imports fastreid: the host does not import on current Python and PyTorch without it

from . import data, modeling  # noqa: E402,F401  (imported for what they register)
from .config import add_saga_config, check_config, get_cfg  # noqa: E402

__version__ = "1.0.0"
__all__ = ["add_saga_config", "check_config", "get_cfg"]
