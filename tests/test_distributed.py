"""Two processes train the same model as one process; if one dies, the other ends."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_pref import checkpoint, distributed
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run, run_recbole_pref
from tests.processes import has_method, long_list, one_of_two_machines, second_dies, sum_over_processes

EXACT = {
    "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0, "num_negatives": 2,
    "epochs": 2, "neg_sampler": "topk", "neg_candidates": "all", "exclude_history": False,
}  # fmt: skip


def _train_all(cases):
    return {model: run_recbole_pref(model, config_dict={**case, "run_stem": model}) for model, case in cases.items()}


def test_two_processes_equal_one(tiny_dataset, tmp_path):
    settings = {**tiny_dataset, **EXACT, "dropout_probs": [0.0, 0.0], "clip_grad_norm": {"max_norm": 5}}
    settings["checkpoint_dir"] = str(tmp_path / "two")
    cases = dict.fromkeys(("LPOSASRec", "SDPOGRU4Rec", "LPOCaser", "DPONARM"), settings)
    # HGN has a term of RecBole's own loss on weights, which counts once.
    cases["CEHGN"] = {**settings, "reg_weight": [0.1, 0.0]}
    together = distributed.launch(_train_all, {"cases": cases}, 2)
    alone = _train_all({model: {**case, "checkpoint_dir": str(tmp_path / "one")} for model, case in cases.items()})
    for model in cases:
        _check_equal(model, tmp_path, alone[model], together[model])


def _check_equal(model, folder, *results):
    states = []
    for name in ("one", "two"):
        states.append(checkpoint.load(folder / name / f"{model}-last-2.pth")["state_dict"])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-5, msg=f"{model}: {name}")
    for name, value in results[0]["test_result"].items():
        assert results[1]["test_result"][name] == pytest.approx(value, abs=0.02), (model, name)


def test_stock_models_are_refused_with_a_remedy(tiny_dataset):
    with pytest.raises(PrefError, match="CESASRec is SASRec"):
        run("SASRec", config_dict=tiny_dataset, nproc=2)


def test_a_result_may_be_longer_than_a_pipe_holds():
    assert distributed.launch(long_list, {"n": 200_000}, 2) == list(range(200_000))


def test_processes_know_plugins_and_variables_of_now(tmp_path, monkeypatch):
    assert distributed.launch(has_method, {"name": "Hinge"}, 2) is False  # the server that forks runs from here on
    plugin = tmp_path / "hinge.py"
    plugin.write_text(
        "from recbole_pref.plugins import add_method\n"
        "add_method('Hinge', lambda pos, neg, *, margin: (margin - pos + neg.mean(1)).relu(), 'hinge', {'margin': 1.0})\n"
    )
    monkeypatch.setenv("RECBOLE_PREF_PLUGINS", str(plugin))
    assert distributed.launch(has_method, {"name": "Hinge"}, 2) is True


def test_processes_start_where_the_path_of_temporary_files_is_long(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from recbole_pref import distributed; from tests.processes import long_list\n"
    code += "if __name__ == '__main__': assert distributed.launch(long_list, {'n': 2}, 2) == [0, 1]"
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_two_runs_on_one_machine_do_not_meet():
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(distributed.launch, sum_over_processes, {"n": n}, 2) for n in (1, 10)]
        assert [run.result() for run in runs] == [2, 20]


def test_a_port_in_use_is_named_with_its_option():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PrefError, match=f"port={port} cannot be used.*--port"):
            distributed.launch(long_list, {"n": 1}, 2, port=str(port))
    for port in ("http", "70000"):
        with pytest.raises(PrefError, match=f"port='{port}' is not accepted"):
            distributed.launch(long_list, {"n": 1}, 2, port=port)


def test_two_machines_meet_at_the_default_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        machines = [pool.submit(one_of_two_machines, offset, port) for offset in (1, 0)]
        assert [machine.result() for machine in machines] == [None, 2]


def test_a_dying_process_ends_the_others():
    with pytest.raises(PrefError, match="process 1 of 2 died|process 0 of 2 failed"):
        distributed.launch(second_dies, {}, 2)


def test_mistakes_end_before_processes_start(tiny_dataset):
    with pytest.raises(PrefError, match="tau=0"):
        run("LPOSASRec", config_dict={**tiny_dataset, "tau": 0}, nproc=2)


def test_shares_make_up_the_batch(tiny_dataset, monkeypatch):
    from recbole_pref.build import prepare_data
    from recbole_pref.model.packing import PackedLoader

    _, loaders = prepare_data(Config("LPOSASRec", config_dict=tiny_dataset), log=False)
    for batch in PackedLoader(loaders[0], stride=4):
        rows, last, histories = [], {}, {}
        for rank in range(3):
            monkeypatch.setattr(distributed, "world", lambda rank=rank: (3, rank))
            part = distributed.share(batch)
            rows += part.rows.tolist()
            at = torch.cat([s.flatten()[p] for s, p in zip(part.sequences, part.picks)])
            last.update(zip(part.rows.tolist(), at.tolist()))
            histories.update(zip(part.rows.tolist(), part.histories.tolist()))
        monkeypatch.setattr(distributed, "world", lambda: (1, 0))
        assert sorted(rows) == sorted(batch.rows.tolist())
        at = torch.cat([s.flatten()[p] for s, p in zip(batch.sequences, batch.picks)])
        assert last == dict(zip(batch.rows.tolist(), at.tolist()))
        assert histories == dict(zip(batch.rows.tolist(), batch.histories.tolist()))


def test_the_first_process_writes_for_all(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["recbole-pref", "--nproc=2"])
    run("SDPOSASRec", config_dict={**tiny_dataset, "state": "INFO", "reference_epochs": 1}, nproc=2)
    (log,) = tmp_path.glob("log/SDPOSASRec/*.log")
    lines = [line.split("INFO")[-1].strip() for line in log.read_text().splitlines()]
    assert lines[0] == "command: recbole-pref --nproc=2"
    first = next(n for n, line in enumerate(lines) if line.startswith("epoch 0 training"))
    assert first < 60
    for epoch in ("[reference] epoch 0 training", "epoch 0 training", "epoch 1 training"):
        assert sum(line.startswith(epoch) for line in lines) == 1
    assert sum(line.startswith("command") for line in lines) == 1
    assert not re.search(r"np\.float64|\b1 epochs|\d\.\d{9}", log.read_text())
    of_reference, of_run = sorted(
        tmp_path.glob("log_tensorboard/*"), key=lambda path: not path.name.endswith("-reference")
    )
    for curves, n_epochs in ((of_run, 2), (of_reference, 1)):
        events = EventAccumulator(str(curves)).Reload()
        assert {"Valid/ndcg@10", "Valid/tailndcg@10", "LearningRate"} <= set(events.Tags()["scalars"])
        assert ("Alignment/reward_margin" in events.Tags()["scalars"]) is (n_epochs == 2)
        for tag in events.Tags()["scalars"]:
            assert [event.step for event in events.Scalars(tag)] == list(range(n_epochs)), tag
