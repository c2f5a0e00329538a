"""Crops of a frame from the boxes of a detector or a tracker.

N boxes, (H, W) size of the frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import first_few

__all__ = ["FORMATS", "crop_boxes", "empty_boxes", "pixel_boxes"]

FORMATS = ("xyxy", "xywh", "cxcywh")


def crop_boxes(frame: Any, boxes: Any, *, format: str = "xyxy", bgr: bool = True) -> list[np.ndarray | None]:
    """The crop of each box, cut at the border of the frame; None for a box without a pixel inside.

    Args:
        frame: (H, W, 3) uint8, as OpenCV reads it: BGR, unless `bgr` is False.
        boxes: (N, 4) numbers, a tensor, or anything with them in `.xyxy`, such as `supervision.Detections`.
        format: "xyxy" corners, "xywh" the upper left corner and the size, "cxcywh" the centre and the size. Corners are
            rounded to whole pixels.

    Returns:
        N arrays (h, w, 3) uint8 RGB, or None.

    Raises:
        TypeError, ValueError: no frame or no boxes; the message says what was found.
    """
    if not isinstance(frame, np.ndarray):
        hint = ": cv2.imread and VideoCapture.read give None where there is nothing to read" if frame is None else ""
        raise TypeError(f"the frame is a {type(frame).__name__}; expected a (H, W, 3) uint8 array{hint}")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise ValueError(f"the frame is an array {frame.shape} of {frame.dtype}; expected (H, W, 3) uint8")
    frame = frame[..., ::-1] if bgr else frame
    pixels = pixel_boxes(boxes, *frame.shape[:2], format=format)
    empty = set(empty_boxes(pixels))
    return [
        None if i in empty else np.ascontiguousarray(frame[y1:y2, x1:x2]) for i, (x1, y1, x2, y2) in enumerate(pixels)
    ]


def pixel_boxes(boxes: Any, height: int, width: int, *, format: str = "xyxy") -> np.ndarray:
    """(N, 4) int corners x1 y1 x2 y2 inside a frame, for slices; see `crop_boxes`.

    Raises:
        TypeError, ValueError: no boxes; the message says what was found.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected {', '.join(FORMATS)}")
    if hasattr(boxes, "xyxy"):
        if format != "xyxy":
            raise ValueError(f"{type(boxes).__name__} has corners in .xyxy, and format is {format!r}; leave it out")
        boxes = boxes.xyxy
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu()
    try:
        boxes = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"boxes are no (N, 4) numbers ({error}); expected {format} of each box") from error
    if boxes.size == 0:
        return np.zeros((0, 4), np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        hint = ": pass [box]" if boxes.shape == (4,) else ": pass boxes[:, :4]" if boxes.ndim == 2 else ""
        raise ValueError(f"boxes are {boxes.shape}; expected (N, 4), {format} of each box{hint}")
    if not np.isfinite(boxes).all():
        wrong = _places(~np.isfinite(boxes).all(1))
        raise ValueError(f"boxes {wrong} have coordinates that are not finite; drop those detections")
    first, second = boxes[:, :2], boxes[:, 2:]
    if format == "xywh":
        second = first + second
    elif format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    if (second < first).any():
        wrong = _places((second < first).any(1))
        reason = "their second corner before their first: is it xywh?" if format == "xyxy" else "a negative size"
        raise ValueError(f"boxes {wrong} have {reason} (format is {format!r})")
    corners = np.concatenate([first, second], axis=1).round()
    return corners.clip(0, [width, height, width, height]).astype(np.int64)


def empty_boxes(pixels: np.ndarray) -> list[int]:
    """Places of the boxes without a pixel, of `pixel_boxes`."""
    return np.flatnonzero((pixels[:, 2:] <= pixels[:, :2]).any(1)).tolist()


def _places(which: np.ndarray) -> str:
    """The first few places, for a message."""
    return first_few(np.flatnonzero(which), 5)
