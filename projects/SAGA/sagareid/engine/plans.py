"""The plan of a configuration: its stages as runs, each with its whole config, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import flatten, get_cfg
from ..config_checks import check_config, check_configs
from ..config_files import ConfigFile, config_chain, find_config
from ..config_merge import merge_files, merge_pairs
from .feature_cache import cache_folder
from .hooks import CheckpointHook
from .results import RESULT, read_result

__all__ = ["Run", "plan", "without_effect"]


@dataclass
class Run:
    """One stage.

    Attributes:
        name: empty for a config without stages.
        cfg: its whole config, frozen.
        asked_weights: MODEL.WEIGHTS as given on the command line; empty where it is not.
        siblings: names of all stages of its configuration, in order.
    """

    name: str
    cfg: Any
    asked_weights: str = ""
    siblings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def whole_folder(self) -> Path:
        """OUTPUT_DIR of the whole configuration."""
        return self.folder.parent if self.name else self.folder

    @property
    def final(self) -> Path:
        return self.folder / f"{CheckpointHook.FINAL}.pth"

    def result(self) -> dict | None:
        """What `run_all` wrote when the stage ended; None before.

        Raises:
            DamagedFile: it is not what was written.
        """
        file = self.folder / RESULT
        if not (file.is_file() and self.final.is_file()):
            return None
        return read_result(file) | {"checkpoint": str(self.final)}  # the folder may have been moved


@dataclass(frozen=True)
class _Entry:
    """One of STAGES: its name, the files that it merges, its KEY VALUE pairs, and where it stands."""

    name: str
    chain: list[ConfigFile]
    opts: list
    place: str


def plan(
    config_file: str | Path, opts: Sequence[str] = (), stage: str | None = None, *, last: bool = False
) -> list[Run]:
    """The runs of a config, in order: the config, then the stage's file and OPTS, then `opts`.

    Args:
        stage: only these of STAGES, separated by commas. The first starts from MODEL.WEIGHTS of `opts` where given.
        last: only the last of these, to be evaluated.

    Raises:
        FileNotFoundError: a config that is not there.
        ValueError: a key or a stage that does not exist, values that cannot work, of all these stages together.
    """
    opts = list(opts)
    asked = next((v for k, v in zip(opts[::2], opts[1::2]) if k == "MODEL.WEIGHTS"), "")
    chain = config_chain(config_file)
    whole = _merged(chain, opts)
    if not whole.STAGES:
        if stage:
            raise ValueError(f"{config_file} has no STAGES, so there is no stage {stage!r}; run it without --stage")
        whole.freeze()
        check_config(whole)
        return [Run("", whole, asked)]
    entries = _entries(whole, chain)
    names = [entry.name for entry in entries]
    chosen = stage.split(",") if stage else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"no stage {unknown[0]!r} in {config_file}; its stages: {', '.join(names)}")
    runs: list[Run] = []
    for entry in entries:
        cfg = _merged(chain, opts, entry)
        cfg.STAGES = []
        cfg.CACHE.DIR = cfg.CACHE.DIR or str(cache_folder(whole))
        cfg.OUTPUT_DIR = str(Path(whole.OUTPUT_DIR, entry.name))
        if runs and not (asked and entry.name == chosen[0]):
            cfg.MODEL.WEIGHTS = str(runs[-1].final)
        cfg.freeze()
        runs.append(Run(entry.name, cfg, asked, tuple(names)))
    runs = [run for run in runs if run.name in chosen][-1 if last else 0 :]
    check_configs({run.name: run.cfg for run in runs})
    return runs


def _merged(chain: Sequence[ConfigFile], opts: Sequence[str], entry: _Entry | None = None):
    """The defaults, a config, a stage's file and OPTS, a command line."""
    cfg = get_cfg()
    merge_files(cfg, chain)
    if entry:
        merge_files(cfg, entry.chain)
        merge_pairs(cfg, entry.opts, entry.place)
    merge_pairs(cfg, opts)
    return cfg


def _entries(whole, chain: Sequence[ConfigFile]) -> list[_Entry]:
    """The STAGES of a config. Their FILEs are relative to the file of the chain that lists them, or ship.

    Raises:
        FileNotFoundError: a FILE that is not there. ValueError: an entry that is none, or has the name of another.
    """
    source = next((file for file in chain if "STAGES" in file.content), chain[0])
    place = source.place("STAGES")
    entries: list[_Entry] = []
    for entry in whole.STAGES:
        if not isinstance(entry, Mapping) or not {"NAME", "FILE"} <= set(entry) <= {"NAME", "FILE", "OPTS"}:
            raise ValueError(
                f"{place}: an entry of STAGES is {entry!r}; expected NAME and FILE, and OPTS where there are any, such "
                "as {NAME: anchors, FILE: stages/anchors.yml, OPTS: [SOLVER.MAX_EPOCH, 60]}"
            )
        name, file, opts = entry["NAME"], entry["FILE"], entry.get("OPTS", [])
        if not isinstance(name, str) or name != Path(name).name or name in [e.name for e in entries]:
            raise ValueError(f"{place}: a stage is called {name!r}; expected the name of a folder, another for each")
        if not isinstance(file, str) or not isinstance(opts, list):
            raise ValueError(
                f"{place}: the stage {name} has FILE {file!r} and OPTS {opts!r}; expected a path and a list"
            )
        try:
            files = config_chain(find_config(file, source.path.parent))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place}: the file of the stage {name}: {error}") from error
        entries.append(_Entry(name, files, opts, f"{place}: OPTS of the stage {name}"))
    return entries


def without_effect(config_file: str | Path, opts: Sequence[str] = ()) -> list[str]:
    """A sentence for each key of a config that its stages' own files override, so that it does nothing there.

    Looked at are the config itself and those of its bases that are nearer to it than the list of STAGES: what stands
    beside that list is a default of the recipe, which its stages change. What `opts` set is merged last, and counts.
    """
    chain = config_chain(config_file)
    whole = _merged(chain, opts)
    if not whole.STAGES:
        return []
    lists = next((i for i, file in enumerate(chain) if "STAGES" in file.content), 0)
    given: dict[str, tuple[Any, ConfigFile]] = {}
    for file in chain[: max(lists, 1)]:
        given = {key: (value, file) for key, value in flatten(file.content).items()} | given
    overridden: dict[str, list[str]] = {}
    for entry in _entries(whole, chain):
        own = {
            key: (value, file.path) for file in reversed(entry.chain) for key, value in flatten(file.content).items()
        }
        own |= {key: (value, "its OPTS") for key, value in zip(entry.opts[::2], entry.opts[1::2])}
        for key in given.keys() & own.keys() - set(opts[::2]):
            if str(own[key][0]) != str(given[key][0]):
                overridden.setdefault(key, []).append(f"{entry.name}, which sets {own[key][0]} in {own[key][1]}")
    return [
        f"{key} {given[key][0]} in {given[key][1].place(key)} has no effect in the stage {'; '.join(stages)}. Set it "
        "behind the command, or in OPTS of the stage"
        for key, stages in sorted(overridden.items())
    ]
