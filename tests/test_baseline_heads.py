"""The heads to compare against: what each pools, where it starts, and that all report the same features."""

from __future__ import annotations

import pytest
import torch
from test_interchange import CLASSES, OUR_HEADS, SIZE, TARGETS, B, batch, config

from sagareid.evaluation.features import available_features
from sagareid.modeling.baseline_heads import AttentionPoolHead
from sagareid.structures import CLIPFeatures, as_batch

from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

D, GRID = 128, (SIZE[0] // 8, SIZE[1] // 8)


def head(name: str, *opts):
    torch.manual_seed(0)
    return build_model(config("MODEL.HEADS.NAME", name, *opts)).heads.eval()


def features(seed: int = 0) -> CLIPFeatures:
    torch.manual_seed(seed)
    return CLIPFeatures(
        patches=torch.randn(B, GRID[0] * GRID[1], D),
        grid=GRID,
        cls=torch.randn(B, D),
        proj=torch.randn(B, D),
        layer_cls=torch.randn(B, 1, D),
    )


@pytest.mark.parametrize("name", [n for n in OUR_HEADS if n != "PromptHead"])
def test_every_head_reports_the_same_rows_on_clip(name):
    """A head's own feature is "refined", and "fusion" adds CLIP's class token and projection, as for SAGAHead."""
    model = head(name, "MODEL.HEADS.EMBEDDING_DIM", 96)
    assert {"refined", "cls", "proj", "fusion"} <= set(available_features(model.feature_layout))
    with torch.no_grad():
        out = model(features())
    own = model.feature_layout["refined"]
    assert torch.equal(out[:, own : own + D], features().cls) and torch.equal(
        out[:, own + D : own + 2 * D], features().proj
    )


@pytest.mark.parametrize("name", [n for n in OUR_HEADS if n != "PromptHead"])
def test_every_head_trains_from_cached_features(name):
    """The losses of a batch of cached tower outputs equal those of its images."""
    torch.manual_seed(0)
    model = build_model(config("MODEL.HEADS.NAME", name, "MODEL.SAGA.DROPOUT", 0.0))
    data = batch()
    with EventStorage(), torch.no_grad():
        tower = model.backbone(model.preprocess_image(data))
        live, cached = model(data), model({**as_batch(tower), "targets": TARGETS})
    assert live.keys() == cached.keys()
    for key in live:
        torch.testing.assert_close(live[key], cached[key])


def test_a_linear_layer_of_the_same_width_starts_as_the_identity():
    with torch.no_grad():
        assert torch.equal(head("CLSHead", "MODEL.HEADS.EMBEDDING_DIM", D)(features())[:, :D], features().cls)
        own = head("PatchPoolHead", "MODEL.HEADS.EMBEDDING_DIM", D)(features())[:, :D]
    torch.testing.assert_close(own, features().patches.mean(1))


@pytest.mark.parametrize("embedding", [0, D])
def test_clip_reids_own_losses_leave_the_feature_of_the_triplet_alone(embedding):
    """With TRAIN_PROJ three features have a triplet loss; the head's result is still that of the class token."""
    model, x = (
        head("CLSHead", "MODEL.HEADS.TRAIN_PROJ", True, "MODEL.HEADS.EMBEDDING_DIM", embedding).train(),
        features(),
    )
    out = model(x, TARGETS)
    assert torch.equal(out["features"], x.cls) and {"loss_triplet_proj", "loss_triplet_layer"} <= set(out["losses"])
    torch.testing.assert_close(out["pred_class_logits"], model.classifier(model.bottleneck(x.cls)))


def test_the_copied_blocks_start_as_the_towers_class_token_and_train_apart_from_it():
    torch.manual_seed(0)
    model = build_model(config("MODEL.HEADS.NAME", "LastBlockHead", "MODEL.CLIP.TOKEN_LAYERS", [3])).eval()
    with torch.no_grad():
        out = model(batch())
        torch.testing.assert_close(out[:, :D], out[:, D : 2 * D])
        assert len(model.heads.blocks) == 2
        model.heads.blocks[0].mlp.c_fc.weight.mul_(1.5)
        changed = model(batch())
    assert torch.equal(changed[:, D:], out[:, D:]) and not torch.allclose(changed[:, :D], out[:, :D])


def test_attention_pooling_reads_all_patches_in_any_order():
    model, x = head("AttentionPoolHead"), features()
    shuffled = x.patches[:, torch.randperm(x.patches.shape[1])]
    with torch.no_grad():
        torch.testing.assert_close(model.pool(x), model.pool(CLIPFeatures(shuffled, GRID)), rtol=1e-4, atol=1e-5)
        x.patches[:, 4] += 1
        assert not torch.allclose(model.pool(x), model.pool(features()))


def test_the_scan_is_over_the_order_of_the_patches():
    model, x = head("SequentialHead"), features()
    with torch.no_grad():
        backwards = model.pool(CLIPFeatures(x.patches.flip(1), GRID))
        assert not torch.allclose(model.pool(x), backwards)


def test_a_stripe_reads_its_rows_alone():
    model, x = head("PartStripesHead", "MODEL.HEADS.NUM_STRIPES", 3, "MODEL.HEADS.EMBEDDING_DIM", 24), features()
    assert model.feature_layout["refined"] == 24
    with torch.no_grad():
        before = model.pool(x).clone()
        x.patches[:, 2 * GRID[1] : 4 * GRID[1]] += 1  # rows 2 and 3: the second stripe
        after = model.pool(x)
    assert torch.equal(before[:, :8], after[:, :8]) and torch.equal(before[:, 16:], after[:, 16:])
    assert not torch.allclose(before[:, 8:16], after[:, 8:16])
    model.train()
    out = model(features(), TARGETS)
    assert out["logits"].shape == (3, B, CLASSES) and out["features"].shape == (B, 24)
    normed = model.bottleneck(out["features"])
    torch.testing.assert_close(out["logits"][1], model.classifier[1](normed[:, 8:16]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["AttentionPoolHead", "PartStripesHead", "PatchPoolHead", "SequentialHead"])
def test_a_map_of_any_backbone_is_taken(name):
    model = head(name, "MODEL.BACKBONE.OUTPUT", "map")
    with torch.no_grad():
        out = model(features().patches.transpose(1, 2).unflatten(2, GRID))
    assert set(model.feature_layout) == {"feature"} and out.shape == (B, model.feature_layout["feature"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["PartStripesHead", "MODEL.HEADS.EMBEDDING_DIM", 100], "a multiple of MODEL.HEADS.NUM_STRIPES 6"),
        (["LastBlockHead", "MODEL.CLIP.TOKEN_LAYERS", [5]], "name an earlier layer"),
        (["LastBlockHead", "MODEL.BACKBONE.OUTPUT", "map"], "LastBlockHead reads CLIP's class token"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        head(*options)


def test_a_width_that_attention_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 attention heads, which do not divide the token width 100"):
        AttentionPoolHead(feat_dim=100, num_classes=2, neck_feat="before")


def test_more_stripes_than_rows_are_refused():
    with pytest.raises(ValueError, match="patch grid has 6 rows"):
        head("PartStripesHead", "MODEL.HEADS.NUM_STRIPES", 7).pool(features())


def test_a_map_where_tokens_were_promised_is_refused():
    with pytest.raises(TypeError, match="OUTPUT tokens"):
        head("PatchPoolHead")(torch.randn(2, D, *GRID))
