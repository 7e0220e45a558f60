"""Sweeps before their first trial: sweep files, objectives, schedulers, and refusals of wrong settings."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler, pbt

from recbole_pref import cli
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
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
from recbole_pref.tune.results import finish
from recbole_pref.tune.space import Domain, as_setting, read_plan
from recbole_pref.tune.trial import _train

pytestmark = pytest.mark.usefixtures("no_memory_check")

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


@pytest.fixture
def settings(settings):
    return {**settings, "epochs": 4, "eval_step": 1}


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
        ({"objective": {**KEPT, "keep": "NDCG"}}, {}, "^tune: objective: keep='NDCG' .* write NDCG@5"),
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


@pytest.mark.parametrize("metrics", [None, {"best_score": 0.1, "epoch": 1}])
def test_failed_trials_are_not_successful_even_if_they_reported(settings, tmp_path, metrics):
    failed = SimpleNamespace(
        path=str(tmp_path / "t1"), metrics=metrics, config={"tau": 0.1},
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
