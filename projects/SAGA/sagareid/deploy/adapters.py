"""An extractor in the place of a consumer's own ReID model: the checkpoint itself runs, not an export of it.

Nothing of a consumer is imported here but `reid` (Apache-2.0), and that where it is asked for.

N boxes, F feature width, (H, W) input size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from .extractor import Extractor
from .threshold import Threshold

__all__ = ["BoxMOTReID", "UltralyticsReID", "appearance_threshold", "roboflow_model"]


class _Adapter:
    """An extractor and a gate for people who are hidden.

    Args:
        min_visibility: of a person of whom less is seen the tracker goes by the motion alone, and the memory of the
            track stays as it was. Above 0 it needs the read-out of tools/fit_visibility.py.

    Raises:
        ValueError: a share out of range.
        FileNotFoundError: no read-out beside the checkpoint.
    """

    def __init__(self, extractor: Extractor, *, min_visibility: float = 0.0):
        if not 0 <= min_visibility <= 1:
            raise ValueError(f"min_visibility is {min_visibility}; expected a share from 0 to 1")
        if min_visibility:
            _ = extractor.readout  # what is missing is said now, not at the first frame
        self.extractor, self.min_visibility = extractor, min_visibility

    def _look(self, image: np.ndarray, boxes: np.ndarray, format: str) -> tuple[Tensor, np.ndarray]:
        """(N, F) features, zeros of a box outside of the frame, and (N,) bool, who is hidden."""
        if not self.min_visibility:
            features = self.extractor.embed(image, boxes, format=format, empty="zero")
            return features, np.zeros(len(features), bool)
        features, seen = self.extractor.embed(image, boxes, format=format, empty="zero", visibility=True)
        return features, (seen.crop < self.min_visibility).numpy()


class BoxMOTReID(_Adapter):
    """What BoxMOT's trackers take as `reid_model`: `BotSort(reid_model=BoxMOTReID(extractor))`.

    `hidden` (N,) bool says of the boxes of the last frame who is less visible than `min_visibility`. BoxMOT (25.0.0)
    asks for a feature of everybody, so that the gate itself is in the tracker: docs/tracking.md has its lines.
    """

    hidden = np.zeros(0, bool)

    def get_features(self, boxes: Any, image: np.ndarray) -> np.ndarray:
        """(N, F) of corners (N, >= 4) in a BGR frame. A box outside of it is a black crop, as BoxMOT has it."""
        features, self.hidden = self._look(image, _four(boxes), "xyxy")
        outside = ~features.any(1)
        if outside.any():
            features[outside] = self.extractor([np.zeros((*self.extractor.size, 3), np.uint8)])
        return features.numpy()


class UltralyticsReID(_Adapter):
    """What Ultralytics' trackers keep as `encoder`: `tracker.encoder = UltralyticsReID(extractor)`.

    The tracker's `args.with_reid` has to be True and its `args.model` anything but "auto": with that it takes features
    of the detector alone and asks no encoder, without a word (8.4.190).
    """

    def __call__(self, image: np.ndarray, detections: np.ndarray) -> list[np.ndarray | None]:
        """A feature of each detection (N, >= 4), centre and size, in a BGR frame.

        None, which a tracker neither compares nor remembers, of one outside of the frame, or hidden.
        """
        features, hidden = self._look(image, _four(detections), "cxcywh")
        rows = zip(features.numpy(), hidden)
        return [feature if feature.any() and not gone else None for feature, gone in rows]


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
