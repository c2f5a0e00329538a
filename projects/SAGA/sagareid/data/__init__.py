"""Data sets (importing this registers them with FastReID), loaders, transforms, occluders."""

from . import datasets  # noqa: F401
