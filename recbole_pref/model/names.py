"""Model names: ``<Method><Backbone>`` and what stands behind them.

A class is made on first use, once, and appears in ``recbole_pref.model``, where pickle finds it.
"""

import importlib
import importlib.util
import pkgutil
import re
import sys
from functools import lru_cache
from pathlib import Path

from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS

BACKBONES = ("SASRec", "GRU4Rec", "Caser")
LINEAR = ("SLIST", "TALE", "SeqEASE")  # the classes of linear_models, which have no method

SEQUENTIAL = "recbole.model.sequential_recommender"


@lru_cache(maxsize=1)
def sequential_models():
    """Return RecBole's sequential models: dict of lower-case name to class."""
    package = importlib.import_module(SEQUENTIAL)
    from recbole.model.abstract_recommender import SequentialRecommender

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        for name, member in vars(importlib.import_module(f"{SEQUENTIAL}.{module.name}")).items():
            if (
                isinstance(member, type)
                and issubclass(member, SequentialRecommender)
                and name.lower() == module.name
            ):
                found[module.name] = member
    return found


def sequential_model_names() -> list[str]:
    """Return the names of RecBole's sequential models, read from its source files: importing them takes seconds."""
    folder = Path(importlib.util.find_spec("recbole").origin).parent.joinpath(*SEQUENTIAL.split(".")[1:])
    names = []
    for file in sorted(folder.glob("*.py")):
        classes = re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        names += [name for name in classes if name.lower() == file.stem]
    return names


def split_model_name(name):
    """Split ``<Method><Backbone>`` or ``<Method>MM<Backbone>`` without regard to case.

    Returns:
        tuple or None: (Method, backbone class); None when the name is no such pair.
    """
    lower = name.lower()
    # The longest method first: ``SDPO`` before ``DPO`` cannot clash, but new names may.
    for method in sorted(METHODS.values(), key=lambda method: -len(method.name)):
        prefix = method.name.lower()
        if lower.startswith(prefix):
            rest = lower[len(prefix) :]
            backbone = sequential_models().get(rest)
            if backbone is None and rest.startswith("mm"):
                backbone = _with_features(sequential_models().get(rest.removeprefix("mm")))
            if backbone is not None:
                return method, backbone
    return None


def _with_features(backbone):
    if backbone is None:
        return None
    from recbole_pref.encoder import with_features

    return with_features(backbone)


def model_class(name):
    """Return the class behind a model name of ours (``LPOSASRec``) or of RecBole (``SASRec``).

    Raises:
        PrefError: no such model; names the nearest one.
    """
    pair = split_model_name(name)
    if pair is not None:
        method, backbone = pair
        full = method.name + backbone.__name__
        if name == full:
            return preference_class(method, backbone)
        raise PrefError(f"model={name!r} does not exist. Did you mean '{full}'?")
    from recbole.utils import get_model

    try:
        return get_model(name)
    except (ValueError, AttributeError, ImportError):
        method = next((method for method in METHODS if method.lower() == str(name).lower()), None)
        meant = suggest(name, all_model_names()) if method is None else f" Did you mean '{method}SASRec'?"
        raise PrefError(
            f"model={name!r} does not exist: use a model of RecBole or <Method><Backbone>, such as "
            f"LPOSASRec (--list prints all).{meant}"
        ) from None


def all_model_names():
    """Return every model name we can suggest: ours on every sequential model, and RecBole's."""
    import recbole.properties as properties

    names = [name.stem for root in properties.__path__ for name in _yaml_files(root)]
    names += LINEAR
    backbones = [backbone.__name__ for backbone in sequential_models().values()]
    backbones += [f"MM{backbone}" for backbone in BACKBONES]
    return names + [method + backbone for method in METHODS for backbone in backbones]


def _yaml_files(root):
    return Path(root, "model").glob("*.yaml")


def preference_class(method, backbone):
    """Return the class ``<Method><Backbone>``.

    Args:
        method (Method): of ``methods.METHODS``.
        backbone (type): a sequential model class of RecBole.
    """
    name = method.name + backbone.__name__
    room = vars(sys.modules["recbole_pref.model"])
    if name not in room:
        from recbole_pref.model.preference import PreferenceMixin

        room[name] = type(
            name,
            (PreferenceMixin, backbone),
            {
                "__doc__": f"{backbone.__name__} trained with {method.title}.",
                "__module__": "recbole_pref.model",
                "preference_method": method.name,
                "backbone_class": backbone,
            },
        )
    return room[name]


def linear_class(name: str) -> type | None:
    """Return the linear model with this name in lower case, or None."""
    exact = next((exact for exact in LINEAR if exact.lower() == name), None)
    return exact and getattr(importlib.import_module("recbole_pref.model.linear_models"), exact)
