"""Test sets under controlled occlusion: every picture is occluded before its test transforms.

The items are FastReID's. This module also chooses the people who are pasted in front.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .. import compat
from ..data import occluders
from ..data.datasets.build import DataSets, build_dataset
from ..data.datasets.layout import no_images, say_counts
from ..data.datasets.names import Names, SetNames, identity_name
from ..data.images import image_files
from ..data.loaders import ReIDDataset
from ..data.people import MaskPath, People, silhouette
from .options import Occlusion

__all__ = ["ImageSet", "OccludedSet", "Occluder", "View", "distractor_people"]


@dataclass(frozen=True)
class ImageSet:
    """A registered data set's test split, as the study needs it.

    Attributes:
        items: (path, pid, camid), queries first.
        root: folder of data sets; a path inside it names a picture on every machine.
        mask_path: picture's path -> label mask's path; None for a data set without masks, where a person is the whole
            picture.
        run_names: of its people and cameras, as a run calls them.
        names: the same, for readers.
    """

    name: str
    items: list[tuple[str, int, int]]
    num_query: int
    root: str
    mask_path: MaskPath | None
    run_names: SetNames = field(default_factory=SetNames)
    names: Names = field(default_factory=Names)
    all_queries: int = 0  # of the data set; of a share of them `num_query` is the number

    @classmethod
    def read(cls, cfg, name: str, queries: int = 0) -> ImageSet:
        """The test split of a registered data set.

        Args:
            queries: how many of its queries, spread evenly over them in the order of their paths; 0 for all.

        Raises:
            ValueError: one of its splits is empty, or it has fewer queries.
        """
        data = DataSets().test(cfg, name)
        say_counts(data, name, ("query", "gallery"))
        root, whole = os.path.abspath(compat.dataset_root()), len(data.query)
        if queries > whole:
            raise ValueError(f"{queries} queries are asked for, and {name} has {whole}; expected at most as many")
        kept = data.query
        if queries:  # a data set may list its files in any order
            ordered = sorted(data.query, key=lambda item: _inside(item[0], root))
            kept = [ordered[i * whole // queries] for i in range(queries)]
        items, masks = kept + data.gallery, getattr(data, "mask_path", None)
        # everyone of the test set has a name here, those whose query is not studied, too
        names = SetNames().add(data, data.query + data.gallery)
        return cls(name, items, len(kept), root, masks, names, Names(data), whole)

    def key(self, path: str) -> str:
        """The picture's path inside the data root, the same on every machine."""
        return _inside(path, self.root)

    @property
    def people(self) -> set[str]:
        """Everyone in query and gallery, named as in training."""
        return set(self.run_names.identities.values())


def _inside(path: str, root: str) -> str:
    """Path inside the root; of a picture elsewhere, its last folder and its name."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else "/".join(whole.parts[-2:])


def distractor_people(cfg, test: ImageSet, source: str = "") -> tuple[People, str]:
    """The people who are pasted.

    Args:
        cfg: knows the data sets of DATASETS.CUSTOM.
        source: "train" takes the data set's own training pictures; the name of a data set its query and gallery; a
            path with a slash every image in and below that folder, which may be one of the folder of data sets; empty
            takes what the data set's class names as `distractor_source`, or "train".

    Returns:
        The people and the name of their source. Everyone in the query or gallery under test is left out, by the data
        set's name and the pid, and so are pids of 0 and below, which are no particular person. Of a folder it is not
        known who its people are, and it should hold nobody of the training or test people.

    Raises:
        ValueError: nobody is left, or no image is in the folder.
    """
    data = build_dataset(cfg, test.name)
    source = source or getattr(data, "distractor_source", "train")
    if "/" in source:
        return _crops_of(source, test.root)
    if source == "train":
        found = [(identity_name(data, pid), path) for path, pid, _ in data.train]
    else:
        data = build_dataset(cfg, source)
        found = [(identity_name(data, pid), path) for path, pid, _ in data.query + data.gallery if pid > 0]
    present = test.people
    paths = sorted((path for person, path in found if person not in present), key=lambda path: _inside(path, test.root))
    if not paths:
        raise ValueError(
            f"distractors from {source!r}: {len(found)} pictures, of nobody outside the test set {test.name}. Expected "
            "people who are not in its query or gallery; name another data set with --distractors"
        )
    return People(paths, getattr(data, "mask_path", None)), source


def _crops_of(source: str, root: str) -> tuple[People, str]:
    """Every image in and below a folder, whoever they show."""
    places = [Path(source).expanduser(), Path(root, source)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"distractors from {source!r}: no folder {' or '.join(map(str, dict.fromkeys(places)))}. Expected a folder "
            "of crops of people, train, or a data set's name"
        )
    listing = image_files(folder)
    if not listing.names:
        raise ValueError(no_images("distractors", listing))
    paths = sorted(map(str, listing.images), key=lambda path: _inside(path, root))
    return People(paths, None, known=False), f"the crops in {_inside(str(folder), root)}"


class Occluder:
    """Occludes a picture of a test set by its path; the same picture and seed give the same bytes anywhere."""

    def __init__(self, occlusion: Occlusion, test: ImageSet, people: People | None = None):
        """`people` are needed for the condition "distractor"."""
        self.occlusion, self.people = occlusion, people
        self.root, self.mask_path = test.root, test.mask_path

    def person(self, image: Image.Image, path: str) -> occluders.Silhouette:
        """Where the person of a picture is."""
        return silhouette(path, self.mask_path, image)

    def __call__(self, image: Image.Image, path: str) -> occluders.Occluded:
        chosen, key = self.occlusion, _inside(path, self.root)
        rng = occluders.generator(chosen.seed, chosen.condition, key)
        person = self.person(image, path)
        if chosen.condition == "mask":
            return occluders.mask_region(image, person, chosen.level, rng, shapes=chosen.shapes, fill=chosen.fill)
        assert self.people is not None, "the condition distractor needs people to paste"
        other = self.people.choose(occluders.generator(chosen.seed, "who is pasted", key))
        return occluders.paste_person(image, person, chosen.level, rng, other=other)


class View(NamedTuple):
    """The form of a model's input: its test transform and the names of its training cameras (see `ReIDDataset`)."""

    transform: Any
    cameras: tuple[str, ...] = ()


class OccludedSet(ReIDDataset):
    """Pictures that are read and occluded once and then transformed for every view.

    An item holds FastReID's `targets`, `camids`, `img_paths`; for view i `images/i`, `cameras/i`; and with an occluder
    `share`, the covered share of the visible person, and for view i the (H, W) maps `occluder/i` and, where the data
    set has masks, `person/i`: which share of an input pixel shows the occluder, or still the person.
    """

    def __init__(
        self, items: Sequence[tuple], views: Sequence[View], occluder: Occluder | None, names: SetNames | None
    ):
        super().__init__(items, None, relabel=False, cameras=(), names=names)
        self.occluder, self.views = occluder, views
        self._by_view = [ReIDDataset(items, None, relabel=False, cameras=view.cameras, names=names) for view in views]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        image = sample.pop("images")
        del sample["cameras"]
        if self.occluder is not None:
            occluded = self.occluder(image, sample["img_paths"])
            image, sample["share"] = occluded.image, occluded.share
        for i, (view, cameras) in enumerate(zip(self.views, self._by_view)):
            sample[f"images/{i}"] = view.transform(image)
            sample[f"cameras/{i}"] = cameras.camera_index(sample["camids"])
            if self.occluder is not None:
                size = sample[f"images/{i}"].shape[:0:-1]
                sample[f"occluder/{i}"] = _resized(occluded.occluder, size)
                if self.occluder.mask_path is not None:
                    sample[f"person/{i}"] = _resized(occluded.person, size)
        return sample


def _resized(share: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """An (H, W) map at another (width, height), each pixel the mean of what it covers."""
    return torch.from_numpy(np.array(Image.fromarray(share).resize(size, Image.Resampling.BOX)))
