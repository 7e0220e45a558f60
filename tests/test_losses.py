"""Losses against published-formula values, float64 loops, limits, symmetries and extremes."""

import inspect
import itertools
import json
import math
import pathlib
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pref import losses
from recbole_pref.errors import PrefError
from recbole_pref.scoring import weighted_sum

CASES = {
    case["id"]: case
    for case in json.loads((pathlib.Path(__file__).parent / "data" / "golden.json").read_text(encoding="utf-8"))[
        "cases"
    ]
}
quick = settings(max_examples=40, deadline=None)


class Golden:
    """A golden case as tensors [1] and [1, K] of log-probabilities that hang on its logits."""

    def __init__(self, case):
        inputs = case["inputs"]
        self.p = case["params"]
        self.case = case
        self.logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
        batched = self.logits.dim() == 2
        pos = torch.tensor(inputs["pos"] if batched else [inputs["pos"]])
        negs = inputs["negs"] if "negs" in inputs else case["aux"].get("pool", [])
        ids = torch.cat([pos[:, None], torch.tensor(negs if batched else [negs]).long()], dim=1)
        self.pos, self.neg = self._pick(self.logits, ids)
        for name in ("ref", "old"):
            if f"{name}_logits" in inputs:
                logits = torch.tensor(inputs[f"{name}_logits"], dtype=torch.float64)
                setattr(self, f"{name}_pos", self._pick(logits, ids)[0])
                setattr(self, f"{name}_neg", self._pick(logits, ids)[1])

    @staticmethod
    def _pick(logits, ids):
        logps = torch.log_softmax(torch.atleast_2d(logits), dim=1).gather(1, ids)
        return logps[:, 0], logps[:, 1:]

    @property
    def policy(self):
        return self.pos, self.neg

    @property
    def all(self):
        return self.pos, self.neg, self.ref_pos, self.ref_neg


def golden_dpo(g, dpo_loss="sigmoid"):
    smoothing = g.p.get("eps", 0.0)
    return losses.dpo(*g.all, beta=g.p["beta"], dpo_loss=dpo_loss, label_smoothing=smoothing)


def golden_lpo(g, space="probability"):
    return -g.pos + g.p["lam"] * losses.lpo(*g.policy, tau=g.p["tau"], lpo_space=space)


def golden_cpo(g):
    # CPO, and what DMPO's authors train: the pair term without reference, plus cross-entropy.
    weight = g.p.get("lam", g.p.get("ftx"))
    return losses.simpo(*g.policy, beta=g.p["beta"], gamma=0.0) + weight * -g.pos


def golden_dynamicpo(g):
    base = g.case["id"].split("_")[1]
    value, extras = losses.dynamicpo(
        *g.all, beta=g.p["beta"], gamma=g.p["margin"], dynamic_base=base, dynamic_beta="adaptive"
    )
    betas = g.case["aux"]["betas"]
    assert extras["mean_beta"].item() == pytest.approx(sum(betas) / len(betas), abs=1e-12)
    assert extras["boundary_size"].item() == len(betas)
    return value


def golden_weights(g, neg):
    return losses.rank_weights(neg, tau=g.p["tau"], tawin_anchor=g.p["anchor_rank0"], tawin_window=g.p["k"])


def golden_tawin(g):
    weights, advantages = g.case["aux"]["w_normalised"], g.case["aux"]["advantages"]
    assert golden_weights(g, g.neg)[0].tolist() == pytest.approx(weights, abs=1e-12)
    ours = losses.group_advantages(len(weights), g.p["ddof"])
    assert ours == pytest.approx((advantages[0], advantages[1]), abs=1e-12)
    return losses.tawin(
        *g.policy,
        tau=g.p["tau"],
        tawin_anchor=g.p["anchor_rank0"],
        tawin_window=g.p["k"],
        clip_eps=g.p["clip"],
        kl_weight=0.0,
        advantage_ddof=g.p["ddof"],
        old_policy="current",
    )


def golden_tawin_off_policy(g):
    weights = golden_weights(g, g.old_neg)  # the case ranks its group under the old policy
    assert weights[0].tolist() == pytest.approx(g.case["aux"]["w_normalised"], abs=1e-12)
    return losses._clipped_objective(
        *g.policy,
        g.old_pos,
        g.old_neg,
        weights,
        clip_eps=g.p["clip"],
        advantage_ddof=g.p["ddof"],
    )


GOLDEN = {
    "ce_A": lambda g: -g.pos,
    "dpo1_A_b0.1": golden_dpo,
    "dpoK_A_b0.1": golden_dpo,
    "dpo1_A_b1.0": golden_dpo,
    "dpoK_A_b1.0": golden_dpo,
    "cdpo_A": golden_dpo,
    "rdpo_A": lambda g: golden_dpo(g, "robust"),
    "ipo_A": lambda g: golden_dpo(g, "ipo"),
    "rodpo_A_k2_expected": golden_dpo,
    "rodpo_A_k4_expected": golden_dpo,
    "rodpo_A_k2_draw_last_ce": lambda g: golden_dpo(g) + g.p["lam_ce"] * -g.pos,
    "rodpo_A_k4_draw_last_ce": lambda g: golden_dpo(g) + g.p["lam_ce"] * -g.pos,
    "sdpo_A_b0.1": lambda g: losses.sdpo(*g.all, beta=g.p["beta"]),
    "sdpo_A_b1.0": lambda g: losses.sdpo(*g.all, beta=g.p["beta"]),
    "dmpo_A_b0.1": lambda g: losses.dmpo(*g.all, beta=g.p["beta"]),
    "dmpo_A_b1.0": lambda g: losses.dmpo(*g.all, beta=g.p["beta"]),
    "dmpo_code_A": golden_cpo,
    "cpo_A": golden_cpo,
    "mppo_A": lambda g: losses.mppo(*g.policy, beta=g.p["beta"]),
    "simpo_A": lambda g: losses.simpo(*g.policy, beta=g.p["beta"], gamma=g.p["gamma"]),
    "simpo1_A_b10": lambda g: losses.simpo(*g.policy, beta=g.p["beta"], gamma=g.p["gamma"]),
    "bpr_A": lambda g: losses.simpo(*g.policy, beta=1.0, gamma=0.0),
    "orpo_A": lambda g: -g.pos + g.p["lam"] * losses.orpo(*g.policy),
    "orpo1_A_l1": lambda g: -g.pos + g.p["lam"] * losses.orpo(*g.policy),
    "lpo_paper_A_tau0.1": golden_lpo,
    "lpo_paper_A_tau1.0": golden_lpo,
    "lpo_logit_A": lambda g: golden_lpo(g, "logit"),
    "lpo_batch_paper": golden_lpo,
    "ssm_A": lambda g: losses.lpo(*g.policy, tau=g.p["tau"], lpo_space="log_prob"),
    "tawin_offpolicy_clip": golden_tawin_off_policy,
    **{f"tawin_{name}_ddof{d}": golden_tawin for name in ("A", "A2") for d in (0, 1)},
    **{
        f"dyn_{base}_{kind}_m{margin}": golden_dynamicpo
        for base in ("dmpo", "sdpo")
        for kind in ("viol", "noviol")
        for margin in ("0.0", "2.0", "6.0")
    },
    "dyn_dmpo_allviol_m2": golden_dynamicpo,
    "dyn_dmpo_K1_m2": golden_dynamicpo,
}
SOFT_TOPK = [name for name in CASES if name.startswith("softtopk")]
NOT_LOSSES_HERE = {  # samplers, metrics, weights, and baselines or errors that are not offered
    *("lpo_code_A", "lpo_batch_code_tail", "lpo_batch_code_notail"),
    *("bce_A", "gbce_A", "ssm_logq_A", "logit_adj_A", "ips_weights"),
    *("lpo_sampling_eq14", "gumbel_topk_fixed_noise", "rodpo_pool_history"),
    *("wpauc_single_K1", "wpauc_single_K3", "wpauc_single_K5", "wpauc_two_pos"),
    *(f"dyn_mppo_{kind}_m{m}" for kind in ("viol", "noviol") for m in ("0.0", "2.0", "6.0")),
}


def test_golden_table_is_complete():
    assert set(GOLDEN) | set(SOFT_TOPK) | NOT_LOSSES_HERE == set(CASES)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    case = CASES[name]
    golden = Golden(case)
    weights = case["inputs"].get("weights")
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    per_row = GOLDEN[name](golden)
    value = per_row.mean() if weights is None else weighted_sum(per_row, weights / weights.sum())
    value.backward()
    assert value.item() == pytest.approx(case["loss"], rel=1e-12, abs=1e-12)
    expected = torch.tensor(case["grad_logits"], dtype=torch.float64)
    torch.testing.assert_close(golden.logits.grad, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SOFT_TOPK)
def test_golden_soft_topk(name):
    case = CASES[name]
    x, tau = torch.tensor(case["inputs"]["x"], dtype=torch.float64), case["params"]["tau"]
    weights = losses.soft_topk(x, case["params"]["k"], tau)
    assert weights.tolist() == pytest.approx(case["aux"]["weights"], abs=1e-12)
    below = weights < 1
    thresholds = x[below] - tau * weights[below].log()
    assert thresholds.tolist() == pytest.approx([case["aux"]["threshold"]] * int(below.sum()))


# -- loops in plain python ----------------------------------------------------------------------


def sp(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def share(w, others):
    return -math.log(math.exp(w) / (math.exp(w) + sum(math.exp(x) for x in others)))


def loop_dpo(w, ls, rw, rls, beta, dpo_loss, label_smoothing):
    total = []
    for x, r in zip(ls, rls):
        gap = (w - rw) - (x - r)
        h, e = beta * gap, label_smoothing
        total.append(
            {
                "sigmoid": (1 - e) * sp(-h) + e * sp(h),
                "robust": ((1 - e) * sp(-h) - e * sp(h)) / (1 - 2 * e),
                "ipo": (gap - 1 / (2 * beta)) ** 2,
            }[dpo_loss]
        )
    return mean(total)


def loop_lpo(w, ls, tau, lpo_space):
    if lpo_space == "probability":
        w, ls = math.exp(w), [math.exp(x) for x in ls]
    return share(w / tau, [x / tau for x in ls])


def loop_orpo(w, ls):
    def odds(x):
        return math.log(math.exp(x) / (1 - math.exp(x)))

    return mean(sp(-(odds(w) - odds(x))) for x in ls)


def best_top_cluster(values):
    """All contiguous partitions of the distinct values into up to 3 clusters, in exact fractions."""
    levels = sorted(set(values), reverse=True)
    counts = {level: values.count(level) for level in levels}

    def squared_error(part):
        items = [Fraction(x) for x in part for _ in range(counts[x])]
        centre = sum(items) / max(len(items), 1)
        return sum((x - centre) ** 2 for x in items)

    found = []
    for i, j in itertools.combinations_with_replacement(range(1, len(levels) + 1), 2):
        parts = levels[:i], levels[i:j], levels[j:]
        found.append((sum(map(squared_error, parts)), i))
    lowest = min(found)
    return [value in levels[: lowest[1]] for value in values]


def loop_dynamicpo(w, ls, rw, rls, beta, gamma, dynamic_base, dynamic_beta):
    boundary = [j for j, x in enumerate(ls) if x >= w]
    if not boundary:
        boundary = [j for j, top in enumerate(best_top_cluster(ls)) if top]
    rest = [j for j in range(len(ls)) if j not in boundary] or boundary
    rewards = []
    for b in boundary:
        d, c = w - ls[b], ls[b] - mean(ls[j] for j in rest)
        spread = abs(d) + abs(c)
        own = {
            "adaptive": beta * (1 + 0.5 * math.tanh((d - c - gamma) / spread if spread else -1e9)),
            "half": beta / 2,
            "constant": beta,
        }[dynamic_beta]
        rewards.append(own * ((w - rw) - (ls[b] - rls[b])))
    if dynamic_base == "dmpo":
        return sp(-mean(rewards))
    return share(0.0, [-x for x in rewards])


def loop_soft_topk(x, k, tau):
    """The threshold by bisection."""
    low, high = min(x) - tau * (50 + math.log(len(x))), max(x) + tau * (50 + math.log(len(x)))
    for _ in range(200):
        lam = (low + high) / 2
        total = sum(min(1.0, math.exp(min((v - lam) / tau, 0.0))) for v in x)
        low, high = (lam, high) if total > k else (low, lam)
    return [math.exp(min((v - lam) / tau, 0.0)) for v in x]


def loop_tawin(w, ls, rw, rls, tau, tawin_anchor, tawin_window, clip_eps, kl_weight, **rest):
    ranks = [sum(y > x for y in ls) for x in ls]
    weights = loop_soft_topk([-abs(r - tawin_anchor) for r in ranks], tawin_window, tau)
    scale = len(ls) / sum(weights)
    rewards = [1.0] + [0.0] * len(ls)
    centre = mean(rewards)
    spread = sum((r - centre) ** 2 for r in rewards) / (len(rewards) - rest["advantage_ddof"])
    total = []
    for r, weight, now, ref in zip(rewards, [1.0] + [scale * v for v in weights], [w, *ls], [rw, *rls]):
        advantage = (r - centre) / math.sqrt(spread)
        rho = math.exp(now - ref) if rest["old_policy"] == "reference" else 1.0
        clipped = min(max(rho, 1 - clip_eps), 1 + clip_eps)
        kl = math.exp(ref - now) - (ref - now) - 1
        total.append(-weight * min(rho * advantage, clipped * advantage) + kl_weight * kl)
    return mean(total)


def wins(w, ls):
    return mean(float(x < w) for x in ls)


TAWIN = {
    "tau": 1.0,
    "tawin_anchor": 1,
    "tawin_window": 2,
    "clip_eps": 0.2,
    "kl_weight": 0.1,
    "advantage_ddof": 1,
    "old_policy": "reference",
}


def loop_hanorec(pairs, gaps, beta):
    """The loss of each row from its margins [B][K] and neighbour gaps [B][K]."""

    def sigma(x):
        return 1 / (1 + math.exp(-x))

    flat = [margin for row in pairs for margin in row]
    ratios = sorted(margin / mean(flat) for margin in flat)
    cut = len(ratios) // 10
    noise = sigma(mean(ratios[cut : len(ratios) - cut])) / sigma(1.0)
    usual = sigma(mean(gap for row in gaps for gap in row))
    return [
        mean(sp(-beta * noise * sigma(gap) / usual * margin) for margin, gap in zip(*row)) for row in zip(pairs, gaps)
    ]


DYNAMIC = {"beta": 0.7, "gamma": 0.4, "dynamic_base": "dmpo", "dynamic_beta": "adaptive"}
SMOOTH = {"beta": 0.7, "dpo_loss": "sigmoid", "label_smoothing": 0.2}
LOOPS = [
    ("lpo", loop_lpo, {"tau": 0.1, "lpo_space": "probability"}),
    ("lpo", loop_lpo, {"tau": 0.8, "lpo_space": "logit"}),
    ("lpo", loop_lpo, {"tau": 0.8, "lpo_space": "log_prob"}),
    ("dpo", loop_dpo, SMOOTH),
    ("dpo", loop_dpo, {**SMOOTH, "dpo_loss": "robust"}),
    ("dpo", loop_dpo, {**SMOOTH, "dpo_loss": "ipo"}),
    (
        "sdpo",
        lambda w, ls, rw, rls, beta: share(0.0, [beta * ((x - r) - (w - rw)) for x, r in zip(ls, rls)]),
        {"beta": 0.7},
    ),
    (
        "dmpo",
        lambda w, ls, rw, rls, beta: sp(-(beta * (w - rw) - mean(beta * (x - r) for x, r in zip(ls, rls)))),
        {"beta": 0.7},
    ),
    (
        "simpo",
        lambda w, ls, beta, gamma: mean(sp(-(beta * (w - x) - gamma)) for x in ls),
        {"beta": 2.0, "gamma": 1.5},
    ),
    ("orpo", loop_orpo, {}),
    (
        "mppo",
        lambda w, ls, beta: sp(-beta * sum(math.exp(w) - math.exp(x) for x in ls)),
        {"beta": 1.3},
    ),
    ("dynamicpo", loop_dynamicpo, DYNAMIC),
    ("dynamicpo", loop_dynamicpo, {**DYNAMIC, "dynamic_base": "sdpo", "gamma": -1.0}),
    ("dynamicpo", loop_dynamicpo, {**DYNAMIC, "dynamic_beta": "half"}),
    ("dynamicpo", loop_dynamicpo, {**DYNAMIC, "dynamic_base": "sdpo", "dynamic_beta": "constant"}),
    ("tawin", loop_tawin, TAWIN),
    ("tawin", loop_tawin, {**TAWIN, "kl_weight": 0.0, "advantage_ddof": 0, "tawin_anchor": 9}),
    ("tawin", loop_tawin, {**TAWIN, "old_policy": "current", "tawin_window": 20}),
]
LOOP_IDS = ["-".join([name, *(str(v) for v in chosen.values() if isinstance(v, str))]) for name, _, chosen in LOOPS]


def random_batch(rows=9, k=6, seed=0, dtype=torch.float64):
    """Log-probabilities over 12 items of a policy and a reference: [B], [B, K], [B], [B, K]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, rows, 12, generator=generator, dtype=torch.float64)
    ids = torch.rand(rows, 12, generator=generator).argsort(dim=1)[:, : k + 1]
    picked = [torch.log_softmax(x, dim=1).gather(1, ids).to(dtype) for x in logits]
    return picked[0][:, 0], picked[0][:, 1:], picked[1][:, 0], picked[1][:, 1:]


def call(name, batch, chosen):
    """The losses [B] of the loss called ``name`` on as many parts of the batch as it takes."""
    function = getattr(losses, name)
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    taken = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    result = function(*batch[:taken], **chosen)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name, loop, chosen", LOOPS, ids=LOOP_IDS)
@pytest.mark.parametrize("k", [1, 2, 6])
def test_loop_in_float64(name, loop, chosen, k):
    batch = random_batch(k=k, seed=k)
    taken = 2 if len(inspect.signature(loop).parameters) - len(chosen) == 2 else 4
    ours = call(name, batch, chosen)
    assert ours.dtype == torch.float64 and ours.shape == (9,)
    rows = list(zip(*(part.tolist() for part in batch)))
    theirs = [loop(*row[:taken], **chosen) for row in rows]
    assert ours.tolist() == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name, loop, chosen", LOOPS, ids=LOOP_IDS)
def test_rows_do_not_touch_each_other(name, loop, chosen):
    batch = random_batch()
    whole = call(name, batch, chosen)
    for row in range(len(whole)):
        alone = call(name, [part[row : row + 1] for part in batch], chosen)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name, loop, chosen", LOOPS, ids=LOOP_IDS)
def test_order_of_negatives_does_not_matter(name, loop, chosen):
    pos, neg, ref_pos, ref_neg = random_batch()
    order = torch.randperm(neg.shape[1], generator=torch.Generator().manual_seed(3))
    before = call(name, (pos, neg, ref_pos, ref_neg), chosen)
    after = call(name, (pos, neg[:, order], ref_pos, ref_neg[:, order]), chosen)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-14)


# -- symmetries and limits ----------------------------------------------------------------------

ON_POLICY = {**TAWIN, "old_policy": "current", "kl_weight": 0.0}
SHIFT_FREE = [
    *(entry for entry in LOOPS if entry[0] in ("dpo", "sdpo", "dmpo", "simpo", "dynamicpo")),
    ("lpo", None, {"tau": 0.5, "lpo_space": "logit"}),
    ("tawin", None, ON_POLICY),
]


def gradients(name, batch, chosen):
    leaves = [part.clone().requires_grad_() for part in batch[:2]]
    value = call(name, [*leaves, *batch[2:]], chosen)
    return value, torch.autograd.grad(value.sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("name, loop, chosen", SHIFT_FREE)
@quick
@given(shift=st.floats(-30, 30), ref_shift=st.floats(-30, 30), seed=st.integers(0, 999))
def test_shift_of_a_row_cancels(name, loop, chosen, shift, ref_shift, seed):
    pos, neg, ref_pos, ref_neg = batch = random_batch(rows=4, seed=seed)
    moved = pos + shift, neg + shift, ref_pos + ref_shift, ref_neg + ref_shift
    value, grads = gradients(name, batch, chosen)
    moved_value, moved_grads = gradients(name, moved, chosen)
    torch.testing.assert_close(value, moved_value, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(grads, moved_grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["orpo", "mppo", "lpo"])
def test_losses_that_need_log_probabilities_say_so(name):
    chosen = {"orpo": {}, "mppo": {"beta": 1.0}, "lpo": LOOPS[0][2]}[name]
    assert list(inspect.signature(getattr(losses, name)).parameters)[:2] == [
        "pos_logps",
        "neg_logps",
    ]
    pos, neg, *_ = random_batch()
    value, moved = call(name, (pos, neg), chosen), call(name, (pos - 1, neg - 1), chosen)
    assert not torch.allclose(value, moved, rtol=1e-3)


@quick
@given(st.integers(0, 999), st.floats(0.05, 5))
def test_one_negative_makes_dpo_sdpo_and_dmpo_one(seed, beta):
    batch = random_batch(k=1, seed=seed)
    one = losses.dpo(*batch, beta=beta, dpo_loss="sigmoid", label_smoothing=0.0)
    torch.testing.assert_close(losses.sdpo(*batch, beta=beta), one)
    torch.testing.assert_close(losses.dmpo(*batch, beta=beta), one)
    for base in ("dmpo", "sdpo"):
        chosen = {"dynamic_base": base, "dynamic_beta": "constant"}
        torch.testing.assert_close(losses.dynamicpo(*batch, beta=beta, gamma=0.0, **chosen)[0], one)


@quick
@given(st.integers(0, 999), st.floats(0.05, 5), st.integers(1, 7))
def test_policy_equal_to_reference_has_no_preference(seed, beta, k):
    pos, neg, *_ = random_batch(k=k, seed=seed)
    same = pos, neg, pos, neg
    log2 = torch.full_like(pos, math.log(2))
    chosen = {"dpo_loss": "sigmoid", "label_smoothing": 0.3}
    torch.testing.assert_close(losses.dpo(*same, beta=beta, **chosen), log2)
    torch.testing.assert_close(losses.dmpo(*same, beta=beta), log2)
    torch.testing.assert_close(losses.sdpo(*same, beta=beta), torch.full_like(pos, math.log(1 + k)))
    value, extras = losses.dynamicpo(*same, **{**DYNAMIC, "beta": beta})
    torch.testing.assert_close(value, log2)
    value, _ = losses.dynamicpo(*same, **{**DYNAMIC, "dynamic_base": "sdpo"})
    torch.testing.assert_close(value, (1 + extras["boundary_size"]).log())
    kl_only = {**TAWIN, "kl_weight": 1.0, "old_policy": "current"}
    torch.testing.assert_close(losses.tawin(*same, **kl_only), torch.zeros_like(pos))


@pytest.mark.parametrize(
    "name, loop, chosen",
    [
        entry
        for entry in LOOPS
        if entry[0] in ("sdpo", "dmpo", "simpo", "orpo", "mppo", "lpo")
        or entry[2].get("dynamic_beta") in ("half", "constant")
        or (entry[0] == "dpo" and entry[2]["dpo_loss"] != "ipo")
    ],
)
@quick
@given(seed=st.integers(0, 999), step=st.floats(0.01, 0.5))
def test_larger_margin_costs_less(name, loop, chosen, seed, step):
    if name == "dpo":
        chosen = {**chosen, "label_smoothing": 0.0}
    pos, neg, ref_pos, ref_neg = random_batch(rows=4, seed=seed)
    pos, neg = pos - 1, neg - 1  # stays a log-probability when it rises
    if name == "dynamicpo":
        neg = torch.minimum(neg, pos.unsqueeze(1) - 0.1)  # the boundary does not change
    better = call(name, (pos + step, neg, ref_pos, ref_neg), chosen)
    assert (better < call(name, (pos, neg, ref_pos, ref_neg), chosen)).all()


@pytest.mark.parametrize("name, loop, chosen", LOOPS, ids=LOOP_IDS)
def test_gradients_push_the_positive_up_and_negatives_down(name, loop, chosen):
    if chosen.get("dpo_loss") == "ipo":
        chosen = {**chosen, "beta": 0.01}  # the target margin of 50 is out of reach
    if name == "dpo":
        chosen = {**chosen, "label_smoothing": 0.0}
    if name == "tawin":
        chosen = {**chosen, "kl_weight": 0.0, "old_policy": "current"}
    _, (pos_grad, neg_grad) = gradients(name, random_batch(), chosen)
    assert (pos_grad < 0).all()
    if neg_grad is not None:
        assert (neg_grad >= 0).all() and (neg_grad.sum(dim=1) > 0).all()


def test_dmpo_gradient_is_the_same_for_every_negative():
    _, (_, neg_grad) = gradients("dmpo", random_batch(), {"beta": 1.0})
    torch.testing.assert_close(neg_grad, neg_grad[:, :1].expand_as(neg_grad))


@pytest.mark.parametrize(
    "name, chosen",
    [(n, c) for n, _, c in LOOPS if n != "tawin" and c.get("dynamic_beta") != "adaptive"],
)
def test_gradcheck(name, chosen):
    parts = random_batch(rows=3, k=4, seed=5)
    leaves = [part.clone().requires_grad_() for part in parts[:2]]
    assert torch.autograd.gradcheck(lambda *xs: call(name, [*xs, *parts[2:]], chosen), leaves)


def test_gradcheck_of_the_clipped_objective_and_kl():
    pos, neg, ref_pos, ref_neg = random_batch(rows=3, k=4, seed=5)
    leaves = [pos.clone().requires_grad_(), neg.clone().requires_grad_()]
    chosen = {**TAWIN, "kl_weight": 0.7}
    assert torch.autograd.gradcheck(lambda *xs: losses.tawin(*xs, ref_pos, ref_neg, **chosen), leaves)


def test_ipo_by_pencil():
    # Margins 10 - 2 = 8 and 20 - 2 = 18 with a target of 1 / (2 * 0.25) = 2.
    values = torch.tensor([0.0]), torch.tensor([[-8.0, -18.0]]), torch.zeros(1), torch.zeros(1, 2)
    got = losses.dpo(*values, beta=0.25, dpo_loss="ipo", label_smoothing=0.0)
    assert got.item() == (36 + 256) / 2


# -- numbers ------------------------------------------------------------------------------------

EVERY = [
    *((n, c) for n, _, c in LOOPS),
    *(("dpo", {**SMOOTH, "label_smoothing": 0.0, "dpo_loss": d}) for d in ("sigmoid", "robust")),
    ("tawin", ON_POLICY),
    ("tawin", {**TAWIN, "kl_weight": 1.0}),
    ("dynamicpo", {**DYNAMIC, "gamma": 0.0}),
]


@pytest.mark.parametrize("name, chosen", EVERY)
@pytest.mark.parametrize("logits_mode", ["scores", "log_probabilities"])
def test_extreme_scores_stay_finite(name, chosen, logits_mode):
    levels = torch.tensor([-1e4, -1.0, 0.0, 1e4])
    grid = torch.tensor(list(itertools.product(range(4), repeat=4)))
    policy = levels[grid].requires_grad_()  # [256, 1 + 3]
    reference = levels[grid.flip(0).roll(7, dims=0)]
    values, ref = policy, reference
    if logits_mode == "log_probabilities" or name in ("orpo", "mppo", "lpo"):
        values, ref = torch.log_softmax(policy, dim=1), torch.log_softmax(reference, dim=1)
    batch = values[:, 0], values[:, 1:], ref[:, 0], ref[:, 1:]
    got = call(name, batch, chosen)
    assert got.dtype == torch.float32 and torch.isfinite(got).all()
    (grad,) = torch.autograd.grad(got.sum(), policy)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name, chosen", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_float32_losses(name, chosen, dtype):
    batch = random_batch(dtype=dtype)
    with_certain = [torch.cat([part, torch.zeros_like(part[:1])]) for part in batch]  # pi = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grads = gradients(name, with_certain, chosen)
    assert value.dtype == torch.float32
    for grad in grads:
        assert grad is None or (grad.dtype == dtype and torch.isfinite(grad).all())
    exact = call(name, [part.double() for part in batch], chosen)
    torch.testing.assert_close(value[:-1].double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, chosen", EVERY)
def test_nan_shows(name, chosen):
    for part, column in ((0, ...), (1, (..., 2))):
        batch = [x.clone() for x in random_batch(rows=3)]
        batch[part][column] = float("nan")
        assert call(name, batch, chosen).isnan().all()


@quick
@given(st.floats(-700, -1e-12))
def test_log1mexp(x):
    got = losses.log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    exact = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    assert got == pytest.approx(exact, rel=1e-12, abs=1e-300)


def test_orpo_near_certainty_keeps_its_gradient():
    # 1 - pi = 1e-4: d loss / d log pi_w = -sigma(o_l - o_w) / (1 - pi_w), by hand in float64.
    pos, neg = math.log1p(-1e-4), math.log(5e-5)
    leaves = torch.tensor([pos], requires_grad=True), torch.tensor([[neg]])
    losses.orpo(*leaves).sum().backward()
    gap = (pos - math.log(1e-4)) - (neg - math.log1p(-5e-5))
    expected = -1 / (1 + math.exp(gap)) / 1e-4
    assert leaves[0].grad.item() == pytest.approx(expected, rel=1e-3)


def test_orpo_of_half_precision_near_certainty_does_not_overflow():
    # 1 / (1 - pi) = 1e5 is beyond float16.
    leaves = torch.tensor([-9.0]).half(), torch.tensor([[-1e-5]]).half().requires_grad_()
    losses.orpo(*leaves).sum().backward()
    assert torch.isfinite(leaves[1].grad).all()


# -- DynamicPO's clusters -----------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-12, 12).map(float), min_size=1, max_size=9))
def test_top_cluster_against_all_partitions(values):
    got = losses.top_cluster(torch.tensor([values]))[0].tolist()
    assert got == best_top_cluster(values)


@quick
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8, unique=True))
def test_top_cluster_of_real_numbers(values):
    got = losses.top_cluster(torch.tensor([values]))[0].tolist()
    assert got == best_top_cluster(values)


def test_top_cluster_by_pencil():
    # {3}, {2, 1.8}, {0, -0.2, 0.1}; two twins on top; ties 3 2 1 0 go to the smallest top cluster.
    values = torch.tensor([[0.0, 2.0, 3.0, 1.8, -0.2, 0.1], [5.0, 1.0, 5.0, 0.0, 1.0, 0.9]])
    assert losses.top_cluster(values).nonzero().tolist() == [[0, 2], [1, 0], [1, 2]]
    assert losses.top_cluster(torch.tensor([[1.0, 3.0, 0.0, 2.0]])).tolist() == [[False, True, False, False]]
    assert losses.top_cluster(torch.full((2, 4), 7.0)).all()


def test_top_cluster_sees_small_gaps_and_evens_out_rounding():
    # An outlier of -1e4 costs float32 the digits that decide between {1, 0.9}, {0} and {1}, {0.9, 0}.
    assert losses.top_cluster(torch.tensor([[1.0, 0.9, 0.0, -1e4]])).sum() == 2
    # 1e-4 decides between {2.9999, 2} and the three other pairs of neighbours.
    assert losses.top_cluster(torch.tensor([[2.9999, 2.0, 1.0, 0.0]])).sum() == 2
    # Evenly spaced values tie up to rounding, whatever their scale: the smallest top cluster.
    for k in range(4, 30):
        steps = torch.arange(k, dtype=torch.float64)[None]
        expected = losses.top_cluster(steps)
        for scale in (0.1, 1 / 3, 0.7, 123.456):
            assert torch.equal(losses.top_cluster(steps * scale + scale / 7), expected)


def test_top_cluster_agrees_with_sklearn_on_separated_clusters():
    cluster = pytest.importorskip("sklearn.cluster")
    generator = torch.Generator().manual_seed(1)
    for k in (3, 7, 15, 40):
        centre = torch.tensor([0.0, 10.0, 25.0])[torch.arange(k) % 3]
        values = centre + torch.rand(k, generator=generator)
        fitted = cluster.KMeans(3, n_init=10, random_state=42).fit(values[:, None].numpy())
        top = fitted.labels_ == fitted.cluster_centers_[:, 0].argmax()
        assert losses.top_cluster(values[None])[0].tolist() == top.tolist()


def test_top_cluster_in_chunks_and_at_scale(monkeypatch):
    values = torch.randn(11, 256, generator=torch.Generator().manual_seed(2))
    whole = losses.top_cluster(values)
    monkeypatch.setattr(losses, "_CLUSTER_PAIRS", 3 * 256**2)
    assert torch.equal(losses.top_cluster(values), whole)
    assert torch.equal(losses.top_cluster(1e4 * values), whole)
    assert losses.top_cluster(values[:0]).shape == (0, 256)


def test_boundary_of_twins_and_ties():
    pos = torch.tensor([1.0, 1.0, 1.0])
    neg = torch.tensor([[1.0, 0.5, 1.0, -3.0], [2.0, 3.0, 1.0, 1.5], [0.9, 0.9, -1.0, 0.0]])
    boundary, rest = losses.boundary_negatives(pos, neg)
    assert boundary.tolist() == [
        [True, False, True, False],  # as high as the positive is a violation
        [True, True, True, True],
        [True, True, False, False],
    ]
    assert torch.equal(rest[0], ~boundary[0]) and torch.equal(rest[2], ~boundary[2])
    assert torch.equal(rest[1], boundary[1])


def test_dynamic_beta_control_and_tie_without_rest():
    batch = random_batch()
    for kind, beta in (("half", 0.35), ("constant", 0.7)):
        _, extras = losses.dynamicpo(*batch, **{**DYNAMIC, "dynamic_beta": kind})
        assert extras["mean_beta"].tolist() == pytest.approx([beta] * 9)
    _, extras = losses.dynamicpo(*batch, **DYNAMIC)
    assert ((extras["mean_beta"] > 0.35) & (extras["mean_beta"] < 1.05)).all()
    assert not extras["mean_beta"].requires_grad
    # One negative that ties with the positive: both gaps are 0, only gamma is left.
    tie = torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1)
    for gamma, beta in ((2.0, 0.35), (0.0, 0.7), (-2.0, 1.05)):
        _, extras = losses.dynamicpo(*tie, **{**DYNAMIC, "gamma": gamma})
        assert extras["mean_beta"].item() == pytest.approx(beta)


# -- TAWin --------------------------------------------------------------------------------------


@quick
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.integers(1, 14),
    st.floats(0.05, 5),
)
def test_soft_topk_sums_to_k(values, k, tau):
    x = torch.tensor([values], dtype=torch.float64)
    weights = losses.soft_topk(x, k, tau)
    assert weights.sum().item() == pytest.approx(min(k, len(values)), rel=1e-9)
    assert (weights >= 0).all() and (weights <= 1).all()
    if k < len(values):
        assert weights[0].tolist() == pytest.approx(loop_soft_topk(values, k, tau), abs=1e-8)
    assert (weights.gather(1, x.argsort(dim=1)).diff(dim=1) >= 0).all()


def test_soft_topk_turns_hard():
    x = torch.tensor([[0.3, 2.0, -1.0, 1.0]])
    assert losses.soft_topk(x, 2, 1e-3).tolist() == [[0.0, 1.0, 0.0, 1.0]]


def test_rank_weights_of_twins_are_equal():
    neg = torch.tensor([[1.0, 3.0, 1.0, 0.0, 3.0]])  # mean ranks 2.5 0.5 2.5 4 0.5
    weights = losses.rank_weights(neg, tau=1.0, tawin_anchor=1, tawin_window=1)[0]
    raw = [math.exp(-abs(rank - 1)) for rank in (2.5, 0.5, 2.5, 4, 0.5)]
    assert weights.tolist() == pytest.approx([5 * x / sum(raw) for x in raw], rel=1e-5)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("window", [1, 4, 50])
def test_weighted_advantages_cancel(k, window):
    neg = random_batch(k=min(k, 11))[1]
    chosen = {"tau": 1.0, "tawin_anchor": 2, "tawin_window": window}
    weights = losses.rank_weights(neg, **chosen)
    for ddof in (0, 1):
        positive, negative = losses.group_advantages(neg.shape[1], ddof)
        total = positive + negative * weights.sum(dim=1)
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_tawin_centre_of_the_window_gets_the_largest_push():
    pos, neg, *_ = random_batch(k=8)
    for anchor in (0, 3, 7):
        chosen = {**ON_POLICY, "tawin_anchor": anchor, "tawin_window": 1}
        _, (_, neg_grad) = gradients("tawin", (pos, neg), chosen)
        at_anchor = neg.argsort(dim=1, descending=True)[:, anchor]
        assert torch.equal(neg_grad.argmax(dim=1), at_anchor)


def test_anchor_is_the_rank_of_the_kth_negative():
    assert [losses.anchor_for(k) for k in (1, 3, 5, 10)] == [0, 2, 4, 9]


def test_tawin_without_reference():
    pos, neg, *_ = random_batch()
    assert losses.tawin(pos, neg, **ON_POLICY).tolist() == pytest.approx([0.0] * 9, abs=1e-12)
    for chosen in ({"kl_weight": 0.01}, {"old_policy": "reference"}):
        with pytest.raises(PrefError, match="needs a reference model"):
            losses.tawin(pos, neg, **{**ON_POLICY, **chosen})


def test_tawin_clips_by_the_sign_of_the_advantage():
    # G = 2, population std: advantages 1 and -1. Ratios 2 and 0.5: both already moved too far.
    zero = torch.zeros(1), torch.zeros(1, 1)
    far = torch.tensor([math.log(2)]), torch.tensor([[math.log(0.5)]])
    back = torch.tensor([math.log(0.5)]), torch.tensor([[math.log(2)]])
    chosen = {**TAWIN, "kl_weight": 0.0, "advantage_ddof": 0}
    value, grads = gradients("tawin", (*far, *zero), chosen)
    assert value.item() == pytest.approx(-(1.2 - 0.8) / 2)
    assert [grad.item() for grad in grads] == [0.0, 0.0]
    value, grads = gradients("tawin", (*back, *zero), chosen)
    assert value.item() == pytest.approx(-(0.5 - 2) / 2)
    assert [grad.item() for grad in grads] == pytest.approx([-0.25, 1.0])


# -- reduction, diagnostics, mistakes -----------------------------------------------------------


def test_diagnostics_by_pencil():
    pos, neg = torch.tensor([2.0], requires_grad=True), torch.tensor([[1.0, 2.0, 3.0, -2.0]])
    ref_pos, ref_neg = torch.tensor([1.0]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    got = losses.diagnostics(pos, neg, ref_pos, ref_neg, beta=0.5)
    # Delta_w = 1; Delta_l = 0, 1, 2, -3 with mean 0. A tie is not a win.
    assert {name: value.tolist() for name, value in got.items()} == {
        "reward_margin": [0.5],
        "reward_accuracy": [0.5],
        "pos_score": [2.0],
        "neg_score": [1.0],
    }
    assert not any(value.requires_grad for value in got.values())
    assert losses.diagnostics(pos, neg, beta=0.5)["reward_margin"].tolist() == [1.0]


def test_diagnostics_against_a_loop():
    batch = random_batch()
    accuracy = losses.diagnostics(*batch)["reward_accuracy"].tolist()
    assert accuracy == pytest.approx([wins(w, ls) for w, ls in zip(*map(torch.Tensor.tolist, batch[:2]))])


@pytest.mark.parametrize(
    "name, chosen, key, wrong, nearest",
    [
        ("lpo", LOOPS[1][2], "lpo_space", "probabilty", "probability"),
        ("dpo", SMOOTH, "dpo_loss", "sigmod", "sigmoid"),
        ("dynamicpo", DYNAMIC, "dynamic_base", "dmppo", "dmpo"),
        ("dynamicpo", DYNAMIC, "dynamic_beta", "constnt", "constant"),
        ("tawin", TAWIN, "old_policy", "curent", "current"),
    ],
)
def test_unknown_choice_is_refused(name, chosen, key, wrong, nearest):
    with pytest.raises(PrefError, match=f"{key}='{wrong}'.*Did you mean '{nearest}'"):
        call(name, random_batch(), {**chosen, key: wrong})


@pytest.mark.parametrize("k", [1, 3])
def test_hanorec_equals_a_loop(k):
    pos, neg, ref_pos, ref_neg = random_batch(rows=12, k=k)
    gaps = torch.rand(12, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = ((pos - ref_pos).unsqueeze(1) - (neg - ref_neg)).tolist()
    ours, extras = losses.hanorec(pos, neg, ref_pos, ref_neg, gaps, beta=0.3)
    assert ours.tolist() == pytest.approx(loop_hanorec(pairs, gaps.tolist(), 0.3), rel=1e-12)
    without, _ = losses.hanorec(pos, neg, ref_pos, ref_neg, beta=0.3)
    level = torch.full_like(gaps, 0.4)
    assert without.tolist() == pytest.approx(loop_hanorec(pairs, level.tolist(), 0.3), rel=1e-12)
    assert (extras["mean_beta"] - 0.3).abs().max() < 0.3


def test_hanorec_starts_as_dpo_and_moves_as_it():
    pos, neg, _, _ = random_batch(k=2)
    pos.requires_grad_()
    value, extras = losses.hanorec(pos, neg, pos.detach(), neg, beta=0.3)
    torch.testing.assert_close(value, torch.full_like(value, math.log(2.0)))
    torch.testing.assert_close(extras["mean_beta"], torch.full_like(value, 0.3))
    (gradient,) = torch.autograd.grad(value.sum(), pos)
    torch.testing.assert_close(gradient, torch.full_like(gradient, -0.15))


def test_neighbour_profiles_equal_a_loop():
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    profiles = losses.neighbour_profiles(vectors, top=3, chunk=2)
    for item in range(1, 9):
        cosines = [
            torch.cosine_similarity(vectors[item], vectors[other], dim=0).item()
            for other in range(1, 9)
            if other != item
        ]
        top = sorted(cosines, reverse=True)[:3]
        expected = [math.exp(x) / sum(map(math.exp, top)) for x in top]
        assert profiles[item].tolist() == pytest.approx(expected, abs=1e-6)
    gaps = losses.neighbour_gaps(profiles, torch.tensor([1, 2]), torch.tensor([[1, 3], [4, 2]]))
    assert gaps[0, 0] == gaps[1, 1] == 0
    assert gaps[0, 1].item() == pytest.approx((profiles[1] - profiles[3]).norm().item())
