"""FastReID's Cython ranking, compiled from FastReID's unchanged sources into a place that is ours.

FastReID compiles ``rank_cy.pyx`` and ``roc_cy.pyx`` into its own folder, with whichever ``python3`` PATH has, and ends
the process when that fails (fastreid/evaluation/rank_cylib/__init__.py:15). Here they are compiled

* by setup.py, when FastReID is importable while the package is built (``--no-build-isolation``), into
  ``ranking_<hash of the sources>/`` beside this file;
* otherwise on first use, into ``$XDG_CACHE_HOME/sagareid/ranking_<key>/`` (default ``~/.cache``).

This module stands alone, so that setup.py can load it by path: no import of sagareid, none of fastreid either.
Run as a script (``cython_ranking.py OUTPUT_DIR``) it compiles, which keeps a compiler's noise and exits out of a run.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODULES = ("rank_cy", "roc_cy")
BUILD_TIMEOUT_S = 600

logger = logging.getLogger(__name__)


def host_sources() -> dict[str, Path]:
    """Module name -> the .pyx file of the installed FastReID. Empty where FastReID is not importable.

    FastReID is located, not imported: this also runs while packages are built.
    """
    spec = importlib.util.find_spec("fastreid")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0], "evaluation", "rank_cylib")
    sources = {name: folder / f"{name}.pyx" for name in MODULES}
    return sources if all(path.is_file() for path in sources.values()) else {}


def source_hash(sources: dict[str, Path]) -> str:
    """Twelve hex digits over the sources' bytes: another FastReID never meets a module built from this one's."""
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update(sources[name].read_bytes())
    return digest.hexdigest()[:12]


def make_extensions(sources: dict[str, Path], *, package: str, build_dir: Path) -> list:
    """setuptools extensions ``<package>.rank_cy`` and ``.roc_cy``, translated to C in ``build_dir``.

    Raises ImportError where Cython, numpy or setuptools is missing.
    """
    import numpy
    from Cython.Build import cythonize
    from setuptools import Extension

    build_dir.mkdir(parents=True, exist_ok=True)
    extensions = []
    for name, source in sources.items():
        # Copied, byte for byte: setuptools takes relative paths only, and Cython would write its C beside the source.
        copy = build_dir / source.name
        shutil.copyfile(source, copy)
        extensions.append(
            Extension(
                f"{package}.{name}" if package else name,
                [str(copy)],
                include_dirs=[numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
                optional=True,
            )
        )
    return cythonize(extensions, language_level=3, quiet=True)


def compile_into(folder: Path) -> None:
    """Compile FastReID's sources into ``folder``. Raises with the compiler's message on failure."""
    from setuptools.dist import Distribution

    sources = host_sources()
    if not sources:
        raise FileNotFoundError("found no fastreid/evaluation/rank_cylib/*.pyx; install fastreid==1.4.0")
    with tempfile.TemporaryDirectory() as scratch:
        extensions = make_extensions(sources, package="", build_dir=Path(scratch, "c"))
        for extension in extensions:
            extension.optional = False
        command = Distribution({"name": "ranking", "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib = str(folder)
        command.build_temp = str(Path(scratch, "o"))
        command.ensure_finalized()
        command.run()


def cache_folder(sources: dict[str, Path]) -> Path:
    """Where a build on first use is kept: one folder per Python, numpy and FastReID version and source text."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = [
        sys.implementation.cache_tag,
        f"numpy{importlib.metadata.version('numpy')}",
        f"fastreid{importlib.metadata.version('fastreid')}",
        source_hash(sources),
    ]
    return root / "sagareid" / ("ranking_" + "_".join(parts))


def built_module(folder: Path, name: str) -> Path | None:
    """The compiled ``name`` in ``folder`` for this very Python, or None."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    return None


def find_or_build(name: str) -> Path | None:
    """Path of the compiled ``rank_cy`` or ``roc_cy``, compiled now if need be.

    Returns None, after one warning that says why and what to do, where it cannot be had.
    """
    if _failed:  # the second module of a build that has failed already
        return None
    try:
        sources = host_sources()
        if not sources:
            raise FileNotFoundError("FastReID's .pyx files are not installed")
        packaged = built_module(Path(__file__).with_name(f"ranking_{source_hash(sources)}"), name)
        if packaged is not None:
            return packaged
        folder = cache_folder(sources)
        if not folder.is_dir():
            _build_once(folder)
        return built_module(folder, name)
    except Exception as error:  # whatever went wrong, ranking itself can go on in Python
        warn_once(error)
        return None


def _build_once(folder: Path) -> None:
    """Compile into ``folder`` in a process of its own. Of several runs one compiles; the folder appears complete."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=BUILD_TIMEOUT_S):
        if folder.is_dir():
            return
        logger.info("Compiling FastReID's Cython ranking into %s, once (about 15 s)", folder)
        start = time.perf_counter()
        scratch = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
        try:
            done = subprocess.run(
                [sys.executable, __file__, str(scratch)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
            )
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"the compiler ended with status {done.returncode}")
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        logger.info("Compiled in %.0f s", time.perf_counter() - start)


_failed = False


def warn_once(error: Exception) -> None:
    """Say, the first time, that FastReID's ranking goes on in Python, why, and what would change that."""
    global _failed
    if not _failed:
        _failed = True
        logger.warning(
            "FastReID's Cython ranking could not be compiled (%s); FastReID's own evaluator and TEST.ROC use its "
            "Python: the same metrics, about 30 times slower. To have it, install a C compiler and `pip install "
            "Cython setuptools`, then run again.",
            error,
        )


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]))
