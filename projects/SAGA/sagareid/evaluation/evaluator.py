"""Rank-k, mAP and mINP of every feature a head gives, from one pass over the images.

Distances and ranks are made for a block of queries at a time and handed to FastReID's own `evaluate_rank`, so memory
beyond the features stays near `BLOCK_BYTES` where the host holds three Q x G matrices. Figures equal the host's.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from fastreid.config import CfgNode
from fastreid.evaluation import DatasetEvaluator
from fastreid.utils import comm

from . import postprocess
from .device_ranking import rank_block

__all__ = ["Ranking", "SAGAEvaluator", "available_rows", "rank_in_blocks", "result_row", "row_features"]

MAX_RANK = 50
NEAREST = 10
BLOCK_BYTES = 256 * 2**20
# Per query and gallery image: float32 distance, its int64 place in the order, temporaries of the two.
PAIR_BYTES = 24
FUSION_PARTS = ("refined", "cls", "proj")
RANKS = (1, 5, 10)

logger = logging.getLogger(__name__)

Distances = Callable[[int, int], Tensor]  # (start, stop) -> (stop - start, G), of those queries


class Ranking(NamedTuple):
    """What a ranking gives: CMC curve and, per query that has a match in another camera, AP and INP (all 0..1)."""

    cmc: np.ndarray  # (MAX_RANK,) float32
    ap: np.ndarray  # (valid,)
    inp: np.ndarray  # (valid,)
    skipped: int  # queries without a match
    queries: np.ndarray  # (valid,) which queries they are
    nearest: (
        np.ndarray
    )  # (valid, NEAREST or fewer) their first gallery images, without the same person in the same camera


def available_rows(layout: Mapping[str, int]) -> list[str]:
    """The rows that a head of this layout can report: its parts, then what can be made of them.

    "parts" (per-anchor features) stands alone: it is neither in "concat" nor in "fusion".
    """
    single = [name for name in layout if name != "parts"]
    rows = list(single)
    if len(single) > 1:
        rows.append("concat")
    if "refined" in layout and layout.get("cls") == layout["refined"]:
        rows.append("orth")
    if all(name in layout for name in FUSION_PARTS):
        rows.append("fusion")
    return rows + [name for name in layout if name == "parts"]


def result_row(cfg: CfgNode, layout: Mapping[str, int]) -> str:
    """The row whose figures are the result, by TEST.FEATURE.

    Raises:
        ValueError: the head does not give the row that TEST.FEATURE names.
    """
    rows = available_rows(layout)
    wanted = cfg.TEST.FEATURE
    if wanted == "auto":
        return next((name for name in ("fusion", "concat") if name in rows), rows[0])
    _check_row("TEST.FEATURE", wanted, rows)
    return wanted


def _check_row(key: str, name: str, rows: list[str]) -> None:
    if name not in rows:
        raise ValueError(f"{key} names the row {name!r}; this model gives {', '.join(rows)}. Set {key} to one of them.")


def row_features(
    name: str,
    features: Tensor,
    layout: Mapping[str, int],
    fusion: CfgNode,
    centralise: Callable[[Tensor], Tensor] = lambda x: x,
    device: str | torch.device | None = None,
) -> Tensor:
    """The feature of a row from what the model gives.

    Args:
        name: one of `available_rows`.
        features: (n, sum of the widths) raw parts beside each other. layout: their names and widths, in order.
        fusion: TEST.FUSION.
        centralise: applied to each part after its L2 normalisation, for neighbour feature centralisation.
        device: where each part is computed; None: where `features` is.

    Returns:
        (n, D): unit rows for a named part, concat and orth; for fusion rows of one norm; "feature" as the model gave
        it.
    """
    device = features.device if device is None else device
    ends = list(itertools.accumulate(layout.values()))
    slices = {part: slice(end - width, end) for (part, width), end in zip(layout.items(), ends)}

    def part(key: str) -> Tensor:
        x = features[:, slices[key]].to(device)
        return centralise(x if key == "feature" else postprocess.l2(x))

    if name == "concat":
        width = sum(width for key, width in layout.items() if key != "parts")
        if list(layout)[-1] == "parts" or "parts" not in layout:
            raw = features[:, :width]
        else:
            raw = torch.cat([features[:, slices[key]] for key in layout if key != "parts"], dim=1)
        return centralise(postprocess.l2(raw.to(device)))
    if name == "orth":
        return postprocess.orthogonal(part("refined"), part("cls"), fusion.BETA)
    if name == "fusion":
        return postprocess.fuse({key: part(key) for key in FUSION_PARTS}, {k: fusion[k.upper()] for k in FUSION_PARTS})
    return part(name)


class SAGAEvaluator(DatasetEvaluator):
    """What FastReID's `ReidEvaluator` reports, of several features of one extraction side by side.

    Args:
        cfg: reads MODEL.DEVICE and TEST.{METRIC,FEATURE,REPORT,FUSION,NFC,AQE,RERANK,ROC}.
        num_query: the first ``num_query`` images are the queries.
        layout: part name -> width, in the order of the model's output (B, sum of the widths), e.g.
            ``{"refined": 768, "cls": 768, "proj": 512}``. None: one part, "feature", as FastReID's heads give.

    `evaluate` returns, in percent, Rank-1, Rank-5, Rank-10, mAP, mINP and metric (the host's mean of Rank-1 and mAP) of
    the result row, and ``<row>/Rank-1``, ``<row>/mAP``, ``<row>/mINP`` of the others. With TEST.ROC: the host's
    TPR@FPR of the result row.

    With TEST.METRIC cosine, distance is 1 - cosine, as the host's. With euclidean it is the squared distance of the
    named rows, which are normalised by definition, and of "feature" as the model gave it, as the host's.
    """

    def __init__(
        self,
        cfg: CfgNode,
        num_query: int,
        *,
        layout: Mapping[str, int] | None = None,
    ):
        self.cfg, self.num_query = cfg, num_query
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._layout = dict(layout) if layout else None
        if self._layout:
            self._rows(self._layout)  # a wrong name is said before the images are read

    def reset(self) -> None:
        self._batches = []

    def process(self, inputs, outputs) -> None:
        """Keep a batch: ``outputs`` (B, F) raw features."""
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
        batches, self._batches = self._batches, []
        if comm.get_world_size() > 1:
            comm.synchronize()
            gathered = comm.gather(batches, dst=0)
            if not comm.is_main_process():
                return {}
            batches = list(itertools.chain(*gathered))
        if not batches:
            raise ValueError("no image was evaluated; the test set is empty")
        features, pids, camids = (torch.cat(parts) for parts in zip(*batches))
        del batches  # they hold the features a second time
        layout = self._layout or {"feature": features.shape[1]}
        return self._evaluate(features, pids.numpy(), camids.numpy(), layout)

    def _rows(self, layout: Mapping[str, int]) -> list[str]:
        """The rows to report, the result first."""
        possible = available_rows(layout)
        result = result_row(self.cfg, layout)
        wanted = possible if "all" in self.cfg.TEST.REPORT else self.cfg.TEST.REPORT
        for name in wanted:
            _check_row("TEST.REPORT", name, possible)
        return [result, *(name for name in wanted if name != result)]

    def _evaluate(self, features: Tensor, pids: np.ndarray, camids: np.ndarray, layout: Mapping[str, int]):
        bad = int((~torch.isfinite(features.sum(1))).sum())  # the sum of a row, not a mask as large as the features
        if bad:
            raise ValueError(
                f"{bad} of {len(features)} features are not finite, so they cannot be ranked. The model has diverged "
                "(lower SOLVER.BASE_LR) or overflows in float16 (set SOLVER.AMP.DTYPE bfloat16)"
            )
        q = self.num_query
        transductive = [name for name in ("NFC", "AQE", "RERANK") if self.cfg.TEST[name].ENABLED]
        results: OrderedDict[str, float] = OrderedDict()
        table: list[list[str | float]] = []
        for name in self._rows(layout):
            distances = self.distances(name, features, layout)
            ranking = rank_in_blocks(distances, pids[:q], pids[q:], camids[:q], camids[q:], description=name)
            figures = OrderedDict((f"Rank-{k}", float(ranking.cmc[k - 1]) * 100) for k in RANKS)
            figures["mAP"] = float(np.mean(ranking.ap)) * 100
            figures["mINP"] = float(np.mean(ranking.inp)) * 100
            table.append([name, *figures.values(), "transductive: " + ", ".join(transductive) if transductive else ""])
            if len(table) > 1:
                results.update((f"{name}/{key}", figures[key]) for key in ("Rank-1", "mAP", "mINP"))
                continue
            results.update(figures)
            results["metric"] = (figures["Rank-1"] + figures["mAP"]) / 2
            if ranking.skipped:
                logger.warning(
                    "%d of %d queries have no match in another camera of the gallery and are left out of the figures",
                    ranking.skipped,
                    q,
                )
            if self.cfg.TEST.ROC.ENABLED:
                results.update(_roc(distances, pids[:q], pids[q:], camids[:q], camids[q:]))
        head = ["feature", *(f"Rank-{k}" for k in RANKS), "mAP", "mINP", ""]
        logger.info(
            "Result: %s (first row). %d queries, %d gallery images\n%s",
            table[0][0],
            q,
            len(pids) - q,
            tabulate(table, headers=head, tablefmt="pipe", floatfmt=".2f"),
        )
        return results

    def distances(self, name: str, features: Tensor, layout: Mapping[str, int]) -> Distances:
        """Of the queries to the gallery in a row, for `rank_in_blocks`. features: (n, F) of the model, queries
        first."""
        x = self.row_features(name, features, layout)
        if self.cfg.TEST.AQE.ENABLED:
            aqe = self.cfg.TEST.AQE
            x = postprocess.expand_queries(x, aqe.QE_TIME, aqe.QE_K, aqe.ALPHA)
        return self._distances(x, own=name != "feature" or self.cfg.TEST.AQE.ENABLED)

    def row_features(self, name: str, features: Tensor, layout: Mapping[str, int]) -> Tensor:
        """(n, D) features of a row, on MODEL.DEVICE where that is a GPU."""
        device = self.cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
        return row_features(name, features, layout, self.cfg.TEST.FUSION, self._centralise, device)

    def _centralise(self, x: Tensor) -> Tensor:
        """TEST.NFC on the queries alone and on the gallery alone."""
        nfc = self.cfg.TEST.NFC
        if not nfc.ENABLED:
            return x
        q = self.num_query
        return torch.cat([postprocess.nfc(x[:q], nfc.K1, nfc.K2), postprocess.nfc(x[q:], nfc.K1, nfc.K2)])

    def _distances(self, x: Tensor, *, own: bool = False) -> Distances:
        """Distances of the queries to the gallery by TEST.METRIC. ``own``: x is nobody else's and may be
        overwritten."""
        if self.cfg.TEST.METRIC not in ("cosine", "euclidean"):
            raise ValueError(f"TEST.METRIC is {self.cfg.TEST.METRIC!r}; expected cosine or euclidean")
        cosine = self.cfg.TEST.METRIC == "cosine"
        if cosine:
            x = F.normalize(x, dim=1, eps=1e-12, out=x if own else None)
        query, gallery = x[: self.num_query], x[self.num_query :]
        if self.cfg.TEST.RERANK.ENABLED:
            options = self.cfg.TEST.RERANK
            return postprocess.reranked_rows(query, gallery, options.K1, options.K2, options.LAMBDA)
        if cosine:
            return lambda start, stop: (query[start:stop] @ gallery.t()).neg_().add_(1)
        return lambda start, stop: postprocess.squared_distance(query[start:stop], gallery)


def rank_in_blocks(
    distances: Distances,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    *,
    block: int | None = None,
    description: str = "",
) -> Ranking:
    """Rank the gallery for every query, a block of queries at a time.

    Through FastReID's `evaluate_rank` where the distances are on the CPU, and by `rank_block` where they are on a GPU.

    A query's gallery images of the same person from the same camera do not count. Queries without any other match are
    skipped. CMC curves of the blocks are turned back into counts, so the figures equal those of one whole matrix.

    The host's Cython reads past the end of a query's list where fewer than 50 gallery images are left for it, its
    Python refuses. Such galleries get images of nobody at infinite distance, which change no figure.

    Args:
        distances: gives rows of the (Q, G) matrix.
        block: queries at a time; None: as many as `BLOCK_BYTES` holds.

    Raises:
        ValueError: there is no query, no gallery image, or no query with a match.
    """
    num_query, num_gallery = len(q_pids), len(g_pids)
    same_person = _count(q_pids, g_pids)
    same_camera = _count_pairs(q_pids, q_camids, g_pids, g_camids)
    valid = same_person > same_camera
    if not valid.any():
        raise ValueError(
            f"none of the {num_query} queries has an image of the same person from another camera among the "
            f"{num_gallery} gallery images, so nothing can be ranked. Expected person and camera ids that query and "
            "gallery share; look at both splits' file names"
        )
    shortest = num_gallery - int(same_camera[valid].max())
    padding = max(0, MAX_RANK - shortest)
    if block is None:
        block = max(1, BLOCK_BYTES // (PAIR_BYTES * (num_gallery + padding)))

    blocks: list[_Block] = []
    with tqdm(total=num_query, desc=f"ranking {description}".strip(), unit="query", disable=None, leave=False) as bar:
        for start in range(0, num_query, block):
            stop = min(start + block, num_query)
            use = valid[start:stop]
            if use.any():
                rows = distances(start, stop)
                if not use.all():
                    rows = rows[torch.from_numpy(use).to(rows.device)]
                ids = (q_pids[start:stop][use], g_pids, q_camids[start:stop][use], g_camids)
                rank = _rank_on_device if rows.is_cuda else _rank_on_cpu
                blocks.append(rank(rows, ids, padding, min(NEAREST, shortest)))
            bar.update(stop - start)
    hits = sum((block[0] for block in blocks), np.zeros(MAX_RANK, np.int64))
    ap, inp, nearest = (np.concatenate(column) for column in list(zip(*blocks))[1:])
    cmc = hits.astype(np.float32) / np.float32(len(ap))
    return Ranking(cmc, ap, inp, num_query - len(ap), np.flatnonzero(valid), nearest)


_Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # hits, AP, INP, nearest
_Ids = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # pids of queries and gallery, camids of both


def _rank_on_cpu(distances: Tensor, ids: _Ids, padding: int, count: int) -> _Block:
    """One block through FastReID. padding: images of nobody to add to the gallery."""
    from fastreid.evaluation.rank import evaluate_rank  # here: the first import may compile it

    q_pids, g_pids, q_camids, g_camids = ids
    rows = distances.numpy()
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=np.inf)
        g_pids = np.concatenate([g_pids, np.full(padding, min(q_pids.min(), g_pids.min()) - 1)])
        g_camids = np.concatenate([g_camids, np.full(padding, -1)])
    cmc, ap, inp = evaluate_rank(rows, q_pids, g_pids, q_camids, g_camids, MAX_RANK)
    hits = np.rint(np.asarray(cmc, np.float64) * len(ap)).astype(np.int64)
    return hits, np.asarray(ap), np.asarray(inp), _nearest(rows, q_pids, g_pids, q_camids, g_camids, count)


def _rank_on_device(distances: Tensor, ids: _Ids, padding: int, count: int) -> _Block:
    """One block where the distances are. padding: `rank_block` needs none."""
    tensors = (torch.from_numpy(x).to(distances.device) for x in ids)
    ranked = rank_block(distances, *tensors, max_rank=MAX_RANK, count=count)
    hits, ap, inp, nearest = (x.cpu().numpy() for x in ranked)
    return hits, ap, inp, nearest


def _nearest(rows: np.ndarray, q_pids, g_pids, q_camids, g_camids, count: int) -> np.ndarray:
    """(m, count) gallery indices by distance; ``rows`` (m, G)."""
    rows = np.where((q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids), np.inf, rows)
    some = np.argpartition(rows, count - 1, axis=1)[:, :count]
    some.sort(axis=1)  # of equal distances the earlier image first
    order = np.take_along_axis(rows, some, 1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def _count(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How often each of ``values`` (m,) occurs in ``among`` (n,)."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def _count_pairs(a: np.ndarray, b: np.ndarray, among_a: np.ndarray, among_b: np.ndarray) -> np.ndarray:
    """How often each pair (a, b) occurs among (among_a, among_b)."""
    pairs = np.concatenate([np.stack([a, b], 1), np.stack([among_a, among_b], 1)])
    codes = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return _count(codes[: len(a)], codes[len(a) :])


def _roc(distances: Distances, q_pids, g_pids, q_camids, g_camids) -> dict[str, float]:
    """The host's TPR@FPR figures (evaluation/reid_evaluation.py:113), its pairs collected in blocks of queries.

    One score for every pair stays in memory: TEST.ROC is for small test sets.
    """
    from sklearn.metrics import roc_curve

    from fastreid.evaluation.roc import evaluate_roc

    block = max(1, BLOCK_BYTES // (PAIR_BYTES * len(g_pids)))
    scores, labels = [], []
    for start in range(0, len(q_pids), block):
        part = slice(start, start + block)
        rows = distances(start, min(start + block, len(q_pids))).cpu().numpy()
        block_scores, block_labels = evaluate_roc(rows, q_pids[part], g_pids, q_camids[part], g_camids)
        scores.append(block_scores)
        labels.append(block_labels)
    fprs, tprs, _ = roc_curve(np.concatenate(labels), np.concatenate(scores))
    return {f"TPR@FPR={fpr:.0e}": float(tprs[np.argmin(np.abs(fprs - fpr))]) for fpr in (1e-4, 1e-3, 1e-2)}
