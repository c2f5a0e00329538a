"""Time and memory of ranking: ours, FastReID's evaluator and the published way, in turn, each in a fresh process.

Q queries, G gallery images, D feature width. All get the same random features, batch by batch as in a test; `evaluate`
is what is measured.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from fastreid.evaluation import ReidEvaluator, rank, reid_evaluation

from .. import compat
from ..config import get_cfg
from ..evaluation import cpu_ranking
from ..evaluation import evaluator as ours
from ..hardware import machine
from ..processes import deaf_to_interrupts
from . import plain_ranking
from .measure import peak_memory
from .options import SPREADS, RankingSize

__all__ = ["measure", "queries_that_fit", "run", "table"]

BATCH = 256
IMAGES_OF_A_PERSON = 20
CAMERAS = 6
# Ways to rank -> bytes of a query and a gallery image; None: it works in blocks. One thread shows what two give.
WAYS = {"ours": None, "ours, 1 thread": None, "FastReID": 4 + 8, "published": plain_ranking.PAIR_BYTES}


class Task(NamedTuple):
    """What is ranked: the first `queries` of a test set.

    Attributes:
        noise: of an image around its person's point, over the spread of the points.
    """

    size: RankingSize
    width: int
    noise: float
    queries: int


def queries_that_fit(way: str, size: RankingSize, memory_gib: float) -> int:
    """How many of the queries a way can rank at once in so much memory beside the features."""
    of_pair = WAYS[way]
    return size.queries if of_pair is None else min(size.queries, int(memory_gib * 2**30 / (of_pair * size.gallery)))


def _features(task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(queries+G, D) features of people around their own points, with their person and camera ids."""
    torch.manual_seed(0)
    total = task.size.queries + task.size.gallery
    people = max(2, task.size.gallery // IMAGES_OF_A_PERSON)
    pids, camids = torch.randint(people, (total,)), torch.randint(CAMERAS, (total,))
    points = torch.randn(people, task.width)
    features = torch.randn(total, task.width).mul_(task.noise)
    for batch in torch.arange(total).split(BATCH):
        features[batch] += points[pids[batch]]
    used = torch.cat([torch.arange(task.queries), torch.arange(task.size.queries, total)])
    return (features, pids, camids) if len(used) == total else (features[used], pids[used], camids[used])


class _Watch:
    """What a way does, beside its time: seconds of its distances, queries that it ordered, CMC, AP and INP."""

    def __init__(self) -> None:
        self.product = 0.0
        self.ordered = 0
        self.found: tuple[np.ndarray, ...] = ()

    def timed(self, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.product += time.perf_counter() - begun

        return wrapped


@contextmanager
def _watched() -> Iterator[_Watch]:
    """Whatever is ranked in the scope tells the watch."""
    watch = _Watch()
    host_rank, our_rank, order = rank.evaluate_rank, ours.rank_together, cpu_ranking._places_by_order
    host_distances, plain_distances = reid_evaluation.build_dist, plain_ranking.distances

    def rank_host(*args, **kwargs):
        watch.found = host_rank(*args, **kwargs)
        return watch.found

    def rank_ours(distances, *args, **kwargs):
        result = our_rank(watch.timed(distances), *args, **kwargs)
        watch.found = result[:3]
        return result

    def places_by_order(*args):
        watch.ordered += 1
        return order(*args)

    rank.evaluate_rank, ours.rank_together, cpu_ranking._places_by_order = rank_host, rank_ours, places_by_order
    reid_evaluation.build_dist = watch.timed(host_distances)
    plain_ranking.distances = watch.timed(plain_distances)
    try:
        yield watch
    finally:
        rank.evaluate_rank, ours.rank_together, cpu_ranking._places_by_order = host_rank, our_rank, order
        reid_evaluation.build_dist, plain_ranking.distances = host_distances, plain_distances


def _evaluator(way: str, queries: int):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    if way == "published":
        return plain_ranking.PlainEvaluator(queries)
    return (ReidEvaluator if way == "FastReID" else ours.SAGAEvaluator)(cfg, queries)


def measure(way: str, task: Task) -> dict[str, Any]:
    """One evaluation in this process.

    Returns:
        "seconds" by the clock, "cpu_seconds" of all threads, "product_seconds" in the distances; "before_mib" resident
        before it, with the features, "above_mib" at its highest above that; "queries" ranked, and "ordered": of how
        many of them the whole gallery was ordered because of a tie; "mAP"; "found": (CMC, AP, INP), without INP where
        the way has none.
    """
    evaluator = _evaluator(way, task.queries)
    features, pids, camids = _features(task)
    evaluator.reset()
    for batch in torch.arange(len(features)).split(BATCH):
        evaluator.process({"targets": pids[batch], "camids": camids[batch]}, features[batch])
    del features
    before = _resident()
    spent: dict[str, float] = {}
    result: list = []

    def evaluate() -> None:
        begun, cpu = time.perf_counter(), time.process_time()
        result.append(evaluator.evaluate())
        spent.update(seconds=time.perf_counter() - begun, cpu_seconds=time.process_time() - cpu)

    with _watched() as watch:
        peak = peak_memory(evaluate, "cpu")
    found = watch.found or result[0]
    return {
        **spent,
        "product_seconds": watch.product,
        "before_mib": before,
        "above_mib": None if peak is None or before is None else peak - before,
        "queries": task.queries,
        "ordered": watch.ordered,
        "mAP": float(np.mean(found[1])) * 100,
        "compiled": compat.cython_ranking_active(),
        "found": [np.asarray(x, np.float32) for x in found],
    }


def _resident() -> float | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.is_file() else None


def _child(pipe, threads: int, *args) -> None:
    torch.set_num_threads(threads)
    with compat.quiet_host():
        pipe.send(measure(*args))


def _in_fresh_process(way: str, task: Task) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    threads = 1 if way == "ours, 1 thread" else torch.get_num_threads()
    process = context.Process(target=_child, args=(sender, threads, way, task))
    with deaf_to_interrupts():
        process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"ranking {task.size} by {way} ended with exit code {process.exitcode}; -9 comes from the kernel when "
            "memory runs out. Lower --memory or the sizes"
        ) from None
    finally:
        process.kill()
        process.join()


def run(
    *,
    sizes: Sequence[RankingSize],
    width: int,
    rounds: int,
    memory_gib: float,
    command: str,
    ways: Sequence[str] = tuple(WAYS),
    spreads: Sequence[str] = tuple(SPREADS),
    done: Callable[[dict], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure all ways in turn, round by round, at every size and spread.

    Args:
        memory_gib: a way whose matrices of all queries need more ranks as many queries as fit.
        ways: of `WAYS`, "ours" among them. spreads: of `SPREADS`.
        done: called after each size with what is measured by then.

    Returns:
        {"command", "date", "machine", "width", "memory_gib", "sizes": [{"size", "spread", "rounds", "ways": {way:
        medians of `measure`}, "ratio": {way: its seconds / ours, median, low and high}, "equal": {way: of FastReID,
        whether CMC, AP and INP are the same bits}}]}. Where a way ranked a part of the queries, its seconds are scaled
        to all of them, and AP and INP of that part are compared.
    """
    measured: list[dict] = []
    result = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine("cpu"),
        "width": width,
        "memory_gib": memory_gib,
        "sizes": measured,
    }
    for size in sizes:
        for spread in spreads:
            tasks = {way: Task(size, width, SPREADS[spread], queries_that_fit(way, size, memory_gib)) for way in ways}
            measured.append({"size": str(size), "spread": spread, **_compare(tasks, rounds)})
            done(result)
    return result


def _compare(tasks: dict[str, Task], rounds: int) -> dict[str, Any]:
    """Medians of `measure` by each way, in turn."""
    samples: dict[str, list[dict]] = {way: [] for way in tasks}
    for _ in tqdm(range(rounds), desc=str(tasks["ours"].size), unit="round", leave=False, disable=None):
        for way, task in tasks.items():
            samples[way].append(_scaled(_in_fresh_process(way, task), task.size.queries))
    equal = {way: _same_bits(samples[way][0], samples["ours"][0]) for way in tasks if way != "published"}
    ratio = {}
    for way in tasks:
        ratios = [other["seconds"] / own["seconds"] for other, own in zip(samples[way], samples["ours"])]
        ratio[way] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    medians = {way: _median(of_way) for way, of_way in samples.items()}
    return {"rounds": rounds, "ways": medians, "ratio": ratio, "equal": equal}


def _scaled(sample: dict[str, Any], queries: int) -> dict[str, Any]:
    """Seconds for all queries, where a part of them was ranked: every step of each way is linear in them."""
    times = ("seconds", "cpu_seconds", "product_seconds")
    return sample | {key: sample[key] * queries / sample["queries"] for key in times}


def _same_bits(sample: dict[str, Any], own: dict[str, Any]) -> bool:
    columns = list(zip(sample["found"], own["found"]))
    if sample["queries"] < own["queries"]:
        columns = [(a, b[: len(a)]) for a, b in columns[1:]]
    return all(np.array_equal(a, b) for a, b in columns)


def _median(samples: list[dict[str, Any]]) -> dict[str, Any]:
    out = {key: value for key, value in samples[0].items() if key != "found"}
    for key in ("seconds", "cpu_seconds", "product_seconds", "before_mib", "above_mib"):
        if out[key] is not None:
            out[key] = statistics.median(s[key] for s in samples)
    return out


def table(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    m, rows = result["machine"], []
    for entry in result["sizes"]:
        for way, sample in entry["ways"].items():
            ratio, part = entry["ratio"][way], sample["queries"] < RankingSize.parse(entry["size"]).queries
            rows.append(
                {
                    "queries x gallery": entry["size"],
                    "features": f"{entry['spread']}, mAP {entry['ways']['ours']['mAP']:.1f}",
                    "way": way,
                    "s": f"{'~' * part}{sample['seconds']:.2f}",
                    "CPU s": f"{'~' * part}{sample['cpu_seconds']:.2f}",
                    "product": f"{sample['product_seconds'] / sample['seconds']:.0%}",
                    "time / ours": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                    "MiB above": "-" if part or sample["above_mib"] is None else f"{sample['above_mib']:.0f}",
                    "ordered": f"{sample['ordered'] / sample['queries']:.1%}" if way.startswith("ours") else "100%",
                    "CMC, AP, INP": {True: "same bits", False: "DIFFERENT", None: "-"}[entry["equal"].get(way)],
                }
            )
    lines = [
        f"`{result['command']}`, {result['date']}. {m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
        f"torch {m['torch']}. Features of {result['width']} dimensions; medians of {entry['rounds']} rounds in turn.",
        "",
        tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
        "",
        "product: share of the time in the matrix of distances. ordered: queries whose whole gallery was put in order, "
        "because somebody else's image is exactly as far as a match.",
    ]
    if any("~" in row["s"] for row in rows):
        lines.append(
            f"~: scaled from the first queries, whose matrices fit into {result['memory_gib']:g} GiB (--memory)."
        )
    if not all(sample["compiled"] for entry in result["sizes"] for sample in entry["ways"].values()):
        lines.append("FastReID ranked in Python: there is no compiled ranking here.")
    return "\n".join(lines)
