"""Ray Tune's schedulers and search algorithms by their names in a sweep file."""

from ray.tune import schedulers, search
from ray.tune.experiment import Trial

from recbole_pref.errors import PrefError
from recbole_pref.tune.space import RANGES

# Schedulers compare trials by their latest validation; a search learns from the best, by which the winner is chosen.
_LATEST = {"metric": "score", "mode": "max"}
_BEST = {"metric": "best_score", "mode": "max"}


class HyperBand(schedulers.HyperBandScheduler):
    """HyperBand whose paused trials do not wait for ever.

    Ray 2.60 looks at a bracket when one of its trials reports or ends, and forgets it in two cases: the last
    one reports while another is still being saved for its pause, or it ends before the milestone (early
    stopping, a failure) in a bracket that was halved before or is not to be halved. Nothing then wakes or ends
    the paused ones. Here brackets are looked at again when no trial runs, as Ray's ``HyperBandForBOHB`` does.
    """

    def choose_trial_to_run(self, tune_controller):
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen or any(trial.status == Trial.RUNNING for trial in tune_controller.get_trials()):
            return chosen
        for bracket in filter(None, (bracket for band in self._hyperbands for bracket in band)):
            if any(trial.status == Trial.PAUSED for trial in bracket.current_trials()):
                self._process_bracket(tune_controller, bracket)
        return super().choose_trial_to_run(tune_controller)


def make_scheduler(plan, epochs):
    """Return the Ray scheduler of a sweep (``space.Plan``), None for "none"; ``epochs``: of a whole trial."""
    options = plan.scheduler_options
    if plan.scheduler == "asha":
        return schedulers.ASHAScheduler(
            time_attr="epoch", max_t=epochs, grace_period=min(options["grace_epochs"], epochs),
            reduction_factor=options["reduction_factor"], **_LATEST,
        )  # fmt: skip
    if plan.scheduler == "hyperband":
        kind = schedulers.HyperBandForBOHB if plan.search == "bohb" else HyperBand
        return kind(time_attr="epoch", max_t=epochs, reduction_factor=options["reduction_factor"], **_LATEST)
    if plan.scheduler == "median":
        return schedulers.MedianStoppingRule(
            time_attr="epoch", grace_period=options["grace_epochs"],
            min_samples_required=int(options["min_trials"]), **_LATEST,
        )  # fmt: skip
    if plan.scheduler == "pbt":
        mutated = {
            # Ray steps to a neighbour in a list; it would multiply what a choice of its own gave.
            key: list(domain.values) if domain.kind == "choice" else domain.to_ray()
            for key, domain in plan.space.items()
            if domain.kind != "grid"
        }
        return schedulers.PopulationBasedTraining(
            time_attr="epoch", perturbation_interval=options["interval_epochs"],
            quantile_fraction=options["quantile"], hyperparam_mutations=mutated,
            custom_explore_fn=_within(plan), **_LATEST,
        )  # fmt: skip
    return None


def _within(plan):
    """Return a function that brings mutated values back into the space: PBT multiplies by 0.8 or 1.2."""
    ranges = {key: domain for key, domain in plan.space.items() if domain.kind in RANGES}

    def moved(params):
        return {k: ranges[k].nearest(v) if k in ranges else v for k, v in params.items()}

    return moved


def make_searcher(plan, seed):
    """Return the Ray search algorithm of a sweep (``space.Plan``).

    Raises:
        PrefError: it needs a package that is missing.
    """
    options = plan.search_options
    try:
        if plan.search == "optuna":
            from ray.tune.search.optuna import OptunaSearch

            return OptunaSearch(seed=seed, **_BEST)
        if plan.search == "hyperopt":
            from ray.tune.search.hyperopt import HyperOptSearch

            return HyperOptSearch(
                random_state_seed=seed, n_initial_points=int(options["n_initial_points"]), **_BEST
            )
        if plan.search == "bohb":
            from ray.tune.search.bohb import TuneBOHB

            return TuneBOHB(seed=seed, **_BEST)
    except (ImportError, AssertionError) as error:
        packages = {"bohb": "hpbandster ConfigSpace"}.get(plan.search, plan.search)
        raise PrefError(
            f"tune: search {plan.search!r} needs a package that is missing ({error}): pip install {packages}."
        ) from None
    return search.BasicVariantGenerator(random_state=seed, max_concurrent=plan.max_concurrent or 0)
