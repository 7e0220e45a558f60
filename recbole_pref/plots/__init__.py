"""Pictures of a comparison or a sweep: pure functions from records to matplotlib figures, and their files.

A run is a :class:`Run` as :func:`load_runs` returns it. Figures are made without pyplot, so nothing is kept between
calls, and any number of labels has a colour, marker and line style of its own.
"""

from pathlib import Path

from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import group_key
from recbole_pref.plots.comparisons import (
    collapse,
    curve_of,
    learning_curves,
    popularity_exposure,
    shared_epochs,
    tail_gap,
    trade_off,
)
from recbole_pref.plots.drawing import KINDS, as_html, as_svg, need_matplotlib, save, styles
from recbole_pref.plots.numbers import (
    exposure,
    main_metric,
    pareto_front,
    read_collapse,
    scope,
    tail_definition,
)
from recbole_pref.plots.settings import collapse_rows, sensitivity, swept_settings, variants
from recbole_pref.plots.sweeps import parallel_coordinates, sweep_pareto
from recbole_pref.records import Run, by_label, number
from recbole_pref.records import read_comparison as load_comparison
from recbole_pref.records import read_runs as load_runs

__all__ = [
    "Run", "as_html", "as_svg", "by_label", "caption", "collapse", "collapse_rows",
    "curve_of", "draw_all", "exposure", "figures", "learning_curves", "load_comparison", "load_runs", "main_metric",
    "number", "parallel_coordinates", "pareto_front", "popularity_exposure", "read_collapse", "save", "scope",
    "sensitivity", "shared_epochs", "styles", "swept_settings", "sweep_pareto", "tail_definition", "tail_gap",
    "trade_off", "variants",
]  # fmt: skip

CAPTIONS = {
    "learning_curves": (
        "Validation metric after each epoch: mean over the seeds, band from the lowest to the highest seed. "
        "Where some seeds have stopped, the others continue as thin lines."
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
        "often. Where the axis is logarithmic, a line or band on its lower end has share 0 there."
    ),
    "collapse": (
        "Test metric and training loss per row against the number of negatives K, all other settings equal; mean "
        "over the seeds, band from lowest to highest. The line above says which epochs they are of."
    ),
    "sensitivity": (
        "Test metric against one setting, all others equal; mean over the seeds, band from lowest to highest."
    ),
}


def caption(name):
    """Return the sentence under the picture ``name``, a key of :func:`figures`."""
    return next(text for key, text in CAPTIONS.items() if name.startswith(key))


def figures(folder, runs=None, refused=None):
    """Draw every picture that the data of a comparison folder allow.

    Args:
        folder (path-like): see :func:`load_runs`; CSV files ``collapse*.csv`` in it are drawn as well.
        runs (list of Run, optional): its runs, when they are already read.
        refused (list, optional): gets the PrefError of each CSV file that cannot be drawn, instead of raising it.

    Returns:
        dict: name -> Figure, among ``learning_curves``, ``trade_off``, ``tail_gap``, ``exposure``,
        ``sensitivity_<setting>`` for each setting with three values or more, ``collapse`` where ``num_negatives``
        is one of them, and the names of the CSV files, of which a ``collapse.csv`` takes the place of ``collapse``.

    Raises:
        PrefError: see :func:`load_runs` and :func:`read_collapse`; matplotlib is not installed.
    """
    runs = load_runs(folder) if runs is None else runs
    need_matplotlib()
    metric = main_metric(runs)
    tail = any(group_key("tail", metric) in run.test_result for run in runs)
    validated = any(metric in entry for run in runs for entry in run.history)
    arrays = {name for run in runs for name in run.arrays}
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
    rows = collapse_rows(runs, metric)
    if rows:
        drawn["collapse"] = collapse(rows, metric)
    for path in sorted(Path(folder).glob("collapse*.csv")):
        try:
            drawn[path.stem] = collapse(read_collapse(path))
        except PrefError as error:
            if refused is None:
                raise
            refused.append(error)
    return drawn


def draw_all(folder, output=None, refused=None):
    """Draw every picture that the data of a comparison folder allow into files.

    Args:
        folder, refused: see :func:`figures`.
        output (path-like, optional): where the pictures go; by default ``plots`` inside ``folder``.

    Returns:
        dict: name -> Path of the PNG file; PDF and SVG lie beside it.

    Raises:
        PrefError: see :func:`figures` and :func:`save`.
    """
    own = Path(folder, "plots")
    drawn = figures(folder, refused=refused)
    for path in own.glob("*.*") if output is None else ():  # of runs that are not compared any more
        named = path.stem in CAPTIONS or path.stem.startswith("sensitivity_")
        if named and path.stem not in drawn and path.suffix[1:] in KINDS:
            path.unlink()
    output = own if output is None else Path(output)
    return {name: save(figure, output / name)[0] for name, figure in drawn.items()}
