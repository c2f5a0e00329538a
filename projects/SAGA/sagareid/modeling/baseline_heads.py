"""Heads to compare against: CLIP-ReID's global pooling, and other ways to make one feature of the patch tokens.

Each reads the tokens of the deepest token layer alone. B images, N patches, D token width, E joint width, F width of
the pooled feature, S stripes, C identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from ..config import tower_gives, tower_widths
from ..structures import CLIPFeatures, as_features
from ..values import needs_cached, one_of, within
from . import fast
from .clip import towers
from .context import ContextGate
from .fast.blocks import block_at_row
from .heads import (
    OF_HIDDEN,
    ClassifierHead,
    batch_norm_neck,
    embedding_layer,
    head_outputs,
    hidden_outputs,
    identity_classifier,
    needs_of_tower,
)
from .last_modules import LastModules
from .terms import CrossEntropyLoss, TripletLoss

__all__ = ["AttentionPoolHead", "CLSHead", "LastBlockHead", "PartStripesHead", "PatchPoolHead", "SequentialHead"]


@REID_HEADS_REGISTRY.register()
class CLSHead(nn.Module):
    """Global pooling as in CLIP-ReID (Li et al. 2023): the class token, and its projection into the joint space where
    the tower has one; of a tower without a class token, what it pools for itself.

    Trains with identity and triplet loss on the class token and, with I2TLoss, with cross-entropy of the projection
    against the text features of all identities. MODEL.HEADS.TRAIN_PROJ adds CLIP-ReID's identity and triplet losses on
    the projection and a triplet loss on the class token of the token layer, or on the mean of its patches where a tower
    has none, as for CLIP-ReID's ResNet.

    With `embedding_dim`, identity and triplet loss train a linear layer on the class token ("refined" in evaluation):
    what global pooling can learn on a frozen tower.
    """

    gives = ("logits", "features", "proj", "text_features", *OF_HIDDEN)

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        embed_dim: int,
        num_classes: int,
        neck_feat: str,
        embedding_dim: int = 0,
        proj_terms: tuple[CrossEntropyLoss, TripletLoss] | None = None,
        context_shape: tuple[int, int] | None = None,
    ):
        """
        Args:
            feat_dim: C. embed_dim: E; 0 where the tower has no projection. embedding_dim: F; 0 for no linear layer.
            proj_terms: the losses of TRAIN_PROJ; None for none.
            context_shape: (S, W) of the identity prompts' context, where text features are kept for I2TLoss and the
                mean context for anchors that start from it; None for neither.
        """
        super().__init__()
        self.feat_dim, self.embed_dim, self.neck_feat = feat_dim, embed_dim, neck_feat
        self.embedding_dim, self.proj_terms = embedding_dim, proj_terms
        self.embedding = embedding_layer(feat_dim, embedding_dim)
        self.bottleneck = batch_norm_neck(embedding_dim or feat_dim)
        if embed_dim:
            self.bottleneck_proj = batch_norm_neck(embed_dim)
        self.classifier = identity_classifier(embedding_dim or feat_dim, num_classes)
        if embed_dim:
            self.classifier_proj = identity_classifier(embed_dim, num_classes)
        if embed_dim and not proj_terms:  # kept for their statistics and for checkpoints; no loss reaches them
            self.bottleneck_proj.requires_grad_(False)
            self.classifier_proj.requires_grad_(False)
        self.keeps_text = context_shape is not None
        if self.keeps_text:
            self.register_buffer("text_features", torch.zeros(num_classes, embed_dim))
            self.register_buffer("prompt_context", torch.zeros(context_shape))

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # CLSHead: also CLIP-ReID's identity and triplet losses on the projection and on the token layer's class token.
        cfg.MODEL.HEADS.TRAIN_PROJ = False

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from needs_of_tower(cls, cfg, "cls")
        if cfg.MODEL.HEADS.TRAIN_PROJ:
            yield from needs_of_tower(cls, cfg, "proj", why=" with MODEL.HEADS.TRAIN_PROJ")
        read = ["cls", *(name for name in tower_gives(cfg) if name == "proj")]
        yield from needs_cached(cls, cfg, *read, *(["layer_cls"] if cfg.MODEL.HEADS.TRAIN_PROJ else []))

    @staticmethod
    def feature_parts(cfg: CfgNode) -> list[str]:
        return (["refined"] if cfg.MODEL.HEADS.EMBEDDING_DIM else []) + list(tower_gives(cfg))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        dims, keys, widths = towers.clip_dims(cfg.MODEL.CLIP.NAME), cfg.MODEL.HEADS, tower_widths(cfg)
        for problem in needs_of_tower(cls, cfg, "cls"):
            raise ValueError(problem)
        return {
            "feat_dim": widths["cls"],
            "embed_dim": widths.get("proj", 0),
            "num_classes": keys.NUM_CLASSES,
            "neck_feat": keys.NECK_FEAT,
            "embedding_dim": keys.EMBEDDING_DIM,
            "proj_terms": (CrossEntropyLoss.from_config(cfg), TripletLoss.from_config(cfg))
            if keys.TRAIN_PROJ
            else None,
            "context_shape": (cfg.MODEL.PROMPT.NUM_CONTEXT, dims.text_width)
            if "I2TLoss" in cfg.MODEL.LOSSES.NAME
            else None,
        }

    @property
    def learns_from(self) -> set[str]:
        """Outputs of the backbone that the head's result and its own losses depend on."""
        return {"cls", "proj", "layer_cls"} if self.proj_terms else {"cls"}

    @property
    def feature_layout(self) -> dict[str, int]:
        own = {"refined": self.embedding_dim} if self.embedding_dim else {}
        return own | {"cls": self.feat_dim} | ({"proj": self.embed_dim} if self.embed_dim else {})

    def forward(self, features: CLIPFeatures, targets: Tensor | None = None):
        """Training: `head_outputs`. Evaluation: (B, F+C+E) raw embedding (if any), class token and its projection (if
        any)."""
        if not isinstance(features, CLIPFeatures) or features.cls is None or (self.embed_dim and features.proj is None):
            raise TypeError(
                "CLSHead needs the class token of the tower that it was built with: MODEL.BACKBONE.OUTPUT tokens"
            )
        features = features.float()
        cls, proj = features.cls, features.proj
        feature = self.embedding(cls)
        if not self.training:
            if self.neck_feat == "after":
                feature = self.bottleneck(feature)
                proj = self.bottleneck_proj(proj) if self.embed_dim else None
            out = [feature, *([cls] if self.embedding_dim else []), *([proj] if self.embed_dim else [])]
            return torch.cat(out, dim=1)
        own = {}
        if self.embed_dim:
            normed_proj = self.bottleneck_proj(proj)  # its statistics serve NECK_FEAT after, whatever is trained
        if self.proj_terms:
            identity, triplet = self.proj_terms
            own["loss_cls_proj"] = identity.scale * identity(targets, logits=self.classifier_proj(normed_proj)[None])
            own["loss_triplet_proj"] = triplet.scale * triplet(targets, features=proj)
            layer = _patches(features).mean(1) if features.layer_cls is None else features.layer_cls[:, -1]
            own["loss_triplet_layer"] = triplet.scale * triplet(targets, features=layer)
        given = {"proj": proj, "text_features": self.text_features} if self.keeps_text else {}
        given |= hidden_outputs(features, lambda whole: (self.embedding(whole.float().cls), None))
        return head_outputs(self.classifier(self.bottleneck(feature))[None], feature, losses=own, **given)


def _is_vit(cfg: CfgNode) -> bool:
    """Whether CLIP's image tower is a ViT of open_clip's; true where there is no such model, which others say."""
    try:
        return towers.clip_dims(cfg.MODEL.CLIP.NAME).kind == "vit"
    except ValueError:
        return True


def _patches(features) -> Tensor:
    """(B, N, D) patch tokens of the deepest token layer, or of a map, in float32."""
    features = as_features(features)
    return features.patches.chunk(features.num_layers, dim=1)[-1].float()


class PatchHead(ClassifierHead):
    """A head whose losses reach the patch tokens alone."""

    learns_from = frozenset({"patches"})

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from needs_cached(cls, cfg, "patches")


@REID_HEADS_REGISTRY.register()
class PatchPoolHead(PatchHead):
    """Patch tokens pooled without anchors: their mean, their maximum, or their generalised mean (GeM).

    With MODEL.BACKBONE.LAST_MODULES a trained copy of the backbone's end comes first, which is what a head's own
    layers are to be held against on a frozen convolutional backbone, as `LastBlockHead` is on CLIP's.
    """

    POOLS = ("mean", "max", "gem")

    @configurable
    def __init__(self, *, pool_type: str, last_modules: LastModules | None = None, **kwargs):
        """last_modules: applied to the map before it is pooled."""
        super().__init__(**kwargs)
        if last_modules is not None:
            self.last_modules = last_modules
        if pool_type not in self.POOLS:
            raise ValueError(f"MODEL.HEADS.PATCH_POOL is {pool_type!r}; expected one of {', '.join(self.POOLS)}")
        self.pool_type = pool_type
        if pool_type == "gem":
            self.power = nn.Parameter(torch.full((1,), 3.0))

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # PatchPoolHead: mean, max or gem over the patch tokens.
        cfg.MODEL.HEADS.PATCH_POOL = "mean"

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from super().check(cfg)
        yield from one_of(cfg, "MODEL.HEADS.PATCH_POOL", cls.POOLS)

    @classmethod
    def from_config(cls, cfg):
        own = {"pool_type": cfg.MODEL.HEADS.PATCH_POOL, "last_modules": LastModules.from_config(cfg)}
        return super().from_config(cfg) | own

    def initialize(self, backbone: nn.Module, source: dict[str, Tensor]) -> None:
        """Start the copy of the backbone's end, where there is one."""
        if hasattr(self, "last_modules"):
            self.last_modules.initialize(backbone)

    def pool(self, features) -> Tensor:
        patches = _patches(features)
        if hasattr(self, "last_modules"):
            grid = as_features(features).grid
            patches = self.last_modules(patches.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        if self.pool_type == "mean":
            return patches.mean(1)
        if self.pool_type == "max":
            return patches.amax(1)
        # GeM (Radenovic et al. 2018) is defined for non-negative activations; tokens are signed
        return F.softplus(patches).pow(self.power).mean(1).pow(1.0 / self.power)


@REID_HEADS_REGISTRY.register()
class AttentionPoolHead(PatchHead):
    """One learned query attends to the patch tokens: open_clip's attentional pooler (CoCa, Yu et al. 2022), with the
    number of attention heads that open_clip gives it. A `ContextGate` multiplies its attention."""

    gives = (*PatchHead.gives, "token_weights", "whole_weights")
    NUM_HEADS = 8

    @configurable
    def __init__(self, *, context: ContextGate | None = None, **kwargs):
        """context: a gate on the attention; None for none."""
        super().__init__(**kwargs)
        width = kwargs["feat_dim"]
        if width % self.NUM_HEADS:
            raise ValueError(
                f"AttentionPoolHead has {self.NUM_HEADS} attention heads, which do not divide the token width {width}"
            )
        self.pooler = open_clip.transformer.AttentionalPooler(width, width, n_head=self.NUM_HEADS, n_queries=1)
        self.context = context

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # SAGAHead, AttentionPoolHead: trained copies of this many blocks of the CLIP tower, those after the token
        # layer, in which patches see one another, make a gate of 0 to 1 on the pooling weights (not of the paper;
        # docs/training_occluders.md). 0, as published: no gate.
        cfg.MODEL.HEADS.CONTEXT_BLOCKS = 0

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from super().check(cfg)
        yield from ContextGate.check(cls, cfg)
        width = cfg.MODEL.BACKBONE.FEAT_DIM
        if width % cls.NUM_HEADS:
            yield (
                f"MODEL.BACKBONE.FEAT_DIM is {width}, which the {cls.NUM_HEADS} attention heads of AttentionPoolHead "
                "do not divide"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(cfg) | {"context": ContextGate.from_config(cfg)}

    @property
    def learns_from(self) -> frozenset[str]:
        """Outputs of the backbone that the head's result depends on."""
        return frozenset({"patches"} if self.context is None else {"patches", "layer_cls"})

    def initialize(self, backbone: nn.Module, source: dict[str, Tensor]) -> None:
        """Start the gate from the tower's own blocks."""
        if self.context is not None:
            self.context.initialize(backbone)

    def pool(self, features) -> Tensor:
        return self.attend(features)[0] if self.context is not None else self.pooler(_patches(features))[:, 0]

    def attend(self, features) -> tuple[Tensor, Tensor]:
        """(B, D) pooled feature, and (B, N) attention of the query to each patch, mean over attention heads, sum over
        token layers; 1 in sum."""
        features = as_features(features)
        patches = self.pooler.ln_k(_patches(features))
        query = self.pooler.ln_q(self.pooler.query)[None].expand(len(patches), -1, -1)
        mask = None
        if self.context is not None:  # e^(logit + log g) = g e^logit
            mask = self.context(features).clamp(min=1e-6).log()[:, None].repeat_interleave(self.NUM_HEADS, 0)
        pooled, weights = self.pooler.attn(query, patches, patches, need_weights=True, attn_mask=mask)
        return pooled[:, 0], weights[:, 0].unflatten(1, (features.num_layers, -1)).sum(1)

    def token_weights(self, features) -> Tensor:
        """(B, N) how much each patch counts, see `attend`."""
        return self.attend(features)[1]

    def hidden_outputs(self, features) -> dict[str, Any]:
        def pooled(whole: CLIPFeatures) -> tuple[Tensor, Tensor]:
            feature, weights = self.attend(whole)
            return self.embedding(feature), weights

        return hidden_outputs(features, pooled, lambda: self.token_weights(features))


@REID_HEADS_REGISTRY.register()
class PartStripesHead(PatchHead):
    """S horizontal stripes of the patch grid, each with its own linear reduction, neck and classifier (PCB, Sun et al.
    2018).

    The feature of an image is its stripes' features side by side; the triplet loss reads that, too.
    """

    @configurable
    def __init__(self, *, num_stripes: int, embedding_dim: int, **kwargs):
        """embedding_dim: F of the image; a stripe has F / S. 0: a stripe keeps the width of a token."""
        width = kwargs["feat_dim"]
        if num_stripes < 1 or embedding_dim % num_stripes:
            raise ValueError(
                f"MODEL.HEADS.EMBEDDING_DIM {embedding_dim} must be a multiple of MODEL.HEADS.NUM_STRIPES "
                f"{num_stripes}, of which there is one or more"
            )
        stripe = embedding_dim // num_stripes or width
        super().__init__(**kwargs | {"feat_dim": num_stripes * stripe})
        self.num_stripes = num_stripes
        self.reduction = nn.ModuleList(nn.Linear(width, stripe) for _ in range(num_stripes))
        self.classifier = nn.ModuleList(identity_classifier(stripe, kwargs["num_classes"]) for _ in range(num_stripes))

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # PartStripesHead: stripes of the patch grid, which share EMBEDDING_DIM.
        cfg.MODEL.HEADS.NUM_STRIPES = 6

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from super().check(cfg)
        yield from within(cfg, "MODEL.HEADS.NUM_STRIPES", 1)
        stripes, width = cfg.MODEL.HEADS.NUM_STRIPES, cfg.MODEL.HEADS.EMBEDDING_DIM
        if stripes > 0 and width % stripes:
            yield f"MODEL.HEADS.EMBEDDING_DIM {width} must be a multiple of MODEL.HEADS.NUM_STRIPES {stripes}"

    @classmethod
    def from_config(cls, cfg):
        return super().from_config(cfg) | {"num_stripes": cfg.MODEL.HEADS.NUM_STRIPES}

    def pool(self, features) -> Tensor:
        grid = as_features(features).grid
        if grid[0] < self.num_stripes:
            raise ValueError(
                f"MODEL.HEADS.NUM_STRIPES is {self.num_stripes}, the patch grid has {grid[0]} rows; lower it"
            )
        patches = _patches(features).transpose(1, 2).unflatten(2, grid)
        stripes = F.adaptive_avg_pool2d(patches, (self.num_stripes, 1))[..., 0].unbind(2)
        return torch.cat([reduce(stripe) for reduce, stripe in zip(self.reduction, stripes)], dim=1)

    def classify(self, normed: Tensor) -> Tensor:
        """(B, S*F/S) after the neck, whose statistics are each channel's own, to (S, B, C)."""
        stripes = normed.chunk(self.num_stripes, dim=1)
        return torch.stack([classifier(stripe) for classifier, stripe in zip(self.classifier, stripes)])


@REID_HEADS_REGISTRY.register()
class SequentialHead(PatchHead):
    """A recurrent scan over the patches, row by row, in both directions: x + GRU(LN(x)), then the mean over the
    patches."""

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        width = kwargs["feat_dim"]
        if width % 2:
            raise ValueError(f"SequentialHead halves the token width between two directions; {width} is odd")
        self.norm = nn.LayerNorm(width)
        self.scan = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def pool(self, features) -> Tensor:
        patches = _patches(features)
        return (patches + self.scan(self.norm(patches))[0]).mean(1)


@REID_HEADS_REGISTRY.register()
class LastBlockHead(ClassifierHead):
    """CLIP's own way from the token layer to its class token, trained: a copy of the blocks after it and of ln_post.

    The control of equal capacity: a block has as many parameters as a refinement layer, and pools globally instead of
    by anchors. MODEL.CLIP.TOKEN_LAYERS says how many blocks come after. It starts out as the tower's class token,
    exactly.
    """

    learns_from = frozenset({"patches", "layer_cls"})

    @configurable
    def __init__(self, *, blocks: nn.ModuleList, norm: nn.Module, **kwargs):
        """blocks, norm: of an image tower; their weights are taken from the backbone by `initialize`."""
        super().__init__(**kwargs)
        self.blocks, self.norm = blocks, norm

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from needs_of_tower(cls, cfg, "proj")  # CLIP's blocks come with it
        if "proj" in tower_gives(cfg) and not _is_vit(cfg):
            yield f"LastBlockHead copies blocks of a ViT of open_clip's, and MODEL.CLIP.NAME is {cfg.MODEL.CLIP.NAME}"
        yield from needs_cached(cls, cfg, "patches", "layer_cls")

    @classmethod
    def from_config(cls, cfg):
        name = cfg.MODEL.CLIP.NAME
        after = towers.clip_dims(name).layers - max(cfg.MODEL.CLIP.TOKEN_LAYERS)
        if after < 1:
            raise ValueError(
                f"LastBlockHead: no block of {name} comes after MODEL.CLIP.TOKEN_LAYERS {cfg.MODEL.CLIP.TOKEN_LAYERS}; "
                "name an earlier layer"
            )
        blocks, norm = towers.build_last_blocks(name, after)
        return super().from_config(cfg) | {"blocks": blocks, "norm": norm}

    @torch.no_grad()
    def initialize(self, backbone: nn.Module, source: dict[str, Tensor]) -> None:
        """Start from the tower's own blocks after the token layer, and its ln_post."""
        first = backbone.depth - len(self.blocks) + 1
        for number, block in enumerate(self.blocks, start=first):
            block.load_state_dict(backbone.block(number).state_dict())
        self.norm.load_state_dict(backbone.visual.ln_post.state_dict())

    def pool(self, features) -> Tensor:
        if features.layer_cls is None:
            raise TypeError("LastBlockHead reads the class token of the token layer: add layer_cls to CACHE.FIELDS")
        x = torch.cat([features.layer_cls[:, -1:].float(), _patches(features)], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.norm(block_at_row(last, x, 0) if fast.enabled("one_row") else last(x)[:, 0])
