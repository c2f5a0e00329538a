"""Every configuration key the plug-in adds to FastReID: one default, one comment each.

Host keys that the plug-in reads keep the host's meaning: ``MODEL.BACKBONE.{FEAT_DIM,STRIDE_SIZE,SIE_COE,PRETRAIN,
PRETRAIN_PATH}``, ``MODEL.LOSSES.{CE,TRI}``, ``SOLVER.*``, ``TEST.{FLIP,AQE,RERANK,METRIC}``, ``INPUT.*``.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from fastreid.config import CfgNode as CN
from fastreid.config import get_cfg as fastreid_cfg

from .compat import registered
from .hardware import compiler_problem

__all__ = ["add_saga_config", "check_config", "custom_datasets", "flatten", "get_cfg", "option_values", "reads_cameras"]


def add_saga_config(cfg: CN) -> None:
    """Add the plug-in's keys to a FastReID config, in place. Call it before ``merge_from_file``."""
    # Seed of every random choice: initialisation, sampling, augmentation, dropout. Negative: a fresh one each run,
    # which is logged.
    cfg.SEED = 0

    # Training stages, run in order by tools/train_net.py, each in OUTPUT_DIR/<NAME>: a list of
    # {NAME: folder, FILE: config relative to this file, OPTS: [KEY, VALUE, ...]}. Empty: one ordinary run.
    cfg.STAGES = []

    # ---- what a run starts from and what it trains --------------------------------------------------------------
    # Glob patterns of parameters that train; the others are frozen. What a head builds frozen (a text tower, the neck's
    # bias) stays so. Empty: as the model was built.
    cfg.MODEL.TRAINABLE = []
    # Glob patterns of weights that start afresh although MODEL.WEIGHTS is given (new heads; what a stage resets).
    cfg.MODEL.NEW_WEIGHTS = []
    # Glob patterns of keys in which a checkpoint may differ from this configuration although the same weights then compute
    # something else (below MODEL and INPUT, such as INPUT.SIZE_TEST); "identities" and "cameras" for another training set
    # under the same weights. Empty: such a difference is an error.
    cfg.MODEL.ACCEPT_DIFFERENCES = []
    # Glob patterns of modules that stay in evaluation mode while the rest trains (no dropout, frozen statistics).
    cfg.MODEL.EVAL_MODE = []

    # ---- CLIP image tower (meta key of build_clip_vit_backbone) ----------------------------------------------------
    cfg.MODEL.CLIP = CN()
    # open_clip model name, or a name of the plug-in's own assets/clip/*.json. The method: ViT-B/16, QuickGELU.
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
    # Compile training steps by torch.compile: default (fused kernels), reduce-overhead (also CUDA graphs: one launch
    # replays a pass), or empty for none. On a GPU steps of prompts and cached anchors mostly wait for launches
    # (docs/benchmarks); the first step takes about half a minute. Values differ by rounding, dropout draws other masks.
    cfg.MODEL.COMPILE = ""

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
    # Heads with one feature, and CLSHead, take the host's EMBEDDING_DIM: a linear layer of that width on it. 0: none.

    # PatchPoolHead: mean, max or gem over the patch tokens.
    cfg.MODEL.HEADS.PATCH_POOL = "mean"
    # AttentionPoolHead: attention heads of its one query.
    cfg.MODEL.HEADS.POOL_HEADS = 8
    # PartStripesHead: stripes of the patch grid, which share EMBEDDING_DIM.
    cfg.MODEL.HEADS.NUM_STRIPES = 6

    # ---- losses beyond the host's CrossEntropyLoss and TripletLoss -------------------------------------------------
    # Names for MODEL.LOSSES.NAME: SupConLoss, I2TLoss, AnchorDiversityLoss, ClassifierDiversityLoss,
    # AnchorConsistencyLoss, DecorrelationLoss. Each SCALE is the weight of the term.
    cfg.MODEL.LOSSES.SUPCON = CN({"SCALE": 1.0})
    cfg.MODEL.LOSSES.I2T = CN({"SCALE": 1.0, "EPSILON": 0.1})
    cfg.MODEL.LOSSES.ANCHOR_DIVERSITY = CN({"SCALE": 0.05})
    cfg.MODEL.LOSSES.CLASSIFIER_DIVERSITY = CN({"SCALE": 0.5})  # counts with two classifiers or more
    cfg.MODEL.LOSSES.ANCHOR_CONSISTENCY = CN({"SCALE": 1.0, "MARGIN": 0.3})
    cfg.MODEL.LOSSES.DECORRELATION = CN({"SCALE": 1.0})

    # ---- data -----------------------------------------------------------------------------------------------------
    # Data sets of your own, or a registered one with other arguments, for DATASETS.NAMES, TESTS and VALIDATION: a list of
    # {NAME: shop, TYPE: CSVDataset, PATH: crops.csv}; further keys are the arguments of the class TYPE. docs/own_data.md
    cfg.DATASETS.CUSTOM = []
    # Data sets whose query and gallery steer training and are apart from TESTS: every TEST.EVAL_PERIOD epochs they are
    # evaluated in the place of TESTS, and the run's result is its best state by them (mean of Rank-1 and mAP), with which
    # TESTS are evaluated once, at the end. Empty: the last state is the result.
    cfg.DATASETS.VALIDATION = []
    # Random erasing fills with normal noise in normalised space, one value per pixel. False: the host's INPUT.REA.VALUE.
    cfg.INPUT.REA.PIXEL_NOISE = False
    # Share of the image that such a box covers.
    cfg.INPUT.REA.AREA = [0.02, 0.33333333]
    # Filter of the resize at test time: bicubic as FastReID (and training), or bilinear as the published code.
    cfg.INPUT.INTERPOLATION_TEST = "bicubic"
    # Worker processes of the test loader. -1: as DATALOADER.NUM_WORKERS.
    cfg.DATALOADER.NUM_WORKERS_TEST = -1

    # ---- cached features of a frozen image tower --------------------------------------------------------------------
    cfg.CACHE = CN()
    # Train from cached tower outputs instead of images. Needs a frozen backbone.
    cfg.CACHE.ENABLED = False
    # Cached augmentation views of each image; training draws one at random. 1 with AUGMENT False: the test transform.
    cfg.CACHE.NUM_VIEWS = 4
    cfg.CACHE.AUGMENT = True
    # Which outputs are kept: patches, cls, proj, layer_cls (the token layer's class token; LastBlockHead reads it).
    cfg.CACHE.FIELDS = ["patches", "cls", "proj"]
    cfg.CACHE.DTYPE = "float16"  # float16, bfloat16 or float32
    # Folder of the cache. Empty: OUTPUT_DIR/feature_cache beside the stages.
    cfg.CACHE.DIR = ""
    # Seed of the augmented views, for runs of several seeds that share one cache. -1: SEED.
    cfg.CACHE.SEED = -1

    # ---- solver ---------------------------------------------------------------------------------------------------
    # autocast type where SOLVER.AMP.ENABLED: bfloat16 (CPU and GPU), float16 (GPU, with a gradient scaler), or auto: bfloat16
    # where the device has instructions for it, else float16 on a GPU and none, hence float32, on a CPU.
    cfg.SOLVER.AMP.DTYPE = "auto"
    # SCHED "WarmupCosineLR": per epoch e, linear from WARMUP_FACTOR over WARMUP_EPOCHS, then a cosine from 1 to
    # MIN_LR_RATIO (1.0: constant). WARMUP_ITERS belongs to the host's own schedules and must be 0.
    cfg.SOLVER.WARMUP_EPOCHS = 0
    cfg.SOLVER.MIN_LR_RATIO = 0.01
    # Evaluations of DATASETS.VALIDATION in a row without a better state after which training stops. 0: never.
    cfg.SOLVER.PATIENCE = 0
    # [[glob, factor], ...]: learning rate of matching parameters = BASE_LR * factor; the first match counts.
    cfg.SOLVER.LR_FACTORS = []

    # ---- evaluation -----------------------------------------------------------------------------------------------
    # The feature whose figures are the result. auto: fusion where the head has refined, cls and proj; else the concat.
    # Others: refined, cls, proj, concat, orth, fusion, parts, and feature for a head with one unnamed part.
    cfg.TEST.FEATURE = "auto"
    # Further rows of the same pass, reported beside it. "all": every one that the head can give.
    cfg.TEST.REPORT = ["all"]
    # fusion = cat[sqrt(w) L2(part)] and orth's share of the class token.
    cfg.TEST.FUSION = CN({"REFINED": 2.0, "CLS": 0.2, "PROJ": 0.05, "BETA": 0.3})
    # Per-anchor features kept per image in the row "parts" (anchors of largest mass); 0: no such row.
    cfg.TEST.PARTS = 0
    # Neighbour feature centralisation; transductive, like AQE and RERANK.
    cfg.TEST.NFC = CN({"ENABLED": False, "K1": 2, "K2": 2})
    # Keep also the checkpoint with the best test metric. That selects a model on test data, and the output says so.
    cfg.TEST.SELECT_BEST = False


# The loss terms that exist: FastReID's, then ours.
LOSSES = (
    "CrossEntropyLoss",
    "TripletLoss",
    "CircleLoss",
    "Cosface",
    "SupConLoss",
    "I2TLoss",
    "AnchorDiversityLoss",
    "ClassifierDiversityLoss",
    "AnchorConsistencyLoss",
    "DecorrelationLoss",
)
SCHEDULES = ("MultiStepLR", "CosineAnnealingLR", "WarmupCosineLR")


def reads_cameras(cfg: CN) -> bool:
    """Whether the model embeds camera ids."""
    return cfg.MODEL.CLIP.SIE_CAMERA or cfg.MODEL.SAGA.DOMAIN_ANCHORS == "camera"


def custom_datasets(cfg: CN) -> dict[str, tuple[type, dict]]:
    """Class and keyword arguments of each data set in DATASETS.CUSTOM, by name.

    Raises:
        ValueError: the first entry that cannot be one, and what is valid.
    """
    from fastreid.data.datasets import DATASET_REGISTRY

    classes = registered(DATASET_REGISTRY)
    found: dict[str, tuple[type, dict]] = {}
    for entry in cfg.DATASETS.CUSTOM:
        if not isinstance(entry, dict) or not {"NAME", "TYPE"} <= set(entry):
            raise ValueError(
                f"DATASETS.CUSTOM: {entry!r} must have NAME and TYPE, such as {{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}}"
            )
        name, kind = str(entry["NAME"]), str(entry["TYPE"])
        if name in found or name in classes:
            raise ValueError(f"DATASETS.CUSTOM: the name {name!r} is taken; choose another")
        if kind not in classes:
            close = difflib.get_close_matches(kind, classes, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"DATASETS.CUSTOM: {name} has TYPE {kind!r}, expected a registered data set such as CSVDataset or FolderDataset{hint}"
            )
        cls = classes[kind]
        known = {p.name.upper(): p for p in _own_parameters(cls)}
        given = set(entry) - {"NAME", "TYPE"}
        valid = ", ".join(k for k in known if k != "NAME") or "none"
        if given - set(known):
            raise ValueError(
                f"DATASETS.CUSTOM: {name} has {', '.join(sorted(given - set(known)))}; keys of {kind}: {valid}"
            )
        missing = [k for k, p in known.items() if p.default is p.empty and k != "NAME" and k not in given]
        if missing:
            raise ValueError(f"DATASETS.CUSTOM: {name} lacks {', '.join(missing)}; keys of {kind}: {valid}")
        options = {known[k].name: entry[k] for k in given}
        found[name] = cls, ({"name": name} if "NAME" in known else {}) | options
    return found


def _own_parameters(cls: type) -> list[inspect.Parameter]:
    """What a data set's class takes beside the root and the host's own keywords."""
    parameters = inspect.signature(cls).parameters.values()
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "root"]


def check_config(cfg: CN) -> None:
    """Refuse what cannot work, before anything is built or written.

    Raises:
        ValueError: every problem found, one a line, each with what is valid or what to do.
    """
    import torch

    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.modeling.backbones import BACKBONE_REGISTRY
    from fastreid.modeling.heads import REID_HEADS_REGISTRY
    from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

    problems: list[str] = []

    def one_of(key: str, value, valid) -> None:
        if value not in valid:
            close = difflib.get_close_matches(str(value), [str(v) for v in valid], n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            problems.append(f"{key} is {value!r}; valid: {', '.join(map(str, sorted(valid)))}.{hint}")

    def needs(condition: bool, message: str) -> None:
        if not condition:
            problems.append(message)

    model, saga, loss = cfg.MODEL, cfg.MODEL.SAGA, tuple(cfg.MODEL.LOSSES.NAME)
    one_of("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, registered(META_ARCH_REGISTRY))
    one_of("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, registered(BACKBONE_REGISTRY))
    one_of("MODEL.HEADS.NAME", model.HEADS.NAME, registered(REID_HEADS_REGISTRY))
    try:
        custom = custom_datasets(cfg)
    except ValueError as error:
        problems.append(str(error))
    else:
        # a class with arguments of its own to give is used through DATASETS.CUSTOM
        classes = registered(DATASET_REGISTRY)
        plain = {n for n, c in classes.items() if all(p.default is not p.empty for p in _own_parameters(c))}
        for key in ("NAMES", "TESTS", "VALIDATION"):
            for name in cfg.DATASETS[key]:
                if name in classes and name not in plain:
                    problems.append(f"DATASETS.{key}: {name} is set up by an entry of DATASETS.CUSTOM; name that entry")
                else:
                    one_of(f"DATASETS.{key}", name, plain | set(custom))
    for name in loss:
        one_of("MODEL.LOSSES.NAME", name, LOSSES)
    for pattern in model.ACCEPT_DIFFERENCES:
        needs(
            any(fnmatchcase(key, pattern) for key in (*flatten(cfg), "identities", "cameras")),
            f"MODEL.ACCEPT_DIFFERENCES: {pattern!r} matches no key; expected such as INPUT.SIZE_TEST, identities or cameras",
        )
    one_of("SOLVER.SCHED", cfg.SOLVER.SCHED, SCHEDULES)
    one_of("MODEL.COMPILE", model.COMPILE, ("", "default", "reduce-overhead"))
    one_of("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, ("auto", "bfloat16", "float16"))
    one_of("CACHE.DTYPE", cfg.CACHE.DTYPE, ("float16", "bfloat16", "float32"))
    one_of("INPUT.INTERPOLATION_TEST", cfg.INPUT.INTERPOLATION_TEST, ("bilinear", "bicubic"))
    one_of("MODEL.SAGA.DOMAIN_ANCHORS", saga.DOMAIN_ANCHORS, ("content", "camera", "clip"))
    one_of("MODEL.SAGA.POOL", saga.POOL, ("anchor", "mean"))
    needs(
        hasattr(torch.optim, cfg.SOLVER.OPT),
        f"SOLVER.OPT is {cfg.SOLVER.OPT!r}; expected the name of a torch.optim class, such as AdamW",
    )

    device = model.DEVICE.split(":")[0]
    needs(
        not (cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and device == "cpu"),
        "SOLVER.AMP.DTYPE float16 needs a GPU; use auto or bfloat16 on the CPU",
    )
    if model.COMPILE:
        needs(
            model.META_ARCHITECTURE == "SAGABaseline",
            f"MODEL.COMPILE compiles steps of MODEL.META_ARCHITECTURE SAGABaseline, not of {model.META_ARCHITECTURE}",
        )
        needs(
            model.COMPILE != "reduce-overhead" or device == "cuda",
            f"MODEL.COMPILE reduce-overhead replays CUDA graphs, and MODEL.DEVICE is {model.DEVICE}: use default",
        )
        problem = compiler_problem(device)
        needs(problem is None, f"MODEL.COMPILE {model.COMPILE}: torch.compile does not work here: {problem}")
    needs(
        cfg.TEST.EVAL_PERIOD >= 1,
        f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}; it counts epochs, 1 or more (the last is always evaluated)",
    )
    needs(
        cfg.SOLVER.CHECKPOINT_PERIOD >= 1,
        f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}; it counts epochs, 1 or more",
    )
    needs(
        cfg.SOLVER.SCHED != "WarmupCosineLR" or cfg.SOLVER.WARMUP_ITERS == 0,
        "SOLVER.SCHED WarmupCosineLR warms up by SOLVER.WARMUP_EPOCHS; set SOLVER.WARMUP_ITERS 0",
    )
    validation = list(cfg.DATASETS.VALIDATION)
    for key in ("NAMES", "TESTS"):
        shared = [name for name in validation if name in cfg.DATASETS[key]]
        needs(
            not shared,
            f"DATASETS.VALIDATION names {', '.join(shared)}, as DATASETS.{key} does: it must be apart from it",
        )
    needs(
        cfg.SOLVER.PATIENCE >= 0 and (validation or not cfg.SOLVER.PATIENCE),
        f"SOLVER.PATIENCE {cfg.SOLVER.PATIENCE} counts evaluations of DATASETS.VALIDATION: 0 or more, and 0 without such a set",
    )
    needs(
        not (validation and cfg.TEST.SELECT_BEST),
        "TEST.SELECT_BEST selects on test data, DATASETS.VALIDATION on data apart from it: one of the two",
    )
    needs(
        not cfg.CACHE.ENABLED
        or (model.BACKBONE.NAME == "build_clip_vit_backbone" and model.META_ARCHITECTURE == "SAGABaseline"),
        "CACHE.ENABLED keeps CLIP's tokens: it needs MODEL.BACKBONE.NAME build_clip_vit_backbone and MODEL.META_ARCHITECTURE "
        "SAGABaseline",
    )
    needs(
        not (validation and cfg.CACHE.ENABLED) or {"cls", "proj"} <= set(cfg.CACHE.FIELDS),
        "DATASETS.VALIDATION is read from the feature cache, too, for evaluation: CACHE.FIELDS with cls and proj",
    )
    needs(
        not cfg.INPUT.AFFINE.ENABLED,
        "INPUT.AFFINE does not run: FastReID 1.4.0 passes torchvision an argument that is gone",
    )
    if "Sampler" in cfg.DATALOADER.SAMPLER_TRAIN and "Identity" in cfg.DATALOADER.SAMPLER_TRAIN:
        needs(
            cfg.SOLVER.IMS_PER_BATCH % cfg.DATALOADER.NUM_INSTANCE == 0,
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of DATALOADER.NUM_INSTANCE {cfg.DATALOADER.NUM_INSTANCE}",
        )

    tokens = model.BACKBONE.NAME == "build_clip_vit_backbone" and model.BACKBONE.OUTPUT == "tokens"
    if model.HEADS.NAME in ("CLSHead", "LastBlockHead", "PromptHead"):
        needs(
            tokens,
            f"{model.HEADS.NAME} reads CLIP's class token: MODEL.BACKBONE.NAME build_clip_vit_backbone with OUTPUT tokens",
        )
    if model.HEADS.NAME == "SAGAHead":
        two_path = tokens and len(set(model.CLIP.TOKEN_LAYERS)) == 2
        needs(
            len(model.CLIP.TOKEN_LAYERS) <= 2,
            f"MODEL.CLIP.TOKEN_LAYERS {model.CLIP.TOKEN_LAYERS}: SAGAHead reads one or two",
        )
        needs(
            not two_path or saga.NUM_ANCHORS % 2 == 0,
            "two token layers share the text anchors by halves: an even MODEL.SAGA.NUM_ANCHORS",
        )
        needs(
            not two_path or ("AnchorConsistencyLoss" not in loss and not cfg.TEST.PARTS),
            "per-anchor features are not defined for two token layers: drop AnchorConsistencyLoss and TEST.PARTS",
        )
        if not tokens:
            needs(
                saga.DOMAIN_ANCHORS != "clip" or not saga.NUM_DOMAIN_ANCHORS,
                "MODEL.SAGA.DOMAIN_ANCHORS clip reads CLIP's projection: use the CLIP backbone with OUTPUT tokens",
            )
            needs(
                "DecorrelationLoss" not in loss,
                "DecorrelationLoss compares with the class token: use the CLIP backbone with OUTPUT tokens",
            )
        needs(
            0 <= saga.PHRASE_CONTEXT <= 16,
            f"MODEL.SAGA.PHRASE_CONTEXT is {saga.PHRASE_CONTEXT}; an anchor has 16 context slots",
        )
    needs(
        not reads_cameras(cfg) or model.META_ARCHITECTURE == "SAGABaseline",
        "camera embeddings reach the model through MODEL.META_ARCHITECTURE SAGABaseline",
    )
    if problems:
        raise ValueError("this configuration cannot work:\n  " + "\n  ".join(problems))


def get_cfg() -> CN:
    """FastReID's default config with the plug-in's keys added."""
    cfg = fastreid_cfg()
    add_saga_config(cfg)
    return cfg


def option_values(cfg: CN, opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs for `merge_from_list`, which reads lists as Python writes them: those of YAML are rewritten.

    So ``DATASETS.CUSTOM "[{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}]"`` needs no quotes inside, as in a file.

    Raises:
        ValueError: the value of a key that takes a list is none.
    """
    values = [str(opt) for opt in opts]
    known = flatten(cfg)
    for i in range(1, len(values), 2):
        key, value = values[i - 1], values[i]
        if not isinstance(known.get(key), list) or _is_literal(value):
            continue
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = None
        if not isinstance(read, list):
            example = "[{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}]" if key.endswith("CUSTOM") else "[a, b]"
            raise ValueError(
                f"{key} is {value!r}; expected a list in quotes, such as \"{example}\", with text of special characters "
                "in quotes of the other kind"
            )
        values[i] = repr(read)
    return values


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key as "MODEL.SAGA.POOL", in order, with its value; tuples as the lists that YAML makes of them."""
    out: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out
