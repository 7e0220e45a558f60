"""How time and memory grow with the catalogue, the number of sequences and K, compared with the limits of the machine.

    python benchmarks/scaling.py --output=scaling

There are three sweeps, and each case runs in its own process: one training step (batch 2048, length 10, hidden 64)
against the number of items and against K, and one epoch through RecBole's data pipeline against the number of
sequences (5 interactions each, length 10, 1,000 items). First the machine is measured: arithmetic of a matrix product
(GFLOP/s) and memory bandwidth of a copy (GB/s). For a step over the catalogue the table gives the least time its
arithmetic and its memory traffic need at those rates; the larger one is the limit. Writes OUTPUT.csv, OUTPUT.png,
.pdf and .svg.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import generated_data, ready_run, result_of, seconds_of, write_rows
from tabulate import tabulate

ROWS, HIDDEN, LENGTH, LAYERS, INNER = 2048, 64, 10, 2, 256  # of a step; RecBole's SASRec
SEQUENCE_ITEMS, SEQUENCE_INTERACTIONS, SEQUENCE_LENGTH = 1000, 5, 10
FIELDS = ("sweep", "model", "x", "seconds", "peak_mib", "arithmetic", "traffic")
PANELS = {"items": "items", "sequences": "sequences", "K": "negatives K"}


def machine():
    """Return GFLOP/s of a float32 matrix product and GB/s of a copy (read and written bytes)."""
    left, right = torch.randn(ROWS, 512), torch.randn(512, 8192)
    product = _fastest(lambda: torch.mm(left, right))
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source))
    return 2 * ROWS * 512 * 8192 / product / 1e9, 2 * 4 * len(source) / copied / 1e9


def _fastest(call, times=5):
    call()
    return min(seconds_of(call) for _ in range(times))


def step_costs(items, fused, chunk):
    """Return GFLOP and GB of one step: encoder, catalogue where ``fused``, and Adam.

    Counted are products (forward one, backward two) and the float32 tensors that do not stay in the cache:
    the item matrix and its gradient once per chunk, the chunk's scores (six passes: product, softmax's
    two, the gradient's two and one read) where they exceed the cache, and Adam's seven passes over the
    parameters.
    """
    tokens = ROWS * LENGTH
    per_token = LAYERS * (2 * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 4 * LENGTH * HIDDEN)
    flop, matrix = 3 * tokens * per_token, 4 * items * HIDDEN
    # About 30 tensors the size of a layer's states are written and read per layer, forward and backward.
    traffic = 30 * LAYERS * 2 * 4 * tokens * HIDDEN + 7 * matrix
    if fused:
        flop += 3 * 2 * ROWS * items * HIDDEN
        traffic += (ROWS / chunk) * 4 * matrix
        if 4 * chunk * items > 16 * 2**20:
            traffic += 6 * 4 * ROWS * items
    return flop / 1e9, traffic / 1e9


def step_case(model, items, negatives, threads):
    """Measure one training step in its own process."""
    case = {"model": model, "items": items, "negatives": negatives, "rows": ROWS, "steps": 3,
            "threads": threads, "settings": {"MAX_ITEM_LIST_LENGTH": LENGTH}}  # fmt: skip
    return result_of(case, Path(__file__).with_name("catalogue.py"), f"--case={json.dumps(case)}")


def sequence_case(model, sequences):
    """Measure one epoch over generated sequences of random items, in this process: seconds and peak MiB."""
    from recbole_pref.config import Config
    from recbole_pref.memory import peak_mb

    with tempfile.TemporaryDirectory() as folder:
        users = np.repeat(np.arange(sequences), SEQUENCE_INTERACTIONS)
        items = np.random.default_rng(0).integers(0, SEQUENCE_ITEMS, len(users))
        times = np.tile(np.arange(SEQUENCE_INTERACTIONS), sequences)
        settings = generated_data(folder, users, items, times)
        settings |= {"MAX_ITEM_LIST_LENGTH": SEQUENCE_LENGTH, "reference_epochs": 1}
        trainer = ready_run(Config(model, "generated", config_dict=settings)).trainer
        seconds = seconds_of(lambda: trainer.train_epoch(0))
    return {"seconds": seconds, "peak": peak_mb()}


def draw(rows, output):
    """Draw seconds and peak memory against items, sequences and K, both axes logarithmic."""
    from recbole_pref import plots
    from recbole_pref.plots import drawing

    @drawing.styled
    def picture():
        figure, axes = drawing.panels(10, 5.6, rows=2, columns=len(PANELS), sharex="col", sharey="row")
        looks = drawing.styles(row["model"] for row in rows)
        measures = [(what, sweep) for what in ("seconds", "peak_mib") for sweep in PANELS]
        for axis, (what, sweep) in zip(axes, measures):
            for model, look in looks.items():
                own = [(row["x"], row[what]) for row in rows if (row["sweep"], row["model"]) == (sweep, model)]
                if own:
                    axis.plot(*zip(*own), **look)
            axis.set(xscale="log", yscale="log")
            if what == "seconds":
                axis.set_title("one epoch" if sweep == "sequences" else "one step")
            else:
                axis.set_xlabel(PANELS[sweep])
        axes[0].set_ylabel("seconds")
        axes[len(PANELS)].set_ylabel("peak memory in MiB")
        drawing.add_legend(figure, [(model, drawing.line_handle(look)) for model, look in looks.items()])
        return figure

    plots.save(picture(), output)


def _cell(value):
    if not isinstance(value, float):
        return value if isinstance(value, str) else f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def slope(points):
    """Return the exponent between the two last points of a sweep: 1 is linear."""
    (x0, y0), (x1, y1) = points[-2:]
    return np.log(y1 / y0) / np.log(x1 / x0)


def main():
    """Run the sweeps, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="LPOSASRec,SDPOSASRec")
    parser.add_argument("--items", default="10000,30000,100000,300000,1000000")
    parser.add_argument("--sequences", default="10000,100000,1000000")
    parser.add_argument("--negatives", default="1,4,16,64,256")
    parser.add_argument("--at_items", type=int, default=12_000, help="items of the sweep over K")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default="scaling")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        torch.set_num_threads(arguments.threads)
        case = json.loads(arguments.case)
        print(json.dumps(sequence_case(**case) if case else machine()))
        return
    from recbole_pref.scoring import chunk_rows

    own = (__file__, f"--threads={arguments.threads}")
    gflops, bandwidth = result_of("the machine's rates", *own, "--case={}")
    print(f"{arguments.threads} threads: {gflops:.0f} GFLOP/s of a product, {bandwidth:.1f} GB/s of a copy")
    rows = []

    def add(sweep, model, x, got, costs=None):
        least = ("", "") if costs is None else (costs[0] / gflops, costs[1] / bandwidth)
        rows.append(dict(zip(FIELDS, (sweep, model, x, got["seconds"], got["peak"], *least))))
        print(rows[-1], file=sys.stderr)

    for model in arguments.models.split(","):
        for items in map(int, arguments.items.split(",")):
            got = step_case(model, items, 5, arguments.threads)
            add("items", model, items, got, step_costs(items, got["fused"], chunk_rows(items)))
        for sequences in map(int, arguments.sequences.split(",")):
            case = {"model": model, "sequences": sequences}
            got = result_of(case, *own, f"--case={json.dumps(case)}")
            add("sequences", model, sequences, got)
        for negatives in map(int, arguments.negatives.split(",")):
            add("K", model, negatives, step_case(model, arguments.at_items, negatives, arguments.threads))
    write_rows(f"{arguments.output}.csv", rows)
    for sweep in PANELS:
        part = [row for row in rows if row["sweep"] == sweep]
        shown = list(FIELDS[1:])[: 6 if sweep == "items" else 4]
        cells = [[_cell(row[name]) for name in shown] for row in part]
        header = ["model", sweep, "s", "peak MiB", "s of arithmetic", "s of memory traffic"]
        print(tabulate(cells, header[: len(shown)], "github", disable_numparse=True))
        for model in dict.fromkeys(row["model"] for row in part):
            points = [(row["x"], row["seconds"]) for row in part if row["model"] == model]
            if len(points) > 1:
                print(f"{model}: exponent {slope(points):.2f} between the two largest")
    draw(rows, arguments.output)


if __name__ == "__main__":
    main()
