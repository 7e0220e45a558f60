"""Negative samplers: which K items a positive is compared with.

A sampler is one function and one line in ``SAMPLERS``. All are exact (no rejection that could fail, no
approximate distribution), vectorized over rows, and never draw padding, the positive, an item
outside ``neg_candidates`` or, with ``exclude_history``, an item of the row's history.

Exclusions without touching the catalogue: the excluded items of a row are sorted by their position
among the candidates; a rank in what remains turns into a position by counting the excluded ones that
stand before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recbole_pref.errors import PrefError, suggest
from recbole_pref.scoring import without_padding

CANDIDATES = ("all", "head", "tail")


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


def gumbel_topk(values, k, allowed, noise=None):
    """Return the K items with the largest value + Gumbel(0, 1) noise: Gumbel top-K.

    Equal in law to drawing K items without replacement, each in proportion to exp(value) among those
    left (Plackett-Luce).

    Args:
        values (Tensor): [B, n] probabilities (LPO4Rec eq. 14) or logits.
        k (int): items to draw.
        allowed (Tensor): [B, n] or [n] bool.
        noise (Tensor, optional): [B, n] Gumbel noise; drawn when not given.

    Returns:
        Tensor: [B, k] indices, the first drawn first.
    """
    if noise is None:
        noise = -torch.empty_like(values).exponential_().log()
    return (values + noise).masked_fill(~allowed, -torch.inf).topk(k, dim=1).indices


def first_distinct(ids, valid, k):
    """Return the first K distinct valid entries of each row, in order.

    Args:
        ids (Tensor): [B, T] draws.
        valid (Tensor): [B, T] bool.
        k (int): how many are wanted.

    Returns:
        tuple: ids [B, k] (the tail of rows with fewer is meaningless) and how many are there [B].
    """
    n = ids.shape[1]
    same = ids.unsqueeze(2) == ids.unsqueeze(1)  # [B, T, T]
    earlier = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril(-1)
    valid = valid & ~(same & valid.unsqueeze(1) & earlier).any(dim=2)
    order = torch.where(valid, torch.arange(n, 0, -1, device=ids.device), 0)  # [B, T]
    picked = order.topk(k, dim=1).indices
    return ids.gather(1, picked), valid.sum(dim=1).clamp_max(k)


def _splitmix(keys, seed, k):
    """Return uniforms [B, k] float64 that depend on key, seed and column alone (SplitMix64)."""
    column = torch.arange(1, k + 1, device=keys.device)
    golden = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; products wrap
    state = (keys.unsqueeze(1) * k + column + seed * 1_000_003) * golden
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    state = state ^ ((state >> 31) & ((1 << 33) - 1))
    return ((state >> 11) & ((1 << 53) - 1)).double() / 2**53


# -- one function per sampler: (sampler, call) -> [B, K] ids


@dataclass
class _Call:
    """What is known about a batch: see ``NegativeSampler.sample``."""

    positives: torch.Tensor
    scores: torch.Tensor | None
    history: torch.Tensor | None
    keys: torch.Tensor | None
    log_z: torch.Tensor | None
    excluded_ids: torch.Tensor  # [B, E] positive, padding and history

    def uniforms(self, k):
        shape = (len(self.positives), k)
        return torch.rand(shape, dtype=torch.float64, device=self.positives.device)


def _uniform_from(sampler, call, uniforms):
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    ranks = distinct_ranks(uniforms, len(sampler.candidates) - count)
    return sampler.candidates[skip_excluded(ranks, excluded)]


def _uniform(sampler, call):
    return _uniform_from(sampler, call, call.uniforms(sampler.k))


def _fixed(sampler, call):
    return _uniform_from(sampler, call, _splitmix(call.keys, sampler.seed, sampler.k))


def _weighted(sampler, call, weights):
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    positions, fine = weighted_positions(call.uniforms(sampler.k), weights, excluded)
    # Rows whose remaining candidates all weigh nothing draw uniformly.
    ranks = (call.uniforms(sampler.k) * (len(sampler.candidates) - count).unsqueeze(1)).long()
    return sampler.candidates[torch.where(fine, positions, skip_excluded(ranks, excluded))]


def _popularity(sampler, call):
    return _weighted(sampler, call, sampler.popularity)


def _in_batch(sampler, call):
    counts = torch.zeros(sampler.position_of.shape, dtype=torch.float64, device=call.positives.device)
    counts.scatter_add_(0, call.positives, torch.ones_like(call.positives, dtype=torch.float64))
    return _weighted(sampler, call, counts[sampler.candidates])


def _allowed(sampler, call):
    """Return [B, n_items] bool: candidates less the row's exclusions."""
    allowed = (sampler.position_of >= 0).repeat(len(call.positives), 1)
    return allowed.scatter_(1, call.excluded_ids, False)


def _gumbel(sampler, call):
    probability = sampler.space == "probability"
    real_z = without_padding(call.log_z, call.scores[:, 0]).unsqueeze(1)  # over real items
    if call.scores.device.type != "cpu":
        values = (call.scores - real_z).exp() if probability else call.scores
        return gumbel_topk(values, sampler.k, _allowed(sampler, call))
    draw = _propose_by_probability if probability else _draw_by_softmax
    ids, found = first_distinct(*draw(sampler, call, real_z), sampler.k)
    short = (found < sampler.k).nonzero().squeeze(1)
    if len(short):
        ids[short] = _complete(sampler, call, real_z, ids, found, short)
    return ids


def _propose_by_probability(sampler, call, real_z):
    """Draws in proportion to exp(pi): uniform proposals, accepted with probability exp(pi - 1)."""
    # exp(pi - 1) lies in [1 / e, 1]: about 2.7 proposals per draw at worst.
    proposals = 3 * sampler.k + 8
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    ranks = (call.uniforms(proposals) * (len(sampler.candidates) - count).unsqueeze(1)).long()
    ids = sampler.candidates[skip_excluded(ranks, excluded)]  # [B, T]
    pi = (call.scores.gather(1, ids) - real_z).exp()
    return ids, call.uniforms(proposals) < (pi - 1.0).exp()


def _draw_by_softmax(sampler, call, real_z):
    """Draws in proportion to exp(score), by inverse distribution function over the candidates."""
    weights = (call.scores - real_z).exp().masked_fill_(~_allowed(sampler, call), 0.0).double()
    cdf = weights.cumsum(dim=1)  # [B, n]
    draws = 2 * sampler.k + 8
    ids = torch.searchsorted(cdf, call.uniforms(draws) * cdf[:, -1:], right=True)
    ids = ids.clamp_max(weights.shape[1] - 1)
    return ids, weights.gather(1, ids) > 0


def _complete(sampler, call, real_z, ids, found, rows):
    """Finish rows with fewer than K distinct draws: the rest follows the same law without them."""
    part = _Call(
        call.positives[rows], call.scores[rows], None, None, None, call.excluded_ids[rows]
    )
    allowed = _allowed(sampler, part)
    column = torch.arange(sampler.k, device=ids.device)
    known = column < found[rows].unsqueeze(1)  # [r, K]
    # Item 0 is never allowed: unknown entries point there.
    allowed.scatter_(1, torch.where(known, ids[rows], 0), False)
    values = (part.scores - real_z[rows]).exp() if sampler.space == "probability" else part.scores
    fresh = gumbel_topk(values, sampler.k, allowed)
    nth = (column - found[rows].unsqueeze(1)).clamp_min(0)
    return torch.where(known, ids[rows], fresh.gather(1, nth))


def _masked_scores(sampler, call):
    return call.scores.masked_fill(~_allowed(sampler, call), -torch.inf)


def _topk(sampler, call):
    return _masked_scores(sampler, call).topk(sampler.k, dim=1).indices


def _pool(sampler, call):
    pool = _masked_scores(sampler, call).topk(sampler.pool_size, dim=1)  # [B, P]
    values = pool.values if sampler.pool_draw == "score" else torch.zeros_like(pool.values)
    picked = gumbel_topk(values, sampler.k, torch.isfinite(pool.values))
    return pool.indices.gather(1, picked)


@dataclass(frozen=True)
class _Sampler:
    draw: Callable
    needs_scores: str | None = None  # "policy" or "reference"
    needs_normalizer: bool = False


SAMPLERS = {
    "uniform": _Sampler(_uniform),
    "popularity": _Sampler(_popularity),
    "gumbel": _Sampler(_gumbel, "policy", needs_normalizer=True),
    "topk": _Sampler(_topk, "policy"),
    "pool": _Sampler(_pool, "policy"),
    "reference_pool": _Sampler(_pool, "reference"),
    "in_batch": _Sampler(_in_batch),
    "fixed": _Sampler(_fixed),
}


class NegativeSampler(nn.Module):
    """Draws negatives as the settings say.

    Args:
        settings (Mapping): ``neg_sampler``, ``num_negatives``, ``neg_candidates``,
            ``exclude_history``, ``sampler_space``, ``pool_size``, ``pool_draw``, ``popularity_alpha``,
            ``seed``.
        counts (Tensor): [n_items] training counts.
        head_mask (Tensor): [n_items] bool.
        max_history (int): most history items a row can have.

    Attributes:
        needs_scores (str or None): whose scores over the catalogue ``sample`` needs.
        needs_normalizer (bool): whether it needs their log-sum-exp too.

    Raises:
        PrefError: an unknown sampler, or more negatives than there are candidates.
    """

    def __init__(self, settings, counts, head_mask, max_history=0):
        super().__init__()
        name = settings["neg_sampler"]
        if name not in SAMPLERS:
            raise PrefError(
                f"neg_sampler={name!r} does not exist: use one of {', '.join(SAMPLERS)}."
                f"{suggest(name, SAMPLERS)}"
            )
        self.name, self.k = name, int(settings["num_negatives"])
        self.needs_scores = SAMPLERS[name].needs_scores
        self.needs_normalizer = SAMPLERS[name].needs_normalizer
        self.exclude_history = bool(settings["exclude_history"])
        self.space = settings["sampler_space"]
        self.pool_size, self.pool_draw = int(settings["pool_size"]), settings["pool_draw"]
        self.seed = int(settings.get("seed", 0))
        candidates = self._candidates(settings["neg_candidates"], head_mask)
        position_of = torch.full((len(counts),), -1, dtype=torch.int64)
        position_of[candidates] = torch.arange(len(candidates))
        self.register_buffer("candidates", candidates, persistent=False)
        self.register_buffer("position_of", position_of, persistent=False)
        popularity = counts[candidates].double() ** float(settings["popularity_alpha"])
        self.register_buffer("popularity", popularity, persistent=False)
        self._check_sizes(settings["neg_candidates"], max_history)

    @staticmethod
    def _candidates(which, head_mask):
        if which not in CANDIDATES:
            raise PrefError(
                f"neg_candidates={which!r} is not accepted: set it to all, head or tail."
                f"{suggest(which, CANDIDATES)}"
            )
        wanted = {"all": torch.ones_like(head_mask), "head": head_mask, "tail": ~head_mask}[which]
        wanted = wanted.clone()
        wanted[0] = False
        return wanted.nonzero().squeeze(1)

    def _check_sizes(self, which, max_history):
        left = len(self.candidates) - 1
        why = "less the positive"
        if self.exclude_history:
            left -= max_history
            why += f" and a history of up to {max_history} items"
        if self.k > left:
            raise PrefError(
                f"num_negatives={self.k} is more than the {max(left, 0)} items that neg_candidates="
                f"{which!r} leaves ({len(self.candidates)} items {why}): lower num_negatives"
                f"{', set exclude_history: False' if self.exclude_history else ''} or take more candidates."
            )
        if self.name.endswith("pool"):
            if self.pool_size < self.k:
                raise PrefError(
                    f"pool_size={self.pool_size} is smaller than num_negatives={self.k}: raise it."
                )
            if self.pool_size > left:
                raise PrefError(
                    f"pool_size={self.pool_size} is more than the {left} items that neg_candidates="
                    f"{which!r} leaves ({why}): lower it."
                )

    def sample(self, positives, scores=None, history=None, keys=None, log_z=None):
        """Draw the negatives of a batch.

        Args:
            positives (Tensor): [B] item ids.
            scores (Tensor, optional): [B, n_items], of whom ``needs_scores`` says.
            history (Tensor, optional): [B, L] item ids, 0 where there is none.
            keys (Tensor, optional): [B] int64 that identify the rows (``fixed``).
            log_z (Tensor, optional): [B] log-sum-exp of the scores (``gumbel``).

        Returns:
            Tensor: [B, K] int64 item ids.
        """
        excluded = [torch.zeros_like(positives).unsqueeze(1), positives.unsqueeze(1)]
        if self.exclude_history and history is not None:
            excluded.append(history)
        call = _Call(positives, scores, history, keys, log_z, torch.cat(excluded, dim=1))
        return SAMPLERS[self.name].draw(self, call)
