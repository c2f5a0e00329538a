"""No consumer in particular: RGB in 0..255, every format, cameras and attention where the model has them."""

from __future__ import annotations

from ..formats import format_of
from ..options import SUFFIXES
from .base import Target, register_target


@register_target
class Generic(Target):
    """The model as it is: `images` RGB in 0..255."""

    formats = SUFFIXES
    images_only = False

    def file(self, output, format=None):
        """Accept any name where the format is named."""
        return output, format or format_of(output)

    def usage(self, path, metadata):
        if path.suffix != ".onnx":
            return ""
        height, width = metadata["input_size"]
        return (
            f'session = onnxruntime.InferenceSession("{path}")\n'
            f"# crops: (B, 3, {height}, {width}) float32 {self.pixels.describe()}, resized {metadata['resize']}\n"
            'features = session.run(["features"], {"images": crops})[0]'
        )
