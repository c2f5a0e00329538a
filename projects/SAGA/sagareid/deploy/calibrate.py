"""The threshold of a model: what similarity says of pairs that are known, and where to draw the line.

Q queries, G gallery images, F feature width.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.datasets.build import DataSets
from ..evaluation.verification import BINS, ENOUGH, Faces, Pairs, Resamples, can_tell, compare, open_set, share_above
from ..version import __version__
from .extractor import Extractor
from .options import FARS, FPRS

__all__ = ["calibrate", "faces_of", "measure"]

SHOWN = 64  # bins of the histograms in the file


def calibrate(
    extractor: Extractor,
    dataset: str,
    *,
    fmr: float | None = None,
    far: float | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the queries and the gallery of a data set, and choose a threshold; see `measure`.

    Features are those of tools/extract.py: no camera is told to the model.

    Raises:
        OSError, RuntimeError, ValueError: as `DataSets.test`, `measure` and the extractor.
    """
    _check_rates(fmr, far)
    data = DataSets().test(extractor.cfg, dataset)
    items = data.query + data.gallery
    features = extractor(
        [item[0] for item in items], batch_size=batch_size, num_workers=num_workers, progress=True
    ).numpy()
    query, gallery = faces_of(features, items, len(data.query))
    found = measure(query, gallery, fmr=fmr, far=far, resamples=resamples, seed=seed)
    described = {
        "name": dataset,
        "folder": os.path.commonpath([os.path.dirname(os.path.abspath(item[0])) for item in items]),
        "people": len({pid for _, pid, _ in data.query}),
        "cameras": len({camid for _, _, camid in items}),
        "queries": len(data.query),
        "gallery": len(data.gallery),
    }
    return {
        "sagareid": __version__,
        "date": datetime.date.today().isoformat(),
        "checkpoint_sha256": extractor.checkpoint_sha256,
        "feature": extractor.feature,
        "dataset": described,
    } | found


def faces_of(features: np.ndarray, items: Sequence[tuple], num_query: int) -> tuple[Faces, Faces]:
    """Queries and gallery of items (path, pid, camid) and their features (n, F), queries first.

    Images of pid 0 and below are of nobody in particular, each of a person of its own.
    """
    number: dict[Any, int] = {}
    keys = [pid if pid > 0 or i < num_query else ("nobody", i) for i, (_, pid, _) in enumerate(items)]
    people = np.array([number.setdefault(key, len(number)) for key in keys])
    cameras = np.unique([camid for _, _, camid in items], return_inverse=True)[1]
    q = num_query
    return Faces(features[:q], people[:q], cameras[:q]), Faces(features[q:], people[q:], cameras[q:])


def _check_rates(fmr: float | None, far: float | None) -> None:
    if (fmr is None) == (far is None):
        raise ValueError("give one of fmr, the rate of false matches of pairs, and far, of searches")
    for name, rate in (("fmr", fmr), ("far", far)):
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"{name} is {rate:g}; expected a rate above 0 and below 1, such as 0.001")


def measure(
    query: Faces,
    gallery: Faces,
    *,
    fmr: float | None = None,
    far: float | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Rates of right and false matches, and the threshold for a wanted rate of false ones.

    Args:
        fmr: the threshold lets this share of the pairs of two people in two cameras through, at most; or
        far: it answers this share of the searches for somebody who is not in the gallery, at most.
        resamples, seed: of the intervals, 95 %, people drawn anew.

    Returns:
        What can be written as JSON: `threshold`, its `interval`, `wanted`; `at_threshold`, the rates there; `pairs`;
        `tpr_at_fpr` and `dir_at_far`, None where there are too few pairs or queries to tell; `histograms` and `curves`.

    Raises:
        ValueError: too few pairs or queries for the wanted rate; no or two wanted rates.
    """
    _check_rates(fmr, far)
    pairs = compare(query, gallery)
    others, queries = int(pairs.other.sum()), len(query.people)
    wanted, trials, kind = (fmr, others, "pairs") if far is None else (far, queries, "queries")
    assert wanted is not None
    if not can_tell(trials, wanted):
        least = f"Ask for {1.05 * ENOUGH / trials:.2g} or more, or take" if trials > 2 * ENOUGH else "Take"
        raise ValueError(
            f"a rate of {wanted:g} of {trials} {kind} is {trials * wanted:.2g} false matches, too few to tell; "
            f"expected {ENOUGH} or more. {least} a larger data set"
        )
    verification, identification = pairs.curve(), open_set(pairs)
    resampled = Resamples(query, gallery, pairs, resamples=resamples, seed=seed)
    curve, intervals = (
        (verification, resampled.verification) if far is None else (identification, resampled.identification)
    )
    threshold = _threshold(float(curve.thresholds[curve.at(wanted)]))
    answered = identification.place(threshold)
    return {
        "threshold": threshold,
        "interval": list(intervals(wanted)[0]),
        "wanted": {"fmr" if far is None else "far": wanted},
        "at_threshold": {
            "fmr": share_above(pairs.other, threshold),
            "fmr_within_a_camera": share_above(pairs.other_within, threshold),
            "tpr": share_above(pairs.same, threshold),
            "far": float(identification.false[answered]),
            "dir": float(identification.right[answered]),
        },
        "pairs": {
            "same": int(pairs.same.sum()),
            "other": others,
            "other_within_a_camera": int(pairs.other_within.sum()),
            "queries": queries,
        },
        "area_under_roc": verification.area,
        "tpr_at_fpr": {f"{rate:g}": _at(verification, rate, others, resampled.verification) for rate in FPRS},
        "dir_at_far": {f"{rate:g}": _at(identification, rate, queries, resampled.identification) for rate in FARS},
        "resamples": resamples,
        "seed": seed,
        "histograms": _histograms(pairs),
        "curves": {"roc": _thinned(verification), "identification": _thinned(identification)},
    }


def _threshold(value: float) -> float:
    """On the edge of a bin, upwards, so that the rates there are exact; 1 where nothing is let through."""
    return float(min(np.ceil(value * BINS / 2) / (BINS / 2), 1.0))


def _at(curve: Any, rate: float, trials: int, intervals: Any) -> dict[str, Any] | None:
    """The share of what is right at a rate of what is wrong; None where there are too few trials to tell."""
    if not can_tell(trials, rate):
        return None
    place = curve.at(rate)
    return {
        "right": float(curve.right[place]),
        "interval": list(intervals(rate)[1]),
        "threshold": _threshold(float(curve.thresholds[place])),
    }


def _histograms(pairs: Pairs) -> dict[str, Any]:
    """Shares of pairs by similarity, over the part of -1..1 where there are any."""
    counts = np.stack([pairs.same, pairs.other, pairs.other_within])
    used = np.flatnonzero(counts.any(0))
    width = -(-(used[-1] + 1 - used[0]) // SHOWN)
    first = int(used[0])
    groups = np.arange(first, used[-1] + 1, width)
    ends = (np.append(groups, groups[-1] + width) / (BINS / 2) - 1).tolist()
    named = zip(("same", "other", "other_within_a_camera"), counts)
    return {"edges": ends} | {
        name: (np.add.reduceat(count[: used[-1] + 1], groups) / max(count.sum(), 1)).tolist() for name, count in named
    }


def _thinned(curve: Any, points: int = 200) -> dict[str, list[float]]:
    """A curve of few enough points for a file, even in the logarithm of the rate of what is wrong."""
    least = curve.false[curve.false > 0].min()
    rates = np.geomspace(least, 1 - 1e-9, points)
    places = np.unique([curve.at(rate) for rate in rates])
    return {"false": curve.false[places].tolist(), "right": curve.right[places].tolist()}
