"""Modules that are imported on first use, and actions after an import."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any


class LateModule(types.ModuleType):
    """A module that is imported when one of its names is first used, so that ``--help`` answers at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds a module through the other finders, and calls ``action`` right after its first import."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self._action, self._searching = name, action, False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                self._action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call ``action`` now if a module is imported, otherwise right after its first import.

    Repeated calls before the import have no further effect.
    """
    if name in sys.modules:
        action()
    elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, action))
