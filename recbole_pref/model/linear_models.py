"""``SLIST``, ``TALE`` and ``SeqEASE`` as sequential models of RecBole: fitted once, without epochs.

RecBole's ``EASE`` is a general model, which scores the row of a user in the training matrix. ``SeqEASE`` scores
the sequence of a row. So it is evaluated on the same rows as the other sequential models and can recommend for
new sequences.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_pref.model.linear import LinearModel, LinearSettings, Sequences
from recbole_pref.settings import LINEAR_SETTINGS


def training_sequences(dataset: SequentialDataset) -> Sequences:
    """Return the sequences of a RecBole training split, one per user, from its rows only.

    RecBole's rows are prefixes with the next item. A user's sequence is the prefix of the first row and
    then the targets of all rows, in time order.

    Args:
        dataset: the training split.

    Returns:
        Sequences
    """
    rows = dataset.inter_feat
    users, targets = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    times = rows[dataset.time_field].numpy().astype(np.float64)
    order = np.lexsort((times, users))  # stable: equal times keep RecBole's order
    user = users[order]
    is_first = np.diff(user, prepend=-1) != 0
    first = order[is_first]  # first row of each user
    suffix = dataset.config["LIST_SUFFIX"]
    lengths = rows[dataset.item_list_length_field][first].numpy()  # [U]
    size = lengths + np.diff(np.append(np.flatnonzero(is_first), len(user)))
    starts = np.concatenate(([0], size.cumsum()))
    in_prefix = np.arange(starts[-1]) - starts[:-1].repeat(size) < lengths.repeat(size)  # [M]
    valid = np.arange(max(lengths, default=0)) < lengths[:, None]

    def joined(field: str, last: np.ndarray, kind: type) -> np.ndarray:
        merged = np.empty(starts[-1], kind)
        merged[in_prefix] = rows[field + suffix][first].numpy()[:, : valid.shape[1]][valid]
        merged[~in_prefix] = last[order]
        return merged

    numbers = np.full(starts[-1], -1)
    numbers[~in_prefix] = order
    items, when = joined(dataset.iid_field, targets, np.int64), joined(dataset.time_field, times, np.float64)
    return Sequences(items, starts, when, numbers)


class LinearRecommender(SequentialRecommender):
    """A linear item-item model for RecBole; subclasses define the training rows.

    The trainer calls ``fit`` once. Until then, or until a checkpoint is loaded, all scores are 0.

    Attributes:
        linear_settings: a subclass's static method, the ``LinearSettings`` of a configuration.

    Args:
        config: RecBole's configuration.
        dataset: RecBole's training split; only the number of items is read here.
    """

    input_type = InputType.POINTWISE
    own_settings = LINEAR_SETTINGS
    backbone = None  # whole scores, not products of a representation and item vectors
    linear_settings: Callable[[Any], LinearSettings]

    def __init__(self, config: Config, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        self.USER_ID = config["USER_ID_FIELD"]
        self.linear = LinearModel(self.n_items, config["tau_inf"])
        self.settings = self.linear_settings(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))  # RecBole's optimizer needs a parameter

    def fit(self, dataset: SequentialDataset) -> None:
        """Fit the model to a training split; see ``LinearModel.fit``."""
        self.linear.fit(training_sequences(dataset), self.settings)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores of all items for each row's sequence: [B, n_items]."""
        return self.linear.scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the score of each row's item: [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def _shared(config: Any) -> dict[str, Any]:
    """Return the settings that all linear models share."""
    return {
        "reg_weight": config["reg_weight"],
        "window": config["MAX_ITEM_LIST_LENGTH"],
        "memory_mb": config["linear_memory_mb"],
    }


class SLIST(LinearRecommender):
    """Whole sequences reconstruct themselves, and the items before a position predict those after it."""

    @staticmethod
    def linear_settings(config: Config) -> LinearSettings:
        """Return the settings of the fit under a configuration."""
        return LinearSettings(
            targets="later", whole=config["alpha"], tau_train=config["tau_train"], zero_diagonal=True,
            use_times=config["train_ages"] == "times", **_shared(config),
        )  # fmt: skip


class TALE(LinearRecommender):
    """Every prefix predicts the next item; old sources and popular items weigh less."""

    @staticmethod
    def linear_settings(config: Config) -> LinearSettings:
        """Return the settings of the fit under a configuration."""
        return LinearSettings(
            targets="next", tau_train=config["tau_train"], c=config["c"], beta=config["beta"],
            use_times=config["train_ages"] == "times", **_shared(config),
        )  # fmt: skip


class SeqEASE(LinearRecommender):
    """Whole sequences reconstruct themselves, and no item predicts itself."""

    @staticmethod
    def linear_settings(config: Config) -> LinearSettings:
        """Return the settings of the fit under a configuration."""
        return LinearSettings(targets="none", whole=1.0, zero_diagonal=True, **_shared(config))


LINEAR_MODELS = {cls.__name__.lower(): cls for cls in (SLIST, TALE, SeqEASE)}
