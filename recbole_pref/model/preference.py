"""The joint between a method and a backbone: one training loss for all of them.

total = ce_weight * cross-entropy + lambda * preference term, averaged over the rows of the batch with
the head/tail weights. Which scores are computed follows from what the parts need:

* the normalizer over the catalogue (cross-entropy, or a loss on log-probabilities): one fused pass over
  chunks of rows, in which negatives are drawn as well;
* otherwise only the K + 1 dot products of positive and negatives, after a pass without gradient where
  the sampler ranks the catalogue;
* backbones without a representation entry: whole scores, RecBole's ``full_sort_predict``.
"""

from dataclasses import dataclass
from logging import getLogger

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType

from recbole_pref import distributed, losses, scoring
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model.backbones import backbone_of, encode_last, whole_scores
from recbole_pref.model.dropout import use_fast_dropout
from recbole_pref.model.packing import PackedBatch
from recbole_pref.popularity import head_tail_split, sample_weights, train_counts
from recbole_pref.samplers import NegativeSampler
from recbole_pref.settings import SETTINGS

_MOST_PLAIN_SCORES = 2**28  # rows x items of a batch: 1 GiB of float32, of which RecBole holds several
# Backbones whose full_sort_predict returns probabilities; their logarithm serves as score.
_PROBABILITY_BACKBONES = ("RepeatNet", "GRU4RecCPR", "SASRecCPR")
# Adam moves a parameter by about the learning rate per step: a bias of several nats needs larger steps.
_REPEAT_SCALE = 10.0
ROW_FIELD = "pref_row"  # number of a training row, added to the batches of row-wise training


class PreferenceMixin:
    """Trains the RecBole backbone that follows in the bases with a preference method.

    Subclasses set ``preference_method`` (a name of ``methods.METHODS``) and ``backbone_class``.

    Args:
        config (Config): RecBole's configuration.
        dataset (SequentialDataset): RecBole's training split; its counts make the head/tail split.

    Raises:
        PrefError: settings that cannot work on this data (K above the candidates, empty tail, ...).
    """

    preference_method = None
    backbone_class = None
    input_type = InputType.POINTWISE  # RecBole's loader then repeats no rows for negatives

    def __init__(self, config, dataset):
        if self.backbone_class.full_sort_predict is AbstractRecommender.full_sort_predict:
            raise PrefError(
                f"model={config['model']!r} cannot be trained: RecBole's {self.backbone_class.__name__} "
                "scores single pairs, not the catalogue; choose another backbone (--list)."
            )
        super().__init__(config, dataset)
        self.method = METHODS[self.preference_method]
        self.settings = read_settings(config)
        self.backbone = backbone_of(type(self))
        self.batch_scores = config["train_batch_size"] * self.n_items
        self.train_path, self.train_path_reason = self._choose_path()
        counts = train_counts(dataset)
        head = head_tail_split(counts, self.settings["tail_split"], self.settings["head_ratio"])
        self.register_buffer("train_count", counts, persistent=False)
        self.register_buffer("head_mask", head, persistent=False)
        self.uses_negatives = self.settings["lambda"] > 0 and self.method.loss is not None
        self.uses_reference = self.method.needs_reference(self.settings)
        self.repeat_bias = self._new_repeat_bias(config)
        self.sampler = None
        if self.uses_negatives:
            self.sampler = NegativeSampler(
                {**self.settings, "seed": config["seed"]},
                counts,
                head,
                max_history=config["MAX_ITEM_LIST_LENGTH"],
                total=distributed.total,
            )
        self.loss_settings = self._loss_settings(config)
        self.reference = self._empty_reference(config, dataset) if self.uses_reference else None
        self.reference_rows = None  # [N, H] cache of the reference, see cache_reference
        self.reference_log_z = None  # [N]
        self.needs_row_numbers = self.uses_reference or (
            self.sampler is not None and self.settings["neg_sampler"] == "fixed"
        )
        if self.needs_row_numbers and ROW_FIELD not in dataset.inter_feat:
            numbers = torch.arange(len(dataset.inter_feat))
            dataset.inter_feat.update(Interaction({ROW_FIELD: numbers}))
        self.needs_histories = self.repeat_bias is not None or (
            self.sampler is not None and self.sampler.exclude_history
        )
        # Some backbones' own loss is no cross-entropy (FPMC, TransRec): it needs RecBole's sampled negatives.
        self.needs_pairs = any(isinstance(part, BPRLoss) for part in self.modules())
        self.watched = []  # what the diagnostics of a batch are computed from, part by part
        self.log_sums = {}  # name -> [2] sum and count of diagnostics since the last report
        if not self.is_plain:  # which promises RecBole's numbers to the last bit
            use_fast_dropout(self)

    # -- what is computed ---------------------------------------------------------------------

    def _choose_path(self):
        wanted = self.settings["train_positions"]
        if self.backbone is None or self.backbone.encode_all is None:
            if wanted == "all":
                raise PrefError(
                    f"train_positions='all' does not work with {self.backbone_class.__name__}: its "
                    "encoder is not causal, set train_positions to last or auto."
                )
            return "last", "the encoder is not causal, each row is encoded by itself"
        if wanted == "last":
            return "last", "train_positions is last"
        return "all", "the encoder is causal, prefixes share one pass"

    def _new_repeat_bias(self, config):
        """Return the parameter behind ``repeat_bias``, 0 at first, or None."""
        if not self.settings["repeat_bias"]:
            return None
        if self.backbone is None:
            raise PrefError(
                f"repeat_bias=True does not work with {config['model']}: its scores are no products of "
                "representations and item vectors; set it to False or choose SASRec, GRU4Rec or Caser."
            )
        return torch.nn.Parameter(torch.zeros(()))

    def _loss_settings(self, config):
        chosen = {name: self.settings[name] for name in self.method.setting_names}
        if chosen.get("tawin_anchor") == "auto" and self.uses_negatives:
            wanted, last = losses.anchor_for(int(config["valid_metric"].split("@")[1])), self.sampler.k - 1
            if wanted > last:
                getLogger().warning(
                    f"tawin_anchor='auto' is rank {wanted} for valid_metric={config['valid_metric']!r}, and "
                    f"num_negatives={last + 1} ends at rank {last}, which is taken: "
                    f"{2 * (wanted + 1)} negatives would hold the window."
                )
            chosen["tawin_anchor"] = min(wanted, last)
        return chosen

    @property
    def needs_normalizer(self):
        """Whether a training step computes the normalizer over the catalogue."""
        by_loss = self.uses_negatives and self.method.needs_log_probs(self.settings)
        return self.settings["ce_weight"] > 0 or by_loss

    @property
    def is_plain(self):
        """Whether the loss is RecBole's own on RecBole's own rows, nothing added.

        Cross-entropy alone of a backbone without a fused pass always is, as RecBole's loss may hold more than that.
        Else ``train_positions: last`` asks for it; on several processes, and where the scores of a batch, which
        RecBole stores whole, outgrow memory, the fused pass gives the same up to rounding.
        """
        if self.uses_negatives or self.repeat_bias is not None or self.needs_pairs:
            return False
        if self.settings["reweight"] != "none" or self.settings["ce_weight"] != 1:
            return False
        fits = self.batch_scores <= _MOST_PLAIN_SCORES and distributed.world()[0] == 1
        return self.backbone is None or (fits and self.settings["train_positions"] == "last")

    # -- scoring ------------------------------------------------------------------------------

    def encode(self, interaction):
        """Return the representation of each row's sequence: [B, H]."""
        return encode_last(self, self.backbone, interaction)

    def score_items(self, hidden, interaction):
        """Return the scores of all items for representations [c, H] of an interaction's rows: [c, n_items]."""
        scores = torch.mm(hidden, self.item_embedding.weight.t())
        if self.repeat_bias is not None:
            scoring.add_to_items(scores, interaction[self.ITEM_SEQ], _bias_of(self))
        return scores

    def full_sort_predict(self, interaction):
        """Return the scores of all items for each row, as RecBole's backbone: [B, n_items]."""
        if self.backbone is None:
            return whole_scores(self, self.backbone_class, interaction)
        return self.score_items(self.encode(interaction), interaction)

    def predict(self, interaction):
        """Return the score of each row's item, as RecBole's backbone; sampled ranking asks for it: [B]."""
        if self.repeat_bias is None:
            return super().predict(interaction)
        scores = scoring.item_scores(
            self.encode(interaction),
            self.item_embedding.weight,
            interaction[self.ITEM_ID].unsqueeze(1),
            _bias_of(self),
            interaction[self.ITEM_SEQ],
        )
        return scores.squeeze(1)

    # -- the loss -----------------------------------------------------------------------------

    def calculate_loss(self, interaction):
        """Return the training loss of a batch.

        Args:
            interaction (Interaction or PackedBatch): rows of RecBole's loader, or packed rows.

        Returns:
            Tensor: scalar.
        """
        if self.is_plain:
            loss = super().calculate_loss(interaction).squeeze()  # GCSAN's has shape [1]
            if distributed.world()[0] > 1:  # a mean over this process's rows
                rows = loss.new_full((), len(interaction))
                loss = loss * (rows / distributed.total(rows))
            return loss
        packed = isinstance(interaction, PackedBatch)
        targets = interaction.targets if packed else interaction[self.POS_ITEM_ID]
        weights = self._row_weights(targets)  # of a process's share: they sum to 1 over all processes
        if self.backbone is None:
            total = self._loss_from_scores(interaction, targets, weights)
        else:
            hidden = self._encode_packed(interaction) if packed else self.encode(interaction)
            total = self._loss_from_hidden(hidden, interaction, targets, weights)
            if self.backbone.regularize is not None:
                total = total + self.backbone.regularize(self) / distributed.world()[0]
        self._record()
        # Multimodal backbones close the step's item table and add the losses of its experts.
        finish = getattr(self, "finish_step", None)
        return total if finish is None else total + finish() / distributed.world()[0]

    def _encode_packed(self, batch):
        return encode_packed(self, self.backbone, batch)

    def _row_weights(self, targets):
        """Return the weights of the rows, which sum to 1: [R]."""
        alphas = (0.0, 0.0)
        if self.settings["reweight"] != "none":
            alphas = (self.settings["alpha_head"], self.settings["alpha_tail"])
        total = distributed.total if distributed.world()[0] > 1 else None
        return sample_weights(~self.head_mask[targets], *alphas, total)

    def _context(self, interaction, targets):
        """What samplers and reference need to know about the rows, as slices of the batch."""
        packed = isinstance(interaction, PackedBatch)
        rows = None
        if packed:
            rows = interaction.rows
        elif self.needs_row_numbers:
            rows = interaction[ROW_FIELD]
        history = None
        if self.needs_histories:
            history = interaction.histories if packed else interaction[self.ITEM_SEQ]
            if self.repeat_bias is not None:
                history = scoring.distinct_items(history)
        return _Rows(targets, rows, history)

    def _loss_from_hidden(self, hidden, interaction, targets, weights):
        item_emb = self.item_embedding.weight
        context = self._context(interaction, targets)
        repeats = (_bias_of(self), context.history)
        reference = self._reference_states(interaction, context) if self.uses_reference else None
        chunk = self._chunk(hidden.device.type)
        draw = self._begin_draw(context)
        if self.needs_normalizer:
            drawn = {}
            given = torch.stack([torch.zeros_like(targets), targets], dim=1)  # [R, 2]

            def sample(rows, scores, log_z):
                drawn["ids"] = given[rows]
                if draw is not None:
                    negatives = draw.finish(rows, self._sampler_scores(scores, reference, rows), log_z)
                    drawn["ids"] = torch.cat([drawn["ids"], negatives], dim=1)  # [c, 2 + K]
                return drawn["ids"]

            def row_loss(rows, log_z, picked):
                ref = self._reference_scores(reference, rows, drawn["ids"][:, 1:])
                return self._mixed_loss(log_z, picked, ref)

            return scoring.catalogue_loss(hidden, item_emb, row_loss, sample, weights, chunk, *repeats)
        if self.sampler.needs_scores is None:
            negatives = draw.finish()
        else:

            def sample_only(rows, scores):
                return draw.finish(rows, self._sampler_scores(scores, reference, rows))

            negatives = scoring.sample_over_catalogue(
                hidden.detach(), item_emb.detach(), sample_only, chunk, *repeats
            )
        ids = torch.cat([targets.unsqueeze(1), negatives], dim=1)  # [R, 1 + K]
        picked = scoring.item_scores(hidden, item_emb, ids, *repeats)
        ref = self._reference_scores(reference, slice(None), ids)
        per_row = self._preference(picked[:, 0], picked[:, 1:], ref)
        return self.settings["lambda"] * (per_row * weights).sum()

    def _chunk(self, device_type):
        return scoring.chunk_rows(self.n_items, self.settings["logits_memory_mb"], device_type)

    def _begin_draw(self, context):
        if self.sampler is None:
            return None
        return self.sampler.begin(context.targets, context.history, context.rows)

    def _sampler_scores(self, scores, reference, rows):
        if self.sampler.needs_scores is None:
            return None
        if self.sampler.needs_scores == "policy":
            return scores
        return scoring.chunk_scores(
            reference.hidden, reference.item_emb, rows, reference.repeat_bias, reference.history
        )

    def _mixed_loss(self, log_z, picked, ref):
        """Cross-entropy and preference term of rows: [c].

        Cross-entropy keeps the padding column in its normalizer, as RecBole's does; preference terms
        are about real items, so theirs leaves it out.
        """
        pad, pos, neg = picked[:, 0], picked[:, 1], picked[:, 2:]
        total = 0.0
        if self.settings["ce_weight"] > 0:
            total = self.settings["ce_weight"] * (log_z - pos)
        if self.uses_negatives:
            real_z = scoring.without_padding(log_z, pad).unsqueeze(1)
            pos, neg = pos - real_z[:, 0], neg - real_z
            total = total + self.settings["lambda"] * self._preference(pos, neg, ref)
        return total

    def _preference(self, pos, neg, ref):
        arguments = [pos, neg]
        if self.method.uses_reference(self.settings):
            arguments += [ref[:, 0], ref[:, 1:]]
        result = self.method.loss(*arguments, **self.loss_settings)
        per_row, extras = result if isinstance(result, tuple) else (result, {})
        if per_row.shape != pos.shape:
            raise PrefError(
                f"the loss of method {self.method.name!r} returned a tensor of shape {list(per_row.shape)} for "
                f"{len(pos)} rows: return one value per row, such as the mean over the negatives."
            )
        self.watched.append((pos.detach(), neg.detach(), ref, extras))
        return per_row

    @torch.no_grad()
    def _record(self):
        """Add the diagnostics of a batch, whose parts ``_preference`` has seen, to the sums."""
        if not self.watched:
            return
        pos, neg, ref, extras = zip(*self.watched)
        self.watched = []
        ref_parts = (None, None)
        if ref[0] is not None:
            ref = torch.cat(ref)
            ref_parts = (ref[:, 0], ref[:, 1:])
        beta = self.settings.get("beta") or 1.0
        values = losses.diagnostics(torch.cat(pos), torch.cat(neg), *ref_parts, beta=beta)
        values.update({name: torch.cat([part[name] for part in extras]) for name in extras[0]})
        for name, value in values.items():
            entry = torch.stack([value.sum(), value.new_full((), value.numel())])
            known = self.log_sums.get(name)
            self.log_sums[name] = entry if known is None else known + entry

    def pop_diagnostics(self):
        """Return the means of the logged quantities since the last call, over all processes: dict of str to float."""
        sums = {name: distributed.total(entry) for name, entry in self.log_sums.items()}
        means = {name: (entry[0] / entry[1]).item() for name, entry in sums.items()}
        self.log_sums = {}
        if self.repeat_bias is not None:
            means["repeat_bias"] = _bias_of(self).item()
        return means

    def _whole_scores(self, model, interaction):
        """Return the scores that cross-entropy of the policy or the reference is about: [R, n_items]."""
        scores = whole_scores(model, self.backbone_class, interaction).float().view(-1, self.n_items)
        if self.backbone_class.__name__ in _PROBABILITY_BACKBONES:
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores

    def _loss_from_scores(self, interaction, targets, weights):
        scores = self._whole_scores(self, interaction)
        context = self._context(interaction, targets)
        reference = None
        if self.uses_reference:
            with torch.no_grad():
                reference = self._whole_scores(self.reference, interaction)
        log_z = torch.logsumexp(scores, dim=-1)
        ids = [torch.zeros_like(targets).unsqueeze(1), targets.unsqueeze(1)]
        if self.sampler is not None:
            # Samplers write into the scores for a while, which autograd would not allow in its own.
            of_sampler = reference if self.sampler.needs_scores == "reference" else scores.detach().clone()
            ids.append(self._begin_draw(context).finish(slice(None), of_sampler, log_z.detach()))
        ids = torch.cat(ids, dim=1)
        ref = None
        if reference is not None:
            ref = reference.gather(1, ids[:, 1:])
            ref = ref - torch.logsumexp(reference[:, 1:], dim=-1, keepdim=True)
        per_row = self._mixed_loss(log_z, scores.gather(1, ids), ref)
        return (per_row * weights).sum()

    # -- the reference ------------------------------------------------------------------------

    def _empty_reference(self, config, dataset):
        # The policy's random stream must not depend on whether a reference exists.
        with torch.random.fork_rng(devices=[]):
            reference = self.backbone_class(config, dataset)
        reference.repeat_bias = None if self.repeat_bias is None else torch.nn.Parameter(torch.zeros(()))
        return reference.requires_grad_(False).eval()

    def start_from(self, state_dict):
        """Copy a trained backbone into the policy and, if one is used, the frozen reference.

        Args:
            state_dict (dict): parameters of the plain backbone.
        """
        self.load_state_dict({**self.state_dict(), **state_dict})
        if self.reference is not None:
            self.reference.load_state_dict(state_dict)
        self.reference_rows = self.reference_log_z = None

    def train(self, mode=True):
        """Set training mode; the reference stays in evaluation mode."""
        super().train(mode)
        if getattr(self, "reference", None) is not None:
            self.reference.eval()
        return self

    @torch.no_grad()
    def cache_reference(self, batches, n_rows):
        """Keep the reference's representation of every training row: [n_rows, H].

        Args:
            batches (iterable): all training batches once, as ``calculate_loss`` takes them.
            n_rows (int): number of training rows.
        """
        if not self.uses_reference or self.backbone is None:
            return
        item_emb = self.reference.item_embedding.weight
        chunk = self._chunk(item_emb.device.type)
        normalized = self.method.needs_log_probs(self.settings)
        hidden_rows, log_z_rows = None, None
        for batch in batches:
            batch = batch.to(item_emb.device)
            packed = isinstance(batch, PackedBatch)
            rows = batch.rows if packed else batch[ROW_FIELD]
            hidden = self._reference_encode(batch)
            if hidden_rows is None:
                hidden_rows = hidden.new_zeros(n_rows, hidden.shape[1])
                log_z_rows = hidden.new_zeros(n_rows)
            hidden_rows[rows] = hidden
            if normalized:
                repeats = (_bias_of(self.reference), self._context(batch, None).history)
                log_z_rows[rows] = scoring.catalogue_log_z(hidden, item_emb, chunk, *repeats)
        self.reference_rows = hidden_rows
        self.reference_log_z = log_z_rows if normalized else None

    def _reference_encode(self, batch):
        if isinstance(batch, PackedBatch):
            return encode_packed(self.reference, self.backbone, batch)
        return encode_last(self.reference, self.backbone, batch)

    @torch.no_grad()
    def _reference_states(self, interaction, context):
        item_emb = self.reference.item_embedding.weight
        repeats = (_bias_of(self.reference), context.history)
        if self.reference_rows is not None:
            log_z = None
            if self.reference_log_z is not None:
                log_z = self.reference_log_z[context.rows]
            return _ReferenceStates(self.reference_rows[context.rows], item_emb, log_z, *repeats)
        hidden, log_z = self._reference_encode(interaction).float(), None  # under autocast it may be half
        if self.method.needs_log_probs(self.settings):
            log_z = scoring.catalogue_log_z(hidden, item_emb, self._chunk(hidden.device.type), *repeats)
        return _ReferenceStates(hidden, item_emb, log_z, *repeats)

    @torch.no_grad()
    def _reference_scores(self, reference, rows, ids):
        """Return the reference's scores, or log-probabilities where the method needs them: [c, M]."""
        if reference is None:
            return None
        history = None if reference.repeat_bias is None else reference.history[rows]
        scores = scoring.item_scores(
            reference.hidden[rows], reference.item_emb, ids, reference.repeat_bias, history
        )
        if reference.log_z is not None:
            scores = scores - reference.log_z[rows].unsqueeze(1)
        return scores


@dataclass
class _Rows:
    """Targets [R], row numbers [R] or None, and histories [R, L] or None of a batch."""

    targets: torch.Tensor
    rows: torch.Tensor | None
    history: torch.Tensor | None


class _ReferenceStates:
    """What gives the reference's scores of a batch.

    Its representations [R, H], item embeddings, normalizers [R] or None, repeat bias or None, and the rows'
    histories [R, L] or None.
    """

    def __init__(self, hidden, item_emb, log_z, repeat_bias, history):
        self.hidden, self.item_emb, self.log_z = hidden, item_emb, log_z
        self.repeat_bias, self.history = repeat_bias, history


def _bias_of(model):
    """Return what a policy or reference adds to the scores of items of the history: scalar Tensor, or None."""
    return None if model.repeat_bias is None else _REPEAT_SCALE * model.repeat_bias


def encode_packed(model, spec, batch):
    """Return the representations of a packed batch's rows: [R, H]."""
    parts = []
    for sequence, pick in zip(batch.sequences, batch.picks):
        states = spec.encode_all(model, sequence)  # [S, l, H]
        parts.append(states.flatten(0, 1).index_select(0, pick))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def read_settings(config):
    """Return our settings from a RecBole config: dict of key to value."""
    return {key: config[key] for key in SETTINGS if key in config}
