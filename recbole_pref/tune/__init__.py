"""Search hyper-parameters with Ray Tune: early stopping, restarts, several machines, one exported winner.

``tune`` first prepares the data, the reference models and the baseline of a constraint, which all trials share. Then
Ray runs the trials, and ``tune`` writes the table, the pictures and the winner.
"""

from __future__ import annotations  # Ray is imported late

import gc
import json
import logging
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.utils import argument_list

from recbole_pref import checkpoint, cluster
from recbole_pref.build import build_run, prepare_data
from recbole_pref.config import (
    CHECKPOINT_SETTINGS,
    Config,
    absolute_paths,
    digest_of_defaults,
    names_a_checkpoint,
    portable_settings,
)
from recbole_pref.environment import sigterm_as_ctrl_c, write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import smaller_is_better
from recbole_pref.evaluation.objective import check_measured, check_objective
from recbole_pref.model.names import split_model_name
from recbole_pref.model.prior import is_added_after_training
from recbole_pref.quick_start import refuse_stock_model, run_recbole_pref
from recbole_pref.settings import attribute_of_settings, is_number, settings_set_by, settings_with
from recbole_pref.settings.files import backbone_settings
from recbole_pref.training import reference
from recbole_pref.tune import memory_check
from recbole_pref.tune.progress import Progress
from recbole_pref.tune.results import finish
from recbole_pref.tune.space import Domain, Plan, as_setting, read_plan
from recbole_pref.tune.trial import train_trial

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner
    from ray.tune.experiment import Trial
    from recbole.data.dataset import Dataset

__all__ = ["Plan", "read_plan", "tune"]


def _data_keys() -> set[str]:
    """Return the settings that change the data or the split; trials that search them load their own data."""
    return {*argument_list.dataset_arguments} | settings_with(reloads_data=True)


def tune(
    model: str,
    dataset: str,
    sweep: str | os.PathLike[str] | dict[str, Any],
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    num_samples: int | None = None,
    storage_path: str | os.PathLike[str] = "tune",
    name: str | None = None,
    resume: bool = False,
    ray_address: str | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    num_workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    quiet: bool = False,
) -> ResultGrid:
    """Search hyper-parameters of a model.

    Args:
        model: name of the model, such as ``LPOSASRec``.
        dataset: name of the data set.
        sweep: the sweep file, see ``docs/tuning.md``.
        config_file_list: YAML files with fixed settings.
        config_dict: fixed settings, which override files.
        num_samples: number of trials; overrides the sweep file.
        storage_path: a folder (or a URI for Ray) that all machines can access.
        name: folder of the sweep in ``storage_path``; by default model and data set.
        resume: whether to continue an interrupted sweep.
        ray_address: ``auto`` or ``HOST:PORT`` of a running Ray cluster.
        cpus_per_trial, gpus_per_trial: CPUs and GPUs of a trial; torch uses one thread per CPU.
        num_workers: workers that train a trial together, data parallel. Their CPUs and GPUs then replace those of the
            trial.
        cpus_per_worker, gpus_per_worker: CPUs and GPUs of a worker.
        quiet: print one line per finished trial instead of a live table.

    Returns:
        One result per trial. Table, pictures and winner are in ``storage_path/name``.

    Raises:
        PrefError: the sweep file or the settings are not valid (before Ray starts), or no trial succeeded.
    """
    import ray

    from recbole_pref.tune.algorithms import make_scheduler, make_searcher

    plan = read_plan(sweep, num_samples)
    if cpus_per_trial <= 0 or gpus_per_trial < 0:
        raise PrefError("--cpus_per_trial must be above 0 and --gpus_per_trial 0 or more.")
    resources = (cpus_per_trial, gpus_per_trial, 1)
    if num_workers is not None:
        resources = (cpus_per_worker, gpus_per_worker, num_workers)
        cluster.check_numbers(num_workers, cpus_per_worker, gpus_per_worker)
    for key in sorted(settings_set_by("sweep")):
        if key in plan.space:
            raise PrefError(f"tune: {key} is set by the sweep: remove it from space.")
    for key, instead in attribute_of_settings("shared_by_trials").items():
        if key in plan.space:
            raise PrefError(f"tune: {key} is the same for all trials: remove it from space and {instead}.")
    fixed = {key: as_setting(key, domain.values[0]) for key, domain in plan.space.items() if domain.kind == "fixed"}
    plan = replace(plan, space={key: _with_absolute_paths(key, d) for key, d in plan.space.items() if key not in fixed})
    try:
        config = Config(model, dataset, config_file_list, {**(config_dict or {}), **fixed})
    except PrefError as error:
        raise PrefError(f"tune: with {fixed}: {error}" if fixed else str(error)) from None
    _check_runs(config)
    if resources[2] > 1:
        refuse_stock_model(config, f"num_workers={num_workers}")
    settings = _fixed_settings(config)
    # Check the objective with an arbitrary bound; the baseline is trained only after all checks.
    settings["objective"] = _objective(plan, config, settings, partial(_any_score, config, settings))
    _check_corners(config, settings, plan)
    name = name or f"{config['model']}-{config['dataset']}"
    remote = "://" in str(storage_path)
    storage = str(storage_path) if remote else os.path.abspath(storage_path)
    folder = Path("tune", name).absolute() if remote else Path(storage, name)
    record = folder / "sweep.json"
    restorable = _restorable(f"{storage}/{name}", resume, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrefError(f"--storage_path={storage!r} cannot be written: {error.strerror}.") from None
    inputs = {"model": config["model"], "dataset": config["dataset"], "settings": settings, **asdict(plan)}
    inputs |= {"defaults": digest_of_defaults(config), "num_workers": resources[2]}
    _store_or_compare(record, json.loads(json.dumps(checkpoint.to_plain(inputs, other=str))), resume)
    algorithms = make_scheduler(plan, config["epochs"]), make_searcher(plan, config["seed"])
    _start_ray(ray_address)
    _check_resources(ray, *resources)
    if ray_address is None and not restorable:  # the memory of a cluster's machines may differ
        memory_check.check(config, settings, plan, *resources)
    cross_entropy = partial(_cross_entropy_score, config, settings, folder)
    settings["objective"] = _objective(plan, config, settings, cross_entropy)
    shared = _shared(config, plan, settings, folder, resources)
    tuner = _tuner(plan, config, shared, storage, name, restorable, resources, quiet, algorithms)
    grid = None
    with sigterm_as_ctrl_c(), suppress(KeyboardInterrupt):  # after Ray's start, which installs another handler
        grid = tuner.fit()
    if grid is None:
        # Ray's objects hold the trials and their CPUs, which a sweep in the same process would wait for. The traceback
        # of the exception held these objects, so they can go only now.
        gc.collect()
        raise KeyboardInterrupt
    finish(grid, folder, plan, config, settings)
    return grid


# -- checks -------------------------------------------------------------------------------------


def _check_runs(config: Config) -> None:
    """Refuse settings with which no trial validates."""
    if config["eval_step"] < 1 or config["eval_step"] > config["epochs"]:
        raise PrefError(
            f"eval_step={config['eval_step']} with epochs={config['epochs']} never validates, but a sweep "
            "needs validations: set eval_step between 1 and epochs."
        )
    split = config["eval_args"]["split"]
    kind, parts = next(iter(split.items()))
    if parts == "test_only" or (kind != "LS" and not parts[1]):
        raise PrefError(
            f"eval_args, split: {split} leaves no validation rows, but a sweep needs validations: set it to "
            "{LS: valid_and_test} or to shares with a validation part."
        )


def _fixed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that all trials share."""
    return {key: value for key, value in portable_settings(config).items() if key not in settings_set_by("sweep")}


def _with_absolute_paths(key: str, domain: Domain) -> Domain:
    """Return a domain with absolute paths, because trials have other working folders."""
    if key not in CHECKPOINT_SETTINGS:
        return domain
    values = (os.path.abspath(value) if names_a_checkpoint(value) else value for value in domain.values)
    return replace(domain, values=tuple(values))


def _check_corners(config: Config, settings: dict[str, Any], plan: Plan) -> None:
    """Check the objective and both ends of the space together with the fixed settings."""
    model, dataset = config["model"], config["dataset"]
    try:
        Config(model, dataset, config_dict=settings).refuse_unread(plan.space, "space: ")
    except PrefError as error:
        raise PrefError(f"tune: {error}") from None
    pair = split_model_name(model)
    if plan.scheduler == "pbt":
        backbone_defaults = backbone_settings(config, pair[1]) if pair else {}
        sizes = {key for key, value in backbone_defaults.items() if type(value) is int}
        shaping = [key for key in plan.space if key in sizes | _data_keys() | {"learner"}]
        if shaping:
            raise PrefError(
                f"tune: scheduler 'pbt' copies weights and optimizer state between trials, which fails "
                f"if {shaping[0]} differs: remove it from space or choose another scheduler."
            )
    for end in (0, -1):
        corner = {key: as_setting(key, domain.ends()[end]) for key, domain in plan.space.items()}
        try:
            corner_config = Config(model, dataset, config_dict={**settings, **corner})
            _check_runs(corner_config)
        except PrefError as error:
            raise PrefError(f"tune: with {corner}: {error}") from None
        if plan.scheduler != "none" and is_added_after_training(corner_config):
            raise PrefError(
                f"tune: scheduler {plan.scheduler!r} would compare trials before prior={corner_config['prior']!r} is "
                "added to them after training: set scheduler: none, or prior_in_training: True and prior_weight: "
                "learned."
            )


def _restorable(path: str, resume: bool, record: Path) -> bool:
    """Return whether a stored sweep can be continued. Refuse to overwrite one."""
    from ray.tune import Tuner

    try:
        stored = Tuner.can_restore(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrefError(f"--storage_path: {path!r} cannot be reached: {reason}") from None
    if stored and not resume:
        raise PrefError(f"{path!r} already holds a sweep: pass --resume to continue it, or another --name.")
    if resume and not stored and not record.is_file():  # the record exists if the sweep ended before its first trial
        raise PrefError(f"--resume: {path!r} holds no sweep: check --storage_path and --name.")
    return stored


def _store_or_compare(path: Path, inputs: dict[str, Any], resumed: bool) -> None:
    """Store the inputs of a new sweep; refuse to continue a sweep with other inputs."""
    if not resumed:
        content = json.dumps(inputs, indent=1).encode()
        checkpoint.write_atomically(path, lambda file: file.write(content), "storage_path")
    elif path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for key in inputs:
            if stored.get(key) == inputs[key]:
                continue
            if key == "defaults":
                difference = "other defaults: a property file, a plugin or a version has changed"
            elif key in ("settings", "space"):
                merged = {**(stored.get(key) or {}), **inputs[key]}
                changed = [name for name in merged if (stored.get(key) or {}).get(name) != inputs[key].get(name)]
                difference = f"another {changed[0]}"
            else:
                difference = f"{key}: {stored.get(key)!r}, not {inputs[key]!r}"
            where = str(path.parent)
            raise PrefError(
                f"--resume: {where!r} began with {difference}; undo the change, or begin another sweep with --name."
            )


# -- what trials share --------------------------------------------------------------------------


def _objective(
    plan: Plan, config: Config, settings: dict[str, Any], cross_entropy: Callable[[str], float]
) -> dict[str, Any]:
    """Return the setting ``objective`` of the trials; ``cross_entropy`` returns the baseline of a metric."""
    objective = plan.objective
    metrics, topk = config["metrics"], config["topk"]
    if objective is None:  # explicit weights, so that a higher score is better
        return settings.get("objective") or {"weights": {config["valid_metric"]: 1.0}}
    if isinstance(objective, str):
        check_measured(objective, metrics, topk, "tune: objective")
        return {"weights": {objective: 1.0}}
    if not isinstance(objective, dict) or "maximize" not in objective:
        check_objective(objective, metrics, topk, "tune: objective")
        return objective
    unknown = sorted(set(objective) - {"maximize", "keep", "percent_below", "baseline"})
    if unknown or "keep" not in objective:
        raise PrefError(
            f"tune: objective={objective!r} is not valid: write {{maximize: TailNDCG@10, keep: NDCG@10, "
            "percent_below: 1, baseline: CE}."
        )
    for key in ("maximize", "keep"):
        check_measured(objective[key], metrics, topk, f"tune: objective: {key}")
    percent, baseline = objective.get("percent_below", 1), objective.get("baseline", "CE")
    if not is_number(percent) or not 0 <= percent < 100:
        raise PrefError(
            f"tune: objective: percent_below={percent!r} is not accepted: set it to a number of at least 0 and "
            "below 100."
        )
    if baseline != "CE" and not is_number(baseline):
        raise PrefError(
            f"tune: objective: baseline={baseline!r} is not accepted: set it to CE or a number such as 0.05."
        )
    if baseline == "CE":
        baseline = cross_entropy(objective["keep"].lower())
    worse = percent / 100 if smaller_is_better(objective["keep"]) else -percent / 100
    constrained = {
        "weights": {objective["maximize"]: 1.0},
        "at_least": {objective["keep"]: baseline * (1 + worse)},
    }
    check_objective(constrained, metrics, topk, "tune: objective")
    return constrained


def _baseline(config: Config, settings: dict[str, Any]) -> tuple[str, dict[str, Any], Config]:
    """Return name, settings and configuration of the baseline: plain cross-entropy with the fixed settings.

    Raises:
        PrefError: the baseline does not accept a setting.
    """
    pair = split_model_name(config["model"])
    name = f"CE{pair[1].__name__}" if pair else config["model"]
    settings = {**settings, "objective": None}
    try:
        return name, settings, Config(name, config["dataset"], config_dict=dict(settings))
    except PrefError as error:
        raise PrefError(f"tune: objective: baseline: {error}") from None


def _any_score(config: Config, settings: dict[str, Any], metric: str) -> float:
    """Replace :func:`_cross_entropy_score` while settings are only checked."""
    _baseline(config, settings)
    return 0.0


def _cross_entropy_score(config: Config, settings: dict[str, Any], folder: Path, metric: str) -> float:
    """Return the best validation value of plain cross-entropy with the fixed settings."""
    path = folder / "baseline.json"
    name, settings, baseline_config = _baseline(config, {**settings, "checkpoint_dir": str(folder / "baseline")})
    defaults = digest_of_defaults(baseline_config)
    inputs = {"model": name, "dataset": config["dataset"], "settings": settings, "defaults": defaults}
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if {key: stored[key] for key in inputs} == json.loads(json.dumps(inputs)):
                return stored["best_valid_result"][metric]
        except (ValueError, LookupError, TypeError):
            raise PrefError(
                f"{str(path)!r}, the baseline of the constraint, is damaged: delete it and run the same command, which "
                "trains it again."
            ) from None
    print(f"training {name}, the baseline of the constraint, once", file=sys.stderr, flush=True)
    result = run_recbole_pref(name, config["dataset"], config_dict=settings)
    write_result(path, {**result, **inputs})
    return result["best_valid_result"][metric]


def _shared(
    config: Config, plan: Plan, settings: dict[str, Any], folder: Path, resources: tuple[float, float, int]
) -> dict[str, Any]:
    """Return the data, reference models and settings that all trials share."""
    randomly_split = "RO" in str(config["eval_args"]["order"]).upper()
    data_is_searched = set(plan.space) & (_data_keys() | ({"seed"} if randomly_split else set()))
    packed: bytes | None = None
    files: dict[str, bytes] = {}
    references = absolute_paths(config).get("reference_dir", str(folder / "reference"))
    if not data_is_searched:
        first = {key: as_setting(key, domain.ends()[0]) for key, domain in plan.space.items()}
        first_point = {**settings, **first, "reference_dir": references}
        shared_config = Config(config["model"], config["dataset"], config_dict=first_point)
        dataset, _ = prepare_data(shared_config, log=False)
        packed = pickle.dumps(dataset, protocol=pickle.HIGHEST_PROTOCOL)
        files = _references(shared_config, dataset, plan)
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "settings": settings,
        "defaults": digest_of_defaults(config),
        "data": packed,
        "references": files,
        "reference_dir": references,
        "resources": resources,
    }


def _references(config: Config, dataset: Dataset, plan: Plan) -> dict[str, bytes]:
    """Train the reference model if all trials share it; return the content of its files by name."""
    pair = split_model_name(config["model"])
    if config["reference"] != "auto" or pair is None:
        return {}
    if set(plan.space) & reference.shaping_keys(config, pair[1]):
        return {}
    run = build_run(config, log=False, dataset=dataset)
    run.trainer.obtain_reference(run.train_data, run.valid_data)
    # The folder may also contain reference models of other data sets and backbones.
    prefix = f"{config['dataset']}-{pair[1].__name__}-"
    paths = reference.reference_folder(config).glob("*.pth")
    return {path.name: path.read_bytes() for path in paths if path.name.startswith(prefix)}


# -- Ray ----------------------------------------------------------------------------------------


def _tuner(
    plan: Plan,
    config: Config,
    shared: dict[str, Any],
    storage: str,
    name: str,
    restorable: bool,
    resources: tuple[float, float, int],
    quiet: bool,
    algorithms: tuple[Any, Any],
) -> Tuner:
    """Return Ray's Tuner, new or restored."""
    from ray import tune as ray_tune

    cpus, gpus, workers = resources
    bundles = [{"CPU": cpus, "GPU": gpus}] * workers
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(train_trial, shared=shared), ray_tune.PlacementGroupFactory(bundles)
    )
    space = {key: domain.to_ray() for key, domain in plan.space.items()}
    if restorable:
        return ray_tune.Tuner.restore(f"{storage}/{name}", trainable, param_space=space)
    scheduler, searcher = algorithms
    # Ray silently ignores this limit for the random search, which has its own.
    limit = None if plan.search == "random" else plan.max_concurrent
    return ray_tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            num_samples=plan.num_samples, scheduler=scheduler, search_alg=searcher, max_concurrent_trials=limit,
            trial_name_creator=_trial_id, trial_dirname_creator=_trial_id,
            # A process imports once for all its trials. The other workers of a trial end with its process.
            reuse_actors=workers == 1,
        ),
        run_config=ray_tune.RunConfig(
            name=name, storage_path=storage, verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=plan.max_failures),
            # Keep all checkpoints until the end: an interrupted sweep and PBT may restore older ones.
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=None),
            callbacks=[Progress(plan.trials, config["epochs"], tuple(plan.space), quiet)],
        ),
    )  # fmt: skip


def _trial_id(trial: Trial) -> str:
    return trial.trial_id


def _start_ray(address: str | None) -> None:
    # The table reports failed trials, so hide Ray's tracebacks.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    # Ray's handler would mark the sweep as complete; without it, an interrupted sweep can be resumed.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Ray's writer would log for every report that it renames metrics with an @.
    logging.getLogger("tensorboardX").setLevel(logging.WARNING)
    # A restart of the sweep needs a recent snapshot.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints panels at any verbosity
    cluster.connect(address)


def _check_resources(ray: Any, cpus: float, gpus: float, workers: int) -> None:
    """Refuse trials that the machines of the cluster cannot run: Ray would wait forever."""
    if workers > 1:
        cluster.check_capacity(workers, cpus, gpus)
    elif not cluster.capacity(cpus, gpus):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        raise PrefError(
            f"--cpus_per_trial={cpus:g} --gpus_per_trial={gpus:g} is more than any machine has (the largest: "
            f"{most[0]:g} CPUs, {most[1]:g} GPUs): set smaller numbers."
        )
