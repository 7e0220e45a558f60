"""Evaluation against RecBole's own trainer and collector, and masking against plain loops.

Models here hand out fixed whole-number scores: sums are exact whatever the chunk, and ties abound.
"""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.evaluator import metrics as recbole_metrics
from recbole.evaluator.collector import Collector, DataStruct
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import InputType

from recbole_pref import compat
from recbole_pref.build import build_run
from recbole_pref.config import Config as RunConfig
from recbole_pref.errors import PrefError
from recbole_pref.evaluation import metrics
from recbole_pref.evaluation.collector import PrefCollector
from recbole_pref.evaluation.ranking import (
    EvaluationMixin,
    SeenItems,
    cut_pairs,
    mask_seen,
)
from recbole_pref.scoring import chunk_rows

compat.apply()
metrics.register()

SHARED = ["Hit", "MRR", "NDCG", "Recall", "Precision", "MAP", "GAUC"]
DIVERSITY = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage", "ShannonEntropy"]
LEAVE_ONE_OUT = {"LS": "valid_and_test"}
RATIO = {"RS": [0.6, 0.2, 0.2]}


class Scores:
    """Fixed scores per user and item, from small whole-number factors."""

    def build(self, config, dataset):
        generator = torch.Generator().manual_seed(5)
        users = torch.randint(-3, 4, (dataset.user_num, 6), generator=generator).float()
        items = torch.randint(-3, 4, (dataset.item_num, 6), generator=generator).float()
        self.users, self.items = torch.nn.Parameter(users), torch.nn.Parameter(items)
        self.user_field, self.item_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.calls = []

    def full_sort_predict(self, interaction):
        self.calls.append(len(interaction))
        return self.users[interaction[self.user_field]] @ self.items.T

    def predict(self, interaction):
        pairs = self.users[interaction[self.user_field]], self.items[interaction[self.item_field]]
        return (pairs[0] * pairs[1]).sum(1)


class Sequential(Scores, SequentialRecommender):
    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.build(config, dataset)


class TwoStep(Sequential):
    """Encodes a batch and scores pieces of it."""

    def encode(self, interaction):
        self.calls.append(len(interaction))
        return self.users[interaction[self.user_field]]

    def score_items(self, hidden, interaction):
        self.calls.append(-len(hidden))
        return hidden @ self.items.T

    def full_sort_predict(self, interaction):
        raise AssertionError("a model that encodes is not asked for whole score rows")


class NoBackbone(TwoStep):
    """A preference model without an entry in ``backbones``: it has ``encode`` but cannot use it."""

    backbone = None

    def encode(self, interaction):
        raise AssertionError("there is no backbone to encode with")

    full_sort_predict = Scores.full_sort_predict


class PerItem(Sequential):
    """Scores pairs only: RecBole's fallback for models without full_sort_predict."""

    def full_sort_predict(self, interaction):
        raise NotImplementedError


class General(Scores, GeneralRecommender):
    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.build(config, dataset)


class OurTrainer(EvaluationMixin, Trainer):
    def __init__(self, config, model):
        super().__init__(config, model)
        self.eval_collector = self._make_collector()


class StockCollector(Collector):
    """RecBole's collector, whose ``get_data_struct`` calls ``.cpu()`` on counters and crashes."""

    def get_data_struct(self):
        plain = {
            name: value for name, value in self.data_struct._data_dict.items() if not isinstance(value, torch.Tensor)
        }
        for name in plain:
            del self.data_struct[name]
        returned = super().get_data_struct()
        for name, value in plain.items():
            self.data_struct.set(name, value)
            returned.set(name, value)
        return returned


class StockEvaluator(Evaluator):
    """RecBole's evaluator with RecBole's own metric classes."""

    def __init__(self, config):
        super().__init__(config)
        own = {name.lower(): getattr(recbole_metrics, name) for name in SHARED + DIVERSITY}
        self.metric_class = {name: own[name](config) for name in self.metrics}


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """80 users with 6 to 20 interactions over about 60 items, popular items first."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(80):
        chosen = np.minimum(rng.geometric(0.06, rng.integers(6, 21)), 60)
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
        rows += [(f"u{user}", f"i{item}", 100 * user + time) for time, item in enumerate(chosen)]
    folder = tmp_path_factory.mktemp("data")
    (folder / "small").mkdir()
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_csv(folder / "small" / "small.inter", sep="\t", index=False)
    return folder


@pytest.fixture
def make(data_path, tmp_path, monkeypatch):
    """Return a function that builds (config, train, valid, test, model)."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)

    def build(model_class, mode="full", split=LEAVE_ONE_OUT, **values):
        general = issubclass(model_class, GeneralRecommender)
        settings = {
            "data_path": str(data_path),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 4,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": mode},
            "metrics": SHARED,
            "valid_metric": "MRR@5",
            "topk": [1, 3, 5, 10],
            "metric_decimal_place": 10,
            "tail_split": "items",
            "head_ratio": 0.2,
            "eval_batch_size": 4000 if general or mode != "full" else 33,
            "checkpoint_dir": str(tmp_path),
            "use_gpu": False,
            "show_progress": False,
            **values,
        }
        config = Config(model=model_class, dataset="small", config_dict=settings)
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
        return (config, *loaders, model_class(config, loaders[0].dataset))

    return build


def run(trainer, train_data, eval_data):
    """Evaluate with the negatives of seed 3."""
    trainer.eval_collector.data_collect(train_data)
    np.random.seed(3)
    return trainer.evaluate(eval_data, load_best_model=False)


def stock_result(config, model, train_data, eval_data):
    trainer = Trainer(config, model)
    trainer.eval_collector = StockCollector(config)
    trainer.evaluator = StockEvaluator(config)
    return run(trainer, train_data, eval_data)


def memory_for(rows, train_data):
    """Return the budget in MiB that holds exactly this many rows of scores."""
    return rows * train_data.dataset.item_num * 4 / 2**20


CASES = [
    (Sequential, "full", LEAVE_ONE_OUT),
    (TwoStep, "full", LEAVE_ONE_OUT),
    (TwoStep, "full", RATIO),
    (PerItem, "full", LEAVE_ONE_OUT),
    (NoBackbone, "full", LEAVE_ONE_OUT),
    (Sequential, "uni20", LEAVE_ONE_OUT),
    (Sequential, "pop20", RATIO),
    (General, "full", RATIO),
    (General, "uni20", RATIO),
]


@pytest.mark.parametrize("rows", [1, 7, None])
@pytest.mark.parametrize("model_class, mode, split", CASES)
def test_every_shared_metric_equals_recboles(make, model_class, mode, split, rows):
    config, train, _, test, model = make(model_class, mode, split, metrics=SHARED + DIVERSITY)
    if rows is not None:
        config["logits_memory_mb"] = memory_for(rows, train)
    reference = Sequential(config, train.dataset) if model_class is TwoStep else model
    expected = stock_result(config, reference, train, test)
    trainer = OurTrainer(config, model)
    assert run(trainer, train, test) == expected
    assert run(trainer, train, test) == expected  # nothing is left over from the first time
    assert len(expected) == 11 * 4 + 1 and 0 < expected["hit@5"] < 1


def test_chunks_hold_no_more_rows_than_the_budget(make):
    config, train, _, test, model = make(TwoStep)
    config["logits_memory_mb"] = memory_for(7, train)
    run(OurTrainer(config, model), train, test)
    # 33 rows a batch: encoded at once, scored in sevens
    assert model.calls[:6] == [33, -7, -7, -7, -7, -5]
    config, train, _, test, model = make(Sequential)
    config["logits_memory_mb"] = memory_for(7, train)
    run(OurTrainer(config, model), train, test)
    assert model.calls[:5] == [7, 7, 7, 7, 5]


def test_chunk_rows():
    assert chunk_rows(2**18, None, "cpu", float("inf")) == 256  # 1 MiB a row, 256 MiB
    assert chunk_rows(2**18, None, "cuda") == 1024
    assert chunk_rows(2**18, 10) == 10
    assert chunk_rows(2**18, 0.5) == 1
    assert chunk_rows(2**18, None, "cpu", 16, 32) == 32  # 16 MiB would be fewer rows than 32
    assert chunk_rows(2**18, 8, "cpu", 16, 32) == 8
    assert chunk_rows(2**14, None, "cpu", 16, 32) == 256


def test_cut_pairs():
    rows = torch.tensor([0, 0, 2, 2, 3, 5])
    assert rows[cut_pairs(rows, 1, 4)].tolist() == [2, 2, 3]
    assert rows[cut_pairs(rows, 4, 5)].tolist() == []


# -- head and tail


def plain_ranking(model, interaction, banned, positive, k=10):
    """Rank all items of one row by score; ``banned`` and padding are left out."""
    scores = model.users[interaction] @ model.items.T
    order = sorted(range(1, len(scores)), key=lambda item: -float(scores[item]))
    return [item for item in order if item not in banned or item in positive][:k]


@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("model_class, mode, split", [CASES[1], *CASES[5:]])
def test_group_metrics_follow_from_the_users_they_count(make, model_class, mode, split, rows):
    names = ["Hit", "Recall", "NDCG", "MRR", "Precision", "MAP"]
    asked = names + [group + name for group in ("Tail", "Head") for name in names]
    config, train, _, test, model = make(model_class, mode, split, metrics=[*asked, "ItemCoverage"])
    if rows is not None:
        config["logits_memory_mb"] = memory_for(rows, train)
    trainer = OurTrainer(config, model)
    collected = []
    trainer.evaluator.evaluate = lambda data: collected.append(data) or Evaluator.evaluate(trainer.evaluator, data)
    result = run(trainer, train, test)
    table, items = collected[0].get("rec.topk").numpy(), collected[0].get("rec.items").numpy()
    for group, tail in (("Tail", True), ("Head", False)):
        wanted = trainer.eval_collector.tail_mask.numpy() == tail
        group_table = collected[0].get(f"rec.topk_{group.lower()}").numpy()
        assert (group_table[:, :-1] == table[:, :-1] * wanted[items]).all()
        kept = group_table[group_table[:, -1] > 0]
        struct = DataStruct()
        struct.set("rec.topk", torch.from_numpy(kept))
        for name in names:
            plain = getattr(recbole_metrics, name)(config).calculate_metric(struct)
            for key, value in plain.items():
                assert result[group.lower() + key] == value
    parts = [collected[0].get(f"rec.topk_{group}")[:, -1] for group in metrics.GROUPS]
    assert torch.equal(parts[0] + parts[1], collected[0].get("rec.topk")[:, -1])


def test_tail_mask_counts_every_training_interaction(make, data_path):
    config, train, _, _, model = make(TwoStep, head_ratio=0.3)
    trainer = OurTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    log = pd.read_csv(data_path / "small" / "small.inter", sep="\t")
    by_user = log.groupby("user_id:token")["item_id:token"]
    in_training = pd.concat([items.iloc[:-2] for _, items in by_user])
    tokens = train.dataset.field2id_token["item_id"]
    counts = in_training.value_counts()
    expected = [0] + [int(counts.get(token, 0)) for token in tokens[1:]]
    assert trainer.eval_collector.train_count.tolist() == expected
    tail = trainer.eval_collector.tail_mask
    head_counts = [count for count, flag in zip(expected[1:], tail[1:], strict=True) if not flag]
    tail_counts = [count for count, flag in zip(expected[1:], tail[1:], strict=True) if flag]
    assert not tail[0] and min(head_counts) >= max(tail_counts)


def test_wpauc_of_one_target_is_recall_and_of_several_is_the_pair_definition(make):
    asked = ["Recall", "WPAUC"]
    config, train, _, test, model = make(TwoStep, metrics=asked)
    result = run(OurTrainer(config, model), train, test)
    assert [result[f"wpauc@{k}"] for k in (1, 3, 5, 10)] == [result[f"recall@{k}"] for k in (1, 3, 5, 10)]

    config, train, _, test, model = make(General, split=RATIO, metrics=asked, topk=[2, 6])
    torch.nn.init.normal_(model.users)  # no ties
    config["logits_memory_mb"] = memory_for(5, train)
    result = run(OurTrainer(config, model), train, test)
    for k in (2, 6):
        values = []
        for batch in test:
            users, history, positive_u, positive_i = batch
            scores = (model.users[users["user_id"]] @ model.items.T).detach()
            scores[:, 0] = -torch.inf
            scores[history] = -torch.inf
            for row in range(len(scores)):
                targets = positive_i[positive_u == row].tolist()
                others = [i for i in range(scores.shape[1]) if i not in targets]
                others = sorted(scores[row, others].tolist(), reverse=True)
                window = others[max(k - len(targets), 0) : k]
                wins = [float(scores[row, item]) > other for item in targets for other in window]
                values.append(sum(wins) / len(wins))
        assert result[f"wpauc@{k}"] == pytest.approx(np.mean(values), abs=1e-8)


def test_check_groups_refuses_before_training_and_logs_the_split(make, caplog):
    config, train, valid, test, model = make(TwoStep, metrics=["Hit", "TailHit", "TailPercentage"])
    trainer = OurTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    lines = []
    trainer.logger = type("Log", (), {"info": lambda self, text: lines.append(text)})()
    trainer.check_groups(valid, "validation")
    trainer.check_groups(test, "test")
    assert len(lines) == 3 and "tail_split=items, head_ratio=0.2" in lines[0]
    tail = trainer.eval_collector.tail_mask
    share = tail[test.dataset.inter_feat["item_id"]].float().mean().item()
    assert lines[2] == f"test: 80 targets, {share:.2%} of them tail items"

    tail[test.dataset.inter_feat["item_id"]] = False
    with pytest.raises(PrefError, match=r"TailHit .*80 test targets is a tail item.*head_ratio=0.2"):
        trainer.check_groups(test, "test")
    config["metrics"] = ["Hit", "TailPercentage"]
    trainer.check_groups(test, "test")


def test_an_evaluation_without_tail_targets_is_refused(make):
    config, train, _, test, model = make(TwoStep, metrics=["Hit", "TailHit"])
    trainer = OurTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    trainer.eval_collector.tail_mask[:] = False
    with pytest.raises(PrefError, match="TailHit cannot be computed"):
        trainer.evaluate(test, load_best_model=False)


@pytest.mark.parametrize("topk", [[5], [20]])
def test_tail_share_is_that_of_the_first_ten(make, topk):
    config, train, _, test, model = make(TwoStep, metrics=["Hit"], topk=topk)
    config["logits_memory_mb"] = memory_for(9, train)
    trainer = OurTrainer(config, model)
    assert trainer.eval_collector.tail_share is None
    run(trainer, train, test)
    tail = trainer.eval_collector.tail_mask
    scores = model.users[test.dataset.inter_feat["user_id"]] @ model.items.T
    scores[:, 0] = -torch.inf
    listed = torch.topk(scores, topk[0]).indices[:, :10]
    expected = tail[listed].float().mean().item()
    assert trainer.eval_collector.tail_share == pytest.approx(expected) and 0 < expected < 1


def test_tail_share_counts_ranked_items_only(make):
    config, train, _, test, model = make(TwoStep, mode="uni3", metrics=["Hit"], topk=[10])
    trainer = OurTrainer(config, model)
    lists = []

    def kept(scores, *others):
        lists.append(scores.clone())
        type(trainer.eval_collector).eval_batch_collect(trainer.eval_collector, scores, *others)

    trainer.eval_collector.eval_batch_collect = kept
    run(trainer, train, test)
    tail = trainer.eval_collector.tail_mask
    shares = [tail[row > -torch.inf].float().mean().item() for scores in lists for row in scores]
    assert trainer.eval_collector.tail_share == pytest.approx(np.mean(shares)) and 0 < np.mean(shares) < 1


def test_without_a_head_what_asks_for_none_is_measured(make):
    config, train, _, test, model = make(TwoStep, metrics=["Hit"], topk=[5], head_ratio=0.001)
    trainer = OurTrainer(config, model)
    assert run(trainer, train, test)["hit@5"] > 0
    assert trainer.eval_collector.tail_share is None


# -- history


def test_seen_items_are_all_training_interactions(make):
    _, train, _, _, _ = make(TwoStep)
    dataset = train.dataset
    expected = {user: set() for user in range(dataset.user_num)}
    feat = dataset.inter_feat
    for user, target, line in zip(
        feat["user_id"].tolist(),
        feat["item_id"].tolist(),
        feat["item_id_list"].tolist(),
        strict=True,
    ):
        expected[user] |= {target, *line} - {0}
    users = torch.tensor([5, 0, 5, 17, dataset.user_num - 1])
    rows, items = SeenItems(dataset).pairs(users)
    for row, user in enumerate(users.tolist()):
        found = items[rows == row].tolist()
        assert len(found) == len(set(found)) and set(found) == expected[user]


def test_seen_items_read_whole_lists_of_ready_made_splits(make):
    _, train, _, _, _ = make(TwoStep)
    dataset = train.dataset
    # without the rows of one and two items, only whole lists tell what a user met first
    feat = dataset.inter_feat = dataset.inter_feat[dataset.inter_feat["item_length"] > 2]
    users = feat["user_id"].unique()
    expected = {
        user: set(feat["item_id_list"][feat["user_id"] == user].reshape(-1).tolist())
        | set(feat["item_id"][feat["user_id"] == user].tolist())
        for user in users.tolist()
    }
    dataset.config["benchmark_filename"] = ["train", "valid", "test"]
    rows, items = SeenItems(dataset).pairs(users)
    for row, user in enumerate(users.tolist()):
        assert sorted(items[rows == row].tolist()) == sorted(expected[user] - {0})


def test_mask_seen_spares_targets():
    scores = torch.arange(8.0).reshape(2, 4)
    rows, items = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 2, 3])
    mask_seen(scores, torch.tensor([0, 1]), torch.tensor([2, 1]), rows, items)
    low = -torch.inf
    assert scores.tolist() == [[0, low, 2, 3], [4, 5, low, low]]


@pytest.mark.parametrize("rows", [4, None])
@pytest.mark.parametrize("model_class", [Sequential, TwoStep])
@pytest.mark.parametrize("split", [LEAVE_ONE_OUT, RATIO])
def test_mask_history_against_a_loop(make, data_path, model_class, split, rows):
    config, train, _, test, model = make(model_class, split=split, metrics=["Hit", "ItemCoverage"], mask_history=True)
    torch.nn.init.normal_(model.users)  # no ties
    if rows is not None:
        config["logits_memory_mb"] = memory_for(rows, train)
    trainer = OurTrainer(config, model)
    tables = []
    trainer.evaluator.evaluate = lambda data: tables.append(data.get("rec.items")) or {}
    run(trainer, train, test)

    log = pd.read_csv(data_path / "small" / "small.inter", sep="\t")
    item_id = train.dataset.field2token_id["item_id"]
    user_id = train.dataset.field2token_id["user_id"]
    trained = train.dataset.inter_feat
    feat = test.dataset.inter_feat
    hidden = 0
    for row in range(len(feat)):
        user, target = int(feat["user_id"][row]), int(feat["item_id"][row])
        token = train.dataset.field2id_token["user_id"][user]
        assert user_id[token] == user
        whole = [item_id[item] for item in log[log["user_id:token"] == token]["item_id:token"]]
        # everything up to the last training target, and what the row's own list shows
        last = int((trained["user_id"] == user).sum()) + 1
        banned = set(whole[:last]) | set(feat["item_id_list"][row].tolist())
        expected = plain_ranking(model, user, banned, {target})
        assert tables[0][row].tolist() == expected
        hidden += expected != plain_ranking(model, user, set(), {target})
    assert hidden > 0


def test_mask_history_is_off_by_default_and_leaves_general_models_alone(make):
    config, train, _, test, model = make(General, split=RATIO)
    plain = run(OurTrainer(config, model), train, test)
    config["mask_history"] = True
    assert run(OurTrainer(config, model), train, test) == plain
    config, train, _, test, model = make(TwoStep)
    plain = run(OurTrainer(config, model), train, test)
    config["mask_history"] = True
    masked = run(OurTrainer(config, model), train, test)
    assert masked["hit@10"] > plain["hit@10"]  # seen items no longer stand before the target


@pytest.mark.parametrize("split", [LEAVE_ONE_OUT, RATIO])
def test_mask_history_under_sampled_ranking_drops_seen_candidates_only(make, split):
    config, train, _, test, model = make(Sequential, "uni20", split, mask_history=True)
    trainer = OurTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    trainer.tot_item_num = train.dataset.item_num
    seen = SeenItems(train.dataset)
    dropped = 0
    for batch in test:
        interaction, row_index, positive_u, positive_i = batch
        _, plain, _, _ = Trainer._neg_sample_batch_eval(trainer, batch)
        _, masked, _, _ = trainer._neg_sample_batch_eval(batch)
        for row in range(len(plain)):
            lines = row_index == row
            user = int(interaction["user_id"][lines][0])
            banned = set(seen.pairs(torch.tensor([user]))[1].tolist())
            banned |= set(interaction["item_id_list"][lines].reshape(-1).tolist())
            banned -= set(positive_i[positive_u == row].tolist())
            expected = plain[row].clone()
            expected[list(banned)] = -torch.inf
            assert torch.equal(masked[row], expected)
            dropped += not torch.equal(plain[row], expected)
    assert dropped > 0
    assert run(trainer, train, test)["hit@10"] > 0


# -- users, and what can go wrong


def test_user_frame_lists_every_row_with_its_rank(make):
    config, train, _, test, model = make(TwoStep, metrics=["Hit", "MRR", "TailHit"], collect_users=True)
    config["logits_memory_mb"] = memory_for(9, train)
    trainer = OurTrainer(config, model)
    for _ in range(2):
        result = run(trainer, train, test)
    frame = trainer.eval_collector.user_frame()
    feat = test.dataset.inter_feat
    assert list(frame.columns) == ["user_id", "item_id", "rank", "is_tail"]
    assert frame["user_id"].tolist() == feat["user_id"].tolist()
    assert frame["item_id"].tolist() == feat["item_id"].tolist()
    found = frame[frame["rank"] > 0]
    assert result["hit@10"] == pytest.approx(len(found) / len(frame))
    assert result["mrr@10"] == pytest.approx((1 / found["rank"]).sum() / len(frame))
    tail = frame[frame["is_tail"]]
    assert result["tailhit@3"] == pytest.approx(tail["rank"].between(1, 3).mean())


@pytest.mark.parametrize("model_class, mode", [(General, "full"), (General, "uni20")])
def test_user_frame_of_several_targets_names_the_best(make, model_class, mode):
    config, train, _, test, model = make(model_class, mode, RATIO, metrics=["Hit", "MRR"])
    trainer = OurTrainer(config, model)
    trainer.eval_collector.collect_users = True
    result = run(trainer, train, test)
    frame = trainer.eval_collector.user_frame()
    feat = test.dataset.inter_feat
    pairs = set(zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True))
    assert set(zip(frame["user_id"], frame["item_id"], strict=True)) <= pairs
    assert sorted(frame["user_id"]) == sorted(set(feat["user_id"].tolist()))
    reciprocal = np.where(frame["rank"] > 0, 1 / frame["rank"].clip(lower=1), 0)
    assert result["mrr@10"] == pytest.approx(reciprocal.mean())


def test_ranks_follow_the_evaluated_list_where_scores_tie(make):
    config, train, _, _, _ = make(TwoStep, collect_users=True)
    collector = PrefCollector(config)
    collector.data_collect(train)
    scores = torch.zeros(3, train.dataset.item_num)
    listed = torch.topk(scores, max(config["topk"])).indices
    outside = next(item for item in range(1, scores.shape[1]) if item not in listed[1])
    targets = torch.tensor([listed[0, 3], outside, listed[2, 1], outside])
    rows = Interaction({"user_id": torch.tensor([4, 5, 6])})
    collector.eval_batch_collect(scores, rows, torch.tensor([0, 1, 2, 2]), targets)
    collector.get_data_struct()
    assert sorted(zip(collector.rows["user"], collector.rows["rank"])) == [(4, 4), (5, 11), (6, 2), (6, 11)]
    frame = collector.user_frame()
    assert frame["rank"].tolist() == [4, 0, 2] and frame["item_id"].tolist() == targets[:3].tolist()


def test_user_frame_needs_collect_users(make):
    config, train, _, test, model = make(TwoStep)
    trainer = OurTrainer(config, model)
    run(trainer, train, test)
    with pytest.raises(PrefError, match="collect_users=False"):
        trainer.eval_collector.user_frame()


def test_topk_beyond_the_catalogue_is_refused_before_training(make):
    config, train, _, _, _ = make(TwoStep, topk=[5, 10])
    items = train.dataset.item_num - 1
    config["topk"] = [5, items]
    PrefCollector(config).data_collect(train)
    config["topk"] = [5, items + 1]
    with pytest.raises(PrefError, match=f"topk={items + 1} is more than the {items} items"):
        PrefCollector(config).data_collect(train)


@pytest.mark.parametrize("asked", ["TailHit", "ItemCoverage"])
def test_evaluation_before_training_says_what_to_call(make, asked):
    config, _, _, test, model = make(TwoStep, metrics=[asked])
    with pytest.raises(PrefError, match=r"eval_collector.data_collect\(train_data\)"):
        OurTrainer(config, model).evaluate(test, load_best_model=False)


def test_masking_before_training_says_what_to_call(make):
    config, _, _, test, model = make(TwoStep, metrics=["Hit"], mask_history=True)
    with pytest.raises(PrefError, match=r"mask_history=True: .*data_collect\(train_data\)"):
        OurTrainer(config, model).evaluate(test, load_best_model=False)


def test_an_interrupted_evaluation_leaves_no_results(make):
    config, train, _, test, model = make(TwoStep, metrics=["Hit"])
    trainer = OurTrainer(config, model)
    expected = run(trainer, train, test)
    trainer.eval_collector.eval_batch_collect(
        torch.zeros(2, train.dataset.item_num), None, torch.arange(2), torch.tensor([1, 2])
    )
    assert run(trainer, train, test) == expected


def test_a_metric_for_early_stopping(make):
    config, train, valid, _, model = make(TwoStep, metrics=["Hit", "TailNDCG"], valid_metric="TailNDCG@10", epochs=1)
    model.calculate_loss = lambda interaction: (model.items**2).mean()
    trainer = OurTrainer(config, model)
    score, result = trainer.fit(train, valid, verbose=False, saved=False)
    assert score == result["tailndcg@10"] and "hit@10" in result


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("model_class, mode", [(TwoStep, "full"), (Sequential, "full"), (TwoStep, "uni20")])
def test_scores_that_are_not_finite_are_not_ranked(make, model_class, mode, wrong):
    config, train, _, test, model = make(model_class, mode, metrics=["Hit"])
    trainer = OurTrainer(config, model)
    assert run(trainer, train, test)
    with torch.no_grad():
        next(model.parameters())[1:] = wrong
    with pytest.raises(PrefError, match="scores of the evaluation are not finite.*lower learning_rate"):
        run(trainer, train, test)


@pytest.mark.parametrize("split", [LEAVE_ONE_OUT, RATIO], ids=str)
def test_sampled_ranking_encodes_each_sequence_once(tiny_dataset, monkeypatch, split):
    settings = {**tiny_dataset, "eval_args": {"split": split, "mode": {"valid": "uni20", "test": "uni20"}}}
    settings["eval_batch_size"] = 10**6
    built = build_run(RunConfig("CESASRec", config_dict=settings), log=False)
    encoded, encode = [], built.model.encode
    monkeypatch.setattr(built.model, "encode", lambda rows: encoded.append(len(rows)) or encode(rows))
    assert built.trainer.evaluate(built.test_data, load_best_model=False)
    sequences = built.test_data._dataset.inter_feat["item_id_list"][:]
    assert len(sequences) >= 60
    users = built.test_data._dataset.inter_feat["user_id"]
    rows = torch.cat([users[:, None], sequences], dim=1)
    assert sum(encoded) == len(torch.unique(rows, dim=0))  # RecBole asks for 21 candidates each
