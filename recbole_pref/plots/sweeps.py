"""Pictures of a sweep: the Pareto front of its trials, and settings against score."""

from __future__ import annotations  # matplotlib is imported late

import math
from typing import TYPE_CHECKING, Any

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
from recbole_pref.records import number
from recbole_pref.settings import is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def sweep_pareto(rows: list[dict[str, Any]], overall: str = "ndcg@10", tail: str = "tailndcg@10") -> Figure:
    """Draw the trials of a sweep by two metrics and mark those on the Pareto front.

    Args:
        rows: one per trial; rows without numbers for both metrics are skipped.
        overall, tail: keys of the rows, both maximised.

    Returns:
        A figure. If the front has at most 20 trials, they are labelled with the end of their ``trial_id`` or, without
        one, with their index in ``rows``.

    Raises:
        PrefError: no row has both metrics.
    """
    numbered = [(str(row.get("trial_id", index)), number(row.get(overall)), number(row.get(tail)))
                for index, row in enumerate(rows)]  # fmt: skip
    numbered = [entry for entry in numbered if math.isfinite(entry[1]) and math.isfinite(entry[2])]
    if not numbered:
        raise PrefError(f"No trial has both '{overall}' and '{tail}': name two metrics of the sweep.")
    points = np.array([entry[1:] for entry in numbered])  # [trials, 2]
    front = pareto_front(points)
    figure, (axis,) = panels(6.0, 4.6)
    edge: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.4}
    others = axis.scatter(points[~front, 0], points[~front, 1], s=24, color=COLOURS[5], label="trials", **edge)
    best = axis.scatter(
        points[front, 0], points[front, 1], s=52, color=COLOURS[4], marker="D", label="on the front", **edge
    )  # fmt: skip
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
def parallel_coordinates(rows: list[dict[str, Any]], columns: list[str], objective: str) -> Figure:
    """Draw each trial of a sweep as a line over its settings, coloured by the objective.

    Args:
        rows: one per trial; rows without a column or without a number for the objective are skipped.
        columns: keys of the rows, one per axis; the prefix ``config/`` is not shown. Numbers that span more than a
            factor of 30 have a logarithmic axis; values that are not numbers have equal distances.
        objective: key of the rows, maximised; the last axis and the colour.

    Returns:
        A figure. The best trial is bold and is drawn last.

    Raises:
        PrefError: there are no columns or no complete trial.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    columns = [*columns, objective]
    complete = [
        row for row in rows
        if all(_is_present(row.get(key)) for key in columns) and math.isfinite(number(row[objective]))
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
    segments: Any = np.stack((np.broadcast_to(x, lines.shape), lines), axis=2)  # [trials, columns, 2]
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
    # The colour bar is the axis of the objective, where the lines end.
    strip = axis.inset_axes((x[-1], 0, 0.08, 1), transform=axis.transData)
    figure.colorbar(ScalarMappable(norm, "viridis_r"), cax=strip)
    add_legend(figure, [(f"best trial, {_metric_of(objective)} {score[-1]:.4g}", axis.lines[0])])
    return figure


def _metric_of(key: str) -> str:
    """Return the key of a trial's metric, such as ``valid/ndcg@10``, in words."""
    *where, name = key.split("/")
    return " ".join([*where, display_name(name)])


def _is_present(value: Any) -> bool:
    """Return whether a trial has a value; tables of trials contain NaN for missing values."""
    return value is not None and value == value


def _coordinate(values: list[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Scale the values of one axis to the range from 0 to 1.

    Returns:
        The positions [N], and the ticks as pairs of position and text.
    """
    if not all(is_number(value) for value in values):
        names = sorted(map(str, values))
        names = list(dict.fromkeys(names))
        step = max(len(names) - 1, 1)
        ticks = [(place / step, name) for place, name in enumerate(names)]
        where = {name: place for place, name in ticks}
        return np.array([where[str(value)] for value in values]), ticks
    numbers = np.array(values, dtype=float)
    log = axis_scale(numbers) == "log"
    shape: Any = np.log10 if log else (lambda value: value)
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return np.full(len(numbers), 0.5), [(0.5, f"{low:g}")]
    position = lambda value: (shape(value) - shape(low)) / (shape(high) - shape(low))
    distinct = np.unique(numbers)
    shown = distinct if len(distinct) <= 6 else _ticks_between(low, high, log)
    ticks, last = [], -1.0
    for value in shown:
        if position(value) - last >= 0.07:
            ticks.append((float(position(value)), f"{value:.3g}"))
            last = position(value)
    return position(numbers), ticks


def _ticks_between(low: float, high: float, log: bool) -> list[float]:
    """Return round values between the two ends of an axis, and the ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator = LogLocator(subs=(1, 3)) if log else MaxNLocator(5)
    inner = [float(value) for value in locator.tick_values(low, high) if low < value < high]
    shape = math.log10 if log else float
    room = 0.07 * (shape(high) - shape(low))
    return [low, *(v for v in inner if shape(v) - shape(low) > room and shape(high) - shape(v) > room), high]
