"""Data sets, one file a family; importing registers them with FastReID."""

from . import duke, folder, market, mmmp, pairs, table  # noqa: F401
