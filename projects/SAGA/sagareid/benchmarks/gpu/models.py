"""Every head on every backbone: float32 equals the CPU, and mixed precision computes in the low type."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

from ... import compat, get_cfg
from ...config_checks import check_config
from ...engine.trainer import SAGATrainer, StepTrainer
from ...errors import message_of
from .. import cases
from .job import Job, Products, tf32

# Largest difference of a value or gradient in float32 between GPU and CPU, over the largest entry of that tensor.
TOLERANCE = 2e-3
# Least share of the arithmetic of products (forward and backward) that mixed precision must do in the low type.
LOW_SHARE = 0.9


IMAGE_SIZE, CLASSES = (48, 24), 4


def _host_backbone(name: str, width: int, *opts: Any) -> tuple:
    slim = ("MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.SAGA.NUM_DOMAIN_ANCHORS", 0)
    return (
        "MODEL.BACKBONE.NAME",
        name,
        "MODEL.BACKBONE.FEAT_DIM",
        width,
        "MODEL.BACKBONE.PRETRAIN",
        False,
        *slim,
        *opts,
    )


BACKBONES = {
    "CLIP": (),
    "CLIP, map": ("MODEL.BACKBONE.OUTPUT", "map"),
    "ResNet-18": _host_backbone("build_resnet_backbone", 512, "MODEL.BACKBONE.DEPTH", "18x"),
    "ViT": _host_backbone(
        "build_vit_backbone",
        768,
        "MODEL.BACKBONE.DEPTH",
        "small",
        "MODEL.BACKBONE.STRIDE_SIZE",
        (16, 16),
        "MODEL.BACKBONE.DROP_PATH_RATIO",
        0.0,
        "MODEL.BACKBONE.DROP_RATIO",
        0.0,
        "MODEL.BACKBONE.ATT_DROP_RATE",
        0.0,
    ),
}


def own_heads() -> list[str]:
    """Names of the registered heads of this package."""
    return sorted(n for n, h in compat.registered(REID_HEADS_REGISTRY).items() if h.__module__.startswith("sagareid."))


def model_config(head: str, *opts: Any) -> Any:
    """A small model of a head; the tower is the embedded CLIP's architecture.

    Raises:
        ValueError: head and backbone do not fit.
    """
    cfg = get_cfg()
    losses = ("SupConLoss",) if head == "PromptHead" else ("CrossEntropyLoss", "TripletLoss")
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "SAGABaseline", "MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_clip_vit_backbone", "MODEL.CLIP.NAME", "ViT-XS-8-pedestrians"),
            *("MODEL.BACKBONE.FEAT_DIM", 128, "MODEL.BACKBONE.STRIDE_SIZE", (8, 8), "MODEL.CLIP.TOKEN_LAYERS", [4]),
            *("INPUT.SIZE_TRAIN", list(IMAGE_SIZE), "INPUT.SIZE_TEST", list(IMAGE_SIZE), "MODEL.HEADS.NAME", head),
            *("MODEL.HEADS.NUM_CLASSES", CLASSES, "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"),
            *("MODEL.LOSSES.NAME", losses, "SOLVER.OPT", "Adam", *opts),
        ]
    )
    check_config(cfg)
    return cfg


def model_batch(device: str) -> dict[str, Tensor]:
    """Two images each of CLASSES identities."""
    images = torch.rand(2 * CLASSES, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) * 255
    targets = torch.arange(CLASSES).repeat_interleave(2)
    batch = {"images": images, "targets": targets, "camids": torch.arange(2 * CLASSES) % 2}
    return {name: value.to(device) for name, value in batch.items()}


def float32_difference(model: nn.Module, device: str) -> float:
    """Largest relative difference of losses, gradients and evaluation features of a model and its copy on the device.

    Raises:
        RuntimeError: more than `cases.TOLERANCE`; the message names the tensors.
    """
    moved = copy.deepcopy(model).to(device)
    found = []
    with tf32(False), EventStorage():
        for m, place in ((moved, device), (model, "cpu")):
            batch = model_batch(place)
            values = cases.loss_and_gradients(m.train(), lambda m=m, batch=batch: m(batch))
            with torch.no_grad():
                features = m.eval()(batch)
            parts = cases.by_part(m, features) if getattr(m, "feature_layout", None) else {"feature": features}
            found.append({name: value.detach().cpu() for name, value in (values | parts).items()})
    return cases.largest_difference(*found)


def trains_in(model: nn.Module, cfg: Any, device: str, dtype: torch.dtype, count: int = 6) -> dict[str, Any]:
    """Training steps under autocast on the device, with the scaler where the type is float16.

    Returns:
        low_share of the products' operations that the low type does; the largest kind of float32 product; the losses.

    Raises:
        RuntimeError: no weight moved, or products are computed in float32.
    """
    model = copy.deepcopy(model).to(device)
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    batch, losses = model_batch(device), []
    trainer = StepTrainer(model, itertools.repeat(batch), optimizer, None, dtype)
    with EventStorage() as storage, Products() as products:
        for trainer.iter in range(count):
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
    moved = sum(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    if not moved or not all(np.isfinite(losses)):
        raise RuntimeError(f"{dtype}: {moved} weights moved in {count} steps, losses {losses}")
    share = products.by_type[dtype] / products.total
    high = [(kind, n / products.total) for (kind, t), n in products.by_kind.most_common() if t is torch.float32]
    found = {"low_share": share, "float32": dict(high[:3]), "losses": [losses[0], losses[-1]], "weights_moved": moved}
    if trainer.grad_scaler is not None:
        found["scale"] = trainer.grad_scaler.get_scale()
    if share < LOW_SHARE:
        raise RuntimeError(
            f"{dtype}: only {share:.0%} of the products' operations are in it; in float32: {found['float32']}"
        )
    return found


def models_step(job: Job) -> None:
    """Every head of ours on every backbone, and FastReID's head on ours."""
    rows, refused = [], []
    types = [torch.bfloat16, torch.float16] if job.cuda else [torch.bfloat16]
    if not job.cuda:
        job.skip("float16 with the scaler needs a GPU")
    for backbone, head in itertools.product(job.scale.backbones, [*own_heads(), "EmbeddingHead"]):
        if head == "EmbeddingHead" and backbone == "CLIP":
            continue  # FastReID's head reads a map
        name = f"{head} on {backbone}"
        try:
            cfg = model_config(head, *BACKBONES[backbone])
            torch.manual_seed(0)
            model = build_model(cfg)
            with EventStorage(), torch.no_grad():
                model.train()(model_batch("cpu"))
        except (ValueError, TypeError) as error:
            refused.append(f"{name}: {message_of(error)}"[:160])
            continue
        row: dict[str, Any] = {"model": name}
        rows.append(row)
        with job.part(name):
            torch.manual_seed(0)
            model = build_model(cfg)
            row["float32_difference"] = float32_difference(model, job.device)
            for dtype in types:
                row[str(dtype).removeprefix("torch.")] = trains_in(
                    model, cfg, job.device, dtype, count=6 if job.cuda else 2
                )
        job.note(models=rows, refused=refused)
    if rows:
        worst = max((r["float32_difference"], r["model"]) for r in rows if "float32_difference" in r)
        shares = [r[t]["low_share"] for r in rows for t in ("bfloat16", "float16") if t in r]
        job.say(
            f"{len(rows)} pairs ({len(refused)} refused by their config); float32 within {worst[0]:.1e} of the CPU "
            f"({worst[1]}); at least {min(shares, default=0):.1%} of the products in the low type"
        )
