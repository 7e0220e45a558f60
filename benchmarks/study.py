"""The studies of docs/results.md: methods against a tuned baseline, several seeds, three readings of the tail.

    python benchmarks/study.py --studies=all --data_path=dataset/
    python benchmarks/study.py --dataset=ml-100k --seeds=5 --processes=2
    python benchmarks/study.py --dataset=amazon-beauty --data_path=dataset/ --seeds=5
    python benchmarks/study.py --dataset=ml-100k --backbones=GRU4Rec,Caser --entries=CE,LPO
    python benchmarks/study.py --dataset=ml-100k --seeds=5 --masked
    python benchmarks/study.py --dataset=ml-100k --entries="LPO,LPO alpha_tail=0.5,LPO alpha_tail=2,LPO alpha_tail=3"

Every entry trains until its validation score has not improved for ten epochs; key=value after its name
changes a setting. Finished runs are not repeated. The script writes the files of ``--compare`` to
OUTPUT/<dataset>-<backbone>. It prints the table and the metrics for three definitions of the tail, from stored ranks,
and writes both to study.md. --masked ranks the test set of the finished runs again without the items of the user's
history. --studies runs several studies by name. Each has a folder OUTPUT/<name> for its tables, pictures and report;
studies on the same data set and backbone share the runs in OUTPUT/<dataset>-<backbone>. Data sets that are not under
data_path are skipped.

studies:{studies}
entries:
{entries}
"""

import argparse
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import METRICS, compared_runs, exit_code_of, trained
from tabulate import tabulate

SHARED = {"epochs": 100, "stopping_step": 10, "eval_step": 1, "state": "INFO"}
# What LPO4Rec's authors trained, in SASRec's settings: for a GPU.
PAPER_SIZE = {
    "hidden_size": 768, "inner_size": 768, "n_layers": 1, "n_heads": 16, "hidden_dropout_prob": 0.8,
    "attn_dropout_prob": 0.8, "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 128, "learning_rate": 0.0005,
    "lr_scheduler": "cosine", "warmup_ratio": 0.1,
}  # fmt: skip
TRAINED = {"repeat_bias": True, "reference": "auto", "epochs": 0}
LEARNED = {"prior": "TALE", "prior_in_training": True, "prior_weight": "learned"}
# name -> method and settings; the label of the table is the name before the backbone's. Linear models have no backbone.
ENTRIES = {
    "CE": ("CE", {}),
    # With the repeat bias: the reference of "LPO recommended" itself, trained once for all entries that start from it.
    "CE trained": ("CE", TRAINED),
    "CE trained prior": ("CE", {**TRAINED, "prior": "TALE"}),
    # The control for methods that start from the trained model; the better of two learning rates.
    "CE continued": ("CE", {**TRAINED, "epochs": 8, "learning_rate": 0.00168}),
    "CE prior learned": ("CE", {**TRAINED, **LEARNED, "epochs": 30, "learning_rate": 0.0005}),
    "CE prior in training": ("CE", {"repeat_bias": True, **LEARNED}),
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
    "SimPO": ("SimPO", {}),
    "MPPO": ("MPPO", {}),
    "ORPO": ("ORPO", {}),
    "LPO recommended": ("LPO", {}),
    "LPO recommended prior": ("LPO", {"prior": "TALE"}),
    "LPO recommended prior learned": ("LPO", LEARNED),
    "CE paper size": ("CE", PAPER_SIZE),
    "LPO paper size": ("LPO", PAPER_SIZE),
    "TALE": ("TALE", {}),
    "SLIST": ("SLIST", {}),
    "SeqEASE": ("SeqEASE", {}),
}
# The winners of sweeps (properties/tune/) on ml-100k with SASRec: ten trials of at most eight epochs, twelve for S-DPO,
# from the trained model of seed 2020; the best NDCG@10 on the validation set, TailNDCG@10 for LPO.
_POOL20 = {"learning_rate": 0.00272, "beta": 0.312, "num_negatives": 20, "neg_sampler": "pool", "ce_weight": 1.0}
_UNIFORM5 = {"learning_rate": 0.00242, "beta": 0.0941, "num_negatives": 5, "neg_sampler": "uniform", "ce_weight": 1.0}
FOUND = {
    "SDPO": _POOL20, "DMPO": _POOL20, "SimPO": _POOL20, "HaNoRec": _POOL20, "SPRec": _POOL20,
    "DPO": _UNIFORM5, "DynamicPO": _UNIFORM5, "RoDPO": _UNIFORM5, "MPPO": _UNIFORM5,
    "TAWin": {
        "learning_rate": 0.000105, "tau": 5.37, "tawin_window": 2, "num_negatives": 50, "neg_sampler": "uniform",
        "ce_weight": 1.0,
    },
    "ORPO": {"learning_rate": 0.000508, "lambda": 0.011, "num_negatives": 20, "neg_sampler": "uniform"},
    "LPO": {"learning_rate": 0.001, "tau": 0.0888, "lambda": 0.351, "alpha_tail": 0.517, "num_negatives": 5},
}  # fmt: skip
for _method, _found in FOUND.items():
    ENTRIES[f"{_method} tuned"] = (_method, {**TRAINED, "epochs": 8, **_found})
    ENTRIES[f"{_method} tuned prior"] = (_method, {**TRAINED, "epochs": 8, **_found, "prior": "TALE"})
RECOMMENDED = "LPO recommended"  # entries with this prefix use the property file
FIRST, PARTS = "CE,CE trained,LPO recommended", "CE,CE reweighted,LPO,LPO log-probability"
PRIORS = (
    "CE trained,CE trained prior,CE prior learned,CE prior in training,"
    "LPO recommended,LPO recommended prior,LPO recommended prior learned,TALE,SLIST,SeqEASE"
)
UNTOUCHED = "CE,CE trained,CE trained prior,LPO recommended,LPO recommended prior,TALE"
WEIGHTS = "CE trained,LPO recommended,LPO recommended lambda=0"  # with and without the preference term
METHODS = "CE,DPO,DMPO,SDPO,DynamicPO,RoDPO,TAWin,SimPO,MPPO,ORPO"
# What the sweep of properties/tune/ce-Caser.yaml found on amazon-beauty. Only CE trains itself with this learning rate.
TUNED_CASER = ",".join(
    f"{name} {'' if name == 'CE' else 'reference_'}learning_rate=0.00043 embedding_size=128 dropout_prob=0.7"
    for name in FIRST.split(",")
)
# The winners of the four best of these methods on amazon-beauty: eight trials of at most six epochs. S-DPO and DMPO
# have one negative there, so they are the same loss.
_K1 = "epochs=6 learning_rate=8.681e-05 beta=0.1145 num_negatives=1 neg_sampler=pool"
TUNED_BEAUTY = (
    "CE trained,CE continued epochs=6 learning_rate=8.681e-05,CE continued epochs=6,"
    "ORPO tuned epochs=6 learning_rate=7.261e-05 lambda=0.1133 num_negatives=20 neg_sampler=pool,"
    f"SDPO tuned {_K1},HaNoRec tuned {_K1}"
)


class Study(NamedTuple):
    """One call of this script for one backbone; the fields are its options."""

    dataset: str
    backbone: str
    entries: str
    seeds: str
    baseline: str | None = None
    masked: bool = False


# Every table of docs/results.md that this script makes, and the p-values against another baseline.
STUDIES = {
    "parts-ml-100k": Study(
        "ml-100k", "SASRec", f"{PARTS},LPO without reweighting,LPO top-K negatives,LPO random negatives", "3"
    ),
    "weights-ml-100k-SASRec": Study("ml-100k", "SASRec", WEIGHTS, "3"),
    "tuned-methods-ml-100k": Study(
        "ml-100k",
        "SASRec",
        ",".join(["CE trained", "CE continued", *(f"{method} tuned" for method in FOUND)]),
        "5",
        "CE continued",
    ),
    "tuned-methods-amazon-beauty": Study("amazon-beauty", "SASRec", TUNED_BEAUTY, "2020,2021"),
    "tuned-amazon-beauty-Caser": Study("amazon-beauty", "Caser", TUNED_CASER, "5", masked=True),
    "methods-amazon-beauty": Study("amazon-beauty", "SASRec", METHODS, "5"),
    "parts-amazon-beauty": Study("amazon-beauty", "SASRec", PARTS, "5"),
}
for _dataset in ("ml-100k", "amazon-beauty"):
    for _backbone in ("SASRec", "GRU4Rec", "Caser"):
        _name = f"{_dataset}-{_backbone}"
        STUDIES[f"recommended-{_name}"] = Study(_dataset, _backbone, FIRST, "5", masked=True)
        STUDIES[f"against-bias-{_name}"] = Study(_dataset, _backbone, FIRST, "5", "CE trained")
        STUDIES[f"prior-{_name}"] = Study(_dataset, _backbone, PRIORS, "5", masked=True)
# Data on which nothing was chosen, neither settings nor rules.
STUDIES["untouched-lastfm-artists"] = Study("lastfm-artists", "SASRec", UNTOUCHED, "5", masked=True)
SHARED_FOLDERS = ("runs", "logs", "tasks", "checkpoints", "reference")
# The two numbers of tail_split and head_ratio.
TAILS = {
    "outside the most popular 20% of items": ("items", 0.2),
    "least popular 20% of items": ("items", 0.8),
    "items with the last 20% of interactions": ("interactions", 0.8),
}


def entries_for(backbone, names):
    """Return the entries of the comparison for a backbone.

    Args:
        backbone (str): such as ``SASRec``.
        names (str): keys of ``ENTRIES`` separated by commas, each followed by any number of ``key=value``.

    Raises:
        PrefError: a name is not an entry, or the entry is not for this backbone.
    """
    import yaml

    from recbole_pref.compare import Entry, split_text
    from recbole_pref.errors import PrefError, suggest
    from recbole_pref.model.linear_models import LINEAR_MODELS
    from recbole_pref.settings.files import parse_value, properties_dir

    found = []
    for text in split_text(names, ","):
        words = split_text(text, " \t\n")
        name = " ".join(word for word in words if "=" not in word)
        if name not in ENTRIES:
            raise PrefError(f"--entries: {name!r} does not exist: --help lists them.{suggest(name, ENTRIES)}")
        method, settings = ENTRIES[name]
        if settings is PAPER_SIZE and not backbone.endswith("SASRec"):
            raise PrefError(f"--entries: {name!r} is in settings of SASRec: leave it out for {backbone}.")
        if name.startswith(RECOMMENDED):
            file = properties_dir() / "recommended" / f"{method}.yaml"
            settings = {**yaml.safe_load(file.read_text(encoding="utf-8")), **settings}
        own = (word.partition("=") for word in words if "=" in word)
        settings = {**settings, **{key: parse_value(value) for key, _, value in own}}
        name_of = [] if method.lower() in LINEAR_MODELS else [backbone]
        found.append(Entry(" ".join([*words, *name_of]), "".join([method, *name_of]), settings))
    return found


def by_tail(folder, labels):
    """Return a table of NDCG@10 and HR@10 for each definition of the tail, mean over seeds."""
    from recbole_pref.popularity import head_tail_split

    rows = []
    runs = compared_runs(folder)
    for label in labels:
        own = [run.arrays for run in runs if run.label == label]
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
    """Return a table of test metrics with ``mask_history: true``, from the best checkpoints: mean +- std.

    A weight of a prior that the validation set chose is chosen again by valid_metric, with the history masked.
    """
    from recbole_pref.model.prior import is_weight_chosen
    from recbole_pref.training.prior import choose_weight

    found = {label: [] for label in labels}
    for run in compared_runs(folder):
        trainer, _, valid_data, test_data = trained(
            str(folder / run.checkpoint), mask_history=True, objective=None, data_path=data_path
        )
        if is_weight_chosen(trainer.config):
            choose_weight(trainer, valid_data)
        result = trainer.evaluate(test_data, load_best_model=False)
        found[run.label].append([result[metric] for metric in METRICS])
    rows = []
    for label, values in found.items():
        cells = [f"{mean:.4f}" for mean in np.mean(values, axis=0)]
        if len(values) > 1:
            cells = [f"{cell} ± {std:.4f}" for cell, std in zip(cells, np.std(values, axis=0, ddof=1))]
        rows.append([label, len(values), *cells])
    return tabulate(rows, ["history masked", "seeds", *METRICS], "github", disable_numparse=True)


def is_there(dataset, data_path):
    """Return whether the interactions of a data set are under data_path."""
    from recbole_pref.config import Config

    config = Config("CESASRec", dataset, config_dict={"data_path": data_path})
    return Path(config["data_path"], f"{dataset}.inter").is_file()


def sharing_folder(output, name, study):
    """Return the folder OUTPUT/<name>, whose runs are those of OUTPUT/<dataset>-<backbone>.

    Raises:
        PrefError: the folder cannot be written.
    """
    from recbole_pref.errors import PrefError

    folder = Path(output, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in SHARED_FOLDERS:
            shared = Path(f"{study.dataset}-{study.backbone}", part)
            Path(output, shared).mkdir(parents=True, exist_ok=True)
            if not Path(folder, part).exists():
                Path(folder, part).symlink_to(Path("..", shared))  # relative: OUTPUT may be moved
    except OSError as error:
        raise PrefError(f"--output={output!r} cannot be written: {error.strerror}.") from None
    return folder


def conduct(study, folder, data_path, processes):
    """Train the missing runs, print the tables, draw the pictures; return the failed runs as ``compare`` does."""
    from recbole_pref.checkpoint import write_atomically
    from recbole_pref.compare import compare
    from recbole_pref.report import draw_and_report

    baseline = study.baseline and " ".join([*study.baseline.split(), study.backbone])
    done = compare(
        entries_for(study.backbone, study.entries), study.dataset, study.seeds, processes=processes, output=folder,
        baseline=baseline, config_dict={**SHARED, "data_path": data_path},
    )  # fmt: skip
    labels = [row["label"] for row in done.rows]
    tables = [done.text.rstrip(), by_tail(folder, labels)]
    if study.masked:
        tables.append(with_masked_history(folder, labels, data_path))
    text = "\n\n".join(tables)
    print(text)
    write_atomically(folder / "study.md", lambda file: file.write(f"{text}\n".encode()), "output")
    print(f"report: {draw_and_report(folder)}", flush=True)
    return done.failed


def conduct_all(names, output, data_path, processes):
    """Conduct studies by name, each in its own folder; a failed study does not stop the others.

    Returns:
        The exit code: 2 if a run failed or all studies were skipped.

    Raises:
        PrefError: a name is not a study.
    """
    from recbole_pref.errors import PrefError, suggest

    for name in names:
        if name not in STUDIES:
            raise PrefError(f"--studies: {name!r} does not exist: --help lists them.{suggest(name, STUDIES)}")
    for dataset in dict.fromkeys(STUDIES[name].dataset for name in names):
        if not is_there(dataset, data_path):
            print(f"The studies on {dataset} are skipped: it is not under data_path={data_path!r}.", file=sys.stderr)
            names = [name for name in names if STUDIES[name].dataset != dataset]
    failed = not names
    for name in names:
        print(f"\n## {name}\n", flush=True)
        try:
            folder = sharing_folder(output, name, STUDIES[name])
            failed |= bool(conduct(STUDIES[name], folder, data_path, processes))
        except PrefError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


def build_parser():
    """Return the parser of the command line."""
    text = __doc__.format(studies="\n  ".join(["", *STUDIES]), entries=textwrap.fill(", ".join(ENTRIES), 110))
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", help="names of studies, separated by commas, or all")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--backbones", default="SASRec")
    sized = ",".join(name for name, (_, settings) in ENTRIES.items() if settings is not PAPER_SIZE)
    parser.add_argument("--entries", default=sized, help="by default all but those of the paper's size")
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--baseline", help="entry that the tests compare with, by default the first")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", default="study")
    parser.add_argument("--masked", action="store_true", help="also rank without the user's history")
    return parser


def main():
    """Run the command line; return the exit code.

    Raises:
        PrefError: the command line or the data are not valid.
    """
    from recbole_pref.errors import PrefError

    parser = build_parser()
    arguments = parser.parse_args()
    shared = (arguments.output, arguments.data_path, arguments.processes)
    if arguments.studies is not None:
        for key in ("dataset", "backbones", "entries", "seeds", "baseline", "masked"):
            if getattr(arguments, key) != parser.get_default(key):
                raise PrefError(f"--{key} is defined by the studies of --studies: remove one of the two options.")
        names = [name.strip() for name in arguments.studies.split(",") if name.strip()]
        return conduct_all(list(STUDIES) if names == ["all"] else names, *shared)
    backbones = [name.strip() for name in arguments.backbones.split(",")]
    options = (arguments.entries, arguments.seeds, arguments.baseline, arguments.masked)
    studies = [Study(arguments.dataset, backbone, *options) for backbone in backbones]
    for study in studies:
        entries_for(study.backbone, study.entries)  # check all backbones before the first run
    failed = [
        conduct(study, Path(arguments.output, f"{study.dataset}-{study.backbone}"), *shared[1:]) for study in studies
    ]
    return 2 if any(failed) else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
