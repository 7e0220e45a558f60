"""RecBole's quick start with our configuration, trainer and checkpoints: change one import.

``run_recbole_pref``, ``objective_function`` and ``load_data_and_model`` take RecBole's arguments and
return RecBole's results.
"""

import logging
import os
import sys
from logging import getLogger

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_environment, get_trainer, init_logger, init_seed, set_color

from recbole_pref import checkpoint, data_check, distributed
from recbole_pref.config import Config
from recbole_pref.environment import environment, write_result
from recbole_pref.errors import PrefError
from recbole_pref.registry import model_class
from recbole_pref.trainer import trainer_class


def run_recbole_pref(
    model=None,
    dataset=None,
    config_file_list=None,
    config_dict=None,
    saved=True,
    queue=None,
):
    """Train and test a model of RecBole or of RecBole-Pref.

    Args:
        model (str, optional): model name, such as ``LPOSASRec`` or ``SASRec``.
        dataset (str, optional): data set name.
        config_file_list (list of str, optional): YAML files, later ones win.
        config_dict (dict, optional): settings that win over files.
        saved (bool): whether checkpoints are written.
        queue (optional): gets the result, for processes started by others.

    Returns:
        dict: ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result`` as in
        RecBole, and ``seconds_per_epoch``, ``epochs``, ``checkpoint``, ``history``.

    Raises:
        PrefError: a mistake in settings or data, in one sentence.
    """
    config = Config(model, dataset, config_file_list, config_dict)
    run = build_run(config, log=distributed.is_first())
    if distributed.world()[0] > 1:  # each process draws random numbers of its own
        init_seed(config["seed"] + distributed.world()[1], config["reproducibility"])
    trainer, logger = run.trainer, getLogger()
    _resume(trainer, config)
    best_valid_score, best_valid_result = trainer.fit(
        run.train_data, run.valid_data, saved=saved, show_progress=config["show_progress"]
    )
    distributed.wait()
    load_best = saved and trainer.store.best() is not None
    test_result = trainer.evaluate(
        run.test_data, load_best_model=load_best, show_progress=config["show_progress"]
    )
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
            "mask_history": bool(config["mask_history"]),
            "seed": config["seed"],
            "data": trainer._data_fingerprint,
            "environment": environment(config["device"]),
            "config": checkpoint.to_plain(config.final_config_dict, other=str),
        }
        write_result(config["result_file"], record)
    if queue is not None:
        queue.put(result)
    return result


def run(
    model=None,
    dataset=None,
    config_file_list=None,
    config_dict=None,
    saved=True,
    nproc=1,
    world_size=-1,
    ip="localhost",
    port="5678",
    group_offset=0,
):
    """Train and test on ``nproc`` processes, as RecBole's ``run``; see ``distributed.launch``."""
    arguments = {
        "model": model,
        "dataset": dataset,
        "config_file_list": config_file_list,
        "config_dict": config_dict,
        "saved": saved,
    }
    if nproc == 1 and world_size <= 0:
        return run_recbole_pref(**arguments)
    config = Config(model, dataset, config_file_list, config_dict)  # mistakes end here, once
    if getattr(config.model_class, "preference_method", None) is None:
        raise PrefError(
            f"nproc={nproc} does not work with model={config['model']!r}: only <Method><Backbone> models "
            "train on several processes (CESASRec is SASRec with cross-entropy)."
        )
    # RecBole makes these folders in a way that fails when two processes do it at once.
    for folder in (f"./log/{config['model']}", "log_tensorboard", config["checkpoint_dir"]):
        os.makedirs(folder, exist_ok=True)
    stem = checkpoint.run_stem(config["model"], config["dataset"])
    arguments["config_dict"] = {"run_stem": stem, **(config_dict or {})}
    return distributed.launch(
        run_recbole_pref, arguments, nproc, ip, port, group_offset, world_size
    )


class Run:
    """The parts of a run: config, dataset, the three loaders, model and trainer."""

    def __init__(self, config, dataset, loaders, model, trainer):
        self.config, self.dataset, self.model, self.trainer = config, dataset, model, trainer
        self.train_data, self.valid_data, self.test_data = loaders


def build_run(config, log=True):
    """Build everything a run needs, checking the data on the way.

    Args:
        config (Config): ours.
        log (bool): whether to log the configuration and the data.

    Returns:
        Run
    """
    dataset, loaders = prepare_data(config, log)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    torch.set_float32_matmul_precision(config["matmul_precision"] or "highest")
    cls = model_class(config["model"]) if isinstance(config["model"], str) else config.model_class
    model = _build_model(cls, config, loaders[0]._dataset).to(config["device"])
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    trainer = trainer_class(base)(config, model)
    if log:
        getLogger().info(model)
        getLogger().info("environment:\n" + get_environment(config).draw())
    trainer.eval_collector.data_collect(loaders[0])
    trainer.check_groups(loaders[2], "test")
    return Run(config, dataset, loaders, model, trainer)


def _build_model(cls, config, dataset):
    """Return the model, or say in one sentence what RecBole's constructor tripped over."""
    try:
        return cls(config, dataset)
    except PrefError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError,
            ArithmeticError, AttributeError) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PrefError(
            f"model={config['model']!r} cannot be built with these settings and data: {reason}"
        ) from error


def prepare_data(config, log=True):
    """Check, load and split the data of a configuration.

    Returns:
        tuple: the data set, and a tuple of the training, validation and test loaders.
    """
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    prepare_config = getattr(config.model_class, "prepare_config", None)
    if prepare_config is not None:
        prepare_config(config)
    if log:
        logger.info(sys.argv)
        logger.info(config)
    for note in data_check.check_atomic_files(config["data_path"], config["dataset"], config):
        logger.info(note)
    try:
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
    except PrefError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AssertionError, UnicodeError) as error:
        raise PrefError(
            f"dataset={config['dataset']!r} cannot be prepared with these settings: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if log:
        logger.info(dataset)
    data_check.check_split(*(len(loader._dataset) for loader in loaders), dataset.item_num)
    return dataset, loaders


def _resume(trainer, config):
    """Load the checkpoint that ``resume`` asks for."""
    wanted = config["resume"]
    if not wanted:
        return
    if wanted is True:
        stem = checkpoint.newest_run(
            config["checkpoint_dir"], f"{config['model']}-{config['dataset']}-"
        )
        found = checkpoint.newest_good(config["checkpoint_dir"], stem) if stem else None
        if found is None:
            getLogger().warning(
                f"resume: no checkpoint of {config['model']} on {config['dataset']} in "
                f"{config['checkpoint_dir']!r}; starting anew"
            )
            return
        wanted = found[0]
    trainer.resume_checkpoint(wanted)


def _as_floats(metrics):
    """Return metrics with plain floats, which print and store well, or None."""
    return None if metrics is None else {name: float(value) for name, value in metrics.items()}


def _mean(values):
    return sum(values) / len(values) if values else None


def objective_function(config_dict=None, config_file_list=None, saved=True):
    """Train and test once for RecBole's ``HyperTuning``.

    Args:
        config_dict (dict, optional): settings, ``model`` and ``dataset`` among them.
        config_file_list (list of str, optional): YAML files.
        saved (bool): whether checkpoints are written.

    Returns:
        dict: ``model`` and RecBole's four results.
    """
    config = Config(config_dict=config_dict, config_file_list=config_file_list)
    logging.basicConfig(level=logging.ERROR)
    run = build_run(config, log=False)
    best_valid_score, best_valid_result = run.trainer.fit(
        run.train_data, run.valid_data, verbose=False, saved=saved
    )
    return {
        "model": config["model"],
        "best_valid_score": best_valid_score,
        "valid_score_bigger": run.trainer.valid_metric_bigger,
        "best_valid_result": best_valid_result,
        "test_result": run.trainer.evaluate(run.test_data, load_best_model=saved),
    }


def load_data_and_model(model_file, **overrides):
    """Load a checkpoint of ours with its data, as RecBole's function of that name.

    Args:
        model_file (str): path of a checkpoint.
        **overrides: settings to change, such as ``data_path`` on another machine.

    Returns:
        tuple: config, model, dataset, train_data, valid_data, test_data.

    Raises:
        PrefError: missing, damaged or foreign checkpoint, or data that do not fit it.
    """
    state = checkpoint.load(model_file, setting="model_file")
    if not isinstance(state.get("config"), dict):
        raise PrefError(
            f"model_file={model_file!r} holds no settings of RecBole-Pref: name a checkpoint that it wrote."
        )
    config = Config(
        state["model"], state["config"]["dataset"], config_dict=_own_settings(state, overrides)
    )
    dataset, loaders = prepare_data(config)
    from recbole_pref.reference import fingerprint_of

    differences = checkpoint.compare_fingerprints(
        state.get("data") or {}, fingerprint_of(loaders[0]._dataset)
    )
    if differences:
        raise PrefError(
            f"model_file={model_file!r} was trained on other data ({'; '.join(differences)}): set "
            "data_path to the data it was made with."
        )
    cls = model_class(config["model"])
    model = _build_model(cls, config, loaders[0]._dataset).to(config["device"])
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))
    return (config, model, dataset, *loaders)


# What RecBole computes by itself and would refuse or misread when it is given.
_DERIVED = {
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "single_spec", "local_rank",
    "valid_neg_sample_args", "test_neg_sample_args", "valid_metric_bigger", "resume", "result_file",
    "model", "dataset",
}  # fmt: skip


def _own_settings(state, overrides):
    settings = {k: v for k, v in state["config"].items() if k not in _DERIVED}
    negatives = settings.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution") == "none":
        settings["train_neg_sample_args"] = None
    # RecBole appends the data set's name to data_path.
    path, name = settings.get("data_path", ""), state["config"]["dataset"]
    if path.endswith(name):
        settings["data_path"] = path[: -len(name)] or "."
    return {**settings, **overrides}
