"""What comparisons keep of a trained model beside its metrics: per test row, and per item."""

import zipfile
import zlib

import numpy as np

from recbole_pref.evaluation.collector import ROWS
from recbole_pref.evaluation.metrics import parse_key

# What reading a damaged file of arrays raises; RuntimeError where its flags ask for a password or another packing.
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
OF_ROWS = tuple(name for name in ROWS if name != "first")  # arrays with an entry per target


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
    collector = trainer.eval_collector
    before, collector.collect_users = collector.collect_users, True
    try:
        collector.data_collect(train_data)
        metrics = trainer.evaluate(test_data, load_best_model=trainer.store.best() is not None)
    finally:
        collector.collect_users = before
    arrays = {name: collector.rows[name] for name in OF_ROWS}
    dataset = train_data._dataset
    arrays["user"] = dataset.id2token(dataset.uid_field, arrays["user"]).astype(str)
    arrays["count"] = collector.train_count.numpy()
    arrays["tail"] = collector.tail_mask.numpy()
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
    group, name, cutoff = parse_key(metric)
    if name not in _OF_RANK or cutoff is None:
        return None
    rows = np.arange(len(arrays["rank"]))
    if group:
        rows = rows[arrays["tail"][arrays["target"]] == (group == "tail")]
    rank = arrays["rank"][rows]
    return np.where(rank <= cutoff, _OF_RANK[name](rank), 0.0), rows


_OF_RANK = {
    "hit": np.ones_like,
    "recall": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(1 + rank),
    "mrr": lambda rank: 1 / rank,
}
