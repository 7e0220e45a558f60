"""The scores of the frozen reference model for a training step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from recbole_pref import losses, scoring
from recbole_pref.model.batch import Batch


class ReferenceScores(Protocol):
    """Scores of the reference for the rows of a batch."""

    def of(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """Return the scores of given items for some rows, as log-probabilities if the loss needs these: [c, M]."""

    def catalogue(self, rows: slice) -> torch.Tensor:
        """Return the raw scores of all items for some rows: [c, n_items]."""


@dataclass(frozen=True)
class HiddenScores:
    """Scores from representations.

    Attributes:
        hidden: [R, H].
        item_emb: [n_items, H].
        log_z: [R] normalizers, or None if the loss needs none.
        terms: addends of the dot products.
    """

    hidden: torch.Tensor
    item_emb: torch.Tensor
    log_z: torch.Tensor | None
    terms: scoring.Terms

    @torch.no_grad()
    def of(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """See :class:`ReferenceScores`."""
        scores = scoring.item_scores(self.hidden[rows], self.item_emb, ids, self.terms, rows)
        return scores if self.log_z is None else scores - self.log_z[rows].unsqueeze(1)

    @torch.no_grad()
    def catalogue(self, rows: slice) -> torch.Tensor:
        """See :class:`ReferenceScores`."""
        return scoring.chunk_scores(self.hidden, self.item_emb, rows, self.terms)


@dataclass(frozen=True)
class WholeScores:
    """Scores of all items [R, n_items] of backbones without an entry in ``backbones``."""

    scores: torch.Tensor

    def of(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """See :class:`ReferenceScores`."""
        scores = self.scores[rows]
        return scores.gather(1, ids) - scoring.real_log_z(scores).unsqueeze(1)

    def catalogue(self, rows: slice) -> torch.Tensor:
        """See :class:`ReferenceScores`."""
        return self.scores[rows]


class Cache:
    """The reference's representations of all training rows, so that they are computed once.

    Attributes:
        hidden: [N, H].
        log_z: [N], or None if the loss needs no normalizer.
    """

    def __init__(self, hidden: torch.Tensor, log_z: torch.Tensor | None) -> None:
        self.hidden, self.log_z = hidden, log_z


class Reference:
    """Computes the scores of a frozen model whose backbone has an entry in ``backbones``.

    Args:
        model: the backbone, in evaluation mode, its parameters without gradient.
        normalized: whether the loss needs log-probabilities.
        memory_mb: the setting ``logits_memory_mb``.
    """

    def __init__(self, model: Any, normalized: bool, memory_mb: float | None) -> None:
        self.model, self.normalized, self.memory_mb = model, normalized, memory_mb
        self.cache: Cache | None = None
        self._profiles: torch.Tensor | None = None

    def forget(self) -> None:
        """Forget what was computed, because the parameters of the model have changed."""
        self.cache = self._profiles = None

    def neighbour_gaps(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ``losses.neighbour_gaps`` of positives and negatives [c, 1 + K] by the item vectors: [c, K]."""
        if self._profiles is None:
            self._profiles = losses.neighbour_profiles(self._items.detach())
        return losses.neighbour_gaps(self._profiles, ids[:, 0], ids[:, 1:])

    @property
    def _items(self) -> torch.Tensor:
        return self.model.item_embedding.weight

    @torch.no_grad()
    def scores(self, batch: Batch) -> HiddenScores:
        """Return the scores of a batch, from the cache if there is one."""
        terms = self._terms(batch)
        if self.cache is not None:
            log_z = None if self.cache.log_z is None else self.cache.log_z[batch.rows]
            return HiddenScores(self.cache.hidden[batch.rows], self._items, log_z, terms)
        hidden = batch.encode(self.model).float()  # under autocast it may be half
        log_z = self._log_z(hidden, terms) if self.normalized else None
        return HiddenScores(hidden, self._items, log_z, terms)

    def _terms(self, batch: Batch) -> scoring.Terms:
        return self.model.terms(batch.histories, batch.targets, batch.rows)

    def _log_z(self, hidden: torch.Tensor, terms: scoring.Terms) -> torch.Tensor:
        chunk = scoring.chunk_rows(len(self._items), self.memory_mb, hidden.device.type)
        return scoring.catalogue_log_z(hidden, self._items, chunk, terms)

    @torch.no_grad()
    def fill_cache(self, batches: Iterable[Batch], n_rows: int) -> None:
        """Compute the representations of all training rows.

        Args:
            batches: all training batches once.
            n_rows: number of training rows.
        """
        cache = None
        for batch in batches:
            batch = batch.to(self._items.device)
            hidden = batch.encode(self.model)
            if cache is None:
                log_z = hidden.new_zeros(n_rows) if self.normalized else None
                cache = Cache(hidden.new_zeros(n_rows, hidden.shape[1]), log_z)
            cache.hidden[batch.rows] = hidden
            if cache.log_z is not None:
                cache.log_z[batch.rows] = self._log_z(hidden, self._terms(batch))
        self.cache = cache
