"""The property files, which hold defaults and explanations, and how settings are read from text."""

import ast
import copy
import importlib.util
import os
import re
from enum import Enum
from functools import lru_cache
from pathlib import Path

import yaml

from recbole_pref.errors import PrefError
from recbole_pref.methods import method_of
from recbole_pref.settings import RECBOLE_SETTINGS, SETTINGS

_PACKAGE = Path(__file__).resolve().parents[1]
# Keys that RecBole or the command line read and that stand in none of RecBole's property files.
_OTHER_KEYS = {
    "model", "dataset", "config_files", "nproc", "world_size", "ip", "port", "offset",
    "group_offset", "local_rank", "single_spec", "tail_ratio", "encoding", "numerical_features",
    "url", "ITEM_LIST_LENGTH_FIELD", "kg_reverse_r", "double_tower", "benchmark_filename",
    "neg_sampling", "training_neg_sample_num", "transform", "mask_ratio", "eta", "device",
    "HEAD_ENTITY_ID_FIELD", "log_wandb", "wandb_project", "discretization", "leave_one_num",
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args",
    "fit_intercept", "alpha", "pretrain_path", "train_stage", "dp_rate",
}  # fmt: skip


def properties_dir():
    """Return the folder of the property files, in an installed package or a checkout."""
    for folder in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise PrefError("the property files of recbole_pref are missing: install the package again.")


def stock_properties_dir():
    """Return the folder of RecBole's own property files, without importing RecBole."""
    return Path(importlib.util.find_spec("recbole").origin).parent / "properties"


def shipped(file):
    """Return the path of a file of this package (``recommended/LPO.yaml``) where there is no such file here."""
    own = properties_dir() / file
    return str(own) if not os.path.isfile(file) and own.is_file() else file


def defaults_of(cls, dataset):
    """Return what gives a model class its defaults, in order.

    Args:
        cls (type): a model class; those of ours have ``preference_method``.
        dataset (str): name of the data set.

    Returns:
        list of Path or dict: existing property files, and the defaults of a method from outside; later ones win.
    """
    ours, stock = properties_dir(), stock_properties_dir() / "model"
    method = method_of(cls)
    bases = [base.__name__ for base in reversed(cls.__mro__)]
    files = []
    if method is not None:
        # RecBole looked for <Method><Backbone>.yaml and so missed the backbone's own file.
        files += [stock / f"{base}.yaml" for base in bases]
    files.append(ours / "overall.yaml")
    if method is not None:
        files.append(method.defaults or ours / "method" / f"{method.name}.yaml")
    files += [ours / "backbone" / f"{base}.yaml" for base in bases]
    files.append(ours / "dataset" / f"{dataset}.yaml")
    return [file for file in files if isinstance(file, dict) or file.is_file()]


def load_properties(config, cls, dataset):
    """Merge our property files into a config's defaults, below everything the user sets."""
    for defaults in defaults_of(cls, dataset):
        if isinstance(defaults, dict):
            config.internal_config_dict.update(copy.deepcopy(defaults))  # RecBole fills in parts
        else:
            config._update_internal_config_dict(str(defaults))


def known_keys():
    """Return every key that RecBole or this package reads: frozenset of str."""
    return _stock_keys() | SETTINGS.keys()  # to which methods from outside add theirs


@lru_cache(maxsize=1)
def _stock_keys():
    keys = set(RECBOLE_SETTINGS) | _OTHER_KEYS | _shared_keys()
    for root in (stock_properties_dir(), properties_dir()):
        for file in root.rglob("*.yaml"):
            if file.parent.name != "tune":
                keys.update(top_level_keys(file))
    return frozenset(keys)


@lru_cache(maxsize=1)
def keys_of_models():
    """Return the keys that some of RecBole's models or of our methods read and others do not: frozenset of str."""
    stock, ours = stock_properties_dir(), properties_dir()
    files = [*stock.glob("model/*.yaml"), *ours.glob("method/*.yaml"), *ours.glob("backbone/*.yaml")]
    return frozenset().union(*map(top_level_keys, files)) - _shared_keys()


def _shared_keys():
    """Return the keys that RecBole lists for every model: set of str."""
    from recbole.utils import argument_list

    kinds = ("general", "training", "evaluation", "dataset")
    return set().union(*(getattr(argument_list, f"{kind}_arguments") for kind in kinds))


def top_level_keys(file):
    return {
        line.partition(":")[0].strip()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line and line[0] not in " #-\t" and ":" in line
    }


class FlowLoader(yaml.SafeLoader):
    """Reads numbers such as 1e-3, as RecBole's loader of files does."""


FlowLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _flow_value(text):
    """Return the list or mapping that a text is in YAML, else the text."""
    if text.strip()[:1] not in ("[", "{"):
        return text
    try:
        return yaml.load(text, Loader=FlowLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def parse_value(text):
    """Turn the text of a setting into its value: numbers, lists, dicts, True, None, or the text.

    Lists and dicts may be written as in Python or as in a YAML file.
    """
    lower = text.strip().lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower in ("none", "~"):
        return None if lower == "~" or text.strip() == "None" else text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        value = _flow_value(text)
    return value if isinstance(value, (str, int, float, list, tuple, dict, bool, Enum)) else text
