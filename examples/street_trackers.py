"""What examples/track_street.py tracks by: a drawn street, what a model says of it, and trackers that ask the model.

This file and deepocsort_costs.py are the only ones that import BoxMOT and Ultralytics, which are AGPL-3.0.
"""

from __future__ import annotations

import configparser
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import boxmot.trackers.box.botsort.tracker as boxmot_botsort
import cv2
import numpy as np
import torch
from boxmot import BotSort, DeepOcSort
from boxmot.reid.core.runtime import ReID
from ultralytics.trackers.bot_sort import BOTSORT

from sagareid import Extractor
from sagareid.deploy.adapters import BoxMOTReID, UltralyticsReID
from sagareid.synthetic.street import read_boxes

# BoxMOT's cosine distance to a feature of zeros, which says nothing, is NaN; it is the largest distance.
_distance = boxmot_botsort.embedding_distance
boxmot_botsort.embedding_distance = lambda tracks, found: np.nan_to_num(_distance(tracks, found), nan=1.0)


def gate(tracker: BotSort | DeepOcSort, reid: BoxMOTReID) -> None:
    """Let features of hidden people say nothing in a tracker of BoxMOT 25.0.0: zeros change no memory."""
    resolve = tracker._resolve_input_embeddings

    def gated(**given):
        features = resolve(**given)
        if len(features) == len(reid.hidden):
            features[reid.hidden] = 0
        return features

    tracker._resolve_input_embeddings = gated


# ---- a street --------------------------------------------------------------------------------------------------------


class Film(NamedTuple):
    """A camera's frames, BGR; detections of each (n, 5), corners and confidence, and their true person (0: nobody) and
    visible share, by the true box that they overlap most."""

    name: str
    frames: list[np.ndarray]
    boxes: list[np.ndarray]
    people: list[np.ndarray]
    seen: list[np.ndarray]


def read_sequence(folder: Path) -> Film:
    info = configparser.ConfigParser()
    info.read(folder / "seqinfo.ini")
    truth, found = read_boxes(folder / "gt/gt.txt"), read_boxes(folder / "det/det.txt")
    sequence = Film(folder.name, [], [], [], [])
    for number in range(1, info.getint("Sequence", "seqLength") + 1):
        sequence.frames.append(cv2.imread(str(folder / f"img1/{number:06d}.jpg")))
        rows, true = found[found[:, 0] == number], truth[truth[:, 0] == number]
        boxes = np.hstack([corners(rows), rows[:, 6:7]]).astype(np.float32)
        overlap = ious(boxes, corners(true))
        best = overlap.argmax(1) if len(true) else np.zeros(len(boxes), int)
        right = overlap.max(1, initial=0) >= 0.5
        sequence.boxes.append(boxes)
        sequence.people.append(np.where(right, true[best, 1], 0) if len(true) else np.zeros(len(boxes)))
        sequence.seen.append(np.where(right, true[best, 8], 0) if len(true) else np.zeros(len(boxes)))
    return sequence


def corners(rows: np.ndarray) -> np.ndarray:
    """(n, 4) of rows with left, top, width and height from their third number on."""
    return np.hstack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]])


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) intersection over union of corners."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    common = (high - low).clip(0).prod(2)
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return common / (area[0][:, None] + area[1][None] - common)


# ---- features --------------------------------------------------------------------------------------------------------


class Remembering:
    """An extractor that has looked at a sequence already, as the adapters of trackers use one.

    By frame: features (n, F), and how much is seen of each person (n,). `asked` counts the crops that a tracker asked
    about.
    """

    readout = None  # it is asked for, and `seen` takes its place

    def __init__(self, sequence: Film, features: list[torch.Tensor], seen: list[torch.Tensor]):
        self.sequence, self.features, self.seen = sequence, features, seen
        self.frame = self.asked = 0

    def embed(self, image, boxes, *, format="xyxy", empty="error", visibility=False):
        boxes = np.asarray(boxes, np.float32)
        self.asked += len(boxes)
        if not len(boxes):
            return self.features[self.frame][:0]
        if format == "cxcywh":
            boxes = np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
        overlap = ious(boxes, self.sequence.boxes[self.frame][:, :4])
        assert (overlap.max(1) > 0.99).all(), "a tracker asks about boxes that no detection has"
        same = torch.from_numpy(overlap.argmax(1))
        features = self.features[self.frame][same]
        return (features, SimpleNamespace(crop=self.seen[self.frame][same])) if visibility else features


class Loaded:
    """A file that BoxMOT loads by itself, in the place of an extractor."""

    def __init__(self, path: str):
        self.model = ReID(Path(path), device="cpu").model
        self.width = self.embed(np.zeros((96, 48, 3), np.uint8), np.array([[0, 0, 48, 96]], np.float32)).shape[1]

    def embed(self, image, boxes, **_):
        if not len(boxes):
            return torch.zeros(0, self.width)
        features = torch.from_numpy(np.asarray(self.model.get_features(boxes, image), np.float32))
        return torch.nn.functional.normalize(features, dim=1)


def load(path: str) -> Extractor | Loaded:
    return Extractor.from_checkpoint(path) if Path(path).is_dir() or path.endswith(".pth") else Loaded(path)


def has_readout(model: Extractor) -> bool:
    try:
        return model.readout is not None
    except FileNotFoundError as error:
        print(f"no gate by the read-out: {error}")
        return False


def look(model: Extractor | Loaded, sequence: Film, gates: list[str]) -> dict[str, Remembering]:
    """What a model says of a sequence, by gate: "" knows of no hidden people."""
    gates = [gate for gate in gates if isinstance(model, Extractor) and (gate != "readout" or has_readout(model))]
    features, shares = [], []
    for frame, boxes in zip(sequence.frames, sequence.boxes):
        if "readout" in gates:
            some, visibility = model.embed(frame, boxes[:, :4], visibility=True)
            shares.append(visibility.crop)
        else:
            some = model.embed(frame, boxes[:, :4])
        features.append(some)
    seen = {"": [torch.ones(len(some)) for some in features], "readout": shares}
    seen["true"] = [torch.from_numpy(true) for true in sequence.seen]
    return {gate: Remembering(sequence, features, seen[gate]) for gate in ["", *gates]}


def similarities(reids: dict[str, Remembering]) -> tuple[np.ndarray, np.ndarray]:
    """Of one person a second apart, and of two people in one frame."""
    own, others = [], []
    for reid in reids.values():
        for number, features in enumerate(reid.features):
            people = reid.sequence.people[number]
            product = (features @ features.T).numpy()
            others.append(product[(people[:, None] != people) & (people[:, None] > 0) & (people > 0)])
            if number >= 10:
                product = (features @ reid.features[number - 10].T).numpy()
                own.append(product[(people[:, None] == reid.sequence.people[number - 10]) & (people[:, None] > 0)])
    return np.concatenate(own), np.concatenate(others)


# ---- trackers --------------------------------------------------------------------------------------------------------


class Found:
    """Detections as a tracker of Ultralytics reads them."""

    def __init__(self, rows: np.ndarray):
        self.xyxy, self.conf, self.cls = rows[:, :4], rows[:, 4], np.zeros(len(rows), np.float32)
        self.xywh = np.hstack([(self.xyxy[:, :2] + self.xyxy[:, 2:]) / 2, self.xyxy[:, 2:] - self.xyxy[:, :2]])

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index) -> Found:
        return Found(np.hstack([self.xyxy, self.conf[:, None]])[index])


Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
LONG = 120  # frames


class Row(NamedTuple):
    """Settings of a tracker: the similarity that counts as one person (None: its own), the gate, and whether a track
    and a box that do not overlap may be one, for `LONG` frames."""

    similarity: float | None = None
    min_visibility: float = 0.0
    anywhere: bool = False


def bot_sort(reid: Remembering | None, row: Row) -> Step:
    options = {} if row.similarity is None else {"appearance_thresh": 1 - row.similarity}
    if row.anywhere:
        options |= {"proximity_thresh": 1.0, "track_buffer": LONG}
    return of_boxmot(BotSort, reid, row.min_visibility, use_cmc=False, **options)


def deep_oc_sort(reid: Remembering | None, row: Row) -> Step:
    """It adds similarity to overlap, with no threshold of similarity, and drops pairs that overlap too little."""
    return of_boxmot(DeepOcSort, reid, row.min_visibility, cmc_off=True, max_age=LONG if row.anywhere else 30)


def of_boxmot(kind: type, reid: Remembering | None, min_visibility: float, **options) -> Step:
    model = reid and BoxMOTReID(reid, min_visibility=min_visibility)
    tracker = kind(reid_model=model, use_embeddings=reid is not None, **options)
    if model and min_visibility:
        gate(tracker, model)

    def step(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
        return np.asarray(tracker.update(np.hstack([boxes, np.zeros((len(boxes), 1), np.float32)]), frame))

    return step


# botsort.yaml of Ultralytics 8.4.190
ULTRALYTICS = {
    "track_high_thresh": 0.25,
    "track_low_thresh": 0.1,
    "new_track_thresh": 0.25,
    "track_buffer": 30,
    "match_thresh": 0.8,
    "fuse_score": True,
    "gmc_method": "none",
    "proximity_thresh": 0.5,
    "appearance_thresh": 0.8,
    "model": "auto",
    "device": "cpu",
}


def ultralytics(reid: Remembering | None, row: Row) -> Step:
    options: dict[str, float] = {} if row.similarity is None else {"appearance_thresh": (1 + row.similarity) / 2}
    if row.anywhere:
        options |= {"proximity_thresh": 0.0, "track_buffer": LONG}
    tracker = BOTSORT(SimpleNamespace(**ULTRALYTICS | options, with_reid=reid is not None))
    tracker.encoder = reid and UltralyticsReID(reid, min_visibility=row.min_visibility)
    tracker.args.model = "of ours"  # with "auto" it asks nobody but the detector
    return lambda boxes, frame: np.asarray(tracker.update(Found(boxes), frame))


TRACKERS = {"BoxMOT BoT-SORT": bot_sort, "BoxMOT DeepOCSORT": deep_oc_sort, "Ultralytics BoT-SORT": ultralytics}


def track(step: Step, sequence: Film, reid: Remembering | None) -> np.ndarray:
    """(n, 8) frame from 1, track, left, top, width, height, confidence, detection."""
    rows = []
    for number, (frame, boxes) in enumerate(zip(sequence.frames, sequence.boxes)):
        if reid is not None:
            reid.frame = number
        for x1, y1, x2, y2, track, confidence, _, detection in step(boxes, frame):
            rows.append((number + 1, track, x1, y1, x2 - x1, y2 - y1, confidence, detection))
    return np.array(rows, np.float64).reshape(-1, 8)
