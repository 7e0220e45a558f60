"""Pictures of a comparison or a sweep: pure functions from records to matplotlib figures, and their files.

A run is a dict as :func:`load_runs` returns it. Figures are made without pyplot, so nothing is kept between
calls, and any number of labels has a colour, marker and line style of its own.
"""

import csv
import json
import math
import textwrap
import zipfile
from functools import wraps
from io import BytesIO
from itertools import cycle
from numbers import Real
from pathlib import Path

import numpy as np

from recbole_pref.errors import PrefError, suggest

# Okabe-Ito without its yellow, which is hardly seen on white paper
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
LINES = ("-", "--", "-.", (0, (1, 1.2)))
GREY = "#666666"
# Settings that name a run or its machine and say nothing about what was trained.
RUN_SETTINGS = frozenset(
    (
        "checkpoint_dir", "data_path", "dataloaders_save_path", "dataset_save_path", "device", "gpu_id",
        "keep_last", "local_rank", "log_wandb", "reference_dir", "result_file", "resume", "run_stem",
        "save_dataloaders", "save_dataset", "seed", "show_progress", "state", "wandb_project", "worker",
    )
)  # fmt: skip
ARRAYS = ("tail_gap", "top", "count")
MOST_INSIDE = 6  # labels that a legend below the picture holds
NAME_SHIFTS = (7, 18, 30, 44, 60)  # points between a dot and its name; a line joins them from the second on
LOG_SPAN = 30  # values that span more than this factor get a logarithmic axis

CAPTIONS = {
    "learning_curves": (
        "Validation metric after each epoch: mean over the seeds, band from the lowest to the highest seed. "
        "Where some seeds have stopped, the others go on as thin lines."
    ),
    "trade_off": (
        "Test metric over all users against the same metric over the users whose test item is a tail item. "
        "Light: one run; bold: mean over the seeds with one standard deviation; dashed: the Pareto front "
        "of the means, up and to the right is better."
    ),
    "tail_gap": (
        "Mean recommendation probability of the tail items minus that of all items, one value per test row, "
        "all seeds together. Heights are scaled per label, the line marks the median; 0 means that tail "
        "items are as probable as the average item."
    ),
    "exposure": (
        "Share of the recommendation slots that goes to each tenth of the items, ordered by their number of "
        "training interactions; mean over the seeds, band from lowest to highest. Dashed: all items equally "
        "often."
    ),
    "collapse": (
        "Test metric and final training loss against the number of negatives K; mean over the seeds, band "
        "from lowest to highest."
    ),
    "sensitivity": (
        "Test metric against one setting, all others equal; mean over the seeds, band from lowest to highest."
    ),
}

_STYLE = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.usetex": False,
    "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
    "svg.hashsalt": "recbole-pref",  # the same picture is the same file
}


def caption(name):
    """Return the sentence under the picture ``name``, a key of :func:`figures`."""
    return next(text for key, text in CAPTIONS.items() if name.startswith(key))


# -- reading


def load_runs(folder):
    """Read the finished runs of a comparison folder; those that ``comparison.json`` lists, where it does.

    Args:
        folder (path-like): holds ``runs/<id>.json`` and, for the pictures of lists and probabilities,
            ``runs/<id>.npz``.

    Returns:
        list of dict: the records, those of one label together, labels in the order of
        ``comparison.json`` where there is one. ``arrays`` holds ``tail_gap`` [R], ``top`` [R, k] and
        ``count`` [n_items] as far as the npz file has them.

    Raises:
        PrefError: no such folder, no runs, a damaged file, or runs on several data sets.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PrefError(f"The comparison folder '{folder}' does not exist: name one that a comparison wrote.")
    table = load_comparison(folder) or {}
    paths = sorted((folder / "runs").glob("*.json"))
    listed = table.get("runs")
    if listed:  # the folder may hold runs of earlier comparisons with other settings
        paths = [path for path in paths if path.stem in listed]
    runs = [_load_run(path) for path in paths]
    if not runs:
        raise PrefError(
            f"The comparison folder '{folder}' holds no finished run (runs/*.json): let a comparison finish "
            "at least one run there."
        )
    datasets = list(dict.fromkeys(str(run.get("dataset")) for run in runs))
    if len(datasets) > 1:
        raise PrefError(
            f"The comparison folder '{folder}' holds runs on {len(datasets)} data sets "
            f"({', '.join(datasets)}), which no picture can compare: keep a folder per data set."
        )
    known = [str(row["label"]) for row in table.get("rows", [])]
    order = {label: place for place, label in enumerate(dict.fromkeys(known + [r["label"] for r in runs]))}
    return sorted(runs, key=lambda run: order[run["label"]])


def load_comparison(folder):
    """Return ``comparison.json`` of a comparison folder, or None where there is none.

    Raises:
        PrefError: the file is damaged.
    """
    path = Path(folder, "comparison.json")
    if not path.is_file():
        return None
    table = _load_json(path)
    rows = table.get("rows")
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "label" not in row for row in rows):
        raise PrefError(f"'{path}' has no rows with labels: delete it and run the comparison again.")
    return table


def _load_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrefError(
            f"'{path}' cannot be read ({type(error).__name__}: {error}): delete it and run the comparison "
            "again."
        ) from error
    if not isinstance(value, dict):
        raise PrefError(f"'{path}' holds no record: delete it and run the comparison again.")
    return value


def _load_run(path):
    run = _load_json(path)
    if not isinstance(run.get("label"), str) or not isinstance(run.get("test_result"), dict):
        raise PrefError(
            f"'{path}' lacks 'label' or 'test_result', so it is no finished run: delete it and run the "
            "comparison again."
        )
    run["arrays"] = _load_arrays(path.with_suffix(".npz"))
    return run


def _load_arrays(path):
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ARRAYS if name in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PrefError(
            f"'{path}' is damaged ({error}): delete it and its .json file and run the comparison again."
        ) from error


def read_collapse(path, metric="last"):
    """Read the table that ``benchmarks/collapse.py`` writes as rows for :func:`collapse`.

    Args:
        path (path-like): CSV with the columns model, K, loss and ``metric``, perhaps reference.
        metric (str): column of the metric: ``last`` (last epoch), ``best`` or ``tail_best``.

    Raises:
        PrefError: the file, a column or a number is missing.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        reason = error.strerror
        raise PrefError(f"'{path}' cannot be read ({reason}): name the CSV of a sweep over K.") from error
    columns = ("model", "K", "loss", metric)
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise PrefError(
            f"'{path}' has no column {', '.join(map(repr, missing))} with values: give a CSV file with the "
            f"columns {', '.join(columns)}."
        )
    try:
        return [
            {
                "method": row["model"],
                "K": int(row["K"]),
                "metric": float(row[metric]),
                "loss": float(row["loss"]),
                "reference": float(row.get("reference") or "nan"),
            }
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise PrefError(f"'{path}' holds what is no number ({error}): mend or delete that row.") from error


def number(value):
    """Return a value of a record as float; NaN where it is none. Records write "nan" and "inf" as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def by_label(runs):
    """Return ``{label: its runs}`` in the order of the runs."""
    groups = {}
    for run in runs:
        groups.setdefault(run["label"], []).append(run)
    return groups


def main_metric(runs):
    """Return the metric key that pictures show by default.

    ``ndcg@10`` where all runs have it, otherwise their ``valid_metric``, otherwise the first metric that
    all runs have.

    Raises:
        PrefError: the runs have no metric in common.
    """
    common = [key for key in runs[0]["test_result"] if all(key in run["test_result"] for run in runs)]
    valid = str(runs[0].get("config", {}).get("valid_metric")).lower()
    for key in ("ndcg@10", valid, *common):
        if key in common:
            return key
    raise PrefError("The runs share no test metric: compare runs with the same 'metrics' and 'topk'.")


def _check_metric(runs, key):
    known = dict.fromkeys(name for run in runs for name in run["test_result"])
    if key not in known:
        raise PrefError(
            f"metric '{key}' is in no run's test result: take one of {', '.join(known)}.{suggest(key, known)}"
        )


# -- numbers behind the pictures


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


# -- figures in general


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise PrefError('Pictures need matplotlib: run pip install "recbole-pref[plots]".') from None
    return matplotlib


def _styled(draw):
    """Let a function draw in this module's style, whatever the process has set."""

    @wraps(draw)
    def wrapper(*args, **kwargs):
        matplotlib = _matplotlib()
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def _panels(width, height, rows=1, columns=1, **options):
    """Return a figure in inches and its axes, a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.05)
    FigureCanvasAgg(figure)  # text can be measured before the picture is saved
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def styles(labels):
    """Return ``{label: {"color", "marker", "linestyle"}}``, different for up to 77 labels."""
    labels = list(dict.fromkeys(labels))
    kinds = zip(labels, cycle(COLOURS), cycle(MARKERS), cycle(LINES))
    return {label: {"color": c, "marker": m, "linestyle": s} for label, c, m, s in kinds}


def _shown(label, width=34):
    """Return a label as text of a picture: broken into lines, and never read as mathematics."""
    return "\n".join(textwrap.wrap(str(label), width)).replace("$", r"\$")


def _legend(figure, entries):
    """Add a legend outside the axes: below them up to six entries, on the right beyond.

    Args:
        entries (list): (text, artist).
    """
    if not entries:
        return
    texts = [_shown(text) for text, _ in entries]
    handles = [handle for _, handle in entries]
    longest = max(len(line) for text in texts for line in text.split("\n"))
    entry_inches = 0.75 + 0.08 * longest
    width, height = figure.get_size_inches()
    if len(entries) > MOST_INSIDE:
        lines = sum(text.count("\n") + 1 for text in texts)
        figure.set_size_inches(width + entry_inches, max(height, 0.4 + 0.2 * lines))
        place, columns = "outside right upper", 1
    else:
        columns = min(len(entries), max(1, int(width / entry_inches)))
        figure.set_size_inches(width, height + 0.2 * math.ceil(len(entries) / columns))
        place = "outside lower center"
    # matplotlib before 3.10 leaves out texts that begin with "_", so they are put in afterwards
    legend = figure.legend(handles, ["-"] * len(texts), loc=place, ncols=columns, handlelength=2.8)
    for text, shown in zip(legend.get_texts(), texts):
        text.set_text(shown)


def _line_handle(style):
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _draw_mean(axis, x, values, style, label, markevery=1):
    """Draw the mean over seeds with a band from the lowest to the highest.

    Args:
        x (array [P]): ascending.
        values (array [S, P]): NaN where a seed has no value; every column has one at least.
    """
    axis.plot(x, np.nanmean(values, axis=0), label=label, **style, markevery=markevery)
    if len(values) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _scale(values):
    """Return ``log``, ``symlog`` or ``linear`` for an axis that shows these numbers."""
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[sizes > 0]
    if not len(sizes) or sizes.max() <= LOG_SPAN * sizes.min():
        return "linear"
    return "log" if len(sizes) == len(values) and min(values) > 0 else "symlog"


def _value_axis(axis, values):
    """Give the x axis a tick at each of the values, as far as their labels have room."""
    values = sorted(set(values))
    scale = _scale(values)
    options = {"linthresh": min(abs(v) for v in values if v), "linscale": 0.5} if scale == "symlog" else {}
    axis.set_xscale(scale, **options)
    axis.minorticks_off()
    places = axis.transAxes.inverted().transform(
        axis.transData.transform([(value, axis.get_ylim()[1]) for value in values])
    )[:, 0]
    texts, last = [], -1.0
    for value, place in zip(values, places):
        room = place - last >= 0.02 + 0.012 * len(f"{value:g}")
        texts.append(f"{value:g}" if room else "")
        last = place if room else last
    axis.set_xticks(values, texts)


# -- pictures of a comparison


@_styled
def learning_curves(runs, metric="ndcg@10"):
    """Draw a validation metric against the epoch: overall and, where it was measured, on the tail.

    Args:
        runs (list of dict): see :func:`load_runs`; needs ``history``.
        metric (str): RecBole's key; the second panel shows ``tail`` + metric.

    Returns:
        Figure: one or two panels, a line per label.

    Raises:
        PrefError: no run has a validation of the metric.
    """
    measured = {key for run in runs for entry in run.get("history") or () for key in entry}
    keys = [key for key in (metric, f"tail{metric}") if key in measured]
    if not keys:
        raise PrefError(
            f"metric '{metric}' is in no run's validation history: add it to 'metrics' and 'topk' and run "
            "again."
        )
    figure, axes = _panels(4.3 * len(keys), 3.4, columns=len(keys))
    groups = by_label(runs)
    look = styles(groups)
    for axis, key in zip(axes, keys):
        for label, own in groups.items():
            _draw_curve(axis, own, key, look[label], label)
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"valid {key}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, [(label, _line_handle(look[label])) for label in groups])
    return figure


def curve_of(run, key):
    """Return ``{epoch: value}`` of a metric in a run's validation history; NaN is left out."""
    curve = {entry["epoch"]: number(entry[key]) for entry in run.get("history") or () if key in entry}
    return {epoch: value for epoch, value in curve.items() if math.isfinite(value)}


def shared_epochs(curves):
    """Return the epochs, ascending, that all of the curves (:func:`curve_of`) have."""
    return sorted(set.intersection(*map(set, curves)))


def _draw_curve(axis, runs, key, style, label):
    curves = [curve for curve in (curve_of(run, key) for run in runs) if curve]
    if not curves:
        return
    shared = shared_epochs(curves)
    if shared:
        values = np.array([[curve[epoch] for epoch in shared] for curve in curves])  # [seeds, epochs]
        _draw_mean(axis, shared, values, style, label, markevery=max(1, len(shared) // 10))
    last = shared[-1] if shared else -1
    thin = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.7, "alpha": 0.6}
    for curve in curves:
        epochs = sorted(epoch for epoch in curve if epoch >= last)
        if len(epochs) > 1:
            axis.plot(epochs, [curve[epoch] for epoch in epochs], label="_one seed", **thin)


@_styled
def trade_off(runs, metric="ndcg@10"):
    """Draw the test metric over all users against that over the users with a tail target.

    Args:
        runs (list of dict): see :func:`load_runs`.
        metric (str): RecBole's key; the other coordinate is ``tail`` + metric.

    Returns:
        Figure: light points are runs, bold ones means over seeds with the standard deviation, the dashed
        steps the Pareto front of the means.

    Raises:
        PrefError: no run has both metrics.
    """
    tail = f"tail{metric}"
    for key in (metric, tail):
        _check_metric(runs, key)
    points = {
        label: np.array([[number(run["test_result"].get(key)) for key in (metric, tail)] for run in own])
        for label, own in by_label(runs).items()
    }  # [seeds, 2]
    points = {label: own[np.isfinite(own).all(axis=1)] for label, own in points.items()}
    points = {label: own for label, own in points.items() if len(own)}
    if not points:
        raise PrefError(f"No run has both {metric} and {tail}: add them to 'metrics' and run again.")
    room = 0.25 * max(len(points) - 10, 0)  # names need it
    figure, (axis,) = _panels(6.4 + room, 4.8 + room)
    look = styles(by_label(runs))
    means = np.array([own.mean(axis=0) for own in points.values()])  # [labels, 2]
    spread = np.array([own.std(axis=0, ddof=1) if len(own) > 1 else [0, 0] for own in points.values()])
    for (label, own), mean, std in zip(points.items(), means, spread):
        colour, marker = look[label]["color"], look[label]["marker"]
        axis.scatter(
            *own.T, s=22, color=colour, marker=marker, alpha=0.35, linewidths=0, label=f"_runs {label}"
        )  # fmt: skip
        axis.errorbar(
            *mean, xerr=std[0], yerr=std[1], color=colour, marker=marker, markersize=8,
            markeredgecolor="white", elinewidth=1, capsize=2, linestyle="none", label=label,
        )  # fmt: skip
    axis.margins(0.14)
    axis.set_xlabel(f"test {metric}")
    axis.set_ylabel(f"test {tail}")
    handles = _front_steps(axis, means, "Pareto front of the means") if len(means) > 1 else []
    if any(len(own) > 1 for own in points.values()):
        from matplotlib.lines import Line2D

        dot = Line2D([], [], color=GREY, marker="o", markersize=4.5, alpha=0.5, linestyle="none")
        mean = Line2D([], [], color=GREY, marker="o", markersize=8, linestyle="none")
        handles = [("one run", dot), ("mean ± standard deviation", mean), *handles]
    _legend(figure, handles)
    dots = np.concatenate(list(points.values()))
    bars = [np.hstack((means - spread * side, means + spread * side)) for side in ([1, 0], [0, 1])]
    boxes = np.concatenate((*bars, np.hstack((dots, dots))))
    _name_points(figure, axis, means, list(points), [look[label]["color"] for label in points], boxes)
    return figure


def _front_steps(axis, points, name):
    """Draw the Pareto front of ``points`` [N, 2] out to the axes' edges; return its legend entry."""
    front = points[pareto_front(points)]
    front = front[np.argsort(front[:, 0], kind="stable")]
    (left, _), (bottom, _) = axis.get_xlim(), axis.get_ylim()
    x = np.concatenate(([left], front[:, 0], front[-1:, 0]))
    y = np.concatenate((front[:1, 1], front[:, 1], [bottom]))
    (line,) = axis.plot(
        x, y, drawstyle="steps-pre", color=GREY, linestyle="--", linewidth=1, zorder=1, label="front"
    )  # fmt: skip
    axis.autoscale(False)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom=bottom)
    return [(name, line)]


def _name_points(figure, axis, points, names, colours, boxes):
    """Write each name beside its point where it covers least: other names, points, bars, steps or the edge.

    Args:
        points (array [N, 2]): in data coordinates.
        names, colours (list [N]): what is written, and in which colour.
        boxes (array [M, 4]): left, bottom, right, top in data coordinates of what is not to be covered.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that pixels can be counted
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    frame = np.array(axis.get_window_extent(renderer).extents)
    low, high = (axis.transData.transform(boxes[:, side]) for side in (slice(0, 2), slice(2, 4)))
    taken = np.concatenate((np.hstack((low - 4 * pixel, high + 4 * pixel)), _step_boxes(axis)))
    centres = axis.transData.transform(points)
    texts = [_shown(name, 26) for name in names]
    sizes = []
    for text in texts:
        probe = axis.text(0, 0, text, fontsize=9, transform=None)
        sizes.append([probe.get_window_extent(renderer).width, probe.get_window_extent(renderer).height])
        probe.remove()
    placed = np.full((len(names), 4), np.nan)
    best = [None] * len(names)
    for _ in range(2):  # the second round knows where all other names are
        for i, (centre, size) in enumerate(zip(centres, np.array(sizes))):
            others = np.delete(placed, i, axis=0)
            others = others[~np.isnan(others[:, 0])]
            dots = np.delete(centres, i, axis=0)
            away = np.concatenate((others, np.hstack((dots - 4 * pixel, dots + 4 * pixel))))
            best[i] = min(_places(centre, size, pixel, frame, taken, others, away), key=lambda p: p[0])
            placed[i] = best[i][2]
    for centre, text, colour, (_, shift, box) in zip(points, texts, colours, best):
        offset = (box[:2] - axis.transData.transform(centre)) / pixel
        note = axis.annotate(
            text, centre, xytext=offset, textcoords="offset points", fontsize=9, color=_dark(colour),
            ha="left", va="bottom", path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 3}
            if shift > NAME_SHIFTS[0] else None,
        )  # fmt: skip
        note.set_in_layout(False)


def _places(centre, size, pixel, frame, taken, names, away):
    """Return the places for a name around a point: list of (cost in pixels, shift, box [4]).

    The name is to stay within ``frame`` [4] and off ``taken`` and ``names``, its line off ``away`` [M, 4].
    """
    places = []
    for shift in NAME_SHIFTS:
        for angle in np.arange(16) * np.pi / 8:
            way = np.array([math.cos(angle), math.sin(angle)])
            # the name's nearest edge or corner lies on the circle around the point
            side = np.where(np.abs(way) < 0.3, 0, np.sign(way))
            low = centre + way * shift * pixel + size * (side - 1) / 2
            box = np.concatenate((low, low + size))
            cost = _overlap(box, taken).sum() + 4 * (size.prod() - _overlap(box, frame[None])[0])
            cost += 3 * _overlap(box, names).sum() + shift * pixel
            if shift > NAME_SHIFTS[0]:
                leader = centre + np.linspace(0, 1, 24)[:, None] * (box[:2] + size / 2 - centre)  # [24, 2]
                inside = (leader[:, None] > away[:, :2]) & (leader[:, None] < away[:, 2:])  # [24, M, 2]
                cost += 40 * pixel * inside.all(axis=2).any(axis=0).sum()
            places.append((cost, shift, box))
    return places


def _step_boxes(axis):
    """Return the pixel boxes [M, 4] of the segments of the step lines in an axis."""
    boxes = [np.empty((0, 4))]
    for line in axis.lines:
        if line.get_drawstyle() == "steps-pre":
            x, y = line.get_data()
            corners = np.column_stack((np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]))  # [2 P - 1, 2]
            corners = axis.transData.transform(corners)
            low = np.minimum(corners[:-1], corners[1:]) - 2
            boxes.append(np.hstack((low, np.maximum(corners[:-1], corners[1:]) + 2)))
    return np.concatenate(boxes)


def _overlap(box, others):
    """Return the area that a box [4] shares with each of the others [M, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)


def _dark(colour):
    """Return the colour at 70% brightness, so that text of it is read on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(colour))


@_styled
def tail_gap(runs):
    """Draw the distribution of the tail gap per label (LPO4Rec, arXiv 2507.02255, figures 1 and 5).

    Args:
        runs (list of dict): see :func:`load_runs`; the array ``tail_gap`` [R] is the mean recommendation
            probability of the tail items minus that of all items, per test row.

    Returns:
        Figure: a step histogram per label over common bins, with its median.

    Raises:
        PrefError: no run has the array.
    """
    groups = _with_array(runs, "tail_gap")
    values = {label: np.concatenate([own["tail_gap"] for own in runs]) for label, runs in groups.items()}
    values = {label: own[np.isfinite(own)].astype(np.float64) for label, own in values.items()}
    values = {label: own for label, own in values.items() if own.size}
    if not values:
        raise PrefError("The arrays 'tail_gap' hold no finite number: run the comparison again.")
    low, high = min(map(np.min, values.values())), max(map(np.max, values.values()))
    room = (high - low or abs(high) or 1.0) * 0.02
    bins = int(np.clip(math.sqrt(max(map(len, values.values()))), 12, 80))
    edges = np.linspace(low - room, high + room, bins + 1)
    power = min(0, math.floor(math.log10(max(abs(low), abs(high)) or 1.0)))
    figure, (axis,) = _panels(6.4, 1.1 + 0.55 * len(values))
    look = styles(by_label(runs))
    axis.axvline(0, color=GREY, linestyle="--", linewidth=1, label="0")
    beside = {
        "xytext": (46, 0), "xycoords": ("axes fraction", "data"), "textcoords": "offset points",
        "fontsize": 9, "va": "center", "ha": "right",
    }  # fmt: skip
    for row, (label, own) in enumerate(values.items()):
        base, colour = -float(row), look[label]["color"]
        heights = np.histogram(own, edges)[0]
        steps = base + 0.8 * heights / max(heights.max(), 1)
        axis.stairs(steps, edges, baseline=base, fill=True, color=colour, alpha=0.3, label=label)
        axis.stairs(steps, edges, baseline=base, color=colour, linewidth=1)
        median = float(np.median(own))
        mark = {"color": _dark(colour), "linewidth": 2.2, "label": f"_median {label}"}
        axis.plot([median, median], [base, base + 0.85], **mark)
        axis.annotate(f"{median / 10**power:.2f}".replace("-", "−"), (1, base + 0.3), **beside)
    axis.annotate("median", (1, 0.9), **beside)
    axis.set_yticks([0.3 - row for row in range(len(values))], [_shown(label, 28) for label in values])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.set_ylim(-len(values) + 0.9, 1.0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 10**power:g}".replace("-", "−"))
    unit = rf" ($\times 10^{{{power}}}$)" if power else ""
    axis.set_xlabel(f"mean probability of tail items − mean probability of all items{unit}")
    return figure


def _with_array(runs, name):
    """Return ``{label: arrays of its runs}`` for the runs whose npz file has ``name``."""
    have = {}
    for run in runs:
        if name in run["arrays"]:
            have.setdefault(run["label"], []).append(run["arrays"])
    if not have:
        raise PrefError(f"No run has the array '{name}': its .npz file beside runs/*.json is missing.")
    return have


@_styled
def popularity_exposure(runs):
    """Draw the share of recommendation slots that goes to each popularity decile of the items.

    Args:
        runs (list of dict): see :func:`load_runs`; needs the arrays ``top`` [R, k] and ``count`` [n_items].

    Returns:
        Figure: a line per label, and the share of the items in each decile, dashed.

    Raises:
        PrefError: no run has the arrays.
    """
    groups = _with_array(runs, "top")
    figure, (axis,) = _panels(6.4, 3.9)
    look = styles(by_label(runs))
    deciles = np.arange(1, 11)
    every = []
    for label, arrays in groups.items():
        pairs = [exposure(own["top"], own["count"]) for own in arrays]
        shares, uniform = np.array([slots for slots, _ in pairs]), pairs[0][1]
        _draw_mean(axis, deciles, shares, {**look[label]}, label)
        every.append(shares.mean(axis=0))
    (line,) = axis.plot(deciles, uniform, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label="uniform")
    positive = np.concatenate(every)
    positive = positive[positive > 0]
    if len(positive) and positive.max() > LOG_SPAN * positive.min():
        # An empty decile has no place on a logarithmic axis: its line leaves the picture below.
        axis.set_yscale("log", nonpositive="clip", subs=[])
        axis.set_ylim(bottom=positive.min() / 2)
        axis.yaxis.get_major_locator().set_params(subs=(1, 3))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xticks(deciles)
    axis.set_xlabel("decile of the items by training count (1 = most popular)")
    axis.set_ylabel(f"share of top-{next(iter(groups.values()))[0]['top'].shape[1]} slots")
    _legend(figure, [*((label, _line_handle(look[label])) for label in groups), ("uniform", line)])
    return figure


@_styled
def collapse(rows, metric="ndcg@10"):
    """Draw a test metric and the training loss against the number of negatives.

    Args:
        rows (list of dict): ``method``, ``K``, ``metric``, ``loss`` and perhaps ``reference``, the metric
            before training; several rows of one method and K are seeds. See :func:`read_collapse`.
        metric (str): what ``metric`` is, for the axis.

    Returns:
        Figure: two panels over one x axis, a line per method.

    Raises:
        PrefError: no rows.
    """
    if not rows:
        raise PrefError("The collapse curve has no rows: give a row per method and number of negatives K.")
    figure, (upper, lower) = _panels(6.0, 5.4, rows=2, sharex=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    look = styles(methods)
    for axis, key in ((upper, "metric"), (lower, "loss")):
        for method in methods:
            cells = {}
            for row in rows:
                if row["method"] == method:
                    cells.setdefault(int(row["K"]), []).append(number(row[key]))
            _draw_cells(axis, cells, look[method], method)
    entries = [(method, _line_handle(look[method])) for method in methods]
    reference = np.array([number(row.get("reference")) for row in rows])
    if np.isfinite(reference).any():
        line = upper.axhline(np.nanmean(reference), color=GREY, linewidth=1, linestyle=":", label="reference")
        entries.append(("reference, before training", line))
    upper.set_ylabel(f"test {metric}")
    lower.set_ylabel("training loss per row (nats)")
    lower.set_xlabel("negatives per positive, num_negatives K")
    _value_axis(lower, [int(row["K"]) for row in rows])
    _legend(figure, entries)
    return figure


def _draw_cells(axis, cells, style, label):
    """Draw ``{x: values of the seeds}``; seeds may be missing at some x."""
    x = sorted(key for key, own in cells.items() if np.isfinite(own).any())
    if x:
        seeds = max(len(cells[key]) for key in x)
        table = np.array([(cells[key] + [math.nan] * seeds)[:seeds] for key in x]).T
        _draw_mean(axis, x, table, style, label)


# -- one setting


def variants(runs, setting):
    """Return the runs that differ in one setting (and the seed) alone, as lines of a picture.

    Args:
        runs (list of dict): see :func:`load_runs`; needs ``config``.
        setting (str): key of ``config``.

    Returns:
        dict: ``{name of the line: {value: runs}}`` for the groups with at least two values. The name is
        the model and, where a model has several groups, the settings they differ in.

    Raises:
        PrefError: unknown setting, or no two runs differ in it alone.
    """
    known = {key for run in runs for key in run.get("config", {})}
    if setting not in known:
        raise PrefError(f"setting '{setting}' is in no run's settings.{suggest(setting, known)}")
    groups = {}
    for run in runs:
        if setting in run.get("config", {}):
            rest = {k: v for k, v in run["config"].items() if k not in RUN_SETTINGS and k != setting}
            groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    lines = {}
    for group in groups.values():
        cells = {}
        for run in group:
            cells.setdefault(_hashable(run["config"][setting]), []).append(run)
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
        siblings = [other["config"] for other in firsts if other["model"] == run["model"]]
        keys = sorted({key for config in siblings for key in config} - RUN_SETTINGS - {setting})
        apart = [key for key in keys if len({str(config.get(key)) for config in siblings}) > 1]
        names.append(" ".join([run["model"], *(f"{key}={run['config'].get(key)}" for key in apart)]))
    return names


def _hashable(value):
    plain = value is None or isinstance(value, (str, bool, Real))
    return value if plain else json.dumps(value, sort_keys=True, default=str)


@_styled
def sensitivity(runs, setting, metric="ndcg@10"):
    """Draw the test metric, overall and on the tail, against one setting.

    Args:
        runs (list of dict): see :func:`load_runs`. Runs are joined by a line when all settings but this
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
    _check_metric(runs, metric)
    lines = variants(runs, setting)
    values = list(dict.fromkeys(value for cells in lines.values() for value in cells))
    numeric = all(_is_number(value) for value in values)
    place = (lambda value: value) if numeric else {v: i for i, v in enumerate(values)}.__getitem__
    keys = [key for key in (metric, f"tail{metric}") if any(key in run["test_result"] for run in runs)]
    figure, axes = _panels(5.6, 0.8 + 2.2 * len(keys), rows=len(keys), sharex=True)
    look = styles(lines)
    for axis, key in zip(axes, keys):
        for name, cells in lines.items():
            points = {
                place(value): [number(run["test_result"].get(key)) for run in own]
                for value, own in cells.items()
            }
            _draw_cells(axis, points, look[name], name)
        axis.set_ylabel(f"test {key}")
    if numeric:
        _value_axis(axes[-1], values)
    else:
        axes[-1].set_xticks(range(len(values)), [_shown(value, 14) for value in values])
    axes[-1].set_xlabel(f"{setting} (K, negatives per positive)" if setting == "num_negatives" else setting)
    _legend(figure, [(name, _line_handle(look[name])) for name in lines])
    return figure


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def swept_settings(runs, least=3):
    """Return the settings with at least ``least`` numeric values on one line of :func:`variants`."""
    keys = dict.fromkeys(key for run in runs for key in run.get("config", {}) if key not in RUN_SETTINGS)
    swept = []
    for key in keys:
        values = {run["config"][key] for run in runs if _is_number(run.get("config", {}).get(key))}
        if len(values) >= least:
            try:
                lines = variants(runs, key)
            except PrefError:
                continue  # the values belong to different models
            if any(sum(map(_is_number, cells)) >= least for cells in lines.values()):
                swept.append(key)
    return swept


# -- sweeps


@_styled
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
    figure, (axis,) = _panels(6.0, 4.6)
    edge = {"edgecolors": "white", "linewidths": 0.4}
    others = axis.scatter(*points[~front].T, s=24, color=COLOURS[5], label="trials", **edge)
    best = axis.scatter(*points[front].T, s=52, color=COLOURS[4], marker="D", label="on the front", **edge)
    axis.margins(0.1)
    axis.set_xlabel(overall)
    axis.set_ylabel(tail)
    entries = _front_steps(axis, points, "Pareto front")
    kinds = [(f"on the front ({front.sum()})", best), (f"other trials ({(~front).sum()})", others)]
    _legend(figure, [*kinds, *entries])
    names = [entry[0].rpartition("_")[2] for entry, on in zip(numbered, front) if on]
    if len(names) <= 20:
        boxes = np.hstack((points, points))
        _name_points(figure, axis, points[front], names, [COLOURS[4]] * len(names), boxes)
    return figure


@_styled
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
    figure, (axis,) = _panels(max(5.0, 1.35 * len(columns) + 1.2), 4.0)
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
                _shown(text, 14), (place, height), xytext=(-4, 0), textcoords="offset points", fontsize=9,
                ha="right", va="center", zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
            )  # fmt: skip
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(-0.05, 1.05)
    axis.set_xticks(x, [_shown(key.removeprefix("config/"), 14) for key in columns])
    axis.tick_params(axis="x", length=0, labelsize=10)
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    # The colour bar is the objective's axis: the lines end on it.
    strip = axis.inset_axes([x[-1], 0, 0.08, 1], transform=axis.transData)
    figure.colorbar(ScalarMappable(norm, "viridis_r"), cax=strip)
    _legend(figure, [(f"best trial, {objective} {score[-1]:.4g}", axis.lines[0])])
    return figure


def _is_known(value):
    """Return whether a trial has the value; tables of trials write NaN where it has none."""
    return value is not None and value == value


def _coordinate(values):
    """Place the values of one axis between 0 and 1.

    Returns:
        tuple: places [N], list of (place, text) of the ticks.
    """
    if not all(_is_number(value) for value in values):
        names = sorted(map(str, values))
        names = list(dict.fromkeys(names))
        step = max(len(names) - 1, 1)
        ticks = [(place / step, name) for place, name in enumerate(names)]
        where = {name: place for place, name in ticks}
        return np.array([where[str(value)] for value in values]), ticks
    values = np.array(values, dtype=float)
    log = _scale(values) == "log"
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


# -- files


def as_svg(figure):
    """Return a figure as SVG, bytes."""
    return _rendered(figure, "svg")


def _rendered(figure, kind):
    matplotlib = _matplotlib()
    nothing = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # a date would change the file
    file = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, dpi=200, metadata=nothing.get(kind))
    return file.getvalue()


def save(figure, path_stem):
    """Write a figure as PNG (200 dpi), PDF and SVG.

    Args:
        figure (Figure): what to write.
        path_stem (path-like): the files' path without ending; its folder is created if necessary.

    Returns:
        list of Path: the PNG, PDF and SVG file.

    Raises:
        PrefError: a file cannot be written.
    """
    from recbole_pref.checkpoint import write_atomically

    stem = Path(path_stem)
    paths = []
    for kind in ("png", "pdf", "svg"):
        data = _rendered(figure, kind)
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomically(paths[-1], lambda file: file.write(data), "output")
    return paths


def figures(folder, runs=None):
    """Draw every picture that the data of a comparison folder allow.

    Args:
        folder (path-like): see :func:`load_runs`; CSV files ``collapse*.csv`` in it are drawn as well.
        runs (list of dict, optional): its runs, when they are already read.

    Returns:
        dict: name -> Figure, among ``learning_curves``, ``trade_off``, ``tail_gap``, ``exposure``,
        ``sensitivity_<setting>`` for each setting with three values or more, and the names of the CSV files.

    Raises:
        PrefError: see :func:`load_runs` and :func:`read_collapse`; matplotlib is not installed.
    """
    runs = load_runs(folder) if runs is None else runs
    _matplotlib()
    metric = main_metric(runs)
    tail = any(f"tail{metric}" in run["test_result"] for run in runs)
    validated = any(metric in entry for run in runs for entry in run.get("history") or ())
    arrays = {name for run in runs for name in run["arrays"]}
    drawn = {}
    if tail:
        drawn["trade_off"] = trade_off(runs, metric)
    if validated:
        drawn["learning_curves"] = learning_curves(runs, metric)
    if "tail_gap" in arrays:
        drawn["tail_gap"] = tail_gap(runs)
    if {"top", "count"} <= arrays:
        drawn["exposure"] = popularity_exposure(runs)
    for setting in swept_settings(runs):
        drawn[f"sensitivity_{setting}"] = sensitivity(runs, setting, metric)
    for path in sorted(Path(folder).glob("collapse*.csv")):
        drawn[path.stem] = collapse(read_collapse(path))
    return drawn


def draw_all(folder, output=None):
    """Draw every picture that the data of a comparison folder allow into files.

    Args:
        folder (path-like): see :func:`figures`.
        output (path-like, optional): where the pictures go; by default ``plots`` inside ``folder``.

    Returns:
        dict: name -> Path of the PNG file; PDF and SVG lie beside it.

    Raises:
        PrefError: see :func:`figures` and :func:`save`.
    """
    output = Path(folder, "plots") if output is None else Path(output)
    return {name: save(figure, output / name)[0] for name, figure in figures(folder).items()}
