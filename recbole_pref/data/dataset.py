"""Fast versions of methods of RecBole's ``Dataset``, with the same rows in the same order.

RecBole loops over rows in Python; these functions work on arrays. ``compat`` replaces RecBole's methods with them,
so that they also serve RecBole's own models and subclasses of its data sets.
"""

import glob
import os
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from logging import getLogger
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_pref.data.sequences import Lists, SequenceInteraction, prefixes


class Groups:
    """Row numbers grouped by a key. Groups are in the order of first appearance; rows keep their order.

    Args:
        keys: [N], one for each row.
    """

    def __init__(self, keys: np.ndarray) -> None:
        codes = pd.factorize(keys)[0]
        self.sizes = np.bincount(codes)  # [G]
        self.rows = np.argsort(codes, kind="stable")  # [N] group after group
        self.starts = self.sizes.cumsum() - self.sizes  # [G]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.rows, self.starts[1:]) if len(self) else ())

    def split(self, bounds: Callable[[int], list[int]]) -> list[np.ndarray]:
        """Cut every group into parts and return the rows of each part, group after group.

        Args:
            bounds: a function from the size of a group to the P starts of its parts, followed by the size.
        """
        sizes, group_size = np.unique(self.sizes, return_inverse=True)
        cuts = np.array([bounds(int(size)) for size in sizes])[group_size].T  # [P + 1, G]
        return [self.rows[_ranges(self.starts + begin, end - begin)] for begin, end in zip(cuts, cuts[1:])]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the concatenated ranges start, ..., start + length - 1."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def grouped_index(dataset: Dataset, keys: np.ndarray) -> Groups:
    """``Dataset._grouped_index``: row numbers by key, as arrays."""
    return Groups(keys)


def split_index_by_leave_one_out(dataset: Dataset, groups: Groups, leave_one_num: int) -> list[np.ndarray]:
    """``Dataset._split_index_by_leave_one_out``: each of a group's last rows is a part; at least one row remains."""

    def bounds(size: int) -> list[int]:
        left = min(leave_one_num, size - 1)
        return [0, *[size - left] * (leave_one_num - left), *range(size - left, size + 1)]

    return groups.split(bounds)


def split_by_ratio(
    original: Callable[..., Any], dataset: Dataset, ratios: Sequence[float], group_by: str | None = None
) -> list:
    """``Dataset.split_by_ratio``, with groups on arrays."""
    if group_by is None:
        return original(dataset, ratios)
    ratios = [ratio / sum(ratios) for ratio in ratios]
    bounds = lambda size: [0, *dataset._calcu_split_ids(tot=size, ratios=ratios), size]
    parts = Groups(dataset.inter_feat[group_by].numpy()).split(bounds)
    dataset._drop_unused_col()
    return [dataset.copy(dataset.inter_feat[rows]) for rows in parts]


def count(values: Iterable[Any] = ()) -> Counter:
    """``collections.Counter`` of an array, in the order of first appearance."""
    if not isinstance(values, (np.ndarray, pd.api.extensions.ExtensionArray)):
        return Counter(values)
    codes, distinct = pd.factorize(values)
    return Counter(dict(zip(distinct, np.bincount(codes, minlength=len(distinct)).tolist())))


def concat_tokens(
    original: Callable[..., Any], dataset: Dataset, remap_list: list[tuple[Any, str, FeatureType]]
) -> tuple[Any, np.ndarray]:
    """``Dataset._concat_remaped_tokens``: categories are not converted to texts, because pandas numbers them faster."""
    columns = [feat[field] for feat, field, kind in remap_list if kind == FeatureType.TOKEN]
    if len(columns) < len(remap_list) or not isinstance(columns[0].dtype, pd.CategoricalDtype):
        return original(dataset, remap_list)
    tokens = columns[0].array
    if len(columns) > 1:
        tokens = pd.api.types.union_categoricals([column.astype(object).astype("category") for column in columns])
    return tokens, np.cumsum([len(column) for column in columns])[:-1]


def augment(dataset: Dataset) -> None:
    """``SequentialDataset.data_augmentation``: one row for each prefix; its lists are slices."""
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


def cut_lists(original: Callable[..., Any], dataset: Dataset) -> None:
    """``SequentialDataset._benchmark_presets``: lists keep only their latest MAX_ITEM_LIST_LENGTH items."""
    longest = dataset.config["MAX_ITEM_LIST_LENGTH"]
    for field in _list_columns(dataset):
        dataset.inter_feat[field] = [values[-longest:] for values in dataset.inter_feat[field]]
        dataset.field2seqlen[field] = longest
    original(dataset)


def change_feat_format(original: Callable[..., Any], dataset: Dataset) -> None:
    """``SequentialDataset._change_feat_format``: the lists of pre-split files are padded on demand."""
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


def _list_columns(dataset: Dataset) -> list[str]:
    """Return the names of the list columns of pre-split files that belong to another column."""
    suffix, numerical = dataset.config["LIST_SUFFIX"], dataset.config["numerical_features"] or ()
    sequences = (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
    return [
        field + suffix
        for field in dataset.inter_feat
        if field + suffix in dataset.inter_feat
        and dataset.field2type[field + suffix] in sequences
        and field + suffix not in numerical
    ]


def add_list_alias(original: Callable[..., Any], dataset: Dataset, alias_name: str, default_value: list[str]) -> None:
    """``Dataset._set_alias``: the lists of pre-split files share the item ids of the targets."""
    if alias_name == "item_id" and dataset.benchmark_filename_list:
        field = f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"
        if dataset.field2type.get(field) == FeatureType.TOKEN_SEQ:
            default_value = [*default_value, field]
    original(dataset, alias_name, default_value)


def filter_by_field_value(original: Callable[..., Any], dataset: Dataset) -> None:
    """``Dataset._filter_by_field_value``: token columns are compared with texts, even if YAML reads numbers."""
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


def load_saved(file: IO[bytes]) -> Any:
    """``pickle.load`` of a data set that ``save_dataset`` wrote; RecBole rebuilds it if its files are newer.

    Args:
        file: the open binary file that RecBole's ``create_dataset`` reads.
    """
    dataset = pickle.load(file)
    if not isinstance(dataset, Dataset):
        return dataset
    sources = Path(dataset.dataset_path).glob(f"{glob.escape(dataset.dataset_name)}.*")
    newer = [path for path in sources if path.stat().st_mtime_ns > os.fstat(file.fileno()).st_mtime_ns]
    if newer:
        getLogger().warning(f"{file.name} is older than {newer[0]}: the data set is built again from its files")
        dataset.config = defaultdict(object)  # differs from every configuration
    return dataset


def order_by_exact_time(original: Callable[..., Any], dataset: Dataset) -> None:
    """``Dataset._change_feat_format``, with a sort by the exact times before it rounds them to 32-bit floats.

    RecBole's later sort by the rounded times is stable, so it keeps this order.
    """
    if dataset.benchmark_filename_list is None and dataset.config["eval_args"]["order"] == "TO":
        dataset.inter_feat = in_order_of(dataset.inter_feat, dataset.time_field)
    original(dataset)


def in_order_of(table: pd.DataFrame, time: str | None) -> pd.DataFrame:
    """Sort interactions by 64-bit times. Rows with equal times keep their order; so does a table without times."""
    if time not in table or table[time].dtype != np.float64 or table[time].is_monotonic_increasing:
        return table
    return table.sort_values(time, kind="stable", ignore_index=True)


def remove_duplication(original: Callable[..., Any], dataset: Dataset) -> None:
    """``Dataset._remove_duplication``: interactions with equal times keep the order of the file."""
    keep = dataset.config["rm_dup_inter"]
    if keep is None or dataset.time_field not in dataset.inter_feat:
        return original(dataset)
    dataset._check_field("uid_field", "iid_field")
    dataset.inter_feat.sort_values(dataset.time_field, kind="stable", inplace=True)
    dataset.inter_feat.drop_duplicates([dataset.uid_field, dataset.iid_field], keep=keep, inplace=True)
