"""The data of the pretraining: drawn people, their captions, and which attribute every patch of a picture shows.

Shapes: P pictures, U distinct short captions, L longest caption, N patches, S attribute places, Q region phrases.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from torch import Tensor
from tqdm import tqdm

from ..processes import in_processes
from .captions import REGION_PHRASES, caption, describe, part_caption
from .figure import PARTS, PLACES
from .person import FAMILY_SIZE, generator, get_person
from .scene import draw
from .shot import random_camera, random_shot

logger = logging.getLogger(__name__)

PLACE_NAMES = tuple(PLACES)
# A patch shows a part that covers this share of it.
_PATCH_SHARE = 0.15
_CAMERAS = 64
_DRAW_CHUNK = 250


class DrawnPerson(NamedTuple):
    """One captioned picture.

    image (H,W,3) uint8; parts: place -> (short caption in one of its wordings, what it says in the plainest);
    shows (N,) int16, bit k: the patch shows `PARTS[k]`; holds: which region phrases are true.
    """

    image: np.ndarray
    caption: str
    parts: dict[str, tuple[str, str]]
    shows: np.ndarray
    holds: list[bool]
    attributes: dict[str, str]


class Pictures(NamedTuple):
    """Captioned pictures as tensors.

    images (P,H,W,3) uint8; caption (P,L) and short (U+Q,L') int64 token numbers of the compact vocabulary, short
    ending with the region phrases; part_caption and part_key (P,S) int64, the place's caption and a number for what it
    says whatever its wording, -1 where the place does not show; shows (P,N) int16, bit k: the patch shows `PARTS[k]`;
    holds (P,Q) bool, which region phrases are true.
    """

    images: np.ndarray
    caption: Tensor
    short: Tensor
    part_caption: Tensor
    part_key: Tensor
    shows: Tensor
    holds: Tensor
    attributes: list[dict[str, str]]


def _patches_showing(parts: np.ndarray, patch: int) -> np.ndarray:
    """(N,) int16: the bits of the parts that each patch of the (H,W) part numbers shows."""
    height, width = parts.shape
    patches = parts.reshape(height // patch, patch, width // patch, patch).swapaxes(1, 2).reshape(-1, patch * patch)
    shows = np.zeros(len(patches), dtype=np.int16)
    for bit in range(len(PARTS)):
        shows |= ((patches == bit + 1).mean(1) >= _PATCH_SHARE).astype(np.int16) << bit
    return shows


def _draw_chunk(job: tuple[int, str, int, int, int, tuple[int, int], int]) -> list[DrawnPerson]:
    seed, population, start, stop, stride, size, patch = job
    drawn = []
    for index in range(start, stop):
        person = get_person(seed, population, index * stride)
        rng = generator(seed, population, "shot", index)
        seen_by = random_camera(generator(seed, population, "camera", index % _CAMERAS))
        shot = random_shot(rng, seen_by, occluded=0.15)
        drawing = draw(person, shot, size)
        text = caption(person, shot.view, drawing.places, rng)
        drawn.append(
            DrawnPerson(
                image=drawing.image,
                caption=text,
                parts={place: (part_caption(person, place, rng), describe(person, place)) for place in drawing.places},
                shows=_patches_showing(np.where(drawing.mask == 2, drawing.parts, 0), patch),
                holds=[region.holds(person) for region in REGION_PHRASES],
                attributes=person.attributes(),
            )
        )
    return drawn


def draw_people(
    seed: int, population: str, count: int, size: tuple[int, int], patch: int, workers: int, stride: int = FAMILY_SIZE
) -> list[DrawnPerson]:
    """Draw and caption people. With `stride` 1 they come in families of siblings, otherwise they are unrelated."""
    jobs = [
        (seed, population, i, min(i + _DRAW_CHUNK, count), stride, size, patch) for i in range(0, count, _DRAW_CHUNK)
    ]
    drawn: list[DrawnPerson] = []
    logger.info("drawing %d people of %s", count, population)
    with tqdm(total=count, desc=f"drawing {population}", unit="image", disable=None) as bar:

        def collect(chunk: list[DrawnPerson]) -> None:
            drawn.extend(chunk)
            bar.update(len(chunk))

        in_processes(_draw_chunk, jobs, min(workers, len(jobs)), collect)
    return drawn


class Vocabulary:
    """The tokens of the standard tokenizer that captions use, numbered from 0; `ids` are their standard numbers.

    `ids` is sorted, so that end-of-text stays the largest number.
    """

    def __init__(self, texts: list[str]):
        self.tokenizer = open_clip.SimpleTokenizer()
        used = {i for text in set(texts) for i in self.tokenizer.encode(text)}
        self.ids = torch.tensor(sorted(used | {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}))
        self._number = {int(i): number for number, i in enumerate(self.ids)}

    def encode(self, texts: list[str]) -> Tensor:
        """(len(texts), longest) int64 token numbers, padded with 0, which the causal encoder never reads.

        Raises:
            ValueError: a word that no caption of the vocabulary has.
        """
        start, end = self._number[self.tokenizer.sot_token_id], self._number[self.tokenizer.eot_token_id]
        ids = [self.tokenizer.encode(text) for text in texts]
        unknown = sorted({i for tokens in ids for i in tokens} - self._number.keys())
        if unknown:
            words = ", ".join(repr(self.tokenizer.decode([i]).strip()) for i in unknown[:5])
            raise ValueError(
                f"found words that no training caption has: {words}; expected words of the "
                f"{len(self._number)} trained. Train on more people, or reword"
            )
        numbers = [[start, *(self._number[i] for i in tokens), end] for tokens in ids]
        padded = torch.zeros(len(numbers), max(map(len, numbers)), dtype=torch.long)
        for line, tokens in zip(padded, numbers):
            line[: len(tokens)] = torch.tensor(tokens)
        return padded


def all_texts(drawn: list[DrawnPerson]) -> list[str]:
    """Every text that goes with the pictures, and the region phrases."""
    texts = [region.phrase for region in REGION_PHRASES]
    for person in drawn:
        texts.append(person.caption)
        texts.extend(short for short, _ in person.parts.values())
    return texts


def assemble(drawn: list[DrawnPerson], vocabulary: Vocabulary) -> Pictures:
    """Tensors from what `draw_people` drew."""
    shorts: dict[str, int] = {}
    keys: dict[tuple[str, str], int] = {}
    part_captions = torch.full((len(drawn), len(PLACE_NAMES)), -1)
    part_keys = part_captions.clone()
    for i, person in enumerate(drawn):
        for place, (short, says) in person.parts.items():
            s = PLACE_NAMES.index(place)
            part_captions[i, s] = shorts.setdefault(short, len(shorts))
            part_keys[i, s] = keys.setdefault((place, says), len(keys))
    return Pictures(
        images=np.stack([person.image for person in drawn]),
        caption=vocabulary.encode([person.caption for person in drawn]),
        short=vocabulary.encode(list(shorts) + [region.phrase for region in REGION_PHRASES]),
        part_caption=part_captions,
        part_key=part_keys,
        shows=torch.from_numpy(np.stack([person.shows for person in drawn])),
        holds=torch.tensor([person.holds for person in drawn]),
        attributes=[person.attributes for person in drawn],
    )


def place_bits() -> Tensor:
    """(S,) the bits of `Pictures.shows` that make up each place."""
    return torch.tensor([sum(1 << PARTS.index(part) for part in PLACES[name]) for name in PLACE_NAMES])


def pixels(images: np.ndarray) -> Tensor:
    """(B,H,W,3) uint8 -> (B,3,H,W) float32 in [-1, 1]: mean and standard deviation 0.5, as in CLIP-ReID."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
