"""Atomic files through pandas' C parser, once: the table that a check has read is the one that RecBole gets."""

import os
from io import BytesIO

import numpy as np
import pandas as pd

# Tokens are read in pieces of so many rows, as each is a Python object until it is numbered.
_ROWS = 2**18
# The tables that a check read, until RecBole asks for them: those of one data set.
_held: dict[tuple, pd.DataFrame] = {}


def read_csv(path, *, delimiter, usecols, dtype, encoding, engine):
    """Read an atomic file as ``pandas.read_csv`` with RecBole's options does, with the C parser where it can.

    Token columns of interaction files are read as categories.

    Args:
        path (path-like): the file.
        delimiter, usecols, dtype, encoding, engine: those of RecBole's ``Dataset._load_feat``.
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
    """Return whether the C parser splits at a separator."""
    return len(separator.encode()) == 1


def parse(data: bytes, columns: dict, loaded, separator: str) -> pd.DataFrame:
    """Parse the text of an atomic file.

    Args:
        data (bytes): UTF-8, with its header.
        columns (dict): name to type, those of the header.
        loaded (set of str): the columns to parse.
        separator (str): one byte.

    Returns:
        DataFrame: loaded columns by their names; tokens as categories, floats as float64, sequences as texts.

    Raises:
        ValueError: text in a float column.
    """
    heads = {name: f"{name}:{kind}" for name, kind in columns.items() if name in loaded}
    dtype = {head: np.float64 if columns[name] == "float" else str for name, head in heads.items()}
    table = _read_by_category(
        BytesIO(data), delimiter=separator, usecols=list(heads.values()), dtype=dtype, encoding="utf-8",
        skip_blank_lines=False,
    )  # fmt: skip
    return table.rename(columns={head: name for name, head in heads.items()})


def hold(path, columns: dict, separator: str, encoding: str, table: pd.DataFrame) -> None:
    """Keep the table of a file for RecBole, which asks for it next with the same options."""
    heads = {name: f"{name}:{columns[name]}" for name in table}
    _held[_key(path, separator, list(heads.values()), encoding)] = table.rename(columns=heads)


def release() -> None:
    """Forget the tables that nobody asked for."""
    _held.clear()


def _key(path, separator, heads, encoding):
    """Return what identifies a file's content and how it is read."""
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size, separator, tuple(heads), encoding


def _read_by_category(source, *, dtype, **options):
    """Read with the C parser, token columns as categories in the order in which they appear."""
    numbers: dict[str, dict] = {head: {} for head in dtype if head.endswith(":token")}
    dtype = {**dtype, **dict.fromkeys(numbers, object)}
    pieces = []
    for piece in pd.read_csv(source, dtype=dtype, engine="c", chunksize=_ROWS, **options):
        for head, known in numbers.items():
            codes, tokens = pd.factorize(piece[head].to_numpy())
            code_of = [known.setdefault(token, len(known)) for token in tokens]
            piece[head] = np.array([*code_of, -1], dtype=np.int32)[codes]  # a missing token is -1
        pieces.append(piece)
    table = pd.concat(pieces, ignore_index=True)
    for head, known in numbers.items():
        tokens = pd.Index(list(known), dtype=object)
        table[head] = pd.Categorical.from_codes(table[head].to_numpy(), tokens)
    return table
