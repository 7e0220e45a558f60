"""Counts, head and tail, weights: by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.data.sequences import train_counts
from recbole_pref.errors import PrefError
from recbole_pref.popularity import count_items, head_tail_split, sample_weights

from .conftest import tiny_sequences

COUNTS = torch.tensor([0, 5, 2, 2, 2, 1, 0, 0, 3, 0, 5])  # 10 items, 3 never seen


def head_items(rule, ratio, counts=COUNTS):
    return head_tail_split(counts, rule, ratio).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    "ratio, head",
    [
        (0.1, [1]),
        (0.2, [1, 10]),
        (0.3, [1, 8, 10]),
        (0.4, [1, 2, 8, 10]),
        (0.9, [1, 2, 3, 4, 5, 8, 10]),
    ],
)
def test_head_by_items(ratio, head):
    # Ties go to the smaller id (2 before 3 and 4); unseen items stay tail even at 0.9.
    assert head_items("items", ratio) == head


@pytest.mark.parametrize(
    "ratio, head",
    [
        (0.25, [1]),
        (0.26, [1, 10]),
        (0.5, [1, 10]),
        (0.65, [1, 8, 10]),
        (0.66, [1, 2, 8, 10]),
    ],
)
def test_head_by_interactions(ratio, head):
    assert head_items("interactions", ratio) == head  # 20 interactions: 5, 5, 3, 2, 2, 2, 1


def test_equal_counts_are_split_by_item_id():
    counts = torch.tensor([0, 3, 3, 3, 3, 3])
    assert head_items("items", 0.4, counts) == [1, 2]
    assert head_items("interactions", 0.4, counts) == [1, 2]


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_share_that_is_met_exactly_is_enough(percent):
    # As floats, 0.07 * 100 > 7 and 0.57 * 100 < 57.
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.ones(100, dtype=torch.int64)])
    assert len(head_items("interactions", percent / 100, counts)) == percent


def test_a_billion_interactions_are_split_to_the_last_one():
    # One half is 500,000,001, which float32 rounds to what item 1 holds alone.
    counts = torch.tensor([0, 500_000_000, 2, 500_000_000])
    assert head_items("interactions", 0.5, counts) == [1, 3]


def test_padding_is_neither_head_nor_counted():
    counts = torch.tensor([99, 1, 2, 3, 4])
    assert head_items("items", 0.25, counts) == [4]


@pytest.mark.parametrize("ratio, which", [(0.04, "raise"), (0.999, "lower")])
def test_an_empty_group_is_refused(ratio, which):
    with pytest.raises(PrefError, match=f"head_ratio={ratio}.*{which}"):
        head_tail_split(torch.tensor([0, 3, 3, 3, 3]), "items", ratio)


@pytest.mark.parametrize("rule", ["items", "interactions"])
def test_an_empty_training_split_is_refused(rule):
    with pytest.raises(PrefError, match=f"tail_split='{rule}' has no training interactions"):
        head_tail_split(torch.zeros(5, dtype=torch.int64), rule, 0.2)


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


@pytest.mark.parametrize("alpha", [1.0, 300.0])
def test_weights_of_shares_are_those_of_the_batch(alpha):
    is_tail = torch.tensor([True, False, False, True, True, False, False])
    both = lambda counts: torch.tensor([4, 3])
    shares = [sample_weights(part, 0.0, alpha, both) for part in (is_tail[:3], is_tail[3:])]
    torch.testing.assert_close(torch.cat(shares), sample_weights(is_tail, 0.0, alpha))
    alone = sample_weights(torch.tensor([False, False]), 0.0, alpha, lambda counts: torch.tensor([4, 0]))
    torch.testing.assert_close(alone, torch.tensor([0.25, 0.25]))


def test_counts_are_targets_and_first_items():
    counts = count_items(torch.tensor([2, 2, 3]), torch.tensor([1]), 5)
    assert counts.tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 8])
def test_counts_of_a_data_set_equal_its_training_interactions(tiny_dataset, length):
    config = Config("CESASRec", config_dict={**tiny_dataset, "MAX_ITEM_LIST_LENGTH": length})
    dataset, loaders = prepare_data(config, log=False)
    expected = torch.zeros(dataset.item_num, dtype=torch.int64)
    for sequence in tiny_sequences():
        for item in sequence[:-2]:  # the last two are for validation and test
            expected[dataset.token2id("item_id", f"i{item}")] += 1
    assert torch.equal(train_counts(loaders[0]._dataset), expected)


class Split:
    """What ``train_counts`` reads of a RecBole data set."""

    iid_field = "movie"

    def __init__(self, columns, item_num, **config):
        self.inter_feat = Interaction({key: torch.tensor(value) for key, value in columns.items()})
        self.item_num, self.config = item_num, {"LIST_SUFFIX": None, **config}


def test_counts_without_sequences_are_counts_of_the_items():
    assert train_counts(Split({"movie": [3, 1, 3, 4]}, 6)).tolist() == [0, 1, 0, 2, 1, 0]


def test_counts_follow_the_field_names_of_the_data_set():
    # Two users, 5 2 3 and 4 5; the third has benchmark rows that start with a prefix of two.
    split = Split(
        {
            "movie": [2, 3, 5, 1],
            "movie_seq": [[5, 0], [5, 2], [4, 0], [3, 3]],
            "length": [1, 2, 1, 2],
        },
        6,
        LIST_SUFFIX="_seq",
        ITEM_LIST_LENGTH_FIELD="length",
    )
    assert train_counts(split).tolist() == [0, 1, 1, 1, 1, 2]
