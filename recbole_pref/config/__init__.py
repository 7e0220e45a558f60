"""RecBole's ``Config`` with our property files and with settings that are checked.

Order of precedence: ``config_dict`` (which the command line fills) over files over defaults. The defaults are
RecBole's own, then ``properties/overall.yaml``, ``method/<Method>.yaml``, ``backbone/<Backbone>.yaml`` and
``dataset/<dataset>.yaml`` of this package.
"""

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

from recbole_pref.config.checks import AFTER_DEFAULTS, BEFORE_DEFAULTS
from recbole_pref.errors import PrefError, suggest
from recbole_pref.methods import METHODS, method_of
from recbole_pref.model.names import model_class
from recbole_pref.settings import plain_value, shown
from recbole_pref.settings.files import keys_of_models, load_properties, parse_value, shipped

# How RecBole's Config refuses a value, on purpose or by tripping over it.
_RECBOLES_REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError,
    AssertionError, SyntaxError, OverflowError,
)  # fmt: skip
_LONGEST_NAME = 100  # characters of a data set's name, which is part of the names of files


class Config(RecBoleConfig):
    """RecBole's ``Config`` that refuses what cannot work, in one sentence each.

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
        # A copy, because RecBole fills in parts.
        config_dict = {key: plain_value(value) for key, value in config_dict.items()} if config_dict else None
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except PrefError:
            raise
        except _RECBOLES_REFUSALS as error:
            raise PrefError(" ".join(str(error).split()) or repr(error)) from error

    def _load_internal_config_dict(self, model, cls, dataset):
        super()._load_internal_config_dict(model, cls, dataset)
        if method_of(cls) is None:
            # Baselines are evaluated as our models are; ours come through the plug-in for RecBole.
            stock_training = dict(self.internal_config_dict)
            load_properties(self, cls, dataset)
            kept = ["train_neg_sample_args"]
            if cls.type in (ModelType.CONTEXT, ModelType.DECISIONTREE):  # these predict labels, not ranks
                kept += ["metrics", "valid_metric"]
            for key in kept:
                if key in stock_training:
                    self.internal_config_dict[key] = stock_training[key]
            self._let_cross_entropy_have_no_negatives(cls)

    def _let_cross_entropy_have_no_negatives(self, cls):
        # RecBole refuses its own default negatives for its own default loss of sequential models.
        merged = {**self.internal_config_dict, **self.external_config_dict}
        by_loss_type = not hasattr(cls, "input_type") and merged.get("loss_type") == "CE"
        if by_loss_type and "train_neg_sample_args" not in self.external_config_dict:
            self.internal_config_dict["train_neg_sample_args"] = None

    def _get_model_and_dataset(self, model, dataset):
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

    def _load_config_files(self, file_list):
        merged = {}
        for file in map(shipped, file_list or ()):
            if not os.path.isfile(file):
                folder = Path(file).parent
                near = [str(path) for path in folder.glob("*.y*ml")] if folder.is_dir() else []
                raise PrefError(
                    f"config_files names {file!r}, which does not exist.{suggest(file, near)}"
                )
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

    def _convert_config_dict(self, config_dict):
        """Turn texts into numbers, lists and so on, without evaluating them as code."""
        for key, text in config_dict.items():
            if isinstance(text, str):
                config_dict[key] = parse_value(text)
        return config_dict

    def _load_cmd_line(self):
        """Read nothing: a command line reaches a configuration as ``config_dict``, where it is checked."""
        return {}

    def refuse_unread(self, keys: Iterable[str], where: str) -> None:
        """Refuse settings that have no default for this <Method><Backbone>: they would have no effect.

        Args:
            keys: settings that were given for this model alone.
            where: what messages begin with.

        Raises:
            PrefError: names the first of another method or backbone.
        """
        if method_of(self.model_class) is None:
            return
        of_losses = {name for method in METHODS.values() for name in method.setting_names}
        own = self.internal_config_dict
        foreign = (keys_of_models() | of_losses) - own.keys()
        for key in keys:
            if key in foreign:
                raise PrefError(f"{where}{self.model} has no setting {key}: leave it out.{suggest(key, own)}")

    def _set_default_parameters(self):
        for check in BEFORE_DEFAULTS:
            check(self)
        super()._set_default_parameters()
        for check in AFTER_DEFAULTS:
            check(self)


def given_data_path(config: Any) -> str:
    """Return ``data_path`` as it was given: RecBole appends the data set's name to it.

    Args:
        config: a configuration, or what a checkpoint holds of one.
    """
    return config["data_path"].removesuffix(config["dataset"]) or "."


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the settings that name files to read, absolute, for processes that work in other folders."""
    paths = {"data_path": given_data_path(config), "reference_dir": config["reference_dir"]}
    if config["reference"] not in ("none", "auto"):
        paths["reference"] = config["reference"]
    return {key: os.path.abspath(path) for key, path in paths.items() if path}


def digest_of_defaults(config: Config) -> str:
    """Return what tells runs with the same settings apart: a hash of all defaults, and of a plugin's file.

    Another version of a package or an edited property file gives another one.
    """
    # Of RecBole's own models this one follows the given loss_type.
    defaults = {key: value for key, value in config.internal_config_dict.items() if key != "train_neg_sample_args"}
    made_of = [defaults, getattr(method_of(config.model_class), "source", None)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()
