"""A comparison as one HTML file that needs nothing else: no network, no folder beside it."""

import base64
import importlib.util
import json
import math
import sys
import textwrap
from html import escape
from pathlib import Path

import numpy as np

from recbole_pref import plots
from recbole_pref.checkpoint import SHARED_BY_KINDS
from recbole_pref.compare.significance import LEVEL
from recbole_pref.compare.tables import COSTS
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name
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
# The browser itself is told to load nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c1c1c; --soft: #595959; --line: #d0d0d0;
  --head: #f2f2f2; --warn: #8a4b00; --warnback: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --back: #17191c; --text: #e6e6e6; --soft: #a8a8a8;
  --line: #3d4147; --head: #24272b; --warn: #ffc46b; --warnback: #33281a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.4rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin-bottom: .4rem; }
p, figcaption { max-width: 52rem; } figcaption, .note { color: var(--soft); font-size: .9rem; }
.warning { color: var(--warn); background: var(--warnback); padding: .5rem .8rem; border-radius: 4px; }
nav a { margin-right: 1rem; } a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { background: var(--head); vertical-align: bottom; }
.number { text-align: right; } td.number { white-space: nowrap; }
tbody th { font-weight: normal; } td.best { font-weight: 700; }
td.value { overflow-wrap: anywhere; max-width: 34rem; }
figure { margin: 0 0 1.5rem; }
figure img { max-width: 100%; background: #ffffff; border-radius: 4px; padding: 8px; }
pre { background: var(--head); padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border-radius: 4px; }
summary { cursor: pointer; padding: .2rem 0; } .chart { width: 100%; }
@page { size: landscape; margin: 12mm; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav, .interactive { display: none; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll { overflow: visible; }
  figure img { max-height: 14cm; }
  table { font-size: 7.5pt; } th, td { padding: 2pt 4pt; } td.number { white-space: normal; } }
"""

# Colours of the page are read when a chart is drawn, and again when the reader turns dark mode on or off.
SCRIPT = """
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const look = {responsive: true, displaylogo: false, typesetMath: false};
  function draw() {
    const page = getComputedStyle(document.documentElement);
    const text = page.getPropertyValue("--text").trim(), line = page.getPropertyValue("--line").trim();
    for (const source of document.querySelectorAll("script[data-chart]")) {
      const chart = JSON.parse(source.textContent.replaceAll("#000000", text));
      chart.layout.font = {color: text, size: 13};
      for (const key of Object.keys(chart.layout)) {
        if (/^[xy]axis/.test(key)) Object.assign(chart.layout[key], {gridcolor: line, zeroline: false});
      }
      Plotly.react(source.dataset.chart, chart.data, chart.layout, look);
    }
  }
  dark.addEventListener("change", draw);
  draw();
})();
"""


def draw_and_report(folder):
    """Draw the pictures of a comparison and write its report, which stands without those that are impossible.

    Args:
        folder (path-like): of the comparison.

    Returns:
        Path: of the report; what is left out is told on standard error.

    Raises:
        PrefError: no comparison in the folder, or one that cannot be read.
    """
    refused = []
    try:
        plots.draw_all(folder, refused=refused)
    except PrefError as error:
        print(f"recbole-pref: no pictures: {error}", file=sys.stderr)
    for error in refused:
        print(f"recbole-pref: a picture is left out: {error}", file=sys.stderr)
    return write_report(folder)


def write_report(folder, path=None):
    """Write a comparison folder as one HTML file: tables, pictures, settings, versions, commands.

    Args:
        folder (path-like): see :func:`recbole_pref.plots.load_runs`. Without ``comparison.json`` the table
            is made from the runs, without significance. Pictures that the data do not allow are left out, with a
            note where a file ``collapse*.csv`` cannot be drawn.
        path (path-like, optional): the file; by default ``report.html`` inside ``folder``.

    Returns:
        Path: the file.

    Raises:
        PrefError: no finished run, a damaged file, or the file cannot be written.
    """
    from recbole_pref.checkpoint import write_atomically

    folder = Path(folder)
    runs = plots.load_runs(folder)
    table = plots.load_comparison(folder) or summary(runs)
    path = folder / "report.html" if path is None else Path(path)
    page = _page(runs, table, _pictures(folder, runs))
    write_atomically(path, lambda file: file.write(page.encode("utf-8")), "path")
    return path


def summary(runs):
    """Return the table of a comparison from its runs alone, in the shape of ``comparison.json``.

    Args:
        runs (list of dict): see :func:`recbole_pref.plots.load_runs`.

    Returns:
        dict: ``metrics`` and ``rows`` with mean and standard deviation over the seeds (ddof 1, None for one
        seed); ``baseline`` and ``test`` are None.
    """
    metrics = list(dict.fromkeys(key for run in runs for key in run["test_result"]))
    rows = []
    for label, own in plots.by_label(runs).items():
        row = {"label": label, "seeds": len(own)}
        for key in metrics:
            row[key] = _mean_and_std([run["test_result"].get(key) for run in own])
        for key in COSTS:
            row[key] = _mean_and_std([run.get(key) for run in own])["mean"]
        rows.append(row)
    return {"baseline": None, "metrics": metrics, "rows": rows, "test": None, "command": None}


def _mean_and_std(values):
    values = [value for value in map(plots.number, values) if math.isfinite(value)]
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


# -- HTML


class _Html(str):
    """Text that is HTML already; everything else is escaped when it enters the page."""


def _html(value):
    return value if isinstance(value, _Html) else escape(str(value))


def _table(header, rows, numbers=()):
    """Return a table.

    Args:
        header (list): of the columns.
        rows (list of list): a cell may be ``(value, class)``; the first cell is the row's header.
        numbers (container of int): columns that are aligned to the right.
    """
    heads = "".join(
        f'<th scope="col"{_class("number" if place in numbers else "")}>{_html(name)}</th>'
        for place, name in enumerate(header)
    )
    lines = []
    for row in rows:
        cells = [f'<th scope="row">{_html(row[0])}</th>']
        for place, cell in enumerate(row[1:], start=1):
            value, kind = cell if isinstance(cell, tuple) else (cell, "")
            kind = f"number {kind}".strip() if place in numbers else kind
            cells.append(f"<td{_class(kind)}>{_html(value)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return _Html(
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _class(name):
    return f' class="{name}"' if name else ""


def _details(title, content):
    return _Html(f"<details><summary>{_html(title)}</summary>{content}</details>")


def _warning(text):
    return f'<p class="warning">{_html(text)}</p>'


def _page(runs, table, pictures):
    labels = list(plots.by_label(runs))
    dataset = runs[0].get("dataset")
    seeds = sorted({str(run.get("seed")) for run in runs})
    title = f"{', '.join(labels) if len(labels) < 4 else f'{len(labels)} methods'} on {dataset}"
    sections = {
        "results": ("Results", _results(table) + _costs(table) + _differences(table) + _run_table(runs)),
        "pictures": ("Pictures", pictures),
        "charts": ("Interactive charts", _charts(runs)),
        "settings": ("Settings", _settings(runs)),
        "origin": ("Versions, data and commands", _origin(runs, table)),
    }
    links = "".join(f'<a href="#{name}">{_html(head)}</a>' for name, (head, _) in sections.items())
    body = "\n".join(
        f'<section id="{name}"{_class("interactive" if name == "charts" else "")}>'
        f"<h2>{_html(head)}</h2>\n{content}</section>"
        for name, (head, content) in sections.items()
    )
    parts = [f"{len(runs)} runs, {len(labels)} labels", f"seeds {', '.join(seeds)}", plots.tail_definition(runs)]
    told = "; ".join(filter(None, parts)) + "."
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_html(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{_html(title)}</h1><p>{_html(told)}</p>"
        f"{_doubts(runs, table)}<nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _doubts(runs, table):
    """Return warnings about runs that failed or cannot be compared."""
    told = "".join(_warning(f"{name} failed: {why}") for name, why in (table.get("failed") or {}).items())
    if _on_different_data(runs):
        told += _warning(
            "The runs were trained on different data (see the fingerprints below): do not compare them."
        )
    if len({bool(run.get("mask_history")) for run in runs}) > 1:
        told += _warning(
            "Some runs leave seen items out of the ranking (mask_history), some not: do not compare them."
        )
    return told


def _on_different_data(runs):
    """Return whether runs saw other users or items, or runs of one kind of model other training rows."""
    kinds = {}
    for run in runs:
        kinds.setdefault((run.get("config") or {}).get("MODEL_TYPE"), []).append(run.get("data"))
    shared = [{key: (data or {}).get(key) for key in SHARED_BY_KINDS} for own in kinds.values() for data in own]
    return any(data != group[0] for group in (shared, *kinds.values()) for data in group)


# -- results


def _results(table):
    """Return the table of means: the best value per metric bold, significant differences with an arrow."""
    metrics, rows = table["metrics"], table["rows"]
    best = {key: _best(rows, key) for key in metrics}
    lines = []
    for row in rows:
        line = [row["label"], _seeds(row.get("seeds"))]
        for key in metrics:
            cell = row.get(key) or {}
            line.append((_cell(cell, key), "best" if _shown(cell.get("mean")) == best[key] != ABSENT else ""))
        lines.append(line)
    smaller = [display_name(key) for key in metrics if _smaller_is_better(key)]
    tested = any(_p(row, key) is not None for row in rows for key in metrics)
    notes = ["Test set: mean ± standard deviation over the seeds."]
    if tested:
        notes.append(f"* differs from {table.get('baseline')}, corrected p < {LEVEL}.")
    if table.get("test"):  # says both, and more
        notes = [table["test"]]
    notes.append("↑: better, ↓: worse." if tested else "No test of significance was made.")
    notes.append("Bold: the best mean of a metric.")
    if smaller:
        notes.append(f"Lower is better for {', '.join(smaller)}.")
    header = ["label", "seeds", *map(display_name, metrics)]
    return _table(header, lines, range(1, len(header))) + f'<p class="note">{_html(" ".join(notes))}</p>'


def _costs(table):
    """Return the table of costs, apart so that either fits on a page; nothing where no cost is known."""
    costs = [key for key in COSTS if any(row.get(key) is not None for row in table["rows"])]
    if not costs:
        return ""
    lines = [[row["label"], *(_cost(row.get(key), key) for key in costs)] for row in table["rows"]]
    header = ["label", *(COSTS[key][1] for key in costs)]
    return _table(header, lines, range(1, len(header))) + '<p class="note">Costs: mean over the seeds.</p>'


def _differences(table):
    """Return the table of differences from the baseline and their p values, or nothing."""
    metrics = [key for key in table["metrics"] if any(_p(row, key) is not None for row in table["rows"])]
    if not metrics:
        return ""
    lines = []
    for row in table["rows"]:
        if row["label"] != table.get("baseline"):
            line = [row["label"]]
            for key in metrics:
                difference, p = plots.number((row.get(key) or {}).get("difference")), _p(row, key)
                p = ABSENT if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
                line.append(f"{difference:+.4f}, {p}".replace("-", "−") if math.isfinite(difference) else p)
            lines.append(line)
    shown = _table(["label", *map(display_name, metrics)], lines, range(1, len(metrics) + 1))
    return _details(f"Differences from {table.get('baseline')} and corrected p values", shown)


def _run_table(runs):
    """Return the test results of every run."""
    metrics = list(dict.fromkeys(key for run in runs for key in run["test_result"]))
    lines = [
        [
            run["label"], run.get("seed"), *(_shown(run["test_result"].get(key)) for key in metrics),
            run.get("epochs", ABSENT), *(_cost(run.get(key), key) for key in COSTS),
        ]
        for run in runs
    ]  # fmt: skip
    names = [name for _, name, _ in COSTS.values()]
    header = ["label", "seed", *map(display_name, metrics), "epochs", *names]
    return _details(f"All {len(runs)} runs", _table(header, lines, range(1, len(header))))


def _shown(value):
    value = plots.number(value)
    return f"{value:.4f}".replace("-", "−") if math.isfinite(value) else ABSENT


def _cost(value, key):
    value, decimals = plots.number(value), COSTS[key][2]
    return f"{value:,.{decimals}f}" if math.isfinite(value) else ABSENT


def _seeds(value):
    return len(value) if isinstance(value, list) else value


def _p(row, key):
    p = plots.number((row.get(key) or {}).get("p"))
    return p if math.isfinite(p) else None


def _cell(cell, key):
    text = _shown(cell.get("mean"))
    std = plots.number(cell.get("std"))
    if math.isfinite(std) and text != ABSENT:
        text += f" ± {std:.4f}"
    p, difference = plots.number(cell.get("p")), plots.number(cell.get("difference"))
    if p < LEVEL and difference != 0:
        text += " ↑*" if (difference > 0) != _smaller_is_better(key) else " ↓*"
    return text


def _smaller_is_better(key):
    from recbole.evaluator import smaller_metrics

    return key.partition("@")[0].lower() in smaller_metrics


def _best(rows, key):
    """Return the best mean of a metric as it is shown, so that values that look equal are equally bold."""
    means = [plots.number((row.get(key) or {}).get("mean")) for row in rows]
    means = [mean for mean in means if math.isfinite(mean)]
    choose = min if _smaller_is_better(key) else max
    return _shown(choose(means)) if means else ABSENT


# -- pictures


def _pictures(folder, runs):
    if importlib.util.find_spec("matplotlib") is None:
        return _note_missing("Pictures", "matplotlib")
    refused = []
    try:
        figures = plots.figures(folder, runs, refused)
    except PrefError as error:
        return _warning(f"Pictures are left out: {error}")
    parts = [_warning(f"A picture is left out: {error}") for error in refused]
    for name, figure in figures.items():
        title = next(text for key, text in TITLES.items() if name.startswith(key))
        rest = name.partition("_")[2] if name.startswith("sensitivity") else ""
        data = base64.b64encode(plots.as_svg(figure)).decode("ascii")
        parts.append(
            f"<figure><h3>{_html(f'{title}: {rest}' if rest else title)}</h3>"
            f'<img src="data:image/svg+xml;base64,{data}" alt="{_html(title)}">'
            f"<figcaption>{_html(plots.caption(name))}</figcaption></figure>"
        )
    return "\n".join(parts) or '<p class="note">The runs hold no data for a picture.</p>'


def _note_missing(what, package):
    return (
        f'<p class="note">{what} are left out because {package} is not installed: run '
        f"<code>pip install {package}</code> and write the report again.</p>"
    )


def _charts(runs):
    """Return the interactive charts with plotly.js once, or a note where plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return _note_missing("Interactive charts", "plotly")
    try:
        metric = plots.main_metric(runs)
    except PrefError:
        return '<p class="note">The runs share no metric.</p>'
    charts = {"trade_off": _trade_off_chart(runs, metric), "learning_curves": _curve_chart(runs, metric)}
    charts = {name: chart for name, chart in charts.items() if chart["data"]}
    if not charts:
        return '<p class="note">The runs hold no data for a chart.</p>'
    parts = [f"<script>{_inside_script(get_plotlyjs())}</script>"]
    height = 440 + 22 * math.ceil(len(plots.by_label(runs)) / 3)  # the legend stands below
    for name, chart in charts.items():
        text = json.dumps(chart, allow_nan=False).replace("<", "\\u003c")
        parts.append(
            f"<h3>{_html(TITLES[name])}</h3>"
            f'<div class="chart" id="chart-{name}" style="height: {height}px"></div>'
            f'<script type="application/json" data-chart="chart-{name}">{text}</script>'
        )
    return "\n".join([*parts, f"<script>{SCRIPT}</script>"])


def _inside_script(code):
    return code.replace("</script", "<\\/script")


def _layout(**axes):
    look = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest"}
    margins = {"margin": {"t": 20, "r": 20, "b": 55, "l": 65}}
    legend = {"legend": {"orientation": "h", "yanchor": "top", "y": -0.22}}
    return {**look, **margins, **legend, **axes}


def _name(label):
    """Return a label as plotly's text, which reads some HTML, in lines of 40 characters."""
    return "<br>".join(escape(line) for line in textwrap.wrap(label, 40))


def _axis(title, **more):
    return {"title": {"text": escape(title)}, "automargin": True, **more}


def _plotly_style(style):
    """Return a style of :func:`recbole_pref.plots.styles` in plotly's words: symbol and dash."""
    symbols = dict(zip(plots.MARKERS, (
        "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left",
        "triangle-right", "pentagon", "star",
    )))  # fmt: skip
    dashes = dict(zip(plots.LINES, ("solid", "dash", "dashdot", "dot")))
    return style["color"], symbols[style["marker"]], dashes[style["linestyle"]]


def _trade_off_chart(runs, metric):
    """Return plotly's description of the trade-off: runs, means with error bars, Pareto front."""
    tail = f"tail{metric}"
    look = plots.styles(plots.by_label(runs))
    data, means = [], []
    for label, own in plots.by_label(runs).items():
        points = [
            (plots.number(run["test_result"].get(metric)), plots.number(run["test_result"].get(tail)), run)
            for run in own
        ]
        points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        if not points:
            continue
        name = _name(label)
        colour, symbol, _ = _plotly_style(look[label])
        x, y = _mean_and_std([p[0] for p in points]), _mean_and_std([p[1] for p in points])
        means.append((x["mean"], y["mean"]))
        data.append({
            "type": "scatter", "mode": "markers", "legendgroup": name, "showlegend": False, "name": name,
            "x": [p[0] for p in points], "y": [p[1] for p in points], "opacity": 0.4,
            "text": [f"seed {escape(str(p[2].get('seed')))}" for p in points],
            "marker": {"color": colour, "symbol": symbol, "size": 7},
        })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "markers", "legendgroup": name, "name": name,
            "x": [x["mean"]], "y": [y["mean"]], "text": ["mean"],
            "error_x": {"array": [x["std"]], "thickness": 1, "visible": x["std"] is not None},
            "error_y": {"array": [y["std"]], "thickness": 1, "visible": y["std"] is not None},
            "marker": {"color": colour, "symbol": symbol, "size": 13},
        })  # fmt: skip
    if means:
        front = sorted(point for point, on in zip(means, plots.pareto_front(means)) if on)
        data.append({
            "type": "scatter", "mode": "lines", "name": "Pareto front of the means", "hoverinfo": "skip",
            "x": [p[0] for p in front], "y": [p[1] for p in front],
            "line": {"shape": "vh", "dash": "dash", "width": 1, "color": "#888888"},
        })  # fmt: skip
    axes = {"xaxis": _axis(f"test {display_name(metric)}"), "yaxis": _axis(f"test {display_name(tail)}")}
    return {"data": data, "layout": _layout(**axes)}


def _curve_chart(runs, metric):
    """Return plotly's description of the learning curves: every seed thin, their mean bold."""
    look = plots.styles(plots.by_label(runs))
    data = []
    keys = [metric, f"tail{metric}"]
    keys = [key for key in keys if any(plots.curve_of(run, key) for run in runs)]
    for place, key in enumerate(keys):
        number = "" if place == 0 else str(place + 1)
        for label, own in plots.by_label(runs).items():
            colour, symbol, dash = _plotly_style(look[label])
            same = {
                "type": "scatter", "name": _name(label), "legendgroup": _name(label),
                "xaxis": f"x{number}", "yaxis": f"y{number}",
            }  # fmt: skip
            curves = [(run, curve) for run in own if (curve := plots.curve_of(run, key))]
            for run, curve in curves if len(curves) > 1 else ():
                data.append({
                    **same, "mode": "lines", "showlegend": False, "opacity": 0.35,
                    "x": sorted(curve), "y": [curve[epoch] for epoch in sorted(curve)],
                    "text": f"seed {escape(str(run.get('seed')))}",
                    "line": {"color": colour, "width": 1, "dash": dash},
                })  # fmt: skip
            if curves:
                epochs = plots.shared_epochs([curve for _, curve in curves])
                data.append({
                    **same, "mode": "lines+markers", "showlegend": place == 0, "x": epochs,
                    "y": [float(np.mean([curve[epoch] for _, curve in curves])) for epoch in epochs],
                    "line": {"color": colour, "width": 2, "dash": dash},
                    "marker": {"color": colour, "symbol": symbol, "size": 6},
                })  # fmt: skip
    axes = {}
    last = max((epoch for trace in data for epoch in trace["x"]), default=0)
    ticks = {"dtick": 1} if last <= 10 else {}
    for place, key in enumerate(keys):
        number = "" if place == 0 else str(place + 1)
        domain = [0, 1] if len(keys) == 1 else [[0, 0.46], [0.54, 1]][place]
        axes[f"xaxis{number}"] = _axis("epoch", domain=domain, anchor=f"y{number}", **ticks)
        axes[f"yaxis{number}"] = _axis(f"valid {display_name(key)}", anchor=f"x{number}")
    return {"data": data, "layout": _layout(**axes)}


# -- settings and origin


def differing_settings(runs):
    """Return the settings whose values differ between labels.

    Settings that only name a run or its machine (``scope`` of a ``Setting``) are left out.

    Args:
        runs (list of dict): see :func:`recbole_pref.plots.load_runs`.

    Returns:
        dict: ``{setting: {label: text}}``; several values of one label are joined by commas, a label without
        the setting has a dash.
    """
    groups = plots.by_label(runs)
    values = {label: _joined([run.get("config", {}) for run in own]) for label, own in groups.items()}
    keys = dict.fromkeys(key for own in values.values() for key in own if key not in settings_with(scope="run"))
    table = {key: {label: own.get(key, ABSENT) for label, own in values.items()} for key in keys}
    return {key: row for key, row in table.items() if len(set(row.values())) > 1}


def _joined(records):
    """Return ``{key: text}`` of several dicts, distinct values joined by commas."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {
        key: ", ".join(dict.fromkeys(_text(record[key]) for record in records if key in record))
        for key in keys
    }


def _text(value):
    """Return a setting as YAML would have it."""
    if value is None:
        return "~"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _settings(runs):
    groups = plots.by_label(runs)
    differing = differing_settings(runs)
    parts = []
    if differing:
        lines = [[key, *(row[label] for label in groups)] for key, row in sorted(differing.items())]
        parts.append("<p>What differs between the labels; a dash: the label has no such setting.</p>")
        parts.append(_table(["setting", *groups], lines))
    else:
        parts.append("<p>The labels have the same settings.</p>")
    parts.append("<h3>Complete settings</h3>")
    for label, own in groups.items():
        settings = _joined([run.get("config", {}) for run in own])
        rows = [[key, (value, "value")] for key, value in sorted(settings.items())]
        parts.append(_details(f"{label}: {len(settings)} settings", _table(["setting", "value"], rows)))
    return "\n".join(parts)


def _origin(runs, table):
    parts = []
    versions = _joined([run.get("environment") or {} for run in runs])
    versions.pop("command", None)
    data = _joined([run.get("data") or {} for run in runs])
    for title, values in (("Versions and machine", versions), ("Data", data)):
        if values:
            rows = [[key, (value, "value")] for key, value in values.items()]
            parts.append(f"<h3>{_html(title)}</h3>" + _table(["name", "value"], rows))
    if table.get("command"):
        parts.append(f"<h3>Command</h3><pre>{_html(table['command'])}</pre>")
    commands = dict.fromkeys((run.get("environment") or {}).get("command") for run in runs)
    commands = "\n".join(str(command) for command in commands if command)
    if commands:
        parts.append(_details("Commands of the runs", f"<pre>{_html(commands)}</pre>"))
    return "\n".join(parts) or '<p class="note">The runs do not say where they come from.</p>'
