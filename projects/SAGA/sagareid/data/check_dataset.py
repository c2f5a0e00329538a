"""Is a data set whole? Counts against the published ones, every image read, and what would spoil an evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..config import custom_datasets
from ..files import printable
from . import images
from .contact_sheet import spread
from .datasets.build import build_dataset, queries_without_match
from .datasets.builtin import STATISTICS
from .datasets.custom import SPLITS, OwnDataset
from .datasets.layout import Statistics, WrongNames
from .datasets.names import Names

__all__ = [
    "KINDS",
    "Checked",
    "Example",
    "Problem",
    "Report",
    "check_dataset",
    "published_statistics",
]

CHUNK = 64  # images that a thread takes at a time
# What can be wrong, worst first, as the table says it.
KINDS = {
    "missing": "files that are not there",
    "empty": "files of zero bytes",
    "truncated": "images that end too early",
    "unreadable": "files that are no image",
    "wrong name": "files whose names say no person or camera",
    "split": "splits that cannot be read",
    "count": "splits that differ from the published statistics",
    "duplicate": "images that are byte for byte in another split too",
    "no match": "queries without an image of the person in another camera of the gallery",
}


class Problem(NamedTuple):
    """One thing that is wrong: a key of `KINDS`, the file or split, and what was found."""

    kind: str
    where: str
    found: str


class Example(NamedTuple):
    """What was read from one file: names, not numbers. `camera` is empty where cameras are not known."""

    file: str
    person: str
    camera: str

    def words(self) -> str:
        return f"person {self.person}, " + (f"camera {self.camera}" if self.camera else "camera not known")


class Checked(NamedTuple):
    """What `check_dataset` gives: a report, the (path, pid, camid) of each split that could be read, and names."""

    report: Report
    items: dict[str, list[tuple]]
    names: Names


@dataclasses.dataclass
class Report:
    """What `check_dataset` found.

    Attributes:
        counts: images, people and cameras of each split that could be read; None where cameras are not known.
        published: the same as its authors state it; empty where no statistics are known.
        problems: each of them makes `tools/check_dataset.py` end with exit code 1.
        notes: worth knowing, and no fault of the files.
        examples: of each split, some files with the person and the camera that were read, by their names.
    """

    dataset: str
    counts: dict[str, tuple[int, int, int | None]]
    published: Statistics
    problems: list[Problem]
    notes: list[str]
    examples: dict[str, list[Example]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        """For JSON."""
        examples = {split: [example._asdict() for example in some] for split, some in self.examples.items()}
        problems = [problem._asdict() for problem in self.problems]
        return dataclasses.asdict(self) | {"problems": problems, "examples": examples}

    def table(self, shown: int = 5) -> str:
        """Counts, examples of what was read, then the first problems of each kind, then the notes."""
        rows = []
        for split in SPLITS:
            counts = self.counts.get(split)
            if counts is None or not (any(counts) or split in self.published):
                continue
            published = self.published.get(split, (None,) * 3)
            rows.append([split, *(_against(count, stated) for count, stated in zip(counts, published))])
        headers = ["split", "images", "people", "cameras"]
        parts = [f"{self.dataset}\n", tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
        if not self.published:
            parts.append("no published statistics are known for it")
        if self.examples:
            parts.append("who is where, as it was read; are people and cameras right?")
        for split, some in self.examples.items():
            parts += [f"  {split}: {example.file} -> {example.words()}" for example in some]
        by_kind = Counter(problem.kind for problem in self.problems)
        for kind, meaning in KINDS.items():
            if by_kind[kind]:
                parts.append(f"{by_kind[kind]} {meaning}:")
                some = [problem for problem in self.problems if problem.kind == kind][:shown]
                parts += [f"  {problem.where}: {problem.found}" for problem in some]
                parts += (
                    [f"  and {by_kind[kind] - shown} more (--json lists them all)"] if by_kind[kind] > shown else []
                )
        parts += [f"note: {note}" for note in self.notes]
        parts.append("no problem found" if not self.problems else f"{len(self.problems)} problem(s)")
        return "\n".join(parts)


def _against(count: int | None, stated: int | None) -> str:
    if count is None:
        return "not known"
    if stated is None:
        return f"{count:,}"
    return f"{count:,} of {stated:,}" + (f" ({count - stated:+,})" if count != stated else "")


def published_statistics(cfg, name: str) -> Statistics:
    """Published counts of a data set; empty where none are known."""
    if name in custom_datasets(cfg):  # other arguments, other counts
        return {}
    return getattr(DATASET_REGISTRY.get(name), "statistics", None) or STATISTICS.get(name, {})


# ---- checking ------------------------------------------------------------------------------------------------------


def check_dataset(cfg, name: str, workers: int | None = None) -> Checked:
    """Read a data set as a run would, and every image of it.

    Args:
        name: registered, or of DATASETS.CUSTOM.
        workers: threads that read; None: one a core.

    Raises:
        OSError, RuntimeError, ValueError: the data set as a whole is not there, or not as its class expects it.
    """
    problems: list[Problem] = []
    with images.listings() as listings:
        try:
            data = _open(cfg, name)
        except WrongNames as error:
            again = "nothing else was checked: run it again when the names are right"
            report = Report(name, {}, published_statistics(cfg, name), _wrong_names(error), [again])
            return Checked(report, {}, Names(None))
        items: dict[str, list[tuple]] = {}
        for split in SPLITS:
            try:
                items[split] = list(getattr(data, split))
            except WrongNames as error:
                problems += _wrong_names(error)
            except RuntimeError as error:
                problems.append(Problem("split", split, str(error)))
    names = Names(data)
    counts = {split: (len(rows), *data.parse_data(rows)) for split, rows in items.items()}
    if not getattr(data, "cameras_known", True):
        counts = {split: (images, people, None) for split, (images, people, _) in counts.items()}
    published = published_statistics(cfg, name)
    problems += _differences(counts, published)
    problems += _read_all({split: [row[0] for row in rows] for split, rows in items.items()}, workers)
    if "query" in items and "gallery" in items:
        problems += _without_match(items["query"], items["gallery"], names)
    order = list(KINDS)
    problems.sort(key=lambda problem: (order.index(problem.kind), problem.where))
    notes = [*_notes(data, items), *_not_used(items, listings)]
    return Checked(Report(name, counts, published, problems, notes, _examples(items, names)), items, names)


def _examples(items: Mapping[str, Sequence[tuple]], names: Names, number: int = 3) -> dict[str, list[Example]]:
    """Files spread over each split, so that several people and cameras show."""
    return {
        split: [
            Example(printable("/".join(Path(path).parts[-3:])), names.person(pid), names.camera(camid))
            for path, pid, camid in spread(rows, number)
        ]
        for split, rows in items.items()
        if rows
    }


def _not_used(items: Mapping[str, Sequence[tuple]], listings: Sequence[images.Listing]) -> Iterable[str]:
    """Files that a class leaves out: no images by their names, and images beside those of a split that are in none."""
    yield from dict.fromkeys(f"not used of {printable(one.folder)}: {one}" for one in listings if one.left_out)
    used = {os.path.abspath(path) for rows in items.values() for path, *_ in rows}
    folders = sorted({os.path.dirname(path) for path in used})
    beside = [
        str(path) for folder in folders if os.path.isdir(folder) for path in images.image_files(folder, levels=1).images
    ]
    if unused := [path for path in beside if path not in used]:
        shown = ", ".join(printable(path) for path in unused[:3])
        yield f"{len(unused)} image(s) beside those of the splits are in none, such as {shown}"


def _open(cfg, name: str) -> ImageDataset:
    """The data set, although one split of it may be unreadable: FastReID reads the split of its mode at once."""
    errors = []
    for mode in SPLITS:
        try:
            return build_dataset(cfg, name, mode=mode)
        except RuntimeError as error:
            errors.append(error)
    raise errors[0]


def _wrong_names(error: WrongNames) -> list[Problem]:
    return [Problem("wrong name", printable(path), f"expected {error.expected}") for path in error.paths]


def _differences(counts: dict[str, tuple[int, int, int | None]], published: Statistics) -> Iterable[Problem]:
    for split, stated in published.items():
        pairs = zip(("images", "people", "cameras"), counts.get(split, ()), stated)
        other = [
            f"{count:,} {what}, published {expected:,}"
            for what, count, expected in pairs
            if expected not in (None, count)
        ]
        if other:
            yield Problem("count", split, "; ".join(other))


class _File(NamedTuple):
    path: str
    problem: Problem | None
    digest: bytes  # of a file that could be read


def read_whole(path: str) -> _File:
    """Read an image as a run does (`images.read_image`), and say which kind of problem it has."""

    def wrong(kind: str, found: object, digest: bytes = b"") -> _File:
        return _File(path, Problem(kind, printable(path), str(found)), digest)

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return wrong("missing", "no such file")
    except OSError as error:
        return wrong("unreadable", error.strerror or error)
    if not content:
        return wrong("empty", "zero bytes")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            images.as_rgb(image)
    except Exception as error:  # Pillow's readers raise many kinds on bytes that are no image
        early = "truncated" in str(error) or "premature" in str(error).lower()
        return wrong("truncated" if early else "unreadable", images.reason(error), digest)
    return _File(path, None, digest)


def _read_all(paths: dict[str, list[str]], workers: int | None) -> list[Problem]:
    """Problems of the files themselves, and files that are in several splits.

    Threads, not processes: Pillow decodes and hashlib hashes outside Python's lock, and threads start at once.
    """
    every = list(dict.fromkeys(path for some in paths.values() for path in some))
    splits_of_path = defaultdict(set)
    for split, some in paths.items():
        for path in some:
            splits_of_path[path].add(split)
    problems, same = [], defaultdict(list)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers or cores)
    try:
        chunks = [every[i : i + CHUNK] for i in range(0, len(every), CHUNK)]
        with tqdm(total=len(every), desc="reading", unit="image", disable=None) as bar:
            for files in pool.map(lambda chunk: [read_whole(path) for path in chunk], chunks):
                problems += [file.problem for file in files if file.problem]
                for file in files:
                    if file.digest:
                        same[file.digest].append(file.path)
                bar.update(len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends at once
    for copies in same.values():
        splits = sorted({split for path in copies for split in splits_of_path[path]}, key=SPLITS.index)
        if len(splits) > 1:
            others = [f"same as {printable(path)}" for path in copies[1:]] or ["the same file"]
            problems.append(
                Problem("duplicate", printable(copies[0]), f"{', '.join(others)}; in {' and '.join(splits)}")
            )
    return problems


def _without_match(query: Sequence[tuple], gallery: Sequence[tuple], names: Names) -> Iterable[Problem]:
    there = {pid for _, pid, _ in gallery}
    for path, pid, camid in queries_without_match(query, gallery):
        found = "only in the same camera" if pid in there else "not in the gallery"
        yield Problem("no match", printable(path), f"{names.both(pid, camid)}: {found}")


def _notes(data: ImageDataset, items: dict[str, list[tuple]]) -> list[str]:
    notes = []
    known = getattr(data, "cameras_known", True)
    if not known:
        notes.append("no cameras are known: each image counts as one of its own, and no match is excluded")
    train = items.get("train", [])
    seen = defaultdict(set)
    for _, pid, camid in train:
        seen[pid].add(camid)
    alone = sum(count == 1 for count in Counter(pid for _, pid, _ in train).values())
    if alone:
        notes.append(f"{alone} training people have one image: a triplet has no positive for them")
    single = sum(len(cameras) == 1 for cameras in seen.values())
    if known and single:
        notes.append(f"{single} training people are seen by one camera")
    tested = {str(camid) for split in ("query", "gallery") for _, _, camid in items.get(split, ())}
    trained = {str(camid).rpartition("_")[2] for _, _, camid in train}
    if known and train and tested - trained:
        notes.append(f"{len(tested - trained)} test camera(s) have no training image: a camera embedding ignores them")
    if isinstance(data, OwnDataset):  # whose people have one number in all splits
        people = {int(str(pid).rpartition("_")[2]) for _, pid, _ in train}
        both = people & {pid for split in ("query", "gallery") for _, pid, _ in items.get(split, ())}
        if both:
            notes.append(f"{len(both)} people are in training and in test: the test flatters")
    if not items.get("query") and not items.get("gallery") and len(items) == len(SPLITS):
        notes.append("it has no query and no gallery, so it cannot be tested on")
    return notes
