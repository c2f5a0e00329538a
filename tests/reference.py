"""Weights and inputs made by formula, and the numbers that the published code gave on them (tests/data/expected.npz).

A weight is float32(offset) + float32(scale) * n(key), n standard normal of the shape, seeded with the key's CRC-32.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(__file__).parent / "data"
LABELS4, CAMS4 = torch.tensor([0, 3, 7, 15]), torch.tensor([0, 1, 2, 5])
LABELS8, CAMS8 = torch.tensor([2, 2, 2, 2, 9, 9, 9, 9]), torch.tensor([0, 1, 2, 3, 0, 2, 4, 5])
NUM_CLASSES = 16

_NORMS = (".ln_1.", ".ln_2.", "ln_pre.", "ln_post.", "ln_final.", "norm_q.", "norm_kv.", "norm_ff.", "norm_out.")
_NORMS += ("bottleneck.", "bottleneck_proj.")
_LEAVES = {"ctx_generic", "ctx_modality", "ctx_platform", "ctx_main", "cv_embed", "visual_prompt", "queries", "anchors"}


@functools.cache
def key_lists() -> dict:
    """Key -> shape of the published checkpoints' layouts."""
    return json.loads((DATA / "checkpoint_keys.json").read_text())


@functools.cache
def phrases() -> list[list[int]]:
    """Token ids of the 24 phrases behind the reference numbers."""
    return json.loads((DATA / "phrase_token_ids.json").read_text())["phrase_token_ids"]


def images(count: int, seed: int) -> Tensor:
    """(count, 3, 256, 128), already normalised."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((count, 3, 256, 128)).astype(np.float32))


def _scale_and_offset(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    last = key.rsplit(".", 1)[-1]
    if key.endswith("running_mean"):
        return 0.1, 0
    if last in ("bias", "in_proj_bias"):
        return 0.02, 0
    if last == "weight" and (key.startswith("bn.") or any(norm in key for norm in _NORMS)):
        return 0.05, 1
    if key == "logit_scale":
        return 0.05, 4.6
    if last == "class_embedding":
        return 1, 0
    if key == "visual.positional_embedding":
        return 0.5, 0
    if key == "positional_embedding":
        return 0.25, 0
    if key == "token_embedding.weight" or key.endswith("cam_embed.weight") or last in _LEAVES:
        return 0.5, 0
    if last in ("proj", "text_projection"):
        return shape[0] ** -0.5, 0
    if last in ("weight", "in_proj_weight") and len(shape) == 2:
        return shape[1] ** -0.5, 0
    if last == "weight" and len(shape) == 4:
        return float(np.prod(shape[1:])) ** -0.5, 0
    raise KeyError(f"no formula for {key} {shape}")


def weight(key: str, shape: Iterable[int]) -> Tensor:
    """The formula's tensor of that key."""
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    n = np.asarray(n, dtype=np.float32)
    if key.endswith("running_var"):
        return torch.from_numpy(np.asarray(np.float32(1) + np.float32(0.1) * np.abs(n)))
    scale, offset = _scale_and_offset(key, shape)
    return torch.from_numpy(np.asarray(np.float32(offset) + np.float32(scale) * n))


@functools.cache
def token_embedding_rows() -> dict[int, Tensor]:
    """Rows of the formula's token table for the tokens that templates and phrases use; the table itself is 100 MB."""
    table = weight("token_embedding.weight", (49408, 512))
    ids = {49406, 343, 2533, 269, 49407, 0, 320, 1125, 539, *(i for phrase in phrases() for i in phrase)}
    return {i: table[i].clone() for i in ids}


def embed(ids: Iterable[int]) -> Tensor:
    """(T, 512) token embeddings."""
    return torch.stack([token_embedding_rows()[i] for i in ids])


def template_ids() -> list[int]:
    """The template's 77 token ids."""
    return [49406, *[343] * 16, 2533, 269, 49407, *[0] * 57]


def _phrase_slots(slots: int, anchors: int) -> Tensor:
    """The phrase rule of text anchors, written out again: (anchors, slots, 512)."""
    out = []
    for k in range(anchors):
        tokens = embed(phrases()[k % len(phrases())])
        count = len(tokens)
        if count >= slots:
            picked = [tokens[int(np.floor(i))] for i in np.linspace(0, count - 1, slots)]
        else:
            picked = [*tokens, *[tokens.mean(0)] * (slots - count)]
        out.append(torch.stack(picked) if picked else torch.zeros(0, 512))
    return torch.stack(out)


def published_weight(key: str, shape: Iterable[int], made: Mapping[str, Tensor] = {}) -> Tensor:
    """A tensor of a published checkpoint by its key there. `made` saves drawing copies twice."""
    shape = tuple(shape)
    key = key.removeprefix("clipreid_model.")
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "tokenized_prompts":
        return torch.tensor([template_ids()])
    if leaf in ("token_prefix", "token_suffix"):
        clip_reid = shape[-2] in (5, 68)
        ids = template_ids()
        if clip_reid:
            ids = [49406, 320, 1125, 539, 320, *[343] * 4, 2533, 269, 49407, *[0] * 65]
        rows = ids[: shape[-2]] if leaf == "token_prefix" else ids[-shape[-2] :]
        return embed(rows).reshape(shape)
    if leaf == "ctx_parts":
        return _phrase_slots(shape[1], shape[0])
    if leaf == "cls_ctx":
        return weight("prompt_learner.ctx_generic", shape)
    for prefix, clip in (("image_encoder.", "visual."), ("backbone.", "visual."), ("text_encoder.", "")):
        key = key.removeprefix("text_anchor.") if key.startswith("text_anchor.text_encoder.") else key
        if key.startswith(prefix):
            clip_key = clip + key[len(prefix) :]
            if clip_key == "visual.positional_embedding":
                return _resized_position_embedding(shape[0] - 1)
            return weight(clip_key, shape)
    return weight(key, shape)


def _resized_position_embedding(rows: int) -> Tensor:
    grid = {210: (21, 10), 128: (16, 8)}[rows]
    native = weight("visual.positional_embedding", (197, 768))
    patches = native[1:].reshape(14, 14, 768).permute(2, 0, 1)[None]
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([native[:1], patches[0].permute(1, 2, 0).reshape(rows, 768)])


def published_state(shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """A published checkpoint with formula weights; copies share their storage."""
    state, made = {}, {}
    for key, shape in shapes.items():
        base = key.removeprefix("clipreid_model.").removeprefix("text_anchor.")
        base = base.replace("image_encoder.", "backbone.", 1) if base.startswith("image_encoder.") else base
        same = (base, tuple(shape)) if base.startswith(("backbone.", "text_encoder.")) else (key, tuple(shape))
        if same not in made:
            made[same] = published_weight(key, shape)
        state[key] = made[same]
    return state


def stage3_shapes(variant: str = "") -> dict[str, list[int]]:
    """Key list of a last-stage checkpoint: the default, or a name of saga_variants_own."""
    lists = key_lists()
    shapes = dict(lists["saga_stage3"])
    if not variant:
        return shapes
    shared = ("backbone.", "clipreid_model.", "text_anchor.text_encoder.")
    own = lists["saga_variants_own"][variant]
    keep = {k: v for k, v in shapes.items() if k.startswith(shared)}
    if variant == "free":
        keep = {k: v for k, v in keep.items() if not k.startswith("text_anchor.")}
    return keep | own


# ---- comparison ------------------------------------------------------------------------------------------------------


@functools.cache
def expected() -> dict[str, dict[str, np.ndarray]]:
    """{entry: {"shape", "slice", "stats", "noise", ...}} of expected.npz."""
    out: dict[str, dict[str, np.ndarray]] = {}
    with np.load(DATA / "expected.npz") as file:
        for key in file.files:
            name, part = key.split("|")
            out.setdefault(name, {})[part] = file[key]
    return out


def _slice(name: str, value: np.ndarray) -> np.ndarray:
    if value.size <= 2048 or name.startswith("lr."):
        return value
    window = {1: (64,), 2: (2, 16), 3: (2, 4, 16), 4: (2, 3, 4, 8)}[value.ndim]
    return value[tuple(slice(n) for n in window)]


def _stats(name: str, value: np.ndarray) -> np.ndarray:
    flat = value.astype(np.float64).ravel()
    direction = np.random.RandomState(zlib.crc32(f"proj:{name}".encode())).standard_normal(flat.size)
    projection = flat @ direction / np.sqrt(flat.size)
    return np.array([flat.mean(), flat.std(), np.linalg.norm(flat), projection])


def assert_matches(name: str, value: Tensor | np.ndarray | float) -> None:
    """Compare with an entry of expected.npz: shape, values and statistics, within 5 x its noise + 1e-5 x max|x|.

    Entries of schedules and evaluation have no noise; they are compared within 1e-6 of their largest value.
    """
    entry = expected()[name]
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    value = value.astype(np.float64)
    if "shape" in entry:
        assert tuple(value.shape) == tuple(int(n) for n in entry["shape"]), f"{name}: shape {value.shape}"
    largest = float(np.abs(value).max())
    tolerance = 5 * float(entry["noise"][0]) + 1e-5 * largest if "noise" in entry else 1e-6 * largest
    error = np.abs(_slice(name, value) - entry["slice"]).max()
    assert error <= tolerance, f"{name}: off by {error:.3g}, tolerance {tolerance:.3g}"
    if "stats" in entry:
        errors = np.abs(_stats(name, value) - entry["stats"])
        assert (errors <= tolerance).all(), f"{name}: mean, deviation, norm, projection off by {errors}"
