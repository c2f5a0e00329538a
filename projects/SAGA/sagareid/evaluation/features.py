"""What a gallery is ranked by: features that are made of the parts that a model gives of an image.

A model's evaluation output is one (n, F) tensor, and its layout names the parts that stand in it beside each other:
{"refined": 768, "cls": 768, "proj": 512}. A part is a feature to rank by, and others are made of several of them. The
registered ones, by the names that TEST.FEATURE and TEST.REPORT hold::

    refined      a head's own pooled feature
    cls, proj    the tower's class token, or what else it pools itself, and CLIP's projection of it into the joint space
    feature      all that a model gives, where it names no parts
    concat       the parts beside each other
    orth         refined, with what the class token knows beyond it
    fusion       refined, cls and proj, weighted
    parts        the features of the text anchors, beside each other

A feature of your own is a class in EVALUATION_FEATURE_REGISTRY. A part of your head needs none: its name in
`feature_layout` will do.

n images, m queries of a block, G gallery images, D feature width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastreid.config import CfgNode

from ..registry import EVALUATION_FEATURE_REGISTRY, parts
from . import postprocess

__all__ = [
    "EvaluationFeature",
    "PartFeature",
    "Parts",
    "available_features",
    "build_feature",
    "reported_features",
    "result_feature",
]

# What TEST.FEATURE auto takes, the first that a model gives; else its first part.
AUTO = ("fusion", "concat")


class Parts:
    """The parts of the features of n images, by name.

    Attributes:
        features: (n, F) raw, as the model gave them.
        layout: names and widths of the parts, in order.
    """

    def __init__(
        self,
        features: Tensor,
        layout: Mapping[str, int],
        *,
        centralise: Callable[[Tensor], Tensor] = lambda x: x,
        device: str | torch.device | None = None,
    ):
        """
        Args:
            centralise: applied to (n, D) features before they are put together: neighbour feature centralisation.
            device: where features are computed; None: where `features` is.
        """
        self.features, self.layout, self.centralise = features, layout, centralise
        self.device = features.device if device is None else device
        ends = list(itertools.accumulate(layout.values()))
        self._places = {name: (end - width, end) for (name, width), end in zip(layout.items(), ends)}

    def raw(self, *names: str) -> Tensor:
        """(n, sum of the widths) of one part, or of several beside each other, as the model gave them."""
        places = [self._places[name] for name in names]
        if all(before[1] == after[0] for before, after in itertools.pairwise(places)):
            return self.features[:, places[0][0] : places[-1][1]].to(self.device)
        return torch.cat([self.features[:, start:end] for start, end in places], dim=1).to(self.device)

    def unit(self, *names: str) -> Tensor:
        """(n, sum of the widths) of unit length, and centralised."""
        return self.centralise(postprocess.l2(self.raw(*names)))


class EvaluationFeature:
    """A feature that images are ranked by.

    Attributes:
        name: what TEST.FEATURE and TEST.REPORT call it.
        meaning: what it is, in the legend of a table; empty: it has no line there.
        joins: of a feature that is a part: whether "concat" holds it.
    """

    name: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    joins: ClassVar[bool] = True

    @classmethod
    def from_config(cls, cfg: Any) -> EvaluationFeature:
        """The feature of a configuration; one with keys of its own overrides it, beside `add_keys` and `check`."""
        return cls()

    @classmethod
    def available(cls, layout: Mapping[str, int]) -> bool:
        """Whether a model of this layout gives all that the feature is made of."""
        return cls.name in layout

    def make(self, given: Parts) -> Tensor:
        """(n, D) features of n images."""
        raise NotImplementedError

    def distance(self, queries: Tensor, gallery: Tensor, metric: str) -> Tensor:
        """
        Args:
            queries, gallery: (m, D), (G, D), of unit length where `metric` is "cosine".
            metric: TEST.METRIC.

        Returns:
            (m, G): 1 - cosine, or the squared Euclidean distance.
        """
        if metric == "cosine":
            return (queries @ gallery.t()).neg_().add_(1)
        return postprocess.squared_distance(queries, gallery)

    @property
    def has_own_distance(self) -> bool:
        """Whether a subclass compares in a way of its own, which re-ranking cannot take the place of."""
        return type(self).distance is not EvaluationFeature.distance


class PartFeature(EvaluationFeature):
    """A part by itself, of unit length."""

    def __init__(self, part: str = ""):
        """part: its name in the layout; empty: that of the class."""
        self.part = part or self.name

    def make(self, given: Parts) -> Tensor:
        return given.unit(self.part)


@EVALUATION_FEATURE_REGISTRY.register()
class RefinedFeature(PartFeature):
    """A head's own pooled feature."""

    name = "refined"
    meaning = "the head's own feature, pooled from the patches"


@EVALUATION_FEATURE_REGISTRY.register()
class ClassTokenFeature(PartFeature):
    """The tower's class token, or what else it pools for itself."""

    name = "cls"
    meaning = "what the image tower pools itself: its class token, where it has one"


@EVALUATION_FEATURE_REGISTRY.register()
class ProjectionFeature(PartFeature):
    """The projection of CLIP's class token into the joint space."""

    name = "proj"
    meaning = "the class token in the space that CLIP's images and texts share"


@EVALUATION_FEATURE_REGISTRY.register()
class WholeFeature(EvaluationFeature):
    """The feature of a model that names no parts, as it gives it: FastReID's Euclidean distance reads its length."""

    name = "feature"
    meaning = "what the head gives"

    def make(self, given: Parts) -> Tensor:
        return given.centralise(given.raw("feature"))


@EVALUATION_FEATURE_REGISTRY.register()
class ConcatFeature(EvaluationFeature):
    """The raw parts beside each other, of unit length as a whole."""

    name = "concat"
    meaning = "all parts side by side, normalised together"

    @classmethod
    def available(cls, layout: Mapping[str, int]) -> bool:
        return len(_joined(layout)) > 1

    def make(self, given: Parts) -> Tensor:
        return given.unit(*_joined(given.layout))


@EVALUATION_FEATURE_REGISTRY.register()
class OrthFeature(EvaluationFeature):
    """The refined feature and, by TEST.FUSION.BETA, what the class token knows beyond it (`postprocess.orthogonal`)."""

    name = "orth"
    meaning = "refined, and a share TEST.FUSION.BETA of what the class token has beyond it"

    def __init__(self, *, beta: float):
        self.beta = beta

    @classmethod
    def from_config(cls, cfg: Any) -> OrthFeature:
        return cls(beta=cfg.TEST.FUSION.BETA)

    @classmethod
    def available(cls, layout: Mapping[str, int]) -> bool:
        return "refined" in layout and layout.get("cls") == layout["refined"]

    def make(self, given: Parts) -> Tensor:
        return postprocess.orthogonal(given.unit("refined"), given.unit("cls"), self.beta)


@EVALUATION_FEATURE_REGISTRY.register()
class FusionFeature(EvaluationFeature):
    """The refined feature, the class token and its projection, weighted (`postprocess.fuse`); not of unit length."""

    name = "fusion"
    meaning = "refined, cls and proj side by side, each normalised and weighted by TEST.FUSION"
    PARTS = ("refined", "cls", "proj")

    def __init__(self, *, weights: Mapping[str, float]):
        """weights: of `PARTS`, 0 or more."""
        self.weights = dict(weights)

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # fusion = cat[sqrt(w) L2(part)] with a weight for each part; BETA is the share of the class token in orth.
        cfg.TEST.FUSION = CfgNode({"REFINED": 2.0, "CLS": 0.2, "PROJ": 0.05, "BETA": 0.3})

    @classmethod
    def check(cls, cfg: Any) -> Iterator[str]:
        yield from postprocess.weight_problems(cls._weights(cfg))

    @classmethod
    def _weights(cls, cfg: Any) -> dict[str, float]:
        return {name: cfg.TEST.FUSION[name.upper()] for name in cls.PARTS}

    @classmethod
    def from_config(cls, cfg: Any) -> FusionFeature:
        return cls(weights=cls._weights(cfg))

    @classmethod
    def available(cls, layout: Mapping[str, int]) -> bool:
        return all(name in layout for name in cls.PARTS)

    def make(self, given: Parts) -> Tensor:
        return postprocess.fuse({name: given.unit(name) for name in self.PARTS}, self.weights)


@EVALUATION_FEATURE_REGISTRY.register()
class AnchorPartsFeature(PartFeature):
    """The features of the text anchors that claim most of an image, beside each other; zeros for the others."""

    name = "parts"
    meaning = "features of single anchors side by side"
    joins = False  # it repeats what the refined feature holds

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # Per-anchor features kept of each image for the feature "parts" (anchors of largest mass); 0: no such feature.
        cfg.TEST.PARTS = 0


def _joined(layout: Mapping[str, int]) -> list[str]:
    """The parts that "concat" holds."""
    registered = parts(EVALUATION_FEATURE_REGISTRY)
    return [name for name in layout if registered.get(name, EvaluationFeature).joins]


def available_features(layout: Mapping[str, int]) -> list[str]:
    """The features that a model of this layout can be ranked by: its parts, then what is made of them."""
    first = _joined(layout)
    registered = parts(EVALUATION_FEATURE_REGISTRY).items()
    return first + [name for name, feature in registered if name not in first and feature.available(layout)]


def result_feature(cfg: Any, layout: Mapping[str, int]) -> str:
    """The feature whose metrics are the result, by TEST.FEATURE.

    Raises:
        ValueError: the model does not give the feature that TEST.FEATURE names.
    """
    available, wanted = available_features(layout), cfg.TEST.FEATURE
    if wanted == "auto":
        return next((name for name in AUTO if name in available), available[0])
    _check_available("TEST.FEATURE", wanted, available)
    return wanted


def reported_features(cfg: Any, layout: Mapping[str, int]) -> list[str]:
    """The result, then the features that TEST.REPORT names beside it.

    Raises:
        ValueError: the model does not give one of them.
    """
    available, result = available_features(layout), result_feature(cfg, layout)
    wanted = available if "all" in cfg.TEST.REPORT else cfg.TEST.REPORT
    for name in wanted:
        _check_available("TEST.REPORT", name, available)
    return [result, *(name for name in wanted if name != result)]


def _check_available(key: str, name: str, available: list[str]) -> None:
    if name not in available:
        raise ValueError(
            f"{key} names the feature {name!r}; this model gives {', '.join(available)}. Set {key} to one of them."
        )


def build_feature(cfg: Any, name: str) -> EvaluationFeature:
    """The feature of that name: a registered one, or a part that a head gives beside the registered ones."""
    registered = parts(EVALUATION_FEATURE_REGISTRY)
    return registered[name].from_config(cfg) if name in registered else PartFeature(name)
