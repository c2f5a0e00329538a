"""The contract between backbones and heads: named tensors instead of tuple positions.

B images, N patch tokens, D token width, E width of CLIP's joint space, (h, w) patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["TENSORS", "CLIPFeatures", "as_features"]

# The tensors of `CLIPFeatures`: what a feature cache can hold in place of images.
TENSORS = ("patches", "cls", "proj", "layer_cls")


@dataclass
class CLIPFeatures:
    """What an image tower gives a head.

    Attributes:
        patches: (B, P*N, D) patch tokens of the P token layers in ascending order, residual stream, not normalised.
        grid: (h, w) of one layer's N = h*w patches, row-major.
        cls: (B, D) class token after the last block and the final LayerNorm; None where the tower has none.
        proj: (B, E) class token in the joint space, not normalised; None where the tower has none.
        layer_cls: (B, P, D) class token of each token layer, residual stream, not normalised; None where there is none.
        num_layers: P.
        camids: (B,) camera ids, for heads conditioned on the camera; None if unknown.
    """

    patches: Tensor
    grid: tuple[int, int]
    cls: Tensor | None = None
    proj: Tensor | None = None
    layer_cls: Tensor | None = None
    num_layers: int = 1
    camids: Tensor | None = None

    def __post_init__(self) -> None:
        expected = self.num_layers * self.grid[0] * self.grid[1]
        if self.patches.shape[1] != expected:
            raise ValueError(
                f"CLIPFeatures: {self.patches.shape[1]} patch tokens, expected {expected} = {self.num_layers} layer(s) "
                f"x grid {self.grid[0]}x{self.grid[1]}"
            )

    def float(self) -> CLIPFeatures:
        """Every tensor in float32: heads and losses compute there, whatever autocast or a cache left."""
        return replace(self, **{k: v.float() for k in TENSORS if (v := getattr(self, k)) is not None})


def as_features(features: CLIPFeatures | Tensor) -> CLIPFeatures:
    """Accept any backbone: a (B, D, h, w) map becomes patch tokens without class token.

    Raises:
        TypeError: neither CLIPFeatures nor a 4-D tensor.
    """
    if isinstance(features, CLIPFeatures):
        return features
    if isinstance(features, torch.Tensor) and features.dim() == 4:
        height, width = features.shape[2:]
        return CLIPFeatures(patches=features.flatten(2).transpose(1, 2), grid=(height, width))
    found = f"a {features.dim()}-D tensor" if isinstance(features, torch.Tensor) else type(features).__name__
    raise TypeError(f"head input is {found}; expected CLIPFeatures or a (B, D, h, w) map")
