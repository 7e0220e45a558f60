"""Negative samplers: which K items a positive is compared with.

A sampler is one function and one line in ``SAMPLERS``. Each follows its distribution to floating-point
accuracy, works on all rows at once, and never draws padding, the positive, an item outside
``neg_candidates`` or, with ``exclude_history``, an item of the row's history. The draws themselves are in ``draws``.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_pref.draws import (
    distinct_ranks,
    excluded_positions,
    first_distinct,
    gumbel_topk,
    hashed_uniforms,
    inverse_cdf,
    largest,
    skip_excluded,
    weighted_positions,
)
from recbole_pref.errors import PrefError, suggest
from recbole_pref.scoring import without_padding

Rows = slice | Tensor  # a slice, or the row numbers [r]
FlatDraws = tuple[Tensor, Tensor, Tensor, Tensor]  # see _flat_draws

# -- one function per sampler: (sampler, call) -> [B, K] ids


@dataclass
class DrawInputs:
    """The rows for which negatives are drawn: a whole batch, or a part of it with its scores."""

    positives: Tensor  # [B]
    excluded_ids: Tensor  # [B, E] positive, padding and history
    keys: Any  # Tensor [B], or None when the sampler needs none
    generator: torch.Generator | None
    begun: tuple[Tensor, ...] = ()  # tensors [B, ...] drawn before the scores were known
    scores: Any = None  # Tensor [B, n_items] once known
    log_z: Any = None  # Tensor [B] once known

    def uniforms(self, k: int) -> Tensor:
        """Return uniform random numbers in [0, 1): [B, k] float64."""
        return torch.rand(
            (len(self.positives), k),
            dtype=torch.float64,
            device=self.positives.device,
            generator=self.generator,
        )

    def at(self, rows: Rows) -> "DrawInputs":
        """Return the inputs of some rows."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return DrawInputs(
            self.positives[rows],
            self.excluded_ids[rows],
            pick(self.keys),
            self.generator,
            tuple(values[rows] for values in self.begun),
            pick(self.scores),
            pick(self.log_z),
        )


def _uniform_from(sampler: "NegativeSampler", call: DrawInputs, uniforms: Tensor) -> Tensor:
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    ranks = distinct_ranks(uniforms, len(sampler.candidates) - count)
    return sampler.candidates[skip_excluded(ranks, excluded)]


def _uniform(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    return _uniform_from(sampler, call, call.uniforms(sampler.k))


def _fixed(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    return _uniform_from(sampler, call, hashed_uniforms(call.keys, sampler.seed, sampler.k))


def _weighted(sampler: "NegativeSampler", call: DrawInputs, weights: Tensor) -> Tensor:
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    positions, valid = weighted_positions(call.uniforms(sampler.k), weights, excluded)
    # Rows whose remaining candidates all have weight 0 draw uniformly.
    ranks = (call.uniforms(sampler.k) * (len(sampler.candidates) - count).unsqueeze(1)).long()
    return sampler.candidates[torch.where(valid, positions, skip_excluded(ranks, excluded))]


def _popularity(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    return _weighted(sampler, call, sampler.popularity)


def _in_batch(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    counts = torch.zeros_like(sampler.position_of, dtype=torch.float64)
    counts.scatter_add_(0, call.positives, torch.ones_like(call.positives, dtype=torch.float64))
    return _weighted(sampler, call, sampler.total(counts)[sampler.candidates])


def _columns(sampler: "NegativeSampler", call: DrawInputs) -> tuple[Tensor, Tensor]:
    """Return the scores of padding and candidates [B, 1 + M], and the excluded columns [B, E].

    Padding is the first column and always excluded. Excluded items that are not candidates map to it.
    """
    scores = call.scores
    if len(sampler.columns) < scores.shape[1]:
        scores = scores.index_select(1, sampler.columns)
    return scores, sampler.position_of[call.excluded_ids] + 1


def _begin_gumbel(sampler: "NegativeSampler", call: DrawInputs) -> tuple[Tensor, ...]:
    """Draw negatives that are almost always accepted, whatever the scores: see ``_draw_by_probability``.

    Returns:
        tuple: the first K distinct draws [B, K]; how many of them are accepted [B], 0 in rows that need their scores;
        and the result of ``_flat_draws``. Empty when every row needs its scores.
    """
    if sampler.space == "probability" and call.positives.device.type == "cpu":
        flat = _flat_draws(sampler, call)
        ids, count = first_distinct(*flat[:2], sampler.k)
        return ids, torch.where(flat[1].all(dim=1), count, 0), *flat
    return ()


def _gumbel(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    if call.scores.device.type != "cpu":
        return _gumbel_plain(sampler, call)
    # Gumbel top-K draws without replacement: draw independently and take the first K distinct items.
    # Rows with fewer draw again, with the items they already have excluded.
    if call.begun:
        ids, n_drawn = (values.clone() for values in call.begun[:2])  # [B, K], [B]
        rows = (n_drawn < sampler.k).nonzero().squeeze(1)
        if len(rows):
            part = call.at(rows)
            ids[rows], n_drawn[rows] = first_distinct(*_with_bumps(sampler, part, part.begun[2:]), sampler.k)
    else:
        ids, n_drawn = first_distinct(*_draw_by_logit(sampler, call), sampler.k)
    draw = _draw_by_probability if call.begun else _draw_by_logit
    nth = torch.arange(sampler.k)
    for rounds in range(8):
        rows = (n_drawn < sampler.k).nonzero().squeeze(1)  # [r]
        if not len(rows):
            return ids
        offset = nth - n_drawn[rows].unsqueeze(1)  # [r, K], negative in columns that are filled
        part, drawn = call.at(rows), torch.where(offset < 0, ids[rows], 0)
        part.excluded_ids = torch.cat([part.excluded_ids, drawn], dim=1)
        if rounds < 7:
            fresh, count = first_distinct(*draw(sampler, part), sampler.k)
        else:  # very uneven probabilities
            fresh, count = _gumbel_plain(sampler, part), sampler.k - n_drawn[rows]
        new = (offset >= 0) & (offset < count.unsqueeze(1))
        ids[rows] = torch.where(new, fresh.gather(1, offset.clamp_min(0)), drawn)
        n_drawn[rows] = (n_drawn[rows] + count).clamp_max(sampler.k)
    return ids


def _gumbel_plain(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    values, excluded = _columns(sampler, call)
    if sampler.space == "probability":
        values = (values - _real_z(call)).exp()
    drawn = gumbel_topk(values, sampler.k, exclude=excluded, generator=call.generator)
    return sampler.columns[drawn]


def _real_z(call: DrawInputs) -> Tensor:
    """Return log-sum-exp over the real items: [B, 1]."""
    return without_padding(call.log_z, call.scores[:, 0]).unsqueeze(1)


def _draw_by_probability(sampler: "NegativeSampler", call: DrawInputs) -> tuple[Tensor, Tensor]:
    """Draw in proportion to exp(pi): ids [B, T] and whether each draw is valid [B, T].

    exp(pi) = 1 + expm1(pi), and the second terms sum to at most e - 1 over the catalogue. So almost every
    draw falls on the first terms and is uniform. Only the other rows read their scores.
    """
    return _with_bumps(sampler, call, _flat_draws(sampler, call))


def _flat_draws(sampler: "NegativeSampler", call: DrawInputs) -> FlatDraws:
    """Draw by the first terms: ids [B, T], whether the draw fell there [B, T], its mass [B, T] and theirs [B, 1]."""
    draws = sampler.k + 3 + sampler.k // 8  # a few more than K, because items repeat
    excluded, count = excluded_positions(call.excluded_ids, sampler.position_of)
    left = (len(sampler.candidates) - count).unsqueeze(1)
    mass = call.uniforms(draws) * (left + math.e - 1)
    flat = mass < left
    ranks = torch.where(flat, mass, 0.0).long()
    return sampler.candidates[skip_excluded(ranks, excluded)], flat, mass, left


def _with_bumps(sampler: "NegativeSampler", call: DrawInputs, drawn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Assign items to the draws that fell on the second terms: ids [B, T] and whether each draw is valid [B, T]."""
    ids, flat, mass, left = drawn
    rows = (~flat).any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return ids, flat
    part, ids, valid = call.at(rows), ids.clone(), flat.clone()
    scores, columns = _columns(sampler, part)
    bumps = (scores - _real_z(part)).exp().expm1().scatter_(1, columns, 0.0)  # [r, 1 + M]
    cdf = bumps.double().cumsum(dim=1)
    bump = torch.searchsorted(cdf, mass[rows] - left[rows], right=True)  # [r, T]
    hit = ~flat[rows] & (bump < cdf.shape[1])  # beyond the last column: not a draw
    bumped = sampler.columns[bump.clamp_max(cdf.shape[1] - 1)]
    ids[rows] = torch.where(hit, bumped, ids[rows])
    valid[rows] |= hit
    return ids, valid


def _draw_by_logit(sampler: "NegativeSampler", call: DrawInputs) -> tuple[Tensor, Tensor]:
    """Draw in proportion to exp(score): ids [B, T] and whether each draw is valid [B, T]."""
    scores, excluded = _columns(sampler, call)
    if scores is call.scores:
        scores = scores.clone()
    scores.scatter_(1, excluded, -torch.inf)
    # Subtract the largest remaining score, not the normalizer: the positive may hold almost all the mass.
    weights = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
    columns, valid = inverse_cdf(weights, call.uniforms(2 * sampler.k + 4))
    return sampler.columns[columns], valid


def _best(sampler: "NegativeSampler", call: DrawInputs, k: int, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """Return the K best allowed items of each row: values and ids, each [B, k]."""
    scores, excluded = _columns(sampler, call)
    # When the scores are the caller's, restore them afterwards: a copy would cost more than the search.
    before = scores.gather(1, excluded) if scores is call.scores else None
    scores.scatter_(1, excluded, -torch.inf)
    top = largest(scores, k, ordered)
    if before is not None:
        scores.scatter_(1, excluded, before)
    return top.values, sampler.columns[top.indices]


def _topk(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
    return _best(sampler, call, sampler.k)[1]


def _pool(sampler: "NegativeSampler", call: DrawInputs) -> Tensor:
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
            ``call`` the rows with their excluded items and, when the sampler needs them, scores.
        needs_scores: whose scores over the catalogue it reads: ``policy``, ``reference`` or None.
        needs_normalizer: whether it reads their log-sum-exp with ``sampler_space: probability``.
        needs_keys: whether it reads the numbers of the training rows.
        uses_pool: whether the draw needs ``pool_size`` candidates.
        begin: ``(sampler, call) -> tuple`` of tensors that can be drawn for a batch before its scores are known.
    """

    draw: Callable[["NegativeSampler", DrawInputs], Tensor]
    needs_scores: str | None = None
    needs_normalizer: bool = False
    needs_keys: bool = False
    uses_pool: bool = False
    begin: Callable[["NegativeSampler", DrawInputs], tuple[Tensor, ...]] | None = None


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


_CHOICES: dict[str, Collection[str]] = {
    "neg_sampler": SAMPLERS.keys(),
    "neg_candidates": ("all", "head", "tail"),
    "sampler_space": ("probability", "logit"),
    "pool_draw": ("uniform", "score"),
}


class NegativeSampler(nn.Module):
    """Draws negatives according to the settings.

    Every row needs K negatives: ``num_negatives`` must not exceed the number of candidates less the
    positive and, with ``exclude_history``, less the longest history of a row.

    Args:
        settings: ``neg_sampler``, ``num_negatives``, ``neg_candidates``,
            ``exclude_history``, ``sampler_space``, ``pool_size``, ``pool_draw``,
            ``popularity_alpha``, ``seed``.
        counts: [n_items] training counts.
        head_mask: [n_items] bool.
        max_history: length of the longest history.
        total: sums a tensor over the processes that share a batch (``in_batch``).

    Attributes:
        needs_scores (str or None): model whose scores over the catalogue ``sample`` needs.
        needs_normalizer (bool): whether it needs their log-sum-exp too.

    Raises:
        PrefError: a value that is not accepted, or more negatives than a row has candidates.
    """

    columns: Tensor
    position_of: Tensor
    popularity: Tensor

    def __init__(
        self,
        settings: Mapping[str, Any],
        counts: Tensor,
        head_mask: Tensor,
        max_history: int = 0,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> None:
        super().__init__()
        self.total = total
        for key, accepted in _CHOICES.items():
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
    def candidates(self) -> Tensor:
        """Ids of the items that may be drawn, ascending: [M]."""
        return self.columns[1:]

    def _candidates(self, head_mask: Tensor) -> Tensor:
        groups = {"all": torch.ones_like(head_mask), "head": head_mask, "tail": ~head_mask}
        group = groups[self.which].clone()
        group[0] = False
        return group.nonzero().squeeze(1)

    def _check_sizes(self, max_history: int) -> None:
        size = len(self.candidates)
        left, less, remedy = size - 1, "the positive", "set neg_candidates: all"
        if self.exclude_history:
            left = max(left - max_history, 0)
            less += f" and a history of up to {max_history}"
            remedy = "set exclude_history: False"
        where = f"neg_candidates={self.which!r} leaves (the {size} of the data set less {less})"
        if self.k > left:
            raise PrefError(
                f"num_negatives={self.k} is more than the {left} items that {where}: lower num_negatives or {remedy}."
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
                f"pool_size={self.pool_size} is more than the {left} items that {where}: lower pool_size or {remedy}."
            )

    @torch.no_grad()
    def begin(
        self,
        positives: Tensor,
        history: Tensor | None = None,
        keys: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "Draw":
        """Begin to draw the negatives of a batch: everything that does not need scores.

        Args:
            positives: [B] item ids.
            history: [B, L] item ids, 0 for none (``exclude_history``).
            keys: [B] int64 that identify the rows (``fixed``).
            generator: torch's global one when not given.

        Returns:
            Draw: its ``finish`` returns the negatives.

        Raises:
            PrefError: the sampler needs row numbers or histories and they are missing.
        """
        self._check_rows(history, keys)
        excluded = [torch.zeros_like(positives).unsqueeze(1), positives.unsqueeze(1)]
        if history is not None and self.exclude_history:
            excluded.append(history)
        return Draw(self, DrawInputs(positives, torch.cat(excluded, dim=1), keys, generator))

    def sample(
        self,
        positives: Tensor,
        scores: Tensor | None = None,
        history: Tensor | None = None,
        keys: Tensor | None = None,
        log_z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the negatives of a batch: ``begin`` and ``finish`` in one, with their arguments."""
        return self.begin(positives, history, keys, generator).finish(slice(None), scores, log_z)

    def _check_rows(self, history: Tensor | None, keys: Tensor | None) -> None:
        if self.needs_keys and keys is None:
            raise PrefError(f"neg_sampler={self.name!r} needs row numbers, which are missing: choose uniform.")
        if not self.exclude_history:
            return
        if history is None:
            raise PrefError(
                "exclude_history=True needs the histories of the rows, which are missing: set exclude_history: False."
            )


class Draw:
    """The draw of the negatives of a batch, finished part by part when the scores are known.

    Everything that does not need scores is drawn for the whole batch at once, which is faster than many small draws.
    """

    def __init__(self, sampler: "NegativeSampler", call: DrawInputs) -> None:
        self._sampler, self._call, self._kind = sampler, call, SAMPLERS[sampler.name]
        self.needs_scores = self._kind.needs_scores
        self._ids: Tensor | None = None
        if self._kind.needs_scores is None:
            self._ids = self._kind.draw(sampler, call)
        elif self._kind.begin is not None:
            call.begun = self._kind.begin(sampler, call)

    @torch.no_grad()
    def finish(self, rows: slice = slice(None), scores: Tensor | None = None, log_z: Tensor | None = None) -> Tensor:
        """Return the negatives of some rows: [c, K] int64 item ids.

        They are drawn without replacement, except by ``popularity`` and ``in_batch``.

        Args:
            rows: which rows of the batch.
            scores: [c, n_items] of the model that ``needs_scores`` names; unchanged afterwards.
            log_z: [c] log-sum-exp of the scores, padding included (``gumbel`` on
                probabilities); computed when not given.

        Raises:
            PrefError: the sampler needs scores and they are missing.
        """
        if self._ids is not None:
            return self._ids[rows]
        if scores is None:
            raise PrefError(
                f"neg_sampler={self._sampler.name!r} needs the scores of the {self._kind.needs_scores}, which are "
                "missing: choose uniform, popularity, in_batch or fixed."
            )
        part = self._call.at(rows)
        part.scores, part.log_z = scores, log_z
        if log_z is None and self._sampler.needs_normalizer:
            part.log_z = torch.logsumexp(scores, dim=1)
        return self._kind.draw(self._sampler, part)
