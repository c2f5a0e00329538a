"""An extractor in the place of a consumer's own ReID model: the checkpoint itself runs, not an export of it.

Nothing of a consumer is imported here but `reid` (Apache-2.0), and that where it is asked for.

N boxes, F feature width, (H, W) input size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from .boxes import crop_boxes
from .extractor import Extractor

__all__ = ["BoxMOTReID", "UltralyticsReID", "roboflow_model"]


class BoxMOTReID:
    """What BoxMOT's trackers take as `reid_model`: `BotSort(reid_model=BoxMOTReID(extractor))`."""

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def get_features(self, boxes: Any, image: np.ndarray) -> np.ndarray:
        """(N, F) of corners (N, >= 4) in a BGR frame. A box outside of it is a black crop, as BoxMOT has it."""
        crops = crop_boxes(image, _four(boxes))
        black = np.zeros((*self.extractor.size, 3), np.uint8)
        return self.extractor([black if crop is None else crop for crop in crops]).numpy()


class UltralyticsReID:
    """What Ultralytics' trackers keep as `encoder`: `tracker.encoder = UltralyticsReID(extractor)`."""

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def __call__(self, image: np.ndarray, detections: np.ndarray) -> list[np.ndarray | None]:
        """A feature of each detection (N, >= 4), centre and size, in a BGR frame; None of one outside of it."""
        features = self.extractor.embed(image, _four(detections), format="cxcywh", empty="zero").numpy()
        return [feature if feature.any() else None for feature in features]


def roboflow_model(extractor: Extractor) -> Any:
    """A `reid.ReIDModel` that runs the extractor's model on crops prepared as in training."""
    from reid import ReIDModel
    from reid.preprocessing import ReIDPreprocessing

    preprocessing = ReIDPreprocessing(
        input_size=extractor.size, mean=(0.0,) * 3, std=(1 / 255,) * 3, interpolation=extractor.resizing
    )
    return ReIDModel(_Module(extractor), extractor.device, preprocessing)


class _Module(nn.Module):
    """An extractor as a module from (B, 3, H, W) RGB in 0..255 to (B, F)."""

    def __init__(self, extractor: Extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(list(images.round().clamp(0, 255).byte()))


def _four(detections: Any) -> np.ndarray:
    """The box of each detection, without the confidence and class that may follow it."""
    detections = np.asarray(detections)
    return detections[:, :4] if detections.ndim == 2 else detections
