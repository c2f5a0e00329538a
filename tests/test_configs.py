"""Every config that ships: it parses, its stages plan, its values pass check_config, and small it runs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from sagareid.config import flatten
from sagareid.engine import plans
from sagareid.engine.trainer import SAGATrainer
from sagareid.weights import load_state

from fastreid.utils.events import EventStorage

CONFIGS = Path(__file__).parents[1] / "configs"
ABLATIONS = sorted((CONFIGS / "SAGA/ablations").glob("*.yml"))
TOWERS = [p for p in sorted((CONFIGS / "SAGA/towers").glob("*.yml")) if not p.name.startswith("Base-")]
DATASETS, CLIPREID, BASELINES, STUDY, OCCLUDERS = (
    [p for p in sorted((CONFIGS / folder).glob("*.yml")) if not p.name.startswith("Base-")]
    for folder in ("SAGA", "CLIPReID", "baselines", "study", "study/occluders")
)
# What this project adds to a data set's published recipe.
ADDITIONS = ("quickstart.yml", "own_small.yml", "occ_duke_occluders.yml")

# the embedded CLIP's architecture with random weights, one tiny epoch a stage
TINY = """
    MODEL.DEVICE cpu  MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.PRETRAIN False
    MODEL.BACKBONE.FEAT_DIM 128  MODEL.BACKBONE.STRIDE_SIZE (8,8)  INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]
    DATALOADER.NUM_WORKERS 0  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 48  CACHE.NUM_VIEWS 1
    DATASETS.NAMES ['SyntheticPedestrians']  DATASETS.TESTS ['SyntheticPedestrians']
""".split()


@pytest.mark.parametrize("path", [*DATASETS, *ABLATIONS], ids=lambda p: p.stem)
def test_plans(path):
    runs = plans.plan(path)
    assert [r.name for r in runs][:4] == ["prompts", "backbone", "anchors_warmup", "anchors"]
    assert len({r.cfg.OUTPUT_DIR for r in runs}) == len(runs)
    for before, run in itertools.pairwise(runs):
        assert str(before.final) == run.cfg.MODEL.WEIGHTS


def test_occluders_change_the_anchors_stages_alone():
    """occ_duke_occluders.yml is occ_duke.yml but for what docs/training_occluders.md says of the last two stages."""
    published, ours = (plans.plan(CONFIGS / "SAGA" / name) for name in ("occ_duke.yml", "occ_duke_occluders.yml"))
    added = ["INPUT.OCCLUDE", "MODEL.HEADS.CONTEXT_BLOCKS", "MODEL.LOSSES."]
    tower = ["MODEL.TRAINABLE", "CACHE.ENABLED", "SOLVER.LR_FACTORS", "SOLVER.MIN_LR_RATIO", "SOLVER.AMP.ENABLED"]
    paths = ("OUTPUT_DIR", "MODEL.WEIGHTS", "CACHE.DIR", "STAGES")
    for before, after in zip(published, ours, strict=True):
        before_keys, after_keys = flatten(before.cfg), flatten(after.cfg)
        changed = {k for k, v in after_keys.items() if v != before_keys[k] and not k.startswith(paths)}
        allowed = {"anchors_warmup": added, "anchors": added + tower}.get(after.name, [])
        assert all(key.startswith(tuple(allowed)) for key in changed) and bool(changed) == bool(allowed)
        assert not before.cfg.INPUT.OCCLUDE.ENABLED and not before.cfg.MODEL.HEADS.CONTEXT_BLOCKS


def test_every_output_folder_is_its_own():
    runs = [plans.plan(p)[0] for p in [*DATASETS, *ABLATIONS, *TOWERS, *CLIPREID, *BASELINES, *STUDY, *OCCLUDERS]]
    folders = [run.folder.parent if run.name else run.folder for run in runs]
    assert len(set(folders)) == len(folders)


def test_an_ablation_differs_from_the_recipe_it_names():
    reference = {r.name: r.cfg for r in plans.plan(ABLATIONS[0].parents[1] / "occ_duke.yml")}
    for path in ABLATIONS:
        runs = plans.plan(path)
        changed = any(
            str(value) != str(flatten(reference[r.name])[key])
            for r in runs
            if r.name in reference
            for key, value in flatten(r.cfg).items()
            if key not in ("OUTPUT_DIR", "MODEL.WEIGHTS", "CACHE.DIR")
        )
        assert changed or len(runs) > len(reference), path.stem


@pytest.mark.parametrize("path", [*DATASETS, *ABLATIONS, *CLIPREID, *STUDY, *OCCLUDERS], ids=lambda p: p.stem)
def test_every_parameter_that_trains_gets_a_gradient_in_its_stage(path):
    """DistributedDataParallel waits for each of them. Blocks follow the token layer, as in the published recipe."""
    layers = "[1,2]" if path.stem == "two_path" else "[2]"
    opts = [*TINY, "MODEL.CLIP.TOKEN_LAYERS", layers, "MODEL.HEADS.NUM_CLASSES", 4, "MODEL.CLIP.CAMERAS", "['a','b']"]
    for run in plans.plan(path, opts):
        model = SAGATrainer.build_model(run.cfg).train()
        if hasattr(model.heads, "text_features"):
            model.heads.text_features.normal_()
        targets = torch.arange(4).repeat_interleave(2)
        batch = {"images": torch.rand(8, 3, 48, 24) * 255, "targets": targets, "cameras": targets % 2}
        batch |= {"hidden": torch.rand(8, 48, 24), "whole_images": batch["images"].flip(3)}
        with EventStorage():
            sum(model(batch).values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], run.name
        assert any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_trains_resumes_and_evaluates(path, train_net, tmp_path):
    """Every option in training (all its stages), resuming (a finished run is recognised), and evaluation alone."""
    size = ["MODEL.CLIP.TOKEN_LAYERS", "[2,4]" if path.stem == "two_path" else "[4]"]
    run = ["--config-file", path, *TINY, *size, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert train_net("--resume", *run) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert train_net("--eval-only", *run) == 0
    [evaluated] = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results[-1]["metrics"], abs=1e-3)


# ---- CLIP-ReID ------------------------------------------------------------------------------------------------------


def test_clip_reid_has_the_data_sets_of_saga():
    ours = {p.name: plans.plan(p)[-1].cfg.DATASETS for p in DATASETS if p.name not in ADDITIONS}
    clip_reid = {p.name: plans.plan(p)[-1].cfg.DATASETS for p in CLIPREID}
    assert ours == clip_reid


@pytest.mark.parametrize("path", CLIPREID, ids=lambda p: p.stem)
def test_clip_reid_plans(path):
    prompts, backbone = plans.plan(path)
    assert (prompts.name, backbone.name) == ("prompts", "backbone")
    assert prompts.cfg.SOLVER.MAX_EPOCH == 120 and backbone.cfg.SOLVER.MAX_EPOCH == 60
    assert backbone.cfg.SOLVER.STEPS == [30, 50] and backbone.cfg.MODEL.HEADS.TRAIN_PROJ


@pytest.mark.slow
def test_clip_reid_trains_all_its_losses(train_net, tmp_path):
    run = ["--config-file", CLIPREID[0], *TINY, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    logged = set().union(*map(json.loads, (tmp_path / "backbone" / "metrics.json").read_text().splitlines()))
    terms = {"cls", "triplet", "i2t", "cls_proj", "triplet_proj", "triplet_layer"}
    assert {f"loss_{term}" for term in terms} <= logged
    assert {"cls/mAP", "proj/mAP"} <= set(json.loads((tmp_path / "results.json").read_text())[-1]["metrics"])


# ---- FastReID's own models ------------------------------------------------------------------------------------------

# no ImageNet weights, no GPU, small images (MGN needs three rows of features), one epoch of three steps
ON_CPU = """
    MODEL.DEVICE cpu  SOLVER.AMP.ENABLED False  MODEL.BACKBONE.PRETRAIN False  INPUT.SIZE_TRAIN [48,16]
    INPUT.SIZE_TEST [48,16]  DATALOADER.NUM_WORKERS 0  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_ITERS 0
    SOLVER.DELAY_EPOCHS 0  SOLVER.FREEZE_ITERS 0  SOLVER.IMS_PER_BATCH 48  DATASETS.NAMES ['SyntheticPedestrians']
    DATASETS.TESTS ['SyntheticPedestrians']
""".split()


def test_the_baselines_are_there():
    assert {p.stem for p in BASELINES} == {"bagtricks_R50", "AGW_R50", "sbs_R50", "mgn_R50-ibn", "bagtricks_vit"}


@pytest.mark.slow
@pytest.mark.parametrize("path", BASELINES, ids=lambda p: p.stem)
def test_a_baseline_trains_and_evaluates(path, train_net, tmp_path):
    size = ["MODEL.BACKBONE.DEPTH", "small"] if "vit" in path.stem else []
    run = ["--config-file", path, *ON_CPU, *size, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    [result] = json.loads((tmp_path / "results.json").read_text())
    assert result["steps"] == 3 and 0 <= result["metrics"]["mAP"] <= 100


def test_a_baseline_without_its_weights_says_which_file(train_net, tmp_path, capfd):
    path = next(p for p in BASELINES if "vit" in p.stem)
    assert train_net("--config-file", path, *ON_CPU, "MODEL.BACKBONE.PRETRAIN", True, "OUTPUT_DIR", tmp_path) == 1
    assert "jx_vit_base_p16_224-80ecf9dd.pth" in capfd.readouterr().err


@pytest.mark.slow
def test_a_baseline_learns(train_net, tmp_path):
    """Not a matter of course: as installed, FastReID 1.4.0 changes no weight on PyTorch 2, without a word."""
    path = next(p for p in BASELINES if p.stem == "bagtricks_R50")
    smaller = """
        MODEL.BACKBONE.DEPTH 18x  MODEL.BACKBONE.FEAT_DIM 512  INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]
        SOLVER.IMS_PER_BATCH 16  SOLVER.MAX_EPOCH 4  SOLVER.CHECKPOINT_PERIOD 1
    """.split()
    run = ["--config-file", path, *ON_CPU, *smaller, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = [line["loss_triplet"] for line in lines if "loss_triplet" in line]  # medians of an epoch
    assert losses[-1] < 0.9 * losses[0]
    first, last = (load_state(tmp_path / f"{name}.pth")["model"] for name in ("model_0000", "model_final"))
    moved = {k for k in first if k.endswith("weight") and not torch.equal(first[k], last[k])}
    assert {"backbone.conv1.weight", "backbone.layer4.1.conv2.weight", "heads.weight"} <= moved
    [trained] = json.loads((tmp_path / "results.json").read_text())
    assert train_net("--eval-only", *run) == 0
    [evaluated] = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluated["metrics"] == pytest.approx(trained["metrics"], abs=1e-3)


# ---- the study ------------------------------------------------------------------------------------------------------


def test_the_heads_of_the_study_differ_in_their_head_alone():
    cfgs = {p.stem: plans.plan(p)[0].cfg for p in STUDY}
    assert len(cfgs) == 11
    reference = flatten(cfgs["cls"])
    for name, cfg in cfgs.items():
        other = {
            key
            for key, value in flatten(cfg).items()
            if str(value) != str(reference[key]) and not key.startswith("MODEL.HEADS.")
        }
        copies = {"MODEL.CLIP.TOKEN_LAYERS", "SOLVER.LR_FACTORS"} if name.startswith("last_") else set()
        assert other <= {"OUTPUT_DIR", "MODEL.SAGA.FREE_ANCHORS", "MODEL.LOSSES.NAME"} | copies, name
    assert len({str(c.MODEL.HEADS) + str(c.MODEL.SAGA) + str(c.MODEL.CLIP) for c in cfgs.values()}) == len(cfgs)


# ---- towers of other projects ---------------------------------------------------------------------------------------

# the same towers, small: random weights, few blocks, maps of a few patches
SMALL_VIT = ["MODEL.BACKBONE.TIMM.ARGS", "['embed_dim=32','depth=3','num_heads=2']", "MODEL.BACKBONE.FEAT_DIM", 32]
SMALL_SWIN = ["MODEL.BACKBONE.TIMM.ARGS", "['embed_dim=16','depths=(1,2,1,1)','num_heads=(1,1,2,2)']"]
SMALL_TOWERS = {
    "solider_swin_b": [*SMALL_SWIN, "MODEL.BACKBONE.FEAT_DIM", 128],
    "osnet_x1_0": ["MODEL.BACKBONE.DEPTH", "x0_25", "MODEL.BACKBONE.FEAT_DIM", 128],
    "torchreid_resnet50": ["MODEL.BACKBONE.TIMM.NAME", "resnet18", "MODEL.BACKBONE.FEAT_DIM", 512],
}


# leaf -> rate, epochs and size of its own fine-tuning, by its authors' files that the leaf names
RECIPES = {
    "personvit_vit_b": (0.0004, 120, (256, 128)),
    "personvit_vit_s": (0.0004, 120, (256, 128)),
    "transreid_ssl_vit_s": (0.0004, 120, (256, 128)),
    "transreid_ssl_vit_b": (0.0004, 120, (384, 128)),
    "transreid_vit_b": (0.008, 120, (256, 128)),
    "solider_swin_b": (0.0002, 120, (384, 128)),
    "hap_vit_b": (0.008, 100, (256, 128)),
    "osnet_x1_0": (0.0015, 150, (256, 128)),
    "torchreid_resnet50": (0.0003, 60, (256, 128)),
}


def test_a_towers_plan_and_its_published_recipe():
    plan = {name: plans.plan(CONFIGS / f"SAGA/towers/{name}.yml") for name in RECIPES}
    for name, runs in plan.items():
        assert [r.name for r in runs] == ["backbone", "anchors_warmup", "anchors"], name
        assert {tuple(r.cfg.INPUT.SIZE_TRAIN) for r in runs} == {tuple(runs[0].cfg.INPUT.SIZE_TEST)}, name
    first = {name: runs[0].cfg for name, runs in plan.items()}
    rates = {n: (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH, tuple(cfg.INPUT.SIZE_TRAIN)) for n, cfg in first.items()}
    assert rates == RECIPES
    assert [round(cfg.MODEL.PIXEL_MEAN[0], 3) for cfg in first.values()].count(123.675) == 3
    factors = dict(first["hap_vit_b"].SOLVER.LR_FACTORS)  # utils/lr_decay.py: 0.4 ** (13 - layer), layer = block + 1
    for block in range(12):
        assert factors[f"backbone.model.blocks.{block}.*"] == pytest.approx(0.4 ** (12 - block))
    assert factors["backbone.model.cls_token"] == pytest.approx(0.4**13)


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_of_towers_has_its_size(name, repo):
    from sagareid.studies.complexity import tower_complexity

    found = tower_complexity(plans.plan(CONFIGS / f"SAGA/towers/{name}.yml")[-1].cfg)
    [row] = [line for line in (repo / "docs/towers.md").read_text().splitlines() if f"`{name}.yml`" in line]
    size = [
        f"{found.width}",
        f"{found.grid[0]}x{found.grid[1]}",
        f"{found.parameters / 1e6:.1f}",
        f"{found.gflops:.1f}",
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")][2:6] == size


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_of_a_tower_that_trains_gets_a_gradient(name):
    opts = """
        MODEL.DEVICE cpu  MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.PRETRAIN False
        INPUT.SIZE_TRAIN [64,32]  INPUT.SIZE_TEST [64,32]  MODEL.HEADS.NUM_CLASSES 4  CACHE.ENABLED False
    """.split()
    layers = [] if name in SMALL_TOWERS else ["MODEL.CLIP.TOKEN_LAYERS", "[3]"]
    for run in plans.plan(CONFIGS / f"SAGA/towers/{name}.yml", [*opts, *layers, *SMALL_TOWERS.get(name, SMALL_VIT)]):
        model = SAGATrainer.build_model(run.cfg).train()
        targets = torch.arange(4).repeat_interleave(2)
        batch = {"images": torch.rand(8, 3, 64, 32) * 255, "targets": targets, "cameras": targets % 2}
        with EventStorage():
            sum(model(batch).values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], run.name
        assert any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["personvit_vit_b", "solider_swin_b", "osnet_x1_0"])
def test_a_tower_trains_all_its_stages(name, train_net, tmp_path):
    """From a file in its published layout to anchors on the frozen tower."""
    import foreign_towers as T

    content = {"personvit_vit_b": T.dino, "solider_swin_b": T.solider}.get(name)
    small = SMALL_TOWERS.get(name, [*SMALL_VIT, "MODEL.CLIP.TOKEN_LAYERS", "[3]"])
    if content is not None:
        torch.save(content(), tmp_path / "w.pth")
        small = [*small, "MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", tmp_path / "w.pth"]
    if name == "solider_swin_b":
        small += ["MODEL.BACKBONE.TIMM.ARGS", f"['embed_dim=16','depths={T.SWIN_DEPTHS}','num_heads={T.SWIN_HEADS}']"]
    sizes = ["INPUT.SIZE_TRAIN", "[64,32]", "INPUT.SIZE_TEST", "[64,32]", "MODEL.BACKBONE.STRIDE_SIZE", "(16,16)"]
    run = ["--config-file", CONFIGS / f"SAGA/towers/{name}.yml", *TINY, *sizes, "SOLVER.LR_FACTORS", "[]", *small]
    assert train_net(*run, "OUTPUT_DIR", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [result["stage"] for result in results][-1] == "anchors"
    first, last = (
        load_state(tmp_path / "run" / stage / "model_final.pth")["model"] for stage in ("backbone", "anchors")
    )
    tower = [key for key in last if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    assert tower and all(torch.equal(first[key], last[key]) for key in tower), "anchors are trained on the frozen tower"
