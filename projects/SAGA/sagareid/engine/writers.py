"""Metrics in W&B, MLflow or ClearML (WRITERS), each by its own client, beside metrics.json and TensorBoard.

A writer is FastReID's `EventWriter`: the trainer's hook calls `write`, and `close` at the end. A stage is a run of the
tool; those of one configuration are grouped as the tool groups runs. A resumed run goes on in the same one, whose id is
kept in `FILE`. Addresses, accounts and offline modes are the client's own settings.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastreid.engine import hooks
from fastreid.utils.events import EventWriter, get_event_storage

from ..config import flatten
from ..errors import first_line
from ..files import read_json, write_json

__all__ = ["WRITERS", "StartedWriters", "ToolWriter", "TrackedRun", "build_writers"]

logger = logging.getLogger(__name__)

FILE = "writers.json"  # of a stage, and of a configuration with stages
WINDOW = 20  # steps whose median a loss is, as in metrics.json and TensorBoard


@dataclass(frozen=True)
class TrackedRun:
    """What a writer is told of the stage, or of the run without stages.

    Attributes:
        folder: its OUTPUT_DIR. job: the folder of the whole configuration, the same without stages.
        stage: empty for a run without stages. first: whether the configuration begins with it.
        project: WRITER_PROJECT.
    """

    folder: Path
    job: Path
    stage: str
    first: bool
    project: str

    @property
    def job_name(self) -> str:
        return "/".join(self.job.resolve().parts[-2:])


class ToolWriter(EventWriter):
    """Hands new scalars to a tool. A subclass has `open`, `log` and `finish`.

    Where the client fails in the middle of training, the log says so once and training goes on; what could not be
    handed over is tried again with the next.
    """

    name: ClassVar[str]

    def __init__(self, run: TrackedRun):
        self.run = run
        self._written, self._opened, self._told = -1, False, False

    def open(self, known: str, config: Mapping[str, Any]) -> str:
        """Begin a run of the tool, or go on with the one of that id; returns its id. Import the client here."""
        raise NotImplementedError

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        raise NotImplementedError

    def finish(self, failed: bool) -> None:
        raise NotImplementedError

    def start(self, resumed: bool, config: Mapping[str, Any]) -> None:
        """Before the first step.

        Args:
            resumed: whether training goes on from a checkpoint.
            config: every key by its whole name.

        Raises:
            ValueError: the client cannot begin: no account, no server; its own words.
        """
        try:
            identity = self.open(self.recalled(self.run.folder) if resumed else "", config)
        except Exception as error:
            raise ValueError(
                f"WRITERS: {self.name} cannot begin: {first_line(error) or type(error).__name__}. Set up its client "
                "(docs/writers.md), or take it out of WRITERS"
            ) from error
        self._opened = True
        self.remember(self.run.folder, identity)

    def write(self) -> None:
        fresh: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._written:
                fresh.setdefault(iteration, {})[name] = value
        try:
            for iteration in sorted(fresh):
                self.log(fresh[iteration], iteration)
                self._written = iteration
        except Exception as error:  # of the client or its server, which must not cost a training
            if not self._told:
                logger.warning(
                    "%s takes no metrics (%s); training goes on, metrics.json has them all",
                    self.name,
                    first_line(error),
                )
            self._told = True

    def close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        try:
            self.finish(failed=sys.exc_info()[0] is not None)  # FastReID calls it in a `finally`
        except Exception as error:
            logger.warning("%s did not take the end of the run: %s", self.name, first_line(error))

    def recalled(self, folder: Path) -> str:
        """The id that `remember` kept in a folder; empty for none."""
        file = folder / FILE
        return read_json(file, remedy=_REMEDY).get(self.name, "") if file.is_file() else ""

    def remember(self, folder: Path, identity: str) -> None:
        file = folder / FILE
        known = read_json(file, remedy=_REMEDY) if file.is_file() else {}
        write_json(file, known | {self.name: identity})


_REMEDY = "Delete this one file: resumed runs then begin anew in the tools of WRITERS"


class WandbWriter(ToolWriter):
    """W&B: a run for each stage, grouped by configuration. WANDB_PROJECT, WANDB_MODE, WANDB_DIR ... are honoured."""

    name = "wandb"

    def open(self, known: str, config: Mapping[str, Any]) -> str:
        import wandb

        names = {
            "project": ("WANDB_PROJECT", self.run.project),
            "group": ("WANDB_RUN_GROUP", self.run.job_name),
            "name": ("WANDB_NAME", self.run.stage or self.run.job_name),
            "dir": ("WANDB_DIR", str(self.run.folder)),
        }
        # an argument would go before the user's own setting
        own = {argument: value for argument, (variable, value) in names.items() if not os.environ.get(variable)}
        resume = {"id": known, "resume": "allow"} if known else {}
        self._run = wandb.init(config=dict(config), **own, **resume)
        # W&B's own step only rises, while a resumed run repeats what came after its checkpoint
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="iteration")
        return self._run.id

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._run.log({**scalars, "iteration": iteration})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowWriter(ToolWriter):
    """MLflow: a run for each stage, below one of the configuration. Without MLFLOW_TRACKING_URI into `mlruns` beside
    the stages, which `mlflow ui --backend-store-uri` shows."""

    name = "mlflow"

    def open(self, known: str, config: Mapping[str, Any]) -> str:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self.run.job.resolve() / "mlruns").as_uri()
        if uri.startswith("file:") or "://" not in uri:
            # MLflow 3.7 and later write plain files only where they are allowed; a data base needs the whole of MLflow
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        if known:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.run.project
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        above = {"mlflow.parentRunId": self._parent(experiment)} if self.run.stage else {}
        run = self._client.create_run(experiment, run_name=self.run.stage or self.run.job_name, tags=above)
        self._id = run.info.run_id
        self._log_config(config)
        return self._id

    def _parent(self, experiment: str) -> str:
        """The run of the whole configuration; a new one where it begins with this stage."""
        known = "" if self.run.first else self.recalled(self.run.job)
        if known:
            return known
        made = self._client.create_run(experiment, run_name=self.run.job_name).info.run_id
        self._client.set_terminated(made)  # nothing is written to it
        self.remember(self.run.job, made)
        return made

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(_mlflow_name(key), str(value)[:500]) for key, value in config.items()]
        for begin in range(0, len(params), 100):  # as many as a request may have
            self._client.log_batch(self._id, params=params[begin : begin + 100])

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_mlflow_name(name), value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    """A name of the characters that MLflow takes: TPR@FPR=1e-3 is TPR_FPR_1e-3."""
    return re.sub(r"[^\w\-. /]", "_", name)


class ClearmlWriter(ToolWriter):
    """ClearML: a task for each stage, in a project of the configuration below WRITER_PROJECT. CLEARML_OFFLINE_MODE is
    honoured; a task of an offline session cannot be gone on with, and a resumed run has a new one there."""

    name = "clearml"

    def open(self, known: str, config: Mapping[str, Any]) -> str:
        from clearml import Task

        known = "" if known.startswith("offline-") else known
        self._task = Task.init(
            project_name=f"{self.run.project}/{self.run.job_name}",
            task_name=self.run.stage or "run",
            reuse_last_task_id=known or False,
            # of a task that goes on: iterations are counted as ours are. False would begin it anew, and 0 is not False
            continue_last_task=0 if known else False,
            auto_connect_frameworks=False,
            auto_connect_arg_parser=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )
        self._task.connect_configuration(dict(config), name="config")
        return self._task.id

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        report = self._task.get_logger().report_scalar
        for name, value in scalars.items():
            title, _, series = name.rpartition("/")
            report(title or series, series, value, iteration)

    def finish(self, failed: bool) -> None:
        if failed and not self._task.is_offline():
            self._task.mark_failed()
        self._task.close()


# The classes of the names that WRITERS may have (config.WRITERS).
WRITERS: dict[str, type[ToolWriter]] = {w.name: w for w in (ClearmlWriter, MlflowWriter, WandbWriter)}


def build_writers(names: list[str], run: TrackedRun) -> list[ToolWriter]:
    """The writers of WRITERS, each once."""
    return [WRITERS[name](run) for name in dict.fromkeys(names)]


class StartedWriters(hooks.PeriodicWriter):
    """FastReID's hook of writers, which also starts those of tools before the first step."""

    def __init__(self, writers: list[EventWriter], period: int):
        super().__init__(writers, period)
        self._tools = [writer for writer in writers if isinstance(writer, ToolWriter)]

    def before_train(self) -> None:
        for tool in self._tools:
            tool.start(self.trainer.resumed, flatten(self.trainer.cfg))
