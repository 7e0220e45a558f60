"""Format results as text, LaTeX and CSV."""

import csv
import io
from typing import Any

from tabulate import tabulate

from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name, group_key, parse_key
from recbole_pref.records import Run
from recbole_pref.records.summary import COSTS, best_shown, mark, shown, shown_cost

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": "$<$", ">": "$>$"}
)
_GROUPS = {"Overall": None, "Head": "head", "Tail": "tail"}  # row of a result -> group


def result_table(result: dict[str, Any], model: str, dataset: str) -> str:
    """Return the test result as a table with a row per group and a column per metric and cut-off.

    Args:
        result: the result of ``run_recbole_pref``.
        model, dataset: names in the title.
    """
    test = dict(result["test_result"] or {})
    if not test:
        return f"{model} on {dataset}: there are no test data."
    parts = {key: parse_key(key) for key in test}
    grouped = [key for key in test if any(group_key(group, key) in test for group in ("head", "tail"))]
    text = f"{model} on {dataset}, test set"
    if grouped:
        rows = [
            [title, *(shown(test.get(group_key(group, key) if group else key)) for key in grouped)]
            for title, group in _GROUPS.items()
        ]
        rows = [row for row in rows if any(row[1:])]
        text += "\n" + tabulate(rows, ["group", *map(display_name, grouped)], "github", disable_numparse=True)
    in_rows = {parts[key][1:] for key in grouped}
    rest = [[display_name(key), shown(test[key])] for key in test if parts[key][1:] not in in_rows]
    if rest:
        text += "\n" + tabulate(rest, ["metric", "value"], "github", disable_numparse=True)
    if result["seconds_per_epoch"]:
        epochs = result["epochs"]
        text += f"\n{epochs} epoch{'s' * (epochs != 1)}, {result['seconds_per_epoch']:.2f} s per epoch"
    return text


def column_key(column: str) -> str:
    """Return the metric key of a column name: ``tailndcg@10`` for ``Tail NDCG@10``."""
    return column.lower().replace(" ", "")


def columns_of(columns: list[str] | None, run: Run, metrics: list[str]) -> tuple[list[str], list[str]]:
    """Return the metrics and the costs of a table.

    Args:
        columns: names of metrics and costs in any spelling; None for all. A metric without a cut-off has the
            cut-off of ``metrics``.
        run: a run of the table.
        metrics: keys of the metrics in a table by default.

    Raises:
        PrefError: the run does not have a column.
    """
    if columns is None:
        return metrics, list(COSTS)
    chosen, costs = [], []
    for column in columns:
        key = column_key(column)
        if key in COSTS:
            costs.append(key)
            continue
        group, name, cutoff = parse_key(key)
        candidates = [other for other in run.test_result if parse_key(other)[:2] == (group, name)]
        candidates = [other for other in candidates if cutoff in (None, parse_key(other).cutoff)]
        best = next((other for other in candidates if other in metrics), candidates[0] if candidates else None)
        if best is None:
            raise PrefError(f"--columns={column!r} was not measured: choose from {', '.join(run.test_result)}.")
        chosen.append(best)
    return chosen or metrics, costs


def comparison_table(rows: list[dict[str, Any]], metrics: list[str], form: str, costs: list[str] | None = None) -> str:
    """Return the table of a comparison as text.

    Args:
        rows: see :func:`recbole_pref.records.summary.summarize`.
        metrics: columns.
        form: ``latex``, where the best means are bold, or a format of the tabulate package such as ``github``.
        costs: additional columns, keys of ``COSTS``; by default all.
    """
    costs = list(COSTS) if costs is None else costs
    header = ["model", "seeds", *map(display_name, metrics), *(COSTS[cost][0] for cost in costs)]
    lines = []
    for row in rows:
        cells = [_cell(row[metric], metric) for metric in metrics]
        lines.append([row["label"], str(len(row["seeds"])), *cells, *(shown_cost(row[cost], cost) for cost in costs)])
    if form != "latex":
        lines = [[label.replace("|", r"\|"), *line] for label, *line in lines]
        return tabulate(lines, header, tablefmt=form, disable_numparse=True)
    lines = [[cell.translate(_LATEX) for cell in line] for line in lines]
    best = [best_shown(rows, metric) for metric in metrics] if len(rows) > 1 else []
    for line in lines:
        for column, value in enumerate(best, start=2):
            mean, space, rest = line[column].partition(" ")
            if value and mean == value:
                line[column] = rf"\textbf{{{mean}}}{space}{rest}"
    header = [name.translate(_LATEX) for name in header]
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule",
        " & ".join(header) + r" \\", r"\midrule",
        *(" & ".join(line) + r" \\" for line in lines), r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip


def _cell(cell: dict[str, Any], metric: str) -> str:
    text = shown(cell["mean"])
    if text and cell["std"] is not None:
        text += f" ± {cell['std']:.4f}"
    return f"{text} {mark(cell, metric)}".rstrip()


def latex_table(rows: list[dict[str, Any]], metrics: list[str], costs: list[str], note: str, dataset: str) -> str:
    """Return the table of a comparison as a LaTeX float with the note in its caption."""
    caption = note.translate(_LATEX) + (" Bold: the best mean." if len(rows) > 1 else "")
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{dataset}}}",
        comparison_table(rows, metrics, "latex", costs), r"\end{table}", "",
    ])  # fmt: skip


def rows_as_csv(rows: list[dict[str, Any]]) -> str:
    """Return dicts as CSV, with a column for each key in the order of first appearance."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def comparison_csv(rows: list[dict[str, Any]], metrics: list[str]) -> str:
    """Return the table of a comparison as CSV with unrounded numbers; see :func:`comparison_table`."""
    parts = ("mean", "std", "difference", "p")
    lines = []
    for row in rows:
        values = {f"{metric} {part}": row[metric][part] for metric in metrics for part in parts}
        costs = {cost: row[cost] for cost in COSTS}
        lines.append({"model": row["label"], "seeds": len(row["seeds"]), **values, **costs})
    return rows_as_csv(lines)
