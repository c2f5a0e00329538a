"""The checkpoint converter: exact both ways for every layout, strict about its input, readable when it refuses."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference as R
import torch
from torch import Tensor, nn

from sagareid.config import get_cfg
from sagareid.interchange import convert, derived
from sagareid.modeling.build import hand_over
from sagareid.modeling.clip import towers

from fastreid.modeling.meta_arch import build_model

LISTS = R.key_lists()
LAYOUTS = {
    "saga2": LISTS["saga_stage2"],
    "saga2 with cameras": LISTS["saga_stage2"] | {"cv_embed": [6, 768]},
    "saga3": R.stage3_shapes(),
    "saga3 with cameras": R.stage3_shapes("sie") | {"clipreid_model.cv_embed": [6, 768]},
    "saga3 with a projection": R.stage3_shapes() | {"proj.weight": [768, 768], "proj.bias": [768]},
    **{f"saga3 {v}": R.stage3_shapes(v) for v in LISTS["saga_variants_own"]},
    **LISTS["clip_reid"],
}
OF_THIS_METHOD = [name for name in LAYOUTS if name.startswith("saga")]


def shrink(shape) -> tuple[int, ...]:
    """The published widths over 32: 768 to 24, 512 to 16. Counts of identities, anchors, tokens and patches stay."""
    return tuple(n // 32 if n >= 256 and n % 32 == 0 else n for n in shape)


def made(key: str, shape) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if key.endswith("tokenized_prompts"):
        return torch.tensor([R.template_ids()])
    return torch.randn(shrink(shape), generator=generator)


def tiny(shapes) -> dict[str, Tensor]:
    """A published state dict of random tensors; what should be copies of one tensor are."""

    def origin(key: str) -> str:
        key = re.sub(r"^(clipreid_model|text_anchor)\.text_encoder\.", "text_encoder.", key)
        return key.replace("clipreid_model.image_encoder.", "backbone.")

    return {key: made(origin(key), shape) for key, shape in shapes.items()}


def clip_state(patches: int = 196, prefix: str = "") -> dict[str, Tensor]:
    """OpenAI's keys, two blocks a side."""
    shapes = {}
    for key, shape in LISTS["saga_stage2"].items():
        side, _, rest = key.partition(".")
        if side in ("image_encoder", "text_encoder") and not re.search(r"resblocks\.([2-9]|1\d)\.", rest):
            shapes[("visual." if side == "image_encoder" else prefix) + rest] = shape
    shapes["visual.positional_embedding"] = [1 + patches, 768]
    state = {k: made(k, s) for k, s in shapes.items()}
    return state | {prefix + "token_embedding.weight": torch.randn(49408, 16), "logit_scale": torch.tensor(4.6)}


def assert_same(first, second) -> None:
    assert set(first) == set(second), sorted(set(first) ^ set(second))[:6]
    for key in first:
        assert first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]), key


def write(path: Path, content) -> Path:
    torch.save(content, path)
    return path


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_to_ours_to_published_through_files(name, tmp_path):
    state = tiny(LAYOUTS[name])
    source = write(tmp_path / "published.pth", state)
    result, side, _ = convert.convert_file(source, tmp_path / "ours.pth")
    assert side == "ours" and result.layout == name.split(" ")[0].replace("vit_baseline_s16", "vit").replace(
        "clipreid_s16", "clip_reid"
    ).replace("clipreid_sie_s12", "clip_reid")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert all(k.startswith(("backbone.", "heads.")) for k in ours["model"])
    convert.convert_file(tmp_path / "ours.pth", tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), state)


@pytest.mark.parametrize(
    "name, head",
    [(n, "cls") for n in OF_THIS_METHOD] + [(n, "prompts") for n in OF_THIS_METHOD if n.startswith("saga2")],
)
def test_ours_to_published_to_ours_through_files(name, head, tmp_path):
    """As training writes it, without what was kept beside it."""
    model = convert.from_published(tiny(LAYOUTS[name]), head=head).model
    convert.convert_file(write(tmp_path / "model_final.pth", {"model": model, "epoch": 3}), tmp_path / "published.pth")
    state = torch.load(tmp_path / "published.pth", weights_only=True)
    assert set(state) - {"clipreid_model.cv_embed"} == set(LAYOUTS[name]) - {"clipreid_model.cv_embed"}
    convert.convert_file(tmp_path / "published.pth", tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert_same(ours["model"], model)
    again, _ = convert.to_published(ours["model"], ours["published"])
    assert_same(again, state)
    assert_same(convert.from_published(again, carried=again.sagareid).model, model)


def test_camera_embedding_of_our_last_stage_comes_back():
    model = convert.from_published(tiny(LAYOUTS["saga3"])).model | {"backbone.camera_embedding": torch.randn(6, 24)}
    state, notes = convert.to_published(model)
    assert torch.equal(state["clipreid_model.cv_embed"], model["backbone.camera_embedding"])
    assert any("does not apply the camera embedding" in note for note in notes)
    assert_same(convert.from_published(state, carried=state.sagareid).model, model)


def test_text_features_that_no_prompt_explains_come_back():
    """Our image stage keeps the text features alone: the published file has no place for them."""
    model = convert.from_published(tiny(LAYOUTS["saga2"])).model
    model["heads.text_features"] = torch.randn_like(model["heads.text_features"])
    state, notes = convert.to_published(model)
    assert not state["prompt_learner.ctx_generic"].any() and "zeros" in notes[0]
    assert_same(convert.from_published(state, carried=state.sagareid).model, model)


def test_buffers_follow_weights_that_were_edited_in_between():
    model = convert.from_published(tiny(LAYOUTS["saga3"])).model
    state, _ = convert.to_published(model)
    state["text_anchor.proj.weight"] = 2 * state["text_anchor.proj.weight"]
    again = convert.from_published(state, carried=state.sagareid).model
    torch.testing.assert_close(again["heads.text_anchors.anchors"], 2 * model["heads.text_anchors.anchors"])


@pytest.mark.parametrize("prefix", ["", "text."])
def test_clip_in_half_precision_comes_back_exactly(prefix, tmp_path):
    state = {k: v.half() if v.dim() else v for k, v in clip_state(prefix=prefix).items()}
    state["input_resolution"] = torch.tensor(224)
    convert.convert_file(write(tmp_path / "clip.pt", state), tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert all(v.dtype == torch.float32 for v in ours["model"].values())
    convert.convert_file(tmp_path / "ours.pth", tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), state)


def test_module_prefix_and_state_dict_level(tmp_path):
    state = tiny(LAYOUTS["vit_baseline_s16"])
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    assert_same(convert.read_checkpoint(write(tmp_path / "a.pth", wrapped)).model, convert.from_published(state).model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI's files are what they are
def test_torchscript_archive(tmp_path):
    state, archive = clip_state(), _Node()
    for key, value in state.items():
        node, *path = archive, *key.split(".")
        for part in path[:-1]:
            if part not in node._modules:
                node.add_module(part, _Node())
            node = node._modules[part]
        node.register_buffer(path[-1], value)
    torch.jit.script(archive).save(str(tmp_path / "ViT.pt"))
    result = convert.read_checkpoint(tmp_path / "ViT.pt")
    assert result.layout == "clip"
    assert torch.equal(result.model["backbone.visual.proj"], state["visual.proj"])


class _Node(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


# ---- what a converted checkpoint holds -------------------------------------------------------------------------------


def test_anchors_are_those_of_the_head():
    """The converted buffer is what SAGAHead computes from the same weights, but for the rounding of other kernels."""
    model = build(head="SAGAHead")
    state, _ = convert.to_published(model.state_dict())
    computed = convert.from_published(state).model["heads.text_anchors.anchors"]
    torch.testing.assert_close(computed, model.state_dict()["heads.text_anchors.anchors"], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("layout, end", [("saga2", 19), ("clipreid_s16", 11)])
def test_text_features_are_those_of_the_whole_prompt(layout, end):
    """Computed on the rows up to the end of text; here on all 77."""
    state = tiny(LAYOUTS[layout])
    encoder = derived.text_encoder(state, "text_encoder.")
    learner = {k.removeprefix("prompt_learner."): v for k, v in state.items() if k.startswith("prompt_learner.")}
    context = learner.get("cls_ctx")
    if context is None:
        context = torch.cat([learner["ctx_generic"], torch.zeros(16, 8, 16)], dim=1)
    ends = (learner["token_prefix"].expand(16, -1, -1), learner["token_suffix"].expand(16, -1, -1))
    prompts = torch.cat([ends[0], context, ends[1]], dim=1)
    assert prompts.shape[1] == 77
    with torch.no_grad():
        expected = encoder(prompts, end=end)
    ours = convert.from_published(state).model["heads.text_features"]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_mean_identity_context_goes_on_to_anchors_without_phrases():
    state = tiny(LAYOUTS["saga2"])
    context = convert.from_published(state).model["heads.prompt_context"]
    torch.testing.assert_close(context, state["prompt_learner.ctx_generic"].mean(0))


def build(head: str, **saga) -> nn.Module:
    """A random SAGABaseline small enough for a test."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SAGABaseline"
    cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.FEAT_DIM = 128
    cfg.MODEL.BACKBONE.STRIDE_SIZE = [8, 8]
    cfg.MODEL.CLIP.NAME = "ViT-XS-8-pedestrians"
    cfg.MODEL.CLIP.TOKEN_LAYERS = [4]
    cfg.MODEL.HEADS.NAME = head
    cfg.MODEL.HEADS.NUM_CLASSES = 16
    cfg.MODEL.LOSSES.NAME = ["CrossEntropyLoss", "TripletLoss", *(["I2TLoss"] if head == "CLSHead" else [])]
    cfg.MODEL.SAGA.NUM_ANCHORS = 6
    for key, value in saga.items():
        cfg.MODEL.SAGA[key] = value
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [96, 48]
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize("head", ["PromptHead", "CLSHead", "SAGAHead"])
def test_real_models_come_back_exactly(head, tmp_path):
    model = build(head).state_dict()
    convert.convert_file(write(tmp_path / "model.pth", {"model": model}), tmp_path / "published.pth")
    convert.convert_file(tmp_path / "published.pth", tmp_path / "ours.pth")
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True)["model"], model)


def test_a_clip_reid_checkpoint_starts_the_anchor_stage():
    """Its tower is loaded strictly, and the refinement starts from that tower's block."""
    source = build("CLSHead").state_dict()
    published = {k.replace("backbone.visual.", "image_encoder.").removeprefix("heads."): v for k, v in source.items()}
    published = {k: v for k, v in published.items() if k not in ("text_features", "prompt_context")}
    learner = {"cls_ctx": (16, 4, 128), "token_prefix": (1, 5, 128), "token_suffix": (1, 68, 128)}
    published |= {f"prompt_learner.{k}": torch.randn(s) for k, s in learner.items()}
    text = build("PromptHead").heads.text_encoder.state_dict()
    published |= {f"text_encoder.{k}": v for k, v in text.items()}
    converted = convert.from_published(published)
    assert converted.layout == "clip_reid"

    model = build("SAGAHead")
    fresh = hand_over(model, converted.model, ["heads.*"], "the converted checkpoint")
    assert all(n.startswith("heads.") for n in fresh)
    model.initialize_heads(converted.model)
    block = source["backbone.visual.transformer.resblocks.3.mlp.c_fc.weight"]
    assert torch.equal(model.state_dict()["heads.refine.0.layers.0.ff.0.weight"], block)
    # and its own stage, image-to-text loss included
    hand_over(build("CLSHead"), converted.model, ["heads.prompt_context"], "the converted checkpoint")


def test_a_converted_last_stage_needs_no_text_tower(tmp_path):
    """Evaluation from the stored anchors equals evaluation with the tower."""
    with_tower = build("SAGAHead").eval()
    state, _ = convert.to_published(with_tower.state_dict())
    converted = convert.from_published(state).model
    without = build("SAGAHead").eval()
    without.load_state_dict(converted)
    without.heads.text_encoder = None
    images = torch.randn(2, 3, 96, 48) * 50 + 120
    with torch.no_grad():
        torch.testing.assert_close(without({"images": images}), with_tower({"images": images}), rtol=1e-4, atol=1e-5)


# ---- input size and stride -------------------------------------------------------------------------------------------


def test_resize_is_the_backbones_own(tmp_path):
    state = tiny(LAYOUTS["clipreid_s16"])
    source = write(tmp_path / "a.pth", state)
    result, _, _ = convert.convert_file(source, tmp_path / "b.pth", size=(384, 128), stride=12)
    expected = towers.resize_position_embedding(state["image_encoder.positional_embedding"], (16, 8), (31, 10))
    ours = torch.load(tmp_path / "b.pth", weights_only=True)["model"]["backbone.visual.positional_embedding"]
    assert torch.equal(ours, expected) and ours.shape == (311, 24)
    assert "from 256x128 at stride 16 (grid 16x8) to 384x128 at stride 12 (grid 31x10)" in result.notes[-1]
    keys = convert.config_keys(result)
    assert keys["MODEL.BACKBONE.STRIDE_SIZE"] == [12, 12] and keys["INPUT.SIZE_TRAIN"] == [384, 128]


def test_resize_keeps_what_is_not_asked_for():
    result = convert.from_published(tiny(LAYOUTS["saga2"]))
    convert.resize(result, stride=16)
    assert result.model["backbone.visual.positional_embedding"].shape == (129, 24)


def test_resize_of_an_equal_number_of_patches_on_another_grid():
    """CLIP's 14x14 and a 28x7 image have 196 patches both; copying would scramble them."""
    result = convert.from_published(clip_state())
    convert.resize(result, size=(448, 112))
    before = clip_state()["visual.positional_embedding"]
    assert not torch.equal(result.model["backbone.visual.positional_embedding"], before)


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"size": (256, 128), "stride": 12, "from_size": (256, 128), "from_stride": 16},
            "from 256x128 at stride 16 (grid 16x8) to 256x128 at stride 12 (grid 21x10): the checkpoint's position "
            "embedding has 210 patches, not 128",
        ),
        ({"stride": 17}, "stride 17 is not in 1..16"),
        ({"size": (8, 8)}, "holds no 16x16 patch"),
    ],
)
def test_resize_refuses_a_grid_that_does_not_fit(sizes, message):
    with pytest.raises(convert.ConversionError, match=re.escape(message)):
        convert.resize(convert.from_published(tiny(LAYOUTS["saga2"])), **sizes)


def test_resize_asks_where_the_source_grid_is_unknown():
    state = tiny(LAYOUTS["saga2"] | {"image_encoder.positional_embedding": [311, 768]})
    with pytest.raises(convert.ConversionError, match="310 patches.*--from-size H W --from-stride S"):
        convert.resize(convert.from_published(state), size=(256, 128))
    result = convert.from_published(state)
    convert.resize(result, size=(256, 128), stride=16, from_size=(384, 128), from_stride=12)
    assert result.model["backbone.visual.positional_embedding"].shape[0] == 129


# ---- refusals --------------------------------------------------------------------------------------------------------


def edited(name: str, remove=(), add=()) -> dict[str, Tensor]:
    state = {k: v for k, v in tiny(LAYOUTS[name]).items() if k not in remove}
    return state | {k: torch.zeros(2) for k in add}


@pytest.mark.parametrize(
    "state, message",
    [
        (
            lambda: edited("saga3", remove=["bn.weight"]),
            "nearest layout is saga3 (SAGA-ReID, last stage), but missing 1: bn.weight",
        ),
        (
            lambda: edited("saga2", remove=["prompt_learner.ctx_generic"], add=["extra.weight"]),
            "prompt or image stage), but missing 1: prompt_learner.ctx_generic; left over 1: extra.weight",
        ),
        (
            lambda: edited("saga3", remove=["backbone.transformer.resblocks.4.ln_1.bias"]),
            "missing 1: backbone.transformer.resblocks.4.ln_1.bias",
        ),
        (lambda: {k: v for k, v in tiny(LAYOUTS["saga3"]).items() if "refine" not in k}, "missing 14: refine.layers.0"),
        (
            lambda: edited("saga2") | {"text_encoder.ln_final.weight": torch.zeros(8)},
            "the keys are those of saga2, but sizes disagree",
        ),
        (lambda: edited("clipreid_s16", add=["image_encoder.layer1.0.weight"]), "left over 1: image_encoder.layer1.0"),
        (lambda: {f"layer{i}.weight": torch.zeros(1) for i in range(9)}, "no layout known here"),
        (lambda: {"heads.weight": torch.zeros(1), "backbone.conv1.weight": torch.zeros(1)}, "no layout known here"),
    ],
)
def test_a_wrong_file_is_refused_by_name(state, message):
    with pytest.raises(convert.ConversionError, match=re.escape(message)):
        convert.from_published(state())


@pytest.mark.parametrize("copy", ["clipreid_model.image_encoder.proj", "clipreid_model.text_encoder.ln_final.bias"])
def test_copies_that_differ_are_refused(copy):
    state = tiny(LAYOUTS["saga3"])
    state[copy] = state[copy] + 1
    with pytest.raises(convert.ConversionError, match=f"{copy} differs from .* of which it should be a copy"):
        convert.from_published(state)


def test_heads_that_do_not_go_together_are_refused():
    with pytest.raises(convert.ConversionError, match="layout clip_reid .* holds no prompts head"):
        convert.from_published(tiny(LAYOUTS["clipreid_s16"]), head="prompts")
    model = {k: v for k, v in convert.from_published(tiny(LAYOUTS["saga3"])).model.items() if "text_encoder" not in k}
    with pytest.raises(convert.ConversionError, match="that training wrote"):
        convert.to_published(model)
    with pytest.raises(convert.ConversionError, match="not of PromptHead, CLSHead or SAGAHead"):
        convert.to_published({"backbone.visual.proj": torch.zeros(2, 2), "heads.bottleneck.weight": torch.zeros(2)})
    with pytest.raises(convert.ConversionError, match="left over heads.extra"):
        convert.to_published(convert.from_published(tiny(LAYOUTS["saga3"])).model | {"heads.extra": torch.zeros(1)})


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_command_line(tmp_path, run_tool):
    def run(*argv: object) -> SimpleNamespace:
        return SimpleNamespace(
            **dict(zip(("returncode", "stdout", "stderr"), run_tool("convert_checkpoint.py", *argv)))
        )

    source = write(tmp_path / "published.pth", tiny(LAYOUTS["saga3 multi69"]))
    done = run(source, tmp_path / "sub" / "ours.pth")
    assert done.returncode == 0, done.stderr
    for line in (
        "saga3 (SAGA-ReID, last stage); ",
        "tensors for the model, 29 more kept under",
        "MODEL.SAGA.NUM_ANCHORS 24",
        "MODEL.SAGA.PHRASE_CONTEXT 12",
        "MODEL.SAGA.NUM_CLASSIFIERS 4",
        "MODEL.HEADS.NUM_CLASSES 16",
        "MODEL.BACKBONE.STRIDE_SIZE [12, 12]",
        "MODEL.CLIP.TOKEN_LAYERS (2; not stored which",
    ):
        assert line in done.stdout
    hostile = write(tmp_path / "hostile.pth", {"a": Hostile()})
    target = write(tmp_path / "kept.pth", {"old": torch.ones(1)})
    done = run(hostile, target)
    assert done.returncode == 1 and "needs Python code to load" in done.stderr
    assert "this must not run" not in done.stdout
    assert len(done.stderr.strip().splitlines()) == 2 and "Traceback" not in done.stderr
    assert torch.load(target, weights_only=True)["old"] == 1
    done = run(tmp_path / "absent.pth", target)
    assert done.returncode == 1 and "no weights file at" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.pth", "kept.pth", "published.pth", "sub"]
