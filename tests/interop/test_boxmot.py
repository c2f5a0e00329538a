"""BoxMOT's own loaders, crops and preprocessing on a frame, against the extractor."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from sagareid.deploy.adapters import BoxMOTReID

pytest.importorskip("boxmot", reason="BoxMOT is not installed")

from boxmot import BotSort, DeepOcSort
from boxmot.reid.core.runtime import ReID

FILES = ["person.onnx", "person.torchscript"]
NO_RESIZE, RESIZED = 0.999, 0.99  # BoxMOT resizes by OpenCV's bilinear, training by Pillow's bicubic


@pytest.fixture(scope="module")
def reid(exported):
    loaded = {}

    def load(file: str, backend: str = "auto") -> ReID:
        if (file, backend) not in loaded:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BOXMOT_REID_BACKEND", backend)
                loaded[file, backend] = ReID(exported("boxmot", file), device="cpu")
        return loaded[file, backend]

    return load


@pytest.mark.parametrize("file, backend", [(FILES[0], "auto"), (FILES[0], "opencv"), (FILES[1], "auto")])
def test_boxmot_sees_what_the_extractor_sees(file, backend, batch, reid, scene, extractor, agree):
    frame, boxes = scene
    boxes = boxes[-batch:] if batch == 1 else boxes[:batch]  # the one over the border alone; the first three unscaled
    features = reid(file, backend).model.get_features(boxes, frame)
    agree(features, extractor.embed(frame, boxes), NO_RESIZE if batch == 3 else RESIZED)


@pytest.mark.parametrize("file", FILES)
def test_a_frame_without_people(file, reid, scene):
    assert reid(file).model.get_features(np.zeros((0, 4), np.float32), scene[0]).size == 0


def test_the_metadata_beside_the_model_is_read(reid):
    assert reid(FILES[1]).model.input_shape == (48, 24) and reid(FILES[1]).model.model_name == "sagareid"


@pytest.mark.parametrize("tracker", [BotSort, DeepOcSort])
def test_a_tracker_takes_the_file_and_the_adapter(tracker, exported, scene, extractor):
    """Both give one track for each person, with the same numbers, over frames that move a little."""
    frame, boxes = scene
    boxes = boxes[:12]
    tracks = []
    for options in (
        {"reid_weights": str(exported("boxmot")), "device": "cpu"},
        {"reid_model": BoxMOTReID(extractor)},
    ):
        engine, seen = tracker(**options), []
        for step in range(4):
            moved = np.roll(frame, 2 * step, axis=1)
            rows = np.hstack([boxes + [2 * step, 0] * 2, np.full((12, 1), 0.9), np.zeros((12, 1))]).astype(np.float32)
            seen.append(engine.update(rows, moved))
        tracks.append(seen[-1])
    first, second = (np.asarray(rows) for rows in tracks)
    assert len(first) == len(second) == 12 and len(set(first[:, 4])) == 12
    assert np.array_equal(first[:, 4:6], second[:, 4:6])


def test_boxmot_with_an_unadapted_file_is_the_fault_that_targets_are_for(exported, scene, extractor):
    frame, boxes = scene
    wrong = ReID(exported("generic"), device="cpu").model.get_features(boxes, frame)
    cosine = (wrong * extractor.embed(frame, boxes).numpy()).sum(1)
    assert cosine.max() < 0.9 and (wrong @ wrong.T).min() > 0.97  # everybody looks alike


def test_the_package_does_not_import_its_agpl_consumers():
    code = (
        "import sys, sagareid.deploy.adapters, sagareid.deploy.export, sagareid.deploy.targets; "
        "assert not {'boxmot', 'ultralytics', 'reid', 'supervision', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
