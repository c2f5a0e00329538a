"""Export a trained run as one file, checked against PyTorch before it is kept.

python tools/export.py logs/SAGA/quickstart/anchors -o model.onnx
python tools/export.py logs/SAGA/quickstart/anchors -o model-int8.onnx --variant int8 --evaluate SyntheticPedestrians
python tools/export.py logs/SAGA/quickstart/anchors -o model.pt2 --attention
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import FORMATS, TOLERANCE
from ..files import check_output, file_hash


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or a .pth checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: by the suffix (.onnx, .pt, .pt2)")
    parser.add_argument("--variant", choices=tuple(TOLERANCE), default="float32", help="default: %(default)s")
    parser.add_argument("--feature", default="auto", help="row of the evaluation (default: the run's result)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images it takes (default: the run's)"
    )
    parser.add_argument("--attention", action="store_true", help="a second output: the anchors' attention")
    parser.add_argument("--evaluate", metavar="DATASET", help="rank this test set with PyTorch and with the file")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="of the latency table; none: no table"
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
        check_output(args.output)
        cfg, model = load_model(args.run, device="cpu")
        if args.size:
            cfg = export.at_size(cfg, model, args.size)
        done = export.export(
            cfg,
            model,
            args.output,
            format=args.format or export.format_of(args.output),
            variant=args.variant,
            feature=args.feature,
            attention=args.attention,
            source={"checkpoint_sha256": file_hash(checkpoint_file(args.run))},
        )
        options = {"feature": args.feature, "attention": args.attention}
        times = exported.compare_latency(cfg, model, done, batch_sizes=args.batch_sizes, **options)
        ranking = (
            exported.compare_ranking(cfg, model, done, args.evaluate, feature=args.feature) if args.evaluate else None
        )
        print(exported.report(done, times, ranking), f"\n\n{done.path}")
