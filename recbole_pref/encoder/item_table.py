"""The item embedding of a multimodal backbone: one fused vector per item.

``ItemTable`` takes the place of a backbone's ``item_embedding``. It offers what a ``torch.nn.Embedding``
offers to RecBole's models, a call with item ids and ``weight``, so sequences, catalogue scores, samplers
and reference models read the same fused vectors and need not know of modalities.
"""

import torch
from torch import nn
from torch.nn import functional as F

from recbole_pref.encoder import features as item_features
from recbole_pref.encoder.fusion import FUSIONS, balance_loss, expert_counts, router_z_loss
from recbole_pref.errors import PrefError


class Modality(nn.Module):
    """Projects one feature of all items to the width of the item vectors.

    Vectors go through a linear map, tokens through an embedding and a mean over the item's tokens. An
    item without the feature gets a learned default vector.

    Args:
        feature (Feature): of the items.
        width (int): H.
        scale (float): standard deviation of the vectors at the start, that of the ID embedding.
    """

    def __init__(self, feature, width, scale):
        super().__init__()
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
        # The data set brings the features again when a checkpoint is loaded; their digest is stored.
        self.register_buffer("values", values[1:], persistent=False)  # [n_items - 1, D or T]
        self.register_buffer("present", present[1:].unsqueeze(1), persistent=False)

    def forward(self):
        """Return the vectors of the real items: [n_items - 1, H]."""
        if self.values.is_floating_point():
            vectors = self.projection(self.values)
        else:
            vectors = F.embedding_bag(self.values, self.tokens.weight, mode="mean", padding_idx=0)
        return torch.where(self.present, vectors, self.default)


class IdModality(nn.Module):
    """ID embeddings of all items, or of those that ``has_id`` marks and a default vector for the others.

    Args:
        weight (Tensor): [n_items, H] the backbone's own initial embedding.
        has_id (Tensor): [n_items] bool.
    """

    def __init__(self, weight, has_id):
        super().__init__()
        weight, has_id = weight[1:], has_id[1:]
        self.weight = nn.Parameter(weight[has_id].clone())  # [items with an ID, H]
        self.register_buffer("rows", None, persistent=False)
        if not has_id.all():
            self.default = nn.Parameter(torch.randn_like(weight[0]) * weight.std())
            rows = torch.cumsum(has_id, 0) - 1
            self.rows = torch.where(has_id, rows, len(self.weight))  # [n_items - 1]

    def forward(self):
        """Return the vectors of the real items: [n_items - 1, H]."""
        if self.rows is None:
            return self.weight
        return torch.cat([self.weight, self.default.unsqueeze(0)])[self.rows]


class ItemTable(nn.Module):
    """Fused vectors of all items in place of an ID embedding.

    The table is computed at the first use in a training step and kept until ``finish_step``; without
    gradient it is kept until a parameter changes, so that evaluation pays nothing for the modalities.

    Args:
        embedding (nn.Embedding): the backbone's initialized item embedding, [n_items, H].
        features (list of Feature): modalities beside the ID.
        has_id (Tensor or None): [n_items] bool, items that keep an ID embedding; None for no item.
        settings (Mapping): ``mm_fusion``, ``moe_*``.
    """

    def __init__(self, embedding, features, has_id, settings):
        super().__init__()
        weight = embedding.weight.detach()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = embedding.padding_idx
        scale = weight.std().item()
        self.padding = nn.Parameter(weight[:1].clone())
        modalities = [Modality(feature, self.embedding_dim, scale) for feature in features]
        if has_id is not None:
            modalities.insert(0, IdModality(weight, has_id))
        self.modalities = nn.ModuleList(modalities)
        fusion = FUSIONS[settings["mm_fusion"]]
        self.fusion = fusion(len(modalities), self.embedding_dim, settings)
        self.balance_weight = settings["moe_balance_weight"]
        self.z_weight = settings["moe_z_weight"]
        self.register_buffer("feature_digest", item_features.digest(features))
        self._forget()

    def _forget(self):
        self._kept = self._kept_for = None  # (table, Routing or None) and what they were computed for

    def _fuse(self):
        with torch.autocast(self.padding.device.type, enabled=False):
            parts = torch.stack([modality() for modality in self.modalities], dim=1)
            fused, routing = self.fusion(parts)
            return torch.cat([self.padding, fused]), routing  # [n_items, H]

    @property
    def weight(self):
        """The fused vectors of all items, padding first: [n_items, H]."""
        return self._current()[0]

    def _current(self):
        # A parameter's version counts its changes: optimizer steps, loaded checkpoints.
        versions = tuple(parameter._version for parameter in self.parameters())
        with_graph = torch.is_grad_enabled() and self.padding.requires_grad
        if self._kept_for != (versions, with_graph):
            self._kept, self._kept_for = self._fuse(), (versions, with_graph)
        return self._kept

    def forward(self, ids):
        """Return the fused vectors of item ids of any shape [...]: [..., H]."""
        return F.embedding(ids, self.weight, self.padding_idx)

    def finish_step(self):
        """End a training step: its table and graph serve one backward pass.

        Returns:
            tuple: load-balancing and router z-loss with their weights (None without experts), and what
            the log says of the routing, dict of str to scalar Tensor.
        """
        routing = self._current()[1]
        self._forget()
        if routing is None:
            return None, {}
        balance, z = balance_loss(routing.probs, routing.experts), router_z_loss(routing.logits)
        counts = expert_counts(routing.experts, routing.logits.shape[1])
        told = {f"expert_{e}_share": count / counts.sum() for e, count in enumerate(counts)}
        told.update(expert_balance=balance.detach(), router_z=z.detach())
        return self.balance_weight * balance + self.z_weight * z, told

    def train(self, mode=True):
        """Set training mode and forget the table."""
        self._forget()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self):
        """Copies and pickles leave out the table, which may belong to a graph."""
        state = self.__dict__.copy()
        state["_kept"] = state["_kept_for"] = None
        return state

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        theirs = state_dict.get(f"{prefix}feature_digest")
        if theirs is not None and not torch.equal(theirs.cpu(), self.feature_digest.cpu()):
            raise PrefError(
                "the checkpoint was trained with other item features than mm_fields and the data files "
                "give now: use those files and fields, or train again."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._forget()
