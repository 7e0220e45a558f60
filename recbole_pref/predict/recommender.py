"""A trained model that recommends: item tokens in, item tokens and scores, or vectors, out.

A checkpoint of this package holds the settings, the weights and the items' tokens; the data set itself is
needed only for given users, whose histories are read from it, and for models with item features.
"""

import os
import re
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_pref import checkpoint, scoring
from recbole_pref.config import Config
from recbole_pref.data.dataset import in_order_of
from recbole_pref.encoder.multimodal import Multimodal
from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import method_of
from recbole_pref.model.names import model_class
from recbole_pref.quick_start import load_data, load_model, settings_of


class Sizes:
    """The sizes that a model's constructor asks of a data set, from a checkpoint."""

    def __init__(self, config, state):
        self.config = config
        self.item_num, self.user_num = state["data"]["n_items"], state["data"]["n_users"]
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self.field2seqlen = {self.iid_field + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field):
        """Return the size of a field's vocabulary."""
        return self.item_num if field == self.iid_field else self.user_num


class Histories:
    """What each user of a data set had, in the order in which RecBole trains on it.

    Args:
        dataset (Dataset): sequential and not split yet.

    Attributes:
        ids (dict of str to int): user ids by token.
        items (int array [N]): the item ids of all interactions, user by user, the latest last.
        starts (int array [n_users + 1]): where the users' items start in there.
    """

    def __init__(self, dataset):
        user, item, time = dataset.uid_field, dataset.iid_field, dataset.time_field
        rows = dataset._dataframe_to_interaction(in_order_of(dataset.inter_feat[[user, item, time]], time))
        rows.sort(by=user)  # as in training: equal times keep the file's order
        self.ids = {token: number for number, token in enumerate(dataset.field2id_token[user])}
        self.items = rows[item].numpy()
        self.starts = np.searchsorted(rows[user].numpy(), np.arange(dataset.user_num + 1))

    def of(self, token):
        """Return the item ids of a user: int array, empty for a user without interactions or not in the data."""
        number = self.ids.get(token, 0)
        return self.items[self.starts[number] : self.starts[number + 1]]


def usable_device(device):
    """Return the torch device of a name; a PrefError says why torch cannot use it here."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    except Exception as error:  # each kind of device refuses in its own way
        accelerator = torch.accelerator.current_accelerator()
        usable = ["cpu", *(f"{accelerator.type}:{n}" for n in range(torch.accelerator.device_count()))]
        reason = re.split(r"\.\s|\.?\n|\.$", str(error) or type(error).__name__)[0]
        raise PrefError(
            f"device={str(device)!r} cannot be used by torch here ({reason}): set it to {' or '.join(usable)}."
        ) from None
    return found


@contextmanager
def _visible_gpus_kept():
    """RecBole's ``Config`` hides from this process and its children the GPUs that ``gpu_id`` does not name."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


# The settings behind the terms that are added to dot products.
_SETTING_OF_TERM = {"OfHistory": "repeat_bias", "OfPrior": "prior"}


class Recommender:
    """A trained model that recommends items for sequences of item tokens, or for users of its data set.

    Args:
        model_file (path-like): a checkpoint written by this package.
        device (str or torch.device): where the model runs, such as ``cpu`` or ``cuda:0``.
        data_path (str, optional): where the data set is now, for given users and for models with item features.

    Raises:
        PrefError: a device that torch cannot use; a file that is missing, damaged, or not one of a sequential
            model of this package.
    """

    def __init__(self, model_file, device="cpu", data_path=None):
        device = usable_device(device)
        state = checkpoint.load(model_file, setting="predict")
        if not isinstance(state, dict) or "item_tokens" not in state:
            raise PrefError(
                f"predict={str(model_file)!r} holds no item tokens: name a checkpoint that this version of "
                "RecBole-Pref wrote."
            )
        settings = settings_of(state, state="ERROR", gpu_id="", strict_config=False)
        with _visible_gpus_kept():
            self.config = Config(state["model"], state["config"]["dataset"], config_dict=settings)
        cls = model_class(state["model"])
        if method_of(cls) is None:
            raise PrefError(
                f"predict={str(model_file)!r} holds {state['model']}, and only <Method><Backbone> models "
                "recommend from sequences (CESASRec is SASRec with cross-entropy)."
            )
        self.tokens = state["item_tokens"]
        self.ids = {token: number for number, token in enumerate(self.tokens) if token != "[PAD]"}
        self.device = self.config["device"] = device
        self._model_file = str(model_file)
        self._trained = {part: state[part] for part in ("model", "config", "data")}
        self._overrides = {"gpu_id": ""} if data_path is None else {"gpu_id": "", "data_path": data_path}
        if issubclass(cls, Multimodal):
            config, rows, self._histories = self._load_data()
            self.model = load_model(state, model_file, config, rows).to(self.device)
        else:
            self.model = cls(self.config, Sizes(self.config, state)).to(self.device)
            checkpoint.fill(self.model, state)
        self.model.eval()
        self.max_length = self.config["MAX_ITEM_LIST_LENGTH"]
        self._warned = False

    @cached_property
    @torch.no_grad()
    def _reads_users(self):
        """Whether scores differ between two users with the same sequence."""
        if self._trained["data"]["n_users"] < 2:
            return False
        scores = self.model.full_sort_predict(self._interaction([range(1, min(5, len(self.tokens)))] * 2, [0, 1]))
        scores = scores.view(2, -1)
        return not torch.allclose(scores[0], scores[1])

    def _interaction(self, histories, users):
        """Return the model's input: the last L items of B histories, right-padded [B, L], lengths and users [B]."""
        model = self.model
        rows = torch.zeros(len(histories), self.max_length, dtype=torch.int64)
        lengths = torch.zeros(len(histories), dtype=torch.int64)
        for number, history in enumerate(histories):
            kept = torch.as_tensor(history[-self.max_length :])
            rows[number, : len(kept)] = kept
            lengths[number] = len(kept)
        fields = {model.ITEM_SEQ: rows, model.ITEM_SEQ_LEN: lengths, model.USER_ID: torch.as_tensor(users)}
        # RecBole's SASRecCPR and GRU4RecCPR ask for the next item while they score, for a loss that nobody reads.
        fields[model.ITEM_ID] = torch.ones_like(lengths)
        return Interaction(fields).to(self.device)

    def _ids_of(self, sequence, number, unknown):
        """Return the item ids of a sequence of tokens, the one of this ``number`` in messages."""
        if isinstance(sequence, str):
            raise PrefError(f"sequence {number} is a text: give a list of item tokens.")
        tokens = [str(token) for token in sequence]
        ids = [self.ids[token] for token in tokens if token in self.ids]
        if unknown == "skip":
            return ids
        if len(ids) < len(tokens):
            stranger = next(token for token in tokens if token not in self.ids)
            raise PrefError(
                f"sequence {number} holds the item {stranger!r}, which the model does not know: remove "
                "it or skip unknown items (--unknown=skip, unknown='skip')."
                f"{suggest(stranger, self.tokens[:5000])}"
            )
        if not tokens:
            raise PrefError(f"sequence {number} holds no item.")
        return ids

    def recommend(self, sequences, k=10, exclude_seen=True, unknown="error", batch_size=1024, first=1):
        """Return the best items for sequences of item tokens, the latest last.

        Args:
            sequences (list of list of str): of any length; the last ``MAX_ITEM_LIST_LENGTH`` count.
            k (int): items per sequence.
            exclude_seen (bool): leave the items of the whole sequence out.
            unknown (str): ``error`` or ``skip`` items that the model does not know; a sequence of such items
                alone then gets no recommendations, and a warning tells how many there are.
            batch_size (int): sequences encoded at a time.
            first (int): number of the first sequence, in messages.

        Returns:
            DataFrame: row (place of the sequence in the list, from 0), rank (from 1), item, score.

        Raises:
            PrefError: an unknown item, an empty sequence (both with the number of the sequence), k above
                the number of items.
        """
        self._check_k(k)
        histories = self._histories_of(sequences, unknown, first)
        without = sum(not history for history in histories)
        if without:
            getLogger().warning(
                f"{without} of {len(histories)} sequences hold no item that the model knows and get no recommendations."
            )
        return self._recommend(histories, np.zeros(len(histories), np.int64), k, exclude_seen, batch_size)

    def _histories_of(self, sequences, unknown, first):
        """Return the item ids of sequences of tokens, and warn once where a model knows its users: list of list."""
        if isinstance(sequences, str):
            raise PrefError("sequences is a text: give a list of lists of item tokens.")
        histories = [self._ids_of(sequence, number, unknown) for number, sequence in enumerate(sequences, first)]
        if self._reads_users and not self._warned:
            self._warned = True
            getLogger().warning(
                f"{self._trained['model']} scores with a vector per user, and sequences name no user of the training "
                "data: the vector of nobody is used. Given users of the data set have theirs (recommend_users)."
            )
        return histories

    def recommend_users(self, users, k=10, exclude_seen=True, unknown="error", batch_size=1024, first=1):
        """Return the best items for users of the data set that the model was trained on.

        A user's history is everything that the data set holds, in time order, the items of validation and test
        included: all that a recommender in use would know, so these lists are not for measuring a model. Its last
        ``MAX_ITEM_LIST_LENGTH`` items count. Models with a vector per user score with the user's own. The first
        call loads the data set.

        Args:
            users (list of str): user tokens.
            k (int): items per user.
            exclude_seen (bool): leave the items of the whole history out.
            unknown (str): ``error`` or ``skip`` users without interactions in the data set; those then get no
                recommendations, and a warning tells how many there are.
            batch_size (int): users at a time.
            first (int): number of the first user, in messages.

        Returns:
            DataFrame: user, rank (from 1), item, score.

        Raises:
            PrefError: an unknown user, k above the number of items, a data set that is missing or not the one
                that the model was trained on.
        """
        self._check_k(k)
        if isinstance(users, str):
            raise PrefError("users is a text: give a list of user tokens.")
        if self.config["benchmark_filename"]:
            raise PrefError(
                f"benchmark_filename={self.config['benchmark_filename']!r} gives sequences without the users' whole "
                "histories: recommend for sequences of items instead."
            )
        users = [str(user) for user in users]
        histories = [self._histories.of(user) for user in users]
        without = [number for number, history in enumerate(histories) if not len(history)]
        if without and unknown == "skip":
            getLogger().warning(
                f"{len(without)} of {len(users)} users have no interactions in the data set and get no recommendations."
            )
        elif without:
            stranger = users[without[0]]
            raise PrefError(
                f"user {without[0] + first} is {stranger!r}, which has no interactions in the data set "
                f"{self.config['dataset']!r}: remove it or skip unknown users (--unknown=skip, unknown='skip')."
                f"{suggest(stranger, list(self._histories.ids)[1:5001])}"
            )
        ids = np.array([self._histories.ids.get(user, 0) for user in users], np.int64)
        frame = self._recommend(histories, ids, k, exclude_seen, batch_size)
        frame.insert(0, "user", [users[row] for row in frame.pop("row")])
        return frame

    # -- vectors

    def terms_beside_vectors(self) -> dict[str, float]:
        """Return what scores hold beside the dot product of a user's and an item's vector: name to its weight.

        ``repeat_bias`` is added to the items of the sequence, so lists that leave them out do not need it. The linear
        ``prior`` depends on the whole sequence, so lists without it are others. Item features are part of the item
        vectors.

        Raises:
            PrefError: a backbone whose scores are not products of vectors.
        """
        if self.model.backbone is None:
            raise PrefError(
                f"{self._trained['model']} has no vectors of sequences: its scores are not products of them with item "
                "vectors; choose SASRec, GRU4Rec or Caser."
            )
        history = torch.zeros(1, self.max_length, dtype=torch.int64, device=self.device)
        history[0, 0] = 1
        with torch.no_grad():
            terms = [(type(source).__name__, float(weight)) for weight, source in self.model.terms(history)]
        return {_SETTING_OF_TERM.get(name, name): weight for name, weight in terms}

    def _check_vectors(self, dot_product_only):
        beside = ", ".join(f"{name} (weight {weight:.3g})" for name, weight in self.terms_beside_vectors().items())
        if beside and not dot_product_only:
            raise PrefError(
                f"scores of {self._trained['model']} are dot products and, beside them, {beside}, which vectors cannot "
                "hold: leave it out (--dot_product_only, dot_product_only=True) or add it to the scores yourself."
            )

    @torch.no_grad()
    def item_vectors(self, dot_product_only: bool = False) -> tuple[list[str], np.ndarray]:
        """Return the tokens of the n items and their vectors, float32 [n, H].

        A user's score of an item is the dot product of their vectors; item features are part of the item's.

        Args:
            dot_product_only: leave out what scores hold beside the dot product (``terms_beside_vectors``).

        Raises:
            PrefError: a backbone without vectors; scores that hold more than the dot product.
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
            sequences: as :meth:`recommend` takes them.
            unknown: ``error`` or ``skip`` items that the model does not know; a sequence of such items alone has a
                vector of zeros.
            dot_product_only: see :meth:`item_vectors`.
            batch_size: sequences encoded at a time.

        Raises:
            PrefError: what :meth:`recommend` and :meth:`item_vectors` refuse.
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
    def _histories(self):
        return self._load_data()[2]

    def _load_data(self):
        """Load the data set; return its configuration, its training rows and the users' ``Histories``.

        Where ``benchmark_filename`` gives sequences without the users' whole histories, these are None.
        """
        found, states = [None], checkpoint.rng_state()
        with _visible_gpus_kept():
            config, _, loaders = load_data(
                self._trained,
                self._model_file,
                {**self._overrides, "state": "WARNING"},
                log=False,
                unsplit=None if self.config["benchmark_filename"] else lambda data: found.append(Histories(data)),
            )
        checkpoint.set_rng_state(states)  # RecBole seeds them for the split
        return config, loaders[0]._dataset, found[-1]

    def _check_k(self, k):
        if not isinstance(k, Integral) or not 0 < k < len(self.tokens):
            raise PrefError(f"k={k!r} is not a whole number from 1 to the {len(self.tokens) - 1} items of the model.")

    def _recommend(self, histories, users, k, exclude_seen, batch_size):
        """Return row, rank, item and score for histories of item ids [N] of users [N]; empty ones get nothing."""
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
        # A short catalogue can run out of unseen items.
        return frame[frame["score"] > -float("inf")].reset_index(drop=True)

    @torch.no_grad()
    def _best(self, histories, users, k, exclude_seen):
        model = self.model
        interaction = self._interaction(histories, users)
        whole = model.backbone is None
        hidden = None if whole else model.encode(interaction)
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
