"""What a configuration must be to work, seen before anything is built or written.

Here are FastReID's keys and those of `config`; the keys of a part are checked by its class (`check`, see `registry`).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from fastreid.config import CfgNode as CN

from .compat import registered
from .config import VALIDATION_OF, WRITERS, custom_datasets, flatten, own_parameters, reads_cameras, tower_gives
from .data.occlude import KINDS
from .data.occluders import FILLS, MAX_LEVEL
from .errors import did_you_mean
from .evaluation.features import available_features
from .hardware import compiler_problem
from .registry import (
    DOMAIN_ANCHOR_REGISTRY,
    EVALUATION_FEATURE_REGISTRY,
    FASTREID_LOSSES,
    LOSS_REGISTRY,
    POOL_REGISTRY,
    computed_losses,
    fastreid_registries,
    parts,
)
from .structures import OUTPUTS
from .values import numbers, one_of, texts, within

__all__ = ["check_config", "check_configs"]


def check_config(cfg: CN) -> None:
    """Refuse what cannot work, before anything is built or written.

    Raises:
        ValueError: every problem found, one a line, each with what is valid or what to do.
    """
    check_configs({"": cfg})


def check_configs(cfgs: Mapping[str, CN]) -> None:
    """The same of several configurations, such as the stages of a run, by name."""
    found: dict[str, list[str]] = {}
    for name, cfg in cfgs.items():
        for problem in _problems(cfg):
            found.setdefault(problem, []).append(name)
    if found:
        lines = [
            problem if len(names) == len(cfgs) else f"{problem} (stage {', '.join(names)})"
            for problem, names in found.items()
        ]
        raise ValueError("this configuration cannot work:\n  " + "\n  ".join(lines))


def _problems(cfg: CN) -> list[str]:
    # what others look into comes first: a name or a list of another kind would stop them
    found = list(_check_lists(cfg))
    if not found:
        found = [problem for check in _CHECKS for problem in check(cfg)]
    return list(dict.fromkeys(found))


# ---- values by themselves -------------------------------------------------------------------------------------------

# Keys, as glob patterns, of lists of texts.
_TEXTS = """
    MODEL.FREEZE_LAYERS MODEL.TRAINABLE MODEL.NEW_WEIGHTS MODEL.ACCEPT_DIFFERENCES MODEL.EVAL_MODE MODEL.LOSSES.NAME
    MODEL.BACKBONE.LAST_MODULES MODEL.CLIP.CAMERAS KD.MODEL_CONFIG KD.MODEL_WEIGHTS DATASETS.NAMES DATASETS.TESTS
    DATASETS.VALIDATION CACHE.FIELDS TEST.REPORT INPUT.OCCLUDE.KINDS INPUT.OCCLUDE.FILLS WRITERS
""".split()
# Lists that must not be empty.
_FILLED = (
    "MODEL.LOSSES.NAME",
    "MODEL.CLIP.TOKEN_LAYERS",
    "DATASETS.TESTS",
    "CACHE.FIELDS",
    "INPUT.OCCLUDE.KINDS",
    "INPUT.OCCLUDE.FILLS",
)


def _check_lists(cfg: CN) -> Iterator[str]:
    """What lists hold."""
    for key in _TEXTS:
        yield from texts(cfg, key)
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.REA.VALUE"):
        yield from numbers(cfg, key, 3)
    if any(isinstance(x, (int, float)) and x <= 0 for x in cfg.MODEL.PIXEL_STD):
        yield f"MODEL.PIXEL_STD is {list(cfg.MODEL.PIXEL_STD)}; expected numbers above 0: images are divided by them"
    for key in ("INPUT.CROP.SCALE", "INPUT.REA.AREA"):
        yield from numbers(cfg, key, 2, 0, 1, rising=True)
    yield from numbers(cfg, "INPUT.CROP.RATIO", 2, 1e-3, rising=True)
    yield from numbers(cfg, "INPUT.OCCLUDE.LEVEL", 2, 0, MAX_LEVEL, rising=True)
    yield from numbers(cfg, "SOLVER.STEPS", None, 1, whole=True, rising=True)
    yield from numbers(cfg, "MODEL.BACKBONE.STRIDE_SIZE", 2, 1, whole=True)
    yield from numbers(cfg, "MODEL.CLIP.TOKEN_LAYERS", None, whole=True)
    yield from numbers(cfg, "DATALOADER.SET_WEIGHT", None, 0, whole=True)
    yield from _check_sizes(cfg)
    for key in _FILLED:
        if not flatten(cfg)[key]:
            yield f"{key} is empty; expected one entry or more{_FILLED_WHY.get(key, '')}"
    for entry in cfg.SOLVER.LR_FACTORS:
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not isinstance(entry[1], (int, float)) or entry[1] < 0:
            yield f'SOLVER.LR_FACTORS has {entry!r}; expected pairs of a pattern and a factor, such as ["heads.*", 0.1]'
    for pattern in cfg.MODEL.FREEZE_LAYERS:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield f"MODEL.FREEZE_LAYERS has {pattern!r}, no regular expression: {error}"


_FILLED_WHY = {"DATASETS.TESTS": ": training ends with an evaluation on them"}


def _check_sizes(cfg: CN) -> Iterator[str]:
    """Images of a batch have one size: that of SIZE_TRAIN or SIZE_TEST, or else of the crop."""
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        yield from numbers(cfg, "INPUT.CROP.SIZE", None, 1, whole=True)
        if len(crop.SIZE) not in (1, 2):
            yield f"INPUT.CROP.SIZE is {list(crop.SIZE)}; expected one number, of a square, or height and width"
    for key in ("SIZE_TRAIN", "SIZE_TEST"):
        size = list(cfg.INPUT[key])
        if crop.ENABLED:
            yield from numbers(cfg, f"INPUT.{key}", None, whole=True)
        elif len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            yield f"INPUT.{key} is {size}; expected height and width in pixels, such as [256, 128]"


_BELOW_ONE = {"low": 0, "high": 1, "below": True}
# What keys may be, by glob patterns; a key counts with its first pattern.
_RANGES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"low": -math.inf}, "MODEL.BACKBONE.SIE_COE"),
    ({"low": -math.inf, "high": 2**32 - 1}, "SEED"),
    ({"low": -1, "high": 2**32 - 1}, "CACHE.SEED"),
    ({"low": -1}, "DATALOADER.NUM_WORKERS_TEST"),
    ({"low": -1, "high": 1}, "MODEL.LOSSES.CE.EPSILON"),  # -1: FastReID's adaptive smoothing
    ({"low": 2}, "SOLVER.IMS_PER_BATCH"),  # batch norm takes statistics over it
    (
        {"low": 1},
        """
        SOLVER.MAX_EPOCH SOLVER.CHECKPOINT_PERIOD TEST.EVAL_PERIOD TEST.IMS_PER_BATCH DATALOADER.NUM_INSTANCE
        CACHE.NUM_VIEWS MODEL.BACKBONE.FEAT_DIM MODEL.BACKBONE.LAST_STRIDE MODEL.QUEUE_SIZE TEST.NFC.K? TEST.RERANK.K?
        TEST.AQE.QE_* TEST.PRECISE_BN.NUM_ITER
        """,
    ),
    (
        {"low": 0, "above": True},
        """
        MODEL.HEADS.SCALE MODEL.LOSSES.*.GAMMA SOLVER.GAMMA SOLVER.CLIP_GRADIENTS.CLIP_VALUE
        SOLVER.CLIP_GRADIENTS.NORM_TYPE
        """,
    ),
    (_BELOW_ONE, "MODEL.BACKBONE.*DROP_* SOLVER.MOMENTUM"),
    ({"low": 0, "high": 0.5}, "INPUT.CJ.HUE"),
    (
        {"low": 0, "high": 1},
        """
        INPUT.*.PROB MODEL.LOSSES.*.ALPHA MODEL.LOSSES.*.EPSILON KD.EMA.MOMENTUM TEST.RERANK.LAMBDA
        SOLVER.WARMUP_FACTOR
        """,
    ),
    (
        {"low": 0},
        """
        MODEL.HEADS.NUM_CLASSES MODEL.HEADS.EMBEDDING_DIM MODEL.HEADS.MARGIN MODEL.LOSSES.*.SCALE MODEL.LOSSES.*.MARGIN
        INPUT.PADDING.SIZE INPUT.CJ.* DATALOADER.NUM_WORKERS SOLVER.* TEST.*
        """,
    ),
)
_RANGE_OF = [(pattern, limits) for limits, patterns in _RANGES for pattern in patterns.split()]


def _check_numbers(cfg: CN) -> Iterator[str]:
    for key, value in flatten(cfg).items():
        if type(value) in (int, float):
            limits = next((limits for pattern, limits in _RANGE_OF if fnmatchcase(key, pattern)), None)
            if limits:
                yield from within(cfg, key, **limits)


# ---- names ----------------------------------------------------------------------------------------------------------

SCHEDULES = ("MultiStepLR", "CosineAnnealingLR", "WarmupCosineLR")
_NORMS = ("BN", "syncBN", "GhostBN", "FrozenBN", "GN")
# What a key of FastReID's or ours may name.
_NAMES: dict[str, tuple[str, ...]] = {
    "MODEL.COMPILE": ("", "default", "reduce-overhead"),
    "MODEL.BACKBONE.NORM": _NORMS,
    "MODEL.HEADS.NORM": _NORMS,
    "MODEL.HEADS.NECK_FEAT": ("before", "after"),
    "INPUT.PADDING.MODE": ("constant", "edge", "reflect", "symmetric"),
    "INPUT.INTERPOLATION_TEST": ("bilinear", "bicubic"),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "NaiveIdentitySampler",
        "BalancedIdentitySampler",
        "SetReWeightSampler",
        "ImbalancedDatasetSampler",
    ),
    "CACHE.DTYPE": ("float16", "bfloat16", "float32"),
    "CACHE.FIELDS": ("all", *OUTPUTS),
    "SOLVER.SCHED": SCHEDULES,
    "SOLVER.WARMUP_METHOD": ("constant", "linear", "exp"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("norm", "value"),
    "SOLVER.AMP.DTYPE": ("auto", "bfloat16", "float16"),
    "TEST.METRIC": ("cosine", "euclidean"),
}
# MODEL.BACKBONE.DEPTH of FastReID's own backbones.
DEPTHS = {
    "build_resnet_backbone": "18x 34x 50x 101x",
    "build_resnext_backbone": "50x 101x",
    "build_resnest_backbone": "50x 101x 200x 269x",
    "build_osnet_backbone": "x1_0 x0_75 x0_5 x0_25",
    "build_mobilenetv2_backbone": "1.0x 0.75x 0.5x 0.35x 0.25x 0.1x",
    "build_mobilenetv3_backbone": "Large Small",
    "build_shufflenetv2_backbone": "0.5x 1.0x 1.5x 2.0x",
    "build_repvgg_backbone": "A0 A1 A2 B0 B1 B1g2 B1g4 B2 B2g2 B2g4 B3 B3g2 B3g4",
    "build_vit_backbone": "small base",
    "build_regnet_backbone": "200x 200y 400x 400y 800x 800y 1600x 1600y 3200x 3200y 4000x 4000y 6400x 6400y",
    "build_effnet_backbone": "b0 b1 b2 b3 b4 b5",
}


def _check_names(cfg: CN) -> Iterator[str]:
    """What a key may name."""
    from fastreid.layers import any_softmax, pooling

    registries = fastreid_registries()
    yield from one_of(cfg, "MODEL.META_ARCHITECTURE", registered(registries.meta_arch))
    yield from one_of(cfg, "MODEL.BACKBONE.NAME", registered(registries.backbones))
    yield from one_of(cfg, "MODEL.HEADS.NAME", registered(registries.heads))
    yield from one_of(cfg, "MODEL.HEADS.POOL_LAYER", pooling.__all__)
    yield from one_of(cfg, "MODEL.HEADS.CLS_LAYER", any_softmax.__all__)
    yield from one_of(cfg, "MODEL.SAGA.DOMAIN_ANCHORS", parts(DOMAIN_ANCHOR_REGISTRY))
    yield from one_of(cfg, "MODEL.SAGA.POOL", parts(POOL_REGISTRY))
    yield from one_of(cfg, "SOLVER.OPT", _optimizers())
    yield from one_of(cfg, "WRITERS", WRITERS)
    if not cfg.WRITER_PROJECT:
        yield "WRITER_PROJECT is empty; expected a name"
    for key, valid in _NAMES.items():
        yield from one_of(cfg, key, valid)
    if depths := DEPTHS.get(cfg.MODEL.BACKBONE.NAME):
        yield from one_of(cfg, "MODEL.BACKBONE.DEPTH", depths.split())
    if not cfg.OUTPUT_DIR:
        yield "OUTPUT_DIR is empty; expected a folder"
    for pattern in cfg.MODEL.ACCEPT_DIFFERENCES:
        if not any(fnmatchcase(key, pattern) for key in (*flatten(cfg), "identities", "cameras")):
            yield (
                f"MODEL.ACCEPT_DIFFERENCES: {pattern!r} matches no key; expected such as INPUT.SIZE_TEST, identities "
                "or cameras"
            )


def _optimizers() -> list[str]:
    """PyTorch's, but for those that need a closure, sparse gradients or matrices alone."""
    import torch

    classes = {name: value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    found = [name for name, value in classes.items() if issubclass(value, torch.optim.Optimizer)]
    return [name for name in found if name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")]


# ---- parts ----------------------------------------------------------------------------------------------------------


def _check_losses(cfg: CN) -> Iterator[str]:
    """Every named term is computed by the model."""
    meta_arch = registered(fastreid_registries().meta_arch).get(cfg.MODEL.META_ARCHITECTURE)
    head = registered(fastreid_registries().heads).get(cfg.MODEL.HEADS.NAME)
    if meta_arch is None or head is None:
        return  # said by _check_names
    terms, computed = parts(LOSS_REGISTRY), computed_losses(meta_arch, head)
    ours = getattr(meta_arch, "registered_losses", False)
    for name in cfg.MODEL.LOSSES.NAME:
        if name not in computed:
            hint = "" if name in terms or name in FASTREID_LOSSES else did_you_mean(name, {*terms, *FASTREID_LOSSES})
            yield (
                f"MODEL.LOSSES.NAME names {name}, which {cfg.MODEL.HEADS.NAME} under {cfg.MODEL.META_ARCHITECTURE} "
                f"does not compute; it computes {', '.join(sorted(computed))}.{hint}"
            )
        elif ours and hasattr(terms.get(name), "check"):
            yield from terms[name].check(cfg)


def _check_parts(cfg: CN) -> Iterator[str]:
    """What the named model, backbone and head say of themselves, and the features that it may be ranked by."""
    model = cfg.MODEL
    for registry, name in (
        (fastreid_registries().meta_arch, model.META_ARCHITECTURE),
        (fastreid_registries().backbones, model.BACKBONE.NAME),
        (fastreid_registries().heads, model.HEADS.NAME),
    ):
        check = getattr(registered(registry).get(name), "check", None)
        if check is not None:
            yield from check(cfg)
    for feature in parts(EVALUATION_FEATURE_REGISTRY).values():
        if hasattr(feature, "check"):
            yield from feature.check(cfg)
    if model.BACKBONE.LAST_MODULES and model.META_ARCHITECTURE != "SAGABaseline":
        yield "MODEL.BACKBONE.LAST_MODULES are left to the head by MODEL.META_ARCHITECTURE SAGABaseline alone"
    if reads_cameras(cfg) and model.META_ARCHITECTURE != "SAGABaseline":
        yield "camera embeddings reach the model through MODEL.META_ARCHITECTURE SAGABaseline"
    if model.CLIP.SIE_CAMERA and model.BACKBONE.NAME != "build_clip_vit_backbone":
        yield (
            f"MODEL.CLIP.SIE_CAMERA adds cameras to CLIP's class token, and {model.BACKBONE.NAME} takes none: set it "
            "False; MODEL.SAGA.DOMAIN_ANCHORS camera works with any backbone"
        )


def _check_features(cfg: CN) -> Iterator[str]:
    """The evaluated features are among those that the head gives."""
    meta_arch = registered(fastreid_registries().meta_arch).get(cfg.MODEL.META_ARCHITECTURE)
    head = registered(fastreid_registries().heads).get(cfg.MODEL.HEADS.NAME)
    if meta_arch is None or head is None:
        return  # said by _check_names
    names = ["feature"]
    if hasattr(meta_arch, "feature_layout") and hasattr(head, "feature_layout"):
        if _home(head, "feature_parts") != _home(head, "feature_layout"):
            return  # a head that does not say it before it is built; the trainer looks then
        names = head.feature_parts(cfg)
    features = available_features(dict.fromkeys(names, 1))
    yield from one_of(cfg, "TEST.FEATURE", ("auto", *features))
    yield from one_of(cfg, "TEST.REPORT", ("all", *features))


def _home(cls: type, name: str) -> type | None:
    """The class that a class has an attribute from."""
    return next((base for base in cls.__mro__ if name in vars(base)), None)


# ---- what goes together ---------------------------------------------------------------------------------------------


def _check_datasets(cfg: CN) -> Iterator[str]:
    try:
        custom = custom_datasets(cfg)
    except ValueError as error:
        yield str(error)
    else:
        # a class with arguments of its own to give is used through DATASETS.CUSTOM
        classes = registered(fastreid_registries().datasets)
        plain = {n for n, c in classes.items() if all(p.default is not p.empty for p in own_parameters(c))}
        for key in ("NAMES", "TESTS", "VALIDATION"):
            for name in cfg.DATASETS[key]:
                if name in classes and name not in plain and name not in custom:
                    yield f"DATASETS.{key}: {name} is set up by an entry of DATASETS.CUSTOM; name that entry"
            without = {name for name in cfg.DATASETS[key] if name not in custom and _entry_of(name) in custom}
            for name in sorted(without):
                yield (
                    f"DATASETS.{key}: {name} needs a VALIDATION_SHARE, such as 0.2, in the entry {_entry_of(name)} of "
                    "DATASETS.CUSTOM"
                )
            others = set(cfg.DATASETS[key]) & set(classes)
            yield from one_of(cfg, f"DATASETS.{key}", plain | set(custom) | others | without)
    validation = list(cfg.DATASETS.VALIDATION)
    for key in ("NAMES", "TESTS"):
        shared = [name for name in validation if name in cfg.DATASETS[key]]
        if shared:
            yield f"DATASETS.VALIDATION names {', '.join(shared)}, as DATASETS.{key} does: it must be apart from it"
    for key in ("NAMES", "TESTS", "VALIDATION"):
        names = list(cfg.DATASETS[key])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"DATASETS.{key} names {', '.join(twice)} twice"
    if validation and cfg.TEST.SELECT_BEST:
        yield "TEST.SELECT_BEST selects on test data, DATASETS.VALIDATION on data apart from it: one of the two"
    yield from _check_batch(cfg)


def _entry_of(name: str) -> str:
    """The entry whose people for validation a name stands for."""
    return name.removesuffix(VALIDATION_OF)


def _check_batch(cfg: CN) -> Iterator[str]:
    """A batch holds whole identities."""
    sampler, batch, images = cfg.DATALOADER.SAMPLER_TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if "Identity" in sampler and images > 0 and batch % images:
        yield f"SOLVER.IMS_PER_BATCH {batch} is no multiple of DATALOADER.NUM_INSTANCE {images}"
    if sampler == "SetReWeightSampler":
        share = sum(cfg.DATALOADER.SET_WEIGHT) * images
        if share < 1 or batch % share or batch <= share:
            yield (
                f"SetReWeightSampler: SOLVER.IMS_PER_BATCH {batch} must be two or more times the sum of "
                f"DATALOADER.SET_WEIGHT {list(cfg.DATALOADER.SET_WEIGHT)} by DATALOADER.NUM_INSTANCE {images}"
            )


def _check_compile(cfg: CN) -> Iterator[str]:
    model, device = cfg.MODEL, cfg.MODEL.DEVICE.split(":")[0]
    if not model.COMPILE:
        return
    if model.META_ARCHITECTURE != "SAGABaseline":
        yield f"MODEL.COMPILE compiles steps of MODEL.META_ARCHITECTURE SAGABaseline, not of {model.META_ARCHITECTURE}"
    if model.COMPILE == "reduce-overhead" and device != "cuda":
        yield f"MODEL.COMPILE reduce-overhead replays CUDA graphs, and MODEL.DEVICE is {model.DEVICE}: use default"
    if problem := compiler_problem(device):
        yield f"MODEL.COMPILE {model.COMPILE}: torch.compile does not work here: {problem}"


def _check_solver(cfg: CN) -> Iterator[str]:
    solver = cfg.SOLVER
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE.split(":")[0] == "cpu":
        yield "SOLVER.AMP.DTYPE float16 needs a GPU; use auto or bfloat16 on the CPU"
    if solver.SCHED == "WarmupCosineLR" and solver.WARMUP_ITERS:
        yield "SOLVER.SCHED WarmupCosineLR warms up by SOLVER.WARMUP_EPOCHS; set SOLVER.WARMUP_ITERS 0"
    if solver.SCHED == "CosineAnnealingLR" and solver.DELAY_EPOCHS >= solver.MAX_EPOCH:
        yield (
            f"SOLVER.DELAY_EPOCHS {solver.DELAY_EPOCHS} leaves no epoch of SOLVER.MAX_EPOCH {solver.MAX_EPOCH} to "
            "CosineAnnealingLR; lower it"
        )
    if solver.OPT == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.NESTEROV needs a SOLVER.MOMENTUM above 0"
    if solver.PATIENCE and not cfg.DATASETS.VALIDATION:
        yield (
            f"SOLVER.PATIENCE {solver.PATIENCE} counts evaluations of DATASETS.VALIDATION: 0 or more, and 0 without "
            "such a set"
        )


def _check_cache(cfg: CN) -> Iterator[str]:
    if not cfg.CACHE.ENABLED:
        if cfg.CACHE.TESTS:
            yield "CACHE.TESTS evaluates from the cache that a run trains from: set CACHE.ENABLED True, too"
        return
    meta_arch = registered(fastreid_registries().meta_arch).get(cfg.MODEL.META_ARCHITECTURE)
    if meta_arch is not None and not getattr(meta_arch, "reads_cached_features", False):
        yield (
            "CACHE.ENABLED trains the head from cached outputs of the backbone, which MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} does not read: set SAGABaseline, which runs any backbone and head"
        )
    if "backbone" in cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
        yield (
            "CACHE.ENABLED needs a backbone that stays frozen, and MODEL.FREEZE_LAYERS opens it after "
            f"SOLVER.FREEZE_ITERS {cfg.SOLVER.FREEZE_ITERS}: take it out there; MODEL.TRAINABLE ['heads.*'] freezes it"
        )
    kept = set(cfg.CACHE.FIELDS)
    read = [k for k, v in (("DATASETS.VALIDATION", cfg.DATASETS.VALIDATION), ("DATASETS.TESTS", cfg.CACHE.TESTS)) if v]
    given = tower_gives(cfg)
    if read and "all" not in kept and not set(given) <= kept:
        yield f"{read[0]} is read from the feature cache, too, for evaluation: CACHE.FIELDS with {' and '.join(given)}"


def _check_input(cfg: CN) -> Iterator[str]:
    if cfg.INPUT.AFFINE.ENABLED:
        yield "INPUT.AFFINE does not run: FastReID 1.4.0 passes torchvision an argument that is gone"
    keys = cfg.INPUT.OCCLUDE
    yield from one_of(cfg, "INPUT.OCCLUDE.KINDS", KINDS)
    yield from one_of(cfg, "INPUT.OCCLUDE.FILLS", FILLS)
    if not keys.ENABLED:
        if keys.KEEP_WHOLE:
            yield "INPUT.OCCLUDE.KEEP_WHOLE keeps what an occluder hides: set INPUT.OCCLUDE.ENABLED True, too"
        return
    for name in ("AUTOAUG", "AUGMIX", "RPT"):
        if cfg.INPUT[name].ENABLED:
            yield f"INPUT.OCCLUDE keeps true masks, which cannot follow INPUT.{name}: enable one of the two"
    if cfg.CACHE.ENABLED and not cfg.CACHE.AUGMENT:
        yield "INPUT.OCCLUDE is an augmentation and CACHE.AUGMENT is False: set it True, or INPUT.OCCLUDE.ENABLED False"
    if keys.PEOPLE in {*cfg.DATASETS.TESTS, *cfg.DATASETS.VALIDATION}:
        yield (
            f"INPUT.OCCLUDE.PEOPLE is {keys.PEOPLE}, which is evaluated: its people would be seen in training. Name "
            "another data set, or none for the training set's own people"
        )


def _check_test(cfg: CN) -> Iterator[str]:
    test = cfg.TEST
    if test.NFC.K2 > test.NFC.K1:
        yield f"TEST.NFC.K2 {test.NFC.K2} is more than TEST.NFC.K1 {test.NFC.K1}; expected at most as many"


_CHECKS = (
    _check_numbers,
    _check_names,
    _check_losses,
    _check_parts,
    _check_features,
    _check_compile,
    _check_datasets,
    _check_solver,
    _check_cache,
    _check_input,
    _check_test,
)
