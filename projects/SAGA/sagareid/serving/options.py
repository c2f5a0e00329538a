"""What the page's server can be asked for. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HOST", "MAX_MATCHES", "PORT", "TOKEN_VARIABLE", "Limits"]

HOST, PORT = "127.0.0.1", 8766
MAX_MATCHES = 100  # of an answer
TOKEN_VARIABLE = "SAGAREID_SERVE_TOKEN"


@dataclass(frozen=True)
class Limits:
    """What an upload may have at most.

    Attributes:
        max_bytes: of an upload. max_pixels: of an image, decoded.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 24_000_000
