"""The studies of docs/results.md: entries, folders, readings of the tail, the popularity control and the fronts."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from recbole_pref import compare, plots
from recbole_pref.compare import runs as run_module
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.records import run_path
from tests.test_plots import benchmark, make_run, write_run

with mock.patch.object(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path]):
    study, control, front, prior_front = map(benchmark, ("study", "popularity_control", "front", "prior_front"))
    from common import exit_code_of


# -- entries and studies


def test_an_entry_takes_settings_behind_its_name():
    plain, sized, recommended = study.entries_for("SASRec", " CE, LPO  tau=0.5 lambda=2 ,LPO recommended alpha_tail=1,")
    assert (plain.label, plain.model, plain.settings) == ("CE SASRec", "CESASRec", {})
    assert (sized.label, sized.settings) == ("LPO tau=0.5 lambda=2 SASRec", {"tau": 0.5, "lambda": 2})
    assert recommended.settings["alpha_tail"] == 1 and recommended.settings["repeat_bias"] is True
    assert study.ENTRIES["LPO"] == ("LPO", {})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--entries=CE,LOP"], "'LOP' does not exist: --help lists them. Did you mean 'LPO'?"),
        (["--entries=CE,LPO tua=1"], "tua=1 is not a setting of RecBole or RecBole-Pref. Did you mean 'tau'?"),
        (["--entries="], "names no model"),
        (["--entries=CE,LPO", "--baseline=LOP"], "Did you mean 'LPO SASRec'?"),
        (["--backbones=SASRec,GRU4Rec", "--entries=CE paper size"], "'CE paper size' is in settings of SASRec"),
        (["--dataset=ml-100"], "dataset='ml-100' was not found"),
        (["--studies=parts-ml-100"], "Did you mean 'parts-ml-100k'?"),
        (["--studies=all", "--seeds=2"], "--seeds is defined by the studies of --studies"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_trained(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/study.py", *arguments])
    monkeypatch.setattr(run_module, "run_missing", lambda *_: pytest.fail("a run was started"))
    assert exit_code_of(study.main) == 2
    message = capsys.readouterr().err.strip()
    assert sentence in message and message.startswith("study.py: ") and "\n" not in message


def test_ctrl_c_ends_a_script_without_a_traceback():
    assert exit_code_of(mock.Mock(side_effect=KeyboardInterrupt)) == 130


def test_every_study_names_entries_whose_settings_are_accepted():
    for name, planned in study.STUDIES.items():
        labels = [entry.label for entry in study.entries_for(planned.backbone, planned.entries)]
        assert planned.baseline is None or f"{planned.baseline} {planned.backbone}" in labels, name
        assert compare.parse_seeds(planned.seeds) and len(set(labels)) == len(labels)
        assert name not in {f"{other.dataset}-{other.backbone}" for other in study.STUDIES.values()}
    wanted = {(s.dataset, s.backbone, entry) for s in study.STUDIES.values() for entry in s.entries.split(",")}
    for dataset, backbone, name in {*wanted, *(("ml-100k", "SASRec", name) for name in study.ENTRIES)}:
        (entry,) = study.entries_for(backbone, name)
        config = Config(entry.model, dataset, config_dict={**study.SHARED, **entry.settings})
        assert all(config[key] == value for key, value in entry.settings.items())


def test_studies_share_their_runs_and_keep_tables_of_their_own(tmp_path, monkeypatch, capsys):
    trained, reported = [], {}

    def run_missing(tasks, folder, processes):
        for task in tasks:
            if not run_path(folder, task.id).is_file():
                trained.append(task.label)
                full = {"mode": {"test": "full"}}
                record, arrays = make_run(task.label, task.seed, 0.05, 0.03, rows=20, eval_args=full)
                np.savez(folder / "runs" / f"{task.id}.npz", **arrays)
                run_path(folder, task.id).write_text(json.dumps({**record, "id": task.id}))
        return {}

    def report(folder):
        reported[folder.name] = list(plots.by_label(plots.load_runs(folder)))

    monkeypatch.setattr(run_module, "run_missing", run_missing)

    def drawn(folder, refused):
        raise PrefError("matplotlib is missing")

    monkeypatch.setattr(plots, "draw_all", drawn)  # the other studies run and the report is written
    monkeypatch.setattr("recbole_pref.report.write_report", report)
    studies = {
        "one": study.Study("ml-100k", "SASRec", "CE,LPO", "2"),
        "two": study.Study("ml-100k", "SASRec", "CE,DPO", "2020,2021", "DPO"),
        "absent": study.Study("amazon-beauty", "SASRec", "CE", "2"),
    }
    monkeypatch.setattr(study, "STUDIES", studies)
    monkeypatch.setattr(sys, "argv", ["study.py", "--studies=all", f"--output={tmp_path}"])
    assert study.main() == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("The studies on amazon-beauty are skipped: it is not under data_path=")
    assert printed.err.count("no pictures: matplotlib is missing") == 2 == printed.err.count("\n") - 1
    assert trained == ["CE SASRec"] * 2 + ["LPO SASRec"] * 2 + ["DPO SASRec"] * 2
    assert reported == {"one": ["CE SASRec", "LPO SASRec"], "two": ["CE SASRec", "DPO SASRec"]}
    tables = [json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("one", "two")]
    assert [table["baseline"] for table in tables] == ["CE SASRec", "DPO SASRec"]
    assert tables[0]["runs"][:2] == tables[1]["runs"][:2]
    assert "items with the last 20% of interactions" in (tmp_path / "two" / "study.md").read_text()
    assert len(list((tmp_path / "ml-100k-SASRec" / "runs").glob("*.json"))) == 6
    assert not (tmp_path / "ml-100k-SASRec" / "comparison.json").exists()

    moved = tmp_path.rename(tmp_path.with_name("moved"))
    monkeypatch.setattr(sys, "argv", ["study.py", "--studies=one", f"--output={moved}"])
    assert study.main() == 0 and len(trained) == 6


def test_a_study_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def conduct(planned, folder, data_path, processes):
        if planned.entries == "CE":
            raise PrefError("no run was finished.")
        print("done")
        return {}

    monkeypatch.setattr(study, "conduct", conduct)
    monkeypatch.setattr(study, "is_there", lambda *_: True)
    studies = {"bad": study.Study("tiny", "SASRec", "CE", "1"), "good": study.Study("tiny", "SASRec", "LPO", "1")}
    monkeypatch.setattr(study, "STUDIES", studies)
    assert study.conduct_all(["bad", "good"], tmp_path, "dataset/", 1) == 2
    printed = capsys.readouterr()
    assert "bad: no run was finished." in printed.err and "done" in printed.out


# -- readings of the tail


def test_by_tail_worked_by_hand(tmp_path):
    count = np.array([0, 100, 50, 20, 10, 8, 6, 4, 3, 2, 1])
    target = np.array([1, 3, 4, 9, 10])
    names = []
    for seed, rank in ((1, [1, 1, 3, 11, 1]), (2, [1, 11, 11, 11, 11])):
        record, _ = make_run("CE SASRec", seed, 0.05, 0.03)
        names.append(write_run(tmp_path, record, {"count": count, "target": target, "rank": np.array(rank)}).stem)
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": names, "rows": []}))
    cells = [cell.strip() for cell in study.by_tail(tmp_path, ["CE SASRec"]).splitlines()[-1].strip("|").split("|")]
    # Tails: all but items 1 and 2; items 9 and 10; all but 1, 2 and 3, which have 170 of 204 interactions.
    # First seed: (1 + 1/2 + 0 + 1) / 4, (0 + 1) / 2, (1/2 + 0 + 1) / 3; second: 0.
    assert cells == ["CE SASRec", "2", "0.3125 / 0.3750 (4)", "0.2500 / 0.2500 (2)", "0.2500 / 0.3333 (3)"]


def test_finished_runs_are_measured_again(tiny_dataset, tmp_path, warm_workers, monkeypatch, capsys):
    own = {key: value for key, value in tiny_dataset.items() if key not in ("dataset", "data_path", "checkpoint_dir")}
    own |= {"epochs": 1, "data_path": tiny_dataset["data_path"]}
    entries = study.entries_for("SASRec", "CE,CE prior=TALE,TALE")
    assert [(entry.label, entry.model) for entry in entries][2] == ("TALE", "TALE")
    labels = [entry.label for entry in entries]
    done = compare.compare(entries, "tiny", "2021,", output=tmp_path, config_dict=own)
    assert not done.failed
    table = study.with_masked_history(tmp_path, labels, tiny_dataset["data_path"]).splitlines()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in table[2:])}
    # The same numbers by a run that masks the history itself; the network is trained alike.
    masked = compare.compare(
        entries[1:2], "tiny", "2021,", output=tmp_path / "masked", config_dict=own | {"mask_history": True}
    )
    for cell, metric in zip(rows["CE prior=TALE SASRec"][3:], study.METRICS):
        assert cell.split("±")[0].strip() == f"{masked.rows[0][metric]['mean']:.4f}", metric
    # The front without a prior, and the control without a penalty, are the run of cross-entropy itself.
    plain = {metric: f"{done.rows[0][metric]['mean']:.4f}" for metric in study.METRICS}
    shared = [f"--folder={tmp_path}", f"--data_path={tiny_dataset['data_path']}"]
    names = ["--entries=CE prior=TALE SASRec", "--baseline=CE SASRec", "--settings=prior_tau_train=4"]
    monkeypatch.setattr(sys, "argv", ["prior_front.py", *shared, *names])
    assert exit_code_of(prior_front.main) == 0
    first, *rest = [line.split("|")[1:] for line in capsys.readouterr().out.splitlines() if "| CE prior" in line]
    assert [cell.strip() for cell in first[3:6]] == [f"{plain[metric]} (+0.0%)" for metric in prior_front.SHOWN]
    assert sum(cells[2].strip().startswith(">") for cells in rest) == 1 and rest[-1][3:6] != first[3:6]
    # Masked, it is the same network in the table of the masked test set; the validation set has other values.
    hidden = {metric: cell.split("±")[0].strip() for cell, metric in zip(rows["CE SASRec"][3:], study.METRICS)}
    for split, same in (("test", True), ("validation", False)):
        monkeypatch.setattr(sys, "argv", ["prior_front.py", *shared, *names, "--masked", f"--split={split}"])
        assert exit_code_of(prior_front.main) == 0
        first = next(line for line in capsys.readouterr().out.splitlines() if "| CE prior" in line).split("|")[1:]
        expected = [f"{hidden[metric]} (+0.0%)" for metric in prior_front.SHOWN]
        assert ([cell.strip() for cell in first[3:6]] == expected) is same
    names = ["--entry=CE SASRec", "--against=CE prior=TALE SASRec"]
    monkeypatch.setattr(sys, "argv", ["popularity_control.py", *shared, *names])
    assert exit_code_of(control.main) == 0
    unchanged = capsys.readouterr().out.splitlines()[3].split("|")
    assert [float(cell) for cell in unchanged[3:8]] == pytest.approx([float(v) for v in plain.values()], abs=2e-4)


# -- the control


class ThreeItems:
    """Scores .3, .1, 0 for items seen 3, 1 and 0 times: log(1 + count) is 1.386, .693 and 0."""

    items = torch.tensor([0, 3, 1, 0]), torch.tensor([True, False, True, True])  # counts, tail

    def full_sort_predict(self, interaction):
        return torch.tensor([[9.0, 0.3, 0.1, 0.0]]).repeat(len(interaction), 1)


def test_ranks_less_the_penalty_worked_by_hand():
    # Two users, the first with two targets; item 1 falls behind 3 at c = .3 / 1.386 = .216, behind 2 at .289,
    # item 2 behind 3 at .144.
    loader = [(range(2), None, torch.tensor([0, 0, 1]), torch.tensor([3, 1, 2]))]
    found = control.ranks_by_strength(ThreeItems(), loader, "popularity", *ThreeItems.items)
    strengths = control.STRENGTHS["popularity"]
    assert len(found) == len(strengths)
    for c, arrays in zip(strengths, found):
        ahead = (c < 0.144, c < 0.216, c < 0.289)  # 2 of 3, 1 of 3, 1 of 2
        expected = [1 + ahead[0] + ahead[1], 3 - ahead[1] - ahead[2], 2 + ahead[2] - ahead[0]]
        assert arrays["rank"].tolist() == expected, c
        assert arrays["target"].tolist() == [3, 1, 2] and arrays["tail"].tolist() == [True, False, True, True]


def test_ranks_by_norm_worked_by_hand():
    # Item 1 has length 4 and items 2 and 3 length 1, so 2 on average. Dot products of a user [0.25] with them:
    # 1, .25, .25. The repeat bias adds .6 to item 2 and -.3 to item 3. Item 1 scores 1 / 2^c, item 2 .6 + .25 * 2^c:
    # beyond c = .18 item 1 is behind item 2. Item 3 stays last.
    weight = torch.tensor([[0.0], [4.0], [1.0], [1.0]])
    model = ThreeItems()
    model.item_embedding = SimpleNamespace(weight=weight)
    model.encode = lambda interaction: torch.full((len(interaction), 1), 0.25)
    product = torch.tensor([0.0, 1.0, 0.25, 0.25])
    model.full_sort_predict = lambda interaction: (product + torch.tensor([0.0, 0.0, 0.6, -0.3])).repeat(
        len(interaction), 1
    )
    loader = [(range(1), None, torch.tensor([0, 0]), torch.tensor([1, 2]))]
    found = control.ranks_by_strength(model, loader, "norm", *model.items)
    for c, arrays in zip(control.STRENGTHS["norm"], found, strict=True):
        first = 2**-c > 0.6 + 0.25 * 2**c
        assert arrays["rank"].tolist() == ([1, 2] if first else [2, 1]), c
    assert found[0]["rank"].tolist() == [1, 2] and found[-1]["rank"].tolist() == [2, 1]


def test_the_strength_with_the_best_tail_that_keeps_the_overall_is_chosen(monkeypatch):
    def arrays(*rank):  # one head target and two of the tail
        return {"target": np.array([1, 2, 3]), "tail": np.array([True, False, True, True]), "rank": np.array(rank)}

    # NDCG@10 overall: (1 + 0 + 1/2) / 3 = .5, .54, .46, .5; on the tail .25, .32, .69, .25
    valid = [arrays(1, 11, 3), arrays(1, 11, 2), arrays(11, 2, 2.5), arrays(1, 3, 11)]
    assert control.chosen(valid) == 1
    monkeypatch.setattr(control, "KEPT", 0.5)
    assert control.chosen(valid) == 2


def test_the_control_names_what_it_does_not_find(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["popularity_control.py", f"--folder={tmp_path}"])
    assert exit_code_of(control.main) == 2
    assert "holds no comparison.json" in capsys.readouterr().err
    record, arrays = make_run("CE trained SASRec", 1, 0.05, 0.03)
    table = {"runs": [write_run(tmp_path, record, arrays).stem], "rows": [{"label": record["label"]}]}
    (tmp_path / "comparison.json").write_text(json.dumps(table))
    monkeypatch.setattr(sys, "argv", ["popularity_control.py", f"--folder={tmp_path}", "--entry=CE traind SASRec"])
    assert exit_code_of(control.main) == 2
    assert "Did you mean 'CE trained SASRec'?" in capsys.readouterr().err


# -- the front


def test_a_bound_takes_the_best_tail_within_it_or_the_nearest_epoch():
    pairs = ((0.100, 0.020), (0.098, 0.021), (0.099, 0.022), (0.096, 0.026), (0.0955, 0.027))
    valid = [{"ndcg@10": overall, "tailndcg@10": tail} for overall, tail in pairs]
    assert [front.taken(valid, bound) for bound in (0.995, 0.985, 0.97, 0.96, 0.95)] == [2, 2, 2, 3, 4]


def test_a_row_of_the_front_worked_by_hand():
    def epoch(overall, *rank):  # one head target and two of the tail
        arrays = {"target": np.array([1, 2, 3]), "tail": np.array([True, False, True, True]), "rank": np.array(rank)}
        return {"ndcg@10": overall, "tailndcg@10": overall / 2}, arrays

    by_seed = [[epoch(0.5, 1, 11, 1), epoch(0.49, 3, 1, 1)], [epoch(0.5, 1, 1, 11), epoch(0.4, 11, 1, 3)]]
    row = front.compared(by_seed, 0.97)
    # Overall (1/2 + 1 + 1) / 3 and (0 + 1 + 1/2) / 3 after 2/3 twice; tail 1 and 3/4 after 1/2 twice.
    assert row["epochs"] == [1, 1] and row["ndcg@10"] == pytest.approx(4 / 6)
    assert row["ndcg@10 change"] == pytest.approx(0) and row["tailndcg@10"] == pytest.approx(0.875)
    assert row["tailndcg@10 change"] == pytest.approx(0.75) and row["headndcg@10 change"] == pytest.approx(-0.75)
    assert front.compared(by_seed, None)["tailndcg@10 change"] == 0
    rows = front.corrected([{f"{metric} p": p for metric in front.METRICS} for p in (0.001, 0.5)])
    assert rows[0]["ndcg@10 p"] == pytest.approx(0.01) and rows[1]["ndcg@10 p"] == 1


def test_the_front_measures_the_reference_and_every_epoch(tiny_dataset, tmp_path, monkeypatch, capsys):
    own = {key: value for key, value in tiny_dataset.items() if key not in ("dataset", "data_path", "checkpoint_dir")}
    settings = " ".join(f"{key}={json.dumps(value).replace(' ', '')}" for key, value in own.items() if value != "")
    options = ["--dataset=tiny", f"--data_path={tiny_dataset['data_path']}", "--seeds=2", "--epochs=3"]
    monkeypatch.setattr(sys, "argv", ["front.py", *options, f"--settings={settings}", "--output=made/trade"])
    assert exit_code_of(front.main) == 0
    printed = capsys.readouterr().out
    assert [printed.count(f"epoch {number}:") for number in range(5)] == [2, 2, 2, 2, 0]
    rows = list(csv.DictReader(Path("made/trade.csv").read_text().splitlines()))
    assert [row["bound"] for row in rows] == ["", *map(str, front.BOUNDS)]
    assert rows[0]["epochs"] == "[0, 0]" and all(0 <= float(row["tailndcg@10"]) <= 1 for row in rows)

    more = [f"--settings={settings} alpha_tail=1", "--output=made/trade"]
    monkeypatch.setattr(sys, "argv", ["front.py", *options, *more])
    assert exit_code_of(front.main) == 0
    both = list(csv.DictReader(Path("made/trade.csv").read_text().splitlines()))
    assert both[: len(rows)] == rows and len(both) == 2 * len(rows)
    figure = front.draw(both)
    assert len(figure.axes[0].lines) == 2 and Path("made/trade.png").stat().st_size > 5000
    drawn = figure.axes[0].lines[1].get_xydata()
    assert drawn[:, 1] == pytest.approx([100 * float(row["tailndcg@10 change"]) for row in both[len(rows) :]])

    monkeypatch.setattr(sys, "argv", ["front.py", *options, *more, "--seeds=3"])
    assert exit_code_of(front.main) == 2 and "made/trade.csv' holds rows with " in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["front.py", "--settings=tua=1"])
    assert exit_code_of(front.main) == 2 and "Did you mean 'tau'?" in capsys.readouterr().err
