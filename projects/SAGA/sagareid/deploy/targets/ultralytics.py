"""Ultralytics' trackers: ONNX of a fixed height and width."""

from __future__ import annotations

import json
from pathlib import Path

from .base import Target, register_target
from .pixels import Pixels


@register_target
class Ultralytics(Target):
    """Ultralytics divides by 255 and resizes bilinearly without antialiasing, in PyTorch.

    ONNX alone: it resizes to 224 x 224 for other formats. It widens each box by 2 % and 10 pixels first. It sets every
    metadata entry as an attribute of its backend, so ours are one entry; releases that read `stride` wherever there is
    metadata find that, too.
    """

    pixels = Pixels(scale=1 / 255)
    resize = "bilinear without antialiasing (PyTorch)"

    def _refusal(self, suffix):
        return super()._refusal(suffix) + " (it resizes crops for other formats to 224 x 224)"

    def metadata_entries(self, metadata):
        return {
            "sagareid": json.dumps(metadata),
            "stride": "32",
            "task": "classify",
            "batch": str(metadata["batch"] or 1),
            "imgsz": json.dumps(metadata["input_size"]),
            "names": "{0: 'person'}",
        }

    def side_files(self, path, metadata):
        return {path.with_suffix(".botsort.yaml"): _BOTSORT.format(model=Path(path).resolve())}

    def usage(self, path, metadata):
        return (
            "from ultralytics import YOLO\n"
            f'results = YOLO("yolo11n.pt").track("video.mp4", tracker="{path.with_suffix(".botsort.yaml")}")\n'
            "# thresholds in that file are Ultralytics' defaults: appearance_thresh is a similarity, set yours"
        )


# Ultralytics' defaults of BoT-SORT, with ReID by this model
_BOTSORT = """\
tracker_type: botsort
track_high_thresh: 0.25
track_low_thresh: 0.1
new_track_thresh: 0.25
track_buffer: 30
match_thresh: 0.8
fuse_score: True
gmc_method: sparseOptFlow
proximity_thresh: 0.5
appearance_thresh: 0.8
with_reid: True
model: {model}
"""
