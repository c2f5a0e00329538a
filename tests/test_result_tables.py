"""Tables of results explain their rows and columns, have no empty cells, and fit a narrow window with their pages."""

from __future__ import annotations

import logging
import re

import pytest
from test_evaluation import LAYOUT, make_set
from test_evaluation import run as evaluate
from test_report import scrolled_width

from sagareid.config import get_cfg
from sagareid.evaluation.features import EvaluationFeature, available_features
from sagareid.evaluation.tables import NOTHING, legend, without_gaps
from sagareid.registry import EVALUATION_FEATURE_REGISTRY
from sagareid.reports import html, pictures, study_tables
from sagareid.studies import compare


def test_every_row_that_a_head_gives_has_a_meaning():
    for layout in (LAYOUT | {"parts": 4}, {"feature": 8}):
        assert all(legend([name]) for name in available_features(layout))
    assert legend(["cls", "mAP", "cls", "another"]).split("; ") == [
        "cls: what the image tower pools itself: its class token, where it has one",
        "mAP: mean of the queries' average precision",
    ]


def test_a_feature_of_ones_own_brings_its_meaning(monkeypatch):
    class Waves(EvaluationFeature):
        name, meaning = "waves", "how the patches swing"

    monkeypatch.setitem(EVALUATION_FEATURE_REGISTRY._obj_map, "Waves", Waves)
    assert legend(["waves"]) == "waves: how the patches swing"
    monkeypatch.setattr(Waves, "meaning", "")
    assert legend(["waves"]) == ""


def test_the_log_of_an_evaluation_explains_its_rows(caplog):
    caplog.set_level(logging.INFO)
    evaluate(get_cfg(), *make_set()[:3], 30, LAYOUT)
    [text] = [r.getMessage() for r in caplog.records if "Result" in r.getMessage()]
    for name in ("fusion", "refined", "cls", "proj", "concat", "orth"):
        assert re.search(rf"^\| {name} +\|", text, re.M) and legend([name]) in text
    assert not re.search(r"\| +\|", text), "an empty cell"


def test_a_column_without_values_goes_and_a_cell_without_one_is_marked():
    headers, rows = without_gaps(["a", "b", "c"], [[1, None, ""], [None, "", "x"]])
    assert (headers, rows) == (["a", "c"], [[1, NOTHING], [NOTHING, "x"]])
    assert without_gaps(["a"], []) == (["a"], [])
    text = html.table(["a", "b", "c"], [[1.0, None, ""], [None, None, "x"]])
    assert "<td></td>" not in text and ">b<" not in text and text.count(NOTHING) == 2


def test_a_comparison_has_a_legend_and_no_empty_cell():
    value = {"mean": 1.0, "sd": None}
    cost = {"parameters": 1e6, "trained": 1e6, "gflops": None, "head_gflops": None, "steps": value, "minutes": value}
    rows = [
        {"name": "a", "dataset": "", "row": row, "seeds": [0], "Rank-1": value, "mAP": value, "mINP": value, **cost}
        for row in ("result", "refined")
    ]
    text = compare.table([rows[0], rows[1] | {"gflops": 3.0}])
    assert "refined: the head's own feature" in text and "mINP: how early" in text and "data set" not in text
    assert not re.search(r"\| +\|", text) and NOTHING in text


def test_a_study_has_a_legend_and_no_empty_cell():
    value = {"mean": 1.0, "low": 0.0, "high": 2.0, "spread": None}
    known = {"condition": "mask", "level": 0.3, "feature": "auto", "row": "fusion", "Rank-1": value, "mINP": value}
    ahead = value | {"difference": {"mean": 1.0, "low": 0.0, "high": 2.0}}
    results = [known | {"model": "a", "mAP": ahead}, known | {"model": "b", "mAP": value}]
    text = study_tables.full_table(results, [], "# Head")
    assert "fusion: refined, cls and proj" in text and "difference in mAP" in text and "spread" not in text
    assert not re.search(r"\| +\|", text) and NOTHING in text


@pytest.mark.slow
def test_a_page_fits_400_pixels(tmp_path):
    """The longest words, a wide table, curves: only a table scrolls, inside of itself."""
    wide = html.table([f"column {i}" for i in range(30)], [[1.5] * 30], "a wide table")
    figure = pictures.curves({f"panel {i}": {"": ([1, 2], [1.0, 2.0])} for i in range(5)}, x="iteration")
    path = html.paragraph("/a/folder/of/a/very/long/name" * 9)
    body = html.join([html.heading(1, "Run_" * 40), path, wide, html.svg(figure, "curves"), html.legend()])
    text = html.page("wide", body)
    assert text.count("<table") == text.count('<div class="scroll" tabindex="0"><table') == 1
    needed, there = scrolled_width(text, tmp_path)
    assert needed <= there <= 400
    plain = text.replace("max-width: 100%; height: auto;", "").replace(".scroll { overflow-x: auto; }", "")
    assert scrolled_width(plain, tmp_path)[0] > 400, "without what makes it fit"
