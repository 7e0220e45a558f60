"""RecBole's quick start with our configuration, trainer and checkpoints: change one import.

``run_recbole_pref``, ``objective_function`` and ``load_data_and_model`` take RecBole's arguments and
return RecBole's results.
"""

import logging
import os
import shlex
import sys
import tempfile
import traceback
from contextlib import contextmanager
from functools import partial
from logging import getLogger

import recbole.data.dataset
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, get_trainer, init_logger, init_seed, set_color

from recbole_pref import checkpoint, distributed, memory
from recbole_pref.config import Config, given_data_path
from recbole_pref.config.checks import settings_without_effect
from recbole_pref.data import check as data_check
from recbole_pref.environment import described, environment, write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.methods import method_of
from recbole_pref.model.backbones import backbone_of
from recbole_pref.model.names import model_class
from recbole_pref.settings import settings_with, shown
from recbole_pref.settings.files import known_keys
from recbole_pref.training.trainer import trainer_class


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
    if not distributed.is_first():
        config["log_wandb"] = False  # the first process writes for all
    config["run_stem"] = distributed.of_first(config["run_stem"])  # machines would name it by their clocks
    run = build_run(config, log=distributed.is_first())
    if distributed.world()[0] > 1:  # each process draws random numbers of its own
        init_seed(config["seed"] + distributed.world()[1], config["reproducibility"])
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
                f"checkpoint={trainer.saved_model_file!r} is not the one that this run wrote (it has no checksum): "
                "remove it and start anew."
            )
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
            "mask_history": history_is_masked(config),
            "seed": config["seed"],
            "data": trainer._data_fingerprint,
            "environment": environment(config["device"]),
            "config": checkpoint.to_plain(config.final_config_dict, other=str),
        }
        write_result(config["result_file"], record)
    if queue is not None:
        queue.put(result)
    return result


def _shows_progress(config):
    """Return whether to show progress bars: RecBole's own models take minutes per epoch, so theirs are shown."""
    return config["show_progress"] or (method_of(config.model_class) is None and sys.stderr.isatty())


@contextmanager
def _explained(trainer):
    """Say in one sentence what a model of RecBole trips over, whose own settings nobody checked."""
    try:
        with memory.explained():
            yield
    except PrefError:
        raise
    except Exception as error:
        if not _in_recbole(error):  # a fault of this package, not of the settings
            raise
        advice = "; some models of RecBole need enable_amp: False" if trainer.enable_amp else ""
        raise PrefError(
            f"model={trainer.config['model']!r} failed with these settings and data: {_reason(error)}{advice}"
        ) from error
    finally:
        trainer.tensorboard.close()  # its thread would stay


def _in_recbole(error):
    """Return whether the innermost frame of the two packages is RecBole's."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    roots = [name.partition(".")[0] for name in modules if name.startswith("recbole")]
    return roots[-1] == "recbole"


def run(
    model=None,
    dataset=None,
    config_file_list=None,
    config_dict=None,
    saved=True,
    nproc=1,
    world_size=-1,
    ip="localhost",
    port=None,
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
    if not isinstance(nproc, int) or nproc < 1:
        raise PrefError(f"nproc={nproc!r} is not accepted: set it to a whole number of at least 1.")
    if nproc == 1 and world_size <= 0:
        return run_recbole_pref(**arguments)
    config = Config(model, dataset, config_file_list, config_dict)  # mistakes end here, once
    if method_of(config.model_class) is None:
        raise PrefError(
            f"nproc={nproc} does not work with model={config['model']!r}: only <Method><Backbone> models "
            "train on several processes (CESASRec is SASRec with cross-entropy)."
        )
    if config["device"].type == "cuda" and torch.cuda.device_count() < nproc:
        raise PrefError(
            f"nproc={nproc} needs as many GPUs, and gpu_id={config['gpu_id']!r} shows {torch.cuda.device_count()}: "
            "set gpu_id to their numbers, 0,1 for two, or to '' to train on the CPU."
        )
    stem = _known_stem(config) or checkpoint.run_stem(config["model"], config["dataset"])
    arguments["config_dict"] = {**(config_dict or {}), "run_stem": stem}
    return distributed.launch(
        run_recbole_pref, arguments, nproc, ip, port, group_offset, world_size
    )


class Run:
    """The parts of a run: config, dataset, the three loaders, model and trainer."""

    def __init__(self, config, dataset, loaders, model, trainer):
        self.config, self.dataset, self.model, self.trainer = config, dataset, model, trainer
        self.train_data, self.valid_data, self.test_data = loaders


def build_run(config, log=True, dataset=None):
    """Build everything a run needs, checking the data on the way.

    Args:
        config (Config): ours.
        log (bool): whether to log the configuration and the data.
        dataset (Dataset, optional): what :func:`prepare_data` returned before, instead of the files.

    Returns:
        Run
    """
    dataset, loaders = prepare_data(config, log, dataset)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    torch.set_float32_matmul_precision(config["matmul_precision"])
    cls = model_class(config["model"]) if isinstance(config["model"], str) else config.model_class
    model = _build_model(cls, config, loaders[0]._dataset).to(config["device"])
    _check_outputs(config)
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    trainer = trainer_class(base)(config, model)
    if log:
        getLogger().debug(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        getLogger().info(f"model: {type(model).__name__}, {trained:,} parameters (state: DEBUG logs its layers)")
        # RecBole's table of the environment takes a second: it watches the processor for that long.
        getLogger().debug("environment:\n" + described(environment(config["device"])))
        _point_to_the_fast_path(config)
    trainer.prepare(loaders[0])
    trainer.check_groups(loaders[2], "test")
    return Run(config, dataset, loaders, model, trainer)


def _point_to_the_fast_path(config):
    """Say which model trains the loss of one of RecBole's sequential models many times faster."""
    fast = f"CE{config['model']}"
    entry = backbone_of(config.model_class) if method_of(config.model_class) is None else None
    if entry is not None and config["loss_type"] == "CE":
        getLogger().info(
            f"{config['model']} trains with RecBole's own code, minutes per epoch on a CPU; model={fast} trains the "
            "same loss many times faster."
        )


def _check_outputs(config):
    """Make the output folders, before RecBole does, and refuse those that cannot be written."""
    folders = {"checkpoint_dir": config["checkpoint_dir"], "log_tensorboard": "log_tensorboard"}
    if config["result_file"]:
        folders["result_file"] = os.path.dirname(os.path.abspath(config["result_file"]))
        if os.path.isdir(config["result_file"]):
            raise PrefError(f"result_file={config['result_file']!r} is a folder: name a file in it.")
    for setting, folder in folders.items():
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise PrefError(
                f"{setting}: the folder {folder!r} cannot be written ({error.strerror}): name or make one that can."
            ) from None


def _build_model(cls, config, dataset):
    """Return the model, or say in one sentence what RecBole's constructor tripped over."""
    try:
        return cls(config, dataset)
    except PrefError:
        raise
    except Exception as error:  # whatever RecBole trips over
        raise PrefError(
            f"model={config['model']!r} cannot be built with these settings and data: {_reason(error)}"
        ) from error


def _reason(error):
    """Return what an exception that was not meant for the user tells, on one line of bounded length."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or "Unable to allocate" in text:
        return "they need more memory than there is; lower sizes such as MAX_ITEM_LIST_LENGTH or hidden_size"
    if text.startswith("Some feat is empty"):
        return "user_inter_num_interval, item_inter_num_interval and val_interval leave nothing; loosen them"
    if isinstance(error, ValueError) and text:
        return text if len(text) <= 300 else text[:300] + "..."
    return f"{type(error).__name__} {text[:300]}".strip()


def prepare_data(config, log=True, dataset=None, unsplit=None):
    """Check, load and split the data of a configuration.

    Args:
        config (Config): ours.
        log (bool): whether to log the configuration and the data.
        dataset (Dataset, optional): loaded before, instead of the files.
        unsplit (callable, optional): is given the data set before RecBole makes rows of its interactions, in place.

    Returns:
        tuple: the data set, and a tuple of the training, validation and test loaders.
    """
    init_seed(config["seed"], config["reproducibility"])
    try:
        # Before the log, which is long: what refuses the data is read without searching for it.
        notes = check_files(config, dataset is None)
        _start_log(config, log)
        for note in notes:
            getLogger().info(note)
        if dataset is None:
            dataset = create_dataset(config)
            if unsplit is not None:
                unsplit(dataset)
            if not os.path.exists(_pickles(config)["dataloaders_save_path"]):
                # RecBole splits a data set in place, once; so it can serve several runs.
                dataset.build = partial(_same, dataset.build())
        loaders = data_preparation(config, dataset)
        _seed_again(loaders, config)
    except PrefError:
        raise
    except Exception as error:  # whatever RecBole trips over
        raise PrefError(
            f"dataset={config['dataset']!r} cannot be prepared with these settings: {_reason(error)}"
        ) from error
    if log:
        users, items, rows = dataset.user_num - 1, dataset.item_num - 1, dataset.inter_num
        getLogger().info(
            f"{config['dataset']}: {users:,} users, {items:,} items, {rows:,} interactions "
            f"({rows / users:.1f} per user, {rows / items:.1f} per item)"
        )
        getLogger().debug(dataset)
    data_check.check_split(*(len(loader._dataset) for loader in loaders), dataset.item_num)
    return dataset, loaders


def check_files(config, read=True):
    """Check the files that RecBole is going to load, before it loads them.

    Args:
        config (Config): ours; a model with features completes it.
        read (bool): whether the data set is read from files at all.

    Returns:
        list of str: notes for the log, see ``data_check.check_atomic_files``.

    Raises:
        PrefError: a missing or malformed file, or a pickle that is not trusted.
    """
    _refuse_pickles(config)
    prepare_config = getattr(config.model_class, "prepare_config", None)
    if prepare_config is not None:
        prepare_config(config)
    return data_check.check_atomic_files(config["data_path"], config["dataset"], config) if read else []


def _same(splits):
    return splits


def _pickles(config):
    """Return the files that RecBole unpickles where they exist: dict of setting to path."""
    kinds = {ModelType.SEQUENTIAL: "Sequential", ModelType.KNOWLEDGE: "KnowledgeBased"}
    own = f"{config['model']}Dataset"
    kind = own if hasattr(recbole.data.dataset, own) else f"{kinds.get(config['MODEL_TYPE'], '')}Dataset"
    names = {
        "dataset_save_path": f"{config['dataset']}-{kind}.pth",
        "dataloaders_save_path": f"{config['dataset']}-for-{config['model']}-dataloader.pth",
    }
    folder = config["checkpoint_dir"]
    return {setting: config[setting] or os.path.join(folder, name) for setting, name in names.items()}


def _start_log(config, log):
    streams = sys.stdout, sys.stderr
    try:
        os.makedirs(f"log/{config['model']}", exist_ok=True)  # RecBole fails where two runs make it at once
        init_logger(config)
    except OSError as error:
        raise PrefError(
            f"the log file of model={config['model']!r} cannot be written ({error.strerror}): run in a folder "
            "where log/ can be made."
        ) from None
    # RecBole wraps these at each call; after some hundred runs in one process nothing could be printed.
    sys.stdout, sys.stderr = streams
    if log:
        getLogger().info(f"command: {shlex.join(sys.orig_argv)}")
        getLogger().debug(config)
        given = {**config.file_config_dict, **config.variable_config_dict}
        settings = {key: config[key] for key in given if config[key] != config.internal_config_dict.get(key)}
        lines = [f"{key}: {value}" for key, value in settings.items() if key not in ("model", "dataset")]
        heading = f"{config['model']} on {config['dataset']}; settings that differ from the defaults:"
        getLogger().info("\n  ".join([heading, *lines, "(state: DEBUG logs all settings)"]))
        for key in settings_without_effect(config):
            getLogger().warning(f"{key} has no effect on {config['model']}: leave it out.")
    elif not distributed.is_first():
        getLogger().setLevel(logging.ERROR)  # the first process logs for all


def _refuse_pickles(config):
    """Refuse what save_dataset and save_dataloaders left, as unpickling can run any code."""
    for setting, path in _pickles(config).items():
        if os.path.exists(path) and not config["trust_checkpoint"]:
            raise PrefError(
                f"{path} ({setting}) is refused because RecBole pickled it, and unpickling can run any code: "
                "set trust_checkpoint: True if you made the file yourself, or remove it."
            )


def _seed_again(loaders, config):
    """Give loaders that RecBole stripped to save them (save_dataloaders) the generators they had."""
    for loader in loaders:
        if loader.generator is None:
            loader.generator = torch.Generator()
            loader.generator.manual_seed(config["seed"])
            loader.sampler.generator = loader.generator


def _known_stem(config):
    """Return ``run_stem``, with ``resume: True`` by default that of the newest run of model and data, or None."""
    if config["run_stem"] or config["resume"] is not True:
        return config["run_stem"]
    return checkpoint.newest_run(config["checkpoint_dir"], f"{config['model']}-{config['dataset']}-")


def _resume(trainer, config):
    """Load the checkpoint that ``resume`` asks for."""
    wanted, state = config["resume"], None
    if not wanted:
        return
    if wanted is True:
        stem = _known_stem(config)
        found = checkpoint.newest_good(config["checkpoint_dir"], stem) if stem else None
        if found is None:
            getLogger().warning(
                f"resume: no checkpoint of {config['run_stem'] or config['model'] + ' on ' + config['dataset']} "
                f"in {config['checkpoint_dir']!r}; starting anew"
            )
            return
        wanted, state = found
    if not checkpoint.verify(wanted, "resume"):
        raise PrefError(
            f"resume={str(wanted)!r} has no checksum, so it is no checkpoint of RecBole-Pref: name one with -last- "
            "in its name, or set resume: False."
        )
    state = checkpoint.load(wanted, setting="resume") if state is None else state
    trainer.resume_checkpoint(wanted, state)
    _refuse_other_settings(wanted, state.get("config", {}), config)


def _refuse_other_settings(path, stored, config):
    """Refuse to go on with a run under settings that it does not have."""
    own = checkpoint.to_plain(config.final_config_dict, other=str)
    may_differ = settings_with(scope="run") - {"seed"} | settings_with(free_on_resume=True)
    for key in sorted((stored.keys() & own.keys()) - may_differ):
        if stored[key] != own[key]:
            raise PrefError(
                f"resume={str(path)!r} is of a run with {key}={shown(stored[key])}, this one has {shown(own[key])}: "
                "give its settings, name the checkpoint of another run, or set resume: False."
            )


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
    parts = {"model": str, "config": dict, "state_dict": dict, "data": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(k), kind) for k, kind in parts.items()):
        raise PrefError(
            f"model_file={model_file!r} holds no settings of RecBole-Pref: name a checkpoint that it wrote."
        )
    config, dataset, loaders = load_data(state, model_file, overrides)
    return (config, load_model(state, model_file, config, loaders[0]._dataset), dataset, *loaders)


def load_model(state, model_file, config, dataset):
    """Build the model of a checkpoint, give it the checkpoint's weights and set it to evaluation mode.

    Args:
        state (dict): a checkpoint of ours, loaded.
        model_file (path-like): its file, for messages.
        config (Config): of ``load_data``, as is ``dataset``, the rows of its training loader.

    Raises:
        PrefError: a model that these settings and data do not allow, or that the weights do not fit.
    """
    model = _build_model(model_class(config["model"]), config, dataset).to(config["device"])
    try:
        checkpoint.fill(model, state)
    except RuntimeError as error:
        raise PrefError(f"model_file={str(model_file)!r} does not fit its model: {_reason(error)}") from error
    return model.eval()


def load_data(state, model_file, overrides, log=True, unsplit=None):
    """Load the data that a checkpoint was trained on.

    Args:
        state (Mapping): of a checkpoint of ours, ``model``, ``config`` and ``data``.
        model_file (path-like): its file, for messages.
        overrides (dict): settings to change.
        log, unsplit: see ``prepare_data``.

    Returns:
        tuple: config, data set, and a tuple of the training, validation and test loaders.

    Raises:
        PrefError: data that are missing or not those of the checkpoint.
    """
    config = Config(state["model"], state["config"].get("dataset"), config_dict=settings_of(state, **overrides))
    dataset, loaders = prepare_data(config, log, unsplit=unsplit)
    from recbole_pref.training.reference import fingerprint_of

    differences = checkpoint.compare_fingerprints(state["data"], fingerprint_of(loaders[0]._dataset))
    if differences:
        raise PrefError(
            f"model_file={str(model_file)!r} was trained on other data ({'; '.join(differences)}): set "
            "data_path to the data it was made with."
        )
    return config, dataset, loaders


def settings_of(state, /, **overrides):
    """Return the settings of a checkpoint as ``config_dict`` takes them.

    Args:
        state (dict): a checkpoint of ours, loaded.
        **overrides: settings to change.
    """
    settings = {k: v for k, v in state["config"].items() if k not in settings_with(derived=True)}
    if settings.get("strict_config", True):
        # Some of RecBole's models write into the configuration what they find in the data.
        settings = {k: v for k, v in settings.items() if k in known_keys()}
    if method_of(model_class(state["model"])) is not None:
        settings.pop("loss_type", None)  # FPMC writes RecBole's own there
    negatives = settings.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution") == "none":
        settings["train_neg_sample_args"] = None
    if "data_path" in settings:
        settings["data_path"] = given_data_path(state["config"])
    return {**settings, **overrides}
