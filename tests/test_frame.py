"""One call for a frame and its boxes: the crops are the extractor's, cut at the border; what is no box is named."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sagareid import Extractor
from sagareid.deploy.adapters import BoxMOTReID, UltralyticsReID
from sagareid.deploy.boxes import crop_boxes, pixel_boxes


@pytest.fixture(scope="module")
def extractor(tiny_run):
    return Extractor.from_checkpoint(tiny_run, device="cpu")


@pytest.fixture(scope="module")
def frame(tiny_root) -> np.ndarray:
    """(120, 200, 3) BGR: three people on noise, at x 10, 70, 150 and y 20, each 24 x 48."""
    frame = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    photos = sorted((tiny_root / "synthetic_pedestrians/query").iterdir())
    for x, photo in zip((10, 70, 150), photos[::3]):
        picture = Image.open(photo).convert("RGB").resize((24, 48))
        frame[20:68, x : x + 24] = np.asarray(picture)[..., ::-1]
    return frame


BOXES = np.array([[10, 20, 34, 68], [70, 20, 94, 68], [150, 20, 174, 68]], np.float32)


def crops_of(frame, boxes=BOXES):
    return [np.ascontiguousarray(frame[y1:y2, x1:x2, ::-1]) for x1, y1, x2, y2 in np.asarray(boxes, int)]


def test_a_frame_gives_the_features_of_its_crops(extractor, frame):
    expected = extractor(crops_of(frame))
    assert torch.equal(extractor.embed(frame, BOXES), expected)
    assert torch.equal(extractor.embed(np.ascontiguousarray(frame[..., ::-1]), BOXES, bgr=False), expected)
    assert torch.equal(extractor.embed(frame, torch.tensor(BOXES).double()), expected)
    assert torch.equal(extractor.embed(frame, BOXES.tolist()), expected)
    assert torch.equal(
        extractor.embed(frame, SimpleNamespace(xyxy=BOXES)), expected
    )  # supervision.Detections and its kin
    size = BOXES[:, 2:] - BOXES[:, :2]
    assert torch.equal(extractor.embed(frame, np.hstack([BOXES[:, :2], size]), format="xywh"), expected)
    assert torch.equal(extractor.embed(frame, np.hstack([BOXES[:, :2] + size / 2, size]), format="cxcywh"), expected)
    assert not torch.allclose(extractor.embed(frame, BOXES, bgr=False), expected, atol=1e-3)


def test_crops_are_cut_at_the_border_and_rounded(extractor, frame):
    box = [[-30.0, -4.4, 34.4, 67.6]]
    assert pixel_boxes(box, 120, 200).tolist() == [[0, 0, 34, 68]]
    assert torch.equal(extractor.embed(frame, box), extractor(crops_of(frame, [[0, 0, 34, 68]])))


def test_a_frame_without_people(extractor, frame):
    for nobody in ([], np.zeros((0, 4)), torch.zeros(0, 4), SimpleNamespace(xyxy=np.zeros((0, 4)))):
        assert extractor.embed(frame, nobody).shape == (0, extractor.width)


def test_a_box_without_a_pixel_is_named_or_gives_zeros(extractor, frame):
    boxes = np.vstack([BOXES, [[300, 20, 330, 80]], [[50, 50, 50, 90]], BOXES[:1]])
    with pytest.raises(ValueError, match='boxes 3, 4 have no pixel inside the frame of 200 x 120; drop .*empty="zero"'):
        extractor.embed(frame, boxes)
    features = extractor.embed(frame, boxes, empty="zero")
    assert not features[3:5].any() and torch.equal(features[5], features[0]) and features[:3].norm(dim=1).min() > 0.99
    with pytest.raises(ValueError, match="empty is 'skip'"):
        extractor.embed(frame, boxes, empty="skip")


@pytest.mark.parametrize(
    "wrong, options, error, message",
    [
        ("frame", None, TypeError, "the frame is a NoneType; .* cv2.imread and VideoCapture.read give None"),
        ("frame", np.zeros((9, 9), np.uint8), ValueError, r"the frame is an array \(9, 9\) of uint8"),
        ("frame", np.zeros((9, 9, 3)), ValueError, "of float64; expected"),
        ("boxes", BOXES[0], ValueError, r"boxes are \(4,\); .*pass \[box\]"),
        ("boxes", np.ones((2, 6)), ValueError, r"boxes are \(2, 6\); .*pass boxes\[:, :4\]"),
        ("boxes", [["a"] * 4], TypeError, "boxes are no .N, 4. numbers"),
        ("boxes", [[0, 0, 9, 9], [0, np.nan, 9, 9]], ValueError, "boxes 1 have coordinates that are not finite"),
        ("boxes", [[50, 60, 20, 40]], ValueError, "boxes 0 have their second corner before their first: is it xywh"),
        ("format", "yolo", ValueError, "format is 'yolo'; expected xyxy, xywh, cxcywh"),
    ],
)
def test_what_is_no_frame_or_box_is_said_once(wrong, options, error, message, extractor, frame):
    call = {"frame": frame, "boxes": BOXES, "format": "xyxy"} | {wrong: options}
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("error")
        extractor.embed(**call)
    with pytest.raises(ValueError, match="a negative size"):
        crop_boxes(frame, [[0, 0, -5, 9]], format="xywh")
    with pytest.raises(ValueError, match="has corners in .xyxy"):
        crop_boxes(frame, SimpleNamespace(xyxy=BOXES), format="xywh")


def test_compare(extractor, frame):
    crops = crops_of(frame)
    features = extractor(crops)
    torch.testing.assert_close(extractor.compare(crops, crops[:2]), features @ features[:2].T)
    torch.testing.assert_close(extractor.compare(3 * features, crops[0]), features @ features[:1].T)
    assert float(extractor.compare(crops[0], Image.fromarray(crops[0]))) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"features are \(3, 5\); this extractor's are"):
        extractor.compare(np.ones((3, 5)), crops)


def test_adapters_without_their_consumers(extractor, frame):
    """What a tracker hands over: further columns, boxes outside of the frame."""
    expected = extractor(crops_of(frame))
    rows = np.hstack([np.vstack([BOXES, [[300, 0, 320, 40]]]), np.ones((4, 2))]).astype(np.float32)
    features = BoxMOTReID(extractor).get_features(rows, frame)
    assert isinstance(features, np.ndarray) and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert (
        np.array_equal(features[:3], expected.numpy()) and BoxMOTReID(extractor).get_features([], frame).shape[0] == 0
    )
    centred = np.hstack([(rows[:, :2] + rows[:, 2:4]) / 2, rows[:, 2:4] - rows[:, :2], rows[:, 4:]])
    *seen, outside = UltralyticsReID(extractor)(frame, centred)
    assert np.array_equal(seen, expected.numpy()) and outside is None
