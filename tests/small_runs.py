"""Arguments of train_net.py that make a run small. A test adds its own after them: the last value of a key counts."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

QUICKSTART = ["--config-file", str(REPO / "configs/SAGA/quickstart.yml")]
# the quick start's model and data as one run of SAGAHead, without stages
ONE_STAGE = [*QUICKSTART, "STAGES", "[]"]
# one epoch in small batches, in this process
SMALL = "SOLVER.MAX_EPOCH 1  SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0  CACHE.NUM_VIEWS 1".split()
SMALL_IMAGES = "INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]".split()
# the embedded CLIP instead of the one that a recipe downloads
EMBEDDED_CLIP = """
    MODEL.DEVICE cpu  MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.PRETRAIN_PATH ''  MODEL.BACKBONE.FEAT_DIM 128
""".split()
