"""Roboflow's `reid` and `supervision` on a frame, against the extractor."""

from __future__ import annotations

import json

import pytest
import torch

from sagareid.deploy.adapters import roboflow_model

pytest.importorskip("supervision", reason="supervision is not installed")
pytest.importorskip("reid", reason="Roboflow reid is not installed")

import supervision as sv
from reid import ReIDModel
from reid.preprocessing import ReIDPreprocessing


@pytest.fixture(scope="module", params=["file", "adapter"])
def model(request, exported, extractor):
    if request.param == "adapter":
        return roboflow_model(extractor)
    path = exported("roboflow", "model.torchscript")
    config = json.loads((path.parent / "reid_config.json").read_text())
    preprocessing = ReIDPreprocessing.from_dict(config["preprocessing"])
    return ReIDModel(torch.jit.load(path), torch.device("cpu"), preprocessing)


def test_roboflow_sees_what_the_extractor_sees(batch, model, scene, extractor, agree):
    frame, boxes = scene
    agree(
        model.extract_embeddings(sv.Detections(xyxy=boxes[-batch:]), frame),
        extractor.embed(frame, boxes[-batch:]),
        0.999,
    )


def test_a_frame_without_people(model, scene):
    assert len(model.extract_embeddings(sv.Detections.empty(), scene[0])) == 0


def test_supervisions_detections_are_boxes(scene, extractor):
    frame, boxes = scene
    assert torch.equal(extractor.embed(frame, sv.Detections(xyxy=boxes)), extractor.embed(frame, boxes))
    assert extractor.embed(frame, sv.Detections.empty()).shape == (0, extractor.width)
