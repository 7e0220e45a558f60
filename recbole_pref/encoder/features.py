"""Item features of a RecBole data set: which there are, whether their files are sound, as tensors."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from glob import escape
from pathlib import Path

import numpy as np
import torch

from recbole_pref.data.check import read_atomic
from recbole_pref.errors import PrefError, suggest

# Files of a data set that hold no item features.
OTHER_FILES = {"inter", "user", "item", "kg", "link", "net", "ent", "rel"}
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Feature:
    """One modality of all items; row 0 belongs to padding.

    Attributes:
        name (str): its field.
        values (Tensor): [n_items, D] float32 vectors, or [n_items, T] int64 tokens padded with 0.
        present (Tensor): [n_items] bool, which items have it.
        n_tokens (int or None): size of the token vocabulary; None for vectors.
    """

    name: str
    values: torch.Tensor
    present: torch.Tensor
    n_tokens: int | None = None


# -- the files


def columns_of(path, separator=None, encoding=None):
    """Return the columns that a file's first line names: dict of field to type (``token``, ``float_seq``, ...)."""
    with open(path, "rb") as lines:  # what follows may be no text at all
        head = lines.readline().decode(encoding or "utf-8", "replace").rstrip("\r\n")
    return dict(column.partition(":")[::2] for column in head.split(separator or "\t"))


def feature_files(config):
    """Return the files that may hold item features: dict of suffix to (path, columns).

    ``<dataset>.item`` comes first; other suffixes count when their first column is a token and another
    holds vectors.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    found = {}
    for path in sorted(folder.glob(f"{escape(name)}.*"), key=lambda path: path.suffix != ".item"):
        suffix = path.name[len(name) + 1 :]
        if not path.is_file() or "." in suffix or (suffix in OTHER_FILES and suffix != "item"):
            continue
        columns = columns_of(path, config["field_separator"], config["encoding"])
        kinds = list(columns.values())
        if suffix == "item" or (kinds[:1] == ["token"] and "float_seq" in kinds):
            found[suffix] = (path, columns)
    return found


def request_features(config):
    """Make RecBole load the fields that ``mm_fields`` names, where the user's settings do not yet.

    A field of ``<dataset>.item`` is added to ``load_col``; one of another file, say ``<dataset>.text``,
    brings ``additional_feat_suffix``, ``alias_of_item_id``, ``preload_weight`` and ``load_col`` for that
    file. ``auto`` takes the features that the settings load, and all of the files' when they load none.

    Args:
        config (Config): changed in place; called before the data set is made.

    Raises:
        PrefError: a field that no file holds, or no features at all.
    """
    files, item_id = feature_files(config), config["ITEM_ID_FIELD"]
    load = config["load_col"]
    suffixes = list(config["additional_feat_suffix"] or [])
    wanted = config["mm_fields"]
    known = [(s, f) for s, (_, columns) in files.items() for f in _fields_in(s, columns, item_id)]
    if wanted == "auto":
        if load is None and "item" in files or suffixes or set(load or {}) - {"inter", "user"}:
            return
        found = known
        if not found:
            raise PrefError(
                f"mm_fields='auto' finds no item features in {config['data_path']!r}: add columns to "
                f"{config['dataset']}.item or make a feature file with recbole-pref-features."
            )
    else:
        found = [_find(field, known, config) for field in as_list(wanted)]
    _check_names(found, known, files, item_id)
    load = None if load is None else {key: _names(value) for key, value in load.items()}
    aliases, preload = list(config["alias_of_item_id"] or []), dict(config["preload_weight"] or {})
    for suffix, field in found:
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


def as_list(names):
    """Return one name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def _names(value):
    return value if value == "*" else list(value)


def _fields_in(suffix, columns, item_id):
    if suffix == "item":
        return [field for field in columns if field != item_id]
    # RecBole numbers the tokens of the item and the user file alone.
    return [field for field, kind in columns.items() if kind.startswith("float")]


def _find(field, known, config):
    for suffix, name in known:
        if field == name:
            return suffix, field
    names = [name for _, name in known]
    raise PrefError(
        f"mm_fields names {field!r}, which is in no feature file of {config['dataset']} in "
        f"{config['data_path']!r}.{suggest(field, names) or ' Known: ' + (', '.join(names) or 'none') + '.'}"
    )


def _check_names(found, known, files, item_id):
    """Refuse columns of several files under one name, of which RecBole takes one for the other."""
    for _, field in found:
        twice = [str(files[suffix][0]) for suffix, name in known if name == field]
        if len(twice) > 1:
            raise PrefError(f"{' and '.join(twice[:2])} both have a column {field}: rename one of them.")
    taken = {item_id}
    for suffix in dict.fromkeys(suffix for suffix, _ in found if suffix != "item"):
        path, columns = files[suffix]
        name = next(iter(columns))
        if name in taken:
            raise PrefError(
                f"{path}, line 1: its item column is called {name}, as that of another file of the data set: call it "
                f"{suffix}_id."
            )
        taken.add(name)


def check_files(config):
    """Refuse feature files with rows that do not fit, before RecBole pads or drops them in silence.

    Raises:
        PrefError: names file and line: a vector of another length or with a value that is no finite
            number, an item named twice, or one that is neither in the interactions nor in the item file.
    """
    known = None
    for suffix, (path, columns) in feature_files(config).items():
        if suffix == "item":
            used = config["load_col"] is None or "item" in config["load_col"]
        else:
            used = suffix in (config["additional_feat_suffix"] or [])
        if not used:
            continue
        if suffix != "item" and known is None:
            known = _known_items(config)
        stat = os.stat(path)
        id_field = config["ITEM_ID_FIELD"] if suffix == "item" else next(iter(columns))
        if id_field not in columns:
            raise PrefError(f"{path}, line 1: there is no column {id_field}:token, add it.")
        loaded = None if config["load_col"] is None else config["load_col"].get(suffix)
        vectors = [field for field, kind in columns.items() if kind == "float_seq"]
        _check_file(
            path, (stat.st_mtime_ns, stat.st_size), id_field,
            (config["field_separator"], config["encoding"]), config["seq_separator"],
            known if suffix != "item" else None,
            tuple(vectors if loaded in (None, "*") else (field for field in vectors if field in loaded)),
        )  # fmt: skip


@lru_cache(maxsize=16)
def _check_file(path, version, id_field, reading, seq_separator, known, vectors):
    frame, _ = read_atomic(path, *reading)
    items = frame[id_field]
    again = np.flatnonzero(items.duplicated())
    if len(again):
        item, first = items[again[0]], int((items == items[again[0]]).argmax())
        raise PrefError(f"{path}, line {again[0] + 2}: item {item!r} stands in line {first + 2} already, keep one.")
    strange = np.flatnonzero(~items.isin(known)) if known is not None else ()
    if len(strange):
        raise PrefError(
            f"{path}, line {strange[0] + 2}: item {items[strange[0]]!r} is neither in the interactions nor in the "
            "item file, remove the line or correct the token."
        )
    for field in vectors:
        width = None
        for line, cell in enumerate(frame[field], start=2):
            texts = [text for text in cell.split(seq_separator) if text]
            width = _check_vector(texts, field, width, f"{path}, line {line}")


def _check_vector(texts, field, width, where):
    """Return the number of values that a vector must have; an empty one is of an item that lacks this modality."""
    if texts and width not in (None, len(texts)):
        raise PrefError(
            f"{where}: {field} holds {len(texts)} numbers where the lines before hold {width}, give "
            "every item a vector of one length or an empty cell."
        )
    try:
        sound = sum(abs(float(text)) for text in texts) <= _LARGEST
    except ValueError:
        sound = False
    if not sound:
        raise PrefError(f"{where}: {field} holds a value that is no finite number of 32 bits.")
    return len(texts) or width


def _known_items(config):
    """Return the item tokens of the interaction files and the item file: frozenset of str."""
    folder, name, item_id = Path(config["data_path"]), config["dataset"], config["ITEM_ID_FIELD"]
    tokens = set()
    for path in [folder / f"{name}.inter", *folder.glob(f"{escape(name)}.*.inter"), folder / f"{name}.item"]:
        if path.is_file():
            frame, columns = read_atomic(path, config["field_separator"], config["encoding"])
            tokens.update(frame[item_id] if item_id in columns else ())
    return frozenset(tokens)


# -- the tensors


def read(dataset, wanted):
    """Return the item features that a RecBole data set has loaded.

    Args:
        dataset (Dataset): built, such as the training split.
        wanted (str or list of str): ``mm_fields``.

    Returns:
        list of Feature: in the order of the fields; not empty.

    Raises:
        PrefError: a field that is not loaded, or no features at all.
    """
    found = dict(_item_table(dataset))
    for suffix in dataset.config["additional_feat_suffix"] or []:
        found.update(_further_table(dataset, suffix))
    if wanted != "auto":
        for field in as_list(wanted):
            if field not in found:
                known = suggest(field, found) or f" Loaded: {', '.join(found) or 'none'}."
                raise PrefError(
                    f"mm_fields names {field!r}, which is not loaded as an item feature: add it to "
                    f"load_col.{known}"
                )
        found = {field: found[field] for field in as_list(wanted)}
    if not found:
        raise PrefError(
            "mm_fields='auto' finds no item features: load columns of the item file with load_col or a "
            "feature file with additional_feat_suffix."
        )
    return list(found.values())


def _item_table(dataset):
    if dataset.item_feat is None:
        return
    for field in dataset.item_feat:
        if field != dataset.iid_field:
            values = dataset.item_feat[field]
            yield field, _feature(dataset, field, values, torch.ones(len(values), dtype=torch.bool))


def _further_table(dataset, suffix):
    table = getattr(dataset, f"{suffix}_feat", None)
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


def _feature(dataset, field, values, has_line):
    values = values.reshape(len(values), -1)  # [n_items, T or D]
    kind = dataset.field2type[field].value
    if not torch.isfinite(values).all():  # of a column without any number RecBole fills in no mean
        raise PrefError(f"mm_fields names {field!r}, which holds no finite numbers: fill the column or leave it out.")
    # RecBole marks a missing token with 0, pads a missing vector with zeros and fills a missing number
    # with the mean of the others.
    present = has_line if kind == "float" else has_line & (values != 0).any(dim=1)
    present[0] = False
    if kind.startswith("token"):
        return Feature(field, values.long(), present, dataset.num(field))
    return Feature(field, values.float(), present)


def standardized(values, present):
    """Center vectors and scale them to unit variance, over the items that have them.

    One scale serves all dimensions, so that the geometry of an encoder's space is kept; whatever affine
    normalization RecBole applied before (``normalize_all``) drops out.

    Args:
        values (Tensor): [n_items, D].
        present (Tensor): [n_items] bool.

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


def digest(features):
    """Return what identifies the features a model was trained with: [32] uint8 (SHA-256)."""
    hashed = hashlib.sha256()
    for feature in features:
        hashed.update(f"{feature.name} {list(feature.values.shape)} {feature.n_tokens};".encode())
        hashed.update(np.ascontiguousarray(feature.values.cpu().numpy()))
    return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)
