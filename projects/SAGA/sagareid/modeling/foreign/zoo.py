"""FastReID's model zoo: files from before version 1.0, whose heads have other names.

Source: fastreid/modeling/heads/bnneck_head.py and reduction_head.py of JDAI-CV/fast-reid at 56a1ab4 (June 2020), and
the names that its log lists for its published files (its issues 352, 427, 486, 617).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from .tower import ForeignError

__all__ = ["OLD_EVALUATION", "zoo_names"]

OLD_EVALUATION = (
    "a head of FastReID from before version 1.0, whose evaluation reads the feature behind the batch norm: "
    "MODEL.HEADS.NECK_FEAT after"
)


def zoo_names(state: Mapping[str, Tensor], expected: Collection[str], origin: str) -> dict[str, str]:
    """Old name -> today's, for the tensors of a state dict that a model expects under another name.

    `bnneck` is the only part of `bottleneck` since version 1.0, and the classifier's weight the head's own.

    Raises:
        ForeignError: a ReductionHead, as of the zoo's MGN, which no head of today computes.
    """
    renamed = {}
    for key in state:
        if key in expected:
            continue
        head, old, rest = key.rpartition("bnneck.")
        if old:
            if f"{head}bottleneck.0.weight" in state:
                raise ForeignError(
                    f"{origin} has a ReductionHead of FastReID from before version 1.0 ({head}bottleneck and "
                    f"{head}bnneck): a LeakyReLU and a second batch norm, which no head of today computes"
                )
            places = [n for n in expected if re.fullmatch(rf"{re.escape(head)}bottleneck\.\d+\.{rest}", n)]
            if len(places) == 1:
                renamed[key] = places[0]
        elif key.endswith(".classifier.weight"):
            today = key.removesuffix("classifier.weight") + "weight"
            if today in expected and today not in state:
                renamed[key] = today
    return renamed
