"""Every loss against loops in float64 written from its definition; gradients; any batch composition; autocast."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sagareid.modeling import losses as L

# images per identity from one to five, in no order
TARGETS = torch.tensor([3, 1, 1, 7, 3, 7, 7, 7, 7, 0, 3])


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- oracles: one element at a time, Python floats -----------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.double().tolist(), b.double().tolist()))


def cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - norm for x in row]


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, eps: float) -> float:
    total = 0.0
    for row, target in zip(logits.double().tolist(), targets.tolist()):
        for c, log_p in enumerate(log_softmax(row)):
            total -= ((1 - eps) * (c == target) + eps / len(row)) * log_p
    return total / len(targets)


def supcon(u: Tensor, v: Tensor, targets: Tensor) -> float:
    total = 0.0
    for i, y in enumerate(targets.tolist()):
        log_p = log_softmax([dot(u[i], v[j]) for j in range(len(v))])
        positives = [log_p[j] for j, other in enumerate(targets.tolist()) if other == y]
        total -= sum(positives) / len(positives)
    return total / len(targets)


def triplet(f: Tensor, targets: Tensor, margin: float | None) -> float:
    f, y, terms = f.double(), targets.tolist(), []
    for i in range(len(f)):
        distance = [math.sqrt(max(dot(f[i] - f[j], f[i] - f[j]), 1e-12)) for j in range(len(f))]
        negatives = [d for j, d in enumerate(distance) if y[j] != y[i]]
        if negatives:
            gap = max(d for j, d in enumerate(distance) if y[j] == y[i]) - min(negatives)
            terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, margin + gap))
    return sum(terms) / len(terms)


def diversity(rows: list[Tensor]) -> float:
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return sum(cosine(rows[i].flatten(), rows[j].flatten()) ** 2 for i, j in pairs) / len(pairs)


def consistency(parts: Tensor, mass: Tensor, targets: Tensor, margin: float) -> float:
    y, numerator, denominator = targets.tolist(), 0.0, 0.0
    for k in range(parts.shape[1]):
        top = max(mass[:, k].tolist())
        for i in range(len(y)):
            similarity = [dot(parts[i, k], parts[j, k]) for j in range(len(y))]
            positive = min([similarity[j] for j in range(len(y)) if y[j] == y[i] and j != i], default=1e4)
            negative = max(similarity[j] for j in range(len(y)) if y[j] != y[i])
            alive = float(mass[i, k]) / top
            numerator += max(0.0, margin - positive + negative) * alive
            denominator += alive
    return numerator / denominator


def decorrelation(f: Tensor, g: Tensor) -> float:
    def standardise(x: Tensor) -> list[list[float]]:
        columns = []
        for column in x.double().t().tolist():
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1))
            columns.append([(v - mean) / max(deviation, 1e-4) for v in column])
        return columns

    a, b = standardise(f), standardise(g)
    entries = [sum(x * y for x, y in zip(p, q)) / (len(f) - 1) for p in a for q in b]
    return sum(e * e for e in entries) / len(entries)


def unit_parts(seed: int = 4) -> Tensor:
    return F.normalize(made(len(TARGETS), 5, 12, seed=seed), dim=2)


MASS = made(len(TARGETS), 5, seed=5).abs() + 0.1

# name: (our loss as a function of one tensor, that tensor, the oracle's value)
CASES = {
    "identity": (
        lambda x: L.identity_loss(x, TARGETS, 0.1),
        made(11, 9),
        lambda x: smoothed_cross_entropy(x, TARGETS, 0.1),
    ),
    "identity of three classifiers": (
        lambda x: L.identity_loss(x, TARGETS, 0.1),
        made(3, 11, 9),
        lambda x: sum(smoothed_cross_entropy(q, TARGETS, 0.1) for q in x) / 3,
    ),
    "image to text": (
        lambda x: L.image_text_loss(x, made(9, 16, seed=2), TARGETS, 0.1),
        made(11, 16),
        lambda x: smoothed_cross_entropy(x.double() @ made(9, 16, seed=2).double().t(), TARGETS, 0.1),
    ),
    "supervised contrast": (
        lambda x: L.supervised_contrastive_loss(x, made(11, 16, seed=3), TARGETS),
        made(11, 16),
        lambda x: supcon(x, made(11, 16, seed=3), TARGETS),
    ),
    "triplet": (
        lambda x: L.batch_hard_triplet_loss(x, TARGETS, 0.3),
        made(11, 16),
        lambda x: triplet(x, TARGETS, 0.3),
    ),
    "triplet, soft margin": (
        lambda x: L.batch_hard_triplet_loss(x, TARGETS, None),
        made(11, 16),
        lambda x: triplet(x, TARGETS, None),
    ),
    "anchor diversity": (L.anchor_diversity_loss, made(6, 20), lambda x: diversity(list(x))),
    "classifier diversity": (
        lambda x: L.classifier_diversity_loss(list(x)),
        made(4, 9, 20),
        lambda x: diversity(list(x)),
    ),
    "anchor consistency": (
        lambda x: L.anchor_consistency_loss(x, MASS, TARGETS, 0.3),
        unit_parts(),
        lambda x: consistency(x, MASS, TARGETS, 0.3),
    ),
    "decorrelation": (
        lambda x: L.decorrelation_loss(x, made(11, 6, seed=8)),
        made(11, 16),
        lambda x: decorrelation(x, made(11, 6, seed=8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_its_definition(name):
    loss, x, oracle = CASES[name]
    assert float(loss(x)) == pytest.approx(oracle(x), rel=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_definition(name):
    """Along a few directions, against central differences of the oracle in float64."""
    loss, x, oracle = CASES[name]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert gradient.isfinite().all()
    for seed in (21, 22):
        direction, step = made(*x.shape, seed=seed).double(), 1e-6
        slope = (oracle(x.double() + step * direction) - oracle(x.double() - step * direction)) / (2 * step)
        assert float((gradient.double() * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_float32_under_autocast(name):
    """bfloat16 features give a float32 loss, computed from them in float32; so do float32 features inside autocast."""
    loss, x, oracle = CASES[name]
    half = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from_half, from_float = loss(half), loss(x)
    assert from_half.dtype == from_float.dtype == torch.float32
    assert float(from_half) == pytest.approx(oracle(half.float()), rel=1e-4)
    assert float(from_float) == pytest.approx(oracle(x), rel=2e-5)


# ---- what a batch can look like ------------------------------------------------------------------------------------


def test_triplet_of_one_identity_has_no_negatives():
    x = made(4, 8).requires_grad_()
    loss = L.batch_hard_triplet_loss(x, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and float(x.grad.abs().max()) == 0


def test_triplet_counts_the_image_itself_as_a_positive():
    """Identities of one image: the distance to itself is 1e-6, not a missing positive."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert float(L.batch_hard_triplet_loss(x, torch.tensor([0, 1]), margin=6.0)) == pytest.approx(1.0, abs=1e-4)


def test_triplet_of_equal_features_has_a_finite_gradient():
    x = torch.ones(4, 8, requires_grad=True)
    L.batch_hard_triplet_loss(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad.isfinite().all()


def test_triplet_does_not_depend_on_the_order_of_the_batch():
    x, order = made(11, 16), torch.randperm(11, generator=torch.Generator().manual_seed(1))
    shuffled = L.batch_hard_triplet_loss(x[order], TARGETS[order])
    torch.testing.assert_close(shuffled, L.batch_hard_triplet_loss(x, TARGETS))


def test_contrast_of_one_identity_is_the_mean_over_all_pairs():
    x, y = made(4, 8), made(4, 8, seed=1)
    loss = L.supervised_contrastive_loss(x, y, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(loss, -F.log_softmax(x @ y.t(), dim=1).mean())


def test_contrast_of_large_features_stays_finite():
    """Features are not normalised, so logits of several hundred happen."""
    x = (30 * made(6, 64)).requires_grad_()
    loss = L.supervised_contrastive_loss(x, x.detach(), torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_diversity_of_a_single_row_is_nothing():
    for loss in (L.anchor_diversity_loss(made(1, 8)), L.classifier_diversity_loss([made(3, 8)])):
        assert loss.item() == 0


def test_diversity_of_almost_orthogonal_rows_keeps_its_digits():
    """Two rows at a cosine of 1e-3: a squared sum minus its diagonal of ones would lose it in float32."""
    rows = torch.tensor([[1.0, 0.0], [1e-3, 1.0]])
    assert float(L.anchor_diversity_loss(rows)) == pytest.approx(1e-6, rel=1e-4)


def test_consistency_ignores_an_image_without_another_of_its_identity():
    """It adds nothing to the sum, but counts among the visible, as published."""
    parts, mass, y = unit_parts()[:3], torch.ones(3, 5), torch.tensor([0, 0, 1])
    assert float(L.anchor_consistency_loss(parts, mass, y)) == pytest.approx(consistency(parts, mass, y, 0.3), rel=1e-5)


def test_consistency_of_one_identity_and_of_no_mass():
    parts = unit_parts()[:4].clone().requires_grad_()
    for mass in (torch.ones(4, 5), torch.zeros(4, 5)):
        loss = L.anchor_consistency_loss(parts, mass, torch.zeros(4, dtype=torch.long))
        loss.backward()
        assert loss.item() == 0 and parts.grad.isfinite().all()


def test_consistency_passes_gradient_to_the_mass():
    mass = MASS.clone().requires_grad_()
    L.anchor_consistency_loss(unit_parts(), mass, TARGETS).backward()
    assert float(mass.grad.abs().max()) > 0


def test_decorrelation_leaves_the_reference_alone():
    x, reference = made(11, 4).requires_grad_(), made(11, 4, seed=1).requires_grad_()
    L.decorrelation_loss(x, reference).backward()
    assert float(x.grad.abs().max()) > 0 and reference.grad is None


def test_decorrelation_of_a_constant_dimension_is_finite():
    x = made(8, 4)
    x[:, 0] = 2.0
    x.requires_grad_()
    loss = L.decorrelation_loss(x, made(8, 4, seed=1))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
