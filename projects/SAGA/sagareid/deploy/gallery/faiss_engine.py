"""A gallery in a folder, searched by FAISS: exactly, or by an index of `faiss_kinds` over most of its rows.

n rows (deleted ones included), q queries, k matches, F feature width.

Every feature is kept on the disk as well, mapped into memory: float32, or float16 where the index is quantised. Three
things need them. Rows that came after the index was made are compared exactly until there are enough to add. Where a
filter lets few images pass, these are compared exactly, since an index looks near a query and may meet none of them;
where it lets more pass, the index looks at as many times more of its cells or candidates as it has fewer images to
find. And what a quantised index finds is put into order by the kept features, so that similarities, and thresholds with
them, are those of the features (float16 changes a similarity by less than 0.001).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import first_line
from ...files import damaged
from ..faiss_kinds import random_sample
from . import filters
from .base import Added, Batch, Gallery, Hit, Model, checked_rows, register_engine
from .store import FORMAT, REMEDY, Manifest, Snapshot, Store
from .writing import Writing

__all__ = ["FaissGallery"]

logger = logging.getLogger(__name__)

EXACT = 50_000  # images that pass a filter: up to here they are compared one by one
RESCORE = 30  # candidates of a quantised index for each match that is wanted
COMPACT = 0.25  # share of deleted rows from which on the files are written anew without them
MASKS = 8  # filters whose rows are remembered
SAMPLE = 200  # queries that recall is measured on

F = TypeVar("F", bound=Callable[..., Any])


def _one_at_a_time(method: F) -> F:
    """Threads that share a gallery wait for each other; FAISS has threads of its own."""

    @functools.wraps(method)
    def alone(self: FaissGallery, *args: Any, **options: Any) -> Any:
        with self._mutex:
            return method(self, *args, **options)

    return alone  # type: ignore[return-value]


class _Passing:
    """The rows that may be found: (n,) bool, how many, and what FAISS and exact search want to know of them."""

    def __init__(self, mask: np.ndarray, indexed: int):
        self.mask, self.count, self._indexed = mask, int(mask.sum()), indexed

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    @functools.cached_property
    def selector(self) -> tuple[Any, float]:
        """FAISS's selector of the indexed rows, and the share of them that it lets pass."""
        of_index = self.mask[: self._indexed]
        bits = np.packbits(of_index, bitorder="little")
        return faiss.IDSelectorBitmap(bits), max(float(of_index.mean()), 1e-9)


@register_engine("faiss")
class FaissGallery(Gallery):
    """See the module."""

    def __init__(self, store: Store):
        self._store, self._mutex = store, threading.RLock()
        self.address = f"{self.scheme}:{store.folder}"
        self._index: tuple[str, Any] = ("", None)  # FAISS's index with the name of its file
        self._masks: dict[str, _Passing] = {}
        self._use(store.snapshot())

    # ---- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, place: str) -> FaissGallery:
        return cls(Store(Path(place)))

    @classmethod
    def create(
        cls,
        place: str,
        model: Model,
        columns: Mapping[str, str],
        *,
        folder: str = "",
        kind: str = "auto",
        memory_gib: float = 4.0,
        batches: Callable[[], Iterable[Batch]] | None = None,
        count: int = 0,
        replace: bool = False,
    ) -> FaissGallery:
        """As of `Gallery.create`. kind: "auto", or one of `options.KINDS`.

        Raises:
            ValueError: a kind that does not fit `memory_gib`, or the number of images.
        """
        store = Store(Path(place))
        there = store.folder.exists()
        first = Manifest(
            format=FORMAT,
            number=0,
            asked=kind,
            kind="flat",
            model=asdict(model),
            columns=dict(columns),
            folder=folder,
            memory_gib=memory_gib,
            segments=[],
            index="",
            indexed=0,
            trained=0,
            effort=0,
            bytes_per_vector=4.0 * model.width,
            deleted="",
            deleted_count=0,
            sources=[],
        )
        try:
            with store.lock():
                if store.exists:
                    if not replace:
                        raise FileExistsError(f"{place} holds a gallery already; delete it, or name another place")
                    # numbers of files go on: a reader may have those of the earlier gallery open
                    first = changed(first, number=store.number())
                cls._fill(store, first, batches, count)
        except BaseException:
            if not there:
                (store.folder / ".lock").unlink(missing_ok=True)
                if not any(store.folder.iterdir()):
                    store.folder.rmdir()
            raise
        return cls(store)

    @classmethod
    def _fill(cls, store: Store, first: Manifest, batches: Callable[[], Iterable[Batch]] | None, count: int) -> None:
        """Write the first state of a gallery, with what it begins with."""
        writing = Writing(store, Snapshot(store.folder, first), changed(first, number=first.number + 1))
        try:
            if batches is not None:
                model = Model(**first.model)
                rows = ((checked_rows(batch, model, first.columns), batch.features) for batch in batches())
                writing.append(rows, replace=False, expected=count)
                writing.update_index(whole=True, strict=True)
            store.commit(writing.manifest)
        except BaseException:
            store.tidy()
            raise

    def _use(self, snapshot: Snapshot) -> None:
        manifest = snapshot.manifest
        self._snapshot, self._masks = snapshot, {}
        self.model, self.columns, self.folder = Model(**manifest.model), dict(manifest.columns), manifest.folder
        self.exact = not manifest.index

    def refresh(self) -> None:
        """Look whether another process has changed the gallery. Every call does."""
        try:
            same = self._store.stamp() == self._snapshot.stamp
        except FileNotFoundError:
            same = False
        if not same:
            self._use(self._store.snapshot())

    @contextmanager
    def _transaction(self) -> Iterator[Writing]:
        with self._store.lock():
            self._use(self._store.snapshot())
            manifest = self._snapshot.manifest
            self._store.clean(manifest)  # what a writer left that was killed
            writing = Writing(self._store, self._snapshot, changed(manifest, number=manifest.number + 1), self._loaded)
            try:
                yield writing
            except BaseException:
                self._index = ("", None)  # it may have taken rows in that are not there
                self._store.tidy()
                raise
            if writing.index is not None:
                self._index = writing.manifest.index, writing.index
            self._use(self._store.snapshot())

    # ---- changes -----------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def add(
        self, batches: Iterable[Batch], *, replace: bool = False, source: str = "", folder: str | None = None
    ) -> Added:
        with self._transaction() as writing:
            if source and source in writing.manifest.sources:
                return Added(0, 0, 0)
            rows = ((checked_rows(batch, self.model, self.columns), batch.features) for batch in batches)
            added = writing.append(rows, replace=replace)
            changes: dict[str, Any] = {"sources": [*writing.manifest.sources, source]} if source else {}
            if folder is not None:
                changes["folder"] = folder
            if added.added or changes:
                writing.update_index()
                self._store.commit(changed(writing.manifest, **changes))
        self._compact_if_worth_it()
        return added

    @_one_at_a_time
    def delete(self, ids: Iterable[str] = (), *, where: str = "") -> int:
        wanted = list(ids)
        if not wanted and not where.strip():
            raise ValueError("delete takes ids or a filter; neither is given")
        with self._transaction() as writing:
            found = np.zeros(self._snapshot.count, bool)
            if wanted:
                found |= np.asarray(pc.is_in(self._snapshot.rows["id"], value_set=pa.array(wanted, pa.string())))
            if where.strip():
                found |= self._rows_passing(where)
            if (alive := self._snapshot.alive) is not None:
                found &= alive
            if count := int(found.sum()):
                writing.delete(found)
                self._store.commit(writing.manifest)
        self._compact_if_worth_it()
        return count

    @_one_at_a_time
    def compact(self) -> None:
        """Write all files anew without the deleted rows, of which nothing is left on the disk then."""
        with self._transaction() as writing:
            if self._snapshot.manifest.deleted_count:
                writing.compact()
                writing.update_index(whole=bool(self._snapshot.manifest.index))
                self._store.commit(writing.manifest)

    def _compact_if_worth_it(self) -> None:
        if self._snapshot.manifest.deleted_count <= COMPACT * self._snapshot.count:
            return
        try:
            self.compact()
        except OSError as error:  # what was asked for is done
            logger.warning("%s: deleted images stay on the disk (%s)", self.address, first_line(error))

    # ---- questions ---------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def count(self, where: str = "") -> int:
        self.refresh()
        passing = self._passing(where)
        return self._snapshot.count if passing is None else passing.count

    @_one_at_a_time
    def sources(self) -> set[str]:
        self.refresh()
        return set(self._snapshot.manifest.sources)

    @_one_at_a_time
    def get(self, ids: Sequence[str]) -> list[Hit | None]:
        self.refresh()
        place = self._snapshot.places(pa.array(list(ids), pa.string()))
        numbers = np.flatnonzero(place >= 0)
        found: dict[int, Hit] = dict(zip(place[numbers].tolist(), self._hits(numbers, np.ones(len(numbers)))))
        first = {name: found.get(i) for i, name in reversed(list(enumerate(ids)))}
        return [first[name] for name in ids]

    @_one_at_a_time
    def describe(self) -> dict[str, Any]:
        self.refresh()
        manifest, files = self._snapshot.manifest, self._snapshot.manifest.files
        return {
            "address": self.address,
            "engine": self.scheme,
            "kind": manifest.kind,
            "count": self._snapshot.living,
            "deleted": manifest.deleted_count,
            "indexed": manifest.indexed,
            "width": self.model.width,
            "model": manifest.model,
            "columns": dict(self.columns),
            "folder": self.folder,
            "effort": manifest.effort,
            "bytes_per_vector": manifest.bytes_per_vector,
            "memory_bytes": round(manifest.bytes_per_vector * self._snapshot.count),
            "disk_bytes": sum((self._store.folder / name).stat().st_size for name in files),
        }

    @_one_at_a_time
    def query(
        self, features: np.ndarray, k: int = 10, *, where: str = "", effort: int | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        self.refresh()
        features = self._checked_queries(features, k)
        similarities, numbers = self.search(features, k, self._passing(where), effort, exact)
        found = numbers >= 0
        hits = iter(self._hits(numbers[found], similarities[found]))
        return [[next(hits) for _ in range(int(one.sum()))] for one in found]

    @_one_at_a_time
    def features(self, where: str = "") -> tuple[list[str], np.ndarray]:
        """Ids, and kept features (m, F) float32, of the images that pass a filter; all of them in memory."""
        self.refresh()
        passing = self._passing(where)
        numbers = np.arange(self._snapshot.count) if passing is None else passing.numbers
        return self._snapshot.rows_of(numbers)["id"].to_pylist(), self._snapshot.take(numbers)

    @_one_at_a_time
    def recall(self, *, k: int = 10, sample: int = SAMPLE, where: str = "", effort: int | None = None) -> float:
        """The share of the exact k nearest neighbours that the index finds, over a seeded sample of the gallery.

        Neighbours are among the images that pass a filter; a query is left out of its own.
        """
        self.refresh()
        passing = self._passing(where)
        numbers, queries = random_sample(self._snapshot, sample, "query sample")
        found, exact = (self.search(queries, k + 1, passing, effort, only)[1] for only in (False, True))
        hits = total = 0
        for own, a, b in zip(numbers, found, exact):
            neighbours = [i for i in b if i not in (own, -1)][:k]
            hits += len(set(neighbours) & {i for i in a if i != own})
            total += len(neighbours)
        return hits / total if total else 1.0

    # ---- searching ---------------------------------------------------------------------------------------------------

    def _hits(self, numbers: np.ndarray, similarities: np.ndarray) -> list[Hit]:
        rows = self._snapshot.rows_of(numbers)
        ids, paths = rows["id"].to_pylist(), rows["path"].to_pylist()
        values = rows.select(list(self.columns)).to_pylist() if self.columns else [{} for _ in ids]
        return [Hit(*hit) for hit in zip(ids, paths, map(float, similarities), values)]

    def _rows_passing(self, where: str) -> np.ndarray:
        """(n,) which rows pass a filter, deleted ones too."""
        node = self._node(where)
        assert node is not None
        return filters.passing(node, self._snapshot.rows)

    def _passing(self, where: str) -> _Passing | None:
        """The images that pass a filter; None: all rows."""
        alive, where = self._snapshot.alive, where.strip()
        if not where and alive is None:
            return None
        if where not in self._masks:
            mask = self._rows_passing(where) if where else alive
            assert mask is not None
            while len(self._masks) >= MASKS:
                self._masks.pop(next(iter(self._masks)))
            mask = mask if alive is None or not where else mask & alive
            self._masks[where] = _Passing(mask, self._snapshot.manifest.indexed)
        return self._masks[where]

    def _loaded(self) -> Any:
        """FAISS's index."""
        name = self._snapshot.manifest.index
        if name != self._index[0]:
            path = self._store.folder / name
            try:
                index = faiss.read_index(str(path))
            except RuntimeError as error:
                wrong = f"it cannot be read ({first_line(error)})" if path.is_file() else "it is missing"
                raise damaged(path, wrong, REMEDY) from error
            manifest = self._snapshot.manifest
            if index.ntotal != manifest.indexed or index.d != self.model.width:
                wrong = (
                    f"it holds {index.ntotal} vectors of {index.d}, expected {manifest.indexed} of {self.model.width}"
                )
                raise damaged(path, wrong, REMEDY)
            self._index = name, index
        return self._index[1]

    @_one_at_a_time
    def search(
        self,
        queries: np.ndarray,
        k: int,
        passing: _Passing | None,
        effort: int | None = None,
        exact: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities (q, k) in falling order and numbers (q, k) of rows; -1 where no more pass.

        Args:
            passing: the rows that may be found; None: all.
        """
        snapshot = self._snapshot
        count, indexed = snapshot.count if passing is None else passing.count, snapshot.manifest.indexed
        if exact or not snapshot.manifest.index or count <= EXACT:
            return _nearest(queries, k, self._blocks(passing))
        found = self._approximate(self._loaded(), queries, k, passing, effort or snapshot.manifest.effort)
        if indexed == snapshot.count:
            return found
        return _merged(k, found, _nearest(queries, k, self._blocks(passing, indexed)))

    def _blocks(self, passing: _Passing | None, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if passing is None:
            return self._snapshot.blocks(None, start)
        if not start and passing.count < self._snapshot.count / 5:  # found once for all queries of this filter
            return self._snapshot.gathered(passing.numbers)
        return self._snapshot.blocks(passing.mask, start)

    def _approximate(
        self, index: Any, queries: np.ndarray, k: int, passing: _Passing | None, effort: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest of the indexed rows."""
        manifest = self._snapshot.manifest
        selector, share = (None, 1.0) if passing is None else passing.selector
        if manifest.kind == "hnsw":
            effort = min(manifest.indexed, int(max(effort, k) / share))
            return index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=effort, sel=selector))
        cells = min(index.nlist, int(np.ceil(effort / share)))
        wanted = min(manifest.indexed, max(RESCORE * k, 100))
        candidates = index.search(queries, wanted, params=faiss.SearchParametersIVF(nprobe=cells, sel=selector))[1]
        return self._rescored(queries, k, candidates)

    def _rescored(self, queries: np.ndarray, k: int, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k best of candidates (q, c), -1 for none, by the kept features."""
        similarities = np.full(candidates.shape, -np.inf, np.float32)
        step = max(1, 64 * 2**20 // (4 * self.model.width * candidates.shape[1]))
        for low in range(0, len(queries), step):
            some = candidates[low : low + step]
            numbers, places = np.unique(some[some >= 0], return_inverse=True)
            features = self._snapshot.take(numbers)
            owners = np.nonzero(some >= 0)[0]
            similarities[low : low + step][some >= 0] = np.einsum(
                "md,md->m", features[places.reshape(-1)], queries[low + owners]
            )
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(similarities, order, 1), np.take_along_axis(candidates, order, 1)
        return _padded(k, *found)


def _nearest(
    queries: np.ndarray, k: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of blocks of numbers (m,) and features (m, F), exactly."""
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for numbers, features in blocks:
        nearest = faiss.knn(queries, features, min(k, len(features)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(nearest[0], numbers.astype(np.int64)[nearest[1]])
    heap.finalize()
    return heap.D, heap.I


def _merged(k: int, *found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    similarities = np.concatenate([np.where(numbers < 0, -np.inf, s) for s, numbers in found], axis=1)
    numbers = np.concatenate([numbers for _, numbers in found], axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(numbers, order, 1)


def _padded(k: int, similarities: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lacking = ((0, 0), (0, max(0, k - numbers.shape[1])))
    return np.pad(similarities, lacking, constant_values=-np.inf), np.pad(numbers, lacking, constant_values=-1)
