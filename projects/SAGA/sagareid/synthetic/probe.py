"""What a pretrained model knows: retrieval of captions, and what a linear classifier reads from its tokens.

Shapes: P pictures, N patches, D vision width, E joint width, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .captioned import PLACE_NAMES, Pictures, pixels, place_bits
from .pretrain_model import PretrainingModel, token_block


@torch.no_grad()
def encode(model: PretrainingModel, data: Pictures, batch: int = 250) -> dict[str, Tensor]:
    """Float32 features of all pictures.

    Returns:
        `image` and `text` (P,E); `cls` (P,D) of the last block, before the norm of the projection; `patches` (P,N,D)
        of the token block.
    """
    model.eval()
    visual = model.clip.visual
    out: dict[str, list[Tensor]] = {"image": [], "text": [], "cls": [], "patches": []}
    visual.patch_dropout.kept = None
    blocks = [token_block(model.clip), token_block(model.clip) + 1]
    for i in range(0, len(data.images), batch):
        f = visual.forward_intermediates(
            pixels(data.images[i : i + batch]), indices=blocks, output_fmt="NLC", output_extra_tokens=True
        )
        out["image"].append(F.normalize(f["image_features"], dim=-1))
        out["patches"].append(f["image_intermediates"][0])
        out["cls"].append(f["image_intermediates_prefix"][1][:, 0])
        out["text"].append(model.text(data.caption[i : i + batch]))
    return {name: torch.cat(parts) for name, parts in out.items()}


def retrieval(image: Tensor, text: Tensor) -> dict[str, float]:
    """Share in percent of images (P,E) whose own caption is the first, or among the first five, of all P captions."""
    similarity = image @ text.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    return {f"R@{k}": round(100 * float((rank < k).float().mean()), 1) for k in (1, 5)}


def _ridge(x: Tensor, y: Tensor, penalty: float = 1e-3) -> Tensor:
    """Least squares (D+1, C) of y (P,C) on standardised x (P,D) with a constant."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y)


def linear_probe(x: Tensor, labels: list[str], test_x: Tensor, test_labels: list[str]) -> float:
    """Accuracy in percent of a linear classifier (ridge regression on one-hot labels) on the test features."""
    classes = sorted(set(labels))
    y = F.one_hot(torch.tensor([classes.index(v) for v in labels]), len(classes)).double()
    mean, std = x.double().mean(0), x.double().std(0).clamp(min=1e-6)
    w = _ridge((x.double() - mean) / std, y)
    z = (test_x.double() - mean) / std
    found = (torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) @ w).argmax(1)
    return round(100 * sum(classes[int(f)] == v for f, v in zip(found, test_labels)) / len(test_labels), 1)


# The features that `encode` gives, and the pictures that they are of.
Split = tuple[dict[str, Tensor], Pictures]
# Attribute -> the place that shows it; what has no place of its own is read from the whole person.
ATTRIBUTE_PLACE: dict[str, str | None] = {
    "hair_colour": "hair",
    "hair_style": "hair",
    "headwear": "headwear",
    "headwear_colour": "headwear",
    "scarf_colour": "scarf",
    "upper": "upper",
    "upper_colour": "upper",
    "upper_colour2": "upper",
    "upper_pattern": "upper",
    "lower": "lower",
    "lower_colour": "lower",
    "shoes": "shoes",
    "shoes_colour": "shoes",
    "bag": "bag",
    "bag_colour": "bag",
    "skin": "skin",
    "build": None,
    "height": None,
}


def _region_mean(patches: Tensor, region: Tensor) -> Tensor:
    """Mean of (P,N,D) over (P,N) bool."""
    weight = region.float() / region.sum(1, keepdim=True).clamp(min=1)
    return (weight[:, None] @ patches)[:, 0]


def probe(
    train_features: dict[str, Tensor], train_data: Pictures, test_features: dict[str, Tensor], test_data: Pictures
) -> dict[str, dict]:
    """What a linear classifier reads from the tokens.

    Returns:
        `attributes` (see `probe_attribute`) and `places` (see `probe_places`), each a dict from name to metrics.
    """
    train, test = (train_features, train_data), (test_features, test_data)
    return {
        "attributes": {name: probe_attribute(name, place, train, test) for name, place in ATTRIBUTE_PLACE.items()},
        "places": probe_places(train, test),
    }


def probe_attribute(name: str, place: str | None, train: Split, test: Split) -> dict[str, float | None]:
    """Accuracies in percent of reading an attribute from tokens.

    Pictures in which the attribute's place does not show are left out, so that all accuracies are about the same ones.

    Returns:
        `cls`, `patch_mean` (all patches) and `place` (the patches where the attribute shows; None for build and
        height), and the share of the most frequent value, `majority`.
    """
    sides = []
    for features, data in (train, test):
        region = torch.ones_like(data.shows, dtype=torch.bool)
        if place:
            region = (data.shows & place_bits()[PLACE_NAMES.index(place)]) != 0
        shown = region.any(1)
        labels = [attributes[name] for attributes, keep in zip(data.attributes, shown.tolist()) if keep]
        patches = features["patches"][shown]
        sides.append((labels, features["cls"][shown], patches.mean(1), _region_mean(patches, region[shown])))
    (labels, *xs), (test_labels, *test_xs) = sides
    cls, patch_mean, at_place = (linear_probe(x, labels, z, test_labels) for x, z in zip(xs, test_xs))
    most_frequent = max(sorted(set(labels)), key=labels.count)
    return {
        "cls": cls,
        "patch_mean": patch_mean,
        "place": at_place if place else None,
        "majority": round(100 * test_labels.count(most_frequent) / len(test_labels), 1),
    }


def probe_places(train: Split, test: Split) -> dict[str, dict[str, float]]:
    """Whether one patch token tells that the patch shows a place: place -> `average_precision` and `chance`, percent.

    Chance is the share of patches that show the place.
    """
    width = train[0]["patches"].shape[-1]
    x, z = (features["patches"].reshape(-1, width).double() for features, _ in (train, test))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, z = (x - mean) / std, (z - mean) / std
    places = {}
    for place, bit in zip(PLACE_NAMES, place_bits()):
        w = _ridge(x, ((train[1].shows & bit) != 0).reshape(-1, 1).double())
        score = (z @ w[:-1])[:, 0]
        truth = ((test[1].shows & bit) != 0).flatten()[score.argsort(descending=True)].double()
        precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1)
        places[place] = {
            "average_precision": round(100 * float((precision * truth).sum() / truth.sum()), 1),
            "chance": round(100 * float(truth.mean()), 1),
        }
    return places


def metrics_table(metrics: dict) -> str:
    """The metrics that `pretrain.pretrain` returns, as text."""
    people = metrics["retrieval"]["people"]
    lines = [
        f"zero-shot image to caption: {_recalls(metrics['retrieval'])} % of {people} unseen people "
        f"(chance {100 / people:.1f})",
        f"among siblings: {_recalls(metrics['retrieval_siblings'])}",
        "",
        f"{'attribute':16}{'CLS':>8}{'patches':>9}{'place':>8}{'majority':>10}   untrained: CLS patches place",
    ]
    trained, untrained = metrics["probe"], metrics["probe_untrained"]
    for name, now in trained["attributes"].items():
        before = untrained["attributes"][name]
        lines.append(
            f"{name:16}{_cell(now['cls']):>8}{_cell(now['patch_mean']):>9}{_cell(now['place']):>8}"
            f"{_cell(now['majority']):>10}   {_cell(before['cls']):>14}{_cell(before['patch_mean']):>8}"
            f"{_cell(before['place']):>6}"
        )
    lines += ["", f"{'place':16}{'average precision of one patch':>32}{'chance':>8}   untrained"]
    for name, now in trained["places"].items():
        before = untrained["places"][name]["average_precision"]
        lines.append(f"{name:16}{now['average_precision']:>32.1f}{now['chance']:>8.1f}{before:>12.1f}")
    return "\n".join(lines)


def _recalls(retrieved: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in retrieved.items() if name.startswith("R@"))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
