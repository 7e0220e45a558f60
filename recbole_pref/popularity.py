"""Training counts, the head/tail split and the weights of rows: one definition for all.

Counts come from training interactions only. RecBole's ``item_counter`` counts the targets of its
augmented rows and so misses the first item of every user; ``data.sequences.train_counts`` adds it.
"""

import torch

from recbole_pref.errors import PrefError, suggest

# Name of ``tail_split`` to what head items are, for tables and pictures.
HEAD_RULES = {
    "items": "the most popular {:.4g}% of the items",
    "interactions": "the most popular items with {:.4g}% of the interactions",
}


def count_items(targets, first_items, n_items):
    """Return how often each item occurs in training.

    Args:
        targets (Tensor): [N] target items of the training rows.
        first_items (Tensor): [M] first item of each user, which is no row's target.
        n_items (int): items with padding.

    Returns:
        Tensor: [n_items] int64.
    """
    return torch.bincount(torch.cat([targets, first_items]), minlength=n_items)


def head_tail_split(counts, rule, head_ratio):
    """Return which items are head.

    By ``items`` the head is the most popular ``head_ratio`` of all catalogue items, rounded (0.2 is
    the Pareto reading, 0.8 what LPO4Rec's code did); by ``interactions`` it is the fewest items
    that hold at least ``head_ratio`` of the training interactions. Equal counts are ordered by item
    id, the smaller one first. Items never seen in training are tail.

    Args:
        counts (Tensor): [n_items] training counts, index 0 is padding.
        rule (str): ``items`` or ``interactions``.
        head_ratio (float): in (0, 1).

    Returns:
        Tensor: [n_items] bool, False for padding.

    Raises:
        PrefError: unknown rule, no training interactions, or an empty head or tail.
    """
    if rule not in HEAD_RULES:
        raise PrefError(
            f"tail_split={rule!r} is not accepted: set it to items or interactions."
            f"{suggest(rule, HEAD_RULES)}"
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


def head_in_words(rule, head_ratio):
    """Return what head items are, for tables and pictures: str. The tail are the others.

    Args:
        rule, head_ratio: as :func:`head_tail_split` takes them.
    """
    return HEAD_RULES[rule].format(100 * head_ratio)


def sample_weights(is_tail, alpha_head, alpha_tail, total=None):
    """Return the weights of the rows of a batch: softmax of alpha over the batch (LPO4Rec eq. 17).

    They sum to 1, as those of an ordinary mean: a batch of head rows alone or of tail rows alone is
    averaged; otherwise a tail row weighs exp(alpha_tail - alpha_head) times a head row.

    Args:
        is_tail (Tensor): [B] bool, whether the target is a tail item.
        alpha_head, alpha_tail (float): LPO4Rec uses 0 and 1.
        total (callable, optional): sums a tensor over the processes that share the batch; their weights together
            then sum to 1.

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
