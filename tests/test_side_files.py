"""Files beside weights, features and data that somebody or something damaged: named, with what is wrong and what to do;
nothing is deleted, and nothing is taken for what it is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sagareid.config import get_cfg
from sagareid.data.datasets.duke import _read_list
from sagareid.deploy import extract_folder as extract
from sagareid.deploy import gallery
from sagareid.engine import plans, results, stages
from sagareid.engine.checkpoint import RunCheckpointer
from sagareid.files import DamagedFile, write_json
from sagareid.modeling.clip.activation import trained_with_quick_gelu
from sagareid.reports import run_page
from sagareid.studies.cells import Cell
from sagareid.synthetic import drawn, pretrain
from sagareid.synthetic.options import PretrainConfig, StreetSpec
from sagareid.synthetic.person import GENERATOR_VERSION
from sagareid.synthetic.street import draw_street

Case = tuple[Path, Callable[[], object]]  # a whole file, and who reads it


class FakeExtractor:
    feature, width, dtype, size, gives_visibility = "cls", 4, "float32", (8, 4), False

    def iterate(self, images, **options):
        x = torch.eye(4)[: len(images)]
        yield SimpleNamespace(features=x, indices=list(range(len(images))), unreadable={}, visibility=None)


def features(folder: Path) -> Path:
    np.savez(folder / "f.npz", features=np.eye(4, dtype=np.float32), paths=[f"{i}.png" for i in range(4)])
    return folder / "f.npz"


def index(folder: Path) -> Case:
    gallery.build(gallery.FeatureSet(features(folder)), folder / "index", kind="flat")
    return folder / "index" / "gallery.json", lambda: gallery.open_gallery(folder / "index")


def extraction(folder: Path, output: str) -> Callable[[], object]:
    (folder / "crops").mkdir(exist_ok=True)
    Image.new("RGB", (4, 8)).save(folder / "crops" / "a.png")
    target = folder / output
    return lambda: extract.extract_folder(FakeExtractor(), folder / "crops", target, checkpoint_sha256="abc")


def manifest(folder: Path) -> Case:
    extraction(folder, "f")()
    return folder / "f" / "manifest.json", lambda: gallery.FeatureSet(folder / "f")


def manifest_of_the_next_extraction(folder: Path) -> Case:
    go = extraction(folder, "f")
    go()
    return folder / "f" / "manifest.json", go


def report(folder: Path) -> Case:
    go = extraction(folder, "f.npz")
    go()
    return folder / "f.npz.report.json", go


def run(folder: Path) -> plans.Run:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    (folder / "model_final.pth").touch()
    return plans.Run("", cfg)


RESULT = {"stage": "a", "metrics": {"mAP": 1.0}, "seconds": 2.5, "checkpoint": "model_final.pth", "steps": 7}


def result(folder: Path) -> Case:
    write_json(folder / "result.json", RESULT)
    return folder / "result.json", run(folder).result


def attributes(folder: Path) -> Case:
    write_json(folder / "attributes.json", {"people": {}, "images": {}})
    return folder / "attributes.json", lambda: drawn.load_attributes(folder)


def drawn_street(folder: Path) -> Case:
    spec = StreetSpec()
    about = {"generator_version": GENERATOR_VERSION, "spec": dataclasses.asdict(spec), "video": False}
    write_json(folder / "street.json", about)
    return folder / "street.json", lambda: draw_street(folder, spec)


def open_clip_config(folder: Path) -> Case:
    write_json(folder / "open_clip_config.json", {"model_cfg": {"quick_gelu": True}})
    return folder / "open_clip_config.json", lambda: trained_with_quick_gelu(folder / "weights.pt", ())


def architecture(folder: Path) -> Case:
    write_json(folder / "tower.json", {"vision_cfg": {"image_size": [96, 48], "patch_size": 8}})
    go = PretrainConfig()

    def read():
        try:
            pretrain.pretrain(folder / "tower.json", folder / "out", go)
        except (KeyError, TypeError) as error:
            raise AssertionError("an error without a message") from error

    return folder / "tower.json", read


OBJECTS = {
    index: ("format", "kind", "model", "segments", "deleted_count", "bytes_per_vector"),
    manifest: ("shards",),
    manifest_of_the_next_extraction: ("key",),
    report: ("output", "images", "width"),
    result: ("stage", "metrics", "seconds", "steps"),
    attributes: ("people", "images"),
    drawn_street: ("spec",),
    open_clip_config: ("model_cfg",),
    architecture: ("vision_cfg",),
}
DAMAGES = {
    "empty": (lambda whole: b"", "it is empty"),
    "blank": (lambda whole: b"\n \n", "it is empty"),
    "truncated": (lambda whole: whole[: len(whole) // 2], "it (ends in the middle|is no JSON)"),
    "no JSON": (lambda whole: b"<!doctype html>", "it is no JSON .*line 1 column 1"),
    "a list": (lambda whole: b"[1, 2]", "it holds a list, expected an object"),
    "a number": (lambda whole: b"17", "it holds a whole number, expected an object"),
    "null": (lambda whole: b"null", "it holds null, expected an object"),
    "no UTF-8": (lambda whole: whole[:2] + b"\xff\xfe" + whole[2:], "byte 2 is no UTF-8"),
    "deep": (lambda whole: b"[" * 100_000, "it is no JSON|it ends in the middle"),
}


def refuses(case: Case, content: bytes, wrong: str) -> None:
    """The reader names the file, what is wrong and what to do, and leaves every file as it is."""
    path, read = case
    path.write_bytes(content)
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file() and p.suffix != ".lock"}
    with pytest.raises(DamagedFile, match=wrong) as caught:
        read()
    named, _, rest = str(caught.value).partition(" is damaged: ")
    assert named == str(path) and len(rest.partition(". ")[2]) > 10, "says what to do"
    after = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert before == after


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("make", OBJECTS, ids=lambda make: make.__name__)
def test_a_damaged_object_is_named(make, damage, tmp_path):
    case = make(tmp_path)
    change, wrong = DAMAGES[damage]
    refuses(case, change(case[0].read_bytes()), wrong)


@pytest.mark.parametrize("make, name", [(m, n) for m, names in OBJECTS.items() for n in names])
def test_a_missing_or_wrongly_typed_field_is_named(make, name, tmp_path):
    case = make(tmp_path)
    whole = json.loads(case[0].read_bytes())
    lacking = {k: v for k, v in whole.items() if k != name}
    refuses(case, json.dumps(lacking).encode(), f"it has no field '{name}'")
    refuses(case, json.dumps(whole | {name: None}).encode(), f"the field '{name}' of it is null, expected a")
    refuses(case, json.dumps(whole | {name: True}).encode(), f"the field '{name}' of it is true or false, expected a")


@pytest.mark.parametrize("make", [index, report])
def test_a_field_of_another_version_is_named(make, tmp_path):
    case = make(tmp_path)
    refuses(case, json.dumps(json.loads(case[0].read_bytes()) | {"new": 1}).encode(), "'new' is not known")


@pytest.mark.parametrize(
    "content, wrong",
    [
        (b"", "it is empty"),
        (b"[1", "it ends in the middle"),
        (b"{}", "it holds an object, expected a list"),
        (b"[[]]", "entry 0 is a list, expected an object"),
        (b'[{"stage": "a"}, {"metrics": {}}]', "entry 1 has no field 'stage'"),
        (b'[{"stage": 3}]', "the field 'stage' of entry 0 is a whole number, expected a text"),
        (b"\xff", "byte 0 is no UTF-8"),
    ],
)
def test_the_rows_of_a_configuration(content, wrong, tmp_path):
    file = tmp_path / "results.json"
    refuses((file, lambda: results.beside_earlier([RESULT], file, ["a", "b"])), content, wrong)


def test_damaged_rows_are_told_before_training(train_net, repo, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(repo)
    (tmp_path / "results.json").write_text("[1")
    stage = ["--config-file", "configs/SAGA/quickstart.yml", "--stage", "prompts"]
    assert train_net(*stage, "OUTPUT_DIR", tmp_path) == 1
    assert f"{tmp_path}/results.json is damaged: it ends in the middle. Delete this" in capfd.readouterr().err
    assert not (tmp_path / "prompts" / "config.yaml").exists()


@pytest.mark.parametrize("content, wrong", [(b"", "it is empty"), (b'"2"', "it holds a text, expected a number")])
def test_the_seconds_of_a_stage(content, wrong, tmp_path):
    file, stage = tmp_path / "seconds.json", run(tmp_path)
    refuses((file, lambda: stages._seconds_so_far(stage)), content, wrong)
    file.write_text("3")
    assert stages._seconds_so_far(stage) == 3


@pytest.mark.parametrize(
    "content, wrong",
    [
        (b"", "it is empty"),
        (b"- a\n", "it holds a list, expected KEY: VALUE pairs"),
        (b"just words", "it holds a text, expected KEY: VALUE pairs"),
        (b"MODEL: {", "it is no YAML"),
        (b"MODEL: \xff", "byte 7 is no UTF-8"),
    ],
)
def test_the_configuration_of_a_run(content, wrong, tmp_path):
    file, stage = tmp_path / "config.yaml", run(tmp_path)
    refuses((file, lambda: stages.differences(stage)), content, wrong)
    file.write_text(yaml.safe_dump({"MODEL": {"HEDAS": 3}}))
    with pytest.raises(ValueError, match="config.yaml.*HEDAS"):
        stages.differences(stage)


def test_a_data_set_that_was_moved_is_no_other_configuration(tmp_path):
    """Its people and images are compared by name, with the checkpoint; another TYPE is another configuration."""
    stage = run(tmp_path)
    entry = {"NAME": "shop", "TYPE": "CSVDataset", "PATH": "/before/crops.csv"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [entry]}}))
    stage.cfg.DATASETS.CUSTOM = [entry | {"PATH": "/now/crops.csv", "IMAGES": "/now"}]
    assert not any("CUSTOM" in key for key in stages.differences(stage))
    stage.cfg.DATASETS.CUSTOM = [entry | {"TYPE": "FolderDataset"}]
    assert any("CUSTOM" in key for key in stages.differences(stage))


@pytest.mark.parametrize(
    "content, wrong",
    [
        (b"", "it is empty"),
        (b"gone.pth", "it names gone.pth, which is not in the folder"),
        (b"../last.pth", "which is not in the folder"),
        (b"\xfflast.pth", "byte 0 is no UTF-8"),
    ],
)
def test_the_name_of_the_last_checkpoint(content, wrong, tmp_path):
    (tmp_path / "last.pth").touch()
    (tmp_path.parent / "last.pth").touch()
    checkpointer = RunCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), cfg=None)
    refuses((tmp_path / "last_checkpoint", checkpointer.get_checkpoint_file), content, wrong)
    (tmp_path / "last_checkpoint").write_text("last.pth\n")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "last.pth")


def cell(folder: Path) -> Case:
    none = np.zeros(0, np.float32)
    Cell(np.arange(2), {"cls": "cls"}, {("cls", "mAP"): none}, {"cls": none}, none, {}, {}).save(folder / "c.npz")
    return folder / "c.npz", lambda: Cell.load(folder / "c.npz")


def one_file_of_features(folder: Path) -> Case:
    return features(folder), lambda: gallery.FeatureSet(folder / "f.npz")


def what_extraction_goes_on_with(folder: Path) -> Case:
    go = extraction(folder, "g.npz")
    go()
    return folder / "g.npz", go


def flip(whole: bytes) -> bytes:
    """A bit of the data of the first array."""
    place = whole.index(b"\x93NUMPY") + 140
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


@pytest.mark.parametrize("make", [cell, one_file_of_features, what_extraction_goes_on_with])
@pytest.mark.parametrize(
    "change, wrong",
    [
        (lambda whole: b"", "it is empty"),
        (lambda whole: whole[: len(whole) // 2], r"it is no whole .npz file \("),
        (lambda whole: b"hello", r"it is no whole .npz file \("),
        (lambda whole: b"\x93NUMPY\x01\x00", r"it is no whole .npz file \("),
    ],
    ids=["empty", "truncated", "text", "an array"],
)
def test_arrays_on_disk(make, change, wrong, tmp_path):
    case = make(tmp_path)
    case[1]()
    refuses(case, change(case[0].read_bytes()), wrong)


def test_a_changed_bit_of_an_array(tmp_path):
    file, read = one_file_of_features(tmp_path)
    refuses((file, read), flip(file.read_bytes()), "no whole .npz file .*CRC")


@pytest.mark.parametrize(
    "change, wrong",
    [
        (lambda whole: b"", "it is no whole Parquet file"),
        (lambda whole: whole[:-20], "it is no whole Parquet file"),
        (lambda whole: b"hello", "it is no whole Parquet file"),
    ],
)
def test_a_shard_of_features(change, wrong, tmp_path):
    extraction(tmp_path, "f")()
    shard = tmp_path / "f" / "part-00000-of-00001.parquet"
    refuses((shard, lambda: gallery.FeatureSet(tmp_path / "f")), change(shard.read_bytes()), wrong)


@pytest.mark.parametrize(
    "name, wrong",
    [("rows-000001-new.arrow", "it cannot be read"), ("vectors-000001-new.bin", "it holds 4 bytes, expected 64")],
)
def test_the_other_files_of_a_gallery(name, wrong, tmp_path):
    file, read = index(tmp_path)
    refuses((file.with_name(name), read), b"torn", wrong)
    file.with_name(name).unlink()
    with pytest.raises(DamagedFile, match=f"{name} is damaged: it is missing. Build the gallery again"):
        read()


# ---- the remedies help ----------------------------------------------------------------------------------------------


def test_a_manifest_that_was_deleted_is_written_again_and_shards_are_kept(tmp_path):
    file, go = manifest_of_the_next_extraction(tmp_path)
    shard = file.with_name("part-00000-of-00001.parquet")
    before, written = file.read_bytes(), shard.stat().st_mtime_ns
    file.unlink()
    go()
    assert file.read_bytes() == before and shard.stat().st_mtime_ns == written
    file.unlink()
    file.with_name("mine.txt").touch()  # somebody else's file: not taken for an extraction
    with pytest.raises(ValueError, match="holds other files"):
        go()


def test_damaged_features_are_overwritten_on_request_alone(tmp_path):
    file, go = what_extraction_goes_on_with(tmp_path)
    file.write_bytes(b"torn")
    with pytest.raises(DamagedFile, match="--overwrite"):
        go()
    again = extract.extract_folder(FakeExtractor(), tmp_path / "crops", file, checkpoint_sha256="abc", overwrite=True)
    assert again.extracted == 1 and gallery.FeatureSet(file).count == 1


def test_a_list_of_names_that_is_no_utf8(tmp_path):
    refuses((tmp_path / "train.list", lambda: _read_list(tmp_path / "train.list")), b"a.jpg\n\xff.jpg", "byte 6 is no")


def test_a_page_names_what_it_could_not_read(tmp_path):
    """A report is written all the same, of what there is."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"MODEL": {"DEVICE": "cpu"}, "DATASETS": {"TESTS": ["A"]}}))
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "result.json").write_text(json.dumps(RESULT)[:-5])
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text('{"dataset": {}}')
    text = run_page.report(tmp_path, lists="none").read_text()
    for name, wrong in (
        ("result.json", "it ends in the middle"),
        ("evaluation.json", "it holds an object, expected a list"),
        ("study/study.json", "it has no field"),
    ):
        assert f"{name} is damaged: {wrong}" in text


@pytest.mark.parametrize("make", [make for make in OBJECTS if make is not architecture], ids=lambda make: make.__name__)
def test_what_is_whole_is_read(make, tmp_path):
    assert make(tmp_path)[1]()
