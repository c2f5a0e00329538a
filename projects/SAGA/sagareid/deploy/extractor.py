"""Features of images, for those who have a checkpoint and images: `from sagareid import Extractor`.

n images, F feature width, K text anchors, (h, w) patch grid, (H, W) input size.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import compat
from ..data.images import UnreadableImage
from ..evaluation.postprocess import l2
from ..files import file_hash
from ..hardware import compiler_problem
from ..processes import loader_start
from ..structures import CLIPFeatures
from .boxes import crop_boxes
from .feature_model import FeatureModel
from .load import checkpoint_file, load_model
from .options import VISIBILITY
from .prepare import ImageLike, Images, Prepare, checked, is_one_image
from .visibility import BANDS, Readout, Visibility, load_readout

__all__ = ["Batch", "Extractor", "ImageLike"]

logger = logging.getLogger(__name__)

compat.hide_storage_warning()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Batch(NamedTuple):
    """What one batch of images gave.

    Attributes:
        features: (n, F) float32, unit length, of the images that could be read, on the CPU.
        attention: (n, K, h, w) float32, or None.
        indices: their n places among the images asked for.
        unreadable: place -> why, of those that could not be read.
        visibility: how much of the n people is seen, or None.
    """

    features: Tensor
    attention: Tensor | None
    indices: list[int]
    unreadable: dict[int, str]
    visibility: Visibility | None = None


class Extractor:
    """The features that a trained model ranks by, of any images.

        extractor = Extractor.from_checkpoint("logs/SAGA/quickstart/anchors")
        features = extractor(["a.jpg", "b.jpg"])            # (2, F) float32, unit length, on the CPU
        similarity = features @ features.T                  # cosine
        similarity = extractor.compare(["a.jpg"], ["b.jpg", "c.jpg"])       # (1, 2)
        features = extractor.embed(frame, boxes)            # (N, F) of the people in a frame of a video

    They equal the evaluator's: the same reader, the same transform, the same feature (fusion, unless `feature` or the
    run's TEST.FEATURE says otherwise), TEST.FLIP honoured; what needs other images (NFC, expansion, re-ranking) is left
    out.
    Several threads may share an extractor.
    """

    def __init__(
        self, cfg: Any, model: nn.Module, *, dtype: str = "auto", feature: str = "auto", compile: bool = False
    ):
        """See `from_checkpoint`; cfg and model as `load_model` gives them."""
        self._module = FeatureModel(cfg, model.requires_grad_(False), feature)
        self.device = self._module.device
        if dtype == "auto":
            bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = "bfloat16" if bfloat16 else "float32"
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
        if dtype == "float16" and self.device.type == "cpu":
            raise ValueError("dtype float16 needs a GPU; on the CPU use float32 or bfloat16")
        self.dtype = dtype
        problem = compiler_problem(self.device.type) if compile else None
        if problem:
            raise ValueError(f"compile=True: torch.compile does not work here: {problem}")
        self._compiled = torch.compile(self._module, dynamic=False) if compile else None
        self._prepare = Prepare(cfg, self._module.size)
        self._unknown_cameras: set[str | None] = set()  # those that the log has named
        self._checkpoint: Path | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        device: str = "auto",
        dtype: str = "auto",
        feature: str = "auto",
        compile: bool = False,
    ) -> Extractor:
        """An extractor from a checkpoint alone: no CLIP weights, no text tower, no training data.

        Args:
            path: the folder of a run, a file of weights, or a name, as of `from_pretrained`.
            device: "auto" for the GPU where there is one, else the CPU; or a torch device.
            dtype: what the model computes in: "float32", "bfloat16", "float16" (GPU); features are float32 in any case.
                "auto": float32 on a CPU, bfloat16 on a GPU that has it, which turns a feature by about 1e-5 in cosine.
            feature: one of the evaluation's (refined, cls, proj, concat, orth, fusion, ...); "auto": the run's result.
            compile: run full batches through torch.compile, for many images on a GPU (docs/benchmarks says what it
                gives). The first batch of each batch_size takes about half a minute; smaller batches run eagerly.
                Features differ by rounding.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: it is none or does not fit its config; no such device, dtype or feature; no compiler.
        """
        cfg, model = load_model(path, device=device)
        extractor = cls(cfg, model, dtype=dtype, feature=feature, compile=compile)
        extractor._checkpoint = checkpoint_file(path)
        return extractor

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **options: Any) -> Extractor:
        """An extractor of a trained model by name: `from_checkpoint` as others call it.

        Args:
            name: one that ships (`sagareid.list_models()`), ``hf-hub:ORG/MODEL[@REVISION]``, the folder that
                tools/publish.py wrote, the folder of a run, or a file of weights. A model of a hub is fetched once and
                then used without a network; nothing that it brings is run: weights are safetensors, its configuration
                is read as plain YAML.
            options: of `from_checkpoint`.

        Raises:
            ConnectionError: a model of a hub that is not in the cache, and no answer from the hub within seconds.
            FileNotFoundError, ValueError: as `from_checkpoint`; a model that needs parts that are not registered.
        """
        return cls.from_checkpoint(name, **options)

    @functools.cached_property
    def checkpoint_sha256(self) -> str:
        """Of the checkpoint's bytes, by which features and thresholds know their model; "" for one without a file."""
        return file_hash(self._checkpoint) if self._checkpoint else ""

    @property
    def head(self) -> Any:
        """The model's head; None of a model without one of its own, such as FastReID's MGN."""
        return getattr(self._module.model, "heads", None)

    def tower(self, pixels: Tensor) -> CLIPFeatures | Tensor:
        """What the backbone gives the head of (B, 3, H, W) RGB in 0..255 of the model's size, cameras unknown.

        Raises:
            ValueError: the model goes another way than backbone, then head.
        """
        cameras = torch.full((len(pixels),), -1, device=self.device) if self._module.reads_cameras else None
        with torch.inference_mode():
            return self._module.tower(pixels.to(self.device), cameras)

    @property
    def cfg(self) -> Any:
        """The run's configuration."""
        return self._module.cfg

    @property
    def width(self) -> int:
        """F."""
        return self._module.width

    @property
    def feature(self) -> str:
        """The name of the feature that is given, as the evaluation lists it."""
        return self._module.feature

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that images are resized to."""
        return self._module.size

    @property
    def resizing(self) -> str:
        """How images are resized, by Pillow: "bilinear" or "bicubic"."""
        return self._module.cfg.INPUT.INTERPOLATION_TEST

    @property
    def anchor_names(self) -> list[str]:
        """The phrase that each of the K anchors started from, in the order of the attention; empty without anchors."""
        return self._module.anchor_names

    @property
    def cameras(self) -> list[str]:
        """Names of the training cameras that the model knows; empty where it does not look at cameras."""
        return list(self._module.cfg.MODEL.CLIP.CAMERAS) if self._module.reads_cameras else []

    @overload
    def __call__(
        self,
        images: Sequence[ImageLike] | Tensor,
        *,
        batch_size: int = ...,
        cameras: Sequence[str | None] | None = ...,
        attention: Literal[False] = ...,
        num_workers: int = ...,
        progress: bool = ...,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageLike] | Tensor,
        *,
        batch_size: int = ...,
        cameras: Sequence[str | None] | None = ...,
        attention: Literal[True],
        num_workers: int = ...,
        progress: bool = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(self, images, *, batch_size=64, cameras=None, attention=False, num_workers=0, progress=False):
        """Features of images, in their order.

        Args:
            images: a list, of mixed kinds and sizes if need be, or one (n, 3, H, W) tensor. An image is a path; a PIL
                image of any mode that `data.images.as_rgb` takes, turned by its EXIF orientation as a file is; a NumPy
                array (H, W, 3) uint8 RGB (OpenCV reads BGR: `array[..., ::-1]`); or a tensor (3, H, W) RGB in 0..255,
                uint8 or floating.
            batch_size: images that the model sees at once.
            cameras: the training camera of each image by name, as in `cameras`; None or another name: unknown. Models
                that do not look at cameras ignore it.
            attention: also return where each text anchor looks.
            num_workers: processes that read and resize; 0: this one.
            progress: show a bar with rate and time left.

        Returns:
            (n, F) float32 on the CPU, each of unit length. With `attention` also (n, K, h, w) float32: the share of
            a patch's attention that goes to each text anchor (domain anchors take the rest), flips not averaged.

        Raises:
            UnreadableImage: a file that is missing or no image; it names the file.
            TypeError, ValueError: something that is no image, of another dtype, shape or range; it names the place.
        """
        features, maps = [], []
        total = len(checked(images))
        with tqdm(total=total, desc="features", unit="img", disable=not progress) as bar:
            batches = self.iterate(
                images, batch_size=batch_size, cameras=cameras, attention=attention, num_workers=num_workers
            )
            for batch in batches:
                if batch.unreadable:
                    raise UnreadableImage(next(iter(batch.unreadable.values())))
                features.append(batch.features), maps.append(batch.attention)
                bar.update(len(batch.indices))
        features = torch.cat(features) if features else torch.zeros(0, self.width)
        if not attention:
            return features
        if not maps:
            return features, self._forward(self._module, torch.zeros(1, 3, *self.size), torch.tensor([-1]), True)[1][:0]
        return features, torch.cat(maps)

    def embed(
        self,
        frame: np.ndarray,
        boxes: Any,
        *,
        format: str = "xyxy",
        bgr: bool = True,
        camera: str | None = None,
        batch_size: int = 64,
        empty: Literal["error", "zero"] = "error",
        visibility: bool = False,
    ) -> Any:
        """Features of the people in a frame, in the order of their boxes.

        Args:
            frame: (H, W, 3) uint8, as OpenCV reads it: BGR, unless `bgr` is False.
            boxes: (N, 4), or anything with corners in `.xyxy`, such as `supervision.Detections`. Crops are cut at the
                border of the frame.
            format: "xyxy", "xywh" (upper left corner and size) or "cxcywh".
            camera: the training camera of the frame by name; None or another name: unknown.
            empty: what a box without a pixel inside the frame gives: an error that names it, or a feature of zeros.
            visibility: also return how much of each person is seen; tools/fit_visibility.py has made the read-out.

        Returns:
            (N, F) float32 on the CPU, of unit length (or zeros); with `visibility` also a `Visibility` of N people,
            zeros for boxes without a pixel.

        Raises:
            TypeError, ValueError: no frame, no boxes, a box without a pixel; the message says which.
            FileNotFoundError: `visibility` without a read-out beside the checkpoint.
        """
        if empty not in ("error", "zero"):
            raise ValueError(f"empty is {empty!r}; expected error or zero")
        crops = crop_boxes(frame, boxes, format=format, bgr=bgr)
        seen = {i: crop for i, crop in enumerate(crops) if crop is not None}
        if len(seen) < len(crops) and empty == "error":
            missing = [i for i, crop in enumerate(crops) if crop is None]
            raise ValueError(
                f"boxes {', '.join(map(str, missing))} have no pixel inside the frame of {frame.shape[1]} x "
                f'{frame.shape[0]}; drop those detections, or pass empty="zero" for features of zeros'
            )
        if visibility:
            _ = self.readout  # a frame without people has none either, and says so
        features, shares = torch.zeros(len(crops), self.width), torch.zeros(len(crops), 1 + BANDS)
        cameras = None if camera is None else [camera] * len(seen)
        places_seen = list(seen)
        batches = self.iterate(list(seen.values()), batch_size=batch_size, cameras=cameras, visibility=visibility)
        for batch in batches:
            places = [places_seen[i] for i in batch.indices]
            features[places] = batch.features
            if batch.visibility is not None:
                shares[places] = torch.cat([batch.visibility.crop[:, None], batch.visibility.sixths], dim=1)
        return (features, Visibility(shares[:, 0], shares[:, 1:])) if visibility else features

    def compare(self, a: Any, b: Any) -> Tensor:
        """Similarity of every pair, the cosine of their features: (len(a), len(b)); 1 - similarity is the distance.

        Args:
            a, b: images as of a call, one image, or (n, F) features of this extractor.

        Raises:
            ValueError: features of another width.
        """
        x, y = (self._features_of(value) for value in (a, b))
        return x @ y.T

    def _features_of(self, value: Any) -> Tensor:
        """(n, F), of images or of features."""
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 2:
            features = torch.as_tensor(value, dtype=torch.float32).cpu()
            if features.shape[1] != self.width:
                raise ValueError(f"features are {tuple(features.shape)}; this extractor's are (n, {self.width})")
            return l2(features)
        return self([value] if is_one_image(value) else value)

    def iterate(
        self,
        images: Sequence[ImageLike] | Tensor,
        *,
        batch_size: int = 64,
        cameras: Sequence[str | None] | None = None,
        attention: bool = False,
        visibility: bool = False,
        num_workers: int = 0,
    ) -> Iterator[Batch]:
        """Extract as a call does, batch by batch; a batch names the files that cannot be read instead of raising.

        Args:
            visibility: also say how much of each person is seen; tools/fit_visibility.py has made the read-out.

        Raises:
            FileNotFoundError: `visibility` without a read-out beside the checkpoint.
        """
        images = checked(images)
        readout = self.readout if visibility else None
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        if cameras is not None and len(cameras) != len(images):
            raise ValueError(f"{len(cameras)} cameras for {len(images)} images; expected one for each")
        known: dict[str | None, int] = {name: i for i, name in enumerate(self.cameras)}
        ids = torch.tensor([known.get(name, -1) for name in cameras] if cameras is not None else [-1] * len(images))
        if known and (others := set(cameras or ()) - set(known) - {None} - self._unknown_cameras):
            self._unknown_cameras |= others
            logger.warning(
                "cameras that the model was not trained with count as unknown: %s. It knows %s",
                ", ".join(sorted(map(str, others))),
                ", ".join(self.cameras),
            )
        loader = DataLoader(
            Images(images, self._prepare),
            batch_size=batch_size,
            num_workers=num_workers,
            multiprocessing_context=loader_start(num_workers),
            collate_fn=list,
            generator=torch.Generator(),  # nothing is drawn from the caller's random state
        )
        start = 0
        for samples in compat.from_workers(loader.__iter__):
            readable = [i for i, sample in enumerate(samples) if isinstance(sample, Tensor)]
            unreadable = {start + i: s for i, s in enumerate(samples) if not isinstance(s, Tensor)}
            features, maps, shares = torch.zeros(0, self.width), None, None
            if readable:
                pixels = torch.stack([samples[i] for i in readable])
                # what is compiled gives features and attention
                full = len(pixels) == batch_size and readout is None
                model = self._compiled if full and self._compiled is not None else self._module
                cameras_of = ids[[start + i for i in readable]]
                features, maps, shares = self._forward(model, pixels, cameras_of, attention, readout)
            seen = None if shares is None else Visibility(shares[:, 0], shares[:, 1:])
            yield Batch(features, maps, [start + i for i in readable], unreadable, seen)
            start += len(samples)

    @property
    def gives_visibility(self) -> bool:
        """Whether there is a read-out of tools/fit_visibility.py beside the checkpoint."""
        return self._checkpoint is not None and self._checkpoint.with_name(VISIBILITY).is_file()

    @functools.cached_property
    def readout(self) -> Readout:
        """How much of the person is seen; of tools/fit_visibility.py.

        Raises:
            FileNotFoundError, ValueError: none beside the checkpoint, or of another kind.
        """
        if self._checkpoint is None:
            raise FileNotFoundError("visibility needs a read-out beside the checkpoint: use Extractor.from_checkpoint")
        return load_readout(self._checkpoint.with_name(VISIBILITY)).to(self.device)

    def _forward(
        self,
        model: Callable[..., Any],
        pixels: Tensor,
        cameras: Tensor,
        attention: bool,
        readout: Readout | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        half = (
            torch.autocast(self.device.type, DTYPES[self.dtype])
            if self.dtype != "float32"
            else contextlib.nullcontext()
        )
        with torch.inference_mode(), half:
            asked = (attention,) if readout is None else (attention, readout)
            out = model(pixels.to(self.device), cameras.to(self.device), *asked)
        features, *further = out if isinstance(out, tuple) else (out,)
        # plain tensors: those of inference mode cannot be used in training
        found = [tensor.float().cpu().clone() for tensor in further]
        maps, shares = (found.pop(0) if wanted else None for wanted in (attention, readout is not None))
        return features.float().cpu().clone(), maps, shares
