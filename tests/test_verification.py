"""Rates, thresholds and identification on similarities whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from sagareid.evaluation import verification as v
from sagareid.evaluation.verification import Faces, Resamples, can_tell, compare, open_set, share_above


def line(similarities) -> np.ndarray:
    """Unit vectors in the plane whose products with (1, 0) are the given ones."""
    x = np.asarray(similarities, np.float64)
    return np.stack([x, np.sqrt(1 - x**2)], axis=1).astype(np.float32)


def random_faces(seed=0, people=12, cameras=3, shots=4, width=6):
    """Queries and gallery, people close to centres of their own; and one stranger a camera in the gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, width))

    def faces(n_shots, strangers):
        who = np.repeat(np.arange(people), cameras * n_shots)
        where = np.tile(np.repeat(np.arange(cameras), n_shots), people)
        x = centres[who] + 0.8 * rng.normal(size=(len(who), width))
        x = np.concatenate([x, rng.normal(size=(strangers, width))])
        who = np.concatenate([who, people + np.arange(strangers)])
        where = np.concatenate([where, np.arange(strangers) % cameras])
        return Faces((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), who, where)

    return faces(1, 0), faces(shots, cameras)


def all_pairs(query: Faces, gallery: Faces):
    """Similarity, same person, same camera of every pair, in loops."""
    rows = []
    for x, who, where in zip(query.features, query.people, query.cameras):
        for y, other, there in zip(gallery.features, gallery.people, gallery.cameras):
            rows.append((float(np.float32(x @ y)), who == other, where == there))
    similarity, person, camera = map(np.array, zip(*rows))
    return similarity, person, camera


def test_counts_of_three_pairs_by_hand():
    """One query in camera 0: itself in camera 0 and 1 (0.5), another in camera 1 (0.25) and in camera 0 (0.75)."""
    query = Faces(line([1.0]), np.array([0]), np.array([0]))
    gallery = Faces(line([0.9, 0.5, 0.25, 0.75]), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
    pairs = compare(query, gallery)
    assert [pairs.same.sum(), pairs.other.sum(), pairs.other_within.sum()] == [1, 1, 1]
    assert share_above(pairs.same, 0.5) == 1 and share_above(pairs.same, 0.5 + 2 / v.BINS) == 0
    assert share_above(pairs.other, 0.25) == 1 and share_above(pairs.other_within, 0.75) == 1
    assert pairs.best_same[0] == pytest.approx(0.5) and pairs.best_other[0] == pytest.approx(0.75)
    assert not open_set(pairs).right[:-1].any()  # the best image is another person's, at every threshold


@pytest.mark.parametrize("blocks", [False, True])
def test_rates_equal_a_loop_over_all_pairs(blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(v, "BLOCK_BYTES", 1)  # one query a block
    query, gallery = random_faces()
    similarity, person, camera = all_pairs(query, gallery)
    pairs = compare(query, gallery)
    same, other = similarity[person & ~camera], similarity[~person & ~camera]
    curve = pairs.curve()
    for rate in (0.3, 0.1, 0.05):
        place = curve.at(rate)
        threshold = curve.thresholds[place]
        assert curve.false[place] == pytest.approx((other >= threshold).mean()) and curve.false[place] <= rate
        assert curve.right[place] == pytest.approx((same >= threshold).mean())
        lower = curve.thresholds[place + 1]
        assert (other >= lower).mean() > rate  # no lower threshold will do
        assert share_above(pairs.other, threshold) == pytest.approx(curve.false[place])
        assert curve.place(threshold) == place
    assert curve.area == pytest.approx((same[:, None] > other[None]).mean(), abs=1e-3)
    assert share_above(pairs.other_within, 0.0) == pytest.approx((similarity[~person & camera] >= 0).mean())


def test_identification_equals_a_loop_over_searches():
    query, gallery = random_faces()
    curve = open_set(compare(query, gallery))
    for threshold in (0.95, 0.8, 0.6):
        found = answered = 0
        for x, who, where in zip(query.features, query.people, query.cameras):
            similarity = gallery.features @ x
            own = similarity[(gallery.people == who) & (gallery.cameras != where)].max()
            other = similarity[gallery.people != who].max()
            found += own > other and own >= threshold
            answered += other >= threshold
        place = curve.place(threshold)
        assert curve.right[place] == pytest.approx(found / len(query.people))
        assert curve.false[place] == pytest.approx(answered / len(query.people))
    assert curve.right[-2] < 1 or curve.false[-2] < 1


def test_resampling_counts_pairs_as_if_people_were_there_so_often():
    """Against a loop over all pairs, each counted as often as its two people were drawn."""
    query, gallery = random_faces(people=6, shots=1)
    pairs = compare(query, gallery)
    drawn = Resamples(query, gallery, pairs, resamples=5, seed=3)
    similarity, person, camera = all_pairs(query, gallery)
    ours = np.repeat(query.people, len(gallery.people))
    theirs = np.tile(gallery.people, len(query.people))
    thresholds, rights = [], []
    for weight in drawn.weights:
        counted = np.where(person, weight[ours], weight[ours] * weight[theirs])
        other, same = ~person & ~camera, person & ~camera
        for threshold in v.edges()[np.flatnonzero(pairs.same + pairs.other)]:
            above = similarity >= threshold
            if counted[other & above].sum() <= 0.2 * counted[other].sum():
                thresholds.append(threshold)
                rights.append(counted[same & above].sum() / counted[same].sum())
                break
    for interval, values in zip(drawn.verification(0.2), (thresholds, rights)):
        assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]))
    again = Resamples(query, gallery, pairs, resamples=5, seed=3)
    assert again.verification(0.2) == drawn.verification(0.2) and again.identification(0.3) == drawn.identification(0.3)
    assert Resamples(query, gallery, pairs, resamples=5, seed=4).verification(0.2) != drawn.verification(0.2)


def test_the_tail_alone_gives_the_same_interval(monkeypatch):
    query, gallery = random_faces()
    pairs = compare(query, gallery)
    whole = Resamples(query, gallery, pairs, resamples=20).verification(0.1)
    monkeypatch.setattr(v, "FEW", 10)
    tail = Resamples(query, gallery, pairs, resamples=20)
    assert tail._low > 0 and tail.verification(0.1) == whole


def test_an_interval_covers_what_more_people_say():
    """The threshold of many people lies in the interval of few."""
    few = random_faces(seed=1, people=30)
    many = random_faces(seed=2, people=120)
    interval = Resamples(*few, compare(*few)).verification(0.05)[0]
    curve = compare(*many).curve()
    assert interval.low < curve.thresholds[curve.at(0.05)] < interval.high
    assert 0.01 < interval.high - interval.low < 0.3


def test_what_cannot_be_told():
    assert can_tell(30_000, 1e-3) and not can_tell(29_000, 1e-3)
    query, gallery = random_faces(cameras=1)
    with pytest.raises(ValueError, match="no pair of one person in two cameras among 12 queries"):
        compare(query, gallery)
    with pytest.raises(ValueError, match="0 resamples"):
        Resamples(*random_faces(), compare(*random_faces()), resamples=0)
