"""Estimate time and memory of a run from a few timed steps: ``recbole-pref --estimate``.

The data are loaded and the model is built as for the run itself. The reference and the prior are not computed: the
steps use a reference with random parameters, and the memory of the prior follows from the number of items.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from tabulate import tabulate

from recbole_pref.build import RunParts, build_run
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.memory import peak_mb
from recbole_pref.methods import method_of
from recbole_pref.model import prior

_STEPS = 5  # timed after the first


class Estimate(NamedTuple):
    """Estimated time and memory of a run. Memory is in MiB and includes the imported libraries.

    Attributes:
        data_seconds: time to load the data and to build the model, once per run.
        data_mb: peak memory of the process until then.
        epoch_seconds: time to train one epoch.
        training_mb: peak memory until the end of the timed steps.
        validation_seconds: time to rank the validation set; None if there is none.
        evaluation_mb: peak memory until one batch was ranked.
        device_mb: peak memory of the accelerator; None on a CPU.
        prior_mb: memory of the weights of a dense prior; None if the run has no prior.
        epochs: largest number of epochs of the run.
        steps: number of steps per epoch.
    """

    data_seconds: float
    data_mb: float
    epoch_seconds: float
    training_mb: float
    validation_seconds: float | None
    evaluation_mb: float
    device_mb: float | None
    prior_mb: float | None
    epochs: int
    steps: int

    def text(self) -> str:
        """Return the estimate as a table, with a note about what it does not include."""
        rows = [
            ["data and model", f"{self.data_mb:.0f}", f"{self.data_seconds:.1f} s, once"],
            ["training", f"{self.training_mb:.0f}", f"{self.epoch_seconds:.1f} s per epoch of {self.steps} steps"],
        ]
        validation = self.validation_seconds or 0.0
        if self.validation_seconds is not None:
            rows.append(["evaluation", f"{self.evaluation_mb:.0f}", f"{validation:.1f} s per validation"])
        if self.device_mb is not None:
            rows.append(["accelerator", f"{self.device_mb:.0f}", ""])
        if self.prior_mb is not None:
            rows.append(["prior (dense weights)", f"{self.prior_mb:.0f}", "not timed"])
        hours = (self.data_seconds + self.epochs * (self.epoch_seconds + validation)) / 3600
        return (
            tabulate(rows, ["part", "peak MiB", "time"], "github", disable_numparse=True)
            + f"\n{self.epochs} epochs with a validation each take {hours:.2f} hours; early stopping may end them "
            "sooner. The training of a reference is not included."
        )


class _First:
    """The first batches of a loader, which a trainer reads as one epoch."""

    def __init__(self, loader: Any, steps: int) -> None:
        self.loader, self.steps = loader, steps

    def __len__(self) -> int:
        return min(self.steps, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.steps)


def whole_epoch(first: float, several: float, timed: int, steps: int) -> float:
    """Extrapolate the seconds of a whole epoch from two shortened epochs.

    Args:
        first: seconds of an epoch that was stopped after one step; it includes the start of the loader.
        several: seconds of an epoch that was stopped after ``1 + timed`` steps.
        timed: number of steps after the first.
        steps: number of steps of a whole epoch.
    """
    step_seconds = max(several - first, 0.0) / timed if timed else 0.0
    return first + (steps - 1) * step_seconds


def estimate(
    model: str, dataset: str, config_file_list: list[str] | None = None, config_dict: dict | None = None
) -> Estimate:
    """Time a few training steps of a run and one batch of its evaluation. Only log/ and log_tensorboard/ are written.

    Args:
        model, dataset, config_file_list, config_dict: see ``run_recbole_pref``.

    Raises:
        PrefError: the settings or the data are not valid, or the model has no method.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = Config(model, dataset, config_file_list, dict(config_dict or {}))
        if method_of(given.model_class) is None:
            raise PrefError(
                f"--estimate does not work with model={model!r}: only <Method><Backbone> models are estimated "
                "(CESASRec is SASRec with cross-entropy)."
            )
        settings = {**(config_dict or {}), "prior": "none", "checkpoint_dir": folder, "state": "WARNING"}
        run = build_run(Config(model, dataset, config_file_list, settings), log=False)
        trainer = run.trainer
        # The time of a step does not depend on whether the reference is trained.
        trainer._start_from_reference = lambda *data: None
        data_seconds, data_mb = time.perf_counter() - started, peak_mb()
        trainer.start(run.train_data, run.valid_data)
        loader = trainer._loader
        steps = len(loader)
        timed = min(_STEPS, steps - 1)
        _seconds_of(trainer, loader, 1)  # allocates what later steps use again
        first = _seconds_of(trainer, loader, 1)
        several = _seconds_of(trainer, loader, 1 + timed)
        training_mb = peak_mb()
        validation_seconds = _rank(run) if run.valid_data else None
        trainer.tensorboard.close()
    device_mb = torch.cuda.max_memory_allocated() / 2**20 if trainer.device.type == "cuda" else None
    n_items = run.dataset.item_num
    return Estimate(
        data_seconds=data_seconds,
        data_mb=data_mb,
        epoch_seconds=whole_epoch(first, several, timed, steps),
        training_mb=training_mb,
        validation_seconds=validation_seconds,
        evaluation_mb=peak_mb(),
        device_mb=device_mb,
        prior_mb=8 * n_items**2 / 2**20 if prior.is_used(given) else None,
        epochs=given["epochs"],
        steps=steps,
    )


def _seconds_of(trainer: Any, loader: Any, steps: int) -> float:
    """Return the seconds of an epoch with only this number of steps."""
    trainer._loader = _First(loader, steps)
    started = time.perf_counter()
    trainer.train_epoch()  # ends by reading the loss, so an accelerator has finished
    return time.perf_counter() - started


@torch.no_grad()
def _rank(run: RunParts) -> float:
    """Return the estimated seconds to rank the validation set: those of its first batch times the number of batches."""
    trainer, loader = run.trainer, run.valid_data
    run.model.eval()
    trainer.tot_item_num = run.dataset.item_num
    trainer.item_tensor = loader._dataset.get_item_feature().to(trainer.device)
    full = isinstance(loader, FullSortEvalDataLoader)
    rank = trainer._full_sort_batch_eval if full else trainer._neg_sample_batch_eval
    started = time.perf_counter()
    interaction, scores, positive_u, positive_i = rank(next(iter(loader)))
    trainer.eval_collector.eval_batch_collect(scores, interaction, positive_u, positive_i)
    seconds = time.perf_counter() - started
    trainer.eval_collector.reset()
    return seconds * len(loader)
