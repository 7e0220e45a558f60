"""Methods from files outside the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_pref import cli, compare, plugins
from recbole_pref.build import build_run
from recbole_pref.compare.plan import plan_runs
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model.names import model_class
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.settings import SETTINGS, Setting

DOCUMENTATION = Path(__file__).resolve().parents[1] / "docs/extending.md"
# The file that the documentation shows.
HINGE = DOCUMENTATION.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Take back what a test adds."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    kept = [(table, dict(table)) for table in (METHODS, SETTINGS)]
    modules = set(sys.modules)
    yield
    for table, content in kept:
        table.clear()
        table.update(content)
    for name in set(sys.modules) - modules:
        if name.startswith("recbole_pref_plugin") or "hinge" in name:
            del sys.modules[name]


def load_anew(file):
    """Load a plugin as another process would."""
    for name in [name for name in sys.modules if name.startswith("recbole_pref_plugin")]:
        del sys.modules[name]
    plugins.load([str(file)])


@pytest.fixture
def file(tmp_path):
    """Return a plugin file."""
    path = tmp_path / "hinge.py"
    path.write_text(HINGE)
    return path


def test_a_method_from_a_plugin_trains_like_the_others(file, tiny_dataset, tmp_path):
    plugins.load([str(file)])
    shared = {key: value for key, value in tiny_dataset.items() if key != "num_negatives"}
    own = {**shared, "checkpoint_dir": str(tmp_path / "saved"), "margin": 0.5}
    run = build_run(Config("HingeSASRec", config_dict=own), log=False)
    assert run.config["beta"] == 2.0 and run.config["margin"] == 0.5 and run.model.step.sampler.k == 10
    assert run.model.reference is None and not run.model.step.needs_normalizer
    pos, neg = torch.tensor([1.0]), torch.tensor([[0.0, 0.75, 2.0]])
    assert run.model.step._preference(None, pos, neg, None).item() == pytest.approx(2 * (0 + 0.25 + 1.5) / 3)
    result = run_recbole_pref("HingeGRU4Rec", config_dict={**own, "epochs": 1})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert Config("LPOSASRec", config_dict=shared)["num_negatives"] == 5  # the other methods' defaults stay


def test_its_settings_are_checked_and_listed(file, tiny_dataset, capsys):
    plugins.load([str(file)])
    with pytest.raises(PrefError, match="margn=3 is not a setting.*Did you mean 'margin'"):
        Config("HingeSASRec", config_dict={**tiny_dataset, "margn": 3})
    with pytest.raises(PrefError, match="margin='wide' is not accepted"):
        Config("HingeSASRec", config_dict={**tiny_dataset, "margin": "wide"})
    with pytest.raises(PrefError, match="Did you mean 'HingeSASRec'"):
        model_class("HingSASRec")
    assert cli.main([f"--plugins={file}", "--list=hinge"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["Hinge: hinge loss on the scores", "  margin: 1.0"]


def test_given_settings_say_what_is_accepted(tiny_dataset):
    def loss(pos, neg, *, shape):
        return pos

    plugins.add_method("Own", loss, "own", {"shape": "round"}, {"shape": Setting(str, choices=("round", "flat"))})
    with pytest.raises(PrefError, match="shape='flatt' is not accepted.*Did you mean 'flat'"):
        Config("OwnSASRec", config_dict={**tiny_dataset, "shape": "flatt"})


def test_other_processes_load_the_file_as_well(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--plugins=hinge.py", "--version"]) == 0
    assert os.environ[plugins.VARIABLE] == str(file)
    monkeypatch.setenv(plugins.VARIABLE, "hinge.py")  # as set by hand: other processes have other folders
    plugins.load()
    assert os.environ[plugins.VARIABLE] == str(file)
    completed = subprocess.run(
        [sys.executable, "-c", "from recbole_pref.methods import METHODS; print(METHODS['Hinge'].title)"],
        cwd="/", env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert completed.stdout == "hinge loss on the scores\n", completed.stderr


def test_an_edited_method_is_compared_again(file, tiny_dataset, tmp_path):
    def names(model):
        entries = compare.parse_entries(model)
        settings = {key: value for key, value in tiny_dataset.items() if key != "checkpoint_dir"}
        tasks = plan_runs(entries, tiny_dataset["dataset"], "2020,", None, settings, tmp_path)
        return [task.id for task in tasks]

    plugins.load([str(file)])
    first, shipped = names("HingeSASRec"), names("LPOSASRec")
    assert names("HingeSASRec") == first
    file.write_text(HINGE.replace(".mean(", ".sum("))
    load_anew(file)
    assert names("HingeSASRec") != first and names("LPOSASRec") == shipped


@pytest.mark.parametrize("line", ["@torch.no_grad()", "@functools.lru_cache"])
def test_an_edit_behind_a_decorator_is_noticed(file, line):
    digests = set()
    for edit in (".mean(", ".sum("):
        decorated = HINGE.replace("def ", f"{line}\ndef ", 1).replace(".mean(", edit)
        file.write_text(f"import functools\nimport torch\n{decorated}")
        load_anew(file)
        digests.add(METHODS["Hinge"].source)
    assert len(digests) == 2


def no_names(a, b):
    return a


def with_setting(pos, neg, *, width):
    return pos


def without_star(pos, neg, width):
    return pos


def with_one_reference(pos, neg, ref_pos, *, width):
    return pos


@pytest.mark.parametrize(
    "name, loss, defaults, match",
    [
        ("my-po", with_setting, {"width": 1}, "'my-po' cannot be the name of a method"),
        ("LPO", with_setting, {"width": 1}, "'LPO' exists in RecBole-Pref already"),
        ("sdpo", with_setting, {"width": 1}, "'sdpo' exists"),
        ("Own", no_names, {}, r"begins with \(a, b\): call its first two arguments pos"),
        ("Own", with_setting, {}, "needs a default for 'width'"),
        ("Own", without_star, {"width": 1}, "takes width after its first two arguments: .* settings are keyword-only"),
        ("Own", with_one_reference, {"width": 1}, "takes ref_pos after its first two"),
        ("Own", with_setting, {"width": [1]}, "needs a default for 'width'"),
        ("Own", with_setting, {"width": 1, "num_negativs": 3}, "'num_negativs'.*Did you mean 'num_negatives'"),
    ],
)
def test_a_method_that_cannot_work_is_refused(name, loss, defaults, match):
    before = dict(METHODS), dict(SETTINGS)
    with pytest.raises(PrefError, match=match):
        plugins.add_method(name, loss, "title", defaults)
    assert (dict(METHODS), dict(SETTINGS)) == before


def test_settings_that_exist_are_not_redefined():
    with pytest.raises(PrefError, match="name 'beta', which exists already and accepts a number above 0"):
        plugins.add_method(
            "Own", lambda pos, neg, *, beta: pos, "title", {"beta": 1}, {"beta": Setting(float, low=0.5)}
        )


def test_a_signature_may_hold_the_defaults_and_an_optional_reference():
    def loss(pos, neg, ref_pos=None, ref_neg=None, *, slope=2.0):
        return pos

    method = plugins.add_method("Own", loss, "title", {})
    assert method.defaults == {"slope": 2.0} and method.compares_with_reference({})


def test_a_loss_that_is_not_one_value_per_row_is_reported(tiny_dataset):
    plugins.add_method("Own", lambda pos, neg, *, slope: slope * neg, "title", {"slope": 1.0, "num_negatives": 3})
    with pytest.raises(PrefError, match="'Own' returned a tensor of shape .*: return one value per row"):
        run_recbole_pref("OwnSASRec", config_dict=tiny_dataset)


def test_a_file_that_cannot_be_run_ends_in_one_sentence(file, tmp_path, capsys):
    cases = {
        "hinge.pi": ("no such file", "which does not exist.*Did you mean '.*hinge.py'"),
        "text.txt": ("", "its name must end in .py"),
        "broken.py": ("x = 1\nx +\n", "broken.py' cannot be run: SyntaxError"),
        "wrong.py": ("import os\n\nos.nothing()\n", "wrong.py', line 3 cannot be run: AttributeError"),
        "leaves.py": ("raise SystemExit(1)", "cannot be run: SystemExit"),
        "lpo.py": (HINGE.replace('"Hinge"', '"LPO"'), "lpo.py': method 'LPO' exists"),
    }
    for name, (content, match) in cases.items():
        if name != "hinge.pi":
            (tmp_path / name).write_text(content)
        assert cli.main([f"--plugins={tmp_path / name}", "--list"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1, name
        with pytest.raises(PrefError, match=match):
            plugins.load([str(tmp_path / name)])
