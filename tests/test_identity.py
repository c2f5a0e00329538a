"""Identities and cameras are names, not ranks: a training set that changed is an error or is mapped right."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import ONE_STAGE, SMALL, SMALL_IMAGES

from sagareid import Extractor, get_cfg
from sagareid.config import custom_datasets
from sagareid.config_merge import read_config
from sagareid.data import loaders
from sagareid.data.datasets.build import DataSets, build_dataset
from sagareid.data.datasets.names import SetNames, camera_name, identity_name
from sagareid.data.record import TrainingRecord
from sagareid.deploy.load import load_model
from sagareid.engine.checkpoint import RunCheckpointer
from sagareid.modeling.build import build_model
from sagareid.weights import load_state

SIZE = [48, 24]
RUN = [
    *ONE_STAGE,
    *SMALL,
    *SMALL_IMAGES,
    *"""
    MODEL.BACKBONE.PRETRAIN False  MODEL.HEADS.NAME CLSHead  MODEL.LOSSES.NAME ('CrossEntropyLoss','TripletLoss')
    SOLVER.MAX_EPOCH 2  SOLVER.AMP.ENABLED False  TEST.EVAL_PERIOD 9
    """.split(),
    *("DATASETS.CUSTOM", "[{NAME: shop, TYPE: CSVDataset, PATH: list.csv}]"),
    *("DATASETS.NAMES", "('shop',)", "DATASETS.TESTS", "('shop',)"),
]
CAMERAS = ("door", "hall", "yard")


@pytest.fixture(autouse=True)
def in_repo(monkeypatch, repo):
    monkeypatch.chdir(repo)


def write(root, people=("ann", "ben", "cid", "dora"), cameras=CAMERAS, seed=0, rows=()):
    """A table of images of people in every camera, each in training, query or gallery."""
    root.mkdir(exist_ok=True)
    lines = []
    for person in people:
        for camera in cameras:
            for shot in range(2):
                name = f"{person}_{camera}_{shot}.png"
                pixels = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (*SIZE, 3), np.uint8)
                Image.fromarray(pixels).save(root / name)
                lines.append(f"{name},{person},{camera},train")
    for split, camera in (("query", cameras[0]), ("gallery", cameras[1])):
        name = f"zoe_{camera}.png"
        Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)).save(root / name)
        lines.append(f"{name},zoe,{camera},{split}")
    (root / "list.csv").write_text("\n".join(["path,pid,camid,split", *lines, *rows]))
    return root


def dataset(root, monkeypatch, **opts) -> loaders.ReIDDataset:
    return loaders.training_set(config(root, monkeypatch, **opts))


def config(root, monkeypatch, **opts):
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    cfg = read_config(RUN[1], [str(v) for v in RUN[2:]])
    for key, value in opts.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def record(root, monkeypatch) -> TrainingRecord:
    return TrainingRecord.of(dataset(root, monkeypatch))


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_table_whatever_else_joins_it(tmp_path, monkeypatch):
    before = dataset(write(tmp_path / "a"), monkeypatch)
    assert before.identities == ["shop/ann", "shop/ben", "shop/cid", "shop/dora"]
    assert before.cameras == ["shop/door", "shop/hall", "shop/yard"]
    more = ("x.png,abe,attic,gallery",)  # sorts before everybody else, in a camera before all others
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "x.png")
    after = dataset(write(tmp_path / "b", rows=more), monkeypatch)
    assert (after.identities, after.cameras) == (before.identities, before.cameras)
    assert [i[1] for i in after.img_items] != [i[1] for i in before.img_items], "while the labels have shifted"
    test, _ = loaders.build_test_loader(
        config(tmp_path / "b", monkeypatch, MODEL__CLIP__CAMERAS=before.cameras), "shop"
    )
    assert [b for batch in test for b in batch["cameras"].tolist()] == [0, 1, -1]


def test_labels_of_other_sets_are_names_already():
    from types import SimpleNamespace

    data = SimpleNamespace(dataset_name="market1501")
    assert identity_name(data, "market1501_0007") == identity_name(data, 7) == "market1501_7"
    assert camera_name(data, "market1501_3") == camera_name(data, 3) == "market1501_3"
    assert identity_name(data, "market1501_test_7") == "market1501_test_7"
    own = SimpleNamespace(dataset_name="shop", person_name=lambda pid: "ann", camera_name=lambda camid: "")
    assert identity_name(own, "shop_0000") == identity_name(own, 0) == "shop/ann" and camera_name(own, 0) == ""
    assert identity_name(own, "shop_test_0") == "shop/test/ann", "DATASETS.COMBINEALL makes a second identity of her"


def test_cameras_sort_by_their_numbers():
    names = ["shop/c10", "shop/c2", "a_10", "a_2", "shop/door"]
    assert loaders.natural_order(names) == ["a_2", "a_10", "shop/c2", "shop/c10", "shop/door"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("market1501", "labels of those of Market1501"),
        ("synthetic_pedestrians", "labels of those of Synth"),
        ("a/b", "slash"),
    ],
)
def test_a_label_prefix_belongs_to_one_set(name, message):
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [{"NAME": name, "TYPE": "CSVDataset", "PATH": "x.csv"}]
    with pytest.raises(ValueError, match=f"DATASETS.CUSTOM: .*{name}.*{message}"):
        custom_datasets(cfg)


def test_a_distractor_who_is_under_test_is_left_out(tmp_path, monkeypatch):
    """In training her label is padded, in testing her number is not."""
    from sagareid.studies import occlusion

    rows = ("zoe_door.png,ann,door,query", "zoe_hall.png,ann,hall,gallery")
    root = write(tmp_path / "a")
    (root / "list.csv").write_text(
        "\n".join([*(root / "list.csv").read_text().splitlines()[:-2], *rows])  # ann in place of zoe
    )
    cfg = config(root, monkeypatch)
    people, _ = occlusion.distractor_people(cfg, occlusion.ImageSet.read(cfg, "shop"), "train")
    assert people.paths and not [p for p in people.paths if "ann_" in p]


# ---- the record -----------------------------------------------------------------------------------------------------


def test_an_unchanged_set_at_another_place_is_the_same(tmp_path, monkeypatch):
    before = record(write(tmp_path / "a"), monkeypatch)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    now = record(tmp_path / "b", monkeypatch)
    assert now.other_people(before) == now.other_cameras(before) == now.other_images(before) == ""


def test_what_changed_is_said(tmp_path, monkeypatch):
    before = record(write(tmp_path / "a"), monkeypatch)
    renamed = record(write(tmp_path / "b", people=("ann", "ben", "cid", "abe")), monkeypatch)
    assert "1 identities are gone (shop/dora), 1 identities are new (shop/abe)" in renamed.other_people(before)
    others = record(write(tmp_path / "c", seed=1), monkeypatch)
    assert others.other_people(before).startswith("4 have none of the images that they had (shop/ann, ")
    camera = record(write(tmp_path / "d", cameras=(*CAMERAS, "attic")), monkeypatch)
    assert camera.other_cameras(before) == "1 cameras are new (shop/attic)" and camera.other_people(before) == ""
    assert camera.other_images(before) == "0 images are gone, 8 are new"


def test_a_record_survives_its_file(tmp_path, monkeypatch):
    now = record(write(tmp_path / "a"), monkeypatch)
    torch.save({TrainingRecord.KEY: now.state(), "model": {"x": torch.ones(1)}}, tmp_path / "m.pth")
    again = TrainingRecord.in_checkpoint(load_state(tmp_path / "m.pth"))
    assert again.identities == now.identities and torch.equal(again.images, now.images)
    assert TrainingRecord.in_checkpoint({"model": {}}) is None


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, repo):
    """A run that stopped after its first epoch, and its data."""
    from sagareid.commands.train_net import main
    from sagareid.engine.trainer import StepTrainer

    folder = tmp_path_factory.mktemp("interrupted")
    root, calls, step = write(folder / "data"), {"n": 0}, StepTrainer.run_step

    def stops(self):
        calls["n"] += 1
        if calls["n"] == 2:
            raise KeyboardInterrupt
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo)
        patch.setenv("FASTREID_DATASETS", str(root))
        patch.setattr(StepTrainer, "run_step", stops)
        with pytest.raises(SystemExit):
            main([str(a) for a in (*RUN, "MODEL.CLIP.SIE_CAMERA", True, "OUTPUT_DIR", folder / "run")])
    return folder


def resume(interrupted, tmp_path, train_net, change, *opts):
    shutil.copytree(interrupted, tmp_path / "copy")
    change(tmp_path / "copy" / "data")
    run = [*RUN[:2], "--resume", *RUN[2:], "MODEL.CLIP.SIE_CAMERA", True, "OUTPUT_DIR", tmp_path / "copy" / "run"]
    return train_net(*run, *opts, root=tmp_path / "copy" / "data")


def rename(root):
    table = root / "list.csv"
    table.write_text(table.read_text().replace(",dora,", ",abe,"))


def replace(root):
    write(root, seed=5)


def another_camera(root):
    Image.new("RGB", (24, 48)).save(root / "y.png")
    with open(root / "list.csv", "a") as file:
        file.write("\ny.png,ann,attic,train")


def one_image_less(root):
    table = root / "list.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "ann_door_0" not in line))


@pytest.mark.parametrize(
    "change, message",
    [
        (rename, "1 identities are gone (shop/dora), 1 identities are new (shop/abe)"),
        (replace, "4 have none of the images that they had"),
        (another_camera, "shop/attic"),
    ],
)
def test_a_run_goes_on_with_its_own_people_and_cameras_alone(change, message, interrupted, tmp_path, train_net, capfd):
    assert resume(interrupted, tmp_path, train_net, change) == 1
    error = capfd.readouterr().err
    assert message in error and "MODEL.ACCEPT_DIFFERENCES" in error and "Traceback" not in error


def test_a_run_goes_on_where_an_image_was_taken_out(interrupted, tmp_path, train_net, capfd):
    """As the message on an image that cannot be read advises."""
    assert resume(interrupted, tmp_path, train_net, one_image_less) == 0
    assert (
        "the training set has changed since" in (out := capfd.readouterr().out)
        and "1 images are gone, 0 are new" in out
    )


def test_the_next_stage_takes_over_weights_of_the_same_people_alone(interrupted, tmp_path, train_net, capfd):
    start = ["MODEL.CLIP.SIE_CAMERA", True, "MODEL.WEIGHTS", interrupted / "run" / "last.pth", "SOLVER.MAX_EPOCH", 1]
    root = write(tmp_path / "data", people=("ann", "ben", "cid", "abe"))
    assert train_net(*RUN, *start, "OUTPUT_DIR", tmp_path / "a", root=root) == 1
    error = capfd.readouterr().err
    assert "1 identities are gone (shop/dora)" in error and "heads.classifier.weight" in error
    afresh = ["MODEL.NEW_WEIGHTS", "['heads.classifier*']"]
    assert train_net(*RUN, *start, *afresh, "OUTPUT_DIR", tmp_path / "b", root=root) == 0
    root = write(tmp_path / "other", cameras=("door", "hall", "attic"))
    assert train_net(*RUN, *start, "OUTPUT_DIR", tmp_path / "c", root=root) == 1
    error = capfd.readouterr().err
    assert "trained with the cameras shop/door, shop/hall, shop/yard" in error and "backbone.camera_embedding" in error


def test_cameras_are_mapped_by_name_where_the_checkpoints_list_is_given(interrupted, tmp_path, train_net, capfd):
    root = write(tmp_path / "data", cameras=("hall", "yard"))
    start = ["MODEL.CLIP.SIE_CAMERA", True, "MODEL.WEIGHTS", interrupted / "run" / "last.pth", "SOLVER.MAX_EPOCH", 1]
    assert train_net(*RUN, *start, "OUTPUT_DIR", tmp_path / "a", root=root) == 1
    listed = "['shop/door', 'shop/hall', 'shop/yard']"
    assert f"set MODEL.CLIP.CAMERAS '{listed}'" in capfd.readouterr().err
    assert train_net(*RUN, *start, "MODEL.CLIP.CAMERAS", listed, "OUTPUT_DIR", tmp_path / "b", root=root) == 0
    assert train_net(*RUN, *start, "MODEL.CLIP.CAMERAS", "['shop/hall']", "OUTPUT_DIR", tmp_path / "c", root=root) == 1
    assert "cameras that MODEL.CLIP.CAMERAS does not name: shop/yard" in capfd.readouterr().err


@pytest.mark.parametrize(
    "cameras, known", [(("hall", "yard"), [1, 2]), (("door", "attic"), [0, -1]), (("x", "y"), [-1, -1])]
)
def test_a_model_of_cameras_is_evaluated_on_others(cameras, known, interrupted, tmp_path, monkeypatch, caplog):
    """More, fewer, others: each is looked up by name; whoever is unknown is logged, with the names that are known."""
    loaders._warn_once.cache_clear()
    cfg = config(write(tmp_path / "data", cameras=cameras), monkeypatch, MODEL__CLIP__SIE_CAMERA=True)
    cfg, model = load_model(interrupted / "run" / "last.pth", cfg)
    with caplog.at_level("WARNING"):
        loader, _ = loaders.build_test_loader(cfg, "shop")
    [batch] = loader
    assert batch["cameras"].tolist() == known
    assert torch.isfinite(model(batch)).all()
    assert ("of cameras that the model was not trained with" in caplog.text) == (-1 in known)
    assert all(f"shop/{c}" in caplog.text for c, k in zip(cameras, known) if k < 0)


@pytest.mark.parametrize("trained, given", [(True, False), (False, True)])
def test_cameras_in_one_of_checkpoint_and_configuration(trained, given, tmp_path, monkeypatch):
    root, opts = write(tmp_path / "data"), {"MODEL__HEADS__NUM_CLASSES": 4, "MODEL__CLIP__SIE_CAMERA": trained}
    cfg = config(root, monkeypatch, **opts)
    cfg.MODEL.CLIP.CAMERAS = loaders.training_cameras(cfg, DataSets()) if trained else []
    RunCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("m")
    with pytest.raises(ValueError, match=f"was trained with MODEL.CLIP.SIE_CAMERA {trained}, not {given}"):
        load_model(tmp_path / "m.pth", config(root, monkeypatch, MODEL__CLIP__SIE_CAMERA=given))


def test_an_extractor_names_the_cameras_that_it_does_not_know(interrupted, caplog):
    extractor = Extractor.from_checkpoint(interrupted / "run" / "last.pth", device="cpu")
    assert extractor.cameras == ["shop/door", "shop/hall", "shop/yard"]
    picture = Image.new("RGB", (24, 48))
    with caplog.at_level("WARNING"):
        extractor([picture] * 2, cameras=["shop/door", None])
        assert "count as unknown" not in caplog.text
        for _ in range(2):
            extractor([picture], cameras=["door"])
    assert caplog.text.count("count as unknown: door. It knows shop/door, shop/hall, shop/yard") == 1


def test_a_checkpoint_without_a_record_still_resumes(interrupted, tmp_path, train_net):
    """Of before there were records."""
    shutil.copytree(interrupted, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "last.pth"
    content = torch.load(path, weights_only=True)
    del content[TrainingRecord.KEY]
    torch.save(content, path)
    run = [*RUN[:2], "--resume", *RUN[2:], "MODEL.CLIP.SIE_CAMERA", True, "OUTPUT_DIR", tmp_path / "copy" / "run"]
    assert train_net(*run, root=tmp_path / "copy" / "data") == 0


def test_sets_of_fastreids_form_have_records_too(tiny_root, monkeypatch):
    cfg = config(tiny_root, monkeypatch, DATASETS__CUSTOM=[])
    data = build_dataset(cfg, "SyntheticPedestrians")
    names = SetNames().add(data, data.train)
    assert set(names.cameras.values()) <= {f"synthetic_pedestrians_{i}" for i in range(6)}
    assert all(name.startswith("synthetic_pedestrians_") for name in names.identities.values())
