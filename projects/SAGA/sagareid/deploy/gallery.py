"""Search extracted features: an index of FAISS with the paths of its images beside it.

n gallery images, F feature width, q queries, k matches. Similarity is the inner product of features of unit length, the
cosine.

An index is a folder: `index.json` (kind, width, checkpoint, feature, counts, and the names of the other two files),
`vectors-<n>.faiss` and `paths-<n>.parquet`. The JSON file is written last, so that an interrupted build or addition
leaves the index as it was before. `faiss_kinds` describes the kinds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors import first_line
from ..files import damaged, printable, read_record, write_atomically, write_json
from .faiss_kinds import choose_kind, empty_index, random_sample
from .feature_set import FeatureSet
from .matches import Match, nobody_below
from .threshold import Threshold

__all__ = [
    "Index",
    "add",
    "answers",
    "build",
    "describe",
    "feature_queries",
    "image_queries",
    "recall",
]

logger = logging.getLogger(__name__)

_REMEDY = "Build the index again from its features (tools/search.py build), into a new folder or this one"
SAMPLE = 200  # queries that recall is measured on


@dataclass(frozen=True)
class About:
    """The content of index.json.

    Attributes:
        effort: cells (ivfpq) or candidates (hnsw) that a query looks at; 0 for flat.
        bytes_per_vector: memory of the index, without the paths.
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


class Index:
    """A searchable gallery."""

    def __init__(self, vectors: Any, paths: pa.ChunkedArray, about: About):
        self.vectors, self.paths, self.about = vectors, paths, about

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Read an index.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"no index in {folder}; make one with tools/search.py build")
        about = read_record(About, folder / "index.json", remedy=_REMEDY)
        file = folder / about.vectors
        try:
            vectors = faiss.read_index(str(file))
            file = folder / about.paths
            paths = pq.read_table(file)["path"]
        except (RuntimeError, OSError, KeyError, pa.ArrowException) as error:
            wrong = f"it cannot be read ({first_line(error)})" if file.is_file() else "it is missing"
            raise damaged(file, wrong, _REMEDY) from error
        if vectors.ntotal != about.count or len(paths) != about.count:
            wrong = f"it holds {vectors.ntotal} vectors and {len(paths)} paths, expected {about.count}"
            raise damaged(folder, wrong, _REMEDY)
        if vectors.d != about.width:
            raise damaged(file, f"its vectors have {vectors.d} numbers, expected {about.width}", _REMEDY)
        return cls(vectors, paths, about)

    def save(self, folder: str | Path) -> None:
        """Write the index; the one that was in the folder stays whole until the last moment."""
        folder = Path(folder)
        write_atomically(folder / self.about.vectors, lambda temporary: faiss.write_index(self.vectors, temporary))
        table = pa.table({"path": self.paths})
        write_atomically(folder / self.about.paths, lambda temporary: pq.write_table(table, temporary))
        write_json(folder / "index.json", asdict(self.about))
        for old in (*folder.glob("vectors-*.faiss"), *folder.glob("paths-*.parquet")):
            if old.name not in (self.about.vectors, self.about.paths):
                old.unlink()

    def check(self, width: int, checkpoint_sha256: str, feature: str, source: str) -> None:
        """Check that features are comparable with the gallery's; an empty value is not compared.

        Raises:
            ValueError: another width, checkpoint or feature; the message names `source`.
        """
        if width != self.about.width:
            raise ValueError(
                f"{source} has features of width {width}, the index of {self.about.width}: they are not of one model"
            )
        for name, ours, other in (
            ("checkpoint", self.about.checkpoint_sha256, checkpoint_sha256),
            ("feature", self.about.feature, feature),
        ):
            if ours and other and ours != other:
                raise ValueError(
                    f"{source} is of {name} {other[:12]}, the index of {ours[:12]}: similarities between them mean "
                    "nothing"
                )

    def search(self, queries: np.ndarray, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors of the gallery.

        Args:
            queries: (q, F) features of unit length.
            effort: see `About`; None takes the index's own.

        Returns:
            (q, k) similarities in falling order and (q, k) numbers of vectors; -1 where the gallery has no more.
        """
        if k < 1:
            raise ValueError(f"{k} matches asked for; expected 1 or more")
        effort = effort or self.about.effort
        parameters: Any = None
        if self.about.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
        elif self.about.kind == "ivfpq":
            parameters = faiss.SearchParametersIVF(nprobe=effort)
        return self.vectors.search(np.ascontiguousarray(queries, np.float32), k, params=parameters)

    def matches(
        self,
        names: Sequence[str],
        queries: np.ndarray,
        k: int,
        effort: int | None = None,
        *,
        folder: str | Path = "",
    ) -> list[list[Match]]:
        """The ranked list of each query, with paths. A query that is in the gallery is left out of its own list.

        Args:
            folder: where the gallery's images are now; empty: where they were when the index was built.
        """
        similarities, numbers = self.search(queries, k + 1 if k > 0 else k, effort)  # one more, for the query itself
        lists, folder = [], folder or self.about.folder
        for name, scores, order in zip(names, similarities, numbers):
            itself = os.path.abspath(name)
            found = ((float(s), self.paths[int(number)].as_py()) for s, number in zip(scores, order) if number >= 0)
            others = [(s, path) for s, path in found if os.path.abspath(Path(folder, path)) != itself]
            lists.append([Match(name, rank, s, path) for rank, (s, path) in enumerate(others[:k], 1)])
        return lists


def build(features: FeatureSet, folder: str | Path, *, kind: str = "auto", memory_gib: float = 4.0) -> Index:
    """Build an index from features batch by batch, and save it.

    Args:
        kind: one of `options.KINDS`; "auto" leaves it to `choose_kind`.
        memory_gib: memory that the index and its building may take. An ivfpq gets as many bytes a vector as fit into
            half of it.

    Raises:
        ValueError: an empty gallery, an unknown kind, or one that does not fit the memory.
    """
    if not features.count:
        raise ValueError(f"{features.path} holds no feature, so there is nothing to search")
    memory = memory_gib * 2**30
    kind = choose_kind(features.count, features.width, memory) if kind == "auto" else kind
    vectors, per_vector, effort = empty_index(kind, features, memory)
    if features.count * per_vector > memory:
        raise ValueError(
            f"{kind}: {features.count} vectors of {per_vector:.0f} bytes need "
            f"{features.count * per_vector / 2**30:.1f} GiB; raise --memory ({memory_gib:g} GiB), or use --index auto"
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


def add(folder: str | Path, features: FeatureSet, images: str | Path | None = None) -> Index:
    """Append features to a saved index, and save it.

    Paths are kept relative to the folder of the images where both are of one folder, and made absolute otherwise.

    Args:
        images: where the images of the gallery are now; None: where the index says. It is saved, too.

    Raises:
        ValueError: features of another model, or paths that are in the index already.
    """
    index = Index.load(folder)
    index.check(features.width, features.checkpoint_sha256, features.feature, str(features.path))
    where = index.about.folder if images is None else str(Path(images).resolve())
    prefix = features.folder if features.folder != where else ""
    new = [str(Path(prefix, p)) if prefix else p for paths, _ in features.batches() for p in paths]
    doubles = set(index.paths.to_pylist()).intersection(new)
    if doubles:
        raise ValueError(
            f"{len(doubles)} images are in the index already, such as {min(doubles)}; build it anew instead"
        )
    _append(index.vectors, features)
    about = asdict(index.about) | {
        "count": index.about.count + features.count,
        "folder": where,
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


def _append(vectors: Any, features: FeatureSet) -> pa.ChunkedArray:
    """Add every feature; returns the paths."""
    chunks = []
    with tqdm(total=features.count, desc="indexing", unit="vec", disable=None) as bar:
        for paths, batch in features.batches():
            vectors.add(batch)
            chunks.append(pa.array(paths, pa.string()))
            bar.update(len(batch))
    return pa.chunked_array(chunks, type=pa.string())


def recall(
    index: Index, features: FeatureSet, *, k: int = 10, sample: int = SAMPLE, effort: int | None = None
) -> float:
    """The share of the exact k nearest neighbours that the index finds.

    The queries are a seeded sample of the gallery, each left out of its own neighbours. The exact neighbours come from
    one pass over the features, batch by batch.
    """
    k = min(k, features.count - 1)
    if k < 1:
        return 1.0
    numbers, queries = random_sample(features, sample, "query sample")
    heap = faiss.ResultHeap(len(numbers), k + 1, keep_max=True)
    start = 0
    with tqdm(total=features.count, desc="exact neighbours", unit="vec", disable=None) as bar:
        for _, batch in features.batches():
            nearest = faiss.knn(queries, batch, min(k + 1, len(batch)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(nearest[0], (nearest[1] + start).astype(np.int64))
            start += len(batch)
            bar.update(len(batch))
    heap.finalize()
    found = index.search(queries, k + 1, effort)[1]

    def neighbours(order: np.ndarray, query: int) -> set[int]:
        return set([int(number) for number in order if number != query][:k])

    hits = sum(len(neighbours(a, q) & neighbours(b, q)) for a, b, q in zip(heap.I, found, numbers))
    return hits / (k * len(numbers))


def image_queries(
    index: Index, images: Sequence[str | Path], checkpoint: str | Path, *, device: str = "auto"
) -> tuple[list[str], np.ndarray]:
    """Names and features of query images (files, or folders of them), extracted by the gallery's model.

    Raises:
        ValueError: the index is of another checkpoint, or none of the files can be read; others are logged.
    """
    from .extract_folder import list_images, open_extractor  # here: searching by features needs no PyTorch

    files: list[str] = []
    for image in images:
        files += [str(Path(image, name)) for name in list_images(image)[0]] if Path(image).is_dir() else [str(image)]
    extractor, sha256 = open_extractor(checkpoint, device=device, dtype="auto", feature=index.about.feature or "auto")
    index.check(extractor.width, sha256, extractor.feature, str(checkpoint))
    batches = list(extractor.iterate(files))
    for reason in (text for batch in batches for text in batch.unreadable.values()):
        logger.warning("left out: %s", reason)
    names = [files[place] for batch in batches for place in batch.indices]
    if not names:
        raise ValueError(f"none of the {len(files)} query image(s) can be read, such as {printable(files[0])}")
    return names, np.concatenate([batch.features.numpy() for batch in batches])


def feature_queries(index: Index, features: FeatureSet) -> tuple[list[str], np.ndarray]:
    """Names and features of extracted queries.

    Raises:
        ValueError: the index is of another model.
    """
    index.check(features.width, features.checkpoint_sha256, features.feature, str(features.path))
    names, queries = features.whole()
    return [str(Path(features.folder, name)) for name in names], queries


def answers(index: Index, matches: Sequence[Sequence[Match]], threshold: Threshold) -> list[list[Match]]:
    """Ranked lists down to a threshold; NOBODY where none reaches it.

    Warns of a gallery from elsewhere, and of an index whose similarities are approximate.

    Raises:
        ValueError: the threshold is of another model than the gallery.
    """
    threshold.check_model(index.about.checkpoint_sha256, index.about.feature, "the gallery")
    threshold.warn_elsewhere(index.about.folder)
    if index.about.kind == "ivfpq":
        logger.warning("similarities of an ivfpq index are approximate, the threshold is exact: use --index hnsw")
    return nobody_below(matches, threshold.value)


def describe(index: Index, features: FeatureSet | None = None) -> str:
    """The index in a line; with its gallery's features, the recall of an approximate one in a second line."""
    about = index.about
    line = (
        f"{about.kind}, {about.count} vectors of {about.width}, {about.bytes_per_vector:.0f} bytes each, "
        f"{about.count * about.bytes_per_vector / 2**20:.1f} MiB"
    )
    if features is None or about.kind == "flat":
        return line
    found = f"{recall(index, features):.3f}"
    return f"{line}\nrecall@10 against exact search, {min(SAMPLE, about.count)} of its images: {found}"
