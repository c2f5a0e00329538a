"""A gallery of features with what is known of each image: one interface, chosen by its address.

An address is `SCHEME:PLACE`; a plain path is `faiss:PATH`. Schemes that ship: `faiss` (a folder) and `milvus` (a file
of Milvus Lite, or a server). An engine is one file with one class, registered under its scheme; one of a user's own
comes in by `--import`::

    @register_engine("mine")
    class MyGallery(Gallery):
        ...

n gallery images, q queries, k matches, F feature width. Features have unit length and similarity is their inner
product, the cosine, from -1 to 1.
"""

from __future__ import annotations

import datetime as dt
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa

from ...errors import did_you_mean
from . import filters
from .columns import NAME, OWN, STANDARD

__all__ = [
    "Added",
    "Batch",
    "Gallery",
    "Hit",
    "Measurable",
    "Model",
    "checked_rows",
    "create",
    "engines",
    "open_gallery",
    "register_engine",
    "split",
]


@dataclass(frozen=True)
class Model:
    """The fingerprint of the model that features are of; an empty value is not known and is compared with nothing.

    Attributes:
        width: F.
        checkpoint_sha256: of the checkpoint's bytes.
        feature: its name, such as "refined".
        size: (height, width) of the images that the model is given, in pixels; [] where it is not known.
    """

    width: int
    checkpoint_sha256: str = ""
    feature: str = ""
    size: list[int] = field(default_factory=list)

    def check(self, other: Model, source: str) -> None:
        """See that features of `other` are comparable with these.

        Raises:
            ValueError: another width, checkpoint, feature or input size; the message names `source`.
        """
        if other.width != self.width:
            raise ValueError(
                f"{source} has features of width {other.width}, the gallery of {self.width}: they are not of one model"
            )
        for name, ours, its in (
            ("checkpoint", self.checkpoint_sha256[:12], other.checkpoint_sha256[:12]),
            ("feature", self.feature, other.feature),
            ("input size", " x ".join(map(str, self.size)), " x ".join(map(str, other.size))),
        ):
            if ours and its and ours != its:
                raise ValueError(
                    f"{source} is of {name} {its}, the gallery of {ours}: similarities between them mean nothing"
                )


class Batch(NamedTuple):
    """Some images with their features, as they come into a gallery.

    Attributes:
        rows: (m) `id` and `path` (texts), and the gallery's columns.
        features: (m, F) float32 of unit length.
    """

    rows: pa.Table
    features: np.ndarray


class Added(NamedTuple):
    """How many images came in, how many of them in the place of an earlier one, and how many were there already."""

    added: int
    replaced: int
    present: int


class Hit(NamedTuple):
    """One image that was found.

    Attributes:
        id: its name in the gallery. path: of its file, from the gallery's `folder` on, or absolute.
        similarity: -1..1.
        values: of the gallery's columns, by name: text, int, float, bool, `datetime` in UTC, or None.
    """

    id: str
    path: str
    similarity: float
    values: dict[str, Any]


class Gallery(ABC):
    """A gallery that is open. Several processes may read it at once; writers wait for one another.

    What `add`, `delete` and `expire` have returned from is kept, whatever happens to the process or the machine then.
    What was interrupted is done as a whole or not at all where `atomic`, otherwise perhaps in part; it may be repeated.

    Attributes:
        address: SCHEME:PLACE.
        model: of its features.
        columns: the kind (`columns.KINDS`) of every column by its name.
        folder: where relative paths begin; "" where that is not known.
        exact: whether similarities and neighbours are exact.
        atomic: whether a change is done as a whole or not at all.
        approximate: whether similarities themselves are not those of the features.
    """

    scheme: ClassVar[str] = ""
    atomic: ClassVar[bool] = True
    approximate: bool = False
    address: str
    model: Model
    columns: dict[str, str]
    folder: str
    exact: bool

    # ---- what an engine does -----------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
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
    ) -> Gallery:
        """Make a gallery; what was there is replaced at the last moment.

        Args:
            kind: of index, where the engine has several.
            memory_gib: that the index may take in a search.
            batches: gives the images that it begins with; None: it begins empty. count: how many, where it is known.
            replace: put it in the place of one that is there.

        Raises:
            FileExistsError: there is one, and it is not to be replaced.
        """

    @classmethod
    @abstractmethod
    def open(cls, place: str) -> Gallery:
        """Open a gallery.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """

    @abstractmethod
    def add(
        self, batches: Iterable[Batch], *, replace: bool = False, source: str = "", folder: str | None = None
    ) -> Added:
        """Add images; one whose id is there already is left as it is, so that an addition may be repeated.

        Args:
            replace: put it in the place of the one that is there.
            source: a name for these images as a whole. What was added under a name is never added under it again, even
                if it was deleted since.
            folder: where the images of the gallery are now; None: where they were.

        Raises:
            ValueError: features of another width, or columns that are not the gallery's.
            OSError: the disk is full, for one; the gallery is as it was.
        """

    @abstractmethod
    def query(
        self, features: np.ndarray, k: int = 10, *, where: str = "", effort: int | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """The most similar images of each query, the best first; fewer than k where fewer pass.

        Args:
            features: (q, F) of unit length.
            where: a filter (`filters`); empty: all images.
            effort: how many cells or candidates an approximate index looks at; None: its own choice.
            exact: compare with every image that passes.

        Raises:
            ValueError: features of another width, k below 1, or no filter.
        """

    @abstractmethod
    def delete(self, ids: Iterable[str] = (), *, where: str = "") -> int:
        """Delete images by their ids, and those that pass a filter; returns how many.

        Raises:
            ValueError: neither is given, or no filter.
        """

    @abstractmethod
    def compact(self) -> None:
        """Give the space of deleted images free, so that nothing of them is left."""

    @abstractmethod
    def count(self, where: str = "") -> int:
        """How many images pass a filter, or how many there are.

        Raises:
            ValueError: no filter.
        """

    @abstractmethod
    def get(self, ids: Sequence[str]) -> list[Hit | None]:
        """Images by id, None where there is none, of similarity 1."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it is, in values of JSON: engine, kind, count, width, columns, sizes in bytes."""

    @abstractmethod
    def sources(self) -> set[str]:
        """The names under which images were added as a whole."""

    # ---- what follows from it ----------------------------------------------------------------------------------------

    def expire(self, older_than: dt.timedelta | dt.datetime, *, now: dt.datetime | None = None) -> int:
        """Delete the images whose time is before a moment, or more than a duration ago; returns how many.

        Images without a time stay.

        Raises:
            ValueError: the gallery has no times.
        """
        if "time" not in self.columns:
            raise ValueError(
                f"{self.address} has no column time, so that nothing in it grows old; extract with --metadata or "
                "--pattern, and build it anew"
            )
        if isinstance(older_than, dt.timedelta):
            older_than = (now or dt.datetime.now(dt.UTC)) - older_than
        return self.delete(where=f"time < {older_than.astimezone(dt.UTC).isoformat()}")

    def check_filter(self, where: str) -> None:
        """See that a text is a filter of this gallery.

        Raises:
            ValueError: it is none; the message says where.
        """
        self._node(where)

    def _node(self, where: str) -> filters.Node | None:
        return filters.parse(where, self.columns) if where.strip() else None

    def _checked_queries(self, features: np.ndarray, k: int) -> np.ndarray:
        if k < 1:
            raise ValueError(f"{k} matches asked for; expected 1 or more")
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.model.width:
            raise ValueError(f"queries are {features.shape}; expected (q, {self.model.width})")
        if not np.isfinite(features).all():
            raise ValueError("a query has a value that is not finite")
        return features


@runtime_checkable
class Measurable(Protocol):
    """A gallery that can say how many of the exact neighbours it finds."""

    def recall(self, *, k: int = 10, sample: int = 200, where: str = "", effort: int | None = None) -> float:
        """The share of the exact k nearest neighbours that the index finds, over a seeded sample of the gallery."""


def checked_rows(batch: Batch, model: Model, columns: Mapping[str, str]) -> pa.Table:
    """The rows of a batch with the columns of a gallery, in their order.

    Raises:
        ValueError: features of another width, or not finite; or a column is missing.
    """
    rows, features = batch
    if features.ndim != 2 or features.shape != (len(rows), model.width):
        raise ValueError(f"{len(rows)} images have features of {features.shape}; expected ({len(rows)}, {model.width})")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(1)).argmax())
        raise ValueError(f"the feature of {rows['path'][bad].as_py()} is not finite; extract it again")
    for name in ("id", "path"):
        if rows[name].null_count:
            raise ValueError(f"{rows[name].null_count} of the images have no {name}; every image takes one")
    if lacking := [name for name in columns if name not in rows.column_names]:
        raise ValueError(
            f"the images have no column {lacking[0]!r}, which the gallery has; extract them with the same --metadata "
            "and --pattern"
        )
    return rows.select(["id", "path", *columns])


# ---- engines ---------------------------------------------------------------------------------------------------------

_ENGINES: dict[str, type[Gallery]] = {}
# Engines that ship are imported when an address asks for them: each needs a library that the others do not.
_SHIPPED = {"faiss": ".faiss_engine", "milvus": ".milvus_engine"}

E = TypeVar("E", bound=type[Gallery])


def register_engine(scheme: str) -> Callable[[E], E]:
    """Class decorator: addresses `scheme:PLACE` are of this class.

    Raises:
        ValueError: the scheme is taken.
    """

    def register(cls: E) -> E:
        if scheme in _ENGINES:
            raise ValueError(f"{cls.__qualname__} and {_ENGINES[scheme].__qualname__} are both of scheme {scheme!r}")
        cls.scheme = scheme
        _ENGINES[scheme] = cls
        return cls

    return register


def engines() -> dict[str, type[Gallery]]:
    """Every engine by its scheme."""
    return {name: _engine(name) for name in (*_SHIPPED, *(n for n in _ENGINES if n not in _SHIPPED))}


def _engine(scheme: str) -> type[Gallery]:
    if scheme not in _ENGINES and scheme in _SHIPPED:
        importlib.import_module(_SHIPPED[scheme], __package__)
    return _ENGINES[scheme]


def split(address: str | Path) -> tuple[str, str]:
    """Scheme and place of an address; a plain path is FAISS's.

    Raises:
        ValueError: an unknown scheme, or no place.
    """
    text = str(address)
    match = re.match(r"([A-Za-z][\w+-]+):(.*)", text, re.DOTALL)
    if match is None or Path(text).exists():
        return "faiss", text
    scheme, place = match.groups()
    known = [*_SHIPPED, *_ENGINES]
    if scheme not in known:
        raise ValueError(
            f"{text}: no gallery engine is called {scheme!r}; known: {', '.join(dict.fromkeys(known))}."
            f"{did_you_mean(scheme, known)}"
        )
    if not place:
        raise ValueError(f"{text} names no place; expected {scheme}:PLACE")
    return scheme, place


def open_gallery(address: str | Path) -> Gallery:
    """Open the gallery at an address; errors as of `split` and `Gallery.open`."""
    scheme, place = split(address)
    return _engine(scheme).open(place)


def create(address: str | Path, model: Model, columns: Mapping[str, str], **options: Any) -> Gallery:
    """Make a gallery at an address; arguments and errors as of `Gallery.create`.

    Raises:
        ValueError: a column's name cannot stand in a filter, or its kind is not what that name has.
    """
    for name, kind in columns.items():
        if not NAME.fullmatch(name) or name in OWN:
            raise ValueError(
                f"column {name!r}: a filter cannot name it; expected letters, digits and _, and none of "
                f"{', '.join(OWN)}"
            )
        if STANDARD.get(name, kind) != kind:
            raise ValueError(f"column {name!r} is of kind {kind}; expected {STANDARD[name]}")
    scheme, place = split(address)
    return _engine(scheme).create(place, model, columns, **options)
