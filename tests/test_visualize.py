"""Ranked lists and attention: which queries and anchors are shown, what the maps are, that the tool draws runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import ONE_STAGE, SMALL, SMALL_IMAGES

from sagareid.config import get_cfg
from sagareid.engine.trainer import SAGATrainer
from sagareid.modeling.clip.towers import anchor_phrases
from sagareid.reports import rankings, visualize
from sagareid.reports.attention import Attention, attention_of, choose_anchors, without_maps
from sagareid.reports.rankings import Ranked
from sagareid.structures import as_features
from sagareid.studies.models import Model, load_models
from sagareid.studies.occlusion import ImageSet
from sagareid.studies.options import Occlusion


def ranked(ap, nearest=((0,),), pids=(1,)) -> Ranked:
    """A ranking of queries of the persons `pids` against gallery images of persons 1, 2, 3."""
    items = [("", pid, 0) for pid in pids] + [("", pid, 1) for pid in (1, 2, 3)]
    images = ImageSet("toy", items, len(pids), "", None)
    return Ranked(Model("m", "m", None, None, ""), images, np.arange(len(ap)), np.array(ap), np.array(nearest))


def test_half_of_the_shown_queries_are_right_ones():
    r = ranked([1, 0.3, 1, 0.2], nearest=[[0], [2], [2], [0]], pids=[1, 2, 3, 3])
    assert r.first_is_right().tolist() == [True, False, True, False]
    assert rankings.right_and_wrong(r, 2) == [0, 1]
    assert sorted(rankings.right_and_wrong(r, 9)) == [0, 1, 2, 3]


def test_side_by_side_shows_what_the_last_model_gains_and_what_it_loses():
    first, last = ranked([0.5, 0.9, 0.2, 0.5]), ranked([0.5, 0.1, 0.9, 0.6])
    assert rankings.contrasting([first, last], 2) == [2, 1]
    assert rankings.contrasting([first, last], 8) == [2, 3, 1]  # equal queries say nothing
    assert rankings.contrasting([first, first], 8) == []


@pytest.mark.parametrize("number", [1, 3])
def test_best_median_and_worst_are_told_apart(number):
    ap = np.random.default_rng(0).permutation(np.linspace(0, 1, 21))
    best, median, worst = rankings.best_median_worst(ranked(ap), number).values()
    assert ap[best].min() > ap[median].max() >= ap[median].min() > ap[worst].max()
    assert abs(np.mean(ap[median]) - 0.5) < 0.1 and ap[worst][0] == 0 and ap[best][0] == 1
    few = rankings.best_median_worst(ranked([0.5, 0.2]), number).values()
    assert sorted(v for which in few for v in which) == [0, 1]
    alike = rankings.best_median_worst(ranked([1.0] * 100), 3)
    assert alike["Best queries"] == [0, 49, 99]  # of many without a fault, from all over the set


def build(**options) -> Model:
    cfg = get_cfg()
    base = {
        "MODEL.META_ARCHITECTURE": "SAGABaseline",
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.NAME": "ViT-XS-8-pedestrians",
        "MODEL.BACKBONE.NAME": "build_clip_vit_backbone",
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.BACKBONE.FEAT_DIM": 128,
        "MODEL.BACKBONE.STRIDE_SIZE": (8, 8),
        "MODEL.CLIP.TOKEN_LAYERS": [4],
        "MODEL.HEADS.NAME": "SAGAHead",
        "MODEL.HEADS.NUM_CLASSES": 4,
        "INPUT.SIZE_TRAIN": [48, 24],
        "INPUT.SIZE_TEST": [48, 24],
        "MODEL.SAGA.NUM_ANCHORS": 6,
    }
    cfg.merge_from_list(
        [x for pair in (base | {k.replace("__", "."): v for k, v in options.items()}).items() for x in pair]
    )
    torch.manual_seed(0)
    return Model(cfg.MODEL.HEADS.NAME, "path", cfg, SAGATrainer.build_model(cfg).eval(), "")


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (48, 24, 3), dtype=np.uint8)).save(path)
    return [(str(path), 0, "unknown") for path in paths]


def test_maps_are_the_heads_own(items):
    model = build()
    found = attention_of(model, items)
    with torch.inference_mode():
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, *_ in items])
        batch = {"images": pixels.float(), "cameras": torch.tensor([-1, -1])}
        refined = model.model.heads.refine_and_pool(as_features(model.model.extract(batch)).float())
    assert found.weights.shape == (1, 2, 6, 3) and found.anchors.shape == (2, 6, 6, 3)
    torch.testing.assert_close(found.weights[0].flatten(1), refined.weights[0], rtol=1e-4, atol=1e-6)
    attended = refined.attention[0][:, :, :6].transpose(1, 2)
    torch.testing.assert_close(found.anchors.flatten(2), attended, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.weights.sum((2, 3)), torch.ones(1, 2))
    rest = (found.domain * found.weights[0]).sum((1, 2)) if found.domain is not None else 0
    torch.testing.assert_close(found.share.sum(1) + rest, torch.ones(2))  # shares of anchors and domain anchors
    assert found.names == anchor_phrases()[:6]


def test_two_token_layers_show_each_its_own_pooling_and_anchors(items):
    model = build(MODEL__CLIP__TOKEN_LAYERS=[2, 4])
    found = attention_of(model, items)
    assert found.weights.shape[0] == 2 and found.layers == ["block 2", "block 4"] and found.anchors.shape[1] == 6
    titles = [tile.title for tile in visualize.attention_blocks([model], items)[0].rows[0].tiles]
    assert titles[1:3] == ["claimed by the anchors, block 2", "claimed by the anchors, block 4"]


def test_free_anchors_go_by_numbers(items):
    found = attention_of(build(MODEL__SAGA__FREE_ANCHORS=True), items)
    assert found.names == [f"anchor {k}" for k in range(1, 7)]


def test_a_model_without_anchors_has_no_maps_and_says_so(items):
    plain, saga = build(MODEL__HEADS__NAME="CLSHead"), build()
    assert attention_of(plain, items) is None
    assert "CLSHead" in without_maps([plain, saga]) and "SAGAHead" not in without_maps([plain, saga])
    assert len(visualize.attention_blocks([plain, saga], items)[0].rows) == 1
    with pytest.raises(ValueError, match="CLSHead.*leave --images out"):
        visualize.attention_blocks([plain], items)


def test_anchors_are_chosen_by_share_by_words_and_by_number():
    names = ["the hair", "a shoe", "two shoes"]
    found = Attention(torch.ones(1, 1, 2, 2), [""], torch.ones(1, 3, 2, 2), torch.tensor([[0.2, 0.5, 0.3]]), names)
    assert choose_anchors("all", found, 0) == [0, 1, 2]
    assert choose_anchors("top:2", found, 0) == [1, 2]
    assert choose_anchors("3, Shoe", found, 0) == [2, 1]
    for wrong, message in (("hat", "hat.*the hair"), ("9", "1 to 3"), ("top:x", "top:N"), ("0", "'0'")):
        with pytest.raises(ValueError, match=message):
            choose_anchors(wrong, found, 0)


@pytest.mark.slow
def test_tool_draws_one_run_two_side_by_side_and_images(run_tool, tiny_run, train_net, tmp_path, repo, tiny_root):
    run = [*ONE_STAGE, *SMALL, *SMALL_IMAGES, "SOLVER.IMS_PER_BATCH", 48, "MODEL.HEADS.NAME", "PatchPoolHead"]
    run += ["OUTPUT_DIR", tmp_path / "pool"]
    assert train_net(*run) == 0
    assert run_tool("visualize.py", tiny_run, "--queries", 2)[0] == 0
    with Image.open(tiny_run / "ranked_lists.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors()) > 50
    both = tmp_path / "both.html"
    assert run_tool("visualize.py", f"pool={tmp_path / 'pool'}", f"saga={tiny_run}", "-o", both, "--length", 3)[0] == 0
    text = both.read_text()
    assert "No anchors and no patch weights, so no maps: pool (PatchPoolHead)" in text
    assert text.count(">pool: AP ") == text.count(">saga: AP ") > 0
    image = next((tiny_root / "synthetic_pedestrians/query").glob("*.jpg"))
    code, output, _ = run_tool("visualize.py", tiny_run, "--images", image, "--anchors", "shoes,hair")
    assert code == 0 and output.strip() == str(tiny_run / "attention.png")
    code, _, error = run_tool("visualize.py", tmp_path / "pool", "--images", image)
    assert code == 1 and "PatchPoolHead" in error and error.count("\n") == 2  # and how to see the traceback
    assert run_tool("visualize.py", tiny_run, "--length", 99)[0] == 1


@pytest.mark.slow
def test_queries_are_hidden_and_the_gallery_is_not(run_tool, tiny_run, tmp_path, monkeypatch):
    """As the study hides them: ranking, maps and picture are of the same hidden query."""
    models = load_models([str(tiny_run)])
    asked = []
    original = rankings.Occluder.__call__
    monkeypatch.setattr(
        rankings.Occluder, "__call__", lambda self, image, path: asked.append(path) or original(self, image, path)
    )
    hidden, whole = (rankings.rank_test_set(models, occlusion=o)[0] for o in (Occlusion("mask", 0.4), None))
    assert len(asked) == hidden.images.num_query and all("/query/" in path for path in asked)
    assert hidden.ap.tolist() != whole.ap.tolist()
    assert hidden.query_image(0).tobytes() != whole.query_image(0).tobytes()
    items = [hidden.images.items[hidden.queries[0]]]
    maps = [attention_of(models[0], items, r.images.run_names, r.occluder).weights for r in (hidden, whole)]
    assert not torch.equal(*maps)
    code, _, _ = run_tool("visualize.py", tiny_run, "--hide", 40, "--queries", 1, "-o", tmp_path / "hidden.html")
    assert code == 0 and "40% of each query behind another person" in (tmp_path / "hidden.html").read_text()
    code, _, error = run_tool("visualize.py", tiny_run, "--hide", 400)
    assert code == 1 and "expected 0 to 80%" in error
