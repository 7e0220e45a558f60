"""RecBole's quick start with our configuration, trainer and checkpoints: change one import.

``run_recbole_pref``, ``objective_function`` and ``load_data_and_model`` take RecBole's arguments and
return RecBole's results.
"""

import logging
import os
import pickle
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.utils import set_color

from recbole_pref import checkpoint, cluster, distributed, memory
from recbole_pref.build import build_run, check_outputs, prepare_data
from recbole_pref.config import Config, digest_of_defaults, portable_settings
from recbole_pref.environment import environment, write_result
from recbole_pref.errors import Interrupted, PrefError, reason_of
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.methods import method_of
from recbole_pref.restore import load_data, load_model
from recbole_pref.settings import settings_with, shown


def run_recbole_pref(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    queue: Any = None,
) -> dict[str, Any]:
    """Train and test a model of RecBole or of RecBole-Pref.

    Args:
        model: name of the model, such as ``LPOSASRec`` or ``SASRec``.
        dataset: name of the data set.
        config_file_list: YAML files; later ones win.
        config_dict: settings, which override files.
        saved: whether checkpoints are written.
        queue: a queue that receives the result, for other processes.

    Returns:
        ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result`` as in RecBole,
        and ``seconds_per_epoch``, ``epochs``, ``checkpoint``, ``history``.

    Raises:
        PrefError: settings or data are not valid.
    """
    config = Config(model, dataset, config_file_list, config_dict)
    with _no_trace_if_refused(config) as trainers:
        result = _train_and_test(config, saved, trainers)
    if queue is not None:
        queue.put(result)
    return result


def _train_and_test(config: Config, saved: bool, trainers: list[Any], dataset: Any = None) -> dict[str, Any]:
    """Return what ``run_recbole_pref`` returns. As soon as the trainer exists, append it to ``trainers`` (list)."""
    if not distributed.is_first():
        config["log_wandb"] = False  # the first process writes for all
    # By default the name contains the time, which differs between machines.
    config["run_stem"] = distributed.from_first_process(config["run_stem"])
    run = build_run(config, log=distributed.is_first(), dataset=dataset)
    trainers.append(run.trainer)
    trainer, logger = run.trainer, getLogger()
    _resume(trainer, config)
    with _explained(trainer):
        best_valid_score, best_valid_result = trainer.fit(
            run.train_data, run.valid_data, saved=saved, show_progress=_shows_progress(config)
        )
        distributed.wait()
        load_best = saved and trainer.store.best() is not None
        if load_best and distributed.is_first() and not checkpoint.verify(trainer.saved_model_file):
            raise PrefError(
                f"checkpoint={trainer.saved_model_file!r} was not written by this run (it has no checksum): "
                "remove it and start again."
            )
        test_result = trainer.evaluate(run.test_data, load_best_model=load_best, show_progress=config["show_progress"])
    best_valid_result, test_result = _as_floats(best_valid_result), _as_floats(test_result)
    logger.info(set_color("best valid", "yellow") + f": {best_valid_result}")
    logger.info(set_color("test result", "yellow") + f": {test_result}")
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": trainer.valid_metric_bigger,
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "seconds_per_epoch": _mean(trainer.epoch_times),
        "epochs": len(trainer.epoch_times),
        "checkpoint": trainer.saved_model_file if saved else None,
        "history": trainer.history,
    }
    if config["result_file"] and distributed.is_first():
        record = {
            **result,
            "model": config["model"],
            "dataset": config["dataset"],
            "mask_history": history_is_masked(config),
            "seed": config["seed"],
            "data": trainer._data_fingerprint,
            "environment": environment(config["device"]),
            "config": checkpoint.to_plain(config.final_config_dict, other=str),
        }
        write_result(config["result_file"], record)
    return result


@contextmanager
def _no_trace_if_refused(config: Config) -> Iterator[list[Any]]:
    """Remove the log, the curves and the empty folders of a run that is refused before its first epoch.

    Args:
        config (Config): of the run.

    Yields:
        list: the caller appends the trainer to it.
    """
    outputs = [os.path.join("log", config["model"]), "log_tensorboard", config["checkpoint_dir"]]
    folders = {folder for path in map(Path, outputs) for folder in (path, *path.parents)}
    missing = {str(folder) for folder in folders if not os.path.exists(folder)}
    logger = getLogger()
    trainers: list[Any] = []
    before = logger.handlers[:]
    try:
        yield trainers
    except PrefError as error:
        if isinstance(error, Interrupted) or any(trainer.has_started for trainer in trainers):
            raise
        for handler in [handler for handler in logger.handlers if handler not in before]:
            logger.removeHandler(handler)
            handler.close()
            if isinstance(handler, logging.FileHandler):
                Path(handler.baseFilename).unlink(missing_ok=True)
                curves = os.path.basename(handler.baseFilename).split(".")[0]  # as RecBole names them
                shutil.rmtree(Path("log_tensorboard", curves), ignore_errors=True)
        for folder in sorted(missing, key=len, reverse=True):
            with suppress(OSError):  # it is not empty
                os.rmdir(folder)
        raise


def _shows_progress(config: Config) -> bool:
    """Return whether to show progress bars; on a terminal, RecBole's slow models show them by default."""
    return config["show_progress"] or (method_of(config.model_class) is None and sys.stderr.isatty())


@contextmanager
def _explained(trainer: Any) -> Iterator[None]:
    """Convert an error inside RecBole to a ``PrefError``: settings of its models are not all checked before."""
    try:
        with memory.explained():
            yield
    except PrefError:
        raise
    except Exception as error:
        if not _in_recbole(error):  # an error of this package, not of the settings
            raise
        advice = "; some models of RecBole need enable_amp: False" if trainer.enable_amp else ""
        raise PrefError(
            f"model={trainer.config['model']!r} failed with these settings and data: {reason_of(error)}{advice}"
        ) from error
    finally:
        trainer.tensorboard.close()  # ends its thread


def _in_recbole(error: BaseException) -> bool:
    """Return whether the innermost frame of the two packages is RecBole's."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    roots = [name.partition(".")[0] for name in modules if name.startswith("recbole")]
    return roots[-1] == "recbole"


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: str | None = None,
    group_offset: int = 0,
) -> dict[str, Any] | None:
    """Train and test on ``nproc`` processes, as RecBole's ``run``; see ``distributed.launch``."""
    arguments: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "config_file_list": config_file_list,
        "config_dict": config_dict,
        "saved": saved,
    }
    if not isinstance(nproc, int) or nproc < 1:
        raise PrefError(f"nproc={nproc!r} is not accepted: set it to a whole number of at least 1.")
    if nproc == 1 and world_size <= 0:
        return run_recbole_pref(**arguments)
    config = Config(model, dataset, config_file_list, config_dict)  # checks the settings once
    refuse_stock_model(config, f"nproc={nproc}")
    if config["device"].type == "cuda" and torch.cuda.device_count() < nproc:
        raise PrefError(
            f"nproc={nproc} needs as many GPUs, but gpu_id={config['gpu_id']!r} selects {torch.cuda.device_count()}: "
            "set gpu_id to a list of GPUs such as 0,1, or to '' to train on the CPU."
        )
    stem = _stem_of_run(config) or checkpoint.run_stem(config["model"], config["dataset"])
    arguments["config_dict"] = {**(config_dict or {}), "run_stem": stem}
    return distributed.launch(run_recbole_pref, arguments, nproc, ip, port, group_offset, world_size)


def refuse_stock_model(config: Config, option: str) -> None:
    """Refuse to train a model of RecBole on several processes.

    Args:
        config: of the run.
        option: the option that asks for several processes, for the message.

    Raises:
        PrefError: the model is RecBole's, or a linear one.
    """
    if method_of(config.model_class) is None:
        raise PrefError(
            f"{option} does not work with model={config['model']!r}: only <Method><Backbone> models "
            "train on several processes (CESASRec is SASRec with cross-entropy)."
        )


def run_on_cluster(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    ray_address: str | None = None,
    num_workers: int = 2,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    max_failures: int = 3,
) -> dict[str, Any]:
    """Train and test on the workers of a Ray cluster, data parallel with Ray Train.

    This process reads and splits the data, which reach the workers through Ray. ``checkpoint_dir`` is a folder that all
    machines reach. When a machine is lost, the workers continue from the newest checkpoint of the run.

    Args:
        model, dataset, config_file_list, config_dict: see :func:`run_recbole_pref`.
        ray_address: ``auto`` or ``HOST:PORT`` of a running Ray cluster; None starts Ray on this machine.
        num_workers: workers that train together.
        cpus_per_worker, gpus_per_worker: CPUs and GPUs of a worker; torch uses one thread per CPU.
        max_failures: how many times the workers start again after one was lost.

    Returns:
        The result of :func:`run_recbole_pref`.

    Raises:
        PrefError: settings or data are not valid, or the cluster has no room for the workers.
    """
    cluster.check_numbers(num_workers, cpus_per_worker, gpus_per_worker)
    if max_failures < 0:
        raise PrefError("--max_failures must be 0 or more.")
    config = Config(model, dataset, config_file_list, config_dict)
    refuse_stock_model(config, f"num_workers={num_workers}")
    if isinstance(config["resume"], str):
        raise PrefError(
            f"resume={config['resume']!r} does not work with num_workers: set resume: True, which continues from the "
            "newest checkpoint, and name the run with run_stem if it is not the newest."
        )
    folder = os.path.abspath(config["checkpoint_dir"])
    stem = _stem_of_run(config) or checkpoint.run_stem(config["model"], config["dataset"])
    if not config["resume"] and checkpoint.CheckpointDir(folder, stem).last():
        raise PrefError(
            f"checkpoint_dir={folder!r} holds checkpoints of run_stem={stem!r}: continue with resume: True, or choose "
            "another run_stem."
        )
    with _no_trace_if_refused(config):
        data, _ = prepare_data(config, log=False)
        check_outputs(config)
        cluster.connect(ray_address, log_to_driver=True)
        settings = portable_settings(config) | {"checkpoint_dir": folder, "run_stem": stem}
        if config["result_file"]:
            settings["result_file"] = os.path.abspath(config["result_file"])
        arguments = {
            "model": config["model"],
            "dataset": config["dataset"],
            "settings": settings,
            "defaults": digest_of_defaults(config),
            "data": pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL),
            "uses_gpu": gpus_per_worker > 0,
        }
        return cluster.launch(
            _run_of_worker, arguments, num_workers, cpus_per_worker, gpus_per_worker, folder, max_failures
        )


def _run_of_worker(
    model: str, dataset: str, settings: dict[str, Any], defaults: str, data: bytes, uses_gpu: bool
) -> dict[str, Any]:
    """Train in a worker of a cluster; continue from the newest checkpoint of the run, if it has one."""
    settings = {**settings, "gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "") if uses_gpu else ""}
    newest = None
    if distributed.is_first():
        newest = checkpoint.newest_good(settings["checkpoint_dir"], settings["run_stem"])
    path = distributed.from_first_process(newest and str(newest[0]))
    if path is not None:
        settings["resume"] = path
        settings.pop("init_from", None)  # the checkpoint holds the parameters already
    config = Config(model, dataset, config_dict=settings)
    refuse_other_defaults(config, defaults, "run")
    with memory.explained(), _no_trace_if_refused(config) as trainers:
        return _train_and_test(config, True, trainers, pickle.loads(data))


def refuse_other_defaults(config: Config, expected: str, what: str) -> None:
    """Refuse to train a part of a run or sweep with other defaults.

    Args:
        config: the configuration in this process.
        expected: the ``digest_of_defaults`` in the process that began.
        what: what began, for the message.

    Raises:
        PrefError: the defaults differ.
    """
    if digest_of_defaults(config) != expected:
        raise PrefError(
            f"the defaults changed after the {what} began: a property file or plugin was edited, or this machine has "
            "another version; give the command again for new runs."
        )


def _stem_of_run(config: Config) -> str | None:
    """Return ``run_stem``; with ``resume: True``, the default is the stem of the newest run, or None."""
    if config["run_stem"] or config["resume"] is not True:
        return config["run_stem"]
    return checkpoint.newest_run(config["checkpoint_dir"], config["model"], config["dataset"])


def _resume(trainer: Any, config: Config) -> None:
    """Load the checkpoint that ``resume`` selects."""
    path, state = config["resume"], None
    if not path:
        return
    if path is True:
        stem = _stem_of_run(config)
        newest = checkpoint.newest_good(config["checkpoint_dir"], stem) if stem else None
        if newest is None:
            getLogger().warning(
                f"resume: no checkpoint of {config['run_stem'] or config['model'] + ' on ' + config['dataset']} "
                f"in {config['checkpoint_dir']!r}; training starts from the beginning"
            )
            return
        path, state = newest
    if not checkpoint.verify(path, "resume"):
        raise PrefError(
            f"resume={str(path)!r} has no checksum, so it is not a checkpoint of RecBole-Pref: name one with -last- "
            "in its name, or set resume: False."
        )
    state = checkpoint.load(path, setting="resume") if state is None else state
    trainer.resume_checkpoint(path, state)
    _refuse_other_settings(path, state.get("config", {}), config)


def _refuse_other_settings(path: str | os.PathLike[str], stored: dict[str, Any], config: Config) -> None:
    """Refuse to resume a run with other settings."""
    current = checkpoint.to_plain(config.final_config_dict, other=str)
    may_differ = settings_with(scope="run") - {"seed"} | settings_with(free_on_resume=True)
    for key in sorted((stored.keys() & current.keys()) - may_differ):
        if stored[key] != current[key]:
            raise PrefError(
                f"resume={str(path)!r} is of a run with {key}={shown(stored[key])}, this one has "
                f"{shown(current[key])}: use the settings of that run, name another checkpoint, or set resume: False."
            )


def _as_floats(metrics: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Convert the values of metrics to Python floats."""
    return None if metrics is None else {name: float(value) for name, value in metrics.items()}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def objective_function(
    config_dict: dict[str, Any] | None = None, config_file_list: list[str] | None = None, saved: bool = True
) -> dict[str, Any]:
    """Train and test once for RecBole's ``HyperTuning``.

    Args:
        config_dict: settings, with ``model`` and ``dataset``.
        config_file_list: YAML files.
        saved: whether checkpoints are written.

    Returns:
        ``model`` and RecBole's four results.
    """
    config = Config(config_dict=config_dict, config_file_list=config_file_list)
    logging.basicConfig(level=logging.ERROR)
    run = build_run(config, log=False)
    best_valid_score, best_valid_result = run.trainer.fit(run.train_data, run.valid_data, verbose=False, saved=saved)
    return {
        "model": config["model"],
        "best_valid_score": best_valid_score,
        "valid_score_bigger": run.trainer.valid_metric_bigger,
        "best_valid_result": best_valid_result,
        "test_result": run.trainer.evaluate(run.test_data, load_best_model=saved),
    }


def load_data_and_model(model_file: str, **overrides: Any) -> tuple[Any, ...]:
    """Load a checkpoint of this package with its data, like RecBole's function of this name.

    Args:
        model_file: path of a checkpoint.
        **overrides: settings to change, such as ``data_path`` on another machine.

    Returns:
        Configuration, model, data set, and the training, validation and test loaders.

    Raises:
        PrefError: the checkpoint is missing, damaged or not of this package, or its data do not match.
    """
    state = checkpoint.load(model_file, setting="model_file")
    parts = {"model": str, "config": dict, "state_dict": dict, "data": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(k), kind) for k, kind in parts.items()):
        raise PrefError(
            f"model_file={model_file!r} holds no settings of RecBole-Pref: name a checkpoint that it wrote."
        )
    config, dataset, loaders = load_data(state, model_file, overrides)
    return (config, load_model(state, model_file, config, loaders[0]._dataset), dataset, *loaders)
