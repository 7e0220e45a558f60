"""Sequences as arrays: a row's item list is a slice of one flat array, padded only when it is asked for.

RecBole makes a padded list of every prefix, [N, L] integers a column. Here a row has a start and a length in the
array of all interactions, sorted by user and time, and ``features["item_id_list"]`` makes the padded lists of the
rows at hand: those of a batch, or of all rows for whoever asks for the whole column.
"""

from collections.abc import Iterator, MutableMapping

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_pref.popularity import count_items

# Padded lists are made in blocks of so many rows, so that the positions need little memory.
_BLOCK = 65536


class Lists:
    """Lists that are slices of one flat tensor.

    Attributes:
        values (Tensor): [T + 1, ...] the flat elements; the last one is the padding, zero.
        starts (Tensor): [N] where each list starts in ``values``.
        lengths (Tensor): [N] how many elements each list has.
        width (int): L, the length that lists are padded to.
    """

    def __init__(self, values: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, width: int):
        self.values, self.starts, self.lengths, self.width = values, starts, lengths, width

    @classmethod
    def of(cls, values: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, width: int, shape=()) -> "Lists":
        """Return lists over flat elements [T, ...] of at most the given shape each, which are padded to it."""
        flat = values.new_zeros((len(values) + 1, *shape))
        if shape and values.dim() > 1:
            flat[: len(values), : values.shape[1]] = values
        else:
            flat[: len(values)] = values
        return cls(flat, starts, lengths, width)

    @classmethod
    def of_padded(cls, padded: torch.Tensor, lengths: torch.Tensor) -> "Lists":
        """Return the lists of a padded tensor [N, L]."""
        rows, width = padded.shape
        return cls.of(padded.reshape(-1), torch.arange(rows) * width, lengths, width)

    def take(self, index) -> "Lists":
        """Return the lists of some rows: index as a tensor takes it."""
        return Lists(self.values, self.starts[index], self.lengths[index], self.width)

    def padded(self, width: int | None = None) -> torch.Tensor:
        """Return the lists padded to ``width``, by default their own: [N, L, ...]."""
        width = self.width if width is None else width
        padded = self.values.new_empty((len(self), width, *self.values.shape[1:]))
        steps, padding = torch.arange(width), len(self.values) - 1
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            places = self.starts[rows, None] + steps  # [B, L]
            places.masked_fill_(steps >= self.lengths[rows, None], padding)
            padded[rows] = self.values[places]
        return padded

    def elements(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row and the value of each element, list after list: [M] and [M, ...]."""
        rows = torch.repeat_interleave(torch.arange(len(self)), self.lengths)
        begins = self.lengths.cumsum(0) - self.lengths
        return rows, self.values[torch.arange(len(rows)) + (self.starts - begins)[rows]]

    def __len__(self) -> int:
        return len(self.starts)


class _Columns(MutableMapping):
    """Columns of which those kept as ``Lists`` become tensors when they are asked for."""

    def __init__(self, columns: dict):
        self.columns = columns

    def __getitem__(self, name: str) -> torch.Tensor:
        column = self.columns[name]
        if isinstance(column, Lists):
            # Whoever changes the tensor changes the column, as with RecBole's.
            column = self.columns[name] = column.padded()
        return column

    def __setitem__(self, name: str, column) -> None:
        self.columns[name] = column

    def __delitem__(self, name: str) -> None:
        del self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, index) -> "_Columns":
        """Return the columns of some rows; lists with the same slices go on sharing them."""
        shared, taken = {}, {}
        for name, column in self.columns.items():
            if isinstance(column, Lists):
                key = id(column.starts), id(column.lengths)
                if key not in shared:
                    shared[key] = column.starts[index], column.lengths[index]
                taken[name] = Lists(column.values, *shared[key], column.width)
            else:
                taken[name] = column[index]
        return _Columns(taken)


class SequenceInteraction(Interaction):
    """RecBole's ``Interaction`` with list columns that are made when they are asked for.

    Args:
        columns (dict): name to Tensor [N, ...] or ``Lists`` of N lists.
    """

    def __init__(self, columns: dict):
        self.interaction = _Columns(columns)
        self.length = max(map(len, columns.values()))

    def __getitem__(self, index):
        if isinstance(index, str):
            return self.interaction[index]
        if not isinstance(index, (slice, range, list)) and np.ndim(index) == 0:  # one row, without a dimension for it
            row = self[[int(index)]]
            return Interaction({name: column[0] for name, column in row.interaction.items()})
        return SequenceInteraction(self.interaction.take(_as_index(index)).columns)

    def _reindex(self, index) -> None:
        self.interaction = self.interaction.take(_as_index(index))

    def add_prefix(self, prefix: str) -> None:
        """Add a prefix to the names of the columns."""
        self.interaction = _Columns({prefix + name: column for name, column in self.interaction.columns.items()})

    def lists(self, name: str) -> Lists | None:
        """Return the lists of a column that nobody has asked to see padded, else None."""
        column = self.interaction.columns[name]
        return column if isinstance(column, Lists) else None


def _as_index(index):
    """Return row numbers, a mask or a range as a slice or an integer tensor."""
    if isinstance(index, slice):
        return index
    if isinstance(index, range):
        return slice(index.start, index.stop, index.step)
    index = torch.as_tensor(index if isinstance(index, torch.Tensor) else np.asarray(index))
    return index.nonzero().squeeze(-1) if index.dtype == torch.bool else index.long()


def lists_of(features, name: str, length_field: str) -> Lists:
    """Return the lists of a column of a data set's rows, whichever way it holds them.

    Args:
        features (Interaction): the rows.
        name (str): the list column.
        length_field (str): the column of the lists' lengths.
    """
    lists = features.lists(name) if isinstance(features, SequenceInteraction) else None
    return Lists.of_padded(features[name], features[length_field]) if lists is None else lists


def prefixes(users: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return RecBole's training rows: one for each interaction but the first of each user.

    Args:
        users (int array): [T] of the interactions, sorted by user and time.
        longest (int): MAX_ITEM_LIST_LENGTH.

    Returns:
        tuple: for each row the place of its target, the start and the length of its list: int64 [N] each.
    """
    places = np.arange(len(users))
    begins = np.ones(len(users), dtype=bool)  # of a user
    np.not_equal(users[1:], users[:-1], out=begins[1:])
    targets = places[~begins]
    first = np.maximum.accumulate(np.where(begins, places, 0))[targets]
    starts = np.maximum(first, targets - longest)
    return targets, starts, targets - starts


def train_counts(dataset) -> torch.Tensor:
    """Return the training counts of a RecBole training split: [n_items] int64.

    Sequential data: the targets of the rows, plus the one item of every prefix of length one. With
    RecBole's augmentation these are all interactions of users who have training rows. Benchmark
    files (``benchmark_filename``) are counted by the same rule: where a user's rows start with
    longer prefixes, the items before the first target are not counted. Other data: the items.
    """
    features = dataset.inter_feat
    items = features[dataset.iid_field]
    list_field = dataset.iid_field + (dataset.config["LIST_SUFFIX"] or "_list")
    first = items[:0]
    if list_field in features:
        lists = lists_of(features, list_field, dataset.config["ITEM_LIST_LENGTH_FIELD"])
        starts = lists.lengths == 1
        if lists.width == 1:  # MAX_ITEM_LIST_LENGTH cuts every list to one item
            starts = np.unique(features[dataset.uid_field].numpy(), return_index=True)[1]
        first = lists.take(starts).elements()[1]
    return count_items(items, first, dataset.item_num)
