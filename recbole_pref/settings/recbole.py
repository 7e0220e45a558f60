"""Checks of RecBole's own settings, for which RecBole reports errors late or not at all."""

import math
import re
from collections.abc import Collection
from typing import Any, NoReturn

from recbole_pref.errors import PrefError, suggest
from recbole_pref.settings.setting import (
    Setting,
    count,
    flag,
    is_finite,
    names,
    positive,
    shown,
    table,
    text,
    weight,
    words,
)

_FEW = Setting(int, low=1, high=1024)  # each layer takes memory and time
_DROPOUT = Setting(float, low=0.0, high=1.0, open_high=True)
_OPTION = Setting(scope="option")
_DERIVED = Setting(derived=True)

RECBOLE_SETTINGS: dict[str, Setting] = {
    # the run
    "model": Setting(
        derived=True,
        shared_by_table="write the model before its settings",
        shared_by_trials="compare models with --compare, or sweep each",
    ),
    "dataset": Setting(
        derived=True,
        shared_by_table="name it with --dataset",
        shared_by_trials="sweep each data set by itself",
    ),
    "seed": Setting(
        int, low=0, high=2**32 - 1, scope="run", shapes_reference=True, shared_by_table="name seeds with --seeds"
    ),
    "gpu_id": Setting(scope="run", shared_by_trials="name the GPUs with --gpu_id and --gpus_per_trial"),
    "use_gpu": flag(),
    "worker": Setting(int, low=0, high=1024, scope="run"),
    "reproducibility": flag(),
    "show_progress": flag(scope="run"),
    "state": words("debug", "info", "warning", "error", "critical", nullable=True, any_case=True, scope="run"),
    "data_path": Setting(str, scope="run", path=True, reloads_data=True),
    "checkpoint_dir": text(scope="run", path=True, set_by=("comparison", "sweep")),
    "dataset_save_path": Setting(str, nullable=True, scope="run", path=True),
    "dataloaders_save_path": Setting(str, nullable=True, scope="run", path=True),
    "save_dataset": flag(scope="run"),
    "save_dataloaders": flag(scope="run"),
    "log_wandb": flag(scope="run"),
    "wandb_project": Setting(scope="run"),
    # training
    "epochs": Setting(int, low=0, free_on_resume=True),
    "train_batch_size": count(shapes_reference=True),
    "learning_rate": positive(),
    "weight_decay": weight(shapes_reference=True),
    "eval_step": Setting(int, low=0, shapes_reference=True),
    "stopping_step": Setting(int, low=0, shapes_reference=True, free_on_resume=True),
    "shuffle": flag(shapes_reference=True),
    "learner": words("adam", "adamw", "sgd", "adagrad", "rmsprop", any_case=True, shapes_reference=True),
    "clip_grad_norm": table(shapes_reference=True),
    "train_neg_sample_args": table(),
    "loss_decimal_place": Setting(int, low=0, high=17, nullable=True),
    "enable_amp": flag(shapes_reference=True),
    "enable_scaler": flag(shapes_reference=True),
    "require_pow": flag(),
    "transform": words(
        "mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined", nullable=True
    ),
    # models
    "hidden_size": count(),
    "embedding_size": count(),
    "inner_size": count(),
    "n_layers": _FEW,
    "num_layers": _FEW,
    "n_heads": count(),
    "nv": count(),
    "nh": count(),
    "mask_ratio": Setting(float, low=0.0, high=1.0, open_low=True),
    "hidden_act": words("gelu", "relu", "swish", "tanh", "sigmoid"),
    "layer_norm_eps": weight(),
    "initializer_range": weight(),
    "hidden_dropout_prob": _DROPOUT,
    "attn_dropout_prob": _DROPOUT,
    "dropout_prob": _DROPOUT,
    # evaluation
    "eval_args": Setting(dict, scope="data", reloads_data=True, shapes_reference=True, same_in_table=True),
    "metrics": Setting(list, scope="evaluation"),
    "topk": Setting(scope="evaluation"),
    "valid_metric": text(
        scope="evaluation", shapes_reference=True, shared_by_trials="set objective at the top level of the sweep file"
    ),
    "eval_batch_size": count(scope="evaluation", free_on_resume=True),
    "metric_decimal_place": Setting(int, low=0, high=17, scope="evaluation", shapes_reference=True, same_in_table=True),
    "tail_ratio": Setting(scope="evaluation", shapes_reference=True, same_in_table=True),
    "repeatable": flag(scope="evaluation"),
    # data
    "MAX_ITEM_LIST_LENGTH": count(scope="data", shapes_reference=True),
    "USER_ID_FIELD": text(scope="data", names_column=True),
    "ITEM_ID_FIELD": text(scope="data", names_column=True),
    "TIME_FIELD": text(scope="data", names_column=True),
    "LABEL_FIELD": text(scope="data", names_column=True),
    "ITEM_LIST_LENGTH_FIELD": text(scope="data", names_column=True),
    "POSITION_FIELD": text(scope="data", names_column=True),
    "NEG_PREFIX": text(scope="data"),
    "LIST_SUFFIX": text(scope="data"),
    "field_separator": text(scope="data"),
    "seq_separator": text(scope="data"),
    "encoding": Setting(str, filled=True, nullable=True, scope="data"),
    "seq_len": table(scope="data"),
    "threshold": table(scope="data"),
    "load_col": table(scope="data"),
    "unload_col": table(scope="data"),
    "unused_col": table(scope="data"),
    "additional_feat_suffix": names(scope="data"),
    "numerical_features": names(scope="data"),
    "normalize_field": names(scope="data"),
    "normalize_all": Setting(bool, nullable=True, scope="data"),
    "discretization": table(scope="data"),
    "preload_weight": table(scope="data"),
    "alias_of_user_id": names(scope="data"),
    "alias_of_item_id": names(scope="data"),
    "benchmark_filename": names(scope="data", shapes_reference=True),
    "user_inter_num_interval": Setting(scope="data", filters=True, same_in_table=True),
    "item_inter_num_interval": Setting(scope="data", filters=True, same_in_table=True),
    "val_interval": table(scope="data", filters=True, same_in_table=True),
    "rm_dup_inter": words("first", "last", nullable=True, scope="data", filters=True, same_in_table=True),
    "filter_inter_by_user_or_item": flag(scope="data"),
    # computed by RecBole
    "device": Setting(scope="run", derived=True),
    "local_rank": Setting(scope="run", derived=True),
    "MODEL_TYPE": _DERIVED,
    "MODEL_INPUT_TYPE": _DERIVED,
    "eval_type": _DERIVED,
    "single_spec": _DERIVED,
    "valid_neg_sample_args": _DERIVED,
    "test_neg_sample_args": _DERIVED,
    "valid_metric_bigger": _DERIVED,
    # options of the command line; they have no effect in a file
    "nproc": _OPTION,
    "world_size": _OPTION,
    "ip": _OPTION,
    "port": _OPTION,
    "group_offset": _OPTION,
    "plots": _OPTION,
    "compare": _OPTION,
    "predict": _OPTION,
    "tune": _OPTION,
    "debug": _OPTION,
}


_INTERVAL = re.compile(r"[\[(]([^,;()\[\]]+),([^,;()\[\]]+)[\])]")
_SHARES = "three numbers of at least 0 such as [0.8, 0.1, 0.1]"
_SPLITS = "{LS: valid_and_test}, {RS: [0.8, 0.1, 0.1]} or {TS: [0.8, 0.1, 0.1]}"
_LEAVE_OUT = ("valid_and_test", "valid_only", "test_only")


def check_interval(key: str, interval: Any) -> None:
    """Refuse a text that is not an interval such as ``[5,inf)``; RecBole ignores some of them and fails on others.

    Args:
        key: the setting, for the message.
        interval: a text with one interval, or with several that ``;`` separates.

    Raises:
        PrefError: names the key and the value.
    """
    parts = [_INTERVAL.fullmatch(part.strip()) for part in interval.split(";")] if isinstance(interval, str) else []
    ends = [[_number(end) for end in part.groups()] for part in parts if part]
    if not parts or len(ends) < len(parts) or not all(low <= high for low, high in ends):
        raise PrefError(
            f"{key}={shown(interval)} is not accepted: set it to an interval such as '[5,inf)', or to several "
            "that ';' separates."
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_eval_args(args: Any) -> None:
    """Refuse ``eval_args`` on which RecBole fails when it splits the data or evaluates.

    Raises:
        PrefError: names the part and its accepted values.
    """
    _check_parts("eval_args", args, ("split", "order", "group_by", "mode"))
    split = args.get("split", {"RS": [8, 1, 1]})
    kind, rule = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    if kind not in ("LS", "RS", "TS"):
        _refuse_part("eval_args", "split", split, f"one of {_SPLITS}")
    if kind == "LS" and rule not in _LEAVE_OUT:
        _refuse_part("eval_args", "split", split, "{LS: x} with x one of " + ", ".join(_LEAVE_OUT), rule, _LEAVE_OUT)
    if kind != "LS" and not _are_shares(rule):
        _refuse_part("eval_args", "split", split, f"{{{kind}: x}} with x {_SHARES}")
    if args.get("order", "RO") not in ("RO", "TO"):
        _refuse_part("eval_args", "order", args["order"], "TO (by time) or RO (random)")
    if args.get("group_by") not in (None, "none", "user"):
        _refuse_part("eval_args", "group_by", args["group_by"], "user or none")
    mode = args.get("mode", "full")
    if isinstance(mode, dict):
        _check_parts("eval_args mode", mode, ("valid", "test"))
    for one in mode.values() if isinstance(mode, dict) else [mode]:
        if not isinstance(one, str) or not re.fullmatch(r"full|labeled|(uni|pop)0*[1-9][0-9]{0,8}", one):
            words = ("full", "labeled", "uni100", "pop100")
            _refuse_part("eval_args", "mode", one, "full, labeled, uniN or popN such as uni100", one, words)


def _are_shares(values: Any) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(is_finite, values)):
        return False
    return min(values) >= 0 and sum(values) > 0


def check_negatives(args: Any) -> None:
    """Refuse ``train_neg_sample_args`` on which RecBole's data loader fails.

    Raises:
        PrefError: names the part and its accepted values.
    """
    parts = {
        "distribution": Setting(str, choices=("uniform", "popularity"), nullable=True),
        "sample_num": Setting(int, low=1, high=10**6),
        "alpha": weight(),
        "dynamic": flag(),
        "candidate_num": Setting(int, low=0, high=10**6),
    }
    _check_parts("train_neg_sample_args", args, parts)
    for part, value in args.items():
        parts[part].check(f"train_neg_sample_args, {part}", value)
    if args.get("dynamic") and not args.get("candidate_num"):
        _refuse_part("train_neg_sample_args", "candidate_num", 0, "a whole number of at least 1 with dynamic: True")


def check_clipping(args: Any) -> None:
    """Refuse a ``clip_grad_norm`` that does not consist of arguments of torch's ``clip_grad_norm_``.

    Raises:
        PrefError: names the part and its accepted values.
    """
    parts = {"max_norm": positive(), "norm_type": positive(), "error_if_nonfinite": flag()}
    _check_parts("clip_grad_norm", args, parts)
    for part, value in args.items():
        parts[part].check(f"clip_grad_norm, {part}", value)
    if args and "max_norm" not in args:
        raise PrefError(f"clip_grad_norm={shown(args)} is not accepted: add max_norm, such as {{max_norm: 5}}.")


def check_discretization(methods: dict[str, Any]) -> None:
    """Refuse a ``discretization`` on which RecBole fails.

    Raises:
        PrefError: names the field and the accepted values.
    """
    for field, rule in methods.items():
        valid = isinstance(rule, dict) and rule.get("method") in ("ED", "LD")
        if not valid or (rule["method"] == "ED" and not count().accepts(rule.get("bucket"))):
            raise PrefError(
                f"discretization, {field}: {shown(rule)} is not accepted: set it to {{method: ED, bucket: 10}} or "
                "{method: LD}."
            )


def check_columns(key: str, columns: dict[str, Any]) -> None:
    """Refuse a ``load_col``, ``unload_col`` or ``unused_col`` that is not a list of columns for each file.

    Raises:
        PrefError: names the key and the file.
    """
    for source, chosen in columns.items():
        if not (chosen == "*" and key == "load_col" or names().accepts(chosen) and not isinstance(chosen, str)):
            raise PrefError(
                f"{key}, {source}: {shown(chosen)} is not accepted: set it to a list of columns, such as "
                "[user_id, item_id, timestamp]."
            )


def _check_parts(key: str, args: dict[str, Any], parts: Collection[str]) -> None:
    for part in args:
        if part not in parts:
            raise PrefError(f"{key} has no part {shown(part)}: it may hold {', '.join(parts)}.{suggest(part, parts)}")


def _refuse_part(
    key: str, part: str, value: Any, accepted: str, word: Any = None, choices: Collection[str] = ()
) -> NoReturn:
    hint = suggest(word, choices) if isinstance(word, str) else ""
    raise PrefError(f"{key}, {part}: {shown(value)} is not accepted: set it to {accepted}.{hint}")
