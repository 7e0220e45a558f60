"""The documentation says what is true: commands, Python blocks, names, settings, and the first page."""

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import textwrap
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from recbole_pref import cli, evaluate_tool, features_tool, losses, plots
from recbole_pref.compare.entries import parse_entries
from recbole_pref.config import Config
from recbole_pref.data import convert
from recbole_pref.methods import METHODS, Method
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.records import Run
from recbole_pref.samplers import SAMPLERS
from recbole_pref.settings import LINEAR_SETTINGS, SETTINGS
from recbole_pref.tune.space import read_plan
from tests.conftest import tiny_sequences, write_atomic
from tests.test_plots import make_run, write_comparison

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "tools"))


def blocks(page, *languages):
    """Return the fenced blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.M | re.S)
    return [re.sub(f"^{indent}", "", body, flags=re.M) for indent, language, body in found if language in languages]


def _repeat(loop):
    """Return the body of a shell loop after an assignment of each value of its variable."""
    name, values, body = loop.groups()
    return "\n".join(f"{name}={value}\n{body}" for value in values.split())


def commands(page):
    """Return the commands of a page: list of lists of words, shell variables of their block replaced."""
    found = []
    for block in blocks(page, "", "bash"):
        variables = {}
        # Lines that end with a backslash, or with an open quotation mark, continue.
        block = re.sub(r"\\\n\s*", lambda cut: "" if block[: cut.start()].endswith(",") else " ", block)
        block = re.sub(r"for (\w+) in ([^;\n]*); do\n(.*?)\ndone", _repeat, block, flags=re.S)
        for line in block.splitlines():
            for name, value in variables.items():
                line = line.replace(f"${{{name}}}", value).replace(f"${name}", value)
            assignment = re.match(r'([A-Z]+)="?([^"]*)"?$', line)
            if assignment:
                variables[assignment[1]] = assignment[2]
                continue
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):  # of the environment
                words.pop(0)
            if words:
                found.append(words)
    return found


ALL = [(page, words) for page in PAGES for words in commands(page)]
RUNS = [(page, words) for page, words in ALL if words[0] == "recbole-pref"]


@pytest.fixture
def plugin():
    """Write hinge.py of docs/extending.md into the working folder, and restore the tables afterwards."""
    kept = [(table, dict(table)) for table in (METHODS, SETTINGS, SAMPLERS)]
    Path("hinge.py").write_text(blocks(ROOT / "docs/extending.md", "python")[0])
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


@pytest.mark.parametrize(("page", "words"), RUNS, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(RUNS)])
def test_commands_would_start(page, words, plugin, monkeypatch):
    monkeypatch.setenv("RECBOLE_PREF_PLUGINS", "")
    options, settings = cli._read(words[1:])
    model = getattr(options, "model", None) or cli.DEFAULT_MODEL
    for file in map(Path, getattr(options, "config_files", None) or ()):
        if file.parts[0] == "dataset":  # which an earlier command of the page writes
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    if options.mode == "tune":
        read_plan(ROOT / options.tune)
    settings.pop("init_from", None)  # a checkpoint that an earlier command of the page writes
    if options.mode in ("train", "tune"):
        cli._check_settings(model, options.dataset or "ml-100k", options.config_files, settings)
    if options.mode == "compare":
        for entry in parse_entries(options.compare):
            cli._check_settings(entry.model, options.dataset or "ml-100k", options.config_files, {})


def test_other_commands_are_understood():
    tools = {"data": convert, "features": features_tool, "evaluate": evaluate_tool}
    parsers = {f"recbole-pref-{name}": module.build_parser() for name, module in tools.items()}
    seen = set()
    for page, words in ALL:
        if words[0] in parsers:
            parsers[words[0]].parse_known_args(words[1:])
        elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            script = (ROOT / words[1]).read_text(encoding="utf-8") + (ROOT / "benchmarks/common.py").read_text()
            for option in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
                assert f'"{option}"' in script, f"{page.name}: {words[1]} {option}"
        seen.add(words[0])
    assert {"recbole-pref", "recbole-pref-data", "recbole-pref-features", "python", "make"} <= seen


def test_targets_of_make_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    used = {words[1] for _, words in ALL if words[0] == "make"}
    assert used <= set(targets)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("recbole_pref"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def on_tiny(block):
    """Return a Python block with the tiny data set and short training instead of ml-100k."""
    replaced = {"ml-100k": "tiny", "<run>": "NAME", "config_dict={": 'config_dict={"epochs": 1, '}
    replaced |= {'"242"': '"i1"', '"302"': '"i2"', '"196"': '"u1"', '"186"': '"u2"'}
    for old, new in replaced.items():
        block = block.replace(old, new)
    return block


@pytest.mark.parametrize("name", ["predicting", "serving", "checkpoints", "metrics"])
def test_python_blocks_run(name, tiny_dataset):
    write_atomic("dataset", "tiny", tiny_sequences())
    own = {"data_path": "dataset", "checkpoint_dir": "saved", "run_stem": "NAME", "epochs": 1}
    run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, **own})
    names = {}
    for block in blocks(ROOT / f"docs/{name}.md", "python"):
        exec(on_tiny(block), names)
    if name == "metrics":
        assert list(names["frame"]) == ["user_id", "item_id", "rank", "is_tail"]
    if name == "predicting":  # RecBole's case study
        assert names["items"].shape == (2, 10) and names["items"].min() > 0


@pytest.mark.slow
def test_python_blocks_draw(monkeypatch):
    monkeypatch.setattr(plots.drawing, "KINDS", ("png",))
    runs = [
        Run(**make_run("LPOSASRec", seed, 0.05, 0.03, epochs=2, rows=20, **{setting: value})[0])
        for setting, values in {"alpha_tail": (1, 2, 3), "num_negatives": (1, 3, 8)}.items()
        for value in values
        for seed in (1, 2)
    ]
    for run in runs:
        run.train_loss_per_row, run.test_result["tailhit@10"] = [0.2] * run.epochs, 0.1
    write_comparison("compare/ml-100k", ["CESASRec", "LPOSASRec"], seeds=[1, 2])
    Path("collapse.csv").write_text("model,K,best,loss\nDMPO,1,0.1,0.2\nDMPO,3,0.1,0.2\n")
    rows = [{"config/tau": tau, "ndcg@10": 0.1 * tau, "tailndcg@10": 0.1} for tau in (1, 2)]
    names = {"results": SimpleNamespace(get_dataframe=lambda: pd.DataFrame(rows))}
    of_comparison, of_settings, of_sweep = blocks(ROOT / "docs/plots.md", "python")
    exec(of_comparison, names)
    monkeypatch.setattr(plots, "load_runs", lambda folder: runs)
    exec(of_settings, names)
    exec(of_sweep, names)
    assert (
        names["page"].is_file() and names["files"]["trade_off"].is_file() and names["front"].tolist() == [False, True]
    )


@pytest.mark.parametrize("name", ["compare", "tune"])
def test_python_blocks_call_what_exists(name, monkeypatch):
    """Comparisons and sweeps of the pages would take hours: check the arguments alone."""
    module = importlib.import_module(f"recbole_pref.{name}")
    signature, calls = inspect.signature(getattr(module, name)), []
    done = SimpleNamespace(rows=[{}, {"tailndcg@10": {}}], text="")
    monkeypatch.setattr(module, name, lambda *args, **named: calls.append(signature.bind(*args, **named)) or done)
    page = {"compare": "comparing", "tune": "tuning"}[name]
    for block in blocks(ROOT / f"docs/{page}.md", "python"):
        exec(block, {})
    assert calls


def test_the_method_of_the_guide_is_that_of_the_package():
    _, loss, entry, _ = blocks(ROOT / "docs/extending.md", "python")
    names = dict(vars(losses))
    exec(textwrap.dedent(loss), names)
    values = torch.randn(4, 6, dtype=torch.float64).log_softmax(1)
    shown, actual = (mppo(values[:, 0], values[:, 1:], beta=0.5) for mppo in (names["mppo"], losses.mppo))
    torch.testing.assert_close(shown, actual)
    (method,) = eval(entry.strip(), {"Method": Method})
    assert method == METHODS["MPPO"]


def test_yaml_blocks_are_accepted():
    for name, model in (("metrics", "LPOSASRec"), ("training", "SDPOSASRec")):
        for block in blocks(ROOT / f"docs/{name}.md", "yaml"):
            Config(model, "ml-100k", config_dict=yaml.safe_load(block))
    for block in blocks(ROOT / "docs/tuning.md", "yaml"):
        assert read_plan(yaml.safe_load(block)).num_samples == 20


def test_the_sampler_of_the_guide_trains(plugin, tiny_dataset):
    (block,) = (block for block in blocks(ROOT / "docs/extending.md", "python") if "SAMPLERS" in block)
    exec(block, {})
    result = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 1, "neg_sampler": "nearest",
                                                        "neg_candidates": "all"})  # fmt: skip
    assert result["epochs"] == 1


def test_get_started_from_a_csv_to_recommendations(tiny_dataset, capsys):
    """Run the commands of the page, with a smaller model."""
    page = ROOT / "docs/get-started.md"
    (block,) = blocks(page, "python")
    exec(block, {})
    small = ("epochs", "n_layers", "n_heads", "hidden_size", "inner_size", "MAX_ITEM_LIST_LENGTH", "num_negatives")
    small = [f"--{name}={tiny_dataset[name]}" for name in small]
    for words in commands(page):
        if words[0] == "printf":
            Path(words[3]).write_text(words[1].replace("\\n", "\n"))
        elif words[0] == "recbole-pref-data":
            assert convert.main(words[1:]) == 0
        elif "--dataset=mine" in words:
            assert cli.main([*(word for word in words[1:] if not word.startswith("--epochs")), *small]) == 0
            assert capsys.readouterr().out.endswith("best model: saved/mine-best.pth\n")
        elif words[1] == "predict":
            assert cli.main(words[1:]) == 0
    assert len(Path("top.csv").read_text().splitlines()) == 1 + 2 * 10
    assert len(Path("new.csv").read_text().splitlines()) == 1 + 2 * 10


def test_the_daily_loop(tiny_dataset, caplog):
    """Run the commands of the page, with a smaller model and a later day with new users and items."""
    caplog.set_level("INFO")
    days = {"monday": (50, 35), "tuesday": (60, 40)}
    for day, (n_users, n_items) in days.items():
        sequences = enumerate(tiny_sequences(n_users, n_items))
        rows = [f"u{user},i{item},{time}" for user, items in sequences for time, item in enumerate(items)]
        Path(f"{day}.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    small = ("n_layers", "n_heads", "hidden_size", "inner_size", "MAX_ITEM_LIST_LENGTH")
    small = [f"--{name}={tiny_dataset[name]}" for name in small]
    trained = 0
    for words in commands(ROOT / "docs/daily.md"):
        if words[0] == "recbole-pref-data":
            assert convert.main(words[1:]) == 0
        elif words[:2] == ["recbole-pref", "export"]:
            assert cli.main(words[1:]) == 0
        elif words[0] == "recbole-pref":
            kept = [word.replace("--epochs=50", "--epochs=2") for word in words[1:]]
            assert cli.main([*kept, *small]) == 0
            trained += 1
    assert trained == 2 and Path("exported/item_vectors.npy").is_file()
    assert "started from saved/monday-best.pth: items: 35 known, 5 new, 0 gone" in caplog.text


def test_the_page_of_a_step_names_functions_that_exist_once():
    text = (ROOT / "docs/step.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:\w+\.)+\w+)`", text)
    assert len(names) > 20 and len(text.splitlines()) < 80
    for name in names:
        assert text.count(f"`{name}`") == 1, name
        pkgutil.resolve_name(f"recbole_pref.{name}")


def test_every_method_and_setting_has_its_place():
    import docs_hooks

    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in METHODS:
        page = ROOT / f"docs/methods/{name.lower()}.md"
        assert f"settings: method/{name} " in page.read_text() and f"methods/{page.name}" in navigation
        for heading in ("## Settings", "## When to use it", "## What we measured", "## How it differs"):
            assert heading in page.read_text(), f"{page.name}: {heading}"
    text = docs_hooks.settings_page()
    linear = "".join(docs_hooks.on_page_markdown(f"<!-- settings: backbone/{name} -->", None, None, None)
                     for name in ("TALE", "SLIST", "SeqEASE", "LinearRecommender"))  # fmt: skip
    assert not [name for name in SETTINGS if f"| `{name}` |" not in text]
    assert not [name for name in LINEAR_SETTINGS if f"| `{name}` |" not in text + linear]


def test_every_command_has_its_help_on_the_page_of_commands():
    import docs_hooks

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = [
        line.partition(" = ")[0] for line in setup["options.entry_points"]["console_scripts"].split("\n") if line
    ]
    page = docs_hooks.commands_page()
    assert sorted(re.findall("^## (.*)$", page, re.M)) == sorted(scripts)
    assert all(f"usage: {script} " in page for script in scripts)


def test_the_readme_starts_with_a_command():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("make demo") for line in lines[:25])
