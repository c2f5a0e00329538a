"""timm's models as backbones: what every family gives, by timm's own values; their weights; heads on them."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from test_interchange import B, batch, config, loss_of
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from sagareid.deploy import export
from sagareid.modeling.backbones.timm import TimmBackbone, build_timm_backbone
from sagareid.modeling.build import build_model
from sagareid.modeling.clip import download, towers
from sagareid.modeling.refinement import RefinementLayer
from sagareid.modeling.timm import weights
from sagareid.modeling.timm.models import TimmModel, timm_dims
from sagareid.structures import CLIPFeatures

SIZE = (64, 32)
VIT = ["depth=3", "embed_dim=48", "num_heads=3"]
STAGES = ["embed_dim=16", "depths=(1,1,2,1)", "num_heads=(1,2,2,4)"]
VITS = (VisionTransformer, Eva, Beit)
# Name -> arguments that make it small.
FAMILIES = {
    "vit_base_patch16_224": VIT,
    "vit_base_patch16_clip_224": VIT,
    "vit_base_patch14_dinov2": VIT,
    "vit_base_patch14_reg4_dinov2": VIT,
    "vit_base_patch16_dinov3": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "vit_medium_patch16_reg4_gap_256": VIT,
    "eva02_tiny_patch14_224": VIT,
    "beit_base_patch16_224": VIT,
    "deit_base_distilled_patch16_224": VIT,
    "vit_relpos_small_patch16_224": VIT,
    "naflexvit_base_patch16_gap": VIT,
    "hiera_tiny_224": ["embed_dim=16", "num_heads=1", "stages=(1,1,2,1)"],
    "swin_tiny_patch4_window7_224": STAGES,
    "swinv2_tiny_window8_256": STAGES,
    "davit_tiny": ["embed_dims=(16,32,32,64)", "num_heads=(1,2,2,4)", "depths=(1,1,1,1)"],
    "convnext_atto": ["depths=(1,1,2,1)", "dims=(8,16,32,64)"],
    "test_efficientnet": [],
    "test_resnet": [],
    "xcit_nano_12_p16_224": ["depth=2"],
}


def options(name: str, *opts, layers=(99,), output="tokens") -> list:
    """Keys of a small tower; `args` of a family that shrinks it. FEAT_DIM is what it gives."""
    args = FAMILIES.get(name, VIT)
    dims = timm_dims(TimmModel(name, tuple(args), SIZE))
    layer = min(max(layers), len(dims.widths)) - 1
    width = dims.pooled if output == "cls" else dims.widths[layer] * (len(layers) if output == "map" else 1)
    patch = dims.patch_size or 16
    return [
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.TIMM.NAME", name),
        *("MODEL.BACKBONE.TIMM.ARGS", args, "MODEL.BACKBONE.FEAT_DIM", width, "MODEL.BACKBONE.OUTPUT", output),
        *("MODEL.BACKBONE.PRETRAIN", False, "MODEL.BACKBONE.STRIDE_SIZE", (patch, patch)),
        *("MODEL.CLIP.TOKEN_LAYERS", list(layers), "INPUT.SIZE_TRAIN", list(SIZE), "INPUT.SIZE_TEST", list(SIZE)),
        *opts,
    ]


def tower(name: str, *opts, **keywords) -> TimmBackbone:
    torch.manual_seed(0)
    return build_timm_backbone(config(*options(name, *opts, **keywords))).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


# ---- what a family gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_tokens_map_and_what_it_pools(name, images):
    backbone = tower(name)
    model, (h, w) = backbone.model, backbone.grid
    with torch.no_grad():
        given = backbone(images)
        final = model.forward_features(images)
        pooled = model.forward_head(final, pre_logits=True)
        backbone.output = "map"
        as_map = backbone(images)
        backbone.output = "cls"
        as_cls = backbone(images)
    assert isinstance(given, CLIPFeatures) and given.grid == (h, w) and given.proj is None
    width = backbone.dims.widths[-1]
    assert given.patches.shape == (2, h * w, width) and given.cls.shape == (2, backbone.dims.pooled)
    torch.testing.assert_close(given.cls, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_cls, given.cls[..., None, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_map, given.patches.transpose(1, 2).unflatten(2, (h, w)), rtol=1e-5, atol=1e-5)
    if isinstance(model, VITS):  # tokens are in front of its norm
        assert (given.layer_cls is not None) == (model.cls_token is not None)
        torch.testing.assert_close(model.norm(given.patches), final[:, -h * w :], rtol=1e-4, atol=1e-4)
        if given.layer_cls is not None:
            torch.testing.assert_close(model.norm(given.layer_cls[:, 0]), final[:, 0], rtol=1e-4, atol=1e-4)


READ = "vit_base_patch14_dinov2 vit_base_patch16_siglip_224 eva02_tiny_patch14_224 hiera_tiny_224 convnext_atto".split()


@pytest.mark.parametrize("name", READ)
def test_what_no_output_reads_is_found(name, images):
    backbone = tower(name, layers=(2,))
    given = backbone(images)
    names = dict(backbone.model.named_parameters())
    for outputs in ({"patches"}, {"cls"}, {"patches", "cls"}):
        read = sum(getattr(given, output).sum() for output in outputs)
        gradients = torch.autograd.grad(read, list(names.values()), retain_graph=True, allow_unused=True)
        expected = {id(p) for p, gradient in zip(names.values(), gradients) if gradient is None}
        assert {id(p) for p in backbone.unread(outputs)} == expected, outputs
    assert len(backbone.unread(())) == len(names) and backbone.unread({"patches"})


def test_two_layers_of_a_vit(images):
    backbone = tower("vit_base_patch14_reg4_dinov2", layers=(1, 3))
    with torch.no_grad():
        given = backbone(images)
        backbone.output = "map"
        both = backbone(images)
        one = tower("vit_base_patch14_reg4_dinov2", layers=(1,))
        one.load_state_dict(backbone.state_dict())
        first = one(images)
    n = given.grid[0] * given.grid[1]
    assert given.num_layers == 2 and given.patches.shape[1] == 2 * n and given.layer_cls.shape[1] == 2
    torch.testing.assert_close(given.patches[:, :n], first.patches)
    torch.testing.assert_close(given.layer_cls[:, :1], first.layer_cls)
    assert both.shape == (2, 96, *given.grid)


# ---- sizes and strides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_base_patch16_dinov3", "beit_base_patch16_224"])
def test_patches_overlap_with_a_stride(name, images):
    backbone = tower(name, "MODEL.BACKBONE.STRIDE_SIZE", (8, 8))
    with torch.no_grad():
        given = backbone(images)
        rows = backbone.model.patch_embed(images).reshape(2, 21, 48)
        cut = backbone.model.patch_embed.proj(images[:, :, 8:24, 16:32])[..., 0, 0]  # row 1, column 2
    assert backbone.grid == given.grid == (7, 3) and given.patches.shape[1] == 21
    torch.testing.assert_close(rows[:, 1 * 3 + 2], cut, rtol=1e-4, atol=1e-5)
    plain = tower(name)
    plain_names = {n for n in plain.state_dict() if "relative_position" not in n}
    assert plain_names == {n for n in backbone.state_dict() if "relative_position" not in n}


@pytest.mark.parametrize("stride", [16, 8])
def test_a_file_fills_the_model_and_its_position_embedding_is_resampled_once(tmp_path, stride):
    torch.manual_seed(3)
    source = timm.create_model("vit_base_patch16_224", depth=3, embed_dim=48, num_heads=3)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    opts = ["MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "vit.pth")]
    backbone = tower("vit_base_patch16_224", *opts, "MODEL.BACKBONE.STRIDE_SIZE", (stride, stride))
    expected = resample_abs_pos_embed(source.pos_embed, new_size=backbone.grid, old_size=(14, 14))
    torch.testing.assert_close(backbone.model.pos_embed, expected)
    own, found = source.state_dict(), backbone.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in found.items() if k != "pos_embed")
    # the file of a model that has this size already: as it is
    torch.save(found, tmp_path / "fitted.pth")
    opts[-1] = str(tmp_path / "fitted.pth")
    again = tower("vit_base_patch16_224", *opts, "MODEL.BACKBONE.STRIDE_SIZE", (stride, stride))
    assert all(torch.equal(found[k], v) for k, v in again.model.state_dict().items())


def test_windows_of_a_swin_keep_their_size(tmp_path, images):
    torch.manual_seed(3)
    arguments = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
    source = timm.create_model("swin_tiny_patch4_window7_224", **arguments)
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    opts = ["MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "swin.pth")]
    backbone = tower("swin_tiny_patch4_window7_224", *opts)
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(backbone.model.state_dict()[key], source.state_dict()[key])
    with pytest.raises(ValueError, match=r"images of \(48, 24\) for a tower built for \(64, 32\)"):
        backbone(images[:, :, :48, :24])


def test_a_convolutional_model_takes_any_size(images):
    backbone = tower("convnext_atto")
    assert backbone.image_size is None and backbone(images[:, :, :, :]).grid == (2, 1)
    assert backbone(torch.randn(1, 3, 96, 64)).grid == (3, 2)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    def load(state, message, *opts):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            tower("vit_base_patch16_224", "MODEL.BACKBONE.PRETRAIN", True, *opts)

    path = ("MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "x.pth"))
    state = timm.create_model("vit_base_patch16_224", depth=3, embed_dim=48, num_heads=3, num_classes=0).state_dict()
    less = {k: v for k, v in state.items() if not k.startswith("blocks.2.attn")}
    load(less, r"4 of (its )?\d+ (weights|tensors) are missing: blocks.2.attn.qkv.weight", *path)
    more = state | {k.replace("blocks.2", "blocks.3"): v for k, v in state.items() if k.startswith("blocks.2")}
    load(more, "it has 12 that the model has not: blocks.3", *path)
    load({"conv1.weight": torch.zeros(3, 3)}, "weights are missing", *path)
    load(state | {"norm.weight": torch.zeros(7)}, "does not fit VisionTransformer.*norm.weight", *path)


def test_a_tag_is_known_and_fetched_or_an_error_says_what_to_do(monkeypatch):
    def fail(message, *opts, name="test_vit"):
        with pytest.raises(FileNotFoundError, match=message):
            tower(name, "MODEL.BACKBONE.PRETRAIN", True, *opts)

    FAMILIES["test_vit"] = []
    monkeypatch.setattr(download, "unreachable", lambda address: f"{address} cannot be reached")
    fail(r"'no_tag' is no file and no tag of test_vit. Set .* a tag of timm \(r160_in1k\)", *PATH("no_tag"))
    fail(
        r"weights test_vit.r160_in1k of timm could not be fetched \(https://hugg.* cannot be reached\). Set", *PATH("")
    )
    monkeypatch.setitem(FAMILIES, "vit_tiny_patch16_224.augreg_in21k", VIT)
    fail("names the tag augreg_in21k, .* is 'other'", *PATH("other"), name="vit_tiny_patch16_224.augreg_in21k")


def PATH(path: str) -> tuple[str, str]:
    return ("MODEL.BACKBONE.PRETRAIN_PATH", path)


def test_a_tag_is_loaded_from_the_hub(monkeypatch, caplog):
    """timm's own way to the hub, whose answer is given here."""
    torch.manual_seed(3)
    source = timm.create_model("vit_base_patch14_dinov2", depth=3, embed_dim=48, num_heads=3, num_classes=0)
    monkeypatch.setattr(download, "unreachable", lambda address: "")
    asked = []
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda place, **options: asked.append(place) or source.state_dict(),
    )
    with caplog.at_level(logging.WARNING):
        backbone = tower("vit_base_patch14_dinov2", "MODEL.BACKBONE.PRETRAIN", True, *PATH("lvd142m"))
    assert asked and torch.equal(backbone.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert backbone.model.pos_embed.shape[1] == 1 + 4 * 2
    assert weights.build(TimmModel("vit_base_patch14_dinov2", tuple(VIT), SIZE), pretrained="") and len(asked) == 2
    assert not [r for r in caplog.records if "PIXEL" in r.message]  # FastReID's default is ImageNet's, too
    with caplog.at_level(logging.WARNING):
        tower("vit_base_patch14_dinov2", "MODEL.BACKBONE.PRETRAIN", True, "MODEL.PIXEL_MEAN", [127.5] * 3)
    assert "timm says that these weights were trained with [123.67" in caplog.text


def test_the_text_tower_has_weights_of_its_own(tmp_path):
    """Behind a backbone that is not CLIP's the image tower's file is no CLIP's."""
    source = timm.create_model("vit_base_patch16_224", depth=3, embed_dim=48, num_heads=3)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    given = ["MODEL.BACKBONE.PRETRAIN", True, *PATH(str(tmp_path / "vit.pth"))]
    model = build_model(config(*options("vit_base_patch16_224", *given)))
    embedded = towers.read_clip_weights("ViT-XS-8-pedestrians", "")
    assert torch.equal(model.heads.text_encoder.ln_final.weight, embedded["ln_final.weight"].float())
    other = ["MODEL.CLIP.NAME", "ViT-B-16-quickgelu"]
    with pytest.raises(FileNotFoundError, match="MODEL.CLIP.PRETRAIN_PATH is empty. Set MODEL.CLIP.PRETRAIN_PATH to"):
        build_model(config(*options("vit_base_patch16_224", *given, *other)))
    with pytest.raises(ValueError, match="both of CLIP's towers come from MODEL.BACKBONE.PRETRAIN_PATH"):
        config("MODEL.CLIP.PRETRAIN_PATH", "openai")


# ---- heads -----------------------------------------------------------------------------------------------------------

HEADS = {
    "SAGAHead": (["CrossEntropyLoss", "TripletLoss", "AnchorDiversityLoss"], {"refined", "cls"}),
    "CLSHead": (["CrossEntropyLoss", "TripletLoss"], {"cls"}),
    "PatchPoolHead": (["CrossEntropyLoss"], {"refined", "cls"}),
}


@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "test_efficientnet"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_train_and_evaluate(name, head):
    losses, layout = HEADS[head]
    cfg = config(*options(name, "MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", losses))
    torch.manual_seed(0)
    model = build_model(cfg)
    terms = loss_of(model.train(), batch(SIZE))
    sum(terms.values()).backward()
    assert all(bool(term.isfinite()) for term in terms.values())
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, idle
    with torch.no_grad():
        out = model.eval()(batch(SIZE))
    assert set(model.feature_layout) == layout == set(type(model.heads).feature_parts(cfg))
    assert out.shape == (B, sum(model.feature_layout.values())) and bool(out.isfinite().all())


@pytest.mark.parametrize("arch", ["SAGABaseline", "Baseline"])
@pytest.mark.parametrize("output", ["map", "cls"])
def test_fastreids_heads_run(arch, output):
    opts = ["MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"]
    name = "convnext_atto" if output == "map" else "vit_base_patch16_siglip_224"
    cfg = config(*options(name, *opts, "MODEL.META_ARCHITECTURE", arch, output=output))
    model = build_model(cfg)
    assert all(bool(term.isfinite()) for term in loss_of(model.train(), batch(SIZE)).values())
    assert model.eval()(batch(SIZE)).shape == (B, cfg.MODEL.BACKBONE.FEAT_DIM)


def test_two_token_layers_are_two_paths():
    cfg = config(*options("vit_base_patch16_dinov3", "MODEL.SAGA.NUM_ANCHORS", 8, layers=(2, 3)))
    model = build_model(cfg)
    assert len(model.heads.refine) == 2
    assert model.eval()(batch(SIZE)).shape == (B, 96)


def test_recomputed_activations_give_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        opts = options(
            "vit_base_patch14_dinov2", "MODEL.BACKBONE.GRAD_CHECKPOINT", recompute, "MODEL.SAGA.DROPOUT", 0.0
        )
        model = build_model(config(*opts)).train()
        sum(loss_of(model, batch(SIZE)).values()).backward()
        gradients.append(model.backbone.model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


# ---- refinement starts from a block ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_base_patch14_dinov2", "vit_base_patch16_siglip_224", "beit_base_patch16_224"])
def test_a_refinement_layer_that_starts_from_a_block_computes_the_block(name):
    """Where the anchors are the patches themselves; layer scales are multiplied in, position biases are left out."""
    backbone = tower(name)
    for parameter in backbone.model.blocks[1].parameters():  # layer scales and biases that count
        torch.nn.init.normal_(parameter, std=0.2)
    block = backbone.model.blocks[1]
    if hasattr(block.attn, "relative_position_bias_table"):
        torch.nn.init.zeros_(block.attn.relative_position_bias_table)
    layer = RefinementLayer(embed_dim=48, num_heads=3, dropout=0.0).eval()
    layer.initialize(backbone.block_weights(2))
    x = torch.randn(2, 9, 48)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, x)[0], block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, said",
    [
        ("vit_base_patch16_dinov3", "start from block 3 of the tower"),
        ("eva02_tiny_patch14_224", "start from block 3 of the tower; their feed-forward keeps its own start"),
        ("swin_tiny_patch4_window7_224", "start from block 3 of the tower"),
        ("hiera_tiny_224", "start from block 3 of the tower"),
        ("swinv2_tiny_window8_256", "keep their own start: block 3 of the tower is no plain attention"),
        ("convnext_atto", "keep their own start: block 3 of the tower is no plain attention"),
    ],
)
def test_what_refinement_starts_from_is_said(name, said, caplog):
    with caplog.at_level(logging.INFO):
        build_model(config(*options(name, "MODEL.SAGA.NUM_HEADS", 1, layers=(3,))))
    assert said in caplog.text


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, opts, message",
    [
        ("convnext_atto", ["MODEL.CLIP.TOKEN_LAYERS", [2, 4]], r"2: 16 wide, grid \(8, 4\), 4: 64 wide, grid \(2, 1\)"),
        ("convnext_atto", ["MODEL.BACKBONE.FEAT_DIM", 48], "gives in layer 4 64 numbers: set it so"),
        ("convnext_atto", ["MODEL.CLIP.TOKEN_LAYERS", [5, 6]], "of a tower of 4 layers some are the same"),
        ("vit_base_patch16_224", ["MODEL.BACKBONE.STRIDE_SIZE", (17, 17)], "one number twice, of 1 to 16"),
        ("vit_base_patch16_224", ["INPUT.SIZE_TEST", [32, 32]], "takes images of one size"),
        ("vit_base_patch16_224", ["MODEL.BACKBONE.TIMM.ARGS", ["depth"]], "expected key=value"),
        ("vit_base_patch16_224", ["MODEL.BACKBONE.TIMM.ARGS", ["deep=3"]], "timm cannot build .*unexpected keyword"),
        ("vit_base_patch16_224", ["MODEL.BACKBONE.TIMM.NAME", "vit_bas_patch16_224"], "vit_base_patch16_224"),
        ("vit_base_patch16_224", ["MODEL.CLIP.SIE_CAMERA", True], "DOMAIN_ANCHORS camera"),
        ("vit_base_patch16_224", ["MODEL.BACKBONE.TIMM.ARGS", [*VIT, "global_pool=''"]], "pools nothing for itself"),
        (
            "vit_base_patch16_224",
            ["MODEL.HEADS.NAME", "CLSHead", "MODEL.HEADS.TRAIN_PROJ", True],
            "CLSHead with MODEL.HEADS.TRAIN_PROJ reads CLIP's class token and projection: MODEL.BACKBONE",
        ),
        (
            "vit_base_patch16_224",
            ["MODEL.HEADS.NAME", "PromptHead"],
            "PromptHead reads CLIP's class token and projection",
        ),
        ("vit_base_patch16_224", ["MODEL.SAGA.DOMAIN_ANCHORS", "clip"], "DOMAIN_ANCHORS clip reads CLIP's projection"),
        ("vit_base_patch16_224", ["MODEL.LOSSES.NAME", ["I2TLoss"]], "I2TLoss reads CLIP's projection"),
    ],
)
def test_what_cannot_work_is_said(name, opts, message):
    with pytest.raises(ValueError, match=message):
        config(*options(name, *opts))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_a_tower_is_exported(name, tmp_path):
    """To ONNX, whose file is held against PyTorch for several batches as it is written."""
    cfg = config(*options(name))
    done = export.export(cfg, build_model(cfg).eval(), tmp_path / "model.onnx")
    assert done.bytes > 0 and (tmp_path / "model.onnx").is_file()
    if name != "convnext_atto":
        with pytest.raises(ValueError, match=r"size \[96, 32\]: .* is made for \[64, 32\]"):
            export.at_size(cfg, build_model(cfg), [96, 32])
