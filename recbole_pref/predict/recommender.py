"""Recommend items with a trained model: from item tokens to item tokens and scores, or to vectors.

A checkpoint of this package contains the settings, the weights and the item tokens. The data set is needed only for
the histories of its users, and for models with item features.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_pref import checkpoint, scoring
from recbole_pref.config import Config
from recbole_pref.data.dataset import in_order_of
from recbole_pref.encoder.multimodal import Multimodal
from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import method_of
from recbole_pref.model.names import LINEAR, model_class
from recbole_pref.model.sizes import Sizes
from recbole_pref.restore import load_data, load_model, settings_of


class Histories:
    """The items of each user of a data set, in the order of RecBole's training.

    Args:
        dataset: a sequential data set before the split.

    Attributes:
        ids: user ids by token.
        items: [N] item ids of all interactions, grouped by user, the latest last.
        starts: [n_users + 1] the positions in ``items`` at which users start.
    """

    def __init__(self, dataset: Dataset) -> None:
        user, item, time = dataset.uid_field, dataset.iid_field, dataset.time_field
        rows = dataset._dataframe_to_interaction(in_order_of(dataset.inter_feat[[user, item, time]], time))
        rows.sort(by=user)  # as in training: rows with equal times keep the order of the file
        self.ids = {token: number for number, token in enumerate(dataset.field2id_token[user])}
        self.items = rows[item].numpy()
        self.starts = np.searchsorted(rows[user].numpy(), np.arange(dataset.user_num + 1))

    def of(self, token: str) -> np.ndarray:
        """Return the item ids of a user; empty for unknown users and users without interactions."""
        number = self.ids.get(token, 0)
        return self.items[self.starts[number] : self.starts[number + 1]]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name.

    Raises:
        PrefError: torch cannot use the device.
    """
    try:
        checked = torch.device(device)
        torch.zeros(1, device=checked).cpu()
    except Exception as error:  # devices raise different errors
        accelerator = torch.accelerator.current_accelerator()
        kind = accelerator.type if accelerator else "cuda"
        usable = ["cpu", *(f"{kind}:{n}" for n in range(torch.accelerator.device_count()))]
        reason = re.split(r"\.\s|\.?\n|\.$", str(error) or type(error).__name__)[0]
        raise PrefError(
            f"device={str(device)!r} cannot be used by torch here ({reason}): set it to {' or '.join(usable)}."
        ) from None
    return checked


@contextmanager
def _visible_gpus_restored() -> Iterator[None]:
    """Restore the visible GPUs: RecBole's ``Config`` hides GPUs that ``gpu_id`` does not name."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


class Recommender:
    """A trained model that recommends items for sequences of item tokens, or for users of its data set.

    Args:
        model_file: a checkpoint written by this package.
        device: device of the model, such as ``cpu`` or ``cuda:0``.
        data_path: folder of the data sets, for users and for models with item features.

    Raises:
        PrefError: torch cannot use the device; the file is missing, damaged, or not a checkpoint of a sequential
            model of this package.
    """

    def __init__(
        self, model_file: str | os.PathLike[str], device: str | torch.device = "cpu", data_path: str | None = None
    ) -> None:
        self.device = usable_device(device)
        state = checkpoint.load(model_file, setting="predict")
        if not isinstance(state, dict) or "item_tokens" not in state:
            raise PrefError(
                f"predict={str(model_file)!r} holds no item tokens: name a checkpoint that this version of "
                "RecBole-Pref wrote."
            )
        settings = settings_of(state, state="ERROR", gpu_id="", strict_config=False)
        with _visible_gpus_restored():
            self.config = Config(state["model"], state["config"]["dataset"], config_dict=settings)
        cls = model_class(state["model"])
        if method_of(cls) is None and cls.__name__ not in LINEAR:
            raise PrefError(
                f"predict={str(model_file)!r} holds {state['model']}, but only <Method><Backbone> models "
                f"(CESASRec is SASRec with cross-entropy) and {', '.join(LINEAR)} recommend from sequences."
            )
        self.tokens = state["item_tokens"]
        self.ids = {token: number for number, token in enumerate(self.tokens) if token != "[PAD]"}
        self.config["device"] = self.device
        self._model_file = str(model_file)
        self._trained = {part: state[part] for part in ("model", "config", "data")}
        self._overrides = {"gpu_id": ""} if data_path is None else {"gpu_id": "", "data_path": data_path}
        if issubclass(cls, Multimodal):
            config, rows, self._histories = self._load_data()
            self.model: Any = load_model(state, model_file, config, rows).to(self.device)
        else:
            build: Any = cls
            sizes = Sizes(self.config, state["data"]["n_items"], state["data"]["n_users"])
            self.model = build(self.config, sizes).to(self.device)
            checkpoint.fill(self.model, state)
        self.model.eval()
        self.max_length = self.config["MAX_ITEM_LIST_LENGTH"]
        self._warned = False

    def to(self, device: str | torch.device) -> "Recommender":
        """Move the model to a device and return this object."""
        self.device = usable_device(device)
        self.config["device"] = self.device
        self.model.to(self.device)
        return self

    def with_histories(self) -> "Recommender":
        """Load the histories of the users of the data set and return this object."""
        _ = self._histories
        return self

    @cached_property
    @torch.no_grad()
    def _reads_users(self) -> bool:
        """Whether two users with the same sequence have different scores."""
        if self._trained["data"]["n_users"] < 2:
            return False
        scores = self.model.full_sort_predict(self._interaction([range(1, min(5, len(self.tokens)))] * 2, [0, 1]))
        scores = scores.view(2, -1)
        return not torch.allclose(scores[0], scores[1])

    def _interaction(self, histories: Sequence[Any], users: Any) -> Interaction:
        """Return the model's input: the last L items of B histories, right-padded [B, L]; lengths and users [B]."""
        model = self.model
        rows = torch.zeros(len(histories), self.max_length, dtype=torch.int64)
        lengths = torch.zeros(len(histories), dtype=torch.int64)
        for number, history in enumerate(histories):
            latest = torch.as_tensor(history[-self.max_length :])
            rows[number, : len(latest)] = latest
            lengths[number] = len(latest)
        fields = {model.ITEM_SEQ: rows, model.ITEM_SEQ_LEN: lengths, model.USER_ID: torch.as_tensor(users)}
        # RecBole's SASRecCPR and GRU4RecCPR read the next item when they score, for an unused loss.
        fields[model.ITEM_ID] = torch.ones_like(lengths)
        return Interaction(fields).to(self.device)

    def _ids_of(self, sequence: Sequence[str], number: int, unknown: str) -> list[int]:
        """Return the item ids of a sequence of tokens; messages name its ``number``."""
        if isinstance(sequence, str):
            raise PrefError(f"sequence {number} is a text: give a list of item tokens.")
        tokens = [str(token) for token in sequence]
        ids = [self.ids[token] for token in tokens if token in self.ids]
        if unknown == "skip":
            return ids
        if len(ids) < len(tokens):
            unknown_item = next(token for token in tokens if token not in self.ids)
            raise PrefError(
                f"sequence {number} holds the item {unknown_item!r}, which the model does not know: remove "
                "it or skip unknown items (--unknown=skip, unknown='skip')."
                f"{suggest(unknown_item, self.tokens[:5000])}"
            )
        if not tokens:
            raise PrefError(f"sequence {number} holds no item.")
        return ids

    def recommend(
        self,
        sequences: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        unknown: str = "error",
        batch_size: int = 1024,
        first: int = 1,
    ) -> pd.DataFrame:
        """Return the best items for sequences of item tokens, the latest last.

        Args:
            sequences: item tokens; the model uses the last ``MAX_ITEM_LIST_LENGTH`` of each sequence.
            k: items per sequence.
            exclude_seen: exclude all items of the sequence.
            unknown: ``error`` refuses unknown items, ``skip`` leaves them out. Then a sequence of only unknown items
                has no recommendations; a warning reports the number of such sequences.
            batch_size: sequences per batch of the encoder.
            first: number of the first sequence in messages.

        Returns:
            Columns row (index of the sequence, from 0), rank (from 1), item and score.

        Raises:
            PrefError: an item is unknown or a sequence is empty (with the number of the sequence), or k is above the
                number of items.
        """
        self._check_k(k)
        histories = self._histories_of(sequences, unknown, first)
        without = sum(not history for history in histories)
        if without:
            getLogger().warning(
                f"{without} of {len(histories)} sequences hold no known item and get no recommendations."
            )
        return self._recommend(histories, np.zeros(len(histories), np.int64), k, exclude_seen, batch_size)

    def _histories_of(self, sequences: Sequence[Sequence[str]], unknown: str, first: int) -> list[list[int]]:
        """Return the item ids of sequences of tokens; warn once if the scores of the model depend on users."""
        if isinstance(sequences, str):
            raise PrefError("sequences is a text: give a list of lists of item tokens.")
        histories = [self._ids_of(sequence, number, unknown) for number, sequence in enumerate(sequences, first)]
        if self._reads_users and not self._warned:
            self._warned = True
            getLogger().warning(
                f"{self._trained['model']} scores with a vector per user, but sequences have no user of the training "
                "data: the padding vector is used. recommend_users uses the vectors of users."
            )
        return histories

    def recommend_users(
        self,
        users: Sequence[str],
        k: int = 10,
        exclude_seen: bool = True,
        unknown: str = "error",
        batch_size: int = 1024,
        first: int = 1,
    ) -> pd.DataFrame:
        """Return the best items for users of the data set that the model was trained on.

        The history of a user includes the items of validation and test, in time order, as in production; so do not
        evaluate a model with these lists. The model uses the last ``MAX_ITEM_LIST_LENGTH`` items and, if it has one,
        the vector of the user. The first call loads the data set.

        Args:
            users: user tokens.
            k: items per user.
            exclude_seen: exclude all items of the history.
            unknown: ``error`` refuses users without interactions in the data set, ``skip`` leaves them out. Then
                they have no recommendations; a warning reports their number.
            batch_size: users per batch of the encoder.
            first: number of the first user in messages.

        Returns:
            Columns user, rank (from 1), item and score.

        Raises:
            PrefError: a user is unknown, k is above the number of items, or the data set is missing or not that of the
                training.
        """
        self._check_k(k)
        if isinstance(users, str):
            raise PrefError("users is a text: give a list of user tokens.")
        if self.config["benchmark_filename"]:
            raise PrefError(
                f"benchmark_filename={self.config['benchmark_filename']!r} gives sequences without whole "
                "histories of users: recommend for sequences of items instead."
            )
        names = [str(user) for user in users]
        histories = [self._histories.of(name) for name in names]
        without = [number for number, history in enumerate(histories) if not len(history)]
        if without and unknown == "skip":
            getLogger().warning(
                f"{len(without)} of {len(names)} users have no interactions in the data set and get no recommendations."
            )
        elif without:
            unknown_user = names[without[0]]
            raise PrefError(
                f"user {without[0] + first} is {unknown_user!r}, which has no interactions in the data set "
                f"{self.config['dataset']!r}: remove it or skip unknown users (--unknown=skip, unknown='skip')."
                f"{suggest(unknown_user, list(self._histories.ids)[1:5001])}"
            )
        ids = np.array([self._histories.ids.get(user, 0) for user in names], np.int64)
        frame = self._recommend(histories, ids, k, exclude_seen, batch_size)
        frame.insert(0, "user", [names[row] for row in frame.pop("row")])
        return frame

    # -- vectors

    def terms_beside_vectors(self) -> dict[str, float]:
        """Return the weights, by name, of terms that scores have in addition to the dot product of vectors.

        ``repeat_bias`` changes only the scores of the items in the sequence. Lists that exclude these items do not need
        it. The linear ``prior`` changes the scores of all items, so lists differ without it. Item features are part of
        the item vectors.

        Raises:
            PrefError: the scores of the backbone are not products of vectors.
        """
        if self.model.backbone is None:
            raise PrefError(
                f"{self._trained['model']} has no vectors of sequences: its scores are not products of them with item "
                "vectors; choose SASRec, GRU4Rec or Caser."
            )
        history = torch.zeros(1, self.max_length, dtype=torch.int64, device=self.device)
        history[0, 0] = 1
        with torch.no_grad():
            return {source.setting: float(weight) for weight, source in self.model.terms(history)}

    def _check_vectors(self, dot_product_only: bool) -> None:
        beside = ", ".join(f"{name} (weight {weight:.3g})" for name, weight in self.terms_beside_vectors().items())
        if beside and not dot_product_only:
            raise PrefError(
                f"scores of {self._trained['model']} are dot products plus {beside}, which vectors cannot "
                "represent: ignore it (--dot_product_only, dot_product_only=True) or add it to the scores yourself."
            )

    @torch.no_grad()
    def item_vectors(self, dot_product_only: bool = False) -> tuple[list[str], np.ndarray]:
        """Return the tokens of the n items and their vectors, float32 [n, H].

        The score of a user and an item is the dot product of their vectors; item vectors include item features.

        Args:
            dot_product_only: ignore other terms of the scores (``terms_beside_vectors``).

        Raises:
            PrefError: the backbone has no vectors, or the scores have other terms.
        """
        self._check_vectors(dot_product_only)
        return list(self.tokens[1:]), self.model.item_embedding.weight[1:].float().cpu().numpy()

    @torch.no_grad()
    def user_vectors(
        self,
        sequences: list[list[str]],
        unknown: str = "error",
        dot_product_only: bool = False,
        batch_size: int = 1024,
    ) -> np.ndarray:
        """Return the vectors of R sequences of item tokens, the latest last: float32 [R, H].

        Args:
            sequences: see :meth:`recommend`.
            unknown: ``error`` refuses unknown items, ``skip`` leaves them out. Then the vector of a sequence of only
                unknown items is zero.
            dot_product_only: see :meth:`item_vectors`.
            batch_size: sequences per batch of the encoder.

        Raises:
            PrefError: as in :meth:`recommend` and :meth:`item_vectors`.
        """
        self._check_vectors(dot_product_only)
        histories = self._histories_of(sequences, unknown, 1)
        vectors = np.zeros((len(histories), self.model.item_embedding.weight.shape[1]), np.float32)
        numbers = np.flatnonzero([len(history) > 0 for history in histories])
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            batch = self._interaction([histories[number] for number in part], np.zeros(len(part), np.int64))
            vectors[part] = self.model.encode(batch).float().cpu().numpy()
        return vectors

    @cached_property
    def _histories(self) -> Any:
        return self._load_data()[2]

    def _load_data(self) -> tuple[Config, Dataset, Histories | None]:
        """Load the data set; return its configuration, its training rows and the histories of users.

        The histories are None with ``benchmark_filename``, which has no whole histories.
        """
        histories: list[Histories | None] = [None]
        states = checkpoint.rng_state()
        with _visible_gpus_restored():
            config, _, loaders = load_data(
                self._trained,
                self._model_file,
                {**self._overrides, "state": "WARNING"},
                log=False,
                unsplit=None if self.config["benchmark_filename"] else lambda data: histories.append(Histories(data)),
            )
        checkpoint.set_rng_state(states)  # RecBole seeds them for the split
        return config, loaders[0]._dataset, histories[-1]

    def _check_k(self, k: int) -> None:
        if not isinstance(k, Integral) or not 0 < k < len(self.tokens):
            raise PrefError(f"k={k!r} is not a whole number from 1 to the {len(self.tokens) - 1} items of the model.")

    def _recommend(
        self, histories: Sequence[Any], users: Any, k: int, exclude_seen: bool, batch_size: int
    ) -> pd.DataFrame:
        """Return row, rank, item and score for N histories of item ids and their users; empty histories are skipped."""
        if batch_size < 1:
            raise PrefError(f"batch_size={batch_size} is not accepted: set it to at least 1.")
        numbers = np.flatnonzero([len(history) > 0 for history in histories])
        frames = []
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            scores, items = self._best([histories[number] for number in part], users[part], k, exclude_seen)
            frames.append(
                pd.DataFrame(
                    {
                        "row": part.repeat(k),
                        "rank": torch.arange(1, k + 1).repeat(len(part)).numpy(),
                        "item": [self.tokens[item] for item in items.flatten().tolist()],
                        "score": scores.flatten().numpy(),
                    }
                )
            )
        frame = pd.concat(frames) if frames else pd.DataFrame(columns=["row", "rank", "item", "score"])
        # A small catalogue may have fewer than k unseen items.
        return frame[frame["score"] > -float("inf")].reset_index(drop=True)

    @torch.no_grad()
    def _best(
        self, histories: Sequence[Any], users: Any, k: int, exclude_seen: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.model
        interaction = self._interaction(histories, users)
        whole = model.backbone is None
        hidden: Any = None if whole else model.encode(interaction)
        best = []
        chunk = scoring.chunk_rows(len(self.tokens), self.config["logits_memory_mb"], self.device.type)
        for start in range(0, len(histories), chunk):
            part = slice(start, min(start + chunk, len(histories)))
            rows = interaction[part]
            scores = model.full_sort_predict(rows) if whole else model.score_items(hidden[part], rows)
            scores = scores.view(-1, len(self.tokens)).float()
            scores[:, 0] = -torch.inf
            if exclude_seen:
                seen = histories[part]
                row = np.arange(len(seen)).repeat([len(history) for history in seen])
                scores[torch.from_numpy(row), torch.from_numpy(np.concatenate(seen))] = -torch.inf
            best.append(scores.topk(k, dim=1))
        return torch.cat([b.values for b in best]).cpu(), torch.cat([b.indices for b in best]).cpu()
