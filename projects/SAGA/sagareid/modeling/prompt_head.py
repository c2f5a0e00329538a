"""Identity prompts learned against frozen image features (CLIP-ReID's first stage, the method's too).

B images, E joint width, W text width, C identities.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from ..config import tower_widths
from ..structures import CLIPFeatures
from ..values import needs_cached
from .clip import towers
from .clip.text import PromptLearner, TextEncoder
from .fast.repeats import each_once
from .heads import complete_state, frozen_text_encoder, needs_of_tower, prompts_problem

__all__ = ["PromptHead"]


@REID_HEADS_REGISTRY.register()
class PromptHead(nn.Module):
    """One prompt per identity, trained by supervised contrast of images with the text features of their identities
    (`terms.SupConLoss`).

    What later stages need of it is kept in two buffers that are brought up to date whenever the state is read:
    `text_features` (C, E) of all identities, and `prompt_context`, the mean identity context.
    """

    gives = ("proj", "prompt_text")

    @configurable
    def __init__(self, *, prompts: PromptLearner, text_encoder: TextEncoder | None, feat_dim: int, embed_dim: int):
        """feat_dim: D of the class token. embed_dim: E."""
        super().__init__()
        self.prompts, self.text_encoder = prompts, text_encoder
        self.feat_dim, self.embed_dim = feat_dim, embed_dim
        self.register_buffer("text_features", torch.zeros(prompts.num_classes, embed_dim))
        self.register_buffer("prompt_context", torch.zeros(prompts.context_identity.shape[1:]))
        complete_state(self, "refresh")

    @staticmethod
    def add_keys(cfg: CfgNode) -> None:
        cfg.MODEL.PROMPT = CfgNode()
        # Context slots of an identity that learn, of the 16 before "person."; the others stay at zero.
        cfg.MODEL.PROMPT.NUM_CONTEXT = 8

    @classmethod
    def check(cls, cfg: CfgNode) -> Iterator[str]:
        yield from needs_of_tower(cls, cfg, "cls", "proj")
        yield from prompts_problem(cfg)
        if cfg.MODEL.HEADS.NECK_BIAS:
            yield (
                "MODEL.HEADS.NECK_BIAS is True, and PromptHead has no neck: set it in the OPTS of the STAGES whose "
                "head has one, as configs/SAGA/ablations/neck_bias.yml does"
            )
        yield from needs_cached(cls, cfg, "cls", "proj")
        if problem := PromptLearner.wrong_slots(cfg.MODEL.PROMPT.NUM_CONTEXT):
            yield problem

    @classmethod
    def from_config(cls, cfg):
        encoder, template, _ = frozen_text_encoder(cfg)
        return {
            "prompts": PromptLearner(
                template_embedding=template,
                num_classes=cfg.MODEL.HEADS.NUM_CLASSES,
                num_context=cfg.MODEL.PROMPT.NUM_CONTEXT,
            ),
            "text_encoder": encoder,
            "feat_dim": tower_widths(cfg)["cls"],
            "embed_dim": towers.clip_dims(cfg.MODEL.CLIP.NAME).embed_dim,
        }

    @property
    def learns_from(self) -> set[str]:
        """No output of the backbone: images are constants here."""
        return set()

    @staticmethod
    def feature_parts(cfg: CfgNode) -> list[str]:
        return ["cls", "proj"]

    @property
    def feature_layout(self) -> dict[str, int]:
        return {"cls": self.feat_dim, "proj": self.embed_dim}

    @torch.no_grad()
    def refresh(self, block: int = 256) -> None:
        """Bring the buffers up to date with the prompts, `block` identities at a time, in float32."""
        if self.text_encoder is None:
            return
        self.prompt_context.copy_(self.prompts.context_identity.mean(0))
        labels = torch.arange(self.prompts.num_classes, device=self.text_features.device)
        with torch.autocast(labels.device.type, enabled=False):
            for part in labels.split(block):
                self.text_features[part] = self.text_encoder(self.prompts(part))

    def text(self, labels: Tensor) -> Tensor:
        """(B,) identities to (B, E) text features."""
        return each_once(lambda identities: self.text_encoder(self.prompts(identities)), labels)

    def forward(self, features: CLIPFeatures, targets: Tensor | None = None):
        """Training: the batch's images and texts in the joint space (`gives`). Evaluation: (B, D+E) CLIP's own class
        token and its projection."""
        if not isinstance(features, CLIPFeatures) or features.proj is None:
            raise TypeError(
                "PromptHead needs CLIP's joint space: use build_clip_vit_backbone with MODEL.BACKBONE.OUTPUT tokens"
            )
        if not self.training:
            return torch.cat([features.cls, features.proj], dim=1).float()
        if self.text_encoder is None:
            raise ValueError("PromptHead trains with the text tower: build the model with text_tower=True")
        return {"proj": features.proj, "prompt_text": self.text(targets)}
