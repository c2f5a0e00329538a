"""open_clip's towers that are no ViT of its own, by the values of open_clip's own models; their text towers."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from test_interchange import TARGETS, B, batch, config, loss_of

from sagareid.modeling.backbones.clip import build_clip_vit_backbone
from sagareid.modeling.build import build_model
from sagareid.modeling.clip import towers
from sagareid.modeling.clip.text import PROMPT_LENGTH, template_token_ids

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def timm_clip(name: str, pool: str, proj: str | None, embed_dim: int, **text) -> dict:
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 160}
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT | text, "custom_text": bool(text)}


# A small model of each kind that open_clip has: RN50; SigLIP's image side; EVA02-CLIP; ConvNeXt-CLIP; MobileCLIP.
MODELS = {
    "tiny-rn": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 64},
        "text_cfg": TEXT,
    },
    "tiny-map": timm_clip("test_vit", "map", "none", 64),
    "tiny-token": timm_clip("test_vit", "token", None, 24, no_causal_mask=False),
    "tiny-convnext": timm_clip("test_convnext", "", "linear", 24),
    "tiny-mobile": timm_clip("test_convnext", "avg", None, 24, no_causal_mask=True),
}
WIDTHS = {"tiny-rn": 256}  # of the map; the others have 64


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A CLIP of each kind with random weights, by name: (model, its file)."""
    folder, made = tmp_path_factory.mktemp("clips"), {}
    for name, content in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        open_clip.add_model_config(folder / f"{name}.json")
        towers.clip_dims.cache_clear()
        torch.manual_seed(0)
        model = open_clip.create_model(name).eval()
        for module in model.modules():  # statistics that matter
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 1.5), module.weight.data.fill_(1)
        torch.save(dict(model.state_dict()), folder / f"{name}.pt")
        made[name] = model, folder / f"{name}.pt"
    return made


def options(name: str, path="", size=None, *opts) -> list:
    native = MODELS[name]["vision_cfg"]["image_size"]
    size = size or (native, native)
    return [
        *("MODEL.CLIP.NAME", name, "MODEL.BACKBONE.FEAT_DIM", WIDTHS.get(name, 64), "MODEL.CLIP.TOKEN_LAYERS", [99]),
        *(
            "MODEL.BACKBONE.STRIDE_SIZE",
            (16, 16),
            "MODEL.BACKBONE.LAST_STRIDE",
            2,
            "MODEL.BACKBONE.PRETRAIN",
            bool(path),
        ),
        *("MODEL.BACKBONE.PRETRAIN_PATH", str(path), "INPUT.SIZE_TRAIN", list(size), "INPUT.SIZE_TEST", list(size)),
        *opts,
    ]


@pytest.mark.parametrize("name", MODELS)
def test_an_image_is_what_open_clip_encodes(name, clips):
    reference, path = clips[name]
    backbone = build_clip_vit_backbone(config(*options(name, path))).eval()
    images = torch.randn(2, 3, *[MODELS[name]["vision_cfg"]["image_size"]] * 2)
    with torch.no_grad():
        given = backbone(images)
        expected = reference.encode_image(images)
        layers = reference.visual.forward_intermediates(images, indices=1)["image_intermediates"]
        backbone.output = "map"
        as_map = backbone(images)
        backbone.output = "cls"
        pooled = backbone(images)[..., 0, 0]
    torch.testing.assert_close(given.proj, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(as_map, layers[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.patches.transpose(1, 2).unflatten(2, given.grid), as_map)
    torch.testing.assert_close(pooled, given.cls)
    assert (given.layer_cls is not None) == (name in ("tiny-map", "tiny-token"))


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-token", "tiny-convnext"])
def test_any_size_and_what_no_output_reads(name, clips):
    _, path = clips[name]
    layers = ["MODEL.CLIP.TOKEN_LAYERS", [3]] if name == "tiny-token" else []
    backbone = build_clip_vit_backbone(config(*options(name, path, (96, 64), *layers)))
    given = backbone.eval()(torch.randn(2, 3, 96, 64))
    names = dict(backbone.named_parameters())
    for outputs in ({"patches"}, {"cls"}, {"proj"}):
        read = sum(getattr(given, output).sum() for output in outputs)
        gradients = torch.autograd.grad(read, list(names.values()), retain_graph=True, allow_unused=True)
        expected = {n for n, gradient in zip(names, gradients) if gradient is None}
        found = {id(p) for p in backbone.unread(outputs)}
        assert {n for n, p in names.items() if id(p) in found} == expected, outputs
    assert len(backbone.unread(())) == len(names)


def test_the_last_stride_of_a_resnet_is_finer_with_the_same_weights(clips):
    _, path = clips["tiny-rn"]
    coarse = build_clip_vit_backbone(config(*options("tiny-rn", path, (96, 64))))
    fine = build_clip_vit_backbone(config(*options("tiny-rn", path, (96, 64), "MODEL.BACKBONE.LAST_STRIDE", 1)))
    assert coarse.grid == (3, 2) and fine.grid == (6, 4)
    own, other = coarse.visual.state_dict(), fine.visual.state_dict()
    differing = [k for k in own if own[k].shape != other[k].shape or not torch.equal(own[k], other[k])]
    assert differing == ["attnpool.positional_embedding"] and other[differing[0]].shape == (1 + 24, 256)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_what_open_clip_encodes(name, clips):
    """The template, filled up to the context's length as a tokenizer fills it."""
    reference, path = clips[name]
    state = towers.read_clip_weights(name, str(path))
    encoder = towers.build_text_encoder(name)
    towers.load_text_encoder(encoder, state, name)
    ids = template_token_ids()
    tokens = torch.tensor([ids + [0] * (77 - len(ids))])
    with torch.no_grad():
        found = encoder(towers.token_embedding(state, ids)[None])
        expected = reference.encode_text(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        encoder.positional_embedding = torch.nn.Parameter(encoder.positional_embedding[:PROMPT_LENGTH])
        short = encoder(towers.token_embedding(state, ids)[None])
    # twenty rows are all where the tower is causal, and not where it is not
    assert torch.allclose(short, expected, rtol=1e-4, atol=1e-5) == (name != "tiny-mobile")


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-token", "tiny-mobile"])
@pytest.mark.parametrize("head", ["SAGAHead", "CLSHead", "PromptHead"])
def test_heads_train_and_evaluate(name, head, clips):
    _, path = clips[name]
    losses = {"PromptHead": ["SupConLoss"]}.get(head, ["CrossEntropyLoss", "TripletLoss"])
    opts = ["MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", losses]
    opts += ["MODEL.HEADS.TRAIN_PROJ", head == "CLSHead"]
    model = build_model(config(*options(name, path, (64, 32), *opts)))
    terms = loss_of(model.train(), batch((64, 32)))
    sum(terms.values()).backward()
    assert all(bool(term.isfinite()) for term in terms.values())
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if head != "PromptHead":  # it takes images as constants
        assert not idle, idle
    with torch.no_grad():
        out = model.eval()(batch((64, 32)))
    assert out.shape == (B, sum(model.feature_layout.values())) and {"cls", "proj"} <= set(model.feature_layout)
    assert bool(out.isfinite().all()) and len(TARGETS) == B


# ---- names of open_clip ----------------------------------------------------------------------------------------------

REAL = {
    "RN50": (2048, []),
    "convnext_base_w": (1024, []),
    "EVA02-B-16": (768, []),
    "MobileCLIP-S1": (512, []),
    "PE-Core-B-16": (768, []),
    "ViT-B-16-SigLIP": (768, ["MODEL.SAGA.FREE_ANCHORS", True]),
}


@pytest.mark.parametrize("name", REAL)
def test_models_of_open_clip_are_named(name):
    """Nothing of them is built: shapes are found without values."""
    width, opts = REAL[name]
    size = ["INPUT.SIZE_TRAIN", [256, 128], "INPUT.SIZE_TEST", [256, 128], "MODEL.BACKBONE.STRIDE_SIZE", (16, 16)]
    opts = [*size, "MODEL.CLIP.TOKEN_LAYERS", [12], "MODEL.BACKBONE.FEAT_DIM", width, *opts]
    cfg = config("MODEL.CLIP.NAME", name, *opts)
    assert build_clip_vit_backbone.widths(cfg)["proj"] == towers.clip_dims(name).embed_dim


@pytest.mark.parametrize(
    "name, opts, message",
    [
        ("ViT-B-16-SigLIP", [], r"reads the words of another tokenizer \(timm/ViT-B-16-SigLIP\).*FREE_ANCHORS True"),
        ("roberta-ViT-B-32", [], "is a Hugging Face model of its own"),
        ("coca_ViT-B-32", [], "does not pool by its class token"),
        ("ViT-L-14-CLIPA", [], "does not pool by its class token"),
        ("RN50", ["MODEL.BACKBONE.LAST_STRIDE", 3], "expected 2, as trained, or 1"),
        ("RN50", ["MODEL.BACKBONE.GRAD_CHECKPOINT", True], "recomputes none of RN50"),
        ("RN50", ["MODEL.CLIP.SIE_CAMERA", True], "for RN50 use MODEL.SAGA.DOMAIN_ANCHORS camera"),
        ("RN50", ["MODEL.BACKBONE.FEAT_DIM", 768], "RN50 gives in layer 4 2048 numbers"),
        ("RN50", ["MODEL.HEADS.NAME", "LastBlockHead"], "copies blocks of a ViT of open_clip's"),
    ],
)
def test_what_cannot_be_had_is_said(name, opts, message):
    with pytest.raises(ValueError, match=message):
        config("MODEL.CLIP.NAME", name, "MODEL.CLIP.TOKEN_LAYERS", [9], *opts)


def test_a_file_of_another_kind_is_refused(clips):
    _, path = clips["tiny-token"]
    with pytest.raises(ValueError, match="is no CLIP ResNet file: it lacks visual.conv1.weight"):
        build_clip_vit_backbone(config(*options("tiny-rn", path)))
