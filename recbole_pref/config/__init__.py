"""RecBole's ``Config`` with our property files and with checks of all settings.

Settings in ``config_dict`` (which also holds those of the command line) override config files, and files override
defaults. The defaults are read in this order, and later ones win: RecBole's own, ``properties/overall.yaml``,
``method/<Method>.yaml``, ``backbone/<Backbone>.yaml`` and ``dataset/<dataset>.yaml`` of this package.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType
from torch.nn import Module

from recbole_pref.checkpoint import to_plain
from recbole_pref.config.checks import AFTER_DEFAULTS, BEFORE_DEFAULTS
from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS, method_of
from recbole_pref.model.names import model_class
from recbole_pref.settings import PRIORS, plain_value, shown
from recbole_pref.settings.files import keys_of_models, load_properties, parse_value, shipped

# The errors with which RecBole's Config refuses a value, on purpose or by accident.
_RECBOLE_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError,
    AssertionError, SyntaxError, OverflowError,
)  # fmt: skip
CHECKPOINT_SETTINGS = ("reference", "prior", "init_from")  # their values are paths of checkpoints, or words
_parsed: dict[tuple[str, int, int], Any] = {}  # content of property files by path, time and size
_LONGEST_NAME = 100  # characters; file names contain the name of the data set


class Config(RecBoleConfig):
    """RecBole's ``Config``, which refuses settings that cannot work, with a sentence for each.

    Raises:
        PrefError: unknown model, key or metric, a value out of range, a broken property file.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: list[str] | None = None,
        config_dict: dict[str, Any] | None = None,
    ) -> None:
        if config_dict and not isinstance(config_dict, dict):
            raise PrefError(f"config_dict={shown(config_dict)} is not accepted: pass a dict of settings.")
        if isinstance(config_file_list, str):
            raise PrefError(f"config_file_list={shown(config_file_list)} is a text: pass a list of files.")
        # A copy, because RecBole changes nested values.
        config_dict = {key: plain_value(value) for key, value in config_dict.items()} if config_dict else None
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except PrefError:
            raise
        except _RECBOLE_ERRORS as error:
            raise PrefError(" ".join(str(error).split()) or repr(error)) from error

    def _update_internal_config_dict(self, file: str) -> dict[str, Any] | None:
        """Merge a property file into the defaults. Files are parsed once, because PyYAML's parser is slow."""
        state = os.stat(file)
        key = (file, state.st_mtime_ns, state.st_size)
        if key not in _parsed:
            with open(file, encoding="utf-8") as text:
                _parsed[key] = yaml.load(text, Loader=self.yaml_loader)
        content = copy.deepcopy(_parsed[key])  # RecBole changes nested values
        self.internal_config_dict.update(content or {})
        return content

    def _load_internal_config_dict(self, model: str, cls: Any, dataset: str) -> None:
        super()._load_internal_config_dict(model, cls, dataset)
        if method_of(cls) is None:
            # Evaluate baselines with the same defaults as our models, which read them in compat.py.
            stock_training = dict(self.internal_config_dict)
            load_properties(self, cls, dataset)
            stock_keys = ["train_neg_sample_args"]
            if cls.type in (ModelType.CONTEXT, ModelType.DECISIONTREE):  # these predict labels, not ranks
                stock_keys += ["metrics", "valid_metric"]
            for key in stock_keys:
                if key in stock_training:
                    self.internal_config_dict[key] = stock_training[key]
            self._allow_cross_entropy_without_negatives(cls)

    def _allow_cross_entropy_without_negatives(self, cls: type) -> None:
        # RecBole's default negatives are not valid with its default loss for sequential models.
        merged = {**self.internal_config_dict, **self.external_config_dict}
        by_loss_type = not hasattr(cls, "input_type") and merged.get("loss_type") == "CE"
        if by_loss_type and "train_neg_sample_args" not in self.external_config_dict:
            self.internal_config_dict["train_neg_sample_args"] = None

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = model if model is not None else self.external_config_dict.get("model")
        if model is None:
            raise PrefError("model is not set: pass --model=LPOSASRec or name one in a config file.")
        if dataset is None and self.external_config_dict.get("dataset") is None:
            raise PrefError("dataset is not set: pass --dataset=ml-100k or name one in a config file.")
        if isinstance(model, str):
            cls = model_class(model)
            if not isinstance(cls, type):  # a name such as __init__, which every module has
                raise PrefError(f"model={shown(model)} does not exist: --list prints all.")
        elif isinstance(model, type) and issubclass(model, Module):
            cls = model
        else:
            raise PrefError(f"model={shown(model)} is neither a name nor a model class.")
        dataset = str(dataset if dataset is not None else self.external_config_dict["dataset"])
        if len(dataset) > _LONGEST_NAME:
            raise PrefError(
                f"dataset={shown(dataset)} is longer than {_LONGEST_NAME} characters: rename its folder and its files."
            )
        if not re.fullmatch(r"[^/\\\0]+", dataset) or dataset in (".", ".."):
            raise PrefError(
                f"dataset={shown(dataset)} is not the name of a data set: give the name of its folder, and the folder "
                "that contains it as data_path."
            )
        return cls.__name__, cls, dataset

    def _load_config_files(self, file_list: list[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in map(shipped, file_list or ()):
            if not os.path.isfile(file):
                folder = Path(file).parent
                candidates = [str(path) for path in folder.glob("*.y*ml")] if folder.is_dir() else []
                raise PrefError(f"config_files names {file!r}, which does not exist.{suggest(file, candidates)}")
            try:
                with open(file, encoding="utf-8") as stream:
                    content = yaml.load(stream.read(), Loader=self.yaml_loader)
            except (yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
                reason = " ".join(str(error).split())[:300]
                raise PrefError(f"config file {file!r} is not valid YAML: {reason}") from None
            if content is not None and not isinstance(content, dict):
                raise PrefError(f"config file {file!r} must hold lines of the form 'key: value'.")
            merged.update(content or {})
        return merged

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Convert texts to numbers, lists and so on; RecBole would evaluate them as code."""
        for key, text in config_dict.items():
            if isinstance(text, str):
                config_dict[key] = parse_value(text)
        return config_dict

    def _load_cmd_line(self) -> dict[str, Any]:
        """Return no settings: the command line passes its settings in ``config_dict``."""
        return {}

    def refuse_unread(self, keys: Iterable[str], where: str) -> None:
        """Refuse settings that this <Method><Backbone> does not read.

        Args:
            keys: settings that were given for this model alone.
            where: the beginning of the message.

        Raises:
            PrefError: names the first setting of another method or backbone.
        """
        if method_of(self.model_class) is None:
            return
        loss_settings = {name for method in METHODS.values() for name in method.setting_names}
        defaults = self.internal_config_dict
        unread = (keys_of_models() | loss_settings) - defaults.keys()
        for key in keys:
            if key in unread:
                raise PrefError(f"{where}{self.model} has no setting {key}: leave it out.{suggest(key, defaults)}")

    def _set_default_parameters(self) -> None:
        for check in BEFORE_DEFAULTS:
            check(self)
        super()._set_default_parameters()
        for check in AFTER_DEFAULTS:
            check(self)


def given_data_path(config: Any) -> str:
    """Return ``data_path`` as the user gave it; RecBole appends the name of the data set.

    Args:
        config: a configuration, or the one that a checkpoint holds.
    """
    return config["data_path"].removesuffix(config["dataset"]) or "."


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the settings with paths of input files, as absolute paths for processes in other working folders."""
    paths = {"data_path": given_data_path(config), "reference_dir": config["reference_dir"]}
    paths |= {key: config[key] for key in CHECKPOINT_SETTINGS if names_a_checkpoint(config[key])}
    return {key: os.path.abspath(path) for key, path in paths.items() if path}


def portable_settings(config: Config) -> dict[str, Any]:
    """Return the settings of files, dict and command line, without model and data set, as plain values.

    Paths of input files are absolute, so that a process in another working folder reads the same files.
    """
    given = {**config.external_config_dict, **absolute_paths(config)}
    return to_plain({key: value for key, value in given.items() if key not in ("model", "dataset")}, other=str)


def names_a_checkpoint(value: str | None) -> bool:
    """Return whether a value of ``CHECKPOINT_SETTINGS`` is a path, not a word such as ``auto``."""
    return value not in (None, "none", "auto", *PRIORS)


def digest_of_defaults(config: Config) -> str:
    """Return a hash of all defaults and of the file of a plug-in.

    Runs with the same settings differ in it when a package has another version or a property file was edited.
    """
    # For RecBole's own models this default depends on the loss_type of the user.
    defaults = {key: value for key, value in config.internal_config_dict.items() if key != "train_neg_sample_args"}
    parts = [defaults, getattr(method_of(config.model_class), "source", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
