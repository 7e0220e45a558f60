"""Fusion of ID, text, image and attribute vectors into one item vector; sparse mixture of experts.

Modalities arrive as ``[N, M, H]``: every one projected to the width of the item embedding, with a learned
default vector where an item lacks it.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from recbole_pref.errors import PrefError

# Rows of a tile: every tile reads the weights of its expert, and an expert's last one may be nearly empty.
_TILE = 128


class Routing(NamedTuple):
    """Which experts a mixture chose: router logits [N, E], their softmax [N, E], experts [N, k]."""

    logits: torch.Tensor
    probs: torch.Tensor
    experts: torch.Tensor


def route(logits, top_k):
    """Choose experts per row.

    One expert keeps its softmax probability as gate (Switch Transformer, arXiv 2101.03961, eq. 2), so that
    the router learns from the loss; several share a gate of 1 in proportion to theirs (arXiv 1701.06538,
    eq. 3-5, without noise).

    Args:
        logits (Tensor): [N, E] router outputs.
        top_k (int): experts per row, 1 to E.

    Returns:
        tuple: gates [N, k], experts [N, k] int64, probabilities [N, E].
    """
    probs = torch.softmax(logits.float(), dim=-1)  # [N, E]
    gates, experts = probs.topk(top_k, dim=-1)  # [N, k]
    if top_k > 1:
        gates = gates / gates.sum(dim=-1, keepdim=True)
    return gates, experts, probs


def dispatch(rows, gates, experts, n_experts, run_expert):
    """Return the gated sum of the chosen experts; no other expert is computed.

    Rows are sorted by expert, so that each expert is one call on a contiguous block, and put back by the
    inverse permutation, which adds nothing up and is the same at each run.

    Args:
        rows (Tensor): [N, D] inputs.
        gates (Tensor): [N, k] weights.
        experts (Tensor): [N, k] int64.
        n_experts (int): E.
        run_expert (callable): ``(expert, block [n, D]) -> [n, H]``; not called without rows.

    Returns:
        Tensor: [N, H].
    """
    n_rows, top_k = experts.shape
    order = torch.argsort(experts.flatten(), stable=True)  # [N k]
    counts = expert_counts(experts, n_experts).tolist()
    blocks = rows[order // top_k].split(counts)
    done = torch.cat([run_expert(e, block) for e, block in enumerate(blocks) if len(block)])  # [N k, H]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    per_choice = done[back].view(n_rows, top_k, -1)  # [N, k, H]
    return torch.einsum("nk,nkh->nh", gates.to(per_choice.dtype), per_choice)


def dispatch_in_tiles(rows, gates, experts, n_experts, run_tiles):
    """Return what :func:`dispatch` returns, with shapes that do not depend on the choices.

    The host of an accelerator would have to wait for the sizes of the experts' blocks. Here each expert's rows fill
    tiles of ``_TILE`` rows, the last one in part, and there are as many tiles as any choices can need.

    Args:
        rows, gates, experts, n_experts: as in ``dispatch``.
        run_tiles (callable): ``(experts [t], tiles [t, n, D]) -> [t, n, H]``, each tile through its expert.

    Returns:
        Tensor: [N, H].
    """
    n_rows, top_k = experts.shape
    chosen = experts.flatten()  # [N k]
    counts = expert_counts(experts, n_experts)  # [E]
    order = torch.argsort(chosen, stable=True)
    count = torch.arange(len(order), device=order.device)
    nth = torch.empty_like(order)  # of a choice among those of its expert
    nth[order] = count - (counts.cumsum(0) - counts)[chosen[order]]
    needed = (counts + _TILE - 1) // _TILE
    ends = needed.cumsum(0)  # tiles up to and with each expert's
    place = (ends - needed)[chosen] * _TILE + nth  # [N k] of a choice among the rows of all tiles
    n_tiles = len(order) // _TILE + n_experts
    expert_of = torch.searchsorted(ends, torch.arange(n_tiles, device=order.device), right=True)
    source = torch.zeros(n_tiles * _TILE, dtype=order.dtype, device=order.device)  # row 0 fills what is left
    source[place] = count // top_k
    tiles = rows[source].view(n_tiles, _TILE, -1)
    done = run_tiles(expert_of.clamp_max(n_experts - 1), tiles)  # [t, n, H]
    per_choice = done.flatten(0, 1)[place].view(n_rows, top_k, -1)  # [N, k, H]
    return torch.einsum("nk,nkh->nh", gates.to(per_choice.dtype), per_choice)


def expert_counts(experts, n_experts):
    """Return how many rows each expert was chosen for: [E] int64."""
    # Not bincount: on a GPU it waits for the largest value.
    return (experts.reshape(-1, 1) == torch.arange(n_experts, device=experts.device)).sum(dim=0)


def balance_loss(probs, experts):
    """Return E sum_e f_e P_e: 1 when experts are used evenly, E when one gets all.

    f_e is the share of choices that fell on expert e (no gradient), P_e its mean probability
    (arXiv 2101.03961, eq. 4-6; for k > 1 the choices count 1 / k each).

    Args:
        probs (Tensor): [N, E] router probabilities.
        experts (Tensor): [N, k] chosen experts.

    Returns:
        Tensor: scalar.
    """
    n_experts = probs.shape[1]
    share = expert_counts(experts, n_experts).to(probs.dtype) / experts.numel()  # [E]
    return n_experts * (share * probs.mean(dim=0)).sum()


def router_z_loss(logits):
    """Return the mean of log-sum-exp squared, which keeps router logits small (arXiv 2202.08906, eq. 5).

    Args:
        logits (Tensor): [N, E].

    Returns:
        Tensor: scalar.
    """
    return torch.logsumexp(logits.float(), dim=-1).square().mean()


class SumFusion(nn.Module):
    """The sum of the modalities."""

    def __init__(self, n_modalities, width, settings):
        super().__init__()

    def forward(self, parts):
        """Return fused vectors [N, H] of modalities [N, M, H], and None: there is no routing."""
        return parts.sum(dim=1), None


class ConcatFusion(nn.Module):
    """Concatenation and a linear projection, which starts as the sum."""

    def __init__(self, n_modalities, width, settings):
        super().__init__()
        self.projection = nn.Linear(n_modalities * width, width)
        with torch.no_grad():
            self.projection.weight.copy_(torch.eye(width).repeat(1, n_modalities))
            self.projection.bias.zero_()

    def forward(self, parts):
        """Return fused vectors [N, H] of modalities [N, M, H], and None: there is no routing."""
        return self.projection(parts.flatten(1)), None


class ExpertFusion(nn.Module):
    """The sum of the modalities plus a sparse mixture of feed-forward experts on all of them.

    Experts read the normalized concatenation, so that a router can tell items by any modality, and write
    a correction to the sum; their output layers start at zero, hence training starts as the sum's.

    Args:
        n_modalities (int): M.
        width (int): H, of the item vectors.
        settings (Mapping): ``moe_experts``, ``moe_top_k``, ``moe_hidden``.

    Raises:
        PrefError: more experts chosen than there are.
    """

    def __init__(self, n_modalities, width, settings):
        super().__init__()
        n_experts, top_k = settings["moe_experts"], settings["moe_top_k"]
        if top_k > n_experts:
            raise PrefError(
                f"moe_top_k={top_k} is above moe_experts={n_experts}: choose at most all experts."
            )
        hidden, joint = settings["moe_hidden"] or 2 * width, n_modalities * width
        self.top_k, self.n_experts = top_k, n_experts
        self.norm = nn.LayerNorm(joint)
        self.router = nn.Linear(joint, n_experts, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        self.weight_in = nn.Parameter(torch.empty(n_experts, hidden, joint))
        nn.init.normal_(self.weight_in, std=joint**-0.5)
        self.bias_in = nn.Parameter(torch.zeros(n_experts, hidden))
        self.weight_out = nn.Parameter(torch.zeros(n_experts, width, hidden))
        self.bias_out = nn.Parameter(torch.zeros(n_experts, width))

    def run_expert(self, expert, block):
        """Return the output [n, H] of one expert for rows [n, M H]."""
        inner = F.gelu(F.linear(block, self.weight_in[expert], self.bias_in[expert]))  # [n, F]
        return F.linear(inner, self.weight_out[expert], self.bias_out[expert])

    def run_tiles(self, experts, tiles):
        """Return the outputs [t, n, H] of tiles [t, n, M H], each of the expert in ``experts`` [t]."""
        inner = torch.baddbmm(self.bias_in[experts].unsqueeze(1), tiles, self.weight_in[experts].transpose(1, 2))
        outer = self.weight_out[experts].transpose(1, 2)  # [t, F, H]
        return torch.baddbmm(self.bias_out[experts].unsqueeze(1), F.gelu(inner), outer)

    def forward(self, parts):
        """Return fused vectors [N, H] of modalities [N, M, H], and their ``Routing``."""
        rows = self.norm(parts.flatten(1))  # [N, M H]
        logits = self.router(rows)  # [N, E]
        gates, experts, probs = route(logits, self.top_k)
        if rows.device.type == "cpu":
            added = dispatch(rows, gates, experts, self.n_experts, self.run_expert)  # [N, H]
        else:
            added = dispatch_in_tiles(rows, gates, experts, self.n_experts, self.run_tiles)
        return parts.sum(dim=1) + added, Routing(logits, probs, experts)


FUSIONS = {"sum": SumFusion, "concat": ConcatFusion, "moe": ExpertFusion}
