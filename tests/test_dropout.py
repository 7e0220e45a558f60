"""Dropout with cheap random bits: its law, its gradient, where it is used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_pref.model.backbones import _causal_attention
from recbole_pref.model.dropout import Dropout, drop, use_fast_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_share_and_scale(p):
    torch.manual_seed(0)
    ones = torch.ones(401, 503)
    dropped = drop(ones, p)
    kept = dropped > 0
    steps = round(p * 2**16)
    assert dropped[kept].unique().tolist() == pytest.approx([1 / (1 - steps / 2**16)])
    bound = 5 * (p * (1 - p) / ones.numel()) ** 0.5
    assert abs(kept.float().mean().item() - (1 - p)) < bound
    # Neighbours share a 64-bit number and must still be independent.
    for distance in (1, 2, 3, 4):
        both = (kept.flatten()[:-distance] & kept.flatten()[distance:]).float().mean().item()
        assert abs(both - (1 - p) ** 2) < 2 * bound


def test_gradient_is_the_mask():
    torch.manual_seed(0)
    values = torch.randn(7, 3, requires_grad=True)  # 21 elements: no multiple of 4
    dropped = drop(values, 0.4)
    grad = torch.randn(7, 3)
    dropped.backward(grad)
    scale = torch.where(dropped == 0, 0.0, 2**16 / (2**16 - round(0.4 * 2**16)))
    torch.testing.assert_close(values.grad, grad * scale)
    torch.testing.assert_close(dropped, values * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_type(dtype):
    assert drop(torch.ones(5, dtype=dtype), 0.5).dtype == dtype


def test_follows_the_global_generator():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(drop(torch.ones(1000), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_module_drops_in_training_only():
    module, values = Dropout(0.5), torch.ones(100)
    assert (module(values) == 0).any()
    assert torch.equal(module.eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(100))


def test_replaces_every_dropout_once():
    model = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    names = list(model.state_dict())
    use_fast_dropout(model)
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p) for module in drops] == [(Dropout, 0.3), (Dropout, 0.1)]
    assert list(model.state_dict()) == names
    frozen = nn.Sequential(nn.Dropout(0.3)).eval()
    use_fast_dropout(frozen)
    assert not frozen[0].training


class _Attention(nn.Module):
    """The parts of RecBole's attention block that ours uses."""

    num_attention_heads, attention_head_size = 2, 4

    def __init__(self, p):
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(8, 8) for _ in range(4))
        self.attn_dropout, self.out_dropout, self.LayerNorm = Dropout(p), Dropout(0.0), nn.LayerNorm(8)


def test_attention_with_dropout_is_attention():
    torch.manual_seed(0)
    # So small that no element is ever dropped, but the path with dropout is taken.
    attention, states = _Attention(1e-9).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    with_dropout = _causal_attention(attention.train(), states)
    torch.testing.assert_close(with_dropout, _causal_attention(attention.eval(), states))


def test_attention_drops_weights():
    torch.manual_seed(0)
    attention = _Attention(0.5).double().train()
    values = torch.randn(1, 6, 8, dtype=torch.float64)
    torch.manual_seed(3)
    got = _causal_attention(attention, values)
    torch.manual_seed(3)
    query, key, value = (
        layer(values).view(1, 6, 2, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    )
    scores = query @ key.transpose(2, 3) / 2 + torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)
    context = drop(F.softmax(scores, dim=-1), 0.5) @ value
    wanted = attention.LayerNorm(attention.dense(context.transpose(1, 2).reshape(1, 6, 8)) + values)
    torch.testing.assert_close(got, wanted)
