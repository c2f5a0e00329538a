"""Occluders in training images (INPUT.OCCLUDE), and the mask of what they hide, kept beside the image.

What hides is drawn by `data.occluders`, as in the occlusion study, from other seeds and of other people: everything
random follows from the sample's own seed, and the people are the training set's own or those of a set that is named.
(H, W) picture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor

from . import occluders
from .datasets.build import build_dataset
from .datasets.names import identity_name
from .images import read_image
from .people import MaskPath, People, silhouette

__all__ = ["KINDS", "Sample", "TrainingOccluder", "training_occluder"]

KINDS = ("rectangle", "band", "object", "person")
# Steps of a transform that move pixels, all of them torchvision's, which draw from torch alone.
_MOVING = (T.Resize, T.Pad, T.RandomCrop, T.RandomResizedCrop, T.RandomHorizontalFlip)


class TrainingOccluder:
    """Hides a part of some training images."""

    def __init__(
        self,
        *,
        prob: float,
        kinds: Sequence[str],
        level: Sequence[float],
        fills: Sequence[str],
        people: People | None,
        masks: Mapping[str, MaskPath],
        keep_whole: bool,
    ):
        """
        Args:
            people: who is pasted, by name; nobody in front of a picture of their own. None where `kinds` has neither
                "object" nor "person".
            masks: training image's path -> the `mask_path` of its data set, for those that have masks.
            keep_whole: whether `Sample.whole` is made.
        """
        self.prob, self.kinds, self.level, self.fills = prob, list(kinds), tuple(level), list(fills)
        self.people, self.masks, self.keep_whole = people, masks, keep_whole

    def __repr__(self) -> str:
        own = f"prob={self.prob}, kinds={self.kinds}, level={self.level}, fills={self.fills}"
        people = 0 if self.people is None else len(self.people.paths)
        return f"{type(self).__name__}({own}, {people} pictures of people, version {occluders.VERSION})"

    def mask_path(self, path: str) -> Path | None:
        """The label mask of a training image; None where its data set has none."""
        return _mask(self.masks, path)

    def files(self, images: Iterable[str]) -> set[str]:
        """What it reads for these images beside them: pictures of people, and masks."""
        own = set(images)
        people = set() if self.people is None else set(self.people.paths)
        masks = [self.mask_path(path) for path in own]
        if self.people is not None and self.people.mask_path is not None:
            masks += [self.people.mask_path(path) for path in people]
        return (people - own) | {str(mask) for mask in masks if mask is not None}

    def __call__(self, image: Image.Image, path: str, person: str, rng: np.random.Generator) -> occluders.Occluded:
        """The picture, with an occluder in `prob` of all cases.

        Args:
            image: RGB. path: its file. person: name of the identity.
            rng: the sample's own random numbers.
        """
        if rng.random() >= self.prob:
            nothing, everywhere = np.zeros(image.size[::-1], np.float32), np.ones(image.size[::-1], bool)
            return occluders.Occluded.of(np.array(image.convert("RGB")), nothing, everywhere)
        shape = silhouette(path, self.mask_path, image)
        kind, level = self.kinds[int(rng.random() * len(self.kinds))], float(rng.uniform(*self.level))
        fill = self.fills[int(rng.random() * len(self.fills))]
        if kind in ("person", "object"):
            assert self.people is not None, f"an occluder of kind {kind} needs people"
        if kind == "person":
            return occluders.paste_person(image, shape, level, rng, other=self.people.choose(rng, besides=person))
        if kind == "object":
            other = read_image(self.people.path(rng, besides=person)).resize(image.size, Image.Resampling.BILINEAR)
            return occluders.mask_region(image, shape, level, rng, shapes=("rectangle",), fill=np.asarray(other))
        shapes = ("rectangle",) if kind == "rectangle" else tuple(s for s in occluders.SHAPES if s != "rectangle")
        return occluders.mask_region(image, shape, level, rng, shapes=shapes, fill=fill)

    def sample(self, image: Image.Image, path: str, person: str, transform: T.Compose) -> Sample:
        """The picture, hidden and transformed. Draws from the random states of torch, numpy and Python."""
        rng = np.random.Generator(np.random.PCG64(np.random.randint(2**31, size=4).tolist()))
        occluded = self(image, path, person, rng)
        state = torch.get_rng_state()
        pixels, hidden = _follow(transform, occluded)
        whole = None
        if self.keep_whole:
            after = torch.get_rng_state()
            torch.set_rng_state(state)
            whole = _without_erasing(transform, image)
            torch.set_rng_state(after)
        return Sample(pixels, hidden, whole)


class Sample(NamedTuple):
    """A training image.

    Attributes:
        image: (3, H, W) in 0..255.
        hidden: (H, W) float32, the share of each pixel that shows an occluder or random erasing, 0..1.
        whole: (3, H, W) under the same augmentation with nothing hidden or erased; None where it is not kept.
    """

    image: Tensor
    hidden: Tensor
    whole: Tensor | None


def _follow(transform: T.Compose, occluded: occluders.Occluded) -> tuple[Tensor, Tensor]:
    """An image through a transform, and the map of what hides it through the steps that move pixels."""
    image, hidden, erased = occluded.image, Image.fromarray(occluded.occluder), None
    for step in transform.transforms:
        state, before = torch.get_rng_state(), image
        image = step(image)
        if isinstance(step, _MOVING):
            after = torch.get_rng_state()
            torch.set_rng_state(state)
            hidden = step(hidden)
            torch.set_rng_state(after)
        elif isinstance(step, T.RandomErasing):
            # more than the rounding of a step that normalises and back
            erased = ((image - before).abs() > 1e-2).any(0)
    shares = torch.from_numpy(np.array(hidden)).clamp(0, 1)  # a bicubic resize goes beyond
    return image, shares if erased is None else torch.where(erased, 1.0, shares)


def _without_erasing(transform: T.Compose, image: Image.Image) -> Tensor:
    for step in transform.transforms:
        if not isinstance(step, T.RandomErasing):
            image = step(image)
    return image


def training_occluder(cfg: Any, sets: Iterable[Any]) -> TrainingOccluder:
    """INPUT.OCCLUDE of a configuration.

    Args:
        sets: the data sets of DATASETS.NAMES, as they were read.

    Raises:
        ValueError: there is nobody to paste.
    """
    keys, sets = cfg.INPUT.OCCLUDE, list(sets)
    masks = {item[0]: data.mask_path for data in sets if hasattr(data, "mask_path") for item in data.train}
    found = [(identity_name(data, pid), path) for data in sets for path, pid, *_ in data.train]
    people_masks = dict(masks)
    if keys.PEOPLE:
        data = build_dataset(cfg, keys.PEOPLE)
        items = [item for item in [*data.query, *data.gallery] or data.train if not _nobody(item[1])]
        found = [(identity_name(data, pid), path) for path, pid, *_ in items]
        people_masks = {path: data.mask_path for _, path in found} if hasattr(data, "mask_path") else {}
    if len({name for name, _ in found}) < 2:
        raise ValueError(
            f"INPUT.OCCLUDE.PEOPLE {keys.PEOPLE or list(cfg.DATASETS.NAMES)}: {len(found)} pictures, of fewer than two "
            "people, so nobody can stand in front of somebody else. Name another data set"
        )
    mask_path = functools.partial(_mask, people_masks)  # no lambda: worker processes may get a pickled copy
    people = People([path for _, path in found], mask_path, [name for name, _ in found])
    return TrainingOccluder(
        prob=keys.PROB,
        kinds=keys.KINDS,
        level=keys.LEVEL,
        fills=keys.FILLS,
        people=people,
        masks=masks,
        keep_whole=keys.KEEP_WHOLE,
    )


def _nobody(pid: Any) -> bool:
    """Numbers of 0 and below are no particular person."""
    return isinstance(pid, int) and pid <= 0


def _mask(masks: Mapping[str, MaskPath], path: str) -> Path | None:
    return masks[path](path) if path in masks else None
