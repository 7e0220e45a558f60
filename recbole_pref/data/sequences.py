"""Item lists as slices of one flat array, which are padded only on demand.

RecBole stores a padded list for every prefix: [N, L] integers per column. Here a row stores a start and a length in the
array of all interactions, which is sorted by user and time. ``features["item_id_list"]`` pads the lists of the current
rows: those of a batch, or all rows.
"""

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_pref.popularity import count_items

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

# Rows per block when lists are padded: blocks bound the memory of the positions.
_BLOCK = 65536


class Lists:
    """Lists that are slices of one flat tensor.

    Attributes:
        values: [T + 1, ...] the flat elements; the last one is the padding, zero.
        starts: [N] the position in ``values`` at which each list starts.
        lengths: [N] the number of elements of each list.
        width: L, the length of padded lists.
    """

    def __init__(self, values: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, width: int) -> None:
        self.values, self.starts, self.lengths, self.width = values, starts, lengths, width

    @classmethod
    def of(
        cls, values: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, width: int, shape: tuple[int, ...] = ()
    ) -> "Lists":
        """Return lists over flat elements [T, ...]; each element is padded to ``shape``."""
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

    def take(self, index: Any) -> "Lists":
        """Return the lists of some rows; ``index`` is any index of a tensor."""
        return Lists(self.values, self.starts[index], self.lengths[index], self.width)

    def padded(self, width: int | None = None) -> torch.Tensor:
        """Return the lists, padded to ``width`` or by default to ``self.width``: [N, L, ...]."""
        width = self.width if width is None else width
        padded = self.values.new_empty((len(self), width, *self.values.shape[1:]))
        steps, padding = torch.arange(width), len(self.values) - 1
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            positions = self.starts[rows, None] + steps  # [B, L]
            positions.masked_fill_(steps >= self.lengths[rows, None], padding)
            padded[rows] = self.values[positions]
        return padded

    def elements(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row and the value of each element, list after list: [M] and [M, ...]."""
        rows = torch.repeat_interleave(torch.arange(len(self)), self.lengths)
        begins = self.lengths.cumsum(0) - self.lengths
        return rows, self.values[torch.arange(len(rows)) + (self.starts - begins)[rows]]

    def __len__(self) -> int:
        return len(self.starts)


Column: TypeAlias = torch.Tensor | Lists


class _Columns(MutableMapping[str, Any]):
    """Columns by name; a ``Lists`` column is converted to a tensor on first access."""

    def __init__(self, columns: dict) -> None:
        self.columns = columns

    def __getitem__(self, name: str) -> torch.Tensor:
        column = self.columns[name]
        if isinstance(column, Lists):
            # Store the tensor, so that changes to it change the column, as in RecBole.
            column = self.columns[name] = column.padded()
        return column

    def __setitem__(self, name: str, column: Column) -> None:
        self.columns[name] = column

    def __delitem__(self, name: str) -> None:
        del self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, index: Any) -> "_Columns":
        """Return the columns of some rows. Lists that share slices also share the new slices."""
        shared: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        taken: dict[str, Column] = {}
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
    """RecBole's ``Interaction`` with list columns that are padded on demand.

    Args:
        columns: a tensor [N, ...] or ``Lists`` of N lists for each name.
    """

    def __init__(self, columns: dict) -> None:
        self.interaction = _Columns(columns)
        self.length = max(map(len, columns.values()))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.interaction[index]
        if not isinstance(index, (slice, range, list)) and np.ndim(index) == 0:  # one row, without a batch dimension
            row = self[[int(index)]]
            return Interaction({name: column[0] for name, column in row.interaction.items()})
        return SequenceInteraction(self.interaction.take(_as_index(index)).columns)

    def _reindex(self, index: Any) -> None:
        self.interaction = self.interaction.take(_as_index(index))

    def add_prefix(self, prefix: str) -> None:
        """Add a prefix to the names of the columns."""
        self.interaction = _Columns({prefix + name: column for name, column in self.interaction.columns.items()})

    def lists(self, name: str) -> Lists | None:
        """Return the lists of a column, or None if the column is a tensor."""
        column = self.interaction.columns[name]
        return column if isinstance(column, Lists) else None


def _as_index(index: Any) -> slice | torch.Tensor:
    """Convert row numbers, a mask or a range to a slice or an integer tensor."""
    if isinstance(index, slice):
        return index
    if isinstance(index, range):
        return slice(index.start, index.stop, index.step)
    index = torch.as_tensor(index if isinstance(index, torch.Tensor) else np.asarray(index))
    return index.nonzero().squeeze(-1) if index.dtype == torch.bool else index.long()


def lists_of(features: Interaction, name: str, length_field: str) -> Lists:
    """Return the lists of a column, whether they are stored as ``Lists`` or as a padded tensor.

    Args:
        features: the rows of a data set.
        name: the list column.
        length_field: the column with the lengths of the lists.
    """
    lists = features.lists(name) if isinstance(features, SequenceInteraction) else None
    return Lists.of_padded(features[name], features[length_field]) if lists is None else lists


def prefixes(users: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return RecBole's training rows: one for each interaction except the first of each user.

    Args:
        users: [T] of the interactions, sorted by user and time.
        longest: MAX_ITEM_LIST_LENGTH.

    Returns:
        The positions of the targets, the starts and the lengths of the lists: int64 [N] each.
    """
    positions = np.arange(len(users))
    begins = np.ones(len(users), dtype=bool)  # of a user
    np.not_equal(users[1:], users[:-1], out=begins[1:])
    targets = positions[~begins]
    first = np.maximum.accumulate(np.where(begins, positions, 0))[targets]
    starts = np.maximum(first, targets - longest)
    return targets, starts, targets - starts


def train_counts(dataset: "Dataset") -> torch.Tensor:
    """Return the number of training interactions of each item: [n_items] int64.

    For sequential data, count the targets of the rows and the item of every prefix of length one. With RecBole's
    augmentation, these are all interactions of users who have training rows. In pre-split files
    (``benchmark_filename``), items before the first target of a user are not counted if the user's first prefix is
    longer than one. For other data, count the items of the rows.
    """
    features = dataset.inter_feat
    items = features[dataset.iid_field]
    list_field = dataset.iid_field + (dataset.config["LIST_SUFFIX"] or "_list")
    first = items[:0]
    if list_field in features:
        lists = lists_of(features, list_field, dataset.config["ITEM_LIST_LENGTH_FIELD"])
        starts = lists.lengths == 1
        if lists.width == 1:  # MAX_ITEM_LIST_LENGTH cuts every list to one item
            first_rows = np.unique(features[dataset.uid_field].numpy(), return_index=True)[1]
            starts = torch.from_numpy(first_rows)
        first = lists.take(starts).elements()[1]
    return count_items(items, first, dataset.item_num)
