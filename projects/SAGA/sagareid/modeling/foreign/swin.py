"""SOLIDER's Swin Transformer, in the names of OpenMMLab's Swin, as timm's.

Source: swin_transformer.py of tinyvision/SOLIDER, model/backbones/swin_transformer.py of tinyvision/SOLIDER-REID.
Bare or below "base." (a ReID model) or "backbone." (the pre-training's teacher).

The same function in other places: OpenMMLab merges patches at the end of a stage, timm at the start of the next, and
OpenMMLab's unfolding orders the 4C numbers of four patches channel first, timm's reshaping patch first. The semantic
weight l turns each merged map x into x * softplus(W (l, 1-l)) + B (l, 1-l); the last stage's has no reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .tower import ForeignError, Tower, below, checked_names, left_out_by, prefix_of

__all__ = ["TITLES", "merging_order", "read", "to_published"]

TITLES = {"solider": "SOLIDER's Swin Transformer"}
_PAIR = ("weight", "bias")
_LEFT_OUT = {
    r"norm[012]\.": "the norm of a stage whose map no head reads; the last stage's is loaded",
    r"semantic_embed_[wb]\.3\.": "the published model applies it behind its last output",
    r".*relative_position_index$": "computed from the window",
}
_OUTSIDE = {
    r"(classifier|bottleneck)\.": "the head of the other project: classifier and the batch norm in front of it",
    r"fcneck\.": "the linear layer that makes its feature smaller (REDUCE_FEAT_DIM)",
    r"head\.": "the projection head of its pre-training",
}
# our names within a block -> published ones
_BLOCK = {
    **{f"{norm}.{p}": f"{norm}.{p}" for norm in ("norm1", "norm2") for p in _PAIR},
    "attn.relative_position_bias_table": "attn.w_msa.relative_position_bias_table",
    **{f"attn.{m}.{p}": f"attn.w_msa.{m}.{p}" for m in ("qkv", "proj") for p in _PAIR},
    **{f"mlp.fc1.{p}": f"ffn.layers.0.0.{p}" for p in _PAIR},
    **{f"mlp.fc2.{p}": f"ffn.layers.1.{p}" for p in _PAIR},
}
_TIMM = {
    (96, (2, 2, 6, 2)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2)): "swin_base_patch4_window7_224",
}


def merging_order(channels: int) -> Tensor:
    """Where timm's 4C numbers of four merged patches are in OpenMMLab's: index (4C,)."""
    # OpenMMLab: c * 4 + row * 2 + column; timm: (column * 2 + row) * C + c
    published = torch.arange(4 * channels).reshape(channels, 2, 2)  # c, row, column
    return published.permute(2, 1, 0).reshape(-1)


def read(state: Mapping[str, Tensor]) -> Tower | None:
    """The Swin Transformer of a state dict; None where it is none.

    Raises:
        ForeignError: tensors of it are missing, or a window that the tower here does not have.
    """
    prefix = prefix_of(state, "stages.0.blocks.0.attn.w_msa.qkv.weight")
    if prefix is None:
        return None
    title = TITLES["solider"]
    depths = _depths(state, prefix)
    names = _names(depths)
    pairs = checked_names(title, names.values(), state, prefix)
    pairs = {here: pairs[name] for here, name in names.items()}
    left_out = {prefix + k: why for k, why in left_out_by(_LEFT_OUT, below(state, prefix)).items()}
    left_out |= left_out_by(_OUTSIDE, (k for k in state if not (prefix and k.startswith(prefix))))
    tensors = {here: _reordered(here, state[key]) for here, key in pairs.items()}
    window = (int(tensors["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0] ** 0.5) + 1) // 2
    if window != 7:
        raise ForeignError(f"{title} with windows of {window}; those that were published have 7")
    width = tensors["patch_embed.proj.weight"].shape[0]
    name = _TIMM.get((width, depths), f"(a Swin Transformer of width {width} and depths {depths})")
    return Tower(
        "solider",
        title,
        tensors,
        pairs,
        left_out,
        ("build_timm_backbone",),
        {
            "MODEL.BACKBONE.NAME": "build_timm_backbone",
            "MODEL.BACKBONE.TIMM.NAME": name,
            "MODEL.BACKBONE.TIMM.VARIANT": "solider",
            "MODEL.BACKBONE.TIMM.SEMANTIC_WEIGHT": "(not stored; published for re-identification: 0.2)",
            "MODEL.BACKBONE.FEAT_DIM": 8 * width,
        },
    )


def to_published(name: str, tensor: Tensor) -> Tensor:
    """A tensor of ours in the published order."""
    if ".downsample." not in name or not name.endswith(("norm.weight", "norm.bias", "reduction.weight")):
        return tensor
    back = torch.argsort(merging_order(tensor.shape[-1] // 4))
    return tensor[..., back]


def _reordered(name: str, tensor: Tensor) -> Tensor:
    if ".downsample." not in name or not name.endswith(("norm.weight", "norm.bias", "reduction.weight")):
        return tensor
    return tensor[..., merging_order(tensor.shape[-1] // 4)]


def _depths(state: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for key in state:
        if m := re.match(rf"{re.escape(prefix)}stages\.(\d+)\.blocks\.(\d+)\.", key):
            found[int(m[1])] = max(found.get(int(m[1]), 0), int(m[2]) + 1)
    return tuple(found.get(stage, 1) for stage in range(max(found) + 1))


def _names(depths: tuple[int, ...]) -> dict[str, str]:
    """Name here -> published name."""
    names = {f"patch_embed.proj.{p}": f"patch_embed.projection.{p}" for p in _PAIR}
    names |= {f"patch_embed.norm.{p}": f"patch_embed.norm.{p}" for p in _PAIR}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            here, there = f"layers.{stage}.blocks.{block}.", f"stages.{stage}.blocks.{block}."
            names |= {here + ours: there + published for ours, published in _BLOCK.items()}
    for stage in range(len(depths) - 1):
        here, there = f"layers.{stage + 1}.downsample.", f"stages.{stage}.downsample."
        names |= {f"{here}merging.norm.{p}": f"{there}norm.{p}" for p in _PAIR}
        names[f"{here}merging.reduction.weight"] = f"{there}reduction.weight"
        for kind in "wb":
            names |= {f"{here}semantic_{kind}.{p}": f"semantic_embed_{kind}.{stage}.{p}" for p in _PAIR}
    return names | {f"norm.{p}": f"norm{len(depths) - 1}.{p}" for p in _PAIR}
