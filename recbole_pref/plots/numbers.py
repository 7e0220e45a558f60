"""The numbers behind the pictures of a comparison."""

import csv
import math
from pathlib import Path

import numpy as np

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.metrics import DEFAULT_SPLIT
from recbole_pref.popularity import HEAD_RULES, head_in_words
from recbole_pref.records import Run, number


def read_collapse(path, metric="last"):
    """Read the table that ``benchmarks/collapse.py`` writes as rows for :func:`collapse`.

    Args:
        path (path-like): CSV with the columns model, K, loss and ``metric``, perhaps reference.
        metric (str): column of the metric: ``last`` (last epoch), ``best`` or ``tail_best``. The loss is the
            last epoch's.

    Raises:
        PrefError: the file, a column or a number is missing.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PrefError(f"'{path}' cannot be read ({reason}): name the CSV of a sweep over K.") from error
    columns = ("model", "K", "loss", metric)
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise PrefError(
            f"'{path}' has no column {', '.join(map(repr, missing))} with values: give a CSV file with the "
            f"columns {', '.join(columns)}."
        )
    epochs = "after the last epoch" if metric == "last" else "metric of the best epoch, loss of the last"
    try:
        return [
            {
                "dataset": row.get("dataset"),
                "epochs": epochs,
                "method": row["model"],
                "K": int(row["K"]),
                "metric": float(row[metric]),
                "loss": float(row["loss"]),
                "name": "tailndcg@10" if metric == "tail_best" else "ndcg@10",
                # of the reference the overall metric is known alone
                "reference": float("nan" if metric == "tail_best" else row.get("reference") or "nan"),
            }
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise PrefError(f"'{path}' holds a value that is not a number ({error}): correct or delete the row.") from error


def scope(runs: list[Run], tail: bool = False) -> str:
    """Return the line that lets a picture stand alone: the data set and, where they count, what tail items are.

    Args:
        runs: of the picture.
        tail: whether the picture tells tail items from others.

    Returns:
        Only what all runs have in common; empty where they say nothing.
    """
    datasets = {run.dataset for run in runs}
    name = datasets.pop() if len(datasets) == 1 else ""
    return "; ".join(filter(None, (name, tail_definition(runs) if tail else "")))


def tail_definition(runs: list[Run]) -> str:
    """Return what ``tail_split`` and ``head_ratio`` call the tail; empty where runs differ or do not say."""
    splits = {tuple(run.config.get(key) for key in DEFAULT_SPLIT) for run in runs}
    if len(splits) != 1:
        return ""
    rule, ratio = splits.pop()
    known = rule in HEAD_RULES and math.isfinite(number(ratio))
    return f"tail: all but {head_in_words(rule, number(ratio))}" if known else ""


def main_metric(runs: list[Run]) -> str:
    """Return the metric key that pictures show by default.

    ``ndcg@10`` where all runs have it, otherwise their ``valid_metric``, otherwise the first metric that
    all runs have.

    Raises:
        PrefError: the runs have no metric in common.
    """
    common = [key for key in runs[0].test_result if all(key in run.test_result for run in runs)]
    valid = str(runs[0].config.get("valid_metric")).lower()
    for key in ("ndcg@10", valid, *common):
        if key in common:
            return key
    raise PrefError("The runs share no test metric: compare runs with the same 'metrics' and 'topk'.")


def check_metric(runs: list[Run], key: str) -> None:
    """Refuse a metric that no run has measured."""
    known = dict.fromkeys(name for run in runs for name in run.test_result)
    if key not in known:
        raise PrefError(
            f"metric '{key}' is in no run's test result: take one of {', '.join(known)}.{suggest(key, known)}"
        )


def pareto_front(points):
    """Return which points no other point dominates, both coordinates being maximised.

    A point dominates another when it is at least as good in both coordinates and better in one, so equal
    points stay together. O(N log N).

    Args:
        points (array-like [N, 2]): a point with NaN is on no front.

    Returns:
        ndarray [N] bool.

    Raises:
        ValueError: another shape.
    """
    points = np.asarray(points, dtype=np.float64)
    points = points.reshape(-1, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have the shape [N, 2], not {list(points.shape)}")
    front = np.zeros(len(points), dtype=bool)
    valid = np.flatnonzero(~np.isnan(points).any(axis=1))
    x, y = points[valid].T
    order = np.lexsort((-y, -x))  # best x first, and of equal x the best y first
    x, y = x[order], y[order]
    # first place of each x: it holds the best y of that x, and all before it have a better x
    first = np.searchsorted(-x, -x, side="left")  # [M]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(y)))[first]
    starts = first == 0
    front[valid[order]] = (y == y[first]) & (starts | (y > best_before))
    return front


def exposure(top, count, groups=10):
    """Return how recommendation slots spread over tenths of the items ordered by popularity.

    Args:
        top (int array [R, k]): recommended items; 0 (padding) is not counted.
        count (int array [n_items]): training interactions, index 0 is padding.
        groups (int): number of groups; the first holds the most popular items. Their sizes differ by at
            most one item; items of equal count are taken in the order of their ids.

    Returns:
        tuple: share of the slots [groups], share of the items [groups]; each sums to 1.
    """
    count, top = np.asarray(count), np.asarray(top)
    n_items = len(count) - 1
    rank = np.empty(n_items, dtype=np.int64)  # place of item i + 1 by popularity
    rank[np.argsort(-count[1:].astype(np.int64), kind="stable")] = np.arange(n_items)
    group = rank * groups // n_items  # [n_items]
    slots = np.bincount(group[top[top > 0] - 1], minlength=groups)
    items = np.bincount(group, minlength=groups)
    return slots / max(slots.sum(), 1), items / n_items
