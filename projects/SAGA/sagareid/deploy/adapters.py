"""An extractor in the place of a consumer's own ReID model: the checkpoint itself runs, not an export of it.

Nothing of a consumer is imported here but `reid` (Apache-2.0), and that where it is asked for.

N boxes, F feature width, (H, W) input size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from .boxes import crop_boxes
from .extractor import Extractor
from .threshold import Threshold

__all__ = ["BoxMOTReID", "UltralyticsReID", "appearance_threshold", "roboflow_model"]


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

    def __init__(self, extractor: Extractor, *, min_visibility: float = 0.0):
        """
        Args:
            min_visibility: a person of whom less is seen gives no feature: the tracker then goes by the motion alone,
                and the memory of the track stays as it was. Above 0 it needs the read-out of tools/fit_visibility.py.

        Raises:
            ValueError: a share out of range.
            FileNotFoundError: no read-out beside the checkpoint.
        """
        if not 0 <= min_visibility <= 1:
            raise ValueError(f"min_visibility is {min_visibility}; expected a share from 0 to 1")
        if min_visibility:
            _ = extractor.readout  # what is missing is said now, not at the first frame
        self.extractor, self.min_visibility = extractor, min_visibility

    def __call__(self, image: np.ndarray, detections: np.ndarray) -> list[np.ndarray | None]:
        """A feature of each detection (N, >= 4), centre and size, in a BGR frame; None of one outside of it, and of one
        of which too little is seen."""
        options = {"format": "cxcywh", "empty": "zero"}
        if not self.min_visibility:
            features = self.extractor.embed(image, _four(detections), **options).numpy()
            return [feature if feature.any() else None for feature in features]
        found, seen = self.extractor.embed(image, _four(detections), visibility=True, **options)
        kept = (seen.crop >= self.min_visibility).tolist()
        return [feature if keep else None for feature, keep in zip(found.numpy(), kept)]


def appearance_threshold(extractor: Extractor, threshold: str | Path | float, tracker: str) -> float:
    """A calibrated threshold as the setting `appearance_thresh` of a tracker's BoT-SORT, whose scale is its own.

    BoxMOT's is a distance, 1 - similarity, and lets through what is below. Ultralytics' is (1 + similarity) / 2.

    Args:
        threshold: a file of tools/calibrate.py, or a similarity.
        tracker: "boxmot" or "ultralytics".

    Raises:
        ValueError: another tracker; a file of another model than the extractor's, or that is no calibration.
        FileNotFoundError: neither a number nor a file.
    """
    chosen = Threshold.read(threshold)
    chosen.check_model(extractor.checkpoint_sha256, extractor.feature, "the extractor")
    scales = {"boxmot": 1 - chosen.value, "ultralytics": (1 + chosen.value) / 2}
    if tracker not in scales:
        raise ValueError(f"tracker is {tracker!r}; expected {', '.join(scales)}")
    return scales[tracker]


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
