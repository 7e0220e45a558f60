"""Reference models: trained once, shared, checked, and refused if they do not fit."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from recbole_pref import checkpoint
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.training import reference

from .conftest import tiny_sequences, write_atomic
from .processes import train_and_count_references


def fit(model, settings, **more):
    run = build_run(Config(model, config_dict={**settings, **more}), log=False)
    run.trainer.fit(run.train_data, run.valid_data)
    return run


def stored(settings):
    return sorted(Path(settings["checkpoint_dir"], "reference").glob("*.pth"))


@pytest.fixture
def trained(tiny_dataset):
    """The path of a CESASRec checkpoint, and its settings."""
    result = run_recbole_pref("CESASRec", config_dict=tiny_dataset)
    return result["checkpoint"], tiny_dataset


def test_methods_share_one_reference_and_backbones_do_not(tiny_dataset):
    fit("SDPOSASRec", tiny_dataset)
    (only,) = stored(tiny_dataset)
    written = only.stat().st_mtime_ns
    fit("DynamicPOSASRec", tiny_dataset)
    fit("SDPOSASRec", tiny_dataset, beta=0.3, learning_rate=0.01)
    assert stored(tiny_dataset) == [only] and only.stat().st_mtime_ns == written
    fit("SDPOGRU4Rec", tiny_dataset)
    assert len(stored(tiny_dataset)) == 2


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"hidden_size": 32}, {"reference_epochs": 1}, {"metric_decimal_place": 2}],  # rounded scores can tie
)
def test_what_shapes_the_reference_is_in_its_key(tiny_dataset, change):
    fit("SDPOSASRec", tiny_dataset)
    fit("SDPOSASRec", tiny_dataset, **change)
    assert len(stored(tiny_dataset)) == 2


def test_the_policy_starts_from_the_reference(tiny_dataset, monkeypatch):
    run = build_run(Config("SDPOSASRec", config_dict=tiny_dataset), log=False)
    seen = {}
    epoch = run.trainer._preference_epoch

    def look(index, progress):
        if not seen:
            state = run.model.state_dict()
            seen.update({k: v.clone() for k, v in state.items()})
        return epoch(index, progress)

    monkeypatch.setattr(run.trainer, "_preference_epoch", look)
    run.trainer.fit(run.train_data, run.valid_data)
    (file,) = stored(tiny_dataset)
    for name, tensor in checkpoint.load(file)["state_dict"].items():
        assert torch.equal(seen[name], tensor) and torch.equal(seen[f"reference.{name}"], tensor)
    after = run.model.state_dict()
    assert torch.equal(after["reference.item_embedding.weight"], seen["item_embedding.weight"])
    assert not torch.equal(after["item_embedding.weight"], seen["item_embedding.weight"])


def test_a_checkpoint_of_ours_serves_as_reference(trained):
    path, settings = trained
    fit("SDPOSASRec", settings, reference=path)
    assert not Path(settings["checkpoint_dir"], "reference").exists()


def test_simpo_only_starts_from_the_reference(tiny_dataset):
    run = fit("SimPOSASRec", tiny_dataset)
    assert run.model.reference is None and len(stored(tiny_dataset)) == 1


@pytest.mark.parametrize(
    "change, match",
    [
        ({"hidden_size": 32}, r"item_embedding.weight: 41x16 != 41x32"),
        ({"n_layers": 2}, r"trm_encoder.layer.1.*missing != "),
    ],
)
def test_other_sizes_are_refused_with_the_values(trained, change, match):
    path, settings = trained
    with pytest.raises(PrefError, match=match):
        fit("SDPOSASRec", settings, reference=path, **change)


def test_other_data_are_refused(trained, tmp_path):
    path, settings = trained
    write_atomic(tmp_path, "tiny", tiny_sequences(seed=9))
    with pytest.raises(PrefError, match=r"does not fit this run.*sha256"):
        fit("SDPOSASRec", settings, reference=path, data_path=str(tmp_path))


def test_another_backbone_is_refused(trained):
    path, settings = trained
    with pytest.raises(PrefError, match="missing"):
        fit("SDPOGRU4Rec", settings, reference=path)


def test_a_missing_reference_is_named(tiny_dataset):
    with pytest.raises(PrefError, match=r"reference.*nowhere.pth"):
        fit("SDPOSASRec", tiny_dataset, reference="nowhere.pth")


def test_recboles_own_checkpoint_serves_and_needs_trust_where_it_is_pickled(tiny_dataset, tmp_path):
    from recbole.config import Config
    from recbole.quick_start import run_recbole

    stock = {**tiny_dataset, "train_neg_sample_args": None, "metrics": ["NDCG"], "epochs": 1}
    stock |= {"valid_metric": "NDCG@10", "checkpoint_dir": str(tmp_path / "stock")}
    run_recbole("SASRec", config_dict=stock)
    (file,) = Path(stock["checkpoint_dir"]).glob("*.pth")
    fit("SDPOSASRec", tiny_dataset, reference=str(file))
    # as RecBole writes it without this package
    torch.save({**torch.load(file), "config": Config("SASRec", config_dict=stock)}, file)
    with pytest.raises(PrefError, match="trust_checkpoint"):
        fit("SDPOSASRec", tiny_dataset, reference=str(file))
    fit("SDPOSASRec", tiny_dataset, reference=str(file), trust_checkpoint=True)
    with pytest.raises(PrefError, match=r"eval_args"):
        fit(
            "SDPOSASRec", tiny_dataset, reference=str(file), trust_checkpoint=True,
            eval_args={"split": {"LS": "valid_only"}, "order": "TO"},
        )  # fmt: skip


def test_a_damaged_reference_is_trained_again(tiny_dataset):
    fit("SDPOSASRec", tiny_dataset)
    (file,) = stored(tiny_dataset)
    good = checkpoint.load(file)["state_dict"]
    file.write_bytes(file.read_bytes()[:-100])
    fit("SDPOSASRec", tiny_dataset)
    again = checkpoint.load(file)["state_dict"]
    assert all(torch.equal(good[name], again[name]) for name in good)


def test_two_processes_train_it_once(tiny_dataset):
    Path(tiny_dataset["checkpoint_dir"]).mkdir()
    settings = {**tiny_dataset, "reference_epochs": 6}
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(train_and_count_references, [settings] * 2))
    assert (Path(tiny_dataset["checkpoint_dir"]) / "trained").read_text() == "x"


def train_and_offer(model, settings, **more):
    run = build_run(Config(model, config_dict={**settings, **more}), log=False)
    with reference.serving(run.trainer, run.train_data) as store:
        held = sorted(Path(settings["checkpoint_dir"], "reference").glob("*.lock"))
        run.trainer.fit(run.train_data, run.valid_data)
        for lock in held:
            with pytest.raises(Timeout):
                FileLock(lock).acquire(timeout=0)
        store()
    return held


@pytest.mark.parametrize(
    "ends", [{"epochs": 3, "reference_epochs": 3}, {"epochs": 40, "reference_epochs": 30, "stopping_step": 1}]
)
def test_a_run_of_cross_entropy_is_the_reference_bit_for_bit(tiny_dataset, tmp_path, ends):
    settings = {**tiny_dataset, **ends, "eval_step": 1, "learning_rate": 0.02, "repeat_bias": True}
    assert len(train_and_offer("CESASRec", settings)) == 1  # the others wait
    (offered,) = stored(settings)
    asked = {**settings, "epochs": 1, "learning_rate": 0.001, "reference_learning_rate": 0.02}
    fit("SDPOSASRec", asked, reference_dir=str(tmp_path / "own"))
    (trained,) = (tmp_path / "own").glob("*.pth")
    assert trained.name == offered.name
    one, other = checkpoint.load(offered), checkpoint.load(trained)
    assert one["key"] == other["key"] and one["data"] == other["data"] and one["epochs"] == other["epochs"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    written = offered.stat().st_mtime_ns
    fit("SDPOSASRec", asked)
    assert stored(settings) == [offered] and offered.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("model", "more", "waits"),
    [
        ("LPOSASRec", {}, False),
        ("SASRec", {"train_neg_sample_args": None}, False),
        ("CESASRec", {"lr_scheduler": "cosine"}, False),
        ("CESASRec", {"reweight": "softmax"}, False),
        ("CESASRec", {"objective": {"weights": {"TailNDCG@10": 1.0}}}, False),
        ("CESASRec", {"epochs": 1, "reference_epochs": 2}, True),  # cut off before a reference would be
        ("CESASRec", {"epochs": 3, "reference_epochs": 2}, True),
    ],
)
def test_a_run_that_cannot_serve_as_a_reference_stores_none(tiny_dataset, model, more, waits):
    assert bool(train_and_offer(model, {**tiny_dataset, "stopping_step": 100}, **more)) == waits
    assert not stored(tiny_dataset)


def test_an_existing_reference_is_used_without_waiting(tiny_dataset):
    fit("SDPOSASRec", tiny_dataset)
    (path,) = stored(tiny_dataset)
    written = path.stat().st_mtime_ns
    run = build_run(Config("CESASRec", config_dict=tiny_dataset), log=False)
    with reference.serving(run.trainer, run.train_data) as store:
        FileLock(f"{path}.lock").acquire(timeout=0).lock.release()
        run.trainer.fit(run.train_data, run.valid_data)
        store()
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_of_cross_entropy_needs_no_folder_of_references(tiny_dataset, tmp_path, monkeypatch, when, caplog):
    place = tmp_path / "references"
    if when == "before":
        place.write_text("a file")
    else:
        save = checkpoint.save

        def full(state, path):
            if Path(path).parent == place:
                raise PrefError("the disk is full.")
            return save(state, path)

        monkeypatch.setattr(reference.checkpoint, "save", full)
    run = build_run(Config("CESASRec", config_dict={**tiny_dataset, "reference_dir": str(place)}), log=False)
    with reference.serving(run.trainer, run.train_data) as store:
        run.trainer.fit(run.train_data, run.valid_data)
        store()
    assert "serve as a reference" in caplog.text


def test_a_reference_that_is_being_trained_is_left_to_who_trains_it(tiny_dataset):
    settings = {**tiny_dataset, "epochs": 2, "reference_epochs": 2}
    (lock,) = train_and_offer("CESASRec", settings)
    (path,) = stored(settings)
    path.unlink()
    with FileLock(lock).acquire(timeout=0):
        run = build_run(Config("CESASRec", config_dict=settings), log=False)
        with reference.serving(run.trainer, run.train_data) as store:
            run.trainer.fit(run.train_data, run.valid_data)
            store()
    assert not stored(settings)


def test_keys_are_plain_and_stable(tiny_dataset):
    config = Config("SDPOSASRec", config_dict=tiny_dataset)
    run = build_run(config, log=False)
    data = reference.fingerprint_of(run.train_data._dataset)
    key = reference.reference_key(config, run.model.backbone_class, data)
    assert key["settings"]["hidden_size"] == 16 and key["training"]["seed"] == 2020
    path = reference.reference_path(config, key)
    assert path == reference.reference_path(config, dict(reversed(key.items())))
    assert path.name.startswith("tiny-SASRec-")
