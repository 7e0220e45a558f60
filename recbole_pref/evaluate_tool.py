"""Evaluate ranked lists of another system on the split and with the metrics of our models: ``recbole-pref-evaluate``.

The split, the metrics and the head and tail items are those of a run with the same data set and settings. The lists
replace the ranking of a model: an item that is not in a list ranks below all items of the list.
"""

import argparse
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Evaluator
from recbole.utils import EvaluatorType

from recbole_pref import cli
from recbole_pref.build import prepare_data
from recbole_pref.checkpoint import to_plain
from recbole_pref.compare.tables import result_table
from recbole_pref.config import Config
from recbole_pref.data.tables import existing_file, read_parquet_file, read_text_table, without_fractions
from recbole_pref.environment import environment
from recbole_pref.errors import PrefError, report, suggest
from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.collector import TOP, PrefCollector
from recbole_pref.evaluation.ranking import cut_pairs, history_is_masked
from recbole_pref.predict.reading import table_ending
from recbole_pref.records import LISTS, Run, read_comparison, read_runs
from recbole_pref.restore import settings_of
from recbole_pref.scoring import chunk_rows
from recbole_pref.settings import settings_with
from recbole_pref.training.reference import fingerprint_of

EXAMPLES = """
examples:
  recbole-pref-evaluate --recommendations=top.csv --dataset=ml-100k
  recbole-pref-evaluate --recommendations=top.parquet --dataset=shop --data_path=dataset/ --topk=10 --part=valid
  recbole-pref-evaluate --recommendations=top.csv --comparison=compare/ml-100k --label="our production"

The file has the columns user, item and rank (from 1) or score (larger is better), as --predict writes them.
With --comparison, data set and settings are those of its first run. Other --key=value are settings, as in recbole-pref.
"""
_UNLISTED = torch.finfo(torch.float32).min  # above the targets that are not listed, which are at -inf


@dataclass(frozen=True)
class Evaluation:
    """The result of ranked lists.

    Attributes:
        result: metrics by RecBole's key.
        arrays: as :func:`recbole_pref.evaluation.evidence.evaluate` returns, without ``tail_gap``, which needs scores.
        config: the configuration of data, split and metrics.
        data: fingerprint of the data.
        notes: sentences about incomplete lists, unknown items and unknown users.
    """

    result: dict[str, float]
    arrays: dict[str, np.ndarray]
    config: Config
    data: dict
    notes: list[str]


def read_lists(path: str | Path) -> pd.DataFrame:
    """Read ranked lists from a CSV or Parquet file.

    Returns:
        DataFrame: user and item (str); the items of a user are in the order of their ranks, best first.

    Raises:
        PrefError: the file is missing or damaged, lacks a column, holds a rank or score that is not a number, or lists
            an item twice for a user.
    """
    path = existing_file(path, "recommendations")
    parquet = table_ending(path, "recommendations") == ".parquet"
    frame = read_parquet_file(path) if parquet else read_text_table(path, ",").reset_index(drop=True)
    order = next((name for name in ("rank", "score") if name in frame), None)
    if order is None or not {"user", "item"} <= set(frame):
        raise PrefError(
            f"recommendations={str(path)!r} has the columns {', '.join(map(str, frame))}: it needs user, item, and "
            "rank or score."
        )
    frame[order] = pd.to_numeric(frame[order], errors="coerce")
    for name in ("user", "item"):
        frame[name] = without_fractions(frame[name])
    empty = frame[["user", "item", order]].isna().any(axis=1) | frame[["user", "item"]].eq("").any(axis=1)
    if empty.any():
        raise PrefError(
            f"recommendations={str(path)!r}: row {int(empty.argmax()) + 1} lacks user, item or a number as {order}."
        )
    frame[["user", "item"]] = frame[["user", "item"]].astype(str)
    twice = frame.duplicated(["user", "item"])
    if twice.any():
        user, item = frame.loc[twice.idxmax(), ["user", "item"]]
        raise PrefError(f"recommendations={str(path)!r} lists the item {item!r} twice for the user {user!r}.")
    frame = frame.sort_values(order, ascending=order == "rank", kind="stable")
    return frame[["user", "item"]]


def evaluate_lists(lists: pd.DataFrame, config: Config, part: str = "test", unknown: str = "error") -> Evaluation:
    """Evaluate ranked lists on the split of a configuration.

    Args:
        lists: user and item, best first; the list of a user is used for all rows of the user in the split.
        config: names data set, split and metrics. The kind of its model (sequential or general) determines the split.
        part: ``test`` or ``valid``.
        unknown: ``error`` for items that are not in the data set, or ``skip``; the items after them then move up.

    Raises:
        PrefError: an item is unknown, a metric needs scores, or the settings rank sampled candidates.
    """
    collector = PrefCollector(config)
    collector.collect_users = True
    if config["eval_type"] != EvaluatorType.RANKING or collector.register.need("rec.meanrank"):
        raise PrefError(
            f"metrics={config['metrics']} holds metrics that need the scores of all items: name metrics of lists, such "
            "as Hit, NDCG, TailNDCG."
        )
    dataset, (train_data, *others) = prepare_data(config, log=False)
    loader = others[part == "test"]
    if not isinstance(loader, FullSortEvalDataLoader):
        raise PrefError(
            f"eval_args mode {config['eval_args']['mode']} ranks sampled candidates: lists need full ranking, set "
            "eval_args={mode: full}."
        )
    collector.data_collect(train_data)
    size = max(*config["topk"], TOP)
    table, notes = _table_of(lists, dataset, size, unknown)
    missing = short = rows_seen = 0
    for interaction, _, positive_u, positive_i in loader:
        step = chunk_rows(dataset.item_num, config["logits_memory_mb"])
        for start in range(0, len(interaction), step):
            rows = interaction[start : start + step]
            targets = cut_pairs(positive_u, start, start + len(rows))
            listed = torch.from_numpy(table[rows[dataset.uid_field].numpy()])  # [c, size]
            chunk_u, chunk_i = positive_u[targets] - start, positive_i[targets]
            collector.eval_batch_collect(_scores_of(listed, chunk_u, chunk_i, dataset.item_num), rows, chunk_u, chunk_i)
            lengths = (listed[:, : max(config["topk"])] > 0).sum(1)
            missing += int((lengths == 0).sum())
            short += int((lengths < max(config["topk"])).sum())
            rows_seen += len(rows)
    if short:
        if collector.register.need("rec.items"):
            raise PrefError(
                f"{short} of {rows_seen} lists are shorter than topk={max(config['topk'])}, but ItemCoverage and "
                "similar metrics need complete lists: lower topk or remove these metrics."
            )
        notes.append(
            f"{short} of {rows_seen} {part} rows have lists shorter than topk={max(config['topk'])}, {missing} have "
            "no list: missing items count as misses."
        )
    result = Evaluator(config).evaluate(collector.get_data_struct())
    users = collector.rows["user"]
    arrays = {name: collector.rows[name] for name in evidence.OF_ROWS if name != "tail_gap"}
    arrays |= {
        "user": dataset.id2token(dataset.uid_field, users).astype(str), "top": table[users, :TOP],
        "count": collector.train_count.numpy(), "tail": collector.tail_mask.numpy(),
    }  # fmt: skip
    result = {name: float(value) for name, value in result.items()}
    return Evaluation(result, arrays, config, fingerprint_of(train_data._dataset), notes)


def _table_of(lists: pd.DataFrame, dataset: Dataset, size: int, unknown: str) -> tuple[np.ndarray, list[str]]:
    """Return the first items of each user's list, padded with 0: int64 [n_users, size]; and notes for the user."""
    notes = []
    users, items = (
        lists[name].map(dataset.field2token_id[field]) for name, field in
        (("user", dataset.uid_field), ("item", dataset.iid_field))
    )  # fmt: skip
    unknown_items = lists["item"][items.isna()]
    if len(unknown_items) and unknown != "skip":
        tokens = dataset.field2id_token[dataset.iid_field]
        raise PrefError(
            f"recommendations: the item {unknown_items.iloc[0]!r} is not in the data set "
            f"{dataset.dataset_name!r}: remove it, or skip unknown items (--unknown=skip)."
            f"{suggest(unknown_items.iloc[0], list(tokens[1:5001]))}"
        )
    if len(unknown_items):
        notes.append(f"{len(unknown_items)} listed items are not in the data set: the items after them move up.")
    others = lists["user"][users.isna()].nunique()
    if others:
        notes.append(f"{others} users are not in the data set: their lists are ignored.")
    usable = (users.notna() & items.notna()).to_numpy()
    users, items = (values[usable].to_numpy(np.int64) for values in (users, items))
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    place = np.arange(len(users)) - np.searchsorted(users, users)
    table = np.zeros((dataset.user_num, size), np.int64)
    first = place < size
    table[users[first], place[first]] = items[first]
    return table, notes


def _scores_of(listed: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor, n_items: int) -> torch.Tensor:
    """Return scores [c, n_items] that rank the listed items [c, K] in their order and unlisted targets last."""
    scores = torch.full((len(listed), n_items), _UNLISTED)
    scores[positive_u, positive_i] = -torch.inf
    scores.scatter_(1, listed, torch.arange(listed.shape[1], 0, -1, dtype=torch.float32).expand(listed.shape))
    scores[:, 0] = -torch.inf
    return scores


def record(evaluation: Evaluation, folder: str | Path, label: str, source: str | Path) -> Run:
    """Write the test result of lists into the folder of a comparison and return the record.

    Raises:
        PrefError: the label is that of a model, or the result lacks metrics of the table.
    """
    comparison = read_comparison(folder) or {"rows": [], "metrics": []}
    list_labels = {run.label for run in read_runs(folder) if run.id.startswith(LISTS)}
    if label in {row["label"] for row in comparison["rows"]} - list_labels:
        raise PrefError(f"--label={label!r} is a model of the comparison {str(folder)!r}: choose another.")
    lacking = [metric for metric in comparison["metrics"] if metric not in evaluation.result]
    if lacking:
        raise PrefError(f"the comparison {str(folder)!r} shows {', '.join(lacking)}: add them to --metrics and --topk.")
    config = evaluation.config
    measured = settings_with(scope="data") | settings_with(scope="evaluation") | settings_with(same_in_table=True)
    settings = {key: value for key, value in config.final_config_dict.items() if key in measured | {"MODEL_TYPE"}}
    words = re.sub(r"[^A-Za-z0-9.=_-]+", "_", label)[:80]
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    run = Run(
        label=label,
        test_result=evaluation.result,
        id=f"{LISTS}{words}-seed{config['seed']}-{digest}",
        model=label,
        dataset=config["dataset"],
        seed=config["seed"],
        mask_history=history_is_masked(config),
        data=evaluation.data,
        environment={**environment("cpu"), "recommendations": str(Path(source).absolute())},
        config=to_plain(settings, other=str),
        arrays=evaluation.arrays,
    )
    run.write(folder)
    return run


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        prog="recbole-pref-evaluate", description=__doc__, epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, path = parser.add_argument, os.path.expanduser
    add("--recommendations", required=True, type=path, help="CSV or Parquet with user, item, and rank or score")
    add("--dataset", help="name of the data set")
    add("--config_files", type=cli.split_paths, help="YAML files, separated by spaces")
    add("--model", help="SASRec for the split of sequential models (the default), BPR for that of general models")
    add("--part", choices=("test", "valid"), default="test", help="part of the split (test)")
    add("--unknown", choices=("error", "skip"), default="error", help="how to treat unknown items (error)")
    add("--comparison", type=path, help="folder of a comparison to whose table the lists are added")
    add("--label", help="name of the lists in the table (the name of the file)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _configure(options: argparse.Namespace, settings: dict[str, Any]) -> Config:
    """Return the configuration: that of a comparison, or one from the command line."""
    if options.comparison is None:
        if not options.dataset:
            raise PrefError("--dataset is missing: name the data set, or a comparison's folder with --comparison.")
        settings = {"state": "WARNING", "gpu_id": "", **settings}
        return Config(options.model or "CESASRec", options.dataset, options.config_files, settings)
    for option in ("dataset", "model", "config_files"):
        if getattr(options, option):
            raise PrefError(f"--{option} has no effect with --comparison, whose settings are used: remove it.")
    if options.part == "valid":
        raise PrefError("--part=valid is not possible with --comparison, whose table shows the test set: remove it.")
    first = next((run for run in read_runs(options.comparison) if not run.id.startswith(LISTS)), None)
    if first is None:
        raise PrefError(
            f"--comparison={options.comparison!r} holds no run of a model: name the folder of a comparison."
        )
    state = {"model": first.model, "config": first.config}
    settings = settings_of(state, **{"state": "WARNING", "gpu_id": "", **settings})
    return Config(first.model, first.dataset, config_dict=settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 for an error in the input."""
    options, rest = build_parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    try:
        config = _configure(options, cli.settings_from(rest))
        evaluation = evaluate_lists(read_lists(options.recommendations), config, options.part, options.unknown)
        label = options.label or Path(options.recommendations).stem
        if options.comparison is not None:
            record(evaluation, options.comparison, label, options.recommendations)
    except PrefError as error:
        return report(error, "recbole-pref-evaluate", options.debug)
    for note in evaluation.notes:
        print(note, file=sys.stderr)
    result = {"test_result": evaluation.result, "seconds_per_epoch": None}
    table = result_table(result, label, config["dataset"])
    print(table if options.part == "test" else table.replace(", test set", ", validation set", 1))
    if options.comparison is not None:
        command = (read_comparison(options.comparison) or {}).get("command", "the command of the comparison")
        print(f"stored in {options.comparison}; to add it to table, tests and report, run again: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
