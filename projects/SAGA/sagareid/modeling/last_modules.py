"""The end of a convolutional backbone, left to the head.

MODEL.BACKBONE.LAST_MODULES names modules of a backbone that run one after the other at its end, such as OSNet's conv4.1
and conv5. The head then reads the map that goes into the first of them.

B images, D width, (h, w) map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone

__all__ = ["LastModules", "input_of"]


def input_of(backbone: nn.Module, name: str, images: Tensor) -> Tensor:
    """What goes into a module of a backbone, by its name.

    Raises:
        ValueError: there is no such module, or the backbone does not call it with one tensor.
    """
    seen: list[Any] = []
    handle = module_of(backbone, name).register_forward_pre_hook(lambda module, given: seen.append(given))
    try:
        backbone(images)
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0]) != 1 or not isinstance(seen[0][0], Tensor):
        raise ValueError(
            f"MODEL.BACKBONE.LAST_MODULES: {type(backbone).__name__} does not call {name} once with one tensor; name "
            "modules at its end that run one after the other"
        )
    return seen[0][0]


def module_of(backbone: nn.Module, name: str) -> nn.Module:
    """A module of a backbone by its name.

    Raises:
        ValueError: there is none; the message has those at the end.
    """
    modules = dict(backbone.named_modules())
    if name not in modules or not name:
        shown = [n for n in modules if n and n.count(".") < 2][-6:]
        raise ValueError(
            f"MODEL.BACKBONE.LAST_MODULES names {name!r}, which {type(backbone).__name__} does not have; its last ones "
            f"are {', '.join(shown)}"
        )
    return modules[name]


class LastModules(nn.Module):
    """A trained copy of the last modules of a backbone.

    Batch norms keep the statistics that they come with, as those of the frozen backbone, and nothing is dropped: the
    copy starts out as what the backbone computes, exactly.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        """modules: by their names in the backbone, in order."""
        super().__init__()
        self.names, self.copies = list(modules), nn.ModuleList(modules.values())

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LastModules | None:
        """Those of MODEL.BACKBONE.LAST_MODULES, with random weights; None where it names none."""
        names = cfg.MODEL.BACKBONE.LAST_MODULES
        if not names:
            return None
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.BACKBONE.PRETRAIN = False
        backbone = build_backbone(plain)
        return cls({name: module_of(backbone, name) for name in names})

    @torch.no_grad()
    def initialize(self, backbone: nn.Module) -> None:
        """Take over the backbone's own weights and statistics."""
        for copy, name in zip(self.copies, self.names):
            copy.load_state_dict(module_of(backbone, name).state_dict())

    def train(self, mode: bool = True) -> LastModules:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """The map (B, D', h', w') that goes into the first to the one (B, D, h, w) that comes out of the last."""
        for module in self.copies:
            x = module(x)
        return x
