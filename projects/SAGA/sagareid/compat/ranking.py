"""FastReID's compiled ranking, from a build of ours."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util

__all__ = ["MODULES", "cython_ranking_active", "make_spec"]


MODULES = ("fastreid.evaluation.rank_cylib.rank_cy", "fastreid.evaluation.rank_cylib.roc_cy")


def make_spec(name: str) -> importlib.machinery.ModuleSpec:
    """How one of `MODULES` is imported from a build of ours, made on first use.

    Why: evaluation/reid_evaluation.py:126 otherwise runs ``make`` inside site-packages with PATH's ``python3`` and ends
    the process when that fails (evaluation/rank_cylib/__init__.py:20), in the middle of a training run.
    Nothing is compiled before FastReID asks for the module. Without a compiler the name resolves to FastReID's own
    Python ranking, so FastReID neither calls ``make`` nor exits; `cython_ranking_active` tells which one runs.
    Goes when: a FastReID release ships its ranking compiled.
    """
    return importlib.machinery.ModuleSpec(name, _RankingLoader(), origin="sagareid")


def cython_ranking_active() -> bool:
    """Whether FastReID ranks with compiled code. Imports, and so on first use compiles, the ranking."""
    module = importlib.import_module("fastreid.evaluation.rank_cylib.rank_cy")
    return not getattr(module, "PYTHON_FALLBACK", False)


class _RankingLoader(importlib.abc.Loader):
    """Loads the compiled module under FastReID's name, or a stand-in that calls FastReID's Python ranking."""

    def create_module(self, spec):
        from ..evaluation import cython_ranking

        name = spec.name.rpartition(".")[2]
        path = cython_ranking.find_or_build(name)
        if path is not None:
            try:
                self._loader = importlib.machinery.ExtensionFileLoader(spec.name, str(path))
                compiled = importlib.util.spec_from_file_location(spec.name, path, loader=self._loader)
                return self._loader.create_module(compiled)
            except ImportError as error:  # built for another numpy or C library
                cython_ranking.warn_once(error)
        self._loader = None
        return None

    def exec_module(self, module):
        if self._loader is not None:
            self._loader.exec_module(module)
            return
        module.PYTHON_FALLBACK = True

        def evaluate_cy(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03=False):
            from fastreid.evaluation import rank

            return rank.evaluate_py(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)

        def evaluate_roc_cy(distmat, q_pids, g_pids, q_camids, g_camids):
            from fastreid.evaluation import roc

            return roc.evaluate_roc_py(distmat, q_pids, g_pids, q_camids, g_camids)

        if module.__name__.endswith("rank_cy"):
            module.evaluate_cy = evaluate_cy
        else:
            module.evaluate_roc_cy = evaluate_roc_cy
