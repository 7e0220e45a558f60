"""Multimodal items: cost of evaluation and accuracy of each fusion, compared with IDs only.

    python benchmarks/multimodal.py cost --dataset=amazon-beauty --data_path=dataset/
    python benchmarks/multimodal.py compare --method=CE --epochs=6 --dataset=lastfm-artists
    python benchmarks/multimodal.py compare --method=RoDPO --dataset=ml-100k-text \\
        --config_files dataset/ml-100k-text/text.yaml

``cost`` times full evaluations of untrained models, with IDs only and with each fusion, and prints the ratio of
their shortest times to that of the ID-only backbone. ``compare`` trains each model for the same epochs with the
same seed and prints test metrics of the best validation epoch.
"""

import argparse
import sys
import time

from tabulate import tabulate

CASES = ("ID only", "sum", "concat", "moe")


def case_of(method, backbone, case, settings):
    """Return model name and settings of a case."""
    if case == "ID only":
        return method + backbone, {k: v for k, v in settings.items() if not k.startswith("mm_")}
    return f"{method}MM{backbone}", {**settings, "mm_fusion": case}


def measure_cost(options, settings):
    """Print evaluation times of untrained models."""
    import torch

    from recbole_pref.build import build_run
    from recbole_pref.config import Config

    runs = {}
    for case in CASES:
        name, own = case_of("CE", options.backbone, case, settings)
        config = Config(name, options.dataset, options.config_files, {**own, "state": "ERROR"})
        runs[case] = build_run(config, log=False)
        runs[case].model.eval()
    seconds = {case: [] for case in CASES}
    for _ in range(options.repeats + 1):
        for case, run in runs.items():
            started = time.perf_counter()
            run.trainer.evaluate(run.test_data, load_best_model=False)
            seconds[case].append(time.perf_counter() - started)
    fused = {}
    for case, run in runs.items():
        if case != "ID only":
            with torch.no_grad():
                started = time.perf_counter()
                run.model.item_embedding._fuse()
                fused[case] = time.perf_counter() - started
    base = min(seconds["ID only"][1:])  # the first round warms up
    rows = [
        [
            case,
            f"{min(seconds[case][1:]):.3f}",
            f"{min(seconds[case][1:]) / base:.3f}",
            f"{1000 * fused[case]:.1f}" if case in fused else "-",
        ]
        for case in CASES
    ]
    run = runs["ID only"]
    print(
        f"{options.dataset}: {run.model.n_items - 1} items, {len(run.test_data._dataset)} test rows, "
        f"shortest of {options.repeats} evaluations, {torch.get_num_threads()} threads"
    )
    head = ["items", "s / evaluation", "ratio", "ms to fuse all items"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


def compare(options, settings):
    """Train the cases and print their test metrics."""
    from recbole_pref.quick_start import run_recbole_pref

    shown = ("ndcg@10", "hit@10", "tailndcg@10", "tailhit@10")
    rows = []
    for case in CASES:
        for seed in options.seeds.split(","):
            name, own = case_of(options.method, options.backbone, case, settings)
            own = {**own, "epochs": options.epochs, "seed": int(seed), "state": "ERROR"}
            result = run_recbole_pref(name, options.dataset, options.config_files, own)
            values = [f"{result['test_result'][metric]:.4f}" for metric in shown]
            valid = f"{result['best_valid_score']:.4f}"
            rows.append([case, seed, valid, *values, f"{result['seconds_per_epoch']:.1f}"])
            print(f"done: {rows[-1]}", file=sys.stderr)
    print(f"{options.method} on {options.backbone}, {options.dataset}, at most {options.epochs} epochs")
    head = ["items", "seed", "valid", *shown, "s / epoch"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cost", "compare"))
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--config_files", nargs="*", default=None)
    parser.add_argument("--backbone", default="SASRec")
    parser.add_argument("--method", default="CE")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", default="2020")
    parser.add_argument("--mm_fields", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    options, rest = parser.parse_known_args()
    from recbole_pref.settings.files import parse_value

    settings = {"data_path": options.data_path, "mm_fields": parse_value(options.mm_fields)}
    if options.config_files and options.mm_fields == "auto":
        del settings["mm_fields"]  # the file's fields
    for argument in rest:
        key, _, value = argument.removeprefix("--").partition("=")
        settings[key] = parse_value(value)
    {"cost": measure_cost, "compare": compare}[options.what](options, settings)


if __name__ == "__main__":
    main()
