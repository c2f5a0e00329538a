"""A job of two processes with loader workers and a feature cache, killed at random points and resumed each time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sagareid.weights import load_state

SMALL = [
    "SOLVER.IMS_PER_BATCH", "16", "DATALOADER.NUM_WORKERS", "1", "CACHE.NUM_VIEWS", "2", "TEST.EVAL_PERIOD", "1000",
]  # fmt: skip
FAREWELL = 120  # seconds in which a job whose process was killed must have ended


class Job:
    """The command line of a job, to be started as often as it is killed."""

    def __init__(self, repo: Path, root: Path, folder: Path, stages: str, epochs: int):
        config = ["--config-file", "configs/SAGA/quickstart.yml", "--stage", stages, "--num-gpus", "2", "--resume"]
        opts = [*SMALL, "SOLVER.MAX_EPOCH", str(epochs), "OUTPUT_DIR", str(folder)]
        self.command, self.repo, self.folder = [sys.executable, "tools/train_net.py", *config, *opts], repo, folder
        self.environment = os.environ | {"FASTREID_DATASETS": str(root), "OMP_NUM_THREADS": "1"}

    def start(self) -> subprocess.Popen:
        """In a session of its own, whose processes are all of the job's."""
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / "output.txt", "a") as output:
            return subprocess.Popen(
                self.command, cwd=self.repo, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def finish(self) -> None:
        assert self.start().wait() == 0, (self.folder / "output.txt").read_text()[-3000:]

    def survive(self, kills: int, longest: float, rng: random.Random) -> list[str]:
        """Start it and kill one of its processes, or all, up to `longest` seconds after it began to work, so often;
        then let it end.

        Returns:
            What was killed, and in which stage, as often as it was not over before.
        """
        done: list[str] = []
        while len(done) < kills:
            begun, process = time.time(), self.start()
            while not self.logs_since(begun) and process.poll() is None:
                time.sleep(0.1)
            try:
                process.wait(rng.uniform(0, longest))
            except subprocess.TimeoutExpired:
                members = session(process.pid)
                one = rng.choice(members)
                what = {"the launcher": [process.pid], "all": members, "one": [one], "another": [one]}
                name = rng.choice(list(what))
                for victim in what[name]:
                    kill(victim)
                process.wait(FAREWELL)
                done.append(f"{name} of {len(members)} in {self.logs_since(begun)[-1].parent.name}")
            if process.returncode == 0:
                return done
        self.finish()
        return done

    def logs_since(self, begun: float) -> list[Path]:
        """Log files of the stages that were written to since then, the latest last."""
        logs = [path for path in self.folder.glob("*/log.txt") if path.stat().st_mtime > begun]
        return sorted(logs, key=lambda path: path.stat().st_mtime)


def session(leader: int) -> list[int]:
    """Processes of a session, but Python's own that looks after leaked semaphores: nothing depends on it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            command = Path("/proc", pid, "cmdline").read_text()
        except OSError:
            continue
        if int(fields[3]) == leader and "resource_tracker" not in command:
            found.append(int(pid))
    return found


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def differing(a: Path, b: Path, stages: Sequence[str]) -> list[str]:
    """Names of the weights of each stage that are not the same to the bit."""
    pairs = [(s, *(load_state(folder / s / "model_final.pth")["model"] for folder in (a, b))) for s in stages]
    return [f"{s}: {name}" for s, x, y in pairs for name in x if not torch.equal(x[name], y[name])]


@pytest.mark.slow
def test_a_job_of_two_processes_that_is_killed_ends_with_the_same_weights(repo, tiny_root, tmp_path):
    stages = ["prompts", "backbone"]
    undisturbed, killed = (Job(repo, tiny_root, tmp_path / name, ",".join(stages), 3) for name in ("a", "b"))
    undisturbed.finish()
    assert killed.survive(3, 4.0, random.Random(0)), "it was over before"
    assert differing(undisturbed.folder, killed.folder, stages) == []
