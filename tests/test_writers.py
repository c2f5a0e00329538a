"""WRITERS: MLflow, W&B and ClearML by their own clients, without a server; skipped where a client is not installed."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
from small_runs import ONE_STAGE, SMALL, SMALL_IMAGES

from sagareid.engine import writers
from sagareid.engine.writers import TrackedRun, build_writers

from fastreid.utils.events import EventStorage

CONFIG = {"SEED": 0, "MODEL.HEADS.NAME": "SAGAHead"}


def tracked(tmp_path: Path, stage: str = "anchors", first: bool = False) -> TrackedRun:
    job = tmp_path / "logs" / "job"
    folder = job / stage
    folder.mkdir(parents=True, exist_ok=True)
    return TrackedRun(folder, job, stage, first, "people")


def write(writer, values: dict[int, float], name: str = "total_loss") -> None:
    """Scalars at iterations, as a training writes them."""
    with EventStorage(min(values)) as storage:
        for iteration, value in values.items():
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=False)
            writer.write()


@pytest.fixture
def mlflow(monkeypatch):
    found = pytest.importorskip("mlflow")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # what the writer sets is undone at the end of the test
    return found


def runs_of(mlflow, store: Path) -> dict[str, object]:
    client = mlflow.MlflowClient(tracking_uri=store.resolve().as_uri())
    [experiment] = [e for e in client.search_experiments() if e.name == "people"]
    return client, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_keeps_scalars_config_and_stages_of_one_job_below_one_run(mlflow, tmp_path):
    for stage, first in (("prompts", True), ("anchors", False)):
        [writer] = build_writers(["mlflow"], tracked(tmp_path, stage, first))
        writer.start(False, CONFIG)
        write(writer, {0: 3.0, 9: 2.0}, "Set/TPR@FPR=1e-3")
        writer.close()
    client, runs = runs_of(mlflow, tmp_path / "logs" / "job" / "mlruns")
    assert set(runs) == {"prompts", "anchors", "logs/job"}
    parent = runs["logs/job"].info.run_id
    for stage in ("prompts", "anchors"):
        run = runs[stage]
        assert run.data.tags["mlflow.parentRunId"] == parent and run.info.status == "FINISHED"
        assert run.data.params == {"SEED": "0", "MODEL.HEADS.NAME": "SAGAHead"}
        history = client.get_metric_history(run.info.run_id, "Set/TPR_FPR_1e-3")
        assert [(m.step, m.value) for m in history] == [(0, 3.0), (9, 2.0)]


def test_a_resumed_run_goes_on_in_the_same_one_and_one_begun_anew_does_not(mlflow, tmp_path):
    for resumed, values in ((False, {0: 3.0, 9: 2.0}), (True, {9: 2.0, 19: 1.0}), (False, {0: 5.0})):
        [writer] = build_writers(["mlflow"], tracked(tmp_path))
        writer.start(resumed, CONFIG)
        write(writer, values)
        writer.close()
    client, _ = runs_of(mlflow, tmp_path / "logs" / "job" / "mlruns")
    stages = client.search_runs([e.experiment_id for e in client.search_experiments()])
    histories = [
        [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, "total_loss")]
        for r in stages
        if r.info.run_name == "anchors"
    ]
    assert sorted(map(len, histories)) == [1, 4] and [(0, 3.0), (9, 2.0), (9, 2.0), (19, 1.0)] in map(sorted, histories)


def test_a_failed_training_is_a_failed_run_and_a_failing_server_no_failed_training(
    mlflow, tmp_path, caplog, monkeypatch
):
    [writer] = build_writers(["mlflow"], tracked(tmp_path))
    writer.start(False, CONFIG)
    original, broken = writer.log, [True]

    def log(scalars, iteration):
        if broken[0]:
            raise ConnectionError("the server is gone")
        original(scalars, iteration)

    monkeypatch.setattr(writer, "log", log)
    with pytest.raises(RuntimeError), EventStorage(0) as storage:
        try:
            for iteration in (0, 1):
                storage.iter = iteration
                storage.put_scalar("total_loss", float(iteration), smoothing_hint=False)
                storage.put_scalar("lr", 0.1, smoothing_hint=False)
                writer.write()
                broken[0] = iteration == 0 and broken[0] and False
            raise RuntimeError("training failed")
        finally:
            writer.close()
    assert caplog.text.count("mlflow takes no metrics (the server is gone); training goes on") == 1
    client, runs = runs_of(mlflow, tmp_path / "logs" / "job" / "mlruns")
    assert runs["anchors"].info.status == "FAILED"
    assert [m.step for m in client.get_metric_history(runs["anchors"].info.run_id, "total_loss")] == [1]


def test_what_cannot_begin_is_one_error_with_the_remedy(tmp_path, monkeypatch):
    [writer] = build_writers(["clearml"], tracked(tmp_path))
    monkeypatch.setattr(writer, "open", lambda *_: (_ for _ in ()).throw(OSError("no account\nsecond line")))
    with pytest.raises(ValueError, match=r"WRITERS: clearml cannot begin: no account. .*docs/writers.md"):
        writer.start(False, CONFIG)
    writer.close()  # was never open
    assert not (tmp_path / "logs/job/anchors/writers.json").exists()


def test_wandb_offline_keeps_scalars_by_iteration_and_goes_on_under_its_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    run = tracked(tmp_path)
    seen = []
    for resumed, values in ((False, {0: 3.0, 9: 2.0}), (True, {9: 2.0, 19: 1.0})):
        [writer] = build_writers(["wandb"], run)
        writer.start(resumed, CONFIG)
        own = wandb.run
        seen.append((own.id, own.project, own.group, own.name))
        assert own.config["MODEL.HEADS.NAME"] == "SAGAHead"
        write(writer, values)
        assert own.summary["total_loss"] == list(values.values())[-1] and own.summary["iteration"] == max(values)
        writer.close()
        assert wandb.run is None
    assert seen[0] == seen[1] and seen[0][1:] == ("people", "logs/job", "anchors")
    files = list((run.folder / "wandb").rglob("*.wandb"))
    assert len(files) == 2 and all(seen[0][0] in file.name for file in files)


@pytest.mark.slow
def test_clearml_offline_keeps_scalars_by_iteration(tmp_path, monkeypatch):
    """Its offline mode is read where it is imported, and nothing else here imports it."""
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    clearml = pytest.importorskip("clearml")
    [writer] = build_writers(["clearml"], tracked(tmp_path))
    writer.remember(writer.run.folder, "offline-1")  # of an offline session, which cannot be gone on with
    writer.start(True, CONFIG)
    task = clearml.Task.current_task()
    assert task.is_offline() and task.get_project_name() == "people/logs/job" and task.name == "anchors"
    assert writer.recalled(writer.run.folder) == task.id != "offline-1"
    write(writer, {0: 3.0, 9: 2.0}, "Set/mAP")
    writer.close()
    assert clearml.Task.current_task() is None
    [session] = (tmp_path / "cache").rglob("*.zip")
    with zipfile.ZipFile(session) as archive:
        lines = archive.read("metrics.jsonl").decode()
        assert b"SAGAHead" in archive.read("task.json")
    events = [event for line in lines.splitlines() for event in json.loads(line)]
    found = {(e["metric"], e["variant"], e["iter"], e["value"]) for e in events if "value" in e}
    assert {("Set", "mAP", 0, 3.0), ("Set", "mAP", 9, 2.0)} <= found


@pytest.mark.slow
def test_a_training_writes_what_metrics_json_has(mlflow, train_net, tmp_path):
    run = [*ONE_STAGE, *SMALL, *SMALL_IMAGES, "SOLVER.IMS_PER_BATCH", 48, "WRITER_PROJECT", "people"]
    assert train_net(*run, "WRITERS", "[mlflow]", "OUTPUT_DIR", tmp_path / "logs" / "run") == 0
    _, runs = runs_of(mlflow, tmp_path / "logs" / "run" / "mlruns")
    [run] = runs.values()
    assert run.info.run_name == "logs/run" and run.info.status == "FINISHED"
    last = {}
    for line in (tmp_path / "logs" / "run" / "metrics.json").read_text().splitlines():
        last |= {name: value for name, value in json.loads(line).items() if name != "iteration"}
    assert {"total_loss", "mAP", "Rank-1", "lr"} <= set(last)
    assert {writers._mlflow_name(name): value for name, value in last.items()} == pytest.approx(run.data.metrics)
    assert run.data.params["MODEL.HEADS.NAME"] == "SAGAHead" and len(run.data.params) > 150


def test_an_unknown_writer_and_one_that_is_not_installed_end_before_training(train_net, tmp_path, capsys, monkeypatch):
    arguments = [*ONE_STAGE, *SMALL, "OUTPUT_DIR", tmp_path / "run"]
    assert train_net(*arguments, "WRITERS", "[wanbd]") == 1
    assert "WRITERS is 'wanbd'; valid: clearml, mlflow, wandb. Did you mean wandb?" in capsys.readouterr().err
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else original(name, *a))
    assert train_net(*arguments, "WRITERS", "[wandb]") == 1
    error = capsys.readouterr().err
    assert "WRITERS names wandb, whose client is not installed: pip install 'sagareid[wandb]'" in error, error
    assert not (tmp_path / "run" / "config.yaml").exists()
