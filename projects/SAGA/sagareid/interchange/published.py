"""A checkpoint of ours in the published layout of its stage."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..modeling.clip.text import CONTEXT_SLOTS, PROMPT_LENGTH, template_token_ids
from .conversion import ConversionError
from .derived import DERIVED, digest
from .layouts import (
    BATCH_NORM,
    BLOCK,
    CONTEXT_LENGTH,
    Plan,
    Structure,
    block_names,
    count_numbered,
    our_head,
    our_structure,
    plan_of,
    shortened,
)

_TEMPLATE = ("heads.prompts.template.prefix", "heads.prompts.template.suffix")


def to_published(
    model: Mapping[str, Tensor], published: Mapping | None = None
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """A state dict of ours in the published layout of its stage, and what a user should know about it.

    Tensors that ours does not hold come from `published`. Where there are none, they are zeros (batch norms at their
    start): parts that the published evaluation of that stage does not read.

    Args:
        model: state dict of SAGABaseline.
        published: the dict beside it in a converted checkpoint.

    Raises:
        ConversionError: a head without counterpart, or text anchors without the text tower.
    """
    published = published or {}
    structure = _structure(model, published)
    plan, head = plan_of(structure), structure.head
    derived = {k: model[k] for k in DERIVED if k in model and k not in plan.pairs.values()}
    if head == "saga" and "backbone.camera_embedding" in model:
        derived["backbone.camera_embedding"] = model["backbone.camera_embedding"]
    _check_fit(model, structure, plan, derived)
    state, filled = _published_tensors(model, published, structure, plan)
    notes = []
    if filled:
        notes.append(
            f"{len(filled)} tensors that this checkpoint does not hold are zeros ({shortened(filled, 3)}): the "
            "published evaluation does not read them, its earlier stages would"
        )
    if head == "saga" and "backbone.camera_embedding" in model:
        notes.append("the published last stage does not apply the camera embedding, so its features will differ")
    filled += [k for k in published.get("filled", []) if k not in filled]
    carried = {"head": head, "filled": filled, "tensors": derived, "digest": digest(state)}
    state.sagareid = carried  # type: ignore[attr-defined]
    return state, notes


def _structure(model: Mapping[str, Tensor], published: Mapping) -> Structure:
    """The structure of the published file that a model of ours becomes."""
    layout = published.get("layout")
    head = "prompts" if layout == "clip" else our_head(model)
    layout = layout or ("saga3" if head == "saga" else "saga2")
    if (layout == "saga3") != (head == "saga"):
        raise ConversionError(f"the model has a {head} head, but what is kept beside it is of layout {layout}")
    kept = published.get("tensors", {})
    structure = our_structure(layout, head, model, published.get("text_prefix", ""))
    if "heads.text_encoder.ln_final.weight" not in model:
        if head == "saga" and not structure.free_anchors:
            raise ConversionError(
                "missing heads.text_encoder.*: the published code computes text anchors with the text tower. Convert a "
                "checkpoint that training wrote, which holds it"
            )
        layers = count_numbered(kept, r"(?:clipreid_model\.)?text_encoder\." + BLOCK)
        structure = replace(structure, text_layers=layers or 12)
    if head == "saga" and "clipreid_model.cv_embed" in kept:
        structure = replace(structure, camera_embedding=True)
    slots = model["heads.prompts.context_identity"].shape[1] if layout == "saga2" and head == "prompts" else 8
    if slots != 8:
        raise ConversionError("the published prompts have 8 learned slots: MODEL.PROMPT.NUM_CONTEXT 8 is needed")
    return structure


def _check_fit(model: Mapping[str, Tensor], structure: Structure, plan: Plan, derived: Mapping[str, Tensor]) -> None:
    """Raise unless the layout takes every tensor of the model and the model has every tensor that the layout asks."""
    template = _TEMPLATE if structure.layout == "clip" else ()
    left_over = set(model) - set(plan.pairs.values()) - set(derived) - set(template)
    missing = {key for key in plan.pairs.values() if key is not None} - set(model)
    if structure.head == "prompts":
        missing = {key for key in missing if not key.startswith("heads.text_encoder.")}
    if left_over or missing:
        differences = {"missing": missing, "left over": left_over}
        found = [f"{what} {shortened(keys)}" for what, keys in differences.items() if keys]
        raise ConversionError(f"the model does not fit layout {structure.layout}: {'; '.join(found)}")


def _published_tensors(
    model: Mapping[str, Tensor], published: Mapping, structure: Structure, plan: Plan
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """The tensors by published key, and the keys of those that nothing gives and that are filled."""
    kept, dtypes = published.get("tensors", {}), published.get("dtypes", {})
    state: OrderedDict[str, Tensor] = OrderedDict()
    filled: list[str] = []
    stand_in = None
    for key, ours in plan.pairs.items():
        if ours is not None and ours in model:
            value = model[ours]
            if ours.endswith("template.suffix"):
                padding = kept.get(key)  # what follows the end of text
                if padding is None:
                    padding = value.new_zeros(CONTEXT_LENGTH - PROMPT_LENGTH, value.shape[1])
                value = torch.cat([value, padding.reshape(-1, value.shape[1])])
            if ours.endswith(("template.prefix", "template.suffix")) and structure.layout == "saga2":
                value = value[None]
            state[key] = value.to(getattr(torch, dtypes[key])) if key in dtypes else value
        elif key in kept:
            state[key] = kept[key]
        elif key not in plan.optional:
            stand_in = stand_in or _StandIn(model, structure)
            state[key] = stand_in(key)
            filled.append(key)
    for copy, original in plan.copies.items():
        state[copy] = state[original]
    return state, filled


class _StandIn:
    """Stand-ins for published tensors that no checkpoint of ours holds, in the shape that the published code wants."""

    def __init__(self, model: Mapping[str, Tensor], structure: Structure):
        width, embed = model["backbone.visual.proj"].shape
        with_classes = ("heads.classifier.weight", "heads.classifiers.0.weight", "heads.prompts.context_identity")
        classes = next(model[k].shape[0] for k in with_classes if k in model)
        texts = ("heads.text_encoder.ln_final.weight", "heads.prompt_context", "heads.text_anchors.template.prefix")
        text = next((model[k].shape[-1] for k in texts if k in model), 512)
        shapes = _image_side_shapes(width, embed, classes) | _text_side_shapes(text, embed, classes, structure)
        self.shapes = {f"clipreid_model.{k}": v for k, v in shapes.items()} | shapes
        if structure.layout == "saga3":
            self.shapes["text_proj.weight"] = (embed, model["heads.bottleneck.weight"].shape[0])
        self.camera = model.get("backbone.camera_embedding")

    def __call__(self, key: str) -> Tensor:
        if key.endswith("tokenized_prompts"):
            ids = template_token_ids()
            return torch.tensor([ids + [0] * (CONTEXT_LENGTH - len(ids))])
        if key == "clipreid_model.cv_embed" and self.camera is not None:
            return self.camera
        shape = self.shapes[key]
        if key.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.int64)
        one = key.endswith("running_var") or ("bottleneck" in key and key.endswith(".weight"))
        return torch.ones(shape) if one else torch.zeros(shape)


def _image_side_shapes(width: int, embed: int, classes: int) -> dict[str, tuple[int, ...]]:
    half, small = embed // 2, embed // 16
    shapes: dict[str, tuple[int, ...]] = {
        "classifier.weight": (classes, width),
        "classifier_proj.weight": (classes, embed),
        "visual_prompt": (1, 1, embed),
        "image_fusion_net.fc1.weight": (half, 2 * embed),
        "image_fusion_net.fc1.bias": (half,),
        "image_fusion_net.fc2.weight": (embed, half),
        "image_fusion_net.fc2.bias": (embed,),
        "prompt_learner.visual_enhanced_net.linear1.weight": (small, embed),
        "prompt_learner.visual_enhanced_net.linear1.bias": (small,),
        "prompt_learner.visual_enhanced_net.linear2.weight": (embed, small),
        "prompt_learner.visual_enhanced_net.linear2.bias": (embed,),
    }
    for name, n in (("bottleneck", width), ("bottleneck_proj", embed)):
        shapes |= {f"{name}.{part}": (n,) for part in BATCH_NORM[:4]} | {f"{name}.num_batches_tracked": ()}
    return shapes


def _text_side_shapes(text: int, embed: int, classes: int, structure: Structure) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "prompt_learner.ctx_generic": (classes, 8, text),
        "prompt_learner.ctx_modality": (2, 4, text),
        "prompt_learner.ctx_platform": (2, 4, text),
        "prompt_learner.token_prefix": (1, 1, text),
        "prompt_learner.token_suffix": (1, CONTEXT_LENGTH - 1 - CONTEXT_SLOTS, text),
        "text_encoder.positional_embedding": (CONTEXT_LENGTH, text),
        "text_encoder.text_projection": (text, embed),
        "text_encoder.ln_final.weight": (text,),
        "text_encoder.ln_final.bias": (text,),
    }
    in_block = {
        "attn.in_proj_weight": (3 * text, text),
        "attn.in_proj_bias": (3 * text,),
        "attn.out_proj.weight": (text, text),
        "mlp.c_fc.weight": (4 * text, text),
        "mlp.c_fc.bias": (4 * text,),
        "mlp.c_proj.weight": (text, 4 * text),
    }
    for name in block_names(structure.text_layers):
        shapes["text_encoder." + name] = in_block.get(name.split(".", 3)[3], (text,))
    return shapes
