"""Drawn pedestrians as a FastReID data set: image files in Market-1501's layout, drawn once, the same on every machine.

    <root>/synthetic_pedestrians/
        bounding_box_train/ query/ bounding_box_test/      0002_c1s1_000451_03.jpg: person 2, camera 1
        validation_query/ validation_gallery/              people apart from training and test
        distractors/                                       RGBA cut-outs of people apart from all others, for pasting
        masks/<split>/<stem>.png                           label masks, values as in `scene`
        attributes.json                                    `people` and, per image, view, occlusion and places
        manifest.json                                      written last: what is here, and a digest of it

A folder with a manifest is used as it is, whatever its size (`tools/draw_pedestrians.py` draws smaller and larger
ones). Without one the default is drawn beside it under a lock and renamed into place when complete, so a drawing
that was killed is never taken for a data set: what it left is removed by the next.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock
from PIL import Image
from tqdm import tqdm

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..data.images import image_files, say_left_out
from ..files import check_output, read_json
from ..processes import in_processes
from .options import Spec
from .person import FAMILY_SIZE, GENERATOR_VERSION, generator, get_person
from .scene import cutout, draw
from .shot import get_camera, random_shot

logger = logging.getLogger(__name__)

FOLDER = "synthetic_pedestrians"
SPLITS = ("bounding_box_train", "query", "bounding_box_test", "validation_query", "validation_gallery")
JPEG_QUALITY = 92
_NAME = re.compile(r"(\d+)_c(\d+)s\d+_\d+_\d+\.jpg")
# Fewer pictures are drawn in this process: starting others costs more than they save.
_WORTH_PROCESSES = 1500


class Item(NamedTuple):
    """One picture to draw: where it goes, who is on it (`get_person`'s population and number), camera from 0."""

    split: str
    name: str
    population: str
    number: int
    camera: int
    shot: int


def items(spec: Spec) -> Iterator[Item]:
    """All pictures of a data set, in a fixed order. Populations stand for disjoint people (see `person`)."""

    def item(split: str, pid: int, population: str, index: int, camera: int, shot: int) -> Item:
        name = f"{pid:04d}_c{camera + 1}s1_{index * 100 + shot:06d}_{shot % 100:02d}.jpg"
        return Item(split, name, population, index, camera, shot)

    for index in range(spec.train_ids):
        for camera in range(spec.cameras):
            for shot in range(spec.train_shots):
                yield item("bounding_box_train", 1 + index, "train", index, camera, camera * spec.train_shots + shot)
    first = 1 + spec.train_ids
    for population, count, gallery, query in (
        ("test", spec.test_ids, "bounding_box_test", "query"),
        ("validation", spec.validation_ids, "validation_gallery", "validation_query"),
    ):
        for index in range(count):
            for camera in range(spec.cameras):
                yield item(gallery, first + index, population, index, camera, camera)
            # Consecutive people are siblings: their queries come from different cameras in turn.
            for q in range(spec.queries):
                camera = (index + q * max(1, spec.cameras // spec.queries)) % spec.cameras
                yield item(query, first + index, population, index, camera, spec.cameras + camera)
        first += count
    for index in range(spec.gallery_distractors):
        # Pid 0: in the gallery and nobody's match, as in Market-1501.
        yield item("bounding_box_test", 0, "gallery distractor", index, index % spec.cameras, 0)


def _write(path: Path, image: Image.Image, **options) -> str:
    """Write a picture; returns the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if path.suffix == ".png" else "JPEG", **options)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _draw_items(job: tuple[Spec, str, list[Item]]) -> list[tuple[str, dict, list[tuple[str, str]]]]:
    """Draw and write some items; returns for each its path, its record of attributes and its files' digests."""
    spec, folder, some = job
    drawn = []
    for item in some:
        rng = generator(spec.seed, item.population, "shot", item.number, item.shot)
        person = get_person(spec.seed, item.population, item.number)
        shot = random_shot(rng, get_camera(item.camera), spec.occluded)
        drawing = draw(person, shot, (spec.height, spec.width))
        path, mask = f"{item.split}/{item.name}", f"masks/{item.split}/{Path(item.name).stem}.png"
        files = [
            (path, _write(Path(folder, path), Image.fromarray(drawing.image), quality=JPEG_QUALITY)),
            (mask, _write(Path(folder, mask), Image.fromarray(drawing.mask))),
        ]
        record = {
            "person": f"{item.population}/{item.number}",
            "view": shot.view,
            "camera": item.camera,
            "occluder": shot.occluder.kind if shot.occluder and drawing.occluded else None,
            "occluded": round(drawing.occluded, 4),
            "places": {
                name: {"box": place.box, "visible": round(place.visible, 4)} for name, place in drawing.places.items()
            },
        }
        drawn.append((path, record, files))
    return drawn


def _draw_cutouts(spec: Spec, folder: Path) -> list[tuple[str, str]]:
    files = []
    for index in range(spec.cutouts):
        rng = generator(spec.seed, "distractor", "shot", index)
        shot = random_shot(rng, get_camera(0), occluded=0.0)
        rgba = cutout(
            get_person(spec.seed, "distractor", index * FAMILY_SIZE),
            shot,
            (spec.height, spec.width),
        )
        path = f"distractors/{index:04d}.png"
        files.append((path, _write(folder / path, Image.fromarray(rgba))))
    return files


def _draw_into(folder: Path, spec: Spec, workers: int) -> None:
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        (folder / "masks" / split).mkdir(parents=True)
    (folder / "distractors").mkdir()
    todo = list(items(spec))
    jobs = [(spec, str(folder), todo[i : i + 50]) for i in range(0, len(todo), 50)]
    files, images = _draw_cutouts(spec, folder), {}
    # A bar in a terminal only; in a log the lines before and after say enough.
    with tqdm(total=len(todo), desc="drawing pedestrians", unit="image", disable=None) as bar:

        def collect(drawn) -> None:
            for path, record, written in drawn:
                images[path] = record
                files.extend(written)
            bar.update(len(drawn))

        in_processes(_draw_items, jobs, workers, collect)

    people = {f"{i.population}/{i.number}": get_person(spec.seed, i.population, i.number).attributes() for i in todo}
    attributes = json.dumps({"people": people, "images": dict(sorted(images.items()))}, separators=(",", ":"))
    (folder / "attributes.json").write_text(attributes)
    files.append(("attributes.json", hashlib.sha256(attributes.encode()).hexdigest()))
    listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(files))
    counts = {split: sum(item.split == split for item in todo) for split in SPLITS}
    manifest = {
        "generator_version": GENERATOR_VERSION,
        "spec": dataclasses.asdict(spec),
        "images": counts,
        "distractors": spec.cutouts,
        "files": len(files),
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def draw_dataset(
    root: str | os.PathLike, spec: Spec | None = None, workers: int | None = None, force: bool = False
) -> Path:
    """Draw `<root>/synthetic_pedestrians`, unless it is there.

    Args:
        spec: what to draw; None takes the default.
        workers: processes; None takes one per core where that pays.
        force: draw even where a data set is, and replace it.

    Returns:
        The data set's folder. One that was there is left as it is, whatever its spec.

    Raises:
        FileExistsError: the folder exists but holds no manifest, so it is not ours to replace.
        OSError: the root cannot be written.
    """
    spec = spec or Spec()
    root = Path(root).expanduser().absolute()
    folder, partial = root / FOLDER, root / f".{FOLDER}.partial"
    if (folder / "manifest.json").is_file() and not force:
        return folder
    if workers is None:
        few = sum(1 for _ in items(spec)) < _WORTH_PROCESSES
        workers = (
            1 if few else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    try:
        check_output(folder, folder=True)
    except OSError as error:
        raise type(error)(
            f"SyntheticPedestrians: {error}; or set FASTREID_DATASETS to a folder that can be written"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / f".{FOLDER}.lock"):
        if (folder / "manifest.json").is_file() and not force:
            return folder  # another process drew it while this one waited
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise FileExistsError(
                f"{folder}: found a folder without manifest.json, which no finished drawing leaves; "
                "expected a drawn data set or nothing. Move it away, or set FASTREID_DATASETS to "
                "another folder"
            )
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        count = sum(1 for _ in items(spec))
        logger.warning("drawing %d pictures of people into %s, with %d process(es)", count, folder, workers)
        try:
            _draw_into(partial, spec, workers)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    return folder


def mask_path(image_path: str | os.PathLike) -> Path:
    """The label mask of a picture of the data set."""
    path = Path(image_path)
    return path.parent.parent / "masks" / path.parent.name / f"{path.stem}.png"


def load_attributes(folder: str | os.PathLike) -> dict[str, dict]:
    """`people`: name -> attributes, and `images`: "split/name.jpg" -> person, view, camera, occlusion and places.

    Raises:
        DamagedFile: it is none. OSError: it is not there.
    """
    remedy = "Draw the data set again with tools/draw_pedestrians.py --force: the same options give the same pictures"
    return read_json(Path(folder) / "attributes.json", remedy=remedy, required={"people": dict, "images": dict})


@DATASET_REGISTRY.register()
class SyntheticPedestrians(ImageDataset):
    """Drawn pedestrians, test people as query and gallery. Drawn on first use under `root`.

    Default statistics (identities / images): train 400 / 4,800, query 300 / 600, gallery 300 / 1,800 and 200
    pictures of people whom no query looks for (pid 0); six cameras. One fifth of the shots have an occluder.

    Args:
        root: folder of data sets; FastReID passes `FASTREID_DATASETS`.

    Raises:
        RuntimeError: a folder of the data set is missing or a file name is not Market-1501's.
    """

    dataset_name = "synthetic_pedestrians"
    drawn = True  # no photographs: `check_machine` keeps such people out of the validation of others
    query_split, gallery_split = "query", "bounding_box_test"
    # for the occlusion study: where the person is, and whose people to paste (nobody trains on them)
    mask_path = staticmethod(mask_path)
    distractor_source = "SyntheticPedestriansVal"

    def __init__(self, root: str = "datasets", **kwargs):
        self.data_dir = str(draw_dataset(root))
        self.check_before_run([os.path.join(self.data_dir, s) for s in SPLITS])
        super().__init__(
            lambda: self._read("bounding_box_train", is_train=True),
            lambda: self._read(self.query_split),
            lambda: self._read(self.gallery_split),
            **kwargs,
        )

    def _read(self, split: str, is_train: bool = False) -> list[tuple]:
        """(path, pid, camid from 0) of a split's pictures, sorted; in training with the data set's name before both."""
        data: list[tuple] = []
        listing = image_files(Path(self.data_dir, split), levels=1)
        say_left_out(type(self).__name__, listing)
        for path in listing.images:
            found = _NAME.fullmatch(path.name)
            if found is None:
                raise RuntimeError(
                    f"{self.data_dir}/{split}: found '{path.name}', expected names like "
                    "0002_c1s1_000451_03.jpg. Remove the file, or the data set to draw it anew"
                )
            pid, camid = int(found[1]), int(found[2]) - 1
            if is_train:
                data.append((str(path), f"{self.dataset_name}_{pid}", f"{self.dataset_name}_{camid}"))
            else:
                data.append((str(path), pid, camid))
        return data

    @property
    def distractors(self) -> list[str]:
        """Paths of the cut-outs (RGBA) of people apart from all others."""
        folder = os.path.join(self.data_dir, "distractors")
        return [str(path) for path in image_files(folder, levels=1).images]


@DATASET_REGISTRY.register()
class SyntheticPedestriansVal(SyntheticPedestrians):
    """The same training people, evaluated on the validation people: choose settings here, report on the test people."""

    query_split, gallery_split = "validation_query", "validation_gallery"
    distractor_source = "train"
