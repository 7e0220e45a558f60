"""Sweeps: sweep files, objectives, early stopping, restarts, resume, two machines, the winner."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import ray
import yaml
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler, pbt

from recbole_pref import checkpoint, cli
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.tune import (
    _check_corners,
    _cross_entropy_score,
    _fixed_settings,
    _objective,
    _shared,
    _store_or_compare,
    tune,
)
from recbole_pref.tune.algorithms import make_scheduler, make_searcher
from recbole_pref.tune.memory_check import check as check_memory
from recbole_pref.tune.results import finish
from recbole_pref.tune.space import SCHEDULERS, Domain, as_setting, read_plan
from recbole_pref.tune.trial import _train

SPACE = {"tau": {"loguniform": [0.05, 2.0]}, "num_negatives": {"quniform": [1, 4, 1]}}

# -- sweep files


def test_a_sweep_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "space:\n  tau: {loguniform: [5e-2, 2.0]}\n  lambda: {grid: [0.1, 1]}\n  alpha_tail: 2.0\n"
        "search: random\nscheduler: {name: asha, grace_epochs: 2}\nnum_samples: 3\n"
    )
    plan = read_plan(file)
    assert plan.space["tau"] == Domain("loguniform", (0.05, 2.0))
    assert plan.space["alpha_tail"] == Domain("fixed", (2.0,))
    assert plan.scheduler_options == {"grace_epochs": 2, "reduction_factor": 3}
    assert plan.trials == 6
    assert read_plan(file, num_samples=5).trials == 10


def test_the_shipped_sweep_file_is_one():
    file = Path(__file__).resolve().parents[1] / "properties" / "tune" / "lpo.yaml"
    assert set(read_plan(file).space) == {"tau", "lambda", "alpha_tail", "num_negatives"}


BETA = ("DPO", "SDPO", "DMPO", "DynamicPO", "RoDPO", "HaNoRec", "SPRec", "SimPO", "MPPO")


@pytest.mark.parametrize(
    "model, name",
    [
        *((f"CE{backbone}", f"ce-{backbone}") for backbone in ("SASRec", "GRU4Rec", "Caser")),
        *((f"{method}SASRec", "preference") for method in BETA),
        ("TAWinSASRec", "tawin"),
        ("ORPOSASRec", "orpo"),
    ],
)
def test_the_sweep_of_a_model_searches_what_it_has(model, name):
    plan = read_plan(Path(__file__).resolve().parents[1] / "properties" / "tune" / f"{name}.yaml")
    assert (plan.objective, plan.scheduler) == ("NDCG@10", "asha")
    assert set(plan.space) <= set(Config(model, "ml-100k").final_config_dict)
    _check_corners(Config(model, "ml-100k"), {}, plan)


def test_recboles_own_files_are_read(tmp_path):
    file = tmp_path / "hyper.test"
    file.write_text(
        "learning_rate loguniform -8,0\nembedding_size choice [64,96 , 128]\n\n"
        "hidden_dropout_prob quniform 0.1,0.5,0.1\nlambda uniform 0,1\n"
    )
    space = read_plan(file).space
    assert space["learning_rate"].values == pytest.approx((0.00033546, 1.0), rel=1e-4)
    assert space["embedding_size"] == Domain("choice", (64, 96, 128))
    assert space["hidden_dropout_prob"] == Domain("quniform", (0.1, 0.5, 0.1))
    by_type = tmp_path / "hyper.yaml"
    by_type.write_text("choice:\n  embedding_size: [64, 96]\nuniform:\n  lambda: [0, 1]\n")
    assert read_plan(by_type).space["embedding_size"] == Domain("choice", (64, 96))
    file.write_text("learning_rate loguniform\n")
    with pytest.raises(PrefError, match="line 1"):
        read_plan(file)


def wrong(**changes):
    return {"space": SPACE, **changes}


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({}, "space is empty"),
        (wrong(spce=1), "Did you mean 'space'"),
        (wrong(space={"tua": {"uniform": [0, 1]}}), "tua is not a setting.*Did you mean 'tau'"),
        (wrong(space={"tau": {"uniform": [2, 1]}}), "set a low end below the high end"),
        (wrong(space={"tau": {"uniform": [1]}}), r"takes \[low, high\]"),
        (wrong(space={"tau": {"loguniform": [0, 1]}}), "above 0"),
        (wrong(space={"tau": {"quniform": [0.1, 1, 5]}}), "needs a step"),
        (wrong(space={"tau": {"quniform": [0.1, 1, 0.3]}}), "multiples of the step"),
        (wrong(space={"tau": {"unifrom": [0, 1]}}), "Did you mean 'uniform'"),
        (wrong(space={"tau": {"uniform": [-1, 1]}}), "tau=-1 is not accepted"),
        (wrong(space={"num_negatives": {"choice": [1, 0]}}), "num_negatives=0"),
        (wrong(space={"num_negatives": {"uniform": [1, 5]}}), "num_negatives takes whole numbers.*randint"),
        (wrong(space={"train_batch_size": {"loguniform": [32, 256]}}), "train_batch_size takes whole numbers"),
        (wrong(space={"num_negatives": {"quniform": [1, 5, 0.5]}}), "num_negatives takes whole numbers"),
        (wrong(space={"tau": {"choice": "x"}}), "takes a list"),
        (wrong(space={"tau": 1.0}), "is fixed"),
        (wrong(search="optina"), "Did you mean 'optuna'"),
        (wrong(search="bohb"), "needs scheduler: hyperband"),
        (wrong(scheduler={"name": "asha", "grace_epoch": 1}), "Did you mean 'grace_epochs'"),
        (wrong(scheduler={"name": "asha", "grace_epochs": 0}), "above 0"),
        (wrong(scheduler={"name": "asha", "reduction_factor": 1}), "reduction_factor=1 .* above 1"),
        (wrong(scheduler={"name": "hyperband", "reduction_factor": 1}), "reduction_factor=1 .* above 1"),
        (wrong(scheduler={"name": "median", "min_trials": float("inf")}), "min_trials=inf"),
        (wrong(scheduler={"name": "pbt", "quantile": 0.9}), "quantile=0.9 .* at most 0.5"),
        (wrong(space={"tau": {"grid": [0.1, 1]}}, search="optuna"), "grid is not possible with"),
        (wrong(space={"tau": {"grid": [0.1, 1]}}, scheduler="pbt"), "'pbt' changes settings"),
        (wrong(num_samples=0), "num_samples=0"),
        ("missing.yaml", "cannot be read"),
    ],
)
def test_mistakes_in_sweep_files_are_named(sweep, words):
    with pytest.raises(PrefError, match=words):
        read_plan(sweep)


def test_counts_stay_whole():
    assert as_setting("num_negatives", 4.0) == 4 and isinstance(as_setting("num_negatives", 4.0), int)
    assert isinstance(as_setting("tau", 1.0), float)


KEPT = {"maximize": "TailNDCG@10", "keep": "NDCG@10"}


@pytest.fixture(autouse=True)
def no_estimate(monkeypatch):
    """Start sweeps without the estimate of their memory, which takes seconds."""
    monkeypatch.setattr("recbole_pref.tune.memory_check.check", lambda *arguments: None)


@pytest.fixture
def settings(tiny_dataset):
    keys = set(tiny_dataset) - {"checkpoint_dir", "dataset"}
    return {**{key: tiny_dataset[key] for key in keys}, "epochs": 4, "eval_step": 1}


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({}, {"eval_step": 9}, "never validates"),
        ({"space": {**SPACE, "eval_step": 9}}, {}, "never validates"),
        ({}, {"eval_args": {"split": {"LS": "test_only"}}}, "split: .*test_only.* leaves no validation rows"),
        ({}, {"eval_args": {"split": {"RS": [8, 0, 2]}}}, "leaves no validation rows"),
        ({"space": {"eval_step": {"choice": [1, 9]}}}, {}, "with .'eval_step': 9.: .*never validates"),
        ({"space": {**SPACE, "tau": -1}}, {}, "tau=-1 is not accepted"),
        (
            {"space": {"dropout_prob": {"uniform": [0.1, 0.5]}}},
            {},
            "LPOSASRec has no setting dropout_prob.*attn_dropout_prob",
        ),
        ({"space": {"gamma": {"uniform": [0.1, 1]}}}, {}, "^tune: space: LPOSASRec has no setting gamma"),
        ({"space": {"hidden_size": {"choice": [8, 16]}}, "scheduler": "pbt"}, {}, "'pbt' .* if hidden_size differs"),
        ({"space": {"learner": {"choice": ["adam", "sgd"]}}, "scheduler": "pbt"}, {}, "'pbt' .* if learner differs"),
        (
            {"space": {"model": {"choice": ["LPOSASRec", "CESASRec"]}}},
            {},
            "model is the same for all trials.*--compare",
        ),
        ({"space": {"objective": {"choice": ["NDCG@10", "Hit@10"]}}}, {}, "objective is the same for all trials"),
        ({"space": {"gpu_id": {"choice": [0, 1]}}}, {}, "gpu_id is the same for all trials.*--gpus_per_trial"),
        ({"objective": KEPT}, {"ce_weight": 0}, "objective: baseline: .*ce_weight"),
        ({"space": {"run_stem": {"choice": ["a", "b"]}}}, {}, "set by the sweep"),
        ({"objective": "TailNDCG@7"}, {}, "add 7 to it"),
        ({"objective": {"maximize": "TailNDCG@10"}}, {}, "is not valid"),
        ({"objective": {**KEPT, "baseline": "LPO"}}, {}, "baseline='LPO' .* CE or a number"),
        ({"objective": {**KEPT, "baseline": None}}, {}, "baseline=None"),
        ({"objective": {**KEPT, "percent_below": "1%"}}, {}, "percent_below='1%'"),
        ({"objective": {**KEPT, "percent_below": 100}}, {}, "percent_below=100 .* below 100"),
        ({"objective": {**KEPT, "keep": "NDCG"}}, {}, "^tune: objective='NDCG' .* write NDCG@5"),
        (
            {"objective": "NDCG", "space": {"MAX_ITEM_LIST_LENGTH": {"choice": [4, 8]}}},
            {},
            "^tune: objective='NDCG' .* write NDCG@5",
        ),
        (
            {"space": {"valid_metric": {"choice": ["NDCG@10", "Hit@10"]}}},
            {},
            "valid_metric is the same .* set objective",
        ),
        (
            {"scheduler": "asha", "space": {"prior": {"choice": ["none", "TALE"]}}},
            {},
            "'asha' would compare trials before prior='TALE' is added .* set scheduler: none",
        ),
    ],
)
def test_mistakes_end_before_ray_starts(settings, tmp_path, monkeypatch, changes, more, words):
    def started(*arguments):
        raise AssertionError("the sweep began")

    monkeypatch.setattr("recbole_pref.tune._start_ray", started)
    monkeypatch.setattr("recbole_pref.tune.run_recbole_pref", started)  # which trains the baseline
    with pytest.raises(PrefError, match=words):
        tune("LPOSASRec", "tiny", wrong(**changes), config_dict={**settings, **more},
             storage_path=str(tmp_path))  # fmt: skip


def test_a_bound_allows_what_is_somewhat_worse_than_the_baseline():
    config = {"metrics": ["NDCG", "TailNDCG", "GiniIndex"], "topk": [10]}

    def bounds(**keep):
        plan = read_plan(wrong(objective={**KEPT, "percent_below": 10, **keep}))
        return _objective(plan, config, {}, lambda metric: 0.5)["at_least"]

    assert bounds() == {"NDCG@10": pytest.approx(0.45)}
    assert bounds(keep="GiniIndex@10") == {"GiniIndex@10": pytest.approx(0.55)}  # lower is better
    assert bounds(baseline=0.2) == {"NDCG@10": pytest.approx(0.18)}


def test_a_random_search_limits_its_trials():
    def searcher(**more):
        return make_searcher(read_plan(wrong(**more)), 1)

    assert searcher(max_concurrent=2).max_concurrent == 2
    assert searcher().max_concurrent == 0  # as many as fit


def test_population_based_training_stays_in_the_space():
    space = {
        "lpo_space": {"choice": ["probability", "logit"]},
        "pool_size": {"choice": [5, 10, 20]},
        "num_negatives": {"randint": [1, 5]},
        "hidden_dropout_prob": {"quniform": [0.1, 0.5, 0.1]},
        "tau": {"loguniform": [0.05, 2.0]},
    }
    scheduler = make_scheduler(read_plan(wrong(space=space, scheduler="pbt")), 9)
    params = {"lpo_space": "logit", "pool_size": 10, "num_negatives": 2, "hidden_dropout_prob": 0.3, "tau": 1.0}
    seen = {key: set() for key in space}
    for _ in range(300):
        params, _ = pbt._explore(
            params, scheduler._hyperparam_mutations, 0.25, (0.8, 1.2), scheduler._custom_explore_fn
        )
        for key, value in params.items():
            seen[key].add(round(value, 9) if key == "hidden_dropout_prob" else value)
    assert seen["lpo_space"] == {"probability", "logit"} and seen["pool_size"] == {5, 10, 20}
    assert seen["num_negatives"] == {1, 2, 3, 4}
    assert seen["hidden_dropout_prob"] == {0.1, 0.2, 0.3, 0.4, 0.5}
    assert 0.05 <= min(seen["tau"]) < max(seen["tau"]) <= 2


class RaySide:
    """What HyperBand sees of Ray: trials that run, and stops that it hears of."""

    def __init__(self, epochs, n_trials):
        self.scheduler = make_scheduler(read_plan(wrong(scheduler="hyperband")), epochs)
        self.trials = [mock.Mock(status=Trial.PENDING, is_saving=False) for _ in range(n_trials)]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)
            trial.status = Trial.RUNNING

    def get_trials(self):
        return self.trials

    def stop_trial(self, trial):
        self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED

    def report(self, trial, epoch, score):
        return self.scheduler.on_trial_result(self, trial, {"epoch": epoch, "score": score})

    def choose(self):
        return self.scheduler.choose_trial_to_run(self)


def test_hyperband_ends_a_trial_that_was_being_saved_when_the_last_one_reported():
    ray_side = RaySide(epochs=2, n_trials=2)
    saved, last = ray_side.trials
    assert ray_side.report(saved, 2, 0.5) == TrialScheduler.PAUSE  # it runs until it is saved
    assert ray_side.report(last, 2, 0.4) == TrialScheduler.STOP
    ray_side.stop_trial(last)
    assert ray_side.choose() is None and saved.status == Trial.RUNNING
    saved.status = Trial.PAUSED
    assert ray_side.choose() is None and saved.status == Trial.TERMINATED


def test_hyperband_ends_paused_trials_when_the_last_one_stops_early():
    ray_side = RaySide(epochs=2, n_trials=2)
    paused, early = ray_side.trials
    assert ray_side.report(paused, 2, 0.5) == TrialScheduler.PAUSE
    paused.status = Trial.PAUSED
    ray_side.stop_trial(early)
    assert ray_side.choose() is None and paused.status == Trial.TERMINATED


def test_hyperband_wakes_paused_trials_when_the_last_one_of_a_milestone_stops_early():
    ray_side = RaySide(epochs=27, n_trials=4 + 6 + 12)
    for trial in ray_side.trials[:10]:  # two brackets that end at once
        ray_side.stop_trial(trial)
    bracket = ray_side.trials[10:]
    for score, trial in enumerate(bracket):
        if ray_side.report(trial, 3, score) == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
    assert [trial.status for trial in bracket] == [Trial.TERMINATED] * 8 + [Trial.PAUSED] * 3 + [Trial.RUNNING]
    for _ in range(3):
        woken = ray_side.choose()
        woken.status = Trial.RUNNING
        assert ray_side.report(woken, 9, 1 + bracket.index(woken)) == TrialScheduler.PAUSE
        woken.status = Trial.PAUSED
    ray_side.stop_trial(bracket[11])
    assert ray_side.choose() in bracket[9:11] and bracket[8].status == Trial.TERMINATED


def test_failed_trials_that_reported_are_not_successful(settings, tmp_path):
    failed = SimpleNamespace(
        path=str(tmp_path / "t1"), metrics={"best_score": 0.1, "epoch": 1}, config={"tau": 0.1},
        error=RuntimeError("PrefError: the loss is nan"),
    )  # fmt: skip
    plan = read_plan({"space": {"tau": {"uniform": [0.1, 1]}}})
    wanted = {"objective": {"weights": {"NDCG@10": 1.0}}}
    with pytest.raises(PrefError, match="no trial succeeded.*the loss is nan"):
        finish([failed], tmp_path, plan, Config("LPOSASRec", "tiny", config_dict=settings), wanted)


def test_a_baseline_serves_again_with_the_same_settings_alone(settings, tmp_path, monkeypatch):
    trained = []

    def train(name, dataset, config_dict):
        trained.append(config_dict["epochs"])
        return {"best_valid_result": {"ndcg@10": config_dict["epochs"] / 10}}

    monkeypatch.setattr("recbole_pref.tune.run_recbole_pref", train)
    config = Config("LPOSASRec", "tiny", config_dict=settings)
    for epochs in (1, 1, 6):
        score = _cross_entropy_score(config, {**settings, "epochs": epochs}, tmp_path, "ndcg@10")
        assert score == epochs / 10
    assert trained == [1, 6]
    monkeypatch.setattr("recbole_pref.tune.digest_of_defaults", lambda config: "those of an edited file")
    _cross_entropy_score(config, {**settings, "epochs": 6}, tmp_path, "ndcg@10")
    assert trained == [1, 6, 6]
    (tmp_path / "baseline.json").write_text('{"model": "CESAS')
    with pytest.raises(PrefError, match="baseline.json.*delete it"):
        _cross_entropy_score(config, settings, tmp_path, "ndcg@10")


def test_trials_have_the_defaults_that_the_sweep_began_with(settings, tmp_path):
    began = {"settings": {"epochs": 4}, "space": {"tau": [1, 2]}, "num_samples": 3, "defaults": "first"}
    _store_or_compare(tmp_path / "sweep.json", began, resumed=False)
    _store_or_compare(tmp_path / "sweep.json", began, resumed=True)
    for change, words in (
        ({"defaults": "second"}, "other defaults"),
        ({"settings": {"epochs": 4, "hidden_size": 32}}, "another hidden_size"),
        ({"space": {"tau": [1, 3]}}, "another tau"),
        ({"space": {}}, "another tau"),
        ({"num_samples": 9}, "num_samples: 3, not 9"),
    ):
        with pytest.raises(PrefError, match=f"--resume.* began with {words}.*--name"):
            _store_or_compare(tmp_path / "sweep.json", {**began, **change}, resumed=True)
    shared = {"model": "LPOSASRec", "dataset": "tiny", "settings": settings, "resources": (1, 0, 1), "references": {},
              "reference_dir": None, "defaults": "those of an edited file", "data": None}  # fmt: skip
    with pytest.raises(PrefError, match="the defaults changed after the sweep began"):
        _train({"tau": 0.3}, shared, tmp_path, None)


def test_fixed_values_of_the_space_hold_for_baseline_and_scheduler_too(settings, tmp_path, monkeypatch):
    seen = {}

    def train(name, dataset, config_dict):
        seen.update(config_dict)
        raise PrefError("seen enough")

    monkeypatch.setattr("recbole_pref.tune._start_ray", lambda *arguments: None)
    monkeypatch.setattr("recbole_pref.tune._check_resources", lambda *arguments: None)
    monkeypatch.setattr("recbole_pref.tune.run_recbole_pref", train)
    monkeypatch.setattr("recbole_pref.tune.algorithms.make_scheduler", lambda plan, epochs: seen.update(most=epochs))
    space = {**SPACE, "hidden_size": 8, "epochs": 7}
    for resume in (False, True):  # a sweep that ended before its first trial continues
        with pytest.raises(PrefError, match="seen enough"):
            tune("LPOSASRec", "tiny", wrong(objective=KEPT, space=space), config_dict=settings,
                 storage_path=str(tmp_path), resume=resume)  # fmt: skip
    assert (seen["hidden_size"], seen["epochs"], seen["most"]) == (8, 7, 7)
    with pytest.raises(PrefError, match="began with another tau"):
        tune("LPOSASRec", "tiny", wrong(objective=KEPT, space={**space, "tau": {"uniform": [0.1, 0.2]}}),
             config_dict=settings, storage_path=str(tmp_path), resume=True)  # fmt: skip


def test_a_search_learns_from_the_best_validation_and_schedulers_compare_the_latest():
    pytest.importorskip("optuna")
    plan = read_plan(wrong(search="optuna", scheduler="asha"))
    assert make_searcher(plan, 1).metric == "best_score"
    assert make_scheduler(plan, 9)._metric == "score"


def test_storage_that_cannot_be_reached_is_named(settings):
    with pytest.raises(PrefError, match="--storage_path: 'foo://x/.*cannot be reached"):
        tune("LPOSASRec", "tiny", wrong(), config_dict=settings, storage_path="foo://x")


def test_what_ray_refuses_is_reported_before_a_baseline_is_trained(settings, tmp_path, monkeypatch):
    def trained(*arguments, **more):
        raise AssertionError("the baseline was trained")

    monkeypatch.setattr("recbole_pref.tune._start_ray", lambda *arguments: None)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr("recbole_pref.tune.run_recbole_pref", trained)
    with pytest.raises(PrefError, match="more than any machine has"):
        tune("LPOSASRec", "tiny", wrong(objective=KEPT), config_dict=settings,
             storage_path=str(tmp_path), cpus_per_trial=9)  # fmt: skip


def test_files_are_named_from_where_the_sweep_was_started(settings, tmp_path, monkeypatch):
    """Trials work in folders of their own."""
    seen = []

    def checked(config, settings, plan):
        seen.extend(plan.space["reference"].values)
        raise PrefError("checked")

    monkeypatch.setattr("recbole_pref.tune._check_corners", checked)
    space = {"reference": {"choice": ["ce1-best.pth", "auto", str(tmp_path / "ce2-best.pth")]}}
    with pytest.raises(PrefError, match="checked"):
        tune("SDPOSASRec", "tiny", {"space": space}, config_dict=settings, storage_path=str(tmp_path / "s"))
    assert seen == [str(tmp_path / "ce1-best.pth"), "auto", str(tmp_path / "ce2-best.pth")]


def test_several_gpus_and_settings_of_other_models_on_the_command_line(settings, tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "s.yaml"
    sweep.write_text("space: {beta: {uniform: [0.1, 1]}}\n")
    known = {"data_path": settings["data_path"], "MAX_ITEM_LIST_LENGTH": 8, "topk": 10}
    words = ["--model=SDPOSASRec", "--dataset=tiny", f"--tune={sweep}", f"--storage_path={tmp_path}",
             *(f"--{key}={value}" for key, value in known.items())]  # fmt: skip
    seen = []

    def started(address):
        raise PrefError("started")

    monkeypatch.setattr("recbole_pref.tune._start_ray", started)
    monkeypatch.setattr(
        "recbole_pref.tune._store_or_compare", lambda path, inputs, resumed: seen.append(inputs["settings"])
    )
    assert cli.main([*words, "--gpu_id=0,1,2,3"]) == 2
    assert "started" in capsys.readouterr().err and seen[0]["gpu_id"] == [0, 1, 2, 3]
    assert cli.main([*words, "--lpo_space=logit"]) == 2
    assert "SDPOSASRec has no setting lpo_space" in capsys.readouterr().err


def test_references_are_stored_in_the_folder_of_the_user(settings, tmp_path):
    kept, sweep = tmp_path / "kept", tmp_path / "sweep"
    kept.mkdir()
    (kept / "other-SASRec-0.pth").write_bytes(b"of other data")
    plan = read_plan({"space": {"beta": {"uniform": [0.1, 1]}}})
    for named, folder in (({}, sweep / "reference"), ({"reference_dir": str(kept)}, kept)):
        config = Config("SDPOSASRec", "tiny", config_dict={**settings, **named})
        shared = _shared(config, plan, _fixed_settings(config), sweep, (1, 0, 1))
        assert shared["reference_dir"] == str(folder)
        assert list(shared["references"]) == [path.name for path in folder.glob("tiny-*.pth")] != []


# -- sweeps


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for the sweeps of this file that do not kill it."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_sweep_with_early_stopping_and_a_constraint(settings, tmp_path, ray_here, capsys, caplog):
    caplog.set_level("INFO")
    sweep = wrong(
        num_samples=6,
        max_concurrent=1,  # what is stopped depends on the order
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 4},
        search="optuna",
        objective={"maximize": "TailNDCG@10", "keep": "NDCG@10", "percent_below": 90},
    )
    grid = tune("SDPOSASRec", "tiny", {**sweep, "space": {"learning_rate": {"loguniform": [1e-6, 1e-1]}}},
                config_dict=settings, storage_path=str(tmp_path), name="s")  # fmt: skip
    folder = tmp_path / "s"
    assert len(grid) == 6 and not grid.errors
    epochs = [result.metrics["epoch"] for result in grid]
    assert min(epochs) < 4 and max(epochs) == 4  # ASHA stopped some, not all
    assert len(list((folder / "reference").glob("*.pth"))) == 1  # one for all trials
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    bound = json.loads((folder / "baseline.json").read_text())["best_valid_result"]["ndcg@10"] * 0.1
    best = rows[0]
    assert float(best["valid/ndcg@10"]) >= bound
    assert float(best["score"]) == pytest.approx(float(best["valid/tailndcg@10"]))
    for name in ("pareto.png", "parallel_coordinates.png", "table.md", "trials.json"):
        assert (folder / name).stat().st_size > 0
    printed = capsys.readouterr()
    assert "6/6" in printed.err and "best trial" in printed.out
    assert "is illegal" not in caplog.text  # a line per metric and report otherwise
    # the exported file trains the winner again, to the same scores
    exported = json.loads((folder / "best.json").read_text())
    again = run_recbole_pref(
        config_file_list=[str(folder / "best.yaml")], config_dict={"checkpoint_dir": str(tmp_path / "again")}
    )
    assert again["best_valid_score"] == pytest.approx(exported["best_valid_score"], abs=1e-4)
    assert again["test_result"] == pytest.approx(exported["test_result"], abs=1e-4)
    assert checkpoint.load(folder / "best.pth")["model"] == "SDPOSASRec"


@pytest.mark.parametrize("scheduler", ["hyperband", "median", "pbt"])
def test_every_scheduler_ends_well(settings, tmp_path, ray_here, scheduler):
    options = {"pbt": {"interval_epochs": 2}, "median": {"grace_epochs": 1, "min_trials": 1}}
    sweep = {
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}},
        "num_samples": 3,
        "scheduler": {"name": scheduler, **options.get(scheduler, {})},
    }
    grid = tune("LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s")
    assert len(grid) == 3 and not grid.errors
    assert (tmp_path / "s" / "best.json").is_file()
    assert set(SCHEDULERS) >= {scheduler}


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("recbole_pref.tune.results._draw", lambda *arguments: None)


def test_a_sweep_of_a_linear_model(settings, tmp_path, ray_here, no_pictures):
    space = {
        "reg_weight": {"choice": ["auto", 10.0]}, "tau_train": {"uniform": [1, 30]}, "tau_inf": {"uniform": [1, 10]},
        "beta": {"uniform": [-0.5, 0.0]}, "c": {"uniform": [0.0, 0.5]},
    }  # fmt: skip
    sweep = {"space": space, "num_samples": 1, "scheduler": "asha"}
    (trial,) = tune("TALE", "tiny", sweep, config_dict={**settings, "epochs": 1}, storage_path=str(tmp_path), name="s")
    winner = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    assert {key: winner[key] for key in space} == trial.config
    again = run_recbole_pref(config_file_list=[str(tmp_path / "s" / "best.yaml")])
    best = json.loads((tmp_path / "s" / "best.json").read_text())
    assert again["best_valid_score"] == pytest.approx(best["best_valid_score"])
    assert again["test_result"] == pytest.approx(best["test_result"])


def test_a_prior_added_after_training_decides_which_trial_wins(settings, tmp_path, ray_here, no_pictures, monkeypatch):
    prior = run_recbole_pref("TALE", config_dict={**settings, "dataset": "tiny", "checkpoint_dir": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    path = os.path.relpath(prior["checkpoint"])
    sweep = {
        "space": {"prior": {"grid": ["none", path]}, "prior_tau_inf": {"uniform": [1.0, 5.0]}},
        "num_samples": 1,
    }
    tune("CESASRec", "tiny", sweep, config_dict={**settings, "epochs": 1}, storage_path=str(tmp_path), name="s")
    trials = {row["prior"]: row for row in json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]}
    best, plain = trials[os.path.abspath(path)], trials["none"]
    assert best["score"] > plain["score"] and best["epochs"] == 1
    assert all(row["score"] == row["valid/ndcg@10"] for row in trials.values())
    # The winner's checkpoint holds the prior, and its settings train it again.
    again = run_recbole_pref(config_file_list=[str(tmp_path / "s" / "best.yaml")])
    best = json.loads((tmp_path / "s" / "best.json").read_text())
    assert again["best_valid_score"] == pytest.approx(best["best_valid_score"], abs=1e-4)
    assert again["test_result"] == pytest.approx(best["test_result"], abs=1e-4)
    assert checkpoint.load(tmp_path / "s" / "best.pth")["state_dict"]["prior_weight"] > 0


def test_an_exploding_trial_is_marked_and_does_not_stop_the_sweep(settings, tmp_path, ray_here):
    sweep = {"space": {"learning_rate": {"grid": [0.001, 1e30]}}, "num_samples": 1, "max_failures": 1}
    tune("LPOSASRec", "tiny", sweep, config_dict={**settings, "learner": "sgd"},
         storage_path=str(tmp_path), name="s")  # fmt: skip
    good, bad = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert good["state"] == "done" and good["learning_rate"] == 0.001
    assert bad["state"] == "failed" and "not finite" in bad["reason"]
    assert "not finite" in (tmp_path / "s" / "table.md").read_text()


def test_a_sweep_without_a_result_is_reported(settings, tmp_path, ray_here):
    sweep = {"space": {"learning_rate": {"choice": [1e30, 1e31]}}, "num_samples": 1, "max_failures": 0}
    with pytest.raises(PrefError, match="no trial succeeded.*not finite"):
        tune("LPOSASRec", "tiny", sweep, config_dict={**settings, "learner": "sgd"},
             storage_path=str(tmp_path), name="s")  # fmt: skip


def test_trials_may_differ_in_what_shapes_the_data(settings, tmp_path, ray_here):
    sweep = {"space": {"MAX_ITEM_LIST_LENGTH": {"grid": [4, 8]}}, "num_samples": 1}
    grid = tune("LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s")
    assert not grid.errors
    assert len({result.metrics["best_score"] for result in grid}) == 2


def test_trials_that_do_not_fit_into_memory_together_are_refused(settings, tmp_path, ray_here, monkeypatch, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text("space:\n  hidden_size: {choice: [8, 16]}\nnum_samples: 4\n")
    plan = read_plan(file)
    config = Config("LPOSASRec", "tiny", config_dict=settings)
    check_memory(config, _fixed_settings(config), plan, 1, 0)
    first = capsys.readouterr().err
    need = int(re.search(r"the largest trial: about (\d+) MiB and [\d.]+ s per epoch.*; 2 at the same time", first)[1])
    assert 100 < need < 5000
    for free, refused in ((2.5 * need, False), (1.5 * need, True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free * 2**20))
        words = "2 trials .*'hidden_size': 16.* raise --cpus_per_trial"
        with pytest.raises(PrefError, match=words) if refused else contextlib.nullcontext():
            check_memory(config, _fixed_settings(config), plan, 1, 0)


def test_more_than_a_machine_has_is_refused(settings, tmp_path, ray_here):
    with pytest.raises(PrefError, match="more than any machine has"):
        tune("LPOSASRec", "tiny", wrong(), config_dict=settings, storage_path=str(tmp_path), cpus_per_trial=9)


# -- crashes

SCRIPT = """
import json, sys
given = json.loads(sys.argv[1])
if __name__ == "__main__":
    from recbole_pref.tune import memory_check, tune
    memory_check.check = lambda *arguments: None  # takes seconds
    tune("LPOSASRec", "tiny", given.pop("sweep"), **given)
"""
CRASH_SWEEP = {"space": {"tau": {"grid": [0.1, 0.5, 1.0]}}, "num_samples": 1}


def start(settings, storage, epochs=15, **more):
    given = {
        "sweep": CRASH_SWEEP, "name": "s", "storage_path": str(storage),
        "config_dict": {**settings, "epochs": epochs, "stopping_step": epochs}, **more,
    }  # fmt: skip
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(given)], env=environment, start_new_session=True)


def wait_for(condition, seconds=300):
    deadline = time.time() + seconds
    while time.time() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("what the test waits for did not happen")


def trial_processes(process):
    """Ray's processes that run a trial, below a process."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ImplicitFunc.train" in " ".join(child.cmdline()):
                found.append(child)
    return found


def trials_of(folder):
    rows = json.loads((folder / "s" / "trials.json").read_text())["trials"]
    return {row["tau"]: row for row in rows}


def test_killed_trials_and_killed_sweeps_end_as_undisturbed_ones(settings, tmp_path):
    whole, trial_killed, sweep_killed = (tmp_path / name for name in ("whole", "trial", "sweep"))
    stopped = {tmp_path / number.name: number for number in (signal.SIGINT, signal.SIGTERM)}
    assert start(settings, whole).wait() == 0
    expected = trials_of(whole)
    assert set(expected) == {0.1, 0.5, 1.0}

    process = start(settings, trial_killed)
    wait_for(lambda: list(trial_killed.glob("s/*/checkpoint_00000[3-9]")))
    victims = wait_for(lambda: trial_processes(process))
    victims[0].send_signal(signal.SIGKILL)
    assert process.wait() == 0

    process = start(settings, sweep_killed)
    wait_for(lambda: list(sweep_killed.glob("s/*/checkpoint_00000[3-9]")))
    wait_for(lambda: list(sweep_killed.glob("s/tuner.pkl")))
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [psutil.Process(process.pid), *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()
    assert not (sweep_killed / "s" / "trials.json").exists()
    assert start(settings, sweep_killed).wait() != 0  # refused: a sweep is there
    assert start(settings, sweep_killed, resume=True).wait() == 0

    for folder, number in stopped.items():
        process = start(settings, folder)
        wait_for(lambda: list(folder.glob("s/*/checkpoint_00000[3-9]")))
        process.send_signal(number)
        assert process.wait() == 1  # by a KeyboardInterrupt: Ray alone would abort at SIGTERM
        assert not (folder / "s" / "best.yaml").exists()
        assert start(settings, folder, resume=True).wait() == 0

    for folder in (trial_killed, sweep_killed, *stopped):
        found = trials_of(folder)
        assert {tau: row["state"] for tau, row in found.items()} == dict.fromkeys(expected, "done")
        for tau, row in found.items():
            assert row["score"] == expected[tau]["score"] and row["epochs"] == expected[tau]["epochs"]


def test_two_machines_one_of_which_dies(settings, tmp_path):
    from ray.cluster_utils import Cluster

    ray.shutdown()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        process = start(settings, tmp_path, epochs=100, ray_address=cluster.address)
        # Only now, so that the sweep itself runs on the machine that stays.
        wait_for(lambda: list(tmp_path.glob("s/*/checkpoint_*")))
        second = cluster.add_node(num_cpus=1)
        # A trial on each machine is on its way.
        wait_for(lambda: len({path.parent for path in tmp_path.glob("s/*/checkpoint_0000[1-9]*")}) == 2)
        cluster.remove_node(second, allow_graceful=False)
        assert process.wait(timeout=300) == 0
    finally:
        cluster.shutdown()
    found = trials_of(tmp_path)
    assert set(found) == {0.1, 0.5, 1.0}
    assert {row["state"] for row in found.values()} == {"done"}
    assert {row["epochs"] for row in found.values()} == {100}


def test_the_winners_settings_are_plain_yaml(settings, tmp_path, ray_here):
    sweep = {"space": {"tau": {"choice": [0.2]}, "lambda": {"uniform": [0.1, 1]}}, "num_samples": 1}
    tune("LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s", quiet=True)
    chosen = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    assert chosen["model"] == "LPOSASRec" and chosen["dataset"] == "tiny" and chosen["tau"] == 0.2
    assert "checkpoint_dir" not in chosen
