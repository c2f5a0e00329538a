"""What ReID changes in BoxMOT's DeepOCSORT on drawn streets: every association is solved with and without similarity.

Runs in .venv-interop as examples/track_street.py does, whose machinery it uses; docs/tracking.md has what came of it.

    .venv-interop/bin/python examples/deepocsort_costs.py streets/0 streets/1 streets/2 \\
        --reid SAGA=logs/SAGA/quickstart/anchors --similarity 0.943 -o costs.json

DeepOCSORT (25.0.0) adds similarity, times a weight for each pair, to the overlap of a box and a predicted track, solves
the assignment, and drops what overlaps by less than 0.3. Counted are the assignments, how large each part is, and the
people who come back: a box of somebody whose track was lost, or is forgotten. Then the same streets are tracked in five
ways:

    NAME                as it is
    NAME, full weight   without its adaptive weight of a pair (aw_off)
    NAME, as overlap    a pair that is as alike as `--similarity` counts as overlapping by just enough
    NAME, 120 frames    the last, and lost tracks are kept for 120 frames, not 30
    NAME, all           both, and full weight
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import boxmot.trackers.box.deepocsort.tracker as boxmot_deepocsort
import numpy as np
from boxmot import DeepOcSort
from boxmot.trackers.common.association.velocity import associate, compute_aw_max_metric
from street_metrics import evaluate, interval
from street_trackers import LONG, Film, Remembering, ious, load, look, read_sequence, track

from sagareid.deploy.adapters import BoxMOTReID

LEAST_OVERLAP = 0.3  # DeepOCSORT's iou_threshold
COUNTS = ("frames", "unambiguous", "matches", "changed", "mended", "spoilt", "forgotten")


class Watched(DeepOcSort):
    """DeepOCSORT that counts what similarity does in its first association.

    Attributes:
        counts: COUNTS, of associations with somebody to compare: of frames, of those in which overlap alone decides, of
            matches, of those that similarity changes, makes right and makes wrong, and of boxes of people whose track
            has ended.
        parts: of the pairs of a box and the right track that overlap: (overlap, similarity, its weight).
        returned: overlap and similarity of a box and the track of the same person, which was lost.
    """

    def __init__(self, reid: Remembering | None, sequence: Film, as_overlap: float | None = None, **options: Any):
        model = None if reid is None else BoxMOTReID(reid)
        super().__init__(reid_model=model, use_embeddings=reid is not None, cmc_off=True, **options)
        self.sequence, self.frame, self.as_overlap = sequence, -1, as_overlap
        self.counts: Counter[str] = Counter()
        self.parts: list[tuple[float, float, float]] = []
        self.returned: list[tuple[float, float]] = []
        self.person_of: dict[int, float] = {}  # by track, those of the past as well

    def step(self, boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
        self.frame += 1
        boxmot_deepocsort.associate = self.associate
        found = np.asarray(self.update(np.hstack([boxes, np.zeros((len(boxes), 1), np.float32)]), frame))
        for own in self.active_tracks:
            if own.time_since_update == 0:
                self.person_of[own.id] = self._people(own.last_observation[None, :4])[0]
        return found

    def _people(self, boxes: np.ndarray) -> np.ndarray:
        """Who is in boxes of the detector; 0: nobody."""
        overlap = ious(boxes, self.sequence.boxes[self.frame][:, :4])
        return self.sequence.people[self.frame][overlap.argmax(1)]

    def associate(self, boxes, tracks, overlap_of, least, velocities, previous, inertia, similarity, *rest, **further):
        """BoxMOT's `associate`; it writes into `similarity`."""

        def solve(similar, measure=overlap_of):
            given = None if similar is None else similar.copy()
            return associate(boxes, tracks, measure, least, velocities, previous, inertia, given, *rest, **further)

        if similarity is None or not min(similarity.shape):
            return solve(similarity)
        overlap = np.asarray(overlap_of(boxes, tracks))
        with_reid, without = solve(similarity), solve(None)
        self._count(boxes, overlap, similarity, with_reid.matches, without.matches, least)
        if self.as_overlap is None:
            return with_reid
        enough = np.where(similarity >= self.as_overlap, least + 1e-3, 0)
        return solve(similarity, lambda *_: np.maximum(overlap, enough))

    def _count(self, boxes, overlap, similarity, with_reid, without, least) -> None:
        """Frames and matches with and without similarity, right ones by the truth; parts; people who come back."""
        people = self._people(boxes[:, :4])
        owners = np.array([self.person_of.get(own.id, 0) for own in self.active_tracks])
        right = (people[:, None] == owners) & (people[:, None] > 0)  # (boxes, tracks)
        one, other = ({(int(d), int(t)) for t, d in matches} for matches in (with_reid, without))
        good = {(d, t) for d, t in zip(*map(np.ndarray.tolist, right.nonzero()))}
        near = overlap > least
        self.counts.update(
            frames=1,
            unambiguous=int(near.sum(1).max() == 1 and near.sum(0).max() == 1),
            matches=len(one),
            changed=len(one - other),
            mended=len((one - other) & good),
            spoilt=len((other - one) & good),
        )
        own = similarity.copy()
        own[overlap <= 0] = 0
        term = compute_aw_max_metric(own.copy(), self.w_association_emb, bottom=self.aw_param)
        weight = np.divide(term, own, out=np.zeros_like(own), where=own != 0)
        self.parts += [(overlap[d, t], similarity[d, t], weight[d, t]) for d, t in good if overlap[d, t] > 0]
        known = np.isin(people, [person for person in self.person_of.values() if person > 0])
        self.counts["forgotten"] += int((known & ~right.any(1)).sum())
        lost = np.array([own.time_since_update > 1 for own in self.active_tracks])
        for box in range(len(boxes)):
            if (right[box] & lost).any() and not (right[box] & ~lost).any():
                last = int(np.where(right[box] & lost, similarity[box], -1).argmax())
                self.returned.append((float(overlap[box, last]), float(similarity[box, last])))


def summary(watched: list[Watched], similar: float) -> dict[str, float | None]:
    """What the trackers of all sequences counted, as the docs say it; None of nothing."""
    parts = np.array([row for tracker in watched for row in tracker.parts])
    returned = np.array([row for tracker in watched for row in tracker.returned]).reshape(-1, 2)
    far = returned[:, 0] < LEAST_OVERLAP
    return {
        **{name: sum(tracker.counts[name] for tracker in watched) for name in COUNTS},
        "overlap, median of right pairs": float(np.median(parts[:, 0])),
        "similarity, median of right pairs": float(np.median(parts[:, 1])),
        "weight, median of right pairs": float(np.median(parts[:, 2])),
        "similarity times weight, median": float(np.median(parts[:, 1] * parts[:, 2])),
        "come back": len(returned),
        "of them overlapping too little": _share(far),
        "of them overlapping with nothing": _share(returned[:, 0] <= 0),
        "of those too far, alike": _share(returned[far, 1] >= similar),
    }


def _share(true: np.ndarray) -> float | None:
    return float(true.mean()) if len(true) else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streets", nargs="+", type=Path, help="folders of tools/draw_street.py")
    parser.add_argument("--reid", action="append", required=True, metavar="NAME=RUN", help="as often as needed")
    parser.add_argument(
        "--similarity", action="append", type=float, required=True, help="tuned threshold of each model, in order"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON")
    args = parser.parse_args(argv)
    models = [(name, load(path)) for name, path in (reid.split("=", 1) for reid in args.reid)]
    if len(args.similarity) != len(models):
        parser.error(f"{len(args.similarity)} --similarity for {len(models)} --reid; give one for each, in order")

    metrics: dict[str, list[dict[str, float]]] = {}
    watched: dict[str, list[Watched]] = {name: [] for name, _ in models}
    for folder in args.streets:
        films = [read_sequence(path) for path in sorted(folder.iterdir()) if (path / "seqinfo.ini").exists()]
        tracks: dict[str, dict[str, np.ndarray]] = {}

        def run(row: str, reid: Remembering | None, film: Film, tracks: dict = tracks, **options: Any) -> Watched:
            tracker = Watched(reid, film, **options)
            tracks.setdefault(row, {})[film.name] = track(tracker.step, film, reid)
            return tracker

        for film in films:
            run("none", None, film)
            run("none, 120 frames", None, film, max_age=LONG)
            for (name, model), similar in zip(models, args.similarity):
                reid = look(model, film, [])[""]
                watched[name].append(run(name, reid, film))
                run(f"{name}, full weight", reid, film, aw_off=True)
                run(f"{name}, as overlap", reid, film, as_overlap=similar)
                run(f"{name}, 120 frames", reid, film, as_overlap=similar, max_age=LONG)
                run(f"{name}, all", reid, film, as_overlap=similar, max_age=LONG, aw_off=True)
        frames = {film.name: len(film.frames) for film in films}
        for row, found in evaluate(folder, frames, tracks).items():
            metrics.setdefault(row, []).append(found)
    report = {
        "streets": [str(folder) for folder in args.streets],
        "associations": {
            name: summary(some, similar) for (name, some), similar in zip(watched.items(), args.similarity)
        },
        "tracking": {
            row: {metric: interval([street[metric] for street in streets])[0] for metric in streets[0]}
            | {"gain in IDF1": interval([a["IDF1"] - b["IDF1"] for a, b in zip(streets, metrics["none"])])}
            for row, streets in metrics.items()
        },
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
