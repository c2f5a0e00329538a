"""open_clip's downloads, that end within seconds where there is no network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip

from ...network import unreachable

__all__ = ["download", "hub_or_cache"]

CACHE = Path("~/.cache/clip")  # open_clip's own


def download(source: Mapping[str, Any]) -> Path:
    """The file of a pretrained tag, from the cache or the network.

    Without the check, a download from a network that answers nothing waits for minutes, and a hub tries several times.

    Args:
        source: of `open_clip.get_pretrained_cfg`.

    Raises:
        ConnectionError: it is not in the cache, and its host does not answer.
        OSError, RuntimeError: the download failed.
    """
    hub = bool(source.get("hf_hub"))
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if hub else source["url"]
    cache = CACHE.expanduser()
    if not hub and (cache / os.path.basename(address)).is_file():
        return Path(open_clip.download_pretrained(source, cache_dir=str(cache)))
    if not hub and (reason := unreachable(address)):
        raise ConnectionError(reason)
    with hub_or_cache(address if hub else ""):
        return Path(open_clip.download_pretrained(source))


@contextmanager
def hub_or_cache(address: str) -> Iterator[None]:
    """Let a hub's client inside the scope look into its cache alone where the host of an address gives no answer.

    Args:
        address: what would be asked; empty for nothing.

    Raises:
        ConnectionError: what the scope needs is not in the cache.
    """
    reason = unreachable(address) if address else ""
    if not reason:
        yield
        return
    try:
        with _hub_offline():
            yield
    except OSError as error:  # so are the hub's own for what is not in its cache
        raise ConnectionError(reason) from error


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Let huggingface_hub look into its cache alone."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
