"""The learned bias of items that the sequence holds: scores, gradients, references, refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_pref import scoring
from recbole_pref.errors import PrefError
from recbole_pref.model.packing import PackedLoader
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.training.trainer import PrefTrainer
from tests.conftest import write_atomic
from tests.test_models import NO_DROPOUT, all_rows, assert_same, build, gradients, numbered

BIAS = -0.07  # times the scale of 10 that makes Adam's steps large enough


def with_bias(model, value=BIAS):
    with torch.no_grad():
        model.repeat_bias.fill_(value)
    return model


def history_mask(items, n_items):
    """Return [R, n_items], 1 where the row's history holds the item."""
    return F.one_hot(items, n_items).amax(1).double().index_fill(1, torch.tensor([0]), 0.0)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_fused_loss_and_gradients_equal_whole_scores(chunk):
    torch.manual_seed(0)
    hidden, item_emb = (torch.randn(n, 7, dtype=torch.float64, requires_grad=True) for n in (23, 41))
    bias = torch.tensor(-0.8, dtype=torch.float64, requires_grad=True)
    history = torch.randint(0, 41, (23, 6))
    history[:, 1] = history[:, 0]  # an item twice counts once
    targets, negatives = torch.randint(1, 41, (23,)), torch.randint(1, 41, (23, 4))
    targets[:5], negatives[5:9, 0] = history[:5, 2].clamp_min(1), history[5:9, 3].clamp_min(1)
    ids = torch.cat([torch.zeros(23, 1, dtype=torch.long), targets[:, None], negatives], 1)
    loss = lambda log_z, picked: (log_z - picked[:, 1]) + F.softplus(picked[:, 2:]).sum(1)
    scores = hidden @ item_emb.t() + bias * history_mask(history, 41)
    weights = torch.softmax(torch.randn(23, dtype=torch.float64), 0)
    plain = (loss(torch.logsumexp(scores, 1), scores.gather(1, ids)) * weights).sum()
    terms = (scoring.Term(bias, scoring.HistorySource(scoring.distinct_items(history))),)
    fused = scoring.catalogue_loss(
        hidden, item_emb, lambda rows, ids, *parts: loss(*parts), lambda rows, s, z: ids[rows], weights, chunk, terms
    )
    torch.testing.assert_close(fused, plain)
    leaves = [hidden, item_emb, bias]
    for mine, theirs in zip(torch.autograd.grad(fused, leaves), torch.autograd.grad(plain, leaves)):
        torch.testing.assert_close(mine, theirs)
    picked = scoring.item_scores(hidden, item_emb, ids[:, 1:], terms)
    torch.testing.assert_close(picked.float(), scores.gather(1, ids[:, 1:]).float(), rtol=1e-5, atol=1e-5)
    log_z = scoring.catalogue_log_z(hidden, item_emb, chunk, terms)
    torch.testing.assert_close(log_z, torch.logsumexp(scores[:, 1:], 1).float(), rtol=1e-5, atol=1e-5)
    seen = []
    draw = lambda rows, part: seen.append(part) or ids[rows, 2:]
    scoring.sample_over_catalogue(hidden, item_emb, draw, chunk, terms)
    torch.testing.assert_close(torch.cat(seen), scores.float(), rtol=1e-5, atol=1e-5)


def test_ranking_adds_it_to_the_items_of_the_sequence(tiny_dataset):
    _, model, loaders = build("CESASRec", tiny_dataset, repeat_bias=True)
    model.eval()
    rows = all_rows(loaders[0])
    plain = model.full_sort_predict(rows).detach()
    biased = with_bias(model).full_sort_predict(rows).detach()
    mask = history_mask(rows[model.ITEM_SEQ], model.n_items).float()
    torch.testing.assert_close(biased - plain, 10 * BIAS * mask, atol=1e-5, rtol=0)
    config, plain_model, loaders = build("CESASRec", tiny_dataset, repeat_bias=True)
    trainer = PrefTrainer(config, plain_model)
    trainer.eval_collector.data_collect(loaders[0])
    kept = trainer.evaluate(loaders[2], load_best_model=False)
    with_bias(plain_model, -100.0)
    left_out = trainer.evaluate(loaders[2], load_best_model=False)
    assert kept != left_out


@pytest.mark.parametrize("name", ["CESASRec", "LPOGRU4Rec", "LPOCaser"])
def test_sampled_ranking_asks_for_the_same_scores(tiny_dataset, name):
    _, model, loaders = build(name, tiny_dataset, repeat_bias=True)
    with_bias(model).eval()
    rows = all_rows(loaders[0])
    rows[model.ITEM_ID] = rows[model.ITEM_SEQ][:, 0]  # an item of the sequence
    whole = model.full_sort_predict(rows)
    torch.testing.assert_close(model.predict(rows), whole.gather(1, rows[model.ITEM_ID].unsqueeze(1)).squeeze(1))
    biased = model.predict(rows)
    torch.testing.assert_close(biased - with_bias(model, 0.0).predict(rows), torch.full_like(biased, 10 * BIAS))


@pytest.mark.parametrize("name", ["LPOSASRec", "TAWinGRU4Rec", "SDPOSASRec"])
def test_packed_rows_equal_rows(tiny_dataset, name):
    settings = {
        **tiny_dataset, **NO_DROPOUT, "repeat_bias": True, "MAX_ITEM_LIST_LENGTH": 30, "train_batch_size": 10**6,
        "neg_sampler": "fixed", "reweight": "none",
    }  # fmt: skip
    _, model, loaders = build(name, settings, train_positions="all")
    with_bias(model)
    if model.reference is not None:
        with_bias(model.reference, 0.05)
    packed = next(iter(PackedLoader(loaders[0], 15)))
    assert len(packed) == len(loaders[0]._dataset)
    together, by_rows = model.calculate_loss(packed), model.calculate_loss(numbered(loaders[0], model))
    torch.testing.assert_close(together, by_rows, rtol=1e-5, atol=1e-6)
    found = gradients(together, model)
    assert_same(found, gradients(by_rows, model), 1e-5)
    assert found["repeat_bias"] != 0


def test_the_reference_has_its_own(tiny_dataset):
    _, model, loaders = build("SDPOSASRec", tiny_dataset, repeat_bias=True, train_positions="last", **NO_DROPOUT)
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("reference.")}
    state["repeat_bias"].fill_(BIAS)
    model.start_from(state)
    assert model.repeat_bias.item() == model.reference.repeat_bias.item() == pytest.approx(BIAS)
    k = model.settings["num_negatives"]
    equal = model.calculate_loss(all_rows(loaders[0])).item()
    assert equal == pytest.approx(math.log(1 + k), rel=1e-5)  # all log-ratios are 0
    with_bias(model, 0.3)
    assert model.calculate_loss(all_rows(loaders[0])).item() != pytest.approx(equal, rel=1e-4)


@pytest.mark.parametrize("repeats, sign", [(False, -1), (True, 1)])
def test_it_learns_whether_items_repeat(tmp_path, tiny_dataset, repeats, sign):
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for _ in range(60):
        order = torch.randperm(40, generator=generator)[:12].tolist()
        sequences.append(order[:4] * 3 if repeats else order)
    write_atomic(tmp_path, "made", sequences)
    own = {"dataset": "made", "data_path": str(tmp_path), "repeat_bias": True, "epochs": 8, "learning_rate": 0.01}
    result = run_recbole_pref("CESASRec", config_dict={**tiny_dataset, **own, "metrics": ["NDCG"]})
    assert result["history"][-1]["repeat_bias"] * sign > 0.5


def test_other_scores_are_refused(tiny_dataset):
    with pytest.raises(PrefError, match="repeat_bias=True does not work with LPONARM"):
        build("LPONARM", tiny_dataset, repeat_bias=True)
