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

from recbole_pref import samplers
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.draws import (
    distinct_ranks,
    excluded_positions,
    first_distinct,
    gumbel_topk,
    hashed_uniforms,
    inverse_cdf,
    largest,
    skip_excluded,
)
from recbole_pref.errors import PrefError
from recbole_pref.samplers import SAMPLERS, NegativeSampler

GOLDEN = {case["id"]: case for case in json.loads((Path(__file__).parent / "data/golden.json").read_text())["cases"]}
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
    given = {key: changes[key] for key in ("max_history", "total") if key in changes}
    return NegativeSampler(options, counts, mask, **given)


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
    cells = [(chance * len(drawn), seen.get(key, 0)) for key, chance in law.items() if chance > 0]
    # The chi-square approximation needs some five expected draws a cell: rare ones share one.
    rare = [cell for cell in cells if cell[0] < 5]
    common = sorted(cell for cell in cells if cell[0] >= 5)
    common[0] = tuple(map(sum, zip(common[0], *rare)))
    expected, observed = zip(*common)
    assert chisquare(observed, expected).pvalue > 1e-4


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


def test_in_batch_follows_the_targets_of_all_processes():
    torch.manual_seed(0)
    others = torch.tensor([0, 0, 0, 0, 0, 3, 0, 0, 0]) * (ROWS // 3)  # of another process
    sampler = make("in_batch", num_negatives=1, total=lambda counts: counts + others)
    drawn = draw(sampler, torch.tensor([1, 1, 2]).repeat(ROWS // 3))
    assert_law(drawn[2::3], {(1,): 2 / 5, (5,): 3 / 5})


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
    value = {i: (pi[i - 1] if space == "probability" else SCORES[0, i]).exp() for i in head}
    law = ordered_law({i: value[i].item() for i in head}, 2)
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
def test_gumbel_in_parts_is_plackett_luce_with_each_parts_scores(space):
    # The second part's scores are the first's the other way round, and its candidates the same.
    torch.manual_seed(8)
    sampler = make("gumbel", sampler_space=space)
    two = torch.stack([SCORES[0], torch.cat([SCORES[0, :1], SCORES[0, 1:].flip(0)])])
    begun = sampler.begin(torch.full((2 * ROWS,), 2))
    for number, scores in enumerate(two):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        pi = torch.softmax(scores[1:], 0)
        value = {i: (pi[i - 1] if space == "probability" else scores[i]).exp() for i in range(1, N) if i != 2}
        law = ordered_law({i: chance.item() for i, chance in value.items()}, 2)
        assert_law(begun.finish(rows, scores.repeat(ROWS, 1)), law)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_in_parts_covers_the_batch(name):
    sampler = make(name, exclude_history=True, max_history=2)
    torch.manual_seed(1)
    scores, history = torch.randn(60, N), torch.randint(0, N, (60, 2))
    positives, before = torch.randint(1, N, (60,)), scores.clone()
    begun = sampler.begin(positives, history, torch.arange(60))
    parts = [begun.finish(rows, scores[rows]) for rows in (slice(0, 7), slice(7, 8), slice(8, 60))]
    assert [len(part) for part in parts] == [7, 1, 52]
    for ids, positive, items in zip(torch.cat(parts).tolist(), positives.tolist(), history.tolist()):
        assert not {0, positive, *items} & set(ids)
    assert torch.equal(scores, before)
    if name in ("fixed", "topk"):  # which leave nothing to chance
        assert torch.equal(torch.cat(parts), sampler.sample(positives, scores, history, torch.arange(60)))


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_gumbel_is_plackett_luce_with_a_history_and_one_dominant_item(space):
    # Item 4 holds nearly all draws: most rows need several rounds for their three items.
    torch.manual_seed(3)
    scores = torch.tensor([[9.0, 1.0, 0.0, 0.5, 6.0, 1.5, 0.0, -0.5, 1.0]])
    history = torch.tensor([[1, 7, 1, 0]])
    positives = torch.full((ROWS,), 2)
    sampler = make("gumbel", num_negatives=3, sampler_space=space, exclude_history=True)
    drawn = draw(sampler, positives, scores.repeat(ROWS, 1), history.repeat(ROWS, 1))
    pi = torch.softmax(scores[0, 1:], 0)
    left = (3, 4, 5, 6, 8)
    value = {i: (pi[i - 1] if space == "probability" else scores[0, i]).exp() for i in left}
    assert_law(drawn, ordered_law({i: value[i].item() for i in left}, 3))


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_gumbel_of_rows_without_a_draw_is_plackett_luce(space, monkeypatch):
    # The function that ends such rows is also the one that accelerators use for all.
    torch.manual_seed(7)
    draw_nothing = lambda sampler, call: (
        torch.zeros(len(call.positives), 9, dtype=torch.int64),
        torch.zeros(len(call.positives), 9, dtype=torch.bool),
    )
    monkeypatch.setattr(samplers, "_draw_by_probability", draw_nothing)
    monkeypatch.setattr(samplers, "_draw_by_logit", draw_nothing)
    sampler = make("gumbel", neg_candidates="head", sampler_space=space)
    drawn = draw(sampler, torch.full((ROWS,), 2), SCORES.repeat(ROWS, 1))
    pi = torch.softmax(SCORES[0, 1:], 0)
    left = (1, 3, 4, 5, 6)
    value = {i: (pi[i - 1] if space == "probability" else SCORES[0, i]).exp() for i in left}
    assert_law(drawn, ordered_law({i: value[i].item() for i in left}, 2))


def test_gumbel_draws_far_apart_scores_in_their_order():
    # Each round of draws finds one item: after eight rounds others are still missing.
    scores = torch.arange(0.0, -30_000.0, -1000.0).repeat(4, 1)
    counts = torch.ones(30, dtype=torch.int64)
    sampler = make("gumbel", head=[1], counts=counts, num_negatives=20, sampler_space="logit")
    drawn = draw(sampler, torch.full((4,), 3), scores)
    assert drawn.tolist() == [[1, 2, *range(4, 22)]] * 4


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_gumbel_law_survives_a_positive_that_holds_all_the_mass(space):
    # The negatives' probabilities are below the smallest float32.
    torch.manual_seed(4)
    scores = SCORES.clone()
    scores[0, 2] = 150.0
    sampler = make("gumbel", neg_candidates="head", sampler_space=space)
    drawn = draw(sampler, torch.full((ROWS,), 2), scores.repeat(ROWS, 1))
    logit = space == "logit"
    value = {i: SCORES[0, i].exp().item() if logit else 1.0 for i in (1, 3, 4, 5, 6)}
    assert_law(drawn, ordered_law(value, 2))


def test_gumbel_over_a_large_catalogue():
    # 4,000 candidates, so that the groups of the two-level draw have many items each; one row whose
    # law is summed up in five bins.
    torch.manual_seed(5)
    n = 4_003
    scores = torch.randn(1, n) * 2
    scores[0, 77] = 10.0
    counts = torch.ones(n, dtype=torch.int64)
    positives = torch.full((4_000,), 5)
    for space in ("probability", "logit"):
        sampler = make("gumbel", head=[1], counts=counts, num_negatives=1, sampler_space=space)
        weights = scores[0].double()
        weights[0] = -torch.inf
        if space == "probability":
            weights = torch.softmax(weights, 0)
        weights = weights.exp()
        weights[[0, 5]] = 0.0
        bins = torch.arange(n) % 4
        bins[77] = 4
        law = torch.zeros(5, dtype=torch.float64).index_add_(0, bins, weights / weights.sum())
        drawn = torch.cat([draw(sampler, positives, scores.expand(4_000, -1)) for _ in range(5)])
        assert_law(bins[drawn], {(i,): law[i].item() for i in range(5)})


def test_gumbel_on_broken_scores_still_gives_distinct_candidates():
    for space in ("probability", "logit"):
        sampler = make("gumbel", neg_candidates="head", num_negatives=3, sampler_space=space)
        drawn = draw(sampler, torch.full((20,), 2), torch.full((20, N), torch.nan))
        for row in drawn.tolist():
            assert len(set(row)) == 3 and set(row) <= {1, 3, 4, 5, 6}


def test_sampling_probabilities_of_equation_14_are_the_golden_case():
    case = GOLDEN["lpo_sampling_eq14"]
    # The case counts items from 0; here 0 is padding.
    scores = torch.nn.functional.pad(torch.tensor([case["inputs"]["logits"]]), (1, 0), value=5.0)
    head = [i + 1 for i in case["inputs"]["head"]]
    positive = case["inputs"]["pos"] + 1
    for space, key in (
        ("probability", "eq14_over_head_pos_removed"),
        ("logit", "pi_over_head_pos_removed"),
    ):
        torch.manual_seed(6)
        sampler = make("gumbel", head=head, neg_candidates="head", num_negatives=1, sampler_space=space)
        drawn = draw(sampler, torch.full((ROWS,), positive), scores.repeat(ROWS, 1))
        left = [i for i in head if i != positive]
        assert_law(drawn, {(i,): chance for i, chance in zip(left, case["aux"][key])})


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
        assert gumbel_topk(values, 2, allowed, noise=noise)[0].tolist() == case["aux"][key]


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
    if pool_draw == "uniform":  # the order within a set is free
        assert_law(drawn.sort(dim=1).values, {pair: 1 / 3 for pair in ((1, 4), (1, 6), (4, 6))})
    else:
        assert_law(drawn, ordered_law({i: SCORES[0, i].exp().item() for i in (1, 4, 6)}, 2))


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
    n = data.draw(st.integers(22, 300))
    seed = data.draw(st.integers(0, 999))
    which = data.draw(st.sampled_from(["all", "head", "tail"]))
    exclude = data.draw(st.booleans())
    rows, k = 7, data.draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (n,), generator=rng)
    head = range(1, 11)
    sampler = make(
        name, head, counts, num_negatives=k, neg_candidates=which, exclude_history=exclude,
        max_history=4, pool_size=k + 1, pool_draw=data.draw(st.sampled_from(["uniform", "score"])),
        sampler_space=data.draw(st.sampled_from(["probability", "logit"])),
    )  # fmt: skip
    positives = torch.randint(1, n, (rows,), generator=rng)
    history = torch.randint(0, n, (rows, 4), generator=rng)
    scores = data.draw(st.sampled_from([0.1, 4.0, 40.0])) * torch.randn(rows, n, generator=rng)
    before = scores.clone()
    drawn = draw(sampler, positives, scores, history)
    assert torch.equal(scores, before)
    assert drawn.shape == (rows, k) and drawn.dtype == torch.int64
    allowed = set({"all": range(1, n), "head": head, "tail": range(11, n)}[which])
    for b, (row, positive, seen) in enumerate(zip(drawn.tolist(), positives.tolist(), history.tolist())):
        left = allowed - {positive, *(seen if exclude else [])}
        assert set(row) <= left
        if name == "topk":
            ranked = sorted(left, key=lambda i: -scores[b, i].item())
            assert row == ranked[:k]
        if name.endswith("pool"):
            ranked = sorted(left, key=lambda i: -scores[b, i].item())
            assert set(row) <= set(ranked[: k + 1])
        if name not in ("popularity", "in_batch"):
            assert len(set(row)) == k


def test_the_generator_repeats_a_draw():
    for name in SAMPLERS:
        sampler, positives = make(name), torch.full((50,), 2)
        torch.manual_seed(5)
        first = draw(sampler, positives, SCORES.repeat(50, 1))
        torch.manual_seed(5)
        assert torch.equal(first, draw(sampler, positives, SCORES.repeat(50, 1)))


def test_a_given_generator_leaves_the_global_one_alone():
    positives = torch.full((50,), 2)
    for name in SAMPLERS:
        for space in ("probability", "logit"):
            sampler, state = make(name, sampler_space=space), torch.get_rng_state()
            first, second = (
                sampler.sample(
                    positives,
                    SCORES.repeat(50, 1),
                    keys=torch.arange(50),
                    generator=torch.Generator().manual_seed(9),
                )
                for _ in range(2)
            )
            assert torch.equal(first, second)
            assert torch.equal(torch.get_rng_state(), state)


def test_the_normalizer_is_optional():
    torch.manual_seed(5)
    sampler, positives, scores = make("gumbel"), torch.full((50,), 2), SCORES.repeat(50, 1)
    assert sampler.needs_normalizer and not make("gumbel", sampler_space="logit").needs_normalizer
    first = draw(sampler, positives, scores)
    torch.manual_seed(5)
    assert torch.equal(first, sampler.sample(positives, scores))


def test_what_a_sampler_holds_follows_the_model_but_is_not_saved():
    model = torch.nn.ModuleDict({"sampler": make("popularity")})
    assert not model.state_dict()
    assert model.to("meta")["sampler"].candidates.is_meta
    assert {name for name, _ in make("popularity").named_buffers()} == {
        "columns", "position_of", "popularity",
    }  # fmt: skip


def test_many_negatives_of_few_candidates():
    # 300 of 310: single draws repeat, so that rows are completed in several rounds.
    torch.manual_seed(0)
    n = 312
    counts = torch.ones(n, dtype=torch.int64)
    scores = torch.randn(6, n)
    for name in ("uniform", "fixed", "gumbel", "topk", "pool"):
        for space in ("probability", "logit"):
            sampler = make(name, head=[1], counts=counts, num_negatives=300, pool_size=305, sampler_space=space)
            drawn = draw(sampler, torch.arange(1, 7), scores)
            assert all(len(set(row)) == 300 for row in drawn.tolist())
            assert not (drawn == torch.arange(1, 7).unsqueeze(1)).any()


@given(st.integers(1, 400), st.integers(1, 30), st.integers(0, 99))
def test_the_largest_are_those_of_torch(n, k, seed):
    values = torch.randint(0, 50, (3, n), generator=torch.Generator().manual_seed(seed)).float()
    k = min(k, n)
    ours, theirs = largest(values, k), values.topk(k, dim=1)
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(values.gather(1, ours.indices), ours.values)
    assert all(len(set(row)) == k for row in ours.indices.tolist())


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 99))
def test_inverse_cdf_reaches_exactly_what_has_weight(n, draws, seed):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(2, n, generator=rng) * (torch.rand(2, n, generator=rng) < 0.2)
    uniforms = torch.rand(2, draws, generator=rng, dtype=torch.float64)
    uniforms[:, 0] = 1 - 2**-53  # the last item with weight
    columns, valid = inverse_cdf(weights, uniforms)
    for b in range(2):
        assert valid[b].all() == bool(weights[b].any())
        if valid[b].any():
            assert (weights[b][columns[b]] > 0).all()


def test_inverse_cdf_by_hand():
    # Groups of every other column: 0, 2 and 1, 3.
    weights = torch.tensor([[1.0, 2.0, 3.0, 2.0]])
    uniforms = torch.tensor([[0.0, 0.124, 0.126, 0.499, 0.501, 0.749, 0.751, 0.999]]).double()
    assert inverse_cdf(weights, uniforms[:, :1])[0].tolist() == [[0]]
    drawn = torch.cat([inverse_cdf(weights, u.view(1, 1))[0] for u in uniforms[0]], dim=1)
    assert drawn.tolist() == [[0, 0, 2, 2, 1, 1, 3, 3]]


@pytest.mark.parametrize("n", [1, 2, 5, 11, 23, 101])
def test_inverse_cdf_gives_every_column_its_share(n):
    weights = torch.arange(1.0, n + 1).repeat(20_000, 1)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn, valid = inverse_cdf(weights, grid.unsqueeze(1))
    share = torch.bincount(drawn[:, 0], minlength=n) / 20_000
    assert valid.all()
    torch.testing.assert_close(share, weights[0] / weights[0].sum(), atol=1e-4, rtol=0)


def test_hashed_uniforms_are_splitmix64():
    # Seeded with 0, SplitMix64 gives 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F
    # (Vigna's reference); the first is the stream that seed 0 picks.
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(state):
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    assert [mix(golden * j & mask) for j in (1, 2, 3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip
    ours = hashed_uniforms(torch.tensor([0, 7, 2**40]), 0, 3)
    for b, key in enumerate((0, 7, 2**40)):
        for j in range(3):
            bits = mix((0xE220A8397B1DCDAF + (key * 3 + j + 1) * golden) & mask)
            assert ours[b, j].item() == (bits >> 11) / 2**53


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
        ({"name": "reference_pool", "pool_size": 1}, "pool_size=1 is smaller"),
        ({"num_negatives": 0}, "num_negatives=0 is too small: set it to 1"),
        ({"popularity_alpha": -0.5}, "popularity_alpha=-0.5 is too small: set it to 0"),
        ({"sampler_space": "logits"}, "sampler_space='logits'.*'logit'"),
        ({"pool_draw": "scores"}, "pool_draw='scores'.*'score'"),
    ],
)
def test_what_cannot_work_is_refused(changes, match):
    changes = dict(changes)
    with pytest.raises(PrefError, match=match):
        make(changes.pop("name", "uniform"), **changes)


@pytest.mark.parametrize(
    "name, changes, given, match",
    [
        ("topk", {}, {}, "neg_sampler='topk' needs the scores of the policy"),
        ("reference_pool", {}, {}, "needs the scores of the reference"),
        ("fixed", {}, {}, "neg_sampler='fixed' needs row numbers"),
        ("uniform", {"exclude_history": True}, {}, "exclude_history=True needs the histories"),
    ],
)
def test_a_call_that_lacks_something_is_refused(name, changes, given, match):
    with pytest.raises(PrefError, match=match):
        make(name, **changes).sample(torch.tensor([7]), **given)


def test_small_catalogues_need_room_for_the_longest_history_alone(tiny_dataset):
    # 40 items, MAX_ITEM_LIST_LENGTH 39, and nobody has more than 17: 20 negatives are left.
    settings = {**tiny_dataset, "MAX_ITEM_LIST_LENGTH": 39, "num_negatives": 20, "exclude_history": True}
    run = build_run(Config("SDPOSASRec", config_dict={**settings, "neg_candidates": "all"}), log=False)
    assert run.model.step.sampler.k == 20


def test_a_million_items_are_sampled_in_bounded_memory_and_time():
    n = 1_000_000
    counts = torch.ones(n, dtype=torch.int64)
    sampler = make("uniform", head=[1], counts=counts, num_negatives=50, exclude_history=True)
    history = torch.randint(1, n, (2048, 50))
    drawn = draw(sampler, torch.randint(1, n, (2048,)), history=history)
    assert drawn.min() >= 1 and drawn.max() < n
    assert not (drawn.unsqueeze(2) == history.unsqueeze(1)).any()
