"""The set-up when the package is imported, without importing torch or RecBole.

When RecBole is imported, it is patched (``compat``), and our models, trainer and metrics are registered
(``registry``).
"""

import gc
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from recbole_pref.cores import busy_cores, usable_cores
from recbole_pref.late import LateModule, after_import

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def _prepare() -> None:
    from recbole_pref import compat

    with _late("sklearn.metrics", "auc", "mean_absolute_error", "mean_squared_error"):
        compat.apply()
    from recbole_pref.registry import register

    register()


@contextmanager
def _late(name: str, *functions: str) -> Iterator[None]:
    """Delay the import of a module in the block: its functions import it when they are called.

    RecBole imports scikit-learn, and with it scipy.stats, for three functions of value metrics. This takes as long as
    importing torch.
    """
    if name in sys.modules:
        yield
        return
    real = LateModule(name)
    proxy = types.ModuleType(name)
    for function in functions:
        setattr(proxy, function, partial(_call, real, function))
    sys.modules[name] = proxy
    try:
        yield
    finally:
        del sys.modules[name]


def _call(module: Any, function: Any, *args: Any, **options: Any) -> Any:
    return getattr(module, function)(*args, **options)


def hook() -> None:
    """Prepare RecBole now if it is imported, otherwise when it is imported; repeated calls have no effect."""
    after_import("recbole", _prepare)


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collector in the block; during imports it takes a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_plugins() -> None:
    """Run the plugin files in ``RECBOLE_PREF_PLUGINS``; without any, nothing is imported."""
    if os.environ.get("RECBOLE_PREF_PLUGINS"):
        from recbole_pref import plugins

        plugins.load()


def choose_wait_policy() -> None:
    """Let torch's OpenMP threads sleep while they wait for each other if other processes need their cores.

    By default they spin, which is faster on free cores; next to a busy core they then take several times as long
    (``benchmarks/busy.py``). A value that the user has set stays. The choice affects this process if torch is not yet
    imported, and the processes that it starts.
    """
    if any(name in os.environ for name in _WAITING):
        return
    if busy_cores() + _threads() > (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() else usable_cores()
