"""The next state of a gallery in a folder, while its files are written. n rows, F feature width."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace as changed
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..faiss_kinds import LEAST, choose_kind, empty_index
from .base import Added
from .store import Manifest, Snapshot, Store, rows_schema

__all__ = ["Writing"]

logger = logging.getLogger(__name__)

TAIL = 20_000  # rows behind the index; from here on, and from a tenth of the indexed, they are added to it
RETRAIN = 4  # times as many rows as it was trained with: a quantised index is trained anew
MERGE = 2**20  # rows up to which small segments are written together


class Writing:
    """The next state of a gallery. Nothing is seen of it before `Store.commit`.

    Attributes:
        manifest: of the next state, so far.
    """

    def __init__(self, store: Store, snapshot: Snapshot, manifest: Manifest, loaded: Callable[[], Any] = lambda: None):
        self.store, self.snapshot, self.manifest, self._loaded = store, snapshot, manifest, loaded
        self.index: Any = None

    @property
    def _name(self) -> str:
        return f"{self.manifest.number:06d}"

    def append(self, batches: Iterable[tuple[pa.Table, np.ndarray]], *, replace: bool, expected: int = 0) -> Added:
        """Write images as a segment, together with small segments before it; see `Gallery.add`.

        Args:
            expected: how many there will be, where it is known: it decides whether float16 is kept.
        """
        schema = rows_schema(self.manifest.columns)
        quantised = self._kind(self.manifest.count + expected) == "ivfpq"
        dtype = "float16" if quantised else "float32"
        part = self.store.write_segment(f"{self._name}-new", batches, schema, dtype)
        if part is None:
            return Added(0, 0, 0)
        own = Snapshot(self.store.folder, changed(self.manifest, segments=[list(part)], deleted="", deleted_count=0))
        try:
            keep, earlier = self._new_ones(own, replace)
            added = Added(int(keep.sum()), int(earlier.sum()), int((~keep).sum()))
            if not added.added:
                self.store.remove(part)
                return added
            if earlier.any():
                self.delete(earlier)
            kept = self.manifest.parts
            total = added.added
            while kept and kept[-1].dtype == part.dtype and kept[-1].length < min(2 * total, MERGE - total):
                total += kept.pop().length
            before = sum(p.length for p in kept)

            def rows() -> Iterator[tuple[pa.Table, np.ndarray]]:
                yield from self.snapshot.tables(None, before, self.snapshot.count)
                yield from own.tables(keep, 0, own.count)

            if total > part.length or not keep.all():
                written = self.store.write_segment(self._name, rows(), schema, part.dtype)
                assert written is not None
                self.store.remove(part)
                part = written
            self.manifest = changed(self.manifest, segments=[*map(list, kept), list(part)])
            self.snapshot = Snapshot(self.store.folder, self.manifest)
            return added
        except BaseException:
            self.store.remove(part)
            raise

    def _new_ones(self, own: Snapshot, replace: bool) -> tuple[np.ndarray, np.ndarray]:
        """Which of new rows are to stay (m,), and which earlier rows they replace (n,)."""
        ids = pa.concat_arrays(own.rows["id"].chunks)
        codes = np.asarray(ids.dictionary_encode().indices)
        keep = np.zeros(own.count, bool)
        keep[np.unique(codes, return_index=True)[1]] = True  # the first of each
        earlier = np.zeros(self.snapshot.count, bool)
        if self.snapshot.count:
            place = self.snapshot.places(ids)
            earlier = place >= 0
            if not replace:
                keep &= ~np.isin(codes, codes[place[earlier]])
                earlier = np.zeros_like(earlier)
        return keep, earlier

    def delete(self, found: np.ndarray) -> None:
        """Rows (n,) are deleted, too."""
        deleted = found if self.snapshot.alive is None else found | ~self.snapshot.alive
        name = f"deleted-{self._name}.bits"
        bits = np.packbits(deleted, bitorder="little")
        self.store.write_file(name, lambda path: bits.tofile(path))
        self.manifest = changed(self.manifest, deleted=name, deleted_count=int(deleted.sum()))

    def compact(self) -> None:
        """One segment of the rows that are not deleted, without an index."""
        parts, schema = [], rows_schema(self.manifest.columns)
        rows = self.snapshot.tables(self.snapshot.alive, 0, self.snapshot.count)
        part = self.store.write_segment(self._name, rows, schema, self._dtype_of_all())
        parts = [list(part)] if part else []
        self.manifest = changed(
            self.manifest, segments=parts, deleted="", deleted_count=0, index="", indexed=0, trained=0
        )
        self.snapshot = Snapshot(self.store.folder, self.manifest)

    def _dtype_of_all(self) -> str:
        kinds = {part.dtype for part in self.manifest.parts}
        return kinds.pop() if len(kinds) == 1 else "float32"

    # ---- the index ---------------------------------------------------------------------------------------------------

    def _kind(self, count: int) -> str:
        if self.manifest.asked != "auto":
            return self.manifest.asked
        return choose_kind(max(count, 1), int(self.manifest.model["width"]), self.manifest.memory_gib * 2**30)

    def update_index(self, *, whole: bool = False, strict: bool = False) -> None:
        """Make an index of the rows, or add rows to the one that there is.

        Args:
            whole: of all rows, at once; otherwise only when it is worth writing one.
            strict: a kind that does not fit the memory or the number of images is an error. Otherwise more memory than
                was allowed is logged, and too few images for a quantised index stay without one.

        Raises:
            ValueError: of `strict`.
        """
        manifest, count = self.manifest, self.snapshot.count
        kind = self._kind(count)
        indexed = manifest.indexed if manifest.index and manifest.kind == kind else 0
        outgrown = bool(manifest.index) and manifest.kind != kind
        if not (whole or outgrown) and count - indexed <= max(TAIL, indexed // 10):
            return
        if kind == "ivfpq" and count < LEAST and not strict:
            self.manifest = changed(manifest, index="", indexed=0)
            return
        if kind == "ivfpq" and count > RETRAIN * manifest.trained:
            indexed = 0
        if indexed:
            index, per_vector = self._loaded(), manifest.bytes_per_vector
        else:
            index, per_vector, effort = empty_index(kind, self.snapshot, manifest.memory_gib * 2**30)
            manifest = changed(manifest, trained=count, effort=effort, bytes_per_vector=float(per_vector))
        self._check_memory(kind, per_vector, strict)
        self.manifest = changed(manifest, kind=kind, index="", indexed=0)
        if kind != "flat" and count:
            self._fill_index(index, indexed)

    def _fill_index(self, index: Any, start: int) -> None:
        with tqdm(total=self.snapshot.count - start, desc="indexing", unit="vec", disable=None) as bar:
            for numbers, features in self.snapshot.blocks(None, start):
                index.add(features)
                bar.update(len(numbers))
        name = f"index-{self._name}.faiss"
        self.store.write_file(name, lambda path: faiss.write_index(index, path))
        self.index = index
        self.manifest = changed(self.manifest, index=name, indexed=self.snapshot.count)

    def _check_memory(self, kind: str, per_vector: float, strict: bool) -> None:
        count, memory_gib = self.snapshot.count, self.manifest.memory_gib
        needed = count * per_vector / 2**30
        if needed <= memory_gib:
            return
        text = (
            f"{kind}: {count} vectors of {per_vector:.0f} bytes need {needed:.1f} GiB; raise --memory "
            f"({memory_gib:g} GiB), or use --index auto"
        )
        if strict:
            raise ValueError(text)
        logger.warning("%s: build it anew", text)
