"""One trial of a sweep: a run that reports every validation with a checkpoint and goes on from one."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import torch

from recbole_pref import checkpoint
from recbole_pref.config import Config, digest_of_defaults
from recbole_pref.errors import PrefError
from recbole_pref.memory import explained, peak_mb
from recbole_pref.quick_start import build_run
from recbole_pref.tune.space import as_setting

STEM = "trial"  # of the checkpoint files
REASON = "reason.txt"  # in a trial's folder: why it cannot succeed


def train_trial(params, shared):
    """Train with one point of the search space; a function trainable of Ray Tune.

    Args:
        params (dict): values of the swept settings.
        shared (dict): ``model``, ``dataset``, ``settings`` (fixed ones), ``data`` (pickled data set, or
            None where the space changes it), ``references`` (file name to bytes), ``threads``, ``defaults``
            (their ``digest_of_defaults``).

    Raises:
        PrefError: a combination that cannot work, a loss that is not finite, out of memory.
    """
    from ray import tune

    folder = _working_folder(tune.get_context().get_trial_id())
    reason = folder / REASON
    if reason.is_file():  # restarted although it cannot succeed: do not train again
        raise PrefError(reason.read_text(encoding="utf-8"))
    try:
        with explained():
            _train(params, shared, folder)
    except PrefError as error:
        reason.write_text(str(error), encoding="utf-8")
        raise


def _working_folder(trial_id):
    """Return a folder of this machine that outlives the trial's process, and that Ray does not copy."""
    here = Path.cwd()  # of the trial, unless Ray was told to stay in the caller's
    if here.name == trial_id:
        return here
    return Path(tempfile.mkdtemp(prefix="recbole_pref-"))


def _train(params, shared, folder):
    from ray import tune

    torch.set_num_threads(shared["threads"])
    work = folder / "work"
    references = Path(shared["reference_dir"] or work / "reference")
    _put_missing(references, shared["references"])
    settings = {
        **shared["settings"],
        **{key: as_setting(key, value) for key, value in params.items()},
        "checkpoint_dir": str(work),
        "reference_dir": str(references),
        "run_stem": STEM,
    }
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # Ray gave this trial its GPUs; RecBole would take gpu_id's
        settings["gpu_id"] = os.environ["CUDA_VISIBLE_DEVICES"]
    config = Config(shared["model"], shared["dataset"], config_dict=settings)
    if digest_of_defaults(config) != shared["defaults"]:
        raise PrefError(
            "the defaults are not those that the sweep began with: a property file or plugin was edited, or this "
            "machine has another version."
        )
    dataset = pickle.loads(shared["data"]) if shared["data"] is not None else None
    run = build_run(config, log=False, dataset=dataset)
    trainer = run.trainer
    start = tune.get_checkpoint()
    if start is not None:
        with start.as_directory() as stored:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(stored, work)
        trainer.resume_checkpoint(*checkpoint.newest_good(work, STEM))

    def report(epoch_idx, score):
        trainer.save_after(epoch_idx)
        with tempfile.TemporaryDirectory(dir=folder) as stored:
            for path in (trainer.store.last(), trainer.store.best()):
                if path is not None:
                    os.link(path, Path(stored, Path(path).name))
            told = {name: value for name, value in trainer.history[-1].items() if name != "epoch"}
            told = {**told, **_best(trainer), "epoch": epoch_idx + 1, "peak_memory_mb": peak_mb()}
            told["seconds_per_epoch"] = sum(trainer.epoch_times) / len(trainer.epoch_times)
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(stored))

    trainer.fit(run.train_data, run.valid_data, verbose=False, callback_fn=report)


def _best(trainer):
    """Return the best validation so far, its metrics behind ``best_``, and its epoch."""
    row = {name: float(value) for name, value in (trainer.best_valid_result or {}).items()}
    return {
        "best_score": float(trainer.best_valid_score),
        "best_epoch": trainer.best_epoch,
        **{f"best_{name}": value for name, value in row.items()},
    }


def _put_missing(folder, files):
    """Write the shared reference models into a folder that lacks them (another machine's)."""
    for name, content in files.items():
        if not (folder / name).is_file():
            checkpoint.write_atomically(
                folder / name, lambda file, content=content: file.write(content), "reference_dir"
            )
