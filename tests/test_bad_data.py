"""Bad data during a run: each case works, or ends in one message that says what is wrong; no hang, no black image.

Names and missing folders of each data set: tests/test_datasets.py; tables and folders of one's own:
tests/test_custom_data.py; what tools/check_dataset.py finds: tests/test_check_dataset.py.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from torchvision import transforms

from sagareid.data import images, loaders

# (split, file) -> pixels; people 1-4 train, 5-6 are tested; cameras 1 and 2
TRAIN = [f"bounding_box_train/000{p}_c{c}_f{i}.jpg" for p in range(1, 5) for c in (1, 2) for i in range(2)]
TEST = [
    f"{split}/000{p}_c{c}_f{i}.jpg" for p in (5, 6) for split, c, i in (("query", 1, 0), ("bounding_box_test", 2, 1))
]
RUN = [
    "--config-file", "configs/SAGA/quickstart.yml", "STAGES", "[]", "MODEL.BACKBONE.PRETRAIN", False,
    "DATASETS.NAMES", "['OccludedDuke']", "DATASETS.TESTS", "['OccludedDuke']", "SOLVER.MAX_EPOCH", 1,
    "SOLVER.IMS_PER_BATCH", 8, "DATALOADER.NUM_WORKERS", 0, "SOLVER.AMP.ENABLED", False,
    "INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A sound little Occluded-Duke."""
    for i, name in enumerate(TRAIN + TEST):
        path = tmp_path / "Occluded_Duke" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 48), (i * 9 % 256, i * 50 % 256, 80)).save(path)
    return tmp_path / "Occluded_Duke"


@pytest.fixture
def run(train_net, folder, repo, monkeypatch):
    monkeypatch.chdir(repo)
    return lambda *options: train_net(*RUN, "OUTPUT_DIR", folder.parent / "out", *options, root=folder.parent)


# ---- images that cannot be read ------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def zero(path):
    path.write_bytes(b"")


def no_image(path):
    path.write_bytes(b"<html>moved</html>" * 40)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", [TRAIN[0], TEST[0]], ids=["train", "query"])
@pytest.mark.parametrize("damage", [truncate, zero, no_image])
def test_an_image_that_cannot_be_read_stops_the_run(run, folder, capfd, damage, name, workers):
    """With its path and the command that finds all such files, in training and in evaluation."""
    damage(folder / name)
    assert run("DATALOADER.NUM_WORKERS", workers) == 1
    error = capfd.readouterr().err
    assert f"error: cannot read {folder / name}" in error and "tools/check_dataset.py" in error
    assert "Traceback" not in error
    assert not (folder.parent / "out" / "results.json").exists()


@pytest.mark.slow
def test_the_real_command_ends(run, folder, repo, bare_environment):
    """In a process of its own: worker processes are gone when it ends, and it ends."""
    truncate(folder / TRAIN[0])
    command = [sys.executable, "tools/train_net.py", *map(str, RUN), "OUTPUT_DIR", str(folder.parent / "out")]
    done = subprocess.run(
        [*command, "DATALOADER.NUM_WORKERS", "2"],
        cwd=repo,
        env=bare_environment(folder.parent),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and f"cannot read {folder / TRAIN[0]}" in done.stderr


# ---- what is refused before a run begins ---------------------------------------------------------------------------


def remove(pattern):
    def change(folder):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def one_camera(folder):
    for path in list(folder.glob("*/*_c2_*.jpg")):
        path.rename(path.with_name(path.name.replace("_c2_", "_c1_")))


def strangers(folder):
    for path in list((folder / "query").iterdir()):
        path.rename(path.with_name(path.name.replace("000", "009")))


def wrong_name(folder):
    (folder / "bounding_box_test" / "0005_f1.jpg").write_bytes((folder / TRAIN[0]).read_bytes())


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("query"), "OccludedDuke: no 'query' folder"),
        (remove("bounding_box_train"), "OccludedDuke: no 'bounding_box_train' folder"),
        (remove("bounding_box_test/*"), "OccludedDuke: no images in"),
        (remove("bounding_box_train/*"), "OccludedDuke: no images in"),
        (wrong_name, "1 file(s) in"),
        (one_camera, "OccludedDuke: no query has an image of the same person in another camera"),
        (strangers, "OccludedDuke: no query has an image of the same person in another camera"),
        (remove("bounding_box_train/000[34]*"), None),  # two people, a batch of two
        (remove("bounding_box_train/000[234]*"), "needs 2 identities, the training set has 1"),
    ],
    ids=[
        "no query folder", "no train folder", "empty gallery", "empty train", "wrong name", "one camera", "no match",
        "two people", "one person",
    ],
)  # fmt: skip
def test_refused_before_anything_is_trained(run, folder, capfd, change, message):
    change(folder)
    assert run() == (0 if message is None else 1)
    error = capfd.readouterr().err
    if message:
        assert message in error and "Traceback" not in error
        assert not list((folder.parent / "out").glob("*.pth"))


def test_evaluation_alone_needs_no_training_images(run, train_net, folder):
    assert run() == 0
    remove("bounding_box_train/*")(folder)
    config = folder.parent / "out" / "config.yaml"
    assert train_net("--eval-only", "--config-file", config, root=folder.parent) == 0
    [result] = json.loads((folder.parent / "out" / "evaluation.json").read_text())
    assert 0 <= result["metrics"]["mAP"] <= 100


# ---- what works ----------------------------------------------------------------------------------------------------


def one_image_of_a_person(folder):
    remove("bounding_box_train/0001_c*_f1.jpg")(folder)
    remove("bounding_box_train/0001_c2_f0.jpg")(folder)


def train_from_one_camera(folder):
    for path in list(folder.glob("bounding_box_train/*_c2_*.jpg")):
        path.rename(path.with_name(path.name.replace("_c2_f", "_c1_f1")))


def more_test_cameras(folder):
    """Cameras 7 and 8 are in no training image."""
    for path in list(folder.glob("query/*")) + list(folder.glob("bounding_box_test/*")):
        path.rename(path.with_name(path.name.replace("_c1_", "_c7_").replace("_c2_", "_c8_")))


def one_gallery_image(folder):
    remove("bounding_box_test/0006*")(folder)


SIE = ["MODEL.CLIP.SIE_CAMERA", True, "MODEL.BACKBONE.SIE_COE", 3.0]
CAMERA_ANCHORS = ["MODEL.SAGA.DOMAIN_ANCHORS", "camera"]
BALANCED = ["DATALOADER.SAMPLER_TRAIN", "BalancedIdentitySampler"]


@pytest.mark.parametrize(
    "change, options",
    [
        (one_image_of_a_person, []),
        (one_image_of_a_person, BALANCED),
        (train_from_one_camera, []),
        (train_from_one_camera, BALANCED),
        (train_from_one_camera, SIE),
        (more_test_cameras, []),
        (more_test_cameras, SIE),
        (more_test_cameras, CAMERA_ANCHORS),
        (one_gallery_image, []),
    ],
)
def test_small_and_uneven_data_works(run, folder, change, options):
    """Galleries here hold one or two images, far from the 50 ranks of a CMC curve."""
    change(folder)
    assert run(*options) == 0
    [result] = json.loads((folder.parent / "out" / "results.json").read_text())
    assert 0 <= result["metrics"]["mAP"] <= 100 and 0 <= result["metrics"]["Rank-10"] <= 100


def test_a_file_that_goes_away_during_a_run_is_named(folder):
    path = folder / TRAIN[0]
    dataset = loaders.ReIDDataset([(str(path), "a_1", "a_0")], None, relabel=True)
    path.unlink()
    with pytest.raises(images.UnreadableImage, match=f"cannot read {path} .*FileNotFoundError"):
        dataset[0]


def test_workers_end_with_the_error(folder):
    """At once, not when the garbage collector comes: workers that are left hold each other's pipes."""
    (folder / TRAIN[3]).write_bytes(b"")
    items = [(str(folder / name), f"a_{i}", "a_0") for i, name in enumerate(TRAIN)]
    dataset = loaders.ReIDDataset(items, transforms.ToTensor(), relabel=True)
    loader = loaders.DeviceLoader(dataset, batch_size=2, num_workers=2, device="cpu")
    with pytest.raises(images.UnreadableImage) as error:
        list(loader)
    assert str(error.value).startswith("cannot read ") and "\n" not in str(error.value)
    assert not multiprocessing.active_children()
