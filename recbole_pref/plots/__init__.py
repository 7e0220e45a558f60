"""Pictures of a comparison or a sweep: functions from records to matplotlib figures, and files of figures.

Runs are those of :func:`load_runs`. Figures do not use pyplot, so calls share no state. Each label has its own colour,
marker and line style.
"""

from __future__ import annotations  # matplotlib is imported late

import os
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        "After the first seed has stopped, the other seeds are drawn as thin lines."
    ),
    "trade_off": (
        "Test metric over all users against the same metric over the users whose test item is a tail item. "
        "Light: one run; bold: mean over the seeds with one standard deviation; dashed: the Pareto front "
        "of the means. Up and to the right is better."
    ),
    "tail_gap": (
        "Mean recommendation probability of the tail items minus that of all items, one value per test row, "
        "all seeds together. Heights are scaled per label; the line marks the median. At 0, tail "
        "items are as probable as the average item."
    ),
    "exposure": (
        "Share of recommendation slots for each tenth of the items, ordered by their number of "
        "training interactions; mean over the seeds, band from lowest to highest. Dashed: uniform "
        "recommendations. On a logarithmic axis, a share of 0 is drawn at the lower end."
    ),
    "collapse": (
        "Test metric and training loss per row against the number of negatives K, all other settings equal; mean "
        "over the seeds, band from lowest to highest. The subtitle names the epochs."
    ),
    "sensitivity": (
        "Test metric against one setting, all others equal; mean over the seeds, band from lowest to highest."
    ),
}


def caption(name: str) -> str:
    """Return the caption of a picture; ``name`` is a key of :func:`figures`."""
    return next(text for key, text in CAPTIONS.items() if name.startswith(key))


def figures(
    folder: str | Path, runs: list[Run] | None = None, refused: list[PrefError] | None = None
) -> dict[str, Figure]:
    """Draw every picture for which a comparison folder has the data.

    Args:
        folder: see :func:`load_runs`; CSV files ``collapse*.csv`` in it are drawn as well.
        runs: the runs of the folder, if they have already been read.
        refused: a list to which the PrefError of each CSV file is appended; by default it is raised.

    Returns:
        The figures by name: ``learning_curves``, ``trade_off``, ``tail_gap``, ``exposure``, ``sensitivity_<setting>``
        for each setting with at least three values, ``collapse`` if ``num_negatives`` is one of them, and the stems of
        the CSV files; the file ``collapse.csv`` overrides ``collapse``.

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


def draw_all(
    folder: str | Path, output: str | os.PathLike[str] | None = None, refused: list[PrefError] | None = None
) -> dict[str, Path]:
    """Write every picture for which a comparison folder has the data.

    Args:
        folder, refused: see :func:`figures`.
        output: folder of the pictures; by default ``plots`` inside ``folder``.

    Returns:
        The path of each PNG file by name. PDF and SVG files are written to the same folder.

    Raises:
        PrefError: see :func:`figures` and :func:`save`.
    """
    default = Path(folder, "plots")
    drawn = figures(folder, refused=refused)
    for path in default.glob("*.*") if output is None else ():  # remove pictures of earlier comparisons
        is_ours = path.stem in CAPTIONS or path.stem.startswith("sensitivity_")
        if is_ours and path.stem not in drawn and path.suffix[1:] in KINDS:
            path.unlink()
    target = default if output is None else Path(output)
    return {name: save(figure, target / name)[0] for name, figure in drawn.items()}
