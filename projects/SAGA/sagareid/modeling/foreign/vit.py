"""ViTs of person re-identification: TransReID, TransReID-SSL, PersonViT and HAP store one layout, timm's of 2021.

Sources: model/backbones/vit_pytorch.py and model/make_model.py of damo-cv/TransReID; transreid_pytorch/model/... of
damo-cv/TransReID-SSL and hustvl/PersonViT; models/models_mae_pose.py and downstream_tasks/person_reid/models of
junkunyuan/HAP. The tower alone has bare names; in a ReID model it is below "base.", in DINO's teacher "backbone.".

Two things that names do not show:

* With JPM the model's global branch ends in `b1`, a copy of the last block and norm that is trained apart, and
  `base.blocks.11` and `base.norm` stay what ImageNet made them: b1 is loaded in their place.
* With TransReID-SSL's convolutional stem (ICS), `patch_embed.conv` halves the image before 8x8 patches are cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from .tower import CLASSIFIER, POSITIONS, Tower, below, checked_names, left_out_by, prefix_of

__all__ = ["TITLES", "read"]

TITLES = {
    "reid_vit": "a ViT as TransReID, TransReID-SSL, PersonViT and HAP store it",
    "reid_vit_ics": "a ViT with TransReID-SSL's convolutional stem (ICS)",
    "reid_vit_jpm": "a TransReID with its jigsaw patch module (JPM)",
}
_PAIR = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# patch_embed.conv: convolution, IBN, ReLU, convolution, IBN, ReLU, convolution, batch norm, ReLU
STEM = (
    *(f"{i}.weight" for i in (0, 3, 6)),
    *(f"{i}.IN.{p}" for i in (1, 4) for p in _PAIR),
    *(f"{i}.BN.{p}" for i in (1, 4) for p in _NORM),
    *(f"7.{p}" for p in _NORM),
)
_HEAD = "the head of the other project: classifiers and the batch norm in front of them"
_PRETRAINING = "of the pre-training: projection head, mask token or decoder"
_LEFT_OUT = {
    r"sie_embed$": "its camera or view embedding (SIE), which the published code adds to every token",
    r"(fc|head|head_dist|pre_logits)\.": CLASSIFIER,
    r"(dist_token|mask_token|masked_embed)$": _PRETRAINING,
    r"decoder_": _PRETRAINING,
    r"(conv_head|conv_fc|conv_fc_norm|conv_bn|bn)\.": "HAP's locality branch and the batch norms of its losses",
}
_OUTSIDE = {
    r"(classifier|bottleneck)(_proj|_\d)?\.": _HEAD,
    r"fcneck\.": "the linear layer that makes its feature smaller (REDUCE_FEAT_DIM)",
    r"b[12]\.": "its jigsaw patch module (JPM)",
    r"head\.": _PRETRAINING,
    r"(heads\.|pixel_(mean|std)$)": "the head of a FastReID model",
}
_TIMM = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
_TIMM_LARGE = {1024: "vit_large_patch16_224"}


def _names(depth: int, qkv_bias: bool) -> list[str]:
    parts = [f"{m}.{p}" for m in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for p in _PAIR]
    if not qkv_bias:
        parts.remove("attn.qkv.bias")
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    return ["cls_token", POSITIONS, *(f"patch_embed.proj.{p}" for p in _PAIR), *blocks, *(f"norm.{p}" for p in _PAIR)]


def read(state: Mapping[str, Tensor]) -> Tower | None:
    """The ViT of a state dict; None where it is none.

    Raises:
        ForeignError: tensors of it are missing.
    """
    prefix = prefix_of(state, "patch_embed.proj.weight")
    if prefix is None or prefix.startswith("backbone.model."):  # a checkpoint of this project
        return None
    if prefix + "cls_token" not in state or prefix + "blocks.0.attn.qkv.weight" not in state:
        return None
    depth = 1 + max(int(m[1]) for key in state if (m := re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", key)))
    stem = any(key.startswith(f"{prefix}patch_embed.conv.") for key in state)
    jpm = "b1.0.norm1.weight" in state
    layout = "reid_vit_jpm" if jpm else "reid_vit_ics" if stem else "reid_vit"
    names = _names(depth, prefix + "blocks.0.attn.qkv.bias" in state)
    names += [f"patch_embed.conv.{name}" for name in STEM] if stem else []
    pairs = checked_names(TITLES[layout], names, state, prefix)
    left_out = {prefix + k: why for k, why in left_out_by(_LEFT_OUT, below(state, prefix)).items()}
    left_out |= left_out_by(_OUTSIDE, (k for k in state if k not in left_out and not (prefix and k.startswith(prefix))))
    if jpm:
        for key in [k for k in pairs if k.startswith((f"blocks.{depth - 1}.", "norm."))]:
            left_out[pairs[key]] = "with JPM the published model does not compute it: b1 is in its place"
            pairs[key] = "b1.0." + key.split(".", 2)[2] if key.startswith("blocks.") else "b1.1." + key.split(".")[1]
        checked_names(TITLES[layout], [v for k, v in pairs.items() if v.startswith("b1.")], state, "")
        for key in pairs.values():
            left_out.pop(key, None)
    if stem:
        pairs = {_below_stem(name): key for name, key in pairs.items()}
    return _tower(layout, prefix, state, pairs, left_out, depth)


def _tower(
    layout: str,
    prefix: str,
    state: Mapping[str, Tensor],
    pairs: dict[str, str],
    left_out: dict[str, str],
    depth: int,
) -> Tower:
    tensors = {name: state[key] for name, key in pairs.items()}
    width, stem = tensors["cls_token"].shape[-1], "patch_embed.proj.proj.weight" in pairs
    notes: list[str] = []
    tensors |= _old_forms(tensors, left_out, notes)
    hidden, bias = tensors["blocks.0.mlp.fc1.weight"].shape[0], "blocks.0.attn.qkv.bias" in tensors
    config: dict[str, object] = {"MODEL.BACKBONE.FEAT_DIM": width}
    if (width, depth, hidden, bias) == (768, 8, 3 * 768, False):
        # TransReID's own small ViT scales its attention by 768 ** -0.5, which timm's does not; FastReID's does
        builders: tuple[str, ...] = ("build_vit_backbone",)
        config |= {"MODEL.BACKBONE.NAME": builders[0], "MODEL.BACKBONE.DEPTH": "small"}
    else:
        name = (_TIMM if depth == 12 else _TIMM_LARGE if depth == 24 else {}).get(width)
        builders = ("build_timm_backbone",)
        if not stem and (width, depth, bias) == (768, 12, True):
            builders += ("build_vit_backbone",)
        config |= {"MODEL.BACKBONE.NAME": builders[0], "MODEL.BACKBONE.TIMM.NAME": name or f"(a ViT of width {width})"}
        if stem:
            config["MODEL.BACKBONE.TIMM.VARIANT"] = "ics"
    if any(key.endswith("sie_embed") for key in left_out):
        notes.append("it was trained with camera or view embeddings (SIE); without them its features differ")
    decoder = any(re.match(r"decoder_|mask_token|conv_head", key[len(prefix) :]) for key in left_out)
    mode = "bicubic" if decoder else "bilinear"  # HAP's utils/pos_embed.py; vit_pytorch.py of the others
    return Tower(layout, TITLES[layout], tensors, pairs, left_out, builders, config, notes, mode=mode)


def _below_stem(name: str) -> str:
    """A published name as that of timm's ViT whose `patch_embed.proj` is a stem and a projection."""
    return (
        name.replace("patch_embed.conv.", "patch_embed.proj.stem.")
        .replace("patch_embed.proj.weight", "patch_embed.proj.proj.weight")
        .replace("patch_embed.proj.bias", "patch_embed.proj.proj.bias")
    )


def _old_forms(tensors: Mapping[str, Tensor], left_out: Mapping[str, str], notes: list[str]) -> dict[str, Tensor]:
    """What the published loaders rewrite: a projection stored as a matrix, and the distillation token's position."""
    out = {}
    weight = tensors.get("patch_embed.proj.weight")
    if weight is not None and weight.dim() == 2:
        side = math.isqrt(weight.shape[1] // 3)
        out["patch_embed.proj.weight"] = weight.reshape(len(weight), 3, side, side)
    if any(key.endswith("dist_token") for key in left_out):
        table = tensors[POSITIONS]
        out[POSITIONS] = table[:, [0, *range(2, table.shape[1])]]
        notes.append("a distilled DeiT: its distillation token and that token's position are left out")
    return out
