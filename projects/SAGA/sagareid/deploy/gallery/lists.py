"""Queries by images or by features, their ranked lists, and the answer that there is nobody."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...files import printable
from ..feature_set import FeatureSet
from ..matches import NOBODY, Match, nobody_below
from ..threshold import Threshold
from .base import Gallery, Model
from .ingest import model_of

__all__ = ["answers", "feature_queries", "image_queries", "matches", "summary"]

logger = logging.getLogger(__name__)


def matches(
    gallery: Gallery,
    names: Sequence[str],
    queries: np.ndarray,
    k: int,
    *,
    where: str = "",
    effort: int | None = None,
    folder: str | Path = "",
) -> list[list[Match]]:
    """The ranked list of each query, with paths. A query that is in the gallery is left out of its own list.

    The answer is NOBODY, of no similarity (NaN), where no image passes the filter.

    Args:
        where: filter of the gallery's images, see `filters`; empty: all.
        folder: where the gallery's images are now; empty: where it says.
    """
    lists, folder = [], folder or gallery.folder
    found = gallery.query(queries, k + 1 if k > 0 else k, where=where, effort=effort)  # one more, for the query itself
    for name, hits in zip(names, found):
        itself = os.path.abspath(name)
        others = [hit for hit in hits if os.path.abspath(Path(folder, hit.path)) != itself]
        ranked = [Match(name, i, hit.similarity, hit.path, hit.values) for i, hit in enumerate(others[:k], 1)]
        lists.append(ranked or [Match(name, 0, math.nan, NOBODY)])
    return lists


def image_queries(
    gallery: Gallery, images: Sequence[str | Path], checkpoint: str | Path, *, device: str = "auto"
) -> tuple[list[str], np.ndarray]:
    """Names and features of query images (files, or folders of them), extracted by the gallery's model.

    Raises:
        ValueError: the gallery is of another model, or none of the files can be read; others are logged.
    """
    from ..extract_folder import list_images, open_extractor  # here: searching by features needs no PyTorch

    files: list[str] = []
    for image in images:
        files += [str(Path(image, name)) for name in list_images(image)[0]] if Path(image).is_dir() else [str(image)]
    extractor, sha256 = open_extractor(checkpoint, device=device, dtype="auto", feature=gallery.model.feature or "auto")
    own = Model(extractor.width, sha256, extractor.feature, list(extractor.size))
    gallery.model.check(own, str(checkpoint))
    batches = list(extractor.iterate(files))
    for reason in (text for batch in batches for text in batch.unreadable.values()):
        logger.warning("left out: %s", reason)
    names = [files[place] for batch in batches for place in batch.indices]
    if not names:
        raise ValueError(f"none of the {len(files)} query image(s) can be read, such as {printable(files[0])}")
    return names, np.concatenate([batch.features.numpy() for batch in batches])


def feature_queries(gallery: Gallery, features: FeatureSet) -> tuple[list[str], np.ndarray]:
    """Names and features of extracted queries.

    Raises:
        ValueError: the gallery is of another model.
    """
    gallery.model.check(model_of(features), str(features.path))
    names, queries = features.whole()
    return [str(Path(features.folder, name)) for name in names], queries


def answers(gallery: Gallery, lists: Sequence[Sequence[Match]], threshold: Threshold) -> list[list[Match]]:
    """Ranked lists down to a threshold; NOBODY where none reaches it.

    Warns of a gallery from elsewhere, and of an index whose similarities are approximate.

    Raises:
        ValueError: the threshold is of another model than the gallery.
    """
    threshold.check_model(gallery.model.checkpoint_sha256, gallery.model.feature, "the gallery")
    threshold.warn_elsewhere(gallery.folder)
    if gallery.approximate:
        logger.warning("similarities of this index are approximate, the threshold is exact: use --index hnsw")
    return nobody_below(lists, threshold.value)


def summary(gallery: Gallery) -> str:
    """The gallery in a line or two."""
    about = gallery.describe()
    line = f"{about['kind']}, {about['count']} vectors of {about['width']}"
    if "bytes_per_vector" in about:
        line += f", {about['bytes_per_vector']:.0f} bytes each, {about['memory_bytes'] / 2**20:.1f} MiB"
    if "disk_bytes" in about:
        line += f"; {about['disk_bytes'] / 2**20:.1f} MiB on the disk"
    if about["columns"]:
        line += "\ncolumns: " + ", ".join(f"{name} ({kind})" for name, kind in about["columns"].items())
    return line
