"""Read lines, text tables and Parquet files in parts of bounded size."""

import csv
import gzip
import itertools
import os
import re
import sys
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_pref.errors import PrefError, suggest

PART_ROWS = 500_000  # rows with four cells; wider tables have shorter parts
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
_UNIT_SEPARATOR = "\x1f"


def existing_file(path: str | os.PathLike[str], option: str) -> Path:
    """Return the path of an existing file.

    Args:
        path: the file.
        option: the option with the path, for the message.

    Raises:
        PrefError: the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        candidates = [str(p) for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise PrefError(f"{option}={str(path)!r} does not exist or is not a file.{suggest(path, candidates)}")
    return path


# -- lines


def _open(path: Path, newline: str | None = None) -> Any:
    """Open a text file, which may be compressed; a byte order mark is skipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors while a file is read to a ``PrefError`` with one sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise PrefError(
            f"{path}, line {_undecodable_line(path)}: the text is not UTF-8; save the file as UTF-8."
        ) from None
    except _DAMAGED:
        raise PrefError(f"{path} is not a complete gzip file; download it again.") from None
    except OSError as error:
        raise PrefError(f"{path} cannot be read: {error.strerror or error}.") from None


def _undecodable_line(path: Path) -> int:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    with suppress(*_DAMAGED), opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number + 1  # the file is damaged here


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank."""
    with reading(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.strip()


def in_parts(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield the rows of an iterator in lists of bounded length."""
    while part := list(itertools.islice(rows, PART_ROWS)):
        yield part


# -- text tables


def separator_of(path: Path, separator: str | None = None) -> str:
    """Return the separator of a text table: by default a tab for ``.tsv`` and a comma otherwise.

    Raises:
        PrefError: the text cannot be a separator.
    """
    separator = (separator or ("\t" if ".tsv" in path.suffixes else ",")).replace("\\t", "\t")
    if {*separator} & {*'"\r\n'}:
        raise PrefError(f"separator={separator!r} is not accepted: it cannot separate the cells of a line.")
    return separator


def read_text_table(path: Path, separator: str, skip_blank_lines: bool = True) -> pd.DataFrame:
    """Read a whole text table as texts; for errors see ``text_parts``."""
    return pd.concat(text_parts(path, separator, skip_blank_lines=skip_blank_lines))


def text_parts(
    path: Path,
    separator: str,
    columns: list[str] | None = None,
    skip_blank_lines: bool = True,
    rows: int | None = None,
) -> Iterator[pd.DataFrame]:
    """Read a text table part by part.

    Args:
        path: the file, which may be compressed with gzip.
        separator: separator of the cells; with a separator of one character, cells may be quoted.
        columns: names of the columns of a file without a header.
        skip_blank_lines: if False, a blank line is a row.
        rows: rows per part; by default ``PART_ROWS`` for four columns.

    Yields:
        A table of texts; the index is the number of the row in the file.

    Raises:
        PrefError: an error in the file, with its line.
    """
    _check_quotes(path, separator)
    with reading(path), _open(path, newline="") as file:
        options: dict[str, Any] = {"sep": separator, "engine": "c" if len(separator.encode()) == 1 else "python"}
        if len(separator) > 1:  # pandas would use a regular expression and its Python parser
            file = _SeparatorReplaced(file, separator)
            options = {"sep": _UNIT_SEPARATOR, "engine": "c", "quoting": csv.QUOTE_NONE}
        try:
            n_columns = _count_columns(path, separator, columns)
            parts = pd.read_csv(
                file, header=0 if columns is None else None, names=columns, dtype=str, keep_default_na=False,
                index_col=False, skip_blank_lines=skip_blank_lines, **options,
                chunksize=rows or 4 * PART_ROWS // n_columns + 1,
            )  # fmt: skip
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
                    part = next(parts).fillna("")
                yield part
        except StopIteration:
            return
        except pd.errors.EmptyDataError:
            raise PrefError(f"{path} is empty.") from None
        except pd.errors.ParserWarning:
            raise PrefError(f"{path}: the rows have more cells than the first line; name all columns there.") from None
        except (pd.errors.ParserError, csv.Error) as error:
            raise PrefError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None


class _SeparatorReplaced:
    """A text file for pandas' C parser, which supports only separators of one byte."""

    def __init__(self, file: Any, separator: str) -> None:
        self.file, self.separator = file, separator

    def read(self, size: int = -1) -> str:
        text = self.file.read(size)
        if text:  # read to the end of the line, so that no separator is split
            text += self.file.readline()
        return text.replace(self.separator, _UNIT_SEPARATOR)

    def __iter__(self) -> Iterator[str]:  # pandas requires this method but does not call it
        return iter(self.file)


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row; blank rows are skipped, as in pandas."""
    with reading(path), _open(path, newline="") as file:
        if len(separator) > 1:  # no quoting, no line ends within cells
            rows = ((number, line.rstrip("\r\n").split(separator)) for number, line in enumerate(file, start=1))
        else:
            reader = csv.reader(file, delimiter=separator)
            rows = ((reader.line_num, cells) for cells in reader)
        for number, cells in rows:
            if len(cells) > 1 or "".join(cells).strip():
                yield number, cells


def _count_columns(path: Path, separator: str, columns: list[str] | None) -> int:
    """Return the number of columns. Refuse a repeated name and a wrong number of names."""
    _, cells = next(_records(path, separator), (1, [""]))
    if columns and len(columns) != len(cells):
        raise PrefError(
            f"{path}: the first line has {len(cells)} cells, but {len(columns)} columns are expected "
            f"({', '.join(columns)}); set --columns and --separator of --format=table."
        )
    names = columns or cells
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise PrefError(f"{path}: two columns have the name {twice[0]!r}; rename one.")
    return len(names)


def _check_quotes(path: Path, separator: str) -> None:
    """Refuse quotation marks that do not enclose a cell: the parser would join cells and lines after them."""
    if len(separator) > 1:  # no quoting
        return
    with reading(path), _open(path, newline="") as file:
        if not any('"' in part for part in iter(partial(file.read, 1 << 20), "")):
            return
        file.seek(0)
        reader, begins = csv.reader(file, delimiter=separator, strict=True), 1
        limit = csv.field_size_limit(sys.maxsize)
        try:
            for cells in reader:
                if separator == "\t" and any("\n" in cell and "\t" in cell for cell in cells):
                    raise csv.Error
                begins = reader.line_num + 1
        except csv.Error:
            raise PrefError(
                f"{path}, line {begins}: a quotation mark opens a cell that does not end with the next one; double the "
                "marks within quoted cells, or remove them."
            ) from None
        finally:
            csv.field_size_limit(limit)


def line_of(path: Path, separator: str, record: int) -> int:
    """Return the line at which a record ends. Record 0 is the first, which may be the header."""
    with suppress(csv.Error):
        return next(itertools.islice((number for number, _ in _records(path, separator)), record, None), record + 1)
    return record + 1


# -- Parquet


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        with reading(path):
            yield
    except (pyarrow.ArrowException, ValueError) as error:
        if isinstance(error, PrefError):
            raise
        raise PrefError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from None


def read_parquet_file(path: Path) -> pd.DataFrame:
    """Read a whole Parquet file.

    Raises:
        PrefError: the file is not a Parquet file.
    """
    with _reading_parquet(path):
        return pd.read_parquet(path)


def parquet_parts(path: Path, columns: Collection[str], rows: int = PART_ROWS) -> Iterator[pd.DataFrame]:
    """Read a Parquet file part by part.

    Args:
        path: the file.
        columns: the columns to read. If it is empty or the file lacks one of them, all columns are read.
        rows: rows per part.

    Yields:
        Tables, of which the first has no rows; the index is the number of the row in the file.

    Raises:
        PrefError: the file is not a Parquet file.
    """
    from pyarrow.parquet import ParquetFile

    with _reading_parquet(path):
        file, start = ParquetFile(path), 0
        names = file.schema_arrow.names
        selected = list(columns) if columns and set(columns) <= set(names) else None
        yield pd.DataFrame(columns=names, dtype=object)
        for batch in file.iter_batches(rows, columns=selected):
            part = batch.to_pandas(ignore_metadata=True)
            part.index = range(start, start + len(part))
            yield part
            start += len(part)


def without_fractions(values: pd.Series) -> pd.Series:
    """Convert whole numbers in a column of ids to integers; Parquet stores them as floats if some are missing."""
    whole = pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all()
    return values.astype("Int64") if whole else values


def column_name(name: str) -> bool:
    """Return whether a name can be a column of an atomic file."""
    return bool(name) and not re.search(r'[\s:"]', name)
