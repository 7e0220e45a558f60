"""Results as readable text."""

import csv
import io

from tabulate import tabulate

from recbole_pref.compare.significance import LEVEL

# What a comparison tells beside metrics: key of a record -> name of the column, name in words, decimals.
COSTS = {
    "seconds_per_epoch": ("s / epoch", "seconds per epoch", 2),
    "epochs_to_best": ("epochs to best", "epochs to best", 1),
    "peak_memory_mb": ("peak MiB", "peak memory (MiB)", 0),
}
_LATEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
_GROUPS = (("Overall", ""), ("Head", "head"), ("Tail", "tail"))


def result_table(result, model, dataset):
    """Return the test result as a table: a row per group, a column per metric and cut-off.

    Args:
        result (dict): of ``run_recbole_pref``.
        model, dataset (str): for the title.
    """
    test = dict(result["test_result"] or {})
    if not test:
        return f"{model} on {dataset}: there are no test data."
    plain = [key for key in test if not key.startswith(("head", "tail"))]
    grouped = [key for key in plain if f"head{key}" in test or f"tail{key}" in test]
    rows = []
    for title, prefix in _GROUPS:
        values = [test.get(prefix + key) for key in grouped]
        if any(value is not None for value in values):
            rows.append([title, *("" if v is None else f"{v:.4f}" for v in values)])
    text = f"{model} on {dataset}, test set"
    if rows:
        text += "\n" + tabulate(rows, ["group", *grouped], tablefmt="github", disable_numparse=True)
    rest = [key for key in test if key.removeprefix("head").removeprefix("tail") not in grouped]
    if rest:
        pairs = [[key, f"{test[key]:.4f}"] for key in rest]
        text += "\n" + tabulate(pairs, ["metric", "value"], tablefmt="github", disable_numparse=True)
    if result["seconds_per_epoch"]:
        text += f"\n{result['epochs']} epochs, {result['seconds_per_epoch']:.2f} s per epoch"
    return text


def comparison_table(rows, metrics, form):
    """Return the table of a comparison as text.

    Args:
        rows (list of dict): see ``compare.Comparison.rows``.
        metrics (list of str): columns.
        form (str): ``latex``, or a format of the tabulate package such as ``github``.
    """
    header = ["model", "seeds", *metrics, *(column for column, _, _ in COSTS.values())]
    if form == "latex":
        header = [name.translate(_LATEX) for name in header]
    plus_minus = r" $\pm$ " if form == "latex" else " ± "
    cells = []
    for row in rows:
        label = row["label"].translate(_LATEX) if form == "latex" else row["label"].replace("|", r"\|")
        line = [label, len(row["seeds"])]
        for metric in metrics:
            cell = row[metric]
            text = f"{cell['mean']:.4f}"
            if cell["std"] is not None:
                text += f"{plus_minus}{cell['std']:.4f}"
            line.append(text + ("*" if cell["p"] is not None and cell["p"] < LEVEL else ""))
        line += [_number(row[cost], digits) for cost, (_, _, digits) in COSTS.items()]
        cells.append(line)
    if form == "latex":
        return _latex(header, cells)
    return tabulate(cells, header, tablefmt=form, disable_numparse=True)


def _latex(header, cells):
    lines = [
        r"% needs \usepackage{booktabs}", r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule",
        " & ".join(map(str, header)) + r" \\", r"\midrule",
        *(" & ".join(map(str, line)) + r" \\" for line in cells), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines)


def _number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def rows_as_csv(rows):
    """Return dicts as CSV, a column for each of their keys in the order in which they come."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def comparison_csv(rows, metrics):
    """Return the table of a comparison as CSV, every number whole; see :func:`comparison_table`."""
    parts = ("mean", "std", "difference", "p")
    lines = []
    for row in rows:
        values = {f"{metric} {part}": row[metric][part] for metric in metrics for part in parts}
        costs = {cost: row[cost] for cost in COSTS}
        lines.append({"model": row["label"], "seeds": len(row["seeds"]), **values, **costs})
    return rows_as_csv(lines)
