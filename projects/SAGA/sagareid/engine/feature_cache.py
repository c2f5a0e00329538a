"""Outputs of a frozen backbone, kept on disk for stages that train on top of it and are validated on the way.

V views, n images. What is kept is what the backbone gives its head (`structures.OUTPUTS`): the fields of CLIPFeatures,
or the map of FastReID's own; with INPUT.OCCLUDE also what is hidden, at the resolution of patches. A cache is a folder
named by the hash of everything that changes its content: the backbone's weights and buffers, image list,
`cache_settings`. It is written in blocks; a byte per block says that the block is whole, so an interrupted build goes
on where it stopped.

The processes of a machine share the work and the files, which they map into memory. Another machine builds a cache of
its own, CACHE.DIR/machine<n>: maps of one file do not stay in step over a network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastreid.utils import comm

from ..config import flatten
from ..data.loaders import DeviceLoader, ReIDDataset
from ..data.seeding import SampleKey, SeededSamples, sample_seed
from ..files import write_json
from ..structures import HIDDEN, WHOLE, as_batch, as_features, named_outputs, patch_shares
from ..version import __version__
from .ownership import FolderLock, FolderTaken
from .precision import autocast_dtype

__all__ = [
    "CachedFeatures",
    "FeatureCache",
    "build_feature_cache",
    "cache_folder",
    "cache_settings",
    "cached_test_loader",
]

logger = logging.getLogger(__name__)

BLOCK = 128  # images; also the extraction batch
# Keys below MODEL and INPUT, as glob patterns, that cannot change a backbone's output: where weights came from (they
# are part of the cache's name themselves), what of the model trains and how, and the keys of what comes behind it.
NO_EFFECT = (
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "MODEL.BACKBONE.GRAD_CHECKPOINT",
    "MODEL.WEIGHTS",
    "MODEL.NEW_WEIGHTS",
    "MODEL.ACCEPT_DIFFERENCES",
    "MODEL.TRAINABLE",
    "MODEL.FREEZE_LAYERS",
    "MODEL.EVAL_MODE",
    "MODEL.COMPILE",
    "MODEL.DEVICE",
    "MODEL.QUEUE_SIZE",
    "MODEL.HEADS.*",
    "MODEL.LOSSES.*",
    "MODEL.PROMPT.*",
    "MODEL.SAGA.*",
)


class FeatureCache:
    """Memory-mapped fields of every image and view.

    Attributes:
        fields: name -> (V, n, ...) tensor over the file; reading touches only the rows asked for.
        form: what a batch of fields says beside them, see `structures.as_batch`.
        done: (V, blocks) uint8, 1 for a block that is whole.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        views: int,
        images: int,
        form: Mapping[str, Any] | None = None,
    ):
        self.folder, self.views, self.images, self.form = folder, views, images, dict(form or {})
        self.shapes, self.dtype = {k: tuple(v) for k, v in shapes.items()}, dtype
        self.blocks = -(-images // BLOCK)
        self.fields = {k: self._map(f"{k}.bin", (views, images, *s), dtype) for k, s in self.shapes.items()}
        self.done = self._map("done.bin", (views, self.blocks), torch.uint8)

    def _map(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        file, size = self.folder / name, torch.Size(shape).numel()
        read_only = file.exists() and not os.access(file, os.W_OK)  # a finished cache on a disk that is only read
        return torch.from_file(str(file), shared=not read_only, size=size, dtype=dtype).view(*shape)

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    @staticmethod
    def nbytes(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, views: int, images: int) -> int:
        return sum(torch.Size(s).numel() for s in shapes.values()) * views * images * dtype.itemsize


class CachedFeatures(Dataset):
    """The training set as cached features; read by `SampleKey`, whose seed picks the view. A batch is one gather.

    Attributes:
        images: the training set itself.
    """

    def __init__(self, dataset: ReIDDataset):
        self.images = dataset
        self.cache: FeatureCache | None = None
        pids, camids = ([item[i] for item in dataset.img_items] for i in (1, 2))
        if dataset.relabel:
            pids, camids = [dataset.pid_dict[p] for p in pids], [dataset.cam_dict[c] for c in camids]
        self._labels = {
            "targets": torch.tensor(pids),
            "camids": torch.tensor(camids),
            "cameras": torch.tensor([dataset.camera_index(cam) for _, _, cam in dataset.img_items]),
        }

    def attach(self, cache: FeatureCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.images)

    @property
    def img_items(self):
        return self.images.img_items

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def cameras(self) -> list[str]:
        return self.images.cameras

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """A whole batch: the fields of the cache, (B, ...), their form, and the labels of FastReID's batches."""
        index = torch.tensor([k.index for k in keys])
        view = torch.tensor([k.seed % self.cache.views for k in keys])
        batch = self.cache.form | {name: field[view, index] for name, field in self.cache.fields.items()}
        batch |= {name: labels[index] for name, labels in self._labels.items()}
        batch["img_paths"] = [self.img_items[k.index][0] for k in keys]
        return batch


def _digest(model: nn.Module, dataset: ReIDDataset, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    # buffers, too: statistics of batch norms, and those that no checkpoint keeps
    for name, tensor in sorted([*model.backbone.named_parameters(), *model.backbone.named_buffers()]):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else str(tensor).encode()
        )
    for buffer in (model.pixel_mean, model.pixel_std):
        digest.update(buffer.detach().cpu().numpy().tobytes())
    occluder = dataset.training_occluder
    others = sorted(occluder.files(item[0] for item in dataset.img_items)) if occluder else []
    for path, pid, camid in [*dataset.img_items, *((path, "", "") for path in others)]:
        stat = Path(path).stat()
        digest.update(f"{path}|{pid}|{camid}|{stat.st_size}|{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def build_feature_cache(cfg, model: nn.Module, dataset: ReIDDataset) -> FeatureCache:
    """Open the cache of a frozen backbone and a training set, building what is missing of it. Called on every process.

    Of several jobs that need it, one builds it and the others wait. A finished one is only read.

    Args:
        model: a SAGABaseline whose backbone is frozen; left in the mode it was in.
        dataset: with the transform whose outputs are to be cached.

    Raises:
        ValueError: a backbone that trains, or a field that it does not give.
        OSError: not enough free disk; the message has both sizes.
    """
    if not model.backbone_frozen:
        raise ValueError(
            "CACHE.ENABLED needs a frozen backbone: take it out of MODEL.TRAINABLE, or set CACHE.ENABLED False"
        )
    dtype = getattr(torch, cfg.CACHE.DTYPE)
    autocast = autocast_dtype(cfg)
    settings = cache_settings(cfg, dataset)
    machine = comm.get_rank() // comm.get_local_size()
    place = Path(cache_folder(cfg), f"machine{machine}" if machine else "")
    folder = place / _digest(model, dataset, settings)
    shapes, form = _fields(cfg, model, dataset)
    shape = (shapes, dtype, cfg.CACHE.NUM_VIEWS, len(dataset))
    with _one_builder(folder, lambda: _is_whole(folder, *shape)) as builder:
        if builder and comm.get_local_rank() == 0:
            _announce(folder, FeatureCache.nbytes(*shape))
            write_json(folder / "settings.json", settings)
            FeatureCache(folder, *shape)  # the files, before the other processes map them
        comm.synchronize()
        cache = FeatureCache(folder, *shape, form)
        whole = cache.complete
        comm.synchronize()  # nobody fills before everybody has looked
        if not whole:
            _fill(cfg, model, dataset, cache, autocast)
        comm.synchronize()
        if not cache.complete:
            raise RuntimeError(f"the feature cache in {folder} is not whole although every process has built its share")
    return cache


@contextmanager
def _one_builder(folder: Path, is_whole: Callable[[], bool]) -> Iterator[bool]:
    """Whether this job builds the cache; it owns the folder inside the scope. Waits as long as another job does.

    Called on every process; the first of each machine looks.
    """
    lock, waited = None, False
    while True:
        taken = ""
        if comm.get_local_rank() == 0 and not is_whole():
            try:
                lock = FolderLock(folder)
            except FolderTaken as error:
                taken = str(error)
        if not any(comm.all_gather(taken)):
            break
        if lock is not None:  # another machine's has to wait
            lock.release()
            lock = None
        if taken and not waited:
            waited = True
            logger.info("waiting for the feature cache: %s", taken)
        time.sleep(1)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _is_whole(folder: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, views: int, images: int) -> bool:
    _check_files(folder, shapes, dtype, views * images)
    return (folder / "done.bin").exists() and FeatureCache(folder, shapes, dtype, views, images).complete


def cache_settings(cfg, dataset: ReIDDataset) -> dict[str, Any]:
    """What decides the content of a cache beside the backbone's weights and the images.

    Whole sections of the config: a key that a backbone or a transform reads tomorrow is among them.
    """
    read = flatten({"MODEL": cfg.MODEL, "INPUT": cfg.INPUT})
    return {
        "version": __version__,
        "built from": {k: v for k, v in read.items() if not any(fnmatchcase(k, pattern) for pattern in NO_EFFECT)},
        "transform": repr(dataset.transform),
        "occluder": repr(dataset.training_occluder),
        "fields": sorted(cfg.CACHE.FIELDS),
        "views": cfg.CACHE.NUM_VIEWS,
        "augment": cfg.CACHE.AUGMENT,
        "dtype": cfg.CACHE.DTYPE,
        "autocast": str(autocast_dtype(cfg)),
        "seed": _seed(cfg),
    }


def cache_folder(cfg) -> Path:
    """CACHE.DIR, or its default. The stages of a configuration share the default folder of the whole of it."""
    return Path(cfg.CACHE.DIR or Path(cfg.OUTPUT_DIR, "feature_cache"))


def cached_test_loader(cfg, model: nn.Module, loader: DataLoader) -> DataLoader:
    """The batches of a test loader, as cached features instead of images. Called on every process.

    They are computed in float32, as evaluation is, whatever training steps are computed in.
    """
    once = cfg.clone()
    once.defrost()
    once.CACHE.NUM_VIEWS, once.CACHE.AUGMENT, once.SOLVER.AMP.ENABLED = 1, False, False
    cached = CachedFeatures(loader.dataset)
    cached.attach(build_feature_cache(once, model, loader.dataset))
    batches = [[SampleKey(i, 0) for i in batch] for batch in loader.batch_sampler]
    return DataLoader(cached, batch_sampler=batches, collate_fn=lambda batch: batch)


def _seed(cfg) -> int:
    return cfg.CACHE.SEED if cfg.CACHE.SEED >= 0 else cfg.SEED


def _fields(cfg, model: nn.Module, dataset: ReIDDataset) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """The shape of each field of an image, and what a batch says beside them."""
    sample = _ViewedSamples(dataset, _seed(cfg), [(0, 0)])[0]
    batch = {k: v[None] for k, v in sample.items() if isinstance(v, Tensor)}
    batch["cameras"] = torch.tensor([sample["cameras"]])
    with _evaluating(model), torch.no_grad():
        features = model.extract(batch)
        hidden = _of_occluder(model, batch, as_features(features).grid)
    given = as_batch(features)
    names = list(named_outputs(features))
    wanted = names if "all" in cfg.CACHE.FIELDS else cfg.CACHE.FIELDS
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(
            f"CACHE.FIELDS names {', '.join(unknown)}, which {cfg.MODEL.BACKBONE.NAME} does not give; it gives "
            f"{', '.join(names)}"
        )
    shapes = {k: tuple(given[k].shape[1:]) for k in wanted}
    shapes |= {k: tuple(v.shape[1:]) for k, v in hidden.items() if k == HIDDEN or k.removeprefix(WHOLE) in wanted}
    return shapes, {k: v for k, v in given.items() if k not in names}


def _of_occluder(model: nn.Module, batch: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Tensor]:
    """What is kept of INPUT.OCCLUDE beside the outputs: which share of each patch of the `grid` is hidden, (B, h, w),
    and the outputs for the same images with nothing hidden, where they are kept."""
    if HIDDEN not in batch:
        return {}
    hidden = {HIDDEN: patch_shares(batch[HIDDEN].float(), grid).unflatten(1, grid)}
    if f"{WHOLE}images" not in batch:
        return hidden
    features = model.extract({"images": batch[f"{WHOLE}images"], "cameras": batch["cameras"]})
    return hidden | {f"{WHOLE}{name}": tensor for name, tensor in named_outputs(features).items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the scope, as it was behind it: no statistics change, nothing is dropped."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _check_files(folder: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, rows: int) -> None:
    """See that the files of a cache that was begun have their sizes: a map would fill up a short one with zeros."""
    if not (folder / "done.bin").exists():  # it is made last
        return
    for name, shape in shapes.items():
        file, expected = folder / f"{name}.bin", rows * torch.Size(shape).numel() * dtype.itemsize
        found = file.stat().st_size if file.exists() else 0
        if found != expected:
            raise ValueError(
                f"the feature cache is damaged: {file} has {found} bytes, expected {expected}. Delete the folder "
                f"{folder}; the same command builds it again"
            )


def _announce(folder: Path, need: int) -> None:
    present = sum(f.stat().st_size for f in folder.glob("*.bin"))
    free = shutil.disk_usage(folder).free
    logger.info(
        "feature cache %s: %.2f GB (%.2f GB there already, %.1f GB of disk free)",
        folder,
        need / 1e9,
        present / 1e9,
        free / 1e9,
    )
    if need - present > free:
        raise OSError(
            f"the feature cache needs {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Set CACHE.DIR to "
            "a larger disk, lower CACHE.NUM_VIEWS, or train without it: CACHE.ENABLED False"
        )


class _ViewedSamples(SeededSamples):
    """Every image once per view, in order; the seed of a sample is a function of view and image alone."""

    def __init__(self, dataset: ReIDDataset, seed: int, todo: Sequence[tuple[int, int]]):
        super().__init__(dataset)
        self._seed, self._keys = seed, todo

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: int) -> dict[str, Any]:
        view, index = self._keys[position]
        sample = super().__getitem__(SampleKey(index, sample_seed(self._seed, view, index)))
        return {name: sample[name] for name in ("images", "cameras", HIDDEN, f"{WHOLE}images") if name in sample}


def _fill(cfg, model: nn.Module, dataset: ReIDDataset, cache: FeatureCache, autocast: torch.dtype | None) -> None:
    todo = [(v, b) for v in range(cache.views) for b in range(cache.blocks) if not cache.done[v, b]]
    todo = todo[comm.get_local_rank() :: comm.get_local_size()]
    rows = [list(range(b * BLOCK, min((b + 1) * BLOCK, cache.images))) for _, b in todo]
    keys = [(v, i) for (v, _), block in zip(todo, rows) for i in block]
    batches = torch.tensor([len(block) for block in rows]).cumsum(0).tolist()
    spans = [range(start, stop) for start, stop in zip([0, *batches], batches)]
    loader = DeviceLoader(
        _ViewedSamples(dataset, _seed(cfg), keys),
        batch_sampler=spans,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        device=cfg.MODEL.DEVICE,
        pin_memory=model.device.type == "cuda",
        generator=torch.Generator(),  # building the cache draws nothing from the run's random state
    )
    batches = iter(loader)
    bar = tqdm(
        total=len(keys),
        unit="img",
        desc="caching features",
        disable=not (comm.is_main_process() and sys.stderr.isatty()),
    )
    try:
        with _evaluating(model):
            for (view, block), indices, batch in zip(todo, rows, batches):
                with (
                    torch.inference_mode(),
                    torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None),
                ):
                    features = model.extract(batch)
                    outputs = named_outputs(features) | _of_occluder(model, batch, as_features(features).grid)
                for name, field in cache.fields.items():
                    field[view, indices[0] : indices[-1] + 1] = outputs[name].to(device="cpu", dtype=cache.dtype)
                cache.done[view, block] = 1
                bar.update(len(indices))
    finally:
        bar.close()
        batches.close()  # ends the worker processes
    logger.info("feature cache: %d images extracted", len(keys))
