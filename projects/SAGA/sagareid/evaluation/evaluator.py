"""Rank-k, mAP and mINP of every feature that a model gives, from one pass over the images."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from fastreid.config import CfgNode
from fastreid.evaluation import DatasetEvaluator

from .. import compat
from . import postprocess
from .features import EvaluationFeature, Parts, build_feature, reported_features
from .ranking import Distances, Ranking, rank_together, roc_metrics
from .tables import legend

__all__ = ["SAGAEvaluator"]

RANKS = (1, 5, 10)

logger = logging.getLogger(__name__)


class SAGAEvaluator(DatasetEvaluator):
    """What FastReID's `ReidEvaluator` reports, of several features of one extraction side by side.

    `evaluate` returns, in percent, Rank-1, Rank-5, Rank-10, mAP, mINP and metric (FastReID's mean of Rank-1 and mAP) of
    the result, and ``<feature>/Rank-1``, ``<feature>/mAP``, ``<feature>/mINP`` of the others (`features`). With
    TEST.ROC: FastReID's TPR@FPR of the result.
    """

    def __init__(self, cfg: CfgNode, num_query: int, *, layout: Mapping[str, int] | None = None):
        """
        Args:
            cfg: reads MODEL.DEVICE, the keys of the features, and TEST.{METRIC,FEATURE,REPORT,NFC,AQE,RERANK,ROC}.
            num_query: the first ``num_query`` images are the queries.
            layout: part name -> width, in the order of the model's output (B, sum of the widths), e.g.
                ``{"refined": 768, "cls": 768, "proj": 512}``. None: one part, "feature", as FastReID's heads give.

        Raises:
            ValueError: the model does not give a feature that TEST.FEATURE or TEST.REPORT names.
        """
        self.cfg, self.num_query = cfg, num_query
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._layout = dict(layout) if layout else None
        if self._layout:
            reported_features(cfg, self._layout)  # a wrong name is said before the images are read

    def reset(self) -> None:
        self._batches = []

    def process(self, inputs, outputs) -> None:
        """Keep a batch: ``outputs`` (B, F) raw features.

        Raises:
            ValueError: F is not the width of the layout.
        """
        width = outputs.shape[1]
        if self._layout is None:
            self._layout = {"feature": width}
        if width != sum(self._layout.values()):
            raise ValueError(
                f"the model gives features of width {width}, its layout {self._layout} sums to "
                f"{sum(self._layout.values())}; the layout must name what the head concatenates"
            )
        self._batches.append((outputs.to("cpu", torch.float32), inputs["targets"].cpu(), inputs["camids"].cpu()))

    def evaluate(self):
        """The metrics of all batches since the last call, by name; empty in every process but the first.

        Every process gets all features and ranks a part of the queries (`rank_together`).

        Raises:
            ValueError: no image, features that are not finite, or nothing to rank.
        """
        batches, self._batches = self._batches, []
        columns = [torch.cat(parts) for parts in zip(*batches)] or [None] * 3
        del batches  # they hold the features a second time
        features, pids, camids = (compat.gather_rows(column) for column in columns)
        if features is None:
            raise ValueError("no image was evaluated; the test set is empty")
        layout = self._layout or {"feature": features.shape[1]}
        return self._evaluate(features, pids.numpy(), camids.numpy(), layout)

    def _evaluate(self, features: Tensor, pids: np.ndarray, camids: np.ndarray, layout: Mapping[str, int]):
        bad = int((~torch.isfinite(features.sum(1))).sum())  # sums, not a mask as large as the features
        if bad:
            raise ValueError(
                f"{bad} of {len(features)} features are not finite, so they cannot be ranked. The model has diverged "
                "(lower SOLVER.BASE_LR) or overflows in float16 (set SOLVER.AMP.DTYPE bfloat16)"
            )
        q = self.num_query
        ids = pids[:q], pids[q:], camids[:q], camids[q:]
        results: OrderedDict[str, float] = OrderedDict()
        table: dict[str, OrderedDict[str, float]] = {}
        for name in reported_features(self.cfg, layout):
            distances = self.distances(name, features, layout)
            ranking = rank_together(distances, *ids, description=name)
            if ranking is None:  # the first process has them all
                continue
            metrics = table[name] = _metrics(ranking)
            if len(table) > 1:
                results.update((f"{name}/{key}", metrics[key]) for key in ("Rank-1", "mAP", "mINP"))
                continue
            results.update(metrics)
            results["metric"] = (metrics["Rank-1"] + metrics["mAP"]) / 2
            if ranking.skipped:
                logger.warning(
                    "%d of %d queries have no match in another camera of the gallery and are left out of the metrics",
                    ranking.skipped,
                    q,
                )
            if self.cfg.TEST.ROC.ENABLED:
                results.update(roc_metrics(distances, *ids))
        if table:
            self._log(table, len(pids) - q, results)
        return results

    def _log(self, table: Mapping[str, Mapping[str, float]], num_gallery: int, results: Mapping[str, float]) -> None:
        """The metrics of every feature as a table that explains its rows."""
        transductive = [name for name in ("NFC", "AQE", "RERANK") if self.cfg.TEST[name].ENABLED]
        further = [f"{key} {value:.2f}" for key, value in results.items() if key.startswith("TPR@")]
        further += [f"transductive: {', '.join(transductive)}"] if transductive else []
        head = ["feature", *(f"Rank-{k}" for k in RANKS), "mAP", "mINP"]
        rows = [[name, *metrics.values()] for name, metrics in table.items()]
        logger.info(
            "Result: %s (first row), in percent. %d queries, %d gallery images%s\n%s\n%s",
            next(iter(table)),
            self.num_query,
            num_gallery,
            "".join(f"; {text}" for text in further),
            tabulate(rows, headers=head, tablefmt="pipe", floatfmt=".2f"),
            legend(table),
        )

    def distances(self, name: str, features: Tensor, layout: Mapping[str, int]) -> Distances:
        """Of the queries to the gallery by a feature, for `rank_together` or `rank_in_blocks`.

        Args:
            features: (n, F) of the model, queries first.

        Raises:
            ValueError: TEST.METRIC or TEST.RERANK does not go with the feature.
        """
        feature = build_feature(self.cfg, name)
        x = feature.make(self._parts(features, layout))
        if self.cfg.TEST.AQE.ENABLED:
            aqe = self.cfg.TEST.AQE
            x = postprocess.expand_queries(x, aqe.QE_TIME, aqe.QE_K, aqe.ALPHA)
        shared = x.untyped_storage().data_ptr() == features.untyped_storage().data_ptr()
        return self._distances(feature, x, in_place=not shared)

    def _parts(self, features: Tensor, layout: Mapping[str, int]) -> Parts:
        """On MODEL.DEVICE where that is a GPU, with TEST.NFC."""
        device = self.cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
        return Parts(features, layout, centralise=self._centralise, device=device)

    def _centralise(self, x: Tensor) -> Tensor:
        """TEST.NFC on the queries alone and on the gallery alone."""
        nfc = self.cfg.TEST.NFC
        if not nfc.ENABLED:
            return x
        q = self.num_query
        return torch.cat([postprocess.nfc(x[:q], nfc.K1, nfc.K2), postprocess.nfc(x[q:], nfc.K1, nfc.K2)])

    def _distances(self, feature: EvaluationFeature, x: Tensor, *, in_place: bool = False) -> Distances:
        """Distances of the queries to the gallery. in_place: x may be overwritten."""
        test, metric = self.cfg.TEST, self.cfg.TEST.METRIC
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"TEST.METRIC is {metric!r}; expected cosine or euclidean")
        if metric == "cosine":
            x = F.normalize(x, dim=1, eps=1e-12, out=x if in_place else None)
        query, gallery = x[: self.num_query], x[self.num_query :]
        if test.RERANK.ENABLED:
            if feature.has_own_distance:
                raise ValueError(
                    f"TEST.RERANK compares by the Euclidean distance, and the feature {feature.name} has one of its "
                    "own: set TEST.RERANK.ENABLED False, or leave it out of TEST.FEATURE and TEST.REPORT"
                )
            return postprocess.reranked_distances(query, gallery, test.RERANK.K1, test.RERANK.K2, test.RERANK.LAMBDA)
        return lambda start, stop: feature.distance(query[start:stop], gallery, metric)


def _metrics(ranking: Ranking) -> OrderedDict[str, float]:
    """Rank-k, mAP and mINP in percent."""
    metrics = OrderedDict((f"Rank-{k}", float(ranking.cmc[k - 1]) * 100) for k in RANKS)
    metrics["mAP"] = float(np.mean(ranking.ap)) * 100
    metrics["mINP"] = float(np.mean(ranking.inp)) * 100
    return metrics
