"""Hand a trained run on: weights, configuration and model card in one folder that a name or a path then loads."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..benchmarks.exported import rank_in_turn
from ..data.record import TrainingRecord
from ..deploy import hub, names, published
from ..deploy.feature_model import FeatureModel
from ..deploy.load import FINAL, checkpoint_file, load_model
from ..deploy.options import CALIBRATION, CARD, VISIBILITY
from ..deploy.threshold import read_calibration
from ..deploy.visibility import read_about
from ..files import check_output, file_hash, read_json, write_text
from ..weights import PUBLISHED, PUBLISHED_CONFIG, load_state
from . import card, study_page
from .runs import read_run

__all__ = ["push", "save_pretrained"]


def save_pretrained(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    license: str,
    license_link: str = "",
    name: str = "",
    half: bool = False,
    evaluate: str = "",
    study: str | os.PathLike | None = None,
    not_for: str = "",
    repository: str = "",
    command: str = "",
) -> list[Path]:
    """Write `model.safetensors`, `config.yaml` and a model card made from the run, for `Extractor.from_pretrained`.

    The calibration and the read-out of visibility that stand beside the checkpoint go along. The text tower does not:
    its anchors are stored. Paths of this machine are left out of the configuration.

    Args:
        run: the folder of a finished run, or a .pth file of one.
        license: an identifier of the hub, such as apache-2.0 or cc-by-nc-4.0; "other" with a `license_link`.
        name: what the card calls the model; "" takes the folder's.
        half: parameters as float16, half the size.
        evaluate: test set on which the run's weights and the stored ones are ranked, for the card; "" for none.
        study: folder of an occlusion study of this run; None takes one in the run's folder or beside it, if there is.
        not_for: what the model is not for, for the card.
        repository: ORG/MODEL where it is going to be pushed, for the card's example.
        command: how it was made, for the card.

    Returns:
        The files written; the card is the last.

    Raises:
        ValueError: no licence; a run that is no run of ours, is published already, or names files of its machine.
        OSError: no run; the folder cannot be written.
    """
    _check_license(license, license_link)
    checkpoint, folder = checkpoint_file(run), Path(folder)
    if checkpoint.name == PUBLISHED:
        raise ValueError(f"{checkpoint.parent} is what publishing writes; name the run's folder, or push it as it is")
    check_output(folder, folder=True)
    cfg, model = load_model(checkpoint, device="cpu")
    plain = published.without_places(cfg, str(checkpoint))
    module, state = FeatureModel(cfg, model), published.stored_weights(model, half=half)
    source, ships = file_hash(checkpoint), folder.resolve() == names.SHIPPED / name
    about = card.About(
        name=name or folder.resolve().name,
        address=f"{hub.PREFIX}{repository}" if repository else name if ships else str(folder),
        module=module,
        license=license,
        license_link=license_link,
        half=half,
        not_for=not_for,
        source_sha256=source,
        command=command,
        **_of_run(checkpoint),
        **_of_study(checkpoint, study),
    )
    beside = published.side_files(checkpoint, source)
    if evaluate:
        about.dataset, about.stored = evaluate, _stored_metrics(module, state, evaluate)
    sha256 = published.write_weights(folder, state, plain)
    published.write_side_files(folder, checkpoint, beside, sha256)
    if CALIBRATION in beside:
        about.calibration = read_calibration(folder / CALIBRATION)
    if VISIBILITY in beside:
        about.visibility = read_about(folder / VISIBILITY)
    write_text(folder / CARD, card.model_card(about))
    return [folder / file for file in (PUBLISHED, PUBLISHED_CONFIG, *beside, CARD)]


def push(folder: str | os.PathLike, repository: str, *, private: bool = False) -> str:
    """Push a folder of `save_pretrained` to a hub. Returns the address of the commit; errors as of `hub.push`.

    Raises:
        FileNotFoundError: it is no such folder.
    """
    folder = Path(folder)
    files = [file for file in (PUBLISHED, PUBLISHED_CONFIG, CARD, *hub.FURTHER) if (folder / file).is_file()]
    if missing := sorted({PUBLISHED, PUBLISHED_CONFIG, CARD} - set(files)):
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; write it by tools/publish.py first")
    return hub.push(folder, repository, files, private=private)


def _check_license(license: str, link: str) -> None:
    examples = "such as apache-2.0, mit, cc-by-nc-4.0, or other with --license-link"
    if not license:
        raise ValueError(
            f"no licence: whoever hands a model on says under which. --license takes an identifier, {examples}; think "
            "of the terms of the weights that training began from and of the training data"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f"the licence {license!r} is no identifier of a hub; expected small letters, {examples}")
    if license == "other" and not link:
        raise ValueError("the licence is other: say which by --license-link, an address or a file's name")


def _of_run(checkpoint: Path) -> dict[str, Any]:
    """The metrics of a run's final state, and what it counted of its training set."""
    about: dict[str, Any] = {}
    if checkpoint.name == f"{FINAL}.pth" and checkpoint.with_name(PUBLISHED_CONFIG).is_file():
        [stage] = read_run(checkpoint.parent)
        about["metrics"] = (stage.result or {}).get("metrics") or {}
    record = TrainingRecord.in_checkpoint(load_state(checkpoint))
    if record is not None:
        about |= {"people": len(record.identities), "images": len(record.images), "cameras": len(record.cameras)}
    return about


def _of_study(checkpoint: Path, named: str | os.PathLike | None) -> dict[str, Any]:
    """The occlusion study that is named, or the first in the run's folder or beside it of which the run is a part.

    Raises:
        FileNotFoundError, ValueError: the one that is named is no study, or not of this run.
    """
    run = checkpoint.parent
    beside = [
        p for place in (run, run.parent) for depth in ("", "*/") for p in sorted(place.glob(depth + study_page.RECORD))
    ]
    for file in [Path(named, study_page.RECORD)] if named is not None else dict.fromkeys(beside):
        if not file.is_file():
            raise FileNotFoundError(f"no {file.name} in {file.parent}: expected the output of tools/occlusion_study.py")
        record = read_json(
            file,
            remedy="tools/occlusion_study.py --resume writes it again",
            required={"dataset": dict, "results": list, "models": list},
        )
        if called := card.named_in_study(record, run, checkpoint):
            return {"study": record, "study_name": called}
        if named is not None:
            raise ValueError(f"{file} is a study of {', '.join(m['path'] for m in record['models'])}, not of {run}")
    return {}


def _stored_metrics(module: FeatureModel, state: Mapping[str, Tensor], dataset: str) -> dict[str, dict[str, float]]:
    """Metrics by the run's weights, and by those of `stored_weights`."""
    stored = copy.deepcopy(module)
    stored.model.load_state_dict(dict(state))

    def features(of: nn.Module):
        return lambda batch: of(batch["images"], batch["cameras"] if module.reads_cameras else None)

    models = {"the run's": features(module), "stored": features(stored)}
    return rank_in_turn(module.cfg, dataset, module.width, models)
