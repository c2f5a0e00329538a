"""Data sets, one file a family; importing registers them with FastReID."""

from . import custom, duke, market, mmmp, pairs  # noqa: F401
