"""The scripts in examples/, each run once on a tiny data set."""

import importlib.util
import sys
from pathlib import Path

import pytest

from recbole_pref.methods import METHODS
from recbole_pref.settings import SETTINGS
from tests.conftest import tiny_sequences

FOLDER = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Return a function that imports an example; the tables of methods and settings are restored afterwards."""
    kept = [(table, dict(table)) for table in (METHODS, SETTINGS)]

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    for table, content in kept:
        table.clear()
        table.update(content)


def without(settings, *names):
    """Return settings that an example sets itself as arguments, left out."""
    return {key: value for key, value in settings.items() if key not in ("dataset", *names)}


def test_own_data_ends_in_recommendations(example, tiny_dataset, tmp_path, capsys):
    rows = [f"u{u},i{item},{t}" for u, items in enumerate(tiny_sequences()) for t, item in enumerate(items)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user,item,time", *rows]) + "\n")
    settings = without(tiny_dataset, "data_path", "load_col")
    top = example("own_data").main(str(log), **settings)
    assert list(top["rank"]) == [1, 2, 3, 4, 5] and top["item"].str.startswith("i").all()
    assert f"60 users, 40 items, {len(rows)} interactions" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_models_publishes(example, tiny_dataset, warm_workers):
    settings = without(tiny_dataset, "epochs", "checkpoint_dir")
    folder = example("compare_models").main("CESASRec,LPOSASRec", "tiny", seeds=1, epochs=1, **settings)
    assert (folder / "report.html").is_file()
    assert "tabular" in (folder / "table.tex").read_text()
    assert "| LPOSASRec" in (folder / "table.md").read_text()


def test_own_method_trains(example, tiny_dataset):
    result = example("own_method").main("tiny", **without(tiny_dataset, "epochs"), epochs=1)
    assert 0 <= result["tailndcg@10"] <= 1
