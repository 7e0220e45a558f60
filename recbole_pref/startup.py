"""What importing the package sets up without importing torch or RecBole.

As soon as RecBole is imported, it is patched (``compat``) and knows our models, trainer and metrics (``registry``).
"""

import gc
import os
import sys
import types
from contextlib import contextmanager
from functools import partial

from recbole_pref.late import LateModule, after_import

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def _prepare():
    from recbole_pref import compat

    with _late("sklearn.metrics", "auc", "mean_absolute_error", "mean_squared_error"):
        compat.apply()
    from recbole_pref.registry import register

    register()


@contextmanager
def _late(name, *functions):
    """Give modules that are imported in the block functions of another module that import it when they are called.

    RecBole imports scikit-learn, and with it scipy.stats, for three functions of value metrics; that takes as long as
    torch itself.
    """
    if name in sys.modules:
        yield
        return
    real = LateModule(name)
    stand_in = types.ModuleType(name)
    for function in functions:
        setattr(stand_in, function, partial(_call, real, function))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


def _call(module, function, *args, **options):
    return getattr(module, function)(*args, **options)


def hook():
    """Prepare RecBole: now where it is imported already, otherwise when it is; harmless when called again."""
    after_import("recbole", _prepare)


@contextmanager
def collector_paused():
    """Pause Python's garbage collector in the block: while modules are imported it costs a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_plugins():
    """Run the plugin files that ``RECBOLE_PREF_PLUGINS`` names; without any, nothing is imported."""
    if os.environ.get("RECBOLE_PREF_PLUGINS"):
        from recbole_pref import plugins

        plugins.load()


def let_threads_sleep():
    """Let torch's OpenMP threads sleep while they wait for each other, unless the user chose another way.

    By default they spin, and with one core busy an epoch takes ten times as long. It takes effect where torch is
    imported later: in this process, or in those that it starts.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
