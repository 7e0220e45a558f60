"""Fingerprints that identify the data of a model."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

SHARED_BY_KINDS = ("n_users", "n_items", "item_tokens_sha256")  # independent of the training rows of a kind of model


def short_digest(value: Any, length: int = 12) -> str:
    """Return the first characters of a hash of a plain value, for the name of a file.

    Args:
        value: dicts, lists, texts and numbers.
        length: how many characters.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def data_fingerprint(
    item_tokens: Sequence[str], n_users: int, n_interactions: int, targets: torch.Tensor
) -> dict[str, Any]:
    """Return the fingerprint of the data that a model was trained on.

    Args:
        item_tokens: the items' names in the order of their ids.
        n_users: number of users.
        n_interactions: number of interactions.
        targets: [N] integer ids of the target items in the order of the training rows.

    Returns:
        dict: n_items, n_users, n_interactions, item_tokens_sha256, targets_sha256.
    """
    tokens = [str(token) for token in item_tokens]
    ids = torch.as_tensor(targets).detach().cpu().to(torch.int64).contiguous()
    return {
        "n_items": len(tokens),
        "n_users": int(n_users),
        "n_interactions": int(n_interactions),
        # JSON quotes the names, so that ["a,b"] and ["a", "b"] differ.
        "item_tokens_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "targets_sha256": hashlib.sha256(ids.numpy().data).hexdigest(),
    }


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def compare_fingerprints(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the differences as ``"field: saved != current"``, an empty list when there are none."""

    def show(fingerprint: Mapping[str, Any], field: str) -> str:
        value = fingerprint.get(field, "missing")
        return str(value)[:12] if field.endswith("_sha256") else str(value)

    return [
        f"{field}: {show(saved, field)} != {show(current, field)}"
        for field in dict.fromkeys([*saved, *current])
        if saved.get(field) != current.get(field)
    ]
