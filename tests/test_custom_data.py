"""Data sets of one's own by config keys alone: tables, folders, several at once, through the real tool."""

from __future__ import annotations

import csv
import json
import logging
import shutil

import pytest
from PIL import Image

from sagareid.config import custom_datasets, get_cfg
from sagareid.config_checks import check_config
from sagareid.data.datasets.build import DataSets, build_dataset
from sagareid.data.datasets.layout import WrongNames
from sagareid.data.loaders import build_test_loader, training_set


def make(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (i * 7 % 256, 0, 0)).save(path)
    return root


def table(path, *rows, columns="path,pid,camid,split", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([columns, *rows]) + "\n", encoding=encoding)
    return path


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def build(cfg, kind, **options):
    cfg.DATASETS.CUSTOM = [{"NAME": "shop", "TYPE": kind, **options}]
    return build_dataset(cfg, "shop")


def ids(items):
    return [item[1:] for item in items]


# ---- tables --------------------------------------------------------------------------------------------------------

ROWS = (
    "a.jpg,ann,door,train",
    "b.jpg,ann,c10,train",
    "c.jpg,p2,c2,query",
    "d.jpg,p10,c10,query",
    "e.jpg,p2,c10,gallery",
    "f.jpg,p10,c2,gallery",
)
IMAGES = tuple(f"{letter}.jpg" for letter in "abcdef")


class TestTable:
    def test_names_become_numbers_shared_by_the_splits(self, cfg, tmp_path):
        make(tmp_path / "crops", *IMAGES)
        table(tmp_path / "crops" / "list.csv", *ROWS)
        data = build(cfg, "CSVDataset", PATH="crops/list.csv")
        assert ids(data.train) == [("shop_0000", "shop_2"), ("shop_0000", "shop_1")]  # cameras c2, c10, door
        assert ids(data.query) == [(1, 0), (2, 1)]  # ann, p2, p10: natural order
        assert ids(data.gallery) == [(1, 1), (2, 0)]
        assert data.query[0][0] == str(tmp_path / "crops" / "c.jpg")
        assert data.cameras_known

    def test_images_elsewhere_and_a_spreadsheets_bytes(self, cfg, tmp_path):
        make(tmp_path / "photos", "a, b.jpg")
        path = table(
            tmp_path / "list.csv", 'gallery,"a, b.jpg",x,7', columns="split,path,note,pid", encoding="utf-8-sig"
        )
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        data = build(cfg, "CSVDataset", PATH="list.csv", IMAGES="photos")
        assert data.gallery == [(str(tmp_path / "photos" / "a, b.jpg"), 0, 0)]

    def test_without_cameras_no_match_is_excluded_and_the_log_says_so(self, cfg, tmp_path, caplog):
        make(tmp_path, *IMAGES)
        table(
            tmp_path / "list.csv",
            *(r.rsplit(",", 2)[0] + "," + r.rsplit(",", 1)[1] for r in ROWS),
            columns="path,pid,split",
        )
        data = build(cfg, "CSVDataset", PATH="list.csv")
        cameras = [camid for _, _, camid in data.query + data.gallery]
        assert len(set(cameras)) == len(cameras)
        with caplog.at_level(logging.WARNING):
            build_test_loader(cfg, "shop")
        assert "shop: no cameras are known" in caplog.text and "same-camera matches were not excluded" in caplog.text

    def test_cameras_that_are_not_known_cannot_be_embedded(self, cfg, tmp_path):
        make(tmp_path, "a.jpg")
        table(tmp_path / "list.csv", "a.jpg,1,train", columns="path,pid,split")
        build(cfg, "CSVDataset", PATH="list.csv")
        cfg.DATASETS.NAMES = ["shop"]
        assert len(training_set(cfg)) == 1
        cfg.MODEL.CLIP.SIE_CAMERA = True
        with pytest.raises(ValueError, match="shop: the model embeds cameras.*SIE_CAMERA False"):
            training_set(cfg)

    @pytest.mark.parametrize(
        "rows, columns, message",
        [
            (["a.jpg,1,2,train", "b.jpg,1,2,test"], None, "line 3: split 'test', expected train, query or gallery"),
            (["a.jpg,1,2,train", "./a.jpg,1,2,query"], None, "line 3: ./a.jpg is already in line 2"),
            (["a.jpg,1,2,train", "x.jpg,1,2,train"], None, r"line 3: no file .*x\.jpg"),
            (["a.jpg,,2,train"], None, "line 2: no pid"),
            (["a.jpg,1,,train"], None, "line 2: no camid"),
            (["a.jpg,1"], None, "line 2: no split, camid"),
            (["a.jpg,1,2,train,x"], None, "line 2: 5 fields, expected 4"),
            (["x.jpg,1,2,train"] * 9, None, r"9 problem\(s\).*line 6.*; and 4 more"),
            (["a.jpg;1;2;train"], "path;pid;camid;split", "no column path, pid, split; found path;pid;camid;split"),
            ([], None, "lists no image"),
            ([], "", "found an empty file"),
            (['"a.jpg,1,2,train'], None, "no CSV file.*quotes"),
        ],
    )
    def test_wrong_tables(self, cfg, tmp_path, rows, columns, message):
        make(tmp_path, "a.jpg", "b.jpg")
        table(tmp_path / "list.csv", *rows, columns="path,pid,camid,split" if columns is None else columns)
        with pytest.raises(ValueError, match=message):
            build(cfg, "CSVDataset", PATH="list.csv")

    def test_no_table_and_no_text(self, cfg, tmp_path):
        with pytest.raises(FileNotFoundError, match="shop: no table .*list.csv.*relative to FASTREID_DATASETS"):
            build(cfg, "CSVDataset", PATH="list.csv")
        (tmp_path / "list.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match="is not UTF-8"):
            build(cfg, "CSVDataset", PATH="list.csv")


# ---- folders -------------------------------------------------------------------------------------------------------


class TestFolder:
    def test_splits(self, cfg, tmp_path):
        make(
            tmp_path / "shop",
            "train/ann/1_c1.jpg",
            "train/bob/1_c2.png",
            "query/p2/1_c2.jpg",
            "gallery/p2/1_c1.jpg",
            "gallery/p10/1_c1.jpg",
            "gallery/.trash/1_c1.jpg",
        )
        (tmp_path / "shop/gallery/p2/._1_c1.jpg").touch()
        data = build(cfg, "FolderDataset", PATH="shop", CAMERA=r"_c(\d+)")
        assert ids(data.train) == [("shop_0000", "shop_0"), ("shop_0001", "shop_1")]
        assert ids(data.query) == [(2, 1)] and sorted(ids(data.gallery)) == [(2, 0), (3, 0)]

    def test_a_folder_a_camera(self, cfg, tmp_path):
        make(tmp_path / "shop", "query/p/door/1.jpg", "gallery/p/hall/1.jpg")
        data = build(cfg, "FolderDataset", PATH="shop", CAMERA="^([^/]+)/")
        assert ids(data.query) == [(0, 0)] and ids(data.gallery) == [(0, 1)]
        with pytest.raises(RuntimeError, match="shop has no training images.*DATASETS.TESTS"):
            DataSets().training(cfg, "shop")

    def test_people_are_divided_alike_every_time(self, cfg, tmp_path):
        make(tmp_path / "shop", *(f"{p}/{i}_c{c}.jpg" for p in range(10) for c in (1, 2) for i in range(2)))
        options = {"PATH": "shop", "CAMERA": r"_c(\d)", "TRAIN_SHARE": 0.6}
        first, second = build(cfg, "FolderDataset", **options), build(cfg, "FolderDataset", **options)
        other = build(cfg, "FolderDataset", **options, SEED=1)
        assert first.train == second.train and first.query == second.query and first.gallery == second.gallery
        assert first.query != other.query
        assert len({pid for _, pid, _ in first.train}) == 6 and len(first.train) == 24
        assert len(first.query) == 8 and len(first.gallery) == 8  # four people, one query of each of two cameras
        everyone = [path for path, *_ in first.train + first.query + first.gallery]
        assert len(everyone) == len(set(everyone)) == 40
        assert not {int(pid[-4:]) for _, pid, _ in first.train} & {pid for _, pid, _ in first.query + first.gallery}

    def test_every_query_has_a_match_in_another_camera(self, cfg, tmp_path):
        make(
            tmp_path / "shop",
            "one_image/1_c1.jpg",
            "one_camera/1_c1.jpg",
            "one_camera/2_c1.jpg",
            "one_each/1_c1.jpg",
            "one_each/1_c2.jpg",
            "uneven/1_c1.jpg",
            "uneven/2_c1.jpg",
            "uneven/1_c2.jpg",
        )
        data = build(cfg, "FolderDataset", PATH="shop", CAMERA=r"_c(\d)", TRAIN_SHARE=0)
        queries = [path.split("/")[-2] for path, *_ in data.query]
        assert sorted(queries) == ["one_each", "uneven"] and len(data.gallery) == 6
        for _, pid, camid in data.query:
            assert any(p == pid and c != camid for _, p, c in data.gallery)
        unknown = build(cfg, "FolderDataset", PATH="shop", TRAIN_SHARE=0)
        assert len(unknown.query) == 3 and not unknown.cameras_known  # one of each person with two images

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"CAMERA": r"_c(\d)"}, r"1 file\(s\) in .*/ann are wrongly named: x.jpg. Expected names in which CAMERA"),
            ({"CAMERA": "(c"}, "is no regular expression"),
            ({"CAMERA": "c"}, "has 0 groups; expected one"),
            ({"TRAIN_SHARE": 1.5}, "expected a number from 0 to 1"),
            ({"TRAIN_SHARE": "half"}, "expected a number from 0 to 1"),
            (
                {"PATH": "."},
                r"1 image\(s\) of nobody .*: loose.jpg. Expected one sub-folder a person.*TYPE: CSVDataset",
            ),
            ({"PATH": "empty"}, "no images in .*empty"),
            ({"PATH": "nowhere"}, "no folder .*nowhere"),
        ],
    )
    def test_wrong_folders(self, cfg, tmp_path, options, message):
        make(tmp_path, "shop/ann/1_c1.jpg", "shop/ann/x.jpg", "loose.jpg")
        (tmp_path / "empty").mkdir()
        with pytest.raises((ValueError, FileNotFoundError, WrongNames), match=message):
            build(cfg, "FolderDataset", **{"PATH": "shop", **options})

    @pytest.mark.parametrize(
        "folders, entries",
        [
            (
                ("train", "val"),
                "{NAME: shop_train, TYPE: FolderDataset, PATH: shop/train, TRAIN_SHARE: 1}, {NAME: shop_val",
            ),
            (("train", "test"), "{NAME: shop_test, TYPE: FolderDataset, PATH: shop/test, TRAIN_SHARE: 0}"),
            (
                ("train_all", "test"),
                "{NAME: shop_train_all, TYPE: FolderDataset, PATH: shop/train_all, TRAIN_SHARE: 1}",
            ),
            (("Train", "Query", "Gallery"), "Rename them"),
            (("train", "query", "gallery", "val"), "shop_val"),
        ],
    )
    def test_splits_of_other_names_are_not_left_out_in_silence(self, cfg, tmp_path, folders, entries):
        make(tmp_path / "shop", *(f"{folder}/ann/1.jpg" for folder in folders))
        with pytest.raises(ValueError, match="only train/, query/ and gallery/ are read") as error:
            build(cfg, "FolderDataset", PATH="shop")
        assert all(f"{folder}/" in str(error.value) for folder in folders) and entries in str(error.value)

    def test_each_folder_can_be_a_data_set_of_its_own(self, cfg, tmp_path):
        """As the error above advises."""
        images = [f"{i}_c{c}.jpg" for c in (1, 2) for i in (1, 2)]
        parts = [f"{part}/{person}" for part in ("train", "val") for person in ("ann", "ben")]
        make(tmp_path / "shop", *(f"{part}/{image}" for part in parts for image in images))
        options = {"CAMERA": r"_c(\d)"}
        assert len(build(cfg, "FolderDataset", PATH="shop/train", TRAIN_SHARE=1, **options).train) == 8
        data = build(cfg, "FolderDataset", PATH="shop/val", TRAIN_SHARE=0, **options)
        assert len(data.query) == len(data.gallery) == 4

    @pytest.mark.parametrize(
        "files, message",
        [
            (["campus/0001001.png", "campus/0002001.png"], "holds one folder, campus/, which would be the only person"),
            (["a/train/ann/1.jpg", "b/1.jpg"], "shop/a would be one person, and holds train/.*Try PATH: shop/a"),
            (["train/0000_00.jpg", "val/0000_00.jpg"], "images of nobody in particular in some: .*TYPE: CSVDataset"),
            (
                ["bounding_box_train/0002_c1s1_1_00.jpg", "query/0002_c1s1_1_00.jpg"],
                "such as Market1501 or OccludedDuke: name it",
            ),
        ],
    )
    def test_a_folder_of_another_kind_says_what_to_name(self, cfg, tmp_path, files, message):
        """CUHK01's folder above `campus`, a folder of several data sets, CUHK03's flat parts, Market-1501."""
        make(tmp_path / "shop", *files)
        with pytest.raises(ValueError, match=message):
            build(cfg, "FolderDataset", PATH="shop")

    def test_a_person_may_be_called_like_a_split(self, cfg, tmp_path):
        make(tmp_path / "shop", "val/1.jpg", "ann/1.jpg", "ben/1.jpg")
        assert build(cfg, "FolderDataset", PATH="shop", TRAIN_SHARE=1).person_names == ["ann", "ben", "val"]

    def test_what_lies_beside_the_splits_is_said(self, cfg, tmp_path, caplog):
        make(tmp_path / "shop", "train/ann/1.jpg", "masks/ann/1.png", "overview.jpg")
        build(cfg, "FolderDataset", PATH="shop")
        assert "1 folders that are no split (masks)" in caplog.text
        assert "1 images outside the splits (overview.jpg)" in caplog.text

    def test_one_flat_folder_is_one_problem(self, cfg, tmp_path):
        make(tmp_path / "shop", *(f"{i:04d}.jpg" for i in range(40)))
        with pytest.raises(ValueError, match=r"40 image\(s\) of nobody .*0004.jpg, \.\.\..*TYPE: CSVDataset"):
            build(cfg, "FolderDataset", PATH="shop")

    def test_a_person_whose_folder_is_a_link(self, cfg, tmp_path):
        make(tmp_path, "elsewhere/1.webp", "shop/ann/1.jpg")
        (tmp_path / "shop" / "ben").symlink_to(tmp_path / "elsewhere")
        assert len(build(cfg, "FolderDataset", PATH="shop", TRAIN_SHARE=1).train) == 2

    def test_cameras_by_a_map_of_numbers(self, cfg, tmp_path):
        """CUHK01's names: a person's images 1 and 2 are of one camera, 3 and 4 of the other."""
        make(tmp_path / "shop", *(f"{p:04d}/{p:04d}{i:03d}.png" for p in (1, 2) for i in (1, 2, 3, 4)))
        options = {"PATH": "shop", "TRAIN_SHARE": 0}
        rule = {"pattern": r"^\d{4}(\d{3})", "map": {"1-2": "A", "3 - 4": "B"}}
        data = build(cfg, "FolderDataset", CAMERA=rule, **options)
        assert data.camera_names == ["A", "B"]
        for path, _, camid in data.query + data.gallery:
            assert data.camera_name(camid) == ("A" if path.endswith(("1.png", "2.png")) else "B")
        named = build(cfg, "FolderDataset", CAMERA=rule | {"map": {"001": "x", 2: "y", "3-9": "z"}}, **options)
        assert named.camera_names == ["x", "y", "z"]
        with pytest.raises(WrongNames, match=r"2 file\(s\) .*0001004.png.* finds one of 1-3"):
            build(cfg, "FolderDataset", CAMERA=rule | {"map": {"1-3": "A"}}, **options)

    def test_a_pattern_that_matches_in_more_places_is_said(self, cfg, tmp_path, caplog):
        """Inside the person's number, say; an anchor ends it."""
        make(tmp_path / "shop", *(f"{p}/{p}_c{i}.jpg" for p in (11, 12) for i in (1, 2)))
        options = {"PATH": "shop", "TRAIN_SHARE": 0}
        with caplog.at_level(logging.WARNING):
            data = build(cfg, "FolderDataset", CAMERA=r"(\d)", **options)
        assert data.camera_names == ["1"]
        assert r"CAMERA '(\\d)' finds several texts in 3 of 4 names, such as 1 and 2 in 11_c2.jpg" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert build(cfg, "FolderDataset", CAMERA=r"_c(\d)", **options).camera_names == ["1", "2"]
        assert "several texts" not in caplog.text

    @pytest.mark.parametrize(
        "camera, message",
        [
            ({"pattern": r"(\d)", "maps": {}}, "expected a regular expression, or {pattern:"),
            ({"pattern": r"(\d)", "map": [1]}, "expected a regular expression, or {pattern:"),
            ({"pattern": 7, "map": {}}, "CAMERA is 7; expected a regular expression in quotes"),
            ({"pattern": r"(\d)", "map": {"4-2": "A"}}, "'4-2'; expected the smaller number first"),
            ({"pattern": r"(\d)", "map": {"1-3": "A", 3: "B"}}, "has 3 and 1-3, which overlap"),
        ],
    )
    def test_wrong_maps_of_cameras(self, cfg, tmp_path, camera, message):
        make(tmp_path / "shop", "ann/1.jpg")
        with pytest.raises(ValueError, match=message):
            build(cfg, "FolderDataset", PATH="shop", CAMERA=camera)


# ---- config keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"NAME": "shop"}, "must have NAME and TYPE"),
        ("shop", "must have NAME and TYPE"),
        ({"NAME": "shop", "TYPE": "CSVDatset", "PATH": "x"}, "Did you mean CSVDataset"),
        ({"NAME": "shop", "TYPE": "CSVDataset"}, "shop lacks PATH; keys of CSVDataset: PATH, IMAGES"),
        ({"NAME": "shop", "TYPE": "CSVDataset", "PATH": "x", "CAMERA": "c"}, "shop has CAMERA; keys of CSVDataset"),
        ({"NAME": "Market1501", "TYPE": "CSVDataset", "PATH": "x"}, "the name 'Market1501' is taken"),
    ],
)
def test_wrong_entries_are_refused_before_anything_runs(entry, message):
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [entry]
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_a_class_that_needs_an_entry_says_so():
    cfg = get_cfg()
    cfg.DATASETS.TESTS = ["CSVDataset"]
    with pytest.raises(ValueError, match="DATASETS.TESTS: CSVDataset is set up by an entry of DATASETS.CUSTOM"):
        check_config(cfg)


def test_a_registered_data_set_with_other_arguments(cfg):
    cfg.DATASETS.CUSTOM = [{"NAME": "mine", "TYPE": "OccludedMarket", "REMOVE_DISTRACTORS": True}]
    cls, options = custom_datasets(cfg)["mine"]
    assert cls.__name__ == "OccludedMarket" and options == {"remove_distractors": True}


# ---- the real tool -------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tiny_root, tmp_path):
    """The drawn people as a table with cameras, a table without, and two folders; returns root and the entries."""
    drawn = tiny_root / "synthetic_pedestrians"
    (tmp_path / "synthetic_pedestrians").symlink_to(drawn)
    with open(tmp_path / "crops.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split"])
        for folder, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
            for image in sorted((drawn / folder).glob("*.jpg")):
                writer.writerow([image, f"person {image.name[:4]}", image.name[5:7], split])
    with open(tmp_path / "no_cameras.csv", "w", newline="") as file:
        rows = list(csv.reader((tmp_path / "crops.csv").read_text().splitlines()))
        csv.writer(file).writerows([row[0], row[1], row[3]] for row in rows)
    for image in sorted((drawn / "bounding_box_train").glob("*.jpg")):
        person = tmp_path / "folders" / f"p{image.name[:4]}"
        person.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, person)
    entries = [
        {"NAME": "crops", "TYPE": "CSVDataset", "PATH": "crops.csv"},
        {"NAME": "no_cameras", "TYPE": "CSVDataset", "PATH": "no_cameras.csv"},
        {"NAME": "folders", "TYPE": "FolderDataset", "PATH": "folders", "CAMERA": r"_c(\d)"},
    ]
    return tmp_path, entries


@pytest.mark.slow
def test_several_of_ones_own_train_resume_and_evaluate(several, train_net, repo, capfd):
    """By KEY VALUE alone, stages and feature cache included; the run's config.yaml is enough to evaluate."""
    root, entries = several
    keys = """
        DATASETS.NAMES ['crops','folders']  DATASETS.TESTS ['folders','no_cameras','SyntheticPedestrians']
        SOLVER.MAX_EPOCH 1  SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0  CACHE.NUM_VIEWS 1
    """.split()
    run = [
        "--config-file",
        repo / "configs/SAGA/quickstart.yml",
        "--stage",
        "prompts,backbone",
        "DATASETS.CUSTOM",
        str(entries),
        "OUTPUT_DIR",
        root / "out",
        *keys,
    ]
    assert train_net(*run, root=root) == 0
    output = capfd.readouterr()
    assert "no_cameras: no cameras are known" in output.out + output.err
    assert "no cameras are known" in (root / "out" / "backbone" / "log.txt").read_text()
    results = json.loads((root / "out" / "results.json").read_text())
    assert set(results[-1]["metrics"]) == {"folders", "no_cameras", "SyntheticPedestrians"}
    assert "NUM_CLASSES: 18" in (root / "out" / "backbone" / "config.yaml").read_text()  # 12 and half of 12
    assert train_net("--resume", *run, root=root) == 0
    evaluate = ["--eval-only", "--config-file", root / "out" / "backbone" / "config.yaml"]
    assert train_net(*evaluate, root=root) == 0
    [found] = json.loads((root / "out" / "backbone" / "evaluation.json").read_text())
    assert found["metrics"]["folders"] == pytest.approx(results[-1]["metrics"]["folders"], abs=1e-3)
