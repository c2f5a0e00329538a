"""Extracted features into a gallery, as a whole or as they come."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from ...errors import first_few
from ..feature_set import FeatureSet
from .base import Added, Batch, Gallery, Model, create
from .columns import kind_of, to_kind

__all__ = ["add", "batches", "build", "columns_of", "model_of"]

logger = logging.getLogger(__name__)


def model_of(features: FeatureSet) -> Model:
    """The fingerprint of the model that features are of."""
    return Model(features.width, features.checkpoint_sha256, features.feature, features.size)


def columns_of(features: FeatureSet) -> dict[str, str]:
    """The kind of each column of metadata.

    Raises:
        ValueError: a column that is neither text, number, time nor boolean.
    """
    return {field.name: kind_of(field.name, field.type) for field in features.schema if field.name != "id"}


def batches(
    features: FeatureSet, columns: Mapping[str, str], prefix: str = "", description: str = "adding"
) -> Iterator[Batch]:
    """Features as a gallery takes them. The id of an image is its path, unless there is a column `id`.

    Args:
        columns: of the gallery. A column of the features beyond them is left out.
        prefix: folder that paths are put behind; "" leaves them as they are.

    Raises:
        ValueError: a column is missing, or has values of another kind.
    """
    if lacking := [name for name in columns if name not in features.schema.names]:
        raise ValueError(
            f"{features.path} has no column {lacking[0]!r}, which the gallery has; extract it with the same --metadata "
            "and --pattern"
        )
    own_id = "id" in features.schema.names
    with tqdm(total=features.count, desc=description, unit="img", disable=None) as bar:
        for rows, values in features.rows([*(["id"] if own_id else []), *columns]):
            path = rows["path"]
            if prefix:
                path = pa.array([str(Path(prefix, name)) for name in path.to_pylist()], pa.string())
            table: dict[str, Any] = {"id": rows["id"].cast(pa.string()) if own_id else path, "path": path}
            table |= {name: to_kind(name, rows[name], kind, str(features.path)) for name, kind in columns.items()}
            yield Batch(pa.table(table), values)
            bar.update(len(rows))


def build(
    features: FeatureSet, address: str | Path, *, kind: str = "auto", memory_gib: float = 4.0, replace: bool = True
) -> Gallery:
    """Make a gallery of features; one that is there is replaced at the last moment, when the new one is whole.

    Args:
        kind: of index; "auto" leaves it to the engine.
        memory_gib: memory that the index and its building may take.

    Raises:
        ValueError: no features, an unknown kind, or one that does not fit the memory.
    """
    if not features.count:
        raise ValueError(f"{features.path} holds no feature, so there is nothing to search")
    columns = columns_of(features)
    return create(
        address,
        model_of(features),
        columns,
        folder=features.folder,
        kind=kind,
        memory_gib=memory_gib,
        batches=lambda: batches(features, columns, description="building"),
        count=features.count,
        replace=replace,
    )


def add(
    gallery: Gallery,
    features: FeatureSet,
    images: str | Path | None = None,
    *,
    replace: bool = False,
    source: str = "",
) -> Added:
    """Add features to a gallery. Images that it has already stay as they are, so that this may be repeated.

    Paths are kept relative to the folder of the images where both are of one folder, and made absolute otherwise.

    Args:
        images: where the images of the gallery are now; None: where it says. It is kept, too.
        replace: put new features in the place of earlier ones of the same image.
        source: see `Gallery.add`.

    Raises:
        ValueError: features of another model, or without the gallery's columns.
    """
    gallery.model.check(model_of(features), str(features.path))
    if further := [name for name in columns_of(features) if name not in gallery.columns]:
        logger.warning(
            "%s has columns that the gallery lacks: %s. They are left out; a gallery that is built anew has them",
            features.path,
            first_few(further, 9),
        )
    where = gallery.folder if images is None else os.fspath(Path(images).resolve())
    prefix = features.folder if features.folder != where else ""
    found: Iterable[Batch] = batches(features, gallery.columns, prefix)
    return gallery.add(found, replace=replace, source=source, folder=None if images is None else where)
