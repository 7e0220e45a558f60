"""What a run stores, when it stops, and how it continues."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import set_color
from torch.optim.lr_scheduler import LambdaLR

from recbole_pref import checkpoint, distributed
from recbole_pref.errors import Interrupted, PrefError
from recbole_pref.training.resume import EpochPosition, ResumeState, RunState

if TYPE_CHECKING:
    from recbole.trainer import Trainer as _Trainer  # a later class in the order

    from recbole_pref.evaluation.objective import Objective
    from recbole_pref.model.transfer import Tokens
else:
    _Trainer = object


class SavingMixin(_Trainer):
    """The part of ``TrainerMixin`` that writes checkpoints, stops at signals and continues a run.

    A checkpoint is written at the start of every epoch and after the last one. When a signal stops the
    run, it is written after the running step. It holds everything that the rest of the run depends on, so
    a resumed run gives exactly the results of an uninterrupted one.
    """

    # Of RecBole's trainer and of TrainerMixin.
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    is_preference: bool
    objective: "Objective | None"
    scaler: torch.amp.GradScaler
    _train_data: Any
    _data_fingerprint: dict[str, Any]
    _tokens: "Tokens"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        stem = config["run_stem"] or checkpoint.run_stem(config["model"], config["dataset"])
        self.store = checkpoint.CheckpointDir(config["checkpoint_dir"], stem, config["keep_last"] or 2)
        self.saved_model_file = str(self.store.best_path)
        self.scheduler: LambdaLR | None = None
        self.epoch_times: list[float] = []  # seconds of training per epoch
        self.history: list[dict[str, Any]] = []  # one dict per validation
        self._valid_result: dict[str, float] | None = None  # metrics of the last validation
        self._reference_result: dict[str, float] | None = None  # metrics of the reference, if the objective uses them
        self._nan_steps = 0
        self._saving = False
        self._saved_epoch: int | None = None  # start_epoch of the last checkpoint of this process
        self._resumed: ResumeState | None = None
        self._resumed_file: str | Path | None = None
        self._signal: str | None = None
        self._within: EpochPosition | None = None  # position in the epoch at which a stopped run continues

    # -- signals ------------------------------------------------------------------------------

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a stop after the running step; only in the main thread.

        A signal that the process ignores is still ignored.

        RecBole's training loop cannot be stopped between steps. It ends at once, and a resumed run
        continues from the start of the epoch.
        """

        def note(number: int, frame: Any) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = signal.Signals(number).name
            if not self.is_preference:
                self._stop(self._saved_epoch or 0, None)

        handled = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
        try:
            before = {number: signal.signal(number, note) for number in handled}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, epoch_idx: int, within: tuple[EpochPosition, torch.Tensor] | None) -> None:
        """Store the state and end the run.

        Args:
            epoch_idx: the running epoch.
            within: ``EpochPosition`` and the state of the loader at the start of the epoch; None keeps the
                checkpoint of the epoch's start.
        """
        if not self._saving:
            raise Interrupted(f"{self._signal} stopped the run in epoch {epoch_idx}; nothing was saved.")
        if within is not None:
            self._save_last(epoch_idx, within=within)
        raise Interrupted(
            f"{self._signal} stopped the run in epoch {epoch_idx}; continue with --resume={self.store.last()}"
        )

    # -- checkpoints --------------------------------------------------------------------------

    def _run_state(self, start_epoch: int) -> dict[str, Any]:
        """Return the fields of a ``RunState``."""
        return {
            "model": self.config["model"],
            "config": checkpoint.to_plain(self.config.final_config_dict, other=str),
            "data": self._data_fingerprint,
            "item_tokens": self._tokens.items,
            "user_tokens": self._tokens.users,
            "row_tokens": self._tokens.rows,
            "epoch": start_epoch - 1,
            "start_epoch": start_epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "train_loss_dict": self.train_loss_dict,
            "state_dict": self.model.state_dict(),
            "other_parameter": checkpoint.pack_arrays(self.model.other_parameter()),
        }

    def _without_prior(self) -> dict[str, torch.Tensor]:
        state_dict = self.model.state_dict()
        if not self.is_preference or self.model.prior is None:
            return state_dict
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith("prior.")}

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write the best checkpoint; RecBole's trainer calls this after an improvement."""
        # RecBole passes epoch -1 when no epoch is left to train; a resumed run has stored its best.
        if not distributed.is_first() or (epoch < 0 and self._resumed is not None):
            return
        # RecBole calls this before it stores the new result.
        state = RunState(**{**self._run_state(epoch + 1), "best_valid_result": self._valid_result})
        path = self.store.save_best(state.to_dict())
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def save_after(self, epoch_idx: int) -> None:
        """Write the state after an epoch at once, not at the start of the next one, for ``callback_fn``.

        Args:
            epoch_idx: the epoch that just ended, from 0.

        Raises:
            PrefError: the file cannot be written.
        """
        self._save_last(epoch_idx + 1)

    def _save_last(
        self, start_epoch: int, finished: bool = False, within: tuple[EpochPosition, torch.Tensor] | None = None
    ) -> None:
        self._saved_epoch = start_epoch
        if not distributed.is_first():
            return
        position, loader = within or (None, self._train_data.generator.get_state())
        state = ResumeState(
            # The epoch names the file. A prior is stored separately and in the best checkpoint.
            **{**self._run_state(start_epoch), "epoch": start_epoch, "state_dict": self._without_prior()},
            finished=finished,
            optimizer=self.optimizer.state_dict(),
            optimizers={name: optimizer.state_dict() for name, optimizer in self._further_optimizers()},
            rng=checkpoint.rng_state(),
            loader=loader,
            within=position,
            log_sums=self.model.step.diagnostics.sums if self.is_preference else {},
            scheduler=self.scheduler.state_dict() if self.scheduler else None,
            scaler=self.scaler.state_dict(),
            nan_steps=self._nan_steps,
            reference_result=self._reference_result,
            epoch_times=self.epoch_times,
            history=self.history,
        )
        self.store.save_last(state.to_dict())

    def resume_checkpoint(self, resume_file: str | Path, state: Any = None) -> None:
        """Resume from a ``-last-`` checkpoint; ``fit`` then continues the run.

        Args:
            resume_file: a ``-last-`` checkpoint of this run.
            state (dict, optional): its contents, if they are already loaded.

        Raises:
            PrefError: the file is missing, damaged or of another run, or the run's best checkpoint is missing.
        """
        # On the CPU: torch's Adam reads its step counts at every step, which would wait for a GPU.
        state = checkpoint.load(resume_file, setting="resume") if state is None else state
        if state.get("model") != self.config["model"]:
            raise PrefError(
                f"resume={str(resume_file)!r} holds model {state.get('model')}, this run trains "
                f"{self.config['model']}: name the checkpoint of this model."
            )
        resumed = ResumeState.from_dict(state, resume_file)
        # The run continues in its folder, which holds its best checkpoint too.
        folder, stem = Path(resume_file).parent, Path(resume_file).name.rsplit("-last-", 1)[0]
        store = checkpoint.CheckpointDir(folder, stem, self.config["keep_last"] or 2)
        if resumed.best_valid_result is not None and store.best() is None:
            raise checkpoint.CorruptCheckpoint(
                f"resume={str(resume_file)!r} needs the best checkpoint of its run in the same folder, "
                f"{store.best_path.name}: copy it there too, or set resume: False to start again."
            )
        self._resumed, self._resumed_file, self.store = resumed, resume_file, store
        self.saved_model_file = str(store.best_path)

    def _continue_from(self, state: ResumeState) -> None:
        differences = checkpoint.compare_fingerprints(state.data, self._data_fingerprint)
        if differences:
            raise PrefError(
                f"resume: the checkpoint was trained on other data ({'; '.join(differences)}): use the "
                "data it was made with or set resume: False."
            )
        try:
            checkpoint.fill(self.model, state.to_dict())
        except RuntimeError as error:
            raise PrefError(
                "resume: the checkpoint does not fit the model: use the settings it was made with or set resume: False "
                f"({' '.join(str(error).split())[:300]})."
            ) from None
        if state.optimizers:
            for name, optimizer in self._further_optimizers():
                optimizer.load_state_dict(state.optimizers[name])
        else:
            self.optimizer.load_state_dict(state.optimizer)
        if self.scheduler is not None and state.scheduler:
            self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)
        # A run can be resumed with more epochs or more patience.
        stopped_early = state.cur_step > self.stopping_step
        self.start_epoch = self.epochs if stopped_early else min(state.start_epoch, self.epochs)
        self._follow_settings(state.config)
        self.cur_step = state.cur_step
        self.best_valid_score = state.best_valid_score
        self.best_valid_result = state.best_valid_result
        self.train_loss_dict = state.train_loss_dict
        self._nan_steps = state.nan_steps
        self.epoch_times, self.history = list(state.epoch_times), list(state.history)
        self._train_data.generator.set_state(state.loader.cpu())
        checkpoint.set_rng_state(state.rng)
        if self.is_preference:
            sums = {name: entry.to(self.device) for name, entry in state.log_sums.items()}
            self.model.step.diagnostics.sums = sums
        self._reference_result = state.reference_result
        if self._reference_result is not None and self.objective is not None:
            self.objective.take_reference(self._reference_result)
        self._within = state.within
        rank = distributed.world()[1]
        if rank:  # the stored states are those of the first process
            torch.manual_seed(self.config["seed"] + 1000 * rank + self.start_epoch)
        steps = f" and {state.within.steps} steps" if state.within else ""
        ended = ", nothing is left to train" if self.start_epoch == self.epochs else ""
        done = len(self.epoch_times)
        self.logger.info(
            f"resumed from {self._resumed_file}: {done} epoch{'' if done == 1 else 's'}{steps} done{ended}"
        )

    def _further_optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        """Return names and optimizers of a RecBole trainer with several optimizers (RecVAETrainer).

        Its attribute ``optimizer`` is then the one that was used last.
        """
        optimizers = ((name, value) for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer))
        return [(name, value) for name, value in optimizers if name != "optimizer"]

    def _follow_settings(self, stored: dict[str, Any]) -> None:
        """Let a new learning rate or weight decay replace the stored one (population-based training)."""
        optimizers = [optimizer for _, optimizer in self._further_optimizers()] or [self.optimizer]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        decay = self.config["weight_decay"]
        if stored.get("weight_decay") not in (None, decay):
            for group in groups:
                group["weight_decay"] = decay
            self.logger.info(f"weight decay changed from {stored['weight_decay']} to {decay}")
        rate = self.config["learning_rate"]
        if stored.get("learning_rate") in (None, rate):
            return
        factor = rate / stored["learning_rate"]
        for group in groups:
            for key in ("lr", "initial_lr"):
                if key in group:
                    group[key] = group[key] * factor
        if self.scheduler is not None:
            self.scheduler.base_lrs = [base * factor for base in self.scheduler.base_lrs]
        self.logger.info(f"learning rate changed from {stored['learning_rate']} to {rate}")
