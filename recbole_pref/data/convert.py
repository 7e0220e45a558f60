"""Turn what people have into RecBole's atomic files: ``recbole-pref-data``."""

import argparse
import csv
import gzip
import itertools
import json
import os
import re
import sys
import warnings
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from tabulate import tabulate

from recbole_pref.data.check import MISSING, read_atomic
from recbole_pref.errors import PrefError, suggest
from recbole_pref.startup import LateModule

pd = LateModule("pandas")

FORMATS = ("sequences", "pairs", "table", "amazon-ratings-2014", "amazon-ratings-2018", "amazon-reviews")
EXAMPLES = """
examples:
  # one user per line, "user item item ...", as S3-Rec publishes its data
  recbole-pref-data --format=sequences --input=Beauty.txt --name=amazon-beauty --output=dataset \\
      --item_features=Beauty_item2attributes.json
  # "user item" per line in time order, as SASRec publishes its data
  recbole-pref-data --format=pairs --input=Video.txt --name=video --output=dataset
  # a CSV, TSV or Parquet file with columns of your own
  recbole-pref-data --format=table --input=log.csv --user=uid --item=sku --time=ts --name=shop \\
      --output=dataset --min_user=5 --min_item=5
  # Amazon: ratings without header, or reviews as JSON lines; .gz is read as it is
  recbole-pref-data --format=amazon-ratings-2014 --input=ratings_Beauty.csv --name=beauty --output=dataset \\
      --min_user=5 --min_item=5
  recbole-pref-data --format=amazon-reviews --input=reviews_Beauty_5.json.gz --name=beauty --output=dataset
"""


# -- reading


def _source(path, option="input"):
    """Return the path of an existing file."""
    path = Path(path)
    if not path.is_file():
        near = [str(p) for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise PrefError(f"{option}={str(path)!r} does not exist or is no file.{suggest(path, near)}")
    return path


def _open(path, newline=None):
    """Open text, compressed or not; a byte order mark is skipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)


@contextmanager
def reading(path):
    """Turn what goes wrong while a file is read into one sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise PrefError(
            f"{path}, line {_undecodable_line(path)}: the text is not UTF-8; save the file as UTF-8."
        ) from None
    except _DAMAGED:
        raise PrefError(f"{path} is no whole gzip file; fetch it again.") from None
    except OSError as error:
        raise PrefError(f"{path} cannot be read: {error.strerror or error}.") from None


def _undecodable_line(path):
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    with suppress(*_DAMAGED), opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number + 1  # the text of a damaged file ends here


def _lines(path):
    """Yield number and text of each line that is not blank."""
    with reading(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.strip()


def read_sequences(path):
    """Read one user per line, ``user item item ...``; the position stands for the time."""
    users, items, times, numbers, line_of = [], [], [], [], {}
    for number, line in _lines(path):
        user, *sequence = line.split()
        if not sequence:
            raise PrefError(f"{path}, line {number}: user {user!r} has no items; remove the line.")
        if line_of.setdefault(user, number) != number:
            raise PrefError(
                f"{path}, line {number}: user {user!r} stands in line {line_of[user]} already; join the "
                "lines (or use --format=pairs)."
            )
        users += [user] * len(sequence)
        items += sequence
        times += range(len(sequence))
        numbers += [number] * len(sequence)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    return _with_ids(frame, lambda row: f"{path}, line {numbers[row]}")


def read_pairs(path):
    """Read ``user item`` per line in time order; the position stands for the time."""
    users, items, numbers = [], [], []
    for number, line in _lines(path):
        cells = line.split()
        if len(cells) != 2:
            raise PrefError(
                f"{path}, line {number}: {len(cells)} words where 'user item' is expected; mend the line "
                "or choose another --format."
            )
        users.append(cells[0])
        items.append(cells[1])
        numbers.append(number)
    frame = _with_ids(
        pd.DataFrame({"user_id": users, "item_id": items}), lambda row: f"{path}, line {numbers[row]}"
    )
    frame["timestamp"] = frame.groupby("user_id").cumcount()
    return frame


def read_table(path, user="user_id", item="item_id", time="timestamp", rating=None, separator=None):
    """Read a CSV, TSV or Parquet file with named columns.

    Args:
        path (Path): the file; ``.parquet`` is read as Parquet.
        user, item, time, rating (str): names of the columns; without ``time`` (empty or None) the order
            of the rows stands for it.
        separator (str, optional): by default a tab for ``.tsv`` and a comma otherwise.
    """
    names = {"user_id": user, "item_id": item, "timestamp": time, "rating": rating}
    if path.suffix.lower() == ".parquet":
        frame, place = read_parquet_file(path), lambda row: f"{path}, row {row + 1}"
    else:
        separator = (separator or ("\t" if ".tsv" in path.suffixes else ",")).replace("\\t", "\t")
        if {*separator} & {*'"\r\n'}:
            raise PrefError(f"separator={separator!r} is not accepted: it cannot be part of a line of cells.")
        frame = read_text_table(path, separator)
        place = lambda row: f"{path}, line {_line_of(path, separator, row + 1)}"
    return _interactions(path, frame, names, place)


def _amazon_ratings(order):
    def read(path):
        frame = read_text_table(path, ",", header=None)
        if frame.shape[1] != 4:
            raise PrefError(f"{path}: {frame.shape[1]} columns where Amazon's ratings have 4.")
        frame.columns = order
        place = lambda row: f"{path}, line {_line_of(path, ',', row)}"
        return _interactions(path, frame, {name: name for name in order}, place)

    return read


def read_parquet_file(path):
    """Read a Parquet file: DataFrame; a PrefError says what is wrong with it."""
    import pyarrow

    with reading(path):
        try:
            return pd.read_parquet(path)
        except (pyarrow.ArrowException, ValueError) as error:
            raise PrefError(f"{path} is no Parquet file: {' '.join(str(error).split())}") from None


def read_text_table(path, separator, header=0, skip_blank_lines=True):
    """Read a text table: DataFrame of str; a PrefError says what is wrong with it."""
    if header == 0:
        _check_header(path, separator)
    _check_quotes(path, separator)
    plain = len(separator.encode()) == 1  # what pandas' C reader takes
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        try:
            return pd.read_csv(
                path, sep=separator if plain else re.escape(separator), header=header,
                dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig",
                engine="c" if plain else "python", skip_blank_lines=skip_blank_lines,
                compression="gzip" if path.suffix == ".gz" else None,
            ).fillna("")  # fmt: skip
        except pd.errors.EmptyDataError:
            raise PrefError(f"{path} is empty.") from None
        except pd.errors.ParserWarning:
            raise PrefError(
                f"{path}: the rows have more cells than the first line; name all columns there."
            ) from None
        except (pd.errors.ParserError, csv.Error) as error:
            raise PrefError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None


def _check_header(path, separator):
    """Refuse a first line that names a column twice, of which pandas would make another name."""
    for _, line in itertools.islice(_lines(path), 1):
        names = next(csv.reader([line], delimiter=separator)) if len(separator) == 1 else line.split(separator)
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise PrefError(f"{path}: the column {twice[0]!r} stands there twice; rename one.")


def _check_quotes(path, separator):
    """Refuse quotation marks that no writer of quoted cells leaves: what they open swallows cells and lines."""
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


def _line_of(path, separator, record):
    """Return the line at which a record (0 is the first, the header's where there is one) ends."""
    if len(separator) > 1:  # no quoting, no line ends within cells
        return next(itertools.islice((number for number, _ in _lines(path)), record, None), record + 1)
    with suppress(csv.Error), _open(path, newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        # pandas skips blank lines, those of white space too
        filled = (reader.line_num for cells in reader if len(cells) > 1 or "".join(cells).strip())
        return next(itertools.islice(filled, record, None), record + 1)
    return record + 1


def _interactions(path, frame, names, place):
    """Choose and check columns: DataFrame with user_id, item_id, timestamp and perhaps rating.

    Args:
        frame (DataFrame): the source.
        names (dict): our column to the source's; None where the source has none.
        place (callable): row to file and line, for messages.
    """
    option = {"user_id": "user", "item_id": "item", "timestamp": "time", "rating": "rating"}
    chosen = {}
    for column, name in names.items():
        if not name:
            if column in ("user_id", "item_id"):
                raise PrefError(f"--{option[column]} is empty: name the column.")
            continue
        if name not in frame:
            raise PrefError(
                f"{path} has no column {name!r} (--{option[column]}); it has {', '.join(map(str, frame))}."
                f"{suggest(name, frame)}"
            )
        if isinstance(frame[name], pd.DataFrame):
            raise PrefError(f"{path}: the column {name!r} stands there twice; rename one.")
        chosen[column] = frame[name].reset_index(drop=True)
    chosen = _with_ids(chosen, place)
    for column in ("timestamp", "rating"):
        if column in chosen:
            chosen[column] = _numbers(chosen[column], column, place)
    result = pd.DataFrame(chosen)
    if "timestamp" not in result:
        result["timestamp"] = result.groupby("user_id").cumcount()
    return result[[column for column in option if column in result]]


def _with_ids(frame, place):
    """Return a frame, or a dict of columns, with ids that RecBole reads back unchanged."""
    for column in ("user_id", "item_id"):
        frame[column] = _ids(frame[column], column, place)
    return frame


def without_fractions(values):
    """Return a column of ids with whole numbers as such: Parquet may hold them as floats, where some are missing."""
    whole = pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all()
    return values.astype("Int64") if whole else values


def _ids(values, column, place):
    values = without_fractions(values)
    texts = values.astype(str)
    bad = values.isna() | texts.isin(MISSING) | texts.str.contains(r"[\t\n\r\0]")
    at = np.flatnonzero(bad)
    if len(at):
        text = texts.iloc[at[0]]
        fault = "is empty"
        if not values.isna().iloc[at[0]] and text:
            reason = "RecBole reads as missing" if text in MISSING else "holds a tab or a line end"
            fault = f"is {text!r}, which {reason}"
        raise PrefError(f"{place(at[0])}: {column} {fault}; give it another id or remove the row.")
    return texts


def _numbers(values, column, place):
    """Return numbers, or the seconds since 1970 of dates: int64 where all are integers, else float64, finite."""
    numbers = np.full(len(values), np.nan)
    if not pd.api.types.is_datetime64_any_dtype(values):
        given = pd.to_numeric(values, errors="coerce")
        # float64 would confuse nanoseconds since 1970, which are above 2^53.
        if pd.api.types.is_integer_dtype(given) and given.notna().all() and given.max() < 2**63:
            return given.to_numpy(dtype="int64")
        numbers = given.to_numpy(dtype=float, na_value=np.nan)
    wrong = ~np.isfinite(numbers)
    # A column that is mostly numbers is one of numbers; the rest of it are mistakes, not dates.
    if column == "timestamp" and len(wrong) and wrong.mean() > 0.5:
        dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
        if dates.isna().any():
            dates = pd.to_datetime(values, errors="coerce", format="mixed", utc=True)
        dates = dates.mask(_is_ambiguous(values))
        epoch = pd.Timestamp(0, tz="UTC").as_unit("s")  # nanoseconds would end in 1677
        numbers = ((dates - epoch) / pd.Timedelta(seconds=1)).to_numpy(dtype=float)
        wrong = ~np.isfinite(numbers)
    at = np.flatnonzero(wrong)
    if len(at):
        kind = "neither a number nor a date (YYYY-MM-DD, or MM/DD/YYYY)" if column == "timestamp" else "no number"
        raise PrefError(
            f"{place(at[0])}: {column} is {str(values.iloc[at[0]])!r}, which is {kind}; mend or remove "
            "the row."
        )
    return numbers


def _is_ambiguous(values):
    """Whether pandas takes for dates what are none, or not surely: bool [rows].

    Words such as 'now'; what names no year ('12:30', of today); numbers with a decimal comma; dates with the day first,
    as in the same column a day of at most 12 would be read as the month.
    """
    texts = values.astype(str)
    first = pd.to_numeric(texts.str.extract(r"^\s*(\d{1,2})[/.-]\d{1,2}[/.-]", expand=False), errors="coerce")
    return (first > 12) | ~texts.str.contains(r"\d{4}") | texts.str.fullmatch(r"\s*[+-]?\d+,\d+\s*")


def _is_text(text):
    """Whether text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_REVIEW_KEYS = (
    ("reviewerID", "asin", "unixReviewTime", "overall"),
    ("user_id", "parent_asin", "timestamp", "rating"),
)


def read_reviews(path):
    """Read Amazon reviews as JSON lines, with the keys of 2014/2018 or of 2023."""
    rows, numbers = [], []
    for number, line in _lines(path):
        try:
            review = json.loads(line)
        except (ValueError, RecursionError):
            review = None
        if not isinstance(review, dict):
            raise PrefError(f"{path}, line {number}: this is no JSON object; mend or remove the line.")
        keys = next((keys for keys in _REVIEW_KEYS if keys[0] in review), None)
        if keys is None:
            raise PrefError(f"{path}, line {number}: there is neither reviewerID nor user_id.")
        for key in keys:
            if key not in review:
                raise PrefError(f"{path}, line {number}: there is no {key!r}.")
            if isinstance(review[key], (list, dict, bool)):
                raise PrefError(f"{path}, line {number}: {key!r} is {review[key]!r}, no text and no number.")
        rows.append(["" if review[key] is None else str(review[key]) for key in keys])
        if not _is_text("".join(rows[-1])):
            raise PrefError(f"{path}, line {number}: there is half a Unicode character; mend the line.")
        numbers.append(number)
    columns = ["user_id", "item_id", "timestamp", "rating"]
    place = lambda row: f"{path}, line {numbers[row]}"
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return _interactions(path, frame, {name: name for name in columns}, place)


READERS = {
    "sequences": read_sequences,
    "pairs": read_pairs,
    "table": read_table,
    "amazon-ratings-2014": _amazon_ratings(["user_id", "item_id", "rating", "timestamp"]),
    "amazon-ratings-2018": _amazon_ratings(["item_id", "user_id", "rating", "timestamp"]),
    "amazon-reviews": read_reviews,
}


def read_item_features(path):
    """Read item features: JSON ``{item: [attribute, ...]}`` as S3-Rec's, or a CSV with a column item_id.

    White space within an attribute of the JSON becomes ``_``. A column of a CSV whose cells are finite
    numbers or empty is ``float``, one with a space in a cell ``token_seq``, any other ``token``.

    Returns:
        DataFrame: of str; column names are ``name:type`` as in atomic files.
    """
    path = _source(path, "item_features")
    if ".json" in path.suffixes:
        frame = _json_features(path)
    else:
        frame = read_text_table(path, "\t" if ".tsv" in path.suffixes else ",")
        if "item_id" not in frame:
            raise PrefError(f"{path} has no column 'item_id'.{suggest('item_id', frame)}")
        for name in frame:
            if not name or ":" in name or '"' in name or any(c.isspace() for c in name):
                raise PrefError(f"{path}, line 1: column {name!r} is no name; use letters and _ alone.")
            at = np.flatnonzero(frame[name].str.contains(r"[\t\n\r\0]"))
            if len(at):
                line = _line_of(path, "\t" if ".tsv" in path.suffixes else ",", at[0] + 1)
                raise PrefError(f"{path}, line {line}: {name!r} holds a tab or a line end; remove it.")
        frame = frame.rename(columns={name: f"{name}:{_feature_type(frame[name])}" for name in frame})
    same = frame["item_id:token"].duplicated()
    if same.any():
        raise PrefError(
            f"{path}: item {frame['item_id:token'][same].iloc[0]!r} stands there twice; keep one row."
        )
    return frame


def _json_features(path):
    text = "\n".join(line for _, line in _lines(path))
    try:
        table = json.loads(text, object_pairs_hook=lambda pairs: pairs)  # an item may stand there twice
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, list) or not all(isinstance(pair, tuple) for pair in table):
        raise PrefError(f"{path} is no JSON object of lists: {{item: [attribute, ...]}}.")
    rows = []
    for item, values in table:
        if not isinstance(values, list) or not all(isinstance(v, (str, int, float)) for v in values):
            raise PrefError(f"{path}: the attributes of item {item!r} are no list of texts or numbers.")
        rows.append((item, " ".join("_".join(str(value).split()) for value in values)))
        if not _is_text("".join(rows[-1])):
            raise PrefError(f"{path}: item {item!r} has half a Unicode character; mend it.")
    return pd.DataFrame(rows, columns=["item_id:token", "attributes:token_seq"], dtype=object)


def _feature_type(values):
    if values.name == "item_id":
        return "token"
    given = values[values != ""]
    if len(given) and np.isfinite(pd.to_numeric(given, errors="coerce").to_numpy(dtype=float)).all():
        return "float"
    return "token_seq" if values.str.contains(" ").any() else "token"


# -- filtering and describing


def k_core(frame, min_user, min_item):
    """Remove users and items with too few interactions until none is left to remove.

    Args:
        frame (DataFrame): columns user_id and item_id.
        min_user, min_item (int): interactions that a user, an item must have.
    """
    while True:
        enough = (frame.groupby("user_id")["item_id"].transform("size") >= min_user) & (
            frame.groupby("item_id")["user_id"].transform("size") >= min_item
        )
        if enough.all():
            return frame
        frame = frame[enough]


def summarize(frame, head_ratio=0.2):
    """Describe interactions sorted by user and time.

    The head is that of ``tail_split: items`` after RecBole's leave-one-out split: the most popular
    ``head_ratio`` of the items by training interactions, which are all but the last two of each user
    (all but the last one of a user with three, all of a user with fewer).

    Returns:
        dict: users, items, interactions, density, mean_length, head_share (share of all interactions
        that are with head items) and tail_targets (share of the test targets that are no head items;
        None when no user has three interactions).
    """
    users = frame.groupby("user_id")
    left = users.cumcount(ascending=False)  # 0 is a user's last interaction
    length = users["item_id"].transform("size")
    train = (left >= 2) | ((left == 1) & (length == 3)) | (length == 2)
    items = frame["item_id"].unique()  # in the order of RecBole's numbers, which breaks ties
    known = frame.loc[train, "item_id"].value_counts().reindex(items, fill_value=0)
    size = min(max(1, round(head_ratio * len(items))), int((known > 0).sum()))
    head = set(known.sort_values(ascending=False, kind="stable").index[:size])
    targets = frame.loc[(left == 0) & (length >= 3), "item_id"]
    return {
        "users": users.ngroups,
        "items": len(items),
        "interactions": len(frame),
        "density": len(frame) / (users.ngroups * len(items)),
        "mean_length": len(frame) / users.ngroups,
        "head_share": float(frame["item_id"].isin(head).mean()),
        "tail_targets": float((~targets.isin(head)).mean()) if len(targets) else None,
    }


# -- the whole


def check_name(option, name, written=True):
    """Refuse what cannot be the name of a data set of the user's.

    Args:
        option (str): what gave the name, for the message.
        name (str): of a folder and the files in it.
        written (bool): whether files are written under it.

    Raises:
        PrefError: it names no folder, or one that RecBole does not look for.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise PrefError(f"{option}={name!r} is no name of a folder: use letters, digits, - and _.")
    if name == "ml-100k" and written:
        raise PrefError(f"{option}={name!r} would never be read, as RecBole brings that one: choose another name.")


def convert(
    input,
    format,
    name,
    output="dataset",
    min_user=0,
    min_item=0,
    rating_min=None,
    drop_duplicates=False,
    item_features=None,
    dry_run=False,
    force=False,
    **table,
):
    """Write ``output/name/name.inter`` (and ``.item``) and return what is in it.

    Args:
        input (path-like): the source file.
        format (str): one of ``FORMATS``.
        name (str): the data set's name.
        output (path-like): the folder of data sets, RecBole's ``data_path``.
        min_user, min_item (int): k-core filter, 0 for none.
        rating_min (float, optional): keep ratings of at least this much.
        drop_duplicates (bool): keep the first of several interactions of a user with an item.
        item_features (path-like, optional): see ``read_item_features``.
        dry_run (bool): read and describe only.
        force (bool): replace existing files.
        **table: ``user``, ``item``, ``time``, ``rating``, ``separator`` for the format ``table``.

    Returns:
        dict: see ``summarize``; with item features also ``items_with_features``.

    Raises:
        PrefError: a mistake in the options or the file, with its line.
    """
    if format not in READERS:
        raise PrefError(
            f"format={format!r} does not exist: use one of {', '.join(FORMATS)}.{suggest(format, FORMATS)}"
        )
    check_name("name", name, written=not dry_run)
    if table and format != "table":
        given = next(iter(table))
        raise PrefError(f"{given}={table[given]!r} goes with format='table' alone, not with {format!r}.")
    source, folder = _source(input), Path(output) / name
    files = [folder / f"{name}.inter", *([folder / f"{name}.item"] if item_features else [])]
    for path in files:
        if path.exists() and not force and not dry_run:
            raise PrefError(f"{path} exists already: choose another name or pass --force to replace it.")
    features = read_item_features(item_features) if item_features else None
    frame = READERS[format](source, **table)
    if frame.empty:
        raise PrefError(f"{source} holds no interactions.")
    if rating_min is not None:
        if "rating" not in frame:
            raise PrefError(f"rating_min={rating_min} needs ratings: name their column with --rating.")
        frame = frame[frame["rating"] >= rating_min]
    # A stable sort keeps the order of the file among equal times.
    frame = frame.sort_values("timestamp", kind="stable")
    if drop_duplicates:
        frame = frame.drop_duplicates(["user_id", "item_id"])
    frame = k_core(frame, min_user, min_item)
    if frame.empty:
        raise PrefError(
            f"no interactions of {source} are left: lower min_user={min_user}, min_item={min_item} or "
            f"rating_min={rating_min}."
        )
    first = pd.factorize(frame["user_id"], sort=False)[0]
    frame = frame.iloc[np.argsort(first, kind="stable")]
    if features is None:
        _check_item_file(folder / f"{name}.item", frame)
    summary = summarize(frame)
    tables = [_typed(frame)]
    if features is not None:
        items = pd.DataFrame({"item_id:token": frame["item_id"].unique()})
        summary["items_with_features"] = int(items["item_id:token"].isin(features["item_id:token"]).sum())
        # RecBole drops the interactions of items without a row, so that every item gets one.
        tables.append(items.merge(features, how="left", on="item_id:token")[list(features)].fillna(""))
    if not dry_run:
        _write(dict(zip(files, tables)))
    return summary


def _check_item_file(path, frame):
    """Refuse to put interactions beside an item file without their items, whose interactions RecBole would drop."""
    if not path.is_file():
        return
    items, columns = read_atomic(path)
    missing = frame["item_id"][~frame["item_id"].isin(items["item_id"])] if "item_id" in columns else ()
    if len(missing):
        raise PrefError(
            f"{path} is of other data: it has no row for item {missing.iloc[0]!r}; remove it or pass --item_features "
            "and --force to replace it."
        )


def _typed(frame):
    """Return interactions with typed headers, whole numbers without a fraction."""
    kinds = {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"}
    typed = {}
    for column in frame:
        values = frame[column]
        # Milliseconds since 1970 need all their digits: they order a sequence.
        if pd.api.types.is_float_dtype(values) and (values % 1 == 0).all() and (values.abs() < 2**53).all():
            values = values.astype("int64")
        typed[f"{column}:{kinds[column]}"] = values
    return pd.DataFrame(typed)


def _write(tables):
    """Write tables beside their places, then move them there.

    Args:
        tables (dict): path to DataFrame.
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


def _shown(key, value):
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if key == "mean_length" else f"{value:.3%}" if key == "density" else f"{value:.1%}"


def main(argv=None):
    """Run the command line; return 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(
        prog="recbole-pref-data",
        description="Turn interaction data into RecBole's atomic files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="source file; .gz is read as it is")
    add("--format", required=True, help=", ".join(FORMATS))
    add("--name", required=True, help="name of the data set")
    add("--output", default="dataset", help="folder of data sets (RecBole's data_path)")
    add("--min_user", type=int, default=0, help="k-core: interactions a user must have")
    add("--min_item", type=int, default=0, help="k-core: interactions an item must have")
    add("--rating_min", type=float, help="keep ratings of at least this much")
    add("--drop_duplicates", action="store_true", help="keep the first of repeated user-item pairs")
    add("--item_features", help="JSON {item: [attribute, ...]} or CSV with a column item_id")
    for option, default in (("user", "user_id"), ("item", "item_id"), ("time", "timestamp")):
        add(f"--{option}", help=f"format table: column of the {option}, {default} if not given")
    add("--rating", help="format table: column of the rating")
    add("--separator", help="format table: separator of the columns")
    add("--dry_run", action="store_true", help="read and describe only")
    add("--force", action="store_true", help="replace existing files")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = vars(parser.parse_args(argv))
    debug = arguments.pop("debug")
    for option in ("user", "item", "time", "rating", "separator"):
        if arguments[option] is None:
            del arguments[option]
    try:
        summary = convert(**arguments)
    except PrefError as error:
        if debug:
            raise
        print(f"recbole-pref-data: {error}", file=sys.stderr)
        return 2
    rows = [(key, _shown(key, value)) for key, value in summary.items()]
    align = ("left", "right")
    print(tabulate(rows, [arguments["name"], ""], "github", colalign=align, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
