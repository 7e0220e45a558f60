"""Scores over the catalogue: in chunks, never stored whole.

``catalogue_loss`` is a fused linear cross-entropy that also serves every preference loss: for a chunk
of rows it computes the scores of all items once, takes the normalizer, lets the sampler pick
negatives from them and computes the loss of the rows. It turns the gradients of normalizer, positive
and negatives into gradients of representations and item embeddings before the next chunk. Memory
beyond inputs and gradients is O(chunk x items). A row costs three matrix products, as in plain
cross-entropy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

RowLoss = Callable[[slice, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Sample = Callable[[slice, torch.Tensor, torch.Tensor], torch.Tensor]

# A product of fewer rows than this reads the item matrix too often, even if more rows exceed the cache.
_FEWEST_ROWS = 64
_CACHE_MB = 8.0  # of a CPU
# Elements of item vectors that are gathered at a time (1 MB), so that they are still in the cache when read.
_GATHERED = 2**18


def chunk_rows(
    n_items: int,
    memory_mb: float | None = None,
    device_type: str = "cpu",
    cache_mb: float = _CACHE_MB,
    fewest: int = _FEWEST_ROWS,
) -> int:
    """Return how many rows of float32 scores over ``n_items`` are held at a time, at least 1.

    Args:
        n_items: scores per row.
        memory_mb: most MiB of scores; None for 256 on a CPU, 1024 on an accelerator.
        device_type: a CPU computes scores faster when they fit its cache.
        cache_mb: MiB of scores that stay in the cache.
        fewest: rows that a product on a CPU needs to be fast, even if they exceed the cache.
    """
    if memory_mb is None:
        memory_mb = 256.0 if device_type == "cpu" else 1024.0
    row_mb = 4 * n_items / 2**20
    if device_type == "cpu":
        memory_mb = min(memory_mb, max(fewest * row_mb, cache_mb))
    return max(1, int(memory_mb / row_mb))


class Source(Protocol):
    """Fixed scores of the rows of a batch, which a term multiplies by its weight."""

    setting: str  # that adds the term, such as repeat_bias

    def add(self, scores: torch.Tensor, rows: slice, weight: torch.Tensor) -> None:
        """Add the fixed scores, times a weight, to the scores [c, n_items] of some rows in place."""

    def at(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """Return the fixed scores of given items for some rows: [c, M]."""

    def dot(self, gradients: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the gradient of the weight: the sum of gradients [c, n_items] times the fixed scores, a scalar."""


class Term(NamedTuple):
    """A term that is added to the dot products: fixed scores times a weight, which may be learned.

    Attributes:
        weight: scalar Tensor.
        source: the fixed scores.
    """

    weight: torch.Tensor
    source: Source


class HistorySource:
    """A score of 1 for the items of a row's history.

    Args:
        history: [R, L] item ids, distinct in a row, 0 for none.
    """

    setting = "repeat_bias"

    def __init__(self, history: torch.Tensor) -> None:
        self.history = history

    def add(self, scores: torch.Tensor, rows: slice, weight: torch.Tensor) -> None:
        """Add the weight once, however often an item is named; see :class:`Source`."""
        items = self.history[rows]
        before = scores.gather(1, items)
        scores.scatter_(1, items, torch.where(items > 0, before + weight, before))

    def at(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """Return whether items are in the history; see :class:`Source`."""
        return (ids.unsqueeze(2) == self.history[rows].unsqueeze(1)).any(dim=2)

    def dot(self, gradients: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the sum of the gradients of the history's items; see :class:`Source`."""
        seen = self.history[rows]
        return gradients.gather(1, seen).masked_fill_(seen == 0, 0.0).sum()


Terms = tuple[Term, ...]


def item_scores(
    hidden: torch.Tensor, item_emb: torch.Tensor, ids: torch.Tensor, terms: Terms = (), rows: slice = slice(None)
) -> torch.Tensor:
    """Return the scores of given items: dot products and terms.

    Args:
        hidden: [R, H].
        item_emb: [n_items, H].
        ids: [R, M] item ids, none of them 0.
        terms: of a batch.
        rows: which rows of the batch these are.

    Returns:
        Tensor: [R, M] float32 scores.
    """
    scores = _ItemScores.apply(hidden.to(item_emb.dtype), item_emb, ids).float()  # [R, M]
    for weight, source in terms:
        scores = scores + weight * source.at(rows, ids)
    return scores


class _ItemScores(torch.autograd.Function):
    """Dot products [R, M] of representations with their items, a third of the time of a batched product on the CPU.

    The gradient needs no gathered vectors [R, M, H]. With the gradients of the scores as weights, the gradient of a
    representation is a weighted bag of item vectors, and the gradient of the items is that of the bag.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, item_emb: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, item_emb, ids)
        rows = max(1, _GATHERED // (ids.shape[1] * hidden.shape[1])) if ids.device.type == "cpu" else len(ids) or 1
        parts = zip(hidden.split(rows), ids.split(rows))
        return torch.cat([F.embedding(part, item_emb).mul_(h.unsqueeze(1)).sum(-1) for h, part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, item_emb, ids = ctx.saved_tensors
        with torch.enable_grad():
            table = item_emb.detach().requires_grad_()
            bags = F.embedding_bag(ids, table, per_sample_weights=grad_scores.contiguous(), mode="sum")
            (grad_items,) = torch.autograd.grad(bags, table, hidden)
        return bags.detach(), grad_items, None


def distinct_items(items: torch.Tensor) -> torch.Tensor:
    """Return rows of item ids [R, L] sorted; repetitions are replaced by 0."""
    items = items.sort(dim=1).values
    again = items[:, 1:] == items[:, :-1]
    items[:, 1:] = items[:, 1:].masked_fill(again, 0)
    return items


def chunk_scores(hidden: torch.Tensor, item_emb: torch.Tensor, rows: slice, terms: Terms = ()) -> torch.Tensor:
    """Return the scores of all items for a slice of the rows, without a loss: [c, n_items] float32.

    Args:
        hidden, item_emb, terms: as in ``catalogue_loss``.
        rows: which rows.
    """
    scores = torch.mm(hidden[rows], item_emb.t().to(hidden.dtype)).float()
    for weight, source in terms:
        source.add(scores, rows, weight)
    return scores


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the reduction of row losses [R] with weights [R] that sum to 1 over the batch: scalar."""
    return (losses * weights).sum()


def log_normalizer(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-sum-exp over the items and the softmax, sharing the work.

    Args:
        scores: [R, n_items] float32.

    Returns:
        tuple: log_z [R], probabilities [R, n_items].
    """
    probs = torch.softmax(scores, dim=-1)  # [R, n]
    # The largest entry gives the normalizer without a second exponential: p_max >= 1 / n.
    log_z = scores.amax(dim=-1) - probs.amax(dim=-1).log()  # [R]
    return log_z, probs


def without_padding(log_z: torch.Tensor, padding_score: torch.Tensor) -> torch.Tensor:
    """Take item 0 out of a normalizer: log(exp(log_z) - exp(padding_score)).

    Args:
        log_z: [R] log-sum-exp over all columns, as in RecBole's cross-entropy.
        padding_score: [R] score of column 0.
    """
    # Clamped so that the loss stays finite when the padding item holds all the mass.
    share = (padding_score - log_z).clamp(max=-1e-6)
    return log_z + torch.log1p(-share.exp())


class _CatalogueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        item_emb: torch.Tensor,
        row_loss: RowLoss,
        sample: Sample,
        row_weights: torch.Tensor,
        chunk: int,
        sources: tuple[Source, ...],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        # The smallest float16 is 6e-8, about the gradient of an item in a mean over rows: scale rows to 1.
        scale = None
        if dtype == torch.float16:
            scale = row_weights.max().clamp_min(torch.finfo(row_weights.dtype).tiny).reciprocal()
        grad_hidden = torch.empty_like(hidden, dtype=total.dtype)
        grad_items = torch.zeros_like(item_emb)
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        with torch.autocast(hidden.device.type, enabled=False):
            items = item_emb.to(dtype)
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, min(start + chunk, hidden.shape[0]))
                states = hidden[rows].to(dtype)  # [c, H]
                scores = torch.mm(states, items.t())  # [c, n]
                scores = scores if scores.dtype == torch.float64 else scores.float()
                for weight, source in zip(weights, sources):
                    source.add(scores, rows, weight)
                log_z, probs = log_normalizer(scores)
                ids = sample(rows, scores, log_z)  # [c, 2 + K]: positive, negatives, padding
                leaves = [log_z.requires_grad_(), scores.gather(1, ids).requires_grad_()]
                with torch.enable_grad():
                    loss = weighted_sum(row_loss(rows, ids, *leaves), row_weights[rows])
                grad_z, grad_picked = torch.autograd.grad(loss, leaves, allow_unused=True)
                total += loss.detach()
                grad_scores = probs.mul_(grad_z.unsqueeze(1)) if grad_z is not None else probs.zero_()
                if grad_picked is not None:
                    grad_scores.scatter_add_(1, ids, grad_picked)
                for number, (grad_weight, source) in enumerate(zip(grad_weights, sources)):
                    if ctx.needs_input_grad[7 + number]:
                        grad_weight += source.dot(grad_scores, rows)
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
        ctx.save_for_backward(grad_hidden, grad_items, *grad_weights)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_items, *grad_weights = ctx.saved_tensors
        grad_hidden = (grad_hidden * grad_total).to(ctx.hidden_dtype)
        of_weights = (grad_weight * grad_total for grad_weight in grad_weights)
        return grad_hidden, grad_items * grad_total, None, None, None, None, None, *of_weights


def catalogue_loss(
    hidden: torch.Tensor,
    item_emb: torch.Tensor,
    row_loss: RowLoss,
    sample: Sample,
    row_weights: torch.Tensor,
    chunk: int,
    terms: Terms = (),
) -> torch.Tensor:
    """Return the weighted sum of row losses that need the normalizer over the catalogue.

    Args:
        hidden: [R, H] representations.
        item_emb: [n_items, H] item embeddings; row 0 is padding.
        row_loss: ``(rows, ids [c, 2 + K], log_z [c], picked [c, 2 + K]) -> [c]`` losses of a slice of rows;
            ``picked`` are the scores of ``ids``.
        sample: ``(rows, scores [c, n_items], log_z [c]) -> [c, 2 + K]`` item ids: positive, negatives, padding.
        row_weights: [R] weights, constants for the gradient.
        chunk: rows whose scores are held at a time.
        terms: addends of the dot products.

    Returns:
        Tensor: scalar; gradients flow to ``hidden``, ``item_emb`` and the weights of the terms.
    """
    weights, sources = zip(*terms) if terms else ((), ())
    return _CatalogueLoss.apply(hidden, item_emb, row_loss, sample, row_weights, chunk, sources, *weights)


@torch.no_grad()
def sample_over_catalogue(
    hidden: torch.Tensor,
    item_emb: torch.Tensor,
    sample: Callable[[slice, torch.Tensor], torch.Tensor],
    chunk: int,
    terms: Terms = (),
) -> torch.Tensor:
    """Return the ids that ``sample`` picks from the scores of all items, chunk by chunk, without a loss.

    Args:
        hidden, item_emb, terms: as in ``catalogue_loss``.
        sample: ``(rows, scores [c, n_items]) -> [c, M]``.
        chunk: rows whose scores are held at a time.

    Returns:
        Tensor: [R, M] item ids.
    """
    drawn = []
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, min(start + chunk, hidden.shape[0]))
        drawn.append(sample(rows, chunk_scores(hidden, item_emb, rows, terms)))
    return torch.cat(drawn)


def real_log_z(scores: torch.Tensor) -> torch.Tensor:
    """Return the log-normalizer over the real items, padding left out: [R, n_items] -> [R]."""
    return torch.logsumexp(scores[:, 1:], dim=-1)


@torch.no_grad()
def catalogue_log_z(hidden: torch.Tensor, item_emb: torch.Tensor, chunk: int, terms: Terms = ()) -> torch.Tensor:
    """Return :func:`real_log_z` of each row, chunk by chunk; arguments as in ``catalogue_loss``: [R]."""
    starts = range(0, hidden.shape[0], chunk)
    return torch.cat([real_log_z(chunk_scores(hidden, item_emb, slice(s, s + chunk), terms)) for s in starts])
