"""Imported into every process of a job (`--import distributed_probe`): tells what it holds, or comes to grief on
request.

PROBE_SAVE=folder: each rank writes its weights at the end of a stage, and the features of all images, of which it ranks
its share of the queries.
PROBE_TROUBLE="<kind> <rank> <step>": kill, hang, raise or interrupt, at this training step of this rank, in stage
PROBE_STAGE.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from sagareid import compat
from sagareid.engine import plans, stages
from sagareid.engine.options import training_parser
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.evaluation.evaluator import SAGAEvaluator
from sagareid.evaluation.ranking import rank_together
from sagareid.modeling import distributed as D
from sagareid.modeling import losses as L
from sagareid.modeling.refinement import SemanticRefinement

from fastreid.utils import comm


def _watch(folder: str | None, trouble: str, stage: str) -> None:
    train, step, evaluate = SAGATrainer.train, StepTrainer.run_step, SAGAEvaluator._evaluate
    kind, rank, when = trouble.split()
    here = {"stage": "", "steps": 0}

    def watched_train(self):
        here.update(stage=Path(self.cfg.OUTPUT_DIR).name, steps=0)
        result = train(self)
        if folder:
            # not state_dict(): reading it brings derived buffers up to date
            model = self.checkpointer.model
            held = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
            torch.save(held, Path(folder, f"{here['stage']}.rank{comm.get_rank()}.pt"))
        return result

    def watched_step(self):
        if here["stage"].startswith(stage) and here["steps"] == int(when) and comm.get_rank() == int(rank):
            _come_to_grief(kind)
        here["steps"] += 1
        step(self)

    def watched_evaluate(self, features, pids, camids, layout):
        if folder:
            torch.save(features, Path(folder, f"features.rank{comm.get_rank()}.pt"))
        return evaluate(self, features, pids, camids, layout)

    SAGATrainer.train, StepTrainer.run_step, SAGAEvaluator._evaluate = watched_train, watched_step, watched_evaluate


def _come_to_grief(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    if kind == "raise":
        raise ValueError("a reason of its own")
    if kind == "interrupt":
        os.kill(int(os.environ["PROBE_LAUNCHER"]), signal.SIGINT)
        time.sleep(600)


if "PROBE_SAVE" in os.environ or "PROBE_TROUBLE" in os.environ:
    _watch(
        *(
            os.environ.get(f"PROBE_{name}", other)
            for name, other in (("SAVE", None), ("TROUBLE", "none 0 0"), ("STAGE", ""))
        )
    )


def train_each_stage(config: str, opts: list, folder: str, reference: str, names: tuple[str, ...]) -> None:
    """Each of these stages by itself, from the weights that the reference run handed on to it. Each rank writes what it
    ends with."""
    _watch(folder, "none 0 0", "")
    weights = ""
    for run in plans.plan(config, opts):
        start = [*opts, "MODEL.WEIGHTS", weights] if weights else opts
        if run.name in names:
            stages.run_all(plans.plan(config, start, run.name), training_parser().parse_args([]))
        weights = str(Path(reference, run.name, "model_final.pth"))
    compat.close_logs()


# ---- losses of one batch on several processes -----------------------------------------------------------------------


def batch(images: int = 16, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(images, width), torch.arange(images) // 4


def terms(x: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every loss that compares images, and the neck, of this process's rows, as the heads call them."""
    feature = x @ weight
    parts = torch.nn.functional.normalize(feature.unflatten(1, (3, 4)), dim=2)
    neck = D.GlobalBatchNorm1d(12).train()
    g, identities = D.gather_batch, D.gather_batch(targets)
    out = {
        "neck": neck(feature).pow(3).mean(),
        "triplet": L.batch_hard_triplet_loss(g(feature), identities),
        "supcon": L.supervised_contrastive_loss(g(x), g(feature), identities),
        "consistency": L.anchor_consistency_loss(g(parts), g(feature[:, :3].exp()), identities),
        "decorrelation": L.decorrelation_loss(g(feature), g(x)),
    }
    return out | {"neck_statistics": neck.running_var.sum() + 0 * feature.sum()}


def save_gradients(folder: str) -> None:
    """Write this rank's terms, and their gradients as DistributedDataParallel would average them."""
    x, targets = batch()
    rank, processes = comm.get_rank(), comm.get_world_size()
    share = len(x) // processes
    rows = slice(rank * share, (rank + 1) * share)
    weight = torch.eye(12).add(0.1).requires_grad_()
    found = {}
    for name, term in terms(x[rows], targets[rows], weight).items():
        (gradient,) = torch.autograd.grad(term, weight, retain_graph=True)
        value = term.detach().clone()
        for tensor in (gradient, value):
            if processes > 1:
                torch.distributed.all_reduce(tensor)
                tensor /= processes
        found[name] = (value, gradient)
    torch.save(found, Path(folder, f"gradients.{processes}.rank{rank}.pt"))


# ---- dropout masks of one batch on several processes ----------------------------------------------------------------


def save_refined(folder: str) -> None:
    """Write this rank's patches after two passes of refinement in training, and the state of its generator. The other
    terms of the last layer are taken off, so that what its last dropout drops is 0."""
    torch.manual_seed(0)
    layers = SemanticRefinement(embed_dim=8, num_heads=2, num_layers=2, dropout=0.1).train()
    patches, text, domain = torch.randn(20, 500, 8), torch.randn(3, 8), torch.randn(20, 2, 8)
    last = layers.layers[-1]
    rank, processes = comm.get_rank(), comm.get_world_size()
    share = len(patches) // processes
    own = slice(rank * share, (rank + 1) * share)
    if rank:
        torch.manual_seed(rank)  # as `OwnRandomness`
    attended = {}
    last.norm_ff.register_forward_pre_hook(lambda module, inputs: attended.setdefault("parts", []).append(inputs[0]))
    found = []
    with torch.no_grad():
        for _ in range(2):
            attended.clear()
            refined, _ = layers(patches[own], text, domain[own])
            found.append(refined - torch.cat(attended["parts"]))
    torch.save((found, torch.get_rng_state()), Path(folder, f"refined.{processes}.rank{rank}.pt"))


# ---- a ranking shared by processes ----------------------------------------------------------------------------------


def save_ranking(folder: str) -> None:
    """Write this rank's ranking of a set whose images the processes hold in unequal shares, and the queries that it
    asked for."""
    rng = np.random.default_rng(0)
    queries, gallery = 700, 900
    pids, camids = rng.integers(0, 40, queries + gallery), rng.integers(0, 4, queries + gallery)
    pids[:300] += 1000  # the first block has nobody to find
    x = torch.from_numpy((pids[:, None] + rng.normal(size=(len(pids), 24)) * 8).astype(np.float32))
    rank, processes = comm.get_rank(), comm.get_world_size()
    ends = {1: (0, 1), 2: (0, 0.25, 1), 4: (0, 0.5, 0.5, 0.75, 1)}[processes]
    share = slice(*(int(end * len(x)) for end in ends[rank : rank + 2]))
    parts = (part[share] for part in (x, torch.from_numpy(pids), torch.from_numpy(camids)))
    features, pids, camids = (compat.gather_rows(part if len(part) else None) for part in parts)
    asked = []

    def distances(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return torch.cdist(features[start:stop], features[queries:]).round(decimals=1)

    pids, camids = pids.numpy(), camids.numpy()
    ranking = rank_together(distances, pids[:queries], pids[queries:], camids[:queries], camids[queries:])
    torch.save((ranking and ranking._asdict(), asked), Path(folder, f"ranking.{processes}.rank{rank}.pt"))
