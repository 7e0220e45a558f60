"""Compare models over seeds: run what is missing, test differences, write the table.

Every run is a process of its own (its peak memory is its own, and its crash does not end the others).
A run that was killed goes on from its last checkpoint, a finished one is not repeated.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from recbole.utils import EvaluatorType, ModelType

from recbole_pref import checkpoint
from recbole_pref.compare.significance import LEVEL, TESTS, holm
from recbole_pref.compare.tables import COSTS, comparison_csv, comparison_table
from recbole_pref.config import Config, absolute_paths, digest_of_defaults
from recbole_pref.environment import environment, python_path, sigterm_as_ctrl_c, threads_per_process, write_result
from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.metrics import group_of
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.memory import explained, peak_mb
from recbole_pref.popularity import head_in_words
from recbole_pref.quick_start import build_run, check_files
from recbole_pref.settings import attribute_of_settings, check_setting, settings_set_by, settings_with
from recbole_pref.settings.files import FlowLoader, parse_value, shipped
from recbole_pref.training import reference

_MOST_SEEDS = 1000  # a larger count is a seed that was meant as a list of one
_FILES = (".yaml", ".yml")
_LABEL_PART = 80  # characters of the label in the name of a run, which is a file's name


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a model with settings of its own.

    Attributes:
        label (str): what the table calls it.
        model (str): model name.
        settings (dict): beside those that all entries share.
    """

    label: str
    model: str
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        folder (Path): where table, runs and checkpoints are.
        rows (list of dict): per entry ``label``, ``seeds``, per metric a dict of ``mean``, ``std``,
            ``difference`` and ``p``, and the costs.
        failed (dict of str to str): run to the reason it has no result.
        text (str): the Markdown table.
    """

    folder: Path
    rows: list
    failed: dict
    text: str


def parse_entries(text):
    """Read what ``--compare`` names: models and YAML files, separated by commas.

    ``LPOSASRec recommended/LPO.yaml tau=0.5`` adds files of settings and settings to a model, later ones win; a
    file in the model's place holds ``model`` and settings, its stem is the label, with its folder where two files have
    the same stem.

    Args:
        text (str): such as ``"CESASRec,LPOSASRec tau=0.5,tuned/rodpo.yaml"``.

    Returns:
        list of Entry

    Raises:
        PrefError: a word that is not understood, a file that cannot be used.
    """
    found = [_parse_entry(part) for part in split_text(text, ",")]
    labels = [entry.label for entry, _ in found]
    return [replace(entry, label=longer) if labels.count(entry.label) > 1 else entry for entry, longer in found]


def split_text(text, separators):
    """Return the parts of a text between separators that stand outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if depth <= 0 and character in separators:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parse_entry(text):
    """Return an entry, and its label with the folder of its file where it has one."""
    first, *rest = split_text(text, " \t\n")
    settings, words = {}, []
    for word in rest:
        if word.endswith(_FILES) and "=" not in word:
            content = _read_settings(word)
            if "model" in content:
                raise PrefError(
                    f"--compare: {word!r} in {text!r} names a model itself: write it in the place of {first!r}, or "
                    "take its line 'model' out."
                )
            settings.update(content)
            words.append(str(Path(word).with_suffix("")))
            continue
        key, equals, value = word.partition("=")
        if not equals:
            raise PrefError(f"--compare: {word!r} in {text!r} is not understood: write key=value or name a YAML file.")
        settings[key] = parse_value(value)
        words.append(word)
    if not first.endswith(_FILES):
        label = " ".join([first, *words])
        return Entry(label, first, settings), label
    content = _read_settings(first)
    if not isinstance(content.get("model"), str):
        raise PrefError(
            f"--compare: {first!r} names no model: add a line such as 'model: LPOSASRec', or write the model before "
            f"the file, 'LPOSASRec {first}'."
        )
    model = content.pop("model")
    stem = Path(first).absolute().with_suffix("")
    label, longer = (" ".join([name, *words]) for name in (stem.name, f"{stem.parent.name}/{stem.name}"))
    return Entry(label, model, {**content, **settings}), longer


def _read_settings(file):
    """Return the settings of a YAML file, data set and seed left out: dict."""
    try:
        content = yaml.load(Path(shipped(file)).read_text(encoding="utf-8"), Loader=FlowLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PrefError(f"--compare: {file!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PrefError(f"--compare: {file!r} holds no settings: write lines such as 'tau: 0.5'.")
    return {key: value for key, value in content.items() if key not in ("dataset", "seed")}  # as best.yaml holds them


def parse_seeds(seeds, first=2020):
    """Return the list of seeds: ``5`` means five from ``first`` on, a list or ``"1,2,3"`` names them.

    Raises:
        PrefError: no whole numbers, none at all, or a count so large that a seed was meant.
    """
    try:
        if isinstance(seeds, str):
            seeds = [int(word) for word in seeds.strip(",").split(",")] if "," in seeds else int(seeds)
        chosen = list(range(first, first + seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    except (TypeError, ValueError):
        raise PrefError(f"--seeds={seeds!r} is not accepted: write a count or a list, 1,2,3.") from None
    if not chosen:
        raise PrefError("--seeds is 0: a comparison needs one seed at least.")
    if isinstance(seeds, int) and seeds > _MOST_SEEDS:
        raise PrefError(
            f"--seeds={seeds} means {seeds} seeds, more than {_MOST_SEEDS}: write --seeds={seeds}, (with a comma) "
            "for that seed alone."
        )
    return list(dict.fromkeys(chosen))


def compare(
    models,
    dataset,
    seeds=5,
    config_file_list=None,
    config_dict=None,
    output=None,
    baseline=None,
    processes=1,
    test="t-test",
):
    """Run every model with every seed, test the differences over users, write tables.

    Args:
        models (str or list of Entry): as :func:`parse_entries` reads, or entries.
        dataset (str): data set name.
        seeds (int, str or list of int): see :func:`parse_seeds`.
        config_file_list (list of str, optional): YAML files for all entries.
        config_dict (dict, optional): settings for all entries; those of an entry win.
        output (path-like, optional): folder; by default ``compare/<dataset>``.
        baseline (str, optional): label the others are tested against; by default the first.
        processes (int): runs at a time; torch's threads (``OMP_NUM_THREADS``) are shared among them.
        test (str): ``t-test`` or ``bootstrap``.

    Returns:
        Comparison

    Raises:
        PrefError: no entry, one given twice or a mistake in any, before anything is trained; runs on different data.
    """
    entries = parse_entries(models) if isinstance(models, str) else list(models)
    labels = [entry.label for entry in entries]
    if not labels:
        raise PrefError("--compare names no model: write --compare=CESASRec,LPOSASRec.")
    _check_different(labels)
    baseline = baseline or labels[0]
    if baseline not in labels:
        raise PrefError(f"--baseline={baseline!r} is not compared.{suggest(baseline, labels)}")
    if test not in TESTS:
        raise PrefError(f"--test={test!r} does not exist: choose {' or '.join(TESTS)}.")
    if processes < 1:
        raise PrefError(f"--processes={processes} is not accepted: set it to 1 or more.")
    for key in sorted(settings_set_by("comparison")):
        if any(key in settings for settings in (config_dict or {}, *(entry.settings for entry in entries))):
            raise PrefError(f"--compare: {key} is set by the comparison itself: remove it.")
    dataset = str(dataset)
    folder = Path(output or Path("compare", dataset)).absolute()
    tasks = _plan(entries, dataset, seeds, config_file_list, config_dict or {}, folder)
    for note in _reference_notes(tasks):
        _tell(note)
    failed = _run_missing(tasks, folder, processes)
    return _write(entries, tasks, folder, baseline, test, failed)


# -- the runs -----------------------------------------------------------------------------------


def _plan(entries, dataset, seeds, files, shared, folder):
    """Return one task (dict) per entry and seed, every configuration and the data checked."""
    tasks, some, table, first = [], None, None, None
    for entry in entries:
        for key, way in attribute_of_settings("shared_by_table").items():
            if key in entry.settings:
                raise PrefError(f"--compare: {entry.label!r} sets {key}, which no entry has for itself: {way}.")
        settings = {**shared, **entry.settings}
        config = Config(entry.model, dataset, files, dict(settings))
        config.refuse_unread(entry.settings, f"--compare: {entry.label!r}: ")
        some = some or config
        if config["eval_type"] != EvaluatorType.RANKING:
            raise PrefError(
                f"--compare: {entry.label} has metrics={config['metrics']}, which measure no ranking: name NDCG or "
                "the like, and a valid_metric among them."
            )
        if files:  # the runs are given one dict: paths of files may not outlive this process
            settings = {**config.file_config_dict, **settings}
            settings = {key: value for key, value in settings.items() if key not in ("model", "dataset")}
        settings |= absolute_paths(config)  # the runs' working folder is another one
        if _test_row(config) != _test_row(some):
            raise PrefError(
                f"--compare: with eval_args split {config['eval_args']['split']} a test row is {_test_row(config)} for "
                f"{entry.label} and {_test_row(some)} for {entries[0].label}: one table needs the same, which "
                "split {LS: valid_and_test} gives."
            )
        measured = _measured(config)
        table = table or measured
        for what, value in measured.items():
            if value != table[what]:
                raise PrefError(
                    f"--compare: {entry.label} has {what} {value!r}, the first entry {table[what]!r}: one table "
                    f"needs the same, set it for all with --{what.rpartition(' ')[2]}=... on the command line."
                )
        defaults = digest_of_defaults(config)
        asks, offers = reference.key_asked(config), reference.key_offered(config)
        first = config["seed"] if first is None else first
        for seed in parse_seeds(seeds, first):
            check_setting("seed", seed)
            own = {**settings, "seed": seed}
            lasting = {key: value for key, value in own.items() if key not in settings_with(scope="run") - {"seed"}}
            made_of = [entry.model, dataset, checkpoint.to_plain(lasting, other=str), defaults]
            label = re.sub(r"[^A-Za-z0-9.=_-]+", "_", entry.label)[:_LABEL_PART]
            if label != entry.label.replace(" ", "_"):
                made_of.append(entry.label)  # two labels may have the same name
            digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
            name = f"{label}-seed{seed}-{digest}"
            tasks.append(
                {"id": name, "label": entry.label, "model": entry.model, "dataset": dataset,
                 "seed": seed, "settings": own, "defaults": defaults, "folder": str(folder),
                 "asks": _of_seed(asks, seed), "offers": _of_seed(offers, seed), "epochs": config["epochs"]}
            )  # fmt: skip
    _check_different([task["id"] for task in tasks])
    if not all(_record_path(folder, task["id"]).is_file() for task in tasks):
        some["checkpoint_dir"] = str(folder / "checkpoints" / tasks[0]["id"])  # where a run looks for pickles
        check_files(some)
    return tasks


def _test_row(config):
    """Return what RecBole's test rows hold, in words."""
    args = config["eval_args"]
    row_by_row = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and args["mode"]["test"] == "full"
    alone = row_by_row or "LS" in args["split"]
    return "one target" if alone else "a user with all targets"


def _of_seed(key, seed):
    return key and {**key, "training": {**key["training"], "seed": seed}}


def _reference_notes(tasks):
    """Return sentences on references unlike the cross-entropy that is compared with: list of str."""
    notes = {}
    for task in tasks:
        found = [
            (_unlike(task["asks"], other), other["label"])
            for other in tasks
            if task["asks"] and other["offers"] and other["offers"]["backbone"] == task["asks"]["backbone"]
        ]
        unlike, label = min(found, key=lambda pair: len(pair[0]), default=((), None))
        if unlike:
            notes[task["label"]] = f"{task['label']} starts from a reference that is not {label}: {'; '.join(unlike)}."
    return list(notes.values())


def _longer_notes(tasks, runs):
    """Return sentences on cross-entropy that trained for longer than the references like it: list of str."""
    notes = {}
    for task in tasks:
        if task["offers"] and any(task["offers"] == other["asks"] for other in tasks):
            most = task["offers"]["training"]["reference_epochs"]
            record, _ = runs.get(task["label"], {}).get(task["seed"], ({"epochs": 0}, None))
            if record["epochs"] > most:
                notes[task["label"]] = (
                    f"{task['label']} trained for more than reference_epochs={most}: the references end there."
                )
    return list(notes.values())


def _unlike(asked, other):
    """Return how the reference asked for differs from what a task of cross-entropy trains: list of str."""
    most = asked["training"]["reference_epochs"]
    cut = [f"reference_epochs={most}, there epochs={other['epochs']}"] if other["epochs"] < most else []
    return reference.differences(asked, other["offers"]) + cut


def _check_different(names):
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PrefError(f"--compare names {twice!r} twice: keep one of them.")


def _measured(config):
    """Return what must be the same for all entries of a table: name to value."""
    at = str(config["valid_metric"]).partition("@")[2]
    same = {"metrics": sorted(map(str.lower, config["metrics"])), "cut-off of valid_metric": at}
    same["first of topk"] = "" if at else config["topk"][0]  # which the table shows then
    same |= {key: config[key] for key in settings_with(same_in_table=True)}
    return same | {"mask_history": history_is_masked(config)}


@sigterm_as_ctrl_c()
def _run_missing(tasks, folder, processes):
    """Run the tasks without a result, some at a time; return run to reason for those that failed."""
    missing = [task for task in tasks if not _record_path(folder, task["id"]).is_file()]
    missing.sort(key=lambda task: task["offers"] is None)  # what others start from comes first
    for path in (folder, folder / "runs", folder / "logs", folder / "tasks"):
        _make_folder(path, folder)
    threads = threads_per_process(processes)
    waiting, running, failed = list(missing), {}, {}
    try:
        while waiting or running:
            while len(running) < processes and (task := _ready(waiting, running.values())):
                waiting.remove(task)
                running[_start(task, folder, threads)] = task
                _tell(f"[{len(missing) - len(waiting)}/{len(missing)}] {task['label']} seed {task['seed']}")
            process = _first_to_end(running)
            task = running.pop(process)
            if not _record_path(folder, task["id"]).is_file():
                failed[task["id"]] = _reason(process.returncode, folder, task["id"])
                _tell(f"{task['label']} seed {task['seed']} failed: {failed[task['id']]}")
    finally:
        for process in running:  # each stores its state and ends
            process.terminate()
        for process in running:
            process.wait()
    return failed


def _ready(waiting, running):
    """Return the first task whose reference is not being trained by a running one, or None."""
    offered = [task["offers"] for task in running if task["offers"]]
    return next((task for task in waiting if task["asks"] not in offered), None)


def _tell(text):
    print(text, file=sys.stderr, flush=True)


def _make_folder(path, output):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrefError(f"--output={str(output)!r} cannot be written: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise PrefError(f"--output={str(output)!r}: {str(path)!r} cannot be written: name another folder.")


def _start(task, folder, threads):
    file = folder / "tasks" / f"{task['id']}.json"
    write_result(file, task, "output")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = python_path(sys.path)
    with open(folder / "logs" / f"{task['id']}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "recbole_pref.compare", str(file)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder,
        )  # fmt: skip


def _first_to_end(running):
    while True:
        for process in running:
            try:
                process.wait(0.2)
                return process
            except subprocess.TimeoutExpired:
                pass


def _reason(code, folder, name):
    """Return why a run left no result: its own sentence, or the signal that ended it."""
    log = folder / "logs" / f"{name}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return f"killed by signal {-code} (perhaps out of memory); the same command goes on with it"
    return lines[-1].removeprefix("recbole-pref: ") if lines else f"exit code {code}"


def _record_path(folder, name):
    return Path(folder, "runs", f"{name}.json")


def train_and_record(task):
    """Do one run of a comparison and write ``runs/<id>.npz`` and, last, ``runs/<id>.json``.

    Args:
        task (dict): ``id``, ``label``, ``model``, ``dataset``, ``seed``, ``settings`` and ``folder``.

    Raises:
        PrefError: another process does this run; what stops a run.
    """
    folder = Path(task["folder"])
    try:  # freed when the process ends, however it ends
        held = FileLock(folder / "tasks" / f"{task['id']}.lock").acquire(timeout=0)
    except Timeout:
        raise PrefError(
            f"{task['id']} is being trained by another process on this folder: wait for that comparison or stop it, "
            "then give the same command again."
        ) from None
    with held:
        if not _record_path(folder, task["id"]).is_file():  # which another comparison may have written by now
            _train_and_record(task, folder)


def _train_and_record(task, folder):
    stored = folder / "checkpoints" / task["id"]
    settings = {
        "reference_dir": str(folder / "reference"),
        **task["settings"],
        "checkpoint_dir": str(stored),
        "run_stem": task["id"],
    }
    config = Config(task["model"], task["dataset"], config_dict=settings)
    if digest_of_defaults(config) != task["defaults"]:
        raise PrefError(
            "a property file or plugin was edited after the comparison began: give the same command again, which makes "
            "new runs with it."
        )
    run = build_run(config)
    trainer = run.trainer
    found = checkpoint.newest_good(stored, task["id"]) if stored.is_dir() else None
    if found:
        trainer.resume_checkpoint(*found)
    with reference.offered(trainer, run.train_data) as store_as_reference:
        best_score, best_result = trainer.fit(run.train_data, run.valid_data)
        store_as_reference()
    test_result, arrays = evidence.evaluate(trainer, run.train_data, run.test_data)
    record = {
        **{key: task[key] for key in ("id", "label", "model", "dataset", "seed")},
        "best_valid_score": best_score,
        "valid_score_bigger": trainer.valid_metric_bigger,
        "best_valid_result": best_result,
        "test_result": test_result,
        "seconds_per_epoch": float(np.mean(trainer.epoch_times)) if trainer.epoch_times else None,
        "epochs": len(trainer.epoch_times),
        "epochs_to_best": trainer.best_epoch,
        "peak_memory_mb": peak_mb(),
        "train_loss_per_row": trainer.losses_per_row(),
        "history": trainer.history,
        "mask_history": history_is_masked(config),
        "data": trainer._data_fingerprint,
        "environment": environment(config["device"]),
        "config": checkpoint.to_plain(config.final_config_dict, other=str),
        "checkpoint": str(Path("checkpoints", task["id"], Path(trainer.saved_model_file).name)),
    }
    checkpoint.write_atomically(
        folder / "runs" / f"{task['id']}.npz", lambda file: np.savez_compressed(file, **arrays), "output"
    )
    write_result(_record_path(folder, task["id"]), record, "output")
    for path in stored.glob("*-last-*.pth"):
        path.unlink()


# -- the table ----------------------------------------------------------------------------------


def load_record(folder, name):
    """Return the record and the arrays of a finished run: tuple of dict and dict.

    Raises:
        PrefError: a damaged file; names it.
    """
    path = _record_path(folder, name)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["test_result"] = {name: float(value) for name, value in record["test_result"].items()}  # or "nan"
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            return record, dict(file)
    except (*evidence.DAMAGED, KeyError) as error:
        raise PrefError(
            f"{str(path)!r} or its .npz is damaged ({' '.join(str(error).split())}): delete both, and the "
            "same command repeats the run."
        ) from None


def table_metrics(record):
    """Return the metrics that a table shows: those at the cut-off of ``valid_metric``, overall first.

    Where it has none: those without a cut-off and those at the first of ``topk``.
    """
    config = record["config"]
    _, at, k = config["valid_metric"].partition("@")
    k = k or str(config["topk"][0])
    names = [name for name in record["test_result"] if name.endswith(f"@{k}") or not (at or "@" in name)]
    return sorted(names, key=lambda name: (name.startswith("tail"), name.startswith("head")))


def summarize(runs, baseline, test):
    """Return the rows of the table.

    Args:
        runs (dict): label to a dict of seed to (record, arrays).
        baseline (str): label that the others are tested against.
        test (str): key of ``significance.TESTS``.

    Returns:
        list of dict: see ``Comparison.rows``. ``difference`` is the mean over the common seeds;
        ``p`` is corrected after Holm over all labels and metrics.
    """
    some = next(iter(next(iter(runs.values())).values()))[0]
    metrics = table_metrics(some)
    rows, tested = [], []
    for label, by_seed in runs.items():
        records = [record for record, _ in by_seed.values()]
        row = {"label": label, "seeds": sorted(by_seed)}
        for metric in metrics:
            values = np.array([record["test_result"][metric] for record in records])
            row[metric] = {
                "mean": float(values.mean()),
                "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                "difference": None,
                "p": None,
            }
            common = sorted(set(by_seed) & set(runs.get(baseline, {})))
            if label == baseline or not common:
                continue
            pairs = [(by_seed[seed], runs[baseline][seed]) for seed in common]
            gaps = [own[0]["test_result"][metric] - other[0]["test_result"][metric] for own, other in pairs]
            row[metric]["difference"] = float(np.mean(gaps))
            difference = _per_user_difference(pairs, metric)
            if difference is not None:
                tested.append((row[metric], TESTS[test][0](difference)))
        for cost in COSTS:
            known = [record[cost] for record in records if record[cost] is not None]
            row[cost] = float(np.mean(known)) if known else None
        rows.append(row)
    for (cell, _), p in zip(tested, holm([p for _, p in tested])):
        cell["p"] = None if np.isnan(p) else float(p)
    return rows


def _per_user_difference(pairs, metric):
    """Return the difference per user, averaged over the seeds: ndarray [U], or None.

    Of a user with several test rows it is their sum: rows of one user are no independent draws, and the mean of the
    sums has the sign of the difference in the table. Seeds may split the data differently.
    """
    users, gaps = [], []
    for one, another in pairs:
        if not _same_rows(one[1], another[1]):
            return None
        if group_of(metric) and not _same_groups(one[1], another[1]):
            return None
        found, others = _values(*one, metric), _values(*another, metric)
        if found is None or others is None:
            return None
        users.append(one[1]["user"][found[1]])
        gaps.append(found[0] - others[0])
    _, places = np.unique(np.concatenate(users), return_inverse=True)
    return np.bincount(places, weights=np.concatenate(gaps)) / len(pairs)


def _same_rows(one, another):
    """Return whether the arrays of two runs are of the same test rows."""
    return all(np.array_equal(one[key], another[key]) for key in ("target", "user"))


def _same_groups(one, another):
    """Return whether the arrays of two runs call the same test rows head and tail."""
    return np.array_equal(*(arrays["tail"][arrays["target"]] for arrays in (one, another)))


def _values(record, arrays, metric):
    """Return a metric per test row and those rows, or None where ranks do not tell it.

    With several targets in a row, or scores that tie, the mean over ranks is not what the evaluator reports.
    """
    found = evidence.user_values(arrays, metric)
    step = 10.0 ** -record["config"].get("metric_decimal_place", 4)
    if found is None or not abs(found[0].mean() - record["test_result"][metric]) <= step:  # NaN is neither
        return None
    return found


def _write(entries, tasks, folder, baseline, test, failed):
    """Write tables of what there is; return the Comparison."""
    runs = {entry.label: {} for entry in entries}
    done = []
    for task in tasks:
        if _record_path(folder, task["id"]).is_file():
            record, arrays = load_record(folder, task["id"])
            runs[task["label"]][task["seed"]] = record, evidence.by_user(arrays)
            done.append(task["id"])
    runs = {label: by_seed for label, by_seed in runs.items() if by_seed}
    if not runs:
        named = {reason: [name for name in failed if failed[name] == reason] for reason in failed.values()}
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in named.items())
        raise PrefError(f"--compare: no run was finished ({reasons}).")
    failed = {name: reason for name, reason in failed.items() if name not in done}  # another process may do a run
    _check_same_data([record for by_seed in runs.values() for record, _ in by_seed.values()])
    rows = summarize(runs, baseline, test)
    metrics = [key for key, value in rows[0].items() if isinstance(value, dict)]
    of_baseline = runs.get(baseline) or next(iter(runs.values()))
    some, arrays = next(iter(of_baseline.values()))
    note = (
        f"{tasks[0]['dataset']}, test set, {_ranking(some)}, history "
        f"{'masked' if some['mask_history'] else 'not masked'}; mean and standard deviation over seeds. "
    )
    if baseline in runs:
        note += (
            f"* differs from {baseline} (p < {LEVEL}, {TESTS[test][1]}, values averaged over the common seeds, "
            f"corrected after Holm for {sum(r[m]['p'] is not None for r in rows for m in metrics)} comparisons)."
        )
    else:
        note += f"Nothing is tested: the baseline {baseline} has no finished run."
    others = [*_other_rows(runs, of_baseline), *_other_groups(runs, of_baseline, metrics)]
    note = " ".join([note, *_groups(some, arrays, metrics), *others])
    if any(task["asks"] for task in tasks):
        note += " Seconds and epochs leave out the training of the references from which methods start."
    note = " ".join([note, *_reference_notes(tasks), *_longer_notes(tasks, runs)])
    text = comparison_table(rows, metrics, "github") + f"\n\n{note}\n"
    for name, reason in failed.items():
        text += f"\n{name} failed: {reason}"
    summary = {
        "baseline": baseline, "metrics": metrics, "rows": rows, "runs": done, "failed": failed,
        "dataset": tasks[0]["dataset"], "test": note, "command": shlex.join(sys.orig_argv),
    }  # fmt: skip
    write_result(folder / "comparison.json", summary, "output")
    _write_text(folder / "table.md", text)
    _write_text(folder / "table.tex", comparison_table(rows, metrics, "latex") + f"\n% {note}\n")
    _write_text(folder / "table.csv", comparison_csv(rows, metrics))
    return Comparison(folder, rows, failed, text)


def _check_same_data(records):
    """Refuse runs of other users or items in one table; training rows may differ, between kinds of models."""
    for record in records:
        saved, first = ({key: r["data"].get(key) for key in checkpoint.SHARED_BY_KINDS} for r in (record, records[0]))
        different = checkpoint.compare_fingerprints(saved, first)
        if different:
            raise PrefError(
                f"the runs {record['id']} and {records[0]['id']} saw other data ({'; '.join(different)}): the data "
                "file or its filters changed; name another --output, or delete the older ones in 'runs'."
            )


def _groups(record, arrays, metrics):
    """Return what head and tail are, where a metric is about them: list of one str or none."""
    if not any(map(group_of, metrics)):
        return []
    rule, ratio = (record["config"][key] for key in ("tail_split", "head_ratio"))
    tail = arrays["tail"][arrays["target"]]
    return [
        f"Head: {head_in_words(rule, ratio)} (tail_split: {rule}), tail: the rest, "
        f"{tail.sum()} of the {len(tail)} test rows."
    ]


def _beside(by_seed, of_baseline):
    """Return the arrays of runs beside those of the baseline with the same seed: list of pairs."""
    return [(arrays, of_baseline[seed][1]) for seed, (_, arrays) in by_seed.items() if seed in of_baseline]


def _other_rows(runs, of_baseline):
    """Return sentences on labels whose test rows are others than the baseline's: list of str."""
    found = {}
    for label, by_seed in runs.items():
        for own, other in _beside(by_seed, of_baseline):
            if not _same_rows(own, other):
                found[label] = f"({len(own['target'])}, not {len(other['target'])})"
    return [
        f"{label} is measured on other test rows {numbers}, as its kind of model leaves out other users: nothing of it "
        "is tested."
        for label, numbers in found.items()
    ]


def _other_groups(runs, of_baseline, metrics):
    """Return sentences on labels whose head and tail are others than the baseline's: list of str."""
    if not any(map(group_of, metrics)):
        return []
    return [
        f"{label} has other head and tail items, as its training counts differ: these columns are of other test rows."
        for label, by_seed in runs.items()
        if not all(_same_groups(*pair) for pair in _beside(by_seed, of_baseline) if _same_rows(*pair))
    ]


def _ranking(record):
    mode = record["config"]["eval_args"]["mode"]["test"]
    return "full ranking" if mode == "full" else f"ranking among {mode} (eval_args)"


def _write_text(path, text):
    checkpoint.write_atomically(path, lambda file: file.write(text.encode("utf-8")), "output")


def main(argv=None):
    """Do the run that a task file describes; the entry point of the processes of a comparison."""
    (file,) = sys.argv[1:] if argv is None else argv
    sys.argv = sys.argv[:1]
    # Ctrl-C at the terminal goes to the comparison too, whose SIGTERM would come as a second signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        with explained():
            train_and_record(json.loads(Path(file).read_text(encoding="utf-8")))
    except PrefError as error:
        print(f"recbole-pref: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
