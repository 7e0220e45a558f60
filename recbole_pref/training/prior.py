"""The linear prior of a run and its weight. A prior is fitted once per data, split and settings, and stored.

``prior_weight`` is chosen on the validation set after training (``auto`` or ``objective``), learned in training
(``learned``), or given. ``prior_in_training`` puts the prior into the logits of the loss.
"""

from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from recbole.utils import calculate_valid_score

from recbole_pref import checkpoint
from recbole_pref.errors import PrefError
from recbole_pref.model.linear import LinearModel, LinearSettings
from recbole_pref.model.linear_models import LINEAR_MODELS, training_sequences
from recbole_pref.model.prior import Prior, is_in_training
from recbole_pref.settings import LINEAR_SETTINGS, PRIORS
from recbole_pref.settings.files import properties_dir
from recbole_pref.training.reference import fingerprint_of, locked, reference_folder

# Weights that ``auto`` compares on the validation set, in ascending order.
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.4, 2.0, 2.8, 4.0)
# Validation scores count as equal up to this share of the best; see ``choose_weight``.
_EQUAL = 0.01


def linear_settings(config: Any) -> tuple[LinearSettings, float | None]:
    """Return the settings of a configuration's prior, and the decay of its histories.

    An empty setting ``prior_*`` takes the default of the linear model's property file.
    """
    name = PRIORS[config["prior"]]
    values: dict[str, Any] = {}
    for base in ("LinearRecommender", name):
        file = properties_dir() / "backbone" / f"{base}.yaml"
        values.update(yaml.safe_load(file.read_text(encoding="utf-8")))
    given = {key: config[f"prior_{key}"] for key in LINEAR_SETTINGS}
    values.update({key: value for key, value in given.items() if value is not None})
    values["MAX_ITEM_LIST_LENGTH"] = config["MAX_ITEM_LIST_LENGTH"]
    return LINEAR_MODELS[name.lower()].linear_settings(values), values["tau_inf"]


def obtain(config: Any, dataset: Any) -> Prior:
    """Return the prior of a run; fit and store it if it does not exist yet.

    With ``prior_in_training``, TALE in the dense form has the excess of the training rows, stored beside the weights.
    A stored prior without it is fitted again. Other priors have none; see ``linear.target_excess``.

    Args:
        config (Config): configuration of the run.
        dataset (SequentialDataset): the training split.

    Raises:
        PrefError: the named checkpoint is not of a linear model on the same items, or the prior cannot be fitted.
    """
    if config["prior"] not in PRIORS:
        return _from_checkpoint(config, dataset)
    settings, tau_inf = linear_settings(config)
    fingerprint = fingerprint_of(dataset)
    key = checkpoint.to_plain({"data": fingerprint, "prior": vars(settings), "tau_inf": tau_inf}, other=str)
    path = reference_folder(config) / f"{config['dataset']}-prior-{config['prior']}-{checkpoint.short_digest(key)}.pth"
    in_training = is_in_training(config)
    lock = locked(path)
    try:
        if path.is_file():
            try:
                state = checkpoint.load(path, setting="reference_dir")
                if "excess" in state or not in_training:
                    prior = Prior(dataset.item_num)
                    prior.load_state_dict(state["state_dict"])
                    prior.excess = state["excess"] if in_training else None
                    getLogger().info(f"prior {path}")
                    return prior
            except checkpoint.CorruptCheckpoint as error:
                getLogger().warning(f"{error} The prior is fitted again.")
        linear = LinearModel(dataset.item_num, tau_inf)
        sequences = training_sequences(dataset)
        excess = linear.fit(sequences, settings, with_excess=in_training)
        prior = Prior.of(linear)
        state = {"state_dict": prior.state_dict(), "key": key}
        if excess is not None and sequences.rows is not None:
            is_target = sequences.rows >= 0
            prior.excess = torch.from_numpy(excess[is_target][np.argsort(sequences.rows[is_target])])
        if in_training:
            state["excess"] = prior.excess
        checkpoint.save(state, path)
        getLogger().info(f"prior {config['prior']} fitted and stored as {path}")
        return prior
    finally:
        lock.release()


def _from_checkpoint(config: Any, dataset: Any) -> Prior:
    path = Path(config["prior"])
    state = checkpoint.load(path, setting="prior")
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
    weights = {
        name.removeprefix("linear."): tensor
        for name, tensor in (state.get("state_dict") or {}).items()
        if name.startswith("linear.")
    }
    if not weights:
        raise PrefError(
            f"prior={str(path)!r} is not a checkpoint of a linear model: name one of {', '.join(PRIORS)} or a "
            "checkpoint of --model=TALE, SLIST or SeqEASE."
        )
    if state.get("item_tokens") != tokens:
        raise PrefError(f"prior={str(path)!r} was fitted on other items: fit it on the same data, or name a model.")
    linear = LinearModel(dataset.item_num, state["config"]["tau_inf"])
    linear.load_state_dict(weights)
    return Prior.of(linear)


def choose_weight(
    trainer: Any, valid_data: Any, weights: tuple[float, ...] = WEIGHTS
) -> tuple[float, dict[float, dict]]:
    """Choose the weight of the prior on the validation set, and give it to the model.

    With ``prior_weight: objective``, the weight with the best score of ``objective`` wins. Otherwise ``valid_metric``
    decides, and the largest weight with at least 99% of the best score wins. The epoch of the network was chosen on
    the same rows, so there the network alone scores better than on new rows, and the best weight is too small for them.

    Args:
        trainer (TrainerMixin): trainer of a model with a prior; its settings name the rule.
        valid_data: RecBole's loader.
        weights: the weights to compare, in ascending order.

    Returns:
        tuple: the weight, and the validation metrics of each weight.

    Raises:
        PrefError: no weight has a score.
    """
    rule = trainer.config["prior_weight"]
    by_objective = rule == "objective"
    name = rule if by_objective else trainer.valid_metric
    results, scores = {}, []
    for weight in weights:
        trainer.model.set_prior_weight(weight)
        result = results[weight] = dict(trainer.evaluate(valid_data, load_best_model=False))
        scores.append(trainer.score_of(result) if by_objective else calculate_valid_score(result, name))
        getLogger().info(f"prior_weight {weight:g}: validation {name} {scores[-1]:.4f}")
    larger_is_better = by_objective or trainer.valid_metric_bigger
    ranked = np.array(scores) if larger_is_better else -np.array(scores)
    if np.isnan(ranked).all():
        raise PrefError(f"prior_weight={rule!r} found no score on the validation set: set it to a number.")
    best = np.nanmax(ranked)
    equal = 0.0 if by_objective else _EQUAL * abs(best)
    chosen = weights[np.flatnonzero(ranked >= best - equal)[-1]]
    trainer.model.set_prior_weight(chosen)
    getLogger().info(f"prior_weight {chosen:g} was chosen on the validation set")
    return chosen, results
