"""The joint between a method and a backbone: ``PreferenceMixin`` makes a RecBole backbone a model that scores.

The other parts of training are in ``step.TrainingStep``; the trainer passes it to the model
(``prepare_training``), so that a checkpoint, sizes and settings are enough to recommend.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType

from recbole_pref import distributed, scoring
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model.backbones import backbone_of, encode_last, whole_scores
from recbole_pref.model.batch import RowBatch
from recbole_pref.model.dropout import use_fast_dropout
from recbole_pref.model.frozen import Reference
from recbole_pref.model.prior import Prior, PriorSource, is_in_training
from recbole_pref.model.step import TrainingStep
from recbole_pref.settings import SETTINGS

# Backbones whose full_sort_predict returns probabilities; their logarithm serves as score.
_PROBABILITY_BACKBONES = ("RepeatNet", "GRU4RecCPR", "SASRecCPR")
# Adam moves a parameter by about the learning rate per step: a bias of several nats needs larger steps.
_REPEAT_SCALE = 10.0
_OF_PRIOR = "prior."  # how the names of the prior's weights begin in a state dict
_OF_REFERENCE = "reference."  # how the names of the reference's parameters begin in a state dict


if TYPE_CHECKING:
    # Attributes of the backbone in the bases.
    from recbole.model.abstract_recommender import SequentialRecommender as _Backbone
else:
    _Backbone = object


class PreferenceMixin(_Backbone):
    """Scores as the RecBole backbone that follows in the bases, and trains with a preference method once prepared.

    Subclasses set ``preference_method`` (a name of ``methods.METHODS``) and ``backbone_class``.

    Args:
        config (Config): RecBole's configuration.
        dataset: RecBole's data set, or an object with the sizes that the backbone reads.

    Attributes:
        step (TrainingStep or None): set by ``prepare_training``.
        reference (PreferenceMixin or None): the frozen reference model, part of the state dict.

    Raises:
        PrefError: a backbone or a setting that cannot work.
    """

    preference_method: str
    backbone_class: Any
    input_type = InputType.POINTWISE  # RecBole's loader then repeats no rows for negatives

    def __init__(self, config: Any, dataset: Any) -> None:
        if self.backbone_class.full_sort_predict is AbstractRecommender.full_sort_predict:
            raise PrefError(
                f"model={config['model']!r} cannot be trained: RecBole's {self.backbone_class.__name__} "
                "scores single pairs, not the catalogue; choose another backbone (--list)."
            )
        super().__init__(config, dataset)
        self.method = METHODS[self.preference_method]
        self.settings = {key: config[key] for key in SETTINGS if key in config}
        self.backbone = backbone_of(type(self))
        self.repeat_bias = self._new_repeat_bias(config)
        self.prior: Prior | None = None
        self.register_buffer("prior_weight", None)
        if is_in_training(config) and config["prior_weight"] == "learned":
            self.prior_weight = torch.nn.Parameter(torch.ones(()))
        self.step: TrainingStep | None = None
        self.reference: PreferenceMixin | None = None

    def _new_repeat_bias(self, config: Any) -> torch.nn.Parameter | None:
        """Return the parameter of ``repeat_bias``, initially 0, or None."""
        if not self.settings["repeat_bias"]:
            return None
        if self.backbone is None:
            raise PrefError(
                f"repeat_bias=True does not work with {config['model']}: its scores are not products of "
                "representations and item vectors; set it to False or choose SASRec, GRU4Rec or Caser."
            )
        return torch.nn.Parameter(torch.zeros(()))

    # -- scoring

    def encode(self, interaction: Interaction) -> torch.Tensor:
        """Return the representation of each row's sequence: [B, H]."""
        assert self.backbone is not None  # callers check
        return encode_last(self, self.backbone, interaction)

    def terms(
        self, histories: torch.Tensor, targets: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> scoring.Terms:
        """Return the addends of the dot products of rows.

        Args:
            histories: [R, L].
            targets, rows: [R] of a training batch; the prior leaves each row out of its own target's score.

        Raises:
            PrefError: the prior needs the numbers of a training batch's rows, and they are unknown.
        """
        terms: scoring.Terms = ()
        if self.repeat_bias is not None:
            source = scoring.HistorySource(scoring.distinct_items(histories))
            terms += (scoring.Term(_REPEAT_SCALE * self.repeat_bias, source),)
        if self.prior is not None:
            of_rows: tuple[torch.Tensor, ...] = (histories,)
            if targets is not None and self.prior.excess is not None:
                if rows is None:
                    raise PrefError(
                        "prior_in_training=True needs the numbers of the training rows, and this batch has none: train "
                        "with the trainer, or set it to False."
                    )
                of_rows += (targets, self.prior.excess[rows])
            terms += (scoring.Term(self.prior_weight, PriorSource(self.prior, *of_rows)),)
        return terms

    def attach_prior(self, prior: Prior, weight: float = 1.0) -> None:
        """Add the scores of a prior to those of the model.

        Args:
            prior: fitted on the same items.
            weight: factor of its scores, if it is not learned.
        """
        self.prior = prior.to(self.device)
        if self.prior_weight is None:
            self.set_prior_weight(weight)

    def set_prior_weight(self, weight: float) -> None:
        """Give the prior a fixed weight."""
        self.register_buffer("prior_weight", torch.tensor(float(weight), device=self.device))

    def score_items(self, hidden: torch.Tensor, interaction: Interaction) -> torch.Tensor:
        """Return the scores of all items for representations [c, H] of an interaction's rows: [c, n_items]."""
        scores = torch.mm(hidden, self.item_embedding.weight.t())
        for weight, source in self.terms(interaction[self.ITEM_SEQ]):
            source.add(scores, slice(None), weight)
        return scores

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores of all items for each row, as RecBole's backbone: [B, n_items]."""
        if self.backbone is None:
            return whole_scores(self, self.backbone_class, interaction)
        return self.score_items(self.encode(interaction), interaction)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Return the score of each row's item, as RecBole's backbone: [B].

        Sampled ranking has a row per candidate; each sequence is encoded once.
        """
        if self.backbone is None:
            return super().predict(interaction)
        histories = interaction[self.ITEM_SEQ]
        keys = histories
        if self.USER_ID in interaction:  # Caser's vectors depend on it
            keys = torch.cat([interaction[self.USER_ID].unsqueeze(1), histories], dim=1)
        # Equal rows mostly follow each other: sorting what is left of them is five times as fast.
        runs, of_row = torch.unique_consecutive(keys, dim=0, return_inverse=True)
        distinct, of_run = torch.unique(runs, dim=0, return_inverse=True)
        of_row = of_run[of_row]
        row = torch.empty(len(distinct), dtype=torch.int64, device=of_row.device)
        row[of_row] = torch.arange(len(keys), device=of_row.device)  # some row of each sequence
        hidden = self.encode(interaction[row])[of_row]
        ids = interaction[self.ITEM_ID].unsqueeze(1)
        return scoring.item_scores(hidden, self.item_embedding.weight, ids, self.terms(histories)).squeeze(1)

    def catalogue_scores(self, interaction: Interaction) -> torch.Tensor:
        """Return the scores in the cross-entropy of a backbone without an entry in ``backbones``: [R, n_items]."""
        scores = whole_scores(self, self.backbone_class, interaction).float().view(-1, self.n_items)
        if self.backbone_class.__name__ in _PROBABILITY_BACKBONES:
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores

    # -- training

    def prepare_training(self, config: Any, dataset: Any) -> None:
        """Prepare the model for training: head/tail split, sampler, and a reference with random parameters.

        Args:
            config (Config): RecBole's configuration.
            dataset (SequentialDataset): RecBole's training split.

        Raises:
            PrefError: settings that cannot work on this data.
        """
        step = TrainingStep(self, config, dataset)
        if not step.is_plain:  # a plain step gives exactly RecBole's numbers
            use_fast_dropout(self)
        if step.needs_reference:
            # The policy's random stream must not depend on whether a reference exists.
            with torch.random.fork_rng(devices=[]):
                reference = type(self)(config, dataset)
            reference.__dict__["prior"] = self.prior  # shared, and so not stored twice
            if self.prior is not None and reference.prior_weight is None:
                reference.set_prior_weight(float(self.prior_weight))
            self.reference = reference.requires_grad_(False).eval().to(self.device)
            normalized = step.method.needs_log_probs(self.settings)
            step.reference = Reference(self.reference, normalized, self.settings["logits_memory_mb"])
        self.step = step.to(self.device)

    def calculate_loss(self, batch: Any) -> torch.Tensor:
        """Return the training loss of a batch: scalar.

        Args:
            batch (Batch or Interaction): of our loaders, or rows of RecBole's loader.

        Raises:
            PrefError: the model is not prepared for training.
        """
        if self.step is None:
            raise PrefError(
                f"{type(self).__name__} is not prepared for training: call prepare_training(config, dataset) first, "
                "as the trainer does."
            )
        if isinstance(batch, Interaction):
            batch = RowBatch.of(batch, self.step.fields)
        if self.step.is_plain:
            loss = super().calculate_loss(batch.interaction).squeeze()  # GCSAN's has shape [1]
            if distributed.world()[0] > 1:  # a mean over this process's rows
                rows = loss.new_full((), len(batch))
                loss = loss * (rows / distributed.total(rows))
            return loss
        total = self.step(self, batch)
        # Multimodal backbones close the step's item table and add the losses of its experts.
        finish = getattr(self, "finish_step", None)
        return total if finish is None else total + finish() / distributed.world()[0]

    def pop_diagnostics(self) -> dict[str, float]:
        """Return the means of the diagnostics since the last call, over all processes."""
        means = {} if self.step is None else self.step.diagnostics.pop()
        if self.repeat_bias is not None:
            means["repeat_bias"] = (_REPEAT_SCALE * self.repeat_bias).item()
        if isinstance(self.prior_weight, torch.nn.Parameter):
            means["prior_weight"] = self.prior_weight.item()
        return means

    def start_from(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Copy a trained backbone into the policy and, if one is used, the frozen reference.

        Args:
            state_dict: parameters of the plain backbone.
        """
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(_OF_PRIOR)}
        self.load_state_dict({**self.state_dict(), **state_dict})
        if self.reference is not None:
            self.reference.load_state_dict(state_dict)
        if self.step is not None and self.step.reference is not None:
            self.step.reference.forget()

    def renew_reference(self) -> None:
        """Make the frozen reference a copy of the model as it is now (SPRec's self-play)."""
        state = self.state_dict().items()
        self.start_from({name: tensor.clone() for name, tensor in state if not name.startswith(_OF_REFERENCE)})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters, like torch.

        A model that is not prepared for training ignores those of the reference. A model without a prior takes the
        prior of the parameters. If the parameters hold no prior, the model keeps its prior.
        """
        if self.reference is None:
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(_OF_REFERENCE)}
        has_prior = any(key.startswith(_OF_PRIOR) for key in state_dict)
        if has_prior and self.prior is None:
            self.attach_prior(Prior(self.n_items))
        elif self.prior is not None and not has_prior:
            state_dict = {**self._prior_state(), **state_dict}
        return super().load_state_dict(state_dict, strict, assign)

    def _prior_state(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.state_dict().items() if k.startswith(_OF_PRIOR) or k == "prior_weight"}

    def train(self, mode: bool = True) -> "PreferenceMixin":
        """Set training mode; the reference stays in evaluation mode."""
        super().train(mode)
        reference = getattr(self, "reference", None)  # torch may call this before the constructor ends
        if reference is not None:
            reference.eval()
        return self
