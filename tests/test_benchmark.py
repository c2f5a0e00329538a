"""tools/benchmark.py in its smoke mode: both ways compute the same, and the report is whole. Nothing is timed."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from sagareid.benchmarks import cases, plain, steps
from sagareid.benchmarks.options import FORMS, SMOKE
from sagareid.modeling import fast, prompt_head


@pytest.fixture(scope="module")
def smoke(call_tool, tmp_path_factory):
    """(the file's content, what was printed) of one run of every case."""
    import contextlib
    import io

    output, printed = tmp_path_factory.mktemp("benchmark") / "made" / "smoke.json", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert call_tool("benchmark.py", "--smoke", "--output", output) == 0
    return json.loads(output.read_text()), printed.getvalue()


@pytest.mark.slow
def test_every_case_is_compared_with_an_equal_computation(smoke):
    measured = smoke[0]["cases"]
    assert [c["case"] for c in measured] == ["prompts", "backbone", "anchors_cached", "anchors_live", "extraction"]
    for case in measured:
        assert 0 <= case["largest_difference"] <= cases.TOLERANCE, case["case"]
        ratio = case["ratio"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] < math.inf
        assert case["rounds"] == SMOKE.rounds and case["plain"] and case["images"] > 0
        assert case["images_per_second"] == pytest.approx(case["images"] / case["ours_seconds"])


@pytest.mark.slow
def test_the_file_holds_machine_peak_tower_bfloat16_and_loading(smoke):
    result = smoke[0]
    assert {"cpu", "cores", "threads", "openmp", "bfloat16_instructions", "torch", "python", "device"} <= result[
        "machine"
    ].keys()
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["command"].startswith("python tools/benchmark.py --smoke") and len(result["date"]) == 10
    for peak in result["peak_gflops"].values():
        assert peak["best"] == max(peak.values()) > 0
    assert set(result["peak_gflops"]) == {"float32", "bfloat16"}
    tower = result["tower"]
    for name in ("tower", "forward"):
        share = tower[f"{name}_share_of_peak"]
        assert 0 < share["low"] <= share["median"] <= share["high"] and tower[f"{name}_gflops"] > 0
    assert tower["gflop_per_image"] > 0 and tower["rounds"] == SMOKE.rounds
    assert set(result["bfloat16"]["largest_cosine_difference"]) == {"refined", "cls", "proj"}
    assert max(result["bfloat16"]["largest_cosine_difference"].values()) < 1e-3
    assert result["loading"]["images"] >= SMOKE.loading_images and result["loading"]["limit"]
    assert result["peak_memory_mib"] > 0
    memory = result["memory"]
    assert [m["batch"] for m in memory["batches"]] == list(SMOKE.memory_batches)
    assert all(m["peak_mib"] > 0 and m["step_seconds"] > 0 for m in memory["batches"]) and memory["parameters"] > 1e6


@pytest.mark.slow
def test_the_table_names_command_machine_date_and_targets(smoke):
    result, printed = smoke
    for text in (
        result["command"],
        result["date"],
        result["machine"]["cpu"],
        "| prompts ",
        "met",
        "images/s",
        "bfloat16",
        "gradient checkpointing",
    ):
        assert text in printed


def test_two_ways_that_differ_are_not_timed(run_tool, monkeypatch):
    """A plain way that pools by the mean: the error names the tensors, and nothing is reported."""
    monkeypatch.setattr(plain, "plain_refined", lambda head, features, text: features.patches.mean(1))
    code, out, error = run_tool("benchmark.py", "--smoke", "--cases", "anchors_cached")
    assert code == 1 and "the two ways" in error and "grad heads." in error and not out


def test_flops_are_counted_as_they_run(repo):
    """All positions in every block but the last; there, keys and values alone."""
    model = cases.Setting(SMOKE, repo / "configs" / "SAGA", "cpu").model("anchors").eval()
    visual = model.backbone.visual
    positions, width = visual.positional_embedding.shape
    layers, patch = model.backbone.depth, visual.conv1.kernel_size[0]
    embed = 2 * (positions - 1) * width * 3 * patch**2
    block = 2 * 12 * width**2 * positions + 4 * width * positions**2
    last = 2 * 2 * width**2 * positions + 2 * 10 * width**2 + 4 * width * positions
    projection = 2 * width * visual.proj.shape[1]
    expected = 3 * (embed + (layers - 1) * block + last + projection)
    assert steps.tower_flops(model, torch.zeros(3, 3, 96, 48)) == pytest.approx(expected, rel=1e-6)


def test_every_form_acts_in_a_case():
    assert tuple(FORMS) == fast.FORMS
    assert all(acts and set(acts) <= cases.COMPARISONS.keys() for acts in FORMS.values())


def test_each_form_is_timed_with_and_without_it(run_tool, tmp_path):
    output = tmp_path / "forms.json"
    opts = "--forms", "dropout", "each_once", "groups", "--cases", "prompts", "anchors_cached", "loading"
    code, printed, _ = run_tool("benchmark.py", "--smoke", *opts, "--output", output)
    result = json.loads(output.read_text())
    assert code == 0 and not result["cases"] and result["loading"] is None
    found = {(m["form"], m["case"]): m for m in result["forms"]}
    assert set(found) == {("each_once", "prompts"), ("dropout", "anchors_cached"), ("groups", "anchors_cached")}
    for (form, case), measured in found.items():
        ratio = measured["ratio"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and measured["rounds"] == SMOKE.rounds
        assert 0 <= measured["largest_difference"] <= cases.TOLERANCE
        assert min(measured["with_seconds"], measured["without_seconds"]) > 0
        assert re.search(rf"\| {form} +\| {case} ", printed)


def test_a_form_that_computes_something_else_is_not_timed(run_tool, monkeypatch):
    def wrong(function, labels):
        return function(labels.flip(0) if fast.enabled("each_once") else labels)

    monkeypatch.setattr(prompt_head, "each_once", wrong)
    code, _, error = run_tool("benchmark.py", "--smoke", "--forms", "each_once", "--cases", "prompts")
    assert code == 1 and "the two ways differ" in error
