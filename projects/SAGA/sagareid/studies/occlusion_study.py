"""The occlusion study: models on a test set, a growing share of the person hidden, metrics paired by query.

A *cell* is one model under one condition at one level. Cells are kept as they come, under a name made of everything
that changes them, so that an interrupted study goes on and a further model adds only its own cells.

Q queries (V of them with a match), n images, N patches in a (h, w) grid.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import occluders
from ..data.loaders import make_test_loader
from ..data.people import People
from ..data.transforms import build_transforms
from ..engine.extraction import Extraction, Labels, extract
from ..evaluation.evaluator import SAGAEvaluator
from ..evaluation.features import available_features
from ..evaluation.ranking import rank_in_blocks
from ..modeling.build import model_layout
from .cells import Cell
from .models import Model
from .occlusion import ImageSet, OccludedSet, Occluder, View, distractor_people
from .options import CLEAN, Occlusion, Options
from .statistics import Bootstrap

__all__ = [
    "METRICS",
    "Study",
]

logger = logging.getLogger(__name__)

METRICS = ("Rank-1", "mAP", "mINP")


@dataclass
class Study:
    """Models on one test set.

    Attributes:
        cfg: data sets (DATASETS.CUSTOM), workers, batch and device of the passes.
        folder: cells are kept in its `cells/`.
        workers: processes that read images; None takes the config's. They change no metric.
        source: where the pasted people come from.
        cells: by model key, condition and level.
    """

    cfg: Any
    dataset: str
    models: Sequence[Model]
    options: Options
    folder: Path
    workers: int | None = None
    images: ImageSet = field(init=False)
    source: str = field(init=False, default="")
    cells: dict[tuple[str, str, float], Cell] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._check_features()
        self.images = ImageSet.read(self.cfg, self.dataset, self.options.queries)
        self._people: People | None = None
        if "distractor" in self.options.conditions:
            self._people, self.source = distractor_people(self.cfg, self.images, self.options.distractors)
        self._views: list[View] = []
        self._view_of: dict[str, int] = {}
        seen: dict[str, int] = {}
        for m in self.models:
            transform = build_transforms(m.cfg, is_train=False)
            cameras = tuple(m.cfg.MODEL.CLIP.CAMERAS)
            key = repr((transform, cameras))
            if key not in seen:
                seen[key] = len(self._views)
                self._views.append(View(transform, cameras))
            self._view_of[m.key] = seen[key]
        self._whole: dict[tuple[str, str], Extraction] = {}  # nothing hidden: (part, model key)

    def _check_features(self) -> None:
        """See that every model is measured by some feature, and every feature on some model.

        Raises:
            ValueError: one that is not.
        """
        wanted = self.options.features
        for m in self.models:
            if not any(m.feature(f, 1) for f in wanted):
                given = ", ".join(available_features(model_layout(m.model, 1)))
                raise ValueError(
                    f"{m.name} gives none of --feature {' '.join(wanted)}; it gives {given}. Add one, or auto"
                )
        for f in wanted:
            if not any(m.feature(f, 1) for m in self.models):
                raise ValueError(f"--feature {f}: none of the models gives this feature")

    # ---- keys --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def data_key(self) -> str:
        """Digits of the test set: names, people, cameras and sizes of its pictures."""
        digest = hashlib.blake2b(digest_size=16)
        for path, pid, camid in self.images.items:
            line = f"{self.images.key(path)} {pid} {camid} {Path(path).stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _path(self, model: Model, condition: str, level: float) -> Path:
        o = self.options
        parts: list[Any] = [occluders.VERSION, self.dataset, self.data_key, self.images.num_query, o.features]
        if condition != CLEAN:
            parts += [o.seed, o.occlude]
        if condition == "mask":
            parts += [o.shapes, o.fill]
        if condition == "distractor" and self._people:
            parts += [self.source, [self.images.key(p) for p in self._people.paths]]
        digits = hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()
        return self.folder / "cells" / model.key / f"{condition}-{100 * level:g}-{digits}.npz"

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> Study:
        """Fill `cells`, and write each as it comes; `resume` reads those that were written before."""
        todo = self.options.cells()
        for number, (condition, level) in enumerate(todo, 1):
            missing = []
            for m in self.models:
                path = self._path(m, condition, level)
                if resume and path.is_file():
                    self.cells[m.key, condition, level] = Cell.load(path)
                else:
                    missing.append(m)
            if not missing:
                continue
            occlusion = None if condition == CLEAN else self._occlusion(condition, level)
            name = f"{number}/{len(todo)} {condition}" + (f" {level:.0%}" if occlusion else "")
            for m, cell in zip(missing, self._cells(missing, occlusion, name)):
                cell.save(self._path(m, condition, level))
                self.cells[m.key, condition, level] = cell
        return self

    def _pass(self, part: str, models: Sequence[Model], occlusion: Occlusion | None, name: str, weights: bool):
        q = self.images.num_query
        items = self.images.items[:q] if part == "query" else self.images.items[q:]
        occluder = Occluder(occlusion, self.images, self._people) if occlusion else None
        used = sorted({self._view_of[m.key] for m in models})
        dataset = OccludedSet(items, [self._views[v] for v in used], occluder, self.images.run_names)
        loader = make_test_loader(self.cfg, dataset, self.workers)
        views = [used.index(self._view_of[m.key]) for m in models]
        pairs = [(m.cfg, m.model) for m in models]
        return extract(pairs, loader, views=views, weights=weights, description=f"{name}, {part}")

    def _part(self, part: str, models: Sequence[Model], occlusion: Occlusion | None, name: str):
        """Extractions of the queries or the gallery, and their labels (None where nothing is hidden)."""
        if occlusion is not None and self.options.occlude in (part, "both"):
            return self._pass(part, models, occlusion, name, weights=part == "query")
        new = [m for m in models if (part, m.key) not in self._whole]
        if new:
            for m, e in zip(new, self._pass(part, new, None, name, weights=part == "query")[0]):
                self._whole[part, m.key] = e
        return [self._whole[part, m.key] for m in models], None

    def _cells(self, models: Sequence[Model], occlusion: Occlusion | None, name: str) -> list[Cell]:
        queries, q_labels = self._part("query", models, occlusion, name)
        gallery, g_labels = self._part("gallery", models, occlusion, name)
        hidden: list[Labels] = [labels for labels in (q_labels, g_labels) if labels is not None]
        share = np.concatenate([labels.share for labels in hidden]) if hidden else np.zeros(0)
        area = {k: np.concatenate([labels.area[k] for labels in hidden]) for k in (hidden[0].area if hidden else ())}
        return [self._cell(m, q, g, share, area) for m, q, g in zip(models, queries, gallery)]

    def _cell(self, m: Model, query: Extraction, gallery: Extraction, share: np.ndarray, area: dict) -> Cell:
        q = self.images.num_query
        pids, camids = (np.array([item[i] for item in self.images.items]) for i in (1, 2))
        features = torch.cat([query.features, gallery.features])
        evaluator = SAGAEvaluator(m.cfg, q, layout=model_layout(m.model, features.shape[1]))
        wanted = {f: m.feature(f, features.shape[1]) for f in self.options.features}
        rows = {f: row for f, row in wanted.items() if row}
        values, nearest, valid = {}, {}, np.zeros(0, int)
        for f, row in rows.items():
            distances = evaluator.distances(row, features, model_layout(m.model, features.shape[1]))
            ranking = rank_in_blocks(distances, pids[:q], pids[q:], camids[:q], camids[q:], description=m.name)
            valid, nearest[f] = ranking.queries, ranking.nearest
            values[f, "Rank-1"] = (pids[q:][ranking.nearest[:, 0]] == pids[:q][valid]).astype(np.float32)
            values[f, "mAP"], values[f, "mINP"] = ranking.ap, ranking.inp
        weights = None if query.weights is None else query.weights.numpy()
        return Cell(valid, rows, values, nearest, share, area, query.on, weights)

    # ---- metrics -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(m.name for m in self.models))

    def seeds(self, name: str) -> list[Model]:
        return [m for m in self.models if m.name == name]

    def per_query(self, name: str, condition: str, level: float, feature: str, metric: str) -> np.ndarray | None:
        """(seeds, V), or None where the model does not give the feature."""
        cells = [self.cells[m.key, condition, level] for m in self.seeds(name)]
        if any(feature not in cell.rows for cell in cells):
            return None
        return np.stack([cell.values[feature, metric] for cell in cells])

    def results(self, reference: str) -> list[dict[str, Any]]:
        """One record for each model, condition, level and feature, in percent.

        Each metric holds `mean`, `low` and `high` (95 %, over queries, of the mean over seeds), `spread` (standard
        deviation over seeds; None for one) and, for every model but the reference, `difference` to it with an interval.

        Raises:
            ValueError: there is no model of the reference's name.
        """
        if reference not in self.names:
            raise ValueError(f"the reference {reference!r} is none of the models {', '.join(self.names)}")
        first = next(iter(self.cells.values()))
        bootstrap = Bootstrap(len(first.queries), resamples=self.options.resamples, seed=self.options.seed)
        found = []
        for feature in self.options.features:
            for condition, level in self.options.cells():
                for name in self.names:
                    record = self._record(bootstrap, reference, name, condition, level, feature)
                    if record:
                        found.append(record)
        return found

    def _record(
        self, bootstrap: Bootstrap, reference: str, name: str, condition: str, level: float, feature: str
    ) -> dict[str, Any] | None:
        cells = [self.cells[m.key, condition, level] for m in self.seeds(name)]
        record: dict[str, Any] = {"model": name, "condition": condition, "level": level, "feature": feature}
        for metric in METRICS:
            values = self.per_query(name, condition, level, feature, metric)
            if values is None:
                return None
            estimate: dict[str, Any] = _percent(bootstrap.interval(values.mean(0)))
            estimate["seeds"] = [100 * float(v) for v in values.mean(1)]
            estimate["spread"] = float(np.std(estimate["seeds"], ddof=1)) if len(values) > 1 else None
            other = self.per_query(reference, condition, level, feature, metric)
            if name != reference and other is not None:
                estimate["difference"] = _percent(bootstrap.interval(values.mean(0) - other.mean(0)))
            record[metric] = estimate
        record["row"] = cells[0].rows[feature]
        for kind in cells[0].on:
            weight = 100 * float(np.mean([cell.on[kind] for cell in cells]))
            area = 100 * float(np.mean(cells[0].area[kind][: self.images.num_query]))
            record.setdefault("attention", {})[kind] = {
                "weight": weight,
                "area": area,
                "ratio": weight / area if area else None,
            }
        return record

    def shares(self) -> list[dict[str, Any]]:
        """What was really covered, in percent of the visible person and of the picture, by condition and level."""
        found = []
        for condition, level in self.options.cells()[1:]:
            cell = self.cells[self.models[0].key, condition, level]
            share = 100 * cell.share
            found.append(
                {
                    "condition": condition,
                    "level": level,
                    "share": {k: float(getattr(np, k)(share)) for k in ("mean", "std", "min", "max")},
                    "area": {k: 100 * float(v.mean()) for k, v in cell.area.items()},
                }
            )
        return found

    def describe(self) -> dict[str, Any]:
        """The data, the models and the options, for the record."""
        q = self.images.num_query
        first = next(iter(self.cells.values()))
        return {
            "dataset": {
                "name": self.dataset,
                "digest": self.data_key,
                "queries": q,
                "queries_of": self.images.all_queries,
                "queries_with_a_match": len(first.queries),
                "gallery": len(self.images.items) - q,
                "person": "the silhouette of its mask"
                if self.images.mask_path
                else "the whole picture, as there are no masks",
                "distractors": self.source or None,
                "distractors_known": self._people.known if self._people else None,
                "distractor_pictures": len(self._people.paths) if self._people else 0,
            },
            "options": asdict(self.options) | {"occlusion_version": occluders.VERSION},
            "models": [
                {
                    "name": m.name,
                    "path": m.path,
                    "digest": m.key,
                    "head": m.head,
                    "backbone": m.cfg.MODEL.BACKBONE.NAME,
                    "seed": m.cfg.SEED,
                    "parameters": sum(p.numel() for p in m.model.parameters()),
                }
                for m in self.models
            ],
        }

    def occluder(self, condition: str, level: float) -> Occluder:
        """Draws the pictures of a cell again."""
        return Occluder(self._occlusion(condition, level), self.images, self._people)

    def _occlusion(self, condition: str, level: float) -> Occlusion:
        return Occlusion(condition, level, self.options.seed, self.options.shapes, self.options.fill)


def _percent(interval) -> dict[str, float]:
    return {k: 100 * v for k, v in interval._asdict().items()}
