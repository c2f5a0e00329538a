"""open_clip models by name: their dimensions, their towers, and weights from a tag or a file.

h x w patch grid, D image width, W text width, E joint width. No FastReID and no config in here.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import first_few, first_line
from ...weights import read_state_dict
from ..fast.blocks import use_cheaper_forms
from .activation import check_activation, trained_with_quick_gelu
from .download import download
from .text import END_OF_TEXT, PADDING, PLACEHOLDER, TextEncoder, template_token_ids

__all__ = [
    "ASSETS",
    "ClipDims",
    "anchor_phrase_embeddings",
    "anchor_phrases",
    "build_last_blocks",
    "build_side",
    "build_text_encoder",
    "build_vision_tower",
    "clip_dims",
    "load_strictly",
    "load_text_encoder",
    "load_vision_tower",
    "patch_grid",
    "read_clip_weights",
    "resize_position_embedding",
    "template_embedding",
    "text_problem",
    "token_embedding",
    "weights_read_once",
]

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@dataclass(frozen=True)
class ClipDims:
    """Dimensions of an open_clip model, read from its configuration.

    Attributes:
        kind: of its image tower: "vit", open_clip's own with a class token; "resnet", its ModifiedResNet; "timm", a
            model of timm. What the last two give is found by `visuals`.
    """

    name: str
    kind: str
    width: int  # D, of a ViT; 0 of other kinds, as layers, patch_size and native_grid
    layers: int
    embed_dim: int  # E
    patch_size: int
    native_grid: tuple[int, int]  # of the pretrained position embedding
    text_width: int  # W
    quick_gelu: bool


def _model_config(name: str) -> dict:
    for file in sorted((ASSETS / "clip").glob("*.json")):
        if file.stem == name:
            open_clip.add_model_config(file)
    config = open_clip.get_model_config(name)
    if config is None:
        ours = sorted(f.stem for f in (ASSETS / "clip").glob("*.json") if not f.name.endswith(".metrics.json"))
        raise ValueError(
            f"MODEL.CLIP.NAME is {name!r}, which open_clip does not know. Ours: {', '.join(ours)}. "
            f"open_clip's ViTs: {', '.join(m for m in open_clip.list_models() if m.startswith('ViT'))}; "
            "open_clip.list_models() has its ResNets and models of timm, too"
        )
    vision = config["vision_cfg"]
    if vision.get("timm_pool") in ("abs_attn", "rot_attn"):
        raise ValueError(
            f"MODEL.CLIP.NAME {name!r} pools by {vision['timm_pool']}, which is made for one square image size; choose "
            "another model"
        )
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok" or vision.get("final_ln_after_pool"):
        raise ValueError(
            f"MODEL.CLIP.NAME {name!r} is a ViT of open_clip's that does not pool by its class token, which the method "
            "reads; choose one that does, such as ViT-B-16-quickgelu, or a ResNet or a model of timm's in open_clip"
        )
    return config


def _kind(vision: Mapping) -> str:
    if "timm_model_name" in vision:
        return "timm"
    return "vit" if isinstance(vision["layers"], int) else "resnet"


def text_problem(name: str) -> str:
    """Why prompts cannot be made for a model's text tower, and what to do; empty where they can.

    Prompts are CLIP's byte pairs, read at the end of the text.
    """
    text = _model_config(name)["text_cfg"]
    reasons = {
        "is a Hugging Face model of its own": "hf_model_name" in text,
        f"reads the words of another tokenizer ({text.get('hf_tokenizer_name')})": "hf_tokenizer_name" in text,
        "has a class token (CoCa)": bool(text.get("embed_cls")),
        f"pools by {text.get('pool_type')!r}": text.get("pool_type", "argmax") != "argmax",
        f"has {text.get('context_length')} positions": text.get("context_length", 77) < len(template_token_ids()),
    }
    reason = next((why for why, holds in reasons.items() if holds), "")
    if not reason:
        return ""
    return (
        f"the text tower of MODEL.CLIP.NAME {name} {reason}, and prompts are made of CLIP's byte pairs: set "
        "MODEL.SAGA.FREE_ANCHORS True, or take the image tower by build_timm_backbone and the text of a CLIP such as "
        "ViT-B-16-quickgelu"
    )


@functools.cache
def clip_dims(name: str) -> ClipDims:
    """Dimensions of an open_clip model or of a model configuration in assets/clip.

    Raises:
        ValueError: unknown name (the message lists the known), or a ViT that does not pool by its class token.
    """
    config = _model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    size, kind = vision.get("image_size", 224), _kind(vision)
    height, width = (size, size) if isinstance(size, int) else size
    patch = vision["patch_size"] if kind == "vit" else 0
    return ClipDims(
        name=name,
        kind=kind,
        width=vision["width"] if kind == "vit" else 0,
        layers=vision["layers"] if kind == "vit" else 0,
        embed_dim=config["embed_dim"],
        patch_size=patch,
        native_grid=(height // patch, width // patch) if patch else (0, 0),
        text_width=text.get("width", 512),
        quick_gelu=bool(config.get("quick_gelu", False)),
    )


def patch_grid(image_size: Sequence[int], patch_size: int, stride: int) -> tuple[int, int]:
    """(h, w) of a convolution of `patch_size` with `stride` and no padding over an (H, W) image."""
    height, width = ((side - patch_size) // stride + 1 for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"an image of {tuple(image_size)} holds no {patch_size}x{patch_size} patch")
    return height, width


def build_side(name: str, side: str) -> nn.Module:
    """An open_clip CLIP with one side ("vision" or "text") of full size and the other as small as can be.

    Raises:
        ValueError: a text tower that prompts cannot be made for.
    """
    if side == "text" and (problem := text_problem(name)):
        raise ValueError(problem)
    config = _model_config(name)
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if side == "text":
        vision = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}
        text["vocab_size"] = 1  # the token table is read from the weights, for the few tokens that are needed
    else:
        text = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 1, "context_length": 1}
        vision["timm_model_pretrained"] = False
    clip = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(**text),
        quick_gelu=bool(config.get("quick_gelu", False)),
    )
    use_cheaper_forms(clip)
    return clip


def build_vision_tower(name: str, image_size: Sequence[int], stride: int) -> nn.Module:
    """open_clip's VisionTransformer with random weights, for any image size and patch stride.

    The library itself ties the stride to the patch size, so the stride, the grid and the position embedding are set on
    the built module; its own forward then serves overlapping patches.

    Args:
        image_size: (H, W). stride: of the patch convolution on both axes, 1..patch size.
    """
    dims = clip_dims(name)
    if not 1 <= stride <= dims.patch_size:
        raise ValueError(
            f"MODEL.BACKBONE.STRIDE_SIZE {stride} must be in 1..{dims.patch_size}, the patch size of {name}"
        )
    visual = build_side(name, "vision").visual
    grid = patch_grid(image_size, dims.patch_size, stride)
    visual.image_size = tuple(image_size)
    visual.grid_size = grid
    visual.conv1.stride = (stride, stride)
    scale = dims.width**-0.5
    visual.positional_embedding = nn.Parameter(scale * torch.randn(1 + grid[0] * grid[1], dims.width))
    return visual


def build_last_blocks(name: str, count: int) -> tuple[nn.ModuleList, nn.Module]:
    """The image tower's last `count` blocks and the norm of its class token, with random weights."""
    visual = build_side(name, "vision").visual
    return nn.ModuleList(list(visual.transformer.resblocks)[-count:]), visual.ln_post


def build_text_encoder(name: str) -> TextEncoder:
    """CLIP's text transformer with random weights."""
    clip = build_side(name, "text")
    return TextEncoder(
        causal=not _model_config(name)["text_cfg"].get("no_causal_mask", False),
        transformer=clip.transformer,
        positional_embedding=clip.positional_embedding,
        ln_final=clip.ln_final,
        projection=clip.text_projection,
    )


# ---- weights -------------------------------------------------------------------------------------------------------


def _weights_file(name: str, pretrained: str, key: str) -> Path:
    """Local path of a pretrained tag or file; a download for open_clip's own tags."""
    if pretrained and Path(pretrained).is_file():
        return Path(pretrained)
    embedded = ASSETS / "clip" / f"{name}.safetensors"
    if not pretrained and embedded.is_file():
        return embedded
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none for this model"
    how = (
        f"Set {key} to a file (OpenAI's ViT-B-16.pt, an open_clip .safetensors or .pt) or to a tag of open_clip "
        f"({tags}); or set MODEL.BACKBONE.PRETRAIN False for random weights."
    )
    if not pretrained:
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN is True, but {key} is empty. {how}")
    source = open_clip.get_pretrained_cfg(name, pretrained)
    if not source:
        raise FileNotFoundError(f"{key} {pretrained!r} is no file and no tag of {name}. {how}")
    try:
        return download(source)
    except Exception as error:
        raise FileNotFoundError(
            f"the weights {pretrained!r} of {name} could not be fetched ({first_line(error) or type(error).__name__}). "
            f"{how} Without any, configs/SAGA/own_small.yml takes the small CLIP that ships with the package "
            "(MODEL.CLIP.NAME ViT-XS-8-pedestrians)"
        ) from error


# By what a file of a kind is known.
_TELLING = {
    "vit": ("visual.conv1.weight", "visual.positional_embedding"),
    "resnet": ("visual.conv1.weight", "visual.attnpool.positional_embedding"),
    "timm": ("visual.trunk.",),
}


def _read_clip_weights(name: str, pretrained: str, key: str) -> dict[str, Tensor]:
    path = _weights_file(name, pretrained, key)
    raw = read_state_dict(path)
    state = {k.removeprefix("text."): v for k, v in raw.items()}
    dims = clip_dims(name)
    missing = [k for k in _TELLING[dims.kind] if not any(n.startswith(k) for n in state)]
    if missing:
        own = any(k.startswith("backbone.") for k in raw)
        hint = ". It is a checkpoint of a run, which MODEL.WEIGHTS reads" if own else ""
        what = {"vit": "CLIP ViT", "resnet": "CLIP ResNet", "timm": "CLIP with a tower of timm's"}[dims.kind]
        raise ValueError(f"{path} is no {what} file: it lacks {', '.join(missing)}{hint}")
    quick_gelu = dims.quick_gelu
    tag = None if Path(pretrained).is_file() else open_clip.get_pretrained_cfg(name, pretrained)
    found = trained_with_quick_gelu(path, raw, tag)
    if "token_embedding.trained_ids" not in raw:  # the embedded CLIP: its name is the only one that it has
        check_activation(path, found, name, quick_gelu)
    activation = "QuickGELU" if quick_gelu else "GELU"
    logger.info(
        "CLIP weights from %s; activation %s (%s)", path, activation, found[1] if found else "by the model's name"
    )
    return state


def read_clip_weights(name: str, pretrained: str, key: str = "MODEL.BACKBONE.PRETRAIN_PATH") -> dict[str, Tensor]:
    """Weights of a whole CLIP model in open_clip's keys.

    Args:
        pretrained: a file, a tag of open_clip, or empty for the weights that ship with a model of assets/clip.
        key: the key that says so, for messages.

    Raises:
        FileNotFoundError: nothing reachable; the message says how to get weights.
        ValueError: not a CLIP ViT file, or weights whose activation the named model does not have.
    """
    kept = _KEPT.get()
    if kept is None:
        return _read_clip_weights(name, pretrained, key)
    if (name, pretrained) not in kept:
        kept[name, pretrained] = _read_clip_weights(name, pretrained, key)
    return kept[name, pretrained]


# Files that `read_clip_weights` has read inside a `weights_read_once`.
_KEPT: ContextVar[dict[tuple[str, str], dict[str, Tensor]] | None] = ContextVar("clip_weights", default=None)


@contextmanager
def weights_read_once() -> Iterator[None]:
    """Keep what `read_clip_weights` reads until the scope ends: both towers of a model are in one file. Scopes know
    nothing of each other."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def resize_position_embedding(
    embedding: Tensor, source_grid: tuple[int, int] | None, target_grid: tuple[int, int]
) -> Tensor:
    """Resize the patch rows of a position embedding; the class row is copied.

    Bilinear, corners not aligned, no antialiasing, in float32, as the published code does at load time.

    Args:
        embedding: (1 + h*w, D) for the source grid (h, w). A source grid of None is taken from the number of rows where
            that is unambiguous: the target's own, or a square.

    Raises:
        ValueError: the rows fit neither.
    """
    rows = embedding.shape[0] - 1
    if source_grid is None or source_grid[0] * source_grid[1] != rows:
        side = math.isqrt(rows)
        if rows == target_grid[0] * target_grid[1]:
            source_grid = target_grid
        elif side * side == rows:
            source_grid = (side, side)
        else:
            named = f"{source_grid[0]}x{source_grid[1]}" if source_grid else "unknown"
            raise ValueError(
                f"position embedding of {rows} patches: neither the grid {named} of the model that it should come "
                f"from, nor the grid {target_grid[0]}x{target_grid[1]} asked for, nor a square. Say what it was "
                "trained with to tools/convert_checkpoint.py (--from-size, --from-stride), and start from its result "
                "with MODEL.WEIGHTS"
            )
    if source_grid == target_grid:
        return embedding.float()
    patches = embedding[1:].float().t().reshape(1, -1, *source_grid)
    patches = F.interpolate(patches, size=target_grid, mode="bilinear", align_corners=False, antialias=False)
    return torch.cat([embedding[:1].float(), patches.flatten(2)[0].t()])


def load_vision_tower(visual: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the "visual." part of CLIP weights, strictly, resizing the position embedding to the tower's grid."""
    own = {k[len("visual.") :]: v.float() for k, v in state.items() if k.startswith("visual.")}
    own["positional_embedding"] = resize_position_embedding(
        own["positional_embedding"], clip_dims(name).native_grid, visual.grid_size
    )
    load_strictly(visual, own, f"image tower of {name}")


def load_text_encoder(encoder: TextEncoder, state: Mapping[str, Tensor], name: str) -> None:
    """Load the text part of CLIP weights, strictly."""
    keep = ("transformer.", "ln_final.")
    own = {
        k: v.float() for k, v in state.items() if k.startswith(keep) or k in ("positional_embedding", "text_projection")
    }
    if not encoder.causal:
        own["padding"] = token_embedding(state, [PADDING])[0]
    load_strictly(encoder, own, f"text tower of {name}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own = module.state_dict()
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unknown {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    if problems:
        raise ValueError(f"weights do not fit the {what}: {first_few(problems, 8, '; ')}")
    module.load_state_dict(state)


def token_embedding(state: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """(T, W) embeddings of BPE token ids.

    The embedded CLIP stores only the rows that its captions trained.

    Raises:
        ValueError: a token whose row was never trained.
    """
    index = torch.as_tensor(list(ids))
    if "token_embedding.weight" in state:
        return state["token_embedding.weight"][index].float()
    row_of = {int(t): i for i, t in enumerate(state["token_embedding.trained_ids"])}
    unknown = [int(t) for t in index if int(t) not in row_of]
    if unknown:
        words = ", ".join(repr(open_clip.decode(torch.tensor([t])).strip()) for t in unknown)
        raise ValueError(f"the embedded CLIP never saw {words}: use words of its captions, or real CLIP weights")
    return state["token_embedding.trained_rows"][[row_of[int(t)] for t in index]].float()


def template_embedding(state: Mapping[str, Tensor]) -> Tensor:
    """(PROMPT_LENGTH, W) embeddings of the prompt template.

    The context slots of the template are placeholders that no model reads, so theirs are zero.
    """
    ids = template_token_ids()
    ends = [i for i, t in enumerate(ids) if t != PLACEHOLDER]
    rows = token_embedding(state, [ids[i] for i in ends])
    out = rows.new_zeros(len(ids), rows.shape[1])
    out[ends] = rows
    return out


def anchor_phrases() -> list[str]:
    """The phrases that text anchors start from, one a line in assets/anchor_phrases.txt."""
    return [line.strip() for line in (ASSETS / "anchor_phrases.txt").read_text().splitlines() if line.strip()]


def anchor_phrase_embeddings(state: Mapping[str, Tensor]) -> list[Tensor]:
    """Token embeddings (T_k, W) of each anchor phrase, without start and end of text."""
    out = []
    for ids in open_clip.tokenize(anchor_phrases()):
        ids = ids.tolist()
        out.append(token_embedding(state, ids[1 : ids.index(END_OF_TEXT)]))
    return out
