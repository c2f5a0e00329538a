"""Flip averaging (TEST.FLIP): the feature of an image is the mean of its own and its mirror image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["FlipAveraged", "mean_over_views", "views"]


def views(images: Tensor, flip: bool) -> list[Tensor]:
    """(B, 3, H, W) images and, with `flip`, their mirror images, in memory of their own: a model may change its
    input."""
    return [images, images.flip(3)] if flip else [images]


def mean_over_views(features: Sequence[Tensor]) -> Tensor:
    """(B, F) mean of the features of `views`."""
    if len(features) == 1:
        return features[0]
    plain, mirrored = features
    return (plain + mirrored) / 2


class FlipAveraged(nn.Module):
    """A model that gives features averaged over the flip.

    FastReID's evaluation flips what its Baseline has normalised in place and normalises it again
    (evaluation/evaluator.py:120), so it is not asked to flip.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """(B, F) features of a loader's batch."""
        return mean_over_views([self.model(batch | {"images": images}) for images in views(batch["images"], True)])
