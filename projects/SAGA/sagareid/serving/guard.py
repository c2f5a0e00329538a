"""Who may ask, and what every answer says to a browser.

* Host: an IP address, localhost, or a name that was allowed. A page of another site that makes its own name point here
  (DNS rebinding) still says its own name.
* Origin and Sec-Fetch-Site: a browser sends them when another site's page asks; such requests to /api are refused. No
  CORS, either, so that no other page could read an answer.
* Token: needed for everything under /api where one is set, as `Authorization: Bearer TOKEN`. A page of another site
  cannot send that, and no cookie is sent by itself.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

__all__ = ["HEADERS", "Guard", "is_loopback"]

# A browser loads nothing but this server's own script, style and images, and shows the page in no frame. blob: crops,
# which are fetched with the token.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: Any, *, token: str = "", names: Iterable[str] = ()):
        """
        Args:
            token: that /api asks for; "": none.
            names: of hosts, beside IP addresses and localhost.
        """
        self.app, self.token = app, token
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        if refusal := self._refusal(scope["path"], headers):
            await _answer(send_with_headers, *refusal)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason where a request is refused."""
        host = headers.get("host", "")
        if not self._known(host):
            return 421, "this server is not called by that name; start it with --allow-host NAME if it is yours"
        if not path.startswith("/api"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "requests of another site's page are refused"
        if origin is None and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests of another site's page are refused"
        if self.token:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
                return 401, "a token is needed: Authorization: Bearer TOKEN"
        return None

    def _known(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(:\d{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


async def _answer(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
