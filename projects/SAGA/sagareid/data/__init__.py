"""Data sets (importing this registers them with FastReID), loaders, transforms, occluders."""

from .datasets import custom, mmmp, occluded  # noqa: F401
