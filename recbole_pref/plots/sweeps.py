"""Pictures of a sweep: the Pareto front of its trials, and settings against score."""

import math

import numpy as np

from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name
from recbole_pref.plots.drawing import (
    COLOURS,
    add_legend,
    axis_scale,
    front_steps,
    name_points,
    panels,
    shortened,
    styled,
)
from recbole_pref.plots.numbers import pareto_front
from recbole_pref.plots.settings import is_number
from recbole_pref.records import number


@styled
def sweep_pareto(rows, overall="ndcg@10", tail="tailndcg@10"):
    """Draw the trials of a sweep by two metrics and mark those on the Pareto front.

    Args:
        rows (list of dict): a trial each; a row without a number for both metrics is left out.
        overall, tail (str): keys of the rows, both maximised.

    Returns:
        Figure: up to 20 trials on the front carry the end of their ``trial_id``, or their number in
        ``rows`` from 0.

    Raises:
        PrefError: no row has both metrics.
    """
    numbered = [(str(row.get("trial_id", place)), number(row.get(overall)), number(row.get(tail)))
                for place, row in enumerate(rows)]  # fmt: skip
    numbered = [entry for entry in numbered if math.isfinite(entry[1]) and math.isfinite(entry[2])]
    if not numbered:
        raise PrefError(f"No trial has both '{overall}' and '{tail}': name two metrics of the sweep.")
    points = np.array([entry[1:] for entry in numbered])  # [trials, 2]
    front = pareto_front(points)
    figure, (axis,) = panels(6.0, 4.6)
    edge = {"edgecolors": "white", "linewidths": 0.4}
    others = axis.scatter(*points[~front].T, s=24, color=COLOURS[5], label="trials", **edge)
    best = axis.scatter(*points[front].T, s=52, color=COLOURS[4], marker="D", label="on the front", **edge)
    axis.margins(0.1)
    axis.set_xlabel(_metric_of(overall))
    axis.set_ylabel(_metric_of(tail))
    entries = front_steps(axis, points, "Pareto front")
    kinds = [(f"on the front ({front.sum()})", best), (f"other trials ({(~front).sum()})", others)]
    add_legend(figure, [*kinds, *entries])
    names = [entry[0].rpartition("_")[2] for entry, on in zip(numbered, front) if on]
    if len(names) <= 20:
        boxes = np.hstack((points, points))
        name_points(figure, axis, points[front], names, [COLOURS[4]] * len(names), boxes)
    return figure


@styled
def parallel_coordinates(rows, columns, objective):
    """Draw each trial of a sweep as a line over its settings, coloured by the objective.

    Args:
        rows (list of dict): a trial each; rows without one of the columns or without a number for the
            objective are left out.
        columns (list of str): keys of the rows, an axis each, ``config/`` not shown. Numbers that span more
            than a factor of 30 have a logarithmic axis; values that are no numbers stand at equal distances.
        objective (str): key of the rows, maximised; the last axis and the colour.

    Returns:
        Figure: the best trial is drawn last, bold.

    Raises:
        PrefError: no columns or no complete trial.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    columns = [*columns, objective]
    complete = [
        row for row in rows
        if all(_is_known(row.get(key)) for key in columns) and math.isfinite(number(row[objective]))
    ]  # fmt: skip
    if len(columns) < 2 or not complete:
        raise PrefError(
            f"No trial has a value for each of {', '.join(map(repr, columns))}: name settings and a metric "
            "of the sweep."
        )
    complete.sort(key=lambda row: number(row[objective]))
    score = np.array([number(row[objective]) for row in complete])
    norm = Normalize(score[0], score[-1] if score[-1] > score[0] else score[0] + 1e-9)
    scaled = [_coordinate([row[key] for row in complete]) for key in columns[:-1]]
    lines = np.array([*(places for places, _ in scaled), norm(score)]).T  # [trials, columns]
    figure, (axis,) = panels(max(5.0, 1.35 * len(columns) + 1.2), 4.0)
    x = np.arange(len(columns))
    segments = np.stack((np.broadcast_to(x, lines.shape), lines), axis=2)  # [trials, columns, 2]
    trials = LineCollection(segments, cmap="viridis_r", norm=norm, linewidths=1.1, alpha=0.75, label="trials")
    trials.set_array(score)
    axis.add_collection(trials)
    axis.plot(x, lines[-1], color="#000000", linewidth=2.4, label="best trial")
    for place, (_, ticks) in enumerate(scaled):
        axis.axvline(place, color="#000000", linewidth=0.8)
        for height, text in ticks:
            axis.annotate(
                shortened(text, 14), (place, height), xytext=(-4, 0), textcoords="offset points", fontsize=9,
                ha="right", va="center", zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
            )  # fmt: skip
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(-0.05, 1.05)
    names = [*(key.removeprefix("config/") for key in columns[:-1]), _metric_of(objective)]
    axis.set_xticks(x, [shortened(name, 14) for name in names])
    axis.tick_params(axis="x", length=0, labelsize=10)
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    # The colour bar is the objective's axis: the lines end on it.
    strip = axis.inset_axes([x[-1], 0, 0.08, 1], transform=axis.transData)
    figure.colorbar(ScalarMappable(norm, "viridis_r"), cax=strip)
    add_legend(figure, [(f"best trial, {_metric_of(objective)} {score[-1]:.4g}", axis.lines[0])])
    return figure


def _metric_of(key):
    """Return the key of a trial's metric, such as ``valid/ndcg@10``, in words."""
    *where, name = key.split("/")
    return " ".join([*where, display_name(name)])


def _is_known(value):
    """Return whether a trial has the value; tables of trials write NaN where it has none."""
    return value is not None and value == value


def _coordinate(values):
    """Place the values of one axis between 0 and 1.

    Returns:
        tuple: places [N], list of (place, text) of the ticks.
    """
    if not all(is_number(value) for value in values):
        names = sorted(map(str, values))
        names = list(dict.fromkeys(names))
        step = max(len(names) - 1, 1)
        ticks = [(place / step, name) for place, name in enumerate(names)]
        where = {name: place for place, name in ticks}
        return np.array([where[str(value)] for value in values]), ticks
    values = np.array(values, dtype=float)
    log = axis_scale(values) == "log"
    shape = np.log10 if log else (lambda value: value)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(len(values), 0.5), [(0.5, f"{low:g}")]
    place = lambda value: (shape(value) - shape(low)) / (shape(high) - shape(low))
    distinct = np.unique(values)
    shown = distinct if len(distinct) <= 6 else _ticks_between(low, high, log)
    ticks, last = [], -1.0
    for value in shown:
        if place(value) - last >= 0.07:
            ticks.append((float(place(value)), f"{value:.3g}"))
            last = place(value)
    return place(values), ticks


def _ticks_between(low, high, log):
    """Return round values of an axis together with its two ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator = LogLocator(subs=(1, 3)) if log else MaxNLocator(5)
    inner = [float(value) for value in locator.tick_values(low, high) if low < value < high]
    shape = math.log10 if log else float
    room = 0.07 * (shape(high) - shape(low))
    return [low, *(v for v in inner if shape(v) - shape(low) > room and shape(high) - shape(v) > room), high]
