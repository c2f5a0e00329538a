"""Where configuration files are, and what stands in them: read by PyYAML, with the line of each key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import did_you_mean

__all__ = ["BASE", "ConfigFile", "WrongYAML", "config_chain", "find_config", "load_yaml", "shipped_configs"]

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
    known = [f"{FOLDER}/{file.relative_to(shipped_configs()).as_posix()}" for file in shipped_configs().rglob("*.yml")]
    raise FileNotFoundError(
        f"no config file at {path}, and none named {name} in {shipped_configs()}, where the shipped ones are."
        f"{did_you_mean(name, known)}"
    )


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as it is written.

    Attributes:
        content: without ``_BASE_``.
        base: its ``_BASE_``; None where it has none.
        lines: of each key, by its whole name such as "MODEL.SAGA.POOL", from 1.
        named_by: the file whose ``_BASE_`` it is; None for the one that was asked for.
    """

    path: Path
    content: dict[str, Any]
    base: str | None
    lines: dict[str, int]
    named_by: ConfigFile | None = None

    def place(self, key: str = "") -> str:
        """The file, the line of a key, and the files through which it is read, for messages."""
        line = f", line {self.lines[key]}" if key in self.lines else ""
        return f"{self.path}{line}{self._route()}"

    def _route(self) -> str:
        names, file = [], self.named_by
        while file is not None:
            names.append(f"the {BASE} of {file.path}")
            file = file.named_by
        return f" ({', '.join(names)})" if names else ""


def config_chain(file: str | Path) -> list[ConfigFile]:
    """The file, the one that it names as its ``_BASE_``, and so on.

    A base is relative to the file that names it, or one that ships.

    Raises:
        FileNotFoundError: one that is not there. ValueError: one that is no mapping, or stands on itself.
    """
    chain = [_read(find_config(file))]
    while (last := chain[-1]).base is not None:
        try:
            path = find_config(last.base, last.path.parent)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{last.place(BASE)}: its {BASE} is not there: {error}") from error
        if any(path.samefile(seen.path) for seen in chain):
            route = " -> ".join(str(step.path) for step in chain)
            raise ValueError(f"{last.place(BASE)}: its {BASE} {path} stands on it in turn ({route}); drop one {BASE}")
        chain.append(_read(path, last))
    return chain


def _read(path: Path, named_by: ConfigFile | None = None) -> ConfigFile:
    def place(line: int | None = None) -> str:
        return ConfigFile(path, {}, None, {"": line} if line else {}, named_by).place()

    try:
        content, lines = load_yaml(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place()}: no UTF-8 text, {error.reason} at byte {error.start}") from error
    except WrongYAML as error:
        raise ValueError(f"{place(error.line)}: {error}") from error
    if content is None:
        raise ValueError(f"{place()} is empty; expected KEY: VALUE pairs, such as {_EXAMPLE}")
    if not isinstance(content, dict):
        raise ValueError(f"{place()} holds a {type(content).__name__}; expected KEY: VALUE pairs, such as {_EXAMPLE}")
    base = content.pop(BASE, None)
    file = ConfigFile(path, content, base, lines, named_by)
    if BASE in lines and not (base and isinstance(base, str)):
        raise ValueError(f"{file.place(BASE)}: {BASE} is {base!r}; expected the name of one file, such as {_EXAMPLE}")
    return file


_EXAMPLE = f"{BASE}: {FOLDER}/SAGA/occ_duke.yml"


class WrongYAML(ValueError):
    """A text that is no YAML, or has a key twice. line: where, from 1; None where PyYAML does not say."""

    def __init__(self, problem: str, mark: yaml.Mark | None = None):
        super().__init__(problem)
        self.line = mark.line + 1 if mark else None


def load_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """What a text of YAML holds, and the line of each key, by its whole name such as "MODEL.SAGA.POOL", from 1.

    PyYAML keeps the last of two equal keys in silence; here they are an error.

    Raises:
        WrongYAML: no YAML, or a key that is there twice.
    """
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _note_lines(node, "", lines, ())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = "; indent by spaces, not by tabs" if "'\\t'" in what else ""
        raise WrongYAML(f"not valid YAML: {what}{hint}", error.problem_mark or error.context_mark) from error
    except yaml.YAMLError as error:
        raise WrongYAML(f"not valid YAML: {' '.join(str(error).split())}") from error


def _note_lines(node: yaml.Node, name: str, lines: dict[str, int], above: tuple[yaml.Node, ...]) -> None:
    """Fill in `lines` below a node of that name, and refuse a key that is there twice. above: the nodes around it."""
    if any(node is other for other in above):
        raise WrongYAML("an alias holds itself", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _note_lines(entry, name, lines, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    here: dict[str, int] = {}
    for key, value in node.value:
        if key.tag.endswith(":merge"):  # <<: what it brings may be given again
            continue
        own = f"{name}.{key.value}" if name else str(key.value)
        if own in here:
            raise WrongYAML(f"{own} is there twice, first in line {here[own]}; put both together", key.start_mark)
        here[own] = key.start_mark.line + 1
        lines.setdefault(own, here[own])
        _note_lines(value, own, lines, (*above, node))
