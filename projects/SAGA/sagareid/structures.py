"""The contract between backbones and heads: named tensors instead of tuple positions.

B images, N patch tokens, D token width, C width of the class token, E width of CLIP's joint space, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "HIDDEN",
    "OUTPUTS",
    "TENSORS",
    "WHOLE",
    "BlockWeights",
    "CLIPFeatures",
    "as_batch",
    "as_features",
    "from_batch",
    "named_outputs",
    "patch_shares",
]

# The tensors of `CLIPFeatures`.
TENSORS = ("patches", "cls", "proj", "layer_cls")
# What a backbone may give, by name: these, or the one map of a backbone that gives (B, D, h, w). A feature cache holds
# some of them in place of images.
OUTPUTS = (*TENSORS, "map")
# Names in a batch of INPUT.OCCLUDE: what is hidden of each image, (B, H, W) shares of pixels or of cells of a grid; and
# the prefix of the same images, or of their cached tensors, with nothing hidden.
HIDDEN, WHOLE = "hidden", "whole_"


@dataclass
class CLIPFeatures:
    """What an image tower gives a head.

    Attributes:
        patches: (B, P*N, D) patch tokens of the P token layers in ascending order, residual stream, not normalised.
        grid: (h, w) of one layer's N = h*w patches, row-major.
        cls: (B, C) class token after the last block and the final LayerNorm, or what else the tower pools for itself; C
            is D but for some convolutional towers. None where the tower has none.
        proj: (B, E) class token in the joint space, not normalised; None where the tower has none.
        layer_cls: (B, P, D) class token of each token layer, residual stream, not normalised; None where there is none.
        num_layers: P.
        camids: (B,) camera ids, for heads conditioned on the camera; None if unknown.
        hidden: (B, N) share of each patch of a layer's grid that an occluder hides, 0..1; None where it is not known.
        whole: of the same images with nothing hidden, without gradient; None where they are not known.
    """

    patches: Tensor
    grid: tuple[int, int]
    cls: Tensor | None = None
    proj: Tensor | None = None
    layer_cls: Tensor | None = None
    num_layers: int = 1
    camids: Tensor | None = None
    hidden: Tensor | None = None
    whole: CLIPFeatures | None = None

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


@dataclass(frozen=True)
class BlockWeights:
    """A transformer block x + MHA(LN_1 x), then x + MLP(LN_2 x), as tensors by the names of the modules that take them.

    Attributes:
        attention: state of an `nn.MultiheadAttention` of width D.
        norm_1: state of an `nn.LayerNorm`.
        feed_forward: {"0.weight" (4D, D), "0.bias", "3.weight" (D, 4D), "3.bias"}; None where the block has another
            (gated, of another width).
        norm_2: state of an `nn.LayerNorm`; None where `feed_forward` is.
    """

    attention: Mapping[str, Tensor]
    norm_1: Mapping[str, Tensor]
    feed_forward: Mapping[str, Tensor] | None = None
    norm_2: Mapping[str, Tensor] | None = None

    @property
    def width(self) -> int:
        return self.attention["in_proj_weight"].shape[1]


def patch_shares(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) share of each pixel that shows something to (B, N) of each patch, which counts as its cell of an even
    (h, w) grid: where strides are smaller than patches, patches see beyond it."""
    return F.adaptive_avg_pool2d(pixels[:, None], grid).flatten(1)


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


# ---- a batch of outputs in place of images --------------------------------------------------------------------------


def named_outputs(features: CLIPFeatures | Tensor) -> dict[str, Tensor]:
    """What a backbone gives, by names of `OUTPUTS`: the tensors that are there.

    Raises:
        TypeError: neither CLIPFeatures nor a 4-D tensor.
    """
    if isinstance(features, Tensor) and features.dim() == 4:
        return {"map": features}
    found = as_features(features)
    return {name: tensor for name in TENSORS if (tensor := getattr(found, name)) is not None}


def as_batch(features: CLIPFeatures | Tensor, names: Collection[str] = OUTPUTS) -> dict[str, Any]:
    """The batch that `from_batch` makes these outputs of: those of `names`, and the form of the patch grid."""
    form = {} if isinstance(features, Tensor) else {"grid": features.grid, "num_layers": features.num_layers}
    return form | {name: tensor for name, tensor in named_outputs(features).items() if name in names}


def from_batch(batch: Mapping[str, Any], camids: Tensor | None = None) -> CLIPFeatures | Tensor:
    """The outputs that a batch holds in place of images: a float32 map, or CLIPFeatures.

    Without "patches", for heads that read the class token alone, CLIPFeatures has patch tokens of width 0.
    """
    if "map" in batch:
        return batch["map"].float()
    tensors = {name: batch[name] for name in TENSORS if name in batch}
    (height, width), layers = batch["grid"], batch["num_layers"]
    some = next(iter(tensors.values()))
    patches = tensors.pop("patches", some.new_empty(len(some), layers * height * width, 0))
    return CLIPFeatures(patches=patches, grid=(height, width), num_layers=layers, camids=camids, **tensors)
