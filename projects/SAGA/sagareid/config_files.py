"""Where configuration files are, and the files that they stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["BASE", "config_chain", "find_config", "shipped_configs"]

FOLDER = "configs"
BASE = "_BASE_"


def shipped_configs() -> Path:
    """The folder ``configs/``: of the checkout that the package runs from, or inside the installed package."""
    package = Path(__file__).resolve().parent
    installed = package / FOLDER
    return installed if installed.is_dir() else package.parents[2] / FOLDER


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """The file of that name, or else the one that ships: ``configs/SAGA/occ_duke.yml`` works in any working folder.

    Args:
        beside: folder that a relative name is relative to; None: the working folder.

    Raises:
        FileNotFoundError: neither is there.
    """
    asked = Path(name).expanduser()
    path = beside / asked if beside else asked
    if path.is_file():
        return path
    parts = asked.parts[1:] if asked.parts[:1] == (FOLDER,) else asked.parts
    shipped = shipped_configs().joinpath(*parts)
    if not asked.is_absolute() and shipped.is_file():
        return shipped
    raise FileNotFoundError(
        f"no config file at {path}, and none named {name} in {shipped_configs()}, where the shipped ones are"
    )


def config_chain(file: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file, the one that it names as its ``_BASE_``, and so on: (path, content without ``_BASE_``).

    A base is relative to the file that names it, or one that ships.

    Raises:
        FileNotFoundError: one that is not there. ValueError: one that is no mapping, or stands on itself.
        yaml.YAMLError: one that is no YAML.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    path: Path | None = find_config(file)
    while path is not None:
        if any(path.samefile(seen) for seen, _ in chain):
            raise ValueError(f"{chain[-1][0]}: its {BASE} {path} stands on it in turn; drop one {BASE}")
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}; expected KEY: VALUE pairs")
        base = content.pop(BASE, None)
        chain.append((path, content))
        try:
            path = find_config(base, path.parent) if base else None
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: its {BASE} is not there: {error}") from error
    return chain
