"""Trains the read-out of how much of a person is seen, and holds it, and the anchors' attention, against the truth.

People are hidden in both ways of `data.occluders`, a region masked or somebody in front; the masks of a drawn data set
say what is left of them. n images of (H, W), (h, w) the grid of the read-out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import compat
from ..data import occluders
from ..data.datasets.build import build_dataset
from ..data.images import read_image
from ..data.people import People
from ..data.transforms import build_transforms
from ..deploy.extractor import Extractor
from ..deploy.visibility import BANDS, GRID, Readout, at_size, bands
from ..modeling.saga_head import SAGAHead
from ..processes import loader_start
from ..structures import as_features
from .occlusion import ImageSet, Occluder, distractor_people
from .options import Occlusion, ReadoutOptions

__all__ = ["Hidden", "Seen", "agreement", "fit", "fit_visibility", "true_shares"]

LEAST = 0.05  # of a band's pixels: where less of a person belongs, a share of it is no truth to compare with


class Hidden(Dataset):
    """Images of a data set with masks, each with some of the person hidden; what is done follows from seed and place.

    An item is the model's input (3, H, W) and what of each of its pixels shows the person, would if nothing stood in
    front, and shows what stands there, (3, H, W).
    """

    def __init__(self, images: ImageSet, order: Sequence[int], people: People, transform: Any, seed: int):
        self.images, self.order, self.people, self.transform, self.seed = images, list(order), people, transform, seed

    def __len__(self) -> int:
        return len(self.order)

    def condition(self, place: int) -> str:
        """Masks and people in turn."""
        return occluders.CONDITIONS[place % len(occluders.CONDITIONS)]

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        path = self.images.items[self.order[place]][0]
        rng = np.random.default_rng([self.seed, place])
        level, fill = float(rng.uniform(0, occluders.MAX_LEVEL)), occluders.FILLS[rng.integers(len(occluders.FILLS))]
        occlusion = Occlusion(self.condition(place), level, seed=int(rng.integers(2**31)), fill=fill)
        occluder = Occluder(occlusion, self.images, self.people)
        image = read_image(path)
        whole = occluder.person(image, path).whole.astype(np.float32)
        hidden = occluder(image, path)
        pixels = self.transform(hidden.image)
        size = tuple(pixels.shape[1:])
        maps = torch.from_numpy(np.stack([hidden.person, whole, hidden.occluder]))
        return pixels, F.interpolate(maps[None], size=size, mode="area")[0]


@dataclass
class Seen:
    """Hidden people as a read-out sees them, and the truth.

    Attributes:
        images: (n, 3, H, W) uint8 RGB, of the read-out's size.
        maps: (n, 3, h, w) what shows the person, would, and stands in front.
        shares: (n, 1 + BANDS) of `true_shares`.
        claims: (n,) mean over the patches of the largest score of an anchor; None for a head without anchors.
        conditions: (n,) how they are hidden.
    """

    images: Tensor
    maps: Tensor
    shares: np.ndarray
    claims: np.ndarray | None
    conditions: np.ndarray

    @classmethod
    def collect(
        cls, hidden: Hidden, extractor: Extractor | None, *, batch_size: int, num_workers: int, name: str
    ) -> Seen:
        """One pass; with an extractor of a head with anchors, their claims too."""
        loader = DataLoader(
            hidden,
            batch_size,
            num_workers=num_workers,
            multiprocessing_context=loader_start(num_workers),
            generator=torch.Generator(),
        )
        anchored = extractor if extractor is not None and isinstance(extractor.head, SAGAHead) else None
        images, maps, shares, claims = [], [], [], []
        with torch.inference_mode(), tqdm(total=len(hidden), desc=name, unit="img", disable=None) as bar:
            for pixels, truth in compat.from_workers(loader.__iter__):
                images.append(at_size(pixels).round().clamp(0, 255).byte())
                maps.append(F.adaptive_avg_pool2d(truth, GRID))
                shares.append(true_shares(truth[:, :2]))
                if anchored is not None:
                    tower = as_features(anchored.tower(pixels))
                    refined = anchored.head.refine_and_pool(tower.float())
                    claims.append(torch.stack([a.amax(2).mean(1) for a in refined.attention]).mean(0).cpu())
                bar.update(len(pixels))
        conditions = np.array([hidden.condition(i) for i in range(len(hidden))])
        found = torch.cat(claims).numpy() if claims else None
        return cls(torch.cat(images).clone(), torch.cat(maps).clone(), np.concatenate(shares), found, conditions)


def true_shares(maps: Tensor) -> np.ndarray:
    """(n, 2, H, W) to (n, 1 + BANDS): what of the person is seen, whole and by sixths; NaN where nobody belongs."""
    rows = maps.sum(3)
    parts = rows @ bands(maps.shape[2]).T
    seen, there = torch.cat([parts.sum(2, keepdim=True), parts], dim=2).unbind(1)
    least = LEAST * maps.shape[2] * maps.shape[3] / BANDS
    return torch.where(there > least, seen / there, torch.nan).numpy()


def fit(seen: Seen, options: ReadoutOptions) -> Readout:
    """Train a read-out: cross-entropy of the maps, and twice the squared error of the crop's share; half of the batches
    mirrored."""
    torch.manual_seed(options.seed)
    readout = Readout(channels=options.channels)
    share = torch.from_numpy(seen.shares[:, 0])
    batches = max(1, len(share) // options.batch)
    optimizer = torch.optim.AdamW(readout.parameters(), options.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=batches * options.epochs + 1)
    readout.train()
    with tqdm(total=batches * options.epochs, desc="read-out", unit="step", disable=None) as bar:
        for _ in range(options.epochs):
            for index in torch.randperm(len(share))[: batches * options.batch].chunk(batches):
                images, maps = seen.images[index], seen.maps[index]
                if torch.rand(()) < 0.5:
                    images, maps = images.flip(3), maps.flip(3)
                logits = readout(images)
                shown, there, _ = logits.sigmoid().sum((2, 3)).unbind(1)
                loss = F.binary_cross_entropy_with_logits(logits, maps)
                loss = loss + 2 * (shown / there - share[index]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return readout.eval()


@torch.no_grad()
def read(readout: Readout, seen: Seen) -> np.ndarray:
    """(n, 1 + BANDS) what a read-out says of them."""
    return torch.cat([readout.visibility(images) for images in seen.images.split(256)]).numpy()


def agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of n scores with n true shares: rank correlation (Spearman; NaN where one does not vary), and the AUC of "less
    than half is seen"."""
    known = np.isfinite(truth)
    found, truth = found[known], truth[known]
    return {
        "images": len(truth),
        "rank_correlation": float(spearmanr(found, truth)[0]) if np.ptp(found) and np.ptp(truth) else float("nan"),
        "auc_less_than_half": float(roc_auc_score(truth < 0.5, -found)),
    }


def by_condition(found: np.ndarray, truth: np.ndarray, conditions: np.ndarray) -> dict[str, dict[str, float]]:
    """`agreement` of each way of hiding, and of both."""
    of_one = {c: agreement(found[conditions == c], truth[conditions == c]) for c in occluders.CONDITIONS}
    return of_one | {"both": agreement(found, truth)}


def fit_visibility(
    extractor: Extractor,
    *,
    options: ReadoutOptions,
    dataset: str,
    validation: str,
    batch_size: int = 64,
    num_workers: int = 0,
) -> tuple[Readout, dict[str, Any]]:
    """Train on the training people of a data set with masks, and measure on the validation people of another.

    The extractor gives the size of images, and the anchors' attention to compare with.

    Returns:
        The read-out and what was found: `crop` and `sixths` of the read-out, `attention` of the anchors (None for a
        head without).

    Raises:
        ValueError: a data set without masks.
    """
    cfg = extractor.cfg
    collect = functools.partial(Seen.collect, batch_size=batch_size, num_workers=num_workers)
    transform = build_transforms(cfg, is_train=False)
    measured = collect(_validation(cfg, validation, dataset, transform, options), extractor, name="validation people")
    training = collect(_training(cfg, dataset, transform, options), None, name="training people")
    readout = fit(training, options)
    found, truth = read(readout, measured), measured.shares
    agree = functools.partial(by_condition, conditions=measured.conditions)
    about = {
        "trained_on": dataset,
        "measured_on": validation,
        "options": asdict(options),
        "less_than_half_seen": float((truth[:, 0] < 0.5).mean()),
        "crop": agree(found[:, 0], truth[:, 0]),
        "sixths": [agreement(found[:, 1 + i], truth[:, 1 + i]) for i in range(BANDS)],
        "attention": None if measured.claims is None else agree(measured.claims, truth[:, 0]),
    }
    return readout, about


def _training(cfg: Any, name: str, transform: Any, options: ReadoutOptions) -> Hidden:
    data = build_dataset(cfg, name)
    images = ImageSet(
        name, list(data.train), 0, str(Path(compat.dataset_root()).absolute()), getattr(data, "mask_path", None)
    )
    _check_masks(images)
    order = np.random.default_rng(options.seed).integers(len(images.items), size=options.images).tolist()
    people = People(sorted(item[0] for item in images.items), images.mask_path)
    return Hidden(images, order, people, transform, options.seed)


def _validation(cfg: Any, name: str, source: str, transform: Any, options: ReadoutOptions) -> Hidden:
    """Every query and gallery image once, behind people of the query and gallery of `source`, who are in neither."""
    images = ImageSet.read(cfg, name)
    _check_masks(images)
    people, _ = distractor_people(cfg, images, source)
    return Hidden(images, range(len(images.items)), people, transform, options.seed + 1)


def _check_masks(images: ImageSet) -> None:
    if images.mask_path is None:
        raise ValueError(
            f"{images.name} has no masks, so that nobody knows what of a person is seen; SyntheticPedestrians has them"
        )
