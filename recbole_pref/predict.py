"""Recommendations for people: item tokens in, item tokens and scores out.

    python run_recbole_pref.py --predict=saved/...-best.pth --input=sequences.csv --output=top.csv --k=10

A checkpoint of this package holds the settings, the weights and the items' tokens; the data set itself is
not needed, but for models with item features, which are read from it.
"""

import os
from contextlib import contextmanager
from logging import getLogger
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_pref import checkpoint, scoring
from recbole_pref.config import Config
from recbole_pref.data_tool import read_parquet_file, read_text_table
from recbole_pref.encoder.multimodal import Multimodal
from recbole_pref.errors import PrefError, suggest
from recbole_pref.quick_start import load_data_and_model, settings_of
from recbole_pref.registry import method_of, model_class


class Vocabulary:
    """What a model's constructor asks of a data set, answered from a checkpoint."""

    uid_field, iid_field, item_list_length_field = "user_id", "item_id", "item_length"

    def __init__(self, config, state):
        self.config = config
        self.item_num, self.user_num = state["data"]["n_items"], state["data"]["n_users"]
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self.field2seqlen = {self.iid_field + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"]}
        # Counts only decide the head/tail split of training, which is not asked for here.
        items = torch.arange(self.item_num)
        self.inter_feat = Interaction(
            {
                self.uid_field: torch.zeros_like(items),
                self.iid_field: items,
                self.iid_field + config["LIST_SUFFIX"]: items.unsqueeze(1),
                self.item_list_length_field: torch.full_like(items, 2),
            }
        )

    def num(self, field):
        """Return the size of a field's vocabulary."""
        return self.item_num if field == self.iid_field else self.user_num


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


class Recommender:
    """A trained model that recommends items for sequences of item tokens.

    Args:
        model_file (path-like): a checkpoint written by this package.
        device (str or torch.device): where the model runs.
        data_path (str, optional): where the data set is now, for models with item features.

    Raises:
        PrefError: the file is missing, damaged, or not one of a sequential model of this package.
    """

    def __init__(self, model_file, device="cpu", data_path=None):
        state = checkpoint.load(model_file, setting="predict")
        if not isinstance(state, dict) or "item_tokens" not in state:
            raise PrefError(
                f"predict={str(model_file)!r} holds no item tokens: name a checkpoint that this version of "
                "RecBole-Pref wrote."
            )
        settings = {**settings_of(state), "state": "ERROR", "reference": "auto"}
        # Of what only training needs, nothing may stand in the way: the vocabulary has no counts.
        settings |= {"gpu_id": "", "strict_config": False, "exclude_history": False, "objective": None,
                     "neg_candidates": "all", "num_negatives": 1, "pool_size": 1, "tawin_anchor": 0,
                     "tail_split": "items"}  # fmt: skip
        if state["config"].get("lambda", 0) == 0:
            settings["reference"] = "none"
        with _visible_gpus_kept():
            self.config = Config(state["model"], state["config"]["dataset"], config_dict=settings)
        cls = model_class(state["model"])
        if method_of(cls) is None:
            raise PrefError(
                f"predict={str(model_file)!r} holds {state['model']}, and only <Method><Backbone> models "
                "recommend from sequences (CESASRec is SASRec with cross-entropy)."
            )
        self.tokens = state["item_tokens"]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.device = self.config["device"] = torch.device(device)
        if issubclass(cls, Multimodal):
            moved = {} if data_path is None else {"data_path": data_path}
            with _visible_gpus_kept():
                model = load_data_and_model(str(model_file), gpu_id="", **moved)[1]
            self.model = model.to(self.device)
        else:
            self.model = cls(self.config, Vocabulary(self.config, state)).to(self.device)
            self.model.load_state_dict(state["state_dict"])
        self.model.eval()
        self.max_length = self.config["MAX_ITEM_LIST_LENGTH"]
        if self._reads_users(state["data"]["n_users"]):
            getLogger().warning(
                f"{state['model']} scores with a vector per user, and sequences name no user of the training data: "
                "the vector of nobody is used. load_data_and_model and RecBole's full_sort_topk rank for known users."
            )

    @torch.no_grad()
    def _reads_users(self, n_users):
        """Return whether scores differ between two users with the same sequence."""
        if self.model.backbone is not None or n_users < 2:
            return False
        rows, lengths = self._encode_tokens([self.tokens[1:5]] * 2)
        scores = self.model.full_sort_predict(self._interaction(rows, lengths, torch.arange(2)))
        scores = scores.view(2, -1)
        return not torch.allclose(scores[0], scores[1])

    def _interaction(self, rows, lengths, users):
        model = self.model
        fields = {model.ITEM_SEQ: rows, model.ITEM_SEQ_LEN: lengths, model.USER_ID: users}
        return Interaction(fields).to(self.device)

    def _encode_tokens(self, sequences, first=1):
        """Return item ids [B, L] right-padded, lengths [B]; only the last L items are kept.

        ``first`` is the number of the first sequence in messages.
        """
        rows = torch.zeros(len(sequences), self.max_length, dtype=torch.int64)
        lengths = torch.zeros(len(sequences), dtype=torch.int64)
        for number, sequence in enumerate(sequences):
            if isinstance(sequence, str):
                raise PrefError(f"sequence {first + number} is a text: give a list of item tokens.")
            sequence = [str(token) for token in sequence]
            unknown = [token for token in sequence if token not in self.ids or token == "[PAD]"]
            if unknown:
                raise PrefError(
                    f"sequence {first + number} holds the item {unknown[0]!r}, which the model does not know: remove "
                    "it or skip unknown items (--unknown=skip, unknown='skip')."
                    f"{suggest(unknown[0], self.tokens[:5000])}"
                )
            if not sequence:
                raise PrefError(f"sequence {first + number} holds no item.")
            kept = torch.tensor([self.ids[token] for token in sequence[-self.max_length :]])
            rows[number, : len(kept)] = kept
            lengths[number] = len(kept)
        return rows, lengths

    @torch.no_grad()
    def recommend(self, sequences, k=10, exclude_seen=True, unknown="error", batch_size=1024):
        """Return the best items for sequences of item tokens, the latest last.

        Args:
            sequences (list of list of str): of any length; the last ``MAX_ITEM_LIST_LENGTH`` count.
            k (int): items per sequence.
            exclude_seen (bool): leave the items of the whole sequence out.
            unknown (str): ``error`` or ``skip`` items that the model does not know; a sequence of such items
                alone then gets no recommendations, and a warning tells how many there are.
            batch_size (int): sequences encoded at a time.

        Returns:
            DataFrame: row (number of the sequence, from 0), rank (from 1), item, score.

        Raises:
            PrefError: an unknown item, an empty sequence, k above the number of items.
        """
        if not isinstance(k, Integral) or not 0 < k < len(self.tokens):
            raise PrefError(f"k={k!r} is not a whole number from 1 to the {len(self.tokens) - 1} items of the model.")
        if isinstance(sequences, str):
            raise PrefError("sequences is a text: give a list of lists of item tokens.")
        numbers = np.arange(len(sequences))
        if unknown == "skip":
            sequences = [[t for t in map(str, s) if t in self.ids and t != "[PAD]"] for s in sequences]
            numbers = np.flatnonzero([len(sequence) > 0 for sequence in sequences])
            if len(numbers) < len(sequences):
                getLogger().warning(
                    f"{len(sequences) - len(numbers)} of {len(sequences)} sequences hold no item that the model knows "
                    "and get no recommendations."
                )
            sequences = [sequences[number] for number in numbers]
        frames = []
        chunk = scoring.chunk_rows(len(self.tokens), self.config["logits_memory_mb"], self.device.type)
        for start in range(0, len(sequences), batch_size):
            part = sequences[start : start + batch_size]
            scores, items = self._best(part, k, exclude_seen, chunk, start + 1)
            frames.append(
                pd.DataFrame(
                    {
                        "row": numbers[start : start + len(part)].repeat(k),
                        "rank": torch.arange(1, k + 1).repeat(len(part)).numpy(),
                        "item": [self.tokens[item] for item in items.flatten().tolist()],
                        "score": scores.flatten().numpy(),
                    }
                )
            )
        frame = pd.concat(frames) if frames else pd.DataFrame(columns=["row", "rank", "item", "score"])
        # A short catalogue can run out of unseen items.
        return frame[frame["score"] > -float("inf")].reset_index(drop=True)

    def _best(self, sequences, k, exclude_seen, chunk, first):
        rows, lengths = self._encode_tokens(sequences, first)
        model = self.model
        interaction = self._interaction(rows, lengths, torch.zeros_like(lengths))
        whole = model.backbone is None
        hidden = None if whole else model.encode(interaction)
        best = []
        for start in range(0, len(sequences), chunk):
            part = slice(start, min(start + chunk, len(sequences)))
            rows = interaction[part]
            scores = model.full_sort_predict(rows) if whole else model.score_items(hidden[part], rows)
            scores = scores.view(-1, len(self.tokens)).float()
            scores[:, 0] = -torch.inf
            if exclude_seen:
                seen = [[self.ids[str(token)] for token in sequence] for sequence in sequences[part]]
                row = torch.arange(len(seen)).repeat_interleave(torch.tensor([len(ids) for ids in seen]))
                scores[row, torch.tensor([item for ids in seen for item in ids])] = -torch.inf
            best.append(scores.topk(k, dim=1))
        return torch.cat([b.values for b in best]).cpu(), torch.cat([b.indices for b in best]).cpu()


def read_sequences(path):
    """Read sequences of item tokens from a CSV or Parquet file.

    Either a column ``items`` (tokens separated by spaces) and, optionally, ``user``; or columns ``user`` and
    ``item``, one interaction a row in time order.

    Returns:
        tuple: names (list of str, the users or row numbers), sequences (list of list of str).
    """
    path = Path(path)
    if not path.is_file():
        raise PrefError(f"input={str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}: name a file.")
    try:
        frame = read_parquet_file(path) if path.suffix == ".parquet" else read_text_table(path, ",")
    except PrefError as error:
        raise PrefError(
            f"input is no table with one header line and as many fields in each row (a field with commas goes in "
            f"quotes, the items of a sequence are separated by spaces): {error}"
        ) from None
    columns = [name for name in ("user", "item", "items") if name in frame]
    if columns not in (["items"], ["user", "items"], ["user", "item"]):
        raise PrefError(
            f"input={str(path)!r} has the columns {', '.join(map(str, frame))}: it needs 'items', or 'user' and 'item'."
        )
    empty = frame[columns].isna().any(axis=1)
    if empty.any():
        raise PrefError(f"input={str(path)!r}: row {int(empty.argmax()) + 1} is not complete: remove it.")
    if columns[-1] == "items":
        names = frame["user"] if "user" in frame else frame.index
        listed = [value.split() if isinstance(value, str) else list(map(str, value)) for value in frame["items"]]
        return list(map(str, names)), listed
    grouped = frame.astype(str).groupby("user", sort=False)["item"].agg(list)
    return list(grouped.index), list(grouped)


def predict_file(model_file, source, target, k=10, exclude_seen=True, unknown="error", data_path=None):
    """Recommend for every sequence of a file and write user, rank, item and score.

    Args:
        model_file (path-like): checkpoint.
        source (path-like): see ``read_sequences``.
        target (path-like): CSV or Parquet file to write.
        k, exclude_seen, unknown: see ``Recommender.recommend``.
        data_path: see ``Recommender``.

    Returns:
        DataFrame: what was written.

    Raises:
        PrefError: what those two refuse, or a target that is one of the files to read.
    """
    for option, path in (("predict", model_file), ("input", source)):
        if os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target):
            raise PrefError(f"output={str(target)!r} is the file of --{option}: name another one.")
    names, sequences = read_sequences(source)
    frame = Recommender(model_file, data_path=data_path).recommend(sequences, k, exclude_seen, unknown)
    frame.insert(0, "user", [names[row] for row in frame.pop("row")])

    def write(file):
        if str(target).endswith(".parquet"):
            frame.to_parquet(file, index=False)
        else:
            file.write(frame.to_csv(index=False).encode())

    checkpoint.write_atomically(target, write, "output")
    return frame
