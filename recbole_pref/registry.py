"""Names: the methods, their parts, and ``<Method><Backbone>``.

A new method is one loss function in ``losses.py``, one file ``properties/method/<Name>.yaml`` and one
line in ``METHODS``. What a method needs is read off its loss: keyword-only parameters are its
settings, ``ref_pos`` means that it compares with a reference model, and first parameters called
``pos_logps, neg_logps`` mean that it needs log-probabilities (with the normalizer over the catalogue),
where ``pos, neg`` may be raw scores.
"""

import importlib.abc
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from recbole_pref import losses
from recbole_pref.errors import PrefError, suggest


@dataclass(frozen=True)
class Method:
    """A preference-optimization method: a loss and what it needs.

    Attributes:
        name (str): the first half of the model names.
        loss (callable or None): one of ``losses.py``; None leaves cross-entropy alone.
        title (str): one line for ``--list``.
        normalized (callable or None): from the settings to whether log-probabilities and a reference are needed,
            where that depends on them; by default the names of the loss's parameters tell.
        defaults (dict or None): of a method from outside the package (``plugins.add_method``), which has no
            property file.
        source (str or None): SHA-256 of the file that its loss stands in.
    """

    name: str
    loss: Callable | None
    title: str
    normalized: Callable | None = None
    defaults: dict | None = None
    source: str | None = None

    @cached_property
    def _parameters(self):
        return dict(inspect.signature(self.loss).parameters) if self.loss else {}

    @property
    def setting_names(self):
        """The loss's own settings: tuple of str."""
        return tuple(
            name
            for name, parameter in self._parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        )

    def uses_reference(self, settings):
        """Return whether the loss compares with a reference model under these settings."""
        if "ref_pos" not in self._parameters:
            return False
        return self.normalized is None or self.normalized(settings)

    def needs_reference(self, settings):
        """Return whether training under these settings needs a reference model: for the loss or its negatives."""
        if self.loss is None or settings["lambda"] == 0:
            return False
        return self.uses_reference(settings) or settings["neg_sampler"] == "reference_pool"

    def needs_log_probs(self, settings):
        """Return whether the loss needs log-probabilities rather than scores."""
        if self.normalized is not None:
            return self.normalized(settings)
        return "pos_logps" in self._parameters


def _tawin_normalized(settings):
    # On-policy without KL the weighted advantages sum to zero and the normalizer drops out.
    return settings["kl_weight"] > 0 or settings["old_policy"] == "reference"


METHODS = {
    method.name: method
    for method in (
        Method("CE", None, "cross-entropy over the catalogue, the baseline on the fast path"),
        Method("LPO", losses.lpo, "LPO4Rec: listwise preference optimization, head negatives"),
        Method("DPO", losses.dpo, "direct preference optimization, mean over K pairs"),
        Method("SDPO", losses.sdpo, "softmax DPO: all negatives in one softmax"),
        Method("DMPO", losses.dmpo, "direct multi-preference optimization"),
        Method("SimPO", losses.simpo, "reference-free margin loss"),
        Method("ORPO", losses.orpo, "odds-ratio loss beside cross-entropy"),
        Method("DynamicPO", losses.dynamicpo, "boundary negatives and dual-margin beta"),
        Method("RoDPO", losses.dpo, "DPO with one random negative of the dynamic top-K pool"),
        Method("TAWin", losses.tawin, "windowed partial AUC weights", _tawin_normalized),
        Method("MPPO", losses.mppo, "multi-pair preference optimization on probabilities"),
    )
}
BACKBONES = ("SASRec", "GRU4Rec", "Caser")

_SEQUENTIAL = "recbole.model.sequential_recommender"


def method_of(cls):
    """Return the Method of a model class, or None where it is none of ours."""
    return METHODS.get(getattr(cls, "preference_method", None))


@lru_cache(maxsize=1)
def sequential_models():
    """Return RecBole's sequential models: dict of lower-case name to class."""
    package = importlib.import_module(_SEQUENTIAL)
    from recbole.model.abstract_recommender import SequentialRecommender

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        for name, member in vars(importlib.import_module(f"{_SEQUENTIAL}.{module.name}")).items():
            if (
                isinstance(member, type)
                and issubclass(member, SequentialRecommender)
                and name.lower() == module.name
            ):
                found[module.name] = member
    return found


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
        from recbole_pref.model import preference_class

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
    backbones = [backbone.__name__ for backbone in sequential_models().values()]
    backbones += [f"MM{backbone}" for backbone in BACKBONES]
    return names + [method + backbone for method in METHODS for backbone in backbones]


def _yaml_files(root):
    from pathlib import Path

    return Path(root, "model").glob("*.yaml")


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes RecBole's ``get_model("LPOSASRec")`` find our classes.

    RecBole imports ``recbole.model.sequential_recommender.<lower-case name>`` and takes the attribute
    ``<Name>`` from it; this finder serves such modules for every method and backbone.
    """

    def find_spec(self, fullname, path=None, target=None):
        """Return a module spec for ``<method><backbone>`` below RecBole's sequential models."""
        package, _, name = fullname.rpartition(".")
        if package != _SEQUENTIAL or not any(name.startswith(m.lower()) for m in METHODS):
            return None
        if importlib.util.find_spec(package) is None or split_model_name(name) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module):
        """Put the class into the new module under its exact name."""
        from recbole_pref.model import preference_class

        method, backbone = split_model_name(module.__name__.rpartition(".")[2])
        cls = preference_class(method, backbone)
        setattr(module, cls.__name__, cls)


def register():
    """Make our models, trainer and metrics known to RecBole; harmless when called again."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())
    import recbole.trainer

    from recbole_pref import metrics

    # RecBole's get_trainer asks the package for ``<Model>Trainer``.
    recbole.trainer.__getattr__ = _trainer_named
    metrics.register()


def _trainer_named(name):
    """Return our trainer for ``<Method><Backbone>Trainer``; a module ``__getattr__``."""
    if name.endswith("Trainer") and split_model_name(name.removesuffix("Trainer")):
        from recbole_pref.trainer import PrefTrainer

        return PrefTrainer
    raise AttributeError(f"module 'recbole.trainer' has no attribute {name!r}")
