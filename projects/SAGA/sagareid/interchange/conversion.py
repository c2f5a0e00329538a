"""What a conversion gives, and the error of one that cannot be done."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..modeling.foreign.tower import Tower


class ConversionError(ValueError):
    """A file that cannot be converted; the message is one line and says why."""


@dataclass
class Conversion:
    """A checkpoint in our form.

    Attributes:
        layout: what the file was, one of `layouts.TITLES` or of `modeling.foreign.LAYOUTS`.
        head: "prompts", "cls" or "saga", the head whose weights `model` holds; "tower" for a backbone alone.
        model: state dict of SAGABaseline.
        published: what our model does not hold (see `convert`); empty for a checkpoint of ours.
        notes: what a user should know, one sentence each.
        made_for: ((H, W), stride) after `resize`.
        clip_name: MODEL.CLIP.NAME of a checkpoint that says so; empty for the others.
        quick_gelu: whether it was trained with QuickGELU, the only activation that the published code knows; None for
            CLIP's weights that do not say.
        tower: of another project, where it is one.
    """

    layout: str
    head: str
    model: dict[str, Tensor]
    published: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    made_for: tuple[tuple[int, int], int] | None = None
    clip_name: str = ""
    quick_gelu: bool | None = True
    tower: Tower | None = None
