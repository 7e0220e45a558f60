"""Checks of atomic files before RecBole reads them. An error is one sentence with file and line.

A valid file is read once, by pandas' C parser, and RecBole receives the table that was checked. A file with an error
is read again as text, to find the line. The header is line 1.
"""

from __future__ import annotations  # pandas is imported late

import codecs
import os
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_pref.data import reading
from recbole_pref.data.public import how_to_get, public_names
from recbole_pref.errors import PrefError, suggest
from recbole_pref.late import LateModule
from recbole_pref.settings import check_interval, shown

if TYPE_CHECKING:
    import pandas as pd
    from recbole import utils as recbole_utils
    from recbole.config import Config
else:
    pd, recbole_utils = LateModule("pandas"), LateModule("recbole.utils")

TYPES = ("token", "token_seq", "float", "float_seq")

# The cells that pandas, and so RecBole, reads as missing values.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
     "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip


def check_atomic_files(data_path: str | os.PathLike[str], dataset: str, config: Config) -> list[str]:
    """Check the files of a data set before RecBole loads them.

    Args:
        data_path: the folder of the data set.
        dataset: the name of the data set.
        config: RecBole configuration, for field names and separators.

    Returns:
        Notes for the log about valid data that may surprise.

    Raises:
        PrefError: a missing or malformed file; names file, line and remedy.
    """
    folder = Path(data_path)
    parts = config["benchmark_filename"]
    names = [f"{dataset}.{part}.inter" for part in parts] if parts else [f"{dataset}.inter"]
    columns = config["load_col"]
    if columns is not None and not columns.get("inter"):
        raise PrefError("load_col names no columns of the interaction file: add inter: [user_id, item_id, timestamp].")
    reading.release()
    notes: list[str] = []
    frames: list[pd.DataFrame] = []
    fields: dict[str, str] = {}
    sources = {"inter"}
    for name in names:
        if not os.path.isfile(folder / name):
            raise PrefError(_missing(folder, name, dataset))
        frame, more = _check_interactions(folder / name, config, bool(parts), fields)
        frames.append(frame)
        notes += more
    if parts and config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL:
        notes += _check_lists([folder / name for name in names], frames, config)
    for source in ("user", "item"):
        path = folder / f"{dataset}.{source}"
        if os.path.isfile(path):
            if columns is None or columns.get(source):
                notes += _check_features(path, source, config, frames, fields)
                sources.add(source)
        elif columns is not None and columns.get(source):
            raise PrefError(
                f"load_col names columns of {str(path)!r}, which does not exist: remove {source!r} from "
                "load_col or add the file."
            )
    for source in set(columns or ()) - {"inter", "user", "item"}:
        if not os.path.isfile(folder / f"{dataset}.{source}"):
            raise PrefError(
                f"load_col names columns of {shown(f'{dataset}.{source}')}, which does not exist in "
                f"{shown(str(folder))}: remove it or add the file.{suggest(source, ('inter', 'user', 'item'))}"
            )
    for suffix in config["additional_feat_suffix"] or ():
        if not os.path.isfile(folder / f"{dataset}.{suffix}"):
            raise PrefError(
                f"additional_feat_suffix names {shown(suffix)}, but there is no file {shown(f'{dataset}.{suffix}')} in "
                f"{shown(str(folder))}: remove it or add the file."
            )
    if not config["additional_feat_suffix"] and config["MODEL_TYPE"] != recbole_utils.ModelType.KNOWLEDGE:
        _check_named_fields(dataset, config, fields, sources)
    return notes


def _check_named_fields(dataset: str, config: Config, fields: dict[str, str], sources: set[str]) -> None:
    """Refuse settings that name columns that are not loaded or that have another type."""
    for setting in (
        "val_interval", "threshold", "normalize_field", "numerical_features", "discretization", "preload_weight",
        "alias_of_user_id", "alias_of_item_id",
    ):  # fmt: skip
        named = config[setting] or ()
        for field in [*named, *(named.values() if setting == "preload_weight" and named else ())]:
            if field not in fields:
                raise PrefError(
                    f"{setting} names {shown(field)}, which is not loaded for dataset={dataset!r}: add "
                    f"it to load_col or remove it.{suggest(field, fields)}"
                )
    for source, names in (config["unused_col"] or {}).items():
        ids = {config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]} & set(names or ())
        if source not in sources or ids:
            problem = f"removes {shown(sorted(ids)[0])}, which every data set needs" if ids else "is not loaded"
            raise PrefError(f"unused_col, {source}: {problem}; remove it from unused_col.")
    for field, accepted in (config["val_interval"] or {}).items():
        if fields[field] == "float":
            check_interval(f"val_interval, {field}", accepted)
        elif fields[field] != "token" or not isinstance(accepted, (list, tuple)):
            remedy = "set it to a list of values" if fields[field] == "token" else "sequences cannot be filtered"
            raise PrefError(f"val_interval, {field}: {shown(accepted)} is not accepted: {remedy}.")
    for field, least in (config["threshold"] or {}).items():
        if fields[field] != "float" or field == config["TIME_FIELD"] or not isinstance(least, (int, float)):
            raise PrefError(
                f"threshold, {field}: {shown(least)} is not accepted: name a column of type float that is not "
                "TIME_FIELD, and a number."
            )
    length = config["ITEM_LIST_LENGTH_FIELD"]
    sequential = config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL
    if length in fields and sequential and not config["benchmark_filename"]:
        raise PrefError(f"ITEM_LIST_LENGTH_FIELD={length!r} is also a column of the files: set it to another name.")


def check_split(train: int, valid: int, test: int, n_items: int) -> None:
    """Refuse data without rows after filters and split.

    Args:
        train, valid, test: rows of each part. Training and test need rows; RecBole trains without validation
            if the validation part is empty.
        n_items: number of items, padding included.

    Raises:
        PrefError: names the settings of the filters and of the split.
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
            f"only {n_items - 1} item is left after filtering: loosen item_inter_num_interval or val_interval."
        )


def _missing(folder: Path, name: str, dataset: str) -> str:
    parent = folder.parent
    candidates = ["ml-100k", *public_names()]  # RecBole ships ml-100k
    if os.path.isdir(parent):
        candidates += [path.name for path in parent.iterdir() if path.is_dir()]
    where = f"data_path is {shown(str(parent))}"
    if not os.path.isdir(parent):
        where += ", which is not a folder"
    remedy = "convert your data with recbole-pref-data or set data_path"
    if dataset in public_names():
        remedy, candidates = how_to_get(dataset, str(parent)), []
    if os.path.isdir(folder):
        others = sorted(path.name for path in folder.iterdir() if path.suffix == ".inter")
        if others:
            remedy += f"; the folder holds {', '.join(others[:3])}"
        candidates = []
    return (
        f"dataset={dataset!r} was not found: there is no file {shown(str(folder / name))} ({where}); "
        f"{remedy}.{suggest(dataset, candidates)}"
    )


def _check_interactions(
    path: Path, config: Config, benchmark: bool, fields: dict[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    data, columns, separator = _begin(path, config["field_separator"], config["encoding"])
    sequential = config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL
    needed = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token"}
    if sequential or (config["eval_args"]["order"] == "TO" and not benchmark):
        needed |= {"LIST_SUFFIX": "token_seq"} if benchmark else {"TIME_FIELD": "float"}
        lists = _list_field(config)
        if benchmark and lists not in columns:
            raise PrefError(
                f"{path}, line 1: there is no column {shown(lists)} with the items before each target; "
                f"pre-split files need it: rename a column or set LIST_SUFFIX.{suggest(lists, columns)}"
            )
    loaded = _loaded("inter", columns, config)
    for setting, kind in needed.items():
        field = _list_field(config) if setting == "LIST_SUFFIX" else config[setting]
        _check_field(path, columns, setting, field, kind)
        if field not in loaded:
            raise PrefError(
                f"{_selector('inter', config)} does not load {shown(field)} ({setting}) from the interaction "
                "file: change it so that it does."
            )
    fields.update((name, columns[name]) for name in loaded)
    ids = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    frame = _checked(path, data, columns, loaded, separator, config, ids, config["TIME_FIELD"])
    if frame.empty:
        raise PrefError(f"{path} holds no interactions below its header.")
    notes = _unknown_columns(path, "inter", columns, config) + _absent_values(path, frame, config)
    return frame, notes if benchmark else notes + _notes(path, frame, config, sequential)


def _check_features(
    path: Path, source: str, config: Config, interactions: list[pd.DataFrame], fields: dict[str, str]
) -> list[str]:
    data, columns, separator = _begin(path, config["field_separator"], config["encoding"])
    setting = f"{source.upper()}_ID_FIELD"
    field = config[setting]
    _check_field(path, columns, setting, field, "token")
    loaded = _loaded(source, columns, config)
    if loaded and field not in loaded:
        raise PrefError(
            f"{_selector(source, config)} does not load {shown(field)} ({setting}) from {path}: change it so "
            "that it does."
        )
    fields.update((name, columns[name]) for name in loaded)
    frame = _checked(path, data, columns, loaded | {field}, separator, config, [field], None)
    if frame.empty:
        raise PrefError(f"{path} holds no rows below its header; fill it or remove it.")
    notes = _unknown_columns(path, source, columns, config) + _absent_values(path, frame, config)
    same = int(frame[field].duplicated().sum())
    if same:
        notes.append(f"{path}: {same} rows repeat a {shown(field)}; only the first row of each is used")
    if loaded and config["filter_inter_by_user_or_item"]:
        lost = sum(int((~frame_of[field].isin(frame[field])).sum()) for frame_of in interactions)
        if lost:
            notes.append(
                f"{lost} interactions have a {shown(field)} without a row in {path}; RecBole removes them "
                "unless filter_inter_by_user_or_item is False"
            )
    if loaded and source == "item" and not config["benchmark_filename"]:
        unused = len(set(frame[field]).difference(*(frame_of[field] for frame_of in interactions)))
        if unused:
            notes.append(
                f"{unused} items of {path} are in no interaction; they are ranked with the others, which lowers the "
                "metrics"
            )
    return notes


def _checked(
    path: Path,
    data: bytes,
    columns: dict[str, str],
    loaded: set[str],
    separator: str,
    config: Config,
    ids: Iterable[str],
    required: str | None,
) -> pd.DataFrame:
    """Return the loaded columns of a valid file. If the C parser could read it, RecBole receives the same table.

    Args:
        data: the text of the file, see ``_content``.
        loaded: the columns that RecBole loads.
        ids: token columns without missing values.
        required: a float column without missing values.

    Raises:
        PrefError: names the line of the first error.
    """
    frame = _parsed(data, columns, loaded, separator, ids, required)
    if frame is not None:
        reading.hold(path, columns, config["field_separator"], config["encoding"], frame)
    else:
        frame = _table(path, data, columns, separator)
        _check_numbers(path, frame, columns, loaded, required)
        for field in ids:
            _check_ids(path, frame, field)
    _check_vectors(path, frame, columns, loaded, config["seq_separator"])
    return frame


def _parsed(
    data: bytes, columns: dict[str, str], loaded: set[str], separator: str, ids: Iterable[str], required: str | None
) -> pd.DataFrame | None:
    """Return the loaded columns of a file with the C parser, or None if the file may have an error."""
    if not reading.one_byte(separator) or b'"' in data or not _is_regular(data, separator, len(columns)):
        return None
    try:
        frame = reading.parse(data, columns, loaded, separator)
    except ValueError:  # text in a column of numbers
        return None
    numbers = frame.select_dtypes("float64")
    if np.isinf(numbers.to_numpy()).any() or (required in numbers and numbers[required].isna().any()):
        return None
    return None if any(frame[field].isna().any() for field in ids) or frame.empty else frame


def _is_regular(data: bytes, separator: str, width: int) -> bool:
    """Return whether every line has ``width`` cells."""
    characters, step = np.frombuffer(data, np.uint8), 2**24
    parts = [characters[begin : begin + step] for begin in range(0, len(characters), step)]
    marks = np.concatenate([part[(part == ord(separator)) | (part == ord("\n"))] for part in parts])
    if len(marks) % width:
        return False
    return bool(((marks.reshape(-1, width) == ord("\n")) == (np.arange(width) == width - 1)).all())


def _list_field(config: Config) -> str:
    """Return the column of pre-split files with the items before each target."""
    return f"{config['ITEM_ID_FIELD']}{config['LIST_SUFFIX']}"


def _check_lists(paths: list[Path], frames: list[pd.DataFrame], config: Config) -> list[str]:
    """Refuse empty or padded item lists in pre-split files; return notes about lists that are truncated."""
    field, separator, longest = _list_field(config), config["seq_separator"], config["MAX_ITEM_LIST_LENGTH"]
    no_zero = not any((frame[config["ITEM_ID_FIELD"]] == "0").any() for frame in frames)
    notes = []
    for path, frame in zip(paths, frames):
        lists = frame[field].fillna("").str.strip(separator)
        problems = {"is empty: every row needs an item before its target": lists == ""}
        if no_zero:
            padded = lists.str.startswith(f"0{separator}") | lists.str.endswith(f"{separator}0") | (lists == "0")
            problems["is padded with '0', which is not an item: leave the padding to RecBole"] = padded
        for problem, rows in problems.items():
            if rows.any():
                raise PrefError(f"{path}, line {int(rows.to_numpy().argmax()) + 2}: {shown(field)} {problem}.")
        long = int((lists.str.count(re.escape(separator)) >= longest).sum())
        if long:
            notes.append(
                f"{path}: {long} lists are longer than MAX_ITEM_LIST_LENGTH={longest}; only their latest items are used"
            )
    return notes


def read_atomic(
    path: Path, separator: str | None = None, encoding: str | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read a whole atomic file as RecBole does; quotation marks around a cell are removed.

    Args:
        path: the file.
        separator: separator of the columns, by default a tab.
        encoding: encoding of the text, by default utf-8.

    Returns:
        The cells as text (row 0 is line 2), and the types of the columns by name.

    Raises:
        PrefError: the file cannot be read or is malformed; names file, line and remedy.
    """
    data, columns, separator = _begin(path, separator, encoding)
    return _table(path, data, columns, separator), columns


def _begin(path: Path, separator: str | None, encoding: str | None) -> tuple[bytes, dict[str, str], str]:
    """Return the text (``_content``) and the columns (``_header``) of a file, and the separator or its default."""
    separator, data = separator or "\t", _content(path, encoding)
    return data, _header(path, data, separator), separator


def _content(path: Path, encoding: str | None) -> bytes:
    """Return the text of a file, converted to UTF-8 bytes with one newline after each line."""
    encoding = encoding or "utf-8"
    codec = codecs.lookup(encoding).name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PrefError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        text = "" if codec == "utf-8" and data.isascii() else data.decode(codec)
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise PrefError(
            f"{path}, line {line}: the text is not {encoding}; save the file as UTF-8 or set encoding."
        ) from None
    if codec != "utf-8":
        data = text.encode("utf-8", "replace")
    if text.startswith("\ufeff"):
        raise PrefError(
            f"{path}, line 1: the text starts with a byte order mark; save the file without it or set "
            "encoding to utf-8-sig."
        )
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise PrefError(f"{path}, line {line}: there is a NUL byte; the file is damaged or not a text file.")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not data or data.isspace():
        raise PrefError(f"{path} is empty: its first line must name the columns as name:type.")
    if data.endswith(b"\n\n") or not data.endswith(b"\n"):  # ignore empty lines at the end
        data = data.rstrip(b"\n") + b"\n"
    return data


def _header(path: Path, data: bytes, separator: str) -> dict[str, str]:
    """Return the columns of a file: dict of name to type."""
    line = data[: data.index(b"\n")].decode("utf-8")
    columns = {}
    for cell in line.split(separator):
        name, colon, kind = cell.partition(":")
        if not colon or not name or kind not in TYPES:
            hint = suggest(kind, TYPES) if kind else ""
            if len(line.split(separator)) == 1 and line.count(":") > 1:
                hint = f" Columns are separated by {separator!r}; field_separator changes that."
            raise PrefError(
                f"{path}, line 1: column {shown(cell)} is not of the form name:type with a type of "
                f"{', '.join(TYPES)}.{hint}"
            )
        if name in columns:
            raise PrefError(f"{path}, line 1: two columns have the name {shown(name)}; rename one.")
        columns[name] = kind
    return columns


def _equal_times(users: np.ndarray, times: np.ndarray) -> int:
    """Return the number of interactions that repeat the user and the time of an earlier interaction."""
    since = times - times.min()
    span = since.max() + 1
    if (since % 1 == 0).all() and span * (users.max() + 1) < 2**63:
        keys = np.sort(users * int(span) + since.astype(np.int64))  # several times faster than a sort by two columns
        return int((keys[1:] == keys[:-1]).sum())
    order = np.lexsort((times, users))
    return int(((np.diff(users[order]) == 0) & (np.diff(times[order]) == 0)).sum())


def _check_field(path: Path, columns: dict[str, str], setting: str, field: str, kind: str) -> None:
    if field not in columns:
        raise PrefError(
            f"{path}, line 1: there is no column {shown(field)} ({setting}); rename a column or set "
            f"{setting}.{suggest(field, columns)}"
        )
    if columns[field] != kind:
        raise PrefError(
            f"{path}, line 1: column {shown(field)} ({setting}) must be of type {kind}, not {columns[field]}."
        )


def _loaded(source: str, columns: dict[str, str], config: Config) -> set[str]:
    """Return the names of the columns that RecBole loads from a file."""
    load = config["load_col"]
    selected = None if load is None else load.get(source, [])
    names = set(columns) if selected is None or selected == "*" else set(columns) & set(selected)
    return names - set((config["unload_col"] or {}).get(source) or [])


def _selector(source: str, config: Config) -> str:
    """Return the name of the setting that selects the columns of a file."""
    return "unload_col" if (config["unload_col"] or {}).get(source) else "load_col"


def _unknown_columns(path: Path, source: str, columns: dict[str, str], config: Config) -> list[str]:
    selected = (config["load_col"] or {}).get(source) or []
    unknown = [] if selected == "*" else [name for name in selected if name not in columns]
    return [
        f"{path} has no column {shown(name)}, which load_col names; it is ignored.{suggest(name, columns)}"
        for name in unknown
    ]


def _table(path: Path, data: bytes, columns: dict[str, str], separator: str) -> pd.DataFrame:
    """Return the cells as text: [rows, columns]."""
    cells = _cells_per_line(data, separator)
    wrong = np.flatnonzero(cells != len(columns))
    if len(wrong):
        raise PrefError(
            f"{path}, line {wrong[0] + 1}: {cells[wrong[0]]} columns, but the header names "
            f"{len(columns)}; correct or remove the line."
        )
    frame = pd.read_csv(
        BytesIO(data), sep=separator, dtype=str, keep_default_na=False, quoting=3, names=list(columns),
        skiprows=1, index_col=False, skip_blank_lines=False, encoding="utf-8",
        engine="c" if len(separator.encode()) == 1 else "python",
    )  # fmt: skip
    if b'"' in data:
        _check_quotes(path, frame)
    return frame


def _cells_per_line(data: bytes, separator: str) -> np.ndarray:
    """Return the number of cells of each line: int64 [lines]."""
    mark = separator.encode()
    if len(mark) > 1:
        return np.array([line.count(mark) + 1 for line in data.split(b"\n")[:-1]])
    characters = np.frombuffer(data, np.uint8)  # [bytes]
    ends = np.flatnonzero(characters == ord("\n"))  # [lines]
    lines = np.searchsorted(ends, np.flatnonzero(characters == ord(mark)))  # [separators]
    return np.bincount(lines, minlength=len(ends)) + 1


def _check_quotes(path: Path, frame: pd.DataFrame) -> None:
    # RecBole reads a cell that starts with a quotation mark up to the next mark, also across lines, and removes
    # both marks: "" and "NA" are missing values.
    for name in frame:
        cells = frame[name]
        opened = cells[cells.str.startswith('"')]
        closed = opened.str.fullmatch(r'"(?:[^"]|"")*"').astype(bool)
        if not closed.all():
            row = opened.index[~closed.to_numpy()][0]
            raise PrefError(
                f"{path}, line {row + 2}: {shown(name)} is {shown(cells[row])}, a quotation mark without a closing "
                "one; remove it."
            )
        frame.loc[opened.index, name] = opened.str[1:-1].str.replace('""', '"')


def _loaded_of_type(columns: dict[str, str], loaded: set[str], of_type: str) -> list[str]:
    """Return the loaded columns of an atomic type, such as float."""
    return [field for field, kind in columns.items() if kind == of_type and field in loaded]


def _check_numbers(
    path: Path, frame: pd.DataFrame, columns: dict[str, str], loaded: set[str], required: str | None
) -> None:
    """Convert the loaded float columns of ``frame`` to numbers; only ``required`` must not have missing values."""
    for field in _loaded_of_type(columns, loaded, "float"):
        texts = frame[field]
        values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(values)
        if wrong.any() and field != required:
            wrong &= ~texts.isin(MISSING).to_numpy()
        at = np.flatnonzero(wrong)
        if len(at):
            raise PrefError(
                f"{path}, line {at[0] + 2}: {shown(field)} is {shown(texts.iloc[at[0]])}, which is not a finite "
                "number; correct or remove the line."
            )
        frame[field] = values


def _check_vectors(path: Path, frame: pd.DataFrame, columns: dict[str, str], loaded: set[str], separator: str) -> None:
    """Refuse loaded float_seq columns with values that are not numbers."""
    for field in _loaded_of_type(columns, loaded, "float_seq"):
        values = frame[field].fillna("").str.split(separator).explode()  # the index is the row
        wrong = values.index[(pd.to_numeric(values, errors="coerce").isna() & (values != "")).to_numpy()]
        if len(wrong):
            raise PrefError(
                f"{path}, line {wrong[0] + 2}: {shown(field)} holds a value that is not a number; correct or "
                "remove the line."
            )


def _absent_values(path: Path, frame: pd.DataFrame, config: Config) -> list[str]:
    """Return a note for each token of val_interval that no row has."""
    return [
        f"val_interval, {field}: no row of {path} has {shown(value)}"
        for field, values in (config["val_interval"] or {}).items()
        if field in frame and isinstance(values, (list, tuple))
        for value in values
        if not (frame[field] == str(value)).any()
    ]


def _check_ids(path: Path, frame: pd.DataFrame, field: str) -> None:
    at = np.flatnonzero(frame[field].isin(MISSING))
    if len(at):
        # RecBole removes rows without an id, and wrong rows if both users and items have missing ids.
        text = frame[field].iloc[at[0]]
        problem = f"is {text!r}, which RecBole reads as missing" if text else "is empty"
        raise PrefError(f"{path}, line {at[0] + 2}: {shown(field)} {problem}; give it another id or remove the line.")


def _notes(path: Path, frame: pd.DataFrame, config: Config, sequential: bool) -> list[str]:
    notes = []
    user, time = config["USER_ID_FIELD"], config["TIME_FIELD"]
    users = pd.factorize(frame[user])[0]
    counts = np.bincount(users)
    single = int((counts == 1).sum())
    if sequential and single == len(counts):
        raise PrefError(
            f"{path}: each of the {len(counts)} users has a single interaction, so there is no sequence to learn from."
        )
    if sequential and single:
        notes.append(f"{single} of {len(counts)} users have a single interaction and are not used in training")
    if time in frame and frame[time].dtype == np.float64:
        same = _equal_times(users, frame[time].to_numpy())
        if same:
            notes.append(
                f"{same} interactions have the same user and time as another interaction; they are used in the order "
                "of the file"
            )
    return notes
