"""tools/NAME.py and `sagareid NAME` are the same commands, quick to ask for help, and need no checkout."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sagareid import __main__ as program
from sagareid import cli
from sagareid.engine.options import training_parser

REPO = Path(__file__).resolve().parents[1]
TOOLS = sorted(p.stem for p in REPO.glob("tools/*.py"))
# What takes a second or more to import; numpy, Pillow and yaml are quick.
HEAVY = ("torch", "torchvision", "fastreid", "open_clip", "timm", "sklearn", "scipy", "faiss", "pyarrow", "matplotlib")


def run_python(code: str, *argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300)


IMPORTED = f"""
import sys
def heavy():
    return [m for m in {HEAVY!r} if m in sys.modules]
"""


# ---- quick -----------------------------------------------------------------------------------------------------------


def test_no_help_imports_anything_heavy():
    """All tools in one process: none may import what takes longer than its help text is worth."""
    code = f"""{IMPORTED}
import contextlib, io, runpy
for tool in sys.argv[1:]:
    sys.argv = [tool, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(f"tools/{{tool}}.py", run_name="__main__")
    assert out.getvalue().startswith("usage:"), tool
    assert not heavy(), (tool, heavy())
"""
    done = run_python(code, *TOOLS, cwd=REPO)
    assert done.returncode == 0, done.stderr


def test_no_help_of_the_installed_program_imports_anything_heavy():
    code = f"""{IMPORTED}
import contextlib, io
from sagareid import __main__ as program
for name in ["--help", "--version", *program.modules()]:
    sys.argv = ["sagareid", name, *(["--help"] if name in program.modules() else [])]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        program.main()
    assert out.getvalue() and not heavy(), (name, heavy())
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = run_python(f"{IMPORTED}\nimport sagareid; sagareid.__version__; assert not heavy(), heavy()")
    assert done.returncode == 0, done.stderr


def test_searching_by_features_needs_neither_torch_nor_fastreid(tmp_path):
    code = f"""{IMPORTED}
import numpy as np
x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
np.savez("features.npz", features=x, paths=[f"{{i}}.png" for i in range(6)])
from sagareid.commands.search import main
main(["build", "features.npz", "-o", "index"])
main(["query", "index", "--features", "features.npz", "-k", "2"])
unwanted = set(heavy()) - {{"faiss", "pyarrow"}}
assert not unwanted, unwanted
"""
    done = run_python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5.png" in done.stdout and "1.0000" not in done.stdout  # nothing finds itself


# ---- registered -----------------------------------------------------------------------------------------------------

# What others provide is imported once; each way to begin then has a process of its own, forked from there. It ends
# without taking PyTorch down again, which takes longer than all the rest.
FORKS = """
import os, sys, traceback
import faiss, open_clip, sklearn.metrics, torch, torch.utils.tensorboard, torchvision
assert not ({"fastreid", "sagareid"} & set(sys.modules))
check, *beginnings = sys.argv[1:]
for first in beginnings:
    if os.fork():
        continue
    try:
        exec(first + check)
        print(f"checked: {first}", flush=True)
        os._exit(0)
    except BaseException:
        print(f"after {first}:\\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)
sys.exit(any([os.wait()[1] for _ in beginnings]))
"""
CHECK = """
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
for registry, names in (
    (DATASET_REGISTRY, ("OccludedDuke", "CSVDataset", "MMMP", "SyntheticPedestrians")),
    (BACKBONE_REGISTRY, ("build_clip_vit_backbone", "build_timm_backbone")),
    (REID_HEADS_REGISTRY, ("SAGAHead", "PromptHead", "CLSHead")),
    (META_ARCH_REGISTRY, ("SAGABaseline",)),
):
    missing = [name for name in names if name not in registry._obj_map]
    assert not missing, (registry._name, missing)
"""


@pytest.mark.slow
def test_fastreid_has_our_parts_whatever_is_imported_first():
    beginnings = [
        "import sagareid",
        "import sagareid; import fastreid.data.build",
        "import sagareid; from fastreid.engine import DefaultTrainer",
        "from sagareid.modeling import losses",
        "from sagareid.data.datasets.duke import OccludedDuke",
        "from sagareid.synthetic import drawn",
        "import fastreid.modeling; import sagareid",
    ]
    done = run_python(FORKS, CHECK, *beginnings)
    assert done.returncode == 0, done.stderr
    assert all(f"checked: {first}" in done.stdout for first in beginnings)


@pytest.mark.slow
def test_names_of_the_package_are_there_when_asked_for():
    done = run_python(
        "import sagareid\nassert all(getattr(sagareid, n) is not None for n in sagareid.__all__)\nsagareid.nothing"
    )
    assert done.returncode == 1 and "module 'sagareid' has no attribute 'nothing'" in done.stderr


# ---- one command, two ways ------------------------------------------------------------------------------------------


def test_every_tool_is_a_command_of_the_program():
    assert sorted(program.modules()) == sorted(cli.command_name(tool) for tool in TOOLS)
    assert all(f"\n  {name} " in program.usage() for name in program.modules())


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser, and those of its subcommands."""
    found = {}
    for name, module in program.modules().items():
        command = importlib.import_module(module)
        found[name] = training_parser() if name == "train" else command.argument_parser()
        for action in found[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {sub}": parser for sub, parser in action.choices.items()}
    return found


@pytest.mark.parametrize("name", sorted(parsers()))
def test_every_option_says_what_it_does_and_its_default(name):
    for action in parsers()[name]._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        help = action.help or ""
        assert len(help.partition("(default")[0].split()) > 1, f"{name} {action.dest}: {help!r} does not say what it is"
        flag, listed = action.nargs == 0, isinstance(action, argparse._AppendAction)
        if action.option_strings and not (flag or listed or action.required):
            assert "default" in help, f"{name} {action.dest}: {help!r} does not say its default"


def test_the_program_calls_the_command_under_its_own_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sagareid", "extract", "--help"])
    with pytest.raises(SystemExit) as end:
        program.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0 and printed.startswith("usage: sagareid extract ")
    assert "    sagareid extract crops --checkpoint" in printed and "-m sagareid extract crops" in printed
    assert "tools/" not in printed and cli.command_line() == "sagareid extract --help"


def test_a_tool_calls_itself_by_its_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(REPO / "tools" / "extract.py"), "a b", "--run", "c"])
    assert cli.command_line() == "python tools/extract.py 'a b' --run c"


def test_an_unknown_command_is_named_and_the_known_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sagareid", "trian"])
    with pytest.raises(SystemExit) as end:
        program.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and "no command 'trian'" in error and "\n  train " in error


@pytest.mark.parametrize("tool", TOOLS)
def test_torchrun_takes_no_option_of_a_tool_for_its_own(tool):
    """Every option has a name that can stand behind torchrun, which looks for its own among all words: --run would be
    its --run-path."""
    from torch.distributed.run import parse_args

    command = importlib.import_module(f"sagareid.commands.{tool}")
    parser = command.training_parser() if tool == "train_net" else command.argument_parser()
    for action in parser._actions:
        taken = []
        for name in action.option_strings:
            try:
                assert parse_args([f"tools/{tool}.py", name]).training_script_args == [name]
            except SystemExit:
                taken.append(name)
        assert not action.option_strings or set(taken) < set(action.option_strings), taken


def test_training_takes_every_option_of_fastreids_own():
    from fastreid.engine import default_argument_parser

    ours = {s: a for a in training_parser()._actions for s in a.option_strings}
    for action in default_argument_parser()._actions:
        for name in action.option_strings:
            assert ours[name].type is action.type and ours[name].nargs == action.nargs, name
            assert name in ("-h", "--help", "--dist-url") or ours[name].default == action.default, name
