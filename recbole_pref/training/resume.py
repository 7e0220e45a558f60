"""The state of a run in a checkpoint: one dataclass, with a version number."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from recbole_pref.errors import PrefError

VERSION = 1  # of the fields below; raised when a field changes its meaning


@dataclass
class RunState:
    """The contents of every checkpoint: enough to recommend and to evaluate.

    Attributes:
        model: name of the model.
        config: the complete settings, as plain data.
        data: fingerprint of the training data.
        item_tokens: tokens of the items by id.
        epoch: finished epochs less one; in a ``-last-`` checkpoint the number in its name.
        start_epoch: the epoch that a resumed run begins with.
        cur_step: validations since the best one.
        best_valid_score, best_valid_result: score and metrics of the best validation so far.
        train_loss_dict: RecBole's sum of the losses of each epoch.
        state_dict: the parameters, those of the reference included.
        other_parameter: other values that some of RecBole's models compute.
        format: ``VERSION`` of the package that wrote it.
        user_tokens: tokens of the users by id if the model has a vector per user, else None.
        row_tokens: tokens of the rows of further parameters, by the name of the parameter; of item features.
    """

    model: str
    config: dict[str, Any]
    data: dict[str, Any]
    item_tokens: list[str]
    epoch: int
    start_epoch: int
    cur_step: int
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    train_loss_dict: dict[int, float]
    state_dict: dict[str, torch.Tensor]
    other_parameter: dict[str, Any]
    format: int = VERSION
    user_tokens: list[str] | None = None  # files of earlier versions have neither of these
    row_tokens: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for ``checkpoint.save``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass
class EpochPosition:
    """The position in an epoch at which a run was stopped.

    Attributes:
        steps: finished steps of the epoch.
        total: sum of their losses, a scalar.
        seconds: their duration.
    """

    steps: int
    total: torch.Tensor
    seconds: float


@dataclass(kw_only=True)
class ResumeState(RunState):
    """The further contents of a ``-last-`` checkpoint: everything that the rest of the run depends on.

    Attributes:
        finished: whether the run reached its end.
        optimizer, optimizers: state of RecBole's optimizer, and states of a trainer's further optimizers by name.
        rng: random states of Python, numpy and torch.
        loader: state of the training loader's generator, at the start of the epoch.
        within: position in the epoch, or None at its start.
        log_sums: sums of the diagnostics since the last report.
        scheduler, scaler: their states; None without a scheduler.
        nan_steps: number of skipped steps.
        reference_result: validation metrics of the reference, if the objective uses them.
        epoch_times: seconds of training per epoch.
        history: one dict per validation.
    """

    finished: bool
    optimizer: dict[str, Any]
    optimizers: dict[str, Any]
    rng: dict[str, Any]
    loader: torch.Tensor
    within: EpochPosition | None
    log_sums: dict[str, torch.Tensor]
    scheduler: dict[str, Any] | None
    scaler: dict[str, Any]
    nan_steps: int
    reference_result: dict[str, float] | None
    epoch_times: list[float]
    history: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for ``checkpoint.save``."""
        return {**super().to_dict(), "within": self.within and asdict(self.within)}

    @classmethod
    def from_dict(cls, state: dict[str, Any], path: Any) -> "ResumeState":
        """Return the state in a checkpoint.

        Args:
            state: result of ``checkpoint.load``.
            path: path of the file, for messages.

        Raises:
            PrefError: the file is a best checkpoint, or written by a newer version.
        """
        if state.get("format", VERSION) > VERSION:
            raise PrefError(
                f"resume={str(path)!r} was written by a newer version of RecBole-Pref: install that version, or set "
                "resume: False."
            )
        if "rng" not in state:
            raise PrefError(
                f"resume={str(path)!r} is a best checkpoint, which cannot be continued: "
                "name one with -last- in its name."
            )
        values: dict[str, Any] = {field.name: state.get(field.name) for field in fields(cls)}
        values["within"] = values["within"] and EpochPosition(**values["within"])
        values["train_loss_dict"] = dict(values["train_loss_dict"])
        return cls(**values)
