"""Checkpoints of the published code and of its relatives, to ours and back, tensor by tensor.

Layouts, recognised by their keys:
    saga3      SAGA-ReID's last stage (image tower and text tower stored two or three times over)
    saga2      SAGA-ReID's prompt and image stages
    clip_reid  CLIP-ReID's ViT, with or without camera embedding, any stride
    vit        CLIP-ReID's ViT baseline, without text
    clip       CLIP itself: OpenAI's archive or state dict, open_clip
    ours       `SAGABaseline` with PromptHead, CLSHead or SAGAHead

Ours: {"model": state dict, "published": {...}}. "published" keeps what the layout holds and our model does not: its
"layout", "tensors" by published key, "dtypes" of what was not float32, and "filled", the keys that no file ever gave
(zeros, from a checkpoint of ours). FastReID leaves it alone; a checkpoint that training writes no longer has it.

Published: the plain state dict. What has no place there (buffers computed from other tensors, the kind of head) rides
as an attribute `sagareid` of the ordered dict, as PyTorch's own `_metadata` does, so the keys stay the published ones.
"""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from ..files import save_torch
from ..modeling.anchors import TextAnchors
from ..modeling.clip import towers
from ..modeling.clip.text import CONTEXT_SLOTS, PROMPT_LENGTH, TextEncoder, template_token_ids
from ..weights import read_file, state_dict_in

__all__ = [
    "Conversion",
    "ConversionError",
    "config_keys",
    "convert_file",
    "describe",
    "from_published",
    "read_checkpoint",
    "resize",
    "to_published",
]

HEADS = ("prompts", "cls", "saga")
_CONTEXT_LENGTH = 77
_SUFFIX_ROWS = PROMPT_LENGTH - 1 - CONTEXT_SLOTS
_CLIP_REID_END = 11  # end of text in "A photo of a X X X X person."
# Computed from other tensors of the same checkpoint, so no layout of the published code stores them.
_DERIVED = ("heads.text_features", "heads.prompt_context", "heads.text_anchors.anchors")
_TITLES = {
    "saga3": "SAGA-ReID, last stage",
    "saga2": "SAGA-ReID, prompt or image stage",
    "clip_reid": "CLIP-ReID ViT",
    "vit": "CLIP-ReID's ViT baseline",
    "clip": "CLIP",
    "ours": "a checkpoint of this project",
}


class ConversionError(ValueError):
    """A file that cannot be converted; the message is one line and says why."""


@dataclass
class Conversion:
    """A checkpoint in our form.

    Attributes:
        layout: what the file was, a key of the list on top of this module.
        head: "prompts", "cls" or "saga", the head whose weights `model` holds.
        model: state dict of SAGABaseline.
        published: what our model does not hold (module docstring); empty for a checkpoint of ours.
        notes: what a user should know, one sentence each.
        made_for: ((H, W), stride) after `resize`.
    """

    layout: str
    head: str
    model: dict[str, Tensor]
    published: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    made_for: tuple[tuple[int, int], int] | None = None


# ---- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Structure:
    """What varies between checkpoints of one layout."""

    layout: str
    head: str
    vision_layers: int
    text_layers: int = 12
    camera_embedding: bool = False
    refine_layers: int = 0
    paths: int = 1
    classifiers: int = 0
    free_anchors: bool = False
    domain: str = ""  # "", content, camera or clip
    projection: bool = False
    text_prefix: str = ""  # "text." in open_clip's models with a text tower of their own


@dataclass
class _Plan:
    """Published keys and where they go: to a key of ours, or None for what is only kept. A copy repeats another key."""

    pairs: dict[str, str | None]
    copies: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def keys(self) -> set[str]:
        return set(self.pairs) | set(self.copies)


_NORM = ("weight", "bias")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _rename(names: Iterable[str], published: str, ours: str | None) -> dict[str, str | None]:
    return {published + name: None if ours is None else ours + name for name in names}


def _blocks(layers: int) -> list[str]:
    parts = [f"attn.{a}" for a in _ATTENTION]
    parts += [f"{m}.{n}" for m in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for n in _NORM]
    return [f"transformer.resblocks.{i}.{part}" for i in range(layers) for part in parts]


def _vision_names(layers: int) -> list[str]:
    norms = [f"{m}.{n}" for m in ("ln_pre", "ln_post") for n in _NORM]
    return ["class_embedding", "positional_embedding", "proj", "conv1.weight", *norms, *_blocks(layers)]


def _text_names(layers: int) -> list[str]:
    return ["positional_embedding", "text_projection", "ln_final.weight", "ln_final.bias", *_blocks(layers)]


_NECKS = [f"{m}.{n}" for m in ("bottleneck", "bottleneck_proj") for n in _BATCH_NORM]
_NECKS += ["classifier.weight", "classifier_proj.weight"]
_UNUSED = ["visual_prompt", *(f"image_fusion_net.fc{i}.{n}" for i in (1, 2) for n in _NORM)]
_UNUSED += [f"prompt_learner.visual_enhanced_net.linear{i}.{n}" for i in (1, 2) for n in _NORM]


def _stage2_plan(s: _Structure) -> _Plan:
    """SAGA-ReID's stages 1 and 2, CLIP-ReID and its baseline: one family."""
    prompts = s.head == "prompts"
    pairs = _rename(_vision_names(s.vision_layers), "image_encoder.", "backbone.visual.")
    pairs |= _rename(_NECKS, "", "heads." if s.head == "cls" else None)
    if s.camera_embedding:
        pairs["cv_embed"] = "backbone.camera_embedding"
    if s.layout == "vit":
        return _Plan(pairs)
    pairs |= _rename(_text_names(s.text_layers), "text_encoder.", "heads.text_encoder." if prompts else None)
    if s.layout == "clip_reid":
        return _Plan(pairs | _rename(("cls_ctx", "token_prefix", "token_suffix"), "prompt_learner.", None))
    for kind in ("generic", "modality", "platform"):
        ours = f"heads.prompts.context_{kind.replace('generic', 'identity')}"
        pairs[f"prompt_learner.ctx_{kind}"] = ours if prompts else None
    for end in ("prefix", "suffix"):
        pairs[f"prompt_learner.token_{end}"] = f"heads.prompts.template.{end}" if prompts else None
    return _Plan(pairs | _rename(_UNUSED, "", None))


def _stage3_plan(s: _Structure) -> _Plan:
    vision, text = _vision_names(s.vision_layers), _text_names(s.text_layers)
    pairs = _rename(vision, "backbone.", "backbone.visual.")
    copies = {f"clipreid_model.image_encoder.{name}": f"backbone.{name}" for name in vision}
    if s.free_anchors:
        pairs["text_anchor.anchors"] = "heads.text_anchors.anchors"
    else:
        own = "heads.text_anchors."
        pairs |= {
            "text_anchor.ctx_main": own + "context_learned",
            "text_anchor.ctx_parts": own + "context_phrase",
            "text_anchor.token_prefix": own + "template.prefix",
            "text_anchor.token_suffix": own + "template.suffix",
            "text_anchor.tokenized_prompts": None,
            "text_anchor.proj.weight": own + "proj.weight",
        }
        pairs |= _rename(text, "text_anchor.text_encoder.", "heads.text_encoder.")
        copies |= {f"clipreid_model.text_encoder.{name}": f"text_anchor.text_encoder.{name}" for name in text}
    if s.domain in ("content", "camera"):
        for layer in (0, 2):
            pairs |= _rename(_NORM, f"domain_anchor.anchor_gen.{layer}.", f"heads.domain_anchors.generator.{layer}.")
    if s.domain == "camera":
        pairs["domain_anchor.cam_embed.weight"] = "heads.domain_anchors.camera.weight"
    if s.domain == "clip":
        names = ["queries", "clip_proj.weight", *(f"attn.{a}" for a in _ATTENTION)]
        names += [f"norm_{m}.{n}" for m in ("q", "kv", "out") for n in _NORM]
        pairs |= _rename(names, "domain_anchor.", "heads.domain_anchors.")
    layer = [f"attn.{a}" for a in _ATTENTION]
    layer += [f"{m}.{n}" for m in ("norm_q", "norm_kv", "norm_ff", "ff.0", "ff.3") for n in _NORM]
    for path in range(s.paths):
        published = f"refine.{path}.layers." if s.paths > 1 else "refine.layers."
        names = [f"{i}.{name}" for i in range(s.refine_layers) for name in layer]
        pairs |= _rename(names, published, f"heads.refine.{path}.layers.")
    pairs |= _rename(_BATCH_NORM, "bn.", "heads.bottleneck.")
    pairs |= {f"classifiers.{q}.weight": f"heads.classifiers.{q}.weight" for q in range(s.classifiers)}
    pairs["text_proj.weight"] = None
    if s.projection:
        pairs |= _rename(_NORM, "proj.", "heads.proj.")
    whole = _stage2_plan(_Structure("saga2", "", s.vision_layers, s.text_layers, s.camera_embedding))
    rest = {f"clipreid_model.{key}": None for key in whole.pairs}
    return _Plan(pairs | {k: v for k, v in rest.items() if k not in copies}, copies)


def _clip_plan(s: _Structure) -> _Plan:
    p = s.text_prefix
    pairs = _rename(_vision_names(s.vision_layers), "visual.", "backbone.visual.")
    pairs |= _rename(_text_names(s.text_layers), p, "heads.text_encoder.")
    # numbers in OpenAI's archives; open_clip's optional bias
    extra = ("input_resolution", "context_length", "vocab_size", "logit_bias")
    pairs |= {p + "token_embedding.weight": None, "logit_scale": None} | dict.fromkeys(extra)
    return _Plan(pairs, optional=frozenset(extra))


def _plan(s: _Structure) -> _Plan:
    return {"saga3": _stage3_plan, "clip": _clip_plan}.get(s.layout, _stage2_plan)(s)


def _number(keys: Iterable[str], pattern: str) -> int:
    """Highest index that `pattern` finds, plus one."""
    return 1 + max((int(m.group(1)) for key in keys if (m := re.match(pattern, key))), default=-1)


_BLOCK = r"transformer\.resblocks\.(\d+)\."


def _domain_kind(keys: Iterable[str], prefix: str, camera: str) -> str:
    """ "camera", "clip" or "content" by the names of the domain anchors' tensors; "" for none."""
    own = {k.removeprefix(prefix) for k in keys if k.startswith(prefix)}
    if not own:
        return ""
    return "camera" if f"{camera}.weight" in own else "clip" if "queries" in own else "content"


def _published_structure(layout: str, head: str, state: Mapping[str, Tensor]) -> _Structure:
    def number(pattern: str) -> int:
        return max(1, _number(state, pattern))  # at least one, so that a file without any is told what it misses

    if layout == "clip":
        prefix = "text." if any(k.startswith("text.") for k in state) else ""
        vision, text = number(r"visual\." + _BLOCK), number(re.escape(prefix) + _BLOCK)
        return _Structure(layout, head, vision, text, text_prefix=prefix)
    if layout != "saga3":
        vision, text = number(r"image_encoder\." + _BLOCK), number(r"text_encoder\." + _BLOCK)
        return _Structure(layout, head, vision, text, "cv_embed" in state)
    return _Structure(
        layout,
        "saga",
        number(r"(?:backbone|clipreid_model\.image_encoder)\." + _BLOCK),
        number(r"(?:text_anchor|clipreid_model)\.text_encoder\." + _BLOCK),
        camera_embedding="clipreid_model.cv_embed" in state,
        refine_layers=number(r"refine\.(?:\d+\.)?layers\.(\d+)\."),
        paths=number(r"refine\.(\d+)\."),
        classifiers=number(r"classifiers\.(\d+)\."),
        free_anchors="text_anchor.anchors" in state,
        domain=_domain_kind(state, "domain_anchor.", "cam_embed"),
        projection="proj.weight" in state,
    )


def _our_head(model: Mapping[str, Tensor]) -> str:
    if any(k.startswith("heads.refine.") for k in model):
        return "saga"
    if any(k.startswith("heads.prompts.") for k in model):
        return "prompts"
    if "heads.bottleneck_proj.weight" in model:
        return "cls"
    raise ConversionError(
        "a checkpoint of this project, but not of PromptHead, CLSHead or SAGAHead: the published code has none like it"
    )


def _our_structure(layout: str, head: str, model: Mapping[str, Tensor], text_prefix: str = "") -> _Structure:
    return _Structure(
        layout,
        head,
        _number(model, r"backbone\.visual\." + _BLOCK),
        _number(model, r"heads\.text_encoder\." + _BLOCK) or 12,
        camera_embedding="backbone.camera_embedding" in model,
        refine_layers=_number(model, r"heads\.refine\.\d+\.layers\.(\d+)\."),
        paths=_number(model, r"heads\.refine\.(\d+)\."),
        classifiers=_number(model, r"heads\.classifiers\.(\d+)\."),
        free_anchors=head == "saga" and "heads.text_anchors.context_learned" not in model,
        domain=_domain_kind(model, "heads.domain_anchors.", "camera"),
        projection="heads.proj.weight" in model,
        text_prefix=text_prefix,
    )


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _recognise(state: Mapping[str, Tensor], head: str) -> tuple[_Structure, _Plan]:
    """The layout whose keys a file has, all of them and no others.

    Raises:
        ConversionError: naming the nearest layout, what it misses and what is left over.
    """
    best = None
    for layout in ("saga3", "saga2", "clip_reid", "vit", "clip"):
        structure = _published_structure(layout, head, state)
        plan = _plan(structure)
        missing = plan.keys - set(state) - plan.optional
        left_over = set(state) - plan.keys
        if not missing and not left_over:
            return structure, plan
        # what is there that should not be weighs more than what a shorter layout would not have asked for
        distance = len(missing) + 2 * len(left_over)
        if best is None or distance < best[0]:
            best = (distance, layout, missing, left_over)
    _, layout, missing, left_over = best
    known = len(state) - len(left_over)
    if known < len(state) / 4:
        raise ConversionError(
            f"no layout known here ({', '.join(_TITLES)}): the file's {len(state)} keys begin {_some(state, 4)}"
        )
    parts = [f"missing {len(missing)}: {_some(missing)}" if missing else ""]
    parts += [f"left over {len(left_over)}: {_some(left_over)}" if left_over else ""]
    raise ConversionError(f"nearest layout is {layout} ({_TITLES[layout]}), but " + "; ".join(filter(None, parts)))


# ---- computed buffers ------------------------------------------------------------------------------------------------


def _text_encoder(state: Mapping[str, Tensor], prefix: str) -> TextEncoder:
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
            layers=_number(own, _BLOCK),
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
    encoder = _text_encoder(state, "text_encoder.")
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
    anchors.refresh(_text_encoder(model, "heads.text_encoder."))
    return anchors.anchors


def _digest(state: Mapping[str, Tensor]) -> int:
    """Checksum of every tensor on the text side: do buffers that ride along still belong to them?"""
    crc = 0
    for key in sorted(k for k in state if "text_" in k or "prompt_learner." in k):
        data = state[key].detach().contiguous().flatten().view(torch.uint8)
        crc = zlib.crc32(data.numpy(), zlib.crc32(key.encode(), crc))
    return crc


# ---- published -> ours -----------------------------------------------------------------------------------------------


def from_published(
    state: Mapping[str, Tensor], *, head: str | None = None, carried: Mapping | None = None
) -> Conversion:
    """A published state dict as a checkpoint of ours.

    Args:
        state: tensors by published key; a "module." prefix is taken off.
        head: for the files of the first two stages, "cls" (the image stage's CLSHead) or "prompts" (PromptHead). By
            default what the file was written from, else "cls".
        carried: what `to_published` attached to the state dict.

    Raises:
        ConversionError: no known layout (naming the nearest, what is missing and what is left over), copies of one
            tensor that differ, or sizes that disagree.
    """
    if state and all(k.startswith("module.") for k in state):
        state = {k[len("module.") :]: v for k, v in state.items()}
    carried = carried or {}
    head = head or carried.get("head") or "cls"
    if head not in HEADS:
        raise ConversionError(f"head {head!r} is none of {', '.join(HEADS)}")
    structure, plan = _recognise(state, head)
    if structure.layout in ("saga3", "clip"):
        head = {"saga3": "saga", "clip": "prompts"}[structure.layout]
    elif head == "saga" or (head == "prompts" and structure.layout != "saga2"):
        raise ConversionError(f"a file of layout {structure.layout} ({_TITLES[structure.layout]}) holds no {head} head")

    for copy, original in plan.copies.items():
        if not torch.equal(state[copy], state[original]):
            raise ConversionError(f"{copy} differs from {original}, of which it should be a copy: the file was edited")
    model, kept, dtypes = {}, {}, {}
    for key, ours in plan.pairs.items():
        if key not in state:
            continue
        value = state[key]
        if ours is None:
            kept[key] = value
            continue
        if value.is_floating_point() and value.dtype != torch.float32:
            dtypes[key] = str(value.dtype).removeprefix("torch.")
            value = value.float()
        if ours.endswith("template.prefix"):
            value = value.reshape(-1, value.shape[-1])
        elif ours.endswith("template.suffix"):
            kept[key] = value[..., _SUFFIX_ROWS:, :].clone()  # padding after the end of text
            value = value.reshape(-1, value.shape[-1])[:_SUFFIX_ROWS].clone()
        model[ours] = value
    filled = list(carried.get("filled", []))
    result = Conversion(
        structure.layout,
        head,
        model,
        {"layout": structure.layout, "tensors": kept, "dtypes": dtypes, "filled": filled},
    )
    if structure.text_prefix:
        result.published["text_prefix"] = structure.text_prefix
    try:
        _derive(result, state, carried)
    except (RuntimeError, IndexError) as error:  # torch's own words for sizes that do not go together
        reason = " ".join(str(error).split())
        raise ConversionError(f"the keys are those of {result.layout}, but sizes disagree: {reason[:300]}") from error
    return result


def _derive(result: Conversion, state: Mapping[str, Tensor], carried: Mapping) -> None:
    """Buffers that our model keeps and no published file stores: those that rode along if still true, else computed."""
    model, layout = result.model, result.layout
    if layout == "clip":
        table = state[result.published.get("text_prefix", "") + "token_embedding.weight"]
        template = towers.template_embedding({"token_embedding.weight": table})
        model["heads.prompts.template.prefix"] = template[:1]
        model["heads.prompts.template.suffix"] = template[1 + CONTEXT_SLOTS :]
    if carried and carried.get("digest") == _digest(state):
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
    if layout == "saga3" and "heads.text_anchors.context_learned" in model:
        model["heads.text_anchors.anchors"] = _anchors(model)
    if layout == "clip_reid":
        result.notes.append("its prompts have another template: they are kept, not usable as identity prompts here")
    if layout == "saga3" and "clipreid_model.cv_embed" in state:
        result.notes.append("its camera embedding is the stage before's; the published last stage does not apply it")


# ---- ours -> published -----------------------------------------------------------------------------------------------


def to_published(
    model: Mapping[str, Tensor], published: Mapping | None = None
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """A state dict of ours in the published layout of its stage, and what a user should know about it.

    Tensors that ours does not hold come from `published`. Where there are none, they are zeros (batch norms at their
    start): parts that the published evaluation of that stage does not read.

    Args:
        model: state dict of SAGABaseline. published: the dict beside it in a converted checkpoint.

    Raises:
        ConversionError: a head without counterpart, or text anchors without the text tower.
    """
    published = published or {}
    layout = published.get("layout")
    head = "prompts" if layout == "clip" else _our_head(model)
    layout = layout or ("saga3" if head == "saga" else "saga2")
    if (layout == "saga3") != (head == "saga"):
        raise ConversionError(f"the model has a {head} head, but what is kept beside it is of layout {layout}")
    kept, dtypes = published.get("tensors", {}), published.get("dtypes", {})
    structure = _our_structure(layout, head, model, published.get("text_prefix", ""))
    if "heads.text_encoder.ln_final.weight" not in model:
        if head == "saga" and not structure.free_anchors:
            raise ConversionError(
                "missing heads.text_encoder.*: the published code computes text anchors with the text tower. Write the "
                "checkpoint with MODEL.CLIP.TEXT_TOWER True"
            )
        layers = _number(kept, r"(?:clipreid_model\.)?text_encoder\." + _BLOCK)
        structure = replace(structure, text_layers=layers or 12)
    if head == "saga" and "clipreid_model.cv_embed" in kept:
        structure = replace(structure, camera_embedding=True)
    slots = model["heads.prompts.context_identity"].shape[1] if layout == "saga2" and head == "prompts" else 8
    if slots != 8:
        raise ConversionError("the published prompts have 8 learned slots: MODEL.PROMPT.NUM_CONTEXT 8 is needed")
    plan = _plan(structure)

    derived = {k: model[k] for k in _DERIVED if k in model and k not in plan.pairs.values()}
    if head == "saga" and "backbone.camera_embedding" in model:
        derived["backbone.camera_embedding"] = model["backbone.camera_embedding"]
    template = ("heads.prompts.template.prefix", "heads.prompts.template.suffix") if layout == "clip" else ()
    left_over = set(model) - set(plan.pairs.values()) - set(derived) - set(template)
    missing = {v for v in plan.pairs.values() if v is not None} - set(model)
    if head == "prompts":
        missing = {k for k in missing if not k.startswith("heads.text_encoder.")}
    if left_over or missing:
        parts = [f"missing {_some(missing)}" if missing else "", f"left over {_some(left_over)}" if left_over else ""]
        raise ConversionError(f"the model does not fit layout {layout}: " + "; ".join(filter(None, parts)))

    state, filled, stand_in = OrderedDict(), [], None
    for key, ours in plan.pairs.items():
        if ours in model:
            value = model[ours]
            if ours.endswith("template.suffix"):
                rest = kept.get(key)
                if rest is None:
                    rest = value.new_zeros(_CONTEXT_LENGTH - PROMPT_LENGTH, value.shape[1])
                value = torch.cat([value, rest.reshape(-1, value.shape[1])])
            if ours.endswith(("template.prefix", "template.suffix")) and layout == "saga2":
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
    notes = []
    if filled:
        notes.append(
            f"{len(filled)} tensors that this checkpoint does not hold are zeros ({_some(filled, 3)}): the published "
            "evaluation does not read them, its earlier stages would"
        )
    if head == "saga" and "backbone.camera_embedding" in model:
        notes.append("the published last stage does not apply the camera embedding, so its features will differ")
    filled += [k for k in published.get("filled", []) if k not in filled]
    state.sagareid = {"head": head, "filled": filled, "tensors": derived, "digest": _digest(state)}
    return state, notes


class _StandIn:
    """Stand-ins for published tensors that no checkpoint of ours holds, in the shape that the published code wants."""

    def __init__(self, model: Mapping[str, Tensor], structure: _Structure):
        width, embed = model["backbone.visual.proj"].shape
        counts = ("heads.classifier.weight", "heads.classifiers.0.weight", "heads.prompts.context_identity")
        classes = next(model[k].shape[0] for k in counts if k in model)
        texts = ("heads.text_encoder.ln_final.weight", "heads.prompt_context", "heads.text_anchors.template.prefix")
        text = next((model[k].shape[-1] for k in texts if k in model), 512)
        half, small = embed // 2, embed // 16
        self.shapes = {
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
            "prompt_learner.ctx_generic": (classes, 8, text),
            "prompt_learner.ctx_modality": (2, 4, text),
            "prompt_learner.ctx_platform": (2, 4, text),
            "prompt_learner.token_prefix": (1, 1, text),
            "prompt_learner.token_suffix": (1, _CONTEXT_LENGTH - 1 - CONTEXT_SLOTS, text),
            "text_encoder.positional_embedding": (_CONTEXT_LENGTH, text),
            "text_encoder.text_projection": (text, embed),
            "text_encoder.ln_final.weight": (text,),
            "text_encoder.ln_final.bias": (text,),
        }
        for name, n in (("bottleneck", width), ("bottleneck_proj", embed)):
            self.shapes |= {f"{name}.{part}": (n,) for part in _BATCH_NORM[:4]} | {f"{name}.num_batches_tracked": ()}
        block = {
            "attn.in_proj_weight": (3 * text, text),
            "attn.in_proj_bias": (3 * text,),
            "attn.out_proj.weight": (text, text),
            "mlp.c_fc.weight": (4 * text, text),
            "mlp.c_fc.bias": (4 * text,),
            "mlp.c_proj.weight": (text, 4 * text),
        }
        for name in _blocks(structure.text_layers):
            self.shapes["text_encoder." + name] = block.get(name.split(".", 3)[3], (text,))
        self.shapes = {f"clipreid_model.{k}": v for k, v in self.shapes.items()} | self.shapes
        if structure.layout == "saga3":
            self.shapes["text_proj.weight"] = (embed, model["heads.bottleneck.weight"].shape[0])
        self.camera = model.get("backbone.camera_embedding")

    def __call__(self, key: str) -> Tensor:
        if key.endswith("tokenized_prompts"):
            ids = template_token_ids()
            return torch.tensor([ids + [0] * (_CONTEXT_LENGTH - len(ids))])
        if key == "clipreid_model.cv_embed":
            return self.camera
        shape = self.shapes[key]
        if key.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.int64)
        one = key.endswith("running_var") or ("bottleneck" in key and key.endswith(".weight"))
        return torch.ones(shape) if one else torch.zeros(shape)


# ---- input size and stride -------------------------------------------------------------------------------------------


_POSITION = "backbone.visual.positional_embedding"


def _source(result: Conversion) -> tuple[tuple[int, int], int] | None:
    """((H, W), stride) that the position embedding was most likely made for, from its rows; None if nothing fits."""
    if result.made_for:
        return result.made_for
    rows = result.model[_POSITION].shape[0] - 1
    patch = result.model["backbone.visual.conv1.weight"].shape[-1]
    sizes = [(14 * patch, 14 * patch), (16 * patch, 16 * patch)] if result.layout == "clip" else [(256, 128)]
    for size in sizes:
        for stride in (patch, patch * 3 // 4):
            grid = towers.patch_grid(size, patch, stride)
            if grid[0] * grid[1] == rows:
                return size, stride
    return None


def resize(
    result: Conversion,
    *,
    size: Sequence[int] | None = None,
    stride: int | None = None,
    from_size: Sequence[int] | None = None,
    from_stride: int | None = None,
) -> None:
    """Fit a checkpoint of ours to another input size or patch stride, in place.

    Args:
        size: (H, W), stride: wanted; one that is not given stays as it was.
        from_size, from_stride: what the checkpoint was made for. By default 256x128 for a ReID model and a square for
            CLIP, if the number of patches agrees.

    Raises:
        ConversionError: a source grid that is unknown or does not have the checkpoint's number of patches.
    """
    embedding = result.model[_POSITION]
    patch = result.model["backbone.visual.conv1.weight"].shape[-1]
    rows = embedding.shape[0] - 1
    if from_size is None or from_stride is None:
        guess = _source(result)
        if guess is None:
            raise ConversionError(
                f"the position embedding has {rows} patches, which fits no usual input size and stride: state both, "
                "--from-size H W --from-stride S"
            )
        from_size, from_stride = from_size or guess[0], from_stride or guess[1]
    size, stride = tuple(size or from_size), stride or from_stride
    for what in (stride, from_stride):
        if not 1 <= what <= patch:
            raise ConversionError(f"stride {what} is not in 1..{patch}, the patch size")
    try:
        source = towers.patch_grid(from_size, patch, from_stride)
        target = towers.patch_grid(size, patch, stride)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    named = (
        f"from {from_size[0]}x{from_size[1]} at stride {from_stride} (grid {source[0]}x{source[1]}) "
        f"to {size[0]}x{size[1]} at stride {stride} (grid {target[0]}x{target[1]})"
    )
    if source[0] * source[1] != rows:
        raise ConversionError(
            f"cannot resize {named}: the checkpoint's position embedding has {rows} patches, not "
            f"{source[0] * source[1]}. State what it was made for with --from-size H W --from-stride S"
        )
    result.model[_POSITION] = towers.resize_position_embedding(embedding, source, target).clone()
    result.made_for = (size, stride)
    result.notes.append(f"position embedding resized {named}")


# ---- files -----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, *, head: str | None = None) -> Conversion:
    """Any checkpoint known here, as ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a pickle that needs code (`weights.read_file`), or a ConversionError.
    """
    found = read_file(path)
    state = state_dict_in(found, path)
    if any(k.startswith("backbone.visual.") for k in state):
        published = dict(found.get("published") or {})
        own = "prompts" if published.get("layout") == "clip" else _our_head(state)
        return Conversion("ours", own, dict(state), published)
    return from_published(state, head=head, carried=getattr(found, "sagareid", None))


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    head: str | None = None,
    **sizes,
) -> tuple[Conversion, str, int]:
    """Read, recognise, convert and write a checkpoint.

    Args:
        to: "ours" or "published"; by default the other side of what the file is.
        head: as for `from_published`. sizes: as for `resize`; nothing is resized without `size` or `stride`.

    Returns:
        the checkpoint in our form with its notes, the side written, and the number of tensors written.
    """
    result = read_checkpoint(source, head=head)
    to = to or ("published" if result.layout == "ours" else "ours")
    if sizes.get("size") or sizes.get("stride"):
        resize(result, **sizes)
    if to == "published":
        state, notes = to_published(result.model, result.published)
        result.notes += notes
        save_torch(target, state)
        return result, to, len(state)
    content = {"model": result.model}
    if result.published:
        content["published"] = result.published
    save_torch(target, content)
    return result, to, len(result.model)


def describe(result: Conversion) -> str:
    """What a file was recognised as, in one line."""
    kept = len(result.published.get("tensors", ()))
    beside = f', {kept} more kept under "published"' if kept else ""
    return f"{result.layout} ({_TITLES[result.layout]}); {len(result.model)} tensors for the model{beside}"


def config_keys(result: Conversion) -> dict[str, object]:
    """Config keys that the weights determine, and a remark (a string in parentheses) for those that they do not."""
    model = result.model
    width, patch = model["backbone.visual.conv1.weight"].shape[0], model["backbone.visual.conv1.weight"].shape[-1]
    names = {(768, 16): "ViT-B-16-quickgelu", (768, 32): "ViT-B-32-quickgelu", (1024, 14): "ViT-L-14-quickgelu"}
    rows = model[_POSITION].shape[0] - 1
    keys: dict[str, object] = {
        "MODEL.HEADS.NAME": {"saga": "SAGAHead", "cls": "CLSHead", "prompts": "PromptHead"}[result.head],
        "MODEL.CLIP.NAME": names.get((width, patch), f"(a ViT of width {width} and patch {patch})"),
        "MODEL.BACKBONE.FEAT_DIM": width,
    }
    source = _source(result)
    if source:
        keys |= {"MODEL.BACKBONE.STRIDE_SIZE": [source[1]] * 2, "INPUT.SIZE_TRAIN": list(source[0])}
        keys["INPUT.SIZE_TEST"] = list(source[0])
    else:
        keys["MODEL.BACKBONE.STRIDE_SIZE"] = f"(unknown: {rows} patches; with INPUT.SIZE_TRAIN and SIZE_TEST)"
    sie = "backbone.camera_embedding" in model
    keys["MODEL.CLIP.SIE_CAMERA"] = sie
    if sie:
        keys["MODEL.CLIP.CAMERAS"] = f"({len(model['backbone.camera_embedding'])} names)"
        keys["MODEL.BACKBONE.SIE_COE"] = "(not stored; published: 3.0 in SAGA-ReID, 1.0 in CLIP-ReID)"
    classes = ("heads.classifier.weight", "heads.classifiers.0.weight", "heads.prompts.context_identity")
    for key in classes:
        if key in model:
            keys["MODEL.HEADS.NUM_CLASSES"] = model[key].shape[0]
    if result.layout == "clip_reid":
        keys["MODEL.HEADS.TRAIN_PROJ"] = True
    if result.head != "saga":
        return keys
    s = _our_structure("saga3", "saga", model)
    published = "9; 11 without phrase context" if s.paths == 1 else "6 and 9"
    keys["MODEL.CLIP.TOKEN_LAYERS"] = f"({s.paths}; not stored which. Published: {published})"
    keys["MODEL.SAGA.FREE_ANCHORS"] = s.free_anchors
    if s.free_anchors:
        keys["MODEL.SAGA.NUM_ANCHORS"] = model["heads.text_anchors.anchors"].shape[0]
    else:
        count, phrase = model["heads.text_anchors.context_phrase"].shape[:2]
        keys |= {"MODEL.SAGA.NUM_ANCHORS": count, "MODEL.SAGA.PHRASE_CONTEXT": phrase}
    domain = 0
    if s.domain == "clip":
        domain = model["heads.domain_anchors.queries"].shape[0]
    elif s.domain:
        domain = model["heads.domain_anchors.generator.2.bias"].shape[0] // width
    keys["MODEL.SAGA.NUM_DOMAIN_ANCHORS"] = domain
    if s.domain:
        keys["MODEL.SAGA.DOMAIN_ANCHORS"] = s.domain
    if s.domain == "camera":
        keys["MODEL.CLIP.CAMERAS"] = f"({len(model['heads.domain_anchors.camera.weight'])} names)"
    keys["MODEL.SAGA.REFINE_LAYERS"] = s.refine_layers
    keys["MODEL.SAGA.NUM_HEADS"] = "(not stored; published: 8)"
    keys["MODEL.SAGA.NUM_CLASSIFIERS"] = s.classifiers
    if s.projection:
        keys["MODEL.SAGA.EMBEDDING_DIM"] = model["heads.proj.weight"].shape[0]
    return keys
