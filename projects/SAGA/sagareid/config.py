"""The configuration: the keys that this package adds to FastReID's.

Each key has one default and one comment. Keys of a head, a loss, a pool, a kind of domain anchors or an evaluation
feature stand in its class (`add_keys`), with their check (`check`); so do those of a part that `--import` brings. The
others are here, and their checks in `config_checks`. FastReID's keys keep FastReID's meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fastreid.config import CfgNode as CN
from fastreid.config import get_cfg as fastreid_cfg

from .compat import registered
from .errors import did_you_mean
from .registry import DOMAIN_ANCHOR_REGISTRY, fastreid_registries, parts, parts_with_keys

__all__ = [
    "VALIDATION_OF",
    "WRITERS",
    "add_saga_config",
    "custom_datasets",
    "flatten",
    "get_cfg",
    "own_parameters",
    "reads_cameras",
    "tower_gives",
    "tower_widths",
]


def add_saga_config(cfg: CN) -> None:
    """Add this package's keys and those of every registered part to a FastReID config, in place, before a file is read.

    Raises:
        ValueError: a part's `add_keys` changes a key that exists.
    """
    # Seed of every random choice: initialisation, sampling, augmentation, dropout. Negative: a fresh one each run,
    # which is logged.
    cfg.SEED = 0

    # Training stages, run in order by tools/train_net.py, each in OUTPUT_DIR/<NAME>: a list of
    # {NAME: folder, FILE: config relative to this file, OPTS: [KEY, VALUE, ...]}. Empty: one ordinary run.
    cfg.STAGES = []

    # Where metrics go beside metrics.json and TensorBoard: wandb, mlflow, clearml, each by its own client, which must
    # be installed, and by the client's own settings (docs/writers.md).
    cfg.WRITERS = []
    # Project (W&B, ClearML) or experiment (MLflow) that their runs are filed under.
    cfg.WRITER_PROJECT = "sagareid"

    # ---- what a run starts from and what it trains --------------------------------------------------------------
    # Glob patterns of parameters that train; the others are frozen. What a head builds frozen (a text tower, the neck's
    # bias) stays so. Empty: as the model was built.
    cfg.MODEL.TRAINABLE = []
    # Let the bias of the neck train, the batch norm in front of the classifier, as the published code does while it
    # trains the image tower. False: it stays at zero, as BNNeck has it.
    cfg.MODEL.HEADS.NECK_BIAS = False
    # Glob patterns of weights that start afresh although MODEL.WEIGHTS is given (new heads; what a stage resets).
    cfg.MODEL.NEW_WEIGHTS = []
    # Glob patterns of keys in which a checkpoint may differ from this configuration although the same weights then
    # compute something else (below MODEL and INPUT, such as INPUT.SIZE_TEST); "identities" and "cameras" for another
    # training set under the same weights. Empty: such a difference is an error.
    cfg.MODEL.ACCEPT_DIFFERENCES = []
    # Glob patterns of modules that stay in evaluation mode while the rest trains (no dropout, frozen statistics).
    cfg.MODEL.EVAL_MODE = []

    # ---- image tower: CLIP's (build_clip_vit_backbone) or another's, and CLIP's text tower --------------------------
    cfg.MODEL.CLIP = CN()
    # open_clip model name, or a name of the plug-in's own assets/clip/*.json: a ViT with a class token, a ResNet, or a
    # model of timm in open_clip (docs/towers.md). The method: ViT-B/16, QuickGELU.
    cfg.MODEL.CLIP.NAME = "ViT-B-16-quickgelu"
    # Weights of the text tower where BACKBONE.PRETRAIN_PATH is not CLIP's, that is behind every backbone but
    # build_clip_vit_backbone: a tag of open_clip, a file, or empty for those that ship with the model NAME.
    cfg.MODEL.CLIP.PRETRAIN_PATH = ""
    # Blocks (1-based, clamped to the depth) whose patch tokens the heads read, of CLIP's tower and of timm's; stages
    # where a tower has stages. Two layers: two-path refinement.
    cfg.MODEL.CLIP.TOKEN_LAYERS = [9]
    # Add a learned camera embedding times BACKBONE.SIE_COE to the class token (TransReID's SIE, camera only).
    cfg.MODEL.CLIP.SIE_CAMERA = False
    # Names of the training cameras in the order of their embeddings, for SIE and camera-conditioned domain anchors.
    # Empty: collected from the training set and written to the run's config.yaml, so that testing agrees.
    cfg.MODEL.CLIP.CAMERAS = []
    # What the backbone hands to the head. tokens: CLIPFeatures; map: (B, D, h, w) patch tokens;
    # cls: (B, D, 1, 1) class token. The last two serve FastReID's own heads.
    cfg.MODEL.BACKBONE.OUTPUT = "tokens"
    # Modules at the end of a backbone that gives a map, by name and in the order in which they run, that are left to
    # the head: it reads the map that goes into the first of them, and PatchPoolHead trains a copy of them. Such as
    # [conv4.1, conv5] of OSNet or [layer4.2] of a ResNet. Empty: the head reads the backbone's own map.
    cfg.MODEL.BACKBONE.LAST_MODULES = []
    # Recompute block activations in the backward pass: less memory, about a third more time.
    cfg.MODEL.BACKBONE.GRAD_CHECKPOINT = False
    # Compile training steps by torch.compile: default (fused kernels), reduce-overhead (also CUDA graphs: one launch
    # replays a pass), or empty for none. On a GPU steps of prompts and cached anchors mostly wait for launches
    # (docs/benchmarks); the first step takes about half a minute. Values differ by rounding, dropout draws other masks.
    cfg.MODEL.COMPILE = ""

    # ---- data -----------------------------------------------------------------------------------------------------
    # Data sets of your own, or a registered one with other arguments, for DATASETS.NAMES, TESTS and VALIDATION: a list
    # of {NAME: shop, TYPE: CSVDataset, PATH: crops.csv}; further keys are the arguments of the class TYPE.
    # docs/own_data.md
    cfg.DATASETS.CUSTOM = []
    # Data sets whose query and gallery steer training and are apart from TESTS: every TEST.EVAL_PERIOD epochs they are
    # evaluated in the place of TESTS, and the run's result is its best state by them (mean of Rank-1 and mAP), with
    # which TESTS are evaluated once, at the end. Empty: the last state is the result. An entry of CUSTOM with
    # VALIDATION_SHARE: 0.2 keeps that share of its training people for this: <NAME>_validation.
    cfg.DATASETS.VALIDATION = []
    # Random erasing fills with normal noise in normalised space, one value per pixel. False: the host's
    # INPUT.REA.VALUE.
    cfg.INPUT.REA.PIXEL_NOISE = False
    # Share of the image that such a box covers.
    cfg.INPUT.REA.AREA = [0.02, 0.33333333]
    # Hide a part of training images, and keep what is hidden beside them (docs/training_occluders.md).
    cfg.INPUT.OCCLUDE = CN()
    cfg.INPUT.OCCLUDE.ENABLED = False
    # Share of the images (in a feature cache, of the views) that get an occluder.
    cfg.INPUT.OCCLUDE.PROB = 0.5
    # One of these is drawn for an image; a name given twice comes twice as often. rectangle: as random erasing (Zhong
    # et al. 2020); band: across the whole width, as BatchDropBlock (Dai et al. 2019); object: a rectangle of another
    # training image (CutMix, Yun et al. 2019; pasted obstacles, Chen et al. 2021); person: somebody else in front, cut
    # out where the set has masks (batch-wise inter-person occlusion of KPR, Somers et al. 2024).
    cfg.INPUT.OCCLUDE.KINDS = ["rectangle", "band", "object", "person"]
    # Least and greatest share of the person's visible pixels that is hidden; without masks, of the picture.
    cfg.INPUT.OCCLUDE.LEVEL = [0.1, 0.6]
    # What rectangles and bands are filled with, one drawn for an image: grey, mean (of the picture), noise, black.
    cfg.INPUT.OCCLUDE.FILLS = ["grey", "mean", "noise", "black"]
    # Whose people and objects are pasted. Empty: other people of the training set; or a data set by its name, which is
    # none of those that are evaluated: its query and gallery, or its training images where it has neither.
    cfg.INPUT.OCCLUDE.PEOPLE = ""
    # Give each image with nothing hidden or erased, too, else augmented alike: for terms that compare the two.
    cfg.INPUT.OCCLUDE.KEEP_WHOLE = False
    # Filter of the resize at test time: bicubic as FastReID (and training), or bilinear as the published code.
    cfg.INPUT.INTERPOLATION_TEST = "bicubic"
    # Worker processes of the test loader. -1: as DATALOADER.NUM_WORKERS.
    cfg.DATALOADER.NUM_WORKERS_TEST = -1

    # ---- cached features of a frozen backbone -----------------------------------------------------------------------
    cfg.CACHE = CN()
    # Train from cached outputs of the backbone instead of images. Needs a frozen one, of any kind.
    cfg.CACHE.ENABLED = False
    # Cached augmentation views of each image; training draws one at random. 1 with AUGMENT False: the test transform.
    cfg.CACHE.NUM_VIEWS = 4
    cfg.CACHE.AUGMENT = True
    # Which outputs of the backbone are kept: all that it gives, or some of patches, cls, proj, layer_cls (the token
    # layer's class token; LastBlockHead reads it); of FastReID's backbones, which give one map (B, D, h, w), map.
    cfg.CACHE.FIELDS = ["all"]
    # Evaluate DATASETS.TESTS from cached outputs, too, as DATASETS.VALIDATION always is: for many heads on one
    # backbone. --eval-only reads images all the same.
    cfg.CACHE.TESTS = False
    cfg.CACHE.DTYPE = "float16"  # float16, bfloat16 or float32
    # Folder of the cache. Empty: OUTPUT_DIR/feature_cache beside the stages.
    cfg.CACHE.DIR = ""
    # Seed of the augmented views, for runs of several seeds that share one cache. -1: SEED.
    cfg.CACHE.SEED = -1

    # ---- solver ---------------------------------------------------------------------------------------------------
    # autocast type where SOLVER.AMP.ENABLED: bfloat16 (CPU and GPU), float16 (GPU, with a gradient scaler), or auto:
    # bfloat16 where the device has instructions for it, else float16 on a GPU and none, hence float32, on a CPU.
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
    # The feature whose metrics are the result. auto: fusion where the head gives refined, cls and proj; else concat.
    # Others: refined, cls, proj, concat, orth, fusion, parts, feature for a head with one unnamed part, what a head of
    # your own names its parts, and registered features of your own.
    cfg.TEST.FEATURE = "auto"
    # Further features of the same pass, reported beside it. "all": every one that the head can give.
    cfg.TEST.REPORT = ["all"]
    # Neighbour feature centralisation; transductive, like AQE and RERANK.
    cfg.TEST.NFC = CN({"ENABLED": False, "K1": 2, "K2": 2})
    # Keep also the checkpoint with the best test metric. That selects a model on test data, and the output says so.
    cfg.TEST.SELECT_BEST = False

    for part in parts_with_keys():
        before = flatten(cfg)
        part.add_keys(cfg)
        after = flatten(cfg)
        changed = [key for key, value in before.items() if after.get(key, part) != value]
        if changed:
            raise ValueError(
                f"{part.__name__}.add_keys changes {', '.join(changed)}, which exists already; choose a key of its own"
            )


WRITERS = ("clearml", "mlflow", "wandb")  # names of the packages that must be importable, too
VALIDATION_OF = "_validation"  # behind an entry's NAME: the people whom its VALIDATION_SHARE keeps out of training


def reads_cameras(cfg: CN) -> bool:
    """Whether the model embeds camera ids."""
    domain = parts(DOMAIN_ANCHOR_REGISTRY).get(cfg.MODEL.SAGA.DOMAIN_ANCHORS)
    return cfg.MODEL.CLIP.SIE_CAMERA or getattr(domain, "reads_cameras", False)


def tower_gives(cfg: CN) -> tuple[str, ...]:
    """What the backbone gives beside patch tokens, of "cls" and "proj"; nothing where it gives a map.

    A backbone says it by two attributes of its builder: `gives`, the names, and `widths(cfg)`, their widths.
    """
    builder = registered(fastreid_registries().backbones).get(cfg.MODEL.BACKBONE.NAME)
    return tuple(getattr(builder, "gives", ())) if cfg.MODEL.BACKBONE.OUTPUT == "tokens" else ()


def tower_widths(cfg: CN) -> dict[str, int]:
    """Widths of what `tower_gives`, by name."""
    names = tower_gives(cfg)
    if not names:
        return {}
    builder = registered(fastreid_registries().backbones)[cfg.MODEL.BACKBONE.NAME]
    return {name: builder.widths(cfg)[name] for name in names}


def custom_datasets(cfg: CN) -> dict[str, tuple[type, dict]]:
    """Class and keyword arguments of each data set in DATASETS.CUSTOM, by name.

    Raises:
        ValueError: the first entry that cannot be one, and what is valid.
    """
    classes = registered(fastreid_registries().datasets)
    found: dict[str, tuple[type, dict]] = {}
    for entry in cfg.DATASETS.CUSTOM:
        if not isinstance(entry, dict) or not {"NAME", "TYPE"} <= set(entry):
            joined = isinstance(entry, dict) and any(":" in str(key) for key in entry)
            raise ValueError(
                f"DATASETS.CUSTOM: {entry!r} must have NAME and TYPE, such as "
                f"{{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}}"
                + (", with a space behind each colon" if joined else "")
            )
        name, kind = str(entry["NAME"]), str(entry["TYPE"])
        if name in found or name in classes:
            raise ValueError(f"DATASETS.CUSTOM: the name {name!r} is taken; choose another")
        # it opens the labels of people and cameras, so that those of several training sets stay apart
        if owner := next((n for n, c in classes.items() if getattr(c, "dataset_name", None) == name), None):
            raise ValueError(
                f"DATASETS.CUSTOM: with the name {name!r} people would have the labels of those of {owner}; choose "
                "another"
            )
        if "/" in name:
            raise ValueError(f"DATASETS.CUSTOM: the name {name!r} has a slash, which divides it from a person's name")
        if kind not in classes:
            raise ValueError(
                f"DATASETS.CUSTOM: {name} has TYPE {kind!r}, expected a registered data set such as CSVDataset or "
                f"FolderDataset.{did_you_mean(kind, classes)}"
            )
        cls = classes[kind]
        known = {p.name.upper(): p for p in own_parameters(cls)}
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
        if entry.get("VALIDATION_SHARE"):
            found[f"{name}{VALIDATION_OF}"] = cls, found[name][1] | {"validation": True}
    return found


def own_parameters(cls: type) -> list[inspect.Parameter]:
    """What a data set's class takes beside the root and the host's own keywords."""
    parameters = inspect.signature(cls).parameters.values()
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "root"]


def get_cfg() -> CN:
    """FastReID's default config with the plug-in's keys added."""
    cfg = fastreid_cfg()
    add_saga_config(cfg)
    return cfg


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key as "MODEL.SAGA.POOL", in order, with its value; tuples as the lists that YAML makes of them."""
    out: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out
