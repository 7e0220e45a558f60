"""Metrics against their definitions, written out with plain loops over users."""

import json
from collections import Counter
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.evaluator import metrics as recbole_metrics
from recbole.evaluator import register as recbole_register
from recbole.evaluator.collector import DataStruct

from recbole_pref import compat
from recbole_pref.errors import PrefError
from recbole_pref.evaluation import metrics
from recbole_pref.evaluation.collector import (
    distinct_targets,
    hit_table,
    mean_ranks,
    negatives_above,
)

compat.apply()
Config.compatibility_settings(None)  # names such as np.float, which RecBole's metrics use after a Config was made
GOLDEN = json.loads((Path(__file__).parent / "data" / "golden.json").read_text())["cases"]
GOLDEN = GOLDEN if isinstance(GOLDEN, list) else list(GOLDEN.values())
WPAUC_CASES = [case for case in GOLDEN if case["id"].startswith("wpauc_")]


class Settings(dict):
    """A config: absent keys are None, as in RecBole."""

    def __getitem__(self, key):
        return self.get(key)


def config(**values):
    return Settings({"topk": [1, 3, 5], "metric_decimal_place": 12, "metrics": [], **values})


def struct(**tables):
    data = DataStruct()
    for name, value in tables.items():
        data.set(name.replace("__", "."), value)
    return data


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("ndcg@10", "NDCG@10"), ("tailhit@5", "Tail Hit@5"), ("headndcg@20", "Head NDCG@20"), ("wpauc@10", "WPAUC@10"),
        ("tailpercentage@10", "TailPercentage@10"), ("gauc", "GAUC"), ("tailmine@10", "tailmine@10"), ("score", "score"),
    ],
)  # fmt: skip
def test_metrics_are_shown_as_documents_write_them(key, shown):
    metrics.register()
    assert metrics.display_name(key) == shown


def test_keys_have_a_group_a_name_and_a_cutoff():
    metrics.register()
    assert (
        metrics.parse_key("TailNDCG@10")
        == ("tail", "ndcg", 10)
        == metrics.parse_key(metrics.group_key("tail", "ndcg@10"))
    )
    assert metrics.parse_key("tailpercentage@5") == (None, "tailpercentage", 5)  # RecBole's, of no group
    assert metrics.parse_key("gauc") == (None, "gauc", None)
    assert metrics.smaller_is_better("giniindex@10") and not metrics.smaller_is_better("tailndcg@10")


# -- the definitions, one user at a time


def hit(hits, targets, k):
    return float(any(hits[:k]))


def recall(hits, targets, k):
    return sum(hits[:k]) / targets


def precision(hits, targets, k):
    return sum(hits[:k]) / k


def mrr(hits, targets, k):
    return next((1 / (place + 1) for place in range(k) if hits[place]), 0.0)


def ndcg(hits, targets, k):
    dcg = sum(1 / log2(place + 2) for place in range(k) if hits[place])
    return dcg / sum(1 / log2(place + 2) for place in range(min(targets, k)))


def mean_precision(hits, targets, k):
    total = sum(precision(hits, targets, place + 1) for place in range(k) if hits[place])
    return total / min(targets, k)


DEFINITIONS = {
    "Hit": hit,
    "Recall": recall,
    "NDCG": ndcg,
    "MRR": mrr,
    "Precision": precision,
    "MAP": mean_precision,
}


def make_users(seed, users=30, items=40, listed=5):
    """Random lists and target sets: [U, K] item ids, list of sets, tail flags [items]."""
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(np.arange(1, items))[:listed] for _ in range(users)])
    targets = [set(rng.choice(np.arange(1, items), rng.integers(1, 9), False).tolist()) for _ in range(users)]
    return lists, targets, rng.random(items) < 0.5


def group_table(lists, targets, wanted):
    """The table of :class:`PrefCollector`, built user by user."""
    rows = []
    for line, positives in zip(lists, targets, strict=True):
        kept = {item for item in positives if wanted[item]}
        rows.append([int(item in kept) for item in line] + [len(kept)])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("group", metrics.GROUPS)
@pytest.mark.parametrize("base", DEFINITIONS)
def test_group_metric_is_the_mean_over_users_with_a_target_in_the_group(group, base):
    lists, targets, tail = make_users(3)
    wanted = tail if group == "tail" else ~tail
    values = {1: [], 3: [], 5: []}
    for line, positives in zip(lists, targets, strict=True):
        kept = {item for item in positives if wanted[item]}
        for k, found in values.items():
            if kept:
                found.append(DEFINITIONS[base]([item in kept for item in line], len(kept), k))
    metric = getattr(metrics, f"{group.capitalize()}{base}")(config())
    table = group_table(lists, targets, wanted)
    assert 0 < (table[:, -1] == 0).sum() < len(table) or group == "head"
    result = metric.calculate_metric(struct(**{f"rec__topk_{group}": table}))
    expected = {f"{group}{base.lower()}@{k}": np.mean(found) for k, found in values.items()}
    assert result == pytest.approx(expected, abs=1e-11)


def test_group_metric_by_hand():
    # user 1: tail target at rank 2; user 2: no tail target; user 3: two tail targets, ranks 1 and none
    table = torch.tensor([[0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 2]])
    data = struct(rec__topk_tail=table)
    assert metrics.TailHit(config()).calculate_metric(data) == {
        "tailhit@1": 0.5,
        "tailhit@3": 1.0,
        "tailhit@5": 1.0,
    }
    assert metrics.TailRecall(config()).calculate_metric(data)["tailrecall@5"] == 0.75
    assert metrics.TailMRR(config()).calculate_metric(data)["tailmrr@5"] == 0.75


@pytest.mark.parametrize("group", metrics.GROUPS)
def test_an_empty_group_is_refused_with_the_settings_named(group):
    data = struct(**{f"rec__topk_{group}": torch.zeros(4, 6, dtype=torch.int32)})
    metric = getattr(metrics, f"{group.capitalize()}NDCG")
    with pytest.raises(PrefError) as error:
        metric(config(tail_split="interactions", head_ratio=0.9)).calculate_metric(data)
    message = str(error.value)
    assert metric.__name__ in message and group in message
    assert "tail_split='interactions'" in message and "head_ratio=0.9" in message
    assert ("a smaller head_ratio" if group == "tail" else "a larger head_ratio") in message


def test_a_table_that_was_not_collected_is_named():
    with pytest.raises(PrefError, match="cannot compute TailHit .it does not collect 'rec.topk_tail'"):
        metrics.TailHit(config()).calculate_metric(struct())
    with pytest.raises(PrefError, match="WPAUC"):
        metrics.WPAUC(config()).calculate_metric(struct(rec__topk=torch.ones(1, 6)))


# -- WPAUC


def wpauc_by_pairs(positive, negative, k):
    """The pair definition: the window's negatives by descending score, missing ones beaten."""
    negative = sorted(negative, reverse=True)
    ranks = range(max(k - len(positive), 0) + 1, k + 1)
    pairs = [float(rank > len(negative) or score > negative[rank - 1]) for score in positive for rank in ranks]
    return sum(pairs) / len(pairs)


def above_counts(positive, negative):
    return np.array([sum(score <= other for other in negative) for score in positive])


@pytest.mark.parametrize("case", WPAUC_CASES, ids=lambda case: case["id"])
def test_wpauc_golden(case):
    positive, negative = case["inputs"]["pos"], case["inputs"]["neg"]
    k = case["params"]["K"]
    value = metrics.wpauc(above_counts(positive, negative), [len(positive)], k)
    assert value == pytest.approx([case["aux"]["wpauc"]])
    if len(positive) == 1:
        assert value == pytest.approx([case["aux"]["recall_at_K"]])


def test_golden_file_has_the_wpauc_cases():
    assert len(WPAUC_CASES) == 4


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 10_000), min_size=8, max_size=30, unique=True),
    num_targets=st.integers(1, 6),
    k=st.integers(1, 12),
)
def test_wpauc_is_the_pair_definition(scores, num_targets, k):
    positive, negative = scores[:num_targets], scores[num_targets:]
    value = metrics.wpauc(above_counts(positive, negative), [num_targets], k)[0]
    assert value == pytest.approx(wpauc_by_pairs(positive, negative, k))


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 10_000), min_size=12, max_size=30, unique=True),
    num_targets=st.integers(1, 4),
    k=st.integers(4, 8),
)
def test_wpauc_bounds_recall_as_theorem_3_4(scores, num_targets, k):
    positive = scores[:num_targets]
    top = set(sorted(scores, reverse=True)[:k])
    recall_at_k = len(top & set(positive)) / num_targets
    value = metrics.wpauc(above_counts(positive, scores[num_targets:]), [num_targets], k)[0]
    lower = np.ceil(num_targets * (1 - np.sqrt(1 - value)) - 1e-9) / num_targets
    upper = np.floor(num_targets * np.sqrt(value) + 1e-9) / num_targets
    assert lower <= recall_at_k <= upper
    if num_targets == 1:
        assert value == recall_at_k


def test_wpauc_metric_averages_over_users():
    data = struct(
        rec__topk=torch.tensor([[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 2]]),
        rec__above=torch.tensor([1, 0, 5]),
    )
    result = metrics.WPAUC(config()).calculate_metric(data)
    # user 1 is in the list from k = 2; user 2 beats the whole window with one of its two targets
    assert result == {"wpauc@1": 0.25, "wpauc@3": 0.75, "wpauc@5": 0.75}


# -- the tables behind the metrics


def ranked_batch(seed, rows=40, items=30, most=6, levels=None):
    """Scores [rows, items] (few distinct levels make ties), and several targets per row."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        scores = torch.randint(levels, (rows, items), generator=generator).float()
    else:
        scores = torch.randn(rows, items, generator=generator)
    scores[:, 0] = -torch.inf
    chosen = [(torch.randperm(items - 1, generator=generator)[: 1 + row % most] + 1) for row in range(rows)]
    positive_u = torch.cat([torch.full_like(ids, row) for row, ids in enumerate(chosen)])
    return scores, positive_u, torch.cat(chosen)


def test_distinct_targets_drops_repetitions_and_sees_single_targets():
    rows, items, single = distinct_targets(torch.tensor([0, 0, 0, 1]), torch.tensor([5, 2, 5, 7]), 2, 10)
    assert (rows.tolist(), items.tolist(), single) == ([0, 0, 1], [2, 5, 7], False)
    rows, items, single = distinct_targets(torch.arange(3), torch.tensor([4, 4, 1]), 3, 10)
    assert (rows.tolist(), items.tolist(), single) == ([0, 1, 2], [4, 4, 1], True)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("most", [1, 6])
def test_negatives_above_against_a_walk_down_the_ranking(levels, most):
    k = 5
    scores, positive_u, positive_i = ranked_batch(7, most=most, levels=levels)
    num_rows, num_items = scores.shape
    rows, items, single = distinct_targets(positive_u, positive_i, num_rows, num_items)
    assert single == (most == 1)
    listed = torch.topk(scores, k).indices
    hits = hit_table(listed, rows, items, num_items, single)
    above = negatives_above(scores, listed, hits, rows, items, single)
    expected = []
    for row, item in zip(rows.tolist(), items.tolist(), strict=True):
        positives = set(items[rows == row].tolist())
        line = listed[row].tolist()
        if item in line:
            count = sum(other not in positives for other in line[: line.index(item)])
        else:
            count = sum(scores[row, other] >= scores[row, item] for other in range(num_items) if other not in positives)
        expected.append(min(int(count), k))
    assert above.tolist() == expected
    outside = [item not in listed[row] for row, item in zip(rows, items, strict=True)]
    assert any(outside) and not all(outside)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("most", [1, 6])
def test_mean_ranks_average_over_ties(levels, most):
    scores, positive_u, positive_i = ranked_batch(11, most=most, levels=levels)
    scores[3, [5, 9]] = -torch.inf
    scores[positive_u, positive_i] = scores[positive_u, positive_i].clamp(min=-3)
    rows, items, single = distinct_targets(positive_u, positive_i, *scores.shape)
    table = mean_ranks(scores, rows, items, single)
    for row in range(len(scores)):
        line, positives = scores[row].tolist(), items[rows == row].tolist()
        ranks = [
            sum(other > line[item] for other in line) + (sum(other == line[item] for other in line) + 1) / 2
            for item in positives
        ]
        length = sum(other > -np.inf for other in line)
        assert table[row].tolist() == [sum(ranks), length, len(positives)]


# -- RecBole's diversity metrics


def diversity_data(seed=0):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(np.arange(1, 60))[:5] for _ in range(25)])
    popularity = rng.integers(1, 6, 50)  # ties, and items 51 to 59 without a count
    order = rng.permutation(np.arange(1, 51))
    counts = Counter({int(item): int(count) for item, count in zip(order, popularity, strict=True)})
    return struct(rec__items=torch.from_numpy(lists), data__count_items=counts)


@pytest.mark.parametrize("ratio", [None, 0, 0.01, 0.1, 0.37, 0.8, 1, 2, 4])
def test_tail_percentage_equals_recbole(ratio):
    values = config(tail_ratio=ratio)
    ours = metrics.TailPercentage(values).calculate_metric(diversity_data())
    assert ours == recbole_metrics.TailPercentage(values).calculate_metric(diversity_data())


def test_average_popularity_equals_recbole():
    ours = metrics.AveragePopularity(config()).calculate_metric(diversity_data())
    theirs = recbole_metrics.AveragePopularity(config()).calculate_metric(diversity_data())
    assert ours == theirs and ours["averagepopularity@5"] > 0


# -- registration


def test_register_is_idempotent_and_complete():
    metrics.register()
    before = [dict(recbole_register.metrics_dict), list(recbole_register.smaller_metrics)]
    metrics.register()
    assert before == [recbole_register.metrics_dict, recbole_register.smaller_metrics]
    assert recbole_register.smaller_metrics.count("averagepopularity") == 1
    for name in ("tailhit", "headndcg", "wpauc", "tailpercentage", "averagepopularity"):
        assert recbole_register.metrics_dict[name].__module__ == "recbole_pref.evaluation.metrics"
        assert recbole_register.metric_information[name]
        assert recbole_register.metric_types[name] == recbole_register.metric_types["hit"]


def test_group_metrics_in_does_not_count_recboles_tail_percentage():
    asked = metrics.group_metrics_in(config(metrics=["hit", "TailPercentage", "tailNDCG", "HeadHit"]))
    assert asked == {"tail": ["TailNDCG"], "head": ["HeadHit"]}
