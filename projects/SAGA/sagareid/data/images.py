"""Image files: one way to list and one way to read them, for training, evaluation, extraction, checks and pictures.

Every reader goes through `read_image` (a file) or `as_rgb` (an image in memory), so that a file gives the same pixels
wherever it is used. What a listing leaves out is kept with its reason (`Listing.left_out`) and is said, never dropped.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..files import printable

__all__ = [
    "BACKGROUND",
    "SUFFIXES",
    "Listing",
    "UnreadableImage",
    "as_rgb",
    "check_modes",
    "image_files",
    "listings",
    "read_image",
    "reason",
    "say_left_out",
]

logger = logging.getLogger(__name__)

# Suffixes of image files, in lower case: what Pillow reads without another program. Of several frames the first counts.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
# Colour behind transparent pixels: white, as viewers and web pages show them.
BACKGROUND = (255, 255, 255)
SHOWN = 3  # names that a message gives of each kind

# Files that operating systems put beside images: nobody misses them.
_CLUTTER = {".ds_store", "thumbs.db", "desktop.ini"}


class UnreadableImage(RuntimeError):
    """An image cannot be read; the message names its file."""

    def without_traceback(self) -> UnreadableImage:
        """The error itself, where a DataLoader's worker process has put a printed traceback around it."""
        return UnreadableImage(str(self).rstrip().rpartition(f"{type(self).__name__}: ")[2])


# ---- reading -------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike) -> Image.Image:
    """An image file as RGB, turned by its EXIF orientation; see `as_rgb` for other modes.

    Of an RGB file, pixel by pixel what FastReID's own reader gives.

    Raises:
        UnreadableImage: missing, no whole image, too large (Pillow's limit against decompression bombs), or of a mode
            that has no RGB.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except MemoryError as error:
        raise MemoryError(f"reading {printable(path)}") from error
    except Exception as error:  # Pillow's readers raise many kinds on bytes that are no image
        raise UnreadableImage(f"cannot read {printable(path)} ({reason(error)})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in memory as a new RGB one, turned by its EXIF orientation.

    Palettes become their colours, transparency is laid on `BACKGROUND`, integer grey (I, I;16) has 16 bits: 65535 is
    white. An orientation that cannot be read counts as upright.

    Raises:
        OSError, SyntaxError, ValueError and others of Pillow: the file behind it is damaged.
        ValueError: floating grey (F) or integers outside 0..65535, whose white nobody knows.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)  # a copy in any case
    except Exception:  # damaged EXIF data in a sound image
        logger.debug("no orientation could be read from an image's EXIF data", exc_info=True)
        image = image.copy()
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_of_16_bits(image)
    elif image.mode == "F":
        raise ValueError("mode F, floating grey, has no defined white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        colours = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, BACKGROUND)
        rgb.paste(colours, mask=colours.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}  # what it says (orientation, transparency) has been done
    return rgb


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """L or LA of the upper 8 of 16 bits, exact for 8 bits that were widened in either of the usual ways."""
    values = np.asarray(image).astype(np.int64)  # whatever the byte order
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"mode {image.mode} with values {values.min()} to {values.max()}; expected grey of 16 bits, 0 to 65535"
        )
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def reason(error: BaseException) -> str:
    """Why an image cannot be read, in brackets behind its name."""
    if isinstance(error, Image.UnidentifiedImageError):  # its own text repeats the path
        return "no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:  # so does the system's
        return f"{type(error).__name__}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


# Formats that hold what `as_rgb` refuses, by suffix. The others are read when they are needed.
_OF_ANY_MODE = (".tif", ".tiff", ".pfm")


def check_modes(dataset: str, paths: Iterable[str | os.PathLike]) -> None:
    """Refuse, before a run begins, images whose mode has no RGB. Reads files of formats that can have one (TIFF) alone.

    Raises:
        UnreadableImage: names the first of them, and says how many there are.
    """
    paths = [path for path in dict.fromkeys(paths) if str(path).lower().endswith(_OF_ANY_MODE)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        wrong = [(path, found) for path, found in zip(paths, pool.map(_without_rgb, paths)) if found]
    if wrong:
        path, found = wrong[0]
        raise UnreadableImage(
            f"{dataset}: {len(wrong)} image(s) cannot be read as RGB, such as {printable(path)} ({found}). Convert or "
            "remove them; tools/check_dataset.py lists all"
        )


def _without_rgb(path: str | os.PathLike) -> str:
    """Why `as_rgb` refuses an image's mode; empty where it does not, or where the file is damaged in another way."""
    try:
        with Image.open(path) as image:
            if image.mode in ("F", "I"):
                as_rgb(image)
    except ValueError as error:
        return str(error) if str(error).startswith("mode ") else ""
    except Exception:
        return ""
    return ""


# ---- listing -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Listing:
    """The images under a folder, and what else lies there.

    Attributes:
        names: of the images, relative to the folder, with forward slashes: those of a folder sorted, then those of its
            sub-folders. Names, since a path takes four times their memory.
        left_out: why -> the entries, relative to the folder, sorted.
    """

    folder: Path
    names: list[str]
    left_out: dict[str, list[str]]

    @property
    def images(self) -> list[Path]:
        return [self.folder / name for name in self.names]

    def __str__(self) -> str:
        """What is left out, in words; empty where nothing is."""
        return "; ".join(f"{len(names)} {why} ({_some(names)})" for why, names in self.left_out.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


HIDDEN = "hidden"
OTHER_SUFFIX = "with another suffix"
NO_SUFFIX = "without a suffix"
DANGLING = "links to nothing"
LOOP = "links to a folder above"
NO_FILE = "neither file nor folder"
CLOSED = "folders that cannot be opened"
DEEPER = "folders"


def image_files(folder: str | os.PathLike, *, levels: int | None = None) -> Listing:
    """List the images under a folder. Links to files and folders are followed.

    Args:
        levels: of folders that are looked into, this one included: 1 for it alone; None: all.

    Raises:
        OSError: the folder itself cannot be opened.
    """
    folder = Path(folder)
    images: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    _look_into(folder, (), levels, frozenset(), images, left_out)
    _collect(listing := Listing(folder, images, {why: sorted(names) for why, names in left_out.items()}))
    return listing


def _look_into(
    folder: Path,
    below: tuple[str, ...],
    levels: int | None,
    above: frozenset[tuple[int, int]],
    images: list[str],
    left_out: dict[str, list[str]],
) -> None:
    where = folder.joinpath(*below)
    found: dict[str, list[str]] = defaultdict(list)
    try:
        state = where.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:
            left_out[LOOP].append("/".join(below))
            return
        with os.scandir(where) as entries:
            for entry in entries:  # one after the other: all entries of a large folder take more memory than the names
                if entry.name.lower() not in _CLUTTER:
                    found[_why_left_out(entry)].append(entry.name)
    except OSError:
        if not below:
            raise
        left_out[CLOSED].append("/".join(below))
        return
    folders = sorted(found.pop(DEEPER, []))
    prefix = "".join(f"{name}/" for name in below)
    images += (prefix + name for name in sorted(found.pop("", [])))
    for why, names in found.items():
        left_out[why] += (prefix + name for name in names)
    for name in folders:
        if levels is not None and len(below) + 1 >= levels:
            left_out[DEEPER].append("/".join((*below, name)))
        else:
            _look_into(folder, (*below, name), levels, above | {here}, images, left_out)


def _why_left_out(entry: os.DirEntry) -> str:
    """Empty for an image; DEEPER for a folder."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        if entry.is_dir():
            return DEEPER
        if not entry.is_file():
            return DANGLING if entry.is_symlink() else NO_FILE
    except OSError:  # a link to itself
        return DANGLING
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIXES:
        return ""
    return OTHER_SUFFIX if suffix else NO_SUFFIX


_said: set[str] = set()


def say_left_out(name: str, listing: Listing) -> None:
    """Log what a listing leaves out, once in a process. name: of the data set, or of the work."""
    if listing.left_out:
        text = f"{name}: not used of {printable(listing.folder)}: {listing}"
        if text not in _said:
            _said.add(text)
            logger.warning(text)


_listings: ContextVar[list[Listing] | None] = ContextVar("listings", default=None)


def _collect(listing: Listing) -> None:
    if (found := _listings.get()) is not None:
        found.append(listing)


@contextmanager
def listings() -> Iterator[list[Listing]]:
    """Every `image_files` inside the scope: how the checker learns what a data set's class leaves out."""
    found: list[Listing] = []
    token = _listings.set(found)
    try:
        yield found
    finally:
        _listings.reset(token)
