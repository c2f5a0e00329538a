"""Time and memory of ranking: our evaluator in blocks of queries against FastReID's own, each in a fresh process.

Q queries, G gallery images, D feature width. Both get the same random features, batch by batch as in a test, and both
rank with the same compiled module; `evaluate` is what is measured.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from fastreid.evaluation import ReidEvaluator, rank

from .. import compat
from ..config import get_cfg
from ..evaluation import evaluator as ours
from ..hardware import machine
from ..processes import deaf_to_interrupts
from .measure import peak_memory
from .options import RankingSize

__all__ = ["host_bytes", "measure", "run", "table"]

BATCH = 256
IMAGES_OF_A_PERSON = 20
CAMERAS = 6
NOISE = 7.0  # over the spread of people: ranks are then neither all right nor all chance


def host_bytes(size: RankingSize) -> int:
    """Bytes that FastReID's evaluator needs beside the features: one float32 matrix Q x G and its int64 order."""
    return size.queries * size.gallery * (4 + 8)


def _features(size: RankingSize, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Q+G, D) features of people around their own points, with their person and camera ids."""
    torch.manual_seed(0)
    total = size.queries + size.gallery
    people = max(2, size.gallery // IMAGES_OF_A_PERSON)
    pids, camids = torch.randint(people, (total,)), torch.randint(CAMERAS, (total,))
    points = torch.randn(people, width)
    features = torch.randn(total, width).mul_(NOISE)
    for batch in torch.arange(total).split(BATCH):
        features[batch] += points[pids[batch]]
    return features, pids, camids


def measure(way: str, size: RankingSize, width: int) -> dict[str, Any]:
    """One evaluation in this process, by "host" or "ours".

    Returns:
        Seconds; MiB resident before it, with the features, and at its highest above that; a hash of CMC, AP and INP.
    """
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    evaluator = (ReidEvaluator if way == "host" else ours.SAGAEvaluator)(cfg, size.queries)
    found: list[tuple[np.ndarray, ...]] = []
    _keep_rankings(found)
    features, pids, camids = _features(size, width)
    evaluator.reset()
    for batch in torch.arange(len(features)).split(BATCH):
        evaluator.process({"targets": pids[batch], "camids": camids[batch]}, features[batch])
    del features
    before = _resident()
    seconds = [0.0]

    def evaluate() -> None:
        begun = time.perf_counter()
        evaluator.evaluate()
        seconds[0] = time.perf_counter() - begun

    peak = peak_memory(evaluate, "cpu")
    digest = hashlib.sha256(b"".join(np.asarray(x, np.float32).tobytes() for x in found[-1])).hexdigest()
    return {
        "seconds": seconds[0],
        "before_mib": before,
        "above_mib": None if peak is None or before is None else peak - before,
        "digest": digest,
        "mAP": float(np.mean(found[-1][1])) * 100,
        "compiled": compat.cython_ranking_active(),
    }


def _keep_rankings(found: list) -> None:
    """Append (CMC, AP, INP) of each whole ranking to `found`, for the rest of this process."""
    host_rank, rank_in_blocks = rank.evaluate_rank, ours.rank_in_blocks

    def kept_host(*args, **kwargs):
        found.append(host_rank(*args, **kwargs))
        return found[-1]

    def kept_ours(*args, **kwargs):
        result = rank_in_blocks(*args, **kwargs)
        found.append(result[:3])
        return result

    rank.evaluate_rank, ours.rank_in_blocks = kept_host, kept_ours


def _resident() -> float | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.is_file() else None


def _child(pipe, threads: int, *args) -> None:
    torch.set_num_threads(threads)
    with compat.quiet_host():
        pipe.send(measure(*args))


def _in_fresh_process(way: str, size: RankingSize, width: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, torch.get_num_threads(), way, size, width))
    with deaf_to_interrupts():
        process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"ranking {size} by {way} ended with exit code {process.exitcode}; -9 comes from the kernel when memory "
            "runs out. Lower --memory or the sizes"
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
    done: Callable[[dict], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure both ways A B A B at every size.

    Args:
        memory_gib: FastReID's evaluator is left out of sizes at which its matrices need more than this.
        done: called after each size with what is measured by then.

    Returns:
        {"command", "date", "machine", "width", "sizes": [{"size", "host", "ours", "ratio", "equal"}]}. "host" is
        FastReID's evaluator (None where it is left out); it and "ours" hold medians of `measure`. "equal" says that
        CMC, AP and INP are the same bits.
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
        ways = ("host", "ours") if host_bytes(size) <= memory_gib * 2**30 else ("ours",)
        measured.append(_compare(size, ways, width, rounds))
        done(result)
    return result


def _compare(size: RankingSize, ways: Sequence[str], width: int, rounds: int) -> dict[str, Any]:
    """Medians of `measure` by each way at one size, in turn."""
    samples: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in tqdm(range(rounds), desc=str(size), unit="pair", leave=False, disable=None):
        for way in ways:
            samples[way].append(_in_fresh_process(way, size, width))
    medians = {way: _median(of_way) for way, of_way in samples.items()}
    entry: dict[str, Any] = {"size": str(size), "host": medians.get("host"), "ours": medians["ours"]}
    entry |= {"ratio": None, "equal": None}
    if "host" in samples:
        ratios = [host["seconds"] / ours["seconds"] for host, ours in zip(samples["host"], samples["ours"])]
        entry["ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        entry["equal"] = len({sample["digest"] for of_way in samples.values() for sample in of_way}) == 1
    return entry | {"rounds": rounds}


def _median(samples: list[dict[str, Any]]) -> dict[str, Any]:
    out = dict(samples[0])
    for key in ("seconds", "before_mib", "above_mib"):
        if out[key] is not None:
            out[key] = statistics.median(s[key] for s in samples)
    return out


def table(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    m, rows = result["machine"], []
    for entry in result["sizes"]:
        host, own, ratio = entry["host"], entry["ours"], entry["ratio"]
        cells = {
            "queries x gallery": entry["size"],
            "FastReID (s)": f"{host['seconds']:.2f}" if host else "-",
            "ours (s)": f"{own['seconds']:.2f}",
            "FastReID / ours": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-",
            "FastReID, MiB above": _mib(host),
            "ours, MiB above": _mib(own),
            "MiB before": f"{own['before_mib']:.0f}" if own["before_mib"] is not None else "-",
            "CMC, AP, INP": {True: "same bits", False: "DIFFERENT", None: "-"}[entry["equal"]],
        }
        rows.append(cells)
    left_out = [r["size"] for r in result["sizes"] if not r["host"]]
    lines = [
        f"`{result['command']}`, {result['date']}. {m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
        f"torch {m['torch']}. Features of {result['width']} dimensions, cosine.",
        "",
        tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
    ]
    if left_out:
        gib = ", ".join(f"{host_bytes(RankingSize.parse(s)) / 2**30:.1f} GiB for {s}" for s in left_out)
        lines += [
            "",
            f"FastReID's evaluator is left out where its matrices need more than {result['memory_gib']:g} GiB: {gib}.",
        ]
    if not all(r["ours"]["compiled"] for r in result["sizes"]):
        lines += ["", "Both ranked in Python: there is no compiled ranking here."]
    return "\n".join(lines)


def _mib(sample: dict[str, Any] | None) -> str:
    return "-" if sample is None or sample["above_mib"] is None else f"{sample['above_mib']:.0f}"
