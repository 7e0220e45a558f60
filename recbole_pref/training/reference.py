"""Reference models: trained once with cross-entropy, stored, checked and reused.

``reference: auto`` trains the plain backbone on the same data. It is stored under a key of everything that
determines it: data, split, backbone settings, training settings and seed. All methods, runs and sweep
trials with the same key share the file. A lock ensures that concurrent processes train it once. In a
comparison, a run of cross-entropy is the reference of the runs with the same key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout

from recbole_pref import checkpoint, distributed
from recbole_pref.errors import PrefError
from recbole_pref.model import prior
from recbole_pref.settings import attribute_of_settings, settings_with
from recbole_pref.settings.files import backbone_settings

_NOT_COMPARED = ("reference.", "prior.")  # parameters that are not part of a reference


def fingerprint_of(dataset: Any) -> dict[str, Any]:
    """Return the data fingerprint of a RecBole training split; see ``checkpoint.data_fingerprint``."""
    tokens = dataset.field2id_token[dataset.iid_field]
    targets = dataset.inter_feat[dataset.iid_field]
    return checkpoint.data_fingerprint(tokens, dataset.user_num, len(targets), targets)


def reference_key(config: Any, backbone_class: type, fingerprint: dict[str, Any] | None) -> dict[str, Any]:
    """Return the key of an automatically trained reference: a dict of plain values."""
    return checkpoint.to_plain(
        {
            "backbone": backbone_class.__name__,
            "dataset": config["dataset"],
            "data": fingerprint,
            "settings": backbone_settings(config, backbone_class),
            "training": _training_settings(config),
        },
        other=str,
    )


def _training_settings(config: Any) -> dict[str, Any]:
    """Return the settings that affect the training of a reference, without those of a prior that is added later."""
    settings = {key: config[key] for key in sorted(settings_with(shapes_reference=True))}
    # The content of the checkpoint counts, not its path. Without one, the key is that of earlier versions.
    start = settings.pop("init_from")
    if start:
        settings["init_from"] = checkpoint.file_digest(start)
    if prior.is_in_training(config):
        settings["prior_scores"] = "leave one out"  # those of earlier versions were of a fit with the row
    else:
        settings = {key: value for key, value in settings.items() if not key.startswith("prior")}
    return settings


def shaping_keys(config: Any, backbone_class: type) -> set[str]:
    """Return the names of the settings on which an automatically trained reference depends."""
    return {*backbone_settings(config, backbone_class), *settings_with(shapes_reference=True)}


def reference_folder(config: Any) -> Path:
    """Return the folder of the references of a run."""
    return Path(config["reference_dir"] or Path(config["checkpoint_dir"], "reference"))


def reference_path(config: Any, key: dict[str, Any]) -> Path:
    """Return the path of the reference with this key."""
    return reference_folder(config) / f"{key['dataset']}-{key['backbone']}-{checkpoint.short_digest(key)}.pth"


def obtain(
    config: Any,
    model: Any,
    train_data: Any,
    valid_data: Any,
    train: Callable[..., tuple[dict[str, torch.Tensor], dict[str, Any]]],
) -> tuple[dict[str, torch.Tensor], str]:
    """Return the parameters of the reference for a preference model; train it if necessary.

    Args:
        config (Config): of the run.
        model (PreferenceMixin): the policy, whose backbone is the reference.
        train_data, valid_data: RecBole's loaders.
        train: ``(config, model_class, train_data, valid_data, stem) -> (state_dict, summary)`` trains a plain
            backbone; the trainer passes it, because this module does not import the trainer.

    Returns:
        tuple: state_dict of the plain backbone, and a sentence for the log.

    Raises:
        PrefError: the named checkpoint is missing, damaged or does not fit.
    """
    fingerprint = fingerprint_of(train_data._dataset)
    if config["reference"] != "auto":
        path = config["reference"]
        return load_reference(path, config, model, fingerprint), f"reference loaded from {path}"
    key = _completed(reference_key(config, model.backbone_class, fingerprint), model)
    path = reference_path(config, key)
    if not distributed.is_first():
        distributed.wait()  # until the first process has the lock, so that it trains and logs
    try:
        lock = locked(path, timeout=0)
    except Timeout:
        getLogger().info(f"waiting for another process that trains the reference: {path}")
        lock = None
    if distributed.is_first():
        distributed.wait()
    lock = lock or locked(path)
    try:
        if path.is_file():
            try:
                return checkpoint.load(path, setting="reference")["state_dict"], f"reference {path}"
            except checkpoint.CorruptCheckpoint as error:
                getLogger().warning("%s It is trained again.", error)
        state_dict, summary = train(config, model.backbone_class, train_data, valid_data, path.stem)
        checkpoint.save({"state_dict": state_dict, "data": fingerprint, "key": key, **summary}, path)
        return state_dict, f"reference trained and stored as {path}"
    finally:
        lock.release()


def _completed(key: dict[str, Any], model: Any) -> dict[str, Any]:
    return {**key, "features": model.feature_digest()} if hasattr(model, "feature_digest") else key


def needed_key(config: Any) -> dict[str, Any] | None:
    """Return the key of the reference that a run needs, or None; see :func:`reference_key`.

    The key has no fingerprint of the data, so that runs can be compared before the data are read.
    """
    backbone = getattr(config.model_class, "backbone_class", None)
    if backbone is None or config["reference"] != "auto":
        return None
    return reference_key(config, backbone, None)


def serving_key(config: Any, fingerprint: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the key under which this run can serve as a reference, or None."""
    backbone = getattr(config.model_class, "backbone_class", None)
    same_training = all(config[name] == value for name, value in attribute_of_settings("in_reference").items())
    if backbone is None or config["model"] != _model_of(backbone) or not same_training:
        return None
    key = reference_key(config, backbone, fingerprint)
    key["training"]["reference_learning_rate"] = config["learning_rate"]
    return key


def differences(needed: dict[str, Any], serving: dict[str, Any]) -> list[str]:
    """Return the settings in which two keys of one backbone differ, with both values."""
    names = {"reference_learning_rate": "learning_rate"}
    return [
        f"{name}={value}, there {names.get(name, name)}={serving[part].get(name)}"
        for part in ("settings", "training")
        for name, value in needed[part].items()
        if serving[part].get(name) != value
    ]


def locked(path: Path, timeout: float = -1) -> BaseFileLock:
    """Acquire the lock of a reference and return it.

    Raises:
        PrefError: the folder cannot be written.
        filelock.Timeout: another process held the lock for ``timeout`` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock").acquire(timeout).lock
    except Timeout:
        raise
    except OSError as error:
        raise PrefError(
            f"reference_dir={str(path.parent)!r} cannot be written ({error.strerror}): name a writable folder."
        ) from None


def _claimed(path: Path) -> BaseFileLock | None:
    """Acquire and return the lock of a reference, or None if it exists, is being trained or cannot be stored."""
    try:
        lock = locked(path, timeout=0)
    except Timeout:
        return None
    except PrefError as error:  # a run of cross-entropy needs no reference
        getLogger().warning(f"This run will not serve as a reference: {error}")
        return None
    if path.is_file():
        lock.release()
        return None
    return lock


@contextmanager
def serving(trainer: Any, train_data: Any) -> Iterator[Callable[[], None]]:
    """Let a run of cross-entropy serve as the reference of others, identical to that of ``reference: auto``.

    Runs that need the reference wait for the end of this run. The block has no effect if the run cannot serve as a
    reference (another method, objective or schedule), or if the reference exists or is being trained.

    Args:
        trainer (TrainerMixin): before its ``fit``.
        train_data: RecBole's loader.

    Yields:
        callable: ``() -> None``, to be called after ``fit``. It stores the best epoch, unless a reference would be
        trained for more epochs.
    """
    config = trainer.config
    fingerprint = fingerprint_of(train_data._dataset)
    key = serving_key(config, fingerprint)
    if key is not None:
        key = _completed(key, trainer.model)
        path = reference_path(config, key)
    lock = None if key is None else _claimed(path)
    if lock is None:
        yield lambda: None
        return

    def store() -> None:
        epochs, most = len(trainer.epoch_times), config["reference_epochs"]
        stopped_early = epochs < min(config["epochs"], most)
        if stopped_early or epochs == most:
            state = {"state_dict": trainer.best_parameters(), "data": fingerprint, "key": key, "epochs": epochs}
            try:
                checkpoint.save(state, path)
            except PrefError as error:
                getLogger().warning(f"This run does not serve as a reference: {error}")

    try:
        yield store
    finally:
        lock.release()


def load_reference(path: str | Path, config: Any, model: Any, fingerprint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Load a checkpoint of RecBole or of ours as reference, and refuse one that does not fit.

    Raises:
        PrefError: missing or damaged, or trained on other data or sizes; the message names the
            values that differ.
    """
    state = checkpoint.load(path, trust_pickle=bool(config["trust_checkpoint"]), setting="reference")
    if not isinstance(state, dict) or "state_dict" not in state:
        raise PrefError(f"reference={path!r} holds no state_dict: name a checkpoint of a trained model.")
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_NOT_COMPARED)}
    stored = {k: v for k, v in state["state_dict"].items() if not k.startswith(_NOT_COMPARED)}
    differences = [
        f"{name}: {_shape(stored.get(name))} != {_shape(expected.get(name))}"
        for name in dict.fromkeys([*expected, *stored])
        if _shape(stored.get(name)) != _shape(expected.get(name))
    ]
    if isinstance(state.get("data"), dict):
        differences = checkpoint.compare_fingerprints(state["data"], fingerprint) + differences
    elif state.get("config") is not None:
        differences = _config_differences(state["config"], config) + differences
    if differences:
        raise PrefError(
            f"reference={str(path)!r} does not fit this run (checkpoint != run): "
            f"{'; '.join(differences[:6])}; train it on the same data, split and sizes, or use auto."
        )
    return stored


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def _config_differences(stored: Any, config: Any) -> list[str]:
    """Compare the settings that determine the item vocabulary and the split."""
    keys = ("dataset", "eval_args", *sorted(settings_with(filters=True)), "load_col")
    pairs = ((key, stored[key] if key in stored else None, config[key]) for key in keys)
    return [f"{key}: {before} != {now}" for key, before, now in pairs if before != now]


def training_config(config: Any, backbone_class: type, stem: str | None = None) -> Any:
    """Return a copy of a run's configuration that trains its backbone with plain cross-entropy.

    Args:
        config (Config): of the run.
        backbone_class: of RecBole.
        stem: of the checkpoint files of the training.
    """
    other = copy(config)
    other.final_config_dict = dict(config.final_config_dict)
    other.final_config_dict.update(
        {
            **attribute_of_settings("in_reference"),
            "model": _model_of(backbone_class),
            "epochs": config["reference_epochs"],
            "learning_rate": config["reference_learning_rate"],
            "resume": False,
            "result_file": None,
            "log_wandb": False,  # its curves are those of the run
            "prior": config["prior"] if prior.is_in_training(config) else "none",
            "keep_last": 1,
            # Not in the folder of the run's checkpoints, which --resume searches.
            "checkpoint_dir": str(reference_folder(config) / "training"),
            "run_stem": stem,
        }
    )
    return other


def _model_of(backbone_class: type) -> str:
    return f"CE{backbone_class.__name__}"
