"""How a consumer turns the pixels of a crop into the numbers that it feeds.

B images, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["IMAGENET", "Pixels"]


@dataclass(frozen=True)
class Pixels:
    """A consumer feeds (scale * pixel - mean) / std, with pixels in 0..255.

    Attributes:
        channels: "RGB" or "BGR", the order that is fed; mean and std are in the same order.
    """

    channels: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.channels not in ("RGB", "BGR"):
            raise ValueError(f"channels are {self.channels!r}; expected RGB or BGR")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0 or self.scale <= 0:
            raise ValueError(f"{self}: expected three means, three positive deviations and a positive scale")

    @property
    def raw(self) -> bool:
        """Whether RGB in 0..255 is fed as it is."""
        return self == Pixels()

    def feed(self, images: Tensor) -> Tensor:
        """What the consumer feeds for (B, 3, H, W) RGB in 0..255."""
        images = images.flip(1) if self.channels == "BGR" else images
        return (images * self.scale - _column(self.mean, images)) / _column(self.std, images)

    def undo(self, fed: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..255 of what the consumer feeds: one product and one sum, or nothing."""
        if any(self.mean) or self.std != (1.0, 1.0, 1.0) or self.scale != 1.0:
            slope, offset = ([v / self.scale for v in values] for values in (self.std, self.mean))
            fed = fed * _column(slope, fed) + _column(offset, fed)
        return fed[:, [2, 1, 0]] if self.channels == "BGR" else fed

    def describe(self) -> str:
        """The same in words."""
        if self.raw:
            return "RGB in 0..255"
        pixel = "pixel" if self.scale == 1 else "pixel / 255" if self.scale == 1 / 255 else f"{self.scale:g} * pixel"
        if any(self.mean) or self.std != (1.0, 1.0, 1.0):
            pixel = f"({pixel} - {list(self.mean)}) / {list(self.std)}"
        return f"{self.channels}, {pixel}"

    def as_dict(self) -> dict[str, Any]:
        """The entry of a file's metadata; `Pixels.read` reads it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Pixels:
        """As written by `as_dict`.

        Raises:
            ValueError: it is not.
        """
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"no description of pixels: {value!r} ({error})") from error


IMAGENET = Pixels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _column(values: Any, like: Tensor) -> Tensor:
    """(3, 1, 1)."""
    return torch.tensor(tuple(values), dtype=like.dtype, device=like.device).view(3, 1, 1)
