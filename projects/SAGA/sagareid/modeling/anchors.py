"""Anchors in text space, and patch tokens rebuilt from them (the method, sections 3.1 to 3.6 of the paper's notation).

B images, N patch tokens, D token width, W text width, E joint width, K text anchors, M domain anchors, H heads.
No FastReID and no config in here: numbers and tensors in, tensors out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip.text import CONTEXT_SLOTS, PromptTemplate, TextEncoder
from .fast.blocks import in_groups
from .fast.dropout import Dropout, GELUDropout, dropout

__all__ = [
    "AnchorPool",
    "CameraDomainAnchors",
    "ClipDomainAnchors",
    "ContentDomainAnchors",
    "FreeAnchors",
    "MeanPool",
    "RefinementLayer",
    "SemanticRefinement",
    "TextAnchors",
    "anchor_features",
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


class ContentDomainAnchors(nn.Module):
    """M anchors of an image from its mean patch: A_dom = W_2 GELU(W_1 mean_n X + b_1) + b_2."""

    def __init__(self, *, num_anchors: int, embed_dim: int):
        super().__init__()
        self.generator = _two_layer_generator(embed_dim, embed_dim, num_anchors * embed_dim)

    def forward(self, patches: Tensor, **unused) -> Tensor:
        """(B, N, D) patches to (B, M, D) anchors."""
        return self.generator(patches.mean(1)).unflatten(1, (-1, patches.shape[2]))


class CameraDomainAnchors(nn.Module):
    """M anchors of an image from its mean patch and a learned embedding of its camera.

    Without camera ids, or for a camera that training never saw, the mean camera embedding stands in.
    """

    def __init__(self, *, num_anchors: int, embed_dim: int, num_cameras: int):
        super().__init__()
        self.camera = nn.Embedding(num_cameras, embed_dim)
        nn.init.normal_(self.camera.weight, std=0.02)
        self.generator = _two_layer_generator(2 * embed_dim, embed_dim, num_anchors * embed_dim)

    def forward(self, patches: Tensor, *, camids: Tensor | None = None, **unused) -> Tensor:
        """
        Args:
            patches: (B, N, D).
            camids: (B,) in 0..num_cameras-1; negative for unknown.

        Returns:
            (B, M, D).
        """
        table = self.camera.weight
        if camids is None:
            camids = torch.full((patches.shape[0],), -1, device=patches.device)
        known = (camids >= 0)[:, None]
        embedding = torch.where(known, table[camids.clamp(min=0)], table.mean(0))
        mean = torch.cat([patches.mean(1), embedding.to(patches.dtype)], dim=1)
        return self.generator(mean).unflatten(1, (-1, patches.shape[2]))


class ClipDomainAnchors(nn.Module):
    """M queries, shifted by CLIP's embedding of the image, that attend to the text anchors.

    q = queries + W_c proj;  A_dom = LN_out(q + MHA(LN_q q, LN_kv A_text, A_text)), the value being A_text itself.
    """

    def __init__(self, *, num_anchors: int, embed_dim: int, clip_dim: int, num_heads: int = 8):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_anchors, embed_dim))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.clip_proj = nn.Linear(clip_dim, embed_dim, bias=False)
        self.norm_q = nn.LayerNorm(embed_dim)
        self.norm_kv = nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm_out = nn.LayerNorm(embed_dim)

    def forward(self, patches: Tensor, *, proj: Tensor, text_anchors: Tensor, **unused) -> Tensor:
        """
        Args:
            proj: (B, E) CLIP embedding. text_anchors: (K, D).

        Returns:
            (B, M, D).
        """
        query = self.queries + self.clip_proj(proj)[:, None]
        anchors = text_anchors.expand(patches.shape[0], -1, -1)
        attended, _ = self.attn(self.norm_q(query), self.norm_kv(anchors), anchors, need_weights=False)
        return self.norm_out(query + attended)


class RefinementLayer(nn.Module):
    """Patches read from the anchors, then a feed-forward; both residual.

    X <- X + MHA(LN_q X, LN_kv A);  X <- X + W_b Drop(GELU(W_a LN_ff X)), exact GELU.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"MODEL.SAGA.NUM_HEADS {num_heads} does not divide the token width {embed_dim}")
        self.num_heads, self.dropout = num_heads, dropout
        self.norm_q = nn.LayerNorm(embed_dim)
        self.norm_kv = nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm_ff = nn.LayerNorm(embed_dim)
        self.ff = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim),
            GELUDropout(dropout),
            nn.Identity(),  # GELU and dropout are two modules in published checkpoints: the next one's name counts them
            nn.Linear(4 * embed_dim, embed_dim),
            Dropout(dropout),
        )

    @torch.no_grad()
    def initialize(self, block: nn.Module) -> None:
        """Copy a CLIP image block: attention, MLP, ln_1 into both attention norms, ln_2.

        The rows of the projections are kept as they are, so a block of another number of heads is cut differently, and
        its QuickGELU becomes GELU: that is the published start, and training goes on from it.
        """
        if block.attn.in_proj_weight.shape != self.attn.in_proj_weight.shape:
            raise ValueError(
                f"refinement of width {self.attn.embed_dim} cannot start from an image block of width "
                f"{block.attn.in_proj_weight.shape[1]}"
            )
        self.attn.load_state_dict(block.attn.state_dict())
        self.norm_q.load_state_dict(block.ln_1.state_dict())
        self.norm_kv.load_state_dict(block.ln_1.state_dict())
        self.norm_ff.load_state_dict(block.ln_2.state_dict())
        self.ff[0].load_state_dict(block.mlp.c_fc.state_dict())
        self.ff[3].load_state_dict(block.mlp.c_proj.state_dict())

    def forward(self, patches: Tensor, anchors: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            patches: (B, N, D).
            anchors: (K, D) shared by all images, or (B, K, D).
            own: (B, M, D) further anchors of each image.

        Returns:
            refined (B, N, D) and attention (B, N, K+M), the mean over heads. In evaluation its rows sum to 1; in
            training they are taken after attention dropout, as published, so their sum varies around 1.
        """
        patches, attention = self.attend(patches, anchors, own)
        return patches + self.ff(self.norm_ff(patches)), attention

    def attend(self, patches: Tensor, anchors: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cross-attention alone: patches (B, N, D) with what they read added, and attention; as of `forward`.

        Two orders of the same products. With many anchors, queries and outputs are projected patch by patch. With fewer
        than D/H, as at CLIP's real sizes, these projections are cheaper multiplied into the anchors:
        q_n . k_j = x_n . (W_q^T k_j), and W_o sum_j w_nj v_j = sum_j w_nj (W_o v_j). There, a twentieth of a training
        step and a fourteenth of an evaluation of the layer.
        """
        count = anchors.shape[-2] + (0 if own is None else own.shape[1])
        if self.num_heads * count < self.attn.embed_dim:
            return self._attend_by_anchor(patches, anchors, own)
        return self._attend_by_patch(patches, anchors, own)

    def _normed(self, patches: Tensor) -> Tensor:
        """LN_q without its scale and shift, which are multiplied into what comes next: of patches that do not train (the
        frozen tower's) the normed ones need no gradient."""
        return F.layer_norm(patches, patches.shape[2:], eps=self.norm_q.eps)

    def _attend_by_patch(self, patches: Tensor, anchors: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        d, h = self.attn.embed_dim, self.num_heads
        weight, bias = self.attn.in_proj_weight[:d], self.attn.in_proj_bias[:d]
        query = F.linear(self._normed(patches), weight * self.norm_q.weight, bias + weight @ self.norm_q.bias)
        query = query.unflatten(2, (h, -1)).permute(0, 2, 3, 1)  # (B, H, D/H, N)
        keys, values = self._keys_values(anchors)  # one set for the anchors that all images share
        if own is not None:
            sets = (keys, values), self._keys_values(own)
            keys, values = (torch.cat([x.expand(own.shape[0], -1, -1, -1), y], dim=2) for x, y in zip(*sets))
        # (B, H, K+M, N): a softmax over rows, not within them, as a CPU's vectors are filled by patches
        weights = dropout((keys @ query).softmax(2), self.dropout, self.training)
        attended = (weights.transpose(2, 3) @ values).transpose(1, 2).flatten(2)
        return patches + self.attn.out_proj(attended), weights.mean(1).transpose(1, 2)

    def _attend_by_anchor(self, patches: Tensor, anchors: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = self._normed(patches)
        sets = [self._absorbed(x) for x in (anchors, own) if x is not None]
        scores = [
            (rows @ scorer.transpose(-2, -1) + offset).unflatten(2, (self.num_heads, -1)) for scorer, offset, _ in sets
        ]
        weights = dropout(torch.cat(scores, dim=3).softmax(3), self.dropout, self.training)  # (B, N, H, K+M)
        for part, (_, _, value) in zip(weights.split([x.shape[3] for x in scores], dim=3), sets):
            patches = patches + part.flatten(2) @ value
        return patches + self.attn.out_proj.bias, weights.mean(2)

    def _keys_values(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled keys and values of anchors (..., J, D) by head: (..., H, J, D/H) each."""
        d, h = self.attn.embed_dim, self.num_heads
        both = F.linear(self.norm_kv(anchors), self.attn.in_proj_weight[d:], self.attn.in_proj_bias[d:])
        keys, values = (x.unflatten(-1, (h, -1)).transpose(-3, -2) for x in both.chunk(2, dim=-1))
        return keys * (d // h) ** -0.5, values

    def _absorbed(self, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (..., J, D) with the projections of all heads multiplied in, a head's anchors side by side.

        Returns:
            (..., H*J, D) what a normed patch is multiplied with for its scores, (..., 1, H*J) what is added to them, and
            (..., H*J, D) what a unit of weight adds to a patch.
        """
        d, h = self.attn.embed_dim, self.num_heads
        keys, values = self._keys_values(anchors)
        # einsum takes the anchors of all images through a head at once; a broadcast product copies the head for each image
        scorer = torch.einsum("...hjc,hcd->...hjd", keys, self.attn.in_proj_weight[:d].unflatten(0, (h, -1)))
        offset = scorer @ self.norm_q.bias + torch.einsum(
            "...hjc,hc->...hj", keys, self.attn.in_proj_bias[:d].view(h, -1)
        )
        value = torch.einsum("...hjc,dhc->...hjd", values, self.attn.out_proj.weight.unflatten(1, (h, -1)))
        scorer = scorer * self.norm_q.weight
        return scorer.flatten(-3, -2), offset.flatten(-2).unsqueeze(-2), value.flatten(-3, -2)

    def pool(self, attended: Tensor, weights: Tensor) -> Tensor:
        """Pool what the feed-forward makes of patches, without making it of each: for evaluation, where nothing drops.

        The second matrix is linear, so it is applied to the pooled hidden row: W_b sum_n w_n h_n.

        Args:
            attended: (B, N, D), of `attend`.
            weights: (B, N).

        Returns:
            (B, D), as pooling `forward`'s patches by the weights.
        """
        hidden = self.ff[1](self.ff[0](self.norm_ff(attended)))
        last = self.ff[3]
        rows, hidden = (torch.einsum("bn,bnd->bd", weights, x) for x in (attended, hidden))
        return rows + F.linear(hidden, last.weight) + weights.sum(1, keepdim=True) * last.bias


class SemanticRefinement(nn.Module):
    """R refinement layers over the same anchors."""

    def __init__(self, *, embed_dim: int, num_heads: int, num_layers: int, dropout: float):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.SAGA.REFINE_LAYERS is {num_layers}; pooling reads the last layer, so 1 or more")
        layer = RefinementLayer(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.layers = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(num_layers - 1))])

    def initialize(self, block: nn.Module) -> None:
        for layer in self.layers:
            layer.initialize(block)

    def forward(self, patches: Tensor, anchors: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, D) and anchors as of `RefinementLayer` to refined (B, N, D) and the last layer's attention (B, N, K+M)."""
        return self._in_groups(self._refine, patches, anchors, own)

    def pooled(
        self, patches: Tensor, anchors: Tensor, own: Tensor | None, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`forward`, then pooling, in evaluation: the refined patches themselves are never made.

        Args:
            weigh: attention (B, N, K+M) to pooling weights (B, N).

        Returns:
            (B, D) and the attention.
        """
        if self.training:
            raise RuntimeError("pooled() leaves out the last dropout, so it is for evaluation: call eval() first")

        def refine_and_pool(patches: Tensor, anchors: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            for layer in self.layers[:-1]:
                patches, _ = layer(patches, anchors, own)
            patches, attention = self.layers[-1].attend(patches, anchors, own)
            return self.layers[-1].pool(patches, weigh(attention)), attention

        return self._in_groups(refine_and_pool, patches, anchors, own)

    def _refine(self, patches: Tensor, anchors: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            patches, attention = layer(patches, anchors, own)
        return patches, attention

    @staticmethod
    def _in_groups(
        function: Callable, patches: Tensor, anchors: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`function` on as many images at once as suits the device."""
        each, shared = (None, anchors) if anchors.dim() == 2 else (anchors, None)

        def of_group(patches: Tensor, each: Tensor | None, own: Tensor | None) -> tuple[Tensor, Tensor]:
            return function(patches, shared if each is None else each, own)

        return in_groups(of_group, patches.shape[1], patches, each, own)


class AnchorPool(nn.Module):
    """Summarise patch tokens by how strongly an anchor claims each of them.

    A patch behind an occluder matches no anchor well, so its largest score is small and it adds little.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """(B, N, K+M) attention to (B, N) weights, >= 0; those of an image sum to 1."""
        claims = scores.amax(2)
        return claims / claims.sum(1, keepdim=True).clamp(min=1e-6)

    def forward(self, tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (B, N, D) refined patches, not normalised.
            scores: (B, N, K+M) attention, each row over the anchors sums to 1.

        Returns:
            (B, D) weighted mean and the weights (B, N).
        """
        weights = self.weights(scores)
        return torch.einsum("bn,bnd->bd", weights, tokens), weights


class MeanPool(AnchorPool):
    """The ablation: every patch counts alike."""

    def weights(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores[:, :, 0], 1 / scores.shape[1])


def anchor_features(tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """One feature per text anchor: a_k = sum_n W[n, k] X[n], and the anchor's mass sum_n W[n, k].

    Args:
        tokens: (B, N, D). scores: (B, N, K), text anchors alone.

    Returns:
        (B, K, D), not normalised, and (B, K), >= 0.
    """
    return torch.einsum("bnk,bnd->bkd", scores, tokens), scores.sum(1)
