"""How examples/track_street.py judges tracks, by TrackEval, and joins them, by the gallery."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from street_trackers import Remembering

from sagareid.deploy import gallery

with contextlib.redirect_stdout(io.StringIO()):  # it misses pycocotools, which only data sets of masks need
    import trackeval

# TrackEval's class, and a factor to percent
METRICS = {"IDF1": ("Identity", 100), "HOTA": ("HOTA", 100), "AssA": ("HOTA", 100), "IDSW": ("CLEAR", 1)}

# ---- metrics ---------------------------------------------------------------------------------------------------------

Tracks = dict[str, np.ndarray]  # by sequence


def evaluate(
    truth: Path, frames: dict[str, int], tracks: dict[str, Tracks], metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, dict[str, float]]:
    """TrackEval's metrics over all sequences of a folder, by the name of the tracks; IDF1, HOTA, AssA in percent."""
    with tempfile.TemporaryDirectory() as folder:
        for name, sequences in tracks.items():
            for sequence, rows in sequences.items():
                path = Path(folder, name, "data", f"{sequence}.txt")
                path.parent.mkdir(parents=True, exist_ok=True)
                shifted = np.hstack([rows[:, :2], rows[:, 2:4] + 1, rows[:, 4:7], np.full((len(rows), 3), -1.0)])
                np.savetxt(path, shifted, fmt=["%d", "%d", *["%.3f"] * 5, "%d", "%d", "%d"], delimiter=",")
        quiet = {"PRINT_CONFIG": False}
        dataset = {"GT_FOLDER": str(truth), "TRACKERS_FOLDER": folder, "SKIP_SPLIT_FOL": True, "SEQ_INFO": dict(frames)}
        evaluator = {"PRINT_RESULTS": False, "OUTPUT_SUMMARY": False, "OUTPUT_DETAILED": False, "PLOT_CURVES": False}
        with contextlib.redirect_stdout(io.StringIO()):
            found, _ = trackeval.Evaluator({**quiet, **evaluator, "TIME_PROGRESS": False}).evaluate(
                [trackeval.datasets.MotChallenge2DBox({**quiet, **dataset, "TRACKERS_TO_EVAL": list(tracks)})],
                [getattr(trackeval.metrics, kind)(quiet) for kind in dict.fromkeys(METRICS[m][0] for m in metrics)],
            )
    results: dict[str, dict[str, float]] = {}
    for name, by_sequence in found["MotChallenge2DBox"].items():
        values = by_sequence["COMBINED_SEQ"]["pedestrian"]
        results[name] = {m: METRICS[m][1] * float(np.mean(values[METRICS[m][0]][m])) for m in metrics}
    return results


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval; infinite for one value."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}.get(len(values), 1.96)
    spread = np.std(values, ddof=1) if len(values) > 1 else np.inf
    return float(np.mean(values)), float(quantile * spread / np.sqrt(len(values)))


# ---- re-association --------------------------------------------------------------------------------------------------


def tracklets(tracks: Tracks, reids: dict[str, Remembering], least: float) -> tuple[list[tuple], np.ndarray]:
    """(sequence, track, first, last frame) of every track, and (n, F) unit features: means over crops seen enough."""
    found, features = [], []
    for name, rows in tracks.items():
        for track in np.unique(rows[:, 1]):
            own = rows[rows[:, 1] == track]
            crops = [
                (reids[name].features[int(t) - 1][int(d)], float(reids[name].seen[int(t) - 1][int(d)]))
                for t, d in own[:, [0, 7]]
            ]
            most = max(seen for _, seen in crops)
            mean = torch.stack([feature for feature, seen in crops if seen >= min(least, most)]).mean(0)
            found.append((name, track, own[:, 0].min(), own[:, 0].max()))
            features.append((mean / mean.norm()).numpy())
    return found, np.stack(features)


def join(found: list[tuple], features: np.ndarray, folder: Path) -> Callable[[float], list[int]]:
    """A function from a similarity to the person (a number) of every track, by a gallery of all of them.

    The most alike are joined first; people who are seen at the same time are never one.
    """
    np.savez(folder / "tracks.npz", features=features, paths=[f"{name}/{track:g}" for name, track, *_ in found])
    crops = gallery.build(gallery.FeatureSet(folder / "tracks.npz"), folder / "index", kind="flat")
    place = {f"{name}/{track:g}": j for j, (name, track, *_) in enumerate(found)}
    hits = crops.query(features, len(found))
    pairs = sorted(((hit.similarity, i, place[hit.id]) for i, own in enumerate(hits) for hit in own), reverse=True)

    def people(least: float) -> list[int]:
        group = list(range(len(found)))
        for s, i, j in pairs:
            if s < least:
                break
            a, b = group[i], group[j]
            members = [[k for k in range(len(found)) if group[k] == g] for g in (a, b)]
            if a != b and not any(together(found[x], found[y]) for x in members[0] for y in members[1]):
                group = [a if g == b else g for g in group]
        return group

    return people


def together(a: tuple, b: tuple) -> bool:
    """Whether two tracks are seen at one time, in either camera."""
    return a[2] <= b[3] and b[2] <= a[3]


def renamed(tracks: Tracks, found: list[tuple], people: list[int]) -> Tracks:
    """Tracks by the numbers of people."""
    number = {(name, track): person + 1 for (name, track, *_), person in zip(found, people)}
    result = {}
    for name, rows in tracks.items():
        result[name] = rows.copy()
        result[name][:, 1] = [number[name, track] for track in rows[:, 1]]
    return result


def both_cameras(street: Path, frames: dict[str, int], folder: Path) -> tuple[Path, dict[str, int], Callable]:
    """The street's truth as one sequence, the second camera's frames after the first's, and the same of tracks."""
    offsets = dict(zip(frames, np.cumsum([0, *frames.values()])))

    def one(rows: dict[str, np.ndarray]) -> np.ndarray:
        return np.vstack([np.hstack([r[:, :1] + offsets[name], r[:, 1:]]) for name, r in rows.items()])

    (folder / "both/gt").mkdir(parents=True)
    truth = one({name: np.loadtxt(street / name / "gt/gt.txt", delimiter=",", ndmin=2) for name in frames})
    np.savetxt(folder / "both/gt/gt.txt", truth, fmt=["%d", "%d", *["%.2f"] * 4, "%d", "%d", "%.4f"], delimiter=",")
    return folder, {"both": sum(frames.values())}, lambda tracks: {"both": one(tracks)}
