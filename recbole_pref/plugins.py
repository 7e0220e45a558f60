"""Methods from files outside the package, as ``--plugins=my_method.py`` on the command line.

A plugin is a Python file that calls ``add_method``. The command line keeps the paths in the environment, so that
the processes of comparisons and sweeps, which import this package anew, load the same files.
"""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from pathlib import Path

from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS, Method
from recbole_pref.settings import SETTINGS, Setting

VARIABLE = "RECBOLE_PREF_PLUGINS"  # paths, separated as those of PATH
_running = None  # path of the plugin file that is being run
_FIRST = (("pos", "neg"), ("pos_logps", "neg_logps"))  # what the first two arguments of a loss are called


def add_method(name, loss, title, defaults, settings=None):
    """Add a method, so that ``<name><Backbone>`` are models like those of the package.

    Args:
        name (str): letters and digits, the first one a letter.
        loss (callable): as docs/extending.md describes it.
        title (str): one line for ``--list``.
        defaults (dict): what ``properties/method/<name>.yaml`` would hold: a value for each keyword-only argument of
            the loss that has none there, and for shared settings that the method wants otherwise.
        settings (dict, optional): key to ``settings.Setting``, what new keys accept; by default values of their
            default's type, any finite number for a number.

    Returns:
        Method: as registered.

    Raises:
        PrefError: names the part that cannot work.
    """
    from recbole_pref.settings.files import known_keys

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
            "ref_neg may follow, and settings come behind a star, as in (pos, neg, *, beta)."
        )
    own = {key: p.default for key, p in parameters.items() if key not in first and p.default is not p.empty}
    defaults = {**own, **defaults}
    for key in settings or {}:
        if key in SETTINGS and SETTINGS[key] != settings[key]:
            raise PrefError(
                f"the settings of method {name!r} name {key!r}, which exists already and accepts "
                f"{SETTINGS[key].describe()}: call it by another name."
            )
    method = Method(name, loss, title, defaults=dict(defaults), source=_digest(loss))
    added = {}
    for key in method.setting_names:
        kind, accepted = type(defaults.get(key)), SETTINGS.get(key) or (settings or {}).get(key)
        if kind is type(None) or accepted is None and kind not in (bool, int, float, str):
            raise PrefError(
                f"method {name!r} needs a default for {key!r}, an argument of its loss: a number, a text or True or "
                "False."
            )
        added[key] = accepted or Setting(float if kind is int else kind)
    known = known_keys() | added.keys()
    for key in (*defaults, *(settings or {})):
        if key not in known:
            raise PrefError(
                f"the defaults of method {name!r} name {key!r}, which neither its loss nor RecBole-Pref has."
                f"{suggest(key, known)}"
            )
    SETTINGS.update(added)
    METHODS[name] = method
    return method


def _digest(loss):
    """Return the SHA-256 of the plugin that is run, or of the file that a loss stands in; None where there is none."""
    try:
        file = _running or inspect.getsourcefile(inspect.unwrap(loss))
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (TypeError, OSError):  # made at a prompt
        return None


def _check_name(name):
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", name):
        raise PrefError(f"{name!r} is no name of a method: take letters and digits, the first one a letter.")
    known = next((known for known in METHODS if known.lower() == name.lower()), None)
    if known is not None and METHODS[known].defaults is None:
        raise PrefError(f"method {name!r} exists in RecBole-Pref already: choose another name.")


def load(paths=()):
    """Run plugin files, first those that ``RECBOLE_PREF_PLUGINS`` names, and name all there for other processes.

    Args:
        paths (iterable of str): Python files; those that are loaded already are left alone.

    Raises:
        PrefError: a file is missing or cannot be run.
    """
    known = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    wanted = list(dict.fromkeys(map(os.path.abspath, (*known, *paths))))
    for path in wanted:
        name = f"recbole_pref_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        if name not in sys.modules:
            _run(path, name)
    if wanted:
        os.environ[VARIABLE] = os.pathsep.join(wanted)


def _run(path, name):
    global _running
    if not os.path.isfile(path):
        near = map(str, Path(path).parent.glob("*.py"))
        raise PrefError(f"--plugins names {path!r}, which does not exist.{suggest(path, near)}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise PrefError(f"--plugins names {path!r}, which is no Python file: its name must end in .py.")
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
