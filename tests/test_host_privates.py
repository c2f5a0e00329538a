"""Privates of FastReID, open_clip, timm and yacs are touched in sagareid/compat alone."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import sagareid
from sagareid.compat.trainer import OpenStepTrainer, OpenTrainer

PACKAGE = Path(sagareid.__file__).parent
HOSTS = ("fastreid", "open_clip", "timm", "yacs")
# with an underscore, and meant for use: methods of namedtuple, and PyTorch's version counter of a tensor
DOCUMENTED = {"_asdict", "_replace", "_fields", "_make", "_version"}
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if "compat" not in p.relative_to(PACKAGE).parts]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def is_host(module: str | None) -> bool:
    return (module or "").partition(".")[0] in HOSTS


def defined_in(tree: ast.AST) -> set[str]:
    """Private names that a source defines: functions, methods, classes, variables, and attributes of `self` or
    `cls`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def is_own(value: ast.AST) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def sources_of(package: str) -> Iterator[ast.AST]:
    folder = Path(importlib.import_module(package).__file__).parent
    for path in folder.rglob("*.py"):
        yield ast.parse(path.read_text())


def privates_of_modules(tree: ast.AST) -> Iterator[str]:
    """`from host import _x`; `x._y` where x was imported from a host, or where a host's source defines `_y` and ours
    none."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_host(node.module):
            imported.update(alias.asname or alias.name for alias in node.names)
            yield from (f"line {node.lineno}: import of {a.name}" for a in node.names if is_private(a.name))
        elif isinstance(node, ast.Import):
            imported.update((a.asname or a.name).partition(".")[0] for a in node.names if is_host(a.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            root = node.value
            while isinstance(root, (ast.Attribute, ast.Call)):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            if node.attr in HOST_PRIVATES - OURS or (isinstance(root, ast.Name) and root.id in imported):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)) and name in HOST_PRIVATES - OURS:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def privates_inherited(cls: type) -> Iterator[str]:
    """What a class of ours reads, writes or overrides of the privates that its host bases define."""
    inherited = set().union(*(privates_of_class(base) for base in cls.__mro__ if is_host(base.__module__)), set())
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    first = inspect.getsourcelines(cls)[1] - 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_own(node.value) and node.attr in inherited:
            yield f"line {first + node.lineno}: {ast.unparse(node)} of {cls.__name__}"
        if isinstance(node, ast.FunctionDef) and node.name in inherited:
            yield f"line {first + node.lineno}: {cls.__name__} overrides {node.name}"


def privates_of_class(cls: type) -> set[str]:
    try:
        return defined_in(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    except (OSError, TypeError):  # of a compiled module
        return set()


# What a few modules import that not every environment has: they have no base of a host's.
EXTRAS = ("fastapi", "pydantic", "uvicorn")


def classes() -> list[type]:
    """Every class of the package outside compat that has a host's class among its bases."""
    found = []
    for info in pkgutil.walk_packages([str(PACKAGE)], "sagareid."):
        if info.name.startswith(("sagareid.compat", "sagareid.evaluation.ranking_")):
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as missing:
            if missing.name in EXTRAS:
                continue
            raise
        own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        found += [c for c in own if any(is_host(base.__module__) for base in c.__mro__)]
    return found


OURS = set().union(*(defined_in(tree) for tree in sources_of("sagareid")))
HOST_PRIVATES = set().union(*(defined_in(tree) for host in ("fastreid", "open_clip") for tree in sources_of(host)))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_private_of_another_package(path):
    assert list(privates_of_modules(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("cls", classes(), ids=lambda c: f"{c.__module__.removeprefix('sagareid.')}.{c.__name__}")
def test_no_private_of_a_base_class(cls):
    assert list(privates_inherited(cls)) == []


def test_the_search_finds_what_the_bridges_touch():
    found = [
        line
        for p in sorted((PACKAGE / "compat").glob("*.py"))
        for line in privates_of_modules(ast.parse(p.read_text()))
    ]
    found += [line for cls in (OpenTrainer, OpenStepTrainer) for line in privates_inherited(cls)]
    for name in (
        "registry._obj_map",
        "build._train_loader_from_config",
        "comm._LOCAL_PROCESS_GROUP",
        "comm._get_global_gloo_group",
        "fastreid_logger._cached_log_stream",
        "self._trainer of OpenTrainer",
        "self._data_loader_iter of OpenStepTrainer",
    ):
        assert any(name in line for line in found), name
    source = "from fastreid.config.defaults import _C\nimport open_clip.factory as f\nf._MODEL_CONFIGS.clear()"
    assert list(privates_of_modules(ast.parse(source))) == ["line 1: import of _C", "line 3: f._MODEL_CONFIGS"]
