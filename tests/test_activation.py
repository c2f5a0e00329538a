"""CLIP's weights are computed with the activation that they were trained with, by values, in every container."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from sagareid.interchange import convert
from sagareid.modeling.clip import towers
from sagareid.modeling.clip.activation import check_activation, trained_with_quick_gelu

SIZE = 32
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
NAMES = {True: "ViT-of-tests-quickgelu", False: "ViT-of-tests"}


@pytest.fixture(scope="module", autouse=True)
def models(session_tmp):
    """open_clip knows a small model by two names, as it knows the large ones."""
    for quick, name in NAMES.items():
        file = session_tmp / f"{name}.json"
        file.write_text(json.dumps(CONFIG | ({"quick_gelu": True} if quick else {})))
        open_clip.add_model_config(file)


@pytest.fixture(scope="module")
def originals(models):
    """The model itself, of one set of weights, by its activation."""
    torch.manual_seed(0)
    found = {quick: open_clip.create_model(name).eval() for quick, name in NAMES.items()}
    with torch.no_grad():
        for parameter in found[True].visual.parameters():  # large activations, where the two differ
            parameter.mul_(3)
    found[False].load_state_dict(found[True].state_dict())
    return found


def write(folder, state, container: str):
    path = folder / {"archive": "w.pt", "safetensors": "w.safetensors"}.get(container, "w.pth")
    if container == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    elif container == "archive":
        _archive(state).save(str(path))
    else:
        training = {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(training if container == "wrapped" else state, path)
    return path


def _archive(state):
    root = torch.nn.Module()
    for key, value in state.items():
        *path, leaf = key.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        node.register_buffer(leaf, value)
    return torch.jit.script(root)


@torch.no_grad()
def difference(name: str, path, original) -> float:
    """Of the tower that `name` and a file make from the original's own image features."""
    tower = towers.build_vision_tower(name, (SIZE, SIZE), 16)
    towers.load_vision_tower(tower, towers.read_clip_weights(name, str(path)), name)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return float((tower.eval()(images) - original.encode_image(images)).abs().max())


CONTAINERS = ("plain", "wrapped", "safetensors", "archive")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("container", CONTAINERS)
def test_openais_layout_is_quickgelu_or_refused(container, originals, tmp_path):
    """Whatever holds it. The two activations really differ, so that the first assertion means something."""
    path = write(tmp_path, originals[True].state_dict(), container)
    assert difference(NAMES[True], path, originals[True]) < 1e-5
    assert difference(NAMES[True], path, originals[False]) > 1e-3
    with pytest.raises(ValueError, match=r"trained with QuickGELU .*but ViT-of-tests computes GELU") as caught:
        towers.read_clip_weights(NAMES[False], str(path))
    assert "Set MODEL.CLIP.NAME ViT-of-tests-quickgelu. If they are open_clip's own" in str(caught.value)
    assert '{"model_cfg": {"quick_gelu": false}}' in str(caught.value)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("container", ["plain", "safetensors"])
def test_open_clips_configuration_beside_the_file_decides(quick, container, originals, tmp_path):
    path = write(tmp_path, originals[quick].state_dict(), container)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG | ({"quick_gelu": True} if quick else {}), "preprocess_cfg": {}})
    )
    assert difference(NAMES[quick], path, originals[quick]) < 1e-5
    with pytest.raises(ValueError, match=f"Set MODEL.CLIP.NAME {NAMES[quick]}"):
        towers.read_clip_weights(NAMES[not quick], str(path))


@pytest.mark.parametrize("quick", [True, False])
def test_a_tag_decides(quick, originals, tmp_path, monkeypatch):
    path = write(tmp_path, originals[quick].state_dict(), "plain")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "x/y", "quick_gelu": quick})
    monkeypatch.setattr(towers, "download", lambda source: path)
    assert difference(NAMES[quick], "a_tag", originals[quick]) < 1e-5
    with pytest.raises(ValueError, match=f"by open_clip's record of the tag.*Set MODEL.CLIP.NAME {NAMES[quick]}"):
        towers.read_clip_weights(NAMES[not quick], "a_tag")


TEXT = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")
OTHER_LAYOUTS = {
    "text tower of its own": lambda state: {f"text.{k}" if k.startswith(TEXT) else k: v for k, v in state.items()},
    "image tower alone": lambda state: {k: v for k, v in state.items() if k.startswith("visual.")},
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_layout_that_says_nothing_is_refused_under_either_name_until_told(layout, originals, tmp_path):
    path = write(tmp_path, OTHER_LAYOUTS[layout](originals[True].state_dict()), "plain")
    for quick, name in NAMES.items():
        said = f'{{"model_cfg": {{"quick_gelu": {str(quick).lower()}}}}}'
        with pytest.raises(ValueError, match="does not say whether it was trained with GELU or QuickGELU") as caught:
            towers.read_clip_weights(name, str(path))
        assert said in str(caught.value)
        (tmp_path / "open_clip_config.json").write_text(said)  # the remedy, as it stands in the message
        assert difference(name, path, originals[quick]) < 1e-5
        with pytest.raises(ValueError, match=f"Set MODEL.CLIP.NAME {name}"):
            towers.read_clip_weights(NAMES[not quick], str(path))
        (tmp_path / "open_clip_config.json").unlink()


def test_a_model_of_one_activation_needs_no_word(originals, tmp_path, alone):
    state = OTHER_LAYOUTS["image tower alone"](originals[False].state_dict())
    assert difference(alone, write(tmp_path, state, "plain"), originals[False]) < 1e-5


def test_a_tower_of_timms_is_nobodys_but_open_clips(tmp_path, caplog):
    """With OpenAI's text layout beside it: the name is believed, unless the configuration beside the file says more."""
    names = {"token_embedding.weight": torch.zeros(2, 2), "visual.trunk.stem.0.weight": torch.rand(2, 3, 4, 4)}
    assert trained_with_quick_gelu(tmp_path / "w.pth", names) is None and not caplog.text
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    found = trained_with_quick_gelu(tmp_path / "w.pth", names)
    assert found == (True, "by open_clip_config.json beside it")
    with pytest.raises(ValueError, match="trained with QuickGELU .* but convnext_base computes GELU"):
        check_activation(tmp_path / "w.pth", found, "convnext_base", False)
    check_activation(tmp_path / "w.pth", None, "convnext_base", False)


def test_numbers_that_openai_never_wrote_are_said(originals, tmp_path, caplog):
    state = originals[True].state_dict()
    towers.read_clip_weights(NAMES[True], str(write(tmp_path, state, "plain")))
    assert "which no file of OpenAI's does" in caplog.text
    caplog.clear()
    for values in ({k: v.half() for k, v in state.items()}, {k: v.half().float() for k, v in state.items()}):
        towers.read_clip_weights(NAMES[True], str(write(tmp_path, values, "plain")))
    assert "which no file of OpenAI's does" not in caplog.text


@pytest.fixture
def alone(session_tmp):
    name = "ViT-of-tests-alone"
    shutil.copy(session_tmp / f"{NAMES[False]}.json", session_tmp / f"{name}.json")
    open_clip.add_model_config(session_tmp / f"{name}.json")
    return name


def test_no_model_of_the_other_activation(originals, tmp_path, alone):
    with pytest.raises(ValueError, match="open_clip has no ViT-of-tests-alone with QuickGELU: use others"):
        towers.read_clip_weights(alone, str(write(tmp_path, originals[True].state_dict(), "plain")))


def test_a_damaged_configuration_is_named(originals, tmp_path):
    path = write(tmp_path, originals[True].state_dict(), "plain")
    for text in ("{", "[]", '{"model_cfg": 3}'):
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(ValueError, match="open_clip_config.json is damaged: .* Fetch this"):
            towers.read_clip_weights(NAMES[True], str(path))


# ---- converting ----------------------------------------------------------------------------------------------------


def b16(result) -> str:
    """The converter's name for the weights, were they as wide as a ViT-B/16's."""
    result.model["backbone.visual.conv1.weight"] = torch.zeros(768, 3, 16, 16)
    return convert.config_keys(result)["MODEL.CLIP.NAME"]


def test_the_converter_names_the_activation(originals, tmp_path):
    path = write(tmp_path, originals[True].state_dict(), "plain")
    assert b16(convert.read_checkpoint(path)) == "ViT-B-16-quickgelu"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    result = convert.read_checkpoint(path)
    assert b16(result) == "ViT-B-16" and "trained with GELU (by open_clip_config.json beside it)" in result.notes


def test_a_gelu_model_is_not_written_for_code_that_knows_quickgelu_alone(originals, tmp_path):
    from sagareid import get_cfg

    convert.convert_file(write(tmp_path, originals[True].state_dict(), "plain"), tmp_path / "ours.pth")
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    for quick, name in NAMES.items():
        cfg = get_cfg()
        cfg.MODEL.CLIP.NAME = name
        torch.save(content | {"config": cfg.dump()}, tmp_path / "run.pth")
        if quick:
            convert.convert_file(tmp_path / "run.pth", tmp_path / "published.pth")
            assert convert.config_keys(convert.read_checkpoint(tmp_path / "run.pth"))["MODEL.CLIP.NAME"] == name
            continue
        with pytest.raises(convert.ConversionError, match=r"trained with GELU \(ViT-of-tests\); the published code"):
            convert.convert_file(tmp_path / "run.pth", tmp_path / "published.pth")


def run_config(name: str):
    from sagareid import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.NAME = "cpu", "build_clip_vit_backbone"
    cfg.MODEL.BACKBONE.FEAT_DIM, cfg.MODEL.BACKBONE.STRIDE_SIZE = 64, [16, 16]
    cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.TOKEN_LAYERS = name, [2]
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NAME, cfg.MODEL.HEADS.NUM_CLASSES = "SAGABaseline", "CLSHead", 4
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [SIZE, SIZE]
    return cfg


@pytest.mark.parametrize("layout", ["text tower of its own", "openai"])
def test_a_converted_file_keeps_what_it_was_trained_with(layout, originals, tmp_path):
    """It has no configuration; what the conversion knew is checked wherever MODEL.WEIGHTS reads it."""
    from sagareid.modeling.agreement import check_converted
    from sagareid.weights import load_state

    state = OTHER_LAYOUTS.get(layout, dict)(originals[True].state_dict())
    convert.convert_file(write(tmp_path, state, "plain"), tmp_path / "ours.pth")
    checkpoint = load_state(tmp_path / "ours.pth")
    if layout == "openai":
        check_converted(checkpoint, run_config(NAMES[True]), "ours.pth")
        with pytest.raises(
            ValueError, match=r"trained with QuickGELU \(by its conversion\), but ViT-of-tests computes"
        ):
            check_converted(checkpoint, run_config(NAMES[False]), "ours.pth")
        return
    for name in NAMES.values():
        cfg = run_config(name)
        with pytest.raises(ValueError, match="converted from a file that did not say"):
            check_converted(checkpoint, cfg, "ours.pth")
        cfg.MODEL.ACCEPT_DIFFERENCES = ["MODEL.CLIP.NAME"]
        check_converted(checkpoint, cfg, "ours.pth")


@pytest.mark.parametrize("reader", ["evaluate", "start", "resume"])
def test_every_reader_of_checkpoints_checks_it(reader, originals, tmp_path):
    from sagareid.deploy.load import load_model
    from sagareid.engine.checkpoint import RunCheckpointer

    convert.convert_file(write(tmp_path, originals[True].state_dict(), "plain"), tmp_path / "ours.pth")
    cfg = run_config(NAMES[False])
    checkpointer = RunCheckpointer(torch.nn.Linear(1, 1), "", cfg=cfg)
    read = {
        "evaluate": lambda path: load_model(path, cfg, "cpu"),
        "start": lambda path: checkpointer.start_from(path, ["heads.*"]),
        "resume": checkpointer.resume_from,
    }[reader]
    with pytest.raises(ValueError, match="by its conversion.*Set MODEL.CLIP.NAME ViT-of-tests-quickgelu"):
        read(str(tmp_path / "ours.pth"))
