"""Shards of a running extraction into a gallery: as they are finished, each once, whoever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_contract import unit
from test_extract_search import WORKER

from sagareid.deploy import extract_folder as extract
from sagareid.deploy import gallery
from sagareid.deploy.gallery.watch import watch

SHARDS, SIZE = 12, 25


class Extraction:
    """The folder of an extraction that writes shards when it is told to."""

    def __init__(self, folder, key="key", names="i{}.jpg", shards=SHARDS):
        self.folder, self.key, self.names, self.shards = folder, key, names, shards
        self.x = unit(SHARDS * SIZE)
        self.about = {"width": 16, "checkpoint_sha256": "abc", "feature": "fusion", "folder": "/crops", "key": key}

    def begin(self):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "manifest.json").write_text(json.dumps(self.about | {"shards": self.shards}))

    def finish(self, number):
        some = range(number * SIZE, (number + 1) * SIZE)
        columns = {"camera": pa.array([str(i % 3) for i in some])}
        about = self.about | {"shard": number}
        table = extract._table([self.names.format(i) for i in some], self.x[some], [""] * SIZE, about, columns)
        path = self.folder / f"part-{number:05d}-of-{self.shards:05d}.parquet"
        pq.write_table(table, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)


@pytest.fixture
def extraction(tmp_path):
    return Extraction(tmp_path / "shards")


def whole(address, count=SHARDS * SIZE):
    names, features = gallery.open_gallery(address).features()
    assert len(names) == count and set(names) == {f"i{i}.jpg" for i in range(count)}
    order = [int(name[1:-4]) for name in names]
    np.testing.assert_allclose(features, unit(SHARDS * SIZE)[order], atol=1e-6)


def test_shards_come_in_as_they_are_finished(extraction, tmp_path, monkeypatch):
    """The gallery is made by the first; what is waited for is done meanwhile."""
    steps = iter([extraction.begin, *(lambda n=n: extraction.finish(n) for n in (3, 0, 1, 2, *range(4, SHARDS)))])
    monkeypatch.setattr("sagareid.deploy.gallery.watch.time.sleep", lambda seconds: next(steps)())
    seen = [(name, added.added) for name, added in watch(tmp_path / "g", tmp_path / "shards")]
    assert [name[5:10] for name, _ in seen] == ["00003", "00000", "00001", "00002", *(f"{n:05d}" for n in range(4, 12))]
    assert {added for _, added in seen} == {SIZE}
    whole(tmp_path / "g")
    assert gallery.open_gallery(tmp_path / "g").columns == {"camera": "text"}
    assert list(watch(tmp_path / "g", tmp_path / "shards")) == [], "everything is there"


def test_what_was_deleted_since_does_not_come_back(extraction, tmp_path):
    extraction.begin()
    for number in range(SHARDS):
        extraction.finish(number)
    list(watch(tmp_path / "g", extraction.folder))
    crops = gallery.open_gallery(tmp_path / "g")
    crops.delete(where="camera == 1")
    left = crops.count()
    assert list(watch(tmp_path / "g", extraction.folder)) == [] and crops.count() == left == 200
    again = Extraction(extraction.folder, key="another")  # other images, of which most are the same
    again.begin()
    for number in range(SHARDS):
        again.finish(number)
    assert sum(added.added for _, added in watch(tmp_path / "g", extraction.folder)) == 100


def test_shards_of_an_earlier_extraction_are_waited_for(extraction, tmp_path, monkeypatch):
    extraction.begin()
    extraction.finish(0)
    later = Extraction(extraction.folder, key="later", shards=SHARDS)
    later.begin()
    (extraction.folder / f"part-00001-of-{SHARDS:05d}.parquet").write_bytes(b"torn")
    with pytest.raises(ZeroDivisionError):  # it waits
        monkeypatch.setattr("sagareid.deploy.gallery.watch.time.sleep", lambda seconds: 1 / 0)
        next(watch(tmp_path / "g", extraction.folder))
    assert not (tmp_path / "g").exists()


def test_a_shard_of_another_model_ends_it(extraction, tmp_path):
    extraction.begin()
    extraction.finish(0)
    next(watch(tmp_path / "g", extraction.folder))
    extraction.about["checkpoint_sha256"] = "xyz"
    extraction.finish(1)
    with pytest.raises(ValueError, match="is of checkpoint xyz, the gallery of abc"):
        list(watch(tmp_path / "g", extraction.folder))


EXTRACTION = WORKER.replace("shard_size=2,", r"shard_size=2, pattern=r'(?P<camera>c\d)_',")
WATCHER = """
import sys
from sagareid.commands.search import main
main(["add", sys.argv[1], sys.argv[2], "--watch", "--every", "0.05", "--traceback"])
"""


def test_two_watchers_and_a_kill(extraction, tmp_path):
    """One is killed after the first shards; the other, and one that is started anew, add each shard once."""

    def start(name):
        words = [sys.executable, "-c", WATCHER, str(tmp_path / "g"), str(extraction.folder)]
        with open(tmp_path / name, "w") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)

    def lines(name):
        return [line for line in (tmp_path / name).read_text().splitlines() if line.startswith("part-")]

    first = start("a")
    second = start("b")
    extraction.begin()
    for number in range(4):
        extraction.finish(number)
    while len(lines("a")) + len(lines("b")) < 3 and first.poll() is second.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = start("c")
    for number in range(4, SHARDS):
        extraction.finish(number)
    assert second.wait(60) == third.wait(60) == 0, (tmp_path / "b").read_text() + (tmp_path / "c").read_text()
    whole(tmp_path / "g")
    assert len(gallery.open_gallery(tmp_path / "g").sources()) == SHARDS


@pytest.mark.slow
def test_an_extraction_of_two_processes_ends_in_the_gallery_whoever_is_killed(tiny_run, tiny_root, tmp_path):
    """One of two processes of the extraction is killed in its first shard, the watcher in the midst; what is begun anew
    ends with every image once."""
    crops = tmp_path / "crops"
    crops.mkdir()
    for i, file in enumerate(sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[:12]):
        shutil.copy(file, crops / f"c{i % 3}_{i:02d}{file.suffix}")
    output, address = tmp_path / "shards", tmp_path / "g"

    def extraction(rank, slow):
        words = [sys.executable, "-c", EXTRACTION, str(slow), str(tiny_run), str(crops), str(output)]
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    def watcher(name):
        with open(tmp_path / name, "w") as log:
            words = [sys.executable, "-c", WATCHER, str(address), str(output)]
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)

    first = watcher("a")
    victim = extraction(1, 600)
    assert victim.stdout.readline() == "taken 3\n"
    other = extraction(0, 0)
    while (tmp_path / "a").read_text().count("part-") < 2 and first.poll() is other.poll() is None:
        time.sleep(0.02)
    for process in (first, victim):
        process.send_signal(signal.SIGKILL)
        process.wait()
    second = watcher("b")
    assert other.communicate(timeout=120)[0].split()[-1] == "3" and other.returncode == 0
    assert second.wait(60) == 0, (tmp_path / "b").read_text()
    found = gallery.open_gallery(address)
    names, features = found.features()
    paths, wanted = gallery.FeatureSet(output).whole()
    assert sorted(names) == paths and len(found.sources()) == 6 and found.count("camera == c1") == 4
    np.testing.assert_allclose(features[np.argsort(names)], wanted, atol=1e-6)
