"""Every configuration key the plug-in adds to FastReID: one default, one comment each.

Host keys that the plug-in reads keep the host's meaning: ``MODEL.BACKBONE.{FEAT_DIM,STRIDE_SIZE,SIE_COE,PRETRAIN,
PRETRAIN_PATH}``, ``MODEL.LOSSES.{CE,TRI}``, ``SOLVER.*``, ``TEST.{FLIP,AQE,RERANK,METRIC}``, ``INPUT.*``.
"""

from __future__ import annotations

from fastreid.config import CfgNode as CN
from fastreid.config import get_cfg as _host_cfg

__all__ = ["add_saga_config", "check_config", "get_cfg"]


def add_saga_config(cfg: CN) -> None:
    """Add the plug-in's keys to a FastReID config, in place. Call it before ``merge_from_file``."""
    # Seed of every random choice: initialisation, sampling, augmentation, dropout. Negative: a fresh one each run,
    # which is logged.
    cfg.SEED = 0

    # Training stages, run in order by tools/train_net.py, each in OUTPUT_DIR/<NAME>: a list of
    # {NAME: folder, FILE: config relative to this file, OPTS: [KEY, VALUE, ...]}. Empty: one ordinary run.
    cfg.STAGES = []

    # ---- what a run starts from and what it trains --------------------------------------------------------------
    # Glob patterns of parameters that train; everything else is frozen. Empty: as the model was built.
    cfg.MODEL.TRAINABLE = []
    # Glob patterns of weights that start afresh although MODEL.WEIGHTS is given (new heads; what a stage resets).
    cfg.MODEL.NEW_WEIGHTS = []
    # Glob patterns of modules that stay in evaluation mode while the rest trains (no dropout, frozen statistics).
    cfg.MODEL.EVAL_MODE = []

    # ---- CLIP image tower (meta key of build_clip_vit_backbone) ----------------------------------------------------
    cfg.MODEL.CLIP = CN()
    # open_clip model name, or a name of the plug-in's own assets/clip/*.json. METHOD: ViT-B/16 with OpenAI's QuickGELU.
    cfg.MODEL.CLIP.NAME = "ViT-B-16-quickgelu"
    # Blocks (1-based, clamped to the depth) whose patch tokens the heads read. Two layers: two-path refinement.
    cfg.MODEL.CLIP.TOKEN_LAYERS = [9]
    # Add a learned camera embedding times BACKBONE.SIE_COE to the class token (TransReID's SIE, camera only).
    cfg.MODEL.CLIP.SIE_CAMERA = False
    # Names of the training cameras in the order of their embeddings, for SIE and camera-conditioned domain anchors.
    # Empty: collected from the training set and written to the run's config.yaml, so that testing agrees.
    cfg.MODEL.CLIP.CAMERAS = []
    # Build the text tower where a head can use one. Evaluation and export need none: anchors are stored.
    cfg.MODEL.CLIP.TEXT_TOWER = True
    # What the backbone hands to the head. tokens: CLIPFeatures; map: (B, D, h, w) patch tokens;
    # cls: (B, D, 1, 1) class token. The last two serve FastReID's own heads.
    cfg.MODEL.BACKBONE.OUTPUT = "tokens"
    # Recompute block activations in the backward pass: less memory, about a third more time.
    cfg.MODEL.BACKBONE.GRAD_CHECKPOINT = False

    # ---- identity prompts (PromptHead) ----------------------------------------------------------------------------
    cfg.MODEL.PROMPT = CN()
    # Learnable context slots of an identity and slots kept at zero, before "person."
    cfg.MODEL.PROMPT.NUM_CONTEXT = 8
    cfg.MODEL.PROMPT.NUM_BLANK = 8
    # Prompt mode. identity: blank slots are zero (published stage "1a"). modality: they hold the modality and
    # platform contexts (published stage "1b").
    cfg.MODEL.PROMPT.MODE = "identity"

    # ---- SAGAHead -------------------------------------------------------------------------------------------------
    cfg.MODEL.SAGA = CN()
    # K, text anchors.
    cfg.MODEL.SAGA.NUM_ANCHORS = 24
    # p, context slots of an anchor (of 16) frozen at its phrase; the other 16-p learn.
    cfg.MODEL.SAGA.PHRASE_CONTEXT = 12
    # Anchors as free vectors instead of text.
    cfg.MODEL.SAGA.FREE_ANCHORS = False
    # M, domain anchors made from the image; 0 for none.
    cfg.MODEL.SAGA.NUM_DOMAIN_ANCHORS = 3
    # What makes them. content: mean patch; camera: mean patch and camera id; clip: CLIP's embedding over the text anchors.
    cfg.MODEL.SAGA.DOMAIN_ANCHORS = "content"
    # R, cross-attention layers.
    cfg.MODEL.SAGA.REFINE_LAYERS = 2
    # H, attention heads of a refinement layer.
    cfg.MODEL.SAGA.NUM_HEADS = 8
    # Dropout on attention weights and in the feed-forward.
    cfg.MODEL.SAGA.DROPOUT = 0.1
    # Block (1-based) of the image tower that refinement layers are copied from. 0: the (deepest) token layer.
    cfg.MODEL.SAGA.INIT_BLOCK = 0
    # Width of the pooled feature; 0: the width of the tokens, without a projection.
    cfg.MODEL.SAGA.EMBEDDING_DIM = 0
    # Q, identity classifiers, and the dropout in front of each.
    cfg.MODEL.SAGA.NUM_CLASSIFIERS = 1
    cfg.MODEL.SAGA.CLASSIFIER_DROPOUT = 0.0
    # Pool by anchor claim ("anchor", the method) or plainly ("mean", ablation).
    cfg.MODEL.SAGA.POOL = "anchor"

    # ---- other heads ----------------------------------------------------------------------------------------------
    # CLSHead: also CLIP-ReID's identity and triplet losses on the projection and on the token layer's class token.
    cfg.MODEL.HEADS.TRAIN_PROJ = False
    # PatchPoolHead: mean, max or gem over the patch tokens.
    cfg.MODEL.HEADS.PATCH_POOL = "mean"

    # ---- losses beyond the host's CrossEntropyLoss and TripletLoss -------------------------------------------------
    # Names for MODEL.LOSSES.NAME: SupConLoss, I2TLoss, AnchorDiversityLoss, ClassifierDiversityLoss,
    # AnchorConsistencyLoss, DecorrelationLoss. Each SCALE is the weight of the term.
    cfg.MODEL.LOSSES.SUPCON = CN({"SCALE": 1.0})
    cfg.MODEL.LOSSES.I2T = CN({"SCALE": 1.0, "EPSILON": 0.1})
    cfg.MODEL.LOSSES.ANCHOR_DIVERSITY = CN({"SCALE": 0.05})
    cfg.MODEL.LOSSES.CLASSIFIER_DIVERSITY = CN({"SCALE": 0.5})
    cfg.MODEL.LOSSES.ANCHOR_CONSISTENCY = CN({"SCALE": 1.0, "MARGIN": 0.3})
    cfg.MODEL.LOSSES.DECORRELATION = CN({"SCALE": 1.0})

    # ---- data -----------------------------------------------------------------------------------------------------
    # Normalised-space noise as random-erasing fill (METHOD.md 6), one value per pixel. False: the host's INPUT.REA.VALUE.
    cfg.INPUT.REA.PIXEL_NOISE = False
    # Share of the image that random erasing covers.
    cfg.INPUT.REA.AREA = [0.02, 0.33333333]
    # Pad after the flip (METHOD.md 6) is the host's order here too. Evaluation resizes with this filter.
    cfg.INPUT.INTERPOLATION_TEST = "bilinear"  # bilinear or bicubic
    # Worker processes of the test loader. -1: as DATALOADER.NUM_WORKERS.
    cfg.DATALOADER.NUM_WORKERS_TEST = -1

    # ---- cached features of a frozen image tower --------------------------------------------------------------------
    cfg.CACHE = CN()
    # Train from cached tower outputs instead of images. Needs a frozen backbone.
    cfg.CACHE.ENABLED = False
    # Cached augmentation views of each image; training draws one at random. 1 with AUGMENT False: the test transform.
    cfg.CACHE.NUM_VIEWS = 4
    cfg.CACHE.AUGMENT = True
    # Which outputs are kept: patches and/or cls and/or proj.
    cfg.CACHE.FIELDS = ["patches", "cls", "proj"]
    cfg.CACHE.DTYPE = "float16"  # float16, bfloat16 or float32
    # Folder of the cache. Empty: OUTPUT_DIR/feature_cache beside the stages.
    cfg.CACHE.DIR = ""

    # ---- solver ---------------------------------------------------------------------------------------------------
    # autocast type where SOLVER.AMP.ENABLED: bfloat16 (CPU and GPU) or float16 (GPU, with a gradient scaler).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # SCHED "WarmupCosineLR": per epoch e, linear from WARMUP_FACTOR over WARMUP_EPOCHS, then a cosine from 1 to
    # MIN_LR_RATIO (1.0: constant). WARMUP_ITERS belongs to the host's own schedules and must be 0.
    cfg.SOLVER.WARMUP_EPOCHS = 0
    cfg.SOLVER.MIN_LR_RATIO = 0.01
    # [[glob, factor], ...]: learning rate of matching parameters = BASE_LR * factor; the first match counts.
    cfg.SOLVER.LR_FACTORS = []

    # ---- evaluation -----------------------------------------------------------------------------------------------
    # The feature whose figures are the result. auto: fusion where the head has refined, cls and proj; else the concat.
    # Others: refined, cls, proj, concat, orth, fusion, parts, and feature for a head with one unnamed part.
    cfg.TEST.FEATURE = "auto"
    # Further rows of the same pass, reported beside it. "all": every one that the head can give, parts excepted.
    cfg.TEST.REPORT = ["all"]
    # fusion = cat[sqrt(w) L2(part)] and orth's share of the class token.
    cfg.TEST.FUSION = CN({"REFINED": 2.0, "CLS": 0.2, "PROJ": 0.05, "BETA": 0.3})
    # Per-anchor features kept per image in the row "parts" (anchors of largest mass); 0: no such row.
    cfg.TEST.PARTS = 0
    # Neighbour feature centralisation; transductive, like AQE and RERANK.
    cfg.TEST.NFC = CN({"ENABLED": False, "K1": 2, "K2": 2})
    # Keep also the checkpoint with the best test metric. That selects a model on test data, and the output says so.
    cfg.TEST.SELECT_BEST = False


def check_config(cfg: CN) -> None:
    """placeholder"""


def get_cfg() -> CN:
    """FastReID's default config with the plug-in's keys added."""
    cfg = _host_cfg()
    add_saga_config(cfg)
    return cfg
