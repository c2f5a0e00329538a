"""Data sets (importing this registers them with FastReID), drawn people, occlusion."""

from . import custom, mmmp, occluded, synthetic  # noqa: F401
