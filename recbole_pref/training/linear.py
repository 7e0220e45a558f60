"""The trainer of linear models, which fits once instead of training for epochs."""

from recbole.trainer import TraditionalTrainer

from recbole_pref.training.trainer import TrainerMixin


class _FitOnce(TraditionalTrainer):
    """RecBole's trainer of models without gradients; its one epoch is the fit."""

    def __init__(self, config, model):
        super().__init__(config, model)
        self.epochs = min(config["epochs"], 1)
        self.eval_step = min(config["eval_step"], 1)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.model.fit(train_data._dataset)
        return 0.0


class LinearTrainer(TrainerMixin, _FitOnce):
    """Fits, validates, stores and evaluates a model of ``linear_models``."""
