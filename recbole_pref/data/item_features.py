"""Read features of items from JSON, JSON lines or a text table as the rows of an atomic file."""

import itertools
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_pref.data.formats import is_text, json_lines
from recbole_pref.data.tables import column_name, line_of, numbered_lines, read_text_table, separator_of
from recbole_pref.errors import PrefError, suggest

# Columns for Amazon's metadata, and their keys in the versions of 2014, 2018 and 2023; the first existing key is used.
_METADATA = {
    "title:token_seq": ("title",),
    "brand:token": ("brand", "store"),
    "categories:token_seq": ("categories", "category"),
    "price:float": ("price",),
    "description:token_seq": ("description",),
}


def read_item_features(path: Path, items: Collection[str]) -> pd.DataFrame:
    """Read the features of the items of a data set.

    The file is a JSON object ``{item: [attribute, ...]}`` (S3-Rec), Amazon's metadata as JSON lines, or a text table
    with a column item_id. White space within an attribute or a category of the JSON is replaced by ``_``. A column of
    a table is ``float`` if its cells are finite numbers or empty, ``token_seq`` if a cell has a space, else ``token``.

    Args:
        path: the file.
        items: the items whose metadata are read.

    Returns:
        A table of texts. The column names are ``name:type`` as in atomic files.

    Raises:
        PrefError: an error in the file, with its line.
    """
    if not {".json", ".jsonl"} & {*path.suffixes}:
        frame = _table(path)
    elif _is_metadata(path):
        frame = _metadata(path, items)
    else:
        frame = _attributes(path)
    same = frame["item_id:token"].duplicated()
    if same.any():
        raise PrefError(f"{path}: item {frame['item_id:token'][same].iloc[0]!r} has two rows; keep one.")
    return frame


def feature_type(values: Iterable[Any]) -> str:
    """Return ``float`` if all texts that are not empty are finite numbers, else ``token``."""
    texts = [text for text in values if text != ""]
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=float)
    return "float" if len(texts) and np.isfinite(numbers).all() else "token"


def _table(path: Path) -> pd.DataFrame:
    separator = separator_of(path)
    frame = read_text_table(path, separator)
    if "item_id" not in frame:
        raise PrefError(f"{path} has no column 'item_id'.{suggest('item_id', frame)}")
    typed = {}
    for name in frame:
        if not column_name(name):
            raise PrefError(f"{path}, line 1: {name!r} cannot name a column; use letters, digits and _.")
        at = np.flatnonzero(frame[name].str.contains(r"[\t\n\r\0]"))
        if len(at):
            line = line_of(path, separator, at[0] + 1)
            raise PrefError(f"{path}, line {line}: {name!r} holds a tab or a line end; remove it.")
        kind = "token" if name == "item_id" else feature_type(frame[name])
        if name != "item_id" and kind == "token" and frame[name].str.contains(" ").any():
            kind = "token_seq"
        typed[name] = f"{name}:{kind}"
    return frame.rename(columns=typed)


def _attributes(path: Path) -> pd.DataFrame:
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        table = json.loads(text, object_pairs_hook=lambda pairs: pairs)  # an item may have two entries
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, list) or not all(isinstance(pair, tuple) for pair in table):
        raise PrefError(f"{path} is not a JSON object of lists: {{item: [attribute, ...]}}.")
    rows = []
    for item, values in table:
        if not isinstance(values, list) or not all(isinstance(v, (str, int, float)) for v in values):
            raise PrefError(f"{path}: the attributes of item {item!r} are not a list of texts or numbers.")
        rows.append((item, " ".join("_".join(str(value).split()) for value in values)))
        if not is_text("".join(rows[-1])):
            raise PrefError(f"{path}: item {item!r} has half a Unicode character (such as \\ud800 alone); correct it.")
    return pd.DataFrame(rows, columns=["item_id:token", "attributes:token_seq"], dtype=object)


def _is_metadata(path: Path) -> bool:
    try:
        return any(_id_key(content) for _, content in itertools.islice(json_lines(path), 1))
    except PrefError:
        return False  # a JSON object that spans several lines


def _id_key(content: dict[str, Any]) -> str | None:
    return next((key for key in ("parent_asin", "asin") if isinstance(content.get(key), str)), None)


def _metadata(path: Path, items: Collection[str]) -> pd.DataFrame:
    rows: dict[str, list[str]] = {}
    for number, content in json_lines(path):
        key = _id_key(content)
        if key is None:
            raise PrefError(f"{path}, line {number}: there is neither asin nor parent_asin.")
        if content[key] in items and content[key] not in rows:  # Amazon repeats some items
            values = [next((content[k] for k in keys if content.get(k)), "") for keys in _METADATA.values()]
            title, brand, categories, price, description = values
            rows[content[key]] = [
                _words(title), _words(brand), " ".join("_".join(text.split()) for text in _flat(categories)),
                _price(price), _words(description),
            ]  # fmt: skip
    frame = pd.DataFrame.from_dict(rows, "index", dtype=object, columns=list(_METADATA))
    return frame.rename_axis("item_id:token").reset_index()


def _flat(values: Any) -> list[str]:
    """Return the distinct texts of nested lists."""
    if isinstance(values, (list, tuple)):
        return list(dict.fromkeys(itertools.chain.from_iterable(map(_flat, values))))
    return [str(values)]


def _words(value: Any) -> str:
    """Return the text of a value on one line, without characters that UTF-8 cannot encode."""
    return " ".join(" ".join(_flat(value)).encode("utf-8", "ignore").decode().replace("\0", " ").split())


def _price(value: Any) -> str:
    """Return a price such as ``$1,012.99`` as ``1012.99``; return an empty text for a range or another text."""
    text = str(value).strip().lstrip("$").replace(",", "")
    try:
        return text if np.isfinite(float(text)) else ""
    except ValueError:
        return ""
