"""Ranking a large test set on the device, and a part of it on the CPU."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ... import compat
from ...evaluation.ranking import rank_in_blocks
from .. import measure
from .job import Job


def ranking_step(job: Job) -> None:
    """Distances and ranking on the device; a part of the queries on the CPU, too, through FastReID's ranking."""
    num_query, num_gallery, width = job.scale.ranking
    generator = torch.Generator(job.device).manual_seed(0)
    people = max(2, num_gallery // 20)

    def draw(high: int, n: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=job.device)

    pids, camids = draw(people, num_query + num_gallery), draw(6, num_query + num_gallery)
    points = torch.randn(people, width, generator=generator, device=job.device)
    x = torch.randn(num_query + num_gallery, width, generator=generator, device=job.device).mul_(7.0)
    for rows in torch.arange(len(x), device=job.device).split(4096):
        x[rows] += points[pids[rows]]
    x = F.normalize(x, dim=1)
    query, gallery = x[:num_query], x[num_query:]
    ids = [i.cpu().numpy() for i in (pids[:num_query], pids[num_query:], camids[:num_query], camids[num_query:])]

    def distances(start: int, stop: int) -> Tensor:
        return (query[start:stop] @ gallery.t()).neg_().add_(1)

    measure.synchronize(job.device)
    rank_in_blocks(distances, ids[0][:256], ids[1], ids[2][:256], ids[3])
    begun = time.perf_counter()
    ranking = rank_in_blocks(distances, *ids)
    seconds = time.perf_counter() - begun
    job.note(queries=num_query, gallery=num_gallery, width=width, seconds=seconds, mAP=float(np.mean(ranking.ap)) * 100)
    job.say(
        f"{num_query} x {num_gallery}, width {width}, on {job.device}: {seconds:.2f} s, mAP {job.values['mAP']:.2f}"
    )

    some = job.scale.ranking_checked
    part = (ids[0][:some], ids[1], ids[2][:some], ids[3])
    on_device = rank_in_blocks(distances, *part)
    begun = time.perf_counter()
    on_cpu = rank_in_blocks(lambda a, b: distances(a, b).cpu(), *part)
    job.note(cpu_seconds_per_query=(time.perf_counter() - begun) / some, compiled=compat.cython_ranking_active())
    apart = {
        "cmc": float(np.abs(on_device.cmc - on_cpu.cmc).max()),
        "ap": float(np.abs(on_device.ap - on_cpu.ap).max()),
        "inp": float(np.abs(on_device.inp - on_cpu.inp).max()),
        "nearest": float((on_device.nearest != on_cpu.nearest).mean()),
    }
    job.note(differences=apart)
    job.say(
        f"{some} queries on the CPU ({job.values['cpu_seconds_per_query'] * num_query:.0f} s for all at that rate): "
        + ", ".join(f"{k} {v:.1e}" for k, v in apart.items())
    )
    # equal distances may change places: a few queries of many
    if apart["cmc"] > 2 / some or np.abs(on_device.ap - on_cpu.ap).mean() > 1e-4:
        job.problem(f"ranking on {job.device} and on the CPU differ: {apart}")
