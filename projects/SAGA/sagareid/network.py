"""Whether a host answers, known within seconds: clients of downloads wait and try again for minutes."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

__all__ = ["SECONDS", "unreachable"]

SECONDS = 5.0  # for a first answer


def unreachable(address: str) -> str:
    """Why a host gives no answer within `SECONDS`; empty where it does. Looking up its name counts, hence a thread.

    Args:
        address: of anything there, with its scheme.
    """
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
