"""Full ranking in bounded memory, history masking and head/tail checks for RecBole's trainers.

:class:`EvaluationMixin` precedes RecBole's ``Trainer`` in the class order and inherits its ``evaluate``
loop. It ranks a batch in chunks of rows. It passes every chunk but the last to the collector, and
returns the last one to the loop, which passes it on.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import EvaluatorType, ModelType

from recbole_pref.data.sequences import lists_of
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.collector import PrefCollector, unseen_training_data
from recbole_pref.evaluation.metrics import empty_group_error, group_metrics_in, split_settings
from recbole_pref.scoring import chunk_rows

# Ranking reads a row of scores several times: on a CPU, larger chunks than in training are faster.
_CACHE_MB = 16.0
_FEWEST_ROWS = 32


def history_is_masked(config: Any) -> bool:
    """Return whether seen items are excluded from the ranking of the test set.

    ``mask_history`` decides for sequential models. The rankings of other models exclude them, in full and in
    sampled ranking, unless ``repeatable`` is set.
    """
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return bool(config["mask_history"])
    return not config["repeatable"]


def encodes(model: Any) -> bool:
    """Return whether a model has ``encode`` and ``score_items`` for its backbone."""
    has_methods = hasattr(model, "encode") and hasattr(model, "score_items")
    return has_methods and getattr(model, "backbone", model) is not None


def cut_pairs(rows: torch.Tensor, start: int, stop: int) -> slice:
    """Return the slice of ascending ``rows`` [P] that holds the row numbers start to stop - 1."""
    bounds = torch.searchsorted(rows, torch.tensor([start, stop], device=rows.device))
    return slice(int(bounds[0]), int(bounds[1]))


class SeenItems:
    """The training items of each user, as a compressed sparse row table.

    Args:
        dataset (Dataset): training split; for a sequential one the items are the targets and the
            contents of the item lists.
    """

    def __init__(self, dataset: Any) -> None:
        feat = dataset.inter_feat
        users, items = feat[dataset.uid_field].numpy(), feat[dataset.iid_field].numpy()
        list_field = dataset.iid_field + dataset.config["LIST_SUFFIX"]
        if list_field in feat:
            lists = lists_of(feat, list_field, dataset.item_list_length_field)
            if dataset.config["benchmark_filename"] is None:
                # RecBole's rows are all prefixes of a sequence: only its first item is not a target
                first = lists.lengths == 1
                lists, owners = lists.take(first), users[first.numpy()]
            else:
                owners = users
            rows, more_items = (part.numpy() for part in lists.elements())
            more_users = owners[rows]
            users = np.concatenate((users, more_users))
            items = np.concatenate((items, more_items))
        keys = np.sort(users[items > 0].astype(np.int64) * dataset.item_num + items[items > 0])
        keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique hashes, which is slower
        counts = np.bincount(keys // dataset.item_num, minlength=dataset.user_num)
        self.items = torch.from_numpy(keys % dataset.item_num)  # [pairs]
        self.start = torch.from_numpy(np.concatenate(([0], counts.cumsum())))  # [users + 1]

    def pairs(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (row, item) of every item seen by ``users`` [B]: two LongTensors [M]."""
        begin = self.start[users]
        lengths = self.start[users + 1] - begin  # [B]
        rows = torch.repeat_interleave(torch.arange(len(users)), lengths)  # [M]
        offset = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
        return rows, self.items[begin[rows] + offset]


def mask_seen(
    scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor, rows: torch.Tensor, items: torch.Tensor
) -> None:
    """Set scores of seen items to -inf in place, except those of the row's own targets.

    Args:
        scores: [B, n_items] changed in place.
        positive_u, positive_i: [P] targets as (row, item).
        rows, items: the seen (row, item) pairs, of one shape or broadcastable.
    """
    of_targets = scores[positive_u, positive_i]
    scores[rows, items] = -torch.inf
    scores[positive_u, positive_i] = of_targets


if TYPE_CHECKING:
    from recbole.trainer import Trainer as _Trainer  # the next class in the order
else:
    _Trainer = object


class EvaluationMixin(_Trainer):
    """Evaluation of RecBole-Pref's trainers; reads ``logits_memory_mb`` and ``mask_history``."""

    _seen: SeenItems | None = None
    _seen_dataset: Any = None
    _groups_logged = False

    def _make_collector(self) -> PrefCollector:
        """Return the collector; the trainer sets it as ``self.eval_collector``."""
        return PrefCollector(self.config)

    # -- the groups

    def check_groups(self, eval_data: Any, name: str = "evaluation") -> None:
        """Refuse group metrics for which ``eval_data`` holds no target, before training starts.

        Call it after ``self.eval_collector.data_collect(train_data)``. It logs the split and the share
        of tail targets.

        Args:
            eval_data (AbstractDataLoader): validation or test loader.
            name: name of the loader in messages.

        Raises:
            PrefError: a configured Tail or Head metric has no target in its group.
        """
        configured = group_metrics_in(self.config)
        if not eval_data or not any(configured.values()):
            return
        tail = self.eval_collector.tail_mask
        dataset = eval_data._dataset
        targets = dataset.inter_feat[dataset.iid_field]
        is_tail = tail[targets]
        share = is_tail.float().mean().item()
        self._log_split()
        self.logger.info(f"{name}: {len(is_tail)} targets, {share:.2%} of them tail items")
        present = {"tail": bool(is_tail.any()), "head": bool((~is_tail).any())}
        for group, metrics in configured.items():
            if metrics and not present[group]:
                where = f"the {len(is_tail)} {name} targets"
                raise empty_group_error(group, ", ".join(metrics), self.config, where)

    def _log_split(self) -> None:
        """Log the sizes of head and tail and their shares of the training interactions, once."""
        if self._groups_logged:
            return
        self._groups_logged = True
        counts, tail = self.eval_collector.train_count, self.eval_collector.tail_mask
        rule, ratio = split_settings(self.config)
        num_tail, num_items = int(tail.sum()), len(tail) - 1
        share = counts[tail].sum().item() / max(counts.sum().item(), 1)
        self.logger.info(
            f"head/tail split (tail_split={rule}, head_ratio={ratio}): "
            f"{num_items - num_tail} head items with {1 - share:.2%} of the training interactions, "
            f"{num_tail} tail items with {share:.2%}"
        )

    # -- evaluation

    def evaluate(self, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as RecBole does; see its ``Trainer.evaluate`` for the arguments.

        Raises:
            PrefError: a metric or ``mask_history`` needs training data that was not given.
        """
        if eval_data:
            self.eval_collector.reset()
            self.eval_collector.check_ready()
            if self._masks_history():
                self._seen_items()
        return super().evaluate(eval_data, *args, **kwargs)

    def _full_sort_batch_eval(
        self, batched_data: tuple
    ) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rank a batch in chunks of rows; same arguments and result as RecBole's method."""
        interaction, history_index, positive_u, positive_i = batched_data
        fast = encodes(self.model)
        num_rows = len(interaction)
        # For other models each chunk costs an encoder pass: use as few chunks as memory allows.
        cache_mb = _CACHE_MB if fast else float("inf")
        device_type = torch.device(self.device).type
        step = chunk_rows(self.tot_item_num, self.config["logits_memory_mb"], device_type, cache_mb, _FEWEST_ROWS)
        hidden: Any = None
        if fast:
            interaction = interaction.to(self.device)
            hidden = self.model.encode(interaction)  # [B, H]
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            whole = stop - start == num_rows
            rows = interaction if whole else interaction[start:stop]
            targets = slice(None) if whole else cut_pairs(positive_u, start, stop)
            chunk_u, chunk_i = positive_u[targets] - start, positive_i[targets]
            seen = history_index
            if seen is not None and not whole:
                cut = cut_pairs(seen[0], start, stop)
                seen = (seen[0][cut] - start, seen[1][cut])
            if fast:
                scores = self.model.score_items(hidden[start:stop], rows)  # [c, n_items]
                self._refuse_nan(scores)
                scores[:, 0] = -torch.inf
                if seen is not None:
                    scores[seen] = -torch.inf
            else:
                _, scores, _, _ = super()._full_sort_batch_eval((rows, seen, chunk_u, chunk_i))
                self._refuse_nan(scores)
            if seen is None and self._masks_history():
                self._mask_history(scores, rows, None, chunk_u, chunk_i)
            if stop < num_rows:
                self.eval_collector.eval_batch_collect(scores, rows, chunk_u, chunk_i)
        return rows, scores, chunk_u, chunk_i

    def _refuse_nan(self, scores: torch.Tensor) -> None:
        """Refuse scores [c, n_items] that cannot be ranked; -inf excludes an item.

        Raises:
            PrefError: a score is NaN or +inf.
        """
        if not scores.amax() < torch.inf:
            raise PrefError(
                f"model {self.config['model']}: the scores of the evaluation are not finite, so the parameters "
                "are not finite either; lower learning_rate or set clip_grad_norm."
            )

    def _neg_sample_batch_eval(
        self, batched_data: tuple
    ) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rank the sampled candidates of a batch; seen items are excluded when history is masked."""
        interaction, scores, positive_u, positive_i = super()._neg_sample_batch_eval(batched_data)
        self._refuse_nan(scores)
        if self.config["eval_type"] == EvaluatorType.RANKING and self._masks_history():
            self._mask_history(scores, interaction, batched_data[1], positive_u, positive_i)
        return interaction, scores, positive_u, positive_i

    def _masks_history(self) -> bool:
        """Return whether to mask seen items here: RecBole masks them for general models."""
        sequential = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        return bool(self.config["mask_history"]) and sequential

    def _mask_history(
        self,
        scores: torch.Tensor,
        interaction: Interaction,
        row_index: torch.Tensor | None,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        """Mask the users' training items and the items of the rows' lists, but no target.

        Args:
            scores: [B, n_items] changed in place.
            interaction: N rows.
            row_index: [N] row of ``scores`` of each interaction row, ascending;
                None when they are the same.
            positive_u, positive_i: [P] targets.
        """
        users = interaction[self.config["USER_ID_FIELD"]].cpu()  # [N]
        lines = torch.arange(len(users)) if row_index is None else row_index.cpu()  # [N]
        if row_index is not None:
            users = users[torch.searchsorted(lines, torch.arange(len(scores)))]  # [B]
        rows, items = self._seen_items().pairs(users)  # [M]
        in_lists = interaction[self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"]].cpu()  # [N, L]
        rows = torch.cat((rows, lines.repeat_interleave(in_lists.shape[1])))
        items = torch.cat((items, in_lists.reshape(-1)))
        mask_seen(
            scores,
            positive_u.to(scores.device),
            positive_i.to(scores.device),
            rows.to(scores.device),
            items.to(scores.device),
        )

    def _seen_items(self) -> SeenItems:
        """Return the table of training items per user, built once per training data set."""
        dataset = self.eval_collector.train_dataset
        if dataset is None:
            raise unseen_training_data("mask_history=True")
        if self._seen is None or self._seen_dataset is not dataset:
            self._seen, self._seen_dataset = SeenItems(dataset), dataset
        return self._seen
