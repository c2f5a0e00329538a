"""Images of any kind as what a model reads: paths, PIL images, arrays and tensors.

(H, W): input size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode

from ..data.images import UnreadableImage, as_rgb, read_image, reason
from ..data.transforms import build_transforms
from ..files import printable

__all__ = ["ImageLike", "Images", "Prepare", "checked", "is_one_image"]

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor


def is_one_image(value: Any) -> bool:
    """Whether a value is an image or a path, and no list or batch of them."""
    return isinstance(value, (str, os.PathLike, Image.Image)) or (
        isinstance(value, (np.ndarray, Tensor)) and value.ndim == 3
    )


def checked(images: Any) -> Sequence[ImageLike]:
    """The images as a sequence of single ones."""
    if is_one_image(images):
        raise TypeError("one image where a list of them is expected: pass [image]")
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim != 4:
        raise ValueError(f"a batch of shape {tuple(images.shape)}; expected a (n, 3, H, W) tensor or a list of images")
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__") or isinstance(images, dict):
        raise TypeError(
            f"images are a {type(images).__name__}; expected a list of paths, PIL images, arrays or tensors"
        )
    return images


class Images(Dataset):
    """Images prepared for the model; for a file that cannot be read, the reason in its place."""

    def __init__(self, images: Sequence[ImageLike], prepare: Prepare):
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.prepare(self.images[index], index)
        except UnreadableImage as error:
            return str(error)


class Prepare:
    """One image of any kind to (3, H, W) float RGB in 0..255, by the run's test transform."""

    def __init__(self, cfg: Any, size: tuple[int, int]):
        self._transform, self._size = build_transforms(cfg, is_train=False), size
        self._resizing = InterpolationMode(cfg.INPUT.INTERPOLATION_TEST)

    def __call__(self, image: ImageLike, index: int) -> Tensor:
        if isinstance(image, (str, os.PathLike)):
            return self._transform(read_image(image))
        if isinstance(image, Image.Image):
            try:
                return self._transform(as_rgb(image))
            except (OSError, SyntaxError, ValueError) as error:  # such as of a file that Pillow reads only now
                name = printable(getattr(image, "filename", "") or "made in memory")
                raise UnreadableImage(f"cannot read image {index}, {name} ({reason(error)})") from error
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(
                    f"image {index} is an array {image.shape} of {image.dtype}; expected (H, W, 3) uint8, RGB"
                )
            return self._transform(Image.fromarray(np.ascontiguousarray(image)))
        if isinstance(image, Tensor):
            return self._tensor(image.detach().cpu(), index)
        raise TypeError(
            f"image {index} is a {type(image).__name__}; expected a path, a PIL image, a (H, W, 3) uint8 array or a "
            "(3, H, W) tensor"
        )

    def _tensor(self, image: Tensor, index: int) -> Tensor:
        if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"image {index} is a tensor {tuple(image.shape)}; expected (3, H, W), RGB")
        if image.dtype == torch.uint8:
            return self._transform(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        if not image.is_floating_point():
            raise ValueError(f"image {index} is a tensor of {image.dtype}; expected uint8 or floating, in 0..255")
        low, high = float(image.min()), float(image.max())
        if not ((low >= 0 and 1 < high <= 255) or low == high == 0):
            hint = ": multiply by 255" if low >= 0 and high <= 1 else ": undo the normalisation, the model does its own"
            raise ValueError(f"image {index} has values {low:.3g} to {high:.3g}; expected RGB in 0..255{hint}")
        image = image.float()
        if tuple(image.shape[1:]) != self._size:
            image = TF.resize(image, list(self._size), self._resizing, antialias=True).clamp(0, 255)
        return image
