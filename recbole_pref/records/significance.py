"""Paired tests of two models over the same users, and a correction for multiple comparisons."""

from collections.abc import Sequence

import numpy as np

from recbole_pref.late import LateModule

stats = LateModule("scipy.stats")  # takes more than a second, in every process of a comparison or a sweep

LEVEL = 0.05  # a corrected p value below this is significant
_CHUNK = 2**24  # numbers per batch of the bootstrap


def paired_t(difference: np.ndarray) -> float:
    """Return the two-sided p value of a paired t-test.

    Args:
        difference: [U] difference between the values of two models, per user.

    Returns:
        The p value; 1 if all differences are zero, NaN for fewer than two users.
    """
    if len(difference) < 2:
        return float("nan")
    if not np.any(difference):
        return 1.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def paired_bootstrap(difference: np.ndarray, resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p value of a paired bootstrap of the mean.

    Args:
        difference: [U] difference between the values of two models, per user.
        resamples: number of draws; the smallest p value is 1 / resamples.
        seed: seed of the draws.

    Returns:
        Twice the share of resampled means on the other side of zero, at most 1; NaN for fewer than two users.
    """
    if len(difference) < 2:
        return float("nan")
    means = stats.bootstrap(
        (difference,), np.mean, n_resamples=resamples, batch=max(1, _CHUNK // len(difference)), method="percentile",
        vectorized=True, random_state=np.random.default_rng(seed),
    ).bootstrap_distribution  # fmt: skip
    smaller_side = min((means <= 0).mean(), (means >= 0).mean())
    return float(min(1.0, max(2 * smaller_side, 1 / resamples)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p values with the correction of Holm (1979), in the given order.

    Args:
        p_values: [M]; NaN is not counted as a comparison and remains NaN.

    Returns:
        The corrected p values, [M].
    """
    values = np.asarray(p_values, dtype=float)
    corrected = np.full_like(values, np.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return corrected


TESTS = {
    "t-test": (paired_t, "paired t-test over users"),
    "bootstrap": (paired_bootstrap, "paired bootstrap over users, 10,000 resamples"),
}
