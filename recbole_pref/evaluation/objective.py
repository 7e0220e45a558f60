"""The criterion of the best epoch, early stopping and sweeps: a metric, a weighted sum, or a constraint.

The setting ``objective`` is empty (RecBole's ``valid_metric`` decides) or a dict::

    objective:
      weights: {TailNDCG@10: 1.0}        # score = weighted sum of these metrics
      at_least: {NDCG@10: 0.0598}        # optional: an epoch below this never beats one above
      of_reference: {NDCG@10: 0.99}      # optional: the same, as a share of the validation metric of
                                         # the reference; for models that start from a reference

A metric with better lower values (RecBole's ``smaller``) enters with the opposite sign.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole.evaluator.register import metric_information

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.metrics import smaller_is_better
from recbole_pref.settings import is_number, shown

# Metrics that can exceed 1, and an upper bound of their values.
_BEYOND_ONE = {"averagepopularity", "shannonentropy", "logloss", "mae", "rmse"}
_UPPER_BOUND = 1e9
# What RecBole's evaluator gives to metrics with cut-offs.
_CUTOFF_INPUTS = ("rec.topk", "rec.items")


class Objective:
    """A score of validation metrics, larger is better.

    Args:
        weights: metric, such as ``NDCG@10``, to its weight.
        at_least: metric to the bound that it must reach (must not exceed, when lower is
            better).
        of_reference: metric to a share of the reference's value;
            :meth:`take_reference` turns it into such a bound.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        at_least: Mapping[str, float] | None = None,
        of_reference: Mapping[str, float] | None = None,
    ) -> None:
        self.weights = {metric.lower(): float(weight) for metric, weight in weights.items()}
        self.at_least = {metric.lower(): float(bound) for metric, bound in (at_least or {}).items()}
        self.of_reference = {metric.lower(): float(share) for metric, share in (of_reference or {}).items()}
        metrics = (*self.weights, *self.at_least, *self.of_reference)
        self._sign = {metric: -1.0 if smaller_is_better(metric) else 1.0 for metric in metrics}

    def take_reference(self, result: Mapping[str, float]) -> None:
        """Turn shares of the reference's metrics into bounds.

        Args:
            result: validation metrics of the reference.
        """
        for metric, share in self.of_reference.items():
            bound = share * float(result[metric])
            fixed = self.at_least.get(metric, bound)
            self.at_least[metric] = max(bound, fixed) if self._sign[metric] > 0 else min(bound, fixed)

    def violation(self, result: Mapping[str, float]) -> float:
        """Return how far ``result`` is below its bounds: the largest relative gap, 0 when all hold."""
        gaps = [
            self._sign[metric] * (bound - result[metric]) / max(abs(bound), 1e-12)
            for metric, bound in self.at_least.items()
        ]
        return max((0.0, *(gap if gap == gap else float("inf") for gap in gaps)))

    def _largest_sum(self) -> float:
        """Return an upper bound of the absolute weighted sum."""
        return sum(
            abs(weight) * (_UPPER_BOUND if metric.partition("@")[0] in _BEYOND_ONE else 1.0)
            for metric, weight in self.weights.items()
        )

    def score(self, result: Mapping[str, float]) -> float:
        """Return the score of a result.

        Within the bounds it is the weighted sum. Outside it is below every possible sum, and decreases with the
        violation. So a result within the bounds always wins, and outside the smaller violation wins.

        Args:
            result: metrics in RecBole's spelling (``ndcg@10``).
        """
        violation = self.violation(result)
        if violation > 0:
            return -(self._largest_sum() + violation)
        return sum(w * self._sign[m] * float(result[m]) for m, w in self.weights.items())


def of_config(config: Any) -> "Objective | None":
    """Return the ``Objective`` of a run's settings, or None when only ``valid_metric`` decides."""
    setting = config["objective"]
    return Objective(**setting) if setting else None


def check_objective(value: Any, metrics: Sequence[str], topk: Sequence[int], setting: str = "objective") -> None:
    """Refuse an objective that the validation does not measure.

    Args:
        value (dict): the setting ``objective``.
        metrics: the setting of that name.
        topk: the setting of that name.
        setting: its name in messages.

    Raises:
        PrefError: not a dict of that form, a metric that is not measured, or a value that is not a number.
    """
    form = f"write {setting}: {{weights: {{TailNDCG@10: 1.0}}, at_least: {{NDCG@10: 0.05}}}}"
    if not isinstance(value, dict) or not isinstance(value.get("weights"), dict) or not value["weights"]:
        raise PrefError(f"{setting}={shown(value)} names no weights: {form}.")
    unknown = [key for key in value if key not in ("weights", "at_least", "of_reference")]
    if unknown:
        raise PrefError(f"{setting} holds {shown(unknown[0])}: {form}.")
    parts = {key: value.get(key) or {} for key in ("at_least", "of_reference")}
    for key, bounds in parts.items():
        if not isinstance(bounds, dict):
            raise PrefError(f"{setting}: {key}={shown(bounds)} is not a dict: {form}.")
    pairs = [*value["weights"].items(), *parts["at_least"].items(), *parts["of_reference"].items()]
    for metric, number in pairs:
        check_measured(metric, metrics, topk, setting)
        if not is_number(number):
            raise PrefError(f"{setting}: {metric}={shown(number)} is not a number, or not a finite one: {form}.")


def check_measured(metric: str, metrics: Sequence[str], topk: Sequence[int], setting: str) -> None:
    """Refuse a metric (``Name@K``) that ``metrics`` and ``topk`` do not measure.

    Raises:
        PrefError: names the metric and what to add.
    """
    name, at, k = str(metric).partition("@")
    measured = [str(measured).lower() for measured in metrics]
    if name.lower() not in measured:
        raise PrefError(f"{setting}={shown(metric)} is not measured: add {name} to metrics.{suggest(name, measured)}")
    needs = metric_information.get(name.lower(), ())  # another check reports unknown names
    has_cutoffs = any(need.startswith(_CUTOFF_INPUTS) for need in needs)
    if has_cutoffs and k not in map(str, topk):
        more = f"add {k} to it or " if k.isdigit() else ""
        raise PrefError(
            f"{setting}={shown(metric)} is not measured: topk is {shown(topk)}, {more}write {name}@{topk[0]}."
        )
    if at and not has_cutoffs:
        raise PrefError(f"{setting}={shown(metric)} is not measured: {name} has no cut-offs, write {name}.")
