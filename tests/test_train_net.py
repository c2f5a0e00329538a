"""tools/train_net.py end to end on drawn people: what trains, what stays, seeds, resuming, hand-over, messages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import small_runs
import torch
from small_runs import EMBEDDED_CLIP, QUICKSTART, SMALL_IMAGES
from test_compat import test_installed_host_matches_its_record as assert_host_is_untouched

from sagareid import compat
from sagareid.engine import hooks, plans, stages
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.modeling.build import hand_over
from sagareid.synthetic import drawn as synthetic
from sagareid.weights import load_state

STAGES = ("prompts", "backbone", "anchors_warmup", "anchors")
# as the session's run of all stages, `tiny_quickstart`
SMALL = [*small_runs.SMALL, "SOLVER.MAX_EPOCH", 2, "CACHE.NUM_VIEWS", 2]


@pytest.fixture
def trained(tiny_quickstart, tmp_path):
    """A copy of a run of all stages, as `SMALL` makes it: a test may resume it, or have it set aside."""
    return shutil.copytree(tiny_quickstart, tmp_path / "trained")


@pytest.fixture(autouse=True)
def in_repo(monkeypatch, repo):
    monkeypatch.chdir(repo)


def weights(folder, stage: str) -> dict[str, torch.Tensor]:
    return load_state(folder / stage / "model_final.pth")["model"]


def same(a: dict, b: dict) -> list[str]:
    """Names that differ between two state dicts of the same keys."""
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


# ---- what trains ----------------------------------------------------------------------------------------------------

DECLARED = {
    "prompts": ("heads.prompts.context_identity",),
    "backbone": ("backbone.visual.", "heads.classifier.weight", "heads.bottleneck.weight"),
    "anchors_warmup": (
        "heads.text_anchors.context_learned",
        "heads.text_anchors.proj.weight",
        "heads.domain_anchors.",
        "heads.refine.",
        "heads.bottleneck.weight",
        "heads.classifiers.",
    ),
}
DECLARED["anchors"] = DECLARED["anchors_warmup"]
# buffers that follow from the weights or count batches
DERIVED = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "text_features",
    "prompt_context",
    "text_anchors.anchors",
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_what_it_declares_and_nothing_else(stage, trained, tiny_root, monkeypatch):
    """Fails for every stage if the optimizer bridge goes: FastReID's own optimizer then changes nothing at all."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    run = next(r for r in plans.plan(QUICKSTART[1], [*map(str, SMALL), "OUTPUT_DIR", str(trained)]) if r.name == stage)
    stages._setup(run, _arguments())
    trainer = SAGATrainer(run.cfg)
    trainer.resume_or_load(resume=False)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    compat.close_logs()
    changed = {k for k in same(before, weights(trained, stage)) if not k.endswith(DERIVED)}
    declared = {k for k in before if k.startswith(DECLARED[stage]) and not k.endswith(DERIVED)}
    assert changed == declared


def _arguments(**kwargs):
    from sagareid.engine.options import training_parser

    args = training_parser().parse_args([])
    for key, value in kwargs.items():
        setattr(args, key, value)
    return args


def test_files_of_a_run(trained):
    """FastReID's conventions, for each stage; every loss term of it in metrics.json."""
    terms = {
        "prompts": {"loss_supcon"},
        "backbone": {"loss_cls", "loss_triplet", "loss_i2t"},
        "anchors": {"loss_cls", "loss_triplet", "loss_anchor_div"},
    }
    for stage in STAGES:
        files = {f.name for f in (trained / stage).iterdir()}
        assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint", "result.json"} <= files
        assert any(f.startswith("events.out.tfevents") for f in files)
        assert not any(f.startswith(".") for f in files), "a temporary file was left behind"
        logged = [json.loads(line) for line in (trained / stage / "metrics.json").read_text().splitlines()]
        assert terms.get(stage, set()) <= set().union(*logged)
        assert any("Rank-1" in line for line in logged), "the last evaluation is in metrics.json"
    results = json.loads((trained / "results.json").read_text())
    assert [r["stage"] for r in results] == list(STAGES)
    assert all(0 <= r["metrics"][k] <= 100 for r in results for k in ("Rank-1", "mAP", "mINP"))


def test_host_is_untouched_after_training_and_evaluation(trained):
    assert_host_is_untouched()


def test_a_final_checkpoint_describes_itself(trained):
    checkpoint = load_state(trained / "anchors" / "model_final.pth")
    assert "NUM_CLASSES: 12" in checkpoint["config"]
    assert bool(checkpoint["model"]["heads.text_anchors.anchors"].any()), "the anchors of the weights are stored"


def drop_from(folder, stage: str) -> None:
    """Take a stage and those after it out of a finished run."""
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(folder / name)


# ---- seeds and resuming ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seed_same_weights_whatever_the_workers(trained, train_net, tmp_path):
    assert train_net(*QUICKSTART, *SMALL, "OUTPUT_DIR", tmp_path, "DATALOADER.NUM_WORKERS", 1) == 0
    for stage in STAGES:
        assert same(weights(trained, stage), weights(tmp_path, stage)) == []
        ours, again = (json.loads((f / stage / "result.json").read_text())["metrics"] for f in (trained, tmp_path))
        assert ours == again


@pytest.mark.slow
def test_another_seed_another_model(trained, train_net, tmp_path):
    assert train_net(*QUICKSTART, "--stage", "prompts", *SMALL, "OUTPUT_DIR", tmp_path, "SEED", 1) == 0
    assert same(weights(trained, "prompts"), weights(tmp_path, "prompts"))


@pytest.mark.slow
@pytest.mark.parametrize("stage, step", [("prompts", 1), ("backbone", 4), ("anchors_warmup", 0), ("anchors", 5)])
def test_interrupted_anywhere_and_resumed_is_the_same_run(
    stage, step, trained, tiny_quickstart, train_net, monkeypatch
):
    """The stages before the interrupted one are taken from the session's run, as finished ones."""
    drop_from(trained, stage)
    calls = {"n": 0}
    original = StepTrainer.run_step

    def interrupted(self):
        if stage in self.model_folder:
            if calls["n"] == step:
                raise KeyboardInterrupt
            calls["n"] += 1
        original(self)

    begin = SAGATrainer.run_step

    def remember(self):
        self.step_trainer.model_folder = self.cfg.OUTPUT_DIR.rpartition("/")[2].split()
        begin(self)

    monkeypatch.setattr(SAGATrainer, "run_step", remember)
    monkeypatch.setattr(StepTrainer, "run_step", interrupted)
    run = [*QUICKSTART, "--resume", *SMALL, "OUTPUT_DIR", trained]
    assert train_net(*run) == 130
    assert not (trained / stage / "result.json").exists()
    monkeypatch.setattr(StepTrainer, "run_step", original)
    assert train_net(*run) == 0
    assert same(weights(tiny_quickstart, "anchors"), weights(trained, "anchors")) == []
    ours, again = (
        json.loads((f / "anchors" / "result.json").read_text())["metrics"] for f in (tiny_quickstart, trained)
    )
    assert ours == again


@pytest.mark.slow
def test_killed_process_resumes(trained, tiny_quickstart, tiny_root, repo, bare_environment):
    """The real command, SIGKILL in the middle of the second stage, the same command again."""
    drop_from(trained, "backbone")
    command = [
        sys.executable,
        "tools/train_net.py",
        *QUICKSTART,
        "--resume",
        *map(str, SMALL),
        "OUTPUT_DIR",
        str(trained),
    ]
    environment = bare_environment(tiny_root)
    process = subprocess.Popen(command, cwd=repo, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (trained / "backbone" / "last.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (trained / "backbone" / "model_final.pth").exists()
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| anchors " in done.stdout
    assert same(weights(tiny_quickstart, "anchors"), weights(trained, "anchors")) == []


def test_resume_skips_what_is_done_and_refuses_another_configuration(trained, train_net, capfd):
    before = {s: (trained / s / "model_final.pth").stat().st_mtime_ns for s in STAGES}
    run = [*QUICKSTART, "--resume", *SMALL, "OUTPUT_DIR", trained]
    assert train_net(*run) == 0
    assert before == {s: (trained / s / "model_final.pth").stat().st_mtime_ns for s in STAGES}
    assert train_net(*run, "MODEL.SAGA.NUM_ANCHORS", 12) == 1
    assert "MODEL.SAGA.NUM_ANCHORS: 24 -> 12" in capfd.readouterr().err


@pytest.mark.slow
def test_a_fresh_run_sets_an_earlier_one_aside(train_net, tmp_path):
    run = [*QUICKSTART, "--stage", "prompts", *SMALL, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    first = weights(tmp_path, "prompts")
    assert train_net(*run) == 0
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("prompts.before-")]
    assert len(aside) == 1
    assert same(first, load_state(aside[0] / "model_final.pth")["model"]) == []


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_eval_only_needs_neither_clip_nor_text(trained, train_net, monkeypatch, tmp_path):
    def no_weights(*args):
        raise AssertionError("evaluation read CLIP weights")

    monkeypatch.setattr("sagareid.modeling.clip.towers.read_clip_weights", no_weights)
    monkeypatch.setattr("sagareid.modeling.clip.towers.build_text_encoder", no_weights)
    expected = json.loads((trained / "anchors" / "result.json").read_text())["metrics"]
    assert train_net(*QUICKSTART, "--eval-only", *SMALL, "OUTPUT_DIR", trained) == 0
    [found] = json.loads((trained / "evaluation.json").read_text())
    assert found["metrics"] == pytest.approx(expected, abs=1e-3)
    # from the folder of the stage alone, and from an explicit checkpoint of another stage
    assert (
        train_net(
            "--config-file",
            trained / "anchors" / "config.yaml",
            "--eval-only",
            "OUTPUT_DIR",
            tmp_path,
            "MODEL.WEIGHTS",
            trained / "anchors" / "model_final.pth",
        )
        == 0
    )
    [found] = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["metrics"] == pytest.approx(expected, abs=1e-3)


def test_a_configuration_of_another_function_is_refused(trained, train_net, capfd):
    """The command that evaluated half of a model with exit code 0, and its opposite where it is meant."""
    run = [*QUICKSTART, "--eval-only", *SMALL, "OUTPUT_DIR", trained]
    assert train_net(*run, "MODEL.SAGA.REFINE_LAYERS", 1) == 1
    assert "model_final.pth was trained with MODEL.SAGA.REFINE_LAYERS 2, not 1" in capfd.readouterr().err
    meant = ["MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.ACCEPT_DIFFERENCES", '["MODEL.SAGA.REFINE_LAYERS"]']
    assert train_net(*run, *meant) == 0
    assert "accepted by MODEL.ACCEPT_DIFFERENCES" in capfd.readouterr().out
    assert train_net(*QUICKSTART, "--stage", "anchors", *SMALL, "OUTPUT_DIR", trained, "MODEL.SAGA.POOL", "mean") == 1
    assert (
        "anchors_warmup/model_final.pth was trained with MODEL.SAGA.POOL 'anchor', not 'mean'" in capfd.readouterr().err
    )


def test_rows_of_one_pass(trained):
    metrics = json.loads((trained / "anchors" / "result.json").read_text())["metrics"]
    assert {f"{row}/mAP" for row in ("refined", "cls", "proj", "concat", "orth")} <= set(metrics)


# ---- the published recipe on Occluded-Duke's layout -----------------------------------------------------------------


@pytest.mark.slow
def test_occ_duke_recipe_end_to_end(train_net, tmp_path):
    """Real folder and file names; only the model's size, the epochs and the machine are overridden."""
    spec = synthetic.Spec(train_ids=16, test_ids=8, validation_ids=1, gallery_distractors=20, cutouts=0)
    source = synthetic.draw_dataset(tmp_path, spec, workers=1)
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        folder = tmp_path / "Occluded_Duke" / split
        folder.mkdir(parents=True)
        for i, image in enumerate(sorted((source / split).glob("*.jpg"))):
            pid, cam = image.name.split("_")[:2]
            (folder / f"{pid}_c{cam[1]}_f{i:07d}.jpg").write_bytes(image.read_bytes())
    small = [*EMBEDDED_CLIP, *SMALL_IMAGES, "SOLVER.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0]
    small += ["MODEL.BACKBONE.STRIDE_SIZE", "(6,6)", "OUTPUT_DIR", tmp_path / "out"]
    assert train_net("--config-file", "configs/SAGA/occ_duke.yml", *small, root=tmp_path) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["stage"] for r in results] == list(STAGES)


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.HEADS.NAM", "SAGAHead"], "Did you mean MODEL.HEADS.NAME"),
        (["MODEL.HEADS.NAME", "SAGAHaed"], "Did you mean SAGAHead?"),
        (["MODEL.META_ARCHITECTURE", "Baselin"], "valid: "),
        (["MODEL.CLIP.NAME", "ViT-B-61"], "open_clip does not know"),
        (["MODEL.BACKBONE.PRETRAIN_PATH", "/nowhere.pt"], "MODEL.BACKBONE.PRETRAIN False"),
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "PromptHead reads CLIP's class token and projection"),
        (["MODEL.BACKBONE.FEAT_DIM", "64"], "ViT-XS-8-pedestrians gives 128"),
        (["INPUT.SIZE_TEST", "[64,32]"], "differs from SIZE_TRAIN"),
        (["DATASETS.TESTS", "['Nowhere']"], "valid: "),
        (["MODEL.TRAINABLE", "['heads.nothing*']"], "matches none"),
        (["MODEL.DEVICE", "cuda"], "PyTorch sees no GPU here. Say MODEL.DEVICE cpu"),
        (["SOLVER.IMS_PER_BATCH", "10000"], "lower it"),
        (["SOLVER.IMS_PER_BATCH", "64", "DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler"], "needs 16 identities"),
    ],
)
def test_wrong_configuration_is_one_readable_message(options, message, train_net, tmp_path, capfd):
    if options[0] == "MODEL.DEVICE" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if options[0] == "MODEL.HEADS.NAME":
        stage = ["--config-file", "configs/SAGA/Base-SAGA.yml", "MODEL.DEVICE", "cpu", "STAGES", "[]"]
    else:
        stage = [*QUICKSTART, "--stage", "prompts"]
    code = train_net(*stage, *SMALL, "OUTPUT_DIR", tmp_path, *options)
    error = capfd.readouterr().err
    assert code == 1 and message in error and "Traceback" not in error


def test_missing_data_is_named_with_the_remedy(train_net, tmp_path, capfd):
    assert train_net("--config-file", "configs/SAGA/occ_duke.yml", root=tmp_path) == 1
    error = capfd.readouterr().err
    assert "OccludedDuke: no 'query' folder" in error and "FASTREID_DATASETS" in error and "quickstart.yml" in error


def test_unreadable_image_stops_with_its_path(train_net, tiny_root, tmp_path, capfd):
    import shutil

    shutil.copytree(tiny_root / "synthetic_pedestrians", tmp_path / "synthetic_pedestrians")
    victim = sorted((tmp_path / "synthetic_pedestrians" / "bounding_box_train").glob("*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[:100])
    assert train_net(*QUICKSTART, "--stage", "prompts", *SMALL, "OUTPUT_DIR", tmp_path / "out", root=tmp_path) == 1
    assert str(victim) in capfd.readouterr().err


# ---- strict hand-over -----------------------------------------------------------------------------------------------


def test_hand_over_names_what_is_missing():
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="1 missing: bias.*MODEL.NEW_WEIGHTS"):
        hand_over(model, {"weight": torch.zeros(2, 3)}, (), "file")
    with pytest.raises(ValueError, match=r"weight \(2, 4\), expected \(2, 3\)"):
        hand_over(model, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, (), "file")
    assert hand_over(model, {"weight": torch.ones(2, 3)}, ["bia*"], "file") == {"bias"}
    assert bool((model.weight == 1).all())


def test_interrupted_write_leaves_the_old_checkpoint(tmp_path):
    from sagareid.files import write_atomically

    file = tmp_path / "model.pth"
    file.write_bytes(b"old")

    def broken(temporary):
        with open(temporary, "wb") as out:
            out.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(file, broken)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_best_by_test_metric_is_opt_in_and_says_so(train_net, tmp_path, capfd):
    run = [*QUICKSTART, "--stage", "prompts", *SMALL, "OUTPUT_DIR", tmp_path, "TEST.SELECT_BEST", "True"]
    assert train_net(*run) == 0
    assert (tmp_path / "prompts" / f"{hooks.CheckpointHook.BEST}.pth").is_file()
    assert "selected on test data" in capfd.readouterr().out
