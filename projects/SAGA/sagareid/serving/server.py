"""The page's server: a gallery, a model, and uvicorn on an address."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from ..deploy import gallery as galleries
from ..deploy.extractor import Extractor
from ..deploy.gallery import Model
from ..deploy.threshold import Threshold
from .app import create_app
from .guard import is_loopback
from .options import TOKEN_VARIABLE, Limits
from .search import Searcher

__all__ = ["open_searcher", "serve", "token_for"]

logger = logging.getLogger(__name__)


def open_searcher(address: str, run: str | Path, *, device: str = "auto") -> Searcher:
    """A gallery and the model that it was extracted by.

    Raises:
        FileNotFoundError: no gallery or no checkpoint there.
        ValueError: one is damaged, or the gallery is of another model.
    """
    gallery = galleries.open_gallery(address)
    extractor = Extractor.from_checkpoint(run, device=device, feature=gallery.model.feature or "auto")
    own = Model(extractor.width, extractor.checkpoint_sha256, extractor.feature, list(extractor.size))
    gallery.model.check(own, str(run))
    return Searcher(gallery, extractor)


def token_for(host: str) -> str:
    """The token of the environment; one that is drawn now where others than this machine can reach the address."""
    given = os.environ.get(TOKEN_VARIABLE, "")
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))


def serve(
    searcher: Searcher,
    *,
    host: str,
    port: int,
    folder: str | Path = "",
    threshold: Threshold | None = None,
    names: Sequence[str] = (),
    limits: Limits | None = None,
    started: Callable[[str], Any] = print,
) -> None:
    """Answer until Ctrl-C.

    Args:
        port: 0 takes a free one.
        folder: where the gallery's images are now; "": where it says.
        started: is given the page's address, with the token, once requests are taken.

    Raises:
        ValueError: the threshold is of another model. OSError: the port is taken, or there is no such address.
    """
    model = searcher.gallery.model
    folder = str(folder or searcher.gallery.folder)
    if threshold is not None:
        threshold.check_model(model.checkpoint_sha256, model.feature, "the gallery")
        threshold.warn_elsewhere(folder)
    if not os.path.isdir(folder):
        logger.warning("the gallery's images are not in %r; --folder says where they are now", folder)
    token = token_for(host)
    app = create_app(
        searcher,
        folder=folder,
        threshold=threshold,
        token=token,
        names=[*names, *([] if is_loopback(host) else [host])],
        limits=limits,
    )
    with _listener(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        started(f"http://{shown}:{listener.getsockname()[1]}/" + (f"#token={token}" if token else ""))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """A socket that takes connections, which wait until uvicorn is there.

    Raises:
        OSError: the port is taken, or there is no such address.
    """
    # said to be TCP: asyncio looks for that before it lets small answers go at once; else each waits 40 ms
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on port {port} of {host} ({error.strerror}). Name another by --port (0: a free one), "
            "or an address of this machine by --host"
        ) from error
    listener.listen(1024)
    return listener
