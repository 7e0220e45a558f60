"""The formats of interaction files, and how their cells become ids, times and ratings."""

import ast
import json
from functools import partial
from itertools import chain

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

# Our columns and the options that name the source's.
OPTIONS = {"user_id": "user", "item_id": "item", "timestamp": "time", "rating": "rating"}
_NUMBERS = ("timestamp", "rating")


# -- readers: each yields parts, a DataFrame with our columns and a function from row to "file, line N"


def read_sequences(path):
    """Read one user per line, ``user item item ...``."""
    line_of_user = {}

    def rows():
        for number, line in numbered_lines(path):
            user, *sequence = line.split()
            if not sequence:
                raise PrefError(f"{path}, line {number}: user {user!r} has no items; remove the line.")
            if line_of_user.setdefault(user, number) != number:
                raise PrefError(
                    f"{path}, line {number}: user {user!r} is already in line {line_of_user[user]}; join the lines "
                    "(or use --format=pairs)."
                )
            for item in sequence:
                yield number, user, item

    return _numbered_parts(path, rows(), ["user_id", "item_id"])


def read_pairs(path):
    """Read ``user item`` per line in time order."""

    def rows():
        for number, line in numbered_lines(path):
            cells = line.split()
            if len(cells) != 2:
                raise PrefError(
                    f"{path}, line {number}: {len(cells)} words where 'user item' is expected; correct the line or "
                    "choose another --format."
                )
            yield number, *cells

    return _numbered_parts(path, rows(), ["user_id", "item_id"])


def read_table(
    path, user=None, item=None, time=None, rating=None, separator=None, columns=None, keep=None, extra_columns=None
):
    """Read a CSV, TSV or Parquet file.

    Args:
        path (Path): the file; ``.parquet`` is read as Parquet.
        user, item, time, rating (str, optional): names of the columns. The defaults are user_id, item_id,
            timestamp and no rating, and with ``columns`` user, item, time and rating, the last two where they
            are among them. With an empty ``time`` the order of the rows stands for it.
        separator (str, optional): by default a tab for ``.tsv`` and a comma otherwise.
        columns (list of str, optional): names of all columns of a file without a header.
        keep (dict, optional): column to the texts of which a row must have one, such as
            ``{"event": ["cart", "buy"]}``.
        extra_columns (list of str, optional): further columns to write.
    """
    defaults = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "rating": None}
    if columns:
        defaults = {ours: name if name in columns else None for ours, name in OPTIONS.items()}
    given = {"user_id": user, "item_id": item, "timestamp": time, "rating": rating}
    names = {ours: defaults[ours] if name is None else name for ours, name in given.items()}
    for ours in ("user_id", "item_id"):
        if not names[ours]:
            raise PrefError(f"--{OPTIONS[ours]} is not set: name the column of the {OPTIONS[ours]}s.")
    names = {ours: name for ours, name in names.items() if name}
    for name in extra_columns or ():
        if name in names:
            raise PrefError(f"--extra_columns={name} would be written twice: leave it out or rename it in the file.")
        if not column_name(name):
            raise PrefError(f"--extra_columns={name!r} cannot name a column: use letters, digits and _.")
        names[name] = name
    keep = keep or {}
    if path.suffix.lower() == ".parquet":
        parts, place = parquet_parts(path, {*names.values(), *keep}), lambda row: f"{path}, row {row + 1}"
    else:
        separator, header = separator_of(path, separator), not columns
        parts = text_parts(path, separator, columns)
        place = lambda row: f"{path}, line {line_of(path, separator, row + header)}"
    return _chosen(path, parts, names, keep, place)


def _chosen(path, parts, names, keep, place):
    """Yield the rows that ``keep`` chooses, with our names of the columns."""
    options = {name: f"--{OPTIONS[ours]}" if ours in OPTIONS else "--extra_columns" for ours, name in names.items()}
    options |= {name: "--keep" for name in keep if name not in options}
    kept, others = {name: set() for name in keep}, {name: set() for name in keep}
    for part in parts:
        for name, option in options.items():
            if name not in part:
                raise PrefError(
                    f"{path} has no column {name!r} ({option}); it has {', '.join(map(str, part))}."
                    f"{suggest(name, part)}"
                )
            if isinstance(part[name], pd.DataFrame):
                raise PrefError(f"{path}: the column {name!r} is named twice; rename one.")
        for name, values in keep.items():
            texts = without_fractions(part[name]).astype(str)
            chosen = texts.isin(values)
            kept[name].update(texts[chosen].unique())
            if len(others[name]) < 10:
                others[name].update(texts[~chosen].unique()[:10])
            part = part[chosen]
        rows = part.index
        yield pd.DataFrame({ours: part[name].array for ours, name in names.items()}), lambda row: place(rows[row])
    for name, values in keep.items():
        for value in values:
            if value not in kept[name]:
                raise PrefError(
                    f"--keep={name}:{value} chooses no row of {path}; that column holds "
                    f"{', '.join(sorted(kept[name] | others[name])[:10]) or 'nothing'}."
                )


def read_movielens(path):
    """Read the ratings of MovieLens: ``ratings.dat`` (1M, 10M), ``ratings.csv`` (20M and later), ``u.data`` (100K)."""
    if ".csv" in path.suffixes:
        return read_table(path, "userId", "movieId", "timestamp", "rating")
    separator = "\t" if ".data" in path.suffixes else "::"
    return read_table(path, separator=separator, columns=["user", "item", "rating", "time"])


_REVIEW_KEYS = (
    ("reviewerID", "asin", "unixReviewTime", "overall"),
    ("user_id", "parent_asin", "timestamp", "rating"),
)


def read_reviews(path):
    """Read Amazon reviews as JSON lines, with the keys of 2014/2018 or of 2023."""

    def rows():
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
                raise PrefError(f"{path}, line {number}: there is half a Unicode character; correct the line.")
            yield number, *cells

    return _numbered_parts(path, rows(), list(OPTIONS))


def is_text(text):
    """Whether text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_lines(path):
    """Yield number and content of each line that holds a JSON object, or a dict as Python writes it (Amazon 2014).

    Raises:
        PrefError: another line.
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


def _numbered_parts(path, rows, columns):
    """Yield parts of rows that begin with the number of their line."""
    for part in in_parts(rows):
        numbers, *cells = zip(*part)
        frame = pd.DataFrame(dict(zip(columns, cells)), dtype=object)
        yield frame, lambda row: f"{path}, line {numbers[row]}"


READERS = {
    "sequences": read_sequences,
    "pairs": read_pairs,
    "table": read_table,
    "movielens": read_movielens,
    "amazon-ratings-2014": partial(read_table, separator=",", columns=["user", "item", "rating", "time"]),
    "amazon-ratings-2018": partial(read_table, separator=",", columns=["item", "user", "rating", "time"]),
    "amazon-reviews": read_reviews,
}


# -- cells


def collect(parts):
    """Join parts into one frame.

    Ids become numbers as they are read, so that a row needs 4 bytes for each of them and 8 for each number.

    Args:
        parts (iterable): of DataFrame and function from row to place, as the readers yield them.

    Returns:
        DataFrame: user_id, item_id and further columns as categories of str, timestamp and rating as numbers. Without
        times the position among the user's rows stands for them.

    Raises:
        PrefError: a cell that cannot be what its column is for.
    """
    columns, texts, kinds = {}, {}, {}
    for frame, place in parts:
        for name, values in frame.items():
            if name in _NUMBERS:
                cells = _numbers(values, name, place, kinds)
            else:
                cells = _codes(values, name, place, texts.setdefault(name, {}))
            columns.setdefault(name, []).append(cells)
    frame = {}
    for name in list(columns):
        cells = np.concatenate([part for part in columns.pop(name) if len(part)] or [np.empty(0, np.int32)])
        frame[name] = cells
        if name in texts:
            frame[name] = pd.Categorical.from_codes(cells, pd.Index(list(texts[name]), dtype=object))
    frame = pd.DataFrame(frame)
    if len(frame) and "timestamp" not in frame:
        frame.insert(2, "timestamp", frame.groupby("user_id", observed=True).cumcount())
    return frame


def _codes(values, column, place, codes):
    """Return the number of each text: int32 [rows]; ``codes`` (dict of text to number) learns new ones.

    Ids are texts that RecBole reads back unchanged.
    """
    values = without_fractions(values)
    found, texts = pd.factorize(values)  # -1 where there is none
    texts = pd.Series([*texts.astype(str), ""], dtype=object)
    bad = texts.str.contains(r"[\t\n\r\0]")
    is_id = column in ("user_id", "item_id")
    if is_id:
        bad |= texts.isin(MISSING)
    if bad.any():
        wrong = np.flatnonzero(bad.to_numpy()[found])
        if len(wrong):
            text = texts.iloc[found[wrong[0]]]
            reason = "RecBole reads as missing" if text in MISSING else "holds a tab or a line end"
            fault = f"is {text!r}, which {reason}" if text else "is empty"
            remedy = "give it another id or remove the row" if is_id else "correct or remove the row"
            raise PrefError(f"{place(wrong[0])}: {column} {fault}; {remedy}.")
    used = chain(texts[:-1], [""] if (found < 0).any() else ())
    numbers = np.array([codes.setdefault(text, len(codes)) for text in used], dtype=np.int32)
    return numbers[found]


def _numbers(values, column, place, kinds):
    """Return numbers, or the seconds since 1970 of dates: int64 where all are integers, else float64, finite.

    Args:
        values (Series): cells.
        column (str): timestamp or rating.
        place (callable): row to file and line.
        kinds (dict): column to whether earlier parts hold dates.
    """
    if values.empty:
        return np.empty(0, np.int64)
    numbers = np.full(len(values), np.nan)
    if not pd.api.types.is_datetime64_any_dtype(values):
        given = pd.to_numeric(values, errors="coerce")
        # float64 would confuse nanoseconds since 1970, which are above 2^53.
        if pd.api.types.is_integer_dtype(given) and given.notna().all() and given.max() < 2**63:
            numbers = given.to_numpy(dtype="int64")
        else:
            numbers = given.to_numpy(dtype=float, na_value=np.nan)
    wrong = ~np.isfinite(numbers)
    # A column that is mostly numbers is one of numbers; the rest of it are mistakes, not dates.
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


def _seconds(values):
    """Return the seconds since 1970 of dates: float64 [rows], NaN where it is not a date."""
    dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    if dates.isna().any():
        dates = pd.to_datetime(values, errors="coerce", format="mixed", utc=True)
    dates = dates.mask(_is_ambiguous(values))
    epoch = pd.Timestamp(0, tz="UTC").as_unit("s")  # nanoseconds would end in 1677
    return ((dates - epoch) / pd.Timedelta(seconds=1)).to_numpy(dtype=float)


def _is_ambiguous(values):
    """Whether pandas reads as dates what are none, or not surely: bool [rows].

    Words such as 'now'; what names no year ('12:30', of today); numbers with a decimal comma; dates with the day first,
    as in the same column a day of at most 12 would be read as the month.
    """
    texts = values.astype(str)
    first = pd.to_numeric(texts.str.extract(r"^\s*(\d{1,2})[/.-]\d{1,2}[/.-]", expand=False), errors="coerce")
    return (first > 12) | ~texts.str.contains(r"\d{4}") | texts.str.fullmatch(r"\s*[+-]?\d+,\d+\s*")
