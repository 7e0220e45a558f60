"""Turn what people have into RecBole's atomic files: ``recbole-pref-data``.

What reads and sorts is imported where it is used, so that ``--help`` answers at once.
"""

import argparse
import sys
from pathlib import Path

from recbole_pref.errors import PrefError, suggest

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
  # a CSV, TSV or Parquet file with columns of your own
  recbole-pref-data --format=table --input=log.csv --user=uid --item=sku --time=ts --name=shop \\
      --output=dataset --min_user=5 --min_item=5
  # a file without a header: name its columns
  recbole-pref-data --format=table --input=u.data --separator='\\t' --columns=user,item,rating,time --name=ml \\
      --output=dataset
  # an event log: carts and purchases only, with the event as a column of the result
  recbole-pref-data --format=table --input=events.csv --user=visitorid --item=itemid --name=retailrocket \\
      --keep=event:addtocart,transaction --extra_columns=event --output=dataset
  # MovieLens 1M; 10M, 20M and later alike
  recbole-pref-data --format=movielens --input=ml-1m/ratings.dat --name=ml-1m --output=dataset
  # Amazon: ratings without header, or reviews as JSON lines, with metadata; .gz is read as it is
  recbole-pref-data --format=amazon-ratings-2014 --input=ratings_Beauty.csv --name=beauty --output=dataset \\
      --min_user=5 --min_item=5
  recbole-pref-data --format=amazon-reviews --input=reviews_Beauty_5.json.gz --name=beauty --output=dataset \\
      --item_features=meta_Beauty.json.gz
"""


def check_name(option, name, written=True):
    """Refuse what cannot be the name of a data set of the user's.

    Args:
        option (str): what gave the name, for the message.
        name (str): of a folder and the files in it.
        written (bool): whether files are written under it.

    Raises:
        PrefError: it cannot name a folder, or names one that RecBole does not look for.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise PrefError(f"{option}={name!r} cannot name a folder: use letters, digits, - and _.")
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
        **table: options of the format ``table``, see ``formats.read_table``.

    Returns:
        dict: see ``interactions.summarize``; with item features also ``items_with_features``, and
        ``items_without_interactions`` where an item file of earlier has such.

    Raises:
        PrefError: a mistake in the options or the file, with its line.
    """
    from recbole_pref.data import interactions
    from recbole_pref.data.formats import READERS, collect
    from recbole_pref.data.item_features import read_item_features
    from recbole_pref.data.tables import existing_file

    if format not in READERS:
        raise PrefError(
            f"format={format!r} does not exist: use one of {', '.join(FORMATS)}.{suggest(format, FORMATS)}"
        )
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
        known = read_item_features(features, set(items)).set_index("item_id:token")
        summary["items_with_features"] = sum(item in known.index for item in items)
        # RecBole drops the interactions of items without a row, so that every item gets one.
        tables.append(known.reindex(items, fill_value="").reset_index())
    if not dry_run:
        interactions.write(dict(zip(files, tables)))
    return summary


def _check_item_file(path, items):
    """Return how many items of an item file that stays have no interactions: dict, empty where there are none.

    Raises:
        PrefError: it lacks an item, whose interactions RecBole would drop.
    """
    from recbole_pref.data.check import read_atomic

    frame, columns = read_atomic(path) if path.is_file() else (None, ())
    if "item_id" not in columns:
        return {}
    known = set(frame["item_id"])
    missing = [item for item in items if item not in known]
    if missing:
        raise PrefError(
            f"{path} belongs to other data: it has no row for item {missing[0]!r}; remove it or pass --item_features "
            "and --force to replace it."
        )
    unused = len(known) - len(items)
    return {"items_without_interactions": unused} if unused else {}


def _shown(key, value):
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if key == "mean_length" else f"{value:.3%}" if key == "density" else f"{value:.1%}"


def _list(text):
    return [part.strip() for part in text.split(",")]


def _condition(text):
    column, colon, values = text.partition(":")
    if not column or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form column:value,value")
    return column, _list(values)


def build_parser():
    """Return the parser of the command line."""
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
    add("--item_features", metavar="FILE", help="JSON {item: [attribute, ...]}, Amazon metadata, or a CSV with item_id")
    add("--dry_run", action="store_true", help="read and describe only")
    add("--force", action="store_true", help="replace existing files")
    add("--debug", action="store_true", help="show the traceback of an error")
    table = parser.add_argument_group("format table", argument_default=argparse.SUPPRESS)
    add = table.add_argument
    add("--user", help="column of the user (user_id)")
    add("--item", help="column of the item (item_id)")
    add("--time", help="column of the time (timestamp); empty where the order of the rows stands for it")
    add("--rating", help="column of the rating")
    add("--separator", help="separator of the columns, such as ';' or '::'")
    add("--columns", type=_list, metavar="NAMES", help="the file has no header: names of all its columns; user, item, "
        "rating and time are used as such")  # fmt: skip
    add("--keep", type=_condition, action="append", metavar="COLUMN:VALUES", help="only rows with one of these values, "
        "such as event:buy,cart; may be repeated")  # fmt: skip
    add("--extra_columns", type=_list, metavar="NAMES", help="further columns to write")
    return parser


def main(argv=None):
    """Run the command line; return 0, or 2 after a mistake."""
    arguments = vars(build_parser().parse_args(argv))
    debug = arguments.pop("debug")
    if "keep" in arguments:
        conditions, arguments["keep"] = arguments["keep"], {}
        for column, values in conditions:
            arguments["keep"].setdefault(column, []).extend(values)
    try:
        summary = convert(**arguments)
    except PrefError as error:
        if debug:
            raise
        print(f"recbole-pref-data: {error}", file=sys.stderr)
        return 2
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
