"""Image files as people have them: a mode gives one feature on every route or is refused by name; listings say what
they leave out.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from sagareid import Extractor, compat
from sagareid.config import get_cfg
from sagareid.data import images, loaders
from sagareid.data.check_dataset import read_whole
from sagareid.data.datasets.build import DataSets, build_dataset
from sagareid.data.images import UnreadableImage, read_image
from sagareid.data.transforms import build_transforms
from sagareid.deploy.extract_folder import extract_folder
from sagareid.deploy.feature_set import FeatureSet
from sagareid.reports import pictures

from fastreid.data.data_utils import read_image as fastreid_read_image

GREY = np.random.default_rng(1).integers(0, 256, (48, 24), np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (48, 24, 3), np.uint8)
ALPHA = np.random.default_rng(3).integers(0, 256, (48, 24), np.uint8)
IN_PALETTE = Image.fromarray(COLOUR).quantize(200)


def grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def on_white(colours, alpha):
    share = np.asarray(alpha, float)[..., None] / 255
    return np.asarray(colours, float) * share + 255 * (1 - share)


def with_alpha(array):
    return Image.fromarray(np.dstack([array, ALPHA]))


def clear_index(index):
    """The palette image, one colour of it transparent; and what is to be seen."""
    alpha = np.where(np.asarray(IN_PALETTE) == index, 0, 255)
    return on_white(np.asarray(IN_PALETTE.convert("RGB")), alpha)


def sixteen_bits(factor=257, mode="I;16"):
    """The grey image widened to 16 bits by repeating its byte (257) or by zeros (256)."""
    values = (GREY.astype(np.uint16) * factor).astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, GREY.shape[::-1], values.tobytes())


# name: image, suffix, options of saving, the mode that Pillow opens it in, what is to be seen
READABLE = {
    "RGB": (Image.fromarray(COLOUR), ".png", {}, "RGB", COLOUR),
    "RGB with a transparent colour": (
        Image.fromarray(COLOUR),
        ".png",
        {"transparency": tuple(int(v) for v in COLOUR[0, 0])},
        "RGB",
        on_white(COLOUR, np.where((COLOUR[0, 0] == COLOUR).all(2), 0, 255)),
    ),
    "1": (Image.fromarray(GREY > 127), ".png", {}, "1", grey_rgb((GREY > 127) * 255)),
    "L": (Image.fromarray(GREY), ".png", {}, "L", grey_rgb(GREY)),
    "L with a transparent grey": (
        Image.fromarray(GREY), ".png", {"transparency": 7}, "L", on_white(grey_rgb(GREY), np.where(GREY == 7, 0, 255)),
    ),
    "LA": (with_alpha(GREY), ".png", {}, "LA", on_white(grey_rgb(GREY), ALPHA)),
    "P": (IN_PALETTE, ".png", {}, "P", IN_PALETTE.convert("RGB")),
    "P with a transparent colour": (IN_PALETTE, ".png", {"transparency": 5}, "P", clear_index(5)),
    "P, GIF": (IN_PALETTE, ".gif", {}, "P", IN_PALETTE.convert("RGB")),
    "PA": (IN_PALETTE.convert("PA"), ".tif", {}, "PA", IN_PALETTE.convert("RGB")),
    "RGBA": (with_alpha(COLOUR), ".png", {}, "RGBA", on_white(COLOUR, ALPHA)),
    "RGBA, WebP": (with_alpha(COLOUR), ".webp", {"lossless": True, "exact": True}, "RGBA", on_white(COLOUR, ALPHA)),
    "CMYK": (Image.fromarray(COLOUR).convert("CMYK"), ".tif", {}, "CMYK", COLOUR),
    "YCbCr": (Image.fromarray(COLOUR).convert("YCbCr"), ".tif", {}, "YCbCr", COLOUR),
    "LAB": (Image.fromarray(np.full_like(COLOUR, 128)).convert("LAB"), ".tif", {}, "LAB", np.full_like(COLOUR, 128)),
    "I;16, repeated bytes": (sixteen_bits(), ".png", {}, "I;16", grey_rgb(GREY)),
    "I;16, upper bytes": (sixteen_bits(256), ".png", {}, "I;16", grey_rgb(GREY)),
    "I;16 with a transparent grey": (
        sixteen_bits(), ".png", {"transparency": 7 * 257}, "I;16",
        on_white(grey_rgb(GREY), np.where(GREY == 7, 0, 255)),
    ),
    "I;16B": (sixteen_bits(mode="I;16B"), ".tif", {}, "I;16B", grey_rgb(GREY)),
    "I, PGM": (sixteen_bits(), ".pgm", {}, "I", grey_rgb(GREY)),
    "I, TIFF": (Image.fromarray(GREY.astype(np.int32) * 257), ".tif", {}, "I", grey_rgb(GREY)),
}  # fmt: skip
REFUSED = {
    "F": (Image.fromarray(GREY.astype(np.float32)), "mode F, floating grey, has no defined white"),
    "I": (Image.fromarray(GREY.astype(np.int32) * 1000), "mode I with values 0 to 255000; expected grey of 16 bits"),
}
IN_MEMORY = {
    "HSV": (Image.fromarray(COLOUR).convert("HSV"), COLOUR),
    "RGBX": (Image.fromarray(COLOUR).convert("RGBX"), COLOUR),
    "RGBa": (with_alpha(COLOUR).convert("RGBa"), on_white(COLOUR, ALPHA)),
    "La": (with_alpha(GREY).convert("La"), on_white(grey_rgb(GREY), ALPHA)),
    "I;16L": (sixteen_bits(mode="I;16L"), grey_rgb(GREY)),
}


@pytest.fixture(scope="module")
def extractor(tiny_run):
    return Extractor.from_checkpoint(tiny_run, device="cpu")


def seen(expected):
    return np.asarray(expected, float).round()


def dataset(*paths, transform=None):
    return loaders.ReIDDataset([(str(p), 0, 0) for p in paths], transform, relabel=False, cameras=())


# ---- one way to read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_a_mode_gives_one_feature_on_every_route(name, extractor, tmp_path):
    image, suffix, options, mode, expected = READABLE[name]
    path = tmp_path / f"a{suffix}"
    image.save(path, **options)
    with Image.open(path) as opened:
        assert opened.mode == mode
        features = extractor([opened])
    read = read_image(path)
    tolerance = {"YCbCr": 3, "LAB": 2}.get(name, 1)  # what rounding costs; half an alpha step else
    assert read.mode == "RGB" and np.abs(np.asarray(read, float) - seen(expected)).max() <= tolerance
    trained = dataset(path)[0]["images"]
    assert np.array_equal(trained, read) and np.array_equal(pictures.open_small(path), read)
    assert torch.equal(features, extractor([path])) and torch.equal(features, extractor([np.asarray(read)]))
    cfg = extractor._module.cfg
    with compat.quiet_host():
        tested = dataset(path, transform=build_transforms(cfg, is_train=False))[0]["images"]
        assert torch.equal(tested, extractor._prepare(path, 0))
    assert read_whole(str(path)).problem is None


@pytest.mark.parametrize("name", IN_MEMORY)
def test_modes_that_only_memory_holds(name, extractor):
    image, expected = IN_MEMORY[name]
    assert image.mode == name
    rgb = images.as_rgb(image)
    assert np.abs(np.asarray(rgb, float) - seen(expected)).max() <= 6  # of HSV, whose hue has 256 steps
    assert torch.equal(extractor([image]), extractor([rgb]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_white_is_refused_by_name_before_training(name, extractor, tmp_path, monkeypatch):
    image, message = REFUSED[name]
    for person in "ab":
        (tmp_path / "shop" / person).mkdir(parents=True)
        Image.fromarray(COLOUR).save(tmp_path / "shop" / person / "sound.png")
    path = tmp_path / "shop" / "b" / "odd.tif"
    image.save(path)
    for read in (read_image, pictures.open_small, lambda p: dataset(p)[0], lambda p: extractor([p])):
        with pytest.raises(UnreadableImage, match=f"cannot read {path} .*{message}"):
            read(path)
    with pytest.raises(UnreadableImage, match=f"cannot read image 1, made in memory .*{message}"):
        extractor([Image.fromarray(COLOUR), image])
    problem = read_whole(str(path)).problem
    assert problem.kind == "unreadable" and message in problem.found
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = get_cfg()
    for load, share in ((DataSets().training, 1), (DataSets().test, 0)):
        cfg.DATASETS.CUSTOM = [{"NAME": "shop", "TYPE": "FolderDataset", "PATH": "shop", "TRAIN_SHARE": share}]
        with pytest.raises(
            UnreadableImage, match=rf"shop: 1 image\(s\) cannot be read as RGB, such as {path} .*{message}"
        ):
            load(cfg, "shop")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_turned_on_every_route(orientation, suffix, extractor, tmp_path):
    path = tmp_path / f"a{suffix}"
    photo = Image.fromarray(COLOUR)
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    read = read_image(path)
    assert read.size == ((48, 24) if orientation in (6, 8) else (24, 48))
    if suffix != ".jpg":
        turned = np.rot90(COLOUR, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
        assert np.array_equal(read, turned)
    assert np.array_equal(images.as_rgb(read), read)  # once, however often it is asked
    with Image.open(path) as opened:
        assert torch.equal(extractor([opened]), extractor([path]))
        assert torch.equal(extractor([opened.convert("RGB")]), extractor([path]))
    assert np.array_equal(dataset(path)[0]["images"], read) and np.array_equal(pictures.open_small(path), read)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_what_fastreid_reads_to_the_bit(orientation, tmp_path):
    for quality in (60, 95):
        photo = Image.fromarray(COLOUR)
        exif = photo.getexif()
        exif[0x0112] = orientation
        photo.save(tmp_path / "a.jpg", quality=quality, exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.jpg"), fastreid_read_image(str(tmp_path / "a.jpg")))


def test_damaged_exif_data_in_a_sound_image(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=b"Exif\0\0no tags at all")
    assert np.array_equal(read_image(tmp_path / "a.png"), COLOUR)


def test_a_picture_that_is_too_large_is_named(extractor, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.fromarray(COLOUR).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_image, pictures.open_small, lambda p: dataset(p)[0], lambda p: extractor([p])):
        with pytest.raises(UnreadableImage, match=f"cannot read {path} .*DecompressionBombError"):
            read(path)
    assert "DecompressionBombError" in read_whole(str(path)).problem.found


def test_what_pillow_raises_of_any_kind_names_the_file(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for error in (KeyError("k"), IndexError("i"), EOFError(), ZeroDivisionError()):

        def raise_it(self, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "load", raise_it)
        with pytest.raises(UnreadableImage, match=f"cannot read {tmp_path}/a.png .*{type(error).__name__}"):
            read_image(tmp_path / "a.png")


# ---- one way to list -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images as people have them: of many suffixes, hidden, linked, and things that are none."""
    root = tmp_path / "crops"
    (root / "ann" / "deep").mkdir(parents=True)
    for name in ("1.jpg", "2.JPG", "3.webp", "4.jfif", "5.tif", "deep/6.png"):
        Image.fromarray(COLOUR).save(root / "ann" / name)
    for name in ("ann/7.heic", "ann/8", "ann/._1.jpg", "ann/.hidden.png", "ann/Thumbs.db", "notes.txt"):
        (root / name).touch()
    (root / ".trash").mkdir()
    shutil.copy(root / "ann/1.jpg", root / ".trash")
    (root / "ann" / "link.png").symlink_to(root / "ann" / "deep" / "6.png")
    (root / "ann" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "ann" / "itself.png").symlink_to(root / "ann" / "itself.png")
    (root / "ann" / "round").symlink_to(root)
    os.mkfifo(root / "ann" / "pipe.png")
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(COLOUR).save(tmp_path / "elsewhere" / "9.jpg")
    (root / "ben").symlink_to(tmp_path / "elsewhere")
    return root


def test_a_listing_follows_links_and_says_what_it_leaves_out(folder, caplog):
    listing = images.image_files(folder)
    assert [p.relative_to(folder).as_posix() for p in listing.images] == [
        "ann/1.jpg", "ann/2.JPG", "ann/3.webp", "ann/4.jfif", "ann/5.tif", "ann/link.png", "ann/deep/6.png",
        "ben/9.jpg",
    ]  # fmt: skip
    assert listing.left_out == {
        images.HIDDEN: [".trash", "ann/._1.jpg", "ann/.hidden.png"],
        images.OTHER_SUFFIX: ["ann/7.heic", "notes.txt"],
        images.NO_SUFFIX: ["ann/8"],
        images.DANGLING: ["ann/gone.png", "ann/itself.png"],
        images.NO_FILE: ["ann/pipe.png"],
        images.LOOP: ["ann/round"],
    }
    with caplog.at_level(logging.WARNING):
        images.say_left_out("shop", listing)
        images.say_left_out("shop", listing)
    [record] = caplog.records  # once
    assert "3 hidden (.trash, ann/._1.jpg, ann/.hidden.png)" in record.message and "ann/7.heic" in record.message


def test_a_listing_takes_the_memory_of_its_names(tmp_path):
    """A folder of a million images is listed, too: no path and no directory entry is kept for an image."""
    for i in range(3000):
        (tmp_path / f"{i:06d}_c1.png").touch()
    gc.collect()
    tracemalloc.start()
    try:
        listing = images.image_files(tmp_path)
        kept, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing.names) == 3000
    assert kept / 3000 < 120 and highest / 3000 < 150, "bytes for an image"


def test_a_closed_folder_is_said(folder, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert images.image_files(folder).left_out[images.CLOSED] == ["ann/deep"]


def test_every_route_lists_the_same(folder, extractor, tmp_path, monkeypatch, run_tool):
    """A data set, the checker and an extraction; and each says the rest."""
    names = sorted(p.relative_to(folder).as_posix() for p in images.image_files(folder).images)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [{"NAME": "shop", "TYPE": "FolderDataset", "PATH": "crops", "TRAIN_SHARE": 1}]
    found = [os.path.relpath(path, folder) for path, *_ in build_dataset(cfg, "shop").train]
    assert sorted(found) == names
    report = extract_folder(extractor, folder, tmp_path / "f.npz", checkpoint_sha256="abc")
    assert FeatureSet(tmp_path / "f.npz").whole()[0] == names and not report.unreadable
    assert report.left_out["with another suffix"] == {"count": 2, "first": ["ann/7.heic", "notes.txt"]}
    custom = str(cfg.DATASETS.CUSTOM)
    _, out, _ = run_tool("check_dataset.py", "shop", "DATASETS.CUSTOM", custom, root=tmp_path)
    assert "| train   | 8        | 2        |" in out and "3 hidden (.trash, ann/._1.jpg" in out


# ---- names that are no text ----------------------------------------------------------------------------------------

ODD = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def odd_names(tmp_path):
    root = tmp_path / "crops"
    for person in ("ann", "ben", os.fsdecode(b"ren\xe9")):
        (root / person).mkdir(parents=True)
        for name in (ODD, "sound.png", "line\nbreak.png", "emoji 😀 $x$ <b>.png"):
            Image.fromarray(COLOUR).save(root / person / name)
    return root


def test_names_of_any_bytes_can_be_read_and_trained_on(odd_names, extractor, tmp_path, run_tool):
    assert torch.equal(extractor([odd_names / "ann" / ODD]), extractor([odd_names / "ann" / "sound.png"]))
    (odd_names / "ann" / ODD).write_bytes(b"torn")
    with pytest.raises(UnreadableImage, match=r"caf\\udce9.png") as error:
        extractor([odd_names / "ann" / ODD])
    str(error.value).encode()  # a log can hold it
    custom = "[{'NAME': 'shop', 'TYPE': 'FolderDataset', 'PATH': 'crops'}]"
    code, out, err = run_tool(
        "check_dataset.py", "shop", "--sheets", tmp_path / "s", "DATASETS.CUSTOM", custom, root=tmp_path
    )
    assert code == 1, err
    assert r"ann/caf\udce9.png" in out and "Traceback" not in err
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["gallery.png", "query.png", "train.png"]


@pytest.mark.slow
def test_names_of_any_bytes_are_trained_on_from_the_cache(odd_names, tmp_path, train_net, repo):
    """The key of the cache holds the names."""
    entry = "{NAME: a, TYPE: FolderDataset, PATH: crops, TRAIN_SHARE: 1}"
    run = [
        "--config-file", repo / "configs/SAGA/quickstart.yml", "--stage", "prompts", "OUTPUT_DIR", tmp_path / "out",
        "DATASETS.CUSTOM", f"[{entry}, {entry.replace('NAME: a', 'NAME: b').replace('1}', '0}')}]",
        "DATASETS.NAMES", "[a]", "DATASETS.TESTS", "[b]", "DATASETS.VALIDATION", "[]", "SOLVER.MAX_EPOCH", 1,
        "SOLVER.IMS_PER_BATCH", 8,
        "DATALOADER.NUM_WORKERS", 0, "CACHE.ENABLED", True, "CACHE.NUM_VIEWS", 1, "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    assert train_net(*run, root=tmp_path) == 0


def test_one_bad_file_costs_its_own_feature_alone(odd_names, extractor, tmp_path):
    (odd_names / "ben" / "torn.jpg").write_bytes(b"torn")
    (odd_names / "ben" / "empty.webp").touch()
    report = extract_folder(extractor, odd_names, tmp_path / "f", checkpoint_sha256="abc", shard_size=3, batch_size=2)
    assert report.extracted == 4 and report.images == 14
    unreadable = {entry["path"]: entry["error"] for entry in report.unreadable}
    assert "rename it" in unreadable[r"ann/caf\udce9.png"] and r"ren\udce9/sound.png" in unreadable
    assert r"ann/line\nbreak.png" in unreadable and "no image format" in unreadable["ben/torn.jpg"]
    assert len(json.loads((tmp_path / "f" / "report.json").read_text())["unreadable"]) == 10
    paths, features = FeatureSet(tmp_path / "f").whole()
    assert "ben/emoji 😀 $x$ <b>.png" in paths and features.shape == (4, extractor.width)


def test_a_file_that_goes_away_during_an_extraction_is_listed(odd_names, extractor, tmp_path, monkeypatch):
    listed = images.image_files

    def and_remove(*args, **options):
        listing = listed(*args, **options)
        (odd_names / "ben" / "sound.png").unlink()
        return listing

    monkeypatch.setattr("sagareid.deploy.extract_folder.image_files", and_remove)
    report = extract_folder(extractor, odd_names, tmp_path / "f.npz", checkpoint_sha256="abc")
    assert "ben/sound.png" in [entry["path"] for entry in report.unreadable] and report.extracted == 3
