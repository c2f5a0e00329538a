"""Rankings of a test set by one model or several, and which of its queries to show.

V queries with a match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..data.images import read_image
from ..data.loaders import make_test_loader
from ..data.transforms import build_transforms
from ..engine.extraction import Extraction, extract
from ..evaluation.evaluator import SAGAEvaluator
from ..evaluation.features import result_feature
from ..evaluation.ranking import rank_in_blocks
from ..modeling.build import model_layout
from ..studies.models import Model
from ..studies.occlusion import ImageSet, OccludedSet, Occluder, View, distractor_people
from ..studies.options import Occlusion

__all__ = ["Ranked", "best_median_worst", "contrasting", "rank_test_set", "right_and_wrong", "view_of"]


@dataclass
class Ranked:
    """One model's ranking of a test set by the evaluator's distances (TEST.FEATURE, METRIC, RERANK ...).

    Attributes:
        queries: (V,) which of the test set's queries have a match.
        ap: (V,) average precision, 0..1.
        nearest: (V, 10 or fewer) gallery images by rank, as indices into the gallery, without images of the query's
            person by the query's camera.
        occluder: what hid a part of every query before it was ranked; None where nothing is hidden.
    """

    model: Model
    images: ImageSet
    queries: np.ndarray
    ap: np.ndarray
    nearest: np.ndarray
    occluder: Occluder | None = None

    def person(self, query: int) -> int:
        """The pid of a query, 0..V-1."""
        return self.images.items[self.queries[query]][1]

    def gallery(self, index: int) -> tuple[str, int, int]:
        """(path, pid, camid) of a gallery image."""
        return self.images.items[self.images.num_query + index]

    def query_image(self, query: int) -> Image.Image:
        """The image of a query as the model saw it, 0..V-1."""
        path = self.images.items[self.queries[query]][0]
        image = read_image(path)
        return image if self.occluder is None else self.occluder(image, path).image

    def first_is_right(self) -> np.ndarray:
        """(V,) bool."""
        return np.array([self.gallery(g)[1] == self.person(v) for v, g in enumerate(self.nearest[:, 0])])


def rank_test_set(models: Sequence[Model], dataset: str = "", occlusion: Occlusion | None = None) -> list[Ranked]:
    """Rankings of a test set by each model; each image is read once, and models with equal towers share their pass.

    Args:
        dataset: empty takes the first of the first model's DATASETS.TESTS.
        occlusion: what is done to every query, as in an occlusion study; the gallery stays as it is.

    Raises:
        OSError, RuntimeError, ValueError: the data set is not there or has nothing to rank, or nobody can be pasted.
    """
    cfg = models[0].cfg
    images = ImageSet.read(cfg, dataset or cfg.DATASETS.TESTS[0])
    occluder = None
    if occlusion is not None:
        people = distractor_people(cfg, images)[0] if occlusion.condition == "distractor" else None
        occluder = Occluder(occlusion, images, people)
    views = [view_of(m) for m in models]
    distinct = {repr(view): view for view in views}
    places = [list(distinct).index(repr(view)) for view in views]
    pairs = [(m.cfg, m.model) for m in models]

    def features_of(items: Sequence[tuple], occluder: Occluder | None, part: str) -> list[Extraction]:
        test_set = OccludedSet(items, list(distinct.values()), occluder, images.run_names)
        return extract(pairs, make_test_loader(cfg, test_set), views=places, description=part)[0]

    q = images.num_query
    pids, camids = (np.array([item[i] for item in images.items]) for i in (1, 2))
    queries = features_of(images.items[:q], occluder, "query")
    gallery = features_of(images.items[q:], None, "gallery")
    ranked = []
    for m, query, rest in zip(models, queries, gallery):
        features = torch.cat([query.features, rest.features])
        layout = model_layout(m.model, features.shape[1])
        distances = SAGAEvaluator(m.cfg, q, layout=layout).distances(result_feature(m.cfg, layout), features, layout)
        ranking = rank_in_blocks(distances, pids[:q], pids[q:], camids[:q], camids[q:], description=m.name)
        ranked.append(Ranked(m, images, ranking.queries, ranking.ap, ranking.nearest, occluder))
    return ranked


def view_of(model: Model) -> View:
    """The test transform of a model and the cameras that it knows."""
    return View(build_transforms(model.cfg, is_train=False), tuple(model.cfg.MODEL.CLIP.CAMERAS))


def evenly_spaced(values: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """At most `count` of the values, evenly spaced."""
    count = min(count, len(values))
    return [int(values[i]) for i in np.linspace(0, len(values) - 1, count).astype(int)] if count else []


def right_and_wrong(ranked: Ranked, number: int) -> list[int]:
    """Queries (0..V-1) spread over the set: half of them with a right first match, half without."""
    first = ranked.first_is_right()
    right, wrong = np.flatnonzero(first), np.flatnonzero(~first)
    chosen = evenly_spaced(right, number - min(len(wrong), number // 2))
    return chosen + evenly_spaced(wrong, number - len(chosen))


def best_median_worst(ranked: Ranked, number: int) -> dict[str, list[int]]:
    """`number` queries (0..V-1) each with the highest, middle and lowest average precision; none twice.

    Where many queries share the highest average precision, the best are evenly spaced among them.
    """
    order = np.argsort(-ranked.ap, kind="stable")
    best = evenly_spaced(order[: max(number, int((ranked.ap == ranked.ap.max()).sum()))], number)
    rest = [int(v) for v in order if v not in best]
    worst = rest[::-1][:number]
    rest = rest[: len(rest) - len(worst)]
    start = min(max(0, len(ranked.ap) // 2 - len(best) - number // 2), max(0, len(rest) - number))
    return {"Best queries": best, "Queries around the median": rest[start : start + number], "Worst queries": worst}


def contrasting(ranked: Sequence[Ranked], number: int) -> list[int]:
    """Queries (0..V-1) on which the last model's average precision differs most from the first model's.

    Half of them are queries on which it is higher, the largest difference first; then come those on which it is lower.
    """
    gain = ranked[-1].ap - ranked[0].ap
    order = np.argsort(-gain, kind="stable").tolist()
    better, worse = [v for v in order if gain[v] > 0], [v for v in reversed(order) if gain[v] < 0]
    count = max(number - len(worse), min(len(better), number - number // 2))
    return better[:count] + worse[: number - min(count, len(better))]
