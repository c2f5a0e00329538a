"""Prompts and the text tower: twenty rows are exact, what is learned, and what PromptHead keeps for later stages."""

from __future__ import annotations

import open_clip
import pytest
import torch

from sagareid.config import get_cfg
from sagareid.modeling import losses
from sagareid.modeling.clip import towers
from sagareid.modeling.clip.text import CONTEXT_SLOTS, PROMPT_LENGTH, PromptLearner, PromptTemplate, template_token_ids
from sagareid.modeling.heads import text_towers
from sagareid.modeling.terms import SupConLoss, compute_terms
from sagareid.structures import CLIPFeatures

from fastreid.modeling.heads import build_heads

NAME, WIDTH, C = "ViT-XS-8-pedestrians", 128, 5


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return towers.build_text_encoder(NAME).eval()


def learner(num_context: int = 8) -> PromptLearner:
    torch.manual_seed(1)
    embedding = torch.randn(PROMPT_LENGTH, WIDTH)
    return PromptLearner(template_embedding=embedding, num_classes=C, num_context=num_context)


def test_template_is_what_the_tokenizer_makes():
    ids = open_clip.tokenize(" ".join(["X"] * CONTEXT_SLOTS) + " person.")[0].tolist()
    assert ids[:PROMPT_LENGTH] == template_token_ids() and not any(ids[PROMPT_LENGTH:])


# ---- twenty rows ---------------------------------------------------------------------------------------------------


def test_twenty_rows_equal_seventy_seven_in_value_and_gradient(encoder):
    """Whatever stands after the end of text; gradients to the prompts and to every weight of the tower."""
    short = torch.randn(3, PROMPT_LENGTH, WIDTH).requires_grad_()
    tail = torch.randn(3, 77 - PROMPT_LENGTH, WIDTH).requires_grad_()
    weights = list(encoder.parameters())
    direction = torch.randn(3, encoder.output_dim)

    out20, out77 = encoder(short), encoder(torch.cat([short, tail], dim=1))
    torch.testing.assert_close(out20, out77, rtol=1e-5, atol=1e-5)
    grads20 = torch.autograd.grad((out20 * direction).sum(), [short, *weights])
    grads77 = torch.autograd.grad((out77 * direction).sum(), [short, *weights, tail])
    for a, b in zip(grads20, grads77):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert float(grads77[-1].abs().max()) == 0


def test_equals_the_librarys_own_text_tower(encoder):
    """open_clip on token ids, all 77 of them, with a token table that gives our prompts."""
    ids = torch.tensor([template_token_ids() + [0] * 57])
    config = open_clip.get_model_config(NAME)
    clip = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=32, image_size=32),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=True,
    ).eval()
    own = encoder.state_dict()
    missing = clip.load_state_dict(own, strict=False).missing_keys
    assert all(k.startswith(("visual.", "token_embedding.", "logit_scale")) for k in missing)
    prompts = clip.token_embedding(ids)[:, :PROMPT_LENGTH]
    with torch.no_grad():
        torch.testing.assert_close(encoder(prompts), clip.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_every_row_up_to_the_end_counts(encoder):
    prompts = torch.randn(1, PROMPT_LENGTH, WIDTH)
    with torch.no_grad():
        for row in range(PROMPT_LENGTH):
            changed = prompts.clone()
            changed[:, row] = torch.randn(WIDTH)
            assert not torch.allclose(encoder(changed), encoder(prompts), atol=1e-4), row


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_template_holds_the_ends():
    rows = torch.randn(PROMPT_LENGTH, WIDTH)
    context = torch.randn(2, CONTEXT_SLOTS, WIDTH)
    prompts = PromptTemplate(rows)(context)
    assert prompts.shape == (2, PROMPT_LENGTH, WIDTH)
    assert torch.equal(prompts[1], torch.cat([rows[:1], context[1], rows[17:]]))


@pytest.mark.parametrize("slots", [2, 8, 16])
def test_slots_that_do_not_learn_are_zero(slots):
    prompts = learner(slots)(torch.tensor([3, 0]))
    assert prompts.shape == (2, PROMPT_LENGTH, WIDTH)
    assert torch.equal(prompts[0, 1 : 1 + slots], learner(slots).context_identity[3])
    assert not prompts[:, 1 + slots : 1 + CONTEXT_SLOTS].any()


def test_prompts_train_the_identities_of_the_batch_alone():
    prompts = learner()
    prompts(torch.tensor([1, 1, 4])).sum().backward()
    moved = prompts.context_identity.grad.abs().sum((1, 2)) > 0
    assert moved.tolist() == [False, True, False, False, True]
    assert prompts.context_modality.grad is None and prompts.context_platform.grad is None


@pytest.mark.parametrize("slots", [0, 9, 18])
def test_prompt_learner_refuses(slots):
    with pytest.raises(ValueError, match=f"NUM_CONTEXT is {slots}; expected an even number"):
        learner(slots)


# ---- PromptHead ----------------------------------------------------------------------------------------------------


def prompt_head(text_tower: bool = True):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.FEAT_DIM = WIDTH
    cfg.MODEL.CLIP.NAME = NAME
    cfg.MODEL.HEADS.NAME = "PromptHead"
    cfg.MODEL.HEADS.NUM_CLASSES = C
    torch.manual_seed(2)
    with text_towers(text_tower):
        return build_heads(cfg)


def features(count: int) -> CLIPFeatures:
    return CLIPFeatures(torch.zeros(count, 1, 0), (1, 1), cls=torch.randn(count, WIDTH), proj=torch.randn(count, WIDTH))


def test_prompt_head_contrasts_both_ways_with_repeated_identities():
    head, batch, labels = prompt_head().train(), features(4), torch.tensor([1, 3, 1, 0])
    [loss] = compute_terms({"SupConLoss": SupConLoss(scale=1.0)}, head(batch, labels), labels).values()
    text = head.text_encoder(head.prompts(labels))  # each of the four, the plain way
    contrast = losses.supervised_contrastive_loss
    torch.testing.assert_close(loss, contrast(batch.proj, text, labels) + contrast(text, batch.proj, labels))
    loss.backward()
    trained = {n for n, p in head.named_parameters() if p.grad is not None}
    assert trained == {"prompts.context_identity"}


def test_prompt_head_stores_what_later_stages_need():
    head = prompt_head()
    with torch.no_grad():
        head.prompts.context_identity.mul_(3)
    state = head.state_dict()  # reading the state brings the buffers up to date
    with torch.no_grad():
        expected = head.text_encoder(head.prompts(torch.arange(C)))
    torch.testing.assert_close(state["text_features"], expected)
    torch.testing.assert_close(state["prompt_context"], head.prompts.context_identity.mean(0))


def test_prompt_head_evaluates_without_text_tower():
    head, batch = prompt_head(text_tower=False).eval(), features(3)
    assert torch.equal(head(batch), torch.cat([batch.cls, batch.proj], dim=1))
    with pytest.raises(ValueError, match="text_tower=True"):
        head.train()(batch, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="joint space"):
        head(torch.zeros(1, 8, 2, 2))
