"""Towers of timm with a part that timm does not have, for weights that were trained with it.

    ics      TransReID-SSL's convolutional stem in front of a ViT (Luo et al. 2021, section 3.3)
    solider  SOLIDER's Swin Transformer (Chen et al. 2023, section 3.3)

A variant is a function that changes a built timm model in place, and may have `size_options` for timm's
`set_input_size`, which comes before it; MODEL.BACKBONE.TIMM.VARIANT names one. The modules
keep timm's, so that its weights load, and add their own. No FastReID and no configuration in here.
"""

from __future__ import annotations

from collections.abc import Callable

import timm.models.swin_transformer as timm_swin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VARIANTS", "ConvolutionalStem", "PaddedBlock", "SemanticMerging", "as_ics", "as_solider"]

STEM_WIDTH = 64


class _IBN(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the others (IBN-Net); names as published."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.half]), self.BN(x[:, self.half :])], dim=1)


class ConvolutionalStem(nn.Module):
    """Three convolutions at half the size of the image, then patches of half the side: (B, 3, H, W) to (B, D, h, w).

    conv 7x7 stride 2, IBN, ReLU; conv 3x3, IBN, ReLU; conv 3x3, batch norm, ReLU; conv p/2 x p/2 with stride p/2. IBN
    is instance norm of the first half of the channels and batch norm of the others. The stem has no biases.
    """

    def __init__(self, patch: int, width: int):
        super().__init__()
        stem: list[nn.Module] = []
        for i, (channels, kernel, stride) in enumerate(((3, 7, 2), (STEM_WIDTH, 3, 1), (STEM_WIDTH, 3, 1))):
            stem.append(nn.Conv2d(channels, STEM_WIDTH, kernel, stride=stride, padding=kernel // 2, bias=False))
            stem.append(_IBN(STEM_WIDTH) if i < 2 else nn.BatchNorm2d(STEM_WIDTH))
            stem.append(nn.ReLU(inplace=True))
        self.stem = nn.Sequential(*stem)
        self.proj = nn.Conv2d(STEM_WIDTH, width, patch // 2, stride=patch // 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.stem(images))


def as_ics(model: nn.Module, *, semantic_weight: float) -> None:
    """Put the convolutional stem in front of timm's ViT.

    Raises:
        ValueError: no ViT, or patches whose stride is not their size, which the published stem does not have.
    """
    embed = getattr(model, "patch_embed", None)
    proj = getattr(embed, "proj", None)
    if not isinstance(proj, nn.Conv2d) or not hasattr(model, "cls_token"):
        raise ValueError(
            "MODEL.BACKBONE.TIMM.VARIANT ics is for a ViT with a class token, such as vit_small_patch16_224"
        )
    patch = proj.kernel_size[0]
    if proj.stride != proj.kernel_size or patch % 2:
        raise ValueError(
            f"MODEL.BACKBONE.TIMM.VARIANT ics cuts patches of {patch} side by side: set MODEL.BACKBONE.STRIDE_SIZE to "
            f"({patch}, {patch})"
        )
    embed.proj = ConvolutionalStem(patch, proj.out_channels)


class PaddedBlock(nn.Module):
    """A block of timm's Swin Transformer that pads its map to whole windows before it shifts it, as OpenMMLab's does.

    timm shifts first, and takes smaller windows where the map is smaller than one; both give the same numbers where the
    map is whole windows, as at 224x224, and other ones at 384x128.
    """

    def __init__(self, block: timm_swin.SwinTransformerBlock, shifted: bool):
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window = block.attn.window_size
        self.shift = tuple(side // 2 for side in self.window) if shifted else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        x = x + self.drop_path1(self._windows(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _windows(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        rest = [-side % window for side, window in zip((height, width), self.window)]
        x = F.pad(x, (0, 0, 0, rest[1], 0, rest[0]))
        padded = x.shape[1:3]
        mask = None
        if any(self.shift):
            x = torch.roll(x, [-s for s in self.shift], (1, 2))
            mask = self._mask(padded, x)
        windows = timm_swin.window_partition(x, self.window).reshape(-1, self.window[0] * self.window[1], channels)
        windows = self.attn(windows, mask=mask).reshape(-1, *self.window, channels)
        x = timm_swin.window_reverse(windows, self.window, *padded)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        return x[:, :height, :width]

    def _mask(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """(windows, area, area): -100 between patches that the shift brought together."""
        regions = torch.zeros(1, *size, 1, device=like.device)
        for axis, (side, window, shift) in enumerate(zip(size, self.window, self.shift)):
            steps = torch.arange(side, device=like.device)
            region = (steps >= side - window).int() + (steps >= side - shift).int()
            regions += (3**axis * region).view(1, -1, 1, 1) if axis == 0 else (3 * region).view(1, 1, -1, 1)
        windows = timm_swin.window_partition(regions, self.window).flatten(1)
        return (windows[:, None] != windows[:, :, None]).to(like.dtype) * -100.0


class _Constant(nn.Module):
    """A linear layer of two numbers that does not learn."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, 2))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class SemanticMerging(nn.Module):
    """Merging of patches and SOLIDER's control: x softplus(W (l, 1-l)) + B (l, 1-l) for a semantic weight l in 0..1.

    W and B are linear layers that the pre-training learnt; fine-tuning keeps them, so they are buffers.
    """

    def __init__(self, merging: nn.Module, weight: float):
        super().__init__()
        self.merging = merging
        channels = merging.reduction.out_features
        self.semantic_w, self.semantic_b = _Constant(channels), _Constant(channels)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 2C)."""
        control = x.new_tensor([self.weight, 1 - self.weight])
        return self.merging(x) * F.softplus(self.semantic_w(control)) + self.semantic_b(control)


def as_solider(model: nn.Module, *, semantic_weight: float) -> None:
    """Make timm's Swin Transformer SOLIDER's.

    Args:
        semantic_weight: 0 (appearance) to 1 (semantics).

    Raises:
        ValueError: no Swin Transformer; a weight out of range.
    """
    if not isinstance(model, timm_swin.SwinTransformer):
        raise ValueError(
            "MODEL.BACKBONE.TIMM.VARIANT solider is for a Swin Transformer, such as swin_base_patch4_window7_224"
        )
    if not 0 <= semantic_weight <= 1:
        raise ValueError(f"MODEL.BACKBONE.TIMM.SEMANTIC_WEIGHT is {semantic_weight}; expected 0 to 1")
    model.set_input_size(window_size=(7, 7), always_partition=True)
    for number, stage in enumerate(model.layers):
        if number:
            stage.downsample = SemanticMerging(stage.downsample, semantic_weight)
        stage.blocks = nn.Sequential(*(PaddedBlock(block, bool(i % 2)) for i, block in enumerate(stage.blocks)))


as_solider.size_options = {"always_partition": True}  # of timm's set_input_size: windows keep their size on small maps

# MODEL.BACKBONE.TIMM.VARIANT -> what makes it of a timm model
VARIANTS: dict[str, Callable[..., None]] = {"ics": as_ics, "solider": as_solider}
