"""OpenVINO: ONNX, run in float32."""

from __future__ import annotations

from .base import Target, register_target


@register_target
class OpenVINO(Target):
    """OpenVINO reads ONNX. On CPUs with bfloat16 instructions it computes in bfloat16 unless float32 is asked for.

    That is the whole of its difference from PyTorch: 1e-3 to 2e-3 in an entry, 1e-7 with the hint.
    """

    variants = ("float32", "float16")

    def usage(self, path, metadata):
        height, width = metadata["input_size"]
        return (
            f'model = openvino.Core().compile_model("{path}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})\n'
            f"# crops: (B, 3, {height}, {width}) float32 {self.pixels.describe()}\n"
            "features = model(crops)[0]"
        )
