"""Interactions as a table: filtered, described and written."""

import os
from contextlib import suppress

import numpy as np
import pandas as pd

from recbole_pref.data.item_features import feature_type
from recbole_pref.errors import PrefError

_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"}


def k_core(frame, min_user, min_item):
    """Remove users and items with too few interactions until none is left to remove.

    Args:
        frame (DataFrame): columns user_id and item_id.
        min_user, min_item (int): interactions that a user, an item must have.
    """
    users, items = pd.factorize(frame["user_id"])[0], pd.factorize(frame["item_id"])[0]
    kept = np.ones(len(frame), dtype=bool)
    while kept.any():
        enough = (np.bincount(users[kept], minlength=users.max() + 1)[users] >= min_user) & (
            np.bincount(items[kept], minlength=items.max() + 1)[items] >= min_item
        )
        if enough[kept].all():
            break
        kept &= enough
    return frame[kept]


def by_time(frame):
    """Sort by time; among equal times the order of the file counts."""
    return frame.iloc[np.argsort(frame["timestamp"].to_numpy(), kind="stable")]


def by_user(frame):
    """Group rows by user, in the order of the users' first rows, without another change of their order."""
    return frame.iloc[np.argsort(pd.factorize(frame["user_id"])[0], kind="stable")]


def summarize(frame, head_ratio=0.2):
    """Describe interactions sorted by user and time.

    The head is that of ``tail_split: items`` after RecBole's leave-one-out split: the most popular
    ``head_ratio`` of the items by training interactions, which are all but the last two of each user
    (all but the last one of a user with three, all of a user with fewer).

    Returns:
        dict: users, items, interactions, density, mean_length, head_share (share of all interactions
        that are with head items) and tail_targets (share of the test targets that are not head items;
        None when no user has three interactions).
    """
    users, names = pd.factorize(frame["user_id"])  # [rows], numbered in their order
    items = pd.factorize(frame["item_id"])[0]  # numbered as RecBole does, which breaks ties
    n_users, n_items = len(names), items.max() + 1
    lengths = np.bincount(users)
    left = np.cumsum(lengths)[users] - 1 - np.arange(len(frame))  # [rows], 0 is a user's last interaction
    length = lengths[users]
    train = (left >= 2) | ((left == 1) & (length == 3)) | (length == 2)
    counts = np.bincount(items[train], minlength=n_items)
    size = min(max(1, round(head_ratio * n_items)), np.count_nonzero(counts))
    is_head = np.zeros(n_items, dtype=bool)
    is_head[np.argsort(-counts, kind="stable")[:size]] = True
    targets = items[(left == 0) & (length >= 3)]
    return {
        "users": n_users,
        "items": int(n_items),
        "interactions": len(frame),
        "density": len(frame) / (n_users * int(n_items)),
        "mean_length": len(frame) / n_users,
        "head_share": float(is_head[items].mean()),
        "tail_targets": float((~is_head[targets]).mean()) if len(targets) else None,
    }


def typed(frame):
    """Return interactions with typed headers, whole numbers without a fraction."""
    columns = {}
    for name, values in frame.items():
        # Milliseconds since 1970 need all their digits: they order a sequence.
        if pd.api.types.is_float_dtype(values) and (values % 1 == 0).all() and (values.abs() < 2**53).all():
            values = values.astype("int64")
        kind = _TYPES.get(name) or feature_type(values.cat.categories[np.unique(values.cat.codes)])
        columns[f"{name}:{kind}"] = values
    return pd.DataFrame(columns, copy=False)


def write(tables):
    """Write tables to temporary files, then move them to their places.

    Args:
        tables (dict): path to DataFrame.

    Raises:
        PrefError: a file cannot be written; the earlier files are left as they were.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in tables}
    try:
        for path, frame in tables.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "w", encoding="utf-8", newline="\n") as file:
                frame.to_csv(file, sep="\t", index=False, lineterminator="\n")
                file.flush()
                os.fsync(file.fileno())
        for path in tables:
            os.replace(temporary[path], path)
    except (OSError, ValueError) as error:
        raise PrefError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        for file in temporary.values():
            with suppress(OSError):
                file.unlink()
