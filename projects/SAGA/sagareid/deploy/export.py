"""Export a trained model as one file that needs neither this package nor FastReID: ONNX, TorchScript, torch.export.

B images, (H, W) input size, F feature width, K text anchors, (h, w) patch grid.

Every file takes `images` (B, 3, H, W) float32 RGB in 0..255, any B, refuses another H or W, normalises inside, and gives
`features` (B, F), rows of unit length of the run's result row, as `Extractor` does. Models that look at the camera also take `cameras` (B,) int64,
places in the metadata's list of cameras, -1 for unknown. With attention there is a second output, `attention` (B, K, h, w).
The anchors are constants; text tower, prompts and classifiers are gone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_atomically
from ..version import __version__
from .feature_model import FeatureModel
from .options import FORMATS, TOLERANCE

__all__ = ["Exported", "Traced", "at_size", "export", "format_of", "load_exported"]

CHECKED_BATCHES = (1, 2, 7)

Run = Callable[..., list[Tensor]]  # (images, cameras where it takes them) -> [features, attention if it gives it]


@dataclass
class Exported:
    """What was written and how far it is from PyTorch.

    Attributes:
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
    difference: dict[int, float] = field(default_factory=dict)
    cosine: float = 0.0


def format_of(path: str | Path) -> str:
    """The format that a file's suffix stands for.

    Raises:
        ValueError: for none.
    """
    suffix = Path(path).suffix
    for name, its in FORMATS.items():
        if its == suffix:
            return name
    raise ValueError(f"{path}: no format has the suffix {suffix!r}; use {', '.join(FORMATS.values())}, or --format")


class Traced(nn.Module):
    """A FeatureModel whose inputs and outputs are tensors alone."""

    def __init__(self, module: FeatureModel, attention: bool):
        super().__init__()
        self.module, self.attention = module, attention

    def forward(self, images: Tensor, cameras: Tensor | None = None):
        return self.module(images, cameras, self.attention)

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Seeded images of blobs and noise, and cameras where the model looks at them (some unknown)."""
        generator = torch.Generator().manual_seed(seed)
        height, width = self.module.size
        blobs = torch.rand(batch, 3, 4, 4, generator=generator) * 255
        images = nn.functional.interpolate(blobs, size=(height, width), mode="bilinear", align_corners=False)
        images = (images + 20 * torch.randn(images.shape, generator=generator)).clamp(0, 255)
        if not self.module.reads_cameras:
            return (images,)
        cameras = len(self.module.cfg.MODEL.CLIP.CAMERAS)
        return images, torch.randint(-1, cameras, (batch,), generator=generator)


def export(
    cfg: Any,
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    variant: str = "float32",
    feature: str = "auto",
    attention: bool = False,
    source: dict[str, Any] | None = None,
) -> Exported:
    """Write a model to `path`, after checking the very file against PyTorch at the batch sizes CHECKED_BATCHES.

    Args:
        cfg, model: as `load_model` gives them; the model is left as it is.
        format: one of FORMATS. variant: "float32"; of ONNX also "float16" (inputs and outputs stay float32) and "int8"
            (weights of the matrix products, their inputs quantised as they come).
        feature: a row of the evaluation; "auto": the run's result.
        attention: give the anchors' attention, too.
        source: further metadata, such as the checkpoint's hash.

    Raises:
        ValueError: a format or variant that there is not; attention of a model without anchors.
        RuntimeError: the file differs from PyTorch by more than TOLERANCE; it is not kept.
    """
    if format not in FORMATS or variant not in TOLERANCE:
        raise ValueError(
            f"no format {format!r} or variant {variant!r}; expected {', '.join(FORMATS)}; {', '.join(TOLERANCE)}"
        )
    if variant != "float32" and format != "onnx":
        raise ValueError(f"variant {variant} is made of ONNX only; use --format onnx or --variant float32")
    path = Path(path)
    model = copy.deepcopy(model).cpu().requires_grad_(False)
    traced = Traced(FeatureModel(cfg, model, feature), attention).eval()
    metadata = _metadata(traced, variant) | (source or {})
    parameters = sum(p.numel() for p in model.parameters())
    done = Exported(path, format, variant, 0, 0, parameters)

    def write(temporary: str) -> None:
        with _exporting():
            done.parameters = _WRITERS[format](traced, temporary, metadata, variant)
        _check(traced, load_exported(temporary, format)[0], done)
        done.bytes = Path(temporary).stat().st_size

    write_atomically(path, write)
    return done


def at_size(cfg: Any, model: nn.Module, size: Sequence[int]) -> Any:
    """The config of a model for images of another (H, W) than the run's, for `export` and `FeatureModel`.

    Raises:
        ValueError: a position embedding fixes the size.
    """
    size, cfg = list(size), cfg.clone()
    own = list(cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else cfg.INPUT.SIZE_TEST)
    tower = (name for name, _ in model.backbone.named_parameters())
    fixed = next((f"backbone.{name}" for name in tower if re.search(r"pos(itional)?_embed", name)), None)
    if size != own and fixed:
        raise ValueError(
            f"size {size}: {fixed} of this model is made for {own}. Train it with INPUT.SIZE_TRAIN {size}, or fit a CLIP "
            "tower to it with tools/convert_checkpoint.py --size"
        )
    cfg.defrost()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.SIZE_TEST = False, size
    cfg.freeze()
    return cfg


def _metadata(traced: Traced, variant: str) -> dict[str, Any]:
    module = traced.module
    return {
        "sagareid": __version__,
        "variant": variant,
        "input": "images (B, 3, H, W) float32 RGB in 0..255; normalised inside by mean and std",
        "input_size": list(module.size),
        "resize": module.cfg.INPUT.INTERPOLATION_TEST,
        "mean": list(module.cfg.MODEL.PIXEL_MEAN),
        "std": list(module.cfg.MODEL.PIXEL_STD),
        "feature": module.row,
        "width": module.width,
        "flip": bool(module.cfg.TEST.FLIP.ENABLED),
        "anchors": module.anchor_names,
        "cameras": list(module.cfg.MODEL.CLIP.CAMERAS) if module.reads_cameras else [],
    }


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """No gradient, no fused attention kernel that only PyTorch has, and none of the exporters' own chatter."""
    fused, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logging.disable(disabled)


def _program(traced: Traced) -> torch.export.ExportedProgram:
    """The program of a batch of any size."""
    inputs = traced.example(3)
    absent = (None,) * (2 - len(inputs))
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs) + absent
    return torch.export.export(traced, inputs + absent, dynamic_shapes=shapes, strict=False)


def _write_onnx(traced: Traced, path: str, metadata: dict[str, Any], variant: str) -> int:
    import onnx
    from onnxscript import optimizer

    outputs = ["features", "attention"][: 1 + traced.attention]
    names = ["images", "cameras"][: len(traced.example(1))]
    program = torch.onnx.export(
        _program(traced), input_names=names, output_names=outputs, optimize=False, verbose=False
    )
    # keys and values of the anchors are products of constants: folded, however large
    optimizer.optimize(program.model, input_size_limit=2**31, output_size_limit=2**31)
    proto = program.model_proto
    _strip(proto)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    if variant == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    onnx.save(proto, path)
    if variant == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # weights of 7 bits: with 8, sums of products saturate on CPUs without VNNI, and features turn by some percent there
        quantize_dynamic(
            path,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        proto = onnx.load(path)
    return sum(_size(tensor.dims) for tensor in proto.graph.initializer)


def _strip(proto: Any) -> None:
    """Take out what the exporter notes on every node (stack traces, with paths of this machine), and name the batch axis."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for item in (graph, *graph.node, *graph.initializer, *values):
        del item.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param == batch:
            dim.dim_param = "batch"


class _Sized(nn.Module):
    """A traced program that refuses images of another size: a trace keeps no check, and may compute something of them."""

    def __init__(self, program: torch.jit.ScriptModule, height: int, width: int):
        super().__init__()
        self.program, self.height, self.width = program, height, width

    def check(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.size(1) != 3 or images.size(2) != self.height or images.size(3) != self.width:
            raise ValueError(f"images are {images.size()}; expected (B, 3, {self.height}, {self.width})")
        return images

    def forward(self, images: Tensor):
        return self.program(self.check(images))


class _SizedWithCameras(_Sized):
    """The same of a model that looks at the camera."""

    def forward(self, images: Tensor, cameras: Tensor):
        return self.program(self.check(images), cameras)


def _write_torchscript(traced: Traced, path: str, metadata: dict[str, Any], variant: str) -> int:
    program = torch.jit.trace(traced, traced.example(3), check_trace=False)
    cls = _SizedWithCameras if traced.module.reads_cameras else _Sized
    script = torch.jit.freeze(torch.jit.script(cls(program, *traced.module.size)).eval())
    content = io.BytesIO()  # where the disk is full, torch's own writer ends the process
    torch.jit.save(script, content, _extra_files={"metadata.json": json.dumps(metadata)})
    Path(path).write_bytes(content.getbuffer())
    with zipfile.ZipFile(path) as archive:
        return sum(i.file_size for i in archive.infolist() if re.search(r"/(constants|data)/\d+$", i.filename)) // 4


def _write_torch_export(traced: Traced, path: str, metadata: dict[str, Any], variant: str) -> int:
    program = _program(traced).run_decompositions({})
    _drop_unused(program)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
    Path(path).write_bytes(content.getbuffer())
    return sum(v.numel() for v in program.state_dict.values())


def _drop_unused(program: torch.export.ExportedProgram) -> None:
    """Take the weights out of a program that its graph does not read: classifiers, prompts, text features."""
    signature, graph = program.graph_signature, program.graph_module.graph
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    unused = [n for n in graph.nodes if n.op == "placeholder" and not n.users and n.name in names]
    for node in unused:
        program.state_dict.pop(names[node.name], None)
        graph.erase_node(node)
    gone = {node.name for node in unused}
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in gone]
    program.graph_module.recompile()
    program.validate()


_WRITERS = {"onnx": _write_onnx, "torchscript": _write_torchscript, "torch-export": _write_torch_export}


def _size(dims: Sequence[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count


def load_exported(path: str | Path, format: str | None = None) -> tuple[Run, dict[str, Any]]:
    """An exported file as a function from (images[, cameras]) to its outputs, and its metadata.

    Args:
        format: None: by the suffix. ONNX runs in onnxruntime on the CPU with torch's number of threads.
    """
    format = format or format_of(path)
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            return [torch.from_numpy(o) for o in session.run(None, {n: i.numpy() for n, i in zip(names, inputs)})]

        return run, {k: _plain(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    extra = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        if format == "torchscript":
            module = torch.jit.load(str(path), _extra_files=extra)
        else:
            with open(path, "rb") as file:
                module = torch.export.load(file, extra_files=extra).module()

    def run_module(*inputs: Tensor) -> list[Tensor]:
        missing = (None,) if format == "torch-export" and len(inputs) == 1 else ()
        with torch.no_grad():
            out = module(*inputs, *missing)
        return [out] if isinstance(out, Tensor) else list(out)

    return run_module, json.loads(extra["metadata.json"])


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check(traced: Traced, run: Run, done: Exported) -> None:
    """Compare with PyTorch; fill in the differences.

    Raises:
        RuntimeError: beyond TOLERANCE.
    """
    for batch in CHECKED_BATCHES:
        inputs = traced.example(batch, seed=batch)
        with torch.no_grad():
            expected = traced(*inputs)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        found = run(*inputs)
        shapes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in found]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{done.format}: shapes {shapes[1]} where PyTorch gives {shapes[0]}; no file was kept")
        done.difference[batch] = max(float((a - b).abs().max()) for a, b in zip(expected, found))
        done.cosine = max(done.cosine, float((1 - (expected[0].double() * found[0].double()).sum(1)).max()))
    worst = max(done.difference.values())
    if not worst <= TOLERANCE[done.variant]:  # not a number fails, too
        raise RuntimeError(
            f"{done.format} {done.variant} differs from PyTorch by {worst:.2g} in an entry of a unit-length feature, more "
            f"than {TOLERANCE[done.variant]:g}; no file was kept"
        )
