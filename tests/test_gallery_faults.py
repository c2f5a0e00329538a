"""Faults: a writer of a gallery dies anywhere, the disk is full, two write at once. What was acknowledged is there."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gallery_contract import COLUMNS, MODEL, START, batch

from sagareid.deploy import gallery
from sagareid.deploy.gallery import store, writing

START_OF_ALL = 120  # images of the gallery that every fault begins with


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A gallery with an index, a row behind it and deleted rows, to be copied."""
    monkeypatch.setattr(writing, "TAIL", 30)
    folder = tmp_path / "base"
    crops = gallery.create(folder, MODEL, COLUMNS, kind="hnsw", batches=lambda: [batch(0, 100)])
    crops.add([batch(100, START_OF_ALL)])
    crops.delete(["i3", "i4"])
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """The images of a gallery with their features; each has those that it came with."""
    names, features = gallery.open_gallery(folder).features()
    return {name: row.tobytes() for name, row in zip(names, features)}


def images(*numbers: int, seed: int = 0) -> dict[str, bytes]:
    rows = batch(0, 400, seed).features
    return {f"i{n}": rows[n].tobytes() for n in numbers}


def no_leftovers(folder: Path) -> None:
    named = store.Store(folder).read().files | {store.Store.NAME, ".lock"}
    assert {path.name for path in folder.iterdir()} <= named


def in_child(work: Callable[[], None], die_at: int | None = None) -> bool:
    """Run `work` in a fork that kills itself before its n-th operation on files; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            if die_at is not None:
                left = iter(range(die_at))

                def hook(event: str, args: tuple) -> None:
                    if event in ("open", "os.rename", "os.remove") and next(left, None) is None:
                        os.kill(os.getpid(), signal.SIGKILL)

                sys.addaudithook(hook)
            work()
            os._exit(0)
        except BaseException:
            os._exit(7)
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status == 0


OPERATIONS: dict[str, Callable[[gallery.Gallery], object]] = {
    "add": lambda crops: crops.add([batch(200, 210)], source="a shard"),
    "add until it is indexed": lambda crops: crops.add([batch(200, 260)]),
    "replace": lambda crops: crops.add([batch(0, 20, seed=1), batch(300, 320)], replace=True),
    "delete": lambda crops: crops.delete(["i7", "i8"]),
    "expire": lambda crops: crops.expire(START + dt.timedelta(minutes=37 * 60)),  # the half, so that it is compacted
    "build": lambda crops: gallery.create(
        crops.address, MODEL, COLUMNS, kind="flat", batches=lambda: [batch(300, 340)], replace=True
    ),
}


QUICK = ("add", "delete")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS]
)
def test_a_kill_before_every_operation_on_files(name, base, tmp_path):
    """Before and after are the only states that there are, and the same command then ends the work."""
    operation, before, after = OPERATIONS[name], held(base), None
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    operation(gallery.open_gallery(whole))
    after = held(whole)
    no_leftovers(whole)
    assert before != after
    seen = set()
    for point in range(200):
        folder = tmp_path / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        crops = gallery.open_gallery(folder)
        ended = in_child(lambda crops=crops: operation(crops), point)
        found = held(folder)
        assert found == after or (found == before and not ended), f"killed at operation {point}"
        seen.add(found == after)
        operation(gallery.open_gallery(folder))
        assert held(folder) == after
        no_leftovers(folder)
        if ended:
            break
    assert ended and seen == {True, False} and point > 3


def test_twenty_random_kills(base, tmp_path):
    """A writer that does one thing after the other is killed at random moments. It writes down what was acknowledged;
    only what it was at when it died may be there or not."""
    folder, log = tmp_path / "gallery", tmp_path / "log"
    shutil.copytree(base, folder)
    draw = random.Random(0)
    known, kills, done = held(folder), 0, set()
    while kills < 20:
        steps = [_step(draw) for _ in range(60)]
        log.write_text("")
        pid = os.fork()
        if pid == 0:
            _write_until_killed(folder, steps, log)
        time.sleep(draw.uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        count = len(log.read_text().splitlines())  # acknowledged
        for step in steps[:count]:
            known = _applied(known, step)
        found = held(folder)
        under_way = _applied(known, steps[count]) if count < len(steps) else known
        assert found in (known, under_way), f"after {count} of {steps[: count + 1]}"
        known = found
        done |= {step[0] for step in steps[: count + 1]}
    gallery.open_gallery(folder).add([batch(399, 400)])
    no_leftovers(folder)
    assert done == {"add", "delete", "expire", "build"}


def _step(draw: random.Random) -> tuple:
    kind = draw.choices(["add", "delete", "expire", "build"], [6, 4, 1, 1])[0]
    low = draw.randrange(0, 380)
    return kind, low, low + draw.randrange(1, 20)


def _applied(known: dict[str, bytes], step: tuple) -> dict[str, bytes]:
    """What a step makes of the images."""
    kind, low, high = step
    some = images(*range(low, high))
    if kind == "add":
        return some | known
    if kind == "delete":
        return {name: row for name, row in known.items() if name not in some}
    if kind == "expire":
        return {name: row for name, row in known.items() if int(name[1:]) >= low // 4}
    return some


def _write_until_killed(folder: Path, steps: list[tuple], log: Path) -> None:
    try:
        crops = gallery.open_gallery(folder)
        with open(log, "a") as file:
            for kind, low, high in steps:
                if kind == "add":
                    crops.add([batch(low, high)])
                elif kind == "delete":
                    crops.delete([f"i{n}" for n in range(low, high)])
                elif kind == "expire":
                    crops.expire(START + dt.timedelta(minutes=37 * (low // 4)))
                else:
                    crops = gallery.create(
                        folder, MODEL, COLUMNS, kind="hnsw", batches=lambda a=low, b=high: [batch(a, b)], replace=True
                    )
                file.write(f"{kind}\n")
                file.flush()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_leaves_the_gallery_as_it_was(name, base, tmp_path):
    """Files of the system's largest size end the writing of this process at every size in turn."""
    before = held(base)
    failed = 0
    for limit in (50, 400, 900, 3_000, 12_000):
        folder = tmp_path / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        crops = gallery.open_gallery(folder)

        def work(crops=crops, limit=limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                OPERATIONS[name](crops)
            except OSError:
                os._exit(1)

        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 1)
        failed += code
        if code:
            assert held(folder) == before
            no_leftovers(folder)
    assert failed


def test_two_writers_wait_for_each_other(base, monkeypatch):
    """Four processes add at once; nothing is lost. Who does not get in at all is told by whom."""
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                crops = gallery.open_gallery(base)
                for low in range(200 + 50 * number, 250 + 50 * number, 10):
                    crops.add([batch(low, low + 10)])
                os._exit(0)
            except BaseException:
                os._exit(7)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    assert held(base) == images(*(n for n in [*range(START_OF_ALL), *range(200, 400)] if n not in (3, 4)))
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    crops = gallery.open_gallery(base)
    with store.Store(base).lock(), pytest.raises(store.GalleryBusy, match="another process has been writing into"):
        crops.add([batch(0, 1)])


def test_what_a_damaged_gallery_says(base):
    manifest = json.loads((base / "gallery.json").read_text())
    for change, wrong in (
        ({"segments": [["a", "b"]]}, "its segments, columns or model are not what was written"),
        ({"columns": {"camera": "colour"}}, "its segments, columns or model are not what was written"),
        ({"model": {}}, "its segments, columns or model are not what was written"),
        ({"deleted_count": 5}, "2 rows are deleted, expected 5"),
        ({"index": "index-9.faiss"}, None),
    ):
        (base / "gallery.json").write_text(json.dumps(manifest | change))
        if wrong is None:
            crops = gallery.open_gallery(base)
            with (
                pytest.MonkeyPatch.context() as patch,
                pytest.raises(ValueError, match="index-9.faiss is damaged: it is"),
            ):
                patch.setattr("sagareid.deploy.gallery.faiss_engine.EXACT", 0)
                crops.query(np.ones((1, 16), np.float32))
            continue
        with pytest.raises(ValueError, match=f"is damaged: {wrong}"):
            gallery.open_gallery(base)
