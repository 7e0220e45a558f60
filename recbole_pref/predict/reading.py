"""Sequences of item tokens, or users, read from a file in pieces of bounded size."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recbole_pref.data.tables import parquet_parts, text_parts, without_fractions
from recbole_pref.errors import PrefError


class Piece(NamedTuple):
    """Consecutive sequences or users of a file.

    Attributes:
        first: number of the first one, from 1.
        names: the users, or the numbers of the rows from 1.
        sequences: item tokens of each; None for users alone.
    """

    first: int
    names: list[str]
    sequences: list[list[str]] | None


def table_ending(path: str | Path, option: str) -> str:
    """Return how a table's name ends, ``.csv`` or ``.parquet``, or refuse it."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise PrefError(f"{option}={str(path)!r} is no CSV or Parquet file: name one that ends in .csv or .parquet.")
    return ending


def read_sequences(path: str | Path) -> tuple[list[str], list[list[str]] | None]:
    """Read sequences of item tokens, or users, from a CSV or Parquet file.

    Either a column ``items`` (tokens separated by spaces) and, optionally, ``user``; or columns ``user`` and
    ``item``, one interaction a row in time order; or ``user`` as the only column.

    Returns:
        tuple: names (list of str, the users, or the numbers of the rows from 1), sequences (list of list of str,
        None for users alone).
    """
    source = Source(path, 100_000)
    names, sequences = [], []
    for piece in source.pieces():
        names += piece.names
        sequences += piece.sequences or []
    return names, None if source.users_alone else sequences


class Source:
    """A file of sequences or users; see :func:`read_sequences` for its columns.

    Rows ``user`` and ``item`` are read to the end before the first piece, as a user's rows may be anywhere: each takes
    8 bytes until then, and each user and item its token.

    Args:
        path: CSV or Parquet file.
        rows: sequences or users of a piece, at most.

    Attributes:
        users_alone (bool): whether the file names users and no items.

    Raises:
        PrefError: a missing file, or one that is not such a table.
    """

    def __init__(self, path: str | Path, rows: int) -> None:
        self.path, self.rows = Path(path), rows
        path = self.path
        if not path.is_file():
            raise PrefError(f"input={str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}: name a file.")
        self.parquet = table_ending(path, "input") == ".parquet"
        self._found = self._tables()
        # pandas stores an index beside the columns
        columns = [name for name in next(self._found) if not str(name).startswith("__index_level_")]
        used = [name for name in ("user", "item", "items") if name in columns]
        self.users_alone = columns == ["user"]  # beside other columns, one of them may be a misspelt 'items'
        if not self.users_alone and used not in (["items"], ["user", "items"], ["user", "item"]):
            raise PrefError(
                f"input={str(path)!r} has the columns {', '.join(map(str, columns))}: it needs 'items', or 'user' "
                "and 'item', or 'user' alone."
            )
        self.used = used

    def count(self) -> int | None:
        """Return how many sequences or users the file holds, None where only reading all of it would tell.

        In CSV line ends within quoted cells count as well.
        """
        if self.used == ["user", "item"]:
            return None
        if self.parquet:
            from pyarrow.parquet import ParquetFile

            return ParquetFile(self.path).metadata.num_rows
        with open(self.path, "rb") as file:
            return sum(part.count(b"\n") for part in iter(partial(file.read, 1 << 20), b"")) - 1

    def pieces(self) -> Iterator[Piece]:
        """Yield the sequences or users of the file, at most ``rows`` at a time, once.

        Raises:
            PrefError: a row that is not complete, a cell that is not a sequence, a damaged file.
        """
        if self.used == ["user", "item"]:
            yield from self._of_interactions()
            return
        for start, frame in self._numbered():
            if self.users_alone:
                names, sequences = frame["user"], None
            else:
                names = frame["user"] if "user" in frame else range(start, start + len(frame))
                sequences = [self._tokens(value, row) for row, value in enumerate(frame["items"], start=start)]
            yield Piece(start, list(map(str, names)), sequences)

    def _of_interactions(self):
        """Yield the pieces of a file with one interaction a row, users in the order in which they appear."""
        user_codes, item_codes = {}, {}
        parts = []
        for _, frame in self._numbered():
            codes = [_codes(frame["user"], user_codes), _codes(frame["item"], item_codes)]
            parts.append(np.stack(codes).astype(np.int32))
        users, items = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), np.int32)
        del parts
        items = items[np.argsort(users, kind="stable")]
        bounds = np.concatenate(([0], np.bincount(users, minlength=len(user_codes)).cumsum()))
        names, tokens = list(user_codes), np.array(list(item_codes), dtype=object)
        for start in range(0, len(names), self.rows):
            stop = min(start + self.rows, len(names))
            found = tokens[items[bounds[start] : bounds[stop]]]
            cuts = bounds[start + 1 : stop] - bounds[start]
            yield Piece(start + 1, names[start:stop], [part.tolist() for part in np.split(found, cuts)])

    def _numbered(self):
        """Yield the number of the first row, from 1, and the used columns of each table."""
        start, named = 1, [name for name in self.used if name != "items"]
        for frame in self._found:
            frame = frame[self.used].copy()
            for name in named:
                frame[name] = without_fractions(frame[name])
            empty = frame.isna().any(axis=1) | frame[named].eq("").any(axis=1)
            if empty.any():
                row = start + int(empty.to_numpy().argmax())
                raise PrefError(f"input={str(self.path)!r}: row {row} is not complete: remove it.")
            for at in range(0, len(frame), self.rows):  # blank rows that were held back make a table longer
                part = frame.iloc[at : at + self.rows]
                yield start, part
                start += len(part)

    def _tables(self):
        """Yield tables of about ``rows`` rows, an empty one first."""
        try:
            if self.parquet:
                yield from parquet_parts(self.path, (), self.rows)
            else:
                yield from _without_blanks(text_parts(self.path, ",", skip_blank_lines=False, rows=self.rows))
        except PrefError as error:
            raise PrefError(
                f"input is no table with one header line and as many fields in each row (a field with commas goes in "
                f"quotes, the items of a sequence are separated by spaces): {error}"
            ) from None

    def _tokens(self, value, row):
        """Return the item tokens of a cell: list of str."""
        if isinstance(value, str):
            return value.split()
        if isinstance(value, (list, np.ndarray)) and all(isinstance(token, (str, int, np.integer)) for token in value):
            return list(map(str, value))
        raise PrefError(
            f"input={str(self.path)!r}: row {row} of 'items' is neither a text of tokens between spaces nor a list of "
            "them."
        )


def _codes(values, known):
    """Return a number per value, new ones of ``known`` for values that are new: int array."""
    codes, found = pd.factorize(values.astype(str))
    return np.array([known.setdefault(str(value), len(known)) for value in found], np.int64)[codes]


def _without_blanks(parts):
    """Yield the tables of a CSV file; before its end a blank line is a row where rows go by their numbers."""
    held = None
    for part in parts:
        if held is None:
            held = part.iloc[:0]
            yield held
        blank = part.eq("").all(axis=1).to_numpy()
        if list(part) != ["items"]:
            yield part[~blank]
            continue
        if not blank.all():
            end = len(part) - int(np.logical_and.accumulate(blank[::-1]).sum())
            yield pd.concat([held, part.iloc[:end]])
            held, part = held.iloc[:0], part.iloc[end:]
        held = pd.concat([held, part])
