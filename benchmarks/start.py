"""Seconds until the commands answer, compared with ``import torch``, and until a run on ml-100k reaches its first step.

    python benchmarks/start.py
    python benchmarks/start.py --baseline=OTHER_CHECKOUT

Each command runs in new processes; the fastest of ``--repeat`` counts. On a busy machine, compare the processor
seconds. ``--baseline`` names another checkout of this project; both are measured in turn. The first step begins when
the log contains ``training path``: data, model and optimizer are ready.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).resolve().parents[1]
SCRIPT = "run_recbole_pref.py"
FIRST_STEP = "training path"
COMMANDS = {
    "import torch": ("-c", "import torch"),
    "import recbole_pref": ("-c", "import recbole_pref"),
    "--help": (SCRIPT, "--help"),
    "--version": (SCRIPT, "--version"),
    "--list": (SCRIPT, "--list"),
    "--list=LPO": (SCRIPT, "--list=LPO"),
    "recbole-pref-data --help": ("-m", "recbole_pref.data.convert", "--help"),
    "recbole-pref-features --help": ("-m", "recbole_pref.features_tool", "--help"),
    "a bad setting": (SCRIPT, "--model=LPOSASRec", "--tau=-1"),
    "first step on ml-100k": (SCRIPT, "--model=LPOSASRec", "--reference=none", "--neg_sampler=uniform"),
}


def seconds_of(words, checkout, threads):
    """Return wall-clock and processor seconds of a command; a run is stopped at its first step.

    Args:
        words (tuple of str): arguments of Python.
        checkout (Path): checkout of the project to run.
        threads (int): number of torch's threads.
    """
    words = [str(checkout / word) if word == SCRIPT else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *words], cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for line in process.stdout:
            if FIRST_STEP in line:
                process.kill()
                break
        _, _, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = 0  # os.wait4 has already waited for it
        process.stdout.close()
    return elapsed, used.ru_utime + used.ru_stime


def main():
    """Run the commands in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help="another checkout")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="commands whose name contains this")
    arguments = parser.parse_args()
    checkouts = [HERE, *([arguments.baseline.resolve()] if arguments.baseline else [])]
    rows = []
    for name, words in COMMANDS.items():
        if arguments.only not in name:
            continue
        times = {checkout: [] for checkout in checkouts}
        for _ in range(arguments.repeat):
            for checkout in checkouts:
                times[checkout].append(seconds_of(words, checkout, arguments.threads))
        row = [name]
        for checkout in checkouts:
            row += [f"{min(kind):.2f}" for kind in zip(*times[checkout])]
        rows.append(row)
        print(f"done: {row}", file=sys.stderr)
    head = ["command", "s", "processor s", *(["baseline s", "baseline processor s"] if arguments.baseline else [])]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
