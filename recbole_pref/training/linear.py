"""The trainer of linear models, which fits once instead of training for epochs."""

from typing import Any

from recbole.trainer import TraditionalTrainer

from recbole_pref.training.trainer import TrainerMixin


class _FitOnce(TraditionalTrainer):
    """RecBole's trainer of models without gradients; its one epoch is the fit."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.epochs = min(config["epochs"], 1)
        self.eval_step = min(config["eval_step"], 1)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        self.model.fit(train_data._dataset)
        return 0.0


class LinearTrainer(TrainerMixin, _FitOnce):
    """Fits, validates, stores and evaluates a model of ``linear_models``."""
