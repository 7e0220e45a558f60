"""Lists of other systems get the numbers that our evaluator gives to the same ranking."""

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.utils.case_study import full_sort_topk

from recbole_pref import compare, evaluate_tool, report
from recbole_pref.compare.plan import plan_runs
from recbole_pref.compare.runs import train_and_record
from recbole_pref.errors import PrefError
from recbole_pref.evaluate_tool import evaluate_lists, read_lists
from recbole_pref.evaluation import evidence
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref
from recbole_pref.records import read_runs
from tests.conftest import tiny_sequences

METRICS = ["Hit", "NDCG", "MRR", "TailNDCG", "HeadHit", "WPAUC", "ItemCoverage", "TailPercentage"]


def lists_of(checkpoint, k=10, part="test"):
    """Return the config, and the lists of a trained model for the test or validation rows."""
    config, model, dataset, _, *loaders = load_data_and_model(checkpoint, state="ERROR")
    loader = loaders[part == "test"]
    model.eval()
    users = np.arange(1, dataset.user_num)
    scores, items = full_sort_topk(users, model, loader, k, torch.device("cpu"))
    frame = pd.DataFrame(
        {
            "user": dataset.id2token("user_id", users.repeat(k)),
            "item": dataset.id2token("item_id", items.flatten().numpy()),
            "score": scores.flatten().numpy(),
            "rank": np.tile(np.arange(1, k + 1), len(users)),
        }
    )
    return config, frame


@pytest.mark.parametrize("model", ["CESASRec", "BPR", "TALE"])
@pytest.mark.parametrize("part", ["test", "valid"])
def test_a_models_own_lists_get_the_models_numbers(tiny_dataset, tmp_path, model, part):
    settings = {**tiny_dataset, "epochs": 1, "metrics": METRICS, "eval_args": {"split": {"LS": "valid_and_test"}}}
    if model == "BPR":
        settings["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
    result = run_recbole_pref(model, config_dict=settings)
    config, frame = lists_of(result["checkpoint"], part=part)
    frame.sample(frac=1, random_state=0).drop(columns="rank").to_csv(tmp_path / "scores.csv", index=False)
    frame[::-1].drop(columns="score").to_parquet(tmp_path / "ranks.parquet")
    expected = result["test_result"] if part == "test" else result["best_valid_result"]
    for name in ("scores.csv", "ranks.parquet"):
        evaluation = evaluate_lists(read_lists(tmp_path / name), config, part)
        assert evaluation.result == pytest.approx(dict(expected), abs=1e-9) and not evaluation.notes
    values, _ = evidence.user_values(evaluation.arrays, "ndcg@10")
    assert values.mean() == pytest.approx(expected["ndcg@10"], abs=1e-4)


@pytest.fixture
def model_lists(tiny_dataset):
    result = run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "epochs": 1})
    return result, *lists_of(result["checkpoint"])


def test_missing_items_count_as_misses(model_lists):
    result, config, frame = model_lists
    cut = frame[(frame["rank"] <= 5) & (frame["user"] != "u7")]
    evaluation = evaluate_lists(cut[["user", "item"]], config)
    of_u7 = sum(frame["item"][frame["user"] == "u7"] == f"i{tiny_sequences()[7][-1]}")
    assert of_u7 or evaluation.result["hit@5"] == result["test_result"]["hit@5"]
    assert evaluation.result["hit@10"] == evaluation.result["hit@5"]
    assert evaluation.notes == [
        "60 of 60 test rows have lists shorter than topk=10, 1 have no list: missing items count as misses."
    ]
    assert (evaluation.arrays["top"][:, 5:] == 0).all() and "tail_gap" not in evaluation.arrays
    config["metrics"] = ["ItemCoverage"]
    with pytest.raises(PrefError, match="60 of 60 lists are shorter than topk=10"):
        evaluate_lists(cut[["user", "item"]], config)
    nothing = evaluate_lists(cut[:0], config_with(config, ["Hit"]))
    assert nothing.result == {"hit@5": 0.0, "hit@10": 0.0}


def config_with(config, metrics):
    config["metrics"] = metrics
    return config


def test_unknown_users_and_items_are_refused_or_skipped(model_lists):
    _, config, frame = model_lists
    more = pd.DataFrame({"user": ["u1", "nobody"], "item": ["i99", "i1"]})
    lists = pd.concat([more, frame[["user", "item"]]])
    with pytest.raises(PrefError, match="the item 'i99' is not in the data set 'tiny'.*'i9'"):
        evaluate_lists(lists, config)
    evaluation = evaluate_lists(lists, config, unknown="skip")
    assert evaluation.result == evaluate_lists(frame, config).result
    assert [note.split(":")[0] for note in evaluation.notes] == [
        "1 listed items are not in the data set", "1 users are not in the data set",
    ]  # fmt: skip


def test_metrics_that_lists_cannot_answer_are_refused(model_lists):
    _, config, frame = model_lists
    for metrics in (["GAUC"], ["NDCG", "GAUC"]):
        with pytest.raises(PrefError, match="need the scores of all items"):
            evaluate_lists(frame, config_with(config, metrics))
    config_with(config, ["NDCG"])["eval_args"]["mode"] = {"valid": "uni5", "test": "uni5"}
    with pytest.raises(PrefError, match="lists need full ranking"):
        evaluate_lists(frame, config)


@pytest.mark.parametrize(
    "text, match",
    [
        ("user,item\na,1\n", "it needs user, item, and rank or score"),
        ("user,item,rank\na,1,first\n", "row 1 lacks user, item or a number as rank"),
        ("user,item,score\na,1,2\n,1,2\n", "row 2 lacks user"),
        ("user,item,rank\na,1,1\na,1,2\n", "lists the item '1' twice for the user 'a'"),
    ],
)
def test_files_that_are_not_lists_are_refused(tmp_path, text, match):
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(PrefError, match=match):
        read_lists(tmp_path / "in.csv")


def test_command_line(model_lists, tiny_dataset, tmp_path, capsys):
    result, _, frame = model_lists
    frame.to_csv(tmp_path / "top.csv", index=False)
    words = [f"--recommendations={tmp_path / 'top.csv'}", "--topk=5,10", "--MAX_ITEM_LIST_LENGTH=8"]
    assert evaluate_tool.main([*words, "--dataset=tiny", f"--data_path={tiny_dataset['data_path']}"]) == 0
    printed = capsys.readouterr().out
    assert "top on tiny, test set" in printed and f"{result['test_result']['tailndcg@10']:.4f}" in printed
    assert evaluate_tool.main(words) == 2 and "--dataset is missing" in capsys.readouterr().err
    assert evaluate_tool.main([*words, "--dataset=tiny", "--topkk=3"]) == 2
    assert "topkk" in capsys.readouterr().err


def test_lists_enter_the_table_tests_and_report_of_a_comparison(tiny_dataset, tmp_path, capsys, monkeypatch):
    settings = {key: tiny_dataset[key] for key in set(tiny_dataset) - {"checkpoint_dir", "dataset"}}
    settings |= {"epochs": 1, "state": "ERROR"}
    arguments = {
        "models": "CESASRec",
        "dataset": "tiny",
        "seeds": 1,
        "config_dict": settings,
        "output": tmp_path / "out",
    }
    (task,) = plan_runs(compare.parse_entries("CESASRec"), "tiny", 1, None, settings, tmp_path / "out")
    (tmp_path / "out" / "tasks").mkdir(parents=True)
    train_and_record(task)  # in this process, which has imported everything
    compare.compare(**arguments)
    (run,) = read_runs(tmp_path / "out")
    _, frame = lists_of(tmp_path / "out" / run.checkpoint)
    frame.to_csv(tmp_path / "top.csv", index=False)
    frame[frame["rank"] > 1].to_csv(tmp_path / "worse.csv", index=False)
    words = [f"--recommendations={tmp_path / 'top.csv'}", f"--comparison={tmp_path / 'out'}"]
    assert evaluate_tool.main([*words, "--label=CESASRec"]) == 2
    assert "is a model of the comparison" in capsys.readouterr().err
    assert (
        evaluate_tool.main([*words, "--metrics=NDCG"]) == 2
        and "add them to --metrics and --topk" in capsys.readouterr().err
    )
    for more, match in (("--dataset=tiny", "--dataset has no effect"), ("--part=valid", "shows the test set")):
        assert evaluate_tool.main([*words, more]) == 2 and match in capsys.readouterr().err
    assert evaluate_tool.main([*words, "--label=production"]) == 0
    assert "to add it to table, tests and report" in capsys.readouterr().out
    words[0] = f"--recommendations={tmp_path / 'worse.csv'}"
    assert evaluate_tool.main([*words, "--seed=2020"]) == 0
    assert "60 of 60 test rows have lists shorter" in capsys.readouterr().err

    rows = {row["label"]: row for row in compare.compare(**arguments).rows}
    assert list(rows) == ["CESASRec", "production", "worse"]
    assert rows["production"]["ndcg@10"]["mean"] == rows["CESASRec"]["ndcg@10"]["mean"]
    assert rows["production"]["ndcg@10"]["p"] == 1.0  # tested on the same rows
    assert rows["worse"]["ndcg@10"]["difference"] != 0 and rows["worse"]["ndcg@10"]["p"] < 1
    monkeypatch.setattr(report.plots, "figures", lambda *given, **named: {})  # which take a minute
    assert "production" in report.write_report(tmp_path / "out").read_text()
    assert "worse" in (tmp_path / "out" / "table.md").read_text()
    assert evaluate_tool.main([*words, "--seed=2020"]) == 0  # measured again under its own label

    (tmp_path / "out" / "comparison.json").unlink()
    (tmp_path / "out" / "runs" / f"{run.id}.json").unlink()
    assert evaluate_tool.main(words) == 2
    assert "holds no run of a model: name the folder of a comparison" in capsys.readouterr().err
