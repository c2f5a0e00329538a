"""Train and evaluate: FastReID's train_net.py, with the stages that a config lists.

python tools/train_net.py --config-file configs/SAGA/occ_duke.yml
python tools/train_net.py --config-file configs/SAGA/occ_duke.yml --stage anchors --resume
python tools/train_net.py --config-file configs/SAGA/occ_duke.yml --eval-only MODEL.WEIGHTS run/model_final.pth
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cli import errors_in_one_line
from ..engine.options import training_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, plan, launch; an error ends in one message and exit code 1, Ctrl-C in 130."""
    args = training_parser(__doc__).parse_intermixed_args(argv)
    with errors_in_one_line(args, after_interrupt="the same command with --resume goes on from the last whole epoch"):
        from ..engine.main import launch_runs

        launch_runs(args)
