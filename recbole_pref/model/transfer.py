"""``init_from``: a run on newer data starts from the parameters of an earlier run.

Ids depend on the data, so the rows of items, users and the tokens of item features are matched by token. A known one
keeps its row, and a new one gets the mean of the known rows. All other parameters are copied. The head/tail split,
priors and the optimizer belong to the new run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recbole_pref import checkpoint
from recbole_pref.encoder.multimodal import Multimodal
from recbole_pref.errors import PrefError
from recbole_pref.model.names import split_model_name
from recbole_pref.model.sizes import Sizes
from recbole_pref.settings import shown
from recbole_pref.settings.files import backbone_settings

_OF_THE_RUN = ("reference.", "prior.")
_DIGEST = "feature_digest"  # ends the name of the buffer that identifies the item features of a run
_PADDING = "[PAD]"  # RecBole's token of id 0
_FREE = ("reg_", "loss_type")  # settings of backbones that may differ, besides numbers such as dropout
_SIZES = {"items": (201, 202), "users": (51, 52, 53)}  # of a small model; GRU4RecCPR needs more than 100 items


@dataclass(frozen=True)
class Tokens:
    """What the rows of the parameters of a model belong to.

    Attributes:
        items: tokens of the items by id.
        users: tokens of the users by id if the model has a vector per user, else None.
        rows: tokens of the rows of parameters that belong to item features, by the name of the parameter.
    """

    items: list[str]
    users: list[str] | None
    rows: dict[str, list[str]]

    @classmethod
    def of(cls, model: Any, dataset: Any) -> "Tokens":
        """Return the tokens of a model and the RecBole data set that it is trained on."""
        items, users = (
            [str(token) for token in dataset.field2id_token.get(field, ())]
            for field in (dataset.iid_field, dataset.uid_field)
        )
        per_user = any(parameter.shape[:1] == (len(users),) for parameter in model.parameters())
        rows: dict[str, list[str]] = {}
        if isinstance(model, Multimodal):
            table_tokens = model.item_embedding.row_tokens(dataset)
            rows = {f"item_embedding.{name}": tokens for name, tokens in table_tokens.items()}
        return cls(items, users if per_user else None, rows)

    def of_rows(self, name: str, kinds: Mapping[str, str]) -> list[str] | None:
        """Return the tokens of the rows of a parameter, or None; ``kinds`` is the result of ``_sized_parameters``."""
        kind = kinds.get(name)
        if kind is None:
            return self.rows.get(name)
        return self.items if kind == "items" else self.users

    @classmethod
    def stored_in(cls, state: Mapping[str, Any]) -> "Tokens":
        """Return the tokens in a checkpoint."""
        return cls(state["item_tokens"], state.get("user_tokens"), state.get("row_tokens") or {})


def load(path: str, config: Any) -> dict[str, Any]:
    """Load a checkpoint for ``init_from``.

    Args:
        path: of the checkpoint.
        config (Config): of the run that starts from it.

    Raises:
        PrefError: the file is missing, damaged, without tokens, or of another backbone or other sizes.
    """
    state = checkpoint.load(path, setting="init_from")
    if not isinstance(state, dict) or not {"item_tokens", "state_dict", "model", "config"} <= state.keys():
        raise PrefError(
            f"init_from={path!r} holds no item tokens: name a checkpoint that this version of RecBole-Pref wrote."
        )
    backbone = config.model_class.backbone_class
    pair = split_model_name(state["model"])
    stored_backbone = state["model"] if pair is None else pair[1].__name__
    if stored_backbone != backbone.__name__:
        raise PrefError(
            f"init_from={path!r} holds {state['model']}, and model={config['model']!r} has another backbone: name a "
            f"checkpoint of {backbone.__name__}, or another model."
        )
    current = backbone_settings(config, backbone)
    current |= {key: config[key] for key in ("MAX_ITEM_LIST_LENGTH", "repeat_bias")}
    for key, value in checkpoint.to_plain(current, other=str).items():
        stored = state["config"].get(key, value)
        is_free = key.startswith(_FREE) or isinstance(value, float) or isinstance(stored, float)
        if stored != value and not is_free:
            raise PrefError(
                f"init_from={path!r} was trained with {key}={shown(stored)}, this run has {shown(value)}: set "
                f"{key} to that value or name another checkpoint."
            )
    return state


def start(model: Any, config: Any, tokens: Tokens) -> str:
    """Take over the parameters of the checkpoint that ``init_from`` names.

    Args:
        model (PreferenceMixin): the policy of the new run; a frozen reference in it keeps its parameters.
        config (Config): of the run.
        tokens: of the model and its data.

    Returns:
        A sentence for the log: how many items and users are known, new and gone.

    Raises:
        PrefError: see ``load``; or no item is known, or the checkpoint lacks the tokens of users or features.
    """
    path = config["init_from"]
    state = load(path, config)
    stored_tokens = Tokens.stored_in(state)
    if not _real(stored_tokens.items) & _real(tokens.items):
        raise PrefError(
            f"init_from={path!r} knows none of the items of dataset={config['dataset']!r}: name the checkpoint of a "
            "run on earlier data."
        )
    kinds = _sized_parameters(model, config, tokens)
    counts = [_counts("items", stored_tokens.items, tokens.items)]
    if "users" in kinds.values() and tokens.users is not None and stored_tokens.users is not None:
        counts.append(_counts("users", stored_tokens.users, tokens.users))
    parameters = dict(model.named_parameters())
    values = model.state_dict()
    for name, tensor in values.items():
        of_the_run = name.startswith(_OF_THE_RUN) or name.endswith(_DIGEST)
        if of_the_run or name == "prior_weight" and (name not in parameters or name not in state["state_dict"]):
            continue
        rows, stored = tokens.of_rows(name, kinds), state["state_dict"].get(name)
        if rows is not None and stored is not None:
            stored_rows = stored_tokens.of_rows(name, kinds)
            if stored_rows is None:
                raise PrefError(
                    f"init_from={path!r} does not name the rows of {name}, because an earlier version of RecBole-Pref "
                    "wrote it: train it again."
                )
            stored = _matched(stored, stored_rows, rows)
        if stored is None or stored.shape != tensor.shape:
            there = "missing" if stored is None else list(stored.shape)
            raise PrefError(
                f"init_from={path!r} does not fit this run: {name} is {there} there and {list(tensor.shape)} here; "
                "name a checkpoint with the same settings."
            )
        values[name] = stored
    model.load_state_dict(values)
    return f"started from {path}: {'; '.join(counts)}"


def _sized_parameters(model: Any, config: Any, tokens: Tokens) -> dict[str, str]:
    """Return the parameters with a row per item or per user: name to ``items`` or ``users``.

    They are those that have other sizes in a small model: in the model itself, a size such as ``hidden_size`` may
    equal the number of items.
    """
    n_items, n_users = len(tokens.items), len(tokens.users or ())
    items = next(size for size in _SIZES["items"] if size != n_items)
    users = next(size for size in _SIZES["users"] if size != n_users and n_users - size != n_items - items)
    backbone: Any = next(cls for cls in model.backbone_class.__mro__ if not issubclass(cls, Multimodal))
    small = backbone(config, Sizes(config, items, users)).state_dict()
    kinds = {n_items - items: "items", n_users - users: "users"}
    differences = {
        name: len(tensor) - len(small[name])
        for name, tensor in model.state_dict().items()
        if name in small and tensor.dim()
    }
    return {name: kinds[difference] for name, difference in differences.items() if difference}


def _matched(stored: torch.Tensor, stored_tokens: Sequence[str], tokens: Sequence[str]) -> torch.Tensor:
    """Return the rows of a stored parameter in the order of other tokens.

    Args:
        stored: [n + e, ...]; the rows after the first n belong to no token (BERT4Rec's mask), and stay.
        stored_tokens: n tokens.
        tokens: m tokens.

    Returns:
        [m + e, ...]; a new token has the mean of the known rows, or of all stored ones if none is known.
    """
    numbers = {token: number for number, token in enumerate(stored_tokens)}
    rows = torch.tensor([numbers.get(token, -1) for token in tokens])
    current = _real(tokens)
    known = [number for token, number in numbers.items() if token in current]
    known = known or [number for token, number in numbers.items() if token != _PADDING]
    mean = stored[known].double().mean(dim=0).to(stored.dtype)
    matched = stored[rows.clamp_min(0)]
    matched[rows < 0] = mean
    return torch.cat([matched, stored[len(stored_tokens) :]])


def _real(tokens: Sequence[str]) -> set[str]:
    return set(tokens) - {_PADDING}


def _counts(what: str, stored: Sequence[str], current: Sequence[str]) -> str:
    before, now = _real(stored), _real(current)
    return f"{what}: {len(before & now):,} known, {len(now - before):,} new, {len(before - now):,} gone"
