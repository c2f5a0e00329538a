"""Trained models that are studied side by side, by name and by what their metrics depend on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..deploy.load import checkpoint_file, load_model
from ..deploy.names import is_name
from ..engine.extraction import share_towers
from ..evaluation.features import available_features, result_feature
from ..modeling.build import fingerprint, model_layout
from ..weights import load_state
from .options import AUTO

__all__ = ["Model", "load_models", "named_path"]


@dataclass
class Model:
    """A trained model.

    Attributes:
        name: models that share a name are seeds of one config; their metrics are averaged query by query.
        path: the folder or file that it was loaded from.
        key: digits of its weights and of the settings that its metrics depend on.
    """

    name: str
    path: str
    cfg: Any
    model: nn.Module
    key: str

    @property
    def head(self) -> str:
        """The class of its head; of the whole model where that has no head of its own, such as FastReID's MGN."""
        return type(self.model.heads).__name__ if hasattr(self.model, "heads") else type(self.model).__name__

    def feature(self, wanted: str, width: int) -> str | None:
        """What the evaluation calls a wanted feature, which may be "auto"; None where the model does not give it."""
        layout = model_layout(self.model, width)
        if wanted == AUTO:
            return result_feature(self.cfg, layout)
        return wanted if wanted in available_features(layout) else None


def named_path(text: str) -> tuple[str, Path]:
    """Name and path of ``[NAME=]PATH``; an empty name where there is none.

    What is there as a whole is a path, whatever ``=`` it has (``logs/lr=0.1/anchors``); else the name ends at the first
    ``=`` behind which something is there.
    """
    places = [i for i, character in enumerate(text) if character == "="]
    if not places or Path(text).exists():
        return "", Path(text)
    place = next((i for i in places if Path(text[i + 1 :]).exists()), places[0])
    return text[:place], Path(text[place + 1 :])


def load_models(weights: Sequence[str], cfg: Any | None = None, device: str | None = None) -> list[Model]:
    """Models by ``[NAME=]PATH``, the folder of a run, a .pth file, or the name of a model.

    Without a name, a model is called after its folder and the folder's parent; after the parent alone where the folder
    is ``seed_<n>``, as tools/compare.py writes it, so that the seeds of a config share a name.

    Args:
        cfg: for checkpoints that hold no configuration.

    Raises:
        ValueError: one of them is given twice, or does not fit its configuration.
    """
    models: list[Model] = []
    for text in weights:
        name, path = named_path(text)
        folder = path if path.is_dir() or not path.suffix else path.parent
        if not name and is_name(path):
            name = str(path)
        if not name:
            parent, own_name = folder.resolve().parts[-2:]
            name = parent if re.fullmatch(r"seed_\d+", own_name) else f"{parent}/{own_name}"
        holds_config = path.is_dir() or "config" in load_state(checkpoint_file(path))
        own_cfg, model = load_model(path, None if holds_config else cfg, device)
        key = fingerprint(model.state_dict(), own_cfg.MODEL, own_cfg.INPUT, own_cfg.TEST)
        if key in [m.key for m in models]:
            raise ValueError(f"{path} is given twice, or equals another of the models in weights and settings")
        models.append(Model(name, str(path), own_cfg, model, key))
    share_towers([(m.cfg, m.model) for m in models])
    return models
