"""Ultralytics' own loader, crops and preprocessing on a frame, against the extractor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from sagareid.deploy.adapters import UltralyticsReID

pytest.importorskip("ultralytics", reason="Ultralytics is not installed")

from ultralytics.trackers.bot_sort import BOTSORT
from ultralytics.trackers.utils.reid import ReID


@pytest.fixture(scope="module")
def reid(exported):
    return ReID(str(exported("ultralytics")), device="cpu")


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


def test_ultralytics_sees_what_the_extractor_sees(batch, reid, scene, extractor, agree):
    """On its own crops: it widens a box by 2 % and 10 pixels, and resizes without antialiasing."""
    frame, boxes = scene
    detections = centred(boxes[-batch:])
    features = reid(frame, detections)
    crops = [np.ascontiguousarray(crop[..., ::-1]) for crop in reid._crop_detections(frame, detections)]
    agree(np.stack(features), extractor(crops), 0.99)


def test_crops_of_the_models_own_size_agree_more(reid, scene, extractor, agree):
    """A box that its widening makes 48 x 24 is not resized."""
    frame, boxes = scene
    x, y = boxes[:3, 0], boxes[:3, 1]
    # a third of a pixel aside: corners are cut to whole pixels
    detections = np.stack([x + 12.3, y + 24.3, np.full(3, 14 / 1.02), np.full(3, 38 / 1.02)], axis=1)
    crops = reid._crop_detections(frame, detections)
    assert {crop.shape for crop in crops} == {(48, 24, 3)}
    agree(np.stack(reid(frame, detections)), extractor([np.ascontiguousarray(c[..., ::-1]) for c in crops]), 0.999)


def test_a_box_outside_of_the_frame_and_no_box(reid, scene):
    frame, _ = scene
    assert reid(frame, centred(np.array([[900, 20, 930, 80]], np.float32))) == [None]
    assert reid(frame, np.zeros((0, 4), np.float32)) == []


@pytest.mark.parametrize("encoder", ["file", "adapter"])
def test_a_tracker_takes_the_file_and_the_adapter(encoder, exported, scene, extractor):
    settings = yaml.safe_load(exported("ultralytics").with_suffix(".botsort.yaml").read_text())
    frame, boxes = scene
    tracker = BOTSORT(SimpleNamespace(**settings, device="cpu"))
    if encoder == "adapter":
        tracker.encoder = UltralyticsReID(extractor)
    for step in range(3):
        found = Found(centred(boxes[:12] + np.float32([2 * step, 0] * 2)))
        tracks = tracker.update(found, np.roll(frame, 2 * step, axis=1))
    assert len(tracks) == 12 and len(set(tracks[:, 4])) == 12
    assert tracker.tracked_stracks[0].curr_feat.shape == (extractor.width,)


class Found:
    """Detections as a tracker of Ultralytics reads them."""

    def __init__(self, xywh: np.ndarray):
        self.xywh = xywh
        self.conf, self.cls = np.full(len(xywh), 0.9, np.float32), np.zeros(len(xywh), np.float32)

    @property
    def xyxy(self) -> np.ndarray:
        return np.hstack([self.xywh[:, :2] - self.xywh[:, 2:] / 2, self.xywh[:, :2] + self.xywh[:, 2:] / 2])

    def __len__(self) -> int:
        return len(self.xywh)

    def __getitem__(self, index) -> Found:
        found = Found(self.xywh[index])
        found.conf, found.cls = self.conf[index], self.cls[index]
        return found
