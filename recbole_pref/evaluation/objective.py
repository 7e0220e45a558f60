"""What the best epoch, early stopping and sweeps follow: one metric, a weighted sum, or a constraint.

The setting ``objective`` is empty (RecBole's ``valid_metric`` decides) or a dict::

    objective:
      weights: {TailNDCG@10: 1.0}        # score = weighted sum of these metrics
      at_least: {NDCG@10: 0.0598}        # optional: no epoch below this counts as better than one above
      of_reference: {NDCG@10: 0.99}      # optional: the same, as a share of what the reference reaches on
                                         # the validation set; for models that start from a reference

A metric of which less is better (RecBole's ``smaller``) enters with its sign turned.
"""

from numbers import Real

from recbole.evaluator.register import metrics_dict

from recbole_pref.errors import PrefError, suggest

# Metrics that are no shares of something, and what they stay below.
_BEYOND_ONE = {"averagepopularity", "shannonentropy", "logloss", "mae", "rmse"}
_MOST = 1e9


def less_is_better(metric):
    """Return whether a lower value of ``metric`` (``Name`` or ``Name@K``) is the better one."""
    return bool(getattr(metrics_dict[metric.partition("@")[0].lower()], "smaller", False))


class Objective:
    """A score of validation metrics, larger is better.

    Args:
        weights (dict of str to float): metric, such as ``NDCG@10``, to its weight.
        at_least (dict of str to float, optional): metric to the bound it must reach (not exceed, for
            a metric of which less is better).
        of_reference (dict of str to float, optional): metric to the share of the reference's value that
            becomes such a bound by :meth:`take_reference`.
    """

    def __init__(self, weights, at_least=None, of_reference=None):
        self.weights = {metric.lower(): float(weight) for metric, weight in weights.items()}
        self.at_least = {metric.lower(): float(bound) for metric, bound in (at_least or {}).items()}
        self.of_reference = {metric.lower(): float(share) for metric, share in (of_reference or {}).items()}
        metrics = (*self.weights, *self.at_least, *self.of_reference)
        self._sign = {metric: -1.0 if less_is_better(metric) else 1.0 for metric in metrics}

    def take_reference(self, result):
        """Turn shares of the reference's metrics into bounds.

        Args:
            result (dict of str to float): validation metrics of the reference.
        """
        for metric, share in self.of_reference.items():
            bound = share * float(result[metric])
            known = self.at_least.get(metric, bound)
            self.at_least[metric] = max(bound, known) if self._sign[metric] > 0 else min(bound, known)

    def violation(self, result):
        """Return how far ``result`` is below its bounds: the largest relative gap, 0 when all hold."""
        gaps = [
            self._sign[metric] * (bound - result[metric]) / max(abs(bound), 1e-12)
            for metric, bound in self.at_least.items()
        ]
        return max((0.0, *(gap if gap == gap else float("inf") for gap in gaps)))

    def _floor(self):
        """Return a number that the size of the weighted sum does not reach."""
        return sum(
            abs(weight) * (_MOST if metric.partition("@")[0] in _BEYOND_ONE else 1.0)
            for metric, weight in self.weights.items()
        )

    def score(self, result):
        """Return the score of a result.

        Within the bounds it is the weighted sum; outside it is below any sum that can be, and the lower the
        larger the violation, so that whatever holds the bounds wins and, outside, less violation wins.

        Args:
            result (dict of str to float): metrics as RecBole names them (``ndcg@10``).
        """
        violation = self.violation(result)
        if violation > 0:
            return -(self._floor() + violation)
        return sum(w * self._sign[m] * float(result[m]) for m, w in self.weights.items())


def of_config(config):
    """Return the ``Objective`` of a run's settings, None where ``valid_metric`` alone decides."""
    wanted = config["objective"]
    return Objective(**wanted) if wanted else None


def check_objective(wanted, metrics, topk, setting="objective"):
    """Refuse an objective that the validation does not measure.

    Args:
        wanted (dict): value of ``objective``.
        metrics (list of str): the setting of that name.
        topk (list of int): the setting of that name.
        setting (str): what messages call it.

    Raises:
        PrefError: no dict of that form, a metric that is not measured, a number that is none.
    """
    form = f"write {setting}: {{weights: {{TailNDCG@10: 1.0}}, at_least: {{NDCG@10: 0.05}}}}"
    if not isinstance(wanted, dict) or not isinstance(wanted.get("weights"), dict) or not wanted["weights"]:
        raise PrefError(f"{setting}={wanted!r} names no weights: {form}.")
    unknown = sorted(set(wanted) - {"weights", "at_least", "of_reference"})
    if unknown:
        raise PrefError(f"{setting} holds {unknown[0]!r}: {form}.")
    parts = {key: wanted.get(key) or {} for key in ("at_least", "of_reference")}
    for key, bounds in parts.items():
        if not isinstance(bounds, dict):
            raise PrefError(f"{setting}: {key}={bounds!r} is no dict: {form}.")
    pairs = [*wanted["weights"].items(), *parts["at_least"].items(), *parts["of_reference"].items()]
    for metric, number in pairs:
        check_measured(metric, metrics, topk, setting)
        if isinstance(number, bool) or not isinstance(number, Real) or number != number:
            raise PrefError(f"{setting}: {metric}={number!r} is not a number: {form}.")


def check_measured(metric, metrics, topk, setting):
    """Refuse a metric (``Name@K``) that ``metrics`` and ``topk`` do not measure.

    Raises:
        PrefError: names the metric and what to add.
    """
    name, at, k = str(metric).partition("@")
    known = [str(known).lower() for known in metrics]
    if name.lower() not in known:
        raise PrefError(
            f"{setting}={metric!r} is not measured: add {name} to metrics.{suggest(name, known)}"
        )
    if at and (not k.isdigit() or int(k) not in topk):
        raise PrefError(f"{setting}={metric!r} is not measured: topk is {topk}, add {k} to it.")
