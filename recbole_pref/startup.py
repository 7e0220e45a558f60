"""What importing the package sets up without importing torch or RecBole.

As soon as RecBole is imported, it is patched (``compat``) and knows our models, trainer and metrics (``registry``).
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys
import types

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class LateModule(types.ModuleType):
    """Stands for a module that is imported when one of its names is used, so that ``--help`` need not wait for it."""

    def __getattr__(self, name: str):
        return getattr(importlib.import_module(self.__name__), name)


class _RecBoleFinder(importlib.abc.MetaPathFinder):
    """Finds RecBole where the other finders find it, and prepares it right after its first import."""

    def __init__(self):
        self._searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "recbole" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _prepare()

            spec.loader.exec_module = exec_module
        return spec


def _prepare():
    from recbole_pref import compat

    compat.apply()
    from recbole_pref.registry import register

    register()


def hook():
    """Prepare RecBole: now where it is imported already, otherwise when it is; harmless when called again."""
    if "recbole" in sys.modules:
        _prepare()
    elif not any(isinstance(finder, _RecBoleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RecBoleFinder())


def load_plugins():
    """Run the plugin files that ``RECBOLE_PREF_PLUGINS`` names; without any, nothing is imported."""
    if os.environ.get("RECBOLE_PREF_PLUGINS"):
        from recbole_pref import plugins

        plugins.load()


def let_threads_sleep():
    """Let torch's OpenMP threads sleep while they wait for each other, unless the user chose a way.

    By default they spin, and beside one busy core an epoch takes ten times as long. The variable counts when it is
    set before torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
