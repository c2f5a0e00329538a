"""What a model may be called where a checkpoint is expected: a path, a model that ships, or one of a hub.

Imports neither torch nor FastReID.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import did_you_mean
from . import hub

__all__ = ["SHIPPED", "folder_of_name", "is_name", "list_models", "unknown_name"]

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "models"


def list_models() -> list[str]:
    """Names of the trained models that ship with the package, for `create_model` and `Extractor.from_pretrained`."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def is_name(name: str | os.PathLike) -> bool:
    """Whether a model is called by a name: of the hub, or of `list_models`. What is there as a path is none."""
    text = os.fspath(name)
    return not Path(text).exists() and (text.startswith(hub.PREFIX) or text in list_models())


def folder_of_name(name: str | os.PathLike) -> Path:
    """The folder of files of a name for which `is_name` is true; those of a hub are fetched unless they are cached.

    Raises:
        ValueError, OSError: as `hub.fetch`.
    """
    from ..weights import PUBLISHED, PUBLISHED_CONFIG  # here: it imports torch

    text = os.fspath(name)
    return hub.fetch(text, PUBLISHED, PUBLISHED_CONFIG) if text.startswith(hub.PREFIX) else SHIPPED / text


def unknown_name(name: str | os.PathLike) -> str:
    """What is wrong with a name that is neither a path nor known, and what to write."""
    text, shipped = os.fspath(name), list_models()
    ours = f"{hub.PREFIX}ORG/MODEL of the hub, or one that ships ({', '.join(shipped)})"
    foreign = hub.is_repository(text) and not Path(text).suffix and not Path(text).parent.is_dir()
    own = f" For a model of the hub write {hub.PREFIX}{text}." if foreign else ""
    return (
        f"no checkpoint at {text or 'an empty name'}; name a .pth file, the folder of a finished run, {ours}.{own}"
        f"{did_you_mean(text, shipped)}"
    )
