"""The training step, which computes the loss of a batch.

total = ce_weight * cross-entropy + lambda * preference term, averaged over the rows of the batch with
the head/tail weights. The parts determine which scores are computed:

* the normalizer over the catalogue (cross-entropy, or a loss on log-probabilities): one fused pass over
  chunks of rows, in which negatives are drawn as well;
* otherwise only the K + 1 dot products of positive and negatives, after a pass without gradient if
  the sampler ranks the catalogue;
* backbones without an entry in ``backbones``: whole scores, RecBole's ``full_sort_predict``.
"""

from functools import partial
from logging import getLogger
from typing import Any

import torch
from recbole.model.loss import BPRLoss
from torch import nn

from recbole_pref import distributed, losses, scoring
from recbole_pref.data.sequences import train_counts
from recbole_pref.errors import PrefError
from recbole_pref.methods import Method
from recbole_pref.model.backbones import Backbone
from recbole_pref.model.batch import Batch
from recbole_pref.model.frozen import Reference, ReferenceScores, WholeScores
from recbole_pref.model.prior import is_in_training
from recbole_pref.popularity import head_tail_split, sample_weights
from recbole_pref.samplers import Draw, NegativeSampler

_MOST_PLAIN_SCORES = 2**28  # rows x items of a batch: 1 GiB of float32, of which RecBole holds several


class Diagnostics:
    """Sums and counts of the diagnostics of a run, on the device, read once per validation.

    Attributes:
        sums: name -> [2] sum and count since the last report.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, values: torch.Tensor) -> None:
        """Add values of any shape to the sums of a name."""
        entry = torch.stack([values.sum(), values.new_full((), values.numel())])
        total = self.sums.get(name)
        self.sums[name] = entry if total is None else total + entry

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, over all processes."""
        sums = {name: distributed.total(entry) for name, entry in self.sums.items()}
        self.sums = {}
        return {name: (entry[0] / entry[1]).item() for name, entry in sums.items()}


class TrainingStep(nn.Module):
    """Turns the scores of a model into the loss of a batch.

    It holds the parts of training outside the model: head/tail split, negative sampler, frozen reference.

    Args:
        model (PreferenceMixin): the model that is trained; it is not stored.
        config (Config): RecBole's configuration.
        dataset (SequentialDataset): RecBole's training split; its counts make the head/tail split.

    Raises:
        PrefError: settings that cannot work on this data (K above the candidates, empty tail, ...).
    """

    train_count: torch.Tensor
    head_mask: torch.Tensor

    def __init__(self, model: Any, config: Any, dataset: Any) -> None:
        super().__init__()
        self.method: Method = model.method
        self._loss: Any = self.method.loss
        self.settings: dict[str, Any] = model.settings
        self.backbone: Backbone | None = model.backbone
        self.fields = (model.POS_ITEM_ID, model.ITEM_SEQ)
        self.n_items = model.n_items
        self.train_path, self.train_path_reason = self._choose_path(model)
        counts = train_counts(dataset)
        head = head_tail_split(counts, self.settings["tail_split"], self.settings["head_ratio"])
        self.register_buffer("train_count", counts, persistent=False)
        self.register_buffer("head_mask", head, persistent=False)
        self.sampler: NegativeSampler | None = None
        if self.uses_negatives:
            self.sampler = NegativeSampler(
                {**self.settings, "seed": config["seed"]},
                counts,
                head,
                max_history=int(dataset.inter_feat[model.ITEM_SEQ_LEN].max()),
                total=distributed.total,
            )
        self.loss_settings = self._loss_settings(config)
        self.reference: Reference | None = None
        self.batch_scores = config["train_batch_size"] * model.n_items
        # Some backbones' own loss is not cross-entropy (FPMC, TransRec): it needs RecBole's sampled negatives.
        self.needs_pairs = any(isinstance(part, BPRLoss) for part in model.modules())
        self.diagnostics = Diagnostics()
        self._watched: list[tuple] = []  # inputs of the diagnostics of a batch, part by part

    # -- what is computed

    def _choose_path(self, model: Any) -> tuple[str, str]:
        positions = self.settings["train_positions"]
        if self.backbone is None or self.backbone.encode_all is None:
            if positions == "all":
                raise PrefError(
                    f"train_positions='all' does not work with {model.backbone_class.__name__}: its "
                    "encoder is not causal, set train_positions to last or auto."
                )
            return "last", "the encoder is not causal, each row is encoded by itself"
        if positions == "last":
            return "last", "train_positions is last"
        return "all", "the encoder is causal, prefixes share one pass"

    def _loss_settings(self, config: Any) -> dict[str, Any]:
        chosen = {name: self.settings[name] for name in self.method.setting_names}
        if chosen.get("tawin_anchor") == "auto" and self.sampler is not None:
            anchor, last = losses.anchor_for(int(config["valid_metric"].split("@")[1])), self.sampler.k - 1
            if anchor > last:
                getLogger().warning(
                    f"tawin_anchor='auto' is rank {anchor} for valid_metric={config['valid_metric']!r}, and "
                    f"num_negatives={last + 1} ends at rank {last}, which is used: "
                    f"set num_negatives to {2 * (anchor + 1)} to cover the window."
                )
            chosen["tawin_anchor"] = min(anchor, last)
        return chosen

    @property
    def uses_negatives(self) -> bool:
        """Whether the loss has a preference term."""
        return self.settings["lambda"] > 0 and self.method.loss is not None

    @property
    def needs_reference(self) -> bool:
        """Whether training needs a frozen reference, for the loss or for the negatives."""
        return self.method.needs_reference(self.settings)

    @property
    def needs_normalizer(self) -> bool:
        """Whether a step computes the normalizer over the catalogue."""
        by_loss = self.uses_negatives and self.method.needs_log_probs(self.settings)
        return self.settings["ce_weight"] > 0 or by_loss

    @property
    def is_plain(self) -> bool:
        """Whether the loss is exactly RecBole's loss on RecBole's rows.

        This holds for cross-entropy of a backbone without a fused pass, because RecBole's loss may contain other terms.
        With a fused pass it needs ``train_positions: last``. On several processes, and when the scores of a batch,
        which RecBole stores whole, exceed memory, the fused pass gives the same result up to rounding.
        """
        has_terms = self.settings["repeat_bias"] or is_in_training(self.settings)
        if self.uses_negatives or has_terms or self.needs_pairs:
            return False
        if self.settings["reweight"] != "none" or self.settings["ce_weight"] != 1:
            return False
        fits = self.batch_scores <= _MOST_PLAIN_SCORES and distributed.world()[0] == 1
        return self.backbone is None or (fits and self.settings["train_positions"] == "last")

    # -- the loss

    def forward(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the training loss of a batch: scalar.

        Args:
            model: the model that is trained.
            batch: this process's rows.
        """
        weights = self.row_weights(batch.targets)  # of a process's share: they sum to 1 over all processes
        if self.backbone is None:
            total = self._from_whole_scores(model, batch, weights)
        else:
            total = self._from_representations(model, batch, weights)
            if self.backbone.regularize is not None:
                total = total + self.backbone.regularize(model) / distributed.world()[0]
        self._record()
        return total

    def row_weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weights of rows with these targets [R], which sum to 1 over the batch: [R]."""
        alphas = (0.0, 0.0)
        if self.settings["reweight"] != "none":
            alphas = (self.settings["alpha_head"], self.settings["alpha_tail"])
        total = distributed.total if distributed.world()[0] > 1 else None
        return sample_weights(~self.head_mask[targets], *alphas, total)

    def _from_representations(self, model: Any, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
        hidden, item_emb = batch.encode(model), model.item_embedding.weight
        terms = model.terms(batch.histories, batch.targets, batch.rows)
        reference = None if self.reference is None else self.reference.scores(batch)
        draw = self._begin_draw(batch)
        sample = partial(self._positive_and_negatives, batch.targets, draw, reference)
        row_loss = partial(self._row_loss, reference)
        chunk = scoring.chunk_rows(self.n_items, self.settings["logits_memory_mb"], hidden.device.type)
        if self.needs_normalizer:
            return scoring.catalogue_loss(hidden, item_emb, row_loss, sample, weights, chunk, terms)
        if draw is None or draw.needs_scores is None:
            ids = sample(slice(None))
        else:
            ids = scoring.sample_over_catalogue(hidden.detach(), item_emb.detach(), sample, chunk, terms)
        picked = scoring.item_scores(hidden, item_emb, ids, terms)
        return scoring.weighted_sum(row_loss(slice(None), ids, None, picked), weights)

    def _from_whole_scores(self, model: Any, batch: Any, weights: torch.Tensor) -> torch.Tensor:
        rows, scores = slice(None), model.catalogue_scores(batch.interaction)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = WholeScores(self.reference.model.catalogue_scores(batch.interaction))
        log_z = torch.logsumexp(scores, dim=-1)
        draw, read = self._begin_draw(batch), None
        if draw is not None and draw.needs_scores == "policy":
            # Samplers change the scores temporarily, which autograd does not allow for its own tensors.
            read = scores.detach().clone()
        ids = self._positive_and_negatives(batch.targets, draw, reference, rows, read, log_z.detach())
        per_row = self._row_loss(reference, rows, ids, log_z, scores.gather(1, ids))
        return scoring.weighted_sum(per_row, weights)

    def _begin_draw(self, batch: Batch) -> Draw | None:
        if self.sampler is None:
            return None
        history = batch.histories if self.sampler.exclude_history else None
        return self.sampler.begin(batch.targets, history, batch.rows)

    def _positive_and_negatives(
        self,
        targets: torch.Tensor,
        draw: Draw | None,
        reference: ReferenceScores | None,
        rows: slice,
        scores: torch.Tensor | None = None,
        log_z: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the ids whose scores the loss needs: positive, K negatives and, with a normalizer, padding.

        Args:
            targets: [R] of the batch.
            draw: of the batch, None without negatives.
            reference: of the batch.
            rows: which rows.
            scores, log_z: [c, n_items] and [c] of the policy, None when they are not computed.

        Returns:
            Tensor: [c, 1 + K] or [c, 2 + K].
        """
        positive = targets[rows].unsqueeze(1)
        ids = [positive]
        if draw is not None:
            if draw.needs_scores == "reference":
                scores = reference.catalogue(rows)  # type: ignore[union-attr]  # training has one then
            ids.append(draw.finish(rows, scores, log_z))
        if log_z is not None:
            ids.append(torch.zeros_like(positive))
        return torch.cat(ids, dim=1)

    def _row_loss(
        self,
        reference: ReferenceScores | None,
        rows: slice,
        ids: torch.Tensor,
        log_z: torch.Tensor | None,
        picked: torch.Tensor,
    ) -> torch.Tensor:
        """Return cross-entropy and preference term of rows: [c].

        The normalizer of cross-entropy includes the padding column, as in RecBole. Preference terms concern
        real items, so their normalizer excludes it.

        Args:
            reference: of the batch.
            rows: which rows.
            ids, picked: [c, 1 + K or 2 + K] items and their scores, see ``_positive_and_negatives``.
            log_z: [c] log-sum-exp of all scores, padding included; None when it is not computed.
        """
        total, pos = picked.new_zeros(()), picked[:, 0]
        if self.settings["ce_weight"] > 0:
            total = self.settings["ce_weight"] * (log_z - pos)  # type: ignore[operator]  # needs_normalizer
        if self.uses_negatives:
            neg = picked[:, 1:]
            if log_z is not None:
                real_z = scoring.without_padding(log_z, picked[:, -1]).unsqueeze(1)
                ids, pos, neg = ids[:, :-1], pos - real_z[:, 0], neg[:, :-1] - real_z
            ref = None if reference is None else reference.of(rows, ids)
            total = total + self.settings["lambda"] * self._preference(ids, pos, neg, ref)
        return total

    def _preference(
        self, ids: torch.Tensor, pos: torch.Tensor, neg: torch.Tensor, ref: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the method's loss of rows [c] for positive [c], negatives [c, K] and reference [c, 1 + K]."""
        arguments = [pos, neg]
        if ref is not None and self.method.compares_with_reference(self.settings):
            arguments += [ref[:, 0], ref[:, 1:]]
        if self.method.compares_neighbours and self.reference is not None:
            arguments.append(self.reference.neighbour_gaps(ids))
        result = self._loss(*arguments, **self.loss_settings)
        per_row, extras = result if isinstance(result, tuple) else (result, {})
        if per_row.shape != pos.shape:
            raise PrefError(
                f"the loss of method {self.method.name!r} returned a tensor of shape {list(per_row.shape)} for "
                f"{len(pos)} rows: return one value per row, such as the mean over the negatives."
            )
        self._watched.append((pos.detach(), neg.detach(), ref, extras))
        return per_row

    @torch.no_grad()
    def _record(self) -> None:
        """Add the diagnostics of a batch, collected by ``_preference``, to the sums."""
        if not self._watched:
            return
        pos, neg, refs, extras = zip(*self._watched)
        self._watched = []
        ref_pos = ref_neg = None
        if refs[0] is not None:
            ref = torch.cat(refs)
            ref_pos, ref_neg = ref[:, 0], ref[:, 1:]
        beta = self.settings.get("beta") or 1.0
        values = losses.diagnostics(torch.cat(pos), torch.cat(neg), ref_pos, ref_neg, beta=beta)
        values.update({name: torch.cat([part[name] for part in extras]) for name in extras[0]})
        for name, value in values.items():
            self.diagnostics.add(name, value)
