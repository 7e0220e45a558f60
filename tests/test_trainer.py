"""Training runs: stock equality, determinism, exact resume after SIGKILL, signals, NaN, schedules."""

import importlib.machinery
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import recbole
import torch
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

from recbole_pref import checkpoint, quick_start, schedule
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.config.checks import settings_without_effect
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.training import trainer
from recbole_pref.training.trainer import TrainerMixin

from .conftest import wait_for

TRAINING_SERVER = """
import json, os, sys, torch
import torch._dynamo, torch.utils.tensorboard
from recbole_pref.quick_start import run_recbole_pref

torch.set_num_threads(1)
for line in sys.stdin:
    settings = json.loads(line)
    pid = os.fork()
    if pid == 0:
        run_recbole_pref(settings.pop("model"), config_dict=settings)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def start():
    """Starts a run in a process of its own, forked from one that has imported all modules; returns its ID.

    The standard output of the server then holds its exit code.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAINING_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as server:  # fmt: skip

        def start(settings):
            print(json.dumps(settings), file=server.stdin, flush=True)
            return int(server.stdout.readline()), server.stdout

        yield start


def final_state(folder):
    """Return the state of the only finished run in a folder."""
    states = [checkpoint.load(path) for path in Path(folder).glob("*-last-*.pth")]
    (state,) = [state for state in states if state["finished"]]
    return state


def assert_equal_states(one, other):
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    for key in ("best_valid_score", "best_valid_result", "cur_step", "train_loss_dict"):
        assert one[key] == other[key], key
    flat = lambda state: [t for s in state["optimizer"]["state"].values() for t in s.values()]  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(other)))


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec", "Caser"])
def test_nothing_changed_means_stock_recbole_bit_for_bit(tiny_dataset, backbone):
    settings = {**tiny_dataset, "lambda": 0, "reweight": "none", "train_positions": "last"}
    config = Config(f"LPO{backbone}", config_dict=settings)
    run = build_run(config, log=False)
    run.trainer.fit(run.train_data, run.valid_data)
    ours = run.trainer.evaluate(run.test_data)

    config = Config(backbone, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(backbone)(config, train_data._dataset)
    trainer = Trainer(config, model)
    trainer.eval_collector = run.trainer.eval_collector  # stock has no head and tail tables
    trainer.fit(train_data, valid_data, saved=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, final_state(settings["checkpoint_dir"])["state_dict"][name]), name
    assert ours.keys() == run.trainer.best_valid_result.keys()
    assert run.trainer.best_valid_result == trainer.best_valid_result


@pytest.mark.parametrize("model", ["SASRec", "CESASRec", "CEGRU4Rec"])
def test_losses_per_row_do_not_depend_on_the_size_of_a_step(tiny_dataset, model):
    settings = {
        **tiny_dataset,
        "learning_rate": 1e-12,
        "hidden_dropout_prob": 0,
        "attn_dropout_prob": 0,
        "dropout_prob": 0,
    }
    losses = []
    for size in (16, 64, 10_000):
        run = build_run(Config(model, config_dict={**settings, "train_batch_size": size}), log=False)
        run.trainer.fit(run.train_data, run.valid_data, saved=False)
        losses.append(run.trainer.losses_per_row())
    (whole,) = {round(loss, 4) for loss in losses[-1]}  # one step an epoch, so the mean over all rows
    assert [len(own) for own in losses] == [2, 2, 2]
    assert sum(losses, []) == pytest.approx([whole] * 6, rel=0.01)


@pytest.mark.parametrize("model", ["LPOSASRec", "SDPOGRU4Rec", "RoDPOCaser", "DynamicPOSASRec"])
def test_same_seed_same_result(tiny_dataset, tmp_path, model):
    folders = [str(tmp_path / name) for name in "ab"]
    for folder in folders:
        run_recbole_pref(model, config_dict={**tiny_dataset, "checkpoint_dir": folder})
    assert_equal_states(*map(final_state, folders))


def test_a_stored_reference_gives_the_same_run_as_a_fresh_one(tiny_dataset, tmp_path):
    shared = {**tiny_dataset, "reference_dir": str(tmp_path / "reference")}
    folders = [str(tmp_path / name) for name in "ab"]
    for folder in folders:
        run_recbole_pref("SDPOSASRec", config_dict={**shared, "checkpoint_dir": folder})
    assert len(list((tmp_path / "reference").glob("*.pth"))) == 1
    assert_equal_states(*map(final_state, folders))


@pytest.mark.parametrize("model", ["LPOSASRec", "SDPOSASRec"])
def test_killed_and_resumed_is_bit_identical(tiny_dataset, tmp_path, start, model):
    settings = {**tiny_dataset, "epochs": 8, "stopping_step": 20, "lr_scheduler": "cosine", "warmup_ratio": 0.2}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": str(whole)})
    chance = random.Random(7)
    codes = []
    while 0 not in codes:
        known = set(broken.glob("*-last-*.pth"))
        process, exit_code = start({**settings, "model": model, "checkpoint_dir": str(broken), "resume": True})
        if len(codes) < 12:
            # Wait until training continues, then kill at any moment of the epochs that follow.
            wait_for(lambda: set(broken.glob("*-last-*.pth")) - known or not psutil.pid_exists(process), seconds=60)
            time.sleep(chance.uniform(0, 0.15))
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        codes.append(int(exit_code.readline()))
        assert codes[-1] in (0, -signal.SIGKILL)
    assert len(codes) > 2
    assert_equal_states(final_state(whole), final_state(broken))


@pytest.mark.parametrize("model", ["SDPOSASRec", "DynamicPOGRU4Rec", "RoDPOCaser"])
def test_a_run_can_resume_from_every_epoch(tiny_dataset, tmp_path, model):
    settings = {**tiny_dataset, "epochs": 7, "stopping_step": 20, "keep_last": 20}
    settings["reference_dir"] = str(tmp_path / "reference")
    whole = tmp_path / "whole"
    run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": str(whole)})
    for epoch in range(1, 7):
        broken = tmp_path / f"from{epoch}"
        shutil.copytree(whole, broken)
        for path in broken.glob("*-last-*.pth"):
            if int(path.stem.rsplit("-", 1)[-1]) > epoch:
                path.unlink()
        run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": str(broken), "resume": True})
        assert_equal_states(final_state(whole), final_state(broken))


def test_a_finished_run_is_not_trained_again(tiny_dataset):
    first = run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)
    again = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "resume": True})
    assert again["test_result"] == first["test_result"]
    assert again["epochs"] == first["epochs"]
    assert len(list(Path(tiny_dataset["checkpoint_dir"]).glob("*-best.pth"))) == 1


@pytest.mark.parametrize("change", [{"tau": 1.9}, {"seed": 3}, {"learning_rate": 0.3}, {"metrics": ["NDCG"]}])
def test_a_run_does_not_resume_with_other_settings(tiny_dataset, change):
    run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)
    before = stored(tiny_dataset["checkpoint_dir"])
    (name,) = change
    with pytest.raises(PrefError, match=f"resume='.*' is of a run with {name}=.*set resume: False"):
        run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, **change, "resume": True})
    assert stored(tiny_dataset["checkpoint_dir"]) == before


def test_a_finished_run_continues_with_more_epochs_or_patience(tiny_dataset, tmp_path):
    folder = {"checkpoint_dir": str(tmp_path / "whole")}
    whole = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 5, **folder})
    run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 2})
    longer = {**tiny_dataset, "epochs": 5, "resume": True, "state": "INFO"}
    assert run_recbole_pref("LPOSASRec", config_dict=longer)["test_result"] == whole["test_result"]
    assert_equal_states(final_state(tiny_dataset["checkpoint_dir"]), final_state(folder["checkpoint_dir"]))
    # the first epoch is the best
    worse = {**tiny_dataset, "run_stem": "w", "learning_rate": 0.01, "objective": {"weights": {"NDCG@10": -1.0}}}
    short = run_recbole_pref("CESASRec", config_dict={**worse, "epochs": 9, "stopping_step": 1})
    assert short["epochs"] < 9
    longer = {**worse, "epochs": 9, "stopping_step": 9, "resume": True}
    assert run_recbole_pref("CESASRec", config_dict=longer)["epochs"] == 9


def test_a_reference_whose_training_was_stopped_continues(tiny_dataset, tmp_path, monkeypatch):
    settings = {**tiny_dataset, "reference_epochs": 4, "stopping_step": 9}
    whole = run_recbole_pref("SDPOSASRec", config_dict={**settings, "reference_dir": str(tmp_path / "whole")})
    run = build_run(Config("SDPOSASRec", config_dict=settings), log=False)
    trained, epoch = [], TrainerMixin._train_epoch

    def interrupted(own, data, number, *arguments, **options):
        trained.append(number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return epoch(own, data, number, *arguments, **options)

    monkeypatch.setattr(TrainerMixin, "_train_epoch", interrupted)
    with pytest.raises(PrefError, match="stopped while its reference was trained; give the command again"):
        run.trainer.fit(run.train_data, run.valid_data)
    monkeypatch.setattr(TrainerMixin, "_train_epoch", lambda *a, **o: trained.append(a[2]) or epoch(*a, **o))
    again = run_recbole_pref("SDPOSASRec", config_dict=settings)
    assert trained == [0, 1, 2, 2, 3, 0, 1]  # the reference continues in its third epoch
    assert again["test_result"] == whole["test_result"]
    assert not list(Path(tiny_dataset["checkpoint_dir"], "reference", "training").glob("*.pth"))


def test_of_equal_scores_the_latest_epoch_is_the_best(tiny_dataset):
    # nothing is learnt, so that all epochs are equal
    settings = {**tiny_dataset, "epochs": 3, "learning_rate": 1e-30, "learner": "sgd"}
    run = build_run(Config("CESASRec", config_dict=settings), log=False)
    assert run.trainer.best_epoch is None
    run.trainer.fit(run.train_data, run.valid_data)
    assert len({row["score"] for row in run.trainer.history}) == 1
    assert run.trainer.best_epoch == 3 == checkpoint.load(run.trainer.saved_model_file)["start_epoch"]


def test_the_best_checkpoint_holds_what_evaluation_needs_alone(tiny_dataset):
    best = checkpoint.load(run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)["checkpoint"])
    assert "optimizer" not in best and "optimizer" in final_state(tiny_dataset["checkpoint_dir"])


def test_clipping_sees_gradients_without_the_scale(tiny_dataset):
    settings = {**tiny_dataset, "epochs": 1, "clip_grad_norm": {"max_norm": 0.1}, "learner": "sgd"}
    settings["learning_rate"] = 1.0
    runs = []
    for scaled in (False, True):
        run = build_run(Config("LPOSASRec", config_dict=settings), log=False)
        run.trainer.scaler = torch.amp.GradScaler("cpu", enabled=scaled)  # RecBole scales on a GPU alone
        run.trainer.fit(run.train_data, run.valid_data, saved=False)
        runs.append(run.model.state_dict())
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["TAWinGRU4Rec", "TAWinCaser", "SDPOSASRec"])
def test_mixed_precision_works_with_references_that_are_not_cached(tiny_dataset, model):
    settings = {**tiny_dataset, "epochs": 1, "ce_weight": 1.0, "enable_amp": True, "reference_cache": False}
    for dtype in ("auto", "float16"):
        result = run_recbole_pref(model, config_dict={**settings, "amp_dtype": dtype})
        assert 0 <= result["test_result"]["ndcg@10"] <= 1


def stored(folder, stem=""):
    """Return what the checkpoints of a folder hold: name to bytes."""
    return {path.name: path.read_bytes() for path in Path(folder).glob(f"{stem}*.pth")}


def test_only_the_named_run_continues(tiny_dataset):
    folder = tiny_dataset["checkpoint_dir"]
    named = {**tiny_dataset, "run_stem": "first", "epochs": 3, "keep_last": 9}
    run_recbole_pref("LPOSASRec", config_dict=named)
    Path(folder, "first-last-3.pth").unlink()  # as if it had crashed after two epochs
    run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)  # a newer run without a name
    others = set(stored(folder)) - set(stored(folder, "first"))
    result = run_recbole_pref("LPOSASRec", config_dict={**named, "resume": True})
    assert result["epochs"] == 3 and Path(result["checkpoint"]).name == "first-best.pth"
    assert set(stored(folder)) - set(stored(folder, "first")) == others
    assert (
        checkpoint.load(Path(folder, "first-last-3.pth"))["epoch_times"][:2]
        == (checkpoint.load(Path(folder, "first-last-2.pth"))["epoch_times"])
    )
    before = stored(folder)
    run_recbole_pref("LPOSASRec", config_dict={**named, "run_stem": "second", "resume": True})
    assert before.items() <= stored(folder).items()  # it starts from the beginning and does not change the other runs


@pytest.mark.parametrize("less", [{"epochs": 2}, {"stopping_step": 0}])
def test_resuming_with_nothing_left_to_do_keeps_the_best(tiny_dataset, less):
    settings = {**tiny_dataset, "epochs": 5, "stopping_step": 9, "keep_last": 9, "run_stem": "run"}
    settings |= {"learning_rate": 0.01, "objective": {"weights": {"NDCG@10": -1.0}}}  # the first epoch is the best
    first = run_recbole_pref("CESASRec", config_dict=settings)
    folder = Path(tiny_dataset["checkpoint_dir"])
    (folder / "run-last-5.pth").unlink()  # it never ended
    assert checkpoint.load(folder / "run-last-4.pth")["cur_step"] > 0
    before = stored(folder)
    again = run_recbole_pref("CESASRec", config_dict={**settings, **less, "resume": True})
    assert stored(folder) == before
    assert again["test_result"] == first["test_result"]
    assert again["best_valid_result"] == first["best_valid_result"]


def test_a_run_resumed_from_another_folder_continues_there(tiny_dataset, tmp_path):
    settings = {**tiny_dataset, "epochs": 3, "keep_last": 9, "run_stem": "run"}
    first = run_recbole_pref("CESASRec", config_dict=settings)
    moved = tmp_path / "moved"
    shutil.move(tiny_dataset["checkpoint_dir"], moved)
    last = {"resume": str(moved / "run-last-3.pth"), "checkpoint_dir": str(tmp_path / "elsewhere")}
    again = run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "epochs": 3, **last})
    assert again["test_result"] == first["test_result"]
    assert again["checkpoint"] == str(moved / "run-best.pth")


def test_a_run_does_not_resume_without_its_best_checkpoint(tiny_dataset, tmp_path):
    run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "run_stem": "run"})
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(Path(tiny_dataset["checkpoint_dir"], "run-last-2.pth"), alone)
    with pytest.raises(
        PrefError, match="needs the best checkpoint of its run in the same folder, run-best.pth: copy it there"
    ):
        run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "epochs": 5, "resume": str(alone / "run-last-2.pth")})
    assert [path.name for path in alone.iterdir()] == ["run-last-2.pth"]


def test_all_optimizers_of_a_trainer_continue(tiny_dataset, tmp_path):
    settings = {
        **tiny_dataset,
        "seed": 1,
        "n_enc_epochs": 2,
        "n_dec_epochs": 1,
        "hidden_dimension": 8,
        "latent_dimension": 4,
    }
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    run_recbole_pref("RecVAE", config_dict={**settings, "epochs": 4, "checkpoint_dir": whole})
    run_recbole_pref("RecVAE", config_dict={**settings, "epochs": 2, "checkpoint_dir": broken})
    run_recbole_pref("RecVAE", config_dict={**settings, "epochs": 4, "checkpoint_dir": broken, "resume": True})
    one, other = final_state(whole), final_state(broken)
    assert_equal_states(one, other)
    assert sorted(one["optimizers"]) == ["optimizer_decoder", "optimizer_encoder"]
    for name, state in one["optimizers"].items():
        assert state["state"].keys() == other["optimizers"][name]["state"].keys() and state["state"]


def test_new_values_win_over_those_of_the_checkpoint(tiny_dataset):
    """Population-based training continues from the checkpoint of another trial."""
    first = {**tiny_dataset, "run_stem": "run", "epochs": 2, "learning_rate": 0.003, "weight_decay": 0.01}
    run_recbole_pref("CESASRec", config_dict=first)
    changed = {**first, "epochs": 3, "learning_rate": 0.006, "weight_decay": 0.0}
    run = build_run(Config("CESASRec", config_dict=changed), log=False)
    run.trainer.resume_checkpoint(Path(tiny_dataset["checkpoint_dir"], "run-last-2.pth"))
    run.trainer.fit(run.train_data, run.valid_data)
    assert [(group["lr"], group["weight_decay"]) for group in run.trainer.optimizer.param_groups] == [(0.006, 0.0)]


def test_resume_refuses_the_checkpoint_of_another_model(tiny_dataset):
    run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)
    (last, *_) = Path(tiny_dataset["checkpoint_dir"]).glob("*-last-*.pth")
    with pytest.raises(PrefError, match="holds model LPOSASRec"):
        run_recbole_pref("LPOGRU4Rec", config_dict={**tiny_dataset, "resume": str(last)})


def test_a_signal_stops_after_the_step_and_names_the_checkpoint(tiny_dataset, monkeypatch):
    run = build_run(Config("LPOSASRec", config_dict=tiny_dataset), log=False)
    loss = run.model.calculate_loss

    def interrupted(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(batch)

    monkeypatch.setattr(run.model, "calculate_loss", interrupted)
    before = signal.getsignal(signal.SIGTERM)  # Ray leaves its own behind where sweeps were tested
    with pytest.raises(PrefError, match=r"SIGTERM stopped .* --resume=.*-last-0.pth"):
        run.trainer.fit(run.train_data, run.valid_data)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_in_the_last_validation_of_the_reference_stops_the_run(tiny_dataset, monkeypatch):
    run = build_run(Config("SDPOSASRec", config_dict={**tiny_dataset, "reference_epochs": 2}), log=False)
    validate = TrainerMixin._valid_epoch

    def interrupted(own, *arguments, **options):
        result = validate(own, *arguments, **options)
        if len(own.epoch_times) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(TrainerMixin, "_valid_epoch", interrupted)
    with pytest.raises(PrefError, match="SIGTERM stopped the run after its reference was stored"):
        run.trainer.fit(run.train_data, run.valid_data)
    assert run.trainer.epoch_times == []
    monkeypatch.undo()
    again = build_run(Config("SDPOSASRec", config_dict={**tiny_dataset, "reference_epochs": 2}), log=False)
    monkeypatch.setattr(trainer, "train_reference", None)  # it is there
    again.trainer.fit(again.train_data, again.valid_data)


# BERT4Rec's batches are masked at random as they are made.
@pytest.mark.parametrize("model", ["LPOSASRec", "SDPOGRU4Rec", "RoDPOCaser", "CEBERT4Rec"])
def test_a_stopped_run_continues_in_the_middle_of_its_epoch(tiny_dataset, tmp_path, monkeypatch, model):
    settings = {**tiny_dataset, "epochs": 4, "eval_step": 2, "reference_dir": str(tmp_path / "reference")}
    settings["lr_scheduler"] = "linear"
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": whole})
    per_epoch, steps = None, 0
    for stop in (3, 4, 9, None):  # steps of one process until the signal comes; None: in the last step of an epoch
        own = {**settings, "checkpoint_dir": broken, "resume": True}
        run = build_run(Config(model, config_dict=own), log=False)
        loss, calls = run.model.calculate_loss, []
        stop = stop or per_epoch - steps % per_epoch

        def interrupted(batch, loss=loss, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return loss(batch)

        monkeypatch.setattr(run.model, "calculate_loss", interrupted)
        quick_start._resume(run.trainer, run.config)
        with pytest.raises(PrefError, match="SIGINT stopped"):
            run.trainer.fit(run.train_data, run.valid_data)
        assert len(calls) == stop  # no step is done twice
        per_epoch, steps = len(run.trainer._loader), steps + stop
    assert per_epoch > 4
    run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": broken, "resume": True})
    assert_equal_states(final_state(whole), final_state(broken))
    assert final_state(whole)["history"] == final_state(broken)["history"]
    assert torch.equal(final_state(whole)["rng"]["torch"], final_state(broken)["rng"]["torch"])
    stopped = final_state(broken)["epoch_times"]
    assert len(stopped) == 4 and min(stopped) > 0.2 * max(stopped)  # the part before the stop counts


def test_a_signal_ends_recboles_own_training_at_once(tiny_dataset, monkeypatch):
    run = build_run(Config("GRU4Rec", config_dict={**tiny_dataset, "epochs": 50}), log=False)
    step = run.trainer.optimizer.step
    calls = []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **more)

    monkeypatch.setattr(run.trainer.optimizer, "step", interrupted)
    with pytest.raises(PrefError, match=r"SIGTERM stopped .* --resume=.*-last-1.pth"):
        run.trainer.fit(run.train_data, run.valid_data)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_with_epoch_batch_and_method(tiny_dataset, monkeypatch, where):
    run = build_run(Config("LPOSASRec", config_dict=tiny_dataset), log=False)
    loss, calls = run.model.calculate_loss, []

    def poisoned(batch):
        calls.append(1)
        value = loss(batch)
        if len(calls) == 3:
            # sqrt has an infinite slope at 0: the value is fine, the gradient is not.
            weight = run.model.item_embedding.weight
            value = value * float("nan") if where == "loss" else value + (weight * 0).sum().sqrt()
        return value

    monkeypatch.setattr(run.model, "calculate_loss", poisoned)
    with pytest.raises(PrefError, match=r"epoch 0, batch 2, model LPOSASRec.*max_nan_steps"):
        run.trainer.fit(run.train_data, run.valid_data)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_nan_steps_can_be_skipped(tiny_dataset, monkeypatch):
    settings = {**tiny_dataset, "max_nan_steps": 1}
    run = build_run(Config("LPOSASRec", config_dict=settings), log=False)
    loss, calls = run.model.calculate_loss, []

    def poisoned(batch):
        calls.append(1)
        return loss(batch) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(run.model, "calculate_loss", poisoned)
    run.trainer.fit(run.train_data, run.valid_data)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_schedules_by_hand():
    cosine = schedule.SCHEDULES["cosine"]
    assert [cosine(s, 2, 6) for s in (0, 1, 2, 4, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    linear = schedule.SCHEDULES["linear"]
    assert [linear(s, 0, 4) for s in (0, 1, 4, 9)] == pytest.approx([1.0, 0.75, 0.0, 0.0])
    assert schedule.SCHEDULES["none"](0, 4, 10) == 0.25


def test_the_schedule_drives_the_optimizer(tiny_dataset):
    settings = {**tiny_dataset, "lr_scheduler": "linear", "warmup_ratio": 0.5, "epochs": 2}
    run = build_run(Config("CESASRec", config_dict=settings), log=False)
    run.trainer.fit(run.train_data, run.valid_data)
    assert run.trainer.optimizer.param_groups[0]["lr"] < 0.2 * 0.001


def test_runs_that_begin_at_once_make_their_folders_together(tiny_dataset, tmp_path, monkeypatch):
    def lost_race(folder):  # RecBole's ensure_dir where another run makes the folder in between
        if not os.path.exists(folder):
            raise FileExistsError(17, "File exists", folder)

    for module in (recbole.utils.logger, recbole.trainer.trainer, recbole.data.utils):
        assert module.ensure_dir
        monkeypatch.setattr(module, "ensure_dir", lost_race)
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    run = build_run(Config("CESASRec", config_dict=tiny_dataset), log=False)
    run.trainer.tensorboard.close()
    assert (tmp_path / "fresh" / "log" / "CESASRec").is_dir()


def test_result_file_names_the_command_that_repeats_the_run(tiny_dataset, tmp_path):
    path = tmp_path / "result.json"
    result = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "result_file": str(path)})
    record = json.loads(path.read_text())
    assert record["test_result"] == result["test_result"]
    assert record["seed"] == 2020 and record["config"]["tau"] == 0.1
    assert record["environment"]["torch"] and record["data"]["n_items"] == 41
    assert record["mask_history"] is False


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BPR", "Pop"])
def test_recboles_own_models_run_with_head_and_tail_metrics(tiny_dataset, model):
    result = run_recbole_pref(model, config_dict=tiny_dataset)
    assert 0 <= result["test_result"]["tailhit@10"] <= 1
    assert Path(result["checkpoint"]).is_file()


def test_resuming_with_another_size_of_the_model_is_refused_in_one_sentence(tiny_dataset):
    run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 1, "run_stem": "one"})
    with pytest.raises(PrefError, match="resume='.*one-last-1.pth' is of a run with hidden_size=16, this one has 8"):
        run_recbole_pref(
            "LPOSASRec",
            config_dict={**tiny_dataset, "epochs": 2, "run_stem": "one", "resume": True, "hidden_size": 8},
        )


def test_a_finished_run_keeps_one_last_checkpoint_unless_more_are_asked_for(tiny_dataset, caplog):
    caplog.set_level("INFO")
    folder = Path(tiny_dataset["checkpoint_dir"])
    for more, kept in (({}, [3]), ({"keep_last": 2}, [2, 3])):
        run_recbole_pref(
            "CESASRec", config_dict={**tiny_dataset, "epochs": 3, "state": "INFO", "run_stem": "run", **more}
        )
        assert sorted(folder.glob("run-last-*.pth")) == [folder / f"run-last-{epoch}.pth" for epoch in kept]
    caplog.clear()
    again = {**tiny_dataset, "epochs": 4, "state": "INFO", "run_stem": "run", "resume": True}
    run_recbole_pref("CESASRec", config_dict=again)
    assert f"resumed from {folder / 'run-last-3.pth'}: 3 epochs done" in caplog.text
    *_, loaded, _, _, _, _ = quick_start.load_data_and_model(str(folder / "run-best.pth"))
    assert not loaded.training


SAMPLED = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
CROPPED = {"transform": "crop_itemseq", "eta": 0.5, "train_positions": "last"}


@pytest.mark.parametrize(
    ("model", "more", "draws"),
    [
        ("LPOCaser", {}, 0),
        ("SDPOSASRec", CROPPED, 3),
        ("SASRec", {}, 0),
        ("SASRec", {"eval_args": {"mode": "uni5"}}, 2),
        ("BPR", SAMPLED, 1),
    ],
)
def test_worker_does_not_change_results(tiny_dataset, tmp_path, caplog, model, more, draws):
    caplog.set_level("INFO")
    settings = {**stock_settings(model, tiny_dataset), **more, "state": "INFO"}
    results = []
    for worker in (0, 1):
        caplog.clear()
        changes = {"worker": worker, "checkpoint_dir": str(tmp_path / str(worker))}
        results.append(run_recbole_pref(model, config_dict={**settings, **changes}))
    assert results[0]["test_result"] == results[1]["test_result"]
    assert results[0]["history"] == results[1]["history"]
    assert caplog.text.count("worker=1 has no effect on ") == draws


def stock_settings(model, settings):
    """Return settings without those that RecBole's own models do not read."""
    ours = {"reference_epochs", "num_negatives", "pool_size"} if model in ("SASRec", "BPR") else ()
    return {key: value for key, value in settings.items() if key not in ours}


def test_a_slow_model_names_its_fast_twin(tiny_dataset, caplog):
    caplog.set_level("INFO")
    hint = "model=CESASRec trains the same loss many times faster"
    for model, more, hinted in (("SASRec", {}, True), ("SASRec", {"loss_type": "BPR"}, False), ("CESASRec", {}, False)):
        settings = {**stock_settings("SASRec", tiny_dataset), "state": "INFO", **more}
        if more:
            settings["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
        caplog.clear()
        build_run(Config(model, config_dict=settings))
        assert (hint in caplog.text) is hinted


def test_settings_without_effect_are_reported(tiny_dataset, caplog):
    negatives = {"distribution": "uniform", "sample_num": 1}
    settings = {**tiny_dataset, "state": "INFO", "repeatable": True, "train_neg_sample_args": negatives}
    build_run(Config("CESASRec", config_dict=settings))
    assert "train_neg_sample_args has no effect on CESASRec: leave it out." in caplog.text
    assert "repeatable" not in caplog.text  # it is the default
    assert settings_without_effect(Config("CESASRec", config_dict={**tiny_dataset, "threshold": {"rating": 3}}))
    assert not settings_without_effect(Config("BPR", "ml-100k", config_dict={"threshold": {"rating": 3}}))
    for more, unread in (({"prior_tau_inf": 3.0}, ["prior_tau_inf"]), ({"prior_tau_inf": 3.0, "prior": "TALE"}, [])):
        assert settings_without_effect(Config("CESASRec", config_dict={**tiny_dataset, **more})) == unread


def test_only_slow_models_show_their_progress_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert quick_start._shows_progress(Config("SASRec", "ml-100k"))
    assert not quick_start._shows_progress(Config("CESASRec", "ml-100k"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert not quick_start._shows_progress(Config("SASRec", "ml-100k"))


def test_wandb_gets_flat_settings_and_the_curves(tiny_dataset, monkeypatch):
    logged, started = [], {}

    def init(**options):
        wandb.run = types.SimpleNamespace(summary={})
        started.update(options)

    wandb = types.ModuleType("wandb")
    wandb.run, wandb.init, wandb.define_metric = None, init, lambda *args, **options: None
    wandb.log = lambda metrics, commit=True: logged.append(metrics)
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_recbole_pref("SDPOSASRec", config_dict={**tiny_dataset, "log_wandb": True, "wandb_project": "mine"})
    assert started["project"] == "mine"
    config = json.loads(json.dumps(started["config"]))
    assert config["hidden_size"] == 16 and config["model"] == "SDPOSASRec" and config["eval_args.order"] == "TO"
    assert not any(isinstance(value, dict) for value in config.values())
    curves = {name for metrics in logged for name in metrics}
    assert {
        "train/train_loss",
        "valid/ndcg@10",
        "valid/tailndcg@10",
        "valid/learning_rate",
        "valid/reward_margin",
    } <= curves
    # The reference, which trained for two epochs as well, has no curves here.
    assert sum("train/train_loss" in metrics for metrics in logged) == 2
