"""A frame with people and their boxes, a trained run, its extractor, and its exports as the command writes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagareid import Extractor

# Consumers install, download and configure by themselves at run time; here they shall fail instead.
os.environ["PIP_NO_INDEX"] = "1"
os.environ["YOLO_OFFLINE"] = "true"

HEIGHT, WIDTH = 48, 24  # of the run's images


@pytest.fixture(scope="session", autouse=True)
def settings_of_consumers(session_tmp):
    """Ultralytics keeps its settings in the test's folder."""
    os.environ["YOLO_CONFIG_DIR"] = str(session_tmp)


@pytest.fixture(scope="session")
def extractor(tiny_run) -> Extractor:
    return Extractor.from_checkpoint(tiny_run, device="cpu")


@pytest.fixture(scope="session")
def scene(tiny_root) -> tuple[np.ndarray, np.ndarray]:
    """A frame (240, 640, 3) BGR of soft colours with 17 different shots of people, and their boxes (17, 4) as corners.

    The first eight are of the model's own size, so that no consumer resizes them; the others are up to twice as large.
    The last one's box reaches over the border of the frame.
    """
    # soft: Ultralytics takes 10 pixels around a box as well, and its resizing turns noise into other noise
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 16, 3), np.uint8))
    frame = np.asarray(colours.resize((640, 240), Image.Resampling.BICUBIC)).copy()
    photos = sorted((tiny_root / "synthetic_pedestrians/query").iterdir())
    boxes = []
    for i in range(17):
        scale = 1.0 if i < 8 else 1.0 + (i - 7) / 9
        width, height = round(WIDTH * scale), round(HEIGHT * scale)
        x, y = (20 + 60 * i, 20) if i < 8 else (20 + 70 * (i - 8), 110)
        if i == 16:
            x = 640 - width + 8
        picture = np.asarray(Image.open(photos[i % len(photos)]).convert("RGB").resize((width, height)))[..., ::-1]
        frame[y : y + height, x : x + width] = picture[:, : 640 - x]
        boxes.append([x, y, x + width, y + height])
    return frame, np.array(boxes, np.float32)


@pytest.fixture(scope="session")
def exported(tiny_run, session_tmp, call_tool):
    """`tools/export.py RUN -o FILE --for TARGET`, once."""

    def export(target: str, name: str = "person.onnx") -> Path:
        path = session_tmp / "exported" / target / name
        if not path.exists():
            assert call_tool("export.py", tiny_run, "-o", path, "--for", target, "--batch-sizes") == 0
        return path

    return export


@pytest.fixture(scope="session")
def agree():
    """Compare a consumer's features with ours: of each box, and of the relations between people."""

    def check(found: np.ndarray, ours: np.ndarray, cosine: float) -> None:
        found, ours = (np.asarray(x, np.float64) for x in (found, ours))
        assert found.shape == ours.shape
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        assert (unit * ours).sum(1).min() >= cosine
        if len(ours) > 1:  # different people are told apart, as far as the model does
            others = ~np.eye(len(ours), dtype=bool)
            assert (unit @ unit.T)[others].min() < 0.9
            assert np.abs(unit @ unit.T - ours @ ours.T)[others].max() < 0.1
            assert (unit @ ours.T).argmax(1).tolist() == list(range(len(ours)))

    return check


BATCHES = (1, 3, 17)


@pytest.fixture(params=BATCHES)
def batch(request) -> int:
    return request.param
