"""Pretraining of the embedded CLIP: it learns, resumes exactly, and what ships loads into open_clip's model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sagareid.synthetic import captions, pretrain
from sagareid.synthetic import drawn as synthetic
from sagareid.synthetic.captioned import Vocabulary, all_texts, assemble, draw_people, pixels
from sagareid.synthetic.person import FAMILY_SIZE, generator, get_person
from sagareid.synthetic.pretrain_model import PretrainingModel, create_clip, expand_token_table
from sagareid.synthetic.probe import linear_probe, metrics_table, retrieval
from sagareid.synthetic.shot import VIEWS

ASSETS = Path(pretrain.__file__).resolve().parent.parent / "assets" / "clip"
CONFIG = ASSETS / "ViT-XS-8-pedestrians.json"
WEIGHTS = CONFIG.with_suffix(".safetensors")
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [48, 24], "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "ViT-tiny-of-tests.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def drawn():
    return draw_people(0, "pretrain", 96, (48, 24), 8, workers=1)


@pytest.fixture(scope="module")
def vocabulary(drawn):
    return Vocabulary(all_texts(drawn))


@pytest.fixture(scope="module")
def data(drawn, vocabulary):
    return assemble(drawn, vocabulary)


CFG = pretrain.PretrainConfig(people=96, steps=6, batch=24, workers=1)


def fresh(config, vocabulary) -> PretrainingModel:
    torch.manual_seed(0)
    return PretrainingModel(config, vocabulary, CFG.initial_logit_scale)


def test_steps_change_every_weight(tiny_config, data, vocabulary, tmp_path):
    model = fresh(tiny_config, vocabulary)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert pretrain.train(model, data, CFG, tmp_path) == 6
    same = [k for k, v in model.state_dict().items() if torch.equal(v, before[k])]
    assert not same
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 6 and {"clip", "pooled", "part", "region", "images_per_s"} <= log[-1].keys()


@pytest.mark.slow
def test_resumed_is_the_same_as_uninterrupted(tiny_config, data, vocabulary, tmp_path):
    whole = fresh(tiny_config, vocabulary)
    pretrain.train(whole, data, CFG, tmp_path / "whole")
    pretrain.train(fresh(tiny_config, vocabulary), data, CFG, tmp_path / "cut", stop_after=3)
    torch.manual_seed(99)  # a new process starts from other numbers
    resumed = PretrainingModel(tiny_config, vocabulary, CFG.initial_logit_scale)
    pretrain.train(resumed, data, CFG, tmp_path / "cut", resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


def test_resuming_another_run_is_refused(tiny_config, data, vocabulary, tmp_path):
    pretrain.train(fresh(tiny_config, vocabulary), data, CFG, tmp_path, stop_after=1)
    other = dataclasses.replace(CFG, lr=0.1)
    with pytest.raises(ValueError, match="found a run with other lr; expected the same settings"):
        pretrain.train(fresh(tiny_config, vocabulary), data, other, tmp_path, resume=True)


def test_cut_context_gives_open_clips_text_features(tiny_config, data, vocabulary):
    """The compact table, cut to the longest caption, against open_clip's own 77 tokens of the full table."""
    model = fresh(tiny_config, vocabulary).eval()
    texts = ["a photo of a person", captions.REGION_PHRASES[0].phrase]
    reference = create_clip(tiny_config).eval()
    state = {k: v for k, v in model.clip.state_dict().items() if k != "token_embedding.weight"}
    state["token_embedding.trained_ids"], state["token_embedding.trained_rows"] = (
        vocabulary.ids,
        model.clip.token_embedding.weight,
    )
    reference.load_state_dict(expand_token_table(state))
    with torch.no_grad():
        expected = reference.encode_text(open_clip.tokenize(texts), normalize=True)
        torch.testing.assert_close(model.text(vocabulary.encode(texts)), expected)


def test_kept_patches_are_the_ones_compared(tiny_config, vocabulary):
    """Tokens of kept patches carry their own position: dropping none in another order permutes them, nothing more."""
    model = fresh(tiny_config, vocabulary).eval()
    images = torch.randn(2, 3, 48, 24)
    order = torch.randperm(18).repeat(2, 1)
    with torch.no_grad():
        image, tokens = model.image(images)
        permuted_image, permuted = model.image(images, order)
    torch.testing.assert_close(permuted_image, image)
    torch.testing.assert_close(permuted, tokens[:, order[0]])


def test_several_positives_against_a_loop():
    torch.manual_seed(0)
    logits, positive = torch.randn(5, 4), torch.rand(5, 4) < 0.5
    positive[2] = False
    expected = [
        -sum(float(row.log_softmax(0)[j]) for j in range(4) if true[j]) / int(true.sum())
        for row, true in zip(logits, positive)
        if true.any()
    ]
    assert float(pretrain._several_positives(logits, positive)) == pytest.approx(
        sum(expected) / len(expected), rel=1e-5
    )


def test_linear_probe_reads_what_is_linear_and_only_that():
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    labels = ["red" if v > 0 else "blue" for v in x[:, 3]]
    assert linear_probe(x[:300], labels[:300], x[300:], labels[300:]) > 90
    assert linear_probe(x[:300, :3], labels[:300], x[300:, :3], labels[300:]) < 70


def test_unknown_words_are_named(vocabulary):
    with pytest.raises(ValueError, match="zebra"):
        vocabulary.encode(["a zebra"])


def test_pretraining_people_are_in_no_data_set():
    populations = {i.population for i in synthetic.items(synthetic.Spec())} | {"distractor"}
    assert not populations & {"pretrain", "pretrain unseen", "pretrain siblings", "pretrain probe"}
    known = {get_person(0, p, i) for p in populations for i in range(300)}
    assert not known & {get_person(0, "pretrain", i * FAMILY_SIZE) for i in range(1000)}


@pytest.mark.slow
def test_whole_run_writes_weights_and_metrics(tiny_config, tmp_path):
    cfg = pretrain.PretrainConfig(people=320, steps=2, batch=16, eval_people=20, probe_people=60, workers=1)
    metrics = pretrain.pretrain(tiny_config, tmp_path, cfg, command="test")
    assert json.loads((tmp_path / "ViT-tiny-of-tests.metrics.json").read_text())["retrieval"] == metrics["retrieval"]
    model = create_clip(tiny_config)
    model.load_state_dict(expand_token_table(load_file(tmp_path / "ViT-tiny-of-tests.safetensors")), strict=True)
    table = metrics_table(metrics)
    assert "upper_pattern" in table and "untrained" in table


def test_shipped_weights_fit_open_clips_model():
    state = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 5e6
    assert {v.dtype for k, v in state.items() if k != "token_embedding.trained_ids"} == {torch.float16}
    model = create_clip(CONFIG)
    model.load_state_dict(expand_token_table(state), strict=True)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"].startswith("python tools/pretrain_clip.py") and metadata["image_mean"] == "0.5 0.5 0.5"
    assert "/" not in metadata["command"].split("pretrain_clip.py", 1)[1], "no machine's paths"


def test_shipped_weights_know_every_word_of_captions_and_anchors():
    ids = set(load_file(WEIGHTS)["token_embedding.trained_ids"].tolist())
    tokenizer = open_clip.SimpleTokenizer()
    texts = [r.phrase for r in captions.REGION_PHRASES] + ["person."]
    for index in range(300):
        person, rng = get_person(3, "words", index), generator(3, "words", index)
        shows = {"upper", "lower", "shoes", "skin"}
        shows |= {place for place in ("headwear", "bag") if getattr(person, place) != "none"}
        shows |= {"scarf"} if person.scarf_colour != "none" else set()
        shows |= {"hair"} if person.hair_style != "bald" else set()
        texts.append(captions.caption(person, VIEWS[index % 3], shows, rng))
    assert not {i for text in texts for i in tokenizer.encode(text)} - ids


@pytest.mark.slow
def test_shipped_weights_retrieve_captions_as_their_metrics_say():
    metrics = json.loads(CONFIG.with_suffix(".metrics.json").read_text())
    assert metrics["retrieval"]["people"] == 1000 and metrics["retrieval"]["R@1"] >= 25
    model = create_clip(CONFIG).eval()
    model.load_state_dict(expand_token_table(load_file(WEIGHTS)))
    drawn = draw_people(0, "pretrain unseen", 200, (96, 48), 8, workers=1)
    with torch.no_grad():
        image = model.encode_image(pixels(np.stack([person.image for person in drawn])), normalize=True)
        text = model.encode_text(open_clip.tokenize([person.caption for person in drawn]), normalize=True)
    # Fewer people to confuse a picture with, so no lower than the recall among 1,000.
    assert retrieval(image, text)["R@1"] >= metrics["retrieval"]["R@1"]
