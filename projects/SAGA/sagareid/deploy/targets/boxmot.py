"""BoxMOT: ONNX or TorchScript, and a file of metadata beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from .base import Target, register_target
from .pixels import IMAGENET


@register_target
class BoxMOT(Target):
    """BoxMOT resizes with OpenCV's bilinear, divides by 255 and normalises by ImageNet's mean and deviation.

    It picks its backend by the suffix; `.pt` would be a checkpoint of one of its own architectures. The metadata beside
    the model keeps it from guessing an architecture by the file's name. Releases that do not read it take mean and
    deviation 0.5 for a name with "clip" in it, so that such a name is refused.
    """

    pixels = IMAGENET
    resize = "bilinear (OpenCV)"
    formats: ClassVar = {".onnx": "onnx", ".torchscript": "torchscript"}

    def _refusal(self, suffix):
        why = " (it reads .pt as a checkpoint of one of its own architectures)" if suffix == ".pt" else ""
        return super()._refusal(suffix) + why

    def file(self, output, format=None):
        if "clip" in output.name.lower():
            raise ValueError(
                f"{output}: BoxMOT before 25 normalises otherwise for a file with 'clip' in its name; name it otherwise"
            )
        return super().file(output, format)

    def side_files(self, path, metadata):
        size = metadata["input_size"]
        about = {
            "schema_version": 1,
            "model_name": "sagareid",
            "preprocess": "resize",
            "model_kwargs_schema_version": 1,
            "model_kwargs": {"img_size": size},
            "img_size": size,
        }
        return {Path(f"{path}.metadata.json"): json.dumps(about, indent=2) + "\n"}

    def usage(self, path, metadata):
        return (
            "from boxmot import BotSort\n"
            f'tracker = BotSort(reid_weights="{path}", device="cpu")\n'
            "tracks = tracker.update(detections, frame)  # (N, 6) x1 y1 x2 y2 confidence class; frame BGR"
        )
