"""Search extracted features: an index of FAISS with the paths of its images beside it.

n gallery images, F feature width, q queries, k matches. Similarity is the inner product of unit-length features, the cosine.

An index is a folder: `index.json` (kind, width, checkpoint, row, counts, and the names of the other two files),
`vectors-<n>.faiss` and `paths-<n>.parquet`. The JSON file is written last, so an interrupted build or addition leaves the
index before it.

Kinds, and bytes of a vector in memory: `flat` answers exactly, 4 F; `hnsw` walks a graph of 32 neighbours, 4 F + 264;
`ivfpq` looks into some of about 4 sqrt(n) cells, m + 8, a vector being quantised to m bytes, m up to F / 4.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate
from tqdm import tqdm

from ..errors import first_line
from ..files import write_atomically, write_json
from .extract_folder import MANIFEST, list_images, open_extractor

__all__ = [
    "FeatureSet",
    "Index",
    "Match",
    "add",
    "build",
    "choose_kind",
    "describe",
    "feature_queries",
    "image_queries",
    "recall",
    "table",
    "write_matches",
]

KINDS = ("flat", "hnsw", "ivfpq")
# Up to so many bytes of vectors an exact search is quick enough: about 0.1 s a query on one core.
FLAT_BYTES = 2**30
NEIGHBOURS = 32  # of HNSW: 2 * 32 links of 4 bytes in the lowest layer, and a little for the others
HNSW_LINKS = 264
BATCH_BYTES = 64 * 2**20  # of vectors read at a time
TRAIN_PER_CELL = 40  # FAISS warns below 39
SAMPLE = 200  # queries that recall is measured on
SEED = 0


class FeatureSet:
    """Features on disk, read batch by batch: what tools/extract.py writes, or any .npz with `features` and `paths`.

    Attributes:
        count: n. width: F.
        checkpoint_sha256, feature: of the model they come from; "" where the file does not say.
        folder: of the images; "" where the file does not say.
    """

    def __init__(self, path: str | Path):
        """
        Raises:
            FileNotFoundError: nothing there. ValueError: unfinished, or no features.
        """
        self.path = Path(path)
        about: dict[str, Any] = {}
        if self.path.suffix == ".npz" and self.path.is_file():
            with np.load(self.path) as arrays:
                if not {"features", "paths"} <= set(arrays.files):
                    raise ValueError(f"{path} holds {', '.join(arrays.files)}; expected `features` and `paths`")
                self._arrays = arrays["features"].astype(np.float32, copy=False), arrays["paths"].tolist()
                about = json.loads(str(arrays["about"])) if "about" in arrays.files else {}
            self.count, self.width = self._arrays[0].shape
        else:
            self._files = self._parquet_files()
            self._arrays = None
            schema = pq.read_schema(self._files[0])
            if not {"path", "feature"} <= set(schema.names) or not pa.types.is_fixed_size_list(
                schema.field("feature").type
            ):
                raise ValueError(
                    f"{self._files[0]} has the columns {', '.join(schema.names)}; expected `path` and `feature`"
                )
            about = json.loads((schema.metadata or {}).get(b"sagareid", b"{}"))
            self.count = sum(pq.read_metadata(f).num_rows for f in self._files)
            self.width = schema.field("feature").type.list_size
        self.checkpoint_sha256 = about.get("checkpoint_sha256", "")
        self.feature, self.folder = about.get("feature", ""), about.get("folder", "")

    def _parquet_files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise FileNotFoundError(f"no features at {self.path}; make them with tools/extract.py")
        manifest = self.path / MANIFEST
        files = sorted(self.path.glob("*.parquet"))
        if manifest.exists():
            shards = json.loads(manifest.read_text())["shards"]
            files = [self.path / f"part-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
            lacking = [f for f in files if not f.exists()]
            if lacking:
                raise ValueError(
                    f"{self.path} lacks {len(lacking)} of {shards} shards, such as {lacking[0].name}: the same tools/extract.py "
                    "command finishes it"
                )
        if not files:
            raise FileNotFoundError(f"no Parquet file in {self.path}; make them with tools/extract.py")
        return files

    def batches(self, size: int | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """(paths, (m, F) float32 rows of unit length), m up to `size`, in a fixed order; None: as BATCH_BYTES holds."""
        size = size or max(1, BATCH_BYTES // (4 * self.width))
        if self._arrays is not None:
            features, paths = self._arrays
            for start in range(0, self.count, size):
                yield paths[start : start + size], self._unit(features[start : start + size], start)
            return
        start = 0
        for file in self._files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(size, columns=["path", "feature"]):
                    rows = batch["feature"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
                    yield batch["path"].to_pylist(), self._unit(rows, start)
                    start += len(rows)

    def _unit(self, rows: np.ndarray, start: int) -> np.ndarray:
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        bad = ~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0))
        if bad.any():
            raise ValueError(
                f"{self.path}: feature {start + int(bad.argmax())} is zero or not finite; extract it again"
            )
        return np.ascontiguousarray(rows / norm, dtype=np.float32)

    def whole(self) -> tuple[list[str], np.ndarray]:
        """All paths and (n, F) features, for query sets, which fit the memory."""
        parts = list(self.batches())
        return [p for paths, _ in parts for p in paths], np.concatenate([x for _, x in parts])


@dataclass(frozen=True)
class About:
    """What index.json holds.

    Attributes:
        effort: cells (ivfpq) or candidates (hnsw) that a query looks at; 0 for flat.
        bytes_per_vector: of the index in memory, paths not counted.
    """

    kind: str
    width: int
    count: int
    checkpoint_sha256: str
    feature: str
    folder: str
    effort: int
    bytes_per_vector: float
    vectors: str
    paths: str


@dataclass(frozen=True)
class Match:
    """One place of a ranked list."""

    query: str
    rank: int
    similarity: float
    path: str


class Index:
    """A searchable gallery."""

    def __init__(self, vectors: Any, paths: pa.ChunkedArray, about: About):
        self.vectors, self.paths, self.about = vectors, paths, about

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """
        Raises:
            FileNotFoundError: no index there. ValueError: a damaged one.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"no index in {folder}; make one with tools/search.py build")
        about = About(**json.loads((folder / "index.json").read_text()))
        try:
            vectors = faiss.read_index(str(folder / about.vectors))
            paths = pq.read_table(folder / about.paths)["path"]
        except (RuntimeError, OSError, pa.ArrowException) as error:
            raise ValueError(f"{folder} is damaged ({first_line(error)}); build it again") from error
        if vectors.ntotal != about.count or len(paths) != about.count:
            raise ValueError(
                f"{folder} holds {vectors.ntotal} vectors and {len(paths)} paths; expected {about.count}. Build it again"
            )
        return cls(vectors, paths, about)

    def save(self, folder: str | Path) -> None:
        """Write the index; the folder's earlier one is in place until the last moment."""
        folder = Path(folder)
        write_atomically(folder / self.about.vectors, lambda temporary: faiss.write_index(self.vectors, temporary))
        table = pa.table({"path": self.paths})
        write_atomically(folder / self.about.paths, lambda temporary: pq.write_table(table, temporary))
        write_json(folder / "index.json", asdict(self.about))
        for old in (*folder.glob("vectors-*.faiss"), *folder.glob("paths-*.parquet")):
            if old.name not in (self.about.vectors, self.about.paths):
                old.unlink()

    def check(self, width: int, checkpoint_sha256: str, feature: str, what: str) -> None:
        """See that features are comparable with the gallery's.

        Raises:
            ValueError: another width, checkpoint or row. What a file does not say is not compared.
        """
        if width != self.about.width:
            raise ValueError(
                f"{what} has features of width {width}, the index of {self.about.width}: they are not of one model"
            )
        for name, own, other in (
            ("checkpoint", self.about.checkpoint_sha256, checkpoint_sha256),
            ("feature row", self.about.feature, feature),
        ):
            if own and other and own != other:
                raise ValueError(
                    f"{what} is of {name} {other[:12]}, the index of {own[:12]}: similarities between them mean nothing"
                )

    def search(self, queries: np.ndarray, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            queries: (q, F) rows of unit length.
            effort: see `About`; None: the index's own.

        Returns:
            (q, k) similarities in falling order and (q, k) rows of the gallery; -1 where it has no more.
        """
        if k < 1:
            raise ValueError(f"{k} matches asked for; expected 1 or more")
        effort = effort or self.about.effort
        parameters = None
        if self.about.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
        elif self.about.kind == "ivfpq":
            parameters = faiss.SearchParametersIVF(nprobe=effort)
        return self.vectors.search(np.ascontiguousarray(queries, np.float32), k, params=parameters)

    def matches(
        self, names: Sequence[str], queries: np.ndarray, k: int, effort: int | None = None
    ) -> list[list[Match]]:
        """The ranked list of each query, with paths."""
        similarity, rows = self.search(queries, k, effort)
        return [
            [
                Match(name, place + 1, float(s), self.paths[int(r)].as_py())
                for place, (s, r) in enumerate(zip(scores, order))
                if r >= 0
            ]
            for name, scores, order in zip(names, similarity, rows)
        ]


def choose_kind(count: int, width: int, memory: float) -> str:
    """The index for so many vectors: flat while they take up to FLAT_BYTES, hnsw while it fits, else ivfpq.

    Args:
        memory: bytes that index and building may take.
    """
    if count * 4 * width <= min(FLAT_BYTES, memory):
        return "flat"
    return "hnsw" if count * (4 * width + HNSW_LINKS) <= memory else "ivfpq"


def build(features: FeatureSet, folder: str | Path, *, kind: str = "auto", memory_gib: float = 4.0) -> Index:
    """Build an index from features batch by batch, and save it.

    Args:
        kind: one of KINDS; "auto": by `choose_kind`.
        memory_gib: what index and building may take. An ivfpq gets as many bytes a vector as fit into half of it.

    Raises:
        ValueError: an empty gallery, an unknown kind, or one that does not fit the memory.
    """
    if not features.count:
        raise ValueError(f"{features.path} holds no feature, so there is nothing to search")
    memory = memory_gib * 2**30
    kind = choose_kind(features.count, features.width, memory) if kind == "auto" else kind
    if kind not in KINDS:
        raise ValueError(f"no index of kind {kind!r}; expected auto, {', '.join(KINDS)}")
    vectors, per_vector, effort = {"flat": _flat, "hnsw": _hnsw, "ivfpq": _ivfpq}[kind](features, memory)
    if features.count * per_vector > memory:
        raise ValueError(
            f"{kind}: {features.count} vectors of {per_vector:.0f} bytes need {features.count * per_vector / 2**30:.1f} GiB; "
            f"raise --memory ({memory_gib:g} GiB), or use --index auto"
        )
    paths = _append(vectors, features)
    about = About(
        kind=kind,
        width=features.width,
        count=features.count,
        checkpoint_sha256=features.checkpoint_sha256,
        feature=features.feature,
        folder=features.folder,
        effort=effort,
        bytes_per_vector=per_vector,
        vectors=_next_name(folder, "vectors-{}.faiss"),
        paths=_next_name(folder, "paths-{}.parquet"),
    )
    index = Index(vectors, paths, about)
    index.save(folder)
    return index


def add(folder: str | Path, features: FeatureSet) -> Index:
    """Append features to a saved index, and save it.

    Paths are kept relative to the folder of the images where both are of one folder, and made absolute otherwise.

    Raises:
        ValueError: features of another model, or paths that are in the index already.
    """
    index = Index.load(folder)
    index.check(features.width, features.checkpoint_sha256, features.feature, str(features.path))
    prefix = features.folder if features.folder != index.about.folder else ""
    new = [str(Path(prefix, p)) if prefix else p for paths, _ in features.batches() for p in paths]
    doubles = set(index.paths.to_pylist()).intersection(new)
    if doubles:
        raise ValueError(
            f"{len(doubles)} images are in the index already, such as {min(doubles)}; build it anew instead"
        )
    _append(index.vectors, features)
    about = asdict(index.about) | {
        "count": index.about.count + features.count,
        "vectors": _next_name(folder, "vectors-{}.faiss"),
        "paths": _next_name(folder, "paths-{}.parquet"),
    }
    paths = pa.chunked_array([*index.paths.chunks, pa.array(new, pa.string())])
    index = Index(index.vectors, paths, About(**about))
    index.save(folder)
    return index


def _next_name(folder: str | Path, pattern: str) -> str:
    number = 1
    while Path(folder, pattern.format(number)).exists():
        number += 1
    return pattern.format(number)


def _flat(features: FeatureSet, memory: float) -> tuple[Any, float, int]:
    return faiss.IndexFlatIP(features.width), 4 * features.width, 0


def _hnsw(features: FeatureSet, memory: float) -> tuple[Any, float, int]:
    vectors = faiss.IndexHNSWFlat(features.width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    vectors.hnsw.efConstruction = 80
    return vectors, 4 * features.width + HNSW_LINKS, 128


def _ivfpq(features: FeatureSet, memory: float) -> tuple[Any, float, int]:
    """Trained on a sample; 4 sqrt(n) cells, of which a query looks at a thirty-second, at least 8."""
    n, width = features.count, features.width
    if n < 256:
        raise ValueError(f"ivfpq learns 256 values a byte, so it needs 256 vectors or more, not {n}; use --index flat")
    cells = max(1, min(int(4 * math.sqrt(n)), n // TRAIN_PER_CELL))
    fit = [m for m in range(1, width // 4 + 1) if width % m == 0 and n * (m + 8) <= memory / 2]
    if not fit:
        raise ValueError(f"{n} vectors do not fit {memory / 2**30:.1f} GiB in any index: raise --memory")
    code = max(fit)
    quantizer = faiss.IndexFlatIP(width)
    vectors = faiss.IndexIVFPQ(quantizer, width, cells, code, 8, faiss.METRIC_INNER_PRODUCT)
    vectors.cp.seed = vectors.pq.cp.seed = SEED
    vectors.cp.niter = 10
    wanted = min(n, max(TRAIN_PER_CELL * cells, 256 * TRAIN_PER_CELL), max(256, int(memory / 4 / (4 * width))))
    vectors.train(_sample(features, wanted, "training sample")[1])
    return vectors, code + 8, max(8, cells // 32)


def _sample(features: FeatureSet, wanted: int, description: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (s,) in order and (s, F) features of a seeded random sample."""
    rows = np.sort(np.random.default_rng(SEED).choice(features.count, min(wanted, features.count), replace=False))
    out = np.empty((len(rows), features.width), np.float32)
    start = 0
    with tqdm(total=features.count, desc=description, unit="vec", disable=None) as bar:
        for paths, x in features.batches():
            low, high = np.searchsorted(rows, (start, start + len(x)))
            out[low:high] = x[rows[low:high] - start]
            start += len(x)
            bar.update(len(x))
    return rows, out


def _append(vectors: Any, features: FeatureSet) -> pa.ChunkedArray:
    """Add every feature; returns the paths."""
    chunks = []
    with tqdm(total=features.count, desc="indexing", unit="vec", disable=None) as bar:
        for paths, x in features.batches():
            vectors.add(x)
            chunks.append(pa.array(paths, pa.string()))
            bar.update(len(x))
    return pa.chunked_array(chunks, type=pa.string())


def recall(
    index: Index, features: FeatureSet, *, k: int = 10, sample: int = SAMPLE, effort: int | None = None
) -> float:
    """Share of the exact k nearest that the index finds, over a seeded sample of the gallery; each is left out of its own.

    The exact ones come from one pass over the features, batch by batch.
    """
    k = min(k, features.count - 1)
    if k < 1:
        return 1.0
    rows, queries = _sample(features, sample, "query sample")
    heap = faiss.ResultHeap(len(rows), k + 1, keep_max=True)
    start = 0
    with tqdm(total=features.count, desc="exact neighbours", unit="vec", disable=None) as bar:
        for _, x in features.batches():
            d, i = faiss.knn(queries, x, min(k + 1, len(x)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(d, (i + start).astype(np.int64))
            start += len(x)
            bar.update(len(x))
    heap.finalize()
    found = index.search(queries, k + 1, effort)[1]

    def others(order: np.ndarray, own: int) -> set[int]:
        return set([int(r) for r in order if r != own][:k])

    hits = sum(len(others(a, r) & others(b, r)) for a, b, r in zip(heap.I, found, rows))
    return hits / (k * len(rows))


def image_queries(
    index: Index, images: Sequence[str | Path], checkpoint: str | Path, *, device: str = "auto"
) -> tuple[list[str], np.ndarray]:
    """Names and features of query images (files, or folders of them), by the model that the gallery is of.

    Raises:
        ValueError: the index is of another checkpoint. UnreadableImage: an image that is none.
    """
    files: list[str] = []
    for image in images:
        files += [str(Path(image, name)) for name in list_images(image)[0]] if Path(image).is_dir() else [str(image)]
    extractor, sha256 = open_extractor(checkpoint, device=device, dtype="auto", feature=index.about.feature or "auto")
    index.check(extractor.width, sha256, extractor.feature, str(checkpoint))
    return files, extractor(files, progress=False).numpy()


def feature_queries(index: Index, features: FeatureSet) -> tuple[list[str], np.ndarray]:
    """Names and features of extracted queries.

    Raises:
        ValueError: the index is of another model.
    """
    index.check(features.width, features.checkpoint_sha256, features.feature, str(features.path))
    names, rows = features.whole()
    return [str(Path(features.folder, name)) for name in names], rows


def describe(index: Index, features: FeatureSet | None = None) -> str:
    """The index in a line; with its gallery's features, the recall of an approximate one in a second."""
    a = index.about
    line = f"{a.kind}, {a.count} vectors of {a.width}, {a.bytes_per_vector:.0f} bytes each, {a.count * a.bytes_per_vector / 2**20:.1f} MiB"
    if features is None or a.kind == "flat":
        return line
    return (
        f"{line}\nrecall@10 against exact search, {min(SAMPLE, a.count)} of its images: {recall(index, features):.3f}"
    )


def table(matches: Sequence[Sequence[Match]]) -> str:
    """Ranked lists as text."""
    rows = [[m.query if m.rank == 1 else "", m.rank, m.similarity, m.path] for one in matches for m in one]
    return tabulate(rows, ["query", "rank", "similarity", "path"], floatfmt=".4f")


def write_matches(matches: Sequence[Sequence[Match]], path: str | Path) -> None:
    """Ranked lists as .json (a list of {"query", "matches"}) or .csv (query, rank, similarity, path).

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".json":
        lists = [{"query": one[0].query, "matches": [asdict(m) for m in one]} for one in matches if one]
        write_json(path, lists)
    elif path.suffix == ".csv":

        def write(temporary: str) -> None:
            with open(temporary, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["query", "rank", "similarity", "path"])
                writer.writerows([m.query, m.rank, f"{m.similarity:.6f}", m.path] for one in matches for m in one)

        write_atomically(path, write)
    else:
        raise ValueError(f"{path}: write matches to a .json or a .csv file")
