"""Time and peak memory of one training step over large catalogues, fused against stock RecBole.

    python benchmarks/catalogue.py --items=10000,100000,1000000 --models=LPOSASRec --stock=SASRec
    python benchmarks/catalogue.py --items=12000 --negatives=1,16,256

A step is loss, backward and Adam on random rows (batch 2048, length 50, hidden 64). Each case runs in
its own process; peak memory is that of the process minus its memory before the first step. Stock RecBole is the plain
backbone with its own cross-entropy on the same rows.
"""

import argparse
import json
import sys
import time

import torch
from common import attempt
from tabulate import tabulate


class Synthetic:
    """The parts of RecBole's training split that a model reads, with random rows."""

    uid_field, iid_field, item_list_length_field = "user_id", "item_id", "item_length"

    def __init__(self, config, n_items, rows):
        from recbole.data.interaction import Interaction

        length = config["MAX_ITEM_LIST_LENGTH"]
        self.config, self.item_num, self.user_num = config, n_items, rows + 1
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randint(1, n_items, shape, generator=generator)  # noqa: E731
        self.inter_feat = Interaction(
            {
                "user_id": torch.arange(1, rows + 1),
                "item_id": draw(rows),
                "item_id_list": draw(rows, length),
                "item_length": torch.full((rows,), length),
            }
        )

    def num(self, field):
        """Return the size of a field's vocabulary."""
        return self.item_num if field == "item_id" else self.user_num


def measure(options):
    """Return seconds per step, MiB above the start and whether it ranks the catalogue, for one case."""
    torch.set_num_threads(options["threads"])
    from recbole_pref.config import Config
    from recbole_pref.memory import peak_mb
    from recbole_pref.model.names import model_class
    from recbole_pref.model.preference import PreferenceMixin

    name = options["model"]
    settings = {"state": "ERROR", "num_negatives": options["negatives"], "train_positions": "last"}
    settings.update(options["settings"])
    config = Config(name, "ml-100k", config_dict=settings)
    dataset = Synthetic(config, options["items"], options["rows"])
    model = model_class(name)(config, dataset)
    if isinstance(model, PreferenceMixin):
        model.prepare_training(config, dataset)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained)
    batch = dataset.inter_feat
    before = peak_mb()
    seconds = []
    for _ in range(options["steps"]):
        started = time.perf_counter()
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    fused = model.step is None or model.step.needs_normalizer
    return {"seconds": min(seconds), "mb": peak_mb() - before, "peak": peak_mb(), "fused": fused}


def main():
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", default="10000,100000,1000000")
    parser.add_argument("--models", default="CESASRec,LPOSASRec,SDPOSASRec")
    parser.add_argument("--stock", default="", help="RecBole's model to compare with")
    parser.add_argument("--stock_max_items", type=int, default=200_000)
    parser.add_argument("--negatives", default="5")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    rows = []
    for items in map(int, arguments.items.split(",")):
        models = arguments.models.split(",")
        if arguments.stock and items <= arguments.stock_max_items:
            models.insert(0, arguments.stock)
        for model in models:
            for negatives in map(int, arguments.negatives.split(",")):
                case = {
                    "model": model, "items": items, "negatives": negatives, "rows": arguments.rows,
                    "steps": arguments.steps, "threads": arguments.threads, "settings": arguments.settings,
                }  # fmt: skip
                measured, errors = attempt(__file__, f"--case={json.dumps(case)}")
                cells = ["failed", errors.strip().splitlines()[-1][-60:] if errors else "", ""]
                if measured is not None:
                    cells = [f"{measured['seconds']:.2f}", f"{measured['mb']:.0f}", f"{measured['peak']:.0f}"]
                rows.append([model, f"{items:,}", negatives, *cells])
                print(rows[-1], file=sys.stderr)
    print(f"batch {arguments.rows}, {arguments.threads} threads")
    head = ["model", "items", "K", "s / step", "MiB of the steps", "peak MiB"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
