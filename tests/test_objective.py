"""The objective: scores, constraints, refusals, and what it does to a run."""

from pathlib import Path

import pytest

from recbole_pref import checkpoint
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.objective import Objective, check_objective
from recbole_pref.quick_start import run_recbole_pref


def test_a_weighted_sum():
    objective = Objective({"NDCG@10": 0.25, "TailNDCG@10": 0.75})
    assert objective.score({"ndcg@10": 0.4, "tailndcg@10": 0.2}) == pytest.approx(0.25)


def test_metrics_with_better_lower_values_have_the_opposite_sign():
    assert Objective({"AveragePopularity@10": 1.0}).score({"averagepopularity@10": 3.0}) == -3.0


def test_results_within_the_bound_win_and_outside_the_smaller_violation_wins():
    objective = Objective({"TailNDCG@10": 1.0}, {"NDCG@10": 0.1})
    results = [
        {"ndcg@10": 0.05, "tailndcg@10": 0.9},
        {"ndcg@10": 0.09, "tailndcg@10": 0.5},
        {"ndcg@10": 0.1, "tailndcg@10": 0.01},
        {"ndcg@10": 0.2, "tailndcg@10": 0.02},
    ]
    scores = [objective.score(result) for result in results]
    assert scores == sorted(scores) and len(set(scores)) == 4
    assert objective.violation(results[0]) == pytest.approx(0.5)
    assert objective.violation(results[2]) == 0


def test_a_metric_that_is_not_a_number_violates_its_bound():
    objective = Objective({"TailNDCG@10": 1.0}, {"NDCG@10": 0.1})
    assert objective.score({"ndcg@10": float("nan"), "tailndcg@10": 0.9}) < objective.score(
        {"ndcg@10": 0.01, "tailndcg@10": 0.0}
    )


def test_bounds_win_over_metrics_above_one():
    for weights in ({"AveragePopularity@10": 1.0}, {"ShannonEntropy@10": -3.0, "NDCG@10": 1.0}):
        objective = Objective(weights, {"NDCG@10": 0.05})
        inside = {"averagepopularity@10": 80.0, "shannonentropy@10": 9.0, "ndcg@10": 0.05}
        for popularity in (0.0, 80.0, 1e6):
            outside = {**inside, "averagepopularity@10": popularity, "ndcg@10": 0.01}
            assert objective.score(outside) < objective.score(inside)
            assert objective.score(outside) < objective.score({**outside, "ndcg@10": 0.02})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("TailNDCG@10", "names no weights"),
        ({"weights": {}}, "names no weights"),
        ({"weights": {"TailNDGC@10": 1}}, "Did you mean 'tailndcg'"),
        ({"weights": {"TailNDCG@7": 1}}, "add 7 to it"),
        ({"weights": {"NDCG@10": "big"}}, "is not a number"),
        ({"weights": {"NDCG@10": 1}, "bound": {}}, "holds 'bound'"),
        ({"weights": {"NDCG@10": 1}, "at_least": [1]}, "is not a dict"),
    ],
)
def test_mistakes_are_named(wanted, words):
    with pytest.raises(PrefError, match=words):
        check_objective(wanted, ["NDCG", "TailNDCG"], [5, 10])


def test_the_best_epoch_follows_the_objective(tiny_dataset):
    settings = {**tiny_dataset, "epochs": 6, "eval_step": 1, "learning_rate": 0.01}
    wanted = {"weights": {"TailNDCG@10": 1.0}, "at_least": {"NDCG@10": 0.01}}
    result = run_recbole_pref("LPOSASRec", config_dict={**settings, "objective": wanted})
    scores = [Objective(**wanted).score(row) for row in result["history"]]
    assert result["best_valid_score"] == max(scores)
    best = result["history"][scores.index(max(scores))]
    assert result["best_valid_result"]["tailndcg@10"] == best["tailndcg@10"]
    assert result["valid_score_bigger"] is True


def test_shares_of_the_reference_become_bounds():
    objective = Objective({"TailNDCG@10": 1.0}, {"NDCG@10": 0.05}, {"NDCG@10": 0.9, "Hit@10": 1.0})
    objective.take_reference({"ndcg@10": 0.1, "hit@10": 0.3})
    assert objective.at_least == {"ndcg@10": pytest.approx(0.09), "hit@10": 0.3}


def test_a_run_keeps_what_its_reference_reached(tiny_dataset, tmp_path):
    settings = {**tiny_dataset, "epochs": 6, "eval_step": 1, "learning_rate": 0.003, "reference": "auto"}
    settings |= {"reference_epochs": 6, "reference_learning_rate": 0.003, "keep_last": 9, "stopping_step": 9}
    wanted = {"weights": {"TailNDCG@10": 1.0}, "of_reference": {"NDCG@10": 0.95}}
    result = run_recbole_pref("LPOSASRec", config_dict={**settings, "objective": wanted})
    folder = Path(settings["checkpoint_dir"])
    state = checkpoint.load(next(folder.glob("*-last-6.pth")))
    bound = 0.95 * state["reference_result"]["ndcg@10"]
    scores = [Objective(wanted["weights"], {"NDCG@10": bound}).score(row) for row in result["history"]]
    assert result["best_valid_score"] == pytest.approx(max(scores))
    for number in (4, 5, 6):
        next(folder.glob(f"*-last-{number}.pth")).unlink()
    again = run_recbole_pref("LPOSASRec", config_dict={**settings, "objective": wanted, "resume": True})
    assert again["history"] == result["history"]


def test_shares_of_a_reference_need_one(tiny_dataset):
    wanted = {"weights": {"TailNDCG@10": 1.0}, "of_reference": {"NDCG@10": 0.95}}
    with pytest.raises(PrefError, match="reference is 'none'"):
        run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "objective": wanted})
