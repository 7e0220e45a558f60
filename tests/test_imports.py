"""Every module of the package can be the first one that a process imports."""

import pkgutil

import pytest

import recbole_pref
from tests import fresh

FIRST = ("data.sequences", "data.dataset", "model.packing", "model.batch", "evaluation.collector", "training.trainer")


@pytest.mark.parametrize("name", FIRST)
def test_a_module_can_be_imported_first(name):
    assert name in {module.name.removeprefix("recbole_pref.") for module in walk()}
    exit_code, _, errors = fresh.run(f"import recbole_pref.{name}")
    assert exit_code == 0, errors


def walk():
    return pkgutil.walk_packages(recbole_pref.__path__, "recbole_pref.")
