"""Extracted features on disk, read batch by batch. n images, F feature width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .options import MANIFEST

__all__ = ["FeatureSet"]

BATCH_BYTES = 64 * 2**20  # of vectors read at a time


class FeatureSet:
    """The features that tools/extract.py writes, or any .npz with `features` and `paths`.

    Attributes:
        count: n.
        width: F.
        checkpoint_sha256, feature: the model that they come from; "" where the file does not say.
        folder: the folder of the images; "" where the file does not say.
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
        if self.path.suffix == ".npz" and self.path.is_file():
            with np.load(self.path) as arrays:
                if not {"features", "paths"} <= set(arrays.files):
                    raise ValueError(f"{path} holds {', '.join(arrays.files)}; expected `features` and `paths`")
                self._arrays = arrays["features"].astype(np.float32, copy=False), arrays["paths"].tolist()
                about = json.loads(str(arrays["about"])) if "about" in arrays.files else {}
            self.count, self.width = self._arrays[0].shape
        else:
            self._files = self._parquet_files()
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
                    features = batch["feature"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
                    yield batch["path"].to_pylist(), self._unit(features, start)
                    start += len(features)

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
