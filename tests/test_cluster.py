"""Training and recommending on a Ray cluster: two workers train what one process trains."""

import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.train.torch import TorchConfig

from recbole_pref import checkpoint, cli, cluster
from recbole_pref.errors import PrefError
from recbole_pref.predict import predict_file
from recbole_pref.quick_start import run, run_on_cluster
from recbole_pref.tune import tune

from .conftest import ray_processes, wait_for
from .test_distributed import EXACT


@pytest.fixture
def trained(tiny_dataset):
    """A checkpoint of a model with a vector per user."""
    return run("CECaser", config_dict={**tiny_dataset, "epochs": 1})["checkpoint"]


@pytest.fixture(scope="module")
def ray_here(workers_find_the_package):
    """A Ray with two CPUs and two GPUs, which only exist for Ray."""
    # Restores this variable alone: Ray sets others, which this process needs until it ends.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # an earlier run has set it to its gpu_id
        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_workers_train_what_one_process_trains(tiny_dataset, tmp_path, ray_here):
    results, states = [], []
    for train, more in ((run, {}), (run_on_cluster, {"num_workers": 2})):
        folder = tmp_path / train.__name__
        settings = {**tiny_dataset, **EXACT, "checkpoint_dir": str(folder), "result_file": str(folder / "result.json")}
        results.append(train("LPOSASRec", config_dict=settings, **more))
        (last,) = folder.glob("*-last-2.pth")
        states.append(checkpoint.load(last)["state_dict"])
        assert (folder / "result.json").is_file()
        assert not list(folder.glob("ray-train-*"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    assert results[1].keys() == results[0].keys() and len(results[1]["history"]) == 2
    for name, value in results[0]["test_result"].items():
        assert results[1]["test_result"][name] == pytest.approx(value, abs=0.02), name


@pytest.mark.slow
def test_a_refusal_of_a_worker_ends_the_run_at_once(tiny_dataset, tmp_path, ray_here):
    settings = {**tiny_dataset, "learning_rate": 1e30, "epochs": 20}
    with pytest.raises(PrefError, match="the loss is .* not finite.*lower learning_rate"):
        run_on_cluster("CESASRec", config_dict=settings, num_workers=2)
    assert not list(tmp_path.glob("saved/ray-train-*"))
    assert len(list(tmp_path.glob("log_tensorboard/*"))) == 1  # of the only attempt


@pytest.mark.parametrize(
    "words, message",
    [
        (["--num_workers=2"], "--num_workers needs --ray_address"),
        (["--ray_address=auto"], "--ray_address needs --num_workers"),
        (["--gpus_per_worker=1"], "--gpus_per_worker needs --num_workers"),
        (["--num_workers=2", "--ray_address=auto", "--nproc=2"], "--nproc has no effect with --num_workers"),
        (
            ["--num_workers=2", "--ray_address=auto", "--tune=x.yaml", "--max_failures=1"],
            "--max_failures has no effect",
        ),
        (["--tune=x.yaml", "--gpus_per_worker=1"], "--gpus_per_worker needs --num_workers"),
        (["--tune=x.yaml", "--num_workers=2", "--cpus_per_trial=2"], "--cpus_per_trial has .* use --cpus_per_worker"),
        (["--num_workers=0", "--ray_address=auto"], "--num_workers must be at least 1"),
        (["--num_workers=2", "--ray_address=auto", "--model=SASRec"], "num_workers=2 does not work.*CESASRec"),
        (["--num_workers=2", "--ray_address=auto", "--resume=a-last-1.pth"], "does not work with num_workers"),
        (["--num_workers=3", "--ray_address=auto"], "is more than the cluster can hold .2."),
        (
            ["--num_workers=2", "--ray_address=auto", "--gpus_per_worker=2"],
            "--gpus_per_worker=2 is more than .*hold .1.",
        ),
    ],
)
def test_mistakes_of_the_command_line(tiny_dataset, capsys, words, message, request):
    if "hold" in message:
        request.getfixturevalue("ray_here")
    data = [f"--{key}={tiny_dataset[key]}" for key in ("dataset", "data_path", "MAX_ITEM_LIST_LENGTH")]
    assert cli.main([*words, *data, "--topk=10"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_each_worker_has_gpus_of_its_own(tmp_path, ray_here, monkeypatch):
    def gpus():
        found = [None, None]
        torch.distributed.all_gather_object(found, ray.get_runtime_context().get_accelerator_ids()["GPU"])
        return found

    monkeypatch.setattr(cluster, "_torch_config", lambda: TorchConfig(backend="gloo"))  # as there is no NCCL
    assert sorted(cluster.launch(gpus, {}, 2, 1, 1, str(tmp_path), 0)) == [["0"], ["1"]]


# -- trials of several workers


def in_a_trial(function):
    """The result of a function in two workers, the first of which is a process of Ray as that of a trial."""
    return ray.get(
        ray.remote(num_cpus=1, max_retries=0)(cluster.run_in_group).remote(function, {}, 2, 1, 0), timeout=300
    )


def test_a_refusal_of_another_worker_is_the_reason(ray_here):
    def refuse():
        if torch.distributed.get_rank() == 1:
            raise PrefError("this worker refuses")
        torch.distributed.barrier()

    with pytest.raises(PrefError, match="this worker refuses"):
        in_a_trial(refuse)


def test_a_worker_that_dies_unnoticed_ends_the_first(ray_here):
    def die():
        if torch.distributed.get_rank() == 1:
            os._exit(1)
        time.sleep(600)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        in_a_trial(die)


@pytest.mark.slow
def test_trials_of_two_workers(tiny_dataset, tmp_path, ray_here, no_memory_check, no_pictures):
    """There is room for one at a time. The first loses a worker, continues after the other and is stopped early."""
    settings = {**tiny_dataset, **EXACT, "epochs": 10, "stopping_step": 10, "eval_step": 1}
    space = {"learning_rate": {"grid": [1e-9, 0.01]}}
    sweep = {"space": space, "num_samples": 1, "scheduler": {"name": "asha", "grace_epochs": 2}}

    def kill_one():
        wait_for(lambda: list(tmp_path.glob("s/*/checkpoint_*")))
        ray_processes("ray::_member")[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    arguments = {"dataset": "tiny", "sweep": sweep, "config_dict": settings, "storage_path": tmp_path, "name": "s"}
    grid = tune("LPOSASRec", **arguments, num_workers=2)
    killer.join()
    killed, good = sorted(grid, key=lambda result: result.config["learning_rate"])
    assert not grid.errors and Path(killed.path, "error.txt").is_file()
    for result, fits in ((killed, range(2, 10)), (good, [10])):
        reports = Path(result.path, "result.json").read_text().splitlines()
        assert [json.loads(report)["epoch"] for report in reports] == list(range(1, len(reports) + 1))
        assert len(reports) in fits
    wait_for(lambda: not ray_processes("ray::_member"), seconds=60)
    alone = run("LPOSASRec", config_dict={**settings, "learning_rate": 0.01})
    assert good.metrics["best_score"] == pytest.approx(alone["best_valid_score"], abs=0.02)
    (expected,) = tmp_path.glob("saved/*-last-10.pth")
    found = checkpoint.load(Path(good.checkpoint.path, "trial-last-10.pth"))["state_dict"]
    for name, tensor in checkpoint.load(expected)["state_dict"].items():
        if not name.endswith("key.bias"):  # has no effect: its gradient is rounding
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    with pytest.raises(PrefError, match="began with num_workers: 2, not 1"):
        tune("LPOSASRec", **arguments, resume=True)


def test_trials_with_more_workers_than_the_cluster_holds_are_refused(tiny_dataset, tmp_path, ray_here):
    for more, message in (
        ({"num_workers": 3}, "--num_workers=3 .* more than the cluster can hold .2."),
        ({"num_workers": 2, "gpus_per_worker": 2}, "--gpus_per_worker=2 is more than the cluster can hold .1."),
        ({"num_workers": 2, "model": "SASRec"}, "num_workers=2 does not work with model='SASRec'"),
    ):
        arguments = {"model": "LPOSASRec", "storage_path": tmp_path, "name": "-".join(map(str, more.values())), **more}
        sweep = {"space": {"learning_rate": {"uniform": [0.1, 1]}}}
        with pytest.raises(PrefError, match=message):
            tune(**arguments, dataset="tiny", sweep=sweep, config_dict={**tiny_dataset, "eval_step": 1})


@pytest.mark.parametrize(
    "name, content",
    [
        ("in.csv", "user,items\n" + "".join(f"a{row},i{row % 9} i{row % 7}\n" for row in range(21))),
        ("users.csv", "user\n" + "".join(f"u{row}\n" for row in range(21))),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_recommendations_of_a_cluster_are_those_of_this_machine(trained, tmp_path, ray_here, name, content, ending):
    source = tmp_path / name
    source.write_text(content)
    here, there = tmp_path / f"here.{ending}", tmp_path / f"there.{ending}"
    predict_file(trained, source, here, k=3, piece_rows=2)
    words = [f"--predict={trained}", f"--input={source}", f"--output={there}", "--k=3", "--piece_rows=2"]
    assert cli.main([*words, "--ray_address=auto"]) == 0
    assert there.read_bytes() == here.read_bytes()
    assert not there.with_name(there.name + ".parts").exists()


def test_a_refused_piece_keeps_those_before_it_for_the_next_call(trained, tmp_path, ray_here, capfd):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("items\n" + "i1\n" * 20 + "i99\n")
    with pytest.raises(PrefError, match="^sequence 21 holds the item 'i99'"):
        predict_file(trained, source, target, piece_rows=2, ray_address="auto")
    names = sorted(path.name for path in tmp_path.glob("out.csv.parts/*.csv"))
    assert names == [f"{number:06d}.csv" for number in range(10)]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cpus_per_worker=2"], "--cpus_per_worker needs --ray_address"),
        (["--ray_address=auto", "--device=cuda:0"], "--device has no effect with --ray_address"),
        (["--ray_address=auto", "--cpus_per_worker=0"], "--cpus_per_worker must be above 0"),
        (["--ray_address=auto", "--gpus_per_worker=3"], "more than any machine of the cluster has"),
    ],
)
def test_mistakes_of_a_prediction(trained, tmp_path, ray_here, capsys, words, message):
    (tmp_path / "in.csv").write_text("items\ni1\n")
    files = [f"--predict={trained}", f"--input={tmp_path / 'in.csv'}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main([*files, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
