"""Export a trained model as one file that needs neither this package nor FastReID: ONNX, torch.export, TorchScript.

B images, (H, W) input size, F feature width, K text anchors, (h, w) patch grid.

A file takes `images` (B, 3, H, W) float32 as its consumer feeds them (`targets`; by default RGB in 0..255), any B or
one, refuses another H or W, normalises inside, and gives `features` (B, F) of unit length, the run's result, as
`Extractor` does. Models that look at the camera also take `cameras` (B,) int64, places in the metadata's list of
cameras, -1 for unknown, unless the camera is fixed. With attention there is a second output, `attention` (B, K, h, w).
The anchors are constants; text tower, prompts and classifiers are gone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import check_output, write_atomically, write_text
from ..version import __version__
from .feature_model import FeatureModel
from .formats import Run, format_of, open_file, write_file
from .options import FORMATS, TOLERANCE
from .targets import Pixels, Target, get_target
from .traced import Traced

__all__ = ["Exported", "at_size", "check_request", "export", "load_exported"]

CHECKED_BATCHES = (1, 2, 7)


@dataclass
class Exported:
    """What was written and how far it is from PyTorch.

    Attributes:
        side_files: written beside `path` for its consumer.
        usage: how to use it there, in about three lines.
        camera: as in `Traced`.
        difference: by batch size, the largest of any entry.
        cosine: the largest 1 - cosine of two features of one image.
        parameters: numbers kept in the file; source_parameters: in the model it came from.
    """

    path: Path
    format: str
    variant: str
    bytes: int
    parameters: int
    source_parameters: int
    side_files: list[Path] = field(default_factory=list)
    usage: str = ""
    camera: int | None = None
    difference: dict[int, float] = field(default_factory=dict)
    cosine: float = 0.0


def export(
    cfg: Any,
    model: nn.Module,
    path: str | Path,
    *,
    target: str = "generic",
    format: str | None = None,
    variant: str = "float32",
    feature: str = "auto",
    attention: bool = False,
    camera: str | None = None,
    batch: int | None = None,
    source: dict[str, Any] | None = None,
) -> Exported:
    """Write a model to `path`, after checking the very file against PyTorch at the batch sizes CHECKED_BATCHES.

    Args:
        cfg, model: as `load_model` gives them; the model is left as it is.
        target: the consumer, by name (`targets`).
        format: one of FORMATS; None: by the suffix of `path`.
        variant: "float32"; of ONNX also "float16" (inputs and outputs stay float32) and "int8" (weights of the matrix
            products, their inputs quantised as they come).
        feature: a feature of the evaluation; "auto": the run's result.
        attention: give the anchors' attention, too.
        camera: the training camera that all images come from, by name; None: an input of the graph where the target
            feeds one, otherwise unknown.
        batch: the one batch size that the file takes; None: any.
        source: further metadata, such as the checkpoint's hash.

    Raises:
        ValueError: a target, format, variant, camera or batch that there is not, or that do not go together; attention
            of a model without anchors.
        RuntimeError: the file differs from PyTorch by more than TOLERANCE; it is not kept.
    """
    consumer, path, format = check_request(path, target, format, variant, attention, batch)
    model = copy.deepcopy(model).cpu().requires_grad_(False)
    module = FeatureModel(cfg, model, feature)
    place = _camera(module, camera, consumer)
    traced = Traced(module, attention, pixels=consumer.pixels, camera=place, batch=batch).eval()
    metadata = _metadata(traced, consumer, variant, camera) | (source or {})
    done = Exported(path, format, variant, 0, 0, sum(p.numel() for p in model.parameters()), camera=place)
    done.usage, side_files = consumer.usage(path, metadata), consumer.side_files(path, metadata)
    entries = consumer.metadata_entries(metadata) if format == "onnx" else metadata

    def write(temporary: str) -> None:
        done.parameters = write_file(format, traced, temporary, entries, variant=variant, opset=consumer.opset)
        _matches_metadata(temporary, *open_file(temporary, format)[1:])
        _check(traced, consumer.open(temporary, format), done)
        done.bytes = Path(temporary).stat().st_size
        for file, text in side_files.items():  # before the model, which is renamed last: it never lacks them
            write_text(file, text)
            done.side_files.append(file)

    write_atomically(path, write)
    return done


def at_size(cfg: Any, model: nn.Module, size: Sequence[int]) -> Any:
    """The config of a model for images of another (H, W) than the run's, for `export` and `FeatureModel`.

    Raises:
        ValueError: a position embedding fixes the size.
    """
    size, cfg = list(size), cfg.clone()
    own = list(cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else cfg.INPUT.SIZE_TEST)
    backbone = model.get_submodule("backbone")
    tower = (name for name, _ in backbone.named_parameters())
    fixed = next((f"backbone.{name}" for name in tower if re.search(r"pos(itional)?_embed", name)), None)
    if fixed is None and getattr(backbone, "image_size", None) is not None:  # windows, rotations
        fixed = "the backbone"
    if size != own and fixed:
        raise ValueError(
            f"size {size}: {fixed} of this model is made for {own}. Train it with INPUT.SIZE_TRAIN {size}, or fit a "
            "CLIP tower to it with tools/convert_checkpoint.py --size"
        )
    cfg.defrost()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.SIZE_TEST = False, size
    cfg.freeze()
    return cfg


def check_request(
    path: str | Path,
    target: str = "generic",
    format: str | None = None,
    variant: str = "float32",
    attention: bool = False,
    batch: int | None = None,
) -> tuple[Target, Path, str]:
    """Look at what `export` is asked for before a model is loaded; returns target, file to write and its format.

    Raises:
        ValueError: as `export`. OSError: the file cannot be written.
    """
    consumer = get_target(target)
    path, format = consumer.file(Path(path), format)
    if format not in FORMATS or variant not in TOLERANCE:
        raise ValueError(
            f"no format {format!r} or variant {variant!r}; expected {', '.join(FORMATS)}; {', '.join(TOLERANCE)}"
        )
    if variant != "float32" and format != "onnx":
        raise ValueError(f"variant {variant} is made of ONNX only; use --format onnx or --variant float32")
    if variant not in consumer.variants:
        raise ValueError(f"{consumer.name} takes {', '.join(consumer.variants)}, not {variant}; leave --variant out")
    if attention and consumer.images_only:
        raise ValueError(f"{consumer.name} reads one output, and attention would be a second; leave --attention out")
    if batch is not None and batch < 1:
        raise ValueError(f"a batch of {batch}; expected 1 or more, or none for any size")
    return consumer, check_output(path), format


def _camera(module: FeatureModel, name: str | None, target: Target) -> int | None:
    """Place of the fixed camera; None where cameras are an input or do not matter."""
    if name is None:
        return -1 if target.images_only else None
    cameras = list(module.cfg.MODEL.CLIP.CAMERAS) if module.reads_cameras else []
    if name not in cameras:
        known = f"it knows {', '.join(cameras)}" if cameras else "it does not look at cameras; leave --camera out"
        raise ValueError(f"the model knows no camera {name!r}: {known}")
    return cameras.index(name)


def _metadata(traced: Traced, target: Target, variant: str, camera: str | None) -> dict[str, Any]:
    module = traced.module
    batch = traced.batch or "B"
    return {
        "sagareid": __version__,
        "target": target.name,
        "variant": variant,
        "input": f"images ({batch}, 3, H, W) float32 {traced.pixels.describe()}; normalised inside by mean and std",
        "input_size": list(module.size),
        "pixels": traced.pixels.as_dict(),
        "batch": traced.batch,
        "resize": module.cfg.INPUT.INTERPOLATION_TEST,
        "resized_by_consumer": target.resize,
        "mean": list(module.cfg.MODEL.PIXEL_MEAN),
        "std": list(module.cfg.MODEL.PIXEL_STD),
        "feature": module.feature,
        "width": module.width,
        "flip": bool(module.cfg.TEST.FLIP.ENABLED),
        "anchors": module.anchor_names,
        "cameras": list(module.cfg.MODEL.CLIP.CAMERAS) if traced.takes_cameras else [],
        "camera": camera,
    }


def load_exported(path: str | Path, format: str | None = None) -> tuple[Run, dict[str, Any]]:
    """An exported file as a function from (images RGB in 0..255[, cameras]) to its outputs, and its metadata.

    Whatever consumer the file was made for, images are RGB in 0..255 here: they are turned into what it feeds.

    Args:
        format: None: by the suffix. ONNX runs in onnxruntime on the CPU with torch's number of threads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of ours, or is damaged; images that the file does not take.
    """
    own, metadata, shape = open_file(path, format or format_of(path))
    pixels = _matches_metadata(path, metadata, shape)

    def run(images: Tensor, *cameras: Tensor) -> list[Tensor]:
        found = tuple(images.shape)
        if images.ndim != 4 or found[1:] != tuple(shape[1:]) or shape[0] not in (None, found[0]):
            raise ValueError(f"images are {found}; {path} takes ({shape[0] or 'B'}, {', '.join(map(str, shape[1:]))})")
        return own(pixels.feed(images), *cameras)

    return run, metadata


def _matches_metadata(path: str | Path, metadata: dict[str, Any], shape: list[int | None]) -> Pixels:
    """What a file says that it is fed.

    Raises:
        ValueError: it says nothing, or something else than its graph declares.
    """
    if not {"sagareid", "pixels", "batch", "input_size"} <= metadata.keys():
        raise ValueError(
            f"{path} does not say what it is fed, so it was not written by this tools/export.py; export again"
        )
    declared = [metadata["batch"], 3, *metadata["input_size"]]
    if shape != declared:
        raise ValueError(f"{path} says that it takes images {declared}, and its graph takes {shape}; export it again")
    return Pixels.read(metadata["pixels"])


def _check(traced: Traced, run: Run, done: Exported) -> None:
    """Compare with PyTorch; fill in the differences.

    Raises:
        RuntimeError: beyond TOLERANCE; it runs at one batch size alone.
    """
    for batch in CHECKED_BATCHES if traced.batch is None else (traced.batch,):
        inputs = traced.example(batch, seed=batch)
        with torch.no_grad():
            expected = traced(*inputs)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        try:
            found = run(*inputs)
        except Exception as error:  # every runtime has its own
            if traced.batch is not None:
                raise
            raise RuntimeError(
                f"{done.format}: the file does not run at a batch of {batch}: a part of this model computes with the "
                "batch size as a number. Export it for one size with --batch, or in another format; no file was kept"
            ) from error
        shapes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in found]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{done.format}: shapes {shapes[1]} where PyTorch gives {shapes[0]}; no file was kept")
        done.difference[batch] = max(float((a - b).abs().max()) for a, b in zip(expected, found))
        done.cosine = max(done.cosine, float((1 - (expected[0].double() * found[0].double()).sum(1)).max()))
    worst = max(done.difference.values())
    if not worst <= TOLERANCE[done.variant]:  # not a number fails, too
        raise RuntimeError(
            f"{done.format} {done.variant} differs from PyTorch by {worst:.2g} in an entry of a unit-length feature, "
            f"more than {TOLERANCE[done.variant]:g}; no file was kept"
        )
