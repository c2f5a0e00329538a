"""Every faster form against its plain form: equal in value and gradient, or in distribution."""

from __future__ import annotations

import contextlib
import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from sagareid.modeling import fast
from sagareid.modeling.backbones import clip as clip_backbone
from sagareid.modeling.clip import towers
from sagareid.modeling.fast import blocks
from sagareid.modeling.fast import dropout as masks
from sagareid.modeling.fast import refinement as faster
from sagareid.modeling.fast.blocks import Attention, QuickGELU, block_at_row, use_cheaper_forms
from sagareid.modeling.fast.dropout import dropout, gelu_dropout
from sagareid.modeling.fast.repeats import each_once
from sagareid.modeling.pooling import AnchorPool, LinearPool, MeanPool
from sagareid.modeling.refinement import RefinementLayer, SemanticRefinement

NAME = "ViT-XS-8-pedestrians"
B, N, K, M, D = 3, 20, 6, 3, 128


# ---- the switch ----------------------------------------------------------------------------------------------------


def on() -> set[str]:
    return {form for form in fast.FORMS if fast.enabled(form)}


def test_the_switches_end_with_their_scope():
    every = set(fast.FORMS)
    assert on() == every
    with pytest.raises(KeyError, match="out"), fast.disabled("dropout", "groups"):
        with fast.disabled():
            assert not on()
        assert on() == every - {"dropout", "groups"}
        with fast.disabled("dropout"):
            assert on() == every - {"dropout", "groups"}
        assert on() == every - {"dropout", "groups"}
        raise KeyError("out")
    assert on() == every
    with pytest.raises(KeyError, match="dropuot"), fast.disabled("dropuot"):
        pass
    with pytest.raises(KeyError, match="dropuot"):
        fast.enabled("dropuot")


def test_a_flag_is_said_of_the_forward_beside_it():
    class Weighs(AnchorPool):
        def weights(self, scores):
            return scores.sum(2)

    class Pools(Weighs):
        def forward(self, tokens, scores):
            return tokens.amax(1), self.weights(scores)

    class PoolsLinearly(Pools):
        linear = True

    said = [fast.says(cls(), "linear") for cls in (LinearPool, AnchorPool, Weighs, Pools, PoolsLinearly)]
    assert said == [True, True, True, False, True]
    assert not fast.says(nn.Identity(), "linear")


# form -> what computes it
COMPUTED_BY = {
    "refinement": (faster, "refine"),
    "absorption": (faster, "attend_by_anchor"),
    "dropout": (masks, "_MaskedGELU"),
    "early_pooling": (faster, "refine_and_pool"),
    "one_row": (blocks, "block_at_row"),
    "quick_gelu": (blocks, "_QuickGELU"),
}


@pytest.mark.parametrize("form", COMPUTED_BY)
def test_a_form_runs_where_it_is_switched_on(form, monkeypatch):
    """So that the comparisons below compare two computations."""
    module, name = COMPUTED_BY[form]
    original, ran = getattr(module, name), []
    if isinstance(original, type):  # an autograd function
        spy = type(name, (), {"apply": lambda *args: ran.append(1) or original.apply(*args)})
    else:

        def spy(*args):
            ran.append(1)
            return original(*args)

    for where in (module, clip_backbone):
        if hasattr(where, name):
            monkeypatch.setattr(where, name, spy)
    backbone, refinement = tower([4]), SemanticRefinement(embed_dim=D, num_heads=8, num_layers=2, dropout=0.1)

    def compute() -> None:
        backbone(torch.randn(2, 3, 32, 16))
        patches, text = torch.randn(B, N, D), torch.randn(K, D)
        refinement.train()(patches, text)
        if faster.pools_early(refinement.eval(), AnchorPool()):
            faster.refine_and_pool(refinement, AnchorPool(), patches, text, None)

    for switched_off in ((form,), ()):  # alone, and with all others
        with fast.disabled(*switched_off):
            compute()
        assert not ran
    with fast.disabled(*({*fast.FORMS} - {form, "refinement"})):  # that one is what two of them are a part of
        compute()
    assert ran


def test_torchs_attention_runs_where_ours_is_switched_off(monkeypatch):
    ran, original, backbone = [], nn.MultiheadAttention.forward, tower([4])
    monkeypatch.setattr(
        nn.MultiheadAttention, "forward", lambda *args, **others: ran.append(1) or original(*args, **others)
    )
    backbone(torch.randn(2, 3, 32, 16))
    assert not ran
    with fast.disabled("attention"):
        backbone(torch.randn(2, 3, 32, 16))
    assert len(ran) == backbone.depth


def test_what_a_batch_repeats_is_computed_once():
    labels, weight = torch.tensor([3, 0, 3, 3, 1]), torch.randn(4, 5, requires_grad=True)
    direction, computed, results = torch.randn(5, 5), [], []

    def function(labels):
        computed.append(len(labels))
        return weight[labels].tanh()

    for switch in (contextlib.nullcontext(), fast.disabled("each_once")):
        with switch:
            out = each_once(function, labels)
        results.append((out, *torch.autograd.grad((out * direction).sum(), weight)))
    assert computed == [3, 5]
    torch.testing.assert_close(*results)


def test_groups_are_made_where_they_are_switched_on(monkeypatch):
    monkeypatch.setattr(blocks, "_GROUP_ROWS", 8)
    sizes = []

    def function(x):
        sizes.append(len(x))
        return (x,)

    with fast.disabled("groups"):
        blocks.in_groups(function, 4, torch.zeros(5, 4))
    blocks.in_groups(function, 4, torch.zeros(5, 4))
    assert sizes == [5, 2, 2, 1]


# ---- one row of a block --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 6])
def test_block_at_row_equals_the_whole_block(row):
    torch.manual_seed(0)
    block, x = ResidualAttentionBlock(32, 4), torch.randn(3, 7, 32).requires_grad_()
    one, whole = block_at_row(block, x, row), block(x)[:, row]
    torch.testing.assert_close(one, whole)
    tensors, direction = [x, *block.parameters()], torch.randn(3, 32)
    for a, b in zip(*(torch.autograd.grad((y * direction).sum(), tensors) for y in (one, whole))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def tower(token_layers, output="tokens"):
    torch.manual_seed(0)
    visual = towers.build_vision_tower(NAME, (32, 16), 8)
    return clip_backbone.CLIPBackbone(
        visual=visual, token_layers=token_layers, output=output, num_cameras=3, sie_coe=2.0
    )


@pytest.mark.parametrize("token_layers", [[4], [5], [2, 5], [1, 3]])
def test_tower_equals_its_blocks_in_a_row(token_layers):
    """Also where the last block's patches are read, and with the camera in the class token."""
    backbone, images, cameras = tower(token_layers), torch.randn(3, 3, 32, 16), torch.tensor([2, -1, 0])
    visual = backbone.visual
    with torch.no_grad():
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], 1) + visual.positional_embedding
        x[:, 0] += 2.0 * torch.stack(
            [backbone.camera_embedding[2], backbone.camera_embedding.mean(0), backbone.camera_embedding[0]]
        )
        rows, x = [], visual.ln_pre(x)
        for block in visual.transformer.resblocks:
            rows.append(x := block(x))
        out = backbone(images, cameras)
    torch.testing.assert_close(
        out.patches, torch.cat([rows[i - 1][:, 1:] for i in token_layers], 1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        out.layer_cls, torch.stack([rows[i - 1][:, 0] for i in token_layers], 1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(out.cls, visual.ln_post(x)[:, 0], rtol=1e-4, atol=1e-5)
    with fast.disabled():
        torch.testing.assert_close(vars(backbone(images, cameras)), vars(out), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", ["tokens", "map", "cls"])
def test_groups_of_images_change_nothing(output, monkeypatch):
    """One image at a time, with the camera of each."""
    backbone, images, cameras = tower([2, 4], output), torch.randn(5, 3, 32, 16), torch.tensor([2, -1, 0, 1, 2])
    with torch.no_grad():
        whole = backbone(images, cameras)
        monkeypatch.setattr(blocks, "_GROUP_ROWS", 1)
        grouped = backbone(images, cameras)
        alone = backbone(images)
    if output == "tokens":
        torch.testing.assert_close(vars(grouped), vars(whole), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone.cls, whole.cls, atol=1e-3)
    else:
        torch.testing.assert_close(grouped, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("domain", [True, False])
def test_groups_change_no_gradient_of_the_refinement(shared, domain, monkeypatch):
    torch.manual_seed(0)
    refine = SemanticRefinement(embed_dim=16, num_heads=2, num_layers=2, dropout=0.0)
    patches, own = torch.randn(3, 6, 16), torch.randn(3, 2, 16).requires_grad_() if domain else None
    text = (torch.randn(4, 16) if shared else torch.randn(3, 4, 16)).requires_grad_()
    tensors = [text, *([own] if domain else []), *refine.parameters()]
    results = []
    for rows in (10**6, 1):
        monkeypatch.setattr(blocks, "_GROUP_ROWS", rows)
        refined, attention = refine(patches, text, own)
        loss = (refined.pow(2).sum(2) * attention.amax(2)).sum()
        results.append([refined, attention, *torch.autograd.grad(loss, tensors)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- refinement ----------------------------------------------------------------------------------------------------


def layer(num_heads: int = 8) -> RefinementLayer:
    torch.manual_seed(3)
    module = RefinementLayer(embed_dim=D, num_heads=num_heads, dropout=0.0)
    for norm in (module.norm_q, module.norm_kv, module.norm_ff):  # away from the identity
        nn.init.normal_(norm.weight, 1.0, 0.3), nn.init.normal_(norm.bias, std=0.1)
    nn.init.normal_(module.attn.in_proj_bias, std=0.1), nn.init.normal_(module.attn.out_proj.bias, std=0.1)
    return module


def both_ways(function, tensors: list[Tensor]) -> None:
    """Values of `function`, a tuple of tensors, and gradients of it, by the faster forms and by the plain ones."""
    results = []
    for switch in (contextlib.nullcontext, fast.disabled):
        with switch():
            values = function()
            loss = sum(v.pow(2).sum() for v in values)
            results.append((values, torch.autograd.grad(loss, tensors)))
    for ours, plain in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    for ours, plain in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count, order", [(K, "attend_by_anchor"), (20, "attend_by_patch")])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("domain", [True, False])
def test_refinement_layer(count, order, shared, domain, monkeypatch):
    """Both orders of the products; text anchors shared by the images or not; with and without domain anchors."""
    taken, original = [], getattr(faster, order)
    monkeypatch.setattr(faster, order, lambda *args: taken.append(order) or original(*args))
    module, x = layer(), torch.randn(B, N, D).requires_grad_()
    text = torch.randn(*([] if shared else [B]), count, D).requires_grad_()
    own = torch.randn(B, M, D).requires_grad_() if domain else None
    both_ways(lambda: module(x, text, own), [x, text, *([own] if domain else []), *module.parameters()])
    assert len(taken) == 1, "the other order of multiplication ran"


@pytest.mark.parametrize("num_heads", (1, 8, 32), ids="{} heads".format)
def test_any_number_of_heads(num_heads):
    module, x = layer(num_heads), torch.randn(B, N, D).requires_grad_()
    text, own = torch.randn(K, D).requires_grad_(), torch.randn(B, M, D)
    both_ways(lambda: module(x, text, own), [x, text, *module.parameters()])


@pytest.mark.parametrize("pool", (AnchorPool(), MeanPool()), ids=("anchor", "mean"))
def test_pooling_before_the_last_product(pool):
    refine = SemanticRefinement(embed_dim=D, num_heads=8, num_layers=2, dropout=0.3).eval()
    for module in refine.layers:
        nn.init.normal_(module.ff[3].bias)
    x, text, own = torch.randn(B, N, D).requires_grad_(), torch.randn(K, D).requires_grad_(), torch.randn(B, M, D)

    def compute() -> tuple[Tensor, ...]:
        if faster.pools_early(refine, pool):
            return faster.refine_and_pool(refine, pool, x, text, own)
        tokens, attention = refine(x, text, own)
        return (*pool(tokens, attention), attention)

    both_ways(compute, [x, text, *refine.parameters()])
    assert not faster.pools_early(refine.train(), pool), "training drops part of what is pooled"
    refine.eval().layers[-1].train()
    assert not faster.pools_early(refine, pool)


# ---- attention -----------------------------------------------------------------------------------------------------


def attentions():
    """Ours, and torch's with the same weights."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(32, 4)
    torch.nn.init.normal_(block.attn.in_proj_bias), torch.nn.init.normal_(block.attn.out_proj.bias)
    reference = copy.deepcopy(block.attn)
    use_cheaper_forms(block)
    return block.attn, reference


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_attention_equals_torchs(masked, training):
    ours, reference = (m.train(training) for m in attentions())
    assert type(ours) is Attention and list(ours.state_dict()) == list(reference.state_dict())
    x, mask = torch.randn(3, 7, 32, requires_grad=True), torch.full((7, 7), -torch.inf).triu_(1) if masked else None
    direction, values, gradients = torch.randn(3, 7, 32), [], []
    for module in (ours, reference):
        value, weights = module(x, x, x, need_weights=False, attn_mask=mask)
        values.append(value)
        gradients.append(torch.autograd.grad((value * direction).sum(), [x, *module.parameters()]))
        assert weights is None
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(*(m(x, x, x, need_weights=False, attn_mask=mask)[0] for m in (ours, reference)))


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_to_other_rows_equals_torchs(need_weights):
    ours, reference = attentions()
    query, rows, others = torch.randn(3, 2, 32), torch.randn(3, 7, 32), torch.randn(3, 7, 32)
    for values in (rows, others):
        for a, b in zip(*(m(query, rows, values, need_weights=need_weights) for m in (ours, reference))):
            torch.testing.assert_close(a, b)


def test_other_calls_are_torchs():
    """A boolean mask means the opposite in torch's fused attention."""
    ours, reference = attentions()
    x, hidden = torch.randn(3, 7, 32), torch.ones(7, 7, dtype=torch.bool).triu_(1)
    padded = torch.zeros(3, 7, dtype=torch.bool)
    padded[:, 5:] = True
    for call in (
        {"need_weights": False, "attn_mask": hidden},
        {"need_weights": False, "attn_mask": torch.randn(12, 7, 7)},
        {"need_weights": False, "key_padding_mask": padded},
        {"average_attn_weights": False},
    ):
        for a, b in zip(*(m(x, x, x, **call) for m in (ours, reference))):
            torch.testing.assert_close(a, b)


# ---- activation ----------------------------------------------------------------------------------------------------


def test_quick_gelu_equals_open_clips():
    x = torch.linspace(-12, 12, 999, requires_grad=True)
    results = [
        (y := f(x), torch.autograd.grad(y.sum(), x)[0]) for f in (QuickGELU(), open_clip.transformer.QuickGELU())
    ]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_both_towers_use_the_faster_forms():
    for module in (towers.build_vision_tower(NAME, (32, 16), 8), towers.build_text_encoder(NAME)):
        kinds = {type(m) for m in module.modules()}
        assert {QuickGELU, Attention} <= kinds
        assert not kinds & {open_clip.transformer.QuickGELU, torch.nn.MultiheadAttention}


def test_quick_gelu_in_value_and_gradient():
    x = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    ours, reference = QuickGELU()(x), open_clip.transformer.QuickGELU()(x)
    torch.testing.assert_close(ours, reference)
    direction = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad((y * direction).sum(), x)[0] for y in (ours, reference)))
    with torch.no_grad():
        torch.testing.assert_close(QuickGELU()(x), reference)


# ---- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(p):
    torch.manual_seed(0)
    x = torch.full((401, 499), 3.0, requires_grad=True)
    y = dropout(x, p, training=True)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 3 / (1 - p)), rtol=1e-3, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    # neighbours, which share a draw of the generator, and rows are independent
    for shifted in (kept[:, 1:] & kept[:, :-1], kept[1:] & kept[:-1]):
        assert float(shifted.float().mean()) == pytest.approx((1 - p) ** 2, abs=0.01)


def test_dropout_follows_the_seed():
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(7, 9), 0.3, True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_dropout_that_does_nothing():
    x = torch.randn(4, 5)
    assert torch.equal(dropout(x, 0.0, True), x) and torch.equal(dropout(x, 0.4, False), x)
    assert torch.equal(dropout(x, 1.0, True), torch.zeros(4, 5))


@pytest.mark.parametrize("p, training", [(0.1, True), (0.4, True), (0.4, False), (0.0, True)])
def test_gelu_and_dropout_in_one(p, training):
    x = torch.randn(7, 33, requires_grad=True)
    values, gradients = [], []
    for function in (lambda: gelu_dropout(x, p, training), lambda: dropout(F.gelu(x), p, training)):
        torch.manual_seed(3)
        values.append(function())
        gradients.append(torch.autograd.grad((values[-1] ** 2).sum(), x)[0])
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert bool((values[0] == 0).any()) == (training and p > 0)


def test_dropout_keeps_the_type():
    assert dropout(torch.ones(3, 5, dtype=torch.bfloat16), 0.1, True).dtype is torch.bfloat16
