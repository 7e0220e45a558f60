"""One trial of a sweep: a run that reports every validation with a checkpoint, and can continue from one."""

import gc
import os
import pickle
import shutil
import tempfile
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch

from recbole_pref import checkpoint, cluster, distributed
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.memory import explained, peak_mb, restart_peak
from recbole_pref.model.prior import is_added_after_training
from recbole_pref.quick_start import refuse_other_defaults
from recbole_pref.tune.space import as_setting

STEM = "trial"  # of the names of checkpoint files
REASON = "reason.txt"  # file in the folder of a trial with the reason of its failure


def train_trial(params: dict[str, Any], shared: dict[str, Any]) -> None:
    """Train with one point of the search space. This is a function trainable of Ray Tune.

    Args:
        params: values of the searched settings.
        shared: ``model``, ``dataset``, ``settings`` (fixed), ``data`` (pickled data set, or None if the space changes
            it), ``references`` (content of files by name), ``reference_dir``, ``resources`` (CPUs and GPUs of a worker,
            and number of workers), ``defaults`` (their ``digest_of_defaults``).

    Raises:
        PrefError: the settings do not work together, the loss is not finite, or memory is exhausted.
    """
    from ray import tune

    # The process may have trained another trial before.
    gc.collect()
    restart_peak()
    # Seconds that Ray waits for the thread of a stopped trial to end; if it takes longer, the next trial fails.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
    folder = _working_folder(tune.get_context().get_trial_id())
    reason = folder / REASON
    if reason.is_file():  # Ray restarts failed trials; do not train again
        raise PrefError(reason.read_text(encoding="utf-8"))
    try:
        cpus, gpus, workers = shared["resources"]
        arguments = {"params": params, "shared": shared, "folder": folder, "start": tune.get_checkpoint()}
        cluster.run_in_group(_train, arguments, workers, cpus, gpus)
    except PrefError as error:
        reason.write_text(str(error), encoding="utf-8")
        raise


def _working_folder(trial_id: str) -> Path:
    """Return a local folder that Ray does not copy and that remains after the process of the trial ends."""
    current = Path.cwd()  # Ray may be configured to keep the folder of the caller
    if current.name == trial_id:
        return current
    return Path(tempfile.mkdtemp(prefix="recbole_pref-"))


@explained()
def _train(params: dict[str, Any], shared: dict[str, Any], folder: Path, start: Any) -> None:
    """Train in a worker of a trial; the first worker reports.

    Args:
        params, shared: see :func:`train_trial`.
        folder: folder of the first worker; another one writes into its working folder.
        start: Ray's checkpoint from which the trial continues, or None.
    """
    from ray import tune

    torch.set_num_threads(max(1, int(shared["resources"][0])))
    folder = folder if distributed.is_first() else Path.cwd()
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
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # use the GPUs that Ray assigned to this trial
        settings["gpu_id"] = os.environ["CUDA_VISIBLE_DEVICES"]
    config = Config(shared["model"], shared["dataset"], config_dict=settings)
    refuse_other_defaults(config, shared["defaults"], "sweep")
    dataset = pickle.loads(shared["data"]) if shared["data"] is not None else None
    run = build_run(config, log=False, dataset=dataset)
    trainer = run.trainer
    if start is not None:
        with start.as_directory() as directory:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(directory, work)
        newest: Any = checkpoint.newest_good(work, STEM)
        trainer.resume_checkpoint(*newest)

    def report(epoch_idx: int, score: float) -> None:
        trainer.save_after(epoch_idx)
        metrics = {name: value for name, value in trainer.history[-1].items() if name != "epoch"}
        send({**metrics, "epoch": epoch_idx + 1})

    def send(metrics: dict[str, Any]) -> None:
        if not distributed.is_first():
            return
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            for path in (trainer.store.last(), trainer.store.best()):
                if path is not None:
                    os.link(path, Path(directory, Path(path).name))
            metrics = {**metrics, **_best(trainer), "peak_memory_mb": peak_mb()}
            metrics["seconds_per_epoch"] = sum(trainer.epoch_times) / len(trainer.epoch_times)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))

    trainer.best_valid_score, trainer.best_valid_result = trainer.fit(
        run.train_data, run.valid_data, verbose=False, callback_fn=report
    )
    if is_added_after_training(config):  # its last report lacks the prior
        send({"score": float(trainer.best_valid_score), "epoch": len(trainer.epoch_times)})


def _best(trainer: Any) -> dict[str, Any]:
    """Return score, epoch and metrics (with the prefix ``best_``) of the best validation so far."""
    row = {name: float(value) for name, value in (trainer.best_valid_result or {}).items()}
    return {
        "best_score": float(trainer.best_valid_score),
        "best_epoch": trainer.best_epoch,
        **{f"best_{name}": value for name, value in row.items()},
    }


def _put_missing(folder: Path, files: dict[str, bytes]) -> None:
    """Write the shared reference models to a folder on another machine, if they are missing."""
    for name, content in files.items():
        if not (folder / name).is_file():
            checkpoint.write_atomically(folder / name, methodcaller("write", content), "reference_dir")
