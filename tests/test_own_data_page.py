"""docs/own_data.md: its config and its commands, on drawn people in folders."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys

import pytest
import yaml

from sagareid.config import custom_datasets, get_cfg

# what makes the published recipe small: the embedded CLIP, one epoch a stage
SMALL = """
    MODEL.DEVICE cpu  MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.PRETRAIN_PATH ''
    MODEL.BACKBONE.FEAT_DIM 128  MODEL.BACKBONE.STRIDE_SIZE (8,8)  MODEL.CLIP.TOKEN_LAYERS [4]
    INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0
    SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0  CACHE.NUM_VIEWS 1
""".split()


@pytest.fixture(scope="module")
def page(repo) -> str:
    return (repo / "docs" / "own_data.md").read_text()


@pytest.mark.slow
def test_from_a_folder_of_crops_to_a_trained_head(page, repo, tiny_root, tmp_path, monkeypatch):
    for image in sorted((tiny_root / "synthetic_pedestrians" / "bounding_box_train").glob("*.jpg")):
        person, camera, rest = image.name.split("_", 2)
        crop = tmp_path / "data" / "crops" / f"person_{person}" / f"cam{camera[1]}_{rest}"
        crop.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, crop)
    config = re.search(r"```yaml\n(# shop\.yml.*?)```", page, re.S)[1]
    (tmp_path / "shop.yml").write_text(config.replace("_BASE_: ", f"_BASE_: {repo}/"))
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.strip().splitlines()]
    assert len(commands) == 6
    for command in commands:
        _python, tool, *arguments = shlex.split(command)
        small = SMALL if "train_net" in tool else []
        monkeypatch.setattr(sys, "argv", [tool, *arguments, *small])
        try:
            runpy.run_path(str(repo / tool), run_name="__main__")
        except SystemExit as end:
            assert not end.code, command
    made = {str(path.relative_to(tmp_path / "logs" / "shop")) for path in (tmp_path / "logs" / "shop").rglob("*.*")}
    assert {"anchors/model_final.pth", "evaluation.json", "anchors/ranked_lists.png", "sheets/query.png"} <= made
    assert (tmp_path / "logs" / "shop_head" / "anchors" / "model_final.pth").is_file()


def test_the_other_entries_of_the_page_are_valid(page):
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(DATASETS:.*?)```", page, re.S)]
    one = yaml.safe_load(re.search(r"other arguments: `(\{.*?\})`", page)[1])
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [*(entry for block in blocks for entry in block["DATASETS"]["CUSTOM"]), one]
    assert list(custom_datasets(cfg)) == ["campus", "shop_2025", "shop_2026", "lobby", "lobby_validation", "mine"]
