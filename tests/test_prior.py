"""The linear prior: scores and gradients, its weights, checkpoints, resume, refusals."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from recbole_pref import checkpoint, distributed, scoring
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.objective import Objective
from recbole_pref.model.linear import LinearModel, normal_equations
from recbole_pref.model.linear_models import training_sequences
from recbole_pref.model.prior import Prior, PriorSource
from recbole_pref.predict import Recommender
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref
from recbole_pref.training import prior as prior_of_a_run
from tests.conftest import tiny_sequences
from tests.test_models import NO_DROPOUT, all_rows, numbered

IN_TRAINING = {"prior": "TALE", "prior_in_training": True, "prior_weight": "learned"}


def made_prior(n_items=12, tau_inf=3.0, seed=0):
    """Return a prior with random weights."""
    linear = LinearModel(n_items, tau_inf)
    weights = np.random.default_rng(seed).normal(size=(n_items, n_items)).astype(np.float32)
    weights[0] = weights[:, 0] = 0.0
    linear.set_weights(weights)
    return Prior.of(linear)


def histories(rows=9, width=6, n_items=12):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    items = torch.randint(1, n_items, (rows, width), generator=generator)
    return items.masked_fill(torch.arange(width) >= lengths.unsqueeze(1), 0)


def test_scores_are_the_decayed_sum_over_its_standard_deviation():
    prior, rows = made_prior(), histories()
    for row, got in zip(rows, prior.scores(rows)):
        items = [item for item in row.tolist() if item]
        expected = sum(
            np.exp(-age / 3.0) * prior.linear.weights[item].double().numpy() for age, item in enumerate(items[::-1])
        )
        expected = torch.from_numpy(expected / expected[1:].std())
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_fused_loss_and_the_gradient_of_the_weight_equal_whole_scores():
    torch.manual_seed(0)
    prior, rows = made_prior(), histories()
    hidden, items = (torch.randn(n, 5, requires_grad=True) for n in (9, 12))
    weight = torch.tensor(0.7, requires_grad=True)
    targets = torch.randint(1, 12, (9,))
    ids, uniform = torch.stack([targets, torch.zeros_like(targets)], 1), torch.full((9,), 1 / 9)
    scores = hidden @ items.t() + weight * prior.scores(rows)
    plain = torch.nn.functional.cross_entropy(scores, targets)
    fused = scoring.catalogue_loss(
        hidden, items, lambda part, chosen, log_z, picked: log_z - picked[:, 0], lambda part, s, z: ids[part], uniform,
        4, (scoring.Term(weight, PriorSource(prior, rows)),),
    )  # fmt: skip
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    leaves = [hidden, items, weight]
    for mine, theirs in zip(torch.autograd.grad(fused, leaves), torch.autograd.grad(plain, leaves)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    picked = scoring.item_scores(hidden, items, ids[:, :1], (scoring.Term(weight, PriorSource(prior, rows)),))
    torch.testing.assert_close(picked, scores.gather(1, ids[:, :1]), rtol=1e-5, atol=1e-5)


def test_the_excess_is_taken_from_the_targets_of_the_fused_loss_and_of_single_items():
    torch.manual_seed(0)
    prior, rows = made_prior(), histories()
    hidden, items = (torch.randn(n, 5, requires_grad=True) for n in (9, 12))
    weight = torch.tensor(0.7, requires_grad=True)
    targets, excess = torch.randint(1, 12, (9,)), torch.randn(9)
    ids, uniform = torch.stack([targets, torch.zeros_like(targets)], 1), torch.full((9,), 1 / 9)
    decay = torch.exp((torch.arange(6) - (rows > 0).sum(1, keepdim=True) + 1).double() / 3.0)
    fixed = (decay[:, :, None] * prior.linear.weights.double()[rows]).sum(1)
    fixed[torch.arange(9), targets] -= excess.double()
    fixed /= fixed[:, 1:].std(dim=1, correction=0, keepdim=True)
    scores = hidden.double() @ items.double().t() + weight.double() * fixed
    plain = torch.nn.functional.cross_entropy(scores, targets)
    terms = (scoring.Term(weight, PriorSource(prior, rows, targets, excess)),)
    fused = scoring.catalogue_loss(
        hidden, items, lambda part, chosen, log_z, picked: log_z - picked[:, 0], lambda part, s, z: ids[part], uniform,
        4, terms,
    )  # fmt: skip
    torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-6)
    leaves = [hidden, items, weight]
    for mine, theirs in zip(torch.autograd.grad(fused, leaves), torch.autograd.grad(plain, leaves, retain_graph=True)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    ids = torch.stack([targets, torch.arange(1, 10)], 1)
    picked = scoring.item_scores(hidden[3:], items, ids[3:], terms, slice(3, None))
    torch.testing.assert_close(picked.double(), scores.gather(1, ids)[3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("args", [None, {"group_by": None, "split": {"RS": [0.6, 0.2, 0.2]}}, "file"])
def test_the_excess_is_that_of_recboles_training_rows(tiny_dataset, tmp_path, args):
    settings = {**tiny_dataset, **IN_TRAINING, "prior_tau_inf": 2.0, "prior_beta": 0.0, "prior_reg_weight": 3.0}
    if args == "file":
        settings |= split_files(tmp_path)
    elif args:
        settings["eval_args"] = args
    run = build_run(Config("CESASRec", config_dict=settings), log=False)
    run.trainer.prepare(run.train_data)
    linear, _ = prior_of_a_run.linear_settings(run.config)
    sequences = training_sequences(run.train_data._dataset)
    gram, cross = (part.toarray() for part in normal_equations(sequences, run.model.n_items, linear))
    inverse = np.linalg.inv(gram + 3.0 * np.eye(len(gram)))
    rows = numbered(run.train_data, run.model)
    assert len(run.model.prior.excess) == len(rows)
    for history, target, got in zip(rows.histories.numpy(), rows.targets.numpy(), run.model.prior.excess.numpy()):
        s, x = np.zeros((2, len(gram)))
        for age, item in enumerate(history[history > 0][::-1]):
            s[item] += max(np.exp(-(age + 1) / linear.tau_train), linear.c)
            x[item] += np.exp(-age / 2.0)
        expected = x @ inverse @ s * (1 - s @ inverse @ cross[:, target]) / (1 - s @ inverse @ s)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-6)


def split_files(folder):
    """Write pre-split files whose first prefix of a user has two items, and return their settings."""
    header = "user_id:token\titem_id:token\ttimestamp:float\titem_id_list:token_seq\ttimestamp_list:float_seq\n"
    lines = {"train": [], "valid": [], "test": []}
    for user, sequence in enumerate(tiny_sequences()):
        for position in range(2, len(sequence)):
            part = {1: "test", 2: "valid"}.get(len(sequence) - position, "train")
            before = range(position)
            items, times = (" ".join(f"{kind}{value}" for value in values) for kind, values in (
                ("i", [sequence[place] for place in before]), ("", before)
            ))  # fmt: skip
            lines[part].append(f"u{user}\ti{sequence[position]}\t{position}\t{items}\t{times}\n")
    (folder / "split").mkdir()
    for part, rows in lines.items():
        (folder / "split" / f"split.{part}.inter").write_text(header + "".join(rows[::-1]))
    columns = ["user_id", "item_id", "timestamp", "item_id_list", "timestamp_list"]
    return {
        "dataset": "split", "data_path": str(folder), "benchmark_filename": list(lines), "load_col": {"inter": columns},
        "alias_of_item_id": ["item_id_list"],
    }  # fmt: skip


def test_the_excess_is_stored_beside_the_prior_and_only_used_in_training(tiny_dataset):
    def obtained(settings):
        run = build_run(Config("CESASRec", config_dict={**tiny_dataset, **settings}), log=False)
        return prior_of_a_run.obtain(run.config, run.train_data._dataset)

    after = obtained({"prior": "TALE"})
    (path,) = (Path(tiny_dataset["checkpoint_dir"]) / "reference").glob("*-prior-TALE-*.pth")
    assert after.excess is None and "excess" not in checkpoint.load(path)
    fitted, stored = obtained(IN_TRAINING), obtained(IN_TRAINING)  # the stored one lacked it
    assert fitted.excess.abs().max() > 0 and torch.equal(fitted.excess, stored.excess)
    assert torch.equal(fitted.linear.weights, after.linear.weights)
    assert obtained({"prior": "TALE"}).excess is None
    assert not any("excess" in name for name in stored.state_dict())
    for other in ({"prior": "SLIST"}, {"prior_linear_memory_mb": 0}):
        assert obtained({**IN_TRAINING, **other}).excess is None


def test_a_batch_without_numbers_of_its_rows_is_refused(tiny_dataset):
    run = build_run(Config("CESASRec", config_dict={**tiny_dataset, **IN_TRAINING}), log=False)
    run.trainer.prepare(run.train_data)
    with pytest.raises(PrefError, match="prior_in_training=True needs the numbers of the training rows"):
        run.model.calculate_loss(all_rows(run.train_data))
    run.model.calculate_loss(numbered(run.train_data, run.model))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("model", ["SDPOSASRec", "TAWinSASRec"])
def test_the_reference_has_the_same_scores_in_training(tiny_dataset, model, cache):
    settings = {**tiny_dataset, **NO_DROPOUT, **IN_TRAINING, "reference": "auto", "reference_cache": cache}
    if model == "TAWinSASRec":
        settings["kl_weight"] = 0.1
    run = build_run(Config(model, config_dict=settings), log=False)
    run.trainer.start(run.train_data, run.valid_data)
    policy, reference = run.model.eval(), run.model.step.reference
    batch = next(iter(run.trainer._loader))
    ids = torch.stack([batch.targets, batch.targets % 30 + 1], 1)
    terms = policy.terms(batch.histories, batch.targets, batch.rows)
    hidden, items = batch.encode(policy), policy.item_embedding.weight
    expected = scoring.item_scores(hidden, items, ids, terms)
    assert reference.normalized == (model == "TAWinSASRec")
    if reference.normalized:
        expected = expected - scoring.catalogue_log_z(hidden, items, 7, terms).unsqueeze(1)
    of_batch = reference.scores(batch)
    torch.testing.assert_close(of_batch.of(slice(None), ids), expected, rtol=1e-4, atol=1e-5)
    of_rows = scoring.chunk_scores(hidden, items, slice(None), terms)
    torch.testing.assert_close(of_batch.catalogue(slice(None)), of_rows, rtol=1e-4, atol=1e-5)
    left_in = scoring.chunk_scores(hidden, items, slice(None), policy.terms(batch.histories))
    assert (left_in - of_rows).abs().max() > 0.01


def test_a_weight_of_zero_equals_no_prior_bit_for_bit(tiny_dataset):
    plain = run_recbole_pref("LPOSASRec", config_dict=tiny_dataset)
    zero = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "prior": "TALE", "prior_weight": 0})
    assert zero["test_result"] == plain["test_result"] and zero["history"] == plain["history"]
    states = [checkpoint.load(result["checkpoint"])["state_dict"] for result in (plain, zero)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "metric, bigger, scores, chosen",
    [
        ("NDCG@10", True, [0.10, 0.20, 0.199, 0.197], 0.4),
        ("NDCG@10", True, [0.20, 0.19, 0.10, 0.19], 0.0),
        ("AveragePopularity@10", False, [2.0, 1.0, 1.01, 1.02], 0.4),
        ("NDCG@10", True, [float("nan"), 0.1, float("nan"), 0.0], 0.2),
    ],
)
def test_auto_takes_the_largest_of_equal_weights(metric, bigger, scores, chosen):
    weights, results = (0.0, 0.2, 0.4, 0.8), iter(scores)
    trainer = mock.Mock(valid_metric=metric.lower(), valid_metric_bigger=bigger, config={"prior_weight": "auto"})
    trainer.evaluate.side_effect = lambda *_, **__: {metric.lower(): next(results)}
    weight, found = prior_of_a_run.choose_weight(trainer, None, weights)
    assert weight == chosen
    assert [found[weight][metric.lower()] for weight in weights] == pytest.approx(scores, nan_ok=True)
    assert trainer.model.set_prior_weight.call_args == mock.call(chosen)


@pytest.mark.parametrize(
    "bounds, chosen",
    [
        ({}, 0.8),  # the most tail
        ({"at_least": {"NDCG@10": 0.15}}, 0.4),  # the most tail with enough overall
        ({"of_reference": {"NDCG@10": 0.9}}, 0.2),
        ({"at_least": {"NDCG@10": 0.3}}, 0.0),  # none is enough: the nearest
    ],
)
def test_an_objective_chooses_the_weight(bounds, chosen):
    weights, results = (0.0, 0.2, 0.4, 0.8), [(0.21, 0.01), (0.19, 0.02), (0.16, 0.03), (0.10, 0.04)]
    by_objective = Objective({"TailNDCG@10": 1.0}, **bounds)
    by_objective.take_reference({"ndcg@10": 0.2})
    trainer = mock.Mock(config={"prior_weight": "objective"}, score_of=by_objective.score)
    found = iter({"ndcg@10": overall, "tailndcg@10": tail} for overall, tail in results)
    trainer.evaluate.side_effect = lambda *_, **__: next(found)
    weight, _ = prior_of_a_run.choose_weight(trainer, None, weights)
    assert weight == chosen
    assert trainer.model.set_prior_weight.call_args == mock.call(chosen)


def test_the_weight_by_objective_has_the_best_score_of_a_run(tiny_dataset):
    objective = {"weights": {"TailNDCG@10": 1.0}, "of_reference": {"NDCG@10": 0.5}}
    settings = {**tiny_dataset, "prior": "TALE", "objective": objective, "reference": "auto"}
    scores = {}
    for weight in (0.0, 4.0, "objective"):
        result = run_recbole_pref("LPOSASRec", config_dict={**settings, "prior_weight": weight})
        scores[weight] = result["best_valid_score"]
    assert scores["objective"] >= max(scores[0.0], scores[4.0])
    assert scores["objective"] > scores[0.0]  # items follow each other in these data
    assert checkpoint.load(result["checkpoint"])["state_dict"]["prior_weight"] > 0


def test_auto_chooses_a_weight_on_the_validation_set_and_stores_it(tiny_dataset):
    plain = run_recbole_pref("CESASRec", config_dict=tiny_dataset)
    settings = {**tiny_dataset, "prior": "TALE"}
    result = run_recbole_pref("CESASRec", config_dict=settings)
    assert result["history"] == plain["history"]  # training does not see it
    assert result["best_valid_score"] > plain["best_valid_score"]  # items follow each other in these data
    config, model, _, train_data, valid_data, test_data = load_data_and_model(result["checkpoint"])
    assert not model.training and model.prior_weight > 0
    run = build_run(config, log=False)
    run.trainer.model.load_state_dict(model.state_dict())
    assert run.trainer.evaluate(test_data, load_best_model=False) == pytest.approx(result["test_result"])
    again = run_recbole_pref("CESASRec", config_dict={**settings, "resume": True})
    assert again["test_result"] == result["test_result"]


def test_only_the_first_process_writes_the_prior_into_the_best_checkpoint(tiny_dataset, monkeypatch):
    run = build_run(Config("CESASRec", config_dict={**tiny_dataset, "prior": "TALE", "prior_weight": 0.5}), log=False)
    obtain = prior_of_a_run.obtain

    def as_second_process(*arguments):
        monkeypatch.setattr(distributed, "is_first", lambda: False)
        return obtain(*arguments)

    monkeypatch.setattr(prior_of_a_run, "obtain", as_second_process)
    run.trainer.fit(run.train_data, run.valid_data)
    assert run.model.prior_weight == 0.5
    assert "prior_weight" not in checkpoint.load(run.trainer.saved_model_file)["state_dict"]


def test_a_given_weight_of_another_models_checkpoint(tiny_dataset):
    linear = run_recbole_pref("TALE", config_dict=tiny_dataset)
    settings = {**tiny_dataset, "prior": linear["checkpoint"], "prior_weight": 1e4}
    result = run_recbole_pref("CESASRec", config_dict=settings)
    # So heavy a prior ranks as the linear model alone.
    assert result["test_result"]["ndcg@10"] == pytest.approx(linear["test_result"]["ndcg@10"], abs=2e-3)


@pytest.mark.parametrize("model", ["CEGRU4Rec", "SDPOSASRec", "LPOCaser"])
def test_in_training_the_weight_is_learned_and_the_run_resumes_bit_for_bit(tiny_dataset, tmp_path, model):
    settings = {**tiny_dataset, **IN_TRAINING, "epochs": 3, "keep_last": 9}
    whole = run_recbole_pref(model, config_dict={**settings, "checkpoint_dir": str(tmp_path / "whole")})
    assert whole["history"][-1]["prior_weight"] != 1.0
    part = {**settings, "checkpoint_dir": str(tmp_path / "part")}
    run_recbole_pref(model, config_dict={**part, "epochs": 1})
    resumed = run_recbole_pref(model, config_dict={**part, "resume": True})
    assert resumed["test_result"] == whole["test_result"]
    mine, theirs = (checkpoint.load(result["checkpoint"])["state_dict"] for result in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_recommender_ranks_with_the_prior(tiny_dataset):
    result = run_recbole_pref("CESASRec", config_dict={**tiny_dataset, **NO_DROPOUT, **IN_TRAINING})
    _, model, _, train_data, _, _ = load_data_and_model(result["checkpoint"])
    recommender = Recommender(result["checkpoint"])
    assert recommender.model.prior is not None
    rows = all_rows(train_data)[torch.tensor([0])]
    tokens = [recommender.tokens[item] for item in rows[model.ITEM_SEQ][0].tolist() if item]
    best = recommender.recommend([tokens], k=3, exclude_seen=False)
    scores = model.full_sort_predict(rows)[0, 1:]
    assert best["score"].tolist() == pytest.approx(scores.topk(3).values.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"prior": "TALE", "prior_in_training": True}, "prior_weight='auto' is chosen after training"),
        ({"prior": "TALE", "prior_weight": "objective"}, "needs the setting objective, and that is empty"),
        ({"prior": "TALE", "prior_weight": "learned"}, "set prior_in_training: True as well"),
        ({"prior": "TAIL"}, "prior='TAIL' is neither one of SLIST, TALE, EASE, none nor a file.*Did you mean 'TALE'"),
    ],
)
def test_what_cannot_work_is_refused(tiny_dataset, settings, words):
    with pytest.raises(PrefError, match=words):
        Config("CESASRec", config_dict={**tiny_dataset, **settings})
    with pytest.raises(PrefError, match="does not work with CENARM|is neither|prior_weight"):
        Config("CENARM", config_dict={**tiny_dataset, "prior": "TALE"})


def test_a_split_without_validation_rows_has_no_best_weight(tiny_dataset):
    settings = {**tiny_dataset, "prior": "TALE", "eval_args": {"split": {"LS": "test_only"}}}
    with pytest.raises(PrefError, match="prior_weight='auto' needs validation rows"):
        run_recbole_pref("CESASRec", config_dict=settings)


def test_the_reference_is_renewed_by_rounds(tiny_dataset):
    settings = {**tiny_dataset, "epochs": 3, "reference_renewal": 2, "eval_step": 1}
    run = build_run(Config("SPRecSASRec", config_dict=settings), log=False)
    seen = []

    def look(epoch, score):
        model = run.model
        same = torch.equal(model.item_embedding.weight, model.reference.item_embedding.weight)
        seen.append((same, model.reference.item_embedding.weight.clone()))

    run.trainer.fit(run.train_data, run.valid_data, callback_fn=look)
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[1][1], seen[2][1])


def test_hanorec_gets_the_gap_of_the_items_neighbours(tiny_dataset):
    run = build_run(Config("HaNoRecSASRec", config_dict=tiny_dataset), log=False)
    run.trainer.start(run.train_data, run.valid_data)
    batch = next(iter(run.trainer._loader))
    seen = []
    loss = run.model.step._loss
    run.model.step._loss = lambda *arguments, **settings: seen.append(arguments) or loss(*arguments, **settings)
    run.model.calculate_loss(batch)
    assert len(seen[0]) == 5 and seen[0][4].shape == seen[0][1].shape and (seen[0][4] > 0).any()


def test_row_wise_cross_entropy_is_not_recboles_own_loss_with_a_prior_in_its_logits(tiny_dataset):
    settings = {**tiny_dataset, "train_positions": "last"}
    for more, plain in (({}, True), (IN_TRAINING, False)):
        run = build_run(Config("CESASRec", config_dict={**settings, **more}), log=False)
        assert run.model.step.is_plain is plain
