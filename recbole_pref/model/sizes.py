"""Build a model from sizes, without a data set."""

from typing import Any

import torch


class Sizes:
    """The sizes that the constructor of a sequential model reads from a data set.

    Args:
        config (Config): RecBole's configuration.
        n_items, n_users: with the padding item and the padding user.
    """

    def __init__(self, config: Any, n_items: int, n_users: int) -> None:
        self.config = config
        self.item_num, self.user_num = n_items, n_users
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self.inter_feat = {self.iid_field: torch.zeros(0, dtype=torch.int64)}  # FEARec groups the training rows
        self.field2seqlen = {self.iid_field + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        """Return the size of a field's vocabulary."""
        return self.item_num if field == self.iid_field else self.user_num
