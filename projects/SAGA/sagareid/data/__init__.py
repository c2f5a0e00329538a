"""Data sets (importing this registers them with FastReID), drawn people, occlusion."""

from .datasets import custom, mmmp, occluded  # noqa: F401
from ..synthetic import drawn  # noqa: F401
