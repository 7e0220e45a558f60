"""The checks of a configuration before any data are read, in the order in which they run.

Each check takes the configuration. It raises a ``PrefError`` with one sentence, or converts a value to the form
that RecBole needs.
"""

import codecs
import importlib.util
import os
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

from recbole.evaluator.register import metrics_dict
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.objective import check_measured, check_objective
from recbole_pref.methods import method_of
from recbole_pref.model import transfer
from recbole_pref.model.backbones import backbone_of
from recbole_pref.model.prior import is_used
from recbole_pref.settings import (
    CHOSEN_WEIGHTS,
    LINEAR_SETTINGS,
    PRIORS,
    RECBOLE_SETTINGS,
    SETTINGS,
    attribute_of_settings,
    check_clipping,
    check_columns,
    check_discretization,
    check_eval_args,
    check_interval,
    check_negatives,
    check_setting,
    settings_with,
    shown,
)
from recbole_pref.settings.files import readable_keys
from recbole_pref.settings.setting import LARGEST

if TYPE_CHECKING:
    from recbole_pref.config import Config

_ANY_DATA_SET = {"inter": ["user_id", "item_id"]}  # RecBole's load_col for a data set without a property file
_SEQUENTIAL_EVAL_ARGS = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
_TRANSFORM_KEYS = {"crop_itemseq": "eta", "reorder_itemseq": "beta"}  # what RecBole's transforms read
_NESTED_KEYS = {"eval_args": ("split", "order", "group_by", "mode")}  # keys that belong below another key


def _is_sequential(config: "Config") -> bool:
    return getattr(config.model_class, "type", None) == ModelType.SEQUENTIAL


def keys_are_known(config: "Config") -> None:
    """Refuse keys that neither RecBole nor this package reads."""
    given = config.external_config_dict
    if given.get("strict_config", True) is False:
        return
    readable, options = readable_keys(), settings_with(scope="option")
    for key in given:
        if key in options:
            raise PrefError(
                f"{key}={shown(given[key])} is not a setting but an option of the command line: write "
                f"--{key}=... there, or pass it to the function in Python."
            )
        for above, parts in _NESTED_KEYS.items():
            if key in parts and not isinstance(given.get(above), dict):
                raise PrefError(f"{key}={shown(given[key])} is a part of {above}: indent its line below {above}.")
        if key not in readable:
            raise PrefError(
                f"{shown(str(key))[1:-1]}={shown(given[key])} is not a setting of RecBole or RecBole-Pref."
                f"{suggest(key, readable) or ' Set strict_config: False to allow keys of your own.'}"
            )


def values_are_accepted(config: "Config") -> None:
    """Refuse values that their settings do not accept, and convert the others to the form that RecBole reads."""
    final = config.final_config_dict
    own = getattr(config.model_class, "own_settings", {})
    for key in own.keys() & final.keys():
        own[key].check(key, final[key])
    for settings in (SETTINGS, RECBOLE_SETTINGS):
        for key, setting in settings.items():
            if key not in final or key in own:
                continue
            value = final[key]
            if setting.path and value is not None and not isinstance(value, bool):
                value = os.path.expanduser(str(value))  # a folder may be called 2024
            setting.check(key, value)
            final[key] = _converted(key, value)


def _converted(key: str, value: Any) -> Any:
    """Return an accepted value in the form that RecBole reads."""
    setting = SETTINGS.get(key) or RECBOLE_SETTINGS[key]
    if setting.kind is int and isinstance(value, float):
        return int(value)  # YAML reads 1e3 as 1000.0
    if setting.kind is list and isinstance(value, tuple):  # --metrics=Hit,NDCG
        value = list(value)
    if key in RECBOLE_SETTINGS and setting.kind is list and isinstance(value, str):
        return [value]
    if key == "numerical_features":
        return value or []
    return value or None if key in ("threshold", "benchmark_filename", "seq_len") else value


def texts_and_numbers_fit(config: "Config") -> None:
    """Refuse numbers beyond 64 bits and texts that are not UTF-8."""
    for key, value in config.final_config_dict.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            raise PrefError(f"{key}={shown(value)} is not accepted: set it to a smaller number.")
        if isinstance(value, str) and not _is_utf8(value):
            raise PrefError(f"{key}={shown(value)} is not accepted: write it in UTF-8.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates: the command line was not UTF-8
        return False
    return True


def run_stem_is_a_file_name(config: "Config") -> None:
    """Refuse a ``run_stem`` that cannot be the beginning of a file name."""
    stem = config.final_config_dict.get("run_stem")
    if stem and (os.path.basename(stem) != stem or len(stem.encode()) > 200):
        raise PrefError(f"run_stem={shown(stem)} is not accepted: set it to a file name of at most 200 characters.")


def gpu_id_names_devices(config: "Config") -> None:
    """Refuse a ``gpu_id`` that is neither a number nor a list of numbers."""
    final = config.final_config_dict
    gpu = final.get("gpu_id")
    if isinstance(gpu, list):  # from YAML or JSON
        gpu = final["gpu_id"] = tuple(gpu)
    several = isinstance(gpu, tuple) and all(type(number) is int for number in gpu)
    if not several and (not isinstance(gpu, (str, int)) or not str(gpu).isprintable()):
        raise PrefError(f"gpu_id={shown(gpu)} is not accepted: set it to a number or to several, such as '0,1'.")


def wandb_is_installed(config: "Config") -> None:
    """Refuse ``log_wandb`` if the package wandb is not installed."""
    if config.final_config_dict.get("log_wandb") and importlib.util.find_spec("wandb") is None:
        raise PrefError("log_wandb=True needs the package wandb: run 'pip install wandb' or leave it out.")


def sequential_defaults(config: "Config") -> None:
    """Set the columns and the split that sequential models need, unless the user sets them."""
    final = config.final_config_dict
    if not _is_sequential(config):
        return
    given = config.external_config_dict.keys()
    if final["load_col"] == _ANY_DATA_SET and not given & {"load_col", "benchmark_filename"}:
        final["load_col"] = {"inter": [final[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]}
    if isinstance(final["eval_args"], dict):
        # RecBole completes eval_args with a random 80/10/10 split, which is not its default for sequential models.
        final["eval_args"] = {**_SEQUENTIAL_EVAL_ARGS, **final["eval_args"]}


def time_column_is_loaded(config: "Config") -> None:
    """Load the time column if interactions are ordered by time; without it RecBole fails late."""
    final = config.final_config_dict
    columns, time = (final.get("load_col") or {}).get("inter"), final.get("TIME_FIELD")
    by_time = isinstance(final["eval_args"], dict) and final["eval_args"].get("order") == "TO"
    if by_time and isinstance(columns, list) and time not in columns and not final.get("benchmark_filename"):
        final["load_col"] = {**final["load_col"], "inter": [*columns, time]}


def eval_args_are_valid(config: "Config") -> None:
    """Refuse ``eval_args`` on which RecBole fails."""
    check_eval_args(config.final_config_dict["eval_args"])


def nested_settings_are_valid(config: "Config") -> None:
    """Refuse negatives and gradient clipping on which RecBole or torch fails."""
    final = config.final_config_dict
    check_negatives(final.get("train_neg_sample_args") or {})
    check_clipping(final.get("clip_grad_norm") or {})


def intervals_are_valid(config: "Config") -> None:
    """Refuse filters by numbers of interactions that are not intervals."""
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        if config.final_config_dict.get(key) is not None:
            check_interval(key, config.final_config_dict[key])


def columns_are_valid(config: "Config") -> None:
    """Refuse settings of columns on which RecBole fails."""
    final = config.final_config_dict
    for key in ("load_col", "unload_col", "unused_col"):
        check_columns(key, final.get(key) or {})
        if final.get(key):
            final[key] = {source: columns or [] for source, columns in final[key].items()}
    for field, column in (final.get("preload_weight") or {}).items():
        if not isinstance(column, str):
            raise PrefError(f"preload_weight, {field}: {shown(column)} is not accepted: name a column.")
    check_discretization(final.get("discretization") or {})
    for field, length in (final.get("seq_len") or {}).items():
        check_setting("MAX_ITEM_LIST_LENGTH", length, f"seq_len, {field}")
    keys: dict[Any, str] = {}
    for key in sorted(settings_with(names_column=True)):
        other = keys.setdefault(final.get(key), key)
        if other != key:
            raise PrefError(f"{key}={shown(final[key])} is the {other} as well: give it another name.")


def encoding_exists(config: "Config") -> None:
    """Refuse an ``encoding`` that Python does not know."""
    encoding = config.final_config_dict.get("encoding")
    try:
        b"".decode(codecs.lookup(encoding or "utf-8").name)
    except LookupError:
        raise PrefError(f"encoding={shown(encoding)} does not exist: use utf-8.") from None


def benchmark_has_three_parts(config: "Config") -> None:
    """Refuse a ``benchmark_filename`` that does not name training, validation and test."""
    parts = config.final_config_dict.get("benchmark_filename")
    if parts and len(parts) != 3:
        raise PrefError(
            f"benchmark_filename={shown(parts)} is not accepted: name three parts such as [train, valid, test]."
        )


def transform_is_possible(config: "Config") -> None:
    """Refuse a ``transform`` whose own settings are missing, or that does not work with the model."""
    final = config.final_config_dict
    transform, needed = final.get("transform"), config.internal_config_dict.get("transform")
    if needed and transform != needed:
        raise PrefError(f"transform={shown(transform)} is not possible with {config.model}: leave it at {needed!r}.")
    if transform == "mask_itemseq":
        ratio, length = final.get("mask_ratio"), final["MAX_ITEM_LIST_LENGTH"]
        if ratio is None or int(ratio * length) < 1:
            raise PrefError(
                f"mask_ratio={ratio} masks no item of MAX_ITEM_LIST_LENGTH={length}: set a larger one, as "
                "transform='mask_itemseq' needs it."
            )
    key = _TRANSFORM_KEYS.get(transform)
    if key and not isinstance(final.get(key), Real):
        raise PrefError(f"{key} is not set: transform={transform!r} needs it, as a share below 1.")


def topk_is_valid(config: "Config") -> None:
    """Refuse cut-offs that are not whole numbers above 0."""
    final = config.final_config_dict
    if isinstance(final.get("topk"), tuple):  # --topk=5,10
        final["topk"] = list(final["topk"])
    topk = final.get("topk")
    cutoffs = topk if isinstance(topk, list) else [topk]
    valid = all(isinstance(k, int) and not isinstance(k, bool) and 0 < k < 2**31 for k in cutoffs)
    if not 0 < len(cutoffs) <= 100 or not valid:
        raise PrefError(f"topk={shown(topk)} is not accepted: set it to at most 100 whole numbers above 0, as [5, 10].")


def metrics_exist(config: "Config") -> None:
    """Refuse unknown metrics and empty settings of the evaluation."""
    final = config.final_config_dict
    metrics = final.get("metrics")
    for metric in [metrics] if isinstance(metrics, str) else metrics or []:
        if not isinstance(metric, str) or metric.lower() not in metrics_dict:
            raise PrefError(
                f"metrics names {shown(metric)}, which does not exist.{suggest(metric, sorted(metrics_dict))}"
            )
    for key in ("eval_args", "topk", "valid_metric", "metrics"):
        if not final.get(key):
            raise PrefError(f"{key} is empty: set it or remove the line to use the default.")


def settings_are_read_by_the_model(config: "Config") -> None:
    """Refuse settings of our training for RecBole's own models, which do not read them."""
    final = config.final_config_dict
    if method_of(config.model_class) is not None:
        return
    loss_type = final.get("loss_type")
    exact = str(loss_type).upper()
    if loss_type not in (None, exact) and exact in ("CE", "BPR"):
        raise PrefError(f"loss_type={loss_type!r} is not accepted. Did you mean '{exact}'?")
    off = attribute_of_settings("off")
    given = [key for key in settings_with(of_our_models=True) if final.get(key) not in (None, off.get(key))]
    if _objective_part(config, "of_reference"):
        given.append("objective: of_reference")
    if given:
        raise PrefError(
            f"{min(given)} has no effect on {config.model}, which is RecBole's own: leave it out, or use a "
            "<Method><Backbone> model (CESASRec is SASRec with cross-entropy)."
        )


def method_is_possible(config: "Config") -> None:
    """Refuse settings with which a method has no loss or lacks a setting."""
    final, method = config.final_config_dict, method_of(config.model_class)
    if method is None:
        return
    missing = [key for key in method.setting_names if final.get(key) is None]
    if missing:
        raise PrefError(f"{missing[0]} is not set: {method.name} needs it in a property file.")
    if final["lambda"] == 0 and final["ce_weight"] == 0:
        raise PrefError("lambda and ce_weight are both 0, so there is no loss: set one of them above 0.")
    if "tawin_anchor" in method.setting_names and final["lambda"] > 0:
        _check_anchor(config)
    loss_type = config.external_config_dict.get("loss_type", "CE")
    if loss_type != "CE":
        raise PrefError(
            f"loss_type={shown(loss_type)} is not possible with {config.model}: leave it at 'CE', "
            "the method defines the loss."
        )


def prior_is_possible(config: "Config") -> None:
    """Refuse a prior that does not work with the model or with other settings."""
    final = config.final_config_dict
    if method_of(config.model_class) is None or not is_used(final):
        return
    if backbone_of(config.model_class) is None:
        raise PrefError(
            f"prior={shown(final['prior'])} does not work with {config.model}: its scores are not products of "
            "representations and item vectors; set it to none or choose SASRec, GRU4Rec or Caser."
        )
    names = [*PRIORS, "none"]
    if final["prior"] not in names and not os.path.isfile(final["prior"]):
        raise PrefError(
            f"prior={shown(final['prior'])} is neither one of {', '.join(names)} nor a file: correct it."
            f"{suggest(final['prior'], names)}"
        )
    weight = final["prior_weight"]
    if weight in CHOSEN_WEIGHTS and final["prior_in_training"]:
        raise PrefError(
            f"prior_weight={weight!r} is chosen after training, and prior_in_training is True: set prior_weight to "
            "learned or to a number such as 1."
        )
    if weight == "objective" and not final["objective"]:
        raise PrefError(
            "prior_weight='objective' needs the setting objective, and that is empty: set it, such as "
            "{weights: {TailNDCG@10: 1.0}, at_least: {NDCG@10: 0.05}}, or set prior_weight: auto."
        )
    if weight == "learned" and not final["prior_in_training"]:
        raise PrefError("prior_weight='learned' is learned in training: set prior_in_training: True as well.")


def reference_is_there(config: "Config") -> None:
    """Refuse ``reference: none`` if a loss, a sampler or the objective needs a reference model."""
    final, method = config.final_config_dict, method_of(config.model_class)
    if method is None or final["reference"] != "none":
        return
    if _objective_part(config, "of_reference"):
        raise PrefError(
            "objective: of_reference needs a reference model, and reference is 'none': set reference to "
            "auto or to the path of a checkpoint."
        )
    if method.needs_reference(final):
        by_loss = method.compares_with_reference(final)
        what = f"{method.name} compares with" if by_loss else "neg_sampler='reference_pool' draws from"
        raise PrefError(
            f"reference='none' is not possible: {what} a reference model, "
            "set reference to auto or to the path of a checkpoint."
        )


def init_from_is_possible(config: "Config") -> None:
    """Refuse an ``init_from`` that this run cannot start from."""
    final = config.final_config_dict
    if not final.get("init_from"):
        return
    if final.get("resume"):
        raise PrefError(
            f"init_from={shown(final['init_from'])} and resume={shown(final['resume'])} exclude each other: a resumed "
            "run has its parameters already, leave init_from out."
        )
    transfer.load(final["init_from"], config)


def _objective_part(config: "Config", part: str) -> Any:
    objective = config.final_config_dict.get("objective")
    return objective.get(part) if isinstance(objective, dict) else None


def _check_anchor(config: "Config") -> None:
    final = config.final_config_dict
    anchor, negatives = final["tawin_anchor"], final["num_negatives"]
    if anchor == "auto" and not str(final["valid_metric"]).partition("@")[2].isdigit():
        raise PrefError(
            "tawin_anchor='auto' uses the cut-off of valid_metric, and "
            f"valid_metric={shown(final['valid_metric'])} has none: set tawin_anchor to a whole number."
        )
    if anchor != "auto" and anchor >= negatives:
        raise PrefError(
            f"tawin_anchor={anchor} is not below num_negatives={negatives}: set "
            f"num_negatives to {2 * (anchor + 1)} or tawin_anchor to a smaller rank."
        )


def valid_metric_is_measured(config: "Config") -> None:
    """Refuse a ``valid_metric`` that ``metrics`` and ``topk`` do not measure."""
    final = config.final_config_dict
    check_measured(final["valid_metric"], final["metrics"], final["topk"], "valid_metric")


def objective_is_measured(config: "Config") -> None:
    """Refuse an ``objective`` with metrics that the validation does not measure."""
    final = config.final_config_dict
    if final.get("objective"):
        check_objective(final["objective"], final["metrics"], final["topk"])


def evaluation_fits_the_model(config: "Config") -> None:
    """Refuse an evaluation that is not possible for the type of the model."""
    final = config.final_config_dict
    pairs = final.get("MODEL_INPUT_TYPE") == InputType.PAIRWISE
    if pairs and not (final.get("train_neg_sample_args") or {}).get("distribution"):
        raise PrefError(
            f"train_neg_sample_args is empty, but {config.model} is trained with negatives: set it to "
            "{distribution: uniform, sample_num: 1}."
        )
    if final["eval_type"] == EvaluatorType.RANKING and "labeled" in final["eval_args"]["mode"].values():
        raise PrefError(
            "eval_args, mode: 'labeled' is for value metrics such as AUC, not for ranking metrics such as "
            f"{final['metrics'][0]}: set mode to full or uni100."
        )
    if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final["eval_args"]["order"] != "TO":
        raise PrefError(
            f"eval_args, order: {final['eval_args']['order']!r} is not possible for sequential models: set it to TO."
        )


def settings_without_effect(config: "Config") -> list[str]:
    """Return the given settings that the model does not read: only a warning, because models share config files."""
    given = config.external_config_dict
    unread = ["threshold", "repeatable"] if _is_sequential(config) else []
    if method_of(config.model_class) is not None:
        unread.append("train_neg_sample_args")  # negatives are drawn inside the step
    if not is_used(config):
        unread += ["prior_in_training", *(f"prior_{key}" for key in LINEAR_SETTINGS)]
    return [key for key in unread if given.get(key) and given[key] != config.internal_config_dict.get(key)]


Check = Callable[["Config"], None]
BEFORE_DEFAULTS: tuple[Check, ...] = (  # before RecBole sets its defaults
    keys_are_known,
    values_are_accepted,
    texts_and_numbers_fit,
    run_stem_is_a_file_name,
    gpu_id_names_devices,
    wandb_is_installed,
    sequential_defaults,
    eval_args_are_valid,
    time_column_is_loaded,
    nested_settings_are_valid,
    intervals_are_valid,
    columns_are_valid,
    encoding_exists,
    benchmark_has_three_parts,
    transform_is_possible,
    topk_is_valid,
    method_is_possible,
    prior_is_possible,
    reference_is_there,
    settings_are_read_by_the_model,
    metrics_exist,
)
AFTER_DEFAULTS: tuple[Check, ...] = (
    valid_metric_is_measured,
    objective_is_measured,
    evaluation_fits_the_model,
    init_from_is_possible,
)
