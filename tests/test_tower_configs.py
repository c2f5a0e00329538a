"""The configs of towers and their page: each plans, its checks pass, and the page has its size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sagareid.deploy.extractor import Extractor
from sagareid.engine import plans
from sagareid.engine.trainer import SAGATrainer
from sagareid.studies.complexity import tower_complexity

from fastreid.utils.events import EventStorage

FOLDER = Path(__file__).parents[1] / "configs/SAGA/towers"
# Those of timm and open_clip; towers with weights of ReID papers have tests of their own.
LEAVES = [p for p in sorted(FOLDER.glob("*.yml")) if re.search(r"Base-(timm|SAGA)\.yml", p.read_text())]
LEAVES = [p for p in LEAVES if not p.name.startswith("Base-")]


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: p.stem)
def test_a_tower_plans_and_the_page_says_its_size(path, repo):
    runs = plans.plan(path)
    own = [] if runs[-1].cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" else ["prompts"]
    assert [run.name for run in runs] == [*own, "backbone", "anchors_warmup", "anchors"]
    cfg = runs[-1].cfg
    found = tower_complexity(cfg)
    assert found.width == cfg.MODEL.BACKBONE.FEAT_DIM
    [row] = [line for line in (repo / "docs/towers.md").read_text().splitlines() if f"`{path.stem}.yml`" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    size = [f"{found.width}", f"{found.grid[0]}x{found.grid[1]}"]
    size += [f"{found.parameters / 1e6:.1f}", f"{found.gflops:.1f}"]
    assert cells[2:6] == size
    assert re.search(r"timm|open_clip", cells[1])


# What makes a tower of timm's small; its token layer is the config's, or the third of three blocks.
SMALL = {
    "swin_b": ("embed_dim=16", "depths=(1,1,2,1)", "num_heads=(1,2,2,4)"),
    "convnext_b": ("depths=(1,1,2,1)", "dims=(8,16,64,64)"),
}
VIT = ("depth=3", "embed_dim=64", "num_heads=4")
OF_TIMM = [p for p in LEAVES if "Base-timm" in p.read_text()]


def small(path: Path) -> list:
    """Keys that make a run of a config small; the text tower is the embedded CLIP's."""
    args = list(SMALL.get(path.stem, VIT))
    return [
        *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.TIMM.ARGS", str(args), "MODEL.BACKBONE.FEAT_DIM", 64),
        *("MODEL.CLIP.NAME", "ViT-XS-8-pedestrians", "MODEL.CLIP.PRETRAIN_PATH", ""),
        *("MODEL.CLIP.TOKEN_LAYERS", "[3]", "INPUT.SIZE_TRAIN", "[64,32]", "INPUT.SIZE_TEST", "[64,32]"),
        *("MODEL.BACKBONE.PRETRAIN", False, "INPUT.PADDING.SIZE", 2),
    ]


@pytest.mark.parametrize("path", OF_TIMM, ids=lambda p: p.stem)
def test_every_parameter_that_trains_gets_a_gradient_in_its_stage(path):
    """DistributedDataParallel waits for each of them."""
    for run in plans.plan(path, [*small(path), "MODEL.HEADS.NUM_CLASSES", 4, "CACHE.ENABLED", False]):
        model = SAGATrainer.build_model(run.cfg).train()
        targets = torch.arange(4).repeat_interleave(2)
        batch = {"images": torch.rand(8, 3, 64, 32) * 255, "targets": targets, "cameras": targets % 2}
        with EventStorage():
            sum(model(batch).values()).backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None], run.name
        trains = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
        assert trains == ({"backbone", "heads"} if run.name == "backbone" else {"heads"})


@pytest.mark.slow
def test_a_tower_of_timm_trains_all_its_stages_and_embeds(train_net, tmp_path):
    path = FOLDER / "dinov2_vit_b.yml"
    short = """
        DATALOADER.NUM_WORKERS 0  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 48  CACHE.NUM_VIEWS 1
        DATASETS.NAMES ['SyntheticPedestrians']  DATASETS.TESTS ['SyntheticPedestrians']
    """.split()
    assert train_net("--config-file", path, *small(path), *short, "OUTPUT_DIR", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [result["stage"] for result in results][-1] == "anchors"
    extractor = Extractor.from_checkpoint(tmp_path / "run" / "anchors")
    features = extractor([np.full((80, 40, 3), shade, dtype=np.uint8) for shade in (20, 200)])
    assert features.shape == (2, 128) and not np.allclose(features[0], features[1])
