"""Measure ranked lists of any other system as our own models are measured: ``recbole-pref-evaluate``.

The split, the metrics and the head and tail items are those of a run with the same data set and settings. The lists
take the place of a model's ranking: an item that is not listed is ranked below all that are.
"""

import argparse
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import Evaluator
from recbole.utils import EvaluatorType

from recbole_pref import cli
from recbole_pref.checkpoint import to_plain
from recbole_pref.compare.tables import result_table
from recbole_pref.config import Config
from recbole_pref.data.tables import existing_file, read_parquet_file, read_text_table, without_fractions
from recbole_pref.environment import environment
from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.collector import TOP, PrefCollector
from recbole_pref.evaluation.ranking import cut_pairs, history_is_masked
from recbole_pref.predict.reading import table_ending
from recbole_pref.quick_start import prepare_data, settings_of
from recbole_pref.records import LISTS, Run, read_comparison, read_runs
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
    """How ranked lists do.

    Attributes:
        result: metrics by RecBole's key.
        arrays: as :func:`recbole_pref.evaluation.evidence.evaluate` returns, without ``tail_gap``, which needs scores.
        config: the configuration that they were measured with.
        data: fingerprint of the data.
        notes: what is incomplete about the lists, in sentences.
    """

    result: dict[str, float]
    arrays: dict[str, np.ndarray]
    config: Config
    data: dict
    notes: list[str]


def read_lists(path: str | Path) -> pd.DataFrame:
    """Read ranked lists from a CSV or Parquet file.

    Returns:
        DataFrame: user and item (str), the lists of a user in order, best first.

    Raises:
        PrefError: a missing or damaged file, missing columns, a rank or score that is not a number, an item that is
            listed twice for a user.
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


def evaluate_lists(
    lists: pd.DataFrame, config: Config, part: str = "test", unknown: str = "error"
) -> Evaluation:
    """Measure ranked lists on the split of a configuration.

    Args:
        lists: user and item, best first; a user's list serves all his rows of the split.
        config: names data set, split and metrics; of a kind of model whose split is meant (sequential or general).
        part: ``test`` or ``valid``.
        unknown: ``error``, or ``skip`` items that the data set does not have; those after them then move up.

    Raises:
        PrefError: an unknown item, metrics that need scores, a split without full ranking.
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
                f"{short} of {rows_seen} lists are shorter than topk={max(config['topk'])}, which metrics of the items "
                "shown (ItemCoverage and the like) need whole: lower topk or take these metrics out."
            )
        notes.append(
            f"{short} of {rows_seen} {part} rows have lists shorter than topk={max(config['topk'])}, {missing} have "
            "none: their missing places count as misses."
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


def _table_of(lists, dataset, size, unknown):
    """Return the first items of each user's list, 0 where there is none: int64 [n_users, size]; and notes."""
    notes = []
    users, items = (
        lists[name].map(dataset.field2token_id[field]) for name, field in
        (("user", dataset.uid_field), ("item", dataset.iid_field))
    )  # fmt: skip
    strangers = lists["item"][items.isna()]
    if len(strangers) and unknown != "skip":
        known = dataset.field2id_token[dataset.iid_field]
        raise PrefError(
            f"recommendations: the item {strangers.iloc[0]!r} is not in the data set {dataset.dataset_name!r}: remove "
            f"it, or skip unknown items (--unknown=skip).{suggest(strangers.iloc[0], list(known[1:5001]))}"
        )
    if len(strangers):
        notes.append(f"{len(strangers)} listed items are not in the data set: those after them move up.")
    others = lists["user"][users.isna()].nunique()
    if others:
        notes.append(f"{others} users are not in the data set: their lists are left out.")
    kept = (users.notna() & items.notna()).to_numpy()
    users, items = (values[kept].to_numpy(np.int64) for values in (users, items))
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    place = np.arange(len(users)) - np.searchsorted(users, users)
    table = np.zeros((dataset.user_num, size), np.int64)
    first = place < size
    table[users[first], place[first]] = items[first]
    return table, notes


def _scores_of(listed, positive_u, positive_i, n_items):
    """Return scores [c, n_items] that rank the listed items [c, K] in their order and unlisted targets last."""
    scores = torch.full((len(listed), n_items), _UNLISTED)
    scores[positive_u, positive_i] = -torch.inf
    scores.scatter_(1, listed, torch.arange(listed.shape[1], 0, -1, dtype=torch.float32).expand(listed.shape))
    scores[:, 0] = -torch.inf
    return scores


def record(evaluation: Evaluation, folder: str | Path, label: str, source: str | Path) -> Run:
    """Put the test result of lists into a comparison's folder and return the record.

    Raises:
        PrefError: a label of the comparison's models, or metrics that its table has and these lacks.
    """
    comparison = read_comparison(folder) or {"rows": [], "metrics": []}
    own = {run.label for run in read_runs(folder) if run.id.startswith(LISTS)}
    if label in {row["label"] for row in comparison["rows"]} - own:
        raise PrefError(f"--label={label!r} is a model of the comparison {str(folder)!r}: choose another.")
    lacking = [metric for metric in comparison["metrics"] if metric not in evaluation.result]
    if lacking:
        raise PrefError(f"the comparison {str(folder)!r} shows {', '.join(lacking)}: add to --metrics and --topk.")
    config = evaluation.config
    measured = settings_with(scope="data") | settings_with(scope="evaluation") | settings_with(same_in_table=True)
    kept = {key: value for key, value in config.final_config_dict.items() if key in measured | {"MODEL_TYPE"}}
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
        config=to_plain(kept, other=str),
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
    add("--config_files", type=str.split, help="YAML files, separated by spaces")
    add("--model", help="a model of the kind whose split is meant: SASRec (the default) or, for general models, BPR")
    add("--part", choices=("test", "valid"), default="test", help="part of the split (test)")
    add("--unknown", choices=("error", "skip"), default="error", help="items that the data set does not have (error)")
    add("--comparison", type=path, help="folder of a comparison whose table is to include the lists")
    add("--label", help="what the table calls them (the name of the file)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _configure(options, settings):
    if options.comparison is None:
        if not options.dataset:
            raise PrefError("--dataset is missing: name the data set, or a comparison's folder with --comparison.")
        settings = {"state": "WARNING", "gpu_id": "", **settings}
        return Config(options.model or "CESASRec", options.dataset, options.config_files, settings)
    for option in ("dataset", "model", "config_files"):
        if getattr(options, option):
            raise PrefError(f"--{option} has no effect with --comparison, which has its own: leave it out.")
    if options.part == "valid":
        raise PrefError("--part=valid does not go with --comparison, whose table is of the test set: leave it out.")
    first = next(run for run in read_runs(options.comparison) if not run.id.startswith(LISTS))
    state = {"model": first.model, "config": first.config}
    settings = settings_of(state, **{"state": "WARNING", "gpu_id": "", **settings})
    return Config(first.model, first.dataset, config_dict=settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after a mistake."""
    options, rest = build_parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    try:
        config = _configure(options, cli.settings_from(rest))
        evaluation = evaluate_lists(read_lists(options.recommendations), config, options.part, options.unknown)
        label = options.label or Path(options.recommendations).stem
        if options.comparison is not None:
            record(evaluation, options.comparison, label, options.recommendations)
    except PrefError as error:
        if options.debug:
            raise
        print(f"recbole-pref-evaluate: {error}", file=sys.stderr)
        return 2
    for note in evaluation.notes:
        print(note, file=sys.stderr)
    result = {"test_result": evaluation.result, "seconds_per_epoch": None}
    table = result_table(result, label, config["dataset"])
    print(table if options.part == "test" else table.replace(", test set", ", validation set", 1))
    if options.comparison is not None:
        command = (read_comparison(options.comparison) or {}).get("command", "the command of the comparison")
        print(f"stored in {options.comparison}; the same comparison adds it to table, tests and report: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
