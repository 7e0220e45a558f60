"""LPO and CE on every sequential model of RecBole: which work, and docs/backbones.md says the same."""

import os
from pathlib import Path

import pytest
import torch
from recbole.model.layers import FeedForward
from recbole.model.sequential_recommender import SASRec
from torch.nn import functional as F

from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.model.backbones import _feed_forward, backbone_of, whole_scores
from recbole_pref.model.names import sequential_models
from recbole_pref.predict import Recommender
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref

from .conftest import tiny_sequences, write_atomic

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backbones.md"
# Models that cannot be trained on interactions alone, and words of the error message.
REFUSED = {
    "DIEN": ("scores single pairs", "RecBole's model scores single user-item pairs, not the catalogue"),
    "DIN": ("scores single pairs", "RecBole's model scores single user-item pairs, not the catalogue"),
    "FDSA": ("class", "needs item features (`selected_features`, `load_col`)"),
    "GRU4RecF": ("class", "needs item features (`selected_features`, `load_col`)"),
    "GRU4RecKG": ("ent_id", "needs pretrained entity embeddings (`preload_weight`)"),
    "KSR": ("entity_id", "needs a knowledge graph"),
    "S3Rec": ("class", "needs item features and RecBole's two-stage pre-training"),
    "SASRecF": ("class", "needs item features (`selected_features`, `load_col`)"),
}
NOTES = {
    "BERT4Rec": "trained on the next item only, not on masked items",
    "FEARec": "without its contrastive term",
    "SHAN": "ranked with the padding in front, as it is trained; RecBole's own ranking puts it behind",
    "RepeatNet": "its probabilities enter as log-probabilities",
    "GRU4RecCPR": "its probabilities enter as log-probabilities; needs more than 100 items",
    "SASRecCPR": "its probabilities enter as log-probabilities; needs more than 100 items",
}
OF_USERS = ("Caser", "FOSSIL", "FPMC", "HGN", "HRM", "NPE", "SHAN", "TransRec")  # which hold a vector per user
NAMES = [cls.__name__ for _, cls in sorted(sequential_models().items())]


def table():
    rows = ["| backbone | works | training path | note |", "|---|---|---|---|"]
    for name in NAMES:
        spec = backbone_of(sequential_models()[name.lower()])
        path = "whole scores"
        if spec is not None:
            path = "packed prefixes, fused" if spec.encode_all else "rows, fused"
        if name in REFUSED:
            rows.append(f"| {name} | no | | {REFUSED[name][1]} |")
        else:
            notes = [NOTES.get(name), "scores depend on the user" if name in OF_USERS else None]
            rows.append(f"| {name} | yes | {path} | {'; '.join(filter(None, notes))} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_backbone(tiny_dataset, name, caplog, tmp_path):
    settings = {**tiny_dataset, "epochs": 1}
    for key in ("hidden_size", "embedding_size", "inner_size", "n_layers"):
        settings.pop(key)  # some backbones tie one to another
    if name.endswith("CPR"):
        # These rerank 100 items: more than the tiny data set has.
        with pytest.raises((PrefError, RuntimeError), match="out of range"):
            run_recbole_pref(f"LPO{name}", config_dict=settings, saved=False)
        write_atomic(tmp_path, "larger", tiny_sequences(n_users=100, n_items=400))
        settings |= {"dataset": "larger", "data_path": str(tmp_path)}
    if name in REFUSED:
        with pytest.raises(PrefError, match=REFUSED[name][0]):
            run_recbole_pref(f"LPO{name}", config_dict=settings, saved=False)
        return
    result = run_recbole_pref(f"LPO{name}", config_dict=settings, saved=False)
    assert 0 < result["test_result"]["ndcg@10"] <= 1
    # CE trains the references of other methods, so its checkpoint must be usable as one.
    result = run_recbole_pref(f"CE{name}", config_dict=settings)
    assert 0 < result["test_result"]["ndcg@10"] <= 1
    assert type(load_data_and_model(result["checkpoint"])[1]).__name__ == f"CE{name}"
    caplog.clear()
    assert len(Recommender(result["checkpoint"]).recommend([["i3", "i4"]], k=5)) == 5
    assert ("a vector per user" in caplog.text) == (name in OF_USERS)


# The losses of SHAN and CORE use other scores than full_sort_predict.
@pytest.mark.parametrize("name", ["SHAN", "CORE", "NARM", "STAMP"])
def test_whole_scores_are_those_of_recboles_loss(tiny_dataset, name):
    cls, settings = sequential_models()[name.lower()], {**tiny_dataset, "repeat_bias": False}
    config = Config(f"LPO{name}", config_dict=settings)
    _, (train_data, *_) = prepare_data(config, log=False)
    model = cls(config, train_data._dataset)
    rows = next(iter(train_data))  # as the loader transforms them
    torch.manual_seed(0)
    expected = model.calculate_loss(rows)
    if name == "SHAN":
        expected = expected - model.reg_loss(
            model.user_embedding(rows[model.USER_ID]), model.item_embedding(rows[model.POS_ITEM_ID])
        )
    torch.manual_seed(0)  # dropout is part of it
    scores = whole_scores(model, cls, rows)
    torch.testing.assert_close(F.cross_entropy(scores, rows[model.POS_ITEM_ID]), expected)


def test_a_derived_class_with_its_own_forward_has_no_fast_path():
    class Derived(SASRec):
        pass

    class Other(SASRec):
        def forward(self, item_seq, item_seq_len):
            return super().forward(item_seq, item_seq_len) + 1

    assert backbone_of(Derived) is backbone_of(SASRec) is not None
    assert backbone_of(Other) is None


def test_the_page_has_this_table():
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index("| backbone |"), text.index("\n\n", text.index("| backbone |"))
    if os.environ.get("UPDATE_DOCS"):
        text = text[:start] + table().rstrip("\n") + text[end:]
        PAGE.write_text(text, encoding="utf-8")
    assert table().rstrip("\n") in text


@pytest.mark.parametrize("activation", ["gelu", "relu", "swish", "tanh", "sigmoid"])
def test_feed_forward_is_recboles(activation):
    torch.manual_seed(0)
    block = FeedForward(6, 10, 0.0, activation, 1e-12).double()
    states = torch.randn(4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(_feed_forward(block, states), block(states))
