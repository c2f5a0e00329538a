"""The model that the pretraining trains: open_clip's CLIP, a head for its patch tokens, and the file that ships.

Shapes: B batch, N patches, n patches kept, D vision width, E joint width, R regions, L text length, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import write_atomically
from ..hardware import bfloat16_instructions
from .captioned import Vocabulary


class _KeptPatches(nn.Module):
    """Takes the place of open_clip's patch dropout: keeps the patches that `kept` numbers."""

    kept: Tensor | None = None  # (B, n) patch numbers; None keeps all

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            return x
        index = self.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :1], x[:, 1:].gather(1, index)], dim=1)


class LocalHead(nn.Module):
    """Projects penultimate patch tokens into the joint space, pooled by a gate or over a given region."""

    def __init__(self, width: int, embed_dim: int, logit_scale: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1)
        self.proj = nn.Linear(width, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.full((2,), math.log(logit_scale)))  # pooled, part

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B,N,D) -> (B,E), unit length; a softmax over the patches gates the mean."""
        tokens = self.norm(tokens)
        return F.normalize(self.proj((self.gate(tokens).softmax(1) * tokens).sum(1)).float(), dim=-1)

    def region(self, tokens: Tensor, region: Tensor) -> Tensor:
        """Tokens (B,N,D) and regions (B,R,N) bool -> (B,R,E), unit length; an empty region gives the zero vector."""
        weight = region.to(tokens.dtype) / region.sum(-1, keepdim=True).clamp(min=1)
        return F.normalize(self.proj(weight @ self.norm(tokens)).float(), dim=-1)


class PretrainingModel(nn.Module):
    """open_clip's model with the token table of a vocabulary alone, and the local head.

    Args:
        logit_scale: the initial factor of the similarities in every loss.

    Raises:
        FileNotFoundError: there is no model configuration at `config_path`.
    """

    def __init__(self, config_path: Path, vocabulary: Vocabulary, logit_scale: float):
        super().__init__()
        self.bfloat16 = bool(bfloat16_instructions())  # without them bfloat16 is emulated, many times slower
        self.clip = create_clip(config_path)
        self.clip.visual.patch_dropout = _KeptPatches()
        table = self.clip.token_embedding.weight.detach()[vocabulary.ids].clone()
        self.clip.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        with torch.no_grad():
            self.clip.logit_scale.fill_(math.log(logit_scale))
        visual = self.clip.visual
        self.local = LocalHead(visual.conv1.out_channels, visual.output_dim, logit_scale)

    def image(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) -> joint features (B,E), unit length, and penultimate patch tokens (B,n,D) of the kept patches."""
        self.clip.visual.patch_dropout.kept = kept
        out = self.clip.visual.forward_intermediates(images, indices=[token_block(self.clip)], output_fmt="NLC")
        return F.normalize(out["image_features"].float(), dim=-1), out["image_intermediates"][0]

    def text(self, tokens: Tensor) -> Tensor:
        """(B,L) token numbers of the vocabulary -> (B,E), unit length.

        The encoder is causal, so that cutting the context to L changes nothing.
        """
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        return F.normalize((x[torch.arange(len(tokens)), tokens.argmax(1)] @ clip.text_projection).float(), dim=-1)


def create_clip(config_path: Path) -> nn.Module:
    """A randomly initialised open_clip model from a configuration file; the model's name is the file's stem."""
    if not Path(config_path).is_file():
        raise FileNotFoundError(f"{config_path}: no such model configuration; expected an open_clip .json file")
    open_clip.add_model_config(config_path)
    return open_clip.create_model(Path(config_path).stem, load_weights=False)


def token_block(clip: nn.Module) -> int:
    """Number (from 0) of the block whose patch tokens the method reads: the penultimate."""
    return clip.visual.transformer.layers - 2


def export(model: PretrainingModel, vocabulary: Vocabulary, path: Path, metadata: dict[str, str]) -> None:
    """Write the fp16 weights in open_clip's names; of the token table only the trained rows.

    `token_embedding.trained_ids` (V,) int32 and `token_embedding.trained_rows` (V,width) fp16 stand for
    `token_embedding.weight`, whose other rows are zero.
    """
    state = {
        k: v.detach().to(torch.float16).contiguous()
        for k, v in model.clip.state_dict().items()
        if k != "token_embedding.weight"
    }
    state["token_embedding.trained_ids"] = vocabulary.ids.to(torch.int32)
    state["token_embedding.trained_rows"] = model.clip.token_embedding.weight.detach().to(torch.float16).contiguous()
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt", **metadata}))


def expand_token_table(state: dict[str, Tensor], vocab_size: int = 49408) -> dict[str, Tensor]:
    """`state` of an exported file with `token_embedding.weight` (vocab_size, width) in place of the trained rows."""
    state = dict(state)
    ids, rows = state.pop("token_embedding.trained_ids"), state.pop("token_embedding.trained_rows")
    table = torch.zeros(vocab_size, rows.shape[1], dtype=rows.dtype)
    table[ids.long()] = rows
    state["token_embedding.weight"] = table
    return state
