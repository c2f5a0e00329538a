"""How much of the person is seen: a small read-out of the patch tokens, kept beside a run.

B images, N patches in a (h, w) grid, D token width, C channels of the read-out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import parse_json, write_atomically
from ..structures import CLIPFeatures
from ..weights import read_file
from .options import VISIBILITY

__all__ = ["BANDS", "Readout", "Visibility", "bands", "last_patches", "load_readout"]

BANDS = 6  # horizontal, of equal height, from the top
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


def last_patches(features: CLIPFeatures) -> Tensor:
    """(B, N, D) patch tokens of the deepest token layer, in float32."""
    return features.patches.chunk(features.num_layers, dim=1)[-1].float()


class Readout(nn.Module):
    """Of each patch, how much of it shows the person, and how much would if nothing stood in front.

    A patch alone cannot tell the person from another who stands in front: so tokens are narrowed to C channels, get a
    place, and look at their neighbours in two residual 3 x 3 convolutions.
    """

    def __init__(self, *, width: int, grid: tuple[int, int], channels: int = 64):
        super().__init__()
        self.width, self.grid, self.channels = width, tuple(grid), channels
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.narrow = nn.Linear(width, channels)
        self.place = nn.Parameter(torch.zeros(channels, *grid))
        self.mix = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Conv2d(channels, 2, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D) to (B, 2, h, w) logits: seen, and there."""
        x = self.narrow((patches - self.mean) / self.std).transpose(1, 2).unflatten(2, self.grid) + self.place
        for layer in self.mix:
            x = x + self.dropout(nn.functional.gelu(layer(x)))
        return self.out(x)

    def visibility(self, features: CLIPFeatures) -> Tensor:
        """(B, 1 + BANDS) of `Visibility`, the crop first."""
        shares = self(last_patches(features)).sigmoid().sum(3)  # (B, 2, h)
        parts = shares @ bands(self.grid[0]).to(shares).T  # (B, 2, BANDS)
        seen, there = torch.cat([parts.sum(2, keepdim=True), parts], dim=2).unbind(1)
        least = LEAST * self.grid[0] * self.grid[1] / BANDS
        return (seen.clamp(min=0) + 1e-6).div(there.clamp(min=least)).clamp(max=1)

    def save(self, path: str | Path, about: dict[str, Any]) -> None:
        """Write weights and what they are about (JSON), whole or not at all."""
        own = {"width": self.width, "grid": list(self.grid), "channels": self.channels}
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        entries = {"sagareid": json.dumps(about | own)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, entries))


def load_readout(path: str | Path, checkpoint_sha256: str) -> Readout:
    """The read-out of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another kind, or of another checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {VISIBILITY} in {path.parent}: how much of a person is seen takes a read-out of this model's tokens. "
            "tools/fit_visibility.py makes it"
        )
    state = read_file(path)
    with safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("sagareid", "{}")
    about = parse_json(text, path, remedy="Run tools/fit_visibility.py again")
    if "checkpoint_sha256" not in about:
        raise ValueError(f"{path} is no read-out of tools/fit_visibility.py; move it away, and make one")
    if about["checkpoint_sha256"] != checkpoint_sha256:
        raise ValueError(
            f"{path} is of checkpoint {about['checkpoint_sha256'][:12]}, this one is {checkpoint_sha256[:12]}: it "
            "reads the tokens of another model. Run tools/fit_visibility.py again"
        )
    readout = Readout(width=about["width"], grid=tuple(about["grid"]), channels=about["channels"])
    readout.load_state_dict(state)
    return readout.eval()
