"""RecBole's trainer with packed batches, references, schedules, safe checkpoints and exact resume."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, dict2str, set_color
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_pref import checkpoint, distributed, schedule
from recbole_pref.errors import Interrupted, PrefError
from recbole_pref.evaluation import objective
from recbole_pref.evaluation.ranking import EvaluationMixin
from recbole_pref.model import transfer
from recbole_pref.model.batch import RowLoader
from recbole_pref.model.packing import PackedLoader
from recbole_pref.model.preference import PreferenceMixin
from recbole_pref.model.prior import is_added_after_training, is_in_training, is_weight_chosen
from recbole_pref.training import prior, reference
from recbole_pref.training.optimizer import without_dynamo
from recbole_pref.training.resume import EpochPosition
from recbole_pref.training.saving import SavingMixin

# Steps between checks of the loss on an accelerator, where each check waits for the device.
_CHECK_EVERY = 50
FitResult: TypeAlias = tuple[float | None, dict[str, float] | None]  # best score, metrics of the best epoch


class TrainerMixin(SavingMixin, EvaluationMixin):
    """The additions of our trainers to a trainer class of RecBole."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.eval_collector = self._make_collector()
        self.is_preference = isinstance(model, PreferenceMixin)
        self.objective = objective.of_config(config)
        if self.objective is not None:
            self.valid_metric_bigger, self.best_valid_score = True, -float("inf")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        self._loader: Any = None  # PackedLoader or RowLoader of a preference model
        self.has_started = False  # whether the first epoch, or the next one of a resumed run, can begin

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        kwargs.setdefault("params", [p for p in self.model.parameters() if p.requires_grad])
        return without_dynamo(partial(super()._build_optimizer, **kwargs))

    # -- fit ----------------------------------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> FitResult:
        """Train as RecBole's ``Trainer.fit``; see there for arguments and result.

        Raises:
            PrefError: an empty head or tail among the targets, a reference that does not fit, a loss
                that is not finite, an output folder that cannot be written.
            Interrupted: SIGINT or SIGTERM arrived; the message says how to continue.
        """
        self._saving = saved
        self.start(train_data, valid_data)
        with self._catching_signals():
            result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        # A resumed run that was already finished does not change its files.
        if saved and (self._resumed is None or self.start_epoch < self.epochs):
            done = min(len(self.epoch_times), self.epochs)  # some of RecBole's trainers have several passes per epoch
            self._save_last(done, finished=True)
            if "keep_last" not in self.config.external_config_dict:
                self.store.keep_latest()
        return self._add_prior(train_data, valid_data, saved, result)

    def _add_prior(self, train_data: Any, valid_data: Any, saved: bool, result: FitResult) -> FitResult:
        """Add a linear prior that is not part of the training to the best model; return the result of fit."""
        config = self.config
        if not self.is_preference or not is_added_after_training(config):
            return result
        distributed.wait()  # until the first process has written the best model
        state = checkpoint.load(self.saved_model_file) if saved and self.store.best() else None
        if state is not None:
            checkpoint.fill(self.model, state)
            if "prior_weight" in state["state_dict"]:  # the run was resumed after its end
                return state["best_valid_score"], state["best_valid_result"]
        self.model.attach_prior(prior.obtain(config, train_data._dataset))
        if is_weight_chosen(config):
            weight, results = prior.choose_weight(self, valid_data)
            self.best_valid_result = results[weight]
        else:
            self.model.set_prior_weight(config["prior_weight"])
            if valid_data:
                self.best_valid_result = dict(self.evaluate(valid_data, load_best_model=False))
        if self.best_valid_result is not None:
            self.best_valid_score = self.score_of(self.best_valid_result)
        if state is not None and distributed.is_first():
            state |= {"best_valid_score": self.best_valid_score, "best_valid_result": self.best_valid_result}
            self.store.save_best({**state, "state_dict": self.model.state_dict()})
        return self.best_valid_score, self.best_valid_result

    def score_of(self, result: dict[str, float]) -> float:
        """Return the score that selects the best epoch, from the metrics of a validation."""
        if self.objective is not None:
            return self.objective.score(result)
        return calculate_valid_score(result, self.valid_metric)

    def prepare(self, train_data: Any) -> None:
        """Prepare the model for training on these data, once.

        Args:
            train_data: RecBole's loader.

        Raises:
            PrefError: settings that cannot work on these data.
        """
        self.eval_collector.data_collect(train_data)
        if self.is_preference and self.model.step is None:
            if is_in_training(self.config):
                weight = self.config["prior_weight"]
                attached = prior.obtain(self.config, train_data._dataset)
                self.model.attach_prior(attached, 1.0 if weight == "learned" else weight)
            self.model.prepare_training(self.config, train_data._dataset)

    def start(self, train_data: Any, valid_data: Any = None) -> None:
        """Prepare the first epoch of a run, or the next epoch of a resumed run.

        Afterwards ``train_epoch`` only trains an epoch, so that benchmarks can time it.

        Args:
            train_data, valid_data: RecBole's loaders.

        Raises:
            PrefError: see ``fit``.
        """
        self.prepare(train_data)
        self.check_groups(valid_data, "validation")
        if self.is_preference and is_weight_chosen(self.config) and not valid_data:
            weight = self.config["prior_weight"]
            raise PrefError(f"prior_weight={weight!r} needs validation rows, and the split has none: set a number.")
        self._train_data, dataset = train_data, train_data._dataset
        self._data_fingerprint = reference.fingerprint_of(dataset)
        self._tokens = transfer.Tokens.of(self.model, dataset)
        if self.is_preference:
            self._make_loader(train_data)
            if self._resumed is None:
                self._start_from_reference(train_data, valid_data)
                self._start_from_checkpoint()
            self._make_scheduler()
        if self._resumed is not None:
            self._continue_from(self._resumed)
        if self.is_preference:
            self._cache_reference(train_data)
        self.has_started = True

    def train_epoch(self, epoch_idx: int = 0) -> float:
        """Train one epoch after ``start`` and return the sum of its losses."""
        return self._preference_epoch(epoch_idx, False) if self.is_preference else self._stock_epoch(epoch_idx)

    def _stock_epoch(self, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        return super()._train_epoch(self._train_data, epoch_idx, loss_func, show_progress)

    def _make_loader(self, train_data: Any) -> None:
        step = self.model.step
        if step.train_path == "all":
            stride = self.config["window_stride"]
            if stride == "auto":
                stride = max(1, self.config["MAX_ITEM_LIST_LENGTH"] // 2)
            self._loader = PackedLoader(train_data, stride, self.device.type == "cuda")
        else:
            self._loader = RowLoader(train_data, step.fields)
        scores = "fused chunks over the catalogue" if step.needs_normalizer else "K + 1 scores"
        self.logger.info(
            "training path: RecBole's loss and rows, unchanged"
            if step.is_plain
            else f"training path: {step.train_path} ({step.train_path_reason}); {scores}"
        )

    def _start_from_reference(self, train_data: Any, valid_data: Any) -> None:
        if self.config["reference"] != "none":
            self.model.start_from(self.obtain_reference(train_data, valid_data))
            self._measure_reference(train_data, valid_data)

    def _start_from_checkpoint(self) -> None:
        """Take over the parameters that ``init_from`` names.

        With ``reference: auto`` the reference's training starts from them, and the policy from the reference.
        """
        if self.config["init_from"] and self.config["reference"] != "auto":
            self.logger.info(transfer.start(self.model, self.config, self._tokens))

    def _make_scheduler(self) -> None:
        config = self.config
        shape = schedule.SCHEDULES[config["lr_scheduler"]]
        if config["lr_scheduler"] != "none" or config["warmup_ratio"]:
            total = self.epochs * len(self._loader)
            warmup = round(config["warmup_ratio"] * total)
            self.scheduler = LambdaLR(self.optimizer, lambda step: shape(step, warmup, total))

    def obtain_reference(self, train_data: Any, valid_data: Any) -> dict[str, torch.Tensor]:
        """Return the reference's parameters; train and store the reference if it does not exist yet.

        Raises:
            PrefError: the named checkpoint is missing, damaged or does not fit.
            Interrupted: a signal arrived after the last step of the reference's training.
        """
        signals = []

        def train(*arguments: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            with distributed.alone():
                state_dict, summary, received = train_reference(*arguments)
            signals.append(received)
            return state_dict, summary

        with _random_states_restored(train_data), _marked("reference"):
            try:
                state_dict, message = reference.obtain(self.config, self.model, train_data, valid_data, train)
            except Interrupted:  # it names the checkpoint of the reference's training
                message = "the run was stopped while its reference was trained; give the command again to continue."
                raise Interrupted(message) from None
        self.logger.info(message)
        if any(signals):
            raise Interrupted(f"{signals[0]} stopped the run after its reference was stored; give the command again.")
        return state_dict

    def _measure_reference(self, train_data: Any, valid_data: Any) -> None:
        """Validate the reference, which the policy still equals, if the objective uses its metrics."""
        if self.objective is None or not self.objective.of_reference or not valid_data:
            return
        with _random_states_restored(train_data):
            result = self.evaluate(valid_data, load_best_model=False)
        metrics = {name: float(value) for name, value in result.items()}
        self._reference_result = metrics
        self.objective.take_reference(metrics)
        self.logger.info(f"the reference on the validation set: {dict2str(metrics)}")

    def _cache_reference(self, train_data: Any) -> None:
        """Cache the reference's representations; a resumed run has its reference only now."""
        model, frozen = self.model, self.model.step.reference
        if self.config["reference_cache"] and frozen is not None and model.backbone is not None:
            started = time.perf_counter()
            with _random_states_restored(train_data):
                # The rounding of a row depends on its batch, so a resumed run must use the
                # same batches.
                train_data.generator.manual_seed(self.config["seed"])
                frozen.fill_cache(self._loader, len(train_data._dataset))
            self.logger.info(f"reference cached in {time.perf_counter() - started:.1f}s")

    # -- one epoch ----------------------------------------------------------------------------

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        if self._saving and epoch_idx not in (self._saved_epoch, self._resumed and self._resumed.start_epoch):
            self._save_last(epoch_idx)
        self._epoch_started = time.perf_counter() - (self._within.seconds if self._within else 0.0)
        if self.is_preference and loss_func is None:
            self._renew_reference(epoch_idx)
            total = self._preference_epoch(epoch_idx, show_progress)
        else:
            total = self._stock_epoch(epoch_idx, loss_func, show_progress)
        self.epoch_times.append(time.perf_counter() - self._epoch_started)
        return total

    def _renew_reference(self, epoch_idx: int) -> None:
        """Replace the reference by a copy of the policy every ``reference_renewal`` epochs."""
        every = self.config["reference_renewal"]
        if every and epoch_idx and epoch_idx % every == 0 and self._within is None and self.model.reference is not None:
            self.model.renew_reference()
            self._cache_reference(self._train_data)

    @property
    def best_epoch(self) -> int | None:
        """Number of the epoch of the best checkpoint, from 1; None before the first validation score.

        Of equal scores the latest is the best, as in RecBole's early stopping.
        """
        return self.history[-1 - self.cur_step]["epoch"] + 1 if self.cur_step < len(self.history) else None

    def best_parameters(self) -> dict[str, torch.Tensor]:
        """Return the stored parameters of the best epoch, or of the last one without validation.

        The parameters of a prior are excluded, and so is its weight if it was added after training.
        """
        path = self.store.best() or self.store.last()
        assert path is not None  # fit has stored one
        state_dict = checkpoint.load(path, setting="reference")["state_dict"]
        added = "prior." if is_in_training(self.config) else "prior"
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith(added)}

    def losses_per_row(self) -> list[float]:
        """Return the training loss per row of each epoch so far, as a mean over its steps.

        RecBole sums the losses of an epoch's steps, and each is a mean over the rows of the step. Here the sum is
        divided by the number of steps, so that runs with different batch sizes are comparable. The unit is nats if
        the loss is a log-likelihood, as are the losses of this package.
        """
        steps = len(self._train_data if self._loader is None else self._loader)
        return [self.train_loss_dict[epoch] / steps for epoch in sorted(self.train_loss_dict)]

    def _preference_epoch(self, epoch_idx: int, show_progress: bool) -> float:
        model, config = self.model, self.config
        model.train()
        within, self._within = self._within, None
        done = within.steps if within else 0
        total = within.total.to(self.device) if within else torch.zeros((), device=self.device)
        loader_state = self._train_data.generator.get_state()
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        check_every = 1 if self.device.type == "cpu" or config["max_nan_steps"] else _CHECK_EVERY
        batches = self._loader
        amp_dtype = _amp_dtype(config["amp_dtype"], self.device.type)
        if show_progress:
            batches = tqdm(batches, ncols=100, desc=set_color(f"Train {epoch_idx:>5}", "pink"))
        batches = iter(batches)
        for _ in range(done):
            next(batches)
        # Skipping batches may have drawn random numbers. The stored states are those of the first process.
        if within and self._resumed is not None and distributed.is_first():
            checkpoint.set_rng_state(self._resumed.rng)
        for step, batch in enumerate(batches, done):
            batch = distributed.share(batch).to(self.device)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, amp_dtype, enabled=self.enable_amp):
                loss = model.calculate_loss(batch)
            self.scaler.scale(loss).backward()
            distributed.sum_gradients(model.parameters())
            loss = distributed.total(loss)
            finite &= torch.isfinite(loss.detach())
            if (step + 1) % check_every == 0:
                finite &= self._gradients_finite()
                if not finite:
                    self._skip_or_stop(epoch_idx, step, batch, loss)
                    finite.fill_(True)
                    continue
            if self.clip_grad_norm:
                self.scaler.unscale_(self.optimizer)
                clip_grad_norm_(model.parameters(), **self.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scheduler is not None:
                self.scheduler.step()
            total += loss.detach()
            if self._signal is not None:
                seconds = time.perf_counter() - self._epoch_started
                self._stop(epoch_idx, (EpochPosition(step + 1, total, seconds), loader_state))
        if check_every > 1:
            finite &= self._gradients_finite()  # of the last step
        if not finite:
            self._skip_or_stop(epoch_idx, step, batch, loss)
        return total.item()

    def _gradients_finite(self) -> Any:
        if self.scaler.is_enabled():
            return True  # the scaler checks them itself
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return not norms or torch.isfinite(torch.stack(norms).sum())

    def _skip_or_stop(self, epoch_idx: int, step: int, batch: Any, loss: torch.Tensor) -> None:
        """Count a step whose loss or gradient is not finite; stop when there are too many."""
        self._nan_steps += 1
        self.model.step.diagnostics.sums = {}
        with torch.no_grad():
            self.model.calculate_loss(batch)
        parts = ", ".join(f"{name} {v:.4g}" for name, v in self.model.pop_diagnostics().items())
        where = (
            f"epoch {epoch_idx}, batch {step}, model {self.config['model']}: the loss is "
            f"{loss.item():.4g} or its gradient is not finite (parts: {parts or 'cross-entropy only'})"
        )
        if self._nan_steps > self.config["max_nan_steps"]:
            hint = f" The last good checkpoint is {self.store.last()}." if self.store.last() else ""
            raise PrefError(
                f"{where}; lower learning_rate or set clip_grad_norm, or allow skipped steps with max_nan_steps.{hint}"
            )
        self.optimizer.zero_grad()
        self.logger.warning(f"{where}; the step is skipped")

    def _check_nan(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise PrefError(
                f"model {self.config['model']}: the training loss is {loss.item()}; lower "
                "learning_rate or set clip_grad_norm."
            )

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        score, result = super()._valid_epoch(valid_data, show_progress=show_progress)
        score = self.score_of(result) if self.objective is not None else score
        self._valid_result = result
        diagnostics = self.model.pop_diagnostics() if self.is_preference else {}
        share = self.eval_collector.tail_share
        if share is not None:
            diagnostics["tail_share"] = share
        epoch = len(self.epoch_times) - 1
        if diagnostics:
            parts = "    ".join(f"{name} : {value:.4g}" for name, value in diagnostics.items())
            self.logger.info(set_color("alignment", "blue") + f": {parts}")
        curves = {f"Alignment/{name}": value for name, value in diagnostics.items()}
        curves |= {f"Valid/{name}": value for name, value in result.items()}
        curves["LearningRate"] = self.optimizer.param_groups[0]["lr"]
        for name, value in curves.items():
            self.tensorboard.add_scalar(name, value, epoch)
        # RecBole itself logs the validation metrics there.
        logged = {**diagnostics, "learning_rate": curves["LearningRate"], "valid_step": epoch}
        self.wandblogger.log_metrics(logged, head="valid", commit=False)
        self.history.append({"epoch": epoch, "score": score, **result, **diagnostics})
        return score, result

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Evaluate as RecBole does, after verifying the checkpoint's checksum."""
        if eval_data and load_best_model:
            distributed.wait()  # until the first process has written it
            state = checkpoint.load(
                model_file or self.saved_model_file,
                map_location=self.device,
                trust_pickle=bool(self.config["trust_checkpoint"]),
                setting="checkpoint",
            )
            checkpoint.fill(self.model, state)
            self.logger.info(f"best model loaded from {model_file or self.saved_model_file}")
        return super().evaluate(eval_data, False, show_progress=show_progress)


def _amp_dtype(name: str, device_type: str) -> torch.dtype:
    """Return the dtype of ``enable_amp``: by default bfloat16 if the device supports it."""
    if name != "auto":
        return getattr(torch, name)
    half = device_type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if half else torch.bfloat16


class PrefTrainer(TrainerMixin, Trainer):
    """The trainer of preference models and of RecBole's models that use RecBole's plain trainer."""


@cache
def trainer_class(base: type) -> type:
    """Return our trainer on top of a trainer class of RecBole.

    Args:
        base: the result of RecBole's ``get_trainer``.
    """
    if issubclass(base, TrainerMixin):
        return base
    if base is Trainer:
        return PrefTrainer
    return type(f"Pref{base.__name__}", (TrainerMixin, base), {"__doc__": base.__doc__})


@contextmanager
def _random_states_restored(train_data: Any) -> Iterator[None]:
    """Restore the random states afterwards: a run must not depend on whether a reference existed."""
    states, loader = checkpoint.rng_state(), train_data.generator.get_state()
    try:
        yield
    finally:
        checkpoint.set_rng_state(states)
        train_data.generator.set_state(loader)


@contextmanager
def _marked(word: str) -> Iterator[None]:
    """Prefix log messages of the block with a word."""

    def mark(record: logging.LogRecord) -> bool:
        record.msg = f"[{word}] {record.msg}"
        return True

    handlers = list(logging.getLogger().handlers[:1])  # the handlers share the record, so one filter is enough
    for handler in handlers:
        handler.addFilter(mark)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(mark)


def train_reference(
    config: Any, backbone_class: type, train_data: Any, valid_data: Any, stem: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str | None]:
    """Train a backbone with cross-entropy for ``reference: auto``.

    Returns:
        tuple: state_dict of its best epoch, a dict with its epochs and validation metrics, and the name of a signal
        that arrived after the last step, or None.
    """
    from recbole.utils import init_seed

    from recbole_pref.methods import METHODS
    from recbole_pref.model.names import preference_class

    settings = reference.training_config(config, backbone_class, stem)
    init_seed(settings["seed"], settings["reproducibility"])
    cls = preference_class(METHODS["CE"], backbone_class)
    model = cls(settings, train_data._dataset).to(settings["device"])
    trainer = PrefTrainer(settings, model)
    trainer.logger.info(set_color("training the reference", "pink") + f": {settings['model']}")
    # Its curves are stored separately, because the steps of the run begin at 0 again.
    trainer.tensorboard.close()
    trainer.tensorboard = SummaryWriter(f"{trainer.tensorboard.log_dir}-reference")
    try:  # to resume a training that was killed
        newest = checkpoint.newest_good(trainer.store.folder, stem)
        if newest:
            trainer.resume_checkpoint(*newest)
    except checkpoint.CorruptCheckpoint as error:
        trainer.logger.warning(f"{error} The reference is trained from its start.")
    score, result = trainer.fit(train_data, valid_data, saved=True)
    state_dict = trainer.best_parameters()
    for file in trainer.store.files():
        file.unlink(missing_ok=True)
    valid = {name: float(value) for name, value in (result or {}).items()}
    return state_dict, {"epochs": len(trainer.epoch_times), "valid": valid}, trainer._signal
