"""A checkpoint knows what it is: keys that change its function, keys that cannot, and every loader compares them."""

from __future__ import annotations

import functools

import pytest
import torch

from sagareid import get_cfg
from sagareid.config import flatten, reads_cameras
from sagareid.config_checks import check_config
from sagareid.deploy.load import load_model
from sagareid.engine.checkpoint import RunCheckpointer
from sagareid.modeling import agreement
from sagareid.modeling.build import build_model, hand_over

from fastreid.config import CfgNode

SIZE = [48, 24]
TINY = """
    MODEL.META_ARCHITECTURE SAGABaseline  MODEL.DEVICE cpu  MODEL.BACKBONE.NAME build_clip_vit_backbone
    MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.FEAT_DIM 128  MODEL.BACKBONE.STRIDE_SIZE (8,8)
    MODEL.CLIP.TOKEN_LAYERS [3]  MODEL.HEADS.NUM_CLASSES 3  MODEL.LOSSES.NAME ('CrossEntropyLoss','TripletLoss')
""".split()
TINY += ["INPUT.SIZE_TRAIN", SIZE, "INPUT.SIZE_TEST", SIZE]
HEADS = {
    "SAGAHead": "MODEL.HEADS.NAME SAGAHead  MODEL.SAGA.DOMAIN_ANCHORS clip".split(),
    "CLSHead": "MODEL.HEADS.NAME CLSHead  MODEL.HEADS.EMBEDDING_DIM 16".split(),
    "resnet": """
        MODEL.META_ARCHITECTURE Baseline  MODEL.BACKBONE.NAME build_resnet_backbone  MODEL.BACKBONE.DEPTH 18x
        MODEL.BACKBONE.FEAT_DIM 512  MODEL.HEADS.NAME EmbeddingHead
    """.split(),
    "vit": """
        MODEL.META_ARCHITECTURE Baseline  MODEL.BACKBONE.NAME build_vit_backbone  MODEL.BACKBONE.DEPTH small
        MODEL.BACKBONE.FEAT_DIM 768  MODEL.BACKBONE.STRIDE_SIZE (16,16)  MODEL.HEADS.NAME EmbeddingHead
        MODEL.HEADS.POOL_LAYER Identity
    """.split(),
}


def config(*opts, head: str = "SAGAHead"):
    cfg = get_cfg()
    cfg.merge_from_list([*TINY, *HEADS[head], *opts])
    return cfg


def set_key(cfg, key: str, value) -> None:
    owner = functools.reduce(getattr, key.split(".")[:-1], cfg)
    owner[key.rpartition(".")[2]] = value


@torch.no_grad()
def feature(model) -> torch.Tensor:
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 255
    return model.eval()({"images": images.clone(), "cameras": torch.tensor([1, -1])}).flatten(1)


def saved(folder, cfg, name: str = "m"):
    """A checkpoint of a model with random weights, as a run writes it."""
    torch.manual_seed(0)
    model = build_model(cfg)
    RunCheckpointer(model, str(folder), cfg=cfg).save(name)
    return folder / f"{name}.pth", model


# ---- which keys count -----------------------------------------------------------------------------------------------

# Another value of keys for which "plus one" is none.
OTHER = {
    "MODEL.LOSSES.NAME": ("CrossEntropyLoss",),
    "MODEL.HEADS.CLS_LAYER": "ArcSoftmax",
    "MODEL.BACKBONE.PRETRAIN": True,  # of ours, the weights that ship with the package
    "MODEL.TRAINABLE": ["heads.*"],
    "MODEL.SAGA.PHRASE_CONTEXT": 8,
    "MODEL.PROMPT.NUM_CONTEXT": 6,
    "MODEL.WEIGHTS": "x.pth",
    "MODEL.SAGA.DROPOUT": 0.5,
    "MODEL.SAGA.CLASSIFIER_DROPOUT": 0.5,
}
UNTRIED = ("MODEL.DEVICE", "INPUT.AFFINE.ENABLED")  # another machine's; FastReID's does not run at all


def another(key: str, value):
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.1
    if isinstance(value, int):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*value, "x"]


EXEMPT = [k for k in flatten(get_cfg()) if agreement._matches(k, agreement.TRAINING_ONLY) and k not in UNTRIED]


@pytest.mark.parametrize(
    "head, keys",
    [
        ("SAGAHead", EXEMPT),
        ("CLSHead", EXEMPT),
        ("resnet", [k for k in EXEMPT if k.startswith("MODEL.HEADS.")]),
        ("vit", [k for k in EXEMPT if "DROP" in k and "BACKBONE" in k]),
    ],
    ids=HEADS,
)
def test_what_is_exempt_cannot_change_an_evaluated_feature(head, keys):
    """Each key in turn: the same weights give the same feature, and a transform of the test is the same."""
    from sagareid.data.transforms import build_transforms

    cfg = config(head=head)
    torch.manual_seed(0)
    model = build_model(cfg)
    expected, transform = feature(model), repr(build_transforms(cfg, is_train=False))
    state = {k: v for k, v in model.state_dict().items() if "text_encoder" not in k}
    for key in keys:
        changed = cfg.clone()
        set_key(changed, key, another(key, flatten(cfg)[key]))
        assert repr(build_transforms(changed, is_train=False)) == transform, key
        if key.startswith("INPUT."):
            continue
        other = build_model(changed, text_tower=False)
        own = other.state_dict()
        other.load_state_dict({k: v for k, v in state.items() if k in own and own[k].shape == v.shape}, strict=False)
        assert torch.equal(feature(other), expected), key


def test_every_pattern_of_the_exemptions_is_a_key():
    keys = list(flatten(get_cfg()))
    assert [p for p in agreement.TRAINING_ONLY if not any(agreement._matches(k, [p]) for k in keys)] == []
    assert [p for p in agreement.HEAD if not any(agreement._matches(k, [p]) for k in keys)] == []
    assert set(agreement.COUNTED) <= set(keys)


def test_a_key_that_nobody_thought_of_counts():
    trained, cfg = config(), config()
    for c, value in ((trained, 1), (cfg, 2)):
        c.MODEL.SAGA.NEW_THING = value
        c.INPUT.NEW_THING = value
        c.MODEL.SOMEONES = CfgNode({"KEY": value})
        c.SOLVER.NEW_THING = c.TEST.NEW_THING = value
    assert set(agreement.differing_keys(trained, cfg)) == {
        "MODEL.SAGA.NEW_THING",
        "INPUT.NEW_THING",
        "MODEL.SOMEONES.KEY",
    }


CHANGES = [
    ("MODEL.SAGA.REFINE_LAYERS", 1),
    ("MODEL.SAGA.NUM_HEADS", 4),
    ("MODEL.SAGA.POOL", "mean"),
    ("MODEL.SAGA.NUM_DOMAIN_ANCHORS", 0),
    ("MODEL.SAGA.DOMAIN_ANCHORS", "content"),
    ("MODEL.SAGA.FREE_ANCHORS", True),
    ("MODEL.CLIP.TOKEN_LAYERS", [4]),
    ("MODEL.CLIP.SIE_CAMERA", True),
    ("MODEL.BACKBONE.SIE_COE", 1.0),
    ("MODEL.BACKBONE.OUTPUT", "map"),
    ("MODEL.HEADS.NECK_FEAT", "after"),
    ("MODEL.HEADS.NAME", "PatchPoolHead"),
    ("MODEL.PIXEL_MEAN", [127.5, 127.5, 127.5]),
    ("MODEL.PIXEL_STD", [127.5, 127.5, 127.5]),
    ("INPUT.SIZE_TEST", [24, 48]),
    ("INPUT.SIZE_TRAIN", [24, 48]),
    ("INPUT.INTERPOLATION_TEST", "bilinear"),
    ("INPUT.CROP.ENABLED", True),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("agreement"), config())[0]


@pytest.mark.parametrize("key, value", CHANGES)
def test_a_difference_names_key_values_and_remedy(key, value, checkpoint):
    before = flatten(config())[key]
    with pytest.raises(ValueError) as caught:
        load_model(checkpoint, config(key, value))
    text = str(caught.value)
    assert f"was trained with {key} {before!r}, not {value!r}" in text
    assert f"""MODEL.ACCEPT_DIFFERENCES '["{key}"]'""" in text


def test_the_case_that_went_wrong(checkpoint, caplog):
    """One refinement layer of two used to be evaluated in silence; accepted by name it is, and the log says so."""
    whole = feature(load_model(checkpoint, config())[1])
    with caplog.at_level("WARNING"):
        cfg = config("MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.ACCEPT_DIFFERENCES", ["MODEL.SAGA.REF*"])
        check_config(cfg)
        half = feature(load_model(checkpoint, cfg)[1])
    assert not torch.allclose(whole, half, atol=1e-3)
    assert "accepted by MODEL.ACCEPT_DIFFERENCES: MODEL.SAGA.REFINE_LAYERS 2, not 1" in caplog.text


def test_an_acceptance_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="MODEL.ACCEPT_DIFFERENCES: 'MODEL.SAGA.REFINE_LAYER' matches no key"):
        check_config(config("MODEL.ACCEPT_DIFFERENCES", ["MODEL.SAGA.REFINE_LAYER"]))


def test_batch_norms_that_evaluate_alike_agree():
    trained, cfg = (config("MODEL.BACKBONE.NORM", norm, head="resnet") for norm in ("syncBN", "BN"))
    assert agreement.differing_keys(trained, cfg) == {}
    assert "MODEL.BACKBONE.NORM" in agreement.differing_keys(
        trained, config("MODEL.BACKBONE.NORM", "GN", head="resnet")
    )


# ---- the configuration in a checkpoint ------------------------------------------------------------------------------


def edited(checkpoint, tmp_path, change) -> str:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "edited.pth")
    return tmp_path / "edited.pth"


def test_a_key_that_came_later_is_at_its_default_in_an_old_checkpoint(checkpoint, tmp_path):
    def forget(content):
        content["config"] = "\n".join(line for line in content["config"].splitlines() if "REFINE_LAYERS" not in line)

    path = edited(checkpoint, tmp_path, forget)
    load_model(path)
    with pytest.raises(ValueError, match="REFINE_LAYERS 2, not 1"):
        load_model(path, config("MODEL.SAGA.REFINE_LAYERS", 1))


def test_keys_that_are_not_known_here(checkpoint, tmp_path):
    """Of a model they are an error, since they may have made it; of training they are not."""

    def add(section):
        def change(content):
            content["config"] = content["config"].replace(f"\n{section}:\n", f"\n{section}:\n  MY_KEY: 3\n")

        return change

    load_model(edited(checkpoint, tmp_path, add("SOLVER")))
    with pytest.raises(ValueError, match="was trained with MODEL.MY_KEY, which are no keys here: import the module"):
        load_model(edited(checkpoint, tmp_path, add("MODEL")))


def test_a_configuration_that_is_damaged(checkpoint, tmp_path):
    for text in ("MODEL: [", "just words"):
        with pytest.raises(ValueError, match="the configuration in .*edited.pth cannot be read"):
            load_model(edited(checkpoint, tmp_path, lambda content, t=text: content.update(config=t)))


# ---- a checkpoint without a configuration, as tools/convert_checkpoint.py writes it ---------------------------------


@pytest.fixture
def bare(tmp_path):
    """Make a checkpoint that holds weights alone."""

    def make(*opts, head="SAGAHead", **more):
        cfg = config(*opts, head=head)
        if reads_cameras(cfg):
            cfg.MODEL.CLIP.CAMERAS = ["a", "b"]
        torch.manual_seed(0)
        torch.save({"model": build_model(cfg).state_dict() | more}, tmp_path / "bare.pth")
        return tmp_path / "bare.pth"

    return make


def test_without_a_configuration_one_must_be_given(bare):
    path = bare()
    with pytest.raises(ValueError, match="does not hold its configuration.*train_net.py --eval-only"):
        load_model(path)
    load_model(path, config())


SIE = ["MODEL.CLIP.SIE_CAMERA", True]


@pytest.mark.parametrize(
    "trained, given, message",
    [
        ([], ["MODEL.SAGA.REFINE_LAYERS", 1], r"no place for: heads.refine.0.layers.1.*decided by .*REFINE_LAYERS"),
        ([], ["MODEL.SAGA.NUM_DOMAIN_ANCHORS", 0], r"no place for: heads.domain_anchors.*NUM_DOMAIN_ANCHORS"),
        (SIE, [], r"no place for: backbone.camera_embedding \(decided by MODEL.CLIP.SIE_CAMERA"),
        ([], [*SIE, "MODEL.CLIP.CAMERAS", ["a"]], r"1 missing: backbone.camera_embedding \(decided by"),
    ],
)
def test_weights_that_would_be_dropped_or_made_up(trained, given, message, bare):
    with pytest.raises(ValueError, match=message) as caught:
        load_model(bare(*trained), config(*given))
    assert "NEW_WEIGHTS" not in str(caught.value), "no remedy for an evaluation"


CAMERA_ANCHORS = ["MODEL.SAGA.DOMAIN_ANCHORS", "camera"]
BOTH_CAMERAS = ["MODEL.CLIP.CAMERAS", ["a", "b"]]


@pytest.mark.parametrize("opts", [SIE, CAMERA_ANCHORS])
def test_a_model_of_cameras_needs_their_names(opts, bare):
    """Only a configuration has them: without, the one could not be built, and the mean of no embedding is NaN."""
    path = bare(*opts, *BOTH_CAMERAS)
    with pytest.raises(ValueError, match=r"MODEL.CLIP.CAMERAS is empty, .* MODEL.CLIP.SIE_CAMERA .*Name those that"):
        load_model(path, config(*opts))
    with pytest.raises(ValueError, match=r"another shape: .*, expected \(3, 128\) \(decided by .*MODEL.CLIP.CAMERAS"):
        load_model(path, config(*opts, "MODEL.CLIP.CAMERAS", ["a", "b", "c"]))
    _, model = load_model(path, config(*opts, *BOTH_CAMERAS))
    assert torch.isfinite(feature(model)).all()


@pytest.mark.parametrize("before, now", [(CAMERA_ANCHORS, []), ([], CAMERA_ANCHORS)])
def test_camera_anchors_in_one_of_checkpoint_and_configuration(before, now, tmp_path):
    path, _ = saved(tmp_path, config(*before, *BOTH_CAMERAS))
    kinds = [opts[1] if opts else "clip" for opts in (before, now)]
    with pytest.raises(ValueError, match=f"trained with MODEL.SAGA.DOMAIN_ANCHORS '{kinds[0]}', not '{kinds[1]}'"):
        load_model(path, config(*now))


@torch.no_grad()
@pytest.mark.parametrize("output", ["tokens", "map"])
@pytest.mark.parametrize("opts", [SIE, CAMERA_ANCHORS])
def test_the_camera_reaches_the_head_whatever_the_backbone_gives(opts, output, tmp_path):
    """A map has no place for it. An unknown camera is the mean of all, and so is none at all."""
    torch.manual_seed(0)
    anchors = ["MODEL.SAGA.DOMAIN_ANCHORS", "content"]  # which need no more than patches
    model = build_model(config(*anchors, *opts, *BOTH_CAMERAS, "MODEL.BACKBONE.OUTPUT", output)).eval()
    for name, value in model.named_parameters():  # small at the start
        if "camera" in name:
            value.normal_()
    images = torch.rand(1, 3, *SIZE) * 255

    def of(*cameras):
        batch = {"images": images.expand(max(1, len(cameras)), -1, -1, -1).clone()}
        return model(batch | ({"cameras": torch.tensor(cameras)} if cameras else {})).flatten(1)

    first, second, unknown = of(0, 1, -1)
    assert not torch.allclose(first, second, atol=1e-4) and not torch.allclose(first, unknown, atol=1e-4)
    torch.testing.assert_close(of()[0], unknown)


def test_a_camera_key_that_a_backbone_cannot_read_is_refused():
    cfg = config(*SIE, head="resnet")
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TESTS = "SAGABaseline", ("SyntheticPedestrians",)
    with pytest.raises(ValueError, match="MODEL.CLIP.SIE_CAMERA adds cameras to CLIP's .*, and build_resnet_b"):
        check_config(cfg)


def test_stored_pixel_means_are_believed(bare):
    """As FastReID's older checkpoints hold them."""
    means = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    with pytest.raises(ValueError, match=r"was trained with MODEL.PIXEL_MEAN \[1.0, 2.0, 3.0\], not"):
        load_model(bare(pixel_mean=means), config())
    load_model(bare(pixel_mean=means), config("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]))


# ---- starting from a checkpoint and resuming one --------------------------------------------------------------------


def start(path, cfg, *new):
    cfg.freeze()
    RunCheckpointer(build_model(cfg), "", cfg=cfg).start_from(str(path), new)


def test_what_starts_afresh_may_differ(checkpoint):
    """Another head on the same tower; its images may be resized and cropped otherwise in the evaluation."""
    start(checkpoint, config("MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.CLIP.TOKEN_LAYERS", [4]), "heads.*")
    start(checkpoint, config("MODEL.HEADS.NAME", "PatchPoolHead", "INPUT.INTERPOLATION_TEST", "bilinear"), "heads.*")
    start(checkpoint, config("MODEL.SAGA.NUM_CLASSIFIERS", 2), "heads.classifiers.*")


@pytest.mark.parametrize(
    "opts, new",
    [
        (["MODEL.SAGA.NUM_HEADS", 4], ["heads.classifiers.*"]),
        (["MODEL.CLIP.TOKEN_LAYERS", [4]], []),
        (["MODEL.BACKBONE.SIE_COE", 1.0], ["heads.*"]),
        (["MODEL.PIXEL_MEAN", [127.5, 127.5, 127.5]], ["heads.*"]),
        (["INPUT.SIZE_TRAIN", [24, 48]], ["heads.*"]),
        (["MODEL.HEADS.NAME", "CLSHead"], ["heads.classifier*"]),
    ],
)
def test_what_is_taken_over_must_agree(opts, new, checkpoint):
    with pytest.raises(ValueError, match=f"was trained with {opts[0]} "):
        start(checkpoint, config(*opts, "INPUT.SIZE_TEST", [24, 48] if "INPUT.SIZE_TRAIN" in opts else SIZE), *new)
    start(checkpoint, config(*opts, "MODEL.ACCEPT_DIFFERENCES", [opts[0]]), *new) if "SIE" in opts[0] else None


def test_a_tower_alone_starts_afresh_under_its_head(checkpoint):
    start(checkpoint, config("MODEL.BACKBONE.SIE_COE", 1.0), "backbone.*")
    with pytest.raises(ValueError, match="MODEL.SAGA.NUM_HEADS"):
        start(checkpoint, config("MODEL.SAGA.NUM_HEADS", 4), "backbone.*")


def test_a_convolutional_tower_may_see_other_sizes(tmp_path):
    path, _ = saved(tmp_path, config(head="resnet"))
    start(path, config("INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32], head="resnet"))
    with pytest.raises(ValueError, match="LAST_STRIDE"):
        start(path, config("MODEL.BACKBONE.LAST_STRIDE", 2, head="resnet"))


def test_a_camera_embedding_is_not_dropped_by_the_next_stage(bare):
    path = bare(*SIE)
    with pytest.raises(ValueError, match="no place for: backbone.camera_embedding"):
        start(path, config(), "heads.*")


def test_camera_embeddings_of_a_checkpoint_that_does_not_name_them_are_told(bare, caplog):
    path = bare(*SIE)
    with caplog.at_level("WARNING"):
        start(path, config(*SIE, *BOTH_CAMERAS))
    assert (
        "does not say of which cameras its backbone.camera_embedding are: they are taken for those of a, b"
        in caplog.text
    )


def test_resuming_compares_the_checkpoint_itself(tmp_path):
    """The run's config.yaml is compared before; this holds where that file was lost or edited."""
    path, _ = saved(tmp_path, config())
    for opts, message in ((["MODEL.SAGA.NUM_HEADS", 4], "NUM_HEADS 8, not 4"), ([], None)):
        checkpointer = RunCheckpointer(build_model(config(*opts)), "", cfg=config(*opts))
        if message:
            with pytest.raises(ValueError, match=message):
                checkpointer.resume_from(str(path))
        else:
            checkpointer.resume_from(str(path))


# ---- a file of another kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename, advice",
    [
        (lambda k: f"net.{k}", "They fit with 'net.' taken off"),
        (lambda k: k.removeprefix("backbone."), "a backbone's alone, which MODEL.BACKBONE.PRETRAIN_PATH reads"),
        (lambda k: f"visual.{k}x", "CLIP's own, which MODEL.BACKBONE.PRETRAIN_PATH reads"),
        (lambda k: f"image_encoder.{k}x", "tools/convert_checkpoint.py knows SAGA-ReID's"),
    ],
)
def test_a_file_without_one_fitting_name_gets_no_advice_on_new_weights(rename, advice):
    model = build_model(config(head="resnet"))
    state = {rename(k): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    with pytest.raises(ValueError, match="holds none of the model's .* weights, which are named like") as caught:
        hand_over(model, state, (), "file")
    assert advice in str(caught.value) and "NEW_WEIGHTS" not in str(caught.value)
