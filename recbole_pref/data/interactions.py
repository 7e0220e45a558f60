"""Filter, summarize and write tables of interactions."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_pref.data.item_features import feature_type
from recbole_pref.errors import PrefError

_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"}


def k_core(frame: pd.DataFrame, min_user: int, min_item: int) -> pd.DataFrame:
    """Remove users and items with too few interactions until all remaining ones have enough.

    Args:
        frame: a table with the columns user_id and item_id.
        min_user, min_item: least number of interactions of a user and of an item.
    """
    users, items = pd.factorize(frame["user_id"])[0], pd.factorize(frame["item_id"])[0]
    remaining = np.ones(len(frame), dtype=bool)
    while remaining.any():
        enough = (np.bincount(users[remaining], minlength=users.max() + 1)[users] >= min_user) & (
            np.bincount(items[remaining], minlength=items.max() + 1)[items] >= min_item
        )
        if enough[remaining].all():
            break
        remaining &= enough
    return frame[remaining]


def by_time(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by time; rows with equal times keep the order of the file."""
    return frame.iloc[np.argsort(frame["timestamp"].to_numpy(), kind="stable")]


def by_user(frame: pd.DataFrame) -> pd.DataFrame:
    """Group rows by user. Users are in the order of their first rows, and the rows of a user keep their order."""
    return frame.iloc[np.argsort(pd.factorize(frame["user_id"])[0], kind="stable")]


def summarize(frame: pd.DataFrame, head_ratio: float = 0.2) -> dict[str, Any]:
    """Return statistics of interactions that are sorted by user and time.

    Head items are those of ``tail_split: items`` after RecBole's leave-one-out split: the share ``head_ratio`` of
    the items with the most training interactions. Training has all interactions of a user but the last two; all but
    the last of a user with three; all of a user with fewer.

    Returns:
        users, items, interactions, density, mean_length, head_share (the share of interactions with head items)
        and tail_targets (the share of test targets that are not head items; None if no user has three
        interactions).
    """
    users, names = pd.factorize(frame["user_id"])  # [rows], numbered in their order
    items = pd.factorize(frame["item_id"])[0]  # RecBole's numbers, which break ties
    n_users, n_items = len(names), items.max() + 1
    lengths = np.bincount(users)
    left = np.cumsum(lengths)[users] - 1 - np.arange(len(frame))  # [rows], 0 for the last interaction of a user
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


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return interactions with typed headers; whole numbers are written without a fraction."""
    columns = {}
    for name, values in frame.items():
        # Times in milliseconds need all their digits, because they define the order of a sequence.
        if pd.api.types.is_float_dtype(values) and (values % 1 == 0).all() and (values.abs() < 2**53).all():
            values = values.astype("int64")
        kind = _TYPES.get(name) or feature_type(values.cat.categories[np.unique(values.cat.codes)])
        columns[f"{name}:{kind}"] = values
    return pd.DataFrame(columns, copy=False)


def write(tables: dict[Path, pd.DataFrame]) -> None:
    """Write tables to temporary files, then rename these.

    Args:
        tables: the tables by path.

    Raises:
        PrefError: a file cannot be written. Existing files are not changed.
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
        for remainder in temporary.values():
            with suppress(OSError):
                remainder.unlink()
