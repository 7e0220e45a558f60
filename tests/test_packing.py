"""Windows of shared prefixes against a plain reading of RecBole's rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pref.data.sequences import Lists
from recbole_pref.model.packing import PackedLoader, build_windows, length_groups


def _rows(sequences, max_length):
    """RecBole's augmentation, row by row."""
    users, lists, lengths, targets = [], [], [], []
    for user, sequence in enumerate(sequences, start=1):
        for t in range(1, len(sequence)):
            prefix = sequence[max(0, t - max_length) : t]
            users.append(user)
            lists.append(prefix + [0] * (max_length - len(prefix)))
            lengths.append(len(prefix))
            targets.append(sequence[t])
    shape = (len(users), max_length)
    return (
        np.array(users, dtype=np.int64),
        np.array(lists, dtype=np.int64).reshape(shape),
        np.array(lengths, dtype=np.int64),
        np.array(targets, dtype=np.int64),
    )


def _windows(rows, stride, most):
    users, lists, lengths, targets = rows
    packed = Lists.of_padded(torch.from_numpy(lists), torch.from_numpy(lengths))
    return build_windows(users, packed, targets, stride, most)


_SEQUENCES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=17), min_size=1, max_size=6)


@settings(deadline=None, max_examples=150)
@given(_SEQUENCES, st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
def test_every_row_is_served_once_and_sees_its_items(sequences, max_length, stride, most):
    users, lists, lengths, targets = rows = _rows(sequences, max_length)
    anchors, counts = _windows(rows, stride, most)
    assert (counts <= most).all()
    served = np.concatenate([np.arange(a - c + 1, a + 1) for a, c in zip(anchors, counts)])
    assert sorted(served) == list(range(len(users)))
    for anchor, count in zip(anchors, counts):
        for row in range(anchor - count + 1, anchor + 1):
            seen = lists[anchor][: lengths[anchor] - (anchor - row)]
            own = lists[row][: lengths[row]]
            assert len(seen) >= 1
            # What the window shows before the target is the end of the row's own prefix.
            assert list(seen) == list(own[len(own) - len(seen) :])
            if count <= lengths[anchor] and lengths[anchor] < max_length:
                assert len(seen) == len(own)


def test_short_sequences_are_exact_and_long_ones_keep_context():
    anchors, counts = _windows(_rows([list(range(1, 12))], max_length=4), stride=2, most=9)
    # Rows 0..3 have prefixes of 1..4 items from the start; rows 4..9 slide two at a time.
    assert anchors.tolist() == [3, 5, 7, 9]
    assert counts.tolist() == [4, 2, 2, 2]


def test_rows_that_are_not_prefixes_have_their_own_windows():
    users = np.array([1, 1, 2])
    lists = np.array([[3, 4, 0], [5, 6, 7], [3, 0, 0]])
    lengths, targets = np.array([2, 3, 1]), np.array([9, 8, 9])
    anchors, counts = _windows((users, lists, lengths, targets), stride=3, most=9)
    assert anchors.tolist() == [0, 1, 2] and counts.tolist() == [1, 1, 1]


def test_length_groups_cover_all():
    lengths = np.array([1, 50, 3, 9, 33, 4])
    groups = length_groups(lengths)
    assert sorted(np.concatenate([members for members, _ in groups])) == list(range(6))
    for members, longest in groups:
        assert lengths[members].max() == longest


class _Dataset:
    uid_field, iid_field, item_list_length_field, time_field = "user_id", "item_id", "item_length", "timestamp"
    config = {"LIST_SUFFIX": "_list"}

    def __init__(self, rows):
        users, lists, lengths, targets = map(torch.from_numpy, rows)
        self.inter_feat = {
            "user_id": users,
            "item_id_list": lists,
            "item_length": lengths,
            "item_id": targets,
        }


class _TrainData:
    step, shuffle = 7, True

    def __init__(self, rows, seed):
        self._dataset = _Dataset(rows)
        self.generator = torch.Generator().manual_seed(seed)


def _loader(seed=1, n_users=9, max_length=5, batch_size=7, order=None):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 30, rng.integers(2, 14)).tolist() for _ in range(n_users)]
    rows = _rows(sequences, max_length)
    if order is not None:
        rows = tuple(column[order(rows)] for column in rows)
    train_data = _TrainData(rows, seed)
    train_data.step = batch_size
    return PackedLoader(train_data, stride=2), rows


def _shuffled(rows):
    return np.random.default_rng(1).permutation(len(rows[0]))


@pytest.mark.parametrize("order", [None, _shuffled])
def test_batches_hold_each_row_once_with_its_target_history_and_last_item(order):
    loader, (_, lists, lengths, targets) = _loader(order=order)
    seen = []
    for batch in loader:
        flat = [(seq, pick) for seq, pick in zip(batch.sequences, batch.picks)]
        last_items = torch.cat([seq.flatten()[pick] for seq, pick in flat])
        rows = batch.rows.numpy()
        assert torch.equal(batch.targets, torch.from_numpy(targets[rows]))
        assert torch.equal(batch.histories, torch.from_numpy(lists[rows]))
        assert (last_items.numpy() == lists[rows, lengths[rows] - 1]).all()
        seen.extend(rows.tolist())
    assert sorted(seen) == list(range(len(targets)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_no_step_is_left_out_however_small_it_is(batch_size):
    # The schedule of the learning rate counts on the number of steps.
    loader, _ = _loader(max_length=12, batch_size=batch_size)
    for _ in range(4):
        batches = list(loader)
        assert len(loader) - 1 <= len(batches) <= len(loader)
        assert max(map(len, batches)) < 2 * batch_size


def test_the_generator_decides_the_order():
    first, second = _loader(seed=3)[0], _loader(seed=3)[0]
    for a, b in zip(first, second):
        assert torch.equal(a.rows, b.rows)
    other = [batch.rows.tolist() for batch in _loader(seed=4)[0]]
    assert other != [batch.rows.tolist() for batch in _loader(seed=3)[0]]


def _in_turn(rows):
    """Rows ordered by their number in the sequence, as by time: no two rows of a user follow each other."""
    return np.lexsort((rows[0], np.arange(len(rows[0])) - np.searchsorted(rows[0], rows[0])))


def test_rows_of_a_user_share_windows_in_any_order():
    by_user = _loader(max_length=20)[0]
    assert by_user.order.tolist() == list(range(len(by_user.order)))
    for order in (_in_turn, _shuffled):
        loader = _loader(max_length=20, order=order)[0]
        assert sorted(loader.counts) == sorted(by_user.counts)
    # Rows of one length keep their order, which is that of their targets.
    assert len(_loader(order=_in_turn)[0].anchors) == len(_loader()[0].anchors)


def test_the_rows_per_window_are_logged(caplog):
    with caplog.at_level("INFO"):
        loader = _loader(max_length=20)[0]
    assert f"{len(loader.targets)} training rows share {len(loader.anchors)} windows" in caplog.text
