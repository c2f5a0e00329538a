"""The wheel: what `pip install` puts into an environment works without this checkout, from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from small_runs import SMALL, SMALL_IMAGES

pytestmark = pytest.mark.slow

# Every command by the program's entry point, in one process: help, then a training run by a shipped config's name.
USE = """
import contextlib, io, sys
from importlib.metadata import distribution
import sagareid
site, *arguments = sys.argv[1:]
assert sagareid.__file__.startswith(site), sagareid.__file__
[entry] = [e for e in distribution("sagareid").entry_points if e.name == "sagareid"]
main = entry.load()

def call(*words):
    sys.argv = ["sagareid", *words]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()

names = [line.split()[0] for line in call("--help").splitlines()[2:]]
assert len(names) > 10 and "train" in names, names
for name in names:
    text = call(name, "--help")
    assert text.startswith(f"usage: sagareid {name} ") and "tools/" not in text, text
import numpy as np
image = np.zeros((96, 48, 3), np.uint8)
assert sagareid.Extractor.from_pretrained("drawn-xs", device="cpu")([image]).shape == (1, 384)
sys.argv = ["sagareid", "train", *arguments]
main()
"""


@pytest.fixture(scope="module")
def site(repo, tmp_path_factory) -> Path:
    """The content of a wheel that is built from a copy of the sources."""
    root = tmp_path_factory.mktemp("wheel")
    source, site = root / "source", root / "site"
    package = Path("projects", "SAGA", "sagareid")
    shutil.copytree(repo / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "ranking_*"))
    shutil.copytree(repo / "configs", source / "configs")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(repo / name, source)
    # an empty FastReID: the ranking is not compiled again, which takes longer than all the rest
    (root / "empty" / "fastreid").mkdir(parents=True)
    (root / "empty" / "fastreid" / "__init__.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", root]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, "PYTHONPATH": str(root / "empty")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for compiled in (repo / package / "evaluation").glob("ranking_*"):
        shutil.copytree(compiled, site / "sagareid" / "evaluation" / compiled.name)
    return site


def test_it_has_every_config_and_asset(site, repo):
    for folder, installed in (("configs", "configs"), ("projects/SAGA/sagareid/assets", "assets")):
        expected = {p.relative_to(repo / folder): p.read_bytes() for p in (repo / folder).rglob("*") if p.is_file()}
        found = site / "sagareid" / installed
        assert expected == {p.relative_to(found): p.read_bytes() for p in found.rglob("*") if p.is_file()}


def test_its_program_helps_and_trains_from_another_folder(site, tiny_root, tmp_path):
    arguments = ["--config-file", "configs/SAGA/quickstart.yml", "STAGES", "[]", *SMALL, *SMALL_IMAGES]
    arguments += ["SOLVER.IMS_PER_BATCH", "48", "OUTPUT_DIR", "run"]
    environment = {**os.environ, "PYTHONPATH": str(site), "FASTREID_DATASETS": str(tiny_root)}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(site), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [result] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < result["metrics"]["mAP"] <= 100
