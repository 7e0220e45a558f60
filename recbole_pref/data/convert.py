"""Convert interaction files to RecBole's atomic files: ``recbole-pref-data``.

The modules that read and sort are imported late, so that ``--help`` is fast.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from recbole_pref.errors import PrefError, report, suggest

FORMATS = (
    "sequences", "pairs", "table", "movielens", "amazon-ratings-2014", "amazon-ratings-2018", "amazon-reviews",
)  # fmt: skip
EXAMPLES = """
examples:
  # one user per line, "user item item ...", as S3-Rec publishes its data
  recbole-pref-data --format=sequences --input=Beauty.txt --name=amazon-beauty --output=dataset \\
      --item_features=Beauty_item2attributes.json
  # "user item" per line in time order, as SASRec publishes its data
  recbole-pref-data --format=pairs --input=Video.txt --name=video --output=dataset
  # a CSV, TSV or Parquet file with any column names
  recbole-pref-data --format=table --input=log.csv --user=uid --item=sku --time=ts --name=shop \\
      --output=dataset --min_user=5 --min_item=5
  # a file without a header: name its columns
  recbole-pref-data --format=table --input=u.data --separator='\\t' --columns=user,item,rating,time --name=ml \\
      --output=dataset
  # an event log: carts and purchases only, with the event as a column of the result
  recbole-pref-data --format=table --input=events.csv --user=visitorid --item=itemid --name=retailrocket \\
      --keep=event:addtocart,transaction --extra_columns=event --output=dataset
  # MovieLens 1M; 10M, 20M and later in the same way
  recbole-pref-data --format=movielens --input=ml-1m/ratings.dat --name=ml-1m --output=dataset
  # Amazon: ratings without header, or reviews as JSON lines, with metadata; files may be compressed (.gz)
  recbole-pref-data --format=amazon-ratings-2014 --input=ratings_Beauty.csv --name=beauty --output=dataset \\
      --min_user=5 --min_item=5
  recbole-pref-data --format=amazon-reviews --input=reviews_Beauty_5.json.gz --name=beauty --output=dataset \\
      --item_features=meta_Beauty.json.gz
"""


def check_name(option: str, name: str, written: bool = True) -> None:
    """Refuse a name that a new data set cannot have.

    Args:
        option: the option with the name, for the message.
        name: name of the data set, of its folder and of its files.
        written: whether files with this name are written.

    Raises:
        PrefError: the name cannot be the name of a folder, or RecBole would not read the folder.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise PrefError(f"{option}={name!r} cannot name a folder: use letters, digits, - and _.")
    if name == "ml-100k" and written:
        raise PrefError(
            f"{option}={name!r} would never be read, because RecBole ships this data set: choose another name."
        )


def convert(
    input: str | os.PathLike[str],
    format: str,
    name: str,
    output: str | os.PathLike[str] = "dataset",
    min_user: int = 0,
    min_item: int = 0,
    rating_min: float | None = None,
    drop_duplicates: bool = False,
    item_features: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    **table: Any,
) -> dict[str, Any]:
    """Write ``output/name/name.inter`` (and ``.item``) and return statistics of the data.

    Args:
        input: the source file.
        format: one of ``FORMATS``.
        name: the name of the data set.
        output: the folder of data sets, RecBole's ``data_path``.
        min_user, min_item: k-core filter; 0 disables it.
        rating_min: the lowest rating to keep.
        drop_duplicates: keep only the first interaction of each user with each item.
        item_features: a file, see ``read_item_features``.
        dry_run: write no files.
        force: replace existing files.
        **table: options of the format ``table``, see ``formats.read_table``.

    Returns:
        The statistics of ``interactions.summarize``; with item features also ``items_with_features``, and
        ``items_without_interactions`` if an existing item file has such items.

    Raises:
        PrefError: an error in the options or in the file, with its line.
    """
    from recbole_pref.data import interactions
    from recbole_pref.data.formats import READERS, collect
    from recbole_pref.data.item_features import read_item_features
    from recbole_pref.data.tables import existing_file

    if format not in READERS:
        raise PrefError(f"format={format!r} does not exist: use one of {', '.join(FORMATS)}.{suggest(format, FORMATS)}")
    check_name("name", name, written=not dry_run)
    if table and format != "table":
        option = next(iter(table))
        raise PrefError(f"{option}={table[option]!r} is an option of format='table', not of {format!r}.")
    source, folder = existing_file(input, "input"), Path(output) / name
    features = existing_file(item_features, "item_features") if item_features else None
    files = [folder / f"{name}.inter", *([folder / f"{name}.item"] if features else [])]
    for path in files:
        if path.exists() and not force and not dry_run:
            raise PrefError(f"{path} exists already: choose another name or pass --force to replace it.")
    frame = collect(READERS[format](source, **table))
    if frame.empty:
        raise PrefError(f"{source} holds no interactions.")
    if rating_min is not None:
        if "rating" not in frame:
            raise PrefError(f"rating_min={rating_min} needs ratings: name their column with --rating.")
        frame = frame[frame["rating"] >= rating_min]
    frame = interactions.by_time(frame)
    if drop_duplicates:
        frame = frame.drop_duplicates(["user_id", "item_id"])
    frame = interactions.k_core(frame, min_user, min_item)
    if frame.empty:
        raise PrefError(
            f"no interactions of {source} are left: lower min_user={min_user}, min_item={min_item} or "
            f"rating_min={rating_min}."
        )
    frame = interactions.by_user(frame)
    summary = interactions.summarize(frame)
    items = [str(item) for item in frame["item_id"].unique()]
    tables = [interactions.typed(frame)]
    if features is None:
        summary.update(_check_item_file(folder / f"{name}.item", items))
    else:
        rows = read_item_features(features, set(items)).set_index("item_id:token")
        summary["items_with_features"] = sum(item in rows.index for item in items)
        # RecBole removes the interactions of items without a row, so every item needs one.
        tables.append(rows.reindex(items, fill_value="").reset_index())
    if not dry_run:
        interactions.write(dict(zip(files, tables)))
    return summary


def _check_item_file(path: Path, items: list[str]) -> dict[str, int]:
    """Return the number of items without interactions in an existing item file; empty if there are none.

    Raises:
        PrefError: the file has no row for an item; RecBole would remove its interactions.
    """
    from recbole_pref.data.check import read_atomic

    if not path.is_file():
        return {}
    frame, columns = read_atomic(path)
    if "item_id" not in columns:
        return {}
    described = set(frame["item_id"])
    missing = [item for item in items if item not in described]
    if missing:
        raise PrefError(
            f"{path} belongs to other data: it has no row for item {missing[0]!r}; remove it or pass --item_features "
            "and --force to replace it."
        )
    unused = len(described) - len(items)
    return {"items_without_interactions": unused} if unused else {}


def _shown(key: str, value: int | float | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if key == "mean_length" else f"{value:.3%}" if key == "density" else f"{value:.1%}"


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _condition(text: str) -> tuple[str, list[str]]:
    column, colon, values = text.partition(":")
    if not column or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form column:value,value")
    return column, _list(values)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="recbole-pref-data",
        description="Convert interaction data to RecBole's atomic files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, path = parser.add_argument, os.path.expanduser
    add("--input", required=True, type=path, help="source file; may be compressed (.gz)")
    add("--format", required=True, help=", ".join(FORMATS))
    add("--name", required=True, help="name of the data set")
    add("--output", default="dataset", type=path, help="folder of data sets (RecBole's data_path)")
    add("--min_user", type=int, default=0, help="k-core: least number of interactions of a user")
    add("--min_item", type=int, default=0, help="k-core: least number of interactions of an item")
    add("--rating_min", type=float, help="lowest rating to keep")
    add("--drop_duplicates", action="store_true", help="keep only the first interaction of each user with each item")
    add(
        "--item_features",
        metavar="FILE",
        type=path,
        help="JSON {item: [attribute, ...]}, Amazon metadata, or a CSV with item_id",
    )
    add("--dry_run", action="store_true", help="print the statistics, but write no files")
    add("--force", action="store_true", help="replace existing files")
    add("--debug", action="store_true", help="show the traceback of an error")
    table = parser.add_argument_group("format table", argument_default=argparse.SUPPRESS)
    add = table.add_argument
    add("--user", help="column of the user (user_id)")
    add("--item", help="column of the item (item_id)")
    add("--time", help="column of the time (timestamp); empty to use the order of the rows")
    add("--rating", help="column of the rating")
    add("--separator", help="separator of the columns, such as ';' or '::'")
    add("--columns", type=_list, metavar="NAMES", help="names of all columns of a file without a header; the "
        "names user, item, rating and time have this meaning")  # fmt: skip
    add("--keep", type=_condition, action="append", metavar="COLUMN:VALUES", help="keep only rows with one of these "
        "values, such as event:buy,cart; may be repeated")  # fmt: skip
    add("--extra_columns", type=_list, metavar="NAMES", help="additional columns to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 after a user error."""
    arguments = vars(build_parser().parse_args(argv))
    debug = arguments.pop("debug")
    if "keep" in arguments:
        conditions, arguments["keep"] = arguments["keep"], {}
        for column, values in conditions:
            arguments["keep"].setdefault(column, []).extend(values)
    try:
        summary = convert(**arguments)
    except PrefError as error:
        return report(error, "recbole-pref-data", debug)
    from tabulate import tabulate

    name, output = arguments["name"], arguments["output"]
    rows = [(key, _shown(key, value)) for key, value in summary.items()]
    print(tabulate(rows, [name, ""], "github", colalign=("left", "right"), disable_numparse=True))
    if not arguments["dry_run"]:
        print(f"\nwrote {Path(output, name, f'{name}.inter')}")
        print(f"train on it: recbole-pref --model=LPOSASRec --dataset={name} --data_path={output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
