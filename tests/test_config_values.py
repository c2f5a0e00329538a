"""Values that cannot work are refused before anything is built: each by name, and every key with some wrong value."""

from __future__ import annotations

import inspect
import re

import pytest

from sagareid.config import flatten, get_cfg
from sagareid.config_checks import DEPTHS, check_config
from sagareid.config_merge import read_config
from sagareid.engine import plans
from sagareid.registry import fastreid_registries
from sagareid.values import value_of

from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import build_model

QUICKSTART = "configs/SAGA/quickstart.yml"
RESNET = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.HEADS.NAME", "EmbeddingHead"]
RESNET += ["MODEL.META_ARCHITECTURE", "Baseline", "MODEL.BACKBONE.DEPTH", "18x"]


def head(name: str, *opts) -> list:
    return ["MODEL.HEADS.NAME", name, *opts]


def problems(cfg) -> str:
    try:
        check_config(cfg)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "opts, message",
    [
        # evaluation
        (["TEST.METRIC", "cosin"], "TEST.METRIC is 'cosin'; valid: cosine, euclidean. Did you mean cosine?"),
        (["TEST.FEATURE", "refine"], "TEST.FEATURE is 'refine'; valid: auto, cls, concat, fusion, orth, proj, refined"),
        (["TEST.FEATURE", "parts"], "TEST.FEATURE is 'parts'; valid: "),
        (["TEST.REPORT", "[cls, fusio]"], "TEST.REPORT is 'fusio'; valid: all, .* Did you mean fusion?"),
        (
            head("PromptHead", "MODEL.LOSSES.NAME", "[SupConLoss]", "TEST.FEATURE", "refined"),
            "TEST.FEATURE is 'refined'",
        ),
        ([*RESNET, "TEST.FEATURE", "refined"], "TEST.FEATURE is 'refined'; valid: auto, feature."),
        (["TEST.IMS_PER_BATCH", 0], "TEST.IMS_PER_BATCH is 0; expected 1 or more"),
        (["TEST.EVAL_PERIOD", 0], "TEST.EVAL_PERIOD is 0; expected 1 or more"),
        (["TEST.FUSION.CLS", -1.0], "TEST.FUSION.CLS is -1.0; expected 0 or more"),
        (
            ["TEST.FUSION.CLS", 0.0, "TEST.FUSION.REFINED", 0.0, "TEST.FUSION.PROJ", 0.0],
            "TEST.FUSION weighs .*; expected none below 0 and one above",
        ),
        (["TEST.NFC.K1", 1], "TEST.NFC.K2 2 is more than TEST.NFC.K1 1"),
        (["TEST.RERANK.LAMBDA", 1.5], "TEST.RERANK.LAMBDA is 1.5; expected 0 to 1"),
        (["TEST.PARTS", 25], "TEST.PARTS is 25; expected 0 to 24"),
        # data
        (
            ["DATASETS.TESTS", "[]"],
            "DATASETS.TESTS is empty; expected one entry or more: training ends with an evaluation",
        ),
        (["DATASETS.TESTS", "[SyntheticPedestrian]"], "DATASETS.TESTS is .*; valid: .*Market1501.* Did you mean Synth"),
        (["DATASETS.NAMES", "[2021]"], "DATASETS.NAMES is .2021.; expected a list of names"),
        (["DATASETS.NAMES", "[Market1501, Market1501]"], "DATASETS.NAMES names Market1501 twice"),
        (["DATALOADER.NUM_WORKERS", -1], "DATALOADER.NUM_WORKERS is -1; expected 0 or more"),
        (["DATALOADER.NUM_WORKERS_TEST", -2], "DATALOADER.NUM_WORKERS_TEST is -2; expected -1 or more"),
        (["DATALOADER.NUM_INSTANCE", 0], "DATALOADER.NUM_INSTANCE is 0; expected 1 or more"),
        (["DATALOADER.NUM_INSTANCE", 3], "SOLVER.IMS_PER_BATCH 64 is no multiple of DATALOADER.NUM_INSTANCE 3"),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSampler"], "DATALOADER.SAMPLER_TRAIN is 'RandomSampler'; valid: Balanced"),
        (["DATALOADER.SAMPLER_TRAIN", "SetReWeightSampler"], "SetReWeightSampler: .* DATALOADER.SET_WEIGHT "),
        # images
        (["INPUT.SIZE_TRAIN", "[96]"], r"INPUT.SIZE_TRAIN is \[96\]; expected height and width in pixels"),
        (["INPUT.SIZE_TEST", "[96, 0]"], r"INPUT.SIZE_TEST is \[96, 0\]; expected height and width"),
        (["INPUT.SIZE_TRAIN", "[96, 4]", "INPUT.SIZE_TEST", "[96, 4]"], "expected at least 8 each"),
        (["INPUT.SIZE_TRAIN", "[64, 32]"], "differs from SIZE_TRAIN"),
        (
            ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", "[]"],
            "INPUT.CROP.SIZE is .*; expected one number, of a square",
        ),
        (["INPUT.CROP.ENABLED", True], r"INPUT.CROP.SIZE is \[224, 224\], and the tower is built for SIZE_TRAIN"),
        (["INPUT.FLIP.PROB", 1.5], "INPUT.FLIP.PROB is 1.5; expected 0 to 1"),
        (["INPUT.REA.AREA", "[0.5, 0.1]"], r"INPUT.REA.AREA is \[0.5, 0.1\]; .* the smaller first"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "MODEL.PIXEL_STD is .*; expected numbers above 0"),
        # training
        (["SOLVER.IMS_PER_BATCH", 0], "SOLVER.IMS_PER_BATCH is 0; expected 2 or more"),
        (["SOLVER.MAX_EPOCH", 0], "SOLVER.MAX_EPOCH is 0; expected 1 or more"),
        (["SOLVER.BASE_LR", -0.1], "SOLVER.BASE_LR is -0.1; expected 0 or more"),
        (["SOLVER.MOMENTUM", 1.0], "SOLVER.MOMENTUM is 1.0; expected 0 or more, less than 1"),
        (["SOLVER.WEIGHT_DECAY_BIAS", -0.1], "SOLVER.WEIGHT_DECAY_BIAS is -0.1; expected 0 or more"),
        (["SOLVER.OPT", "Adma"], "SOLVER.OPT is 'Adma'; valid: .*AdamW.* Did you mean Adam?"),
        (["SOLVER.OPT", "lr_scheduler"], "SOLVER.OPT is 'lr_scheduler'; valid: "),
        (["SOLVER.OPT", "LBFGS"], "SOLVER.OPT is 'LBFGS'; valid: "),
        (["SOLVER.SCHED", "Cosine"], "SOLVER.SCHED is 'Cosine'; valid: CosineAnnealingLR, MultiStepLR, WarmupCosineLR"),
        (["SOLVER.STEPS", "[70, 40]"], r"SOLVER.STEPS is \[70, 40\]; .* the smaller first"),
        (["SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.DELAY_EPOCHS", 120], "leaves no epoch of SOLVER.MAX_EPOCH 120"),
        (
            ["SOLVER.OPT", "SGD", "SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0],
            "SOLVER.NESTEROV needs a SOLVER.MOMENTUM",
        ),
        (["SOLVER.LR_FACTORS", '[["heads.*"]]'], "SOLVER.LR_FACTORS has .*; expected pairs of a pattern and a factor"),
        (["SEED", 2**32], "SEED is 4294967296; expected"),
        (["MODEL.FREEZE_LAYERS", "['(']"], "MODEL.FREEZE_LAYERS has '\\(', no regular expression"),
        (["CACHE.NUM_VIEWS", 0], "CACHE.NUM_VIEWS is 0; expected 1 or more"),
        (
            ["CACHE.FIELDS", "[patch]"],
            "CACHE.FIELDS is 'patch'; valid: all, cls, layer_cls, map, patches, proj. Did you mean patches?",
        ),
        (
            ["CACHE.ENABLED", True, "CACHE.FIELDS", "[cls, proj]"],
            "SAGAHead reads patches from the feature cache: add it",
        ),
        (
            head("LastBlockHead", "CACHE.ENABLED", True, "CACHE.FIELDS", "[patches, cls, proj]"),
            "LastBlockHead reads layer_cls from the feature cache",
        ),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        # models
        (["MODEL.LOSSES.NAME", "[]"], "MODEL.LOSSES.NAME is empty"),
        (["MODEL.LOSSES.CE.EPSILON", -1.0], "MODEL.LOSSES.CE.EPSILON is -1.0; expected 0 to 1"),
        (
            ["MODEL.SAGA.NUM_HEADS", 7],
            "MODEL.SAGA.NUM_HEADS 7 does not divide the token width MODEL.BACKBONE.FEAT_DIM 128",
        ),
        (
            ["MODEL.BACKBONE.STRIDE_SIZE", "(8, 4)"],
            r"MODEL.BACKBONE.STRIDE_SIZE is \(8, 4\); expected one number twice",
        ),
        (["MODEL.BACKBONE.STRIDE_SIZE", "(9, 9)"], "expected one number twice, of 1 to 8"),
        (["MODEL.HEADS.NECK_FEAT", "behind"], "MODEL.HEADS.NECK_FEAT is 'behind'; valid: after, before"),
        (
            [*RESNET, "MODEL.BACKBONE.DEPTH", "18"],
            "MODEL.BACKBONE.DEPTH is '18'; valid: 101x, 18x, 34x, 50x. Did you mean",
        ),
        ([*RESNET, "MODEL.HEADS.POOL_LAYER", "gem"], "MODEL.HEADS.POOL_LAYER is 'gem'; valid: "),
    ],
)
def test_a_value_that_cannot_work(opts, message):
    opts = ["'18'" if opt == "18" else opt for opt in opts]
    found = problems(read_config(QUICKSTART, opts))
    assert re.search(message, found), found


def test_what_works_passes():
    for opts in (
        [*RESNET, "MODEL.LOSSES.CE.EPSILON", -1.0],  # FastReID's adaptive smoothing
        [*RESNET, "INPUT.SIZE_TRAIN", "[0]", "INPUT.CROP.ENABLED", True],  # crops alone, as in FastRetri
        ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999"],  # infinity: the largest gradient
        ["TEST.PARTS", 3, "TEST.FEATURE", "parts"],
        head("PromptHead", "MODEL.LOSSES.NAME", "[SupConLoss]", "TEST.FEATURE", "concat"),
    ):
        assert problems(read_config(QUICKSTART, opts)) == "", opts


# ---- every key ------------------------------------------------------------------------------------------------------

# Keys that any text or number may stand in, or that are looked at elsewhere.
FREE = {
    "MODEL.DEVICE": "check_machine",
    "MODEL.WEIGHTS": "a path",
    "MODEL.BACKBONE.PRETRAIN_PATH": "a path, or a tag of open_clip",
    "MODEL.BACKBONE.SIE_COE": "any factor",
    "OUTPUT_DIR": "a path",
    "CACHE.DIR": "a path",
    "SEED": "negative: a fresh one",
    "WRITER_PROJECT": "any name",
    "STAGES": "engine.plans, with the file that lists them",
    "INPUT.CROP.SIZE": "read where CROP.ENABLED is",
    "TEST.PRECISE_BN.DATASET": "nothing reads it",
    **{f"MODEL.BACKBONE.TIMM.{key}": "checked of build_timm_backbone" for key in ("NAME", "ARGS", "VARIANT")},
    "MODEL.BACKBONE.TIMM.SEMANTIC_WEIGHT": "checked of build_timm_backbone",
    "INPUT.OCCLUDE.PEOPLE": "a folder or a data set, looked up before training",
}
# The head that reads a key; SAGAHead reads the others.
READER = {
    "MODEL.PROMPT.": head("PromptHead", "MODEL.LOSSES.NAME", "[SupConLoss]"),
    "MODEL.HEADS.PATCH_POOL": head("PatchPoolHead"),
    "MODEL.HEADS.NUM_STRIPES": head("PartStripesHead"),
    "MODEL.BACKBONE.DEPTH": RESNET,
}
WRONG = {int: -7, float: -7.0, str: "nonsense", list: [{"a": 1}], tuple: [{"a": 1}]}


@pytest.mark.parametrize("key", [key for key, value in flatten(get_cfg()).items() if not isinstance(value, bool)])
def test_every_key_has_a_value_that_is_refused(key):
    """A key that is added without a check fails here, unless it is free."""
    cfg = read_config(QUICKSTART, next((opts for begin, opts in READER.items() if key.startswith(begin)), []))
    *sections, name = key.split(".")
    owner = value_of(cfg, ".".join(sections)) if sections else cfg
    owner[name] = WRONG[type(owner[name])]
    assert (name in problems(cfg)) is (key not in FREE)


def test_depths_are_those_of_fastreids_source():
    for backbone, depths in DEPTHS.items():
        module = inspect.getsource(inspect.getmodule(fastreid_registries().backbones.get(backbone)))
        assert [d for d in depths.split() if f"'{d}'" not in module and f'"{d}"' not in module] == [], backbone


@pytest.mark.parametrize(
    "opts", [[], ["MODEL.BACKBONE.OUTPUT", "map"], ["TEST.PARTS", 2], ["MODEL.HEADS.EMBEDDING_DIM", 12]]
)
def test_what_a_head_says_of_its_feature_is_what_it_gives(opts):
    """`feature_parts`, by which TEST.FEATURE is checked, of every head that has parts."""
    seen = 0
    for name, cls in REID_HEADS_REGISTRY._obj_map.items():
        opts_of = [*opts, *(["MODEL.LOSSES.NAME", "[SupConLoss]"] if name == "PromptHead" else [])]
        cfg = read_config(
            QUICKSTART, [*head(name), "MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", 4, *opts_of]
        )
        if hasattr(cls, "feature_layout") and not problems(cfg):
            seen += 1
            assert cls.feature_parts(cfg) == list(build_model(cfg).heads.feature_layout), name
    assert seen


# ---- when it is said ------------------------------------------------------------------------------------------------


def test_no_training_set_is_an_error_of_training_alone(train_net, tmp_path, capfd):
    run = ["--config-file", QUICKSTART, "DATASETS.NAMES", "[]", "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 1
    assert "DATASETS.NAMES is empty; expected one training set or more" in capfd.readouterr().err
    assert train_net("--eval-only", *run) == 1
    assert "no checkpoint at" in capfd.readouterr().err


def test_one_stage_or_an_evaluation_may_ask_for_what_the_others_lack():
    """The stage that learns prompts has no refined feature."""
    with pytest.raises(ValueError, match=r"TEST.FEATURE is 'refined'; .*\(stage prompts, backbone\)"):
        plans.plan(QUICKSTART, ["TEST.FEATURE", "refined"])
    assert [run.name for run in plans.plan(QUICKSTART, ["TEST.FEATURE", "refined"], "anchors")] == ["anchors"]
    assert [run.name for run in plans.plan(QUICKSTART, ["TEST.FEATURE", "refined"], last=True)] == ["anchors"]
