"""Two runs, one folder: the second is refused by name, a kill leaves nothing behind, finished things may be
read-only."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import QUICKSTART, SMALL

from sagareid.engine.ownership import FolderLock, FolderTaken, owned_folders
from sagareid.files import write_json


def start(tiny_root, repo, *argv: object) -> subprocess.Popen:
    """tools/train_net.py in a process of its own."""
    environment = {**os.environ, "FASTREID_DATASETS": str(tiny_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tools/train_net.py", *map(str, argv)]
    return subprocess.Popen(
        command, cwd=repo, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


# ---- the lock
# -----------------------------------------------------------------------------------------------------------


def hold(lock, pipe) -> None:
    """A process that is handed a lock and tells that it lives."""
    pipe.send(os.getpid())
    pipe.recv()


def test_a_second_owner_is_told_who_the_first_is(tmp_path):
    with owned_folders([tmp_path / "run"], fresh=False):
        with pytest.raises(FolderTaken) as error, owned_folders([tmp_path / "run"], fresh=True):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}, started 20" in str(error.value)
        assert "OUTPUT_DIR" in str(error.value)
    assert not (tmp_path / "run").exists(), "nothing is left of owning it"
    with owned_folders([tmp_path / "run"], fresh=False):
        (tmp_path / "run" / "log.txt").touch()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["log.txt"]


def test_all_folders_or_none(tmp_path):
    with owned_folders([tmp_path / "b"], fresh=False):
        with pytest.raises(FolderTaken), owned_folders([tmp_path / "a", tmp_path / "b"], fresh=True):
            pass
        FolderLock(tmp_path / "a").release()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_who_holds_it(method, tmp_path):
    """A process that is handed the lock holds it beyond its owner's end; one that only forks off does not."""
    context = multiprocessing.get_context(method)
    lock = FolderLock(tmp_path)
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(lock if method != "fork" else None, there))
    process.start()
    here.recv()
    lock._close()  # as when its owner is killed
    if method == "fork":
        FolderLock(tmp_path).release()
    else:
        with pytest.raises(FolderTaken):
            FolderLock(tmp_path)
    process.kill()
    process.join()
    FolderLock(tmp_path).release()


def test_a_lock_is_of_the_file_that_is_there(tmp_path, monkeypatch):
    """An owner that deletes the file while another waits to lock it does not let two of them in."""
    first = FolderLock(tmp_path / "run")
    original = os.open

    def released_meanwhile(path, *args):
        descriptor = original(path, *args)
        monkeypatch.setattr(os, "open", original)
        first.release()
        return descriptor

    monkeypatch.setattr(os, "open", released_meanwhile)
    second = FolderLock(tmp_path / "run")
    with pytest.raises(FolderTaken):
        FolderLock(tmp_path / "run")
    second.release()


def test_an_earlier_run_is_moved_while_it_is_owned(tmp_path):
    for name in ("stage", "plain"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "model_final.pth").touch()
    (tmp_path / "plain" / "config.yaml").touch()
    with owned_folders([tmp_path / "stage", tmp_path / "plain"], fresh=True):
        for name in ("stage", "plain"):
            with pytest.raises(FolderTaken):
                FolderLock(tmp_path / name)
    [stage] = tmp_path.glob("stage.before-*")
    [plain] = tmp_path.glob("plain.before-*")
    assert sorted(p.name for p in stage.iterdir()) == ["model_final.pth", "sub"]
    assert sorted(p.name for p in plain.iterdir()) == ["config.yaml", "model_final.pth"]
    assert [p.name for p in (tmp_path / "plain").iterdir()] == ["sub"], "folders of other runs stay"


# ---- runs
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_is_refused_and_a_kill_frees_the_folder(
    processes, tiny_root, repo, tmp_path, train_net, capfd, monkeypatch
):
    monkeypatch.chdir(repo)
    run = [*QUICKSTART, "--num-gpus", processes, "--stage", "prompts"]
    opts = [*SMALL, "OUTPUT_DIR", tmp_path]
    first = start(tiny_root, repo, *run, *opts, "SOLVER.MAX_EPOCH", 5000)
    wait_for(tmp_path / "prompts" / "last.pth", first)
    before = sorted(p.name for p in tmp_path.iterdir())
    for more in ([], ["--resume"], ["--eval-only"]):
        assert train_net(*QUICKSTART, *more, "--stage", "prompts", *opts) == 1
        error = capfd.readouterr().err
        assert re.search(rf"belongs to a job that is running: process {first.pid} on \S+, started 20", error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "nothing of the running job was moved"
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert train_net(*QUICKSTART, "--stage", "prompts", *opts) == 0
    assert not list((tmp_path / "prompts").glob("run.lock"))
    assert len(list(tmp_path.glob("prompts.before-*"))) == 1


@pytest.mark.slow
def test_a_stage_keeps_the_rows_of_the_others(train_net, repo, tmp_path, monkeypatch):
    monkeypatch.chdir(repo)
    row = {"stage": "backbone", "metrics": {"mAP": 1.0}, "seconds": 2.0}
    write_json(tmp_path / "results.json", [row, {"stage": "prompts", "metrics": {"mAP": 0.0}}, {"stage": "gone"}])
    assert train_net(*QUICKSTART, "--stage", "prompts", *SMALL, "OUTPUT_DIR", tmp_path) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [r["stage"] for r in rows] == ["prompts", "backbone"] and rows[1] == row and rows[0]["metrics"]["mAP"] > 0


def test_every_place_is_checked_before_training(train_net, repo, tmp_path, monkeypatch, capfd):
    """The cache of the third stage, a stage's folder, and the table of results."""
    monkeypatch.chdir(repo)
    (tmp_path / "cache").touch()
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    (tmp_path / "out" / "anchors").touch()
    opts = [*SMALL, "OUTPUT_DIR", tmp_path / "out", "CACHE.DIR", tmp_path / "cache"]
    assert train_net(*QUICKSTART, *opts) == 1
    error = capfd.readouterr().err
    for path in ("cache", "out/anchors", "out/results.json"):
        assert f"cannot write {tmp_path}/{path} (" in error
    assert not (tmp_path / "out" / "prompts").exists()


def test_runs_that_end_within_a_second_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *args: "20260101-000000")
    run = tmp_path / "run"
    for number in range(3):
        run.mkdir(exist_ok=True)
        (run / "model_final.pth").write_text(str(number))
        with owned_folders([run], fresh=True):
            assert not list(run.glob("*.pth"))
    kept = ["run.before-20260101-000000", "run.before-20260101-000000-2", "run.before-20260101-000000-3"]
    assert [(tmp_path / name / "model_final.pth").read_text() for name in kept] == ["0", "1", "2"]
