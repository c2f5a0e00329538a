"""What a target says of its consumer, and the registry of targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..formats import Run, open_file
from .pixels import Pixels

__all__ = ["Target", "get_target", "register_target", "target_names"]


class Target:
    """A consumer of an exported model. Its name is its class's, in lower case.

    Attributes:
        pixels: what the consumer feeds.
        resize: how it resizes a crop to the input size, where that is known: written into the metadata.
        formats: suffix -> format of the files that it takes, the default first.
        variants: of `options.TOLERANCE`.
        opset: of ONNX. From 20 on GELU is one operator; OpenCV 5.0 ends with a segmentation fault on opset 18 here.
        images_only: it feeds images and reads the first output: no `cameras` input, no attention.
        max_batch: crops that its configuration provides for at once, where it has to name a number.
    """

    pixels: ClassVar[Pixels] = Pixels()
    resize: ClassVar[str] = ""
    formats: ClassVar[Mapping[str, str]] = {".onnx": "onnx"}
    variants: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")
    opset: ClassVar[int] = 20
    images_only: ClassVar[bool] = True
    max_batch: ClassVar[int] = 64

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def file(self, output: Path, format: str | None = None) -> tuple[Path, str]:
        """The file to write, and its format.

        Args:
            output: as the user names it: a file with one of the suffixes.
            format: as the user names it; None: by the suffix.

        Raises:
            ValueError: a suffix or format that the consumer does not take.
        """
        suffix = output.suffix
        if suffix not in self.formats:
            raise ValueError(f"{output}: {self.name} takes {', '.join(self.formats)}{self._refusal(suffix)}")
        if format not in (None, self.formats[suffix]):
            raise ValueError(f"{output}: {self.name} reads a {suffix} file as {self.formats[suffix]}, not as {format}")
        return output, self.formats[suffix]

    def _refusal(self, suffix: str) -> str:
        """The end of a message: why a suffix is not taken."""
        return f", not {suffix}" if suffix else ", and the suffix says which"

    def metadata_entries(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and values of the metadata inside an ONNX file."""
        return dict(metadata)

    def side_files(self, path: Path, metadata: Mapping[str, Any]) -> dict[Path, str]:
        """Text files that the consumer reads, or its user pastes from, beside `path`."""
        return {}

    def usage(self, path: Path, metadata: Mapping[str, Any]) -> str:
        """How to use `path`, in about three lines."""
        return ""

    def open(self, path: str, format: str) -> Run:
        """The file as a function from what is fed to its outputs, in the consumer's own runtime where possible."""
        return open_file(path, format)[0]


_TARGETS: dict[str, type[Target]] = {}


def register_target(cls: type[Target]) -> type[Target]:
    """Make a target known by its class's name, in lower case; a decorator.

    Raises:
        ValueError: there is one of that name.
    """
    name = cls.__name__.lower()
    if name in _TARGETS:
        raise ValueError(f"there is a target {name!r} already, {_TARGETS[name]}; name your class otherwise")
    _TARGETS[name] = cls
    return cls


def target_names() -> list[str]:
    """Names of the registered targets."""
    return sorted(_TARGETS)


def get_target(name: str) -> Target:
    """A target by its name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name.lower() not in _TARGETS:
        raise ValueError(
            f"no target {name!r}; there are {', '.join(target_names())}. Your own is a subclass of Target with "
            "@register_target, in a module named by --import"
        )
    return _TARGETS[name.lower()]()
