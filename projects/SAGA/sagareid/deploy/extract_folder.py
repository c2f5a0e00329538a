"""Features of every image under a folder, in shards that are whole or absent; several processes may share the work.

n images, F feature width.

An output is a folder of Parquet shards (`part-00000-of-00012.parquet`; columns `path`, `feature`, a list of F float32,
`state`, those of `metadata`, and `visibility` where the model gives it), or one .parquet file, or an .npz of paths and
features, that is joined from such shards at the end. A process takes a shard by a file
lock, which the system releases when the process dies, and writes it whole, so that a process that dies loses the shard
it was at. A shard counts only with the key of this work: the checkpoint's bytes, the feature, the precision, and the
names, sizes and times of the images. The states of images (size and time) are kept beside the features, so that an
update takes over those of images that are as they were (`earlier`). Meanwhile the earlier shards of a folder are in its
`.earlier/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..data.images import SUFFIXES, Listing, image_files, say_left_out
from ..files import (
    DamagedFile,
    parse_json,
    printable,
    read_json,
    read_npz,
    read_record,
    write_atomically,
    write_json,
)
from ..hardware import pick_device
from .earlier import MODEL, Earlier
from .extractor import Extractor
from .feature_set import about_parquet, whole_parquet
from .gallery.columns import arrow_type
from .metadata import Metadata
from .options import MANIFEST, REMEDY, REMEDY_OF_MANIFEST, is_single_file

__all__ = ["Report", "extract_folder", "list_images", "open_extractor"]

REPORT = "report.json"
VISIBLE = "visibility"  # the column of what the model says of it
EARLIER, MOVING = ".earlier", ".earlier.partial"  # in a folder of shards that is being updated
NAMED = 20  # entries of a kind that the report names
# Seconds between looks at shards that other processes have.
POLL = 1.0


@dataclass
class Report:
    """What was extracted and what was not.

    Attributes:
        folder: the folder of the images.
        output, feature, width, dtype, checkpoint_sha256: what was written, and by which model.
        images: number of images.
        extracted: number of images that have a feature.
        unreadable: {"path", "error"} of the other images, sorted by path.
        left_out: reason -> number and first names of the entries that are no images by their names.
        kept, dropped: of an update, how many features were taken over, and how many images have gone.
    """

    folder: str
    output: str
    images: int
    extracted: int
    feature: str
    width: int
    dtype: str
    checkpoint_sha256: str
    unreadable: list[dict[str, str]] = field(default_factory=list)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: int = 0
    dropped: int = 0


def list_images(folder: str | Path) -> tuple[list[str], Listing]:
    """Sorted paths of the images under a folder, relative to it, with forward slashes; and the whole listing.

    Entries that are no images are logged.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: no image under it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    listing = image_files(folder)
    if not listing.names:
        found = f"found {listing}" if listing.left_out else "it is empty"
        raise ValueError(f"no image under {folder}; {found}. Images end in {', '.join(SUFFIXES)}")
    say_left_out("extraction", listing)
    return sorted(listing.names), listing


def open_extractor(checkpoint: str | Path, *, device: str, dtype: str, feature: str) -> tuple[Extractor, str]:
    """An extractor and the SHA-256 of its checkpoint; with several GPUs, process LOCAL_RANK takes its own."""
    device = pick_device(device)
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    extractor = Extractor.from_checkpoint(checkpoint, device=device, dtype=dtype, feature=feature)
    return extractor, extractor.checkpoint_sha256


def extract_folder(
    extractor: Extractor,
    folder: str | Path,
    output: str | Path,
    *,
    checkpoint_sha256: str,
    shard_size: int = 4096,
    batch_size: int = 64,
    num_workers: int = 0,
    overwrite: bool = False,
    update: bool = False,
    table: str | Path | None = None,
    pattern: str | None = None,
) -> Report:
    """Write the features of all images under `folder`, going on where an earlier call or another process stopped.

    Under torchrun (RANK, WORLD_SIZE) each process starts at its own part of the shards and then helps with the rest.
    The call returns when every shard is there, whichever process wrote it.

    Args:
        output: .npz (arrays `features` (n, F) float32 and `paths`), .parquet, or else a folder of shards.
        shard_size: images of a shard, the most that a process that dies can lose.
        num_workers: processes that read and resize images.
        overwrite: discard an output of other images or of another checkpoint.
        update: of an output of other images, keep the features of those that are as they were by name, size and time,
            extract the new and the changed ones, and drop those that are gone.
        table, pattern: what is known of the images, see `metadata`. Not for .npz, which has no columns.

    Raises:
        ValueError: the output has another key and is to be neither overwritten nor updated; an update of an output of
            another model; or several processes shall write one file.
        OSError: the output cannot be written.
    """
    folder, output = Path(folder), Path(output)
    single = is_single_file(output)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if single and world > 1:
        raise ValueError(f"{world} processes write shards: name a folder as the output, not {output.name}")
    if shard_size < 1:
        raise ValueError(f"shard size is {shard_size}; expected 1 or more")
    npz = output.suffix == ".npz" and single
    if npz and (table is not None or pattern is not None):
        raise ValueError(f"{output} has no columns for metadata: name a .parquet file, or a folder")
    files, listing = list_images(folder)
    shards = _Shards(
        folder=folder,
        files=files,
        where=output.with_name(output.name + ".shards") if single else output,
        size=shard_size,
        about={
            "checkpoint_sha256": checkpoint_sha256,
            "feature": extractor.feature,
            "width": extractor.width,
            "dtype": extractor.dtype,
            "folder": str(folder.resolve()),
        },
        metadata=Metadata.read(files, table=table, pattern=pattern),
        image_size=list(extractor.size),
        visibility=extractor.gives_visibility and not npz,
    )
    report_file = output.with_name(f"{output.name}.{REPORT}") if single else output / REPORT
    if single and output.exists():
        if finished := _finished(output, report_file, shards.key, overwrite):
            return finished
        if not (overwrite or update):
            raise ValueError(_of_another(output))
        if update:
            shards.earlier = Earlier(output, shards.about)
    shards.open(overwrite, update)
    with tqdm(total=len(files), desc="features", unit="img", disable=None if rank == 0 else True) as bar:
        shards.work(extractor, rank / world, bar, batch_size=batch_size, num_workers=num_workers)
    report = shards.report(output)
    report.left_out = {why: {"count": len(names), "first": names[:NAMED]} for why, names in listing.left_out.items()}
    write_json(report_file, asdict(report))
    if single:
        write_atomically(output, _joiner(output, shards))
        shutil.rmtree(shards.where)
    else:
        shutil.rmtree(shards.where / EARLIER, ignore_errors=True)
    return report


class _Shards:
    """The shards of one extraction, written or still to be written."""

    def __init__(
        self,
        folder: Path,
        files: list[str],
        where: Path,
        size: int,
        about: dict[str, Any],
        metadata: Metadata | None = None,
        image_size: Sequence[int] = (),
        visibility: bool = False,
    ):
        self.folder, self.files, self.where, self.size = folder, files, where, size
        self.known, self.visibility = metadata or Metadata(files, {}), visibility
        if visibility and VISIBLE in self.known.columns:
            raise ValueError(f"the metadata has a column {VISIBLE!r}, which the model gives itself; rename it")
        self.count = -(-len(files) // size)
        self.earlier: Earlier | None = None
        self._states = {name: _state(folder / name) for name in files}
        digest = hashlib.sha256(json.dumps([about, size]).encode())
        digest.update(f"{self.known.key}{' visibility' if visibility else ''}".encode())
        columns = self.known.columns | ({VISIBLE: "number"} if visibility else {})
        self.about = about | {"size": list(image_size), "columns": columns}
        for name in files:
            state = self._states[name].replace(" ", "\0")
            digest.update(f"\n{name}\0{state}".encode(errors="surrogateescape"))
        self.key = digest.hexdigest()

    def path(self, index: int) -> Path:
        return self.where / f"part-{index:05d}-of-{self.count:05d}.parquet"

    def part(self, index: int) -> list[str]:
        return self.files[index * self.size : (index + 1) * self.size]

    def open(self, overwrite: bool, update: bool) -> None:
        """Claim the folder for this work, or check that it belongs to it."""
        self.where.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.where / ".lock")):
            manifest = self.where / MANIFEST
            if (self.where / MOVING).exists():
                self._set_aside()
            found = None
            if manifest.exists():
                found = read_json(manifest, remedy=REMEDY_OF_MANIFEST, required={"key": str})
            others = [p for p in self.where.iterdir() if not p.name.startswith(".")]
            if found and found["key"] == self.key:
                self._open_earlier()
                return
            if found and update and self.earlier is None:
                if differing := [key for key in MODEL if found.get(key) != self.about[key]]:
                    raise ValueError(
                        f"{self.where} holds features of another {differing[0]}, so none can be kept; --overwrite "
                        "discards them, or name another output"
                    )
                if not (self.where / EARLIER).exists():
                    Earlier(self.where, self.about)  # before it is moved, see that it can be read
                    self._set_aside()
                    others = []
            if found is None and self._are_own(others):  # whose manifest was lost
                others = []
            self._open_earlier()
            if others and (found is None or not (overwrite or update)):
                raise ValueError(
                    _of_another(self.where) if found else f"{self.where} holds other files; name a new folder"
                )
            if others:
                for path in (*self.where.glob("part-*.parquet"), manifest, self.where / REPORT):
                    path.unlink(missing_ok=True)
            gone = 0 if self.earlier is None else len(self.earlier.states.keys() - self._states.keys())
            counts = {"images": len(self.files), "shards": self.count, "dropped": gone}
            write_json(manifest, self.about | {"key": self.key} | counts)

    def _set_aside(self) -> None:
        """Move the shards and what tells of them to EARLIER; goes on where it was interrupted."""
        moving = self.where / MOVING
        moving.mkdir(exist_ok=True)
        for path in (*self.where.glob("part-*.parquet"), self.where / REPORT, self.where / MANIFEST):  # it last
            if path.exists():
                path.rename(moving / path.name)
        moving.rename(self.where / EARLIER)

    def _open_earlier(self) -> None:
        if self.earlier is None and (self.where / EARLIER).exists():
            self.earlier = Earlier(self.where / EARLIER, self.about)

    def _are_own(self, paths: list[Path]) -> bool:
        """Whether these are shards of this work, and its report perhaps."""
        own = {self.path(index): index for index in range(self.count)} | {self.where / REPORT: None}
        return set(paths) <= own.keys() and any(
            index is not None and self.metadata(index) is not None for index in map(own.get, paths)
        )

    def metadata(self, index: int) -> dict[str, Any] | None:
        """The metadata of a shard; None where there is none that is whole and belongs to this work."""
        try:
            found = about_parquet(pq.read_schema(self.path(index)), self.path(index))
        except (OSError, ValueError):  # pyarrow's own error for a damaged file is a ValueError
            return None
        own = found.get("key") == self.key and found.get("shard") == index and "unreadable" in found
        return found if own else None

    def work(self, extractor: Extractor, start: float, bar: tqdm, **options: Any) -> None:
        """Extract the shards that no other process has, from `start` (a share of them) on, until all are there."""
        first = int(start * self.count)
        left = [*range(first, self.count), *range(first)]
        locks = self.where / ".locks"
        locks.mkdir(exist_ok=True)
        while left:
            busy = []
            for index in left:
                if self.metadata(index) is not None:
                    bar.update(len(self.part(index)))
                    continue
                try:
                    with FileLock(str(locks / str(index)), timeout=0):
                        if self.metadata(index) is None:
                            self._extract(index, extractor, bar, **options)
                        else:
                            bar.update(len(self.part(index)))
                except Timeout:
                    busy.append(index)
            if len(busy) == len(left):
                bar.set_postfix_str(f"waiting for {len(busy)} shards of other processes")
                time.sleep(POLL)
            left = busy

    def _extract(self, index: int, extractor: Extractor, bar: tqdm, **options: Any) -> None:
        names, unreadable = [], []
        for name in self.part(index):
            if printable(name) == name:
                names.append(name)
            else:  # neither Parquet nor text in UTF-8 can hold it
                unreadable.append(
                    {"path": printable(name), "error": "its name is no UTF-8 or has control characters; rename it"}
                )
        bar.update(len(unreadable))
        before = {} if self.earlier is None or not self._fits(self.earlier) else self.earlier.states
        taken = [name for name in names if before.get(name) == self._states[name]]
        features, kept, seen = [np.zeros((0, extractor.width), np.float32)], list(taken), [np.zeros(0)]
        if taken and self.earlier is not None:
            features.append(self.earlier.features(taken))
            seen.append(self.earlier.visibility(taken) if self.visibility else np.zeros(0))
            bar.update(len(taken))
            names = sorted(set(names) - set(taken))
        if self.visibility:
            options = options | {"visibility": True}
        for batch in extractor.iterate([self.folder / name for name in names], **options) if names else ():
            features.append(batch.features.numpy())
            if batch.visibility is not None:
                seen.append(batch.visibility.crop.numpy())
            kept += [names[i] for i in batch.indices]
            unreadable += [{"path": names[i], "error": why} for i, why in batch.unreadable.items()]
            bar.update(len(batch.indices) + len(batch.unreadable))
        unreadable.sort(key=lambda entry: entry["path"])
        about = self.about | {"key": self.key, "shard": index, "unreadable": unreadable, "kept": len(taken)}
        order = sorted(range(len(kept)), key=kept.__getitem__)  # as they are listed
        names = [kept[i] for i in order]
        columns = self.known.of(names)
        if self.visibility:
            columns[VISIBLE] = pa.array(np.concatenate(seen)[order], arrow_type("number"))
        states = [self._states[name] for name in names]
        table = _table(names, np.concatenate(features)[order], states, about, columns)
        write_atomically(self.path(index), lambda temporary: pq.write_table(table, temporary, use_dictionary=False))

    def _fits(self, earlier: Earlier) -> bool:
        """Whether all that the model gives of an image can be taken over."""
        return not self.visibility or earlier.has_visibility

    def report(self, output: Path) -> Report:
        """The report of finished shards."""
        written = [self.metadata(i) for i in range(self.count)]
        unreadable = [entry for about in written if about for entry in about["unreadable"]]
        about = {k: self.about[k] for k in ("checkpoint_sha256", "feature", "width", "dtype", "folder")}
        extracted = len(self.files) - len(unreadable)
        kept = sum(about.get("kept", 0) for about in written if about)
        dropped = read_json(self.where / MANIFEST, remedy=REMEDY_OF_MANIFEST).get("dropped", 0)
        counts = {"images": len(self.files), "extracted": extracted, "kept": kept, "dropped": dropped}
        return Report(output=str(output), unreadable=unreadable, **counts, **about)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """One after the other; without names, all columns."""
        for index in range(self.count):
            old = "state" not in pq.read_schema(self.path(index)).names  # a shard that an earlier version wrote
            there = [name for name in columns if not (old and name == "state")]
            table = pq.read_table(self.path(index), columns=there or None)
            if old and (not columns or "state" in columns):
                table = table.append_column("state", pa.array([""] * len(table), pa.string()))
            yield table


def _state(path: Path) -> str:
    """Size and time of a file; "gone" for one that was removed after the listing."""
    try:
        state = path.stat()
    except OSError:
        return "gone"
    return f"{state.st_size} {state.st_mtime_ns}"


def _of_another(output: Path) -> str:
    return (
        f"{output} holds features of other images, of another checkpoint, or of another --feature, --dtype, "
        "--metadata, --pattern or --shard-size; --update keeps those of unchanged images, --overwrite discards them, "
        "or name another output"
    )


def _table(
    paths: list[str],
    features: np.ndarray,
    states: list[str],
    about: dict[str, Any],
    further: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    further, width = dict(further or {}), about["width"]
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1), pa.float32()), width)
    columns = {
        "path": pa.array(paths, pa.string()),
        "feature": column,
        "state": pa.array(states, pa.string()),
    } | further
    schema = pa.schema([(name, values.type) for name, values in columns.items()], {"sagareid": json.dumps(about)})
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _finished(output: Path, report_file: Path, key: str, overwrite: bool) -> Report | None:
    """The report of a joined file, where it is of this work and both are whole.

    Raises:
        DamagedFile: one is not, and is not to be overwritten.
    """
    try:
        same = _key_of(output) == key and report_file.exists()
        return read_record(Report, report_file, remedy=REMEDY) if same else None
    except DamagedFile:
        if overwrite:
            return None
        raise


def _key_of(output: Path) -> str | None:
    """The key of a joined file; None for a file without one.

    Raises:
        DamagedFile: it cannot be read.
    """
    if output.suffix == ".parquet":
        with whole_parquet(output):
            return about_parquet(pq.read_schema(output), output).get("key")
    about = read_npz(output, remedy=REMEDY, only=("about",)).get("about")
    return None if about is None else parse_json(str(about), output, remedy=REMEDY).get("key")


def _joiner(output: Path, shards: _Shards) -> Callable[[str], None]:
    """A function that writes all shards as one file to a path."""
    about = shards.about | {"key": shards.key}

    def parquet(temporary: str) -> None:
        none = {name: pa.array([], arrow_type(kind)) for name, kind in about.get("columns", {}).items()}
        schema = _table([], np.zeros((0, about["width"]), np.float32), [], about, none).schema
        with pq.ParquetWriter(temporary, schema, use_dictionary=False) as writer:
            for table in shards.tables():
                writer.write_table(table.replace_schema_metadata(schema.metadata))

    def npz(temporary: str) -> None:  # as `np.savez` writes it, shard by shard
        count = sum(len(table) for table in shards.tables("path"))
        features = (table["feature"].combine_chunks().flatten().to_numpy() for table in shards.tables("feature"))
        entry = np.array(json.dumps(about))
        with zipfile.ZipFile(temporary, "w") as archive:
            _write_array(archive, "features", features, (count, about["width"]), np.dtype(np.float32))
            for name, column in (("paths", "path"), ("states", "state")):
                longest = max((len(x) for table in shards.tables(column) for x in table[column].to_pylist()), default=0)
                kind = np.dtype(f"U{max(longest, 1)}")
                parts = (np.array(table[column].to_pylist(), kind) for table in shards.tables(column))
                _write_array(archive, name, parts, (count,), kind)
            _write_array(archive, "about", [entry], (), entry.dtype)

    return parquet if output.suffix == ".parquet" else npz


def _write_array(
    archive: zipfile.ZipFile, name: str, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """An array of an .npz file from its parts, of which one at a time is in memory."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())
