"""The site in docs/ builds without a warning, its links lead somewhere, and what its pages quote is in the source."""

from __future__ import annotations

import ast
import functools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from urllib.parse import unquote, urlsplit

import pytest
import torch
from sphinx.application import Sphinx


@pytest.fixture(scope="module")
def generators(repo):
    sys.path.insert(0, str(repo / "docs"))
    import generators

    sys.path.remove(str(repo / "docs"))
    return generators


@pytest.fixture(scope="module")
def site(repo, session_tmp):
    """The site as `make docs` builds it."""
    [options] = re.findall(r"-m sphinx (.*)", (repo / "Makefile").read_text())
    folder = session_tmp / "docs"
    options = options.replace("build/doctrees", str(session_tmp / "doctrees")).replace("build/docs", str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *shlex.split(options)], cwd=repo, capture_output=True, text=True
    )
    assert "-W" in options and done.returncode == 0, done.stdout + done.stderr
    return folder


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])


@pytest.mark.slow
def test_every_internal_link_of_the_site_leads_somewhere(site):
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            lost = target in pages and url.fragment and unquote(url.fragment) not in pages[target].ids
            if not target.exists() or lost:
                dead.append(f"{path.name}: {link}")
    assert len(pages) > 20 and not dead


@pytest.mark.slow
def test_reference_pages_hold_keys_commands_and_docstrings(site, repo):
    text = {p.relative_to(site).as_posix(): p.read_text() for p in (site / "reference").rglob("*.html")}
    assert 'id="model-saga-num-anchors"' in text["reference/configuration.html"]
    for tool in (repo / "tools").glob("*.py"):
        assert f"usage: {tool.name}" in text["reference/commands.html"]
    assert 'id="sagareid.modeling.pooling.AnchorPool"' in text["reference/api/modeling.html"]
    assert "The method on one page" in text["reference/method.html"]


def test_every_key_of_ours_has_a_comment_and_none_is_left_out(generators):
    from sagareid.config import flatten, get_cfg

    from fastreid.config import get_cfg as host_cfg

    keys = {key.name: key for section in generators.our_sections() for key in section.keys}
    assert set(keys) == set(flatten(get_cfg())) - set(flatten(host_cfg()))
    assert not [name for name, key in keys.items() if not key.comment]
    assert keys["MODEL.SAGA.NUM_ANCHORS"].default == 24 and keys["MODEL.SAGA.NUM_ANCHORS"].comment == "K, text anchors."
    assert keys["CACHE.DTYPE"].comment == "float16, bfloat16 or float32"
    assert keys["TEST.NFC.K2"].comment == keys["TEST.NFC.ENABLED"].comment


@pytest.mark.slow
def test_a_key_that_does_not_exist_is_a_warning(generators, tmp_path):
    (tmp_path / "reference").mkdir()
    (tmp_path / "index.md").write_text("# T\n\n`MODEL.SAGA.NUM_ANCHORS 12`, `MODEL.SAGA` and `MODEL.SAGA.NUM_ANKERS`\n")
    (tmp_path / "reference" / "configuration.md").write_text("# Keys\n\n```{config-keys} ours\n```\n")
    warnings = StringIO()
    app = Sphinx(
        tmp_path,
        None,
        tmp_path / "out",
        tmp_path / "trees",
        "html",
        {"extensions": ["myst_parser", "generators"]},
        status=None,
        warning=warnings,
    )
    app.build()
    assert re.findall(r"no configuration key ([A-Z._]+)", warnings.getvalue()) == ["MODEL.SAGA.NUM_ANKERS"]
    assert 'href="reference/configuration.html#model-saga-num-anchors"' in (tmp_path / "out/index.html").read_text()


def test_docstrings_are_plain_text_with_code(generators):
    lines = [
        "See `Place`, `a: b` and `Photo`s of ``x*y``; |x| * y, *args, end_.",
        "D. as it stands",
        "",
        "A table::",
        "",
        "    *not* `touched`",
        "",
        "after it, |x|",
    ]
    generators.as_rest(None, "", "", None, None, lines)
    assert lines == [
        r"See `Place`, ``a: b`` and `Photo`\ s of ``x*y``; \|x| * y, \*args, end\_.",
        r"D\. as it stands",
        "",
        "A table::",
        "",
        "    *not* `touched`",
        "",
        r"after it, \|x|",
    ]


# ---- commands that the pages give -----------------------------------------------------------------------------------


def _pages(repo):
    return sorted((repo / "docs").rglob("*.md"))


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, body) of every code block of a page."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _commands(text: str) -> list[list[str]]:
    """The tool and the words behind it of every command in the code blocks of a page."""
    lines = (
        "\n".join(body for language, body in _blocks(text) if language in ("", "bash", "console", "sh"))
        .replace("\\\n", " ")
        .splitlines()
    )
    found = [re.match(r"(?:python|torchrun .*?) (tools/\w+\.py.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_commands_name_tools_options_configs_and_keys_that_exist(repo, generators):
    from sagareid.config import flatten, get_cfg

    keys, helps, wrong, seen = set(flatten(get_cfg())), {}, [], 0
    for page in (repo / "README.md", *_pages(repo)):
        own = set(re.findall(r"^# (\S+\.yml)\b", page.read_text(), re.MULTILINE))
        for tool, *words in _commands(page.read_text()):
            seen += 1
            if not (repo / tool).is_file():
                wrong.append(f"{page.name}: {tool}")
                continue
            if tool not in helps:
                helps[tool] = set(re.findall(r"--[\w-]+", generators.help_text(repo / tool)))
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            wrong += [f"{page.name}: {tool} {option}" for option in options if option not in helps[tool]]
            for word in words:
                if word.endswith(".yml") and word not in own and "*" not in word and not (repo / word).is_file():
                    wrong.append(f"{page.name}: {word}")
                if re.fullmatch(r"[A-Z_]+(\.[A-Z_0-9]+)+", word) and word not in keys:
                    wrong.append(f"{page.name}: {word}")
    assert seen > 5 and not wrong


SMALL = """
    MODEL.BACKBONE.PRETRAIN False  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 24
    DATALOADER.NUM_WORKERS 0  INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]  CACHE.NUM_VIEWS 1
    TEST.EVAL_PERIOD 1
""".split()


@pytest.fixture
def guide(repo, tmp_path, monkeypatch):
    """Write a guide's files into a folder of their own and forget what they register; returns the guide's commands."""
    from sagareid import registry as ours

    own = [getattr(ours, name) for name in ours.__all__ if name.endswith("_REGISTRY")]
    for registry in (*ours.fastreid_registries(), *own):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(repo / "configs")
    modules = []

    def write(page: str) -> list[list[str]]:
        text = (repo / "docs" / page).read_text()
        for _, code in _blocks(text):
            if named := re.match(r"# (\S+)\.(py|yml)\n", code):
                (tmp_path / f"{named[1]}.{named[2]}").write_text(code)
                modules.append(named[1])
        return [words for _, *words in _commands(text)]

    yield write
    for name in modules:
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("page, runs", [("new_head.md", 1), ("new_backbone.md", 3)])
def test_what_a_guide_builds_trains_and_evaluates_by_its_own_commands(page, runs, guide, train_net, tmp_path):
    commands = guide(page)
    assert len(commands) == runs
    for command in commands:
        assert train_net(*command, *SMALL, "MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path / "out") == 0
        [result] = json.loads((tmp_path / "out" / "results.json").read_text())
        assert 0 <= result["metrics"]["mAP"] <= 100
    if page == "new_head.md":
        assert "loss_spread" in (tmp_path / "out" / "metrics.json").read_text()


# What the page of new parts builds: file, key that names it, its name, and one of its own keys with a value to refuse.
NEW_PARTS = [
    ("sharp_pool", "MODEL.SAGA.POOL", "sharp", ["MODEL.SAGA.SHARP_TEMPERATURE", 0.0]),
    ("spread_anchors", "MODEL.SAGA.DOMAIN_ANCHORS", "spread", []),
    ("norm_loss", "MODEL.LOSSES.NAME", "FeatureNormLoss", ["MODEL.LOSSES.FEATURE_NORM.TARGET", -1.0]),
    ("power_feature", "TEST.FEATURE", "power", ["TEST.POWER_EXPONENT", 0.0]),
]


@pytest.mark.parametrize("file, key, name, refused", NEW_PARTS, ids=[part[0] for part in NEW_PARTS])
def test_a_part_of_the_page_is_one_file_that_keeps_the_contract_of_its_kind(file, key, name, refused, guide):
    import contracts
    from test_interchange import config

    from sagareid.cli import import_modules

    checks = {
        "sharp_pool": (contracts.check_pool_is_one_equation, contracts.check_pool_treats_an_image_alone),
        "spread_anchors": (
            contracts.check_domain_anchors_of_an_image_alone,
            contracts.check_domain_anchors_learn,
            contracts.check_domain_anchors_are_one_equation,
        ),
        "norm_loss": [functools.partial(contracts.check_loss, head) for head in ("SAGAHead", "CLSHead")],
        "power_feature": (contracts.check_evaluation_feature,),
    }
    commands = guide("new_part.md")
    [command] = [words for words in commands if file in words]
    assert command[command.index("--import") + 1] == file and key in command and name in command[command.index(key) + 1]
    import_modules([file])
    for check in checks[file]:
        check(name)
    if refused:
        with pytest.raises(ValueError, match=f"{refused[0]} is {refused[1]}; "):
            config(key, [name] if key == "MODEL.LOSSES.NAME" else name, *refused)


def test_the_page_of_new_parts_shows_a_part_of_every_registry(repo):
    from sagareid import registry

    page = (repo / "docs/new_part.md").read_text()
    own = [name for name in registry.__all__ if name.endswith("_REGISTRY")]
    assert len(own) == len(NEW_PARTS) and all(f"@{name}.register()" in page for name in own)
    files = re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", page.split("Folders are those")[0])
    assert len(files) > 5 and not [f for f in files if not (repo / "projects/SAGA/sagareid" / f).exists()]


@pytest.mark.slow
def test_the_page_of_new_parts_trains_and_evaluates_by_its_own_commands(guide, train_net, tiny_quickstart, tmp_path):
    *training, evaluation = guide("new_part.md")
    assert len(training) == 3
    for command in training:
        assert train_net(*command, *SMALL, "MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path / "out") == 0
        [result] = json.loads((tmp_path / "out" / "results.json").read_text())
        assert 0 <= result["metrics"]["mAP"] <= 100
    assert "loss_norm" in (tmp_path / "out" / "metrics.json").read_text()
    shutil.copytree(tiny_quickstart, tmp_path / "quickstart")
    assert train_net(*evaluation, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "quickstart") == 0
    [result] = json.loads((tmp_path / "quickstart" / "evaluation.json").read_text())
    assert result["metrics"]["mAP"] > 0 and "power/mAP" not in result["metrics"] and "fusion/mAP" in result["metrics"]


@pytest.mark.slow
def test_getting_started_runs_from_top_to_bottom(guide, train_net, tiny_root, repo, tmp_path, monkeypatch):
    """Its commands in their order, behind what `make quickstart` trains; but for the real data set."""
    quickstart = ["--config-file", "configs/SAGA/quickstart.yml"]
    assert train_net(*quickstart, *SMALL) == 0
    commands = [words for words in guide("getting_started.md") if "configs/SAGA/occ_duke.yml" not in words]
    [visualize, evaluate, twelve] = commands
    monkeypatch.setattr(sys, "argv", ["visualize.py", *visualize])
    runpy.run_path(str(repo / "tools" / "visualize.py"), run_name="__main__")
    assert (tmp_path / "logs/SAGA/quickstart/anchors/ranked_lists.png").is_file()
    assert train_net(*evaluate, *SMALL) == 0
    assert (tmp_path / "logs/SAGA/quickstart/evaluation.json").is_file()
    assert train_net(*twelve, *SMALL) == 0
    trained = torch.load(tmp_path / "logs/SAGA/twelve/anchors/model_final.pth", weights_only=True)
    assert len(trained["model"]["heads.text_anchors.anchors"]) == 12
    named = re.findall(
        r"^\| `([^`]+)`(?:, `([^`.]+\.\w+)`)?", (repo / "docs/getting_started.md").read_text(), re.MULTILINE
    )
    for name in {name for names in named for name in names if re.search(r"\.\w+$|checkpoint$", name)}:
        assert (tmp_path / "logs/SAGA/quickstart/anchors" / name).is_file(), name


@pytest.mark.slow
def test_the_guides_data_set_trains_and_evaluates_by_its_own_command(guide, train_net, tiny_root, tmp_path):
    for split, source in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
        (tmp_path / "Corridor" / split).mkdir(parents=True)
        for number, image in enumerate(sorted((tiny_root / "synthetic_pedestrians" / source).glob("*.jpg"))):
            person, camera = re.match(r"(\d+)_c(\d)", image.name).groups()
            name = f"{person}_cam{int(camera) % 3 + 1}_{number:04d}.jpg"
            (tmp_path / "Corridor" / split / name).write_bytes(image.read_bytes())
    [command] = guide("new_dataset.md")
    run = [*command, *SMALL, "OUTPUT_DIR", tmp_path / "out"]
    assert train_net(*run, "STAGES", "[]", root=tmp_path) == 0
    (tmp_path / "Corridor" / "query" / "stray.jpg").touch()
    assert train_net(*run, root=tmp_path) == 1


# ---- troubleshooting: the quoted messages are in the source ---------------------------------------------------------


class _Messages(ast.NodeVisitor):
    """Every string of a module, with a mark where a value goes in."""

    def __init__(self, source: str):
        self.found: list[str] = []
        tree = ast.parse(source)
        self.constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and hasattr(node.targets[0], "id")
        }
        self.visit(tree)

    def visit_JoinedStr(self, node):
        self.found.append(self.text(node))

    visit_BinOp = visit_Constant = visit_JoinedStr

    def text(self, node) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"%(?:\.\d+)?[sdf]", "\0", node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self.text, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left) + self.text(node.right)
        if isinstance(node, ast.IfExp):
            return self.text(node.body)
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
            return str(self.constants.get(node.value.id, "\0"))
        return "\0"


def _as_pattern(quoted: str) -> str:
    """A regular expression of a quoted message, in which `…` stands for anything."""
    return ".*".join(re.escape(piece) for piece in " ".join(quoted.split()).split("…"))


@pytest.fixture(scope="module")
def quoted(repo) -> list[str]:
    page = (repo / "docs/troubleshooting.md").read_text()
    return [body.strip() for language, body in _blocks(page) if language == "text"]


def test_every_quoted_message_is_in_the_source_word_for_word(quoted, repo):
    files = [*(repo / "projects/SAGA/sagareid").rglob("*.py"), *(repo / "tools").glob("*.py")]
    source = {" ".join(text.split()) for file in files for text in _Messages(file.read_text()).found}
    source |= {line.strip(' ;\\"') for line in (repo / "Makefile").read_text().replace('echo "', "\n").splitlines()}
    lost = [q for q in quoted if not any(re.fullmatch(_as_pattern(q), text, re.DOTALL) for text in source)]
    assert len(quoted) > 40 and not lost
    assert not [q for q in quoted if len(q.replace("…", "")) < 12], "too little text to be told apart"


@pytest.mark.parametrize(
    "argv, begins",
    [
        ([], "name a config"),
        (["--config-file", "configs/SAGA/quick.yml"], "no config file"),
        (["--config-file", "configs/SAGA/quickstart.yml", "SOLVER.MAX_EPOHC", "3"], "there is no key"),
        (
            ["--config-file", "configs/SAGA/quickstart.yml", "MODEL.HEADS.NAME", "SAGAHaed", "STAGES", "[]"],
            "… is …; valid",
        ),
        (["--config-file", "configs/SAGA/quickstart.yml", "--stage", "anchor"], "no stage"),
        (["--config-file", "configs/SAGA/occ_duke.yml", "MODEL.DEVICE", "cpu"], "…: no '…' folder"),
        (
            ["--config-file", "configs/SAGA/quickstart.yml", "MODEL.BACKBONE.PRETRAIN_PATH", "/no.pt"],
            "… is no file and no tag",
        ),
        (
            ["--config-file", "configs/SAGA/quickstart.yml", "--stage", "anchors", "SOLVER.IMS_PER_BATCH", "24"],
            "no checkpoint at",
        ),
        (
            [
                "--config-file",
                "configs/SAGA/quickstart.yml",
                "SOLVER.IMS_PER_BATCH",
                "1000",
                "STAGES",
                "[]",
                "DATALOADER.SAMPLER_TRAIN",
                "NaiveIdentitySampler",
            ],
            "…: a batch of",
        ),
    ],
)
def test_a_user_who_errs_meets_the_quoted_message(argv, begins, quoted, train_net, repo, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(repo)
    output = ["OUTPUT_DIR", tmp_path / "out"] if argv else []
    assert train_net(*argv, *output) == 1
    error = " ".join(capfd.readouterr().err.split())
    [message] = [q for q in quoted if q.startswith(begins)]
    assert re.search(_as_pattern(message), error), error
