"""The parts of a run, built from a checkpoint: settings, data and model."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from recbole.data.dataset import Dataset

from recbole_pref import checkpoint
from recbole_pref.build import Loaders, build_model, prepare_data
from recbole_pref.config import Config, given_data_path
from recbole_pref.errors import PrefError, reason_of
from recbole_pref.methods import method_of
from recbole_pref.model.names import model_class
from recbole_pref.settings import settings_with
from recbole_pref.settings.files import readable_keys
from recbole_pref.training.reference import fingerprint_of


def load_model(
    state: Mapping[str, Any], model_file: str | os.PathLike[str], config: Config, dataset: Dataset
) -> torch.nn.Module:
    """Build the model of a checkpoint, load its weights and set it to evaluation mode.

    Args:
        state: the content of a checkpoint.
        model_file: its file, for messages.
        config: the configuration, as returned by ``load_data``.
        dataset: the data set of the training loader of ``load_data``.

    Raises:
        PrefError: the model cannot be built with these settings and data, or the weights do not fit.
    """
    model = build_model(model_class(config["model"]), config, dataset).to(config["device"])
    try:
        checkpoint.fill(model, state)
    except RuntimeError as error:
        raise PrefError(f"model_file={str(model_file)!r} does not fit its model: {reason_of(error)}") from error
    return model.eval()


def load_data(
    state: Mapping[str, Any],
    model_file: str | os.PathLike[str],
    overrides: dict[str, Any],
    log: bool = True,
    unsplit: Callable[[Dataset], None] | None = None,
) -> tuple[Config, Dataset, Loaders]:
    """Load the data that a checkpoint was trained on.

    Args:
        state: ``model``, ``config`` and ``data`` of a checkpoint.
        model_file: its file, for messages.
        overrides: settings to change.
        log, unsplit: see ``prepare_data``.

    Returns:
        Configuration, data set, and the training, validation and test loaders.

    Raises:
        PrefError: the data are missing or are not those of the checkpoint.
    """
    config = Config(state["model"], state["config"].get("dataset"), config_dict=settings_of(state, **overrides))
    dataset, loaders = prepare_data(config, log, unsplit=unsplit)
    differences = checkpoint.compare_fingerprints(state["data"], fingerprint_of(loaders[0]._dataset))
    if differences:
        raise PrefError(
            f"model_file={str(model_file)!r} was trained on other data ({'; '.join(differences)}): set "
            "data_path to the original data."
        )
    return config, dataset, loaders


def settings_of(state: Mapping[str, Any], /, **overrides: Any) -> dict[str, Any]:
    """Return the settings of a checkpoint for ``config_dict``.

    Args:
        state: the content of a checkpoint.
        **overrides: settings to change.
    """
    settings = {k: v for k, v in state["config"].items() if k not in settings_with(derived=True)}
    if settings.get("strict_config", True):
        # Some of RecBole's models add facts about the data to the configuration.
        settings = {k: v for k, v in settings.items() if k in readable_keys()}
    if method_of(model_class(state["model"])) is not None:
        settings.pop("loss_type", None)  # FPMC sets RecBole's loss_type
    negatives = settings.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution") == "none":
        settings["train_neg_sample_args"] = None
    if "data_path" in settings:
        settings["data_path"] = given_data_path(state["config"])
    return {**settings, **overrides}
