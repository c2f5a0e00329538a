"""The plain way: the method as it is written down and published, which the benchmarks time ours against.

It takes 77 text positions, a text feature for every label of a batch, the text tower in every forward and a second time
for the diversity term, `nn.MultiheadAttention` for the refinement, every position of every tower block, torch's own
attention and dropout and open_clip's QuickGELU. It works on a copy of a model's structure that shares its tensors.

B images, N patches, D token width, W text width, E joint width, K text anchors, M domain anchors.
"""

from __future__ import annotations

import copy

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from ..modeling import losses as L
from ..modeling.anchors import RefinementLayer
from ..modeling.backbones.clip import CLIPBackbone
from ..modeling.clip.text import PROMPT_LENGTH, TextEncoder
from ..modeling.fast.blocks import QuickGELU
from ..modeling.heads import head_outputs
from ..modeling.saga_head import SAGAHead
from ..structures import CLIPFeatures


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of the module structure over the same parameters and buffers, without the faster forms of its blocks."""
    plain = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for layer in list(plain.modules()):
        if isinstance(layer, ResidualAttentionBlock):  # undoes modeling.fast.blocks.use_cheaper_forms
            layer.attn.__class__ = nn.MultiheadAttention
            if isinstance(layer.mlp.gelu, QuickGELU):
                layer.mlp.gelu = open_clip.transformer.QuickGELU()
        if isinstance(layer, RefinementLayer):
            layer.attn.dropout = layer.dropout
            layer.ff[1], layer.ff[2], layer.ff[4] = nn.GELU(), nn.Dropout(layer.ff[1].p), nn.Dropout(layer.ff[4].p)
    return plain


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


def plain_features(backbone: CLIPBackbone, images: Tensor) -> CLIPFeatures:
    """The image tower with every position of every block, final norm and projection of all of them; one token layer.

    Args:
        images: (B, 3, H, W), normalised.
    """
    visual = backbone.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding)
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        x = block(x)
        if number == backbone.token_layers[0]:
            tokens = x
    x = visual.ln_post(x)
    proj = x @ visual.proj
    return CLIPFeatures(tokens[:, 1:], backbone.grid, cls=x[:, 0], proj=proj[:, 0], layer_cls=tokens[:, :1])


def plain_refined(head: SAGAHead, features: CLIPFeatures, text: Tensor) -> Tensor:
    """Refinement and pooling of one token layer with `nn.MultiheadAttention`: (B, D) pooled feature.

    Args:
        text: (K, D) text anchors; with the domain anchors they are copied for every image.
    """
    x = features.patches
    anchors = text.expand(len(x), -1, -1)
    if head.domain_anchors is not None:
        domain = head.domain_anchors(x, camids=features.camids, proj=features.proj, text_anchors=text)
        anchors = torch.cat([anchors, domain], dim=1)
    for layer in head.refine[0].layers:
        query, keys = layer.norm_q(x), layer.norm_kv(anchors)
        attended, weights = layer.attn(query, keys, keys, need_weights=True, average_attn_weights=True)
        x = x + attended
        x = x + layer.ff(layer.norm_ff(x))
    weights = weights.amax(2)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    return head.proj((weights[..., None] * x).sum(1))


def plain_anchors(head: SAGAHead, text: PlainTextTower) -> Tensor:
    return head.text_anchors.proj(text(head.text_anchors.prompts()))


def plain_anchor_losses(
    model: nn.Module, text: PlainTextTower, features: CLIPFeatures, targets: Tensor
) -> dict[str, Tensor]:
    head = model.heads
    feature = plain_refined(head, features, plain_anchors(head, text))
    normed = head.bottleneck(feature)
    logits = torch.stack([classifier(head.classifier_dropout(normed)) for classifier in head.classifiers])
    terms = {}
    if "AnchorDiversityLoss" in head.loss_weights:
        again = plain_anchors(head, text)
        terms["loss_anchor_div"] = head.loss_weights["AnchorDiversityLoss"]["scale"] * L.anchor_diversity_loss(again)
    return model.losses(head_outputs(logits, feature, terms), targets)


def plain_prompt_losses(model: nn.Module, text: PlainTextTower, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    head, image, targets = model.heads, batch["proj"].float(), batch["targets"]
    encoded = text(head.prompts(targets))
    contrast = L.supervised_contrastive_loss
    return {"loss_supcon": head.scale * (contrast(image, encoded, targets) + contrast(encoded, image, targets))}
