"""How tools end where something is wrong: one message with a remedy, an exit code, nothing half-written, no
traceback."""

from __future__ import annotations

import errno
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import QUICKSTART, SMALL

from sagareid import cli, errors, files, processes

TOOLS = sorted(p.name for p in Path(__file__).resolve().parents[1].glob("tools/*.py"))
PROMPTS = [*QUICKSTART, "--stage", "prompts"]


@pytest.fixture
def closed(tmp_path):
    """A folder that nobody can write to, root neither."""
    if os.geteuid() == 0:
        folder = Path("/sys/kernel")  # sysfs makes no files, whoever asks
        if not folder.is_dir():
            pytest.skip("root can write everywhere here")
        yield folder
        return
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.fixture(scope="module")
def crops(session_tmp) -> Path:
    """A folder of four images."""
    folder = session_tmp / "friction_crops"
    folder.mkdir(exist_ok=True)
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (96, 48, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def commands(tiny_run, crops, session_tmp, repo):
    """Tool -> (words that let it work, without its output; option of its output or None; suffix of that)."""
    config = str(repo / "configs/SAGA/quickstart.yml")
    return {
        "benchmark.py": (["--smoke", "--cases", "prompts"], "--output", ".json"),
        "benchmark_gallery.py": (["--count", 30, "--width", 8, "--queries", 2], "--output", ".json"),
        "benchmark_ranking.py": (["--sizes", "30x300", "--width", 8, "--rounds", 1], "--output", ".json"),
        "benchmark_serving.py": ([crops, "--run", tiny_run, "--images", crops], "--output", ".json"),
        "build_occluded_duke.py": ([crops, crops], "--root", ""),
        "calibrate.py": ([tiny_run], "-o", ".json"),
        "check_dataset.py": (["SyntheticPedestrians"], None, ""),
        "compare.py": ([config, "--seeds", 0], "--output", ""),
        "convert_checkpoint.py": ([tiny_run / "model_final.pth"], "", ".pth"),
        "cross_domain.py": (["--runs", tiny_run, "--targets", "SyntheticPedestriansVal"], "--output", ""),
        "draw_pedestrians.py": (["--train-ids", 2, "--test-ids", 1, "--validation-ids", 1], "--root", ""),
        "draw_street.py": (["--people", 2, "--shared", 1, "--frames", 2], "-o", ""),
        "export.py": ([tiny_run], "-o", ".pt"),
        "extract.py": ([crops, "--run", tiny_run, "--workers", 0], "-o", ".npz"),
        "fit_visibility.py": ([tiny_run, "--dataset", "SyntheticPedestriansVal"], None, ""),
        "gpu_check.py": (["--device", "cpu", "--size", "tiny", "--steps", "export"], "-o", ""),
        "occlusion_study.py": (["--weights", tiny_run], "--output", ""),
        "pretrain_clip.py": (["--people", 8, "--steps", 1], "--output", ""),
        "publish.py": ([tiny_run, "--license", "mit"], "-o", ""),
        "report.py": ([tiny_run], "-o", ".html"),
        "search.py": (["build", crops], "-o", ""),
        "serve.py": ([crops, "--run", tiny_run], None, ""),
        "train_net.py": (["--config-file", config], "OUTPUT_DIR", ""),
        "visualize.py": ([tiny_run, "--queries", 1], "-o", ".png"),
    }


def words_of(commands, tool: str, output: Path | None = None) -> list:
    words, option, suffix = commands[tool]
    if output is None or option is None:
        return list(words)
    return [*words, *([option] if option else []), output.with_name(output.name + suffix)]


def test_every_tool_is_tried_here(commands):
    assert sorted(commands) == TOOLS


# ---- one message, with a remedy, and an exit code -------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_traceback_shows_where_an_error_was_raised(tool, commands, run_tool, tmp_path, monkeypatch):
    """A tool's first import of what it calls fails: one line, and the place if it was asked for."""
    words = words_of(commands, tool, tmp_path / "made")
    for name in TOOLS:
        importlib.import_module(f"sagareid.commands.{Path(name).stem}")
    folders = (
        "benchmarks",
        "benchmarks.gpu",
        "data",
        "data.datasets",
        "deploy",
        "engine",
        "interchange",
        "reports",
        "serving",
        "studies",
        "synthetic",
    )
    for module in ("torch", *(f"sagareid.{folder}" for folder in folders)):
        monkeypatch.setitem(sys.modules, module, None)
    expected = 2 if tool == "check_dataset.py" else 1
    code, _, error = run_tool(tool, *words)
    assert code == expected and re.fullmatch(r"error: .*(torch|sagareid).*\n\(--traceback shows where\)\n", error)
    code, _, error = run_tool(tool, "--traceback", *words)
    assert code == expected and "Traceback (most recent call last)" in error and f"commands/{tool}" in error


@pytest.mark.parametrize("tool", [t for t in TOOLS if t not in ("check_dataset.py", "fit_visibility.py", "serve.py")])
def test_an_output_that_cannot_be_written_is_told_before_the_work(tool, commands, closed, run_tool, repo, monkeypatch):
    monkeypatch.chdir(repo)
    code, out, error = run_tool(tool, *words_of(commands, tool, closed / "made"))
    assert code == 1 and "Traceback" not in error
    if tool == "build_occluded_duke.py":  # its source is looked at first
        return
    assert f"cannot write {closed}/made" in error and "Name another output, or make room or rights" in error
    assert not out.strip() and not (closed / "made").exists()


def test_a_folder_where_a_file_is_due_and_the_other_way_round(commands, run_tool, tmp_path):
    (tmp_path / "made.npz").mkdir()
    code, _, error = run_tool("extract.py", *words_of(commands, "extract.py", tmp_path / "made"))
    assert code == 1 and "it is a folder" in error
    (tmp_path / "index").touch()
    code, _, error = run_tool("search.py", *words_of(commands, "search.py", tmp_path / "index"))
    assert code == 1 and "it is a file" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("tool", ["benchmark.py", "extract.py", "occlusion_study.py", "report.py", "visualize.py"])
def test_a_gpu_that_is_not_there(tool, commands, run_tool, tmp_path):
    code, _, error = run_tool(tool, *words_of(commands, tool, tmp_path / "made"), "--device", "cuda")
    if tool == "report.py":  # a page without ranked lists is still a page: it says why
        assert code == 0 and "sees no GPU here" in next(tmp_path.glob("made.html")).read_text()
        return
    assert code == 1 and "device 'cuda' cannot be used: PyTorch sees no GPU here" in error and "--device cpu" in error
    assert "Traceback" not in error and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_checkpoint_that_was_trained_on_a_gpu(tiny_run, run_tool, tmp_path):
    """It asks for its own device, which a laptop has not."""
    checkpoint = torch.load(tiny_run / "model_final.pth", weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace("DEVICE: cpu", "DEVICE: cuda")
    torch.save(checkpoint, tmp_path / "model_final.pth")
    code, _, error = run_tool("visualize.py", tmp_path)
    assert code == 1 and "PyTorch sees no GPU here" in error and "--device cpu" in error
    assert run_tool("visualize.py", tmp_path, "--device", "cpu", "--queries", 1)[0] == 0


def test_traceback_is_shown_when_asked_for(run_tool, tmp_path, monkeypatch):
    words = ("search.py", "query", tmp_path, "--features", tmp_path)
    code, _, error = run_tool(*words)
    assert code == 1 and error.startswith("error: no gallery in") and error.endswith("(--traceback shows where)\n")
    code, _, error = run_tool(*words, "--traceback")
    assert code == 1 and error.startswith("Traceback") and "error: no gallery in" in error
    monkeypatch.setenv("SAGAREID_TRACEBACK", "1")
    assert run_tool(*words)[2].startswith("Traceback")


@pytest.mark.parametrize(
    "error, message",
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "out of memory (CUDA out of memory",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            "TEST.IMS_PER_BATCH",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "--batch-size of a tool"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device. Make room"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/y"),
            "/x/y: Read-only file system. Give yourself the rights",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json"), "a.json: No such file or directory"),
        (KeyError("model"), "missing 'model'"),
        (ValueError("says what to do"), "says what to do"),
        (TypeError("bad operand"), "TypeError: bad operand"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_messages(error, message):
    text = errors.message_of(error)
    assert message in text and "\n" not in text


def test_memory_that_a_real_allocation_lacks():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert errors.message_of(caught.value).startswith("out of memory (")
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    assert errors.message_of(caught.value).startswith("out of memory (")


# ---- the disk is full -----------------------------------------------------------------------------------------------
# A limit on the size of files stands in for it: writes fail in the same places, by a neighbouring error number.


def _limited(command: list, limit: int, repo: Path, root: Path) -> subprocess.CompletedProcess:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = os.environ | {"FASTREID_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=repo,
        env=environment,
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool, limit", [("export.py", 100_000), ("extract.py", 2_000), ("convert_checkpoint.py", 9_000)]
)
def test_a_full_disk_leaves_the_old_file_and_no_new_one(tool, limit, commands, tmp_path, repo, tiny_root):
    words = words_of(commands, tool, tmp_path / "made")
    target = Path(words[-1])
    if tool != "extract.py":
        target.write_text("old")
    done = _limited([f"tools/{tool}", *words], limit, repo, tiny_root)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"cannot write {tmp_path}" in done.stderr and "make room" in done.stderr
    if tool == "extract.py":
        assert not target.exists()
        assert not list(tmp_path.rglob("part-*"))
        words = ("tools/extract.py", *words)
        assert _limited(words, resource.RLIM_INFINITY, repo, tiny_root).returncode == 0
    else:
        assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.slow
def test_training_on_a_full_disk_goes_on_when_there_is_room(tmp_path, repo, tiny_root):
    command = ["tools/train_net.py", *PROMPTS, "OUTPUT_DIR", tmp_path / "run", *SMALL, "SOLVER.IMS_PER_BATCH", 24]
    command += ["SOLVER.WARMUP_EPOCHS", 0, "CACHE.ENABLED", False]
    done = _limited(command, 500_000, repo, tiny_root)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: cannot write" in done.stderr and "make room" in done.stderr
    stage = tmp_path / "run" / "prompts"
    assert not list(stage.glob("*.pth")) and not (stage / "result.json").exists()
    assert not [p for p in stage.iterdir() if p.name.startswith(".")]
    assert _limited([*command[:1], "--resume", *command[1:]], resource.RLIM_INFINITY, repo, tiny_root).returncode == 0
    assert (stage / "model_final.pth").is_file()


def test_a_full_disk_in_torchs_own_words(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"old")

    def write(temporary: str) -> None:
        Path(temporary).write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: file write "
            "failed"
        )

    with pytest.raises(OSError, match=r"cannot write .*model.pth \(No space left on device\).* make room"):
        files.write_atomically(file, write)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


# ---- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_one_line(capsys):
    for after, told in (("", "interrupted"), ("nothing was left behind", "interrupted; nothing was left behind")):
        with pytest.raises(SystemExit) as end:
            with cli.errors_in_one_line(cli.tool_parser("").parse_args([]), after_interrupt=after):
                raise KeyboardInterrupt
        assert end.value.code == 130 and capsys.readouterr().err.strip() == told


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool, more, begun",
    [
        ("draw_pedestrians.py", ["--workers", 2, "--train-ids", 400], "**/bounding_box_train/*.jpg"),
        ("train_net.py", ["SOLVER.MAX_EPOCH", 500, "DATALOADER.NUM_WORKERS", 1], "prompts/metrics.json"),
    ],
)
def test_ctrl_c_reaches_the_whole_group_and_ends_in_one_line(tool, more, begun, commands, tmp_path, repo, tiny_root):
    """As a terminal sends it: to every process, those that draw and those that load images, too."""
    words = words_of(commands, tool, tmp_path / "made")
    environment = os.environ | {"FASTREID_DATASETS": str(tiny_root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, f"tools/{tool}", *map(str, [*words, *more])],
        cwd=repo,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "made").glob(begun)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in error and "interrupted; " in error, error
    if tool == "draw_pedestrians.py":
        assert [p.name for p in (tmp_path / "made").iterdir() if p.suffix != ".lock"] == []


def _fails_at_three(job: int) -> int:
    if job == 3:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")
    return job * job


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jobs_in_order_and_an_error_of_one(workers):
    found, before = [], signal.getsignal(signal.SIGINT)
    processes.in_processes(_fails_at_three, range(3), workers, found.append)
    assert found == [0, 1, 4]
    with pytest.raises(OSError) as caught:
        processes.in_processes(_fails_at_three, range(6), workers, found.append)
    assert "/x: No space left on device" in errors.message_of(caught.value) and found == [0, 1, 4, 0, 1, 4]
    assert signal.getsignal(signal.SIGINT) is before
