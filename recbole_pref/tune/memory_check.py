"""Whether the trials of a sweep fit into the memory of this machine, estimated before the first one starts."""

import sys
from typing import Any

import psutil

from recbole_pref import cluster
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.methods import method_of
from recbole_pref.tune.space import Plan, as_setting

_REMEDY = "lower the sizes in space, train_batch_size or logits_memory_mb"


def check(config: Config, settings: dict[str, Any], plan: Plan, cpus: float, gpus: float, workers: int = 1) -> None:
    """Print what the largest trial needs, and refuse a sweep whose trials do not fit into memory together.

    A task of Ray times a few steps with the largest value of every setting in the space. Linear models are not
    estimated.

    Args:
        config: of the fixed settings.
        settings: the fixed settings.
        plan: the sweep.
        cpus, gpus: CPUs and GPUs of a worker.
        workers: number of workers of a trial.

    Raises:
        PrefError: the trials that run at the same time need more memory than is available.
    """
    if method_of(config.model_class) is None:
        return
    import ray

    largest = {key: as_setting(key, domain.ends()[-1]) for key, domain in plan.space.items()}
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1)(_estimate)
    try:
        largest_trial = ray.get(task.remote(config["model"], config["dataset"], {**settings, **largest}))
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError):
        raise PrefError(f"tune: a trial with {largest} does not fit into memory: {_REMEDY}.") from None
    except ray.exceptions.RayTaskError as error:  # such as a loss that is not finite with the largest learning rate
        print(f"the largest trial could not be estimated: {error.cause}", file=sys.stderr, flush=True)
        return
    together = min(cluster.capacity(cpus, gpus) // workers, plan.trials, plan.max_concurrent or plan.trials)
    need = workers * max(largest_trial.training_mb, largest_trial.evaluation_mb)  # each evaluates all rows
    print(
        f"the largest trial: about {need:.0f} MiB and {largest_trial.epoch_seconds:.1f} s per epoch, at most "
        f"{largest_trial.epochs} epochs; {together} at the same time",
        file=sys.stderr,
        flush=True,
    )
    available = psutil.virtual_memory().available / 2**20
    if together * need > available:
        raise PrefError(
            f"tune: {together} trials at the same time need about {together * need:.0f} MiB with {largest}, and "
            f"{available:.0f} MiB are available: raise --cpus_per_trial or --cpus_per_worker, so that fewer run "
            f"together, or {_REMEDY}."
        )


def _estimate(model: str, dataset: str, settings: dict[str, Any]) -> Any:
    from recbole_pref.estimate import estimate

    return estimate(model, dataset, None, settings)
