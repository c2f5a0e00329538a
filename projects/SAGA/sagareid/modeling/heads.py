"""What the plug-in's heads share: the neck, the identity classifier, the dimensions a head is built for.

B images, D feature width, C identities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode, configurable

from ..compat import registered
from ..config import tower_gives, tower_widths
from ..registry import fastreid_registries
from ..structures import CLIPFeatures
from ..values import value_of
from .clip import towers
from .clip.text import PROMPT_LENGTH
from .distributed import GlobalBatchNorm1d

__all__ = [
    "OF_HIDDEN",
    "ClassifierHead",
    "batch_norm_neck",
    "complete_state",
    "embedding_layer",
    "evaluating",
    "frozen_text_encoder",
    "head_outputs",
    "hidden_outputs",
    "identity_classifier",
    "needs_of_tower",
    "prompts_problem",
    "text_towers",
]


def batch_norm_neck(width: int) -> nn.BatchNorm1d:
    """BNNeck (Luo et al. 2019): batch norm over the whole batch, of all processes, whose bias stays at zero."""
    neck = GlobalBatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def identity_classifier(width: int, num_classes: int) -> nn.Linear:
    """Linear classifier without bias, N(0, 0.001)."""
    if num_classes < 1:
        raise ValueError(
            "MODEL.HEADS.NUM_CLASSES is 0: it is counted from the training set, or set it to the checkpoint's"
        )
    classifier = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier


def embedding_layer(width: int, embedding_dim: int) -> nn.Module:
    """MODEL.HEADS.EMBEDDING_DIM: a linear layer on the pooled feature, or none for 0.

    Of equal widths it starts as the identity, so that training starts from what the pooling gives.
    """
    if not embedding_dim:
        return nn.Identity()
    layer = nn.Linear(width, embedding_dim)
    if embedding_dim == width:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


# What of a tower a part needs, for messages: what that is, and which backbones give it.
_NEEDS = {
    "cls": ("the class token", "build_clip_vit_backbone or build_timm_backbone"),
    "proj": ("CLIP's class token and projection", "build_clip_vit_backbone"),
}


def needs_of_tower(part: type, cfg: CfgNode, *names: str, why: str = "") -> Iterator[str]:
    """For `check` of a part that reads "cls" or "proj" of the tower.

    Args:
        why: what of the configuration makes it read them, where that is not the part alone.
    """
    missing = [name for name in names if name not in tower_gives(cfg)]
    if missing:
        what, backbones = _NEEDS[missing[-1]]
        yield f"{part.__name__}{why} reads {what}: MODEL.BACKBONE.NAME {backbones} with MODEL.BACKBONE.OUTPUT tokens"


def head_outputs(logits: Tensor, features: Tensor, **given: Any) -> dict[str, Any]:
    """A head's training result: the keys that FastReID's `Baseline.losses` reads, and what our loss terms read.

    Args:
        logits: (Q, B, C) of Q classifiers; FastReID's own loss sees their mean, ours each of them.
        features: (B, F) for the triplet loss, before the neck.
        given: what else the head lists in `gives`: values, or functions without arguments that make them when asked.
            "losses" holds weighted scalars by log name that the head computes itself, whatever MODEL.LOSSES.NAME says.
    """
    mean = logits.mean(0)
    return {"cls_outputs": mean, "pred_class_logits": mean, "features": features, "logits": logits, **given}


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """These modules in evaluation mode inside the scope; None is passed over."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


# What `hidden_outputs` gives for any head, for its `gives`.
OF_HIDDEN = ("hidden", "patches", "whole_features", "whole_patches")


def hidden_outputs(
    features: Any, pooled: Callable[[CLIPFeatures], tuple[Tensor, Tensor | None]], token_weights: Any = None
) -> dict[str, Any]:
    """What a head gives for losses that read what is hidden; empty where nothing is known of it.

    Args:
        features: the head's input.
        pooled: (B, F) feature of other images, as the head's `features`, and their (B, N) weights, or None.
        token_weights: (B, N) weights of these images, or a function that makes them; None for a head without any.
    """
    if not isinstance(features, CLIPFeatures) or features.hidden is None:
        return {}
    given: dict[str, Any] = {"hidden": features.hidden, "patches": features.patches}
    if token_weights is not None:
        given["token_weights"] = token_weights
    if (whole := features.whole) is not None:

        @functools.cache
        def teacher() -> tuple[Tensor, Tensor | None]:
            with torch.no_grad():
                return pooled(whole)

        given["whole_patches"] = whole.patches
        given["whole_features"] = lambda: teacher()[0]
        if token_weights is not None:
            given["whole_weights"] = lambda: teacher()[1]
    return given


# FastReID's builders hand on the configuration and nothing else (modeling/meta_arch/build.py:24, heads/build.py:25), so
# what is no key of it reaches a head through this scope.
_BUILT: ContextVar[bool] = ContextVar("text_towers", default=True)


@contextmanager
def text_towers(built: bool) -> Iterator[None]:
    """Whether heads that are made inside the scope build a text tower where they can use one (`build.build_model`)."""
    token = _BUILT.set(built)
    try:
        yield
    finally:
        _BUILT.reset(token)


def prompts_problem(cfg: CfgNode) -> Iterator[str]:
    """For `check` of a head that makes prompts for the text tower."""
    try:
        problem = towers.text_problem(cfg.MODEL.CLIP.NAME)
    except ValueError as error:
        problem = str(error)
    if problem:
        yield problem


def frozen_text_encoder(cfg: CfgNode):
    """CLIP's text tower for a head, frozen, and the weights it came from (None for a random start).

    Behind CLIP's image tower both come from MODEL.BACKBONE.PRETRAIN_PATH; behind any other backbone the text tower has
    a path of its own, MODEL.CLIP.PRETRAIN_PATH.

    Returns:
        (TextEncoder or None, template embedding (L, W), state dict or None). Inside `text_towers(False)` no tower is
        built; the embedding is then a placeholder that a checkpoint fills.
    """
    name = cfg.MODEL.CLIP.NAME
    dims = towers.clip_dims(name)
    placeholder = torch.zeros(PROMPT_LENGTH, dims.text_width)
    if not _BUILT.get():
        return None, placeholder, None
    encoder = towers.build_text_encoder(name)
    state = None
    joint = "proj" in getattr(registered(fastreid_registries().backbones).get(cfg.MODEL.BACKBONE.NAME), "gives", ())
    key = "MODEL.BACKBONE.PRETRAIN_PATH" if joint else "MODEL.CLIP.PRETRAIN_PATH"
    if cfg.MODEL.BACKBONE.PRETRAIN or (not joint and cfg.MODEL.CLIP.PRETRAIN_PATH):
        state = towers.read_clip_weights(name, value_of(cfg, key), key)
        towers.load_text_encoder(encoder, state, name)
    encoder.requires_grad_(False)
    template = towers.template_embedding(state) if state else torch.randn_like(placeholder) * 0.02
    return encoder, template, state


def complete_state(head: nn.Module, refresh: str) -> None:
    """Call the head's method `refresh` whenever its state is read, so that what it stores for later is up to date.

    A hook of `state_dict`, not a call: a state is read by the checkpointer, by converters, and by whoever writes
    ``torch.save(model.state_dict(), ...)``, and a stale anchor in a file would be evaluated without a word. The method
    does nothing in a model without a text tower.
    """
    # the module that the hook is given, not `head`: a copy of a head refreshes itself
    head.register_state_dict_pre_hook(lambda module, prefix, keep_vars: getattr(module, refresh)())


class ClassifierHead(nn.Module):
    """One pooled feature, a BNNeck and one identity classifier; subclasses say how to pool.

    In evaluation a head returns one raw (B, F) tensor, the concatenation of the parts in `feature_layout`. What the
    backbone gives beside patch tokens (class token, CLIP's projection) joins as it joins SAGAHead's feature, so that
    heads compare by the same features: "refined" is a head's own, "fusion" the three of CLIP together.

    Attributes:
        gives: what of `head_outputs` loss terms may read; the registered terms that read nothing else are the head's
            terms.
        learns_from: outputs of the backbone that the head's result depends on (see `SAGABaseline`).
    """

    gives = ("logits", "features", *OF_HIDDEN)

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        neck_feat: str,
        embedding_dim: int = 0,
        tower_widths: Mapping[str, int] | None = None,
    ):
        """
        Args:
            feat_dim: width that `pool` gives.
            embedding_dim: width of a linear layer on top; 0 for none.
            tower_widths: such as {"cls": C, "proj": E}: what of the tower's own joins the evaluation feature.
        """
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise ValueError(f"MODEL.HEADS.NECK_FEAT is {neck_feat!r}; expected before or after")
        self.embedding_dim, self.neck_feat = embedding_dim or feat_dim, neck_feat
        self.tower_widths = dict(tower_widths or {})
        self.embedding = embedding_layer(feat_dim, embedding_dim)
        self.bottleneck = batch_norm_neck(self.embedding_dim)
        self.classifier = identity_classifier(self.embedding_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "neck_feat": cfg.MODEL.HEADS.NECK_FEAT,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "tower_widths": tower_widths(cfg),
        }

    @staticmethod
    def feature_parts(cfg: CfgNode) -> list[str]:
        """The names in `feature_layout`, before the head is built. Who overrides one overrides both."""
        names = tower_gives(cfg)
        return ["refined", *names] if names else ["feature"]

    @property
    def feature_layout(self) -> dict[str, int]:
        """Name and width of each part of the evaluation feature, in order."""
        return {"refined" if self.tower_widths else "feature": self.embedding_dim} | self.tower_widths

    def pool(self, features) -> Tensor:
        """CLIPFeatures or a (B, D, h, w) map to (B, D)."""
        raise NotImplementedError

    def forward(self, features, targets: Tensor | None = None):
        """Training: `head_outputs`. Evaluation: (B, F) of `feature_layout`, its first part before or after the neck."""
        feature = self.pooled(features)
        normed = self.bottleneck(feature)
        if self.training:
            return head_outputs(self.classify(normed), feature, **self.hidden_outputs(features))
        return self.evaluation_feature(feature if self.neck_feat == "before" else normed, features)

    def pooled(self, features) -> Tensor:
        """(B, F) the head's own feature, before the neck."""
        return self.embedding(self.pool(features))

    def hidden_outputs(self, features) -> dict[str, Any]:
        """What a training result holds for losses that read what is hidden."""
        return hidden_outputs(features, lambda whole: (self.pooled(whole), None))

    def classify(self, normed: Tensor) -> Tensor:
        """(B, F) after the neck to (Q, B, C) logits of Q classifiers."""
        return self.classifier(normed)[None]

    def evaluation_feature(self, own: Tensor, features) -> Tensor:
        """The head's own (B, F) feature, with the tower's where the layout has them."""
        beside = [getattr(features, name, None) for name in self.tower_widths]
        if any(feature is None for feature in beside):
            raise TypeError(
                f"{type(self).__name__} was built for a tower that gives {' and '.join(self.tower_widths)} beside "
                "patch tokens: use the MODEL.BACKBONE.NAME that it was built with, and MODEL.BACKBONE.OUTPUT tokens"
            )
        return torch.cat([own, *(feature.float() for feature in beside)], dim=1)
