"""Paired tests of two models over the same users, and a correction for several comparisons."""

import numpy as np

from recbole_pref.startup import LateModule

stats = LateModule("scipy.stats")
LEVEL = 0.05  # below which a corrected p-value is marked
_CHUNK = 2**24  # numbers that the bootstrap holds at a time


def paired_t(difference):
    """Return the two-sided p-value of a paired t-test.

    Args:
        difference (ndarray [U]): value of one model less the other's, per user.

    Returns:
        float: 1 when all differences are zero, NaN for fewer than two users.
    """
    if len(difference) < 2:
        return float("nan")
    if not np.any(difference):
        return 1.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def paired_bootstrap(difference, resamples=10_000, seed=0):
    """Return the two-sided p-value of a paired bootstrap of the mean.

    Args:
        difference (ndarray [U]): value of one model less the other's, per user.
        resamples (int): draws; the smallest p-value is 1 / resamples.
        seed (int): of the draws.

    Returns:
        float: twice the share of resampled means on the other side of zero, at most 1; NaN for fewer
        than two users.
    """
    n = len(difference)
    if n < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = np.concatenate(
        [
            difference[rng.integers(n, size=(min(rows, resamples - start), n))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
    smaller_side = min((means <= 0).mean(), (means >= 0).mean())
    return float(min(1.0, max(2 * smaller_side, 1 / resamples)))


def holm(p_values):
    """Return p-values corrected after Holm (1979), in the given order.

    Args:
        p_values (sequence of float [M]): NaN stays NaN and does not count as a comparison.

    Returns:
        ndarray [M]
    """
    p_values = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p_values, np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return corrected


TESTS = {
    "t-test": (paired_t, "paired t-test over users"),
    "bootstrap": (paired_bootstrap, "paired bootstrap over users, 10,000 resamples"),
}
