"""Shards of a running extraction into a gallery as they are finished, each exactly once.

A shard is finished when its file is there: tools/extract.py renames it into its place when it is whole. Its name in the
gallery (`Gallery.sources`) is the extraction's key and its number, so that whoever adds it, however often, adds it
once: the gallery keeps images and name in one step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...files import DamagedFile, read_json
from ..feature_set import FeatureSet, about_parquet, whole_parquet
from ..options import MANIFEST, REMEDY_OF_MANIFEST
from .base import Added, Gallery, create, open_gallery
from .ingest import add, columns_of, model_of

__all__ = ["open_or_create", "watch"]

WAIT = 10.0  # seconds between two looks


def open_or_create(address: str | Path, features: FeatureSet, *, kind: str, memory_gib: float) -> Gallery:
    """The gallery at an address; an empty one for such features where there is none."""
    try:
        return open_gallery(address)
    except FileNotFoundError:
        pass
    try:
        options: dict[str, Any] = {"folder": features.folder, "kind": kind, "memory_gib": memory_gib}
        return create(address, model_of(features), columns_of(features), **options)
    except FileExistsError:  # another process was quicker
        return open_gallery(address)


def watch(
    address: str | Path,
    folder: str | Path,
    images: str | Path | None = None,
    *,
    replace: bool = False,
    kind: str = "auto",
    memory_gib: float = 4.0,
    wait: float = WAIT,
) -> Iterator[tuple[str, Added]]:
    """Add the shards of a folder as they are finished, until all that its manifest counts are in the gallery.

    A folder, a manifest or shards that are not there yet are waited for.

    Args:
        images, replace: as of `ingest.add`.
        kind, memory_gib: of the gallery, where there is none yet.
        wait: seconds between two looks.

    Yields:
        The name of a shard that was added, and what came of it.

    Raises:
        ValueError: shards of another model, or without the gallery's columns.
    """
    folder = Path(folder)
    gallery: Gallery | None = None
    while True:
        left = 1  # the manifest
        if (folder / MANIFEST).exists():
            need = {"key": str, "shards": int}
            about = read_json(folder / MANIFEST, remedy=REMEDY_OF_MANIFEST, required=need)
            left = about["shards"]
            for number in range(about["shards"]):
                shard = folder / f"part-{number:05d}-of-{about['shards']:05d}.parquet"
                if not _is_finished(shard, about["key"]):
                    continue
                features = FeatureSet(shard)
                if gallery is None:
                    gallery = open_or_create(address, features, kind=kind, memory_gib=memory_gib)
                    there = gallery.sources()
                source = f"{about['key']} {number}"
                if source not in there:
                    yield shard.name, add(gallery, features, images, replace=replace, source=source)
                    there.add(source)
                left -= 1
        if not left:
            return
        time.sleep(wait)


def _is_finished(shard: Path, key: str) -> bool:
    """Whether a shard is there, and of this extraction: an earlier one's may lie in its place until it is updated."""
    if not shard.exists():
        return False
    try:
        with whole_parquet(shard):
            return about_parquet(pq.read_schema(shard), shard).get("key") == key
    except (FileNotFoundError, DamagedFile):  # it is replaced this moment, or extracted again
        return False
