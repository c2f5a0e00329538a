"""What a reader of a foreign layout gives: tensors by our names, what was left out and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import first_few

__all__ = ["ForeignError", "Tower", "below", "checked_names", "grid_of", "left_out_by", "module_prefix", "prefix_of"]

POSITIONS = "pos_embed"
CLASSIFIER = "the classifier of its pre-training"


class ForeignError(ValueError):
    """A file whose layout is known, and that is not whole or holds more than the layout."""


@dataclass
class Tower:
    """A tower of another project.

    Attributes:
        layout: its name in `LAYOUTS`. title: the same in words.
        state: tensors by name in the module that computes it here.
        published: name here -> name in the file.
        left_out: name in the file -> why its tensor has no place here.
        builders: the values of MODEL.BACKBONE.NAME whose module computes it, the best first.
        config: configuration keys that the weights determine.
        notes: what a user should know, one sentence each.
        inexact: builder -> what its module computes otherwise.
        mode: how the published code interpolates a position embedding.
    """

    layout: str
    title: str
    state: dict[str, Tensor]
    published: dict[str, str]
    left_out: dict[str, str]
    builders: tuple[str, ...]
    config: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    inexact: dict[str, str] = field(default_factory=dict)
    mode: str = "bilinear"

    @property
    def is_timms(self) -> bool:
        """Whether timm reads the file by itself: its own names, at most a classifier beside them, a square of patches
        (timm takes every position embedding for one)."""
        own = all(name == key for name, key in self.published.items()) and set(self.left_out.values()) <= {CLASSIFIER}
        patches = self.state[POSITIONS].shape[1] - 1 if POSITIONS in self.state else 0
        return own and math.isqrt(patches) ** 2 == patches

    def check_whole(self, file: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ForeignError: a tensor of the file is neither loaded nor left out.
        """
        if strange := sorted(set(file) - set(self.published.values()) - set(self.left_out)):
            raise ForeignError(
                f"{self.title}, but with {len(strange)} tensors that this layout does not have: "
                f"{first_few(strange, 6)}. It is of another version or an extended model; nothing was loaded"
            )

    def wants(self) -> str:
        """The configuration keys that it determines, in a line."""
        return ", ".join(f"{key} {value}" for key, value in self.config.items())

    def describe(self) -> str:
        """What was recognised, loaded and left out, in a line."""
        text = f"{self.title}: {len(self.state)} tensors of the tower"
        reasons: dict[str, list[str]] = {}
        for key, why in self.left_out.items():
            reasons.setdefault(why, []).append(key)
        for why, keys in reasons.items():
            text += f"; left out {first_few(keys, 3)} ({why})"
        return text

    def fitted(self, grid: tuple[int, int] | None) -> dict[str, Tensor]:
        """The tensors with the position embedding of a (h, w) grid of patches, interpolated as the published code does.

        Raises:
            ForeignError: its own grid is neither square nor twice as high as wide.
        """
        if grid is None or POSITIONS not in self.state:
            return self.state
        table = self.state[POSITIONS]
        return self.state | {POSITIONS: resampled(table, grid, self.mode)}


def resampled(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """(1, 1+h*w, D) position embedding of another grid: the class token's stays, the patches' are interpolated.

    The source grid is square, as of ImageNet's models, or twice as high as wide, as of those pre-trained at 256x128
    (PRETRAIN_HW_RATIO in vit_pytorch.py of TransReID-SSL). As many patches as asked for are taken as they are.

    Raises:
        ForeignError: neither.
    """
    patches = table.shape[1] - 1
    if patches == grid[0] * grid[1]:
        return table
    for ratio in (1, 2):
        width = math.isqrt(patches // ratio)
        if ratio * width * width == patches:
            source = (ratio * width, width)
            break
    else:
        raise ForeignError(
            f"its position embedding has {patches} patches, which is neither the {grid[0]}x{grid[1]} of "
            "INPUT.SIZE_TRAIN and STRIDE_SIZE, nor a square, nor twice as high as wide: set both as it was trained"
        )
    rows = table[:, 1:].float().transpose(1, 2).reshape(1, -1, *source)
    rows = F.interpolate(rows, size=grid, mode=mode, align_corners=False)
    return torch.cat([table[:, :1].float(), rows.flatten(2).transpose(1, 2)], dim=1)


def prefix_of(state: Iterable[str], probe: str) -> str | None:
    """What stands before `probe` in the one name that ends with it ("base." or nothing); None where none does."""
    found = sorted((key.removesuffix(probe) for key in state if key == probe or key.endswith(f".{probe}")), key=len)
    return found[0] if found else None


def below(state: Iterable[str], prefix: str) -> list[str]:
    """The names below a prefix, without it."""
    return [key[len(prefix) :] for key in state if key.startswith(prefix)]


def checked_names(title: str, names: Iterable[str], state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """name -> name in the file, for the names that a layout must have.

    Raises:
        ForeignError: some are missing.
    """
    pairs = {name: prefix + name for name in names}
    if missing := [key for key in pairs.values() if key not in state]:
        raise ForeignError(
            f"{title}, but {len(missing)} of its {len(pairs)} tensors are missing: {first_few(missing, 6)}. The file "
            "was cut off or edited; nothing was loaded"
        )
    return pairs


def left_out_by(reasons: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    """key -> why it has no place, for those whose start a regular expression of `reasons` matches."""
    out = {}
    for key in keys:
        for pattern, why in reasons.items():
            if re.match(pattern, key):
                out[key] = why
                break
    return out


def module_prefix(names: Iterable[str], tower: Tower) -> str | None:
    """Below which of a model's `names` the tower's module is ("backbone.model."); None where it is nowhere."""
    names = set(names)
    probe = next(iter(tower.state))
    for prefix in sorted((n.removesuffix(probe) for n in names if n == probe or n.endswith(f".{probe}")), key=len):
        if prefix.startswith("backbone.") and all(prefix + key in names for key in tower.state):
            return prefix
    return None


def grid_of(module: nn.Module) -> tuple[int, int] | None:
    """(h, w) of the patches that a module's position embedding is made for; None where it has none."""
    for child in module.modules():
        if hasattr(child, "grid_size"):  # timm's PatchEmbed
            return tuple(child.grid_size)
        if hasattr(child, "num_y") and hasattr(child, "num_x"):  # FastReID's
            return child.num_y, child.num_x
    return None
