"""Item features of a RecBole data set: find their files, check them, and read them as tensors."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_pref.data.check import read_atomic
from recbole_pref.errors import PrefError, suggest

# Files of a data set that hold no item features.
OTHER_FILES = {"inter", "user", "item", "kg", "link", "net", "ent", "rel"}
_LARGEST = float(np.finfo(np.float32).max)

FeatureFiles = dict[str, tuple[Path, dict[str, str]]]  # suffix to path and columns


@dataclass(frozen=True)
class Feature:
    """One modality of all items; row 0 belongs to padding.

    Attributes:
        name: its field.
        values: [n_items, D] float32 vectors, or [n_items, T] int64 tokens padded with 0.
        present: [n_items] bool, whether an item has the feature.
        n_tokens: size of the token vocabulary; None for vectors.
    """

    name: str
    values: torch.Tensor
    present: torch.Tensor
    n_tokens: int | None = None


# -- the files


def columns_of(path: Path, separator: str | None = None, encoding: str | None = None) -> dict[str, str]:
    """Return the columns in a file's first line: field to type (``token``, ``float_seq``, ...)."""
    with open(path, "rb") as lines:  # the rest need not be text
        head = lines.readline().decode(encoding or "utf-8", "replace").rstrip("\r\n")
    return dict(column.partition(":")[::2] for column in head.split(separator or "\t"))


def feature_files(config: Any) -> FeatureFiles:
    """Return the files that may hold item features, by suffix.

    ``<dataset>.item`` comes first. Another file counts if its first column is a token and another column
    holds vectors.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    files: FeatureFiles = {}
    for path in sorted(folder.glob(f"{escape(name)}.*"), key=lambda path: path.suffix != ".item"):
        suffix = path.name[len(name) + 1 :]
        if not path.is_file() or "." in suffix or (suffix in OTHER_FILES and suffix != "item"):
            continue
        columns = columns_of(path, config["field_separator"], config["encoding"])
        kinds = list(columns.values())
        if suffix == "item" or (kinds[:1] == ["token"] and "float_seq" in kinds):
            files[suffix] = (path, columns)
    return files


def request_features(config: Any) -> None:
    """Make RecBole load the fields in ``mm_fields`` that the user's settings do not load yet.

    A field of ``<dataset>.item`` is added to ``load_col``. A field of another file, such as
    ``<dataset>.text``, sets ``additional_feat_suffix``, ``alias_of_item_id``, ``preload_weight`` and
    ``load_col`` for that file. ``auto`` takes the features that the settings load, or all features of the
    files when the settings load none.

    Args:
        config (Config): changed in place, before the data set is built.

    Raises:
        PrefError: a field that is in no file, or no features at all.
    """
    files, item_id = feature_files(config), config["ITEM_ID_FIELD"]
    load = config["load_col"]
    suffixes = list(config["additional_feat_suffix"] or [])
    fields = config["mm_fields"]
    available = [(s, f) for s, (_, columns) in files.items() for f in _fields_in(s, columns, item_id)]
    if fields == "auto":
        if load is None and "item" in files or suffixes or set(load or {}) - {"inter", "user"}:
            return
        selected = available
        if not selected:
            raise PrefError(
                f"mm_fields='auto' finds no item features in {config['data_path']!r}: add columns to "
                f"{config['dataset']}.item or make a feature file with recbole-pref-features."
            )
    else:
        selected = [_find(field, available, config) for field in as_list(fields)]
    _check_names(selected, available, files, item_id)
    load = None if load is None else {key: _names(value) for key, value in load.items()}
    aliases, preload = list(config["alias_of_item_id"] or []), dict(config["preload_weight"] or {})
    for suffix, field in selected:
        id_field = item_id
        if suffix != "item":
            id_field = next(iter(files[suffix][1]))
            if suffix not in suffixes:
                suffixes.append(suffix)
            if id_field not in aliases:
                aliases.append(id_field)
            preload.setdefault(id_field, field)
        if load is not None and load.get(suffix) != "*":
            loaded = load.setdefault(suffix, [])
            loaded += [name for name in (id_field, field) if name not in loaded]
    config["load_col"] = load
    if suffixes:
        config["additional_feat_suffix"] = suffixes
        config["alias_of_item_id"], config["preload_weight"] = aliases, preload


def as_list(names: str | Iterable[str]) -> list[str]:
    """Return one name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def _names(value: Any) -> Any:
    return value if value == "*" else list(value)


def _fields_in(suffix: str, columns: dict[str, str], item_id: str) -> list[str]:
    if suffix == "item":
        return [field for field in columns if field != item_id]
    # RecBole numbers tokens only in the item and the user file.
    return [field for field, kind in columns.items() if kind.startswith("float")]


def _find(field: str, available: list[tuple[str, str]], config: Any) -> tuple[str, str]:
    for suffix, name in available:
        if field == name:
            return suffix, field
    names = [name for _, name in available]
    raise PrefError(
        f"mm_fields names {field!r}, which is in no feature file of {config['dataset']} in "
        f"{config['data_path']!r}.{suggest(field, names) or ' Available: ' + (', '.join(names) or 'none') + '.'}"
    )


def _check_names(
    selected: list[tuple[str, str]], available: list[tuple[str, str]], files: FeatureFiles, item_id: str
) -> None:
    """Refuse equal column names in several files, which RecBole confuses."""
    for _, field in selected:
        paths = [str(files[suffix][0]) for suffix, name in available if name == field]
        if len(paths) > 1:
            raise PrefError(f"{' and '.join(paths[:2])} both have a column {field}: rename one of them.")
    taken = {item_id}
    for suffix in dict.fromkeys(suffix for suffix, _ in selected if suffix != "item"):
        path, columns = files[suffix]
        name = next(iter(columns))
        if name in taken:
            raise PrefError(
                f"{path}, line 1: its item column is called {name}, like that of another file: rename it to "
                f"{suffix}_id."
            )
        taken.add(name)


def check_files(config: Any) -> None:
    """Refuse feature files with invalid rows, which RecBole would silently pad or drop.

    Raises:
        PrefError: names file and line: a vector of another length or with a value that is not finite, a
            repeated item, or an item that is neither in the interactions nor in the item file.
    """
    item_tokens = None
    for suffix, (path, columns) in feature_files(config).items():
        if suffix == "item":
            used = config["load_col"] is None or "item" in config["load_col"]
        else:
            used = suffix in (config["additional_feat_suffix"] or [])
        if not used:
            continue
        if suffix != "item" and item_tokens is None:
            item_tokens = _item_tokens(config)
        stat = os.stat(path)
        id_field = config["ITEM_ID_FIELD"] if suffix == "item" else next(iter(columns))
        if id_field not in columns:
            raise PrefError(f"{path}, line 1: the column {id_field}:token is missing, add it.")
        loaded = None if config["load_col"] is None else config["load_col"].get(suffix)
        vectors = [field for field, kind in columns.items() if kind == "float_seq"]
        _check_file(
            path, (stat.st_mtime_ns, stat.st_size), id_field,
            (config["field_separator"], config["encoding"]), config["seq_separator"],
            item_tokens if suffix != "item" else None,
            tuple(vectors if loaded in (None, "*") else (field for field in vectors if field in loaded)),
        )  # fmt: skip


@lru_cache(maxsize=16)
def _check_file(
    path: Path,
    version: tuple[int, int],
    id_field: str,
    reading: tuple[str | None, str | None],
    seq_separator: str,
    item_tokens: frozenset[str] | None,
    vectors: tuple[str, ...],
) -> None:
    frame, _ = read_atomic(path, *reading)
    items = frame[id_field]
    repeated = np.flatnonzero(items.duplicated())
    if len(repeated):
        item, first = items[repeated[0]], int((items == items[repeated[0]]).argmax())
        raise PrefError(f"{path}, line {repeated[0] + 2}: item {item!r} is already in line {first + 2}, keep one.")
    unknown: Any = np.flatnonzero(~items.isin(item_tokens)) if item_tokens is not None else ()
    if len(unknown):
        raise PrefError(
            f"{path}, line {unknown[0] + 2}: item {items[unknown[0]]!r} is neither in the interactions nor in the "
            "item file, remove the line or correct the token."
        )
    for field in vectors:
        width = None
        for line, cell in enumerate(frame[field], start=2):
            texts = [text for text in cell.split(seq_separator) if text]
            width = _check_vector(texts, field, width, f"{path}, line {line}")


def _check_vector(texts: list[str], field: str, width: int | None, where: str) -> int | None:
    """Return the number of values that a vector must have; an item without this modality has an empty one."""
    if texts and width not in (None, len(texts)):
        raise PrefError(
            f"{where}: {field} holds {len(texts)} numbers and the previous lines hold {width}, give "
            "every item a vector of one length or an empty cell."
        )
    try:
        finite = sum(abs(float(text)) for text in texts) <= _LARGEST
    except ValueError:
        finite = False
    if not finite:
        raise PrefError(f"{where}: {field} holds a value that is not a finite 32-bit number.")
    return len(texts) or width


def _item_tokens(config: Any) -> frozenset[str]:
    """Return the item tokens in the interaction files and the item file."""
    folder, name, item_id = Path(config["data_path"]), config["dataset"], config["ITEM_ID_FIELD"]
    tokens: set[str] = set()
    for path in [folder / f"{name}.inter", *folder.glob(f"{escape(name)}.*.inter"), folder / f"{name}.item"]:
        if path.is_file():
            frame, columns = read_atomic(path, config["field_separator"], config["encoding"])
            tokens.update(frame[item_id] if item_id in columns else ())
    return frozenset(tokens)


# -- the tensors


def read(dataset: Any, fields: str | list[str]) -> list[Feature]:
    """Return the item features that a RecBole data set has loaded.

    Args:
        dataset (Dataset): a built data set, such as the training split.
        fields: the setting ``mm_fields``.

    Returns:
        list of Feature: in the order of the fields; not empty.

    Raises:
        PrefError: a field that is not loaded, or no features at all.
    """
    loaded = dict(_item_table(dataset))
    for suffix in dataset.config["additional_feat_suffix"] or []:
        loaded.update(_further_table(dataset, suffix))
    if fields != "auto":
        for field in as_list(fields):
            if field not in loaded:
                hint = suggest(field, loaded) or f" Loaded: {', '.join(loaded) or 'none'}."
                raise PrefError(
                    f"mm_fields names {field!r}, which is not loaded as an item feature: add it to load_col.{hint}"
                )
        loaded = {field: loaded[field] for field in as_list(fields)}
    if not loaded:
        raise PrefError(
            "mm_fields='auto' finds no item features: load columns of the item file with load_col or a "
            "feature file with additional_feat_suffix."
        )
    return list(loaded.values())


def _item_table(dataset: Any) -> Iterator[tuple[str, Feature]]:
    if dataset.item_feat is None:
        return
    for field in dataset.item_feat:
        if field != dataset.iid_field:
            values = dataset.item_feat[field]
            yield field, _feature(dataset, field, values, torch.ones(len(values), dtype=torch.bool))


def _further_table(dataset: Any, suffix: str) -> Iterator[tuple[str, Feature]]:
    table: Any = getattr(dataset, f"{suffix}_feat", None)
    fields = list(table) if table is not None else []
    ids = [field for field in fields if field in dataset.alias["item_id"]]
    if not ids:
        return
    rows = table[ids[0]]  # [n] item ids
    has_line = torch.zeros(dataset.item_num, dtype=torch.bool)
    has_line[rows] = True
    for field in fields:
        if field in ids:
            continue
        values = table[field]
        whole = values.new_zeros((dataset.item_num, *values.shape[1:]))
        whole[rows] = values
        yield field, _feature(dataset, field, whole, has_line)


def _feature(dataset: Any, field: str, values: torch.Tensor, has_line: torch.Tensor) -> Feature:
    values = values.reshape(len(values), -1)  # [n_items, T or D]
    kind = dataset.field2type[field].value
    if not torch.isfinite(values).all():  # RecBole cannot impute the mean of a column without numbers
        raise PrefError(f"mm_fields names {field!r}, which holds no finite numbers: fill the column or remove it.")
    # RecBole marks a missing token with 0, pads a missing vector with zeros and replaces a missing number
    # by the mean of the others.
    present = has_line if kind == "float" else has_line & (values != 0).any(dim=1)
    present[0] = False
    if kind.startswith("token"):
        return Feature(field, values.long(), present, dataset.num(field))
    return Feature(field, values.float(), present)


def standardized(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Center vectors and scale them to unit variance, over the items that have them.

    All dimensions share one scale, which preserves the geometry of an encoder's space. The result does not
    depend on affine normalization by RecBole (``normalize_all``).

    Args:
        values: [n_items, D].
        present: [n_items] bool.

    Returns:
        Tensor: [n_items, D]; zero where not present.
    """
    if not present.any():
        return torch.zeros_like(values)
    rows = values[present].double()
    rows = rows - rows.mean(dim=0)
    scale = rows.square().mean().sqrt()
    out = torch.zeros_like(values)
    out[present] = (rows / scale if scale > 0 else rows).to(values.dtype)
    return out


def digest(features: Sequence[Feature]) -> torch.Tensor:
    """Return the SHA-256 of the features that a model is trained with: [32] uint8."""
    hashed = hashlib.sha256()
    for feature in features:
        hashed.update(f"{feature.name} {list(feature.values.shape)} {feature.n_tokens};".encode())
        hashed.update(np.ascontiguousarray(feature.values.cpu().numpy()).data)
    return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)
