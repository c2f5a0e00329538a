"""MODEL.COMPILE and Extractor(compile=True): what torch.compile computes equals what runs eagerly, in one graph."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from sagareid.benchmarks import gpu_steps
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.hardware import compiler_problem
from sagareid.modeling import meta_arch

from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

needs_compiler = pytest.mark.skipif(compiler_problem("cpu") is not None, reason=str(compiler_problem("cpu")))
NO_DROPOUT = ("MODEL.SAGA.DROPOUT", 0.0)  # masks are drawn in another order


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _model(head: str, *opts):
    cfg = gpu_steps.model_config(head, *NO_DROPOUT, *opts)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def _trained(cfg, model, steps: int = 3):
    """State, losses and accuracies of a model after some steps."""
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
    batches = itertools.cycle([gpu_steps.model_batch("cpu")])
    trainer, seen = StepTrainer(model, batches, optimizer, None, None), []
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            latest = storage.latest()
            seen.append([latest[n][0] for n in ("total_loss", "cls_accuracy") if n in latest])
    return model.state_dict(), seen


@needs_compiler
@pytest.mark.parametrize("head", gpu_steps.own_heads())
def test_a_step_is_one_graph(head):
    """A break is a place where the host waits for the device, and the end of a CUDA graph."""
    model = _model(head)[1].train()
    found = torch._dynamo.explain(meta_arch._step)(model, gpu_steps.model_batch("cpu"))
    assert found.graph_break_count == 0, [str(r.reason) for r in found.break_reasons]


@needs_compiler
@pytest.mark.parametrize("head", ["PromptHead", "SAGAHead"])
def test_compiled_training_equals_eager(head):
    cfg, eager = _model(head)
    compiled = copy.deepcopy(eager)
    compiled.compile_mode = "default"
    (expected, losses), (state, found) = _trained(cfg, eager), _trained(cfg, compiled)
    assert list(state) == list(expected)  # no name of a checkpoint changes
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=2e-5, msg=name)
