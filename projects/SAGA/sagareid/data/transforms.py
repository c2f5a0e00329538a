"""FastReID's transforms with the two details of the published recipe that it has no key for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision.transforms as T
from torch import Tensor

from fastreid.data.transforms import build_transforms as host_transforms

__all__ = ["PixelNoiseErasing", "build_transforms"]


class PixelNoiseErasing(T.RandomErasing):
    """Random erasing whose box holds one normal value per pixel in normalised space (mean + std * N(0, 1) before it).

    One box of the given share of the image and an aspect ratio log-uniform in [0.3, 1/0.3], up to ten attempts.
    """

    def __init__(self, *, p: float, area: Sequence[float], mean: Sequence[float], std: Sequence[float]):
        super().__init__(p=p, scale=tuple(area), ratio=(0.3, 1 / 0.3), value="random")
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) in 0..255; a new tensor."""
        return super().forward((image - self.mean) / self.std) * self.std + self.mean


def build_transforms(cfg, is_train: bool) -> T.Compose:
    """FastReID's `build_transforms`, with INPUT.REA.PIXEL_NOISE and INPUT.INTERPOLATION_TEST."""
    if not is_train:
        transforms = host_transforms(cfg, is_train=False)
        for step in transforms.transforms:
            if isinstance(step, T.Resize):
                step.interpolation = T.InterpolationMode(cfg.INPUT.INTERPOLATION_TEST)
        return transforms
    if not (cfg.INPUT.REA.ENABLED and cfg.INPUT.REA.PIXEL_NOISE):
        return host_transforms(cfg, is_train=True)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.REA.ENABLED = False
    transforms = host_transforms(cfg, is_train=True)
    erasing = PixelNoiseErasing(
        p=cfg.INPUT.REA.PROB, area=cfg.INPUT.REA.AREA, mean=cfg.MODEL.PIXEL_MEAN, std=cfg.MODEL.PIXEL_STD
    )
    transforms.transforms.append(erasing)
    return transforms
