"""Ranking metrics that RecBole lacks or computes slowly, as ordinary RecBole metrics.

- ``TailHit``, ``TailRecall``, ``TailNDCG``, ``TailMRR``, ``TailPrecision``, ``TailMAP`` and the same six
  with ``Head``: RecBole's metric in which only the tail (head) targets are relevant.
- ``WPAUC``: the windowed partial AUC of TAWin (arXiv 2604.22504).
- ``TailPercentage`` and ``AveragePopularity``: RecBole's values, without its loop over users and ranks.

:func:`register` adds them to RecBole's registry; then ``metrics: [Hit, TailNDCG, WPAUC]`` and
``valid_metric: TailNDCG@10`` work. :class:`recbole_pref.evaluation.collector.PrefCollector` fills the
tables that they read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from recbole.evaluator import metrics as recbole_metrics
from recbole.evaluator import register as recbole_register
from recbole.evaluator.base_metric import TopkMetric

from recbole_pref.errors import PrefError

GROUPS = ("tail", "head")
DEFAULT_SPLIT: dict[str, Any] = {"tail_split": "items", "head_ratio": 0.2}


def split_settings(config: Any) -> tuple[str, float]:
    """Return ``(tail_split, head_ratio)`` of a config, with defaults for missing ones."""
    rule, ratio = (default if config[key] is None else config[key] for key, default in DEFAULT_SPLIT.items())
    return rule, ratio


def empty_group_error(group: str, metric: str, config: Any, where: str = "the evaluated users") -> PrefError:
    """Return the PrefError of a group metric that has no target to count.

    Args:
        group: ``tail`` or ``head``.
        metric: name of the metric in the message.
        config: holds ``tail_split`` and ``head_ratio``.
        where: the users whose targets were counted.
    """
    rule, ratio = split_settings(config)
    remedy = "a larger" if group == "head" else "a smaller"
    return PrefError(
        f"{metric} cannot be computed because no target of {where} is a {group} item under "
        f"tail_split={rule!r} with head_ratio={ratio}: set {remedy} head_ratio or another "
        f"tail_split, or remove the {group.capitalize()} metrics from 'metrics'."
    )


def _table(dataobject: Any, name: str, metric: str) -> Any:
    """Return a collected table, or raise an error that names the collector that fills it."""
    if name not in dataobject:
        raise PrefError(
            f"metrics: RecBole's own trainer cannot compute {metric} (it does not collect '{name}'): "
            f"run the model through recbole_pref or remove {metric} from 'metrics'."
        )
    return dataobject.get(name)


def _restrict(base: Any, group: str) -> Any:
    """Return RecBole's metric class ``base`` restricted to the relevant items of one group.

    For user u with targets R(u) the metric is that of ``base`` with R_g(u) = R(u) & group instead of
    R(u). The ranked list is unchanged: it includes the items of the other group. The mean is over the
    users with at least one target in the group.
    """
    name = f"{group.capitalize()}{base.__name__}"

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self.config = config

    def used_info(self: Any, dataobject: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return hits [U, K] bool and number of targets [U], of the users with targets in the group.

        Raises:
            PrefError: no evaluated user has a target in the group.
        """
        table = _table(dataobject, f"rec.topk_{group}", name).numpy()
        table = table[table[:, -1] > 0]
        if len(table) == 0:
            raise empty_group_error(group, name, self.config)
        return table[:, :-1].astype(bool), table[:, -1]

    def topk_result(self: Any, metric: str, value: np.ndarray) -> dict[str, float]:
        """Return ``{'<group><metric>@k': mean over the users}``."""
        return base.topk_result(self, f"{group}{metric}", value)

    body = {
        "__init__": __init__,
        "__module__": __name__,
        "__doc__": f"{base.__name__} over the {group} targets; see :func:`_restrict`.",
        "metric_need": (f"rec.topk_{group}",),
        "used_info": used_info,
        "topk_result": topk_result,
    }
    return type(name, (base,), body)


TailHit = _restrict(recbole_metrics.Hit, "tail")
TailRecall = _restrict(recbole_metrics.Recall, "tail")
TailNDCG = _restrict(recbole_metrics.NDCG, "tail")
TailMRR = _restrict(recbole_metrics.MRR, "tail")
TailPrecision = _restrict(recbole_metrics.Precision, "tail")
TailMAP = _restrict(recbole_metrics.MAP, "tail")
HeadHit = _restrict(recbole_metrics.Hit, "head")
HeadRecall = _restrict(recbole_metrics.Recall, "head")
HeadNDCG = _restrict(recbole_metrics.NDCG, "head")
HeadMRR = _restrict(recbole_metrics.MRR, "head")
HeadPrecision = _restrict(recbole_metrics.Precision, "head")
HeadMAP = _restrict(recbole_metrics.MAP, "head")

GROUP_METRICS = {
    "tail": (TailHit, TailRecall, TailNDCG, TailMRR, TailPrecision, TailMAP),
    "head": (HeadHit, HeadRecall, HeadNDCG, HeadMRR, HeadPrecision, HeadMAP),
}


def wpauc(above: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """Windowed partial AUC at k of each user, from ranks.

    Of a user's n- negatives in descending order of score, the window holds those with 1-based ranks
    in (alpha n-, (alpha + d) n-], alpha = (k - n+)/n-, d = n+/n-, that is ranks k - n+ + 1 to k:

        WPAUC@k = 1/(n+ |window|) * sum over targets i, window negatives j of [s_i > s_j]

    With one target the window is only the k-th negative and the value is Recall@k. For k < n+ the
    window is cut to the ranks 1 to k. Ranks beyond n- count as ranked below the target, so that the
    equality with Recall@k also holds for a short candidate list.

    Args:
        above: [P] per target, the number of negatives ranked above it (any number >= k means
            "k or more"); targets in the order of their users.
        num_targets: [U] n+ per user, at least 1, summing to P.
        k: length of the list.

    Returns:
        ndarray: [U] float64, in [0, 1].

    Reference: TAWin, arXiv 2604.22504, Theorem 3.4 and Lemma 3.5.
    """
    num_targets = np.asarray(num_targets, dtype=np.int64)
    users = np.repeat(np.arange(len(num_targets)), num_targets)  # [P]
    first = np.maximum(k - num_targets, 0)  # [U], rank before the window
    beaten = k - np.clip(above, first[users], k)  # [P]
    total = np.bincount(users, weights=beaten, minlength=len(num_targets))  # [U]
    return total / ((k - first) * num_targets)


class WPAUC(TopkMetric):
    """Windowed partial AUC at k, mean over the users; the formula is in :func:`wpauc`."""

    metric_need = ("rec.topk", "rec.above")

    def calculate_metric(self, dataobject: Any) -> dict[str, float]:
        """Return ``{'wpauc@k': value}``."""
        above = _table(dataobject, "rec.above", "WPAUC").numpy()
        _, num_targets = self.used_info(dataobject)
        return {f"wpauc@{k}": round(wpauc(above, num_targets, k).mean(), self.decimal_place) for k in self.topk}


def _lookup(counts: Mapping[int, int], item_matrix: np.ndarray) -> np.ndarray:
    """Return the count of each listed item [U, K] int64, 0 for items without one.

    Args:
        counts: count per item id.
        item_matrix: [U, K] item ids.
    """
    items = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    values = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    table = np.zeros(max(items.max(initial=0), item_matrix.max(initial=0)) + 1, dtype=np.int64)
    table[items] = values
    return table[item_matrix]


class AveragePopularity(recbole_metrics.AveragePopularity):
    """RecBole's AveragePopularity with one table look-up instead of a loop."""

    def get_pop(self, item_matrix: np.ndarray, item_count: Mapping[int, int]) -> np.ndarray:
        """Return the popularity of the listed items [U, K]."""
        return _lookup(item_count, item_matrix)


class TailPercentage(recbole_metrics.TailPercentage):
    """RecBole's TailPercentage with one table look-up instead of a loop.

    Its tail is RecBole's (setting ``tail_ratio``, from RecBole's item counter), not that of
    ``tail_split`` and ``head_ratio``.
    """

    def get_tail(self, item_matrix: np.ndarray, count_items: Mapping[int, int]) -> np.ndarray:
        """Return 1 for each listed tail item [U, K], else 0."""
        items = np.fromiter(count_items.keys(), dtype=np.int64, count=len(count_items))
        counts = np.fromiter(count_items.values(), dtype=np.int64, count=len(count_items))
        if self.tail > 1:
            tail = items[counts <= self.tail]
        else:
            cut = max(int(len(items) * self.tail), 1)
            tail = items[np.lexsort((items, counts))[:cut]]
        return _lookup(dict.fromkeys(tail.tolist(), 1), item_matrix)


METRICS = (*GROUP_METRICS["tail"], *GROUP_METRICS["head"], WPAUC, AveragePopularity, TailPercentage)


def register() -> None:
    """Add the metrics to RecBole's registry; repeated calls have no effect.

    Call it once per process, before a ``Config`` is made.
    """
    for metric in METRICS:
        name = metric.__name__.lower()
        recbole_register.metrics_dict[name] = metric
        recbole_register.metric_information[name] = metric.metric_need
        recbole_register.metric_types[name] = metric.metric_type
        if metric.smaller and name not in recbole_register.smaller_metrics:
            recbole_register.smaller_metrics.append(name)


class MetricKey(NamedTuple):
    """The parts of a result's key: ``tailndcg@10`` has the group ``tail``, the name ``ndcg`` and the cut-off 10."""

    group: str | None
    name: str
    cutoff: int | None


def parse_key(key: str) -> MetricKey:
    """Return the parts of a result's key, such as ``ndcg@10``, ``tailhit@5`` or ``gauc``.

    Only the group metrics of this package have a group: RecBole's ``tailpercentage@10`` has none.
    """
    name, _, cutoff = key.lower().partition("@")
    cls = recbole_register.metrics_dict.get(name)
    group = next((group for group, classes in GROUP_METRICS.items() if cls in classes), None)
    name = cls.__base__.__name__.lower() if group else name
    return MetricKey(group, name, int(cutoff) if cutoff.isdecimal() else None)


def group_of(key: str) -> str | None:
    """Return ``tail`` or ``head`` for the key of a group metric, such as ``tailhit@5``, otherwise None."""
    return parse_key(key).group


def group_key(group: str, key: str) -> str:
    """Return the key of a metric over one group: ``tailndcg@10`` for ``tail`` and ``ndcg@10``."""
    return f"{group}{key}"


def smaller_is_better(key: str) -> bool:
    """Return whether RecBole considers a lower value of the metric better."""
    return parse_key(key).name in recbole_register.smaller_metrics


def display_name(key: str) -> str:
    """Return the key of a result in the spelling of tables, reports and figures.

    Args:
        key: such as ``ndcg@10`` or ``tailhit@5``.

    Returns:
        ``NDCG@10``, ``Tail Hit@5``; the unchanged key of an unknown metric.
    """
    group, name, cutoff = parse_key(key)
    cls = recbole_register.metrics_dict.get(name)
    if cls is None:
        return key
    words = [group.capitalize(), cls.__name__] if group else [cls.__name__]
    return " ".join(words) + (f"@{cutoff}" if cutoff is not None else "")


def group_metrics_in(config: Any) -> dict[str, list[str]]:
    """Return the configured metrics that need a group, ``{'tail': [...], 'head': [...]}`` by name."""
    configured = {metric.lower() for metric in config["metrics"]}
    return {
        group: [cls.__name__ for cls in classes if cls.__name__.lower() in configured]
        for group, classes in GROUP_METRICS.items()
    }


register()
