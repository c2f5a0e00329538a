"""Checkpoints of the published code and of its relatives, to ours and back, tensor by tensor.

Layouts, recognised by their keys:
    saga3      SAGA-ReID's last stage (image tower and text tower stored two or three times over)
    saga2      SAGA-ReID's prompt and image stages
    clip_reid  CLIP-ReID's ViT, with or without camera embedding, any stride
    vit        CLIP-ReID's ViT baseline, without text
    clip       CLIP itself: OpenAI's archive or state dict, open_clip
    ours       `SAGABaseline` with PromptHead, CLSHead or SAGAHead
    and the towers of other projects that `modeling/foreign` reads (interchange/towers.py)

Ours: {"model": state dict, "published": {...}}. "published" keeps what the layout holds and our model does not: its
"layout", "tensors" by published key, "dtypes" of what was not float32, and "filled", the keys that no file gave
(zeros, from a checkpoint of ours). FastReID ignores it; a checkpoint that training writes no longer has it.

Published: the plain state dict. What has no place there (buffers computed from other tensors, the kind of head) is an
attribute `sagareid` of the ordered dict, as PyTorch's own `_metadata` is, so that the keys stay the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import save_torch
from ..modeling.agreement import trained_config
from ..modeling.clip import towers
from ..modeling.clip.activation import HF_CONFIG, trained_with_quick_gelu
from ..modeling.clip.text import CONTEXT_SLOTS, PROMPT_LENGTH
from ..modeling.foreign import recognise_tower
from ..weights import levels_in, read_file, state_dict_in
from .conversion import Conversion, ConversionError
from .derived import derive
from .describe import config_keys, describe
from .layouts import HEADS, TITLES, Plan, our_head, recognise
from .published import to_published
from .resize import resize
from .towers import from_tower, is_tower, tower_of, tower_to_published

__all__ = [
    "Conversion",
    "config_keys",
    "convert_file",
    "describe",
    "from_published",
    "read_checkpoint",
    "to_published",
]

_SUFFIX_ROWS = PROMPT_LENGTH - 1 - CONTEXT_SLOTS


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
    structure, plan = recognise(state, head)
    if structure.layout in ("saga3", "clip"):
        head = {"saga3": "saga", "clip": "prompts"}[structure.layout]
    elif head == "saga" or (head == "prompts" and structure.layout != "saga2"):
        raise ConversionError(f"a file of layout {structure.layout} ({TITLES[structure.layout]}) holds no {head} head")

    for copy, original in plan.copies.items():
        if not torch.equal(state[copy], state[original]):
            raise ConversionError(f"{copy} differs from {original}, of which it should be a copy: the file was edited")
    model, kept, dtypes = _sort_tensors(state, plan)
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
        derive(result, state, carried)
    except (RuntimeError, IndexError) as error:  # torch's own words for sizes that do not go together
        reason = " ".join(str(error).split())
        raise ConversionError(f"the keys are those of {result.layout}, but sizes disagree: {reason[:300]}") from error
    return result


def _sort_tensors(
    state: Mapping[str, Tensor], plan: Plan
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """The tensors of our model, those that are only kept, and the dtypes of those that were not float32."""
    model: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    dtypes: dict[str, str] = {}
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
    return model, kept, dtypes


def read_checkpoint(path: str | Path, *, head: str | None = None) -> Conversion:
    """Read a checkpoint of any layout, as ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a pickle that needs code (`weights.read_file`), or a ConversionError.
    """
    found = read_file(path)
    state = state_dict_in(found, path)
    beside = found.get("published") if isinstance(found, Mapping) else None
    if isinstance(beside, Mapping) and is_tower(beside):
        return Conversion("ours", "tower", dict(state), dict(beside), tower=tower_of(state, beside))
    if (tower := recognise_tower(state, str(path))) is not None:
        result = from_tower(tower, state)
        result.notes[:0] = [_taken(levels) for levels in levels_in(found) if len(levels) > 1]
        return result
    if any(k.startswith("backbone.visual.") for k in state):
        published = dict(found.get("published") or {})
        own_head = "prompts" if published.get("layout") == "clip" else our_head(state)
        result = Conversion("ours", own_head, dict(state), published)
        if (trained := trained_config(found, str(path))) is not None:
            result.clip_name = trained.MODEL.CLIP.NAME
            result.quick_gelu = towers.clip_dims(result.clip_name).quick_gelu
        elif "quick_gelu" in found:
            result.quick_gelu = found["quick_gelu"]
        return result
    result = from_published(state, head=head, carried=getattr(found, "sagareid", None))
    if result.layout == "clip":
        result.quick_gelu, reason = trained_with_quick_gelu(path, state) or (None, "")
        known = {True: "QuickGELU", False: "GELU", None: f"GELU or QuickGELU: only {HF_CONFIG} beside it can say"}
        result.notes.append(f"trained with {known[result.quick_gelu]}{f' ({reason})' if reason else ''}")
    return result


def _taken(levels: Sequence[str]) -> str:
    return f"{levels[0]!r} is taken, and not {', '.join(map(repr, levels[1:]))}"


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
        head: as for `from_published`.
        sizes: as for `resize`; nothing is resized without `size` or `stride`.

    Returns:
        The checkpoint in our form with its notes, the side written, and the number of tensors written.
    """
    result = read_checkpoint(source, head=head)
    to = to or ("published" if result.layout == "ours" else "ours")
    if sizes.get("size") or sizes.get("stride"):
        if result.tower is not None:
            raise ConversionError(
                f"{result.tower.title} is fitted to another size while it is loaded: convert it without --size and "
                "--stride, and set INPUT.SIZE_TRAIN and MODEL.BACKBONE.STRIDE_SIZE"
            )
        resize(result, **sizes)
    if to == "published" and result.tower is not None:
        state = tower_to_published(result.model, result.published)
        save_torch(target, state)
        return result, to, len(state)
    if to == "published":
        back_to_clip = result.published.get("layout") == "clip" and not result.clip_name  # as it came, untrained
        if result.layout == "ours" and result.quick_gelu is False and not back_to_clip:
            raise ConversionError(
                f"{source} was trained with GELU ({result.clip_name or 'by its conversion'}); the published code "
                "computes QuickGELU, so the same weights would give other features there"
            )
        state, notes = to_published(result.model, result.published)
        result.notes += notes
        save_torch(target, state)
        return result, to, len(state)
    content: dict[str, object] = {"model": result.model}
    if result.tower is None:
        content["quick_gelu"] = result.quick_gelu
    if result.published:
        content["published"] = result.published
    save_torch(target, content)
    return result, to, len(result.model)
