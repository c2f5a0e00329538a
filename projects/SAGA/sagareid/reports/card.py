"""The model card of a run that is handed on: README.md, with the YAML head that a hub reads, from what the run left.

Nothing in it is written by hand but the licence and what the author says that the model is not for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..compat import registered
from ..deploy.feature_model import FeatureModel
from ..evaluation.tables import legend
from ..registry import fastreid_registries
from ..version import __version__
from . import calibration as calibrations
from .runs import flat_metrics
from .study_tables import legend_of, summary

__all__ = ["About", "model_card", "model_head"]

HEADLINE = ("Rank-1", "Rank-5", "Rank-10", "mAP", "mINP")
TASK = "image-feature-extraction"


@dataclass
class About:
    """What a card tells of a model.

    Attributes:
        name: how it is called; address: how a user writes it, for the example.
        module: the model from pixels to its feature.
        metrics: of the run's result, as in result.json; empty where there are none.
        people, images, cameras: of the training set, counted; None where the checkpoint does not say.
        stored: metrics with the run's weights and with the stored ones by data set, {"run", "stored"}; None for not
            measured. dataset: on which.
        study: the record of an occlusion study in which the model is one; study_name: what it is called there.
        calibration: of tools/calibrate.py. visibility: what the read-out says about itself.
        half: whether parameters are stored as float16.
        not_for: the author's sentences.
        source_sha256: of the checkpoint that it was made from.
        command: how.
    """

    name: str
    address: str
    module: FeatureModel
    license: str
    license_link: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    people: int | None = None
    images: int | None = None
    cameras: int | None = None
    stored: Mapping[str, Mapping[str, float]] | None = None
    dataset: str = ""
    study: Mapping[str, Any] | None = None
    study_name: str = ""
    calibration: Mapping[str, Any] | None = None
    visibility: Mapping[str, Any] | None = None
    half: bool = False
    not_for: str = ""
    source_sha256: str = ""
    command: str = ""

    @property
    def drawn(self) -> bool:
        """Whether it has seen and was measured on nothing but drawn people."""
        data, classes = self.module.cfg.DATASETS, registered(fastreid_registries().datasets)
        return all(getattr(classes.get(name), "drawn", False) for name in (*data.NAMES, *data.TESTS))


def model_card(about: About) -> str:
    """The text of README.md."""
    sections = [
        _opening(about),
        _recipe(about),
        _data(about),
        _metrics(about),
        _stored(about),
        _occlusion(about),
        _threshold(about),
        _visibility(about),
        _limits(about),
        _license(about),
    ]
    return f"---\n{model_head(about)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def model_head(about: About) -> str:
    """The YAML head, by the hub's own client."""
    from huggingface_hub import EvalResult, ModelCardData

    cfg = about.module.cfg
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=data,
            dataset_name=data,
            metric_type=metric,
            metric_name=f"{metric} (%), feature {about.module.feature}",
            metric_value=round(values[metric], 2),
        )
        for data, values in _by_dataset(about).items()
        for metric in HEADLINE
        if metric in values
    ]
    tags = ["person-re-identification", "image-retrieval", "fastreid", cfg.MODEL.HEADS.NAME]
    tags += ["saga-reid"] if cfg.MODEL.HEADS.NAME == "SAGAHead" else []
    data = ModelCardData(
        license=about.license,
        license_name="custom" if about.license == "other" else None,
        license_link=about.license_link or None,
        library_name="sagareid",
        pipeline_tag=TASK,
        tags=tags,
        datasets=list(cfg.DATASETS.NAMES),
        metrics=[metric for metric in HEADLINE if any(metric in v for v in _by_dataset(about).values())] or None,
        model_name=about.name if found else None,
        eval_results=found or None,
    )
    return data.to_yaml(line_break="\n")


def _by_dataset(about: About) -> dict[str, dict[str, float]]:
    """The metrics of the result by test set, those of other features left out."""
    tests = list(about.module.cfg.DATASETS.TESTS)
    found: dict[str, dict[str, float]] = {}
    for name, value in flat_metrics(dict(about.metrics)).items():
        *data, metric = name.split("/")
        if metric in HEADLINE and (not data or (len(tests) > 1 and data[0] in tests and len(data) == 1)):
            found.setdefault(data[0] if data else tests[0], {})[metric] = value
    return found


def _opening(about: About) -> str:
    cfg, module = about.module.cfg, about.module
    height, width = module.size
    parameters = sum(p.numel() for p in module.model.parameters())
    return f"""# {about.name}

Person re-identification: an image of a person, {height} x {width} pixels, to {module.width} numbers of unit length
(feature `{module.feature}`) whose products are similarities. {cfg.MODEL.HEADS.NAME} on {_tower(cfg)}, {parameters:,}
parameters, stored as {"float16" if about.half else "float32"}. A model of `sagareid`, SAGA-ReID for FastReID.

```python
from sagareid import Extractor

extractor = Extractor.from_pretrained("{about.address}")
features = extractor(["a.jpg", "b.jpg"])             # (2, {module.width}), unit length
print(float(features[0] @ features[1]))              # similarity, at most 1
```"""


def _tower(cfg: Any) -> str:
    own = {"build_clip_vit_backbone": f"CLIP's image tower {cfg.MODEL.CLIP.NAME}"}
    return own.get(cfg.MODEL.BACKBONE.NAME, f"{cfg.MODEL.BACKBONE.NAME} {cfg.MODEL.BACKBONE.DEPTH}".strip())


def _recipe(about: About) -> str:
    cfg = about.module.cfg
    rows = [
        ["head", f"{cfg.MODEL.HEADS.NAME} under {cfg.MODEL.META_ARCHITECTURE}"],
        ["backbone", _tower(cfg)],
        ["losses", ", ".join(cfg.MODEL.LOSSES.NAME)],
        ["trained parts", ", ".join(cfg.MODEL.TRAINABLE) or "all"],
        ["epochs, batch, rate", f"{cfg.SOLVER.MAX_EPOCH}, {cfg.SOLVER.IMS_PER_BATCH}, {cfg.SOLVER.BASE_LR:g}"],
        ["optimiser, schedule", f"{cfg.SOLVER.OPT}, {cfg.SOLVER.SCHED}"],
        ["pixel mean and std", f"{list(cfg.MODEL.PIXEL_MEAN)}, {list(cfg.MODEL.PIXEL_STD)} of 0..255, RGB"],
        ["seed", str(cfg.SEED)],
    ]
    if about.module.reads_cameras:
        rows.append(["cameras that it knows", ", ".join(cfg.MODEL.CLIP.CAMERAS)])
    made = f" by `{about.command}`" if about.command else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "open_clip_torch"))
    return (
        f"## Recipe\n\n{_table(['', ''], rows)}\n\n`config.yaml` has every key of the last stage. Written{made} with "
        f"sagareid {__version__}, {versions}, from a checkpoint of SHA-256 `{about.source_sha256}`."
    )


def _data(about: About) -> str:
    counts = [(about.people, "people"), (about.images, "images"), (about.cameras, "cameras")]
    told = ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)
    drawn = " These people are drawn, by this package; no photograph was used." if about.drawn else ""
    return f"## Data\n\nTrained on {', '.join(about.module.cfg.DATASETS.NAMES)}{f' ({told})' if told else ''}.{drawn}"


def _protocol(about: About) -> str:
    test = about.module.cfg.TEST
    steps = [
        "each query by itself, against the whole gallery",
        "gallery images of the query's own person in its own camera left out",
        f"{test.METRIC} distance of the feature `{about.module.feature}`",
        "the mean over the image and its mirror image" if test.FLIP.ENABLED else "no flip test",
    ]
    further = [name for name in ("NFC", "AQE", "RERANK") if test[name].ENABLED]
    steps.append(f"with {', '.join(further)}, which look at other images" if further else "no re-ranking")
    return "; ".join(steps)


def _metrics(about: About) -> str:
    found = _by_dataset(about)
    if not found:
        return "## Metrics\n\nNone: the run's result is not beside its checkpoint."
    rows = [[data, *(f"{values[m]:.1f}" if m in values else "" for m in HEADLINE)] for data, values in found.items()]
    return (
        f"## Metrics\n\nPercent, of the run's weights in float32.\n\n{_table(['test set', *HEADLINE], rows)}\n\n"
        f"Protocol: {_protocol(about)}. {_sentence(legend(HEADLINE))}"
    )


def _stored(about: About) -> str:
    if not about.half and not about.stored:
        return ""
    names = ("Rank-1", "mAP", "mINP")
    if not about.stored:
        return "Parameters are stored as float16; what that changes was not measured (--evaluate measures it)."
    rows = [[f"{kind} weights", *(f"{values[n]:.3f}" for n in names)] for kind, values in about.stored.items()]
    first, second = about.stored.values()
    rows.append(["difference", *(f"{second[n] - first[n]:+.3f}" for n in names)])
    return (
        f"The run's weights and the stored ones on {about.dataset}, by cosine, in turn:\n\n{_table(['', *names], rows)}"
    )


def _occlusion(about: About) -> str:
    if about.study is None:
        return ""
    study = about.study
    return (
        f"## When a person is half hidden\n\n{study['dataset']['name']}, percent by the share of the visible person "
        f"that is hidden, as `{study.get('command', '')}` measured it; this model is {about.study_name}.\n\n"
        f"{summary(study['results'])}\n\n{_sentence(legend_of(study['results']))}"
    )


def _threshold(about: About) -> str:
    if about.calibration is None:
        return ""
    return (
        "## From which similarity on two images are one person\n\n`calibration.json`, which `tools/search.py query "
        "--threshold` reads. On other cameras it is another: calibrate there.\n\n"
        f"{calibrations.markdown(about.calibration)}"
    )


def _visibility(about: About) -> str:
    if about.visibility is None:
        return ""
    both = about.visibility["crop"]["both"]
    return (
        "## How much of a person is seen\n\n`visibility.safetensors`, for `Extractor.embed(..., visibility=True)`. On "
        f"{about.visibility['measured_on']}: rank correlation with the true share {both['rank_correlation']:.2f}, AUC "
        f"for less than half seen {both['auc_less_than_half']:.2f}."
    )


def _limits(about: About) -> str:
    data = about.module.cfg.DATASETS
    told = [
        f"Measured on {', '.join(data.TESTS)} alone: with other cameras, places and clothes expect lower metrics.",
        "Similarities are not probabilities; a decision needs a threshold that was found on pairs of the same cameras.",
        "It recognises people by clothes and build, not by faces, and not after a change of clothes.",
        "Following people by cameras is regulated in many countries; whether a use is lawful is for its user to see.",
    ]
    if about.drawn:
        told.insert(
            0,
            "It knows drawn people and nothing else: on photographs its similarities mean nothing. It is there to try "
            "the package, its commands and an integration, not to recognise anybody.",
        )
    if about.not_for:
        told.insert(0, about.not_for)
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in told)


def _license(about: About) -> str:
    link = f" ({about.license_link})" if about.license_link else ""
    return (
        f"## Licence\n\n{about.license}{link}, chosen by whoever published it. The weights that training began from "
        "and the training data have terms of their own."
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)


def named_in_study(record: Mapping[str, Any], run: Path, checkpoint: Path) -> str:
    """What a study calls a model, by the folder or the file that it loaded; "" where it is none of them."""
    own = {run.resolve(), checkpoint.resolve()}
    for model in record.get("models", ()):
        if Path(model["path"]).resolve() in own:
            return model["name"]
    return ""
