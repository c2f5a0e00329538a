"""How long steps and extraction take, against the same computation done the plain way, in one process and in turn.

Before anything is timed, the values and gradients of the plain way (`plain`) must equal ours.

B images, N patches, D token width, W text width, E joint width, K text anchors, M domain anchors, C identities.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage

from .. import compat
from ..data import loaders
from ..engine import stages
from ..engine.trainer import SAGATrainer
from ..hardware import machine
from ..modeling.prompt_head import PromptHead
from ..modeling.saga_head import SAGAHead
from ..synthetic import drawn as synthetic
from .measure import count_flops, in_turn, matmul_peak, peak_memory, quartiles, seconds
from .plain import (
    PlainTextTower,
    plain_anchor_losses,
    plain_anchors,
    plain_copy,
    plain_prompt_losses,
    plain_refined,
    plainly,
)

__all__ = [
    "CASES",
    "SIZES",
    "SMOKE",
    "Case",
    "Size",
    "run",
    "table",
    "tower_flops",
]

# Largest difference of a value or gradient between the two ways, over the largest entry of that tensor.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Size:
    """What is measured at one size.

    Attributes:
        config: file under configs/SAGA whose stages are measured. opts: KEY, VALUE on top of it.
        identities, images: C, and training images of an identity.
        batch: of the prompt and anchor steps. backbone_batch, extraction_batch: of these two.
        loading_images: least number of test images drawn to measure loading.
        rounds: of each case, where the command names none.
        targets: least ratio of a case on 2 cores in float32.
    """

    config: str
    opts: tuple = ()
    identities: int = 702
    images: int = 22
    batch: int = 64
    backbone_batch: int = 64
    extraction_batch: int = 64
    loading_images: int = 128
    rounds: int = 5
    matmul_sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    targets: tuple[tuple[str, float], ...] = ()


_TARGETS = (("prompts", 3.5), ("anchors_cached", 2.0), ("extraction", 1.3))
SIZES = {
    "tiny": Size(
        "quickstart.yml",
        identities=400,
        images=12,
        loading_images=1024,
        rounds=15,
        targets=_TARGETS,
    ),
    "base": Size("occ_duke.yml", backbone_batch=16, extraction_batch=32, targets=_TARGETS),
    "large": Size(
        "occ_duke.yml",
        ("MODEL.CLIP.NAME", "ViT-L-14-quickgelu", "MODEL.BACKBONE.FEAT_DIM", 1024, "MODEL.CLIP.TOKEN_LAYERS", "[18]"),
        backbone_batch=4,
        extraction_batch=8,
        rounds=3,
        targets=_TARGETS,
    ),
}
# The code paths of every case in seconds, for tests: what it prints as times means nothing.
SMOKE = Size(
    "quickstart.yml",
    identities=6,
    images=4,
    batch=8,
    backbone_batch=8,
    extraction_batch=4,
    loading_images=32,
    rounds=2,
    matmul_sizes=(64, 96),
    targets=(("prompts", 0.0),),
)


@dataclass
class Case:
    """One comparison: two closures that compute the same.

    Attributes:
        plain: what the plain way is, in words.
        run_plain, run_ours: one step, or one batch.
        values_plain, values_ours: name -> tensor, what must be equal; nothing is changed by them.
    """

    name: str
    plain: str
    images: int
    run_plain: Callable[[], Any]
    run_ours: Callable[[], Any]
    values_plain: Callable[[], dict[str, Tensor]]
    values_ours: Callable[[], dict[str, Tensor]]


# ---- models and batches -----------------------------------------------------------------------------------------------


class _Setting:
    """Configs, models and batches of a size."""

    def __init__(self, size: Size, configs: Path, device: str):
        self.size, self.device = size, device
        opts = [
            *size.opts,
            *("MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", size.identities),
            *("SOLVER.AMP.ENABLED", False, "MODEL.DEVICE", device),
        ]
        self.cfgs = {r.name: r.cfg for r in stages.plan(configs / size.config, opts)}

    def model(self, stage: str) -> nn.Module:
        torch.manual_seed(0)
        with compat.quiet_host():
            return SAGATrainer.build_model(self.cfgs[stage])

    def pair(self, stage: str) -> tuple[nn.Module, nn.Module]:
        """Our model of a stage, and a copy of its structure for the plain way."""
        model = self.model(stage)
        return model, plain_copy(model)

    def images(self, count: int) -> Tensor:
        """(count, 3, H, W) random, 0..255."""
        return torch.rand(count, 3, *self.cfgs["anchors"].INPUT.SIZE_TRAIN, device=self.device) * 255

    def identity_batch(self, count: int) -> Tensor:
        """Labels of a training batch in groups of NUM_INSTANCE."""
        instances = self.cfgs["anchors"].DATALOADER.NUM_INSTANCE
        labels = torch.randperm(self.size.identities)[: max(1, count // instances)].repeat_interleave(instances)
        return labels[:count].to(self.device)

    def random_batch(self, count: int) -> Tensor:
        """Labels of a batch drawn from all training images, as the prompt stage draws it: few identities repeat."""
        images = torch.arange(self.size.identities).repeat_interleave(self.size.images)
        return images[torch.randperm(len(images))[:count]].to(self.device)


def _cached(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What a feature cache holds of random images: float16 tower outputs."""
    with torch.no_grad():
        features = model.extract({"images": images})
    return {name: getattr(features, name).half() for name in names}


def _step(optimizer: torch.optim.Optimizer, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """FastReID's training step."""

    def step() -> None:
        terms = losses()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()

    return step


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    found = [
        (m, name, getattr(m, name))
        for m in model.modules()
        for kind, name in ((nn.Dropout, "p"), (nn.MultiheadAttention, "dropout"))
        if isinstance(m, kind)
    ]
    try:
        for module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _loss_and_gradients(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every loss term and every gradient, without dropout: the two ways draw their masks in another order."""
    model.zero_grad(set_to_none=True)
    with _without_dropout(model):
        terms = losses()
        sum(terms.values()).backward()
    out = {k: v.detach() for k, v in terms.items()}
    out |= {f"grad {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out


def _training_case(
    name: str, words: str, images: int, cfg: CfgNode, pair: tuple[nn.Module, nn.Module], ours: Callable, plain: Callable
) -> Case:
    model, copied = (m.train() for m in pair)
    plain = plainly(plain)
    optimizers = [SAGATrainer.build_optimizer(cfg, m)[0] for m in (model, copied)]
    return Case(
        name,
        words,
        images,
        run_plain=_step(optimizers[1], plain),
        run_ours=_step(optimizers[0], ours),
        values_plain=lambda: _loss_and_gradients(copied, plain),
        values_ours=lambda: _loss_and_gradients(model, ours),
    )


# ---- cases ------------------------------------------------------------------------------------------------------------


def _prompts(s: _Setting) -> Case:
    model, plain = pair = s.pair("prompts")
    assert isinstance(model.heads, PromptHead)
    batch = _cached(model, s.images(s.size.batch), ("cls", "proj")) | {"targets": s.random_batch(s.size.batch)}
    text = PlainTextTower(plain.heads.text_encoder)
    words = "77 text rows, every block on all of them, one prompt for every image of the batch"
    ours, by_hand = lambda: model(batch), lambda: plain_prompt_losses(plain, text, batch)
    return _training_case("prompts", words, s.size.batch, s.cfgs["prompts"], pair, ours, by_hand)


def _backbone(s: _Setting) -> Case:
    model, plain = pair = s.pair("backbone")
    count = s.size.backbone_batch
    batch = {"images": s.images(count), "targets": s.identity_batch(count)}
    _, prompts = s.pair("prompts")
    share = max(1, round(count / s.size.images))  # C identities over the C * images / count steps of an epoch
    labels = torch.arange(share, device=s.device) % s.size.identities
    text = PlainTextTower(prompts.heads.text_encoder)
    with torch.no_grad():
        model.heads.text_features.normal_()

    def by_hand() -> dict[str, Tensor]:
        with torch.no_grad():
            text(prompts.heads.prompts(labels))
        features = plain.extract(batch)
        return plain.losses(plain.heads(features, batch["targets"]), batch["targets"])

    words = (
        f"text features of all identities anew in every epoch, of which a step's share: {share} prompts of 77 rows; "
        "every row of the tower's last block"
    )
    return _training_case("backbone", words, count, s.cfgs["backbone"], pair, lambda: model(batch), by_hand)


ANCHOR_WORDS = (
    "text tower on K x 77 rows twice a step (again for the diversity term), nn.MultiheadAttention with averaged weights, "
    "anchors copied for every image"
)


def _anchors_cached(s: _Setting) -> Case:
    model, plain = pair = s.pair("anchors")
    assert isinstance(model.heads, SAGAHead)
    batch = _cached(model, s.images(s.size.batch), s.cfgs["anchors"].CACHE.FIELDS)
    batch |= {"targets": s.identity_batch(s.size.batch)}
    text = PlainTextTower(plain.heads.text_encoder)

    def by_hand() -> dict[str, Tensor]:
        return plain_anchor_losses(plain, text, plain.extract(batch).float(), batch["targets"])

    return _training_case(
        "anchors_cached", ANCHOR_WORDS, s.size.batch, s.cfgs["anchors"], pair, lambda: model(batch), by_hand
    )


def _anchors_live(s: _Setting) -> Case:
    model, plain = pair = s.pair("anchors")
    batch = {"images": s.images(s.size.batch), "targets": s.identity_batch(s.size.batch)}
    text = PlainTextTower(plain.heads.text_encoder)

    def by_hand() -> dict[str, Tensor]:
        features = plain.extract(batch)
        return plain_anchor_losses(plain, text, features, batch["targets"])

    words = f"the frozen tower under no_grad, every row of its last block; {ANCHOR_WORDS}"
    return _training_case("anchors_live", words, s.size.batch, s.cfgs["anchors"], pair, lambda: model(batch), by_hand)


def _extraction(s: _Setting) -> Case:
    model, plain = s.pair("anchors")
    model.eval(), plain.train()
    plain.heads.eval()
    batch = {"images": s.images(s.size.extraction_batch)}
    text = PlainTextTower(plain.heads.text_encoder.train())

    @torch.no_grad()
    def ours() -> Tensor:
        return model(batch)

    @plainly
    @torch.no_grad()
    def by_hand() -> Tensor:
        features = plain.extract(batch)
        refined = plain_refined(plain.heads, features, plain_anchors(plain.heads, text))
        return torch.cat([refined, features.cls, features.proj], dim=1)

    return Case(
        "extraction",
        "the text tower on K x 77 rows in every call; the tower under no_grad in training mode, every row of its last block; "
        "nn.MultiheadAttention with averaged weights",
        s.size.extraction_batch,
        run_plain=by_hand,
        run_ours=ours,
        values_plain=lambda: _by_part(model, by_hand()),
        values_ours=lambda: _by_part(model, ours()),
    )


def _by_part(model: nn.Module, features: Tensor) -> dict[str, Tensor]:
    layout = model.feature_layout
    return dict(zip(layout, features.float().split(list(layout.values()), dim=1)))


_COMPARISONS = {
    "prompts": _prompts,
    "backbone": _backbone,
    "anchors_cached": _anchors_cached,
    "anchors_live": _anchors_live,
    "extraction": _extraction,
}
CASES = (*_COMPARISONS, "bfloat16", "loading")


# ---- measuring --------------------------------------------------------------------------------------------------------


def largest_difference(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of its tensor.

    A gradient that is zero but for rounding (a shift in front of the neck) counts against a thousandth of the largest one.

    Raises:
        RuntimeError: the two ways do not compute the same; names the tensors.
    """
    if ours.keys() != plain.keys():
        raise RuntimeError(f"the two ways give other tensors: {', '.join(sorted(ours.keys() ^ plain.keys()))}")
    largest = {name: float(value.abs().max()) for name, value in plain.items()}
    floor = 1e-3 * max((v for name, v in largest.items() if name.startswith("grad ")), default=0.0)
    apart = {}
    for name in ours:
        scale = max(largest[name], floor if name.startswith("grad ") else 0.0, 1e-12)
        apart[name] = float((ours[name] - plain[name]).abs().max()) / scale
    wrong = [f"{name} by {value:.1e}" for name, value in apart.items() if not value <= TOLERANCE]
    if wrong:
        raise RuntimeError(f"the two ways differ, so their times say nothing: {'; '.join(wrong[:5])}")
    return max(apart.values())


def tower_flops(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations (2 per multiply-add) of the backbone on a batch, as it runs: counted, not from a formula."""
    return count_flops(lambda: model.backbone(images)).get_total_flops()


def _extraction_share(s: _Setting, rounds: int) -> dict[str, Any]:
    """What the tower alone and the whole evaluation forward reach of the matmul peak, which is measured before each of them
    anew: machines that are shared change their speed within seconds."""
    model, count = s.model("anchors").eval(), s.size.extraction_batch
    batch = {"images": s.images(count)}
    images = model.preprocess_image(batch)
    flops = tower_flops(model, images) / 1e9
    runs = {"tower": lambda: model.backbone(images), "forward": lambda: model(batch)}
    gflops, share = {name: [] for name in runs}, {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            run()
        for _ in tqdm(range(rounds), desc="share of the peak", unit="round", leave=False, disable=None):
            for name, run in runs.items():
                peak = matmul_peak(torch.float32, s.size.matmul_sizes, s.device)["best"]
                gflops[name].append(flops / seconds(run, s.device))
                share[name].append(gflops[name][-1] / peak)
    out: dict[str, Any] = {"rounds": rounds, "gflop_per_image": flops / count}
    for name in runs:
        out[f"{name}_gflops"] = statistics.median(gflops[name])
        out[f"{name}_share_of_peak"] = quartiles(share[name])
    return out


def _bfloat16(s: _Setting, rounds: int) -> dict[str, Any]:
    """Extraction under bfloat16 autocast against float32, and how far its features turn."""
    model = s.model("anchors").eval()
    batch = {"images": s.images(s.size.extraction_batch)}

    @torch.no_grad()
    def float32() -> Tensor:
        return model(batch)

    @torch.no_grad()
    def bfloat16() -> Tensor:
        with torch.autocast(s.device.split(":")[0], dtype=torch.bfloat16):
            return model(batch)

    parts = [_by_part(model, f()) for f in (float32, bfloat16)]
    turned = {k: float((1 - F.cosine_similarity(parts[0][k].double(), parts[1][k].double())).max()) for k in parts[0]}
    times = in_turn(float32, bfloat16, rounds, s.device, name="bfloat16")
    return {
        "rounds": rounds,
        "images": s.size.extraction_batch,
        "float32_seconds": times["plain_seconds"],
        "bfloat16_seconds": times["ours_seconds"],
        "ratio": times["ratio"],
        "images_per_second": s.size.extraction_batch / times["ours_seconds"],
        "largest_cosine_difference": turned,
    }


def _loading(s: _Setting) -> dict[str, Any]:
    """Images per second of the test loader alone, of the model alone and of both; and of the training transform."""
    cfg = s.cfgs["anchors"].clone()
    cfg.defrost()
    cfg.DATASETS.NAMES = cfg.DATASETS.TESTS = ["SyntheticPedestrians"]
    cfg.TEST.IMS_PER_BATCH = s.size.extraction_batch
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.NUM_WORKERS_TEST = workers, workers
    height, width = cfg.INPUT.SIZE_TEST
    cfg.SOLVER.IMS_PER_BATCH = s.size.batch
    spec = synthetic.Spec(
        train_ids=1 + s.size.batch // cfg.DATALOADER.NUM_INSTANCE,  # fewer never fill a batch of the identity sampler
        test_ids=s.size.loading_images // 8,  # each 6 in the gallery and 2 queries
        validation_ids=1,
        gallery_distractors=0,
        cutouts=0,
        height=height,
        width=width,
    )
    model = s.model("anchors").eval()
    with tempfile.TemporaryDirectory() as root, _dataset_root(root), compat.quiet_host():
        synthetic.draw_dataset(root, spec, workers=1)
        test, _ = loaders.build_test_loader(cfg, "SyntheticPedestrians")
        train = loaders.build_train_loader(cfg)
        batches = list(test)
        count = sum(len(b["images"]) for b in batches)

        def each(source, forward: bool) -> None:
            with torch.no_grad():
                for batch in source:
                    if forward:
                        model(batch)

        each(batches[:1], True)
        alone = count / seconds(lambda: each(test, False), s.device)
        computing = count / seconds(lambda: each(batches, True), s.device)
        both = count / seconds(lambda: each(test, True), s.device)
        stream = iter(train)
        next(stream)  # the workers have started
        steps = max(2, count // cfg.SOLVER.IMS_PER_BATCH)
        training = cfg.SOLVER.IMS_PER_BATCH * steps / seconds(lambda: list(itertools.islice(stream, steps)), s.device)
    return {
        "images": count,
        "workers": workers,
        "loading_images_per_second": alone,
        "model_images_per_second": computing,
        "both_images_per_second": both,
        "training_loading_images_per_second": training,
        "limit": "the model" if computing < alone else "loading",
    }


@contextmanager
def _dataset_root(root: str) -> Iterator[None]:
    before = os.environ.get("FASTREID_DATASETS")
    os.environ["FASTREID_DATASETS"] = root
    try:
        yield
    finally:
        os.environ.pop("FASTREID_DATASETS")
        if before is not None:
            os.environ["FASTREID_DATASETS"] = before


# ---- the whole --------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """Everything that one command measured; `asdict` of it is the JSON."""

    command: str
    date: str
    size: str
    machine: dict[str, Any]
    model: dict[str, Any]
    peak_gflops: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    tower: dict[str, Any] | None = None
    bfloat16: dict[str, Any] | None = None
    loading: dict[str, Any] | None = None
    peak_memory_mib: float = 0.0


def run(
    *,
    size: Size,
    name: str,
    configs: Path,
    cases: Sequence[str],
    rounds: int | None,
    device: str,
    command: str,
    done: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Measure `cases` at a size with random weights.

    Args:
        name: of the size, for the report. configs: folder configs/SAGA.
        cases: of `CASES`.
        rounds: pairs of samples per case; None for the size's.
        done: called after each case with what is measured by then.

    Raises:
        RuntimeError: a case whose two ways do not compute the same.
    """
    s = _Setting(size, Path(configs), device)
    rounds = rounds or size.rounds
    cfg = s.cfgs["anchors"]
    about = {
        "name": cfg.MODEL.CLIP.NAME,
        "image": list(cfg.INPUT.SIZE_TEST),
        "stride": cfg.MODEL.BACKBONE.STRIDE_SIZE[0],
        "anchors": cfg.MODEL.SAGA.NUM_ANCHORS,
        "identities": size.identities,
        "config": size.config,
    }
    result = Result(command, date.today().isoformat(), name, machine(device), about)
    for dtype in (torch.float32, torch.bfloat16):
        result.peak_gflops[str(dtype).removeprefix("torch.")] = matmul_peak(dtype, size.matmul_sizes, device)
    targets = dict(size.targets)
    with EventStorage(0):  # FastReID's losses log to one
        for key in cases:
            if key == "bfloat16":
                result.bfloat16 = _bfloat16(s, rounds)
            elif key == "loading":
                result.loading = _loading(s)
            else:
                torch.manual_seed(1)
                case = _COMPARISONS[key](s)
                difference = largest_difference(case.values_ours(), case.values_plain())
                times = in_turn(case.run_plain, case.run_ours, rounds, device, name=key)
                memory = {"ours": peak_memory(case.run_ours, device), "plain": peak_memory(case.run_plain, device)}
                entry = {
                    "case": key,
                    "plain": case.plain,
                    "images": case.images,
                    **times,
                    "images_per_second": case.images / times["ours_seconds"],
                    "largest_difference": difference,
                    "peak_memory_mib": memory,
                    "target": targets.get(key),
                }
                result.cases.append(entry)
                if key == "extraction":
                    del case
                    result.tower = _extraction_share(s, rounds)
            result.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            done(result)
            gc.collect()
    return result


def table(result: Result) -> str:
    """The report in Markdown: command, machine and date, then the figures."""
    m, lines = result.machine, []
    lines.append(
        f"`{result.command}`, {result.date}. {m.get('gpu') or m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
        f"torch {m['torch']}. {result.model['name']} at {'x'.join(map(str, result.model['image']))}, random weights."
    )
    peaks = ", ".join(f"{k} {v['best']:.0f} GFLOP/s" for k, v in result.peak_gflops.items())
    lines += [
        "",
        f"Matrix products reach {peaks} here and now. Peak memory of the process {result.peak_memory_mib:.0f} MiB.",
    ]
    if result.cases:
        rows = []
        for c in result.cases:
            ratio, memory = c["ratio"], c["peak_memory_mib"]
            target = (
                ""
                if c["target"] is None
                else f"{c['target']:g} {'met' if ratio['median'] >= c['target'] else 'MISSED'}"
            )
            rows.append(
                [
                    c["case"],
                    c["images"],
                    f"{c['plain_seconds'] * 1e3:.1f}",
                    f"{c['ours_seconds'] * 1e3:.1f}",
                    f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                    target,
                    f"{c['images_per_second']:.1f}",
                    "" if memory["ours"] is None else f"{memory['plain']:.0f} / {memory['ours']:.0f}",
                    f"{c['largest_difference']:.0e}",
                ]
            )
        headers = [
            "case",
            "batch",
            "plain ms",
            "ours ms",
            "ratio (quartiles)",
            "target",
            "images/s",
            "MiB plain / ours",
            "differ by",
        ]
        lines += ["", tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
        lines += [f"Plain {c['case']}: {c['plain']}." for c in result.cases]
    if result.tower:
        t = result.tower
        tower, forward = (t[f"{name}_share_of_peak"] for name in ("tower", "forward"))
        lines += [
            "",
            f"Image tower: {t['gflop_per_image']:.2f} GFLOP an image; {t['tower_gflops']:.0f} GFLOP/s alone, "
            f"{tower['median']:.0%} ({tower['low']:.0%} to {tower['high']:.0%}) of the float32 peak, measured before each run; "
            f"in the whole evaluation forward {forward['median']:.0%} ({forward['low']:.0%} to {forward['high']:.0%}).",
        ]
    if result.bfloat16:
        b = result.bfloat16
        turned = ", ".join(f"{k} {v:.1e}" for k, v in b["largest_cosine_difference"].items())
        lines += [
            "",
            f"Extraction under bfloat16 autocast: {b['ratio']['median']:.2f} times as fast as float32 "
            f"({b['ratio']['low']:.2f} to {b['ratio']['high']:.2f}), {b['images_per_second']:.1f} images/s; "
            f"largest 1 - cosine of a feature: {turned}.",
        ]
    if result.loading:
        d = result.loading
        lines += [
            "",
            f"Images per second with {d['workers']} worker(s): loading alone {d['loading_images_per_second']:.0f}, model alone "
            f"{d['model_images_per_second']:.1f}, both {d['both_images_per_second']:.1f}; the limit is {d['limit']}. "
            f"Loading with the training transform {d['training_loading_images_per_second']:.0f}.",
        ]
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """What the output file holds."""
    return asdict(result)
