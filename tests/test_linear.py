"""Linear models: equations against loops in float64, RecBole's EASE, both forms, runs and checkpoints."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import EASE
from recbole.quick_start import run_recbole
from recbole.utils import get_trainer

from recbole_pref import cli, compare, quick_start
from recbole_pref.build import prepare_data
from recbole_pref.compare.plan import plan_runs
from recbole_pref.compare.runs import train_and_record
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.export import export
from recbole_pref.model.linear import (
    LinearModel,
    LinearSettings,
    Sequences,
    normal_equations,
    regularization,
    regularized_inverse,
    solve_dense,
    solve_sparse,
    target_excess,
)
from recbole_pref.model.linear_models import training_sequences
from recbole_pref.model.names import model_class
from recbole_pref.predict import Recommender
from recbole_pref.settings.files import properties_dir
from recbole_pref.training.trainer import trainer_class
from recbole_pref.tune import _check_corners, read_plan

from .conftest import tiny_sequences

N_ITEMS = 12
TALE = LinearSettings(tau_train=3.0, c=0.2, beta=-0.5, window=4, reg_weight=2.0)
SLIST = LinearSettings(targets="later", whole=0.3, tau_train=2.0, window=4, reg_weight=2.0, zero_diagonal=True)
EASE_SETTINGS = LinearSettings(targets="none", whole=1.0, reg_weight=2.0, zero_diagonal=True)


def some_sequences(seed=0, n_items=N_ITEMS):
    """Return sequences of 1 to 8 items, some of them repeated, with times: list of (items, times)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=25)
    return [(rng.integers(1, n_items, size=k), np.sort(rng.integers(0, 50, size=k)).astype(float)) for k in lengths]


def joined(sequences):
    items, times = (np.concatenate(part) for part in zip(*sequences))
    return Sequences(items, np.cumsum([0, *(len(s) for s, _ in sequences)]), times)


def loop_equations(sequences, settings, left_out=None):
    """Return S'S and S'T row by row, as the docstrings of linear.py state them.

    The row (number of its sequence, position of its target) ``left_out`` is missing.
    """
    counts = np.bincount(np.concatenate([items for items, _ in sequences]), minlength=N_ITEMS)
    gaps = np.concatenate([np.diff(times) for _, times in sequences])
    unit = np.median(gaps[gaps > 0])
    gram, cross = np.zeros((N_ITEMS, N_ITEMS)), np.zeros((N_ITEMS, N_ITEMS))

    def add(source, target, weight):
        for i, x in source:
            for j, y in source:
                gram[i, j] += weight * x * y
            for j, y in target:
                cross[i, j] += weight * x * y

    for number, (items, times) in enumerate(sequences):
        when = times / unit if settings.use_times else np.arange(len(items))
        popular = [float(counts[item]) ** settings.beta for item in items]
        if settings.whole:
            add([(i, 1.0) for i in items], [(i, 1.0) for i in items], settings.whole)
        for p in range(1, len(items)) if settings.targets != "none" else ():
            if (number, p) == left_out:
                continue
            decay = lambda q, p=p, when=when: math.exp(-abs(when[p] - when[q]) / settings.tau_train)  # noqa: E731
            before = range(max(0, p - settings.window), p)
            after = range(p, p + 1 if settings.targets == "next" else min(len(items), p + settings.window))
            source = [(items[q], max(decay(q), settings.c) * popular[q]) for q in before]
            add(source, [(items[q], decay(q) * popular[q]) for q in after], 1 - settings.whole)
    return gram, cross


@pytest.mark.parametrize(
    "settings", [TALE, replace(TALE, use_times=True), SLIST, EASE_SETTINGS], ids=["TALE", "times", "SLIST", "EASE"]
)
def test_equations_and_weights_equal_a_loop(settings, monkeypatch):
    monkeypatch.setattr("recbole_pref.model.linear._CHUNK_ENTRIES", 20)  # several chunks
    sequences = some_sequences()
    expected_gram, expected_cross = loop_equations(sequences, settings)
    gram, cross = normal_equations(joined(sequences), N_ITEMS, settings)
    np.testing.assert_allclose(gram.toarray(), expected_gram, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cross.toarray(), expected_cross, rtol=1e-12, atol=1e-12)
    weights = solve_dense(regularized_inverse(gram, 2.0), cross, settings.zero_diagonal)
    for target in range(N_ITEMS):  # one regression per target, without itself where it must not predict itself
        kept = [i for i in range(N_ITEMS) if i != target or not settings.zero_diagonal]
        system = expected_gram[np.ix_(kept, kept)] + 2.0 * np.eye(len(kept))
        expected = np.zeros(N_ITEMS)
        expected[kept] = np.linalg.solve(system, expected_cross[kept, target])
        np.testing.assert_allclose(weights[:, target], expected, atol=1e-10)


@pytest.mark.parametrize("tau_inf", [None, 1.5])
@pytest.mark.parametrize("settings", [TALE, replace(TALE, use_times=True, window=3)], ids=["positions", "times"])
def test_the_excess_is_the_difference_to_a_fit_without_the_row(settings, tau_inf, monkeypatch):
    monkeypatch.setattr("recbole_pref.model.linear._CHUNK_ENTRIES", 40)  # several chunks and parts
    sequences, reg = some_sequences(), 2.0 * np.eye(N_ITEMS)
    gram, cross = normal_equations(joined(sequences), N_ITEMS, settings)
    inverse = regularized_inverse(gram, 2.0)
    weights = solve_dense(inverse, cross)
    expected = []
    for number, (items, _) in enumerate(sequences):
        expected.append(0.0)  # the first item of a sequence is not a target
        for position in range(1, len(items)):
            gram, cross = loop_equations(sequences, settings, left_out=(number, position))
            gain = weights - np.linalg.solve(gram + reg, cross)
            history = items[max(0, position - settings.window) : position]
            decay = [1.0 if tau_inf is None else math.exp(-age / tau_inf) for age in range(len(history))]
            expected.append(sum(x * gain[item, items[position]] for x, item in zip(decay, history[::-1])))
    got = target_excess(inverse, weights, joined(sequences), settings, tau_inf)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert np.ptp(expected) > 0.01


def test_only_rows_with_one_target_and_dense_weights_have_an_excess():
    for settings in (SLIST, EASE_SETTINGS, replace(TALE, memory_mb=0.0)):
        assert LinearModel(N_ITEMS).fit(joined(some_sequences()), settings, with_excess=True) is None
    assert LinearModel(N_ITEMS).fit(joined(some_sequences()), TALE) is None


def test_times_one_apart_are_positions():
    sequences = joined([(items, 7.0 * np.arange(len(items))) for items, _ in some_sequences()])
    for settings in (TALE, SLIST):
        by_position = normal_equations(sequences, N_ITEMS, settings)
        by_time = normal_equations(sequences, N_ITEMS, replace(settings, use_times=True))
        for ours, theirs in zip(by_position, by_time):
            np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=1e-12)


@pytest.mark.parametrize("zero_diagonal", [False, True])
def test_sparse_form_is_the_regression_on_the_strongest_sources(zero_diagonal, monkeypatch):
    monkeypatch.setattr("recbole_pref.model.linear._LOCAL_ENTRIES", 40)  # a few targets at a time
    gram, cross = normal_equations(joined(some_sequences()), N_ITEMS, TALE)
    weights = solve_sparse(gram, cross, 2.0, zero_diagonal, neighbours=3).toarray()
    dense_gram, dense_cross = gram.toarray(), cross.toarray()
    for target in range(N_ITEMS):
        strength = dense_cross[:, target] ** 2 / (np.diag(dense_gram) + 2.0)
        if zero_diagonal:
            strength[target] = 0
        kept = [i for i in np.argsort(-strength)[:3] if strength[i] > 0]
        system = dense_gram[np.ix_(kept, kept)] + 2.0 * np.eye(len(kept))
        expected = np.zeros(N_ITEMS)
        expected[kept] = np.linalg.solve(system, dense_cross[kept, target])
        np.testing.assert_allclose(weights[:, target], expected, atol=1e-6)


def test_sparse_form_with_all_sources_is_the_dense_one():
    rng = np.random.default_rng(0)
    rows = rng.random((30, N_ITEMS))
    gram, cross = sp.csr_array(rows.T @ rows), sp.csr_array(rows.T @ rng.random((30, N_ITEMS)))
    for zero_diagonal in (False, True):
        dense = solve_dense(regularized_inverse(gram, 2.0), cross, zero_diagonal)
        sparse = solve_sparse(gram, cross, 2.0, zero_diagonal)
        np.testing.assert_allclose(sparse.toarray(), dense, atol=1e-6)


def fitted(form, seed=0):
    model = LinearModel(N_ITEMS, tau_inf=2.0)
    model.fit(joined(some_sequences(seed)), replace(TALE, memory_mb=0.0 if form == "sparse" else 1.0))
    assert model.is_sparse == (form == "sparse")
    return model


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_scores_equal_a_loop_and_follow_from_those_of_the_prefix(form, monkeypatch):
    monkeypatch.setattr("recbole_pref.model.linear._SCATTERED", 40)
    model = fitted(form)
    weights = model.weights.numpy()
    if form == "sparse":
        weights = sp.csr_array((model.values.numpy(), model.columns.numpy(), model.starts.numpy())).toarray()
    histories = [[3, 5, 3, 7], [1], [2, 2], []]
    lists = torch.zeros(4, 5, dtype=torch.int64)
    for row, history in enumerate(histories):
        lists[row, : len(history)] = torch.tensor(history)
    scores = model.scores(lists, torch.tensor([4, 1, 2, 0]))
    for row, history in enumerate(histories):
        terms = [math.exp(-(len(history) - 1 - k) / 2.0) * weights[item] for k, item in enumerate(history)]
        np.testing.assert_allclose(scores[row], sum(terms, np.zeros(N_ITEMS)), atol=1e-6)
    longer = torch.cat([lists, lists[:, :0]], dim=1)
    appended = torch.tensor([4, 4, 9, 1])
    for row, history in enumerate(histories):
        longer[row, len(history)] = appended[row]
    expected = math.exp(-1 / 2.0) * scores + torch.from_numpy(weights[appended])
    torch.testing.assert_close(model.scores(longer, torch.tensor([5, 2, 3, 1])), expected, atol=1e-6, rtol=1e-5)
    ages = torch.full((4, 5), 6.0)
    same_age = model.scores(lists, torch.tensor([4, 1, 2, 0]), ages)
    np.testing.assert_allclose(same_age[2], 2 * math.exp(-3) * weights[2], atol=1e-6)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_weights_load_into_a_model_without_any(form):
    model, other = fitted(form), LinearModel(N_ITEMS, tau_inf=2.0)
    other.load_state_dict(model.state_dict())
    lists, lengths = torch.tensor([[3, 5, 0]]), torch.tensor([2])
    assert other.is_sparse == model.is_sparse
    assert torch.equal(other.scores(lists, lengths), model.scores(lists, lengths))


def test_auto_regularization_follows_the_data():
    gram = sp.csr_array(np.diag([0.0, 2.0, 4.0]))
    assert regularization(gram, "auto") == 12.0  # four times the mean over the items that were met
    assert regularization(gram, 0.5) == 0.5


def test_what_cannot_be_fitted_is_refused():
    model = LinearModel(N_ITEMS)
    with pytest.raises(PrefError, match="at least two items"):
        model.fit(Sequences(np.array([1, 2]), np.array([0, 1, 2])), TALE)
    with pytest.raises(PrefError, match="train_ages"):
        model.fit(Sequences(np.array([1, 2]), np.array([0, 2])), replace(TALE, use_times=True))
    singular = sp.csr_array(np.ones((3, 3)))
    with pytest.raises(PrefError, match="reg_weight=1e-30"):
        regularized_inverse(singular, 1e-30)


def build(name, settings):
    config = Config(name, config_dict=settings)
    _, loaders = prepare_data(config, log=False)
    return config, loaders


@pytest.mark.parametrize(
    "more, without",
    [({}, 2), ({"MAX_ITEM_LIST_LENGTH": 1}, 2), ({"eval_args": {"split": {"RS": [0.5, 0.25, 0.25]}}}, None)],
    ids=["leave one out", "short lists", "ratio"],
)
def test_sequences_are_those_of_the_training_split(tiny_dataset, more, without):
    _, loaders = build("TALE", {**tiny_dataset, **more})
    dataset = loaders[0]._dataset
    found = training_sequences(dataset)
    tokens = dataset.field2id_token[dataset.iid_field][found.items]
    users = dataset.field2id_token[dataset.uid_field]
    in_training = np.unique(dataset.inter_feat[dataset.uid_field].numpy())
    assert len(found.starts) == len(in_training) + 1
    whole = tiny_sequences()
    for user, start, stop in zip(users[in_training], found.starts, found.starts[1:]):
        expected = [f"i{item}" for item in whole[int(user[1:])]]
        if without is not None:
            assert stop - start == len(expected) - without
        assert list(tokens[start:stop]) == expected[: stop - start]
        assert list(found.times[start:stop]) == list(range(stop - start))
    assert len(found.items) == len(dataset.inter_feat) + len(in_training)
    is_target = found.rows >= 0
    assert sorted(found.rows[is_target]) == list(range(len(dataset.inter_feat)))
    assert (dataset.inter_feat[dataset.iid_field].numpy()[found.rows[is_target]] == found.items[is_target]).all()


def test_whole_histories_give_recboles_ease(tiny_dataset):
    config = Config("EASE", config_dict={**tiny_dataset, "reg_weight": 3.0})
    train_data = data_preparation(config, create_dataset(config))[0]
    theirs = EASE(config, train_data.dataset)
    rows = train_data.dataset.inter_feat
    users, items = rows["user_id"].numpy(), rows["item_id"].numpy()
    order = np.argsort(users, kind="stable")
    starts = np.append(np.flatnonzero(np.diff(users[order], prepend=-1)), len(users))
    ours = LinearModel(train_data.dataset.item_num)
    ours.fit(Sequences(items[order], starts), replace(EASE_SETTINGS, reg_weight=3.0))
    np.testing.assert_allclose(ours.weights.numpy(), np.asarray(theirs.item_similarity), atol=1e-5)


@pytest.mark.parametrize("memory", [4096, 0], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", ["TALE", "SLIST", "SeqEASE"])
def test_a_run_fits_once_stores_and_loads(name, memory, tiny_dataset, tmp_path):
    record = tmp_path / "result.json"
    settings = {**tiny_dataset, "linear_memory_mb": memory, "epochs": 5, "eval_step": 2, "result_file": str(record)}
    result = quick_start.run_recbole_pref(name, config_dict=settings)
    assert result["epochs"] == len(result["history"]) == 1
    assert {"headndcg@10", "tailndcg@10", "ndcg@10"} <= result["test_result"].keys()
    assert result["test_result"]["ndcg@10"] > 0.1  # the tiny data have an order that a random ranking lacks
    assert json.loads(record.read_text())["test_result"] == result["test_result"]
    config, model, _, _, _, test_data = quick_start.load_data_and_model(result["checkpoint"])
    trainer = trainer_class(get_trainer(model.type, name))(config, model)
    assert model.linear.is_sparse == (memory == 0)
    rows = next(iter(test_data))[0]
    again = model_class(name)(config, test_data._dataset)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.full_sort_predict(rows), model.full_sort_predict(rows))
    assert torch.equal(model.predict(rows), model.full_sort_predict(rows)[torch.arange(len(rows)), rows["item_id"]])
    trainer.tensorboard.close()


@pytest.mark.parametrize("split", [{"LS": "test_only"}, {"RS": [0.8, 0.1, 0.1]}, {"TS": [0.8, 0.1, 0.1]}])
def test_any_split(split, tiny_dataset):
    result = quick_start.run_recbole_pref("TALE", config_dict={**tiny_dataset, "eval_args": {"split": split}})
    assert result["test_result"]["ndcg@10"] > result["test_result"]["tailndcg@10"] > 0.1
    assert (result["best_valid_result"] is None) == ("LS" in split)
    assert quick_start.load_data_and_model(result["checkpoint"])[1].linear.weights.any()


@pytest.mark.parametrize("name", ["TALE", "SLIST", "SeqEASE"])
def test_it_recommends_what_it_ranks_first(name, tiny_dataset, tmp_path, capsys):
    checkpoint = quick_start.run_recbole_pref(name, config_dict=tiny_dataset)["checkpoint"]
    model = quick_start.load_data_and_model(checkpoint)[1]
    recommender = Recommender(checkpoint)
    sequence = ["i3", "i4"]
    ids = torch.tensor([[recommender.ids[token] for token in sequence]])
    scores = model.linear.scores(ids, torch.tensor([2]))[0]
    scores[torch.tensor([0, *ids[0]])] = -torch.inf
    best = scores.topk(3)
    frame = recommender.recommend([sequence], k=3)
    assert frame["item"].tolist() == [recommender.tokens[item] for item in best.indices]
    np.testing.assert_allclose(frame["score"].to_numpy(np.float32), best.values.numpy(), rtol=1e-6)
    of_user = recommender.recommend_users(["u5"], k=3)
    history = [f"i{item}" for item in tiny_sequences()[5]]
    assert of_user["item"].tolist() == recommender.recommend([history], k=3)["item"].tolist()
    (tmp_path / "in.csv").write_text("items\ni3 i4\n")
    words = [f"--predict={checkpoint}", f"--input={tmp_path / 'in.csv'}", f"--output={tmp_path / 'out.csv'}", "--k=3"]
    assert cli.main(words) == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2] for line in lines] == frame["item"].tolist()
    with pytest.raises(PrefError, match=f"{name} has no vectors of sequences"):
        export(checkpoint, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_a_comparison_tests_it_against_neural_models(tiny_dataset, tmp_path):
    settings = {key: tiny_dataset[key] for key in set(tiny_dataset) - {"checkpoint_dir", "dataset"}} | {"epochs": 1}
    models, folder = "TALE,SLIST,SeqEASE,CESASRec", tmp_path / "out"
    (folder / "tasks").mkdir(parents=True)
    for task in plan_runs(compare.parse_entries(models), "tiny", 1, None, settings, folder):
        train_and_record(task)
    done = compare.compare(models, "tiny", 1, config_dict=settings, output=folder)
    rows = {row["label"]: row for row in done.rows}
    assert list(rows) == models.split(",")
    assert rows["TALE"]["tailndcg@10"]["mean"] > rows["CESASRec"]["tailndcg@10"]["mean"]
    assert rows["CESASRec"]["ndcg@10"]["p"] < 0.05  # the same test rows


def test_plain_recbole_runs_it(tiny_dataset):
    result = run_recbole(model="TALE", config_dict=tiny_dataset)
    ours = quick_start.run_recbole_pref("TALE", config_dict=tiny_dataset)
    assert result["test_result"] == pytest.approx(ours["test_result"])
    assert "tailndcg@10" in result["test_result"]


def test_ranges_are_those_of_the_model(tiny_dataset):
    assert Config("TALE", config_dict={**tiny_dataset, "beta": -1, "reg_weight": 10})["beta"] == -1
    for key, value in (("beta", 0.5), ("reg_weight", 0), ("c", 2), ("tau_inf", 0), ("train_ages", "days")):
        with pytest.raises(PrefError, match=f"{key}={value!r} is not accepted"):
            Config("TALE", config_dict={**tiny_dataset, key: value})
    with pytest.raises(PrefError, match="beta=-1"):
        Config("DPOSASRec", config_dict={**tiny_dataset, "beta": -1})
    with pytest.raises(PrefError, match="Did you mean"):
        model_class("tale")


@pytest.mark.parametrize("name", ["TALE", "SLIST"])
def test_the_shipped_sweep_searches_what_the_model_reads(name):
    plan = read_plan(properties_dir() / "tune" / f"{name}.yaml")
    config = Config(name, "ml-100k")
    read = set(model_class(name).own_settings) & set(config.final_config_dict)
    assert set(plan.space) == read - {"train_ages", "linear_memory_mb"}
    _check_corners(config, {}, plan)
