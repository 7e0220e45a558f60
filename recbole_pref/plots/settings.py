"""Pictures of metrics against one setting."""

from __future__ import annotations  # matplotlib is imported late

import json
import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.metrics import display_name, group_key
from recbole_pref.plots.comparisons import draw_cells
from recbole_pref.plots.drawing import (
    add_legend,
    add_scope,
    line_handle,
    panels,
    shortened,
    styled,
    styles,
    value_axis,
)
from recbole_pref.plots.numbers import check_metric, scope
from recbole_pref.records import Run, number
from recbole_pref.settings import is_number, settings_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def variants(runs: list[Run], setting: str) -> dict[str, dict[Any, list[Run]]]:
    """Group the runs that differ only in one setting (and the seed) into the lines of a picture.

    Args:
        runs: see :func:`load_runs`; needs ``config``.
        setting: key of ``config``.

    Returns:
        ``{name of the line: {value: runs}}`` for groups with at least two values. The name is the model and, if a model
        has several groups, the settings in which they differ.

    Raises:
        PrefError: the setting is unknown, or no two runs differ only in it.
    """
    recorded = {key for run in runs for key in run.config}
    if setting not in recorded:
        raise PrefError(f"setting '{setting}' is in no run's settings.{suggest(setting, recorded)}")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if setting in run.config:
            rest = {k: v for k, v in run.config.items() if k not in settings_with(scope="run") and k != setting}
            groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    lines: list[dict[Any, list[Run]]] = []
    for group in groups.values():
        cells: dict[Any, list[Run]] = {}
        for run in group:
            cells.setdefault(_hashable(run.config[setting]), []).append(run)
        if len(cells) > 1:
            lines.append(cells)
    if not lines:
        raise PrefError(
            f"No two runs differ only in '{setting}': compare runs with several values of it and all other "
            "settings equal."
        )
    return dict(zip(_line_names(lines, setting), lines))


def _line_names(lines: list[dict[Any, list[Run]]], setting: str) -> list[str]:
    firsts = [next(iter(cells.values()))[0] for cells in lines]
    names = []
    for run in firsts:
        siblings = [other.config for other in firsts if other.model == run.model]
        keys = sorted({key for config in siblings for key in config} - settings_with(scope="run") - {setting})
        apart = [key for key in keys if len({str(config.get(key)) for config in siblings}) > 1]
        names.append(" ".join([run.model, *(f"{key}={run.config.get(key)}" for key in apart)]))
    return names


def _hashable(value: Any) -> Any:
    plain = value is None or isinstance(value, (str, bool, Real))
    return value if plain else json.dumps(value, sort_keys=True, default=str)


@styled
def sensitivity(runs: list[Run], setting: str, metric: str = "ndcg@10") -> Figure:
    """Draw the test metric, overall and on the tail, against one setting.

    Args:
        runs: see :func:`load_runs`. A line joins runs that differ only in this setting and the seed.
        setting: key of ``config``, such as ``tau``, ``lambda``, ``alpha_tail`` or ``num_negatives``.
            The axis is logarithmic if the values span more than a factor of 30; values that are not numbers have
            equal distances.
        metric: RecBole's key; the second panel shows ``tail`` + metric if it was measured.

    Returns:
        A figure with panels over one x axis and a line per group of :func:`variants`.

    Raises:
        PrefError: the metric or the setting is unknown, or no two runs differ only in the setting.
    """
    check_metric(runs, metric)
    lines = variants(runs, setting)
    values = list(dict.fromkeys(value for cells in lines.values() for value in cells))
    values.sort(key=lambda value: (0, value) if is_number(value) else (1, 0))  # words last, in the given order
    numeric = all(is_number(value) for value in values)
    position = {value: value if numeric else i for i, value in enumerate(values)}
    keys = [key for key in (metric, group_key("tail", metric)) if any(key in run.test_result for run in runs)]
    figure, axes = panels(5.6, 0.8 + 2.2 * len(keys), rows=len(keys), sharex=True)
    add_scope(figure, scope(runs, tail=len(keys) > 1))
    look = styles(lines)
    for axis, key in zip(axes, keys):
        for name, cells in lines.items():
            points = {
                position[value]: [run.test_result.get(key, math.nan) for run in group] for value, group in cells.items()
            }
            draw_cells(axis, points, look[name], name)
        axis.set_ylabel(f"test {display_name(key)}")
    if numeric:
        value_axis(axes[-1], values)
    else:
        axes[-1].set_xticks(range(len(values)), [shortened(value, 14) for value in values])
    axes[-1].set_xlabel(f"{setting} (K, negatives per positive)" if setting == "num_negatives" else setting)
    add_legend(figure, [(name, line_handle(look[name])) for name in lines])
    return figure


def swept_settings(runs: list[Run], least: int = 3) -> list[str]:
    """Return the settings with at least ``least`` numeric values on one line of :func:`variants`."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in settings_with(scope="run"))
    swept = []
    for key in keys:
        values = {run.config[key] for run in runs if is_number(run.config.get(key))}
        if len(values) >= least:
            try:
                lines = variants(runs, key)
            except PrefError:
                continue  # the values belong to different models
            if any(sum(map(is_number, cells)) >= least for cells in lines.values()):
                swept.append(key)
    return swept


def collapse_rows(runs: list[Run], metric: str = "ndcg@10", least: int = 3) -> list[dict[str, Any]]:
    """Return the rows of a collapse curve from runs that differ only in ``num_negatives`` (and the seed).

    Args:
        runs: see :func:`load_runs`; needs ``train_loss_per_row``.
        metric: RecBole's key.
        least: the least number of values of ``num_negatives`` on a line of :func:`variants`.

    Returns:
        The rows, see :func:`collapse`; metric and loss are those of the best epoch. Empty if no line is long enough or
        no run has a loss.
    """
    try:
        lines = variants(runs, "num_negatives")
    except PrefError:
        return []
    rows: list[dict[str, Any]] = [
        {
            "method": name, "K": int(k), "metric": run.test_result.get(metric, math.nan), "loss": _loss_at_best(run),
            "dataset": run.dataset, "epochs": "metric and loss of the best epoch",
        }
        for name, cells in lines.items() if sum(map(is_number, cells)) >= least
        for k, group in cells.items() if is_number(k)
        for run in group
    ]  # fmt: skip
    return rows if any(math.isfinite(row["loss"]) for row in rows) else []


def _loss_at_best(run: Run) -> float:
    losses = run.train_loss_per_row  # empty in records of earlier versions
    return number(losses[(run.epochs_to_best or len(losses)) - 1]) if losses else math.nan
