"""The occlusion study: what is hidden and how much, that everybody sees the same, the metrics, the tool and its
page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import scrolled_width
from torch import nn

from sagareid.config import get_cfg
from sagareid.data import loaders, occluders
from sagareid.data.datasets import build
from sagareid.data.transforms import build_transforms
from sagareid.engine import extraction
from sagareid.evaluation.ranking import rank_in_blocks
from sagareid.reports import study_page
from sagareid.studies import occlusion
from sagareid.studies import occlusion_study as S
from sagareid.studies.models import load_models
from sagareid.studies.options import Occlusion
from sagareid.studies.statistics import Bootstrap

LEVELS = (0.1, 0.3, 0.5, 0.6)


def person(height: int = 96, width: int = 48) -> occluders.Silhouette:
    """An upright ellipse, its lowest fifth hidden already."""
    y, x = np.mgrid[:height, :width]
    whole = ((y - height / 2) / (0.45 * height)) ** 2 + ((x - width / 2) / (0.3 * width)) ** 2 <= 1
    return occluders.Silhouette(whole & (y < 0.8 * height), whole)


def picture(height: int = 96, width: int = 48, colour=(200, 60, 40)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


# ---- one picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", occluders.FILLS)
@pytest.mark.parametrize("shape", occluders.SHAPES)
def test_masks_cover_what_is_asked_and_grow(shape, fill):
    before = np.zeros((96, 48), bool)
    for level in LEVELS:
        rng = occluders.generator(0, "mask", "a/b.jpg")
        out = occluders.mask_region(picture(), person(), level, rng, shapes=[shape], fill=fill)
        covered = out.occluder > 0
        assert out.share == pytest.approx(covered[person().visible].mean()) == pytest.approx(level, abs=0.02)
        assert (covered & before).sum() == before.sum() < covered.sum()
        changed = (np.asarray(out.image) != np.asarray(picture())).any(2)
        assert not changed[~covered].any() and (fill == "mean" or changed[covered].all())
        before = covered


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masks", [True, False])
def test_a_pasted_person_covers_what_is_asked_and_steps_further_in(seed, masks):
    inside = person() if masks else occluders.Silhouette.box((96, 48))
    other = occluders.cut_out(
        picture(80, 40, (0, 250, 0)), person(80, 40) if masks else occluders.Silhouette.box((80, 40))
    )
    areas = [0.0]
    for level in (*LEVELS, occluders.MAX_LEVEL):
        rng = occluders.generator(seed, "distractor", "a/b.jpg")
        out = occluders.paste_person(picture(), inside, level, rng, other=other)
        assert out.share == pytest.approx(level, abs=0.001)
        assert out.share == pytest.approx(out.occluder[inside.visible].mean(), abs=1e-6)
        full = out.occluder > 0.999  # opaque there: nothing but the other's colour
        assert np.abs(np.asarray(out.image)[full].astype(int) - (0, 250, 0)).max() <= 1
        untouched = out.occluder == 0
        assert (np.asarray(out.image)[untouched] == (200, 60, 40)).all()
        np.testing.assert_allclose(out.person, inside.visible * (1 - out.occluder), atol=1e-6)
        areas.append(out.occluder.sum())
    assert sorted(areas) == areas


def test_a_cut_out_is_the_person_not_the_box():
    cut = np.asarray(occluders.cut_out(picture(), person()))
    assert cut.shape[2] == 4 and 0.5 < (cut[..., 3] == 255).mean() < 0.95
    assert (cut[..., 3] == 255).sum() == person().visible.sum()


def test_a_mask_without_a_visible_person_is_the_box():
    labels = np.full((8, 4), 3, np.uint8)
    assert occluders.Silhouette.from_labels(labels).visible.all()


# ---- a test set -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cfg(tiny_root, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.SIZE_TEST = [48, 24]
    cfg.TEST.IMS_PER_BATCH = 5
    return cfg


def occluded_images(cfg, condition: str, workers: int = 0, name: str = "SyntheticPedestrians") -> torch.Tensor:
    test = occlusion.ImageSet.read(cfg, name)
    people, _ = occlusion.distractor_people(cfg, test)
    occluder = occlusion.Occluder(Occlusion(condition, 0.4), test, people)
    view = occlusion.View(build_transforms(cfg, is_train=False))
    data = occlusion.OccludedSet(test.items[: test.num_query], [view], occluder, test.run_names)
    return torch.cat([b["images/0"] for b in loaders.make_test_loader(cfg, data, workers)])


@pytest.mark.parametrize("condition", occluders.CONDITIONS)
def test_everybody_sees_the_same(condition, cfg, tiny_root, tmp_path, monkeypatch):
    here = occluded_images(cfg, condition)
    np.random.seed(7)  # global random states play no part
    assert torch.equal(here, occluded_images(cfg, condition, workers=2))
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(tiny_root)
    monkeypatch.setenv("FASTREID_DATASETS", str(elsewhere))
    assert torch.equal(here, occluded_images(cfg, condition))


@pytest.mark.slow
def test_another_process_sees_the_same():
    draw = "m['generator'](3, 'mask', 'a/b.jpg').random(4).tolist()"
    code = f"import runpy, sys; m = runpy.run_path(sys.argv[1]); print({draw})"
    command = [sys.executable, "-c", code, occluders.__file__]  # the file alone: it needs Pillow and numpy only
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "9"}
    ).stdout
    assert json.loads(out) == occluders.generator(3, "mask", "a/b.jpg").random(4).tolist()


def test_pasted_people_are_nobody_in_the_test_set(cfg):
    test = occlusion.ImageSet.read(cfg, "SyntheticPedestrians")
    pids = {pid for _, pid, _ in test.items}
    for source in ("", "train", "SyntheticPedestriansVal"):
        people, _ = occlusion.distractor_people(cfg, test, source)
        assert people.paths and not pids & {int(Path(p).name[:4]) for p in people.paths}
    with pytest.raises(ValueError, match="nobody outside the test set.*--distractors"):
        occlusion.distractor_people(cfg, test, "SyntheticPedestrians")


def test_who_is_in_both_splits_is_left_out(cfg, monkeypatch):
    items = (
        [("/r/q.jpg", 1, 0)],
        [("/r/g.jpg", 1, 1), ("/r/h.jpg", 2, 1)],
        [("/r/a.jpg", "own_2", "own_0"), ("/r/b.jpg", "own_3", "own_0")],
    )
    data = SimpleNamespace(query=items[0], gallery=items[1], train=items[2], dataset_name="own")
    monkeypatch.setattr(build, "build_dataset", lambda *a, **k: data)
    monkeypatch.setattr(occlusion, "build_dataset", lambda *a, **k: data)
    people, source = occlusion.distractor_people(cfg, occlusion.ImageSet.read(cfg, "own"))
    assert source == "train" and people.paths == ["/r/b.jpg"] and people.mask_path is None


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_bootstrap_intervals():
    values = np.random.default_rng(0).normal(3, 1, 400)
    bootstrap = Bootstrap(400, resamples=4000, seed=1)
    mean, low, high = bootstrap.interval(values)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)  # the normal theory's width
    assert bootstrap.interval(values) == Bootstrap(400, resamples=4000, seed=1).interval(values)
    paired = bootstrap.interval((values + 0.1) - values)  # a constant lead is certain, whatever the values' spread
    assert paired.low == pytest.approx(0.1, abs=1e-5) == paired.high


def test_ranking_names_queries_and_nearest_images():
    rng = np.random.default_rng(0)
    q, g = rng.integers(0, 6, 20), rng.integers(0, 5, 70)
    qc, gc = rng.integers(0, 3, 20), rng.integers(0, 3, 70)
    distance = rng.random((20, 70)).astype(np.float32)
    ranking = rank_in_blocks(lambda a, b: torch.from_numpy(distance[a:b]), q, g, qc, gc, block=7)
    assert len(ranking.queries) == 20 - ranking.skipped == len(ranking.ap)
    first = g[ranking.nearest[:, 0]] == q[ranking.queries]
    assert first.mean() == pytest.approx(ranking.cmc[0])
    for query, nearest in zip(ranking.queries, ranking.nearest):
        allowed = [i for i in distance[query].argsort() if not (g[i] == q[query] and gc[i] == qc[query])]
        assert nearest.tolist() == allowed[: len(nearest)]


class OnePatch(nn.Module):
    """A head that looks at the first patch alone."""

    def forward(self, features):
        return features.flatten(2)[:, :, 0]

    def token_weights(self, features):
        weights = torch.zeros(len(features), features[0, 0].numel())
        weights[:, 0] = 1
        return weights


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return nn.functional.avg_pool2d(images, 4) * self.scale


def baseline(head, backbone=None):
    from sagareid.modeling.meta_arch import SAGABaseline

    model = SAGABaseline.__new__(SAGABaseline)
    nn.Module.__init__(model)
    model.backbone, model.heads = backbone or Pixels(), head
    for name, value in (("pixel_mean", 0.0), ("pixel_std", 1.0)):
        model.register_buffer(name, torch.full((1, 3, 1, 1), value))
    model.modules_in_eval = []
    return model.eval()


def batches():
    occluder = torch.zeros(2, 8, 16)
    occluder[0, :4, :4], occluder[1, :4, :2] = 1, 1  # all and half of the first patch
    yield {
        "images/0": torch.arange(2 * 3 * 8 * 16.0).reshape(2, 3, 8, 16),
        "cameras/0": torch.tensor([0, 1]),
        "occluder/0": occluder,
        "targets": torch.tensor([1, 2]),
        "camids": torch.tensor([0, 1]),
        "img_paths": ["a", "b"],
        "share": torch.tensor([0.1, 0.2]),
    }


def test_weight_on_the_occluder(cfg):
    [out], labels = extraction.extract([(cfg, baseline(OnePatch()))], batches(), views=[0], weights=True)
    assert out.on["occluder"].tolist() == [1.0, 0.5] and "person" not in out.on
    assert labels.area["occluder"].tolist() == [1 / 8, 1 / 16]
    assert out.weights.shape == (2, 2, 4) and out.weights[:, 0, 0].tolist() == [1, 1]


def test_equal_towers_run_once_and_give_what_each_gives(cfg):
    class Mean(nn.Module):
        def forward(self, features):
            return features.mean((2, 3))

    models = [baseline(OnePatch()), baseline(Mean()), baseline(Mean())]
    models[2].backbone.scale.data.fill_(2)  # another tower
    pairs = [(cfg, m) for m in models]
    apart, _ = extraction.extract(pairs, batches(), views=[0, 0, 0])
    assert [m.backbone.calls for m in models] == [1, 1, 1]
    extraction.share_towers(pairs)
    assert models[0].backbone is models[1].backbone is not models[2].backbone
    together, _ = extraction.extract(pairs, batches(), views=[0, 0, 0])
    assert [m.backbone.calls for m in models] == [2, 2, 2]  # the first counts for two models
    for one, other in zip(apart, together):
        assert torch.equal(one.features, other.features)
    assert torch.equal(together[2].features, 2 * together[1].features)


def test_attention_pooling_says_what_it_attends_to(monkeypatch):
    from sagareid.modeling.baseline_heads import AttentionPoolHead
    from sagareid.structures import CLIPFeatures

    monkeypatch.setattr(AttentionPoolHead, "NUM_HEADS", 1)
    head = AttentionPoolHead(feat_dim=8, num_classes=2, neck_feat="before", embedding_dim=0).eval()
    with torch.no_grad():  # values and output as they come, so that the feature is the weighted mean itself
        head.pooler.attn.in_proj_weight[16:] = torch.eye(8)
        head.pooler.attn.out_proj.weight.copy_(torch.eye(8))
        patches = torch.randn(3, 12, 8)
        weights = head.token_weights(CLIPFeatures(patches=patches, grid=(4, 3)))
        expected = torch.einsum("bn,bnd->bd", weights, head.pooler.ln_k(patches))
        torch.testing.assert_close(head.pool(CLIPFeatures(patches=patches, grid=(4, 3))), expected)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_seeds_of_a_config_come_together(tmp_path, repo):
    paths = [checkpoint(tmp_path / "saga" / f"seed_{n}", repo, n) for n in (0, 1)]
    assert [m.name for m in load_models(paths)] == ["saga", "saga"]
    with pytest.raises(ValueError, match="given twice"):
        load_models([paths[0], f"other={paths[0]}/model_final.pth"])


def test_options_name_what_is_wrong():
    with pytest.raises(ValueError, match="levels 90% are out of range; expected 0 to 80%"):
        S.Options(levels=(0.9,))
    with pytest.raises(ValueError, match="fill is 'pink'"):
        S.Options(fill="pink")


# ---- the tool -------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, repo: Path, seed: int, *opts) -> str:
    """A model with random weights, stored as a run leaves it."""
    from sagareid.engine.checkpoint import RunCheckpointer
    from sagareid.engine.trainer import SAGATrainer

    cfg = get_cfg()
    cfg.merge_from_file(str(repo / "configs/SAGA/quickstart.yml"))
    cfg.merge_from_list(
        ["INPUT.SIZE_TRAIN", [48, 24], "INPUT.SIZE_TEST", [48, 24], "DATALOADER.NUM_WORKERS", 0, "SEED", seed]
    )
    cfg.merge_from_list(["MODEL.HEADS.NUM_CLASSES", 12, *opts])
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    RunCheckpointer(SAGATrainer.build_model(cfg), str(folder), cfg=cfg).save("model_final")
    return str(folder)


HOST = (
    "MODEL.META_ARCHITECTURE",
    "Baseline",
    "MODEL.BACKBONE.NAME",
    "build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH",
    "18x",
    "MODEL.BACKBONE.PRETRAIN",
    False,
    "MODEL.BACKBONE.FEAT_DIM",
    512,
    "MODEL.HEADS.NAME",
    "EmbeddingHead",
    "MODEL.HEADS.WITH_BNNECK",
    True,
)


@pytest.fixture(scope="module")
def studied(call_tool, repo, tmp_path_factory):
    """The tool's answer to two seeds of ours and a model of FastReID's own: its folder and its arguments."""
    root = tmp_path_factory.mktemp("study")
    weights = [
        "SAGA=" + checkpoint(root / "saga0", repo, 0),
        "SAGA=" + checkpoint(root / "saga1", repo, 1),
        "R18=" + checkpoint(root / "host", repo, 0, *HOST),
    ]
    argv = [
        "--weights",
        *weights,
        "--levels",
        "20",
        "50",
        "--bootstrap",
        "50",
        "--samples",
        "2",
        "--output",
        str(root / "out"),
    ]
    assert call_tool("occlusion_study.py", *argv) == 0
    return root / "out", argv


@pytest.mark.slow
def test_tool_reports_every_cell(studied, tmp_path):
    folder, _ = studied
    record = json.loads((folder / "study.json").read_text())
    cells = {(r["model"], r["condition"], r["level"]) for r in record["results"]}
    conditions = [("clean", 0.0), *((c, level) for c in occluders.CONDITIONS for level in (0.2, 0.5))]
    assert cells == {(m, *c) for m in ("SAGA", "R18") for c in conditions} and record["reference"] == "R18"
    for r in record["results"]:
        metric = r["mAP"]
        assert 0 < metric["low"] <= metric["mean"] <= metric["high"] <= 100
        assert len(metric["seeds"]) == (2 if r["model"] == "SAGA" else 1)
        assert (metric["spread"] is None) == (r["model"] == "R18") == ("difference" not in metric)
        assert ("attention" in r) == (r["model"] == "SAGA" and r["condition"] != "clean")
    for s in record["shares"]:
        assert s["share"]["mean"] == pytest.approx(100 * s["level"], abs=1)
    assert record["dataset"]["distractors"] == "SyntheticPedestriansVal" and record["options"]["seed"] == 0
    table, page = (folder / "table.md").read_text(), (folder / "study.html").read_text()
    assert all("auto: each model's result" in text for text in (table, page.replace("&#x27;", "'")))
    assert scrolled_width(page.replace("<details", "<details open"), tmp_path)[0] <= 400
    assert "| SAGA" in table and "behind another person" in table and record["command"] in table
    for name in ("curves.png", "curves.svg"):
        assert (folder / name).stat().st_size > 10_000


@pytest.mark.slow
def test_nothing_hidden_equals_the_evaluator(studied, cfg, repo):
    from sagareid.deploy.load import load_model
    from sagareid.engine.trainer import SAGATrainer

    folder, argv = studied
    record = json.loads((folder / "study.json").read_text())
    clean = {r["model"]: r for r in record["results"] if r["condition"] == "clean"}
    expected = SAGATrainer.test(*load_model(argv[3].partition("=")[2]))
    for metric in S.METRICS:
        assert clean["R18"][metric]["mean"] == pytest.approx(expected[metric], abs=1e-3)


@pytest.mark.slow
def test_resume_runs_nothing_twice(studied, call_tool, tiny_root, tmp_path, monkeypatch):
    folder, argv = tmp_path / "out", [*studied[1][:-1], str(tmp_path / "out")]
    shutil.copytree(studied[0], folder)
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    before = json.loads((folder / "study.json").read_text())
    passes = []
    monkeypatch.setattr(
        study_page, "curves", lambda *a: []
    )  # drawing takes longest here, and is not what this is about
    monkeypatch.setattr(study_page, "page", lambda *a: "")
    monkeypatch.setattr(S, "extract", lambda *a, **k: passes.append(k["description"]) or extraction.extract(*a, **k))
    assert call_tool("occlusion_study.py", *argv, "--resume") == 0 and not passes
    after = json.loads((folder / "study.json").read_text())
    assert after["results"] == before["results"]
    next((folder / "cells").glob("*/mask-50-*.npz")).unlink()
    assert call_tool("occlusion_study.py", *argv, "--resume") == 0
    assert passes == ["3/5 mask 50%, query", "3/5 mask 50%, gallery"]  # and the gallery, which no cell keeps
    assert json.loads((folder / "study.json").read_text())["results"] == before["results"]
    passes.clear()
    assert (
        call_tool("occlusion_study.py", *argv, "--resume", "--seed", "1") == 0
    )  # other occlusions; what hides nothing is kept
    assert sorted(p.split(",")[0] for p in passes if "query" in p) == [
        "2/5 mask 20%",
        "3/5 mask 50%",
        "4/5 distractor 20%",
        "5/5 distractor 50%",
    ]


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "name trained models with --weights"),
        (["--weights", "A=/nowhere/model.pth"], "no checkpoint at"),
        (["--levels", "95", "--weights", "x"], "levels 95% are out of range"),
        (["--seed", "0", "TEST.METRIC", "cosine"], "TEST.METRIC cosine: KEY VALUE pairs change a config"),
    ],
)
def test_tool_says_what_is_wrong(argv, message, run_tool):
    code, _, error = run_tool("occlusion_study.py", *argv)
    assert code == 1 and message in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "features, message",
    [
        (["refined"], "R18 gives none of --feature refined; it gives feature. Add one, or auto"),
        (["auto", "parts"], "--feature parts: none of the models gives this feature"),
    ],
)
def test_nobody_is_left_out_of_the_tables(studied, features, message, run_tool, monkeypatch):
    """Said before anything is computed."""
    from sagareid.studies import occlusion_study

    monkeypatch.setattr(occlusion_study, "extract", lambda *args, **kwargs: pytest.fail("it computed first"))
    code, _, error = run_tool("occlusion_study.py", *studied[1], "--feature", *features)
    assert code == 1 and message in error


@pytest.mark.slow
def test_page_needs_nothing_from_outside(studied):
    page = (studied[0] / "study.html").read_text()
    assert "<script" not in page
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page)
    assert links and all(re.match(r"data:|#|&quot;#|\"#", a or b) for a, b in links)
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))
    assert page.count("SAGA looks at") == 4 and page.count("R18 finds") == 4  # two queries under two conditions


PROBE = """<script>
const errors=[];addEventListener('error',e=>errors.push(e.message||e.target.src),true);
addEventListener('load',async()=>{
  const broken=[...document.images].filter(i=>!i.complete||!i.naturalWidth).length;
  const urls=[...document.querySelectorAll('.t')].map(t=>getComputedStyle(t).backgroundImage.slice(5,-2));
  const dead=(await Promise.all(urls.map(u=>new Promise(r=>{const i=new
  Image();i.onload=()=>r(0);i.onerror=()=>r(1);i.src=u;})))).reduce((a,b)=>a+b,0);
  document.title=JSON.stringify({images:document.images.length,broken,thumbs:urls.length,dead,errors,
    wide:document.documentElement.scrollWidth-innerWidth,curves:document.querySelectorAll('.curve svg').length,
    outside:performance.getEntriesByType('resource').filter(e=>!e.name.startsWith('data:')).map(e=>e.name)});
});</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_page_in_a_browser(studied, size, tmp_path):
    """No broken picture, no error, nothing fetched, and no sideways scrolling of the page itself."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH")
    probed = tmp_path / "page.html"
    probed.write_text((studied[0] / "study.html").read_text().replace("<head>", "<head>" + PROBE, 1))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        f"--window-size={size}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        probed.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1].replace("&quot;", '"'))
    assert found["images"] > 20 and found["thumbs"] > 50 and found["curves"] == 10
    assert (found["broken"], found["dead"], found["errors"], found["outside"]) == (0, 0, [], [])
    assert found["wide"] <= 0
