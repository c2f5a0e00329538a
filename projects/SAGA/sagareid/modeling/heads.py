"""What the plug-in's heads share: the neck, the identity classifier, the dimensions a head is built for.

B images, D feature width, C identities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures import CLIPFeatures
from .clip import towers
from .clip.text import PROMPT_LENGTH
from .distributed import GlobalBatchNorm1d

__all__ = [
    "ClassifierHead",
    "StoredText",
    "batch_norm_neck",
    "clip_parts",
    "embedding_layer",
    "frozen_text_encoder",
    "head_outputs",
    "identity_classifier",
]


def batch_norm_neck(width: int) -> nn.BatchNorm1d:
    """BNNeck (Luo et al. 2019): batch norm over the whole batch, of all processes, whose bias stays at zero."""
    neck = GlobalBatchNorm1d(width)
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


def embedding_layer(width: int, embedding_dim: int) -> nn.Module:
    """MODEL.HEADS.EMBEDDING_DIM: a linear layer on the pooled feature, or none for 0.

    Of equal widths it starts as the identity, so that training starts from what the pooling gives.
    """
    if not embedding_dim:
        return nn.Identity()
    layer = nn.Linear(width, embedding_dim)
    if embedding_dim == width:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def clip_parts(cfg) -> tuple[int, int] | None:
    """(D, E) of the class token and its projection where the backbone gives them; None for a map of any backbone."""
    if cfg.MODEL.BACKBONE.NAME != "build_clip_vit_backbone" or cfg.MODEL.BACKBONE.OUTPUT != "tokens":
        return None
    return cfg.MODEL.BACKBONE.FEAT_DIM, towers.clip_dims(cfg.MODEL.CLIP.NAME).embed_dim


def head_outputs(logits: Tensor, features: Tensor, losses: dict[str, Tensor] | None = None) -> dict:
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
    dims = towers.clip_dims(name)
    placeholder = torch.zeros(PROMPT_LENGTH, dims.text_width)
    if not cfg.MODEL.CLIP.TEXT_TOWER:
        return None, placeholder, None
    encoder = towers.build_text_encoder(name)
    state = None
    if cfg.MODEL.BACKBONE.PRETRAIN:
        state = towers.read_clip_weights(name, cfg.MODEL.BACKBONE.PRETRAIN_PATH)
        towers.load_text_encoder(encoder, state, name)
    encoder.requires_grad_(False)
    template = towers.template_embedding(state) if state else torch.randn_like(placeholder) * 0.02
    return encoder, template, state


class StoredText:
    """Whether a head holds the text features of the identities that I2TLoss compares with.

    Reading them makes the host wait for the device, so it is done once for each state of the buffer.
    """

    def __init__(self):
        self._seen: tuple[int, int] | None = None

    def check(self, text_features: Tensor) -> None:
        """
        Raises:
            ValueError: none are stored.
        """
        state = text_features.data_ptr(), text_features._version
        if state == self._seen:
            return
        if not bool(text_features.any()):
            raise ValueError(
                "I2TLoss: no text features of the identities. Start from a checkpoint that descends from the prompt stage "
                "(MODEL.WEIGHTS), or leave I2TLoss out of MODEL.LOSSES.NAME"
            )
        self._seen = state


class ClassifierHead(nn.Module):
    """One pooled feature, a BNNeck and one identity classifier; subclasses say how to pool.

    In evaluation a head returns one raw (B, F) tensor, the concatenation of the parts in `feature_layout`. Where the
    backbone gives CLIP's class token and projection, these join as they join SAGAHead's feature, so that heads compare
    by the same rows: "refined" is a head's own feature, "fusion" the three together.
    """

    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        neck_feat: str,
        embedding_dim: int = 0,
        clip_parts: tuple[int, int] | None = None,
    ):
        """
        Args:
            feat_dim: width that `pool` gives.
            embedding_dim: width of a linear layer on top; 0 for none.
            clip_parts: (D, E) of class token and projection, where they join the evaluation feature.
        """
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise ValueError(f"MODEL.HEADS.NECK_FEAT is {neck_feat!r}; expected before or after")
        self.embedding_dim, self.neck_feat, self.clip_parts = embedding_dim or feat_dim, neck_feat, clip_parts
        self.embedding = embedding_layer(feat_dim, embedding_dim)
        self.bottleneck = batch_norm_neck(self.embedding_dim)
        self.classifier = identity_classifier(self.embedding_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "clip_parts": clip_parts(cfg),
        }

    @property
    def feature_layout(self) -> dict[str, int]:
        """Name and width of each part of the evaluation feature, in order."""
        if not self.clip_parts:
            return {"feature": self.embedding_dim}
        return {"refined": self.embedding_dim, "cls": self.clip_parts[0], "proj": self.clip_parts[1]}

    def pool(self, features) -> Tensor:
        """CLIPFeatures or a (B, D, h, w) map to (B, D)."""
        raise NotImplementedError

    def forward(self, features, targets: Tensor | None = None):
        """Training: `head_outputs`. Evaluation: (B, F) of `feature_layout`, its first part before or after the neck."""
        feature = self.embedding(self.pool(features))
        normed = self.bottleneck(feature)
        if self.training:
            return head_outputs(self.classify(normed), feature)
        return self.evaluation_feature(feature if self.neck_feat == "before" else normed, features)

    def classify(self, normed: Tensor) -> Tensor:
        """(B, F) after the neck to (Q, B, C) logits of Q classifiers."""
        return self.classifier(normed)[None]

    def evaluation_feature(self, own: Tensor, features) -> Tensor:
        """The head's own (B, F) feature, with CLIP's where the layout has them."""
        if not self.clip_parts:
            return own
        if not isinstance(features, CLIPFeatures) or features.cls is None or features.proj is None:
            raise TypeError(
                f"{type(self).__name__} was built for CLIP's tokens: use build_clip_vit_backbone with "
                "MODEL.BACKBONE.OUTPUT tokens"
            )
        return torch.cat([own, features.cls.float(), features.proj.float()], dim=1)
