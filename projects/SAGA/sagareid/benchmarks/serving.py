"""Latency of the person's page's API: the command itself in a process of its own, and clients that ask at once.

A client is a thread with a connection of its own, which asks again as soon as it is answered.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tabulate import tabulate

from ..data.images import image_files
from ..hardware import machine
from ..serving.options import TOKEN_VARIABLE

__all__ = ["ask", "run", "table"]

SHARES = (50, 90, 99)
TIMEOUT = 120.0  # seconds


@contextmanager
def _server(words: Sequence[str]) -> Iterator[str]:
    """The address of tools/serve.py with these words, on a free port of this machine.

    Raises:
        RuntimeError: it did not start; the message is its own.
    """
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    command = [sys.executable, "-m", "sagareid", "serve", *words, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            line = server.stdout.readline().split()
            if not line:
                raise RuntimeError(f"tools/serve.py did not start: {server.stderr.read().strip()}")
            yield line[0]
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(address: str, bodies: Sequence[bytes], clients: int, requests: int, k: int = 12) -> dict[str, Any]:
    """Ask so many times by so many clients.

    Returns:
        "clients", "requests", "answered" (with status 200 and matches), "seconds" of all, "ms": latencies, sorted.
    """
    parts = urlsplit(address)
    numbers, taking = iter(range(requests)), threading.Lock()
    latencies: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
        while True:
            with taking:
                number = next(numbers, None)
            if number is None:
                break
            begun = time.perf_counter()
            try:
                connection.request("POST", f"/api/query?k={k}", bodies[number % len(bodies)])
                response = connection.getresponse()
                answered = bool(json.loads(response.read()).get("matches")) and response.status == 200
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                answered = False
            if answered:
                latencies.append((time.perf_counter() - begun) * 1000)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    found = {"clients": clients, "requests": requests, "answered": len(latencies), "seconds": seconds}
    return found | {"ms": sorted(latencies)}


def run(
    *,
    words: Sequence[str],
    images: Path,
    clients: Sequence[int],
    requests: int,
    command: str,
    done: Callable[[dict], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure with each number of clients, after a warm-up.

    Args:
        words: of tools/serve.py: gallery, --run and others. images: folder of the queries.

    Raises:
        ValueError: no image there. RuntimeError: the server does not start.
    """
    files = image_files(images).images
    if not files:
        raise ValueError(f"{images} holds no image; expected a folder of query images")
    bodies = [file.read_bytes() for file in itertools.islice(files, 256)]
    result: dict[str, Any] = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine("cpu"),
        "runs": [],
    }
    with _server(words) as address:
        ask(address, bodies, 4, 32)
        for number in clients:
            found = ask(address, bodies, number, requests)
            latencies = found.pop("ms")
            found["percentiles_ms"] = {str(p): float(np.percentile(latencies, p)) for p in SHARES} if latencies else {}
            found["max_ms"] = latencies[-1] if latencies else None
            result["runs"].append(found)
            done(result)
    return result


def table(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    m = result["machine"]
    rows = [
        {
            "clients": run["clients"],
            "requests": run["requests"],
            "lost": run["requests"] - run["answered"],
            "per second": f"{run['answered'] / run['seconds']:.0f}",
            **{f"{p} % within, ms": f"{run['percentiles_ms'].get(str(p), float('nan')):.0f}" for p in SHARES},
            "longest, ms": "-" if run["max_ms"] is None else f"{run['max_ms']:.0f}",
        }
        for run in result["runs"]
    ]
    head = f"`{result['command']}`, {result['date']}. {m['cpu']}, {m['cores']} cores; clients on the same machine."
    return f"{head}\n\n{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}"
