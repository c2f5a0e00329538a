"""Same person or not: similarities of pairs, error rates at a threshold, identification where somebody may be missing.

Q queries, G gallery images, F feature width, P people, R resamples, T points of a curve.

Pairs are counted in blocks of queries, in `BINS` bins of similarity, so that memory does not grow with their number.
The edges of the bins are the thresholds that are looked at: rates at them are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.metrics import auc, roc_curve
from tqdm import tqdm

__all__ = ["BINS", "ENOUGH", "Curve", "Faces", "Interval", "Pairs", "Resamples", "can_tell", "compare", "open_set"]

BINS = 2**14  # of [-1, 1]; a power of two, so that scaling by it does not round
BLOCK_BYTES = 128 * 2**20
PAIR_BYTES = 32  # similarity, its bin, and masks of a pair
# A rate is told where so many errors are expected at it: the rule of 30 (Doddington et al. 2000), which puts the true
# rate within 30 % of the one found with a confidence of 90 %.
ENOUGH = 30
# Resampled counts reach down to this share of the other people's pairs, or to all pairs where they are few.
TAIL, FEW = 0.25, 2_000_000
WRONG = -2.0  # below every similarity: a query whose best match is another person is found at no threshold


def can_tell(trials: float, rate: float) -> bool:
    """Whether a rate of errors can be told from so many trials (`ENOUGH`)."""
    return trials * rate >= ENOUGH


class Curve(NamedTuple):
    """Rates as the threshold falls. At `thresholds[i]` a share `false[i]` of what is wrong is let through, and a share
    `right[i]` of what is right."""

    false: np.ndarray  # (T,) rising
    right: np.ndarray  # (T,) rising
    thresholds: np.ndarray  # (T,) falling; the first lets nothing through

    @classmethod
    def of(cls, right: np.ndarray, false: np.ndarray, right_weight: np.ndarray, false_weight: np.ndarray) -> Curve:
        """From scores and how much each counts."""
        labels = np.repeat([1, 0], [len(right), len(false)])
        scores, weights = np.concatenate([right, false]), np.concatenate([right_weight, false_weight])
        counted = weights > 0
        return cls(
            *roc_curve(labels[counted], scores[counted], sample_weight=weights[counted], drop_intermediate=False)
        )

    def at(self, rate: float) -> int:
        """The place of the lowest threshold at which no more than a share `rate` of what is wrong is let through."""
        return int(np.searchsorted(self.false, rate, side="right")) - 1

    def place(self, threshold: float) -> int:
        """The place of a threshold, or of the next higher one."""
        return int(np.searchsorted(-self.thresholds, -threshold, side="right")) - 1

    @property
    def area(self) -> float:
        return float(auc(self.false, self.right))


class Interval(NamedTuple):
    """The ends of a 95 % interval by the percentile bootstrap."""

    low: float
    high: float


@dataclass(frozen=True)
class Faces:
    """Features to compare, with who and where they are.

    Attributes:
        features: (n, F) float32 of unit length.
        people: (n,) numbers of people from 0, the same in query and gallery.
        cameras: (n,) numbers of cameras.
    """

    features: np.ndarray
    people: np.ndarray
    cameras: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Counts of pairs of a query and a gallery image.

    Attributes:
        same: (BINS,) of one person in two cameras.
        other: (BINS,) of two people in two cameras.
        other_within: (BINS,) of two people in one camera.
        same_bins, same_people: (S,) bin and person of every pair of one person in two cameras.
        best_same: (Q,) similarity to the best image of the same person in another camera; WRONG where there is none.
        best_other: (Q,) similarity to the best image of another person, in any camera.
    """

    same: np.ndarray
    other: np.ndarray
    other_within: np.ndarray
    same_bins: np.ndarray
    same_people: np.ndarray
    best_same: np.ndarray
    best_other: np.ndarray

    def curve(self) -> Curve:
        """The ROC of pairs in two cameras."""
        return Curve.of(edges(), edges(), self.same, self.other)


def edges() -> np.ndarray:
    """(BINS,) the lower end of each bin."""
    return np.arange(BINS) / (BINS / 2) - 1


def share_above(counts: np.ndarray, threshold: float) -> float | None:
    """Share of counted pairs (BINS,) at or above a threshold that is the edge of a bin; None of no pairs."""
    total = counts.sum()
    return float(counts[edges() >= threshold].sum() / total) if total else None


def _blocks(
    query: Faces, gallery: Faces, description: str
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Slices of queries with their (b, G) similarities, and whether person and camera are the same."""
    count = len(query.people)
    size = max(1, BLOCK_BYTES // (PAIR_BYTES * max(len(gallery.people), 1)))
    with tqdm(total=count, desc=description, unit="query", disable=None, leave=False) as bar:
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            similarity = query.features[part] @ gallery.features.T
            same_person = query.people[part, None] == gallery.people[None]
            same_camera = query.cameras[part, None] == gallery.cameras[None]
            yield part, similarity, same_person, same_camera
            bar.update(part.stop - start)


def _bins(similarity: np.ndarray) -> np.ndarray:
    return (np.floor(similarity * (BINS // 2)).astype(np.int32) + BINS // 2).clip(0, BINS - 1)


def compare(query: Faces, gallery: Faces) -> Pairs:
    """Count every pair, block by block.

    Raises:
        ValueError: no pair of one person in two cameras, or none of two people.
    """
    same, other, within = (np.zeros(BINS, np.int64) for _ in range(3))
    same_bins, same_people = [], []
    best_same, best_other = (np.full(len(query.people), WRONG, np.float32) for _ in range(2))
    for part, similarity, same_person, same_camera in _blocks(query, gallery, "pairs"):
        bins, match = _bins(similarity), same_person & ~same_camera
        for counts, mask in ((other, ~same_person & ~same_camera), (within, ~same_person & same_camera)):
            counts += np.bincount(bins[mask], minlength=BINS)
        same_bins.append(bins[match])
        same_people.append(query.people[part][np.nonzero(match)[0]])
        best_same[part] = np.where(match, similarity, WRONG).max(1)
        best_other[part] = np.where(same_person, WRONG, similarity).max(1)
    joined = np.concatenate(same_bins)
    same += np.bincount(joined, minlength=BINS)
    if not same.sum() or not other.sum():
        lacking = "one person in two cameras" if not same.sum() else "two people in two cameras"
        raise ValueError(
            f"no pair of {lacking} among {len(query.people)} queries and {len(gallery.people)} gallery images"
        )
    return Pairs(same, other, within, joined, np.concatenate(same_people), best_same, best_other)


def open_set(pairs: Pairs, weights: np.ndarray | None = None) -> Curve:
    """Identification where some queries have nobody in the gallery: DIR (right) against FAR (false).

    Each query is asked twice: with its person in the gallery, and with the person taken out. FAR is the share of the
    latter that are answered, by the best image of somebody else; DIR the share of the former whose best image is their
    own person's and reaches the threshold (Phillips, Grother and Micheals 2011). A person's images of the query's own
    camera do not count, as in every evaluation of the field.

    Args:
        weights: (Q,) how much each query counts; None: alike.
    """
    weights = np.ones(len(pairs.best_same)) if weights is None else weights
    mated = pairs.best_same > WRONG
    found = np.where(pairs.best_same > pairs.best_other, pairs.best_same, WRONG)[mated]
    return Curve.of(found, pairs.best_other, weights[mated], weights)


class Resamples:
    """Pairs and queries with their people drawn anew: whole people, since their pairs depend on each other.

    A pair of two people counts as often as both were drawn, the product; one person's pairs as often as the person.
    """

    def __init__(self, query: Faces, gallery: Faces, pairs: Pairs, *, resamples: int = 200, seed: int = 0):
        """Draw, and count what lies above TAIL.

        Raises:
            ValueError: no resample.
        """
        if resamples < 1:
            raise ValueError(f"{resamples} resamples; expected 1 or more")
        self.query, self.gallery, self.pairs = query, gallery, pairs
        people = 1 + int(max(query.people.max(), gallery.people.max()))
        draws = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)
        self.weights = draws.astype(np.float64)  # (R, P)
        above = np.cumsum(pairs.other[::-1])[::-1] / pairs.other.sum()
        self._low = 0 if pairs.other.sum() <= FEW else int((above <= TAIL).argmax())
        self._other = self._count_other()  # (R, BINS), bins below `_low` empty
        self._total = self._total_other()  # (R,)

    def _count_other(self) -> np.ndarray:
        counts = np.zeros((len(self.weights), BINS))
        for part, similarity, same_person, same_camera in _blocks(self.query, self.gallery, "resampling"):
            bins = _bins(similarity)
            rows, columns = np.nonzero(~same_person & ~same_camera & (bins >= self._low))
            bins = bins[rows, columns]
            ours, theirs = self.query.people[part][rows], self.gallery.people[columns]
            for count, weight in zip(counts, self.weights):
                count += np.bincount(bins, weights=weight[ours] * weight[theirs], minlength=BINS)
        return counts

    def _total_other(self) -> np.ndarray:
        """Weight of all pairs of two people in two cameras: all pairs, less those in one camera, less those of one
        person."""
        cameras = 1 + int(max(self.query.cameras.max(), self.gallery.cameras.max()))

        def by_camera(faces: Faces) -> np.ndarray:
            return np.stack(
                [np.bincount(faces.cameras, weights=w[faces.people], minlength=cameras) for w in self.weights]
            )

        ours, theirs = by_camera(self.query), by_camera(self.gallery)
        own = np.bincount(self.pairs.same_people, minlength=self.weights.shape[1])
        return ours.sum(1) * theirs.sum(1) - (ours * theirs).sum(1) - self.weights**2 @ own

    def verification(self, rate: float) -> tuple[Interval, Interval]:
        """Intervals of the threshold that lets a share `rate` of the pairs of two people through, and of the share
        of one person's pairs that is."""
        thresholds, rights = [], []
        taken = np.flatnonzero(self.pairs.same + self.pairs.other)  # where `Pairs.curve` has its points
        for weight, other, total in zip(self.weights, self._other, self._total):
            same = np.bincount(self.pairs.same_bins, weights=weight[self.pairs.same_people], minlength=BINS)
            if total <= 0 or not same.sum():
                continue  # the same person, drawn over and over
            fits = np.cumsum(other[::-1])[::-1] <= rate * total
            fits[: self._low] = False
            place = int(fits.argmax()) if fits.any() else BINS
            place = next(iter(taken[taken >= place]), BINS)
            thresholds.append(place / (BINS / 2) - 1)
            rights.append(same[place:].sum() / same.sum())
        return _interval(thresholds), _interval(rights)

    def identification(self, rate: float) -> tuple[Interval, Interval]:
        """Intervals of the threshold at a FAR of `rate`, and of DIR there. The gallery stays as it is."""
        thresholds, rights = [], []
        mated = self.pairs.best_same > WRONG
        for weight in self.weights[:, self.query.people]:
            if not weight[mated].sum():
                continue
            curve = open_set(self.pairs, weight)
            place = curve.at(rate)
            thresholds.append(min(curve.thresholds[place], 1.0))
            rights.append(curve.right[place])
        return _interval(thresholds), _interval(rights)


def _interval(values: list[float]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5]) if values else (np.nan, np.nan)
    return Interval(float(low), float(high))
