"""People of one's own who choose a model's state, and never drawn ones; weights that cannot be fetched."""

from __future__ import annotations

import logging
import time
import urllib.error

import pytest
from PIL import Image

from sagareid import config_checks, network
from sagareid.config import custom_datasets, get_cfg
from sagareid.data.datasets.build import DataSets
from sagareid.data.datasets.names import Names, SetNames
from sagareid.engine import plans, readiness
from sagareid.modeling.clip import download, towers
from sagareid.synthetic import drawn
from sagareid.synthetic.options import Spec

PEOPLE = [f"{i:04d}" for i in range(2, 22, 2)]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A data root with a folder of ten people, each twice in each of two cameras; the same as a table."""
    rows = ["path,pid,camid,split"]
    for person in PEOPLE:
        for camera in ("door", "till"):
            for shot in "ab":
                path = tmp_path / "shop" / person / camera / f"{shot}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12, 24)).save(path)
                rows.append(
                    f"{path},{person},{camera},{'train' if person < '0014' else 'query' if shot == 'a' else 'gallery'}"
                )
    (tmp_path / "shop.csv").write_text("\n".join(rows))
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    return tmp_path


FOLDER = {"NAME": "shop", "TYPE": "FolderDataset", "PATH": "shop", "CAMERA": "^([^/]+)/", "TRAIN_SHARE": 0.6}
TABLE = {"NAME": "shop", "TYPE": "CSVDataset", "PATH": "shop.csv"}


def config(entry, **options):
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [entry]
    cfg.DATASETS.NAMES, cfg.DATASETS.TESTS, cfg.DATASETS.VALIDATION = ["shop"], ["shop"], ["shop_validation"]
    for key, value in options.items():
        cfg.DATASETS[key] = value
    return cfg


@pytest.mark.parametrize("entry", [FOLDER, TABLE])
def test_people_for_validation_are_kept_out_of_training(entry, shop):
    whole, cfg = DataSets(), config(entry | {"VALIDATION_SHARE": 0.34})
    everybody = whole.training(config(entry), "shop")
    train, held, test = whole.training(cfg, "shop"), whole.test(cfg, "shop_validation"), whole.test(cfg, "shop")

    def people(data, *splits):
        return {Names(data).person(pid) for split in splits for _, pid, _ in getattr(data, split)}

    assert len(people(everybody, "train")) == 6 and len(people(held, "query")) == 2
    assert people(train, "train") | people(held, "query", "gallery") == people(everybody, "train")
    assert not people(train, "train") & people(held, "query", "gallery")
    assert people(test, "query") == set(PEOPLE) - people(everybody, "train"), "the test is as it was"
    assert not held.train
    # cameras are the same ones, so that a model that embeds them knows them again
    cameras = [
        set(SetNames().add(data, items).cameras.values()) for data, items in ((train, train.train), (held, held.query))
    ]
    assert cameras[0] == cameras[1] == {"shop/door", "shop/till"}
    again = DataSets().test(cfg, "shop_validation")
    assert again.query == held.query and again.gallery == held.gallery


def test_a_share_that_is_none_and_a_name_without_one(shop):
    for share, found in (
        (1.5, "is 1.5"),
        ("a", "is 'a'"),
        (0.01, "of 6 training people is 0"),
        (0.99, "of 6 training"),
    ):
        with pytest.raises(ValueError, match=f"shop: VALIDATION_SHARE .*{found}"):
            DataSets().training(config(FOLDER | {"VALIDATION_SHARE": share}), "shop")
    assert list(custom_datasets(config(FOLDER))) == ["shop"]
    [problem] = config_checks._check_datasets(config(FOLDER))
    assert "shop_validation needs a VALIDATION_SHARE, such as 0.2, in the entry shop" in problem


def test_drawn_people_choose_no_state_of_a_model_of_photographs(shop):
    cfg = config(FOLDER, VALIDATION=["SyntheticPedestriansVal"])
    with pytest.raises(ValueError, match=r"drawn people, for a run on shop: .*VALIDATION_SHARE"):
        readiness.check_machine([plans.Run("", cfg)])
    assert not (shop / drawn.FOLDER).exists(), "nothing was drawn into the user's folder"


def test_drawing_says_where(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        spec = Spec(train_ids=2, test_ids=1, validation_ids=1, gallery_distractors=1, cutouts=1)
        drawn.draw_dataset(tmp_path, spec, workers=1)
        drawn.draw_dataset(tmp_path)
    [said] = [r.getMessage() for r in caplog.records]
    assert said.startswith("drawing ") and str(tmp_path / drawn.FOLDER) in said


# ---- weights that cannot be fetched ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("hangs", [True, False])
def test_weights_that_cannot_be_fetched_end_in_one_line_within_seconds(hub, hangs, tmp_path, monkeypatch):
    from huggingface_hub import constants

    asked = []

    def answer(*args, **options):
        time.sleep(30 if hangs else 0)
        raise urllib.error.URLError("no route to host")

    def fetch(source, **options):  # what is not in the cache
        asked.append(constants.HF_HUB_OFFLINE)
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(network, "SECONDS", 0.05 if hangs else 60)
    monkeypatch.setattr(download, "CACHE", tmp_path)
    monkeypatch.setattr(network.urllib.request, "urlopen", answer)
    monkeypatch.setattr(download.open_clip, "download_pretrained", fetch)
    source = {"hf_hub": "x/y/", "url": ""} if hub else {"url": "https://example.org/ViT-B-16.pt"}
    monkeypatch.setattr(towers.open_clip, "get_pretrained_cfg", lambda name, tag: source)
    with pytest.raises(FileNotFoundError) as caught:
        towers.read_clip_weights("ViT-B-16-quickgelu", "openai")
    text = str(caught.value)
    host = "huggingface.co" if hub else "example.org"
    assert (f"{host} did not answer within 0.05 s" if hangs else f"{host} cannot be reached: no route to host") in text
    assert "PRETRAIN_PATH to a file" in text and "configs/SAGA/own_small.yml" in text and "\n" not in text
    assert asked == ([True] if hub else []) and constants.HF_HUB_OFFLINE is False


def test_weights_in_the_cache_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CACHE", tmp_path)
    monkeypatch.setattr(download, "unreachable", lambda address: pytest.fail("it asked"))
    (tmp_path / "a.pt").touch()
    assert download.download({"url": "https://example.org/a.pt"}) == tmp_path / "a.pt"
