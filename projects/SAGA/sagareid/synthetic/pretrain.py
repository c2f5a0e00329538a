"""Contrastive pretraining of the embedded CLIP on captioned drawn pedestrians.

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
from typing import IO, NamedTuple

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from tqdm import tqdm

from ..files import read_json, save_torch, write_json
from ..weights import read_file
from .captioned import PLACE_NAMES, Pictures, Vocabulary, all_texts, assemble, draw_people, pixels, place_bits
from .captions import REGION_PHRASES
from .figure import PLACES
from .options import PretrainConfig
from .person import FAMILY_SIZE, generator
from .pretrain_model import PretrainingModel, export
from .probe import encode, metrics_table, probe, retrieval

logger = logging.getLogger(__name__)


def _phrase_of_place() -> Tensor:
    """(S,Q) bool: the phrase names something that the place shows."""
    return torch.tensor([[bool(set(PLACES[name]) & set(r.parts)) for r in REGION_PHRASES] for name in PLACE_NAMES])


def _several_positives(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy over the last dimension, target uniform on `positive` (bool); without a positive, left out."""
    kept = positive.any(-1)
    target = positive[kept].float()
    return -(target / target.sum(-1, keepdim=True) * logits[kept].log_softmax(-1)).sum(-1).mean()


def losses(
    model: PretrainingModel, batch: Pictures, images: Tensor, kept: Tensor | None, chosen: Tensor
) -> dict[str, Tensor]:
    """The four terms of a batch.

    Args:
        images: (B,3,H,W) of the batch.
        kept: (B,n) numbers of the patches that the tower sees, None for all.
        chosen: (B,R) places whose captions are compared; ones that do not show are left out.
    """
    bits = batch.shows if kept is None else batch.shows.gather(1, kept)
    region = (bits[:, None, :] & place_bits()[chosen][:, :, None]) != 0  # (B,R,n)
    short_captions = batch.part_caption.gather(1, chosen)
    valid = ((short_captions >= 0) & region.any(-1)).flatten()  # (B*R,)
    with torch.autocast("cpu", torch.bfloat16, enabled=model.bfloat16):
        image, tokens = model.image(images, kept)
        text = model.text(batch.caption)
        pooled = model.local.pooled(tokens)
        regions = model.local.region(tokens, region).flatten(0, 1)[valid]
        wanted, which = short_captions.flatten()[valid].unique(return_inverse=True)
        short = model.text(torch.cat([batch.short[wanted], batch.short[-len(REGION_PHRASES) :]]))
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


class _Batch(NamedTuple):
    """The arguments of `losses` for a step."""

    pictures: Pictures
    images: Tensor
    kept: Tensor | None
    chosen: Tensor


def _batch(data: Pictures, step: int, cfg: PretrainConfig, grid: tuple[int, int]) -> _Batch:
    """The pictures, patches kept and places compared of a step; a function of seed and step alone."""
    per_epoch = len(data.images) // cfg.batch
    order = generator(cfg.seed, "order", step // per_epoch).permutation(len(data.images))
    numbers = order[step % per_epoch * cfg.batch :][: cfg.batch]
    rng = generator(cfg.seed, "step", step)
    mirrored = rng.random(len(numbers)) < 0.5
    images = data.images[numbers].copy()
    images[mirrored] = images[mirrored, :, ::-1]
    index, flip = torch.from_numpy(numbers), torch.from_numpy(mirrored)
    shows = data.shows[index].long().view(-1, *grid)
    shows[flip] = shows[flip].flip(-1)
    caption, part_caption = data.caption[index], data.part_caption[index]
    pictures = data._replace(
        images=images,
        caption=caption[:, : int(caption.argmax(1).max()) + 1],  # up to the last end-of-text
        part_caption=part_caption,
        part_key=data.part_key[index],
        shows=shows.flatten(1),
        holds=data.holds[index],
        attributes=[],
    )
    kept, patches = None, grid[0] * grid[1]
    if step < cfg.drop_until * cfg.steps and cfg.patch_drop:
        noise = torch.from_numpy(rng.random((len(numbers), patches)))
        kept = noise.argsort(1)[:, : round(patches * (1 - cfg.patch_drop))]
    noise = torch.from_numpy(rng.random((len(numbers), len(PLACE_NAMES)))) - (part_caption < 0).double()
    return _Batch(pictures, pixels(images), kept, noise.topk(2, dim=1).indices)


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


def _resume(
    checkpoint: Path, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer, cfg: PretrainConfig
) -> int:
    """Load a checkpoint into model and optimizer; returns the number of steps that it had done."""
    saved = read_file(checkpoint)
    if not isinstance(saved, dict) or not {"step", "settings", "model", "optimizer"} <= saved.keys():
        raise ValueError(f"{checkpoint} is no checkpoint of tools/pretrain_clip.py; start anew without --resume")
    differing = [k for k, v in settings.items() if saved["settings"].get(k) != v]
    if differing:
        raise ValueError(
            f"{checkpoint}: found a run with other {', '.join(differing)}; expected the same settings "
            "to go on. Repeat them, or start anew without --resume"
        )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    logger.info("going on at step %d of %d", saved["step"], cfg.steps)
    return saved["step"]


class _Log:
    """Writes terms and speed to log.jsonl and to the logger."""

    def __init__(self, file: IO[str], cfg: PretrainConfig, first: int):
        self.file, self.cfg, self.first = file, cfg, first
        self.done, self.started = first, time.time()
        self.since = self.started

    def write(self, done: int, terms: dict[str, Tensor]) -> None:
        now = time.time()
        images_per_s = self.cfg.batch * (done - self.done) / max(now - self.since, 1e-9)
        self.done, self.since = done, now
        values = {name: round(float(term.detach()), 4) for name, term in terms.items()}
        record = {
            "step": done,
            **values,
            "lr": _rate(done - 1, self.cfg),
            "images_per_s": round(images_per_s, 1),
            "seconds": round(now - self.started, 1),
        }
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        left = (self.cfg.steps - done) * (now - self.started) / (done - self.first)
        logger.info("step %d/%d %s %.0f images/s, %.0f s left", done, self.cfg.steps, values, images_per_s, left)


def _step(model: PretrainingModel, optimizer: torch.optim.Optimizer, batch: _Batch, lr: float) -> dict[str, Tensor]:
    """One step of the optimizer; returns the terms of the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    terms = losses(model, *batch)
    loss = sum(_WEIGHTS[name] * term for name, term in terms.items())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
    optimizer.step()
    with torch.no_grad():
        for scale in (model.clip.logit_scale, model.local.logit_scale):
            scale.clamp_(0, math.log(100))  # CLIP's limit
    return terms


def train(
    model: PretrainingModel,
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
        first = _resume(checkpoint, settings, model, optimizer, cfg)
    output.mkdir(parents=True, exist_ok=True)
    last = min(cfg.steps, stop_after or cfg.steps)
    model.train()
    with (
        open(output / "log.jsonl", "a") as file,
        tqdm(total=cfg.steps, initial=first, desc="pretraining", unit="step", disable=None) as bar,
    ):
        log = _Log(file, cfg, first)
        for done in range(first + 1, last + 1):
            batch = _batch(data, done - 1, cfg, model.clip.visual.grid_size)
            terms = _step(model, optimizer, batch, _rate(done - 1, cfg))
            bar.update()
            if done % log_every == 0 or done == last:
                log.write(done, terms)
            if done % save_every == 0 or done == last:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_torch(checkpoint, {"step": done, "settings": settings, **state})
    return last


def pretrain(config_path: Path, output: Path, cfg: PretrainConfig, resume: bool = False, command: str = "") -> dict:
    """Draw, train, measure; write `<stem>.safetensors` and `<stem>.metrics.json` into `output`; return the metrics."""
    torch.manual_seed(cfg.seed)
    remedy = "Expected an open_clip configuration, such as ViT-XS-8-pedestrians.json in sagareid/assets/clip"
    vision = read_json(config_path, remedy=remedy, required={"vision_cfg": dict})["vision_cfg"]
    size, patch = tuple(vision["image_size"]), vision["patch_size"]
    drawn = draw_people(cfg.seed, "pretrain", cfg.people, size, patch, cfg.workers)
    vocabulary = Vocabulary(all_texts(drawn))
    data = assemble(drawn, vocabulary)
    del drawn
    model = PretrainingModel(Path(config_path), vocabulary, cfg.initial_logit_scale)
    untrained = {k: v.clone() for k, v in model.state_dict().items()}
    since = time.time()
    train(model, data, cfg, output, resume)
    training_seconds = time.time() - since

    def people(population: str, count: int, stride: int = FAMILY_SIZE) -> Pictures:
        return assemble(draw_people(cfg.seed, population, count, size, patch, cfg.workers, stride), vocabulary)

    unseen, siblings = people("pretrain unseen", cfg.eval_people), people("pretrain siblings", cfg.eval_people, 1)
    known = people("pretrain probe", cfg.probe_people)
    features, of_siblings = encode(model, unseen), encode(model, siblings)
    metrics = {
        "seed": cfg.seed,
        "settings": dataclasses.asdict(cfg),
        "threads": torch.get_num_threads(),
        "training_seconds": round(training_seconds),
        "trained_token_rows": len(vocabulary.ids),
        "retrieval": {**retrieval(features["image"], features["text"]), "people": cfg.eval_people},
        "retrieval_siblings": {
            **retrieval(of_siblings["image"], of_siblings["text"]),
            "people": cfg.eval_people,
        },
        "probe": probe(encode(model, known), known, features, unseen),
    }
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(untrained)
    metrics["probe_untrained"] = probe(encode(model, known), known, encode(model, unseen), unseen)
    model.load_state_dict(trained)
    stem = Path(config_path).stem
    write_json(output / f"{stem}.metrics.json", metrics)
    metadata = {
        "command": command,
        "seed": str(cfg.seed),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "image_mean": "0.5 0.5 0.5",
        "image_std": "0.5 0.5 0.5",
        "untrained_token_rows": "zero",
        "retrieval": json.dumps(metrics["retrieval"]),
    }
    export(model, vocabulary, output / f"{stem}.safetensors", metadata)
    logger.info("%s", metrics_table(metrics))
    return metrics
