"""Data sets, one file a family; importing registers them with FastReID."""

import fastreid.data  # noqa: F401  (first: it imports all that registers with it, this package among them)

from . import cuhk, duke, folder, held_out, market, mmmp, pairs, table  # noqa: F401
