"""Fusion of ID, text, image and attribute vectors into one item vector; sparse mixture of experts.

Modalities have the shape ``[N, M, H]``. Each is projected to the width of the item embedding. An item
without a modality has a learned default vector.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from recbole_pref.errors import PrefError

# Rows of a tile: every tile reads the weights of its expert, and an expert's last one may be nearly empty.
_TILE = 128


class Routing(NamedTuple):
    """The experts that a mixture chose: router logits [N, E], their softmax [N, E], experts [N, k]."""

    logits: torch.Tensor
    probs: torch.Tensor
    experts: torch.Tensor


def route(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose experts per row.

    The gate of a single expert is its softmax probability (Switch Transformer, arXiv 2101.03961, eq. 2), so
    that the router learns from the loss. The gates of several experts are proportional to their
    probabilities and sum to 1 (arXiv 1701.06538, eq. 3-5, without noise).

    Args:
        logits: [N, E] router outputs.
        top_k: experts per row, 1 to E.

    Returns:
        tuple: gates [N, k], experts [N, k] int64, probabilities [N, E].
    """
    probs = torch.softmax(logits.float(), dim=-1)  # [N, E]
    gates, experts = probs.topk(top_k, dim=-1)  # [N, k]
    if top_k > 1:
        gates = gates / gates.sum(dim=-1, keepdim=True)
    return gates, experts, probs


def dispatch(
    rows: torch.Tensor,
    gates: torch.Tensor,
    experts: torch.Tensor,
    n_experts: int,
    run_expert: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return the gated sum of the chosen experts; other experts are not computed.

    Rows are sorted by expert, so that each expert is one call on a contiguous block. The inverse permutation
    restores their order; it is deterministic because it does not sum.

    Args:
        rows: [N, D] inputs.
        gates: [N, k] weights.
        experts: [N, k] int64.
        n_experts: E.
        run_expert: ``(expert, block [n, D]) -> [n, H]``; not called without rows.

    Returns:
        Tensor: [N, H].
    """
    n_rows, top_k = experts.shape
    order = torch.argsort(experts.flatten(), stable=True)  # [N k]
    counts = expert_counts(experts, n_experts).tolist()
    blocks = rows[order // top_k].split(counts)
    outputs = torch.cat([run_expert(e, block) for e, block in enumerate(blocks) if len(block)])  # [N k, H]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    per_choice = outputs[inverse].view(n_rows, top_k, -1)  # [N, k, H]
    return torch.einsum("nk,nkh->nh", gates.to(per_choice.dtype), per_choice)


def dispatch_in_tiles(
    rows: torch.Tensor,
    gates: torch.Tensor,
    experts: torch.Tensor,
    n_experts: int,
    run_tiles: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return the result of :func:`dispatch`, with shapes that do not depend on the choices.

    The sizes of the experts' blocks would make the host wait for an accelerator. Here the rows of each expert fill
    tiles of ``_TILE`` rows; the last tile of an expert can be partly full. There are enough tiles for all choices.

    Args:
        rows, gates, experts, n_experts: as in ``dispatch``.
        run_tiles: ``(experts [t], tiles [t, n, D]) -> [t, n, H]``, the output of each tile's expert.

    Returns:
        Tensor: [N, H].
    """
    n_rows, top_k = experts.shape
    chosen = experts.flatten()  # [N k]
    counts = expert_counts(experts, n_experts)  # [E]
    order = torch.argsort(chosen, stable=True)
    count = torch.arange(len(order), device=order.device)
    nth = torch.empty_like(order)  # rank of a choice among those of its expert
    nth[order] = count - (counts.cumsum(0) - counts)[chosen[order]]
    needed = (counts + _TILE - 1) // _TILE
    ends = needed.cumsum(0)  # number of tiles up to and including each expert
    slot = (ends - needed)[chosen] * _TILE + nth  # [N k] row of a choice among the rows of all tiles
    n_tiles = len(order) // _TILE + n_experts
    expert_of = torch.searchsorted(ends, torch.arange(n_tiles, device=order.device), right=True)
    source = torch.zeros(n_tiles * _TILE, dtype=order.dtype, device=order.device)  # unused slots read row 0
    source[slot] = count // top_k
    tiles = rows[source].view(n_tiles, _TILE, -1)
    outputs = run_tiles(expert_of.clamp_max(n_experts - 1), tiles)  # [t, n, H]
    per_choice = outputs.flatten(0, 1)[slot].view(n_rows, top_k, -1)  # [N, k, H]
    return torch.einsum("nk,nkh->nh", gates.to(per_choice.dtype), per_choice)


def expert_counts(experts: torch.Tensor, n_experts: int) -> torch.Tensor:
    """Return the number of rows of each expert: [E] int64."""
    # Not bincount, which synchronizes a GPU to read the largest value.
    return (experts.reshape(-1, 1) == torch.arange(n_experts, device=experts.device)).sum(dim=0)


def balance_loss(probs: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Return E sum_e f_e P_e: 1 when experts are used evenly, E when one expert gets all rows.

    f_e is the share of choices that fell on expert e (no gradient), P_e its mean probability
    (arXiv 2101.03961, eq. 4-6; for k > 1 the choices count 1 / k each).

    Args:
        probs: [N, E] router probabilities.
        experts: [N, k] chosen experts.

    Returns:
        Tensor: scalar.
    """
    n_experts = probs.shape[1]
    share = expert_counts(experts, n_experts).to(probs.dtype) / experts.numel()  # [E]
    return n_experts * (share * probs.mean(dim=0)).sum()


def router_z_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of log-sum-exp squared, which keeps router logits small (arXiv 2202.08906, eq. 5).

    Args:
        logits: [N, E].

    Returns:
        Tensor: scalar.
    """
    return torch.logsumexp(logits.float(), dim=-1).square().mean()


class SumFusion(nn.Module):
    """The sum of the modalities."""

    def __init__(self, n_modalities: int, width: int, settings: Any) -> None:
        super().__init__()

    def forward(self, parts: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return fused vectors [N, H] of modalities [N, M, H], and None for the routing."""
        return parts.sum(dim=1), None


class ConcatFusion(nn.Module):
    """Concatenation and a linear projection, initialized as the sum."""

    def __init__(self, n_modalities: int, width: int, settings: Any) -> None:
        super().__init__()
        self.projection = nn.Linear(n_modalities * width, width)
        with torch.no_grad():
            self.projection.weight.copy_(torch.eye(width).repeat(1, n_modalities))
            self.projection.bias.zero_()

    def forward(self, parts: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return fused vectors [N, H] of modalities [N, M, H], and None for the routing."""
        return self.projection(parts.flatten(1)), None


class ExpertFusion(nn.Module):
    """The sum of the modalities plus a sparse mixture of feed-forward experts on all of them.

    Experts read the normalized concatenation, so that the router can distinguish items by any modality.
    They add a correction to the sum. Their output layers are initialized with zero, so that training starts
    with the sum.

    Args:
        n_modalities: M.
        width: H, of the item vectors.
        settings (Mapping): ``moe_experts``, ``moe_top_k``, ``moe_hidden``.

    Raises:
        PrefError: ``moe_top_k`` exceeds ``moe_experts``.
    """

    def __init__(self, n_modalities: int, width: int, settings: Any) -> None:
        super().__init__()
        n_experts, top_k = settings["moe_experts"], settings["moe_top_k"]
        if top_k > n_experts:
            raise PrefError(f"moe_top_k={top_k} is above moe_experts={n_experts}: lower moe_top_k.")
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

    def run_expert(self, expert: int, block: torch.Tensor) -> torch.Tensor:
        """Return the output [n, H] of one expert for rows [n, M H]."""
        inner = F.gelu(F.linear(block, self.weight_in[expert], self.bias_in[expert]))  # [n, F]
        return F.linear(inner, self.weight_out[expert], self.bias_out[expert])

    def run_tiles(self, experts: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        """Return the outputs [t, n, H] of tiles [t, n, M H], each of the expert in ``experts`` [t]."""
        inner = torch.baddbmm(self.bias_in[experts].unsqueeze(1), tiles, self.weight_in[experts].transpose(1, 2))
        outer = self.weight_out[experts].transpose(1, 2)  # [t, F, H]
        return torch.baddbmm(self.bias_out[experts].unsqueeze(1), F.gelu(inner), outer)

    def forward(self, parts: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """Return fused vectors [N, H] of modalities [N, M, H], and their ``Routing``."""
        rows = self.norm(parts.flatten(1))  # [N, M H]
        logits = self.router(rows)  # [N, E]
        gates, experts, probs = route(logits, self.top_k)
        if rows.device.type == "cpu":
            added = dispatch(rows, gates, experts, self.n_experts, self.run_expert)  # [N, H]
        else:
            added = dispatch_in_tiles(rows, gates, experts, self.n_experts, self.run_tiles)
        return parts.sum(dim=1) + added, Routing(logits, probs, experts)


FUSIONS: dict[str, type[nn.Module]] = {"sum": SumFusion, "concat": ConcatFusion, "moe": ExpertFusion}
