"""The published layouts: which keys a file of each has, and which of our model's tensors they are.

A layout is recognised by its keys (`recognise`), all of them and no others. `plan_of` gives the keys of a layout for a
`Structure`, the numbers of layers and the optional parts that a file has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import first_few
from .conversion import ConversionError

HEADS = ("prompts", "cls", "saga")
CONTEXT_LENGTH = 77
TITLES = {
    "saga3": "SAGA-ReID, last stage",
    "saga2": "SAGA-ReID, prompt or image stage",
    "clip_reid": "CLIP-ReID ViT",
    "vit": "CLIP-ReID's ViT baseline",
    "clip": "CLIP",
    "ours": "a checkpoint of this project",
}


@dataclass(frozen=True)
class Structure:
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
class Plan:
    """The keys of a published file and where their tensors go.

    Attributes:
        pairs: published key -> key of our model, or None for a tensor that is only kept.
        copies: key -> the key whose tensor it repeats.
        optional: keys that a file may lack.
    """

    pairs: dict[str, str | None]
    copies: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def keys(self) -> set[str]:
        return set(self.pairs) | set(self.copies)


_NORM = ("weight", "bias")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _rename(names: Iterable[str], published: str, ours: str | None) -> dict[str, str | None]:
    return {published + name: None if ours is None else ours + name for name in names}


def block_names(layers: int) -> list[str]:
    parts = [f"attn.{a}" for a in _ATTENTION]
    parts += [f"{m}.{n}" for m in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for n in _NORM]
    return [f"transformer.resblocks.{i}.{part}" for i in range(layers) for part in parts]


def _vision_names(layers: int) -> list[str]:
    norms = [f"{m}.{n}" for m in ("ln_pre", "ln_post") for n in _NORM]
    return ["class_embedding", "positional_embedding", "proj", "conv1.weight", *norms, *block_names(layers)]


def _text_names(layers: int) -> list[str]:
    return ["positional_embedding", "text_projection", "ln_final.weight", "ln_final.bias", *block_names(layers)]


_NECKS = [f"{m}.{n}" for m in ("bottleneck", "bottleneck_proj") for n in BATCH_NORM]
_NECKS += ["classifier.weight", "classifier_proj.weight"]
_UNUSED = ["visual_prompt", *(f"image_fusion_net.fc{i}.{n}" for i in (1, 2) for n in _NORM)]
_UNUSED += [f"prompt_learner.visual_enhanced_net.linear{i}.{n}" for i in (1, 2) for n in _NORM]


def _stage2_plan(s: Structure) -> Plan:
    """SAGA-ReID's stages 1 and 2, CLIP-ReID and its baseline: one family."""
    prompts = s.head == "prompts"
    pairs = _rename(_vision_names(s.vision_layers), "image_encoder.", "backbone.visual.")
    pairs |= _rename(_NECKS, "", "heads." if s.head == "cls" else None)
    if s.camera_embedding:
        pairs["cv_embed"] = "backbone.camera_embedding"
    if s.layout == "vit":
        return Plan(pairs)
    pairs |= _rename(_text_names(s.text_layers), "text_encoder.", "heads.text_encoder." if prompts else None)
    if s.layout == "clip_reid":
        return Plan(pairs | _rename(("cls_ctx", "token_prefix", "token_suffix"), "prompt_learner.", None))
    for kind in ("generic", "modality", "platform"):
        ours = f"heads.prompts.context_{kind.replace('generic', 'identity')}"
        pairs[f"prompt_learner.ctx_{kind}"] = ours if prompts else None
    for end in ("prefix", "suffix"):
        pairs[f"prompt_learner.token_{end}"] = f"heads.prompts.template.{end}" if prompts else None
    return Plan(pairs | _rename(_UNUSED, "", None))


def _stage3_plan(s: Structure) -> Plan:
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
    in_layer = [f"attn.{a}" for a in _ATTENTION]
    in_layer += [f"{m}.{n}" for m in ("norm_q", "norm_kv", "norm_ff", "ff.0", "ff.3") for n in _NORM]
    for path in range(s.paths):
        published = f"refine.{path}.layers." if s.paths > 1 else "refine.layers."
        names = [f"{i}.{name}" for i in range(s.refine_layers) for name in in_layer]
        pairs |= _rename(names, published, f"heads.refine.{path}.layers.")
    pairs |= _rename(BATCH_NORM, "bn.", "heads.bottleneck.")
    pairs |= {f"classifiers.{q}.weight": f"heads.classifiers.{q}.weight" for q in range(s.classifiers)}
    pairs["text_proj.weight"] = None
    if s.projection:
        pairs |= _rename(_NORM, "proj.", "heads.proj.")
    whole = _stage2_plan(Structure("saga2", "", s.vision_layers, s.text_layers, s.camera_embedding))
    rest = {f"clipreid_model.{key}": None for key in whole.pairs}
    return Plan(pairs | {k: v for k, v in rest.items() if k not in copies}, copies)


def _clip_plan(s: Structure) -> Plan:
    p = s.text_prefix
    pairs = _rename(_vision_names(s.vision_layers), "visual.", "backbone.visual.")
    pairs |= _rename(_text_names(s.text_layers), p, "heads.text_encoder.")
    # numbers in OpenAI's archives; open_clip's optional bias
    extra = ("input_resolution", "context_length", "vocab_size", "logit_bias")
    pairs |= {p + "token_embedding.weight": None, "logit_scale": None} | dict.fromkeys(extra)
    return Plan(pairs, optional=frozenset(extra))


def plan_of(s: Structure) -> Plan:
    """The keys of a layout, for the layers and optional parts of a structure."""
    return {"saga3": _stage3_plan, "clip": _clip_plan}.get(s.layout, _stage2_plan)(s)


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    """Highest index that `pattern` finds, plus one."""
    return 1 + max((int(m.group(1)) for key in keys if (m := re.match(pattern, key))), default=-1)


BLOCK = r"transformer\.resblocks\.(\d+)\."


def _domain_kind(keys: Iterable[str], prefix: str, camera: str) -> str:
    """ "camera", "clip" or "content" by the names of the domain anchors' tensors; "" for none."""
    own = {k.removeprefix(prefix) for k in keys if k.startswith(prefix)}
    if not own:
        return ""
    return "camera" if f"{camera}.weight" in own else "clip" if "queries" in own else "content"


def _published_structure(layout: str, head: str, state: Mapping[str, Tensor]) -> Structure:
    def number(pattern: str) -> int:
        # At least one, so that the error about a file without any names what it misses.
        return max(1, count_numbered(state, pattern))

    if layout == "clip":
        prefix = "text." if any(k.startswith("text.") for k in state) else ""
        vision, text = number(r"visual\." + BLOCK), number(re.escape(prefix) + BLOCK)
        return Structure(layout, head, vision, text, text_prefix=prefix)
    if layout != "saga3":
        vision, text = number(r"image_encoder\." + BLOCK), number(r"text_encoder\." + BLOCK)
        return Structure(layout, head, vision, text, "cv_embed" in state)
    return Structure(
        layout,
        "saga",
        number(r"(?:backbone|clipreid_model\.image_encoder)\." + BLOCK),
        number(r"(?:text_anchor|clipreid_model)\.text_encoder\." + BLOCK),
        camera_embedding="clipreid_model.cv_embed" in state,
        refine_layers=number(r"refine\.(?:\d+\.)?layers\.(\d+)\."),
        paths=number(r"refine\.(\d+)\."),
        classifiers=number(r"classifiers\.(\d+)\."),
        free_anchors="text_anchor.anchors" in state,
        domain=_domain_kind(state, "domain_anchor.", "cam_embed"),
        projection="proj.weight" in state,
    )


def our_head(model: Mapping[str, Tensor]) -> str:
    """One of `HEADS`, by the keys of a model of ours."""
    if any(k.startswith("heads.refine.") for k in model):
        return "saga"
    if any(k.startswith("heads.prompts.") for k in model):
        return "prompts"
    if "heads.bottleneck_proj.weight" in model:
        return "cls"
    raise ConversionError(
        "a checkpoint of this project, but not of PromptHead, CLSHead or SAGAHead: the published code has none like it"
    )


def our_structure(layout: str, head: str, model: Mapping[str, Tensor], text_prefix: str = "") -> Structure:
    """The structure of the published file of `layout` that a model of ours corresponds to."""
    return Structure(
        layout,
        head,
        count_numbered(model, r"backbone\.visual\." + BLOCK),
        count_numbered(model, r"heads\.text_encoder\." + BLOCK) or 12,
        camera_embedding="backbone.camera_embedding" in model,
        refine_layers=count_numbered(model, r"heads\.refine\.\d+\.layers\.(\d+)\."),
        paths=count_numbered(model, r"heads\.refine\.(\d+)\."),
        classifiers=count_numbered(model, r"heads\.classifiers\.(\d+)\."),
        free_anchors=head == "saga" and "heads.text_anchors.context_learned" not in model,
        domain=_domain_kind(model, "heads.domain_anchors.", "camera"),
        projection="heads.proj.weight" in model,
        text_prefix=text_prefix,
    )


def shortened(names: Iterable[str], limit: int = 6) -> str:
    """The first names, in order, and how many more there are."""
    return first_few(sorted(names), limit)


def recognise(state: Mapping[str, Tensor], head: str) -> tuple[Structure, Plan]:
    """The layout whose keys a file has, all of them and no others.

    Raises:
        ConversionError: naming the nearest layout, what it misses and what is left over.
    """
    candidates = []
    for layout in ("saga3", "saga2", "clip_reid", "vit", "clip"):
        structure = _published_structure(layout, head, state)
        plan = plan_of(structure)
        missing = plan.keys - set(state) - plan.optional
        left_over = set(state) - plan.keys
        if not missing and not left_over:
            return structure, plan
        candidates.append((layout, missing, left_over))
    # A key that is left over counts double: a layout with few keys misses few, whatever the file is.
    layout, missing, left_over = min(candidates, key=lambda c: len(c[1]) + 2 * len(c[2]))
    known = len(state) - len(left_over)
    if known < len(state) / 4:
        raise ConversionError(
            f"no layout known here ({', '.join(TITLES)}): the file's {len(state)} keys begin {shortened(state, 4)}"
        )
    differences = {"missing": missing, "left over": left_over}
    found = [f"{what} {len(keys)}: {shortened(keys)}" for what, keys in differences.items() if keys]
    raise ConversionError(f"nearest layout is {layout} ({TITLES[layout]}), but {'; '.join(found)}")
