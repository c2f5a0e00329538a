"""Configuration files and command lines that are wrong: each error has its place, what was found and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagareid import get_cfg
from sagareid.config_checks import check_config
from sagareid.config_files import config_chain, find_config, load_yaml
from sagareid.config_merge import merge_pairs, read_config
from sagareid.engine import plans, readiness
from sagareid.engine.main import launch_runs
from sagareid.engine.options import training_parser


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into a folder that is no checkout, and work there; returns the first one's path."""
    monkeypatch.chdir(tmp_path)

    def make(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yml").write_text(text)
        return tmp_path / f"{next(iter(files))}.yml"

    return make


# ---- what is no configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "SOLVER:\n  MAX_EPOCH: 3\nSOLVER:\n  BASE_LR: 0.1\n",
            "own.yml, line 3: SOLVER is there twice, first in line 1",
        ),
        ("SOLVER:\n  MAX_EPOCH: 3\n  MAX_EPOCH: 4\n", "line 3: SOLVER.MAX_EPOCH is there twice, first in line 2"),
        ("DATASETS:\n  CUSTOM:\n  - {NAME: a, NAME: b}\n", "line 3: DATASETS.CUSTOM.NAME is there twice"),
        ("", "own.yml is empty; expected KEY: VALUE pairs, such as _BASE_: configs/SAGA/occ_duke.yml"),
        ("# nothing but a comment\n", "own.yml is empty"),
        ("- SOLVER\n- MODEL\n", "own.yml holds a list; expected KEY: VALUE pairs"),
        ("SOLVER.MAX_EPOCH 3\n", "own.yml holds a str; expected KEY: VALUE pairs"),
        ("SOLVER:\n\tMAX_EPOCH: 3\n", "own.yml, line 2: not valid YAML: .*; indent by spaces, not by tabs"),
        ("SOLVER: {MAX_EPOCH: 3\nMODEL: {}\n", "own.yml, line 2: not valid YAML: "),
        ("SEED: 1\n---\nSEED: 2\n", "line 2: not valid YAML: expected a single document"),
        ("SOLVER: !!python/object:os.system {}\n", "line 1: not valid YAML: could not determine a constructor"),
        ("SOLVER: &a\n  MAX_EPOCH: *a\n", "line 1: an alias holds itself"),
        ("OUTPUT_DIR: \x01\n", "own.yml: not valid YAML: "),
        ("_BASE_: [a.yml, b.yml]\n", "line 1: _BASE_ is .*; expected the name of one file"),
        ("_BASE_:\n", "line 1: _BASE_ is None; expected the name of one file"),
    ],
)
def test_a_file_that_is_no_configuration(text, message, write):
    with pytest.raises(ValueError, match=message):
        read_config(write(own=text))


def test_a_file_in_another_encoding(write):
    file = write(own="SEED: 1\n")
    file.write_bytes("OUTPUT_DIR: logs/Müller\n".encode("latin-1"))
    with pytest.raises(ValueError, match="own.yml: no UTF-8 text, .* at byte 18"):
        read_config(file)
    file.write_bytes(b"\xef\xbb\xbfOUTPUT_DIR: logs/M\xc3\xbcller\n")  # as Windows writes it
    assert read_config(file).OUTPUT_DIR == "logs/Müller"


def test_what_yaml_merges_may_be_given_again():
    content, lines = load_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert content["b"] == {"x": 3, "y": 2} and lines["b.x"] == 4


# ---- unknown keys and other types -----------------------------------------------------------------------------------

WRONG = [
    ("SOLVER.MAX_EPOHC", "3", "there is no key SOLVER.MAX_EPOHC. Did you mean SOLVER.MAX_EPOCH"),
    ("MAX_EPOCH", "3", "there is no key MAX_EPOCH. Did you mean SOLVER.MAX_EPOCH?"),
    (
        "SOLVER.BASE_LR.VALUE",
        "3",
        "SOLVER.BASE_LR is no section, found SOLVER.BASE_LR.VALUE; expected a decimal number",
    ),
    ("SOLVER", "3", "SOLVER is a section, found '?3'?; expected keys, such as SOLVER.AMP"),
    ("SOLVER.MAX_EPOCH", "three", "SOLVER.MAX_EPOCH is 'three', text; expected a whole number, such as 120"),
    ("SOLVER.MAX_EPOCH", "1.5", "SOLVER.MAX_EPOCH is 1.5, a decimal number; expected a whole number"),
    ("SOLVER.BASE_LR", "1", "SOLVER.BASE_LR is 1, a whole number; expected a decimal number, such as 1.0"),
    ("CACHE.ENABLED", "'yes'", "CACHE.ENABLED is 'yes', text; expected True or False, such as False"),
    ("MODEL.BACKBONE.DEPTH", "50", "MODEL.BACKBONE.DEPTH is 50, a whole number; expected text: write \"'50'\""),
    ("OUTPUT_DIR", "None", "OUTPUT_DIR has no value; expected text, such as 'logs/'"),
]


@pytest.mark.parametrize("key, value, message", WRONG)
def test_a_key_in_a_file_and_on_a_command_line(key, value, message, write):
    text, indent = "", ""
    for name in key.split("."):
        text, indent = f"{text}{indent}{name}:\n", indent + "  "
    file = write(own=f"SEED: 1\n{text.rstrip()} {value}\n")
    line = 1 + len(key.split("."))
    with pytest.raises(ValueError, match=f"own.yml, line {line}: {message}"):
        read_config(file)
    with pytest.raises(ValueError, match=f"^command line: {message}"):
        read_config(opts=[key, value.strip("'")])


def test_what_the_remedies_say_works():
    cfg = get_cfg()
    merge_pairs(cfg, ["MODEL.BACKBONE.DEPTH", "'50'", "SOLVER.BASE_LR", "1.0", "DATASETS.NAMES", "[Market1501]"])
    assert (cfg.MODEL.BACKBONE.DEPTH, cfg.SOLVER.BASE_LR, list(cfg.DATASETS.NAMES)) == ("50", 1.0, ["Market1501"])


def test_a_key_without_a_value_and_a_list_that_is_none(write):
    file = write(own="SOLVER:\nTEST:\n  METRIC:\nDATASETS:\n  NAMES: Market1501\n")
    with pytest.raises(ValueError) as error:
        read_config(file)
    assert str(error.value).splitlines() == [
        "this configuration cannot be read:",
        f"  {file}, line 1: SOLVER is a section, found nothing; expected keys, such as SOLVER.AMP.ENABLED",
        f"  {file}, line 3: TEST.METRIC has no value; expected text, such as 'cosine'",
        f"  {file}, line 5: DATASETS.NAMES is 'Market1501', text; expected a list, such as [Market1501]",
    ]


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.MAX_EPOCH=3"], "SOLVER.MAX_EPOCH=3 has no value; .* Write SOLVER.MAX_EPOCH 3, without ="),
        (["SOLVER.MAX_EPOCH=3", "SEED", "1", "x"], "no key SOLVER.MAX_EPOCH=3. Write SOLVER.MAX_EPOCH 3, without ="),
        (["SEED", "1", "SOLVER.MAX_EPOCH"], "SOLVER.MAX_EPOCH has no value; expected pairs of KEY VALUE"),
        (["DATASETS.NAMES", "Market1501"], r'DATASETS.NAMES is .*; expected a list in quotes, such as "\[a, b\]"'),
        (["DATASETS.CUSTOM", "[{NAME:"], r"expected a list in quotes, such as \"\[\{NAME: shop, TYPE: CSVDataset"),
        (["DATASETS.CUSTOM", "[{NAME: a, NAME: b}]"], r"NAME is there twice.*expected a list in quotes"),
    ],
)
def test_wrong_pairs(opts, message):
    with pytest.raises(ValueError, match=f"command line: .*{message}"):
        merge_pairs(get_cfg(), opts)


def test_a_data_set_without_quotes_around_its_keys():
    cfg = get_cfg()
    merge_pairs(cfg, ["DATASETS.CUSTOM", "[{NAME: shop, TYPE: CSVDataset, PATH: crops.csv}]"])
    assert cfg.DATASETS.CUSTOM == [{"NAME": "shop", "TYPE": "CSVDataset", "PATH": "crops.csv"}]
    merge_pairs(cfg, ["DATASETS.CUSTOM", "[{NAME:shop,TYPE:CSVDataset,PATH:crops.csv}]"])
    with pytest.raises(ValueError, match="must have NAME and TYPE, such as .*, with a space behind each colon"):
        check_config(cfg)


# ---- bases ----------------------------------------------------------------------------------------------------------


def test_an_error_in_a_base_names_the_files_it_came_through(write):
    file = write(leaf="_BASE_: middle.yml\n", middle="_BASE_: root.yml\nSEED: 1\n", root="SOLVER:\n  MAX_EPOHC: 3\n")
    root, middle = (file.with_name(f"{name}.yml") for name in ("root", "middle"))
    with pytest.raises(ValueError) as error:
        read_config(file)
    assert str(error.value).startswith(
        f"{root}, line 2 (the _BASE_ of {middle}, the _BASE_ of {file}): there is no key SOLVER.MAX_EPOHC."
    )
    root.write_text("")
    with pytest.raises(ValueError, match=r"root.yml \(the _BASE_ of .*middle.yml, .*leaf.yml\) is empty"):
        read_config(file)


@pytest.mark.parametrize(
    "files",
    [
        {"own": "_BASE_: own.yml\n"},
        {"own": "SEED: 1\n_BASE_: other.yml\n", "other": "_BASE_: ../{folder}/own.yml\n"},
    ],
)
def test_a_file_that_stands_on_itself(files, write, tmp_path):
    file = write(**{name: text.format(folder=tmp_path.name) for name, text in files.items()})
    with pytest.raises(
        ValueError, match=r"line \d.*: its _BASE_ .*own.yml stands on it in turn \(.*\); drop one _BASE_"
    ):
        read_config(file)


@pytest.mark.parametrize("base", ["configs/SAGA/occ_duke.yml", "SAGA/occ_duke.yml"])
def test_a_base_that_ships_is_found_by_name_from_any_folder(base, write):
    file = write(own=f"_BASE_: {base}\nSEED: 7\n")
    assert read_config(file).SEED == 7 and list(read_config(file).DATASETS.NAMES) == ["OccludedDuke"]
    assert [run.name for run in plans.plan(file)] == ["prompts", "backbone", "anchors_warmup", "anchors"]
    file.parent.joinpath("SAGA").mkdir()
    file.parent.joinpath("SAGA/occ_duke.yml").write_text("OUTPUT_DIR: mine\n")
    assert (read_config(file).OUTPUT_DIR == "mine") is base.startswith("SAGA"), "beside the file comes first"


def test_stages_share_a_cache_unless_one_names_its_own(write):
    stages = (
        "{NAME: first, FILE: SAGA/stages/prompts.yml}, "
        "{NAME: second, FILE: SAGA/stages/anchors.yml, OPTS: [CACHE.DIR, other]}"
    )
    file = write(own=f"_BASE_: configs/SAGA/occ_duke.yml\nOUTPUT_DIR: out\nSTAGES: [{stages}]\n")
    assert [run.cfg.CACHE.DIR for run in plans.plan(file)] == ["out/feature_cache", "other"]
    assert [run.cfg.CACHE.DIR for run in plans.plan(file, ["CACHE.DIR", "all"])] == ["all", "all"]


def test_a_base_that_is_not_there_names_both_files(write):
    file = write(own="SEED: 1\n_BASE_: SAGA/occ_duk.yml\n")
    with pytest.raises(FileNotFoundError) as error:
        read_config(file)
    assert str(error.value).startswith(f"{file}, line 2: its _BASE_ is not there: no config file at {file.parent}/SAGA")
    assert str(error.value).endswith("Did you mean configs/SAGA/occ_duke.yml?")
    with pytest.raises(FileNotFoundError, match="Did you mean configs/SAGA/quickstart.yml"):
        find_config("configs/SAGA/quickstat.yml")


# ---- stages ---------------------------------------------------------------------------------------------------------

STAGES = "_BASE_: configs/SAGA/quickstart.yml\nSTAGES:\n- {NAME: one, FILE: stage.yml, OPTS: [SOLVER.MAX_EPOCH, 2]}\n"


@pytest.mark.parametrize(
    "entry, message",
    [
        ("one", "own.yml, line 2: an entry of STAGES is 'one'; expected NAME and FILE"),
        ("{NAME: one}", "an entry of STAGES is {'NAME': 'one'}; expected NAME and FILE"),
        ("{NAME: one, FILE: stage.yml, OPT: []}", "expected NAME and FILE, and OPTS where there are any"),
        ("{NAME: a/b, FILE: stage.yml}", "a stage is called 'a/b'; expected the name of a folder"),
        ("{NAME: 1, FILE: stage.yml}", "a stage is called 1; expected the name of a folder"),
        ("{NAME: one, FILE: none.yml}", "line 2: the file of the stage one: no config file at .*none.yml"),
        ("{NAME: one, FILE: stage.yml, OPTS: SEED 1}", "the stage one has FILE 'stage.yml' and OPTS 'SEED 1'"),
        ("{NAME: one, FILE: stage.yml, OPTS: [SED, 1]}", "line 2: OPTS of the stage one: there is no key SED"),
        ("{NAME: one, FILE: stage.yml, OPTS: [SEED]}", "OPTS of the stage one: SEED has no value"),
        ("{NAME: one, FILE: wrong.yml}", "wrong.yml, line 1: there is no key SED. Did you mean SEED"),
    ],
)
def test_a_wrong_entry_of_stages(entry, message, write):
    file = write(own=f"_BASE_: configs/SAGA/quickstart.yml\nSTAGES:\n- {entry}\n", stage="SEED: 1\n", wrong="SED: 1\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plans.plan(file)


def test_two_stages_of_one_name(write):
    file = write(own=STAGES + "- {NAME: one, FILE: stage.yml}\n", stage="SEED: 1\n")
    with pytest.raises(ValueError, match="a stage is called 'one'; expected the name of a folder, another for each"):
        plans.plan(file)


def test_the_values_of_all_stages_are_checked_together(write):
    second = "- {NAME: two, FILE: stage.yml, OPTS: [SOLVER.BASE_LR, -0.1]}\n"
    file = write(own=STAGES + second, stage="CACHE:\n  NUM_VIEWS: 0\n")
    with pytest.raises(ValueError) as error:
        plans.plan(file)
    assert str(error.value).splitlines()[1:] == [
        "  CACHE.NUM_VIEWS is 0; expected 1 or more",
        "  SOLVER.BASE_LR is -0.1; expected 0 or more (stage two)",
    ]
    assert [run.name for run in plans.plan(file, ["CACHE.NUM_VIEWS", "1"], "one")] == ["one"]
    file.write_text(STAGES + second.replace("SOLVER.BASE_LR, -0.1", "TEST.FEATURE, fusio"))
    with pytest.raises(ValueError, match=r"TEST.FEATURE is 'fusio'; valid: .* Did you mean fusion\? \(stage two\)"):
        plans.plan(file, ["CACHE.NUM_VIEWS", "1"])


def test_a_key_that_a_stage_overrides_is_told(write, caplog, monkeypatch):
    file = write(
        own="_BASE_: recipe.yml\nCACHE:\n  NUM_VIEWS: 3\nSOLVER:\n  BASE_LR: 0.5\n",
        recipe=STAGES + "- {NAME: two, FILE: stage.yml, OPTS: [SOLVER.BASE_LR, 0.25]}\nSEED: 5\n",
        stage="SEED: 4\nCACHE:\n  NUM_VIEWS: 4\n",
    )
    lr = f"SOLVER.BASE_LR 0.5 in {file}, line 5 has no effect in the stage two, which sets 0.25 in its OPTS. Set it "
    both = "one, which sets 4 in {0}; two, which sets 4 in {0}".format(file.with_name("stage.yml"))
    views = f"CACHE.NUM_VIEWS 3 in {file}, line 3 has no effect in the stage {both}. Set it "
    behind = "behind the command, or in OPTS of the stage"
    assert plans.without_effect(file) == [views + behind, lr + behind]
    assert plans.without_effect(file, ["CACHE.NUM_VIEWS", "5"]) == [lr + behind], "what comes last counts"
    # at the start of a run
    monkeypatch.setattr(readiness, "check_machine", lambda *args, **options: 1 / 0)
    args = ["--config-file", str(file), "OUTPUT_DIR", "out", "CACHE.NUM_VIEWS", "5"]
    with pytest.raises(ZeroDivisionError):
        launch_runs(training_parser().parse_intermixed_args(args))
    assert lr + behind in caplog.text


# ---- the configs that ship ------------------------------------------------------------------------------------------

SHIPPED = [
    p for p in sorted(find_config("configs/SAGA/Base-SAGA.yml").parents[1].rglob("*.yml")) if "stages" not in p.parts
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_config_that_ships_is_read_checked_and_without_dead_keys(path):
    base = path.name.startswith("Base-")
    # a Base-*.yml of FastReID's names no data set; Base-study.yml no head
    if not base or path.parent.name == "SAGA":
        assert plans.plan(path, ["MODEL.DEVICE", "cuda"])
    if not base:
        assert plans.without_effect(path) == []
    assert config_chain(path)[0].path == path


# ---- options behind the pairs ---------------------------------------------------------------------------------------


def test_options_behind_key_value_are_understood():
    pairs = ["CACHE.SEED", "-1", "SOLVER.BASE_LR", "0.1"]
    words = ["--config-file", "a.yml", *pairs[:2], "--resume", *pairs[2:], "--stage", "one"]
    args = training_parser().parse_intermixed_args(words)
    assert args.opts == pairs and args.resume and args.stage == "one" and args.config_file == "a.yml"


@pytest.mark.parametrize("tool", ["train_net.py", "occlusion_study.py", "check_dataset.py"])
def test_an_unknown_option_behind_key_value_is_named_as_one(tool, run_tool):
    name = ["Market1501"] if tool == "check_dataset.py" else []
    code, _, error = run_tool(tool, *name, "--config-file", "configs/SAGA/quickstart.yml", "SEED", 1, "--resum3")
    assert code == 2 and "unrecognized arguments: --resum3" in error


@pytest.mark.parametrize("tool", ["train_net.py", "occlusion_study.py", "check_dataset.py", "compare.py"])
def test_every_tool_names_file_and_line(tool, run_tool, write, tmp_path):
    file = write(own="_BASE_: configs/SAGA/quickstart.yml\nSOLVER:\n  MAX_EPOHC: 3\n")
    words = {
        "check_dataset.py": ["Market1501", "--config-file", file],
        "compare.py": [file, "--output", tmp_path / "out"],
    }.get(tool, ["--config-file", file])
    code, _, error = run_tool(tool, *words)
    assert code == (2 if tool == "check_dataset.py" else 1)
    assert f"error: {file}, line 3: there is no key SOLVER.MAX_EPOHC. Did you mean SOLVER.MAX_EPOCH" in error
