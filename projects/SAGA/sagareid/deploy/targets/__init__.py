"""Consumers of an exported model: what each feeds and expects, one file a consumer.

A target is a class: what the consumer does to a crop before it (`pixels`, `resize`), the files that it takes, the files
it wants beside the model, and the lines that use it. Your own is one more class, brought in by `--import`::

    @register_target
    class MyTracker(Target):
        pixels = Pixels(channels="BGR", scale=1 / 255)

        def usage(self, path, metadata):
            return f"mytracker --reid {path}"

and then `tools/export.py RUN -o model.onnx --for mytracker --import my_module`.
"""

from . import boxmot, deepstream, generic, opencv, openvino, roboflow, tensorrt, ultralytics  # noqa: F401  (register)
from .base import Target, get_target, register_target, target_names
from .pixels import Pixels

__all__ = ["Pixels", "Target", "get_target", "register_target", "target_names"]
