"""Several processes over gloo on this machine: the same run as one process, and an end in words where a process
fails."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import distributed_probe
import numpy as np
import pytest
import torch

from sagareid.commands.train_net import main
from sagareid.data import loaders
from sagareid.deploy import gallery
from sagareid.engine import launch
from sagareid.modeling.backbones.clip import CLIPBackbone
from sagareid.weights import load_state

STAGES = ("prompts", "backbone", "anchors_warmup", "anchors")
# which stages run in so many processes, and are compared with one
COMPARED = {2: STAGES, 4: ("backbone", "anchors_warmup")}
PAIRS = [(stage, processes) for processes, names in COMPARED.items() for stage in names]
CONFIG = ["--config-file", "configs/SAGA/quickstart.yml", "--import", "distributed_probe"]
# small, in float32, and with a step that is linear in the gradient: Adam makes noise of a zero gradient
SMALL = [
    "SOLVER.MAX_EPOCH", 1, "SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 0, "CACHE.NUM_VIEWS", 2,
    "SOLVER.AMP.ENABLED", False, "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.001, "SOLVER.WARMUP_EPOCHS", 0,
    "TEST.IMS_PER_BATCH", 16,
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_repo(monkeypatch, repo):
    monkeypatch.chdir(repo)


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(
        **{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "dist_timeout": 60.0} | given
    )


def train(folder, processes: int, root, *more: object, opts=(), **probe: str) -> int:
    """The command line in `processes` processes, with more options and KEY VALUE pairs; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(root))
        for name, value in probe.items():
            patch.setenv(name, value)
        try:
            pairs = map(str, [*SMALL, *opts, "OUTPUT_DIR", folder])
            main([*CONFIG, "--num-gpus", str(processes), *map(str, more), *pairs])
        except SystemExit as end:
            return end.code
    return 0


@pytest.fixture(scope="module")
def runs(tiny_root, tmp_path_factory, repo):
    """By number of processes, the folder of a run: of all stages in one process, and of each stage from that run's
    weights.

    Noise of the order of summation grows from step to step (a triplet picks another image), so each stage is compared
    by itself, over one epoch.
    """
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo)
        for processes in (1, 2, 4):
            folders[processes] = folder = tmp_path_factory.mktemp(f"processes{processes}")
            if processes == 1:
                assert train(folder, 1, tiny_root) == 0
                continue
            patch.setenv("FASTREID_DATASETS", str(tiny_root))
            arguments = (
                CONFIG[1],
                [str(o) for o in [*SMALL, "OUTPUT_DIR", folder]],
                str(folder),
                str(folders[1]),
                COMPARED[processes],
            )
            launch.launch(distributed_probe.train_each_stage, arguments, options(num_gpus=processes), device="cpu")
    return folders


def weights(folder, stage: str) -> dict[str, torch.Tensor]:
    return load_state(folder / stage / "model_final.pth")["model"]


def metrics(file) -> dict:
    return json.loads(file.read_text())["metrics"]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within float noise of the largest entry of each tensor: sums in another order, carried through half a dozen
    steps."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs().max()
        assert difference <= 2e-5 * value.double().abs().max().clamp(min=1e-3), name


# ---- the same as one process ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage, processes", PAIRS)
def test_training_equals_one_process_on_the_same_batches(stage, processes, runs):
    """Fails without the shared batches, the gathered losses or the neck's statistics of the whole batch."""
    assert_close(weights(runs[processes], stage), weights(runs[1], stage))
    ours, expected = (metrics(runs[n] / stage / "result.json") for n in (processes, 1))
    assert ours.keys() == expected.keys()


@pytest.mark.slow
def test_loader_workers_read_the_cache_of_every_process(runs, tiny_root, tmp_path):
    """As the quick start ships: a feature cache, read by workers. Each process has been started by a fork server, which
    cannot hand the maps of the cache on to workers that start likewise."""
    more = ["--stage", "prompts"]
    assert train(tmp_path, 2, tiny_root, *more, opts=["DATALOADER.NUM_WORKERS", 1]) == 0
    assert_close(weights(tmp_path, "prompts"), weights(runs[1], "prompts"))


@pytest.mark.slow
def test_the_runs_did_train(runs):
    """What equality is worth: the stages move the weights by far more than the tolerance."""
    moved = (
        weights(runs[1], "anchors")["heads.classifiers.0.weight"]
        - weights(runs[1], "anchors_warmup")["heads.classifiers.0.weight"]
    )
    assert moved.abs().max() > 1e-3 * weights(runs[1], "anchors")["heads.classifiers.0.weight"].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("stage, processes", PAIRS)
def test_every_rank_holds_the_same_weights_after_a_stage(stage, processes, runs):
    """Fails where a part that starts afresh, or a buffer, is each process's own."""
    first, *others = (torch.load(runs[processes] / f"{stage}.rank{r}.pt") for r in range(processes))
    for other in others:
        differ = [n for n in first if not torch.equal(first[n], other[n])]
        # rank 0 brings these up to date from the weights when it saves
        assert all(n.endswith(("text_features", "prompt_context", "text_anchors.anchors")) for n in differ), differ


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_gradients_equal_those_of_the_whole_batch(processes, tmp_path):
    distributed_probe.save_gradients(str(tmp_path))
    launch.launch(distributed_probe.save_gradients, (str(tmp_path),), options(num_gpus=processes), device="cpu")
    expected = torch.load(tmp_path / "gradients.1.rank0.pt")
    for rank in range(processes):
        found = torch.load(tmp_path / f"gradients.{processes}.rank{rank}.pt")
        for name, pair in expected.items():
            for ours, single in zip(found[name], pair):
                torch.testing.assert_close(ours, single, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_dropout_masks_are_those_of_the_whole_batch(processes, tmp_path):
    """Of every image, also where a group of images that is computed at once is of two processes; twice in a row."""
    distributed_probe.save_refined(str(tmp_path))
    launch.launch(distributed_probe.save_refined, (str(tmp_path),), options(num_gpus=processes), device="cpu")
    expected, state = torch.load(tmp_path / "refined.1.rank0.pt")
    ranks = [torch.load(tmp_path / f"refined.{processes}.rank{r}.pt") for r in range(processes)]
    for step in range(2):
        assert (expected[step] == 0).float().mean() > 0.05, "something is dropped"
        found = torch.cat([refined[step] for refined, _ in ranks])
        assert torch.equal(found == 0, expected[step] == 0)
        torch.testing.assert_close(found, expected[step])
    assert torch.equal(ranks[0][1], state), "rank 0 goes on as one process does"


@pytest.mark.slow
def test_evaluation_is_identical(runs, tiny_root, tmp_path):
    """Features in every process bit for bit, and the metrics, for one, two and four processes; rank 0 alone writes."""
    found = {}
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        folder.mkdir()
        more = ["--eval-only"]
        trained = ["MODEL.WEIGHTS", runs[1] / "anchors" / "model_final.pth"]
        assert train(folder, processes, tiny_root, *more, opts=trained, PROBE_SAVE=str(folder)) == 0
        features, *others = (torch.load(folder / f"features.rank{rank}.pt") for rank in range(processes))
        assert all(torch.equal(features, other) for other in others)
        found[processes] = features, metrics_of_evaluation(folder)
    assert torch.equal(found[2][0], found[4][0]) and found[2][1] == found[4][1]
    assert found[2][1] == metrics(runs[1] / "anchors" / "result.json")


@pytest.mark.slow
def test_a_ranking_is_shared_and_the_same_bits(tmp_path):
    """By one, two and four processes, of images that one of them may hold none of. Each asks for the distances of its
    own blocks."""
    found, asked = {}, {}
    for processes in (1, 2, 4):
        if processes == 1:
            distributed_probe.save_ranking(str(tmp_path))
        else:
            launch.launch(distributed_probe.save_ranking, (str(tmp_path),), options(num_gpus=processes), device="cpu")
        files = [tmp_path / f"ranking.{processes}.rank{rank}.pt" for rank in range(processes)]
        loaded = [torch.load(file, weights_only=False) for file in files]
        found[processes], *others = (ranking for ranking, _ in loaded)
        assert others == [None] * (processes - 1)
        asked[processes] = [blocks for _, blocks in loaded]
    assert 0.05 < found[1]["ap"].mean() < 0.95 and found[1]["skipped"] == 300
    for processes in (2, 4):
        for name, value in found[1].items():
            np.testing.assert_array_equal(found[processes][name], value, name)
        assert sorted(block for blocks in asked[processes] for block in blocks) == asked[1][0] and len(asked[1][0]) == 2
        assert max(map(len, asked[processes])) == 1


def metrics_of_evaluation(folder) -> dict:
    [result] = json.loads((folder / "evaluation.json").read_text())
    return result["metrics"]


def test_shares_of_batches_make_up_the_data_set(monkeypatch):
    for images, size, processes in ((100, 16, 4), (100, 200, 4), (33, 16, 2), (5, 1, 3)):
        monkeypatch.setattr(loaders.comm, "get_world_size", lambda n=processes: n)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(loaders.comm, "get_rank", lambda n=rank: n)
            shares.append(loaders._share_of_batches(images, size))
        batches = [b for share in shares for b in share]
        assert [i for b in batches for i in b] == list(range(images))
        assert all(len(b) == size for b in batches[:-1]) and max(map(len, shares)) - min(map(len, shares)) <= 1


# ---- going on with another number of processes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_epochs(runs, tiny_root, tmp_path_factory, repo):
    """Arguments and the weights of an uninterrupted run of one process."""
    opts = ["SOLVER.MAX_EPOCH", 2, "MODEL.WEIGHTS", runs[1] / "prompts" / "model_final.pth"]
    folder = tmp_path_factory.mktemp("two_epochs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo)
        assert train(folder, 1, tiny_root, "--stage", "backbone", opts=opts) == 0
    return opts, weights(folder, "backbone")


@pytest.fixture
def heeds_ctrl_c():
    """A shell's background job starts with SIGINT ignored; these tests send it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 4), (4, 1)])
def test_interrupted_and_resumed_by_another_number_of_processes(
    before, after, heeds_ctrl_c, two_epochs, tiny_root, tmp_path, capfd
):
    """Ctrl-C in the second epoch ends every process with 130 and one line; the order of the images goes on."""
    opts, expected = two_epochs
    probe = {"PROBE_TROUBLE": f"interrupt {before - 1} 12", "PROBE_LAUNCHER": str(os.getpid())}
    assert train(tmp_path, before, tiny_root, "--stage", "backbone", opts=opts, **probe) == 130
    error = capfd.readouterr().err
    assert "interrupted; the same command with --resume goes on" in error and "Traceback" not in error
    assert (tmp_path / "backbone" / "last.pth").exists() and not (tmp_path / "backbone" / "model_final.pth").exists()
    assert train(tmp_path, after, tiny_root, "--resume", "--stage", "backbone", opts=opts) == 0
    assert_close(weights(tmp_path, "backbone"), expected)


# ---- a process fails ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble, message",
    [
        ("kill 1 3", r"rank 1 of 2, process \d+, was killed by SIGKILL.*--resume goes on"),
        ("raise 1 3", r"rank 1 of 2: a reason of its own\n"),
        (
            "hang 1 3",
            r"rank 0 of 2 lost touch with another process.*a process hangs, or needs longer than --dist-timeout",
        ),
    ],
    ids=lambda value: value.split()[0],
)
def test_a_lost_rank_ends_the_job_with_its_reason(trouble, message, tiny_root, tmp_path, capfd):
    begun = time.monotonic()
    more = ["--stage", "prompts", "--dist-timeout", "8"]
    assert train(tmp_path, 2, tiny_root, *more, PROBE_TROUBLE=trouble) == 1
    assert time.monotonic() - begun < 60, "bounded"
    error = capfd.readouterr().err
    assert re.search(f"error: {message}", error) and "Traceback" not in error, error
    assert error.count("error: ") == 1


@pytest.mark.slow
def test_a_machine_that_never_comes(tiny_root, tmp_path, capfd):
    more = ["--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--dist-timeout", 4]
    assert train(tmp_path, 1, tiny_root, "--stage", "prompts", *more) == 1
    assert re.search("error: rank 0 of 2: the 2 processes did not meet at tcp://127.0.0.1", capfd.readouterr().err)


@pytest.mark.slow
def test_an_unreadable_image_on_one_rank_is_named(tiny_root, tmp_path, capfd):
    import shutil

    shutil.copytree(tiny_root / "synthetic_pedestrians", tmp_path / "synthetic_pedestrians")
    victim = sorted((tmp_path / "synthetic_pedestrians" / "bounding_box_train").glob("*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[:100])
    assert train(tmp_path / "out", 2, tmp_path, "--stage", "prompts") == 1
    assert re.search(rf"error: rank \d of 2: .*{victim.name}", capfd.readouterr().err)


@pytest.mark.slow
def test_the_launcher_killed_takes_its_processes_along(tiny_root, tmp_path, repo):
    """SIGKILL to the launcher alone; nothing of the job is left running."""
    command = [
        sys.executable,
        "tools/train_net.py",
        *CONFIG[:2],
        "--num-gpus",
        "2",
        "--stage",
        "prompts",
        *map(str, SMALL),
    ]
    environment = {**os.environ, "FASTREID_DATASETS": str(tiny_root)}
    command += ["SOLVER.MAX_EPOCH", "5000", "OUTPUT_DIR", str(tmp_path)]
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(command, cwd=repo, env=environment, stdout=out, stderr=out)
    deadline = time.monotonic() + 120
    while not (tmp_path / "prompts" / "last.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while still := _processes_with(str(tmp_path)):
        assert time.monotonic() < deadline, still
        time.sleep(0.1)


def _processes_with(folder: str) -> list[int]:
    """Processes that hold a file under `folder` open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if any(link.startswith(folder) for link in links):
            found.append(int(pid))
    return found


# ---- options --------------------------------------------------------------------------------------------------------

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_options_and_torchrun_say_how_many(monkeypatch):
    assert launch.number_of_processes(options(num_gpus=2, num_machines=3, dist_url="tcp://a:1"), {}) == 6
    assert launch.number_of_processes(options(), TORCHRUN) == 4
    for wrong, message in (
        (options(num_gpus=0), "expected one"),
        (options(num_machines=2, machine_rank=2, dist_url="tcp://a:1"), "machine rank"),
        (options(num_machines=2), "--dist-url tcp://HOST:PORT"),
    ):
        with pytest.raises(ValueError, match=message):
            launch.number_of_processes(wrong, {})
    with pytest.raises(ValueError, match="leave --num-gpus"):
        launch.number_of_processes(options(num_gpus=2), TORCHRUN)
    with pytest.raises(ValueError, match="same number of processes"):
        launch._torchrun_place({**TORCHRUN, "RANK": "2"})


def test_a_device_for_each(monkeypatch):
    with pytest.raises(ValueError, match="set MODEL.DEVICE cuda"):
        launch._check_devices("cuda:0", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 processes on a machine with 1 GPU.*MODEL.DEVICE cpu"):
        launch._check_devices("cuda", 2)


def test_a_batch_that_cannot_be_shared(tiny_root, tmp_path, capfd):
    assert train(tmp_path, 3, tiny_root, "--stage", "backbone") == 1
    assert "set a multiple of 12" in capfd.readouterr().err


def test_what_no_loss_reaches_is_what_gets_no_gradient():
    """The list that the tower gives of parameters behind an output, against autograd's."""
    from sagareid.modeling.clip import towers

    visual = towers.build_vision_tower("ViT-XS-8-pedestrians", (48, 24), 8)
    for layers in ([2], [1, 3], [4]):
        tower = CLIPBackbone(visual=visual, token_layers=layers, output="tokens")
        for outputs in ({"patches"}, {"layer_cls"}, {"cls"}, {"proj"}, {"patches", "proj"}, {"patches", "cls"}):
            tower.zero_grad()
            features = tower(torch.randn(2, 3, 48, 24))
            sum(getattr(features, name).pow(2).sum() for name in outputs).backward()
            none = {n for n, p in tower.named_parameters() if p.grad is None}
            unread = {id(p) for p in tower.unread(outputs)}
            assert none == {n for n, p in tower.named_parameters() if id(p) in unread}, (layers, outputs)


# ---- the recipes of docs/multi_gpu.md -------------------------------------------------------------------------------


def recipe(repo, heading: str) -> list[str]:
    """Commands of the fenced block under a heading, backslashes joined."""
    text = (repo / "docs" / "multi_gpu.md").read_text()
    block = re.search(rf"^#+ {heading}.*?```\n(.*?)```", text, re.S | re.M).group(1)
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_recipe(commands: list[str], repo, root, folder) -> None:
    """Run commands side by side as "machines" of this one, on the CPU and small; all must end well."""
    port = free_port()
    small = shlex.join(map(str, [*SMALL, "SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder]))
    environment = {
        **os.environ,
        "FASTREID_DATASETS": str(root),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    processes = []
    for command in commands:
        command = command.replace("HOST:29500", f"127.0.0.1:{port}").replace(
            "occ_duke.yml", "quickstart.yml --stage prompts"
        )
        command = command.replace("--num-gpus 8", "--num-gpus 1").replace("--nproc-per-node 8", "--nproc-per-node 2")
        processes.append(
            subprocess.Popen(
                f"{command} {small}",
                shell=True,
                cwd=repo,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [p.communicate(timeout=240)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(commands), "\n".join(outputs)
    assert sum("| prompts " in output for output in outputs) == 1, "rank 0 alone prints the table"


@pytest.mark.slow
def test_recipe_for_two_machines(repo, tiny_root, tmp_path):
    commands = recipe(repo, "Several machines")
    assert ["--machine-rank 0" in commands[0], "--machine-rank 1" in commands[1], len(commands)] == [True, True, 2]
    run_recipe(commands, repo, tiny_root, tmp_path)
    assert (tmp_path / "prompts" / "model_final.pth").exists()
    assert (tmp_path / "feature_cache" / "machine1").is_dir(), "the second machine has a cache of its own"


@pytest.mark.slow
def test_recipe_for_torchrun(repo, tiny_root, tmp_path):
    [command] = recipe(repo, "torchrun")
    run_recipe([command], repo, tiny_root, tmp_path)
    assert (tmp_path / "prompts" / "model_final.pth").exists()


@pytest.mark.slow
def test_recipe_for_extraction(repo, tiny_root, tiny_run, tmp_path):
    """The command of docs/deploy.md under torchrun, as it is written but for the number of processes."""
    [command] = re.findall(r"^torchrun .*extract.*$", (repo / "docs" / "deploy.md").read_text(), re.MULTILINE)
    (tmp_path / "logs/SAGA/quickstart").mkdir(parents=True)
    (tmp_path / "logs/SAGA/quickstart/anchors").symlink_to(tiny_run)
    (tmp_path / "tools").symlink_to(repo / "tools")
    (tmp_path / "crops").mkdir()
    for image in sorted((tiny_root / "synthetic_pedestrians" / "query").glob("*.jpg"))[:5]:
        (tmp_path / "crops" / image.name).symlink_to(image)
    words = shlex.split(command.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    words[0] = os.path.join(os.path.dirname(sys.executable), words[0])
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 images" in done.stdout and gallery.FeatureSet(tmp_path / "features").count == 5
