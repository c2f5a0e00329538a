"""A person's page: a local web page and JSON API over a gallery and the model that it was extracted by.

    app        the routes, and what an answer holds
    guard      who may ask: Host, Origin, token, headers of every answer
    images     uploads and crops, decoded within limits
    search     one thread that embeds and searches for all requests, several at a time
    server     uvicorn on an address

`assets/serve/` has the page. FastAPI and uvicorn are the extra `sagareid[serve]`.
"""

from __future__ import annotations

__all__ = ["require_extra"]


def require_extra() -> None:
    """
    Raises:
        ModuleNotFoundError: FastAPI or uvicorn is not installed; the message names the extra.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, which the page takes. pip install 'sagareid[serve]', or pip install "
            "fastapi uvicorn"
        ) from error
