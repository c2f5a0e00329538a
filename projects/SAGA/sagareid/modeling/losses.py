"""The method's losses: tensors and numbers in, a scalar out, always in float32.

B images, D width, C classes, K anchors, Q classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "anchor_consistency_loss",
    "anchor_diversity_loss",
    "batch_hard_triplet_loss",
    "classification_accuracy",
    "classifier_diversity_loss",
    "decorrelation_loss",
    "hidden_weight_loss",
    "identity_loss",
    "image_text_loss",
    "supervised_contrastive_loss",
    "visible_tokens_loss",
    "whole_feature_loss",
]


def _float32(function):
    """Run a loss outside autocast on float32 copies: half-precision inner products lose the hard pairs."""

    def wrapped(*args, **kwargs):
        args = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    return wrapped


@_float32
def identity_loss(logits: Tensor, targets: Tensor, epsilon: float = 0.1) -> Tensor:
    """Label-smoothed cross-entropy over identities, averaged over classifiers.

    Args:
        logits: (B, C), or (Q, B, C) for Q classifiers.
        targets: (B,) class indices.
        epsilon: mass moved from the true class to the uniform distribution, in [0, 1).
    """
    logits = logits if logits.dim() == 3 else logits[None]
    flat = logits.flatten(0, 1)
    return F.cross_entropy(flat, targets.repeat(logits.shape[0]), label_smoothing=epsilon)


def classification_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of a batch whose largest logit is that of its identity, a scalar. logits: (B, C). targets: (B,)."""
    return (logits.argmax(1) == targets).float().mean()


@_float32
def image_text_loss(image: Tensor, text: Tensor, targets: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross-entropy of an image against the text features of all identities, without a logit scale (CLIP-ReID, i2t).

    Args:
        image: (B, E) image embedding, not normalised.
        text: (C, E) text features of the C identities, not normalised.
        targets: (B,) class indices.
    """
    return F.cross_entropy(image @ text.t(), targets, label_smoothing=epsilon)


@_float32
def supervised_contrastive_loss(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrastive loss of `first` against `second`, temperature 1, features not normalised.

    Every element of `second` of the same identity is a positive; the denominator holds all of them.

    Args:
        first, second: (B, E), of which those at one place belong to one identity.
        targets: (B,) identities.
    """
    log_prob = F.log_softmax(first @ second.t(), dim=1)
    positive = (targets[:, None] == targets[None, :]).float()
    return -((log_prob * positive).sum(1) / positive.sum(1)).mean()


@_float32
def batch_hard_triplet_loss(features: Tensor, targets: Tensor, margin: float | None = 0.3) -> Tensor:
    """Batch-hard triplet loss (Hermans et al. 2017) on Euclidean distances, any number of images per identity.

    The farthest image of the same identity (the anchor itself included, at distance 1e-6) and the nearest of another.
    An anchor without any negative in the batch adds nothing.

    Args:
        features: (B, D).
        targets: (B,) identities.
        margin: None for the soft margin log(1 + exp(d_ap - d_an)).
    """
    squared = features.pow(2).sum(1)
    distance = (squared[:, None] + squared[None, :] - 2 * features @ features.t()).clamp(min=1e-12).sqrt()
    same = targets[:, None] == targets[None, :]
    hardest_positive = distance.masked_fill(~same, -torch.inf).amax(1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(1)  # infinite without a negative: nothing is violated
    violation = hardest_positive - hardest_negative
    violation = F.softplus(violation) if margin is None else F.relu(margin + violation)
    # sum over count, not a mean of those picked by a mask: picking would make the host wait for the device
    return violation.sum() / (~same.all(1)).sum().clamp(min=1)


@_float32
def anchor_diversity_loss(anchors: Tensor) -> Tensor:
    """Mean squared cosine between different text anchors. anchors: (K, D)."""
    unit = F.normalize(anchors, dim=1)
    return _mean_squared_off_diagonal(unit @ unit.t())


def classifier_diversity_loss(weights: Sequence[Tensor]) -> Tensor:
    """Mean squared cosine between the flattened weights of different classifiers. weights: Q tensors (C, D)."""
    return anchor_diversity_loss(torch.stack([w.flatten() for w in weights]))


def _mean_squared_off_diagonal(matrix: Tensor) -> Tensor:
    n = matrix.shape[0]
    if n < 2:
        return matrix.sum() * 0.0
    # masked, not sum minus diagonal: off-diagonal terms of 1e-4 would drown in the rounding of a diagonal of ones
    itself = torch.eye(n, dtype=torch.bool, device=matrix.device)
    return matrix.masked_fill(itself, 0.0).pow(2).sum() / (n * (n - 1))


@_float32
def anchor_consistency_loss(parts: Tensor, mass: Tensor, targets: Tensor, margin: float = 0.3) -> Tensor:
    """Per anchor, the least similar image of the same identity beats the most similar of another by a margin.

    An image counts for an anchor by how visible that anchor is in it (its mass over the batch's largest).

    Args:
        parts: (B, K, D) per-anchor features, unit length.
        mass: (B, K) attention mass of each anchor, >= 0.
        targets: (B,) identities.
        margin: in cosine.
    """
    similarity = torch.einsum("ikd,jkd->kij", parts, parts)  # (K, B, B)
    same = targets[:, None] == targets[None, :]
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positive = similarity.masked_fill(~same | itself, 1e4).amin(2)  # (K, B); no other image of the identity: no loss
    negative = similarity.masked_fill(same, -torch.inf).amax(2)
    violation = F.relu(margin - positive + negative)
    alive = (mass / mass.amax(0, keepdim=True).clamp(min=1e-12)).t()
    return (violation * alive).sum() / alive.sum().clamp(min=1e-12)


@_float32
def decorrelation_loss(features: Tensor, reference: Tensor) -> Tensor:
    """Mean squared cross-correlation between the dimensions of two features over the batch; `reference` is a constant.

    Args:
        features: (B, D); reference: (B, D').
    """

    def standardise(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        return x / x.std(0).clamp(min=1e-4)

    correlation = standardise(features).t() @ standardise(reference.detach()) / (features.shape[0] - 1)
    return correlation.pow(2).mean()


@_float32
def hidden_weight_loss(weights: Tensor, whole: Tensor, hidden: Tensor) -> Tensor:
    """KL divergence of the pooling weights from those of the same image with nothing hidden, taken off what is hidden:
    sum_n t_n log(t_n / w_n), t_n = u_n (1 - h_n) / sum. Not of the paper.

    It is -log of the weight that stays off what is hidden, and the divergence among the patches that still show. The
    second keeps the weight on the person: off the occluder alone, it goes to the background, which nothing hides.

    The mean over the images of which something is hidden; 0 without any.

    Args:
        weights: (B, N) pooling weights w, >= 0, an image's summing to 1.
        whole: (B, N) the weights u of the same images with nothing hidden, constants here.
        hidden: (B, N) share h of each patch that is hidden, 0..1.
    """
    target = whole.detach() * (1 - hidden)
    target = target / target.sum(1, keepdim=True).clamp(min=1e-6)
    divergence = torch.xlogy(target, target) - target * weights.clamp(min=1e-6).log()
    return _mean_over_hidden(divergence.sum(1), hidden)


@_float32
def whole_feature_loss(features: Tensor, whole: Tensor, hidden: Tensor) -> Tensor:
    """1 - cosine between the feature of an image and that of the same image with nothing hidden, a constant here. Not
    of the paper.

    The mean over the images of which something is hidden; 0 without any.

    Args:
        features, whole: (B, D). hidden: (B, N) share of each patch that is hidden, 0..1.
    """
    return _mean_over_hidden(1 - F.cosine_similarity(features, whole.detach()), hidden)


@_float32
def visible_tokens_loss(tokens: Tensor, whole: Tensor, hidden: Tensor) -> Tensor:
    """1 - correlation over the width between the token of a patch and the teacher's for the same image with nothing
    hidden, a constant here; a patch counts by the share of it that still shows. Not of the paper.

    A token of the residual stream is read behind a LayerNorm, so what counts of it is what that leaves: its direction
    about its own mean.

    The mean over all images, also those of which nothing is hidden: there the tower stays what it was.

    Args:
        tokens, whole: (B, P*N, D) of P token layers. hidden: (B, N) share of each patch that is hidden, 0..1.
    """
    normed = (F.layer_norm(x, x.shape[-1:]) for x in (tokens, whole.detach()))
    shows = (1 - hidden).repeat(1, tokens.shape[1] // hidden.shape[1])
    apart = (1 - F.cosine_similarity(*normed, dim=-1)) * shows
    return (apart.sum(1) / shows.sum(1).clamp(min=1e-6)).mean()


def _mean_over_hidden(values: Tensor, hidden: Tensor) -> Tensor:
    """Mean of (B,) values over images with something hidden; sum over count, so that the host need not wait."""
    counts = hidden.amax(1) > 0
    return (values * counts).sum() / counts.sum().clamp(min=1)
