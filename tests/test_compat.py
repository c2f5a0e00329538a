"""The bridges: the host stays untouched, training trains, ranking is compiled where it can be and never ends a run."""

from __future__ import annotations

import base64
import collections
import csv
import hashlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sagareid
from sagareid import compat
from sagareid.config import get_cfg
from sagareid.evaluation import cython_ranking


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


# ---- the host is untouched -----------------------------------------------------------------------------------------
def test_installed_host_matches_its_record():
    files = importlib.metadata.distribution("fastreid").files
    record = next(f for f in files if f.name == "RECORD")
    checked = 0
    with open(record.locate(), newline="") as lines:
        for path, digest, _ in csv.reader(lines):
            if not digest or path.endswith(("INSTALLER", "REQUESTED", "direct_url.json")):
                continue
            algorithm, _, expected = digest.partition("=")
            content = record.locate().parent.parent.joinpath(path).read_bytes()
            found = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).rstrip(b"=").decode()
            assert found == expected, f"{path} differs from what FastReID 1.4.0 installed"
            checked += 1
    assert checked > 100


def test_nothing_compiled_into_the_host():
    folder = cython_ranking.host_sources()["rank_cy"].parent
    assert not list(folder.glob("*.so")) and not list(folder.glob("*.c"))


def test_import_leaves_no_patch_behind():
    code = """
import collections, sys, warnings
import numpy, torch, torchvision, open_clip, sklearn.metrics, cv2, faiss  # which have filters of their own
finders, filters = list(sys.meta_path), list(warnings.filters)
import sagareid
import fastreid.data, fastreid.engine, fastreid.evaluation, fastreid.modeling
assert "torch._six" not in sys.modules
assert not hasattr(collections, "Mapping")
import torch
assert not hasattr(torch, "_six")
ours = [f for f in sys.meta_path if f not in finders and type(f).__module__.startswith("sagareid")]
assert warnings.filters == filters, "only Extractor adds one"
assert [type(f).__name__ for f in ours] == ["FastReIDFinder"], ours
from fastreid.evaluation import rank_cylib, reid_evaluation
assert reid_evaluation.compile_helper is rank_cylib.compile_helper
assert rank_cylib.compile_helper.__module__ == "fastreid.evaluation.rank_cylib"
from torch.utils.data import DataLoader
from fastreid.data import build
assert build.DataLoaderX.__module__ == "fastreid.data.data_utils"
assert "fastreid.evaluation.rank_cylib.rank_cy" not in sys.modules  # nothing is compiled by an import
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_legacy_names_give_back_what_was_there(monkeypatch):
    mine = object()
    monkeypatch.setitem(sys.modules, "torch._six", mine)
    monkeypatch.setattr(collections, "Mapping", mine, raising=False)
    with pytest.raises(KeyError), compat.legacy_names():
        assert issubclass(dict, collections.Mapping)
        assert str in sys.modules["torch._six"].string_classes
        raise KeyError
    assert sys.modules["torch._six"] is mine and collections.Mapping is mine


def test_install_twice_adds_one_finder():
    compat.install({})
    assert sum(isinstance(finder, compat.FastReIDFinder) for finder in sys.meta_path) == 1


# ---- training trains -----------------------------------------------------------------------------------------------
def train_a_little(build, opt: str) -> float:
    """Five steps the host's way (zero_grad, backward, step); returns how far the weights moved."""
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.SOLVER.OPT = opt
    cfg.SOLVER.BASE_LR = 0.1
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer, _ = build(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        loss = model(torch.ones(2, 4)).square().sum() + model[0].weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return max((p - b).abs().max().item() for p, b in zip(model.parameters(), before))


@pytest.mark.parametrize("opt", ["SGD", "Adam", "AdamW"])
def test_optimizer_bridge_moves_the_weights(opt):
    assert train_a_little(compat.build_optimizer, opt) > 1e-3


def test_without_the_bridge_nothing_moves():
    """The trap itself. When this fails, the host has mended it and the bridge can go."""
    from fastreid.solver import build_optimizer

    assert train_a_little(build_optimizer, "SGD") == 0.0


# ---- ranking -------------------------------------------------------------------------------------------------------
def ranking_problem(queries=40, gallery=200, people=12, cameras=4, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.random((queries, gallery), dtype=np.float32),
        rng.integers(0, people, queries),
        rng.integers(0, people, gallery),
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )


needs_compiler = pytest.mark.skipif(
    not compat.cython_ranking_active(), reason="no C compiler here: the host's Python ranking is in use"
)


@needs_compiler
def test_host_ranks_with_the_compiled_module():
    from fastreid.evaluation import rank, reid_evaluation, roc

    assert rank.IS_CYTHON_AVAI and roc.IS_CYTHON_AVAI
    assert "cyfunction" in repr(rank.evaluate_cy)
    reid_evaluation.ReidEvaluator(get_cfg(), 1)  # would call make, and exit, if the module were missing

    problem = ranking_problem()
    cmc, ap, inp = rank.evaluate_rank(*problem)
    cmc_py, ap_py, inp_py = rank.evaluate_rank(*problem, use_cython=False)
    np.testing.assert_array_equal(cmc, cmc_py.astype(np.float32))
    np.testing.assert_allclose(ap, ap_py, atol=1e-6)
    np.testing.assert_allclose(inp, inp_py, atol=1e-6)
    scores, labels = roc.evaluate_roc(*problem)
    scores_py, labels_py = roc.evaluate_roc(*problem, use_cython=False)
    np.testing.assert_array_equal(np.sort(scores[labels == 0]), np.sort(scores_py[labels_py == 0]))


USE_RANKING = """
import pathlib
import sagareid
from sagareid import compat
from sagareid.evaluation import cython_ranking
package, real = pathlib.Path(cython_ranking.__file__).parent, cython_ranking.built_module
cython_ranking.built_module = lambda folder, name: None if folder.parent == package else real(folder, name)
from fastreid.evaluation import ReidEvaluator, rank, roc
ReidEvaluator(sagareid.get_cfg(), 1)
import numpy as np
cmc, ap, inp = rank.evaluate_rank(np.array([[.1, .2, .3]], np.float32), np.array([1]), np.array([2, 1, 1]),
                                  np.array([0]), np.array([0, 1, 1]), max_rank=3)
roc.evaluate_roc(np.array([[.1, .2, .3]], np.float32), np.array([1]), np.array([2, 1, 1]),
                 np.array([0]), np.array([0, 1, 1]))
print("cmc", [float(x) for x in cmc], "compiled", compat.cython_ranking_active())
"""


def test_without_a_compiler_one_warning_and_python_ranking(tmp_path):
    done = run_python(USE_RANKING, CC="/bin/false", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "cmc [0.0, 1.0, 1.0] compiled False" in done.stdout
    assert done.stderr.count("could not be compiled") == 1 and done.stderr.count("unavailable") == 0
    assert "install a C compiler" in done.stderr
    assert not [p for p in (tmp_path / "sagareid").iterdir() if p.suffix != ".lock"]  # no half-made folder stays


@needs_compiler
def test_first_use_compiles_into_the_cache(tmp_path):
    """What a plain `pip install .` leads to: no module beside the package, so the first ranking makes one."""
    done = run_python(USE_RANKING, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0 and "compiled True" in done.stdout, done.stderr
    (folder,) = [p for p in (tmp_path / "sagareid").iterdir() if p.is_dir()]
    assert {p.name.split(".")[0] for p in folder.iterdir()} == {"rank_cy", "roc_cy"}


def test_cache_key_names_versions_and_sources():
    sources = cython_ranking.host_sources()
    name = cython_ranking.cache_folder(sources).name
    for part in (sys.implementation.cache_tag, f"numpy{np.__version__}", "fastreid1.4.0"):
        assert part in name
    assert cython_ranking.source_hash(sources) in name


# ---- loading -------------------------------------------------------------------------------------------------------
def test_dataset_root_is_read_when_used(monkeypatch):
    assert compat.dataset_root() == "datasets"
    monkeypatch.setenv("FASTREID_DATASETS", "/elsewhere")
    assert compat.dataset_root() == "/elsewhere"


def test_package_is_importable_with_its_assets():
    package = importlib.resources.files(sagareid)
    assert package.joinpath("assets").is_dir()
