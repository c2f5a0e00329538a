"""Keys that are gone: old files, command lines, stored runs and checkpoints that have them are read, and say so."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml
from test_agreement import config, feature, saved

from sagareid import retired
from sagareid.config import flatten, get_cfg
from sagareid.config_merge import read_config
from sagareid.deploy.load import load_model
from sagareid.engine import plans, stages
from sagareid.retired import RETIRED

# For each key: a value that is still read, and one that asks for what is gone (None: there is none).
VALUES = {
    "MODEL.PROMPT.NUM_BLANK": (8, -1),
    "MODEL.PROMPT.MODE": ("identity", "modality"),
    "MODEL.CLIP.TEXT_TOWER": (False, None),
    "MODEL.HEADS.POOL_HEADS": (8, 4),
    "MODEL.LOSSES.SUPCON.SCALE": (1.0, 2.0),
}
EVERY = pytest.mark.parametrize("key", RETIRED)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(retired, "_said", set())


def nested(key: str, value) -> dict:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def lines(caplog, key: str) -> list[str]:
    """What the log says of a key."""
    return [r.getMessage() for r in caplog.records if f"{key}, which {RETIRED[key].became}" in r.getMessage()]


def test_a_retired_key_is_none_today():
    assert not set(RETIRED) & set(flatten(get_cfg())) and set(VALUES) == set(RETIRED)


@EVERY
@pytest.mark.parametrize("where", ["file", "base", "stage", "command line"])
def test_a_configuration_that_has_one_is_read(key, where, tmp_path, caplog):
    (value, _), base, leaf, opts = VALUES[key], {"SOLVER": {"MAX_EPOCH": 3}}, {"SOLVER": {"BASE_LR": 0.5}}, []
    if where == "stage":
        leaf["STAGES"] = [{"NAME": "only", "FILE": "base.yml", "OPTS": [key, value]}]
    elif where == "command line":
        opts = [key, str(value)]
    else:
        (leaf if where == "file" else base).update(nested(key, value))
    (tmp_path / "base.yml").write_text(yaml.safe_dump(base))
    (tmp_path / "leaf.yml").write_text(yaml.safe_dump({"_BASE_": "base.yml", **leaf}))
    [run] = plans.plan(tmp_path / "leaf.yml", opts)
    assert run.cfg.SOLVER.MAX_EPOCH == 3 and run.cfg.SOLVER.BASE_LR == 0.5
    origin = {"command line": "command line", "base": "base.yml"}.get(where, "leaf.yml")
    [line] = lines(caplog, key)
    assert origin in line and "has a key that the configuration no longer has" in line


@EVERY
def test_a_tool_without_a_file_reads_one_on_its_command_line(key, caplog):
    assert read_config(None, [key, str(VALUES[key][0]), "SEED", "7"]).SEED == 7
    assert len(lines(caplog, key)) == 1


@EVERY
def test_a_value_that_asks_for_what_is_gone_is_an_error(key, tmp_path):
    bad = VALUES[key][1]
    if bad is None:
        assert {True, False} == set(RETIRED[key].values)
        return
    (tmp_path / "old.yml").write_text(yaml.safe_dump(nested(key, bad)))
    with pytest.raises(ValueError, match=rf"old.yml: {key} is {bad!r}, and this key is gone: it {RETIRED[key].became}"):
        read_config(tmp_path / "old.yml")
    with pytest.raises(ValueError, match=f"command line: {key} is {bad!r}, and this key is gone"):
        read_config(None, [key, str(bad)])


def with_keys(text: str, values: dict) -> str:
    """A stored configuration with further keys."""
    content = yaml.safe_load(text)
    for key, value in values.items():
        owner = content
        *sections, name = key.split(".")
        for section in sections:
            owner = owner.setdefault(section, {})
        owner[name] = value
    return yaml.safe_dump(content)


@pytest.mark.parametrize("values", [*({k: v[0]} for k, v in VALUES.items()), {k: v[0] for k, v in VALUES.items()}])
def test_a_checkpoint_and_a_run_that_have_them_are_read(values, tmp_path, caplog):
    cfg = config("OUTPUT_DIR", str(tmp_path))
    path, model = saved(tmp_path, cfg)
    checkpoint = torch.load(path, weights_only=True)
    old = with_keys(checkpoint["config"], values)
    torch.save({**checkpoint, "config": old}, path)
    (tmp_path / "config.yaml").write_text(old)
    with caplog.at_level(logging.INFO, "sagareid"):
        loaded = load_model(path)[1]
    assert torch.equal(feature(loaded), feature(model))
    assert all(len(lines(caplog, key)) == 1 for key in values)
    assert sum("no longer has" in r.getMessage() for r in caplog.records) == 1, "one line for the file"
    assert stages.differences(plans.Run("", cfg)) == []
    assert all(len(lines(caplog, key)) == 2 for key in values)


@pytest.mark.parametrize("key, value", [(k, v[1]) for k, v in VALUES.items() if v[1] is not None])
def test_a_checkpoint_and_a_run_of_what_is_gone_are_refused(key, value, tmp_path):
    cfg = config("OUTPUT_DIR", str(tmp_path))
    path, _ = saved(tmp_path, cfg)
    checkpoint = torch.load(path, weights_only=True)
    old = with_keys(checkpoint["config"], {key: value})
    torch.save({**checkpoint, "config": old}, path)
    (tmp_path / "config.yaml").write_text(old)
    with pytest.raises(ValueError, match=rf"m.pth: {key} is {value!r}, and this key is gone"):
        load_model(path)
    with pytest.raises(ValueError, match=rf"config.yaml: {key} is {value!r}, and this key is gone"):
        stages.differences(plans.Run("", cfg))


def test_neither_configs_nor_pages_name_one(repo):
    files = [*repo.glob("configs/**/*.yml"), *repo.glob("docs/**/*.md"), repo / "README.md", repo / "CONTRIBUTING.md"]
    text = {path: path.read_text() for path in files}
    assert not [(path.name, key) for path, content in text.items() for key in RETIRED if key in content]
    for path in repo.glob("configs/**/*.yml"):
        content = yaml.safe_load(path.read_text())
        assert retired.take_out(content, path) == content
