"""The tables behind RecBole's metrics, collected in one pass with one top-k per batch.

RecBole's collector ranks twice, builds a user-by-item label matrix and, for GAUC, sorts whole rows.
:class:`PrefCollector` compares the top-k ids with the targets. Its tables equal RecBole's (the top-k
call is the same, so ties are broken in the same way), and it adds some:

==================  ==========================  ====================================================
table               shape                       content
==================  ==========================  ====================================================
rec.items           [U, K]                      the top-K item ids
rec.topk            [U, K + 1]                  hit flags, then the number of targets
rec.topk_tail       [U, K + 1]                  the same for tail targets; also rec.topk_head
rec.above           [targets]                   negatives ranked above each target (WPAUC)
rec.meanrank        [U, 3]                      rank sum, list length, number of targets (GAUC)
data.train_count    [n_items]                   training interactions per item
data.tail_mask      [n_items]                   True for tail items
==================  ==========================  ====================================================

U counts the rows of the evaluation (users, or user-target rows of a sequential data set), K is
``max(topk)``.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator.collector import Collector, DataStruct
from recbole.utils import EvaluatorType

from recbole_pref.data.sequences import train_counts
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import GROUPS, split_settings
from recbole_pref.popularity import head_tail_split

RANKING_TABLES = ("rec.items", "rec.topk", "rec.topk_tail", "rec.topk_head", "rec.above")
# The values that collect_users stores for each target: see PrefCollector.rows.
ROWS = ("user", "target", "rank", "tail_gap", "top", "first")
TOP = 10  # recommended items stored per row
TAIL_SHARE_AT = 10


def unseen_training_data(what: str) -> PrefError:
    """Return the PrefError of an evaluation that needs training data and has none."""
    return PrefError(
        f"{what}: the evaluation needs the training data, which this trainer has not seen; call "
        "trainer.eval_collector.data_collect(train_data) before evaluate."
    )


def distinct_targets(
    positive_u: torch.Tensor, positive_i: torch.Tensor, num_rows: int, num_items: int
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return the (row, item) pairs sorted by row, without duplicates, and whether row r has exactly the target r.

    Args:
        positive_u, positive_i: [P] row and item of each target.
        num_rows, num_items: shape of the score matrix.

    Returns:
        tuple: rows [P'], items [P'] and the flag.
    """
    rows = torch.arange(num_rows, device=positive_u.device)
    if positive_u.shape == rows.shape and torch.equal(positive_u, rows):
        return positive_u, positive_i, True
    keys = torch.unique(positive_u * num_items + positive_i)
    return keys // num_items, keys % num_items, False


def hit_table(
    topk_items: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor, num_items: int, single: bool
) -> torch.Tensor:
    """Return which listed items are targets of their row, [B, K] bool.

    Args:
        topk_items: [B, K] listed items.
        positive_u, positive_i: [P] targets as (row, item).
        num_items: number of items with padding.
        single: whether each row has one target, in the order of the rows.
    """
    if single:
        return topk_items == positive_i.unsqueeze(1)
    rows = torch.arange(len(topk_items), device=topk_items.device).unsqueeze(1)  # [B, 1]
    return torch.isin(rows * num_items + topk_items, positive_u * num_items + positive_i)


def users_of_rows(interaction: Interaction, config: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the user of each row that is ranked: LongTensor [B].

    Args:
        interaction: the rows, or their (user, candidate) pairs grouped by user when candidates are ranked.
        config: names the field of users.
        rows: [B, ...] any tensor of the rows, for their number and device.
    """
    users = interaction[config["USER_ID_FIELD"]].to(rows.device)
    return users if len(users) == len(rows) else torch.unique_consecutive(users)


def pad_by_row(
    values: torch.Tensor, rows: torch.Tensor, num_rows: int, fill: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrange flat values in a table with one line per row.

    Args:
        values: [P] values, grouped by row.
        rows: [P] ascending row of each value.
        num_rows: number of rows.
        fill: value after the end of shorter rows.

    Returns:
        tuple: the table [num_rows, widest], and the column of each value [P].
    """
    lengths = torch.bincount(rows, minlength=num_rows)
    column = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    table = values.new_full((num_rows, int(lengths.max())), fill)
    table[rows, column] = values
    return table, column


def count_at_least(sorted_desc: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Count, per row, the values of ``sorted_desc`` [B, M] that are >= each threshold [B, P]."""
    return torch.searchsorted(-sorted_desc, -thresholds, right=True)


def negatives_above(
    scores: torch.Tensor,
    topk_items: torch.Tensor,
    hits: torch.Tensor,
    positive_u: torch.Tensor,
    positive_i: torch.Tensor,
    single: bool,
) -> torch.Tensor:
    """Count the negatives ranked above each target; counts above K are reported as K.

    A listed target is ranked as in ``topk_items``, ties included. For a target outside the list every
    negative with at least the same score counts.

    Args:
        scores: [B, n_items] scores, -inf for excluded items.
        topk_items: [B, K] the list.
        hits: [B, K] which listed items are targets.
        positive_u, positive_i: [P] distinct targets sorted by row.
        single: one target per row.

    Returns:
        Tensor: [P] int64, in [0, K].
    """
    k = topk_items.shape[1]
    if single:
        return torch.where(hits.any(1), hits.int().argmax(1), k)
    listed = topk_items[positive_u] == positive_i.unsqueeze(1)  # [P, K]
    rank = listed.int().argmax(1)  # from 0
    above = rank - hits.cumsum(1)[positive_u, rank] + 1
    outside = ~listed.any(1)
    if outside.any():
        num_rows = len(scores)
        target_scores = scores[positive_u, positive_i]  # [P]
        targets, slot = pad_by_row(target_scores, positive_u, num_rows, -torch.inf)  # [B, widest]
        # K + widest values hold at least K negatives, so cutting the list only affects counts above K
        width = min(k + targets.shape[1], scores.shape[1])
        best = torch.topk(scores, width, dim=-1).values
        better = count_at_least(best, targets)
        better -= count_at_least(targets.sort(dim=1, descending=True).values, targets)
        above = torch.where(outside, better[positive_u, slot], above)
    return above.clamp(0, k)


def mean_ranks(scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor, single: bool) -> torch.Tensor:
    """Return the table for GAUC, [B, 3]: sum of the targets' average ranks, list length, targets.

    The average rank of a score is (number greater) + (number equal + 1) / 2. The list length is the
    number of items above the row's lowest score, which is -inf for excluded items. Both are as in
    RecBole; a row with one target is not sorted.
    """
    lengths = (scores > scores.amin(dim=1, keepdim=True)).sum(1)
    num_rows = len(scores)
    if single:
        targets = scores.gather(1, positive_i.unsqueeze(1))  # [B, 1]
        greater = (scores > targets).sum(1)
        equal = (scores == targets).sum(1)
        rank_sum = greater + (equal + 1) * 0.5
    else:
        targets, slot = pad_by_row(scores[positive_u, positive_i], positive_u, num_rows, torch.inf)  # [B, widest]
        ascending = -scores.sort(dim=1, descending=True).values
        greater = torch.searchsorted(ascending, -targets)
        at_least = torch.searchsorted(ascending, -targets, right=True)
        ranks = (greater + at_least + 1)[positive_u, slot] * 0.5
        rank_sum = ranks.new_zeros(num_rows).index_add_(0, positive_u, ranks)
    counts = torch.bincount(positive_u, minlength=num_rows)
    return torch.stack((rank_sum.float(), lengths.float(), counts.float()), dim=1)


class PrefCollector(Collector):
    """RecBole's collector with one top-k per batch, head and tail tables and per-user records.

    Attributes:
        collect_users (bool): whether to store ``rows``, the basis of :meth:`user_frame`; setting ``collect_users``.
        rows (dict of ndarray): of the last evaluation with ``collect_users``, an entry per target, R in all:
            ``user`` [R] and ``target`` [R] internal ids, ``rank`` [R] from 1 in the full ranking (ties as in the
            evaluated list), ``tail_gap`` [R] mean softmax probability of the tail items less that of all items,
            ``top`` [R, 10] recommended items, padded with 0, ``first`` [R] whether the target is the first of its
            row.
        train_dataset (Dataset): training data given to :meth:`data_collect`, else None.
        tail_share (float): share of tail items among the first 10 of the lists of the last evaluation,
            None without lists, without training data, or when the data have no head or no tail.
    """

    topk: Sequence[int]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.collect_users = bool(config["collect_users"])
        self.train_dataset: Any = None
        self.tail_share: float | None = None
        self._split: tuple[torch.Tensor, torch.Tensor] | None = None
        self._parts: dict[str, list[torch.Tensor]] = {}
        self.rows: dict[str, np.ndarray] = {}

    # -- resources of the training data

    def data_collect(self, train_data: Any) -> None:
        """Collect the training counts for the metrics, and check ``topk`` against the catalogue.

        Args:
            train_data (AbstractDataLoader): loader of the training split.

        Raises:
            PrefError: ``topk`` exceeds the number of items.
        """
        super().data_collect(train_data)
        dataset = getattr(train_data, "_dataset", None) or train_data.dataset
        if dataset is not self.train_dataset:
            self.train_dataset, self._split = dataset, None
        if self.config["eval_type"] == EvaluatorType.RANKING:
            self._check_topk(dataset.num(self.config["ITEM_ID_FIELD"]))
            with suppress(PrefError):  # group metrics report the error; otherwise tail_share is omitted
                self._counts_and_tail()
        if self.register.need("data.train_count"):
            self.data_struct.set("data.train_count", self.train_count)
        if self.register.need("data.tail_mask"):
            self.data_struct.set("data.tail_mask", self.tail_mask)

    def _check_topk(self, num_items: int) -> None:
        if max(self.topk) >= num_items:
            raise PrefError(
                f"topk={max(self.topk)} is more than the {num_items - 1} items of the data set: "
                "set topk to smaller numbers."
            )

    def _counts_and_tail(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._split is None:
            if self.train_dataset is None:
                raise unseen_training_data("head and tail")
            counts = train_counts(self.train_dataset).cpu()
            rule, ratio = split_settings(self.config)
            head = head_tail_split(counts, rule, ratio)
            tail = ~head
            tail[0] = False
            self._split = counts, tail
        return self._split

    @property
    def train_count(self) -> torch.Tensor:
        """Training interactions per item, 0 for the padding item: [n_items] int64."""
        return self._counts_and_tail()[0]

    @property
    def tail_mask(self) -> torch.Tensor:
        """True for tail items, False for head items and padding: [n_items] bool."""
        return self._counts_and_tail()[1]

    # -- one batch

    def check_ready(self) -> None:
        """Refuse an evaluation whose metrics need training data that was not collected.

        Raises:
            PrefError: names the call that collects it; ``fit`` calls it itself.
        """
        needs = [name for name in vars(self.register) if name.startswith("data.")]
        groups = [name for name in GROUPS if self.register.need(f"rec.topk_{name}")]
        if groups and self.train_dataset is None:
            raise unseen_training_data(f"metrics by {' and '.join(groups)}")
        for name in needs:
            if name != "data.label" and name not in self.data_struct:
                raise unseen_training_data(f"metrics that use '{name}'")

    def reset(self) -> None:
        """Discard the results of batches, for instance those of an interrupted evaluation."""
        self._parts = {}

    def _add(self, name: str, value: torch.Tensor) -> None:
        self._parts.setdefault(name, []).append(value.detach())

    def eval_batch_collect(
        self, scores_tensor: torch.Tensor, interaction: Interaction, positive_u: torch.Tensor, positive_i: torch.Tensor
    ) -> None:
        """Collect the ranking of a batch.

        Args:
            scores_tensor: [B, n_items] scores, -inf for excluded items; [N] for value metrics.
            interaction: rows of the batch (candidates, under sampled ranking).
            positive_u: [P] row of each target.
            positive_i: [P] item of each target.
        """
        if self.config["eval_type"] != EvaluatorType.RANKING:
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        num_rows, num_items = scores_tensor.shape
        device = scores_tensor.device
        positive_u, positive_i, single = distinct_targets(
            positive_u.to(device), positive_i.to(device), num_rows, num_items
        )
        if self.register.need("rec.meanrank"):
            self._add("rec.meanrank", mean_ranks(scores_tensor, positive_u, positive_i, single))
        if not self.collect_users and not any(map(self.register.need, RANKING_TABLES)):
            return
        self._check_topk(num_items)
        values, items = torch.topk(scores_tensor, max(self.topk), dim=-1)  # [B, K]
        if self.register.need("rec.items"):
            self._add("rec.items", items)
        hits = hit_table(items, positive_u, positive_i, num_items, single)  # [B, K]
        if self.register.need("rec.topk"):
            self._add("rec.topk", self._topk_table(hits, positive_u))
        if self.register.need("rec.above"):
            above = negatives_above(scores_tensor, items, hits, positive_u, positive_i, single)
            self._add("rec.above", above)
        groups = [group for group in GROUPS if self.register.need(f"rec.topk_{group}")]
        if groups or self._split is not None:
            tail = self.tail_mask.to(device)
            ranked = values[:, :TAIL_SHARE_AT] > -torch.inf  # with few candidates the list ends with excluded items
            n_tail = (tail[items[:, :TAIL_SHARE_AT]] & ranked).sum(1)
            self._add("tail_share", n_tail / ranked.sum(1).clamp(min=1))
            for group in groups:
                members = tail if group == "tail" else ~tail
                of_group = positive_u[members[positive_i]]
                self._add(f"rec.topk_{group}", self._topk_table(hits & members[items], of_group))
        if self.collect_users:
            self._add_rows(scores_tensor.float(), interaction, items, positive_u, positive_i)

    @staticmethod
    def _topk_table(hits: torch.Tensor, positive_u: torch.Tensor) -> torch.Tensor:
        """Return hits [B, K] with the number of targets per row as last column: [B, K + 1] int32."""
        counts = torch.bincount(positive_u, minlength=len(hits))
        return torch.cat((hits.int(), counts.int().unsqueeze(1)), dim=1)

    def _add_rows(
        self,
        scores: torch.Tensor,
        interaction: Interaction,
        items: torch.Tensor,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        """Store ``rows`` of a batch: scores [B, n_items], the list ``items`` [B, K], targets [P] sorted by row."""
        target_scores = scores[positive_u, positive_i].unsqueeze(1)  # [P, 1]
        listed = items[positive_u] == positive_i.unsqueeze(1)  # [P, K]
        outside = ((scores[positive_u] > target_scores).sum(1) + 1).clamp(min=items.shape[1] + 1)
        probability = torch.softmax(scores, dim=1)
        tail = self.tail_mask.to(scores.device)
        gap = probability[:, tail].mean(1) - probability[:, 1:].mean(1)  # [B]
        best = scores.topk(min(TOP, scores.shape[1] - 1), dim=1)
        top = best.indices.masked_fill(best.values == -torch.inf, 0)  # [B, TOP]
        self._add("user", users_of_rows(interaction, self.config, scores)[positive_u])
        self._add("target", positive_i)
        self._add("rank", torch.where(listed.any(1), listed.int().argmax(1) + 1, outside))
        self._add("tail_gap", gap[positive_u])
        self._add("top", top[positive_u])
        self._add("first", positive_u.diff(prepend=positive_u.new_tensor([-1])) != 0)

    # -- the end of an evaluation

    def get_data_struct(self) -> DataStruct:
        """Return all tables on the CPU and discard the results of batches.

        Returns:
            DataStruct: the tables; values that are not tensors are returned unchanged.
        """
        self.tail_share = None
        for name, parts in self._parts.items():
            table = torch.cat(parts).cpu()
            if name == "tail_share":
                self.tail_share = table.mean().item()
            elif name in ROWS:
                self.rows[name] = table.numpy()
            else:
                self.data_struct.set(name, table)
        self._parts = {}
        returned = DataStruct()
        for name, value in list(self.data_struct._data_dict.items()):
            returned.set(name, value.cpu() if isinstance(value, torch.Tensor) else value)
            if name.startswith("rec.") or name == "data.label":
                del self.data_struct[name]
        return returned

    def user_frame(self) -> pd.DataFrame:
        """Return the last evaluation row by row.

        Returns:
            DataFrame: ``user_id`` and ``item_id`` (internal ids; of several targets the one with the best
            rank, or the first when none is in the list), ``rank`` (from 1 in the top ``max(topk)``, 0
            when not in it), ``is_tail``.

        Raises:
            PrefError: no values were stored.
        """
        if not self.rows:
            raise PrefError(
                "collect_users=False stores no values per user: set collect_users: True and evaluate again."
            )
        last = max(self.topk)
        listed = np.minimum(self.rows["rank"], last + 1)
        best = pd.Series(listed).groupby(self.rows["first"].cumsum()).idxmin().to_numpy()
        items, ranks = self.rows["target"][best], listed[best]
        return pd.DataFrame(
            {
                "user_id": self.rows["user"][best],
                "item_id": items,
                "rank": np.where(ranks <= last, ranks, 0),
                "is_tail": self.tail_mask.numpy()[items],
            }
        )
