"""Compute the numbers in the pictures of a comparison."""

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.metrics import DEFAULT_SPLIT
from recbole_pref.popularity import HEAD_RULES, head_in_words
from recbole_pref.records import Run, number


def read_collapse(path: str | os.PathLike[str], metric: str = "last") -> list[dict[str, Any]]:
    """Read the table that ``benchmarks/collapse.py`` writes as rows for :func:`collapse`.

    Args:
        path: a CSV file with the columns model, K, loss and ``metric``, and optionally reference.
        metric: column of the metric: ``last`` (last epoch), ``best`` or ``tail_best``. The loss is that of the
            last epoch.

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
                # the reference has only the overall metric
                "reference": float("nan" if metric == "tail_best" else row.get("reference") or "nan"),
            }
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise PrefError(f"'{path}' holds a value that is not a number ({error}): correct or delete the row.") from error


def scope(runs: list[Run], tail: bool = False) -> str:
    """Return the subtitle of a picture: the data set and, if needed, the definition of tail items.

    Args:
        runs: the runs in the picture.
        tail: whether the picture distinguishes tail items.

    Returns:
        Only facts that all runs share; possibly an empty text.
    """
    datasets = {run.dataset for run in runs}
    name = datasets.pop() if len(datasets) == 1 else ""
    return "; ".join(filter(None, (name, tail_definition(runs) if tail else "")))


def tail_definition(runs: list[Run]) -> str:
    """Describe the tail by ``tail_split`` and ``head_ratio``; empty if runs differ or lack these settings."""
    splits = {tuple(run.config.get(key) for key in DEFAULT_SPLIT) for run in runs}
    if len(splits) != 1:
        return ""
    rule, ratio = splits.pop()
    if rule is None or rule not in HEAD_RULES or not math.isfinite(number(ratio)):
        return ""
    return f"tail: all but {head_in_words(rule, number(ratio))}"


def main_metric(runs: list[Run]) -> str:
    """Return the key of the default metric of pictures.

    This is ``ndcg@10`` if all runs have it, else their ``valid_metric``, else the first metric that all runs have.

    Raises:
        PrefError: the runs share no metric.
    """
    common = [key for key in runs[0].test_result if all(key in run.test_result for run in runs)]
    valid = str(runs[0].config.get("valid_metric")).lower()
    for key in ("ndcg@10", valid, *common):
        if key in common:
            return key
    raise PrefError("The runs share no test metric: compare runs with the same 'metrics' and 'topk'.")


def check_metric(runs: list[Run], key: str) -> None:
    """Refuse a metric that no run has measured."""
    measured = dict.fromkeys(name for run in runs for name in run.test_result)
    if key not in measured:
        raise PrefError(
            f"metric '{key}' is in no run's test result: choose one of {', '.join(measured)}.{suggest(key, measured)}"
        )


def pareto_front(points: ArrayLike) -> np.ndarray:
    """Return which points no other point dominates, if both coordinates are maximised.

    A point dominates another one if it is at least as good in both coordinates and better in one. So equal points are
    either all on the front or not. O(N log N).

    Args:
        points: [N, 2] a point with NaN is never on the front.

    Returns:
        [N] bool.

    Raises:
        ValueError: the shape is not [N, 2].
    """
    table = np.asarray(points, dtype=np.float64)
    table = table.reshape(-1, 2) if table.size == 0 else table
    if table.ndim != 2 or table.shape[1] != 2:
        raise ValueError(f"points must have the shape [N, 2], not {list(table.shape)}")
    front = np.zeros(len(table), dtype=bool)
    valid = np.flatnonzero(~np.isnan(table).any(axis=1))
    x, y = table[valid].T
    order = np.lexsort((-y, -x))  # descending x; for equal x, descending y
    x, y = x[order], y[order]
    # the first position of each x has the best y of this x; all positions before it have a better x
    first = np.searchsorted(-x, -x, side="left")  # [M]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(y)))[first]
    starts = first == 0
    front[valid[order]] = (y == y[first]) & (starts | (y > best_before))
    return front


def exposure(top: np.ndarray, count: np.ndarray, groups: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of recommendation slots and of items for groups of items by popularity.

    Args:
        top: [R, k] recommended items; 0 (padding) is not counted.
        count: [n_items] training interactions, index 0 is padding.
        groups: number of groups; the first has the most popular items. Group sizes differ by at most one item; items
            with equal counts are in the order of their ids.

    Returns:
        The shares of the slots and of the items, [groups] each; each sums to 1.
    """
    count, top = np.asarray(count), np.asarray(top)
    n_items = len(count) - 1
    rank = np.empty(n_items, dtype=np.int64)  # rank of item i + 1 by popularity
    rank[np.argsort(-count[1:].astype(np.int64), kind="stable")] = np.arange(n_items)
    group = rank * groups // n_items  # [n_items]
    slots = np.bincount(group[top[top > 0] - 1], minlength=groups)
    items = np.bincount(group, minlength=groups)
    return slots / max(slots.sum(), 1), items / n_items
