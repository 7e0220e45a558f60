"""The study of docs/results.md: methods against a tuned baseline, several seeds, three readings of the tail.

    python benchmarks/study.py --dataset=ml-100k --seeds=5 --processes=2
    python benchmarks/study.py --dataset=amazon-beauty --data_path=dataset/ --seeds=5
    python benchmarks/study.py --dataset=ml-100k --backbones=GRU4Rec,Caser --entries=CE,LPO
    python benchmarks/study.py --dataset=ml-100k --seeds=5 --masked

Every entry trains until its validation score has not improved for ten epochs. Finished
runs are not repeated. Writes what ``--compare`` writes to OUTPUT/<dataset>-<backbone>; prints its table and
the metrics under three readings of the tail, from the stored ranks, without training again. --masked ranks the
test set of the finished runs once more, items of the user's history left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

SHARED = {"epochs": 100, "stopping_step": 10, "eval_step": 1, "state": "INFO"}
# name -> method and settings; the label of the table is the name before the backbone's.
ENTRIES = {
    "CE": ("CE", {}),
    "CE repeat bias": ("CE", {"repeat_bias": True}),
    "CE reweighted": ("LPO", {"lambda": 0.0}),
    "LPO": ("LPO", {}),
    "LPO log-probability": ("LPO", {"lpo_space": "log_prob", "tau": 1.0}),
    "LPO logit sampling": ("LPO", {"sampler_space": "logit"}),
    "LPO without reweighting": ("LPO", {"reweight": "none"}),
    "LPO top-K negatives": ("LPO", {"neg_sampler": "topk"}),
    "LPO random negatives": ("LPO", {"neg_sampler": "uniform"}),
    "DPO": ("DPO", {}),
    "SDPO": ("SDPO", {}),
    "DMPO": ("DMPO", {}),
    "DynamicPO": ("DynamicPO", {}),
    "RoDPO": ("RoDPO", {}),
    "TAWin": ("TAWin", {}),
    "TAWin KL": ("TAWin", {"kl_weight": 0.001}),
    "SimPO": ("SimPO", {}),
    "MPPO": ("MPPO", {}),
    "ORPO": ("ORPO", {}),
    "LPO recommended": ("LPO", {}),
    "LPO recommended without repeat bias": ("LPO", {"repeat_bias": False}),
}
RECOMMENDED = "LPO recommended"  # entries that begin so start from the property file
# The two numbers of tail_split and head_ratio.
TAILS = {
    "outside the most popular 20% of items": ("items", 0.2),
    "least popular 20% of items": ("items", 0.8),
    "items with the last 20% of interactions": ("interactions", 0.8),
}


def entries_for(backbone, names):
    """Return the entries of the comparison for a backbone."""
    import yaml

    from recbole_pref.compare import Entry
    from recbole_pref.config import properties_dir

    found = []
    for name in names:
        method, settings = ENTRIES[name]
        if name.startswith(RECOMMENDED):
            file = properties_dir() / "recommended" / f"{method}.yaml"
            settings = {**yaml.safe_load(file.read_text(encoding="utf-8")), **settings}
        found.append(Entry(f"{name} {backbone}", method + backbone, settings))
    return found


def by_tail(folder, labels):
    """Return a table of NDCG@10 and HR@10 on each reading of the tail, mean over seeds."""
    from recbole_pref.compare import load_record
    from recbole_pref.popularity import head_tail_split

    rows = []
    names = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["runs"]
    runs = [load_record(folder, name) for name in names]
    for label in labels:
        own = [arrays for record, arrays in runs if record["label"] == label]
        line = [label, len(own)]
        for rule, ratio in TAILS.values():
            values = []
            for arrays in own:
                head = head_tail_split(torch.from_numpy(arrays["count"]), rule, ratio).numpy()
                rank = arrays["rank"][~head[arrays["target"]]]
                hit = rank <= 10
                values.append((np.where(hit, 1 / np.log2(1 + rank), 0).mean(), hit.mean(), len(rank)))
            ndcg, hits, number = np.mean(values, axis=0)
            line.append(f"{ndcg:.4f} / {hits:.4f} ({number:.0f})")
        rows.append(line)
    header = ["model", "seeds", *(f"{name}: NDCG@10 / HR@10 (targets)" for name in TAILS)]
    return tabulate(rows, header, "github", disable_numparse=True)


def with_masked_history(folder, labels, data_path):
    """Return a table of test metrics with ``mask_history: true``, from the best checkpoints: mean +- std."""
    from recbole.utils import get_trainer

    from recbole_pref.compare import load_record
    from recbole_pref.quick_start import load_data_and_model

    metrics = ("hit@10", "ndcg@10", "headndcg@10", "tailhit@10", "tailndcg@10")
    found = {label: [] for label in labels}
    for name in json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["runs"]:
        record, _ = load_record(folder, name)
        config, model, _, train_data, _, test_data = load_data_and_model(
            str(folder / record["checkpoint"]), mask_history=True, data_path=data_path, state="ERROR"
        )
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.eval_collector.data_collect(train_data)
        result = trainer.evaluate(test_data, load_best_model=False)
        found[record["label"]].append([result[metric] for metric in metrics])
    rows = []
    for label, values in found.items():
        cells = [f"{mean:.4f}" for mean in np.mean(values, axis=0)]
        if len(values) > 1:
            cells = [f"{cell} ± {std:.4f}" for cell, std in zip(cells, np.std(values, axis=0, ddof=1))]
        rows.append([label, len(values), *cells])
    return tabulate(rows, ["history masked", "seeds", *metrics], "github", disable_numparse=True)


def main():
    """Run what is missing and print both tables for each backbone."""
    from recbole_pref.compare import compare
    from recbole_pref.plots import draw_all
    from recbole_pref.report import write_report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--backbones", default="SASRec")
    parser.add_argument("--entries", default=",".join(ENTRIES))
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--baseline", help="entry that the tests compare with, by default the first")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", default="study")
    parser.add_argument("--masked", action="store_true", help="rank without the user's history as well")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    for backbone in arguments.backbones.split(","):
        entries = entries_for(backbone, arguments.entries.split(","))
        folder = Path(arguments.output, f"{arguments.dataset}-{backbone}")
        done = compare(
            entries, arguments.dataset, arguments.seeds, processes=arguments.processes, output=folder,
            baseline=arguments.baseline and f"{arguments.baseline} {backbone}",
            config_dict={**SHARED, "data_path": arguments.data_path},
        )  # fmt: skip
        print(done.text)
        labels = [row["label"] for row in done.rows]
        print(by_tail(folder, labels))
        if arguments.masked:
            print(with_masked_history(folder, labels, arguments.data_path))
        draw_all(folder)
        print(f"report: {write_report(folder)}")


if __name__ == "__main__":
    main()
