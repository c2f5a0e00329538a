"""From a folder of images to ranked lists: whole shards, shared by processes; indexes whose recall is known."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sagareid import Extractor
from sagareid.deploy import extract_folder as extract
from sagareid.deploy import gallery
from sagareid.files import file_hash


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def extractor(tiny_run):
    return Extractor.from_checkpoint(tiny_run, device="cpu")


@pytest.fixture
def crops(tiny_root, tmp_path):
    """Twelve images in two folders."""
    folder = tmp_path / "crops"
    for i, file in enumerate(sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[:12]):
        place = folder / ("b" if i % 2 else "a")
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as picture:
            picture.save(place / f"{i:02d}.png")
    return folder


@pytest.fixture
def go(extractor, crops):
    def run(output, **options):
        return extract.extract_folder(
            extractor, crops, output, **{"checkpoint_sha256": "abc", "shard_size": 5, **options}
        )

    return run


# ---- extract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["f.npz", "f.parquet", "f"])
def test_every_output_holds_the_extractors_features(output, go, crops, extractor, tmp_path):
    report = go(tmp_path / output)
    names = sorted(p.relative_to(crops).as_posix() for p in crops.rglob("*.*"))
    paths, features = gallery.FeatureSet(tmp_path / output).whole()
    assert paths == names and report.extracted == report.images == 12 and not report.unreadable
    np.testing.assert_allclose(features, extractor([crops / n for n in names]).numpy(), atol=1e-6)
    assert features.dtype == np.float32
    if output != "f":
        assert not (tmp_path / f"{output}.shards").exists() and (tmp_path / f"{output}.report.json").exists()
    assert go(tmp_path / output) == report  # again: nothing to do


def test_a_file_is_joined_shard_by_shard(tmp_path):
    """Whatever their number: the memory is that of one shard."""
    count, size, width = 12, 50, 400
    about = {"width": width, "feature": "fusion"}
    names = [f"{i}{'é' * (i % 7)}.png" for i in range(count * size)]
    shards = extract._Shards(tmp_path, names, tmp_path / "shards", size, about)
    shards.where.mkdir()
    features = np.random.default_rng(0).standard_normal((len(names), width), np.float32)
    for i in range(count):
        part = features[i * size : (i + 1) * size]
        whole = about | {"key": shards.key, "shard": i}
        pq.write_table(extract._table(shards.part(i), part, ["gone"] * size, whole), shards.path(i))
    write, pool = extract._joiner(tmp_path / "f.npz", shards), pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        write(str(tmp_path / "f.npz"))
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert highest < 4 * size * width * 4 < features.nbytes / 2
    assert pool.bytes_allocated() - before < features.nbytes / 2
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["features"].dtype == np.float32 and np.array_equal(arrays["features"], features)
        assert arrays["paths"].tolist() == names and set(arrays["states"].tolist()) == {"gone"}
        assert json.loads(str(arrays["about"])) == about | {"key": shards.key}


def test_it_goes_on_where_it_stopped(go, extractor, tmp_path, monkeypatch):
    go(tmp_path / "f")
    shards = sorted((tmp_path / "f").glob("part-*"))
    assert len(shards) == 3
    before = {p: p.stat().st_mtime_ns for p in shards}
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:100])  # a damaged one is not believed either
    asked = []
    iterate = Extractor.iterate
    monkeypatch.setattr(
        Extractor, "iterate", lambda self, images, **o: asked.extend(images) or iterate(self, images, **o)
    )
    go(tmp_path / "f")
    assert len(asked) == 5 + 2 and shards[1].stat().st_mtime_ns == before[shards[1]]
    assert gallery.FeatureSet(tmp_path / "f").count == 12


@pytest.fixture
def asked(monkeypatch):
    """The names of the images that the model is asked for."""
    names = []
    iterate = Extractor.iterate

    def watched(self, images, **options):
        names.extend(image.name for image in images)
        return iterate(self, images, **options)

    monkeypatch.setattr(Extractor, "iterate", watched)
    return names


def change(crops):
    """One image goes, one is another now, one is new."""
    (crops / "a" / "02.png").unlink()
    with Image.open(crops / "b" / "03.png") as picture:
        picture.rotate(180).save(crops / "b" / "03.png")
        picture.save(crops / "b" / "new.png")


@pytest.mark.parametrize("output", ["f.npz", "f.parquet", "f"])
def test_an_update_extracts_what_changed_and_drops_what_is_gone(output, go, crops, extractor, asked, tmp_path):
    go(tmp_path / output)
    change(crops)
    with pytest.raises(ValueError, match="--update keeps those of unchanged images"):
        go(tmp_path / output)
    asked.clear()
    report = go(tmp_path / output, update=True)
    assert sorted(asked) == ["03.png", "new.png"]
    assert (report.images, report.extracted, report.kept, report.dropped) == (12, 12, 10, 1)
    names = sorted(p.relative_to(crops).as_posix() for p in crops.rglob("*.*"))
    paths, features = gallery.FeatureSet(tmp_path / output).whole()
    assert paths == names
    np.testing.assert_allclose(features, extractor([crops / n for n in names]).numpy(), atol=1e-6)
    asked.clear()
    assert go(tmp_path / output, update=True) == report and not asked, "nothing is left to do"
    assert not list(tmp_path.rglob(".earlier*"))


def test_an_interrupted_update_goes_on(go, crops, asked, tmp_path, monkeypatch):
    """In the midst of moving the shards, and of extracting; the earlier features are not lost."""
    go(tmp_path / "f")
    change(crops)
    rename, once = extract.Path.rename, extract._Shards._extract
    with monkeypatch.context() as patch:
        calls = iter(range(9))
        patch.setattr(extract.Path, "rename", lambda *args: rename(*args) if next(calls) < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path / "f", update=True)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(extract._Shards, "_extract", lambda self, index, *a, **o: once(self, index, *a, **o) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path / "f", update=True)
    assert go(tmp_path / "f", update=True).kept == 10 and sorted(asked) == ["03.png", "new.png"]


def test_a_folder_that_was_moved_is_updated_without_extracting(extractor, crops, asked, tmp_path):
    def run(folder):
        return extract.extract_folder(
            extractor, folder, tmp_path / "f.npz", checkpoint_sha256="abc", update=True, num_workers=0
        )

    run(crops)
    asked.clear()
    report = run(crops.rename(tmp_path / "elsewhere"))
    assert not asked and report.kept == 12 and report.folder == str(tmp_path / "elsewhere")
    assert gallery.FeatureSet(tmp_path / "f.npz").folder == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("output", ["f.npz", "f"])
def test_an_update_keeps_features_of_the_same_model_alone(output, go, crops, tmp_path):
    go(tmp_path / output)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="features of another checkpoint_sha256, so none can be kept"):
        go(tmp_path / output, update=True, checkpoint_sha256="other")
    assert before == {p: p.read_bytes() for p in before}
    np.savez(tmp_path / "g.npz", features=np.eye(3), paths=["a", "b", "c"])
    with pytest.raises(ValueError, match="does not say of which state of its images it is"):
        go(tmp_path / "g.npz", update=True)


def test_an_interrupted_file_keeps_its_shards(go, tmp_path, monkeypatch):
    def interrupt(self, index, *args, **options):
        if index == 1:
            raise KeyboardInterrupt
        return once(self, index, *args, **options)

    once = extract._Shards._extract
    monkeypatch.setattr(extract._Shards, "_extract", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists() and len(list((tmp_path / "f.npz.shards").glob("part-*"))) == 1
    monkeypatch.setattr(extract._Shards, "_extract", once)
    assert go(tmp_path / "f.npz").extracted == 12


@pytest.mark.parametrize("output", ["f.npz", "f"])
@pytest.mark.parametrize("change", ["checkpoint", "images", "content"])
def test_nothing_stale_is_trusted(change, output, go, crops, tmp_path):
    go(tmp_path / output)
    options = {}
    if change == "checkpoint":
        options = {"checkpoint_sha256": "another"}
    elif change == "images":
        shutil.copy(crops / "a/00.png", crops / "a/new.png")
    else:
        Image.new("RGB", (24, 48)).save(crops / "a/00.png")
    with pytest.raises(ValueError, match="holds features of other images, of another checkpoint"):
        go(tmp_path / output, **options)
    before = gallery.FeatureSet(tmp_path / output).whole()[1]
    report = go(tmp_path / output, overwrite=True, **options)
    after = gallery.FeatureSet(tmp_path / output)
    assert after.checkpoint_sha256 == report.checkpoint_sha256 == options.get("checkpoint_sha256", "abc")
    assert after.count == 12 + (change == "images")
    assert change != "content" or not np.allclose(before, after.whole()[1])


def test_a_folder_with_other_files_is_left_alone(go, crops):
    with pytest.raises(ValueError, match="holds other files; name a new folder"):
        go(crops, overwrite=True)
    assert len(list(crops.rglob("*.png"))) == 12


def test_unreadable_images_are_listed(go, crops, tmp_path):
    (crops / "a/torn.png").write_bytes((crops / "a/00.png").read_bytes()[:60])
    (crops / "c.jpg").write_text("no image")
    (crops / "notes.txt").write_text("not looked at")
    report = go(tmp_path / "f")
    assert [e["path"] for e in report.unreadable] == ["a/torn.png", "c.jpg"] and report.extracted == 12
    assert "no image format" in report.unreadable[1]["error"]
    assert json.loads((tmp_path / "f/report.json").read_text())["unreadable"] == report.unreadable
    (tmp_path / "f/report.json").unlink()
    assert go(tmp_path / "f").unreadable == report.unreadable  # kept in the shards


def test_errors(go, extractor, tmp_path, monkeypatch):
    with pytest.raises(NotADirectoryError, match="is no folder"):
        extract.list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image under"):
        extract.list_images(tmp_path / "empty")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes write shards: name a folder"):
        go(tmp_path / "f.npz")


WORKER = """
import sys, time
import sagareid, torch
torch.set_num_threads(1)
from sagareid.deploy import extract_folder as extract
from sagareid.deploy.extractor import Extractor
slow, (run, folder, output) = float(sys.argv[1]), sys.argv[2:]
once = extract._Shards._extract
def say(self, index, *args, **options):
    print("taken", index, flush=True)
    time.sleep(slow)
    once(self, index, *args, **options)
    print("done", index, flush=True)
extract._Shards._extract = say
extract.POLL = 0.05
extractor = Extractor.from_checkpoint(run, device="cpu")
extract.extract_folder(extractor, folder, output, checkpoint_sha256="abc", shard_size=2, batch_size=2)
"""


@pytest.mark.slow
def test_two_processes_and_a_kill(tiny_run, crops, tmp_path, extractor, monkeypatch):
    """Process 1 dies in its first shard; process 0 does everything, that shard too. Then a restart does what lacks."""

    def start(rank, slow):
        words = [sys.executable, "-c", WORKER, str(slow), str(tiny_run), str(crops), str(tmp_path / "f")]
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    victim = start(1, 600)
    assert victim.stdout.readline() == "taken 3\n"  # its own half begins in the middle of six
    other = start(0, 0)
    lines = [other.stdout.readline().strip() for _ in range(10)]
    assert "taken 3" not in lines and sorted(lines) == sorted(
        f"{w} {i}" for w in ("taken", "done") for i in (0, 1, 2, 4, 5)
    )
    time.sleep(0.3)
    assert other.poll() is None  # it waits for the shard that process 1 has
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert other.communicate(timeout=60)[0].split() == ["taken", "3", "done", "3"] and other.returncode == 0
    paths, features = gallery.FeatureSet(tmp_path / "f").whole()
    np.testing.assert_allclose(features, extractor([crops / p for p in paths]).numpy(), atol=1e-6)

    (tmp_path / "f" / "part-00004-of-00006.parquet").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 6 shards"):
        gallery.FeatureSet(tmp_path / "f")
    asked = []
    iterate = Extractor.iterate
    monkeypatch.setattr(
        Extractor, "iterate", lambda self, images, **o: asked.extend(images) or iterate(self, images, **o)
    )
    extract.extract_folder(extractor, crops, tmp_path / "f", checkpoint_sha256="abc", shard_size=2)
    assert len(asked) == 2 and gallery.FeatureSet(tmp_path / "f").count == 12


@pytest.mark.slow
def test_tool_extract(tiny_run, crops, tmp_path, call_tool, monkeypatch, capsys):
    run = functools.partial(call_tool, "extract.py")

    words = [crops, "--run", tiny_run, "-o", tmp_path / "f.parquet", "--workers", 1]
    assert run(*words) == 0 and "12 of 12 images, fusion" in capsys.readouterr().out
    stored = gallery.FeatureSet(tmp_path / "f.parquet")
    assert stored.checkpoint_sha256 == file_hash(tiny_run / "model_final.pth") and stored.feature == "fusion"
    (crops / "c.jpg").write_text("no image")
    assert run(*words) == 1 and "--overwrite discards" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 3 and "1 could not be read, such as c.jpg" in capsys.readouterr().out
    assert run(*words) == 3
    assert run(tmp_path / "nowhere", *words[1:]) == 1
    capsys.readouterr()

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "extract_folder", interrupt)
    assert run(*words) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command goes on where this one stopped\n"


# ---- search --------------------------------------------------------------------------------------------------------


def stored(path, n=600, width=16, seed=0, names="g{}.jpg", **about):
    """Random features around 40 centres, as tools/extract.py writes them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, width))[rng.integers(0, 40, n)] + 0.3 * rng.normal(size=(n, width))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    about = {"width": width, "checkpoint_sha256": "abc", "feature": "fusion", "folder": "/crops"} | about
    pq.write_table(extract._table([names.format(i) for i in range(n)], x, [""] * n, about), path, row_group_size=100)
    return gallery.FeatureSet(path), x


@pytest.mark.parametrize("kind, least", [("flat", 1.0), ("hnsw", 0.95), ("ivfpq", 0.5)])
def test_an_index_finds_the_nearest(kind, least, tmp_path):
    features, x = stored(tmp_path / "f.parquet")
    built = gallery.build(features, tmp_path / "index", kind=kind)
    index = gallery.Index.load(tmp_path / "index")
    assert index.about == built.about and index.about.kind == kind
    similarity, rows = index.search(x[:50], 10)
    exact = np.argsort(-(x[:50] @ x.T), axis=1)[:, :10]
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact)])
    assert overlap >= least
    assert gallery.recall(index, features) >= least - 0.05
    if kind == "flat":
        np.testing.assert_allclose(similarity, np.take_along_axis(x[:50] @ x.T, exact, 1), atol=1e-5)
        assert gallery.recall(index, features) == 1.0
    [first] = index.matches(["q"], x[7:8], 3)
    assert kind == "ivfpq" or (first[0].path == "g7.jpg" and first[0].similarity == pytest.approx(1, abs=1e-5))
    assert [m.rank for m in first] == [1, 2, 3]


def test_more_effort_misses_less(tmp_path):
    features, _ = stored(tmp_path / "f.parquet", n=4000)
    index = gallery.build(features, tmp_path / "index", kind="ivfpq")
    few, many = (gallery.recall(index, features, effort=e) for e in (1, 100))
    assert few < many


def test_recall_counts_what_is_missed(tmp_path):
    features, x = stored(tmp_path / "f.parquet", n=60)
    index = gallery.build(features, tmp_path / "index")
    index.vectors = faiss.IndexFlatIP(16)
    index.vectors.add(-x)  # an index that finds the farthest
    assert gallery.recall(index, features) < 0.2


def test_the_kind_follows_size_and_memory():
    gib = 2**30
    assert gallery.choose_kind(100_000, 2048, 4 * gib) == "flat"
    assert gallery.choose_kind(200_000, 2048, 4 * gib) == "hnsw"
    assert gallery.choose_kind(5_000_000, 2048, 4 * gib) == "ivfpq"
    assert gallery.choose_kind(100_000, 2048, gib / 2) == "ivfpq"


def test_memory_is_kept(tmp_path):
    features, _ = stored(tmp_path / "f.parquet", n=6000, width=64)
    tight = gallery.build(features, tmp_path / "a", kind="ivfpq", memory_gib=6000 * 26 / 2**30)
    assert tight.about.bytes_per_vector == 4 + 8  # not 16 + 8
    for kind, memory in (("flat", 1e-4), ("ivfpq", 1e-5)):
        with pytest.raises(ValueError, match="--memory"):
            gallery.build(features, tmp_path / "b", kind=kind, memory_gib=memory)
    assert not (tmp_path / "b").exists()


def test_shards_are_read_batch_by_batch(tmp_path):
    features, x = stored(tmp_path / "f.parquet")
    sizes = [len(rows) for _, rows in features.batches(128)]
    assert max(sizes) <= 128 and sum(sizes) == 600
    np.testing.assert_allclose(np.concatenate([rows for _, rows in features.batches(128)]), x, atol=1e-6)


def test_adding_to_a_gallery_whose_images_were_moved(tmp_path):
    """The same images are found again, and new ones stay relative to the folder."""
    first, _ = stored(tmp_path / "f.parquet", folder="/before")
    gallery.build(first, tmp_path / "index")
    same, _ = stored(tmp_path / "g.parquet", n=5, folder="/now")
    with pytest.raises(ValueError, match="5 images are in the index already, such as g0.jpg"):
        gallery.add(tmp_path / "index", same, "/now")
    more, y = stored(tmp_path / "h.parquet", n=5, seed=1, names="m{}.jpg", folder="/now")
    index = gallery.add((tmp_path / "index").rename(tmp_path / "other"), more, "/now")
    assert index.about.folder == "/now" and index.matches(["q"], y[3:4], 1)[0][0].path == "m3.jpg"
    # a query that is in the gallery is left out of its own list, wherever the gallery is now
    assert index.matches(["/now/m3.jpg"], y[3:4], 1)[0][0].path != "m3.jpg"
    assert index.matches(["/later/m3.jpg"], y[3:4], 1, folder="/later")[0][0].path != "m3.jpg"
    assert index.matches(["/later/m3.jpg"], y[3:4], 1)[0][0].path == "m3.jpg"


def test_adding(tmp_path):
    first, x = stored(tmp_path / "f.parquet")
    more, y = stored(tmp_path / "g.parquet", n=50, seed=1, names="m{}.jpg", folder="/others")
    gallery.build(first, tmp_path / "index")
    gallery.add(tmp_path / "index", more)
    index = gallery.Index.load(tmp_path / "index")
    assert index.about.count == 650 and sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "index.json",
        "paths-2.parquet",
        "vectors-2.faiss",
    ]
    assert index.matches(["q"], y[3:4], 1)[0][0].path == "/others/m3.jpg"
    assert index.matches(["q"], x[3:4], 1)[0][0].path == "g3.jpg"
    with pytest.raises(ValueError, match="50 images are in the index already, such as /others/m0.jpg"):
        gallery.add(tmp_path / "index", more)


def test_an_interrupted_save_leaves_the_index_before(tmp_path, monkeypatch):
    first, _ = stored(tmp_path / "f.parquet")
    more, _ = stored(tmp_path / "g.parquet", n=50, seed=1, names="m{}.jpg")
    gallery.build(first, tmp_path / "index")

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(gallery, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        gallery.add(tmp_path / "index", more)
    assert gallery.Index.load(tmp_path / "index").about.count == 600


def test_features_of_another_model_are_refused(tmp_path):
    index = gallery.build(stored(tmp_path / "f.parquet")[0], tmp_path / "index")
    for about, message in (
        ({"width": 8}, "features of width 8, the index of 16"),
        ({"checkpoint_sha256": "xyz"}, "checkpoint xyz, the index of abc"),
        ({"feature": "cls"}, "feature cls, the index of fusion"),
    ):
        other, _ = stored(tmp_path / "g.parquet", n=5, **about)
        with pytest.raises(ValueError, match=message):
            gallery.feature_queries(index, other)
        with pytest.raises(ValueError, match=message):
            gallery.add(tmp_path / "index", other)


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
    with pytest.raises(FileNotFoundError, match="no index in"):
        gallery.Index.load(tmp_path)
    gallery.build(stored(tmp_path / "f.parquet")[0], tmp_path / "index")
    (tmp_path / "index/vectors-1.faiss").write_bytes(b"torn")
    with pytest.raises(ValueError, match="vectors-1.faiss is damaged: .* Build the index again"):
        gallery.Index.load(tmp_path / "index")


@pytest.mark.slow
def test_tool_search(tiny_run, crops, tmp_path, call_tool, capsys, caplog):
    """From crops to ranked lists by the real commands."""
    sha256 = file_hash(tiny_run / "model_final.pth")
    extract.extract_folder(
        Extractor.from_checkpoint(tiny_run, device="cpu"), crops, tmp_path / "f", checkpoint_sha256=sha256
    )
    run = functools.partial(call_tool, "search.py")

    assert run("build", tmp_path / "f", "-o", tmp_path / "index") == 0
    assert capsys.readouterr().out.startswith("flat, 12 vectors of 384, 1536 bytes each")
    query = crops / "a/04.png"
    assert run("query", tmp_path / "index", query, "--run", tiny_run, "-k", 3, "--device", "cpu") == 0
    line = capsys.readouterr().out.splitlines()[2].split()
    assert line[1] == "1" and float(line[2]) < 1 and line[3] != "a/04.png"  # the query is in the gallery
    outputs = ["-o", tmp_path / "m.json", "--picture", tmp_path / "m.png"]
    assert run("query", tmp_path / "index", "--features", tmp_path / "f", "-k", 2, *outputs) == 0
    lists = json.loads((tmp_path / "m.json").read_text())
    assert len(lists) == 12 and not any(x["query"].endswith(m["path"]) for x in lists for m in x["matches"])
    assert [[m["rank"] for m in x["matches"]] for x in lists] == [[1, 2]] * 12
    with Image.open(tmp_path / "m.png") as picture:
        assert len(picture.convert("L").getcolors()) > 50
    assert run("query", tmp_path / "index", crops, "--run", tiny_run, "-o", tmp_path / "m.csv", "-k", 1) == 0
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 13
    assert run("query", tmp_path / "index", query) == 2  # no --checkpoint
    moved = crops.rename(tmp_path / "moved")
    pictured = ["--checkpoint", tiny_run, "--picture", tmp_path / "found.png"]
    picture = ["query", tmp_path / "index", moved / "a/04.png", *pictured]
    capsys.readouterr()
    assert run(*picture) == 0 and "--folder names the place" in capsys.readouterr().err
    assert run(*picture, "--folder", moved) == 0 and "--folder" not in capsys.readouterr().err
    moved.rename(crops)
    assert run("query", tmp_path / "index", query, "--run", tiny_run, "-o", tmp_path / "m.txt") == 1
    (crops / "c.jpg").write_text("no image")
    capsys.readouterr()
    assert run("query", tmp_path / "index", query, crops / "c.jpg", "--run", tiny_run, "-k", 1) == 0
    out, err = capsys.readouterr()
    assert "a/04.png" in out and f"left out: cannot read {crops / 'c.jpg'}" in err + caplog.text
    assert run("query", tmp_path / "index", crops / "c.jpg", "--run", tiny_run) == 1
    assert "none of the 1 query image(s) can be read" in capsys.readouterr().err
    other = tmp_path / "other.pth"
    other.write_bytes((tiny_run / "model_final.pth").read_bytes() + b"\0")
    capsys.readouterr()
    assert run("query", tmp_path / "index", query, "--run", other) == 1
    assert "similarities between them mean nothing" in capsys.readouterr().err
