"""Galleries: the engines' contract, recall under filters, features of tools/extract.py in and ranked lists out."""

from __future__ import annotations

import functools
import json
import logging
import operator
import random
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_contract import CHECKS, COLUMNS, MODEL, batch, unit

from sagareid.deploy import extract_folder as extract
from sagareid.deploy import faiss_kinds, gallery
from sagareid.deploy.gallery import base, faiss_engine, filters, milvus_engine, store, writing


@pytest.fixture
def make(tmp_path):
    return lambda *args, **options: gallery.create(tmp_path / "gallery", *args, **options)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_faiss_keeps_the_contract(check, make):
    check(make)


# ---- addresses and engines -------------------------------------------------------------------------------------------


def test_an_address_names_its_engine(tmp_path):
    for address, wanted in (
        ("index", ("faiss", "index")),
        ("/a/b", ("faiss", "/a/b")),
        ("faiss:a:b", ("faiss", "a:b")),
        ("milvus:people.db", ("milvus", "people.db")),
        ("milvus:http://host:19530/people", ("milvus", "http://host:19530/people")),
    ):
        assert gallery.split(address) == wanted
    with pytest.raises(ValueError, match="no gallery engine is called 'fais'; known: faiss, milvus.*mean faiss"):
        gallery.split("fais:index")
    with pytest.raises(ValueError, match="names no place; expected milvus:PLACE"):
        gallery.open_gallery("milvus:")
    with pytest.raises(FileNotFoundError, match="no gallery in .*nowhere; make one with tools/search.py build"):
        gallery.open_gallery(tmp_path / "nowhere")


def test_an_engine_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ENGINES", dict(gallery.engines()))

    @gallery.register_engine("mine")
    class MyGallery(faiss_engine.FaissGallery):
        """Elsewhere."""

    crops = gallery.create(f"mine:{tmp_path / 'g'}", MODEL, COLUMNS, batches=lambda: [batch(0, 10)])
    assert isinstance(crops, MyGallery) and gallery.open_gallery(crops.address).count() == 10
    assert list(gallery.engines()) == ["faiss", "milvus", "mine"]
    with pytest.raises(ValueError, match="are both of scheme 'mine'"):
        gallery.register_engine("mine")(MyGallery)


def test_a_column_that_no_filter_can_name_is_refused(tmp_path):
    for columns, message in (
        ({"a b": "text"}, "a filter cannot name it"),
        ({"In": "text"}, "a filter cannot name it"),
        ({"camera": "integer"}, "column 'camera' is of kind integer; expected text"),
    ):
        with pytest.raises(ValueError, match=message):
            gallery.create(tmp_path / "g", MODEL, columns)
    assert not (tmp_path / "g").exists()


def test_an_index_of_another_version(tmp_path, make):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "index.json").write_text('{"kind": "flat"}')
    for name in ("vectors-1.faiss", "paths-1.parquet"):
        (tmp_path / "old" / name).write_text("x")
    with pytest.raises(ValueError, match="is an index of an earlier version.*Build the gallery again from its"):
        gallery.open_gallery(tmp_path / "old")
    gallery.create(tmp_path / "old", MODEL, COLUMNS)
    assert sorted(p.name for p in (tmp_path / "old").iterdir()) == [".lock", "gallery.json"]
    make(MODEL, COLUMNS)
    file = tmp_path / "gallery" / "gallery.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": store.FORMAT + 1, "unheard": 1}))
    with pytest.raises(ValueError, match="is a gallery of format 3, written by a newer version.* Update sagareid"):
        gallery.open_gallery(tmp_path / "gallery")


LEAVES = {
    "camera": lambda draw: (draw.choice(["==", "!="]), str(draw.randrange(6))),
    "frame": lambda draw: (draw.choice(list(COMPARE)), draw.randrange(-5, 80)),
    "score": lambda draw: (draw.choice(list(COMPARE)), draw.randrange(100) / 100),
    "indoor": lambda draw: (draw.choice(["==", "!="]), draw.random() < 0.5),
}
COMPARE = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip


def drawn_filter(draw, depth):
    """A text, and a function of a row and of whether it is negated."""
    kind = draw.choice(["leaf", "leaf", "in", "not", "and", "or"]) if depth else "leaf"
    if kind == "not":
        text, passes = drawn_filter(draw, depth - 1)
        return f"not ({text})", lambda row, negated: passes(row, not negated)
    if kind in ("and", "or"):
        (a, left), (b, right) = drawn_filter(draw, depth - 1), drawn_filter(draw, depth - 1)

        def both(row, negated):
            of = all if (kind == "and") != negated else any
            return of([left(row, negated), right(row, negated)])

        return f"({a}) {kind} ({b})", both
    column = draw.choice(list(LEAVES))
    if kind == "in" and column != "indoor":
        values = [LEAVES[column](draw)[1] for _ in range(draw.randrange(1, 4))]
        text = f"{column} in ({', '.join(map(str, values))})"
        return text, lambda row, negated: row[column] is not None and (row[column] in values) != negated
    op, value = LEAVES[column](draw)
    text = f"{column} {op} {str(value).lower() if isinstance(value, bool) else value}"
    return text, lambda row, negated: row[column] is not None and COMPARE[op](row[column], value) != negated


def test_filters_pass_what_they_say():
    table, draw = batch(0, 80).rows, random.Random(0)
    rows, shares = table.to_pylist(), []
    for _ in range(300):
        text, passes = drawn_filter(draw, 4)
        found = filters.passing(filters.parse(text, COLUMNS), table)
        assert found.tolist() == [passes(row, False) for row in rows], text
        shares.append(found.mean())
    assert 0.2 < np.mean(shares) < 0.8


def test_milvus_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for address in (f"milvus:{tmp_path / 'a.db'}", "milvus:http://127.0.0.1:9/people"):
        (tmp_path / "a.db").touch()
        with pytest.raises(ImportError, match=r"needs pymilvus and milvus-lite: pip install .sagareid\[milvus\]"):
            gallery.open_gallery(address)


def test_filters_in_milvuss_language():
    for where, wanted in (
        ("camera == 3", '(camera == "3" and camera is not null)'),
        ("not camera in (3, 'a\"b')", '(camera not in ["3", "a\\"b"] and camera is not null)'),
        ("frame in (1, 2.5)", "(frame in [1] and frame is not null)"),
        ("frame in (2.5)", 'id == ""'),
        ("frame not in (2.5)", "(frame is not null)"),
        ("indoor != false", "(indoor != false and indoor is not null)"),
        ("time < 1970-01-02 or score >= 0.5", "((time < 86400000000 and time is not null) or "
                                              "(score >= 0.5 and score is not null))"),
        ("time between 23:00 and 0:30", "((time__clock >= 82800000000 and time is not null) or "
                                       "(time__clock <= 1800000000 and time is not null))"),
    ):  # fmt: skip
        assert milvus_engine.expression(filters.parse(where, COLUMNS), COLUMNS) == wanted


# ---- the index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The limits of large galleries, so that small ones pass them."""
    monkeypatch.setattr(faiss_engine, "EXACT", 20)
    monkeypatch.setattr(writing, "TAIL", 100)


@pytest.mark.parametrize("kind, least", [("flat", 1.0), ("hnsw", 0.97), ("ivfpq", 0.95)])
@pytest.mark.parametrize("where", ["", "camera in (1, 2)", "frame between 100 and 140"])
def test_an_index_finds_the_nearest_that_pass(kind, least, where, make, small):
    """2,000 images, half and a fiftieth of them; some came after the index was made, and some are deleted."""
    first, later = batch(0, 1960), batch(1960, 2000)
    crops = make(MODEL, COLUMNS, kind=kind, batches=lambda: [first], count=1960)
    crops.add([later])
    crops.delete([f"i{i}" for i in range(0, 2000, 17)])
    about = crops.describe()
    assert about["kind"] == kind and about["indexed"] == (0 if kind == "flat" else 1960)
    assert crops.exact == (kind == "flat") and crops.recall(where=where) >= least
    x = np.concatenate([first.features, later.features])
    found = crops.query(x[1:60], 10, where=where)
    exact = crops.query(x[1:60], 10, where=where, exact=True)
    share = np.mean([len({h.id for h in a} & {h.id for h in b}) / len(b) for a, b in zip(found, exact)])
    assert share >= least
    for one in found:  # whichever index found it, the similarity is that of the features
        for query, hit in zip([x[1 + found.index(one)]] * len(one), one):
            assert hit.similarity == pytest.approx(float(query @ x[int(hit.id[1:])]), abs=2e-3)


def test_recall_counts_what_is_missed(make, small):
    crops = make(MODEL, COLUMNS, kind="hnsw", batches=lambda: [batch(0, 300)])
    index = crops._loaded()
    index.reset()
    index.add(-unit(300))  # an index that finds the farthest
    assert crops.recall() < 0.2


def test_more_effort_misses_less(make, small, monkeypatch):
    monkeypatch.setattr(faiss_engine, "RESCORE", 3)
    crops = make(MODEL, COLUMNS, kind="ivfpq", batches=lambda: [batch(0, 4000)])
    few, many = (crops.recall(effort=effort) for effort in (1, 100))
    assert few < many


def test_a_gallery_grows_into_its_kind(make, small, monkeypatch):
    """`auto` changes the kind with the size; small segments are written together; rows join the index in portions."""
    monkeypatch.setattr(faiss_kinds, "FLAT_BYTES", 400 * 64)
    crops = make(MODEL, COLUMNS, memory_gib=900 * (64 + faiss_kinds.HNSW_LINKS) / 2**30)
    kinds = []
    for low in range(0, 1200, 40):
        crops.add([batch(low, low + 40)])
        kinds.append(crops.describe()["kind"])
        assert len(crops._snapshot.manifest.segments) < 8
    assert list(dict.fromkeys(kinds)) == ["flat", "hnsw", "ivfpq"]
    assert crops.count() == 1200 and crops.recall() > 0.9
    assert crops._snapshot.manifest.parts[-1].dtype == "float16"


def test_what_is_deleted_is_erased_in_the_end(make, tmp_path):
    crops = make(MODEL, COLUMNS, kind="hnsw", batches=lambda: [batch(0, 400)])
    crops.delete([f"i{i}" for i in range(40)])
    assert crops.describe()["deleted"] == 40
    crops.delete([f"i{i}" for i in range(40, 140)])
    assert crops.describe()["deleted"] == 0 and crops.describe()["indexed"] == 260, "a quarter is worth it"
    crops.delete(["i399"])
    secret = batch(399, 400).features.tobytes()
    assert any(secret in path.read_bytes() for path in (tmp_path / "gallery").iterdir())
    crops.compact()
    assert not any(secret in p.read_bytes() or b"399.jpg" in p.read_bytes() for p in (tmp_path / "gallery").iterdir())
    assert crops.count() == 259 and crops.recall() > 0.97


def test_a_quantised_gallery_may_become_small(make, small):
    """What is asked for is done, with or without an index for what is left."""
    crops = make(MODEL, COLUMNS, kind="ivfpq", batches=lambda: [batch(0, 400)])
    assert crops.delete(where="frame >= 100") > 200 and crops.exact
    left = crops.count()
    assert crops.recall() == 1 and crops.add([batch(400, 800)]).added == 400 and crops.count() == left + 400
    assert not crops.exact and crops.delete(where="score >= 0") == left + 400 and crops.query(unit(1), 3) == [[]]


def test_an_error_leaves_files_of_others_alone(tmp_path):
    (tmp_path / "g").mkdir()
    for name in ("index-mine.faiss", "rows-1.arrow"):
        (tmp_path / "g" / name).touch()
    crops = gallery.create(tmp_path / "g", MODEL, COLUMNS, batches=lambda: [batch(0, 10)])
    rows, features = batch(10, 12)
    none = gallery.Batch(rows.set_column(0, "id", pa.array(["a", None])), features)
    with pytest.raises(ValueError, match="1 of the images have no id"):
        crops.add([none])
    names = {path.name for path in (tmp_path / "g").iterdir()}
    assert names > {"index-mine.faiss", "rows-1.arrow"} and len(names) == 6


def test_a_reader_sees_what_others_write_and_keeps_what_it_reads(make, tmp_path):
    writer = make(MODEL, COLUMNS, batches=lambda: [batch(0, 50)])
    reader = gallery.open_gallery(tmp_path / "gallery")
    writer.add([batch(50, 80)])
    assert reader.count() == 80
    before = reader._snapshot
    writer.delete([f"i{i}" for i in range(70)])  # and is written anew
    assert before.rows["id"][0].as_py() == "i0" and np.array_equal(before.take(np.arange(5)), batch(0, 5).features)
    assert reader.count() == 10


def test_threads_may_share_a_gallery(make, small):
    crops = make(MODEL, COLUMNS, kind="hnsw", batches=lambda: [batch(0, 500)])
    wrong: list = []

    def ask(seed: int) -> None:
        for _ in range(10):
            found = crops.query(unit(500)[seed : seed + 1], 1)
            if [h.id for h in found[0]] != [f"i{seed}"]:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for low in range(500, 800, 30):
        crops.add([batch(low, low + 30)])
    for thread in threads:
        thread.join()
    assert not wrong and crops.count() == 800


# ---- features of tools/extract.py ------------------------------------------------------------------------------------


def stored(path, n=600, width=16, seed=0, names="g{}.jpg", columns=None, **about):
    """Random features around 40 people, as tools/extract.py writes them."""
    x = unit(n, seed, width)
    about = {"width": width, "checkpoint_sha256": "abc", "feature": "fusion", "folder": "/crops"} | about
    table = extract._table([names.format(i) for i in range(n)], x, [""] * n, about)
    for name, column in (columns or {}).items():
        table = table.append_column(name, column)
    pq.write_table(table, path, row_group_size=100)
    return gallery.FeatureSet(path), x


def test_the_kind_follows_size_and_memory():
    gib = 2**30
    assert faiss_kinds.choose_kind(100_000, 2048, 4 * gib) == "flat"
    assert faiss_kinds.choose_kind(200_000, 2048, 4 * gib) == "hnsw"
    assert faiss_kinds.choose_kind(5_000_000, 2048, 4 * gib) == "ivfpq"
    assert faiss_kinds.choose_kind(100_000, 2048, gib / 2) == "ivfpq"


def test_memory_is_kept(tmp_path):
    features, _ = stored(tmp_path / "f.parquet", n=6000, width=64)
    tight = gallery.build(features, tmp_path / "a", kind="ivfpq", memory_gib=6000 * 26 / 2**30)
    assert tight.describe()["bytes_per_vector"] == 4 + 8  # not 16 + 8
    for kind, memory in (("flat", 1e-4), ("ivfpq", 1e-5)):
        with pytest.raises(ValueError, match="--memory"):
            gallery.build(features, tmp_path / "b", kind=kind, memory_gib=memory)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="no index of kind 'best'"):
        gallery.build(features, tmp_path / "b", kind="best")
    few, _ = stored(tmp_path / "few.parquet", n=100)
    with pytest.raises(ValueError, match="so it needs as many vectors, not 100; use --index flat"):
        gallery.build(few, tmp_path / "b", kind="ivfpq")


def test_shards_are_read_batch_by_batch(tmp_path):
    features, x = stored(tmp_path / "f.parquet")
    sizes = [len(rows) for _, rows in features.batches(128)]
    assert max(sizes) <= 128 and sum(sizes) == 600
    np.testing.assert_allclose(np.concatenate([rows for _, rows in features.batches(128)]), x, atol=1e-6)


def nearest(crops, query, name="q", **options):
    return gallery.matches(crops, [name], query, 1, **options)[0][0].path


def test_adding_to_a_gallery_whose_images_were_moved(tmp_path):
    """The same images are known again, and new ones stay relative to the folder."""
    gallery.build(stored(tmp_path / "f.parquet", folder="/before")[0], tmp_path / "index")
    same, _ = stored(tmp_path / "g.parquet", n=5, folder="/now")
    crops = gallery.open_gallery(tmp_path / "index")
    assert gallery.add(crops, same, "/now") == gallery.Added(0, 0, 5)
    more, y = stored(tmp_path / "h.parquet", n=5, seed=1, names="m{}.jpg", folder="/now")
    crops = gallery.open_gallery((tmp_path / "index").rename(tmp_path / "other"))
    assert gallery.add(crops, more, "/now").added == 5
    assert crops.folder == "/now" and nearest(crops, y[3:4]) == "m3.jpg"
    # a query that is in the gallery is left out of its own list, wherever the gallery is now
    assert nearest(crops, y[3:4], "/now/m3.jpg") != "m3.jpg"
    assert nearest(crops, y[3:4], "/later/m3.jpg", folder="/later") != "m3.jpg"
    assert nearest(crops, y[3:4], "/later/m3.jpg") == "m3.jpg"


def test_adding(tmp_path):
    first, x = stored(tmp_path / "f.parquet")
    more, y = stored(tmp_path / "g.parquet", n=50, seed=1, names="m{}.jpg", folder="/others")
    crops = gallery.build(first, tmp_path / "index")
    assert gallery.add(crops, more) == gallery.Added(50, 0, 0)
    assert gallery.add(crops, more) == gallery.Added(0, 0, 50)
    crops = gallery.open_gallery(tmp_path / "index")
    assert crops.count() == 650 and nearest(crops, y[3:4]) == "/others/m3.jpg" and nearest(crops, x[3:4]) == "g3.jpg"
    ranked = gallery.matches(crops, ["q"], x[7:8], 3)[0]
    assert [m.rank for m in ranked] == [1, 2, 3] and ranked[0].similarity == pytest.approx(1, abs=1e-5)


def test_columns_go_from_the_file_to_the_answer(tmp_path, caplog):
    texts = [f"c{i % 3}" for i in range(60)]
    moments = pa.array([f"2026-11-28 {i // 6:02d}:{i % 6}0:00" for i in range(60)])
    columns = {"camera": pa.array(texts), "time": moments, "frame": pa.array(range(60), pa.int32())}
    features, x = stored(tmp_path / "f.parquet", n=60, columns=columns)
    crops = gallery.build(features, tmp_path / "index")
    assert crops.columns == {"camera": "text", "time": "time", "frame": "integer"}
    [ranked] = gallery.matches(crops, ["q"], x[:1], 60, where="camera in (c1, c2) and time between 8:00 and 9:00")
    assert {m.path for m in ranked} == {f"g{i}.jpg" for i in range(48, 55) if i % 3}
    assert {m.values["camera"] for m in ranked} == {"c1", "c2"}
    [nobody] = gallery.matches(crops, ["q"], x[:1], 5, where="camera == c7")
    assert nobody[0].nobody and np.isnan(nobody[0].similarity)
    more, _ = stored(tmp_path / "m.parquet", n=60, columns=columns | {"door": pa.array(range(60))})
    with caplog.at_level(logging.WARNING):
        assert gallery.add(crops, more) == gallery.Added(0, 0, 60)
    assert "has columns that the gallery lacks: door. They are left out" in caplog.text
    plain, _ = stored(tmp_path / "plain.parquet", n=5, names="p{}.jpg")
    with pytest.raises(ValueError, match="plain.parquet has no column 'camera', which the gallery has"):
        gallery.add(crops, plain)
    wrong = columns | {"time": pa.array(["8 o'clock"] * 60)}
    late, _ = stored(tmp_path / "late.parquet", n=60, names="p{}.jpg", columns=wrong)
    with pytest.raises(ValueError, match="late.parquet: column 'time' is to hold time values: .8 o'clock. is no time"):
        gallery.add(crops, late)
    odd, _ = stored(tmp_path / "odd.parquet", n=2, columns={"box": pa.array([[1], [2]])})
    with pytest.raises(ValueError, match="column 'box' is of type list"):
        gallery.build(odd, tmp_path / "other")
    assert crops.count() == 60


def test_shards_that_differ_are_named(tmp_path):
    stored(tmp_path / "part-0.parquet", n=5, columns={"camera": pa.array(["a"] * 5)})
    stored(tmp_path / "part-1.parquet", n=5, names="h{}.jpg")
    with pytest.raises(ValueError, match="part-1.parquet has no column 'camera', which part-0.parquet has"):
        gallery.build(gallery.FeatureSet(tmp_path), tmp_path / "index")
    stored(tmp_path / "part-0.parquet", n=5, width=8)
    with pytest.raises(ValueError, match="part-1.parquet has features of .*expected 8 numbers each"):
        gallery.build(gallery.FeatureSet(tmp_path), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_features_of_another_model_are_refused(tmp_path):
    crops = gallery.build(stored(tmp_path / "f.parquet", size=[48, 24])[0], tmp_path / "index")
    for about, message in (
        ({"width": 8}, "features of width 8, the gallery of 16"),
        ({"checkpoint_sha256": "xyz"}, "checkpoint xyz, the gallery of abc"),
        ({"feature": "cls"}, "feature cls, the gallery of fusion"),
        ({"size": [96, 48]}, "input size 96 x 48, the gallery of 48 x 24"),
    ):
        other, _ = stored(tmp_path / "g.parquet", n=5, **about)
        with pytest.raises(ValueError, match=message):
            gallery.feature_queries(crops, other)
        with pytest.raises(ValueError, match=message):
            gallery.add(crops, other)
    assert gallery.add(crops, stored(tmp_path / "h.parquet", n=5, names="h{}")[0]).added == 5, (
        "it does not say its size"
    )


def test_what_is_no_gallery_is_named(tmp_path):
    for path, message in ((tmp_path / "no", "make them with tools/extract.py"), (tmp_path, "no Parquet file in")):
        with pytest.raises(FileNotFoundError, match=message):
            gallery.FeatureSet(path)
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="expected `features` and `paths`"):
        gallery.FeatureSet(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", features=np.zeros((3, 4)), paths=np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match="feature 0 is zero or not finite"):
        gallery.build(gallery.FeatureSet(tmp_path / "y.npz"), tmp_path / "index")
    assert not (tmp_path / "index").exists()
    np.savez(tmp_path / "z.npz", features=np.zeros((0, 4), np.float32), paths=np.array([], str))
    with pytest.raises(ValueError, match="holds no feature"):
        gallery.build(gallery.FeatureSet(tmp_path / "z.npz"), tmp_path / "index")


def test_the_commands(tmp_path, run_tool):
    """From features to answers, deletions and expiry; without PyTorch (test_commands.py)."""
    rows = batch(0, 60).rows
    columns = {name: rows[name].combine_chunks() for name in ("camera", "time")}
    stored(tmp_path / "f.parquet", n=60, names="{}.jpg", columns=columns)
    stored(tmp_path / "more.parquet", n=70, names="{}.jpg", columns={k: batch(0, 70).rows[k] for k in columns})
    run = functools.partial(run_tool, "search.py")
    code, out, _ = run("build", tmp_path / "f.parquet", "-o", tmp_path / "g")
    assert code == 0 and out.startswith("flat, 60 vectors of 16, 64 bytes each") and "camera (text), time (time)" in out
    code, out, _ = run("add", f"faiss:{tmp_path / 'g'}", tmp_path / "more.parquet")
    assert code == 0 and "10 added, 0 of them in place of earlier ones; 60 were there already" in out
    words = ["query", tmp_path / "g", "--features", tmp_path / "f.parquet", "-k", 3, "--where"]
    code, out, _ = run(*words, "camera in (1, 2)", "-o", tmp_path / "m.json")
    lists = json.loads((tmp_path / "m.json").read_text())
    assert code == 0 and {m["values"]["camera"] for one in lists for m in one["matches"]} == {"1", "2"}
    assert lists[0]["matches"][0]["values"]["time"].startswith("2026-11-0")
    code, out, _ = run(*words, "camera == 9", "--picture", tmp_path / "m.png")
    assert code == 0 and out.count("nobody") == 60 and (tmp_path / "m.png").is_file()
    code, _, err = run(*words, "camera = 9")
    assert code == 1 and "filter 'camera = 9', character 8" in err
    assert "1 images deleted, 69 left" in run("delete", tmp_path / "g", "3.jpg")[1]
    assert "14 images deleted, 55 left" in run("delete", tmp_path / "g", "--where", "camera == 1", "--erase")[1]
    assert run("delete", tmp_path / "g")[0] == 2
    code, out, _ = run("describe", tmp_path / "g", "--where", "camera == 2")
    assert code == 0 and "14 images pass camera == 2" in out
    about = json.loads(run("describe", tmp_path / "g", "--json")[1])
    assert about["count"] == 55 and about["deleted"] == 0 and about["model"]["checkpoint_sha256"] == "abc"
    assert "is no age; expected a number" in run("expire", tmp_path / "g", "--older-than", "30")[2]
    assert "0 images deleted, 55 left" in run("expire", tmp_path / "g", "--older-than", "520w")[1]
    assert "55 images deleted, 0 left" in run("expire", tmp_path / "g", "--older-than", "1s")[1]
