"""People in pictures, and pictures of people to paste: where a person is, by mask or box, and a cut-out of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import occluders
from .images import read_image

__all__ = ["MaskPath", "People", "silhouette"]

# A picture's path -> its label mask's path; None for a picture without one.
MaskPath = Callable[[str], Path | None]

# A pasted person must be seen whole, so that the cut-out has a person's outline; where few are, the best of this many.
WHOLE, ATTEMPTS = 0.95, 20


def silhouette(path: str, mask_path: MaskPath | None, image: Image.Image) -> occluders.Silhouette:
    """Where the person of a picture is: by its mask, or the whole picture where the data set has none.

    Raises:
        ValueError: the mask is of another size than the picture.
    """
    mask = None if mask_path is None else mask_path(path)
    if mask is None:
        return occluders.Silhouette.box((image.height, image.width))
    with Image.open(mask) as labels:
        if labels.size != image.size:
            raise ValueError(f"{mask} is {labels.size}, its picture {image.size}; expected the same size")
        return occluders.Silhouette.from_labels(np.asarray(labels))


class People:
    """Pictures of people to paste.

    Attributes:
        paths: of the pictures.
        names: who is in each of them; empty where nobody needs to be kept apart.
        known: whether it is known who they are, so that nobody of the test set is among them.
    """

    def __init__(
        self, paths: Sequence[str], mask_path: MaskPath | None, names: Sequence[str] = (), *, known: bool = True
    ):
        self.paths, self.mask_path, self.names, self.known = list(paths), mask_path, list(names), known

    def path(self, rng: np.random.Generator, besides: str = "") -> str:
        """One of the pictures, of anyone but `besides` (a name)."""
        while True:
            i = int(rng.random() * len(self.paths))
            if not (besides and self.names and self.names[i] == besides):
                return self.paths[i]

    def choose(self, rng: np.random.Generator, besides: str = "") -> Image.Image:
        """RGBA cut-out of one of them, anyone but `besides`, drawn until one is seen whole."""
        most = -1.0
        for _ in range(ATTEMPTS):
            path = self.path(rng, besides)
            image = read_image(path)
            person = silhouette(path, self.mask_path, image)
            whole = person.visible.sum() / person.whole.sum()
            if whole > most:
                best, most = occluders.cut_out(image, person), whole
            if whole >= WHOLE:
                break
        return best
