"""File formats of exported models: writing one from a traced model, opening one as a function.

B images, (H, W) input size.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files import parse_json
from .options import SUFFIXES

if TYPE_CHECKING:
    from .traced import Traced

__all__ = ["Run", "format_of", "open_file", "write_file"]


Run = Callable[..., list[Tensor]]  # (images, cameras where it takes them) -> [features, attention if it gives it]


def format_of(path: str | Path) -> str:
    """The format that a file's suffix stands for.

    Raises:
        ValueError: for none.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: no format has the suffix {suffix!r}; use {', '.join(SUFFIXES)}, or --format")
    return SUFFIXES[suffix]


def write_file(
    format: str, traced: Traced, path: str, entries: Mapping[str, Any], *, variant: str = "float32", opset: int = 20
) -> int:
    """Write a traced model with its metadata; returns how many numbers the file keeps.

    Args:
        variant, opset: of ONNX.
    """
    with _exporting():
        if format == "onnx":
            return _write_onnx(traced, path, entries, variant, opset)
        return (_write_torchscript if format == "torchscript" else _write_torch_export)(traced, path, entries)


def open_file(path: str | Path, format: str) -> tuple[Run, dict[str, Any], list[int | None]]:
    """A file as a function of its own inputs, its metadata, and the declared (B, 3, H, W); B is None for any.

    ONNX runs in onnxruntime on the CPU with torch's number of threads.

    Raises:
        ValueError: it is no such file.
    """
    try:
        return _open_onnx(path) if format == "onnx" else _open_torch(path, format)
    except (RuntimeError, OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError) or not Path(path).is_file():
            raise FileNotFoundError(f"no exported model at {path}; tools/export.py writes one") from error
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"{path} cannot be read as {format} ({reason}); export it again, or name its format"
        ) from error


def _open_onnx(path: str | Path) -> tuple[Run, dict[str, Any], list[int | None]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes share no base of their own
        raise RuntimeError(str(error)) from error
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(o) for o in session.run(None, {n: i.numpy() for n, i in zip(names, inputs)})]

    metadata = {k: _plain(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    shape = [d if isinstance(d, int) else None for d in session.get_inputs()[0].shape]
    return run, metadata["sagareid"] if isinstance(metadata.get("sagareid"), dict) else metadata, shape


def _open_torch(path: str | Path, format: str) -> tuple[Run, dict[str, Any], list[int | None]]:
    extra = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        if format == "torchscript":
            module = torch.jit.load(str(path), _extra_files=extra)
        else:
            with open(path, "rb") as file:
                module = torch.export.load(file, extra_files=extra).module()

    def run(*inputs: Tensor) -> list[Tensor]:
        missing = (None,) if format == "torch-export" and len(inputs) == 1 else ()
        with torch.no_grad():
            out = module(*inputs, *missing)
        return [out] if isinstance(out, Tensor) else list(out)

    metadata = parse_json(extra["metadata.json"] or "{}", path, remedy="Export it again")
    return run, metadata, [metadata.get("batch"), 3, *(metadata.get("input_size") or (None, None))]


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


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
    """The program of a batch of any size, or of the model's own."""
    inputs = traced.example(traced.batch or 3)
    absent = (None,) * (2 - len(inputs))
    shapes = None
    if traced.batch is None:
        shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs) + absent
    return torch.export.export(traced, inputs + absent, dynamic_shapes=shapes, strict=False)


def _write_onnx(traced: Traced, path: str, entries: Mapping[str, Any], variant: str, opset: int) -> int:
    import onnx
    from onnxscript import optimizer

    outputs = ["features", "attention"][: 1 + traced.attention]
    names = ["images", "cameras"][: len(traced.example(1))]
    program = torch.onnx.export(
        _program(traced), input_names=names, output_names=outputs, opset_version=opset, optimize=False, verbose=False
    )
    assert program is not None  # only the older TorchScript exporter returns nothing
    # keys and values of the anchors are products of constants: folded, however large
    optimizer.optimize(program.model, input_size_limit=2**31, output_size_limit=2**31)
    proto = program.model_proto
    _strip(proto)
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    if variant == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    onnx.save(proto, path)
    if variant == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # weights of 7 bits: with 8, sums of products saturate on CPUs without VNNI, and features turn by some percent
        quantize_dynamic(
            path,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        proto = onnx.load(path)
    return sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)


def _strip(proto: Any) -> None:
    """Take out the exporter's notes on every node (stack traces, with paths of this machine); name the batch axis."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for item in (graph, *graph.node, *graph.initializer, *values):
        del item.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if batch and dim.dim_param == batch:
            dim.dim_param = "batch"


class _SizeChecked(nn.Module):
    """A traced program that refuses images of another size; the trace alone may compute something from them."""

    def __init__(self, program: torch.jit.ScriptModule, height: int, width: int):
        super().__init__()
        self.program, self.height, self.width = program, height, width

    def check(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.size(1) != 3 or images.size(2) != self.height or images.size(3) != self.width:
            raise ValueError(f"images are {images.size()}; expected (B, 3, {self.height}, {self.width})")
        return images


class _WithoutCameras(_SizeChecked):
    """The program of a model that does not look at the camera."""

    def forward(self, images: Tensor):
        return self.program(self.check(images))


class _WithCameras(_SizeChecked):
    """The program of a model that looks at the camera."""

    def forward(self, images: Tensor, cameras: Tensor):
        return self.program(self.check(images), cameras)


def _write_torchscript(traced: Traced, path: str, entries: Mapping[str, Any]) -> int:
    program = torch.jit.trace(traced, traced.example(traced.batch or 3), check_trace=False)
    cls = _WithCameras if traced.takes_cameras else _WithoutCameras
    script = torch.jit.freeze(torch.jit.script(cls(program, *traced.module.size)).eval())
    content = io.BytesIO()  # where the disk is full, torch's own writer ends the process
    torch.jit.save(script, content, _extra_files={"metadata.json": json.dumps(entries)})
    Path(path).write_bytes(content.getbuffer())
    with zipfile.ZipFile(path) as archive:
        return sum(i.file_size for i in archive.infolist() if re.search(r"/(constants|data)/\d+$", i.filename)) // 4


def _write_torch_export(traced: Traced, path: str, entries: Mapping[str, Any]) -> int:
    program = _program(traced).run_decompositions({})
    _drop_unused(program)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(entries)})
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
