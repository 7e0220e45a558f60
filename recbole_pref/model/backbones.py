"""How RecBole's sequential models turn sequences into representations.

An entry names the backbone's RecBole class. Derived classes use the same entry unless they define ``forward``.
Backbones without an entry are trained on the whole scores of RecBole's ``full_sort_predict``, or on those of
``_WHOLE_SCORES`` when the backbone's loss scores the catalogue in another way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from recbole_pref.model.packing import length_groups


@dataclass(frozen=True)
class Backbone:
    """Representations of a backbone whose scores are dot products with its item embedding.

    Attributes:
        encode: ``(model, interaction) -> [B, H]``, the representation after the last item.
        encode_all: ``(model, item_seq [S, l]) -> [S, l, H]``, the representations of
            every prefix in one pass; None when the encoder is not causal.
        regularize: ``(model) -> scalar``, the term that RecBole's loss adds to cross-entropy.
    """

    encode: Callable[[Any, Any], torch.Tensor]
    encode_all: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    regularize: Callable[[Any], torch.Tensor] | None = None


def encode_last(model: Any, spec: Backbone, interaction: Any) -> torch.Tensor:
    """Return the representations [B, H] of whole sequences; the padding of short ones is cut.

    Causal encoders never read the padding on the right, so cutting it has no effect.
    """
    if spec.encode_all is None:
        return spec.encode(model, interaction)
    item_seq, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    if item_seq.device.type != "cpu":
        return pick_last(spec.encode_all(model, item_seq), lengths)
    hidden: Any = None
    for members, longest in length_groups(lengths.numpy()):
        rows = torch.from_numpy(members)
        states = spec.encode_all(model, item_seq[rows, :longest])  # [S, l, H]
        part = pick_last(states, lengths[rows])
        if hidden is None:
            hidden = part.new_zeros(len(lengths), part.shape[-1])
        hidden = hidden.index_copy(0, rows, part)
    return hidden


def pick_last(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return states [S, l, H] at the last item of each sequence: [S, H]."""
    return states[torch.arange(len(states), device=states.device), lengths - 1]


def _sasrec_all(model: Any, item_seq: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(item_seq.shape[1], device=item_seq.device)
    states = model.item_embedding(item_seq) + model.position_embedding(positions)  # [S, l, H]
    states = model.dropout(model.LayerNorm(states))
    for layer in model.trm_encoder.layer:
        states = _feed_forward(layer.feed_forward, _causal_attention(layer.multi_head_attention, states))
    return states


def _feed_forward(block: Any, states: torch.Tensor) -> torch.Tensor:
    """RecBole's feed-forward block with PyTorch's fused GELU instead of five elementwise steps."""
    activation = F.gelu if block.intermediate_act_fn == block.gelu else block.intermediate_act_fn
    inner = block.dense_2(activation(block.dense_1(states)))
    return block.LayerNorm(block.dropout(inner) + states)


def _causal_attention(attention: Any, states: torch.Tensor) -> torch.Tensor:
    """RecBole's attention block with one product for queries, keys and values.

    Without dropout PyTorch's fused kernel runs. Padding is on the right of every real query, so the causal mask hides
    it.
    """
    sequences, length, _ = states.shape
    heads, size = attention.num_attention_heads, attention.attention_head_size
    parts = (attention.query, attention.key, attention.value)
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    joint = F.linear(states, weight, bias).view(sequences, length, 3, heads, size).permute(2, 0, 3, 1, 4)
    dropout = attention.attn_dropout.p if attention.training else 0.0
    if dropout and states.device.type == "cpu":  # PyTorch has no fused kernel for this case
        query, key, value = joint.reshape(3, sequences * heads, length, size).unbind()
        later = states.new_full((length, length), -torch.inf).triu_(1)
        weights = torch.baddbmm(later, query, key.transpose(1, 2), alpha=size**-0.5).softmax(dim=-1)
        context = torch.bmm(attention.attn_dropout(weights), value).view(sequences, heads, length, size)
    else:
        query, key, value = joint.unbind()
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    context = context.transpose(1, 2).reshape(states.shape)
    return attention.LayerNorm(attention.out_dropout(attention.dense(context)) + states)


def _gru4rec_all(model: Any, item_seq: torch.Tensor) -> torch.Tensor:
    states = model.emb_dropout(model.item_embedding(item_seq))
    return model.dense(model.gru_layers(states)[0])  # [S, l, H]


def _by_length(model: Any, interaction: Any) -> torch.Tensor:
    return model.forward(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])


def _caser(model: Any, interaction: Any) -> torch.Tensor:
    """RecBole's Caser with embedding dimensions as channels of its convolutions, not as a kernel axis.

    RecBole's convolutions have one channel and kernels as wide as the embedding, which is slow.
    """
    items = model.item_embedding(interaction[model.ITEM_SEQ])  # [B, L, H]
    parts = []
    if model.n_v:
        kernel, bias = model.conv_v.weight.flatten(1), model.conv_v.bias.unsqueeze(1)  # [n_v, L], [n_v, 1]
        parts.append((torch.matmul(kernel, items) + bias).flatten(1))  # [B, n_v * H]
    if model.n_h:
        images = items.transpose(1, 2).unsqueeze(2)  # [B, H, 1, L], channels last, so that no convolution copies it
        for conv in model.conv_h:
            kernel = conv.weight.permute(0, 3, 1, 2)  # [n_h, H, 1, height]
            parts.append(model.ac_conv(F.conv2d(images, kernel, conv.bias).amax(dim=(2, 3))))  # [B, n_h]
    states = model.ac_fc(model.fc1(model.dropout(torch.cat(parts, dim=1))))
    users = model.user_embedding(interaction[model.USER_ID])
    return model.ac_fc(model.fc2(torch.cat([states, users], dim=1)))


def _caser_regularization(model: Any) -> torch.Tensor:
    # The terms of RecBole's Caser.calculate_loss besides cross-entropy.
    weights = [
        model.user_embedding.weight,
        model.item_embedding.weight,
        model.conv_v.weight,
        model.fc1.weight,
        model.fc2.weight,
    ]
    return model.reg_weight * model.reg_loss(weights) + model.reg_loss_conv_h()


_BACKBONES = {
    "SASRec": Backbone(_by_length, _sasrec_all),
    "GRU4Rec": Backbone(_by_length, _gru4rec_all),
    "Caser": Backbone(_caser, regularize=_caser_regularization),
}


def backbone_of(cls: Any) -> Backbone | None:
    """Return the ``Backbone`` entry of a model class, or None when it has none."""
    for base in cls.__mro__:
        if base.__name__ in _BACKBONES:
            return _BACKBONES[base.__name__] if cls.forward is base.forward else None
    return None


def _shan_scores(model: Any, interaction: Any) -> torch.Tensor:
    """SHAN's scores of sequences that are padded on the left, as in its loss; its ranking pads on the right."""
    item_seq, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    positions = torch.arange(item_seq.shape[1], device=item_seq.device)
    padded_first = item_seq.gather(1, (positions + lengths.unsqueeze(1)) % item_seq.shape[1])
    return model.forward(padded_first, interaction[model.USER_ID]) @ model.item_embedding.weight.t()


def _core_scores(model: Any, interaction: Any) -> torch.Tensor:
    """CORE's scores with dropout on the item vectors, as in its loss; its ranking has no dropout."""
    states = model.forward(interaction[model.ITEM_SEQ])  # [B, H]
    items = F.normalize(model.item_dropout(model.item_embedding.weight), dim=-1)
    return states @ items.t() / model.temperature


def _bert4rec_scores(model: Any, interaction: Any) -> torch.Tensor:
    """BERT4Rec's scores with the masks of all rows set at once; RecBole's loop waits for the device at every row."""
    item_seq, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    masked = F.pad(item_seq, (0, 1)).scatter(1, lengths.unsqueeze(1), model.mask_token)[:, 1:]  # [B, L]
    states = model.gather_indexes(model.forward(masked), lengths - 1)  # [B, H]
    return states @ model.item_embedding.weight[: model.n_items].t() + model.output_bias


_WHOLE_SCORES: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "SHAN": _shan_scores,
    "CORE": _core_scores,
    "BERT4Rec": _bert4rec_scores,
}


def whole_scores(model: Any, cls: Any, interaction: Any) -> torch.Tensor:
    """Return the scores of all items for each row, as in the loss of a RecBole class: [B, n_items].

    Args:
        model (nn.Module): an instance of ``cls`` or of a class derived from it.
        cls (type): a backbone class of RecBole.
        interaction (Interaction): B rows.
    """
    scores = _WHOLE_SCORES.get(cls.__name__, cls.full_sort_predict)
    return scores(model, interaction)
