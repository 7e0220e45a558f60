"""The preference-optimization methods: ``Method`` and the table ``METHODS``.

A new method is one loss function in ``losses.py``, one file ``properties/method/<Name>.yaml`` and one
line in ``METHODS``. The signature of the loss states what the method needs. Keyword-only parameters are
its settings. ``ref_pos`` means that it compares with a reference model. First parameters called
``pos_logps, neg_logps`` mean that it needs log-probabilities (with the normalizer over the catalogue);
``pos, neg`` may be raw scores. ``neighbour_gap`` means that it compares the neighbours of items.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Method:
    """A preference-optimization method: a loss and what it needs.

    Attributes:
        name: the first half of the model names.
        function: the loss, or its name in ``losses.py``, which imports torch and is therefore imported on first use;
            None for cross-entropy alone.
        title: one line for ``--list``.
        normalized: ``settings -> bool``, whether the loss needs log-probabilities and a reference, when this depends on
            the settings; by default the names of the loss's parameters decide.
        defaults: settings of a method from outside the package (``plugins.add_method``), which has no property file.
        source: SHA-256 of the file that defines its loss.
    """

    name: str
    function: Callable | str | None
    title: str
    normalized: Callable[[Mapping[str, Any]], bool] | None = None
    defaults: dict[str, Any] | None = None
    source: str | None = None

    @cached_property
    def loss(self) -> Callable | None:
        """The loss function, or None for cross-entropy alone."""
        if not isinstance(self.function, str):
            return self.function
        from recbole_pref import losses

        return getattr(losses, self.function)

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.loss).parameters) if self.loss else {}

    @property
    def setting_names(self) -> tuple[str, ...]:
        """The names of the loss's settings."""
        return tuple(name for name, parameter in self._parameters.items() if parameter.kind is parameter.KEYWORD_ONLY)

    def compares_with_reference(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the loss compares with a reference model under these settings."""
        if "ref_pos" not in self._parameters:
            return False
        return self.normalized is None or self.normalized(settings)

    @property
    def compares_neighbours(self) -> bool:
        """Whether the loss compares the neighbours of positive and negatives (``losses.neighbour_gaps``)."""
        return "neighbour_gap" in self._parameters

    def needs_reference(self, settings: Mapping[str, Any]) -> bool:
        """Return whether training under these settings needs a reference model, for the loss or its negatives."""
        if self.loss is None or settings["lambda"] == 0:
            return False
        return self.compares_with_reference(settings) or settings["neg_sampler"] == "reference_pool"

    def needs_log_probs(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the loss needs log-probabilities rather than scores."""
        if self.normalized is not None:
            return self.normalized(settings)
        return "pos_logps" in self._parameters


def _tawin_normalized(settings: Mapping[str, Any]) -> bool:
    # On-policy without KL the weighted advantages sum to zero, so the normalizer cancels.
    return settings["kl_weight"] > 0 or settings["old_policy"] == "reference"


METHODS = {
    method.name: method
    for method in (
        Method("CE", None, "cross-entropy over the catalogue, the baseline on the fast path"),
        Method("LPO", "lpo", "LPO4Rec: listwise preference optimization, head negatives"),
        Method("DPO", "dpo", "direct preference optimization, mean over K pairs"),
        Method("SDPO", "sdpo", "softmax DPO: all negatives in one softmax"),
        Method("DMPO", "dmpo", "direct multi-preference optimization"),
        Method("SimPO", "simpo", "reference-free margin loss"),
        Method("ORPO", "orpo", "odds-ratio loss plus cross-entropy"),
        Method("DynamicPO", "dynamicpo", "boundary negatives and dual-margin beta"),
        Method("RoDPO", "dpo", "DPO with one random negative of the dynamic top-K pool"),
        Method("HaNoRec", "hanorec", "DPO with a beta per pair, by hardness and noise"),
        Method("SPRec", "dpo", "self-play DPO: negatives from the policy, a reference that is renewed"),
        Method("TAWin", "tawin", "windowed partial AUC weights", _tawin_normalized),
        Method("MPPO", "mppo", "multi-pair preference optimization on probabilities"),
    )
}


def method_of(cls: type) -> Method | None:
    """Return the Method of a model class, or None when it is not one of ours."""
    return METHODS.get(getattr(cls, "preference_method", ""))
