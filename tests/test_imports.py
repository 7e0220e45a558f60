"""Every module of the package can be the first one that a process imports."""

import pkgutil
import subprocess
import sys

import pytest

import recbole_pref

FIRST = ("data.sequences", "data.dataset", "model.packing", "model.batch", "evaluation.collector", "training.trainer")


@pytest.mark.parametrize("name", FIRST)
def test_a_module_can_be_imported_first(name):
    assert name in {module.name.removeprefix("recbole_pref.") for module in walk()}
    done = subprocess.run([sys.executable, "-c", f"import recbole_pref.{name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def walk():
    return pkgutil.walk_packages(recbole_pref.__path__, "recbole_pref.")
