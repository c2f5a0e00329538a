"""FastReID's model zoo: files from before version 1.0, whose heads have other names.

Source: the names that FastReID's own log lists for its published files (JDAI-CV/fast-reid issues 352, 427, 486, 617).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

__all__ = ["zoo_names"]


def zoo_names(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, str]:
    """Old name -> today's, for the tensors of a state dict that a model expects under another name.

    `bnneck` is the last part of `bottleneck` since version 1.0, and the classifier's weight the head's own.
    """
    renamed = {}
    for key in state:
        if key in expected:
            continue
        head, _, rest = key.rpartition("bnneck.")
        if head:
            places = sorted(n for n in expected if re.fullmatch(rf"{re.escape(head)}bottleneck\.\d+\.{rest}", n))
            if places and places[-1] not in state:
                renamed[key] = places[-1]
        elif key.endswith(".classifier.weight"):
            today = key.removesuffix("classifier.weight") + "weight"
            if today in expected and today not in state:
                renamed[key] = today
    return renamed
