"""Time and memory from the file to the loaders and to the first training step, ours and RecBole's.

    python benchmarks/loading.py --sizes=100000,300000,1000000 --output=loading
    python benchmarks/loading.py --sizes=20000000 --users=138000 --items=27000 --stock_max=0
    python benchmarks/loading.py --sizes=20000000 --users=138000 --items=27000 --write=large

The interactions are generated: item popularity is 1 / rank, sequences have very different lengths (25 interactions a
user on average unless --users says otherwise), times in no order. There are three ways, each in its own process:
``RecBole`` as published, ``import`` (RecBole's functions and SASRec after ``import recbole_pref``) and ``ours``
(CESASRec, with the checks of the files). Time begins after the imports, with the configuration; memory is the peak of
the process minus the memory of the imports. RecBole is measured only for up to --stock_max interactions. With
--output, the script also writes OUTPUT.csv, OUTPUT.png, .pdf and .svg. With --write, it writes the data set
``generated`` and the file users.csv, which names all users, into a new folder, and measures nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import generated_data, result_of, write_rows
from tabulate import tabulate

WAYS = ("RecBole", "import", "ours")
FIELDS = ("interactions", "way", "loaders", "first_step", "loaders_mib", "first_step_mib")


def interactions(size, users, items, seed=0):
    """Return users, items and times of generated interactions, user by user: int arrays [size]."""
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0, 1, users)
    popularity = np.cumsum(1 / np.arange(1, items + 1))
    who = np.sort(rng.choice(users, size, p=activity / activity.sum()))
    what = np.searchsorted(popularity, rng.random(size) * popularity[-1])
    return who, what, rng.integers(10**9, 15 * 10**8, size)


def memory():
    """Return the peak memory of this process so far in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way, settings):
    """Return seconds and MiB of one way. The process must not have imported other modules yet."""
    if way == "RecBole":
        # RecBole needs these three names, which numpy 2 has removed.
        np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
    else:
        import recbole_pref  # noqa: F401
    if way == "ours":
        from common import ready_run

        from recbole_pref.build import prepare_data
        from recbole_pref.config import Config
    else:
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, init_seed

        get_model("SASRec")  # imports all of RecBole's models
    before, started = memory(), time.perf_counter()
    spent = lambda: (time.perf_counter() - started, memory() - before)
    config = Config("CESASRec" if way == "ours" else "SASRec", "generated", config_dict=settings)
    if way == "ours":
        dataset, _ = prepare_data(config, log=False)
        result = spent()
        run = ready_run(config, dataset)
        model, batches = run.model, run.trainer._loader
    else:
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        result = spent()
        model, batches = get_model("SASRec")(config, loaders[0]._dataset), loaders[0]
    model.calculate_loss(next(iter(batches))).backward()
    seconds, mib = zip(result, spent())
    return dict(zip(FIELDS[2:], seconds + mib))


def table(rows):
    """Return the rows as a table, with ratios to RecBole's numbers if both exist."""
    stock = {row["interactions"]: row for row in rows if row["way"] == WAYS[0]}
    cells = []
    for row in rows:
        other = stock.get(row["interactions"])
        shares = ["" if other is None else f"{other[name] / row[name]:.1f}" for name in ("loaders", "loaders_mib")]
        cells.append([f"{row['interactions']:,}", row["way"], *(f"{row[name]:,.1f}" for name in FIELDS[2:]), *shares])
    header = ["interactions", "way", "loaders, s", "first step, s", "loaders, MiB", "first step, MiB"]
    header += ["RecBole's time / this", "RecBole's memory / this"]
    return tabulate(cells, header, "github", disable_numparse=True)


def draw(rows, output):
    """Save time and memory against the number of interactions."""
    from recbole_pref import plots
    from recbole_pref.plots import drawing

    def picture():
        figure, axes = drawing.panels(8, 3.2, columns=2)
        looks = drawing.styles(row["way"] for row in rows)
        for axis, what, label in zip(axes, ("loaders", "loaders_mib"), ("seconds", "additional memory in MiB")):
            for way, look in looks.items():
                axis.plot(*zip(*((row["interactions"], row[what]) for row in rows if row["way"] == way)), **look)
            axis.set(xscale="log", yscale="log", xlabel="interactions", ylabel=label)
        axes[0].set_title("file to loaders")
        drawing.add_legend(figure, [(way, drawing.line_handle(look)) for way, look in looks.items()])
        return figure

    plots.save(picture(), output)


def main():
    """Generate data, measure each way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="100000,300000,1000000")
    parser.add_argument("--users", type=int, help="number of users (one per 25 interactions)")
    parser.add_argument("--items", type=int, default=27_000)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--stock_max", type=int, default=1_000_000)
    parser.add_argument("--output")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    if arguments.write:
        if len(sizes) > 1:
            parser.error("--write needs one size in --sizes")
        data = interactions(sizes[0], arguments.users or sizes[0] // 25, arguments.items)
        arguments.write.mkdir(parents=True)
        generated_data(arguments.write, *data)
        np.savetxt(arguments.write / "users.csv", np.unique(data[0]), "%d", header="user", comments="")
        return
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            settings = generated_data(folder, *interactions(size, arguments.users or size // 25, arguments.items))
            for way in arguments.ways.split(","):
                if way == "RecBole" and size > arguments.stock_max:
                    continue
                measured = result_of((size, way), __file__, f"--case={json.dumps([way, settings])}")
                rows.append({"interactions": size, "way": way, **measured})
                print(rows[-1], file=sys.stderr)
    print(table(rows))
    if arguments.output:
        write_rows(f"{arguments.output}.csv", rows)
        draw(rows, arguments.output)


if __name__ == "__main__":
    main()
