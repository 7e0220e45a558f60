"""Write a comparison as one self-contained HTML file, without scripts, network access or other files."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recbole_pref import plots
from recbole_pref.checkpoint import SHARED_BY_KINDS, write_atomically
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name, smaller_is_better
from recbole_pref.records import Run, by_label, number, read_comparison, read_runs
from recbole_pref.records.significance import LEVEL
from recbole_pref.records.summary import COSTS, best_shown, mark, shown, shown_cost, summarize
from recbole_pref.settings import settings_with

ABSENT = "–"
TITLES = {
    "trade_off": "Overall against tail",
    "learning_curves": "Learning curves",
    "tail_gap": "Probability of tail items",
    "exposure": "Exposure by popularity",
    "collapse": "Number of negatives",
    "sensitivity": "Sensitivity",
}


def draw_and_report(folder: str | Path) -> Path:
    """Draw the pictures of a comparison and write its report. Pictures that cannot be drawn are skipped.

    Args:
        folder: the comparison folder.

    Returns:
        The path of the report. Standard error lists the skipped pictures.

    Raises:
        PrefError: the folder has no comparison, or it cannot be read.
    """
    refused: list[PrefError] = []
    try:
        plots.draw_all(folder, refused=refused)
    except PrefError as error:
        print(f"recbole-pref: no pictures: {error}", file=sys.stderr)
    for refusal in refused:
        print(f"recbole-pref: a picture is skipped: {refusal}", file=sys.stderr)
    return write_report(folder)


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write a comparison folder as one HTML file: tables, pictures, settings, versions, commands.

    Args:
        folder: see :func:`recbole_pref.records.read_runs`. Without ``comparison.json``, the table is computed from
            the runs, without significance. Pictures without data are skipped, with a note if a file
            ``collapse*.csv`` cannot be drawn.
        path: the file; by default ``report.html`` inside ``folder``.

    Raises:
        PrefError: there is no finished run, a file is damaged, or the report cannot be written.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    table = read_comparison(folder) or summary(runs)
    path = folder / "report.html" if path is None else Path(path)
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = pages.get_template("report.html.jinja").render(
        **_head(runs, table), **_results(table, runs), pictures=_pictures(folder, runs), **_origin(runs, table)
    )
    write_atomically(path, lambda file: file.write(page.encode("utf-8")), "path")
    return path


def summary(runs: list[Run]) -> dict[str, Any]:
    """Return the table of some runs in the form of ``comparison.json``, without tests."""
    metrics = list(dict.fromkeys(key for run in runs for key in run.test_result))
    rows = summarize({label: dict(enumerate(group)) for label, group in by_label(runs).items()}, metrics=metrics)
    return {"metrics": metrics, "rows": rows}


def _head(runs: list[Run], table: dict[str, Any]) -> dict[str, Any]:
    """Return title, subtitle, and warnings about runs that failed or cannot be compared."""
    labels = list(by_label(runs))
    seeds = sorted({str(run.seed) for run in runs})
    parts = [f"{len(runs)} runs, {len(labels)} labels", f"seeds {', '.join(seeds)}", plots.tail_definition(runs)]
    warnings = [f"{name} failed: {reason}" for name, reason in (table.get("failed") or {}).items()]
    if _on_different_data(runs):
        warnings.append("The runs were trained on different data (see the fingerprints below): do not compare them.")
    if len({run.mask_history for run in runs}) > 1:
        warnings.append("Only some runs exclude seen items from the ranking (mask_history): do not compare them.")
    methods = ", ".join(labels) if len(labels) < 4 else f"{len(labels)} methods"
    return {
        "title": f"{methods} on {runs[0].dataset}",
        "subtitle": "; ".join(filter(None, parts)) + ".",
        "warnings": warnings,
    }


def _on_different_data(runs: list[Run]) -> bool:
    """Return whether runs have different users or items, or different training rows for one kind of model."""
    kinds: dict[Any, list[dict[str, Any]]] = {}
    for run in runs:
        kinds.setdefault(run.config.get("MODEL_TYPE"), []).append(run.data)
    shared = [{key: data.get(key) for key in SHARED_BY_KINDS} for group in kinds.values() for data in group]
    return any(data != group[0] for group in (shared, *kinds.values()) for data in group)


# -- tables: a header and rows of cells; a cell is a text or (text, CSS class)


def _results(table: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
    """Return the tables of means, costs, differences and single runs."""
    metrics, rows, baseline = table["metrics"], table["rows"], table.get("baseline")
    names = [display_name(key) for key in metrics]
    best = {key: best_shown(rows, key) for key in metrics}
    means = [[row["label"], _count(row.get("seeds")), *(_mean(row, key, best[key]) for key in metrics)] for row in rows]
    costs = [key for key in COSTS if any(row.get(key) is not None for row in rows)]
    tested = [key for key in metrics if any(_p(row, key) is not None for row in rows)]
    every = list(dict.fromkeys(key for run in runs for key in run.test_result))
    single = [
        [run.label, run.seed, *(_dash(run.test_result.get(key)) for key in every),
         ABSENT if run.epochs is None else run.epochs, *(_cost(getattr(run, key), key) for key in COSTS)]
        for run in runs
    ]  # fmt: skip
    return {
        "means": {"header": ["label", "seeds", *names], "rows": means},
        "note": _note(table, bool(tested)),
        "costs": {
            "header": ["label", *(COSTS[key][1] for key in costs)],
            "rows": [[row["label"], *(_cost(row.get(key), key) for key in costs)] for row in rows] if costs else [],
        },
        "baseline": baseline,
        "differences": {
            "header": ["label", *map(display_name, tested)],
            "rows": [
                [row["label"], *(_difference(row, key) for key in tested)]
                for row in rows
                if tested and row["label"] != baseline
            ],
        },
        "runs": {
            "header": ["label", "seed", *map(display_name, every), "epochs", *(name for _, name, _ in COSTS.values())],
            "rows": single,
        },
    }


def _note(table: dict[str, Any], tested: bool) -> str:
    """Return the sentences below the table of means."""
    smaller = [display_name(key) for key in table["metrics"] if smaller_is_better(key)]
    note = table.get("test")
    if not note:
        note = "Test set: mean ± standard deviation over the seeds."
        if tested:
            note += f" * differs from {table.get('baseline')}, corrected p < {LEVEL}."
    parts = [note]
    if tested and "↑" not in note:
        parts.append("↑: better, ↓: worse.")
    if not tested:
        parts.append("There is no test of significance.")
    parts.append("Bold: the best mean of a metric.")
    if smaller:
        parts.append(f"Lower is better for {', '.join(smaller)}.")
    return " ".join(parts)


def _count(seeds: Any) -> Any:
    return len(seeds) if isinstance(seeds, list) else seeds


def _mean(row: dict[str, Any], key: str, best: str) -> str | tuple[str, str]:
    cell = row.get(key) or {}
    mean, std = shown(cell.get("mean")), number(cell.get("std"))
    if not mean:
        return ABSENT
    text = f"{mean} ± {std:.4f}" if math.isfinite(std) else mean
    return f"{text} {mark(cell, key)}".rstrip().replace("-", "−"), "best" if mean == best else ""


def _p(row: dict[str, Any], key: str) -> float | None:
    p = number((row.get(key) or {}).get("p"))
    return p if math.isfinite(p) else None


def _difference(row: dict[str, Any], key: str) -> str:
    difference, p = number((row.get(key) or {}).get("difference")), _p(row, key)
    text = ABSENT if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{difference:+.4f}, {text}".replace("-", "−") if math.isfinite(difference) else text


def _dash(value: Any) -> str:
    return shown(value).replace("-", "−") or ABSENT


def _cost(value: Any, key: str) -> str:
    return shown_cost(value, key) or ABSENT


# -- pictures


def _pictures(folder: Path, runs: list[Run]) -> dict[str, Any]:
    """Return the pictures with title and caption, and notes about skipped pictures."""
    if importlib.util.find_spec("matplotlib") is None:
        return {"missing": "matplotlib", "warnings": [], "drawn": []}
    refused: list[PrefError] = []
    try:
        figures = plots.figures(folder, runs, refused)
    except PrefError as error:
        return {"missing": None, "warnings": [f"Pictures are skipped: {error}"], "drawn": []}
    drawn = []
    for name, figure in figures.items():
        title = next(text for key, text in TITLES.items() if name.startswith(key))
        if name.startswith("sensitivity"):
            title += f": {name.partition('_')[2]}"
        drawn.append({"title": title, "svg": plots.as_html(figure, name, title), "caption": plots.caption(name)})
    return {"missing": None, "warnings": [f"A picture is skipped: {error}" for error in refused], "drawn": drawn}


# -- settings and origin


def _origin(runs: list[Run], table: dict[str, Any]) -> dict[str, Any]:
    """Return settings, versions, data and commands."""
    groups = by_label(runs)
    complete = {label: _joined([run.config for run in group]) for label, group in groups.items()}
    versions = _joined([run.environment for run in runs])
    versions.pop("command", None)
    commands = dict.fromkeys(run.environment.get("command") for run in runs)
    return {
        "differing": {
            "header": ["setting", *groups],
            "rows": [[key, *row.values()] for key, row in sorted(differing_settings(runs).items())],
        },
        "settings": {label: _pairs(dict(sorted(values.items())), "setting") for label, values in complete.items()},
        "versions": _pairs(versions, "name"),
        "data": _pairs(_joined([run.data for run in runs]), "name"),
        "command": table.get("command"),
        "commands": [str(command) for command in commands if command],
    }


def _pairs(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {"header": [name, "value"], "rows": [[key, (value, "value")] for key, value in values.items()]}


def differing_settings(runs: list[Run]) -> dict[str, dict[str, str]]:
    """Return the settings whose values differ between labels.

    Settings of the scope ``run`` (see ``Setting``) are excluded.

    Returns:
        ``{setting: {label: text}}``. Several values of a label are joined by commas; a dash marks a missing setting.
    """
    values = {label: _joined([run.config for run in group]) for label, group in by_label(runs).items()}
    keys = dict.fromkeys(key for texts in values.values() for key in texts if key not in settings_with(scope="run"))
    table = {key: {label: texts.get(key, ABSENT) for label, texts in values.items()} for key in keys}
    return {key: row for key, row in table.items() if len(set(row.values())) > 1}


def _joined(records: list[dict[str, Any]]) -> dict[str, str]:
    """Merge several dicts to ``{key: text}``; distinct values are joined by commas."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: ", ".join(dict.fromkeys(_text(record[key]) for record in records if key in record)) for key in keys}


def _text(value: Any) -> str:
    """Return the value of a setting in YAML."""
    if value is None:
        return "~"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
