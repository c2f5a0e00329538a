"""What the study on photographs needs: training people kept for validation, crops to paste, a share of the queries, a
trained copy of a backbone's end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sagareid.config import flatten, get_cfg
from sagareid.config_checks import check_config
from sagareid.data.datasets.build import DataSets
from sagareid.engine import plans
from sagareid.engine.trainer import SAGATrainer
from sagareid.reports.study_page import _introduction
from sagareid.studies import occlusion
from sagareid.studies.on_tower import on_tower

MARKET = sorted((Path(__file__).parents[1] / "configs/study/market1501").glob("[a-z]*.yml"))


@pytest.fixture
def market(tmp_path, monkeypatch):
    """A data root with Market-1501's layout: ten training people and three others, each in two cameras; and crops."""
    root = tmp_path / "Market-1501-v15.09.15"
    files = [
        ("bounding_box_train", f"{pid:04d}_c{c}s1_{n:06d}_00") for pid in range(2, 12) for c in (1, 2) for n in (1, 2)
    ]
    files += [("query", f"{pid:04d}_c1s1_000001_00") for pid in (1, 12, 13)]
    files += [("bounding_box_test", f"{pid}_c2s1_000001_00") for pid in ("0001", "0012", "0013", "0000", "-1")]
    crops = [("crops/a", "1"), ("crops", "2"), ("crops", "3")]
    for i, (folder, name) in enumerate([*((root / f, n) for f, n in files), *((tmp_path / f, n) for f, n in crops)]):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 48), (i, 2 * i, 3 * i)).save(folder / f"{name}.jpg")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    return tmp_path


def config(share=0.3, of="Market1501"):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.CUSTOM = [{"NAME": "market", "TYPE": "HeldOutDataset", "OF": of, "VALIDATION_SHARE": share}]
    cfg.DATASETS.NAMES, cfg.DATASETS.VALIDATION, cfg.DATASETS.TESTS = ["market"], ["market_validation"], ["Market1501"]
    return cfg


def test_training_people_of_a_registered_set_are_kept_for_validation(market):
    cfg = config()
    check_config(cfg)
    train, held = DataSets().training(cfg, "market"), DataSets().test(cfg, "market_validation")
    people = {Path(path).name[:4] for path, _, _ in train.train}
    kept = {Path(path).name[:4] for path, _, _ in held.query + held.gallery}
    assert len(people) == 7 and len(kept) == 3 and not people & kept
    assert {train.person_name(pid) for _, pid, _ in train.train} == {str(int(name)) for name in people}
    assert train.camera_names == ["1", "2"] and {camid for _, _, camid in held.query} == {0, 1}
    assert [p for p, _, _ in DataSets().training(cfg, "market").train] == [p for p, _, _ in train.train]
    with pytest.raises(ValueError, match="its query split is empty"):
        DataSets().test(cfg, "market")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"of": "Market"}, "Market is no registered data set; known: .*Market1501"),
        ({"share": 0.01}, "VALIDATION_SHARE 0.01 of 10 training people is 0"),
        ({"share": 1}, "VALIDATION_SHARE is 1; expected a number between 0 and 1"),
    ],
)
def test_what_cannot_be_held_out_is_said(options, message, market):
    with pytest.raises(ValueError, match=message):
        DataSets().training(config(**options), "market")


def test_pasted_people_come_from_a_folder_of_crops(market, monkeypatch):
    test = occlusion.ImageSet.read(config(), "Market1501")
    for source in ("crops/", str(market / "crops")):
        people, said = occlusion.distractor_people(config(), test, source)
        assert [Path(p).relative_to(market).as_posix() for p in people.paths] == [
            "crops/2.jpg",
            "crops/3.jpg",
            "crops/a/1.jpg",
        ]
        assert said == "the crops in crops" and not people.known
    assert occlusion.distractor_people(config(), test, "train")[0].known
    for source, message in (
        ("nowhere/", "no folder nowhere or .*nowhere. Expected a folder of crops"),
        ("Market-1501-v15.09.15/none/", "no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            occlusion.distractor_people(config(), test, source)
    (market / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in .*empty"):
        occlusion.distractor_people(config(), test, "empty/")


def test_some_queries_spread_over_all(market):
    whole, some = (occlusion.ImageSet.read(config(), "Market1501", n) for n in (0, 2))
    assert (whole.num_query, some.num_query, some.all_queries) == (3, 2, 3)
    assert [pid for _, pid, _ in some.items[:2]] == [1, 12] and some.items[2:] == whole.items[3:]
    assert some.people == whole.people, "nobody of the test set is pasted, whose query is left out included"
    with pytest.raises(ValueError, match="4 queries are asked for, and Market1501 has 3"):
        occlusion.ImageSet.read(config(), "Market1501", 4)
    data = {"name": "M", "queries": 2, "queries_of": 3, "gallery": 4, "person": "the whole picture"}
    said = _introduction(data | {"distractors": "the crops in crops", "distractors_known": False}, "query")
    assert "2 queries of 3, spread evenly" in said and "who they are is not known" in said


# ---- a trained copy of a backbone's end ------------------------------------------------------------------------------

OSNET = ["MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", 4, "INPUT.SIZE_TRAIN", [64, 32]]
OSNET += ["INPUT.SIZE_TEST", [64, 32], "MODEL.HEADS.EMBEDDING_DIM", 0]


def study_config(name: str, *opts):
    cfg = get_cfg()
    cfg.merge_from_file(str(MARKET[0].parent / f"{name}.yml"))
    cfg.merge_from_list([*OSNET, *opts])
    return cfg


def test_a_copy_of_the_backbones_end_starts_as_the_backbone_and_learns():
    torch.manual_seed(0)
    model = SAGATrainer.build_model(study_config("last_stage"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 4)
    model.initialize_heads({})
    images = torch.rand(4, 3, 64, 32) * 255
    model.eval()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image({"images": images})).mean((2, 3))
        torch.testing.assert_close(model({"images": images}), expected)
    assert model.extract({"images": images}).shape == (4, 96, 4, 2), "the head reads what goes into conv4"
    statistics = {n: b.clone() for n, b in model.named_buffers() if "last_modules" in n}
    model.train()
    sum(model({"images": images, "targets": torch.tensor([0, 0, 1, 1])}).values()).backward()
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics) and statistics
    learns = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any(n.startswith("heads.last_modules.copies.0.") for n in learns)
    assert not any(n.startswith("backbone.") for n in learns)


@pytest.mark.parametrize(
    "modules, message",
    [(["conv9"], "names 'conv9', which OSNet does not have; its last ones are .*conv5"), ([""], "names ''")],
)
def test_modules_that_are_not_there_are_named(modules, message):
    with pytest.raises(ValueError, match=f"MODEL.BACKBONE.LAST_MODULES.*{message}"):
        SAGATrainer.build_model(study_config("last_stage", "MODEL.BACKBONE.LAST_MODULES", modules))


def test_last_modules_need_our_meta_architecture():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.LAST_MODULES", ["layer4"]])
    with pytest.raises(ValueError, match="LAST_MODULES are left to the head by MODEL.META_ARCHITECTURE SAGABaseline"):
        check_config(cfg)


# ---- the configs -----------------------------------------------------------------------------------------------------


def test_the_heads_on_photographs_differ_in_their_head_alone():
    cfgs = {p.stem: plans.plan(p)[0].cfg for p in MARKET}
    assert len(cfgs) == 9
    reference = flatten(cfgs["gap"])
    for name, cfg in cfgs.items():
        other = {k for k, v in flatten(cfg).items() if str(v) != str(reference[k]) and not k.startswith("MODEL.HEADS.")}
        copies = {"MODEL.BACKBONE.LAST_MODULES", "SOLVER.LR_FACTORS"} if name == "last_stage" else set()
        assert other <= {"OUTPUT_DIR", "MODEL.SAGA.FREE_ANCHORS", "MODEL.LOSSES.NAME"} | copies, name


# ---- another tower ---------------------------------------------------------------------------------------------------

STUDY = MARKET[0].parents[1]


def test_a_study_runs_on_the_tower_of_another_config(tmp_path):
    tower = tmp_path / "resnet.yml"
    base = f"_BASE_: {STUDY}/market1501/Base-market1501.yml\n"
    backbone = "  BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, FEAT_DIM: 512}\n  PIXEL_MEAN: [1.0, 2.0, 3.0]\n"
    rest = "INPUT: {SIZE_TRAIN: [96, 32], SIZE_TEST: [96, 32]}\nSOLVER: {MAX_EPOCH: 99}\n"
    tower.write_text(f"{base}MODEL:\n{backbone}{rest}")
    for name, embedding in (("patch_mean", 512), ("part_stripes", 1536), ("saga", 512)):
        cfg = plans.plan(STUDY / f"{name}.yml", on_tower(STUDY / f"{name}.yml", tower))[0].cfg
        asked = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.WEIGHTS, list(cfg.INPUT.SIZE_TEST)
        assert asked == ("build_resnet_backbone", "18x", "", [96, 32]) and list(cfg.MODEL.PIXEL_MEAN) == [1.0, 2.0, 3.0]
        assert flatten(cfg)["MODEL.HEADS.EMBEDDING_DIM"] == embedding and flatten(cfg)["SOLVER.MAX_EPOCH"] == 20
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.HEADS.NUM_CLASSES = False, 2
        assert SAGATrainer.build_model(cfg).eval()({"images": torch.rand(2, 3, 96, 32)}).shape == (2, embedding)
    with pytest.raises(ValueError, match="CLSHead reads"):
        plans.plan(STUDY / "cls.yml", on_tower(STUDY / "cls.yml", tower))


def test_a_layer_of_the_old_tower_is_no_layer_of_the_new_one(repo):
    with pytest.raises(
        ValueError, match=r"last_two_blocks.yml, line 5: MODEL.CLIP.TOKEN_LAYERS is \[3\] .*and \[9\] in"
    ):
        on_tower(STUDY / "last_two_blocks.yml", repo / "configs/SAGA/occ_duke.yml")
