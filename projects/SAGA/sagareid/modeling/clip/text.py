"""CLIP's text side: the transformer over prompt embeddings, and the prompts that are learned.

B prompts, T=77 positions, L=20 positions up to the end of text, W text width, E joint width, n_id identities.

The prompt template is sixteen context slots followed by "person."; the end-of-text token stands at position 19.
The text transformer is causal and only that position is read, so positions 20..76 never matter and are not computed.
Where a model's is not causal (MobileCLIP), every position is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import fast
from ..fast.blocks import block_at_row

__all__ = [
    "CONTEXT_SLOTS",
    "END_OF_TEXT",
    "PADDING",
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
PADDING = 0  # behind the end of text


def template_token_ids() -> list[int]:
    """Token ids of the template up to and including the end of text, length `PROMPT_LENGTH`."""
    return [_START, *[PLACEHOLDER] * CONTEXT_SLOTS, _PERSON, _FULL_STOP, END_OF_TEXT]


class TextEncoder(nn.Module):
    """Prompt embeddings to text features with CLIP's own text transformer (open_clip's module, not a copy of it)."""

    def __init__(
        self,
        *,
        transformer: nn.Module,
        positional_embedding: Tensor,
        ln_final: nn.Module,
        projection: Tensor,
        causal: bool = True,
    ):
        """
        Args:
            transformer: open_clip `Transformer` of width W.
            positional_embedding: (T, W).
            projection: (W, E).
            causal: whether a position reads those before it alone. If not, the token that fills a text up to T counts,
                the buffer `padding` (W).
        """
        super().__init__()
        self.causal = causal
        if not causal:
            self.register_buffer("padding", torch.zeros(positional_embedding.shape[1]))
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
            prompts: (B, L, W) token embeddings, L from end+1 to T. Rows after `end` are cut: they cannot change the
                result, or are `padding`.
            end: position of the end-of-text token.

        Returns:
            (B, E) text features, not normalised.
        """
        length = end + 1
        prompts, mask = prompts[:, :length], None
        if self.causal:
            mask = torch.full((length, length), -torch.inf, device=prompts.device, dtype=prompts.dtype).triu_(1)
        else:
            fill = self.padding.to(prompts.dtype).expand(len(prompts), len(self.positional_embedding) - length, -1)
            prompts = torch.cat([prompts, fill], dim=1)
        x = prompts + self.positional_embedding[: prompts.shape[1]].to(prompts.dtype)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=mask)
        row = block_at_row(last, x, end) if fast.enabled("one_row") else last(x, attn_mask=mask)[:, end]
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
    """One learnable prompt per identity: its context, then zeros.

    The published code has contexts of modality and platform for the last slots, which its training leaves at zero; they
    are parameters here because its checkpoints hold them, and nothing reads them.
    """

    def __init__(self, *, template_embedding: Tensor, num_classes: int, num_context: int):
        """
        Args:
            template_embedding: (PROMPT_LENGTH, W).
            num_context: S, slots that learn; the other 16-S are zeros.

        Raises:
            ValueError: there are no such slots.
        """
        super().__init__()
        if problem := self.wrong_slots(num_context):
            raise ValueError(problem)
        width, unused = template_embedding.shape[1], (CONTEXT_SLOTS - num_context) // 2
        self.template = PromptTemplate(template_embedding)
        self.context_identity = nn.Parameter(torch.empty(num_classes, num_context, width).normal_(std=0.02))
        self.context_modality = nn.Parameter(torch.empty(2, unused, width).normal_(std=0.02))
        self.context_platform = nn.Parameter(torch.empty(2, unused, width).normal_(std=0.02))

    @staticmethod
    def wrong_slots(num_context: int) -> str:
        """Why the template has no such slots; empty where it has."""
        if 0 < num_context <= CONTEXT_SLOTS and not num_context % 2:
            return ""
        return (
            f"MODEL.PROMPT.NUM_CONTEXT is {num_context}; expected an even number of the {CONTEXT_SLOTS} context slots, "
            "2 or more"
        )

    @property
    def num_classes(self) -> int:
        return self.context_identity.shape[0]

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) identities to (B, PROMPT_LENGTH, W) prompts."""
        identity = self.context_identity[labels]
        blank = identity.new_zeros(len(labels), CONTEXT_SLOTS - identity.shape[1], identity.shape[2])
        return self.template(torch.cat([identity, blank], dim=1))
