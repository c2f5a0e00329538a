"""Heads to compare against: CLIP-ReID's global pooling, and plain pooling of the patch tokens.

B images, N patches, D token width, E joint width, C identities.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import Tensor, nn

from ..structures import CLIPFeatures, as_features
from . import clip_models, losses
from .heads import ClassifierHead, batch_norm_neck, head_outputs, identity_classifier, image_text_term

__all__ = ["CLSHead", "PatchPoolHead"]


@REID_HEADS_REGISTRY.register()
class CLSHead(nn.Module):
    """Global pooling as in CLIP-ReID (Li et al. 2023): the class token, and its projection into the joint space.

    Trains with identity and triplet loss on the class token and, with I2TLoss, with cross-entropy of the projection
    against the text features of all identities. `train_proj` adds CLIP-ReID's identity and triplet losses on the
    projection and a triplet loss on the class token of the token layer.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        embed_dim: int,
        num_classes: int,
        neck_feat: str,
        i2t: Optional[dict] = None,
        train_proj: Optional[dict] = None,
        context_shape: Optional[tuple[int, int]] = None,
    ):
        """
        Args:
            feat_dim: D. embed_dim: E.
            i2t: {"scale", "epsilon"} of the image-to-text loss; None for none.
            train_proj: {"epsilon", "ce_scale", "margin", "tri_scale"}; None for none.
            context_shape: (S, W) of the identity prompts' context, kept for anchors that start from it.
        """
        super().__init__()
        self.feat_dim, self.embed_dim, self.neck_feat = feat_dim, embed_dim, neck_feat
        self.i2t, self.train_proj = i2t, train_proj
        self.bottleneck = batch_norm_neck(feat_dim)
        self.bottleneck_proj = batch_norm_neck(embed_dim)
        self.classifier = identity_classifier(feat_dim, num_classes)
        self.classifier_proj = identity_classifier(embed_dim, num_classes)
        if i2t is not None:
            self.register_buffer("text_features", torch.zeros(num_classes, embed_dim))
            self.register_buffer("prompt_context", torch.zeros(context_shape))

    @classmethod
    def from_config(cls, cfg):
        dims = clip_models.clip_dims(cfg.MODEL.CLIP.NAME)
        loss = cfg.MODEL.LOSSES
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "embed_dim": dims.embed_dim,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
            "i2t": {"scale": loss.I2T.SCALE, "epsilon": loss.I2T.EPSILON} if "I2TLoss" in loss.NAME else None,
            "train_proj": {
                "epsilon": loss.CE.EPSILON,
                "ce_scale": loss.CE.SCALE,
                "margin": loss.TRI.MARGIN,
                "tri_scale": loss.TRI.SCALE,
            }
            if cfg.MODEL.HEADS.TRAIN_PROJ
            else None,
            "context_shape": (cfg.MODEL.PROMPT.NUM_CONTEXT, dims.text_width),
        }

    @property
    def feature_layout(self) -> dict[str, int]:
        return {"cls": self.feat_dim, "proj": self.embed_dim}

    def forward(self, features: CLIPFeatures, targets: Optional[Tensor] = None):
        """Training: `head_outputs`. Evaluation: (B, D+E) raw class token and its projection."""
        if not isinstance(features, CLIPFeatures) or features.cls is None or features.proj is None:
            raise TypeError(
                "CLSHead needs a class token: use build_clip_vit_backbone with MODEL.BACKBONE.OUTPUT tokens"
            )
        features = features.float()
        cls, proj = features.cls, features.proj
        if not self.training:
            if self.neck_feat == "after":
                cls, proj = self.bottleneck(cls), self.bottleneck_proj(proj)
            return torch.cat([cls, proj], dim=1)
        terms = {}
        normed_proj = self.bottleneck_proj(proj)  # its statistics serve NECK_FEAT after, whatever is trained
        if self.train_proj:
            p = self.train_proj
            proj_logits = self.classifier_proj(normed_proj)
            terms["loss_cls_proj"] = p["ce_scale"] * losses.identity_loss(proj_logits, targets, p["epsilon"])
            for name, feature in (("proj", proj), ("layer", features.layer_cls[:, -1])):
                triplet = losses.batch_hard_triplet_loss(feature, targets, p["margin"])
                terms[f"loss_triplet_{name}"] = p["tri_scale"] * triplet
        if self.i2t:
            i2t = image_text_term(proj, self.text_features, targets, self.i2t["epsilon"])
            terms["loss_i2t"] = self.i2t["scale"] * i2t
        return head_outputs(self.classifier(self.bottleneck(cls))[None], cls, terms)


@REID_HEADS_REGISTRY.register()
class PatchPoolHead(ClassifierHead):
    """Patch tokens pooled without anchors: their mean, their maximum, or their generalised mean (GeM)."""

    POOLS = ("mean", "max", "gem")

    @configurable
    def __init__(self, *, pool_type: str, **kwargs):
        super().__init__(**kwargs)
        if pool_type not in self.POOLS:
            raise ValueError(f"MODEL.HEADS.PATCH_POOL is {pool_type!r}; expected one of {', '.join(self.POOLS)}")
        self.pool_type = pool_type
        if pool_type == "gem":
            self.power = nn.Parameter(torch.full((1,), 3.0))

    @classmethod
    def from_config(cls, cfg):
        return {
            "pool_type": cfg.MODEL.HEADS.PATCH_POOL,
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
        }

    def pool(self, features) -> Tensor:
        patches = as_features(features).float().patches
        if self.pool_type == "mean":
            return patches.mean(1)
        if self.pool_type == "max":
            return patches.amax(1)
        # GeM (Radenovic et al. 2018) is defined for non-negative activations; tokens are signed
        return F.softplus(patches).pow(self.power).mean(1).pow(1.0 / self.power)
