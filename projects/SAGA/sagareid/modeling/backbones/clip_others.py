"""CLIP's image towers that are no ViT of open_clip's, behind the same builder: ModifiedResNet, models of timm.

B images, P token layers, N=h*w patches, D token width, C width of what the tower pools, E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode

from ...structures import CLIPFeatures
from ..clip import towers, visuals
from ..timm.models import TimmDims, TimmModel, timm_dims, unread_names
from .timm import TimmBackbone, with_stride
from .tower import ImageTower, cannot_give, dims_misfits

__all__ = ["OTHERS", "CLIPResNetBackbone", "CLIPTimmBackbone"]


class CLIPResNetBackbone(ImageTower):
    """CLIP's ModifiedResNet: maps of its stages, and what its attention pool reads from the last one (`cls`, which is
    in the joint space already, so `proj` is the same)."""

    def __init__(self, *, visual: nn.Module, dims: TimmDims, image_size: Sequence[int], token_layers, output: str):
        super().__init__(depth=len(dims.widths), token_layers=token_layers, output=output)
        self.visual, self.dims, self._size = visual, dims, tuple(image_size)

    @property
    def grid(self) -> tuple[int, int]:
        return self.dims.grids[self.token_layers[-1] - 1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self._size

    def unread(self, outputs: Collection[str]) -> list[nn.Parameter]:
        if {"cls", "proj"} & set(outputs):
            return []
        if "patches" not in outputs:
            return list(self.parameters())
        behind = [getattr(self.visual, layer) for layer in visuals.RESNET_LAYERS[self.token_layers[-1] :]]
        return [p for module in (self.visual.attnpool, *behind) for p in module.parameters()]

    def forward(self, images: Tensor, camids: Tensor | None = None) -> CLIPFeatures | Tensor:
        """(B, 3, H, W) images to what `as_output` makes; `camids` are not used."""
        self.check_size(images)
        x, maps = self.visual.stem(images), []
        for number, layer in enumerate(visuals.RESNET_LAYERS, start=1):
            x = getattr(self.visual, layer)(x)
            if number in self.token_layers:
                maps.append(x)
        pooled = None if self.output == "map" else self.visual.attnpool(x)
        patches = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        return self.as_output(patches, self.grid, cls=pooled, proj=pooled)


class CLIPTimmBackbone(TimmBackbone):
    """A timm model inside a CLIP (SigLIP, EVA02-CLIP, MobileCLIP, ConvNeXt-CLIP, ViTamin, PE): `cls` is what it pools,
    `proj` that in the joint space."""

    def __init__(self, *, visual: nn.Module, source: TimmModel, token_layers: Sequence[int], output: str):
        """visual: open_clip's `TimmModel`, of the size and stride that `source` says."""
        dims = timm_dims(source)
        ImageTower.__init__(self, depth=len(dims.widths), token_layers=token_layers, output=output)
        for problem in cannot_give(source.name, dims, self.token_layers, output):
            raise ValueError(problem)
        self.visual, self.source, self.dims = visual, source, dims

    @property
    def model(self) -> nn.Module:
        return self.visual.trunk

    def _project(self, pooled: Tensor) -> Tensor:
        """(B, C) to (B, E)."""
        return self.visual.head(self.model.get_classifier()(pooled))

    def unread(self, outputs: Collection[str]) -> list[nn.Parameter]:
        names = unread_names(self.source, self.token_layers, {"cls" if name == "proj" else name for name in outputs})
        found = [parameter for name, parameter in self.model.named_parameters() if name in names]
        if "proj" in outputs:
            return found
        return found + [p for m in (self.visual.head, self.model.get_classifier()) for p in m.parameters()]

    def forward(self, images: Tensor, camids: Tensor | None = None) -> CLIPFeatures | Tensor:
        features = super().forward(images, camids)
        if isinstance(features, CLIPFeatures):
            return replace(features, proj=self._project(features.cls))
        return features


# ---- what the builder asks -------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What `build_clip_vit_backbone` asks of a kind of tower (`ClipDims.kind`)."""

    dims: Callable[[CfgNode], TimmDims]
    build: Callable[[CfgNode], ImageTower]


def _state(cfg: CfgNode) -> dict[str, Tensor] | None:
    if not cfg.MODEL.BACKBONE.PRETRAIN:
        return None
    return towers.read_clip_weights(cfg.MODEL.CLIP.NAME, cfg.MODEL.BACKBONE.PRETRAIN_PATH)


def _resnet_dims(cfg: CfgNode) -> TimmDims:
    if cfg.MODEL.BACKBONE.GRAD_CHECKPOINT:
        raise ValueError(
            f"MODEL.BACKBONE.GRAD_CHECKPOINT is True, and open_clip recomputes none of {cfg.MODEL.CLIP.NAME}: "
            "set it False"
        )
    stride = cfg.MODEL.BACKBONE.LAST_STRIDE
    if stride not in (1, 2):
        raise ValueError(f"MODEL.BACKBONE.LAST_STRIDE is {stride}; expected 2, as trained, or 1 for a finer map")
    return visuals.resnet_dims(cfg.MODEL.CLIP.NAME, tuple(cfg.INPUT.SIZE_TRAIN), stride)


def _build_resnet(cfg: CfgNode) -> CLIPResNetBackbone:
    size = tuple(cfg.INPUT.SIZE_TRAIN)
    return CLIPResNetBackbone(
        visual=visuals.build_resnet(cfg.MODEL.CLIP.NAME, size, cfg.MODEL.BACKBONE.LAST_STRIDE, _state(cfg)),
        dims=_resnet_dims(cfg),
        image_size=size,
        token_layers=cfg.MODEL.CLIP.TOKEN_LAYERS,
        output=cfg.MODEL.BACKBONE.OUTPUT,
    )


def _timm_source(cfg: CfgNode) -> TimmModel:
    return with_stride(cfg, visuals.timm_source(cfg.MODEL.CLIP.NAME, tuple(cfg.INPUT.SIZE_TRAIN)))


def _build_timm(cfg: CfgNode) -> CLIPTimmBackbone:
    source = _timm_source(cfg)
    visual = visuals.build_timm(cfg.MODEL.CLIP.NAME, source, _state(cfg))
    if cfg.MODEL.BACKBONE.GRAD_CHECKPOINT:
        visual.trunk.set_grad_checkpointing(True)
    return CLIPTimmBackbone(
        visual=visual,
        source=source,
        token_layers=cfg.MODEL.CLIP.TOKEN_LAYERS,
        output=cfg.MODEL.BACKBONE.OUTPUT,
    )


OTHERS = {
    "resnet": Kind(_resnet_dims, _build_resnet),
    "timm": Kind(lambda cfg: timm_dims(_timm_source(cfg)), _build_timm),
}


def misfits(cfg: CfgNode, kind: str) -> Iterator[str]:
    """What keeps such a tower from being built, a sentence each."""
    try:
        dims = OTHERS[kind].dims(cfg)
    except ValueError as error:
        yield str(error)
        return
    yield from dims_misfits(cfg, cfg.MODEL.CLIP.NAME, dims)
    if cfg.MODEL.CLIP.SIE_CAMERA:
        yield (
            f"MODEL.CLIP.SIE_CAMERA adds a camera embedding to the class token of CLIP's ViTs; for "
            f"{cfg.MODEL.CLIP.NAME} use MODEL.SAGA.DOMAIN_ANCHORS camera, and set it False"
        )
