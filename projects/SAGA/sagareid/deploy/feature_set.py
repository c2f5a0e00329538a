"""Extracted features on disk, read batch by batch. n images, F feature width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import first_line
from ..files import damaged, parse_json, read_json, read_npz
from .options import MANIFEST, REMEDY, REMEDY_OF_MANIFEST

__all__ = ["FeatureSet", "about_parquet", "whole_parquet"]

BATCH_BYTES = 64 * 2**20  # of vectors read at a time


@contextmanager
def whole_parquet(file: Path) -> Iterator[None]:
    """Name the file where pyarrow cannot read it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise damaged(file, f"it is no whole Parquet file ({first_line(error)})", REMEDY) from error


def _rows(file: Path) -> int:
    with whole_parquet(file):
        return pq.read_metadata(file).num_rows


def about_parquet(schema: pa.Schema, file: Path) -> dict[str, Any]:
    """What tools/extract.py says in a Parquet file of the features in it; {} in a file of other code.

    Raises:
        DamagedFile: it cannot be read.
    """
    text = (schema.metadata or {}).get(b"sagareid", b"{}")
    return parse_json(text.decode("utf-8", errors="replace"), file, remedy=REMEDY)


class FeatureSet:
    """The features that tools/extract.py writes, or any .npz with `features` and `paths`.

    Attributes:
        count: n.
        width: F.
        checkpoint_sha256, feature: the model that they come from; "" where the file does not say.
        size: (height, width) of the images that the model was given, in pixels; [] where the file does not say.
        folder: the folder of the images; "" where the file does not say.
        schema: of the other columns, what is known of each image; without any in a .npz file.
    """

    def __init__(self, path: str | Path):
        """Open a .npz file, a .parquet file or a folder of shards.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: the shards are unfinished, or the file holds no features.
        """
        self.path = Path(path)
        self._arrays: tuple[np.ndarray, list[str]] | None = None
        self._files: list[Path] = []
        about: dict[str, Any] = {}
        self.schema = pa.schema([])
        if self.path.suffix == ".npz" and self.path.is_file():
            arrays = read_npz(self.path, remedy=REMEDY)
            if not {"features", "paths"} <= arrays.keys():
                raise ValueError(f"{path} holds {', '.join(arrays)}; expected `features` and `paths`")
            features, paths = arrays["features"], arrays["paths"]
            if features.ndim != 2 or features.dtype.kind != "f" or paths.shape != features.shape[:1]:
                raise ValueError(
                    f"{path}: `features` is {features.shape} {features.dtype} and `paths` {paths.shape}; expected "
                    "(n, F) floating and (n,)"
                )
            self._arrays = features.astype(np.float32, copy=False), paths.tolist()
            about = parse_json(str(arrays["about"]), self.path, remedy=REMEDY) if "about" in arrays else {}
            self.count, self.width = features.shape
        else:
            self._files = self._parquet_files()
            with whole_parquet(self._files[0]):
                schema = pq.read_schema(self._files[0])
            if not {"path", "feature"} <= set(schema.names) or not pa.types.is_fixed_size_list(
                schema.field("feature").type
            ):
                raise ValueError(
                    f"{self._files[0]} has the columns {', '.join(schema.names)}; expected `path` and `feature`"
                )
            about = about_parquet(schema, self._files[0])
            self.count = sum(_rows(f) for f in self._files)
            self.width = schema.field("feature").type.list_size
            self.schema = pa.schema([field for field in schema if field.name not in ("path", "feature", "state")])
        self.checkpoint_sha256 = about.get("checkpoint_sha256", "")
        self.feature, self.folder = about.get("feature", ""), about.get("folder", "")
        self.size = list(about.get("size", []))

    def _parquet_files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise FileNotFoundError(f"no features at {self.path}; make them with tools/extract.py")
        manifest = self.path / MANIFEST
        files = sorted(self.path.glob("*.parquet"))
        if manifest.exists():
            shards = read_json(manifest, remedy=REMEDY_OF_MANIFEST, required={"shards": int})["shards"]
            files = [self.path / f"part-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
            lacking = [f for f in files if not f.exists()]
            if lacking:
                raise ValueError(
                    f"{self.path} lacks {len(lacking)} of {shards} shards, such as {lacking[0].name}: the same "
                    "tools/extract.py command finishes it"
                )
        if not files:
            raise FileNotFoundError(f"no Parquet file in {self.path}; make them with tools/extract.py")
        return files

    def batches(self, size: int | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Paths and (m, F) float32 features of unit length, m up to `size`, in a fixed order.

        Args:
            size: features of a batch; None takes as many as BATCH_BYTES holds.
        """
        for rows, features in self.rows((), size):
            yield rows["path"].to_pylist(), features

    def rows(self, columns: Sequence[str], size: int | None = None) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """`path` and other columns (m), with features as of `batches`.

        Raises:
            ValueError: a shard lacks a column that the first one has, or has features of another width.
        """
        size = size or max(1, BATCH_BYTES // (4 * self.width))
        if self._arrays is not None:
            features, paths = self._arrays
            for start in range(0, self.count, size):
                names = pa.array(paths[start : start + size], pa.string())
                yield pa.table({"path": names}), self._unit(features[start : start + size], start)
            return
        start = 0
        for file in self._files:
            with whole_parquet(file), pq.ParquetFile(file) as parquet:
                self._check_like_the_first(file, parquet.schema_arrow, columns)
                for batch in parquet.iter_batches(size, columns=["path", "feature", *columns]):
                    features = batch["feature"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
                    yield pa.Table.from_batches([batch]).drop_columns(["feature"]), self._unit(features, start)
                    start += len(features)

    def _check_like_the_first(self, file: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
        for name in ("path", "feature", *columns):
            if name not in schema.names:
                raise ValueError(f"{file} has no column {name!r}, which {self._files[0].name} has; extract it again")
        kind = schema.field("feature").type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != self.width:
            raise ValueError(
                f"{file} has features of type {kind}, expected {self.width} numbers each; extract it again"
            )

    def _unit(self, features: np.ndarray, start: int) -> np.ndarray:
        """Features divided by their norms; `start` is the number of the first."""
        norm = np.linalg.norm(features, axis=1, keepdims=True)
        bad = ~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0))
        if bad.any():
            raise ValueError(
                f"{self.path}: feature {start + int(bad.argmax())} is zero or not finite; extract it again"
            )
        return np.ascontiguousarray(features / norm, dtype=np.float32)

    def whole(self) -> tuple[list[str], np.ndarray]:
        """All paths and (n, F) features at once, for query sets, which fit into memory."""
        parts = list(self.batches())
        return [p for paths, _ in parts for p in paths], np.concatenate([x for _, x in parts])
