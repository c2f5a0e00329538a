"""Reference pages made from the sources at build time: configuration keys, commands, modules; and checked key names.

``config-keys`` lists every key of a config with its default and its comment, ``commands`` the help of every tool,
``modules PACKAGE`` the docstrings of a package. A `KEY.LIKE.THIS` in any page links to its entry in
reference/configuration.md; one that does not exist is a warning, and so fails the build.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import itertools
import os
import pkgutil
import re
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import sagareid
from sagareid.config import add_saga_config, get_cfg
from sagareid.registry import parts_with_keys

from fastreid.config import defaults as host_defaults
from fastreid.config import get_cfg as host_cfg

logger = logging.getLogger(__name__)

TOOLS = Path(__file__).resolve().parents[1] / "tools"
CONFIG_PAGE = "reference/configuration"


# ---- configuration keys ---------------------------------------------------------------------------------------------


@dataclass
class Key:
    """A configuration key. `comment` is empty where the source says nothing."""

    name: str
    default: Any
    comment: str


@dataclass
class Section:
    """Keys under one ruled title of the source; `notes` are comments that stand alone."""

    title: str
    keys: list[Key] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@functools.cache
def our_sections() -> list[Section]:
    """Those of config.py, then one for each registered part that adds keys."""
    sections = config_sections(inspect.getsource(add_saga_config), "cfg", get_cfg())
    for part in parts_with_keys():
        source = textwrap.dedent(inspect.getsource(part.add_keys))
        sections += [replace(section, title=part.__name__) for section in config_sections(source, "cfg", get_cfg())]
    return sections


@functools.cache
def host_sections() -> list[Section]:
    return config_sections(inspect.getsource(host_defaults), "_C", host_cfg())


SOURCES = {"ours": our_sections, "host": host_sections}


def config_sections(source: str, root: str, cfg) -> list[Section]:
    """The keys that `source` assigns below `root`, in order, with the comment above or behind each.

    Keys of consecutive lines share the comment above the first. Ruled titles: ``# ---- title ----``, or a comment
    between two rules.

    Args:
        source: Python that assigns ``root.SOME.KEY = default``.
        cfg: the config that came of it, for the values.
    """
    lines = source.splitlines()
    assigned = {node.lineno: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)}
    sections, block, shared, number = [Section("")], [], "", 0
    while number < len(lines):
        number += 1
        line = lines[number - 1].strip()
        node = assigned.get(number)
        if node and ast.unparse(node.targets[0]).startswith(f"{root}."):
            number = node.end_lineno
            behind = re.search(r"\s#\s(.*)$", lines[number - 1])
            above = " ".join(block) or ("" if behind else shared)
            shared, block = " ".join(block) or shared, []
            comment = " ".join(filter(None, [above, behind and behind[1]]))
            sections[-1].keys += [Key(name, _value(cfg, name), comment) for name in _names(node, root)]
        elif rule := re.fullmatch(r"#\s*-{3,}\s*(.*?)\s*-*\s*#?", line):
            if title := rule[1] or " ".join(block):
                sections.append(Section(title))
            block, shared = [], ""
        elif line.startswith("#"):
            block.append(line.strip("# "))
        else:
            sections[-1].notes += [" ".join(block)] if block else []
            block, shared = [], ""
    return [section for section in sections if section.keys]


def _names(node: ast.Assign, root: str) -> list[str]:
    """Keys of an assignment: one, those of ``CN({...})`` or ``CfgNode({...})``, or none of an empty one."""
    name = ast.unparse(node.targets[0]).removeprefix(f"{root}.")
    if not (isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("CN", "CfgNode")):
        return [name]
    return [f"{name}.{key.value}" for argument in node.value.args for key in argument.keys]


def _value(cfg, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


class ConfigKeys(SphinxDirective):
    """``config-keys ours`` or ``config-keys host``: sections of keys."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        out = []
        for section in SOURCES[self.arguments[0]]():
            title = section.title[:1].upper() + section.title[1:]
            entries = nodes.definition_list(classes=["config-keys"])
            for comment, keys in itertools.groupby(section.keys, key=lambda key: key.comment):
                item = nodes.definition_list_item()
                for key in keys:
                    item += nodes.term("", "", nodes.literal("", key.name), ids=[nodes.make_id(key.name)])
                    item[-1] += [nodes.Text(" = "), nodes.literal("", repr(key.default))]
                item += nodes.definition("", *([nodes.paragraph("", comment)] if comment else []))
                entries += item
            notes = [nodes.paragraph("", note) for note in section.notes]
            if title:
                ids = [nodes.make_id(f"{self.arguments[0]} {title}")]
                out.append(nodes.section("", nodes.title("", title), *notes, entries, ids=ids))
            else:
                out += [*notes, entries]
        return out


_NAMED_KEY = re.compile(r"([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+)(\s.*)?", re.DOTALL)


def link_keys(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn `MODEL.SAGA.NUM_ANCHORS`, with or without a value behind it, into a link to the key; warn if there is
    none."""
    leaves = {key.name for sections in SOURCES.values() for section in sections() for key in section.keys}
    parts = [name.split(".") for name in leaves]
    nodes_of_config = {".".join(part[:end]) for part in parts for end in range(1, len(part))}
    for literal in list(doctree.findall(nodes.literal)):
        match = _NAMED_KEY.fullmatch(literal.astext())
        if not match or isinstance(literal.parent, (nodes.reference, nodes.term, nodes.title)):
            continue
        if match[1] in leaves:
            target = nodes.make_id(match[1])
            literal.replace_self(make_refnode(app.builder, page, CONFIG_PAGE, target, literal.deepcopy()))
        elif match[1] not in nodes_of_config:
            logger.warning("no configuration key %s", match[1], location=literal)


# ---- commands -------------------------------------------------------------------------------------------------------


class Commands(SphinxDirective):
    """``commands``: a section for each tool with what its --help prints."""

    def run(self) -> list[nodes.Node]:
        out = []
        for path in sorted(TOOLS.glob("*.py")):
            out.append(
                nodes.section(
                    "",
                    nodes.title("", path.name),
                    nodes.literal_block("", help_text(path), language="text"),
                    ids=[nodes.make_id(path.stem)],
                )
            )
        return out


def help_text(tool: Path) -> str:
    """What ``python tools/NAME.py --help`` prints, without a process of its own."""
    spec = importlib.util.spec_from_file_location(f"tool_{tool.stem}", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(tool), "--help"]),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    return printed.getvalue()


# ---- modules --------------------------------------------------------------------------------------------------------


class Modules(SphinxDirective):
    """``modules sagareid.data``: the package's docstring, then each of its modules with its public members."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module(self.arguments[0])
        text = [f".. automodule:: {package.__name__}", "   :no-members:", ""]
        # the package itself has pages for its folders; a folder's page holds all that lies below it
        walk = pkgutil.iter_modules if package is sagareid else pkgutil.walk_packages
        for module in walk(package.__path__, f"{package.__name__}."):
            if not module.ispkg:
                title = module.name.removeprefix(f"{sagareid.__name__}.")
                text += [title, "-" * len(title), "", f".. automodule:: {module.name}", ""]
            elif package is sagareid and not self._page(module.name).exists():
                logger.warning("%s has no page in docs/reference/api", module.name, location=self.get_location())
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)

    def _page(self, module: str) -> Path:
        return Path(self.env.doc2path(f"reference/api/{module.rpartition('.')[2]}", base=True))


def as_rest(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """The house's docstrings as the reStructuredText that autodoc expects, in place.

    They are plain text, `code` in backticks as in Markdown, Google's sections, and ``::`` before an indented block. So
    `name` may become a link, other code is code, and what reST would take for markup is not.
    """
    if lines and lines[0].startswith(("Create new instance of ", "Initialize internal Module state")):
        del lines[0]  # what NamedTuple and Module say of themselves
    lines[:] = _MARKUP.sub(_without_markup, "\n".join(lines)).split("\n")


_MARKUP = re.compile(
    r"""
    ::\n\n(?P<indent>\ +)\S.*(?:\n(?:(?P=indent).*)?)*       # a literal block
    | ``(?:[^`\n]|\n(?!\n))+``
    | `(?P<code>(?:[^`\n]|\n(?!\n))+)`(?P<suffix>\w?)
    | (?P<sign>[*|](?=\S)|(?<=\w)_(?!\w))                   # emphasis, substitution, reference
    | (?P<enumerator>(?:^|(?<=:\ ))[A-Za-z](?=\.(?:\ |$)))  # "D. " opens a list
    """,
    re.VERBOSE | re.MULTILINE,
)


def _without_markup(match: re.Match) -> str:
    if match["sign"]:
        return "\\" + match["sign"]
    if match["enumerator"]:
        return match["enumerator"] + "\\"
    if not match["code"]:
        return match[0]
    tick = "`" if re.fullmatch(r"[\w.]+", match["code"]) else "``"
    return f"{tick}{match['code']}{tick}" + (rf"\ {match['suffix']}" if match["suffix"] else "")


def is_tuple_field(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, whose docstrings are "Alias for field number 0"; its signature has them."""
    return True if inspect.isdatadescriptor(obj) and type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", as_rest, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", is_tuple_field)
    app.connect("doctree-resolved", link_keys)
    app.add_directive("config-keys", ConfigKeys)
    app.add_directive("commands", Commands)
    app.add_directive("modules", Modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
