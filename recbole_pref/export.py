"""Export a trained model for serving: item vectors, their indexes, and the query encoder as one program.

=====================  ==================================================================================
file                   content
=====================  ==================================================================================
item_vectors.npy       float32 [n, H]
item_tokens.json       the n items' tokens, in the order of the vectors
query_encoder.pt2      ``torch.export`` program: item ids [B, L] int64, lengths [B] int64 -> vectors [B, H]
exact.faiss            exact FAISS index of inner products (if ``faiss-cpu`` is installed)
hnsw.faiss             approximate FAISS index, a graph (HNSW)
settings.json          sizes, model and versions; written last
=====================  ==================================================================================

The id of an item is its index in ``item_tokens.json`` plus 1; 0 pads sequences on the right.
"""

import copy
import json
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from recbole_pref.checkpoint import write_atomically
from recbole_pref.environment import environment, write_result
from recbole_pref.errors import PrefError
from recbole_pref.predict import Recommender, read_sequences

_QUERIES = 1000  # largest number of sequences with which the HNSW index is measured
_TOP = 10
# The HNSW graph: edges per item, and numbers of candidates while building and while searching.
_NEIGHBOURS, _BUILD, _SEARCH = 32, 200, 128


class QueryEncoder(torch.nn.Module):
    """The encoder of a trained model as a function of tensors alone.

    Args:
        model (PreferenceMixin): a model with an entry in ``backbones``; its parameters are shared.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        model = copy.copy(model)
        model._modules = dict(model._modules)  # the embedding below replaces that of this copy only
        weight = model.item_embedding.weight.detach()
        model.item_embedding = torch.nn.Embedding.from_pretrained(weight, padding_idx=0)
        self.model = model.eval()

    def forward(self, item_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return vectors [B, H] of sequences [B, L] of item ids, padded with 0 on the right, and their lengths [B]."""
        model: Any = self.model
        if model.backbone.encode_all is None:
            nobody = torch.zeros_like(lengths)
            fields = {model.ITEM_SEQ: item_ids, model.ITEM_SEQ_LEN: lengths, model.USER_ID: nobody}
            return model.backbone.encode(model, fields)
        states = model.backbone.encode_all(model, item_ids)  # [B, L, H]
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1)


def export(
    checkpoint: str | Path,
    folder: str | Path,
    queries: str | Path | None = None,
    dot_product_only: bool = False,
    data_path: str | None = None,
) -> str:
    """Write the files of the table above.

    Args:
        checkpoint: the file of a trained model.
        folder: the folder to write to; files of an earlier export are replaced.
        queries: file of sequences (see ``read_sequences``) with which the HNSW index is measured; by default sequences
            of one item.
        dot_product_only: ignore terms of the scores besides the dot product (``Recommender.terms_beside_vectors``).
        data_path: see ``Recommender``.

    Returns:
        str: a description of the written files.

    Raises:
        PrefError: the model has no vectors, its scores have other terms, or a file cannot be read or written.
    """
    folder = Path(folder)
    recommender = Recommender(checkpoint, data_path=data_path)
    tokens, vectors = recommender.item_vectors(dot_product_only)
    sequences = _queries(queries, tokens)
    program = _program(recommender)

    _write(folder, "item_vectors.npy", lambda file: np.save(file, vectors))
    _write(folder, "item_tokens.json", lambda file: file.write(json.dumps(tokens, ensure_ascii=False).encode()))
    _write(folder, "query_encoder.pt2", lambda file: torch.export.save(program, file))
    users = recommender.user_vectors(sequences, "skip", dot_product_only)
    recall = _write_indexes(folder, vectors, users)
    config = recommender.config
    settings = {
        "model": config["model"], "dataset": config["dataset"], "checkpoint": str(checkpoint),
        "n_items": len(tokens), "vector_size": vectors.shape[1], "max_length": recommender.max_length,
        "left_out": recommender.terms_beside_vectors(), "hnsw_recall": recall, "environment": environment("cpu"),
    }  # fmt: skip
    write_result(folder / "settings.json", settings, "export")
    lines = [f"{len(tokens)} item vectors of size {vectors.shape[1]} and the query encoder: {folder}"]
    if recall is None:
        lines.append("no index was written: install faiss-cpu for one (pip install 'recbole-pref[serve]')")
    else:
        of = f"{len(users)} sequences" + ("" if queries else " of one item (--input measures with yours)")
        lines.append(f"recall@{min(_TOP, len(tokens))} of hnsw.faiss against exact.faiss: {recall:.4f}, {of}")
    return "\n".join(lines)


def _queries(file: str | Path | None, tokens: list[str]) -> list[list[str]]:
    """Return at most ``_QUERIES`` sequences of a file, or of one item each."""
    if file is None:
        return [[tokens[place]] for place in np.linspace(0, len(tokens) - 1, min(_QUERIES, len(tokens)), dtype=int)]
    sequences = read_sequences(file)[1]
    if not sequences:
        raise PrefError(
            f"input={str(file)!r} holds no sequence of items: name a file with 'items', or 'user' and 'item'."
        )
    return sequences[:_QUERIES]


def _program(recommender: Recommender) -> Any:
    """Return the query encoder as a program for any number of sequences."""
    ids = torch.ones(2, recommender.max_length, dtype=torch.int64)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(
            QueryEncoder(recommender.model), (ids, torch.tensor([1, recommender.max_length])),
            dynamic_shapes={"item_ids": {0: batch}, "lengths": {0: batch}},
        )  # fmt: skip


def _write(folder: Path, name: str, write: Callable[[IO[bytes]], Any]) -> None:
    write_atomically(folder / name, write, "export")


def _write_indexes(folder: Path, vectors: np.ndarray, users: np.ndarray) -> float | None:
    """Write both indexes. Return the recall of the approximate one for vectors [R, H], or None if FAISS is missing."""
    try:
        import faiss
    except ImportError:
        return None
    exact = faiss.IndexFlatIP(vectors.shape[1])
    graph = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _BUILD, _SEARCH
    neighbours = []
    for name, index in (("exact.faiss", exact), ("hnsw.faiss", graph)):
        index.add(vectors)
        _write(folder, name, methodcaller("write", faiss.serialize_index(index).tobytes()))
        neighbours.append(index.search(users, min(_TOP, len(vectors)))[1])
    return float(np.mean([len(np.intersect1d(*lists)) / len(lists[0]) for lists in zip(*neighbours)]))
