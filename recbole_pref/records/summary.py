"""Summarize runs per label: mean, standard deviation, difference from a baseline and its p value."""

import math
from typing import Any

import numpy as np

from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.metrics import GROUPS, group_of, parse_key, smaller_is_better
from recbole_pref.records import Run, number
from recbole_pref.records.significance import LEVEL, TESTS, holm

# The costs in tables: key of a record -> title of the column, name in words, decimals.
COSTS = {
    "seconds_per_epoch": ("s / epoch", "seconds per epoch", 2),
    "epochs_to_best": ("epochs to best", "epochs to best", 1),
    "peak_memory_mb": ("peak MiB", "peak memory (MiB)", 0),
}
BETTER, WORSE = "↑*", "↓*"


def table_metrics(run: Run) -> list[str]:
    """Return the metrics that a table shows: those with the cut-off of ``valid_metric``, overall first.

    If ``valid_metric`` has no cut-off, return the metrics without a cut-off and those at the first of ``topk``.
    """
    cutoff = parse_key(run.config["valid_metric"]).cutoff
    shown = {cutoff} if cutoff else {None, run.config["topk"][0]}
    names = [key for key in run.test_result if parse_key(key).cutoff in shown]
    order = [None, *reversed(GROUPS)]
    return sorted(names, key=lambda key: order.index(group_of(key)))


def summarize(
    runs: dict[str, dict[int, Run]],
    baseline: str | None = None,
    test: str = "t-test",
    metrics: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Return a row per label.

    Args:
        runs: the runs by label and seed.
        baseline: the label with which the others are compared; None for no tests.
        test: key of ``significance.TESTS``.
        metrics: keys of the metrics; by default :func:`table_metrics` of the first run.

    Returns:
        A row per label with ``label``, ``seeds``, the mean costs, and a dict per metric: ``mean``, ``std`` (ddof 1,
        None for one seed), ``difference`` (mean over the seeds that the baseline also has, or None) and ``p`` (with the
        correction of Holm over all labels and metrics, or None).
    """
    metrics = metrics or table_metrics(next(iter(next(iter(runs.values())).values())))
    of_baseline = {} if baseline is None else runs.get(baseline, {})
    rows: list[dict[str, Any]] = []
    tested: list[tuple[dict[str, Any], float]] = []
    for label, by_seed in runs.items():
        row: dict[str, Any] = {"label": label, "seeds": sorted(by_seed)}
        common = sorted(set(by_seed) & set(of_baseline)) if label != baseline else []
        pairs = [(by_seed[seed], of_baseline[seed]) for seed in common]
        for metric in metrics:
            values = np.array([run.test_result.get(metric, math.nan) for run in by_seed.values()])
            std = float(values.std(ddof=1)) if len(values) > 1 else None
            row[metric] = {"mean": float(values.mean()), "std": std, "difference": None, "p": None}
            if pairs:
                by_pair = [run.test_result[metric] - other.test_result[metric] for run, other in pairs]
                row[metric]["difference"] = float(np.mean(by_pair))
            by_user = _user_differences(pairs, metric) if pairs else None
            if by_user is not None:
                tested.append((row[metric], TESTS[test][0](by_user)))
        for cost in COSTS:
            costs = [value for run in by_seed.values() if (value := getattr(run, cost)) is not None]
            row[cost] = float(np.mean(costs)) if costs else None
        rows.append(row)
    for (cell, _), p in zip(tested, holm([p for _, p in tested])):
        cell["p"] = None if np.isnan(p) else float(p)
    return rows


def _user_differences(pairs: list[tuple[Run, Run]], metric: str) -> np.ndarray | None:
    """Return the difference per user, averaged over the seeds: [U], or None.

    The differences of several test rows of a user are summed, because they are not independent. The mean of the sums
    has the sign of the difference in the table. Seeds may split the data differently.
    """
    users, gaps = [], []
    for pair in pairs:
        if not same_rows(*pair) or group_of(metric) and not same_groups(*pair):
            return None
        one, other = (_values(run, metric) for run in pair)
        if one is None or other is None:
            return None
        (values, rows), (others, _) = one, other
        users.append(pair[0].arrays["user"][rows])
        gaps.append(values - others)
    _, numbers = np.unique(np.concatenate(users), return_inverse=True)
    return np.bincount(numbers, weights=np.concatenate(gaps)) / len(pairs)


def _values(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of a metric and their test rows, or None if ranks do not determine the metric.

    With several targets in a row, the mean over ranks differs from the result of the evaluator.
    """
    by_rank = evidence.user_values(run.arrays, metric)
    step = 10.0 ** -run.config.get("metric_decimal_place", 4)
    if by_rank is None or not abs(by_rank[0].mean() - run.test_result[metric]) <= step:  # also refuses NaN
        return None
    return by_rank


def same_rows(one: Run, other: Run) -> bool:
    """Return whether the arrays of two runs are of the same test rows."""
    return all(np.array_equal(one.arrays[key], other.arrays[key]) for key in ("target", "user"))


def same_groups(one: Run, other: Run) -> bool:
    """Return whether two runs have the same test rows in head and tail."""
    return np.array_equal(*(run.arrays["tail"][run.arrays["target"]] for run in (one, other)))


# -- format numbers


def shown(value: object) -> str:
    """Return a metric with four decimals, or an empty text if it is missing."""
    value = number(value)
    return f"{value:.4f}" if math.isfinite(value) else ""


def shown_cost(value: object, cost: str) -> str:
    """Return a cost with its decimals, or an empty text if it is missing."""
    value = number(value)
    return f"{value:.{COSTS[cost][2]}f}" if math.isfinite(value) else ""


def mark(cell: dict[str, Any], metric: str) -> str:
    """Return ``BETTER`` or ``WORSE`` if a cell differs significantly from the baseline, else an empty text."""
    difference = number(cell.get("difference"))
    if not number(cell.get("p")) < LEVEL or not difference:
        return ""
    return BETTER if (difference > 0) != smaller_is_better(metric) else WORSE


def best_shown(rows: list[dict[str, Any]], metric: str) -> str:
    """Return the best mean of a metric as text: all cells with this text are bold."""
    means = [number((row.get(metric) or {}).get("mean")) for row in rows]
    means = [mean for mean in means if math.isfinite(mean)]
    return shown((min if smaller_is_better(metric) else max)(means)) if means else ""
