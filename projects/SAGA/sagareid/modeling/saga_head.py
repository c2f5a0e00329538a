"""The SAGA head: patch tokens rebuilt from anchors and pooled by how strongly an anchor claims each of them.

B images, N patches of one token layer, P token layers, D token width, E joint width, K text anchors, M domain anchors,
Q classifiers, C identities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from ..config import tower_gives, tower_widths
from ..registry import DOMAIN_ANCHOR_REGISTRY, POOL_REGISTRY, get_part, parts
from ..structures import CLIPFeatures, as_features
from ..values import needs_cached, within
from .anchors import DomainAnchors, FreeAnchors, TextAnchors
from .clip import towers
from .clip.text import CONTEXT_SLOTS, TextEncoder
from .context import ContextGate
from .fast import refinement as faster
from .heads import (
    OF_HIDDEN,
    batch_norm_neck,
    complete_state,
    evaluating,
    frozen_text_encoder,
    head_outputs,
    hidden_outputs,
    identity_classifier,
    prompts_problem,
)
from .pooling import anchor_features, pool_gated
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
        """(B, K, h, w) attention of each text anchor over the patch grid; with two token layers each half's own
        layer."""
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

    gives = (
        "logits",
        "features",
        "text_anchors",
        "classifier_weights",
        "anchor_features",
        "cls",
        "proj",
        "text_features",
        "token_weights",
        "whole_weights",
        *OF_HIDDEN,
    )

    @configurable
    def __init__(
        self,
        *,
        text_anchors: TextAnchors | FreeAnchors,
        text_encoder: TextEncoder | None,
        domain_anchors: DomainAnchors | None,
        refine: Sequence[SemanticRefinement],
        pool: nn.Module,
        projection: nn.Module,
        classifiers: Sequence[nn.Linear],
        classifier_dropout: float = 0.0,
        neck_feat: str = "before",
        tower_widths: Mapping[str, int] | None = None,
        parts: int = 0,
        context: ContextGate | None = None,
    ):
        """
        Args:
            text_encoder: None for FreeAnchors, and for models that only evaluate with stored anchors.
            refine: one for each token layer, one or two.
            pool: of POOL_REGISTRY.
            projection: D to F, or nn.Identity.
            classifiers: Q of F to C, of `identity_classifier`.
            neck_feat: whether the evaluation feature is taken "before" or "after" the neck.
            tower_widths: such as {"cls": C, "proj": E}: what of the tower's own joins the evaluation feature.
            parts: anchors kept in the evaluation output "parts"; 0 for none.
            context: a gate on the pooling weights; None, as published, for none.
        """
        super().__init__()
        self.context = context
        self.num_anchors, self.num_layers = len(text_anchors.anchors), len(refine)
        if self.num_layers not in (1, 2):
            raise ValueError(
                f"SAGAHead reads one token layer or two, not {self.num_layers}: set MODEL.CLIP.TOKEN_LAYERS"
            )
        if self.num_layers == 2 and self.num_anchors % 2:
            raise ValueError(
                f"MODEL.SAGA.NUM_ANCHORS {self.num_anchors} must be even: two token layers share them by halves"
            )
        self.neck_feat, self.tower_widths, self.parts = neck_feat, dict(tower_widths or {}), parts
        self.text_anchors, self.text_encoder, self.domain_anchors = text_anchors, text_encoder, domain_anchors
        self.refine, self.anchor_pool, self.proj = nn.ModuleList(refine), pool, projection
        self.embedding_dim = classifiers[0].in_features
        self.bottleneck = batch_norm_neck(self.embedding_dim)
        self.classifiers = nn.ModuleList(classifiers)
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        if "proj" in self.tower_widths:  # of the identity prompts, for a later stage that trains the tower with I2TLoss
            size = classifiers[0].out_features, self.tower_widths["proj"]
            self.register_buffer("text_features", torch.zeros(size))
        self._stored_state: tuple | None = None  # of the tensors that the stored anchors are made of
        complete_state(self, "refresh_anchors")

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        """The keys under MODEL.SAGA; kinds of domain anchors and pools add theirs to it."""
        cfg.MODEL.SAGA = CfgNode()
        # K, text anchors.
        cfg.MODEL.SAGA.NUM_ANCHORS = 24
        # p, context slots of an anchor (of 16) frozen at its phrase; the other 16-p learn.
        cfg.MODEL.SAGA.PHRASE_CONTEXT = 12
        # Anchors as free vectors instead of text.
        cfg.MODEL.SAGA.FREE_ANCHORS = False
        # M, domain anchors made from the image; 0 for none.
        cfg.MODEL.SAGA.NUM_DOMAIN_ANCHORS = 3
        # What makes them. content: mean patch; camera: mean patch and camera id; clip: CLIP's embedding over the text
        # anchors; or a registered kind of your own.
        cfg.MODEL.SAGA.DOMAIN_ANCHORS = "content"
        # R, cross-attention layers.
        cfg.MODEL.SAGA.REFINE_LAYERS = 2
        # H, attention heads of a refinement layer.
        cfg.MODEL.SAGA.NUM_HEADS = 8
        # Dropout on attention weights and in the feed-forward.
        cfg.MODEL.SAGA.DROPOUT = 0.1
        # Block (1-based) of the image tower that refinement layers are copied from. 0: the (deepest) token layer.
        cfg.MODEL.SAGA.INIT_BLOCK = 0
        # Width of the pooled feature (the published embed_dim); 0: the width of the tokens, without a projection.
        # HEADS.EMBEDDING_DIM is another layer, of heads that have nothing else to train, and SAGAHead has none of it.
        cfg.MODEL.SAGA.EMBEDDING_DIM = 0
        # Q, identity classifiers, and the dropout in front of each.
        cfg.MODEL.SAGA.NUM_CLASSIFIERS = 1
        cfg.MODEL.SAGA.CLASSIFIER_DROPOUT = 0.0
        # Pool by anchor claim ("anchor", the method), plainly ("mean", ablation), or by a registered pool of your own.
        cfg.MODEL.SAGA.POOL = "anchor"

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        saga, layers = cfg.MODEL.SAGA, cfg.MODEL.CLIP.TOKEN_LAYERS
        two_path = tower_gives(cfg) and len(set(layers)) == 2
        if len(layers) > 2:
            yield f"MODEL.CLIP.TOKEN_LAYERS {layers}: SAGAHead reads one or two"
        if two_path and saga.NUM_ANCHORS % 2:
            yield "two token layers share the text anchors by halves: an even MODEL.SAGA.NUM_ANCHORS"
        if two_path and ("AnchorConsistencyLoss" in cfg.MODEL.LOSSES.NAME or cfg.TEST.PARTS):
            yield "per-anchor features are not defined for two token layers: drop AnchorConsistencyLoss and TEST.PARTS"
        if not 0 <= saga.PHRASE_CONTEXT <= CONTEXT_SLOTS:
            yield f"MODEL.SAGA.PHRASE_CONTEXT is {saga.PHRASE_CONTEXT}; an anchor has {CONTEXT_SLOTS} context slots"
        if not saga.FREE_ANCHORS:
            yield from prompts_problem(cfg)
        for key in ("NUM_ANCHORS", "REFINE_LAYERS", "NUM_HEADS", "NUM_CLASSIFIERS"):
            yield from within(cfg, f"MODEL.SAGA.{key}", 1)
        for key in ("NUM_DOMAIN_ANCHORS", "INIT_BLOCK", "EMBEDDING_DIM"):
            yield from within(cfg, f"MODEL.SAGA.{key}", 0)
        for key in ("DROPOUT", "CLASSIFIER_DROPOUT"):
            yield from within(cfg, f"MODEL.SAGA.{key}", 0, 1, below=True)
        yield from within(cfg, "TEST.PARTS", 0, max(saga.NUM_ANCHORS, 0))
        if saga.NUM_HEADS > 0 and cfg.MODEL.BACKBONE.FEAT_DIM % saga.NUM_HEADS:
            yield (
                f"MODEL.SAGA.NUM_HEADS {saga.NUM_HEADS} does not divide the token width MODEL.BACKBONE.FEAT_DIM "
                f"{cfg.MODEL.BACKBONE.FEAT_DIM}"
            )
        yield from needs_cached(cls, cfg, "patches")
        yield from ContextGate.check(cls, cfg)
        if cfg.MODEL.HEADS.CONTEXT_BLOCKS and not getattr(parts(POOL_REGISTRY).get(saga.POOL), "linear", False):
            yield (
                f"MODEL.HEADS.CONTEXT_BLOCKS multiplies the weights of a pool, and MODEL.SAGA.POOL {saga.POOL} is no "
                "LinearPool: use anchor or mean"
            )
        pool, domain = parts(POOL_REGISTRY).get(saga.POOL), parts(DOMAIN_ANCHOR_REGISTRY).get(saga.DOMAIN_ANCHORS)
        for part in (pool, domain if saga.NUM_DOMAIN_ANCHORS else None):
            if hasattr(part, "check"):
                yield from part.check(cfg)

    @staticmethod
    def feature_parts(cfg: CfgNode) -> list[str]:
        return ["refined", *tower_gives(cfg)] + (["parts"] if cfg.TEST.PARTS else [])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        saga, width, widths = cfg.MODEL.SAGA, cfg.MODEL.BACKBONE.FEAT_DIM, tower_widths(cfg)
        # in this order: it is that of the random numbers
        text_anchors, text_encoder = _text_anchors(cfg)
        domain = None
        if saga.NUM_DOMAIN_ANCHORS:
            kind = get_part(DOMAIN_ANCHOR_REGISTRY, "MODEL.SAGA.DOMAIN_ANCHORS", saga.DOMAIN_ANCHORS)
            domain = kind.from_config(cfg)
        refine = [
            SemanticRefinement(
                embed_dim=width,
                num_heads=saga.NUM_HEADS,
                num_layers=saga.REFINE_LAYERS,
                dropout=saga.DROPOUT,
                init_block=saga.INIT_BLOCK,
            )
            for _ in range(len(set(cfg.MODEL.CLIP.TOKEN_LAYERS)) if widths else 1)
        ]
        embedding = saga.EMBEDDING_DIM or width
        projection = nn.Linear(width, embedding) if embedding != width else nn.Identity()
        classes = cfg.MODEL.HEADS.NUM_CLASSES
        return {
            "text_anchors": text_anchors,
            "text_encoder": text_encoder,
            "domain_anchors": domain,
            "refine": refine,
            "pool": get_part(POOL_REGISTRY, "MODEL.SAGA.POOL", saga.POOL).from_config(cfg),
            "projection": projection,
            "classifiers": [identity_classifier(embedding, classes) for _ in range(saga.NUM_CLASSIFIERS)],
            "classifier_dropout": saga.CLASSIFIER_DROPOUT,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
            "tower_widths": widths,
            "parts": cfg.TEST.PARTS,
            "context": ContextGate.from_config(cfg),
        }

    @property
    def learns_from(self) -> set[str]:
        """Outputs of the backbone that the head's result depends on."""
        read = {"patches", "layer_cls"} if self.context is not None else {"patches"}
        return read | (self.domain_anchors.learns_from if self.domain_anchors is not None else set())

    @property
    def feature_layout(self) -> dict[str, int]:
        layout = {"refined": self.embedding_dim} | self.tower_widths
        if self.parts:
            layout["parts"] = self.num_anchors * self.embedding_dim
        return layout

    @torch.no_grad()
    def initialize(self, backbone: nn.Module, source: dict[str, Tensor]) -> None:
        """Start what has no weights yet from the image tower: each refinement layer from one of its blocks, where it
        has one that fits.

        Anchors without phrase slots start from the mean identity prompt where the run that this one starts from has it.

        The text features of the identities are taken over too.

        Args:
            backbone: the image tower after its weights are in; one without `block_weights` leaves the random start.
            source: state dict of the checkpoint that this run starts from; empty for none.
        """
        if self.context is not None:
            self.context.initialize(backbone)
        if hasattr(backbone, "block_weights"):
            for refine in self.refine:
                refine.initialize(backbone)
        text = source.get("heads.text_features")
        if "proj" in self.tower_widths and text is not None and text.shape == self.text_features.shape:
            self.text_features.copy_(text)
        context, anchors = source.get("heads.prompt_context"), self.text_anchors
        if context is not None and isinstance(anchors, TextAnchors) and not anchors.context_phrase.shape[1]:
            anchors.initialize_from_prompts(context[None])

    @property
    def anchor_names(self) -> list[str]:
        """K names: the phrase that a text anchor started from, "anchor <k>" for those that started from none."""
        if isinstance(self.text_anchors, TextAnchors) and self.text_anchors.context_phrase.shape[1]:
            phrases = towers.anchor_phrases()
            return [phrases[k % len(phrases)] for k in range(self.num_anchors)]
        return [f"anchor {k + 1}" for k in range(self.num_anchors)]

    # ---- anchors ---------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> SAGAHead:
        """Switch mode. Anchors stored so far count as stale: version counters miss what an optimizer does to
        `p.data`."""
        self._stored_state = None
        return super().train(mode)

    def refresh_anchors(self) -> None:
        """Store the anchors of the present weights; does nothing where they are stored already or need no text
        tower."""
        if self.text_encoder is None:
            return
        modules = (self.text_anchors, self.text_encoder)
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t is not self.text_anchors.anchors]
        state = tuple((id(t), t._version) for t in tensors)
        if self.training or state != self._stored_state:
            self.text_anchors.refresh(self.text_encoder)
            self._stored_state = state

    def _text_anchors(self) -> Tensor:
        """(K, D): computed with gradient where they train, stored otherwise."""
        if isinstance(self.text_anchors, FreeAnchors):
            return self.text_anchors.anchors
        if self._trains_anchors:
            if self.text_encoder is None:
                raise ValueError(
                    "SAGAHead trains its text anchors with the text tower: build the model with text_tower=True"
                )
            return self.text_anchors.compute(self.text_encoder)
        if not torch.compiler.is_compiling():
            self.refresh_anchors()
        return self.text_anchors.anchors

    # ---- forward ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """What `forward` does first and a compiled step cannot: bring stored anchors up to date where they are read."""
        if not self._trains_anchors:
            self.refresh_anchors()

    @property
    def _trains_anchors(self) -> bool:
        return self.training and any(p.requires_grad for p in self.text_anchors.parameters())

    def refine_and_pool(
        self, features: CLIPFeatures, keep_tokens: bool = True, text_anchors: Tensor | None = None
    ) -> Refined:
        """The method itself, from patch tokens to the pooled feature.

        Args:
            text_anchors: (K, D) where they are made already; None to make them here.
            keep_tokens: False lets evaluation pool before it makes the refined patches; `Refined.tokens` may then be
                empty.
        """
        if features.num_layers != self.num_layers:
            raise ValueError(
                f"SAGAHead was built for {self.num_layers} token layer(s), the features hold {features.num_layers}"
            )
        text = self._text_anchors() if text_anchors is None else text_anchors
        paths = features.patches.chunk(self.num_layers, dim=1)
        domain = None
        if self.domain_anchors is not None:
            domain = self.domain_anchors(paths[-1], camids=features.camids, proj=features.proj, text_anchors=text)
        tokens, attention, weights, pooled = [], [], [], 0
        gate = None if self.context is None else self.context(features)
        for p, (patches, own_text, refine) in enumerate(zip(paths, text.chunk(self.num_layers), self.refine)):
            own = domain if p == self.num_layers - 1 else None
            if gate is None and not keep_tokens and faster.pools_early(refine, self.anchor_pool):
                feature, weight, attended = faster.refine_and_pool(refine, self.anchor_pool, patches, own_text, own)
            else:
                refined, attended = refine(patches, own_text, own)
                feature, weight = pool_gated(self.anchor_pool, refined, attended, gate)
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

    @property
    def reads_cameras(self) -> bool:
        """Whether its domain anchors are made from the camera, so that it needs `CLIPFeatures.camids`."""
        return getattr(self.domain_anchors, "reads_cameras", False)

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
            In training `head_outputs` with (Q, B, C) logits; in evaluation the (B, F_all) raw concatenation of the
            pooled feature, before or after the neck by NECK_FEAT, and what `feature_layout` names beside it.
        """
        features = as_features(features).float()
        refined = self.refine_and_pool(features, keep_tokens=self.training or bool(self.parts))
        if not self.training:
            return self.evaluation_feature(features, refined)
        normed = self.bottleneck(refined.feature)
        weights = torch.stack(refined.weights).mean(0)
        given = hidden_outputs(features, lambda whole: self._teacher(whole, refined.text_anchors), weights) | {
            "text_anchors": refined.text_anchors,
            "classifier_weights": [classifier.weight for classifier in self.classifiers],
            "anchor_features": lambda: self.part_features(refined),
        }
        given |= {name: getattr(features, name) for name in self.tower_widths}
        if "proj" in self.tower_widths:
            given["text_features"] = self.text_features
        logits = torch.stack([classifier(self.classifier_dropout(normed)) for classifier in self.classifiers])
        return head_outputs(logits, refined.feature, **given)

    def _teacher(self, features: CLIPFeatures, text_anchors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) pooled feature and (B, N) weights without dropout, with anchors that are made already."""
        with evaluating(self.context, self.refine, self.domain_anchors):
            refined = self.refine_and_pool(features.float(), keep_tokens=False, text_anchors=text_anchors)
        return refined.feature, torch.stack(refined.weights).mean(0)

    def evaluation_feature(self, features: CLIPFeatures, refined: Refined) -> Tensor:
        """(B, F_all) what `forward` returns in evaluation, from what `refine_and_pool` made of the features."""
        out = [refined.feature if self.neck_feat == "before" else self.bottleneck(refined.feature)]
        out += [getattr(features, name) for name in self.tower_widths]
        if self.parts:
            parts, mass = self.part_features(refined)
            weakest = mass.topk(min(self.parts, self.num_anchors), dim=1).values[:, -1:]
            out.append((parts * (mass >= weakest)[:, :, None]).flatten(1))
        return torch.cat(out, dim=1)


def _text_anchors(cfg: CfgNode) -> tuple[TextAnchors | FreeAnchors, TextEncoder | None]:
    """The text anchors of a configuration, started from their phrases, and the frozen text tower that they need."""
    saga, dims, width = cfg.MODEL.SAGA, towers.clip_dims(cfg.MODEL.CLIP.NAME), cfg.MODEL.BACKBONE.FEAT_DIM
    if saga.FREE_ANCHORS:
        return FreeAnchors(num_anchors=saga.NUM_ANCHORS, embed_dim=width), None
    encoder, template, state = frozen_text_encoder(cfg)
    anchors = TextAnchors(
        template_embedding=template,
        num_anchors=saga.NUM_ANCHORS,
        phrase_slots=saga.PHRASE_CONTEXT,
        text_dim=dims.embed_dim,
        embed_dim=width,
    )
    if encoder is not None:
        phrases = towers.anchor_phrase_embeddings(state) if state else [torch.randn(8, dims.text_width) * 0.02]
        anchors.initialize(phrases)
    return anchors, encoder
