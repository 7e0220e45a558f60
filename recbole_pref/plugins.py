"""Methods from files outside the package, as ``--plugins=my_method.py`` on the command line.

A plugin is a Python file that calls ``add_method``. The command line stores the paths in an environment
variable, so that the processes of comparisons and sweeps load the same files.
"""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS, Method
from recbole_pref.settings import SETTINGS, Setting

VARIABLE = "RECBOLE_PREF_PLUGINS"  # paths, with the separator of PATH
_running: str | None = None  # path of the plugin file that is currently executed
_FIRST = (("pos", "neg"), ("pos_logps", "neg_logps"))  # names of the first two arguments of a loss


def add_method(
    name: str,
    loss: Callable[..., Any],
    title: str,
    defaults: dict[str, Any],
    settings: dict[str, Setting] | None = None,
) -> Method:
    """Add a method, so that ``<name><Backbone>`` are models like those of the package.

    Args:
        name: letters and digits, the first one a letter.
        loss: a loss function, see docs/extending.md.
        title: one line for ``--list``.
        defaults: the content of ``properties/method/<name>.yaml``: values of keyword-only arguments of the loss
            without a default, and of shared settings with another default for this method.
        settings: a ``settings.Setting`` for each new key; by default, a key accepts values of the type of its
            default, and any finite number if the default is a number.

    Returns:
        The registered method.

    Raises:
        PrefError: names the part that is not valid.
    """
    from recbole_pref.settings.files import readable_keys

    _check_name(name)
    parameters = inspect.signature(loss).parameters
    first = [key for key, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if tuple(first[:2]) not in _FIRST:
        raise PrefError(
            f"the loss of method {name!r} begins with ({', '.join(first[:2])}): call its first two arguments pos "
            "and neg, or pos_logps and neg_logps where it needs log-probabilities."
        )
    if first[2:] not in ([], ["ref_pos", "ref_neg"]):
        raise PrefError(
            f"the loss of method {name!r} takes {', '.join(first[2:])} after its first two arguments: only ref_pos, "
            "ref_neg may follow, and settings are keyword-only, as in (pos, neg, *, beta)."
        )
    loss_defaults = {key: p.default for key, p in parameters.items() if key not in first and p.default is not p.empty}
    defaults = {**loss_defaults, **defaults}
    settings = settings or {}
    for key in settings:
        if key in SETTINGS and SETTINGS[key] != settings[key]:
            raise PrefError(
                f"the settings of method {name!r} name {key!r}, which exists already and accepts "
                f"{SETTINGS[key].describe()}: use another name."
            )
    method = Method(name, loss, title, defaults=dict(defaults), source=_digest(loss))
    added: dict[str, Setting] = {}
    for key in method.setting_names:
        kind, accepted = type(defaults.get(key)), SETTINGS.get(key) or settings.get(key)
        if kind is type(None) or accepted is None and kind not in (bool, int, float, str):
            raise PrefError(
                f"method {name!r} needs a default for {key!r}, an argument of its loss: a number, a text or True or "
                "False."
            )
        added[key] = accepted or Setting(float if kind is int else kind)
    readable = readable_keys() | added.keys()
    for key in (*defaults, *settings):
        if key not in readable:
            raise PrefError(
                f"the defaults of method {name!r} name {key!r}, which neither its loss nor RecBole-Pref has."
                f"{suggest(key, readable)}"
            )
    SETTINGS.update(added)
    METHODS[name] = method
    return method


def _digest(loss: Callable[..., Any]) -> str | None:
    """Return the SHA-256 of the current plugin or of the file that defines a loss, or None."""
    try:
        file = _running or inspect.getsourcefile(inspect.unwrap(loss))
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (TypeError, OSError):  # defined at a prompt
        return None


def _check_name(name: str) -> None:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", name):
        raise PrefError(f"{name!r} cannot be the name of a method: use letters and digits, first a letter.")
    same = next((other for other in METHODS if other.lower() == name.lower()), None)
    if same is not None and METHODS[same].defaults is None:
        raise PrefError(f"method {name!r} exists in RecBole-Pref already: choose another name.")


def load(paths: Iterable[str] = ()) -> None:
    """Execute plugin files, first those of ``RECBOLE_PREF_PLUGINS``, and store all paths there for other processes.

    Args:
        paths: Python files; each is executed once per process.

    Raises:
        PrefError: a file is missing or cannot be run.
    """
    earlier = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    files = list(dict.fromkeys(map(os.path.abspath, (*earlier, *paths))))
    for path in files:
        name = f"recbole_pref_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        if name not in sys.modules:
            _run(path, name)
    if files:
        os.environ[VARIABLE] = os.pathsep.join(files)


def _run(path: str, name: str) -> None:
    global _running
    if not os.path.isfile(path):
        candidates = map(str, Path(path).parent.glob("*.py"))
        raise PrefError(f"--plugins names {path!r}, which does not exist.{suggest(path, candidates)}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PrefError(f"--plugins names {path!r}, which is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before, _running = _running, path
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, PrefError):
            raise PrefError(f"plugin {path!r}: {error}") from error
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f", line {lines[-1]}" if lines else ""
        raise PrefError(
            f"plugin {path!r}{where} cannot be run: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    finally:
        _running = before
