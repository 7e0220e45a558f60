"""``MM<Backbone>``: a RecBole backbone whose item embedding is fused from ID and item features."""

import torch
from torch import nn

from recbole_pref.data.sequences import train_counts
from recbole_pref.encoder import features
from recbole_pref.encoder.item_table import ItemTable
from recbole_pref.errors import PrefError
from recbole_pref.popularity import head_tail_split


class Multimodal:
    """Gives the RecBole backbone that follows in the bases an :class:`ItemTable`.

    Args:
        config (Config): RecBole's configuration with the ``mm_*`` and ``moe_*`` settings.
        dataset (SequentialDataset): RecBole's training split, with item features loaded.

    Raises:
        PrefError: no item features, or a backbone that keeps item vectors elsewhere as well.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        embedding = self._own_embedding()
        found = features.read(dataset, config["mm_fields"])
        self.item_embedding = ItemTable(
            embedding, found, self._items_with_id(config, dataset), config
        )

    @staticmethod
    def prepare_config(config):
        """Request and check the feature files of a configuration, before RecBole reads them.

        Raises:
            PrefError: see ``features.request_features`` and ``features.check_files``.
        """
        features.request_features(config)
        features.check_files(config)

    def _own_embedding(self):
        """Return the backbone's item embedding when it is the only one: nn.Embedding."""
        embedding = getattr(self, "item_embedding", None)
        if not isinstance(embedding, nn.Embedding) or embedding.num_embeddings != self.n_items:
            raise PrefError(
                f"model={type(self).__name__} is not possible: {self._backbone_name()} has no embedding "
                "of the items called item_embedding, choose SASRec, GRU4Rec or Caser."
            )
        others = [
            name
            for name, module in self.named_modules(remove_duplicate=False)
            if isinstance(module, nn.Embedding) and "item" in name and name != "item_embedding"
        ]
        if others:
            raise PrefError(
                f"model={type(self).__name__} is not possible: {self._backbone_name()} keeps item "
                f"vectors in {others[0]} as well, choose SASRec, GRU4Rec or Caser."
            )
        return embedding

    def _backbone_name(self):
        names = [cls.__name__ for cls in type(self).__mro__]
        return names[names.index("Multimodal") + 1]

    def _items_with_id(self, config, dataset):
        """Return which items keep an ID embedding under ``replace_id``: [n_items] bool, or None."""
        if config["replace_id"] == "all":
            return None
        if config["replace_id"] == "none":
            return torch.ones(self.n_items, dtype=torch.bool)
        counts = train_counts(dataset)
        return head_tail_split(counts, config["tail_split"], config["head_ratio"])

    def calculate_loss(self, interaction):
        """Return the backbone's own loss with the losses of the experts: scalar."""
        return super().calculate_loss(interaction) + self.finish_step()

    def finish_step(self):
        """Return the losses of the step's expert routing (0 without experts) and forget its table."""
        loss, told = self.item_embedding.finish_step()
        step = getattr(self, "step", None)
        for name, value in told.items() if step is not None else ():
            step.diagnostics.add(name, value.float())
        return 0.0 if loss is None else loss

    def feature_digest(self):
        """Return the features' SHA-256 as text, for the key of a reference model."""
        return bytes(self.item_embedding.feature_digest.cpu().tolist()).hex()


def multimodal_class(backbone):
    """Build ``MM<Backbone>`` of a sequential model class of RecBole."""
    return type(
        f"MM{backbone.__name__}",
        (Multimodal, backbone),
        {
            "__doc__": f"{backbone.__name__} on items fused from ID and item features.",
            "__module__": "recbole_pref.encoder",
        },
    )
