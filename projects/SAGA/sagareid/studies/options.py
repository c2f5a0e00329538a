"""What the occlusion study can be asked for.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cli import option
from ..data import occluders

__all__ = ["AUTO", "CLEAN", "OCCLUDE", "Occlusion", "Options", "ReadoutOptions"]

AUTO = "auto"  # the feature that a model's own config ranks by
OCCLUDE = ("query", "gallery", "both")
CLEAN = "clean"  # the condition of pictures with nothing hidden


@dataclass(frozen=True)
class Occlusion:
    """What is done to a picture.

    Attributes:
        condition: one of `occluders.CONDITIONS`.
        level: share of the visible person, 0 to `occluders.MAX_LEVEL`.
        shapes, fill: of the mask, see `occluders.mask_region`.
    """

    condition: str
    level: float
    seed: int = 0
    shapes: tuple[str, ...] = occluders.SHAPES
    fill: str = "grey"

    def __post_init__(self) -> None:
        if not 0 <= self.level <= occluders.MAX_LEVEL:
            raise ValueError(
                f"a level of {self.level:.0%} is out of range; expected 0 to {occluders.MAX_LEVEL:.0%} of the person"
            )


@dataclass(frozen=True)
class Options:
    """What is studied; with the models and the data it decides every metric.

    Attributes:
        levels: shares of the visible person; 0, nothing hidden, is always studied.
        occlude: one of `OCCLUDE`.
        features: what the evaluator ranks by; "auto": the feature that each model's config names.
        distractors: see `occlusion.distractor_people`.
        queries: how many of the test set's, spread evenly over them; 0: all.
    """

    conditions: tuple[str, ...] = occluders.CONDITIONS
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    occlude: str = "query"
    shapes: tuple[str, ...] = Occlusion.shapes
    fill: str = Occlusion.fill
    distractors: str = ""
    features: tuple[str, ...] = (AUTO,)
    seed: int = Occlusion.seed
    resamples: int = 1000
    queries: int = 0

    def __post_init__(self) -> None:
        if self.queries < 0:
            raise ValueError(f"queries is {self.queries}; expected 1 or more, or 0 for all")
        for name, valid in (("conditions", occluders.CONDITIONS), ("shapes", occluders.SHAPES)):
            wrong = [v for v in getattr(self, name) if v not in valid]
            if wrong or not getattr(self, name):
                raise ValueError(f"{name}: found {', '.join(wrong) or 'nothing'}; expected some of {', '.join(valid)}")
        if self.occlude not in OCCLUDE:
            raise ValueError(f"occlude is {self.occlude!r}; expected one of {', '.join(OCCLUDE)}")
        if self.fill not in occluders.FILLS:
            raise ValueError(f"fill is {self.fill!r}; expected one of {', '.join(occluders.FILLS)}")
        wrong = [f"{v:.0%}" for v in self.levels if not 0 <= v <= occluders.MAX_LEVEL]
        if wrong:
            raise ValueError(f"levels {', '.join(wrong)} are out of range; expected 0 to {occluders.MAX_LEVEL:.0%}")

    def cells(self) -> list[tuple[str, float]]:
        """(condition, level) of every cell of a model; nothing hidden comes first and belongs to both conditions."""
        levels = sorted({round(v, 4) for v in self.levels if v > 0})
        return [(CLEAN, 0.0), *((condition, level) for condition in self.conditions for level in levels)]


@dataclass(frozen=True)
class ReadoutOptions:
    """How the read-out of how much is seen is trained."""

    images: int = option(19200, "training images, each with some of the person hidden")
    epochs: int = option(6, "passes over them")
    batch: int = option(64, "images per step")
    lr: float = option(3e-3, "highest learning rate of the schedule")
    channels: int = option(32, "width of the read-out; later layers have two and three times as many")
    seed: int = option(0, "seed of images, occluders and the read-out's start")

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "batch", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.batch > self.images:
            raise ValueError(f"batch is {self.batch}, more than the {self.images} images")
