"""The configuration: the keys that this package adds to FastReID's, and what it refuses before anything is built.

Each key has one default and one comment. Keys of a head, a loss, a pool, a kind of domain anchors or an evaluation
feature stand in its class (`add_keys`), with their check (`check`); so do those of a part that `--import` brings. The
others are here. FastReID's keys keep FastReID's meaning.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from fastreid.config import CfgNode as CN
from fastreid.config import get_cfg as fastreid_cfg

from .compat import registered
from .hardware import compiler_problem
from .registry import (
    DOMAIN_ANCHOR_REGISTRY,
    FASTREID_LOSSES,
    LOSS_REGISTRY,
    POOL_REGISTRY,
    computed_losses,
    fastreid_registries,
    parts,
    parts_with_keys,
)

__all__ = [
    "add_saga_config",
    "check_config",
    "clip_tokens",
    "custom_datasets",
    "flatten",
    "get_cfg",
    "option_values",
    "reads_cameras",
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

    # ---- data -----------------------------------------------------------------------------------------------------
    # Data sets of your own, or a registered one with other arguments, for DATASETS.NAMES, TESTS and VALIDATION: a list
    # of {NAME: shop, TYPE: CSVDataset, PATH: crops.csv}; further keys are the arguments of the class TYPE.
    # docs/own_data.md
    cfg.DATASETS.CUSTOM = []
    # Data sets whose query and gallery steer training and are apart from TESTS: every TEST.EVAL_PERIOD epochs they are
    # evaluated in the place of TESTS, and the run's result is its best state by them (mean of Rank-1 and mAP), with
    # which TESTS are evaluated once, at the end. Empty: the last state is the result.
    cfg.DATASETS.VALIDATION = []
    # Random erasing fills with normal noise in normalised space, one value per pixel. False: the host's
    # INPUT.REA.VALUE.
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

    for part in parts_with_keys():
        before = flatten(cfg)
        part.add_keys(cfg)
        after = flatten(cfg)
        changed = [key for key, value in before.items() if after.get(key, part) != value]
        if changed:
            raise ValueError(
                f"{part.__name__}.add_keys changes {', '.join(changed)}, which exists already; choose a key of its own"
            )


SCHEDULES = ("MultiStepLR", "CosineAnnealingLR", "WarmupCosineLR")


def reads_cameras(cfg: CN) -> bool:
    """Whether the model embeds camera ids."""
    domain = parts(DOMAIN_ANCHOR_REGISTRY).get(cfg.MODEL.SAGA.DOMAIN_ANCHORS)
    return cfg.MODEL.CLIP.SIE_CAMERA or getattr(domain, "reads_cameras", False)


def clip_tokens(cfg: CN) -> bool:
    """Whether the backbone gives CLIP's class token and its projection beside the patch tokens."""
    return cfg.MODEL.BACKBONE.NAME == "build_clip_vit_backbone" and cfg.MODEL.BACKBONE.OUTPUT == "tokens"


def custom_datasets(cfg: CN) -> dict[str, tuple[type, dict]]:
    """Class and keyword arguments of each data set in DATASETS.CUSTOM, by name.

    Raises:
        ValueError: the first entry that cannot be one, and what is valid.
    """
    classes = registered(fastreid_registries().datasets)
    found: dict[str, tuple[type, dict]] = {}
    for entry in cfg.DATASETS.CUSTOM:
        if not isinstance(entry, dict) or not {"NAME", "TYPE"} <= set(entry):
            raise ValueError(
                f"DATASETS.CUSTOM: {entry!r} must have NAME and TYPE, such as "
                f"{{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}}"
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
            close = difflib.get_close_matches(kind, classes, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"DATASETS.CUSTOM: {name} has TYPE {kind!r}, expected a registered data set such as CSVDataset or "
                f"FolderDataset{hint}"
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


# ---- what cannot work ---------------------------------------------------------------------------------------------


def check_config(cfg: CN) -> None:
    """Refuse what cannot work, before anything is built or written.

    Raises:
        ValueError: every problem found, one a line, each with what is valid or what to do.
    """
    checks = (
        _check_names,
        _check_losses,
        _check_parts,
        _check_compile,
        _check_datasets,
        _check_solver,
        _check_cache,
        _check_input,
    )
    problems = [problem for check in checks for problem in check(cfg)]
    if problems:
        raise ValueError("this configuration cannot work:\n  " + "\n  ".join(problems))


def _one_of(key: str, value: Any, valid: Collection[Any]) -> Iterator[str]:
    if value not in valid:
        close = difflib.get_close_matches(str(value), [str(v) for v in valid], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        yield f"{key} is {value!r}; valid: {', '.join(map(str, sorted(valid)))}.{hint}"


def _check_names(cfg: CN) -> Iterator[str]:
    """What a key may name."""
    import torch

    model = cfg.MODEL
    yield from _one_of("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, registered(fastreid_registries().meta_arch))
    yield from _one_of("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, registered(fastreid_registries().backbones))
    yield from _one_of("MODEL.HEADS.NAME", model.HEADS.NAME, registered(fastreid_registries().heads))
    yield from _one_of("MODEL.SAGA.DOMAIN_ANCHORS", model.SAGA.DOMAIN_ANCHORS, parts(DOMAIN_ANCHOR_REGISTRY))
    yield from _one_of("MODEL.SAGA.POOL", model.SAGA.POOL, parts(POOL_REGISTRY))
    yield from _one_of("MODEL.COMPILE", model.COMPILE, ("", "default", "reduce-overhead"))
    yield from _one_of("SOLVER.SCHED", cfg.SOLVER.SCHED, SCHEDULES)
    yield from _one_of("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, ("auto", "bfloat16", "float16"))
    yield from _one_of("CACHE.DTYPE", cfg.CACHE.DTYPE, ("float16", "bfloat16", "float32"))
    yield from _one_of("INPUT.INTERPOLATION_TEST", cfg.INPUT.INTERPOLATION_TEST, ("bilinear", "bicubic"))
    for pattern in model.ACCEPT_DIFFERENCES:
        if not any(fnmatchcase(key, pattern) for key in (*flatten(cfg), "identities", "cameras")):
            yield (
                f"MODEL.ACCEPT_DIFFERENCES: {pattern!r} matches no key; expected such as INPUT.SIZE_TEST, identities "
                "or cameras"
            )
    if not hasattr(torch.optim, cfg.SOLVER.OPT):
        yield f"SOLVER.OPT is {cfg.SOLVER.OPT!r}; expected the name of a torch.optim class, such as AdamW"


def _check_losses(cfg: CN) -> Iterator[str]:
    """Every named term is computed by the model."""
    meta_arch = registered(fastreid_registries().meta_arch).get(cfg.MODEL.META_ARCHITECTURE)
    head = registered(fastreid_registries().heads).get(cfg.MODEL.HEADS.NAME)
    if meta_arch is None or head is None:
        return  # said by _check_names
    terms, computed = parts(LOSS_REGISTRY), computed_losses(meta_arch, head)
    for name in cfg.MODEL.LOSSES.NAME:
        if name not in computed:
            close = difflib.get_close_matches(name, {*terms, *FASTREID_LOSSES}, n=1)
            hint = f". Did you mean {close[0]}?" if close and close[0] != name else ""
            yield (
                f"MODEL.LOSSES.NAME names {name}, which {cfg.MODEL.HEADS.NAME} under {cfg.MODEL.META_ARCHITECTURE} "
                f"does not compute; it computes {', '.join(sorted(computed))}{hint}"
            )
        elif hasattr(terms.get(name), "check"):
            yield from terms[name].check(cfg)


def _check_parts(cfg: CN) -> Iterator[str]:
    """What the named model, backbone and head say of themselves."""
    model = cfg.MODEL
    for registry, name in (
        (fastreid_registries().meta_arch, model.META_ARCHITECTURE),
        (fastreid_registries().backbones, model.BACKBONE.NAME),
        (fastreid_registries().heads, model.HEADS.NAME),
    ):
        check = getattr(registered(registry).get(name), "check", None)
        if check is not None:
            yield from check(cfg)
    if reads_cameras(cfg) and model.META_ARCHITECTURE != "SAGABaseline":
        yield "camera embeddings reach the model through MODEL.META_ARCHITECTURE SAGABaseline"


def _check_datasets(cfg: CN) -> Iterator[str]:
    try:
        custom = custom_datasets(cfg)
    except ValueError as error:
        yield str(error)
    else:
        # a class with arguments of its own to give is used through DATASETS.CUSTOM
        classes = registered(fastreid_registries().datasets)
        plain = {n for n, c in classes.items() if all(p.default is not p.empty for p in _own_parameters(c))}
        for key in ("NAMES", "TESTS", "VALIDATION"):
            for name in cfg.DATASETS[key]:
                if name in classes and name not in plain:
                    yield f"DATASETS.{key}: {name} is set up by an entry of DATASETS.CUSTOM; name that entry"
                else:
                    yield from _one_of(f"DATASETS.{key}", name, plain | set(custom))
    validation = list(cfg.DATASETS.VALIDATION)
    for key in ("NAMES", "TESTS"):
        shared = [name for name in validation if name in cfg.DATASETS[key]]
        if shared:
            yield f"DATASETS.VALIDATION names {', '.join(shared)}, as DATASETS.{key} does: it must be apart from it"
    if validation and cfg.TEST.SELECT_BEST:
        yield "TEST.SELECT_BEST selects on test data, DATASETS.VALIDATION on data apart from it: one of the two"
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    by_identity = "Sampler" in sampler and "Identity" in sampler
    if by_identity and cfg.SOLVER.IMS_PER_BATCH % cfg.DATALOADER.NUM_INSTANCE:
        yield (
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of DATALOADER.NUM_INSTANCE "
            f"{cfg.DATALOADER.NUM_INSTANCE}"
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
    if cfg.TEST.EVAL_PERIOD < 1:
        yield f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}; it counts epochs, 1 or more (the last is always evaluated)"
    if solver.CHECKPOINT_PERIOD < 1:
        yield f"SOLVER.CHECKPOINT_PERIOD is {solver.CHECKPOINT_PERIOD}; it counts epochs, 1 or more"
    if solver.SCHED == "WarmupCosineLR" and solver.WARMUP_ITERS:
        yield "SOLVER.SCHED WarmupCosineLR warms up by SOLVER.WARMUP_EPOCHS; set SOLVER.WARMUP_ITERS 0"
    if solver.PATIENCE < 0 or (solver.PATIENCE and not cfg.DATASETS.VALIDATION):
        yield (
            f"SOLVER.PATIENCE {solver.PATIENCE} counts evaluations of DATASETS.VALIDATION: 0 or more, and 0 without "
            "such a set"
        )


def _check_cache(cfg: CN) -> Iterator[str]:
    if not cfg.CACHE.ENABLED:
        return
    if cfg.MODEL.BACKBONE.NAME != "build_clip_vit_backbone" or cfg.MODEL.META_ARCHITECTURE != "SAGABaseline":
        yield (
            "CACHE.ENABLED keeps CLIP's tokens: it needs MODEL.BACKBONE.NAME build_clip_vit_backbone and "
            "MODEL.META_ARCHITECTURE SAGABaseline"
        )
    if cfg.DATASETS.VALIDATION and not {"cls", "proj"} <= set(cfg.CACHE.FIELDS):
        yield "DATASETS.VALIDATION is read from the feature cache, too, for evaluation: CACHE.FIELDS with cls and proj"


def _check_input(cfg: CN) -> Iterator[str]:
    if cfg.INPUT.AFFINE.ENABLED:
        yield "INPUT.AFFINE does not run: FastReID 1.4.0 passes torchvision an argument that is gone"


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
                f'{key} is {value!r}; expected a list in quotes, such as "{example}", with text of special characters '
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
