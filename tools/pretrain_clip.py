#!/usr/bin/env python
"""Pretrain the embedded CLIP on drawn, captioned pedestrians, measure it, and write its weights and figures.

`python tools/pretrain_clip.py --output output/pretrain_clip` remakes the files of projects/SAGA/sagareid/assets/clip;
add `--install` to put them there. An interrupted run goes on with `--resume`.
"""

import argparse
import logging
import shutil
from pathlib import Path

import torch

from sagareid.cli import add_dataclass_arguments
from sagareid.engine import pretrain

ASSETS = Path(pretrain.__file__).resolve().parent.parent / "assets" / "clip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=ASSETS / "ViT-XS-8-pedestrians.json", help="open_clip configuration"
    )
    parser.add_argument("--output", type=Path, default=Path("output/pretrain_clip"), help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    parser.add_argument("--install", action="store_true", help="copy weights and figures beside the configuration")
    # Sums depend on their order, hence weights on the number of threads: those that ship were made with one.
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    add_dataclass_arguments(parser, pretrain.PretrainConfig)
    args = vars(parser.parse_args())
    # Where the files went says nothing about how they were made.
    made_by = [
        f"--{k.replace('_', '-')} {v}"
        for k, v in args.items()
        if v != parser.get_default(k) and k not in ("output", "resume", "install", "workers")
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    model, output, resume, install = (args.pop(k) for k in ("model", "output", "resume", "install"))
    torch.set_num_threads(args.pop("threads"))
    try:
        cfg = pretrain.PretrainConfig(**args)
        pretrain.pretrain(model, output, cfg, resume, command=" ".join(["python tools/pretrain_clip.py", *made_by]))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if install:
        for suffix in (".safetensors", ".figures.json"):
            shutil.copyfile(output / f"{model.stem}{suffix}", model.with_suffix(suffix))


if __name__ == "__main__":
    main()
