"""Seeded samples, transforms, cameras, and the feature cache."""

from __future__ import annotations

import copy
import fnmatch
import functools
import itertools
import math
import multiprocessing
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch

from sagareid import compat, get_cfg, structures
from sagareid.config import flatten
from sagareid.data import loaders, seeding, transforms
from sagareid.engine import feature_cache
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.errors import lost_worker
from sagareid.modeling.meta_arch import SAGABaseline

from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage


@pytest.fixture
def cfg(repo, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg = get_cfg()
    cfg.merge_from_file(str(repo / "configs/SAGA/quickstart.yml"))
    keys = """
        SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0  SOLVER.AMP.ENABLED False  MODEL.HEADS.NUM_CLASSES 12
        MODEL.BACKBONE.PRETRAIN False  MODEL.TRAINABLE ['heads.*']  CACHE.ENABLED True  CACHE.NUM_VIEWS 2
        CACHE.DTYPE float32
    """.split()
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), *keys])
    return cfg


def take(loader, count: int, start: int = 0) -> list[dict]:
    loader.start_at(start)
    return list(itertools.islice(loader, count))


def equal(a: list[dict], b: list[dict]) -> bool:
    return all(
        x["img_paths"] == y["img_paths"] and torch.equal(x["images"], y["images"]) for x, y in zip(a, b, strict=True)
    )


class TestSeededLoader:
    def test_depends_on_the_seed_alone(self, cfg):
        first = take(loaders.build_train_loader(cfg), 4)
        np.random.seed(5), torch.manual_seed(5)
        assert equal(first, take(loaders.build_train_loader(cfg), 4))
        cfg.DATALOADER.NUM_WORKERS = 2
        assert equal(first, take(loaders.build_train_loader(cfg), 4))
        cfg.SEED = 1
        assert not equal(first, take(loaders.build_train_loader(cfg), 4))

    def test_starts_anywhere(self, cfg):
        assert equal(take(loaders.build_train_loader(cfg), 5)[3:], take(loaders.build_train_loader(cfg), 2, start=3))

    def test_draws_nothing_from_the_run(self, cfg):
        loader = loaders.build_train_loader(cfg)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        take(loader, 2)
        assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()

    def test_identities_come_in_groups(self, cfg):
        for batch in take(loaders.build_train_loader(cfg), 4):
            assert batch["targets"].bincount().tolist().count(4) == 4


def test_cameras_agree_between_training_and_testing(cfg):
    """FastReID's own ids do not: the rank of the name in training, the number in testing."""
    train = loaders.training_set(cfg)
    cfg.MODEL.CLIP.CAMERAS = train.cameras
    by_number = {int(name.rpartition("_")[2]): i for i, name in enumerate(train.cameras)}
    test_loader, _ = loaders.build_test_loader(cfg, "SyntheticPedestrians")
    batch = next(iter(test_loader))
    assert batch["cameras"].tolist() == [by_number[c] for c in batch["camids"].tolist()]
    assert loaders.natural_order(["a_10", "a_2", "a_1"]) == ["a_1", "a_2", "a_10"]


def test_an_unseen_camera_is_unknown(cfg):
    cfg.MODEL.CLIP.CAMERAS = loaders.training_set(cfg).cameras[:2]
    loader, _ = loaders.build_test_loader(cfg, "SyntheticPedestrians")
    assert set(torch.cat([b["cameras"] for b in loader]).tolist()) == {-1, 0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("during", ["training", "caching"])
def test_a_killed_worker_ends_the_run_with_advice(during, train_net, repo, tmp_path, monkeypatch, capfd):
    """SIGKILL, as the kernel's where memory runs out: in training, and while the feature cache is built."""
    monkeypatch.chdir(repo)
    owner, name = (StepTrainer, "run_step") if during == "training" else (SAGABaseline, "extract")
    original, calls = getattr(owner, name), itertools.count()

    def with_a_death(self, *args):
        if next(calls) == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return original(self, *args)

    monkeypatch.setattr(owner, name, with_a_death)
    monkeypatch.setattr(feature_cache, "BLOCK", 16)
    options = ["SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 2, "OUTPUT_DIR", tmp_path]
    options += ["CACHE.ENABLED", during == "caching"]
    begun = time.monotonic()
    assert train_net("--config-file", "configs/SAGA/quickstart.yml", "--stage", "prompts", *options) == 1
    assert time.monotonic() - begun < 60, "bounded"
    error = capfd.readouterr().err
    assert re.search(
        r"error: DataLoader worker .*(killed by signal: Killed|exited unexpectedly).*DATALOADER.NUM_WORKERS \(0", error
    ), error
    assert multiprocessing.active_children() == []


def _die_slowly(seconds: float) -> None:
    """As a process that was killed: its files are closed before it can be reaped."""
    os.closerange(3, 256)
    time.sleep(seconds)
    os._exit(1)


def test_an_interrupt_while_workers_start_is_not_lost():
    """Python drops one that falls into the callbacks of a fork."""
    received = []

    def start():
        os.kill(os.getpid(), signal.SIGINT)
        received.append("started")
        return iter([1])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            received.extend(compat.from_workers(start))
        assert received == ["started"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [ConnectionResetError("Connection reset by peer"), EOFError(), BrokenPipeError()])
@pytest.mark.parametrize("fate", ["killed", "dying", "alive"])
def test_a_worker_killed_while_it_hands_over_a_tensor(error, fate):
    """The error of a broken connection is that of a lost worker only where one is lost."""
    body, seconds = (_die_slowly, 0.3) if fate == "dying" else (time.sleep, 60)
    worker = multiprocessing.get_context("fork").Process(target=body, args=(seconds,))
    worker.start()
    killed = fate != "alive"

    class Batches:
        def __init__(self):
            self._workers = [worker]

        def __iter__(self):
            yield "first"
            if killed:
                os.kill(worker.pid, signal.SIGKILL)
            raise error

        def _shutdown_workers(self):
            pass

    received = []
    with pytest.raises(RuntimeError if killed else type(error)) as caught:
        for batch in compat.from_workers(Batches):
            received.append(batch)
    assert received == ["first"] and not worker.is_alive()
    assert bool(lost_worker(caught.value)) == killed


class TestTransforms:
    def test_erasing_is_one_box_of_normal_noise(self):
        erase = transforms.PixelNoiseErasing(p=1.0, area=(0.02, 1 / 3), mean=[127.5] * 3, std=[127.5] * 3)
        torch.manual_seed(0)
        shares, values = [], []
        for _ in range(200):
            image = torch.full((3, 64, 32), 300.0)
            out = erase(image)
            assert bool((image == 300).all()), "out of place"
            hit = (out != 300).all(0)
            rows, columns = torch.where(hit)
            assert hit.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            shares.append(hit.float().mean().item()), values.append((out[:, hit] - 127.5) / 127.5)
        values = torch.cat([v.flatten() for v in values])
        assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
        assert min(shares) > 0.01 and max(shares) < 0.36 and np.mean(shares) == pytest.approx(0.17, abs=0.03)

    def test_test_filter(self, cfg):
        from torchvision.transforms import InterpolationMode

        for name in ("bilinear", "bicubic"):
            cfg.INPUT.INTERPOLATION_TEST = name
            assert transforms.build_transforms(cfg, is_train=False).transforms[0].interpolation == InterpolationMode(
                name
            )


def _another(value):
    """A value of the same type that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*value, 1]


RESNET = """
    MODEL.BACKBONE.NAME build_resnet_backbone  MODEL.BACKBONE.DEPTH 18x  MODEL.BACKBONE.FEAT_DIM 512
    MODEL.BACKBONE.LAST_STRIDE 1
""".split()
# A frozen backbone of every kind, and a head that reads what it gives: KEY VALUE on top of the fixture.
FAMILIES = {
    "CLIP, class token": "MODEL.HEADS.NAME CLSHead",
    "CLIP, two layers": "MODEL.CLIP.TOKEN_LAYERS [2,4]  MODEL.SAGA.DROPOUT 0.0",
    "CLIP, map": "MODEL.BACKBONE.OUTPUT map  MODEL.HEADS.NAME EmbeddingHead  MODEL.HEADS.POOL_LAYER GlobalMaxPool",
    "ResNet": " ".join(RESNET) + "  MODEL.SAGA.DROPOUT 0.0",
    "ResNet, FastReID's head": " ".join(RESNET) + "  MODEL.HEADS.NAME EmbeddingHead",
    "OSNet": """MODEL.BACKBONE.NAME build_osnet_backbone  MODEL.BACKBONE.DEPTH x0_25  MODEL.BACKBONE.FEAT_DIM 128
        MODEL.HEADS.NAME AttentionPoolHead""",
    "FastReID's ViT": """MODEL.BACKBONE.NAME build_vit_backbone  MODEL.BACKBONE.DEPTH small  MODEL.BACKBONE.FEAT_DIM 768
        MODEL.BACKBONE.STRIDE_SIZE (16,16)  MODEL.HEADS.NAME EmbeddingHead""",
    "timm's ViT": """MODEL.BACKBONE.NAME build_timm_backbone  MODEL.BACKBONE.TIMM.NAME vit_base_patch16_224
        MODEL.BACKBONE.FEAT_DIM 48  MODEL.CLIP.TOKEN_LAYERS [1]  MODEL.HEADS.NAME CLSHead""",
    "timm's EfficientNet": """MODEL.BACKBONE.NAME build_timm_backbone  MODEL.BACKBONE.TIMM.NAME test_efficientnet
        MODEL.BACKBONE.OUTPUT map  MODEL.CLIP.TOKEN_LAYERS [3]  MODEL.BACKBONE.FEAT_DIM 32
        MODEL.HEADS.NAME PartStripesHead  MODEL.HEADS.NUM_STRIPES 3""",
}
SMALL_TIMM = {"timm's ViT": ["depth=2", "embed_dim=48", "num_heads=3", "drop_path_rate=0.5", "proj_drop_rate=0.5"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_training_equals_live_training(family, cfg):
    """Two steps of the trainer: the same losses, the same weights of the head, and a backbone that stays as it was."""
    plain = ("MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLoss"), "CACHE.NUM_VIEWS", 1, "CACHE.AUGMENT", False)
    cfg.merge_from_list([*FAMILIES[family].split(), *plain])
    cfg.MODEL.BACKBONE.TIMM.ARGS = SMALL_TIMM.get(family, [])
    torch.manual_seed(0)
    model = SAGATrainer.build_model(cfg)
    spread_statistics(model.backbone)
    start = copy.deepcopy(model.state_dict())
    dataset = loaders.training_set(cfg, transforms.build_transforms(cfg, is_train=False))
    cached = feature_cache.CachedFeatures(dataset)
    cached.attach(feature_cache.build_feature_cache(cfg, model, dataset))
    trained = []
    for samples in (cached, seeding.SeededSamples(dataset)):
        model.load_state_dict(start)
        torch.manual_seed(1)
        loader, optimizer = loaders.build_train_loader(cfg, samples), SAGATrainer.build_optimizer(cfg, model)[0]
        trainer, losses = StepTrainer(model, loader, optimizer, None, None), []
        with EventStorage() as storage:
            for trainer.iter in range(2):
                trainer.run_step()
                losses.append(storage.latest()["total_loss"][0])
        trained.append((losses, copy.deepcopy(model.state_dict())))
    (losses, weights), (live_losses, live_weights) = trained
    assert losses == pytest.approx(live_losses, rel=1e-5) and losses[0] != losses[1]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, live_weights[name], rtol=1e-4, atol=1e-5)
        if name.startswith("backbone."):
            assert torch.equal(live_weights[name], start[name]), f"{name} of a frozen backbone has changed"
    head = [name for name, _ in model.named_parameters() if name.startswith("heads.")]
    assert any(not torch.equal(weights[name], start[name]) for name in head)


def spread_statistics(module: torch.nn.Module) -> None:
    """Give batch norms statistics that those of a batch are far from, as a trained one has."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 4)


class TestFeatureCache:
    def build(self, cfg, dataset=None, model=None):
        dataset = dataset or loaders.training_set(cfg, transforms.build_transforms(cfg, is_train=cfg.CACHE.AUGMENT))
        torch.manual_seed(0)
        model = model or SAGATrainer.build_model(cfg)
        return feature_cache.build_feature_cache(cfg, model, dataset), dataset, model

    def test_cached_equals_live(self, cfg):
        """Without augmentation, every row is what the tower gives for the image; labels are those of the loader."""
        cfg.CACHE.AUGMENT = False
        cache, dataset, model = self.build(cfg)
        cached = feature_cache.CachedFeatures(dataset)
        cached.attach(cache)
        keys = [seeding.SampleKey(i, s) for i, s in [(3, 0), (100, 1), (7, 2)]]
        batch = cached.__getitems__(keys)
        samples = [dataset[k.index] for k in keys]
        model.eval()
        with torch.no_grad():
            live = model.extract({"images": torch.stack([s["images"] for s in samples])})
        assert set(cache.fields) == set(structures.TENSORS)
        for field in structures.TENSORS:
            torch.testing.assert_close(batch[field], getattr(live, field), rtol=1e-4, atol=1e-4)
        for label in ("targets", "camids", "cameras"):
            assert batch[label].tolist() == [s[label] for s in samples]

    @pytest.mark.parametrize("device, workers", [("cpu", 0), ("cuda", 2)])
    def test_workers_copy_features_for_a_gpu_alone(self, device, workers, cfg):
        cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = device, 2
        cached = feature_cache.CachedFeatures(loaders.training_set(cfg))
        assert loaders.build_train_loader(cfg, cached).num_workers == workers
        assert loaders.build_train_loader(cfg).num_workers == 2, "images are read by workers anywhere"

    def test_views_differ(self, cfg):
        cache, _, _ = self.build(cfg)
        assert cache.fields["cls"].shape[0] == 2 and not torch.equal(cache.fields["cls"][0], cache.fields["cls"][1])

    def test_is_found_again_and_never_stale(self, cfg, tmp_path, monkeypatch):
        calls = {"n": 0}
        fill = feature_cache._fill

        def counted(*args):
            calls["n"] += 1
            fill(*args)

        monkeypatch.setattr(feature_cache, "_fill", counted)
        cache, dataset, model = self.build(cfg)
        assert self.build(cfg, dataset, model)[0].folder == cache.folder and calls["n"] == 1
        changes = {
            "weights": lambda: model.backbone.visual.ln_post.bias.data.add_(1),
            "a buffer that no checkpoint keeps": lambda: model.backbone.register_buffer(
                "extra", torch.ones(1), persistent=False
            ),
            "seed": lambda: cfg.merge_from_list(["SEED", 3]),
            "augmentation": lambda: cfg.merge_from_list(["INPUT.FLIP.PROB", 0.25]),
            "views": lambda: cfg.merge_from_list(["CACHE.NUM_VIEWS", 1]),
            "an image": lambda: dataset.img_items.pop(),
        }
        seen = {cache.folder}
        for name, change in changes.items():
            change()
            folder = self.build(cfg, dataset, model)[0].folder
            assert folder not in seen, f"a change of {name} must give another cache"
            seen.add(folder)

    def test_of_two_jobs_one_builds_and_the_other_waits(self, cfg, monkeypatch):
        """The second job sees the lock, waits, and finds a whole cache."""
        filled, builder = [], feature_cache._fill
        began, may_end = threading.Event(), threading.Event()

        def slow(*args):
            filled.append(threading.get_ident())
            began.set()
            assert may_end.wait(60)
            builder(*args)

        monkeypatch.setattr(feature_cache, "_fill", slow)
        monkeypatch.setattr(feature_cache.time, "sleep", lambda seconds: may_end.set())  # the second job waits
        dataset = loaders.training_set(cfg, transforms.build_transforms(cfg, is_train=False))
        model = SAGATrainer.build_model(cfg)
        caches = []
        jobs = [threading.Thread(target=lambda: caches.append(self.build(cfg, dataset, model)[0])) for _ in range(2)]
        jobs[0].start()
        assert began.wait(60)
        jobs[1].start()
        for job in jobs:
            job.join()
        assert len(filled) == 1 and len(caches) == 2 and caches[0].folder == caches[1].folder
        assert torch.equal(caches[0].fields["cls"], caches[1].fields["cls"])
        assert not list(caches[0].folder.glob("*.lock"))

    def test_a_finished_one_is_only_read(self, cfg, monkeypatch):
        cache, dataset, model = self.build(cfg)
        before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in cache.folder.iterdir()}
        monkeypatch.setattr(feature_cache.os, "access", lambda path, mode: False)  # as on a disk that is only read
        monkeypatch.setattr(feature_cache, "write_json", lambda *args: pytest.fail("a finished cache was written to"))
        monkeypatch.setattr(feature_cache, "FolderLock", lambda folder: pytest.fail("a finished cache was locked"))
        again = self.build(cfg, dataset, model)[0]
        again.fields["cls"].zero_()
        assert bool(cache.fields["cls"].any()), "what is read is mapped for reading alone"
        assert before == {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in cache.folder.iterdir()}

    def test_every_key_of_the_tower_and_the_transforms_counts(self, cfg):
        """Whatever key there is, of FastReID or ours, old or new; the exceptions are named and have no effect."""
        dataset = loaders.training_set(cfg)
        before = feature_cache.cache_settings(cfg, dataset)
        found = {}
        for key, value in flatten({"MODEL": cfg.MODEL, "INPUT": cfg.INPUT}).items():
            changed = cfg.clone()
            owner = functools.reduce(getattr, key.split(".")[:-1], changed)
            owner[key.rpartition(".")[2]] = _another(value)
            found[key] = feature_cache.cache_settings(changed, dataset) != before
        without = {key for key in found if any(fnmatch.fnmatchcase(key, p) for p in feature_cache.NO_EFFECT)}
        assert {key for key, counts in found.items() if not counts} == without
        unused = [p for p in feature_cache.NO_EFFECT if not fnmatch.filter(found, p)]
        assert len(found) - len(without) > 50 and not unused

    def test_what_has_no_effect_has_none(self, cfg, tmp_path):
        cfg.CACHE.NUM_VIEWS, cfg.CACHE.FIELDS = 1, ["patches"]
        cache, dataset, model = self.build(cfg)
        changes = {"PRETRAIN": True, "PRETRAIN_PATH": "", "GRAD_CHECKPOINT": True}
        cfg.MODEL.BACKBONE.merge_from_other_cfg(CfgNode(changes))
        other = SAGATrainer.build_model(cfg)
        other.backbone.load_state_dict(model.backbone.state_dict())
        cfg.CACHE.DIR = str(tmp_path / "other")
        again = self.build(cfg, dataset, other)[0]
        assert again.folder.name == cache.folder.name
        assert torch.equal(again.fields["patches"], cache.fields["patches"])

    def test_the_camera_embeddings_factor_gives_other_tokens(self, cfg):
        """The case that went wrong: class tokens of another SIE_COE were taken from the cache."""
        cfg.MODEL.CLIP.SIE_CAMERA, cfg.CACHE.NUM_VIEWS, cfg.CACHE.FIELDS = True, 1, ["cls"]
        cfg.MODEL.CLIP.CAMERAS = loaders.training_set(cfg).cameras
        first = self.build(cfg)[0]
        cfg.MODEL.BACKBONE.SIE_COE = 30.0
        second = self.build(cfg)[0]
        assert first.folder != second.folder and not torch.equal(first.fields["cls"], second.fields["cls"])

    def test_a_file_that_was_cut_off_is_named(self, cfg):
        cache, dataset, model = self.build(cfg)
        with open(cache.folder / "patches.bin", "r+b") as file:
            file.truncate(1000)
        with pytest.raises(ValueError, match=r"damaged: .*patches.bin has 1000 bytes, expected \d+. Delete the folder"):
            self.build(cfg, dataset, model)

    def test_an_interrupted_build_goes_on_and_ends_the_same(self, cfg, tmp_path, monkeypatch):
        monkeypatch.setattr(feature_cache, "BLOCK", 16)
        whole, dataset, model = self.build(cfg)
        cfg.CACHE.DIR = str(tmp_path / "other")
        extract, calls = model.extract, itertools.count()

        def dies(batch):
            if next(calls) == 5:
                raise KeyboardInterrupt
            return extract(batch)

        model.extract = dies
        with pytest.raises(KeyboardInterrupt):
            self.build(cfg, dataset, model)
        model.extract = extract
        again = self.build(cfg, dataset, model)[0]
        for name in whole.fields:
            assert torch.equal(whole.fields[name], again.fields[name])

    def test_size_is_announced_and_a_small_disk_refused(self, cfg, monkeypatch, caplog):
        from collections import namedtuple

        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage(1, 1, 1))
        with pytest.raises(OSError, match="CACHE.ENABLED False"):
            self.build(cfg)

    def test_a_field_that_the_backbone_does_not_give_is_named_with_those_it_does(self, cfg):
        cfg.merge_from_list(RESNET)
        cfg.CACHE.FIELDS = ["proj"]
        with pytest.raises(ValueError, match="names proj, which build_resnet_backbone does not give; it gives map$"):
            self.build(cfg)

    def test_a_map_of_test_images_has_their_size(self, cfg):
        """A convolutional backbone takes any size, and SIZE_TEST may be another."""
        cfg.merge_from_list([*RESNET, "INPUT.SIZE_TEST", "[64,32]", "CACHE.NUM_VIEWS", 1])
        torch.manual_seed(0)
        model = SAGATrainer.build_model(cfg)
        loader = loaders.build_test_loader(cfg, "SyntheticPedestrians")[0]
        batch = next(iter(feature_cache.cached_test_loader(cfg, model, loader)))
        assert batch["map"].shape[1:] == (512, 4, 2)
        assert self.build(cfg, model=model)[0].fields["map"].shape[2:] == (512, 6, 3)

    def test_needs_a_frozen_backbone(self, cfg):
        cfg.MODEL.TRAINABLE = []
        with pytest.raises(ValueError, match="frozen backbone"):
            self.build(cfg)

    def test_size_of_the_published_cache(self):
        """4 views of 210 tokens of 768, projection and class token in fp16: about 1.29 MB an image."""
        shapes = {"patches": (210, 768), "proj": (512,), "cls": (768,)}
        per_image = feature_cache.FeatureCache.nbytes(shapes, torch.float16, 4, 1)
        assert math.isclose(per_image / 1e6, 1.30, abs_tol=0.01)
