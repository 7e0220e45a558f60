"""The parts of a run, built from its settings: data, loaders, model and trainer."""

import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Any, TypeAlias

import recbole.data.dataset
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.utils import ModelType, get_trainer, init_logger, init_seed

from recbole_pref import distributed
from recbole_pref.config import Config
from recbole_pref.config.checks import settings_without_effect
from recbole_pref.data import check as data_check
from recbole_pref.environment import described, environment
from recbole_pref.errors import PrefError, reason_of
from recbole_pref.methods import method_of
from recbole_pref.model.backbones import backbone_of
from recbole_pref.model.names import model_class
from recbole_pref.training.trainer import trainer_class

Loaders: TypeAlias = tuple[Any, Any, Any]  # of training, validation and test


@dataclass
class RunParts:
    """Configuration, data set, model and trainer of a run, and its three loaders."""

    config: Config
    dataset: Dataset
    model: torch.nn.Module
    trainer: Any
    train_data: Any
    valid_data: Any
    test_data: Any


def build_run(config: Config, log: bool = True, dataset: Dataset | None = None) -> RunParts:
    """Check the data and build all parts of a run.

    Args:
        config: the configuration.
        log: whether to log the configuration and the data.
        dataset: an earlier result of :func:`prepare_data`, which replaces the files.

    Returns:
        The parts of the run.
    """
    dataset, loaders = prepare_data(config, log, dataset)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    torch.set_float32_matmul_precision(config["matmul_precision"])
    cls = model_class(config["model"]) if isinstance(config["model"], str) else config.model_class
    model = build_model(cls, config, loaders[0]._dataset).to(config["device"])
    check_outputs(config)
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    trainer = trainer_class(base)(config, model)
    if log:
        getLogger().debug(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        getLogger().info(f"model: {type(model).__name__}, {trained:,} parameters (state: DEBUG logs its layers)")
        # RecBole's table of the environment takes a second, because it measures the processor load.
        getLogger().debug("environment:\n" + described(environment(config["device"])))
        _point_to_the_fast_path(config)
    try:
        trainer.prepare(loaders[0])
        trainer.check_groups(loaders[2], "test")
    except PrefError:
        trainer.tensorboard.close()
        raise
    if distributed.world()[0] > 1:  # each process draws other random numbers
        init_seed(config["seed"] + distributed.world()[1], config["reproducibility"])
    return RunParts(config, dataset, model, trainer, *loaders)


def _point_to_the_fast_path(config: Config) -> None:
    """Log the model of this package that trains the same loss faster than RecBole's sequential model."""
    fast = f"CE{config['model']}"
    entry = backbone_of(config.model_class) if method_of(config.model_class) is None else None
    if entry is not None and config["loss_type"] == "CE":
        getLogger().info(
            f"{config['model']} trains with RecBole's own code, minutes per epoch on a CPU; model={fast} trains the "
            "same loss many times faster."
        )


def check_outputs(config: Config) -> None:
    """Create the output folders before RecBole does.

    Args:
        config: of the run.

    Raises:
        PrefError: a folder cannot be written, or ``result_file`` is a folder.
    """
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
                f"{setting}: the folder {folder!r} cannot be written ({error.strerror}): name or create a writable one."
            ) from None


def build_model(cls: Callable[..., torch.nn.Module], config: Config, dataset: Dataset) -> torch.nn.Module:
    """Build a model.

    Args:
        cls: class of the model.
        config: its settings.
        dataset: the training set.

    Raises:
        PrefError: RecBole's constructor failed.
    """
    try:
        return cls(config, dataset)
    except PrefError:
        raise
    except Exception as error:  # any error inside RecBole
        raise PrefError(
            f"model={config['model']!r} cannot be built with these settings and data: {reason_of(error)}"
        ) from error


def prepare_data(
    config: Config, log: bool = True, dataset: Dataset | None = None, unsplit: Callable[[Dataset], None] | None = None
) -> tuple[Dataset, Loaders]:
    """Check, load and split the data of a configuration.

    Args:
        config: the configuration.
        log: whether to log the configuration and the data.
        dataset: a loaded data set, which replaces the files.
        unsplit: a function that receives the data set before RecBole splits it in place.

    Returns:
        The data set, and the training, validation and test loaders.
    """
    init_seed(config["seed"], config["reproducibility"])
    try:
        # Check first, so that an error message is not hidden below a long log.
        notes = check_files(config, dataset is None)
        _start_log(config, log)
        for note in notes:
            getLogger().info(note)
        if dataset is None:
            dataset = create_dataset(config)
            if unsplit is not None:
                unsplit(dataset)
            if not os.path.exists(_pickles(config)["dataloaders_save_path"]):
                # RecBole splits a data set in place; store the splits, so that several runs can use it.
                dataset.build = partial(_same, dataset.build())
        loaders = data_preparation(config, dataset)
        _seed_again(loaders, config)
    except PrefError:
        raise
    except Exception as error:  # any error inside RecBole
        raise PrefError(
            f"dataset={config['dataset']!r} cannot be prepared with these settings: {reason_of(error)}"
        ) from error
    if log:
        users, items, rows = dataset.user_num - 1, dataset.item_num - 1, dataset.inter_num
        getLogger().info(
            f"{config['dataset']}: {users:,} users, {items:,} items, {rows:,} interactions "
            f"({rows / users:.1f} per user, {rows / items:.1f} per item)"
        )
        getLogger().debug(dataset)
    train, valid, test = (len(loader._dataset) for loader in loaders)
    data_check.check_split(train, valid, test, dataset.item_num)
    return dataset, loaders


def check_files(config: Config, read: bool = True) -> list[str]:
    """Check the files of the data set before RecBole loads them.

    Args:
        config: the configuration; models with item features add settings to it.
        read: whether the data set is read from files.

    Returns:
        Notes for the log, see ``data_check.check_atomic_files``.

    Raises:
        PrefError: a file is missing or malformed, or a pickle is not trusted.
    """
    _refuse_pickles(config)
    prepare_config = getattr(config.model_class, "prepare_config", None)
    if prepare_config is not None:
        prepare_config(config)
    return data_check.check_atomic_files(config["data_path"], config["dataset"], config) if read else []


def _same(splits: Any) -> Any:
    return splits


def _pickles(config: Config) -> dict[str, str]:
    """Return the paths of files that RecBole would unpickle, by setting."""
    kinds = {ModelType.SEQUENTIAL: "Sequential", ModelType.KNOWLEDGE: "KnowledgeBased"}
    model_dataset = f"{config['model']}Dataset"
    kind = (
        model_dataset
        if hasattr(recbole.data.dataset, model_dataset)
        else f"{kinds.get(config['MODEL_TYPE'], '')}Dataset"
    )
    names = {
        "dataset_save_path": f"{config['dataset']}-{kind}.pth",
        "dataloaders_save_path": f"{config['dataset']}-for-{config['model']}-dataloader.pth",
    }
    folder = config["checkpoint_dir"]
    return {setting: config[setting] or os.path.join(folder, name) for setting, name in names.items()}


def _start_log(config: Config, log: bool) -> None:
    if not distributed.is_first():
        getLogger().setLevel(logging.ERROR)  # the first process logs for all
        return
    streams = sys.stdout, sys.stderr
    try:
        os.makedirs(f"log/{config['model']}", exist_ok=True)  # RecBole fails if two runs create it at the same time
        init_logger(config)
    except OSError as error:
        raise PrefError(
            f"the log file of model={config['model']!r} cannot be written ({error.strerror}): run in a folder "
            "where log/ can be created."
        ) from None
    # RecBole wraps these streams at each call; after hundreds of runs in one process, printing would fail.
    sys.stdout, sys.stderr = streams
    if log:
        getLogger().info(f"command: {shlex.join(sys.orig_argv)}")
        getLogger().debug(config)
        given = config.external_config_dict
        settings = {key: config[key] for key in given if config[key] != config.internal_config_dict.get(key)}
        lines = [f"{key}: {value}" for key, value in settings.items() if key not in ("model", "dataset")]
        heading = f"{config['model']} on {config['dataset']}; settings that differ from the defaults:"
        getLogger().info("\n  ".join([heading, *lines, "(state: DEBUG logs all settings)"]))
        for key in settings_without_effect(config):
            getLogger().warning(f"{key} has no effect on {config['model']}: leave it out.")


def _refuse_pickles(config: Config) -> None:
    """Refuse files of save_dataset and save_dataloaders, because unpickling can run any code."""
    for setting, path in _pickles(config).items():
        if os.path.exists(path) and not config["trust_checkpoint"]:
            raise PrefError(
                f"{path} ({setting}) is refused because RecBole pickled it, and unpickling can run any code: "
                "set trust_checkpoint: True if you made the file yourself, or remove it."
            )


def _seed_again(loaders: Loaders, config: Config) -> None:
    """Restore the random generators that RecBole removes from loaders to save them (save_dataloaders)."""
    for loader in loaders:
        if loader.generator is None:
            loader.generator = torch.Generator()
            loader.generator.manual_seed(config["seed"])
            loader.sampler.generator = loader.generator
