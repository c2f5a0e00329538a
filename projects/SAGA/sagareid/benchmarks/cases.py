"""What is timed: every case is one computation done two ways, ours and the plain way, on the same tensors.

B images, K text anchors, C identities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode

from .. import compat
from ..engine import plans
from ..engine.trainer import HostScalars, SAGATrainer
from ..modeling.prompt_head import PromptHead
from ..modeling.saga_head import SAGAHead
from ..structures import OUTPUTS, as_batch
from .plain import (
    PlainTextTower,
    plain_anchor_losses,
    plain_anchors,
    plain_copy,
    plain_prompt_losses,
    plain_refined,
    plainly,
)

if TYPE_CHECKING:
    from .options import Size

# Largest difference of a value or gradient between the two ways, over the largest entry of that tensor.
TOLERANCE = 2e-3


@dataclass
class Case:
    """One comparison of two ways that compute the same.

    Attributes:
        plain: what the plain way is, in words.
        images: of one call.
        call_plain, call_ours: do one training step, or extract one batch.
        values_plain, values_ours: name -> tensor that must be equal; they change nothing.
    """

    name: str
    plain: str
    images: int
    call_plain: Callable[[], Any]
    call_ours: Callable[[], Any]
    values_plain: Callable[[], dict[str, Tensor]]
    values_ours: Callable[[], dict[str, Tensor]]


class Setting:
    """Configs, models with random weights and batches of a size."""

    def __init__(self, size: Size, configs: Path, device: str):
        self.size, self.device = size, device
        opts = [
            *size.opts,
            *("MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", size.identities),
            *("SOLVER.AMP.ENABLED", False, "MODEL.DEVICE", device),
        ]
        self.cfgs = {stage.name: stage.cfg for stage in plans.plan(configs / size.config, opts)}

    def model(self, stage: str) -> nn.Module:
        torch.manual_seed(0)
        with compat.quiet_host():
            return SAGATrainer.build_model(self.cfgs[stage])

    def pair(self, stage: str) -> tuple[nn.Module, nn.Module]:
        """Our model of a stage, and a copy of its structure for the plain way."""
        model = self.model(stage)
        return model, plain_copy(model)

    def images(self, count: int) -> Tensor:
        """(count, 3, H, W) random, 0..255."""
        return torch.rand(count, 3, *self.cfgs["anchors"].INPUT.SIZE_TRAIN, device=self.device) * 255

    def identity_batch(self, count: int) -> Tensor:
        """Labels of a training batch in groups of NUM_INSTANCE."""
        instances = self.cfgs["anchors"].DATALOADER.NUM_INSTANCE
        labels = torch.randperm(self.size.identities)[: max(1, count // instances)].repeat_interleave(instances)
        return labels[:count].to(self.device)

    def random_batch(self, count: int) -> Tensor:
        """Labels of a batch drawn from all training images, as the prompt stage draws it: few identities repeat."""
        images = torch.arange(self.size.identities).repeat_interleave(self.size.images)
        return images[torch.randperm(len(images))[:count]].to(self.device)


def _cached_features(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What a feature cache holds of a batch: float16 tower outputs."""
    with torch.no_grad():
        batch = as_batch(model.extract({"images": images}), OUTPUTS if "all" in names else names)
    return {k: v.half() if isinstance(v, Tensor) else v for k, v in batch.items()}


def optimizer_step(optimizer: torch.optim.Optimizer, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """A training step as the trainer takes it: the losses are read while the backward pass runs."""

    def step() -> None:
        optimizer.zero_grad()
        terms = losses()
        scalars = HostScalars(terms)
        sum(terms.values()).backward()
        scalars.read()
        optimizer.step()

    return step


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    found = [
        (m, name, getattr(m, name))
        for m in model.modules()
        for kind, name in ((nn.Dropout, "p"), (nn.MultiheadAttention, "dropout"))
        if isinstance(m, kind)
    ]
    try:
        for module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def loss_and_gradients(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every loss term and every gradient, without dropout, since the two ways draw their masks in another order."""
    model.zero_grad(set_to_none=True)
    with _without_dropout(model):
        terms = losses()
        sum(terms.values()).backward()
    out = {k: v.detach() for k, v in terms.items()}
    out |= {f"grad {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out


def _training_case(
    name: str, words: str, images: int, cfg: CfgNode, pair: tuple[nn.Module, nn.Module], ours: Callable, plain: Callable
) -> Case:
    model, copied = (m.train() for m in pair)
    plain = plainly(plain)
    optimizers = [SAGATrainer.build_optimizer(cfg, m)[0] for m in (model, copied)]
    return Case(
        name,
        words,
        images,
        call_plain=optimizer_step(optimizers[1], plain),
        call_ours=optimizer_step(optimizers[0], ours),
        values_plain=lambda: loss_and_gradients(copied, plain),
        values_ours=lambda: loss_and_gradients(model, ours),
    )


def _prompts(setting: Setting) -> Case:
    model, plain = pair = setting.pair("prompts")
    assert isinstance(model.heads, PromptHead)
    count = setting.size.batch
    batch = _cached_features(model, setting.images(count), ("cls", "proj")) | {"targets": setting.random_batch(count)}
    text = PlainTextTower(plain.heads.text_encoder)
    words = "77 text positions, every block on all of them, one prompt for every image of the batch"
    ours, by_hand = (lambda: model(batch)), (lambda: plain_prompt_losses(plain, text, batch))
    return _training_case("prompts", words, count, setting.cfgs["prompts"], pair, ours, by_hand)


def _backbone(setting: Setting) -> Case:
    model, plain = pair = setting.pair("backbone")
    count = setting.size.backbone_batch
    batch = {"images": setting.images(count), "targets": setting.identity_batch(count)}
    _, prompts = setting.pair("prompts")
    share = max(1, round(count / setting.size.images))  # C identities over the C * images / count steps of an epoch
    labels = torch.arange(share, device=setting.device) % setting.size.identities
    text = PlainTextTower(prompts.heads.text_encoder)
    with torch.no_grad():
        model.heads.text_features.normal_()

    def by_hand() -> dict[str, Tensor]:
        with torch.no_grad():
            text(prompts.heads.prompts(labels))
        features = plain.extract(batch)
        return plain.losses(plain.heads(features, batch["targets"]), batch["targets"])

    words = (
        f"text features of all identities anew in every epoch, of which a step's share: {share} prompts of 77 "
        "positions; every position of the tower's last block"
    )
    return _training_case("backbone", words, count, setting.cfgs["backbone"], pair, lambda: model(batch), by_hand)


_ANCHOR_WORDS = (
    "text tower on K x 77 positions twice a step (again for the diversity term), nn.MultiheadAttention with averaged "
    "weights, anchors copied for every image"
)


def _anchors_cached(setting: Setting) -> Case:
    model, plain = pair = setting.pair("anchors")
    assert isinstance(model.heads, SAGAHead)
    count, cfg = setting.size.batch, setting.cfgs["anchors"]
    batch = _cached_features(model, setting.images(count), cfg.CACHE.FIELDS)
    batch |= {"targets": setting.identity_batch(count)}
    text = PlainTextTower(plain.heads.text_encoder)

    def by_hand() -> dict[str, Tensor]:
        return plain_anchor_losses(plain, text, plain.extract(batch).float(), batch["targets"])

    return _training_case("anchors_cached", _ANCHOR_WORDS, count, cfg, pair, lambda: model(batch), by_hand)


def _anchors_live(setting: Setting) -> Case:
    model, plain = pair = setting.pair("anchors")
    count, cfg = setting.size.batch, setting.cfgs["anchors"]
    batch = {"images": setting.images(count), "targets": setting.identity_batch(count)}
    text = PlainTextTower(plain.heads.text_encoder)

    def by_hand() -> dict[str, Tensor]:
        features = plain.extract(batch)
        return plain_anchor_losses(plain, text, features, batch["targets"])

    words = f"the frozen tower under no_grad, every position of its last block; {_ANCHOR_WORDS}"
    return _training_case("anchors_live", words, count, cfg, pair, lambda: model(batch), by_hand)


def _extraction(setting: Setting) -> Case:
    model, plain = setting.pair("anchors")
    model.eval()
    plain.train()
    plain.heads.eval()
    batch = {"images": setting.images(setting.size.extraction_batch)}
    text = PlainTextTower(plain.heads.text_encoder.train())

    @torch.no_grad()
    def ours() -> Tensor:
        return model(batch)

    @plainly
    @torch.no_grad()
    def by_hand() -> Tensor:
        features = plain.extract(batch)
        refined = plain_refined(plain.heads, features, plain_anchors(plain.heads, text))
        return torch.cat([refined, features.cls, features.proj], dim=1)

    return Case(
        "extraction",
        "the text tower on K x 77 positions in every call; the tower under no_grad in training mode, every position of "
        "its last block; nn.MultiheadAttention with averaged weights",
        setting.size.extraction_batch,
        call_plain=by_hand,
        call_ours=ours,
        values_plain=lambda: by_part(model, by_hand()),
        values_ours=lambda: by_part(model, ours()),
    )


def by_part(model: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """The named parts of a model's (B, F) feature."""
    layout = model.feature_layout
    return dict(zip(layout, features.float().split(list(layout.values()), dim=1)))


def largest_difference(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of its tensor.

    A gradient that is zero but for rounding (a shift in front of the neck) is compared with a thousandth of the
    largest.

    Raises:
        RuntimeError: the two ways do not compute the same; names the tensors.
    """
    if ours.keys() != plain.keys():
        raise RuntimeError(f"the two ways give other tensors: {', '.join(sorted(ours.keys() ^ plain.keys()))}")
    largest = {name: float(value.abs().max()) for name, value in plain.items()}
    floor = 1e-3 * max((v for name, v in largest.items() if name.startswith("grad ")), default=0.0)
    apart = {}
    for name in ours:
        scale = max(largest[name], floor if name.startswith("grad ") else 0.0, 1e-12)
        apart[name] = float((ours[name] - plain[name]).abs().max()) / scale
    wrong = [f"{name} by {value:.1e}" for name, value in apart.items() if not value <= TOLERANCE]
    if wrong:
        raise RuntimeError(f"the two ways differ, so their times say nothing: {'; '.join(wrong[:5])}")
    return max(apart.values())


COMPARISONS: dict[str, Callable[[Setting], Case]] = {
    "prompts": _prompts,
    "backbone": _backbone,
    "anchors_cached": _anchors_cached,
    "anchors_live": _anchors_live,
    "extraction": _extraction,
}
