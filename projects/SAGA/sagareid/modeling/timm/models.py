"""timm models by name, for any image size and patch stride, and what they give.

B images, (H, W) image, N=h*w patches, D width of a layer, C width of the pooled feature, S layers (blocks, or stages).
No FastReID and no config in here.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ...errors import did_you_mean, first_line
from ..clip.towers import patch_grid
from .variants import VARIANTS

__all__ = ["TimmDims", "TimmModel", "create", "fit", "patch_size", "read_layers", "timm_dims", "unread_names"]


@dataclass(frozen=True)
class TimmModel:
    """What a timm model is built from.

    Attributes:
        name: of timm, with or without a tag of weights behind a dot.
        args: "key=value" arguments of `timm.create_model`, values as Python writes them.
        image_size: (H, W).
        stride: of the patches of a ViT; None for the size of a patch.
        variant: of `VARIANTS`, a part that timm does not have; empty for none.
        semantic_weight: of the variant "solider".
    """

    name: str
    args: tuple[str, ...]
    image_size: tuple[int, int]
    stride: int | None = None
    variant: str = ""
    semantic_weight: float = 0.0

    @property
    def architecture(self) -> str:
        return self.name.partition(".")[0]

    def arguments(self) -> dict[str, Any]:
        """
        Raises:
            ValueError: not of the form "key=value".
        """
        found = {}
        for entry in self.args:
            key, equals, value = str(entry).partition("=")
            if not equals or not key.strip().isidentifier():
                raise ValueError(
                    f"MODEL.BACKBONE.TIMM.ARGS has {entry!r}; expected key=value as for timm.create_model, such as "
                    "global_pool=avg or depth=6"
                )
            try:
                found[key.strip()] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                found[key.strip()] = value.strip()
        return found


@dataclass(frozen=True)
class TimmDims:
    """What a model gives for its image size.

    Attributes:
        widths: D of each of the S layers. grids: (h, w) of each.
        pooled: C; 0 where the model pools nothing.
        class_token: whether each layer has one.
        patch_size: of a ViT; None for a model of stages.
        fixed_size: whether it takes images of its own size alone.
    """

    widths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    pooled: int
    class_token: bool
    patch_size: int | None
    fixed_size: bool


def create(model: TimmModel, *, pretrained: bool = False) -> nn.Module:
    """timm's model without a classifier, of its own image size where that can be changed later (`fit`).

    Raises:
        ValueError: an unknown name or argument, or a model without `forward_intermediates`.
    """
    if not timm.is_model(model.architecture):
        known = timm.list_models()
        raise ValueError(
            f"MODEL.BACKBONE.TIMM.NAME is {model.name!r}, which timm {timm.__version__} does not know."
            f"{did_you_mean(model.architecture, known)} timm.list_models() has all {len(known)}"
        )
    arguments = model.arguments()
    try:
        built = timm.create_model(model.name, pretrained=pretrained, num_classes=0, **arguments)
        if _size_at_creation(built):
            size = {"img_size": model.image_size} | arguments
            built = timm.create_model(model.name, pretrained=pretrained, num_classes=0, **size)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"timm cannot build {model.name} with MODEL.BACKBONE.TIMM.ARGS {list(model.args)} for images of "
            f"{model.image_size}: {first_line(error) or type(error).__name__}"
        ) from error
    if not hasattr(built, "forward_intermediates"):
        raise ValueError(
            f"MODEL.BACKBONE.TIMM.NAME {model.name}: timm gives no intermediate features of {type(built).__name__} "
            "(forward_intermediates); choose another model"
        )
    return built


def _size_at_creation(built: nn.Module) -> bool:
    """Whether a model's image size is an argument of its class, and nothing changes it later."""
    return not hasattr(built, "set_input_size") and bool(built.pretrained_cfg.get("fixed_input_size"))


class _StridedPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride of its own: overlapping patches."""

    def set_input_size(self, img_size: tuple[int, int] | None = None, patch_size: Any = None) -> None:
        self.img_size = tuple(img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return patch_grid(img_size, self.patch_size[0], self.proj.stride[0])


def patch_size(built: nn.Module) -> int | None:
    """Size of a patch of a ViT, whose stride may be set; None for other models."""
    embed = getattr(built, "patch_embed", None)
    same_grid = len({layer["reduction"] for layer in built.feature_info}) == 1
    if type(embed) is PatchEmbed and same_grid and hasattr(built, "set_input_size"):
        return embed.patch_size[0]
    return None


def fit(built: nn.Module, model: TimmModel) -> None:
    """Give a built model its image size and patch stride, in place: position embeddings are resampled by timm.

    The windows of a Swin keep their size, which its relative position biases were trained for.

    Raises:
        ValueError: a stride that the model has no patches for, no such variant, or a size that timm refuses.
    """
    size, patch = model.image_size, patch_size(built)
    if model.variant not in ("", *VARIANTS):
        known = ", ".join(VARIANTS)
        raise ValueError(f"MODEL.BACKBONE.TIMM.VARIANT is {model.variant!r}; expected one of {known}, or nothing")
    variant = VARIANTS.get(model.variant)
    try:
        if model.stride is not None and model.stride != patch:
            if patch is None or not 1 <= model.stride <= patch:
                expected = f"1 to {patch}" if patch else "none: its patches have no stride to set"
                raise ValueError(f"a patch stride of {model.stride}; expected {expected}")
            built.patch_embed.proj.stride = (model.stride, model.stride)
            built.patch_embed.__class__ = _StridedPatchEmbed  # the same parameters and names
        if hasattr(built, "set_input_size"):
            windows = {}
            if "window_size" in inspect.signature(built.set_input_size).parameters and hasattr(built, "layers"):
                windows["window_size"] = [tuple(stage.blocks[0].window_size) for stage in built.layers]
            built.set_input_size(img_size=size, **windows, **getattr(variant, "size_options", {}))
        if variant is not None:
            variant(built, semantic_weight=model.semantic_weight)
    except (ValueError, AssertionError, RuntimeError) as error:
        kind = f" as MODEL.BACKBONE.TIMM.VARIANT {model.variant}" if model.variant else ""
        raise ValueError(f"{model.name}{kind} cannot take images of {size}: {first_line(error)}") from error


def read_layers(
    built: nn.Module, images: Tensor, layers: Sequence[int], *, pooled: bool = True
) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
    """
    Args:
        images: (B, 3, H, W).
        layers: 1-based, ascending.
        pooled: False stops behind the last of them.

    Returns:
        (B, D, h, w) of each layer, not normalised; (B, 1, D) class token of each, or None where there is none; (B, C)
        what the model itself pools behind its last layer, in front of its classifier, or None for `pooled` False.
    """
    options: dict[str, Any] = {"indices": [layer - 1 for layer in layers]}
    parameters = inspect.signature(built.forward_intermediates).parameters
    prefix = getattr(built, "num_prefix_tokens", 0) and "return_prefix_tokens" in parameters
    if prefix:
        options["return_prefix_tokens"] = True
    if "stop_early" in parameters:  # which is some models' default
        options["stop_early"] = not pooled
    if not pooled:
        given, final = built.forward_intermediates(images, intermediates_only=True, **options), None
    else:
        final, given = built.forward_intermediates(images, **options)
        final = built.forward_head(final, pre_logits=True)
    if not prefix:
        return list(given), None, final
    maps, tokens = zip(*given)
    # registers stand behind it, or alone
    own = [x[:, :1] for x in tokens] if getattr(built, "cls_token", None) is not None else None
    return list(maps), own, final


def _on_meta(model: TimmModel) -> tuple[nn.Module, Tensor]:
    """The model and an image without values: shapes and dependencies are found in milliseconds."""
    with torch.device("meta"):
        built = create(model).eval()
        fit(built, model)
        return built, torch.empty(1, 3, *model.image_size)


@functools.cache
def timm_dims(model: TimmModel) -> TimmDims:
    """
    Raises:
        ValueError: as `create` and `fit`.
    """
    built, images = _on_meta(model)
    patch = getattr(built, "patch_embed", None)
    patch = patch.patch_size[0] if isinstance(patch, _StridedPatchEmbed) else patch_size(built)
    try:
        with torch.no_grad():
            maps, own, pooled = read_layers(built, images, range(1, len(built.feature_info) + 1))
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{model.name} cannot take images of {model.image_size}: {first_line(error)}") from error
    return TimmDims(
        widths=tuple(x.shape[1] for x in maps),
        grids=tuple((x.shape[2], x.shape[3]) for x in maps),
        pooled=pooled.shape[1] if pooled.dim() == 2 else 0,
        class_token=own is not None,
        patch_size=patch,
        fixed_size=hasattr(built, "set_input_size") or _size_at_creation(built),
    )


def unread_names(model: TimmModel, layers: Sequence[int], outputs: Collection[str]) -> set[str]:
    """Names of the parameters that none of `outputs` ("patches", "layer_cls", "cls") depends on."""
    built, images = _on_meta(model)
    maps, own, pooled = read_layers(built, images, layers)
    given = {"patches": maps, "layer_cls": own or [], "cls": [pooled]}
    read = [x.sum() for name in outputs for x in given.get(name, [])]
    names, parameters = zip(*built.named_parameters())
    if not read:
        return set(names)
    reached = torch.autograd.grad(torch.stack(read).sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, reached) if gradient is None}
