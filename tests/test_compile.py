"""MODEL.COMPILE and `Extractor(compile=True)`: what torch.compile computes equals what runs eagerly, in one graph."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from sagareid import Extractor
from sagareid.benchmarks import cases
from sagareid.benchmarks.gpu import models
from sagareid.config_checks import check_config
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.hardware import compiler_problem
from sagareid.modeling import meta_arch
from sagareid.structures import as_batch

from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

needs_compiler = pytest.mark.skipif(compiler_problem("cpu") is not None, reason=str(compiler_problem("cpu")))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch):
    """Compiled steps are traced into one graph or fail, and its operations run as they are: no kernel is built."""
    step = torch.compile(meta_arch._step, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(meta_arch, "_compiled_step", lambda mode: step)


def _model(head: str, *opts):
    # no dropout, whose masks a compiled step draws otherwise; SGD, since Adam makes steps of what is rounding alone
    opts = ("MODEL.SAGA.DROPOUT", 0.0, "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.01, *opts)
    cfg = models.model_config(head, *opts)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def _cached_batch(model) -> dict:
    batch = models.model_batch("cpu")
    with torch.no_grad():
        features = model.extract(batch)
    fields = {k: v.half() if isinstance(v, torch.Tensor) else v for k, v in as_batch(features).items()}
    return fields | {"targets": batch["targets"], "img_paths": ["a.jpg"]}


def _trained(cfg, model, batches, steps: int = 2) -> tuple[dict, list]:
    """The last gradients, and losses and accuracies of some steps."""
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
    trainer, seen = StepTrainer(model, itertools.cycle(batches), optimizer, None, None), []
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            latest = storage.latest()
            seen.append({name: latest[name][0] for name in ("total_loss", "cls_accuracy") if name in latest})
    return {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}, seen


def _compare(cfg, eager, batches) -> None:
    compiled = copy.deepcopy(eager)
    compiled.compile_mode = "default"
    (expected, losses), (found, compiled_losses) = (_trained(cfg, model, batches) for model in (eager, compiled))
    assert list(compiled.state_dict()) == list(eager.state_dict())  # no name of a checkpoint changes
    for step, other in zip(compiled_losses, losses, strict=True):
        assert step == pytest.approx(other, rel=1e-4)
    assert cases.largest_difference(found, expected) < 1e-3


# torch.compile leaves the GRU of SequentialHead as it is
@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(set(models.own_heads()) - {"SequentialHead"}))
def test_a_step_is_one_graph_and_equals_the_eager_one(head, traced):
    """A break is a place where the host waits for the device, and the end of a CUDA graph. The second batch has another
    number of identities, and both are of one graph."""
    cfg, model = _model(head)
    batches = [_cached_batch(model) for _ in range(2)]
    batches[1]["targets"] = torch.zeros_like(batches[1]["targets"])
    _compare(cfg, model, batches[:1])
    compiled = copy.deepcopy(model).train()
    compiled.compile_mode = "default"
    compiled(batches[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(batches[1])


@pytest.mark.slow
def test_the_image_tower_is_of_the_same_graph(traced):
    cfg, model = _model("CLSHead")
    _compare(cfg, model, [models.model_batch("cpu")])


@pytest.mark.slow
@needs_compiler
def test_compiled_kernels_give_the_eager_values():
    cfg, model = _model("PatchPoolHead", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",))  # few kernels to build
    _compare(cfg, model, [_cached_batch(model)])


def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_the_weights():
    """The losses are read after the backward pass was asked for, and before the optimizer's step."""
    cfg, model = _model("CLSHead")
    batch = models.model_batch("cpu")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="became infinite or NaN"):
        _trained(cfg, model, [batch | {"images": batch["images"] * torch.nan}])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_what_cannot_compile_is_refused(monkeypatch):
    cfg = models.model_config("CLSHead")
    for value, message in (
        ("fast", "MODEL.COMPILE is 'fast'"),
        ("reduce-overhead", "MODEL.DEVICE is cpu: use default"),
    ):
        cfg.MODEL.COMPILE = value
        with pytest.raises(ValueError, match=message):
            check_config(cfg)
    cfg.MODEL.COMPILE = "default"
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "/no/such/compiler")
    with pytest.raises(ValueError, match="no C compiler"):
        check_config(cfg)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_extractor_gives_the_features_of_the_eager_one(tiny_run, monkeypatch):
    """Full batches are compiled, once; the last one, which is smaller, is not."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiler(module, backend="aot_eager", **options))
    images = torch.rand(5, 3, 48, 24) * 255
    expected = Extractor.from_checkpoint(tiny_run, device="cpu")(images)
    extractor = Extractor.from_checkpoint(tiny_run, device="cpu", compile=True)
    extractor(images[:2], batch_size=2)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(extractor(images, batch_size=2), expected, rtol=1e-4, atol=1e-5)
