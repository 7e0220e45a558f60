"""What every setting of RecBole-Pref may be: type, range and choices, checked in one place.

Defaults and explanations live in the property files (``properties/``), where people read them.
"""

import math
import re
from dataclasses import dataclass
from numbers import Real

from recbole_pref.errors import PrefError, suggest

# Settings that name a run or its machine and say nothing about what was trained.
RUN_SETTINGS = frozenset(
    (
        "checkpoint_dir", "data_path", "dataloaders_save_path", "dataset_save_path", "device", "gpu_id",
        "keep_last", "local_rank", "log_wandb", "reference_dir", "result_file", "resume", "run_stem",
        "save_dataloaders", "save_dataset", "seed", "show_progress", "state", "wandb_project", "worker",
    )
)  # fmt: skip
# Settings that leave interactions out.
FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter")


@dataclass(frozen=True)
class Setting:
    """The values one key accepts.

    ``kind`` is ``float``, ``int``, ``bool``, ``str``, ``list`` (of names) or ``dict`` (by names); numbers
    are finite and lie in ``[low, high]``, with open ends where ``open_low`` / ``open_high`` say so;
    ``choices`` lists the words that are accepted (for a ``str`` all of them, for other kinds in addition to
    values of the kind); ``nullable`` admits ``~`` and an empty list or mapping; ``flag`` admits True and
    False beside a text; ``filled`` refuses an empty text.
    """

    kind: type
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    choices: tuple = ()
    nullable: bool = False
    flag: bool = False
    filled: bool = False

    def describe(self):
        """Return the accepted values in words, for messages and ``--list``."""
        if self.kind is str and self.choices:
            return "one of " + ", ".join(self.choices)
        words = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}
        words[list] = "a name or a list of names"
        words[dict] = "a mapping such as {name: value}"
        text = words[self.kind] + (" that is not empty" if self.filled else "")
        if self.low != float("-inf"):
            text += f" {'above' if self.open_low else 'of at least'} {self.low:g}"
        if self.high != float("inf"):
            joint = " and" if self.low != float("-inf") else ""
            text += f"{joint} {'below' if self.open_high else 'at most'} {self.high:g}"
        if self.choices:
            text += " or " + ", ".join(f"'{choice}'" for choice in self.choices)
        if self.flag:
            text += " or True or False"
        return text + (" or empty (~)" if self.nullable else "")

    def accepts(self, value):
        """Return whether ``value`` is allowed."""
        if value is None:
            return self.nullable
        if isinstance(value, str) and self.choices and self.kind is not list:
            return value in self.choices
        if self.kind is list:
            names = [value] if isinstance(value, str) else value
            full = self.nullable or names
            return isinstance(names, (list, tuple)) and bool(full) and all(map(_is_name, names))
        if self.kind is dict:
            return isinstance(value, dict) and all(map(_is_name, value)) and (self.nullable or value)
        if isinstance(value, bool):
            return self.flag or self.kind is bool
        if self.kind is str:
            return isinstance(value, str) and _is_line(value) and not (self.filled and not value)
        if self.kind is bool or not is_finite(value):
            return False
        if self.kind is int and (int(value) != value or abs(value) > _LARGEST):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def _is_name(value):
    return isinstance(value, str) and bool(value) and _is_line(value)


def _is_line(text):
    return len(text) <= 1000 and not set(text) & set("\0\n\r")


def is_finite(value):
    """Return whether a value is a number that torch's float32 holds."""
    try:
        return isinstance(value, Real) and abs(float(value)) <= _LARGEST_FLOAT
    except OverflowError:  # a whole number beyond what a float holds
        return False


def shown(value):
    """Return how a message shows a value: its ``repr`` on one line, cut short when it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number or a nesting that Python does not print
        return f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _words(*choices, **rest):
    return Setting(str, choices=choices, **rest)


_WEIGHT = Setting(float, low=0.0)
_POSITIVE = Setting(float, low=0.0, open_low=True)
_COUNT = Setting(int, low=1)
_SHARE = Setting(float, low=0.0, high=1.0, open_low=True, open_high=True)
_ANY = Setting(float)
_FLAG = Setting(bool)

_LARGEST = 2**63 - 1  # what torch and Python count with
_LARGEST_FLOAT = 3.4e38  # torch's float32
_FEW = Setting(int, low=1, high=1024)  # each takes memory and time of its own
_NAMES = Setting(list, nullable=True)
_TABLE = Setting(dict, nullable=True)
_TEXT = Setting(str, filled=True)

SETTINGS = {
    # the loss
    "ce_weight": _WEIGHT,
    "repeat_bias": _FLAG,
    "lambda": _WEIGHT,
    "beta": _POSITIVE,
    "gamma": _ANY,
    "tau": _POSITIVE,
    "lpo_space": _words("probability", "logit", "log_prob"),
    "dpo_loss": _words("sigmoid", "ipo", "robust"),
    "label_smoothing": Setting(float, low=0.0, high=0.5, open_high=True),
    "dynamic_base": _words("dmpo", "sdpo"),
    "dynamic_beta": _words("adaptive", "half", "constant"),
    "tawin_anchor": Setting(int, low=0, choices=("auto",)),
    "tawin_window": _COUNT,
    "clip_eps": _SHARE,
    "kl_weight": _WEIGHT,
    "old_policy": _words("current", "reference"),
    "advantage_ddof": Setting(int, low=0, high=1),
    # negatives
    "num_negatives": _COUNT,
    "neg_sampler": _words(
        "uniform", "popularity", "gumbel", "topk", "pool", "reference_pool", "in_batch", "fixed"
    ),
    "neg_candidates": _words("all", "head", "tail"),
    "exclude_history": _FLAG,
    "sampler_space": _words("probability", "logit"),
    "pool_size": _COUNT,
    "pool_draw": _words("uniform", "score"),
    "popularity_alpha": _WEIGHT,
    # head and tail
    "tail_split": _words("items", "interactions"),
    "head_ratio": _SHARE,
    "reweight": _words("none", "softmax"),
    "alpha_head": _ANY,
    "alpha_tail": _ANY,
    # the reference model
    "reference": _TEXT,
    "reference_cache": _FLAG,
    "reference_dir": Setting(str, nullable=True),
    "reference_epochs": _COUNT,
    "reference_learning_rate": _POSITIVE,
    "trust_checkpoint": _FLAG,
    # training
    "train_positions": _words("auto", "all", "last"),
    "window_stride": Setting(int, low=1, choices=("auto",)),
    "logits_memory_mb": Setting(float, low=0.0, open_low=True, nullable=True),
    "lr_scheduler": _words("none", "constant", "cosine", "linear"),
    "warmup_ratio": Setting(float, low=0.0, high=1.0, open_high=True),
    "max_nan_steps": Setting(int, low=0),
    "matmul_precision": _words("highest", "high", "medium"),
    "amp_dtype": _words("auto", "bfloat16", "float16"),
    # item features
    "mm_fields": Setting(list, choices=("auto",)),
    "mm_fusion": _words("sum", "concat", "moe"),
    "replace_id": _words("none", "all", "tail"),
    "moe_experts": _COUNT,
    "moe_top_k": _COUNT,
    "moe_hidden": Setting(int, low=1, nullable=True),
    "moe_balance_weight": _WEIGHT,
    "moe_z_weight": _WEIGHT,
    # evaluation
    "mask_history": _FLAG,
    "collect_users": _FLAG,
    # runs
    "resume": Setting(str, nullable=True, flag=True),
    "keep_last": _COUNT,
    "run_stem": Setting(str, nullable=True),
    "result_file": Setting(str, nullable=True),
    "strict_config": _FLAG,
}

# Linear item-item models. Other models read some of these names too and accept other values for them.
LINEAR_SETTINGS = {
    "reg_weight": Setting(float, low=0.0, open_low=True, choices=("auto",)),
    "tau_train": Setting(float, low=0.0, open_low=True, nullable=True),
    "tau_inf": Setting(float, low=0.0, open_low=True, nullable=True),
    "c": Setting(float, low=0.0, high=1.0),
    "beta": Setting(float, high=0.0),
    "alpha": Setting(float, low=0.0, high=1.0),
    "train_ages": _words("positions", "times"),
    "linear_memory_mb": Setting(float, low=0.0),
}


def check_setting(key, value, setting=None):
    """Refuse a value that ``key`` does not accept.

    Args:
        key (str): the setting.
        value: its value.
        setting (Setting, optional): of a model that accepts other values than ``SETTINGS`` says.

    Raises:
        PrefError: names the key, the value, what is accepted and the nearest choice.
    """
    _check(key, value, setting or SETTINGS[key])


def _check(key, value, setting):
    if not setting.accepts(value):
        hint = suggest(value, setting.choices) if isinstance(value, str) else ""
        raise PrefError(f"{key}={shown(value)} is not accepted: set it to {setting.describe()}.{hint}")


# RecBole's own settings that break late or silently when they are wrong.
RECBOLE_SETTINGS = {
    "epochs": Setting(int, low=0),
    "train_batch_size": _COUNT,
    "eval_batch_size": _COUNT,
    "learning_rate": _POSITIVE,
    "weight_decay": _WEIGHT,
    "eval_step": Setting(int, low=0),
    "stopping_step": Setting(int, low=0),
    "seed": Setting(int, low=0, high=2**32 - 1),
    "reproducibility": _FLAG,
    "show_progress": _FLAG,
    "shuffle": _FLAG,
    "enable_amp": _FLAG,
    "worker": Setting(int, low=0, high=1024),
    "MAX_ITEM_LIST_LENGTH": _COUNT,
    "metric_decimal_place": Setting(int, low=0, high=17),
    "learner": _words("adam", "adamw", "sgd", "adagrad", "rmsprop"),
    "hidden_size": _COUNT,
    "embedding_size": _COUNT,
    "inner_size": _COUNT,
    "n_layers": _FEW,
    "num_layers": _FEW,
    "n_heads": _COUNT,
    "nv": _COUNT,
    "nh": _COUNT,
    "mask_ratio": Setting(float, low=0.0, high=1.0, open_low=True),
    "hidden_act": _words("gelu", "relu", "swish", "tanh", "sigmoid"),
    "layer_norm_eps": _WEIGHT,
    "initializer_range": _WEIGHT,
    "hidden_dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "attn_dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "data_path": Setting(str),
    "checkpoint_dir": _TEXT,
    "dataset_save_path": Setting(str, nullable=True),
    "dataloaders_save_path": Setting(str, nullable=True),
    "save_dataset": _FLAG,
    "save_dataloaders": _FLAG,
    "state": _words("debug", "info", "warning", "error", "critical", nullable=True),
    "use_gpu": _FLAG,
    "log_wandb": _FLAG,
    "enable_scaler": _FLAG,
    "require_pow": _FLAG,
    "repeatable": _FLAG,
    "loss_decimal_place": Setting(int, low=0, high=17, nullable=True),
    "clip_grad_norm": _TABLE,
    "train_neg_sample_args": _TABLE,
    "transform": _words(
        "mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined", nullable=True
    ),
    "eval_args": Setting(dict),
    "metrics": Setting(list),
    "valid_metric": _TEXT,
    # data
    "USER_ID_FIELD": _TEXT,
    "ITEM_ID_FIELD": _TEXT,
    "TIME_FIELD": _TEXT,
    "LABEL_FIELD": _TEXT,
    "NEG_PREFIX": _TEXT,
    "LIST_SUFFIX": _TEXT,
    "ITEM_LIST_LENGTH_FIELD": _TEXT,
    "POSITION_FIELD": _TEXT,
    "field_separator": _TEXT,
    "seq_separator": _TEXT,
    "encoding": Setting(str, filled=True, nullable=True),
    "seq_len": _TABLE,
    "threshold": _TABLE,
    "load_col": _TABLE,
    "unload_col": _TABLE,
    "unused_col": _TABLE,
    "additional_feat_suffix": _NAMES,
    "numerical_features": _NAMES,
    "normalize_field": _NAMES,
    "normalize_all": Setting(bool, nullable=True),
    "discretization": _TABLE,
    "preload_weight": _TABLE,
    "alias_of_user_id": _NAMES,
    "alias_of_item_id": _NAMES,
    "benchmark_filename": _NAMES,
    "rm_dup_inter": _words("first", "last", nullable=True),
    "filter_inter_by_user_or_item": _FLAG,
    "val_interval": _TABLE,
}


def check_recbole_setting(key, value, name=None):
    """Refuse a value of one of RecBole's settings that RecBole would trip over later.

    Args:
        key (str): the setting.
        value: its value.
        name (str, optional): what the message calls it.

    Raises:
        PrefError: names the key, the value and what is accepted.
    """
    in_any_case = key in ("learner", "state") and isinstance(value, str)
    _check(name or key, value.lower() if in_any_case else value, RECBOLE_SETTINGS[key])


_INTERVAL = re.compile(r"[\[(]([^,;()\[\]]+),([^,;()\[\]]+)[\])]")
_SHARES = "three numbers of at least 0 such as [0.8, 0.1, 0.1]"
_SPLITS = "{LS: valid_and_test}, {RS: [0.8, 0.1, 0.1]} or {TS: [0.8, 0.1, 0.1]}"
_LEAVE_OUT = ("valid_and_test", "valid_only", "test_only")


def check_interval(key, text):
    """Refuse what is no interval such as ``[5,inf)``; RecBole ignores some and trips over others.

    Args:
        key (str): the setting, for the message.
        text (str): intervals, several with ``;`` between them.

    Raises:
        PrefError: names the key and the value.
    """
    parts = [_INTERVAL.fullmatch(part.strip()) for part in text.split(";")] if isinstance(text, str) else []
    ends = [[_number(end) for end in part.groups()] for part in parts if part]
    if not parts or len(ends) < len(parts) or not all(low <= high for low, high in ends):
        raise PrefError(
            f"{key}={shown(text)} is not accepted: set it to an interval such as '[5,inf)' or to several with "
            "';' between them."
        )


def _number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_eval_args(args):
    """Refuse an ``eval_args`` that RecBole would trip over when it splits the data or evaluates.

    Raises:
        PrefError: names the part and what it may be.
    """
    _check_parts("eval_args", args, ("split", "order", "group_by", "mode"))
    split = args.get("split", {"RS": [8, 1, 1]})
    kind, how = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    if kind not in ("LS", "RS", "TS"):
        _refuse_part("eval_args", "split", split, f"one of {_SPLITS}")
    if kind == "LS" and how not in _LEAVE_OUT:
        _refuse_part("eval_args", "split", split, "{LS: x} with x one of " + ", ".join(_LEAVE_OUT), how, _LEAVE_OUT)
    if kind != "LS" and not _are_shares(how):
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


def _are_shares(values):
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(is_finite, values)):
        return False
    return min(values) >= 0 and sum(values) > 0


def check_negatives(args):
    """Refuse a ``train_neg_sample_args`` that RecBole's loader would trip over.

    Raises:
        PrefError: names the part and what it may be.
    """
    parts = {
        "distribution": Setting(str, choices=("uniform", "popularity"), nullable=True),
        "sample_num": Setting(int, low=1, high=10**6),
        "alpha": _WEIGHT,
        "dynamic": _FLAG,
        "candidate_num": Setting(int, low=0, high=10**6),
    }
    _check_parts("train_neg_sample_args", args, parts)
    for part, value in args.items():
        _check(f"train_neg_sample_args, {part}", value, parts[part])
    if args.get("dynamic") and not args.get("candidate_num"):
        _refuse_part("train_neg_sample_args", "candidate_num", 0, "a whole number of at least 1 with dynamic: True")


def check_clipping(args):
    """Refuse a ``clip_grad_norm`` that is not made of the arguments of torch's function.

    Raises:
        PrefError: names the part and what it may be.
    """
    parts = {"max_norm": _POSITIVE, "norm_type": _POSITIVE, "error_if_nonfinite": _FLAG}
    _check_parts("clip_grad_norm", args, parts)
    for part, value in args.items():
        _check(f"clip_grad_norm, {part}", value, parts[part])
    if args and "max_norm" not in args:
        raise PrefError(f"clip_grad_norm={shown(args)} is not accepted: add max_norm, such as {{max_norm: 5}}.")


def check_discretization(table):
    """Refuse a ``discretization`` that RecBole would trip over.

    Raises:
        PrefError: names the field and what is accepted.
    """
    for field, how in table.items():
        sound = isinstance(how, dict) and how.get("method") in ("ED", "LD")
        if not sound or (how["method"] == "ED" and not _COUNT.accepts(how.get("bucket"))):
            raise PrefError(
                f"discretization, {field}: {shown(how)} is not accepted: set it to {{method: ED, bucket: 10}} or "
                "{method: LD}."
            )


def check_columns(key, table):
    """Refuse a ``load_col``, ``unload_col`` or ``unused_col`` that names no columns of files.

    Raises:
        PrefError: names the key and the file.
    """
    for source, names in table.items():
        if not (names == "*" and key == "load_col" or _NAMES.accepts(names) and not isinstance(names, str)):
            raise PrefError(
                f"{key}, {source}: {shown(names)} is not accepted: set it to a list of columns, such as "
                "[user_id, item_id, timestamp]."
            )


def _check_parts(key, args, known):
    for part in args:
        if part not in known:
            raise PrefError(
                f"{key} has no part {shown(part)}: it may hold {', '.join(known)}.{suggest(part, known)}"
            )


def _refuse_part(key, part, value, accepted, word=None, choices=()):
    hint = suggest(word, choices) if isinstance(word, str) else ""
    raise PrefError(f"{key}, {part}: {shown(value)} is not accepted: set it to {accepted}.{hint}")
