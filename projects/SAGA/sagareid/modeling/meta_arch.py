"""FastReID's Baseline with what tokens need: camera ids, cached features, out-of-place normalisation, losses in
float32."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.modeling.meta_arch.baseline import Baseline

from ..registry import FASTREID_LOSSES, computed_losses
from ..structures import HIDDEN, OUTPUTS, WHOLE, CLIPFeatures, as_features, from_batch, patch_shares
from . import losses as L
from .backbones.tower import ImageTower
from .last_modules import input_of
from .terms import build_terms, compute_terms

__all__ = ["SAGABaseline"]


@META_ARCH_REGISTRY.register()
class SAGABaseline(Baseline):
    """Backbone and head of any kind, ours or FastReID's.

    Beside FastReID's batch keys it reads `cameras` (index of the training camera, negative for unknown), and cached
    outputs of the backbone in place of `images` (`structures.as_batch`). The head's own `losses` join the loss dict.
    """

    registered_losses = True  # it computes the terms of LOSS_REGISTRY, for heads that say what they give
    reads_cached_features = True  # in place of images
    last_modules: Sequence[str] = ()

    @configurable
    def __init__(self, *, terms: nn.ModuleDict | None = None, last_modules: Sequence[str] = (), **kwargs):
        """
        Args:
            terms: of `build_terms`.
            last_modules: modules at the end of the backbone that are left to the head (see `last_modules`).
            kwargs: of FastReID's `Baseline`.
        """
        super().__init__(**kwargs)
        self.last_modules = list(last_modules)
        self.terms = nn.ModuleDict() if terms is None else terms
        self.modules_in_eval: list[nn.Module] = []
        self.compile_mode = ""  # of torch.compile for training steps (MODEL.COMPILE), the trainer's to set
        self._teacher: list[nn.Module] = []  # in a list: it is no part of the model, its state or its parameters
        self.measured: dict[str, Tensor] = {}  # what the last training step measured beside its losses, by log name
        if isinstance(self.backbone, ImageTower) and self.every_parameter_learns:
            read = set(self.heads.learns_from).union(*(term.learns_from for term in self.terms.values()))
            for parameter in self.backbone.unread(read):
                parameter.requires_grad_(False)
        self.initialize_heads({})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(cfg) | {
            "terms": build_terms(cfg),
            "last_modules": cfg.MODEL.BACKBONE.LAST_MODULES,
        }

    def initialize_heads(self, source: dict[str, Tensor]) -> None:
        """Let the head start what it has no weights for from the backbone; `source` is a starting checkpoint's
        state."""
        if hasattr(self.heads, "initialize"):
            self.heads.initialize(self.backbone, source)

    def train(self, mode: bool = True):
        """As usual, but `modules_in_eval` (MODEL.EVAL_MODE) stay in evaluation mode.

        So does a backbone that is frozen altogether: its batch norms keep their statistics, which no gradient holds,
        and nothing is dropped. What it gives is then a function of the image, from a feature cache or live.
        """
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        for module in self.modules_in_eval:
            module.eval()
        return self

    @property
    def feature_layout(self) -> dict[str, int] | None:
        """Parts of the evaluation feature in order; None for a FastReID head."""
        return getattr(self.heads, "feature_layout", None)

    @property
    def every_parameter_learns(self) -> bool:
        """Whether every parameter that trains gets a gradient in each step: known of heads that say, in `learns_from`,
        which outputs of the backbone their losses reach. What of an `ImageTower` serves none of these is frozen."""
        return hasattr(self.heads, "learns_from")

    @property
    def backbone_frozen(self) -> bool:
        return not any(p.requires_grad for p in self.backbone.parameters())

    @property
    def wants_teacher(self) -> bool:
        """Whether a term compares with the backbone as it was when the run began (`LossTerm.frozen_teacher`)."""
        return any(term.frozen_teacher for term in self.terms.values())

    def keep_teacher(self) -> None:
        """Take the present backbone for the teacher: a copy that never learns and is not stored with the model."""
        self._teacher = [copy.deepcopy(self.backbone).eval().requires_grad_(False)]

    def preprocess_image(self, batched_inputs) -> Tensor:
        """Images on the model's device, (x - mean) / std in float32, leaving the batch as it is.

        FastReID normalises in place, which normalises twice what the flip test forwards again.
        """
        images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
        images = images.to(self.device, non_blocking=True).float()
        return (images - self.pixel_mean) / self.pixel_std

    def extract(self, batched_inputs, backbone: nn.Module | None = None) -> CLIPFeatures | Tensor:
        """Backbone outputs of a batch, from images or from a feature cache. backbone: another in the place of its
        own."""
        backbone = self.backbone if backbone is None else backbone
        batch = batched_inputs if isinstance(batched_inputs, dict) else {"images": batched_inputs}
        cameras = batch.get("cameras")
        cameras = cameras.to(self.device) if cameras is not None else None
        if "images" not in batch:
            return from_batch(batch | {k: batch[k].to(self.device) for k in OUTPUTS if k in batch}, cameras)
        images = self.preprocess_image(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
            if self.last_modules:
                return input_of(backbone, self.last_modules[0], images)
            if not isinstance(backbone, ImageTower):
                return backbone(images)
            features = backbone(images, camids=cameras)
        return replace(features, camids=cameras) if isinstance(features, CLIPFeatures) else features

    def head_input(self, batched_inputs, backbone: nn.Module | None = None) -> CLIPFeatures | Tensor:
        """`extract`, with the cameras for a head that reads them: a map has no place for them."""
        features = self.extract(batched_inputs, backbone)
        cameras = batched_inputs.get("cameras") if isinstance(batched_inputs, dict) else None
        if cameras is None or not getattr(self.heads, "reads_cameras", False):
            return features
        return replace(as_features(features), camids=cameras.to(self.device))

    def forward(self, batched_inputs):
        """
        In training a dict of weighted scalar losses; `measured` then holds the accuracy of the classifiers. In
        evaluation (B, F) float32 features, raw.

        Raises:
            KeyError: training without "targets".
        """
        if not self.training:
            return self.heads(self.head_input(batched_inputs))
        if "targets" not in batched_inputs:
            raise KeyError("training needs the identities of the batch under 'targets'")
        step = self.training_step
        for term in self.terms.values():
            term.prepare(self.heads)
        if self.compile_mode:
            if hasattr(self.heads, "prepare"):
                self.heads.prepare()
            torch.compiler.cudagraph_mark_step_begin()  # the last step's losses may be overwritten
            # nothing but tensors on the device enters a compiled step, and the form of a grid, which is one for all
            tensors = {k: v for k, v in batched_inputs.items() if isinstance(v, Tensor)}
            form = {k: batched_inputs[k] for k in ("grid", "num_layers") if k in batched_inputs}
            batched_inputs = form | {k: v.to(self.device, non_blocking=True) for k, v in tensors.items()}
            step = functools.partial(_compiled_step(self.compile_mode), self)
        terms, self.measured = step(batched_inputs)
        return terms

    def training_step(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a batch, and what is measured beside them. Nothing in here makes the host wait for the device,
        with a head of ours."""
        targets = batch["targets"].to(self.device)
        features = self.head_input(batch)
        if any("hidden" in term.reads for term in self.terms.values()):
            features = self.with_hidden(features, batch)
        outputs = self.heads(features, targets)
        measured = {}
        if "logits" in outputs:
            measured["cls_accuracy"] = L.classification_accuracy(outputs["pred_class_logits"].detach(), targets)
        return self.losses(outputs, targets), measured

    def with_hidden(self, features: CLIPFeatures | Tensor, batch: dict[str, Any]) -> CLIPFeatures:
        """Backbone outputs, and what a batch of INPUT.OCCLUDE knows of them: which patches are hidden, and the outputs
        for the same images with nothing hidden where it has those ("whole_images", or cached "whole_patches", ...).

        Raises:
            ValueError: the batch says nothing of what is hidden.
        """
        if HIDDEN not in batch:
            raise ValueError(
                f"a term of MODEL.LOSSES.NAME reads what is hidden, and the batch has no {HIDDEN!r}: set "
                "INPUT.OCCLUDE.ENABLED True"
            )
        features = as_features(features)
        hidden = patch_shares(batch[HIDDEN].to(self.device, non_blocking=True).float(), features.grid)
        shown = {k.removeprefix(WHOLE): v for k, v in batch.items() if k.startswith(WHOLE)}
        whole = None
        if shown:
            others = {k: v for k, v in batch.items() if k not in (*OUTPUTS, "images")}
            if self.wants_teacher and not self._teacher:  # the trainer's to keep; of a model without one, as it is now
                self.keep_teacher()
            with torch.no_grad():
                whole = as_features(self.head_input(others | shown, *self._teacher))
        return replace(features, hidden=hidden, whole=whole)

    def losses(self, outputs: dict[str, Any], gt_labels: Tensor) -> dict[str, Tensor]:
        """FastReID's loss names; every term in float32, over every classifier of the head.

        With several processes the terms compare the images of all of them. FastReID's own heads keep its losses, which
        see the images of one process.

        Raises:
            ValueError: MODEL.LOSSES.NAME names a term that is not computed of this head.
        """
        own, names = outputs.get("losses", {}), self.loss_kwargs["loss_names"]
        fastreids = "cls_outputs" in outputs and "logits" not in outputs  # what FastReID's heads return
        known = FASTREID_LOSSES if fastreids else self.terms
        for name in names:  # of a model that was built without `check_config`
            if name not in known:
                raise ValueError(
                    f"MODEL.LOSSES.NAME names {name}, which is not computed of {type(self.heads).__name__}; "
                    f"computed: {', '.join(computed_losses(type(self), type(self.heads)))}"
                )
        if fastreids:
            return super().losses(outputs, gt_labels) | own
        plain = {n: t for n, t in self.terms.items() if all(key in ("logits", "features") for key in t.reads)}
        further = {n: t for n, t in self.terms.items() if n not in plain}
        # floats are summed, losses in the order of this result and gradients in that of the computation: neither
        # changes
        behind = compute_terms(further, outputs, gt_labels)
        return compute_terms(plain, outputs, gt_labels) | own | behind


def _step(model: SAGABaseline, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return model.training_step(batch)


@functools.cache
def _compiled_step(mode: str) -> Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """`training_step` of any model under torch.compile. The model is an argument, so that its names stay as they are
    and a copy of it is a model of its own; shapes are static, since training batches are full."""
    return torch.compile(_step, mode=mode, dynamic=False)
