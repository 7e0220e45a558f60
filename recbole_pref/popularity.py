"""Training counts, the head/tail split and the weights of rows: one definition for all.

Counts come from training interactions only. RecBole's ``item_counter`` counts the targets of its
augmented rows and so misses the first item of every user; ``data.sequences.train_counts`` adds it.
"""

from collections.abc import Callable

import torch

from recbole_pref.errors import PrefError, suggest

# Value of ``tail_split`` to a description of the head items, for tables and figures.
HEAD_RULES = {
    "items": "the most popular {:.4g}% of the items",
    "interactions": "the most popular items with {:.4g}% of the interactions",
}


def count_items(targets: torch.Tensor, first_items: torch.Tensor, n_items: int) -> torch.Tensor:
    """Return how often each item occurs in training.

    Args:
        targets: [N] target items of the training rows.
        first_items: [M] first item of each user, which is not the target of any row.
        n_items: items with padding.

    Returns:
        Tensor: [n_items] int64.
    """
    return torch.bincount(torch.cat([targets, first_items]), minlength=n_items)


def head_tail_split(counts: torch.Tensor, rule: str, head_ratio: float) -> torch.Tensor:
    """Return which items are head.

    By ``items`` the head is the most popular ``head_ratio`` of all catalogue items, rounded (0.2 is
    the Pareto rule, 0.8 the value in LPO4Rec's code); by ``interactions`` it is the fewest items
    that hold at least ``head_ratio`` of the training interactions. Equal counts are ordered by item
    id, the smaller one first. Items that do not occur in training are tail items.

    Args:
        counts: [n_items] training counts, index 0 is padding.
        rule: ``items`` or ``interactions``.
        head_ratio: in (0, 1).

    Returns:
        Tensor: [n_items] bool, False for padding.

    Raises:
        PrefError: unknown rule, no training interactions, or an empty head or tail.
    """
    if rule not in HEAD_RULES:
        raise PrefError(
            f"tail_split={rule!r} is not accepted: set it to items or interactions.{suggest(rule, HEAD_RULES)}"
        )
    real = counts[1:]
    total = int(real.sum())
    if total == 0:
        raise PrefError(
            f"tail_split={rule!r} has no training interactions to count: use a data set whose "
            "training split is not empty."
        )
    order = torch.argsort(real, descending=True, stable=True)
    if rule == "items":
        size = round(head_ratio * len(real))
    else:
        # Dividing, not multiplying: 7 of 100 then equals a head_ratio of 0.07 to the last bit.
        share = real[order].cumsum(0).double() / total
        size = int((share < head_ratio).sum()) + 1
    size = min(size, int((real > 0).sum()))
    if not 0 < size < len(real):
        which = "head" if size == 0 else "tail"
        raise PrefError(
            f"head_ratio={head_ratio} with tail_split={rule!r} leaves no {which} among {len(real)} "
            f"items: {'raise' if size == 0 else 'lower'} head_ratio."
        )
    head = torch.zeros_like(counts, dtype=torch.bool)
    head[order[:size] + 1] = True
    return head


def head_in_words(rule: str, head_ratio: float) -> str:
    """Return a description of the head items for tables and figures; the others are tail items.

    Args:
        rule, head_ratio: see :func:`head_tail_split`.
    """
    return HEAD_RULES[rule].format(100 * head_ratio)


def sample_weights(
    is_tail: torch.Tensor,
    alpha_head: float,
    alpha_tail: float,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the weights of the rows of a batch: softmax of alpha over the batch (LPO4Rec eq. 17).

    They sum to 1. A batch of only head rows or only tail rows is averaged. Otherwise a tail row weighs
    exp(alpha_tail - alpha_head) times as much as a head row.

    Args:
        is_tail: [B] bool, whether the target is a tail item.
        alpha_head, alpha_tail: LPO4Rec uses 0 and 1.
        total: sums a tensor over the processes that share the batch, so that their weights together sum to 1.

    Returns:
        Tensor: [B] float32.
    """
    alphas = torch.full(is_tail.shape, float(alpha_head), device=is_tail.device)
    alphas = alphas.masked_fill(is_tail, float(alpha_tail))
    if total is None:
        return torch.softmax(alphas, dim=0)
    n_tail = is_tail.sum()
    n_head, n_tail = total(torch.stack([is_tail.numel() - n_tail, n_tail])).float().log()
    return torch.exp(alphas - torch.logaddexp(n_head + alpha_head, n_tail + alpha_tail))
