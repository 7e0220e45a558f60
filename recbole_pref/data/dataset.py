"""What RecBole's ``Dataset`` computes row by row in Python, on arrays: same rows, same order.

``compat`` puts these functions in the place of RecBole's methods, so that they hold for its own models and for
data sets derived from its classes.
"""

import glob
import os
import pickle
from collections import Counter, defaultdict
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_pref.data.sequences import Lists, SequenceInteraction, prefixes


class Groups:
    """Row numbers grouped by a key, in the order in which the keys appear; rows keep their order.

    Args:
        keys (array): [N] of the rows.
    """

    def __init__(self, keys: np.ndarray):
        codes = pd.factorize(keys)[0]
        self.sizes = np.bincount(codes)  # [G]
        self.rows = np.argsort(codes, kind="stable")  # [N] group after group
        self.starts = self.sizes.cumsum() - self.sizes  # [G]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self):
        return iter(np.split(self.rows, self.starts[1:]) if len(self) else ())

    def split(self, bounds) -> list[np.ndarray]:
        """Cut every group into parts and return the rows of each part, group after group.

        Args:
            bounds (callable): takes a group's size and returns where its parts begin, and its size: list of P + 1.
        """
        sizes, group_size = np.unique(self.sizes, return_inverse=True)
        cuts = np.array([bounds(int(size)) for size in sizes])[group_size].T  # [P + 1, G]
        return [self.rows[_ranges(self.starts + begin, end - begin)] for begin, end in zip(cuts, cuts[1:])]


def _ranges(starts, lengths):
    """Return the numbers start, ..., start + length - 1 of all ranges, one after the other."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def grouped_index(dataset, keys) -> Groups:
    """``Dataset._grouped_index``."""
    return Groups(keys)


def split_index_by_leave_one_out(dataset, groups: Groups, leave_one_num: int) -> list[np.ndarray]:
    """``Dataset._split_index_by_leave_one_out``: the last rows of a group are one part each, but one row stays."""

    def bounds(size):
        left = min(leave_one_num, size - 1)
        return [0, *[size - left] * (leave_one_num - left), *range(size - left, size + 1)]

    return groups.split(bounds)


def split_by_ratio(original, dataset, ratios, group_by=None) -> list:
    """``Dataset.split_by_ratio``; without groups it is RecBole's own."""
    if group_by is None:
        return original(dataset, ratios)
    ratios = [ratio / sum(ratios) for ratio in ratios]
    bounds = lambda size: [0, *dataset._calcu_split_ids(tot=size, ratios=ratios), size]
    parts = Groups(dataset.inter_feat[group_by].numpy()).split(bounds)
    dataset._drop_unused_col()
    return [dataset.copy(dataset.inter_feat[rows]) for rows in parts]


def count(values=()) -> Counter:
    """``collections.Counter`` of an array, in the order of first appearance."""
    if not isinstance(values, (np.ndarray, pd.api.extensions.ExtensionArray)):
        return Counter(values)
    codes, found = pd.factorize(values)
    return Counter(dict(zip(found, np.bincount(codes, minlength=len(found)).tolist())))


def concat_tokens(original, dataset, remap_list):
    """``Dataset._concat_remaped_tokens``: categories stay what they are, which pandas numbers without their texts."""
    columns = [feat[field] for feat, field, kind in remap_list if kind == FeatureType.TOKEN]
    if len(columns) < len(remap_list) or not isinstance(columns[0].dtype, pd.CategoricalDtype):
        return original(dataset, remap_list)
    tokens = columns[0].array
    if len(columns) > 1:
        tokens = pd.api.types.union_categoricals([column.astype(object).astype("category") for column in columns])
    return tokens, np.cumsum([len(column) for column in columns])[:-1]


def augment(dataset) -> None:
    """``SequentialDataset.data_augmentation``: a row for each prefix, its lists as slices."""
    dataset._aug_presets()
    dataset._check_field("uid_field", "time_field")
    longest = dataset.config["MAX_ITEM_LIST_LENGTH"]
    dataset.sort(by=[dataset.uid_field, dataset.time_field], ascending=True)
    features = dataset.inter_feat
    targets, starts, lengths = map(torch.from_numpy, prefixes(features[dataset.uid_field].numpy(), longest))
    rows = {field: features[field][targets] for field in features}
    rows[dataset.item_list_length_field] = lengths
    for field in features:
        if field == dataset.uid_field:
            continue
        list_field = getattr(dataset, f"{field}_list_field")
        length = dataset.field2seqlen[list_field]
        shape = () if isinstance(length, int) else length[1:]
        numerical = dataset.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
        if numerical and field in dataset.config["numerical_features"]:
            shape += (2,)
        rows[list_field] = Lists.of(features[field], starts, lengths, longest, shape)
    dataset.inter_feat = SequenceInteraction(rows)


def cut_lists(original, dataset) -> None:
    """``SequentialDataset._benchmark_presets``: lists keep their latest items, as many as models take."""
    longest = dataset.config["MAX_ITEM_LIST_LENGTH"]
    for field in _list_columns(dataset):
        dataset.inter_feat[field] = [values[-longest:] for values in dataset.inter_feat[field]]
        dataset.field2seqlen[field] = longest
    original(dataset)


def change_feat_format(original, dataset) -> None:
    """``SequentialDataset._change_feat_format``: the lists of pre-split files are padded when they are asked for."""
    if dataset.config["benchmark_filename"] is None:
        return original(dataset)
    table, names = dataset.inter_feat, _list_columns(dataset)
    dataset.inter_feat = table.drop(columns=names)
    original(dataset)
    columns = {name: None if name in names else dataset.inter_feat[name] for name in table}
    for name in names:
        lengths = torch.from_numpy(table[name].map(len).to_numpy(dtype=np.int64))
        values = np.concatenate([*table[name], []])
        kind = torch.int64 if dataset.field2type[name] == FeatureType.TOKEN_SEQ else torch.float32
        flat = torch.from_numpy(values).to(kind)
        columns[name] = Lists.of(flat, lengths.cumsum(0) - lengths, lengths, dataset.field2seqlen[name])
    dataset.inter_feat = SequenceInteraction(columns)


def _list_columns(dataset):
    """Return the list columns of pre-split files that are lists of a column: list of names."""
    suffix, numerical = dataset.config["LIST_SUFFIX"], dataset.config["numerical_features"] or ()
    sequences = (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
    return [
        field + suffix
        for field in dataset.inter_feat
        if field + suffix in dataset.inter_feat
        and dataset.field2type[field + suffix] in sequences
        and field + suffix not in numerical
    ]


def add_list_alias(original, dataset, alias_name, default_value) -> None:
    """``Dataset._set_alias``: items in the lists of pre-split files are the items of the targets."""
    if alias_name == "item_id" and dataset.benchmark_filename_list:
        field = f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"
        if dataset.field2type.get(field) == FeatureType.TOKEN_SEQ:
            default_value = [*default_value, field]
    original(dataset, alias_name, default_value)


def filter_by_field_value(original, dataset) -> None:
    """``Dataset._filter_by_field_value``: the values of a token column are texts, also where YAML reads numbers."""
    intervals = dataset.config["val_interval"]
    texts = {
        field: list(map(str, values)) if dataset.field2type.get(field) == FeatureType.TOKEN else values
        for field, values in (intervals or {}).items()
    }
    dataset.config["val_interval"] = texts
    try:
        original(dataset)
    finally:
        dataset.config["val_interval"] = intervals


def load_saved(file):
    """``pickle.load`` of a data set that ``save_dataset`` wrote; one older than its files is not used.

    Args:
        file: open and binary, in which RecBole's ``create_dataset`` found a data set.
    """
    dataset = pickle.load(file)
    if not isinstance(dataset, Dataset):
        return dataset
    sources = Path(dataset.dataset_path).glob(f"{glob.escape(dataset.dataset_name)}.*")
    newer = [path for path in sources if path.stat().st_mtime_ns > os.fstat(file.fileno()).st_mtime_ns]
    if newer:
        getLogger().warning(f"{file.name} is older than {newer[0]}: the data set is read from its files again")
        dataset.config = defaultdict(object)  # equal to no run's
    return dataset


def remove_duplication(original, dataset) -> None:
    """``Dataset._remove_duplication``: interactions with equal times keep the order of the file."""
    keep = dataset.config["rm_dup_inter"]
    if keep is None or dataset.time_field not in dataset.inter_feat:
        return original(dataset)
    dataset._check_field("uid_field", "iid_field")
    dataset.inter_feat.sort_values(dataset.time_field, kind="stable", inplace=True)
    dataset.inter_feat.drop_duplicates([dataset.uid_field, dataset.iid_field], keep=keep, inplace=True)
