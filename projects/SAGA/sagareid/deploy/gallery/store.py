"""A gallery's files in a folder: what was acknowledged is whole, whenever the writer dies.

n rows (images, deleted ones included), F feature width.

`gallery.json` is the one truth: it names every other file and is replaced atomically, after all that it names is on
the disk. Other files are never changed once they are named; those that it does not name are leftovers of a writer that
died, and the next writer removes them::

    rows-<number>.arrow      Arrow IPC file: id, path and the gallery's columns of a segment, mapped into memory
    vectors-<number>.bin     its features, C order, float32 or float16 as `gallery.json` says, mapped into memory
    index-<number>.faiss     FAISS's index of the first rows of all segments together
    deleted-<number>.bits    one bit a row, the lowest bit of a byte first: deleted

A writer holds `.lock`, which the system releases when it dies. Readers need none: files that were named and are removed
stay readable for those who have them open, and who comes too late for one reads `gallery.json` again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from ...errors import first_line
from ...files import damaged, read_json, read_record, sync_folder, write_json
from .columns import KINDS, arrow_type

__all__ = ["FORMAT", "GalleryBusy", "Manifest", "Segment", "Snapshot", "Store", "rows_schema"]

FORMAT = 2  # of gallery.json; the index.json of earlier versions was the first
PATIENCE = 60.0  # seconds that a writer waits for another
BLOCK_BYTES = 64 * 2**20  # of vectors in memory at a time
REMEDY = "Build the gallery again from its features (tools/search.py build)"


class GalleryBusy(RuntimeError):
    """Another process writes into the gallery."""


class Segment(NamedTuple):
    """Rows that were written together: the names of two files, and what is in them."""

    rows: str
    vectors: str
    length: int
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """The content of gallery.json.

    Attributes:
        number: rises with every change.
        asked: the kind of index that was asked for; kind: the one that it has.
        model: `Model` as a dictionary. columns: kind by name. folder: where relative paths begin.
        memory_gib: that the index may take.
        segments: `Segment`s as lists, in the order of their rows.
        index: file of FAISS, "" where there is none; indexed: how many of the first rows it has; trained: how many rows
            there were when it was trained; effort: cells (ivfpq) or candidates (hnsw) that a query looks at.
        bytes_per_vector: memory of the index.
        deleted: file of the deleted rows, "" where there is none; deleted_count: how many.
        sources: names of what was added as a whole.
    """

    format: int
    number: int
    asked: str
    kind: str
    model: dict[str, Any]
    columns: dict[str, str]
    folder: str
    memory_gib: float
    segments: list[list]
    index: str
    indexed: int
    trained: int
    effort: int
    bytes_per_vector: float
    deleted: str
    deleted_count: int
    sources: list[str]

    @property
    def parts(self) -> list[Segment]:
        return [Segment(*entry) for entry in self.segments]

    @property
    def count(self) -> int:
        """n."""
        return sum(part.length for part in self.parts)

    @property
    def files(self) -> set[str]:
        """The names of all files beside gallery.json."""
        names = {name for part in self.parts for name in (part.rows, part.vectors)}
        return names | {name for name in (self.index, self.deleted) if name}


def rows_schema(columns: dict[str, str]) -> pa.Schema:
    """The schema of a segment's rows."""
    return pa.schema([("id", pa.string()), ("path", pa.string()), *((n, arrow_type(k)) for n, k in columns.items())])


class Store:
    """The folder of a gallery."""

    NAME = "gallery.json"
    EARLIER = "index.json"  # of a version without columns and deletions

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / self.NAME).is_file()

    def stamp(self) -> tuple[int, int, int]:
        """Another value whenever gallery.json is another file."""
        state = os.stat(self.folder / self.NAME)
        return state.st_ino, state.st_mtime_ns, state.st_size

    def read(self) -> Manifest:
        """gallery.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path = self.folder / self.NAME
        if not path.is_file():
            if (self.folder / self.EARLIER).is_file():
                raise ValueError(
                    f"{self.folder} is an index of an earlier version, without columns and deletions. {REMEDY}"
                )
            raise FileNotFoundError(f"no gallery in {self.folder}; make one with tools/search.py build")
        found = read_json(path, remedy=REMEDY, required={"format": int})["format"]
        if found != FORMAT:
            raise ValueError(
                f"{self.folder} is a gallery of format {found}, written by a newer version; this one reads format "
                f"{FORMAT}. Update sagareid, or build the gallery again"
            )
        manifest = read_record(Manifest, path, remedy=REMEDY)
        try:
            whole = manifest.count >= manifest.indexed and int(manifest.model["width"]) > 0
            whole = whole and set(manifest.columns.values()) <= set(KINDS)
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise damaged(path, "its segments, columns or model are not what was written", REMEDY)
        return manifest

    def number(self) -> int:
        """Of the state that there is, even if it cannot be read as a whole: 0 where there is none."""
        try:
            return int(read_json(self.folder / self.NAME, remedy=REMEDY).get("number", 0))
        except (OSError, ValueError, TypeError):
            return 0

    def snapshot(self) -> Snapshot:
        """The gallery as it is now; errors as of `read`."""
        for attempt in range(10):
            stamp, manifest = self.stamp() if self.exists else None, self.read()
            try:
                return Snapshot(self.folder, manifest, stamp)
            except FileNotFoundError as error:  # a writer has removed it since, or it is gone
                if attempt == 9 or self.read().number == manifest.number:
                    raise damaged(str(error.filename), "it is missing", REMEDY) from error
        raise AssertionError

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to write; waits for another writer.

        Raises:
            GalleryBusy: the other one does not end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(str(self.folder / ".lock"), timeout=PATIENCE):
                yield
        except Timeout:
            raise GalleryBusy(
                f"another process has been writing into {self.folder} for {PATIENCE:g} s; wait for it, or end it. "
                "Searches go on meanwhile"
            ) from None

    def write_segment(
        self, name: str, batches: Iterable[tuple[pa.Table, np.ndarray]], schema: pa.Schema, dtype: str
    ) -> Segment | None:
        """Rows and features (m, F) as a segment; None where there are none. After an error nothing is left."""
        part = Segment(f"rows-{name}.arrow", f"vectors-{name}.bin", 0, dtype)
        files = self.folder / part.rows, self.folder / part.vectors
        count = 0
        try:
            with open(files[0], "wb") as rows, open(files[1], "wb") as vectors:
                with pa.ipc.new_file(rows, schema) as writer:
                    for table, features in batches:
                        if len(table):
                            writer.write_table(table.cast(schema).combine_chunks())
                            vectors.write(np.ascontiguousarray(features, dtype).data)
                            count += len(table)
                for file in (rows, vectors):
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            self.remove(part)
            raise
        if not count:
            self.remove(part)
            return None
        return part._replace(length=count)

    def remove(self, part: Segment) -> None:
        for name in (part.rows, part.vectors):
            (self.folder / name).unlink(missing_ok=True)

    def write_file(self, name: str, write: Any) -> None:
        """Call `write(path)`, and see that the file is on the disk. After an error nothing is left."""
        path = self.folder / name
        try:
            write(str(path))
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # FAISS's own, of a disk that is full
                raise OSError(errno.ENOSPC, first_line(error), str(path)) from error
            raise

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest the truth; when this returns it is on the disk. Then remove what it does not name."""
        sync_folder(self.folder)
        write_json(self.folder / self.NAME, asdict(manifest))
        sync_folder(self.folder)
        self.clean(manifest)

    def tidy(self) -> None:
        """Remove leftovers after an error; of a gallery that cannot be read, nothing."""
        try:
            manifest = self.read() if self.exists else None
        except (OSError, ValueError):
            return
        self.clean(manifest)

    def clean(self, manifest: Manifest | None) -> None:
        """Remove the files that no gallery.json names: leftovers, and what an earlier version had."""
        earlier = (self.folder / self.EARLIER).is_file()
        kinds = (("rows", "arrow"), ("vectors", "bin"), ("index", "faiss"), ("deleted", "bits"))
        patterns = [*(f"{name}-{'[0-9]' * 6}*.{suffix}" for name, suffix in kinds), f".{self.NAME}.*"]
        if earlier and manifest is not None:
            (self.folder / self.EARLIER).unlink()
            patterns += ["vectors-*.faiss", "paths-*.parquet"]
        named = manifest.files if manifest is not None else set()
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    path.unlink(missing_ok=True)


class Snapshot:
    """A gallery as it was at one moment; its arrays are mapped files.

    Attributes:
        rows: (n) id, path and columns.
        alive: (n,) bool, None where nothing is deleted.
        count, width: n (deleted rows included), F.
    """

    def __init__(self, folder: Path, manifest: Manifest, stamp: tuple | None = None):
        self.folder, self.manifest, self.stamp = folder, manifest, stamp
        self.width, self.count = int(manifest.model["width"]), manifest.count
        tables, self._vectors = [rows_schema(manifest.columns).empty_table()], []
        for part in manifest.parts:
            tables.append(self._rows(part))
            self._vectors.append(self._mapped(part))
        self.rows = pa.concat_tables(tables)
        self._batches = self.rows.to_batches()
        self._batch_starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._starts = np.cumsum([0, *(part.length for part in manifest.parts)])
        self.alive: np.ndarray | None = None
        if manifest.deleted:
            self.alive = ~self._bits(folder / manifest.deleted)

    def _rows(self, part: Segment) -> pa.Table:
        path = self.folder / part.rows
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, "missing", str(path)) from error
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, f"it cannot be read ({first_line(error)})", REMEDY) from error
        if len(table) != part.length:
            raise damaged(path, f"it holds {len(table)} rows, expected {part.length}", REMEDY)
        if table.schema != (wanted := rows_schema(self.manifest.columns)):
            raise damaged(path, f"it has the columns {', '.join(table.column_names)}, expected {wanted.names}", REMEDY)
        return table

    def _mapped(self, part: Segment) -> np.ndarray:
        path, wanted = self.folder / part.vectors, part.length * self.width * np.dtype(part.dtype).itemsize
        if (size := path.stat().st_size) != wanted:
            raise damaged(path, f"it holds {size} bytes, expected {wanted}", REMEDY)
        return np.memmap(path, part.dtype, "r", shape=(part.length, self.width))

    def _bits(self, path: Path) -> np.ndarray:
        bits = np.fromfile(path, np.uint8)
        if len(bits) * 8 < self.manifest.deleted_count or len(bits) > -(-self.count // 8):
            raise damaged(path, f"it holds {len(bits)} bytes for {self.count} rows", REMEDY)
        found = np.zeros(self.count, bool)
        flags = np.unpackbits(bits, bitorder="little")[: self.count].astype(bool)
        found[: len(flags)] = flags
        if found.sum() != self.manifest.deleted_count:
            raise damaged(path, f"{found.sum()} rows are deleted, expected {self.manifest.deleted_count}", REMEDY)
        return found

    @property
    def living(self) -> int:
        """How many images there are."""
        return self.count - self.manifest.deleted_count

    def places(self, ids: pa.Array) -> np.ndarray:
        """(n,) where among `ids` each row's id is; -1 for one that is not there, or whose image is deleted."""
        found = pc.fill_null(pc.index_in(self.rows["id"], value_set=ids), -1).to_numpy().copy()
        if self.alive is not None:
            found[~self.alive] = -1
        return found

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """(m, F) float32 features of rows (m,)."""
        out = np.empty((len(numbers), self.width), np.float32)
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        for place in np.unique(places):
            of_it = places == place
            out[of_it] = self._vectors[place][numbers[of_it] - self._starts[place]]
        return out

    def blocks(
        self, mask: np.ndarray | None = None, start: int = 0, stop: int | None = None, size: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers (m,) and float32 features (m, F) of rows from `start` to `stop` that `mask` (n,) has, in order."""
        size = size or max(1, BLOCK_BYTES // (4 * self.width))
        stop = self.count if stop is None else stop
        if start >= stop:
            return
        if mask is not None and mask[start:stop].mean() < 0.2:
            yield from self.gathered(start + np.flatnonzero(mask[start:stop]), size)
            return
        for begin, vectors in zip(self._starts, self._vectors):
            first, last = max(start, begin), min(stop, begin + len(vectors))
            for low in range(first, last, size):
                high = min(low + size, last)
                numbers, block = np.arange(low, high), vectors[low - begin : high - begin]
                if mask is not None and not mask[low:high].all():
                    numbers, block = numbers[mask[low:high]], block[mask[low:high]]
                if len(numbers):
                    yield numbers, np.asarray(block, np.float32)

    def gathered(self, numbers: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows by their numbers, in blocks."""
        size = size or max(1, BLOCK_BYTES // (4 * self.width))
        for low in range(0, len(numbers), size):
            yield numbers[low : low + size], self.take(numbers[low : low + size])

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows, for the training and filling of an index."""
        return self.blocks()

    def tables(self, mask: np.ndarray | None, start: int, stop: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Rows and features, for a new segment."""
        for numbers, features in self.blocks(mask, start, stop):
            yield self.rows_of(numbers), features

    def rows_of(self, numbers: np.ndarray) -> pa.Table:
        """Rows by their numbers (m,), in this order; batch by batch, as Arrow's own `take` first copies all of them."""
        places = np.searchsorted(self._batch_starts, numbers, side="right") - 1
        order = np.argsort(places, kind="stable")
        parts = [self.rows.slice(0, 0)]
        for place in np.unique(places):
            of_it = numbers[order[places[order] == place]] - self._batch_starts[place]
            parts.append(pa.Table.from_batches([self._batches[place].take(pa.array(of_it))]))
        found = pa.concat_tables(parts)
        if len(parts) == 2:  # of one batch, and so in order
            return found
        return found.combine_chunks().take(pa.array(np.argsort(order, kind="stable")))
