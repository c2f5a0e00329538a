"""The plain way: the method as it is written down and published, which the benchmarks time ours against.

It takes 77 text positions, a text feature for every label of a batch, the text tower in every forward and a second time
for the diversity term, and every module in its plain form (`modeling.fast.disabled`): `nn.MultiheadAttention` for the
refinement, every position of every tower block, torch's own attention and dropout and open_clip's QuickGELU. It works
on a copy of a model's structure that shares its tensors.

B images, N patches, D token width, W text width, E joint width, K text anchors, M domain anchors.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling import fast
from ..modeling import losses as L
from ..modeling.clip.text import PROMPT_LENGTH, TextEncoder
from ..modeling.heads import head_outputs
from ..modeling.saga_head import SAGAHead
from ..structures import CLIPFeatures


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of the module structure over the same parameters and buffers, with modes of its own."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def plainly(function: Callable[[], Any], *forms: str) -> Callable[[], Any]:
    """`function`, computed without the faster forms, or without these of `fast.FORMS`."""

    @functools.wraps(function)
    def wrapped() -> Any:
        with fast.disabled(*forms):
            return function()

    return wrapped


class PlainTextTower(nn.Module):
    """CLIP's text tower over all 77 positions: every block and the final norm, then the position that is read."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder
        positions, width = encoder.positional_embedding.shape
        padding = 0.02 * torch.randn(positions - PROMPT_LENGTH, width)  # the published suffix: embeddings of token 0
        self.register_buffer("padding", padding.to(encoder.positional_embedding.device))
        mask = torch.full((positions, positions), -torch.inf, device=self.padding.device).triu_(1)
        self.register_buffer("mask", mask)

    def forward(self, prompts: Tensor) -> Tensor:
        """(B, PROMPT_LENGTH, W) prompts to (B, E) text features."""
        x = torch.cat([prompts, self.padding.expand(len(prompts), -1, -1)], dim=1)
        x = x + self.encoder.positional_embedding
        for block in self.encoder.transformer.resblocks:
            x = block(x, attn_mask=self.mask)
        return self.encoder.ln_final(x)[:, PROMPT_LENGTH - 1] @ self.encoder.text_projection


def plain_refined(head: SAGAHead, features: CLIPFeatures, text: Tensor) -> Tensor:
    """Refinement and pooling of one token layer: (B, D) pooled feature.

    Args:
        text: (K, D) text anchors.
    """
    domain = None
    if head.domain_anchors is not None:
        inputs = {"camids": features.camids, "proj": features.proj, "text_anchors": text}
        domain = head.domain_anchors(features.patches, **inputs)
    tokens, attention = head.refine[0](features.patches, text, domain)
    return head.proj(head.anchor_pool(tokens, attention)[0])


def plain_anchors(head: SAGAHead, text: PlainTextTower) -> Tensor:
    return head.text_anchors.proj(text(head.text_anchors.prompts()))


def plain_anchor_losses(
    model: nn.Module, text: PlainTextTower, features: CLIPFeatures, targets: Tensor
) -> dict[str, Tensor]:
    head = model.heads
    feature = plain_refined(head, features, plain_anchors(head, text))
    normed = head.bottleneck(feature)
    logits = torch.stack([classifier(head.classifier_dropout(normed)) for classifier in head.classifiers])
    given = {
        "text_anchors": lambda: plain_anchors(head, text),
        "classifier_weights": [classifier.weight for classifier in head.classifiers],
    }
    outputs = head_outputs(logits, feature, **given)
    L.classification_accuracy(outputs["pred_class_logits"].detach(), targets)  # logged in each step
    return model.losses(outputs, targets)


def plain_prompt_losses(model: nn.Module, text: PlainTextTower, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    head, image, targets = model.heads, batch["proj"].float(), batch["targets"]
    encoded = text(head.prompts(targets))
    contrast = L.supervised_contrastive_loss
    return {"loss_supcon": contrast(image, encoded, targets) + contrast(encoded, image, targets)}
