"""A gallery in Milvus: a file of Milvus Lite, or a collection of a server; the same code, by the address.

    milvus:people.db                        embedded; one process at a time
    milvus:http://host:19530/people         a server; https too. The environment's MILVUS_TOKEN is its user:password

It takes pymilvus and milvus-lite: ``pip install "sagareid[milvus]"``. q queries, k matches, F feature width.

Beside the collection of images there is a small one, NAME_about, with the model, the columns and the sources. Times are
kept as microseconds since 1970, each with a field `<column>__clock` of microseconds since midnight. Milvus has no
transactions over calls: an addition that was interrupted is there in part until it is repeated, which adds the rest.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import first_line
from . import filters
from .base import Added, Batch, Gallery, Hit, Model, checked_rows, register_engine
from .filters import DAY, Clock, Compare, In, Node, microseconds

__all__ = ["MilvusGallery", "expression"]

FORMAT = 1
ROWS = 1000  # of a request
MOST = 16_384  # matches that Milvus gives at most
LONGEST = 4096  # bytes of a text
CLOCK = "__clock"
# The kinds of index, as Milvus calls them; a file has no ivfpq.
INDEXES: dict[str, tuple[str, dict[str, int]]] = {
    "flat": ("FLAT", {}),
    "hnsw": ("HNSW", {"M": 32, "efConstruction": 80}),
    "ivfpq": ("IVF_PQ", {"nlist": 4096, "m": 64, "nbits": 8}),
}
EFFORT = {"flat": 0, "hnsw": 128, "ivfpq": 128}
EXTRA = 'a Milvus gallery needs pymilvus and milvus-lite: pip install "sagareid[milvus]"'


@register_engine("milvus")
class MilvusGallery(Gallery):
    """See the module."""

    atomic = False

    def __init__(self, place: str, client: Any, name: str, about: dict[str, Any]):
        self.address = f"milvus:{place}"
        self._client, self._name, self._kind = client, name, about["kind"]
        self.model, self.columns = Model(**about["model"]), dict(about["columns"])
        self.folder, self.exact = about["folder"], about["kind"] == "flat"
        self.approximate = about["kind"] == "ivfpq"

    # ---- making and opening ------------------------------------------------------------------------------------------

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
    ) -> MilvusGallery:
        """As of `Gallery.create`. kind: "auto" is exact in a file, and hnsw on a server. Milvus has its own settings of
        memory; `memory_gib` is FAISS's. What is replaced is gone before the new gallery is filled."""
        client, name = _connect(place)
        kind = ("flat" if _is_file(place) else "hnsw") if kind == "auto" else kind
        if kind not in INDEXES or (kind == "ivfpq" and _is_file(place)):
            raise ValueError(f"no index of kind {kind!r} in {place}; expected auto, flat or hnsw")
        about = {"format": FORMAT, "kind": kind, "model": asdict(model), "columns": dict(columns), "folder": folder}
        with _explained(place):
            there = [n for n in (name, _about(name)) if client.has_collection(n)]
            if there and not replace:
                raise FileExistsError(f"{place} holds a gallery already; delete it, or name another place")
            for old in reversed(there):
                client.drop_collection(old)
            _make_collections(client, name, model.width, columns, kind)
            _write_about(client, name, "about", json.dumps(about))
        gallery = cls(place, client, name, about)
        if batches is not None:
            gallery.add(batches())
        return gallery

    @classmethod
    def open(cls, place: str) -> MilvusGallery:
        if _is_file(place) and not Path(place).exists():
            raise FileNotFoundError(f"no gallery at {place}; make one with tools/search.py build")
        client, name = _connect(place)
        with _explained(place):
            found = []
            if client.has_collection(_about(name)) and client.has_collection(name):
                for collection in (name, _about(name)):  # into memory, after a restart
                    client.load_collection(collection)
                found = client.query(_about(name), filter='key == "about"', output_fields=["value"])
        if not found:
            raise FileNotFoundError(f"no gallery at {place}; make one with tools/search.py build")
        about = json.loads(found[0]["value"])
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{place} is a gallery of format {about.get('format')}, written by a newer version; this one reads "
                f"format {FORMAT}. Update sagareid, or build the gallery again"
            )
        return cls(place, client, name, about)

    # ---- changes -----------------------------------------------------------------------------------------------------

    def add(
        self, batches: Iterable[Batch], *, replace: bool = False, source: str = "", folder: str | None = None
    ) -> Added:
        added = replaced = present = 0
        with _explained(self.address):
            if source and source in self.sources():
                return Added(0, 0, 0)
            for batch in batches:
                rows = checked_rows(batch, self.model, self.columns)
                for low in range(0, len(rows), ROWS):
                    counts = self._add(rows.slice(low, ROWS), batch.features[low : low + ROWS], replace)
                    added, replaced, present = added + counts[0], replaced + counts[1], present + counts[2]
            if source:
                _write_about(self._client, self._name, f"source {source}", "")
            if folder is not None and folder != self.folder:
                self.folder = folder
                _write_about(self._client, self._name, "about", json.dumps(self._as_written()))
        return Added(added, replaced, present)

    def _add(self, rows: pa.Table, features: np.ndarray, replace: bool) -> tuple[int, int, int]:
        ids = rows["id"].to_pylist()
        there = {entry["id"] for entry in self._client.get(self._name, ids=ids, output_fields=["id"])}
        entries: dict[str, dict[str, Any]] = {}
        for entry, feature in zip(self._entries(rows), features):
            if entry["id"] not in entries and (replace or entry["id"] not in there):
                entries[entry["id"]] = entry | {"feature": feature}
        if entries:
            self._client.upsert(self._name, list(entries.values()))
        return len(entries), len(there & entries.keys()), len(ids) - len(entries)

    def _entries(self, rows: pa.Table) -> list[dict[str, Any]]:
        columns = {name: rows[name] for name in rows.column_names}
        for name, kind in self.columns.items():
            if kind == "time":
                columns[name] = rows[name].cast(pa.int64())
                days = pc.floor(pc.divide(columns[name].cast(pa.float64()), float(DAY))).cast(pa.int64())
                columns[name + CLOCK] = pc.subtract(columns[name], pc.multiply(days, DAY))
        return pa.table(columns).to_pylist()

    def delete(self, ids: Iterable[str] = (), *, where: str = "") -> int:
        wanted = list(dict.fromkeys(ids))
        if not wanted and not where.strip():
            raise ValueError("delete takes ids or a filter; neither is given")
        with _explained(self.address):
            count = 0
            for low in range(0, len(wanted), ROWS):
                there = self._client.get(self._name, ids=wanted[low : low + ROWS], output_fields=["id"])
                if there:
                    self._client.delete(self._name, ids=[entry["id"] for entry in there])
                count += len(there)
            if where.strip():
                passing = self._count(self._expression(where))
                if passing:
                    self._client.delete(self._name, filter=self._expression(where))
                count += passing
        return count

    def compact(self) -> None:
        with _explained(self.address):
            self._client.flush(self._name)
            self._client.compact(self._name)

    # ---- questions ---------------------------------------------------------------------------------------------------

    def count(self, where: str = "") -> int:
        text = self._expression(where)
        with _explained(self.address):
            return self._count(text)

    def _count(self, text: str) -> int:
        return int(self._client.query(self._name, filter=text, output_fields=["count(*)"])[0]["count(*)"])

    def sources(self) -> set[str]:
        with _explained(self.address):
            found = self._client.query(_about(self._name), filter='key like "source %"', output_fields=["key"])
        return {entry["key"].removeprefix("source ") for entry in found}

    def get(self, ids: Sequence[str]) -> list[Hit | None]:
        found: dict[str, Hit] = {}
        with _explained(self.address):
            for low in range(0, len(ids), ROWS):
                some = list(dict.fromkeys(ids[low : low + ROWS]))
                for entry in self._client.get(self._name, ids=some, output_fields=self._fields):
                    found[entry["id"]] = self._hit(entry, 1.0)
        return [found.get(name) for name in ids]

    def describe(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "engine": self.scheme,
            "kind": self._kind,
            "count": self.count(),
            "width": self.model.width,
            "model": asdict(self.model),
            "columns": dict(self.columns),
            "folder": self.folder,
            "effort": EFFORT[self._kind],
        }

    def query(
        self, features: np.ndarray, k: int = 10, *, where: str = "", effort: int | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """As of `Gallery.query`; k up to 16,384, Milvus's own limit. `exact` takes a gallery of kind flat.

        Raises:
            ValueError: also: k above the limit, or `exact` where the index is approximate.
        """
        features = self._checked_queries(features, k)
        if k > MOST:
            raise ValueError(f"{k} matches asked for; Milvus gives {MOST} at most")
        if exact and not self.exact:
            raise ValueError(f"{self.address} has an index of kind {self._kind}; exact search takes one of kind flat")
        text, found = self._expression(where), []
        name = {"hnsw": "ef", "ivfpq": "nprobe"}.get(self._kind)
        params = {name: max(effort or EFFORT[self._kind], k if name == "ef" else 1)} if name else {}
        with _explained(self.address):
            for low in range(0, len(features), ROWS):
                found += self._client.search(
                    self._name,
                    data=list(features[low : low + ROWS]),
                    limit=k,
                    filter=text,
                    output_fields=self._fields,
                    anns_field="feature",
                    search_params={"metric_type": "IP", "params": params},
                )
        return [[self._hit(hit["entity"], float(hit["distance"])) for hit in one] for one in found]

    @property
    def _fields(self) -> list[str]:
        return ["id", "path", *self.columns]

    def _hit(self, entry: Mapping[str, Any], similarity: float) -> Hit:
        values = {name: entry.get(name) for name in self.columns}
        for name, kind in self.columns.items():
            moment = values[name]
            if kind == "time" and moment is not None:
                values[name] = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=moment)
        return Hit(entry["id"], entry["path"], similarity, values)

    def _expression(self, where: str) -> str:
        node = self._node(where)
        return "" if node is None else expression(node, self.columns)

    def _as_written(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self._kind,
            "model": asdict(self.model),
            "columns": self.columns,
            "folder": self.folder,
        }


# ---- filters ---------------------------------------------------------------------------------------------------------

NOTHING = 'id == ""'  # what no image passes


def expression(node: Node, columns: Mapping[str, str]) -> str:
    """A filter in Milvus's language. A missing value passes no test: Milvus itself lets it pass `not in`."""
    if isinstance(node, (filters.All, filters.Any)):
        word = " and " if isinstance(node, filters.All) else " or "
        return "(" + word.join(expression(part, columns) for part in node.parts) + ")"
    there = f"{node.column} is not null"
    if isinstance(node, In):
        values = [v for v in node.values if columns[node.column] != "integer" or float(v) == int(v)]  # type: ignore
        if not values:
            return f"({there})" if node.negated else NOTHING
        listed = ", ".join(_literal(int(v) if columns[node.column] == "integer" else v) for v in values)  # type: ignore
        return f"({node.column} {'not in' if node.negated else 'in'} [{listed}] and {there})"
    assert isinstance(node, Compare)
    column = node.column + CLOCK if isinstance(node.value, Clock) else node.column
    return f"({column} {node.op} {_literal(node.value)} and {there})"


def _literal(value: filters.Value) -> str:
    if isinstance(value, Clock):
        return str(value.microseconds)
    if isinstance(value, dt.datetime):
        return str(microseconds(value))
    return json.dumps(value, ensure_ascii=False)


# ---- the client ------------------------------------------------------------------------------------------------------


def _is_file(place: str) -> bool:
    return not re.match(r"(https?|tcp|unix)://", place)


def _about(name: str) -> str:
    return f"{name}_about"


def _connect(place: str) -> tuple[Any, str]:
    """The client, and the name of the collection.

    Raises:
        ImportError: pymilvus or Milvus Lite is not installed; the message names the extra.
        ValueError: no address of Milvus.
        OSError: no server answers, or another process has the file open.
    """
    lite = _is_file(place)
    if any(importlib.util.find_spec(name) is None for name in ("pymilvus", *(["milvus_lite"] if lite else []))):
        raise ImportError(EXTRA)
    from pymilvus import MilvusClient, MilvusException

    if lite:
        if not place.endswith(".db"):
            raise ValueError(f"milvus:{place}: expected milvus:FILE.db or milvus:http://HOST:PORT/COLLECTION")
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        uri, name = str(Path(place).resolve()), "gallery"
    else:
        match = re.fullmatch(r"(\w+://[^/]+)/([A-Za-z_]\w*)/?", place)
        if match is None:
            raise ValueError(
                f"milvus:{place} names no collection; expected milvus:http://HOST:PORT/COLLECTION, of letters, digits "
                "and _"
            )
        uri, name = match.groups()
    # they log a traceback of every error, which is raised as well, and of calls that the embedded server does without
    for logger in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=10), name
    except MilvusException as error:
        if lite:
            raise OSError(
                f"{place} cannot be opened: another process has it open, or it is nothing of Milvus Lite. A file is "
                "for one process at a time, a Milvus server for many"
            ) from error
        raise OSError(
            f"Milvus at {place} does not answer ({first_line(error.message)}); start it, or mend the address"
        ) from error


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Milvus's errors as ours."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise OSError(f"Milvus at {place}: {first_line(error.message)}") from error


def _make_collections(client: Any, name: str, width: int, columns: Mapping[str, str], kind: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
    schema.add_field("path", DataType.VARCHAR, max_length=LONGEST)
    schema.add_field("feature", DataType.FLOAT_VECTOR, dim=width)
    types = {"integer": DataType.INT64, "number": DataType.DOUBLE, "boolean": DataType.BOOL, "time": DataType.INT64}
    for column, of_kind in columns.items():
        if of_kind == "text":
            schema.add_field(column, DataType.VARCHAR, max_length=LONGEST, nullable=True)
        else:
            schema.add_field(column, types[of_kind], nullable=True)
        if of_kind == "time":
            schema.add_field(column + CLOCK, DataType.INT64, nullable=True)
    about = client.create_schema(auto_id=False, enable_dynamic_field=False)
    about.add_field("key", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
    about.add_field("value", DataType.VARCHAR, max_length=65535)
    about.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # Milvus has no collection without a vector
    index, params = INDEXES[kind]
    for collection, fields, vector, of_type in (
        (name, schema, "feature", index),
        (_about(name), about, "nothing", "FLAT"),
    ):
        indexes = client.prepare_index_params()
        indexes.add_index(vector, index_type=of_type, metric_type="IP", params=params if collection == name else {})
        client.create_collection(collection, schema=fields, index_params=indexes, consistency_level="Strong")


def _write_about(client: Any, name: str, key: str, value: str) -> None:
    client.upsert(_about(name), [{"key": key, "value": value, "nothing": [0.0, 0.0]}])
