"""What pages and pictures can be asked for.

Imports neither torch nor FastReID, so that --help is quick.
"""

from __future__ import annotations

__all__ = ["LENGTH", "LISTS", "REPORT", "SAMPLES"]

REPORT = "report.html"  # the page of a run, in its folder
LISTS = ("last", "all", "none")  # stages with ranked lists
SAMPLES = 4  # queries that the page of an occlusion study shows
LENGTH = 8  # gallery images of a ranked list
