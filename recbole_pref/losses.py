"""Losses of the preference methods: pure functions of the scores of one positive and K negatives.

Every loss takes the policy's values of the positive [B] and of the negatives [B, K] and returns one
loss per row [B]. A loss that compares with a reference model also takes the reference's values of the
same items. The first two arguments are called ``pos_logps, neg_logps`` when the loss needs
log-probabilities over the catalogue (in nats). They are called ``pos, neg`` when a constant added to a
row does not change the loss, so that raw scores suffice. Settings are keyword-only and named as in the
property files. In the formulas w is the positive, l a negative, and Delta = log pi - log pi_ref.

Inputs below float32 are computed in float32; float64 stays float64; autocast has no effect. Values
and gradients are finite for scores of +-1e4. A NaN in the input gives a NaN in the output.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_pref.errors import PrefError, suggest

_CLUSTER_PAIRS = 2**19  # pairs of cuts that top_cluster holds at a time: 4 MB, within caches
_CLUSTER_TIE = 1e-12  # relative difference below which two partitions count as equally good
_EXP_LIMIT = 10.0  # above this exponent, probability ratios follow the tangent of exp


def _at_least_float32(*tensors: Any) -> list[Tensor]:
    """Return the tensors in at least float32."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _pair_margins(pos: Tensor, neg: Tensor, ref_pos: Tensor, ref_neg: Tensor) -> Tensor:
    """Return Delta_w - Delta_l for each negative: [B, K]."""
    pos, neg, ref_pos, ref_neg = _at_least_float32(pos, neg, ref_pos, ref_neg)
    return (pos - ref_pos).unsqueeze(1) - (neg - ref_neg)


def _one_against_all(margins: Tensor) -> Tensor:
    """Return -log of the positive's share in a softmax, from its margins above the others: [B]."""
    return -F.logsigmoid(-torch.logsumexp(-margins, dim=1))


def _tangent_exp(x: Tensor) -> Tensor:
    """Return exp(x), continued along its tangent above 10 so that value and slope stay finite."""
    return x.clamp(max=_EXP_LIMIT).exp() * (1 + (x - _EXP_LIMIT).clamp(min=0))


def _kl_terms(log_ratios: Tensor) -> Tensor:
    """Return the k3 estimate of KL(pi, pi_ref), e^x - x - 1 of x = log pi_ref - log pi, elementwise."""
    near = log_ratios.clamp(max=_EXP_LIMIT)
    slope = torch.expm1(near)  # keeps the digits that 1 + x loses near 0
    return slope - near + slope * (log_ratios - near)


def _unknown(name: str, value: object, options: Iterable[str]) -> PrefError:
    return PrefError(
        f"{name}={value!r} is not accepted: set it to one of {', '.join(options)}.{suggest(value, options)}"
    )


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0 without cancellation, elementwise."""
    # expm1 is accurate near 0, log1p far below. Each branch gets only arguments that are safe for it;
    # otherwise the gradient of the branch not taken would be NaN.
    near = x > -0.6931471805599453
    by_expm1 = (-torch.expm1(torch.where(near, x, -1.0))).log()
    by_log1p = torch.log1p(-torch.where(near, -1.0, x).exp())
    return torch.where(near, by_expm1, by_log1p)


def lpo(pos_logps: Tensor, neg_logps: Tensor, *, tau: float, lpo_space: str) -> Tensor:
    """Listwise preference optimization: the positive's share in a softmax with its negatives.

    -log[e^(x_w / tau) / (e^(x_w / tau) + sum_l e^(x_l / tau))], where x is the probability pi
    (``probability``), the score (``logit``) or log pi (``log_prob``). Scores and log-probabilities
    differ by a constant per row, which cancels, so the last two are equal. Cross-entropy is not included.

    Args:
        pos_logps, neg_logps: [B], [B, K].
        tau: temperature, > 0; paper 0.1, searched in [0.05, 2].
        lpo_space: probability (the paper), logit or log_prob; else a PrefError.

    Reference: LPO4Rec, arXiv 2507.02255, equation 13; the authors' code adds +0.5 times the share
    itself (no -log) with tau = 2, so that training lowers the positive.
    """
    pos, neg = _at_least_float32(pos_logps, neg_logps)
    if lpo_space == "probability":
        pos, neg = pos.exp(), neg.exp()
    elif lpo_space not in ("logit", "log_prob"):
        raise _unknown("lpo_space", lpo_space, ("probability", "logit", "log_prob"))
    return _one_against_all((pos.unsqueeze(1) - neg) / tau)


def dpo(
    pos: Tensor, neg: Tensor, ref_pos: Tensor, ref_neg: Tensor, *, beta: float, dpo_loss: str, label_smoothing: float
) -> Tensor:
    """Direct preference optimization, the mean over the K pairs of a row.

    With h = beta (Delta_w - Delta_l) and smoothing e:
    ``sigmoid`` -(1 - e) log sigma(h) - e log sigma(-h), DPO, or cDPO where e > 0;
    ``robust`` [-(1 - e) log sigma(h) + e log sigma(-h)] / (1 - 2 e), rDPO;
    ``ipo`` (Delta_w - Delta_l - 1 / (2 beta))^2, which ignores e.

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], [B], [B, K].
        beta: strength of the tie to the reference, > 0; typically 0.1.
        dpo_loss: sigmoid, ipo or robust; else a PrefError.
        label_smoothing: probability that a preference is flipped, in [0, 0.5).

    Reference: DPO, arXiv 2305.18290, equation 7; IPO, arXiv 2310.12036, equation 17; rDPO, arXiv
    2403.00409. As in the authors' code, which has one pair per row.
    """
    margins = _pair_margins(pos, neg, ref_pos, ref_neg)  # [B, K]
    if dpo_loss == "ipo":
        return (margins - 1 / (2 * beta)).square().mean(dim=1)
    correct, flipped = -F.logsigmoid(beta * margins), -F.logsigmoid(-beta * margins)
    keep, flip = 1 - label_smoothing, label_smoothing
    if dpo_loss == "sigmoid":
        return (keep * correct + flip * flipped).mean(dim=1)
    if dpo_loss == "robust":
        return ((keep * correct - flip * flipped) / (keep - flip)).mean(dim=1)
    raise _unknown("dpo_loss", dpo_loss, ("sigmoid", "ipo", "robust"))


def sdpo(pos: Tensor, neg: Tensor, ref_pos: Tensor, ref_neg: Tensor, *, beta: float) -> Tensor:
    """Softmax DPO: the positive against all K negatives in one softmax.

    -log sigma(-log sum_l exp(beta (Delta_l - Delta_w))).

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], [B], [B, K].
        beta: strength of the tie to the reference, > 0; authors' script 1.

    Reference: S-DPO, arXiv 2406.09215; the authors' code sums exponentials before it takes the
    logarithm, which can overflow; log-sum-exp does not.
    """
    return _one_against_all(beta * _pair_margins(pos, neg, ref_pos, ref_neg))


def dmpo(pos: Tensor, neg: Tensor, ref_pos: Tensor, ref_neg: Tensor, *, beta: float) -> Tensor:
    """Direct multi-preference optimization: the positive against the mean of the K negatives.

    -log sigma(beta Delta_w - (1 / K) sum_l beta Delta_l). Every negative gets the same gradient,
    however easy it is.

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], [B], [B, K].
        beta: strength of the tie to the reference, > 0; DynamicPO's comparison 1.

    Reference: DMPO, doi 10.1145/3627673.3679611; in the authors' code the reference cancels, the mean is
    taken over the losses of pairs, and cross-entropy is added.
    """
    return -F.logsigmoid(beta * _pair_margins(pos, neg, ref_pos, ref_neg).mean(dim=1))


def simpo(pos: Tensor, neg: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO for single items: a pair loss with scale and target margin, the mean over K pairs.

    -log sigma(beta (log pi_w - log pi_l) - gamma). An item has length 1, so nothing is averaged over a
    length: the loss is BPR with scale beta and margin gamma.

    Args:
        pos, neg: [B], [B, K].
        beta: scale, > 0; authors' runs 2 to 10.
        gamma: target margin of the scaled gap; authors advise gamma / beta in [0, 1].

    Reference: SimPO, arXiv 2405.14734, equation 6; the authors' code writes gamma as beta times
    ``gamma_beta_ratio``.
    """
    pos, neg = _at_least_float32(pos, neg)
    return -F.logsigmoid(beta * (pos.unsqueeze(1) - neg) - gamma).mean(dim=1)


def orpo(pos_logps: Tensor, neg_logps: Tensor) -> Tensor:
    """Odds-ratio term of ORPO, the mean over the K pairs; ``ce_weight`` mixes in cross-entropy.

    -log sigma(o_w - o_l) with log-odds o = log pi - log(1 - pi).

    Args:
        pos_logps, neg_logps: [B], [B, K].

    Reference: ORPO, arXiv 2403.07691, equation 7; the authors' code takes the logarithm of a sigmoid,
    which underflows, and computes log(1 - pi) inaccurately for pi near 1.
    """
    # A log-probability is exact to about one unit of its dtype; nearer to 0 the odds would be noise.
    limit = -torch.finfo(pos_logps.dtype).eps
    pos, neg = (logps.clamp(max=limit) for logps in _at_least_float32(pos_logps, neg_logps))
    pos_odds, neg_odds = pos - log1mexp(pos), neg - log1mexp(neg)
    return -F.logsigmoid(pos_odds.unsqueeze(1) - neg_odds).mean(dim=1)


def mppo(pos_logps: Tensor, neg_logps: Tensor, *, beta: float) -> Tensor:
    """Multi-pair preference optimization on probabilities, without a reference.

    -log sigma(beta (K pi_w - sum_l pi_l)).

    Args:
        pos_logps, neg_logps: [B], [B, K].
        beta: scale, > 0; DynamicPO's comparison 1.

    Reference: MPPO, arXiv 2412.15244, in the form of DynamicPO's code, which uses probabilities of
    items instead of average likelihoods of texts.
    """
    pos, neg = _at_least_float32(pos_logps, neg_logps)
    return -F.logsigmoid(beta * (pos.exp().unsqueeze(1) - neg.exp()).sum(dim=1))


@torch.no_grad()
def top_cluster(values: Tensor) -> Tensor:
    """Mark the highest cluster of an exact one-dimensional 3-means of each row: [B, K] -> bool [B, K].

    The partition of least squared error is contiguous in sorted order, so prefix sums compare all pairs
    of cuts. Equal values share a cluster. Fewer than three distinct values form a cluster each. Of
    equally good partitions the one with the smallest top cluster is taken. The order of the columns has
    no effect. Memory is bounded for any B.
    """
    pairs = _CLUSTER_PAIRS if values.device.type == "cpu" else 16 * _CLUSTER_PAIRS
    rows = max(1, pairs // values.shape[1] ** 2)
    return torch.cat([_top_cluster(part.double()) for part in values.split(rows)])


def _top_cluster(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1, descending=True).values  # [B, K]
    size = torch.arange(1, values.shape[1] + 1, device=values.device)  # [K]
    prefix = (ordered - ordered.mean(dim=1, keepdim=True)).cumsum(dim=1)  # [B, K] of the first 1..K
    # Squared error = constant - sum over clusters of (sum of centred values)^2 / size, for clusters
    # that end after i, j and K values. j = K stands for an empty lowest cluster.
    upper = prefix.square() / size  # [B, i]
    lower = prefix.square() / (size[-1] - size).clamp(min=1)  # [B, j]
    width = size - size.unsqueeze(1)  # [i, j]
    middle = (prefix.unsqueeze(1) - prefix.unsqueeze(2)).square() / width.clamp(min=1)  # [B, i, j]
    explained = upper.unsqueeze(2) + middle + lower.unsqueeze(1)  # [B, i, j]
    explained = explained.masked_fill(width < 0, -1.0).amax(dim=2)  # [B, i]
    best = explained.amax(dim=1, keepdim=True)
    last = (explained >= best * (1 - _CLUSTER_TIE)).int().argmax(dim=1, keepdim=True)  # [B, 1]
    return values >= ordered.gather(1, last)  # by value: equal values stay together


@torch.no_grad()
def boundary_negatives(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """Select DynamicPO's boundary negatives: [B], [B, K] -> two bool Tensors [B, K].

    The boundary is every negative that scores at least as high as the positive, else the top cluster
    of the negatives. The second mask holds the other negatives, or the boundary again when there are no others.
    """
    violating = ~(neg < pos.unsqueeze(1))  # NaN violates, and shows in the loss
    boundary = torch.where(violating.any(dim=1, keepdim=True), violating, top_cluster(neg))
    return boundary, torch.where(boundary.all(dim=1, keepdim=True), boundary, ~boundary)


def dynamicpo(
    pos: Tensor,
    neg: Tensor,
    ref_pos: Tensor,
    ref_neg: Tensor,
    *,
    beta: float,
    gamma: float,
    dynamic_base: str,
    dynamic_beta: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DynamicPO: DMPO or S-DPO on the boundary negatives, each with its own beta.

    For a boundary negative b, with d = log pi_w - log pi_b and c = log pi_b - the mean log pi of the
    other negatives: beta_b = beta (1 + 0.5 tanh((d - c - gamma) / (|d| + |c|))), no gradient.
    ``dmpo`` -log sigma(mean_b beta_b (Delta_w - Delta_b));
    ``sdpo`` -log sigma(-log sum_b exp(beta_b (Delta_b - Delta_w))).

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], [B], [B, K].
        beta: base strength, > 0; authors' script 1.
        gamma: margin; authors' code 2 (v1) and 6 (v2), for texts. Gaps between items are a few
            nats, so such margins push almost every beta_b to beta / 2.
        dynamic_base: dmpo or sdpo; else a PrefError.
        dynamic_beta: adaptive as above; half (beta / 2, the control) or constant (beta), with
            the boundary selection alone; else a PrefError.

    Returns:
        tuple: losses [B] and a dict of detached [B]: ``mean_beta`` over the boundary and
        ``boundary_size``, the number of boundary negatives.

    Reference: DynamicPO, arXiv 2605.00327, as in the authors' code (we have not seen the equations);
    their k-means starts from a fixed seed, and a tie with K = 1 divides by zero.
    """
    pos, neg = _at_least_float32(pos, neg)
    boundary, rest = boundary_negatives(pos, neg)
    size = boundary.sum(dim=1)  # [B]
    if dynamic_beta == "adaptive":
        gaps = (pos.unsqueeze(1) - neg).detach()  # [B, K], d
        rest_gap = torch.where(rest, gaps, 0.0).sum(dim=1) / rest.sum(dim=1)  # [B]
        below = rest_gap.unsqueeze(1) - gaps  # [B, K], c
        spread = (gaps.abs() + below.abs()).clamp(min=torch.finfo(gaps.dtype).eps)
        betas = beta * (1 + 0.5 * torch.tanh((gaps - below - gamma) / spread))
    elif dynamic_beta in ("half", "constant"):
        betas = torch.full_like(neg, beta / 2 if dynamic_beta == "half" else beta)
    else:
        raise _unknown("dynamic_beta", dynamic_beta, ("adaptive", "half", "constant"))
    rewards = betas * _pair_margins(pos, neg, ref_pos, ref_neg)  # [B, K]
    if dynamic_base == "dmpo":
        losses = -F.logsigmoid(torch.where(boundary, rewards, 0.0).sum(dim=1) / size)
    elif dynamic_base == "sdpo":
        losses = _one_against_all(rewards.masked_fill(~boundary, float("inf")))
    else:
        raise _unknown("dynamic_base", dynamic_base, ("dmpo", "sdpo"))
    mean_beta = torch.where(boundary, betas, 0.0).sum(dim=1) / size
    return losses, {"mean_beta": mean_beta, "boundary_size": size.to(losses.dtype)}


def anchor_for(topk: int) -> int:
    """Return TAWin's anchor for a cut-off: the 0-based rank of the topk-th negative.

    The positive is among the first topk exactly when it outscores that negative.
    """
    return topk - 1


def soft_topk(x: Tensor, k: int, tau: float) -> Tensor:
    """Return soft top-k weights min(1, exp((x - lam) / tau)), lam such that they sum to k.

    In closed form: with x in descending order the first m weigh 1, and lam = tau (log sum_{i > m}
    exp(x_i / tau) - log(k - m)) for the smallest m that leaves no other weight above 1.

    Args:
        x: [..., n] -> weights [..., n] in [0, 1].
        k: sum of the weights, >= 1; k >= n gives ones.
        tau: softness, > 0; towards 0 the k largest weigh 1 and the others 0.

    Reference: the operator T of TAWin, arXiv 2604.22504, according to a third party's report.
    """
    if k >= x.shape[-1]:
        return torch.ones_like(x)
    ordered = x.sort(dim=-1, descending=True).values / tau  # [..., n]
    last = ordered[..., k - 1 :].logsumexp(dim=-1, keepdim=True)
    # [..., k]: over x_m and all below, for m = 0..k-1.
    tails = torch.cat([last, ordered[..., : k - 1].flip(-1)], dim=-1).logcumsumexp(dim=-1).flip(-1)
    free = torch.arange(k, 0, -1, device=x.device, dtype=x.dtype)  # [k], k - m
    lam = tails - free.log()  # [..., k], lam / tau of each m
    fits = ordered[..., :k] <= lam  # always true of m = k - 1
    m = fits.int().argmax(dim=-1, keepdim=True)  # the first that fits
    return (x / tau - lam.gather(-1, m)).clamp(max=0).exp()


@torch.no_grad()
def rank_weights(neg: Tensor, *, tau: float, tawin_anchor: int, tawin_window: int) -> Tensor:
    """Return TAWin's weights of negatives, a soft window over their rank: [B, K] -> [B, K], sum K.

    Ranks are 0-based among the row's negatives, best first; equal scores share their mean rank. The
    settings are those of ``tawin``.
    """
    (neg,) = _at_least_float32(neg)
    ordered = (-neg).sort(dim=1).values
    better = torch.searchsorted(ordered, -neg)  # [B, K]
    not_worse = torch.searchsorted(ordered, -neg, right=True)  # [B, K], itself included
    rank = (better + not_worse - 1).to(neg.dtype) / 2
    weights = soft_topk(-(rank - tawin_anchor).abs(), tawin_window, tau)
    return weights * (neg.shape[1] / weights.sum(dim=1, keepdim=True))


def group_advantages(n_negatives: int, advantage_ddof: int) -> tuple[float, float]:
    """Return GRPO's advantage (R - mean) / std of the positive (R = 1) and of a negative (R = 0).

    ``advantage_ddof`` is 0 for the standard deviation of the population, 1 for the unbiased one.
    """
    mean = 1 / (n_negatives + 1)
    std = (mean * n_negatives / (n_negatives + 1 - advantage_ddof)) ** 0.5
    return (1 - mean) / std, -mean / std


def _clipped_objective(
    pos: Tensor, neg: Tensor, old_pos: Tensor, old_neg: Tensor, weights: Tensor, *, clip_eps: float, advantage_ddof: int
) -> Tensor:
    """Return PPO's clipped loss over a group of one positive and K weighted negatives: [B].

    -(1 / G) sum_m omega_m min(rho_m A_m, clip(rho_m, 1 - eps, 1 + eps) A_m), rho = pi / pi_old,
    G = K + 1, omega the weights [B, K] and 1 for the positive. GRPO, arXiv 2402.03300, equation 3.
    """
    pos_advantage, neg_advantage = group_advantages(neg.shape[1], advantage_ddof)
    # The minimum, taken by the sign of the advantage.
    pos_gain = pos_advantage * _tangent_exp(pos - old_pos).clamp(max=1 + clip_eps)  # [B]
    neg_gain = neg_advantage * _tangent_exp(neg - old_neg).clamp(min=1 - clip_eps)  # [B, K]
    return -(pos_gain + (weights * neg_gain).sum(dim=1)) / (neg.shape[1] + 1)


def tawin(
    pos: Tensor,
    neg: Tensor,
    ref_pos: Tensor | None = None,
    ref_neg: Tensor | None = None,
    *,
    tau: float,
    tawin_anchor: int,
    tawin_window: int,
    clip_eps: float,
    kl_weight: float,
    advantage_ddof: int,
    old_policy: str,
) -> Tensor:
    """TAWin: GRPO whose negatives are weighted by a window over their rank (windowed partial AUC).

    -(1 / G) sum_m omega_m min(rho_m A_m, clip(rho_m) A_m) + kl_weight (1 / G) sum_m [e^(-Delta_m) +
    Delta_m - 1], over the G = K + 1 items of the group; above e^10 exponentials follow their
    tangent. On-policy without KL the weighted advantages sum to 0: the value is 0, its gradient
    is not, and raw scores suffice. With KL, or with the reference as old policy, the loss needs
    log-probabilities.

    Args:
        pos, neg: [B], [B, K], the group.
        ref_pos, ref_neg: [B], [B, K]; a PrefError if needed and missing.
        tau: softness of the window, in ranks, > 0; paper 1.
        tawin_anchor: 0-based rank at its centre, >= 0; paper 2 for Recall@3, 4 for Recall@5.
        tawin_window: its width in ranks, >= 1; the paper's value is not known.
        clip_eps: PPO's clipping, in (0, 1); has no effect on-policy.
        kl_weight: weight of the KL term, >= 0; MiniOneRec 1e-3.
        advantage_ddof: 0 or 1, see ``group_advantages``.
        old_policy: current (rho = 1) or reference; else a PrefError.

    Reference: TAWin, arXiv 2604.22504, according to a third party's report (no code is public); using
    raw ranks, and those under the current policy, is our choice.
    """
    if old_policy not in ("current", "reference"):
        raise _unknown("old_policy", old_policy, ("current", "reference"))
    if (kl_weight > 0 or old_policy == "reference") and (ref_pos is None or ref_neg is None):
        raise PrefError(
            f"kl_weight={kl_weight} with old_policy={old_policy!r} needs a reference model: set "
            "reference to auto, or kl_weight to 0 and old_policy to current."
        )
    pos, neg = _at_least_float32(pos, neg)
    old_pos, old_neg = pos.detach(), neg.detach()
    weights = rank_weights(old_neg, tau=tau, tawin_anchor=tawin_anchor, tawin_window=tawin_window)
    if old_policy == "reference":
        old_pos, old_neg = _at_least_float32(ref_pos, ref_neg)
    losses = _clipped_objective(pos, neg, old_pos, old_neg, weights, clip_eps=clip_eps, advantage_ddof=advantage_ddof)
    if kl_weight > 0:
        ref_pos, ref_neg = _at_least_float32(ref_pos, ref_neg)
        pos_kl, neg_kl = _kl_terms(ref_pos - pos), _kl_terms(ref_neg - neg)
        losses = losses + kl_weight * (pos_kl + neg_kl.sum(dim=1)) / (neg.shape[1] + 1)
    return losses


@torch.no_grad()
def neighbour_profiles(item_vectors: torch.Tensor, top: int = 10, chunk: int = 1024) -> torch.Tensor:
    """Return HaNoRec's profiles of items: the softmax of each item's ``top`` largest cosines, descending.

    Args:
        item_vectors: [n, H] with the padding item 0, which is never a neighbour; an item is not its own neighbour.
        top: neighbours per item; HaNoRec 10. Fewer when the catalogue is smaller.
        chunk: items compared at a time, [chunk, n] cosines.

    Returns:
        Tensor: [n, top], each row sums to 1.
    """
    unit = F.normalize(item_vectors.float(), dim=1)
    profiles = []
    for start in range(0, len(unit), chunk):
        cosines = unit[start : start + chunk] @ unit.t()  # [c, n]
        cosines[:, 0] = -float("inf")
        line = torch.arange(len(cosines), device=unit.device)
        cosines[line, start + line] = -float("inf")
        profiles.append(cosines.topk(min(top, len(unit) - 2), dim=1).values.softmax(dim=1))
    return torch.cat(profiles)


def neighbour_gaps(profiles: torch.Tensor, pos_ids: torch.Tensor, neg_ids: torch.Tensor) -> torch.Tensor:
    """Return HaNoRec's delta, the distance of the profiles of positive and negatives: [n, T], [B], [B, K] -> [B, K]."""
    return (profiles[pos_ids].unsqueeze(1) - profiles[neg_ids]).norm(dim=-1)


def hanorec(
    pos: Tensor, neg: Tensor, ref_pos: Tensor, ref_neg: Tensor, neighbour_gap: Tensor | None = None, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """HaNoRec: DPO whose beta follows the hardness of each pair and the noise of the batch, the mean over K pairs.

    -log sigma(beta m h_l (Delta_w - Delta_l)), where h_l = sigma(delta_l) / sigma(mean delta) and
    m = sigma(trimmed mean of g / mean g) / sigma(1), g = Delta_w - Delta_l. Both are detached.
    h and m compare a pair with the others given: those of the batch if ``ce_weight`` is 0, else those of a chunk.

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], [B], [B, K].
        neighbour_gap: [B, K] delta of ``neighbour_gaps``; None: all pairs are equally hard, h = 1.
        beta: base strength, > 0; authors' code 0.1.

    Returns:
        tuple: losses [B] and a dict with ``mean_beta`` [B], detached.

    Reference: HaNoRec as in the authors' code (wangyu0627/HaNoRec), where K = 1. The trimmed share, a tenth at each
    end, and h over several negatives are our choices.
    """
    margins = _pair_margins(pos, neg, ref_pos, ref_neg)  # [B, K]
    gains = margins.detach().flatten()
    ratio = (gains / gains.mean()).nan_to_num(1.0)  # 0 / 0: the policy still equals its reference
    cut = len(ratio) // 10
    noise = ratio.sort().values[cut : len(ratio) - cut].mean()
    betas = torch.full_like(margins, beta) * torch.sigmoid(noise) / torch.sigmoid(torch.ones_like(noise))
    if neighbour_gap is not None:
        (gap,) = _at_least_float32(neighbour_gap.detach())
        betas = betas * torch.sigmoid(gap) / torch.sigmoid(gap.mean())
    return -F.logsigmoid(betas * margins).mean(dim=1), {"mean_beta": betas.mean(dim=1)}


@torch.no_grad()
def diagnostics(
    pos: Tensor, neg: Tensor, ref_pos: Tensor | None = None, ref_neg: Tensor | None = None, beta: float = 1.0
) -> dict[str, Tensor]:
    """Return the quantities that monitor an alignment run: dict of detached Tensors [B].

    ``reward_margin``: beta times the mean of Delta_w - Delta_l, or the mean gap of the scores without
    a reference; ``reward_accuracy``: share of negatives that the policy ranks below the positive;
    ``pos_score``, ``neg_score``: the positive's value and the mean of the negatives' values.

    Args:
        pos, neg, ref_pos, ref_neg: [B], [B, K], and [B], [B, K] or None.
        beta: scale of the implicit reward.
    """
    pos, neg = _at_least_float32(pos, neg)
    gaps = pos.unsqueeze(1) - neg  # [B, K]
    if ref_pos is None or ref_neg is None:
        margins = gaps
    else:
        margins = beta * _pair_margins(pos, neg, ref_pos, ref_neg)
    return {
        "reward_margin": margins.mean(dim=1),
        "reward_accuracy": (gaps > 0).to(pos.dtype).mean(dim=1),
        "pos_score": pos.clone(),
        "neg_score": neg.mean(dim=1),
    }
