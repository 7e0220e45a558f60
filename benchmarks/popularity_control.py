"""Controls for methods that favour the tail: the baseline's scores, changed by one number after training.

    python benchmarks/popularity_control.py --folder=study/ml-100k-SASRec --entry="CE trained SASRec" \\
        --against="LPO recommended SASRec"
    python benchmarks/popularity_control.py --folder=study/recommended-ml-100k-SASRec    # run by study.py --studies

--control=popularity subtracts c log(1 + count), where count is an item's number of training interactions: logit
adjustment after training (Menon et al., arXiv 2007.07314). --control=norm divides the dot product with an item vector
e by (|e| / mean |e|)^c; vectors of popular items are often longer.
The script reads the finished runs of one entry of a study or comparison. It selects c for each seed on the validation
set as ``recommended/LPO.yaml`` selects its epoch: the best tail NDCG@10 among values that keep 99% of the overall
NDCG@10. It prints test metrics, and p-values of the paired t-test over users against another entry.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from common import METRICS, OVERALL, TAIL, compared_runs, exit_code_of, trained
from tabulate import tabulate

# What c is compared for each control.
STRENGTHS = {"popularity": [step / 50 for step in range(26)], "norm": [step / 25 for step in range(26)]}
NAMES = {"popularity": "less c log(1 + count)", "norm": "dot products / norm^c"}
KEPT = 0.99  # share of the overall metric to keep


@torch.no_grad()
def ranks_by_strength(model, loader, control, train_count, tail_mask):
    """Return the arrays that ``evidence.user_values`` reads, for each strength of a control.

    Args:
        model: gives the scores.
        loader: RecBole's loader of the users and their targets.
        control (str): of ``STRENGTHS``.
        train_count (Tensor): [n_items] number of training interactions.
        tail_mask (Tensor): [n_items] True for tail items.
    """
    popularity = torch.log1p(train_count.float())
    if control == "norm":
        vectors = model.item_embedding.weight
        norm = vectors.norm(dim=1)
        shorter = norm[1:].mean() / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # [n_items]
    ranks, targets = [], []
    for interaction, _, rows, items in loader:
        scores = model.full_sort_predict(interaction).view(len(interaction), -1)[rows]  # [P, n_items]
        scores[:, 0] = -torch.inf  # padding
        if control == "norm":
            product = (model.encode(interaction) @ vectors.t())[rows]
            changes = (product * (shorter**c - 1) for c in STRENGTHS[control])
        else:
            changes = (-c * popularity for c in STRENGTHS[control])
        changed = (scores + change for change in changes)
        ranks.append(torch.stack([(new > new.gather(1, items.unsqueeze(1))).sum(1) + 1 for new in changed]))  # [C, P]
        targets.append(items)
    shared = {"target": torch.cat(targets).numpy(), "tail": tail_mask.numpy()}
    return [{**shared, "rank": rank} for rank in torch.cat(ranks, dim=1).numpy()]


def mean_of(arrays, metric):
    """Return the mean of a metric over its users."""
    from recbole_pref.evaluation.evidence import user_values

    return user_values(arrays, metric)[0].mean()


def chosen(valid):
    """Return the index of the strength that the rule selects on validation data."""
    bound = KEPT * mean_of(valid[0], OVERALL)
    allowed = [number for number, arrays in enumerate(valid) if mean_of(arrays, OVERALL) >= bound]
    return max(allowed, key=lambda number: mean_of(valid[number], TAIL))


def main():
    """Adjust the runs of an entry and print the table.

    Raises:
        PrefError: the folder has no comparison, or the entry does not exist.
    """
    from recbole_pref.errors import PrefError, suggest
    from recbole_pref.evaluation.evidence import user_values
    from recbole_pref.records.significance import paired_t

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--entry", default="CE trained SASRec")
    parser.add_argument("--against", default="LPO recommended SASRec")
    parser.add_argument("--control", choices=STRENGTHS, default="popularity")
    parser.add_argument("--data_path", default="dataset/")
    arguments = parser.parse_args()
    runs = compared_runs(arguments.folder)
    labels = {run.label for run in runs}
    for option, label in (("entry", arguments.entry), ("against", arguments.against)):
        if label not in labels:
            raise PrefError(f"--{option}={label!r} has no run in that comparison.{suggest(label, labels)}")
    others = {run.seed: run.arrays for run in runs if run.label == arguments.against}
    rows = {name: [] for name in (f"{arguments.entry} as it is", NAMES[arguments.control], arguments.against)}
    taken, adjusted = [], {}
    for run in runs:
        if run.label != arguments.entry:
            continue
        trainer, _, valid_data, test_data = trained(
            str(arguments.folder / run.checkpoint), data_path=arguments.data_path
        )
        items = trainer.eval_collector.train_count, trainer.eval_collector.tail_mask
        trainer.model.eval()
        valid, test = (
            ranks_by_strength(trainer.model, loader, arguments.control, *items) for loader in (valid_data, test_data)
        )
        number = chosen(valid)
        taken.append(STRENGTHS[arguments.control][number])
        adjusted[run.seed] = test[number]
        found = (test[0], test[number], others.get(run.seed))
        for values, arrays in zip(rows.values(), found):
            if arrays is not None:
                values.append([mean_of(arrays, metric) for metric in METRICS])
    table = [[label, len(v), *(f"{mean:.4f}" for mean in np.mean(v, axis=0))] for label, v in rows.items() if v]
    print(f"c by seed: {dict(zip(adjusted, taken))}")
    print(tabulate(table, ["test set", "seeds", *METRICS], "github", disable_numparse=True))
    common = [seed for seed in adjusted if seed in others]
    for metric in METRICS if common else ():
        gaps = [user_values(others[s], metric)[0] - user_values(adjusted[s], metric)[0] for s in common]
        gap = np.mean(gaps, axis=0)  # [users]
        print(f"{metric}: {arguments.against} less the line above {gap.mean():+.4f}, p = {paired_t(gap):.2g}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
