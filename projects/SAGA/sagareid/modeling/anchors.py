"""Anchors: of text, as free vectors, and of an image's own domain (METHOD 3.1 and 3.2).

B images, N patch tokens, D token width, W text width, E joint width, K text anchors, M domain anchors.
Numbers and tensors in, tensors out; `from_config` and `check` alone read a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import tower_gives
from ..registry import DOMAIN_ANCHOR_REGISTRY
from ..values import needs_cached
from .clip.text import CONTEXT_SLOTS, PromptTemplate, TextEncoder
from .clip.towers import clip_dims

__all__ = [
    "CameraDomainAnchors",
    "ClipDomainAnchors",
    "ContentDomainAnchors",
    "DomainAnchors",
    "FreeAnchors",
    "TextAnchors",
    "phrase_context",
]


def phrase_context(phrase_embedding: Tensor, slots: int) -> Tensor:
    """Fit the token embeddings of a phrase into `slots` context slots.

    Enough tokens: evenly spaced ones. Too few: all of them, then their mean.

    Args:
        phrase_embedding: (T, W), without start and end of text.

    Returns:
        (slots, W).
    """
    tokens = phrase_embedding.shape[0]
    if tokens >= slots:
        index = torch.linspace(0, tokens - 1, slots).floor().long()
        return phrase_embedding[index]
    filler = phrase_embedding.mean(0, keepdim=True).expand(slots - tokens, -1)
    return torch.cat([phrase_embedding, filler])


class TextAnchors(nn.Module):
    """K anchors: text features of K prompts whose context partly learns, projected to the token width.

    A_text = W_t TextEncoder([start; context_learned (K, 16-p, W); context_phrase (K, p, W); "person."]).

    In evaluation the anchors are constants: they are kept in the buffer `anchors`, so a stored model needs no text
    tower. `refresh()` writes the buffer; it runs when training turns into evaluation.
    """

    def __init__(
        self, *, template_embedding: Tensor, num_anchors: int, phrase_slots: int, text_dim: int, embed_dim: int
    ):
        """
        Args:
            template_embedding: (PROMPT_LENGTH, W).
            phrase_slots: p, frozen context slots, 0..16.
            text_dim: E. embed_dim: D.
        """
        super().__init__()
        phrase_slots = min(phrase_slots, CONTEXT_SLOTS)
        width = template_embedding.shape[1]
        self.template = PromptTemplate(template_embedding)
        self.context_learned = nn.Parameter(torch.zeros(num_anchors, CONTEXT_SLOTS - phrase_slots, width))
        self.register_buffer("context_phrase", torch.zeros(num_anchors, phrase_slots, width))
        self.proj = nn.Linear(text_dim, embed_dim, bias=False)
        nn.init.xavier_uniform_(self.proj.weight)
        self.register_buffer("anchors", torch.zeros(num_anchors, embed_dim))

    @torch.no_grad()
    def initialize(self, phrase_embeddings: Sequence[Tensor], noise: float = 0.01) -> None:
        """Start anchor k at phrase k (cyclic): the learned slots get its tokens too, plus a little noise.

        Args:
            phrase_embeddings: token embeddings (T_k, W) of each phrase, T_k from 1.
        """
        num_anchors, learned, _ = self.context_learned.shape
        frozen = self.context_phrase.shape[1]
        for k in range(num_anchors):
            phrase = phrase_embeddings[k % len(phrase_embeddings)]
            self.context_learned[k] = phrase_context(phrase, learned)
            self.context_phrase[k] = phrase_context(phrase, frozen)
        self.context_learned += noise * torch.randn_like(self.context_learned)

    @torch.no_grad()
    def initialize_from_prompts(self, context_identity: Tensor, noise: float = 0.01) -> None:
        """Start every anchor at the mean identity prompt: the published route without phrase slots.

        Args:
            context_identity: (n_id, S, W) learned identity contexts, S up to the number of learned slots.
        """
        self.context_learned.zero_()
        self.context_learned[:, : context_identity.shape[1]] = context_identity.mean(0)
        self.context_learned += noise * torch.randn_like(self.context_learned)

    def prompts(self) -> Tensor:
        """(K, PROMPT_LENGTH, W)."""
        return self.template(torch.cat([self.context_learned, self.context_phrase], dim=1))

    def compute(self, text_encoder: TextEncoder) -> Tensor:
        """(K, D) anchors, not normalised, with gradient to the learned context and the projection."""
        return self.proj(text_encoder(self.prompts()))

    @torch.no_grad()
    def refresh(self, text_encoder: TextEncoder) -> None:
        """Store the anchors of the present weights, in float32."""
        with torch.autocast(self.anchors.device.type, enabled=False):
            self.anchors.copy_(self.compute(text_encoder))


class FreeAnchors(nn.Module):
    """K anchors as free vectors, the ablation without text."""

    def __init__(self, *, num_anchors: int, embed_dim: int):
        super().__init__()
        self.anchors = nn.Parameter(torch.empty(num_anchors, embed_dim))
        nn.init.trunc_normal_(self.anchors, std=0.02)


def _two_layer_generator(in_dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim))


class DomainAnchors(nn.Module):
    """M anchors of each image, made from the image: what MODEL.SAGA.DOMAIN_ANCHORS names.

    `forward` is called with everything below by keyword, and takes what it needs.

    Attributes:
        learns_from: outputs of the backbone that it reads beside the patches ("cls", "proj", "layer_cls").
        reads_cameras: whether the training cameras are to be collected in MODEL.CLIP.CAMERAS for it.
    """

    learns_from: ClassVar[frozenset[str]] = frozenset()
    reads_cameras = False

    @classmethod
    def from_config(cls, cfg: Any) -> DomainAnchors:
        """The anchors of a configuration; a kind with further settings overrides it."""
        return cls(num_anchors=cfg.MODEL.SAGA.NUM_DOMAIN_ANCHORS, embed_dim=cfg.MODEL.BACKBONE.FEAT_DIM)

    @classmethod
    def check(cls, cfg: Any) -> Iterator[str]:
        """What keeps a configuration that uses these anchors from working, a sentence each."""
        yield from ()

    def forward(
        self, patches: Tensor, *, camids: Tensor | None, proj: Tensor | None, text_anchors: Tensor, **unused: Any
    ) -> Tensor:
        """
        Args:
            patches: (B, N, D) of the deepest token layer.
            camids: (B,), or (1,) for all images, in 0..num_cameras-1, negative for a camera that training never saw;
                None where none are known.
            proj: (B, E) CLIP's embedding of the image; None where the backbone gives none.
            text_anchors: (K, D).

        Returns:
            (B, M, D).
        """
        raise NotImplementedError


@DOMAIN_ANCHOR_REGISTRY.register()
class ContentDomainAnchors(DomainAnchors):
    """M anchors of an image from its mean patch: A_dom = W_2 GELU(W_1 mean_n X + b_1) + b_2."""

    name = "content"

    def __init__(self, *, num_anchors: int, embed_dim: int):
        """num_anchors: M. embed_dim: D."""
        super().__init__()
        self.generator = _two_layer_generator(embed_dim, embed_dim, num_anchors * embed_dim)

    def forward(self, patches: Tensor, **unused: Any) -> Tensor:
        return self.generator(patches.mean(1)).unflatten(1, (-1, patches.shape[2]))


@DOMAIN_ANCHOR_REGISTRY.register()
class CameraDomainAnchors(DomainAnchors):
    """M anchors of an image from its mean patch and a learned embedding of its camera.

    Without camera ids, or for a camera that training never saw, the mean camera embedding stands in.
    """

    name = "camera"
    reads_cameras = True

    def __init__(self, *, num_anchors: int, embed_dim: int, num_cameras: int):
        """num_anchors: M. embed_dim: D."""
        super().__init__()
        self.camera = nn.Embedding(num_cameras, embed_dim)
        nn.init.normal_(self.camera.weight, std=0.02)
        self.generator = _two_layer_generator(2 * embed_dim, embed_dim, num_anchors * embed_dim)

    @classmethod
    def from_config(cls, cfg: Any) -> CameraDomainAnchors:
        return cls(
            num_anchors=cfg.MODEL.SAGA.NUM_DOMAIN_ANCHORS,
            embed_dim=cfg.MODEL.BACKBONE.FEAT_DIM,
            num_cameras=len(cfg.MODEL.CLIP.CAMERAS),
        )

    def forward(self, patches: Tensor, *, camids: Tensor | None = None, **unused: Any) -> Tensor:
        table = self.camera.weight
        if camids is None:
            camids = torch.full((patches.shape[0],), -1, device=patches.device)
        known = (camids >= 0)[:, None]
        embedding = torch.where(known, table[camids.clamp(min=0)], table.mean(0))
        mean = patches.mean(1)
        mean = torch.cat([mean, embedding.to(mean.dtype).expand_as(mean)], dim=1)
        return self.generator(mean).unflatten(1, (-1, patches.shape[2]))


@DOMAIN_ANCHOR_REGISTRY.register()
class ClipDomainAnchors(DomainAnchors):
    """M queries, shifted by CLIP's embedding of the image, that attend to the text anchors.

    q = queries + W_c proj;  A_dom = LN_out(q + MHA(LN_q q, LN_kv A_text, A_text)), the value being A_text itself.
    """

    name = "clip"
    learns_from = frozenset({"proj"})

    def __init__(self, *, num_anchors: int, embed_dim: int, clip_dim: int, num_heads: int = 8):
        """num_anchors: M. embed_dim: D. clip_dim: E."""
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_anchors, embed_dim))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.clip_proj = nn.Linear(clip_dim, embed_dim, bias=False)
        self.norm_q = nn.LayerNorm(embed_dim)
        self.norm_kv = nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm_out = nn.LayerNorm(embed_dim)

    @classmethod
    def from_config(cls, cfg: Any) -> ClipDomainAnchors:
        return cls(
            num_anchors=cfg.MODEL.SAGA.NUM_DOMAIN_ANCHORS,
            embed_dim=cfg.MODEL.BACKBONE.FEAT_DIM,
            clip_dim=clip_dims(cfg.MODEL.CLIP.NAME).embed_dim,
        )

    @classmethod
    def check(cls, cfg: Any) -> Iterator[str]:
        if "proj" not in tower_gives(cfg):
            yield ("MODEL.SAGA.DOMAIN_ANCHORS clip reads CLIP's projection: use the CLIP backbone with OUTPUT tokens")
        yield from needs_cached(cls, cfg, "proj")

    def forward(self, patches: Tensor, *, proj: Tensor, text_anchors: Tensor, **unused: Any) -> Tensor:
        query = self.queries + self.clip_proj(proj)[:, None]
        anchors = text_anchors.expand(patches.shape[0], -1, -1)
        attended, _ = self.attn(self.norm_q(query), self.norm_kv(anchors), anchors, need_weights=False)
        return self.norm_out(query + attended)
