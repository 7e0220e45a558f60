"""Evidence that comparisons store for a trained model besides its metrics: values per test row and per item."""

import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from recbole_pref.evaluation.collector import ROWS
from recbole_pref.evaluation.metrics import parse_key

# Exceptions of reading a damaged file of arrays; RuntimeError when its flags demand a password or another compression.
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
OF_ROWS = tuple(name for name in ROWS if name != "first")  # arrays with an entry per target


def evaluate(trainer: Any, train_data: Any, test_data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluate the best model of a trainer on the test set and return the evidence.

    Args:
        trainer (TrainerMixin): after ``fit``.
        train_data, test_data (AbstractDataLoader): RecBole's loaders.

    Returns:
        tuple: the metrics, dict of float; and arrays over R test rows (one per target) and the items,
        index 0 padding: ``user`` [R] tokens, ``target`` [R] item ids, ``rank`` [R] from 1 in the full
        ranking, ``tail_gap`` [R] mean softmax probability of tail items less that of all items,
        ``top`` [R, 10] recommended item ids, padded with 0, ``count`` [n_items] training
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


def by_user(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays of :func:`evaluate` with the test rows sorted by user and target.

    Kinds of models differ in the order of their rows, and differences between models are computed row by row.
    """
    order = np.lexsort((arrays["target"], arrays["user"]))
    return {name: values[order] if name in OF_ROWS else values for name, values in arrays.items()}


def user_values(arrays: dict[str, np.ndarray], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a metric per test row, from the ranks.

    Args:
        arrays: the result of :func:`evaluate`.
        metric: ``hit@K``, ``recall@K``, ``ndcg@K`` or ``mrr@K``, optionally prefixed by ``head`` or
            ``tail``.

    Returns:
        tuple or None: values [R'] and their rows [R'] (those of the group); None for any other
        metric.
    """
    group, name, cutoff = parse_key(metric)
    if name not in _OF_RANK or cutoff is None:
        return None
    rows = np.arange(len(arrays["rank"]))
    if group:
        rows = rows[arrays["tail"][arrays["target"]] == (group == "tail")]
    rank = arrays["rank"][rows]
    return np.where(rank <= cutoff, _OF_RANK[name](rank), 0.0), rows


_OF_RANK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hit": np.ones_like,
    "recall": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(1 + rank),
    "mrr": lambda rank: 1 / rank,
}
