"""Extractor: the evaluator's features from a checkpoint alone, of any kind of image, and readable errors."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import sagareid
from sagareid import Extractor, compat
from sagareid.data import loaders
from sagareid.data.images import UnreadableImage
from sagareid.deploy.load import load_model
from sagareid.evaluation.features import Parts, build_feature, result_feature
from sagareid.evaluation.postprocess import l2
from sagareid.modeling.clip import towers

SIZE = (48, 24)


@pytest.fixture
def photos(tiny_root):
    return sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[:6]


@pytest.fixture
def extractor(tiny_run):
    return Extractor.from_checkpoint(tiny_run, device="cpu")


def changed(run, *opts):
    """An extractor of the run under other options of the evaluation."""
    cfg, model = load_model(run, device="cpu")
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    return Extractor(cfg, model)


def evaluator_features(run, root, monkeypatch, *opts):
    """What the evaluator ranks by, and the paths, through the test loader of the run."""
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    cfg, model = load_model(run, device="cpu")
    cfg.defrost()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, *opts])
    loader, _ = loaders.build_test_loader(cfg, "SyntheticPedestrians")
    raw, paths = [], []
    with torch.no_grad(), compat.quiet_host():
        for batch in loader:
            out = model(batch)
            if cfg.TEST.FLIP.ENABLED:
                out = (out + model({**batch, "images": batch["images"].flip(3)})) / 2
            raw.append(out), paths.extend(batch["img_paths"])
    raw = torch.cat(raw)
    layout = model.feature_layout
    return l2(build_feature(cfg, result_feature(cfg, layout)).make(Parts(raw, layout))), paths


@pytest.mark.parametrize(
    "opts", [(), ("TEST.FEATURE", "orth"), ("TEST.FLIP.ENABLED", True)], ids=["fusion", "orth", "flip"]
)
def test_features_are_the_evaluators(opts, tiny_run, tiny_root, monkeypatch):
    expected, paths = evaluator_features(tiny_run, tiny_root, monkeypatch, *opts)
    found = changed(tiny_run, *opts)(paths, batch_size=7)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_flip_changes_the_features(tiny_run, extractor, photos):
    assert (changed(tiny_run, "TEST.FLIP.ENABLED", True)(photos) - extractor(photos)).abs().max() > 1e-4


def test_feature_by_name(tiny_run, extractor, photos):
    cls = Extractor.from_checkpoint(tiny_run, device="cpu", feature="cls")
    assert (extractor.feature, cls.feature) == ("fusion", "cls") and cls(photos).shape == (6, cls.width)
    with pytest.raises(ValueError, match="TEST.FEATURE names the feature 'nose'"):
        Extractor.from_checkpoint(tiny_run, device="cpu", feature="nose")


def test_every_kind_of_image_gives_the_same(extractor, photos):
    pictures = [Image.open(p).convert("RGB") for p in photos]
    arrays = [np.asarray(p) for p in pictures]
    expected = extractor(photos)
    stacked = torch.stack([torch.tensor(a).permute(2, 0, 1) for a in arrays])
    mixed = [str(photos[0]), pictures[1], arrays[2], *stacked[3:]]
    for images in (pictures, arrays, stacked, mixed):
        assert torch.equal(extractor(images), expected)
    with compat.quiet_host():
        prepared = torch.stack([extractor._prepare(p, 0) for p in photos])
    assert torch.equal(extractor(prepared), expected)  # floating, of the model's size


def test_mixed_sizes_and_modes(extractor, photos):
    picture = Image.open(photos[0]).convert("RGB")
    large = picture.resize((300, 500))
    rows = extractor(
        [picture, large, large.convert("L"), large.convert("RGBA"), torch.tensor(np.asarray(large)).permute(2, 0, 1)]
    )
    assert torch.equal(rows[1], rows[3]) and torch.equal(rows[1], rows[4]) and not torch.equal(rows[1], rows[2])
    as_float = extractor([torch.tensor(np.asarray(large)).permute(2, 0, 1).float()])
    assert float(as_float[0] @ rows[1]) > 0.999  # torch's resize rounds otherwise than Pillow's


def test_attention_by_anchor(extractor, photos):
    features, maps = extractor(photos, attention=True, batch_size=4)
    assert torch.equal(features, extractor(photos, batch_size=4))
    assert maps.shape == (6, len(extractor.anchor_names), 6, 3) and maps.dtype == torch.float32
    assert maps.min() >= 0 and maps.sum(1).max() <= 1 + 1e-5
    assert extractor.anchor_names[0] == towers.anchor_phrases()[0]


def test_nothing_in_nothing_out(extractor):
    assert extractor([]).shape == (0, extractor.width)
    features, maps = extractor([], attention=True)
    assert len(features) == 0 and maps.shape == (0, len(extractor.anchor_names), 6, 3)


def test_a_run_folder_is_enough(tiny_run, tmp_path, photos, extractor, monkeypatch):
    """Neither CLIP weights nor the text tower nor any data: the folder is moved, and reading weights fails."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(tiny_run / "model_final.pth", folder)

    def refuse(*args, **kwargs):
        raise AssertionError("weights of CLIP were asked for")

    for name in ("read_clip_weights", "_weights_file", "build_text_encoder"):
        monkeypatch.setattr(towers, name, refuse)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "no data"))
    moved = Extractor.from_checkpoint(folder, device="cpu")
    assert torch.equal(moved(photos), extractor(photos))
    assert not any("text_encoder" in n for n, _ in moved._module.named_modules())


def test_threads_share_an_extractor(sie_extractor, photos):
    """With a camera embedding: the shift of the class token is each thread's own."""
    cameras = [[name] * len(photos) for name in sie_extractor.cameras]
    expected = [sie_extractor(photos, cameras=c) for c in cameras]
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)
    found = [[] for _ in cameras]

    def work(i):
        found[i].extend(sie_extractor(photos, cameras=cameras[i]) for _ in range(8))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    for i in range(2):
        assert len(found[i]) == 8 and all(torch.equal(f, expected[i]) for f in found[i])


@pytest.fixture
def sie_extractor(tiny_run):
    from sagareid.engine.trainer import SAGATrainer

    cfg, _ = load_model(tiny_run, device="cpu")
    cfg.defrost()
    cfg.merge_from_list(
        ["MODEL.CLIP.SIE_CAMERA", True, "MODEL.CLIP.CAMERAS", ["yard_1", "yard_2"], "MODEL.BACKBONE.SIE_COE", 20.0]
    )
    torch.manual_seed(0)
    return Extractor(cfg, SAGATrainer.build_model(cfg).eval())


def test_cameras_by_name(sie_extractor, extractor, photos):
    assert sie_extractor.cameras == ["yard_1", "yard_2"] and extractor.cameras == []
    unknown = sie_extractor(photos)
    assert torch.equal(sie_extractor(photos, cameras=[None, "attic_7"] * 3), unknown)
    mixed = sie_extractor(photos, cameras=["yard_1", None] * 3)
    assert torch.allclose(mixed[1], unknown[1], atol=1e-5) and not torch.allclose(mixed[0], unknown[0], atol=1e-5)
    with pytest.raises(ValueError, match="1 cameras for 6 images"):
        sie_extractor(photos, cameras=["yard_1"])


def test_bfloat16_turns_a_feature_little(tiny_run, extractor, photos):
    half = Extractor.from_checkpoint(tiny_run, device="cpu", dtype="bfloat16")
    turned = 1 - (half(photos) * extractor(photos)).sum(1)
    assert extractor.dtype == "float32" and 0 < turned.abs().max() < 1e-3
    for dtype, message in (("float16", "needs a GPU"), ("int4", "expected auto, float32")):
        with pytest.raises(ValueError, match=message):
            Extractor.from_checkpoint(tiny_run, device="cpu", dtype=dtype)


RED = Image.new("RGB", (24, 48), (200, 30, 30))


@pytest.mark.parametrize(
    "images, error, message",
    [
        ("a.jpg", TypeError, "one image where a list"),
        (RED, TypeError, "one image where a list"),
        (np.zeros((48, 24, 3), np.uint8), TypeError, "one image where a list"),
        ({"a": 1}, TypeError, "images are a dict"),
        ([3], TypeError, "image 0 is a int"),
        ([RED, np.zeros((48, 24), np.uint8)], ValueError, r"image 1 is an array \(48, 24\)"),
        ([np.zeros((48, 24, 3), np.float32)], ValueError, "of float32; expected"),
        ([torch.zeros(4, 8, 8)], ValueError, r"tensor \(4, 8, 8\)"),
        ([torch.ones(3, 8, 8, dtype=torch.int64)], ValueError, "tensor of torch.int64"),
        ([torch.rand(3, 8, 8)], ValueError, "multiply by 255"),
        ([torch.randn(3, 8, 8)], ValueError, "undo the normalisation"),
        ([torch.full((3, 8, 8), float("nan"))], ValueError, "has values nan"),
        (torch.zeros(2, 8), ValueError, r"a batch of shape \(2, 8\)"),
    ],
)
def test_what_is_no_image_is_named(images, error, message, extractor):
    with pytest.raises(error, match=message):
        extractor(images)


def test_files_that_cannot_be_read_are_named(extractor, photos, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(photos[0].read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("torn.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(UnreadableImage, match=f"cannot read .*{name}"):
            extractor([photos[0], tmp_path / name])
    [batch] = extractor.iterate([tmp_path / "text.jpg", photos[0], tmp_path / "missing.jpg"])
    assert batch.indices == [1] and sorted(batch.unreadable) == [0, 2]
    torch.testing.assert_close(batch.features, extractor([photos[0]]))


def test_worker_processes_give_the_same(extractor, photos):
    state = torch.get_rng_state()
    assert torch.equal(extractor(photos, num_workers=2, batch_size=2), extractor(photos, batch_size=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_of_opening(tiny_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        Extractor.from_checkpoint(tmp_path / "nowhere")
    (tmp_path / "anchors").mkdir()
    shutil.copy(tiny_run / "model_final.pth", tmp_path / "anchors")
    with pytest.raises(FileNotFoundError, match="several stages, name one: anchors"):
        Extractor.from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used"):
        Extractor.from_checkpoint(tiny_run, device="cuda:7")
    (tmp_path / "x.pth").write_text("nothing")
    with pytest.raises(ValueError, match="x.pth is damaged or no weights file"):
        Extractor.from_checkpoint(tmp_path / "x.pth")


def test_a_head_of_fastreid_extracts_too(train_net, tiny_root, tmp_path, photos, repo):
    keys = """
        STAGES []  MODEL.HEADS.NAME EmbeddingHead  MODEL.HEADS.POOL_LAYER GlobalAvgPool  MODEL.BACKBONE.OUTPUT map
        MODEL.META_ARCHITECTURE Baseline  MODEL.BACKBONE.PRETRAIN False  SOLVER.MAX_EPOCH 1  SOLVER.IMS_PER_BATCH 48
        DATALOADER.NUM_WORKERS 0  MODEL.LOSSES.NAME ('CrossEntropyLoss','TripletLoss')
    """.split()
    run = [
        "--config-file",
        repo / "configs/SAGA/quickstart.yml",
        "OUTPUT_DIR",
        tmp_path,
        "INPUT.SIZE_TRAIN",
        list(SIZE),
        "INPUT.SIZE_TEST",
        list(SIZE),
        *keys,
    ]
    assert train_net(*run) == 0
    host = Extractor.from_checkpoint(tmp_path, device="cpu")
    assert host.feature == "feature" and host(photos).shape == (6, 128) and host.anchor_names == []
    with pytest.raises(ValueError, match="no anchors' attention"):
        host(photos, attention=True)


@pytest.mark.slow
def test_importing_the_package_does_not_import_it(repo):
    code = "import sys, sagareid; assert 'sagareid.deploy.extractor' not in sys.modules; from sagareid import Extractor"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = sagareid.Nobody


def test_the_example_finds_a_person(tiny_run, tiny_root, photos, repo, tmp_path, monkeypatch, capsys):
    """examples/find_person.py: the query itself is left out, similarities fall; what it leaves out is said."""
    script = repo / "examples/find_person.py"
    gallery = tmp_path / "crops"
    shutil.copytree(tiny_root / "synthetic_pedestrians/query", gallery)
    (gallery / "torn.png").write_bytes(b"torn")
    (gallery / "notes.txt").touch()
    photos = [gallery / photo.name for photo in photos]
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_run), str(gallery), str(photos[2])])
    runpy.run_path(str(script))
    out, err = capsys.readouterr()
    assert "1 with another suffix (notes.txt)" in err and f"cannot read {gallery / 'torn.png'}" in err
    lines = [line.split() for line in out.splitlines()]
    assert len(lines) == 5 and str(photos[2]) not in out
    assert [float(s) for s, _ in lines] == sorted((float(s) for s, _ in lines), reverse=True)
    sound = len(list(gallery.glob("*.jpg")))
    assert err.splitlines()[-1] == f"{sound} of {sound + 1} images were searched"
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_run), str(gallery), str(gallery / "torn.png")])
    with pytest.raises(SystemExit, match="error: cannot read .*torn.png"):
        runpy.run_path(str(script))
