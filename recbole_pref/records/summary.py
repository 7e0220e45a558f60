"""Runs summarised per label: mean, deviation, difference from a baseline and its p value."""

import math

import numpy as np

from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.metrics import GROUPS, group_of, parse_key, smaller_is_better
from recbole_pref.records import Run, number
from recbole_pref.records.significance import LEVEL, TESTS, holm

# The costs that tables show beside metrics: key of a record -> name of the column, name in words, decimals.
COSTS = {
    "seconds_per_epoch": ("s / epoch", "seconds per epoch", 2),
    "epochs_to_best": ("epochs to best", "epochs to best", 1),
    "peak_memory_mb": ("peak MiB", "peak memory (MiB)", 0),
}
BETTER, WORSE = "↑*", "↓*"


def table_metrics(run: Run) -> list[str]:
    """Return the metrics that a table shows: those at the cut-off of ``valid_metric``, overall first.

    Where it has none: those without a cut-off and those at the first of ``topk``.
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
) -> list[dict]:
    """Return a row per label.

    Args:
        runs: label to a dict of seed to run.
        baseline: label that the others are tested against; None tests nothing.
        test: key of ``significance.TESTS``.
        metrics: keys of the metrics; by default :func:`table_metrics` of the first run.

    Returns:
        Per label ``label``, ``seeds``, the mean costs, and per metric a dict of ``mean`` and ``std`` (ddof 1, None for
        one seed), ``difference`` (mean over the seeds in common with the baseline, or None) and ``p`` (corrected after
        Holm over all labels and metrics, or None).
    """
    metrics = metrics or table_metrics(next(iter(next(iter(runs.values())).values())))
    of_baseline = runs.get(baseline, {})
    rows, tested = [], []
    for label, by_seed in runs.items():
        row = {"label": label, "seeds": sorted(by_seed)}
        common = sorted(set(by_seed) & set(of_baseline)) if label != baseline else []
        pairs = [(by_seed[seed], of_baseline[seed]) for seed in common]
        for metric in metrics:
            values = np.array([run.test_result.get(metric, math.nan) for run in by_seed.values()])
            std = float(values.std(ddof=1)) if len(values) > 1 else None
            row[metric] = {"mean": float(values.mean()), "std": std, "difference": None, "p": None}
            if pairs:
                gaps = [own.test_result[metric] - other.test_result[metric] for own, other in pairs]
                row[metric]["difference"] = float(np.mean(gaps))
            gaps = _user_differences(pairs, metric) if pairs else None
            if gaps is not None:
                tested.append((row[metric], TESTS[test][0](gaps)))
        for cost in COSTS:
            costs = [value for run in by_seed.values() if (value := getattr(run, cost)) is not None]
            row[cost] = float(np.mean(costs)) if costs else None
        rows.append(row)
    for (cell, _), p in zip(tested, holm([p for _, p in tested])):
        cell["p"] = None if np.isnan(p) else float(p)
    return rows


def _user_differences(pairs, metric):
    """Return the difference per user, averaged over the seeds: ndarray [U], or None.

    The difference of a user with several test rows is their sum: rows of one user are not independent draws, and the
    mean of the sums has the sign of the difference in the table. Seeds may split the data differently.
    """
    users, gaps = [], []
    for pair in pairs:
        if not same_rows(*pair) or group_of(metric) and not same_groups(*pair):
            return None
        one, other = ({**run.arrays, **_values(run, metric)} for run in pair)
        if "values" not in one or "values" not in other:
            return None
        users.append(one["user"][one["rows"]])
        gaps.append(one["values"] - other["values"])
    _, places = np.unique(np.concatenate(users), return_inverse=True)
    return np.bincount(places, weights=np.concatenate(gaps)) / len(pairs)


def _values(run, metric):
    """Return ``values`` of a metric per test row and those ``rows``, nothing where ranks do not determine the metric.

    With several targets in a row the mean over ranks is not what the evaluator reports.
    """
    found = evidence.user_values(run.arrays, metric)
    step = 10.0 ** -run.config.get("metric_decimal_place", 4)
    if found is None or not abs(found[0].mean() - run.test_result[metric]) <= step:  # NaN is neither
        return {}
    return dict(zip(("values", "rows"), found))


def same_rows(one: Run, other: Run) -> bool:
    """Return whether the arrays of two runs are of the same test rows."""
    return all(np.array_equal(one.arrays[key], other.arrays[key]) for key in ("target", "user"))


def same_groups(one: Run, other: Run) -> bool:
    """Return whether two runs call the same test rows head and tail."""
    return np.array_equal(*(run.arrays["tail"][run.arrays["target"]] for run in (one, other)))


# -- how numbers of the rows are shown


def shown(value: object) -> str:
    """Return a metric with four decimals, or an empty text where there is none."""
    value = number(value)
    return f"{value:.4f}" if math.isfinite(value) else ""


def shown_cost(value: object, cost: str) -> str:
    """Return a cost with its decimals, or an empty text where there is none."""
    value = number(value)
    return f"{value:.{COSTS[cost][2]}f}" if math.isfinite(value) else ""


def mark(cell: dict, metric: str) -> str:
    """Return ``BETTER`` or ``WORSE`` where a cell differs significantly from the baseline, otherwise an empty text."""
    difference = number(cell.get("difference"))
    if not number(cell.get("p")) < LEVEL or not difference:
        return ""
    return BETTER if (difference > 0) != smaller_is_better(metric) else WORSE


def best_shown(rows: list[dict], metric: str) -> str:
    """Return the best mean of a metric as it is shown, so that values that look equal are equally bold."""
    means = [number((row.get(metric) or {}).get("mean")) for row in rows]
    means = [mean for mean in means if math.isfinite(mean)]
    return shown((min if smaller_is_better(metric) else max)(means)) if means else ""
