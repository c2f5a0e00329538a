"""Pooling: one feature of an image from its refined patch tokens and the anchors' claims on them (METHOD 3.4, 3.6).

B images, N patch tokens, D token width, K text anchors, M domain anchors.
Numbers and tensors in, tensors out; `from_config` alone reads a configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..registry import POOL_REGISTRY

__all__ = ["AnchorPool", "LinearPool", "MeanPool", "anchor_features", "pool_gated"]


class LinearPool(nn.Module):
    """A weighted sum of the tokens, whose weights depend on the attention alone: f = sum_n w_n X[n].

    A subclass says how to weigh. `linear` lets evaluation pool before the last matrix of the refinement
    (`fast.refinement`). It is said of this `forward`: a subclass that overrides `forward` has it no more, and is
    evaluated by what it overrides.
    """

    linear = True

    @classmethod
    def from_config(cls, cfg: Any) -> LinearPool:
        """The pool of a configuration; one with settings of its own overrides it."""
        return cls()

    def weights(self, scores: Tensor) -> Tensor:
        """(B, N, K+M) attention to (B, N) weights."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (B, N, D) refined patches, not normalised.
            scores: (B, N, K+M) attention; that of a patch sums to 1 over the anchors.

        Returns:
            (B, D) pooled feature and (B, N) weights.
        """
        weights = self.weights(scores)
        return (weights[:, None] @ tokens)[:, 0], weights


@POOL_REGISTRY.register()
class AnchorPool(LinearPool):
    """Summarise patch tokens by how strongly an anchor claims each of them: w_n = max_j W[n, j], then w / sum w.

    A patch behind an occluder matches no anchor well, so its largest score is small and it adds little.
    """

    name = "anchor"

    def weights(self, scores: Tensor) -> Tensor:
        """(B, N, K+M) attention to (B, N) weights, >= 0; those of an image sum to 1."""
        claims = scores.amax(2)
        return claims / claims.sum(1, keepdim=True).clamp(min=1e-6)


@POOL_REGISTRY.register()
class MeanPool(LinearPool):
    """The ablation: every patch counts alike."""

    name = "mean"

    def weights(self, scores: Tensor) -> Tensor:
        """(B, N, K+M) attention to (B, N) weights of 1/N."""
        return torch.full_like(scores[:, :, 0], 1 / scores.shape[1])


def anchor_features(tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """One feature per text anchor: a_k = sum_n W[n, k] X[n], and the anchor's mass sum_n W[n, k].

    Args:
        tokens: (B, N, D). scores: (B, N, K), text anchors alone.

    Returns:
        (B, K, D), not normalised, and (B, K), >= 0.
    """
    return scores.transpose(1, 2) @ tokens, scores.sum(1)


def pool_gated(pool: nn.Module, tokens: Tensor, scores: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a pool gives, with its weights multiplied by a gate and made to sum to 1 again: w_n g_n / sum w g.

    Args:
        pool: a `LinearPool` where there is a gate.
        tokens, scores: as of `LinearPool.forward`.
        gate: (B, N) in 0..1; None for the pool as it is.
    """
    if gate is None:
        return pool(tokens, scores)
    weights = pool.weights(scores) * gate
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    return (weights[:, None] @ tokens)[:, 0], weights
