"""What only a GPU shows; `tools/gpu_check.py` runs these there. Elsewhere they are skipped."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sagareid.benchmarks.gpu import models
from sagareid.engine.checkpoint import random_state, restore_random_state
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.evaluation.ranking import rank_in_blocks
from sagareid.structures import as_batch

from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


class _Slow(nn.Module):
    """A loss that the GPU computes long after it was asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device="cuda"))

    def forward(self, batch):
        torch.cuda._sleep(200_000_000)
        return {"loss": (self.weight * batch).sum()}


def test_losses_are_read_after_they_were_computed():
    """FastReID reads them on a stream that does not wait."""
    model = _Slow()
    for value in (3.0, 5.0, 7.0):
        batch = torch.full((1,), value, device="cuda")
        trainer = StepTrainer(model, itertools.repeat(batch), torch.optim.SGD(model.parameters(), lr=0.0), None, None)
        with EventStorage() as storage:
            trainer.run_step()
        assert storage.latest()["total_loss"][0] == value


@pytest.mark.parametrize("head", models.own_heads())
def test_cached_features_train_as_images_do(head):
    torch.manual_seed(0)
    model = build_model(models.model_config(head, "MODEL.SAGA.DROPOUT", 0.0)).cuda()
    batch = models.model_batch("cuda")
    with EventStorage(), torch.no_grad():
        tower = model.backbone(model.preprocess_image(batch))
        fields = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in as_batch(tower).items()}
        live, cached = model(batch), model({**fields, "targets": batch["targets"].cpu()})
    for name in live:
        torch.testing.assert_close(live[name], cached[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("head", ["PromptHead", "SAGAHead"])
def test_compiled_steps_train_as_eager_ones_do(head, mode):
    """With CUDA graphs, too, whose replays write into the memory of the step before."""
    opts = ("MODEL.SAGA.DROPOUT", 0.0, "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.01)
    cfg = models.model_config(head, *opts)
    torch.manual_seed(0)
    eager = build_model(cfg).cuda()
    batch = models.model_batch("cuda")
    with torch.no_grad():
        tower = eager.extract(batch)
    batch = as_batch(tower) | {"targets": batch["targets"]}
    compiled = copy.deepcopy(eager)
    compiled.compile_mode = mode
    seen = []
    for model in (eager, compiled):
        optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
        trainer, losses = StepTrainer(model, itertools.repeat(batch), optimizer, None, None), []
        with EventStorage() as storage:
            for trainer.iter in range(6):
                trainer.run_step()
                losses.append(storage.latest()["total_loss"][0])
        seen.append(losses)
    assert seen[1] == pytest.approx(seen[0], rel=1e-3) and seen[0][-1] < seen[0][0]


@pytest.mark.parametrize("head", sorted(set(models.own_heads()) - {"PromptHead"}))
def test_the_host_never_waits_inside_a_step(head):
    """PromptHead's eager step counts the identities of a batch; a compiled one does not."""
    model = build_model(models.model_config(head)).cuda().train()
    batch = models.model_batch("cuda")
    sum(model(batch).values()).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(batch).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_ranking_on_the_gpu_gives_fastreids_metrics():
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, high, n) for high, n in ((20, 60), (20, 400), (4, 60), (4, 400))]
    distance = torch.from_numpy(generator.random((60, 400), dtype=np.float32))
    on_cpu = rank_in_blocks(lambda a, b: distance[a:b], *ids, block=7)
    on_gpu = rank_in_blocks(lambda a, b: distance[a:b].cuda(), *ids, block=7)
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_random_state_of_the_gpu_comes_back():
    state = random_state()
    drawn = torch.rand(5, device="cuda")
    restore_random_state(state)
    assert torch.equal(torch.rand(5, device="cuda"), drawn)
