"""Files of weights: every container and wrapper that is met, nothing that runs code, and what the messages say."""

from __future__ import annotations

import argparse
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sagareid.errors import first_line, message_of
from sagareid.weights import load_state, read_state_dict

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def wrapped(prefix: str) -> dict:
    return {prefix + k: v for k, v in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"state_dict": wrapped("module."), "rank1": np.float64(0.5), "args": argparse.Namespace(lr=0.1, name="x")},
        {"model": {"state_dict": wrapped("_orig_mod.module.")}},
        {"model_state": STATE, "best": np.float32(1), "history": np.arange(3), "flag": np.bool_(True)},
        {k: v.numpy() for k, v in STATE.items()},
        {"student": {"x": torch.zeros(1)}, "teacher": wrapped("module."), "args": argparse.Namespace(arch="vit_base")},
        {"student": STATE, "optimizer": {"lr": 1.0}, "module": None},
    ],
    ids="plain|state_dict|model|numpy scalar and namespace|two levels|arrays beside|arrays|teacher|student alone".split(
        "|"
    ),
)
def test_levels_and_prefixes_come_off_and_values_are_the_files(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    for state in (read_state_dict(tmp_path / "w.pth"), load_state(tmp_path / "w.pth")["model"]):
        assert state.keys() == STATE.keys() and all(torch.equal(state[k], STATE[k]) for k in STATE)


def test_which_of_two_networks_is_said(tmp_path, caplog):
    torch.save({"student": {"x": torch.zeros(1)}, "teacher": STATE}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        read_state_dict(tmp_path / "w.pth")
    assert "w.pth: 'teacher' is taken, and not 'student'" in caplog.text


ESCAPES = "\x1b[31mred\x1b[0m\x07\n\x9b1mlayer\u202e"


def test_no_message_carries_what_a_terminal_obeys(tmp_path):
    """Names out of a file, in every message that shows some, and a file's own name."""
    from sagareid.interchange.convert import read_checkpoint
    from sagareid.modeling.build import check_left_over, hand_over

    folder = tmp_path / ESCAPES.replace("\n", "")
    folder.mkdir()
    torch.save({ESCAPES: 3}, folder / "keys.pth")
    torch.save({ESCAPES: torch.zeros(2)}, folder / "tensors.pth")
    (folder / "text.pth").write_text(ESCAPES)
    state, model = {ESCAPES: torch.zeros(2), "weight": torch.zeros(3)}, torch.nn.Linear(1, 1)
    for call in (
        lambda: load_state(folder / "keys.pth"),
        lambda: load_state(folder / "text.pth"),
        lambda: load_state(folder / "none.pth"),
        lambda: read_checkpoint(folder / "tensors.pth"),
        lambda: hand_over(model, state, (), "w.pth"),
        lambda: hand_over(model, {ESCAPES: torch.zeros(2)}, (), "w.pth"),
        lambda: check_left_over(model, state, "w.pth"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call()
        text = message_of(caught.value)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text) and len(text.splitlines()) == 1
    with pytest.raises(ValueError) as caught:
        hand_over(model, {ESCAPES: torch.zeros(2)}, (), "w.pth")
    assert r"\x1b[31mred" in str(caught.value), "it is in the message, to be recognised"


def test_other_containers(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    module = torch.nn.Module()
    module.a = torch.nn.Linear(3, 2)
    module.a.load_state_dict({"weight": STATE["a.weight"], "bias": STATE["a.bias"]})
    torch.jit.save(torch.jit.script(module), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        state = read_state_dict(tmp_path / name)
        assert state.keys() == STATE.keys() and all(torch.equal(state[k], STATE[k]) for k in STATE)


def test_what_a_run_keeps_beside_its_weights_stays(tmp_path):
    torch.save({"model": STATE, "config": "A: 1", "epoch": 4}, tmp_path / "w.pth")
    found = load_state(tmp_path / "w.pth")
    assert found["config"] == "A: 1" and found["epoch"] == 4


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["alone", "beside weights", "in a namespace", "in an array"])
def test_code_is_refused_wherever_it_hides(place, tmp_path):
    hostile = Hostile(tmp_path / "ran")
    content = {
        "alone": hostile,
        "beside weights": {"state_dict": STATE, "x": hostile},
        "in a namespace": {"state_dict": STATE, "args": argparse.Namespace(x=hostile)},
        "in an array": {"state_dict": STATE, "x": np.array([hostile], dtype=object)},
    }[place]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth was refused: it needs Python code to load \(posix.system\)"):
        load_state(tmp_path / "w.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError):
        load_state(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()


def _bytes(content) -> bytes:
    import io

    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"is empty \(0 bytes\); copy or download it again"),
        (b"hello, world\n" * 20, "is damaged or no weights file: "),
        (b"PK\x03\x04 no archive", "is damaged or no weights file: "),
        (_bytes({"a": torch.zeros(10_000)})[:5_000], "is damaged or no weights file: "),
        (b"<!doctype html><title>404</title>", "is damaged or no weights file: "),
    ],
    ids=["empty", "text", "archive", "cut off", "web page"],
)
def test_a_broken_file_is_named_in_one_plain_sentence(data, message, suffix, tmp_path):
    file = tmp_path / f"w{suffix}"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} {message}") as caught:
        load_state(file)
    text = str(caught.value)
    assert "\x1b" not in text and "\n" not in text and "weights_only" not in text and "index out of range" not in text


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "no tensors by name, but list"),
        ({"epoch": 3}, "no tensors by name, but the keys epoch"),
        (STATE["a.bias"], "no tensors by name, but Tensor"),
        ({}, "no tensors by name, but nothing; expected a state dict"),
    ],
)
def test_a_file_without_weights(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / "w.pth")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*x.pth; expected a .pth file of a run"):
        load_state(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match="no weights file at .*x.pt"):
        read_state_dict(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="is a folder"):
        load_state(tmp_path)


def test_first_line():
    assert first_line("\x1b[1mbold\x1b[0m text\nmore") == "bold text"
    assert first_line(EOFError()) == "" and first_line("\n\n  b\n") == "b"
