"""``MM<Backbone>``: a RecBole backbone whose item embedding is fused from ID and item features."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recbole_pref.data.sequences import train_counts
from recbole_pref.encoder import features
from recbole_pref.encoder.item_table import ItemTable
from recbole_pref.errors import PrefError
from recbole_pref.popularity import head_tail_split

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import SequentialRecommender as _Backbone  # the next class in the bases
else:
    _Backbone = object


class Multimodal(_Backbone):
    """Gives an :class:`ItemTable` to the RecBole backbone that follows in the bases.

    Args:
        config (Config): RecBole's configuration with the ``mm_*`` and ``moe_*`` settings.
        dataset (SequentialDataset): RecBole's training split, with item features loaded.

    Raises:
        PrefError: no item features, or a backbone with further item vectors.
    """

    item_embedding: ItemTable

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        embedding = self._single_item_embedding()
        modalities = features.read(dataset, config["mm_fields"])
        self.item_embedding = ItemTable(embedding, modalities, self._items_with_id(config, dataset), config)

    @staticmethod
    def prepare_config(config: Any) -> None:
        """Request and check the feature files of a configuration before RecBole reads them.

        Raises:
            PrefError: see ``features.request_features`` and ``features.check_files``.
        """
        features.request_features(config)
        features.check_files(config)

    def _single_item_embedding(self) -> nn.Embedding:
        """Return the backbone's item embedding, which must be the only one."""
        embedding: Any = getattr(self, "item_embedding", None)
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
                f"model={type(self).__name__} is not possible: {self._backbone_name()} also keeps "
                f"item vectors in {others[0]}, choose SASRec, GRU4Rec or Caser."
            )
        return embedding

    def _backbone_name(self) -> str:
        names = [cls.__name__ for cls in type(self).__mro__]
        return names[names.index("Multimodal") + 1]

    def _items_with_id(self, config: Any, dataset: Any) -> torch.Tensor | None:
        """Return whether items have an ID embedding under ``replace_id``: [n_items] bool, or None for no item."""
        if config["replace_id"] == "all":
            return None
        if config["replace_id"] == "none":
            return torch.ones(self.n_items, dtype=torch.bool)
        counts = train_counts(dataset)
        return head_tail_split(counts, config["tail_split"], config["head_ratio"])

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Return the backbone's loss plus the losses of the experts: scalar."""
        return super().calculate_loss(interaction) + self.finish_step()

    def finish_step(self) -> torch.Tensor | float:
        """Return the losses of the step's expert routing (0 without experts) and discard its table."""
        loss, log_values = self.item_embedding.finish_step()
        step: Any = getattr(self, "step", None)
        for name, value in log_values.items() if step is not None else ():
            step.diagnostics.add(name, value.float())
        return 0.0 if loss is None else loss

    def feature_digest(self) -> str:
        """Return the features' SHA-256 as text, for the key of a reference model."""
        return bytes(self.item_embedding.feature_digest.cpu().tolist()).hex()


def multimodal_class(backbone: type) -> type:
    """Build ``MM<Backbone>`` of a sequential model class of RecBole."""
    return type(
        f"MM{backbone.__name__}",
        (Multimodal, backbone),
        {
            "__doc__": f"{backbone.__name__} on items fused from ID and item features.",
            "__module__": "recbole_pref.encoder",
        },
    )
