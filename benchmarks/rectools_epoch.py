"""Epoch time of SASRec in RecTools, for comparison with benchmarks/epoch.py: targets per second.

    pip install "rectools[torch]==0.19.0"        # in its own environment: it needs numpy 1
    python benchmarks/rectools_epoch.py --dataset=ml-100k --data_path=dataset/
    python benchmarks/rectools_epoch.py --dataset=ml-100k --data_path=dataset/ --model=FlatSASRecNet

Reads RecBole's ``.inter`` file and removes the last two items of each user, as leave-one-out does. Full softmax,
hidden 64, 2 blocks, 2 heads, length 50, dropout 0.5. One warm-up epoch and one timed one; with
``--batches=N`` both stop after N batches. A target is a position whose next item is predicted.
``FlatSASRecNet`` is a network without a trainer: it is trained by a plain loop with Adam.
"""

import argparse
import resource
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LENGTH = 50


class Clock(Callback):
    """Seconds and targets of each epoch, kept by the class: RecTools trains with a copy."""

    seconds, targets = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        """Start the clock."""
        self.started, self.count = time.perf_counter(), 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Count the positions with a target."""
        self.count += int((batch["y"] > 0).sum())

    def on_train_epoch_end(self, trainer, pl_module):
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.started)
        self.targets.append(self.count)


def training_part(folder, name):
    """Return the interactions without each user's last two, in RecTools' columns."""
    frame = pd.read_csv(Path(folder, name, f"{name}.inter"), sep="\t")
    frame.columns = [column.partition(":")[0] for column in frame.columns]
    frame = frame.sort_values("timestamp", kind="stable")
    from_end = frame.groupby("user_id").cumcount(ascending=False)
    frame = frame[from_end >= 2]
    times = pd.to_datetime(frame["timestamp"], unit="s")
    # RecTools sorts only by time: a rank below one second keeps the order of equal times.
    times += pd.to_timedelta(frame.groupby("user_id").cumcount().to_numpy(), unit="us")
    return pd.DataFrame({"user_id": frame["user_id"], "item_id": frame["item_id"], "weight": 1, "datetime": times})


def train_model(data, batch_size, batches):
    """Train SASRecModel with its own trainer; return the seconds and targets of the second epoch."""
    clock = Clock()

    def trainer():
        limits = {"limit_train_batches": batches} if batches else {}
        return Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[clock],
            enable_progress_bar=False, enable_model_summary=False, **limits,
        )  # fmt: skip

    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=0.5, session_max_len=LENGTH, loss="softmax",
        batch_size=batch_size, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(data))
    return clock.seconds[1], clock.targets[1]


def train_network(data, batch_size, batches):
    """Train FlatSASRecNet with a plain loop; return the seconds and targets of the second epoch."""
    from rectools.fast_transformers import FlatSASRecNet, SequenceBatchDataset, build_sequences

    users, items = (torch.from_numpy(pd.factorize(data[column])[0]) for column in ("user_id", "item_id"))
    times = torch.from_numpy(data["datetime"].to_numpy().astype("int64"))
    inputs, targets, unique_items, _ = build_sequences(users, items, times, LENGTH)
    network = FlatSASRecNet(len(unique_items), n_factors=64, n_blocks=2, n_heads=2, session_max_len=LENGTH, dropout=0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    loader = torch.utils.data.DataLoader(SequenceBatchDataset(inputs, targets), batch_size, shuffle=True)
    for _ in range(2):
        started, count = time.perf_counter(), 0
        for _, batch in zip(range(batches or len(loader)), loader):
            optimizer.zero_grad()
            logits = network(batch).flatten(0, 1)  # the catalogue begins with item 1
            loss = torch.nn.functional.cross_entropy(logits, batch["y"].flatten() - 1, ignore_index=-1)
            loss.backward()
            optimizer.step()
            count += int((batch["y"] > 0).sum())
        seconds = time.perf_counter() - started
    return seconds, count


def main():
    """Train and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--model", default="SASRecModel", choices=("SASRecModel", "FlatSASRecNet"))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    train = train_network if arguments.model == "FlatSASRecNet" else train_model
    data = training_part(arguments.data_path, arguments.dataset)
    seconds, targets = train(data, arguments.batch_size, arguments.batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # RecTools' environment lacks this package
    part = f" ({arguments.batches} batches)" if arguments.batches else ""
    print(
        f"RecTools {arguments.model}, {arguments.dataset}, {arguments.threads} threads: "
        f"{seconds:.2f} s per epoch{part}, {targets} targets, {targets / seconds:.0f} targets / s, peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
