"""tools/benchmark_ranking.py on a small size: both ways rank alike, and the report is whole. Nothing is timed."""

from __future__ import annotations

import json

import pytest

from sagareid.benchmarks import ranking as benchmark
from sagareid.benchmarks.options import RankingSize


@pytest.mark.slow
def test_both_ways_in_fresh_processes(run_tool, tmp_path):
    output = tmp_path / "made" / "ranking.json"
    words = ("--sizes", "30x400", "--width", 64, "--rounds", 1, "--output", output)
    code, printed, _ = run_tool("benchmark_ranking.py", *words)
    [row] = json.loads(output.read_text())["sizes"]
    assert code == 0
    assert row["equal"] is True and row["host"]["digest"] == row["ours"]["digest"] and row["ratio"]["median"] > 0
    assert 5 < row["ours"]["mAP"] < 95, "ranks that are neither all right nor chance"
    for text in ("python tools/benchmark_ranking.py --sizes", "same bits", "MiB above"):
        assert text in printed


def test_fastreid_is_left_out_above_the_memory_and_differences_show(monkeypatch):
    def measured(way, size, width):
        return {"seconds": 1.0, "before_mib": 9.0, "above_mib": 5.0, "digest": way, "mAP": 50.0, "compiled": True}

    monkeypatch.setattr(benchmark, "_in_fresh_process", measured)
    small, large = RankingSize(10, 100), RankingSize(100, 1000)
    result = benchmark.run(sizes=[small, large], width=8, rounds=2, memory_gib=1e6 / 2**30, command="command")
    both, alone = result["sizes"]
    assert (
        both["equal"] is False and alone["host"] is None and alone["equal"] is None and alone["ours"]["seconds"] == 1.0
    )
    printed = benchmark.table(result)
    assert "DIFFERENT" in printed and "FastReID's evaluator is left out" in printed


def test_the_arithmetic_of_memory():
    """MSMT17's matrices: 3.8 GB of distances and 7.7 GB of order."""
    assert benchmark.host_bytes(RankingSize.parse("11659x82161")) / 1e9 == pytest.approx(11.5, abs=0.1)


@pytest.mark.parametrize("text", ["5000", "10x", "0x5", "axb"])
def test_a_wrong_size_is_named(text, run_tool):
    code, _, error = run_tool("benchmark_ranking.py", "--sizes", text)
    assert code == 1 and "expected queries x gallery" in error
