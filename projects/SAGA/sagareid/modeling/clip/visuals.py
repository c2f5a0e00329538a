"""open_clip's image towers that are no ViT of its own: ModifiedResNet, and models of timm behind a projection.

(H, W) image, (h, w) map, E joint width. No FastReID and no config in here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import open_clip
import torch
from torch import Tensor, nn

from ..timm.models import TimmDims, TimmModel, fit
from . import towers

__all__ = ["RESNET_LAYERS", "build_resnet", "build_timm", "resnet_dims", "timm_source"]

RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def _load(visual: nn.Module, state: Mapping[str, Tensor] | None, name: str) -> None:
    """The "visual." part of CLIP weights, strictly; counts of batches need not be there. None: as it was made."""
    if state is None:
        return
    own = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    own = {k: v.float() if v.is_floating_point() else v for k, v in own.items()}
    counts = {k: v for k, v in visual.state_dict().items() if k.endswith("num_batches_tracked")}
    towers.load_strictly(visual, counts | own, f"image tower of {name}")


# ---- ModifiedResNet --------------------------------------------------------------------------------------------------


def _resnet(name: str, last_stride: int) -> nn.Module:
    """As open_clip makes it, but for the stride of its last stage, which has no parameter."""
    visual = towers.build_side(name, "vision").visual
    if last_stride == 1:
        first = visual.layer4[0]
        first.avgpool, first.downsample[0] = nn.Identity(), nn.Identity()
    return visual


@functools.cache
def resnet_dims(name: str, image_size: tuple[int, int], last_stride: int) -> TimmDims:
    """What the four stages of a ModifiedResNet give for an image size; it pools E numbers by attention."""
    with torch.device("meta"):
        visual = _resnet(name, last_stride).eval()
        x, maps = visual.stem(torch.empty(1, 3, *image_size)), []
        for layer in RESNET_LAYERS:
            x = getattr(visual, layer)(x)
            maps.append(x)
    return TimmDims(
        widths=tuple(x.shape[1] for x in maps),
        grids=tuple((x.shape[2], x.shape[3]) for x in maps),
        pooled=towers.clip_dims(name).embed_dim,
        class_token=False,
        patch_size=None,
        fixed_size=True,  # the attention that pools has a position embedding
    )


def build_resnet(
    name: str, image_size: tuple[int, int], last_stride: int, state: Mapping[str, Tensor] | None
) -> nn.Module:
    """ModifiedResNet for any image size, the position embedding of its attention pool resized as a ViT's is.

    Args:
        last_stride: of the last stage, 2 as trained or 1 for a map of twice the height and width.
        state: CLIP weights in open_clip's names; None for random ones.
    """
    visual = _resnet(name, last_stride)
    _load(visual, state, name)
    grid, own = resnet_dims(name, image_size, last_stride).grids[-1], visual.image_size // 32
    pool = visual.attnpool
    pool.positional_embedding = nn.Parameter(
        towers.resize_position_embedding(pool.positional_embedding.detach(), (own, own), grid)
    )
    return visual


# ---- models of timm --------------------------------------------------------------------------------------------------


def timm_source(name: str, image_size: tuple[int, int]) -> TimmModel:
    """The timm model in a CLIP, in front of its projection, with patches of its own stride."""
    vision = open_clip.get_model_config(name)["vision_cfg"]
    pool = vision.get("timm_pool", "avg")
    return TimmModel(vision["timm_model_name"], (f"global_pool={pool}",) if pool else (), image_size)


def build_timm(name: str, source: TimmModel, state: Mapping[str, Tensor] | None) -> nn.Module:
    """open_clip's `TimmModel` for any image size and stride: its `trunk`, and its `head` if the projection is not the
    trunk's own classifier.

    Args:
        state: CLIP weights in open_clip's names; None for random ones.
    """
    visual = towers.build_side(name, "vision").visual
    _load(visual, state, name)
    fit(visual.trunk, source)
    visual.image_size = source.image_size
    return visual
