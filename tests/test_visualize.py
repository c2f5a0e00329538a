"""Ranked lists: the ranking itself, which queries are shown, and that the tool draws a picture of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sagareid.analysis import visualize


def gallery(features, pids, camids, num_query):
    unit = torch.nn.functional.normalize(torch.tensor(features, dtype=torch.float32), dim=1)
    return visualize.Gallery(unit, np.array(pids), np.array(camids), [""] * len(pids), num_query)


def test_rank_leaves_out_the_same_person_in_the_same_camera():
    g = gallery([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [1, 0.05]], [7, 7, 7, 8, 9], [0, 0, 1, 1, 1], 1)
    assert visualize.rank(g, 0).tolist() == [4, 2, 3]  # row 1 is person 7 in camera 0, as the query


def test_shown_queries_are_right_and_wrong_ones():
    features = [[1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [1, 1]]
    g = gallery(features, [1, 2, 3, 1, 9, 9], [0, 0, 0, 1, 1, 1], 3)  # only query 0 finds its own person first
    assert visualize.ranked_lists(g, 2) == [0, 1] or visualize.ranked_lists(g, 2) == [0, 2]
    assert sorted(visualize.ranked_lists(g, 9)) == [0, 1, 2]


def test_overlay_is_brightest_where_the_map_is_largest():
    picture = visualize.overlay(Image.new("RGB", (8, 16)), torch.eye(4, 2))
    assert picture.shape == (16, 8, 3) and 0 <= picture.min() and picture.max() <= 1
    assert picture[0, 0].sum() > picture[15, 0].sum()


@pytest.mark.parametrize("head", ["SAGAHead", "PatchPoolHead"])
def test_tool_draws_a_run(head, train_net, tmp_path, repo, monkeypatch, capsys):
    run = [
        "--config-file", repo / "configs/SAGA/quickstart.yml", "STAGES", "[]", "OUTPUT_DIR", tmp_path, "MODEL.HEADS.NAME", head,
        "SOLVER.MAX_EPOCH", 1, "SOLVER.IMS_PER_BATCH", 48, "DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE_TRAIN", "[48,24]",
        "INPUT.SIZE_TEST", "[48,24]",
    ]  # fmt: skip
    assert train_net(*run) == 0
    import importlib.util

    spec = importlib.util.spec_from_file_location("visualize_tool", repo / "tools/visualize.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr("sys.argv", ["visualize.py", str(tmp_path), "--queries", "2"])
    tool.main()
    with Image.open(tmp_path / "ranked_lists.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors()) > 50
