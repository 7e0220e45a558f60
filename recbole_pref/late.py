"""Modules that are imported when they are used."""

import importlib
import types
from typing import Any


class LateModule(types.ModuleType):
    """Stands for a module that is imported when one of its names is used, so that ``--help`` need not wait for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
