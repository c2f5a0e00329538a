"""tools/gpu_check.py: a dry run of the whole on the CPU, and what becomes of a step that fails or hangs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sagareid.benchmarks.gpu import check, runs, timing
from sagareid.benchmarks.gpu import models as gpu_models
from sagareid.benchmarks.gpu.job import Step
from sagareid.benchmarks.gpu.steps import STEPS


@pytest.fixture(scope="module")
def dry_run(call_tool, tmp_path_factory):
    output = tmp_path_factory.mktemp("gpu_check")
    code = call_tool("gpu_check.py", "-o", output, "--device", "cpu", "--size", "tiny", "--budget", 600)
    log = (output / "log.txt").read_text()
    return code, json.loads((output / "results.json").read_text()), (output / "table.md").read_text(), log


@pytest.mark.slow
def test_every_step_passes_on_the_cpu(dry_run):
    code, results, _, log = dry_run
    steps = results["steps"]
    assert list(steps) == list(STEPS)
    assert {name: step["problems"] for name, step in steps.items() if step["problems"]} == {}, log[-4000:]
    assert {step["status"] for step in steps.values()} == {"passed"} and code == 0


@pytest.mark.slow
def test_what_was_measured_is_written(dry_run):
    steps = dry_run[1]["steps"]
    assert set(steps["device"]["values"]["matrix_tflops"]) == {"bfloat16", "float16", "float32"}
    models = {row["model"] for row in steps["models"]["values"]["models"]}
    assert {f"{head} on CLIP" for head in gpu_models.own_heads()} <= models
    assert "SAGAHead on ResNet-18" in models and "EmbeddingHead on CLIP, map" in models
    quick = steps["quickstart"]["values"]
    assert quick["metrics"]["anchors"] == pytest.approx(quick["metrics_on_cpu"], abs=runs.ONE_CHECKPOINT)
    for key in timing.CASES:
        case = steps["base"]["values"]["cases"][key]
        assert case["bfloat16"]["images_per_second"] > 0 and case["bfloat16"]["share_of_peak"]["ours"] > 0
        assert len(case["profile"]["largest"]) >= 3
    for key in ("prompts", "extraction"):
        assert {"eager", "default"} <= set(steps["compile"]["values"]["cases"][key])
    assert steps["loading"]["values"]["stage2"]["images_per_second"] > 0
    assert steps["loading"]["values"]["feature_cache"]["read_images_per_second"] > 0
    assert set(steps["processes"]["values"]["last_loss"]) == {"1"}  # one for each number of devices
    assert steps["ranking"]["values"]["mAP"] > 0


@pytest.mark.slow
def test_the_table_says_what_was_found_and_skipped(dry_run):
    text = dry_run[2]
    assert "| quickstart" in text and "plain/ours" in text and "skipped: float16" in text


@pytest.fixture
def one_step(monkeypatch, tmp_path, repo):
    """Run one step of other code, or with another limit."""

    def run(name: str, seconds: float, budget: float = 60.0):
        step = STEPS[name]
        monkeypatch.setitem(check.STEPS, name, Step(step.run, step.what, seconds, step.alone))
        monkeypatch.setattr(check, "SHARED_CPU", 1)
        return check.run(
            steps=[name], device="cpu", size="tiny", budget=budget, repo=repo, output=tmp_path, command="test"
        )["steps"][name]

    return run


@pytest.mark.slow
def test_a_step_that_hangs_is_ended_at_its_limit(one_step):
    step = one_step("models", 5.0)
    assert step["status"] == "timeout" and "not done after 5 s" in step["problems"][-1]


def test_a_step_without_budget_is_left_out(one_step):
    assert one_step("models", 60.0, budget=1.0)["status"] == "left out"


@pytest.mark.slow
def test_a_step_that_crashes_says_so(one_step, monkeypatch):
    monkeypatch.setattr(check.sys, "executable", "/bin/false")
    step = one_step("models", 60.0)
    assert step["status"] == "crashed" and "exit code 1" in step["problems"][-1]


class _Stubborn(nn.Module):
    """Computes its product in float32 whatever autocast says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 24))

    def forward(self, batch):
        with torch.autocast("cpu", enabled=False):
            return {"loss": (batch["images"][:, 0] @ self.weight).square().mean()}


def test_silent_float32_is_found():
    with pytest.raises(RuntimeError, match="only 0% of the products"):
        gpu_models.trains_in(_Stubborn(), gpu_models.model_config("CLSHead"), "cpu", torch.bfloat16, count=1)


def test_a_model_that_differs_on_the_device_is_found():
    """The model on the device gets other weights on its way there: the tensors that differ are named."""
    model = gpu_models.build_model(gpu_models.model_config("CLSHead"))

    def moved(self, *args, **kwargs):
        with torch.no_grad():
            next(self.backbone.parameters()).mul_(1.5)
        return self

    model.__class__ = type("Moved", (type(model),), {"to": moved})
    with pytest.raises(RuntimeError, match="the two ways differ"):
        gpu_models.float32_difference(model, "cpu")
