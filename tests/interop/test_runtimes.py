"""OpenVINO and OpenCV on the crops of a frame, against the extractor."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from sagareid.deploy.boxes import crop_boxes


def prepared(extractor, crops) -> np.ndarray:
    """(B, 3, H, W) float32 RGB in 0..255, resized as in training."""
    return torch.stack([extractor._prepare(crop, 0) for crop in crops]).numpy()


@pytest.mark.parametrize("precision, difference", [("f32", 1e-5), ("auto", 1e-2)])
def test_openvino(precision, difference, batch, exported, scene, extractor, agree):
    """In float32 it is exact. By default it computes in bfloat16 on a CPU that has it: its only difference."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    hint = {"INFERENCE_PRECISION_HINT": "f32"} if precision == "f32" else {}
    model = openvino.Core().compile_model(str(exported("openvino")), "CPU", hint)
    frame, boxes = scene
    crops, expected = crop_boxes(frame, boxes[-batch:]), extractor.embed(frame, boxes[-batch:]).numpy()
    features = model(prepared(extractor, crops))[0]
    agree(features, expected, 0.999)
    assert np.abs(features - expected).max() < difference


def test_openvino_without_people(exported):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = openvino.Core().compile_model(str(exported("openvino")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert len(model(np.zeros((0, 3, 48, 24), np.float32))[0]) == 0


def test_opencv(exported, scene, extractor, agree):
    """One network for every batch size; its bilinear resizing is not the training's."""
    net = cv2.dnn.readNetFromONNX(str(exported("opencv")))
    frame, boxes = scene
    for some, cosine in ((boxes[:1], 0.999), (boxes[:3], 0.999), (boxes, 0.99), (boxes[-1:], 0.99)):
        crops = [crop[..., ::-1].copy() for crop in crop_boxes(frame, some)]
        net.setInput(cv2.dnn.blobFromImages(crops, size=(24, 48), swapRB=True))
        agree(net.forward(), extractor.embed(frame, some), cosine)
