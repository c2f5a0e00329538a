"""The terms of the loss that MODEL.LOSSES.NAME may name: each reads its weight and what a head gives, and is a scalar.

B images, D token width, E joint width, F feature width, C identities, K text anchors, Q classifiers.

What our heads give (their `gives`)::

    logits              (Q, B, C) of Q classifiers
    features            (B, F) pooled, before the neck
    text_anchors        (K, D)
    classifier_weights  Q tensors (C, F)
    anchor_features     (B, K, F) unit-length feature of each text anchor, and (B, K) its mass
    cls, proj           (B, D), (B, E) the tower's class token, or what else it pools, and CLIP's projection of it
    text_features       (C, E) of all identities, as the prompt stage left them
    prompt_text         (B, E) text features of the batch's identities, being learned
    token_weights       (B, N) how much each of N patches counts in the pooled feature, an image's summing to 1
    hidden              (B, N) share of each patch that is hidden (INPUT.OCCLUDE)
    whole_features      (B, F) as `features`, of the same images with nothing hidden, without gradient
    whole_weights       (B, N) as `token_weights`, likewise
    patches             (B, P*N, D) patch tokens of P token layers, or the positions of a map
    whole_patches       (B, P*N, D) likewise, of the same images with nothing hidden, without gradient

The equations are in `losses`; the batch that a term compares is that of all processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastreid.config import CfgNode

from ..config import tower_gives
from ..registry import LOSS_REGISTRY, parts
from ..values import needs_cached, within
from . import losses
from .distributed import gather_batch

__all__ = [
    "AnchorConsistencyLoss",
    "AnchorDiversityLoss",
    "ClassifierDiversityLoss",
    "CrossEntropyLoss",
    "DecorrelationLoss",
    "HiddenWeightLoss",
    "I2TLoss",
    "LossTerm",
    "SupConLoss",
    "TripletLoss",
    "VisibleTokensLoss",
    "WholeFeatureLoss",
    "build_terms",
    "compute_terms",
]


class LossTerm(nn.Module):
    """One term of the loss. A subclass computes it, unweighted, in `forward(targets, *, ...)`.

    The keyword arguments of `forward` name what it reads of what a head gives; a head that gives these computes the
    term. A term may have parameters, which train and are stored like others ("terms.<name>.*").

    Attributes:
        log_name: name in the log, in metrics.json and in the loss dictionary.
        section: of its keys below MODEL.LOSSES, which are the arguments of its constructor in capitals; empty for
            a term without keys, whose weight is 1.
        learns_from: outputs of the backbone that it has a gradient to beside those that the head learns from.
        frozen_teacher: whether the outputs for images with nothing hidden have to come from the backbone as it was
            when the run began, and not from the one that learns; they then do so for all terms.
        reads: the names of these arguments, filled in here.
    """

    log_name: str
    section: ClassVar[str] = ""
    learns_from: ClassVar[frozenset[str]] = frozenset()
    frozen_teacher: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        given = inspect.signature(cls.forward).parameters.values()
        cls.reads = tuple(p.name for p in given if p.kind is p.KEYWORD_ONLY)

    def __init__(self, *, scale: float):
        """scale: weight of the term."""
        super().__init__()
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LossTerm:
        """The term with its settings from a configuration: those of `section`, unless a subclass says otherwise."""
        keys = cfg.MODEL.LOSSES[cls.section] if cls.section else {"SCALE": 1.0}
        return cls(**{name.lower(): value for name, value in keys.items()})

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        """What keeps a configuration that names the term from working, a sentence each."""
        yield from ()

    def prepare(self, head: nn.Module) -> None:
        """Called in front of each step, outside of what is compiled: what must look at the head's values."""

    def forward(self, targets: Tensor, **given: Any) -> Tensor:
        """targets: (B,) identities of this process's images."""
        raise NotImplementedError


def build_terms(cfg: CfgNode) -> nn.ModuleDict:
    """The registered terms that MODEL.LOSSES.NAME names, in the order of their registration: sums of floats depend on
    it."""
    return nn.ModuleDict(
        {name: term.from_config(cfg) for name, term in parts(LOSS_REGISTRY).items() if name in cfg.MODEL.LOSSES.NAME}
    )


def compute_terms(terms: Mapping[str, LossTerm], outputs: Mapping[str, Any], targets: Tensor) -> dict[str, Tensor]:
    """Every term, weighted, by its name in the log.

    Args:
        outputs: what the head gives, by name: a value, or a function without arguments that makes it where a term reads
            it.

    Raises:
        ValueError: the head does not give what a term reads.
    """
    out = {}
    for name, term in terms.items():
        missing = [key for key in term.reads if key not in outputs]
        if missing:
            raise ValueError(f"MODEL.LOSSES.NAME names {name}, which reads {', '.join(missing)}; this head gives none")
        given = {key: outputs[key]() if callable(outputs[key]) else outputs[key] for key in term.reads}
        out[term.log_name] = term.scale * term(targets, **given)
    return out


@LOSS_REGISTRY.register()
class CrossEntropyLoss(LossTerm):
    """Label-smoothed cross-entropy over identities, the mean over classifiers. FastReID's keys MODEL.LOSSES.CE."""

    log_name = "loss_cls"

    def __init__(self, *, scale: float, epsilon: float):
        super().__init__(scale=scale)
        self.epsilon = epsilon

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CrossEntropyLoss:
        return cls(scale=cfg.MODEL.LOSSES.CE.SCALE, epsilon=cfg.MODEL.LOSSES.CE.EPSILON)

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from within(cfg, "MODEL.LOSSES.CE.EPSILON", 0, 1)

    def forward(self, targets: Tensor, *, logits: Tensor) -> Tensor:
        return losses.identity_loss(logits, targets, self.epsilon)


@LOSS_REGISTRY.register()
class TripletLoss(LossTerm):
    """Batch-hard triplets of the images of all processes. FastReID's keys MODEL.LOSSES.TRI; margin 0: the soft
    margin."""

    log_name = "loss_triplet"

    def __init__(self, *, scale: float, margin: float, normalise: bool):
        super().__init__(scale=scale)
        self.margin, self.normalise = margin or None, normalise

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TripletLoss:
        keys = cfg.MODEL.LOSSES.TRI
        return cls(scale=keys.SCALE, margin=keys.MARGIN, normalise=keys.NORM_FEAT)

    def forward(self, targets: Tensor, *, features: Tensor) -> Tensor:
        features, targets = gather_batch(features), gather_batch(targets)
        features = F.normalize(features, dim=1) if self.normalise else features
        return losses.batch_hard_triplet_loss(features, targets, self.margin)


@LOSS_REGISTRY.register()
class AnchorDiversityLoss(LossTerm):
    """Mean squared cosine between the text anchors."""

    log_name = "loss_anchor_div"
    section = "ANCHOR_DIVERSITY"

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # AnchorDiversityLoss: weight of the mean squared cosine between text anchors.
        cfg.MODEL.LOSSES.ANCHOR_DIVERSITY = CfgNode({"SCALE": 0.05})

    def forward(self, targets: Tensor, *, text_anchors: Tensor) -> Tensor:
        return losses.anchor_diversity_loss(text_anchors)


@LOSS_REGISTRY.register()
class ClassifierDiversityLoss(LossTerm):
    """Mean squared cosine between the weights of the classifiers; of one classifier it is 0."""

    log_name = "loss_classifier_div"
    section = "CLASSIFIER_DIVERSITY"

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # ClassifierDiversityLoss: weight of the mean squared cosine between classifiers; of one classifier the term is
        # 0.
        cfg.MODEL.LOSSES.CLASSIFIER_DIVERSITY = CfgNode({"SCALE": 0.5})

    def forward(self, targets: Tensor, *, classifier_weights: Sequence[Tensor]) -> Tensor:
        return losses.classifier_diversity_loss(classifier_weights)


@LOSS_REGISTRY.register()
class AnchorConsistencyLoss(LossTerm):
    """Per text anchor, images of one identity are closer than those of two, counted by how visible the anchor is."""

    log_name = "loss_anchor_cons"
    section = "ANCHOR_CONSISTENCY"

    def __init__(self, *, scale: float, margin: float):
        super().__init__(scale=scale)
        self.margin = margin

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # AnchorConsistencyLoss: its weight, and its margin in cosine.
        cfg.MODEL.LOSSES.ANCHOR_CONSISTENCY = CfgNode({"SCALE": 1.0, "MARGIN": 0.3})

    def forward(self, targets: Tensor, *, anchor_features: tuple[Tensor, Tensor]) -> Tensor:
        features, mass = (gather_batch(x) for x in anchor_features)
        return losses.anchor_consistency_loss(features, mass, gather_batch(targets), self.margin)


@LOSS_REGISTRY.register()
class DecorrelationLoss(LossTerm):
    """Mean squared correlation between the dimensions of the feature and of the class token, a constant here."""

    log_name = "loss_decorr"
    section = "DECORRELATION"

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # DecorrelationLoss: weight of the mean squared correlation of the feature with the class token.
        cfg.MODEL.LOSSES.DECORRELATION = CfgNode({"SCALE": 1.0})

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        if "cls" not in tower_gives(cfg):
            yield "DecorrelationLoss compares with the class token: use CLIP's or timm's backbone with OUTPUT tokens"
        yield from needs_cached(cls, cfg, "cls")

    def forward(self, targets: Tensor, *, features: Tensor, cls: Tensor) -> Tensor:
        return losses.decorrelation_loss(gather_batch(features), gather_batch(cls))


@LOSS_REGISTRY.register()
class I2TLoss(LossTerm):
    """Cross-entropy of an image's projection against the text features of all identities (CLIP-ReID's i2t)."""

    log_name = "loss_i2t"
    section = "I2T"
    learns_from = frozenset({"proj"})

    def __init__(self, *, scale: float, epsilon: float):
        super().__init__(scale=scale)
        self.epsilon = epsilon
        self._seen: tuple[int, int] | None = None

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # I2TLoss, image to text: its weight, and its label smoothing.
        cfg.MODEL.LOSSES.I2T = CfgNode({"SCALE": 1.0, "EPSILON": 0.1})

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        if "proj" not in tower_gives(cfg):
            yield "I2TLoss reads CLIP's projection of the image: use the CLIP backbone with OUTPUT tokens"
        yield from needs_cached(cls, cfg, "proj")

    def prepare(self, head: nn.Module) -> None:
        """See that the head holds text features, once for each state of them: reading makes the host wait for the
        device.

        Raises:
            ValueError: none are stored.
        """
        state = head.text_features.data_ptr(), head.text_features._version
        if state != self._seen and not bool(head.text_features.any()):
            raise ValueError(
                "I2TLoss: no text features of the identities. Start from a checkpoint that descends from the prompt "
                "stage (MODEL.WEIGHTS), or leave I2TLoss out of MODEL.LOSSES.NAME"
            )
        self._seen = state

    def forward(self, targets: Tensor, *, proj: Tensor, text_features: Tensor) -> Tensor:
        return losses.image_text_loss(proj, text_features, targets, self.epsilon)


@LOSS_REGISTRY.register()
class SupConLoss(LossTerm):
    """Supervised contrast of images with the texts of their identities, both ways (CLIP-ReID's first stage)."""

    log_name = "loss_supcon"

    def forward(self, targets: Tensor, *, proj: Tensor, prompt_text: Tensor) -> Tensor:
        image, text, targets = gather_batch(proj.detach()), gather_batch(prompt_text), gather_batch(targets)
        contrast = losses.supervised_contrastive_loss
        return contrast(image, text, targets) + contrast(text, image, targets)


class OccluderLoss(LossTerm):
    """A term that holds what INPUT.OCCLUDE hides against the same image with nothing hidden."""

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        if not cfg.INPUT.OCCLUDE.ENABLED:
            yield f"{cls.__name__} reads what INPUT.OCCLUDE hides of training images: set INPUT.OCCLUDE.ENABLED True"
        if not cfg.INPUT.OCCLUDE.KEEP_WHOLE:
            yield f"{cls.__name__} compares with images that nothing hides: set INPUT.OCCLUDE.KEEP_WHOLE True"
        if cfg.MODEL.COMPILE:
            yield f"{cls.__name__} switches dropout off for the teacher, which MODEL.COMPILE cannot: leave it empty"


@LOSS_REGISTRY.register()
class HiddenWeightLoss(OccluderLoss):
    """Pooling weights let go of what is hidden, and stay among the rest as on the image with nothing hidden, the
    teacher. This project's, not the paper's."""

    log_name = "loss_hidden_weight"
    section = "HIDDEN_WEIGHT"

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # HiddenWeightLoss (this project's, not the paper's): weight of the divergence of the pooling weights from those
        # of the image with nothing hidden, taken off what is hidden. Needs INPUT.OCCLUDE.KEEP_WHOLE.
        cfg.MODEL.LOSSES.HIDDEN_WEIGHT = CfgNode({"SCALE": 1.0})

    def forward(self, targets: Tensor, *, token_weights: Tensor, whole_weights: Tensor, hidden: Tensor) -> Tensor:
        return losses.hidden_weight_loss(*(gather_batch(x) for x in (token_weights, whole_weights, hidden)))


@LOSS_REGISTRY.register()
class WholeFeatureLoss(OccluderLoss):
    """1 - cosine of the feature with that of the same image with nothing hidden, which is the teacher and a constant.
    This project's, not the paper's."""

    log_name = "loss_whole_feature"
    section = "WHOLE_FEATURE"

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # WholeFeatureLoss (this project's, not the paper's): weight of 1 - cosine of a hidden image's feature with that
        # of the same image with nothing hidden. Needs INPUT.OCCLUDE.KEEP_WHOLE.
        cfg.MODEL.LOSSES.WHOLE_FEATURE = CfgNode({"SCALE": 1.0})

    def forward(self, targets: Tensor, *, features: Tensor, whole_features: Tensor, hidden: Tensor) -> Tensor:
        return losses.whole_feature_loss(gather_batch(features), gather_batch(whole_features), gather_batch(hidden))


@LOSS_REGISTRY.register()
class VisibleTokensLoss(OccluderLoss):
    """What still shows of a person gives the tokens that it gave with nothing hidden: those of the backbone as it was
    when the run began, the teacher. Trains the backbone. This project's, not the paper's."""

    log_name = "loss_visible_tokens"
    section = "VISIBLE_TOKENS"
    learns_from = frozenset({"patches"})
    frozen_teacher = True

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        # VisibleTokensLoss (this project's, not the paper's): weight of 1 - correlation of the tokens of patches that
        # still show with those of the backbone as the run began for the same image with nothing hidden. For stages that
        # train the backbone. Needs INPUT.OCCLUDE.KEEP_WHOLE.
        cfg.MODEL.LOSSES.VISIBLE_TOKENS = CfgNode({"SCALE": 1.0})

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from super().check(cfg)
        trained = cfg.MODEL.TRAINABLE
        if cfg.CACHE.ENABLED:
            yield "VisibleTokensLoss trains the backbone, and CACHE.ENABLED reads what a frozen one gave: set it False"
        elif trained and not any(p.startswith("backbone") or fnmatchcase("backbone.", p) for p in trained):
            yield f"VisibleTokensLoss trains the backbone, frozen by MODEL.TRAINABLE {trained}: add backbone.*"

    def forward(self, targets: Tensor, *, patches: Tensor, whole_patches: Tensor, hidden: Tensor) -> Tensor:
        return losses.visible_tokens_loss(patches, whole_patches, hidden)
