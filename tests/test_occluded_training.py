"""Occluders in training images (INPUT.OCCLUDE), the masks beside them, the losses that read these, and the gate by
which a head can tell who stands in front."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_interchange import SIZE, TARGETS, batch, config, loss_of
from torchvision import transforms as T

from sagareid import get_cfg
from sagareid.config_checks import check_config
from sagareid.data import loaders, occlude, occluders, seeding, transforms
from sagareid.data.images import read_image
from sagareid.data.people import silhouette
from sagareid.engine import feature_cache
from sagareid.engine.trainer import SAGATrainer
from sagareid.modeling import losses
from sagareid.structures import as_batch, named_outputs, patch_shares

from fastreid.modeling.meta_arch import build_model


@pytest.fixture
def cfg(repo, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg = get_cfg()
    cfg.merge_from_file(str(repo / "configs/SAGA/quickstart.yml"))
    keys = "SOLVER.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 0 INPUT.OCCLUDE.ENABLED True INPUT.OCCLUDE.PROB 1.0"
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "INPUT.OCCLUDE.KEEP_WHOLE", True, *keys.split()])
    return cfg


def sample(cfg, index: int = 0, seed: int = 5) -> dict:
    return seeding.SeededSamples(loaders.training_set(cfg))[seeding.SampleKey(index, seed)]


# ---- images and masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_follows_the_image(seed):
    """White images, grey occluders and black padding: the mask is where the image is grey."""
    occluder = occlude.TrainingOccluder(
        prob=1, kinds=["rectangle", "band"], level=(0.3, 0.3), fills=["grey"], people=None, masks={}, keep_whole=False
    )
    steps = [T.Resize((96, 48), interpolation=3), T.Pad(6), T.RandomCrop((96, 48)), T.RandomHorizontalFlip(0.5)]
    transform = T.Compose([*steps, transforms.host_transforms(get_cfg(), is_train=False).transforms[-1]])
    white = Image.new("RGB", (60, 130), (255, 255, 255))
    with seeding.seeded(seed):
        image, hidden, whole = occluder.sample(white, "a.jpg", "a", transform)
    grey = (image[0] > 110) & (image[0] < 150)
    sure = (hidden < 0.02) | (hidden > 0.98)
    assert whole is None and image.shape[1:] == hidden.shape and float(sure.float().mean()) > 0.9
    assert torch.equal((hidden > 0.5)[sure], grey[sure])
    assert 0.2 < float(hidden.mean()) < 0.4


def test_what_random_erasing_takes_is_hidden_too(cfg):
    cfg.INPUT.OCCLUDE.PROB, cfg.INPUT.REA.PROB = 0.0, 1.0
    found = sample(cfg)
    changed = (found["images"] - found["whole_images"]).abs().amax(0) > 1e-2
    assert 0.02 < float(found["hidden"].mean()) < 0.34
    assert torch.equal(found["hidden"] > 0, changed), "the whole image lacks the erased box alone"


def test_the_whole_image_is_that_of_training_without_occluders(cfg):
    """An occluder changes nothing else of a sample: the same flip, the same crop."""
    cfg.INPUT.REA.ENABLED = False
    found = [sample(cfg, 3, seed) for seed in range(6)]
    cfg.INPUT.OCCLUDE.ENABLED = cfg.INPUT.OCCLUDE.KEEP_WHOLE = False
    plain = [sample(cfg, 3, seed) for seed in range(6)]
    assert "hidden" not in plain[0]
    for with_it, without in zip(found, plain):
        assert torch.equal(with_it["whole_images"], without["images"])
        shown = with_it["hidden"] == 0
        assert 0 < int(shown.sum()) < shown.numel()
        same = (with_it["images"] - without["images"]).abs().amax(0) < 1
        assert float(same[shown].float().mean()) > 0.97, "a bicubic resize reaches a pixel or two beyond the mask"
        assert not bool(same[with_it["hidden"] > 0.9].all())


def test_a_batch_is_the_same_for_any_number_of_workers(cfg):
    def first(workers: int) -> dict:
        cfg.DATALOADER.NUM_WORKERS = workers
        return next(iter(itertools.islice(loaders.build_train_loader(cfg), 1)))

    here, there = first(0), first(1)
    for name in ("images", "hidden", "whole_images"):
        assert torch.equal(here[name], there[name]), name
    assert here["hidden"].shape == (16, 96, 48) and bool((here["hidden"].amax((1, 2)) > 0.5).all())


@pytest.mark.parametrize("kind", occlude.KINDS)
def test_the_drawn_share_of_the_person_is_hidden_by_somebody_else(kind, cfg, monkeypatch):
    cfg.INPUT.OCCLUDE.KINDS, cfg.INPUT.OCCLUDE.LEVEL = [kind], [0.3, 0.5]
    data = loaders.training_set(cfg)
    used = []
    read = occlude.People.path
    monkeypatch.setattr(
        occlude.People, "path", lambda self, rng, besides="": used.append(path := read(self, rng, besides)) or path
    )
    for index in range(0, 40, 4):
        path, pid, _ = data.img_items[index]
        image = read_image(path)
        used.clear()
        done = data.training_occluder(image, path, data._names[pid], np.random.default_rng(index))
        person = silhouette(path, data.training_occluder.mask_path, image).visible
        assert not person.all(), "the drawn people have masks"
        assert 0.25 < float(done.occluder[person].mean()) < 0.55
        assert bool(used) == (kind in ("object", "person"))
        assert not {p for p in used if [q for f, q, _ in data.img_items if f == p] == [pid]}, "never the same person"


def test_the_share_of_images(cfg):
    cfg.INPUT.OCCLUDE.PROB = 0.25
    data = loaders.training_set(cfg)
    path = data.img_items[0][0]
    image, rng = read_image(path), np.random.default_rng(0)
    hidden = [data.training_occluder(image, path, "x", rng).occluder.any() for _ in range(200)]
    assert 30 <= sum(hidden) <= 70


def test_people_of_another_set(cfg):
    cfg.INPUT.OCCLUDE.PEOPLE = "SyntheticPedestriansVal"
    own = {item[0] for item in loaders.training_set(cfg).img_items}
    assert not own & set(loaders.training_set(cfg).training_occluder.people.paths)


@pytest.mark.parametrize(
    "opts, problem",
    [
        (["INPUT.OCCLUDE.KINDS", ["dog"]], "INPUT.OCCLUDE.KINDS is 'dog'; valid: band, object, person, rectangle"),
        (["INPUT.OCCLUDE.FILLS", []], "INPUT.OCCLUDE.FILLS is empty"),
        (["INPUT.OCCLUDE.LEVEL", [0.5, 0.9]], "INPUT.OCCLUDE.LEVEL is [0.5, 0.9]; expected a list of 2 numbers"),
        (["INPUT.OCCLUDE.PROB", 1.5], "INPUT.OCCLUDE.PROB is 1.5; expected 0 to 1"),
        (["INPUT.OCCLUDE.PEOPLE", "SyntheticPedestrians"], "which is evaluated"),
        (["INPUT.AUGMIX.ENABLED", True], "cannot follow INPUT.AUGMIX"),
        (["INPUT.OCCLUDE.ENABLED", False], "set INPUT.OCCLUDE.ENABLED True"),
        (["MODEL.LOSSES.NAME", ["WholeFeatureLoss"], "INPUT.OCCLUDE.KEEP_WHOLE", False], "KEEP_WHOLE True"),
        (["MODEL.LOSSES.NAME", ["VisibleTokensLoss"], "CACHE.ENABLED", True], "VisibleTokensLoss trains the backbone"),
        (["MODEL.LOSSES.NAME", ["VisibleTokensLoss"], "MODEL.TRAINABLE", ["heads.*"]], "heads.*']: add backbone.*"),
        (
            ["MODEL.HEADS.NAME", "SAGAHead", "MODEL.HEADS.CONTEXT_BLOCKS", 2],
            "1 block(s) of ViT-XS-8-pedestrians follow",
        ),
        (
            [
                "MODEL.HEADS.NAME",
                "SAGAHead",
                "MODEL.HEADS.CONTEXT_BLOCKS",
                1,
                "CACHE.ENABLED",
                True,
                "CACHE.FIELDS",
                ["patches"],
            ],
            "layer_cls",
        ),
    ],
)
def test_what_cannot_work_is_said(opts, problem, cfg):
    cfg.merge_from_list(opts)
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    assert problem in str(error.value)


def test_the_cache_keeps_masks_and_whole_images(cfg):
    """Row by row what the live samples of the same seed give."""
    keys = "CACHE.ENABLED True CACHE.NUM_VIEWS 2 CACHE.DTYPE float32 CACHE.FIELDS ['patches','cls'] MODEL.WEIGHTS ''"
    cfg.merge_from_list(["MODEL.TRAINABLE", ["heads.*"], *keys.split(), "SOLVER.AMP.ENABLED", False])
    cfg.MODEL.HEADS.NUM_CLASSES, cfg.INPUT.OCCLUDE.PROB = 12, 0.5
    dataset = loaders.training_set(cfg)
    dataset.img_items = dataset.img_items[:24]
    model = SAGATrainer.build_model(cfg)
    cached = feature_cache.CachedFeatures(dataset)
    cached.attach(feature_cache.build_feature_cache(cfg, model, dataset))
    assert set(cached.cache.fields) == {"patches", "cls", "hidden", "whole_patches", "whole_cls"}
    found = cached.__getitems__([seeding.SampleKey(i, 1) for i in range(24)])
    live = [seeding.SeededSamples(dataset)[seeding.SampleKey(i, seeding.sample_seed(0, 1, i))] for i in (0, 7)]
    live = {k: torch.stack([s[k] for s in live]) for k in ("images", "hidden", "whole_images")}
    with torch.no_grad():
        seen = model.with_hidden(model.extract(live), live)
        kept = model.with_hidden(model.extract(found), found)
    for name in ("patches", "hidden", "cls"):
        torch.testing.assert_close(getattr(kept, name)[[0, 7]], getattr(seen, name), rtol=1e-4, atol=1e-4)
        if name != "hidden":
            torch.testing.assert_close(
                getattr(kept.whole, name)[[0, 7]], getattr(seen.whole, name), rtol=1e-4, atol=1e-4
            )
    hidden = kept.hidden.amax(1) > 0
    assert 0 < int(hidden.sum()) < 24
    assert torch.equal(kept.whole.patches[~hidden], kept.patches[~hidden]), "nothing hidden, nothing else"


def test_another_mask_is_another_cache(cfg, tmp_path):
    cfg.CACHE.ENABLED = True
    dataset = loaders.training_set(cfg)
    path = dataset.img_items[0][0]
    mask = str(dataset.training_occluder.mask_path(path))
    assert mask in dataset.training_occluder.files([path]) and path not in dataset.training_occluder.files([path])
    before = feature_cache.cache_settings(cfg, dataset)
    cfg.INPUT.OCCLUDE.LEVEL = [0.2, 0.6]
    assert feature_cache.cache_settings(cfg, dataset) != before


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_losses_against_loops():
    torch.manual_seed(0)
    weights, whole_weights, hidden = torch.rand(5, 6).softmax(1), torch.rand(5, 6).softmax(1), torch.rand(5, 6)
    hidden[1], hidden[2, :3] = 0, 1
    features, whole = torch.randn(5, 4), torch.randn(5, 4)
    weight, cosine = [], []
    for i in (0, 2, 3, 4):
        target = [float(whole_weights[i, n] * (1 - hidden[i, n])) for n in range(6)]
        target = [t / sum(target) for t in target]
        weight.append(sum(t * np.log(t / float(weights[i, n])) for n, t in enumerate(target) if t > 0))
        a, b = features[i].numpy(), whole[i].numpy()
        cosine.append(1 - (a @ b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(losses.hidden_weight_loss(weights, whole_weights, hidden)) == pytest.approx(np.mean(weight), rel=1e-4)
    assert float(losses.whole_feature_loss(features, whole, hidden)) == pytest.approx(np.mean(cosine), rel=1e-5)
    assert float(losses.hidden_weight_loss(weights, whole_weights, torch.zeros(5, 6))) == 0


def test_visible_tokens_against_loops():
    """Two token layers of three patches; a hidden patch does not count, nor do a token's scale and mean."""
    torch.manual_seed(0)
    tokens, whole = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    hidden = torch.tensor([[0.0, 0.25, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    per_image = []
    for i in range(3):
        apart, count = 0.0, 0.0
        for n in range(6):
            shows = 1 - float(hidden[i, n % 3])
            apart += shows * (1 - np.corrcoef(tokens[i, n], whole[i, n])[0, 1])
            count += shows
        per_image.append(apart / count if count else 0.0)
    found = float(losses.visible_tokens_loss(tokens, whole, hidden))
    assert found == pytest.approx(np.mean(per_image), rel=1e-4)
    changed = whole.clone()
    changed[0, 2] = changed[0, 5] = 9
    assert float(losses.visible_tokens_loss(3 * tokens + 2, changed, hidden)) == pytest.approx(found, rel=1e-4)


def test_weight_that_goes_to_the_background_is_no_answer():
    """Four patches: an occluder, two of the person, background. The weight belongs where it was."""
    hidden, whole = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    person, background = torch.tensor([[1e-4, 0.5, 0.33, 0.1699]]), torch.tensor([[1e-4, 0.0999, 0.1, 0.8]])
    kept, moved, held = (float(losses.hidden_weight_loss(w, whole, hidden)) for w in (person, background, whole))
    assert kept < 0.01 < held < moved


RANDOM = ["MODEL.BACKBONE.PRETRAIN", False, "INPUT.OCCLUDE.ENABLED", True, "INPUT.OCCLUDE.KEEP_WHOLE", True]


def hidden_batch() -> dict:
    images = batch()
    hidden = torch.zeros(len(TARGETS), *SIZE)
    hidden[:, : SIZE[0] // 2] = 1
    return images | {"hidden": hidden, "whole_images": images["images"].flip(3)}


@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("head", ["SAGAHead", "AttentionPoolHead"])
def test_training_takes_the_weight_off_what_is_hidden(head, gate):
    opts = ["MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", ["HiddenWeightLoss"], *RANDOM]
    opts += ["MODEL.HEADS.CONTEXT_BLOCKS", gate]
    torch.manual_seed(0)
    model = build_model(config(*opts, "MODEL.SAGA.DROPOUT", 0.0, "MODEL.TRAINABLE", ["heads.*"]))
    model.backbone.requires_grad_(False)
    data = hidden_batch()

    def share() -> float:
        with torch.no_grad():
            features = model.with_hidden(model.extract(data), data)
            return float((model.heads.token_weights(features) * features.hidden).sum(1).mean())

    before, optimizer = share(), torch.optim.Adam(model.heads.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss_of(model, data)["loss_hidden_weight"].backward()
        optimizer.step()
    assert before == pytest.approx(0.5, abs=0.1) and share() < 0.75 * before


@pytest.mark.parametrize("head", ["SAGAHead", "CLSHead", "AttentionPoolHead"])
def test_the_teacher_is_the_heads_own_feature_of_the_whole_image(head):
    opts = ["MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", ["WholeFeatureLoss"], *RANDOM]
    torch.manual_seed(0)
    model = build_model(config(*opts, "MODEL.HEADS.EMBEDDING_DIM", 32 if head != "SAGAHead" else 0))
    data = hidden_batch()
    features = model.with_hidden(model.extract(data), data)
    model.train()
    given = model.heads(features, TARGETS)
    teacher = given["whole_features"]()
    assert not teacher.requires_grad and given["features"].requires_grad
    assert all(m.training for m in model.heads.modules()), "evaluation mode is the teacher's alone"
    model.eval()
    with torch.no_grad():
        own = model.heads(features.whole)[:, : teacher.shape[1]]
    torch.testing.assert_close(teacher, own, rtol=1e-4, atol=1e-4)


def test_the_teacher_of_a_tower_is_the_tower_as_the_run_began():
    """It learns nothing, is stored nowhere, and every term compares with it."""
    torch.manual_seed(0)
    opts = ["MODEL.HEADS.NAME", "CLSHead", "MODEL.LOSSES.NAME", ["VisibleTokensLoss", "WholeFeatureLoss"], *RANDOM]
    model, data = build_model(config(*opts)).train(), hidden_batch()
    with torch.no_grad():
        began = model.extract({"images": data["whole_images"]})
    optimizer, found = torch.optim.Adam(model.backbone.parameters(), 1e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        terms = loss_of(model, data)
        assert list(terms) == ["loss_whole_feature", "loss_visible_tokens"]
        sum(terms.values()).backward()
        optimizer.step()
        found.append(terms["loss_visible_tokens"].item())
    assert found[-1] < 0.7 * found[0]
    whole = model.with_hidden(model.extract(data), data).whole
    torch.testing.assert_close(whole.patches, began.patches)
    torch.testing.assert_close(whole.cls, began.cls)
    with torch.no_grad():
        assert not torch.allclose(model.extract({"images": data["whole_images"]}).patches, began.patches, atol=1e-2)
    assert not [name for name in model.state_dict() if "teacher" in name]
    assert {id(p) for p in model.parameters()} == {id(p) for m in model.children() for p in m.parameters()}


def test_a_run_with_a_teacher_goes_on_as_if_nothing_had_been(cfg, tmp_path):
    """The teacher is not in its checkpoints: it is read from where the run started."""
    torch.manual_seed(0)
    cfg.MODEL.HEADS.NUM_CLASSES = 12
    start = SAGATrainer.build_model(cfg)  # other weights than the pretrained ones
    for parameter in start.backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    torch.save({"model": start.state_dict()}, tmp_path / "start.pth")
    keys = {"MODEL.HEADS.NAME": "CLSHead", "MODEL.LOSSES.NAME": ["TripletLoss", "VisibleTokensLoss"], "STAGES": []}
    keys |= {"MODEL.WEIGHTS": str(tmp_path / "start.pth"), "MODEL.NEW_WEIGHTS": ["heads.*"], "TEST.EVAL_PERIOD": 9}
    keys |= {"MODEL.TRAINABLE": ["backbone.*"], "SOLVER.BASE_LR": 0.001, "SOLVER.SCHED": "MultiStepLR"}

    def trained(folder: str, *epochs: int) -> dict:
        for number, last in enumerate(epochs):
            run = cfg.clone()
            run.merge_from_list([x for pair in keys.items() for x in pair])
            run.merge_from_list(["OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_EPOCH", last])
            Path(run.OUTPUT_DIR).mkdir(exist_ok=True)
            trainer = SAGATrainer(run)
            trainer.resume_or_load(resume=number > 0)
            trainer.train()
        return trainer.model.backbone.state_dict()

    once, twice = trained("once", 2), trained("twice", 1, 2)
    assert [name for name, value in once.items() if not torch.equal(value, twice[name])] == []
    assert any(not torch.equal(value, start.backbone.state_dict()[name]) for name, value in once.items())


def test_a_batch_without_masks_is_refused():
    model = build_model(config("MODEL.LOSSES.NAME", ["HiddenWeightLoss"], *RANDOM))
    with pytest.raises(ValueError, match="the batch has no 'hidden': set INPUT.OCCLUDE.ENABLED True"):
        loss_of(model, batch())


def test_patches_count_as_cells_of_an_even_grid():
    pixels = torch.zeros(1, 8, 4)
    pixels[0, :2, :2], pixels[0, 2:4, 0] = 1, 1
    assert patch_shares(pixels, (4, 2))[0].tolist() == [1, 0, 0.5, 0, 0, 0, 0, 0]


# ---- the gate -------------------------------------------------------------------------------------------------------


def gated(head: str, *opts):
    torch.manual_seed(0)
    return build_model(config("MODEL.HEADS.NAME", head, "MODEL.HEADS.CONTEXT_BLOCKS", 1, *RANDOM, *opts))


@pytest.mark.parametrize("head", ["SAGAHead", "AttentionPoolHead"])
def test_a_gate_starts_as_none(head):
    """The same for every patch; its blocks are the tower's next ones."""
    model = gated(head).eval()
    plain = build_model(config("MODEL.HEADS.NAME", head, *RANDOM)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("heads.context.")})
    deeper = build_model(config("MODEL.HEADS.NAME", head, "MODEL.CLIP.TOKEN_LAYERS", [5], *RANDOM)).eval()
    deeper.backbone.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(batch()), plain(batch()), rtol=1e-4, atol=1e-4)
        tokens = model.extract(batch())
        context = model.heads.context.blocks[0](torch.cat([tokens.layer_cls, tokens.patches], dim=1))[:, 1:]
        torch.testing.assert_close(context, deeper.extract(batch()).patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["SAGAHead", "AttentionPoolHead"])
def test_a_gate_sees_all_patches_and_weighs_what_is_pooled(head):
    model = gated(head, "MODEL.SAGA.DROPOUT", 0.0).eval()
    torch.nn.init.normal_(model.heads.context.gate.weight, std=0.3)
    with torch.no_grad():
        tokens = model.extract(batch())
        gate, before = model.heads.context(tokens), model.heads.token_weights(tokens)
        torch.testing.assert_close(before.sum(1), torch.ones(len(before)))
        assert bool(((gate > 0) & (gate < 1)).all()) and float(gate.std()) > 0.1
        trained = model.heads.train()(tokens, TARGETS)["features"]
        evaluated = model.heads.eval()(tokens)[:, : trained.shape[1]]
        torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)
        other = replace(tokens, patches=tokens.patches.clone())
        other.patches[:, 0] = tokens.patches[:, 0].flip(0)
        assert not torch.allclose(model.heads.context(other)[:, -1], gate[:, -1]), "a patch sees the others"
        model.heads.context.gate.bias.fill_(-30)
        model.heads.context.gate.weight.zero_()
        shut = model.heads.token_weights(tokens)
    assert bool(shut.isfinite().all()), "a gate that is shut everywhere divides nothing by zero"
    assert "layer_cls" in model.heads.learns_from


def test_a_gate_needs_weights_to_multiply(cfg, monkeypatch):
    from sagareid.modeling.pooling import MeanPool

    monkeypatch.setattr(MeanPool, "linear", False)
    cfg.merge_from_list(["MODEL.HEADS.NAME", "SAGAHead", "MODEL.HEADS.CONTEXT_BLOCKS", 1, "MODEL.SAGA.POOL", "mean"])
    with pytest.raises(ValueError, match="MODEL.SAGA.POOL mean is no LinearPool"):
        check_config(cfg)


@pytest.mark.parametrize("head", ["SAGAHead", "AttentionPoolHead"])
def test_a_gate_reads_a_float16_cache_under_autocast(head):
    opts = ["MODEL.HEADS.NAME", head, "MODEL.HEADS.CONTEXT_BLOCKS", 1, "MODEL.LOSSES.NAME", ["HiddenWeightLoss"]]
    torch.manual_seed(0)
    model = build_model(config(*opts, *RANDOM))
    data = hidden_batch()
    with torch.no_grad():
        kept = as_batch(model.extract(data))
        whole = named_outputs(model.extract({"images": data["whole_images"]}))
    kept = {
        k: v.half() if torch.is_tensor(v) else v
        for k, v in (kept | {f"whole_{k}": v for k, v in whole.items()}).items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(model, kept | {"targets": TARGETS, "hidden": data["hidden"]})
    assert bool(found["loss_hidden_weight"].isfinite())


def test_masks_without_a_person_hide_a_share_of_the_picture(tmp_path):
    image = Image.new("RGB", (24, 48), (9, 99, 199))
    occluder = occlude.TrainingOccluder(
        prob=1, kinds=["band"], level=(0.4, 0.4), fills=["black"], people=None, masks={}, keep_whole=False
    )
    done = occluder(image, str(tmp_path / "a.png"), "a", np.random.default_rng(0))
    assert done.share == pytest.approx(0.4, abs=1 / 48) and done.occluder.shape == (48, 24)
    assert occluders.VERSION == 1
