"""Sweeps with Ray Tune: early stopping, restarts, several machines, one exported winner.

``tune`` prepares what all trials share (data, references, the baseline of a constraint) once, lets Ray
run the trials and writes the table, the pictures and the winner.
"""

import json
import logging
import os
import pickle
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from recbole.utils import argument_list

from recbole_pref import checkpoint
from recbole_pref.config import Config, absolute_paths, digest_of_defaults
from recbole_pref.environment import python_path, sigterm_as_ctrl_c, write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.objective import check_measured, check_objective, less_is_better
from recbole_pref.model.names import split_model_name
from recbole_pref.quick_start import build_run, prepare_data, run_recbole_pref
from recbole_pref.settings import attribute_of_settings, settings_set_by, settings_with
from recbole_pref.training import reference
from recbole_pref.tune.progress import Progress
from recbole_pref.tune.results import finish
from recbole_pref.tune.space import Plan, as_setting, is_number, read_plan
from recbole_pref.tune.trial import train_trial

__all__ = ["Plan", "read_plan", "tune"]


def _data_keys():
    """Return the settings that change what is read or how it is split; such trials load their own data."""
    return {*argument_list.dataset_arguments} | settings_with(reloads_data=True)



def tune(
    model,
    dataset,
    sweep,
    config_file_list=None,
    config_dict=None,
    num_samples=None,
    storage_path="tune",
    name=None,
    resume=False,
    ray_address=None,
    cpus_per_trial=1,
    gpus_per_trial=0,
    quiet=False,
):
    """Search settings of a model.

    Args:
        model (str): model name, such as ``LPOSASRec``.
        dataset (str): data set name.
        sweep (path-like or dict): the sweep file, see ``docs/tuning.md``.
        config_file_list (list of str, optional): YAML files with fixed settings.
        config_dict (dict, optional): fixed settings; they win over files.
        num_samples (int, optional): trials; wins over the sweep file.
        storage_path (str): folder (or URI that Ray writes to) that all machines reach.
        name (str, optional): folder of the sweep inside it; by default model and data set.
        resume (bool): go on with a sweep that was interrupted.
        ray_address (str, optional): ``auto`` or ``HOST:PORT`` of a running Ray cluster.
        cpus_per_trial, gpus_per_trial (float): what a trial occupies; torch uses as many threads.
        quiet (bool): no table while it runs, one line per finished trial.

    Returns:
        ray.tune.ResultGrid: one result per trial. Table, pictures and winner lie in
        ``storage_path/name``.

    Raises:
        PrefError: a mistake in the sweep file or the settings, before Ray starts; no trial succeeded.
    """
    import ray

    from recbole_pref.tune.algorithms import make_scheduler, make_searcher

    plan = read_plan(sweep, num_samples)
    if cpus_per_trial <= 0 or gpus_per_trial < 0:
        raise PrefError("--cpus_per_trial must be above 0 and --gpus_per_trial 0 or more.")
    for key in sorted(settings_set_by("sweep")):
        if key in plan.space:
            raise PrefError(f"tune: {key} is set by the sweep itself: remove it from space.")
    for key, instead in attribute_of_settings("shared_by_trials").items():
        if key in plan.space:
            raise PrefError(f"tune: {key} is the same for all trials: remove it from space and {instead}.")
    fixed = {key: as_setting(key, domain.values[0]) for key, domain in plan.space.items() if domain.kind == "fixed"}
    plan = replace(plan, space={key: _found_anywhere(key, d) for key, d in plan.space.items() if key not in fixed})
    try:
        config = Config(model, dataset, config_file_list, {**(config_dict or {}), **fixed})
    except PrefError as error:
        raise PrefError(f"tune: with {fixed}: {error}" if fixed else str(error)) from None
    _check_runs(config)
    settings = _fixed_settings(config)
    # Checked with any bound: the baseline is trained when nothing is left that can refuse.
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
    began = {"model": config["model"], "dataset": config["dataset"], "settings": settings, **asdict(plan)}
    began["defaults"] = digest_of_defaults(config)
    _keep(record, json.loads(json.dumps(checkpoint.to_plain(began, other=str))), resume)
    algorithms = make_scheduler(plan, config["epochs"]), make_searcher(plan, config["seed"])
    resources = (cpus_per_trial, gpus_per_trial)
    _start_ray(ray, ray_address)
    _check_resources(ray, *resources)
    cross_entropy = partial(_cross_entropy_score, config, settings, folder)
    settings["objective"] = _objective(plan, config, settings, cross_entropy)
    shared = _shared(config, plan, settings, folder, cpus_per_trial)
    tuner = _tuner(plan, config, shared, storage, name, restorable, resources, quiet, algorithms)
    with sigterm_as_ctrl_c():  # after Ray's start, whose own way to take it is a stack trace
        grid = tuner.fit()
    finish(grid, folder, plan, config, settings)
    return grid


# -- checks -------------------------------------------------------------------------------------


def _check_runs(config):
    """Refuse settings with which no trial would report anything."""
    if config["eval_step"] < 1 or config["eval_step"] > config["epochs"]:
        raise PrefError(
            f"eval_step={config['eval_step']} with epochs={config['epochs']} never validates, and a sweep "
            "follows validations: set eval_step between 1 and epochs."
        )
    split = config["eval_args"]["split"]
    kind, parts = next(iter(split.items()))
    if parts == "test_only" or (kind != "LS" and not parts[1]):
        raise PrefError(
            f"eval_args, split: {split} leaves no validation rows, and a sweep follows validations: set it to "
            "{LS: valid_and_test} or give validation a share."
        )


def _fixed_settings(config):
    """Return the settings that files, dict and command line gave, with paths that hold anywhere."""
    given = {**config.file_config_dict, **config.variable_config_dict, **absolute_paths(config)}
    settings = {
        key: value for key, value in given.items() if key not in {"model", "dataset"} | settings_set_by("sweep")
    }
    return checkpoint.to_plain(settings, other=str)


def _found_anywhere(key, domain):
    """Return a domain whose files are named so that trials, which work in folders of their own, find them."""
    if key != "reference":
        return domain
    return replace(domain, values=tuple(v if v in ("auto", "none") else os.path.abspath(v) for v in domain.values))


def _check_corners(config, settings, plan):
    """Let Config see the objective, then both ends of the space, where values clash with fixed settings."""
    model, dataset = config["model"], config["dataset"]
    try:
        Config(model, dataset, config_dict=settings).refuse_unread(plan.space, "space: ")
    except PrefError as error:
        raise PrefError(f"tune: {error}") from None
    pair = split_model_name(model)
    if plan.scheduler == "pbt":
        own = reference.backbone_settings(config, pair[1]) if pair else {}
        sizes = {key for key, value in own.items() if type(value) is int}
        shaping = [key for key in plan.space if key in sizes | _data_keys() | {"learner"}]
        if shaping:
            raise PrefError(
                f"tune: scheduler 'pbt' lets a trial go on with another's weights and optimizer, which do not fit "
                f"where {shaping[0]} differs: remove it from space or choose another scheduler."
            )
    for end in (0, -1):
        corner = {key: as_setting(key, domain.ends()[end]) for key, domain in plan.space.items()}
        try:
            _check_runs(Config(model, dataset, config_dict={**settings, **corner}))
        except PrefError as error:
            raise PrefError(f"tune: with {corner}: {error}") from None


def _restorable(path, resume, record):
    """Return whether a stored sweep goes on, refusing to write over one."""
    from ray.tune import Tuner

    try:
        stored = Tuner.can_restore(path)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise PrefError(f"--storage_path: {path!r} cannot be reached: {told}") from None
    if stored and not resume:
        raise PrefError(f"{path!r} holds a sweep already: pass --resume to go on with it, or another --name.")
    if resume and not stored and not record.is_file():  # with it, the sweep ended before its first trial
        raise PrefError(f"--resume: {path!r} holds no sweep: check --storage_path and --name.")
    return stored


def _keep(path, began, resumed):
    """Store what a sweep begins with, or refuse to go on with anything else."""
    if not resumed:
        checkpoint.write_atomically(path, lambda file: file.write(json.dumps(began, indent=1).encode()), "storage_path")
    elif path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for key in began:
            if stored.get(key) == began[key]:
                continue
            if key == "defaults":
                fault = "other defaults: a property file, a plugin or a version changed since"
            elif key in ("settings", "space"):
                named = {**(stored.get(key) or {}), **began[key]}
                changed = [name for name in named if (stored.get(key) or {}).get(name) != began[key].get(name)]
                fault = f"another {changed[0]}"
            else:
                fault = f"{key}: {stored.get(key)!r}, not {began[key]!r}"
            where = str(path.parent)
            raise PrefError(
                f"--resume: {where!r} began with {fault}; take that back, or begin another sweep with --name."
            )


# -- what trials share --------------------------------------------------------------------------


def _objective(plan, config, settings, cross_entropy):
    """Return the setting ``objective`` of the trials; ``cross_entropy`` gives the baseline of a metric."""
    wanted = plan.objective
    metrics, topk = config["metrics"], config["topk"]
    if wanted is None:  # spelled out, so that trials report a score of which more is better
        return settings.get("objective") or {"weights": {config["valid_metric"]: 1.0}}
    if isinstance(wanted, str):
        check_measured(wanted, metrics, topk, "tune: objective")
        return {"weights": {wanted: 1.0}}
    if not isinstance(wanted, dict) or "maximize" not in wanted:
        check_objective(wanted, metrics, topk, "tune: objective")
        return wanted
    unknown = sorted(set(wanted) - {"maximize", "keep", "percent_below", "baseline"})
    if unknown or "keep" not in wanted:
        raise PrefError(
            f"tune: objective={wanted!r} is not understood: write {{maximize: TailNDCG@10, keep: NDCG@10, "
            "percent_below: 1, baseline: CE}."
        )
    for key in ("maximize", "keep"):
        check_measured(wanted[key], metrics, topk, f"tune: objective: {key}")
    percent, baseline = wanted.get("percent_below", 1), wanted.get("baseline", "CE")
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
        baseline = cross_entropy(wanted["keep"].lower())
    worse = percent / 100 if less_is_better(wanted["keep"]) else -percent / 100
    objective = {
        "weights": {wanted["maximize"]: 1.0},
        "at_least": {wanted["keep"]: baseline * (1 + worse)},
    }
    check_objective(objective, metrics, topk, "tune: objective")
    return objective


def _baseline(config, settings):
    """Return name, settings and Config of the baseline: cross-entropy alone with the fixed settings.

    Raises:
        PrefError: settings that it does not accept.
    """
    pair = split_model_name(config["model"])
    name, own = f"CE{pair[1].__name__}" if pair else config["model"], {**settings, "objective": None}
    try:
        return name, own, Config(name, config["dataset"], config_dict=dict(own))
    except PrefError as error:
        raise PrefError(f"tune: objective: baseline: {error}") from None


def _any_score(config, settings, metric):
    """Stand in for :func:`_cross_entropy_score` where settings are only checked."""
    _baseline(config, settings)
    return 0.0


def _cross_entropy_score(config, settings, folder, metric):
    """Return the best validation value that cross-entropy alone reaches with the fixed settings."""
    path = folder / "baseline.json"
    name, own, baseline_config = _baseline(config, {**settings, "checkpoint_dir": str(folder / "baseline")})
    defaults = digest_of_defaults(baseline_config)
    made_of = {"model": name, "dataset": config["dataset"], "settings": own, "defaults": defaults}
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if {key: stored[key] for key in made_of} == json.loads(json.dumps(made_of)):
                return stored["best_valid_result"][metric]
        except (ValueError, LookupError, TypeError):
            raise PrefError(
                f"{str(path)!r}, the baseline of the constraint, is damaged: delete it, and the same command trains "
                "it again."
            ) from None
    print(f"training {name}, the baseline of the constraint, once", file=sys.stderr, flush=True)
    result = run_recbole_pref(name, config["dataset"], config_dict=own)
    write_result(path, {**result, **made_of})
    return result["best_valid_result"][metric]


def _shared(config, plan, settings, folder, cpus_per_trial):
    """Return what every trial gets; data and references are made here, once."""
    randomly_split = "RO" in str(config["eval_args"]["order"]).upper()
    own_data = set(plan.space) & (_data_keys() | ({"seed"} if randomly_split else set()))
    packed, files = None, {}
    references = absolute_paths(config).get("reference_dir", str(folder / "reference"))
    if not own_data:
        first = {key: as_setting(key, domain.ends()[0]) for key, domain in plan.space.items()}
        own = {**settings, **first, "reference_dir": references}
        shared_config = Config(config["model"], config["dataset"], config_dict=own)
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
        "threads": max(1, int(cpus_per_trial)),
    }


def _references(config, dataset, plan):
    """Train the reference that all trials share, if they share one; return file name to bytes."""
    pair = split_model_name(config["model"])
    if config["reference"] != "auto" or pair is None:
        return {}
    if set(plan.space) & reference.shaping_keys(config, pair[1]):
        return {}
    run = build_run(config, log=False, dataset=dataset)
    run.trainer.obtain_reference(run.train_data, run.valid_data)
    # A folder that the user named may hold those of other data and backbones.
    own = f"{config['dataset']}-{pair[1].__name__}-"
    paths = reference.reference_folder(config).glob("*.pth")
    return {path.name: path.read_bytes() for path in paths if path.name.startswith(own)}


# -- Ray ----------------------------------------------------------------------------------------


def _tuner(plan, config, shared, storage, name, restorable, resources, quiet, algorithms):
    """Return Ray's Tuner, new or restored."""
    from ray import tune as ray_tune

    cpus, gpus = resources
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(train_trial, shared=shared), {"cpu": cpus, "gpu": gpus}
    )
    space = {key: domain.to_ray() for key, domain in plan.space.items()}
    if restorable:
        return ray_tune.Tuner.restore(f"{storage}/{name}", trainable, param_space=space)
    scheduler, searcher = algorithms
    # Ray ignores it, without a word, for the random search, which limits itself.
    most = None if plan.search == "random" else plan.max_concurrent
    return ray_tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            num_samples=plan.num_samples, scheduler=scheduler, search_alg=searcher, max_concurrent_trials=most,
            trial_name_creator=_trial_id, trial_dirname_creator=_trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name=name, storage_path=storage, verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=plan.max_failures),
            # All stay until the end: a sweep that was killed, and PBT, go back to older ones.
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=None),
            callbacks=[Progress(plan.trials, config["epochs"], tuple(plan.space), quiet)],
        ),
    )  # fmt: skip


def _trial_id(trial):
    return trial.trial_id


def _start_ray(ray, address):
    # A trial that cannot succeed is told in the table, not by Ray's tracebacks.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    # Ray would end the sweep as if it were whole; Ctrl-C leaves it as a kill does, to be resumed.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Ray's writer tells at every report how it renames the tags of metrics, which hold an @.
    logging.getLogger("tensorboardX").setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    # Ray's own restarts of a whole sweep need a recent snapshot.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints panels even when it is not asked
    if address is None:  # workers of this machine find an uninstalled checkout as this process does
        os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    here = {} if address else {"include_dashboard": False}
    try:
        # "local" starts Ray anew; None would join any that runs here.
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PrefError(
            f"--ray_address={address!r}: no Ray cluster answers ({' '.join(str(error).split())[:200]}); "
            "start one with 'ray start --head', or leave the option out."
        ) from None


def _check_resources(ray, cpus, gpus):
    """Refuse trials that no machine of the cluster can hold: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        most = max((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        raise PrefError(
            f"--cpus_per_trial={cpus:g} --gpus_per_trial={gpus:g} is more than any machine has (the largest: "
            f"{most[0]:g} CPUs, {most[1]:g} GPUs): ask for less."
        )
