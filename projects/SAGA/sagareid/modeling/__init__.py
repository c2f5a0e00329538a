"""Backbone, heads and meta-architecture; importing registers them with FastReID."""

from .backbones.clip import CLIPBackbone, build_clip_vit_backbone
from .backbones.timm import TimmBackbone, build_timm_backbone
from .backbones.tower import ImageTower
from .baseline_heads import CLSHead, PatchPoolHead
from .meta_arch import SAGABaseline
from .prompt_head import PromptHead
from .saga_head import SAGAHead

__all__ = [
    "CLIPBackbone",
    "CLSHead",
    "ImageTower",
    "PatchPoolHead",
    "PromptHead",
    "SAGABaseline",
    "SAGAHead",
    "TimmBackbone",
    "build_clip_vit_backbone",
    "build_timm_backbone",
]
