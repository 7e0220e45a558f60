"""Counts, head and tail, weights: by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.popularity import (
    count_items,
    head_tail_split,
    sample_weights,
    split_summary,
    train_counts,
)
from recbole_pref.quick_start import prepare_data

from .conftest import tiny_sequences

COUNTS = torch.tensor([0, 5, 2, 2, 2, 1, 0, 0, 3, 0, 5])  # 10 items, 3 never seen


def head_items(rule, ratio, counts=COUNTS):
    return head_tail_split(counts, rule, ratio).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    "ratio, head",
    [(0.1, [1]), (0.2, [1, 10]), (0.3, [1, 8, 10]), (0.4, [1, 2, 8, 10]), (0.9, [1, 2, 3, 4, 5, 8, 10])],
)
def test_head_by_items(ratio, head):
    # Ties go to the smaller id (2 before 3 and 4); unseen items stay tail even at 0.9.
    assert head_items("items", ratio) == head


@pytest.mark.parametrize(
    "ratio, head", [(0.25, [1]), (0.26, [1, 10]), (0.5, [1, 10]), (0.65, [1, 8, 10]), (0.66, [1, 2, 8, 10])]
)
def test_head_by_interactions(ratio, head):
    assert head_items("interactions", ratio) == head  # 20 interactions: 5, 5, 3, 2, 2, 2, 1


def test_padding_is_neither_head_nor_counted():
    counts = torch.tensor([99, 1, 2, 3, 4])
    assert head_items("items", 0.25, counts) == [4]


@pytest.mark.parametrize("ratio, which", [(0.04, "raise"), (0.999, "lower")])
def test_an_empty_group_is_refused(ratio, which):
    with pytest.raises(PrefError, match=f"head_ratio={ratio}.*{which}"):
        head_tail_split(torch.tensor([0, 3, 3, 3, 3]), "items", ratio)


def test_an_unknown_rule_is_refused():
    with pytest.raises(PrefError, match="tail_split='item'.*'items'"):
        head_tail_split(COUNTS, "item", 0.2)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=30), st.floats(0.05, 0.95))
def test_no_tail_item_is_more_popular_than_a_head_item(counts, ratio):
    counts = torch.tensor([0, *counts])
    for rule in ("items", "interactions"):
        try:
            head = head_tail_split(counts, rule, ratio)
        except PrefError:
            continue
        tail = ~head
        tail[0] = False
        assert counts[head].min() >= counts[tail].max()
        if rule == "interactions":
            assert counts[head].sum() >= ratio * counts.sum() - 1e-6


def test_weights_by_hand():
    weights = sample_weights(torch.tensor([True, False, False]), 0.0, 1.0)
    total = math.e + 2
    torch.testing.assert_close(weights, torch.tensor([math.e / total, 1 / total, 1 / total]))


@pytest.mark.parametrize("tail", [[True] * 4, [False] * 4, [True], [False]])
def test_a_batch_of_one_group_is_averaged(tail):
    weights = sample_weights(torch.tensor(tail), -0.5, 3.0)
    torch.testing.assert_close(weights, torch.full((len(tail),), 1 / len(tail)))


def test_counts_are_targets_and_first_items():
    counts = count_items(torch.tensor([2, 2, 3]), torch.tensor([1]), 5)
    assert counts.tolist() == [0, 1, 2, 1, 0]


def test_counts_of_a_data_set_equal_its_training_interactions(tiny_dataset):
    config = Config("CESASRec", config_dict=tiny_dataset)
    dataset, loaders = prepare_data(config, log=False)
    expected = torch.zeros(dataset.item_num, dtype=torch.int64)
    for sequence in tiny_sequences():
        for item in sequence[:-2]:  # the last two are for validation and test
            expected[dataset.token2id("item_id", f"i{item}")] += 1
    assert torch.equal(train_counts(loaders[0]._dataset), expected)


def test_summary():
    head = head_tail_split(COUNTS, "items", 0.2)
    summary = split_summary(COUNTS, head, torch.tensor([1, 2, 3, 10]))
    assert summary == {"n_head": 2, "n_tail": 8, "head_interactions": 0.5, "tail_targets": 0.5}
