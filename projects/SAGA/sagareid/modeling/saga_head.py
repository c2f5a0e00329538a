"""The SAGA head: patch tokens rebuilt from anchors and pooled by how strongly an anchor claims each of them.

B images, N patches of one token layer, P token layers, D token width, E joint width, K text anchors, M domain anchors,
Q classifiers, C identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastreid.config import configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from ..structures import CLIPFeatures, as_features
from . import anchors as A
from . import losses
from .clip import towers
from .clip.text import TextEncoder
from .distributed import gather_batch
from .fast import refinement as faster
from .heads import (
    StoredText,
    batch_norm_neck,
    clip_parts,
    frozen_text_encoder,
    head_outputs,
    identity_classifier,
)
from .pooling import AnchorPool, MeanPool, anchor_features
from .refinement import SemanticRefinement

__all__ = ["Refined", "SAGAHead"]


@dataclass
class Refined:
    """What the head computes of an image.

    Attributes:
        feature: (B, F) pooled feature, before the neck.
        tokens: (B, N, D) refined patches of each token layer; empty where they were not kept.
        attention: (B, N, K_p+M_p) attention of the last refinement layer of each token layer, mean over heads.
        weights: (B, N) pooling weights of each token layer; those of an image sum to 1.
        text_anchors: (K, D).
        domain_anchors: (B, M, D), or None.
    """

    feature: Tensor
    tokens: list[Tensor]
    attention: list[Tensor]
    weights: list[Tensor]
    text_anchors: Tensor
    domain_anchors: Tensor | None

    def anchor_maps(self, grid: tuple[int, int]) -> Tensor:
        """(B, K, h, w) attention of each text anchor over the patch grid; with two token layers each half's own layer."""
        own = len(self.text_anchors) // len(self.attention)
        maps = torch.cat([attended[:, :, :own] for attended in self.attention], dim=2)
        return maps.transpose(1, 2).unflatten(2, grid)


@REID_HEADS_REGISTRY.register()
class SAGAHead(nn.Module):
    """Semantic refinement by anchors, anchor pooling, BNNeck and Q identity classifiers.

    With two token layers ("two-path"), the first is refined by the first half of the text anchors, the second by the
    other half and the domain anchors; the pooled features add up.

    It takes CLIPFeatures or any (B, D, h, w) map, so it also runs behind FastReID's own backbones.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        text_anchors: nn.Module,
        text_encoder: TextEncoder | None,
        domain_anchors: nn.Module | None,
        num_anchors: int,
        num_layers: int,
        refine_layers: int,
        num_heads: int,
        dropout: float,
        init_block: int,
        embedding_dim: int,
        num_classifiers: int,
        classifier_dropout: float,
        pool: str,
        neck_feat: str,
        clip_parts: tuple[int, int] | None,
        parts: int,
        loss_weights: dict[str, dict],
    ):
        """
        Args:
            feat_dim: D. num_anchors: K. num_layers: P, 1 or 2.
            text_anchors: TextAnchors or FreeAnchors.
            text_encoder: None for FreeAnchors, and for models that only evaluate with stored anchors.
            init_block: 1-based image block that refinement starts from; 0 for the deepest token layer.
            embedding_dim: F; 0 for D without a projection.
            pool: "anchor" or "mean".
            clip_parts: (D, E) where the backbone gives class token and projection: they join the evaluation feature.
            parts: anchors kept in the evaluation part "parts"; 0 for none.
            loss_weights: by loss name, of the terms that this head computes itself.
        """
        super().__init__()
        if pool not in ("anchor", "mean"):
            raise ValueError(f"MODEL.SAGA.POOL is {pool!r}; expected anchor or mean")
        if num_layers not in (1, 2):
            raise ValueError(f"SAGAHead reads one token layer or two, not {num_layers}: set MODEL.CLIP.TOKEN_LAYERS")
        if num_layers == 2 and num_anchors % 2:
            raise ValueError(
                f"MODEL.SAGA.NUM_ANCHORS {num_anchors} must be even: two token layers share them by halves"
            )
        self.feat_dim, self.num_anchors, self.num_layers = feat_dim, num_anchors, num_layers
        self.neck_feat, self.clip_parts, self.parts = neck_feat, clip_parts, parts
        self.init_block, self.loss_weights = init_block, loss_weights
        self.text_anchors, self.text_encoder, self.domain_anchors = text_anchors, text_encoder, domain_anchors
        self.refine = nn.ModuleList(
            SemanticRefinement(embed_dim=feat_dim, num_heads=num_heads, num_layers=refine_layers, dropout=dropout)
            for _ in range(num_layers)
        )
        self.anchor_pool = AnchorPool() if pool == "anchor" else MeanPool()
        self.proj = nn.Linear(feat_dim, embedding_dim) if embedding_dim not in (0, feat_dim) else nn.Identity()
        self.embedding_dim = embedding_dim or feat_dim
        self.bottleneck = batch_norm_neck(self.embedding_dim)
        self.classifiers = nn.ModuleList(
            identity_classifier(self.embedding_dim, num_classes) for _ in range(num_classifiers)
        )
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        if clip_parts:  # of the identity prompts, handed on for a later stage that trains the image tower with I2TLoss
            self.register_buffer("text_features", torch.zeros(num_classes, clip_parts[1]))
            self._stored_text = StoredText()
        self._anchors_of: tuple | None = None
        self.register_state_dict_pre_hook(lambda module, prefix, keep_vars: module.refresh_anchors())

    @classmethod
    def from_config(cls, cfg):
        saga, loss = cfg.MODEL.SAGA, cfg.MODEL.LOSSES
        feat_dim, K, M = cfg.MODEL.BACKBONE.FEAT_DIM, saga.NUM_ANCHORS, saga.NUM_DOMAIN_ANCHORS
        dims = towers.clip_dims(cfg.MODEL.CLIP.NAME)
        parts = clip_parts(cfg)

        encoder = None
        if saga.FREE_ANCHORS:
            text_anchors = A.FreeAnchors(num_anchors=K, embed_dim=feat_dim)
        else:
            encoder, template, state = frozen_text_encoder(cfg)
            text_anchors = A.TextAnchors(
                template_embedding=template,
                num_anchors=K,
                phrase_slots=saga.PHRASE_CONTEXT,
                text_dim=dims.embed_dim,
                embed_dim=feat_dim,
            )
            if encoder is not None:
                phrases = towers.anchor_phrase_embeddings(state) if state else [torch.randn(8, dims.text_width) * 0.02]
                text_anchors.initialize(phrases)

        domain = None
        if M:
            common = {"num_anchors": M, "embed_dim": feat_dim}
            kinds = {
                "content": lambda: A.ContentDomainAnchors(**common),
                "camera": lambda: A.CameraDomainAnchors(**common, num_cameras=len(cfg.MODEL.CLIP.CAMERAS)),
                "clip": lambda: A.ClipDomainAnchors(**common, clip_dim=dims.embed_dim),
            }
            domain = kinds[saga.DOMAIN_ANCHORS]()

        weights = {
            "AnchorDiversityLoss": {"scale": loss.ANCHOR_DIVERSITY.SCALE},
            "ClassifierDiversityLoss": {"scale": loss.CLASSIFIER_DIVERSITY.SCALE},
            "AnchorConsistencyLoss": {"scale": loss.ANCHOR_CONSISTENCY.SCALE, "margin": loss.ANCHOR_CONSISTENCY.MARGIN},
            "DecorrelationLoss": {"scale": loss.DECORRELATION.SCALE},
            "I2TLoss": {"scale": loss.I2T.SCALE, "epsilon": loss.I2T.EPSILON},
        }
        return {
            "feat_dim": feat_dim,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "text_anchors": text_anchors,
            "text_encoder": encoder,
            "domain_anchors": domain,
            "num_anchors": K,
            "num_layers": len(cfg.MODEL.CLIP.TOKEN_LAYERS) if parts else 1,
            "refine_layers": saga.REFINE_LAYERS,
            "num_heads": saga.NUM_HEADS,
            "dropout": saga.DROPOUT,
            "init_block": saga.INIT_BLOCK,
            "embedding_dim": saga.EMBEDDING_DIM,
            "num_classifiers": saga.NUM_CLASSIFIERS,
            "classifier_dropout": saga.CLASSIFIER_DROPOUT,
            "pool": saga.POOL,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
            "clip_parts": parts,
            "parts": cfg.TEST.PARTS,
            "loss_weights": {
                name: w
                for name, w in weights.items()
                if name in loss.NAME and (name != "ClassifierDiversityLoss" or saga.NUM_CLASSIFIERS > 1)
            },
        }

    @property
    def learns_from(self) -> set[str]:
        """Outputs of the backbone that the losses reach."""
        clip = isinstance(self.domain_anchors, A.ClipDomainAnchors)
        return {"patches"} | ({"proj"} if clip or "I2TLoss" in self.loss_weights else set())

    @property
    def feature_layout(self) -> dict[str, int]:
        layout = {"refined": self.embedding_dim}
        if self.clip_parts:
            layout |= {"cls": self.clip_parts[0], "proj": self.clip_parts[1]}
        if self.parts:
            layout["parts"] = self.num_anchors * self.embedding_dim
        return layout

    @torch.no_grad()
    def initialize(self, backbone: nn.Module, source: dict[str, Tensor]) -> None:
        """Start what has no weights yet from the image tower: each refinement layer from one of its blocks.

        Anchors without phrase slots start from the mean identity prompt where the run that this one starts from has it.

        The text features of the identities are taken over too.

        Args:
            backbone: the image tower after its weights are in; one without CLIP blocks leaves the random start.
            source: state dict of the checkpoint that this run starts from; empty for none.
        """
        if hasattr(backbone, "block"):
            for refine in self.refine:
                refine.initialize(backbone.block(self.init_block or backbone.token_layers[-1]))
        text = source.get("heads.text_features")
        if self.clip_parts and text is not None and text.shape == self.text_features.shape:
            self.text_features.copy_(text)
        context = source.get("heads.prompt_context")
        if isinstance(self.text_anchors, A.TextAnchors) and not self.text_anchors.context_phrase.shape[1]:
            if context is not None:
                self.text_anchors.initialize_from_prompts(context[None])

    @property
    def anchor_names(self) -> list[str]:
        """K names: the phrase that a text anchor started from, "anchor <k>" for those that started from none."""
        if isinstance(self.text_anchors, A.TextAnchors) and self.text_anchors.context_phrase.shape[1]:
            phrases = towers.anchor_phrases()
            return [phrases[k % len(phrases)] for k in range(self.num_anchors)]
        return [f"anchor {k + 1}" for k in range(self.num_anchors)]

    # ---- anchors ---------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> SAGAHead:
        """Switch mode. Anchors stored so far count as stale: version counters miss what an optimizer does to `p.data`."""
        self._anchors_of = None
        return super().train(mode)

    def refresh_anchors(self) -> None:
        """Store the anchors of the present weights; does nothing where they are stored already or need no text tower."""
        if self.text_encoder is None:
            return
        modules = (self.text_anchors, self.text_encoder)
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t is not self.text_anchors.anchors]
        of = tuple((id(t), t._version) for t in tensors)
        if self.training or of != self._anchors_of:
            self.text_anchors.refresh(self.text_encoder)
            self._anchors_of = of

    def _text_anchors(self) -> Tensor:
        """(K, D): computed with gradient where they train, stored otherwise."""
        if isinstance(self.text_anchors, A.FreeAnchors):
            return self.text_anchors.anchors
        if self.training and any(p.requires_grad for p in self.text_anchors.parameters()):
            if self.text_encoder is None:
                raise ValueError("SAGAHead trains its text anchors with the text tower: set MODEL.CLIP.TEXT_TOWER True")
            return self.text_anchors.compute(self.text_encoder)
        if not torch.compiler.is_compiling():
            self.refresh_anchors()
        return self.text_anchors.anchors

    # ---- forward ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """What `forward` needs and a compiled step cannot do, called in front of each of either.

        Raises:
            ValueError: I2TLoss without text features.
        """
        if not self.training:
            self.refresh_anchors()
        elif "I2TLoss" in self.loss_weights:
            self._stored_text.check(self.text_features)

    def refine_and_pool(self, features: CLIPFeatures, keep_tokens: bool = True) -> Refined:
        """The method itself, from patch tokens to the pooled feature.

        Args:
            keep_tokens: False lets evaluation pool before it makes the refined patches; `Refined.tokens` may then be empty.
        """
        if features.num_layers != self.num_layers:
            raise ValueError(
                f"SAGAHead was built for {self.num_layers} token layer(s), the features hold {features.num_layers}"
            )
        text = self._text_anchors()
        paths = features.patches.chunk(self.num_layers, dim=1)
        domain = None
        if self.domain_anchors is not None:
            domain = self.domain_anchors(paths[-1], camids=features.camids, proj=features.proj, text_anchors=text)
        tokens, attention, weights, pooled = [], [], [], 0
        for p, (patches, own_text, refine) in enumerate(zip(paths, text.chunk(self.num_layers), self.refine)):
            own = domain if p == self.num_layers - 1 else None
            if not keep_tokens and faster.pools_early(refine, self.anchor_pool):
                feature, weight, attended = faster.refine_and_pool(refine, self.anchor_pool, patches, own_text, own)
            else:
                refined, attended = refine(patches, own_text, own)
                feature, weight = self.anchor_pool(refined, attended)
                tokens.append(refined)
            pooled = pooled + feature
            attention.append(attended), weights.append(weight)
        return Refined(self.proj(pooled), tokens, attention, weights, text, domain)

    def part_features(self, refined: Refined) -> tuple[Tensor, Tensor]:
        """(B, K, F) unit-length feature and (B, K) mass of each text anchor; one token layer only."""
        if self.num_layers != 1:
            raise ValueError(
                "per-anchor features are not defined for two token layers (AnchorConsistencyLoss, TEST.PARTS)"
            )
        parts, mass = anchor_features(refined.tokens[0], refined.attention[0][:, :, : self.num_anchors])
        return nn.functional.normalize(self.proj(parts), dim=2), mass

    def token_weights(self, features) -> Tensor:
        """(B, N) how much each patch counts in the pooled feature, an image's summing to 1; mean over token layers.

        The optional method of a head by which the occlusion study asks what it looks at.
        """
        return torch.stack(self.refine_and_pool(as_features(features).float()).weights).mean(0)

    def forward(self, features, targets: Tensor | None = None):
        """
        Args:
            features: CLIPFeatures or a (B, D, h, w) map.

        Returns:
            In training `head_outputs` with (Q, B, C) logits; in evaluation the (B, F_all) raw concatenation of the pooled
            feature, before or after the neck by NECK_FEAT, and what `feature_layout` names beside it.
        """
        if self.training and not torch.compiler.is_compiling():
            self.prepare()
        features = as_features(features).float()
        refined = self.refine_and_pool(features, keep_tokens=self.training or bool(self.parts))
        if self.training:
            feature, normed = refined.feature, self.bottleneck(refined.feature)
            logits = torch.stack([classifier(self.classifier_dropout(normed)) for classifier in self.classifiers])
            return head_outputs(logits, feature, self._losses(refined, features, targets))
        return self.evaluation_feature(features, refined)

    def evaluation_feature(self, features: CLIPFeatures, refined: Refined) -> Tensor:
        """(B, F_all) what `forward` returns in evaluation, from what `refine_and_pool` made of the features."""
        out = [refined.feature if self.neck_feat == "before" else self.bottleneck(refined.feature)]
        if self.clip_parts:
            out += [features.cls, features.proj]
        if self.parts:
            parts, mass = self.part_features(refined)
            weakest = mass.topk(min(self.parts, self.num_anchors), dim=1).values[:, -1:]
            out.append((parts * (mass >= weakest)[:, :, None]).flatten(1))
        return torch.cat(out, dim=1)

    def _losses(self, refined: Refined, features: CLIPFeatures, targets: Tensor) -> dict[str, Tensor]:
        def classifier_diversity():
            return losses.classifier_diversity_loss([c.weight for c in self.classifiers])

        def anchor_consistency():
            margin = self.loss_weights["AnchorConsistencyLoss"]["margin"]
            parts, mass = (gather_batch(x) for x in self.part_features(refined))
            return losses.anchor_consistency_loss(parts, mass, gather_batch(targets), margin)

        def image_text():
            epsilon = self.loss_weights["I2TLoss"]["epsilon"]
            return losses.image_text_loss(features.proj, self.text_features, targets, epsilon)

        def decorrelation():
            return losses.decorrelation_loss(gather_batch(refined.feature), gather_batch(features.cls))

        terms = {
            "I2TLoss": ("i2t", image_text),
            "AnchorDiversityLoss": ("anchor_div", lambda: losses.anchor_diversity_loss(refined.text_anchors)),
            "ClassifierDiversityLoss": ("classifier_div", classifier_diversity),
            "AnchorConsistencyLoss": ("anchor_cons", anchor_consistency),
            "DecorrelationLoss": ("decorr", decorrelation),
        }
        return {
            f"loss_{terms[name][0]}": weight["scale"] * terms[name][1]() for name, weight in self.loss_weights.items()
        }
