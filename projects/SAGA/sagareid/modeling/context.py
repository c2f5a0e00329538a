"""A gate on pooling weights that sees the whole picture: trained copies of the image tower's blocks. Not of the paper.

A head that weighs each patch by itself cannot tell the person of the crop from one who stands in front: both are made
of clothes and skin. In these blocks patches attend to one another. What is pooled stays what it was: the gate says how
much of each patch counts.

B images, N patches, D token width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode

from ..structures import CLIPFeatures
from ..values import needs_cached, within
from .clip import towers
from .heads import needs_of_tower

__all__ = ["ContextGate"]


class ContextGate(nn.Module):
    """g_n = sigmoid(v . LN(Z_n) + b), Z the patches behind copies of the tower's blocks after the token layer.

    The blocks start as the tower's own and v at zero, so the gate is first the same for all patches, which leaves the
    pooling as it is without one.
    """

    def __init__(self, blocks: nn.ModuleList, width: int):
        """blocks: of an image tower; their weights are taken from the backbone by `initialize`. width: D."""
        super().__init__()
        self.blocks, self.norm, self.gate = blocks, nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)

    @classmethod
    def check(cls, head: type, cfg: CfgNode) -> Iterator[str]:
        """For `check` of a head that may have them."""
        yield from within(cfg, "MODEL.HEADS.CONTEXT_BLOCKS", 0)
        count, layers = cfg.MODEL.HEADS.CONTEXT_BLOCKS, sorted(set(cfg.MODEL.CLIP.TOKEN_LAYERS))
        if count <= 0:
            return
        yield from needs_of_tower(head, cfg, "proj")  # CLIP's blocks come with it
        yield from needs_cached(head, cfg, "patches", "layer_cls")
        if len(layers) > 1:
            yield f"MODEL.HEADS.CONTEXT_BLOCKS follows one token layer, and MODEL.CLIP.TOKEN_LAYERS has {layers}"
        depth = towers.clip_dims(cfg.MODEL.CLIP.NAME).layers
        if layers and count > depth - layers[-1]:
            yield (
                f"MODEL.HEADS.CONTEXT_BLOCKS is {count}, and {depth - min(layers[-1], depth)} block(s) of "
                f"{cfg.MODEL.CLIP.NAME} follow MODEL.CLIP.TOKEN_LAYERS {layers}: name fewer, or an earlier layer"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ContextGate | None:
        """The gate of MODEL.HEADS.CONTEXT_BLOCKS, its blocks with random weights; None for 0."""
        count = cfg.MODEL.HEADS.CONTEXT_BLOCKS
        if not count:
            return None
        return cls(towers.build_last_blocks(cfg.MODEL.CLIP.NAME, count)[0], cfg.MODEL.BACKBONE.FEAT_DIM)

    @torch.no_grad()
    def initialize(self, backbone: nn.Module) -> None:
        """Start from the blocks of an image tower (`CLIPBackbone`) that come after its token layer."""
        for number, block in enumerate(self.blocks, start=backbone.token_layers[-1] + 1):
            block.load_state_dict(backbone.block(number).state_dict())

    def forward(self, features: CLIPFeatures) -> Tensor:
        """(B, N) float32, in 0..1."""
        if features.layer_cls is None:
            raise TypeError(
                "MODEL.HEADS.CONTEXT_BLOCKS read the class token of the token layer: add layer_cls to CACHE.FIELDS"
            )
        features = features.float()  # a cache may hold float16, which autocast to bfloat16 does not join
        x: Tensor = torch.cat([features.layer_cls[:, -1:], features.patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.gate(self.norm(x[:, 1:]))[..., 0].float().sigmoid()
