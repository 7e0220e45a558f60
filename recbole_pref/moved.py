"""Modules that moved: their old import paths work for one more version, with a ``DeprecationWarning``."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from typing import Any

_MOVED = {
    "collector": "evaluation.collector",
    "data_check": "data.check",
    "data_tool": "data.convert",
    "dropout": "model.dropout",
    "evidence": "evaluation.evidence",
    "metrics": "evaluation.metrics",
    "objective": "evaluation.objective",
    "packing": "model.packing",
    "reference": "training.reference",
    "significance": "records.significance",
    "tables": "compare.tables",
    "trainer": "training.trainer",
}


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        moved = package == "recbole_pref" and name in _MOVED
        return importlib.util.spec_from_loader(fullname, self) if moved else None

    def exec_module(self, module: types.ModuleType) -> None:
        new = f"recbole_pref.{_MOVED[module.__name__.rpartition('.')[2]]}"
        warnings.warn(f"{module.__name__} is now {new}: change the import.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def register() -> None:
    """Make the old paths importable; repeated calls have no effect."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
