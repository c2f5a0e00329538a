"""What is known of images, from a table, a pattern and the model, to Parquet that others read as it is."""

from __future__ import annotations

import datetime as dt
import json
import logging
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sagareid import Extractor
from sagareid.deploy import extract_folder as extract
from sagareid.deploy import gallery
from sagareid.deploy.gallery.columns import clock_of, parse_age, parse_time
from sagareid.deploy.metadata import Metadata
from sagareid.deploy.visibility import Readout
from sagareid.files import file_hash

NAMES = [f"c{i % 3}/20261128T08{i:02d}00_{i // 2:03d}.png" for i in range(6)]
PATTERN = r"c(?P<camera>\d)/(?P<time>\d{8}T\d{6})_(?P<track>\d+)"


def table(path, rows, header="path,camera,door,seen,at,open"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_pattern_and_a_table_make_columns(tmp_path):
    rows = [f"{name},{i},{i % 2},0.{i},2026-11-28 0{i}:00,{'true' if i else 'FALSE'}" for i, name in enumerate(NAMES)]
    rows[2] = f"{NAMES[2]},,,,,"
    found = Metadata.read(NAMES, table=table(tmp_path / "t.csv", ["gone.png,1,1,1,2026-11-28,true", *rows]))
    assert found.columns == {"camera": "text", "door": "integer", "seen": "number", "at": "time", "open": "boolean"}
    columns = {name: values.to_pylist() for name, values in found.of([NAMES[3], NAMES[2], NAMES[0]]).items()}
    assert columns["camera"] == ["3", None, "0"] and columns["door"] == [1, None, 0]
    assert columns["seen"] == [0.3, None, 0.0] and columns["open"] == [True, None, False]
    assert columns["at"][0] == dt.datetime(2026, 11, 28, 3, tzinfo=dt.UTC)

    found = Metadata.read(NAMES, pattern=PATTERN)
    assert found.columns == {"camera": "text", "time": "time", "track": "text"}
    assert found.of(NAMES[5:])["track"].to_pylist() == ["002"] and found.of(NAMES[5:])["camera"].to_pylist() == ["2"]
    assert found.of(NAMES[5:])["time"].to_pylist() == [dt.datetime(2026, 11, 28, 8, 5, tzinfo=dt.UTC)]
    frames = Metadata.read(NAMES, pattern=r"_(?P<frame>\d+)")
    assert frames.columns == {"frame": "integer"} and frames.of(NAMES[5:])["frame"].to_pylist() == [2]
    assert Metadata(NAMES, {}).key == "" and len({found.key, frames.key}) == 2


def test_what_a_table_or_pattern_lacks_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = Metadata.read(NAMES, pattern=r"c(?P<camera>[01])/")
    assert "is not found for 2 of 6 images, such as c2/20261128T080200_001.png: they have no values" in caplog.text
    assert found.of(NAMES)["camera"].to_pylist() == ["0", "1", None] * 2
    good = table(tmp_path / "t.csv", [f"{name},{i}" for i, name in enumerate(NAMES)], "path,camera")
    for options, message in (
        ({"table": tmp_path / "no.csv"}, "no table at .*no.csv; expected a CSV file with a column `path`"),
        ({"table": table(tmp_path / "a.csv", ["x,1"], "file,camera")}, "has the columns file, camera; expected `path`"),
        ({"table": table(tmp_path / "b.csv", ["x,1,2"], "path,camera,camera")}, "'camera' twice"),
        ({"table": table(tmp_path / "c.csv", ["x.png,1"], "path,camera")}, "no line for any of .*its first is x.png"),
        ({"table": table(tmp_path / "d.csv", ["x,1", "y,2", "x,3"], "path,a")}, "has x in lines 2 and 4"),
        ({"table": table(tmp_path / "e.csv", ["x,1,2"], "path,a")}, "is no CSV file"),
        ({"table": table(tmp_path / "f.csv", [f"{NAMES[0]},8 o'clock"], "path,time")}, "'time'.*is no time"),
        ({"table": table(tmp_path / "g.csv", [f"{NAMES[0]},1"], "path,a b")}, "no column can be called 'a b'"),
        ({"table": table(tmp_path / "h.csv", [f"{NAMES[0]},1"], "path,feature")}, "no column can be called 'feature'"),
        ({"pattern": "(?P<camera>"}, "is no regular expression"),
        ({"pattern": "c(\\d)"}, "has no named group, which is a column; such as"),
        ({"pattern": "d(?P<camera>\\d)/"}, "is not found for any of the 6 images; an image is called c0/2026"),
        ({"pattern": r"(?P<not>\d)"}, "no column can be called 'not'"),
        ({"table": good, "pattern": r"c(?P<camera>\d)"}, "column 'camera' is in .*t.csv and a group of the pattern"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Metadata.read(NAMES, **options)


def test_times_and_ages():
    utc = dt.datetime(2026, 11, 28, 8, 0, 30, tzinfo=dt.UTC)
    for text in ("2026-11-28T08:00:30", "2026-11-28 09:00:30+01:00", "20261128T080030", "2026-11-28_08-00-30",
                 "1795852830", "20261128-080030", "2026-11-28T08:00:30Z"):  # fmt: skip
        assert parse_time(text) == utc, text
    assert parse_time("2026-11-28").hour == 0 and parse_time("1795852830.5").microsecond == 500_000
    assert clock_of("8:00") == 8 * 3600 * 10**6 and clock_of("23:59:59.5") == 86399_500_000
    assert parse_age("30d") == dt.timedelta(30) and parse_age("1.5h") == dt.timedelta(minutes=90)
    for call, text in ((parse_time, "yesterday"), (parse_time, "2026-13-01"), (clock_of, "24:30"), (parse_age, "30"),
                       (parse_age, "-1d"), (parse_age, "9999999999999999w")):  # fmt: skip
        with pytest.raises(ValueError, match="expected|longer ago"):
            call(text)


# ---- with the model --------------------------------------------------------------------------------------------------


@pytest.fixture
def crops(tiny_root, tmp_path):
    for name, file in zip(NAMES, sorted((tiny_root / "synthetic_pedestrians/query").iterdir())):
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as picture:
            picture.save(tmp_path / "crops" / name)
    return tmp_path / "crops"


@pytest.mark.parametrize("output", ["f", "f.parquet"])
def test_parquet_that_others_read_as_it_is(output, tiny_run, crops, tmp_path, call_tool):
    rows = [f"{name},{i}" for i, name in enumerate(NAMES)]
    words = ["--run", tiny_run, "-o", tmp_path / output, "--workers", 0, "--device", "cpu", "--pattern", PATTERN]
    words += ["--metadata", table(tmp_path / "t.csv", rows, "path,door")]
    assert call_tool("extract.py", crops, *words, "--shard-size", 4) == 0
    files = [tmp_path / output] if output != "f" else sorted((tmp_path / "f").glob("*.parquet"))
    read = pq.read_table(files)
    kinds = {"path": "string", "state": "string", "camera": "string", "track": "string", "door": "int64"}
    kinds |= {"feature": "fixed_size_list<element: float not null>[384]", "time": "timestamp[us, tz=UTC]"}
    types = {field.name: str(field.type) for field in read.schema}
    assert types.pop("feature").startswith("fixed_size_list<") and types == {k: kinds[k] for k in types}
    assert set(types) == {"path", "state", "camera", "time", "track", "door"} and read["path"].to_pylist() == sorted(
        NAMES
    )
    assert read["door"].to_pylist() == [NAMES.index(name) for name in sorted(NAMES)]
    about = json.loads(pq.read_schema(files[0]).metadata[b"sagareid"])
    assert about["checkpoint_sha256"] == file_hash(tiny_run / "model_final.pth") and about["size"] == [48, 24]
    assert about["feature"] == "fusion" and about["width"] == 384
    assert about["columns"] == {"door": "integer", "camera": "text", "time": "time", "track": "text"}
    crops_of = gallery.build(gallery.FeatureSet(tmp_path / output), tmp_path / "index")
    assert crops_of.count("camera in (0, 1) and time between 8:00 and 8:03 and door < 4") == 3
    assert crops_of.model.size == [48, 24]


def test_an_update_takes_new_metadata_without_extracting(tiny_run, crops, tmp_path, monkeypatch):
    extractor, asked = Extractor.from_checkpoint(tiny_run, device="cpu"), []

    def go(output="f", **options):
        return extract.extract_folder(extractor, crops, tmp_path / output, checkpoint_sha256="abc", **options)

    go(pattern=PATTERN)
    iterate = Extractor.iterate
    monkeypatch.setattr(
        Extractor, "iterate", lambda self, images, **o: asked.extend(images) or iterate(self, images, **o)
    )
    go(pattern=PATTERN)
    with pytest.raises(ValueError, match="another --feature, --dtype, --metadata, --pattern or --shard-size"):
        go(pattern=r"(?P<camera>c\d)")
    assert go(pattern=r"(?P<camera>c\d)", update=True).kept == 6 and not asked
    assert set(pq.read_table(sorted((tmp_path / "f").glob("*.parquet")))["camera"].to_pylist()) == {"c0", "c1", "c2"}
    with pytest.raises(ValueError, match="f.npz has no columns for metadata: name a .parquet file, or a folder"):
        go("f.npz", pattern=PATTERN)


def test_visibility_comes_from_the_model_that_gives_it(tiny_run, crops, tmp_path, monkeypatch):
    extractor, asked = Extractor.from_checkpoint(tiny_run, device="cpu"), []

    def go(**options):
        return extract.extract_folder(extractor, crops, tmp_path / "f.parquet", checkpoint_sha256="abc", **options)

    go()
    assert not extractor.gives_visibility and "visibility" not in pq.read_schema(tmp_path / "f.parquet").names
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    torch.manual_seed(0)
    about = {"checkpoint_sha256": file_hash(folder / "model_final.pth")}
    Readout(channels=4).save(folder / "visibility.safetensors", about)
    extractor = Extractor.from_checkpoint(folder, device="cpu")
    assert extractor.gives_visibility
    iterate = Extractor.iterate
    monkeypatch.setattr(
        Extractor, "iterate", lambda self, images, **o: asked.extend(images) or iterate(self, images, **o)
    )
    go(update=True)
    assert len(asked) == 6, "the earlier features come without it"
    stored = pq.read_table(tmp_path / "f.parquet")
    batches = iterate(extractor, [crops / n for n in sorted(NAMES)], visibility=True)
    wanted = torch.cat([batch.visibility.crop for batch in batches])
    torch.testing.assert_close(torch.tensor(stored["visibility"].to_pylist()), wanted)
    asked.clear()
    go(update=True, pattern=PATTERN)
    assert not asked and pq.read_table(tmp_path / "f.parquet")["visibility"].equals(stored["visibility"])
    with pytest.raises(ValueError, match="a column 'visibility', which the model gives itself"):
        go(update=True, pattern=r"(?P<visibility>\d)")
