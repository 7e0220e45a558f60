"""Read the supported formats of interaction files, and convert their cells to ids, times and ratings."""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from recbole_pref.data.check import MISSING
from recbole_pref.data.tables import (
    column_name,
    in_parts,
    line_of,
    numbered_lines,
    parquet_parts,
    separator_of,
    text_parts,
    without_fractions,
)
from recbole_pref.errors import PrefError, suggest

# Our columns, and the options that name the columns of the source.
OPTIONS = {"user_id": "user", "item_id": "item", "timestamp": "time", "rating": "rating"}
_NUMBERS = ("timestamp", "rating")


Place: TypeAlias = Callable[[Any], str]  # from the number of a row to "file, line N"
Part: TypeAlias = tuple[pd.DataFrame, Place]  # some rows with our columns


# -- readers


def read_sequences(path: Path) -> Iterator[Part]:
    """Read one user per line, ``user item item ...``."""
    line_of_user: dict[str, int] = {}

    def rows() -> Iterator[tuple[Any, ...]]:
        for number, line in numbered_lines(path):
            user, *sequence = line.split()
            if not sequence:
                raise PrefError(f"{path}, line {number}: user {user!r} has no items; remove the line.")
            if line_of_user.setdefault(user, number) != number:
                raise PrefError(
                    f"{path}, line {number}: user {user!r} is already in line {line_of_user[user]}; merge the lines "
                    "(or use --format=pairs)."
                )
            for item in sequence:
                yield number, user, item

    return _numbered_parts(path, rows(), ["user_id", "item_id"])


def read_pairs(path: Path) -> Iterator[Part]:
    """Read ``user item`` per line in time order."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for number, line in numbered_lines(path):
            cells = line.split()
            if len(cells) != 2:
                raise PrefError(
                    f"{path}, line {number}: {len(cells)} words, but 'user item' is expected; correct the line or "
                    "choose another --format."
                )
            yield number, *cells

    return _numbered_parts(path, rows(), ["user_id", "item_id"])


def read_table(
    path: Path,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    separator: str | None = None,
    columns: list[str] | None = None,
    keep: dict[str, list[str]] | None = None,
    extra_columns: list[str] | None = None,
) -> Iterator[Part]:
    """Read a CSV, TSV or Parquet file.

    Args:
        path: the file; ``.parquet`` is read as Parquet.
        user, item, time, rating: names of the columns. The defaults are user_id, item_id, timestamp and no rating;
            with ``columns`` they are user, item, time and rating, the last two only if ``columns`` has them.
            With an empty ``time``, the order of the rows is used.
        separator: by default a tab for ``.tsv`` and a comma otherwise.
        columns: names of all columns of a file without a header.
        keep: accepted texts by column, such as ``{"event": ["cart", "buy"]}``; other rows are removed.
        extra_columns: additional columns to write.
    """
    defaults = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "rating": None}
    if columns:
        defaults = {ours: name if name in columns else None for ours, name in OPTIONS.items()}
    options = {"user_id": user, "item_id": item, "timestamp": time, "rating": rating}
    sources = {ours: defaults[ours] if name is None else name for ours, name in options.items()}
    for ours in ("user_id", "item_id"):
        if not sources[ours]:
            raise PrefError(f"--{OPTIONS[ours]} is not set: name the column of the {OPTIONS[ours]}s.")
    names = {ours: name for ours, name in sources.items() if name}
    for name in extra_columns or ():
        if name in names:
            raise PrefError(f"--extra_columns={name} would be written twice: leave it out or rename it in the file.")
        if not column_name(name):
            raise PrefError(f"--extra_columns={name!r} cannot name a column: use letters, digits and _.")
        names[name] = name
    keep = keep or {}
    if path.suffix.lower() == ".parquet":
        parts = parquet_parts(path, {*names.values(), *keep})
        return _selected(path, parts, names, keep, lambda row: f"{path}, row {row + 1}")
    mark, header = separator_of(path, separator), not columns
    parts = text_parts(path, mark, columns)
    return _selected(path, parts, names, keep, lambda row: f"{path}, line {line_of(path, mark, row + header)}")


def _selected(
    path: Path, parts: Iterable[pd.DataFrame], names: dict[str, str], keep: dict[str, list[str]], place: Place
) -> Iterator[Part]:
    """Yield the rows that ``keep`` selects, with our names of the columns."""
    options = {name: f"--{OPTIONS[ours]}" if ours in OPTIONS else "--extra_columns" for ours, name in names.items()}
    options |= {name: "--keep" for name in keep if name not in options}
    matched: dict[str, set[str]] = {name: set() for name in keep}
    others: dict[str, set[str]] = {name: set() for name in keep}
    for part in parts:
        for name, option in options.items():
            if name not in part:
                raise PrefError(
                    f"{path} has no column {name!r} ({option}); it has {', '.join(map(str, part))}."
                    f"{suggest(name, part)}"
                )
            if isinstance(part[name], pd.DataFrame):
                raise PrefError(f"{path}: two columns have the name {name!r}; rename one.")
        for name, values in keep.items():
            texts = without_fractions(part[name]).astype(str)
            matches = texts.isin(values)
            matched[name].update(texts[matches].unique())
            if len(others[name]) < 10:
                others[name].update(texts[~matches].unique()[:10])
            part = part[matches]
        rows = part.index
        yield pd.DataFrame({ours: part[name].array for ours, name in names.items()}), lambda row: place(rows[row])
    for name, values in keep.items():
        for value in values:
            if value not in matched[name]:
                raise PrefError(
                    f"--keep={name}:{value} selects no row of {path}; the column holds "
                    f"{', '.join(sorted(matched[name] | others[name])[:10]) or 'nothing'}."
                )


def read_movielens(path: Path) -> Iterator[Part]:
    """Read the ratings of MovieLens: ``ratings.dat`` (1M, 10M), ``ratings.csv`` (20M and later), ``u.data`` (100K)."""
    if ".csv" in path.suffixes:
        return read_table(path, "userId", "movieId", "timestamp", "rating")
    separator = "\t" if ".data" in path.suffixes else "::"
    return read_table(path, separator=separator, columns=["user", "item", "rating", "time"])


_REVIEW_KEYS = (
    ("reviewerID", "asin", "unixReviewTime", "overall"),
    ("user_id", "parent_asin", "timestamp", "rating"),
)


def read_reviews(path: Path) -> Iterator[Part]:
    """Read Amazon reviews as JSON lines, with the keys of 2014/2018 or of 2023."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for number, review in json_lines(path):
            keys = next((keys for keys in _REVIEW_KEYS if keys[0] in review), None)
            if keys is None:
                raise PrefError(f"{path}, line {number}: there is neither reviewerID nor user_id.")
            for key in keys:
                if key not in review:
                    raise PrefError(f"{path}, line {number}: there is no {key!r}.")
                if isinstance(review[key], (list, dict, bool)):
                    raise PrefError(
                        f"{path}, line {number}: {key!r} is {review[key]!r}, which is neither a text nor a number."
                    )
            cells = ["" if review[key] is None else str(review[key]) for key in keys]
            if not is_text("".join(cells)):
                raise PrefError(
                    f"{path}, line {number}: there is half a Unicode character (such as \\ud800 alone); correct it."
                )
            yield number, *cells

    return _numbered_parts(path, rows(), list(OPTIONS))


def is_text(text: str) -> bool:
    """Return whether UTF-8 can encode a text; JSON may contain half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each line: a JSON object, or a Python dict (Amazon 2014).

    Raises:
        PrefError: a line is neither.
    """
    for number, line in numbered_lines(path):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
            if line.startswith("{'"):
                try:
                    content = ast.literal_eval(line)
                except (ValueError, SyntaxError, MemoryError, RecursionError):
                    content = None
        if not isinstance(content, dict):
            raise PrefError(f"{path}, line {number}: this is not a JSON object; correct or remove the line.")
        yield number, content


def _numbered_parts(path: Path, rows: Iterator[tuple[Any, ...]], columns: list[str]) -> Iterator[Part]:
    """Yield parts of rows; the first cell of a row is the number of its line."""
    for part in in_parts(rows):
        numbers, *cells = zip(*part)
        frame = pd.DataFrame(dict(zip(columns, cells)), dtype=object)
        yield frame, lambda row: f"{path}, line {numbers[row]}"


READERS: dict[str, Callable[..., Iterator[Part]]] = {
    "sequences": read_sequences,
    "pairs": read_pairs,
    "table": read_table,
    "movielens": read_movielens,
    "amazon-ratings-2014": partial(read_table, separator=",", columns=["user", "item", "rating", "time"]),
    "amazon-ratings-2018": partial(read_table, separator=",", columns=["item", "user", "rating", "time"]),
    "amazon-reviews": read_reviews,
}


# -- cells


def collect(parts: Iterable[Part]) -> pd.DataFrame:
    """Join parts into one frame.

    Ids are numbered while they are read, so a row needs 4 bytes for each id and 8 for each number.

    Args:
        parts: as the readers yield them.

    Returns:
        user_id, item_id and additional columns as categories of str, timestamp and rating as numbers. Without
        times, the timestamp is the position among the rows of the user.

    Raises:
        PrefError: a cell is not valid in its column.
    """
    columns: dict[str, list[np.ndarray]] = {}
    texts: dict[str, dict[str, int]] = {}
    kinds: dict[str, bool] = {}
    for part, place in parts:
        for name, values in part.items():
            if name in _NUMBERS:
                cells = _numbers(values, name, place, kinds)
            else:
                cells = _codes(values, name, place, texts.setdefault(name, {}))
            columns.setdefault(name, []).append(cells)
    joined: dict[str, Any] = {}
    for name in list(columns):
        cells = np.concatenate([piece for piece in columns.pop(name) if len(piece)] or [np.empty(0, np.int32)])
        joined[name] = cells
        if name in texts:
            joined[name] = pd.Categorical.from_codes(cells, pd.Index(list(texts[name]), dtype=object))
    frame = pd.DataFrame(joined)
    if len(frame) and "timestamp" not in frame:
        frame.insert(2, "timestamp", frame.groupby("user_id", observed=True).cumcount())
    return frame


def _codes(values: pd.Series, column: str, place: Place, codes: dict[str, int]) -> np.ndarray:
    """Return the number of each text: int32 [rows]. New texts are added to ``codes``, which maps texts to numbers.

    Ids must be texts that RecBole reads back unchanged.
    """
    values = without_fractions(values)
    numbers, texts = pd.factorize(values)  # -1 for a missing value
    texts = pd.Series([*texts.astype(str), ""], dtype=object)
    bad = texts.str.contains(r"[\t\n\r\0]")
    is_id = column in ("user_id", "item_id")
    if is_id:
        bad |= texts.isin(MISSING)
    if bad.any():
        wrong = np.flatnonzero(bad.to_numpy()[numbers])
        if len(wrong):
            text = texts.iloc[numbers[wrong[0]]]
            reason = "RecBole reads as missing" if text in MISSING else "holds a tab or a line end"
            problem = f"is {text!r}, which {reason}" if text else "is empty"
            remedy = "give it another id or remove the row" if is_id else "correct or remove the row"
            raise PrefError(f"{place(wrong[0])}: {column} {problem}; {remedy}.")
    used = chain(texts[:-1], [""] if (numbers < 0).any() else ())
    code_of = np.array([codes.setdefault(text, len(codes)) for text in used], dtype=np.int32)
    return code_of[numbers]


def _numbers(values: pd.Series, column: str, place: Place, kinds: dict[str, bool]) -> np.ndarray:
    """Return numbers, or dates as seconds since 1970: int64 if all are integers, else finite float64.

    Args:
        values: cells.
        column: timestamp or rating.
        place: from a row to its file and line.
        kinds: whether the earlier parts of a column hold dates.
    """
    if values.empty:
        return np.empty(0, np.int64)
    numbers = np.full(len(values), np.nan)
    if not pd.api.types.is_datetime64_any_dtype(values):
        parsed = pd.to_numeric(values, errors="coerce")
        # float64 would round nanoseconds since 1970, which are above 2^53.
        if pd.api.types.is_integer_dtype(parsed) and parsed.notna().all() and parsed.max() < 2**63:
            numbers = parsed.to_numpy(dtype="int64")
        else:
            numbers = parsed.to_numpy(dtype=float, na_value=np.nan)
    wrong = ~np.isfinite(numbers)
    # In a column with mostly numbers, the other cells are errors, not dates.
    if kinds.setdefault(column, column == "timestamp" and wrong.mean() > 0.5):
        numbers = _seconds(values)
        wrong = ~np.isfinite(numbers)
    at = np.flatnonzero(wrong)
    if len(at):
        kind = "not a number"
        if column == "timestamp":
            kind = "neither a number nor a date (YYYY-MM-DD, or MM/DD/YYYY)"
        raise PrefError(
            f"{place(at[0])}: {column} is {str(values.iloc[at[0]])!r}, which is {kind}; correct or remove the row."
        )
    return numbers


def _seconds(values: pd.Series) -> np.ndarray:
    """Return dates as seconds since 1970: float64 [rows], NaN for other cells."""
    dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    if dates.isna().any():
        dates = pd.to_datetime(values, errors="coerce", format="mixed", utc=True)
    dates = dates.mask(_is_ambiguous(values))
    epoch = pd.Timestamp(0, tz="UTC").as_unit("s")  # nanoseconds would end in 1677
    return ((dates - epoch) / pd.Timedelta(seconds=1)).to_numpy(dtype=float)


def _is_ambiguous(values: pd.Series) -> pd.Series:
    """Return which cells pandas may read as wrong dates: bool [rows].

    These are words such as 'now', cells without a year ('12:30'), numbers with a decimal comma, and dates with the day
    first: pandas reads a day of at most 12 in the same column as the month.
    """
    texts = values.astype(str)
    first = pd.to_numeric(texts.str.extract(r"^\s*(\d{1,2})[/.-]\d{1,2}[/.-]", expand=False), errors="coerce")
    return (first > 12) | ~texts.str.contains(r"\d{4}") | texts.str.fullmatch(r"\s*[+-]?\d+,\d+\s*")
