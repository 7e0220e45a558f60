"""Comparisons: entries, seeds, statistics by hand, runs that continue, tables, refusals."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from threading import Thread

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from scipy import stats

from recbole_pref import cli, compare, environment
from recbole_pref.cli import main
from recbole_pref.compare import notes, progress, tables
from recbole_pref.compare import runs as run_module
from recbole_pref.compare.plan import Task, plan_runs
from recbole_pref.data.convert import convert
from recbole_pref.errors import PrefError
from recbole_pref.evaluation import evidence
from recbole_pref.records import Run
from recbole_pref.records.significance import holm, paired_bootstrap, paired_t
from recbole_pref.records.summary import COSTS, summarize, table_metrics
from recbole_pref.report import write_report
from recbole_pref.settings import files

from . import fresh
from .conftest import wait_for

pytestmark = pytest.mark.usefixtures("warm_workers")
SPLIT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}

# -- reading the request


def test_entries_are_models_with_settings_or_files(tmp_path):
    file = tmp_path / "tuned.yaml"
    file.write_text("model: RoDPOGRU4Rec\ndataset: other\nbeta: 3e-1\n")
    text = f"CESASRec, LPOSASRec tau=0.5 topk=[5,10],{file} lambda=2"
    first, second, third = compare.parse_entries(text)
    assert first == compare.Entry("CESASRec", "CESASRec", {})
    assert second.model == "LPOSASRec" and second.settings == {"tau": 0.5, "topk": [5, 10]}
    assert third == compare.Entry("tuned lambda=2", "RoDPOGRU4Rec", {"beta": 0.3, "lambda": 2})


def test_files_of_settings_go_with_a_model_and_later_ones_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("tau: 0.7\ndataset: other\n")
    text = "LPOGRU4Rec recommended/LPO.yaml learning_rate=0.1,LPOSASRec tau=0.2 mine.yaml"
    first, second = compare.parse_entries(text)
    shipped = yaml.safe_load((files.properties_dir() / "recommended" / "LPO.yaml").read_text())
    assert first.label == "LPOGRU4Rec recommended/LPO learning_rate=0.1" and first.model == "LPOGRU4Rec"
    assert first.settings == {**shipped, "learning_rate": 0.1}
    assert second == compare.Entry("LPOSASRec tau=0.2 mine", "LPOSASRec", {"tau": 0.7})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CESASRec tau", "write key=value"),
        ("missing.yaml", "cannot be read"),
        ("recommended/LPO.yaml", "'LPOSASRec recommended/LPO.yaml'"),
        ("LPOSASRec missing.yaml", "cannot be read"),
        ("LPOSASRec with_model.yaml", "names a model itself"),
    ],
)
def test_mistakes_in_entries_are_named(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "with_model.yaml").write_text("model: LPOSASRec\n")
    with pytest.raises(PrefError, match=words):
        compare.parse_entries(text)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (" , ", "names no model"),
        ([], "names no model"),
        ("CESASRec,CESASRec", "twice"),
        ("LPOSASRec tau=0.5,LPOSASRec  tau=0.5", "'LPOSASRec tau=0.5' twice"),
        ([compare.Entry("A", "CESASRec"), compare.Entry("A", "CESASRec", {"hidden_size": 8})], "'A' twice"),
        ([compare.Entry("A B", "CESASRec"), compare.Entry("A_B", "CESASRec")], "'A_B-seed2020-.* twice"),
    ],
)
def test_one_row_per_label_and_one_run_per_name(settings, tmp_path, models, words):
    with pytest.raises(PrefError, match=words):
        compare.compare(models, "tiny", 1, config_dict=settings, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds():
    assert compare.parse_seeds(3) == [2020, 2021, 2022]
    assert compare.parse_seeds("2", first=7) == [7, 8]
    assert compare.parse_seeds("5,1,5") == [5, 1]
    assert compare.parse_seeds("2020,") == [2020]
    for wrong in ("x", 0, -3, [], "1,b", "2020", 10**12):
        with pytest.raises(PrefError, match="--seeds"):
            compare.parse_seeds(wrong)


def test_entries_that_no_table_can_hold_are_refused_before_training(settings, tmp_path):
    for more, words in (("valid_metric=NDCG@5", "cut-off"), ("metrics=[Hit,NDCG]", "metrics")):
        entries = compare.parse_entries("CESASRec,LPOSASRec " + more)
        with pytest.raises(PrefError, match=words):
            compare.compare(entries, "tiny", 1, config_dict=settings, output=tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/*"))


@pytest.mark.parametrize(
    ("models", "more", "words"),
    [
        ("CESASRec seed=1,CESASRec", {}, "'CESASRec seed=1' sets seed.* name seeds with --seeds"),
        ("CESASRec,CESASRec model=GRU4Rec", {}, "sets model.*write the model before its settings"),
        ("CESASRec,CESASRec dataset=other", {}, "sets dataset.*--dataset"),
        ("CESASRec,BPR", {}, "BPR has mask_history True, the first entry False.*--mask_history="),
        ("CESASRec,BPR", {"eval_args": {**SPLIT, "mode": "uni10"}}, "BPR has mask_history True, the first entry False"),
        (
            "CESASRec,BPR",
            {"eval_args": {**SPLIT, "split": {"RS": [8, 1, 1]}}, "mask_history": True},
            "a test row is a user with all targets for BPR and one target for CESASRec",
        ),
        ("LPOSASRec,LPOSASRec beta=0.5", {}, "'LPOSASRec beta=0.5': LPOSASRec has no setting beta"),
        ("CESASRec dropout_prob=0.9", {}, "CESASRec has no setting dropout_prob.*attn_dropout_prob"),
        (
            "CESASRec topk=[5],CESASRec topk=[10]",
            {"metrics": ["NDCG", "GAUC"], "valid_metric": "GAUC"},
            r"has first of topk 10, the first entry 5.*--topk=",
        ),
        ("CESASRec,CESASRec valid_metric=GAUC", {"metrics": ["NDCG", "GAUC"], "valid_metric": "NDCG@10"}, "cut-off"),
        ("FM", {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"}, "do not measure a ranking"),
    ],
)
def test_what_one_table_cannot_hold_is_refused_before_training(settings, tmp_path, models, more, words):
    settings |= {"eval_args": dict(SPLIT)}
    if models == "FM":
        settings["eval_args"] |= {"mode": "labeled"}
    with pytest.raises(PrefError, match=words):
        compare.compare(models, "tiny", 1, config_dict={**settings, **more}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_general_models_are_tested_against_sequential_ones_user_by_user(settings, tmp_path):
    more = {"mask_history": True, "eval_args": SPLIT, "epochs": 1}
    done = compare.compare("CESASRec,BPR,EASE", "tiny", 1, config_dict={**settings, **more}, output=tmp_path)
    assert "history masked" in done.text and "other head and tail" not in done.text
    ranks = []
    for label in ("CESASRec", "BPR"):
        (path,) = (tmp_path / "runs").glob(f"{label}-*.json")
        arrays = compare.load_record(tmp_path, path.stem).arrays
        ranks.append(dict(zip(arrays["user"], arrays["rank"])))
    gaps = np.array([float(ranks[1][user] <= 10) - float(ranks[0][user] <= 10) for user in ranks[0]])
    found = done.rows[1]["hit@10"]
    assert found["difference"] == pytest.approx(gaps.mean(), abs=1e-4) and gaps.any()
    tested = sum(row[metric]["p"] is not None for row in done.rows for metric in ("hit@10", "ndcg@10", "headhit@10"))
    assert tested == 6
    alone = compare.compare("CESASRec,BPR", "tiny", 1, config_dict={**settings, **more}, output=tmp_path)
    assert min(paired_t(gaps) * 6, 1) >= alone.rows[1]["hit@10"]["p"] >= paired_t(gaps) * (1 - 1e-9)


def test_seeds_may_split_the_data_differently(settings, tmp_path):
    random = {"split": {"RS": [6, 2, 2]}, "order": "RO", "group_by": "user", "mode": "full"}
    more = {"eval_args": random, "epochs": 1, "metrics": ["NDCG", "TailNDCG"]}
    done = compare.compare("BPR,EASE", "tiny", 2, config_dict={**settings, **more}, output=tmp_path)
    assert "other test rows" not in done.text and "other head and tail" not in done.text
    assert done.rows[1]["ndcg@10"]["difference"] and not done.failed


def test_a_file_of_settings_leaves_the_seeds_to_the_comparison(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.yaml").write_text("model: CESASRec\nseed: 7\ndataset: other\n")
    tasks = plan_runs(compare.parse_entries("best.yaml"), "tiny", 2, None, settings, tmp_path / "out")
    assert [task.seed for task in tasks] == [2020, 2021]


def test_labels_that_differ_by_a_mark_are_different_runs(settings, tmp_path):
    names = set()
    for label in ("a|b", "a+b", "a b"):
        entry = compare.Entry(label, "CESASRec")
        names |= {task.id for task in plan_runs([entry], "tiny", 1, None, settings, tmp_path / "out")}
    assert len(names) == 3
    row = {"label": "a|b", "seeds": [1], **dict.fromkeys(COSTS)}
    assert r"| a\|b " in tables.comparison_table([row], [], "github")


def test_paths_of_references_hold_in_the_folder_of_the_runs(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = compare.parse_entries("SDPOSASRec reference=ref.pth reference_dir=kept,CESASRec reference=auto")
    first, second = plan_runs(entries, "tiny", 1, None, tiny_dataset, tmp_path / "out")
    assert first.settings["reference"] == str(tmp_path / "ref.pth")
    assert first.settings["reference_dir"] == str(tmp_path / "kept")
    assert second.settings["reference"] == "auto"


def names_of_runs(model, settings, folder):
    """Return the names that a comparison gives its runs."""
    return [task.id for task in plan_runs(compare.parse_entries(model), "tiny", 1, None, dict(settings), folder)]


def test_an_edited_property_file_makes_new_runs_of_its_method(tiny_dataset, tmp_path, monkeypatch):
    def names(model):
        return names_of_runs(model, tiny_dataset, tmp_path)

    before = {model: names(model) for model in ("LPOSASRec", "SDPOSASRec")}
    edited = tmp_path / "properties"
    shutil.copytree(files.properties_dir(), edited)
    monkeypatch.setattr(files, "properties_dir", lambda: edited)
    assert {model: names(model) for model in before} == before
    file = edited / "method" / "LPO.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("\ntau: 0.1 ", "\ntau: 0.2 "), encoding="utf-8")
    assert names("SDPOSASRec") == before["SDPOSASRec"]
    assert names("LPOSASRec") != before["LPOSASRec"]


def test_a_run_with_other_defaults_than_planned_is_refused(tiny_dataset, tmp_path):
    (task,) = plan_runs(compare.parse_entries("LPOSASRec"), "tiny", 1, None, dict(tiny_dataset), tmp_path)
    with pytest.raises(PrefError, match="defaults changed after the comparison began"):
        run_module.train_and_record(replace(task, defaults="those of another file"))


def test_runs_do_not_depend_on_the_folder_of_their_data(tiny_dataset, tiny_folder, tmp_path):
    def names(data_path, **more):
        return names_of_runs("LPOSASRec", {**tiny_dataset, "data_path": str(data_path), **more}, tmp_path)

    os.symlink(tiny_folder, tmp_path / "moved")
    assert names(tiny_folder) == names(tmp_path / "moved") == names(tiny_folder, reference_dir=str(tmp_path))
    assert names(tiny_folder) == names(tiny_folder, state="INFO", keep_last=5, show_progress=True)
    assert names(tiny_folder) != names(tiny_folder, tau=0.7)


def test_runs_on_other_data_are_not_compared():
    def record(name, items):
        data = {"n_users": 5, "n_items": items, "item_tokens_sha256": "a" * 64, "targets_sha256": name}
        return Run(name, {}, id=name, data=data)

    compare.check_same_data([record("a", 9), record("b", 9)])  # training rows differ between kinds of models
    with pytest.raises(
        PrefError, match="the runs b and a were trained on different data .n_items: 8 != 9.: .* delete the older"
    ):
        compare.check_same_data([record("a", 9), record("b", 8)])


def test_runs_share_the_threads_that_torch_may_use(monkeypatch):
    monkeypatch.setattr(environment, "usable_cores", lambda: 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert environment.threads_per_process(1) == 1
        torch.set_num_threads(6)
        assert [environment.threads_per_process(n) for n in (1, 2, 7)] == [6, 3, 1]
    finally:
        torch.set_num_threads(before)


# -- statistics


def test_paired_tests_against_scipy_and_each_other():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.3, 1, 200), rng.normal(0.1, 1, 200)
    assert paired_t(one - other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert paired_bootstrap(one - other) == pytest.approx(paired_t(one - other), abs=0.02)
    assert paired_t(np.zeros(5)) == 1.0 and paired_bootstrap(np.zeros(5)) == 1.0
    assert paired_bootstrap(np.ones(50)) == 1e-4
    assert math.isnan(paired_t(np.ones(1))) and math.isnan(paired_bootstrap(np.ones(1)))


def test_holm_by_hand():
    corrected = holm([0.01, 0.04, 0.03, float("nan"), 0.005])
    assert corrected[[0, 1, 2, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(corrected[3])


def test_values_per_user_from_ranks():
    arrays = {"rank": np.array([1, 3, 11, 2]), "target": np.array([1, 2, 2, 1])}
    arrays["tail"] = np.array([False, False, True])
    values, rows = evidence.user_values(arrays, "ndcg@10")
    assert values == pytest.approx([1, 0.5, 0, 1 / math.log2(3)]) and list(rows) == [0, 1, 2, 3]
    values, rows = evidence.user_values(arrays, "tailhit@10")
    assert list(values) == [1, 0] and list(rows) == [1, 2]
    assert evidence.user_values(arrays, "tailpercentage@10") is None


def made_up(values, seed_shift=0.0):
    rank = np.where(values, 1, 100)
    users = np.arange(len(values)).astype(str)
    return Run(
        label="made up",
        test_result={"hit@10": float(np.mean(values)) + seed_shift, "tailpercentage@10": 0.5},
        config={"valid_metric": "Hit@10"},
        seconds_per_epoch=2.0,
        epochs_to_best=3,
        peak_memory_mb=100.0,
        arrays={"rank": rank, "target": np.ones(len(values), int), "user": users},
    )


def test_a_summary_by_hand():
    one, other = np.array([1, 1, 0, 1, 0, 1]), np.array([0, 1, 0, 0, 0, 0])
    runs = {
        "base": {1: made_up(other), 2: made_up(other)},
        "new": {1: made_up(one), 2: made_up(other), 3: made_up(one)},
    }
    base, new = summarize(runs, "base", "t-test")
    assert base["hit@10"] == {"mean": pytest.approx(1 / 6), "std": 0.0, "difference": None, "p": None}
    assert new["hit@10"]["mean"] == pytest.approx((4 / 6 + 1 / 6 + 4 / 6) / 3)
    assert new["hit@10"]["difference"] == pytest.approx(0.25)  # over seeds 1 and 2
    assert new["hit@10"]["p"] == pytest.approx(stats.ttest_rel((one + other) / 2, other).pvalue)
    assert new["tailpercentage@10"]["p"] is None
    text = tables.comparison_table([base, new], ["hit@10"], "github")
    assert "0.1667 ± 0.0000" in text and "0.5000 ± 0.2887" in text


def test_no_p_value_if_ranks_do_not_determine_the_metric():
    values = np.array([1, 1, 0, 1, 0, 1])
    runs = {"base": {1: made_up(values)}, "new": {1: made_up(1 - values, seed_shift=0.1)}}  # ties, many targets
    new = summarize(runs, "base", "t-test")[1]["hit@10"]
    assert new["p"] is None and new["difference"] == pytest.approx(0.1 - 1 / 3)


def test_no_p_value_if_head_and_tail_differ():
    values = np.array([1, 1, 0, 1])
    runs = {}
    for label, tail in (("base", [False, True, False]), ("new", [False, True, True]), ("same", [True, True, False])):
        run = made_up(values)
        run.arrays |= {"target": np.array([1, 1, 2, 1]), "tail": np.array(tail)}
        (values_of_tail, _) = evidence.user_values(run.arrays, "tailhit@10")
        run.test_result["tailhit@10"] = float(values_of_tail.mean())
        runs[label] = {1: run}
    base, new, same = summarize(runs, "base", "t-test")
    assert new["tailhit@10"]["p"] is None and new["hit@10"]["p"] == 1 and same["tailhit@10"]["p"] == 1
    (note,) = notes.split_notes(runs, runs["base"], ["hit@10", "tailhit@10"])
    assert note.startswith("new has other head and tail items")
    assert not notes.split_notes(runs, runs["base"], ["hit@10"])


def test_rows_of_one_user_are_not_independent():
    one, other = np.array([1, 1, 0, 1, 0, 1]), np.array([0, 1, 0, 0, 0, 0])
    runs = {"base": {1: made_up(other)}, "new": {1: made_up(one)}}
    for by_seed in runs.values():
        by_seed[1].arrays["user"] = np.array(["a", "a", "a", "b", "c", "c"])
    new = summarize(runs, "base", "t-test")[1]["hit@10"]
    assert new["difference"] == pytest.approx(0.5)
    assert new["p"] == pytest.approx(stats.ttest_1samp([1, 1, 1], 0).pvalue)
    for label, values in (("base", [0, 0]), ("new", [1, 0])):  # of users 0 and 1, in another split
        runs[label][2] = made_up(np.array(values))
    new = summarize(runs, "base", "t-test")[1]["hit@10"]
    assert new["p"] == pytest.approx(stats.ttest_1samp([0.5, 0, 0.5, 0.5, 0.5], 0).pvalue)


def test_other_test_rows_are_noted():
    runs = {"base": {1: made_up(np.array([1, 0, 1]))}, "new": {1: made_up(np.array([1, 0]))}}
    assert summarize(runs, "base", "t-test")[1]["hit@10"]["p"] is None
    (note,) = notes.row_notes(runs, runs["base"])
    assert note.startswith("new is measured on other test rows (2, not 3)")


def test_numbers_that_json_has_as_text_are_numbers(tmp_path):
    runs = {"base": {1: made_up(np.array([1, 0]))}}
    run = made_up(np.array([1, 1]))
    run.id, run.test_result["hit@10"] = "one", float("nan")
    run.write(tmp_path)
    assert '"nan"' in (tmp_path / "runs" / "one.json").read_text()
    runs["new"] = {1: compare.load_record(tmp_path, "one")}
    new = summarize(runs, "base", "t-test")[1]["hit@10"]
    assert math.isnan(new["mean"]) and new["p"] is None


def test_metrics_of_a_table_follow_the_valid_metric():
    result = {"gauc": 0.5, "ndcg@5": 0.1, "ndcg@10": 0.2, "tailndcg@10": 0.3}
    record = Run("A", result, config={"valid_metric": "NDCG@10", "topk": [5, 10]})
    assert table_metrics(record) == ["ndcg@10", "tailndcg@10"]
    record.config["valid_metric"] = "GAUC"
    assert table_metrics(record) == ["gauc", "ndcg@5"]


def test_settings_of_entries_may_hold_commas_and_spaces(tmp_path):
    text = "LPOSASRec objective={'weights': {'NDCG@10': 1.0}, 'at_least': {'Hit@10': 0.1}}, CESASRec topk=[5, 10]"
    lpo, ce = compare.parse_entries(text)
    assert lpo.settings == {"objective": {"weights": {"NDCG@10": 1.0}, "at_least": {"Hit@10": 0.1}}}
    assert ce.settings == {"topk": [5, 10]}


def test_files_with_the_same_name_are_labelled_with_their_folder(tmp_path):
    for folder, model in (("A", "LPOSASRec"), ("B", "CESASRec")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.yaml").write_text(f"model: {model}\n")
    entries = compare.parse_entries("A/best.yaml,B/best.yaml")  # the working folder is tmp_path
    assert [(entry.label, entry.model) for entry in entries] == [("A/best", "LPOSASRec"), ("B/best", "CESASRec")]
    assert compare.parse_entries("A/best.yaml")[0].label == "best"
    with pytest.raises(PrefError, match="'A/best' twice"):
        compare.compare("A/best.yaml,A/best.yaml", "tiny")


def test_labels_survive_latex():
    row = {
        "label": "a_b #1 50% {x: ~1} ^ \\",
        "seeds": [1],
        **dict.fromkeys(COSTS),
        "hit@10": {"mean": 0.1, "std": None, "difference": None, "p": None},
    }
    lines = tables.comparison_table([row], ["hit@10"], "latex").splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert lines[5].startswith(
        r"a\_b \#1 50\% \{x: \textasciitilde{}1\} \textasciicircum{} \textbackslash{} & 1 & 0.1000"
    )


def rows_of(**cells):
    """Return two rows of a table with metrics as (mean, difference, p) of the second."""
    rows = []
    for place, label in enumerate(("base_1", "new")):
        row = {"label": label, "seeds": [1, 2], **dict.fromkeys(COSTS, 2.0)}
        for metric, (mean, difference, p) in cells.items():
            tested = {"difference": difference, "p": p} if place else {"difference": None, "p": None}
            row[metric] = {"mean": mean if place else mean - difference, "std": 0.001, **tested}
        rows.append(row)
    return rows


def test_marks_say_better_or_worse():
    rows = rows_of(**{"ndcg@10": (0.2, 0.1, 0.01), "giniindex@10": (0.9, 0.2, 0.01), "tailndcg@10": (0.1, 0.05, 0.06)})
    text = tables.comparison_table(rows, ["ndcg@10", "giniindex@10", "tailndcg@10"], "github").splitlines()
    assert [cell.strip() for cell in text[0].split("|")[3:6]] == ["NDCG@10", "GiniIndex@10", "Tail NDCG@10"]
    cells = [cell.strip() for cell in text[-1].split("|")[3:6]]
    assert cells == ["0.2000 ± 0.0010 ↑*", "0.9000 ± 0.0010 ↓*", "0.1000 ± 0.0010"]


def test_latex_has_bold_best_chosen_columns_and_the_note_in_its_caption():
    rows = rows_of(**{"ndcg@10": (0.2, 0.1, 0.01), "giniindex@10": (0.9, 0.2, 0.9)})
    text = tables.latex_table(rows, ["ndcg@10", "giniindex@10"], ["peak_memory_mb"], "20% ± 1, p < 0.05", "ml-100k")
    lines = text.splitlines()
    assert lines[2] == r"\caption{20\% $\pm$ 1, p $<$ 0.05 Bold: the best mean.}" and lines[-1] == r"\end{table}"
    assert r"model & seeds & NDCG@10 & GiniIndex@10 & peak MiB \\" in lines
    assert r"base\_1 & 2 & 0.1000 $\pm$ 0.0010 & \textbf{0.7000} $\pm$ 0.0010 & 2 \\" in lines
    assert r"new & 2 & \textbf{0.2000} $\pm$ 0.0010 $\uparrow$* & 0.9000 $\pm$ 0.0010 & 2 \\" in lines


def test_columns_are_read_in_any_spelling():
    run = Run("A", {"ndcg@5": 0.1, "ndcg@10": 0.2, "tailndcg@10": 0.3, "gauc": 0.5})
    columns = ["Tail NDCG@10", "ndcg", "NDCG@5", "GAUC", "peak_memory_mb"]
    found = tables.columns_of(columns, run, ["ndcg@10", "tailndcg@10"])
    assert found == (["tailndcg@10", "ndcg@10", "ndcg@5", "gauc"], ["peak_memory_mb"])
    assert tables.columns_of(None, run, ["ndcg@10"]) == (["ndcg@10"], list(COSTS))


def test_the_result_of_a_run_is_shown_by_group():
    result = {"ndcg@10": 0.12344, "tailndcg@10": 0.2, "tailpercentage@10": 0.3}
    text = tables.result_table({"test_result": result, "epochs": 1, "seconds_per_epoch": 2.0}, "A", "d")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["group", "NDCG@10"] in lines and ["Overall", "0.1234"] in lines and ["Tail", "0.2000"] in lines
    assert ["TailPercentage@10", "0.3000"] in lines and lines[-1] == ["1 epoch, 2.00 s per epoch"]


# -- runs


def test_progress_shows_score_time_left_and_log(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    tasks = [Task(f"{label}-{seed}", label, label, "d", seed, {}, str(tmp_path), "", epochs=10)
             for label in "AB" for seed in (1, 2)]  # fmt: skip
    shown = progress.Progress(tasks, 2)
    shown.started(tasks[0])
    shown.started(tasks[2])
    assert shown.seconds_left() is None
    clock[0] = 8.0
    shown.validated("A-1", 4, 0, 0.12345)
    assert shown.seconds_left() == (6 + 10 + 10 + 10) * 2 / 2  # two seconds an epoch, two runs at a time
    shown.ended(tasks[0])
    assert shown.seconds_left() == (4 + 10 + 10) * 2 / 2  # the next run of A is expected to stop as early
    clock[0] = 31.0
    shown.validated("B-1", 6, 5, 0.2)  # five epochs were done by an earlier process
    shown.tick()
    shown.ended(tasks[2], "out of memory")
    message = capsys.readouterr().err
    assert f"A seed 1 started, log: {tasks[0].log}" in message
    assert (
        "[1/4] A seed 1 done after 4 epochs, 0:00:08: best validation score 0.1235, at most about 0:00:24 left"
        in message
    )
    assert (
        "1 of 4 runs ended, 1 running, 2 waiting" in message
        and "| 6/10" in message
        and "B seed 1 failed: out of memory" in message
    )


def test_the_process_that_forks_runs_only_imports():
    code, calls, error = fresh.run(
        "import json, torch.cuda\n"
        "calls = []\n"
        "for name in ('is_available', 'device_count', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, lambda name=name: calls.append(name))\n"
        "from recbole_pref.compare import runs\n"
        "runs.preload()\n"
        "print(json.dumps(calls))"
    )
    assert (code, json.loads(calls.splitlines()[-1])) == (0, []), error  # CUDA that is in use does not survive a fork


def test_runs_fail_with_a_reason_where_none_can_be_started(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PrefError, match="the process that starts the runs has ended"):
        compare.compare("CESASRec", "tiny", 2, config_dict=settings, output=tmp_path)


def test_a_comparison_runs_once_and_agrees_with_the_evaluator(settings, tmp_path):
    folder = tmp_path / "out"
    arguments = {
        "models": "CESASRec,SDPOSASRec beta=0.5", "dataset": "tiny", "seeds": 2,
        "config_dict": settings, "output": folder, "processes": 2,
    }  # fmt: skip
    done = compare.compare(**arguments)
    assert not done.failed and [row["label"] for row in done.rows] == ["CESASRec", "SDPOSASRec beta=0.5"]
    records = sorted((folder / "runs").glob("*.json"))
    assert len(records) == 4 and len(list((folder / "reference").glob("*.pth"))) == 2
    for path in records:
        record = compare.load_record(folder, path.stem)
        arrays = record.arrays
        for metric in ("ndcg@10", "hit@5", "tailhit@10", "headndcg@10"):
            values, _ = evidence.user_values(arrays, metric)
            assert values.mean() == pytest.approx(record.test_result[metric], abs=1e-4)
        assert arrays["top"].shape == (60, 10) and arrays["count"][0] == 0
        assert np.all((arrays["rank"] <= 10) == (arrays["top"] == arrays["target"][:, None]).any(1))
        assert record.peak_memory_mb > 50 and record.environment["torch"]
        assert len(record.train_loss_per_row) == record.epochs and 0 < min(record.train_loss_per_row) < 9
        assert not list((folder / "checkpoints" / path.stem).glob("*-last-*"))
        assert (folder / record.checkpoint).is_file()
    times = [path.stat().st_mtime_ns for path in records]
    again = compare.compare(**arguments)
    assert [path.stat().st_mtime_ns for path in records] == times and again.rows == done.rows
    rows = list(csv.DictReader((folder / "table.csv").open()))
    mean = np.mean([json.loads(p.read_text())["test_result"]["ndcg@10"] for p in records if "CE" in p.stem])
    assert float(rows[0]["ndcg@10 mean"]) == pytest.approx(mean)
    assert r"\toprule" in (folder / "table.tex").read_text()
    note = (folder / "table.md").read_text()
    assert "corrected after Holm for 6 comparisons" in note
    head = torch.from_numpy(arrays["count"]).argsort(descending=True, stable=True)[
        : round(0.2 * (len(arrays["count"]) - 1))
    ]
    tail = (~np.isin(arrays["target"], head)).sum()
    assert not notes.group_notes(record, ["tailpercentage@10", "hit@10"])
    assert f"Head: the most popular 20% of the items (tail_split: items), tail: the rest, {tail} of the 60 test" in note


@pytest.mark.parametrize("processes", [1, 3])
def test_cross_entropy_is_trained_once_for_itself_and_for_those_that_start_from_it(settings, tmp_path, processes):
    models = "SDPOSASRec,SimPOSASRec,CESASRec"
    settings["state"] = "INFO"
    done = compare.compare(models, "tiny", 1, config_dict=settings, output=tmp_path, processes=processes)
    assert not done.failed
    logs = {path.name.partition("-")[0]: path.read_text() for path in (tmp_path / "logs").glob("*-seed*")}
    assert "training the reference" not in "".join(logs.values())
    (stored,) = (tmp_path / "reference").glob("*.pth")
    for model in ("SDPOSASRec", "SimPOSASRec"):
        assert f"reference {stored}" in logs[model]
    assert "exclude the training of the reference models" in done.text and "reference that is not" not in done.text


def test_only_runs_that_start_from_a_running_one_wait(tiny_dataset, tmp_path):
    entries = compare.parse_entries("CESASRec,CESASRec repeat_bias=True,SDPOSASRec,LPOSASRec,SDPOGRU4Rec")
    tasks = plan_runs(entries, "tiny", [1, 2], None, {**tiny_dataset, "dataset": None}, tmp_path)
    named = {(task.label, task.seed): task for task in tasks}
    waiting = [named[key] for key in (("SDPOSASRec", 1), ("SDPOSASRec", 2), ("LPOSASRec", 1), ("SDPOGRU4Rec", 1))]
    for running, ready in [
        (("CESASRec", 1), 1), (("CESASRec", 2), 0), (("CESASRec repeat_bias=True", 1), 0), (("SDPOSASRec", 1), 0)
    ]:  # fmt: skip
        assert run_module.ready(waiting, [named[running]]) is waiting[ready]
    assert run_module.ready(waiting[:1], [named["CESASRec", 1]]) is None


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"epochs": 1}, "SDPOSASRec starts from a reference that is not CESASRec: reference_epochs=2, there epochs=1."),
        ({"learning_rate": 0.02}, "not CESASRec: reference_learning_rate=0.001, there learning_rate=0.02."),
        ({"learning_rate": 0.02, "reference_learning_rate": 0.02}, None),
        ({"epochs": 9}, None),
    ],
)
def test_references_that_differ_from_the_compared_cross_entropy_are_noted(tiny_dataset, tmp_path, shared, words):
    entries = compare.parse_entries("CESASRec,CESASRec repeat_bias=True,SDPOSASRec,LPOSASRec")
    settings = {**tiny_dataset, "dataset": None, **shared}
    found = notes.reference_notes(plan_runs(entries, "tiny", 2, None, settings, tmp_path))
    assert not found if words is None else len(found) == 1 and words in found[0]


def test_pickles_of_other_runs_do_not_matter(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "tiny-SequentialDataset.pth").write_bytes(b"what save_dataset left")
    assert len(plan_runs(compare.parse_entries("CESASRec"), "tiny", 1, None, settings, tmp_path / "out")) == 1


def test_cross_entropy_trained_for_longer_than_references_is_noted(tiny_dataset, tmp_path):
    settings = {**tiny_dataset, "dataset": None, "epochs": 9, "reference_epochs": 4}
    tasks = plan_runs(compare.parse_entries("CESASRec,SDPOSASRec"), "tiny", 2, None, settings, tmp_path)
    runs = {"CESASRec": {2020: Run("CESASRec", {}, epochs=4), 2021: Run("CESASRec", {}, epochs=9)}}
    (note,) = notes.longer_notes(tasks, runs)
    assert note.startswith("CESASRec trained for more than reference_epochs=4")
    del runs["CESASRec"][2021]
    assert not notes.longer_notes(tasks, runs)


def test_an_error_in_the_data_is_reported_once_and_before_any_run(settings, tmp_path):
    with pytest.raises(PrefError, match="nowhere") as caught:
        compare.compare("CESASRec,LPOSASRec", "nowhere", 2, config_dict=settings, output=tmp_path / "out")
    assert str(caught.value).count("nowhere.inter") == 1
    assert not (tmp_path / "out").exists()


def test_ranking_among_candidates_is_noted_and_names_its_users(settings, tmp_path):
    settings["eval_args"] = {**SPLIT, "mode": {"valid": "uni20", "test": "uni5"}}
    (tmp_path / "seed.yaml").write_text("seed: 7\n")
    arguments = {"config_dict": {**settings, "epochs": 1}, "config_file_list": [str(tmp_path / "seed.yaml")]}
    done = compare.compare("CESASRec hidden_dropout_prob=0.5", "tiny", 1, output=tmp_path / "out", **arguments)
    assert "ranking among uni5" in done.text and done.rows[0]["seeds"] == [7]
    (name,) = [path.stem for path in (tmp_path / "out" / "runs").glob("*.json")]
    arrays = compare.load_record(tmp_path / "out", name).arrays
    assert len(set(arrays["user"])) == 60
    listed = (arrays["top"] > 0).sum(1)  # the target and at most five others
    assert listed.min() >= 2 and listed.max() == 6


def test_a_killed_comparison_continues(settings, tmp_path):
    """It is killed, stopped by Ctrl-C at a terminal and then by SIGTERM, and continues each time."""
    folder = tmp_path / "out"
    given = {
        "models": "LPOSASRec", "dataset": "tiny", "seeds": 1, "output": str(folder), "processes": 2,
        "config_dict": {**settings, "epochs": 60, "stopping_step": 100, "state": "INFO"},
    }  # fmt: skip
    script = "import json, sys; from recbole_pref.compare import compare; compare(**json.loads(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def last():
        return max((int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoints/*/*-last-*.pth")), default=0)

    def end_with(number, send):
        before = last()
        wait_for(lambda: last() > before + 2, seconds=60)
        send(number)

    for number in (signal.SIGKILL, signal.SIGINT):
        command = [sys.executable, "-c", script, json.dumps(given)]
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            end_with(number, partial(os.killpg, process.pid))
        assert not list(folder.glob("runs/*.json"))
    (log,) = (folder / "logs").glob("LPOSASRec-*")
    assert log.read_text().count("SIGTERM stopped the run") == 1  # which Ctrl-C sends to the runs
    Thread(target=end_with, args=(signal.SIGTERM, partial(os.kill, os.getpid()))).start()
    with pytest.raises(KeyboardInterrupt):
        compare.compare(**given)
    assert not list(folder.glob("runs/*.json"))
    done = compare.compare(**given)
    assert not done.failed
    assert log.read_text().count("resumed from") == 3 and log.read_text().count("SIGTERM stopped the run") == 2
    (record,) = folder.glob("runs/*.json")
    assert json.loads(record.read_text())["epochs"] == 60


def test_a_failing_run_does_not_end_the_others(settings, tmp_path):
    folder = tmp_path / "out"
    models = "CESASRec,LPOSASRec learning_rate=1e30 learner=sgd"
    done = compare.compare(models, "tiny", 1, config_dict=settings, output=folder, processes=2)
    assert [row["label"] for row in done.rows] == ["CESASRec"]
    (reason,) = done.failed.values()
    assert "not finite" in reason or "nan" in reason
    assert reason in done.text


def test_without_a_baseline_the_others_have_a_table(settings, tmp_path):
    folder = tmp_path / "out"
    models = "CESASRec learning_rate=1e30 learner=sgd,CESASRec"
    done = compare.compare(models, "tiny", 1, config_dict={**settings, "epochs": 1}, output=folder)
    assert [row["label"] for row in done.rows] == ["CESASRec"] and len(done.failed) == 1
    assert "the baseline CESASRec learning_rate=1e30 learner=sgd has no finished run" in done.text
    assert all(done.rows[0][metric]["p"] is None for metric in ("ndcg@10", "tailndcg@10"))
    assert "* differs from" not in done.text + write_report(folder).read_text(encoding="utf-8")


def test_the_command_line_compares_and_reports_what_failed(settings, tmp_path, capsys, monkeypatch):
    given = {**settings, "epochs": 1}
    words = [f"--{key}={value!r}" for key, value in given.items() if value != ""]
    models = "CESASRec,GRU4Rec,CESASRec learner=sgd learning_rate=1e30"
    command = ["--dataset=tiny", "--seeds=2", "--processes=2", "--test=bootstrap", "--output=out", *words]
    assert main([f"--compare={models}", "--baseline=GRU4Rec", *command]) == 2
    printed = capsys.readouterr()
    assert "* differs from GRU4Rec (p < 0.05, paired bootstrap" in printed.out and "report: out" in printed.out.replace(
        str(tmp_path) + "/", ""
    )
    assert printed.out.count("1e30-seed2020") > 0 and "1e30 seed 2021 failed: epoch 0" in printed.err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "table.md", "table.csv", "table.tex", "comparison.json", "report.html", "plots",
    }  # fmt: skip
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["baseline"] == "GRU4Rec" and len(saved["runs"]) == 4
    with monkeypatch.context() as quick:
        quick.setattr(cli, "_publish", lambda folder: None)
        assert main(["--compare=CESASRec,GRU4Rec", "--columns=Tail NDCG@10, seconds_per_epoch", *command]) == 0
    table = capsys.readouterr().out
    assert "* differs from CESASRec" in table and "| model | seeds | Tail NDCG@10 | s / epoch |" in " ".join(
        table.split()
    )
    stale, kept = (tmp_path / "out" / "plots" / name for name in ("sensitivity_tau.png", "mine.png"))
    stale.touch()
    kept.touch()
    assert main(["--plots=out"]) == 0
    assert not stale.exists() and kept.exists() and (tmp_path / "out" / "plots" / "trade_off.pdf").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--compare=CESASRec --tune=a.yaml", "--compare and --tune are two modes"),
        ("--plots=out --compare=CESASRec", "--plots and --compare are two modes"),
        ("--compare= --model=CESASRec", "--compare is empty"),
        ("--compare=CESASRec --model=GRU4Rec", "--model has no effect with --compare"),
        ("--compare=CESASRec --resume=True", "--resume has no effect with --compare"),
        ("--compare=CESASRec --nproc=4", "--nproc has no effect with --compare"),
        ("--plots=out --output=elsewhere", "--output has no effect with --plots"),
        ("--model=CESASRec --columns=NDCG@10", "--columns needs --compare"),
        ("--model=CESASRec --output=elsewhere", "--output needs --compare or --predict"),
        ("--model=CESASRec --model=GRU4Rec", "--model is given twice"),
        ("--config_files=a.yaml --config_files=b.yaml", "--config_files is given twice"),
        ("-m CESASRec -d tiny --dataset=other", "--dataset is given twice"),
    ],
)
def test_commands_that_contradict_themselves_are_refused(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_passes_columns_on(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(compare, "compare", lambda *_, **options: given.append(options["columns"]) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["--compare=CESASRec", "--columns=NDCG@10, Tail NDCG@10,"])
    assert given == [["NDCG@10", "Tail NDCG@10"]]


def test_a_folder_that_cannot_be_written_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "logs")  # root may write everywhere
    monkeypatch.setattr(run_module, "_Server", None)
    with pytest.raises(PrefError, match="--output=.*logs' cannot be written: name another folder"):
        compare.compare("CESASRec", "tiny", 1, config_dict=settings, output=tmp_path / "out")


def test_a_run_that_another_process_finished_is_not_a_failure(settings, tmp_path, monkeypatch):
    done = compare.compare("CESASRec", "tiny", 1, config_dict={**settings, "epochs": 1}, output=tmp_path)
    (name,) = [path.stem for path in (tmp_path / "runs").glob("*.json")]
    monkeypatch.setattr(run_module, "run_missing", lambda *_: {name: "is being trained by another process"})
    again = compare.compare("CESASRec", "tiny", 1, config_dict={**settings, "epochs": 1}, output=tmp_path)
    assert not again.failed and again.text == done.text


def test_mistakes_end_before_anything_is_trained(settings, tmp_path):
    folder = tmp_path / "out"
    shared = {"dataset": "tiny", "config_dict": settings, "output": folder}
    with pytest.raises(PrefError, match="Did you mean 'LPOSASRec'"):
        compare.compare("CESASRec,LPOSASRc", **shared)
    with pytest.raises(PrefError, match="tau=-1"):
        compare.compare("CESASRec,LPOSASRec tau=-1", **shared)
    with pytest.raises(PrefError, match="Did you mean 'CESASRec'"):
        compare.compare("CESASRec", baseline="CESASRc", **shared)
    with pytest.raises(PrefError, match="--test"):
        compare.compare("CESASRec", test="z", **shared)
    with pytest.raises(PrefError, match="--processes"):
        compare.compare("CESASRec", processes=0, **shared)
    for column in ("NDCG@7", "Novelty"):
        with pytest.raises(PrefError, match=f"--columns='{column}' is not measured"):
            compare.compare("CESASRec", columns=[column], **shared)
    with pytest.raises(PrefError, match="seed=-5"):
        compare.compare("CESASRec", seeds="3,-5", **shared)
    with pytest.raises(PrefError, match="2020.inter"):  # a name of digits, which YAML reads as a number
        compare.compare("CESASRec", **{**shared, "dataset": 2020, "output": None})
    with pytest.raises(PrefError, match="run_stem is set by the comparison"):
        compare.compare("CESASRec,LPOSASRec run_stem=a", **shared)
    with pytest.raises(PrefError, match="result_file is set by the comparison"):
        compare.compare("CESASRec", **{**shared, "config_dict": {**settings, "result_file": "r.json"}})
    filters = ("user_inter_num_interval=[6,inf)", "tail_ratio=0.9", "metric_decimal_place=2")
    for same in ("mask_history=True", "head_ratio=0.8", *filters):
        with pytest.raises(PrefError, match=f"{same.partition('=')[0]}.*one table needs the same value"):
            compare.compare(f"CESASRec,LPOSASRec {same}", **shared)
    assert not folder.exists()


def test_a_damaged_record_is_named(settings, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.json").write_text("{")
    with pytest.raises(PrefError, match="delete both"):
        compare.load_record(tmp_path, "one")
    (tmp_path / "runs" / "one.json").write_text('{"label": "A", "test_result": {}}')
    np.savez_compressed(tmp_path / "runs" / "one.npz", rank=np.arange(99))
    whole = (tmp_path / "runs" / "one.npz").read_bytes()
    for broken in (b"", whole[:50], whole[:60] + b"\xff\xff\xff" + whole[63:]):
        (tmp_path / "runs" / "one.npz").write_bytes(broken)
        with pytest.raises(PrefError, match="delete both"):
            compare.load_record(tmp_path, "one")


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, monkeypatch):
    task, trained = Task("a-seed1-0", "a", "a", "tiny", 1, {}, str(tmp_path), ""), []
    monkeypatch.setattr(run_module, "_train_and_record", lambda task, folder, report: trained.append(task.id))
    (tmp_path / "tasks").mkdir()
    with FileLock(tmp_path / "tasks" / "a-seed1-0.lock"):
        with pytest.raises(PrefError, match="a-seed1-0 is being trained by another process"):
            run_module.train_and_record(task)
        run_module.train_and_record(replace(task, id="a-seed2-0"))
    assert trained == ["a-seed2-0"]
    run_module.train_and_record(task)
    assert trained == ["a-seed2-0", "a-seed1-0"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a-seed1-0.json").write_text("{}")  # which the other process has written in the meantime
    run_module.train_and_record(task)
    assert len(trained) == 2


def test_models_without_sequences_are_compared_on_converted_data(settings, tmp_path):
    lines = [f"u{user},i{item},{1_600_000_000 + time}" for user in range(30)
             for time, item in enumerate(np.random.default_rng(user).permutation(12)[:6])]  # fmt: skip
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    convert(tmp_path / "log.csv", "table", "shop", tmp_path)
    more = {"data_path": str(tmp_path), "eval_args": SPLIT, "epochs": 1, "mask_history": True}
    more["load_col"] = {"inter": ["user_id", "item_id"]}
    done = compare.compare("CESASRec,BPR", "shop", 1, config_dict={**settings, **more}, output=tmp_path / "out")
    assert not done.failed and [row["label"] for row in done.rows] == ["CESASRec", "BPR"]


def test_the_data_of_every_entry_are_checked_before_the_first_is_trained(settings, tmp_path):
    models = "CESASRec,LPOSASRec load_col={'inter':['user_id','item_id','timestamp'],'item':['item_id','price']}"
    with pytest.raises(PrefError, match="tiny.item', which does not exist"):
        compare.compare(models, "tiny", 1, config_dict=settings, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
