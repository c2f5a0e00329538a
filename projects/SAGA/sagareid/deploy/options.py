"""What deploy can be asked for, and file names that two of its modules share.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CALIBRATION",
    "CARD",
    "FARS",
    "FMR",
    "FORMATS",
    "FPRS",
    "KINDS",
    "MANIFEST",
    "REMEDY",
    "REMEDY_OF_MANIFEST",
    "SUFFIXES",
    "TARGETS",
    "TOLERANCE",
    "VISIBILITY",
    "is_single_file",
]

# format: suffix of its files
FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".pt"}
# suffix: format
SUFFIXES = {suffix: format for format, suffix in FORMATS.items()} | {".torchscript": "torchscript"}
# Consumers of an exported file, see `targets`.
TARGETS = ("boxmot", "deepstream", "generic", "opencv", "openvino", "roboflow", "tensorrt", "ultralytics")
# Largest difference from PyTorch of any entry of a unit-length feature (or an attention) that is let pass.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "int8": 5e-2}
# Indexes, see `gallery`.
KINDS = ("flat", "hnsw", "ivfpq")
# The file of tools/calibrate.py in the folder of a run.
CALIBRATION = "calibration.json"
# The model card of tools/publish.py, by the name that hubs and GitHub show.
CARD = "README.md"
# The file of tools/fit_visibility.py beside a checkpoint.
VISIBILITY = "visibility.safetensors"
# Rates at which it says what is found: of false matches of pairs, and of searches for somebody who is missing.
FPRS = (1e-1, 1e-2, 1e-3, 1e-4)
FARS = (3e-1, 1e-1, 1e-2)
# The rate of false matches of pairs whose threshold is chosen unless another is asked for.
FMR = 1e-3
# In a folder of shards: what it is made of, and how many shards there are.
MANIFEST = "manifest.json"
# What to do about damaged features.
REMEDY = "Extract again: tools/extract.py with --overwrite, or into a new output"
REMEDY_OF_MANIFEST = "Delete this one file: the same tools/extract.py command writes it anew and keeps the whole shards"


def is_single_file(output: str | Path) -> bool:
    """Whether an output is one .npz or .parquet file, not a folder of shards."""
    return Path(output).suffix in (".npz", ".parquet")
