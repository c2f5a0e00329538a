"""Contrastive pretraining of the embedded CLIP on captioned drawn pedestrians, and what its tokens know afterwards.

The quick start needs a CLIP that fits into the package and whose text anchors mean something. It is open_clip's own
model, trained with open_clip's `ClipLoss` on people whose identities no data set has (population "pretrain").

A tower this small trained through CLS alone leaves its patches poor, while real CLIP's patches carry local meaning,
which SAGA reads. Three losses on the patch tokens of the penultimate block make up for it (`LocalHead`, dropped
after training)::

    pooled   a gated mean of the patches against the whole caption
    part     the mean of the patches where an attribute shows against that attribute's short caption
    region   the same mean against the anchor phrases: what the place is, whatever it looks like

Shapes: B batch, N patches kept, D vision width, E joint width, S attribute places, Q region phrases, L text length.
Everything random follows from the seed and the step, so a resumed run equals one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..files import save_torch, write_atomically, write_json
from ..hardware import bfloat16_instructions
from ..processes import in_processes
from . import captions
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


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of a run; the defaults made the weights that ship.

    `people` are drawn once each; half of the patches (`patch_drop`) are left out at random until `drop_until` of the
    steps, which doubles the rate and costs little.
    """

    seed: int = 0
    people: int = 40_000
    steps: int = 450
    batch: int = 192
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    patch_drop: float = 0.5
    drop_until: float = 0.8
    initial_logit_scale: float = 20.0
    eval_people: int = 1000
    probe_people: int = 4000
    workers: int = 2

    def __post_init__(self) -> None:
        if self.batch > self.people:
            raise ValueError(f"batch: found {self.batch}, expected at most the number of people, {self.people}")
        if not 0 <= self.patch_drop < 1:
            raise ValueError(f"patch_drop: found {self.patch_drop}, expected a share in [0, 1)")


class Pictures(NamedTuple):
    """Captioned pictures in memory; P pictures, U distinct short captions.

    images (P,H,W,3) uint8; caption (P,L) and short (U+Q,L') int64 rows of the compact vocabulary, short ending with the
    region phrases; part_caption and
    part_key (P,S) int64, what the place's caption is and what it says whatever its wording, -1 where the place does
    not show; shows (P,N) int16, bit k: the patch shows `PARTS[k]`; holds (P,Q) bool, which region phrases are true.
    """

    images: np.ndarray
    caption: Tensor
    short: Tensor
    part_caption: Tensor
    part_key: Tensor
    shows: Tensor
    holds: Tensor
    attributes: list[dict[str, str]]


# ---------------------------------------------------------------------------------------------------- drawing
def _draw_chunk(job: tuple[int, str, int, int, int, tuple[int, int], int]) -> list[tuple]:
    seed, population, start, stop, stride, size, patch = job
    drawn = []
    for index in range(start, stop):
        person = get_person(seed, population, index * stride)
        rng = generator(seed, population, "shot", index)
        seen_by = random_camera(generator(seed, population, "camera", index % _CAMERAS))
        shot = random_shot(rng, seen_by, occluded=0.15)
        drawing = draw(person, shot, size)
        shown = np.where(drawing.mask == 2, drawing.parts, 0)
        grid = shown.reshape(size[0] // patch, patch, size[1] // patch, patch).swapaxes(1, 2).reshape(-1, patch * patch)
        shows = np.zeros(len(grid), dtype=np.int16)
        for bit in range(len(PARTS)):
            shows |= ((grid == bit + 1).mean(1) >= _PATCH_SHARE).astype(np.int16) << bit
        text = captions.caption(person, shot.view, drawing.places, rng)
        parts = {
            place: (captions.part_caption(person, place, rng), captions.describe(person, place))
            for place in drawing.places
        }
        holds = [region.holds(person) for region in captions.REGION_PHRASES]
        drawn.append((drawing.image, text, parts, shows, holds, person.attributes()))
    return drawn


def draw_people(
    seed: int, population: str, count: int, size: tuple[int, int], patch: int, workers: int, stride: int = FAMILY_SIZE
) -> list[tuple]:
    """Draw and caption people. With `stride` 1 they come in families of siblings, otherwise they are unrelated."""
    jobs = [
        (seed, population, i, min(i + _DRAW_CHUNK, count), stride, size, patch) for i in range(0, count, _DRAW_CHUNK)
    ]
    drawn = []
    logger.info("drawing %d people of %s", count, population)
    with tqdm(total=count, desc=f"drawing {population}", unit="image", disable=None) as bar:

        def collect(chunk: list[tuple]) -> None:
            drawn.extend(chunk)
            bar.update(len(chunk))

        in_processes(_draw_chunk, jobs, min(workers, len(jobs)), collect)
    return drawn


class Vocabulary:
    """The rows of the standard tokenizer's table that captions use; `ids` is sorted, so EOT stays the largest."""

    def __init__(self, texts: list[str]):
        self.tokenizer = open_clip.SimpleTokenizer()
        used = {i for text in set(texts) for i in self.tokenizer.encode(text)}
        self.ids = torch.tensor(sorted(used | {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}))
        self._row = {int(i): row for row, i in enumerate(self.ids)}

    def encode(self, texts: list[str]) -> Tensor:
        """(len(texts), longest) int64 rows, padded with row 0, which the causal encoder never reads.

        Raises:
            ValueError: a word that no caption of the vocabulary has.
        """
        start, end = self._row[self.tokenizer.sot_token_id], self._row[self.tokenizer.eot_token_id]
        ids = [self.tokenizer.encode(text) for text in texts]
        unknown = sorted({i for tokens in ids for i in tokens} - self._row.keys())
        if unknown:
            words = ", ".join(repr(self.tokenizer.decode([i]).strip()) for i in unknown[:5])
            raise ValueError(
                f"found words that no training caption has: {words}; expected words of the "
                f"{len(self._row)} trained. Train on more people, or reword"
            )
        rows = [[start, *(self._row[i] for i in tokens), end] for tokens in ids]
        padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        return padded


def all_texts(drawn: list[tuple]) -> list[str]:
    """Every text that goes with the pictures, and the region phrases."""
    texts = [region.phrase for region in captions.REGION_PHRASES]
    for _, text, parts, *_ in drawn:
        texts.append(text)
        texts.extend(short for short, _ in parts.values())
    return texts


def assemble(drawn: list[tuple], vocabulary: Vocabulary) -> Pictures:
    """Tensors from what `draw_people` drew."""
    shorts, keys = {}, {}
    part_caption = torch.full((len(drawn), len(PLACE_NAMES)), -1)
    part_key = part_caption.clone()
    for i, (_, _, parts, *_) in enumerate(drawn):
        for place, (short, says) in parts.items():
            s = PLACE_NAMES.index(place)
            part_caption[i, s] = shorts.setdefault(short, len(shorts))
            part_key[i, s] = keys.setdefault((place, says), len(keys))
    return Pictures(
        images=np.stack([d[0] for d in drawn]),
        caption=vocabulary.encode([d[1] for d in drawn]),
        short=vocabulary.encode(list(shorts) + [r.phrase for r in captions.REGION_PHRASES]),
        part_caption=part_caption,
        part_key=part_key,
        shows=torch.from_numpy(np.stack([d[3] for d in drawn])),
        holds=torch.tensor([d[4] for d in drawn]),
        attributes=[d[5] for d in drawn],
    )


def pixels(images: np.ndarray) -> Tensor:
    """(B,H,W,3) uint8 -> (B,3,H,W) float32 in [-1, 1]: mean and standard deviation 0.5, as in CLIP-ReID."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


# ---------------------------------------------------------------------------------------------------- model
class _KeptPatches(nn.Module):
    """Stands in open_clip's patch dropout slot: keeps the patches it is told to, and all when told nothing."""

    kept: Tensor | None = None  # (B, n) patch numbers

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            return x
        rows = self.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :1], x[:, 1:].gather(1, rows)], dim=1)


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


class Pretraining(nn.Module):
    """open_clip's model with a compact token table, and the local head.

    Raises:
        FileNotFoundError: there is no model configuration at `config_path`.
    """

    def __init__(self, config_path: Path, vocabulary: Vocabulary, cfg: PretrainConfig):
        super().__init__()
        self.bfloat16 = bool(bfloat16_instructions())  # where they are emulated a step takes many times as long
        self.clip = create_clip(config_path)
        self.clip.visual.patch_dropout = _KeptPatches()
        rows = self.clip.token_embedding.weight.detach()[vocabulary.ids].clone()
        self.clip.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
        with torch.no_grad():
            self.clip.logit_scale.fill_(math.log(cfg.initial_logit_scale))
        visual = self.clip.visual
        self.local = LocalHead(visual.conv1.out_channels, visual.output_dim, cfg.initial_logit_scale)

    def image(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) -> joint features (B,E), unit length, and penultimate patch tokens (B,n,D) of the kept patches."""
        self.clip.visual.patch_dropout.kept = kept
        out = self.clip.visual.forward_intermediates(images, indices=[token_block(self.clip)], output_fmt="NLC")
        return F.normalize(out["image_features"].float(), dim=-1), out["image_intermediates"][0]

    def text(self, rows: Tensor) -> Tensor:
        """(B,L) rows of the compact table -> (B,E), unit length. Causal, so that cutting to L changes nothing."""
        clip, length = self.clip, rows.shape[1]
        x = clip.token_embedding(rows) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        return F.normalize((x[torch.arange(len(rows)), rows.argmax(1)] @ clip.text_projection).float(), dim=-1)


def create_clip(config_path: Path) -> nn.Module:
    """A randomly initialised open_clip model from a configuration file; the model's name is the file's stem."""
    if not Path(config_path).is_file():
        raise FileNotFoundError(f"{config_path}: no such model configuration; expected an open_clip .json file")
    open_clip.add_model_config(config_path)
    return open_clip.create_model(Path(config_path).stem, load_weights=False)


def token_block(clip: nn.Module) -> int:
    """Number (from 0) of the block whose patch tokens the method reads: the penultimate."""
    return clip.visual.transformer.layers - 2


# ---------------------------------------------------------------------------------------------------- training
def _place_bits() -> Tensor:
    """(S,) which bits of `Pictures.shows` make up a place."""
    return torch.tensor([sum(1 << PARTS.index(part) for part in PLACES[name]) for name in PLACE_NAMES])


def _phrase_of_place() -> Tensor:
    """(S,Q) bool: the phrase names something that the place shows."""
    return torch.tensor(
        [[bool(set(PLACES[name]) & set(r.parts)) for r in captions.REGION_PHRASES] for name in PLACE_NAMES]
    )


def _several_positives(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy over the last dimension, target uniform on `positive` (bool); rows without one are left out."""
    rows = positive.any(-1)
    target = positive[rows].float()
    return -(target / target.sum(-1, keepdim=True) * logits[rows].log_softmax(-1)).sum(-1).mean()


def losses(
    model: Pretraining, batch: Pictures, images: Tensor, kept: Tensor | None, chosen: Tensor
) -> dict[str, Tensor]:
    """The four terms of a batch.

    Args:
        images: (B,3,H,W) of the batch.
        kept: (B,n) numbers of the patches that the tower sees, None for all.
        chosen: (B,R) places whose captions are compared; ones that do not show are left out.
    """
    bits = batch.shows if kept is None else batch.shows.gather(1, kept)
    region = (bits[:, None, :] & _place_bits()[chosen][:, :, None]) != 0  # (B,R,n)
    told = batch.part_caption.gather(1, chosen)
    valid = ((told >= 0) & region.any(-1)).flatten()  # (B*R,)
    with torch.autocast("cpu", torch.bfloat16, enabled=model.bfloat16):
        image, tokens = model.image(images, kept)
        text = model.text(batch.caption)
        pooled = model.local.pooled(tokens)
        regions = model.local.region(tokens, region).flatten(0, 1)[valid]
        wanted, which = told.flatten()[valid].unique(return_inverse=True)
        short = model.text(torch.cat([batch.short[wanted], batch.short[-len(captions.REGION_PHRASES) :]]))
    part_text, phrase_text = short[: len(wanted)], short[len(wanted) :]
    keys = batch.part_key.gather(1, chosen).flatten()[valid]
    key_of_text = torch.empty(len(wanted), dtype=keys.dtype).scatter_(0, which, keys)
    scale = model.local.logit_scale.exp()
    logits = scale[1] * regions @ part_text.T
    same = keys[:, None] == key_of_text[None, :]
    true = (_phrase_of_place()[chosen] & batch.holds[:, None, :]).flatten(0, 1)[valid]
    contrast = ClipLoss()
    return {
        "clip": contrast(image, text, model.clip.logit_scale.exp()),
        "pooled": contrast(pooled, text, scale[0]),
        "part": (_several_positives(logits, same) + _several_positives(logits.T, same.T)) / 2,
        "region": _several_positives(scale[1] * regions @ phrase_text.T, true),
    }


# The region phrases are few and easily told apart: a small weight is enough for them.
_WEIGHTS = {"clip": 1.0, "pooled": 0.5, "part": 0.5, "region": 0.1}


def _batch(data: Pictures, step: int, cfg: PretrainConfig, grid: tuple[int, int]):
    """The pictures, patches kept and places compared of a step; a function of seed and step alone."""
    per_epoch = len(data.images) // cfg.batch
    order = generator(cfg.seed, "order", step // per_epoch).permutation(len(data.images))
    rows = order[step % per_epoch * cfg.batch :][: cfg.batch]
    rng = generator(cfg.seed, "step", step)
    flip = rng.random(len(rows)) < 0.5
    images = data.images[rows].copy()
    images[flip] = images[flip, :, ::-1]
    index, flip = torch.from_numpy(rows), torch.from_numpy(flip)
    shows = data.shows[index].long().view(-1, *grid)
    shows[flip] = shows[flip].flip(-1)
    part_caption = data.part_caption[index]
    batch = data._replace(
        images=images,
        caption=data.caption[index],
        part_caption=part_caption,
        part_key=data.part_key[index],
        shows=shows.flatten(1),
        holds=data.holds[index],
        attributes=[],
    )
    batch = batch._replace(caption=batch.caption[:, : int(batch.caption.argmax(1).max()) + 1])
    kept, patches = None, grid[0] * grid[1]
    if step < cfg.drop_until * cfg.steps and cfg.patch_drop:
        noise = torch.from_numpy(rng.random((len(rows), patches)))
        kept = noise.argsort(1)[:, : round(patches * (1 - cfg.patch_drop))]
    noise = torch.from_numpy(rng.random((len(rows), len(PLACE_NAMES)))) - (part_caption < 0).double()
    return batch, pixels(images), kept, noise.topk(2, dim=1).indices


def _optimizer(model: nn.Module, cfg: PretrainConfig) -> torch.optim.Optimizer:
    flat = [p for p in model.parameters() if p.ndim < 2]
    deep = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": deep, "weight_decay": cfg.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.98))


def _rate(step: int, cfg: PretrainConfig) -> float:
    """Learning rate: linear warm-up, then a cosine to zero."""
    warm = max(1, round(cfg.warmup * cfg.steps))
    if step < warm:
        return cfg.lr * (step + 1) / warm
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, cfg.steps - warm)))


def train(
    model: Pretraining,
    data: Pictures,
    cfg: PretrainConfig,
    output: Path,
    resume: bool = False,
    stop_after: int | None = None,
    log_every: int = 25,
    save_every: int = 100,
) -> int:
    """Train the model in place; `output` gets log.jsonl and checkpoint.pt.

    Args:
        resume: go on from `output`/checkpoint.pt if there is one.
        stop_after: stop at this step, as a kill would, after saving.

    Returns:
        The number of steps done.

    Raises:
        ValueError: the checkpoint is of a run with other settings.
    """
    optimizer, first = _optimizer(model, cfg), 0
    settings = {k: v for k, v in dataclasses.asdict(cfg).items() if k != "workers"}
    checkpoint = output / "checkpoint.pt"
    if resume and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        differing = [k for k, v in settings.items() if saved["settings"].get(k) != v]
        if differing:
            raise ValueError(
                f"{checkpoint}: found a run with other {', '.join(differing)}; expected the same settings "
                "to go on. Repeat them, or start anew without --resume"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        logger.info("going on at step %d of %d", first, cfg.steps)
    output.mkdir(parents=True, exist_ok=True)
    grid, params = model.clip.visual.grid_size, list(model.parameters())
    last = min(cfg.steps, stop_after or cfg.steps)
    started = since = time.time()
    model.train()
    with (
        open(output / "log.jsonl", "a") as log,
        tqdm(total=cfg.steps, initial=first, desc="pretraining", unit="step", disable=None) as bar,
    ):
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, cfg)
            terms = losses(model, *_batch(data, step, cfg, grid))
            loss = sum(_WEIGHTS[name] * term for name, term in terms.items())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            with torch.no_grad():
                for scale in (model.clip.logit_scale, model.local.logit_scale):
                    scale.clamp_(0, math.log(100))  # CLIP's limit
            bar.update()
            done = step + 1
            if done % log_every == 0 or done == last:
                now = time.time()
                rate = cfg.batch * min(log_every, done - first) / max(now - since, 1e-9)
                since = now
                figures = {name: round(float(term.detach()), 4) for name, term in terms.items()}
                left = (cfg.steps - done) * (now - started) / (done - first)
                log.write(
                    json.dumps(
                        {
                            "step": done,
                            **figures,
                            "lr": _rate(step, cfg),
                            "images_per_s": round(rate, 1),
                            "seconds": round(now - started, 1),
                        }
                    )
                    + "\n"
                )
                log.flush()
                logger.info("step %d/%d %s %.0f images/s, %.0f s left", done, cfg.steps, figures, rate, left)
            if done % save_every == 0 or done == last:
                state = {
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "settings": settings,
                }
                save_torch(checkpoint, state)
    return last


# ---------------------------------------------------------------------------------------------------- figures
@torch.no_grad()
def encode(model: Pretraining, data: Pictures, batch: int = 250) -> dict[str, Tensor]:
    """Float32 features of all pictures: image, text (P,E); cls (P,D) of the last block before its projection's norm;
    patches (P,N,D) of the token block."""
    model.eval()
    visual, out = model.clip.visual, {"image": [], "text": [], "cls": [], "patches": []}
    visual.patch_dropout.kept = None
    blocks = [token_block(model.clip), token_block(model.clip) + 1]
    for i in range(0, len(data.images), batch):
        f = visual.forward_intermediates(
            pixels(data.images[i : i + batch]), indices=blocks, output_fmt="NLC", output_extra_tokens=True
        )
        out["image"].append(F.normalize(f["image_features"], dim=-1))
        out["patches"].append(f["image_intermediates"][0])
        out["cls"].append(f["image_intermediates_prefix"][1][:, 0])
        out["text"].append(model.text(data.caption[i : i + batch]))
    return {name: torch.cat(parts) for name, parts in out.items()}


def retrieval(image: Tensor, text: Tensor) -> dict[str, float]:
    """Share in percent of images (P,E) whose own caption is the first, or among the first five, of all P captions."""
    similarity = image @ text.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    return {f"R@{k}": round(100 * float((rank < k).float().mean()), 1) for k in (1, 5)}


def _ridge(x: Tensor, y: Tensor, penalty: float = 1e-3) -> Tensor:
    """Least squares (D+1, C) of y (P,C) on standardised x (P,D) with a constant."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y)


def linear_probe(x: Tensor, labels: list[str], test_x: Tensor, test_labels: list[str]) -> float:
    """Accuracy in percent of a linear classifier (ridge regression on one-hot labels) on the test rows."""
    classes = sorted(set(labels))
    y = F.one_hot(torch.tensor([classes.index(v) for v in labels]), len(classes)).double()
    mean, std = x.double().mean(0), x.double().std(0).clamp(min=1e-6)
    w = _ridge((x.double() - mean) / std, y)
    z = (test_x.double() - mean) / std
    found = (torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) @ w).argmax(1)
    return round(100 * sum(classes[int(f)] == v for f, v in zip(found, test_labels)) / len(test_labels), 1)


# Attribute -> the place that shows it; what has no place of its own is read from the whole person.
ATTRIBUTE_PLACE = {
    "hair_colour": "hair",
    "hair_style": "hair",
    "headwear": "headwear",
    "headwear_colour": "headwear",
    "scarf_colour": "scarf",
    "upper": "upper",
    "upper_colour": "upper",
    "upper_colour2": "upper",
    "upper_pattern": "upper",
    "lower": "lower",
    "lower_colour": "lower",
    "shoes": "shoes",
    "shoes_colour": "shoes",
    "bag": "bag",
    "bag_colour": "bag",
    "skin": "skin",
    "build": None,
    "height": None,
}


def _region_mean(patches: Tensor, region: Tensor) -> Tensor:
    """Mean of (P,N,D) over (P,N) bool."""
    weight = region.float() / region.sum(1, keepdim=True).clamp(min=1)
    return (weight[:, None] @ patches)[:, 0]


def probe(
    train_features: dict[str, Tensor], train_data: Pictures, test_features: dict[str, Tensor], test_data: Pictures
) -> dict[str, dict]:
    """What a linear classifier reads from the tokens.

    Pictures in which the attribute's place does not show are left out, so every column has the same rows.

    Returns:
        `attributes` maps a name to accuracies in percent from `cls`, `patch_mean` (all patches) and `place` (the
        patches where the attribute shows; None for build and height), and the most frequent value's share `majority`.
        `places` maps a name to `average_precision` in percent of telling from one patch token whether the patch shows
        the place, and the share of such patches, which is chance.
    """
    bits, result = _place_bits(), {"attributes": {}, "places": {}}
    for name, place in ATTRIBUTE_PLACE.items():
        sides = []
        for features, data in ((train_features, train_data), (test_features, test_data)):
            region = torch.ones_like(data.shows, dtype=torch.bool)
            if place:
                region = (data.shows & bits[PLACE_NAMES.index(place)]) != 0
            rows = region.any(1)
            labels = [a[name] for a, keep in zip(data.attributes, rows.tolist()) if keep]
            patches = features["patches"][rows]
            sides.append((labels, features["cls"][rows], patches.mean(1), _region_mean(patches, region[rows])))
        (labels, *xs), (test_labels, *test_xs) = sides
        common = max(sorted(set(labels)), key=labels.count)
        scores = [linear_probe(x, labels, z, test_labels) for x, z in zip(xs, test_xs)]
        result["attributes"][name] = {
            "cls": scores[0],
            "patch_mean": scores[1],
            "place": scores[2] if place else None,
            "majority": round(100 * test_labels.count(common) / len(test_labels), 1),
        }
    width = train_features["patches"].shape[-1]
    x, z = (f["patches"].reshape(-1, width).double() for f in (train_features, test_features))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, z = (x - mean) / std, (z - mean) / std
    for place, bit in zip(PLACE_NAMES, bits):
        w = _ridge(x, ((train_data.shows & bit) != 0).reshape(-1, 1).double())
        score = (z @ w[:-1])[:, 0]
        truth = ((test_data.shows & bit) != 0).flatten()[score.argsort(descending=True)].double()
        precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1)
        result["places"][place] = {
            "average_precision": round(100 * float((precision * truth).sum() / truth.sum()), 1),
            "chance": round(100 * float(truth.mean()), 1),
        }
    return result


def figures_table(figures: dict) -> str:
    """The figures as text."""
    lines = [
        "zero-shot image to caption: "
        + ", ".join(f"{k} {v}" for k, v in figures["retrieval"].items() if k[0] == "R")
        + f" % of {figures['retrieval']['people']} unseen people (chance {100 / figures['retrieval']['people']:.1f})",
        "among siblings: " + ", ".join(f"{k} {v}" for k, v in figures["retrieval_siblings"].items() if k[0] == "R"),
        "",
        f"{'attribute':16}{'CLS':>8}{'patches':>9}{'place':>8}{'majority':>10}   untrained: CLS patches place",
    ]
    for name, row in figures["probe"]["attributes"].items():
        raw = figures["probe_untrained"]["attributes"][name]

        def cell(value) -> str:
            return "-" if value is None else f"{value:.1f}"

        lines.append(
            f"{name:16}{cell(row['cls']):>8}{cell(row['patch_mean']):>9}{cell(row['place']):>8}"
            f"{cell(row['majority']):>10}   {cell(raw['cls']):>14}{cell(raw['patch_mean']):>8}{cell(raw['place']):>6}"
        )
    lines += ["", f"{'place':16}{'average precision of one patch':>32}{'chance':>8}   untrained"]
    for name, row in figures["probe"]["places"].items():
        raw = figures["probe_untrained"]["places"][name]
        lines.append(
            f"{name:16}{row['average_precision']:>32.1f}{row['chance']:>8.1f}{raw['average_precision']:>12.1f}"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- weights
def export(model: Pretraining, vocabulary: Vocabulary, path: Path, metadata: dict[str, str]) -> None:
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


def pretrain(config_path: Path, output: Path, cfg: PretrainConfig, resume: bool = False, command: str = "") -> dict:
    """Draw, train, measure; write `<stem>.safetensors` and `<stem>.figures.json` into `output`; return the figures."""
    torch.manual_seed(cfg.seed)
    vision = json.loads(Path(config_path).read_text())["vision_cfg"]
    size, patch = tuple(vision["image_size"]), vision["patch_size"]
    drawn = draw_people(cfg.seed, "pretrain", cfg.people, size, patch, cfg.workers)
    vocabulary = Vocabulary(all_texts(drawn))
    data = assemble(drawn, vocabulary)
    del drawn
    model = Pretraining(Path(config_path), vocabulary, cfg)
    untrained = {k: v.clone() for k, v in model.state_dict().items()}
    since = time.time()
    train(model, data, cfg, output, resume)
    training_seconds = time.time() - since

    def people(population: str, count: int, stride: int = FAMILY_SIZE) -> Pictures:
        return assemble(draw_people(cfg.seed, population, count, size, patch, cfg.workers, stride), vocabulary)

    unseen, siblings = people("pretrain unseen", cfg.eval_people), people("pretrain siblings", cfg.eval_people, 1)
    known = people("pretrain probe", cfg.probe_people)
    found = encode(model, unseen)
    figures = {
        "seed": cfg.seed,
        "settings": dataclasses.asdict(cfg),
        "threads": torch.get_num_threads(),
        "training_seconds": round(training_seconds),
        "trained_token_rows": len(vocabulary.ids),
        "retrieval": {**retrieval(found["image"], found["text"]), "people": cfg.eval_people},
        "retrieval_siblings": {
            **retrieval(*(encode(model, siblings)[k] for k in ("image", "text"))),
            "people": cfg.eval_people,
        },
        "probe": probe(encode(model, known), known, found, unseen),
    }
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(untrained)
    figures["probe_untrained"] = probe(encode(model, known), known, encode(model, unseen), unseen)
    model.load_state_dict(trained)
    stem = Path(config_path).stem
    write_json(output / f"{stem}.figures.json", figures)
    metadata = {
        "command": command,
        "seed": str(cfg.seed),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "image_mean": "0.5 0.5 0.5",
        "image_std": "0.5 0.5 0.5",
        "untrained_token_rows": "zero",
        "retrieval": json.dumps(figures["retrieval"]),
    }
    export(model, vocabulary, output / f"{stem}.safetensors", metadata)
    logger.info("%s", figures_table(figures))
    return figures
