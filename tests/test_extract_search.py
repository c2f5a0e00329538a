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
        assert json.loads(str(arrays["about"])) == shards.about | {"key": shards.key}


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
