"""NVIDIA DeepStream's tracker (NvDCF, NvDeepSORT): ONNX and the ReID block of its configuration."""

from __future__ import annotations

from pathlib import Path

from .base import Target, register_target


@register_target
class DeepStream(Target):
    """DeepStream feeds netScaleFactor * (pixel - offsets), without a deviation for each channel, so that 0..255 is fed.

    Not run by us: the values are checked against that arithmetic.
    """

    variants = ("float32",)
    opset = 18  # TensorRT's parser documents the operators of its GELU, not GELU itself
    resize = "bilinear (DeepStream)"

    def side_files(self, path, metadata):
        height, width = metadata["input_size"]
        batch = metadata["batch"] or self.max_batch
        block = _REID.format(
            onnx=Path(path).resolve(),
            engine=Path(path).resolve().with_suffix(".engine"),
            batch=batch,
            dims=[3, height, width],
            width=metadata["width"],
        )
        return {path.with_suffix(".reid.yml"): block}

    def usage(self, path, metadata):
        return (
            f"# {path.with_suffix('.reid.yml')} takes the place of ReID: in config_tracker_NvDCF_accuracy.yml\n"
            "[tracker]\n"
            "ll-config-file=config_tracker_NvDCF_accuracy.yml"
        )


# keepAspc 0: crops are stretched, as in training. The output is of unit length; normalising it again mends FP16's
# rounding.
_REID = """\
ReID:
  reidType: 2
  onnxFile: "{onnx}"
  modelEngineFile: "{engine}"
  batchSize: {batch}
  workspaceSize: 1000
  networkMode: 1
  inferDims: {dims}
  inputOrder: 0
  colorFormat: 0
  netScaleFactor: 1.0
  offsets: [0.0, 0.0, 0.0]
  reidFeatureSize: {width}
  reidHistorySize: 100
  addFeatureNormalization: 1
  keepAspc: 0
  outputReidTensor: 1
"""
