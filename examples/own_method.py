"""A method of your own: one loss function, its defaults and its name.

    python examples/own_method.py

The loss is the focal variant of pairwise ranking: pairs that are ranked well already weigh less.
"""

import torch.nn.functional as F

from recbole_pref.plugins import add_method
from recbole_pref.quick_start import run_recbole_pref


def focal(pos, neg, *, beta, focus):
    """Mean over K negatives of -(1 - p)^focus log p with p = sigma(beta (pos - neg)): [B], [B, K] -> [B]."""
    margins = beta * (pos.unsqueeze(1) - neg)
    return -((-margins).sigmoid() ** focus * F.logsigmoid(margins)).mean(dim=1)


add_method(
    "Focal",
    focal,
    "pairwise ranking, hard pairs first",
    defaults={"beta": 1.0, "focus": 2.0, "ce_weight": 0.0, "num_negatives": 10, "exclude_history": True},
)


def main(dataset="ml-100k", **settings):
    """Train the method on SASRec and return its test metrics: dict."""
    result = run_recbole_pref("FocalSASRec", dataset, config_dict={"epochs": 20, **settings})
    return result["test_result"]


if __name__ == "__main__":
    print(main())
