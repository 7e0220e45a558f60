"""Atomic files are checked before RecBole reads them: one sentence with file and line, not a traceback.

On the good path the files are read once by pandas' C reader; the line of a fault is looked for only when
there is one.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from recbole.utils import ModelType

from recbole_pref.errors import PrefError, suggest

TYPES = ("token", "token_seq", "float", "float_seq")


def check_atomic_files(data_path, dataset, config):
    """Check the interaction file (or the benchmark files) of a data set, and the feature files' text.

    Args:
        data_path (str): the data set's own folder.
        dataset (str): its name.
        config: RecBole configuration, for field names and separators.

    Returns:
        list of str: notes for the log, about data that work but may surprise.

    Raises:
        PrefError: a missing or malformed file; names file, line and remedy.
    """
    folder = Path(data_path)
    parts = config["benchmark_filename"]
    names = [f"{dataset}.{part}.inter" for part in parts] if parts else [f"{dataset}.inter"]
    notes = []
    for name in names:
        if not (folder / name).is_file():
            raise PrefError(_missing(folder, name, dataset))
        notes += _check_interactions(folder / name, config, benchmark=bool(parts))
    for suffix in ("user", "item"):
        if (folder / f"{dataset}.{suffix}").is_file():
            _read_header(folder / f"{dataset}.{suffix}", config)
            _check_text(folder / f"{dataset}.{suffix}", config)
    return notes


def check_split(train, valid, test, n_items):
    """Refuse data of which filters and split left nothing.

    Args:
        train, valid, test (int): rows of each part; an empty validation part is RecBole's way of
            training without one, so only training and test must have rows.
        n_items (int): items with padding.

    Raises:
        PrefError: names the settings that filter and split.
    """
    for part, rows in (("training", train), ("test", test)):
        if rows == 0:
            raise PrefError(
                f"no {part} rows are left after filtering and splitting ({train} training, {valid} "
                f"validation, {test} test): loosen user_inter_num_interval, item_inter_num_interval or "
                "val_interval, or change eval_args."
            )
    if n_items < 3:
        raise PrefError(
            f"only {n_items - 1} item is left after filtering: loosen item_inter_num_interval or "
            "val_interval."
        )


def _missing(folder, name, dataset):
    parent = folder.parent
    near = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    where = f"data_path is {str(parent)!r}"
    if not parent.is_dir():
        where += ", which is no folder"
    return (
        f"dataset={dataset!r} was not found: there is no file {str(folder / name)!r} ({where}); convert "
        f"your data with recbole-pref-data or set data_path.{suggest(dataset, near)}"
    )


def _read_header(path, config):
    """Return the columns of a file: dict of name to type."""
    separator = config["field_separator"] or "\t"
    try:
        with open(path, encoding=config["encoding"] or "utf-8") as file:
            line = file.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        _check_text(path, config)
        raise PrefError(f"{path}, line 1: the text is not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise PrefError(f"{path} cannot be read: {error.strerror}.") from None
    if not line.strip():
        raise PrefError(f"{path} is empty: its first line must name the columns as name:type.")
    columns = {}
    for cell in line.split(separator):
        name, colon, kind = cell.partition(":")
        if not colon or not name or kind not in TYPES:
            raise PrefError(
                f"{path}, line 1: column {cell!r} is not of the form name:type with a type of "
                f"{', '.join(TYPES)}.{suggest(kind, TYPES) if kind else ''}"
            )
        if name in columns:
            raise PrefError(f"{path}, line 1: column {name!r} stands there twice; rename one.")
        columns[name] = kind
    return columns


def _check_text(path, config):
    """Refuse text that is not in the configured encoding, naming the line."""
    encoding = config["encoding"] or "utf-8"
    data = path.read_bytes()
    try:
        data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise PrefError(
            f"{path}, line {line}: the text is not {encoding}; save the file as UTF-8 or set encoding."
        ) from None
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise PrefError(f"{path}, line {line}: there is a NUL byte; the file is damaged or no text.")


def _check_interactions(path, config, benchmark):
    columns = _read_header(path, config)
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    needed = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token"}
    if sequential and not benchmark:
        needed["TIME_FIELD"] = "float"
    for setting, kind in needed.items():
        field = config[setting]
        if field not in columns:
            raise PrefError(
                f"{path}, line 1: there is no column {field!r} ({setting}); rename a column or set "
                f"{setting}.{suggest(field, columns)}"
            )
        if columns[field] != kind:
            raise PrefError(
                f"{path}, line 1: column {field!r} ({setting}) must be of type {kind}, not "
                f"{columns[field]}."
            )
        loaded = (config["load_col"] or {}).get("inter")
        if loaded is not None and field not in loaded:
            raise PrefError(
                f"load_col does not load {field!r} ({setting}) from the interaction file: add it."
            )
    _check_text(path, config)
    frame = _read(path, columns, config)
    if frame.empty:
        raise PrefError(f"{path} holds no interactions below its header.")
    for field, kind in columns.items():
        if kind == "float":
            frame[field] = _numbers(path, frame[field], field, required=field == config["TIME_FIELD"])
    for setting in ("USER_ID_FIELD", "ITEM_ID_FIELD"):
        empty = np.flatnonzero(frame[config[setting]].to_numpy() == "")
        if len(empty):
            raise PrefError(
                f"{path}, line {empty[0] + 2}: {config[setting]!r} is empty; give it an id or remove "
                "the line."
            )
    return [] if benchmark else _notes(path, frame, config)


def _read(path, columns, config):
    separator = config["field_separator"] or "\t"
    try:
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, quoting=3, names=list(columns),
            skiprows=1, encoding=config["encoding"] or "utf-8", index_col=False, on_bad_lines="error",
            skip_blank_lines=False,
        )  # fmt: skip
    except (pd.errors.ParserError, ValueError, pd.errors.EmptyDataError):
        pass
    finally:
        _check_column_count(path, separator, len(columns), config)
    raise PrefError(f"{path} cannot be read as a table with separator {separator!r}.")


def _check_column_count(path, separator, expected, config):
    with open(path, encoding=config["encoding"] or "utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            cells = line.count(separator) + 1
            if cells != expected:
                raise PrefError(
                    f"{path}, line {number}: {cells} columns where the header names {expected}; mend or "
                    "remove the line."
                )


def _numbers(path, texts, field, required):
    values = pd.to_numeric(texts.where(texts != "", "nan"), errors="coerce").to_numpy(dtype=float)
    given = texts.str.strip().str.lower()
    wrong = np.isnan(values) & ~given.isin(["", "nan"]).to_numpy() | np.isinf(values)
    if required:
        wrong |= np.isnan(values)
    at = np.flatnonzero(wrong)
    if len(at):
        raise PrefError(
            f"{path}, line {at[0] + 2}: {field!r} is {texts.iloc[at[0]]!r}, which is no finite number; "
            "mend or remove the line."
        )
    return values


def _notes(path, frame, config):
    notes = []
    user, time = config["USER_ID_FIELD"], config["TIME_FIELD"]
    counts = frame[user].value_counts()
    single = int((counts == 1).sum())
    if single == len(counts):
        raise PrefError(
            f"{path}: every one of the {len(counts)} users has a single interaction, so there is no "
            "sequence to learn from."
        )
    if single:
        notes.append(f"{single} of {len(counts)} users have a single interaction and are never trained on")
    if time in frame:
        same = int(frame.duplicated([user, time]).sum())
        if same:
            notes.append(
                f"{same} interactions have the time of another one of the same user; among those the "
                "order of the file counts"
            )
    return notes
