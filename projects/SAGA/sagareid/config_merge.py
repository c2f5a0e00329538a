"""Configuration files and KEY VALUE pairs merged into the defaults by FastReID's CfgNode, each error with its place."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastreid.config import CfgNode

from .config import flatten, get_cfg
from .config_files import ConfigFile, WrongYAML, config_chain, load_yaml
from .errors import did_you_mean
from .retired import take_out, without_retired

__all__ = ["COMMAND_LINE", "merge_files", "merge_pairs", "read_config"]

COMMAND_LINE = "command line"


def read_config(config_file: str | Path | None = None, opts: Sequence[object] = ()) -> CfgNode:
    """A config file over the defaults, then KEY VALUE pairs of a command line.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: one that cannot be read, an unknown key, a value of another type than the default's; with the file
            and the line.
    """
    cfg = get_cfg()
    if config_file:
        merge_files(cfg, config_chain(config_file))
    merge_pairs(cfg, opts)
    return cfg


def merge_files(cfg: CfgNode, chain: Sequence[ConfigFile]) -> None:
    """Merge a file of `config_chain`, its bases first. Errors as `read_config`."""
    known = flatten(cfg)
    for file in reversed(chain):
        problems = []
        for key, value in _leaves(take_out(file.content, file.place())).items():
            if problem := _merge(cfg, key, value, known):
                problems.append(f"{file.place(key)}: {problem}")
        _refuse(problems)


def merge_pairs(cfg: CfgNode, opts: Sequence[object], place: str = COMMAND_LINE) -> None:
    """Merge KEY VALUE pairs. Lists may be written as in YAML: ``"[{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}]"``.

    Args:
        place: where they stand, for messages.

    Raises:
        ValueError: as `read_config`, or a key without a value.
    """
    words, known = without_retired(opts, place), flatten(cfg)
    problems = []
    for key, value in zip(words[::2], words[1::2]):
        try:
            problem = _merge(cfg, key, _as_list(value) if isinstance(known.get(key), list) else value, known)
        except _NoList as error:
            problem = _no_list(key, value, str(error))
        if problem:
            problems.append(f"{place}: {problem}")
    if len(words) % 2:
        problems.append(f"{place}: {words[-1]} has no value; expected pairs of KEY VALUE{_as_pair(words[-1])}")
    _refuse(problems)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(
            "\n  ".join(["this configuration cannot be read:", *problems]) if problems[1:] else problems[0]
        )


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """As `flatten`, of what a file holds: sections without a key are leaves, too, since nothing says what they are."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        below = _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        out |= below or {f"{prefix}{key}": value}
    return out


def _merge(cfg: CfgNode, key: str, value: Any, known: Mapping[str, Any]) -> str:
    """Let FastReID's CfgNode merge one key. Returns what is wrong with it; empty where nothing is.

    Args:
        known: every key with its value before.
    """
    if not (key in known or cfg.key_is_renamed(key) or cfg.key_is_deprecated(key)):
        return _unknown(key, value, known)
    if _decoded(value) is None:  # which yacs lets pass for anything
        return f"{key} has no value; expected {_kind(known[key])}, such as {known[key]!r}"
    try:
        cfg.merge_from_list([key, value])
    except KeyError as error:  # renamed
        return str(error.args[0])
    except ValueError:
        return _wrong_type(key, value, known[key])
    return ""


def _unknown(key: str, value: Any, known: Mapping[str, Any]) -> str:
    if any(name.startswith(f"{key}.") for name in known):
        if value == {}:
            return ""  # a section without a key changes nothing
        example = next(name for name in known if name.startswith(f"{key}."))
        return (
            f"{key} is a section, found {'nothing' if value is None else repr(value)}; expected keys, such as {example}"
        )
    owner = next((name for name in known if key.startswith(f"{name}.")), "")
    if owner:
        return f"{owner} is no section, found {key}; expected {_kind(known[owner])}, such as {known[owner]!r}"
    # a key of the same name in another section, else the nearest
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f" Did you mean {' or '.join(same[:3])}?" if same and len(same) <= 3 else did_you_mean(key, known, 3, 0.6)
    return f"there is no key {key}.{_as_pair(key) or hint}"


def _as_pair(word: str) -> str:
    """What to write instead of KEY=VALUE and of an option behind it."""
    key, equals, value = word.partition("=")
    return f" Write {key} {value or 'VALUE'}, without =" if equals and key.isupper() else ""


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a decimal number",
    str: "text",
    list: "a list",
    tuple: "a list",
}


def _kind(default: Any) -> str:
    return _KINDS[type(default)]


def _wrong_type(key: str, value: Any, default: Any) -> str:
    """The sentence about a value of another type than the default's, with one that would do."""
    found = _decoded(value)
    kind = _KINDS.get(type(found), type(found).__name__)
    example = default
    if isinstance(default, float) and type(found) is int:
        example = float(found)
    elif isinstance(default, list):
        example = f"[{found}]"
    elif isinstance(default, str):  # what looks like a number is one, in quotes too
        return (
            f"{key} is {found!r}, {_KINDS.get(type(found), type(found).__name__)}; expected text: write \"'{value}'\""
        )
    return f"{key} is {found!r}, {kind}; expected {_kind(default)}, such as {example}"


def _decoded(value: Any) -> Any:
    """A value as yacs reads it: text that is a literal of Python is one."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass
    return value


class _NoList(ValueError):
    """Text that is no list."""


def _as_list(value: str) -> Any:
    """The value of a key that takes a list: as Python writes it, or else YAML."""
    if _decoded(value) is not value:
        return value
    try:
        found, _ = load_yaml(value)
    except WrongYAML as error:
        raise _NoList(f" ({error})" if "twice" in str(error) else "") from error
    if not isinstance(found, list):
        raise _NoList("")
    return found


def _no_list(key: str, value: str, why: str) -> str:
    example = "[{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}]" if key.endswith("CUSTOM") else "[a, b]"
    return (
        f'{key} is {value!r}{why}; expected a list in quotes, such as "{example}", with text of special characters '
        "in quotes of the other kind"
    )
