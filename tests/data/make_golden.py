"""Build ``golden.json``: worked numbers for the losses, the samplers, the weights and WPAUC.

The script uses numpy in float64 and nothing of the package, so that the tests compare two independent
implementations. From the root of the repository::

    python tests/data/make_golden.py            # write golden.json
    python tests/data/make_golden.py --check    # compare; exit status 1 and the names of the cases that differ

A new case is one ``Case`` in ``CASES``, followed by one entry in the test that reads it (``tests/test_losses.py``
checks that no case is forgotten).

Notation: s and r are the logits of the policy and of the reference, pi = softmax(s), w is the positive, l one of the
K negatives, Delta_i = log pi_i - log pi_ref,i and sp(z) = log(1 + e^z) = -log sigma(-z).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

PATH = Path(__file__).with_name("golden.json")
STEP = 1e-3  # of the central differences
AGREEMENT = 1e-11  # of two numbers, relative (absolute below 1): central differences round by up to 1e-12
ANALYTIC = "analytic (matches finite difference to <1e-8)"
NUMERIC = "central difference O(h^4), h=1e-3"
META = {
    "dtype": "float64",
    "generator": "plain numpy; gradients wrt the logits of the policy; reference/old logits, selected indices, "
    "per-negative betas and weights are constants",
    "conventions": "logits row s[n_items]; pos index; negs index list; pi=softmax(s); Delta_i=log pi_i - log pi_ref,i",
}


# -- elementary functions -----------------------------------------------------------------------


def sigma(z):
    return 1 / (1 + np.exp(-z))


def sp(z):
    return np.logaddexp(0, z)


def logsumexp(z):
    return z.max() + np.log(np.exp(z - z.max()).sum())


def log_softmax(z):
    return z - logsumexp(z)


def softmax(z):
    return np.exp(log_softmax(z))


def scatter(size: int, ids: list[int], values) -> np.ndarray:
    """Zeros [size] with ``values`` [k] at ``ids`` [k]."""
    out = np.zeros(size)
    out[ids] = values
    return out


def central_difference(f: Callable[[np.ndarray], Any], s: np.ndarray) -> np.ndarray:
    """The gradient of the loss ``f`` at ``s`` [n], or of the row losses ``f`` [B] at ``s`` [B, n]; error O(STEP^4)."""
    grad = np.zeros_like(s)
    for i in np.ndindex(s.shape):
        e = np.zeros_like(s)
        e[i] = STEP
        slope = (8 * (f(s + e) - f(s - e)) - (f(s + 2 * e) - f(s - 2 * e))) / (12 * STEP)
        grad[i] = slope[i[:-1]]  # of the row losses: the row that moved
    return grad


# -- losses -------------------------------------------------------------------------------------
#
# Every function takes logits s, inputs x and parameters p, and returns the loss, its analytic gradient by s (None: use
# central differences) and intermediate results. Constants such as a selected negative, a beta or a weight are computed
# from x.logits, so that the central differences, which move s, hold them fixed.


def ce(s, x, p):
    """-log pi_w: cross-entropy."""
    logp = log_softmax(s)
    return -logp[x.pos], np.exp(logp) - scatter(len(s), [x.pos], 1.0), {}


def pair_gaps(s, x):
    """Delta_w - Delta_l [K], or log pi_w - log pi_l without a reference."""
    delta = log_softmax(s) - log_softmax(x.ref_logits) if hasattr(x, "ref_logits") else log_softmax(s)
    return delta[x.pos] - delta[x.negs]


def pair_gradient(s, x, slope):
    """The gradient by s of a function of the gaps whose derivatives by the gaps are ``slope`` [K]."""
    return scatter(len(s), [x.pos, *x.negs], [np.sum(slope), *-slope])


def through_softmax(pi, by_pi):
    """The gradient by s of a function of pi whose gradient by pi is ``by_pi`` [n]."""
    return pi * by_pi - pi * np.sum(pi * by_pi)


def dpo(s, x, p):
    """mean_l (1-eps) sp(-h) + eps sp(h), h = beta (Delta_w - Delta_l). DPO, arXiv 2305.18290, eq. 7; eps > 0: cDPO."""
    h, eps = p.beta * pair_gaps(s, x), getattr(p, "eps", 0.0)
    slope = p.beta * (eps * sigma(h) - (1 - eps) * sigma(-h)) / len(h)
    return np.mean((1 - eps) * sp(-h) + eps * sp(h)), pair_gradient(s, x, slope), {}


def rdpo(s, x, p):
    """mean_l [(1-eps) sp(-h) - eps sp(h)] / (1 - 2 eps). Robust DPO, arXiv 2403.00409."""
    h, scale = p.beta * pair_gaps(s, x), 1 - 2 * p.eps
    slope = -p.beta * ((1 - p.eps) * sigma(-h) + p.eps * sigma(h)) / scale / len(h)
    return np.mean(((1 - p.eps) * sp(-h) - p.eps * sp(h)) / scale), pair_gradient(s, x, slope), {}


def ipo(s, x, p):
    """mean_l (Delta_w - Delta_l - 1/(2 beta))^2. IPO, arXiv 2310.12036, eq. 17."""
    excess = pair_gaps(s, x) - 1 / (2 * p.beta)
    return np.mean(excess**2), pair_gradient(s, x, 2 * excess / len(excess)), {}


def sdpo(s, x, p):
    """log(1 + sum_l exp(-beta (Delta_w - Delta_l))). S-DPO, arXiv 2406.09215."""
    z = -p.beta * pair_gaps(s, x)
    outer, share = sigma(logsumexp(z)), softmax(z)
    aux = {"neg_softmax_weights": share, "outer_weight": outer}
    return sp(logsumexp(z)), pair_gradient(s, x, -p.beta * outer * share), aux


def dmpo(s, x, p):
    """sp(-mean_l beta (Delta_w - Delta_l)). DMPO, in the README of DynamicPO."""
    k, h = len(x.negs), p.beta * np.mean(pair_gaps(s, x))
    return sp(-h), p.beta * sigma(-h) * scatter(len(s), [x.pos, *x.negs], [-1.0] + [1 / k] * k), {}


def mppo(s, x, p):
    """sp(-beta sum_l (pi_w - pi_l)). MPPO, in the code of DynamicPO."""
    k, pi = len(x.negs), softmax(s)
    h = p.beta * (k * pi[x.pos] - pi[x.negs].sum())
    by_pi = p.beta * sigma(-h) * scatter(len(s), [x.pos, *x.negs], [-k] + [1.0] * k)
    return sp(-h), through_softmax(pi, by_pi), {"probs": pi}


def simpo(s, x, p):
    """mean_l sp(-(beta (log pi_w - log pi_l) - gamma)), length 1. SimPO, arXiv 2405.14734, eq. 6."""
    h = p.beta * pair_gaps(s, x) - p.gamma
    return np.mean(sp(-h)), pair_gradient(s, x, -p.beta * sigma(-h) / len(h)), {}


def cpo(s, x, p):
    """mean_l sp(-beta (log pi_w - log pi_l)) + lam CE. CPO, arXiv 2401.08417; lam = ftx: the official code of DMPO."""
    h, lam = p.beta * pair_gaps(s, x), p.ftx if hasattr(p, "ftx") else p.lam
    value, grad, _ = ce(s, x, p)
    return np.mean(sp(-h)) + lam * value, pair_gradient(s, x, -p.beta * sigma(-h) / len(h)) + lam * grad, {}


def orpo(s, x, p):
    """CE + lam mean_l sp(-(o_w - o_l)), o_i = log pi_i - log(1 - pi_i). ORPO, arXiv 2403.07691, eqs. 6 and 7."""
    value, grad, _ = ce(s, x, p)
    pi = softmax(s)
    odds = log_softmax(s) - np.log1p(-pi)
    h = odds[x.pos] - odds[x.negs]
    by_s = (np.eye(len(s)) - pi) / (1 - pi)[:, None]  # [n, n], row i: the gradient of o_i
    slope = sigma(-h)[:, None] * (by_s[x.pos] - by_s[x.negs])  # [K, n]
    return value + p.lam * np.mean(sp(-h)), grad - p.lam * slope.mean(axis=0), {}


def log_share(z, x, tau):
    """log[e^(z_w/tau) / (e^(z_w/tau) + sum_l e^(z_l/tau))] and its gradient by z [n]."""
    ids = [x.pos, *x.negs]
    logs = log_softmax(z[ids] / tau)
    return logs[0], scatter(len(z), ids, (np.eye(len(ids))[0] - np.exp(logs)) / tau)


def lpo(s, x, p):
    """CE - lam log_share(pi). LPO, arXiv 2507.02255, eq. 13."""
    value, grad, _ = ce(s, x, p)
    pi = softmax(s)
    share, by_pi = log_share(pi, x, p.tau)
    aux = {"ce": value, "lpo": -share, "probs": pi}
    return value - p.lam * share, grad - p.lam * through_softmax(pi, by_pi), aux


def lpo_code(s, x, p):
    """CE + lam exp(log_share(pi)): the official code of LPO, which omits -log."""
    value, grad, _ = ce(s, x, p)
    pi = softmax(s)
    share, by_pi = log_share(pi, x, p.tau)
    ratio = np.exp(share)
    total = grad + p.lam * through_softmax(pi, ratio * by_pi)
    return value + p.lam * ratio, total, {"ratio": ratio, "ce": value, "grad_lpo_part_only": total - grad}


def lpo_logit(s, x, p):
    """CE - lam log_share(s): LPO with logits, a variant that is not in the paper."""
    value, grad, _ = ce(s, x, p)
    share, by_s = log_share(s, x, p.tau)
    return value - p.lam * share, grad - p.lam * by_s, {}


def weighted_rows(loss, scale):
    """omega_b loss_b of every row b of a batch. LPO, arXiv 2507.02255, eqs. 16 and 17."""

    def row_losses(s, x, p):
        rows = [SimpleNamespace(pos=pos, negs=negs) for pos, negs in zip(x.pos, x.negs)]
        return x.weights * [loss(row, y, p)[0] for row, y in zip(s, rows)], None, {"scale": scale}

    return row_losses


def bpr(s, x, p):
    """mean_l sp(-(s_w - s_l)). BPR, arXiv 1205.2618."""
    return np.mean(sp(-(s[x.pos] - s[x.negs]))), None, {}


def bce(s, x, p):
    """[sp(-s_w) + sum_l sp(s_l)] / (1 + K). SASRec, arXiv 1808.09781, has K = 1."""
    return (sp(-s[x.pos]) + sp(s[x.negs]).sum()) / (1 + len(x.negs)), None, {}


def gbce(s, x, p):
    """bce with beta sp(-s_w), beta = a ((1 - 1/a) t + 1/a), a = K/(n-1). gBCE, arXiv 2308.07192."""
    alpha = len(x.negs) / (p.n_items - 1)
    beta = alpha * ((1 - 1 / alpha) * p.t + 1 / alpha)
    value = (beta * sp(-s[x.pos]) + sp(s[x.negs]).sum()) / (1 + len(x.negs))
    return value, None, {"alpha": alpha, "beta": beta}


def ssm(s, x, p):
    """-log softmax(s/tau - log q)_w over w and the negatives; without probabilities q there is no correction."""
    z = s / p.tau - (np.log(x.q) if hasattr(x, "q") else 0.0)
    return -log_softmax(z[[x.pos, *x.negs]])[0], None, {}


def logit_adjusted(s, x, p):
    """-log softmax(s + tau log prior)_w. Logit adjustment, arXiv 2007.07314."""
    return -log_softmax(s + p.tau * np.log(x.prior))[x.pos], None, {}


def top_cluster(values):
    """Positions of the highest of min(3, K) clusters of ``values`` [K]: exact 1-D k-means by trying all partitions."""
    order, k = np.argsort(-values, kind="stable"), len(values)
    if k < 3:
        return order[:1].tolist()

    def squared_error(cuts):
        return sum(((part - part.mean()) ** 2).sum() for part in np.split(values[order], cuts))

    cuts = min(((i, j) for i in range(1, k - 1) for j in range(i + 1, k)), key=squared_error)
    return sorted(order[: cuts[0]].tolist())


def dynamicpo(base):
    """DynamicPO, arXiv 2605.00327 (official code), on "dmpo", "sdpo" or "mppo".

    The boundary negatives b score at least as high as w, or else are the top cluster. The rest D are all others, or
    the boundary where there are none. With d_b = log pi_w - log pi_b and c_b = log pi_b - mean_D log pi:
    beta_b = beta (1 + scale tanh((d_b - c_b - margin) / (|d_b| + |c_b|))).
    """

    def loss(s, x, p):
        logp = log_softmax(x.logits)
        pos, neg = logp[x.pos], logp[x.negs]
        violations = np.flatnonzero(neg >= pos).tolist()
        boundary = violations or top_cluster(neg)
        rest = [j for j in range(len(neg)) if j not in boundary] or boundary
        d, c = pos - neg[boundary], neg[boundary] - neg[rest].mean()
        betas = p.beta * (1 + p.scale * np.tanh((d - c - p.margin) / (np.abs(d) + np.abs(c))))
        items = [x.negs[j] for j in boundary]
        gaps = pair_gaps(s, SimpleNamespace(pos=x.pos, negs=items, ref_logits=x.ref_logits))
        pi = softmax(s)
        value = {
            "dmpo": sp(-np.mean(betas * gaps)),  # sp(-mean_b beta_b (Delta_w - Delta_b))
            "sdpo": sp(logsumexp(-betas * gaps)),  # log(1 + sum_b exp(-beta_b (Delta_w - Delta_b)))
            "mppo": sp(-np.sum(betas * (pi[x.pos] - pi[items]))),  # sp(-sum_b beta_b (pi_w - pi_b))
        }[base]
        aux = {"boundary_positions": boundary, "boundary_items": items, "discriminative_positions": rest}
        aux |= {"violation_branch": bool(violations), "betas": betas}
        return value, None, aux | {"delta_pos2boundary": d, "delta_boundary2disc": c}

    return loss


def pool(x, size, exclude=()):
    """The ``size`` items with the highest scores, without the positive and ``exclude``. RoDPO, arXiv 2603.29259."""
    order = np.argsort(-x.logits, kind="stable").tolist()
    return [i for i in order if i != x.pos and i not in exclude][:size]


def rodpo_expected(s, x, p):
    """The expected dpo loss of a negative drawn uniformly from the pool. RoDPO, arXiv 2603.29259."""
    best = pool(x, p.pool_size)
    value, grad, _ = dpo(s, SimpleNamespace(**vars(x), negs=best), p)
    return value, grad, {"pool": best, "hard_negative": best[0]}


def rodpo_draw(s, x, p):
    """dpo with one negative of the pool + lam_ce CE. RoDPO, arXiv 2603.29259."""
    (value, grad, _), (ce_value, ce_grad, _) = dpo(s, x, p), ce(s, x, p)
    return value + p.lam_ce * ce_value, grad + p.lam_ce * ce_grad, {"pool": pool(x, p.pool_size)}


def soft_topk(x, k, tau):
    """w = min(1, exp((x - lam) / tau)) and the threshold lam for which sum w = k. TAWin, arXiv 2604.22504."""
    order = np.sort(x)[::-1]
    for ones in range(k):  # the ``ones`` largest values have weight 1
        lam = tau * (logsumexp(order[ones:] / tau) - np.log(k - ones))
        if order[ones] <= lam:
            break
    return np.minimum(1, np.exp((x - lam) / tau)), lam


def window(neg, p):
    """Weights [K] with sum K: soft_topk of minus the distance in rank from the anchor. TAWin, arXiv 2604.22504."""
    rank = np.argsort(np.argsort(-neg, kind="stable")).astype(float)
    x = -np.abs(rank - p.anchor_rank0)
    w, lam = soft_topk(x, p.k, p.tau)
    return {"rank0": rank, "x": x, "w": w, "lam": lam, "w_normalised": w / w.sum() * len(neg)}


def group_objective(s, old, x, weights, p):
    """-(1/G) sum_m omega_m min(rho_m A_m, clip(rho_m) A_m), rho = pi/pi_old, A = (R - mean R)/std R, R_w = 1, R_l = 0.

    TAWin, arXiv 2604.22504, on PPO's clipping (arXiv 1707.06347, eq. 7) and the advantages of GRPO (arXiv 2402.03300).
    """
    ids = [x.pos, *x.negs]
    omega, reward = np.array([1.0, *weights]), np.eye(len(ids))[0]
    advantage = (reward - reward.mean()) / reward.std(ddof=p.ddof)
    rho = np.exp(log_softmax(s)[ids] - log_softmax(old)[ids])
    clipped = np.clip(rho, 1 - p.clip, 1 + p.clip)
    return -np.mean(omega * np.minimum(rho * advantage, clipped * advantage)), omega, advantage, rho


def tawin(s, x, p):
    """group_objective with pi_old = pi, where rho = 1 and the gradient of rho is that of log pi."""
    aux = window(x.logits[x.negs], p)
    value, omega, advantage, _ = group_objective(s, x.logits, x, aux["w_normalised"], p)
    by_s = np.eye(len(s))[[x.pos, *x.negs]] - softmax(s)  # [G, n], the gradients of log pi
    grad = -((omega * advantage)[:, None] * by_s / len(omega)).sum(axis=0)
    aux |= {"advantages": advantage, "weighted_advantage_sum": np.sum(omega * advantage)}
    return value, grad, aux | {"grpo_grad_unweighted": -(advantage[:, None] * by_s).mean(axis=0)}


def tawin_off_policy(s, x, p):
    """group_objective with given logits of pi_old, which also rank the group."""
    weights = window(x.old_logits[x.negs], p)["w_normalised"]
    value, _, advantage, rho = group_objective(s, x.old_logits, x, weights, p)
    return value, None, {"w_normalised": weights, "advantages": advantage, "rho": rho}


# -- samplers, weights and metrics: the same signature, no loss ---------------------------------


def lpo_sampling(s, x, p):
    """P(i) = e^(pi_i) / sum_head e^(pi_j). LPO, arXiv 2507.02255, eq. 14; and pi_i / sum_head pi_j."""
    pi = softmax(s)
    left = [i for i in x.head if i != x.pos]
    whole, removed = np.exp(pi[x.head]), np.exp(pi[left])
    aux = {"probs": pi, "eq14_over_head_with_pos": whole / whole.sum()}
    aux |= {"eq14_over_head_pos_removed": removed / removed.sum()}
    return None, None, aux | {"pi_over_head_pos_removed": pi[left] / pi[left].sum()}


def gumbel_topk(s, x, p):
    """The k head items with the largest pi + g or log pi + g, g = -log(-log u). LPO, arXiv 2507.02255, eq. 15."""
    gumbel, aux = -np.log(-np.log(x.uniforms)), {}
    for values, perturbed, space in ((softmax(s), "probs", "prob"), (log_softmax(s), "logp", "logit")):
        aux[f"perturbed_{perturbed}"] = total = values[x.head] + gumbel
        aux[f"top2_items_{space}_space"] = [x.head[j] for j in np.argsort(-total)[: x.k]]
    return None, None, {"gumbel": gumbel} | aux


def pools(s, x, p):
    """pool without and with the exclusion of the history."""
    seen = pool(x, p.pool_size, exclude=x.history)
    return None, None, {"pool_excl_pos": pool(x, p.pool_size), "pool_excl_pos_and_history": seen}


def soft_topk_of(s, x, p):
    """soft_topk of given values."""
    weights, lam = soft_topk(x.x, p.k, p.tau)
    return None, None, {"weights": weights, "threshold": lam, "sum": weights.sum()}


def wpauc(s, x, p):
    """Pr[f(i+) > f(i-)] over the negatives with ranks in (alpha n-, (alpha+d) n-]. TAWin, arXiv 2604.22504."""
    neg, n = np.sort(x.neg)[::-1], len(x.pos)
    first, last = round(p.alpha * len(neg)), round((p.alpha + p.d) * len(neg))
    wins = x.pos[:, None] > neg  # [n+, n-]
    value = wins[:, first:last].mean()
    top = sorted([*x.pos, *neg], reverse=True)[: p.K]
    aux = {"wpauc": value, "recall_at_K": sum(i in top for i in x.pos) / n}
    if n == 1:
        return None, None, aux | {"auc": wins.mean(), "opauc_top": wins[:, :last].mean()}
    lower, upper = np.ceil(n * (1 - np.sqrt(1 - value))) / n, np.floor(n * np.sqrt(value)) / n  # theorem 3.4
    return None, None, aux | {"lower": lower, "upper": upper}


def ips(s, x, p):
    """min((max count / count)^power, clip): inverse propensity weights."""
    return None, None, {"w": np.minimum((x.counts.max() / x.counts) ** p.power, p.clip)}


# -- cases --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One entry of the file. In ``inputs``, lists of floats are given to ``function`` as arrays."""

    id: str
    method: str
    function: Callable
    inputs: dict[str, Any]
    params: dict[str, Any] = {}
    note: str = ""


FREE = {"logits": [2.0, 1.0, 0.5, -0.5, 0.0, 1.5], "pos": 0}  # instance A without reference and negatives
PAIR = {"logits": FREE["logits"], "ref_logits": [1.5, 1.2, 0.3, 0.0, -0.2, 1.0], "pos": 0}  # with reference
ONE, THREE = {"negs": [1]}, {"negs": [1, 3, 5]}
A1, A, FREE1, FREE3 = PAIR | ONE, PAIR | THREE, FREE | ONE, FREE | THREE
B_FREE = {"logits": [0.1, -1.2, 2.3, 0.7, -0.4, 1.1, 0.0, -2.0]}
B = B_FREE | {"ref_logits": [0.0, -0.5, 1.0, 0.2, 0.3, 1.4, -0.6, -1.0], "pos": 5, "negs": [2, 0, 7, 3]}
SEPARATED = {  # clusters {2.8, 2.6}, {0.1, -0.2} and {-3, -3.2, -3.1} below the positive
    "logits": [3.0, 2.8, 2.6, 0.1, -0.2, -3.0, -3.2, -3.1],
    "ref_logits": [2.5, 2.6, 2.0, 0.4, 0.0, -2.0, -2.5, -2.2],
    "pos": 0,
    "negs": [1, 2, 3, 4, 5, 6, 7],
}
RISING = {"logits": [0.0, 1.0, 2.0, 3.0], "ref_logits": [0.0] * 4, "pos": 0, "negs": [1, 2, 3]}
ROWS = [FREE["logits"], [0.3, 0.9, -0.7, 1.4, 0.2, -1.1]]
TWO = {"logits": ROWS, "pos": [0, 4], "negs": [[1, 3, 5], [0, 3, 1]]}
ALPHA = [0.0, 1.0]  # a head label, a tail label
TAIL = TWO | {"weights": softmax(np.array(ALPHA)).tolist()}
POPULARITY = (np.arange(1.0, 7.0) / 21).tolist()
HEAD = B_FREE | {"head": [0, 2, 3, 5, 6]}
UNIFORMS = {"uniforms": [0.1, 0.5, 0.9, 0.3, 0.7], "k": 2}
GROUP = FREE | {"negs": [5, 1, 2, 4, 3]}
STEPS = [0.3, -0.2, 0.1, -0.4, 0.2, -0.5, 0.0, 0.25]  # from the policy to the old policy
OFF = B_FREE | {"old_logits": np.add(B_FREE["logits"], STEPS).tolist(), "pos": 5, "negs": [2, 3, 0, 6, 4, 1, 7]}
NEG = {"neg": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]}
COUNTS = {"counts": [50.0, 20.0, 10.0, 5.0, 3.0, 1.0]}

LPO = "LPO (paper eq.13, probability space): CE + lam*(-log ratio)"
BATCH, SUM_1, SUM_M = "LPO batch with reweighting", "sum, weights sum to 1", "sum, weights sum to m"
SIMPO = "SimPO (atomic items, |y|=1, mean over negatives; gamma = beta*ratio)"
DMPO_CODE = "DMPO (official repo behaviour: reference cancels, mean over pairs, +ftx*CE)"
RODPO = "RoDPO expected over uniform draw from pool (pool detached)"
VIOLATION = "violation branch: negatives with logit >= positive logit"
CLUSTER = "no violation: top of three 1-D k-means clusters of negative log-probs"
ALL_VIOLATE = "every negative violates: discriminative set := boundary set"
CANCELS = "sum of weighted advantages is 0, so the log-normaliser drops out"
RANKS = "window = descending negatives with 1-based ranks in (alpha n-, (alpha+d) n-]"
PAPER_NOTE = (
    "row 0 head label (alpha 0), row 1 tail label (alpha 1); omega = softmax over batch; sum of omega*(CE+lam*LPO)"
)
HAS_TAIL = "official code, batch has a tail label"
NO_TAIL = "official code, batch without tail label: weight 1.0 per row and still .sum() -> m times the paper scale"
UNIFORM_LIKE = (
    "Eq.14 uses exp(probability): near uniform. pi_over_head = Gumbel-top-1 on log-probabilities/logits (usual intent)"
)


def dynamic_case(base, kind, margin, inputs, note):
    params = {"beta": 1.0, "margin": margin, "scale": 0.5}
    return Case(f"dyn_{base}_{kind}", f"DynamicPO on {base.upper()}", dynamicpo(base), inputs, params, note)


def tawin_params(anchor, k, ddof):
    return {"anchor_rank0": anchor, "tau": 1.0, "k": k, "ddof": ddof, "clip": 0.2}


def wpauc_case(name, method, pos, k, note):
    params = {"K": k, "alpha": (k - len(pos)) / 6, "d": len(pos) / 6}
    return Case(f"wpauc_{name}", f"WPAUC metric, {method}", wpauc, {"pos": pos} | NEG, params, note)


CASES = [
    Case("ce_A", "CE", ce, FREE),
    *(
        Case(f"{name}_A_b{beta}", method, loss, inputs, {"beta": beta})
        for beta in (0.1, 1.0)
        for name, method, loss, inputs in (
            ("dpo1", "DPO (1 negative)", dpo, A1),
            ("dpoK", "DPO (K negatives, mean over pairs)", dpo, A),
            ("sdpo", "S-DPO", sdpo, A),
            ("dmpo", "DMPO (paper)", dmpo, A),
        )
    ),
    Case("dmpo_code_A", DMPO_CODE, cpo, FREE3, {"beta": 0.1, "ftx": 1.0}),
    Case("mppo_A", "MPPO", mppo, FREE3, {"beta": 1.0}),
    Case("simpo_A", SIMPO, simpo, FREE3, {"beta": 2.0, "gamma": 1.0, "gamma_beta_ratio": 0.5}),
    Case("simpo1_A_b10", "SimPO (1 negative)", simpo, FREE1, {"beta": 10.0, "gamma": 3.0, "gamma_beta_ratio": 0.3}),
    Case("orpo_A", "ORPO (CE + lam * OR, mean over negatives)", orpo, FREE3, {"lam": 0.1}),
    Case("orpo1_A_l1", "ORPO (1 negative)", orpo, FREE1, {"lam": 1.0}),
    Case("cpo_A", "CPO (pair term + NLL)", cpo, FREE3, {"beta": 0.1, "lam": 1.0}),
    *(Case(f"lpo_paper_A_tau{tau}", LPO, lpo, FREE3, {"tau": tau, "lam": 0.5}) for tau in (0.1, 1.0)),
    Case(
        "lpo_code_A",
        "LPO (official code): CE + 0.5*(+ratio), tau=2, prob space",
        lpo_code,
        FREE3,
        {"tau": 2.0, "lam": 0.5},
    ),
    Case(
        "lpo_logit_A",
        "LPO (variant, logit space; NOT in paper): CE + lam*sampled softmax(s/tau)",
        lpo_logit,
        FREE3,
        {"tau": 1.0, "lam": 0.5},
    ),
    Case("cdpo_A", "cDPO (label smoothing)", dpo, A, {"beta": 0.5, "eps": 0.1}),
    Case("rdpo_A", "robust DPO (rDPO)", rdpo, A, {"beta": 0.5, "eps": 0.1}),
    Case("ipo_A", "IPO", ipo, A, {"beta": 0.1}),
    Case("bpr_A", "BPR", bpr, FREE3),
    Case("bce_A", "BCE (mean over 1+K)", bce, FREE3),
    Case("gbce_A", "gBCE (mean over 1+K)", gbce, FREE3, {"t": 0.75, "n_items": 6}),
    Case("ssm_A", "SSM (sampled softmax, no correction)", ssm, FREE3, {"tau": 1.0}),
    Case("ssm_logq_A", "SSM with logQ correction on all K+1", ssm, FREE3 | {"q": POPULARITY}, {"tau": 1.0}),
    Case("logit_adj_A", "logit-adjusted CE", logit_adjusted, FREE | {"prior": POPULARITY}, {"tau": 1.0}),
    *(
        Case(f"lpo_batch_{name}", BATCH, weighted_rows(loss, scale), inputs, params, note)
        for name, loss, scale, inputs, params, note in (
            ("paper", lpo, SUM_1, TAIL, {"tau": 0.1, "lam": 0.5, "alpha": ALPHA}, PAPER_NOTE),
            ("code_tail", lpo_code, SUM_1, TAIL, {"tau": 2.0, "lam": 0.5, "alpha": ALPHA}, HAS_TAIL),
            ("code_notail", lpo_code, SUM_M, TWO | {"weights": [1.0, 1.0]}, {"tau": 2.0, "lam": 0.5}, NO_TAIL),
        )
    ),
    Case(
        "lpo_sampling_eq14", "LPO negative sampling probabilities", lpo_sampling, HEAD | {"pos": 5}, note=UNIFORM_LIKE
    ),
    Case(
        "gumbel_topk_fixed_noise",
        "Gumbel top-k with given uniforms",
        gumbel_topk,
        HEAD | UNIFORMS,
        note="positive not excluded here; no eps inside logs",
    ),
    *(
        dynamic_case(base, f"{kind}_m{margin}", margin, inputs, note)
        for margin in (0.0, 2.0, 6.0)
        for base in ("dmpo", "sdpo", "mppo")
        for kind, inputs, note in (("noviol", SEPARATED, CLUSTER), ("viol", B, VIOLATION))
    ),
    dynamic_case("dmpo", "allviol_m2", 2.0, RISING, ALL_VIOLATE),
    dynamic_case("dmpo", "K1_m2", 2.0, A1, "K=1, no violation: boundary = the negative itself, delta_bd = 0"),
    *(
        Case(f"rodpo_A_k{size}_{name}", method, loss, PAIR | negs, {"beta": 0.1} | more | {"pool_size": size}, note)
        for size, last in ((2, 1), (4, 4))
        for name, method, loss, negs, more, note in (
            ("expected", RODPO, rodpo_expected, {}, {}, "equals K-pair mean DPO over the pool"),
            ("draw_last_ce", "RoDPO one draw + lam*CE", rodpo_draw, {"negs": [last]}, {"lam_ce": 0.5}, ""),
        )
    ),
    Case("rodpo_pool_history", "RoDPO pool", pools, B_FREE | {"pos": 5, "history": [2, 6]}, {"pool_size": 3}),
    *(
        Case(
            f"tawin_{name}_ddof{ddof}", "TAWin on-policy (rho=1)", tawin, GROUP, tawin_params(anchor, k, ddof), CANCELS
        )
        for name, anchor, k in (("A", 0, 1), ("A2", 2, 2))
        for ddof in (0, 1)
    ),
    Case("tawin_offpolicy_clip", "TAWin off-policy, clip 0.2", tawin_off_policy, OFF, tawin_params(2, k=2, ddof=1)),
    *(
        Case(
            f"softtopk_{i}",
            "threshold-adjusted soft top-k operator",
            soft_topk_of,
            {"x": x},
            {"k": k, "tau": tau},
            note="w=min(1,exp((x-lam)/tau)), sum w = k",
        )
        for i, (x, k, tau) in enumerate(
            (
                ([3.0, 2.0, 1.0, 0.0], 2, 1.0),
                ([0.0, -1.0, -2.0, -1.0, -3.0], 1, 1.0),
                ([5.0, 0.0, 0.0, 0.0], 2, 1.0),
                ([-1.0, 0.0, -1.0, -2.0], 3, 0.5),
            )
        )
    ),
    *(wpauc_case(f"single_K{k}", "one positive", [2.5], k, RANKS) for k in (1, 3, 5)),
    wpauc_case("two_pos", "two positives + bound", [4.5, 2.5], 4, "see Theorem 3.4 bounds"),
    Case(
        "ips_weights",
        "IPS weight 1/p clipped",
        ips,
        COUNTS,
        {"power": 0.5, "clip": 5.0},
        note="(max count / count)^power, clipped",
    ),
]


# -- the file -----------------------------------------------------------------------------------


def evaluate(case: Case) -> dict[str, Any]:
    """The entry of a case; ArithmeticError where the analytic gradient is not the derivative of the loss."""
    arrays = {key: np.array(v) for key, v in case.inputs.items() if isinstance(v, list)}
    x = SimpleNamespace(**case.inputs | {key: v for key, v in arrays.items() if v.dtype == float})
    p, s = SimpleNamespace(**case.params), getattr(x, "logits", None)
    value, grad, aux = case.function(s, x, p)
    source = ""
    if value is not None:
        numeric = central_difference(lambda moved: case.function(moved, x, p)[0], s)
        source = NUMERIC if grad is None else ANALYTIC
        grad = numeric if grad is None else grad
        if not np.abs(grad - numeric).max() < 1e-8:
            raise ArithmeticError(f"{case.id}: analytic gradient {grad}, but central differences give {numeric}")
        value = np.sum(value)  # over the rows of a batch
    entry = {"id": case.id, "method": case.method, "inputs": case.inputs, "params": case.params, "loss": value}
    entry |= {"grad_logits": grad, "grad_source": source, "aux": aux, "note": case.note}
    return json.loads(json.dumps(entry, default=lambda number: number.tolist()))


def differences(new: Any, old: Any, path: str = "") -> Iterator[str]:
    """One line for every value in which two entries differ, numbers by more than ``AGREEMENT``."""
    if isinstance(new, dict) and isinstance(old, dict) and new.keys() == old.keys():
        for key in new:
            yield from differences(new[key], old[key], f"{path}.{key}")
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for i, pair in enumerate(zip(new, old)):
            yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(new, float) and isinstance(old, float):
        if not math.isclose(new, old, rel_tol=AGREEMENT, abs_tol=AGREEMENT):
            yield f"{path}: {new!r}, in the file {old!r}"
    elif type(new) is not type(old) or new != old:
        yield f"{path}: {new!r}, in the file {old!r}"


def check(entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The differences between ``CASES`` and the entries of a file, by the names of the cases that differ."""
    old = {entry["id"]: entry for entry in entries}
    new = {case.id: evaluate(case) for case in CASES}
    found = {name: ["not in CASES"] for name in old if name not in new}
    found |= {name: ["not in the file"] for name in new if name not in old}
    return found | {name: lines for name in new if name in old and (lines := [*differences(new[name], old[name])])}


def build(entries: list[dict[str, Any]]) -> str:
    """The contents of the file. Entries that agree are kept, so that another processor changes no last digit."""
    kept = {entry["id"]: entry for entry in entries}
    for name in check(entries):
        kept.pop(name, None)
    return json.dumps({"meta": META, "cases": [kept.get(case.id) or evaluate(case) for case in CASES]}, indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the file; the exit status."""
    parser = argparse.ArgumentParser(description="Build golden.json, the worked numbers of the tests.")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    only_check = parser.parse_args(arguments).check
    entries = json.loads(PATH.read_text(encoding="utf-8"))["cases"] if PATH.exists() else []
    if only_check:
        found = check(entries)
        for name, lines in found.items():
            print(f"{name}: {'; '.join(lines)}")
        return int(bool(found))
    temporary = PATH.with_suffix(".tmp")
    temporary.write_text(build(entries), encoding="utf-8")
    os.replace(temporary, PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
