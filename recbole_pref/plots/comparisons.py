"""Pictures of a comparison: learning curves, trade-off, tail gap, exposure, collapse."""

from __future__ import annotations  # matplotlib is imported late

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name, group_key
from recbole_pref.plots.drawing import (
    GREY,
    LOG_SPAN,
    Style,
    add_legend,
    add_scope,
    add_tips,
    dark,
    draw_mean,
    front_steps,
    line_handle,
    name_points,
    panels,
    shortened,
    styled,
    styles,
    value_axis,
)
from recbole_pref.plots.numbers import check_metric, exposure, scope
from recbole_pref.records import Run, by_label, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def learning_curves(runs: list[Run], metric: str = "ndcg@10") -> Figure:
    """Draw a validation metric against the epoch: overall and, if measured, on the tail.

    Args:
        runs: see :func:`load_runs`; needs ``history``.
        metric: RecBole's key; the second panel shows ``tail`` + metric.

    Returns:
        A figure with one or two panels and a line per label.

    Raises:
        PrefError: no run has a validation of the metric.
    """
    measured = {key for run in runs for entry in run.history for key in entry}
    keys = [key for key in (metric, group_key("tail", metric)) if key in measured]
    if not keys:
        raise PrefError(
            f"metric '{metric}' is in no run's validation history: add it to 'metrics' and 'topk' and run again."
        )
    figure, axes = panels(4.3 * len(keys), 3.4, columns=len(keys))
    add_scope(figure, scope(runs, tail=len(keys) > 1))
    groups = by_label(runs)
    look = styles(groups)
    for axis, key in zip(axes, keys):
        for label, group in groups.items():
            _draw_curve(axis, group, key, look[label], label)
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"valid {display_name(key)}")
        locator: Any = axis.xaxis.get_major_locator()
        locator.set_params(integer=True)
    add_legend(figure, [(label, line_handle(look[label])) for label in groups])
    return figure


def curve_of(run: Run, key: str) -> dict[int, float]:
    """Return ``{epoch: value}`` of a metric in the validation history of a run, without NaN.

    Epochs are counted from 1, as in ``epochs_to_best``; the history counts from 0.
    """
    curve = {int(entry["epoch"]) + 1: entry[key] for entry in run.history if key in entry}
    return {epoch: value for epoch, value in curve.items() if math.isfinite(value)}


def shared_epochs(curves: list[dict[int, float]]) -> list[int]:
    """Return the epochs that all curves (:func:`curve_of`) have, in ascending order."""
    return sorted(set.intersection(*map(set, curves)))


def _draw_curve(axis: Axes, runs: list[Run], key: str, style: Style, label: str) -> None:
    curves = [curve for curve in (curve_of(run, key) for run in runs) if curve]
    if not curves:
        return
    shared = shared_epochs(curves)
    if shared:
        values = np.array([[curve[epoch] for epoch in shared] for curve in curves])  # [seeds, epochs]
        draw_mean(axis, shared, values, style, label, markevery=max(1, len(shared) // 10))
    last = shared[-1] if shared else -1
    thin: dict[str, Any] = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.7, "alpha": 0.6}
    for curve in curves:
        epochs = sorted(epoch for epoch in curve if epoch >= last)
        if len(epochs) > 1:
            axis.plot(epochs, [curve[epoch] for epoch in epochs], label="_one seed", **thin)


@styled
def trade_off(runs: list[Run], metric: str = "ndcg@10") -> Figure:
    """Draw the test metric over users with a tail target against the metric over all users.

    Args:
        runs: see :func:`load_runs`.
        metric: RecBole's key; the other coordinate is ``tail`` + metric.

    Returns:
        A figure: light points are runs, bold points are means over seeds with the standard deviation, and dashed
        steps are the Pareto front of the means.

    Raises:
        PrefError: no run has both metrics.
    """
    tail = group_key("tail", metric)
    for key in (metric, tail):
        check_metric(runs, key)
    measured = [run for run in runs if all(math.isfinite(run.test_result.get(key, math.nan)) for key in (metric, tail))]
    groups = by_label(measured)
    points = {
        label: np.array([[run.test_result[key] for key in (metric, tail)] for run in group])
        for label, group in groups.items()
    }  # [seeds, 2]
    if not points:
        raise PrefError(f"No run has both {metric} and {tail}: add them to 'metrics' and run again.")
    room = 0.25 * max(len(points) - 10, 0)  # inches for more than ten names
    figure, (axis,) = panels(6.4 + room, 4.8 + room)
    add_scope(figure, scope(runs, tail=True))
    look = styles(by_label(runs))
    means = np.array([cloud.mean(axis=0) for cloud in points.values()])  # [labels, 2]
    spread = np.array([cloud.std(axis=0, ddof=1) if len(cloud) > 1 else [0, 0] for cloud in points.values()])
    for (label, cloud), mean, std in zip(points.items(), means, spread):
        colour, marker = look[label]["color"], look[label]["marker"]
        dots = axis.scatter(
            cloud[:, 0], cloud[:, 1], s=22, color=colour, marker=marker, alpha=0.35, linewidths=0,
            label=f"_runs {label}",
        )  # fmt: skip
        values = ["; ".join(f"{display_name(key)} {value:.4f}" for key, value in zip((metric, tail), point))
                  for point in (*cloud, mean)]  # fmt: skip
        add_tips(dots, [f"{label}, seed {run.seed}: {text}" for run, text in zip(groups[label], values)])
        bars = axis.errorbar(
            mean[0], mean[1], xerr=std[0], yerr=std[1], color=colour, marker=marker, markersize=8,
            markeredgecolor="white", elinewidth=1, capsize=2, linestyle="none", label=label,
        )  # fmt: skip
        add_tips(bars.lines[0], [f"{label}, mean: {values[-1]}"])
    axis.margins(0.14)
    axis.set_xlabel(f"test {display_name(metric)}")
    axis.set_ylabel(f"test {display_name(tail)}")
    handles = front_steps(axis, means, "Pareto front of the means") if len(means) > 1 else []
    if any(len(cloud) > 1 for cloud in points.values()):
        from matplotlib.lines import Line2D

        dot = Line2D([], [], color=GREY, marker="o", markersize=4.5, alpha=0.5, linestyle="none")
        disc = Line2D([], [], color=GREY, marker="o", markersize=8, linestyle="none")
        handles = [("one run", dot), ("mean ± standard deviation", disc), *handles]
    add_legend(figure, handles)
    runs_at = np.concatenate(list(points.values()))
    spans = [np.hstack((means - spread * side, means + spread * side)) for side in ([1, 0], [0, 1])]
    boxes = np.concatenate((*spans, np.hstack((runs_at, runs_at))))
    name_points(figure, axis, means, list(points), [look[label]["color"] for label in points], boxes)
    return figure


@styled
def tail_gap(runs: list[Run]) -> Figure:
    """Draw the distribution of the tail gap per label (LPO4Rec, arXiv 2507.02255, figures 1 and 5).

    Args:
        runs: see :func:`load_runs`. The array ``tail_gap`` [R] is the mean recommendation probability of the tail
            items minus the mean of all items, per test row.

    Returns:
        A figure with a histogram per label over common bins, and its median.

    Raises:
        PrefError: no run has the array.
    """
    groups = _with_array(runs, "tail_gap")
    values = {label: np.concatenate([run["tail_gap"] for run in group]) for label, group in groups.items()}
    values = {label: gaps[np.isfinite(gaps)].astype(np.float64) for label, gaps in values.items()}
    values = {label: gaps for label, gaps in values.items() if gaps.size}
    if not values:
        raise PrefError("The arrays 'tail_gap' hold no finite number: run the comparison again.")
    low, high = min(map(np.min, values.values())), max(map(np.max, values.values()))
    room = (high - low or abs(high) or 1.0) * 0.02
    bins = int(np.clip(math.sqrt(max(map(len, values.values()))), 12, 80))
    edges = np.linspace(low - room, high + room, bins + 1)
    power = min(0, math.floor(math.log10(max(abs(low), abs(high)) or 1.0)))
    figure, (axis,) = panels(6.4, 1.1 + 0.55 * len(values))
    add_scope(figure, scope(runs, tail=True))
    look = styles(by_label(runs))
    axis.axvline(0, color=GREY, linestyle="--", linewidth=1, label="0")
    beside: dict[str, Any] = {
        "xytext": (46, 0), "xycoords": ("axes fraction", "data"), "textcoords": "offset points",
        "fontsize": 9, "va": "center", "ha": "right",
    }  # fmt: skip
    for row, (label, gaps) in enumerate(values.items()):
        base, colour = -float(row), look[label]["color"]
        heights = np.histogram(gaps, edges)[0]
        steps = base + 0.8 * heights / max(heights.max(), 1)
        axis.stairs(steps, edges, baseline=base, fill=True, color=colour, alpha=0.3, label=label)
        axis.stairs(steps, edges, baseline=base, color=colour, linewidth=1)
        median = float(np.median(gaps))
        mark: dict[str, Any] = {"color": dark(colour), "linewidth": 2.2, "label": f"_median {label}"}
        axis.plot([median, median], [base, base + 0.85], **mark)
        axis.annotate(f"{median / 10**power:.2f}".replace("-", "−"), (1, base + 0.3), **beside)
    axis.annotate("median", (1, 0.9), **beside)
    axis.set_yticks([0.3 - row for row in range(len(values))], [shortened(label, 28) for label in values])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.set_ylim(-len(values) + 0.9, 1.0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 10**power:g}".replace("-", "−"))
    unit = rf" ($\times 10^{{{power}}}$)" if power else ""
    axis.set_xlabel(f"mean probability of tail items − mean probability of all items{unit}")
    return figure


def _with_array(runs: list[Run], name: str) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return ``{label: arrays of its runs}`` for the runs whose npz file has ``name``."""
    arrays: dict[str, list[dict[str, np.ndarray]]] = {}
    for run in runs:
        if name in run.arrays:
            arrays.setdefault(run.label, []).append(run.arrays)
    if not arrays:
        raise PrefError(f"No run has the array '{name}': its .npz file beside runs/*.json is missing.")
    return arrays


@styled
def popularity_exposure(runs: list[Run]) -> Figure:
    """Draw the share of recommendation slots for each popularity decile of the items.

    Args:
        runs: see :func:`load_runs`; needs the arrays ``top`` [R, k] and ``count`` [n_items].

    Returns:
        A figure with a line per label, and a dashed line for the share of items in each decile.

    Raises:
        PrefError: no run has the arrays.
    """
    groups = _with_array(runs, "top")
    figure, (axis,) = panels(6.4, 3.9)
    add_scope(figure, scope(runs))
    look = styles(by_label(runs))
    deciles = np.arange(1, 11)
    pairs = {label: [exposure(run["top"], run["count"]) for run in arrays] for label, arrays in groups.items()}
    shares = {label: np.array([slots for slots, _ in group]) for label, group in pairs.items()}  # [seeds, 10]
    uniform = next(iter(pairs.values()))[0][1]
    floor = _exposure_axis(axis, shares.values())
    for label, share in shares.items():
        draw_mean(axis, deciles, share, look[label], label, floor=floor)
    (line,) = axis.plot(deciles, uniform, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label="uniform")
    axis.set_ylim(bottom=floor)
    axis.set_xticks(deciles)
    axis.set_xlabel("decile of the items by training count (1 = most popular)")
    axis.set_ylabel(f"share of top-{next(iter(groups.values()))[0]['top'].shape[1]} slots")
    add_legend(figure, [*((label, line_handle(look[label])) for label in groups), ("uniform", line)])
    return figure


def _exposure_axis(axis: Axes, shares: Iterable[np.ndarray]) -> float:
    """Scale the y axis for the shares of the labels, each [seeds, 10], and return its lower end.

    A logarithmic axis cannot show a share of 0. Such a share is drawn at the lower end, below all other shares.
    """
    tables = list(shares)
    means, every = np.stack([table.mean(axis=0) for table in tables]), np.concatenate(tables)
    if not means.any() or means.max() <= LOG_SPAN * means[means > 0].min():
        return 0
    axis.set_yscale("log", subs=[])
    locator: Any = axis.yaxis.get_major_locator()
    locator.set_params(subs=(1, 3))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return min(values[values > 0].min() for values in (means, every)) / 2


@styled
def collapse(rows: list[dict[str, Any]], metric: str = "ndcg@10") -> Figure:
    """Draw a test metric and the training loss against the number of negatives.

    Args:
        rows: dicts with ``method``, ``K``, ``metric``, ``loss`` and optionally ``reference`` (the metric before
            training), ``dataset``, ``epochs`` (a description of the epochs of metric and loss) and ``name`` (the key
            of the metric). Several rows with one method and K are seeds. See :func:`read_collapse` and
            :func:`collapse_rows`.
        metric: key of the metric, if the rows have no ``name``.

    Returns:
        A figure with two panels over one x axis and a line per method.

    Raises:
        PrefError: there are no rows.
    """
    if not rows:
        raise PrefError("The collapse curve has no rows: give a row per method and number of negatives K.")
    figure, (upper, lower) = panels(6.0, 5.4, rows=2, sharex=True)
    descriptions = dict.fromkeys(str(row[key]) for key in ("dataset", "epochs") for row in rows if row.get(key))
    add_scope(figure, "; ".join(descriptions))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    look = styles(methods)
    for axis, key in ((upper, "metric"), (lower, "loss")):
        for method in methods:
            cells: dict[int, list[float]] = {}
            for row in rows:
                if row["method"] == method:
                    cells.setdefault(int(row["K"]), []).append(number(row[key]))
            draw_cells(axis, cells, look[method], method)
    entries = [(method, line_handle(look[method])) for method in methods]
    reference = np.array([number(row.get("reference")) for row in rows])
    if np.isfinite(reference).any():
        line = upper.axhline(np.nanmean(reference), color=GREY, linewidth=1, linestyle=":", label="reference")
        entries.append(("reference, before training", line))
    upper.set_ylabel(f"test {display_name(rows[0].get('name', metric))}")
    lower.set_ylabel("training loss per row (nats)")
    lower.set_xlabel("negatives per positive, num_negatives K")
    value_axis(lower, [int(row["K"]) for row in rows])
    add_legend(figure, entries)
    return figure


def draw_cells(axis: Axes, cells: dict[Any, list[float]], style: Style, label: str) -> None:
    """Draw ``{x: values of the seeds}``; an x may have fewer seeds than another."""
    x = sorted(key for key, values in cells.items() if np.isfinite(values).any())
    if x:
        seeds = max(len(cells[key]) for key in x)
        table = np.array([(cells[key] + [math.nan] * seeds)[:seeds] for key in x]).T
        draw_mean(axis, x, table, style, label)
