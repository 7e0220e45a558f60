"""RecBole's trainer with packed batches, references, schedules, safe checkpoints and exact resume."""

import logging
import signal
import time
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

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
from recbole_pref.model.batch import RowLoader
from recbole_pref.model.packing import PackedLoader
from recbole_pref.model.preference import PreferenceMixin
from recbole_pref.model.prior import is_in_training, is_used
from recbole_pref.training import prior, reference
from recbole_pref.training.optimizer import without_dynamo
from recbole_pref.training.resume import ResumeState, RunState, Within

# Steps between two looks at the loss on an accelerator, where each look waits for the device.
_CHECK_EVERY = 50


class TrainerMixin(EvaluationMixin):
    """What our trainers add to a trainer class of RecBole.

    A checkpoint is written at the start of every epoch and after the last, and after the running step
    when a signal stops the run; it holds all that the rest of the run depends on, so a killed run that
    goes on ends bit for bit as one that was not.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.eval_collector = self._make_collector()
        stem = config["run_stem"] or checkpoint.run_stem(config["model"], config["dataset"])
        self.store = checkpoint.CheckpointDir(config["checkpoint_dir"], stem, config["keep_last"] or 2)
        self.saved_model_file = str(self.store.folder / f"{stem}-best.pth")
        self.is_preference = isinstance(model, PreferenceMixin)
        self.objective = objective.of_config(config)
        if self.objective is not None:
            self.valid_metric_bigger, self.best_valid_score = True, -float("inf")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        self.scheduler = None
        self.epoch_times = []  # seconds of training per epoch
        self.history = []  # one dict per validation
        self._valid_result = None  # metrics of the last validation
        self._reference_result = None  # of the reference, where the objective compares with it
        self._loader = None
        self._saving = False
        self._saved_epoch = None  # start_epoch of the last checkpoint of this process
        self._resumed = None
        self._resumed_file = None
        self._nan_steps = 0
        self._signal = None
        self._within = None  # where in an epoch a stopped run goes on

    def _build_optimizer(self, **kwargs):
        kwargs.setdefault("params", [p for p in self.model.parameters() if p.requires_grad])
        return without_dynamo(partial(super()._build_optimizer, **kwargs))

    # -- fit ----------------------------------------------------------------------------------

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train as RecBole's ``Trainer.fit``; see there for arguments and result.

        Raises:
            PrefError: an empty head or tail among the targets, a reference that does not fit, a loss
                that is not finite, an output folder that cannot be written.
            Interrupted: SIGINT or SIGTERM arrived; the message says how to go on.
        """
        self._saving = saved
        self.start(train_data, valid_data)
        with self._catching_signals():
            result = super().fit(
                train_data, valid_data, verbose, saved, show_progress, callback_fn
            )
        # A resumed run with nothing left to do keeps its files as they are.
        if saved and (self._resumed is None or self.start_epoch < self.epochs):
            done = min(len(self.epoch_times), self.epochs)  # some of RecBole's trainers have several passes per epoch
            self._save_last(done, finished=True)
            if "keep_last" not in {**self.config.file_config_dict, **self.config.variable_config_dict}:
                self.store.keep_latest()
        return self._add_prior(train_data, valid_data, saved, result)

    def _add_prior(self, train_data, valid_data, saved, result):
        """Add a linear prior that is not part of the training to the best model; return the result of fit."""
        config = self.config
        if not self.is_preference or not is_used(config) or is_in_training(config):
            return result
        state = checkpoint.load(self.saved_model_file) if saved and self.store.best() else None
        if state is not None:
            checkpoint.fill(self.model, state)
            if "prior_weight" in state["state_dict"]:  # of a run that was resumed after its end
                return state["best_valid_score"], state["best_valid_result"]
        self.model.attach_prior(prior.obtain(config, train_data._dataset))
        if config["prior_weight"] == "auto":
            weight, score, metrics = prior.choose_weight(self, valid_data)
            self.model.set_prior_weight(weight)
            self.best_valid_score, self.best_valid_result = score, metrics
            self.logger.info(f"prior_weight {weight:g} is the best on the validation set: {score:.4f}")
        else:
            self.model.set_prior_weight(config["prior_weight"])
            if valid_data:
                self.best_valid_result = dict(self.evaluate(valid_data, load_best_model=False))
                self.best_valid_score = self.score_of(self.best_valid_result)
        if state is not None:
            state |= {"best_valid_score": self.best_valid_score, "best_valid_result": self.best_valid_result}
            self.store.save_best({**state, "state_dict": self.model.state_dict()})
        return self.best_valid_score, self.best_valid_result

    def score_of(self, result):
        """Return what the best epoch follows, of the metrics of a validation."""
        if self.objective is not None:
            return self.objective.score(result)
        return calculate_valid_score(result, self.valid_metric)

    def prepare(self, train_data):
        """Give the model what training on these data needs, once.

        Args:
            train_data: RecBole's loader.

        Raises:
            PrefError: settings that cannot work on these data.
        """
        self.eval_collector.data_collect(train_data)
        if self.is_preference and self.model.step is None:
            if is_in_training(self.config):
                self.model.attach_prior(prior.obtain(self.config, train_data._dataset), self._fixed_prior_weight())
            self.model.prepare_training(self.config, train_data._dataset)

    def _fixed_prior_weight(self):
        weight = self.config["prior_weight"]
        return 1.0 if weight == "learned" else weight

    def start(self, train_data, valid_data=None):
        """Bring a run to where its first epoch, or the next one of a resumed run, can begin.

        Afterwards ``train_epoch`` trains an epoch and nothing else, which is what benchmarks time.

        Args:
            train_data, valid_data: RecBole's loaders.

        Raises:
            PrefError: see ``fit``.
        """
        self.prepare(train_data)
        self.check_groups(valid_data, "validation")
        chooses = self.is_preference and is_used(self.config) and self.config["prior_weight"] == "auto"
        if chooses and not valid_data:
            raise PrefError("prior_weight='auto' needs validation rows, and the split has none: set it to a number.")
        self._train_data, dataset = train_data, train_data._dataset
        self._data_fingerprint = reference.fingerprint_of(dataset)
        self._item_tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        if self.is_preference:
            self._make_loader(train_data)
            self._start_from_reference(train_data, valid_data)
            self._make_scheduler()
        if self._resumed is not None:
            self._continue_from(self._resumed)
        if self.is_preference:
            self._cache_reference(train_data)

    def train_epoch(self, epoch_idx=0):
        """Train one epoch after ``start`` and return the sum of its losses: float."""
        return self._preference_epoch(epoch_idx, False) if self.is_preference else self._recboles_epoch(epoch_idx)

    def _recboles_epoch(self, epoch_idx, loss_func=None, show_progress=False):
        return super()._train_epoch(self._train_data, epoch_idx, loss_func, show_progress)

    def _make_loader(self, train_data):
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
            "training path: RecBole's own loss and rows, nothing is changed"
            if step.is_plain
            else f"training path: {step.train_path} ({step.train_path_reason}); {scores}"
        )

    def _start_from_reference(self, train_data, valid_data):
        if self._resumed is None and self.config["reference"] != "none":
            self.model.start_from(self.obtain_reference(train_data, valid_data))
            self._measure_reference(train_data, valid_data)

    def _make_scheduler(self):
        config = self.config
        shape = schedule.SCHEDULES[config["lr_scheduler"]]
        if config["lr_scheduler"] != "none" or config["warmup_ratio"]:
            total = self.epochs * len(self._loader)
            warmup = round(config["warmup_ratio"] * total)
            self.scheduler = LambdaLR(self.optimizer, lambda step: shape(step, warmup, total))

    def obtain_reference(self, train_data, valid_data):
        """Return the reference's parameters, training and storing them if they are not there yet.

        Raises:
            PrefError: the named checkpoint is missing, damaged or foreign.
            Interrupted: a signal came when no step of the reference's training was left to stop after.
        """
        signals = []

        def train(*arguments):
            with distributed.alone():
                state_dict, summary, heard = train_reference(*arguments)
            signals.append(heard)
            return state_dict, summary

        with _random_states_kept(train_data), _marked("reference"):
            try:
                state_dict, told = reference.obtain(self.config, self.model, train_data, valid_data, train)
            except Interrupted:  # which names the reference's own checkpoint
                told = "the run was stopped while its reference was trained; give the command again to go on."
                raise Interrupted(told) from None
        self.logger.info(told)
        if any(signals):
            raise Interrupted(f"{signals[0]} stopped the run once its reference was stored; give the command again.")
        return state_dict

    def _measure_reference(self, train_data, valid_data):
        """Validate the reference, which the policy still equals, where the objective compares with it."""
        if self.objective is None or not self.objective.of_reference or not valid_data:
            return
        with _random_states_kept(train_data):
            result = self.evaluate(valid_data, load_best_model=False)
        self._reference_result = {name: float(value) for name, value in result.items()}
        self.objective.take_reference(self._reference_result)
        self.logger.info(f"the reference on the validation set: {dict2str(self._reference_result)}")

    def _cache_reference(self, train_data):
        """Keep the reference's representations; a resumed run has its reference only now."""
        model, of_step = self.model, self.model.step.reference
        if self.config["reference_cache"] and of_step is not None and model.backbone is not None:
            started = time.perf_counter()
            with _random_states_kept(train_data):
                # A row's last bits depend on the batch it is computed in, so the batches must be the
                # same ones wherever a run goes on.
                train_data.generator.manual_seed(self.config["seed"])
                of_step.fill_cache(self._loader, len(train_data._dataset))
            self.logger.info(f"reference cached in {time.perf_counter() - started:.1f}s")

    # -- one epoch ----------------------------------------------------------------------------

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        if self._saving and epoch_idx not in (self._saved_epoch, self._resumed and self._resumed.start_epoch):
            self._save_last(epoch_idx)
        self._epoch_started = time.perf_counter() - (self._within.seconds if self._within else 0.0)
        if self.is_preference and loss_func is None:
            self._renew_reference(epoch_idx)
            total = self._preference_epoch(epoch_idx, show_progress)
        else:
            total = self._recboles_epoch(epoch_idx, loss_func, show_progress)
        self.epoch_times.append(time.perf_counter() - self._epoch_started)
        return total

    def _renew_reference(self, epoch_idx):
        """Begin a round of ``reference_renewal`` epochs with a reference that is a copy of the policy."""
        every = self.config["reference_renewal"]
        if every and epoch_idx and epoch_idx % every == 0 and self._within is None and self.model.reference is not None:
            self.model.renew_reference()
            self._cache_reference(self._train_data)

    @property
    def best_epoch(self):
        """Number of the epoch of the best checkpoint, from 1; None before a validation had a score.

        Of equal scores the latest counts, as in RecBole's early stopping.
        """
        return self.history[-1 - self.cur_step]["epoch"] + 1 if self.cur_step < len(self.history) else None

    def best_parameters(self):
        """Return the stored parameters of the best epoch, or of the last one where none was validated.

        The weights of a prior are left out, and so is its own weight where it was added after training.
        """
        state_dict = checkpoint.load(self.store.best() or self.store.last(), setting="reference")["state_dict"]
        added = "prior." if is_in_training(self.config) else "prior"
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith(added)}

    def losses_per_row(self):
        """Return the training loss per row of each epoch so far, as a mean over its steps: list of float.

        RecBole sums the losses of an epoch's steps, each a mean over the rows of the step; here the sum is divided
        by the number of steps, so that runs with other batch sizes can be compared. Nats where the loss is a
        log-likelihood, as those of this package are.
        """
        steps = len(self._train_data if self._loader is None else self._loader)
        return [self.train_loss_dict[epoch] / steps for epoch in sorted(self.train_loss_dict)]

    def _preference_epoch(self, epoch_idx, show_progress):
        model, config = self.model, self.config
        model.train()
        within, self._within = self._within, None
        done = within.steps if within else 0
        total = within.total.to(self.device) if within else torch.zeros((), device=self.device)
        loader_state = self._train_data.generator.get_state()
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        look = 1 if self.device.type == "cpu" or config["max_nan_steps"] else _CHECK_EVERY
        batches = self._loader
        amp_dtype = _amp_dtype(config["amp_dtype"], self.device.type)
        if show_progress:
            batches = tqdm(batches, ncols=100, desc=set_color(f"Train {epoch_idx:>5}", "pink"))
        batches = iter(batches)
        for _ in range(done):
            next(batches)
        # Making batches may have drawn random numbers. The stored states are the first process's.
        if within and distributed.is_first():
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
            if (step + 1) % look == 0:
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
                self._stop(epoch_idx, (Within(step + 1, total, seconds), loader_state))
        if look > 1:
            finite &= self._gradients_finite()  # of the last step
        if not finite:
            self._skip_or_stop(epoch_idx, step, batch, loss)
        return total.item()

    def _gradients_finite(self):
        if self.scaler.is_enabled():
            return True  # the scaler looks at them itself
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return not norms or torch.isfinite(torch.stack(norms).sum())

    def _skip_or_stop(self, epoch_idx, step, batch, loss):
        """Count a step whose loss or gradient is not finite; stop when there were too many."""
        self._nan_steps += 1
        self.model.step.diagnostics.sums = {}
        with torch.no_grad():
            self.model.calculate_loss(batch)
        parts = ", ".join(f"{name} {v:.4g}" for name, v in self.model.pop_diagnostics().items())
        where = (
            f"epoch {epoch_idx}, batch {step}, model {self.config['model']}: the loss is "
            f"{loss.item():.4g} or its gradient is not finite (parts: {parts or 'cross-entropy alone'})"
        )
        if self._nan_steps > self.config["max_nan_steps"]:
            kept = f" The last good checkpoint is {self.store.last()}." if self.store.last() else ""
            raise PrefError(
                f"{where}; lower learning_rate or set clip_grad_norm, or allow skipped steps with "
                f"max_nan_steps.{kept}"
            )
        self.optimizer.zero_grad()
        self.logger.warning(f"{where}; the step is skipped")

    def _check_nan(self, loss):
        if not torch.isfinite(loss):
            raise PrefError(
                f"model {self.config['model']}: the training loss is {loss.item()}; lower "
                "learning_rate or set clip_grad_norm."
            )

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress=show_progress)
        score = self.score_of(result) if self.objective is not None else score
        self._valid_result = result
        watched = self.model.pop_diagnostics() if self.is_preference else {}
        share = self.eval_collector.tail_share
        if share is not None:
            watched["tail_share"] = share
        epoch = len(self.epoch_times) - 1
        if watched:
            parts = "    ".join(f"{name} : {value:.4g}" for name, value in watched.items())
            self.logger.info(set_color("alignment", "blue") + f": {parts}")
        curves = {f"Alignment/{name}": value for name, value in watched.items()}
        curves |= {f"Valid/{name}": value for name, value in result.items()}
        curves["LearningRate"] = self.optimizer.param_groups[0]["lr"]
        for name, value in curves.items():
            self.tensorboard.add_scalar(name, value, epoch)
        # RecBole logs the validation metrics there itself.
        own = {**watched, "learning_rate": curves["LearningRate"], "valid_step": epoch}
        self.wandblogger.log_metrics(own, head="valid", commit=False)
        self.history.append({"epoch": epoch, "score": score, **result, **watched})
        return score, result

    # -- signals ------------------------------------------------------------------------------

    @contextmanager
    def _catching_signals(self):
        """Turn SIGINT and SIGTERM into a stop after the running step; only in the main thread.

        A signal that the process was told to ignore stays ignored.

        RecBole's own training loop cannot be stopped between steps: it ends at once, and goes on from
        the start of the epoch.
        """

        def note(number, frame):
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = signal.Signals(number).name
            if not self.is_preference:
                self._stop(self._saved_epoch or 0, None)

        heard = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
        try:
            before = {number: signal.signal(number, note) for number in heard}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, epoch_idx, within):
        """Store the state and end the run.

        Args:
            epoch_idx (int): the running epoch.
            within (tuple or None): ``Within`` and the state of the loader at the start of the epoch; None keeps the
                checkpoint of the epoch's start.
        """
        if not self._saving:
            raise Interrupted(f"{self._signal} stopped the run in epoch {epoch_idx}; nothing was saved.")
        if within is not None:
            self._save_last(epoch_idx, within=within)
        raise Interrupted(
            f"{self._signal} stopped the run in epoch {epoch_idx}; go on with --resume={self.store.last()}"
        )

    # -- checkpoints --------------------------------------------------------------------------

    def _run_state(self, start_epoch):
        """Return the fields of a ``RunState``: dict."""
        return {
            "model": self.config["model"],
            "config": checkpoint.to_plain(self.config.final_config_dict, other=str),
            "data": self._data_fingerprint,
            "item_tokens": self._item_tokens,
            "epoch": start_epoch - 1,
            "start_epoch": start_epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "train_loss_dict": self.train_loss_dict,
            "state_dict": self.model.state_dict(),
            "other_parameter": checkpoint.pack_arrays(self.model.other_parameter()),
        }

    def _without_prior(self):
        state_dict = self.model.state_dict()
        if not self.is_preference or self.model.prior is None:
            return state_dict
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith("prior.")}

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Write the best checkpoint, as RecBole's trainer asks after an improvement."""
        # RecBole asks with epoch -1 when no epoch is left to train; the best of a resumed run is stored.
        if not distributed.is_first() or (epoch < 0 and self._resumed is not None):
            return
        # RecBole calls this before it takes the new result over.
        state = RunState(**{**self._run_state(epoch + 1), "best_valid_result": self._valid_result})
        path = self.store.save_best(state.to_dict())
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def save_after(self, epoch_idx):
        """Write the state after an epoch now rather than at the next one's start, for ``callback_fn``.

        Args:
            epoch_idx (int): the epoch just done, from 0.

        Raises:
            PrefError: the file cannot be written.
        """
        self._save_last(epoch_idx + 1)

    def _save_last(self, start_epoch, finished=False, within=None):
        self._saved_epoch = start_epoch
        if not distributed.is_first():
            return
        within, loader = within or (None, self._train_data.generator.get_state())
        state = ResumeState(
            # The epoch names the file. A prior is stored by itself, and the best checkpoint holds it.
            **{**self._run_state(start_epoch), "epoch": start_epoch, "state_dict": self._without_prior()},
            finished=finished,
            optimizer=self.optimizer.state_dict(),
            optimizers={name: optimizer.state_dict() for name, optimizer in self._further_optimizers()},
            rng=checkpoint.rng_state(),
            loader=loader,
            within=within,
            log_sums=self.model.step.diagnostics.sums if self.is_preference else {},
            scheduler=self.scheduler.state_dict() if self.scheduler else None,
            scaler=self.scaler.state_dict(),
            nan_steps=self._nan_steps,
            reference_result=self._reference_result,
            epoch_times=self.epoch_times,
            history=self.history,
        )
        self.store.save_last(state.to_dict())

    def resume_checkpoint(self, resume_file, state=None):
        """Go on from a ``-last-`` checkpoint; ``fit`` does the rest.

        Args:
            resume_file (path-like): a ``-last-`` checkpoint of this run.
            state (dict, optional): what it holds, where it was loaded before.

        Raises:
            PrefError: missing, damaged or foreign file; the run's best checkpoint is not beside it.
        """
        # On the CPU: torch's Adam reads its counts of steps at every step, from a GPU by waiting for it.
        state = checkpoint.load(resume_file, setting="resume") if state is None else state
        if state.get("model") != self.config["model"]:
            raise PrefError(
                f"resume={str(resume_file)!r} holds model {state.get('model')}, this run trains "
                f"{self.config['model']}: name the checkpoint of this model."
            )
        resumed = ResumeState.from_dict(state, resume_file)
        # The run goes on where it was: its best checkpoint is beside its last ones.
        folder, stem = Path(resume_file).parent, Path(resume_file).name.rsplit("-last-", 1)[0]
        store = checkpoint.CheckpointDir(folder, stem, self.config["keep_last"] or 2)
        if resumed.best_valid_result is not None and store.best() is None:
            raise checkpoint.CorruptCheckpoint(
                f"resume={str(resume_file)!r} needs the best checkpoint of its run beside it, {stem}-best.pth: copy it "
                "there too, or set resume: False to start anew."
            )
        self._resumed, self._resumed_file, self.store = resumed, resume_file, store
        self.saved_model_file = str(self.store.folder / f"{stem}-best.pth")

    def _continue_from(self, state):
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
        # Going on with more epochs, or more patience, is possible.
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
        if rank:  # the stored states are the first process's
            torch.manual_seed(self.config["seed"] + 1000 * rank + self.start_epoch)
        steps = f" and {state.within.steps} steps" if state.within else ""
        ended = ", nothing is left to train" if self.start_epoch == self.epochs else ""
        done = len(self.epoch_times)
        self.logger.info(
            f"resumed from {self._resumed_file}: {done} epoch{'' if done == 1 else 's'}{steps} done{ended}"
        )

    def _further_optimizers(self):
        """Return name and optimizer of those a trainer of RecBole has beside ``optimizer``: list of tuple.

        ``optimizer`` is then one of them, the one used last (RecVAETrainer).
        """
        found = ((name, value) for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer))
        return [(name, value) for name, value in found if name != "optimizer"]

    def _follow_settings(self, stored):
        """Let a learning rate or weight decay given anew win over the stored one (population-based training)."""
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

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Evaluate as RecBole does, after the checkpoint's checksum was found right."""
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


def _amp_dtype(wanted, device_type):
    """Return the type that ``enable_amp`` computes in: bfloat16 by default where the device has it."""
    if wanted != "auto":
        return getattr(torch, wanted)
    half = device_type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if half else torch.bfloat16


class PrefTrainer(TrainerMixin, Trainer):
    """The trainer of preference models and of RecBole's models that use RecBole's plain trainer."""


@cache
def trainer_class(base):
    """Return our trainer on top of a trainer class of RecBole.

    Args:
        base (type): what RecBole's ``get_trainer`` chose.
    """
    if issubclass(base, TrainerMixin):
        return base
    if base is Trainer:
        return PrefTrainer
    return type(f"Pref{base.__name__}", (TrainerMixin, base), {"__doc__": base.__doc__})


@contextmanager
def _random_states_kept(train_data):
    """Leave the random states as they were: a run must not depend on whether a reference existed."""
    states, loader = checkpoint.rng_state(), train_data.generator.get_state()
    try:
        yield
    finally:
        checkpoint.set_rng_state(states)
        train_data.generator.set_state(loader)


@contextmanager
def _marked(word):
    """Put a word in front of what is logged in the block."""

    def mark(record):
        record.msg = f"[{word}] {record.msg}"
        return True

    handlers = list(logging.getLogger().handlers[:1])  # the handlers share a record: the first one marks it
    for handler in handlers:
        handler.addFilter(mark)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(mark)


def train_reference(config, backbone_class, train_data, valid_data, stem):
    """Train a backbone with cross-entropy for ``reference: auto``.

    Returns:
        tuple: state_dict of its best epoch, a dict that tells how good it is, and the name of a signal that came
        after the last step, or None.
    """
    from recbole.utils import init_seed

    from recbole_pref.methods import METHODS
    from recbole_pref.model.names import preference_class

    own = reference.training_config(config, backbone_class, stem)
    init_seed(own["seed"], own["reproducibility"])
    cls = preference_class(METHODS["CE"], backbone_class)
    model = cls(own, train_data._dataset).to(own["device"])
    trainer = PrefTrainer(own, model)
    trainer.logger.info(set_color("training the reference", "pink") + f": {own['model']}")
    # Its curves are a run of their own: the run's steps begin at 0 again.
    trainer.tensorboard.close()
    trainer.tensorboard = SummaryWriter(f"{trainer.tensorboard.log_dir}-reference")
    try:  # of a training that was killed
        found = checkpoint.newest_good(trainer.store.folder, stem)
        if found:
            trainer.resume_checkpoint(*found)
    except checkpoint.CorruptCheckpoint as error:
        trainer.logger.warning(f"{error} The reference is trained from its start.")
    score, result = trainer.fit(train_data, valid_data, saved=True)
    state_dict = trainer.best_parameters()
    for file in trainer.store.files():
        file.unlink(missing_ok=True)
    valid = {name: float(value) for name, value in (result or {}).items()}
    return state_dict, {"epochs": len(trainer.epoch_times), "valid": valid}, trainer._signal
