"""Scores over the catalogue: in chunks, never stored whole.

``catalogue_loss`` is a fused linear cross-entropy that also serves every preference loss: for a chunk
of rows it computes the scores of all items once, takes the normalizer, lets the sampler pick
negatives from them, asks for the loss of the rows, and turns the few gradients that come back
(normalizer, positive, negatives) into gradients of representations and item embeddings, all before
the next chunk. Memory beyond inputs and gradients: O(chunk x items). Three matrix products per row, as
plain cross-entropy.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_DEFAULT_MB = {"cpu": 8.0}
_DEFAULT_MB_ACCELERATOR = 1024.0
# A product of fewer rows than this reads the item matrix too often, whatever fits the cache.
_FEWEST_ROWS = 64
# Numbers of item vectors that are gathered at a time, 1 MB: they are read again at once, from the cache.
_GATHERED = 2**18


def chunk_rows(n_items, memory_mb=None, device_type="cpu"):
    """Return how many rows of scores over ``n_items`` fit into ``memory_mb`` megabytes (at least 1).

    ``None`` takes the size that keeps a chunk in the CPU's cache, or 1 GB on an accelerator, and at
    least 64 rows: 256 MB at a million items.
    """
    fewest = 1
    if memory_mb is None:
        memory_mb, fewest = _DEFAULT_MB.get(device_type, _DEFAULT_MB_ACCELERATOR), _FEWEST_ROWS
    return max(fewest, int(memory_mb * 2**20 / (4 * n_items)))


def item_scores(hidden, item_emb, ids, repeat_bias=None, history=None):
    """Return the scores of given items: dot products, and the repeat bias for items of the history.

    Args:
        hidden (Tensor): [R, H].
        item_emb (Tensor): [n_items, H].
        ids (Tensor): [R, M] item ids, none of them 0.
        repeat_bias (Tensor or None): scalar.
        history (Tensor or None): [R, L] item ids, 0 for none.

    Returns:
        Tensor: [R, M] float32 scores.
    """
    scores = _ItemScores.apply(hidden.to(item_emb.dtype), item_emb, ids).float()  # [R, M]
    if repeat_bias is None:
        return scores
    return scores + repeat_bias * (ids.unsqueeze(2) == history.unsqueeze(1)).any(dim=2)


class _ItemScores(torch.autograd.Function):
    """Dot products [R, M] of representations with their items, a third of the time of a batched product on the CPU.

    Gathered vectors [R, M, H] are neither kept for the gradient nor built again for it: with the gradients of the
    scores as weights, that of a representation is a bag of item vectors, and that of the items is the bag's own.
    """

    @staticmethod
    def forward(ctx, hidden, item_emb, ids):
        ctx.save_for_backward(hidden, item_emb, ids)
        rows = max(1, _GATHERED // (ids.shape[1] * hidden.shape[1])) if ids.device.type == "cpu" else len(ids) or 1
        parts = zip(hidden.split(rows), ids.split(rows))
        return torch.cat([F.embedding(part, item_emb).mul_(h.unsqueeze(1)).sum(-1) for h, part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_scores):
        hidden, item_emb, ids = ctx.saved_tensors
        with torch.enable_grad():
            table = item_emb.detach().requires_grad_()
            bags = F.embedding_bag(ids, table, per_sample_weights=grad_scores.contiguous(), mode="sum")
            (grad_items,) = torch.autograd.grad(bags, table, hidden)
        return bags.detach(), grad_items, None


def distinct_items(items):
    """Return rows of item ids [R, L] sorted, with 0 in place of repetitions."""
    items = items.sort(dim=1).values
    again = items[:, 1:] == items[:, :-1]
    items[:, 1:] = items[:, 1:].masked_fill(again, 0)
    return items


def add_to_items(scores, items, value):
    """Add a value to the scores of some items, in place and once, however often an item is named.

    Args:
        scores (Tensor): [R, n_items].
        items (Tensor): [R, L] item ids, 0 for none.
        value (Tensor): scalar.
    """
    kept = scores.gather(1, items)
    scores.scatter_(1, items, torch.where(items > 0, kept + value, kept))


def chunk_scores(hidden, item_emb, rows, repeat_bias=None, history=None):
    """Return the scores of all items for a slice of the rows, without a loss: [c, n_items] float32.

    Args:
        hidden, item_emb, repeat_bias, history: as in ``catalogue_loss``.
        rows (slice): which rows.
    """
    scores = torch.mm(hidden[rows], item_emb.t().to(hidden.dtype)).float()
    if repeat_bias is not None:
        add_to_items(scores, history[rows], repeat_bias)
    return scores


def log_normalizer(scores):
    """Return log-sum-exp over the items and the softmax, sharing the work.

    Args:
        scores (Tensor): [R, n_items] float32.

    Returns:
        tuple: log_z [R], probabilities [R, n_items].
    """
    probs = torch.softmax(scores, dim=-1)  # [R, n]
    # The largest entry tells the normalizer without a second exponential: p_max >= 1 / n.
    log_z = scores.amax(dim=-1) - probs.amax(dim=-1).log()  # [R]
    return log_z, probs


def without_padding(log_z, padding_score):
    """Take item 0 out of a normalizer: log(exp(log_z) - exp(padding_score)).

    Args:
        log_z (Tensor): [R] log-sum-exp over all columns, as RecBole's cross-entropy has it.
        padding_score (Tensor): [R] score of column 0.
    """
    # Clamped so that a padding item that holds all the mass gives a large, finite loss.
    share = (padding_score - log_z).clamp(max=-1e-6)
    return log_z + torch.log1p(-share.exp())


class _CatalogueLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, item_emb, row_loss, sample, row_weights, chunk, repeat_bias, history):
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        # Half precision ends at 6e-8, about a gradient per item of a mean over rows: rows then count 1.
        scale = None
        if dtype == torch.float16:
            scale = row_weights.max().clamp_min(torch.finfo(row_weights.dtype).tiny).reciprocal()
        grad_hidden = torch.empty_like(hidden, dtype=total.dtype)
        grad_items = torch.zeros_like(item_emb)
        grad_bias = None if repeat_bias is None else torch.zeros_like(repeat_bias)
        with torch.autocast(hidden.device.type, enabled=False):
            items = item_emb.to(dtype)
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, min(start + chunk, hidden.shape[0]))
                states = hidden[rows].to(dtype)  # [c, H]
                scores = torch.mm(states, items.t())  # [c, n]
                scores = scores if scores.dtype == torch.float64 else scores.float()
                if repeat_bias is not None:
                    seen = history[rows]
                    add_to_items(scores, seen, repeat_bias)
                log_z, probs = log_normalizer(scores)
                ids = sample(rows, scores, log_z)  # [c, 2 + K]: padding, positive, negatives
                leaves = [log_z.requires_grad_(), scores.gather(1, ids).requires_grad_()]
                with torch.enable_grad():
                    loss = (row_loss(rows, *leaves) * row_weights[rows]).sum()
                grad_z, grad_picked = torch.autograd.grad(loss, leaves, allow_unused=True)
                total += loss.detach()
                grad_scores = probs.mul_(grad_z.unsqueeze(1)) if grad_z is not None else probs.zero_()
                if grad_picked is not None:
                    grad_scores.scatter_add_(1, ids, grad_picked)
                if repeat_bias is not None:
                    grad_bias += grad_scores.gather(1, seen).masked_fill_(seen == 0, 0.0).sum()
                if scale is not None:
                    grad_scores *= scale
                grad_scores = grad_scores.to(dtype)
                grad_hidden[rows] = torch.mm(grad_scores, items).to(total.dtype)
                if grad_items.dtype == dtype:
                    grad_items.addmm_(grad_scores.t(), states)
                else:
                    grad_items += torch.mm(grad_scores.t(), states)
            if scale is not None:
                grad_hidden /= scale
                grad_items /= scale
        ctx.save_for_backward(grad_hidden, grad_items, grad_bias)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_hidden, grad_items, grad_bias = ctx.saved_tensors
        of_bias = None if grad_bias is None else grad_bias * grad_total
        grad_hidden = (grad_hidden * grad_total).to(ctx.hidden_dtype)
        return grad_hidden, grad_items * grad_total, None, None, None, None, of_bias, None


def catalogue_loss(hidden, item_emb, row_loss, sample, row_weights, chunk, repeat_bias=None, history=None):
    """Return the weighted sum of row losses that need the normalizer over the catalogue.

    Args:
        hidden (Tensor): [R, H] representations.
        item_emb (Tensor): [n_items, H] item embeddings; row 0 is padding.
        row_loss (callable): ``(rows, log_z [c], picked [c, 2 + K]) -> [c]`` losses of a slice of rows;
            ``picked`` are the scores of the ids that ``sample`` returned.
        sample (callable): ``(rows, scores [c, n_items], log_z [c]) -> [c, 2 + K]`` item ids.
        row_weights (Tensor): [R] weights, constants for the gradient.
        chunk (int): rows whose scores are held at a time.
        repeat_bias (Tensor or None): scalar, added to the scores of a row's history.
        history (Tensor or None): [R, L] distinct item ids, 0 for none.

    Returns:
        Tensor: scalar; gradients flow to ``hidden``, ``item_emb`` and ``repeat_bias``.
    """
    return _CatalogueLoss.apply(
        hidden, item_emb, row_loss, sample, row_weights, chunk, repeat_bias, history
    )


@torch.no_grad()
def sample_over_catalogue(hidden, item_emb, sample, chunk, repeat_bias=None, history=None):
    """Draw negatives from the scores of all items, chunk by chunk, without a loss.

    Args:
        hidden, item_emb, repeat_bias, history: as in ``catalogue_loss``.
        sample (callable): ``(rows, scores [c, n_items]) -> [c, K]``.
        chunk (int): rows whose scores are held at a time.

    Returns:
        Tensor: [R, K] item ids.
    """
    drawn = []
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, min(start + chunk, hidden.shape[0]))
        drawn.append(sample(rows, chunk_scores(hidden, item_emb, rows, repeat_bias, history)))
    return torch.cat(drawn)


@torch.no_grad()
def catalogue_log_z(hidden, item_emb, chunk, repeat_bias=None, history=None):
    """Return the log-normalizer over the real items (padding left out) of each row: [R]."""
    values = []
    for start in range(0, hidden.shape[0], chunk):
        scores = chunk_scores(hidden, item_emb, slice(start, start + chunk), repeat_bias, history)
        values.append(torch.logsumexp(scores[:, 1:], dim=-1))
    return torch.cat(values)
