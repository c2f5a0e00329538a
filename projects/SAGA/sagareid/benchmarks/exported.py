"""How fast an exported model runs and how well it ranks, beside the PyTorch model that it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from .. import compat
from ..data import loaders
from ..deploy.export import Exported, load_exported
from ..deploy.feature_model import FeatureModel
from ..deploy.options import TOLERANCE
from ..deploy.traced import Traced
from ..evaluation.evaluator import SAGAEvaluator
from .measure import in_turn


def compare_latency(
    cfg: Any,
    model: nn.Module,
    exported: Exported,
    *,
    feature: str = "auto",
    attention: bool = False,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 5,
) -> dict[int, dict[str, Any]]:
    """Time PyTorch ("plain") and the file ("ours") in turn on the CPU: batch size -> what `measure.in_turn` returns."""
    traced = Traced(FeatureModel(cfg, model, feature), attention, camera=exported.camera).eval()
    from_file = load_exported(exported.path, exported.format)[0]
    times = {}
    for batch in batch_sizes:
        inputs = traced.example(batch)
        plain = functools.partial(_without_gradients, traced, inputs)
        ours = functools.partial(from_file, *inputs)
        times[batch] = in_turn(plain, ours, rounds, "cpu", name=f"batches of {batch}")
    return times


def _without_gradients(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    with torch.inference_mode():
        module(*inputs)


def compare_ranking(
    cfg: Any, model: nn.Module, exported: Exported, dataset: str, *, feature: str = "auto"
) -> dict[str, dict[str, float]]:
    """Rank a test set with PyTorch's features and with the file's, by cosine, without post-processing.

    Returns:
        {"pytorch", variant} -> the evaluator's metrics in percent.
    """
    traced = Traced(FeatureModel(cfg, model, feature), camera=exported.camera).eval()
    from_file = load_exported(exported.path, exported.format)[0]
    given = ("images", "cameras")[: 1 + traced.takes_cameras]
    return rank_in_turn(
        cfg,
        dataset,
        traced.module.width,
        {
            "pytorch": lambda batch: traced(*(batch[name] for name in given)),
            exported.variant: lambda batch: from_file(*(batch[name] for name in given))[0],
        },
    )


def rank_in_turn(
    cfg: Any, dataset: str, width: int, models: Mapping[str, Callable[[dict[str, Any]], torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Rank a test set by the features of several models, batch by batch, by cosine, without post-processing.

    Args:
        width: F of all of them. models: from a batch of the test loader to (B, F), on the CPU.

    Returns:
        Name -> the evaluator's metrics in percent.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.DEVICE, plain.TEST.METRIC, plain.TEST.FEATURE, plain.TEST.REPORT = "cpu", "cosine", "feature", []
    for name in ("NFC", "AQE", "RERANK", "ROC"):
        plain.TEST[name].ENABLED = False
    plain.freeze()
    loader, num_query = loaders.build_test_loader(plain, dataset)
    layout = {"feature": width}
    evaluators = {name: SAGAEvaluator(plain, num_query, layout=layout) for name in models}
    with torch.inference_mode(), compat.quiet_host():
        for batch in tqdm(loader, desc=f"{dataset}, both models", unit="batch", disable=None):
            for name, features in models.items():
                evaluators[name].process(batch, features(batch))
    return {name: dict(evaluator.evaluate()) for name, evaluator in evaluators.items()}


def report(
    exported: Exported,
    times: dict[int, dict[str, Any]] | None = None,
    ranking: dict[str, dict[str, float]] | None = None,
) -> str:
    """The measurements as tables: size, parameters and difference; latency by batch size; metrics with both."""
    differences = ", ".join(f"{d:.1e} at batch {b}" for b, d in exported.difference.items())
    blocks = [
        tabulate(
            [
                ["file", f"{exported.format} {exported.variant}, {exported.bytes / 2**20:.2f} MiB"],
                ["numbers in it", f"{exported.parameters:,} (the model has {exported.source_parameters:,} parameters)"],
                ["largest difference from PyTorch", f"{differences} (tolerance {TOLERANCE[exported.variant]:g})"],
                ["largest 1 - cosine", f"{exported.cosine:.1e}"],
            ],
            tablefmt="plain",
        )
    ]
    if times:
        rows = [
            [
                b,
                1000 * t["plain_seconds"],
                1000 * t["ours_seconds"],
                t["ratio"]["median"],
                t["ratio"]["low"],
                t["ratio"]["high"],
            ]
            for b, t in times.items()
        ]
        headers = ["batch", "PyTorch (ms)", f"{exported.format} (ms)", "PyTorch / it", "quartile", "quartile"]
        blocks.append(tabulate(rows, headers, tablefmt="pipe", floatfmt=(".0f", ".1f", ".1f", ".2f", ".2f", ".2f")))
    if ranking:
        names = ["Rank-1", "mAP", "mINP"]
        rows = [[name, *(metrics[n] for n in names)] for name, metrics in ranking.items()]
        first, second = ranking.values()
        rows.append(["difference", *(second[n] - first[n] for n in names)])
        blocks.append(tabulate(rows, ["", *names], tablefmt="pipe", floatfmt=".2f"))
    return "\n\n".join(blocks)
