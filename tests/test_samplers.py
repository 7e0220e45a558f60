"""Samplers: exact laws by chi-square, exclusions by hypothesis, settings that cannot work."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from recbole_pref.errors import PrefError
from recbole_pref.samplers import (
    SAMPLERS,
    NegativeSampler,
    distinct_ranks,
    excluded_positions,
    first_distinct,
    gumbel_topk,
    skip_excluded,
)

GOLDEN = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "data/golden.json").read_text())["cases"]
}
N = 9  # items with padding
ROWS = 40_000


def make(name, head=range(1, 7), counts=None, **changes):
    options = {
        "neg_sampler": name, "num_negatives": 2, "neg_candidates": "all", "exclude_history": False,
        "sampler_space": "probability", "pool_size": 4, "pool_draw": "uniform",
        "popularity_alpha": 0.5, "seed": 3, **changes,
    }  # fmt: skip
    counts = torch.tensor([0, 9, 8, 7, 6, 5, 1, 1, 0]) if counts is None else counts
    mask = torch.zeros(len(counts), dtype=torch.bool)
    mask[list(head)] = True
    return NegativeSampler(options, counts, mask, changes.get("max_history", 0))


def draw(sampler, positives, scores=None, history=None):
    log_z = None if scores is None else torch.logsumexp(scores, 1)
    keys = torch.arange(len(positives))
    return sampler.sample(positives, scores, history, keys, log_z)


def ordered_law(weights, k):
    """Probability of every ordered draw of k items without replacement, by weight (dict)."""
    law = {}
    for order in itertools.permutations(sorted(weights), k):
        left, chance = sum(weights.values()), 1.0
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        law[order] = chance
    return law


def assert_law(drawn, law):
    seen = {tuple(row): count for row, count in zip(*map(np.ndarray.tolist, np.unique(
        drawn.numpy(), axis=0, return_counts=True)))}  # fmt: skip
    assert set(seen) <= {key for key, chance in law.items() if chance > 0}
    keys = [key for key in law if law[key] > 0]
    expected = np.array([law[key] for key in keys]) * len(drawn)
    assert chisquare([seen.get(key, 0) for key in keys], expected).pvalue > 1e-4


SCORES = torch.tensor([[3.0, 2.0, 0.5, -1.0, 1.5, 0.0, 1.0, 2.5, -2.0]])


def test_uniform_draws_every_pair_equally_often():
    torch.manual_seed(0)
    sampler = make("uniform", exclude_history=True)
    positives = torch.full((ROWS,), 2)
    history = torch.tensor([[5, 5, 7, 0]]).repeat(ROWS, 1)
    drawn = draw(sampler, positives, history=history).sort(dim=1).values
    left = [1, 3, 4, 6, 8]
    assert_law(drawn, dict.fromkeys(itertools.combinations(left, 2), 1 / 10))


def test_fixed_repeats_itself_and_is_uniform():
    sampler = make("fixed")
    positives = torch.full((ROWS,), 2)
    drawn = draw(sampler, positives)
    assert torch.equal(drawn, draw(sampler, positives))
    part = sampler.sample(positives[5:9], keys=torch.arange(5, 9))
    assert torch.equal(part, drawn[5:9])
    assert not torch.equal(drawn, draw(make("fixed", seed=4), positives))
    left = [i for i in range(1, N) if i != 2]
    law = dict.fromkeys(itertools.combinations(left, 2), 1 / 21)
    assert_law(drawn.sort(dim=1).values, law)


def test_popularity_follows_the_power_of_the_counts():
    torch.manual_seed(0)
    sampler = make("popularity", num_negatives=1, exclude_history=True)
    history = torch.tensor([[4, 0]]).repeat(ROWS, 1)
    drawn = draw(sampler, torch.full((ROWS,), 1), history=history)
    weights = {2: 8, 3: 7, 5: 5, 6: 1, 7: 1}
    total = sum(w**0.5 for w in weights.values())
    assert_law(drawn, {(i,): w**0.5 / total for i, w in weights.items()})


def test_in_batch_follows_the_targets_of_the_batch():
    torch.manual_seed(0)
    positives = torch.tensor([1, 1, 1, 3, 5, 5]).repeat(ROWS // 6)
    drawn = draw(make("in_batch", num_negatives=1), positives)
    of_three = drawn[positives == 3]
    assert_law(of_three, {(1,): 3 / 5, (5,): 2 / 5})


def test_in_batch_of_one_item_falls_back_to_uniform():
    drawn = draw(make("in_batch"), torch.full((500,), 4))
    assert set(drawn.flatten().tolist()) == {1, 2, 3, 5, 6, 7, 8}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("space", ["probability", "logit"])
def test_gumbel_topk_is_plackett_luce(space, plain):
    torch.manual_seed(1)
    scores = SCORES.repeat(ROWS, 1)
    pi = torch.softmax(SCORES[0, 1:], 0)
    head = [1, 3, 4, 5, 6]  # head without the positive
    value = (lambda i: pi[i - 1].exp()) if space == "probability" else (lambda i: SCORES[0, i].exp())
    law = ordered_law({i: value(i).item() for i in head}, 2)
    if plain:
        allowed = torch.zeros(N, dtype=torch.bool)
        allowed[head] = True
        values = torch.softmax(scores[:, 1:], 1) if space == "probability" else scores[:, 1:]
        drawn = gumbel_topk(torch.nn.functional.pad(values, (1, 0)), 2, allowed)
    else:
        sampler = make("gumbel", neg_candidates="head", sampler_space=space)
        drawn = draw(sampler, torch.full((ROWS,), 2), scores)
    assert_law(drawn, law)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_gumbel_draws_all_there_are_even_from_a_peaked_policy(space):
    torch.manual_seed(2)
    scores = torch.zeros(300, N)
    scores[:, 4] = 200.0
    sampler = make("gumbel", neg_candidates="head", num_negatives=5, sampler_space=space)
    drawn = draw(sampler, torch.full((300,), 2), scores)
    assert (drawn.sort(dim=1).values == torch.tensor([1, 3, 4, 5, 6])).all()
    if space == "logit":
        assert (drawn[:, 0] == 4).all()


def test_gumbel_with_given_noise_is_the_golden_case():
    case = GOLDEN["gumbel_topk_fixed_noise"]
    logits = torch.tensor([case["inputs"]["logits"]], dtype=torch.float64)
    head = case["inputs"]["head"]
    uniforms = torch.tensor(case["inputs"]["uniforms"], dtype=torch.float64)
    noise = torch.zeros_like(logits)
    noise[0, head] = -torch.log(-torch.log(uniforms))
    allowed = torch.zeros(logits.shape[1], dtype=torch.bool)
    allowed[head] = True
    for values, key in (
        (torch.softmax(logits, 1), "top2_items_prob_space"),
        (torch.log_softmax(logits, 1), "top2_items_logit_space"),
    ):
        assert gumbel_topk(values, 2, allowed, noise)[0].tolist() == case["aux"][key]


def test_topk_is_deterministic_and_obeys_the_exclusions():
    sampler = make("topk", neg_candidates="head", exclude_history=True)
    history = torch.tensor([[1, 0, 0]])
    before = SCORES.clone()
    assert draw(sampler, torch.tensor([4]), SCORES, history).tolist() == [[6, 2]]
    assert torch.equal(SCORES, before)


@pytest.mark.parametrize("pool_draw", ["uniform", "score"])
def test_pool_draws_from_the_best(pool_draw):
    torch.manual_seed(0)
    sampler = make("pool", pool_size=3, pool_draw=pool_draw)
    drawn = draw(sampler, torch.full((ROWS,), 7), SCORES.repeat(ROWS, 1))
    weight = (lambda i: 1.0) if pool_draw == "uniform" else (lambda i: SCORES[0, i].exp().item())
    assert_law(drawn, ordered_law({i: weight(i) for i in (1, 4, 6)}, 2))


def test_pools_of_the_golden_case():
    case = GOLDEN["rodpo_pool_history"]
    scores = torch.tensor([case["inputs"]["logits"]])
    # The case counts items from 0; here 0 is padding.
    scores = torch.nn.functional.pad(scores, (1, 0), value=99.0)
    positive = torch.tensor([case["inputs"]["pos"] + 1])
    history = torch.tensor([case["inputs"]["history"]]) + 1
    counts = torch.ones(scores.shape[1], dtype=torch.int64)
    size = case["params"]["pool_size"]
    for exclude, key in ((False, "pool_excl_pos"), (True, "pool_excl_pos_and_history")):
        sampler = make(
            "pool", head=[1], counts=counts, pool_size=size, num_negatives=size,
            exclude_history=exclude,
        )  # fmt: skip
        drawn = sampler.sample(positive, scores, history)
        assert sorted(drawn[0].tolist()) == sorted(i + 1 for i in case["aux"][key])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_never_the_positive_padding_history_or_a_stranger(data):
    name = data.draw(st.sampled_from(sorted(SAMPLERS)))
    n = data.draw(st.integers(12, 40))
    seed = data.draw(st.integers(0, 999))
    which = data.draw(st.sampled_from(["all", "head"]))
    rows, k = 7, data.draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (n,), generator=rng)
    head = range(1, 11)
    sampler = make(
        name, head, counts, num_negatives=k, neg_candidates=which, exclude_history=True,
        max_history=4, pool_size=k + 1, sampler_space=data.draw(st.sampled_from(["probability", "logit"])),
    )  # fmt: skip
    positives = torch.randint(1, n, (rows,), generator=rng)
    history = torch.randint(0, n, (rows, 4), generator=rng)
    scores = 4 * torch.randn(rows, n, generator=rng)
    drawn = draw(sampler, positives, scores, history)
    assert drawn.shape == (rows, k) and drawn.dtype == torch.int64
    allowed = set(range(1, n) if which == "all" else head)
    for row, positive, seen in zip(drawn.tolist(), positives.tolist(), history.tolist()):
        assert set(row) <= allowed - {positive, *seen}
        if name not in ("popularity", "in_batch"):
            assert len(set(row)) == k


def test_the_generator_repeats_a_draw():
    for name in SAMPLERS:
        sampler, positives = make(name), torch.full((50,), 2)
        torch.manual_seed(5)
        first = draw(sampler, positives, SCORES.repeat(50, 1))
        torch.manual_seed(5)
        assert torch.equal(first, draw(sampler, positives, SCORES.repeat(50, 1)))


def test_skipping_exclusions_by_hand():
    position_of = torch.tensor([-1, 0, 1, 2, -1, 3])
    excluded, count = excluded_positions(torch.tensor([[4, 2, 2, 5, 0]]), position_of)
    assert count.tolist() == [2] and excluded[0, :2].tolist() == [1, 3]
    assert skip_excluded(torch.tensor([[0, 1]]), excluded).tolist() == [[0, 2]]


def test_distinct_ranks_by_hand():
    # Three of four ranks; the second round draws 1 again and takes its last rank, 2, instead.
    uniforms = torch.tensor([[0.5, 0.34, 0.0]], dtype=torch.float64)
    assert distinct_ranks(uniforms, torch.tensor([4])).tolist() == [[1, 2, 0]]


def test_first_distinct_by_hand():
    ids = torch.tensor([[7, 7, 3, 9, 3], [4, 4, 4, 4, 4]])
    valid = torch.tensor([[False, True, True, True, True], [True] * 5])
    picked, found = first_distinct(ids, valid, 2)
    assert picked[0].tolist() == [7, 3] and picked[1, 0] == 4 and found.tolist() == [2, 1]


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"name": "unifrom"}, "neg_sampler='unifrom'.*'uniform'"),
        ({"neg_candidates": "heads"}, "neg_candidates='heads'.*'head'"),
        ({"num_negatives": 8}, "num_negatives=8 is more than the 7 items"),
        ({"num_negatives": 6, "neg_candidates": "head"}, "num_negatives=6 .* 5 items"),
        ({"num_negatives": 4, "exclude_history": True, "max_history": 4}, "exclude_history: False"),
        ({"name": "pool", "pool_size": 1}, "pool_size=1 is smaller than num_negatives=2"),
        ({"name": "pool", "pool_size": 8}, "pool_size=8 is more than the 7"),
    ],
)
def test_what_cannot_work_is_refused(changes, match):
    changes = dict(changes)
    with pytest.raises(PrefError, match=match):
        make(changes.pop("name", "uniform"), **changes)


def test_a_million_items_are_no_burden():
    n = 1_000_000
    counts = torch.ones(n, dtype=torch.int64)
    sampler = make("uniform", head=[1], counts=counts, num_negatives=50, exclude_history=True)
    history = torch.randint(1, n, (2048, 50))
    drawn = draw(sampler, torch.randint(1, n, (2048,)), history=history)
    assert drawn.min() >= 1 and drawn.max() < n
    assert not (drawn.unsqueeze(2) == history.unsqueeze(1)).any()
