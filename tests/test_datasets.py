"""The occluded data sets, on folder trees made with their authors' layouts and file names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sagareid.config import get_cfg
from sagareid.data.datasets.mmmp import SETTINGS
from sagareid.data.datasets.names import SetNames
from sagareid.data.loaders import ReIDDataset, build_test_loader, build_train_loader

from fastreid.data.datasets import DATASET_REGISTRY


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(path)
    return root


def build(name: str, root: Path, **options):
    return DATASET_REGISTRY.get(name)(root=str(root), **options)


def ids(items):
    return [item[1:] for item in items]


DUKE = (
    "bounding_box_train/0010_c1_f0046985.jpg",
    "bounding_box_train/0009_c8_f0046985.jpg",
    "bounding_box_train/0100_c2_f0046985.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c5_f0051341.jpg",
    "bounding_box_test/0006_c2_f0046985.jpg",
)
MARKET = (
    "occluded_train/0002_c1s1_000451_03.jpg",
    "occluded_train/0000_c2s1_000451_03.jpg",
    "occluded_query/0003_c1s1_000451_00.jpg",
    "occluded_query/-1_c1s1_000451_00.jpg",
    "bounding_box_test/0003_c6s3_000451_03.jpg",
    "bounding_box_test/0000_c2s1_000451_03.jpg",
    "bounding_box_test/-1_c2s1_000451_03.jpg",
)


# ---- Occluded-Duke -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "folder", ["Occluded_Duke", "Occluded-DukeMTMC", "dukemtmcreid/Occluded_Duke", "run_1_c2/Occluded_Duke"]
)
def test_occluded_duke(tmp_path, folder):
    """Also below a folder whose own name looks like a person and a camera."""
    root = tmp_path / "run_1_c2" if folder.startswith("run") else tmp_path
    make(tmp_path / folder, *DUKE)
    data = build("OccludedDuke", root)
    assert ids(data.query) == [(5, 1)]
    assert ids(data.gallery) == [(5, 4), (6, 1)]
    assert ids(data.train) == [
        ("occluded_duke_0009", "occluded_duke_7"),
        ("occluded_duke_0010", "occluded_duke_0"),
        ("occluded_duke_0100", "occluded_duke_1"),
    ]
    labels = [pid for _, pid, _ in data.train]
    assert sorted(labels) == labels  # the host labels by string order: numeric order, thanks to the padding


def test_root_may_be_the_data_set_itself(tmp_path):
    assert build("OccludedDuke", make(tmp_path / "Occluded_Duke", *DUKE)).query
    with pytest.raises(RuntimeError, match="no 'query' folder"):  # any other data set's folders are not taken for it
        build("OccludedDuke", make(tmp_path / "other", *DUKE))


def test_through_the_loaders(tmp_path, monkeypatch):
    make(tmp_path / "Occluded_Duke", *DUKE)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = get_cfg()
    cfg.DATASETS.NAMES, cfg.DATASETS.TESTS = ("OccludedDuke",), ("OccludedDuke",)
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "cpu", 0
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.SOLVER.IMS_PER_BATCH = "TrainingSampler", 3
    loader, num_query = build_test_loader(cfg, "OccludedDuke")
    batch = next(iter(loader))
    assert num_query == 1 and batch["targets"].tolist() == [5, 5, 6] and batch["camids"].tolist() == [1, 4, 1]
    train = next(iter(build_train_loader(cfg)))
    assert train["images"].shape == (3, 3, 256, 128) and sorted(train["targets"].tolist()) == [0, 1, 2]


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(RuntimeError) as error:
        build("OccludedDuke", tmp_path)
    assert str(error.value) == (
        f"OccludedDuke: no 'query' folder under {tmp_path}/Occluded_Duke. Expected bounding_box_train/, query/, "
        "bounding_box_test/. Set FASTREID_DATASETS, or run configs/SAGA/quickstart.yml, which needs no download."
    )


@pytest.mark.parametrize("missing", ["bounding_box_train", "query", "bounding_box_test"])
def test_missing_split(tmp_path, missing):
    make(tmp_path / "Occluded_Duke", *(name for name in DUKE if not name.startswith(missing)))
    with pytest.raises(RuntimeError, match=f"OccludedDuke: no '{missing}' folder under .*Occluded_Duke"):
        build("OccludedDuke", tmp_path)


@pytest.mark.parametrize("empty", ["bounding_box_train", "query", "bounding_box_test"])
def test_empty_split(tmp_path, empty):
    make(tmp_path / "Occluded_Duke", *(name for name in DUKE if not name.startswith(empty)))
    (tmp_path / "Occluded_Duke" / empty).mkdir()
    (tmp_path / "Occluded_Duke" / empty / "Thumbs.db").touch()
    with pytest.raises(RuntimeError, match=f"no images in .*{empty}"):
        data = build("OccludedDuke", tmp_path)
        assert data.query and data.gallery


@pytest.mark.parametrize(
    "name", ["person.jpg", "0005_c9_f0046985.jpg", "0005_c12_f1.jpg", "x0005_c2_f1.jpg", "person.webp"]
)
def test_wrong_name_is_an_error_not_a_gap(tmp_path, name):
    make(tmp_path / "Occluded_Duke", *DUKE, f"query/{name}")
    with pytest.raises(RuntimeError, match=r"1 file\(s\) in .*query are wrongly named: .*0005_c2_f00469") as error:
        len(build("OccludedDuke", tmp_path).query)
    assert name in str(error.value)


def test_many_wrong_names_show_the_first(tmp_path):
    make(tmp_path / "Occluded_Duke", *DUKE, *(f"query/bad{i}.jpg" for i in range(9)))
    with pytest.raises(RuntimeError, match=r"9 file\(s\).*bad0.jpg, bad1.jpg, bad2.jpg, \.\.\."):
        len(build("OccludedDuke", tmp_path).query)


def test_cameras_of_test_images_are_found_among_the_training_cameras(tmp_path):
    """What a camera embedding reads: the same index for the same camera in training and in testing."""
    make(tmp_path / "Occluded_Duke", *DUKE)
    data = build("OccludedDuke", tmp_path)
    items = data.query + data.gallery
    train = ReIDDataset(data.train, None, relabel=True)
    test = ReIDDataset(items, None, relabel=False, cameras=train.cameras, names=SetNames().add(data, items))
    assert [train[i]["cameras"] for i in range(3)] == [2, 0, 1]  # cameras 8, 1 and 2 of the file names
    assert [test[i]["cameras"] for i in range(3)] == [1, -1, 1]  # 2; 5, which training has not seen; 2


# ---- Occluded-Market -----------------------------------------------------------------------------------------------
def test_occluded_market_keeps_distractors(tmp_path):
    make(tmp_path / "run_1_c2" / "Occluded_Market", *MARKET)
    data = build("OccludedMarket", tmp_path / "run_1_c2")
    assert ids(data.train) == [("occluded_market_0002", "occluded_market_0")]
    assert ids(data.query) == [(3, 0)]
    assert ids(data.gallery) == [(0, 1), (3, 5)]
    published = build("OccludedMarketNoDistractors", tmp_path / "run_1_c2")
    assert ids(published.gallery) == [(3, 5)] and ids(published.query) == ids(data.query)


# ---- people paired by name -----------------------------------------------------------------------------------------
def test_occluded_reid_shares_people_by_folder_name(tmp_path):
    """The published code numbers each folder by itself: here it would call person 003 of the gallery person 1."""
    make(
        tmp_path / "Occluded_REID",
        "occluded_body_images/001/001_01.tif",
        "occluded_body_images/003/003_01.tif",
        "whole_body_images/001/001_06.tif",
        "whole_body_images/002/002_06.tif",
        "whole_body_images/003/003_06.tif",
    )
    data = build("OccludedREID", tmp_path)
    assert ids(data.query) == [(0, 0), (2, 0)]
    assert ids(data.gallery) == [(0, 1), (1, 1), (2, 1)]
    assert data.train == []


@pytest.mark.parametrize(
    ("name", "folder", "query", "gallery"),
    [
        ("PartialREID", "Partial_REID", "partial_body_images/{:03d}_001.jpg", "whole_body_images/{:03d}_001.jpg"),
        ("PartialREID", "Partial-REID_Dataset", "partial_body_images/{:03d}_001.jpg", "whole_body_images/{}_001.jpg"),
        ("PartialiLIDS", "PartialiLIDS", "Probe/{:03d}.jpg", "Gallery/{:03d}.jpg"),
        ("PartialiLIDS", "Partial_iLIDS", "query/{:03d}_1.jpg", "gallery/{:03d}_2.jpg"),
    ],
)
def test_partial_sets_share_people_by_number(tmp_path, name, folder, query, gallery):
    root = tmp_path / "run_1_c2"
    make(root / folder, *(query.format(i) for i in (2, 10)), *(gallery.format(i) for i in (1, 2, 10)))
    data = build(name, root)
    assert ids(data.query) == [(1, 0), (2, 0)] and sorted(ids(data.gallery)) == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("name", ["OccludedREID", "PartialREID", "PartialiLIDS"])
def test_evaluation_only_sets_say_so_when_trained_on(tmp_path, name):
    cls = DATASET_REGISTRY.get(name)
    splits = {"OccludedREID": "occluded_body_images whole_body_images", "PartialiLIDS": "Probe Gallery"}
    for split in splits.get(name, "partial_body_images whole_body_images").split():
        make(tmp_path / cls.folders[0], f"{split}/001.jpg")
    with pytest.raises(RuntimeError, match=f"{name} has no training images.*DATASETS.TESTS"):
        build(name, tmp_path).show_train()
    with pytest.raises(RuntimeError, match=f"{name}: no '.*' folder under .*FASTREID_DATASETS"):
        build(name, tmp_path / "nowhere")


def test_images_beside_person_folders(tmp_path):
    make(tmp_path / "Occluded_REID", "occluded_body_images/001/1.tif", "whole_body_images/001/1.tif")
    make(tmp_path / "Occluded_REID", "occluded_body_images/2.tif")
    with pytest.raises(RuntimeError, match="2.tif. Expected images in one sub-folder per person"):
        build("OccludedREID", tmp_path)


def test_p_duke(tmp_path):
    make(
        tmp_path / "P-DukeMTMC-reid",
        "train/occluded_body_images/0007/0007_c2_f0001.jpg",
        "train/whole_body_images/0007/0007_c3_f0001.jpg",
        "train/whole_body_images/0020/0020_c3_f0001.jpg",
        "test/occluded_body_images/0005/0005_c2_f0001.jpg",
        "test/whole_body_images/0005/0005_c2_f0002.jpg",
        "test/whole_body_images/0001/0001_c2_f0002.jpg",
    )
    data = build("PDukeMTMC", tmp_path)
    assert ids(data.train) == [
        ("p_dukemtmc_0000", "p_dukemtmc_0"),
        ("p_dukemtmc_0000", "p_dukemtmc_1"),
        ("p_dukemtmc_0001", "p_dukemtmc_1"),
    ]
    assert ids(data.query) == [(1, 0)] and ids(data.gallery) == [(0, 1), (1, 1)]


# ---- MMMP ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def mmmp(tmp_path):
    """Three people in every camera, 3 images each; person 4 in camera 1 alone, once. Long file names, on purpose."""
    for camera in range(1, 15):
        for person in (1, 2, 3):
            make(tmp_path / "MMMP" / f"{camera:02d}" / f"{person:04d}", *(f"{i:04d}_long_name.jpg" for i in range(3)))
    make(tmp_path / "MMMP" / "01" / "0004", "0001.jpg")
    for setting in SETTINGS:
        folder = tmp_path / "MMMP" / setting
        folder.mkdir()
        for split, people in (("train", "1"), ("val", "2"), ("test", "3,4")):
            (folder / f"{split}_id.txt").write_text(people + "\nignored\n")
    return tmp_path


def test_mmmp_between_platforms(mmmp):
    data = build("MMMP_cctv_rgb_uav_ir", mmmp)
    assert set(ids(data.query)) == {(3, camera) for camera in range(6)} | {(4, 0)}
    assert set(ids(data.gallery)) == {(3, 13)}  # cameras 01 and 11, 03 and 13 stay apart
    assert {item[1] for item in data.train} == {"mmmp_0001", "mmmp_0002"}
    assert {item[2] for item in data.train} == {f"mmmp_{camera}" for camera in (*range(6), 13)}


def test_mmmp_within_a_group_is_drawn_alike_every_time(mmmp):
    first, second = build("MMMP_cctv", mmmp), build("MMMP_cctv", mmmp)
    assert first.query == second.query and first.gallery == second.gallery
    assert len(first.query) == 12 and len(first.gallery) == 24  # 12 cameras, 1 and 2 of 3 images
    assert not {path for path, *_ in first.query} & {path for path, *_ in first.gallery}
    assert 4 not in {pid for _, pid, _ in first.query + first.gallery}  # one image: no counterpart


def test_mmmp_errors(mmmp):
    with pytest.raises(ValueError, match="unknown setting 'exp_x'; expected one of exp_cctv_rgb_cctv_ir"):
        build("MMMP", mmmp, setting="exp_x")
    with pytest.raises(RuntimeError, match="MMMP: no '01' folder under .*FASTREID_DATASETS"):
        build("MMMP", mmmp / "nowhere")
    (mmmp / "MMMP" / "exp_uav" / "val_id.txt").write_text("1;2")
    with pytest.raises(RuntimeError, match="val_id.txt.*comma separated"):
        build("MMMP_uav", mmmp)
    (mmmp / "MMMP" / "exp_uav" / "val_id.txt").unlink()
    with pytest.raises(RuntimeError, match="no 'val_id.txt'"):
        build("MMMP_uav", mmmp)


def test_mmmp_reads_lists_from_elsewhere(mmmp, tmp_path):
    folder = tmp_path / "lists" / "exp_uav"
    folder.mkdir(parents=True)
    for split, people in (("train", "3"), ("val", ""), ("test", "1")):
        (folder / f"{split}_id.txt").write_text(people)
    data = build("MMMP_uav", mmmp, split_root=str(tmp_path / "lists"))
    assert {item[1] for item in data.query} == {1}


# ---- CUHK01 and a pair of CUHK03 -----------------------------------------------------------------------------------
CUHK01 = [f"campus/{person:04d}{image:03d}.png" for person in range(1, 8) for image in range(1, 5)]
CUHK03 = [
    f"{boxes}/{split}/{person:04d}_{image:02d}.jpg"
    for boxes in ("labeled", "detected")
    for split, people in (("train", 3), ("val", 2))
    for person in range(people)
    for image in ((0, 3, 5, 9) if person else (1, 6))
]


@pytest.mark.parametrize("folder", ["CUHK01", "cuhk01", "CUHK/CUHK01"])
def test_cuhk01_halves_the_people_and_tests_one_camera_against_the_other(tmp_path, folder):
    make(tmp_path / folder, *CUHK01)
    data = build("CUHK01", tmp_path)
    train = {pid for _, pid, _ in data.train}
    tested = {pid for _, pid, _ in data.query}
    assert len(train) == 3 and len(tested) == 4 and not {int(pid.rpartition("_")[2]) for pid in train} & tested
    assert len(data.train) == 12 and {camid for _, _, camid in data.train} == {"cuhk01_0", "cuhk01_1"}
    assert sorted(ids(data.query)) == sorted((pid, 0) for pid in tested for _ in range(2))
    assert sorted(ids(data.gallery)) == sorted((pid, 1) for pid in tested for _ in range(2))
    assert all(Path(path).name[4:7] in ("001", "002") for path, _, _ in data.query)
    assert [data.camera_name(0), data.camera_name("cuhk01_1")] == ["A", "B"]
    reverse = build("CUHK01", tmp_path, query_camera="B", shots="single")
    assert {camid for _, _, camid in reverse.query} == {1} and len(reverse.query) == 8
    assert sorted(pid for _, pid, _ in reverse.gallery) == sorted(tested)
    assert reverse.gallery == build("CUHK01", tmp_path, query_camera="B", shots="single").gallery
    halves = {tuple(sorted({pid for _, pid, _ in build("CUHK01", tmp_path, split=i).train})) for i in range(10)}
    assert len(halves) > 1 and tuple(sorted(train)) in halves


def test_cuhk03_pair_keeps_the_people_of_its_folders_apart(tmp_path):
    make(tmp_path / "CUHK03_pair", *CUHK03)
    data = build("CUHK03Pair", tmp_path)
    assert [pid for _, pid, _ in data.train][:3] == ["cuhk03_pair_0000"] * 2 + ["cuhk03_pair_0001"]
    assert ids(data.query) == [(3, 0), (4, 0), (4, 0)] and ids(data.gallery) == [(3, 1), (4, 1), (4, 1)]
    assert data.person_name("cuhk03_pair_0002") == "train 2" and data.person_name(3) == "val 0"
    assert all("/labeled/" in path for path, *_ in data.train + data.query)
    detected = build("CUHK03PairDetected", tmp_path)
    assert detected.train[0][1] == "cuhk03_pair_detected_0000" and "/detected/" in detected.train[0][0]
    names = SetNames().add(data, data.train + data.query)
    assert len(set(names.identities.values())) == 5


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("CUHK01", {"split": 10}, "SPLIT is 10; expected 0 to 9"),
        ("CUHK01", {"shots": "few"}, "SHOTS is 'few'; expected multi or single"),
        ("CUHK01", {"query_camera": 1}, "QUERY_CAMERA is 1; expected A or B"),
        ("CUHK03Pair", {"boxes": "drawn"}, "BOXES is 'drawn'; expected labeled or detected"),
    ],
)
def test_cuhk_refuses_what_it_has_not(tmp_path, name, options, message):
    make(tmp_path / "CUHK01", *CUHK01)
    make(tmp_path / "CUHK03_pair", *CUHK03)
    with pytest.raises(ValueError, match=message):
        build(name, tmp_path, **options)


def test_cuhk_says_what_is_missing(tmp_path):
    with pytest.raises(RuntimeError, match=r"CUHK01: no 'campus' folder under .*CUHK01. Expected campus/"):
        build("CUHK01", tmp_path)
    make(tmp_path / "CUHK01", "campus/0001001.png")
    with pytest.raises(ValueError, match="holds 1 person; expected 971"):
        build("CUHK01", tmp_path)
    with pytest.raises(RuntimeError, match="CUHK03Pair: no 'labeled/train' folder"):
        build("CUHK03Pair", tmp_path)
    make(tmp_path / "CUHK01", "campus/0001005.png")
    with pytest.raises(RuntimeError, match="wrongly named: 0001005.png"):
        build("CUHK01", tmp_path)
