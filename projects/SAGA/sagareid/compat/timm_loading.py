"""timm's loading of weights, put off until a model has the size that a file was trained with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import _builder
from torch import nn

__all__ = ["postponed_loading"]


@contextmanager
def postponed_loading() -> Iterator[list[dict[str, Any]]]:
    """Let ``timm.create_model(pretrained=True)`` inside the scope build without loading; yields the arguments of each
    call of ``timm.models.load_pretrained`` that it left out, but for the model.

    Why: an architecture's filter of checkpoints, which renames foreign keys and resamples position embeddings, is
    handed to the loader by models/_builder.py:build_model_with_cfg and kept nowhere.
    Goes when: timm keeps the filter with the model.
    """
    load, calls = _builder.load_pretrained, []

    def note(model: nn.Module, **arguments: Any) -> None:
        calls.append(arguments)

    _builder.load_pretrained = note
    try:
        yield calls
    finally:
        _builder.load_pretrained = load
