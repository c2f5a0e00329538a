"""Images from outside, decoded within limits: few formats, pixels bounded before anything is decoded, no metadata.

An upload is bytes from anybody. A crop is a file that the gallery names; the gallery may be wrong, too.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from PIL import Image

from ..data.images import as_rgb, reason

__all__ = ["FORMATS", "Missing", "NotAnImage", "TooLarge", "decode", "find_crop", "jpeg", "read_crop"]

# Pillow's names of what is decoded, and how HTTP names it. Browsers make no other.
FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
CROP_SIDE = 512  # pixels, the longer side of a crop that is sent
QUALITY = 88


class NotAnImage(ValueError):
    """Bytes that are no whole image of one of the formats."""


class Missing(LookupError):
    """A gallery's image that cannot be shown."""


class TooLarge(ValueError):
    """An image of more pixels than are let in."""


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """An upload as RGB, turned by its EXIF orientation, its first frame.

    Raises:
        NotAnImage: no whole image of `FORMATS`.
        TooLarge: of more pixels than `max_pixels`; none of them is decoded then.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            _check_size(image, max_pixels)
            return as_rgb(image)
    except TooLarge:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit
        raise TooLarge(f"{error}; at most {max_pixels / 1e6:g} million pixels are let in") from error
    except Exception as error:  # Pillow's readers raise many kinds on bytes that are no image
        raise NotAnImage(f"no whole image ({_reason(error)}); expected {', '.join(FORMATS)}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise TooLarge(
            f"the image has {image.width} x {image.height} pixels; at most {max_pixels / 1e6:g} million pixels are "
            "let in"
        )


def _reason(error: Exception) -> str:
    """Why, without the address of a buffer in memory."""
    return "none of its formats" if isinstance(error, Image.UnidentifiedImageError) else reason(error)


def find_crop(folder: str, path: str) -> Path | None:
    """The file of a gallery's image, links resolved; None where it is no file inside the gallery's folder.

    Args:
        folder: of the gallery's images. path: as the gallery has it, relative to the folder or absolute.
    """
    if not folder or "\0" in path:
        return None
    root = Path(os.path.realpath(folder))
    file = Path(os.path.realpath(root / path))
    return file if file.is_relative_to(root) and file.is_file() else None


def read_crop(folder: str, path: str, max_pixels: int) -> Image.Image:
    """A gallery's image as RGB.

    Raises:
        Missing: it is no file inside the folder, or cannot be read. NotAnImage, TooLarge: as of `decode`.
    """
    file = find_crop(folder, path)
    if file is None:
        raise Missing("the image's file is not in the gallery's folder")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Missing("the image's file is no regular file")
            data = stream.read()
    except OSError as error:  # its text has the path
        raise Missing("the image's file cannot be read") from error
    return decode(data, max_pixels)


def jpeg(image: Image.Image) -> bytes:
    """An RGB image as JPEG bytes, made smaller where it is larger than `CROP_SIDE`."""
    image.thumbnail((CROP_SIDE, CROP_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
