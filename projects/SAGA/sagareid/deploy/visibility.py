"""How much of the person is seen: a small network that looks at the crop itself, kept beside a run.

It reads pixels, not what a backbone makes of them: of two people, one in front of the other, a tower that was trained
to recognise people keeps too little of which is which (docs/visibility.md has the numbers). So it serves every model.

B images, (H, W) their size, (h, w) the grid of the read-out, C its channels.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import parse_json, write_atomically
from ..weights import read_file
from .options import VISIBILITY

__all__ = ["BANDS", "GRID", "Readout", "Visibility", "at_size", "bands", "load_readout", "read_about"]

BANDS = 6  # horizontal, of equal height, from the top
SIZE = (96, 48)  # (height, width) that crops are looked at in
GRID = (SIZE[0] // 8, SIZE[1] // 8)  # (h, w): a place is 8 x 8 pixels of SIZE
KIND = "pixels"  # of read-out, in its file
LEAST = 0.02  # of a band's patches: where less of the person is expected, a share of it says nothing


class Visibility(NamedTuple):
    """Shares of people that are seen, 0..1.

    Attributes:
        crop: (n,) of the whole person.
        sixths: (n, 6) of what of the person belongs into each horizontal sixth of the crop, from the top.
    """

    crop: Tensor
    sixths: Tensor


def bands(height: int) -> Tensor:
    """(BANDS, h) how much of each row of a grid lies in each band."""
    edges = torch.arange(height + 1) / height * BANDS
    low, high = torch.arange(BANDS)[:, None], torch.arange(1, BANDS + 1)[:, None]
    overlap = torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)
    return overlap.clamp(min=0) * height / BANDS


class Readout(nn.Module):
    """Of each place of a crop, how much of it shows the person, and how much would if nothing stood in front.

    Three steps of two 3 x 3 convolutions each halve the resolution, then places get a learned offset (a box is around
    the person asked for), and two residual convolutions look at what is beside.
    """

    def __init__(self, *, channels: int = 32):
        super().__init__()
        self.channels = channels
        widths = (3, channels, 2 * channels, 3 * channels)
        steps = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (_convolution(before, after, 2), _convolution(after, after))
        ]
        last = widths[-1]
        self.steps = nn.Sequential(*steps, _convolution(last, last))
        self.place = nn.Parameter(torch.zeros(last, *GRID))
        self.mix = nn.ModuleList([_convolution(last, last) for _ in range(2)])
        self.out = nn.Conv2d(last, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..255 of any size to (B, 3, h, w) logits: seen, there, and something in front.

        The last serves training alone.
        """
        x = self.steps(at_size(images) / 255 - 0.5) + self.place
        for layer in self.mix:
            x = x + layer(x)
        return self.out(x)

    def visibility(self, images: Tensor) -> Tensor:
        """(B, 1 + BANDS) of `Visibility`, the crop first."""
        shares = self(images)[:, :2].float().sigmoid().sum(3)  # (B, 2, h)
        parts = shares @ bands(GRID[0]).to(shares).T  # (B, 2, BANDS)
        seen, there = torch.cat([parts.sum(2, keepdim=True), parts], dim=2).unbind(1)
        least = LEAST * GRID[0] * GRID[1] / BANDS
        return (seen.clamp(min=0) + 1e-6).div(there.clamp(min=least)).clamp(max=1)

    def save(self, path: str | Path, about: dict[str, Any]) -> None:
        """Write weights and what they are about (JSON), whole or not at all."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        entries = {"sagareid": json.dumps(about | {"kind": KIND, "channels": self.channels})}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, entries))


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def at_size(images: Tensor) -> Tensor:
    """(B, 3, H, W) of any size as (B, 3, *SIZE) float."""
    images = images.float()
    if tuple(images.shape[2:]) == SIZE:
        return images
    return nn.functional.interpolate(images, size=SIZE, mode="bilinear", antialias=True)


def read_about(path: str | Path) -> dict[str, Any]:
    """What a file of a read-out says about itself. Errors as of `load_readout`."""
    with safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("sagareid", "{}")
    return parse_json(text, path, remedy="Run tools/fit_visibility.py again")


def load_readout(path: str | Path) -> Readout:
    """The read-out of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {VISIBILITY} in {path.parent}: how much of a person is seen takes a read-out of its own. "
            "tools/fit_visibility.py makes it; one of another run may be copied here"
        )
    state, about = read_file(path), read_about(path)
    if about.get("kind") != KIND:
        found = "an earlier version's, which reads tokens" if "grid" in about else "none of tools/fit_visibility.py"
        raise ValueError(f"{path} is {found}; move it away, and make one with tools/fit_visibility.py")
    readout = Readout(channels=about["channels"])
    readout.load_state_dict(state)
    return readout.eval()
