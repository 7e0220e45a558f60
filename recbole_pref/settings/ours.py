"""The settings of RecBole-Pref. A new setting needs a line here and a line in ``properties/``."""

from dataclasses import replace

from recbole_pref.settings.setting import (
    Setting,
    count,
    flag,
    one_of,
    positive,
    share,
    text,
    weight,
    words,
)

# Linear item-item models. Other models read some of these names too and accept other values for them.
LINEAR_SETTINGS: dict[str, Setting] = {
    "reg_weight": positive(choices=("auto",)),
    "tau_train": positive(nullable=True),
    "tau_inf": positive(nullable=True),
    "c": Setting(float, low=0.0, high=1.0),
    "beta": Setting(float, high=0.0),
    "alpha": Setting(float, low=0.0, high=1.0),
    "train_ages": words("positions", "times"),
    "linear_memory_mb": weight(),
}
# What ``prior`` names, and the linear model behind it.
PRIORS = {"SLIST": "SLIST", "TALE": "TALE", "EASE": "SeqEASE"}
# Values of ``prior_weight`` that need the validation set after training.
CHOSEN_WEIGHTS = ("auto", "objective")

SETTINGS: dict[str, Setting] = {
    # the loss
    "ce_weight": weight(in_reference=1.0),
    "repeat_bias": flag(shapes_reference=True, of_our_models=True, off=False),
    "lambda": weight(in_reference=0.0),
    "beta": positive(),
    "gamma": Setting(float),
    "tau": positive(),
    "lpo_space": words("probability", "logit", "log_prob"),
    "dpo_loss": words("sigmoid", "ipo", "robust"),
    "label_smoothing": Setting(float, low=0.0, high=0.5, open_high=True),
    "dynamic_base": words("dmpo", "sdpo"),
    "dynamic_beta": words("adaptive", "half", "constant"),
    "tawin_anchor": Setting(int, low=0, choices=("auto",)),
    "tawin_window": count(),
    "clip_eps": share(),
    "kl_weight": weight(),
    "old_policy": words("current", "reference"),
    "advantage_ddof": Setting(int, low=0, high=1),
    # negatives
    "num_negatives": count(),
    "neg_sampler": one_of("recbole_pref.samplers", "SAMPLERS"),
    "neg_candidates": words("all", "head", "tail"),
    "exclude_history": flag(),
    "sampler_space": words("probability", "logit"),
    "pool_size": count(),
    "pool_draw": words("uniform", "score"),
    "popularity_alpha": weight(),
    # head and tail
    "tail_split": one_of("recbole_pref.popularity", "HEAD_RULES", shapes_reference=True, same_in_table=True),
    "head_ratio": share(shapes_reference=True, same_in_table=True),
    "reweight": words("none", "softmax", in_reference="none"),
    "alpha_head": Setting(float),
    "alpha_tail": Setting(float),
    # the reference model
    "reference": text(path=True, in_reference="none"),
    "reference_cache": flag(),
    "reference_dir": Setting(str, nullable=True, scope="run", path=True, set_by=("sweep",)),
    "reference_renewal": Setting(int, low=0),
    "reference_epochs": count(shapes_reference=True),
    "reference_learning_rate": positive(shapes_reference=True),
    "trust_checkpoint": flag(free_on_resume=True),
    # the linear prior
    "prior": text(path=True, shapes_reference=True, of_our_models=True, off="none"),
    "prior_weight": Setting(float, low=0.0, choices=(*CHOSEN_WEIGHTS, "learned"), shapes_reference=True),
    "prior_in_training": flag(shapes_reference=True),
    **{
        f"prior_{key}": replace(setting, nullable=True, shapes_reference=True)
        for key, setting in LINEAR_SETTINGS.items()
    },
    # training
    "train_positions": words("auto", "all", "last", shapes_reference=True),
    "window_stride": Setting(int, low=1, choices=("auto",), shapes_reference=True),
    "logits_memory_mb": positive(nullable=True, free_on_resume=True),
    "lr_scheduler": one_of("recbole_pref.schedule", "SCHEDULES", in_reference="none", of_our_models=True, off="none"),
    "warmup_ratio": Setting(float, low=0.0, high=1.0, open_high=True, in_reference=0.0, of_our_models=True, off=0),
    "max_nan_steps": Setting(int, low=0, of_our_models=True, off=0),
    "matmul_precision": words("highest", "high", "medium", shapes_reference=True),
    "amp_dtype": words("auto", "bfloat16", "float16", shapes_reference=True),
    # item features
    "mm_fields": Setting(list, choices=("auto",), reloads_data=True),
    "mm_fusion": one_of("recbole_pref.encoder.fusion", "FUSIONS"),
    "replace_id": words("none", "all", "tail"),
    "moe_experts": count(),
    "moe_top_k": count(),
    "moe_hidden": count(nullable=True),
    "moe_balance_weight": weight(),
    "moe_z_weight": weight(),
    # evaluation
    "mask_history": flag(scope="evaluation", shapes_reference=True),
    "collect_users": flag(scope="evaluation"),
    "objective": Setting(
        scope="evaluation",
        in_reference=None,
        shared_by_trials="set objective at the top level of the sweep file",
    ),
    # runs
    "init_from": Setting(
        str,
        nullable=True,
        path=True,
        derived=True,
        shapes_reference=True,
        of_our_models=True,
        off=None,
        free_on_resume=True,
    ),
    "resume": Setting(
        str, nullable=True, flag=True, scope="run", path=True, derived=True, set_by=("comparison", "sweep")
    ),
    "keep_last": count(scope="run"),
    "run_stem": Setting(str, nullable=True, scope="run", set_by=("comparison", "sweep")),
    "result_file": Setting(str, nullable=True, scope="run", path=True, derived=True, set_by=("comparison", "sweep")),
    "strict_config": flag(free_on_resume=True),
}
