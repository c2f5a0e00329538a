"""Everything that a GPU must show, in one command: steps in processes of their own, each with a time limit.

A step that crashes, hangs or runs out of memory costs that step. Steps that only check run beside each other, then
those that measure, one after the other. What is known is written after every step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...files import write_json, write_text
from .steps import STEPS

__all__ = ["run", "table"]

PACKAGE_ROOT = Path(__file__).resolve().parents[3]
# Seconds between SIGTERM, which launchers pass on to their processes, and SIGKILL.
FAREWELL = 5.0
LOG_LINES = 4000
# A dry run may share its CPU with anything: so many times a step's seconds there.
SHARED_CPU = 3


def run(
    *, steps: Sequence[str], device: str, size: str, budget: float, repo: Path, output: Path, command: str
) -> dict[str, Any]:
    """Run steps and write `results.json`, `table.md` and `log.txt` into a folder.

    Args:
        steps: names among `STEPS`; they run in the order of `STEPS`.
        device: "cuda" or "cpu". size: one of `SCALES`.
        budget: seconds for all of them; a step that has not begun by then is left out.
        repo: this repository, for its tools, configs and tests.

    Returns:
        {"command", "date", "device", "size", "seconds", "steps": {name: {"status", "seconds", "values", "lines",
        "problems", "skipped"}}}; status is passed, failed, timeout, crashed or left out.
    """
    results: dict[str, Any] = {
        "command": command,
        "date": datetime.now().isoformat(timespec="seconds"),
        "device": device,
        "size": size,
        "seconds": 0.0,
        "steps": {},
    }
    chosen = [name for name in STEPS if name in steps]
    begun = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="gpu_check.") as folder:
        work = Path(folder)

        def save() -> None:
            results["seconds"] = time.monotonic() - begun
            results["steps"] = {name: results["steps"][name] for name in STEPS if name in results["steps"]}
            write_json(output / "results.json", results)
            write_text(output / "table.md", table(results) + "\n")
            write_text(output / "log.txt", _logs(work, chosen))

        def one(name: str, processes: int) -> None:
            left = budget - (time.monotonic() - begun)
            results["steps"][name] = _run_step(name, device, size, repo, work, left, processes)
            print(f"[{time.monotonic() - begun:4.0f} s] {name}: {results['steps'][name]['status']}", flush=True)

        # on a CPU times mean nothing here, so nothing is measured alone
        alone = [name for name in chosen if STEPS[name].alone and device != "cpu"]
        together = [name for name in chosen if name not in alone]
        if together:
            workers = min(len(together), os.cpu_count() or 1)
            with ThreadPoolExecutor(workers) as pool:
                for future in as_completed([pool.submit(one, name, workers) for name in together]):
                    future.result()
                    save()
        for name in alone:
            one(name, 1)
            save()
    return results


def _run_step(name: str, device: str, size: str, repo: Path, work: Path, left: float, processes: int) -> dict[str, Any]:
    """One step in a process of its own. left: seconds of the budget. processes: steps that run beside each other."""
    limit = min(STEPS[name].seconds * (SHARED_CPU if device == "cpu" else 1), left)
    if limit < 5:
        return _entry("left out", 0.0, problems=["the budget was spent"])
    found, log = work / f"{name}.json", work / f"{name}.log"
    command = [sys.executable, "-m", "sagareid.benchmarks.gpu.steps", name, "--device", device, "--size", size]
    command += ["--repo", str(repo), "--work", str(work / name), "--output", str(found)]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    begun, status = time.monotonic(), ""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, cwd=repo, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            status, code = "timeout", None
        finally:
            _end(process)
    entry = _entry(status or "passed", time.monotonic() - begun)
    if found.is_file():
        entry |= _read(found)
    if status == "timeout":
        entry["problems"].append(f"not done after {limit:.0f} s")
    elif code:
        entry["status"] = "crashed"
        lines = log.read_text(errors="replace").strip().splitlines()
        entry["problems"].append(f"exit code {code}: {lines[-1][:300] if lines else 'no output'}")
    elif entry["problems"]:
        entry["status"] = "failed"
    return entry


def _entry(status: str, seconds: float, problems: Sequence[str] = ()) -> dict[str, Any]:
    return {"status": status, "seconds": seconds, "values": {}, "lines": [], "problems": list(problems), "skipped": []}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _end(process: subprocess.Popen) -> None:
    """End a step's process and everything that it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL)


def _logs(work: Path, names: Sequence[str]) -> str:
    parts = []
    for name in names:
        log = work / f"{name}.log"
        if log.is_file():
            lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-LOG_LINES:]
            parts.append("\n".join([f"==== {name} ====", *lines]))
    return "\n\n".join(parts) + "\n"


def _machine(results: dict[str, Any]) -> str:
    """What it ran on, in words, of the first step that says so; empty before."""
    for step in results["steps"].values():
        if found := step["values"].get("machine"):
            return f"{found.get('gpu') or found['cpu']}, torch {found['torch']}."
    return ""


def table(results: dict[str, Any]) -> str:
    """What every step found, in Markdown."""
    rows = [[name, s["status"], f"{s['seconds']:.0f}"] for name, s in results["steps"].items()]
    lines = [
        f"`{results['command']}`, {results['date']}, {results['seconds']:.0f} s. {_machine(results)}".rstrip(),
        "",
        tabulate(rows, ["step", "status", "seconds"], tablefmt="github", disable_numparse=True),
        "",
    ]
    for name, step in results["steps"].items():
        marks = [("-", step["lines"]), ("- PROBLEM:", step["problems"]), ("- skipped:", step["skipped"])]
        found = [f"{mark} {text}" for mark, texts in marks for text in texts]
        if found:
            lines += [f"**{name}**", "", *found, ""]
    return "\n".join(lines).rstrip()
