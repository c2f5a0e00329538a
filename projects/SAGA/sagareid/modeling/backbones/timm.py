"""Any timm model that gives patch tokens or maps of its layers, as a FastReID backbone.

B images, P token layers, N=h*w patches, D token width, C width of what the model pools.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY

from ...structures import BlockWeights, CLIPFeatures
from ...values import one_of, texts, within
from ..timm import weights
from ..timm.blocks import block_weights
from ..timm.models import TimmModel, read_layers, timm_dims, unread_names
from ..timm.variants import VARIANTS
from .tower import OUTPUTS, ImageTower, cannot_give, dims_misfits

__all__ = ["TimmBackbone", "build_timm_backbone", "with_stride"]

logger = logging.getLogger(__name__)


class TimmBackbone(ImageTower):
    """A timm model that returns tokens of chosen layers beside what it pools itself.

    `cls` is what the model's own classifier would read: a class token, the mean of the patches, an attention pool. A
    layer is a block where all have one grid, and a stage otherwise.
    """

    def __init__(self, *, model: nn.Module, source: TimmModel, token_layers: Sequence[int], output: str):
        """
        Args:
            model: of timm, of the size and stride that `source` says.
            output: one of `OUTPUTS`.

        Raises:
            ValueError: token layers that cannot stand beside each other, or an output that the model does not give.
        """
        dims = timm_dims(source)
        super().__init__(depth=len(dims.widths), token_layers=token_layers, output=output)
        for problem in cannot_give(source.name, dims, self.token_layers, output):
            raise ValueError(problem)
        self.model, self.source, self.dims = model, source, dims

    @property
    def grid(self) -> tuple[int, int]:
        return self.dims.grids[self.token_layers[-1] - 1]

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self.source.image_size if self.dims.fixed_size else None

    def block_weights(self, number: int) -> BlockWeights | None:
        number = min(max(number, 1), self.depth)
        found = block_weights(self.model.get_submodule(self.model.feature_info[number - 1]["module"]))
        return found if found is not None and found.width == self.dims.widths[self.token_layers[-1] - 1] else None

    def unread(self, outputs: Collection[str]) -> list[nn.Parameter]:
        names = unread_names(self.source, self.token_layers, outputs)
        return [parameter for name, parameter in self.model.named_parameters() if name in names]

    def forward(self, images: Tensor, camids: Tensor | None = None) -> CLIPFeatures | Tensor:
        """
        Args:
            images: (B, 3, H, W), (x - MODEL.PIXEL_MEAN) / MODEL.PIXEL_STD.
            camids: not used.

        Returns:
            CLIPFeatures without `proj`, (B, P*D, h, w) map of the token layers, or (B, C, 1, 1) pooled feature, by
            `output`.

        Raises:
            ValueError: images of another size than the model was built for, where it takes that alone.
        """
        self.check_size(images)
        maps, tokens, pooled = read_layers(self.model, images, self.token_layers, pooled=self.output != "map")
        return self.as_output(
            torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
            tuple(maps[-1].shape[2:]),
            cls=pooled,
            layer_cls=None if tokens is None else torch.cat(tokens, dim=1),
        )


def _source(cfg: CfgNode) -> TimmModel:
    """The model of a configuration."""
    keys = cfg.MODEL.BACKBONE.TIMM
    plain = TimmModel(
        keys.NAME,
        tuple(map(str, keys.ARGS)),
        tuple(cfg.INPUT.SIZE_TRAIN),
        variant=keys.VARIANT,
        semantic_weight=keys.SEMANTIC_WEIGHT,
    )
    return with_stride(cfg, plain)


def with_stride(cfg: CfgNode, plain: TimmModel) -> TimmModel:
    """The model with patches of MODEL.BACKBONE.STRIDE_SIZE, which counts for one with patches of one size alone.

    Raises:
        ValueError: a stride that it cannot have.
    """
    given, patch = tuple(cfg.MODEL.BACKBONE.STRIDE_SIZE), timm_dims(plain).patch_size
    if patch is None or given == (patch, patch):
        return plain
    if len(set(given)) > 1 or not 1 <= given[0] <= patch:
        raise ValueError(
            f"MODEL.BACKBONE.STRIDE_SIZE is {given}; expected one number twice, of 1 to {patch}, the size of a patch "
            f"of {plain.name}"
        )
    return replace(plain, stride=given[0])


def _misfits(cfg: CfgNode) -> Iterator[str]:
    """What keeps a tower from being built, a sentence each."""
    try:
        source = _source(cfg)
        dims = timm_dims(source)
    except ValueError as error:
        yield str(error)
        return
    yield from dims_misfits(cfg, source.name, dims)


def _check(cfg: CfgNode) -> Iterator[str]:
    """What keeps a run with the tower from working, a sentence each."""
    wrong = [*one_of(cfg, "MODEL.BACKBONE.OUTPUT", OUTPUTS), *texts(cfg, "MODEL.BACKBONE.TIMM.ARGS")]
    wrong += one_of(cfg, "MODEL.BACKBONE.TIMM.VARIANT", ("", *VARIANTS))
    wrong += within(cfg, "MODEL.BACKBONE.TIMM.SEMANTIC_WEIGHT", 0, 1)
    yield from wrong or _misfits(cfg)


def _add_keys(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.TIMM = CfgNode()
    # build_timm_backbone: name of a timm model, such as vit_base_patch14_dinov2, with or without the tag of its weights
    # behind a dot. MODEL.BACKBONE.PRETRAIN_PATH is a tag, a file, or empty for the tag in the name or timm's first.
    cfg.MODEL.BACKBONE.TIMM.NAME = ""
    # Further arguments of timm.create_model, each as key=value: [global_pool=avg, drop_path_rate=0.1].
    cfg.MODEL.BACKBONE.TIMM.ARGS = []
    # A part that timm does not have, for weights that were trained with it: ics, TransReID-SSL's convolutional stem in
    # front of a ViT; solider, SOLIDER's Swin Transformer. Empty: none.
    cfg.MODEL.BACKBONE.TIMM.VARIANT = ""
    # VARIANT solider: 0 (appearance) to 1 (semantics); published for re-identification: 0.2.
    cfg.MODEL.BACKBONE.TIMM.SEMANTIC_WEIGHT = 0.2


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """A timm model by `MODEL.BACKBONE.TIMM.*`, for images of `INPUT.SIZE_TRAIN`.

    Raises:
        ValueError: a name, argument, size, stride or width that does not fit; weights that do not fill the model.
        FileNotFoundError: PRETRAIN without reachable weights.
    """
    for misfit in _misfits(cfg):
        raise ValueError(misfit)
    keys, source = cfg.MODEL.BACKBONE, _source(cfg)
    model = weights.build(source, pretrained=keys.PRETRAIN_PATH if keys.PRETRAIN else None)
    if keys.PRETRAIN:
        _compare_pixels(cfg, model)
    if keys.GRAD_CHECKPOINT:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ValueError(
                f"MODEL.BACKBONE.GRAD_CHECKPOINT is True, and timm recomputes no activations of {source.name}: set it "
                "False"
            ) from error
    return TimmBackbone(model=model, source=source, token_layers=cfg.MODEL.CLIP.TOKEN_LAYERS, output=keys.OUTPUT)


def _compare_pixels(cfg: CfgNode, model: nn.Module) -> None:
    """Say where the weights were trained with another normalisation than the configuration's."""
    for key, name in (("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
        trained = [round(255 * value, 2) for value in model.pretrained_cfg.get(name, ())]
        given = [round(float(value), 2) for value in cfg.MODEL[key]]
        if trained and max(abs(a - b) for a, b in zip(trained, given)) > 0.5:
            logger.warning("MODEL.%s is %s; timm says that these weights were trained with %s", key, given, trained)


def _widths(cfg: CfgNode) -> dict[str, int]:
    """Widths of what it gives beside patch tokens."""
    return {"cls": timm_dims(_source(cfg)).pooled}


# a function, so what it says of itself are attributes of it
build_timm_backbone.add_keys = _add_keys
build_timm_backbone.check = _check
build_timm_backbone.gives = ("cls",)
build_timm_backbone.widths = _widths
