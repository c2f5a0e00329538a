"""The configs of a comparison on the tower of another config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import flatten, get_cfg
from ..config_files import ConfigFile, config_chain
from ..config_merge import merge_files

__all__ = ["on_tower"]

# What of a config is its tower, beside MODEL.BACKBONE, and MODEL.CLIP where the tower's file says something of it.
_TOWER = (
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "INPUT.SIZE_TRAIN",
    "INPUT.SIZE_TEST",
    "INPUT.INTERPOLATION_TEST",
)
_WIDTHS = "MODEL.BACKBONE.FEAT_DIM", "MODEL.HEADS.EMBEDDING_DIM"


def on_tower(config: str | Path, tower: str | Path) -> list[str]:
    """KEY VALUE pairs that put a config on the tower of another one.

    They set all of MODEL.BACKBONE, the weights that it starts from, what it expects of images (size, mean, standard
    deviation, filter), and MODEL.CLIP where the tower's file says something of it. MODEL.HEADS.EMBEDDING_DIM keeps its
    proportion to the width of the tower.

    Args:
        tower: any config file; the rest of what it says is left aside.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: the config itself sets a key for the tower that it was written for, such as a layer.
    """
    chain, given = config_chain(config), config_chain(tower)
    old, new = (flatten(_merged(files)) for files in (chain, given))
    stated = {key for file in given for key in flatten(file.content)}
    sections = ["MODEL.BACKBONE.", *(["MODEL.CLIP."] if any(key.startswith("MODEL.CLIP.") for key in stated) else [])]
    pairs = {k: v for k, v in new.items() if k in _TOWER or k.startswith(tuple(sections))}
    for file in _own(chain):
        for key in flatten(file.content):
            if key in pairs and pairs[key] != old[key]:
                raise ValueError(
                    f"{file.place(key)}: {key} is {old[key]} for the tower that this config was written for, and "
                    f"{pairs[key]} in {tower}. Leave the config out, or write one with the value for the other tower"
                )
    feat_dim, embedding_dim = _WIDTHS
    pairs[embedding_dim] = old[embedding_dim] * new[feat_dim] // old[feat_dim]
    return [text for key, value in pairs.items() for text in (key, _text(value))]


def _own(chain: list[ConfigFile]) -> list[ConfigFile]:
    """The files of a config in front of the first Base-*.yml, which many configs share."""
    names = [file.path.name.startswith("Base-") for file in chain]
    return chain[: names.index(True) if True in names else 1]


def _merged(chain: list[ConfigFile]) -> Any:
    cfg = get_cfg()
    merge_files(cfg, chain)
    return cfg


def _text(value: Any) -> str:
    """A value as it is written on a command line."""
    return value if isinstance(value, str) else repr(value)
