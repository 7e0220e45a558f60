"""Prefixes that share a sequence share one encoder pass (``train_positions: all``).

RecBole turns every prefix of a user's sequence into a training row. A causal encoder gives the
representations of all prefixes in one pass over the longest, so rows are grouped into windows. A window
is the sequence of its last row. It serves that row and the previous rows whose prefixes it contains.
Rows, targets and the number of rows per step are RecBole's.

A row gets an identical representation if its prefix starts with its window. This holds for all rows of
users with at most MAX_ITEM_LIST_LENGTH + 1 training items. For longer sequences, windows advance by
``stride`` rows: their rows see at least L - stride items of context, at shifted positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_pref.data.sequences import Lists, lists_of

# Sequences of a step are encoded in groups of similar length, so that short ones need little padding.
_LENGTH_STEPS = (4, 8, 12, 16, 24, 32)
# Number of rows that are padded and compared item by item at a time.
_BLOCK = 65536


def length_groups(lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Split indices by length so that padding stays small.

    Args:
        lengths: [S] lengths, at least 1.

    Returns:
        list of (ndarray, int): indices of a group in their order, and its longest length.
    """
    group_of = np.searchsorted(_LENGTH_STEPS, lengths, side="left")
    groups = []
    for group in np.unique(group_of):
        members = np.flatnonzero(group_of == group)
        groups.append((members, int(lengths[members].max())))
    return groups


@dataclass(frozen=True)
class PackedBatch:
    """Rows of one training step, grouped by the sequences they share.

    Attributes:
        sequences: per length group [S_g, L_g] item ids, right-padded with 0.
        picks: per group [R_g] flat indices into its S_g * L_g positions, one per row.
        rows: [R] numbers of RecBole's training rows, in the order of the picks.
        targets: [R] their target items.
        histories: [R, L] their item sequences, right-padded with 0.
    """

    sequences: list[torch.Tensor]
    picks: list[torch.Tensor]
    rows: torch.Tensor
    targets: torch.Tensor
    histories: torch.Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch on a device, copying asynchronously from pinned memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        """Return the batch in pinned memory."""
        return self._each(torch.Tensor.pin_memory)

    def at(self, rows: torch.Tensor) -> "PackedBatch":
        """Return the part of some rows [r], with unchanged sequences and picks."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows], histories=self.histories[rows])

    def encode(self, model: Any) -> torch.Tensor:
        """Return the representations of the rows: [R, H].

        Args:
            model: a model whose backbone entry has ``encode_all``.
        """
        parts = []
        for sequence, pick in zip(self.sequences, self.picks):
            states = model.backbone.encode_all(model, sequence)  # [S, l, H]
            parts.append(states.flatten(0, 1).index_select(0, pick))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def parts(self) -> int:
        """Return the largest number of parts into which the batch can be divided; sequences are not split."""
        return max(map(len, self.sequences))

    def share(self, size: int, rank: int) -> "PackedBatch":
        """Return the part of process ``rank`` of ``size``; the processes take whole sequences in turn."""
        sequences, picks, rows, offset = [], [], [], 0
        for sequence, pick in zip(self.sequences, self.picks):
            owner = (pick // sequence.shape[1]) % size
            owned = (owner == rank).nonzero().squeeze(1)
            if len(owned):
                which = pick[owned] // sequence.shape[1] // size
                picks.append(which * sequence.shape[1] + pick[owned] % sequence.shape[1])
                sequences.append(sequence[rank::size])
                rows.append(owned + offset)
            offset += len(pick)
        return replace(self.at(torch.cat(rows)), sequences=sequences, picks=picks)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PackedBatch":
        return PackedBatch(
            sequences=[change(sequence) for sequence in self.sequences],
            picks=[change(pick) for pick in self.picks],
            rows=change(self.rows),
            targets=change(self.targets),
            histories=change(self.histories),
        )

    def __len__(self) -> int:
        return len(self.rows)


def build_windows(
    users: np.ndarray, lists: Lists, targets: np.ndarray, stride: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Group training rows into windows.

    Args:
        users, targets: [N] user and target item of each row.
        lists: [N] prefixes.
        stride: rows per window when a sequence is longer than L.
        most: largest number of rows per window, those of a step.

    Returns:
        tuple: last row of each window, and its number of rows.
    """
    n_rows, max_length = len(lists), lists.width
    if n_rows == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    stride = min(stride, max_length, most)  # a window has at most L positions
    starts, lengths = lists.starts.numpy(), lists.lengths.numpy()
    # A row continues the previous one when it is the same user's sequence with one more item.
    last_item = lists.values[lists.starts + lists.lengths - 1].numpy()
    appended = (users[1:] == users[:-1]) & (last_item[1:] == targets[:-1])
    grows = appended & (lengths[1:] == lengths[:-1] + 1)
    slides = appended & (lengths[1:] == max_length) & (lengths[:-1] == max_length)
    # For slices of one sequence the start shows whether a row continues another; the items of others are compared.
    _clear_unequal(grows, starts[1:] == starts[:-1], lists, slice(0, -1), slice(0, -1))
    _clear_unequal(slides, starts[1:] == starts[:-1] + 1, lists, slice(1, None), slice(0, -1))
    # Runs of continued rows; in a run, growing rows precede sliding ones.
    run_start = np.flatnonzero(np.r_[True, ~(grows | slides)])
    run_end = np.r_[run_start[1:], n_rows]  # exclusive
    slide_count = np.add.reduceat(np.r_[False, slides].astype(np.int64), run_start)
    first_end = run_end - slide_count  # exclusive end of the rows that share the first window
    first = _pieces(run_start, first_end, most)
    later = _pieces(first_end, run_end, stride)
    ends = np.r_[first[1], later[1]]
    anchors, counts = ends - 1, ends - np.r_[first[0], later[0]]
    order = np.argsort(anchors, kind="stable")
    return anchors[order], counts[order]


def _clear_unequal(continued: np.ndarray, by_start: np.ndarray, lists: Lists, before: slice, after: slice) -> None:
    """Clear ``continued`` [N - 1] in place unless the starts or the items show that rows share a sequence.

    The items of a row at the positions ``before`` are compared with those of the next row at ``after``. Where the row
    has no item, any item of the next row matches.
    """
    undecided = np.flatnonzero(continued & ~by_start)
    for rows in np.array_split(undecided, -(-len(undecided) // _BLOCK) or 1):
        current, following = lists.take(rows).padded()[:, before], lists.take(rows + 1).padded()[:, after]
        continued[rows] = ((current == following) | (current == 0)).all(dim=1).numpy()


def _by_user(users: np.ndarray, lengths: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Return an order of rows, int [N], in which the rows of a user are consecutive and ordered by length.

    Users are in order of appearance. Rows of a user with the same length are ordered by time, then by position. Rows
    that are already in order do not move.
    """
    codes = pd.factorize(users)[0]
    keys = [codes, lengths] if times is None else [codes, lengths, times]
    tied, sorted_so_far = np.True_, True
    for key in keys:
        sorted_so_far = sorted_so_far and not (tied & (key[1:] < key[:-1])).any()
        tied = tied & (key[1:] == key[:-1])
    return np.arange(len(users)) if sorted_so_far else np.lexsort(keys[::-1])


def _pieces(starts: np.ndarray, ends: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ranges [starts, ends) into pieces of at most ``size``: their starts and ends."""
    number = -(-(ends - starts) // size)
    whole = np.repeat(np.arange(len(starts)), number)
    nth = np.arange(len(whole)) - np.repeat(np.cumsum(number) - number, number)
    begins = starts[whole] + nth * size
    return begins, np.minimum(begins + size, ends[whole])


class PackedLoader:
    """Yields ``PackedBatch`` steps over the rows of RecBole's training loader.

    Rows are grouped by user, whatever their order in the data. The loader's generator shuffles the windows in each
    epoch, so a seed reproduces the batches and the generator's state resumes them.

    Args:
        train_data: RecBole's training data loader.
        stride: see ``build_windows``.
        pin_memory: whether to put batches into pinned memory for asynchronous copies to a GPU.
    """

    def __init__(self, train_data: Any, stride: int, pin_memory: bool = False) -> None:
        dataset = train_data._dataset
        features = dataset.inter_feat
        length_field, time_field = dataset.item_list_length_field, dataset.time_field
        lists = lists_of(features, dataset.iid_field + dataset.config["LIST_SUFFIX"], length_field)
        users = features[dataset.uid_field].numpy()
        times = features[time_field].numpy() if time_field in features else None
        if times is not None and times.ndim > 1:  # numerical_features: value and column of each time
            times = times[:, 0]
        self.order = _by_user(users, lists.lengths.numpy(), times)  # [N] numbers of RecBole's rows
        self.lists = lists.take(self.order)
        self.targets = features[dataset.iid_field][self.order]
        self.lengths = self.lists.lengths.numpy()
        self.batch_size = train_data.step
        self.shuffle = train_data.shuffle
        self.generator = train_data.generator
        self.pin_memory = pin_memory
        self.anchors, self.counts = build_windows(
            users[self.order], self.lists, self.targets.numpy(), stride, self.batch_size
        )
        rows, windows = len(self.order), len(self.anchors)
        getLogger().info(f"{rows} training rows share {windows} windows, {rows / max(windows, 1):.1f} rows a window")

    def __len__(self) -> int:
        """Return the number of steps of RecBole's rows; some orders of the windows need one step less."""
        return -(-int(self.counts.sum()) // self.batch_size)

    def __iter__(self) -> Iterator[PackedBatch]:
        order = np.arange(len(self.anchors))
        if self.shuffle:
            order = torch.randperm(len(order), generator=self.generator).numpy()
        yield from self.batches(order)

    def batches(self, order: np.ndarray) -> Iterator[PackedBatch]:
        """Yield the batches of an order of windows; a window belongs to the step in which its rows start."""
        starts = np.cumsum(self.counts[order]) - self.counts[order]
        step_of = starts // self.batch_size
        cuts = np.flatnonzero(np.diff(step_of)) + 1
        for members in np.split(order, cuts):
            batch = self._assemble(members)
            yield batch.pin_memory() if self.pin_memory else batch

    def _assemble(self, members: np.ndarray) -> PackedBatch:
        anchors, counts = self.anchors[members], self.counts[members]
        sequences, picks, rows = [], [], []
        for group, length in length_groups(self.lengths[anchors]):
            anchor, count = anchors[group], counts[group]
            sequences.append(self.lists.take(anchor).padded(length))  # [S, l]
            which = np.repeat(np.arange(len(group)), count)  # window of each row
            back = np.repeat(np.cumsum(count), count) - np.arange(count.sum()) - 1  # rows to the anchor
            position = self.lengths[anchor][which] - 1 - back
            picks.append(torch.from_numpy(which * length + position))
            rows.append(anchor[which] - back)
        of_batch = np.concatenate(rows)
        numbers = torch.from_numpy(self.order[of_batch])
        return PackedBatch(sequences, picks, numbers, self.targets[of_batch], self.lists.take(of_batch).padded())
