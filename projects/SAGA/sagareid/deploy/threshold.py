"""From which similarity on two images are called one person: a number, or what tools/calibrate.py found on known pairs.

Needs no PyTorch, as searching by features does not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import damaged, read_json

__all__ = ["Threshold", "read_calibration"]

logger = logging.getLogger(__name__)

# What `Threshold` and the report read of a calibration.
NEEDED = {
    "threshold": float,
    "dataset": dict,
    "checkpoint_sha256": str,
    "feature": str,
    "wanted": dict,
    "at_threshold": dict,
}
REMEDY = "Make it again: tools/calibrate.py"


@dataclass(frozen=True)
class Threshold:
    """A similarity, and where it comes from.

    Attributes:
        value: from it on, in -1..1.
        source: the file; "" for a number that was given.
        dataset: on whose pairs it was found, in words; folder: of its images.
        checkpoint_sha256, feature: the model that they were compared by.
    """

    value: float
    source: str = ""
    dataset: str = ""
    folder: str = ""
    checkpoint_sha256: str = ""
    feature: str = ""

    @classmethod
    def read(cls, given: str | Path | float) -> Threshold:
        """A threshold from a number, or from a file of tools/calibrate.py.

        Raises:
            FileNotFoundError: neither a number nor a file.
            ValueError: a number out of range; a file that is damaged or no calibration.
        """
        path = Path(str(given))
        if not path.is_file():
            try:
                value = float(str(given))
            except ValueError:
                raise FileNotFoundError(
                    f"no file at {given}, and it is no number; expected a similarity from -1 to 1, or a file of "
                    "tools/calibrate.py"
                ) from None
            if not -1 <= value <= 1:
                raise ValueError(f"the threshold is {value:g}; expected a similarity from -1 to 1")
            return cls(value)
        found = read_calibration(path)
        data = found["dataset"]
        return cls(
            value=float(found["threshold"]),
            source=str(given),
            dataset=f"{data['name']} ({data['people']} people, {data['cameras']} cameras)",
            folder=data["folder"],
            checkpoint_sha256=found["checkpoint_sha256"],
            feature=found["feature"],
        )

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (f", found on {self.dataset}" if self.dataset else "")

    def check_model(self, checkpoint_sha256: str, feature: str, used_on: str) -> None:
        """See that similarities are of the model that the threshold was found for; an empty value is not compared.

        Raises:
            ValueError: of another checkpoint or feature; the message names `used_on`.
        """
        for name, ours, other in (
            ("checkpoint", self.checkpoint_sha256, checkpoint_sha256),
            ("feature", self.feature, feature),
        ):
            if ours and other and ours != other:
                raise ValueError(
                    f"{self.source} is of {name} {ours[:12]}, {used_on} of {other[:12]}: a threshold means nothing for "
                    "another model. Run tools/calibrate.py on this one"
                )

    def warn_elsewhere(self, folder: str) -> None:
        """Log a warning where images are from another folder than those that the threshold was found on."""
        if self.folder and folder and not Path(folder).is_relative_to(self.folder):
            logger.warning(
                "the threshold was found on %s in %s, and these images are from %s: similarities and shares "
                "of false matches may be others there. Calibrate on pairs that you know from these cameras",
                self.dataset,
                self.folder,
                folder,
            )


def read_calibration(path: str | Path) -> dict[str, Any]:
    """What tools/calibrate.py wrote.

    Raises:
        DamagedFile: the file is damaged, or of another kind. OSError: it cannot be read.
    """
    found = read_json(path, remedy=REMEDY, required=NEEDED)
    for key in ("name", "people", "cameras", "folder"):
        if key not in found["dataset"]:
            raise damaged(path, f"its data set has no field {key!r}", REMEDY)
    return found
