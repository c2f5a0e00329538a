"""Settings of what is drawn and of the pretraining of the embedded CLIP.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

import dataclasses

from .scene import DEFAULT_SIZE

__all__ = ["PretrainConfig", "Spec"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is drawn. Together with `person.GENERATOR_VERSION` it decides every byte.

    Counts of people are of identities; an identity has `train_shots` pictures per camera in training, and in test and
    validation one per camera in the gallery and `queries` more, from different cameras, as queries.
    """

    seed: int = 0
    train_ids: int = 400
    test_ids: int = 300
    validation_ids: int = 100
    cameras: int = 6
    train_shots: int = 2
    queries: int = 2
    gallery_distractors: int = 200
    cutouts: int = 100
    height: int = DEFAULT_SIZE[0]
    width: int = DEFAULT_SIZE[1]
    occluded: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (
            ("train_ids", 2),
            ("test_ids", 1),
            ("validation_ids", 1),
            ("cameras", 2),
            ("train_shots", 1),
            ("queries", 1),
            ("gallery_distractors", 0),
            ("cutouts", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"Spec.{name}: found {getattr(self, name)}, expected at least {least}")
        if self.queries > self.cameras:
            raise ValueError(
                f"Spec.queries: found {self.queries} per person with {self.cameras} cameras; expected at "
                "most one from each camera. Lower queries or raise cameras"
            )
        people = self.train_ids + self.test_ids + self.validation_ids
        if people > 9999:
            raise ValueError(
                f"Spec: found {people} people, expected at most 9999, the most that four digits of a "
                "Market-1501 file name can number. Lower train_ids, test_ids or validation_ids"
            )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of a run; the defaults made the weights that ship.

    `people` are drawn once each; half of the patches (`patch_drop`) are left out at random until `drop_until` of the
    steps, which doubles the rate and costs little.
    """

    seed: int = 0
    people: int = 40_000
    steps: int = 450
    batch: int = 192
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    patch_drop: float = 0.5
    drop_until: float = 0.8
    initial_logit_scale: float = 20.0
    eval_people: int = 1000
    probe_people: int = 4000
    workers: int = 2

    def __post_init__(self) -> None:
        if self.batch > self.people:
            raise ValueError(f"batch: found {self.batch}, expected at most the number of people, {self.people}")
        if not 0 <= self.patch_drop < 1:
            raise ValueError(f"patch_drop: found {self.patch_drop}, expected a share in [0, 1)")
