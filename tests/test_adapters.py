"""The gate for hidden people in what trackers take for their ReID model. Real trackers: tests/interop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sagareid.deploy.adapters import BoxMOTReID, UltralyticsReID

BOXES = np.array([[0, 0, 20, 40], [30, 0, 50, 40], [900, 0, 920, 40]], np.float32)
CENTRED = np.hstack([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2], np.zeros((3, 1))])
FRAME = np.zeros((48, 96, 3), np.uint8)


class Extractor:
    """Three people in a frame: in full view, mostly hidden, and outside of it."""

    size = (16, 8)
    readout = None

    def __call__(self, crops) -> torch.Tensor:
        assert [crop.shape for crop in crops] == [(16, 8, 3)]  # the black crop
        return torch.tensor([[0.0, 0.0, 1.0]])

    def embed(self, frame, boxes, *, format, empty, visibility=False):
        assert empty == "zero" and boxes.shape[1] == 4 and format in ("xyxy", "cxcywh")
        features = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0]])[: len(boxes)]
        return (features, SimpleNamespace(crop=torch.tensor([0.9, 0.3, 0.0])[: len(boxes)])) if visibility else features


def test_boxmot_gets_a_feature_of_everybody_and_is_told_who_is_hidden():
    for least, hidden in ((0.0, [False] * 3), (0.5, [False, True, True])):
        reid = BoxMOTReID(Extractor(), min_visibility=least)
        assert np.array_equal(reid.get_features(BOXES, FRAME), np.eye(3, dtype=np.float32))
        assert reid.hidden.tolist() == hidden
        assert reid.get_features(BOXES[:1], FRAME).shape == (1, 3) and len(reid.hidden) == 1


def test_ultralytics_gets_nothing_of_the_hidden():
    for least, there in ((0.0, [True, True, False]), (0.5, [True, False, False])):
        features = UltralyticsReID(Extractor(), min_visibility=least)(FRAME, CENTRED)
        assert [feature is not None for feature in features] == there


@pytest.mark.parametrize("adapter", [BoxMOTReID, UltralyticsReID])
def test_a_share_is_asked_for(adapter):
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        adapter(Extractor(), min_visibility=50)
