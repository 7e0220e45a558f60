"""Turn what people have into RecBole's atomic files: ``recbole-pref-data``."""

import argparse
import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_pref.errors import PrefError, suggest

FORMATS = ("sequences", "pairs", "table", "amazon-ratings-2014", "amazon-ratings-2018", "amazon-reviews")
COLUMNS = ["user_id", "item_id", "timestamp"]
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


def _open(path):
    if not Path(path).is_file():
        folder = Path(path).parent
        near = [str(p) for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        raise PrefError(f"input={str(path)!r} does not exist.{suggest(path, near)}")
    if str(path).endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def _lines(path):
    """Yield number and text of each line that is not blank."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise PrefError(f"{path}: the text is not UTF-8; save the file as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError):
        raise PrefError(f"{path} is no whole gzip file; fetch it again.") from None


def read_sequences(path):
    """Read one user per line, ``user item item ...``; the position stands for the time."""
    users, items, times = [], [], []
    for number, line in _lines(path):
        user, *sequence = line.split()
        if not sequence:
            raise PrefError(f"{path}, line {number}: user {user!r} has no items; remove the line.")
        users += [user] * len(sequence)
        items += sequence
        times += range(len(sequence))
    return pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times})


def read_pairs(path):
    """Read ``user item`` per line in time order; the position stands for the time."""
    rows = []
    for number, line in _lines(path):
        cells = line.split()
        if len(cells) != 2:
            raise PrefError(f"{path}, line {number}: {len(cells)} words where 'user item' is expected.")
        rows.append(cells)
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    frame["timestamp"] = frame.groupby("user_id").cumcount()
    return frame


def read_table(path, user="user_id", item="item_id", time="timestamp", rating=None, separator=None):
    """Read a CSV, TSV or Parquet file with named columns; without ``time`` the order of rows counts."""
    _open(path).close()
    if str(path).endswith(".parquet"):
        frame = pd.read_parquet(path)
    else:
        separator = separator or ("\t" if ".tsv" in str(path) else ",")
        try:
            frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise PrefError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None
    return _rename(path, frame, user, item, time, rating)


def _rename(path, frame, user, item, time, rating):
    wanted = {"user": user, "item": item, "time": time, "rating": rating}
    chosen = {}
    for option, column in wanted.items():
        if not column:
            continue
        if column not in frame:
            raise PrefError(
                f"{path} has no column {column!r} (--{option}); it has {', '.join(map(str, frame))}."
                f"{suggest(column, frame)}"
            )
        chosen[column] = {"user": "user_id", "item": "item_id", "time": "timestamp"}.get(option, option)
    frame = frame[list(chosen)].rename(columns=chosen)
    for column in ("timestamp", "rating"):
        if column in frame:
            frame[column] = _numbers(path, frame[column], column)
    if "timestamp" not in frame:
        frame["timestamp"] = frame.groupby("user_id").cumcount()
    return frame


def _numbers(path, values, column):
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    if np.isfinite(numbers).all():
        return numbers
    if pd.api.types.is_datetime64_any_dtype(values) or column == "timestamp":
        dates = pd.to_datetime(values, errors="coerce", format="mixed", utc=True)
        if dates.notna().all():
            return (dates.astype("int64") / 10**9).to_numpy(dtype=float)
    at = int(np.flatnonzero(~np.isfinite(numbers))[0])
    raise PrefError(
        f"{path}, line {at + 2}: {column} is {values.iloc[at]!r}, which is no number"
        f"{' and no date' if column == 'timestamp' else ''}."
    )


def _amazon_ratings(order):
    def read(path):
        _open(path).close()
        try:
            frame = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise PrefError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None
        if frame.shape[1] != 4:
            raise PrefError(f"{path}: {frame.shape[1]} columns where Amazon's ratings have 4.")
        frame.columns = order
        return _rename(path, frame, "user", "item", "time", "rating")

    return read


_REVIEW_KEYS = (
    ("reviewerID", "asin", "unixReviewTime", "overall"),
    ("user_id", "parent_asin", "timestamp", "rating"),
)


def read_reviews(path):
    """Read Amazon reviews as JSON lines, with the keys of 2014/2018 or of 2023."""
    rows = []
    for number, line in _lines(path):
        try:
            review = json.loads(line)
            keys = next(keys for keys in _REVIEW_KEYS if keys[0] in review)
            rows.append([review[key] for key in keys])
        except (ValueError, TypeError):
            raise PrefError(f"{path}, line {number}: this is no JSON object.") from None
        except StopIteration:
            raise PrefError(f"{path}, line {number}: there is neither reviewerID nor user_id.") from None
        except KeyError as error:
            raise PrefError(f"{path}, line {number}: there is no {error.args[0]!r}.") from None
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    for column in ("timestamp", "rating"):
        frame[column] = _numbers(path, frame[column], column)
    return frame


READERS = {
    "sequences": read_sequences,
    "pairs": read_pairs,
    "table": read_table,
    "amazon-ratings-2014": _amazon_ratings(["user", "item", "rating", "time"]),
    "amazon-ratings-2018": _amazon_ratings(["item", "user", "rating", "time"]),
    "amazon-reviews": read_reviews,
}


def read_item_features(path):
    """Read item features: JSON ``{item: [attribute, ...]}`` as S3-Rec's, or a CSV with a column item_id.

    Returns:
        DataFrame: column names are ``name:type`` as in atomic files.
    """
    _open(path).close()
    if str(path).endswith(".json"):
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [(str(item), " ".join(map(str, values))) for item, values in table.items()]
        except (ValueError, TypeError, AttributeError):
            raise PrefError(f"{path} is no JSON object of lists: {{item: [attribute, ...]}}.") from None
        return pd.DataFrame(rows, columns=["item_id:token", "attributes:token_seq"])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "item_id" not in frame:
        raise PrefError(f"{path} has no column 'item_id'.{suggest('item_id', frame)}")
    return frame.rename(columns={name: f"{name}:{_feature_type(frame[name])}" for name in frame})


def _feature_type(values):
    if values.name == "item_id":
        return "token"
    if pd.to_numeric(values, errors="coerce").notna().all():
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

    Returns:
        dict: users, items, interactions, density, mean_length, head_share (interactions with the most
        popular ``head_ratio`` of the items) and tail_targets (share of the users' last items outside
        that head, counted without the last two items of each user).
    """
    counts = frame["item_id"].value_counts()
    left = frame.groupby("user_id").cumcount(ascending=False)
    known = frame.loc[left >= 2, "item_id"].value_counts().reindex(counts.index, fill_value=0)
    order = known.sort_values(ascending=False, kind="stable").index
    head = set(order[: max(1, round(head_ratio * len(counts)))])
    users, items = frame["user_id"].nunique(), len(counts)
    return {
        "users": users,
        "items": items,
        "interactions": len(frame),
        "density": len(frame) / (users * items),
        "mean_length": len(frame) / users,
        "head_share": float(frame["item_id"].isin(head).mean()),
        "tail_targets": float((~frame.loc[left == 0, "item_id"].isin(head)).mean()),
    }


# -- the whole


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
        dict: see ``summarize``.

    Raises:
        PrefError: a mistake in the options or the file, with its line.
    """
    if format not in READERS:
        raise PrefError(
            f"format={format!r} does not exist: use one of {', '.join(FORMATS)}.{suggest(format, FORMATS)}"
        )
    frame = READERS[format](input, **table) if format == "table" else READERS[format](input)
    for column in ("user_id", "item_id"):
        frame[column] = frame[column].astype(str)
        bad = frame[column].str.contains(r"[\t\n\r]") | (frame[column] == "")
        if bad.any():
            at = int(np.flatnonzero(bad.to_numpy())[0])
            raise PrefError(
                f"{input}: {column} {frame[column].iloc[at]!r} of interaction {at + 1} is empty or holds "
                "a tab."
            )
    if rating_min is not None:
        if "rating" not in frame:
            raise PrefError("rating_min needs ratings: name their column with --rating.")
        frame = frame[frame["rating"] >= rating_min]
    # A stable sort keeps the order of the file among equal times.
    frame = frame.sort_values("timestamp", kind="stable")
    if drop_duplicates:
        frame = frame.drop_duplicates(["user_id", "item_id"])
    frame = k_core(frame, min_user, min_item)
    if frame.empty:
        raise PrefError(
            f"no interactions of {input} are left: lower min_user={min_user}, min_item={min_item} or "
            f"rating_min={rating_min}."
        )
    first = pd.factorize(frame["user_id"], sort=False)[0]
    frame = frame.iloc[np.argsort(first, kind="stable")]
    if not dry_run:
        folder = Path(output) / name
        _write(frame, folder / f"{name}.inter", force)
        if item_features:
            features = read_item_features(item_features)
            known = features["item_id:token"].isin(set(frame["item_id"]))
            _write(features[known], folder / f"{name}.item", force, typed=True)
    return summarize(frame)


def _write(frame, path, force, typed=False):
    if path.exists() and not force:
        raise PrefError(f"{path} exists already: choose another name or pass --force to replace it.")
    if not typed:
        columns = [*COLUMNS, *(["rating"] if "rating" in frame else [])]
        kinds = {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"}
        frame = frame[columns].rename(columns={column: f"{column}:{kinds[column]}" for column in columns})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(temporary, sep="\t", index=False, quoting=3, float_format="%.10g")
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise PrefError(f"{path} cannot be written: {error}") from None


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
        add(f"--{option}", default=default, help=f"format table: column of the {option}")
    add("--rating", help="format table: column of the rating")
    add("--separator", help="format table: separator of the columns")
    add("--dry_run", action="store_true", help="read and describe only")
    add("--force", action="store_true", help="replace existing files")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = vars(parser.parse_args(argv))
    debug = arguments.pop("debug")
    if arguments["format"] != "table":
        for option in ("user", "item", "time", "rating", "separator"):
            arguments.pop(option)
    try:
        summary = convert(**arguments)
    except PrefError as error:
        if debug:
            raise
        print(f"recbole-pref-data: {error}", file=sys.stderr)
        return 2
    print(tabulate([[k, f"{v:.6g}"] for k, v in summary.items()], [arguments["name"], ""], "github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
