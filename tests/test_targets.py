"""Export targets: each file, fed as its consumer feeds, gives the extractor's features."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
import yaml
from test_export import built, plugin_config

from sagareid.cli import import_modules
from sagareid.deploy import export, targets
from sagareid.deploy.feature_model import FeatureModel
from sagareid.deploy.targets import Pixels, base

HEIGHT, WIDTH = 48, 16
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# What each consumer computes of an RGB crop in 0..255, written from its documentation, not from our classes.
FEEDS = {
    "boxmot": lambda crops: (crops / 255 - IMAGENET[0]) / IMAGENET[1],
    "ultralytics": lambda crops: crops / 255,
    "roboflow": lambda crops: (crops / 255 - 0.0) / (1 / 255),
    "openvino": lambda crops: crops,
    "opencv": lambda crops: crops,
    "deepstream": lambda crops: crops,
    "tensorrt": lambda crops: crops,
}
# Operators that TensorRT's ONNX parser documents, of those that a transformer may need.
TENSORRT_OPERATORS = """
Add Cast Clip Concat Constant ConstantOfShape Conv Cos Div Einsum Equal Erf Exp Expand Flatten Gather GatherND Gemm
Greater GreaterOrEqual Identity LayerNormalization Less MatMul Max Min Mul Neg Not Pad Pow Range ReduceL2 ReduceMax
ReduceMean ReduceMin ReduceSum Relu Reshape Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose
Unsqueeze Where
""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(cfg, model) of SAGAHead on two blocks of width 32."""
    dims = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    file = tmp_path_factory.mktemp("clip") / "ViT-targets.json"
    file.write_text(json.dumps(dims))
    open_clip.add_model_config(file)
    return built(plugin_config(file.stem))


@pytest.fixture(scope="module")
def camera_model(model):
    """(cfg, model) that look at the camera twice: in the class token and in the domain anchors."""
    name = model[0].MODEL.CLIP.NAME
    return built(plugin_config(
        name, "MODEL.CLIP.SIE_CAMERA", True, "MODEL.CLIP.CAMERAS", ["a_1", "b_1"], "MODEL.BACKBONE.SIE_COE", 9.0,
        "MODEL.SAGA.DOMAIN_ANCHORS", "camera",
    ))  # fmt: skip


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """(5, 3, H, W) RGB in 0..255."""
    return np.random.default_rng(0).integers(0, 256, (5, 3, HEIGHT, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Export for a target, once."""
    done = {}

    def of_target(name: str) -> export.Exported:
        if name not in done:
            suffix = next(iter(targets.get_target(name).formats))
            done[name] = export.export(*model, tmp_path_factory.mktemp(name) / f"person{suffix}", target=name)
        return done[name]

    return of_target


def features(model, crops, cameras=None) -> torch.Tensor:
    with torch.no_grad():
        return FeatureModel(*model)(torch.tensor(crops), cameras)


def run_file(path, fed: np.ndarray) -> torch.Tensor:
    """The file in a runtime of its format, without our loader."""
    fed = np.ascontiguousarray(fed, np.float32)
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.tensor(session.run(None, {session.get_inputs()[0].name: fed})[0])
    with torch.no_grad():
        return torch.jit.load(path)(torch.tensor(fed))


def test_every_target_is_tested_here():
    assert set(targets.target_names()) == {*FEEDS, "generic"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEEDS)
def test_fed_as_its_consumer_feeds_it_gives_the_extractors_features(name, model, exported, crops):
    target, done = targets.get_target(name), exported(name)
    expected = features(model, crops)
    fed = FEEDS[name](crops.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    torch.testing.assert_close(run_file(done.path, fed), expected, rtol=0, atol=1e-5)
    run, metadata = export.load_exported(done.path)  # turns RGB in 0..255 into what the file is fed
    torch.testing.assert_close(run(torch.tensor(crops))[0], expected, rtol=0, atol=1e-5)
    assert metadata["target"] == name and metadata["pixels"] == target.pixels.as_dict()
    assert str(done.path) in done.usage or (done.side_files and str(done.side_files[0]) in done.usage)
    assert {p.name for p in done.path.parent.iterdir()} == {done.path.name, *(p.name for p in done.side_files)}


@pytest.mark.slow
def test_a_file_that_takes_raw_pixels_is_wrong_in_boxmot(model, exported, crops):
    """The fault that targets are there for shows in the test above where it is made."""
    wrong = run_file(exported("opencv").path, FEEDS["boxmot"](crops.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    assert float((wrong * features(model, crops)).sum(1).min()) < 0.9 and float((wrong @ wrong.T).min()) > 0.99


def test_pixels_feed_and_undo_are_inverse():
    images = torch.rand(2, 3, 4, 4) * 255
    pixels = Pixels("BGR", 1 / 128, (1.0, 0.9, 0.8), (0.5, 0.6, 0.7))
    blue = (images[:, 2] / 128 - 1.0) / 0.5
    torch.testing.assert_close(pixels.feed(images)[:, 0], blue)
    torch.testing.assert_close(pixels.undo(pixels.feed(images)), images, rtol=0, atol=1e-3)
    assert Pixels.read(json.loads(json.dumps(pixels.as_dict()))) == pixels
    for wrong in ({"channels": "RGBA"}, {"std": (0.0, 1, 1)}, {"colour": 1}):
        with pytest.raises(ValueError):
            Pixels.read(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["two_path", "clip", "camera"])
def test_opencv_runs_every_variant_of_the_graph(option, model, camera_model, crops, tmp_path):
    """Two paths, anchors grounded in CLIP's embedding, and camera embeddings with the camera fixed."""
    name = model[0].MODEL.CLIP.NAME
    if option == "two_path":
        model = built(plugin_config(name, "MODEL.CLIP.TOKEN_LAYERS", [1, 2]))
    elif option == "clip":
        # few anchors: projections are multiplied into those of each image, as at CLIP's real widths
        model = built(plugin_config(name, "MODEL.SAGA.DOMAIN_ANCHORS", "clip", "MODEL.SAGA.NUM_ANCHORS", 4))
    else:
        model = camera_model
    camera = "b_1" if option == "camera" else None
    done = export.export(*model, tmp_path / "person.onnx", target="opencv", camera=camera)
    assert set(done.difference) == set(export.CHECKED_BATCHES)  # in OpenCV itself
    net = cv2.dnn.readNetFromONNX(str(done.path))
    pictures = [np.ascontiguousarray(crop.transpose(1, 2, 0)[..., ::-1].astype(np.uint8)) for crop in crops]
    net.setInput(cv2.dnn.blobFromImages(pictures, size=(WIDTH, HEIGHT), swapRB=True))
    cameras = torch.ones(len(crops), dtype=torch.long) if camera else None
    torch.testing.assert_close(torch.tensor(net.forward()), features(model, crops, cameras), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_fixed_camera_is_a_constant(camera_model, crops, tmp_path):
    for camera, place in (("b_1", 1), (None, -1)):
        path = tmp_path / f"{camera}.torchscript"
        export.export(*camera_model, path, target="boxmot" if camera is None else "generic", camera=camera)
        run, metadata = export.load_exported(path)
        expected = features(camera_model, crops, torch.full((len(crops),), place))
        torch.testing.assert_close(run(torch.tensor(crops))[0], expected, rtol=0, atol=1e-5)
        assert metadata["cameras"] == [] and metadata["camera"] == camera
    assert not torch.allclose(expected, features(camera_model, crops, torch.ones(len(crops)).long()), atol=1e-3)


@pytest.mark.slow
def test_a_fixed_batch(model, crops, tmp_path):
    export.export(*model, tmp_path / "person.onnx", target="deepstream", batch=5)
    run, metadata = export.load_exported(tmp_path / "person.onnx")
    torch.testing.assert_close(run(torch.tensor(crops))[0], features(model, crops), rtol=0, atol=1e-5)
    assert metadata["batch"] == 5 and "batchSize: 5" in (tmp_path / "person.reid.yml").read_text()
    with pytest.raises(ValueError, match=r"images are \(4, 3, 48, 16\); .* takes \(5, 3, 48, 16\)"):
        run(torch.tensor(crops[:4]))


@pytest.mark.slow
def test_deepstreams_configuration_by_its_own_arithmetic(model, exported, crops):
    """A replica of what its documentation says: y = netScaleFactor * (x - offset) by channel, RGB."""
    done = exported("deepstream")
    reid = yaml.safe_load(done.side_files[0].read_text())["ReID"]
    assert (reid["reidType"], reid["inputOrder"], reid["colorFormat"], reid["keepAspc"]) == (2, 0, 0, 0)
    assert reid["onnxFile"] == str(done.path.resolve()) and reid["inferDims"] == [3, HEIGHT, WIDTH]
    fed = reid["netScaleFactor"] * (crops - np.array(reid["offsets"], np.float32).reshape(3, 1, 1))
    out = run_file(done.path, fed)
    torch.testing.assert_close(out, features(model, crops), rtol=0, atol=1e-5)
    assert out.shape[1] == reid["reidFeatureSize"] and reid["batchSize"] >= len(crops)


@pytest.mark.slow
def test_tensorrt_finds_documented_operators_alone(exported):
    done = exported("tensorrt")
    proto = onnx.load(done.path)
    assert {node.op_type for node in proto.graph.node} <= set(TENSORRT_OPERATORS) and proto.opset_import[
        0
    ].version <= 18
    [script] = done.side_files
    assert f"--onnx={done.path}" in script.read_text()
    assert f"--maxShapes=images:64x3x{HEIGHT}x{WIDTH}" in script.read_text()


@pytest.mark.slow
def test_side_files(model, exported, tmp_path):
    done = export.export(*model, tmp_path / "a.torchscript", target="boxmot")
    about = json.loads((tmp_path / "a.torchscript.metadata.json").read_text())
    assert about["model_kwargs"] == {"img_size": [HEIGHT, WIDTH]} and about["model_kwargs_schema_version"] == 1
    assert done.format == "torchscript"
    done = exported("ultralytics")
    settings = yaml.safe_load(done.path.with_suffix(".botsort.yaml").read_text())
    assert settings["with_reid"] is True and settings["model"] == str(done.path.resolve())
    entries = {p.key: p.value for p in onnx.load(done.path).metadata_props}
    assert {"stride", "task", "batch", "imgsz", "names", "sagareid"} == set(entries) and int(entries["stride"]) > 0
    config = json.loads((exported("roboflow").path.parent / "reid_config.json").read_text())["preprocessing"]
    assert config["input_size"] == [HEIGHT, WIDTH] and config["interpolation"] == model[0].INPUT.INTERPOLATION_TEST
    assert targets.get_target("roboflow").file(tmp_path / "folder")[0] == tmp_path / "folder" / "model.torchscript"


@pytest.mark.parametrize(
    "name, file, options, message",
    [
        ("tracker9", "a.onnx", {}, "no target 'tracker9'; there are boxmot, deepstream"),
        ("boxmot", "a.pt", {}, "boxmot takes .onnx, .torchscript, not .pt .it reads .pt as a checkpoint"),
        ("boxmot", "clip.onnx", {}, "'clip' in its name"),
        ("ultralytics", "a.torchscript", {}, "not .torchscript .it resizes crops"),
        ("opencv", "a", {}, "the suffix says which"),
        ("opencv", "a.onnx", {"variant": "int8"}, "opencv takes float32, not int8"),
        ("openvino", "a.onnx", {"attention": True}, "reads one output"),
        ("boxmot", "a.onnx", {"camera": "z"}, "no camera 'z': it does not look at cameras"),
        ("boxmot", "a.onnx", {"format": "torchscript"}, "reads a .onnx file as onnx"),
        ("generic", "a.onnx", {"batch": 0}, "a batch of 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(name, file, options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.export(*model, tmp_path / file, target=name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_that_the_consumer_runs_wrongly_is_not_kept(model, tmp_path, monkeypatch):
    target = type(targets.get_target("roboflow"))
    monkeypatch.setattr(target, "open", lambda *a: lambda images: [torch.ones(len(images), 1)])
    with pytest.raises(RuntimeError, match="no file was kept"):
        export.export(*model, tmp_path / "a.torchscript", target="roboflow")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_of_somebody_else_is_refused(exported, tmp_path):
    proto = onnx.load(exported("openvino").path)
    [size] = [p for p in proto.metadata_props if p.key == "input_size"]
    size.value = "[256, 128]"
    onnx.save(proto, tmp_path / "edited.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    for file, error, message in (
        ("edited.onnx", ValueError, r"says that it takes images \[None, 3, 256, 128\], and its graph takes"),
        ("bare.onnx", ValueError, "does not say what it is fed"),
        ("text.onnx", ValueError, "cannot be read as onnx"),
        ("none.onnx", FileNotFoundError, "no exported model at"),
    ):
        with pytest.raises(error, match=message):
            export.load_exported(tmp_path / file)


MINE = """
from sagareid.deploy.targets import Pixels, Target, register_target

@register_target
class MyTracker(Target):
    pixels = Pixels("BGR", 1 / 255)

    def usage(self, path, metadata):
        return f"mytracker --reid {path}"
"""


@pytest.mark.slow
def test_your_own_target_is_one_class(model, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_TARGETS", dict(base._TARGETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_tracker.py").write_text(MINE)
    import_modules(["my_tracker"])
    monkeypatch.setattr(targets.get_target("mytracker").__class__, "formats", {".torchscript": "torchscript"})
    done = export.export(*model, tmp_path / "a.torchscript", target="mytracker")
    torch.testing.assert_close(run_file(done.path, crops[:, ::-1] / 255), features(model, crops), rtol=0, atol=1e-5)
    assert done.usage == f"mytracker --reid {done.path}"
    with pytest.raises(ValueError, match="there is a target 'mytracker' already"):
        targets.register_target(type(targets.get_target("mytracker")))


@pytest.mark.slow
def test_the_tool_prints_how_to_use_it(tiny_run, tmp_path, run_tool):
    code, out, _ = run_tool("export.py", tiny_run, "-o", tmp_path / "a.onnx", "--for", "boxmot", "--batch-sizes")
    assert code == 0 and "Use it:" in out and "BotSort(reid_weights=" in out and "a.onnx.metadata.json" in out
    code, _, error = run_tool("export.py", tiny_run, "-o", tmp_path / "a.pt", "--for", "boxmot")
    assert code == 1 and error.startswith("error: ") and "not .pt" in error
    code, _, error = run_tool("export.py", tmp_path / "no run", "-o", tmp_path / "b.onnx", "--for", "boxmot")
    assert code == 1 and "no checkpoint at" in error and not (tmp_path / "b.onnx").exists()
