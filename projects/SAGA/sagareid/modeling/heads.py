"""What the plug-in's heads share: the neck, the identity classifier, the dimensions a head is built for.

B images, D feature width, C identities.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn

from . import clip_models, losses
from .text import PROMPT_LENGTH

__all__ = [
    "ClassifierHead",
    "batch_norm_neck",
    "frozen_text_encoder",
    "head_outputs",
    "identity_classifier",
    "image_text_term",
]


def batch_norm_neck(width: int) -> nn.BatchNorm1d:
    """BNNeck (Luo et al. 2019): batch norm whose bias stays at zero."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def identity_classifier(width: int, num_classes: int) -> nn.Linear:
    """Linear classifier without bias, N(0, 0.001)."""
    if num_classes < 1:
        raise ValueError(
            "MODEL.HEADS.NUM_CLASSES is 0: it is counted from the training set, or set it to the checkpoint's"
        )
    classifier = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier


def head_outputs(logits: Tensor, features: Tensor, losses: Optional[dict[str, Tensor]] = None) -> dict:
    """A head's training result: the keys that FastReID's `Baseline.losses` reads, and ours.

    Args:
        logits: (Q, B, C) of Q classifiers; FastReID's own loss sees their mean, ours each of them.
        features: (B, D) for the triplet loss, before the neck.
        losses: further weighted loss terms by log name.
    """
    mean = logits.mean(0)
    return {
        "cls_outputs": mean,
        "pred_class_logits": mean,
        "features": features,
        "logits": logits,
        "losses": losses or {},
    }


def frozen_text_encoder(cfg):
    """CLIP's text tower for a head, frozen, and the weights it came from (None for a random start).

    Returns:
        (TextEncoder or None, template embedding (L, W), state dict or None). Without MODEL.CLIP.TEXT_TOWER no tower is
        built; the embedding is then a placeholder that a checkpoint fills.
    """
    name = cfg.MODEL.CLIP.NAME
    dims = clip_models.clip_dims(name)
    placeholder = torch.zeros(PROMPT_LENGTH, dims.text_width)
    if not cfg.MODEL.CLIP.TEXT_TOWER:
        return None, placeholder, None
    encoder = clip_models.build_text_encoder(name)
    state = None
    if cfg.MODEL.BACKBONE.PRETRAIN:
        state = clip_models.read_clip_weights(name, cfg.MODEL.BACKBONE.PRETRAIN_PATH)
        clip_models.load_text_encoder(encoder, state, name)
    encoder.requires_grad_(False)
    template = clip_models.template_embedding(state) if state else torch.randn_like(placeholder) * 0.02
    return encoder, template, state


def image_text_term(proj: Tensor, text_features: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """I2TLoss against stored text features.

    Raises:
        ValueError: none are stored.
    """
    if not bool(text_features.any()):
        raise ValueError(
            "I2TLoss: no text features of the identities. Start from a checkpoint that descends from the prompt stage "
            "(MODEL.WEIGHTS), or leave I2TLoss out of MODEL.LOSSES.NAME"
        )
    return losses.image_text_loss(proj, text_features, targets, epsilon)


class ClassifierHead(nn.Module):
    """One pooled feature, a BNNeck and one identity classifier; subclasses say how to pool.

    In evaluation a head returns one raw (B, F) tensor, the concatenation of the parts in `feature_layout`.
    """

    def __init__(self, *, feat_dim: int, num_classes: int, neck_feat: str):
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise ValueError(f"MODEL.HEADS.NECK_FEAT is {neck_feat!r}; expected before or after")
        self.feat_dim, self.neck_feat = feat_dim, neck_feat
        self.bottleneck = batch_norm_neck(feat_dim)
        self.classifier = identity_classifier(feat_dim, num_classes)

    @property
    def feature_layout(self) -> dict[str, int]:
        """Name and width of each part of the evaluation feature, in order."""
        return {"feature": self.feat_dim}

    def pool(self, features) -> Tensor:
        """CLIPFeatures or a (B, D, h, w) map to (B, D)."""
        raise NotImplementedError

    def forward(self, features, targets: Optional[Tensor] = None):
        """Training: `head_outputs`. Evaluation: (B, D) raw feature, before or after the neck by NECK_FEAT."""
        pooled = self.pool(features)
        normed = self.bottleneck(pooled)
        if not self.training:
            return pooled if self.neck_feat == "before" else normed
        return head_outputs(self.classifier(normed)[None], pooled)
