"""What an image tower is to its meta-architecture and its head, whoever made it.

B images, P token layers, N=h*w patches, D token width, C width of the class token, E joint width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from ...structures import BlockWeights, CLIPFeatures
from ..timm.models import TimmDims

__all__ = ["OUTPUTS", "ImageTower", "cannot_give", "crop_problem", "dims_misfits", "layers_problem", "token_layers_of"]

# MODEL.BACKBONE.OUTPUT: CLIPFeatures, a (B, P*D, h, w) map, a (B, C, 1, 1) class token.
OUTPUTS = ("tokens", "map", "cls")


def token_layers_of(layers: Sequence[int], depth: int) -> list[int]:
    """Token layers, 1-based, clamped to 1..depth; sorted, doubles dropped."""
    return sorted({min(max(int(layer), 1), depth) for layer in layers})


def layers_problem(cfg, depth: int) -> Iterator[str]:
    """For `check` of a tower: two token layers that are one when clamped."""
    layers = set(cfg.MODEL.CLIP.TOKEN_LAYERS)
    if len(token_layers_of(layers, depth)) < len(layers):
        yield f"MODEL.CLIP.TOKEN_LAYERS {sorted(layers)}: of a tower of {depth} layers some are the same; name others"


def crop_problem(cfg) -> Iterator[str]:
    """For `check` of a tower of one image size: crops of another."""
    crop, size = cfg.INPUT.CROP, list(cfg.INPUT.SIZE_TRAIN)
    if crop.ENABLED and [crop.SIZE[0], crop.SIZE[-1]] != size:
        yield f"INPUT.CROP.SIZE is {list(crop.SIZE)}, and the tower is built for SIZE_TRAIN {size}: set both alike"


def cannot_give(name: str, dims: TimmDims, layers: Sequence[int], output: str) -> Iterator[str]:
    """Why a model does not give an output of these token layers, a sentence each."""
    found = {(dims.widths[layer - 1], dims.grids[layer - 1]) for layer in layers}
    if len(found) > 1:
        said = ", ".join(f"{layer}: {dims.widths[layer - 1]} wide, grid {dims.grids[layer - 1]}" for layer in layers)
        yield (
            f"MODEL.CLIP.TOKEN_LAYERS {list(layers)}: layers of {name} of different widths or grids ({said}) cannot "
            "stand beside each other; name one, or several that are alike"
        )
    if output != "map" and not dims.pooled:
        yield (
            f"{name} pools nothing for itself, so it gives no `cls`: set MODEL.BACKBONE.TIMM.ARGS [global_pool=avg], "
            "or MODEL.BACKBONE.OUTPUT map"
        )


def dims_misfits(cfg, name: str, dims: TimmDims) -> Iterator[str]:
    """What of a configuration does not fit what a model gives, a sentence each."""
    size = tuple(cfg.INPUT.SIZE_TRAIN)
    if dims.fixed_size:
        if tuple(cfg.INPUT.SIZE_TEST) != size:
            yield (
                f"INPUT.SIZE_TEST {tuple(cfg.INPUT.SIZE_TEST)} differs from SIZE_TRAIN {size}: {name} takes images of "
                "one size"
            )
        yield from crop_problem(cfg)
    yield from layers_problem(cfg, len(dims.widths))
    layers, output = token_layers_of(cfg.MODEL.CLIP.TOKEN_LAYERS, len(dims.widths)), cfg.MODEL.BACKBONE.OUTPUT
    problems = list(cannot_give(name, dims, layers, output))
    yield from problems
    if problems:
        return
    width = dims.pooled if output == "cls" else dims.widths[layers[-1] - 1] * (len(layers) if output == "map" else 1)
    if width != cfg.MODEL.BACKBONE.FEAT_DIM:
        what = "pools" if output == "cls" else f"gives in layer {', '.join(map(str, layers))}"
        yield f"MODEL.BACKBONE.FEAT_DIM is {cfg.MODEL.BACKBONE.FEAT_DIM}; {name} {what} {width} numbers: set it so"


class ImageTower(nn.Module):
    """A backbone of patch tokens: what `SAGABaseline`, feature caches and exports may ask of it beside `forward`.

    Its builder may say, as attributes of the function, what of `CLIPFeatures` it `gives` beside patch tokens ("cls",
    "proj"), their `widths(cfg)`, and what is wrong with a configuration that uses it, `check(cfg)`.

    Attributes:
        depth: number of layers (blocks, or stages) that a token layer may be.
        token_layers: the layers read, 1-based, ascending.
        output: of `OUTPUTS`.
    """

    def __init__(self, *, depth: int, token_layers: Sequence[int], output: str):
        """
        Raises:
            ValueError: no token layer, or no such output.
        """
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.BACKBONE.OUTPUT is {output!r}; expected one of {', '.join(OUTPUTS)}")
        if not token_layers:
            raise ValueError("MODEL.CLIP.TOKEN_LAYERS is empty; name one block or two")
        self.depth = depth
        self.token_layers = token_layers_of(token_layers, depth)
        self.output = output

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches of a token layer, for images of the size that it was built for."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the only images that it takes; None where it takes others, too."""
        raise NotImplementedError

    def block_weights(self, number: int) -> BlockWeights | None:
        """The layer of a 1-based number, clamped to the depth, as a transformer block; None where it is none."""
        return None

    def unread(self, outputs: Collection[str]) -> list[nn.Parameter]:
        """Parameters that none of `outputs` ("patches", "layer_cls", "cls", "proj") depends on."""
        raise NotImplementedError

    def forward(self, images: Tensor, camids: Tensor | None = None) -> CLIPFeatures | Tensor:
        """
        Args:
            images: (B, 3, H, W), (x - MODEL.PIXEL_MEAN) / MODEL.PIXEL_STD.
            camids: (B,) indices of training cameras, negative for unknown; for a tower with a camera embedding.

        Returns:
            What `as_output` makes.
        """
        raise NotImplementedError

    def check_size(self, images: Tensor) -> None:
        """
        Raises:
            ValueError: images of another size than the only one that the tower takes.
        """
        expected = self.image_size
        if expected is not None and tuple(images.shape[2:]) != expected:
            raise ValueError(
                f"images of {tuple(images.shape[2:])} for a tower built for {expected}: set INPUT.SIZE_TRAIN and "
                "INPUT.SIZE_TEST alike"
            )

    def as_output(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        *,
        cls: Tensor | None,
        proj: Tensor | None = None,
        layer_cls: Tensor | None = None,
    ) -> CLIPFeatures | Tensor:
        """CLIPFeatures, (B, P*D, h, w) patch tokens of the token layers, or (B, C, 1, 1) class token, by `output`.

        Args:
            patches: (B, P*N, D), as of `CLIPFeatures`, whose fields the others are.
        """
        if self.output == "map":
            return torch.cat(patches.chunk(len(self.token_layers), dim=1), dim=2).transpose(1, 2).unflatten(2, grid)
        if self.output == "cls":
            return cls[..., None, None]
        return CLIPFeatures(
            patches=patches, grid=grid, cls=cls, proj=proj, layer_cls=layer_cls, num_layers=len(self.token_layers)
        )
