"""A data set of one's own as a table of files."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY

from .custom import SHOWN, SPLITS, OwnDataset, Photo

__all__ = ["CSVDataset"]


@DATASET_REGISTRY.register()
class CSVDataset(OwnDataset):
    """A table of images: ``path,pid,split`` and perhaps ``camid``, with a first line of column names; others are ignored.

    By configuration: ``DATASETS.CUSTOM: [{NAME: shop, TYPE: CSVDataset, PATH: shop/crops.csv}]``, then ``shop`` in
    DATASETS.NAMES or TESTS. Fields are separated by commas; the file is UTF-8, as spreadsheets write it too.
    pid and camid are any text, split is train, query or gallery. Without the column camid every image is a camera of
    its own, and the log says that same-camera matches were not excluded. Each pid is one person: leave junk out;
    distractors are gallery people without a query.

    Args:
        name: the entry's NAME.
        path: the table, under `root` (FASTREID_DATASETS) or absolute.
        images: folder that paths are relative to, under `root` or absolute. None: the table's own.
        validation_share: as of a `FolderDataset`.

    Raises:
        FileNotFoundError: no table there.
        ValueError: a column, field or file is missing, a split is unknown, an image is listed twice; with line numbers.
    """

    def __init__(
        self,
        root: str = "datasets",
        *,
        name: str,
        path: str,
        images: str | None = None,
        validation_share: float = 0.0,
        **kwargs,
    ):
        table = Path(root, path).expanduser()
        if not table.is_file():
            raise FileNotFoundError(
                f"{name}: no table {table}. Expected a CSV file with the columns path, pid, split and perhaps camid; "
                "PATH is relative to FASTREID_DATASETS, or absolute"
            )
        folder = Path(root, images).expanduser() if images else table.parent
        try:
            splits = _read_table(name, table, folder)
        except csv.Error as error:
            raise ValueError(f"{name}: {table} is no CSV file: {error}. Check its quotes") from error
        super().__init__(name, splits, validation_share=validation_share, **kwargs)


def _read_table(name: str, table: Path, folder: Path) -> dict[str, list[Photo]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {table} is not UTF-8 ({error}). Save it as CSV UTF-8") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    missing = [column for column in ("path", "pid", "split") if column not in columns]
    if missing:
        found = ", ".join(columns) or "an empty file"
        raise ValueError(
            f"{name}: {table} has no column {', '.join(missing)}; found {found}. Expected a first line such as "
            "path,pid,camid,split, separated by commas"
        )
    with_cameras = "camid" in columns
    needed = ("path", "pid", "split") + (("camid",) if with_cameras else ())
    splits: dict[str, list[Photo]] = {split: [] for split in SPLITS}
    seen: dict[str, int] = {}
    problems = []
    for row in reader:
        line = reader.line_num
        fields = {column: (row[column] or "").strip() for column in needed}
        empty = [column for column, value in fields.items() if not value]
        path = os.path.normpath(os.path.join(folder, fields["path"]))
        if None in row:
            problems.append(f"line {line}: {len(columns) + len(row[None])} fields, expected {len(columns)}")
        elif empty:
            problems.append(f"line {line}: no {', '.join(empty)}")
        elif fields["split"] not in splits:
            problems.append(f"line {line}: split {fields['split']!r}, expected train, query or gallery")
        elif path in seen:
            problems.append(f"line {line}: {fields['path']} is already in line {seen[path]}")
        elif not os.path.isfile(path):
            problems.append(f"line {line}: no file {path}")
        else:
            seen[path] = line
            splits[fields["split"]].append(Photo(path, fields["pid"], fields["camid"] if with_cameras else None))
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise ValueError(f"{name}: {table} has {len(problems)} problem(s): {shown}")
    if not seen:
        raise ValueError(f"{name}: {table} lists no image below its column names")
    return splits
