"""Read the property files (defaults and explanations) and parse settings from text."""

import ast
import copy
import importlib.util
import os
import re
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recbole_pref.errors import PrefError
from recbole_pref.methods import method_of
from recbole_pref.settings import RECBOLE_SETTINGS, SETTINGS

if TYPE_CHECKING:
    from recbole_pref.config import Config

_PACKAGE = Path(__file__).resolve().parents[1]
# Keys that RecBole or the command line read, but that are missing in RecBole's property files.
_OTHER_KEYS = {
    "model", "dataset", "config_files", "nproc", "world_size", "ip", "port", "offset",
    "group_offset", "local_rank", "single_spec", "tail_ratio", "encoding", "numerical_features",
    "url", "ITEM_LIST_LENGTH_FIELD", "kg_reverse_r", "double_tower", "benchmark_filename",
    "neg_sampling", "training_neg_sample_num", "transform", "mask_ratio", "eta", "device",
    "HEAD_ENTITY_ID_FIELD", "log_wandb", "wandb_project", "discretization", "leave_one_num",
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args",
    "fit_intercept", "alpha", "pretrain_path", "train_stage", "dp_rate",
}  # fmt: skip


def properties_dir() -> Path:
    """Return the folder of the property files, in an installed package or a checkout."""
    for folder in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise PrefError("the property files of recbole_pref are missing: install the package again.")


def stock_properties_dir() -> Path:
    """Return the folder of RecBole's own property files, without importing RecBole."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise PrefError("RecBole is not installed: run 'pip install --no-deps recbole==1.2.1'.")
    return Path(spec.origin).parent / "properties"


def shipped(file: str) -> str:
    """Return ``file`` if it exists, else the property file of this name (``recommended/LPO.yaml``) if there is one."""
    packaged = properties_dir() / file
    return str(packaged) if not os.path.isfile(file) and packaged.is_file() else file


def defaults_of(cls: type, dataset: str) -> list[Path | dict[str, Any]]:
    """Return the sources of the defaults of a model class, in order.

    Args:
        cls: a model class; ours have the attribute ``preference_method``.
        dataset: name of the data set.

    Returns:
        Property files that exist, and the defaults of a method from outside (a dict); later ones win.
    """
    ours, stock = properties_dir(), stock_properties_dir() / "model"
    method = method_of(cls)
    bases = [base.__name__ for base in reversed(cls.__mro__)]
    files: list[Path | dict[str, Any]] = []
    if method is not None:
        # RecBole looked for <Method><Backbone>.yaml and so missed the backbone's own file.
        files += [stock / f"{base}.yaml" for base in bases]
    files.append(ours / "overall.yaml")
    if method is not None:
        files.append(method.defaults or ours / "method" / f"{method.name}.yaml")
    files += [ours / "backbone" / f"{base}.yaml" for base in bases]
    files.append(ours / "dataset" / f"{dataset}.yaml")
    return [file for file in files if isinstance(file, dict) or file.is_file()]


def backbone_settings(config: Any, backbone_class: type) -> dict[str, Any]:
    """Return the settings in the property files of a backbone, RecBole's and ours."""
    folders = (stock_properties_dir() / "model", properties_dir() / "backbone")
    files = [folder / f"{base.__name__}.yaml" for base in backbone_class.__mro__ for folder in folders]
    keys = {key for file in files if file.is_file() for key in top_level_keys(file)}
    return {key: config[key] for key in sorted(keys)}


def load_properties(config: "Config", cls: type, dataset: str) -> None:
    """Merge our property files into the defaults of a configuration; the user's settings override them."""
    for defaults in defaults_of(cls, dataset):
        if isinstance(defaults, dict):
            config.internal_config_dict.update(copy.deepcopy(defaults))  # a copy: RecBole changes nested values
        else:
            config._update_internal_config_dict(str(defaults))


def readable_keys() -> frozenset[str]:
    """Return every key that RecBole or this package reads."""
    return _stock_keys() | SETTINGS.keys()  # methods from outside add keys to SETTINGS


@lru_cache(maxsize=1)
def _stock_keys() -> frozenset[str]:
    keys = set(RECBOLE_SETTINGS) | _OTHER_KEYS | _shared_keys()
    for root in (stock_properties_dir(), properties_dir()):
        for file in root.rglob("*.yaml"):
            if file.parent.name != "tune":
                keys.update(top_level_keys(file))
    return frozenset(keys)


@lru_cache(maxsize=1)
def keys_of_models() -> frozenset[str]:
    """Return the keys that only some of RecBole's models or of our methods read."""
    stock, ours = stock_properties_dir(), properties_dir()
    files = [*stock.glob("model/*.yaml"), *ours.glob("method/*.yaml"), *ours.glob("backbone/*.yaml")]
    return frozenset().union(*map(top_level_keys, files)) - _shared_keys()


def _shared_keys() -> set[str]:
    """Return the keys that RecBole lists for every model."""
    from recbole.utils import argument_list

    kinds = ("general", "training", "evaluation", "dataset")
    return set().union(*(getattr(argument_list, f"{kind}_arguments") for kind in kinds))


def top_level_keys(file: Path) -> set[str]:
    """Return the top-level keys of a YAML file, without parsing its values."""
    return {
        line.partition(":")[0].strip()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line and line[0] not in " #-\t" and ":" in line
    }


class FlowLoader(yaml.SafeLoader):
    """Parse numbers such as 1e-3 as RecBole's YAML loader does."""


FlowLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _flow_value(text: str) -> Any:
    """Parse a text that is a list or a mapping in YAML's flow style; return any other text unchanged."""
    if text.strip()[:1] not in ("[", "{"):
        return text
    try:
        return yaml.load(text, Loader=FlowLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def parse_value(text: str) -> Any:
    """Convert the text of a setting to a number, list, dict, bool or None; return any other text unchanged.

    Lists and dicts may be written in Python or in YAML syntax.
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
