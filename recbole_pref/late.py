"""Modules that are imported when they are used."""

import importlib
import types
from typing import Any


class LateModule(types.ModuleType):
    """A module that is imported when one of its names is first used, so that ``--help`` answers at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
