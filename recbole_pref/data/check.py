"""Atomic files are checked before RecBole reads them: one sentence with file and line, not a traceback.

A sound file is read once, by pandas' C parser, and RecBole gets the table that was checked. Only a file with a fault
is read as text, to find the line. Lines are counted from 1, the header's.
"""

import codecs
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np

from recbole_pref.data import reading
from recbole_pref.data.known import how_to_get, known_names
from recbole_pref.errors import PrefError, suggest
from recbole_pref.late import LateModule
from recbole_pref.settings import check_interval, shown

pd, recbole_utils = LateModule("pandas"), LateModule("recbole.utils")

TYPES = ("token", "token_seq", "float", "float_seq")

# What pandas, and so RecBole, reads as a missing value.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
     "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip


def check_atomic_files(data_path, dataset, config):
    """Check the files of a data set that RecBole is going to load.

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
    wanted = config["load_col"]
    if wanted is not None and not wanted.get("inter"):
        raise PrefError(
            "load_col names no columns of the interaction file: add inter: [user_id, item_id, timestamp]."
        )
    reading.release()
    notes, frames, fields, sources = [], [], {}, {"inter"}
    for name in names:
        if not os.path.isfile(folder / name):
            raise PrefError(_missing(folder, name, dataset))
        frame, found = _check_interactions(folder / name, config, bool(parts), fields)
        frames.append(frame)
        notes += found
    if parts and config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL:
        notes += _check_lists([folder / name for name in names], frames, config)
    for source in ("user", "item"):
        path = folder / f"{dataset}.{source}"
        if os.path.isfile(path):
            if wanted is None or wanted.get(source):
                notes += _check_features(path, source, config, frames, fields)
                sources.add(source)
        elif wanted is not None and wanted.get(source):
            raise PrefError(
                f"load_col names columns of {str(path)!r}, which does not exist: remove {source!r} from "
                "load_col or add the file."
            )
    for source in set(wanted or ()) - {"inter", "user", "item"}:
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


def _check_named_fields(dataset, config, fields, sources):
    """Refuse settings that name columns which are not loaded, or use them as what they are not."""
    for setting in (
        "val_interval", "threshold", "normalize_field", "numerical_features", "discretization", "preload_weight",
        "alias_of_user_id", "alias_of_item_id",
    ):  # fmt: skip
        named = config[setting] or ()
        for field in [*named, *(named.values() if setting == "preload_weight" and named else ())]:
            if field not in fields:
                raise PrefError(
                    f"{setting} names {shown(field)}, which is no column that is loaded for dataset={dataset!r}: add "
                    f"it to load_col or remove it.{suggest(field, fields)}"
                )
    for source, names in (config["unused_col"] or {}).items():
        ids = {config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]} & set(names or ())
        if source not in sources or ids:
            fault = f"drops {shown(sorted(ids)[0])}, without which there is no data set" if ids else "is not loaded"
            raise PrefError(f"unused_col, {source}: {fault}; remove it there.")
    for field, wanted in (config["val_interval"] or {}).items():
        if fields[field] == "float":
            check_interval(f"val_interval, {field}", wanted)
        elif fields[field] != "token" or not isinstance(wanted, (list, tuple)):
            remedy = "set it to a list of values" if fields[field] == "token" else "sequences cannot be filtered"
            raise PrefError(f"val_interval, {field}: {shown(wanted)} is not accepted: {remedy}.")
    for field, wanted in (config["threshold"] or {}).items():
        if fields[field] != "float" or field == config["TIME_FIELD"] or not isinstance(wanted, (int, float)):
            raise PrefError(
                f"threshold, {field}: {shown(wanted)} is not accepted: name a column of type float that is not "
                "TIME_FIELD, and a number."
            )
    length = config["ITEM_LIST_LENGTH_FIELD"]
    sequential = config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL
    if length in fields and sequential and not config["benchmark_filename"]:
        raise PrefError(f"ITEM_LIST_LENGTH_FIELD={length!r} is a column of the files as well: give it another name.")


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
    near = ["ml-100k", *known_names()]  # the first of which RecBole brings
    if os.path.isdir(parent):
        near += [path.name for path in parent.iterdir() if path.is_dir()]
    where = f"data_path is {shown(str(parent))}"
    if not os.path.isdir(parent):
        where += ", which is no folder"
    remedy = "convert your data with recbole-pref-data or set data_path"
    if dataset in known_names():
        remedy, near = how_to_get(dataset, str(parent)), []
    if os.path.isdir(folder):
        others = sorted(path.name for path in folder.iterdir() if path.suffix == ".inter")
        if others:
            remedy += f"; the folder holds {', '.join(others[:3])}"
        near = []
    return (
        f"dataset={dataset!r} was not found: there is no file {shown(str(folder / name))} ({where}); "
        f"{remedy}.{suggest(dataset, near)}"
    )


def _check_interactions(path, config, benchmark, fields):
    data, columns, separator = _begin(path, config["field_separator"], config["encoding"])
    sequential = config["MODEL_TYPE"] == recbole_utils.ModelType.SEQUENTIAL
    needed = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token"}
    if sequential or (config["eval_args"]["order"] == "TO" and not benchmark):
        needed |= {"LIST_SUFFIX": "token_seq"} if benchmark else {"TIME_FIELD": "float"}
        lists = _list_field(config)
        if benchmark and lists not in columns:
            raise PrefError(
                f"{path}, line 1: there is no column {shown(lists)} with the items before each target, which "
                f"pre-split files need: rename a column or set LIST_SUFFIX.{suggest(lists, columns)}"
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


def _check_features(path, source, config, interactions, fields):
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
        notes.append(f"{path}: {same} rows repeat a {shown(field)}; the first row of each counts")
    if loaded and config["filter_inter_by_user_or_item"]:
        lost = sum(int((~frame_of[field].isin(frame[field])).sum()) for frame_of in interactions)
        if lost:
            notes.append(
                f"{lost} interactions are with a {shown(field)} that has no row in {path}; RecBole drops them "
                "unless filter_inter_by_user_or_item is false"
            )
    if loaded and source == "item" and not config["benchmark_filename"]:
        unused = len(set(frame[field]).difference(*(frame_of[field] for frame_of in interactions)))
        if unused:
            notes.append(
                f"{unused} items of {path} are in no interaction; they are ranked with the others, which lowers the "
                "metrics"
            )
    return notes


def _checked(path, data, columns, loaded, separator, config, ids, required):
    """Return the loaded columns of a file, free of faults; RecBole gets the same table where the C parser read it.

    Args:
        data (bytes): the file's text, see ``_content``.
        loaded (set of str): the columns that RecBole loads.
        ids (iterable of str): token columns that may not be left empty.
        required (str or None): a float column that may not be left empty.

    Raises:
        PrefError: names the line of the first fault.
    """
    frame = _sound(data, columns, loaded, separator, ids, required)
    if frame is not None:
        reading.hold(path, columns, config["field_separator"], config["encoding"], frame)
    else:
        frame = _table(path, data, columns, separator)
        _check_numbers(path, frame, columns, loaded, required)
        for field in ids:
            _check_ids(path, frame, field)
    _check_vectors(path, frame, columns, loaded, config["seq_separator"])
    return frame


def _sound(data, columns, loaded, separator, ids, required):
    """Return the loaded columns of a file without faults, or None where there may be one."""
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


def _is_regular(data, separator, width):
    """Return whether every line has ``width`` cells."""
    characters, step = np.frombuffer(data, np.uint8), 2**24
    parts = [characters[begin : begin + step] for begin in range(0, len(characters), step)]
    marks = np.concatenate([part[(part == ord(separator)) | (part == ord("\n"))] for part in parts])
    if len(marks) % width:
        return False
    return bool(((marks.reshape(-1, width) == ord("\n")) == (np.arange(width) == width - 1)).all())


def _list_field(config):
    """Return the column of pre-split files that holds the items before each target."""
    return f"{config['ITEM_ID_FIELD']}{config['LIST_SUFFIX']}"


def _check_lists(paths, frames, config):
    """Refuse item lists of pre-split files that are empty or padded; return a note on those that are cut."""
    field, separator, longest = _list_field(config), config["seq_separator"], config["MAX_ITEM_LIST_LENGTH"]
    no_zero = not any((frame[config["ITEM_ID_FIELD"]] == "0").any() for frame in frames)
    notes = []
    for path, frame in zip(paths, frames):
        lists = frame[field].fillna("").str.strip(separator)
        faults = {"is empty: every row needs an item before its target": lists == ""}
        if no_zero:
            padded = lists.str.startswith(f"0{separator}") | lists.str.endswith(f"{separator}0") | (lists == "0")
            faults["is padded with '0', which is not an item: leave the padding to RecBole"] = padded
        for fault, rows in faults.items():
            if rows.any():
                raise PrefError(f"{path}, line {int(rows.to_numpy().argmax()) + 2}: {shown(field)} {fault}.")
        long = int((lists.str.count(re.escape(separator)) >= longest).sum())
        if long:
            notes.append(
                f"{path}: {long} lists are longer than MAX_ITEM_LIST_LENGTH={longest}; their latest items are kept"
            )
    return notes


def read_atomic(path, separator=None, encoding=None):
    """Read an atomic file whole, as RecBole does: quotation marks around a cell are undone.

    Args:
        path (Path): the file.
        separator (str, optional): between columns, by default a tab.
        encoding (str, optional): by default utf-8.

    Returns:
        tuple: DataFrame of str, whose row 0 is line 2, and dict of column to type.

    Raises:
        PrefError: it cannot be read or is malformed; names file, line and remedy.
    """
    data, columns, separator = _begin(path, separator, encoding)
    return _table(path, data, columns, separator), columns


def _begin(path, separator, encoding):
    """Return a file's text (``_content``), its columns (``_header``) and the separator, which is never None."""
    separator, data = separator or "\t", _content(path, encoding)
    return data, _header(path, data, separator), separator


def _content(path, encoding):
    """Return a file's text as UTF-8 bytes with one newline after each line, whatever it was stored as."""
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
        raise PrefError(f"{path}, line {line}: there is a NUL byte; the file is damaged or no text.")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not data or data.isspace():
        raise PrefError(f"{path} is empty: its first line must name the columns as name:type.")
    if data.endswith(b"\n\n") or not data.endswith(b"\n"):  # empty lines at the end do no harm
        data = data.rstrip(b"\n") + b"\n"
    return data


def _header(path, data, separator):
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
            raise PrefError(f"{path}, line 1: column {shown(name)} stands there twice; rename one.")
        columns[name] = kind
    return columns


def _equal_times(users, times):
    """Return how many interactions have the user and the time of another one, the first of each not counted."""
    since = times - times.min()
    span = since.max() + 1
    if (since % 1 == 0).all() and span * (users.max() + 1) < 2**63:
        keys = np.sort(users * int(span) + since.astype(np.int64))  # several times faster than to sort by two columns
        return int((keys[1:] == keys[:-1]).sum())
    order = np.lexsort((times, users))
    return int(((np.diff(users[order]) == 0) & (np.diff(times[order]) == 0)).sum())


def _check_field(path, columns, setting, field, kind):
    if field not in columns:
        raise PrefError(
            f"{path}, line 1: there is no column {shown(field)} ({setting}); rename a column or set "
            f"{setting}.{suggest(field, columns)}"
        )
    if columns[field] != kind:
        raise PrefError(
            f"{path}, line 1: column {shown(field)} ({setting}) must be of type {kind}, not {columns[field]}."
        )


def _loaded(source, columns, config):
    """Return the columns that RecBole loads of a file: set of names."""
    load = config["load_col"]
    wanted = None if load is None else load.get(source, [])
    names = set(columns) if wanted is None or wanted == "*" else set(columns) & set(wanted)
    return names - set((config["unload_col"] or {}).get(source) or [])


def _selector(source, config):
    """Return the name of the setting that chooses a file's columns."""
    return "unload_col" if (config["unload_col"] or {}).get(source) else "load_col"


def _unknown_columns(path, source, columns, config):
    wanted = (config["load_col"] or {}).get(source) or []
    unknown = [] if wanted == "*" else [name for name in wanted if name not in columns]
    return [
        f"{path} has no column {shown(name)}, which load_col names; it is left out.{suggest(name, columns)}"
        for name in unknown
    ]


def _table(path, data, columns, separator):
    """Return the rows as text: DataFrame of str, [rows, columns]."""
    cells = _cells_per_line(data, separator)
    wrong = np.flatnonzero(cells != len(columns))
    if len(wrong):
        raise PrefError(
            f"{path}, line {wrong[0] + 1}: {cells[wrong[0]]} columns where the header names "
            f"{len(columns)}; mend or remove the line."
        )
    frame = pd.read_csv(
        BytesIO(data), sep=separator, dtype=str, keep_default_na=False, quoting=3, names=list(columns),
        skiprows=1, index_col=False, skip_blank_lines=False, encoding="utf-8",
        engine="c" if len(separator.encode()) == 1 else "python",
    )  # fmt: skip
    if b'"' in data:
        _check_quotes(path, frame)
    return frame


def _cells_per_line(data, separator):
    """Return the number of cells of each line: int64 [lines]."""
    separator = separator.encode()
    if len(separator) > 1:
        return np.array([line.count(separator) + 1 for line in data.split(b"\n")[:-1]])
    characters = np.frombuffer(data, np.uint8)  # [bytes]
    ends = np.flatnonzero(characters == ord("\n"))  # [lines]
    lines = np.searchsorted(ends, np.flatnonzero(characters == ord(separator)))  # [separators]
    return np.bincount(lines, minlength=len(ends)) + 1


def _check_quotes(path, frame):
    # RecBole reads a cell that starts with a quotation mark up to the next one, over line ends too, and
    # takes what is between them: "" and "NA" are missing values.
    for name in frame:
        cells = frame[name]
        opened = cells[cells.str.startswith('"')]
        closed = opened.str.fullmatch(r'"(?:[^"]|"")*"').astype(bool)
        if not closed.all():
            row = opened.index[~closed.to_numpy()][0]
            raise PrefError(
                f"{path}, line {row + 2}: {shown(name)} is {shown(cells[row])}, a quotation mark that is opened and "
                "not closed; remove it."
            )
        frame.loc[opened.index, name] = opened.str[1:-1].str.replace('""', '"')


def _check_numbers(path, frame, columns, loaded, required):
    """Turn loaded float columns of ``frame`` into numbers; only ``required`` may not be left empty."""
    for field in (field for field in columns if columns[field] == "float" and field in loaded):
        texts = frame[field]
        values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=float)
        wrong = ~np.isfinite(values)
        if wrong.any() and field != required:
            wrong &= ~texts.isin(MISSING).to_numpy()
        at = np.flatnonzero(wrong)
        if len(at):
            raise PrefError(
                f"{path}, line {at[0] + 2}: {shown(field)} is {shown(texts.iloc[at[0]])}, which is no finite number; "
                "mend or remove the line."
            )
        frame[field] = values


def _check_vectors(path, frame, columns, loaded, separator):
    """Refuse values of loaded float_seq columns that are no numbers."""
    for field in (field for field in columns if columns[field] == "float_seq" and field in loaded):
        values = frame[field].fillna("").str.split(separator).explode()  # the index stays that of the row
        wrong = values.index[(pd.to_numeric(values, errors="coerce").isna() & (values != "")).to_numpy()]
        if len(wrong):
            raise PrefError(
                f"{path}, line {wrong[0] + 2}: {shown(field)} holds a value that is no number; mend or remove the line."
            )


def _absent_values(path, frame, config):
    """Return a note on each token of val_interval that is in no row."""
    return [
        f"val_interval, {field}: no row of {path} has {shown(value)}"
        for field, values in (config["val_interval"] or {}).items()
        if field in frame and isinstance(values, (list, tuple))
        for value in values
        if not (frame[field] == str(value)).any()
    ]


def _check_ids(path, frame, field):
    at = np.flatnonzero(frame[field].isin(MISSING))
    if len(at):
        # RecBole drops rows without an id, and the wrong rows when users and items both lack some.
        text = frame[field].iloc[at[0]]
        fault = f"is {text!r}, which RecBole reads as missing" if text else "is empty"
        raise PrefError(
            f"{path}, line {at[0] + 2}: {shown(field)} {fault}; give it another id or remove the line."
        )


def _notes(path, frame, config, sequential):
    notes = []
    user, time = config["USER_ID_FIELD"], config["TIME_FIELD"]
    users = pd.factorize(frame[user])[0]
    counts = np.bincount(users)
    single = int((counts == 1).sum())
    if sequential and single == len(counts):
        raise PrefError(
            f"{path}: every one of the {len(counts)} users has a single interaction, so there is no "
            "sequence to learn from."
        )
    if sequential and single:
        notes.append(f"{single} of {len(counts)} users have a single interaction and are never trained on")
    if time in frame and frame[time].dtype == np.float64:
        same = _equal_times(users, frame[time].to_numpy())
        if same:
            notes.append(
                f"{same} interactions have the time of another one of the same user; among those the order of the file "
                "counts"
            )
    return notes
