"""The HTML report: one file, escaped, with the numbers of the records."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recbole_pref import plots, report
from recbole_pref.cli import main
from recbole_pref.errors import PrefError
from tests.test_plots import ENVIRONMENT, make_run, write_comparison, write_run

pytest.importorskip("matplotlib")
ODD = "<script>alert('x')</script> & \"$5\" tau=0.5 alpha_tail=2.0"


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.text, self.tips, self._inside = [], [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self._inside[-1:] == ["title"] and "svg" in self._inside:
            self.tips.append(data)
        elif "style" not in self._inside:
            self.text += data
            if self._inside[-1:] in (["td"], ["th"]):
                self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A comparison with an awkward label, its records and its page."""
    folder = tmp_path_factory.mktemp("comparison")
    records = write_comparison(folder, ("CESASRec", ODD, "SDPOSASRec"), seeds=(2020, 2021))
    path = report.write_report(folder)
    assert path == folder / "report.html"
    return folder, records, Page(path)


def test_nothing_is_loaded_from_elsewhere(written):
    page = written[2]
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "script")
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = (Path(report.__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_labels_are_escaped(written):
    folder, _, page = written
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert ODD not in source and "alert('x')</script>" not in source
    assert ODD in page.text
    assert page.tables[0][2][0] == ODD
    assert sum(tip.startswith(f"{ODD}, seed ") for tip in page.tips) == 2
    assert not page.of("script")


def test_results_are_those_of_the_table(written):
    folder, _, page = written
    table = json.loads((folder / "comparison.json").read_text())
    header, *lines = page.tables[0]
    assert header == ["label", "seeds", "NDCG@10", "Hit@10", "Tail NDCG@10", "Head NDCG@10"]
    for line, row in zip(lines, table["rows"], strict=True):
        assert line[:2] == [row["label"], "2"]
        for text, key in zip(line[2:], table["metrics"], strict=True):
            cell = row[key]
            shown, _, mark = text.partition(f" ± {cell['std']:.4f}")
            assert shown == f"{cell['mean']:.4f}"
            significant = cell["p"] is not None and cell["p"] < 0.05
            assert mark == ("" if not significant else " ↑*" if cell["difference"] > 0 else " ↓*")
    assert page.tables[1][0] == ["label", "seconds per epoch", "epochs to best", "peak memory (MiB)"]
    assert page.tables[1][1:] == [[row["label"], "2.50", "9.0", "640"] for row in table["rows"]]
    assert page.text.count("differs from CESASRec") == page.text.count("standard deviation over") == 1
    assert table["test"] in page.text


def test_differences_and_runs_are_those_of_the_records(written):
    folder, records, page = written
    table = json.loads((folder / "comparison.json").read_text())
    differences, singles = page.tables[2], page.tables[3]
    assert [line[0] for line in differences[1:]] == [row["label"] for row in table["rows"][1:]]
    cell = table["rows"][1]["ndcg@10"]
    assert differences[1][1] == f"{cell['difference']:+.4f}, p = 0.004".replace("-", "−")
    assert len(singles) == 1 + len(records)
    key = singles[0].index("Tail NDCG@10")
    expected = [[r["label"], str(r["seed"]), f"{r['test_result']['tailndcg@10']:.4f}"] for r in records]
    assert [[line[0], line[1], line[key]] for line in singles[1:]] == expected


def bold(page):
    """Return the texts of the cells marked best."""
    source = page.read_text(encoding="utf-8")
    return re.findall(r'<td class="number best">([^<]*)</td>', source)


def test_best_values_are_bold_also_where_lower_is_better(tmp_path):
    rows = [
        {"label": "A", "seeds": [1], "ndcg@10": {"mean": 0.5, "std": None, "p": None, "difference": None},
         "giniindex@10": {"mean": 0.9, "std": None, "p": None, "difference": None}},
        {"label": "B", "seeds": [1], "ndcg@10": {"mean": 0.49999, "std": None, "p": 0.9, "difference": 0},
         "giniindex@10": {"mean": 0.2, "std": None, "p": 0.0001, "difference": -0.7}},
        {"label": "C", "seeds": [1], "ndcg@10": {"mean": "nan"}},
    ]  # fmt: skip
    for label in "ABC":
        write_run(tmp_path, make_run(label, 1, 0.05, 0.06)[0])
    table = {"baseline": "A", "metrics": ["ndcg@10", "giniindex@10"], "rows": rows, "test": "by eye"}
    (tmp_path / "comparison.json").write_text(json.dumps(table))
    path = report.write_report(tmp_path)
    assert bold(path) == ["0.5000", "0.5000", "0.2000 ↑*"]
    page = Page(path)
    assert "Lower is better for GiniIndex@10." in page.text
    assert page.tables[0][3][2:] == ["–", "–"]
    assert page.tables[1][1][1:] == ["+0.0000, p = 0.900", "−0.7000, p < 0.001"]


def test_pictures_are_those_of_draw_all(written):
    folder, _, page = written
    images = page.of("svg")
    assert len(images) == len(plots.figures(folder)) == 4
    assert all(image["role"] == "img" and image["aria-label"] for image in images)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    targets = {attributes["xlink:href"] for _, attributes in page.tags if "xlink:href" in attributes}
    assert targets <= {f"#{name}" for name in names} and len(targets) > 20
    captions = [plots.caption(name) for name in plots.figures(folder)]
    assert all(caption in page.text for caption in captions)


def test_points_of_pictures_show_their_numbers(written):
    _, records, page = written
    own = [r for r in records if r["label"] == "CESASRec"]
    for r in own:
        values = f"NDCG@10 {r['test_result']['ndcg@10']:.4f}; Tail NDCG@10 {r['test_result']['tailndcg@10']:.4f}"
        assert f"CESASRec, seed {r['seed']}: {values}" in page.tips
    means = [np.mean([r["test_result"][key] for r in own]) for key in ("ndcg@10", "tailndcg@10")]
    assert f"CESASRec, mean: NDCG@10 {means[0]:.4f}; Tail NDCG@10 {means[1]:.4f}" in page.tips
    for epoch in range(1, 1 + min(r["epochs"] for r in own)):  # as epochs_to_best
        for key in ("ndcg@10", "tailndcg@10"):
            both = [r["history"][epoch - 1][key] for r in own]
            tip = f"CESASRec at {epoch}: {np.mean(both):.4g} ({min(both):.4g} to {max(both):.4g})"
            assert tip in page.tips


def test_settings_versions_data_and_commands(tmp_path):
    for seed, tau in ((1, 0.5), (2, 0.5)):
        write_run(tmp_path, make_run("LPOSASRec", seed, 0.05, 0.06, tau=tau, note="<i>", gone=None)[0])
    write_run(tmp_path, make_run("CESASRec", 1, 0.05, 0.06)[0])
    page = Page(report.write_report(tmp_path))
    differing = next(table for table in page.tables if table[0] == ["setting", "CESASRec", "LPOSASRec"])
    assert differing[1:] == [
        ["gone", "–", "~"], ["model", "CESASRec", "LPOSASRec"], ["note", "–", "<i>"], ["tau", "0.1", "0.5"],
    ]  # fmt: skip
    complete = [dict(table[1:]) for table in page.tables if table[0] == ["setting", "value"]]
    assert complete[1]["seed"] == "1, 2" and complete[1]["topk"] == "[5, 10]"
    assert complete[1]["learning_rate"] == "0.001"
    versions = next(dict(table[1:]) for table in page.tables if ["torch", "2.13.0+cpu"] in table)
    assert versions == {key: str(value) for key, value in ENVIRONMENT.items() if key != "command"}
    assert ["n_items", "401"] in page.tables[-1]
    assert ENVIRONMENT["command"] in page.text
    assert "There is no test of significance" in page.text


def test_without_comparison_json_the_table_comes_from_the_runs(tmp_path):
    records = write_comparison(tmp_path, ("CESASRec", "LPOSASRec"), seeds=(1, 2))
    (tmp_path / "comparison.json").unlink()
    page = Page(report.write_report(tmp_path, tmp_path / "else" / "page.html"))
    values = [r["test_result"]["hit@10"] for r in records[:2]]
    assert page.tables[0][1][:4] == [
        "CESASRec", "2", page.tables[0][1][2], f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}",
    ]  # fmt: skip
    assert page.tables[1][1] == ["CESASRec", "2.50", "12.0", "640"]


def test_bare_records_make_a_page(tmp_path):
    record = {"label": "A", "dataset": "d", "test_result": {"hit@10": 0.1}}
    write_run(tmp_path, {**record, "seed": 1})
    page = Page(report.write_report(tmp_path))
    assert page.tables[0] == [["label", "seeds", "Hit@10"], ["A", "1", "0.1000"]]
    assert "no data for a picture" in page.text
    assert "do not say where they come from" in page.text and "same settings" in page.text


def test_kinds_of_models_may_train_on_other_rows_of_the_same_data(tmp_path):
    def warned(rows, items=40, kind="GENERAL"):
        data = {"n_users": 60, "n_items": items, "item_tokens_sha256": "a", "targets_sha256": rows}
        write_run(tmp_path, {**record, "label": "B", "data": data, "config": {**record["config"], "MODEL_TYPE": kind}})
        return "different data" in Page(report.write_report(tmp_path)).text

    record, _ = make_run("A", 1, 0.05, 0.06)
    data = {"n_users": 60, "n_items": 40, "item_tokens_sha256": "a", "targets_sha256": "own"}
    write_run(tmp_path, {**record, "data": data, "config": {**record["config"], "MODEL_TYPE": "SEQUENTIAL"}})
    assert not warned("others") and warned("others", kind="SEQUENTIAL") and warned("own", items=41)


def test_names_of_metrics_are_escaped(tmp_path):
    result = {"hit<i>@1": 0.1, "tailhit<i>@1": 0.2}
    write_run(tmp_path, {"label": "A", "dataset": "d", "seed": 1, "test_result": result})
    path = report.write_report(tmp_path)
    page = Page(path)
    assert "A, seed 1: hit<i>@1 0.1000; tailhit<i>@1 0.2000" in page.tips and not page.of("i")
    assert page.tables[0][0] == ["label", "seeds", "hit<i>@1", "tailhit<i>@1"]


def test_runs_that_cannot_be_compared_and_failed_runs_are_reported(tmp_path):
    record, _ = make_run("A", 1, 0.05, 0.06)
    path = write_run(tmp_path, record)
    other = write_run(tmp_path, {**record, "label": "B", "mask_history": True, "data": {"n_items": 7}})
    table = {"metrics": ["hit@10"], "rows": [{"label": "A", "hit@10": {"mean": 0.1}}], "failed": {"C-1": "no <mem>"}}
    (tmp_path / "comparison.json").write_text(json.dumps(table))
    text = Page(report.write_report(tmp_path)).text
    assert "C-1 failed: no <mem>" in text and "mask_history" in text.split("Results")[0]
    assert "different data" in text
    table |= {"runs": [path.stem], "test": "A starts from a reference that is not CE."}
    (tmp_path / "comparison.json").write_text(json.dumps(table))
    text = Page(report.write_report(tmp_path)).text
    assert "different data" not in text and other.is_file()
    assert f"{table['test']} There is no test of significance." in text


def test_a_missing_package_is_named_in_the_page(written, monkeypatch):
    folder = written[0]
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    path = report.write_report(folder, folder / "bare.html")
    page = Page(path)
    assert not page.of("svg") and path.stat().st_size < 100_000
    assert "matplotlib is not installed" in page.text and "pip install matplotlib" in page.text
    assert len(page.tables[0]) == 4


def test_a_table_that_cannot_be_drawn_is_reported_in_the_page(tmp_path, capsys):
    write_run(tmp_path, make_run("A", 1, 0.05, 0.06)[0])
    (tmp_path / "collapse.csv").write_text("a,b\n")
    assert main([f"--plots={tmp_path}"]) == 0
    assert "a picture is skipped: " in capsys.readouterr().err
    assert (tmp_path / "plots" / "trade_off.png").is_file()  # the others are drawn
    page = Page(tmp_path / "report.html")
    assert "A picture is skipped: " in page.text and "collapse.csv' has no column 'model'" in page.text
    assert page.of("svg") and page.tables[0][1][0] == "A"


# -- in a browser

CHROMIUM = os.environ.get("CHROME_PATH") or next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))
    ),
    None,
)
# What the page made of itself, written into it: charts, tables that are wider than their place, what was asked for.
PROBE = """
<script>
const refused = [];
addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
addEventListener("load", () => {
  const all = (query, of) => Array.from(document.querySelectorAll(query), of);
  const seen = {refused, loaded: performance.getEntriesByType("resource").map(entry => entry.name)};
  seen.pictures = all("figure svg", picture => [picture.getBoundingClientRect().width > 300,
    picture.querySelectorAll("title").length]);
  seen.tables = all(".scroll", place => place.scrollWidth - place.clientWidth);
  seen.hidden = all("section", part => part).filter(part => !part.offsetHeight).map(part => part.id);
  document.body.appendChild(document.createElement("pre")).id = "seen";
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


def dump_of(address, folder, width=1300):
    """Return the document that a browser makes of an address: text."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--no-first-run", "--disable-background-networking", "--virtual-time-budget=10000",
        f"--window-size={width},900", "--dump-dom", address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Skip where there is no browser, or one that cannot start (in a container, say)."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH nor in CHROME_PATH")
    try:
        assert "works" in dump_of("data:text/html,<p>works</p>", tmp_path_factory.mktemp("browser"))
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        pytest.skip(f"{CHROMIUM} does not start here: {error}")


def seen_by_a_browser(page, folder, width, media="screen"):
    """Return what PROBE sees in a report (text) in a window of some pixels' width."""
    path = folder / "probed.html"
    page = page.replace("@media print", f"@media {'all' if media == 'print' else 'print'}")
    page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")  # for the probe
    path.write_text(page.replace("</title>", f"</title>{PROBE}", 1), encoding="utf-8")
    dom = dump_of(path.as_uri(), folder, width)
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))


def test_a_browser_draws_the_pictures_and_loads_nothing(browser, written, tmp_path):
    folder, _, page = written
    source = (folder / "report.html").read_text(encoding="utf-8")
    seen = seen_by_a_browser(source, tmp_path, 1300)
    assert [wide for wide, _ in seen["pictures"]] == [True] * 4 and not seen["hidden"]
    assert sum(tips for _, tips in seen["pictures"]) == len(page.tips)
    # a browser's own files are none of the page
    assert not [name for name in seen["loaded"] if not name.startswith("data:")] and not seen["refused"]
    asking = source.replace("<body>", '<body><img src="http://127.0.0.1:9/x.png">', 1)
    assert seen_by_a_browser(asking, tmp_path, 1300)["refused"] == ["http://127.0.0.1:9/x.png"]  # the probe works


def test_tables_fit_a_window_and_a_printed_page(browser, tmp_path):
    """1300 pixels; and a landscape sheet of Letter paper, 279 mm less twice 12 mm, at 96 pixels an inch."""
    labels = ("CESASRec", "LPOSASRec recommended", "SDPOSASRec")
    records = write_comparison(tmp_path, labels, seeds=(1, 2))
    table = json.loads((tmp_path / "comparison.json").read_text())
    for row in table["rows"]:
        row |= {key: {**row["hit@10"], "p": 0.001} for key in ("tailhit@10", "headhit@10")}
    table["metrics"] += ["tailhit@10", "headhit@10"]
    (tmp_path / "comparison.json").write_text(json.dumps(table))
    source = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "size: landscape" in source and len(records) == 6
    opened = source.replace("<details>", "<details open>")
    # Pixels for fonts wider than usual; a lost column has more than 60.
    assert max(seen_by_a_browser(source, tmp_path, 1300)["tables"]) <= 30
    printed = seen_by_a_browser(opened, tmp_path, 963, "print")
    assert max(printed["tables"]) <= 30 and not printed["hidden"]


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(PrefError, match="does not exist"):
        report.write_report(tmp_path / "nowhere")
    with pytest.raises(PrefError, match="no finished run"):
        report.write_report(tmp_path)
    write_run(tmp_path, make_run("A", 1, 0.05, 0.06)[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefError, match="path="):
        report.write_report(tmp_path, tmp_path / "file" / "report.html")
