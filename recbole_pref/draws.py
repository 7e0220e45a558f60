"""Random draws for all rows at once: pure functions of tensors, on which the negative samplers are built.

Exclusion does not read the whole catalogue. A draw is a rank among the remaining candidates. Adding the number of
excluded items before it gives its position among all candidates.
"""

import math

import torch
from torch import Tensor


def excluded_positions(ids: Tensor, position_of: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of excluded items among the candidates.

    Args:
        ids: [B, E] item ids in any order; they may repeat and may include items that are not candidates.
        position_of: [n_items] position of an item among the candidates, -1 for none.

    Returns:
        tuple: positions [B, E], ascending and distinct, followed by a filler greater than every position;
        and the number of real positions [B].
    """
    filler = 2 * (position_of.numel() + ids.shape[1])
    positions = position_of[ids]
    positions = torch.where(positions < 0, filler, positions).sort(dim=1).values
    repeated = torch.zeros_like(positions, dtype=torch.bool)
    repeated[:, 1:] = positions[:, 1:] == positions[:, :-1]
    positions = torch.where(repeated, filler, positions).sort(dim=1).values
    return positions, (positions < filler).sum(dim=1)


def skip_excluded(ranks: Tensor, excluded: Tensor) -> Tensor:
    """Turn ranks among the items that remain into positions among all candidates.

    Args:
        ranks: [B, K] 0-based ranks.
        excluded: [B, E] from ``excluded_positions``.

    Returns:
        Tensor: [B, K] positions.
    """
    before = torch.arange(excluded.shape[1], device=excluded.device)
    # e_j - j remaining items precede the j-th excluded position.
    return ranks + torch.searchsorted((excluded - before).contiguous(), ranks, right=True)


def distinct_ranks(uniforms: Tensor, free: Tensor) -> Tensor:
    """Draw K distinct ranks below ``free`` per row, each set equally likely (Floyd's algorithm).

    Args:
        uniforms: [B, K] float64 in [0, 1).
        free: [B] number of ranks, at least K.

    Returns:
        Tensor: [B, K] int64.
    """
    k = uniforms.shape[1]
    drawn = torch.empty(uniforms.shape, dtype=torch.int64, device=uniforms.device)
    for j in range(k):
        last = free - k + j  # [B] the largest rank of this round
        rank = torch.minimum((uniforms[:, j] * (last + 1)).long(), last)
        taken = (drawn[:, :j] == rank.unsqueeze(1)).any(dim=1)
        drawn[:, j] = torch.where(taken, last, rank)
    return drawn


def weighted_positions(uniforms: Tensor, weights: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Draw positions that are not excluded, with replacement, in proportion to weights.

    Args:
        uniforms: [B, K] float64 in [0, 1).
        weights: [M] float64 weight of each candidate.
        excluded: [B, E] from ``excluded_positions``.

    Returns:
        tuple: positions [B, K], and whether each draw is valid, that is an allowed item with weight [B, K].
    """
    cdf = weights.cumsum(0)  # [M]
    inside = excluded < len(weights)
    position = torch.where(inside, excluded, 0)
    width = torch.where(inside, weights[position], 0.0)  # [B, E]
    cut = width.cumsum(dim=1)
    # Remaining mass before each excluded item; fillers come last.
    remaining = torch.where(inside, cdf[position] - weights[position] - (cut - width), torch.inf)
    left = cdf[-1] - cut[:, -1:]  # [B, 1]
    mass = uniforms * left.clamp_min(0.0)
    passed = torch.searchsorted(remaining.contiguous(), mass, right=True)
    skipped = torch.cat([torch.zeros_like(cut[:, :1]), cut], dim=1)
    mass = mass + skipped.gather(1, passed)
    positions = torch.searchsorted(cdf, mass, right=True).clamp_max(len(weights) - 1)
    hit = (positions.unsqueeze(2) == excluded.unsqueeze(1)).any(dim=2)  # rounding at a border
    valid = (left > 1e-9 * cdf[-1]) & ~hit & (weights[positions] > 0)
    return positions, valid


def gumbel_topk(
    values: Tensor,
    k: int,
    allowed: Tensor | None = None,
    exclude: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the K items with the largest value + Gumbel(0, 1) noise: Gumbel top-K.

    This draws K items without replacement, each in proportion to exp(value) among the remaining items
    (Plackett-Luce).

    Args:
        values: [B, n] probabilities (LPO4Rec eq. 14-15) or logits.
        k: items to draw.
        allowed: [B, n] or [n] bool.
        exclude: [B, E] indices that are not drawn.
        noise: [B, n] Gumbel noise; drawn when not given.
        generator: torch's global one when not given.

    Returns:
        Tensor: [B, k] indices, the first drawn first.
    """
    if noise is None:
        noise = torch.empty_like(values).exponential_(generator=generator).log_().neg_()
    perturbed = values + noise
    if allowed is not None:
        perturbed.masked_fill_(~allowed, -torch.inf)
    if exclude is not None:
        perturbed.scatter_(1, exclude, -torch.inf)
    return largest(perturbed, k).indices


def largest(values: Tensor, k: int, ordered: bool = True) -> torch.return_types.topk:
    """Return the K largest values of each row like ``torch.topk``, but faster on a CPU.

    The K groups of four with the largest maxima contain the K largest values, so only these groups are searched. The
    maxima are searched in the same way. As in ``torch.topk``, the choice among equal values is undefined.

    Args:
        values: [B, n].
        k: how many.
        ordered: descending; otherwise in any order.

    Returns:
        torch.return_types.topk: values and indices, each [B, k].
    """
    n = values.shape[1]
    if n < 8 * k or values.device.type != "cpu":
        return values.topk(k, dim=1, sorted=ordered)
    groups = n // 4
    whole = 4 * groups
    # Group g holds the items g, g + groups, ..., so that the maximum is not over the innermost dimension.
    maxima = values[:, :whole].unflatten(1, (4, groups)).amax(1)  # [B, groups]
    best = largest(maxima, k, ordered=False).indices
    members = torch.arange(0, whole, groups)
    items = (best.unsqueeze(2) + members).flatten(1)  # [B, 4 k]
    rest = torch.arange(whole, n).expand(len(values), -1)
    items = torch.cat([items, rest], dim=1)
    top = values.gather(1, items).topk(k, dim=1, sorted=ordered)
    return torch.return_types.topk((top.values, items.gather(1, top.indices)))


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw columns of each row in proportion to the row's weights, with one pass over the row.

    Args:
        weights: [B, n], at least 0.
        uniforms: [B, T] float64 in [0, 1).

    Returns:
        tuple: columns [B, T], and whether the column's weight is positive [B, T] (False when the whole row
        has no weight).
    """
    n, draws = weights.shape[1], uniforms.shape[1]
    size = max(1, math.isqrt(n // draws))  # balances the number of groups and the size of the T groups read
    groups = n // size  # column j is in group j % groups
    whole = size * groups
    sums = weights[:, :whole].unflatten(1, (size, groups)).sum(1)  # [B, groups]
    sums[:, : n - whole] += weights[:, whole:]
    cdf = sums.double().cumsum(1)
    mass = uniforms * cdf[:, -1:]
    group = torch.searchsorted(cdf, mass, right=True).clamp_max(groups - 1)  # [B, T]
    mass = mass - torch.nn.functional.pad(cdf, (1, 0)).gather(1, group)
    members = torch.arange(0, n, groups, device=weights.device)
    columns = group.unsqueeze(2) + members  # [B, T, size + 1], n or more at the end of shorter groups
    inner = weights.gather(1, columns.flatten(1).clamp_max(n - 1)).view_as(columns).double()
    inner = inner.masked_fill(columns >= n, 0.0).cumsum(2)
    # The group's sum was rounded to the weights' type: stay below the sum of its items.
    mass = torch.minimum(mass, inner[..., -1] * (1 - 2**-52)).unsqueeze(2)
    offset = (inner <= mass).sum(2)  # [B, T]
    drawn = (group + offset * groups).clamp_max(n - 1)
    return drawn, weights.gather(1, drawn) > 0


def first_distinct(ids: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first K distinct valid entries of each row, in order.

    Args:
        ids: [B, T] draws, at least 0.
        valid: [B, T] bool.
        k: how many to return, at most T.

    Returns:
        tuple: ids [B, k] (meaningless at the end of rows that have fewer) and the number of valid ids [B].
    """
    ordered, order = torch.where(valid, ids, -1).sort(dim=1, stable=True)
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    first = torch.zeros_like(valid).scatter_(1, order, first)
    picked = (~first).byte().sort(dim=1, stable=True).indices[:, :k]
    return ids.gather(1, picked), first.sum(dim=1).clamp_max(k)


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; products wrap


def _mix(state: Tensor) -> Tensor:
    """Return the SplitMix64 output of a state: int64 tensor of any shape."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def hashed_uniforms(keys: Tensor, seed: int, k: int) -> Tensor:
    """Return uniforms [B, k] float64 in [0, 1) that depend only on key, seed and column."""
    column = torch.arange(1, k + 1, device=keys.device)
    # The seed is hashed, so that neighbouring seeds give unrelated streams.
    stream = _mix(torch.tensor(seed) + _GOLDEN).item()
    bits = _mix((keys.unsqueeze(1) * k + column) * _GOLDEN + stream)
    return ((bits >> 11) & ((1 << 53) - 1)).double() / 2**53
