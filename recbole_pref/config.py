"""RecBole's ``Config`` with our property files and with settings that are checked.

Order of precedence, as RecBole's: command line over ``config_dict`` over files over defaults. The
defaults are RecBole's own, then ``properties/overall.yaml``, ``method/<Method>.yaml``,
``backbone/<Backbone>.yaml`` and ``dataset/<dataset>.yaml`` of this package.
"""

import ast
import os
import sys
from enum import Enum
from functools import lru_cache
from logging import getLogger
from pathlib import Path

import recbole
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator.register import metrics_dict
from recbole.utils import argument_list
from torch.nn import Module

from recbole_pref.errors import PrefError, suggest
from recbole_pref.objective import check_measured, check_objective
from recbole_pref.registry import METHODS, model_class
from recbole_pref.settings import (
    RECBOLE_SETTINGS,
    SETTINGS,
    check_recbole_setting,
    check_setting,
)

_HERE = Path(__file__).resolve().parent
# How RecBole's Config refuses a value, on purpose or by tripping over it.
_RECBOLES_REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError,
    AssertionError, SyntaxError, OverflowError,
)  # fmt: skip
# Keys that RecBole or the command line read and that stand in none of RecBole's property files.
_OTHER_KEYS = {
    "model", "dataset", "config_files", "nproc", "world_size", "ip", "port", "offset",
    "group_offset", "local_rank", "single_spec", "tail_ratio", "encoding", "numerical_features",
    "url", "ITEM_LIST_LENGTH_FIELD", "kg_reverse_r", "double_tower", "benchmark_filename",
    "neg_sampling", "training_neg_sample_num", "transform", "mask_ratio", "eta", "device", "debug",
    "HEAD_ENTITY_ID_FIELD", "log_wandb", "wandb_project", "discretization", "leave_one_num",
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args",
    "fit_intercept", "alpha", "pretrain_path", "train_stage", "dp_rate", "plots", "compare",
}  # fmt: skip


def properties_dir():
    """Return the folder of the property files, in an installed package or a checkout."""
    for folder in (_HERE / "properties", _HERE.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise PrefError("the property files of recbole_pref are missing: install the package again.")


def property_files(cls, dataset):
    """Return the property files that give a model class its defaults, in order.

    Args:
        cls (type): a model class; those of ours have ``preference_method``.
        dataset (str): name of the data set.

    Returns:
        list of Path: existing files, later ones win.
    """
    ours, stock = properties_dir(), Path(recbole.__file__).parent / "properties" / "model"
    method = getattr(cls, "preference_method", None)
    bases = [base.__name__ for base in reversed(cls.__mro__)]
    files = []
    if method is not None:
        # RecBole looked for <Method><Backbone>.yaml and so missed the backbone's own file.
        files += [stock / f"{base}.yaml" for base in bases]
    files.append(ours / "overall.yaml")
    if method is not None:
        files.append(ours / "method" / f"{method}.yaml")
    files += [ours / "backbone" / f"{base}.yaml" for base in bases]
    files.append(ours / "dataset" / f"{dataset}.yaml")
    return [file for file in files if file.is_file()]


def load_properties(config, cls, dataset):
    """Merge our property files into a config's defaults, below everything the user sets."""
    for file in property_files(cls, dataset):
        config._update_internal_config_dict(str(file))


@lru_cache(maxsize=1)
def known_keys():
    """Return every key that RecBole or this package reads: frozenset of str."""
    keys = set(SETTINGS) | set(RECBOLE_SETTINGS) | _OTHER_KEYS
    for name in ("general", "training", "evaluation", "dataset"):
        keys.update(getattr(argument_list, f"{name}_arguments"))
    for root in (Path(recbole.__file__).parent / "properties", properties_dir()):
        for file in root.rglob("*.yaml"):
            if file.parent.name != "tune":
                keys.update(_top_level_keys(file))
    return frozenset(keys)


def _top_level_keys(file):
    return {
        line.partition(":")[0].strip()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line and line[0] not in " #-\t" and ":" in line
    }


class Config(RecBoleConfig):
    """RecBole's ``Config`` that refuses what cannot work, in one sentence each.

    Raises:
        PrefError: unknown model, key or metric, a value out of range, a broken property file.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        config_dict = dict(config_dict) if config_dict else None
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except PrefError:
            raise
        except _RECBOLES_REFUSALS as error:
            raise PrefError(" ".join(str(error).split()) or repr(error)) from error
        self._check_keys()
        self._check_values()

    def _load_internal_config_dict(self, model, cls, dataset):
        super()._load_internal_config_dict(model, cls, dataset)
        if getattr(cls, "preference_method", None) is None:
            # Baselines are evaluated as our models are; ours come through the plug-in for RecBole.
            stock_training = dict(self.internal_config_dict)
            load_properties(self, cls, dataset)
            if "train_neg_sample_args" in stock_training:
                self.internal_config_dict["train_neg_sample_args"] = stock_training[
                    "train_neg_sample_args"
                ]
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
        elif isinstance(model, type) and issubclass(model, Module):
            cls = model
        else:
            raise PrefError(f"model={model!r} is neither a name nor a model class.")
        dataset = dataset if dataset is not None else self.external_config_dict["dataset"]
        return cls.__name__, cls, str(dataset)

    def _load_config_files(self, file_list):
        merged = {}
        for file in file_list or ():
            if not os.path.isfile(file):
                folder = Path(file).parent
                near = [str(path) for path in folder.glob("*.y*ml")] if folder.is_dir() else []
                raise PrefError(
                    f"config_files names {file!r}, which does not exist.{suggest(file, near)}"
                )
            try:
                with open(file, encoding="utf-8") as stream:
                    content = yaml.load(stream.read(), Loader=self.yaml_loader)
            except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
                reason = " ".join(str(error).split())
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
        """Read ``--key=value`` from the command line; values may hold ``=``."""
        if "ipykernel_launcher" in sys.argv[0]:
            return {}
        found, ignored = {}, []
        for argument in sys.argv[1:]:
            key, equals, value = argument[2:].partition("=")
            if not argument.startswith("--") or not equals:
                ignored.append(argument)
            elif found.setdefault(key, value) != value:
                raise PrefError(f"--{key} is given twice, as {found[key]!r} and {value!r}.")
        if ignored:
            getLogger().warning(f"command line args [{' '.join(ignored)}] are not used")
        found = self._convert_config_dict(found)
        unknown = sorted(set(found) - known_keys())
        if unknown:
            getLogger().warning(f"command line settings {unknown} are not known to RecBole-Pref")
        return found

    def _check_keys(self):
        given = {**self.file_config_dict, **self.variable_config_dict}
        if given.get("strict_config", True) is False:
            return
        of_model = known_keys()
        for key in given:
            if key not in of_model:
                raise PrefError(
                    f"{key}={given[key]!r} is not a setting of RecBole or RecBole-Pref."
                    f"{suggest(key, of_model) or ' Set strict_config: False to allow keys of your own.'}"
                )

    def _set_default_parameters(self):
        known = sorted(metrics_dict)
        metrics = self.final_config_dict.get("metrics")
        for metric in [metrics] if isinstance(metrics, str) else metrics or []:
            if not isinstance(metric, str) or metric.lower() not in metrics_dict:
                raise PrefError(
                    f"metrics names {metric!r}, which does not exist.{suggest(metric, known)}"
                )
        data_path = self.final_config_dict.get("data_path")
        if not isinstance(data_path, str):
            raise PrefError(f"data_path={data_path!r} is not accepted: set it to a folder.")
        for key in ("eval_args", "topk", "valid_metric", "metrics"):
            if not self.final_config_dict.get(key):
                raise PrefError(f"{key} is empty: set it or remove the line to use the default.")
        super()._set_default_parameters()
        self._check_valid_metric()

    def _check_valid_metric(self):
        final = self.final_config_dict
        check_measured(final["valid_metric"], final["metrics"], final["topk"], "valid_metric")
        if final.get("objective"):
            check_objective(final["objective"], final["metrics"], final["topk"])

    def _check_values(self):
        final = self.final_config_dict
        for key in SETTINGS:
            if key in final:
                check_setting(key, final[key])
        for key in RECBOLE_SETTINGS:
            if key in final and final[key] is not None:
                check_recbole_setting(key, final[key])
        method = METHODS.get(getattr(self.model_class, "preference_method", None))
        if method is None:
            return
        missing = [key for key in method.setting_names if final.get(key) is None]
        if missing:
            raise PrefError(f"{missing[0]} is not set: {method.name} needs it in a property file.")
        if final["lambda"] == 0 and final["ce_weight"] == 0:
            raise PrefError("lambda and ce_weight are both 0: nothing would be learnt, set one above 0.")
        if final["reference"] == "none" and final["lambda"] > 0 and method.uses_reference(final):
            raise PrefError(
                f"reference='none' is not possible: {method.name} compares with a reference model, "
                "set reference to auto or to the path of a checkpoint."
            )
        loss_type = self.external_config_dict.get("loss_type", "CE")
        if loss_type != "CE":
            raise PrefError(
                f"loss_type={loss_type!r} does not go with {self.model}: leave it at 'CE', "
                "the method brings its own loss."
            )


def parse_value(text):
    """Turn the text of a setting into its value: numbers, lists, dicts, True, None, or the text."""
    lower = text.strip().lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower in ("none", "~"):
        return None if lower == "~" or text.strip() == "None" else text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
    return value if isinstance(value, (str, int, float, list, tuple, dict, bool, Enum)) else text
