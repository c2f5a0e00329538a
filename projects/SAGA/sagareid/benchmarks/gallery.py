"""Recall, memory, disk and time of a gallery's indexes, on features with clusters like those of people.

n gallery images, F feature width, q queries. People come in families of FAMILY who look alike: a person's point is
made of the family's and the person's own, an image of the person's point and noise. Two images of a person have a
cosine near 1 / (1 + noise^2), of two people of a family 0.4 times that, of others near 0. Every image is of one of 100
cameras, drawn at random, so that a filter by cameras passes a known share. Nothing but one block of images is in memory
at a time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from tabulate import tabulate
from tqdm import tqdm

from ..deploy import gallery
from ..processes import deaf_to_interrupts

__all__ = ["Drawn", "run", "table"]

FAMILY = 50  # people who look alike
OF_FAMILY = 0.4  # share of a person's point (of its square) that is the family's
CAMERAS = 100
BLOCK = 100_000
K = 10
MODEL = "0" * 64


class Drawn:
    """A gallery's features, block by block, the same at every pass."""

    def __init__(self, count: int, width: int, images: int, noise: float = 0.65, seed: int = 0):
        """
        Args:
            images: of a person.
            noise: length of what an image adds to the person's point, whose length is 1.
        """
        self.count, self.width, self.images, self.noise, self.seed = count, width, images, noise, seed
        people = max(1, count // images)
        rng = np.random.default_rng(seed)
        families = rng.standard_normal((-(-people // FAMILY), width), np.float32)
        own = rng.standard_normal((people, width), np.float32)
        own *= (1 - OF_FAMILY) ** 0.5
        own += OF_FAMILY**0.5 * families[np.arange(people) // FAMILY]
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        self._points = own

    def _of(self, people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal((len(people), self.width), np.float32)
        x *= self.noise / self.width**0.5
        x += self._points[people]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The number of the first image, cameras (m,) and features (m, F)."""
        for start in range(0, self.count, BLOCK):
            rng = np.random.default_rng([self.seed, start])
            size = min(BLOCK, self.count - start)
            people = rng.integers(0, len(self._points), size)
            yield start, rng.integers(0, CAMERAS, size), self._of(people, rng)

    def batches(self) -> Iterator[gallery.Batch]:
        for start, cameras, features in self.blocks():
            names = [f"crops/{i:09d}.jpg" for i in range(start, start + len(features))]
            columns = {"id": names, "path": names, "camera": [str(camera) for camera in cameras]}
            yield gallery.Batch(pa.table({name: pa.array(values) for name, values in columns.items()}), features)

    def queries(self, count: int) -> np.ndarray:
        """(q, F) further images of people of the gallery."""
        rng = np.random.default_rng([self.seed, self.count + 1])
        return self._of(rng.integers(0, len(self._points), count), rng)

    def nearest(self, queries: np.ndarray, shares: Sequence[float]) -> dict[float, np.ndarray]:
        """By share of the cameras, the numbers (q, K) of the exact nearest images."""
        heaps = {share: faiss.ResultHeap(len(queries), K, keep_max=True) for share in shares}
        with tqdm(total=self.count, desc="exact neighbours", unit="vec", leave=False, disable=None) as bar:
            for start, cameras, features in self.blocks():
                for share, heap in heaps.items():
                    numbers = np.flatnonzero(cameras < round(share * CAMERAS))
                    found = faiss.knn(
                        queries, features[numbers], min(K, len(numbers)), metric=faiss.METRIC_INNER_PRODUCT
                    )
                    heap.add_result(found[0], (numbers[found[1]] + start).astype(np.int64))
                bar.update(len(features))
        for heap in heaps.values():
            heap.finalize()
        return {share: heap.I for share, heap in heaps.items()}


def _where(share: float) -> str:
    cameras = ", ".join(str(i) for i in range(round(share * CAMERAS)))
    return "" if share == 1 else f"camera in ({cameras})"


def _memory() -> dict[str, float]:
    """MiB of this process: its own, and pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def _search(folder: str, queries: np.ndarray, shares: Sequence[float], pipe: Any, threads: int) -> None:
    """Memory and answers of a process that does nothing but search."""
    faiss.omp_set_num_threads(threads)
    before = _memory()
    crops, out = gallery.open_gallery(folder), {}
    for share in shares:
        crops.query(queries[:2], K, where=_where(share))  # what is loaded once
        seconds, found = [], []
        for query in queries:
            begun = time.perf_counter()
            [hits] = crops.query(query[None], K, where=_where(share))
            seconds.append(time.perf_counter() - begun)
            found.append([int(hit.id[6:15]) for hit in hits])
        out[share] = (found, seconds)
    after = _memory()
    pipe.send((out, {name: after[name] - before[name] for name in after}))


def _measure(drawn: Drawn, kind: str, folder: Path, truth: dict[float, np.ndarray], **options: Any) -> dict[str, Any]:
    queries, memory_gib, threads = options["queries"], options["memory_gib"], options["threads"]
    begun = time.perf_counter()
    crops = gallery.create(
        folder,
        gallery.Model(drawn.width, MODEL, "drawn"),
        {"camera": "text"},
        kind=kind,
        memory_gib=memory_gib,
        batches=drawn.batches,
        count=drawn.count,
        replace=True,
    )
    built = time.perf_counter() - begun
    about = crops.describe()
    del crops
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_search, args=(str(folder), queries, list(truth), sender, threads))
    with deaf_to_interrupts():
        process.start()
    sender.close()
    try:
        out, memory = receiver.recv()
    finally:
        process.join()
    rows = []
    for share, exact in truth.items():
        found, seconds = out[share]
        hits = [len(set(a) & set(b.tolist())) / max(1, (b >= 0).sum()) for a, b in zip(found, exact)]
        ranked = sorted(seconds)
        rows.append(
            {
                "share": share,
                "recall": statistics.mean(hits),
                "ms_median": 1000 * statistics.median(seconds),
                "ms_p95": 1000 * ranked[int(0.95 * (len(ranked) - 1))],
            }
        )
    return {
        "kind": kind,
        "build_seconds": built,
        "bytes_per_vector": about["bytes_per_vector"],
        "index_mib": about["memory_bytes"] / 2**20,
        "disk_mib": about["disk_bytes"] / 2**20,
        "own_mib": memory["own"],
        "mapped_mib": memory["mapped"],
        "effort": about["effort"],
        "searches": rows,
    }


def run(
    *,
    count: int,
    width: int,
    images: int,
    noise: float,
    kinds: Sequence[str],
    shares: Sequence[float],
    queries: int,
    memory_gib: float,
    threads: int,
    folder: Path,
    command: str,
    done: Any = lambda result: None,
) -> dict[str, Any]:
    """Build a gallery of each kind, one after the other, and search it in a process of its own.

    Args:
        images, noise: of a person, see `Drawn`. queries: how many.
        shares: of the gallery that a filter passes, 0.01 to 1.
        folder: for the galleries; removed in the end.
        done: called after each kind with what is measured by then.

    Returns:
        {"command", "date", "machine", "count", "width", "images", "noise", "queries", "kinds": [...]}; of each kind
        the recall at 10 against exact search in float32, median and 95th percentile of the time of one query alone, and
        MiB.
    """
    from ..hardware import machine  # here: the process that only searches needs no PyTorch

    faiss.omp_set_num_threads(threads)
    drawn = Drawn(count, width, images, noise)
    asked = drawn.queries(queries)
    truth = drawn.nearest(asked, shares)
    measured: list[dict] = []
    result = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine("cpu") | {"threads": threads},
        "count": count,
        "width": width,
        "images": images,
        "noise": noise,
        "queries": queries,
        "memory_gib": memory_gib,
        "kinds": measured,
    }
    try:
        for kind in kinds:
            place = folder / kind
            options = {"queries": asked, "memory_gib": memory_gib, "threads": threads}
            measured.append(_measure(drawn, kind, place, truth, **options))
            shutil.rmtree(place)
            done(json.loads(json.dumps(result)))
    finally:
        for kind in kinds:
            shutil.rmtree(folder / kind, ignore_errors=True)
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
    return result


def table(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    m, rows = result["machine"], []
    for entry in result["kinds"]:
        of_kind = {
            "index": entry["kind"],
            "bytes a vector": f"{entry['bytes_per_vector']:.0f}",
            "MiB of the index": f"{entry['index_mib']:.0f}",
            "MiB of the process: own, mapped": f"{entry['own_mib']:.0f}, {entry['mapped_mib']:.0f}",
            "MiB on the disk": f"{entry['disk_mib']:.0f}",
            "built in s": f"{entry['build_seconds']:.0f}",
        }
        for search in entry["searches"]:
            of_search = {
                "passes": f"{100 * search['share']:g} %",
                "recall@10": f"{search['recall']:.3f}",
                "ms a query: median, 95 %": f"{search['ms_median']:.1f}, {search['ms_p95']:.1f}",
            }
            rows.append(of_kind | of_search)
            of_kind = dict.fromkeys(of_kind, "")
    return "\n".join(
        [
            f"`{result['command']}`, {result['date']}. {m['cpu']}, {m['cores']} cores, {m['threads']} thread(s). "
            f"{result['count']} images, {result['images']} a person, {result['width']} numbers; "
            f"{result['queries']} queries.",
            "",
            tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
        ]
    )
