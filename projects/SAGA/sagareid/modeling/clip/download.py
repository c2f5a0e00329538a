"""open_clip's downloads, that end within seconds where there is no network."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip

__all__ = ["download", "hub_or_cache"]

SECONDS = 5.0  # for a first answer
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
    with hub_or_cache(address):
        return Path(open_clip.download_pretrained(source))


@contextmanager
def hub_or_cache(address: str) -> Iterator[None]:
    """Let a hub's client inside the scope look into its cache alone where the host of an address gives no answer.

    Args:
        address: what would be asked; empty for nothing.

    Raises:
        ConnectionError: what the scope needs is not in the cache.
    """
    reason = _unreachable(address) if address else ""
    if not reason:
        yield
        return
    try:
        with _hub_offline():
            yield
    except Exception as error:
        raise ConnectionError(reason) from error


def _unreachable(address: str) -> str:
    """Why a host gives no answer within `SECONDS`; empty where it does. Looking up its name counts, hence a thread."""
    host, found = address.split("/")[2], []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS).close()
            found.append("")
        except urllib.error.HTTPError:  # an answer
            found.append("")
        except Exception as error:
            found.append(f"{host} cannot be reached: {getattr(error, 'reason', error)}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0] if found else f"{host} did not answer within {SECONDS:g} s"


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Let huggingface_hub look into its cache alone."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
