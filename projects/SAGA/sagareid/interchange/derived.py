"""Tensors that our model keeps and no published file stores, computed from the others.

They are text features, the mean prompt context and text anchors. A file that was written from a checkpoint of ours
carries them along, with a digest of the tensors that they were computed from.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import open_clip
import torch
from torch import Tensor

from ..modeling.anchors import TextAnchors
from ..modeling.clip import towers
from ..modeling.clip.text import CONTEXT_SLOTS, PROMPT_LENGTH, TextEncoder
from .conversion import Conversion
from .layouts import (
    BLOCK,
    count_numbered,
)

_CLIP_REID_END = 11  # end of text in "A photo of a X X X X person."
# Computed from other tensors of the same checkpoint, so no layout of the published code stores them.
DERIVED = ("heads.text_features", "heads.prompt_context", "heads.text_anchors.anchors")


def text_encoder(state: Mapping[str, Tensor], prefix: str) -> TextEncoder:
    """CLIP's text transformer with the weights under `prefix`: heads of 64, QuickGELU, as OpenAI's."""
    own = {k[len(prefix) :]: v.float() for k, v in state.items() if k.startswith(prefix)}
    width = own["ln_final.weight"].shape[0]
    clip = open_clip.CLIP(
        embed_dim=own["text_projection"].shape[1],
        vision_cfg=open_clip.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=32, image_size=32),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=own["positional_embedding"].shape[0],
            vocab_size=1,
            width=width,
            heads=max(1, width // 64),
            layers=count_numbered(own, BLOCK),
        ),
        quick_gelu=True,
    )
    encoder = TextEncoder(
        transformer=clip.transformer,
        positional_embedding=clip.positional_embedding,
        ln_final=clip.ln_final,
        projection=clip.text_projection,
    )
    encoder.load_state_dict(own)
    return encoder.eval()


@torch.no_grad()
def _text_features(state: Mapping[str, Tensor], layout: str, block: int = 256) -> Tensor:
    """(C, E) text features of the identity prompts of a published file."""
    encoder = text_encoder(state, "text_encoder.")
    learner = {k[len("prompt_learner.") :]: v.float() for k, v in state.items() if k.startswith("prompt_learner.")}
    if layout == "clip_reid":
        context, end = learner["cls_ctx"], _CLIP_REID_END
    else:
        context, end = learner["ctx_generic"], PROMPT_LENGTH - 1
        blank = sum(learner[f"ctx_{kind}"].shape[1] for kind in ("modality", "platform"))
        context = torch.cat([context, context.new_zeros(len(context), blank, context.shape[2])], dim=1)
    prefix, suffix = learner["token_prefix"], learner["token_suffix"]
    suffix = suffix[:, : end + 1 - prefix.shape[1] - context.shape[1]]  # nothing after the end of text matters
    features = []
    for part in context.split(block):
        n = len(part)
        features.append(encoder(torch.cat([prefix.expand(n, -1, -1), part, suffix.expand(n, -1, -1)], dim=1), end=end))
    return torch.cat(features)


def _anchors(model: Mapping[str, Tensor]) -> Tensor:
    """(K, D) text anchors of a model of ours."""
    own = {k[len("heads.text_anchors.") :]: v for k, v in model.items() if k.startswith("heads.text_anchors.")}
    width = own["template.prefix"].shape[1]
    template = torch.cat([own["template.prefix"], torch.zeros(CONTEXT_SLOTS, width), own["template.suffix"]])
    anchors = TextAnchors(
        template_embedding=template,
        num_anchors=own["context_learned"].shape[0],
        phrase_slots=own["context_phrase"].shape[1],
        text_dim=own["proj.weight"].shape[1],
        embed_dim=own["proj.weight"].shape[0],
    )
    anchors.load_state_dict(own | {"anchors": anchors.anchors})
    anchors.refresh(text_encoder(model, "heads.text_encoder."))
    return anchors.get_buffer("anchors")


def digest(state: Mapping[str, Tensor]) -> int:
    """Checksum of every tensor on the text side; carried tensors are used only where it is still the same."""
    crc = 0
    for key in sorted(k for k in state if "text_" in k or "prompt_learner." in k):
        data = state[key].detach().contiguous().flatten().view(torch.uint8)
        crc = zlib.crc32(data.numpy().data, zlib.crc32(key.encode(), crc))
    return crc


def derive(result: Conversion, state: Mapping[str, Tensor], carried: Mapping) -> None:
    """Add the tensors that no published file stores: the carried ones where they still hold, else computed ones."""
    model, layout = result.model, result.layout
    if layout == "clip":
        table = state[result.published.get("text_prefix", "") + "token_embedding.weight"]
        template = towers.template_embedding({"token_embedding.weight": table})
        model["heads.prompts.template.prefix"] = template[:1]
        model["heads.prompts.template.suffix"] = template[1 + CONTEXT_SLOTS :]
    if carried and carried.get("digest") == digest(state):
        model.update(carried["tensors"])
        return
    prompts_known = not any("prompt_learner." in k or "text_encoder." in k for k in result.published["filled"])
    if layout in ("saga2", "clip_reid") and prompts_known:
        model["heads.text_features"] = _text_features(state, layout)
        if layout == "saga2":
            model["heads.prompt_context"] = state["prompt_learner.ctx_generic"].float().mean(0)
    if layout == "saga3":
        first = {k.removeprefix("clipreid_model."): v for k, v in state.items() if k.startswith("clipreid_model.")}
        classes, embed = first["classifier_proj.weight"].shape
        model["heads.text_features"] = _text_features(first, "saga2") if prompts_known else torch.zeros(classes, embed)
        if "heads.text_anchors.context_learned" in model:
            model["heads.text_anchors.anchors"] = _anchors(model)
    if layout == "clip_reid":
        result.notes.append("its prompts have another template: they are kept, not usable as identity prompts here")
    if layout == "saga3" and "clipreid_model.cv_embed" in state:
        result.notes.append("its camera embedding is the image stage's; the published last stage does not apply it")
