"""Roboflow `reid`: a folder with TorchScript and reid_config.json."""

from __future__ import annotations

import json
from typing import ClassVar

from .base import Target, register_target


@register_target
class Roboflow(Target):
    """`ReIDModel` takes any module and the preprocessing that reid_config.json describes.

    Its `ToTensor` divides by 255; mean 0 and deviation 1/255 undo that, so the graph is fed 0..255, resized with Pillow
    as in training. `ReIDModel.from_pretrained` builds only architectures that it knows, so the module is handed over.
    """

    formats: ClassVar = {".torchscript": "torchscript"}
    variants = ("float32",)
    resize = "as in training (Pillow)"

    def file(self, output, format=None):
        """`output` is a folder, or a .torchscript file in one."""
        return super().file(output if output.suffix else output / "model.torchscript", format)

    def side_files(self, path, metadata):
        config = {
            "architecture": f"sagareid:{path.name}",
            "preprocessing": {
                "input_size": metadata["input_size"],
                "mean": [0.0] * 3,
                "std": [1 / 255] * 3,
                "interpolation": metadata["resize"],
                "to_rgb": True,
                "resize_mode": "stretch",
                "pad_value": 114,
            },
        }
        return {path.parent / "reid_config.json": json.dumps(config, indent=2) + "\n"}

    def usage(self, path, metadata):
        return (
            f'config = json.load(open("{path.parent / "reid_config.json"}"))\n'
            f'model = ReIDModel(torch.jit.load("{path}"), torch.device("cpu"), '
            'ReIDPreprocessing.from_dict(config["preprocessing"]))\n'
            "embeddings = model.extract_embeddings(detections, frame)  # supervision.Detections, a BGR frame"
        )
