"""A linear prior under a neural model: s(x, i) = f(x, i) + c g(x, i).

g(x, .) = x B are the scores of a fitted linear item-item model (``linear``), divided by their standard deviation
over the real items of the row, so that c is comparable between data sets. It generalises ``repeat_bias``, a prior
that depends only on the items in the history. It is a product of experts: the softmax of s is proportional to
exp(f) times the c-th power of the prior's softmax.

The linear model was fitted on the rows that the network trains on. In training, each row's own target therefore has the
score of a fit without that row (``linear.target_excess``). Otherwise the prior would seem much better than it is on
other rows.
"""

from typing import Any

import torch
from torch import nn

from recbole_pref import scoring
from recbole_pref.model.linear import LinearModel
from recbole_pref.settings import CHOSEN_WEIGHTS

_SMALLEST_STD = 1e-6  # a history whose items have no weights gives all items the same score


def is_used(config: Any) -> bool:
    """Return whether a configuration has a prior; with ``prior_weight: 0`` it has none."""
    return config["prior"] not in (None, "none") and config["prior_weight"] != 0


def is_in_training(config: Any) -> bool:
    """Return whether the prior is part of the logits of the loss; otherwise it is added after training."""
    return is_used(config) and bool(config["prior_in_training"])


def is_added_after_training(config: Any) -> bool:
    """Return whether a run with this configuration adds a prior to its best model after the last epoch."""
    return is_used(config) and not config["prior_in_training"]


def is_weight_chosen(config: Any) -> bool:
    """Return whether the validation set chooses the weight of the prior that a run adds after training."""
    return is_added_after_training(config) and config["prior_weight"] in CHOSEN_WEIGHTS


class Prior(nn.Module):
    """A fitted linear model whose scores are added to those of a neural one.

    Args:
        n_items: items with the padding item 0.

    Attributes:
        linear: the item-item weights, empty before ``of`` or ``load_state_dict``.
        tau_inf: decay of a history's items by their age, a scalar; infinity when all weigh 1.
        excess: [N] ``linear.target_excess`` of RecBole's training rows, only in training; None if there is none.
    """

    tau_inf: torch.Tensor
    excess: torch.Tensor | None

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.linear = LinearModel(n_items)
        self.register_buffer("tau_inf", torch.tensor(torch.inf))
        self.register_buffer("excess", None, persistent=False)

    @classmethod
    def of(cls, linear: LinearModel) -> "Prior":
        """Return the prior of a fitted linear model."""
        prior = cls(linear.n_items)
        prior.linear = linear
        prior.tau_inf.fill_(torch.inf if linear.tau_inf is None else linear.tau_inf)
        return prior

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        decay = self.tau_inf.item()
        self.linear.tau_inf = None if decay == torch.inf else decay

    @torch.no_grad()
    def scores(
        self, histories: torch.Tensor, targets: torch.Tensor | None = None, excess: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return g.

        Args:
            histories: [R, L] item ids, right-padded with 0, the latest last.
            targets, excess: [R] target items of training rows, and what their scores lose before the division.

        Returns:
            Tensor: [R, n_items] float32; 0 for the padding item.
        """
        scores = self.linear.scores(histories, (histories > 0).sum(dim=1)).float()
        if targets is not None and excess is not None:
            scores.scatter_add_(1, targets.unsqueeze(1), -excess.unsqueeze(1))
        size = scores.shape[1] - 1  # the padding item scores 0
        mean, square = scores.sum(dim=1) / size, torch.linalg.vector_norm(scores, dim=1).square() / size
        std = (square - mean.square()).clamp_min(0.0).sqrt().clamp_min(_SMALLEST_STD)
        return scores.div_(std.unsqueeze(1))


class PriorSource:
    """The prior's scores as an addend of the dot products; see ``scoring.Source``.

    Args:
        prior: a fitted prior.
        rows: [R, L] histories of the batch, followed by targets and excess in training; see ``Prior.scores``.
    """

    setting = "prior"

    def __init__(self, prior: Prior, *rows: torch.Tensor) -> None:
        self.prior, self._of_rows = prior, rows
        self._rows: slice | None = None  # the fused pass reads the same rows twice
        self._scores = rows[0]

    def _of(self, rows: slice) -> torch.Tensor:
        if self._rows != rows:
            self._rows, self._scores = rows, self.prior.scores(*(tensor[rows] for tensor in self._of_rows))
        return self._scores

    def add(self, scores: torch.Tensor, rows: slice, weight: torch.Tensor) -> None:
        """Add the scores, times the weight, in place; see ``scoring.Source``."""
        scores.addcmul_(self._of(rows).to(scores.dtype), weight.to(scores.dtype))

    def at(self, rows: slice, ids: torch.Tensor) -> torch.Tensor:
        """Return the scores of given items, for a bounded number of rows at a time; see ``scoring.Source``."""
        step = scoring.chunk_rows(self.prior.linear.n_items, device_type=ids.device.type)
        parts = zip(ids.split(step), *(tensor[rows].split(step) for tensor in self._of_rows))
        return torch.cat([self.prior.scores(*part).gather(1, chosen) for chosen, *part in parts])

    def dot(self, gradients: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the gradient of the weight; see ``scoring.Source``."""
        return torch.dot(gradients.flatten(), self._of(rows).to(gradients.dtype).flatten())
