"""Anchors and what they do to patches: each equation written out again, and stored anchors that never go stale."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagareid.config import get_cfg
from sagareid.modeling import anchors as A
from sagareid.modeling import fast
from sagareid.modeling.heads import text_towers
from sagareid.modeling.pooling import AnchorPool, anchor_features
from sagareid.modeling.refinement import RefinementLayer
from sagareid.structures import CLIPFeatures, as_batch

from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

NAME, D, E, C = "ViT-XS-8-pedestrians", 128, 128, 4
B, N, K, M = 3, 20, 6, 3
GRID = (5, 4)


def config(token_layers=(4,), losses=("CrossEntropyLoss", "TripletLoss"), **saga):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SAGABaseline"
    cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.FEAT_DIM = D
    cfg.MODEL.BACKBONE.STRIDE_SIZE = [8, 8]
    cfg.MODEL.CLIP.NAME = NAME
    cfg.MODEL.CLIP.TOKEN_LAYERS = list(token_layers)
    cfg.MODEL.CLIP.CAMERAS = ["a", "b", "c"]
    cfg.MODEL.HEADS.NAME = "SAGAHead"
    cfg.MODEL.HEADS.NUM_CLASSES = C
    cfg.MODEL.LOSSES.NAME = list(losses)
    cfg.MODEL.SAGA.NUM_ANCHORS = K
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [96, 48]
    for key, value in saga.items():
        if key == "PARTS":
            cfg.TEST.PARTS = value
        else:
            cfg.MODEL.SAGA[key] = value
    return cfg


def head(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    return build_heads(config(**kwargs))


def features(layers: int = 1, camids=None, seed: int = 1) -> CLIPFeatures:
    g = torch.Generator().manual_seed(seed)
    return CLIPFeatures(
        torch.randn(B, layers * N, D, generator=g),
        GRID,
        cls=torch.randn(B, D, generator=g),
        proj=torch.randn(B, E, generator=g),
        num_layers=layers,
        camids=camids,
    )


# ---- phrases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, slots, picked",
    [(5, 4, [0, 1, 2, 4]), (11, 4, [0, 3, 6, 10]), (7, 7, [0, 1, 2, 3, 4, 5, 6]), (3, 1, [0]), (3, 0, [])],
)
def test_a_long_phrase_is_sampled_evenly(tokens, slots, picked):
    phrase = torch.arange(tokens).float()[:, None].expand(-1, 2)
    assert A.phrase_context(phrase, slots)[:, 0].tolist() == picked


def test_a_short_phrase_is_filled_with_its_mean():
    phrase = torch.tensor([[1.0], [4.0]])
    assert A.phrase_context(phrase, 4)[:, 0].tolist() == [1, 4, 2.5, 2.5]


def text_anchors(phrase_slots: int = 12, num_anchors: int = K) -> A.TextAnchors:
    sizes = {"num_anchors": num_anchors, "phrase_slots": phrase_slots, "text_dim": E, "embed_dim": D}
    return A.TextAnchors(template_embedding=torch.randn(20, D), **sizes)


def test_anchors_take_the_phrases_in_turn():
    anchors, phrases = text_anchors(), [torch.randn(n, D) for n in (5, 14)]
    anchors.initialize(phrases, noise=0.0)
    for k in range(K):
        torch.testing.assert_close(anchors.context_learned[k], A.phrase_context(phrases[k % 2], 4))
        torch.testing.assert_close(anchors.context_phrase[k], A.phrase_context(phrases[k % 2], 12))
    anchors.initialize(phrases)
    spread = (anchors.context_learned.detach()[0] - A.phrase_context(phrases[0], 4)).std()
    assert float(spread) == pytest.approx(0.01, rel=0.3)


def test_anchors_without_phrases_start_from_the_mean_identity_prompt():
    anchors, identities = text_anchors(phrase_slots=0), torch.randn(9, 8, D)
    anchors.initialize_from_prompts(identities, noise=0.0)
    torch.testing.assert_close(anchors.context_learned[K - 1, :8], identities.mean(0))
    assert anchors.context_learned.shape == (K, 16, D) and not anchors.context_learned[:, 8:].any()


def test_more_than_sixteen_phrase_slots_are_sixteen():
    assert text_anchors(phrase_slots=40).context_phrase.shape == (K, 16, D)


# ---- text anchors stored and live ----------------------------------------------------------------------------------


def live(saga: nn.Module) -> Tensor:
    with torch.no_grad():
        return saga.text_anchors.compute(saga.text_encoder)


def used(saga: nn.Module) -> Tensor:
    with torch.no_grad():
        return saga.refine_and_pool(features()).text_anchors


def test_stored_anchors_equal_live_ones():
    saga = head().eval()
    torch.testing.assert_close(used(saga), live(saga))
    torch.testing.assert_close(saga.state_dict()["text_anchors.anchors"], live(saga))


def test_evaluation_runs_the_text_tower_once(monkeypatch):
    saga, calls = head().eval(), []
    compute = saga.text_anchors.compute
    monkeypatch.setattr(saga.text_anchors, "compute", lambda encoder: calls.append(1) or compute(encoder))
    for _ in range(3):
        used(saga)
    saga.state_dict()
    assert len(calls) == 1


def in_place(saga: nn.Module) -> None:
    with torch.no_grad():
        saga.text_anchors.proj.weight.mul_(2)


def phrase_buffer(saga: nn.Module) -> None:
    saga.text_anchors.context_phrase.add_(torch.randn_like(saga.text_anchors.context_phrase))


def behind_the_version_counter(saga: nn.Module) -> None:
    """As some optimizers write."""
    saga.train()
    saga.text_anchors.proj.weight.data.mul_(2)
    saga.eval()


def an_optimizer_step(saga: nn.Module) -> None:
    saga.train()
    saga.text_anchors.compute(saga.text_encoder).sum().backward()
    torch.optim.AdamW([saga.text_anchors.context_learned], lr=0.1).step()
    saga.eval()


def other_weights(saga: nn.Module) -> None:
    torch.manual_seed(9)
    saga.load_state_dict(build_heads(config()).state_dict())


def other_weights_with_wrong_anchors(saga: nn.Module) -> None:
    """A file whose stored anchors do not belong to its weights: with a text tower, the weights decide."""
    state = head().state_dict()
    saga.load_state_dict(state | {"text_anchors.anchors": torch.randn(K, D)})


CHANGES = [in_place, phrase_buffer, behind_the_version_counter, an_optimizer_step]
CHANGES += [other_weights, other_weights_with_wrong_anchors]


@pytest.mark.parametrize("change", CHANGES)
def test_stored_anchors_follow_the_weights(change):
    saga = head().eval()
    before = used(saga).clone()
    change(saga)
    torch.testing.assert_close(used(saga), live(saga))
    torch.testing.assert_close(saga.state_dict()["text_anchors.anchors"], live(saga))
    if change is not other_weights_with_wrong_anchors:
        assert not torch.allclose(used(saga), before, atol=1e-3)


def test_a_checkpoint_written_in_training_holds_current_anchors():
    saga = head().train()
    saga.state_dict()
    saga.text_anchors.proj.weight.data.mul_(2)
    torch.testing.assert_close(saga.state_dict()["text_anchors.anchors"], live(saga))


def test_without_text_tower_the_stored_anchors_are_used():
    saga, alone = head().eval(), build_heads_without_tower()
    state = {k: v for k, v in saga.state_dict().items() if not k.startswith("text_encoder.")}
    alone.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(alone(features()), saga(features()))
    with pytest.raises(ValueError, match="text_tower=True"):
        alone.train()(features(), torch.tensor([0, 1, 2]))


def build_heads_without_tower() -> nn.Module:
    with text_towers(False):
        return build_heads(config()).eval()


def test_gradient_passes_the_frozen_tower_to_the_learned_context():
    saga = head().train()
    out = saga(features(), torch.tensor([0, 1, 2]))
    (out["text_anchors"].pow(2).sum() + out["pred_class_logits"].sum()).backward()
    trained = {n for n, p in saga.named_parameters() if p.grad is not None}
    assert {"text_anchors.context_learned", "text_anchors.proj.weight"} <= trained
    assert not any(n.startswith("text_encoder.") for n in trained) and "bottleneck.bias" not in trained


# ---- domain anchors ------------------------------------------------------------------------------------------------


def test_content_domain_anchors():
    module, x = A.ContentDomainAnchors(num_anchors=M, embed_dim=D), features().patches
    first, _, second = module.generator
    flat = F.gelu(x.mean(1) @ first.weight.t() + first.bias) @ second.weight.t() + second.bias
    torch.testing.assert_close(module(x), flat.reshape(B, M, D))


def test_camera_domain_anchors_and_unknown_cameras():
    module, x = A.CameraDomainAnchors(num_anchors=M, embed_dim=D, num_cameras=3), features().patches
    table = module.camera.weight

    def expected(embedding: Tensor) -> Tensor:
        return module.generator(torch.cat([x.mean(1), embedding], dim=1)).reshape(B, M, D)

    camids = torch.tensor([2, 0, 1])
    torch.testing.assert_close(module(x, camids=camids), expected(table[camids]))
    mean = table.mean(0).expand(B, -1)
    torch.testing.assert_close(module(x), expected(mean))
    mixed = module(x, camids=torch.tensor([2, -1, -1]))
    torch.testing.assert_close(mixed[0], expected(table[camids])[0])
    torch.testing.assert_close(mixed[1:], expected(mean)[1:])
    mixed.sum().backward()
    assert module.camera.weight.grad.isfinite().all()


def test_clip_domain_anchors_attend_with_the_raw_anchors_as_value():
    module, f, text = A.ClipDomainAnchors(num_anchors=M, embed_dim=D, clip_dim=E), features(), torch.randn(K, D)
    for norm in (module.norm_q, module.norm_kv, module.norm_out):  # away from the identity
        nn.init.normal_(norm.weight, 1.0, 0.5), nn.init.normal_(norm.bias, std=0.5)
    q = module.queries + (f.proj @ module.clip_proj.weight.t())[:, None]
    value = text.expand(B, -1, -1)
    attended, _ = module.attn(module.norm_q(q), module.norm_kv(value), value)
    out = module(f.patches, proj=f.proj, text_anchors=text)
    torch.testing.assert_close(out, module.norm_out(q + attended), rtol=1e-4, atol=1e-5)


# ---- refinement and pooling ----------------------------------------------------------------------------------------


def layer(dropout: float = 0.0, num_heads: int = 8) -> RefinementLayer:
    torch.manual_seed(3)
    module = RefinementLayer(embed_dim=D, num_heads=num_heads, dropout=dropout)
    for norm in (module.norm_q, module.norm_kv, module.norm_ff):
        nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(module.attn.in_proj_bias, std=0.1)
    return module


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("count", [K, 20])
def test_refinement_is_its_equation(count, plainly):
    """Written out head by head, in the faster forms and in the plain one."""
    module, x, text, domain = layer().eval(), features().patches, torch.randn(count, D), torch.randn(B, M, D)
    anchors, heads = torch.cat([text.expand(B, -1, -1), domain], dim=1), module.attn.num_heads
    (w_q, w_k, w_v), (b_q, b_k, b_v) = module.attn.in_proj_weight.chunk(3), module.attn.in_proj_bias.chunk(3)
    query, keys = module.norm_q(x) @ w_q.t() + b_q, module.norm_kv(anchors) @ w_k.t() + b_k
    values = module.norm_kv(anchors) @ w_v.t() + b_v
    read, weights = [], 0
    for q, k, v in zip(*(t.chunk(heads, dim=2) for t in (query, keys, values))):
        attention = (q @ k.transpose(1, 2) / math.sqrt(D / heads)).softmax(2)
        read.append(attention @ v)
        weights = weights + attention / heads
    expected = x + torch.cat(read, dim=2) @ module.attn.out_proj.weight.t() + module.attn.out_proj.bias
    expected = expected + module.ff[3](F.gelu(module.ff[0](module.norm_ff(expected))))
    with fast.disabled() if plainly else contextlib.nullcontext():
        refined, attention = module(x, text, domain)
    torch.testing.assert_close(refined, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, weights, rtol=1e-4, atol=1e-6)


def test_evaluation_makes_no_refined_patches_unless_asked():
    saga = build_model(config()).heads.eval()
    kept, spared = saga.refine_and_pool(features()), saga.refine_and_pool(features(), keep_tokens=False)
    assert len(kept.tokens) == 1 and not spared.tokens
    torch.testing.assert_close(kept.feature, spared.feature, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept.weights[0], spared.weights[0])


def test_attention_rows_sum_to_one_in_evaluation_and_not_under_dropout():
    module, x, a = layer(dropout=0.3), features().patches, torch.randn(B, K, D)
    sums = module.eval()(x, a)[1].sum(2)
    torch.testing.assert_close(sums, torch.ones(B, N))
    assert (module.train()(x, a)[1].sum(2) - 1).abs().max() > 0.01


def test_refinement_starts_from_an_image_block():
    model = build_model(config(token_layers=(4,), INIT_BLOCK=0, REFINE_LAYERS=2))
    block = model.backbone.block(4)
    for refine in model.heads.refine[0].layers:
        assert torch.equal(refine.attn.in_proj_weight, block.attn.in_proj_weight)
        assert torch.equal(refine.norm_kv.weight, block.ln_1.weight)
        assert torch.equal(refine.norm_q.bias, block.ln_1.bias)
        assert torch.equal(refine.norm_ff.weight, block.ln_2.weight)
        assert torch.equal(refine.ff[0].weight, block.mlp.c_fc.weight)
        assert torch.equal(refine.ff[3].bias, block.mlp.c_proj.bias)
    other = build_model(config(token_layers=(4,), INIT_BLOCK=2))
    assert torch.equal(other.heads.refine[0].layers[1].ff[0].weight, other.backbone.block(2).mlp.c_fc.weight)


def test_pooling_weights_are_the_largest_claim_and_sum_to_one():
    x, scores = features().patches, torch.rand(B, N, K)
    pooled, weights = AnchorPool()(x, scores)
    for b in range(B):
        claims = [max(scores[b, n].tolist()) for n in range(N)]
        for n in range(N):
            assert weights[b, n].item() == pytest.approx(claims[n] / sum(claims), rel=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    torch.testing.assert_close(pooled, (weights[:, :, None] * x).sum(1))


def test_pooling_of_no_attention_at_all_is_finite():
    """Attention dropout can leave an image with nothing."""
    pooled, weights = AnchorPool()(features().patches, torch.zeros(B, N, K))
    assert not pooled.any() and not weights.any()


def test_anchor_features_are_sums_without_renormalisation():
    x, scores = features().patches, torch.rand(B, N, K)
    parts, mass = anchor_features(x, scores)
    for k in range(K):
        torch.testing.assert_close(parts[:, k], (scores[:, :, k, None] * x).sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mass[:, k], scores[:, :, k].sum(1))


# ---- the head ------------------------------------------------------------------------------------------------------

VARIANTS = {
    "default": {},
    "free anchors": {"FREE_ANCHORS": True},
    "no domain anchors": {"NUM_DOMAIN_ANCHORS": 0},
    "camera domain anchors": {"DOMAIN_ANCHORS": "camera"},
    "clip domain anchors": {"DOMAIN_ANCHORS": "clip"},
    "two layers": {"token_layers": (2, 4)},
    "two layers, bare": {"token_layers": (2, 4), "FREE_ANCHORS": True, "NUM_DOMAIN_ANCHORS": 0},
    "projection": {"EMBEDDING_DIM": 32},
    "several classifiers": {"NUM_CLASSIFIERS": 3, "CLASSIFIER_DROPOUT": 0.2},
    "no phrases": {"PHRASE_CONTEXT": 0},
    "nothing to learn in the context": {"PHRASE_CONTEXT": 16},
    "one refinement layer": {"REFINE_LAYERS": 1},
    "mean pooling": {"POOL": "mean"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_evaluates(name):
    options = VARIANTS[name]
    saga = head(**options)
    layers = len(options.get("token_layers", (4,)))
    batch = features(layers, camids=torch.tensor([0, 2, -1]))
    out = saga.train()(batch, torch.tensor([0, 1, 1]))
    assert out["logits"].shape == (options.get("NUM_CLASSIFIERS", 1), B, C)
    (out["logits"].pow(2).sum() + out["features"].pow(2).sum()).backward()
    without = {n for n, p in saga.named_parameters() if p.requires_grad and p.numel() and p.grad is None}
    assert not without
    saga.eval()
    with torch.no_grad():
        feature, again = saga(batch), saga(batch)
        refined = saga.refine_and_pool(batch)
    assert torch.equal(feature, again) and feature.isfinite().all()
    assert feature.shape == (B, sum(saga.feature_layout.values()))
    domain = 0 if options.get("NUM_DOMAIN_ANCHORS") == 0 else M
    for path, (attention, weights) in enumerate(zip(refined.attention, refined.weights)):
        anchors = K // layers + (domain if path == layers - 1 else 0)
        assert attention.shape == (B, N, anchors)
        torch.testing.assert_close(attention.sum(2), torch.ones(B, N))
        torch.testing.assert_close(weights.sum(1), torch.ones(B))
    restored = head(**options).eval()
    restored.load_state_dict(copy.deepcopy(saga.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(restored(batch), feature)


def test_two_layers_share_the_anchors_by_halves():
    """The first layer sees the first half; the second the other half and the domain anchors; the features add up."""
    saga = head(token_layers=(2, 4)).eval()
    batch = features(layers=2)
    first, second = batch.patches.chunk(2, dim=1)
    with torch.no_grad():
        text = live(saga)
        domain = saga.domain_anchors(second)
        a = saga.refine[0](first, text[: K // 2])
        b = saga.refine[1](second, torch.cat([text[K // 2 :].expand(B, -1, -1), domain], dim=1))
        expected = saga.anchor_pool(*a)[0] + saga.anchor_pool(*b)[0]
        torch.testing.assert_close(saga(batch)[:, :D], expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"token_layers": (2, 4), "NUM_ANCHORS": 5}, "NUM_ANCHORS 5 must be even"),
        ({"token_layers": (1, 2, 3)}, "one token layer or two, not 3"),
        ({"REFINE_LAYERS": 0}, "REFINE_LAYERS is 0"),
        ({"NUM_HEADS": 7}, "NUM_HEADS 7 does not divide the token width 128"),
        ({"POOL": "max"}, "POOL is 'max'"),
    ],
)
def test_head_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)


def test_head_of_two_layers_refuses_one():
    with pytest.raises(ValueError, match="built for 2 token layer.*features hold 1"):
        head(token_layers=(2, 4)).eval()(features(1))


def test_parts_keep_the_anchors_of_largest_mass():
    saga, batch = head(PARTS=2).eval(), features()
    with torch.no_grad():
        refined = saga.refine_and_pool(batch)
        parts = saga(batch)[:, -K * D :].reshape(B, K, D)
    scores, tokens = refined.attention[0][:, :, :K], refined.tokens[0]
    for b in range(B):
        mass = scores[b].sum(0)
        kept = set(mass.topk(2).indices.tolist())
        for k in range(K):
            whole = F.normalize((scores[b, :, k, None] * tokens[b]).sum(0), dim=0)
            torch.testing.assert_close(parts[b, k], whole if k in kept else torch.zeros(D), rtol=1e-4, atol=1e-5)


def test_parts_of_two_layers_are_refused():
    with pytest.raises(ValueError, match="not defined for two token layers"):
        head(token_layers=(2, 4), PARTS=2).eval()(features(2))


def test_losses_of_the_head_are_scaled_and_named():
    names = ["AnchorDiversityLoss", "ClassifierDiversityLoss", "AnchorConsistencyLoss", "DecorrelationLoss"]
    cfg = config(losses=["CrossEntropyLoss", "TripletLoss", *names], NUM_CLASSIFIERS=2, DROPOUT=0.0)
    terms = []
    for scale in (1.0, 3.0):
        for key in ("ANCHOR_DIVERSITY", "CLASSIFIER_DIVERSITY", "ANCHOR_CONSISTENCY", "DECORRELATION"):
            cfg.MODEL.LOSSES[key].SCALE = scale
        torch.manual_seed(0)
        model = build_model(cfg).train()
        f = features()
        with EventStorage(0):
            terms.append(model({**as_batch(f), "targets": torch.tensor([0, 0, 1])}))
    own = {"loss_anchor_div", "loss_classifier_div", "loss_anchor_cons", "loss_decorr"}
    assert set(terms[0]) == own | {"loss_cls", "loss_triplet"}
    for name in own:
        torch.testing.assert_close(terms[1][name], 3 * terms[0][name])


def test_a_map_of_another_backbone_is_taken():
    """FastReID's own backbones give (B, D, h, w) and no class token."""
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    saga = build_heads(cfg).eval()
    with torch.no_grad():
        out = saga(torch.randn(B, D, *GRID))
    assert out.shape == (B, D) and saga.feature_layout == {"refined": D}
