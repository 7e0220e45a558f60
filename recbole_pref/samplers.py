"""Negative samplers: which K items a positive is compared with.

A sampler is one function and one line in ``SAMPLERS``. Each follows its law to floating-point
accuracy, works on all rows at once, and never draws padding, the positive, an item outside
``neg_candidates`` or, with ``exclude_history``, an item of the row's history.

Exclusions without touching the catalogue: the excluded items of a row are sorted by their position
among the candidates; a rank in what remains turns into a position by counting the excluded ones
that stand before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recbole_pref.errors import PrefError, suggest
from recbole_pref.scoring import without_padding


def excluded_positions(ids, position_of):
    """Return where excluded items stand among the candidates.

    Args:
        ids (Tensor): [B, E] item ids, in any order, repeated or not candidates at all.
        position_of (Tensor): [n_items] position of an item among the candidates, -1 for none.

    Returns:
        tuple: positions [B, E], ascending and distinct, followed by a filler beyond every position;
        and how many are real [B].
    """
    filler = 2 * (position_of.numel() + ids.shape[1])
    positions = position_of[ids]
    positions = torch.where(positions < 0, filler, positions).sort(dim=1).values
    again = torch.zeros_like(positions, dtype=torch.bool)
    again[:, 1:] = positions[:, 1:] == positions[:, :-1]
    positions = torch.where(again, filler, positions).sort(dim=1).values
    return positions, (positions < filler).sum(dim=1)


def skip_excluded(ranks, excluded):
    """Turn ranks among the items that remain into positions among all candidates.

    Args:
        ranks (Tensor): [B, K] 0-based ranks.
        excluded (Tensor): [B, E] from ``excluded_positions``.

    Returns:
        Tensor: [B, K] positions.
    """
    before = torch.arange(excluded.shape[1], device=excluded.device)
    # Before the j-th excluded position stand e_j - j items that remain.
    return ranks + torch.searchsorted((excluded - before).contiguous(), ranks, right=True)


def distinct_ranks(uniforms, free):
    """Draw K distinct ranks below ``free`` per row, each set equally likely (Floyd's algorithm).

    Args:
        uniforms (Tensor): [B, K] float64 in [0, 1).
        free (Tensor): [B] how many ranks there are, at least K.

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


def weighted_positions(uniforms, weights, excluded):
    """Draw positions with replacement in proportion to weights, excluded ones left out.

    Args:
        uniforms (Tensor): [B, K] float64 in [0, 1).
        weights (Tensor): [M] float64 weight of each candidate.
        excluded (Tensor): [B, E] from ``excluded_positions``.

    Returns:
        tuple: positions [B, K], and whether a draw was possible and fell on an allowed item [B, K].
    """
    cdf = weights.cumsum(0)  # [M]
    inside = excluded < len(weights)
    at = torch.where(inside, excluded, 0)
    width = torch.where(inside, weights[at], 0.0)  # [B, E]
    cut = width.cumsum(dim=1)
    # Mass that remains before each excluded item; fillers come last.
    remains = torch.where(inside, cdf[at] - weights[at] - (cut - width), torch.inf)
    left = cdf[-1] - cut[:, -1:]  # [B, 1]
    mass = uniforms * left.clamp_min(0.0)
    passed = torch.searchsorted(remains.contiguous(), mass, right=True)
    skipped = torch.cat([torch.zeros_like(cut[:, :1]), cut], dim=1)
    mass = mass + skipped.gather(1, passed)
    positions = torch.searchsorted(cdf, mass, right=True).clamp_max(len(weights) - 1)
    hit = (positions.unsqueeze(2) == excluded.unsqueeze(1)).any(dim=2)  # by rounding at a border
    fine = (left > 1e-9 * cdf[-1]) & ~hit & (weights[positions] > 0)
    return positions, fine


def gumbel_topk(values, k, allowed=None, exclude=None, noise=None, generator=None):
    """Return the K items with the largest value + Gumbel(0, 1) noise: Gumbel top-K.

    Equal in law to drawing K items without replacement, each in proportion to exp(value) among
    those left (Plackett-Luce).

    Args:
        values (Tensor): [B, n] probabilities (LPO4Rec eq. 14-15) or logits.
        k (int): items to draw.
        allowed (Tensor, optional): [B, n] or [n] bool.
        exclude (Tensor, optional): [B, E] indices that are not drawn.
        noise (Tensor, optional): [B, n] Gumbel noise; drawn when not given.
        generator (torch.Generator, optional): torch's global one when not given.

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


def largest(values, k, ordered=True):
    """Return the K largest of each row like ``torch.topk``, with light passes over the row.

    The K largest lie in the K groups of four with the largest maxima, so only those are searched; the maxima are
    searched the same way. Which of several equal values is returned is as undefined as in ``torch.topk``.

    Args:
        values (Tensor): [B, n].
        k (int): how many.
        ordered (bool): descending; otherwise in any order.

    Returns:
        torch.return_types.topk: values and indices, each [B, k].
    """
    n = values.shape[1]
    if n < 8 * k or values.device.type != "cpu":
        return values.topk(k, dim=1, sorted=ordered)
    groups = n // 4
    whole = 4 * groups
    # Group g holds the items g, g + groups, ...: maxima over a dimension that is not the innermost.
    maxima = values[:, :whole].unflatten(1, (4, groups)).amax(1)  # [B, groups]
    best = largest(maxima, k, ordered=False).indices
    members = torch.arange(0, whole, groups)
    items = (best.unsqueeze(2) + members).flatten(1)  # [B, 4 k]
    rest = torch.arange(whole, n).expand(len(values), -1)
    items = torch.cat([items, rest], dim=1)
    top = values.gather(1, items).topk(k, dim=1, sorted=ordered)
    return torch.return_types.topk((top.values, items.gather(1, top.indices)))


def inverse_cdf(weights, uniforms):
    """Draw columns in proportion to weights of the row, with one light pass over the row.

    Args:
        weights (Tensor): [B, n], at least 0.
        uniforms (Tensor): [B, T] float64 in [0, 1).

    Returns:
        tuple: columns [B, T], and whether the column has weight [B, T] (False where the whole row
        has none).
    """
    n, draws = weights.shape[1], uniforms.shape[1]
    size = max(1, math.isqrt(n // draws))  # balances the number of groups and what is read in T
    groups = n // size  # column j is in group j % groups
    whole = size * groups
    sums = weights[:, :whole].unflatten(1, (size, groups)).sum(1)  # [B, groups]
    sums[:, : n - whole] += weights[:, whole:]
    cdf = sums.double().cumsum(1)
    mass = uniforms * cdf[:, -1:]
    group = torch.searchsorted(cdf, mass, right=True).clamp_max(groups - 1)  # [B, T]
    mass = mass - torch.nn.functional.pad(cdf, (1, 0)).gather(1, group)
    members = torch.arange(0, n, groups, device=weights.device)
    columns = group.unsqueeze(2) + members  # [B, T, size + 1], beyond n where a group is shorter
    inner = weights.gather(1, columns.flatten(1).clamp_max(n - 1)).view_as(columns).double()
    inner = inner.masked_fill(columns >= n, 0.0).cumsum(2)
    # The group's sum was rounded to the weights' type: stay inside what its items hold.
    mass = torch.minimum(mass, inner[..., -1] * (1 - 2**-52)).unsqueeze(2)
    place = (inner <= mass).sum(2)  # [B, T]
    drawn = (group + place * groups).clamp_max(n - 1)
    return drawn, weights.gather(1, drawn) > 0


def first_distinct(ids, valid, k):
    """Return the first K distinct valid entries of each row, in order.

    Args:
        ids (Tensor): [B, T] draws, at least 0.
        valid (Tensor): [B, T] bool.
        k (int): how many are wanted, at most T.

    Returns:
        tuple: ids [B, k] (the tail of rows with fewer is meaningless) and how many are there [B].
    """
    ordered, order = torch.where(valid, ids, -1).sort(dim=1, stable=True)
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    first = torch.zeros_like(valid).scatter_(1, order, first)
    picked = (~first).byte().sort(dim=1, stable=True).indices[:, :k]
    return ids.gather(1, picked), first.sum(dim=1).clamp_max(k)


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; products wrap


def _mix(state):
    """Return the SplitMix64 output of a state: int64 tensor of any shape."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def hashed_uniforms(keys, seed, k):
    """Return uniforms [B, k] float64 in [0, 1) that depend on key, seed and column alone."""
    column = torch.arange(1, k + 1, device=keys.device)
    # The seed picks the stream by hash: neighbouring seeds do not shift each other's keys.
    stream = _mix(torch.tensor(seed) + _GOLDEN).item()
    bits = _mix((keys.unsqueeze(1) * k + column) * _GOLDEN + stream)
    return ((bits >> 11) & ((1 << 53) - 1)).double() / 2**53


# -- one function per sampler: (sampler, call) -> [B, K] ids


@dataclass
class Call:
    """What is known about some rows: first of the whole batch, then, with scores, of a part of it."""

    positives: torch.Tensor
    excluded_ids: torch.Tensor  # [B, E] positive, padding and history
    keys: torch.Tensor | None
    generator: torch.Generator | None
    begun: tuple = ()  # tensors [B, ...] of what was drawn before the scores were known
    scores: torch.Tensor | None = None
    log_z: torch.Tensor | None = None

    def uniforms(self, k):
        return torch.rand(
            (len(self.positives), k),
            dtype=torch.float64,
            device=self.positives.device,
            generator=self.generator,
        )

    def at(self, rows):
        """Return the part of some rows: a slice, or their numbers [r]."""
        pick = lambda values: None if values is None else values[rows]
        return Call(
            self.positives[rows],
            self.excluded_ids[rows],
            pick(self.keys),
            self.generator,
            tuple(map(pick, self.begun)),
            pick(self.scores),
            pick(self.log_z),
        )


def _uniform_from(sampler, call, uniforms):
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    ranks = distinct_ranks(uniforms, len(sampler.candidates) - count)
    return sampler.candidates[skip_excluded(ranks, excluded)]


def _uniform(sampler, call):
    return _uniform_from(sampler, call, call.uniforms(sampler.k))


def _fixed(sampler, call):
    return _uniform_from(sampler, call, hashed_uniforms(call.keys, sampler.seed, sampler.k))


def _weighted(sampler, call, weights):
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    positions, fine = weighted_positions(call.uniforms(sampler.k), weights, excluded)
    # Rows whose remaining candidates all weigh nothing draw uniformly.
    ranks = (call.uniforms(sampler.k) * (len(sampler.candidates) - count).unsqueeze(1)).long()
    return sampler.candidates[torch.where(fine, positions, skip_excluded(ranks, excluded))]


def _popularity(sampler, call):
    return _weighted(sampler, call, sampler.popularity)


def _in_batch(sampler, call):
    counts = torch.zeros_like(sampler.position_of, dtype=torch.float64)
    counts.scatter_add_(0, call.positives, torch.ones_like(call.positives, dtype=torch.float64))
    return _weighted(sampler, call, sampler.total(counts)[sampler.candidates])


def _columns(sampler, call):
    """Return the scores of padding and candidates [B, 1 + M], and the excluded columns [B, E].

    Padding stands first and is always excluded, so that excluded items which are no candidates
    have a column to point at.
    """
    scores = call.scores
    if len(sampler.columns) < scores.shape[1]:
        scores = scores.index_select(1, sampler.columns)
    return scores, sampler.position_of[call.excluded_ids] + 1


def _begin_gumbel(sampler, call):
    """Draw what nearly always stands whatever the scores are: see ``_draw_by_probability``.

    Returns:
        tuple: the first K distinct draws [B, K]; how many of them stand [B], 0 in rows that wait for their scores; and
        what ``_flat_draws`` returns. Empty where all waits.
    """
    if sampler.space == "probability" and call.positives.device.type == "cpu":
        flat = _flat_draws(sampler, call)
        ids, found = first_distinct(*flat[:2], sampler.k)
        return ids, torch.where(flat[1].all(dim=1), found, 0), *flat
    return ()


def _gumbel(sampler, call):
    if call.scores.device.type != "cpu":
        return _gumbel_plain(sampler, call)
    # Gumbel top-K is drawing without replacement: independent draws, of which the first K distinct
    # ones count. Rows that lack some go on, with what they have excluded.
    if call.begun:
        ids, found = (values.clone() for values in call.begun[:2])  # [B, K], [B]
        rows = (found < sampler.k).nonzero().squeeze(1)
        if len(rows):
            part = call.at(rows)
            ids[rows], found[rows] = first_distinct(*_with_bumps(sampler, part, part.begun[2:]), sampler.k)
    else:
        ids, found = first_distinct(*_draw_by_logit(sampler, call), sampler.k)
    draw = _draw_by_probability if call.begun else _draw_by_logit
    nth = torch.arange(sampler.k)
    for rounds in range(8):
        rows = (found < sampler.k).nonzero().squeeze(1)  # [r]
        if not len(rows):
            return ids
        place = nth - found[rows].unsqueeze(1)  # [r, K]
        part, known = call.at(rows), torch.where(place < 0, ids[rows], 0)
        part.excluded_ids = torch.cat([part.excluded_ids, known], dim=1)
        if rounds < 7:
            fresh, count = first_distinct(*draw(sampler, part), sampler.k)
        else:  # very uneven probabilities
            fresh, count = _gumbel_plain(sampler, part), sampler.k - found[rows]
        new = (place >= 0) & (place < count.unsqueeze(1))
        ids[rows] = torch.where(new, fresh.gather(1, place.clamp_min(0)), known)
        found[rows] = (found[rows] + count).clamp_max(sampler.k)
    return ids


def _gumbel_plain(sampler, call):
    values, excluded = _columns(sampler, call)
    if sampler.space == "probability":
        values = (values - _real_z(call)).exp()
    drawn = gumbel_topk(values, sampler.k, exclude=excluded, generator=call.generator)
    return sampler.columns[drawn]


def _real_z(call):
    """Return log-sum-exp over the real items: [B, 1]."""
    return without_padding(call.log_z, call.scores[:, 0]).unsqueeze(1)


def _draw_by_probability(sampler, call):
    """Draw in proportion to exp(pi), as ids [B, T] and whether the draw counts [B, T].

    exp(pi) = 1 + expm1(pi), and the second parts sum to at most e - 1 over the catalogue: nearly
    every draw falls on the first ones and is uniform. Scores are read for the other rows alone.
    """
    return _with_bumps(sampler, call, _flat_draws(sampler, call))


def _flat_draws(sampler, call):
    """Draw by the first parts: ids [B, T], whether the draw fell there [B, T], its mass [B, T] and theirs [B, 1]."""
    draws = sampler.k + 3 + sampler.k // 8  # a few more than K: items come twice
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    left = (len(sampler.candidates) - count).unsqueeze(1)
    mass = call.uniforms(draws) * (left + math.e - 1)
    flat = mass < left
    ranks = torch.where(flat, mass, 0.0).long()
    return sampler.candidates[skip_excluded(ranks, excluded)], flat, mass, left


def _with_bumps(sampler, call, drawn):
    """Give the draws that fell on the second parts their items: ids [B, T] and whether the draw counts [B, T]."""
    ids, flat, mass, left = drawn
    rows = (~flat).any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return ids, flat
    part, ids, valid = call.at(rows), ids.clone(), flat.clone()
    scores, columns = _columns(sampler, part)
    bumps = (scores - _real_z(part)).exp().expm1().scatter_(1, columns, 0.0)  # [r, 1 + M]
    cdf = bumps.double().cumsum(dim=1)
    bump = torch.searchsorted(cdf, mass[rows] - left[rows], right=True)  # [r, T]
    hit = ~flat[rows] & (bump < cdf.shape[1])  # beyond the last one: no draw
    bumped = sampler.columns[bump.clamp_max(cdf.shape[1] - 1)]
    ids[rows] = torch.where(hit, bumped, ids[rows])
    valid[rows] |= hit
    return ids, valid


def _draw_by_logit(sampler, call):
    """Draw in proportion to exp(score), as ids [B, T] and whether the draw counts [B, T]."""
    scores, excluded = _columns(sampler, call)
    if scores is call.scores:
        scores = scores.clone()
    scores.scatter_(1, excluded, -torch.inf)
    # The largest score that is left, not the normalizer: the positive may hold nearly all the mass.
    weights = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
    columns, valid = inverse_cdf(weights, call.uniforms(2 * sampler.k + 4))
    return sampler.columns[columns], valid


def _best(sampler, call, k, ordered=True):
    """Return the K best allowed items of each row: values and ids, each [B, k]."""
    scores, excluded = _columns(sampler, call)
    # Put back afterwards where the scores are the caller's: a copy of them would cost more than the search.
    kept = scores.gather(1, excluded) if scores is call.scores else None
    scores.scatter_(1, excluded, -torch.inf)
    top = largest(scores, k, ordered)
    if kept is not None:
        scores.scatter_(1, excluded, kept)
    return top.values, sampler.columns[top.indices]


def _topk(sampler, call):
    return _best(sampler, call, sampler.k)[1]


def _pool(sampler, call):
    values, ids = _best(sampler, call, sampler.pool_size, ordered=False)  # [B, P]
    if sampler.pool_draw == "uniform":
        size = torch.full_like(call.positives, sampler.pool_size)
        picked = distinct_ranks(call.uniforms(sampler.k), size)
    else:
        picked = gumbel_topk(values, sampler.k, generator=call.generator)
    return ids.gather(1, picked)


@dataclass(frozen=True)
class Sampler:
    """A way to draw negatives.

    Attributes:
        draw: ``(sampler, call) -> [B, K]`` item ids; ``sampler`` is the :class:`NegativeSampler` with the settings,
            ``call`` the rows with their excluded items and, where asked for, scores.
        needs_scores: whose scores over the catalogue it reads: ``policy``, ``reference`` or None.
        needs_normalizer: whether it reads their log-sum-exp with ``sampler_space: probability``.
        needs_keys: whether it reads the numbers of the training rows.
        uses_pool: whether ``pool_size`` items must be left to draw from.
        begin: ``(sampler, call) -> tuple`` of tensors: what can be drawn for a batch before scores are known.
    """

    draw: Callable
    needs_scores: str | None = None
    needs_normalizer: bool = False
    needs_keys: bool = False
    uses_pool: bool = False
    begin: Callable | None = None


SAMPLERS: dict[str, Sampler] = {
    "uniform": Sampler(_uniform),
    "popularity": Sampler(_popularity),
    "gumbel": Sampler(_gumbel, "policy", needs_normalizer=True, begin=_begin_gumbel),
    "topk": Sampler(_topk, "policy"),
    "pool": Sampler(_pool, "policy", uses_pool=True),
    "reference_pool": Sampler(_pool, "reference", uses_pool=True),
    "in_batch": Sampler(_in_batch),
    "fixed": Sampler(_fixed, needs_keys=True),
}


_WORDS = {
    "neg_sampler": SAMPLERS.keys(),
    "neg_candidates": ("all", "head", "tail"),
    "sampler_space": ("probability", "logit"),
    "pool_draw": ("uniform", "score"),
}


class NegativeSampler(nn.Module):
    """Draws negatives as the settings say.

    Every row must be able to give K negatives: ``num_negatives`` may not exceed the candidates less
    the positive and, with ``exclude_history``, less the longest history a row can have.

    Args:
        settings (Mapping): ``neg_sampler``, ``num_negatives``, ``neg_candidates``,
            ``exclude_history``, ``sampler_space``, ``pool_size``, ``pool_draw``,
            ``popularity_alpha``, ``seed``.
        counts (Tensor): [n_items] training counts.
        head_mask (Tensor): [n_items] bool.
        max_history (int): most history items a row can have.
        total (callable): sums a tensor over the processes that share a batch (``in_batch``).

    Attributes:
        needs_scores (str or None): whose scores over the catalogue ``sample`` needs.
        needs_normalizer (bool): whether it needs their log-sum-exp too.

    Raises:
        PrefError: a value that is not accepted, or more negatives than rows can give.
    """

    def __init__(self, settings, counts, head_mask, max_history=0, total=lambda counts: counts):
        super().__init__()
        self.total = total
        for key, accepted in _WORDS.items():
            if settings[key] not in accepted:
                raise PrefError(
                    f"{key}={settings[key]!r} is not accepted: set it to one of "
                    f"{', '.join(accepted)}.{suggest(settings[key], accepted)}"
                )
        for key, low in (("num_negatives", 1), ("popularity_alpha", 0)):
            if settings[key] < low:
                raise PrefError(f"{key}={settings[key]} is too small: set it to {low} or more.")
        self.name, self.k = settings["neg_sampler"], int(settings["num_negatives"])
        self.space, self.which = settings["sampler_space"], settings["neg_candidates"]
        kind = SAMPLERS[self.name]
        self.needs_scores, self.needs_keys, self.uses_pool = kind.needs_scores, kind.needs_keys, kind.uses_pool
        self.needs_normalizer = kind.needs_normalizer and self.space == "probability"
        self.exclude_history = bool(settings["exclude_history"])
        self.pool_size, self.pool_draw = int(settings["pool_size"]), settings["pool_draw"]
        self.seed = int(settings.get("seed", 0))
        candidates = self._candidates(head_mask)
        position_of = torch.full((len(counts),), -1, dtype=torch.int64)
        position_of[candidates] = torch.arange(len(candidates))
        popularity = counts[candidates].double() ** float(settings["popularity_alpha"])
        padding = torch.zeros(1, dtype=torch.int64)
        self.register_buffer("columns", torch.cat([padding, candidates]), persistent=False)
        self.register_buffer("position_of", position_of, persistent=False)
        self.register_buffer("popularity", popularity, persistent=False)
        self._check_sizes(max_history)

    @property
    def candidates(self):
        """Ids of the items that may be drawn, ascending: [M]."""
        return self.columns[1:]

    def _candidates(self, head_mask):
        wanted = {"all": torch.ones_like(head_mask), "head": head_mask, "tail": ~head_mask}
        wanted = wanted[self.which].clone()
        wanted[0] = False
        return wanted.nonzero().squeeze(1)

    def _check_sizes(self, max_history):
        size = len(self.candidates)
        left, less, remedy = size - 1, "the positive", "set neg_candidates: all"
        if self.exclude_history:
            left = max(left - max_history, 0)
            less += f" and a history of up to {max_history}"
            remedy = "set exclude_history: False"
        where = f"neg_candidates={self.which!r} leaves (the {size} of the data set less {less})"
        if self.k > left:
            raise PrefError(
                f"num_negatives={self.k} is more than the {left} items that {where}: lower "
                f"num_negatives or {remedy}."
            )
        if not self.uses_pool:
            return
        if self.pool_size < self.k:
            raise PrefError(
                f"pool_size={self.pool_size} is smaller than num_negatives={self.k}: raise "
                "pool_size or lower num_negatives."
            )
        if self.pool_size > left:
            raise PrefError(
                f"pool_size={self.pool_size} is more than the {left} items that {where}: lower "
                f"pool_size or {remedy}."
            )

    @torch.no_grad()
    def begin(self, positives, history=None, keys=None, generator=None):
        """Begin to draw the negatives of a batch, as far as that goes without scores.

        Args:
            positives (Tensor): [B] item ids.
            history (Tensor, optional): [B, L] item ids, 0 for none (``exclude_history``).
            keys (Tensor, optional): [B] int64 that identify the rows (``fixed``).
            generator (torch.Generator, optional): torch's global one when not given.

        Returns:
            Draw: of which ``finish`` gives the negatives.

        Raises:
            PrefError: something that this sampler needs is missing.
        """
        self._check_rows(history, keys)
        excluded = [torch.zeros_like(positives).unsqueeze(1), positives.unsqueeze(1)]
        if self.exclude_history:
            excluded.append(history)
        return Draw(self, Call(positives, torch.cat(excluded, dim=1), keys, generator))

    def sample(self, positives, scores=None, history=None, keys=None, log_z=None, generator=None):
        """Draw the negatives of a batch: ``begin`` and ``finish`` in one, with their arguments."""
        return self.begin(positives, history, keys, generator).finish(slice(None), scores, log_z)

    def _check_rows(self, history, keys):
        if self.needs_keys and keys is None:
            raise PrefError(f"neg_sampler={self.name!r} got no row numbers: choose uniform.")
        if not self.exclude_history:
            return
        if history is None:
            raise PrefError(
                "exclude_history=True got no histories of the rows: set exclude_history: False."
            )


class Draw:
    """The draw of a batch's negatives, to be finished part by part as the scores become known.

    What needs no scores is drawn for the whole batch at once: small operations on every part would cost more than
    they do.
    """

    def __init__(self, sampler, call):
        self._sampler, self._call, self._kind = sampler, call, SAMPLERS[sampler.name]
        self.needs_scores = self._kind.needs_scores
        self._ids = None
        if self._kind.needs_scores is None:
            self._ids = self._kind.draw(sampler, call)
        elif self._kind.begin is not None:
            call.begun = self._kind.begin(sampler, call)

    @torch.no_grad()
    def finish(self, rows=slice(None), scores=None, log_z=None):
        """Return the negatives of some rows: [c, K] int64 item ids.

        Without replacement, but for ``popularity`` and ``in_batch``.

        Args:
            rows (slice): which rows of the batch.
            scores (Tensor, optional): [c, n_items], of whom ``needs_scores`` says; left as it is.
            log_z (Tensor, optional): [c] log-sum-exp of the scores, padding included (``gumbel`` on
                probabilities); computed when not given.

        Raises:
            PrefError: this sampler needs scores and got none.
        """
        if self._ids is not None:
            return self._ids[rows]
        if scores is None:
            raise PrefError(
                f"neg_sampler={self._sampler.name!r} got no scores of the {self._kind.needs_scores}: choose "
                "uniform, popularity, in_batch or fixed."
            )
        part = self._call.at(rows)
        part.scores, part.log_z = scores, log_z
        if log_z is None and self._sampler.needs_normalizer:
            part.log_z = torch.logsumexp(scores, dim=1)
        return self._kind.draw(self._sampler, part)
