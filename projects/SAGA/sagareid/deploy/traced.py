"""A trained model as the function that is exported: what a consumer feeds in, tensors out.

B images, (H, W) input size, F feature width, K text anchors, (h, w) patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .feature_model import FeatureModel
from .targets.pixels import Pixels

__all__ = ["Traced"]


class Traced(nn.Module):
    """A FeatureModel whose inputs and outputs are tensors alone, fed as a consumer feeds.

    Args:
        pixels: what the consumer feeds.
        attention: the anchors' attention is a second output.
        camera: place of the one camera among the model's that all images come from, -1 for unknown. None: `cameras` is
            an input, where the model looks at cameras.
        batch: the one batch size; None for any.
    """

    def __init__(
        self,
        module: FeatureModel,
        attention: bool = False,
        *,
        pixels: Pixels | None = None,
        camera: int | None = None,
        batch: int | None = None,
    ):
        super().__init__()
        self.module, self.attention, self.pixels, self.batch = module, attention, pixels or Pixels(), batch
        fixed = module.reads_cameras and camera is not None
        self.camera: Tensor | None
        self.register_buffer("camera", torch.tensor([camera]) if fixed else None, persistent=False)

    @property
    def takes_cameras(self) -> bool:
        """Whether `cameras` is an input."""
        return self.module.reads_cameras and self.camera is None

    def forward(self, images: Tensor, cameras: Tensor | None = None):
        """(B, 3, H, W) as the consumer feeds, and (B,) cameras; returns (B, F), with attention also (B, K, h, w)."""
        if self.camera is not None:
            # of one element in a graph, where all that follows from it is a constant
            exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()
            cameras = self.camera if exporting else self.camera.expand(len(images))
        return self.module(self.pixels.undo(images), cameras, self.attention)

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Seeded images of blobs and noise, as the consumer feeds them; cameras where they are an input."""
        generator = torch.Generator().manual_seed(seed)
        height, width = self.module.size
        blobs = torch.rand(batch, 3, 4, 4, generator=generator) * 255
        images = nn.functional.interpolate(blobs, size=(height, width), mode="bilinear", align_corners=False)
        images = (images + 20 * torch.randn(images.shape, generator=generator)).clamp(0, 255)
        images = self.pixels.feed(images)
        if not self.takes_cameras:
            return (images,)
        cameras = len(self.module.cfg.MODEL.CLIP.CAMERAS)
        return images, torch.randint(-1, cameras, (batch,), generator=generator)
