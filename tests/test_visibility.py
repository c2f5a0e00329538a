"""How much of a person is seen: the read-out's arithmetic, what it learns, the files and the calls that use it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sagareid import Extractor
from sagareid.deploy.adapters import UltralyticsReID
from sagareid.deploy.visibility import BANDS, GRID, Readout, at_size, bands, load_readout
from sagareid.studies import visibility as study
from sagareid.studies.options import ReadoutOptions


def test_bands_share_out_rows_of_any_number():
    for height in (6, 12, 16, 4):
        weights = bands(height)
        assert weights.shape == (BANDS, height) and torch.allclose(weights.sum(0), torch.ones(height))
        assert torch.allclose(weights.sum(1), torch.full((BANDS,), height / BANDS))
    assert bands(9)[0].tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0, 0])


def constant_readout(seen: torch.Tensor, there: torch.Tensor) -> Readout:
    """A read-out that gives these (12, 6) probabilities, whatever it sees."""

    class Constant(Readout):
        def forward(self, images):
            return torch.stack([seen, there, seen]).logit(1e-7).expand(len(images), -1, -1, -1)

    return Constant()


def test_a_share_is_what_is_seen_of_what_is_there():
    """The lower half of a person of the full width is hidden, and nobody belongs into the first sixth."""
    there = torch.ones(12, 6)
    there[:2] = 0
    seen = there.clone()
    seen[6:] = 0
    found = constant_readout(seen, there).visibility(torch.zeros(2, 3, 40, 20))
    assert found.shape == (2, 1 + BANDS) and torch.equal(found[0], found[1])
    assert found[0, 0] == pytest.approx(0.4, abs=1e-3)
    assert found[0, 2:].tolist() == pytest.approx([1, 1, 0, 0, 0], abs=1e-3)
    assert 0 <= found[0, 1] <= 1


def test_the_truth_by_hand():
    maps = torch.zeros(1, 2, 12, 4)
    maps[0, 1, 2:, :2] = 1  # the person: 20 pixels, from the second sixth on
    maps[0, 0, 2:8, :2] = 1  # 12 of them are seen
    truth = study.true_shares(maps)[0]
    assert truth[0] == pytest.approx(0.6) and np.isnan(truth[1])
    assert truth[2:].tolist() == [1, 1, 1, 0, 0]


def test_agreement_by_hand():
    found = study.agreement(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0.2, 0.4, np.nan, 0.8]))
    assert found == {"images": 3, "rank_correlation": pytest.approx(1), "auc_less_than_half": 1.0}
    assert study.agreement(np.array([0.9, 0.1]), np.array([0.2, 0.8]))["auc_less_than_half"] == 0.0


def test_images_of_any_size_are_looked_at_in_one():
    images = (2 * torch.arange(96.0)[:, None] + torch.arange(48.0)).expand(2, 3, -1, -1)
    assert torch.equal(at_size(images), images)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(at_size(larger), images, atol=2, rtol=0)
    readout = Readout(channels=4).eval()
    with torch.no_grad():
        assert readout(larger).shape == (2, 3, *GRID) == (2, 3, 12, 6)


def test_a_readout_learns_who_of_two_colours_is_in_front():
    """A green person in the middle third, hidden from above by nothing, or by blue."""
    rng = torch.Generator().manual_seed(0)
    n = 96
    there = torch.zeros(n, 12, 6)
    there[:, :, 2:4] = 1
    rows = torch.randint(0, 12, (n,), generator=rng)
    seen = there * (torch.arange(12)[None, :, None] >= rows[:, None, None])
    maps = torch.stack([seen, there, there - seen], 1)
    images = maps.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, [1, 0, 2]] * 200
    images = (images + 20 * torch.randn(images.shape, generator=rng)).clamp(0, 255).byte()
    conditions = np.array(["mask", "distractor"] * (n // 2))
    data = study.Seen(images, maps, study.true_shares(maps[:, :2]), None, conditions)
    options = ReadoutOptions(images=n, epochs=12, channels=4, batch=12)
    readout = study.fit(data, options)
    found, truth = study.read(readout, data), data.shares
    assert study.agreement(found[:, 0], truth[:, 0])["rank_correlation"] > 0.9
    again = study.fit(data, options)
    assert np.array_equal(study.read(again, data), found)
    by = study.by_condition(found[:, 0], truth[:, 0], conditions)
    assert by["mask"]["images"] == by["distractor"]["images"] == n // 2


@pytest.mark.parametrize("wrong, message", [({"images": 0}, "images is 0"), ({"batch": 30000}, "batch is 30000, more")])
def test_options_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        ReadoutOptions(**wrong)


# ---- beside a run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tiny_run, tmp_path_factory, call_tool):
    """A copy of the run with a read-out beside it."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(tiny_run, run)
    small = ["--images", 48, "--epochs", 2, "--batch", 16, "--channels", 8, "--device", "cpu"]
    assert call_tool("fit_visibility.py", run, *small) == 0
    return run


@pytest.fixture(scope="module")
def frame(tiny_root) -> np.ndarray:
    photos = sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[:2]
    return np.hstack([np.asarray(Image.open(p).convert("RGB").resize((24, 48)))[..., ::-1] for p in photos])


BOXES = np.array([[0, 0, 24, 48], [24, 0, 48, 48]], np.float32)


def test_visibility_comes_with_the_features_it_leaves_alone(fitted, frame):
    extractor = Extractor.from_checkpoint(fitted, device="cpu")
    features, seen = extractor.embed(frame, BOXES, visibility=True)
    torch.testing.assert_close(features, extractor.embed(frame, BOXES), atol=1e-6, rtol=0)
    assert seen.crop.shape == (2,) and seen.sixths.shape == (2, BANDS)
    assert seen.crop.min() > 0 and seen.crop.max() <= 1 and not torch.equal(seen.sixths[0], seen.sixths[1])
    crops = [np.ascontiguousarray(frame[:, x : x + 24, ::-1]) for x in (0, 24)]
    [batch] = extractor.iterate(crops, visibility=True, attention=True)
    assert torch.equal(batch.visibility.sixths, seen.sixths) and batch.attention is not None
    [plain] = extractor.iterate(crops)
    assert plain.visibility is None
    outside = np.vstack([BOXES, [[500, 0, 520, 40]]])
    _, seen = extractor.embed(frame, outside, visibility=True, empty="zero")
    assert seen.crop[2] == 0 and not seen.sixths[2].any()
    _, nobody = extractor.embed(frame, [], visibility=True)
    assert nobody.crop.shape == (0,) and nobody.sixths.shape == (0, BANDS)


def test_a_tracker_gets_no_feature_of_whom_it_hardly_sees(fitted, frame, monkeypatch):
    extractor = Extractor.from_checkpoint(fitted, device="cpu")
    shares = torch.tensor([[0.3], [0.7]]).expand(2, 1 + BANDS)
    monkeypatch.setattr(Readout, "visibility", lambda self, images: shares)
    centred = np.hstack([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]])
    hidden, seen = UltralyticsReID(extractor, min_visibility=0.5)(frame, centred)
    assert hidden is None and np.allclose(seen, extractor.embed(frame, BOXES)[1], atol=1e-6)
    with pytest.raises(ValueError, match="min_visibility is 2"):
        UltralyticsReID(extractor, min_visibility=2)


def test_a_missing_or_another_readout_is_said(tiny_run, fitted, frame, tmp_path):
    with pytest.raises(FileNotFoundError, match="no visibility.safetensors in .*tools/fit_visibility.py makes it"):
        Extractor.from_checkpoint(tiny_run, device="cpu").embed(frame, BOXES, visibility=True)
    with pytest.raises(FileNotFoundError, match="no visibility.safetensors"):
        UltralyticsReID(Extractor.from_checkpoint(tiny_run, device="cpu"), min_visibility=0.5)
    file = tmp_path / "visibility.safetensors"
    save_file({"out.bias": torch.zeros(2)}, file, {"sagareid": '{"grid": [12, 6], "checkpoint_sha256": "ab"}'})
    with pytest.raises(ValueError, match="is an earlier version's, which reads tokens; move it away"):
        load_readout(file)
    save_file({"out.bias": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="is none of tools/fit_visibility.py; move it away"):
        load_readout(file)
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged or no weights file"):
        load_readout(file)


def test_what_cannot_be_read_says_so(fitted, run_tool):
    code, _, err = run_tool("fit_visibility.py", fitted, "--validation", "Market1501", "--images", 32, "--batch", 16)
    assert code == 1 and "Market1501" in err
    extractor = Extractor.from_checkpoint(fitted, device="cpu")
    model = extractor._module.model
    model.__class__ = type("OwnWay", (type(model),), {"forward": lambda self, batch: None})
    with pytest.raises(ValueError, match="OwnWay has a way of its own from images to features"):
        extractor.tower(torch.zeros(1, 3, *extractor.size))
