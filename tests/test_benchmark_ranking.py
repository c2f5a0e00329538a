"""tools/benchmark_ranking.py on a small size: all ways rank alike, and the report is whole. Nothing is timed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sagareid.benchmarks import ranking as benchmark
from sagareid.benchmarks.options import SPREADS, RankingSize


@pytest.mark.slow
def test_all_ways_in_fresh_processes(run_tool, tmp_path):
    output = tmp_path / "made" / "ranking.json"
    words = ("--sizes", "30x400", "--width", 64, "--rounds", 1, "--spreads", "chance", "--output", output)
    code, printed, _ = run_tool("benchmark_ranking.py", *words)
    [row] = json.loads(output.read_text())["sizes"]
    assert code == 0
    assert row["equal"] == {"ours": True, "ours, 1 thread": True, "FastReID": True}
    ways = row["ways"]
    assert ways["published"]["mAP"] == pytest.approx(ways["ours"]["mAP"], abs=0.05)
    assert 5 < ways["ours"]["mAP"] < 95, "ranks that are neither all right nor chance"
    assert all(0 < sample["product_seconds"] < sample["seconds"] for sample in ways.values())
    for text in ("python tools/benchmark_ranking.py --sizes", "same bits", "MiB above"):
        assert text in printed


def test_a_part_of_the_queries_is_scaled_and_differences_show(monkeypatch):
    def measured(way, task):
        assert task.noise == SPREADS["chance"]
        found = [np.full(n, float(way != "FastReID"), np.float32) for n in (50, task.queries, task.queries)]
        times = {"seconds": 1.0, "cpu_seconds": 2.0, "product_seconds": 0.5}
        memory = {"before_mib": 9.0, "above_mib": 5.0}
        return times | memory | {"queries": task.queries, "ordered": 3, "mAP": 50.0, "compiled": True, "found": found}

    monkeypatch.setattr(benchmark, "_in_fresh_process", measured)
    sizes = [RankingSize(10, 100), RankingSize(100, 1000)]
    memory = 100 * 1000 * 6 / 2**30  # half of what FastReID needs at the second size
    result = benchmark.run(sizes=sizes, width=8, rounds=2, memory_gib=memory, command="command", spreads=["chance"])
    small, large = result["sizes"]
    assert small["ways"]["FastReID"]["seconds"] == 1 and large["ways"]["FastReID"]["queries"] == 50
    assert large["ways"]["FastReID"]["seconds"] == large["ratio"]["FastReID"]["median"] == 2
    assert large["ways"]["ours"]["seconds"] == 1 and large["equal"] == {
        "ours": True,
        "ours, 1 thread": True,
        "FastReID": False,
    }
    printed = benchmark.table(result)
    assert "DIFFERENT" in printed and "~2.00" in printed and "scaled from the first queries" in printed


def test_the_arithmetic_of_memory():
    """MSMT17's matrices in FastReID: 3.8 GB of distances and 7.7 GB of order."""
    size = RankingSize.parse("11659x82161")
    assert benchmark.queries_that_fit("FastReID", size, 11.5e9 / 2**30) == pytest.approx(size.queries, abs=10)
    assert benchmark.queries_that_fit("ours", size, 0.1) == size.queries


@pytest.mark.parametrize("text", ["5000", "10x", "0x5", "axb"])
def test_a_wrong_size_is_named(text, run_tool):
    code, _, error = run_tool("benchmark_ranking.py", "--sizes", text)
    assert code == 1 and "expected queries x gallery" in error
