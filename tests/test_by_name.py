"""Models by name: those that ship, those of a hub (huggingface_hub's own client against a small server), publishing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, running_hub
from safetensors.torch import load_file, save_file

import sagareid
from sagareid import Extractor
from sagareid.deploy import hub as hubs
from sagareid.deploy import names
from sagareid.deploy.load import checkpoint_file, load_model
from sagareid.deploy.visibility import Readout
from sagareid.reports.publish import push, save_pretrained

DRAWN = "drawn-xs"


def crops(count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 96, 48, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def drawn() -> Extractor:
    return Extractor.from_pretrained(DRAWN, device="cpu")


def _answers_at(monkeypatch, url: str) -> None:
    """What HF_ENDPOINT does where it is set before the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running hub, asked by the real client, with an empty cache and no account."""
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with running_hub() as running:
        _answers_at(monkeypatch, running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS, which the server has
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield running


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---- what ships ------------------------------------------------------------------------------------------------------


def test_what_ships_embeds_images_from_any_folder_by_the_example(repo, tmp_path):
    """examples/first_features.py, in a process of its own; asking for the names imports no torch."""
    from PIL import Image

    for i, crop in enumerate(crops(2)):
        Image.fromarray(crop).save(tmp_path / f"{i}.png")
    code = (
        "import runpy, sys, sagareid\n"
        "assert 'drawn-xs' in sagareid.list_models() and 'torch' not in sys.modules\n"
        "script, *sys.argv[1:] = sys.argv[1:]\n"
        "runpy.run_path(script)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sagareid.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(repo / "examples" / "first_features.py"), "0.png", "1.png"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor([[1.0000, "), done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_what_ships_is_small_and_says_how_it_was_made_and_what_it_is_not_for():
    folder = names.SHIPPED / DRAWN
    assert sagareid.list_models() == [DRAWN]
    assert sum(len(content) for content in files_of(folder).values()) < 4 * 2**20
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "sagareid" and head["license"] == "apache-2.0"
    assert "on photographs its similarities mean nothing" in card and "tools/publish.py" in card
    assert f'Extractor.from_pretrained("{DRAWN}")' in card
    assert "behind another person" in card and "TPR at FPR 0.01" in card  # the study, the calibration
    stored = load_file(folder / "model.safetensors")
    assert stored["backbone.visual.conv1.weight"].dtype == torch.float16
    assert not [name for name in stored if "text_encoder" in name]
    # what the card says of storing it as float16
    rows = [line.split("|")[1:-1] for line in card.splitlines() if line.startswith("| difference")]
    assert rows and all(abs(float(cell)) < 0.05 for cell in rows[0][1:])


def test_its_metrics_are_those_of_its_card(tmp_path_factory):
    """The head of the card and its table say the same."""
    card = (names.SHIPPED / DRAWN / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    values = {m["type"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    [row] = [line for line in card.splitlines() if line.startswith("| SyntheticPedestrians |")]
    assert [float(cell) for cell in row.split("|")[2:-1]] == [
        pytest.approx(values[name], abs=0.051) for name in ("Rank-1", "Rank-5", "Rank-10", "mAP", "mINP")
    ]
    assert values["mAP"] > 60


def test_create_model_gives_the_extractors_features_and_can_train(drawn):
    model = sagareid.create_model(DRAWN, device="cpu")
    pixels = torch.from_numpy(np.stack(crops())).permute(0, 3, 1, 2).float()
    features = model(pixels)
    assert features.shape == (3, model.width) and model.size == (96, 48)
    assert torch.allclose(features, drawn(crops()), atol=1e-5)
    features.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_its_threshold_is_of_it(drawn):
    from sagareid.deploy.threshold import Threshold

    threshold = Threshold.read(names.SHIPPED / DRAWN / "calibration.json")
    threshold.check_model(drawn.checkpoint_sha256, drawn.feature, DRAWN)
    with pytest.raises(ValueError, match="a threshold means nothing for another model"):
        threshold.check_model("0" * 64, drawn.feature, DRAWN)


def test_a_path_goes_before_a_name_and_what_is_neither_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names.is_name(DRAWN) and checkpoint_file(DRAWN).parent == names.SHIPPED / DRAWN
    with pytest.raises(FileNotFoundError, match="no checkpoint at drawn-xl; .* Did you mean drawn-xs?"):
        load_model("drawn-xl")
    with pytest.raises(FileNotFoundError, match="no checkpoint at an empty name"):
        load_model("")
    with pytest.raises(FileNotFoundError, match="For a model of the hub write hf-hub:org/model"):
        load_model("org/model")
    shutil.copytree(names.SHIPPED / DRAWN, DRAWN)
    assert not names.is_name(DRAWN) and checkpoint_file(DRAWN) == Path(DRAWN, "model.safetensors")


def test_tools_take_a_name_and_write_nothing_beside_it(run_tool, tmp_path):
    before = files_of(names.SHIPPED / DRAWN)
    for tool, *arguments in (
        ("calibrate.py", DRAWN),
        ("visualize.py", DRAWN),
        ("publish.py", DRAWN, "--license", "mit"),
        ("fit_visibility.py", DRAWN),
    ):
        code, _, error = run_tool(tool, *arguments)
        assert code == 1 and "is a model by name" in error, error
    from PIL import Image

    (tmp_path / "crops").mkdir()
    for i, crop in enumerate(crops()):
        Image.fromarray(crop).save(tmp_path / "crops" / f"{i}.png")
    code, out, error = run_tool("extract.py", tmp_path / "crops", "--checkpoint", DRAWN, "-o", tmp_path / "f.npz")
    assert code == 0 and "3 of 3 images" in out, error
    assert before == files_of(names.SHIPPED / DRAWN)


# ---- a hub -----------------------------------------------------------------------------------------------------------


def test_a_model_of_a_hub_is_fetched_once_and_then_used_without_a_network(hub, drawn):
    content = files_of(names.SHIPPED / DRAWN)
    commit = hub.commit("people/drawn", content)
    fetched = Extractor.from_pretrained("hf-hub:people/drawn", device="cpu")
    assert torch.equal(fetched(crops()), drawn(crops()))
    assert fetched.checkpoint_sha256 == drawn.checkpoint_sha256
    assert checkpoint_file("hf-hub:people/drawn").with_name("calibration.json").is_file()  # came along
    hub.requests.clear()
    hub.commit("people/drawn", {"README.md": b"newer"})
    again = Extractor.from_pretrained("hf-hub:people/drawn", device="cpu")
    assert not hub.requests and again.checkpoint_sha256 == fetched.checkpoint_sha256
    # a revision by its commit is the same files
    assert checkpoint_file(f"hf-hub:people/drawn@{commit}").read_bytes() == content["model.safetensors"]


def test_all_files_are_of_one_commit(hub, monkeypatch):
    """A push between two requests changes nothing."""
    import huggingface_hub

    content = files_of(names.SHIPPED / DRAWN)
    hub.commit("people/drawn", content)
    original = huggingface_hub.hf_hub_download

    def with_a_push(*args, **kwargs):
        found = original(*args, **kwargs)
        hub.commit("people/drawn", {"model.safetensors": b"newer weights"})
        return found

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", with_a_push)
    assert checkpoint_file("hf-hub:people/drawn").read_bytes() == content["model.safetensors"]


@pytest.mark.parametrize("reason", ["offline mode", "no answer"])
def test_without_a_network_and_not_cached_is_one_error_within_seconds(hub, monkeypatch, reason):
    from huggingface_hub import constants

    if reason == "offline mode":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        _answers_at(monkeypatch, "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"hf-hub:people/drawn cannot be fetched: .*It is not in the cache"):
        load_model("hf-hub:people/drawn")
    assert time.monotonic() - begun < 30, "bounded"


def test_what_a_hub_has_not_is_told(hub):
    with pytest.raises(FileNotFoundError, match="has no model people/nobody, or does not show it"):
        load_model("hf-hub:people/nobody")
    hub.commit("people/other", {"config.yaml": b"MODEL: {}\n"})
    with pytest.raises(ValueError, match="hf-hub:people/other is no model of this package: expected model.safetensors"):
        load_model("hf-hub:people/other")
    with pytest.raises(FileNotFoundError, match="no such revision"):
        load_model("hf-hub:people/other@v2")
    for wrong in ("hf-hub:people", "hf-hub:a/b/c", "hf-hub:../../etc", "hf-hub:a/b@"):
        with pytest.raises(ValueError, match="is no name of a model; expected hf-hub:ORG/MODEL"):
            load_model(wrong)


def test_pushed_by_the_tool_and_loaded_by_name(hub, run_tool, monkeypatch, drawn):
    folder = names.SHIPPED / DRAWN
    code, _, error = run_tool("publish.py", folder, "--push", "people/mine")
    assert code == 1 and "refused hf-hub:people/mine" in error and "hf auth login" in error, error
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, error = run_tool("publish.py", folder, "--push", "people/mine", "--private")
    assert code == 0 and f"{hub.url}/people/mine/commit/" in out, error
    states = hub.repositories["people/mine"]
    assert states[states["main"]] == files_of(folder) and "people/mine" in hub.private
    assert any(path.endswith("/info/lfs/objects/batch") for _, path in hub.requests)
    assert torch.equal(Extractor.from_pretrained("hf-hub:people/mine", device="cpu")(crops(1)), drawn(crops(1)))
    with pytest.raises(ValueError, match="'mine' is no name of a model of the hub; expected ORG/MODEL"):
        push(folder, "mine")


# ---- nothing that a model brings is run, and no place of it is believed ----------------------------------------------


@pytest.fixture
def foreign(tmp_path) -> Path:
    """The folder of a model that somebody else wrote."""
    return Path(shutil.copytree(names.SHIPPED / DRAWN, tmp_path / "foreign"))


def change(folder: Path, **keys: object) -> None:
    """Set keys of its configuration, with two underscores in place of a dot."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in keys.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_places_of_another_machine_are_not_believed(foreign, tmp_path, drawn):
    there = tmp_path / "there"
    change(foreign, OUTPUT_DIR=str(there), CACHE__DIR=str(there), MODEL__WEIGHTS=str(there), MODEL__DEVICE="cuda:7")
    change(foreign, MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH=str(there), KD__MODEL_CONFIG=["/x"])
    cfg, _ = load_model(foreign, device="cpu")
    assert str(there) not in cfg.dump() and not there.exists() and cfg.KD.MODEL_CONFIG == []
    assert torch.equal(Extractor.from_pretrained(foreign, device="cpu")(crops(1)), drawn(crops(1)))


def test_a_configuration_that_asks_for_files_code_or_unknown_parts_is_refused(foreign, tmp_path):
    change(foreign, MODEL__CLIP__NAME=f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="names files of the machine .*: MODEL.CLIP.NAME 'local-dir:"):
        load_model(foreign)
    change(foreign, MODEL__CLIP__NAME="ViT-XS-8-pedestrians", MODEL__HEADS__NAME="GateHead")
    with pytest.raises(ValueError, match="needs MODEL.HEADS.NAME 'GateHead', .*: --import MODULE"):
        load_model(foreign)
    change(foreign, MODEL__HEADS__NAME="SAGAHead", MODEL__GATE={"WIDTH": 3})
    with pytest.raises(ValueError, match=r"trained with MODEL.GATE.WIDTH, which are no keys here: .*\(--import\)"):
        load_model(foreign)
    for text in ("!!python/object/apply:os.system ['touch ran']", "MODEL: [", "\udcff"):
        (foreign / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match="the configuration in .*model.safetensors cannot be read"):
            load_model(foreign)
    assert not Path("ran").exists()


def test_weights_without_a_configuration_or_of_another_model_are_refused(foreign):
    (foreign / "config.yaml").rename(foreign / "other.yaml")
    with pytest.raises(ValueError, match="does not hold its configuration"):
        load_model(foreign)
    (foreign / "other.yaml").rename(foreign / "config.yaml")
    state = load_file(foreign / "model.safetensors")
    del state["heads.text_anchors.anchors"]
    save_file(state, foreign / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model; 1 missing: heads.text_anchors.anchors"):
        load_model(foreign)
    (foreign / "model.safetensors").write_bytes(b"\x80\x04" + b"x" * 40)
    with pytest.raises(ValueError, match="is damaged or no weights file"):
        load_model(foreign)


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_a_run_is_published_whole_and_loads_as_the_same_function(tiny_run, tmp_path, run_tool):
    run = Path(shutil.copytree(tiny_run, tmp_path / "logs" / "run"))
    code, _, error = run_tool("publish.py", run)
    assert code == 1 and "no licence" in error and not (run / "published").exists()
    code, _, error = run_tool("publish.py", run, "--license", "cc-by-nc-4.0", "--not-for", "Not for doors.")
    assert code == 0, error
    folder = run / "published"
    assert sorted(files_of(folder)) == ["README.md", "config.yaml", "model.safetensors"]
    ours, theirs = Extractor.from_checkpoint(run, device="cpu"), Extractor.from_pretrained(folder, device="cpu")
    images = torch.rand(2, 3, *ours.size) * 255
    assert torch.equal(ours(images), theirs(images))
    config = (folder / "config.yaml").read_text()
    assert str(tmp_path) not in config and str(tiny_run) not in config
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    result = json.loads((run / "result.json").read_text())["metrics"]
    values = {m["type"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    assert values["mAP"] == round(result["mAP"], 2) and head["license"] == "cc-by-nc-4.0"
    assert "- Not for doors." in card and "(12 people, " in card and "cosine distance" in card
    assert hashlib.sha256((run / "model_final.pth").read_bytes()).hexdigest() in card
    # written already: it can be pushed, not published again
    code, _, error = run_tool("publish.py", folder, "--license", "mit")
    assert code == 2 and "by --push alone" in error
    with pytest.raises(ValueError, match="is what publishing writes"):
        save_pretrained(folder, tmp_path / "again", license="mit")


def test_half_precision_is_measured_and_said(tiny_run, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    study = {"dataset": {"name": "D"}, "results": [], "models": [{"name": "X", "path": str(tmp_path / "else")}]}
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"study.json is a study of .*else, not of"):
        save_pretrained(run, tmp_path / "half", license="mit", study=tmp_path / "study")
    save_pretrained(run, tmp_path / "half", license="mit", half=True, evaluate="SyntheticPedestrians")
    card = (tmp_path / "half" / "README.md").read_text()
    assert "| stored weights" in card and "half hidden" not in card
    ours, theirs = (Extractor.from_checkpoint(p, device="cpu") for p in (run, tmp_path / "half"))
    images = torch.rand(2, 3, *ours.size) * 255
    a, b = ours(images), theirs(images)
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=5e-3)
    with pytest.raises(ValueError, match="no identifier of a hub"):
        save_pretrained(run, tmp_path / "x", license="Apache License")
    with pytest.raises(ValueError, match="say which by --license-link"):
        save_pretrained(run, tmp_path / "x", license="other")
    assert not (tmp_path / "x").exists()


def test_what_stands_beside_a_checkpoint_goes_along_if_it_is_of_it(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    both = {"rank_correlation": 0.61, "auc_less_than_half": 0.93}
    Readout(channels=4).save(run / "visibility.safetensors", {"measured_on": "Somewhere", "crop": {"both": both}})
    calibration = json.loads((names.SHIPPED / DRAWN / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(calibration))  # another model's
    with pytest.raises(ValueError, match="a threshold means nothing for another model"):
        save_pretrained(run, tmp_path / "out", license="mit")
    assert not (tmp_path / "out").exists()
    own = hashlib.sha256((run / "model_final.pth").read_bytes()).hexdigest()
    (run / "calibration.json").write_text(json.dumps(calibration | {"checkpoint_sha256": own}))
    save_pretrained(run, tmp_path / "out", license="mit")
    extractor = Extractor.from_pretrained(tmp_path / "out", device="cpu")
    written = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert written["checkpoint_sha256"] == extractor.checkpoint_sha256 and written["made_with"] == own
    assert written["dataset"]["folder"] == "its author's files" and extractor.readout is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "On Somewhere: rank correlation with the true share 0.61" in card and "TPR at FPR 0.01" in card


def test_a_published_model_can_start_a_training(tmp_path):
    """Its weights file is read by whatever reads checkpoints, with its configuration."""
    from sagareid.weights import load_state

    checkpoint = load_state(names.SHIPPED / DRAWN / "model.safetensors")
    assert yaml.safe_load(checkpoint["config"])["MODEL"]["HEADS"]["NAME"] == "SAGAHead"
    assert hubs.FURTHER == ("visibility.safetensors", "calibration.json")
