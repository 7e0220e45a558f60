"""What every setting of RecBole-Pref may be: type, range and choices, checked in one place.

Defaults and explanations live in the property files (``properties/``), where people read them.
"""

from dataclasses import dataclass
from numbers import Real

from recbole_pref.errors import PrefError, suggest


@dataclass(frozen=True)
class Setting:
    """The values one key accepts.

    ``kind`` is ``float``, ``int``, ``bool``, ``str`` or ``list`` (of names); numbers lie in
    ``[low, high]``, with open ends where ``open_low`` / ``open_high`` say so; ``choices`` lists the words
    that are accepted (for a ``str`` all of them, for other kinds in addition to values of the kind);
    ``nullable`` admits ``~``; ``flag`` admits True and False beside a text.
    """

    kind: type
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    choices: tuple = ()
    nullable: bool = False
    flag: bool = False

    def describe(self):
        """Return the accepted values in words, for messages and ``--list``."""
        if self.kind is str and self.choices:
            return "one of " + ", ".join(self.choices)
        words = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}
        words[list] = "a name, a list of names or 'auto'"
        text = words[self.kind]
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
        if isinstance(value, str) and self.choices:
            return value in self.choices
        if self.kind is list:
            names = [value] if isinstance(value, str) else value
            return isinstance(names, (list, tuple)) and bool(names) and all(map(_is_name, names))
        if isinstance(value, bool):
            return self.flag or self.kind is bool
        if self.kind is str:
            return isinstance(value, str)
        if self.kind is bool or not isinstance(value, Real) or value != value:
            return False
        if self.kind is int and int(value) != value:
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def _is_name(value):
    return isinstance(value, str) and bool(value)


def _words(*choices, **rest):
    return Setting(str, choices=choices, **rest)


_WEIGHT = Setting(float, low=0.0)
_POSITIVE = Setting(float, low=0.0, open_low=True)
_COUNT = Setting(int, low=1)
_SHARE = Setting(float, low=0.0, high=1.0, open_low=True, open_high=True)
_ANY = Setting(float)
_FLAG = Setting(bool)

SETTINGS = {
    # the loss
    "ce_weight": _WEIGHT,
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
    "reference": Setting(str),
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
    # item features
    "mm_fields": Setting(list),
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


def check_setting(key, value):
    """Refuse a value that ``key`` does not accept.

    Raises:
        PrefError: names the key, the value, what is accepted and the nearest choice.
    """
    setting = SETTINGS[key]
    if not setting.accepts(value):
        hint = suggest(value, setting.choices) if isinstance(value, str) else ""
        raise PrefError(f"{key}={value!r} is not accepted: set it to {setting.describe()}.{hint}")


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
    "worker": Setting(int, low=0),
    "MAX_ITEM_LIST_LENGTH": _COUNT,
    "metric_decimal_place": Setting(int, low=0, high=17),
    "learner": _words("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "hidden_size": _COUNT,
    "embedding_size": _COUNT,
    "inner_size": _COUNT,
    "n_layers": _COUNT,
    "num_layers": _COUNT,
    "n_heads": _COUNT,
    "hidden_dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "attn_dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "dropout_prob": Setting(float, low=0.0, high=1.0, open_high=True),
    "data_path": Setting(str),
    "checkpoint_dir": Setting(str),
}


def check_recbole_setting(key, value):
    """Refuse a value of one of RecBole's settings that RecBole would trip over later.

    Raises:
        PrefError: names the key, the value and what is accepted.
    """
    setting = RECBOLE_SETTINGS[key]
    candidate = value.lower() if key == "learner" and isinstance(value, str) else value
    if not setting.accepts(candidate):
        hint = suggest(value, setting.choices) if isinstance(value, str) else ""
        raise PrefError(f"{key}={value!r} is not accepted: set it to {setting.describe()}.{hint}")
