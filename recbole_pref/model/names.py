"""Model names ``<Method><Backbone>`` and their classes.

A class is created once, on first use, as an attribute of ``recbole_pref.model``, where pickle finds it.
"""

import importlib
import importlib.util
import pkgutil
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS, Method

BACKBONES = ("SASRec", "GRU4Rec", "Caser")
LINEAR = ("SLIST", "TALE", "SeqEASE")  # the classes of linear_models, which have no method

SEQUENTIAL = "recbole.model.sequential_recommender"


@lru_cache(maxsize=1)
def sequential_models() -> dict[str, type]:
    """Return RecBole's sequential models: lower-case name to class."""
    package = importlib.import_module(SEQUENTIAL)
    from recbole.model.abstract_recommender import SequentialRecommender

    models = {}
    for module in pkgutil.iter_modules(package.__path__):
        for name, member in vars(importlib.import_module(f"{SEQUENTIAL}.{module.name}")).items():
            if isinstance(member, type) and issubclass(member, SequentialRecommender) and name.lower() == module.name:
                models[module.name] = member
    return models


def sequential_model_names() -> list[str]:
    """Return the names of RecBole's sequential models, read from its source, because an import takes seconds."""
    spec = importlib.util.find_spec("recbole")
    assert spec is not None and spec.origin is not None  # compat checks the installation
    folder = Path(spec.origin).parent.joinpath(*SEQUENTIAL.split(".")[1:])
    names = []
    for file in sorted(folder.glob("*.py")):
        classes = re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        names += [name for name in classes if name.lower() == file.stem]
    return names


def split_model_name(name: str) -> tuple[Method, type] | None:
    """Split ``<Method><Backbone>`` or ``<Method>MM<Backbone>``, ignoring case.

    Returns:
        tuple or None: (Method, backbone class); None when the name is not such a pair.
    """
    lower = name.lower()
    # The longest method first, because a new method's name may begin with another's.
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


def _with_features(backbone: type | None) -> type | None:
    if backbone is None:
        return None
    from recbole_pref.encoder import with_features

    return with_features(backbone)


def model_class(name: str) -> Any:
    """Return the class of a model name of ours (``LPOSASRec``) or of RecBole (``SASRec``).

    Raises:
        PrefError: the model does not exist; suggests the nearest name.
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
        alone = next((method for method in METHODS if method.lower() == str(name).lower()), None)
        hint = suggest(name, all_model_names()) if alone is None else f" Did you mean '{alone}SASRec'?"
        raise PrefError(
            f"model={name!r} does not exist: use a model of RecBole or <Method><Backbone>, such as "
            f"LPOSASRec (--list prints all).{hint}"
        ) from None


def all_model_names() -> list[str]:
    """Return all model names: ours on every sequential model, and RecBole's."""
    import recbole.properties as properties

    names = [name.stem for root in properties.__path__ for name in Path(root, "model").glob("*.yaml")]
    names += LINEAR
    backbones = [backbone.__name__ for backbone in sequential_models().values()]
    backbones += [f"MM{backbone}" for backbone in BACKBONES]
    return names + [method + backbone for method in METHODS for backbone in backbones]


def preference_class(method: Method, backbone: type) -> type:
    """Return the class ``<Method><Backbone>``.

    Args:
        method: of ``methods.METHODS``.
        backbone: a sequential model class of RecBole.
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
    return None if exact is None else getattr(importlib.import_module("recbole_pref.model.linear_models"), exact)
