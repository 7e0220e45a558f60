"""The item embedding of a multimodal backbone: one fused vector per item.

``ItemTable`` replaces a backbone's ``item_embedding``. Like a ``torch.nn.Embedding`` it has ``weight`` and is
called with item ids. So sequences, catalogue scores, samplers and reference models read the same fused
vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from recbole_pref.encoder import features as item_features
from recbole_pref.encoder.fusion import FUSIONS, Routing, balance_loss, expert_counts, router_z_loss
from recbole_pref.errors import PrefError


class Modality(nn.Module):
    """Projects one feature of all items to the width of the item vectors.

    Vectors are mapped linearly. Tokens are embedded and averaged over the item's tokens. An item without the
    feature gets a learned default vector.

    Args:
        feature: values of all items.
        width: H.
        scale: initial standard deviation of the vectors, that of the ID embedding.
    """

    values: torch.Tensor
    present: torch.Tensor

    def __init__(self, feature: item_features.Feature, width: int, scale: float) -> None:
        super().__init__()
        self.name = feature.name
        values, present = feature.values, feature.present
        self.default = nn.Parameter(torch.randn(width) * scale)
        if feature.n_tokens is None:
            values = item_features.standardized(values, present)
            self.projection = nn.Linear(values.shape[1], width)
            nn.init.normal_(self.projection.weight, std=scale * values.shape[1] ** -0.5)
            nn.init.zeros_(self.projection.bias)
        else:
            self.tokens = nn.Embedding(feature.n_tokens, width, padding_idx=0)
            nn.init.normal_(self.tokens.weight, std=scale)
        # A loaded checkpoint takes the features from the data set; only their digest is stored.
        self.register_buffer("values", values[1:], persistent=False)  # [n_items - 1, D or T]
        self.register_buffer("present", present[1:].unsqueeze(1), persistent=False)

    def row_tokens(self, dataset: Any) -> dict[str, list[str]]:
        """Return the tokens of the rows of parameters, by parameter; see ``ItemTable.row_tokens``."""
        if self.values.is_floating_point():
            return {}
        return {"tokens.weight": [str(token) for token in dataset.field2id_token[self.name]]}

    def forward(self) -> torch.Tensor:
        """Return the vectors of the real items: [n_items - 1, H]."""
        if self.values.is_floating_point():
            vectors = self.projection(self.values)
        else:
            vectors = F.embedding_bag(self.values, self.tokens.weight, mode="mean", padding_idx=0)
        return torch.where(self.present, vectors, self.default)


class IdModality(nn.Module):
    """ID embeddings of the items in ``has_id``, and a default vector for the others.

    Args:
        weight: [n_items, H] the backbone's initial embedding.
        has_id: [n_items] bool.
    """

    def __init__(self, weight: torch.Tensor, has_id: torch.Tensor) -> None:
        super().__init__()
        weight, has_id = weight[1:], has_id[1:]
        self.weight = nn.Parameter(weight[has_id].clone())  # [items with an ID, H]
        self.register_buffer("rows", None, persistent=False)
        if not has_id.all():
            self.default = nn.Parameter(torch.randn_like(weight[0]) * weight.std())
            rows = torch.cumsum(has_id, 0) - 1
            self.rows = torch.where(has_id, rows, len(self.weight))  # [n_items - 1]

    def row_tokens(self, dataset: Any) -> dict[str, list[str]]:
        """Return the tokens of the rows of parameters, by parameter; see ``ItemTable.row_tokens``."""
        tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
        if self.rows is not None:
            tokens = [token for token, row in zip(tokens, self.rows.tolist()) if row < len(self.weight)]
        return {"weight": tokens}

    def forward(self) -> torch.Tensor:
        """Return the vectors of the real items: [n_items - 1, H]."""
        if self.rows is None:
            return self.weight
        return torch.cat([self.weight, self.default.unsqueeze(0)])[self.rows]


class ItemTable(nn.Module):
    """Fused vectors of all items instead of an ID embedding.

    The table is computed at the first use in a training step and cached until ``finish_step``. Without
    gradient it is cached until a parameter changes, so that evaluation computes it once.

    Args:
        embedding: the backbone's initialized item embedding, [n_items, H].
        features: modalities besides the ID.
        has_id: [n_items] bool, items with an ID embedding; None for no item.
        settings (Mapping): ``mm_fusion``, ``moe_*``.
    """

    feature_digest: torch.Tensor

    def __init__(
        self,
        embedding: nn.Embedding,
        features: Sequence[item_features.Feature],
        has_id: torch.Tensor | None,
        settings: Any,
    ) -> None:
        super().__init__()
        weight = embedding.weight.detach()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = embedding.padding_idx
        scale = weight.std().item()
        self.padding = nn.Parameter(weight[:1].clone())
        modalities: list[nn.Module] = [Modality(feature, self.embedding_dim, scale) for feature in features]
        if has_id is not None:
            modalities.insert(0, IdModality(weight, has_id))
        self.modalities = nn.ModuleList(modalities)
        fusion = FUSIONS[settings["mm_fusion"]]
        self.fusion = fusion(len(modalities), self.embedding_dim, settings)
        self.balance_weight = settings["moe_balance_weight"]
        self.z_weight = settings["moe_z_weight"]
        self.register_buffer("feature_digest", item_features.digest(features))
        self._forget()

    def row_tokens(self, dataset: Any) -> dict[str, list[str]]:
        """Return what the rows of parameters belong to: the items with an ID embedding, the tokens of a feature.

        Args:
            dataset (Dataset): of RecBole, from which the table was made.

        Returns:
            Tokens in the order of the rows, by the name of the parameter.
        """
        modalities: Any = self.modalities
        return {
            f"modalities.{number}.{name}": tokens
            for number, modality in enumerate(modalities)
            for name, tokens in modality.row_tokens(dataset).items()
        }

    def _forget(self) -> None:
        self._cached: Any = None  # (table, Routing or None)
        self._cache_key: Any = None

    def _fuse(self) -> tuple[torch.Tensor, Routing | None]:
        with torch.autocast(self.padding.device.type, enabled=False):
            parts = torch.stack([modality() for modality in self.modalities], dim=1)
            fused, routing = self.fusion(parts)
            return torch.cat([self.padding, fused]), routing  # [n_items, H]

    @property
    def weight(self) -> torch.Tensor:
        """The fused vectors of all items, padding first: [n_items, H]."""
        return self._current()[0]

    def _current(self) -> tuple[torch.Tensor, Routing | None]:
        # The version of a parameter counts its changes: optimizer steps, loaded checkpoints.
        versions = tuple(parameter._version for parameter in self.parameters())
        with_graph = torch.is_grad_enabled() and self.padding.requires_grad
        if self._cache_key != (versions, with_graph):
            self._cached, self._cache_key = self._fuse(), (versions, with_graph)
        return self._cached

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the fused vectors of item ids of any shape [...]: [..., H]."""
        return F.embedding(ids, self.weight, self.padding_idx)

    def finish_step(self) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """End a training step and discard its table, whose graph serves one backward pass.

        Returns:
            tuple: the weighted sum of load-balancing and router z-loss (None without experts), and scalars of
            the routing for the log.
        """
        routing = self._current()[1]
        self._forget()
        if routing is None:
            return None, {}
        balance, z = balance_loss(routing.probs, routing.experts), router_z_loss(routing.logits)
        counts = expert_counts(routing.experts, routing.logits.shape[1])
        log_values = {f"expert_{e}_share": count / counts.sum() for e, count in enumerate(counts)}
        log_values.update(expert_balance=balance.detach(), router_z=z.detach())
        return self.balance_weight * balance + self.z_weight * z, log_values

    def train(self, mode: bool = True) -> "ItemTable":
        """Set training mode and discard the cached table."""
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of copies and pickles, without the cached table, which may belong to a graph."""
        state = self.__dict__.copy()
        state["_cached"] = state["_cache_key"] = None
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}feature_digest")
        if stored is not None and not torch.equal(stored.cpu(), self.feature_digest.cpu()):
            raise PrefError(
                "the checkpoint was trained with other item features than the current mm_fields and data "
                "files: use the original files and fields, or train again."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._forget()
