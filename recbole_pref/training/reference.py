"""Reference models: trained once with cross-entropy, stored, found again, checked.

``reference: auto`` trains the plain backbone on the same data and keeps it under a key of everything that
shapes it: data, split, backbone settings, training settings and seed. Every method, run and sweep trial
with the same key shares the file; a lock lets two processes asking for it train it once. In a comparison,
a run of cross-entropy is the reference of those that ask for the same.
"""

import hashlib
import json
from contextlib import contextmanager
from copy import copy
from logging import getLogger
from pathlib import Path

import recbole
from filelock import FileLock, Timeout

from recbole_pref import checkpoint, distributed
from recbole_pref.errors import PrefError
from recbole_pref.model import prior
from recbole_pref.settings import attribute_of_settings, settings_with
from recbole_pref.settings.files import properties_dir, top_level_keys

_NOT_COMPARED = ("reference.", "prior.")  # parameters that a reference has not of its own


def fingerprint_of(dataset):
    """Return the data fingerprint of a RecBole training split; see ``checkpoint.data_fingerprint``."""
    tokens = dataset.field2id_token[dataset.iid_field]
    targets = dataset.inter_feat[dataset.iid_field]
    return checkpoint.data_fingerprint(tokens, dataset.user_num, len(targets), targets)


def backbone_settings(config, backbone_class):
    """Return the settings that are in the property files of a backbone, RecBole's and ours: dict."""
    folders = (Path(recbole.__file__).parent / "properties" / "model", properties_dir() / "backbone")
    files = [folder / f"{base.__name__}.yaml" for base in backbone_class.__mro__ for folder in folders]
    keys = {key for file in files if file.is_file() for key in top_level_keys(file)}
    return {key: config[key] for key in sorted(keys)}


def reference_key(config, backbone_class, fingerprint):
    """Return what identifies an automatically trained reference: dict of plain values."""
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


def _training_settings(config):
    """Return the settings that shape the training of a reference; a prior that is added after training does not."""
    settings = {key: config[key] for key in sorted(settings_with(shapes_reference=True))}
    if not prior.is_in_training(config):
        settings = {key: value for key, value in settings.items() if not key.startswith("prior")}
    return settings


def shaping_keys(config, backbone_class):
    """Return the settings on which an automatically trained reference depends: set of str."""
    return {*backbone_settings(config, backbone_class), *settings_with(shapes_reference=True)}


def reference_folder(config):
    """Return the folder of the references of a run."""
    return Path(config["reference_dir"] or Path(config["checkpoint_dir"], "reference"))


def reference_path(config, key):
    """Return where the reference of a key is stored."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return reference_folder(config) / f"{key['dataset']}-{key['backbone']}-{digest}.pth"


def obtain(config, model, train_data, valid_data, train):
    """Return the parameters of the reference for a preference model, training it if it must be.

    Args:
        config (Config): of the run.
        model (PreferenceMixin): the policy; its backbone is what the reference is.
        train_data, valid_data: RecBole's loaders.
        train (callable): ``(config, model_class, train_data, valid_data, stem) -> (state_dict,
            summary)`` trains a plain backbone; given by the trainer, which this module does not import.

    Returns:
        tuple: state_dict of the plain backbone, and a sentence for the log.

    Raises:
        PrefError: the named checkpoint is missing, damaged or foreign.
    """
    fingerprint = fingerprint_of(train_data._dataset)
    if config["reference"] != "auto":
        path = config["reference"]
        return load_reference(path, config, model, fingerprint), f"reference loaded from {path}"
    key = _completed(reference_key(config, model.backbone_class, fingerprint), model)
    path = reference_path(config, key)
    if not distributed.is_first():
        distributed.wait()  # until the first process has the lock: what it trains is logged
    try:
        lock = locked(path, timeout=0)
    except Timeout:
        getLogger().info(f"waiting for the reference that another process trains: {path}")
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


def _completed(key, model):
    return {**key, "features": model.feature_digest()} if hasattr(model, "feature_digest") else key


def key_asked(config):
    """Return the key of the reference that a run trains or finds, or None: see :func:`reference_key`.

    Without the data's fingerprint, to compare the runs of one data set before the data are read.
    """
    backbone = getattr(config.model_class, "backbone_class", None)
    if backbone is None or config["reference"] != "auto":
        return None
    return reference_key(config, backbone, None)


def key_offered(config, fingerprint=None):
    """Return the key of the reference that a run of cross-entropy is itself, or None where none is like it."""
    backbone = getattr(config.model_class, "backbone_class", None)
    alike = all(config[name] == value for name, value in attribute_of_settings("in_reference").items())
    if backbone is None or config["model"] != _model_of(backbone) or not alike:
        return None
    key = reference_key(config, backbone, fingerprint)
    key["training"]["reference_learning_rate"] = config["learning_rate"]
    return key


def differences(asked, offered):
    """Return how two keys of one backbone differ: list of str, settings of the first, then of the second."""
    words = {"reference_learning_rate": "learning_rate"}
    return [
        f"{name}={value}, there {words.get(name, name)}={offered[part].get(name)}"
        for part in ("settings", "training")
        for name, value in asked[part].items()
        if offered[part].get(name) != value
    ]


def locked(path, timeout=-1):
    """Return the lock of a reference, held.

    Raises:
        PrefError: the folder cannot be written.
        filelock.Timeout: another process has held it for all these seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock").acquire(timeout).lock
    except Timeout:
        raise
    except OSError as error:
        raise PrefError(
            f"reference_dir={str(path.parent)!r} cannot be written ({error.strerror}): name a folder "
            "that can."
        ) from None


def _claimed(path):
    """Return the lock of a reference, held, or None where the reference is there, being trained or not storable."""
    try:
        lock = locked(path, timeout=0)
    except Timeout:
        return None
    except PrefError as error:  # a run of cross-entropy itself needs no reference
        getLogger().warning(f"This run will not serve as a reference: {error}")
        return None
    if path.is_file():
        lock.release()
        return None
    return lock


@contextmanager
def offered(trainer, train_data):
    """Let a run of cross-entropy be the reference of others, bit for bit what ``reference: auto`` trains for them.

    While the run lasts, those that need it wait. Nothing happens for a run that no reference is like (another
    method, objective or schedule), nor where the reference is there already or being trained.

    Args:
        trainer (TrainerMixin): before its ``fit``.
        train_data: RecBole's loader.

    Yields:
        callable: ``() -> None``, to be called after ``fit``; stores the best epoch unless a reference would have
        been trained for more epochs.
    """
    config = trainer.config
    fingerprint = fingerprint_of(train_data._dataset)
    key = key_offered(config, fingerprint)
    if key is not None:
        key = _completed(key, trainer.model)
        path = reference_path(config, key)
    lock = key and _claimed(path)
    if lock is None:
        yield lambda: None
        return

    def store():
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


def load_reference(path, config, model, fingerprint):
    """Load a checkpoint of RecBole or of ours as reference and refuse a foreign one.

    Raises:
        PrefError: missing or damaged, or trained on other data or sizes; the message names the
            values that differ.
    """
    state = checkpoint.load(
        path, trust_pickle=bool(config["trust_checkpoint"]), setting="reference"
    )
    if not isinstance(state, dict) or "state_dict" not in state:
        raise PrefError(f"reference={path!r} holds no state_dict: name a checkpoint of a trained model.")
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(_NOT_COMPARED)
    }
    theirs = {k: v for k, v in state["state_dict"].items() if not k.startswith(_NOT_COMPARED)}
    differences = [
        f"{name}: {_shape(theirs.get(name))} != {_shape(own.get(name))}"
        for name in dict.fromkeys([*own, *theirs])
        if _shape(theirs.get(name)) != _shape(own.get(name))
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
    return theirs


def _shape(tensor):
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def _config_differences(theirs, config):
    """Compare the settings that decide the item vocabulary and the split."""
    keys = ("dataset", "eval_args", *sorted(settings_with(filters=True)), "load_col")
    pairs = ((key, theirs[key] if key in theirs else None, config[key]) for key in keys)
    return [f"{key}: {saved} != {own}" for key, saved, own in pairs if saved != own]


def training_config(config, backbone_class, stem=None):
    """Return a copy of a run's configuration that trains its backbone with cross-entropy alone.

    Args:
        config (Config): of the run.
        backbone_class (type): of RecBole.
        stem (str, optional): of the checkpoint files of the training.
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
            "log_wandb": False,  # whose curves are those of the run
            "prior": config["prior"] if prior.is_in_training(config) else "none",
            "keep_last": 1,
            # Apart from the run's own checkpoints, which --resume looks for.
            "checkpoint_dir": str(reference_folder(config) / "training"),
            "run_stem": stem,
        }
    )
    return other


def _model_of(backbone_class):
    return f"CE{backbone_class.__name__}"
