"""Semantic refinement: patch tokens rebuilt from anchors (the paper's section 3.3; METHOD 3.3 in
docs/reference/method.md).

B images, N patch tokens, D token width, K text anchors, M domain anchors, R layers, H attention heads.
No FastReID and no config in here: numbers and tensors in, tensors out.
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from ..structures import BlockWeights
from . import fast
from .fast import refinement as faster

__all__ = ["RefinementLayer", "SemanticRefinement", "join_anchors"]

logger = logging.getLogger(__name__)


def join_anchors(patches: Tensor, text: Tensor, domain: Tensor | None) -> Tensor:
    """A = [A_text; A_dom], for every image.

    Args:
        patches: (B, N, D). text: (K, D), the same for all images, or (B, K, D). domain: (B, M, D), or None.

    Returns:
        (B, K+M, D).
    """
    text = text.expand(patches.shape[0], -1, -1)
    return text if domain is None else torch.cat([text, domain], dim=1)


class RefinementLayer(nn.Module):
    """Patches read from the anchors, then a feed-forward; both residual.

    O, W = MHA(query LN_q X, key = value LN_kv A), W the mean over the heads;
    X <- X + O;  X <- X + Drop(W_b Drop(GELU(W_a LN_ff X))), exact GELU.
    """

    fast_form = True  # fast.refinement.refine computes `forward`

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float):
        """
        Args:
            embed_dim: D. num_heads: H.
            dropout: of attention weights and in the feed-forward.
        """
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"MODEL.SAGA.NUM_HEADS {num_heads} does not divide the token width {embed_dim}")
        self.norm_q = nn.LayerNorm(embed_dim)
        self.norm_kv = nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.norm_ff = nn.LayerNorm(embed_dim)
        self.ff = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * embed_dim, embed_dim),
            nn.Dropout(dropout),
        )

    @torch.no_grad()
    def initialize(self, block: BlockWeights) -> None:
        """Copy a block of the image tower: attention, MLP, its first norm into both attention norms, its second.

        The projections are copied as they are, so a block of another number of heads is cut differently, and its
        QuickGELU becomes GELU: that is the published start, and training goes on from it. Without `feed_forward` that
        part keeps its own start.
        """
        if block.width != self.attn.embed_dim:
            raise ValueError(
                f"refinement of width {self.attn.embed_dim} cannot start from an image block of width {block.width}"
            )
        self.attn.load_state_dict(block.attention)
        self.norm_q.load_state_dict(block.norm_1)
        self.norm_kv.load_state_dict(block.norm_1)
        if block.feed_forward is not None:
            self.norm_ff.load_state_dict(block.norm_2)
            self.ff.load_state_dict(block.feed_forward)

    def forward(self, patches: Tensor, text: Tensor, domain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            patches: (B, N, D).
            text: (K, D) text anchors, the same for all images, or (B, K, D).
            domain: (B, M, D) domain anchors of each image, or None.

        Returns:
            refined (B, N, D) and attention (B, N, K+M), the mean over heads. In evaluation the attention of a patch
            sums to 1; in training it is taken after attention dropout, as published, so its sum varies around 1.
        """
        if fast.enabled("refinement") and fast.says(self, "fast_form"):
            return faster.refine(self, patches, text, domain)
        anchors = self.norm_kv(join_anchors(patches, text, domain))
        read, attention = self.attn(self.norm_q(patches), anchors, anchors)
        patches = patches + read
        return patches + self.ff(self.norm_ff(patches)), attention


class SemanticRefinement(nn.Module):
    """R refinement layers, which all attend to the same anchors."""

    fast_form = True  # fast.refinement.refine_and_pool computes `forward` and pooling behind it

    def __init__(self, *, embed_dim: int, num_heads: int, num_layers: int, dropout: float, init_block: int = 0):
        """
        Args:
            embed_dim, num_heads, dropout: of a `RefinementLayer`.
            num_layers: R.
            init_block: 1-based block of the image tower that the layers start from; 0 for the deepest token layer.
        """
        super().__init__()
        self.init_block = init_block
        if num_layers < 1:
            raise ValueError(f"MODEL.SAGA.REFINE_LAYERS is {num_layers}; pooling reads the last layer, so 1 or more")
        layer = RefinementLayer(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.layers = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(num_layers - 1))])

    def initialize(self, backbone: nn.Module) -> None:
        """Start every layer from the same block of an image tower (`backbones.tower.ImageTower`), where it has one."""
        number = self.init_block or backbone.token_layers[-1]
        block = backbone.block_weights(number)
        if block is None:
            logger.info("refinement layers keep their own start: block %d of the tower is no plain attention", number)
            return
        for layer in self.layers:
            layer.initialize(block)
        part = "" if block.feed_forward is not None else "; their feed-forward keeps its own start"
        logger.info("refinement layers start from block %d of the tower%s", number, part)

    def forward(self, patches: Tensor, text: Tensor, domain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Patches (B, N, D) and anchors as of `RefinementLayer` to the refined patches (B, N, D) and the attention of
        the last layer (B, N, K+M)."""
        return faster.stack(self._layers, patches, text, domain, faster.masks_of(self.layers))

    def _layers(self, patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            patches, attention = layer(patches, text, domain)
        return patches, attention
