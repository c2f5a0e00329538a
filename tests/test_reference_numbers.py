"""Every number that the published code gave on formula weights, from our modules, weights through the converter.

One ViT-B/16 with the SAGA head is built for the whole module; its text features and prompts come from the stage before.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import reference as R
import torch
import torch.nn.functional as F

from sagareid.config import get_cfg
from sagareid.interchange import convert
from sagareid.modeling import anchors as A
from sagareid.modeling import losses
from sagareid.modeling.clip import towers
from sagareid.structures import as_batch

from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

RAW_LOSSES = ["CrossEntropyLoss", "TripletLoss", "AnchorDiversityLoss", "ClassifierDiversityLoss"]
RAW_LOSSES += ["AnchorConsistencyLoss", "DecorrelationLoss"]
# lr.* belong to the schedules' test
COVERED_ELSEWHERE = ("lr.", "eval.", "fusion.", "tfm.")


def config(head: str):
    """The published Market-1501 settings, 16 identities, no dropout, images that come normalised."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SAGABaseline"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 3, [1.0] * 3
    cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.FEAT_DIM = 768
    cfg.MODEL.BACKBONE.STRIDE_SIZE = [12, 12]
    cfg.MODEL.CLIP.TOKEN_LAYERS = [9]
    cfg.MODEL.HEADS.NAME = head
    cfg.MODEL.HEADS.NUM_CLASSES = R.NUM_CLASSES
    cfg.MODEL.SAGA.NUM_CLASSIFIERS = 4
    cfg.MODEL.SAGA.DROPOUT = 0.0
    cfg.MODEL.LOSSES.NAME = RAW_LOSSES if head == "SAGAHead" else ["CrossEntropyLoss", "TripletLoss", "I2TLoss"]
    cfg.MODEL.LOSSES.CE.EPSILON = 0.1
    cfg.MODEL.LOSSES.ANCHOR_DIVERSITY.SCALE = cfg.MODEL.LOSSES.CLASSIFIER_DIVERSITY.SCALE = 1.0
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [256, 128]
    return cfg


def entries(prefix: str) -> list[str]:
    return [name for name in R.expected() if name.startswith(prefix)]


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return R.published_state(R.stage3_shapes())


@pytest.fixture(scope="module")
def before(published) -> dict[str, torch.Tensor]:
    """The checkpoint of the stage before, which a last-stage file repeats."""
    return {k.removeprefix("clipreid_model."): v for k, v in published.items() if k.startswith("clipreid_model.")}


@pytest.fixture(scope="module")
def image_stage(before) -> convert.Conversion:
    return convert.from_published(before)


@pytest.fixture(scope="module")
def model(published):
    """SAGABaseline with SAGAHead, loaded strictly; the anchors come from the weights, not from the file."""
    conversion = convert.from_published(published)
    built = build_model(config("SAGAHead"))
    built.load_state_dict(conversion.model)
    built.kept = conversion.published["tensors"]
    built.converted_anchors = conversion.model["heads.text_anchors.anchors"]
    return built.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def x4(model) -> SimpleNamespace:
    """One pass over x4 through the layers 6, 9, 11 and 12."""
    layers, model.backbone.token_layers = model.backbone.token_layers, [6, 9, 11, 12]
    try:
        with torch.no_grad():
            f = model.extract({"images": R.images(4, 123)})
    finally:
        model.backbone.token_layers = layers
    patches = dict(zip((6, 9, 11, 12), f.patches.chunk(4, dim=1)))
    tokens = {n: torch.cat([f.layer_cls[:, i, None], patches[n]], dim=1) for i, n in enumerate(patches)}
    features = replace(f, patches=patches[9], layer_cls=f.layer_cls[:, 1:2], num_layers=1)
    with torch.no_grad():
        refined = model.heads.refine_and_pool(features)
    return SimpleNamespace(features=features, tokens=tokens, refined=refined)


@pytest.fixture(scope="module")
def x8(model) -> SimpleNamespace:
    """One training step's losses on x8, each with scale 1, and the features they were computed from."""
    features = model.extract({"images": R.images(8, 321)})
    cached = as_batch(features, ("patches", "cls", "proj"))
    statistics = {k: v.clone() for k, v in model.heads.bottleneck.state_dict().items()}
    model.train()
    try:
        with EventStorage(0):  # FastReID logs the accuracy there
            terms = model({**cached, "targets": R.LABELS8})
        pooled = model.heads.refine_and_pool(features).feature
    finally:
        model.eval().heads.bottleneck.load_state_dict(statistics)
    return SimpleNamespace(features=features, terms=terms, pooled=pooled)


# ---- image tower ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", entries("vit."))
def test_image_tower(name, model, x4):
    visual, tokens = model.backbone.visual, x4.tokens
    with torch.no_grad():
        every_row = visual.ln_post(tokens[12])
        ours = {
            "pos_embed_resized": lambda: towers.resize_position_embedding(
                R.weight("visual.positional_embedding", (197, 768)), (14, 14), (21, 10)
            ),
            "tokens_l9": lambda: tokens[9],
            "tokens_last11": lambda: tokens[11],
            "tokens_l12": lambda: tokens[12],
            "tokens_l6_9": lambda: torch.cat([tokens[9][:, :1], tokens[6][:, 1:], tokens[9][:, 1:]], dim=1),
            "x12_lnpost": lambda: every_row,
            "xproj": lambda: every_row @ visual.proj,
            "img_feature": lambda: x4.features.cls,
            "img_feat_proj": lambda: x4.features.proj,
        }[name.removeprefix("vit.")]()
    R.assert_matches(name, ours)


def test_image_stage_feature(image_stage):
    """s2.eval_feat, from a model of its own that takes the whole converted checkpoint."""
    stage2 = build_model(config("CLSHead"))
    stage2.load_state_dict(image_stage.model)
    with torch.no_grad():
        R.assert_matches("s2.eval_feat", stage2.eval()({"images": R.images(4, 123)}))


# ---- text ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(before, model):
    """The prompt learner with converted weights, and the conversion; the text tower is the model's own."""
    conversion = convert.from_published(before, head="prompts")
    head = build_heads(config("PromptHead"))
    head.load_state_dict({k.removeprefix("heads."): v for k, v in conversion.model.items() if k.startswith("heads.")})
    return SimpleNamespace(head=head.requires_grad_(False).eval(), published=conversion.published["tensors"])


def test_template(prompts):
    template = prompts.head.prompts.template
    suffix = torch.cat([template.suffix[None], prompts.published["prompt_learner.token_suffix"]], dim=1)
    R.assert_matches("text.tokenized", torch.tensor([R.template_ids()]))
    R.assert_matches("text.prefix", template.prefix[None])
    R.assert_matches("text.suffix", suffix)
    rest = prompts.published["prompt_learner.token_suffix"].expand(4, -1, -1)
    R.assert_matches("text.prompts", torch.cat([prompts.head.prompts(R.LABELS4), rest], dim=1))


def test_text_features(prompts):
    R.assert_matches("text.features_1a", prompts.head.text_encoder(prompts.head.prompts(torch.arange(16))))


def test_converted_text_features(image_stage, prompts):
    """What a converted checkpoint brings for the image-to-text loss, and what PromptHead stores by itself."""
    R.assert_matches("text.features_1a", image_stage.model["heads.text_features"])
    prompts.head.refresh()
    R.assert_matches("text.features_1a", prompts.head.text_features)


# ---- anchors, refinement, head -------------------------------------------------------------------------------------


def test_phrase_start():
    embeddings = [R.embed(ids) for ids in R.phrases()]
    template = R.embed(R.template_ids()[:20])
    started = A.TextAnchors(template_embedding=template, num_anchors=24, phrase_slots=12, text_dim=512, embed_dim=768)
    started.initialize(embeddings, noise=0.0)
    R.assert_matches("init.ctx_parts12_phrase", started.context_phrase)
    R.assert_matches("init.ctx_main4_phrase_no_noise", started.context_learned)


@pytest.mark.parametrize("name", [n for n in entries("s3.") if n != "s3.encode_eval"])
def test_refinement(name, model, x4):
    head, refined = model.heads, x4.refined
    with torch.no_grad():
        normed = head.bottleneck(refined.feature)
        ours = {
            "ctx_parts": head.text_anchors.context_phrase,
            "ctx_main": head.text_anchors.context_learned,
            "tokens": x4.features.patches,
            "text_anchors": refined.text_anchors,
            "domain_anchors": refined.domain_anchors,
            "refined": refined.tokens[0],
            "attn": refined.attention[0],
            "token_weights": refined.weights[0],
            "feat": refined.feature,
            "feat_bn": normed,
            "logits": torch.stack([c(normed) for c in head.classifiers]),
        }[name.removeprefix("s3.")]
    R.assert_matches(name, ours)


def test_converted_anchors(model):
    R.assert_matches("s3.text_anchors", model.converted_anchors)


def test_evaluation_feature(model):
    with torch.no_grad():
        R.assert_matches("s3.encode_eval", model({"images": R.images(4, 123)}))


# ---- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", entries("s3loss."))
def test_losses_of_the_model(name, model, x8, image_stage):
    text, terms = image_stage.model["heads.text_features"], x8.terms
    ours = {
        "xent": lambda: terms["loss_cls"],
        "triplet": lambda: terms["loss_triplet"],
        "anchor_div_raw": lambda: terms["loss_anchor_div"],
        "cls_div_raw": lambda: terms["loss_classifier_div"],
        "anchor_cons_raw": lambda: terms["loss_anchor_cons"],
        "decorr": lambda: terms["loss_decorr"],
        "total": lambda: terms["loss_cls"]
        + terms["loss_triplet"]
        + 0.05 * terms["loss_anchor_div"]
        + 0.5 * terms["loss_classifier_div"],
        "i2t_raw": lambda: losses.image_text_loss(x8.features.proj, text, R.LABELS8),
        "i2t_refined_raw": lambda: losses.image_text_loss(
            F.normalize(x8.pooled @ model.kept["text_proj.weight"].t(), dim=1), text, R.LABELS8
        ),
    }[name.removeprefix("s3loss.")]()
    R.assert_matches(name, ours)


@pytest.mark.parametrize("name", entries("synth."))
def test_losses_on_made_up_features(name):
    rs = np.random.RandomState(9)
    parts = F.normalize(torch.from_numpy(rs.standard_normal((8, 5, 32)).astype(np.float32)), dim=2)
    mass = torch.from_numpy(rs.uniform(0.1, 2, (8, 5)).astype(np.float32))
    fa, fb = (torch.from_numpy(rs.standard_normal((8, 24)).astype(np.float32)) for _ in range(2))
    y, triplet = R.LABELS8, losses.batch_hard_triplet_loss
    ours = {
        "anchor_cons": lambda: losses.anchor_consistency_loss(parts, mass, y, 0.3),
        "decorr": lambda: 0.7 * losses.decorrelation_loss(fa, fb),
        "triplet_hard03": lambda: triplet(fa, y, 0.3),
        "triplet_soft": lambda: triplet(fa, y, None),
        "triplet_hard03_norm": lambda: triplet(F.normalize(fa, dim=1), y, 0.3),
        "xent_ls": lambda: losses.identity_loss(fa, y, 0.1),
    }[name.removeprefix("synth.")]()
    R.assert_matches(name, ours)


def test_every_entry_is_covered():
    """The parametrised tests above take whole families, so an entry of a new family would be left out."""
    families = ("vit.", "text.", "s2.", "s3.", "s3loss.", "synth.", "init.")
    assert not [n for n in R.expected() if not n.startswith(families + COVERED_ELSEWHERE)]
    named = {"text.tokenized", "text.prefix", "text.suffix", "text.prompts", "text.features_1a"}
    second_mode = {"text.features_1b_view", "text.features_1b_view_none"}  # of prompts, which no training uses
    assert set(entries("text.")) == named | second_mode
    assert entries("s2.") == ["s2.eval_feat"]
    assert set(entries("init.")) == {"init.ctx_main4_phrase_no_noise", "init.ctx_parts12_phrase"}


def test_the_published_file_comes_back_exactly(published, model, image_stage, before):
    """Full size: from our trained form alone, in the key list and shapes of the published code."""
    state, notes = convert.to_published(model.state_dict())
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in published.items()}
    same = [k for k in published if k not in state.sagareid["filled"]]
    assert all(torch.equal(state[k], published[k]) for k in same if not k.endswith("token_suffix")) and notes
    state, _ = convert.to_published(image_stage.model)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in before.items()}
