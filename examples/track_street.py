"""Trackers on drawn streets, with and without ReID; docs/tracking.md has the command and what came of it.

Runs in .venv-interop (`make interop` makes it), on streets of tools/draw_street.py. Trackers are BoxMOT's BoT-SORT and
DeepOCSORT and Ultralytics' BoT-SORT, at their defaults, but for camera motion, since these cameras stand still. Metrics
are TrackEval's. BoxMOT and Ultralytics are AGPL-3.0: that is why this is an example and no part of the package;
street_trackers.py has what touches them, street_metrics.py the metrics and the joining.

`--reid NAME=RUN` names a run of this project, or a file that BoxMOT loads. Of a run there are several rows:

    NAME            the tracker's own threshold of similarity
    NAME, tuned     the threshold that 1 % of the pairs of two people in view reach, on the street of `--tune`
    NAME, anywhere  tuned, a track and a box need not overlap, and lost tracks are kept for 120 frames, not 30
    NAME, gate      anywhere, and a crop with less than `--min-visibility` seen says nothing and is not remembered
    NAME, true gate the same by the true visible share: what a perfect score of visibility would give

Re-association comes last: tracks of BoT-SORT without ReID, a mean feature for each, put into a gallery and joined where
they are alike and not seen at the same time; within a camera and over both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from street_metrics import Tracks, both_cameras, evaluate, interval, join, renamed, tracklets
from street_trackers import (
    TRACKERS,
    Film,
    Loaded,
    Remembering,
    Row,
    bot_sort,
    load,
    look,
    read_sequence,
    similarities,
    track,
)

from sagareid import Extractor

# the share of pairs of two people that a tuned threshold lets through
FALSE_PAIRS = 0.01
# similarities from which on tracks are joined, to choose from
LINKS = tuple(round(0.50 + 0.02 * i, 2) for i in range(25))
DEEP = "BoxMOT DeepOCSORT"  # the tracker without a threshold


class Street(NamedTuple):
    """A street with what every model says of it: models[name][gate][sequence]."""

    folder: Path
    sequences: dict[str, Film]
    models: dict[str, dict[str, dict[str, Remembering]]]

    @property
    def frames(self) -> dict[str, int]:
        return {name: len(sequence.frames) for name, sequence in self.sequences.items()}


def read_street(folder: Path, models: dict[str, Extractor | Loaded], gates: list[str]) -> Street:
    sequences = {path.name: read_sequence(path) for path in sorted(folder.iterdir()) if (path / "seqinfo.ini").exists()}
    said: dict[str, dict[str, dict[str, Remembering]]] = {}
    for name, model in models.items():
        for sequence in sequences.values():
            for gate, reid in look(model, sequence, gates).items():
                said.setdefault(name, {}).setdefault(gate, {})[sequence.name] = reid
    return Street(folder, sequences, said)


GATES = {"": "", "readout": ", gate", "true": ", true gate"}


def track_all(
    street: Street, names: Sequence[str], thresholds: dict[str, float], least: float
) -> tuple[dict[str, Tracks], dict[str, int]]:
    """Tracks, and the number of crops asked about, by "TRACKER | ROW"."""
    tracks, asked = {}, {}

    def run(name: str, label: str, reids: dict[str, Remembering] | None, row: Row) -> None:
        key, before = f"{name} | {label}", sum(reid.asked for reid in (reids or {}).values())
        tracks[key] = {}
        for sequence in street.sequences.values():
            reid = None if reids is None else reids[sequence.name]
            tracks[key][sequence.name] = track(TRACKERS[name](reid, row), sequence, reid)
        asked[key] = sum(reid.asked for reid in (reids or {}).values()) - before

    for name in names:
        run(name, "none", None, Row())
        run(name, "none, 120 frames", None, Row(anywhere=True))
        for model, by_gate in street.models.items():
            run(name, model, by_gate[""], Row())
            if name != DEEP:
                run(name, f"{model}, tuned", by_gate[""], Row(thresholds[model]))
                run(name, f"{model}, anywhere", by_gate[""], Row(thresholds[model], anywhere=True))
            for gate in filter(None, by_gate):
                run(name, model + GATES[gate], by_gate[gate], Row(thresholds[model], least, name != DEEP))
    return tracks, asked


def join_all(street: Street, tracks: Tracks, links: dict[str, list[float]], least: float) -> dict[str, dict]:
    """IDF1 within the cameras and over both, of tracks that are joined from these similarities on, by "ROW | LINK"."""
    within, over = {"none | 0": tracks}, {}
    with tempfile.TemporaryDirectory() as name:
        folder, frames, joined = both_cameras(street.folder, street.frames, Path(name))
        for model, by_gate in street.models.items():
            for gate, reids in by_gate.items():
                row = model + GATES[gate]
                found, features = tracklets(tracks, reids, least)
                people = join(found, features, Path(name))
                for link in links.get(row, LINKS):
                    within[f"{row} | {link}"] = renamed(tracks, found, people(link))
        # a track that nothing was joined to keeps a number of its own in each camera
        apart = {s: np.hstack([r[:, :1], r[:, 1:2] + 10_000 * i, r[:, 2:]]) for i, (s, r) in enumerate(tracks.items())}
        over = {key: joined(apart if key == "none | 0" else some) for key, some in within.items()}
        first = evaluate(street.folder, street.frames, within, ["IDF1"])
        second = evaluate(folder, frames, over, ["IDF1"])
    return {key: {"IDF1 within": first[key]["IDF1"], "IDF1 over both": second[key]["IDF1"]} for key in within}


def summary(streets: list[dict[str, float]], base: list[dict[str, float]]) -> dict:
    """Mean and half interval of every metric, and of its gain over `base`, street by street."""
    return {
        "streets": streets,
        "mean": {m: interval([street[m] for street in streets]) for m in streets[0]},
        "gain": {m: interval([a[m] - b[m] for a, b in zip(streets, base)]) for m in streets[0]},
    }


def table(rows: dict[str, dict]) -> str:
    """Markdown: mean +- half interval, and the gain over no ReID."""
    metrics = list(next(iter(rows.values()))["mean"])
    lines = ["| " + " | ".join(["", *metrics, f"gain in {metrics[0]}"]) + " |", "|---" * (len(metrics) + 2) + "|"]
    for name, row in rows.items():
        cells = ["{:.1f} ± {:.1f}".format(*row["mean"][m]) for m in metrics]
        lines.append(f"| {name.replace(' | ', ': ')} | {' | '.join(cells)} | {row['gain'][metrics[0]][0]:+.1f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streets", nargs="+", type=Path, help="folders of tools/draw_street.py")
    parser.add_argument("--reid", action="append", default=[], metavar="NAME=RUN", help="as often as needed")
    parser.add_argument("--tracker", action="append", choices=list(TRACKERS), help="as often as needed (default: all)")
    parser.add_argument("--tune", type=Path, required=True, metavar="STREET", help="another street, for the thresholds")
    parser.add_argument("--gate", nargs="*", default=[], choices=["readout", "true"], help="kinds of visibility")
    parser.add_argument(
        "--min-visibility", type=float, default=0.5, help="of a crop that counts (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON")
    args = parser.parse_args(argv)
    models = {name: load(path) for name, path in (reid.split("=", 1) for reid in args.reid)}
    least = args.min_visibility

    tune = read_street(args.tune, models, args.gate)
    thresholds, similarity = {}, {}
    for name, by_gate in tune.models.items():
        own, others = similarities(by_gate[""])
        thresholds[name] = float(np.quantile(others, 1 - FALSE_PAIRS))
        similarity[name] = {"own median": float(np.median(own)), "threshold": thresholds[name]}
        for least_similar in (0.6, 0.75, thresholds[name]):  # Ultralytics' default, BoxMOT's, tuned
            shares = [float((values >= least_similar).mean()) for values in (own, others)]
            similarity[name][f"own and others from {least_similar:.2f}"] = shares
    none = {n: track(bot_sort(None, Row()), sequence, None) for n, sequence in tune.sequences.items()}
    tried, links = join_all(tune, none, {}, least), {}
    for key in filter(lambda key: key != "none | 0", tried):
        row, link = key.split(" | ")
        better = row not in links or tried[key]["IDF1 over both"] > tried[f"{row} | {links[row][0]}"]["IDF1 over both"]
        links[row] = [float(link)] if better else links[row]
    del tune

    tracking: dict[str, list] = {}
    joined: dict[str, list] = {}
    asked: dict[str, int] = {}
    for folder in args.streets:
        street = read_street(folder, models, args.gate)
        tracks, counts = track_all(street, args.tracker or list(TRACKERS), thresholds, least)
        asked = {key: asked.get(key, 0) + count for key, count in counts.items()}
        for key, metrics in evaluate(folder, street.frames, tracks).items():
            tracking.setdefault(key, []).append(metrics)
        none = {n: track(bot_sort(None, Row()), sequence, None) for n, sequence in street.sequences.items()}
        for key, metrics in join_all(street, none, links, least).items():
            joined.setdefault(key.split(" | ")[0], []).append(metrics)
        print(f"{folder}: {len(tracks)} rows", flush=True)
        report = {
            "streets": [str(folder) for folder in args.streets],
            "similarity": similarity,
            "links": links,
            "asked": asked,
            "tracking": {
                key: summary(rows, tracking[key.split(" | ")[0] + " | none"]) for key, rows in tracking.items()
            },
            "joined": {key: summary(rows, joined["none"]) for key, rows in joined.items()},
        }
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["tracking"]), table(report["joined"]), json.dumps(similarity, indent=1), sep="\n\n")


if __name__ == "__main__":
    main()
