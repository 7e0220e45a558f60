"""How RecBole finds our models, trainer and metrics."""

import importlib
import importlib.abc
import importlib.util
import sys

from recbole_pref.methods import METHODS
from recbole_pref.model.names import LINEAR, SEQUENTIAL, linear_class, preference_class, split_model_name


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes RecBole's ``get_model("LPOSASRec")`` find our classes.

    RecBole imports ``recbole.model.sequential_recommender.<lower-case name>`` and takes the attribute
    ``<Name>`` from it; this finder serves such modules for every method and backbone, and for the
    linear models.
    """

    def find_spec(self, fullname, path=None, target=None):
        """Return a module spec for ``<method><backbone>`` below RecBole's sequential models."""
        package, _, name = fullname.rpartition(".")
        if package != SEQUENTIAL:
            return None
        if name in map(str.lower, LINEAR):
            return importlib.util.spec_from_loader(fullname, self)
        if not any(name.startswith(m.lower()) for m in METHODS):
            return None
        if importlib.util.find_spec(package) is None or split_model_name(name) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module):
        """Put the class into the new module under its exact name."""
        name = module.__name__.rpartition(".")[2]
        cls = linear_class(name) or preference_class(*split_model_name(name))
        setattr(module, cls.__name__, cls)


def register():
    """Make our models, trainer and metrics known to RecBole; harmless when called again."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())
    import recbole.trainer

    # RecBole's get_trainer asks the package for ``<Model>Trainer``.
    recbole.trainer.__getattr__ = _trainer_named
    importlib.import_module("recbole_pref.evaluation.metrics")  # registers itself; may be half imported here


def _trainer_named(name):
    """Return our trainer for ``<Method><Backbone>Trainer`` or ``TALETrainer``; a module ``__getattr__``."""
    if name.removesuffix("Trainer") in LINEAR:
        from recbole_pref.training.linear import LinearTrainer

        return LinearTrainer
    if name.endswith("Trainer") and split_model_name(name.removesuffix("Trainer")):
        from recbole_pref.training.trainer import PrefTrainer

        return PrefTrainer
    raise AttributeError(f"module 'recbole.trainer' has no attribute {name!r}")
