"""Read sequences of item tokens, or users, from a file in pieces of bounded size."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_pref.data.tables import parquet_parts, text_parts, without_fractions
from recbole_pref.errors import PrefError


class Piece(NamedTuple):
    """Consecutive sequences or users of a file.

    Attributes:
        first: number of the first one, from 1.
        names: the users, or the numbers of the rows from 1.
        sequences: item tokens of each; None if the file has only users.
    """

    first: int
    names: list[str]
    sequences: list[list[str]] | None


def table_ending(path: str | Path, option: str) -> str:
    """Return the suffix of a table, ``.csv`` or ``.parquet``; refuse other suffixes."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise PrefError(f"{option}={str(path)!r} is not a CSV or Parquet file: use the suffix .csv or .parquet.")
    return ending


def read_sequences(path: str | Path) -> tuple[list[str], list[list[str]] | None]:
    """Read sequences of item tokens, or users, from a CSV or Parquet file.

    The file has a column ``items`` (tokens separated by spaces) and optionally ``user``; or the columns ``user`` and
    ``item``, with one interaction per row in time order; or only the column ``user``.

    Returns:
        The names of the users or the numbers of the rows, from 1; and the sequences, or None if the file has only
        users.
    """
    source = Source(path, 100_000)
    names: list[str] = []
    sequences: list[list[str]] = []
    for piece in source.pieces():
        names += piece.names
        sequences += piece.sequences or []
    return names, None if source.users_alone else sequences


class Source:
    """A file of sequences or users; see :func:`read_sequences` for its columns.

    A file with ``user`` and ``item`` is read completely before the first piece, because the rows of a user may be
    anywhere. It needs 8 bytes per row and the tokens of users and items.

    Args:
        path: CSV or Parquet file.
        rows: largest number of sequences or users per piece.

    Attributes:
        users_alone: whether the file has users and no items.

    Raises:
        PrefError: the file is missing or has other columns.
    """

    def __init__(self, path: str | Path, rows: int) -> None:
        self.path, self.rows = Path(path), rows
        path = self.path
        if not path.is_file():
            raise PrefError(f"input={str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}: name a file.")
        self.parquet = table_ending(path, "input") == ".parquet"
        self._iterator = self._tables()
        # pandas also stores an index
        columns = [name for name in next(self._iterator) if not str(name).startswith("__index_level_")]
        used = [name for name in ("user", "item", "items") if name in columns]
        self.users_alone = columns == ["user"]  # another column may be a misspelt 'items'
        if not self.users_alone and used not in (["items"], ["user", "items"], ["user", "item"]):
            raise PrefError(
                f"input={str(path)!r} has the columns {', '.join(map(str, columns))}: it needs 'items', or 'user' "
                "and 'item', or only 'user'."
            )
        self.used = used

    def count(self) -> int | None:
        """Return the number of sequences or users in the file; None for interactions, which would have to be read.

        In a CSV file, line ends within quoted cells are also counted.
        """
        if self.used == ["user", "item"]:
            return None
        if self.parquet:
            from pyarrow.parquet import ParquetFile

            return ParquetFile(self.path).metadata.num_rows
        with open(self.path, "rb") as file:
            return sum(part.count(b"\n") for part in iter(partial(file.read, 1 << 20), b"")) - 1

    def pieces(self) -> Iterator[Piece]:
        """Yield the sequences or users of the file once, at most ``rows`` per piece.

        Raises:
            PrefError: a row is not complete, a cell is not a sequence, or the file is damaged.
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

    def _of_interactions(self) -> Iterator[Piece]:
        """Yield the pieces of a file with one interaction per row; users are in the order of first appearance."""
        user_codes: dict[str, int] = {}
        item_codes: dict[str, int] = {}
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
            histories = tokens[items[bounds[start] : bounds[stop]]]
            cuts = bounds[start + 1 : stop] - bounds[start]
            yield Piece(start + 1, names[start:stop], [part.tolist() for part in np.split(histories, cuts)])

    def _numbered(self) -> Iterator[tuple[int, pd.DataFrame]]:
        """Yield the number of the first row, from 1, and the used columns of each table."""
        start, named = 1, [name for name in self.used if name != "items"]
        for frame in self._iterator:
            frame = frame[self.used].copy()
            for name in named:
                frame[name] = without_fractions(frame[name])
            empty = frame.isna().any(axis=1) | frame[named].eq("").any(axis=1)
            if empty.any():
                row = start + int(empty.to_numpy().argmax())
                raise PrefError(f"input={str(self.path)!r}: row {row} is not complete: remove it.")
            for at in range(0, len(frame), self.rows):  # a table may be longer because of blank rows before it
                part = frame.iloc[at : at + self.rows]
                yield start, part
                start += len(part)

    def _tables(self) -> Iterator[pd.DataFrame]:
        """Yield tables of about ``rows`` rows; the first one is empty."""
        if self.parquet:
            yield from parquet_parts(self.path, (), self.rows)
            return
        try:
            yield from _without_blanks(text_parts(self.path, ",", skip_blank_lines=False, rows=self.rows))
        except PrefError as error:
            raise PrefError(
                "input is not a table with one header line and the same number of fields in every row (quote fields "
                f"with commas, and separate the items of a sequence by spaces): {error}"
            ) from None

    def _tokens(self, value: Any, row: int) -> list[str]:
        """Return the item tokens of a cell."""
        if isinstance(value, str):
            return value.split()
        if isinstance(value, (list, np.ndarray)) and all(isinstance(token, (str, int, np.integer)) for token in value):
            return list(map(str, value))
        raise PrefError(
            f"input={str(self.path)!r}: row {row} of 'items' is neither a text with tokens between spaces nor a list "
            "of tokens."
        )


def _codes(values: pd.Series, code_of: dict[str, int]) -> np.ndarray:
    """Return the number of each value; new values are added to ``code_of``."""
    codes, distinct = pd.factorize(values.astype(str))
    return np.array([code_of.setdefault(str(value), len(code_of)) for value in distinct], np.int64)[codes]


def _without_blanks(parts: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Yield the tables of a CSV file without blank lines; with only ``items``, a blank inner line is a row."""
    pending = None
    for part in parts:
        if pending is None:
            pending = part.iloc[:0]
            yield pending
        blank = part.eq("").all(axis=1).to_numpy()
        if list(part) != ["items"]:
            yield part[~blank]
            continue
        if not blank.all():
            end = len(part) - int(np.logical_and.accumulate(blank[::-1]).sum())
            yield pd.concat([pending, part.iloc[:end]])
            pending, part = pending.iloc[:0], part.iloc[end:]
        pending = pd.concat([pending, part])
