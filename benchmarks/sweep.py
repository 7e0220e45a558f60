"""Sweep throughput: the same trials in sequence, in a sweep, and in a sweep with early stopping.

    python benchmarks/sweep.py --model=LPOSASRec --dataset=ml-100k --trials=8 --epochs=12

Each way starts without stored results and trains the same grid of settings with the same seed. All three run in one
call, so that a noisy machine affects all of them. The ratio is relative to the runs in sequence, each of which uses all
cores; a sweep gives every trial one core. The grid is in ascending order of the learning rate, so early trials are poor
and stop few others: the least favourable order for ASHA.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

ASHA = {"name": "asha", "grace_epochs": 3}
ROOT = Path(__file__).resolve().parents[1]


def main():
    """Run the three ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="LPOSASRec")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    low, high = 1e-4, 1e-2
    steps = [(high / low) ** (step / max(1, arguments.trials - 1)) for step in range(arguments.trials)]
    rates = [low * step for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "one after another": one_after_another(arguments, rates, Path(folder, "single")),
            "sweep": sweep(arguments, rates, Path(folder, "all"), "none"),
            "sweep, ASHA": sweep(arguments, rates, Path(folder, "asha"), ASHA),
        }
    base = ways["one after another"][0]
    rows = [
        [name, arguments.trials, epochs, f"{seconds:.0f}", f"{arguments.trials * 3600 / seconds:.0f}",
         f"{base / seconds:.2f}", f"{best:.4f}"]
        for name, (seconds, epochs, best) in ways.items()
    ]  # fmt: skip
    header = ["way", "trials", "epochs", "seconds", "trials / hour", "speed-up", "best valid score"]
    print(tabulate(rows, header, "github", disable_numparse=True))


def shared(arguments):
    """Return the settings all ways share, as command-line words."""
    settings = {"epochs": arguments.epochs, "eval_step": 1, "stopping_step": arguments.epochs,
                "data_path": os.path.abspath(arguments.data_path), "state": "ERROR"}  # fmt: skip
    names = [f"--model={arguments.model}", f"--dataset={arguments.dataset}"]
    return [sys.executable, str(ROOT / "run_recbole_pref.py"), *names] + [
        f"--{key}={value}" for key, value in settings.items()
    ]


def one_after_another(arguments, rates, folder):
    """Train every point of the grid with its own command; return seconds, epochs and best score."""
    folder.mkdir()
    started = time.perf_counter()
    for number, rate in enumerate(rates):
        own = (f"--learning_rate={rate}", f"--result_file={folder / str(number)}.json")
        command = [*shared(arguments), *own, f"--checkpoint_dir={folder / 'saved'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return seconds, sum(r["epochs"] for r in results), max(r["best_valid_score"] for r in results)


def sweep(arguments, rates, folder, scheduler):
    """Train the grid as a sweep; return seconds, epochs and best score."""
    folder.mkdir()
    file = folder / "sweep.yaml"
    content = {"space": {"learning_rate": {"grid": rates}}, "num_samples": 1, "scheduler": scheduler}
    file.write_text(json.dumps(content))  # JSON is YAML
    command = [*shared(arguments), f"--tune={file}", f"--storage_path={folder}", "--name=s", "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    trials = json.loads((folder / "s" / "trials.json").read_text())["trials"]
    return seconds, sum(t["epochs"] for t in trials), max(t["score"] for t in trials)


if __name__ == "__main__":
    main()
