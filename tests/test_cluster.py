"""Training and recommending on a Ray cluster: two workers train what one process trains, and a lost node is replaced."""

import os
import re
import sys
import threading
from pathlib import Path

import pytest
import ray
import torch

from recbole_pref import checkpoint, cli
from recbole_pref.errors import PrefError
from recbole_pref.predict import predict_file
from recbole_pref.quick_start import run, run_on_cluster

from .test_distributed import EXACT
from .test_tune import wait_for


@pytest.fixture(scope="module")
def workers_find_the_package():
    """The folder of this checkout on the path of Ray's processes."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def trained(tiny_dataset):
    """A checkpoint of a model with a vector per user."""
    return run("CECaser", config_dict={**tiny_dataset, "epochs": 1})["checkpoint"]


@pytest.fixture(scope="module")
def ray_here(workers_find_the_package):
    """A Ray with two CPUs."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
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
        (["--num_workers=2", "--ray_address=auto", "--tune=x.yaml"], "--num_workers has no effect with --tune"),
        (["--num_workers=0", "--ray_address=auto"], "--num_workers must be at least 1"),
        (["--num_workers=2", "--ray_address=auto", "--model=SASRec"], "num_workers=2 does not work.*CESASRec"),
        (["--num_workers=2", "--ray_address=auto", "--resume=a-last-1.pth"], "does not work with num_workers"),
        (["--num_workers=3", "--ray_address=auto"], "is more than the cluster can hold .2."),
    ],
)
def test_mistakes_of_the_command_line(tiny_dataset, capsys, words, message, request):
    if "--num_workers=3" in words:
        request.getfixturevalue("ray_here")
    data = [f"--{key}={tiny_dataset[key]}" for key in ("dataset", "data_path", "MAX_ITEM_LIST_LENGTH")]
    assert cli.main([*words, *data, "--topk=10"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


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
        (["--ray_address=auto", "--gpus_per_worker=1"], "more than any machine of the cluster has"),
    ],
)
def test_mistakes_of_a_prediction(trained, tmp_path, ray_here, capsys, words, message):
    (tmp_path / "in.csv").write_text("items\ni1\n")
    files = [f"--predict={trained}", f"--input={tmp_path / 'in.csv'}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main([*files, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_training_continues_when_a_machine_dies(tiny_dataset, tmp_path, workers_find_the_package):
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    settings = {**tiny_dataset, "epochs": 100, "stopping_step": 100, "state": "INFO", "eval_step": 25}
    results = []
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        second = cluster.add_node(num_cpus=1)
        training = threading.Thread(
            target=lambda: results.append(run_on_cluster("LPOSASRec", config_dict=settings, num_workers=2))
        )
        training.start()
        wait_for(lambda: list(tmp_path.glob("saved/*-last-[1-9]*.pth")))
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        training.join(timeout=300)
    finally:
        ray.shutdown()
        cluster.shutdown()
    (result,) = results
    assert result["epochs"] == 100 and [row["epoch"] for row in result["history"]] == [24, 49, 74, 99]
    logs = [path.read_text() for path in tmp_path.glob("log/LPOSASRec/*.log")]
    (resumed,) = (text for text in logs if "resumed from" in text)
    assert "command: " in resumed and len(re.findall(r"\bepoch \d+ training", resumed)) < 100
