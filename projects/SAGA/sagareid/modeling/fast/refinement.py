"""Faster forms of semantic refinement (`modeling/refinement.py`) and of pooling behind it. No FastReID, no config.

B images, N patch tokens, D token width, K text anchors, M domain anchors, J anchors of a set, H attention heads.

The text anchors (K, D) are the same for all images, so their keys and values are made once; the domain anchors
(B, M, D) are an image's own. `layer` is a `RefinementLayer`, whose parts and their names are used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import enabled, says
from .blocks import in_groups
from .dropout import draws, dropout, gelu_dropout

__all__ = [
    "attend",
    "attend_by_anchor",
    "attend_by_patch",
    "masks_of",
    "pools_early",
    "refine",
    "refine_and_pool",
    "stack",
]

Stack = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def refine(layer: nn.Module, patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
    """`RefinementLayer.forward`.

    Args:
        patches: (B, N, D). text: (K, D), or (B, K, D). domain: (B, M, D), or None.

    Returns:
        (B, N, D) refined patches, (B, N, K+M) attention.
    """
    patches, attention = attend(layer, patches, text, domain)
    hidden = layer.ff[0](layer.norm_ff(patches))
    hidden = gelu_dropout(hidden, layer.ff[2].p, layer.ff[2].training)
    return patches + dropout(layer.ff[3](hidden), layer.ff[4].p, layer.ff[4].training), attention


def attend(layer: nn.Module, patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
    """The cross-attention alone: patches (B, N, D) with what they read added, and the attention.

    Two orders of the same products. With many anchors, queries and outputs are projected patch by patch. With fewer
    than D/H, as at CLIP's real sizes, these projections are cheaper multiplied into the anchors:
    q_n . k_j = x_n . (W_q^T k_j), and W_o sum_j w_nj v_j = sum_j w_nj (W_o v_j). There, a twentieth of a training step
    and a fourteenth of an evaluation of the layer.
    """
    count = text.shape[-2] + (0 if domain is None else domain.shape[1])
    by_anchor = enabled("absorption") and layer.attn.num_heads * count < layer.attn.embed_dim
    return (attend_by_anchor if by_anchor else attend_by_patch)(layer, patches, text, domain)


def attend_by_patch(layer: nn.Module, patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attend` with queries and outputs projected patch by patch."""
    d, h = layer.attn.embed_dim, layer.attn.num_heads
    weight, bias = layer.attn.in_proj_weight[:d], layer.attn.in_proj_bias[:d]
    query = F.linear(_normed(layer, patches), weight * layer.norm_q.weight, bias + weight @ layer.norm_q.bias)
    query = query.unflatten(2, (h, -1)).permute(0, 2, 3, 1)  # (B, H, D/H, N)
    keys, values = _keys_values(layer, text)
    if domain is not None:
        sets = (keys, values), _keys_values(layer, domain)
        keys, values = (torch.cat([x.expand(domain.shape[0], -1, -1, -1), y], dim=2) for x, y in zip(*sets))
    # (B, H, K+M, N): a softmax over rows, not within them, as a CPU's vectors are filled by patches
    weights = dropout((keys @ query).softmax(2), layer.attn.dropout, layer.attn.training)
    attended = (weights.transpose(2, 3) @ values).transpose(1, 2).flatten(2)
    return patches + layer.attn.out_proj(attended), weights.mean(1).transpose(1, 2)


def attend_by_anchor(layer: nn.Module, patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attend` with both projections multiplied into the anchors."""
    normed = _normed(layer, patches)
    sets = [_absorbed(layer, x) for x in (text, domain) if x is not None]
    scores = [
        (normed @ scorer.transpose(-2, -1) + offset).unflatten(2, (layer.attn.num_heads, -1))
        for scorer, offset, _ in sets
    ]
    weights = torch.cat(scores, dim=3).softmax(3)  # (B, N, H, K+M)
    weights = dropout(weights, layer.attn.dropout, layer.attn.training)
    for part, (_, _, value) in zip(weights.split([x.shape[3] for x in scores], dim=3), sets):
        patches = patches + part.flatten(2) @ value
    return patches + layer.attn.out_proj.bias, weights.mean(2)


def _normed(layer: nn.Module, patches: Tensor) -> Tensor:
    """LN_q without its scale and shift, which are multiplied into what comes next: of patches that do not train (the
    frozen tower's) the normed ones need no gradient."""
    return F.layer_norm(patches, patches.shape[2:], eps=layer.norm_q.eps)


def _keys_values(layer: nn.Module, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled keys and values of anchors (..., J, D) by head: (..., H, J, D/H) each."""
    d, h = layer.attn.embed_dim, layer.attn.num_heads
    both = F.linear(layer.norm_kv(anchors), layer.attn.in_proj_weight[d:], layer.attn.in_proj_bias[d:])
    keys, values = (x.unflatten(-1, (h, -1)).transpose(-3, -2) for x in both.chunk(2, dim=-1))
    return keys * (d // h) ** -0.5, values


def _absorbed(layer: nn.Module, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors (..., J, D) with the projections of all heads multiplied in, a head's anchors side by side.

    Returns:
        (..., H*J, D) what a normed patch is multiplied with for its scores, (..., 1, H*J) what is added to them, and
        (..., H*J, D) what a unit of weight adds to a patch.
    """
    attn, d, h = layer.attn, layer.attn.embed_dim, layer.attn.num_heads
    keys, values = _keys_values(layer, anchors)
    scorer = _by_head(keys, attn.in_proj_weight[:d].unflatten(0, (h, -1)))
    # columns, not vectors: OpenCV's product takes matrices alone
    offset = scorer @ layer.norm_q.bias[:, None] + _by_head(keys, attn.in_proj_bias[:d].view(h, -1, 1))
    value = _by_head(values, attn.out_proj.weight.unflatten(1, (h, -1)).permute(1, 2, 0))
    scorer = scorer * layer.norm_q.weight
    return scorer.flatten(-3, -2), offset.flatten(-3).unsqueeze(-2), value.flatten(-3, -2)


def _by_head(anchors: Tensor, heads: Tensor) -> Tensor:
    """(..., H, J, C) anchors by each head's matrix (H, C, D): (..., H, J, D).

    Those of all images go through a head at once: a broadcast product copies the head for each image, and einsum is an
    operator that OpenCV runs for one batch size alone.
    """
    if anchors.dim() == 3:
        return anchors @ heads
    product = anchors.transpose(0, 1).flatten(1, 2) @ heads
    return product.unflatten(1, (anchors.shape[0], -1)).transpose(0, 1)


# ---- a stack of layers, and pooling behind it -----------------------------------------------------------------------


def masks_of(layers: Iterable[nn.Module]) -> int:
    """How many masks `fast.dropout` draws where `refine` computes all of these layers; 0 where it does not."""
    count = 0
    for layer in layers:
        if not (enabled("refinement") and says(layer, "fast_form")):
            return 0
        own = (layer.attn.dropout, layer.attn.training), *((x.p, x.training) for x in (layer.ff[2], layer.ff[4]))
        count += sum(draws(p, training) for p, training in own)
    return count


def stack(
    function: Stack, patches: Tensor, text: Tensor, domain: Tensor | None, masks: int = 0
) -> tuple[Tensor, Tensor]:
    """`function` on as many images at once as suits the device; it treats each image alone.

    Args:
        function: of (patches, text, domain), as of `refine`.
        masks: as of `in_groups`.
    """
    each, shared = (None, text) if text.dim() == 2 else (text, None)

    def of_group(patches: Tensor, each: Tensor | None, domain: Tensor | None) -> tuple[Tensor, Tensor]:
        return function(patches, shared if each is None else each, domain)

    return in_groups(of_group, patches.shape[1], patches, each, domain, masks=masks)


def pools_early(refinement: nn.Module, pool: nn.Module) -> bool:
    """Whether `refine_and_pool` computes what the two modules compute, one after the other, in their present mode.

    It leaves the last dropout out, so it is for evaluation; and the classes of the refinement, of its last layer and of
    the pool must say that the faster form is theirs.
    """
    last = refinement.layers[-1]
    exact = says(refinement, "fast_form") and says(last, "fast_form") and says(pool, "linear")
    on = enabled("early_pooling") and enabled("refinement")  # it computes the attention of its last layer as `refine`
    return exact and on and not (last.training or refinement.training)


def refine_and_pool(
    refinement: nn.Module, pool: nn.Module, patches: Tensor, text: Tensor, domain: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Refine and pool without making the refined patches, where `pools_early`.

    The last layer's second matrix is linear, so it is applied to the pooled hidden vector: W_b sum_n w_n h_n.

    Args:
        refinement: `SemanticRefinement`. pool: `LinearPool`.

    Returns:
        (B, D) pooled feature, (B, N) weights, (B, N, K+M) attention.
    """
    *layers, last = refinement.layers

    def pooled(patches: Tensor, text: Tensor, domain: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in layers:
            patches, _ = layer(patches, text, domain)
        patches, attention = attend(last, patches, text, domain)
        weights = pool.weights(attention)
        hidden = F.gelu(last.ff[0](last.norm_ff(patches)))
        patches, hidden = ((weights[:, None] @ x)[:, 0] for x in (patches, hidden))
        second = last.ff[3]
        feature = patches + F.linear(hidden, second.weight) + weights.sum(1, keepdim=True) * second.bias
        return feature, attention

    feature, attention = stack(pooled, patches, text, domain)
    return feature, pool.weights(attention), attention
