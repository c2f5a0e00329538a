"""The contracts of registered parts: losses, pools, domain anchors, features; those registered later are tested, too.

A part that a user adds by `--import` stands here as a class of a few lines.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from contracts import (
    LAYOUTS,
    check_domain_anchors_are_one_equation,
    check_domain_anchors_learn,
    check_domain_anchors_of_an_image_alone,
    check_evaluation_feature,
    check_loss,
    check_pool_is_one_equation,
    check_pool_treats_an_image_alone,
    loss_options,
    trained_and_evaluated,
)
from test_interchange import B, batch, config, loss_of
from torch import nn

from sagareid import get_cfg
from sagareid.config_checks import check_config
from sagareid.evaluation.evaluator import SAGAEvaluator
from sagareid.evaluation.features import EvaluationFeature, Parts, available_features, build_feature
from sagareid.modeling import fast
from sagareid.modeling.anchors import ContentDomainAnchors
from sagareid.modeling.heads import ClassifierHead
from sagareid.modeling.pooling import AnchorPool
from sagareid.modeling.terms import LossTerm
from sagareid.registry import (
    DOMAIN_ANCHOR_REGISTRY,
    EVALUATION_FEATURE_REGISTRY,
    FASTREID_LOSSES,
    LOSS_REGISTRY,
    POOL_REGISTRY,
    computed_losses,
    parts,
)
from sagareid.structures import as_features

from fastreid.config import CfgNode
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model

HEADS = sorted(REID_HEADS_REGISTRY._obj_map)
LOSSES = sorted({*parts(LOSS_REGISTRY), *FASTREID_LOSSES})
POOLS, DOMAINS = sorted(parts(POOL_REGISTRY)), sorted(parts(DOMAIN_ANCHOR_REGISTRY))
FEATURES = list(parts(EVALUATION_FEATURE_REGISTRY))


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers is forgotten."""
    for registry in (
        REID_HEADS_REGISTRY,
        LOSS_REGISTRY,
        POOL_REGISTRY,
        DOMAIN_ANCHOR_REGISTRY,
        EVALUATION_FEATURE_REGISTRY,
    ):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta_arch", ["SAGABaseline", "Baseline"])
@pytest.mark.parametrize("head, loss", list(itertools.product(HEADS, LOSSES)))
def test_a_loss_is_computed_or_refused(head, loss, meta_arch):
    """Never dropped: an accepted term is in the loss dictionary, for every head and loss that is registered."""
    computed = computed_losses(META_ARCH_REGISTRY.get(meta_arch), REID_HEADS_REGISTRY.get(head))
    if loss not in computed:
        with pytest.raises(ValueError) as refusal:
            config(*loss_options(head, [loss], meta_arch))
        assert f"names {loss}" in str(refusal.value) and all(name in str(refusal.value) for name in computed)
        return
    check_loss(head, loss, meta_arch)


@pytest.mark.parametrize(
    "head, losses",
    [
        ("SAGAHead", {"CrossEntropyLoss", "TripletLoss", "AnchorDiversityLoss", "ClassifierDiversityLoss",
                      "AnchorConsistencyLoss", "DecorrelationLoss", "I2TLoss", "HiddenWeightLoss",
                      "VisibleTokensLoss", "WholeFeatureLoss"}),
        ("CLSHead", {"CrossEntropyLoss", "TripletLoss", "I2TLoss", "VisibleTokensLoss", "WholeFeatureLoss"}),
        ("PromptHead", {"SupConLoss"}),
        ("PatchPoolHead", {"CrossEntropyLoss", "TripletLoss", "VisibleTokensLoss", "WholeFeatureLoss"}),
        ("AttentionPoolHead", {"CrossEntropyLoss", "TripletLoss", "HiddenWeightLoss", "VisibleTokensLoss",
                               "WholeFeatureLoss"}),
        ("EmbeddingHead", set(FASTREID_LOSSES)),
    ],
)  # fmt: skip
def test_the_losses_of_the_heads_that_ship(head, losses):
    assert set(computed_losses(META_ARCH_REGISTRY.get("SAGABaseline"), REID_HEADS_REGISTRY.get(head))) == losses


def test_a_model_built_without_the_check_drops_nothing_either():
    for head in ("SAGAHead", "EmbeddingHead"):
        cfg = config(*loss_options(head, ["CrossEntropyLoss"]))
        cfg.MODEL.LOSSES.NAME = ["CrossEntropyLoss", "SupConLoss"]
        with pytest.raises(ValueError, match="SupConLoss"):
            loss_of(build_model(cfg), batch())


def test_fastreids_mgn_computes_two_losses():
    assert computed_losses(META_ARCH_REGISTRY.get("MGN"), REID_HEADS_REGISTRY.get("EmbeddingHead")) == [
        "CrossEntropyLoss",
        "TripletLoss",
    ]


def test_one_classifier_has_no_diversity():
    losses = loss_of(build_model(config("MODEL.LOSSES.NAME", ["ClassifierDiversityLoss"])), batch())
    assert losses["loss_classifier_div"] == 0


def test_a_loss_of_ones_own_serves_every_head_that_gives_what_it_reads():
    @LOSS_REGISTRY.register()
    class FeatureNormLoss(LossTerm):
        """With a weight that trains and is stored."""

        log_name = "loss_norm"

        def __init__(self, *, scale, target):
            super().__init__(scale=scale)
            self.target = nn.Parameter(torch.tensor(target))

        @staticmethod
        def add_keys(cfg):
            # The norm that features are drawn to.
            cfg.MODEL.LOSSES.FEATURE_NORM = CfgNode({"SCALE": 0.5, "TARGET": 1.0})

        @classmethod
        def from_config(cls, cfg):
            return cls(scale=cfg.MODEL.LOSSES.FEATURE_NORM.SCALE, target=cfg.MODEL.LOSSES.FEATURE_NORM.TARGET)

        @classmethod
        def check(cls, cfg):
            if cfg.MODEL.LOSSES.FEATURE_NORM.TARGET < 0:
                yield "MODEL.LOSSES.FEATURE_NORM.TARGET is a norm, 0 or more"

        def forward(self, targets, *, features):
            return (features.norm(dim=1) - self.target).pow(2).mean()

    names = ["MODEL.LOSSES.NAME", ["FeatureNormLoss", "CrossEntropyLoss"], "MODEL.LOSSES.FEATURE_NORM.TARGET"]
    for head in ("SAGAHead", "CLSHead", "PatchPoolHead"):
        model = build_model(config("MODEL.HEADS.NAME", head, *names, 2.0))
        data, outputs = batch(), {}
        model.heads.register_forward_hook(lambda head, args, result, out=outputs: out.update(result))
        losses = loss_of(model, data)
        expected = 0.5 * (outputs["features"].norm(dim=1) - 2).pow(2).mean()
        torch.testing.assert_close(losses["loss_norm"], expected)
        assert set(losses) == {"loss_norm", "loss_cls"} and "terms.FeatureNormLoss.target" in model.state_dict()
    with pytest.raises(ValueError, match="is a norm"):
        config(*names, -1.0)
    with pytest.raises(ValueError, match="PromptHead under SAGABaseline does not compute"):
        config("MODEL.HEADS.NAME", "PromptHead", *names, 1.0)


def test_a_head_brings_a_loss_of_its_own_and_names_it():
    @LOSS_REGISTRY.register()
    class SpreadLoss(LossTerm):
        log_name = "loss_spread"

        @classmethod
        def from_config(cls, cfg):
            return cls(scale=0.1)

        def forward(self, targets, *, patch_weights):
            return patch_weights.square().sum(1).mean()

    @REID_HEADS_REGISTRY.register()
    class SpreadHead(ClassifierHead):
        gives = (*ClassifierHead.gives, "patch_weights")
        learns_from = frozenset({"patches"})

        def pool(self, features):
            return as_features(features).float().patches.mean(1)

        def forward(self, features, targets=None):
            outputs = super().forward(features, targets)
            return outputs | {"patch_weights": torch.full((B, 4), 0.25)} if self.training else outputs

    opts = ["MODEL.HEADS.NAME", "SpreadHead", "MODEL.LOSSES.NAME", ["CrossEntropyLoss", "SpreadLoss"]]
    assert loss_of(build_model(config(*opts)), batch())["loss_spread"] == pytest.approx(0.1 * 0.25)
    with pytest.raises(
        ValueError, match="SpreadHead .* computes CrossEntropyLoss, SpreadLoss, TripletLoss, VisibleTokensLoss"
    ):
        config(*opts[:2], "MODEL.LOSSES.NAME", ["AnchorDiversityLoss"])
    with pytest.raises(ValueError, match="SAGAHead .* does not compute"):
        config("MODEL.LOSSES.NAME", ["SpreadLoss"])


def test_a_misspelt_loss_is_told_the_nearest():
    with pytest.raises(ValueError, match="Did you mean TripletLoss"):
        config("MODEL.LOSSES.NAME", ["TripleLoss"])


# ---- pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_every_pool_is_one_equation(name, plainly):
    with fast.disabled() if plainly else contextlib.nullcontext():
        check_pool_is_one_equation(name)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_treats_an_image_alone(name):
    check_pool_treats_an_image_alone(name)


def test_a_pool_that_overrides_forward_is_evaluated_by_what_it_overrides():
    @POOL_REGISTRY.register()
    class LargestPool(AnchorPool):
        """The largest weighted token in each dimension: not linear in the tokens."""

        def forward(self, tokens, scores):
            weights = self.weights(scores)
            return (weights[:, :, None] * tokens).amax(1), weights

    trained, evaluated = trained_and_evaluated(["MODEL.SAGA.POOL", "LargestPool"])
    torch.testing.assert_close(trained, evaluated)
    by_its_parent, _ = trained_and_evaluated(["MODEL.SAGA.POOL", "anchor"])
    assert not torch.allclose(trained, by_its_parent, atol=1e-2)


def test_a_refinement_layer_that_overrides_forward_is_evaluated_by_what_it_overrides(monkeypatch):
    from sagareid.modeling import refinement

    class Louder(refinement.RefinementLayer):
        def forward(self, patches, text, domain=None):
            patches, attention = super().forward(patches, text, domain)
            return 3 * patches, attention

    plain, _ = trained_and_evaluated([])
    monkeypatch.setattr(refinement, "RefinementLayer", Louder)
    trained, evaluated = trained_and_evaluated([])
    torch.testing.assert_close(trained, evaluated)
    assert not torch.allclose(trained, plain, atol=1e-2)


# ---- domain anchors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOMAINS)
class TestEveryKindOfDomainAnchors:
    def test_some_for_each_image_which_counts_alone(self, name):
        check_domain_anchors_of_an_image_alone(name)

    def test_every_parameter_learns(self, name):
        check_domain_anchors_learn(name)

    def test_training_and_evaluation_agree(self, name):
        check_domain_anchors_are_one_equation(name)


def test_a_kind_of_domain_anchors_of_ones_own():
    @DOMAIN_ANCHOR_REGISTRY.register()
    class HalfDomainAnchors(ContentDomainAnchors):
        """From the mean of the upper half of the picture."""

        reads_cameras = True

        @staticmethod
        def add_keys(cfg):
            # Share of the rows that count.
            cfg.MODEL.SAGA.UPPER_SHARE = 0.5

        @classmethod
        def check(cls, cfg):
            if not 0 < cfg.MODEL.SAGA.UPPER_SHARE <= 1:
                yield f"MODEL.SAGA.UPPER_SHARE is {cfg.MODEL.SAGA.UPPER_SHARE}; expected above 0, up to 1"

    opts = ["MODEL.SAGA.DOMAIN_ANCHORS", "HalfDomainAnchors"]
    model = build_model(config(*opts))
    assert isinstance(model.heads.domain_anchors, HalfDomainAnchors) and loss_of(model, batch())
    with pytest.raises(ValueError, match="UPPER_SHARE is 0"):
        config(*opts, "MODEL.SAGA.UPPER_SHARE", 0.0)
    config("MODEL.SAGA.UPPER_SHARE", 0.0)  # of a part that is not in use
    with pytest.raises(ValueError, match="reach the model through MODEL.META_ARCHITECTURE SAGABaseline"):
        config(*opts, "MODEL.META_ARCHITECTURE", "Baseline")


# ---- features to rank by ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_is_one_that_images_are_ranked_by(name):
    check_evaluation_feature(name)


def test_a_feature_of_ones_own_is_reported_beside_the_others_and_has_its_own_distance():
    @EVALUATION_FEATURE_REGISTRY.register()
    class BlocksFeature(EvaluationFeature):
        """The refined feature by the city-block distance."""

        name = "blocks"

        @classmethod
        def available(cls, layout):
            return "refined" in layout

        def make(self, given):
            return given.unit("refined")

        def distance(self, queries, gallery, metric):
            return torch.cdist(queries, gallery, p=1)

    check_evaluation_feature("blocks")
    layout = LAYOUTS[0]
    assert available_features(layout)[-1] == "blocks" and "blocks" not in available_features({"cls": 12, "proj": 8})
    cfg, raw = get_cfg(), torch.randn(8, sum(layout.values()))
    evaluator = SAGAEvaluator(cfg, 3, layout=layout)
    unit = nn.functional.normalize(raw[:, :12])
    torch.testing.assert_close(evaluator.distances("blocks", raw, layout)(0, 3), torch.cdist(unit[:3], unit[3:], p=1))
    evaluator.process({"targets": torch.arange(8) % 3, "camids": torch.arange(8) // 3}, raw)
    metrics = evaluator.evaluate()
    assert {"blocks/mAP", "parts/mAP", "orth/mAP"} <= set(metrics) and "fusion/mAP" not in metrics
    cfg.TEST.RERANK.ENABLED = True
    with pytest.raises(ValueError, match="TEST.RERANK compares by the Euclidean distance, and the feature blocks has"):
        evaluator.distances("blocks", raw, layout)


def test_a_part_of_a_head_of_ones_own_is_ranked_by_without_being_registered():
    layout = {"upper": 6, "lower": 6}
    assert available_features(layout) == ["upper", "lower", "concat"]
    raw = torch.randn(5, 12)
    torch.testing.assert_close(
        build_feature(get_cfg(), "lower").make(Parts(raw, layout)), nn.functional.normalize(raw[:, 6:])
    )


def test_the_keys_of_a_feature_are_checked():
    with pytest.raises(ValueError, match="TEST.FUSION weighs .*; expected none below 0 and one above"):
        config("TEST.FUSION.REFINED", 0.0, "TEST.FUSION.CLS", 0.0, "TEST.FUSION.PROJ", 0.0)


# ---- keys and names --------------------------------------------------------------------------------------------------


def test_a_part_cannot_change_a_key_that_exists():
    @POOL_REGISTRY.register()
    class GreedyPool(AnchorPool):
        @staticmethod
        def add_keys(cfg):
            cfg.MODEL.SAGA.NUM_ANCHORS = 12

    with pytest.raises(ValueError, match=r"GreedyPool.add_keys changes MODEL.SAGA.NUM_ANCHORS"):
        get_cfg()


def test_two_parts_of_one_name_are_refused():
    @POOL_REGISTRY.register()
    class OtherPool(AnchorPool):
        name = "mean"

    with pytest.raises(ValueError, match="both registered as 'mean'"):
        check_config(get_cfg())


def test_a_subclass_is_a_part_of_its_own_name():
    @POOL_REGISTRY.register()
    class MyPool(AnchorPool):
        pass

    assert parts(POOL_REGISTRY)["MyPool"] is MyPool and parts(POOL_REGISTRY)["anchor"] is AnchorPool


def test_what_a_term_reads_is_its_forward():
    assert [parts(LOSS_REGISTRY)[n].reads for n in ("CrossEntropyLoss", "I2TLoss")] == [
        ("logits",),
        ("proj", "text_features"),
    ]


@pytest.mark.parametrize("key, value", [("MODEL.SAGA.POOL", "max"), ("MODEL.SAGA.DOMAIN_ANCHORS", "contents")])
def test_an_unknown_part_is_told_the_valid_ones(key, value):
    valid = {"MODEL.SAGA.POOL": POOLS, "MODEL.SAGA.DOMAIN_ANCHORS": DOMAINS}[key]
    with pytest.raises(ValueError, match=f"{key} is '{value}'; valid: {', '.join(valid)}"):
        config(key, value)
