"""Towers of other projects as checkpoints of ours, and back.

Ours: {"model": {"backbone...": tensor}, "published": {"layout", "names": our name -> published name, "tensors": those
that the tower here has no place for, or in another form}}. `modeling/foreign` knows the layouts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from ..errors import first_few
from ..modeling.foreign import LAYOUTS, recognise_tower, swin
from ..modeling.foreign.tower import Tower
from .conversion import Conversion, ConversionError

__all__ = ["from_tower", "is_tower", "tower_keys", "tower_of", "tower_to_published"]

# MODEL.BACKBONE.NAME -> below which name of a model its tower is
_PLACES = {"build_timm_backbone": "backbone.model."}


def from_tower(tower: Tower, file: Mapping[str, Tensor]) -> Conversion:
    """A recognised tower as a checkpoint of ours.

    Raises:
        ConversionError: no backbone here computes it.
    """
    if not tower.builders:
        raise ConversionError(f"{tower.title} with blocks that no backbone here has")
    place = _PLACES.get(tower.builders[0], "backbone.")
    names = {place + name: key for name, key in tower.published.items()}
    model = {place + name: tensor.contiguous() for name, tensor in tower.state.items()}
    kept = {key: file[key] for key in tower.left_out}
    for name, key in names.items():
        if not _same(_published_form(tower.layout, name, model[name]), file[key]):
            kept[key] = file[key]  # the published code, too, reads it in another form
    published = {"layout": tower.layout, "names": names, "tensors": kept}
    result = Conversion(tower.layout, "tower", model, published, tower=tower)
    reasons: dict[str, list[str]] = {}
    for key, why in tower.left_out.items():
        reasons.setdefault(why, []).append(key)
    result.notes += [f"left out {len(keys)}: {first_few(keys, 3)} ({why})" for why, keys in reasons.items()]
    result.notes += tower.notes
    if "pos_embed" in tower.state:
        patches = tower.state["pos_embed"].shape[1] - 1
        result.notes.append(
            f"its position embedding has {patches} patches; for another INPUT.SIZE_TRAIN it is "
            f"interpolated while it is loaded ({tower.mode}, as published)"
        )
    return result


def is_tower(published: Mapping) -> bool:
    """Whether what is kept beside a checkpoint of ours is a tower's."""
    return published.get("layout") in LAYOUTS


def tower_to_published(model: Mapping[str, Tensor], published: Mapping) -> OrderedDict[str, Tensor]:
    """A converted tower in its published layout, tensor by tensor.

    Raises:
        ConversionError: the model misses tensors of it.
    """
    names, kept = published["names"], published["tensors"]
    if missing := [name for name in names if name not in model]:
        raise ConversionError(f"the model misses {len(missing)} tensors of its tower: {first_few(missing, 4)}")
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, key in names.items():
        if key not in kept:
            state[key] = _published_form(published["layout"], name, model[name])
    state.update(kept)
    return state


def tower_of(model: Mapping[str, Tensor], published: Mapping) -> Tower:
    """The tower of a checkpoint of ours."""
    tower = recognise_tower(tower_to_published(model, published))
    assert tower is not None, "it was recognised when it was converted"
    return tower


def tower_keys(tower: Tower) -> dict[str, object]:
    """Configuration keys for a converted tower."""
    return tower.config | {"MODEL.NEW_WEIGHTS": '["heads.*"]'}


def _published_form(layout: str, name: str, tensor: Tensor) -> Tensor:
    return swin.to_published(name, tensor) if layout == "solider" else tensor


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())
