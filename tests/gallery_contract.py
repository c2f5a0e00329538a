"""What every engine of a gallery promises; test_gallery.py holds FAISS to it, interop/test_milvus.py Milvus."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from sagareid.deploy import gallery

COLUMNS = {
    "camera": "text",
    "time": "time",
    "track": "text",
    "frame": "integer",
    "score": "number",
    "indoor": "boolean",
}
MODEL = gallery.Model(16, "abc", "fusion", [256, 128])
START = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)

Make = Callable[..., gallery.Gallery]  # model, columns and options of `create`


def unit(n: int, seed: int = 0, width: int = 16) -> np.ndarray:
    """(n, F) features around 40 people; those of image i are the same whatever n is."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, width))[np.arange(n) * 7 % 40] + 0.3 * rng.normal(size=(n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def batch(first: int, last: int, seed: int = 0) -> gallery.Batch:
    """Images `first` to `last`; every tenth has no camera, every seventh no frame. One comes every 37 minutes."""
    numbers = range(first, last)
    ids = [f"i{i}" for i in numbers]
    rows = {
        "id": ids,
        "path": [f"{i}.jpg" for i in numbers],
        "camera": [None if i % 10 == 9 else str(i % 5) for i in numbers],
        "time": pa.array([START + dt.timedelta(minutes=37 * i) for i in numbers], pa.timestamp("us", "UTC")),
        "track": [f"t{i // 7}" for i in numbers],
        "frame": pa.array([None if i % 7 == 6 else i for i in numbers], pa.int64()),
        "score": [i % 100 / 100 for i in numbers],
        "indoor": [i % 2 == 0 for i in numbers],
    }
    return gallery.Batch(pa.table(rows), unit(last, seed)[first:])


FILTERS: dict[str, Callable[[dict], bool]] = {
    "camera == 3": lambda r: r["camera"] == "3",
    "camera in (3, '4')": lambda r: r["camera"] in ("3", "4"),
    "camera not in (3, 4)": lambda r: r["camera"] is not None and r["camera"] not in ("3", "4"),
    "not camera == 3": lambda r: r["camera"] is not None and r["camera"] != "3",
    "frame >= 20 and frame < 50": lambda r: r["frame"] is not None and 20 <= r["frame"] < 50,
    "frame between 20 and 50 or camera == 1": lambda r: (
        (r["frame"] is not None and 20 <= r["frame"] <= 50) or r["camera"] == "1"
    ),
    "not (frame between 20 and 50 or camera == 1)": lambda r: (
        r["frame"] is not None and not 20 <= r["frame"] <= 50 and r["camera"] not in ("1", None)
    ),
    "score > 0.305 and indoor == true": lambda r: r["score"] > 0.305 and r["indoor"],
    "time between 8:00 and 9:00": lambda r: dt.time(8) <= r["time"].time() <= dt.time(9),
    "time between 22:00 and 3:30": lambda r: r["time"].time() >= dt.time(22) or r["time"].time() <= dt.time(3, 30),
    "not time between 22:00 and 3:30": lambda r: dt.time(3, 30) < r["time"].time() < dt.time(22),
    "time < 2026-11-02T01:00+01:00": lambda r: r["time"] < START + dt.timedelta(days=1),
    "time between 2026-11-02 and 2026-11-03 and track != 't60'": lambda r: (
        START + dt.timedelta(days=1) <= r["time"] <= START + dt.timedelta(days=2) and r["track"] != "t60"
    ),
    "track == \"it's\" or track == 't3'": lambda r: r["track"] == "t3",
}


def ids_of(found: list[list[gallery.Hit]]) -> list[list[str]]:
    return [[hit.id for hit in one] for one in found]


def check_filters(make: Make) -> None:
    """Each filter passes what it says, in counts and in searches."""
    rows = batch(0, 300)
    crops = make(MODEL, COLUMNS, batches=lambda: [rows])
    records = rows.rows.to_pylist()
    for where, passes in FILTERS.items():
        wanted = {record["id"] for record in records if passes(record)}
        assert 0 < len(wanted) < 300, where
        assert crops.count(where) == len(wanted), where
        [found] = crops.query(rows.features[:1], 300, where=where, exact=True)
        assert {hit.id for hit in found} == wanted, where
    assert crops.count() == 300
    for wrong, message in (("camra == 3", "no column 'camra'.*Did you mean camera"), ("camera in 3", "expected `\\("),
                           ("frame == x", "expected a number"), ("camera ==", "expected a value")):  # fmt: skip
        for ask in (crops.count, lambda where: crops.query(rows.features[:1], where=where), crops.check_filter):
            with pytest.raises(ValueError, match=message):
                ask(wrong)


def check_search(make: Make) -> None:
    """The nearest in falling order, with their values, and fewer where fewer are there."""
    rows = batch(0, 200)
    crops = make(MODEL, COLUMNS, folder="/crops", batches=lambda: [rows])
    products = rows.features[:20] @ rows.features.T
    found = crops.query(rows.features[:20], 5)
    assert ids_of(found) == [[f"i{j}" for j in np.argsort(-p)[:5]] for p in products]
    np.testing.assert_allclose(
        [[hit.similarity for hit in one] for one in found], -np.sort(-products, axis=1)[:, :5], atol=1e-4
    )
    assert crops.query(rows.features[19:20], 1)[0][0].values == {
        "camera": None,
        "time": START + dt.timedelta(minutes=37 * 19),
        "track": "t2",
        "frame": 19,
        "score": pytest.approx(0.19),
        "indoor": False,
    }
    assert found[3][0].path == "3.jpg" and crops.folder == "/crops"
    assert len(crops.query(rows.features[:1], 50, where="track == 't3'")[0]) == 7
    assert crops.query(rows.features[:2], 5, where="track == 'nobody'") == [[], []]
    [there, gone] = crops.get(["i7", "nothing"])
    assert gone is None and there is not None and (there.id, there.path, there.values["frame"]) == ("i7", "7.jpg", 7)
    for features, k, message in (
        (rows.features[:, :8], 5, "expected \\(q, 16\\)"),
        (rows.features[:1], 0, "0 matches asked for"),
        (rows.features[:1] * np.nan, 5, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            crops.query(features, k)


def check_changes(make: Make) -> None:
    """Adding twice adds once; deleting, replacing and expiring; a gallery that is opened again is the same."""
    crops = make(MODEL, COLUMNS)
    assert crops.count() == 0 and crops.query(unit(1), 3) == [[]]
    assert crops.add([batch(0, 60), batch(60, 100)]) == gallery.Added(100, 0, 0)
    assert crops.add([batch(90, 120)]) == gallery.Added(20, 0, 10)
    assert crops.count() == 120
    assert crops.delete(["i5", "i6", "nothing"]) == 2 and crops.delete(["i5"]) == 0
    assert crops.delete(where="track == 't3'") == 7 and crops.count() == 111
    assert crops.get(["i5"]) == [None] and "i5" not in ids_of(crops.query(batch(0, 10).features, 20, exact=True))[5]
    assert crops.add([batch(5, 6)]) == gallery.Added(1, 0, 0), "what was deleted may come back"
    assert crops.add([batch(0, 10, seed=1)], replace=True) == gallery.Added(10, 9, 0)
    assert crops.count() == 113 and ids_of(crops.query(batch(0, 10, seed=1).features[3:4], 1)) == [["i3"]]
    assert crops.add([batch(200, 203)], source="shard 1").added == 3
    assert crops.delete(["i200"]) == 1
    assert crops.add([batch(200, 203)], source="shard 1") == gallery.Added(0, 0, 0), "a source comes in once"
    assert crops.sources() == {"shard 1"} and crops.count() == 115
    with pytest.raises(ValueError, match="neither is given"):
        crops.delete()
    left = crops.count("time >= 2026-11-02")
    assert crops.expire(dt.timedelta(days=29), now=dt.datetime(2026, 12, 1, tzinfo=dt.UTC)) == 115 - left
    crops.compact()
    again = gallery.open_gallery(crops.address)
    assert again.count() == left and again.model == MODEL and again.columns == COLUMNS
    assert again.describe()["count"] == left and again.sources() == {"shard 1"}


def check_refusals(make: Make) -> None:
    """What does not fit leaves the gallery as it was."""
    crops = make(MODEL, COLUMNS)
    crops.add([batch(0, 10)])
    rows, features = batch(10, 20)
    nan = features.copy()
    nan[3, 2] = np.nan
    for wrong, message in (
        (gallery.Batch(rows, features[:, :8]), "expected \\(10, 16\\)"),
        (gallery.Batch(rows, nan), "the feature of 13.jpg is not finite"),
        (gallery.Batch(rows.drop_columns(["camera"]), features), "no column 'camera', which the gallery has"),
    ):
        with pytest.raises(ValueError, match=message):
            crops.add([*([batch(20, 30)] if crops.atomic else []), wrong])
        assert crops.count() == 10
    assert crops.add([batch(10, 20)]).added == 10
    with pytest.raises(FileExistsError, match="holds a gallery already"):
        make(MODEL, COLUMNS)
    make(MODEL, {"camera": "text"}, replace=True)
    assert gallery.open_gallery(crops.address).columns == {"camera": "text"}


CHECKS = [check_filters, check_search, check_changes, check_refusals]
