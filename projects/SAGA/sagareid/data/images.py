"""Image files."""

from __future__ import annotations


class UnreadableImage(RuntimeError):
    """An image of the data set cannot be read; the message names it."""

    def without_traceback(self) -> UnreadableImage:
        """The error itself, where a DataLoader's worker process has put a printed traceback around it."""
        return UnreadableImage(str(self).rstrip().rpartition(f"{type(self).__name__}: ")[2])
