#!/usr/bin/env python
"""Pretrain the embedded CLIP on drawn, captioned pedestrians, measure it, and write its weights and figures.

`python tools/pretrain_clip.py --output output/pretrain_clip` remakes the files of projects/SAGA/sagareid/assets/clip;
add `--install` to put them there. An interrupted run goes on with `--resume`.
"""

import argparse
import dataclasses
import logging
import shutil
import sys
from pathlib import Path

import torch

from sagareid.engine import pretrain

ASSETS = Path(pretrain.__file__).resolve().parent.parent / "assets" / "clip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ASSETS / "ViT-XS-8-pedestrians.json", help="open_clip configuration")
    parser.add_argument("--output", type=Path, default=Path("output/pretrain_clip"), help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    parser.add_argument("--install", action="store_true", help="copy weights and figures beside the configuration")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    for field in dataclasses.fields(pretrain.PretrainConfig):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default,
                            help="(default: %(default)s)")
    args = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("root").setLevel(logging.INFO)
    model, output, resume, install = (args.pop(k) for k in ("model", "output", "resume", "install"))
    torch.set_num_threads(args.pop("threads"))
    options = " ".join(a for a in sys.argv[1:] if a not in ("--install", "--resume"))
    try:
        cfg = pretrain.PretrainConfig(**args)
        pretrain.pretrain(model, output, cfg, resume, command=f"python tools/pretrain_clip.py {options}".strip())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if install:
        for suffix in (".safetensors", ".figures.json"):
            shutil.copyfile(output / f"{model.stem}{suffix}", model.with_suffix(suffix))


if __name__ == "__main__":
    main()
