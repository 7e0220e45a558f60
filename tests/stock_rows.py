"""Writes the rows of data sets as RecBole makes them, for ``test_dataset``: python stock_rows.py CASES OUTPUT.

With ``stock`` as the third argument none of the patches that ``test_dataset`` names is applied.
"""

import importlib.util
import json
import sys
import types

import torch

OURS = (
    "c_parser", "token_categories", "counter", "stable_duplicates", "splits", "sequences", "list_alias",
    "token_values", "outdated_datasets", "row_numbers",
)  # fmt: skip


def apply_others():
    """Apply the patches that let RecBole run at all, and none of ``OURS``."""
    package = types.ModuleType("recbole_pref")
    package.__path__ = list(importlib.util.find_spec("recbole_pref").submodule_search_locations)
    sys.modules["recbole_pref"] = package
    from recbole_pref import compat

    compat.PATCHES = tuple(patch for patch in compat.PATCHES if patch.name not in OURS)
    compat.apply()


def columns(interaction):
    """Return the columns of an interaction in their order: dict of name to Tensor."""
    return {name: interaction[name] for name in interaction.columns}


def rows_of(model, settings):
    """Return what a model's loaders and data sets hold: dict of plain values and tensors."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    config = Config(model, "d", config_dict={"state": "ERROR", "gpu_id": "", "data_path": ".", **settings})
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    feats = {name: columns(feat) for name in ("user", "item") if (feat := getattr(dataset, f"{name}_feat")) is not None}
    batches = [next(iter(loader), None) for loader in loaders]
    batches = [batch[0] if isinstance(batch, tuple) else batch for batch in batches]
    return {
        "tokens": {field: list(map(str, tokens)) for field, tokens in dataset.field2id_token.items()},
        "lengths": {field: list(length) if isinstance(length, tuple) else length for field, length in dataset.field2seqlen.items()},
        "feats": feats,
        # RecBole joins sampled batches column by column of a set, so their order is random.
        "batches": [dict(sorted(columns(batch).items())) for batch in batches if batch is not None],
        "splits": [columns(loader._dataset.inter_feat) for loader in loaders],
        "counts": [(int(item), count) for item, count in loaders[0]._dataset.item_counter.items()],
        "matrix": loaders[0]._dataset.inter_matrix().toarray().tolist(),
        "text": str(dataset),
    }  # fmt: skip


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    output, sys.argv = sys.argv[2], sys.argv[:1]
    apply_others()
    torch.save({name: rows_of(*case) for name, case in cases.items()}, output)
