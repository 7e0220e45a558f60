"""What comparisons keep of a trained model beside its metrics: per test row, and per item."""

import zipfile
import zlib

import numpy as np
import torch

from recbole_pref.evaluation.collector import PrefCollector, users_of_rows

TOP = 10  # recommended items kept per row
OF_ROWS = ("user", "target", "rank", "tail_gap", "top")  # arrays with an entry per test row
# What reading a damaged file of arrays raises; RuntimeError where its flags ask for a password or another packing.
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Recorder(PrefCollector):
    """A collector that also keeps rank, recommended items and the tail's probability per test row."""

    def __init__(self, config):
        super().__init__(config)
        self.kept = {name: [] for name in OF_ROWS}

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        """Record the rows of a batch, then collect it as always; arguments as there."""
        scores = scores_tensor.float()
        rows, targets = positive_u.to(scores.device), positive_i.to(scores.device)
        tail = self.tail_mask.to(scores.device)
        own = scores[rows, targets].unsqueeze(1)  # [P, 1]
        probability = torch.softmax(scores, dim=1)
        gap = probability[:, tail].mean(1) - probability[:, 1:].mean(1)  # [B]
        best = scores.topk(min(TOP, scores.shape[1] - 1), dim=1)
        top = best.indices.masked_fill(best.values == -torch.inf, 0)  # [B, TOP], padding where fewer are ranked
        users = users_of_rows(interaction, self.config, scores)
        parts = {
            "user": users[rows],
            "target": targets,
            "rank": (scores[rows] > own).sum(1) + 1,
            "tail_gap": gap[rows],
            "top": top[rows],
        }
        for name, part in parts.items():
            self.kept[name].append(part.cpu().numpy())
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)


def evaluate(trainer, train_data, test_data):
    """Evaluate the best model of a trainer on the test set and keep the evidence.

    Args:
        trainer (TrainerMixin): after ``fit``.
        train_data, test_data (AbstractDataLoader): RecBole's loaders.

    Returns:
        tuple: the metrics, dict of float; and arrays over R test rows (one per target) and the items,
        index 0 padding: ``user`` [R] tokens, ``target`` [R] item ids, ``rank`` [R] from 1 in the full
        ranking, ``tail_gap`` [R] mean softmax probability of tail items less that of all items,
        ``top`` [R, 10] recommended item ids, 0 where fewer are ranked, ``count`` [n_items] training
        interactions, ``tail`` [n_items] bool.
    """
    recorder = Recorder(trainer.config)
    before, trainer.eval_collector = trainer.eval_collector, recorder
    try:
        recorder.data_collect(train_data)
        metrics = trainer.evaluate(test_data, load_best_model=trainer.store.best() is not None)
    finally:
        trainer.eval_collector = before
    arrays = {name: np.concatenate(parts) for name, parts in recorder.kept.items()}
    dataset = train_data._dataset
    arrays["user"] = dataset.id2token(dataset.uid_field, arrays["user"]).astype(str)
    arrays["count"] = recorder.train_count.numpy()
    arrays["tail"] = recorder.tail_mask.numpy()
    return {name: float(value) for name, value in metrics.items()}, arrays


def by_user(arrays):
    """Return arrays of :func:`evaluate` with the test rows in the order of users and targets.

    Every kind of model has an order of its own, and differences between models are taken row by row.
    """
    order = np.lexsort((arrays["target"], arrays["user"]))
    return {name: values[order] if name in OF_ROWS else values for name, values in arrays.items()}


def user_values(arrays, metric):
    """Return a metric per test row, from the ranks.

    Args:
        arrays (dict): as :func:`evaluate` returns.
        metric (str): ``hit@K``, ``recall@K``, ``ndcg@K`` or ``mrr@K``, plain or behind ``head`` or
            ``tail``.

    Returns:
        tuple or None: values [R'] and the rows [R'] they belong to (those of the group); None for
        another metric.
    """
    name, _, k = metric.partition("@")
    plain = name.removeprefix("head").removeprefix("tail")
    if plain not in _OF_RANK or not k.isdigit():
        return None
    rows = np.arange(len(arrays["rank"]))
    if plain != name:
        rows = rows[arrays["tail"][arrays["target"]] == name.startswith("tail")]
    rank = arrays["rank"][rows]
    return np.where(rank <= int(k), _OF_RANK[plain](rank), 0.0), rows


_OF_RANK = {
    "hit": np.ones_like,
    "recall": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(1 + rank),
    "mrr": lambda rank: 1 / rank,
}
