"""Fused, chunked scoring against plain autograd over whole scores."""

import pytest
import torch
from torch.nn import functional as F

from recbole_pref import scoring


def _case(rows=23, items=41, size=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    hidden, item_emb = make(rows, size).requires_grad_(), make(items, size).requires_grad_()
    targets = torch.randint(1, items, (rows,), generator=generator)
    negatives = torch.randint(1, items, (rows, 4), generator=generator)
    weights = torch.softmax(make(rows), 0)
    return hidden, item_emb, targets, negatives, weights


def _picked_ids(targets, negatives):
    return torch.cat([torch.zeros_like(targets)[:, None], targets[:, None], negatives], 1)


def _mixed(log_z, picked):
    """A loss that uses the normalizer, the padding score, the positive and the negatives."""
    real_z = scoring.without_padding(log_z, picked[:, 0])
    pos, neg = picked[:, 1] - real_z, picked[:, 2:] - real_z[:, None]
    return (log_z - picked[:, 1]) + 0.3 * F.softplus(neg.exp().sum(1) * 5 - pos).pow(2)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_loss_and_gradients_equal_whole_scores(chunk):
    hidden, item_emb, targets, negatives, weights = _case()
    ids = _picked_ids(targets, negatives)
    scores = hidden @ item_emb.t()
    plain = (_mixed(torch.logsumexp(scores, 1), scores.gather(1, ids)) * weights).sum()
    expected = torch.autograd.grad(plain, [hidden, item_emb])
    fused = scoring.catalogue_loss(
        hidden,
        item_emb,
        lambda rows, ids, log_z, picked: _mixed(log_z, picked),
        lambda rows, scores, log_z: ids[rows],
        weights,
        chunk,
    )
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(3.0 * fused, [hidden, item_emb])
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, 3.0 * theirs, rtol=1e-9, atol=1e-11)


def test_float32_cross_entropy_is_within_1e_5_of_pytorch():
    hidden, item_emb, targets, _, _ = _case(rows=64, items=3000, size=16, dtype=torch.float32)
    ids = _picked_ids(targets, targets[:, None])
    uniform = torch.full((64,), 1 / 64)
    fused = scoring.catalogue_loss(
        hidden, item_emb, lambda rows, ids, z, p: z - p[:, 1], lambda rows, s, z: ids[rows], uniform, 9
    )
    plain = F.cross_entropy(hidden @ item_emb.t(), targets)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=0)
    mine = torch.autograd.grad(fused, [hidden, item_emb])
    theirs = torch.autograd.grad(plain, [hidden, item_emb])
    for a, b in zip(mine, theirs):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_normalizer_of_extreme_scores():
    scores = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [88.0, 88.0, 88.0]])
    log_z, probs = scoring.log_normalizer(scores)
    torch.testing.assert_close(log_z, torch.logsumexp(scores, 1))
    torch.testing.assert_close(probs.sum(1), torch.ones(3))


def test_padding_leaves_the_normalizer():
    scores = torch.randn(6, 9, dtype=torch.float64)
    got = scoring.without_padding(torch.logsumexp(scores, 1), scores[:, 0])
    torch.testing.assert_close(got, torch.logsumexp(scores[:, 1:], 1))
    # All the mass on padding: large, but finite with a finite gradient.
    pad = torch.tensor([1e4], requires_grad=True)
    value = scoring.without_padding(pad + 0.0, pad)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(pad.grad).all()


def test_item_scores_are_dot_products():
    hidden, item_emb, _, negatives, _ = _case()
    expected = torch.stack([torch.stack([item_emb[i] @ hidden[b] for i in row]) for b, row in enumerate(negatives)])
    torch.testing.assert_close(scoring.item_scores(hidden, item_emb, negatives), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gathered", [1, 150, 2**18])  # one row, five rows and all rows at a time
def test_gradients_of_item_scores_are_those_of_dot_products(gathered, monkeypatch):
    monkeypatch.setattr(scoring, "_GATHERED", gathered)
    hidden, item_emb, _, negatives, _ = _case(dtype=torch.float32)
    negatives[:, 1] = negatives[:, 0]  # the same item twice in a row counts twice
    upstream = torch.randn(negatives.shape, generator=torch.Generator().manual_seed(1)).t().contiguous().t()
    leaves = [hidden, item_emb]
    expected = torch.autograd.grad((item_emb[negatives] * hidden[:, None]).sum(2), leaves, upstream)
    found = torch.autograd.grad(scoring.item_scores(hidden, item_emb, negatives), leaves, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_second_gradients_of_item_scores_are_refused():
    hidden, item_emb, _, negatives, _ = _case()
    loss = scoring.item_scores(hidden, item_emb, negatives).square().sum()
    (first,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_item_scores_without_rows_in_half_precision_and_without_gradient():
    hidden, item_emb, _, negatives, _ = _case(dtype=torch.float32)
    none = scoring.item_scores(hidden[:0], item_emb, negatives[:0])
    assert none.shape == (0, 4)
    assert all(not grad.any() for grad in torch.autograd.grad(none.sum(), [hidden, item_emb]))
    half = scoring.item_scores(hidden.bfloat16(), item_emb, negatives)
    whole = scoring.item_scores(hidden, item_emb, negatives)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0, atol=0.05)
    (of_hidden,) = torch.autograd.grad(half.sum(), hidden)
    torch.testing.assert_close(of_hidden, item_emb[negatives].sum(1), rtol=0, atol=0.05)
    with torch.inference_mode():
        torch.testing.assert_close(scoring.item_scores(hidden, item_emb, negatives), whole.detach())


def test_sampling_sees_every_row_once_in_order():
    hidden, item_emb, _, _, _ = _case(dtype=torch.float32)
    got = scoring.sample_over_catalogue(hidden, item_emb, lambda rows, scores: scores.topk(3, 1).indices, 6)
    assert torch.equal(got, (hidden @ item_emb.t()).topk(3, 1).indices)


def test_log_z_over_real_items():
    hidden, item_emb, _, _, _ = _case(dtype=torch.float32)
    expected = torch.logsumexp((hidden @ item_emb.t())[:, 1:], 1)
    torch.testing.assert_close(scoring.catalogue_log_z(hidden, item_emb, 4), expected)


@pytest.mark.parametrize(
    "n_items, memory, rows", [(1024, 1.0, 256), (10**9, 1.0, 1), (1024, None, 2048), (10**6, None, 64)]
)
def test_chunk_follows_the_memory(n_items, memory, rows):
    assert scoring.chunk_rows(n_items, memory) == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gradients_survive_half_precision(dtype):
    torch.manual_seed(0)
    rows, n_items = 256, 6000
    hidden = torch.randn(rows, 16, requires_grad=True)
    item_emb = (0.3 * torch.randn(n_items, 16)).requires_grad_()
    ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), torch.randint(1, 50, (rows, 1))], 1)
    weights = torch.full((rows,), 1 / 2048)

    def grads():
        loss = scoring.catalogue_loss(
            hidden, item_emb, lambda r, ids, log_z, picked: log_z - picked[:, 1], lambda r, s, z: ids[r], weights, 100
        )
        return torch.autograd.grad(loss * 1024, [hidden, item_emb])  # as a gradient scaler does

    exact = grads()
    with torch.autocast("cpu", dtype=dtype):
        half = grads()
    for mine, right in zip(half, exact):
        assert (mine - right).norm() < 0.02 * right.norm()
    rest = slice(50, None)  # items that are not targets: their gradient is their probability
    assert (half[1][rest] - exact[1][rest]).norm() < 0.02 * exact[1][rest].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_loss_and_finite_gradients(dtype):
    hidden, item_emb, targets, negatives, weights = _case(dtype=torch.float32)
    ids = _picked_ids(targets, negatives)
    with torch.autocast("cpu", dtype=dtype):
        fused = scoring.catalogue_loss(
            hidden,
            item_emb,
            lambda rows, ids, log_z, picked: _mixed(log_z, picked),
            lambda rows, scores, log_z: ids[rows],
            weights.float(),
            5,
        )
    assert fused.dtype == torch.float32
    for grad in torch.autograd.grad(fused, [hidden, item_emb]):
        assert torch.isfinite(grad).all() and grad.dtype == torch.float32
