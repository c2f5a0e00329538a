"""Export a trained run as one file, checked against PyTorch before it is kept.

python tools/export.py logs/SAGA/quickstart/anchors -o model.onnx
python tools/export.py logs/SAGA/quickstart/anchors -o model-int8.onnx --variant int8 --evaluate SyntheticPedestrians
python tools/export.py logs/SAGA/quickstart/anchors -o model.pt2 --attention
python tools/export.py logs/SAGA/quickstart/anchors -o model.onnx --for boxmot
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import FORMATS, TARGETS, TOLERANCE
from ..files import file_hash


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, .pth checkpoint, or name of a model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--for",
        dest="target",
        default="generic",
        metavar="TARGET",
        help=f"program that reads the file: {', '.join(TARGETS)}, or your own by --import (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="format of the file (default: by the suffix .onnx, .pt or .pt2)"
    )
    parser.add_argument(
        "--variant",
        choices=tuple(TOLERANCE),
        default="float32",
        help="number type of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--feature",
        default="auto",
        help="feature of the evaluation to export: refined, cls ... (default: the run's result)",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="input size in pixels (default: the run's)"
    )
    parser.add_argument("--attention", action="store_true", help="add the anchors' attention as a second output")
    parser.add_argument(
        "--camera", help="training camera that all images come from (default: unknown, or an input of the file)"
    )
    parser.add_argument("--batch", type=int, help="the only batch size that the file takes, in images (default: any)")
    parser.add_argument(
        "--evaluate", metavar="DATASET", help="test set to rank with PyTorch and with the file (default: none)"
    )
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="*",
        default=[1, 8, 32],
        help="batch sizes of the latency table; without a number no table (default: 1 8 32)",
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args):
        from ..benchmarks import exported
        from ..deploy import export
        from ..deploy.load import checkpoint_file, load_model

        import_modules(args.modules)
        export.check_request(args.output, args.target, args.format, args.variant, args.attention, args.batch)
        cfg, model = load_model(args.run, device="cpu")
        if args.size:
            cfg = export.at_size(cfg, model, args.size)
        done = export.export(
            cfg,
            model,
            args.output,
            target=args.target,
            format=args.format,
            variant=args.variant,
            feature=args.feature,
            attention=args.attention,
            camera=args.camera,
            batch=args.batch,
            source={"checkpoint_sha256": file_hash(checkpoint_file(args.run))},
        )
        options = {"feature": args.feature, "attention": args.attention}
        sizes = [args.batch] if args.batch and args.batch_sizes else args.batch_sizes
        times = exported.compare_latency(cfg, model, done, batch_sizes=sizes, **options)
        ranking = (
            exported.compare_ranking(cfg, model, done, args.evaluate, feature=args.feature) if args.evaluate else None
        )
        print(exported.report(done, times, ranking), *done.side_files, done.path, sep="\n\n")
        print(f"\nUse it:\n{done.usage}" if done.usage else "")
