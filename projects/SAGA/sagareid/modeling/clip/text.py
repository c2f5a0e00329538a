"""CLIP's text side: the transformer over prompt embeddings, and the prompts that are learned.

B prompts, T=77 positions, L=20 positions up to the end of text, W text width, E joint width, n_id identities.

The prompt template is sixteen context slots followed by "person."; the end-of-text token stands at position 19.
The text transformer is causal and only that position is read, so positions 20..76 never matter and are not computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import fast
from ..fast.blocks import block_at_row

__all__ = [
    "CONTEXT_SLOTS",
    "END_OF_TEXT",
    "PLACEHOLDER",
    "PROMPT_LENGTH",
    "PromptLearner",
    "PromptTemplate",
    "TextEncoder",
    "template_token_ids",
]

CONTEXT_SLOTS = 16
PROMPT_LENGTH = 1 + CONTEXT_SLOTS + 3  # start of text, context, "person", ".", end of text
# CLIP's byte-pair vocabulary; "x" fills the context slots
_START, PLACEHOLDER, _PERSON, _FULL_STOP, END_OF_TEXT = 49406, 343, 2533, 269, 49407


def template_token_ids() -> list[int]:
    """Token ids of the template up to and including the end of text, length `PROMPT_LENGTH`."""
    return [_START, *[PLACEHOLDER] * CONTEXT_SLOTS, _PERSON, _FULL_STOP, END_OF_TEXT]


class TextEncoder(nn.Module):
    """Prompt embeddings to text features with CLIP's own text transformer (open_clip's module, not a copy of it)."""

    def __init__(
        self, *, transformer: nn.Module, positional_embedding: Tensor, ln_final: nn.Module, projection: Tensor
    ):
        """
        Args:
            transformer: open_clip `Transformer` of width W.
            positional_embedding: (T, W).
            projection: (W, E).
        """
        super().__init__()
        self.transformer = transformer
        self.positional_embedding = nn.Parameter(positional_embedding.detach().clone())
        self.ln_final = ln_final
        self.text_projection = nn.Parameter(projection.detach().clone())

    @property
    def output_dim(self) -> int:
        return self.text_projection.shape[1]

    def forward(self, prompts: Tensor, end: int = PROMPT_LENGTH - 1) -> Tensor:
        """
        Args:
            prompts: (B, L, W) token embeddings, L from end+1 to T. Rows after `end` cannot change the result and are
                cut.
            end: position of the end-of-text token.

        Returns:
            (B, E) text features, not normalised.
        """
        length = end + 1
        x = prompts[:, :length] + self.positional_embedding[:length].to(prompts.dtype)
        mask = torch.full((length, length), -torch.inf, device=x.device, dtype=x.dtype).triu_(1)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=mask)
        row = block_at_row(last, x, end) if fast.enabled() else last(x, attn_mask=mask)[:, end]
        return self.ln_final(row) @ self.text_projection


class PromptTemplate(nn.Module):
    """The fixed ends of a prompt: embeddings of the start of text and of "person." with the end of text."""

    def __init__(self, template_embedding: Tensor):
        """template_embedding: (PROMPT_LENGTH, W), embeddings of `template_token_ids()`."""
        super().__init__()
        self.register_buffer("prefix", template_embedding[:1].detach().clone())
        self.register_buffer("suffix", template_embedding[1 + CONTEXT_SLOTS :].detach().clone())

    def forward(self, context: Tensor) -> Tensor:
        """(B, CONTEXT_SLOTS, W) context to (B, PROMPT_LENGTH, W) prompts."""
        n = context.shape[0]
        return torch.cat([self.prefix.expand(n, -1, -1), context, self.suffix.expand(n, -1, -1)], dim=1)


class PromptLearner(nn.Module):
    """One learnable prompt per identity: context_identity, then modality and platform context or zeros.

    The published code trains the identity context alone ("1a": modality and platform slots are literal zeros).
    Its second mode ("1b") fills them: per view where views are given, with the mean of both entries where not.
    """

    MODES = ("identity", "modality")

    def __init__(self, *, template_embedding: Tensor, num_classes: int, num_context: int, num_blank: int, mode: str):
        """
        Raises:
            ValueError: context and blank slots do not fill the template, or an unknown mode.
        """
        super().__init__()
        if problem := self.wrong_slots(num_context, num_blank):
            raise ValueError(problem)
        if mode not in self.MODES:
            raise ValueError(f"MODEL.PROMPT.MODE is {mode!r}; expected identity or modality")
        width = template_embedding.shape[1]
        self.mode = mode
        self.template = PromptTemplate(template_embedding)
        self.context_identity = nn.Parameter(torch.empty(num_classes, num_context, width).normal_(std=0.02))
        self.context_modality = nn.Parameter(torch.empty(2, num_blank // 2, width).normal_(std=0.02))
        self.context_platform = nn.Parameter(torch.empty(2, num_blank // 2, width).normal_(std=0.02))

    @staticmethod
    def wrong_slots(num_context: int, num_blank: int) -> str:
        """Why these slots do not fill the template; empty where they do."""
        if num_context > 0 <= num_blank and num_context + num_blank == CONTEXT_SLOTS and not num_blank % 2:
            return ""
        return (
            f"MODEL.PROMPT: NUM_CONTEXT {num_context} + NUM_BLANK {num_blank} must make {CONTEXT_SLOTS}, "
            "and NUM_BLANK must be even (half modality, half platform)"
        )

    @property
    def num_classes(self) -> int:
        return self.context_identity.shape[0]

    def forward(self, labels: Tensor, views: Tensor | None = None) -> Tensor:
        """
        Args:
            labels: (B,) identities.
            views: (B,) camera views of MMMP, 0..13: 6..11 and 13 are infrared, 12 and 13 are aerial. Mode "modality"
                only.

        Returns:
            (B, PROMPT_LENGTH, W) prompts.
        """
        identity = self.context_identity[labels]
        n = len(labels)
        if self.mode == "identity":
            blank = self.context_modality.shape[1] + self.context_platform.shape[1]
            rest = identity.new_zeros(n, blank, identity.shape[2])
        elif views is None:
            rest = torch.cat([self.context_modality.mean(0), self.context_platform.mean(0)]).expand(n, -1, -1)
        else:
            infrared = ((views >= 6) & (views <= 11)) | (views == 13)
            rest = torch.cat([self.context_modality[infrared.long()], self.context_platform[(views >= 12).long()]], 1)
        return self.template(torch.cat([identity, rest], dim=1))
