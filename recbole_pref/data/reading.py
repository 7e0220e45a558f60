"""Read atomic files once, with pandas' C parser: RecBole receives the table that the check has read."""

import os
from collections.abc import Collection
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

# Rows per piece: a token is a Python object until it is numbered, so pieces bound the memory.
_ROWS = 2**18
# The tables of one data set that a check has read and RecBole has not yet requested.
_held: dict[tuple[Any, ...], pd.DataFrame] = {}


def read_csv(
    path: str | os.PathLike[str],
    *,
    delimiter: str,
    usecols: list[str],
    dtype: dict[str, Any],
    encoding: str | None,
    engine: str,
) -> pd.DataFrame:
    """Replace ``pandas.read_csv`` in RecBole: use the table of a check or, if possible, the C parser.

    Token columns of interaction files are read as categories.

    Args:
        path: the file.
        delimiter, usecols, dtype, encoding, engine: as in RecBole's ``Dataset._load_feat``.
    """
    table = _held.pop(_key(path, delimiter, usecols, encoding), None)
    if table is not None:
        return table
    options = {"delimiter": delimiter, "usecols": usecols, "encoding": encoding}
    if not one_byte(delimiter):
        return pd.read_csv(path, dtype=dtype, engine=engine, **options)
    if str(path).endswith(".inter"):
        return _read_by_category(path, dtype=dtype, **options)
    return pd.read_csv(path, dtype=dtype, engine="c", **options)


def one_byte(separator: str) -> bool:
    """Return whether the C parser supports a separator."""
    return len(separator.encode()) == 1


def parse(data: bytes, columns: dict[str, str], loaded: Collection[str], separator: str) -> pd.DataFrame:
    """Parse the text of an atomic file.

    Args:
        data: the file in UTF-8, with its header.
        columns: the types of all columns by name.
        loaded: the columns to parse.
        separator: one byte.

    Returns:
        The loaded columns by name: tokens as categories, floats as float64, sequences as texts.

    Raises:
        ValueError: a float column contains text.
    """
    heads = {name: f"{name}:{kind}" for name, kind in columns.items() if name in loaded}
    dtype = {head: np.float64 if columns[name] == "float" else str for name, head in heads.items()}
    table = _read_by_category(
        BytesIO(data), delimiter=separator, usecols=list(heads.values()), dtype=dtype, encoding="utf-8",
        skip_blank_lines=False,
    )  # fmt: skip
    return table.rename(columns={head: name for name, head in heads.items()})


def hold(
    path: str | os.PathLike[str], columns: dict[str, str], separator: str, encoding: str, table: pd.DataFrame
) -> None:
    """Store the table of a file until RecBole reads the file with the same options."""
    heads = {name: f"{name}:{columns[name]}" for name in table}
    _held[_key(path, separator, list(heads.values()), encoding)] = table.rename(columns=heads)


def release() -> None:
    """Remove the stored tables."""
    _held.clear()


def _key(path: str | os.PathLike[str], separator: str, heads: list[str], encoding: str | None) -> tuple[Any, ...]:
    """Return the state of a file and the options with which it is read."""
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size, separator, tuple(heads), encoding


def _read_by_category(source: Any, *, dtype: dict[str, Any], **options: Any) -> pd.DataFrame:
    """Read with the C parser; token columns are categories in the order of first appearance."""
    numbers: dict[str, dict[str, int]] = {head: {} for head in dtype if head.endswith(":token")}
    dtype = {**dtype, **dict.fromkeys(numbers, object)}
    pieces = []
    for piece in pd.read_csv(source, dtype=dtype, engine="c", chunksize=_ROWS, **options):
        for head, code_of in numbers.items():
            codes, tokens = pd.factorize(piece[head].to_numpy())
            new_codes = [code_of.setdefault(token, len(code_of)) for token in tokens]
            piece[head] = np.array([*new_codes, -1], dtype=np.int32)[codes]  # a missing token is -1
        pieces.append(piece)
    table = pd.concat(pieces, ignore_index=True)
    for head, code_of in numbers.items():
        tokens = pd.Index(list(code_of), dtype=object)
        table[head] = pd.Categorical.from_codes(table[head].to_numpy(), tokens)
    return table
