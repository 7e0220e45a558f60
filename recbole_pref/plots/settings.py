"""Pictures of metrics against one setting."""

import json
import math
from numbers import Real

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
from recbole_pref.records import number
from recbole_pref.settings import settings_with


def variants(runs, setting):
    """Return the runs that differ in one setting (and the seed) alone, as lines of a picture.

    Args:
        runs (list of Run): see :func:`load_runs`; needs ``config``.
        setting (str): key of ``config``.

    Returns:
        dict: ``{name of the line: {value: runs}}`` for the groups with at least two values. The name is
        the model and, where a model has several groups, the settings they differ in.

    Raises:
        PrefError: unknown setting, or no two runs differ in it alone.
    """
    known = {key for run in runs for key in run.config}
    if setting not in known:
        raise PrefError(f"setting '{setting}' is in no run's settings.{suggest(setting, known)}")
    groups = {}
    for run in runs:
        if setting in run.config:
            rest = {k: v for k, v in run.config.items() if k not in settings_with(scope="run") and k != setting}
            groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    lines = {}
    for group in groups.values():
        cells = {}
        for run in group:
            cells.setdefault(_hashable(run.config[setting]), []).append(run)
        if len(cells) > 1:
            lines[len(lines)] = cells
    if not lines:
        raise PrefError(
            f"No two runs differ in '{setting}' alone: compare runs with several values of it and all other "
            "settings equal."
        )
    return {name: cells for name, cells in zip(_line_names(list(lines.values()), setting), lines.values())}


def _line_names(lines, setting):
    firsts = [next(iter(cells.values()))[0] for cells in lines]
    names = []
    for run in firsts:
        siblings = [other.config for other in firsts if other.model == run.model]
        keys = sorted({key for config in siblings for key in config} - settings_with(scope="run") - {setting})
        apart = [key for key in keys if len({str(config.get(key)) for config in siblings}) > 1]
        names.append(" ".join([run.model, *(f"{key}={run.config.get(key)}" for key in apart)]))
    return names


def _hashable(value):
    plain = value is None or isinstance(value, (str, bool, Real))
    return value if plain else json.dumps(value, sort_keys=True, default=str)


@styled
def sensitivity(runs, setting, metric="ndcg@10"):
    """Draw the test metric, overall and on the tail, against one setting.

    Args:
        runs (list of Run): see :func:`load_runs`. Runs are joined by a line when all settings but this
            one and the seed are equal.
        setting (str): key of ``config``, such as ``tau``, ``lambda``, ``alpha_tail`` or ``num_negatives``.
            The axis is logarithmic where the values span more than a factor of 30; values that are no
            numbers stand side by side.
        metric (str): RecBole's key; the second panel shows ``tail`` + metric where it was measured.

    Returns:
        Figure: panels over one x axis, a line per group of :func:`variants`.

    Raises:
        PrefError: unknown metric or setting, or no two runs differ in it alone.
    """
    check_metric(runs, metric)
    lines = variants(runs, setting)
    values = list(dict.fromkeys(value for cells in lines.values() for value in cells))
    values.sort(key=lambda value: (0, value) if is_number(value) else (1, 0))  # words last, as they come
    numeric = all(is_number(value) for value in values)
    place = (lambda value: value) if numeric else {v: i for i, v in enumerate(values)}.__getitem__
    keys = [key for key in (metric, group_key("tail", metric)) if any(key in run.test_result for run in runs)]
    figure, axes = panels(5.6, 0.8 + 2.2 * len(keys), rows=len(keys), sharex=True)
    add_scope(figure, scope(runs, tail=len(keys) > 1))
    look = styles(lines)
    for axis, key in zip(axes, keys):
        for name, cells in lines.items():
            points = {
                place(value): [run.test_result.get(key, math.nan) for run in own]
                for value, own in cells.items()
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


def is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def swept_settings(runs, least=3):
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


def collapse_rows(runs, metric="ndcg@10", least=3):
    """Return the rows of a collapse curve from runs that differ in ``num_negatives`` (and the seed) alone.

    Args:
        runs (list of Run): see :func:`load_runs`; needs ``train_loss_per_row``.
        metric (str): RecBole's key.
        least (int): numbers of negatives that a line of :func:`variants` has to have.

    Returns:
        list of dict: see :func:`collapse`; metric and loss are those of the best epoch. Empty where no line is long
        enough or no run tells its loss.
    """
    try:
        lines = variants(runs, "num_negatives")
    except PrefError:
        return []
    rows = [
        {
            "method": name, "K": int(k), "metric": run.test_result.get(metric, math.nan), "loss": _loss_at_best(run),
            "dataset": run.dataset, "epochs": "metric and loss of the best epoch",
        }
        for name, cells in lines.items() if sum(map(is_number, cells)) >= least
        for k, own in cells.items() if is_number(k)
        for run in own
    ]  # fmt: skip
    return rows if any(math.isfinite(row["loss"]) for row in rows) else []


def _loss_at_best(run):
    losses = run.train_loss_per_row  # records of earlier versions have none
    return number(losses[(run.epochs_to_best or len(losses)) - 1]) if losses else math.nan
