"""Pretrain the embedded CLIP on drawn, captioned pedestrians, measure it, and write its weights and metrics.

`python tools/pretrain_clip.py --output output/pretrain_clip` remakes the files of projects/SAGA/sagareid/assets/clip;
add `--install` to put them there. An interrupted run goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_dataclass_arguments, dataclass_of, errors_in_one_line, tool_parser
from ..files import check_output
from ..synthetic.options import PretrainConfig

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "clip"


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=ASSETS / "ViT-XS-8-pedestrians.json",
        help="open_clip configuration (default: the embedded one)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/pretrain_clip"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    parser.add_argument("--install", action="store_true", help="copy weights and metrics beside the configuration")
    # Sums depend on their order, hence weights on the number of threads: those that ship were made with one.
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's CPU threads (default: %(default)s)")
    add_dataclass_arguments(parser, PretrainConfig)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    # Where the files went says nothing about how they were made.
    made_by = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(args).items()
        if value != parser.get_default(name) and name not in ("output", "resume", "install", "workers", "traceback")
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with errors_in_one_line(args, after_interrupt="the same command with --resume goes on from the last checkpoint"):
        import torch

        from ..synthetic import pretrain

        torch.set_num_threads(args.threads)
        check_output(args.output, folder=True)
        cfg = dataclass_of(PretrainConfig, args)
        command = " ".join(["python tools/pretrain_clip.py", *made_by])
        pretrain.pretrain(args.model, args.output, cfg, args.resume, command=command)
        if args.install:
            for suffix in (".safetensors", ".metrics.json"):
                shutil.copyfile(args.output / f"{args.model.stem}{suffix}", args.model.with_suffix(suffix))
