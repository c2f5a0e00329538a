"""Settings of what is drawn and of the pretraining of the embedded CLIP.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

import dataclasses

from ..cli import option
from .scene import DEFAULT_SIZE

__all__ = ["PretrainConfig", "Spec", "StreetSpec"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is drawn. Together with `person.GENERATOR_VERSION` it decides every byte.

    Counts of people are of identities; an identity has `train_shots` pictures per camera in training, and in test and
    validation one per camera in the gallery and `queries` more, from different cameras, as queries.
    """

    seed: int = option(0, "seed of everything that is drawn at random")
    train_ids: int = option(400, "identities of the training set")
    test_ids: int = option(300, "identities of the test set")
    validation_ids: int = option(100, "identities of the validation set")
    cameras: int = option(6, "number of cameras")
    train_shots: int = option(2, "training images per identity and camera")
    queries: int = option(2, "query images per identity, each from another camera")
    gallery_distractors: int = option(200, "gallery images that match no query")
    cutouts: int = option(100, "people cut out for the occlusion study, who are in no split")
    height: int = option(DEFAULT_SIZE[0], "image height in pixels")
    width: int = option(DEFAULT_SIZE[1], "image width in pixels")
    occluded: float = option(0.2, "share of the images in which something stands before the person, 0 to 1")

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
class StreetSpec:
    """A street that two cameras film. Together with `person.GENERATOR_VERSION` it decides every byte.

    A person is 0.36 (far) to 0.52 (near) of the frame's height.
    """

    seed: int = option(0, "seed of everything that is drawn at random")
    frames: int = option(240, "frames of each camera")
    people: int = option(12, "people who pass each camera")
    shared: int = option(6, "those of them who pass both cameras")
    height: int = option(240, "frame height in pixels")
    width: int = option(640, "frame width in pixels, a multiple of 4")
    fps: int = option(10, "frames a second")

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("people", 1), ("shared", 0), ("height", 96), ("width", 96), ("fps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"StreetSpec.{name}: found {getattr(self, name)}, expected at least {least}")
        if self.shared > self.people:
            raise ValueError(
                f"StreetSpec.shared: found {self.shared} of {self.people} people; expected at most all of them. "
                "Lower shared or raise people"
            )
        if self.width % 4:
            raise ValueError(f"StreetSpec.width: found {self.width}, expected a multiple of 4")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of a run; the defaults made the weights that ship.

    `people` are drawn once each; half of the patches (`patch_drop`) are left out at random until `drop_until` of the
    steps, which doubles the rate and costs little.
    """

    seed: int = option(0, "seed of images, captions and weights")
    people: int = option(40_000, "people drawn for training, one image each")
    steps: int = option(450, "optimizer steps")
    batch: int = option(192, "images per step")
    lr: float = option(1.5e-3, "largest learning rate")
    weight_decay: float = option(0.05, "weight decay of AdamW")
    warmup: float = option(0.06, "share of the steps in which the learning rate rises, 0 to 1")
    patch_drop: float = option(0.5, "share of the patches that are left out at random, 0 to 1")
    drop_until: float = option(0.8, "share of the steps in which patches are left out, 0 to 1")
    initial_logit_scale: float = option(20.0, "initial factor of the cosines in the contrastive loss")
    eval_people: int = option(1000, "people drawn to measure retrieval of captions")
    probe_people: int = option(4000, "people drawn for the attribute probes")
    workers: int = option(2, "processes that draw images")

    def __post_init__(self) -> None:
        if self.batch > self.people:
            raise ValueError(f"batch: found {self.batch}, expected at most the number of people, {self.people}")
        if not 0 <= self.patch_drop < 1:
            raise ValueError(f"patch_drop: found {self.patch_drop}, expected a share in [0, 1)")
