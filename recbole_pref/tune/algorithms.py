"""Ray Tune's schedulers and search algorithms by their names in a sweep file."""

from collections.abc import Callable
from typing import Any

from ray.tune import schedulers, search
from ray.tune.experiment import Trial

from recbole_pref.errors import PrefError
from recbole_pref.tune.space import RANGES, Plan

# Schedulers compare the latest validations of trials. A search uses the best ones, like the choice of the winner.
_LATEST: dict[str, Any] = {"metric": "score", "mode": "max"}
_BEST: dict[str, Any] = {"metric": "best_score", "mode": "max"}


class HyperBand(schedulers.HyperBandScheduler):
    """HyperBand without trials that are paused forever.

    Ray 2.60 processes a bracket when one of its trials reports or ends. In two cases paused trials are never resumed
    or ended: the last trial reports while another one is still being saved for its pause, or the last trial ends before
    the milestone (early stopping, a failure) in a bracket that was already halved or is not to be halved. This class
    processes brackets again when no trial runs, as Ray's ``HyperBandForBOHB`` does.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next trial to run."""
        selected = super().choose_trial_to_run(tune_controller)
        if selected or any(trial.status == Trial.RUNNING for trial in tune_controller.get_trials()):
            return selected
        for bracket in filter(None, (bracket for band in self._hyperbands for bracket in band)):
            if any(trial.status == Trial.PAUSED for trial in bracket.current_trials()):
                self._process_bracket(tune_controller, bracket)
        return super().choose_trial_to_run(tune_controller)


def make_scheduler(plan: Plan, epochs: int) -> schedulers.TrialScheduler | None:
    """Return the Ray scheduler of a sweep, or None for "none"; ``epochs`` is the number of epochs of a full trial."""
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
            # Ray moves to a neighbour in a list, but multiplies the value of a choice object.
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


def _within(plan: Plan) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that clips mutated values to the space: PBT multiplies by 0.8 or 1.2."""
    ranges = {key: domain for key, domain in plan.space.items() if domain.kind in RANGES}

    def clipped(params: dict[str, Any]) -> dict[str, Any]:
        return {k: ranges[k].nearest(v) if k in ranges else v for k, v in params.items()}

    return clipped


def make_searcher(plan: Plan, seed: int) -> Any:
    """Return the Ray search algorithm of a sweep.

    Raises:
        PrefError: a package is missing.
    """
    options = plan.search_options
    try:
        if plan.search == "optuna":
            from ray.tune.search.optuna import OptunaSearch

            return OptunaSearch(seed=seed, **_BEST)
        if plan.search == "hyperopt":
            from ray.tune.search.hyperopt import HyperOptSearch

            return HyperOptSearch(random_state_seed=seed, n_initial_points=int(options["n_initial_points"]), **_BEST)
        if plan.search == "bohb":
            from ray.tune.search.bohb import TuneBOHB

            return TuneBOHB(seed=seed, **_BEST)
    except (ImportError, AssertionError) as error:
        packages = {"bohb": "hpbandster ConfigSpace"}.get(plan.search, plan.search)
        raise PrefError(
            f"tune: search {plan.search!r} needs a package that is missing ({error}): pip install {packages}."
        ) from None
    return search.BasicVariantGenerator(random_state=seed, max_concurrent=plan.max_concurrent or 0)
