"""Runs and sweeps on a Ray cluster of two machines, one of which dies."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.cluster_utils import Cluster

from recbole_pref.quick_start import run_on_cluster
from recbole_pref.tune import tune

from .conftest import ray_processes, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(workers_find_the_package):
    """A cluster of one machine with one CPU, to which this process is connected.

    Each test adds machines; only the last one may leave them.
    """
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_sweep_continues_when_a_machine_dies(settings, tmp_path, cluster, no_memory_check, no_pictures):
    settings |= {"epochs": 20, "stopping_step": 20, "eval_step": 1}
    sweep = {"space": {"tau": {"grid": [0.1, 0.5]}}, "num_samples": 1}
    with ThreadPoolExecutor() as pool:
        training = pool.submit(
            tune, "LPOSASRec", "tiny", sweep, config_dict=settings, storage_path=tmp_path, name="s", ray_address="auto"
        )
        # Only now, so that the sweep itself runs on the machine that stays.
        wait_for(lambda: list(tmp_path.glob("s/*/checkpoint_*")))
        (first_trial,) = ray_processes("ray::ImplicitFunc")
        first_trial.suspend()  # keeps its CPU, so that the other trial starts on the second machine
        second = cluster.add_node(num_cpus=1)
        wait_for(lambda: len({path.parent for path in tmp_path.glob("s/*/checkpoint_*")}) == 2)
        (second_trial,) = set(ray_processes("ray::ImplicitFunc")) - {first_trial}
        second_trial.suspend()  # or it could end before the machine does
        cluster.remove_node(second, allow_graceful=False)
        second_trial.kill()
        first_trial.resume()
        training.result(timeout=300)
    assert list(tmp_path.glob("s/*/error.txt"))  # of the trial that was lost
    rows = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert sorted(row["tau"] for row in rows) == [0.1, 0.5]
    assert {row["state"] for row in rows} == {"done"} and {row["epochs"] for row in rows} == {20}


def test_training_continues_when_a_machine_dies(tiny_dataset, tmp_path, cluster):
    settings = {**tiny_dataset, "epochs": 30, "stopping_step": 30, "state": "INFO", "eval_step": 10}
    second = cluster.add_node(num_cpus=1)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(run_on_cluster, "LPOSASRec", config_dict=settings, num_workers=2)
        wait_for(lambda: list(tmp_path.glob("saved/*-last-[1-9]*.pth")))
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        result = training.result(timeout=300)
    assert result["epochs"] == 30 and [row["epoch"] for row in result["history"]] == [9, 19, 29]
    logs = [path.read_text() for path in tmp_path.glob("log/LPOSASRec/*.log")]
    (resumed,) = (text for text in logs if "resumed from" in text)
    assert "command: " in resumed and len(re.findall(r"\bepoch \d+ training", resumed)) < 30
