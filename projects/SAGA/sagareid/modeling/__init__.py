"""Backbone, heads and meta-architecture; importing registers them with FastReID."""

from .backbones.clip import CLIPBackbone, build_clip_vit_backbone
from .baseline_heads import CLSHead, PatchPoolHead
from .meta_arch import SAGABaseline
from .prompt_head import PromptHead
from .saga_head import SAGAHead

__all__ = [
    "CLIPBackbone",
    "CLSHead",
    "PatchPoolHead",
    "PromptHead",
    "SAGABaseline",
    "SAGAHead",
    "build_clip_vit_backbone",
]
