"""Models: names, equality with RecBole's own loss, packed against row-wise, gradients, references."""

import pickle

import pytest
import torch
from recbole.model.sequential_recommender import Caser, GRU4Rec, SASRec
from recbole.utils import get_model, get_trainer, init_seed

from recbole_pref import model as models
from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model import step
from recbole_pref.model.batch import RowBatch
from recbole_pref.model.names import model_class
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref
from recbole_pref.training.trainer import PrefTrainer, trainer_class

BACKBONES = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "Caser": Caser}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}


def build(name, settings, **more):
    """Return config, model and loaders of a model on the tiny data."""
    config = Config(name, config_dict={**settings, **more})
    _, loaders = prepare_data(config, log=False)
    init_seed(config["seed"], True)
    model = model_class(name)(config, loaders[0]._dataset)
    model.prepare_training(config, loaders[0]._dataset)
    return config, model, loaders


def all_rows(loader):
    """Return all training rows as one Interaction."""
    dataset = loader._dataset
    return dataset[torch.arange(len(dataset))]


def numbered(loader, model):
    """Return all training rows as one batch that knows their numbers."""
    return RowBatch.of(all_rows(loader), model.step.fields, torch.arange(len(loader._dataset)))


def gradients(loss, model):
    """Return gradients by parameter name."""
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad])
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, grads)}


def assert_same(ours, theirs, tolerance=1e-6):
    for name, expected in theirs.items():
        scale = expected.abs().max().clamp_min(1e-3)
        assert (ours[name] - expected).abs().max() <= tolerance * scale * 10, name


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_explicit_classes_are_real(method, backbone):
    cls = getattr(models, method + backbone)
    assert issubclass(cls, BACKBONES[backbone])
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert get_model(method + backbone) is cls
    assert get_trainer(cls.type, method + backbone) is PrefTrainer


def test_classes_on_other_backbones_are_made_on_demand():
    cls = models.LPONARM
    assert cls is get_model("LPONARM") is models.LPONARM
    assert pickle.loads(pickle.dumps(cls)) is cls
    with pytest.raises(AttributeError):
        models.LPONarm


@pytest.mark.parametrize("name, near", [("LPOSASRek", "LPOSASRec"), ("lposasrec", "LPOSASRec")])
def test_a_misspelt_model_names_the_nearest(name, near):
    with pytest.raises(PrefError, match=near):
        model_class(name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_preference_terms_the_loss_is_recboles(tiny_dataset, backbone):
    switches = {"lambda": 0, "reweight": "none", **NO_DROPOUT}
    name = f"LPO{backbone}"
    path = "last" if backbone == "Caser" else "all"
    config, model, loaders = build(name, tiny_dataset, train_positions=path, **switches)
    stock = BACKBONES[backbone](config, loaders[0]._dataset)
    stock.load_state_dict(model.state_dict())
    rows = all_rows(loaders[0])
    expected = stock.calculate_loss(rows)
    # The fused path on RecBole's own rows, forced even where RecBole's loss would be called.
    loss = model.step(model, RowBatch.of(rows, model.step.fields))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert_same(gradients(loss, model), gradients(expected, stock))


@pytest.mark.parametrize(
    "name, positions, own", [("CECaser", "auto", False), ("CECaser", "last", True), ("CENARM", "auto", True)]
)
def test_recboles_own_loss_serves_where_asked_for_or_nothing_else_does(tiny_dataset, name, positions, own):
    _, model, _ = build(name, tiny_dataset, train_positions=positions)
    assert model.step.train_path == "last"
    assert model.step.is_plain is own


def test_no_size_takes_the_terms_that_a_backbone_adds_from_its_loss(tiny_dataset, monkeypatch):
    settings = {**tiny_dataset, **NO_DROPOUT, "reg_weight": [0.1, 0.1]}
    _, model, loaders = build("CEHGN", settings)
    rows = all_rows(loaders[0])
    expected = model.calculate_loss(rows)
    monkeypatch.setattr(step, "_MOST_PLAIN_SCORES", 10)
    _, model, loaders = build("CEHGN", settings)
    torch.testing.assert_close(model.calculate_loss(rows), expected)
    assert not build("CECaser", tiny_dataset, train_positions="last")[1].step.is_plain


@pytest.mark.parametrize("method", ["CE", "LPO", "SDPO", "DynamicPO", "TAWin"])
def test_chunks_change_neither_loss_nor_what_is_watched(tiny_dataset, method):
    settings = {
        **tiny_dataset, **NO_DROPOUT, "neg_sampler": "topk", "neg_candidates": "all", "exclude_history": False,
        "num_negatives": 12, "tawin_anchor": 4,
    }  # fmt: skip
    own = {key: value for key, value in settings.items() if method == "TAWin" or not key.startswith("tawin")}
    if method == "CE":
        own = {**tiny_dataset, **NO_DROPOUT}
    config, model, loaders = build(f"{method}SASRec", own)
    if model.reference is not None:
        init_seed(7, True)
        model.start_from(SASRec(config, loaders[0]._dataset).state_dict())
    rows, seen = all_rows(loaders[0]), []
    for memory in (64, 13 * 4 * model.n_items / 2**20):  # all rows at once, and 13 at a time
        model.settings["logits_memory_mb"] = memory
        loss = model.calculate_loss(rows)
        seen.append((loss, gradients(loss, model), model.pop_diagnostics()))
    (whole, grads, watched), (by_parts, own_grads, own_watched) = seen
    torch.testing.assert_close(by_parts, whole, rtol=1e-6, atol=1e-6)
    assert_same(own_grads, grads)
    assert own_watched == pytest.approx(watched, rel=1e-5)
    assert set(watched) >= ({"reward_margin", "pos_score"} if method != "CE" else set())
    assert ("boundary_size" in watched) == (method == "DynamicPO")


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec"])
@pytest.mark.parametrize("method", ["CE", "LPO"])
def test_packed_rows_equal_rows_when_sequences_are_short(tiny_dataset, backbone, method):
    # With MAX_ITEM_LIST_LENGTH above every sequence, sharing a pass changes nothing.
    settings = {
        **tiny_dataset, **NO_DROPOUT, "MAX_ITEM_LIST_LENGTH": 20, "train_batch_size": 10**6,
        "neg_sampler": "topk", "neg_candidates": "all",
    }  # fmt: skip
    _, model, loaders = build(method + backbone, settings, train_positions="all")
    from recbole_pref.model.packing import PackedLoader

    packed = next(iter(PackedLoader(loaders[0], stride=5)))
    assert len(packed) == len(loaders[0]._dataset)
    together = model.calculate_loss(packed)
    by_rows = model.calculate_loss(all_rows(loaders[0]))
    torch.testing.assert_close(together, by_rows, rtol=1e-6, atol=1e-6)
    assert_same(gradients(together, model), gradients(by_rows, model))


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec"])
def test_encoding_every_prefix_equals_recboles_forward(tiny_dataset, backbone):
    _, model, loaders = build(f"CE{backbone}", tiny_dataset)
    model.eval()
    rows = all_rows(loaders[0])
    expected = BACKBONES[backbone].forward(model, rows["item_id_list"], rows["item_length"])
    torch.testing.assert_close(model.encode(rows), expected, rtol=1e-5, atol=1e-6)
    scores = BACKBONES[backbone].full_sort_predict(model, rows)
    torch.testing.assert_close(model.full_sort_predict(rows), scores, rtol=1e-5, atol=1e-5)


def test_reweighting_gives_a_tail_row_e_times_the_weight_of_a_head_row(tiny_dataset):
    _, model, loaders = build("LPOSASRec", tiny_dataset)
    targets = all_rows(loaders[0])["item_id"]
    weights = model.step.row_weights(targets)
    is_tail = ~model.step.head_mask[targets]
    assert 0 < is_tail.sum() < len(targets)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    ratio = weights[is_tail].max() / weights[~is_tail].max()
    torch.testing.assert_close(ratio, torch.tensor(1.0).exp())


def test_lpo_loss_is_the_papers(tiny_dataset):
    """CE + lambda * LPO with its weights, from whole scores and plain autograd."""
    settings = {**tiny_dataset, **NO_DROPOUT, "neg_sampler": "topk", "train_positions": "last"}
    _, model, loaders = build("LPOSASRec", settings, tau=0.5)
    rows = all_rows(loaders[0])
    targets = rows["item_id"]
    scores = SASRec.full_sort_predict(model, rows)
    pi = torch.softmax(scores[:, 1:], 1)  # real items only
    head = model.step.head_mask[1:]
    masked = pi.detach().clone()
    masked[:, ~head] = -1
    masked[torch.arange(len(targets)), targets - 1] = -1
    negatives = masked.topk(3, 1).indices
    pos = pi[torch.arange(len(targets)), targets - 1] / 0.5
    neg = pi.gather(1, negatives) / 0.5
    lpo = -(pos - torch.logsumexp(torch.cat([pos[:, None], neg], 1), 1))
    ce = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    alpha = (~model.step.head_mask[targets]).float()
    expected = (torch.softmax(alpha, 0) * (ce + 0.5 * lpo)).sum()
    got = model.calculate_loss(rows)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert_same(gradients(got, model), gradients(expected, model), 1e-5)


@pytest.mark.parametrize("name", ["SDPOSASRec", "SDPOCaser", "DPONARM"])
def test_the_reference_is_frozen_and_part_of_the_state(tiny_dataset, name):
    _, model, loaders = build(name, tiny_dataset)
    assert all(not p.requires_grad for p in model.reference.parameters())
    assert any(key.startswith("reference.") for key in model.state_dict())
    model.train()
    assert model.training and not model.reference.training
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("reference.")}
    model.start_from({k: v.clone() for k, v in own.items()})
    # Policy and reference agree: the softmax over K + 1 equal margins costs log(1 + K).
    model.eval()
    k = 3
    loss = model.calculate_loss(all_rows(loaders[0]))
    if name.startswith("SDPO"):
        regular = model.backbone.regularize
        expected = torch.log(torch.tensor(1.0 + k)) + (regular(model) if regular else 0.0)
    else:
        expected = torch.log(torch.tensor(2.0))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, bias", [("SDPOSASRec", False), ("TAWinSASRec", False), ("TAWinSASRec", True)])
def test_cached_reference_scores_equal_fresh_ones(tiny_dataset, name, bias):
    settings = {**tiny_dataset, "neg_sampler": "topk", "num_negatives": 5, "kl_weight": 0.01}
    _, model, loaders = build(name, settings, ce_weight=1.0, repeat_bias=bias)
    if bias:
        torch.nn.init.constant_(model.reference.repeat_bias, 0.2)
    model.eval()
    torch.manual_seed(0)
    model.reference.item_embedding.weight.normal_()
    from recbole_pref.model.packing import PackedLoader

    loader = PackedLoader(loaders[0], stride=4)
    batches = list(loader)
    fresh = [model.calculate_loss(batch).item() for batch in batches]
    model.step.reference.fill_cache(batches, len(loaders[0]._dataset))
    assert model.step.reference.cache.hidden.shape == (len(loaders[0]._dataset), 16)
    cached = [model.calculate_loss(batch).item() for batch in batches]
    assert fresh == pytest.approx(cached, rel=1e-6)


def test_a_reference_method_without_reference_is_refused(tiny_dataset):
    with pytest.raises(PrefError, match="reference='none'"):
        Config("SDPOSASRec", config_dict={**tiny_dataset, "reference": "none"})


def test_packing_a_backbone_that_is_not_causal_is_refused(tiny_dataset):
    with pytest.raises(PrefError, match="train_positions"):
        build("LPOCaser", tiny_dataset, train_positions="all")


def test_tawins_window_stays_inside_a_small_group(tiny_dataset, caplog):
    _, model, _ = build("TAWinSASRec", tiny_dataset)  # num_negatives 3, valid_metric NDCG@10
    assert model.step.loss_settings["tawin_anchor"] == 2
    assert "tawin_anchor='auto' is rank 9" in caplog.text and "num_negatives to 20" in caplog.text
    _, model, _ = build("TAWinSASRec", tiny_dataset, num_negatives=20, valid_metric="NDCG@5")
    assert model.step.loss_settings["tawin_anchor"] == 4


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_models_of_sparse_matrices_are_stored_and_loaded(tiny_dataset, name):
    """Their scores are computed with objects of scipy and numpy, which a checkpoint holds as tensors."""
    result = run_recbole_pref(name, config_dict={**tiny_dataset, "epochs": 1})
    config, model, _, train_data, _, test_data = load_data_and_model(result["checkpoint"])
    trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    trainer.eval_collector.data_collect(train_data)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    assert result["test_result"]["ndcg@10"] > 0
