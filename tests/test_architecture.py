"""The arrows between packages (pyproject.toml, [tool.importlinter]), and that nothing names the workplace."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_imports_keep_the_arrows(repo):
    # a process of its own: the command disables the loggers of the process that calls it
    command = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_names_the_workplace_or_a_registry_host(repo):
    if not (repo / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=True).stdout.split()
    words = ["/".join(["", "work", ""]), "py" + "pi.org", "files.python" + "hosted"]
    for name in files:
        if name.endswith((".py", ".md", ".yml", ".toml", ".txt", "Makefile", "run")):
            text = (repo / name).read_text()
            assert not [w for w in words if w in text], name
