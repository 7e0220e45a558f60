"""How RecBole finds our models, trainer and metrics."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

from recbole_pref.methods import METHODS
from recbole_pref.model.names import LINEAR, SEQUENTIAL, linear_class, preference_class, split_model_name


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes RecBole's ``get_model("LPOSASRec")`` find our classes.

    RecBole imports ``recbole.model.sequential_recommender.<lower-case name>`` and reads its attribute
    ``<Name>``. This finder provides such modules for every method and backbone, and for the linear models.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a module spec for ``<method><backbone>`` below RecBole's sequential models."""
        package, _, name = fullname.rpartition(".")
        if package != SEQUENTIAL:
            return None
        is_method = any(name.startswith(method.lower()) for method in METHODS)
        is_ours = name in map(str.lower, LINEAR) or (is_method and split_model_name(name) is not None)
        return importlib.util.spec_from_loader(fullname, self) if is_ours else None

    def exec_module(self, module: types.ModuleType) -> None:
        """Put the class into the new module under its exact name."""
        name = module.__name__.rpartition(".")[2]
        cls = linear_class(name)
        if cls is None:
            pair = split_model_name(name)
            assert pair is not None  # find_spec checks
            cls = preference_class(*pair)
        setattr(module, cls.__name__, cls)


def register() -> None:
    """Register our models, trainer and metrics with RecBole; repeated calls have no effect."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())
    import recbole.trainer

    # RecBole's get_trainer reads ``<Model>Trainer`` from the package.
    recbole.trainer.__getattr__ = _trainer_named
    importlib.import_module("recbole_pref.evaluation.metrics")  # it registers itself, and may be partly imported here


def _trainer_named(name: str) -> type:
    """Return our trainer for ``<Method><Backbone>Trainer`` or ``TALETrainer``; a module ``__getattr__``."""
    if name.removesuffix("Trainer") in LINEAR:
        from recbole_pref.training.linear import LinearTrainer

        return LinearTrainer
    if name.endswith("Trainer") and split_model_name(name.removesuffix("Trainer")):
        from recbole_pref.training.trainer import PrefTrainer

        return PrefTrainer
    raise AttributeError(f"module 'recbole.trainer' has no attribute {name!r}")
