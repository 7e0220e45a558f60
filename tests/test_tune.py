"""Sweeps that run: early stopping, constraints, failures, memory, restarts, resume, the winner."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import ray
import yaml

from recbole_pref import checkpoint
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.tune import _fixed_settings, tune
from recbole_pref.tune.memory_check import check as check_memory
from recbole_pref.tune.space import SCHEDULERS, read_plan

from .conftest import ray_processes, wait_for

pytestmark = pytest.mark.usefixtures("no_memory_check")


@pytest.fixture
def settings(settings):
    return {**settings, "epochs": 4, "eval_step": 1}


@pytest.fixture(scope="module")
def ray_here(workers_find_the_package):
    """One Ray for the sweeps of this file that do not kill it."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_sweep_with_early_stopping_and_a_constraint(settings, tmp_path, ray_here, capsys, caplog):
    caplog.set_level("INFO")
    settings["seed"] = 1  # learning rates of 1e-4, 4e-3 and 1e-6; the second harms the tail
    sweep = {
        "space": {"learning_rate": {"loguniform": [1e-6, 1e-1]}},
        "num_samples": 3,
        "max_concurrent": 1,  # what is stopped depends on the order
        "scheduler": {"name": "asha", "grace_epochs": 1, "reduction_factor": 4},
        "search": "optuna",
        "objective": {"maximize": "TailNDCG@10", "keep": "NDCG@10", "percent_below": 90},
    }
    grid = tune("SDPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s")
    folder = tmp_path / "s"
    assert len(grid) == 3 and not grid.errors
    assert len({result.metrics["pid"] for result in grid}) == 1  # a process imports once for all its trials
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
    assert "3/3" in printed.err and "best trial" in printed.out
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
def test_every_scheduler_ends_well(settings, tmp_path, ray_here, no_pictures, scheduler):
    options = {"pbt": {"interval_epochs": 2}, "median": {"grace_epochs": 1, "min_trials": 1}}
    sweep = {
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "tau": {"choice": [0.2]}},
        "num_samples": 2,
        "scheduler": {"name": scheduler, **options.get(scheduler, {})},
    }
    grid = tune("LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s", quiet=True)
    assert len(grid) == 2 and not grid.errors
    assert set(SCHEDULERS) >= {scheduler}
    winner = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())  # plain YAML
    assert winner["model"] == "LPOSASRec" and winner["dataset"] == "tiny" and winner["tau"] == 0.2
    assert "checkpoint_dir" not in winner


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


def test_an_exploding_trial_is_marked_and_does_not_stop_the_sweep(settings, tmp_path, ray_here, no_pictures):
    sweep = {"space": {"learning_rate": {"grid": [0.001, 1e30]}}, "num_samples": 1, "max_failures": 1}
    tune("LPOSASRec", "tiny", sweep, config_dict={**settings, "epochs": 1, "learner": "sgd"},
         storage_path=str(tmp_path), name="s")  # fmt: skip
    good, bad = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert good["state"] == "done" and good["learning_rate"] == 0.001
    assert bad["state"] == "failed" and "not finite" in bad["reason"]
    assert "not finite" in (tmp_path / "s" / "table.md").read_text()


def test_trials_may_differ_in_what_shapes_the_data(settings, tmp_path, ray_here, no_pictures):
    sweep = {"space": {"MAX_ITEM_LIST_LENGTH": {"grid": [4, 8]}}, "num_samples": 1}
    grid = tune("LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=str(tmp_path), name="s")
    assert not grid.errors
    assert len({result.metrics["best_score"] for result in grid}) == 2


def test_trials_that_do_not_fit_into_memory_together_are_refused(settings, tmp_path, ray_here, monkeypatch, capsys):
    plan = read_plan({"space": {"hidden_size": {"choice": [8, 16]}}, "num_samples": 4})
    config = Config("LPOSASRec", "tiny", config_dict=settings)

    def check(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * 2**20))
        check_memory(config, _fixed_settings(config), plan, 1, 0)

    with pytest.raises(PrefError, match="2 trials .*'hidden_size': 16.* raise --cpus_per_trial") as refused:
        check(free=100)
    message = capsys.readouterr().err
    need = int(
        re.search(r"the largest trial: about (\d+) MiB and [\d.]+ s per epoch.*; 2 at the same time", message)[1]
    )
    assert 100 < need < 5000
    assert int(re.search(r"need about (\d+) MiB", str(refused.value))[1]) == pytest.approx(2 * need, abs=2)
    check(free=2.5 * need)
    plan = replace(plan, max_concurrent=1)
    check(free=1.5 * need)


def test_more_than_a_machine_has_is_refused(settings, tmp_path, ray_here):
    with pytest.raises(PrefError, match="more than any machine has"):
        tune("LPOSASRec", "tiny", {"space": {"tau": {"uniform": [0.1, 1]}}}, config_dict=settings,
             storage_path=str(tmp_path), cpus_per_trial=9)  # fmt: skip


# -- crashes

KILLED = """
import json, sys
if __name__ == "__main__":
    from recbole_pref.tune import memory_check, tune
    memory_check.check = lambda *arguments: None  # takes seconds
    tune(**json.loads(sys.argv[1]))
"""


def when(happened, action):
    """Act in another thread as soon as something has happened."""

    def wait():
        wait_for(happened)
        action()

    threading.Thread(target=wait, daemon=True).start()


def test_killed_and_stopped_sweeps_end_as_undisturbed_ones(settings, tmp_path, ray_here, no_pictures):
    """The sweep is killed, stopped in its first and in its second trial, and at last loses the process of a trial."""
    folder = tmp_path / "s"
    settings |= {"epochs": 60, "stopping_step": 60}  # so many that no trial ends before its kill
    given = {
        "model": "LPOSASRec", "dataset": "tiny", "config_dict": settings, "storage_path": str(tmp_path), "name": "s",
        "sweep": {"space": {"tau": {"grid": [0.1, 0.5]}}, "num_samples": 1, "max_concurrent": 1},
    }  # fmt: skip

    def checkpoints(trial):
        # A trial that was killed in its first seconds starts again in another folder, with a suffix.
        return len(list(folder.glob(f"*_0000{trial}*/checkpoint_*")))

    sweep = subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(given)])
    wait_for(lambda: checkpoints(0) > 3 and list(folder.glob("tuner.pkl")))
    for victim in [psutil.Process(sweep.pid), *psutil.Process(sweep.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    assert sweep.wait() == -signal.SIGKILL
    assert not (folder / "trials.json").exists()
    with pytest.raises(PrefError, match="already holds a sweep: pass --resume"):
        tune(**given)

    for trial, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        before = checkpoints(trial)
        when(lambda: checkpoints(trial) > before, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):  # Ray alone would abort at SIGTERM
            tune(**given, resume=True)
        assert not (folder / "best.yaml").exists()
        wait_for(lambda: not ray_processes("ray::ImplicitFunc"), seconds=60)  # of trials, which would keep their CPU

    before = checkpoints(1)
    when(lambda: checkpoints(1) > before, lambda: ray_processes("ray::ImplicitFunc")[0].kill())
    tune(**given, resume=True)
    assert len(list(folder.glob("*/error.txt"))) == 1
    found = json.loads((folder / "trials.json").read_text())["trials"]
    assert sorted(row["tau"] for row in found) == [0.1, 0.5]
    for row in found:
        alone = run_recbole_pref("LPOSASRec", "tiny", config_dict={**settings, "tau": row["tau"]})
        assert (row["state"], row["score"], row["epochs"]) == ("done", alone["best_valid_score"], 60)
