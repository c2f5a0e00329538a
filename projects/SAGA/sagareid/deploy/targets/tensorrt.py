"""TensorRT: ONNX and the trtexec line that makes an engine of it."""

from __future__ import annotations

from pathlib import Path

from .base import Target, register_target


@register_target
class TensorRT(Target):
    """A float32 graph of operators that TensorRT documents; it chooses its own precision. Not run by us."""

    variants = ("float32",)
    opset = 18  # TensorRT's parser documents the operators of its GELU, not GELU itself

    def side_files(self, path, metadata):
        return {path.with_suffix(".trtexec.sh"): f"#!/bin/sh\n{self.command(path, metadata)}\n"}

    def command(self, path: Path, metadata) -> str:
        """The command that builds the engine."""
        height, width = metadata["input_size"]

        def shape(batch: int) -> str:
            return f"images:{batch}x3x{height}x{width}"

        shapes = "" if metadata["batch"] else (
            f" --minShapes={shape(1)} --optShapes={shape(self.max_batch // 4)} --maxShapes={shape(self.max_batch)}"
        )  # fmt: skip
        return f"trtexec --onnx={path} --saveEngine={path.with_suffix('.engine')} --fp16{shapes}"

    def usage(self, path, metadata):
        return f"{self.command(path, metadata)}\n# feed float32 {self.pixels.describe()}; not run by us"
