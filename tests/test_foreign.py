"""Towers of other projects compute here what they compute there: names, values, what is left out, and the way back."""

from __future__ import annotations

import re

import foreign_towers as T
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from sagareid import get_cfg
from sagareid.interchange import convert
from sagareid.modeling.build import build_model, hand_over
from sagareid.modeling.foreign import as_named_here, recognise_tower, tower_weights
from sagareid.modeling.foreign.tower import ForeignError, resampled
from sagareid.modeling.timm.blocks import block_weights
from sagareid.modeling.timm.variants import VARIANTS
from sagareid.weights import load_state, state_dict_in

SIZE = (64, 32)  # 4x2 patches of 16


def images(size=SIZE, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(9))


def timm_vit(variant: str = "", size=SIZE):
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=T.WIDTH, depth=T.DEPTH, num_heads=T.HEADS, img_size=size, num_classes=0
    )
    if variant:
        VARIANTS[variant](model, semantic_weight=0.0)
    return model


def filled(module, state, origin="the file"):
    """The module with a recognised tower in it, strictly."""
    tower = recognise_tower(state)
    module.load_state_dict(tower_weights(module, tower, origin))
    return module.eval(), tower


VITS = {
    "TransReID": (lambda: T.transreid(), "base."),
    "TransReID-SSL with ICS": (lambda: T.transreid(stem=True), "base."),
    "PersonViT's teacher": (lambda: state_dict_in(T.dino(), "w"), "backbone."),
    "HAP's pre-training": (lambda: T.hap_pretraining(), ""),
    "HAP with its locality branch": (lambda: T.hap_lem(), ""),
    "the tower alone": (lambda: T.drawn(T.vit_shapes(8)), ""),
}


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_a_vit_computes_its_feature(name):
    made, prefix = VITS[name]
    state = made()
    model, tower = filled(timm_vit("ics" if "ICS" in name else ""), state)
    torch.testing.assert_close(model(images()), T.vit_feature(images(), state, prefix=prefix), rtol=1e-4, atol=1e-5)
    assert set(state) == set(tower.published.values()) | set(tower.left_out)
    assert not set(tower.published.values()) & set(tower.left_out)


@torch.no_grad()
def test_of_two_networks_it_is_the_teachers():
    content = T.dino()
    model, _ = filled(timm_vit(), state_dict_in(content, "w"))
    for network, equal in (("teacher", True), ("student", False)):
        expected = T.vit_feature(images(), content[network], prefix="module.backbone.")
        assert torch.allclose(model(images()), expected, atol=1e-4) is equal


@torch.no_grad()
def test_with_jpm_the_last_block_is_the_trained_copy():
    """base.blocks.<last> and base.norm stay what ImageNet made them: the published model never runs them."""
    state = T.transreid_jpm()
    model, tower = filled(timm_vit(), state)
    expected = T.vit_feature(images(), state, prefix="base.", last=("b1.0", "b1.1"))
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)
    assert (model(images()) - T.vit_feature(images(), state, prefix="base.")).abs().max() > 0.1
    assert set(state) == set(tower.published.values()) | set(tower.left_out)
    assert "b1 is in its place" in tower.left_out["base.blocks.2.norm1.weight"]
    assert "(JPM)" in tower.left_out["b2.0.norm1.weight"] and "classifier_4.weight" in tower.left_out


def test_what_is_left_out_is_said_and_a_camera_embedding_warned_of(caplog):
    with caplog.at_level("INFO"):
        filled(timm_vit(), T.transreid(), "w.pth")
    for said in (
        "left out base.fc.weight, base.fc.bias (the classifier of its pre-training)",
        "base.sie_embed (its camera or view embedding (SIE)",
        "classifier.weight, bottleneck.weight, bottleneck.bias and 3 more (the head of the other project",
    ):
        assert said in caplog.text, said
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "trained with camera or view embeddings (SIE)" in warned[0]


def test_nothing_is_loaded_in_part():
    state = T.transreid()
    with pytest.raises(ForeignError, match=r"2 of its \d+ tensors are missing: base.blocks.1.mlp.fc1"):
        recognise_tower({k: v for k, v in state.items() if "blocks.1.mlp.fc1" not in k})
    with pytest.raises(ForeignError, match="with 1 tensors that this layout does not have: base.reg_token"):
        recognise_tower(state | {"base.reg_token": torch.zeros(1)})
    with pytest.raises(ForeignError, match=r"no place for its patch_embed.proj.proj.bias.*wants .*VARIANT ics"):
        filled(timm_vit(), T.transreid(stem=True))
    with pytest.raises(
        ForeignError, match=r"does not fill VisionTransformer: .*missing, such as patch_embed.proj.proj"
    ):
        filled(timm_vit("ics"), T.transreid())
    assert recognise_tower({"a.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("patches, source", [(128, (16, 8)), (196, (14, 14))])
@pytest.mark.parametrize("hap", [False, True])
def test_positions_are_interpolated_as_published(patches, source, hap):
    """Bilinear from a square or a 2:1 grid (PRETRAIN_HW_RATIO); HAP bicubic."""
    state = T.hap_pretraining(patches) if hap else T.drawn(T.vit_shapes(patches))
    model, _ = filled(timm_vit(size=(96, 32)), state)
    grid = state["pos_embed"][0, 1:].T.reshape(1, T.WIDTH, *source)
    expected = F.interpolate(grid, size=(6, 2), mode="bicubic" if hap else "bilinear").flatten(2)[0].T
    torch.testing.assert_close(model.pos_embed[0, 1:], expected)
    assert torch.equal(model.pos_embed[0, 0], state["pos_embed"][0, 0])


def test_files_that_timm_reads_by_itself():
    """ImageNet's ViT, with its classifier; not a tower at 256x128, whose positions timm takes for a square's."""
    own = T.drawn(T.vit_shapes(196)) | {"head.weight": torch.zeros(1000, T.WIDTH)}
    assert recognise_tower(own).is_timms
    for other in (T.transreid(196), T.drawn(T.vit_shapes(128)), own | {"mask_token": torch.zeros(1)}):
        assert not recognise_tower(other).is_timms
    ours = {f"backbone.model.{k}": v for k, v in T.drawn(T.vit_shapes(8)).items()}
    assert recognise_tower(ours) is None, "a checkpoint of this project"


def test_positions_of_an_unknown_grid():
    assert resampled(torch.ones(1, 211, 4), (21, 10), "bilinear").shape == (1, 211, 4)
    with pytest.raises(ForeignError, match="210 patches, which is neither the 16x8"):
        resampled(torch.ones(1, 211, 4), (16, 8), "bilinear")


@torch.no_grad()
def test_older_forms_of_a_vit():
    """A projection stored as a matrix; a distilled DeiT, whose second position is that of its distillation token."""
    state = T.drawn(T.vit_shapes(8))
    plain = T.vit_feature(images(), state)
    table = state["pos_embed"]
    old = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1), "dist_token": torch.ones(1)}
    old["pos_embed"] = torch.cat([table[:, :1], torch.ones(1, 1, T.WIDTH), table[:, 1:]], dim=1)
    model, _ = filled(timm_vit(), old | {"head_dist.weight": torch.zeros(2, 2)})
    torch.testing.assert_close(model(images()), plain, rtol=1e-4, atol=1e-5)


def test_the_small_vit_of_transreid_is_fastreids():
    """Eight heads whose scale is 768 ** -0.5: timm has none such."""
    shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 9, 768), "norm.weight": (768,), "norm.bias": (768,)}
    shapes |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    for i in range(8):
        shapes |= {f"blocks.{i}.{n}.{p}": (768,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
        shapes |= {f"blocks.{i}.attn.qkv.weight": (2304, 768), f"blocks.{i}.attn.proj.weight": (768, 768)}
        shapes |= {f"blocks.{i}.attn.proj.bias": (768,), f"blocks.{i}.mlp.fc1.weight": (2304, 768)}
        shapes |= {f"blocks.{i}.mlp.fc1.bias": (2304,), f"blocks.{i}.mlp.fc2.weight": (768, 2304)}
        shapes |= {f"blocks.{i}.mlp.fc2.bias": (768,)}
    tower = recognise_tower({k: torch.zeros(()).expand(s) for k, s in shapes.items()})
    assert tower.builders == ("build_vit_backbone",) and tower.config["MODEL.BACKBONE.DEPTH"] == "small"


# ---- SOLIDER -----------------------------------------------------------------------------------------------------


def timm_swin(semantic: float, size=(96, 40)):
    model = SwinTransformer(
        img_size=size, embed_dim=16, depths=T.SWIN_DEPTHS, num_heads=T.SWIN_HEADS, window_size=7,
        always_partition=True, num_classes=0,
    )  # fmt: skip
    VARIANTS["solider"](model, semantic_weight=semantic)
    return model


@pytest.mark.parametrize("semantic", [0.0, 0.2, 1.0])
@torch.no_grad()
def test_solider_computes_its_map(semantic):
    """At a size whose maps are no whole windows, as at 384x128, and smaller than one window in the last stages."""
    state = T.solider()
    model, tower = filled(timm_swin(semantic), state)
    bare = {k.removeprefix("base."): v for k, v in state.items()}
    found = model.forward_features(images((96, 40))).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, T.swin_map(images((96, 40)), bare, semantic), rtol=1e-4, atol=1e-4)
    other = T.swin_map(images((96, 40)), bare, 0.6)
    assert (found - other).abs().max() > 0.01, "the semantic weight matters"
    assert set(state) == set(tower.published.values()) | set(tower.left_out)
    assert not [name for name, _ in model.named_parameters() if "semantic" in name], "fine-tuning keeps them"


def test_refinement_starts_from_soliders_last_block():
    state = T.solider()
    model, _ = filled(timm_swin(0.2), state)
    found = block_weights(model.layers[3])
    assert torch.equal(found.attention["in_proj_weight"], state["base.stages.3.blocks.1.attn.w_msa.qkv.weight"])
    assert torch.equal(found.feed_forward["3.bias"], state["base.stages.3.blocks.1.ffn.layers.1.bias"])


@torch.no_grad()
def test_timms_own_windows_and_order_are_others():
    """What the variant is for: timm shifts before it pads, and merges patches in another order."""
    state = {k.removeprefix("base."): v for k, v in T.solider().items()}
    model, _ = filled(timm_swin(0.2), state)
    plain = SwinTransformer(
        img_size=(96, 40), embed_dim=16, depths=T.SWIN_DEPTHS, num_heads=T.SWIN_HEADS, window_size=7,
        always_partition=True, num_classes=0,
    ).eval()  # fmt: skip
    own = model.state_dict()
    plain.load_state_dict({k.replace("merging.", ""): v for k, v in own.items() if "semantic" not in k})
    expected = model.layers[0](model.patch_embed(images((96, 40))))
    assert (plain.layers[0](plain.patch_embed(images((96, 40)))) - expected).abs().max() > 0.01
    name = "stages.0.downsample.reduction.weight"
    assert not torch.equal(own["layers.1.downsample.merging.reduction.weight"], state[name])


def test_a_solider_of_another_window_or_without_control():
    state = T.solider()
    with pytest.raises(ForeignError, match="tensors are missing: base.semantic_embed_"):
        recognise_tower({k: v for k, v in state.items() if "semantic" not in k})
    wide = {k: torch.zeros(23 * 23, v.shape[1]) if k.endswith("bias_table") else v for k, v in state.items()}
    with pytest.raises(ForeignError, match="windows of 12; those that were published have 7"):
        recognise_tower(wide)
    with pytest.raises(ValueError, match="SEMANTIC_WEIGHT is 1.5; expected 0 to 1"):
        timm_swin(1.5)
    with pytest.raises(ValueError, match="for a Swin Transformer"):
        timm_vit("solider")


# ---- torchreid and FastReID's zoo --------------------------------------------------------------------------------


def run_config(name: str = "osnet", depth: str = "x0_25", width: int = 128, **backbone):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "Baseline"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = f"build_{name}_backbone", depth
    cfg.MODEL.BACKBONE.FEAT_DIM, cfg.MODEL.HEADS.NUM_CLASSES = width, 5
    cfg.MODEL.HEADS.NAME, cfg.MODEL.HEADS.POOL_LAYER = "EmbeddingHead", "GlobalAvgPool"
    cfg.MODEL.HEADS.WITH_BNNECK, cfg.MODEL.HEADS.NECK_FEAT = True, "after"
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [64, 32]
    for key, value in backbone.items():
        cfg.MODEL.BACKBONE[key] = value
    return cfg


def backbone_state(cfg) -> dict[str, Tensor]:
    own = build_model(cfg).backbone.state_dict()
    return T.drawn({k: tuple(v.shape) for k, v in own.items()})


def torchreid_file(state: dict[str, Tensor], width: int) -> dict:
    """With what torchreid keeps beside its weights."""
    import numpy as np

    extra = {"fc.0.weight": torch.ones(512, width), "fc.0.bias": torch.ones(512), "fc.1.weight": torch.ones(512)}
    extra |= {"classifier.weight": torch.ones(5, 512), "classifier.bias": torch.ones(5)}
    state = {f"module.{k}": v for k, v in (state | extra).items()}
    return {"state_dict": state, "epoch": 150, "rank1": np.float64(0.9), "optimizer": {"lr": 0.1}}


@pytest.fixture(scope="module")
def osnet_file(session_tmp):
    state = backbone_state(run_config())
    path = session_tmp / "osnet_x0_25_msmt17.pt"
    torch.save(torchreid_file(state, 128), path)
    return path, state


@torch.no_grad()
def test_torchreids_osnet_by_pretrain_path(osnet_file, caplog):
    path, state = osnet_file
    with caplog.at_level("INFO"):
        model = build_model(run_config(PRETRAIN=True, PRETRAIN_PATH=str(path))).eval()
    torch.testing.assert_close(model.backbone(images()), T.osnet_map(images(), state), rtol=1e-4, atol=1e-4)
    assert "left out classifier.weight, classifier.bias (torchreid's classifier)" in caplog.text


@torch.no_grad()
def test_torchreids_osnet_by_model_weights(osnet_file):
    from sagareid.engine.checkpoint import RunCheckpointer

    path, state = osnet_file
    cfg = run_config()
    model = build_model(cfg)
    fresh = RunCheckpointer(model, "", cfg=cfg).start_from(str(path), ["heads.*"])
    assert fresh and all(name.startswith("heads.") for name in fresh)
    model.eval()
    torch.testing.assert_close(model.backbone(images()), T.osnet_map(images(), state), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="heads.*add their glob patterns to MODEL.NEW_WEIGHTS"):
        RunCheckpointer(build_model(cfg), "", cfg=cfg).start_from(str(path), [])


def test_a_tower_for_another_backbone_says_which(osnet_file):
    path, _ = osnet_file
    cfg = run_config("resnet", "18x", 512, PRETRAIN=True, PRETRAIN_PATH=str(path))
    wanted = r"torchreid's OSNet.*MODEL.BACKBONE.NAME build_osnet_backbone, MODEL.BACKBONE.DEPTH x0_25"
    with pytest.raises(ForeignError, match=wanted):
        build_model(cfg)
    cfg.MODEL.BACKBONE.PRETRAIN = False
    with pytest.raises(ForeignError, match=wanted):
        as_named_here(build_model(cfg), load_state(path)["model"], "w.pt")


def test_osnet_ibn_and_ain(tmp_path):
    cfg = run_config(WITH_IBN=True)
    state = backbone_state(cfg)
    tower = recognise_tower(state | {"classifier.weight": torch.ones(5, 512)})
    assert tower.config["MODEL.BACKBONE.WITH_IBN"] is True
    build_model(cfg).backbone.load_state_dict(tower.state)
    with pytest.raises(ForeignError, match="OSNet-AIN"):
        recognise_tower({"conv2.0.conv2.0.layers.0.conv1.weight": torch.ones(1)})


@torch.no_grad()
def test_torchreids_resnet(tmp_path, caplog):
    """timm's is the same function; FastReID's pools without padding, which is said."""
    cfg = run_config("resnet", "18x", 512, LAST_STRIDE=2)
    state = backbone_state(cfg)
    path = tmp_path / "resnet18.pth.tar"
    torch.save(torchreid_file(state, 512), path)
    tower = recognise_tower(load_state(path)["model"])
    assert tower.builders == ("build_timm_backbone", "build_resnet_backbone")
    assert tower.config["MODEL.BACKBONE.TIMM.NAME"] == "resnet18"
    model = timm.create_model("resnet18", num_classes=0).eval()
    for name in [name for name in tower.state if name.endswith("num_batches_tracked")]:
        del tower.state[name]  # as in files of 2018
    model.load_state_dict(tower_weights(model, tower, "w"))
    expected = T.resnet18_map(images(), state)
    torch.testing.assert_close(model.forward_features(images()), expected, rtol=1e-4, atol=1e-4)
    assert "max pool" not in caplog.text
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(path)
    theirs = build_model(cfg).eval().backbone(images())
    assert "first max pool has no padding" in caplog.text and "TIMM.NAME resnet18 computes it exactly" in caplog.text
    assert (theirs - expected).abs().max() > 1e-3


@torch.no_grad()
def test_older_names_of_fastreids_zoo(tmp_path, caplog):
    """heads.bnneck and heads.classifier, in training and in evaluation."""
    from sagareid.deploy.load import load_model
    from sagareid.engine.checkpoint import RunCheckpointer

    cfg = run_config()
    model = build_model(cfg)
    own = T.drawn({k: tuple(v.shape) for k, v in model.state_dict().items()})
    model.load_state_dict(own)
    old = {re.sub(r"^heads\.bottleneck\.0\.", "heads.bnneck.", k): v for k, v in own.items()}
    old["heads.classifier.weight"] = old.pop("heads.weight")
    old |= {"pixel_mean": model.pixel_mean.clone(), "pixel_std": model.pixel_std.clone()}
    assert len(old) == len(own) + 2 and "heads.bnneck.running_var" in old
    torch.save({"model": old}, tmp_path / "market_bot.pth")
    again = build_model(cfg)
    assert not RunCheckpointer(again, "", cfg=cfg).start_from(str(tmp_path / "market_bot.pth"), [])
    expected = model.eval()({"images": images() * 50 + 120})
    for found in (again.eval(), load_model(tmp_path / "market_bot.pth", cfg)[1]):
        torch.testing.assert_close(found({"images": images() * 50 + 120}), expected)
    assert "behind the batch norm: MODEL.HEADS.NECK_FEAT after" in caplog.text
    reduction = old | {"heads.bottleneck.0.weight": torch.zeros(2, 2, 1, 1)}  # conv, norm, LeakyReLU in front of bnneck
    with pytest.raises(ForeignError, match="has a ReductionHead of FastReID .* which no head of today computes"):
        as_named_here(again, reduction, "market_mgn.pth")


# ---- by configuration alone --------------------------------------------------------------------------------------

TIMM = {
    "vit": (
        "vit_tiny_patch16_224",
        [f"embed_dim={T.WIDTH}", f"depth={T.DEPTH}", f"num_heads={T.HEADS}"],
        T.WIDTH,
        SIZE,
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        ["embed_dim=16", f"depths={T.SWIN_DEPTHS}", f"num_heads={T.SWIN_HEADS}"],
        128,
        (96, 40),
    ),
}


def timm_config(kind: str, variant: str = "", path="", output: str = "cls"):
    name, arguments, width, size = TIMM[kind]
    cfg = run_config()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "SAGABaseline", "build_timm_backbone"
    cfg.MODEL.BACKBONE.TIMM.NAME, cfg.MODEL.BACKBONE.TIMM.ARGS = name, arguments
    cfg.MODEL.BACKBONE.TIMM.VARIANT, cfg.MODEL.BACKBONE.FEAT_DIM = variant, width
    cfg.MODEL.BACKBONE.STRIDE_SIZE, cfg.MODEL.BACKBONE.OUTPUT = [16, 16], output
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = bool(path), str(path)
    cfg.MODEL.CLIP.TOKEN_LAYERS, cfg.MODEL.HEADS.POOL_LAYER = [3], "Identity"
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = list(size)
    return cfg


@pytest.mark.parametrize("way", ["PRETRAIN_PATH", "MODEL.WEIGHTS", "converted"])
@pytest.mark.parametrize("tower", ["ics", "solider", "teacher"])
@torch.no_grad()
def test_a_tower_by_its_configuration(tower, way, tmp_path):
    from sagareid.engine.checkpoint import RunCheckpointer

    kind, variant = ("swin", "solider") if tower == "solider" else ("vit", "ics" if tower == "ics" else "")
    content = {"ics": lambda: T.transreid(stem=True), "solider": T.solider, "teacher": T.dino}[tower]()
    path = tmp_path / "w.pth"
    torch.save(content, path)
    pixels = images(TIMM[kind][3])
    if kind == "swin":
        bare = {k.removeprefix("base."): v for k, v in content.items()}
        expected = T.swin_map(pixels, bare, 0.2).mean((2, 3))
    else:
        expected = T.vit_feature(pixels, state_dict_in(content, "w"), prefix="base." if variant else "backbone.")
    if way == "converted":
        convert.convert_file(path, path := tmp_path / "ours.pth")
    if way == "PRETRAIN_PATH":
        model = build_model(timm_config(kind, variant, path))
    else:
        cfg = timm_config(kind, variant)
        model = build_model(cfg)
        RunCheckpointer(model, "", cfg=cfg).start_from(str(path), ["heads.*"])
    torch.testing.assert_close(model.eval().backbone(pixels)[..., 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_variant_wants_its_own_weights(tmp_path):
    torch.save(T.transreid(stem=True), tmp_path / "ics.pth")
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ForeignError, match=r"ics.pth does not fill VisionTransformer: .*wants .*VARIANT ics"):
        build_model(timm_config("vit", "", tmp_path / "ics.pth"))
    with pytest.raises(ValueError, match="in no layout of another project, and MODEL.BACKBONE.TIMM.VARIANT ics"):
        build_model(timm_config("vit", "ics", tmp_path / "other.pth"))
    cfg = timm_config("vit", "ics")
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(FileNotFoundError, match="VARIANT ics has parts that no weights of timm fill"):
        build_model(cfg)
    with pytest.raises(ValueError, match="VARIANT is 'stem'; expected one of ics, solider, or nothing"):
        build_model(timm_config("vit", "stem"))
    cfg = timm_config("vit", "ics")
    cfg.MODEL.BACKBONE.STRIDE_SIZE = [12, 12]
    with pytest.raises(
        ValueError, match=r"cuts patches of 16 side by side: set MODEL.BACKBONE.STRIDE_SIZE to \(16, 16\)"
    ):
        build_model(cfg)


# ---- converting --------------------------------------------------------------------------------------------------

FILES = {
    "TransReID": T.transreid,
    "TransReID in half precision": lambda: {
        k: v.half() if v.is_floating_point() else v for k, v in T.transreid().items()
    },
    "TransReID with JPM": T.transreid_jpm,
    "TransReID-SSL with ICS": lambda: T.transreid(stem=True),
    "PersonViT's teacher": lambda: state_dict_in(T.dino(), "w"),
    "HAP": T.hap_pretraining,
    "an old projection": lambda: {
        k: v.flatten(1) if k == "patch_embed.proj.weight" else v for k, v in T.drawn(T.vit_shapes(8)).items()
    },
    "SOLIDER": T.solider,
    "SOLIDER's teacher": lambda: T.solider("backbone."),
    "torchreid's OSNet": lambda: backbone_state(run_config()) | {"classifier.weight": torch.ones(2, 2)},
    "torchreid's ResNet": lambda: backbone_state(run_config("resnet", "18x", 512))
    | {"classifier.weight": torch.ones(2)},
}


@pytest.mark.parametrize("name", FILES)
def test_converted_and_back_exactly(name, tmp_path):
    state = FILES[name]()
    torch.save({"teacher": state, "student": {}}, tmp_path / "published.pth")
    result, side, count = convert.convert_file(tmp_path / "published.pth", tmp_path / "ours.pth")
    assert side == "ours" and count == len(result.model) and "'teacher' is taken, and not 'student'" in result.notes
    ours = load_state(tmp_path / "ours.pth")
    assert all(key.startswith("backbone.") for key in ours["model"]) and "quick_gelu" not in ours
    again = convert.read_checkpoint(tmp_path / "ours.pth")
    assert convert.config_keys(again) == convert.config_keys(result)
    convert.convert_file(tmp_path / "ours.pth", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype and torch.equal(back[key], value), key


def test_a_converted_tower_starts_a_run(osnet_file, tmp_path):
    path, state = osnet_file
    convert.convert_file(path, tmp_path / "ours.pth")
    model = build_model(run_config())
    hand_over(model, as_named_here(model, load_state(tmp_path / "ours.pth")["model"], "w"), ["heads.*"], "w")
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())


def test_the_command_names_what_it_left_out(osnet_file, tmp_path, run_tool):
    code, out, err = run_tool("convert_checkpoint.py", osnet_file[0], tmp_path / "ours.pth")
    assert code == 0, err
    for line in (
        "osnet (torchreid's OSNet); ",
        "note: left out 2: classifier.weight, classifier.bias (torchreid's classifier)",
        "MODEL.BACKBONE.NAME build_osnet_backbone",
        "MODEL.BACKBONE.DEPTH x0_25",
        """MODEL.NEW_WEIGHTS ["heads.*"]""",
    ):
        assert line in out, line
    code, _, err = run_tool("convert_checkpoint.py", osnet_file[0], tmp_path / "b.pth", "--size", 64, 32)
    assert code and "is fitted to another size while it is loaded" in err and not (tmp_path / "b.pth").exists()
